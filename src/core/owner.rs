//! Whose guards a request does not wait for.

/// Names an owner: a thread, or one that was made to be handed on. Never given again in one process.
pub(crate) type OwnerId = u64;

/// Whose a request is.
#[cfg_attr(feature = "process", derive(serde::Serialize, serde::Deserialize))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The thread's that asked: its guard stays there.
    Thread,
    /// That of an explicit owner.
    Handed(OwnerId),
    /// Nobody's: its guard may go anywhere, and excludes every other guard.
    Itself,
}

impl Owner {
    /// The owner of a request that this thread made.
    #[inline]
    pub(crate) fn id(self, thread: OwnerId) -> Option<OwnerId> {
        match self {
            Owner::Thread => Some(thread),
            Owner::Handed(owner) => Some(owner),
            Owner::Itself => None,
        }
    }
}
