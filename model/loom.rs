//! Interleavings of small programs on the shipped lock, all of them up to a bound on preemptions.
//!
//! ```sh
//! cargo test --release --features loom --test loom                  # the quick set
//! LOOM_SLOW=1 cargo test --release --features loom --test loom      # higher bounds, or none
//! LOOM_MAX_PREEMPTIONS=4 cargo test --release --features loom --test loom NAME
//! ```
//!
//! How it decides: exclusion is checked by loom's own cells, where an access that is not ordered after the one it
//! conflicts with fails the model; a lost wake-up is a deadlock, which loom reports; what a program leaves is
//! asserted by [`nothing_is_left`] at its end. A program is the main thread and the threads that it spawns, four at
//! most.
//!
//! A later wake-up hides a lost one. So where a wake-up is the point, the thread that owes it keeps an unrelated
//! guard until the other thread has finished.
//!
//! Time: loom has none. [`TreeLock::strike`] plays the clock for the requests that wait at that moment, so that a
//! deadline or a look for deadlocks comes at every possible moment.
//!
//! Each scenario prints how many interleavings it had. None may end early and count as passed, so loom's limits of
//! duration and of permutations are refused.
#![cfg(feature = "loom")]
// Loom's cells are not `Sync`, and its threads do not ask for it: they are explored, not run.
#![allow(clippy::arc_with_non_send_sync)]

use loom::cell::UnsafeCell;
use loom::sync::{Condvar, Mutex};
use loom::thread::{self, JoinHandle};
use std::io::Write;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};
use treelock::{ArcTreeLockGuard, HeldLock, LockError, LockOwner, PathError, Segments, TreeLock, TreePath};

type Lock = TreeLock<str>;

/// The most preemptions of an interleaving; `None` explores them all.
struct Bounds {
    quick: usize,
    slow: Option<usize>,
}

/// What a sub-tree protects: loom fails the model if two are in it, one of them writing.
#[derive(Clone)]
struct Protected(Arc<UnsafeCell<u32>>);

impl Protected {
    fn new() -> Self {
        Protected(Arc::new(UnsafeCell::new(0)))
    }

    fn read(&self) -> u32 {
        self.0.with(|_| ());
        0
    }

    fn write(&self) {
        self.0.with_mut(|_| ());
    }
}

/// Runs the program in every interleaving within the bounds, and prints how many there were.
fn model(bounds: Bounds, program: impl Fn(&Arc<Lock>) + Send + Sync + 'static) {
    model_of::<str>(bounds, program);
}

/// The same with a lock over paths of another type.
fn model_of<P: TreePath + ?Sized>(bounds: Bounds, program: impl Fn(&Arc<TreeLock<P>>) + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    assert!(
        builder.max_duration.is_none() && builder.max_permutations.is_none(),
        "unset LOOM_MAX_DURATION and LOOM_MAX_PERMUTATIONS: they end a model early and call that passed"
    );
    if std::env::var_os("LOOM_SLOW").is_some() {
        builder.preemption_bound = bounds.slow;
    } else if builder.preemption_bound.is_none() {
        builder.preemption_bound = Some(bounds.quick);
    }
    builder.max_branches = 100_000;
    let bound = builder.preemption_bound.map_or("unbounded".into(), |bound| format!("bound {bound}"));
    let count = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let counted = Arc::clone(&count);
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        let lock = Arc::new(TreeLock::default());
        program(&lock);
        nothing_is_left(&lock);
    });
    let count = count.load(Ordering::Relaxed);
    assert!(count > 1, "a program with one interleaving checks nothing");
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    let seconds = start.elapsed().as_secs_f64();
    // Straight to the stream: what `eprintln` prints is kept back while a test passes.
    let _ = writeln!(std::io::stderr(), "{name:52} {count:9} interleavings, {bound}, {seconds:.2} s");
}

/// The lock is free, and has no entry of any request.
fn nothing_is_left<P: TreePath + ?Sized>(lock: &TreeLock<P>) {
    let snapshot = lock.snapshot();
    assert!(snapshot.holders.is_empty() && snapshot.waiters.is_empty(), "{snapshot}");
    assert_eq!(lock.live(), (0, 0), "a node or a request is left");
}

/// Returns when this many requests wait.
fn until_waiting(lock: &Lock, count: usize) {
    while lock.snapshot().waiters.len() < count {
        thread::yield_now();
    }
}

fn spawn<R: 'static>(lock: &Arc<Lock>, run: impl FnOnce(&Arc<Lock>) -> R + 'static) -> JoinHandle<R> {
    let lock = Arc::clone(lock);
    thread::spawn(move || run(&lock))
}

fn join_all(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn writer(lock: &Arc<Lock>, path: &'static str, cell: &Protected) -> JoinHandle<()> {
    let cell = cell.clone();
    spawn(lock, move |lock| {
        let _guard = lock.write(path);
        cell.write();
    })
}

fn reader(lock: &Arc<Lock>, path: &'static str, cell: &Protected) -> JoinHandle<()> {
    let cell = cell.clone();
    spawn(lock, move |lock| {
        let _guard = lock.read(path);
        cell.read();
    })
}

/// G1, G9.
#[test]
fn two_overlapping_writers() {
    model(Bounds { quick: 4, slow: None }, |lock| {
        let cell = Protected::new();
        join_all([writer(lock, "a", &cell), writer(lock, "a/b", &cell)]);
    });
}

/// G1, G9.
#[test]
fn reader_of_ancestor_and_writer_below() {
    model(Bounds { quick: 4, slow: None }, |lock| {
        let cell = Protected::new();
        join_all([reader(lock, "a", &cell), writer(lock, "a/b", &cell)]);
    });
}

/// G1: a request that reads `a` and writes `a/b` excludes a reader of `a/b` and a writer of `a/c`.
#[test]
fn read_with_write_below_against_others() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let (above, below) = (Protected::new(), Protected::new());
        let cells = (above.clone(), below.clone());
        let six = spawn(lock, move |lock| {
            let _guard = lock.lock(&["a"], &["a/b"]);
            cells.0.read();
            cells.1.write();
        });
        let other = reader(lock, "a/b", &below);
        let another = writer(lock, "a/c", &above);
        join_all([six, other, another]);
    });
}

/// G1, G3, G9.
#[test]
fn three_writers() {
    model(Bounds { quick: 3, slow: Some(4) }, |lock| {
        let cell = Protected::new();
        join_all([writer(lock, "a", &cell), writer(lock, "a", &cell), writer(lock, "a", &cell)]);
    });
}

/// G1, G9: one release lets in two requests.
#[test]
fn writer_and_two_readers() {
    model(Bounds { quick: 3, slow: Some(4) }, |lock| {
        let cell = Protected::new();
        join_all([writer(lock, "a", &cell), reader(lock, "a", &cell), reader(lock, "a", &cell)]);
    });
}

/// G9: both readers are owed a wake-up by the one release, since neither releases before the other is in.
#[test]
fn release_wakes_all_readers_that_are_due() {
    model(Bounds { quick: 3, slow: Some(4) }, |lock| {
        let held = lock.write("a");
        let first = spawn(lock, |lock| {
            let lock = Arc::clone(lock);
            lock.lock_arc(&["a"], &[])
        });
        let second = spawn(lock, |lock| {
            let lock = Arc::clone(lock);
            lock.lock_arc(&["a"], &[])
        });
        drop(held);
        let _both = (first.join().unwrap(), second.join().unwrap());
    });
}

