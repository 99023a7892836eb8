//! The methods of [`TreeLock`] whose guards may go to other threads: the same as in `lock.rs`, but each guard is an
//! owner of its own.

use crate::core::owner::Owner;
use crate::core::path::TreePath;
use crate::core::roots::Roots;
use crate::error::LockError;
use crate::patience::Patience;
use crate::thread::guard::ArcTreeLockGuard;
use crate::thread::lock::{TreeLock, give_up};
use crate::trace::Wait;
use std::sync::Arc;
use std::time::{Duration, Instant};

impl<P: ?Sized + TreePath> TreeLock<P> {
    /// As [`lock`](TreeLock::lock), but the guard also owns the lock, and may go to other threads.
    ///
    /// Each such guard is an owner of its own: the request waits for conflicting guards even of the calling thread.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// let lock = Arc::new(treelock::TreeLock::new());
    /// let guard = lock.lock_arc(&["src"], &["dst"]);
    /// std::thread::spawn(move || drop(guard)).join().unwrap();
    /// ```
    ///
    /// # Panics
    ///
    /// As [`lock`](TreeLock::lock).
    #[track_caller]
    pub fn lock_arc(
        self: &Arc<Self>,
        reads: &(impl Roots<P> + ?Sized),
        writes: &(impl Roots<P> + ?Sized),
    ) -> ArcTreeLockGuard<P> {
        match self.guard_arc(reads, writes, Patience::Endless) {
            Ok(guard) => guard,
            Err(error) => give_up(&error),
        }
    }

    /// As [`read`](TreeLock::read), but the guard also owns the lock; see [`lock_arc`](TreeLock::lock_arc).
    ///
    /// # Panics
    ///
    /// As [`lock`](TreeLock::lock).
    #[track_caller]
    pub fn read_arc(self: &Arc<Self>, path: impl AsRef<P>) -> ArcTreeLockGuard<P> {
        let guard = self.lock_arc(&[&path], &[]);
        drop(path);
        guard
    }

    /// As [`write`](TreeLock::write), but the guard also owns the lock; see [`lock_arc`](TreeLock::lock_arc).
    ///
    /// # Panics
    ///
    /// As [`lock`](TreeLock::lock).
    #[track_caller]
    pub fn write_arc(self: &Arc<Self>, path: impl AsRef<P>) -> ArcTreeLockGuard<P> {
        let guard = self.lock_arc(&[], &[&path]);
        drop(path);
        guard
    }

    /// As [`try_lock`](TreeLock::try_lock), but the guard also owns the lock; see [`lock_arc`](TreeLock::lock_arc).
    ///
    /// # Errors
    ///
    /// As [`try_lock`](TreeLock::try_lock).
    #[track_caller]
    pub fn try_lock_arc(
        self: &Arc<Self>,
        reads: &(impl Roots<P> + ?Sized),
        writes: &(impl Roots<P> + ?Sized),
    ) -> Result<ArcTreeLockGuard<P>, LockError> {
        self.guard_arc(reads, writes, Patience::None)
    }

    /// As [`try_lock_for`](TreeLock::try_lock_for), but the guard also owns the lock; see
    /// [`lock_arc`](TreeLock::lock_arc).
    ///
    /// # Errors
    ///
    /// As [`try_lock_for`](TreeLock::try_lock_for).
    #[track_caller]
    pub fn try_lock_arc_for(
        self: &Arc<Self>,
        reads: &(impl Roots<P> + ?Sized),
        writes: &(impl Roots<P> + ?Sized),
        timeout: Duration,
    ) -> Result<ArcTreeLockGuard<P>, LockError> {
        self.guard_arc(reads, writes, Patience::within(timeout))
    }

    /// As [`try_lock_until`](TreeLock::try_lock_until), but the guard also owns the lock; see
    /// [`lock_arc`](TreeLock::lock_arc).
    ///
    /// # Errors
    ///
    /// As [`try_lock_for`](TreeLock::try_lock_for).
    #[track_caller]
    pub fn try_lock_arc_until(
        self: &Arc<Self>,
        reads: &(impl Roots<P> + ?Sized),
        writes: &(impl Roots<P> + ?Sized),
        deadline: Instant,
    ) -> Result<ArcTreeLockGuard<P>, LockError> {
        self.guard_arc(reads, writes, Patience::Until(Some(deadline)))
    }

    /// As [`try_read`](TreeLock::try_read), but the guard also owns the lock; see [`lock_arc`](TreeLock::lock_arc).
    ///
    /// # Errors
    ///
    /// As [`try_lock`](TreeLock::try_lock).
    #[track_caller]
    pub fn try_read_arc(self: &Arc<Self>, path: impl AsRef<P>) -> Result<ArcTreeLockGuard<P>, LockError> {
        let guard = self.try_lock_arc(&[&path], &[])?;
        drop(path);
        Ok(guard)
    }

    /// As [`try_write`](TreeLock::try_write), but the guard also owns the lock; see [`lock_arc`](TreeLock::lock_arc).
    ///
    /// # Errors
    ///
    /// As [`try_lock`](TreeLock::try_lock).
    #[track_caller]
    pub fn try_write_arc(self: &Arc<Self>, path: impl AsRef<P>) -> Result<ArcTreeLockGuard<P>, LockError> {
        let guard = self.try_lock_arc(&[], &[&path])?;
        drop(path);
        Ok(guard)
    }

    /// As [`try_read_for`](TreeLock::try_read_for), but the guard also owns the lock; see
    /// [`lock_arc`](TreeLock::lock_arc).
    ///
    /// # Errors
    ///
    /// As [`try_lock_for`](TreeLock::try_lock_for).
    #[track_caller]
    pub fn try_read_arc_for(
        self: &Arc<Self>,
        path: impl AsRef<P>,
        timeout: Duration,
    ) -> Result<ArcTreeLockGuard<P>, LockError> {
        let guard = self.try_lock_arc_for(&[&path], &[], timeout)?;
        drop(path);
        Ok(guard)
    }

    /// As [`try_write_for`](TreeLock::try_write_for), but the guard also owns the lock; see
    /// [`lock_arc`](TreeLock::lock_arc).
    ///
    /// # Errors
    ///
    /// As [`try_lock_for`](TreeLock::try_lock_for).
    #[track_caller]
    pub fn try_write_arc_for(
        self: &Arc<Self>,
        path: impl AsRef<P>,
        timeout: Duration,
    ) -> Result<ArcTreeLockGuard<P>, LockError> {
        let guard = self.try_lock_arc_for(&[], &[&path], timeout)?;
        drop(path);
        Ok(guard)
    }

    #[track_caller]
    fn guard_arc(
        self: &Arc<Self>,
        reads: &(impl Roots<P> + ?Sized),
        writes: &(impl Roots<P> + ?Sized),
        patience: Patience,
    ) -> Result<ArcTreeLockGuard<P>, LockError> {
        let wait = Wait::begin();
        let entry = self.acquire(reads.as_slice(), writes.as_slice(), Owner::Itself, patience);
        let outcome = entry.map(|entry| ArcTreeLockGuard::new(Arc::clone(self), entry));
        wait.end(&outcome, reads, writes);
        outcome
    }
}
