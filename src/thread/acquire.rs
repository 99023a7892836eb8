//! How a request is granted, and how it waits.
//!
//! A request is planned first (`plan.rs`; this runs user code), unless the last request of its register asked for the
//! same root. If all nodes above its roots are biased (`bias.rs`) and its register owns the roots (`own.rs`), it is
//! granted at once, under the mutex of that register alone. If it has one root, which the register does not own, the
//! root's shard is locked first. Otherwise:
//!
//! - A `try_lock` is decided at one moment: it locks the shards of all its nodes, in order, and takes all steps or
//!   none. So no other request is refused because of something that a `try_lock` holds for a while (G4).
//! - Every other request enters the ledger and takes its steps one after the other (`core/walk.rs`). Where it has to
//!   wait it queues, is marked in the ledger and parks; the thread that lets it on walks it on, and wakes it when it
//!   holds everything. It may also give up: when its deadline passes, or it finds itself in a deadlock. Then it gives
//!   back what it has taken.
//!
//! A release goes the same way back, the last node first, so that a request that is let in at an ancestor finds
//! nothing left below it. A thread that changes a node first walks on the requests that it lets on there
//! ([`TreeLock::move_on`]). It wakes those that hold everything when it has released all internal locks.
//!
//! Lock order: the turn to look for a deadlock; the turn of one node's movers; shards of the table in order; a
//! register of the ledger, or all in order; the names of owners; a waiter. No user code runs under any of these, and
//! nobody is woken under one.

use crate::core::deadlock::{Left, Temper};
use crate::core::mode::{Mode, ModeCounts};
use crate::core::node::Stamp;
use crate::core::node_id::NodeId;
use crate::core::owner::Owner;
use crate::core::path::{OursAlone, PathError, TreePath, join_frame, odd_frame};
use crate::core::plan::Step;
use crate::core::segments::Segments;
use crate::core::walk::{Taken, walk};
use crate::error::LockError;
use crate::inspect::Deadlock;
use crate::patience::{FIRST_LOOK, Patience, next_look};
use crate::sync::{self, AtomicU64, Moment, Mutex, MutexGuard, Ordering, SHARDS};
#[cfg(feature = "model")]
use crate::thread::ledger::State;
use crate::thread::ledger::{Found, Key, Leaving, Standing, Waiting};
use crate::thread::lock::TreeLock;
use crate::thread::parties;
use crate::thread::request::{Asker, Request, SharedRequest};
use crate::thread::table::{Due, Grant, LockedShard, Place};
use crate::thread::waiter::{Sleeper, Time, Waiter, Woken};
use std::borrow::Borrow;
use std::panic::Location;
use std::sync::Arc;
use std::time::Instant;

/// The turn to look for a deadlock: no thread gets it while another one looks, and for `REST` times as long
/// afterwards.
#[derive(Debug, Default)]
pub(crate) struct Looks(Mutex<Option<Instant>>);

const REST: u32 = 8;

/// The right to look now; the rest begins when it is dropped.
struct Turn<'a> {
    began: Instant,
    rested: MutexGuard<'a, Option<Instant>>,
}

