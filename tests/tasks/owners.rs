//! Explicit owners in tasks: what they nest, and the deadlocks that are reported.

use super::{Calls, now, poll, waits};
use crate::common::{
    Other, admits, assert_free, join, new, panic_message, report_of, spawn, wait_until, wait_until_thread_waits,
    watched,
};
use futures::future::FusedFuture;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::task::{Poll, Waker};
use std::time::Duration;
use tokio::sync::Barrier;
use treelock::{LockError, PathError, Segments, TreeLock, TreePath};

#[test]
fn an_owner_nests_and_upgrades_in_a_task() {
    let lock = new();
    let other = Other::holds(&lock, &["a"], &[]);
    let mut owner = lock.owner();
    let reading = now(owner.lock_async(&["a"], &[])).unwrap();
    let writer = Other::waits(&lock, &[], &["a"]);
    let again = now(owner.read_async("a/b")).unwrap();
    let (calls, waker) = Calls::new();
    let mut upgrade = owner.write_async("a");
    waits(&mut upgrade, &waker);
    other.releases();
    wait_until("it is woken, ahead of the writer", || calls.count() == 1);
    let Poll::Ready(Ok(writing)) = poll(&mut upgrade, &waker) else { panic!("it was woken") };
    drop(upgrade);
    assert!(!writer.is_granted());
    [reading, again, writing].into_iter().for_each(|held| owner.release(held));
    writer.wait_until_granted();
    writer.releases();
    assert_free(&lock, Path::new(""));
}

/// Two owners, each in a task of its own, upgrade at one node: one of them is told, and the other goes on.
async fn cross(lock: &Arc<TreeLock>, both_read: Arc<Barrier>) -> usize {
    let mut owner = lock.owner();
    let _reading = owner.lock_async(&["a"], &[]).await.unwrap();
    both_read.wait().await;
    report_of(owner.lock_async(&[], &["a"]).await).map_or(0, |deadlock| deadlock.parties.len() - 1)
}

async fn cross_twice(lock: Arc<TreeLock>) -> usize {
    let both_read = Arc::new(Barrier::new(2));
    let (one, other) = futures::join!(cross(&lock, Arc::clone(&both_read)), cross(&lock, both_read));
    one + other
}

#[test]
fn a_cycle_of_tasks_is_reported_to_one() {
    let lock = new();
    assert_eq!(pollster::block_on(cross_twice(Arc::clone(&lock))), 1);
    assert_eq!(futures::executor::block_on(cross_twice(Arc::clone(&lock))), 1);
    let tokio = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(tokio.block_on(cross_twice(Arc::clone(&lock))), 1);
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let both_read = Arc::new(Barrier::new(2));
    let spawned = [0, 1].map(|_| {
        let (lock, both_read) = (Arc::clone(&lock), Arc::clone(&both_read));
        tokio.spawn(async move { cross(&lock, both_read).await })
    });
    let reports: usize = spawned.into_iter().map(|task| tokio.block_on(task).unwrap()).sum();
    assert_eq!(reports, 1);
    assert_free(&lock, Path::new(""));
}

/// The thread can only panic, so the task is told.
#[test]
fn a_cycle_of_a_task_and_a_thread_is_reported_to_the_task() {
    let lock = new();
    let mut owner = lock.owner();
    let _a = now(owner.lock_async(&[], &["a"])).unwrap();
    let thread = {
        let lock = Arc::clone(&lock);
        spawn("nests", move || {
            let _b = lock.write("b");
            let _a = lock.write("a");
        })
    };
    wait_until_thread_waits(&lock, "nests");
    let refused = pollster::block_on(owner.lock_async(&[], &["b"]));
    let Err(LockError::Deadlock(deadlock)) = refused else { panic!("{refused:?}") };
    assert_eq!(deadlock.parties.len(), 2);
    drop(owner);
    join(thread);
    assert_free(&lock, Path::new(""));
}

/// The task would be told, but nobody polls it: the one that would is blocked itself. So the thread is told at last.
#[test]
fn a_cycle_of_a_thread_and_a_task_that_nobody_polls_is_reported_to_the_thread() {
    let lock = new();
    let mut owner = lock.owner();
    let _b = now(owner.lock_async(&[], &["b"])).unwrap();
    let executor = {
        let lock = Arc::clone(&lock);
        spawn("executor", move || {
            let _a = lock.write("a");
            let mut task = owner.lock_async(&[], &["a"]);
            waits(&mut task, Waker::noop());
            panic_message(|| drop(lock.write("b")))
        })
    };
    let message = join(executor);
    assert!(message.contains("deadlock"), "{message}");
    assert_free(&lock, Path::new(""));
}

