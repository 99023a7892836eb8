//! How much memory a lock takes, and that it gives it back (G6): live bytes, counted by the allocator.
//!
//! Bounds are generous constants. What they exclude is growth: each history here would leave megabytes behind if it
//! left a few bytes for each path, guard, waiter, refusal or thread.
#![cfg(not(feature = "model"))]

mod common;

use common::{admits, join, join_all, spawn, wait_until_waiting};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use treelock::TreeLock;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What an unlocked lock may take, including what its threads keep for their next request.
const CONSTANT: isize = 256 * 1024;

/// What the test harness may allocate meanwhile.
const NOISE: isize = 16 * 1024;

/// One test at a time: all share the allocator.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn live_bytes() -> isize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated as isize - stats.bytes_deallocated as isize
}

/// G6: one after the other.
#[test]
fn a_lock_is_back_to_its_size_with_a_million_paths_behind_it() {
    let _alone = alone();
    let before = live_bytes();
    let lock = TreeLock::<str>::default();
    let mut path = String::new();
    for number in 0..1_000_000 {
        use std::fmt::Write;
        path.clear();
        write!(path, "{}/{number}", number % 1000).unwrap();
        drop(lock.write(&path));
    }
    let grown = live_bytes() - before;
    assert!(grown < CONSTANT, "{grown} bytes");
}

/// G6: all at once. It is large while they are held, and small again afterwards, whatever their number.
#[test]
fn a_lock_is_back_to_its_size_after_many_guards_at_once() {
    let _alone = alone();
    for count in [1_000, 100_000] {
        let before = live_bytes();
        let lock = TreeLock::<[u32]>::default();
        let guards: Vec<_> = (0..count).map(|number| lock.write([number % 100, number])).collect();
        let held = live_bytes() - before;
        assert!(held > count as isize * 64, "{held} bytes for {count} guards: is it counted?");
        drop(guards);
        let left = live_bytes() - before;
        assert!(left < CONSTANT, "{left} bytes after {count} guards");
    }
}

/// G6: and after one guard that held them all.
#[test]
fn a_lock_is_back_to_its_size_after_a_request_of_many_roots() {
    let _alone = alone();
    let roots: Vec<String> = (0..50_000).map(|number| format!("{}/{number}", number % 100)).collect();
    let before = live_bytes();
    let lock = TreeLock::<str>::default();
    drop(lock.lock(&roots[..25_000], &roots[25_000..]));
    let left = live_bytes() - before;
    assert!(left < CONSTANT, "{left} bytes");
}

/// G6: also while something is held, nothing grows with the history.
#[test]
fn what_is_unlocked_is_given_back_while_something_is_held() {
    let _alone = alone();
    let lock = TreeLock::<[u32]>::default();
    let _held = (lock.read([0]), lock.write([1, 2, 3]));
    let round = |round: u32| {
        let guards: Vec<_> = (0..20_000u32).map(|number| lock.write([7, round, number])).collect();
        drop(guards);
    };
    round(0);
    let before = live_bytes();
    (1..5).for_each(round);
    let left = live_bytes() - before;
    assert!(left < CONSTANT, "{left} bytes");
}

/// G6, G7: refusals of every kind.
#[test]
fn refused_requests_leave_no_bytes() {
    let _alone = alone();
    let lock = Arc::new(TreeLock::new());
    let _held = lock.write("held/x");
    let refuse = |times: usize| {
        for number in 0..times {
            let path = format!("{number}");
            assert!(lock.try_lock_arc(&[&*path], &["held"]).is_err());
            assert!(lock.try_lock_arc_for(&["held"], &[&*path], Duration::ZERO).is_err());
            assert!(lock.try_lock(&["../x", &path], &[]).is_err());
            assert!(lock.try_lock(&["/x", &path], &[]).is_err());
        }
    };
    refuse(100);
    let before = live_bytes();
    refuse(20_000);
    let left = live_bytes() - before;
    assert!(left < NOISE, "{left} bytes");
    assert!(lock.try_lock_arc_for(&["z"], &["held/x"], common::LIMIT).is_err(), "a deadlock");
    let left = live_bytes() - before;
    assert!(left < NOISE, "{left} bytes after a report");
}

