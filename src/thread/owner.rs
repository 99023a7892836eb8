//! Explicit owners: an owner that is not a thread; what it holds moves with it.

use crate::core::owner::{Owner, OwnerId};
use crate::core::path::{PathError, TreePath};
use crate::core::roots::Roots;
use crate::error::LockError;
use crate::patience::Patience;
use crate::sync::{Mutex, new_owner_id};
use crate::thread::acquire::Entry;
use crate::thread::lock::TreeLock;
#[cfg(feature = "async")]
use crate::thread::task::Waits;
use crate::trace::Wait;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::Location;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An owner of locks that can be handed from thread to thread, with all that it holds: for a session, a task, or the
/// lock token of a client.
///
/// Plain guards are owned by their thread, and an `Arc` guard owns itself. An explicit owner is in between: it never
/// waits for what it holds itself, so its requests nest and upgrade as those of a thread do; and it is `Send`. It
/// holds what it has locked until it [releases](LockOwner::release) that or is dropped: an error of a later request, and a `?`,
/// leave it with what it has ([`release_all`](LockOwner::release_all)).
///
/// ```
/// use std::sync::Arc;
/// use treelock::TreeLock;
///
/// let lock = Arc::new(TreeLock::new());
/// let mut session = lock.owner();
/// let reading = session.lock(&["docs"], &[])?;
/// std::thread::spawn(move || {
///     // A write below its own read is an upgrade, which waits only for the other readers.
///     let writing = session.lock(&[], &["docs/index"])?;
///     session.release(writing);
///     session.release(reading);
///     Ok::<_, treelock::LockError>(())
/// })
/// .join()
/// .unwrap()?;
/// assert!(lock.try_lock(&[], &["docs"]).is_ok());
/// # Ok::<(), treelock::LockError>(())
/// ```
///
/// # Deadlock
///
/// A cycle through owners is reported as one through threads is (see [`TreeLock`](TreeLock#deadlock)); to an owner, always as an
/// error. After that error the owner still holds what the others of the cycle wait for: let it
/// [release all](LockOwner::release_all) and ask again, best for all at once.
///
/// A request borrows its owner while it waits, so nobody can release what the owner holds meanwhile. The search for
/// deadlocks relies on that (and a future that was forgotten while it waited is given up by its owner). An owner that does
/// not wait is never part of a cycle, since any thread may release what it holds.
#[must_use = "what it holds is released when the owner is dropped"]
pub struct LockOwner<P: ?Sized + TreePath = Path> {
    lock: Arc<TreeLock<P>>,
    id: OwnerId,
    /// By number, in the order in which they were granted.
    held: BTreeMap<u64, Entry>,
    granted: u64,
    /// The request of a task, while it waits.
    #[cfg(feature = "async")]
    waits: Option<Waits<P>>,
    /// It is forgotten last, when the owner holds nothing more.
    name: Option<Named<P>>,
}

/// An owner that has a name, as long as it has one.
struct Named<P: ?Sized + TreePath> {
    lock: Arc<TreeLock<P>>,
    owner: OwnerId,
}

impl<P: ?Sized + TreePath> Drop for Named<P> {
    fn drop(&mut self) {
        self.lock.owners.0.lock().remove(&self.owner);
    }
}

/// The names of the owners that have one. Its mutex is the last that is locked.
#[derive(Debug, Default)]
pub(crate) struct OwnerNames(Mutex<BTreeMap<OwnerId, String>>);

impl OwnerNames {
    /// What reports call an owner.
    pub(crate) fn name(&self, owner: OwnerId) -> String {
        self.0.lock().get(&owner).map_or_else(|| format!("unnamed-{owner}"), String::clone)
    }
}

/// Names what an owner has locked by one request, for [`LockOwner::release`]. To drop it releases nothing.
#[derive(Debug, PartialEq, Eq, Hash)]
#[must_use = "its owner holds it until it is released by this, or the owner is dropped"]
pub struct HeldLock {
    owner: OwnerId,
    number: u64,
}

impl<P: ?Sized + TreePath> TreeLock<P> {
    /// Makes an owner of locks that is not a thread; see [`LockOwner`].
    pub fn owner(self: &Arc<Self>) -> LockOwner<P> {
        LockOwner {
            lock: Arc::clone(self),
            id: new_owner_id(),
            name: None,
            held: BTreeMap::new(),
            granted: 0,
            #[cfg(feature = "async")]
            waits: None,
        }
    }
}

impl<P: ?Sized + TreePath> LockOwner<P> {
    /// Locks as [`TreeLock::lock`] does: while it waits its thread is blocked. In a task, use `lock_async`.
    ///
    /// # Errors
    ///
    /// [`LockError::Deadlock`], [`LockError::Path`].
    #[track_caller]
    pub fn lock(
        &mut self,
        reads: &(impl Roots<P> + ?Sized),
        writes: &(impl Roots<P> + ?Sized),
    ) -> Result<HeldLock, LockError> {
        self.acquire(reads, writes, Patience::Until(None))
    }

