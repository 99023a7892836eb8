//! Exclusion between processes, owners, and refused requests (G1, G4, G7, G8).

use super::agent::{Agent, Home, number};
use crate::common::wait_until;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;
use treelock::process::{ProcessLockError, ProcessTreeLock};

/// What one process holds, what another asks for, and whether it is granted.
const PAIRS: [(&str, &str, bool); 16] = [
    ("r:a", "r:a", true),
    ("r:a", "w:a", false),
    ("w:a", "r:a", false),
    ("w:a", "w:a", false),
    ("w:a", "w:b", true),
    ("w:a/b", "w:a/c", true),
    ("w:a/b", "r:a", false),
    ("w:a/b", "w:a/b/c", false),
    ("r:a/b", "w:a", false),
    ("r:a/b", "r:a/b/c", true),
    ("w:a/b", "r:.", false),
    ("r:.", "r:a/b", true),
    ("r:.", "w:a/b", false),
    // A read with a write below: a lock that keeps only one of the two modes would admit the reader.
    ("r:a w:a/b", "r:a", false),
    ("r:a w:a/b", "r:a/c", true),
    ("w:a//b/./x/..", "w:a/b", false),
];

/// No other owner is granted this, neither another process nor another thread of this one.
fn admits(lock: &ProcessTreeLock, reads: &[&str], writes: &[&str]) -> bool {
    match lock.try_lock_arc(reads, writes) {
        Ok(_) => true,
        Err(ProcessLockError::WouldBlock) => false,
        Err(error) => panic!("{error}"),
    }
}

/// G1, G4.
#[test]
fn overlapping_sub_trees_exclude_processes_and_others_do_not() {
    let home = Home::new();
    let (mut one, mut other) = (Agent::new(&home), Agent::new(&home));
    for (held, asked, granted) in PAIRS {
        one.does(&format!("try 1 {held}"));
        match granted {
            true => drop(other.does(&format!("try 2 {asked}"))),
            false => drop(other.is_refused(&format!("try 2 {asked}"), "WouldBlock")),
        }
        one.does("drop 1");
        match granted {
            true => drop(other.does("drop 2")),
            false => drop(other.does(&format!("try 2 {asked}"))),
        }
        if !granted {
            other.does("drop 2");
        }
    }
}

/// G1: a process that opens the lock twice has two locks, which exclude each other.
#[test]
fn two_opens_in_one_process_exclude_each_other() {
    let home = Home::new();
    let (one, other) = (home.open(), home.open());
    let guard = one.write("a").unwrap();
    assert!(!admits(&other, &["a/b"], &[]));
    assert!(matches!(other.try_lock(&["a"], &[]), Err(ProcessLockError::WouldBlock)));
    assert!(admits(&other, &[], &["b"]));
    drop(guard);
    assert!(admits(&other, &[], &["."]));
}

/// G1: processes that open the lock at the same moment, where none was before, share one lock.
#[test]
fn first_openings_at_one_moment_open_one_lock() {
    for round in 0..50 {
        let home = Home::new();
        let start = Barrier::new(6);
        thread::scope(|scope| {
            let open = || {
                start.wait();
                let lock = home.open();
                // None leaves before all have come; otherwise later ones would begin anew.
                start.wait();
                let granted = lock.try_lock_arc(&[], &["a"]);
                start.wait();
                granted.is_ok()
            };
            let opened: Vec<_> = (0..6).map(|_| scope.spawn(open)).collect();
            let granted = opened.into_iter().map(|opened| opened.join().unwrap());
            assert_eq!(granted.filter(|&granted| granted).count(), 1, "round {round}");
        });
    }
}

/// G4: a thread's own guards never block it, even if a writer of another process waits.
#[test]
fn nested_read_goes_past_a_waiting_writer_of_another_process() {
    let home = Home::new();
    let lock = home.open();
    let mut writer = Agent::new(&home);
    let outer = lock.read("a").unwrap();
    writer.waits("lock 1 w:a", &lock);
    let inner = lock.read("a/b").unwrap();
    thread::scope(|scope| {
        let other = scope.spawn(|| lock.try_lock(&["a/b"], &[]).map(drop));
        assert!(
            matches!(other.join().unwrap(), Err(ProcessLockError::WouldBlock)),
            "another thread is another owner"
        );
    });
    drop(outer);
    assert_eq!(writer.answer_so_far(), None, "the inner guard protects a/b");
    assert!(!admits(&lock, &[], &["a/b"]));
    drop(inner);
    writer.is_done();
}

