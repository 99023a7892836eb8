//! Futures that are dropped or forgotten (G7).

use super::{Calls, now, poll, waits};
use crate::common::{Other, admits, assert_free, new};
use std::mem;
use std::path::Path;
use std::task::{Poll, Waker};

#[test]
fn a_dropped_future_lets_on_those_behind_it() {
    let lock = new();
    let reading = now(lock.read_async("a")).unwrap();
    let mut writer = lock.write_async("a");
    waits(&mut writer, Waker::noop());
    let (calls, waker) = Calls::new();
    let mut reader = lock.read_async("a/b");
    waits(&mut reader, &waker);
    let thread = Other::waits(&lock, &["a"], &[]);
    drop(writer);
    assert_eq!(calls.count(), 1);
    assert!(poll(&mut reader, &waker).is_ready());
    thread.wait_until_granted();
    thread.releases();
    drop((reader, reading));
    assert_free(&lock, Path::new(""));
}

/// Its walk goes on without it, so it may hold some of its roots when it is dropped.
#[test]
fn a_future_that_is_dropped_half_way_gives_back_what_it_has() {
    let lock = new();
    let (first, second) = (now(lock.write_async("a")).unwrap(), now(lock.write_async("b/b")).unwrap());
    let mut both = lock.lock_async(&["c"], &["a", "b/b"]);
    waits(&mut both, Waker::noop());
    drop(first);
    assert!(!admits(&lock, &["a"], &[]));
    drop(both);
    assert!(admits(&lock, &[], &["a"]) && admits(&lock, &[], &["c"]));
    drop(second);
    assert_free(&lock, Path::new(""));
}

/// The grant and the drop cross.
#[test]
fn a_future_that_is_dropped_after_its_grant_hands_it_on() {
    let lock = new();
    let held = now(lock.write_async("a")).unwrap();
    let (calls, waker) = Calls::new();
    let mut first = lock.write_async("a");
    let mut second = lock.write_async("a");
    waits(&mut first, &waker);
    waits(&mut second, &waker);
    drop(held);
    assert_eq!(calls.count(), 1);
    drop(first);
    assert_eq!(calls.count(), 2, "the second one has it now");
    assert!(poll(&mut second, &waker).is_ready());
    drop(second);
    assert_free(&lock, Path::new(""));
}

#[test]
fn a_guard_outlives_its_future() {
    let lock = new();
    let mut write = lock.write_async("a");
    let guard = poll(&mut write, Waker::noop());
    drop(write);
    assert!(!admits(&lock, &["a"], &[]));
    drop(guard);
    assert_free(&lock, Path::new(""));
}

/// What an owner holds must not change while a request of it waits; a forgotten future is such a request.
#[test]
fn an_owner_gives_up_the_request_of_a_forgotten_future() {
    let lock = new();
    let held = now(lock.read_async("a")).unwrap();
    let mut owner = lock.owner();
    let reading = now(owner.lock_async(&["a"], &[])).unwrap();
    let mut upgrade = owner.lock_async(&[], &["a"]);
    waits(&mut upgrade, Waker::noop());
    mem::forget(upgrade);
    assert!(!admits(&lock, &["a"], &[]), "it waits still");
    owner.release(reading);
    assert!(admits(&lock, &["a"], &[]), "it has been given up");
    let mut again = owner.lock_async(&[], &["a"]);
    waits(&mut again, Waker::noop());
    mem::forget(again);
    drop(held);
    assert!(!admits(&lock, &["a"], &[]), "it is granted");
    let mut third = owner.lock_async(&["b"], &[]);
    assert!(admits(&lock, &[], &["a"]), "it has been released");
    let Poll::Ready(Ok(_third)) = poll(&mut third, Waker::noop()) else { panic!("it need not wait") };
    drop(third);
    let _held = now(lock.write_async("c")).unwrap();
    let mut last = owner.lock_async(&["c"], &[]);
    waits(&mut last, Waker::noop());
    mem::forget(last);
    drop(owner);
    assert!(lock.snapshot().waiters.is_empty());
    drop(_held);
    assert_free(&lock, Path::new(""));
}

#[test]
fn a_forgotten_future_of_no_owner_waits_for_ever_and_keeps_its_place() {
    let lock = new();
    let reading = now(lock.read_async("a")).unwrap();
    let mut write = lock.write_async("a");
    waits(&mut write, Waker::noop());
    mem::forget(write);
    assert!(lock.try_read_arc("a").is_err());
    drop(reading);
    assert!(lock.try_read_arc("a").is_err(), "as with a guard that is forgotten");
}
