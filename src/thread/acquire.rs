//! How a request is granted, and how it waits.
//!
//! A request is planned first (`plan.rs`, user code and all), unless the last one of its register asked for the same root. If
//! all nodes above its roots are biased (`bias.rs`) and its register owns the roots (`own.rs`), it is granted at once, under
//! the mutex of that register alone. If the register does not own its one root, the shard of that is locked first.
//!
//! Else it enters the ledger with what it can publish, and takes the other steps one after the other, ancestors first.
//! Each is granted by its node (`table.rs`), or it is *contended*: then the ledger is asked what its owner holds there
//! already, and if that does not help it queues, marks itself in the ledger and parks, until it is granted, its deadline
//! passes or it finds itself in a deadlock. A request that gives up gives back the steps it has taken, which wakes
//! whoever waited behind it (G7).
//!
//! A release goes the same way back, the last node first, so that whoever is let in at an ancestor finds nothing left
//! below it.
//!
//! Lock order: whose turn it is to look; a shard of the table; a register of the ledger, or all; a waiter. No user code
//! runs under any of these, and nobody is woken under one.

use crate::core::deadlock::Temper;
use crate::core::mode::{Mode, ModeCounts};
use crate::core::owner::Owner;
use crate::core::path::{OursAlone, PathError, TreePath, common_frame, odd_frame};
use crate::core::plan::Step;
use crate::error::LockError;
use crate::inspect::Deadlock;
use crate::patience::{FIRST_LOOK, LONGEST_LOOK, Patience};
use crate::sync::{self, Moment, Mutex, MutexGuard, SHARDS};
use crate::thread::ledger::{Key, Leaving, Nesting, State, Waiting};
use crate::thread::lock::TreeLock;
use crate::thread::parties;
use crate::thread::request::{Asker, Request, SharedRequest};
use crate::thread::table::{Due, Place};
use crate::thread::waiter::{Time, Waiter, Woken};
use std::panic::Location;
use std::sync::Arc;
use std::time::Instant;

/// Whose turn it is to look: nobody's while somebody does, and for so many times as long afterwards.
#[derive(Debug, Default)]
pub(crate) struct Looks(Mutex<Option<Instant>>);

const REST: u32 = 8;

/// The right to look now; the rest begins when it is dropped.
struct Turn<'a> {
    began: Instant,
    rested: MutexGuard<'a, Option<Instant>>,
}

impl Looks {
    /// In a model it is always one's turn: there is no time in it that could pass.
    fn turn(&self) -> Option<Turn<'_>> {
        let rested = if cfg!(feature = "model") { self.0.lock() } else { self.0.try_lock()? };
        let began = Instant::now();
        let may = cfg!(feature = "model") || rested.is_none_or(|rested| rested <= began);
        may.then_some(Turn { began, rested })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.rested = Some(Instant::now() + self.began.elapsed() * REST);
    }
}

/// What a guard has: the request's entry in the ledger, and how its release is to be tried first. One word, since it is
/// handed on often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry(u64);

/// Under which mutexes a request was granted, and so how its release is tried first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GrantedBy {
    /// That of its register alone.
    Register,
    /// Those of shards too; its last step is in that one.
    Shards(Place),
}

impl Entry {
    const GRANT_BITS: u32 = 8;

    #[inline]
    fn new(key: Key, granted_by: GrantedBy) -> Self {
        const { assert!(SHARDS < 1 << Entry::GRANT_BITS) };
        let grant = match granted_by {
            GrantedBy::Register => 0,
            GrantedBy::Shards(last) => last.number() as u64 + 1,
        };
        Entry(key.to_word() << Self::GRANT_BITS | grant)
    }

    #[inline]
    fn key(self) -> Key {
        Key::of_word(self.0 >> Self::GRANT_BITS)
    }

    #[inline]
    fn granted_by(self) -> GrantedBy {
        match (self.0 & ((1 << Self::GRANT_BITS) - 1)) as usize {
            0 => GrantedBy::Register,
            place => GrantedBy::Shards(Place::of_number(place - 1)),
        }
    }
}

/// A step that is waited for.
struct Blocked {
    index: usize,
    patience: Patience,
    key: Key,
}

/// Why a blocked step was given up.
enum Refusal<P: TreePath + ?Sized> {
    WouldBlock,
    TimedOut,
    Deadlock(Vec<parties::Member<P>>),
}