/// An upgrade goes ahead of the queue, and waits for readers of other processes only.
#[test]
fn upgrade_waits_for_readers_of_other_processes_and_passes_writers() {
    let home = Home::new();
    let lock = home.open();
    let (mut reader, mut upgrader, mut writer) = (Agent::new(&home), Agent::new(&home), Agent::new(&home));
    reader.does("lock 1 r:a");
    upgrader.does("lock 1 r:a");
    writer.waits("lock 1 w:a", &lock);
    upgrader.waits("lock 2 w:a", &lock);
    reader.does("drop 1");
    upgrader.is_done();
    assert_eq!(writer.answer_so_far(), None);
    upgrader.does("drop 2");
    assert!(!admits(&lock, &[], &["a"]), "the read is still held");
    upgrader.does("drop 1");
    writer.is_done();
}

/// The holder reads on; readers get in, also those that waited, and writers do not.
#[test]
fn downgrade_lets_readers_of_other_processes_in() {
    let home = Home::new();
    let lock = home.open();
    let (mut reader, mut writer) = (Agent::new(&home), Agent::new(&home));
    let mut guard = lock.lock(&["a", "c"], &["a/b", "d"]).unwrap();
    reader.waits("lock 1 r:a/b/x r:d", &lock);
    guard.downgrade().unwrap();
    reader.is_done();
    writer.is_refused("try 1 w:a/b", "WouldBlock");
    writer.is_refused("try 1 w:c", "WouldBlock");
    let snapshot = lock.snapshot().unwrap();
    let held = snapshot.holders.iter().find(|holder| number(&holder.process) == std::process::id()).unwrap();
    let roots: Vec<_> = held.roots.iter().map(ToString::to_string).collect();
    assert_eq!(roots, ["S a", "S c", "S d"], "a/b lies in a");
    reader.does("drop 1");
    writer.is_refused("try 1 w:a", "WouldBlock");
    drop(guard);
    writer.does("try 1 w:a w:c w:d");
}

#[test]
fn downgraded_arc_guard_may_leave_its_thread() {
    let home = Home::new();
    let (lock, other) = (home.open(), home.open());
    let mut guard = lock.write_arc("a").unwrap();
    thread::spawn(move || {
        guard.downgrade().unwrap();
        assert!(admits(&other, &["a"], &[]) && !admits(&other, &[], &["a"]));
    })
    .join()
    .unwrap();
    assert!(admits(&lock, &[], &["."]), "it went with its thread");
}

/// Each guard protects what it asked for until it is dropped, in whatever order.
#[test]
fn guards_of_one_thread_are_dropped_in_any_order() {
    let home = Home::new();
    let (lock, other) = (home.open(), home.open());
    let write = lock.write("a").unwrap();
    let read = lock.read("a/b").unwrap();
    drop(write);
    assert!(!admits(&other, &[], &["a/b"]) && admits(&other, &["a"], &[]));
    let write = lock.write("a/b").unwrap();
    drop(read);
    assert!(!admits(&other, &["a/b"], &[]));
    drop(write);
    assert!(admits(&other, &[], &["."]));
}

/// G7: neither a refused `try_lock` nor a request that timed out leaves anything behind, not even of its free parts.
#[test]
fn refusals_leave_nothing_behind() {
    let home = Home::new();
    let lock = home.open();
    let (mut holder, mut asks) = (Agent::new(&home), Agent::new(&home));
    holder.does("lock 1 w:z/z");
    for _ in 0..20 {
        asks.is_refused("try 1 w:a r:b w:z/z/z", "WouldBlock");
        asks.is_refused("for 2 1 w:a r:b w:z/z/z", "TimedOut");
    }
    assert!(admits(&lock, &[], &["a", "b", "z/y"]));
    let snapshot = lock.snapshot().unwrap();
    assert_eq!((snapshot.holders.len(), snapshot.waiters.len()), (1, 0), "{snapshot}");
}

/// G7: a request that waited behind one that timed out is let in.
#[test]
fn timed_out_writer_lets_readers_behind_it_in() {
    let home = Home::new();
    let lock = home.open();
    let (mut holder, mut writer, mut reader) = (Agent::new(&home), Agent::new(&home), Agent::new(&home));
    holder.does("lock 1 r:a");
    writer.waits("for 400 1 w:a", &lock);
    reader.send("lock 1 r:a");
    assert!(writer.answer().starts_with("TimedOut"));
    reader.is_done();
}

/// G7: a panic of user code, and a refused path, leave nothing.
#[test]
fn refused_paths_leave_nothing_behind() {
    let home = Home::new();
    let (lock, other) = (home.open(), home.open());
    assert!(matches!(lock.write("../a"), Err(ProcessLockError::Path(_))));
    let held = lock.write("a").unwrap();
    assert!(matches!(other.write("/a"), Err(ProcessLockError::Path(_))), "relative ones are in use");
    drop(held);
    assert!(admits(&other, &[], &["."]));
}

