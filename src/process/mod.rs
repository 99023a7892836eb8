//! The same contract between the processes of one host: [`ProcessTreeLock`].
//!
//! ```no_run
//! use treelock::process::ProcessTreeLock;
//!
//! let lock: ProcessTreeLock = ProcessTreeLock::open("/run/lock/my-database")?;
//! {
//!     // Nobody else reads or writes the index, and nobody writes the table, in any process.
//!     let _guard = lock.lock(&["tables/orders"], &["index/orders"])?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # In async code
//!
//! The kernel wakes threads here, and each change is made while a file is locked: a task cannot wait for that. So it leaves the
//! request to a thread that its runtime has for such work. To drop that future does not end the request, so give it a deadline; a
//! guard that comes later than that is released at once, as nobody takes it.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use tokio::task::spawn_blocking;
//! use treelock::process::ProcessTreeLock;
//!
//! # let directory = std::env::temp_dir().join(format!("treelock-doc-async-{}", std::process::id()));
//! # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
//! let lock: Arc<ProcessTreeLock> = Arc::new(ProcessTreeLock::open(&directory)?);
//! let shared = Arc::clone(&lock);
//! let limit = Duration::from_secs(10);
//! let guard = spawn_blocking(move || shared.try_lock_arc_for(&["schema"], &["tables/users"], limit)).await??;
//! // It may be held across any `.await`.
//! drop(guard);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # std::fs::remove_dir_all(directory)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How it is built
//!
//! The paths, modes, plans, nodes and the search for deadlocks are those of the lock for threads. Every process keeps
//! a replica of all that is held and awaited, and brings it up to date from one file of events before it changes
//! anything. The kernel knows which processes are alive, and wakes the waiters. There is no server and no `unsafe`.
//! The only thread that the lock starts is for a request whose deadline passes while a stopped process has the table.
//!
//! | file | concept |
//! |---|---|
//! | `mod.rs` | [`ProcessTreeLock`]: the public type |
//! | `guard.rs` | guards: drop, downgrade, release |
//! | `member/mod.rs` | a process that has opened a lock: joins, changes, leaves |
//! | `member/acquire.rs` | the way of a request: tried, queued, waited for, given up |
//! | `member/change.rs` | one change of the state that all agree on, while the table is locked |
//! | `member/channels.rs` | the FIFOs by which waiters are woken |
//! | `member/watch.rs` | which other members are alive; the dead are buried |
//! | `journal/mod.rs` | the file of events: read, append, keep room; why a death at any step does no harm |
//! | `journal/format.rs` | pure: the bytes of that file |
//! | `journal/known.rs` | what a member has read, and whether the others know the same |
//! | `journal/succession.rs` | which file is the last one: locked, replaced, put back |
//! | `look.rs` | what an observer sees: a process that has not opened the lock |
//! | `files.rs` | the directory: which members live, how waiters are woken, which file systems are refused |
//! | `error.rs` | the errors of requests, and of the lock's files |
//! | `crash.rs` | where tests let a process die |

#[cfg(not(target_os = "linux"))]
compile_error!("treelock: the feature `process` is for Linux; without it the lock for threads is for every system");

mod crash;
#[cfg(test)]
mod deaths;
mod error;
mod files;
mod guard;
mod journal;
mod look;
mod member;

pub use crate::replica::report::Wait;
pub use error::{FileError, FileProblem, ProcessLockError};
pub use guard::{ArcProcessTreeLockGuard, ProcessTreeLockGuard};

