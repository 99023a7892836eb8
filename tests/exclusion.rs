//! Which requests exclude each other (G1), and which do not (G4).
#![cfg(not(feature = "model"))]

mod common;

use common::{Other, Paths, admits, join_all, spawn};
use std::sync::{Arc, Mutex};
use treelock::{Mode, TreeLock};

/// A tree with every relation in it: the root, parents, children, brothers, cousins.
const PATHS: [&str; 6] = ["", "a", "a/b", "a/c", "a/b/d", "e"];

/// A request as plain data, with a specification of conflicts by the overlap of names, without modes.
#[derive(Clone, Debug, PartialEq)]
struct Roots {
    reads: Vec<&'static str>,
    writes: Vec<&'static str>,
}

impl Roots {
    fn conflicts(&self, other: &Roots) -> bool {
        let one_way = |one: &Roots, other: &Roots| {
            one.writes.iter().any(|write| other.reads.iter().chain(&other.writes).any(|root| overlap(write, root)))
        };
        one_way(self, other) || one_way(other, self)
    }
}

/// Whether one equals the other or is an ancestor of it.
fn overlap(one: &str, other: &str) -> bool {
    let segments =
        |path: &str| path.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let (one, other) = (segments(one), segments(other));
    one.starts_with(&other) || other.starts_with(&one)
}

/// Every request of up to this many of the paths.
fn requests(reads: u32, writes: u32) -> Vec<Roots> {
    let sets = |most: u32| (0..1u32 << PATHS.len()).filter(move |set| set.count_ones() <= most);
    let chosen =
        |set: u32| (0..PATHS.len()).filter(|index| set >> index & 1 == 1).map(|index| PATHS[index]).collect();
    sets(reads)
        .flat_map(|reads| sets(writes).map(move |writes| (reads, writes)))
        .map(|(reads, writes)| Roots { reads: chosen(reads), writes: chosen(writes) })
        .collect()
}

/// G1, G4: for every two requests of up to two read roots and up to two write roots.
#[test]
fn a_second_request_is_refused_exactly_if_the_two_conflict() {
    let lock = Arc::new(TreeLock::<str>::default());
    let requests = requests(2, 2);
    for first in &requests {
        let _held = lock.lock(&first.reads, &first.writes);
        for second in &requests {
            let granted = lock.try_lock_arc(&second.reads, &second.writes).is_ok();
            assert_eq!(granted, !first.conflicts(second), "{second:?} beside {first:?}");
        }
    }
}

/// G1, G4: the same for two threads, one of them with an `Arc` guard, on the requests of one root each way.
#[test]
fn another_thread_is_refused_exactly_if_the_two_conflict() {
    let lock = common::watched(TreeLock::<str>::default());
    for first in requests(1, 1) {
        let _held = lock.lock_arc(&first.reads, &first.writes);
        let lock = Arc::clone(&lock);
        common::join(spawn("second", move || {
            for second in requests(1, 1) {
                let granted = lock.try_lock(&second.reads, &second.writes).is_ok();
                assert_eq!(granted, !first.conflicts(&second), "{second:?} beside {first:?}");
            }
        }));
    }
}

/// G1: the case that the Python package gets wrong. A request that reads `a` and writes `a/b` keeps both.
#[test]
fn read_with_write_below_admits_readers_beside_the_write_only() {
    let lock = common::new();
    let _held = lock.lock(&["a"], &["a/b"]);
    assert!(!admits(&lock, &["a"], &[]), "it would read a/b too");
    assert!(!admits(&lock, &["a/b"], &[]) && !admits(&lock, &["a/b/c"], &[]) && !admits(&lock, &[""], &[]));
    assert!(admits(&lock, &["a/c"], &[]), "both only read a/c");
    assert!(!admits(&lock, &[], &["a/c"]), "a/c is read");
    assert!(!admits(&lock, &["a/c"], &["a/d"]), "a/d is read");
    assert!(admits(&lock, &["a/c"], &["e"]) && admits(&lock, &[], &["ab"]));
}

/// G1: the same, with a second request that waits, and gets in when the first has gone.
#[test]
fn another_reader_waits_for_a_read_with_a_write_below() {
    let lock = common::new();
    let held = lock.lock(&["a"], &["a/b"]);
    let reader = Other::waits(&lock, &["a"], &[]);
    let beside = Other::holds(&lock, &["a/c"], &[]);
    assert!(!reader.is_granted());
    drop(held);
    reader.releases();
    beside.releases();
}

/// G1: SIX is kept whatever the order and the number of the roots.
#[test]
fn a_read_and_a_write_below_it_are_joined_in_every_order() {
    let cases: [(Paths, Paths); 4] = [
        (&["a"], &["a/b"]),
        (&["a/b", "a"], &["a/b"]),
        (&["a", "a/c"], &["a/b", "a/b/x"]),
        (&["a/b/x", "a", "a"], &["a/b", "a/b"]),
    ];
    for (reads, writes) in cases {
        let lock = common::new();
        let _held = lock.lock(reads, writes);
        for (path, read) in [("a", false), ("a/b", false), ("a/b/x", false), ("a/c", true), ("e", true)] {
            assert_eq!(admits(&lock, &[path], &[]), read, "read {path} beside {reads:?}, {writes:?}");
            assert_eq!(admits(&lock, &[], &[path]), path == "e", "write {path} beside {reads:?}, {writes:?}");
        }
    }
}