    /// Locks the sub-tree below `path` shared: `lock(&[path], &[])`.
    ///
    /// # Errors
    ///
    /// As [`lock`](LockOwner::lock).
    #[track_caller]
    pub fn read(&mut self, path: impl AsRef<P>) -> Result<HeldLock, LockError> {
        self.lock(&[&path], &[])
    }

    /// Locks the sub-tree below `path` exclusively: `lock(&[], &[path])`.
    ///
    /// # Errors
    ///
    /// As [`lock`](LockOwner::lock).
    #[track_caller]
    pub fn write(&mut self, path: impl AsRef<P>) -> Result<HeldLock, LockError> {
        self.lock(&[], &[&path])
    }

    /// Locks the sub-tree below `path` shared if that needs no waiting: `try_lock(&[path], &[])`.
    ///
    /// # Errors
    ///
    /// As [`TreeLock::try_lock`].
    #[track_caller]
    pub fn try_read(&mut self, path: impl AsRef<P>) -> Result<HeldLock, LockError> {
        self.try_lock(&[&path], &[])
    }

    /// Locks the sub-tree below `path` exclusively if that needs no waiting: `try_lock(&[], &[path])`.
    ///
    /// # Errors
    ///
    /// As [`TreeLock::try_lock`].
    #[track_caller]
    pub fn try_write(&mut self, path: impl AsRef<P>) -> Result<HeldLock, LockError> {
        self.try_lock(&[], &[&path])
    }

    /// Locks as [`TreeLock::try_lock`] does.
    ///
    /// # Errors
    ///
    /// As [`TreeLock::try_lock`].
    #[track_caller]
    pub fn try_lock(
        &mut self,
        reads: &(impl Roots<P> + ?Sized),
        writes: &(impl Roots<P> + ?Sized),
    ) -> Result<HeldLock, LockError> {
        self.acquire(reads, writes, Patience::None)
    }

    /// Locks the sub-tree below `path` shared, waiting no longer than `timeout`: `try_lock_for(&[path], &[], timeout)`.
    ///
    /// # Errors
    ///
    /// As [`TreeLock::try_lock_for`].
    #[track_caller]
    pub fn try_read_for(&mut self, path: impl AsRef<P>, timeout: Duration) -> Result<HeldLock, LockError> {
        self.try_lock_for(&[&path], &[], timeout)
    }

    /// Locks the sub-tree below `path` exclusively, waiting no longer than `timeout`:
    /// `try_lock_for(&[], &[path], timeout)`.
    ///
    /// # Errors
    ///
    /// As [`TreeLock::try_lock_for`].
    #[track_caller]
    pub fn try_write_for(&mut self, path: impl AsRef<P>, timeout: Duration) -> Result<HeldLock, LockError> {
        self.try_lock_for(&[], &[&path], timeout)
    }

    /// Locks as [`TreeLock::try_lock_for`] does.
    ///
    /// # Errors
    ///
    /// As [`TreeLock::try_lock_for`].
    #[track_caller]
    pub fn try_lock_for(
        &mut self,
        reads: &(impl Roots<P> + ?Sized),
        writes: &(impl Roots<P> + ?Sized),
        timeout: Duration,
    ) -> Result<HeldLock, LockError> {
        self.acquire(reads, writes, Patience::within(timeout))
    }

    /// Locks as [`TreeLock::try_lock_until`] does.
    ///
    /// # Errors
    ///
    /// As [`TreeLock::try_lock_for`].
    #[track_caller]
    pub fn try_lock_until(
        &mut self,
        reads: &(impl Roots<P> + ?Sized),
        writes: &(impl Roots<P> + ?Sized),
        deadline: Instant,
    ) -> Result<HeldLock, LockError> {
        self.acquire(reads, writes, Patience::Until(Some(deadline)))
    }

    /// Releases what this owner has locked by one request.
    ///
    /// # Panics
    ///
    /// If another owner has locked it, or [`release_all`](LockOwner::release_all) has released it.
    #[track_caller]
    pub fn release(&mut self, held: HeldLock) {
        let entry = *self.lock_and_entry(&held).1;
        self.held.remove(&held.number);
        self.lock.release(entry);
    }

    /// Releases all that this owner holds, the latest first: what earlier requests have got when a later one fails.
    ///
    /// ```
    /// # let lock = std::sync::Arc::new(treelock::TreeLock::new());
    /// # let other = lock.read_arc("docs");
    /// use std::time::Duration;
    ///
    /// let mut session = lock.owner();
    /// let _reading = session.lock(&["docs"], &[])?;
    /// if session.try_lock_for(&[], &["docs/index"], Duration::from_millis(1)).is_err() {
    ///     session.release_all(); // It may ask again, for all at once.
    /// }
    /// # drop(other);
    /// # assert!(lock.try_lock(&[], &[""]).is_ok());
    /// # Ok::<(), treelock::LockError>(())
    /// ```
    pub fn release_all(&mut self) {
        // If a path or a waker panics when it is dropped, unwinding releases the rest.
        let lock = Arc::clone(&self.lock);
        let held = std::mem::take(&mut self.held).into_values().rev();
        let held: Vec<_> = held.map(|entry| Released { lock: &lock, entry }).collect();
        self.settle();
        drop(held);
    }

