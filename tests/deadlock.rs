//! A cycle is reported to one of the requests in it, and nothing else is reported (G2).
#![cfg(not(feature = "model"))]

mod common;

use common::{
    LIMIT, Other, Party, Paths, admits, join, join_all, only_report, panic_message, report_of, spawn,
    wait_until_waiting,
};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};
use treelock::{Deadlock, LockError, TreeLock};

/// A wait of this length is long: the request has looked for a deadlock several times.
const LONG: Duration = Duration::from_millis(300);

/// What a request names: reads and writes.
type Ask = (Paths, Paths);

/// Takes `first`, waits until all threads have theirs, and asks for `second`; returns the report, if it gets one.
fn nested(lock: &Arc<TreeLock>, together: &Arc<Barrier>, name: &str, first: Ask, second: Ask) -> Party {
    let (lock, together) = (Arc::clone(lock), Arc::clone(together));
    spawn(name, move || {
        let _first = lock.lock(first.0, first.1);
        together.wait();
        report_of(lock.try_lock_for(second.0, second.1, LIMIT))
    })
}

/// The threads of a report, beginning with the first in the alphabet.
fn threads(report: &Deadlock) -> Vec<&str> {
    let mut threads: Vec<&str> = report.parties.iter().map(|party| &*party.waits.thread).collect();
    let first = (0..threads.len()).min_by_key(|&index| threads[index]).unwrap();
    threads.rotate_left(first);
    threads
}

/// G2: a thread may also wait for itself by way of another request in the queue.
#[test]
fn a_thread_that_waits_behind_a_writer_that_waits_for_it_is_told_so() {
    let lock = common::new();
    let held = lock.read("a");
    let writer = Other::waits(&lock, &[], &["a"]);
    let refused = lock.try_lock_arc_for(&["a"], &[], LIMIT);
    let Err(LockError::Deadlock(report)) = refused else { panic!("{refused:?}") };
    assert_eq!(report.parties.len(), 2, "{report}");
    drop(held);
    writer.releases();
}

/// G2.
#[test]
fn two_threads_that_wait_for_each_other_are_reported_to_one_of_them() {
    let lock = common::new();
    let together = Arc::new(Barrier::new(2));
    let report = only_report([
        nested(&lock, &together, "left", (&[], &["a"]), (&[], &["b"])),
        nested(&lock, &together, "right", (&[], &["b"]), (&["a/x"], &[])),
    ]);
    assert_eq!(threads(&report), ["left", "right"]);
    common::assert_free(&lock, "".as_ref());
}

/// G2.
#[test]
fn longer_cycles_are_reported_whole() {
    let paths: [Paths; 4] = [&["a"], &["b"], &["c"], &["d"]];
    let names = ["t0", "t1", "t2", "t3"];
    for length in [3, 4] {
        let lock = common::new();
        let together = Arc::new(Barrier::new(length));
        let report = only_report((0..length).map(|number| {
            nested(&lock, &together, names[number], (&[], paths[number]), (&[], paths[(number + 1) % length]))
        }));
        assert_eq!(threads(&report), names[..length], "each stands behind the one it waits for");
        assert!(report.to_string().starts_with(&format!("deadlock of {length} threads:")), "{report}");
        common::assert_free(&lock, "".as_ref());
    }
}

/// G2: two readers of one node, each of which wants to write it.
#[test]
fn two_upgrades_of_one_node_are_reported_to_one_of_them() {
    let lock = common::new();
    let together = Arc::new(Barrier::new(2));
    let report = only_report([
        nested(&lock, &together, "left", (&["a"], &[]), (&[], &["a"])),
        nested(&lock, &together, "right", (&["a"], &[]), (&[], &["a/b"])),
    ]);
    assert_eq!(threads(&report), ["left", "right"]);
}

/// G2: each of two threads is in a cycle with a third one; two reports are needed, and no more are given.
#[test]
fn as_many_are_reported_as_must_give_up() {
    let lock = common::new();
    let together = Arc::new(Barrier::new(3));
    let parties = ["t0", "t1", "t2"].map(|name| nested(&lock, &together, name, (&["a"], &[]), (&[], &["a"])));
    assert_eq!(join_all(parties).iter().flatten().count(), 2);
    common::assert_free(&lock, "".as_ref());
}

