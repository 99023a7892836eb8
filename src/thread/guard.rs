//! The guards. A guard releases its request when it is dropped; before that it can turn its writes into reads, or
//! release some of its roots.
//!
//! A plain guard stays in its thread, which is its owner. An `Arc` guard, and that of a task, is an owner of its own and may
//! go anywhere. They all consist of a lock and an entry in its ledger.

use crate::core::path::{PathError, TreePath};
use crate::core::roots::Roots;
use crate::face::guards;
use crate::inspect::Root;
use crate::thread::acquire::Entry;
use crate::thread::lock::TreeLock;
use crate::thread::report;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::{Arc, MutexGuard};

/// A guard that stays in the thread that asked for it: it holds its sub-trees until it is dropped.
///
/// ```
/// let lock = treelock::TreeLock::new();
/// let guard = lock.lock(&["templates"], &["site/2026"]);
/// assert_eq!(guard.to_string(), "S templates, X site/2026");
/// ```
///
/// ```compile_fail,E0277
/// // It stays in its thread, which is its owner; `lock_arc` makes a guard that may leave.
/// let lock = treelock::TreeLock::new();
/// let guard = lock.write("a");
/// std::thread::scope(|scope| scope.spawn(move || drop(guard)));
/// ```
#[must_use = "what it holds is released when the guard is dropped, here at once"]
pub struct TreeLockGuard<'a, P: ?Sized + TreePath = Path> {
    lock: &'a TreeLock<P>,
    entry: Entry,
    _stays: StaysInItsThread,
}

/// Named for the reader of a compiler error: `lock_arc` makes guards that may leave their thread.
pub(crate) struct StaysInItsThread(pub(crate) PhantomData<MutexGuard<'static, ()>>);

/// A guard that may go to any thread: it holds its sub-trees until it is dropped. It keeps the lock alive.
///
/// ```
/// use std::sync::Arc;
/// use treelock::{ArcTreeLockGuard, TreeLock};
///
/// fn goes_anywhere<T: Send + 'static>(_: T) {}
///
/// let guard: ArcTreeLockGuard = Arc::new(TreeLock::new()).lock_arc(&["src"], &["dst"]);
/// goes_anywhere(guard);
/// ```
#[must_use = "what it holds is released when the guard is dropped, here at once"]
pub struct ArcTreeLockGuard<P: ?Sized + TreePath = Path> {
    lock: Arc<TreeLock<P>>,
    entry: Entry,
}

/// A guard of a task: it holds its sub-trees until it is dropped, and goes with the task from thread to thread.
///
/// As an [`ArcTreeLockGuard`], it is an owner of its own: it excludes every other guard, even those of the same task. An
/// owner for several guards of one task is [`LockOwner`](crate::LockOwner).
///
/// ```
/// # pollster::block_on(async {
/// let lock = treelock::TreeLock::new();
/// let guard = lock.lock_async(&["templates"], &["site/2026"]).await?;
/// assert_eq!(guard.to_string(), "S templates, X site/2026");
/// # Ok::<(), treelock::LockError>(())
/// # }).unwrap();
/// ```
#[cfg(feature = "async")]
#[must_use = "what it holds is released when the guard is dropped, here at once"]
pub struct AsyncTreeLockGuard<'a, P: ?Sized + TreePath = Path> {
    lock: &'a TreeLock<P>,
    entry: Entry,
}

#[cfg(feature = "async")]
impl<'a, P: ?Sized + TreePath> AsyncTreeLockGuard<'a, P> {
    pub(crate) fn new(lock: &'a TreeLock<P>, entry: Entry) -> Self {
        AsyncTreeLockGuard { lock, entry }
    }
}

impl<'a, P: ?Sized + TreePath> TreeLockGuard<'a, P> {
    pub(crate) fn new(lock: &'a TreeLock<P>, entry: Entry) -> Self {
        TreeLockGuard { lock, entry, _stays: StaysInItsThread(PhantomData) }
    }
}

impl<P: ?Sized + TreePath> ArcTreeLockGuard<P> {
    pub(crate) fn new(lock: &Arc<TreeLock<P>>, entry: Entry) -> Self {
        Self::of(Arc::clone(lock), entry)
    }

    pub(crate) fn of(lock: Arc<TreeLock<P>>, entry: Entry) -> Self {
        ArcTreeLockGuard { lock, entry }
    }
}

guards! {
    impl['a, P: ?Sized + TreePath] TreeLockGuard<'a, P>;
    impl[P: ?Sized + TreePath] ArcTreeLockGuard<P>;
    #[cfg(feature = "async")]
    impl['a, P: ?Sized + TreePath] AsyncTreeLockGuard<'a, P>;
    shows [];
    {
        /// Turns the writes into reads without releasing them in between, and grants the waiting requests that this
        /// lets in.
        ///
        /// ```
        /// use treelock::TreeLock;
        ///
        /// let lock = TreeLock::new();
        /// let reading = lock.write("a").downgrade();
        /// std::thread::scope(|scope| {
        ///     scope.spawn(|| assert!(lock.try_lock(&["a/b"], &[]).is_ok()));
        /// });
        /// # drop(reading);
        /// ```
        pub fn downgrade(mut self) -> Self {
            self.lock.downgrade(&mut self.entry);
            self
        }

        /// Releases the roots that these paths name and keeps the others: a rename can release its source before it
        /// goes on at its target.
        ///
        /// ```
        /// use treelock::TreeLock;
        ///
        /// let lock = TreeLock::new();
        /// let mut moving = lock.lock(&[], &["inbox/report", "archive/2026"]);
        /// moving.release(&["inbox/report"])?;
        /// std::thread::scope(|scope| {
        ///     scope.spawn(|| assert!(lock.try_lock(&[], &["inbox/report"]).is_ok()));
        ///     scope.spawn(|| assert!(lock.try_lock(&[], &["archive/2026"]).is_err()));
        /// });
        /// # drop(moving);
        /// # Ok::<(), treelock::PathError>(())
        /// ```
        ///
        /// # Errors
        ///
        /// If a path is unusable or names no root of this guard: what lies below a root, and was not asked for as a
        /// root, cannot be released on its own. Nothing is released then.
        ///
        /// # Cost
        ///
        /// O(depth of all its roots). What is left of the guard is later released step by step, not by the fast path.
        pub fn release(&mut self, roots: &(impl Roots<P> + ?Sized)) -> Result<(), PathError> {
            self.lock.release_roots(&mut self.entry, roots.as_slice())
        }

        fn let_go(&mut self) {
            self.lock.release(self.entry);
        }

        fn roots(&self) -> Option<Vec<Root>> {
            Some(report::roots(&self.lock.found(self.entry), &self.lock.seeds))
        }
    }
}