    /// Releases some roots of one request of this owner, and keeps the others; see
    /// [`TreeLockGuard::release`](crate::TreeLockGuard::release).
    ///
    /// ```
    /// # let lock = std::sync::Arc::new(treelock::TreeLock::new());
    /// let mut session = lock.owner();
    /// let moving = session.lock(&[], &["inbox/report", "archive/2026"])?;
    /// session.release_roots(&moving, &["inbox/report"])?;
    /// assert!(lock.try_read_arc("inbox/report").is_ok() && lock.try_read_arc("archive/2026").is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`TreeLockGuard::release`](crate::TreeLockGuard::release).
    ///
    /// # Panics
    ///
    /// If another owner has locked it, or [`release_all`](LockOwner::release_all) has released it.
    #[track_caller]
    pub fn release_roots(&mut self, held: &HeldLock, roots: &(impl Roots<P> + ?Sized)) -> Result<(), PathError> {
        let (lock, entry) = self.lock_and_entry(held);
        lock.release_roots(entry, roots.as_slice())
    }

    /// Turns the writes of one request of this owner into reads; see
    /// [`TreeLockGuard::downgrade`](crate::TreeLockGuard::downgrade).
    ///
    /// # Panics
    ///
    /// If another owner has locked it, or [`release_all`](LockOwner::release_all) has released it.
    #[track_caller]
    pub fn downgrade(&mut self, held: &HeldLock) {
        let (lock, entry) = self.lock_and_entry(held);
        lock.downgrade(entry);
    }

    #[track_caller]
    fn acquire(
        &mut self,
        reads: &(impl Roots<P> + ?Sized),
        writes: &(impl Roots<P> + ?Sized),
        patience: Patience,
    ) -> Result<HeldLock, LockError> {
        self.settle();
        let wait = Wait::begin();
        let entry = self.lock.acquire(reads.as_slice(), writes.as_slice(), self.owner(), patience);
        let held = entry.map(|entry| self.hold(entry));
        wait.end(Location::caller(), &held, reads, writes);
        held
    }

    /// Says what snapshots and reports of deadlocks call this owner: a session, a client, a job.
    ///
    /// ```
    /// # let lock = std::sync::Arc::new(treelock::TreeLock::new());
    /// let mut session = lock.owner();
    /// session.set_name("session of ada");
    /// let _editing = session.lock(&[], &["docs"])?;
    /// assert!(lock.snapshot().to_string().contains("held by owner \"session of ada\""));
    /// # Ok::<(), treelock::LockError>(())
    /// ```
    pub fn set_name(&mut self, name: impl Into<String>) {
        let (name, owner) = (name.into(), self.id);
        self.lock.owners.0.lock().insert(owner, name);
        self.name.get_or_insert_with(|| Named { lock: Arc::clone(&self.lock), owner });
    }

    pub(crate) fn owner(&self) -> Owner {
        Owner::Handed(self.id)
    }

    /// Holds what its request has been granted.
    pub(crate) fn hold(&mut self, entry: Entry) -> HeldLock {
        self.granted += 1;
        self.held.insert(self.granted, entry);
        HeldLock { owner: self.id, number: self.granted }
    }

    /// The lock, and the place of the request of a task while that waits.
    #[cfg(feature = "async")]
    pub(crate) fn lock_and_waits(&mut self) -> (&TreeLock<P>, &mut Option<Waits<P>>) {
        (&self.lock, &mut self.waits)
    }

    /// Gives up the request of a future that was forgotten: what an owner holds does not change while a request of it waits.
    pub(crate) fn settle(&mut self) {
        #[cfg(feature = "async")]
        if self.waits.is_some() {
            self.lock.abandon(&mut self.waits);
        }
    }

    /// The lock, and what it has granted to this owner by that request. It does not change while a request waits.
    #[track_caller]
    fn lock_and_entry(&mut self, held: &HeldLock) -> (&TreeLock<P>, &mut Entry) {
        self.settle();
        assert!(held.owner == self.id, "treelock: another owner has locked this: ask the one that got it");
        let entry = self.held.get_mut(&held.number);
        let entry = entry.expect("treelock: its owner has released all that it held since then, and this with it");
        (&self.lock, entry)
    }
}

impl<P: ?Sized + TreePath> Drop for LockOwner<P> {
    fn drop(&mut self) {
        self.release_all();
    }
}

/// Releases the entry when it is dropped.
struct Released<'a, P: ?Sized + TreePath> {
    lock: &'a TreeLock<P>,
    entry: Entry,
}

impl<P: ?Sized + TreePath> Drop for Released<'_, P> {
    fn drop(&mut self) {
        self.lock.release(self.entry);
    }
}

impl<P: ?Sized + TreePath> fmt::Debug for LockOwner<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.lock.owners.name(self.id);
        f.debug_struct("LockOwner").field("name", &name).field("held", &self.held.len()).finish_non_exhaustive()
    }
}