impl Looks {
    /// In a model a thread always gets the turn, since no time passes there.
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

/// Gives each request that begins to wait its place in the order of all waiters. Only such requests write it.
#[derive(Debug, Default)]
pub(crate) struct Stamps(AtomicU64);

impl Stamps {
    fn next(&self) -> Stamp {
        // Relaxed: a stamp is taken under the mutex of the shard where the request queues first, which orders the
        // requests that meet there.
        Stamp(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// What a guard consists of: the place of its entry in the ledger, and how to try its release first. One word, since
/// it is passed on often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry(u64);

/// Under which mutexes a request was granted, and so how its release is tried first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GrantedBy {
    /// The mutex of its register alone.
    Register,
    /// Those of shards too; the last step is in this shard.
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

/// What became of a request that was made.
pub(crate) enum Asked<P: TreePath + ?Sized> {
    Granted(Entry),
    /// It is in the ledger, and has taken nothing yet.
    Entered(Key, SharedRequest<P>),
}

/// Why a request gave up.
pub(crate) enum Refusal<P: TreePath + ?Sized> {
    TimedOut,
    Deadlock(Vec<parties::Member<P>>),
}

/// What became of the attempt to take a request out of its queue.
enum Cancelled {
    /// It is out of the queue, and holds this many of its steps.
    Out(usize),
    /// It has been let on at this node, as the mover of this number.
    LetOn(NodeId, u64),
    /// It waits at a step where it is not to give up.
    Not,
    Granted,
}

impl<P: ?Sized + TreePath> TreeLock<P> {
    #[track_caller]
    pub(crate) fn acquire<R: AsRef<P>, W: AsRef<P>>(
        &self,
        reads: &[R],
        writes: &[W],
        owner: Owner,
        patience: Patience,
    ) -> Result<Entry, LockError> {
        let (key, request) = match self.ask(reads, writes, owner, Location::caller())? {
            Asked::Granted(entry) => return Ok(entry),
            Asked::Entered(key, request) => (key, request),
        };
        match patience {
            Patience::None => self.try_now(key, request),
            Patience::Until(deadline) => self.take_or_wait(key, &request, deadline, Temper::Refusable),
            Patience::Endless => self.take_or_wait(key, &request, None, Temper::Endless),
        }
    }

    /// Plans a request. If it needs no waiting, it is usually granted here; otherwise it enters the ledger.
    #[inline]
    pub(crate) fn ask<R: AsRef<P>, W: AsRef<P>>(
        &self,
        reads: &[R],
        writes: &[W],
        owner: Owner,
        location: &'static Location<'static>,
    ) -> Result<Asked<P>, LockError> {
        let asker = Asker { thread: sync::thread_id(), owner, location };
        let register = self.ledger.register_of(owner.id(asker.thread).unwrap_or(asker.thread));
        let since = Moment::now();
        let biased = |node| self.table.is_biased(node);
        let spent = match only_text::<P, R, W>(reads, writes) {
            Some(root) => match self.ledger.enter_again(register, root, asker, since, biased) {
                Ok(key) => return Ok(Asked::Granted(Entry::new(key, GrantedBy::Register))),
                Err(spent) => spent,
            },
            None => self.ledger.spent(register),
        };
        let request = Request::new(spent, &self.seeds, reads, writes, asker)?;
        let request = if request.plan.roots().all(|root| self.table.seems_published(register, root)) {
            match self.ledger.enter_owned(register, request, since, biased) {
                Ok(key) => return Ok(Asked::Granted(Entry::new(key, GrantedBy::Register))),
                Err(request) => request,
            }
        } else {
            request
        };
        let request = match request.plan.steps() {
            // The usual case: all but the last step can be published. A look at the deepest of these, which is biased
            // last, is enough to try.
            &[ref above @ .., last] if above.last().is_none_or(|step| biased(step.node)) => {
                let place = Place::of(last.node);
                let mut shard = self.table.lock(place);
                shard.contest(last.node, &self.ledger);
                match self.ledger.enter_granted(register, request, since, biased, || shard.try_grant(last)) {
                    Ok(key) => return Ok(Asked::Granted(Entry::new(key, GrantedBy::Shards(place)))),
                    Err(request) => request,
                }
            }
            _ => request,
        };
        let key = self.enter(register, &request, since)?;
        Ok(Asked::Entered(key, request))
    }

    /// Takes all steps at one moment, or none.
    fn try_now(&self, key: Key, request: SharedRequest<P>) -> Result<Entry, LockError> {
        let biased = |node| self.table.is_biased(node);
        let mut above = self.ledger.publishable(&request, biased);
        let mut has_let_go_ahead = false;
        loop {
            let steps = &request.plan.steps()[above..];
            let mut shards = self.table.lock_all(steps.iter().map(|step| step.node));
            // The movers that were let on before this request came go on first.
            let mut ahead = Due::default();
            let mut taken = 0;
            for (index, &step) in steps.iter().enumerate() {
                let held = || self.ledger.held(request.owner_id(), step.node);
                match shards.of(step.node).take(step, Stamp::NEWCOMER, &self.ledger, held) {
                    Grant::Granted => {}
                    Grant::Behind(number) if index + 1 < steps.len() && !has_let_go_ahead => {
                        ahead.moves.push((step.node, number));
                    }
                    Grant::Behind(_) => {}
                    Grant::Refused(_) => break,
                }
                taken += 1;
            }
            let is_refused = taken < steps.len();
            let may_go = !is_refused && ahead.moves.is_empty();
            if may_go && self.ledger.grant_below(key, above, biased) {
                return Ok(granted(key, &request));
            }
            let mut nobody = Due::default();
            for step in steps.iter().take(taken).rev() {
                shards.of(step.node).take_back(step, &self.ledger, &mut nobody);
            }
            debug_assert!(nobody.is_empty(), "nobody has seen what was taken");
            drop(shards);
            if is_refused {
                ahead.moves.clear();
                drop(request);
                self.recycle(key, Some(self.ledger.remove(key)));
                return Err(LockError::WouldBlock);
            }
            if may_go {
                // A bias was revoked meanwhile: its node has to count the step.
                above = 0;
            }
            has_let_go_ahead = true;
            self.move_on(&mut ahead);
        }
    }

    /// Enters a request in the ledger, unless its paths cannot be compared with those of the others.
    fn enter(&self, register: usize, request: &SharedRequest<P>, since: Moment) -> Result<Key, LockError> {
        let odd = || odd_frame(request.roots.iter().map(Borrow::borrow)).into();
        self.ledger.enter(register, request, since).ok_or_else(odd)
    }

    /// Takes one step after the other, and waits where it must.
    fn take_or_wait(
        &self,
        key: Key,
        request: &SharedRequest<P>,
        deadline: Option<Instant>,
        temper: Temper,
    ) -> Result<Entry, LockError> {
        if let Some(waiter) = self.set_out(key, request, temper, Sleeper::Thread) {
            self.wait(request, &waiter, deadline).map_err(|refusal| self.explain(refusal))?;
        }
        Ok(granted(key, request))
    }

    /// Takes one step after the other. Where it has to wait, it queues; the waiter is returned.
    pub(crate) fn set_out(
        &self,
        key: Key,
        request: &SharedRequest<P>,
        temper: Temper,
        sleeper: Sleeper,
    ) -> Option<Arc<Waiter>> {
        let mut waiter = None;
        let mut due = Due::default();
        let steps = request.plan.steps();
        let stopped = walk(0, steps.len(), |index| {
            let step = steps[index];
            if let published @ 1.. = self.publish(key, index, step) {
                return Taken::Steps(published);
            }
            let mut shard = self.table.lock(Place::of(step.node));
            let held = || self.ledger.held(request.owner_id(), step.node);
            match shard.take(step, Stamp::NEWCOMER, &self.ledger, held) {
                Grant::Granted => Taken::Steps(1),
                Grant::Behind(number) => {
                    drop(shard);
                    if index + 1 < steps.len() {
                        due.moves.push((step.node, number));
                        self.move_on(&mut due);
                    }
                    Taken::Steps(1)
                }
                Grant::Refused(held) => {
                    let new = Arc::new(Waiter::new(key, self.stamps.next(), temper, sleeper));
                    self.queue(&mut shard, index, step, held, &new, &mut due);
                    waiter = Some(new);
                    Taken::No
                }
            }
        });
        self.move_on(&mut due);
        if stopped.is_none() {
            self.ledger.grant(key);
        }
        // Those that were walked on are woken now. If this holds everything, what wakes them may ask for that, too. (If it has to
        // wait, a waker that blocks may wait for this very request: the README warns of that.)
        waiter
    }

    /// Parks until the request holds everything, or gives up.
    #[cold]
    fn wait(&self, request: &Request<P>, waiter: &Waiter, deadline: Option<Instant>) -> Result<(), Refusal<P>> {
        // Every cycle has a nested request in it, and only a nested one gets the report.
        let mut look = self.ledger.is_nested(request, waiter.sleeper).then_some(FIRST_LOOK);
        let mut left = Left::default();
        loop {
            match waiter.wait(look, deadline) {
                Woken::Granted => return Ok(()),
                Woken::At(Time::Deadline) => {
                    return if self.give_up(waiter.key).is_ok() { Err(Refusal::TimedOut) } else { Ok(()) };
                }
                Woken::At(Time::Look) => {
                    if let Some(refusal) = self.look(waiter.key, &mut left) {
                        return Err(refusal);
                    }
                    look = look.map(next_look);
                }
            }
        }
    }

    /// Takes a request out of the queue that it waits in, and gives back what it has taken. If it is granted, what is to be done
    /// for others meanwhile is returned.
    pub(crate) fn give_up(&self, key: Key) -> Result<(), Due> {
        let mut due = Due::default();
        loop {
            match self.cancel(key, |_| true, &mut due) {
                Cancelled::Out(taken) => {
                    self.retreat(key, taken, due);
                    return Ok(());
                }
                Cancelled::Granted => return Err(due),
                // Each time round it has come further; in the end it waits in a queue, or holds everything.
                Cancelled::LetOn(node, number) => {
                    due.moves.push((node, number));
                    self.move_on(&mut due);
                }
                Cancelled::Not => unreachable!("it gives up wherever it waits"),
            }
        }
    }

    /// Looks whether a request waits in a deadlock. If it has to report one, it gives up.
    pub(crate) fn look(&self, key: Key, left: &mut Left) -> Option<Refusal<P>> {
        let turn = self.looks.turn();
        let cycle = turn.as_ref().and_then(|_| parties::find(self.ledger.lock(), key, &self.owners, left));
        drop(turn);
        let cycle = cycle?;
        let mut due = Due::default();
        // Only where the look found it: if it has come further, another one of the cycle has given up.
        match self.cancel(key, Waiting::is_reported, &mut due) {
            Cancelled::Out(taken) => {
                self.retreat(key, taken, due);
                Some(Refusal::Deadlock(cycle))
            }
            _ => None,
        }
    }

    /// Takes a request out of the queue that it waits in, if it is to give up there.
    fn cancel(&self, key: Key, gives_up: impl Fn(&Waiting) -> bool, due: &mut Due) -> Cancelled {
        loop {
            let Some((request, waiting)) = self.ledger.waiting(key) else { return Cancelled::Granted };
            let step = waiting.step;
            let node = request.plan.steps()[step].node;
            let ticket = match waiting.standing {
                Standing::Queued(ticket) if gives_up(&waiting) => ticket,
                Standing::Queued(_) => return Cancelled::Not,
                Standing::LetOn(number) => return Cancelled::LetOn(node, number),
            };
            let mut shard = self.table.lock(Place::of(node));
            let is_out = shard.cancel(key, node, ticket, &self.ledger, due);
            drop(shard);
            self.move_on(due);
            if is_out {
                return Cancelled::Out(step);
            }
        }
    }

    /// Walks on all requests that a change has let on, and those that become movers of another node by that.
    fn move_on(&self, due: &mut Due) {
        while let Some((node, until)) = due.moves.pop() {
            let Some(turn) = self.table.turn(node, until) else { continue };
            let _turn = turn.lock();
            while let Some(waiter) = self.table.next_mover(node, until) {
                self.walk_on(&waiter, due);
                self.table.arrived(node);
            }
        }
    }

    /// Walks on a mover, for the thread that has the turn.
    fn walk_on(&self, waiter: &Arc<Waiter>, due: &mut Due) {
        let Some((request, Waiting { step: at, .. })) = self.ledger.waiting(waiter.key) else {
            unreachable!("a mover waits until it is walked on")
        };
        // Copies: as soon as the request is granted, or queues, its thread may be done with it, and the last one to
        // drop it drops its paths. That is user code, which must not run during a turn.
        let (steps, owner) = (request.plan.steps().to_vec(), request.owner_id());
        drop(request);
        let stopped = walk(at + 1, steps.len(), |index| {
            let step = steps[index];
            if let published @ 1.. = self.publish(waiter.key, index, step) {
                return Taken::Steps(published);
            }
            let mut shard = self.table.lock(Place::of(step.node));
            let held = || self.ledger.held(owner, step.node);
            match shard.take(step, waiter.stamp, &self.ledger, held) {
                Grant::Behind(_) if index + 1 < steps.len() => {
                    let number = shard.move_behind(step, waiter);
                    self.ledger.wait(index, Standing::LetOn(number), waiter);
                    due.moves.push((step.node, number));
                    Taken::No
                }
                Grant::Granted | Grant::Behind(_) => Taken::Steps(1),
                Grant::Refused(held) => {
                    self.queue(&mut shard, index, step, held, waiter, due);
                    Taken::No
                }
            }
        });
        if stopped.is_none() {
            self.ledger.grant(waiter.key);
            waiter.grant();
            due.granted.push(Arc::clone(waiter));
        }
    }

    /// Publishes a step and as many of those after it as may be published; returns how many.
    fn publish(&self, key: Key, index: usize, step: Step) -> usize {
        match self.table.seems_published(self.ledger.register(key), &step) {
            true => self.ledger.publish(key, index, |node| self.table.is_biased(node)),
            false => 0,
        }
    }

    /// Lets a request queue for a step that was refused.
    fn queue(
        &self,
        shard: &mut LockedShard<'_>,
        index: usize,
        step: Step,
        held: ModeCounts,
        waiter: &Arc<Waiter>,
        due: &mut Due,
    ) {
        let ticket = shard.enqueue(step, held, waiter, &self.ledger, due);
        self.ledger.wait(index, Standing::Queued(ticket), waiter);
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

    /// Releases a request that is not published any longer, or never was as a whole.
    fn release_counted(&self, entry: Entry) {
        let key = entry.key();
        let place = match entry.granted_by() {
            GrantedBy::Register => self.ledger.last_of(key).map_or(Place::default(), Place::of),
            GrantedBy::Shards(place) => place,
        };
        let mut due = Due::default();
        let mut shard = self.table.lock(place);
        match self.ledger.leave(key) {
            Ok((spent, step)) => {
                shard.release(&step, self.ledger.register(key), &self.ledger, &mut due);
                drop(shard);
                self.move_on(&mut due);
                drop(due);
                self.recycle(key, spent);
            }
            Err(leaving) => {
                drop(shard);
                let taken = leaving.request.plan.steps().len();
                self.give_back(key, leaving, taken, Due::default());
            }
        }
    }

    /// Keeps a spent request of an entry, if there is one.
    #[inline]
    fn recycle(&self, key: Key, spent: Option<SharedRequest<P>>) {
        if let Some(request) = spent.and_then(Request::recycle) {
            self.ledger.keep(self.ledger.register(key), request);
        }
    }

    /// Releases the first steps of a request, the last of them first, and removes its entry.
    fn give_back(&self, key: Key, leaving: Leaving<P>, taken: usize, mut due: Due) {
        let mut left = taken;
        while left > 0 {
            if leaving.may_have_published(left) {
                left = self.ledger.unpublish_last(key, left);
            }
            // The node counts this step, or has begun to meanwhile.
            if let Some(step) = left.checked_sub(1).map(|last| leaving.request.plan.steps()[last]) {
                let mut shard = self.table.lock(Place::of(step.node));
                shard.release(&step, self.ledger.register(key), &self.ledger, &mut due);
                drop(shard);
                self.move_on(&mut due);
                left -= 1;
            }
        }
        let spent = self.ledger.remove(key);
        drop(due);
        drop(leaving);
        self.recycle(key, Some(spent));
    }

    /// What a guard holds, for reports.
    pub(crate) fn found(&self, entry: Entry) -> Found<P> {
        self.ledger.found(entry.key())
    }

    /// Gives back a part of what a guard holds: `keep` gets the index and the mode of each root, and returns the mode
    /// in which the root stays, if it does.
    pub(crate) fn weaken(&self, entry: &mut Entry, keep: impl FnMut(usize, Mode) -> Option<Mode>) {
        let key = entry.key();
        // This clones paths, which is user code, so it comes first and without any internal lock.
        let old = self.ledger.request(key);
        let weaker = old.of_some(keep);
        if weaker.plan.steps() == old.plan.steps() {
            // What stays covers what goes: no node changes, only the list of roots.
            if weaker.roots.len() < old.roots.len() {
                drop(self.ledger.weaken(key, weaker));
            }
            return;
        }
        // Nodes change one by one, the last first, as in a release; so they must count what was published.
        for (index, step) in old.plan.steps().iter().enumerate().rev() {
            self.table.count(*step, &self.ledger, || self.ledger.unpublish_step(key, index));
        }
        // A root that stays may lie in one that goes, which has covered it so far. So it takes its nodes first: those
        // that have no step yet, and those where the guard only intended to write below and is to read. No other
        // owner can hold them, and biases are revoked there.
        let is_new = |step: &&Step| !old.plan.mode_of(step).is_some_and(|mode| mode.covers(step.mode));
        for step in weaker.plan.steps().iter().filter(is_new) {
            let mut shard = self.table.lock(Place::of(step.node));
            let held = || match (old.owner_id(), old.plan.mode_of(step)) {
                // The guard has no owner, but it does not exclude itself.
                (None, Some(mode)) => ModeCounts::of(mode),
                (owner, _) => self.ledger.held(owner, step.node),
            };
            let taken = shard.take(*step, Stamp::NEWCOMER, &self.ledger, held);
            debug_assert!(!matches!(taken, Grant::Refused(_)), "it was covered");
        }
        let old = self.ledger.weaken(key, SharedRequest::clone(&weaker));
        // This comes before the old paths are dropped, which is user code.
        *entry = Entry::new(key, GrantedBy::Shards(last_place(&weaker)));
        let mut due = Due::default();
        for step in old.plan.steps().iter().rev() {
            let kept = weaker.plan.mode_of(step).filter(|&mode| step.mode.covers(mode));
            if kept == Some(step.mode) {
                continue;
            }
            let mut shard = self.table.lock(Place::of(step.node));
            match kept {
                Some(mode) => shard.downgrade(step.node, step.mode, mode, &self.ledger, &mut due),
                None => shard.release(step, self.ledger.register(key), &self.ledger, &mut due),
            }
            drop(shard);
            self.move_on(&mut due);
        }
    }

    /// Turns the writes of a guard into reads.
    pub(crate) fn downgrade(&self, entry: &mut Entry) {
        self.weaken(entry, |_, mode| Some(mode.downgraded()));
    }

    /// Releases some of the roots of a guard: those at the nodes of these paths.
    pub(crate) fn release_roots<Q: AsRef<P>>(&self, entry: &mut Entry, roots: &[Q]) -> Result<(), PathError> {
        let request = self.ledger.request(entry.key());
        let mut ways: Vec<(NodeId, usize)> =
            request.plan.ways().enumerate().map(|(index, way)| (way[way.len() - 1].node, index)).collect();
        ways.sort_unstable();
        let mut released = vec![false; ways.len()];
        let mut ids = Vec::new();
        for path in roots {
            ids.clear();
            Segments::of(path.as_ref(), &self.seeds, &mut ids, None)?;
            join_frame(request.frame, path.as_ref())?;
            let root = ids[ids.len() - 1];
            let first = ways.partition_point(|&(node, _)| node < root);
            let same = ways[first..].iter().take_while(|&&(node, _)| node == root);
            if same.map(|&(_, index)| released[index] = true).count() == 0 {
                let reason =
                    "it is no root of this guard: only what was asked for as a root can be released on its own";
                return Err(PathError::new(reason).at(path.as_ref()));
            }
        }
        drop(request);
        self.weaken(entry, |index, mode| (!released[index]).then_some(mode));
        Ok(())
    }

    /// Removes a request that has given up, and gives back the steps that it has taken. Those that it has let in by giving up
    /// are woken then: what wakes them may ask for what it had.
    fn retreat(&self, key: Key, taken: usize, due: Due) {
        self.give_back(key, self.ledger.refuse(key), taken, due);
    }

    pub(crate) fn explain(&self, refusal: Refusal<P>) -> LockError {
        match refusal {
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

    /// Plays the clock for all requests that wait now: their deadlines pass, or they look for a deadlock.
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

/// The entry of a request that has been granted step by step.
pub(crate) fn granted<P: TreePath + ?Sized>(key: Key, request: &Request<P>) -> Entry {
    Entry::new(key, GrantedBy::Shards(last_place(request)))
}

/// The shard of the last step of a request.
fn last_place<P: TreePath + ?Sized>(request: &Request<P>) -> Place {
    request.plan.steps().last().map_or(Place::default(), |last| Place::of(last.node))
}

/// The root of a request for one root, if it is text that can be compared with that of the request before.
#[inline]
fn only_text<'q, P, R, W>(reads: &'q [R], writes: &'q [W]) -> Option<(&'q [u8], Mode)>
where
    P: TreePath + ?Sized,
    R: AsRef<P>,
    W: AsRef<P>,
{
    let (path, mode) = match (reads, writes) {
        ([path], []) => (path.as_ref(), Mode::Shared),
        ([], [path]) => (path.as_ref(), Mode::Exclusive),
        _ => return None,
    };
    Some((path.text(OursAlone)?, mode))
}
