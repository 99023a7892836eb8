//! What one future does when it is polled.

use super::{Calls, now, poll, waits};
use crate::common::{Other, admits, assert_free, new};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::task::{Poll, Waker};
use treelock::{AsyncTreeLockGuard, LockError, LockFuture, LockOwner, TreeLock};

#[test]
fn a_future_does_nothing_before_it_is_polled() {
    let lock = new();
    let mut write = lock.write_async("a");
    assert!(lock.snapshot().holders.is_empty() && format!("{write:?}").contains("not polled"));
    let Poll::Ready(Ok(guard)) = poll(&mut write, Waker::noop()) else { panic!("nobody holds anything") };
    assert!(!admits(&lock, &["a/b"], &[]) && admits(&lock, &[], &["b"]));
    drop(guard);
    drop(lock.write_async("a"));
    assert_free(&lock, Path::new(""));
}

/// G9: one wake-up, when it holds everything, although its roots come free one by one.
#[test]
fn a_task_is_woken_once_when_it_holds_everything() {
    let lock = new();
    let (first, second) = (now(lock.write_async("a")).unwrap(), now(lock.write_async("b/b")).unwrap());
    let (calls, waker) = Calls::new();
    let mut both = lock.lock_async(&[], &["a", "b/b", "c"]);
    waits(&mut both, &waker);
    assert!(format!("{both:?}").contains("asked"));
    drop(first);
    assert_eq!(calls.count(), 0, "the releasing thread walked it on, and it waits for the second root");
    assert!(!admits(&lock, &["a"], &[]), "it has the first one");
    drop(second);
    assert_eq!(calls.count(), 1);
    assert!(!admits(&lock, &["c"], &[]), "it holds everything before it is polled");
    let Poll::Ready(Ok(guard)) = poll(&mut both, &waker) else { panic!("it was woken") };
    drop(guard);
    assert_eq!(calls.count(), 1);
    assert_free(&lock, Path::new(""));
}

#[test]
fn an_ended_future_stays_pending() {
    use futures::future::FusedFuture;
    let lock = new();
    let mut write = lock.write_async("a");
    assert!(!write.is_terminated());
    let granted = poll(&mut write, Waker::noop());
    assert!(write.is_terminated() && format!("{write:?}").contains("ended"));
    waits(&mut write, Waker::noop());
    drop(granted);
    waits(&mut write, Waker::noop());
    let mut refused = lock.read_async("../a");
    assert!(matches!(poll(&mut refused, Waker::noop()), Poll::Ready(Err(LockError::Path(_)))));
    waits(&mut refused, Waker::noop());
    assert!(refused.is_terminated());
    assert_free(&lock, Path::new(""));
}

#[test]
fn a_path_that_cannot_be_used_is_an_error() {
    let lock = new();
    let refused = now(lock.lock_async(&["a"], &["../b"]));
    let Err(LockError::Path(error)) = refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains("../b"), "{error}");
    assert_free(&lock, Path::new(""));
}

/// A guard of a task is an owner of its own.
#[test]
fn a_guard_of_a_task_excludes_the_thread_that_polled_it() {
    let lock = new();
    let guard = now(lock.read_async("a")).unwrap();
    assert!(lock.try_write("a").is_err() && lock.try_read("a").is_ok());
    let mut upgrade = lock.write_async("a");
    waits(&mut upgrade, Waker::noop());
    drop(guard);
    assert!(poll(&mut upgrade, Waker::noop()).is_ready());
}

#[test]
fn a_guard_of_a_task_is_weakened_and_shown_as_others_are() {
    let lock = new();
    let mut guard = now(lock.lock_async(&["a"], &["b", "c"])).unwrap();
    assert_eq!(guard.to_string(), "S a, X b, X c");
    guard.release(&["b"]).unwrap();
    assert!(admits(&lock, &[], &["b"]));
    let guard = guard.downgrade();
    assert!(admits(&lock, &["c"], &[]) && !admits(&lock, &[], &["c"]));
    assert!(format!("{guard:?}").starts_with("AsyncTreeLockGuard { roots: ["), "{guard:?}");
}

/// G3: threads and tasks stand in one queue.
#[test]
fn a_thread_and_a_task_are_served_in_their_order() {
    let lock = new();
    let held = now(lock.write_async("a")).unwrap();
    let first = Other::waits(&lock, &[], &["a"]);
    let mut second = lock.write_async("a");
    let (calls, waker) = Calls::new();
    waits(&mut second, &waker);
    let third = Other::waits(&lock, &[], &["a"]);
    drop(held);
    first.wait_until_granted();
    waits(&mut second, &waker);
    first.releases();
    assert_eq!(calls.count(), 1);
    let Poll::Ready(Ok(guard)) = poll(&mut second, &waker) else { panic!("it is its turn") };
    assert!(!third.is_granted());
    drop(guard);
    third.wait_until_granted();
    third.releases();
}

/// Lists go into the future, or are borrowed by it.
#[test]
fn lists_are_owned_or_borrowed() {
    let lock = TreeLock::<str>::default();
    let names = vec![String::from("a"), String::from("b")];
    drop(now(lock.lock_async(&names, &names[..1])).unwrap());
    drop(now(lock.lock_async([], [format!("{}/c", names[0])])).unwrap());
    drop(now(lock.lock_async(names, [])).unwrap());
}

#[test]
fn futures_and_guards_go_to_other_threads() {
    fn goes<T: Send + Unpin>(_: &T) {}
    fn stays_for_ever<T: Send + 'static>(_: T) {}
    let (lock, name) = (new(), String::from("a"));
    goes(&lock.read_async(&name));
    stays_for_ever(lock.lock_arc_async([name.clone()], []));
    let future: LockFuture<Arc<TreeLock>, _, _> = lock.write_arc_async(name.clone());
    stays_for_ever(now(future).unwrap());
    let guard: AsyncTreeLockGuard<'_> = now(lock.read_async(&name)).unwrap();
    goes(&guard);
    let mut owner: LockOwner = lock.owner();
    goes(&owner.lock_async(&[&name], &[]));
}

/// The place that a report names is that of the call, not of a poll.
#[test]
fn snapshots_name_the_place_of_the_call() {
    let lock = new();
    let (future, line) = (lock.read_async("a"), line!());
    let _guard = now(future).unwrap();
    let snapshot = lock.snapshot();
    assert!(snapshot.holders[0].location.contains(&format!("polls.rs:{line}:")), "{snapshot:?}");
}

/// A path that panics while it is planned leaves nothing; the future has ended.
#[test]
fn a_path_that_panics_leaves_nothing() {
    struct Panics;
    impl AsRef<Path> for Panics {
        fn as_ref(&self) -> &Path {
            panic!("a path of the test")
        }
    }
    let lock = new();
    let mut write = lock.write_async(Panics);
    let polled =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| poll(&mut write, Waker::noop()).is_ready()));
    assert!(polled.is_err());
    waits(&mut write, Waker::noop());
    drop(write);
    assert_free(&lock, Path::new(""));
}

#[test]
fn select_takes_it() {
    async fn first_of(lock: &TreeLock) -> &'static str {
        let mut held = lock.write_async("a");
        let mut free = lock.write_async("b");
        futures::select_biased! {
            _ = held => "held",
            _ = free => "free",
        }
    }
    let lock = new();
    let guard = now(lock.read_async("a")).unwrap();
    let mut first = Box::pin(first_of(&lock));
    let waker = Waker::noop();
    assert_eq!(first.as_mut().poll(&mut std::task::Context::from_waker(waker)), Poll::Ready("free"));
    drop((first, guard));
    assert_free(&lock, Path::new(""));
}