/// G1, G4: three parties, one of which waits. A request that conflicts with neither gets in at once, past the queue.
#[test]
fn a_newcomer_that_conflicts_with_no_holder_and_no_waiter_never_waits() {
    let single: Vec<Roots> =
        requests(1, 1).into_iter().filter(|roots| roots.reads.len() + roots.writes.len() == 1).collect();
    for holder in &single {
        for waiter in single.iter().filter(|waiter| waiter.conflicts(holder)) {
            let lock = common::watched(TreeLock::<str>::default());
            let held = lock.lock(&holder.reads, &holder.writes);
            let waiting = spawn("waiter", {
                let (lock, waiter) = (Arc::clone(&lock), waiter.clone());
                move || drop(lock.lock(&waiter.reads, &waiter.writes))
            });
            common::wait_until_waiting(&lock, 1);
            for newcomer in &single {
                let granted = lock.try_lock_arc(&newcomer.reads, &newcomer.writes).is_ok();
                let place = format!("{newcomer:?} beside {holder:?} with {waiter:?} waiting");
                match (newcomer.conflicts(holder), newcomer.conflicts(waiter)) {
                    (true, _) => assert!(!granted, "{place}"),
                    (false, false) => assert!(granted, "{place}"),
                    // Where the waiter waits decides whether the two have met yet.
                    (false, true) => {}
                }
            }
            drop(held);
            common::join(waiting);
        }
    }
}

/// G4: also far from it, and at its brothers.
#[test]
fn unrelated_sub_trees_never_wait_behind_a_long_queue() {
    let lock = common::new();
    let held = lock.write("data/users");
    let queue: Vec<Other> = (0..20)
        .map(|number| match number % 3 {
            0 => Other::waits(&lock, &["data/users"], &[]),
            1 => Other::waits(&lock, &[], &["data/users/7"]),
            _ => Other::waits(&lock, &["data/users/8"], &["data/users/9"]),
        })
        .collect();
    assert!(admits(&lock, &["data/groups"], &["logs"]));
    assert!(admits(&lock, &[], &["data/groups", "data/user", "data/users2"]));
    assert!(!admits(&lock, &["data/users/10"], &[]), "what is held is held");
    drop(held);
    queue.into_iter().for_each(Other::releases);
}

/// G1, G2: no two requests that are granted at one moment conflict; `lock` would panic on a false report of a
/// deadlock.
#[test]
fn random_requests_of_many_threads_never_conflict() {
    let lock = common::watched(TreeLock::<str>::default());
    let granted = Arc::new(Mutex::new(Vec::<Roots>::new()));
    let requests = Arc::new(requests(2, 2));
    let threads = (0..4usize).map(|number| {
        let (lock, granted, requests) = (Arc::clone(&lock), Arc::clone(&granted), Arc::clone(&requests));
        spawn(&format!("random-{number}"), move || {
            let mut random = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(number as u64 + 1);
            for _ in 0..400 {
                // Knuth's linear congruential generator: the requests are the same in each run.
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let roots = &requests[(random >> 33) as usize % requests.len()];
                let guard = lock.lock(&roots.reads, &roots.writes);
                {
                    let mut granted = granted.lock().unwrap();
                    if let Some(other) = granted.iter().find(|other| other.conflicts(roots)) {
                        panic!("{roots:?} is granted beside {other:?}");
                    }
                    granted.push(roots.clone());
                }
                std::thread::yield_now();
                {
                    let mut granted = granted.lock().unwrap();
                    let index = granted.iter().position(|other| other == roots).unwrap();
                    granted.swap_remove(index);
                }
                drop(guard);
            }
        })
    });
    join_all(threads);
    common::assert_free(&lock, "");
}

/// G1: the public table of modes is the one that decides.
#[test]
fn the_published_modes_exclude_each_other_as_requests_do() {
    // Each mode on `a`, as a request that holds it there.
    let requests: [(Mode, Paths, Paths); 5] = [
        (Mode::IntentionShared, &["a/x"], &[]),
        (Mode::IntentionExclusive, &[], &["a/y"]),
        (Mode::Shared, &["a"], &[]),
        (Mode::SharedIntentionExclusive, &["a"], &["a/z"]),
        (Mode::Exclusive, &[], &["a"]),
    ];
    // The same once more, elsewhere below `a`, so that they meet only at `a`.
    let elsewhere: [(Mode, Paths, Paths); 5] = [
        (Mode::IntentionShared, &["a/u"], &[]),
        (Mode::IntentionExclusive, &[], &["a/v"]),
        (Mode::Shared, &["a"], &[]),
        (Mode::SharedIntentionExclusive, &["a"], &["a/w"]),
        (Mode::Exclusive, &[], &["a"]),
    ];
    for (mode, reads, writes) in requests {
        let lock = common::new();
        let _held = lock.lock(reads, writes);
        for (other, reads, writes) in elsewhere {
            assert_eq!(admits(&lock, reads, writes), mode.compatible(other), "{other} beside {mode}");
        }
    }
}

/// A thread that takes one root again and again comes to own it. It takes it in the mode that it asks for, and not in that
/// of the last time.
#[test]
fn root_that_is_taken_again_is_taken_in_the_mode_that_is_asked_for() {
    let lock = TreeLock::<str>::default();
    let others_may = |read: bool| {
        std::thread::scope(|scope| {
            let tries = scope.spawn(|| (lock.try_read("a/b").is_ok(), lock.try_write("a/b").is_ok()));
            assert_eq!(tries.join().unwrap(), (read, false));
        });
    };
    for _ in 0..3 {
        (0..200).for_each(|_| drop(lock.write("a/b")));
        let reads = lock.read("a/b");
        others_may(true);
        drop(reads);
        (0..200).for_each(|_| drop(lock.read("a/b")));
        let writes = lock.write("a/b");
        others_may(false);
        drop(writes);
    }
}