/// The report calls the code of the paths.
#[test]
fn a_future_whose_report_panics_has_ended() {
    static PANICS: AtomicBool = AtomicBool::new(false);
    #[derive(Clone, Debug)]
    struct Name(&'static str);
    impl TreePath for Name {
        fn segments(&self, segments: &mut Segments<'_>) -> Result<(), PathError> {
            assert!(!PANICS.load(Ordering::SeqCst), "a path of the test");
            segments.push(self.0);
            Ok(())
        }
    }
    impl AsRef<Name> for Name {
        fn as_ref(&self) -> &Name {
            self
        }
    }
    let lock = watched(TreeLock::<Name>::default());
    let (mut ada, mut bob) = (lock.owner(), lock.owner());
    let _a = now(ada.write_async(Name("a"))).unwrap();
    let _b = now(bob.write_async(Name("b"))).unwrap();
    let (calls, waker) = Calls::new();
    let mut ada_waits = ada.write_async(Name("b"));
    let mut bob_waits = bob.write_async(Name("a"));
    waits(&mut ada_waits, &waker);
    waits(&mut bob_waits, Waker::noop());
    wait_until("it is woken to look", || calls.count() == 1);
    PANICS.store(true, Ordering::SeqCst);
    let message = panic_message(|| drop(poll(&mut ada_waits, &waker)));
    PANICS.store(false, Ordering::SeqCst);
    assert!(message.contains("a path of the test"), "{message}");
    assert!(ada_waits.is_terminated() && poll(&mut ada_waits, &waker).is_pending());
    drop(ada_waits);
    drop(ada);
    assert!(matches!(poll(&mut bob_waits, &waker), Poll::Ready(Ok(_))), "it has been let in");
}

/// A request that nests in nothing closes the cycle later, when it is walked on; the task still hears of it.
#[test]
fn a_cycle_that_closes_while_the_task_waits_is_reported() {
    let lock = new();
    let held = now(lock.write_async("b")).unwrap();
    let mut owner = lock.owner();
    let _c = now(owner.lock_async(&[], &["c/c"])).unwrap();
    // It waits for `b`, and will then for `c/c`, which is deeper.
    let both = Other::waits(&lock, &[], &["b", "c/c"]);
    let (calls, waker) = Calls::new();
    let mut waits_for_b = owner.lock_async(&[], &["b"]);
    waits(&mut waits_for_b, &waker);
    wait_until("it is woken to look", || calls.count() == 1);
    // It looks, and finds nothing.
    waits(&mut waits_for_b, &waker);
    drop(held);
    wait_until("it is woken to look again", || calls.count() == 2);
    let Poll::Ready(refused) = poll(&mut waits_for_b, &waker) else { panic!("{}", lock.snapshot()) };
    assert!(matches!(refused, Err(LockError::Deadlock(_))), "{refused:?}");
    drop(waits_for_b);
    drop(owner);
    both.wait_until_granted();
    both.releases();
}

/// G2, no false report: the thread that polled a future goes on, and may release what it holds.
#[test]
fn a_thread_that_polled_a_task_is_not_blocked() {
    let lock = new();
    let plain = lock.write("a");
    let (holds, holds_b) = channel();
    let (asks, may_ask) = channel();
    let other = {
        let lock = Arc::clone(&lock);
        spawn("other", move || {
            let _b = lock.write("b");
            holds.send(()).unwrap();
            may_ask.recv().unwrap();
            lock.try_lock_for(&[], &["a"], Duration::from_millis(200)).map(drop)
        })
    };
    holds_b.recv().unwrap();
    let mut owner = lock.owner();
    let _c = now(owner.lock_async(&["c"], &[])).unwrap();
    let mut task = owner.lock_async(&[], &["b"]);
    waits(&mut task, Waker::noop());
    asks.send(()).unwrap();
    let refused = join(other);
    assert!(matches!(refused, Err(LockError::TimedOut)), "{refused:?}");
    assert!(poll(&mut task, Waker::noop()).is_ready());
    drop((plain, task));
}

/// Nor is a task, of no owner, that waits for the plain guard of the thread that polls it.
#[test]
fn a_task_without_an_owner_is_in_no_cycle() {
    let lock = new();
    let plain = lock.write("a");
    let (calls, waker) = Calls::new();
    let mut task = lock.read_async("a");
    waits(&mut task, &waker);
    drop(plain);
    assert_eq!(calls.count(), 1);
    assert!(matches!(poll(&mut task, &waker), Poll::Ready(Ok(_))));
    assert!(admits(&lock, &[], &[""]));
}
