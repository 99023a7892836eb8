//! Tasks that wait between machines: beside threads of other clients, dropped half way, and while the engine is away.

use super::conformance::{Place, admits, is_free, lock, of_each_engine, wait_for_waiters};
use super::server::Server;
use crate::common::wakers::{Calls, poll};
use crate::common::{LIMIT, wait_until};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::task::Waker;
use std::thread;
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::time::timeout;
use treelock::machine::{EngineError, MachineLockError, Options};

of_each_engine! {
    [
        a_task_waits_for_another_client_and_is_served_in_its_order,
        a_dropped_future_leaves_its_queue,
        a_future_that_is_dropped_after_its_grant_hands_it_on,
        a_thread_that_polled_a_task_is_not_blocked,
        tasks_of_two_clients_count_exactly_though_some_are_cut_off,
    ]
}

/// Each poll returns at once; so the future is polled when it is woken, until the request waits in the order.
fn poll_until_waiting<F: Future + Unpin>(future: &mut F, waker: &Waker, waits: impl Fn() -> bool) {
    wait_until("it waits in the order", || {
        assert!(poll(future, waker).is_pending(), "it need not wait");
        waits()
    });
}

fn a_task_waits_for_another_client_and_is_served_in_its_order(place: &impl Place) {
    let (one, other) = (place.open(), place.open());
    let held = lock(&one, "w:a");
    let (calls, waker) = Calls::new();
    let mut task = other.lock_async([], ["a/b"]);
    poll_until_waiting(&mut task, &waker, || one.snapshot().unwrap().waiters.len() == 1);
    thread::scope(|scope| {
        let behind = scope.spawn(|| drop(lock(&one, "r:a")));
        wait_for_waiters(&one, 2);
        let before = calls.count();
        held.release().unwrap();
        wait_until("it is woken", || calls.count() > before);
        let guard = pollster::block_on(&mut task).unwrap();
        assert!(!behind.is_finished() && guard.is_valid(), "the thread is behind it");
        drop(guard);
        behind.join().unwrap();
    });
    assert!(poll(&mut task, Waker::noop()).is_pending(), "it has ended");
    wait_until("the keeper has said that it was released", || one.snapshot().unwrap().holders.is_empty());
    is_free(&one);
}

fn a_dropped_future_leaves_its_queue(place: &impl Place) {
    let (one, other) = (place.open(), place.open());
    let held = lock(&one, "r:a");
    let mut task = other.write_async("a");
    poll_until_waiting(&mut task, Waker::noop(), || one.snapshot().unwrap().waiters.len() == 1);
    assert!(!admits(&one, "r:a"));
    drop(task);
    wait_until("readers are let in again", || admits(&one, "r:a"));
    drop(other.write_async("a"));
    held.release().unwrap();
    is_free(&one);
}

fn a_future_that_is_dropped_after_its_grant_hands_it_on(place: &impl Place) {
    let (one, other) = (place.open(), place.open());
    let held = lock(&one, "w:a");
    let mut task = other.write_async("a");
    poll_until_waiting(&mut task, Waker::noop(), || one.snapshot().unwrap().waiters.len() == 1);
    held.release().unwrap();
    wait_until("it is granted", || one.snapshot().unwrap().waiters.is_empty());
    assert!(!admits(&one, "r:a"));
    drop(task);
    drop(lock(&one, "w:a"));
    is_free(&one);
}

/// G2, no false report: the thread that polled a future goes on, and may release what it holds.
fn a_thread_that_polled_a_task_is_not_blocked(place: &impl Place) {
    let (one, other) = (place.open(), place.open());
    let plain = lock(&one, "w:a");
    let (holds, holds_b) = channel();
    let (asks, may_ask) = channel();
    thread::scope(|scope| {
        let other = &other;
        let nests = scope.spawn(move || {
            let _b = lock(other, "w:b");
            holds.send(()).unwrap();
            may_ask.recv().unwrap();
            other.try_lock_for(&[], &["a"], Duration::from_millis(500)).map(drop)
        });
        holds_b.recv().unwrap();
        let mut task = one.write_async("b");
        poll_until_waiting(&mut task, Waker::noop(), || one.snapshot().unwrap().waiters.len() == 1);
        asks.send(()).unwrap();
        let refused = nests.join().unwrap();
        assert!(matches!(refused, Err(MachineLockError::TimedOut)), "{refused:?}");
        drop(pollster::block_on(task).unwrap());
    });
    plain.release().unwrap();
    wait_until("all is released", || one.snapshot().unwrap().holders.is_empty());
    is_free(&one);
}

