//! What the behaviour tests share: other threads that ask for something, and waits that fail instead of hanging.
//!
//! Nothing here sleeps to synchronise: a condition is checked again and again, for [`LIMIT`] at most. A lock made by
//! [`new`] or [`watched`] that is still alive a good while later ends the process with a drawing of who waits for
//! whom, so that a hang in the lock itself fails the tests too.
#![allow(dead_code)] // each test binary uses a part of this

pub(crate) mod wakers;

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, Once};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use treelock::{Deadlock, LockError, TreeLock, TreePath};

/// Longer than anything takes on a loaded machine: what is not done by then hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(40);

/// The paths of one request.
pub(crate) type Paths = &'static [&'static str];

/// A lock over `Path`s whose test fails if it hangs.
pub(crate) fn new() -> Arc<TreeLock> {
    watched(TreeLock::new())
}

/// The same for a lock over other paths.
pub(crate) fn watched<P: TreePath + ?Sized>(lock: TreeLock<P>) -> Arc<TreeLock<P>> {
    type Watched = (Instant, String, Box<dyn Fn() -> Option<String> + Send>);
    static ALL: Mutex<Vec<Watched>> = Mutex::new(Vec::new());
    static WATCH: Once = Once::new();

    let lock = Arc::new(lock);
    let weak = Arc::downgrade(&lock);
    let test = thread::current().name().unwrap_or("?").to_owned();
    let still_alive = move || weak.upgrade().map(|lock| format!("{lock:?}\n{}", lock.snapshot()));
    ALL.lock().unwrap().push((Instant::now(), test, Box::new(still_alive)));
    WATCH.call_once(|| {
        thread::spawn(|| {
            loop {
                thread::park_timeout(Duration::from_millis(500));
                ALL.lock().unwrap().retain(|(made, test, still_alive)| {
                    let late = made.elapsed() > LIMIT * 2;
                    if let Some(lock) = late.then(still_alive).flatten() {
                        eprintln!("{test} hangs: {lock}");
                        std::process::exit(101);
                    }
                    !late
                });
            }
        });
    });
    lock
}

/// Checks again and again until the answer is yes.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} in vain until {what}");
        thread::yield_now();
    }
}

/// Waits until this many requests wait, each with its place in a queue.
pub(crate) fn wait_until_waiting<P: TreePath + ?Sized>(lock: &TreeLock<P>, count: usize) {
    wait_until(&format!("{count} wait"), || lock.snapshot().waiters.len() == count);
}

/// Waits until the thread of that name waits.
pub(crate) fn wait_until_thread_waits<P: TreePath + ?Sized>(lock: &TreeLock<P>, name: &str) {
    wait_until(&format!("{name} waits"), || lock.snapshot().waiters.iter().any(|waiter| waiter.thread == name));
}

/// Waits for a thread's result; its panic is passed on.
pub(crate) fn join<T>(thread: JoinHandle<T>) -> T {
    wait_until("a thread ends", || thread.is_finished());
    thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
}

/// Runs the iterator, which starts the threads, and then waits for their results.
pub(crate) fn join_all<T>(threads: impl IntoIterator<Item = JoinHandle<T>>) -> Vec<T> {
    let threads: Vec<JoinHandle<T>> = threads.into_iter().collect();
    threads.into_iter().map(join).collect()
}

/// Starts a thread of that name.
pub(crate) fn spawn<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    thread::Builder::new().name(name.into()).spawn(run).unwrap()
}

/// A thread of a cycle, which returns the report if it gets one.
pub(crate) type Party = JoinHandle<Option<Deadlock>>;

/// The report that a request of a cycle gets, if it is not granted.
#[track_caller]
pub(crate) fn report_of<T>(outcome: Result<T, LockError>) -> Option<Deadlock> {
    match outcome {
        Ok(_granted) => None,
        Err(LockError::Deadlock(deadlock)) => Some(*deadlock),
        Err(error) => panic!("{error}"),
    }
}

/// The one report among what the threads of a cycle got.
pub(crate) fn only_report(parties: impl IntoIterator<Item = Party>) -> Deadlock {
    let mut reports: Vec<Deadlock> = join_all(parties).into_iter().flatten().collect();
    let report = reports.pop().expect("nobody got a report");
    assert!(reports.is_empty(), "more than one got a report: {report} and {reports:?}");
    report
}