/// G8.
#[test]
fn panic_of_a_process_releases_what_it_held() {
    let home = Home::new();
    let lock = home.open();
    let mut agent = Agent::new(&home);
    agent.does("lock 1 w:a");
    agent.does("arc 2 w:b");
    agent.does("panic");
    assert!(admits(&lock, &[], &["."]));
    agent.does("lock 3 w:a");
}

/// An `Arc` guard is an owner of its own, may go to other threads, and keeps the lock open.
#[test]
fn arc_guard_outlives_its_lock_and_excludes_its_own_thread() {
    let home = Home::new();
    let (lock, other) = (home.open(), home.open());
    let guard = lock.write_arc("a").unwrap();
    assert!(matches!(lock.try_lock(&["a"], &[]), Err(ProcessLockError::WouldBlock)));
    drop(lock);
    assert!(!admits(&other, &["a"], &[]));
    thread::spawn(move || drop(guard)).join().unwrap();
    assert!(admits(&other, &[], &["."]));
}

/// A lock that is closed releases guards that were forgotten.
#[test]
fn closing_the_lock_frees_forgotten_guards() {
    let home = Home::new();
    let lock = home.open();
    let mut agent = Agent::new(&home);
    agent.does("lock 1 w:a");
    agent.does("forget 1");
    assert!(!admits(&lock, &["a"], &[]));
    agent.end();
    assert!(admits(&lock, &[], &["."]));
    assert_eq!(lock.snapshot().unwrap().holders.len(), 0);
}

/// G1, G3: a process that comes after the table was rewritten many times finds what is held, and the queue in its
/// order.
#[test]
fn late_comer_sees_what_is_held_and_who_waits() {
    let home = Home::new();
    let lock = home.open();
    let mut holder = Agent::new(&home);
    let mut waiters: Vec<Agent> = (0..3).map(|_| Agent::new(&home)).collect();
    holder.does("lock 1 w:a/b r:c");
    for waiter in &mut waiters {
        waiter.waits("lock 1 w:a", &lock);
    }
    for round in 0..3000 {
        drop(lock.write(format!("x/{round}")).unwrap());
    }
    let mut late = Agent::new(&home);
    late.is_refused("try 1 r:a/b/d", "WouldBlock");
    late.is_refused("try 1 w:c", "WouldBlock");
    late.does("try 1 r:c w:d");
    late.does("drop 1");
    late.waits("lock 1 r:a/x", &lock);
    let snapshot = lock.snapshot().unwrap();
    let waiting: Vec<u32> = snapshot.waiters.iter().map(|waiter| number(&waiter.process)).collect();
    let expected: Vec<u32> = waiters.iter().map(Agent::id).chain([late.id()]).collect();
    assert_eq!(waiting, expected, "{snapshot}");
    holder.does("drop 1");
    for place in 0..waiters.len() {
        waiters[place].is_done();
        assert!(waiters[place + 1..].iter().chain([&late]).all(|behind| behind.answer_so_far().is_none()));
        waiters[place].does("drop 1");
    }
    late.is_done();
}

