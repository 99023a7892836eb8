//! Owners: a request does not wait for the guards of its own owner.

/// Names an owner: a thread, or an explicit owner. Never reused within one process.
pub(crate) type OwnerId = u64;

/// Who owns a request.
#[cfg_attr(feature = "replica", derive(serde::Serialize, serde::Deserialize))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The thread that asked: its guard stays there.
    Thread,
    /// An explicit owner.
    Handed(OwnerId),
    /// The request itself: its guard may go anywhere, and excludes every other guard.
    Itself,
}

impl Owner {
    /// The owner of a request that this thread made, if it is not the request itself.
    #[inline]
    pub(crate) fn id(self, thread: OwnerId) -> Option<OwnerId> {
        match self {
            Owner::Thread => Some(thread),
            Owner::Handed(owner) => Some(owner),
            Owner::Itself => None,
        }
    }
}