/// G1, G4.
#[test]
fn partly_disjoint() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let (left, right) = (Protected::new(), Protected::new());
        let cells = (left.clone(), right.clone());
        let both = spawn(lock, move |lock| {
            let _guard = lock.lock(&["a/b"], &["a/c"]);
            cells.0.read();
            cells.1.write();
        });
        join_all([writer(lock, "a/b", &left), both, writer(lock, "a/c", &right)]);
    });
}

/// G1, G3, G9.
#[test]
fn writer_reader_writer_reader() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let cell = Protected::new();
        join_all([
            writer(lock, "a", &cell),
            reader(lock, "a", &cell),
            writer(lock, "a", &cell),
            reader(lock, "a", &cell),
        ]);
    });
}

/// Biases the nodes above `path`, so that the next requests publish their intentions there. It locks another leaf;
/// otherwise the register of the calling thread would own this one.
fn bias_above(lock: &Lock, path: &str) {
    let (folder, _) = path.rsplit_once('/').expect("a leaf in a folder");
    drop(lock.write(format!("{folder}/beside")));
}

/// G1, G9: a reader of an ancestor sees what a writer below has published, or the writer sees the reader.
#[test]
fn publication_against_revocation() {
    model(Bounds { quick: 4, slow: None }, |lock| {
        bias_above(lock, "a/b");
        let cell = Protected::new();
        join_all([writer(lock, "a/b", &cell), reader(lock, "a", &cell)]);
    });
}

/// G1, G9: the same for two requests that publish, one of which reads.
#[test]
fn two_publications_against_revocation() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        bias_above(lock, "a/b");
        let cell = Protected::new();
        join_all([writer(lock, "a/b", &cell), reader(lock, "a/b", &cell), writer(lock, "a", &cell)]);
    });
}

/// G1, G9: the holder of a published intention releases it while a reader revokes it: the reader is woken, or did not
/// have to wait.
#[test]
fn release_against_revocation() {
    model(Bounds { quick: 4, slow: Some(5) }, |lock| {
        bias_above(lock, "a/b/c");
        let cell = Protected::new();
        let held = lock.write("a/b/c");
        let others = [writer(lock, "a", &cell), reader(lock, "a/b", &cell)];
        cell.write();
        drop(held);
        join_all(others);
    });
}

/// G1: two requests revoke the bias of a node, which is biased again in between.
#[test]
fn revocation_against_bias_and_revocation() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        bias_above(lock, "a/b");
        let cell = Protected::new();
        let twice = {
            let cell = cell.clone();
            spawn(lock, move |lock| {
                for path in ["a/b", "a/b/c"] {
                    let _guard = lock.write(path);
                    cell.write();
                }
            })
        };
        join_all([twice, writer(lock, "a", &cell), reader(lock, "/", &cell)]);
    });
}

/// G1: weak grants beside a reader bias nothing; otherwise a writer would publish past it.
#[test]
fn publication_beside_a_reader() {
    model(Bounds { quick: 3, slow: None }, |lock| {
        let cell = Protected::new();
        let reading = lock.read("a");
        let below = {
            let cell = cell.clone();
            spawn(lock, move |lock| {
                drop(lock.read("a/b"));
                let _guard = lock.write("a/b");
                cell.write();
            })
        };
        cell.read();
        drop(reading);
        below.join().unwrap();
    });
}

/// G1: a thread that publishes on a node sees what an earlier writer of the node wrote, though a third thread biased
/// the node and the two have no mutex in common. The names are chosen for that: the last leaf is in another shard
/// than all other nodes.
#[test]
fn publication_after_a_writer_of_the_ancestor() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let cell = Protected::new();
        let above = writer(lock, "a", &cell);
        let biases = spawn(lock, |lock| drop(lock.write("a/y")));
        join_all([above, biases, writer(lock, "a/x", &cell)]);
    });
}

/// G1: a node loses its bias to a hotter one while one thread publishes there and another asks for all of it. The
/// names are chosen for that: the root, `a` and `f` are in one shard, and the fourth read below `f` takes the place
/// of the root.
#[test]
fn eviction_against_publication() {
    model(Bounds { quick: 3, slow: Some(4) }, |lock| {
        bias_above(lock, "a/x");
        (0..3).for_each(|_| drop(lock.read("f/y")));
        let cell = Protected::new();
        let evicts = spawn(lock, |lock| drop(lock.read("f/y")));
        join_all([writer(lock, "a/x", &cell), reader(lock, "", &cell), evicts]);
    });
}

/// G1, G9: a guard whose intentions are published is weakened while a reader above revokes them.
#[test]
fn downgrade_against_revocation() {
    model(Bounds { quick: 4, slow: None }, |lock| {
        bias_above(lock, "a/b");
        let cell = Protected::new();
        let guard = lock.write("a/b");
        let other = reader(lock, "a", &cell);
        cell.write();
        let guard = guard.downgrade();
        cell.read();
        other.join().unwrap();
        drop(guard);
    });
}

/// Exactness: a request that holds all of `a` finds nothing held below, however late the request before releases it.
#[test]
fn released_publication_is_gone_before_the_next_is_in() {
    model(Bounds { quick: 3, slow: Some(5) }, |lock| {
        bias_above(lock, "a/b/c");
        let held = lock.write("a/b/c");
        let next = spawn(lock, |lock| {
            let _all = lock.write("a");
            for path in ["a/b/c", "a/b"] {
                assert!(lock.try_lock(&[], &[path]).is_ok(), "{path} is held by somebody else");
            }
        });
        drop(held);
        next.join().unwrap();
    });
}

/// Exactness: the same for a guard that lets go of a part.
#[test]
fn released_part_is_gone_before_the_next_is_in() {
    model(Bounds { quick: 3, slow: Some(5) }, |lock| {
        let mut held = lock.lock(&[], &["a/b/c", "d"]);
        let next = spawn(lock, |lock| {
            let _all = lock.write("a");
            for path in ["a/b/c", "a/b"] {
                assert!(lock.try_lock(&[], &[path]).is_ok(), "{path} is held by somebody else");
            }
        });
        held.release(&["a/b/c"]).unwrap();
        next.join().unwrap();
        drop(held);
    });
}

/// G7: a request of several roots that publishes, waits and gives up leaves nothing published.
#[test]
fn cancelled_publication_against_revocation() {
    model(Bounds { quick: 3, slow: Some(4) }, |lock| {
        bias_above(lock, "a/b/c");
        let held = lock.write("a/b/c");
        let timed = spawn(lock, |lock| {
            let refused = lock.try_lock(&[], &["a/b/c", "a/d"]);
            assert!(matches!(refused, Err(LockError::WouldBlock)));
        });
        let all = spawn(lock, |lock| drop(lock.write("a")));
        timed.join().unwrap();
        drop(held);
        all.join().unwrap();
    });
}

/// G2: the order of the roots in a request does not matter.
#[test]
fn several_roots_in_opposite_orders() {
    model(Bounds { quick: 3, slow: Some(6) }, |lock| {
        let cell = Protected::new();
        join_all([["a", "b"], ["b", "a"]].map(|roots| {
            let cell = cell.clone();
            spawn(lock, move |lock| {
                let _guard = lock.lock(&[], &roots);
                cell.write();
            })
        }));
    });
}