/// G2: a cycle may go through a queue: a request behind another one waits for what that one waits for.
#[test]
fn a_cycle_through_a_place_in_the_queue_is_reported() {
    let lock = common::new();
    let together = Arc::new(Barrier::new(2));
    let (asked, wait) = mpsc::channel::<()>();
    // Holds `a` shared, and wants `b` when the other two wait.
    let reader = spawn("reader", {
        let (lock, together) = (Arc::clone(&lock), Arc::clone(&together));
        move || {
            let _first = lock.read("a");
            together.wait();
            wait.recv().unwrap();
            lock.try_lock_for(&["b"], &[], LIMIT).err()
        }
    });
    // Holds `b`, and wants `a` shared: it could share with the reader, but does not pass the writer.
    let other = spawn("other", {
        let (lock, together) = (Arc::clone(&lock), Arc::clone(&together));
        move || {
            let _first = lock.write("b");
            together.wait();
            wait_until_waiting(&lock, 1);
            lock.try_lock_for(&["a"], &[], LIMIT).err()
        }
    });
    common::wait_until("both hold", || lock.snapshot().holders.len() == 2);
    let writer = Other::waits(&lock, &[], &["a"]);
    wait_until_waiting(&lock, 2);
    asked.send(()).unwrap();
    // The third one is granted when one of the two has got the report and has released.
    writer.releases();
    let reports = [join(reader), join(other)];
    let Some(LockError::Deadlock(report)) = reports.iter().flatten().next() else { panic!("{reports:?}") };
    assert_eq!(reports.iter().flatten().count(), 1);
    assert_eq!(report.parties.len(), 3, "{report}");
    common::assert_free(&lock, "".as_ref());
}

/// G2: a request that waits half way holds something too.
#[test]
fn a_cycle_through_a_request_that_waits_half_way_is_reported() {
    let lock = common::new();
    let deep = lock.write("x/y");
    let (refused, half_way) = common::refused_by_one_half_way(&lock);
    let LockError::Deadlock(report) = refused else { panic!("{refused:?}") };
    let me = std::thread::current().name().unwrap().to_owned();
    let parties: Vec<&str> = report.parties.iter().map(|party| &*party.waits.thread).collect();
    assert_eq!(parties, [&me, "half-way"]);
    assert!(!admits(&lock, &["a"], &[]), "the other still has it");
    drop(deep);
    join(half_way);
    common::assert_free(&lock, "".as_ref());
}

/// G2: all requests but one return `Ok`, and the refused one keeps what its thread held before.
#[test]
fn the_others_go_on_when_the_one_that_was_told_lets_go() {
    let lock = common::new();
    let right = spawn("right", {
        let lock = Arc::clone(&lock);
        move || {
            let _b = lock.write("b");
            wait_until_waiting(&lock, 1);
            // This one takes no refusal, so the report goes to the other.
            let _a = lock.write("a");
        }
    });
    let a = lock.write("a");
    common::wait_until("b is held", || lock.snapshot().holders.len() == 2);
    let refused = lock.try_lock_for(&[], &["b"], LIMIT);
    assert!(matches!(refused, Err(LockError::Deadlock(_))), "{refused:?}");
    assert!(!admits(&lock, &["a"], &[]), "its guard is as it was");
    wait_until_waiting(&lock, 1);
    drop(a);
    join(right);
    common::assert_free(&lock, "".as_ref());
}

/// G2: a call of `lock` can only panic, so the report goes to the request that takes errors, whichever came last.
#[test]
fn the_error_goes_to_who_takes_errors() {
    for errors_first in [true, false] {
        let lock = common::new();
        let together = Arc::new(Barrier::new(2));
        let panics = spawn("panics", {
            let (lock, together) = (Arc::clone(&lock), Arc::clone(&together));
            move || {
                let _b = lock.write("b");
                together.wait();
                wait_until_waiting(&lock, usize::from(errors_first));
                drop(lock.write("a"));
            }
        });
        let a = lock.write("a");
        together.wait();
        wait_until_waiting(&lock, usize::from(!errors_first));
        let refused = lock.try_lock_for(&[], &["b"], LIMIT);
        assert!(matches!(refused, Err(LockError::Deadlock(_))), "{refused:?}");
        drop(a);
        join(panics);
    }
}

