//! [`TreeLock`], the public type. How a request is granted and how it waits is in `acquire.rs`.

use crate::core::node_id::Seeds;
use crate::core::owner::Owner;
use crate::core::path::TreePath;
use crate::core::roots::Roots;
use crate::error::LockError;
use crate::face::lock_methods;
use crate::inspect::Snapshot;
use crate::patience::Patience;
use crate::sync::random_seed;
use crate::thread::acquire::{Looks, Stamps};
use crate::thread::guard::{ArcTreeLockGuard, TreeLockGuard};
use crate::thread::ledger::{Ledger, State};
use crate::thread::owner::OwnerNames;
use crate::thread::table::Table;
use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A read/write lock over the sub-trees of a tree.
///
/// [`lock`](TreeLock::lock) takes shared locks on the sub-trees below `reads` and exclusive ones on those below
/// `writes`, all or nothing. Two requests conflict if a write of one overlaps a read or a write of the other; two
/// sub-trees overlap if their roots are equal or one root is an ancestor of the other. The tree itself is never
/// built: paths need not exist anywhere, and the lock holds no data.
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
/// # One node without what is below
///
/// A root stands for all that is below it. To lock a node alone, say to list a folder or to change its properties,
/// lock a child of it with a name that no real child has. With `str` that is `folder/.`, since `str` takes `.` as an
/// ordinary name; with [`Path`] it is `folder/\0self`, since no file name contains a zero byte. Such a lock conflicts
/// as follows:
///
/// ```
/// use std::sync::Arc;
/// use treelock::TreeLock;
///
/// let lock = Arc::new(TreeLock::<str>::default());
/// let listing = lock.read_arc("folder/.");
/// assert!(lock.try_write_arc("folder").is_err());       // It excludes a writer of the whole folder
/// assert!(lock.try_write_arc("folder/.").is_err());     // and a writer of the node alone,
/// assert!(lock.try_read_arc("folder").is_ok());         // but no reader of either kind
/// assert!(lock.try_write_arc("folder/file").is_ok());   // and nobody below.
/// drop(listing);
///
/// let changing = lock.write_arc("folder/.");
/// assert!(lock.try_read_arc("folder").is_err());        // A writer of the node alone excludes readers of the whole,
/// assert!(lock.try_write_arc("folder/file").is_ok());   // and still nobody below.
/// # drop(changing);
/// ```
///
/// If such a lock is to protect the list of the folder's entries, a request that adds or removes an entry must write
/// it as well: `lock(&[], &["folder/.", "folder/new"])`.
///
/// # Fairness
///
/// First come, first served: a request gets its place when it begins to wait, and keeps that place in every queue
/// where it waits later. Of two conflicting requests of one root each, the one that began to wait first is served
/// first, unless it waits for the other's owner anyway. There is one exception: a reader may pass a writer that
/// waits, at an ancestor of both roots, for another request that reads that whole ancestor. A request with several
/// roots takes them one after the other, and is not overtaken in any queue where it waits. Requests that do not
/// conflict never wait for each other.
///
/// # Re-entrancy
///
/// A thread never waits for its own guards: it may ask again for what it holds already, and is granted ahead of all
/// waiters. A request to write below a read of the same thread is an *upgrade*: it goes ahead of the writers in the
/// queue, and waits only for the other readers. Guards may be dropped in any order; each protects what *it* asked for
/// until it is dropped.
///
/// So the owner is the *thread*, not the task: plain guards do not exclude each other between jobs that share a
/// thread, such as those of an executor or of a pool that runs one job inside another. Use `lock_arc` and its like
/// for such jobs: an `Arc` guard excludes every other guard, even those of the same thread. The guards of tasks, with the
/// feature `async`, do so too.
///
/// # Deadlock
///
/// Threads that hold one guard at a time cannot deadlock: take everything in one request. Threads that ask for more
/// while they hold a guard can. A cycle is usually found after some 20 ms and reported to one of the nested requests
/// in it: as an error if one of them returns a `Result`, otherwise as a panic of `lock`. (`lock` also panics if that one has
/// not taken the report after two seconds: it may be a task that nobody polls.) A wait that is merely long is not
/// reported. A request whose deadline passes before the cycle is found fails with
/// [`TimedOut`](LockError::TimedOut).
///
/// Cycles that involve something else, such as another lock, a channel or the join of a thread, are not found. Nor
/// are waits for `Arc` guards and those of tasks, since any thread may drop those: a thread that waits for its own `Arc`
/// guard waits for ever.
///
/// # Snapshots and reports
///
/// [`snapshot`](TreeLock::snapshot) and the report of a deadlock name the thread that asked, so give your threads
/// names ([`std::thread::Builder::name`]), and the place in the source where it called. Tasks share threads: a task that
/// is to be told from others asks by an owner with a [name](crate::LockOwner::set_name). Mark a helper of your own
/// that locks as `#[track_caller]`, and they name the place where it was called. (An `async fn` cannot be marked: let
/// the helper return the future.)
///
/// ```
/// use treelock::{TreeLock, TreeLockGuard};
///
/// struct Store(TreeLock<str>);
///
/// impl Store {
///     #[track_caller]
///     fn reading(&self, bucket: &str) -> TreeLockGuard<'_, str> {
///         self.0.read(bucket)
///     }
/// }
///
/// let store = Store(TreeLock::default());
/// let (_guard, line) = (store.reading("photos"), line!());
/// assert!(store.0.snapshot().holders[0].location.contains(&format!(":{line}:")));
/// ```
///
/// The feature `tracing` emits events with the target `treelock`: a warning for each deadlock that is reported, and
/// an event of level info when a request ends that waited for a second or longer. With the feature a request costs
/// some nanoseconds more; without it, nothing.
///
/// # Panics
///
/// There is no poisoning: a guard that is dropped by unwinding releases what it holds. The methods that block and
/// return no `Result` panic if the request can never succeed; each says when.
///
/// # Cost
///
/// O(depth) for one root, O(d log d) for several roots of d segments in all, whatever is held or waits elsewhere.
/// This is amortised: a read or write of a node below which many requests were busy may have to look through all
/// requests once. A lock takes some 30 KiB, to keep many threads out of each other's way: make one for each tree, not
/// one for each object in it. Nodes take memory only while they are held or awaited. A guard that is forgotten
/// ([`std::mem::forget`]) holds its sub-trees for ever.
///
/// # Source
///
/// Intention locks come from Gray, Lorie, Putzolu, Traiger, "Granularity of Locks and Degrees of Consistency in a
/// Shared Data Base", 1976; see [`Mode`](crate::Mode).
pub struct TreeLock<P: ?Sized + TreePath = Path> {
    pub(crate) seeds: Seeds,
    pub(crate) table: Table,
    pub(crate) ledger: Ledger<P>,
    pub(crate) looks: Looks,
    pub(crate) stamps: Stamps,
    pub(crate) owners: OwnerNames,
}

