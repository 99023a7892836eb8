//! The guards between processes. A guard releases its request when it is dropped; before that it can turn its writes
//! into reads. Unlike one between threads it can also say whether the release could be written down.

use super::ProcessTreeLock;
use super::error::FileError;
use super::member::Member;
use crate::core::path::TreePath;
use crate::drawing::{FirstOf, ListOf};
use crate::replica::RequestId;
use crate::thread::guard::StaysInItsThread;
use std::fmt::{self, Debug, Display};
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

/// A guard that stays in the thread that asked for it: it holds its sub-trees, against all other threads of all
/// processes, until it is dropped.
#[must_use = "what it holds is released when the guard is dropped, here at once"]
pub struct ProcessTreeLockGuard<'a, P: ?Sized + TreePath = Path> {
    lock: &'a ProcessTreeLock<P>,
    request: Option<RequestId>,
    _stays: StaysInItsThread,
}

/// A guard that may go to any thread: it holds its sub-trees until it is dropped. It keeps the lock open.
#[must_use = "what it holds is released when the guard is dropped, here at once"]
pub struct ArcProcessTreeLockGuard {
    member: Arc<Member>,
    request: Option<RequestId>,
}

impl<'a, P: ?Sized + TreePath> ProcessTreeLockGuard<'a, P> {
    pub(super) fn new(lock: &'a ProcessTreeLock<P>, request: RequestId) -> Self {
        ProcessTreeLockGuard { lock, request: Some(request), _stays: StaysInItsThread(PhantomData) }
    }

    /// Turns the writes into reads without releasing them in between, and grants the waiting requests that this lets
    /// in.
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
    /// [`FileError`]. What the guard held is then released with the next request of this lock that can be written, or
    /// when the process ends.
    pub fn release(mut self) -> Result<(), FileError> {
        self.request.take().map_or(Ok(()), |request| self.lock.member.release(request))
    }
}

impl ArcProcessTreeLockGuard {
    pub(super) fn new(member: Arc<Member>, request: RequestId) -> Self {
        ArcProcessTreeLockGuard { member, request: Some(request) }
    }

    /// As [`ProcessTreeLockGuard::downgrade`].
    ///
    /// # Errors
    ///
    /// As [`ProcessTreeLockGuard::downgrade`].
    pub fn downgrade(&mut self) -> Result<(), FileError> {
        self.request.map_or(Ok(()), |request| self.member.downgrade(request))
    }

    /// As [`ProcessTreeLockGuard::release`].
    ///
    /// # Errors
    ///
    /// As [`ProcessTreeLockGuard::release`].
    pub fn release(mut self) -> Result<(), FileError> {
        self.request.take().map_or(Ok(()), |request| self.member.release(request))
    }
}

impl<P: ?Sized + TreePath> Drop for ProcessTreeLockGuard<'_, P> {
    fn drop(&mut self) {
        let _ = self.request.take().map(|request| self.lock.member.release(request));
    }
}

impl Drop for ArcProcessTreeLockGuard {
    fn drop(&mut self) {
        let _ = self.request.take().map(|request| self.member.release(request));
    }
}

/// Shows the roots and their modes, as in `ProcessTreeLockGuard { roots: [X a, S b/c], .. }`, or that the lock is
/// busy.
impl<P: ?Sized + TreePath> Debug for ProcessTreeLockGuard<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug(f, "ProcessTreeLockGuard", &self.lock.member, self.request)
    }
}

/// Shows the first three roots and their modes, as in `X a, S b/c`, or that the lock is busy.
impl<P: ?Sized + TreePath> Display for ProcessTreeLockGuard<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display(f, &self.lock.member, self.request)
    }
}

/// Like that of [`ProcessTreeLockGuard`].
impl Debug for ArcProcessTreeLockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug(f, "ArcProcessTreeLockGuard", &self.member, self.request)
    }
}

/// Like that of [`ProcessTreeLockGuard`].
impl Display for ArcProcessTreeLockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display(f, &self.member, self.request)
    }
}

fn debug(f: &mut fmt::Formatter<'_>, name: &str, member: &Member, request: Option<RequestId>) -> fmt::Result {
    let mut told = f.debug_struct(name);
    match request.and_then(|request| member.roots(request)) {
        Some(roots) => told.field("roots", &ListOf(&roots)),
        None => told.field("busy", &true),
    };
    told.finish_non_exhaustive()
}

fn display(f: &mut fmt::Formatter<'_>, member: &Member, request: Option<RequestId>) -> fmt::Result {
    match request.and_then(|request| member.roots(request)) {
        Some(roots) => Display::fmt(&FirstOf(&roots), f),
        None => f.write_str("sub-trees of a lock that is busy"),
    }
}
