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

use common::wakers::{Calls, poll};
use std::future::Future;
use std::task::{Poll, Waker};

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
