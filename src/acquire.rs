//! How a request is granted, and how it waits.
//!
//! A request is planned first (`plan.rs`, user code and all), then takes its steps one after the other, ancestors
//! first. Each step is granted at once (`table.rs`), or it is *contended*: then the ledger is asked what its owner holds
//! there already, and if that does not help it queues, marks itself in the ledger and parks, until it is granted, its
//! deadline passes or it finds itself in a deadlock. A request that gives up gives back the steps it has taken, which
//! wakes whoever waited behind it (G7).
//!
//! Lock order: a shard of the table or the ledger, never both; then a waiter. No user code runs under any of
//! these, and nobody is woken under one.

use crate::deadlock::{self, Look};
use crate::error::{LockError, PathError};
use crate::inspect::Deadlock;
use crate::ledger::{Key, Nesting, State, Temper, Waiting};
use crate::lock::TreeLock;
use crate::mode::ModeCounts;
use crate::path::{Frame, TreePath};
use crate::plan::Step;
use crate::request::{Owner, Request};
use crate::table::Due;
use crate::waiter::{Time, Waiter, Woken};
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A nested request looks whether it is in a deadlock when it has waited for so long, and after twice as long again, and
/// so on up to the longest. (The second look matters where one party leaves the report to another.)
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LONGEST_LOOK: Duration = Duration::from_millis(160);

/// Looks lock the whole ledger. However many wait and look, together they do so for one part in so many of the time.
const SHARE_OF_LOOKS: u32 = 8;

/// What a request does when it cannot be granted at once.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    /// It is refused.
    None,
    /// It waits, until the deadline if there is one, and takes a refusal.
    Until(Option<Instant>),
    /// It waits; only what can never succeed ends it.
    Endless,
}

/// A step that is waited for.
struct Blocked<'a> {
    index: usize,
    patience: Patience,
    /// The request's entry in the ledger, once it has waited.
    entry: &'a mut Option<Key>,
}

/// Why a blocked step was given up.
enum Refusal<P: TreePath + ?Sized> {
    WouldBlock,
    TimedOut,
    Deadlock(Vec<deadlock::Member<P>>),
}

impl<P: ?Sized + TreePath> TreeLock<P> {
    #[track_caller]
    pub(crate) fn acquire<Q: AsRef<P>>(
        &self,
        reads: &[Q],
        writes: &[Q],
        owner: Owner,
        patience: Patience,
    ) -> Result<Key, LockError> {
        let request = Request::new(&self.seeds, reads, writes, owner, Location::caller())?;
        self.agree_on_frame(reads.iter().chain(writes).map(AsRef::as_ref))?;
        let mut entry = None;
        for (index, &step) in request.plan.steps().iter().enumerate() {
            if !self.table.try_grant(step, &ModeCounts::NONE) {
                let blocked = Blocked { index, patience, entry: &mut entry };
                if let Err(refusal) = self.acquire_contended(&request, step, blocked) {
                    self.give_back(&request.plan.steps()[..index], entry);
                    request.recycle();
                    return Err(self.explain(refusal));
                }
            }
        }
        if let Some(entry) = entry {
            self.ledger.set_state(entry, State::Granted);
            return Ok(entry);
        }
        Ok(self.ledger.insert(request, State::Granted))
    }

    /// Takes a step that somebody, perhaps its own owner, holds or waits for.
    #[cold]
    fn acquire_contended(
        &self,
        request: &Arc<Request<P>>,
        step: Step,
        blocked: Blocked<'_>,
    ) -> Result<(), Refusal<P>> {
        let Nesting { nested, held } = self.ledger.nesting(request, step.node);
        let (deadline, temper) = match blocked.patience {
            Patience::None if self.table.try_grant(step, &held) => return Ok(()),
            Patience::None => return Err(Refusal::WouldBlock),
            Patience::Until(deadline) => (deadline, Temper::Refusable),
            Patience::Endless => (None, Temper::Endless),
        };
        let waiter = Arc::new(Waiter::default());
        let Some(ticket) = self.table.request(step, held, &waiter) else { return Ok(()) };
        let waiting = Waiting { step: blocked.index, ticket, waiter: Arc::clone(&waiter), temper };
        let entry = self.mark(blocked.entry, request, State::Waiting(waiting));

        // Every cycle has a nested request in it, and only such a one is ever reported.
        let mut look = nested.then_some(FIRST_LOOK);
        loop {
            let refusal = match waiter.wait(look, deadline) {
                Woken::Granted => {
                    self.ledger.set_state(entry, State::Walking);
                    return Ok(());
                }
                Woken::At(Time::Deadline) => {
                    self.ledger.set_state(entry, State::Walking);
                    Refusal::TimedOut
                }
                Woken::At(Time::Look) => {
                    let began = Instant::now();
                    match deadlock::find(self.ledger.lock(), entry) {
                        Look::Cycle(cycle) => Refusal::Deadlock(cycle),
                        Look::Blocked(parties) => {
                            let all_look = began.elapsed() * u32::try_from(parties).unwrap_or(u32::MAX);
                            look = look.map(|look| (look * 2).min(LONGEST_LOOK).max(all_look * SHARE_OF_LOOKS));
                            continue;
                        }
                    }
                }
            };
            let mut due = Due::default();
            return match self.table.cancel(step.node, ticket, &mut due) {
                true => Err(refusal),
                // It was granted in the last moment: it goes on.
                false => Ok(()),
            };
        }
    }