/// G7, G10: a deadline that passes while the grant is on its way.
#[test]
fn deadline_against_grant() {
    let (granted, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let outcomes = (Arc::clone(&granted), Arc::clone(&refused));
    model(Bounds { quick: 3, slow: Some(4) }, move |lock| {
        let cell = Protected::new();
        let held = lock.write("a");
        let timed = {
            let cell = cell.clone();
            let (granted, refused) = outcomes.clone();
            spawn(lock, move |lock| match lock.try_lock_for(&[], &["a/b"], Duration::ZERO) {
                Ok(_guard) => {
                    granted.fetch_add(1, Ordering::Relaxed);
                    cell.write();
                }
                Err(LockError::TimedOut) => {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => panic!("{error}"),
            })
        };
        cell.write();
        until_waiting(lock, 1);
        let clock = spawn(lock, |lock| lock.strike(true));
        drop(held);
        join_all([timed, clock]);
    });
    assert!(granted.load(Ordering::Relaxed) > 0 && refused.load(Ordering::Relaxed) > 0, "both must be explored");
}

/// G1, G7: the same while another request queues: the late one must not take that out of the queue.
#[test]
fn deadline_against_grant_and_newcomer() {
    model(Bounds { quick: 2, slow: Some(4) }, |lock| {
        let cell = Protected::new();
        let held = lock.write("a");
        let timed = spawn(lock, |lock| {
            drop(lock.try_lock_for(&[], &["a"], Duration::ZERO));
        });
        until_waiting(lock, 1);
        let newcomer = writer(lock, "a", &cell);
        lock.strike(true);
        drop(held);
        join_all([timed, newcomer]);
    });
}

/// G7, G9: a writer gives up, and the reader behind it gets in while the reader ahead of it still holds.
#[test]
fn cancelled_writer_lets_in_the_reader_behind_it() {
    model(Bounds { quick: 3, slow: Some(4) }, |lock| {
        let held = lock.read("a");
        let writer = spawn(lock, |lock| {
            let refused = lock.try_lock_for(&[], &["a"], Duration::ZERO);
            assert!(matches!(refused, Err(LockError::TimedOut)));
        });
        until_waiting(lock, 1);
        let behind = spawn(lock, |lock| drop(lock.read("a")));
        lock.strike(true);
        join_all([writer, behind]);
        drop(held);
    });
}

/// G7: a request of several roots that gives up half way gives back what it had taken.
#[test]
fn cancelled_request_of_several_roots_gives_all_back() {
    model(Bounds { quick: 3, slow: Some(4) }, |lock| {
        let held = (lock.write("a"), lock.write("b"));
        let timed = spawn(lock, |lock| {
            let refused = lock.try_lock_for(&[], &["a/x", "b/x", "c"], Duration::ZERO);
            assert!(matches!(refused, Err(LockError::TimedOut)));
        });
        until_waiting(lock, 1);
        lock.strike(true);
        let other = spawn(lock, |lock| drop(lock.write("c")));
        join_all([timed, other]);
        drop(held);
    });
}

/// G7, G9: a refused `try_lock` lets in a request that waited for what it had taken for a moment.
#[test]
fn refused_try_wakes_who_waited_behind_it() {
    model(Bounds { quick: 3, slow: Some(5) }, |lock| {
        let held = lock.write("a/b");
        // It takes S on `a/c` or IX on `a`, and gives them back: the writer of `a/c` gets in while `held` lasts.
        let trying = spawn(lock, |lock| assert!(lock.try_lock(&["a/c"], &["a/b"]).is_err()));
        let writing = spawn(lock, |lock| drop(lock.write("a/c")));
        join_all([trying, writing]);
        drop(held);
    });
}

/// G1, G9: a downgrade lets in the reader that waits, while the downgraded guard lasts, and not the writer.
#[test]
fn downgrade_against_waiting_reader_and_writer() {
    model(Bounds { quick: 3, slow: Some(4) }, |lock| {
        let cell = Protected::new();
        let guard = lock.write("a");
        let reads = reader(lock, "a", &cell);
        cell.write();
        let guard = guard.downgrade();
        join_all([reads]);
        let writes = writer(lock, "a", &cell);
        cell.read();
        drop(guard);
        join_all([writes]);
    });
}

/// G1, G9: the same in a race.
#[test]
fn downgrade_against_reader_and_writer_together() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let cell = Protected::new();
        let guard = lock.write("a");
        let others = [reader(lock, "a", &cell), writer(lock, "a", &cell)];
        cell.write();
        let guard = guard.downgrade();
        cell.read();
        drop(guard);
        join_all(others);
    });
}

/// G1, G2: an upgrade goes ahead of a writer that waits, and itself waits for the other reader.
#[test]
fn conversion_against_waiting_writer() {
    model(Bounds { quick: 3, slow: Some(4) }, |lock| {
        let cell = Protected::new();
        let reading = lock.read("a");
        let others = [writer(lock, "a", &cell), reader(lock, "a", &cell)];
        {
            let _upgraded = lock.write("a");
            cell.write();
        }
        cell.read();
        drop(reading);
        join_all(others);
    });
}

/// Re-entrancy: a read inside a read does not hang behind a waiting writer; the outer guard is dropped first.
#[test]
fn nested_read_against_waiting_writer() {
    model(Bounds { quick: 3, slow: Some(5) }, |lock| {
        let cell = Protected::new();
        let outer = lock.read("a");
        let writes = writer(lock, "a", &cell);
        let inner = lock.read("a/b");
        drop(outer);
        cell.read();
        drop(inner);
        join_all([writes]);
    });
}

/// G6: a node is dropped while another thread looks it up.
#[test]
fn node_reclaimed_while_looked_up() {
    model(Bounds { quick: 4, slow: None }, |lock| {
        let cell = Protected::new();
        let again = {
            let cell = cell.clone();
            spawn(lock, move |lock| {
                for _ in 0..2 {
                    let _guard = lock.write("a");
                    cell.write();
                }
            })
        };
        join_all([again, writer(lock, "a", &cell)]);
    });
}

/// G1: a thread that releases a node twice in a row comes to own it, but not while another thread waits there.
#[test]
fn awaited_node_comes_to_be_owned_by_nobody() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let cell = Protected::new();
        let again = {
            let cell = cell.clone();
            spawn(lock, move |lock| {
                for _ in 0..3 {
                    let _guard = lock.write("a");
                    cell.write();
                }
            })
        };
        join_all([again, writer(lock, "a", &cell)]);
    });
}

/// G1, G9: an `Arc` guard is released by a thread that did not take it.
#[test]
fn guard_dropped_on_another_thread() {
    model(Bounds { quick: 3, slow: Some(5) }, |lock| {
        let cell = Protected::new();
        let guard = lock.lock_arc(&[], &["a"]);
        cell.write();
        let waits = writer(lock, "a", &cell);
        let drops = thread::spawn(move || drop(guard));
        join_all([drops, waits]);
    });
}

/// How many others a report of a deadlock names; none, if there is no report.
fn others_reported<T>(outcome: Result<T, LockError>) -> usize {
    match outcome {
        Ok(_granted) => 0,
        Err(LockError::Deadlock(deadlock)) => deadlock.parties.len() - 1,
        Err(error) => panic!("{error}"),
    }
}

/// G2: in a deadlock of two, one gets the report and the other goes on.
#[test]
fn deadlock_is_reported_to_one() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let nested = |lock: &Lock, wanted| others_reported(lock.try_lock_for(&[], &[wanted], Duration::MAX));
        let held = lock.write("a");
        let other = spawn(lock, move |lock| {
            let _held = lock.write("b");
            nested(lock, "a")
        });
        until_waiting(lock, 1);
        let clock = spawn(lock, |lock| {
            until_waiting(lock, 2);
            lock.strike(false);
        });
        let reports = nested(lock, "b");
        drop(held);
        clock.join().unwrap();
        assert_eq!(reports + other.join().unwrap(), 1, "one report resolves it");
    });
}