impl<P: ?Sized + TreePath> TreeLock<P> {
    #[track_caller]
    pub(crate) fn acquire<Q: AsRef<P>>(
        &self,
        reads: &[Q],
        writes: &[Q],
        owner: Owner,
        patience: Patience,
    ) -> Result<Entry, LockError> {
        let asker = Asker { thread: sync::thread_id(), owner, location: Location::caller() };
        let register = self.ledger.register_of(asker.thread);
        let since = Moment::now();
        let biased = |node| self.table.is_biased(node);
        let spent = match self.only_text(reads, writes) {
            Some(root) => match self.ledger.enter_again(register, root, asker, since, biased) {
                Ok(key) => return Ok(Entry::new(key, GrantedBy::Register)),
                Err(spent) => spent,
            },
            None => self.ledger.spent(register),
        };
        let request = Request::new(spent, &self.seeds, reads, writes, asker)?;
        self.agree_on_frame(reads.iter().chain(writes).map(AsRef::as_ref))?;
        let request = if request.plan.roots().all(|root| self.table.seems_published(register, root)) {
            match self.ledger.enter_owned(register, request, since, biased) {
                Ok(key) => return Ok(Entry::new(key, GrantedBy::Register)),
                Err(request) => request,
            }
        } else {
            request
        };
        let request = match request.plan.steps() {
            // The usual case: all but the last step can be published. The coldest of them tells.
            &[ref above @ .., last] if above.last().is_none_or(|step| biased(step.node)) => {
                let place = Place::of(last.node);
                let mut shard = self.table.lock(place);
                shard.contest(last.node, &self.ledger);
                match self.ledger.enter_granted(register, request, since, biased, || shard.try_grant(last)) {
                    Ok(key) => return Ok(Entry::new(key, GrantedBy::Shards(place))),
                    Err(request) => request,
                }
            }
            _ => request,
        };
        self.walk(register, request, since, patience)
    }