    /// Enters the request in the ledger, or changes its state there.
    fn mark(&self, entry: &mut Option<Key>, request: &Arc<Request<P>>, state: State) -> Key {
        match *entry {
            Some(entry) => {
                self.ledger.set_state(entry, state);
                entry
            }
            None => *entry.insert(self.ledger.insert(Arc::clone(request), state)),
        }
    }

    /// Takes back what a refused request has taken.
    #[cold]
    fn give_back(&self, taken: &[Step], entry: Option<Key>) {
        if let Some(entry) = entry {
            self.ledger.remove(entry);
        }
        let mut due = Due::default();
        for step in taken.iter().rev() {
            self.table.release(step.node, step.mode, &mut due);
        }
    }

    /// Releases what a guard holds.
    pub(crate) fn release(&self, entry: Key) {
        let entry = self.ledger.remove(entry);
        let mut due = Due::default();
        for (node, mode) in entry.holds().rev() {
            self.table.release(node, mode, &mut due);
        }
        drop(due);
        entry.request.recycle();
    }

    /// Turns the writes of a guard into reads.
    pub(crate) fn downgrade(&self, entry: Key) {
        let Some(request) = self.ledger.downgrade(entry) else { return };
        let mut due = Due::default();
        for step in request.plan.steps().iter().rev() {
            if step.mode != step.mode.downgraded() {
                self.table.downgrade(step.node, step.mode, &mut due);
            }
        }
    }

    /// Refuses paths that cannot be compared with those before (invariant 3 of `path.rs`).
    fn agree_on_frame<'p>(&self, paths: impl Iterator<Item = &'p P> + Clone) -> Result<(), PathError> {
        let Some(first) = paths.clone().next().map(P::frame) else { return Ok(()) };
        // A request that is refused decides nothing, so its own paths must agree first.
        let odd = paths.clone().find(|path| path.frame() != first);
        let refused = match odd {
            Some(odd) => Some(odd),
            None if self.frame.get_or_set(first as u8 + 1) != first as u8 + 1 => paths.into_iter().next(),
            None => None,
        };
        let Some(refused) = refused else { return Ok(()) };
        let (this, others) = match refused.frame() {
            Frame::Absolute => ("absolute", "relative"),
            Frame::Relative => ("relative", "absolute"),
        };
        Err(PathError::new(format!(
            "it is {this} and others given to this lock are {others}, so the two cannot be compared: \
             give all of them in one way (std::path::absolute makes a path absolute)"
        ))
        .at(refused))
    }

    fn explain(&self, refusal: Refusal<P>) -> LockError {
        match refusal {
            Refusal::WouldBlock => LockError::WouldBlock,
            Refusal::TimedOut => LockError::TimedOut,
            Refusal::Deadlock(cycle) => LockError::Deadlock(Box::new(Deadlock::of(&cycle, &self.seeds))),
        }
    }

    /// Plays the clock for all that wait now: their deadlines pass, or else they look for a deadlock.
    #[cfg(feature = "model")]
    #[doc(hidden)]
    pub fn strike(&self, deadline: bool) {
        let time = if deadline { Time::Deadline } else { Time::Look };
        let waiters: Vec<Arc<Waiter>> = self
            .ledger
            .lock()
            .entries()
            .filter_map(|(_, entry)| match &entry.state {
                State::Waiting(waiting) => Some(Arc::clone(&waiting.waiter)),
                State::Walking | State::Granted => None,
            })
            .collect();
        waiters.iter().for_each(|waiter| waiter.strike(time));
    }
}