/// G2: a look for deadlocks reports nothing while the release that ends the wait is on its way.
#[test]
fn look_for_deadlock_against_release() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let first = spawn(lock, |lock| {
            let held = lock.write("a");
            drop(lock.try_lock(&[], &["b"]));
            drop(held);
        });
        let second = spawn(lock, |lock| {
            let _held = lock.write("b");
            let _guard = lock.try_lock_for(&[], &["a"], Duration::MAX).expect("nobody waits for it");
        });
        lock.strike(false);
        join_all([first, second]);
    });
}

/// G1, G9: two releases, one of the node where the writer waits, one of the node that it is walked on to meanwhile.
#[test]
fn walk_on_against_a_second_release() {
    model(Bounds { quick: 3, slow: Some(5) }, |lock| {
        let cell = Protected::new();
        let (above, below) = (lock.lock_arc(&["a"], &[]), lock.lock_arc(&["a/b"], &[]));
        let writes = writer(lock, "a/b", &cell);
        cell.read();
        let releases = thread::spawn(move || drop(below));
        drop(above);
        join_all([releases, writes]);
    });
}

/// G7, G9: a request that was walked on half way gives up: a request that waits for what it took there gets in, while
/// the guard that the first one waited for lasts.
#[test]
fn request_cancelled_half_way_lets_in_who_waited_behind_it() {
    model(Bounds { quick: 3, slow: Some(4) }, |lock| {
        let (above, below) = (lock.lock_arc(&["a"], &[]), lock.lock_arc(&["a/b"], &[]));
        let timed = spawn(lock, |lock| {
            let refused = lock.try_lock_for(&[], &["a/b"], Duration::ZERO);
            assert!(matches!(refused, Err(LockError::TimedOut)));
        });
        until_waiting(lock, 1);
        drop(above);
        while !lock.snapshot().waiters.iter().any(|waiter| waiter.at.segments == ["a", "b"]) {
            thread::yield_now();
        }
        let behind = spawn(lock, |lock| drop(lock.read("a")));
        lock.strike(true);
        join_all([timed, behind]);
        drop(below);
    });
}

/// G9: no later wake-up hides a lost one, since an unrelated guard is held until the others have finished.
#[test]
fn unrelated_guard_is_held_until_the_others_finish() {
    model(Bounds { quick: 3, slow: Some(5) }, |lock| {
        let cell = Protected::new();
        let _unrelated = lock.write("z");
        join_all([writer(lock, "a", &cell), writer(lock, "a", &cell)]);
    });
}

/// The order of service: each thread notes its name while it holds what it asked for.
#[derive(Clone, Default)]
struct Served(Arc<std::sync::Mutex<Vec<&'static str>>>);

impl Served {
    fn note(&self, name: &'static str) {
        self.0.lock().unwrap().push(name);
    }

    fn order(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().clone()
    }

    /// A thread that writes `path` and notes its name.
    fn writer(&self, lock: &Arc<Lock>, name: &'static str, path: &'static str) -> JoinHandle<()> {
        let served = self.clone();
        spawn(lock, move |lock| {
            let _guard = lock.write(path);
            served.note(name);
        })
    }
}

/// G3, G9: two requests that one release lets on at `a` are walked on to `a/b` in their order, and woken there.
#[test]
fn those_let_on_together_are_served_in_their_order() {
    model(Bounds { quick: 2, slow: Some(4) }, |lock| {
        let served = Served::default();
        let held = lock.write("a");
        let first = served.writer(lock, "first", "a/b");
        until_waiting(lock, 1);
        let second = served.writer(lock, "second", "a/b");
        until_waiting(lock, 2);
        drop(held);
        join_all([first, second]);
        assert_eq!(served.order(), ["first", "second"]);
    });
}

/// G3: a request that comes to a node after others were let on there goes on behind them.
#[test]
fn newcomer_goes_on_behind_those_let_on() {
    model(Bounds { quick: 3, slow: Some(5) }, |lock| {
        let served = Served::default();
        let held = lock.write("a");
        let waiter = served.writer(lock, "waiter", "a/b");
        until_waiting(lock, 1);
        let newcomer = served.writer(lock, "newcomer", "a/b");
        drop(held);
        join_all([waiter, newcomer]);
        assert_eq!(served.order(), ["waiter", "newcomer"]);
    });
}

/// G3: a node with movers gets no bias; otherwise a request that goes on behind them could set one, and a newcomer would be
/// published past them.
#[test]
fn no_publication_passes_those_let_on() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let served = Served::default();
        let held = lock.write("a");
        let waiter = served.writer(lock, "waiter", "a/b");
        until_waiting(lock, 1);
        let behind = spawn(lock, |lock| drop(lock.write("a/c")));
        let newcomer = served.writer(lock, "newcomer", "a/b");
        drop(held);
        join_all([waiter, behind, newcomer]);
        assert_eq!(served.order(), ["waiter", "newcomer"]);
    });
}

/// G3: a `try_lock` that comes after others were let on is granted after them, or refused.
#[test]
fn try_goes_on_behind_those_let_on() {
    model(Bounds { quick: 3, slow: Some(5) }, |lock| {
        let served = Served::default();
        let held = lock.write("a");
        let waiter = served.writer(lock, "waiter", "a/b");
        until_waiting(lock, 1);
        let tries = {
            let served = served.clone();
            spawn(lock, move |lock| {
                if let Ok(_guard) = lock.try_lock(&[], &["a/b"]) {
                    served.note("try");
                }
            })
        };
        drop(held);
        join_all([waiter, tries]);
        assert_eq!(served.order()[0], "waiter");
    });
}

/// G3, G9: a release and a cancel let others on at the same node, one after the other, and each walks on its own: the
/// second one in its turn.
#[test]
fn second_change_walks_on_behind_the_first() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let served = Served::default();
        let held = lock.write("a");
        let first = served.writer(lock, "first", "a/b");
        until_waiting(lock, 1);
        // It excludes both writers below, so the second writer waits behind it.
        let timed = spawn(lock, |lock| drop(lock.try_lock_for(&["a"], &[], Duration::ZERO)));
        until_waiting(lock, 2);
        let second = served.writer(lock, "second", "a/b");
        until_waiting(lock, 3);
        lock.strike(true);
        drop(held);
        join_all([first, timed, second]);
        assert_eq!(served.order(), ["first", "second"]);
    });
}

/// G3: the same where the second one is brought to a node below, from which the first was let on meanwhile.
#[test]
fn mover_goes_on_behind_those_let_on_at_the_next_node() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let served = Served::default();
        let held = lock.read("a/b");
        let first = served.writer(lock, "first", "a/b/c");
        until_waiting(lock, 1);
        // It waits for the first one, and the second one behind it.
        let timed = spawn(lock, |lock| drop(lock.try_lock_for(&["a"], &[], Duration::ZERO)));
        until_waiting(lock, 2);
        let second = served.writer(lock, "second", "a/b/c");
        until_waiting(lock, 3);
        lock.strike(true);
        drop(held);
        join_all([first, timed, second]);
        assert_eq!(served.order(), ["first", "second"]);
    });
}

