//! One blocked request at one node: parked on a condition variable of its own, so that a release wakes exactly
//! those whose turn has come (G9).
//!
//! A waiter is granted once, in two steps: [`Waiter::grant`] under the lock of the node's shard, so that
//! whoever looks at it afterwards knows; [`Waiter::wake`] after all internal locks are let go. It is not used
//! again after that, or a late wake-up would end the next wait.
//!
//! Lock order: a shard of the table or of the ledger, then a waiter.

use crate::sync::{Condvar, Mutex};
use std::time::Instant;

#[derive(Debug, Default)]
pub(crate) struct Waiter {
    granted: Mutex<bool>,
    wake: Condvar,
}

impl Waiter {
    /// Tells the waiter that it holds what it waits for.
    pub(crate) fn grant(&self) {
        *self.granted.lock() = true;
    }

    /// Unparks it. Comes after `grant`, once.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    pub(crate) fn is_granted(&self) -> bool {
        *self.granted.lock()
    }

    /// Parks the thread until the grant (`true`) or the deadline.
    pub(crate) fn wait_until(&self, deadline: Instant) -> bool {
        let mut granted = self.granted.lock();
        let mut passed = false;
        // A loop: condition variables may wake for no reason.
        while !*granted && !passed {
            (granted, passed) = self.wake.wait_until(granted, deadline);
        }
        *granted
    }
}