use crate::core::owner::Owner;
use crate::core::path::TreePath;
use crate::core::roots::Roots;
use crate::face::lock_methods;
use crate::inspect::Snapshot;
use crate::patience::Patience;
use crate::replica::{MemberId, RequestId, report};
use files::Directory;
use member::Member;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A read/write lock over the sub-trees of a tree, for all threads of all processes that open the same directory.
///
/// It is [`TreeLock`](crate::TreeLock) between processes: the rules of overlap, conflict, order and nesting are given
/// there, and hold across all processes. The files in the directory are the lock's own; what is locked are names,
/// which need not exist anywhere.
///
/// ```
/// use treelock::process::ProcessTreeLock;
///
/// # let directory = std::env::temp_dir().join(format!("treelock-doc-{}", std::process::id()));
/// let lock = ProcessTreeLock::open(&directory)?;
/// let guard = lock.lock(&["schema"], &["tables/users", "index/users"])?;
/// println!("{}", lock.snapshot()?);
/// drop(guard);
/// # drop(lock);
/// # std::fs::remove_dir_all(directory)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Processes that end
///
/// When a process ends, even by a SIGKILL at any moment, all that it held and awaited is free, and its waiters go on
/// at once. A process that is stopped keeps what it holds, and its place in every queue. If it is stopped in the
/// midst of a request or a release, which take microseconds, all others wait until it goes on or ends, even to
/// release; a request with a deadline waits no longer than that, and a `try_lock` gives up after 100 ms. A child made
/// by `fork` alone keeps the guards of its parent alive until it ends too, as with `flock(2)`; it cannot use its
/// parent's lock, and opens its own. A program started in a child inherits nothing, unless
/// [`set_inheritable`](ProcessTreeLock::set_inheritable) says so.
///
/// # The directory
///
/// It must be on a file system of this host; one in memory, such as `/run` or `/tmp`, is the best. A user who may
/// write to the directory may lock, so its permissions decide which users can; it must not be *sticky* (as `/tmp`
/// itself is), or else users cannot replace each other's files. When the last process has closed the lock, the files
/// that are left mean nothing, and the next process begins anew.
///
/// The lock notices files that are removed, replaced, cut or written over while processes use them, even by an older
/// copy of themselves. The next process that has the lock open and makes a request puts a removed table back;
/// otherwise all requests that the harm concerns fail, until all processes have closed the lock. Such harm lets
/// nobody in. The directory itself is another matter: a process that opens the lock when the directory is gone makes
/// a new one, and knows nothing of those that have the old one open, whose requests fail from then on. Keep it away
/// from cleaners.
///
/// # Paths
///
/// Paths mean what they mean between threads. All users of a directory should give paths of one type, since `str` and
/// absolute `Path`s are one kind and relative `Path`s another, and a lock takes one kind at a time: the kind that is
/// held or awaited in any process. Relative paths are relative to whatever their users agree on, not to a working
/// directory; the command `treelock` gives absolute ones. Paths of types of your own need more care: see
/// [`Segments`](crate::Segments#between-processes).
///
/// # Cost
///
/// An uncontended request takes some microseconds, whatever else is held, most of them in fourteen system calls. Each
/// process also reads what the others have done since its last request. See `benches/README.md`.
pub struct ProcessTreeLock<P: ?Sized + TreePath = Path> {
    member: Arc<Member>,
    paths: PhantomData<fn(&P)>,
}

/// Opens a [`ProcessTreeLock`] where the defaults do not fit.
///
/// ```no_run
/// use std::time::Duration;
/// use treelock::process::{Options, ProcessTreeLock};
///
/// let lock: ProcessTreeLock = Options::new().network_file_system(true).open("/mnt/shared/lock")?;
/// let keys: ProcessTreeLock<str> = Options::new().timeout(Duration::from_secs(1)).open("/run/lock/keys")?;
/// # Ok::<(), treelock::process::FileError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Options {
    network_file_system: bool,
    timeout: Option<Duration>,
    location: Option<String>,
}

impl Options {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a directory on a network file system will do. Pass `true` only if no other host uses the directory.
    #[must_use]
    pub fn network_file_system(mut self, will_do: bool) -> Self {
        self.network_file_system = will_do;
        self
    }

    /// How long opening may wait for a process that is stopped in the midst of a request. Without a timeout it waits
    /// until that process goes on or is killed.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// The text that reports give instead of the place in the source where a request is made: for programs whose
    /// users do not know their source. `treelock run` gives its working directory.
    #[must_use]
    pub fn location(mut self, location: impl Into<String>) -> Self {
        self.location = Some(location.into());
        self
    }

    /// Opens the lock as [`ProcessTreeLock::open`] does, with these options.
    ///
    /// # Errors
    ///
    /// As [`ProcessTreeLock::open`], and [`FileProblem::Flocked`] after the timeout.
    pub fn open<P: ?Sized + TreePath>(&self, directory: impl AsRef<Path>) -> Result<ProcessTreeLock<P>, FileError> {
        let member = Member::open(directory.as_ref(), self)?;
        Ok(ProcessTreeLock { member, paths: PhantomData })
    }
}

impl ProcessTreeLock<Path> {
    /// Opens the lock in a directory, which is made if it is not there. For paths of other types see
    /// [`Options::open`].
    ///
    /// A process that opens it twice has two locks, which exclude each other as those of two processes do.
    ///
    /// # Errors
    ///
    /// [`FileError`]: no rights, a network file system, a sticky directory of another user, files that are not
    /// treelock's or are of another version of it.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, FileError> {
        Options::new().open(directory)
    }
}