/// G2, G7: the refused request has left nothing behind, and those behind it in the queue have gone on.
#[test]
fn a_reported_request_leaves_nothing_behind() {
    let lock = common::new();
    let held = lock.write("a/x");
    let (own, ready) = (Arc::clone(&lock), Arc::new(Barrier::new(2)));
    let reported = spawn("reported", {
        let ready = Arc::clone(&ready);
        move || {
            let _z = own.write("z");
            ready.wait();
            // It takes `c` and `d`, which are nearer to the root, before it comes to `a/x`.
            own.try_lock_for(&["d"], &["c", "a/x"], LIMIT).err()
        }
    });
    ready.wait();
    wait_until_waiting(&lock, 1);
    assert!(!admits(&lock, &["c"], &[]) && !admits(&lock, &[], &["d"]));
    let behind = Other::waits(&lock, &["c"], &[]);
    drop(lock.write("z/y"));
    assert!(matches!(join(reported), Some(LockError::Deadlock(_))));
    behind.releases();
    assert!(admits(&lock, &["c"], &["d"]));
    drop(held);
}

/// G2: no false report, neither in the queue behind a long holder nor to a thread that holds guards meanwhile.
#[test]
fn a_wait_that_is_merely_long_is_not_reported() {
    let lock = common::new();
    let (done, never) = mpsc::channel::<()>();
    let holder = Other::holds(&lock, &[], &["a"]);
    // A chain: each thread holds something, and waits for the one before.
    let mut chain = Vec::new();
    for (own, next) in [("b", "a"), ("c", "b"), ("d", "c")] {
        let lock_here = Arc::clone(&lock);
        chain.push(spawn(own, move || {
            let _own = lock_here.write(own);
            drop(lock_here.lock(&[next], &[]));
        }));
        wait_until_waiting(&lock, chain.len());
    }
    let start = Instant::now();
    let refused = lock.try_lock_for(&["d"], &["a/b"], LONG);
    assert!(matches!(refused, Err(LockError::TimedOut)), "{refused:?}");
    assert!(start.elapsed() >= LONG);
    assert_eq!(never.recv_timeout(LONG), Err(RecvTimeoutError::Timeout));
    drop(done);
    assert_eq!(lock.snapshot().waiters.len(), 3);
    holder.releases();
    join_all(chain);
}

/// G2: any thread may drop an `Arc` guard, so a wait for one is not part of a cycle; it ends when a thread drops the
/// guard.
#[test]
fn a_wait_for_an_arc_guard_is_not_reported() {
    let lock = common::new();
    let a = lock.lock_arc(&[], &["a"]);
    let _b = lock.write("b");
    let other = spawn("other", {
        let lock = Arc::clone(&lock);
        move || {
            let _c = lock.write("c");
            drop(lock.write("a"));
        }
    });
    wait_until_waiting(&lock, 1);
    // It would be a cycle if `a` were a plain guard of this thread.
    let refused = lock.try_lock_for(&["c"], &[], LONG);
    assert!(matches!(refused, Err(LockError::TimedOut)), "{refused:?}");
    let dropped = spawn("dropping", move || drop(a));
    drop(lock.lock(&["c"], &[]));
    join(dropped);
    join(other);
}

/// G2: a deadline that passes before the report is a time-out like any other.
#[test]
fn a_short_deadline_in_a_cycle_times_out() {
    let lock = common::new();
    let _held = lock.write("a");
    let refused = lock.try_lock_arc_for(&["a"], &[], Duration::ZERO);
    assert!(matches!(refused, Err(LockError::TimedOut)), "{refused:?}");
}

/// G2: a request in a cycle gets the report too if it has no deadline because the clock cannot represent it.
#[test]
fn a_request_with_an_endless_deadline_is_reported() {
    let lock = common::new();
    let _held = lock.write("a");
    let refused = lock.try_lock_arc_for(&["a"], &[], Duration::MAX);
    assert!(matches!(refused, Err(LockError::Deadlock(_))), "{refused:?}");
}

/// G2: owners that each hold one guard at most always make progress, whatever they ask for.
#[test]
fn requests_that_are_not_nested_are_never_reported() {
    let lock = common::new();
    let paths = ["a", "a/b", "b", "b/c/d", "c", "d/e"];
    let threads = (0..4).map(|number: usize| {
        let lock = Arc::clone(&lock);
        spawn("single", move || {
            for round in 0..200 {
                // In every order, for reading and for writing.
                let at = |step: usize| paths[(round * (number + 1) + step * (number + 2)) % paths.len()];
                drop(lock.lock(&[at(0), at(1)], &[at(2), at(3)]));
            }
        })
    });
    join_all(threads);
}