/// G6: waiters, and their threads.
#[test]
fn a_lock_is_back_to_its_size_after_many_threads_have_waited() {
    let _alone = alone();
    let lock = common::new();
    let wave = |round: u32| {
        let held = lock.write("a");
        let threads: Vec<_> = (0..50)
            .map(|number| {
                let lock = Arc::clone(&lock);
                spawn("waiting", move || drop(lock.lock(&[format!("a/{number}")], &[format!("a/{round}/{number}")])))
            })
            .collect();
        wait_until_waiting(&lock, 50);
        drop(held);
        join_all(threads);
    };
    wave(0);
    let before = live_bytes();
    (1..10).for_each(wave);
    let left = live_bytes() - before;
    assert!(left < CONSTANT, "{left} bytes");
}

/// G6: nothing outlives the lock and its threads.
#[test]
fn a_dropped_lock_leaves_nothing() {
    let _alone = alone();
    // What the process allocates once is allocated before.
    join(spawn("first", || drop(TreeLock::new().write("a"))));
    let before = live_bytes();
    join(spawn("locking", || {
        let lock = Arc::new(TreeLock::<str>::default());
        let guards: Vec<_> = (0..1000).map(|number| lock.write(format!("{number}"))).collect();
        let arc = lock.write_arc("x");
        assert!(lock.try_lock(&["x"], &[]).is_err());
        assert!(!admits(&lock, &["0"], &[]));
        drop((guards, arc));
        assert!(!lock.snapshot().to_string().is_empty());
    }));
    let left = live_bytes() - before;
    assert!(left < NOISE, "{left} bytes");
}

/// G6: what a thread keeps of a request for its next one is of constant size.
#[test]
fn a_long_name_is_not_kept_after_it_is_unlocked() {
    let _alone = alone();
    let lock = TreeLock::<str>::default();
    let long = "x".repeat(8 << 20);
    let before = live_bytes();
    drop(lock.write(&long));
    let left = live_bytes() - before;
    assert!(left < CONSTANT, "{left} bytes");
}

/// G6: a path may own something, which is released with the guard.
#[test]
fn no_copy_of_a_path_outlives_its_guard() {
    let _alone = alone();
    let owned = Arc::new(7);
    let lock = TreeLock::<[Arc<u32>]>::default();
    drop(lock.write([Arc::clone(&owned)]));
    drop(lock);
    assert_eq!(Arc::strong_count(&owned), 1);
}

/// A future that need not wait allocates nothing, once its register has what such a request takes.
#[cfg(feature = "async")]
#[test]
fn a_future_that_is_granted_at_once_allocates_nothing() {
    use common::wakers::poll;
    use std::future::Future;
    use std::task::Waker;
    fn allocations<F: Future + Unpin>(request: impl Fn() -> F) -> usize {
        let lock_and_release = || {
            assert!(poll(&mut request(), Waker::noop()).is_ready(), "it need not wait");
        };
        (0..1_000).for_each(|_| lock_and_release());
        let before = ALLOCATOR.stats().allocations;
        (0..10_000).for_each(|_| lock_and_release());
        ALLOCATOR.stats().allocations - before
    }
    let _alone = alone();
    let lock = Arc::new(TreeLock::<str>::default());
    // What the test harness allocates meanwhile is little.
    assert!(allocations(|| lock.write_async("a/b/c")) < 100);
    assert!(allocations(|| lock.write_arc_async("a/b/d")) < 100);
    assert!(allocations(|| lock.lock_async(&["a/b"], &["c/d", "c/e"])) < 100);
}
