//! Deadlines are kept (G10), and a refused request leaves nothing behind (G7).
#![cfg(not(feature = "model"))]

mod common;

use common::{LIMIT, Other, Paths, admits, assert_free, join, join_all, spawn, wait_until, wait_until_waiting};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use treelock::{LockError, TreeLock};

/// Long enough for later requests to queue behind, on most machines at most times.
const WHILE: Duration = Duration::from_millis(200);

/// A thread that asks with a deadline, and is refused when it has passed.
fn times_out(lock: &Arc<TreeLock>, reads: Paths, writes: Paths) -> thread::JoinHandle<()> {
    let own = Arc::clone(lock);
    let thread = spawn("times out", move || {
        let refused = own.try_lock_for(reads, writes, WHILE);
        assert!(matches!(refused, Err(LockError::TimedOut)), "{refused:?}");
    });
    wait_until("it waits, or has waited", || {
        thread.is_finished() || lock.snapshot().waiters.iter().any(|waiter| waiter.thread == "times out")
    });
    thread
}

/// G7, G9: the readers behind it never conflicted with the reader that holds.
#[test]
fn a_writer_that_times_out_lets_in_the_readers_behind_it() {
    let lock = common::new();
    let _held = lock.read("a");
    let writer = times_out(&lock, &[], &["a"]);
    let readers = [Other::asks(&lock, &["a"], &[]), Other::asks(&lock, &["a/b"], &[])];
    join(writer);
    readers.into_iter().for_each(Other::releases);
    assert!(admits(&lock, &["a"], &[]));
}

/// G7, G9: the same where it waited for a part of the sub-tree.
#[test]
fn a_writer_below_that_times_out_lets_in_the_readers_behind_it() {
    let lock = common::new();
    let _held = lock.read("a");
    let writer = times_out(&lock, &[], &["a/b/c"]);
    let reader = Other::asks(&lock, &["a"], &[]);
    join(writer);
    reader.releases();
    assert!(admits(&lock, &["a/b/c"], &["b"]));
}

/// G7, G9.
#[test]
fn an_upgrade_that_times_out_lets_in_the_readers_behind_it_and_keeps_its_read() {
    let lock = common::new();
    let held = lock.read("a");
    let upgrading = spawn("upgrading", {
        let lock = Arc::clone(&lock);
        move || {
            let read = lock.read("a");
            let (own, over) = (Arc::clone(&lock), Arc::new(AtomicBool::new(false)));
            let told = Arc::clone(&over);
            let reader = spawn("reader", move || {
                wait_until("the upgrade waits, or has waited", || {
                    own.snapshot().waiters.len() == 1 || told.load(Ordering::SeqCst)
                });
                drop(own.read("a"));
            });
            let refused = lock.try_lock_for(&[], &["a"], WHILE);
            over.store(true, Ordering::SeqCst);
            assert!(matches!(refused, Err(LockError::TimedOut)), "{refused:?}");
            join(reader);
            assert!(!admits(&lock, &[], &["a"]));
            drop(read);
        }
    });
    join(upgrading);
    assert!(admits(&lock, &["a"], &[]));
    drop(held);
    assert_free(&lock, "".as_ref());
}

/// G7: the request has taken `c` and `d`, and waits two levels down.
#[test]
fn a_request_of_several_roots_that_times_out_half_way_gives_everything_back() {
    let lock = common::new();
    let held = lock.write("a/b");
    let request = times_out(&lock, &["d"], &["c", "a/b/x"]);
    let behind = [
        Other::asks(&lock, &["c"], &[]),
        Other::asks(&lock, &[], &["d/e"]),
        Other::asks(&lock, &[], &["a/c"]),
        Other::asks(&lock, &[], &["e"]),
    ];
    join(request);
    behind.into_iter().for_each(Other::releases);
    assert!(admits(&lock, &["a/c"], &["c", "d", "e"]) && !admits(&lock, &["a/b/x"], &[]));
    drop(held);
    assert_free(&lock, "".as_ref());
}