/// G2: nested requests in every order never hang: each ends in a grant or a report, and none runs out of time.
#[test]
fn nested_requests_of_many_threads_end_in_a_grant_or_a_report() {
    let lock = common::new();
    let paths = ["a", "b", "a/b", "c"];
    let threads = (0..4).map(|number: usize| {
        let lock = Arc::clone(&lock);
        spawn("nested", move || {
            for round in 0..12 {
                let at = |step: usize| paths[(round * (number + 1) + step * (number + 3)) % paths.len()];
                let Ok(_first) = lock.try_lock_for(&[], &[at(0)], LIMIT) else { continue };
                match lock.try_lock_for(&[at(1)], &[at(2)], LIMIT) {
                    Ok(_) | Err(LockError::Deadlock(_)) => {}
                    Err(error) => panic!("{error}\n{}", lock.snapshot()),
                }
            }
        })
    });
    join_all(threads);
    common::assert_free(&lock, "".as_ref());
}

/// G2: a thread that takes everything in one request never gets the report, though it may be the first to complete
/// the cycle.
#[test]
fn a_request_that_is_not_nested_is_never_reported() {
    let lock = common::new();
    let first = Other::holds(&lock, &[], &["p/q"]);
    let (nested, one_request) = (Arc::clone(&lock), Arc::clone(&lock));
    // Takes `a`, waits for `p/q`, and then for `x/y/z`.
    let one_request = spawn("one request", move || drop(one_request.lock(&[], &["a", "p/q", "x/y/z"])));
    wait_until_waiting(&lock, 1);
    let nested = spawn("nested", move || {
        let _deep = nested.write("x/y/z");
        let refused = nested.try_lock_for(&[], &["b"], LONG);
        assert!(refused.is_ok());
        panic_message(|| drop(nested.write("a")))
    });
    wait_until_waiting(&lock, 2);
    // The nested request has waited for long, and rarely looks for a deadlock; the other one enters the cycle only
    // now.
    let (_open, never) = mpsc::channel::<()>();
    assert!(never.recv_timeout(LONG / 2).is_err());
    first.releases();
    join(one_request);
    assert!(join(nested).contains("deadlock of 2 threads"));
}

/// G2: the report goes to the request with the guard, even if the other one has a far deadline.
#[test]
fn a_cycle_is_reported_although_one_in_it_has_a_deadline() {
    let lock = common::new();
    let deep = lock.write("x/y");
    let one_request = spawn("one request", {
        let lock = Arc::clone(&lock);
        move || lock.try_lock_for(&[], &["a", "x/y"], Duration::from_secs(10)).map(drop)
    });
    wait_until_waiting(&lock, 1);
    let asked = Instant::now();
    let message = std::panic::catch_unwind(|| drop(lock.write("a"))).err();
    let blocked_for = asked.elapsed();
    drop(deep);
    assert!(
        message.is_some(),
        "nobody was told, and after {blocked_for:?} the other gave up: {:?}",
        join(one_request)
    );
    assert!(join(one_request).is_ok());
}

/// G2: "after some 20 ms", says the documentation.
#[test]
fn a_cycle_is_reported_soon_although_one_in_it_has_waited_for_long() {
    let lock = common::new();
    let (go, wait) = mpsc::channel::<()>();
    let late = spawn("late", {
        let lock = Arc::clone(&lock);
        move || {
            let _b = lock.write("b");
            wait.recv().unwrap();
            let asked = Instant::now();
            drop(lock.write("a"));
            asked.elapsed()
        }
    });
    common::wait_until("b is held", || lock.snapshot().holders.len() == 1);
    let early = spawn("early", {
        let lock = Arc::clone(&lock);
        move || {
            let _a = lock.write("a");
            drop(lock.try_lock_for(&[], &["b"], LIMIT).unwrap_err());
        }
    });
    wait_until_waiting(&lock, 1);
    // After such a long wait, the next look would be late if the intervals doubled without a limit.
    let (_open, never) = mpsc::channel::<()>();
    assert!(never.recv_timeout(Duration::from_millis(1400)).is_err());
    go.send(()).unwrap();
    let blocked_for = join(late);
    join(early);
    // The machine may be busy; but with intervals that double, the look would be later than this.
    assert!(blocked_for < Duration::from_millis(800), "{blocked_for:?} until a report");
}