/// G3: a request keeps the place that it got where it began to wait.
#[test]
fn request_let_on_goes_ahead_of_one_that_began_to_wait_later() {
    model(Bounds { quick: 2, slow: Some(4) }, |lock| {
        let served = Served::default();
        let (a, b) = (lock.write("a"), lock.write("b"));
        let both = {
            let served = served.clone();
            spawn(lock, move |lock| {
                let _guard = lock.lock(&[], &["a", "b"]);
                served.note("both");
            })
        };
        until_waiting(lock, 1);
        // One of the two nodes comes first in every plan; the request waits for that one.
        let at = lock.snapshot().waiters[0].at.segments[0].clone();
        let (near, far, later) = if at == "a" { (a, b, "b") } else { (b, a, "a") };
        let alone = served.writer(lock, "alone", later);
        until_waiting(lock, 2);
        drop(near);
        drop(far);
        join_all([both, alone]);
        assert_eq!(served.order(), ["both", "alone"]);
    });
}

/// G7, G10: a deadline passes while a request is walked on, or when it waits in its second queue.
#[test]
fn deadline_against_walking_on() {
    let (granted, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let outcomes = (Arc::clone(&granted), Arc::clone(&refused));
    model(Bounds { quick: 3, slow: Some(4) }, move |lock| {
        let (outer, inner) = (lock.write("a"), lock.write("a/b"));
        let (granted, refused) = outcomes.clone();
        let timed = spawn(lock, move |lock| match lock.try_lock_for(&[], &["a/b"], Duration::ZERO) {
            Ok(_guard) => granted.fetch_add(1, Ordering::Relaxed),
            Err(LockError::TimedOut) => refused.fetch_add(1, Ordering::Relaxed),
            Err(error) => panic!("{error}"),
        });
        until_waiting(lock, 1);
        let clock = spawn(lock, |lock| lock.strike(true));
        drop(outer);
        drop(inner);
        timed.join().unwrap();
        clock.join().unwrap();
    });
    assert!(granted.load(Ordering::Relaxed) > 0 && refused.load(Ordering::Relaxed) > 0, "both must be explored");
}

/// G7: a request that gives up in its second queue lets in the requests behind it there.
#[test]
fn request_cancelled_half_way_lets_in_the_one_behind_it() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let (outer, inner) = (lock.write("a"), lock.read("a/b"));
        let timed = spawn(lock, |lock| {
            let refused = lock.try_lock_for(&[], &["a/b"], Duration::ZERO);
            assert!(matches!(refused, Err(LockError::TimedOut)));
        });
        until_waiting(lock, 1);
        let behind = spawn(lock, |lock| drop(lock.read("a/b")));
        until_waiting(lock, 2);
        drop(outer);
        lock.strike(true);
        join_all([timed, behind]);
        drop(inner);
    });
}

/// G1, G9: a thread that revokes sees what is published for a request that is walked on, or the other way round.
#[test]
fn walking_on_against_revocation() {
    model(Bounds { quick: 3, slow: Some(4) }, |lock| {
        bias_above(lock, "a/b/c");
        let cell = Protected::new();
        let held = lock.write("a");
        let below = writer(lock, "a/b/c", &cell);
        until_waiting(lock, 1);
        let above = reader(lock, "a/b", &cell);
        drop(held);
        join_all([below, above]);
    });
}

/// G2: a look for deadlocks reports nothing while the release that ends the wait walks the request on.
#[test]
fn look_for_deadlock_against_walking_on() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let held = lock.write("a");
        let nests = spawn(lock, |lock| {
            let _own = lock.write("b");
            let _guard = lock.try_lock_for(&[], &["a/x"], Duration::MAX).expect("nobody waits for it");
        });
        until_waiting(lock, 1);
        // It waits for the request that nests, and is not part of a cycle.
        let waits = spawn(lock, |lock| drop(lock.write("b")));
        let clock = spawn(lock, |lock| lock.strike(false));
        drop(held);
        join_all([nests, waits, clock]);
    });
}

/// G4: a refused `try_lock` takes nothing meanwhile, so no other request is refused because of it.
#[test]
fn refused_try_refuses_nobody() {
    model(Bounds { quick: 4, slow: None }, |lock| {
        let held = lock.write("held");
        let refused = spawn(lock, |lock| assert!(lock.try_lock(&[], &["c", "held"]).is_err()));
        let granted = spawn(lock, |lock| assert!(lock.try_lock(&["c/1"], &[]).is_ok()));
        join_all([refused, granted]);
        drop(held);
    });
}

/// G1, G9: a guard releases one of its roots while one request waits for that root and another for the rest, and a
/// reader revokes what is published above.
#[test]
fn part_released_against_waiting_writers_and_revocation() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        bias_above(lock, "a/b");
        bias_above(lock, "c/d");
        let (left, right) = (Protected::new(), Protected::new());
        let mut guard = lock.lock(&[], &["a/b", "c/d"]);
        let first = writer(lock, "a/b", &left);
        let above = reader(lock, "c", &right);
        left.write();
        guard.release(&["a/b"]).unwrap();
        // The other root is held until the first request has finished: no later wake-up hides a lost one.
        join_all([first]);
        right.write();
        drop(guard);
        join_all([above]);
    });
}

/// G1, G9: a read root comes back when the one that covered it is released, at a node where the guard has published an
/// intention until then; a writer below it publishes its own, or sees the read.
#[test]
fn part_released_that_covered_a_read_against_publication() {
    model(Bounds { quick: 3, slow: Some(4) }, |lock| {
        bias_above(lock, "b/x");
        let cell = Protected::new();
        let mut guard = lock.lock(&["", "b"], &["b/a"]);
        let others = [writer(lock, "b/y", &cell), reader(lock, "b", &cell)];
        guard.release(&["", "b/a"]).unwrap();
        cell.read();
        drop(guard);
        join_all(others);
    });
}

/// G2: of two owners in a deadlock, one gets the report and the other goes on.
#[test]
fn deadlock_of_owners_is_reported_to_one() {
    one_of_two_owners_is_told(|owner, wanted| owner.lock(&[], &[wanted]));
}

/// Two owners that each have what the other asks for.
fn one_of_two_owners_is_told(ask: fn(&mut LockOwner<str>, &'static str) -> Result<HeldLock, LockError>) {
    model(Bounds { quick: 2, slow: Some(3) }, move |lock| {
        let reports = move |owner: &mut LockOwner<str>, wanted| others_reported(ask(owner, wanted));
        let mut owner = lock.owner();
        let _held = owner.lock(&[], &["a"]).unwrap();
        let other = spawn(lock, move |lock| {
            let mut owner = lock.owner();
            let _held = owner.lock(&[], &["b"]).unwrap();
            reports(&mut owner, "a")
        });
        until_waiting(lock, 1);
        let clock = spawn(lock, |lock| {
            until_waiting(lock, 2);
            lock.strike(false);
        });
        let reports = reports(&mut owner, "b");
        drop(owner);
        clock.join().unwrap();
        assert_eq!(reports + other.join().unwrap(), 1, "one report resolves it");
    });
}

/// G1: a relative and an absolute path are different nodes, so only the frame of the ledger refuses the second one.
/// Each comes while the other may be on its way in or out.
#[test]
fn two_kinds_of_paths_that_come_together() {
    model_of::<Path>(Bounds { quick: 3, slow: None }, |lock| {
        let cell = Protected::new();
        let thread = |path: &'static str| {
            let (lock, cell) = (Arc::clone(lock), cell.clone());
            thread::spawn(move || match lock.try_lock(&[], &[path]) {
                Ok(_guard) => cell.write(),
                Err(LockError::Path(_)) => {}
                Err(error) => panic!("{error}"),
            })
        };
        join_all([thread("a"), thread("/a")]);
    });
}

