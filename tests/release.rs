//! What a guard gives back when it is dropped, also by a panic (G8), or downgraded, and which waiters that wakes
//! (G9).
#![cfg(not(feature = "model"))]

mod common;

use common::{Other, admits, assert_free, join, join_all, spawn, wait_until, wait_until_waiting};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Barrier};
use treelock::{ArcTreeLockGuard, TreeLock};

/// G8.
#[test]
fn a_panic_releases_every_guard_of_the_thread_and_poisons_nothing() {
    let lock = common::new();
    let ready = Arc::new(Barrier::new(2));
    let panicking = spawn("panicking", {
        let (lock, ready) = (Arc::clone(&lock), Arc::clone(&ready));
        move || {
            let _read = lock.read("a");
            let _upgraded = lock.write("a/b");
            let _arc = lock.write_arc("b");
            let _weak = lock.write("c").downgrade();
            ready.wait();
            // The others wait by now.
            ready.wait();
            panic!("on purpose");
        }
    });
    ready.wait();
    let others = [
        Other::waits(&lock, &["a/b"], &[]),
        Other::waits(&lock, &[], &["a/c"]),
        Other::waits(&lock, &["b"], &[]),
        Other::waits(&lock, &[], &["c"]),
    ];
    ready.wait();
    wait_until("it has panicked", || panicking.is_finished());
    assert!(panicking.join().is_err());
    others.into_iter().for_each(Other::releases);
    assert_free(&lock, "".as_ref());
}

