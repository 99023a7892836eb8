//! One request that waits, from when it first has to wait until it holds everything or is refused (G9): a thread parked on a
//! condition variable of its own, or a task that has left its [`Waker`](std::task::Waker) here.
//!
//! The thread that grants the last step calls [`Waiter::grant`] after the ledger has the request as granted, and
//! [`Waiter::wake`], once, after it has released all internal locks. A waiter serves one request and is not used
//! again.
//!
//! Wakers are code of the user: to clone, to call or to drop one may panic, lock again or take long. So all three happen
//! outside of every internal lock, that of the waiter included. A waker is here only while the future of its request is
//! alive: the future takes it out when it ends ([`Waiter::poll`], [`Waiter::take_waker`]). So whoever drops the waiter
//! last, under whatever lock, runs no code of the user.
//!
//! An ordinary build takes the time from the clock. A model has no clock, and a wait with a deadline would never end
//! there. So a thread of the model plays the clock by [`Waiter::strike`], and both outcomes of every race are
//! explored.
//!
//! Lock order: the waiter's mutex is the last one; nothing else is locked under it.

use crate::core::deadlock::Temper;
use crate::core::node::Stamp;
#[cfg(feature = "async")]
use crate::sync;
#[cfg(not(feature = "model"))]
use crate::sync::spin;
use crate::sync::{Condvar, Mutex};
use crate::thread::ledger::Key;
#[cfg(feature = "async")]
use std::mem;
#[cfg(all(feature = "async", not(feature = "model")))]
use std::sync::Arc;
#[cfg(all(feature = "async", not(feature = "model")))]
use std::task::Wake;
#[cfg(feature = "async")]
use std::task::Waker;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Waiter {
    /// The request's entry in the ledger.
    pub(crate) key: Key,
    /// Its place in the order of all waiters.
    pub(crate) stamp: Stamp,
    pub(crate) temper: Temper,
    pub(crate) sleeper: Sleeper,
    state: Mutex<State>,
    wake: Condvar,
}

/// What waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sleeper {
    /// The thread that asked. It is blocked, so it drops no guard meanwhile.
    Thread,
    /// A task: its thread does something else meanwhile.
    #[cfg(feature = "async")]
    Task,
}

#[derive(Debug, Default)]
struct State {
    granted: bool,
    /// What wakes the task.
    #[cfg(feature = "async")]
    waker: Option<Waker>,
    /// What a model's clock has struck and the waiter has not seen yet.
    #[cfg(feature = "model")]
    struck: Vec<Time>,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// It holds everything.
    Granted,
    /// It does not hold everything, and it is time for something else.
    At(Time),
}

/// What it can be time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Time {
    /// To look whether it is in a deadlock.
    Look,
    /// To give up.
    Deadline,
}

impl Waiter {
    pub(crate) fn new(key: Key, stamp: Stamp, temper: Temper, sleeper: Sleeper) -> Self {
        Waiter { key, stamp, temper, sleeper, state: Mutex::default(), wake: Condvar::default() }
    }

    /// Tells the waiter that it holds everything.
    pub(crate) fn grant(&self) {
        self.state.lock().granted = true;
    }

    /// Unparks the thread, or wakes the task. Called once, after `grant`.
    pub(crate) fn wake(&self) {
        match self.sleeper {
            Sleeper::Thread => {
                self.wake.notify_one();
            }
            #[cfg(feature = "async")]
            Sleeper::Task => self.wake_task(),
        }
    }

    #[cfg(feature = "async")]
    fn wake_task(&self) {
        let Some(waker) = self.take_waker() else { return };
        sync::wake(waker);
    }