/// G4, G9: a request that is walked on comes to stand ahead of waiters at its next node, and so lets another one in:
/// a request that it waits for goes ahead of those behind it (rule 3 of `node.rs`). No later wake-up hides a lost
/// one, since a guard at that node is held until then.
#[test]
fn walking_on_lets_in_whom_it_waits_for() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let (m, other) = (lock.write("m"), lock.write("k/n/r"));
        let mut nests = lock.owner();
        let _reading = nests.lock(&["k/n/p"], &[]).unwrap();
        let both = spawn(lock, |lock| drop(lock.lock(&[], &["m", "k/n"])));
        until_waiting(lock, 1);
        let reads = spawn(lock, |lock| drop(lock.read("k/n")));
        until_waiting(lock, 2);
        let nests = thread::spawn(move || drop(nests.lock(&[], &["k/n/q"]).unwrap()));
        until_waiting(lock, 3);
        drop(m);
        nests.join().unwrap();
        drop(other);
        join_all([both, reads]);
    });
}

/// A path that belongs to the thread that asked with it.
#[derive(Debug)]
struct Own(&'static str, thread::ThreadId);

impl Own {
    fn new(path: &'static str) -> Self {
        Own(path, thread::current().id())
    }
}

impl Clone for Own {
    fn clone(&self) -> Self {
        Own::new(self.0)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        assert!(self.1 == thread::current().id(), "G8: {} is dropped by another thread", self.0);
    }
}

impl AsRef<Own> for Own {
    fn as_ref(&self) -> &Own {
        self
    }
}

impl TreePath for Own {
    fn segments(&self, segments: &mut Segments<'_>) -> Result<(), PathError> {
        self.0.segments(segments)
    }
}

/// G8: a path is user code, and so is its drop: the thread that walks a request on does not drop the path during its
/// turn.
#[test]
fn whoever_walks_a_request_on_drops_no_path_of_it() {
    model(Bounds { quick: 2, slow: Some(3) }, |_| {
        let lock = Arc::new(TreeLock::<Own>::default());
        let held = lock.lock(&[], &[Own::new("a")]);
        let waits = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || drop(lock.try_lock_for(&[], &[Own::new("a/b")], Duration::ZERO)))
        };
        while lock.snapshot().waiters.is_empty() {
            thread::yield_now();
        }
        // A waiter whose deadline passes sees its grant before it is woken, and may be gone by then.
        let clock = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || lock.strike(true))
        };
        drop(held);
        join_all([waits, clock]);
    });
}

/// G2: a request has found itself in a deadlock, but is let on before it gives up, since another one has given up. It
/// is not refused for that deadlock where it waits next.
#[test]
fn report_that_is_over_refuses_nobody_further_on() {
    model(Bounds { quick: 3, slow: Some(4) }, |lock| {
        let far = lock.write("c/d");
        let (mut nests, mut gives_up) = (lock.owner(), lock.owner());
        let _own = nests.lock(&[], &["a"]).unwrap();
        let _other = gives_up.lock(&[], &["b"]).unwrap();
        let gives_up = thread::spawn(move || drop(gives_up.try_lock_for(&[], &["a"], Duration::ZERO)));
        until_waiting(lock, 1);
        let nests = thread::spawn(move || nests.lock(&[], &["b", "c/d"]).map(drop));
        until_waiting(lock, 2);
        lock.strike(false);
        lock.strike(true);
        let is_over = lock.snapshot().waiters.iter().any(|waiter| waiter.at.segments == ["c", "d"]);
        drop(far);
        let outcome = nests.join().unwrap();
        gives_up.join().unwrap();
        assert!(!is_over || outcome.is_ok(), "G2: it was let on, and refused for a cycle that is over");
    });
}

/// Makes the register of the calling thread own the node of `path`, and find the nodes above it biased.
fn own(lock: &Lock, path: &str) {
    (0..3).for_each(|_| drop(lock.write(path)));
}

/// G1, G9: a thread that takes a leaf that its register owns, and one that comes to the leaf's shard, see each other.
#[test]
fn owned_leaf_against_another_writer() {
    model(Bounds { quick: 4, slow: None }, |lock| {
        own(lock, "a/b");
        let cell = Protected::new();
        let other = writer(lock, "a/b", &cell);
        {
            let _guard = lock.write("a/b");
            cell.write();
        }
        other.join().unwrap();
    });
}

/// G1, G9: the nodes above the leaf were found biased before; a reader revokes one of them.
#[test]
fn owned_leaf_against_a_reader_of_an_ancestor() {
    model(Bounds { quick: 4, slow: None }, |lock| {
        own(lock, "a/b");
        let cell = Protected::new();
        let other = reader(lock, "a", &cell);
        for _ in 0..2 {
            let _guard = lock.write("a/b");
            cell.write();
        }
        other.join().unwrap();
    });
}

/// G1, G9: a request for a node below the leaf disowns it too.
#[test]
fn owned_leaf_against_a_writer_below_it() {
    model(Bounds { quick: 4, slow: None }, |lock| {
        own(lock, "a/b");
        let cell = Protected::new();
        let other = writer(lock, "a/b/c", &cell);
        {
            let _guard = lock.write("a/b");
            cell.write();
        }
        other.join().unwrap();
    });
}

/// G1, G9: the leaf is released while two other threads take it back, one at the leaf and one above it.
#[test]
fn release_of_an_owned_leaf_against_two_that_take_it_back() {
    model(Bounds { quick: 3, slow: Some(4) }, |lock| {
        own(lock, "a/b");
        let cell = Protected::new();
        let held = lock.write("a/b");
        let others = [writer(lock, "a/b", &cell), reader(lock, "a", &cell)];
        cell.write();
        drop(held);
        join_all(others);
    });
}

/// G1, G9: an `Arc` guard of an owned leaf is released by a thread of another register.
#[test]
fn guard_of_an_owned_leaf_dropped_on_another_thread() {
    model(Bounds { quick: 3, slow: Some(5) }, |lock| {
        own(lock, "a/b");
        let cell = Protected::new();
        let guard = lock.lock_arc(&[], &["a/b"]);
        cell.write();
        let waits = writer(lock, "a/b", &cell);
        let drops = thread::spawn(move || drop(guard));
        // The owner is back, perhaps before the guard is dropped.
        {
            let _guard = lock.write("a/b");
            cell.write();
        }
        join_all([drops, waits]);
    });
}

/// G1, G9: a downgrade lets in the reader, while the guard lasts, and not the writer.
#[test]
fn downgrade_of_an_owned_leaf() {
    model(Bounds { quick: 3, slow: Some(4) }, |lock| {
        own(lock, "a/b");
        let cell = Protected::new();
        let guard = lock.write("a/b");
        let reads = reader(lock, "a/b", &cell);
        cell.write();
        let guard = guard.downgrade();
        reads.join().unwrap();
        let writes = writer(lock, "a/b", &cell);
        cell.read();
        drop(guard);
        writes.join().unwrap();
    });
}

/// G1: another register comes to own a leaf while the former owner takes it again.
#[test]
fn owned_leaf_is_owned_by_another_in_between() {
    model(Bounds { quick: 3, slow: Some(5) }, |lock| {
        own(lock, "a/b");
        let cell = Protected::new();
        let other = {
            let cell = cell.clone();
            spawn(lock, move |lock| {
                for _ in 0..3 {
                    let _guard = lock.write("a/b");
                    cell.write();
                }
            })
        };
        for _ in 0..2 {
            let _guard = lock.write("a/b");
            cell.write();
        }
        other.join().unwrap();
    });
}

