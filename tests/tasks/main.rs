//! Tasks that lock: futures polled by hand, under two runtimes and under a small executor; and random histories of
//! futures that are polled, dropped and released.
#![cfg(not(feature = "model"))]

#[path = "../common/mod.rs"]
mod common;
#[path = "../../model/spec.rs"]
mod spec;

mod cancellation;
mod histories;
mod owners;
mod polls;
mod runtimes;
mod wakers;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// A waker that counts how often it was called.
#[derive(Default)]
struct Calls(AtomicUsize);

impl Wake for Calls {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Calls {
    fn new() -> (Arc<Calls>, Waker) {
        let calls = Arc::new(Calls::default());
        (Arc::clone(&calls), Waker::from(calls))
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// Polls a future once.
fn poll<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

/// Polls a future that is ready.
#[track_caller]
fn now<F: Future + Unpin>(mut future: F) -> F::Output {
    match poll(&mut future, Waker::noop()) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it has to wait"),
    }
}

/// Polls a future that has to wait.
#[track_caller]
fn waits<F: Future + Unpin>(future: &mut F, waker: &Waker) {
    assert!(poll(future, waker).is_pending(), "it need not wait");
}
