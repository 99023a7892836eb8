//! [`TreeLock`]: what a user sees of the lock. How a request is granted, and waits, is in `acquire.rs`.

use crate::core::node_id::Seeds;
use crate::core::owner::Owner;
use crate::core::path::TreePath;
use crate::error::LockError;
use crate::inspect::Snapshot;
use crate::patience::Patience;
use crate::sync::{OnceByte, random_seed};
use crate::thread::acquire::{Looks, Stamps};
use crate::thread::guard::{ArcTreeLockGuard, TreeLockGuard};
use crate::thread::ledger::{Ledger, State};
use crate::thread::table::Table;
use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A read/write lock over the sub-trees of a tree.
///
/// [`lock`](TreeLock::lock) takes shared locks on the sub-trees below `reads` and exclusive ones on those below
/// `writes`, all or nothing. Two requests conflict if a write of one overlaps a read or a write of the other; sub-trees
/// overlap if the root of one is, or is an ancestor of, the root of the other. The tree itself is never built:
/// paths need not exist anywhere, and the lock holds no data.
///
/// ```
/// use treelock::TreeLock;
///
/// let lock = TreeLock::new();
/// {
///     let _moving = lock.lock(&["config"], &["inbox/report", "archive/2026"]);
///     // Nobody else reads or writes below inbox/report and archive/2026, or writes below config.
///     assert!(lock.try_lock(&["inbox/other"], &[]).is_ok());
/// }
/// let _all = lock.write("");
/// ```
///
/// # Fairness
///
/// First come, first served: a request has its place from when it begins to wait, and keeps it wherever it waits after that.
/// So of two requests of one root each that conflict the one that began to wait first is served first, unless it waits for
/// the other's owner anyway. There is one exception: a reader may pass a writer that waits at an ancestor of both for somebody
/// who reads all below it. A request with several roots comes to them one after the other, and is overtaken at none of
/// them where it waits. Requests that do not conflict never wait for each other.
///
/// # Re-entrancy
///
/// A thread never waits for its own guards: where it reads or writes already it may ask again, also past those who
/// wait. Asking for a write below one's own read is an *upgrade*: it goes ahead of the writers in the queue, and waits for
/// the other readers alone. Each guard protects what *it* asked for until it is dropped, in any order.
///
/// So the owner is the *thread*, not the task: jobs that share a thread, such as those of an executor or of a pool that
/// runs one job inside of another, do not exclude each other by plain guards. `lock_arc` and its like are for them: its
/// guards are strangers to every other guard, those of their thread included.
///
/// # Deadlock
///
/// Threads that hold one guard at a time cannot deadlock: take everything in one request. Threads that ask for more
/// while they hold a guard can. A cycle is usually found after some 20 ms and reported to one of those that nest: by an error if
/// one of these can take it, else by a panic of `lock`. A wait that is merely long is not reported, and a deadline that
/// passes before the look is [`TimedOut`](LockError::TimedOut).
///
/// Not seen: cycles that involve something else, such as another lock, a channel or the join of a thread; and waits for
/// `Arc` guards, which any thread might drop, so that a thread which waits for its own `Arc` guard waits for ever.
///
/// # Panics
///
/// There is no poisoning: a guard that is dropped by unwinding releases what it holds. The methods that block without
/// a `Result` panic on what can never succeed; each says when.
///
/// # Cost
///
/// O(depth) for one root, O(d log d) for several of d segments together, whatever is held or waits elsewhere; amortised,
/// since a read or write of a node below which many were busy may have to look through all requests once. A lock takes
/// some 30 KiB, so that many threads meet seldom: have one for each tree, not one for each object in it. Nodes take
/// memory while they are held or awaited only. A guard that is forgotten ([`std::mem::forget`]) holds for ever.
///
/// # Source
///
/// Intention locks are of Gray, Lorie, Putzolu, Traiger, "Granularity of Locks and Degrees of Consistency in a Shared
/// Data Base", 1976; see [`Mode`](crate::Mode).
pub struct TreeLock<P: ?Sized + TreePath = Path> {
    pub(crate) seeds: Seeds,
    /// What its paths are relative to, once there was one: 0 unset, else [`Frame`] + 1.
    pub(crate) frame: OnceByte,
    pub(crate) table: Table,
    pub(crate) ledger: Ledger<P>,
    pub(crate) looks: Looks,
    pub(crate) stamps: Stamps,
}