/// G7.
#[test]
fn a_refused_try_leaves_nothing() {
    let lock = common::new();
    let held = lock.write("a/b");
    let cases: [(Paths, Paths); 4] =
        [(&["c"], &["a/b"]), (&["a", "c/d"], &["d"]), (&[], &["", "c"]), (&["a/b/c/d"], &["c", "a/c"])];
    for (reads, writes) in cases {
        assert!(matches!(lock.try_lock_arc(reads, writes), Err(LockError::WouldBlock)));
        assert_eq!(lock.snapshot().holders.len(), 1);
        assert!(admits(&lock, &[], &["a/c", "c", "d"]), "after {reads:?}, {writes:?}");
    }
    drop(held);
    assert_free(&lock, "".as_ref());
}

/// A method for one path refuses as that for a list of one path does, in either form.
#[test]
fn one_path_is_tried_without_a_list() {
    let lock = common::new();
    let held = lock.lock_arc(&["r"], &["w"]);
    let soon = Duration::from_millis(5);
    fn told<G>(answer: Result<G, LockError>) -> String {
        answer.err().map_or("granted".into(), |error| format!("{error:?}"))
    }
    for (path, read, write) in [("r/x", true, false), ("w/x", false, false), ("x", true, true)] {
        let expected = |granted, error: &str| if granted { "granted".into() } else { error.to_owned() };
        let (reads, writes) = (expected(read, "WouldBlock"), expected(write, "WouldBlock"));
        assert_eq!([told(lock.try_read(path)), told(lock.try_read_arc(path))], [&*reads; 2], "{path}");
        assert_eq!([told(lock.try_write(path)), told(lock.try_write_arc(path))], [&*writes; 2], "{path}");
        let (reads, writes) = (expected(read, "TimedOut"), expected(write, "TimedOut"));
        assert_eq!([told(lock.try_read_for(path, soon)), told(lock.try_read_arc_for(path, soon))], [&*reads; 2]);
        assert_eq!([told(lock.try_write_for(path, soon)), told(lock.try_write_arc_for(path, soon))], [&*writes; 2]);
    }
    drop(held);
    assert_free(&lock, "".as_ref());
}

/// G7, G9: a request holds `a` for a moment, and a request that begins to wait for `a` in that moment is woken.
#[test]
fn a_refused_try_wakes_who_waited_behind_what_it_had_taken() {
    let lock = common::new();
    let _held = lock.write("x/y/z");
    let stop = Arc::new(AtomicBool::new(false));
    let trying = spawn("trying", {
        let (lock, stop) = (Arc::clone(&lock), Arc::clone(&stop));
        move || {
            while !stop.load(Ordering::Relaxed) {
                assert!(lock.try_lock(&["a"], &["b", "x/y/z"]).is_err());
                assert!(lock.try_lock_for(&["a"], &["b", "x/y/z"], Duration::from_micros(50)).is_err());
            }
        }
    });
    for _ in 0..500 {
        drop(lock.try_lock_for(&["b"], &["a"], LIMIT).expect("a wake-up is lost"));
    }
    stop.store(true, Ordering::Relaxed);
    join(trying);
    assert!(admits(&lock, &[], &["a", "b"]));
}

