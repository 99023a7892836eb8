//! Whose guards a request does not wait for.

/// Whose guards a request does not wait for.
#[cfg_attr(feature = "process", derive(serde::Serialize, serde::Deserialize))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Those of its thread: it made a plain guard, which stays there.
    Thread,
    /// Nobody's: its guard may go anywhere.
    Itself,
}