impl TreeLock<Path> {
    /// A lock over [`Path`]s. For paths of other types: [`TreeLock::default`].
    ///
    /// ```
    /// let lock = treelock::TreeLock::new();
    /// let _guard = lock.lock(&[], &["data/users"]);
    ///
    /// let keys = treelock::TreeLock::<str>::default();
    /// let _guard = keys.lock(&[String::from("bucket/key")], &[]);
    ///
    /// let objects = treelock::TreeLock::<[u32]>::default();
    /// let _guard = objects.lock(&[vec![1, 3, 6, 1]], &[]);
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl<P: ?Sized + TreePath> Default for TreeLock<P> {
    fn default() -> Self {
        TreeLock {
            seeds: Seeds::new(random_seed),
            frame: OnceByte::default(),
            table: Table::new(),
            ledger: Ledger::new(),
            looks: Looks::default(),
            stamps: Stamps::default(),
        }
    }
}

impl<P: ?Sized + TreePath> TreeLock<P> {
    /// Locks the sub-trees below `reads` shared and those below `writes` exclusively; waits until it has them all.
    ///
    /// Either may be empty, and roots may repeat or lie in each other. Both are slices of one type: where `reads` are
    /// `String`s and `writes` literals, borrow, as in `lock(&[&*read], &["a"])`. Where both are empty nothing is locked,
    /// and the type has to be named: `lock.lock::<&str>(&[], &[])`.
    ///
    /// ```
    /// # let lock = treelock::TreeLock::new();
    /// let guard = lock.lock(&["templates"], &["site/2026", "site/index"]);
    /// drop(guard);
    /// ```
    ///
    /// # Panics
    ///
    /// If a path is unusable (see [`TreePath`]), or if the wait can never end because the thread is in a deadlock (see
    /// [above](TreeLock#deadlock)). [`try_lock_for`](TreeLock::try_lock_for) returns these as errors.
    #[track_caller]
    pub fn lock<Q: AsRef<P>>(&self, reads: &[Q], writes: &[Q]) -> TreeLockGuard<'_, P> {
        match self.acquire(reads, writes, Owner::Thread, Patience::Endless) {
            Ok(entry) => TreeLockGuard::new(self, entry),
            Err(error) => give_up(&error),
        }
    }

    /// Locks the sub-tree below `path` shared: `lock(&[path], &[])`.
    ///
    /// # Panics
    ///
    /// As [`lock`](TreeLock::lock).
    #[track_caller]
    pub fn read(&self, path: impl AsRef<P>) -> TreeLockGuard<'_, P> {
        let guard = self.lock(&[&path], &[]);
        // Here and not at the end: should this panic, unwinding finds the guard.
        drop(path);
        guard
    }

    /// Locks the sub-tree below `path` exclusively: `lock(&[], &[path])`.
    ///
    /// # Panics
    ///
    /// As [`lock`](TreeLock::lock).
    #[track_caller]
    pub fn write(&self, path: impl AsRef<P>) -> TreeLockGuard<'_, P> {
        let guard = self.lock(&[], &[&path]);
        drop(path);
        guard
    }

    /// Locks as [`lock`](TreeLock::lock) does if that needs no waiting.
    ///
    /// # Errors
    ///
    /// [`LockError::WouldBlock`], [`LockError::Path`].
    #[track_caller]
    pub fn try_lock<Q: AsRef<P>>(&self, reads: &[Q], writes: &[Q]) -> Result<TreeLockGuard<'_, P>, LockError> {
        self.acquire(reads, writes, Owner::Thread, Patience::None).map(|entry| TreeLockGuard::new(self, entry))
    }

    /// Locks as [`lock`](TreeLock::lock) does, waiting no longer than `timeout`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use treelock::LockError;
    ///
    /// # let lock = treelock::TreeLock::new();
    /// match lock.try_lock_for(&["a"], &["b"], Duration::from_millis(50)) {
    ///     Ok(_guard) => { /* both are held until here */ }
    ///     Err(LockError::TimedOut) => { /* somebody else was busy there */ }
    ///     Err(error) => panic!("{error}"),
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`LockError::TimedOut`], [`LockError::Deadlock`], [`LockError::Path`]. Nothing is held then, and those who
    /// queued behind this request go on.
    #[track_caller]
    pub fn try_lock_for<Q: AsRef<P>>(
        &self,
        reads: &[Q],
        writes: &[Q],
        timeout: Duration,
    ) -> Result<TreeLockGuard<'_, P>, LockError> {
        // A time beyond what the clock can tell is for ever.
        let patience = Patience::Until(Instant::now().checked_add(timeout));
        self.acquire(reads, writes, Owner::Thread, patience).map(|entry| TreeLockGuard::new(self, entry))
    }

    /// Locks as [`lock`](TreeLock::lock) does, waiting no longer than until `deadline`.
    ///
    /// # Errors
    ///
    /// As [`try_lock_for`](TreeLock::try_lock_for).
    #[track_caller]
    pub fn try_lock_until<Q: AsRef<P>>(
        &self,
        reads: &[Q],
        writes: &[Q],
        deadline: Instant,
    ) -> Result<TreeLockGuard<'_, P>, LockError> {
        let patience = Patience::Until(Some(deadline));
        self.acquire(reads, writes, Owner::Thread, patience).map(|entry| TreeLockGuard::new(self, entry))
    }

    /// As [`lock`](TreeLock::lock), for a guard that owns the lock too, and may go to other threads.
    ///
    /// It is an owner of its own: it waits for every other guard, also those of the calling thread.
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
    pub fn lock_arc<Q: AsRef<P>>(self: &Arc<Self>, reads: &[Q], writes: &[Q]) -> ArcTreeLockGuard<P> {
        match self.acquire(reads, writes, Owner::Itself, Patience::Endless) {
            Ok(entry) => ArcTreeLockGuard::new(Arc::clone(self), entry),
            Err(error) => give_up(&error),
        }
    }

    /// As [`read`](TreeLock::read), for a guard that owns the lock too; see [`lock_arc`](TreeLock::lock_arc).
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

    /// As [`write`](TreeLock::write), for a guard that owns the lock too; see [`lock_arc`](TreeLock::lock_arc).
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

    /// As [`try_lock`](TreeLock::try_lock), for a guard that owns the lock too; see [`lock_arc`](TreeLock::lock_arc).
    ///
    /// # Errors
    ///
    /// As [`try_lock`](TreeLock::try_lock).
    #[track_caller]
    pub fn try_lock_arc<Q: AsRef<P>>(
        self: &Arc<Self>,
        reads: &[Q],
        writes: &[Q],
    ) -> Result<ArcTreeLockGuard<P>, LockError> {
        let entry = self.acquire(reads, writes, Owner::Itself, Patience::None)?;
        Ok(ArcTreeLockGuard::new(Arc::clone(self), entry))
    }

    /// As [`try_lock_for`](TreeLock::try_lock_for), for a guard that owns the lock too; see
    /// [`lock_arc`](TreeLock::lock_arc).
    ///
    /// # Errors
    ///
    /// As [`try_lock_for`](TreeLock::try_lock_for).
    #[track_caller]
    pub fn try_lock_arc_for<Q: AsRef<P>>(
        self: &Arc<Self>,
        reads: &[Q],
        writes: &[Q],
        timeout: Duration,
    ) -> Result<ArcTreeLockGuard<P>, LockError> {
        let patience = Patience::Until(Instant::now().checked_add(timeout));
        let entry = self.acquire(reads, writes, Owner::Itself, patience)?;
        Ok(ArcTreeLockGuard::new(Arc::clone(self), entry))
    }

    /// As [`try_lock_until`](TreeLock::try_lock_until), for a guard that owns the lock too; see
    /// [`lock_arc`](TreeLock::lock_arc).
    ///
    /// # Errors
    ///
    /// As [`try_lock_for`](TreeLock::try_lock_for).
    #[track_caller]
    pub fn try_lock_arc_until<Q: AsRef<P>>(
        self: &Arc<Self>,
        reads: &[Q],
        writes: &[Q],
        deadline: Instant,
    ) -> Result<ArcTreeLockGuard<P>, LockError> {
        let entry = self.acquire(reads, writes, Owner::Itself, Patience::Until(Some(deadline)))?;
        Ok(ArcTreeLockGuard::new(Arc::clone(self), entry))
    }

    /// Who holds what and who waits for what, at one moment; prints as a drawing of the tree.
    ///
    /// # Cost
    ///
    /// Everybody who begins or ends a request waits while its entries are copied: O(requests). To spell out their
    /// paths takes O(their segments), and nobody waits for that.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(self.ledger.lock(), &self.seeds)
    }
}

