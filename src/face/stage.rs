//! How far a future that locks has come.

use std::fmt;

/// A future is lazy: it does nothing before it is polled. When it has ended it stays pending.
pub(crate) enum Stage<W> {
    /// It has not been polled.
    Fresh,
    /// Its request waits, or has been granted since it was polled.
    Waits(W),
    /// It has returned its outcome, or has panicked: no poll does anything any more.
    Ended,
}

impl<W> Stage<W> {
    pub(crate) fn is_ended(&self) -> bool {
        matches!(self, Stage::Ended)
    }

    /// For the `Debug` of a future.
    pub(crate) fn show(&self, future: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self {
            Stage::Fresh => "not polled",
            Stage::Waits(_) => "asked",
            Stage::Ended => "ended",
        };
        f.debug_struct(future).field("stage", &format_args!("{stage}")).finish_non_exhaustive()
    }
}