/// What is counted is not atomic as a whole: two at once would lose counts.
fn tasks_of_two_clients_count_exactly_though_some_are_cut_off(place: &impl Place) {
    const TASKS: usize = 4;
    const ROUNDS: usize = 5;
    let clients = [0, 1].map(|_| Arc::new(place.open()));
    let counter = Arc::new(AtomicUsize::new(0));
    let tokio = Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let tasks: Vec<_> = (0..2 * TASKS)
        .map(|number| {
            let asks = (0..ROUNDS).map(|_| clients[number % 2].write_async("counter")).collect::<Vec<_>>();
            let counter = Arc::clone(&counter);
            tokio.spawn(async move {
                let mut done = 0;
                for (round, ask) in asks.into_iter().enumerate() {
                    // Some give up, at any time.
                    let patience = if (number + round) % 3 == 0 { Duration::from_millis(2) } else { LIMIT };
                    let Ok(guard) = timeout(patience, ask).await else { continue };
                    let before = counter.load(Ordering::Relaxed);
                    tokio::task::yield_now().await;
                    counter.store(before + 1, Ordering::Relaxed);
                    done += 1;
                    drop(guard.unwrap());
                }
                done
            })
        })
        .collect();
    let done: usize = tasks.into_iter().map(|task| tokio.block_on(task).unwrap()).sum();
    assert_eq!(counter.load(Ordering::Relaxed), done);
    assert!(done >= 2 * TASKS * ROUNDS / 2, "{done}");
    wait_until("all is released", || clients[0].snapshot().unwrap().holders.is_empty());
    is_free(&clients[0]);
}

/// It is told when the patience of the client has ended, and the next one that asks gets a new session.
#[test]
fn a_task_is_told_that_the_engine_is_away() {
    let Some(mut server) = Server::begin() else { return };
    let lock =
        server.open_with(Options::new().time_to_live(Duration::from_secs(1)).patience(Duration::from_millis(300)));
    drop(pollster::block_on(lock.read_async("a")).unwrap());
    server.kill();
    let refused = pollster::block_on(lock.read_async("a"));
    assert!(matches!(refused, Err(MachineLockError::Engine(EngineError::Away(_)))), "{refused:?}");
    server.go_on();
    wait_until("it answers again", || pollster::block_on(lock.read_async("a")).is_ok());
}

/// A client that ends tells its tasks.
#[test]
fn a_task_whose_lock_is_closed_is_told() {
    let Some(server) = Server::begin() else { return };
    let lock = server.open();
    let guard = pollster::block_on(lock.write_async("a")).unwrap();
    let task = lock.write_async("a");
    let waits = thread::spawn(|| pollster::block_on(task).map(drop));
    wait_for_waiters(&lock, 1);
    lock.close();
    let refused = waits.join().unwrap();
    assert!(matches!(refused, Err(MachineLockError::Engine(EngineError::Lost))), "{refused:?}");
    assert!(!guard.is_valid());
}

#[test]
fn paths_that_cannot_be_used_are_refused() {
    let Some(server) = Server::begin() else { return };
    let lock = server.open_as::<std::path::Path>(Options::new());
    let refused = pollster::block_on(lock.read_async("../a"));
    assert!(matches!(refused, Err(MachineLockError::Path(_))), "{refused:?}");
    let _relative = pollster::block_on(lock.read_async("a")).unwrap();
    let refused = pollster::block_on(lock.read_async("/a"));
    assert!(matches!(refused, Err(MachineLockError::Path(_))), "{refused:?}");
}