/// A method for one path refuses as that for a list of one path does, in either form.
#[test]
fn one_path_is_tried_without_a_list() {
    let home = Home::new();
    let lock = home.open();
    let _held = lock.lock_arc(&["r"], &["w"]).unwrap();
    let soon = Duration::from_millis(5);
    fn told<G>(answer: Result<G, ProcessLockError>) -> String {
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
}

/// A guard prints what it holds.
#[test]
fn guard_tells_its_roots_and_their_modes() {
    let home = Home::new();
    let lock = home.open();
    let mut plain = lock.lock(&["a", "b/c"], &["a/b"]).unwrap();
    assert_eq!(plain.to_string(), "SIX a, S b/c, X a/b");
    assert_eq!(format!("{plain:?}"), "ProcessTreeLockGuard { roots: [SIX a, S b/c, X a/b], .. }");
    plain.downgrade().unwrap();
    assert_eq!(plain.to_string(), "S a, S b/c");
    let arc = lock.write_arc("x").unwrap();
    assert_eq!(format!("{arc} {arc:?}"), "X x ArcProcessTreeLockGuard { roots: [X x], .. }");
}

/// Two names of one place would silently not conflict. Requests that are gone do not set the kind, however they
/// ended.
#[test]
fn relative_and_absolute_paths_do_not_mix_and_a_stray_one_is_forgotten() {
    let home = Home::new();
    let (mut one, mut other, mut killed) = (Agent::new(&home), Agent::new(&home), Agent::new(&home));
    for (first, then) in [("a", "/a"), ("/a", "a"), ("a/b", "/c")] {
        one.does(&format!("lock 1 r:{first}"));
        other.is_refused(&format!("lock 1 w:{then}"), "Path");
        other.is_refused(&format!("try 1 r: r:{then}"), "Path");
        one.does("drop 1");
        other.does(&format!("lock 1 w:{then}"));
        one.is_refused(&format!("try 1 r:{first}"), "Path");
        other.does("drop 1");
    }
    killed.does("lock 1 r:/a");
    killed.does("arc 2 r:/b");
    one.is_refused("try 1 w:a", "Path");
    killed.kill();
    one.does("try 1 w:a");
}

/// G1: the empty path is everything, whatever the other paths are relative to.
#[test]
fn empty_path_is_the_root_beside_relative_and_absolute_paths() {
    let home = Home::new();
    let (mut one, mut other) = (Agent::new(&home), Agent::new(&home));
    for kind in ["a", "/a"] {
        one.does(&format!("lock 1 w:{kind}"));
        other.is_refused("try 1 r:", "WouldBlock");
        one.does(&format!("try 2 r: w:{kind} w:"));
        one.does("clear");
        other.does("lock 1 r:");
        one.is_refused(&format!("try 1 w:{kind}"), "WouldBlock");
        one.does(&format!("try 1 r:{kind}"));
        one.does("drop 1");
        other.does("drop 1");
    }
}

/// P5: all processes see the same.
#[test]
fn snapshot_shows_holders_and_waiters_of_all_processes() {
    let home = Home::new();
    let lock = home.open();
    let (mut holder, mut waiter) = (Agent::new(&home), Agent::new(&home));
    holder.does("lock 1 r:logs w:data/users");
    waiter.waits("lock 1 w:a r:data/users/7", &lock);
    let snapshot = lock.snapshot().unwrap();
    assert_eq!(number(&snapshot.holders[0].process), holder.id());
    assert_eq!(number(&snapshot.waiters[0].process), waiter.id());
    assert!(snapshot.holders[0].process.as_ref().unwrap().command.contains("child_process"), "{snapshot}");
    assert_eq!(snapshot.waiters[0].at.segments, ["data", "users"]);
    assert_eq!(snapshot.waiters[0].taken[0].segments, ["a"]);
    let drawn = holder.ask("snapshot");
    for part in [&holder.id().to_string(), &waiter.id().to_string(), "1 held, 1 waiting", "data/users", "agent.rs"] {
        assert!(drawn.contains(part), "no {part} in {drawn}");
    }
    holder.does("drop 1");
    waiter.is_done();
}

/// G1 between all threads of all processes: what they count under the lock is exact.
#[test]
fn threads_of_several_opens_count_exactly() {
    let home = Home::new();
    let count = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let threads: Vec<_> = (0..4)
        .map(|place| {
            let (lock, count) = (home.open(), Arc::clone(&count));
            thread::spawn(move || {
                for round in 0..250 {
                    let path = if (place + round) % 3 == 0 { "a" } else { "a/b" };
                    let _guard = lock.write(path).unwrap();
                    let seen = count.load(std::sync::atomic::Ordering::Relaxed);
                    thread::yield_now();
                    count.store(seen + 1, std::sync::atomic::Ordering::Relaxed);
                }
            })
        })
        .collect();
    wait_until("all have counted", || threads.iter().all(thread::JoinHandle::is_finished));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), 1000);
}

/// A deadline that has passed already does not refuse what is free.
#[test]
fn passed_deadline_still_grants_what_is_free() {
    let home = Home::new();
    let lock = home.open();
    for _ in 0..100 {
        drop(lock.try_lock_for(&[], &["a"], Duration::ZERO).unwrap());
    }
}

/// G8: a path that was given by value is dropped after its grant. The ways to ask are those between threads, for which
/// `panics.rs` tries them all; these return a `Result`.
#[test]
fn a_path_that_panics_when_its_request_drops_it_is_not_left_locked() {
    struct Trapped(&'static str);

    impl AsRef<Path> for Trapped {
        fn as_ref(&self) -> &Path {
            self.0.as_ref()
        }
    }

    impl Drop for Trapped {
        fn drop(&mut self) {
            panic!("on purpose");
        }
    }

    let home = Home::new();
    let lock = home.open();
    let requests: [&dyn Fn(); 4] = [
        &|| drop(lock.read(Trapped("a"))),
        &|| drop(lock.write(Trapped("a"))),
        &|| drop(lock.read_arc(Trapped("a"))),
        &|| drop(lock.write_arc(Trapped("a"))),
    ];
    for request in requests {
        assert!(catch_unwind(AssertUnwindSafe(request)).is_err());
        assert!(admits(&lock, &[], &["a"]), "{}", lock.snapshot().unwrap());
    }
}
