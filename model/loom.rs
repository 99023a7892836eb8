//! Interleavings of small programs, all of them up to a bound, on the shipped lock.
//!
//! `LOOM_MAX_PREEMPTIONS=3 cargo test --release --features loom --test loom`
//!
//! Exclusion is checked by loom's own cells: an access that is not ordered after the one it conflicts with fails
//! the model. A lost wake-up is a deadlock, which loom reports. What the models leave is asserted by taking the
//! whole tree at the end.
#![cfg(feature = "loom")]

use loom::cell::UnsafeCell;
use loom::thread;
use std::sync::Arc;
use treelock::TreeLock;

type Lock = TreeLock<str>;

/// A value that a sub-tree protects: loom fails the model if two threads are in it, one of them writing.
struct Protected(UnsafeCell<u32>);

impl Protected {
    fn new() -> Arc<Self> {
        Arc::new(Protected(UnsafeCell::new(0)))
    }

    fn read(&self) {
        self.0.with(|_| thread::yield_now());
    }

    fn write(&self) {
        self.0.with_mut(|_| thread::yield_now());
    }
}

/// Runs the program in every interleaving, and asserts that it leaves the lock free.
fn model(program: impl Fn(&Arc<Lock>) -> Vec<thread::JoinHandle<()>> + Send + Sync + 'static) {
    loom::model(move || {
        let lock = Arc::new(Lock::default());
        for thread in program(&lock) {
            thread.join().unwrap();
        }
        assert!(lock.try_lock(&[], &["/"]).is_ok(), "something is still held");
    });
}

fn spawn(lock: &Arc<Lock>, run: impl FnOnce(&Lock) + 'static) -> thread::JoinHandle<()> {
    let lock = Arc::clone(lock);
    thread::spawn(move || run(&lock))
}

/// G1, G9: the second is woken by the first.
#[test]
fn two_overlapping_writers() {
    model(|lock| {
        let cell = Protected::new();
        ["a", "a/b"]
            .map(|path| {
                let cell = Arc::clone(&cell);
                spawn(lock, move |lock| {
                    let _guard = lock.write(path);
                    cell.write();
                })
            })
            .into()
    });
}

/// G1: a reader of an ancestor and a writer below it.
#[test]
fn reader_above_writer() {
    model(|lock| {
        let cell = Protected::new();
        let other = Arc::clone(&cell);
        let reader = spawn(lock, move |lock| {
            let _guard = lock.read("a");
            cell.read();
        });
        let writer = spawn(lock, move |lock| {
            let _guard = lock.write("a/b");
            other.write();
        });
        vec![reader, writer]
    });
}

/// G9: no later wake-up can hide a lost one, since nothing else is released before the others have finished.
#[test]
fn wake_up_is_not_owed_to_an_unrelated_guard() {
    model(|lock| {
        let holder = Arc::clone(lock);
        let others = ["a", "a"].map(|path| spawn(lock, move |lock| drop(lock.write(path))));
        let _unrelated = holder.write("z");
        for other in others {
            other.join().unwrap();
        }
        Vec::new()
    });
}

/// G7, G9: a request that is refused half way leaves nothing, and wakes who waited behind what it had taken.
#[test]
fn refused_try_wakes_who_waited_behind_it() {
    model(|lock| {
        let held = lock.write("a/b");
        // It takes S on `a/c` or IX on `a`, and gives them back: the writer of `a/c` gets in while `held` lasts.
        let trying = spawn(lock, |lock| assert!(lock.try_lock(&["a/c"], &["a/b"]).is_err()));
        let writing = spawn(lock, |lock| drop(lock.write("a/c")));
        trying.join().unwrap();
        writing.join().unwrap();
        drop(held);
        Vec::new()
    });
}

/// G7, G9: readers get in after a downgrade, while the downgraded guard is still held.
#[test]
fn downgrade_lets_a_waiting_reader_in() {
    model(|lock| {
        let cell = Protected::new();
        let guard = lock.write("a");
        let reader = {
            let cell = Arc::clone(&cell);
            spawn(lock, move |lock| {
                let _guard = lock.read("a");
                cell.read();
            })
        };
        cell.write();
        let guard = guard.downgrade();
        reader.join().unwrap();
        drop(guard);
        Vec::new()
    });
}

/// G1: who reads `a` and writes `a/b` excludes another reader of `a/b` and a writer of `a/c`.
#[test]
fn read_with_write_below_against_a_writer() {
    model(|lock| {
        let (written, read) = (Protected::new(), Protected::new());
        let cells = (Arc::clone(&written), Arc::clone(&read));
        let six = spawn(lock, move |lock| {
            let _guard = lock.lock(&["a"], &["a/b"]);
            cells.1.read();
            cells.0.write();
        });
        let other = spawn(lock, move |lock| {
            let _guard = lock.lock(&["a/b"], &["a/c"]);
            written.read();
            read.write();
        });
        vec![six, other]
    });
}

/// G2: requests of several roots, named in opposite orders.
#[test]
fn two_roots_in_opposite_orders() {
    model(|lock| {
        let cell = Protected::new();
        [["a", "b"], ["b", "a"]]
            .map(|roots| {
                let cell = Arc::clone(&cell);
                spawn(lock, move |lock| {
                    let _guard = lock.lock(&[], &roots);
                    cell.write();
                })
            })
            .into()
    });
}