    /// The one root that is asked for, if it is text that can be compared with what was asked for before.
    #[inline]
    fn only_text<'q, Q: AsRef<P>>(&self, reads: &'q [Q], writes: &'q [Q]) -> Option<(&'q [u8], Mode)> {
        let (path, mode) = match (reads, writes) {
            ([path], []) => (path.as_ref(), Mode::Shared),
            ([], [path]) => (path.as_ref(), Mode::Exclusive),
            _ => return None,
        };
        let text = path.text(OursAlone)?;
        (self.frame.get() == path.frame() as u8 + 1).then_some((text, mode))
    }

    /// Takes one step after the other.
    fn walk(
        &self,
        register: usize,
        request: SharedRequest<P>,
        since: Moment,
        patience: Patience,
    ) -> Result<Entry, LockError> {
        let last = request.plan.steps().last().map_or(Place::default(), |last| Place::of(last.node));
        let key = self.ledger.enter(register, SharedRequest::clone(&request), since);
        let steps = request.plan.steps();
        let mut index = 0;
        while index < steps.len() {
            let step = steps[index];
            if self.table.seems_published(register, &step) {
                let published = self.ledger.publish(key, index, |node| self.table.is_biased(node));
                index += published;
                if published > 0 {
                    continue;
                }
            }
            if !self.table.try_grant(step, &ModeCounts::NONE, &self.ledger) {
                let blocked = Blocked { index, patience, key };
                if let Err(refusal) = self.acquire_contended(&request, step, blocked) {
                    self.give_back(key, self.ledger.refuse(key), index);
                    return Err(self.explain(refusal));
                }
            }
            index += 1;
        }
        self.ledger.set_state(key, State::Granted);
        Ok(Entry::new(key, GrantedBy::Shards(last)))
    }

    /// Takes a step that somebody, perhaps its own owner, holds or waits for.
    #[cold]
    fn acquire_contended(&self, request: &SharedRequest<P>, step: Step, blocked: Blocked) -> Result<(), Refusal<P>> {
        let Nesting { nested, held } = self.ledger.nesting(request, step.node);
        let (deadline, temper) = match blocked.patience {
            Patience::None if self.table.try_grant(step, &held, &self.ledger) => return Ok(()),
            Patience::None => return Err(Refusal::WouldBlock),
            Patience::Until(deadline) => (deadline, Temper::Refusable),
            Patience::Endless => (None, Temper::Endless),
        };
        let waiter = Arc::new(Waiter::default());
        let Some(ticket) = self.table.request(step, held, &waiter, &self.ledger) else { return Ok(()) };
        let waiting = Waiting { step: blocked.index, ticket, waiter: Arc::clone(&waiter), temper };
        let entry = blocked.key;
        self.ledger.set_state(entry, State::Waiting(waiting));

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
                    match self.looks.turn().and_then(|_turn| parties::find(self.ledger.lock(), entry)) {
                        Some(cycle) => Refusal::Deadlock(cycle),
                        None => {
                            look = look.map(|look| (look * 2).min(LONGEST_LOOK));
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

    /// Releases what a guard holds.
    #[inline]
    pub(crate) fn release(&self, entry: Entry) {
        if entry.granted_by() == GrantedBy::Register {
            if let Ok(spent) = self.ledger.leave_owned(entry.key()) {
                return self.recycle(entry.key(), spent);
            }
        }
        self.release_counted(entry);
    }

    /// Releases what is not published any longer, or was not from the beginning.
    fn release_counted(&self, entry: Entry) {
        let key = entry.key();
        let place = match entry.granted_by() {
            GrantedBy::Register => self.ledger.last_of(key).map_or(Place::default(), Place::of),
            GrantedBy::Shards(place) => place,
        };
        let mut due = Due::default();
        let mut shard = self.table.lock(place);
        let register = self.ledger.register(key);
        let left = self.ledger.leave(key, |node, mode, owned| {
            shard.release(node, mode, register, &mut due, || owned.add(node));
        });
        drop(shard);
        drop(due);
        match left {
            Ok(spent) => self.recycle(key, spent),
            Err(leaving) => {
                let taken = leaving.request.plan.steps().len();
                self.give_back(key, leaving, taken);
            }
        }
    }

    /// Releases the first steps of a request, the last of them first, and takes out its entry.
    fn give_back(&self, key: Key, leaving: Leaving<P>, taken: usize) {
        let mut due = Due::default();
        let mut left = taken;
        while left > 0 {
            if leaving.may_have_published(left) {
                left = self.ledger.unpublish_last(key, left);
            }
            // This one its node counts, or has begun to.
            if let Some(step) = left.checked_sub(1).map(|last| leaving.request.plan.steps()[last]) {
                let mode = leaving.access.mode(step.mode);
                self.table.release(step.node, mode, self.ledger.register(key), &self.ledger, &mut due);
                left -= 1;
            }
        }
        drop(due);
        drop(leaving);
        self.recycle(key, Some(self.ledger.remove(key)));
    }

    /// Keeps a spent request of an entry, if there is one.
    #[inline]
    fn recycle(&self, key: Key, spent: Option<SharedRequest<P>>) {
        if let Some(request) = spent.and_then(Request::recycle) {
            self.ledger.keep(self.ledger.register(key), request);
        }
    }

    /// Turns the writes of a guard into reads.
    pub(crate) fn downgrade(&self, entry: Entry) {
        let key = entry.key();
        let Some(request) = self.ledger.as_asked(key) else { return };
        let steps = request.plan.steps();
        let weakened = || steps.iter().enumerate().rev().filter(|(_, step)| step.mode != step.mode.downgraded());
        // Nodes change one by one, the last first, as in a release; so they have to count what was published.
        for (index, step) in weakened() {
            self.table.count(*step, &self.ledger, || self.ledger.unpublish_step(key, index));
        }
        self.ledger.downgrade(key);
        let mut due = Due::default();
        for (_, step) in weakened() {
            self.table.downgrade(step.node, step.mode, &mut due);
        }
    }

    /// Refuses paths that cannot be compared with those before (invariant 3 of `path.rs`).
    fn agree_on_frame<'p>(&self, paths: impl Iterator<Item = &'p P> + Clone) -> Result<(), PathError> {
        // A request that is refused decides nothing, so its own paths must agree first.
        let Some(frame) = common_frame(paths.clone())? else { return Ok(()) };
        if self.frame.get_or_set(frame as u8 + 1) == frame as u8 + 1 {
            return Ok(());
        }
        Err(odd_frame(paths.into_iter().next().expect("one has a frame")))
    }

    fn explain(&self, refusal: Refusal<P>) -> LockError {
        match refusal {
            Refusal::WouldBlock => LockError::WouldBlock,
            Refusal::TimedOut => LockError::TimedOut,
            Refusal::Deadlock(cycle) => LockError::Deadlock(Box::new(Deadlock::of(&cycle, &self.seeds))),
        }
    }

    /// The number of nodes that count something, and of requests.
    #[cfg(feature = "model")]
    #[doc(hidden)]
    pub fn live(&self) -> (usize, usize) {
        (self.table.len(), self.ledger.lock().entries().count())
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
