//! Wakers are code of the user: they change, panic, lock again, and are dropped.

use super::{Calls, now, poll, waits};
use crate::common::{Other, admits, assert_free, join, new, spawn, wait_until, wait_until_thread_waits};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Wake, Waker};
use std::time::Duration;
use treelock::{ArcTreeLockGuard, LockError, TreeLock};

/// A future that a waker can have.
type Future = treelock::LockFuture<Arc<TreeLock>, Vec<&'static str>, Vec<&'static str>>;

#[test]
fn the_latest_waker_is_woken() {
    let lock = new();
    let held = now(lock.write_async("a")).unwrap();
    let ((old_calls, old), (new_calls, new)) = (Calls::new(), Calls::new());
    let mut write = lock.write_async("a");
    waits(&mut write, &old);
    waits(&mut write, &new);
    waits(&mut write, &new);
    drop(old);
    assert_eq!(Arc::strong_count(&old_calls), 1, "the old one is gone");
    drop(held);
    assert_eq!((old_calls.count(), new_calls.count()), (0, 1));
    drop(new);
    assert_eq!(Arc::strong_count(&new_calls), 1);
    assert!(poll(&mut write, Waker::noop()).is_ready());
}

#[test]
fn no_waker_is_kept_longer_than_its_future() {
    let lock = new();
    let held = now(lock.write_async("a")).unwrap();
    let (calls, waker) = Calls::new();
    let mut write = lock.write_async("a");
    waits(&mut write, &waker);
    drop(write);
    drop(waker);
    assert_eq!(Arc::strong_count(&calls), 1);
    drop(held);
    assert_eq!(calls.count(), 0);
}

/// A waker that does something when it is woken, and when it is dropped.
struct Does<F: Fn(&'static str) + Send + Sync>(F);

impl<F: Fn(&'static str) + Send + Sync + 'static> Wake for Does<F> {
    fn wake(self: Arc<Self>) {
        (self.0)("wake");
    }
}

impl<F: Fn(&'static str) + Send + Sync> Drop for Does<F> {
    fn drop(&mut self) {
        (self.0)("drop");
    }
}

fn panics_when_it_is_dropped() -> Waker {
    Waker::from(Arc::new(Does(|when| assert!(when == "wake", "a waker of the test"))))
}

/// The others that one release lets in are woken, and the thread that releases goes on.
#[test]
fn a_waker_that_panics_loses_nothing() {
    let lock = new();
    let held = now(lock.write_async("a")).unwrap();
    let panics = Waker::from(Arc::new(Does(|when| assert!(when == "drop", "a waker of the test"))));
    let (calls, waker) = Calls::new();
    let mut reads: Vec<_> = (0..4).map(|_| lock.read_async("a")).collect();
    for (index, read) in reads.iter_mut().enumerate() {
        waits(read, if index % 2 == 0 { &panics } else { &waker });
    }
    let thread = Other::waits(&lock, &["a"], &[]);
    drop(held);
    assert_eq!(calls.count(), 2);
    thread.wait_until_granted();
    thread.releases();
    let guards: Vec<_> = reads.iter_mut().map(|read| poll(read, &waker)).collect();
    assert!(guards.iter().all(Poll::is_ready));
    drop(guards);
    assert_free(&lock, Path::new(""));
}

/// Under an internal lock it would wait for itself.
#[test]
fn a_waker_may_lock_again() {
    let lock = new();
    let held = now(lock.lock_async(&["b"], &["a"])).unwrap();
    let got: Arc<Mutex<Vec<ArcTreeLockGuard>>> = Arc::default();
    let locks = {
        let (lock, got) = (Arc::clone(&lock), Arc::clone(&got));
        Waker::from(Arc::new(Does(move |_| {
            got.lock().unwrap().push(lock.read_arc("b"));
            assert!(!admits(&lock, &["a"], &[]), "{}", lock.snapshot());
        })))
    };
    let mut write = lock.write_async("a");
    waits(&mut write, &locks);
    drop(locks);
    drop(held);
    assert_eq!(got.lock().unwrap().len(), 2, "when it was woken, and when it was dropped");
    assert!(poll(&mut write, Waker::noop()).is_ready());
    got.lock().unwrap().clear();
    drop(write);
    assert_free(&lock, Path::new(""));
}

/// What gives up has given back all before it wakes anybody: a waker that locks may ask for a part of that.
#[test]
fn a_waker_may_lock_what_the_one_that_gives_up_had() {
    let lock = new();
    let reading = now(lock.read_async("b/b")).unwrap();
    let got = Arc::new(Mutex::new(Vec::new()));
    let locks = {
        let (lock, got) = (Arc::clone(&lock), Arc::clone(&got));
        Waker::from(Arc::new(Does(move |when| {
            if when == "wake" {
                got.lock().unwrap().push(lock.try_write_arc("a").is_ok());
            }
        })))
    };
    // It holds `a`, and waits for `b/b`.
    let mut both = lock.lock_async(&[], &["a", "b/b"]);
    waits(&mut both, Waker::noop());
    let mut behind = lock.read_async("b/b");
    waits(&mut behind, &locks);
    drop(both);
    assert_eq!(*got.lock().unwrap(), [true], "a future that is dropped");
    assert!(poll(&mut behind, Waker::noop()).is_ready());

    let late = {
        let lock = Arc::clone(&lock);
        spawn("late", move || lock.try_lock_for(&[], &["a", "b/b"], Duration::from_millis(100)).map(drop))
    };
    wait_until_thread_waits(&lock, "late");
    let mut behind_it = lock.read_async("b/b");
    waits(&mut behind_it, &locks);
    assert!(matches!(join(late), Err(LockError::TimedOut)));
    assert_eq!(*got.lock().unwrap(), [true, true], "a thread whose deadline passes");
    assert!(poll(&mut behind_it, Waker::noop()).is_ready());
    drop((reading, behind, behind_it));
    assert_free(&lock, Path::new(""));
}

/// An executor that polls in `wake`: the guards go down the whole queue within one release.
#[test]
fn a_waker_may_poll_its_future_and_release() {
    struct Inline(Mutex<Option<Future>>, Arc<AtomicUsize>);
    impl Wake for Inline {
        fn wake(self: Arc<Self>) {
            let mut future = self.0.lock().unwrap().take().expect("it waits");
            let Poll::Ready(Ok(guard)) = poll(&mut future, Waker::noop()) else { panic!("it was woken") };
            self.1.fetch_add(1, Ordering::SeqCst);
            drop(guard);
        }
    }
    let lock = new();
    let served = Arc::new(AtomicUsize::new(0));
    let held = now(lock.write_async("a")).unwrap();
    for _ in 0..50 {
        let inline = Arc::new(Inline(Mutex::new(None), Arc::clone(&served)));
        let mut future = lock.lock_arc_async(vec![], vec!["a"]);
        waits(&mut future, &Waker::from(Arc::clone(&inline)));
        *inline.0.lock().unwrap() = Some(future);
    }
    drop(held);
    assert_eq!(served.load(Ordering::SeqCst), 50);
    assert_free(&lock, Path::new(""));
}

/// What was released is not there any more when its release wakes anybody, not even as the kind of its paths.
#[test]
fn a_waker_may_ask_for_paths_of_the_other_kind() {
    let lock = new();
    let held = lock.lock_arc(&[], &["/a", "/b"]);
    let waiting: Arc<Mutex<Option<Future>>> = Arc::default();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let asks = {
        let (lock, waiting, asked) = (Arc::clone(&lock), Arc::clone(&waiting), Arc::clone(&asked));
        Waker::from(Arc::new(Does(move |when| {
            if when == "wake" {
                let mut future = waiting.lock().unwrap().take().expect("it waits");
                assert!(poll(&mut future, Waker::noop()).is_ready());
                asked.lock().unwrap().push(lock.try_lock_arc(&[], &["relative"]).map(drop));
            }
        })))
    };
    let mut root = lock.lock_arc_async(vec![], vec![""]);
    waits(&mut root, &asks);
    *waiting.lock().unwrap() = Some(root);
    drop(held);
    let asked = asked.lock().unwrap().pop().unwrap();
    assert!(asked.is_ok(), "{asked:?}");
    assert_free(&lock, Path::new(""));
}

/// Clones and drops of wakers happen while the future is polled and dropped; a panic there leaves no request.
#[test]
fn a_waker_whose_drop_panics_leaves_nothing() {
    let lock = new();
    let held = now(lock.write_async("a")).unwrap();
    let panics = panics_when_it_is_dropped();
    let mut write = lock.write_async("a");
    waits(&mut write, &panics);
    drop(panics);
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(write)));
    assert!(dropped.is_err());
    assert!(lock.snapshot().waiters.is_empty());
    drop(held);
    assert_free(&lock, Path::new(""));
}