impl TreeLock<Path> {
    /// Makes a lock over [`Path`]s. [`TreeLock::default`] makes one over paths of any type.
    ///
    /// (If `new` existed for every type of path, `TreeLock::new()` alone would not compile: Rust applies the default
    /// of a type parameter in types, not in calls. `HashMap::new` has one hasher for the same reason.)
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
            table: Table::new(),
            ledger: Ledger::new(),
            looks: Looks::default(),
            stamps: Stamps::default(),
            owners: OwnerNames::default(),
        }
    }
}

impl<P: ?Sized + TreePath> TreeLock<P> {
    /// Locks the sub-trees below `reads` shared and those below `writes` exclusively; waits until it has them all.
    ///
    /// While it waits its thread is blocked. In a task, use `lock_async` (feature `async`).
    ///
    /// Either list may be empty; roots may repeat or lie in each other. [`Roots`] says what a list of paths can be.
    ///
    /// ```
    /// # let lock = treelock::TreeLock::new();
    /// let guard = lock.lock(&["templates"], &["site/2026", "site/index"]);
    /// drop(guard);
    /// let year = String::from("site/2026");
    /// let guard = lock.lock(&[year], &["site/index"]);
    /// drop(guard);
    /// let guard = lock.lock(&[], &["site"]);
    /// # drop(guard);
    /// ```
    ///
    /// # Panics
    ///
    /// If a path is unusable (see [`TreePath`]), or if the wait can never end because the thread is in a deadlock (see
    /// [above](TreeLock#deadlock)). [`try_lock_for`](TreeLock::try_lock_for) returns these as errors.
    #[track_caller]
    pub fn lock(&self, reads: &(impl Roots<P> + ?Sized), writes: &(impl Roots<P> + ?Sized)) -> TreeLockGuard<'_, P> {
        match self.guard(reads, writes, Patience::Endless) {
            Ok(guard) => guard,
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
        // Dropped here, not at the end: if this panics, unwinding releases the guard.
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

    lock_methods! {
        guard: TreeLockGuard<'_, P>;
        arc guard: ArcTreeLockGuard<P>, from &Arc<Self>;
        error: LockError;
        try_lock {
            /// ```
            /// let lock = treelock::TreeLock::new();
            /// let held = lock.read("a");
            /// std::thread::scope(|scope| {
            ///     scope.spawn(|| assert!(lock.try_read("a/b").is_ok() && lock.try_write("a/b").is_err()));
            /// });
            /// # drop(held);
            /// ```
            ///
            /// # Errors
            ///
            /// [`LockError::WouldBlock`], [`LockError::Path`].
        }
        try_lock_for {
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
            /// [`LockError::TimedOut`], [`LockError::Deadlock`], [`LockError::Path`]. Nothing is held then, and the
            /// requests that queued behind this one go on.
        }
    }

    /// Returns who holds what and who waits for what at one moment; it prints as a drawing of the tree.
    ///
    /// # Cost
    ///
    /// Every thread that begins or ends a request waits while the entries are copied: O(requests). Spelling out their
    /// paths takes O(their segments), and nobody waits for that.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(self)
    }
}

/// Panics because the request can never succeed; the message has all that is needed to fix the call.
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

// A panic cannot leave a lock or a guard half changed: no user code runs while one is changed.
impl<P: ?Sized + TreePath> UnwindSafe for TreeLock<P> {}
impl<P: ?Sized + TreePath> RefUnwindSafe for TreeLock<P> {}

/// Shows the number of granted and of waiting requests, or that the lock is busy; never blocks.
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

    /// G6: after any history, what is left has a constant size.
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