impl<P: ?Sized + TreePath> ProcessTreeLock<P> {
    lock_methods! {
        guard: ProcessTreeLockGuard<'_, P>;
        arc guard: ArcProcessTreeLockGuard, from &Self;
        error: ProcessLockError;
        lock {
            /// # Errors
            ///
            /// [`ProcessLockError::Path`], [`ProcessLockError::Deadlock`], [`ProcessLockError::File`]. Nothing is held
            /// then.
        }
        try_lock {
            /// # Errors
            ///
            /// [`ProcessLockError::WouldBlock`], also if another process is stopped in the midst of a request;
            /// [`ProcessLockError::Path`], [`ProcessLockError::File`].
        }
        try_lock_for {
            /// # Errors
            ///
            /// [`ProcessLockError::TimedOut`], and as [`lock`](Self::lock).
        }
    }

    /// Returns who holds what and who waits for what in all processes at one moment; it prints as a drawing of the
    /// tree.
    ///
    /// It holds up nobody and waits for nobody, even while a process is stopped in the midst of a request.
    ///
    /// # Errors
    ///
    /// [`FileError`].
    pub fn snapshot(&self) -> Result<Snapshot, FileError> {
        self.member.snapshot()
    }

    /// The number by which other processes know this open lock: the [`Process::member`](crate::Process::member) of
    /// all its guards and requests. No other open lock gets it as long as any process has the lock open. Its files in
    /// the directory are named after it, such as `m7`.
    #[must_use]
    pub fn member(&self) -> u64 {
        self.member.id().0
    }

    /// Sets whether programs that this process starts from now on inherit what this lock holds. If they do, and this
    /// process ends before them, it stays held until the last of them has ended. A guard that is dropped is released
    /// all the same.
    ///
    /// ```no_run
    /// # let lock = treelock::process::ProcessTreeLock::open("lock")?;
    /// let guard = lock.write("data/users")?;
    /// lock.set_inheritable(true)?;
    /// std::process::Command::new("./migrate.sh").status()?;
    /// # drop(guard);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`FileError`].
    pub fn set_inheritable(&self, inheritable: bool) -> Result<(), FileError> {
        self.member.set_inheritable(inheritable)
    }

    #[track_caller]
    fn acquire<R: AsRef<P>, W: AsRef<P>>(
        &self,
        reads: &[R],
        writes: &[W],
        owner: Owner,
        patience: Patience,
    ) -> Result<RequestId, ProcessLockError> {
        self.member.acquire::<P, R, W>(reads, writes, owner, patience)
    }
}

/// Like [`ProcessTreeLock::snapshot`], for a caller that has not opened the lock in that directory, and may have no
/// right to.
///
/// ```no_run
/// println!("{}", treelock::process::snapshot("/run/lock/my-database")?);
/// # Ok::<(), treelock::process::FileError>(())
/// ```
///
/// # Errors
///
/// [`FileError`]: no such directory, no right to read it, files that are not treelock's or are of another version of
/// it.
pub fn snapshot(directory: impl AsRef<Path>) -> Result<Snapshot, FileError> {
    look::look(&Directory::look(directory.as_ref())?, report::snapshot)
}

/// What the requests of a [member](ProcessTreeLock::member) wait for; the caller need not have opened the lock.
///
/// ```
/// # use treelock::process::{ProcessTreeLock, waits};
/// # let directory = std::env::temp_dir().join(format!("treelock-doc-way-{}", std::process::id()));
/// let lock = ProcessTreeLock::open(&directory)?;
/// let guard = lock.read("tables")?;
/// let found = std::thread::scope(|scope| {
///     let writer = scope.spawn(|| lock.write("tables/users").map(drop));
///     let found = loop {
///         if let Some(wait) = waits(&directory, lock.member())?.pop() {
///             break wait;
///         }
///     };
///     drop(guard);
///     Ok::<_, treelock::process::FileError>(found)
/// })?;
/// assert_eq!(found.for_holders[0].roots[0].segments, ["tables"]);
/// # drop(lock);
/// # std::fs::remove_dir_all(directory)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// As [`snapshot`].
pub fn waits(directory: impl AsRef<Path>, member: u64) -> Result<Vec<Wait>, FileError> {
    let directory = Directory::look(directory.as_ref())?;
    look::look(&directory, |replica| report::waits(replica, MemberId(member)))
}

impl<P: ?Sized + TreePath> fmt::Debug for ProcessTreeLock<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessTreeLock").field("directory", &self.member.directory.path()).finish_non_exhaustive()
    }
}