/// The owner has it, so it is the owner that drops it when its future was forgotten.
#[test]
fn an_owner_releases_all_though_a_waker_panics_when_it_is_dropped() {
    let lock = new();
    let held = now(lock.write_async("a")).unwrap();
    let panics = panics_when_it_is_dropped();
    let mut owner = lock.owner();
    let _b = now(owner.lock_async(&[], &["b"])).unwrap();
    let mut write = owner.lock_async(&[], &["a"]);
    waits(&mut write, &panics);
    drop(panics);
    std::mem::forget(write);
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(owner)));
    assert!(dropped.is_err());
    drop(held);
    assert_free(&lock, Path::new(""));
}

/// A waker that panics when it is time to look takes the looks from nobody else.
#[test]
fn a_waker_that_panics_stops_no_clock() {
    let lock = new();
    let held = now(lock.write_async("a")).unwrap();
    let woken = Arc::new(AtomicUsize::new(0));
    let panics = {
        let woken = Arc::clone(&woken);
        Waker::from(Arc::new(Does(move |when| {
            if when == "wake" {
                woken.fetch_add(1, Ordering::SeqCst);
                panic!("a waker of the test");
            }
        })))
    };
    let mut owner = lock.owner();
    let _b = now(owner.lock_async(&[], &["b"])).unwrap();
    let mut write = owner.lock_async(&[], &["a"]);
    waits(&mut write, &panics);
    wait_until("it is woken to look", || woken.load(Ordering::SeqCst) == 1);
    waits(&mut write, &panics);
    wait_until("it is woken to look again", || woken.load(Ordering::SeqCst) == 2);
    drop(write);
    drop((owner, held));
    assert_free(&lock, Path::new(""));
}