    /// Whether the task holds everything; if not, it is woken by this waker when it does.
    #[cfg(feature = "async")]
    pub(crate) fn poll(&self, waker: &Waker) -> bool {
        let mut new = None;
        let mut state = self.state.lock();
        if !state.granted && !state.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            drop(state);
            new = Some(waker.clone());
            state = self.state.lock();
        }
        let granted = state.granted;
        let old = if granted {
            state.waker.take()
        } else if new.is_some() {
            mem::replace(&mut state.waker, new.take())
        } else {
            None
        };
        // Whichever of them is not kept is dropped after that.
        drop(state);
        drop((old, new));
        granted
    }

    /// Takes the waker out: nobody wakes the task any more.
    #[cfg(feature = "async")]
    pub(crate) fn take_waker(&self) -> Option<Waker> {
        self.state.lock().waker.take()
    }

    /// Whether a model's clock has struck for a look since this was last asked.
    #[cfg(all(feature = "async", feature = "model"))]
    pub(crate) fn has_struck(&self) -> bool {
        mem::take(&mut self.state.lock().struck).contains(&Time::Look)
    }

    #[cfg(not(feature = "model"))]
    fn is_granted(&self) -> bool {
        self.state.lock().granted
    }

    /// Parks the thread until the grant, until `look` has passed, or until the deadline.
    #[cfg(not(feature = "model"))]
    pub(crate) fn wait(&self, look: Option<Duration>, deadline: Option<Instant>) -> Woken {
        if spin(|| self.is_granted()) {
            return Woken::Granted;
        }
        let look = look.map(|look| (Instant::now() + look, Time::Look));
        let deadline = deadline.map(|deadline| (deadline, Time::Deadline));
        let first = look.into_iter().chain(deadline).min_by_key(|&(until, _)| until);
        let mut state = self.state.lock();
        // A loop: condition variables may wake for no reason.
        while !state.granted {
            let passed;
            (state, passed) = self.wake.wait_until(state, first.map(|(until, _)| until));
            match first {
                Some((_, time)) if passed && !state.granted => return Woken::At(time),
                _ => {}
            }
        }
        Woken::Granted
    }

    /// Parks the thread until the grant or until a model's clock strikes.
    #[cfg(feature = "model")]
    pub(crate) fn wait(&self, look: Option<Duration>, deadline: Option<Instant>) -> Woken {
        let mut state = self.state.lock();
        loop {
            let struck = std::mem::take(&mut state.struck);
            if state.granted {
                return Woken::Granted;
            } else if deadline.is_some() && struck.contains(&Time::Deadline) {
                return Woken::At(Time::Deadline);
            } else if look.is_some() && struck.contains(&Time::Look) {
                return Woken::At(Time::Look);
            }
            state = self.wake.wait(state);
            assert!(state.granted || !state.struck.is_empty(), "it was woken before it holds everything (G9)");
        }
    }

    /// Plays the clock.
    #[cfg(feature = "model")]
    pub(crate) fn strike(&self, time: Time) {
        let mut state = self.state.lock();
        state.struck.push(time);
        #[cfg(feature = "async")]
        if self.sleeper == Sleeper::Task {
            drop(state);
            return self.wake_task();
        }
        // Under the mutex; otherwise the waiter might see what has struck before this wakes it, and the wake-up would
        // be in vain.
        self.wake.notify_one();
    }
}

/// Wakes a task that is to look for a deadlock, by the thread of a clock. That thread is one for all, so no panic of a waker ends
/// it, and it drops no waker of anybody else.
#[cfg(all(feature = "async", not(feature = "model")))]
impl Wake for Waiter {
    fn wake(self: Arc<Self>) {
        self.wake_task();
    }
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    use super::*;
    use std::thread;

    /// No model makes spurious wake-ups, so this test makes some.
    #[test]
    fn wake_up_without_a_grant_ends_no_wait() {
        let waiter = Waiter::new(Key::default(), Stamp(1), Temper::Endless, Sleeper::Thread);
        thread::scope(|scope| {
            let waits = scope.spawn(|| (waiter.wait(None, None), waiter.is_granted()));
            for _ in 0..3 {
                while !waiter.wake.notify_one() && !waits.is_finished() {
                    thread::yield_now();
                }
            }
            waiter.grant();
            waiter.wake();
            assert_eq!(waits.join().unwrap(), (Woken::Granted, true));
        });
    }
}