/// The report that the calling thread, which holds `x/y`, gets when it asks for what the thread `half-way` has taken
/// on its way to `x/y`. That thread is still waiting then.
pub(crate) fn refused_by_one_half_way(lock: &Arc<TreeLock>) -> (LockError, JoinHandle<()>) {
    // Takes `a`, which is nearer to the root, and waits for `x/y`.
    let half_way = spawn("half-way", {
        let lock = Arc::clone(lock);
        move || drop(lock.lock(&[], &["a", "x/y"]))
    });
    wait_until_waiting(lock, 1);
    let refused = lock.try_lock_for(&["a"], &[], LIMIT).map(drop);
    (refused.expect_err("it has it"), half_way)
}

/// Whether other owners would be granted this at once: another thread, and an `Arc` guard in this thread.
pub(crate) fn admits<P, Q>(lock: &Arc<TreeLock<P>>, reads: &[Q], writes: &[Q]) -> bool
where
    P: TreePath + ?Sized,
    Q: AsRef<P> + Sync,
{
    let granted = |refused: Option<LockError>| match refused {
        None => true,
        Some(LockError::WouldBlock) => false,
        Some(error) => panic!("{error}"),
    };
    let stranger = granted(lock.try_lock_arc(reads, writes).err());
    let thread = thread::scope(|scope| {
        scope
            .spawn(|| granted(lock.try_lock(reads, writes).err()))
            .join()
            .unwrap_or_else(|panic| panic::resume_unwind(panic))
    });
    assert_eq!(stranger, thread, "an Arc guard and another thread are told different things");
    thread
}

/// Nobody holds anything or waits, and everything can be locked.
pub(crate) fn assert_free<P>(lock: &Arc<TreeLock<P>>, root: &P)
where
    P: TreePath + AsRef<P> + Sync + ?Sized,
{
    let snapshot = lock.snapshot();
    assert!(snapshot.holders.is_empty() && snapshot.waiters.is_empty(), "{snapshot}");
    assert!(admits(lock, &[], &[root]), "a node is still held");
}

/// The message of a panic.
pub(crate) fn panic_message(run: impl FnOnce()) -> String {
    let panic = panic::catch_unwind(AssertUnwindSafe(run)).expect_err("it does not panic");
    match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => panic.downcast_ref::<&str>().expect("a panic has a message").to_string(),
    }
}

/// Another thread, which makes one request by `lock`, and releases it when it is told to.
pub(crate) struct Other {
    name: String,
    granted: Arc<AtomicBool>,
    release: Sender<()>,
    thread: JoinHandle<()>,
}

impl Other {
    /// Asks; it may be granted at once, or wait.
    pub(crate) fn asks(lock: &Arc<TreeLock>, reads: Paths, writes: Paths) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let name = format!("other-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let granted = Arc::new(AtomicBool::new(false));
        let (release, told) = mpsc::channel();
        let thread = spawn(&name, {
            let (lock, granted) = (Arc::clone(lock), Arc::clone(&granted));
            move || {
                let guard = lock.lock(reads, writes);
                granted.store(true, Ordering::SeqCst);
                // An error means that the test has ended, with whatever outcome.
                let _ = told.recv();
                drop(guard);
            }
        });
        Other { name, granted, release, thread }
    }

    /// Asks, and is granted.
    pub(crate) fn holds(lock: &Arc<TreeLock>, reads: Paths, writes: Paths) -> Self {
        let other = Other::asks(lock, reads, writes);
        other.wait_until_granted();
        other
    }

    /// Asks, and has to wait.
    pub(crate) fn waits(lock: &Arc<TreeLock>, reads: Paths, writes: Paths) -> Self {
        let other = Other::asks(lock, reads, writes);
        wait_until_thread_waits(lock, &other.name);
        other
    }

    pub(crate) fn is_granted(&self) -> bool {
        self.granted.load(Ordering::SeqCst)
    }

    pub(crate) fn wait_until_granted(&self) {
        wait_until(&format!("{} is granted", self.name), || self.is_granted() || self.thread.is_finished());
        assert!(self.is_granted(), "{} is refused", self.name);
    }

    /// Waits for the grant, and releases.
    pub(crate) fn releases(self) {
        self.wait_until_granted();
        self.release.send(()).unwrap();
        join(self.thread);
    }
}
