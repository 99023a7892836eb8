//! The guards between processes. A guard releases its request when it is dropped; before that it can turn its writes
//! into reads. Unlike one between threads it can also say whether the release could be written down.

use super::ProcessTreeLock;
use super::error::FileError;
use crate::core::path::TreePath;
use crate::face::guards;
use crate::inspect::Root;
use crate::replica::RequestId;
use crate::thread::guard::StaysInItsThread;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

/// A guard that stays in the thread that asked for it: it holds its sub-trees, against all other threads of all
/// processes, until it is dropped. `Debug` and `Display` show them, or that the lock is busy.
#[must_use = "what it holds is released when the guard is dropped, here at once"]
pub struct ProcessTreeLockGuard<'a, P: ?Sized + TreePath = Path> {
    lock: &'a ProcessTreeLock<P>,
    request: Option<RequestId>,
    _stays: StaysInItsThread,
}

/// A guard that may go to any thread: it holds its sub-trees until it is dropped. It keeps the lock open. `Debug` and
/// `Display` are as those of [`ProcessTreeLockGuard`].
#[must_use = "what it holds is released when the guard is dropped, here at once"]
pub struct ArcProcessTreeLockGuard {
    /// Whatever its paths are: a guard has no use for their type.
    lock: ProcessTreeLock,
    request: Option<RequestId>,
}

impl<'a, P: ?Sized + TreePath> ProcessTreeLockGuard<'a, P> {
    pub(super) fn new(lock: &'a ProcessTreeLock<P>, request: RequestId) -> Self {
        ProcessTreeLockGuard { lock, request: Some(request), _stays: StaysInItsThread(PhantomData) }
    }
}

impl ArcProcessTreeLockGuard {
    pub(super) fn new<P: ?Sized + TreePath>(lock: &ProcessTreeLock<P>, request: RequestId) -> Self {
        let lock = ProcessTreeLock { member: Arc::clone(&lock.member), paths: PhantomData };
        ArcProcessTreeLockGuard { lock, request: Some(request) }
    }
}

guards! {
    impl['a, P: ?Sized + TreePath] ProcessTreeLockGuard<'a, P>;
    impl[] ArcProcessTreeLockGuard;
    shows [];
    {
        /// Turns the writes into reads without releasing them in between, and grants the waiting requests that this
        /// lets in.
        ///
        /// # Errors
        ///
        /// [`FileError`]. Everything is then held as before.
        pub fn downgrade(&mut self) -> Result<(), FileError> {
            self.request.map_or(Ok(()), |request| self.lock.member.downgrade(request))
        }

        /// Releases what it holds, as dropping it does, and returns an error if that could not be written down.
        ///
        /// # Errors
        ///
        /// [`FileError`]. What the guard held is then released with the next request of this lock that can be written,
        /// or when the process ends.
        pub fn release(mut self) -> Result<(), FileError> {
            self.request.take().map_or(Ok(()), |request| self.lock.member.release(request))
        }

        fn let_go(&mut self) {
            let _ = self.request.take().map(|request| self.lock.member.release(request));
        }

        fn roots(&self) -> Option<Vec<Root>> {
            self.request.and_then(|request| self.lock.member.roots(request))
        }
    }
}