/// G7, G10: deadlines that pass just when the grant comes: whichever wins, nothing is left behind, and no waiter is
/// forgotten.
#[test]
fn deadlines_that_race_with_grants_leave_nothing() {
    let lock = common::new();
    let threads = (0..4u64).map(|number| {
        let lock = Arc::clone(&lock);
        spawn("racing", move || {
            let mut granted = 0;
            for round in 0..300 {
                let timeout = Duration::from_micros((round * 7 + number * 13) % 120);
                let path = ["a", "a/b", ""][(round + number) as usize % 3];
                match lock.try_lock_for(&["r"], &[path], timeout) {
                    Ok(_guard) => granted += 1,
                    Err(LockError::TimedOut) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            granted
        })
    });
    assert!(join_all(threads).iter().sum::<i32>() > 0);
    assert_free(&lock, "".as_ref());
}

/// G10: a refusal comes soon after the deadline, and not before.
#[test]
fn deadlines_are_kept_however_long_the_queue() {
    let lock = common::new();
    let held = lock.write("a");
    let queue = (0..60u64).map(|number| {
        let lock = Arc::clone(&lock);
        spawn("queued", move || {
            let (start, timeout) = (Instant::now(), Duration::from_millis(20 + number * 5));
            let refused = match number % 3 {
                0 => lock.try_lock_for(&[], &["a"], timeout).err(),
                1 => lock.try_lock_until(&["a/b"], &["c"], start + timeout).err(),
                _ => lock.try_lock_arc_for(&["a"], &[], timeout).err(),
            };
            (refused, start.elapsed(), timeout)
        })
    });
    for (refused, waited, timeout) in join_all(queue) {
        assert!(matches!(refused, Some(LockError::TimedOut)), "{refused:?}");
        assert!(waited >= timeout, "{waited:?} for {timeout:?}");
        // The machine may be busy; but a lock that forgets a deadline is later than this.
        assert!(waited < timeout + Duration::from_secs(5), "{waited:?} for {timeout:?}");
    }
    assert!(lock.snapshot().waiters.is_empty());
    drop(held);
    assert_free(&lock, "".as_ref());
}

/// G10: a timeout of zero is enough for what is free, and refuses at once what is not.
#[test]
fn a_deadline_that_has_passed_still_grants_what_is_free() {
    let lock = common::new();
    let past = Instant::now();
    for (path, free) in [("a", false), ("b", true)] {
        let _held = lock.write_arc("a");
        assert_eq!(lock.try_lock_for(&[], &[path], Duration::ZERO).is_ok(), free);
        assert_eq!(lock.try_lock_until(&[path], &[], past).is_ok(), free);
        assert_eq!(lock.try_lock_arc_for(&[path], &[], Duration::ZERO).is_ok(), free);
        assert_eq!(lock.try_lock_arc_until(&[], &[path], past).is_ok(), free);
    }
    assert_free(&lock, "".as_ref());
}

/// G10: a timeout beyond what the clock can represent means for ever.
#[test]
fn the_longest_timeout_waits_until_it_is_granted() {
    let lock = common::new();
    let held = lock.write_arc("a");
    let waiting = spawn("waiting", {
        let lock = Arc::clone(&lock);
        move || lock.try_lock_for(&["a"], &[], Duration::MAX).map(drop)
    });
    wait_until_waiting(&lock, 1);
    drop(held);
    assert!(join(waiting).is_ok());
}

/// The longest time that it takes, while `count` requests wait, to lock something unrelated, to be refused after 5
/// ms, and to be served after a release.
fn longest_beside_a_queue(length: usize, enter: impl Fn(&TreeLock, usize) + Send + Copy + 'static) -> [Duration; 3] {
    let lock = common::new();
    let held = lock.write("a");
    let mut queue = Vec::new();
    for number in 0..length {
        let lock = Arc::clone(&lock);
        queue.push(thread::Builder::new().stack_size(128 * 1024).spawn(move || enter(&lock, number)).unwrap());
    }
    let mut longest = [Duration::ZERO; 2];
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        let asked = Instant::now();
        drop(lock.write("elsewhere"));
        longest[0] = longest[0].max(asked.elapsed());
        let asked = Instant::now();
        drop(lock.try_lock_arc_for(&["a"], &[], Duration::from_millis(5)).unwrap_err());
        longest[1] = longest[1].max(asked.elapsed());
    }
    let released = Instant::now();
    drop(held);
    join_all(queue);
    [longest[0], longest[1], released.elapsed()]
}

/// Generous, since the machine may be busy with all those threads.
const SOON: Duration = Duration::from_secs(3);

/// G4, G5, G10: a long queue costs nothing elsewhere, and its own deadlines are kept.
#[test]
fn a_long_queue_holds_up_nobody_elsewhere() {
    let longest = longest_beside_a_queue(1000, |lock, _| drop(lock.write("a")));
    assert!(longest.iter().all(|longest| *longest < SOON), "{longest:?}");
}

/// G4, G5, G10: the same if all waiters hold something already, so that they look for deadlocks.
#[test]
fn a_long_queue_of_nested_requests_holds_up_nobody_elsewhere() {
    let longest = longest_beside_a_queue(600, |lock, number| {
        let _own = lock.write(format!("own/{number}"));
        drop(lock.write("a"));
    });
    assert!(longest.iter().all(|longest| *longest < SOON), "{longest:?}");
}