/// G1, G7: a request of two roots, of which its register owns one, the first or the last in the plan. Nothing of it
/// is left, whichever thread takes that back.
#[test]
fn several_roots_of_which_one_is_owned() {
    for owned in ["a/b", "a/c"] {
        model(Bounds { quick: 3, slow: Some(5) }, move |lock| {
            own(lock, owned);
            let cell = Protected::new();
            let other = writer(lock, owned, &cell);
            for _ in 0..2 {
                let _guard = lock.lock(&[], &["a/b", "a/c"]);
                cell.write();
            }
            other.join().unwrap();
        });
    }
}

/// G1, G7: the same if the register owns both, and the other thread owns one of them meanwhile.
#[test]
fn several_roots_that_are_owned() {
    model(Bounds { quick: 3, slow: Some(5) }, |lock| {
        (0..3).for_each(|_| drop(lock.lock(&[], &["a/b", "a/c"])));
        let cell = Protected::new();
        let other = {
            let cell = cell.clone();
            spawn(lock, move |lock| {
                own(lock, "a/c");
                let _guard = lock.write("a/c");
                cell.write();
            })
        };
        {
            let _guard = lock.lock(&[], &["a/b", "a/c"]);
            cell.write();
        }
        other.join().unwrap();
    });
}

/// Re-entrancy: a thread asks again for a leaf that it holds and that its register owns, while another thread wants
/// it.
#[test]
fn nested_request_for_an_owned_leaf() {
    model(Bounds { quick: 3, slow: Some(5) }, |lock| {
        own(lock, "a/b");
        let cell = Protected::new();
        let outer = lock.write("a/b");
        let other = writer(lock, "a/b", &cell);
        let inner = lock.write("a/b");
        drop(outer);
        cell.write();
        drop(inner);
        other.join().unwrap();
    });
}

/// G2: two owned leaves, each held by one thread and wanted by the other: the search sees what no node counts.
#[test]
fn deadlock_over_owned_leaves_is_reported_to_one() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let nested = |lock: &Lock, wanted| others_reported(lock.try_lock_for(&[], &[wanted], Duration::MAX));
        own(lock, "a");
        let held = lock.write("a");
        let other = spawn(lock, move |lock| {
            own(lock, "b");
            let _held = lock.write("b");
            nested(lock, "a")
        });
        until_waiting(lock, 1);
        let clock = spawn(lock, |lock| {
            until_waiting(lock, 2);
            lock.strike(false);
        });
        let reports = nested(lock, "b");
        drop(held);
        clock.join().unwrap();
        assert_eq!(reports + other.join().unwrap(), 1, "one report resolves it");
    });
}

/// G1, G9: a held leaf loses its place among the owned nodes to another one of its shard. The names are chosen for
/// that: `a/b`, `a/e` and `a/g` are in one shard, which has two places, and the second write of `a/g` takes that of
/// `a/b`.
#[test]
fn owned_leaf_loses_its_place_while_it_is_held() {
    model(Bounds { quick: 3, slow: Some(4) }, |lock| {
        ["a/b", "a/e"].into_iter().for_each(|leaf| own(lock, leaf));
        let cell = Protected::new();
        let held = lock.write("a/b");
        let takes_its_place = spawn(lock, |lock| (0..2).for_each(|_| drop(lock.write("a/g"))));
        let other = writer(lock, "a/b", &cell);
        cell.write();
        drop(held);
        {
            let _guard = lock.write("a/b");
            cell.write();
        }
        join_all([takes_its_place, other]);
    });
}

/// G1: a register has given up a leaf for another one, and the shard of the first leaf does not know that.
#[test]
fn owned_leaf_is_given_up_for_another() {
    model(Bounds { quick: 3, slow: None }, |lock| {
        ["a/b", "a/e", "a/c", "a/c", "a/c"].into_iter().for_each(|leaf| own(lock, leaf));
        let cells = [Protected::new(), Protected::new()];
        let others = [writer(lock, "a/b", &cells[0]), writer(lock, "a/e", &cells[1])];
        {
            let _both = lock.lock(&[], &["a/b", "a/e"]);
            cells.iter().for_each(Protected::write);
        }
        join_all(others);
    });
}

/// G3: no request is ever seen to hold what a waiter ahead of it waits for, not even while that waiter gives up.
#[test]
fn whoever_gives_up_is_not_seen_overtaken() {
    model(Bounds { quick: 3, slow: Some(4) }, |lock| {
        let held = lock.read("a");
        let timed = spawn(lock, |lock| drop(lock.try_lock_for(&[], &["a"], Duration::ZERO)));
        until_waiting(lock, 1);
        let reads = {
            let lock = Arc::clone(lock);
            thread::spawn(move || lock.read_arc("a"))
        };
        until_waiting(lock, 2);
        lock.strike(true);
        let snapshot = lock.snapshot();
        assert!(snapshot.holders.len() < 2 || snapshot.waiters.is_empty(), "{snapshot}");
        drop(reads.join().unwrap());
        drop(held);
        join_all([timed]);
    });
}

/// A waker that a thread of the model sleeps on; it counts how often it was called.
#[derive(Default)]
struct Sleeper {
    woken: Mutex<bool>,
    wakes: Condvar,
    calls: AtomicUsize,
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        *self.woken.lock().unwrap() = true;
        self.wakes.notify_one();
    }
}

impl Sleeper {
    fn poll<F: Future + Unpin>(self: &Arc<Self>, future: &mut F) -> Poll<F::Output> {
        let waker = Waker::from(Arc::clone(self));
        Pin::new(future).poll(&mut Context::from_waker(&waker))
    }

    fn sleep(&self) {
        let mut woken = self.woken.lock().unwrap();
        while !*woken {
            woken = self.wakes.wait(woken).unwrap();
        }
        *woken = false;
    }

    /// Polls a future until it is ready. A lost wake-up is a deadlock.
    fn block_on<F: Future + Unpin>(self: &Arc<Self>, mut future: F) -> F::Output {
        loop {
            if let Poll::Ready(output) = self.poll(&mut future) {
                return output;
            }
            self.sleep();
        }
    }
}

/// Runs a future to its end on this thread.
fn block_on<F: Future>(future: F) -> F::Output {
    Arc::new(Sleeper::default()).block_on(pin!(future))
}

/// A task that writes, on a thread of its own.
fn task(lock: &Arc<Lock>, path: &'static str, cell: &Protected) -> JoinHandle<()> {
    let cell = cell.clone();
    spawn(lock, move |lock| {
        let _guard = block_on(lock.write_async(path)).unwrap();
        cell.write();
    })
}

/// G1, G9: a poll against the release that grants, which comes before, between or after its steps; one wake-up at most.
#[test]
fn poll_against_grant() {
    model(Bounds { quick: 4, slow: None }, |lock| {
        let cell = Protected::new();
        let held = lock.write("a");
        let waits = {
            let cell = cell.clone();
            spawn(lock, move |lock| {
                let sleeper = Arc::new(Sleeper::default());
                let _guard = sleeper.block_on(lock.write_async("a/b")).unwrap();
                cell.write();
                assert!(sleeper.calls.load(Ordering::Relaxed) <= 1, "it was woken before it holds everything (G9)");
            })
        };
        cell.write();
        drop(held);
        join_all([waits]);
    });
}

/// G1, G3, G9: tasks and a thread in one queue.
#[test]
fn two_tasks_and_a_thread() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let cell = Protected::new();
        join_all([task(lock, "a", &cell), task(lock, "a", &cell), writer(lock, "a", &cell)]);
    });
}