/// G8: the guard may be anywhere on the stack that is unwound, and a drop may use the lock during that.
#[test]
fn the_lock_can_be_used_while_unwinding() {
    struct LocksInDrop(Arc<TreeLock>);
    impl Drop for LocksInDrop {
        fn drop(&mut self) {
            drop(self.0.lock(&["a"], &["b"]));
            assert!(self.0.try_lock(&[], &["a"]).is_ok());
        }
    }
    let lock = common::new();
    let panicked = panic::catch_unwind(AssertUnwindSafe(|| {
        let _later = LocksInDrop(Arc::clone(&lock));
        let _guard = lock.write("a");
        let _sooner = LocksInDrop(Arc::clone(&lock));
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert_free(&lock, "".as_ref());
}

/// G9.
#[test]
fn a_downgrade_lets_in_readers_but_no_writers() {
    let lock = common::new();
    let writing = lock.write("a");
    let readers = [Other::waits(&lock, &["a"], &[]), Other::waits(&lock, &["a/b"], &[])];
    let writer = Other::waits(&lock, &[], &["a/c"]);
    let late = Other::waits(&lock, &["a"], &[]);
    let reading = writing.downgrade();
    readers.into_iter().for_each(Other::releases);
    assert!(!writer.is_granted() && !late.is_granted(), "who came behind a writer stays there");
    drop(reading);
    writer.releases();
    late.releases();
    assert_free(&lock, "".as_ref());
}

/// G1, G9: a downgraded write is a read of the same sub-tree, and no more.
#[test]
fn a_downgraded_guard_holds_reads_of_all_its_roots() {
    let lock = common::new();
    let guard = lock.lock_arc(&["r"], &["a/b", "c"]).downgrade();
    assert!(admits(&lock, &["a", "c", "r"], &["a/c", "d"]));
    for path in ["r", "a", "a/b", "a/b/x", "c", "c/x", ""] {
        assert!(!admits(&lock, &[], &[path]), "{path} is read");
    }
    let again = guard.downgrade();
    assert!(admits(&lock, &["a"], &[]) && !admits(&lock, &[], &["a/b"]));
    drop(again);
    assert_free(&lock, "".as_ref());
}

/// G9: a read guard has nothing to give.
#[test]
fn downgrading_a_read_changes_nothing() {
    let lock = common::new();
    let guard = lock.lock(&["a", "b/c"], &[]).downgrade();
    assert!(admits(&lock, &["a", "b"], &["b/d"]) && !admits(&lock, &[], &["a"]) && !admits(&lock, &[], &["b/c"]));
    drop(guard);
    assert_free(&lock, "".as_ref());
}

/// G9: wherever a guard is dropped, the waiters that it lets in are woken.
#[test]
fn an_arc_guard_releases_on_whatever_thread_it_is_dropped() {
    let lock = common::new();
    let guard: ArcTreeLockGuard = lock.lock_arc(&["r"], &["a"]);
    let waiting = Other::waits(&lock, &["a"], &[]);
    join(spawn("dropping", move || drop(guard)));
    waiting.releases();
    // A guard that comes from elsewhere, and is weakened here.
    let own = Arc::clone(&lock);
    let guard = join(spawn("locking", move || own.lock_arc(&[], &["a"]))).downgrade();
    assert!(admits(&lock, &["a"], &[]) && !admits(&lock, &[], &["a"]));
    drop(guard);
    assert_free(&lock, "".as_ref());
}

/// G6: and the lock is gone with its last guard.
#[test]
fn an_arc_guard_keeps_the_lock_alive() {
    let lock = Arc::new(TreeLock::new());
    let weak = Arc::downgrade(&lock);
    let guard = lock.write_arc("a");
    drop(lock);
    let again = weak.upgrade().expect("the guard has it");
    assert!(again.try_lock_arc(&["a"], &[]).is_err());
    drop(again);
    drop(guard);
    assert!(weak.upgrade().is_none());
}

/// G9: no later release can make up for a wake-up that is lost, since nothing else is released until all are served.
#[test]
fn each_release_wakes_those_it_lets_in_while_unrelated_guards_are_held() {
    let lock = common::new();
    let _unrelated = lock.lock(&["r"], &["z"]);
    for _ in 0..20 {
        let held = lock.write_arc("a");
        let threads: Vec<_> = ["a", "a/b", "a", "a/b/c", "a"]
            .into_iter()
            .enumerate()
            .map(|(number, path)| {
                let lock = Arc::clone(&lock);
                spawn("served", move || match number % 2 {
                    0 => drop(lock.read(path)),
                    _ => drop(lock.write(path)),
                })
            })
            .collect();
        wait_until_waiting(&lock, 5);
        drop(held);
        join_all(threads);
    }
}

/// G9: a waiter that is not served yet sleeps on, so that a thread is woken a few times while it waits, not once for
/// each that is served before it.
#[cfg(target_os = "linux")]
#[test]
fn a_release_wakes_nobody_whose_turn_has_not_come() {
    /// How often the thread has gone to sleep so far.
    fn sleeps() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        line.trim().parse().unwrap()
    }
    let lock = common::new();
    let held = lock.write("a");
    let mut queue = Vec::new();
    for _ in 0..100 {
        let own = Arc::clone(&lock);
        queue.push(spawn("queued", move || {
            let before = sleeps();
            let _guard = own.write("a");
            sleeps() - before
        }));
        wait_until_waiting(&lock, queue.len());
    }
    drop(held);
    let mut sleeps = join_all(queue);
    sleeps.sort_unstable();
    // One for the wait itself, one for each look for a deadlock, a few for contended mutexes; a herd would make 50.

    assert!(sleeps[50] < 25, "{sleeps:?}");
}

/// A rename ends with its source free.
#[test]
fn a_guard_can_release_some_of_its_roots() {
    let lock = common::new();
    let mut guard = lock.lock(&["c"], &["a/x", "b"]);
    let waits = Other::waits(&lock, &["a"], &[]);
    guard.release(&["a//x/"]).unwrap();
    waits.wait_until_granted();
    waits.releases();
    assert!(admits(&lock, &[], &["a"]) && admits(&lock, &["c"], &[]));
    assert!(!admits(&lock, &[], &["c"]) && !admits(&lock, &["b"], &[]));
    assert_eq!(lock.snapshot().holders[0].roots.len(), 2);
    guard.release(&["b", "c"]).unwrap();
    assert!(admits(&lock, &[], &["b", "c"]));
    drop(guard);
    assert_free(&lock, "".as_ref());
}

/// What the released root had covered is now held as it was asked for.
#[test]
fn a_root_below_a_released_one_stays() {
    let lock = common::new();
    let mut guard = lock.lock(&["a/b", "a/b/c"], &["a"]);
    guard.release(&["a"]).unwrap();
    assert!(admits(&lock, &["a/b"], &["a/d"]) && !admits(&lock, &[], &["a/b/c/d"]));
    guard.release(&["a/b"]).unwrap();
    assert!(admits(&lock, &[], &["a/b/d"]) && !admits(&lock, &[], &["a/b/c"]));
    // Also beside another guard of the same owner, which excludes all other owners there.
    let mut outer = lock.lock(&["d/e"], &["d"]);
    let inner = lock.write("d/e");
    outer.release(&["d"]).unwrap();
    drop(inner);
    assert!(admits(&lock, &["d/e"], &[]) && !admits(&lock, &[], &["d/e"]));
    drop((guard, outer));
    assert_free(&lock, "".as_ref());
}

/// G7.
#[test]
fn what_is_no_root_of_a_guard_cannot_be_released() {
    let lock = common::new();
    let mut guard = lock.lock_arc(&[], &["a", "b"]);
    for paths in [["a/x"], ["c"], [""], ["../a"]] {
        let error = guard.release(&paths).unwrap_err().to_string();
        assert!(error.contains(&format!("{:?}", paths[0])), "{error}");
    }
    assert!(guard.release(&["a", "c"]).is_err());
    assert!(!admits(&lock, &["a"], &[]) && !admits(&lock, &["b"], &[]), "nothing was released");
    guard.release(&["a"]).unwrap();
    assert!(guard.release(&["a"]).is_err(), "it is gone");
    drop(guard);
    assert_free(&lock, "".as_ref());
}

/// The release of a root that another one covers changes no node, but the root is released nevertheless.
#[test]
fn a_covered_root_that_was_released_does_not_come_back() {
    let lock = common::new();
    let mut guard = lock.lock(&[], &["a", "a/b"]);
    guard.release(&["a/b"]).unwrap();
    assert_eq!(lock.snapshot().holders[0].roots.len(), 1);
    assert!(guard.release(&["a/b"]).is_err(), "it is gone");
    assert!(!admits(&lock, &["a/b"], &[]), "the other one covers it still");
    guard.release(&["a"]).unwrap();
    assert!(admits(&lock, &[], &["a/b"]), "nothing is left");
    drop(guard);
    assert_free(&lock, "".as_ref());
}

/// G1: what is left may be held, at a node, in a mode that has less of one right and more of the other: `b` was an
/// intention to write below, since the read of the whole covered it, and is now read on its own.
#[test]
fn a_covered_read_root_above_a_write_root_stays() {
    for kind in 0..2 {
        let lock = common::new();
        // Often enough that intentions on `b` are published.
        (0..100).for_each(|_| drop(lock.write("b/x")));
        let (reads, writes, released): ([&str; 2], _, _) = (["", "b"], ["b/a"], ["", "b/a"]);
        let (mut plain, mut arc) = (None, None);
        match kind {
            0 => plain.insert(lock.lock(&reads, &writes)).release(&released).unwrap(),
            _ => arc.insert(lock.lock_arc(&reads, &writes)).release(&released).unwrap(),
        }
        // The same at the root of the tree, where it was revoked.
        (0..100).for_each(|_| drop(lock.write("c")));
        assert!(!admits(&lock, &[], &["b/y"]) && !admits(&lock, &[], &["b"]), "it is read");
        assert!(admits(&lock, &["b/a"], &["c"]));
        drop((plain, arc));
        assert_free(&lock, "".as_ref());
    }
}

/// A relative path is not another name of an absolute root: the two cannot be compared.
#[test]
fn a_root_is_not_released_by_a_path_of_the_other_kind() {
    let lock = common::new();
    let mut guard = lock.lock(&[], &["/a", "/b"]);
    let error = guard.release(&["a"]).unwrap_err().to_string();
    assert!(error.contains("relative"), "{error}");
    assert!(!admits(&lock, &["/a"], &[]), "nothing was released");
    guard.release(&["/a"]).unwrap();
    assert!(admits(&lock, &["/a"], &[]));
}