/// Panics, on what can never succeed, with all that is needed to mend the call.
#[cold]
#[track_caller]
fn give_up(error: &LockError) -> ! {
    match error {
        LockError::Deadlock(deadlock) => panic!(
            "treelock: {deadlock}\nTake all sub-trees in one request, drop the guards before asking for more, \
             or use try_lock_for, which returns this as an error"
        ),
        other => panic!("treelock: {other}"),
    }
}

// Nothing that a panic could leave half done can be seen through a lock or a guard: no user code runs while one
// is changed.
impl<P: ?Sized + TreePath> UnwindSafe for TreeLock<P> {}
impl<P: ?Sized + TreePath> RefUnwindSafe for TreeLock<P> {}

/// Says how much is held and awaited, or that the lock is busy; never blocks.
impl<P: ?Sized + TreePath> fmt::Debug for TreeLock<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told = f.debug_struct("TreeLock");
        match self.ledger.try_lock() {
            Some(ledger) => {
                let held = ledger.entries().filter(|(_, entry)| matches!(entry.state, State::Granted)).count();
                let waiting = ledger.entries().filter(|(_, entry)| matches!(entry.state, State::Waiting(_))).count();
                drop(ledger);
                told.field("held", &held).field("waiting", &waiting)
            }
            None => told.field("busy", &true),
        };
        told.finish_non_exhaustive()
    }
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    use super::*;

    /// G6: what is left of any history is a constant.
    #[test]
    fn unlocked_lock_is_back_to_its_size() {
        let lock = TreeLock::<[u32]>::default();
        let fresh = (lock.table.capacity(), lock.ledger.capacity());
        let guards: Vec<_> = (0..100_000).map(|leaf| lock.write(vec![leaf % 100, leaf])).collect();
        assert!(lock.table.len() > 100_000 && lock.ledger.capacity() >= 100_000);
        drop(guards);
        assert_eq!(lock.table.len(), 0);
        let bound = 64 * 60;
        assert!(lock.table.capacity() <= bound, "{} nodes of room, {} when new", lock.table.capacity(), fresh.0);
        assert!(lock.ledger.capacity() <= bound, "{} requests of room, {} when new", lock.ledger.capacity(), fresh.1);
    }
}