/// G3: a task that waited first is served before a thread, and the other way round.
#[test]
fn a_task_and_a_thread_are_served_in_their_order() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let served = Arc::new(AtomicUsize::new(0));
        let held = lock.write("a");
        let first = {
            let served = Arc::clone(&served);
            spawn(lock, move |lock| {
                let _guard = block_on(lock.write_async("a")).unwrap();
                assert_eq!(served.fetch_add(1, Ordering::Relaxed), 0);
            })
        };
        until_waiting(lock, 1);
        let second = {
            let served = Arc::clone(&served);
            spawn(lock, move |lock| {
                let _guard = lock.read("a/b");
                assert_eq!(served.fetch_add(1, Ordering::Relaxed), 1);
            })
        };
        until_waiting(lock, 2);
        drop(held);
        join_all([first, second]);
    });
}

/// G7, G9: a future is dropped while a release grants it: whoever is behind it gets in, whether the grant or the drop
/// came first, and both come.
#[test]
fn drop_of_a_future_against_its_grant() {
    let (granted, waited) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (Arc::clone(&granted), Arc::clone(&waited));
    model(Bounds { quick: 3, slow: Some(4) }, move |lock| {
        let cell = Protected::new();
        let held = lock.write("a");
        let sleeper = Arc::new(Sleeper::default());
        let mut dropped = lock.write_arc_async("a");
        assert!(sleeper.poll(&mut dropped).is_pending());
        let behind = writer(lock, "a", &cell);
        until_waiting(lock, 2);
        let drops = {
            let counts = counts.clone();
            thread::spawn(move || {
                let calls = sleeper.calls.load(Ordering::Relaxed);
                drop(dropped);
                if calls > 0 { &counts.0 } else { &counts.1 }.fetch_add(1, Ordering::Relaxed);
            })
        };
        cell.write();
        drop(held);
        join_all([drops, behind]);
    });
    assert!(granted.load(Ordering::Relaxed) > 0 && waited.load(Ordering::Relaxed) > 0, "both must be explored");
}

/// G7, G9: a future is dropped while a release walks its request on to a second queue; the reader behind it there gets in.
#[test]
fn drop_of_a_future_against_walking_on() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let (outer, inner) = (lock.write("a"), lock.read("a/b"));
        let mut dropped = lock.write_arc_async("a/b");
        assert!(Arc::new(Sleeper::default()).poll(&mut dropped).is_pending());
        let behind = spawn(lock, |lock| drop(lock.read("a/b")));
        until_waiting(lock, 2);
        let drops = thread::spawn(move || drop(dropped));
        drop(outer);
        join_all([drops, behind]);
        // Kept until here: no later wake-up hides a lost one.
        drop(inner);
    });
}

/// G9: the latest waker is called, however its arrival meets the grant.
#[test]
fn a_waker_is_replaced_against_the_grant() {
    model(Bounds { quick: 4, slow: None }, |lock| {
        let held = lock.lock_arc(&[], &["a"]);
        let old = Arc::new(Sleeper::default());
        let mut write = lock.write_async("a");
        assert!(old.poll(&mut write).is_pending());
        let releases = thread::spawn(move || drop(held));
        let _guard = Arc::new(Sleeper::default()).block_on(&mut write).unwrap();
        join_all([releases]);
    });
}

/// G9: two wake-ups by one release, of a task and of a thread.
#[test]
fn release_wakes_a_task_and_a_thread() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let held = lock.write("a");
        let first = spawn(lock, |lock| block_on(lock.read_arc_async("a")).unwrap());
        let second = spawn(lock, |lock| lock.read_arc("a"));
        until_waiting(lock, 2);
        drop(held);
        // Both read before either releases.
        let guards = (first.join().unwrap(), second.join().unwrap());
        drop(guards);
    });
}

/// G9: no internal lock is held where a waker is called, so it may lock; and it may wait for a thread that the same release
/// has let in, so that is woken first.
#[test]
fn a_waker_locks_while_others_do() {
    struct Locks(Arc<Lock>);
    impl Wake for Locks {
        fn wake(self: Arc<Self>) {
            drop(self.0.read("b"));
            drop(self.0.snapshot());
        }
    }
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let held = lock.lock(&[], &["a", "b"]);
        let waker = Waker::from(Arc::new(Locks(Arc::clone(lock))));
        let mut read = lock.read_arc_async("a");
        assert!(Pin::new(&mut read).poll(&mut Context::from_waker(&waker)).is_pending());
        drop(waker);
        let other = spawn(lock, |lock| drop(lock.write("b")));
        drop(held);
        join_all([other]);
        assert!(Arc::new(Sleeper::default()).poll(&mut read).is_ready(), "it has been granted");
    });
}

/// A future that waits for `a/b`, below what is held, and whose waker locks `a/c`.
fn waits_with_a_waker_that_locks(
    lock: &Arc<Lock>,
) -> impl Future<Output = Result<ArcTreeLockGuard<str>, LockError>> + Unpin + use<> {
    struct Locks(Arc<Lock>);
    impl Wake for Locks {
        fn wake(self: Arc<Self>) {
            drop(self.0.read("a/c"));
        }
    }
    let waker = Waker::from(Arc::new(Locks(Arc::clone(lock))));
    let mut ahead = lock.write_arc_async("a/b");
    assert!(Pin::new(&mut ahead).poll(&mut Context::from_waker(&waker)).is_pending());
    ahead
}

/// G9: a thread that walks a request on before its own, which it is behind, calls the waker when its own is granted: that may ask
/// for what it has just taken.
#[test]
fn a_waker_asks_for_what_the_thread_behind_takes() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let held = lock.write("a");
        let mut ahead = waits_with_a_waker_that_locks(lock);
        let behind = spawn(lock, |lock| drop(lock.write("a/c")));
        drop(held);
        join_all([behind]);
        assert!(Arc::new(Sleeper::default()).poll(&mut ahead).is_ready(), "it has been granted");
    });
}

/// G7: a future that is dropped, and is granted meanwhile, releases before the waker of the one that it has walked on is called.
#[test]
fn a_waker_asks_for_what_a_dropped_future_was_granted() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let held = lock.write("a");
        let mut ahead = waits_with_a_waker_that_locks(lock);
        let mut dropped = lock.write_arc_async("a/c");
        assert!(Arc::new(Sleeper::default()).poll(&mut dropped).is_pending());
        let drops = thread::spawn(move || drop(dropped));
        drop(held);
        join_all([drops]);
        assert!(Arc::new(Sleeper::default()).poll(&mut ahead).is_ready(), "it has been granted");
    });
}

/// G2: of two owners that nest in tasks and are in a deadlock, one gets the report and the other goes on.
#[test]
fn deadlock_of_tasks_is_reported_to_one() {
    one_of_two_owners_is_told(|owner, wanted| block_on(owner.lock_async(&[], &[wanted])));
}

/// G2: a look for deadlocks reports nothing to a task while the release that ends its wait is on its way; and the thread
/// that polls it is not taken for blocked.
#[test]
fn look_of_a_task_against_release() {
    model(Bounds { quick: 2, slow: Some(3) }, |lock| {
        let held = lock.write("a");
        let nests = spawn(lock, |lock| {
            let mut owner = lock.owner();
            let _own = owner.lock(&[], &["b"]).unwrap();
            let _guard = block_on(owner.lock_async(&[], &["a"])).expect("nobody waits for it");
        });
        until_waiting(lock, 1);
        let clock = spawn(lock, |lock| lock.strike(false));
        drop(held);
        join_all([nests, clock]);
    });
}
