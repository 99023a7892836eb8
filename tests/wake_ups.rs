//! How often a request that waits is woken (G9): once, when it holds everything. Linux counts how often a thread blocks.
#![cfg(all(target_os = "linux", not(feature = "model")))]

mod common;

use common::{Paths, join_all, spawn, wait_until, wait_until_thread_waits};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use treelock::TreeLock;

/// A thread that waits for a request.
struct Waiting {
    /// The kernel's file about it.
    task: PathBuf,
    /// How often it had blocked by the time it slept in the queue.
    before: u64,
    /// How often it had blocked by the time it held everything.
    after: Receiver<u64>,
    release: Sender<()>,
    thread: JoinHandle<()>,
}

/// How often the thread has blocked, and whether it sleeps.
fn blocked(task: &Path) -> (u64, bool) {
    let status = fs::read_to_string(task.join("status")).expect("the thread lives");
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux tells it").trim();
    (field("voluntary_ctxt_switches:").parse().expect("it is a number"), field("State:").starts_with('S'))
}

impl Waiting {
    fn asks(lock: &Arc<TreeLock>, name: &str, reads: Paths, writes: Paths) -> Self {
        let (told, hears) = channel();
        let (tells, after) = channel();
        let (release, released) = channel();
        let own = Arc::clone(lock);
        let thread = spawn(name, move || {
            let task = Path::new("/proc").join(fs::read_link("/proc/thread-self").expect("Linux has it"));
            told.send(task.clone()).unwrap();
            let guard = own.lock(reads, writes);
            tells.send(blocked(&task).0).unwrap();
            released.recv().unwrap();
            drop(guard);
        });
        let task = hears.recv().unwrap();
        wait_until_thread_waits(lock, name);
        wait_until("it sleeps", || blocked(&task).1);
        Waiting { before: blocked(&task).0, task, after, release, thread }
    }
}

/// Asks for all of them while `q` is written; returns how often the threads blocked again, in all, before they held
/// everything.
fn blocked_again(requests: &[(Paths, Paths)]) -> u64 {
    let lock = common::new();
    let held = lock.write("q");
    let asks = |(number, &(reads, writes))| Waiting::asks(&lock, &format!("waiter {number}"), reads, writes);
    let mut waiting: Vec<Waiting> = requests.iter().enumerate().map(asks).collect();
    drop(held);
    let (mut again, mut threads) = (0, Vec::new());
    while !waiting.is_empty() {
        let mut served = None;
        wait_until("one is served", || {
            served = waiting.iter().enumerate().find_map(|(place, one)| Some((place, one.after.try_recv().ok()?)));
            served.is_some()
        });
        let (place, after) = served.expect("it was waited for");
        let one = waiting.remove(place);
        // Only now, so that a thread that was woken too early has to wait again.
        wait_until("the others sleep", || waiting.iter().all(|other| blocked(&other.task).1));
        one.release.send(()).unwrap();
        again += after - one.before;
        threads.push(one.thread);
    }
    join_all(threads);
    again
}

/// A thread may also block on an internal mutex, when others look at the lock; so the best of some rounds counts.
#[track_caller]
fn assert_woken_once(requests: &[(Paths, Paths)]) {
    let again: Vec<u64> = (0..5).map(|_| blocked_again(requests)).collect();
    assert!(again.contains(&0), "of {} that waited, so many were woken to wait again: {again:?}", requests.len());
}

/// One queue: the control, which shows that the count is right.
#[test]
fn writer_of_a_written_node_is_woken_once() {
    assert_woken_once(&[(&[][..], &["q"][..]); 4]);
}

/// The requests wait at `q`, and then for each other at `q/x`.
#[test]
fn writer_below_a_written_node_is_woken_once() {
    assert_woken_once(&[(&[][..], &["q/x"][..]); 4]);
}

/// The same at three nodes.
#[test]
fn writers_of_several_depths_below_a_written_node_are_woken_once() {
    assert_woken_once(&[(&[], &["q/x/y/z"]), (&[], &["q/x"]), (&[], &["q/x/y"]), (&[], &["q/x/y/z"])]);
}
