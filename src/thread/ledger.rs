//! The ledger: all granted and waiting requests of a lock.
//!
//! Nodes only count ([`node.rs`](crate::core::node)); the ledger knows the requests behind the counts. What no node
//! counts is *published* here: intentions on biased nodes (`bias.rs`) and roots that a register owns (`own.rs`). It
//! answers three questions, none of them on the fast path: what does this owner hold at that node (re-entrancy), who
//! waits for whom (`parties.rs`), and who holds what (`report.rs`). It is split by owner into registers, each under a
//! mutex of its own, so that a thread writes where no other does.
//!
//! ```text
//!            ┌────────────────────────── granted without waiting ─────────────────────────┐
//!  enter ── Walking ── wait ──> Waiting, queued <──┐                                      v
//!             ^                   │       │        │ has to wait again                  Granted ── leave
//!             │                   │    let_on ──> Waiting, let on ── grant ───────────────^
//!             └─── stop_waiting ──┘       └─────────── it was its last step ──────────────┘
//! ```
//!
//! Invariants:
//!
//! 1. The ledger is never ahead of the nodes: a request is entered as granted after its last step is granted and
//!    taken out (or weakened) before the first is released, or both happen under the mutex of that step's shard. So two
//!    entries that are granted never conflict.
//! 2. An entry that waits is queued at its step exactly while it is marked so: both change under the mutex of that
//!    node's shard. A thread that has locked the whole ledger sees which requests wait where at one moment.
//! 3. The index of a register, if it has one, counts exactly its granted entries that have an owner.
//! 4. An empty register is of constant size.
//! 5. All registers have the same frame, which is that of all requests in them whose paths have one. It changes only
//!    while the whole ledger is locked and has no such request; so a request that enters compares its frame only with
//!    that of its register.
//! 6. A bit of `published` is set while its request is on its way in; it is taken back under the mutexes of the
//!    node's shard and of the register (`bias.rs`, `own.rs`), or under the mutex of the register alone, by the thread
//!    that drops the guard.
//! 7. A register keeps a few spent requests. Nothing else refers to them, and the roots that are still in them are
//!    text.
//!
//! Lock order: shards of the table; registers in the order of their numbers; a waiter.

use crate::core::mode::{Mode, ModeCounts};
use crate::core::node::Ticket;
use crate::core::node_id::NodeId;
use crate::core::owner::{Owner, OwnerId};
use crate::core::path::{Frame, TreePath};
use crate::core::plan::{Plan, Step};
use crate::sync::{CachePadded, Moment, Mutex, MutexGuard, REGISTERS, SPARES};
use crate::thread::bias;
use crate::thread::own::Owned;
use crate::thread::owner::OwnerNames;
use crate::thread::places::Places;
use crate::thread::request::{Asker, Request, SharedRequest};
use crate::thread::waiter::{Sleeper, Waiter};
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

pub(crate) struct Ledger<P: TreePath + ?Sized> {
    registers: Box<[CachePadded<Mutex<Register<P>>>]>,
}

/// What each owner holds at each node.
type Held = HashMap<(OwnerId, NodeId), ModeCounts, foldhash::fast::RandomState>;

/// The place of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Key {
    register: usize,
    index: usize,
}

impl Key {
    /// The bits of a register's number.
    const REGISTER_BITS: u32 = 8;

    /// In 56 bits of one word, for a guard.
    #[inline]
    pub(crate) fn to_word(self) -> u64 {
        const { assert!(REGISTERS <= 1 << Key::REGISTER_BITS) };
        (self.index as u64) << Self::REGISTER_BITS | self.register as u64
    }

    #[inline]
    pub(crate) fn of_word(word: u64) -> Self {
        Key {
            register: (word & ((1 << Self::REGISTER_BITS) - 1)) as usize,
            index: (word >> Self::REGISTER_BITS) as usize,
        }
    }
}

pub(crate) struct Register<P: TreePath + ?Sized> {
    entries: Places<Entry<P>>,
    /// What each owner holds at each node. Made when a request first meets a conflict that may
    /// be its own doing; most registers never have one.
    held: Option<Held>,
    /// How many requests were entered since `held` was last asked. An index that nobody asks is not worth its upkeep.
    unasked: usize,
    /// Invariant 5.
    frame: Frame,
    /// The nodes that its threads take without a shard (`own.rs`).
    owned: Owned,
    /// How many revocations have gone through this register.
    revocations: u64,
    /// Spent requests, the latest at the end (`request.rs`).
    spent: Vec<SharedRequest<P>>,
}

pub(crate) struct Entry<P: TreePath + ?Sized> {
    pub(crate) request: Entered<P>,
    pub(crate) state: State,
    /// Which of the first steps are published here and not counted by their nodes, the first in the lowest bit:
    /// intentions on biased nodes, and roots that the register owns.
    published: u64,
    /// When the state of waiting, or of being granted, began.
    pub(crate) since: Moment,
}

/// The request of an entry; `None` only while the place of the entry is vacant.
pub(crate) struct Entered<P: TreePath + ?Sized>(Option<SharedRequest<P>>);

impl<P: TreePath + ?Sized> Deref for Entered<P> {
    type Target = SharedRequest<P>;

    #[inline]
    fn deref(&self) -> &SharedRequest<P> {
        self.0.as_ref().expect("an entry has a request")
    }
}

#[derive(Debug)]
pub(crate) enum State {
    /// Its own thread takes its steps, or gives them back: it holds some of them.
    Walking,
    /// Its thread waits.
    Waiting(Waiting),
    /// It holds all of its steps.
    Granted,
}

/// Where a request waits.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    /// The steps before this one are held.
    pub(crate) step: usize,
    pub(crate) standing: Standing,
    pub(crate) waiter: Arc<Waiter>,
    /// Whether it has found itself in a deadlock, and is about to give up: no other request needs to report that.
    reported: bool,
}

/// How a request stands at the step where it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// In the queue.
    Queued(Ticket),
    /// It holds the step, and is the mover of that number (`moving.rs`).
    LetOn(u64),
}

impl Waiting {
    /// Its place in the queue, unless it has been let on, or is about to give up.
    pub(crate) fn blocked(&self) -> Option<Ticket> {
        match self.standing {
            Standing::Queued(ticket) if !self.reported => Some(ticket),
            _ => None,
        }
    }

    /// Whether it has found itself in a deadlock where it is.
    pub(crate) fn is_reported(&self) -> bool {
        self.reported
    }
}

/// What becomes of a request that is let on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LetOn {
    /// It was its last step: it holds everything.
    Granted,
    /// It is the mover of that number.
    Moves(u64),
}

/// A request that gives back its steps one by one.
pub(crate) struct Leaving<P: TreePath + ?Sized> {
    pub(crate) request: SharedRequest<P>,
    published: u64,
}

impl<P: TreePath + ?Sized> Leaving<P> {
    fn of(Entry { request, published, .. }: &Entry<P>) -> Self {
        Leaving { request: SharedRequest::clone(request), published: *published }
    }

    /// Whether one of the first steps may still be published.
    pub(crate) fn may_have_published(&self, steps: usize) -> bool {
        self.published & first_bits(steps) != 0
    }
}

/// A step is not published any longer: its node counts it.
pub(crate) struct StillCounted;

/// The steps of a request that may be published.
const MOST_PUBLISHED: usize = u64::BITS as usize;

/// How many of the steps from `from` on may be published now: intentions on biased nodes.
#[inline]
fn publishable(plan: &Plan, from: usize, biased: impl Fn(NodeId) -> bool) -> usize {
    let steps = plan.steps().iter().take(MOST_PUBLISHED).skip(from);
    steps.take_while(|step| step.mode.is_intention() && biased(step.node)).count()
}

/// Whether a step may be published now: an intention on a biased node, or S or X on an owned one that is free.
#[inline]
fn may_publish(step: &Step, owned: &Owned, biased: impl Fn(NodeId) -> bool) -> bool {
    match step.mode {
        Mode::IntentionShared | Mode::IntentionExclusive => biased(step.node),
        Mode::Shared | Mode::Exclusive => owned.is_free(step.node),
        Mode::SharedIntentionExclusive => false,
    }
}

/// A word with the lowest `count` bits set.
#[inline]
fn first_bits(count: usize) -> u64 {
    u32::try_from(count).ok().and_then(|count| 1u64.checked_shl(count)).map_or(u64::MAX, |bit| bit - 1)
}

/// The capacity that a register always keeps.
const REGISTER_CAPACITY: usize = 16;

impl<P: TreePath + ?Sized> Ledger<P> {
    pub(crate) fn new() -> Self {
        Ledger { registers: (0..REGISTERS).map(|_| CachePadded::new(Mutex::new(Register::default()))).collect() }
    }

    /// Takes a spent request from the register, if it keeps one.
    pub(crate) fn spent(&self, register: usize) -> Option<SharedRequest<P>> {
        self.registers[register].lock().spent.pop()
    }

    /// Keeps a spent request.
    pub(crate) fn keep(&self, register: usize, request: SharedRequest<P>) {
        // A request that is not kept is dropped after the register is unlocked.
        let _dropped = self.registers[register].lock().keep(request);
    }

    /// Enters the register's last request again, as [`enter_owned`](Ledger::enter_owned) does, if it asked for that
    /// root alone. Otherwise nothing has happened, and the caller gets that request for its buffers.
    #[inline]
    pub(crate) fn enter_again(
        &self,
        register: usize,
        (text, mode): (&[u8], Mode),
        asker: Asker,
        since: Moment,
        biased: impl Fn(NodeId) -> bool,
    ) -> Result<Key, Option<SharedRequest<P>>> {
        let mut guard = self.registers[register].lock();
        let locked = &mut *guard;
        let Some(mut request) = locked.spent.pop() else { return Err(None) };
        match SharedRequest::get_mut(&mut request) {
            Some(last)
                if last.thread.id == asker.thread
                    && locked.takes(last)
                    && last.asks_for_one(text, mode)
                    && locked.try_hold(&last.plan, biased) =>
            {
                last.ask(asker);
                Ok(Key { register, index: locked.enter_holding(request, since) })
            }
            _ => {
                drop(guard);
                Err(Some(request))
            }
        }
    }

    /// Enters a request of the calling thread as granted, if all of it can be published: intentions on biased nodes,
    /// S or X on nodes that its register owns and nobody holds. Otherwise nothing has happened, and the request is
    /// returned.
    #[inline]
    pub(crate) fn enter_owned(
        &self,
        register: usize,
        request: SharedRequest<P>,
        since: Moment,
        biased: impl Fn(NodeId) -> bool,
    ) -> Result<Key, SharedRequest<P>> {
        let mut locked = self.registers[register].lock();
        if locked.takes(&request) && locked.try_hold(&request.plan, biased) {
            Ok(Key { register, index: locked.enter_holding(request, since) })
        } else {
            drop(locked);
            Err(request)
        }
    }

    /// Removes a granted request if all its steps are still published. It is spent then, and returned unless the
    /// register keeps it.
    #[inline]
    pub(crate) fn leave_owned(&self, key: Key) -> Result<Option<SharedRequest<P>>, StillCounted> {
        let mut guard = self.registers[key.register].lock();
        let register = &mut *guard;
        let entry = &register.entries[key.index];
        let plan = &entry.request.plan;
        match plan.steps() {
            steps if entry.published != first_bits(steps.len()) => return Err(StillCounted),
            [.., last] if plan.is_one_way() => register.owned.let_go(last.node),
            _ => plan.roots().for_each(|step| register.owned.let_go(step.node)),
        }
        register.index(key.index, ModeCounts::remove);
        let request = register.remove(key.index);
        Ok(if request.may_stay { register.keep(request) } else { Some(request) })
    }

    /// How many of a request's first steps may be published, judged without any mutex.
    pub(crate) fn publishable(&self, request: &Request<P>, biased: impl Fn(NodeId) -> bool) -> usize {
        publishable(&request.plan, 0, biased)
    }

    /// Enters a request of the calling thread as granted: its last step by `grant`, all steps above by publishing
    /// them, if they are biased. Otherwise nothing has happened, and the request is returned. The caller has the
    /// shard of the last step.
    #[inline]
    pub(crate) fn enter_granted(
        &self,
        register: usize,
        request: SharedRequest<P>,
        since: Moment,
        biased: impl Fn(NodeId) -> bool,
        grant: impl FnOnce() -> bool,
    ) -> Result<Key, SharedRequest<P>> {
        let mut locked = self.registers[register].lock();
        let above = request.plan.steps().len() - 1;
        if !locked.takes(&request) || publishable(&request.plan, 0, &biased) < above || !grant() {
            drop(locked);
            return Err(request);
        }
        Ok(Key { register, index: locked.insert(request, Some(first_bits(above)), since) })
    }

    /// Enters a request of the calling thread that has taken nothing yet; `None` if its paths cannot be compared with
    /// those of the others.
    pub(crate) fn enter(&self, register: usize, request: &SharedRequest<P>, since: Moment) -> Option<Key> {
        let entered = SharedRequest::clone(request);
        let mut locked = self.registers[register].lock();
        if !locked.takes(request) {
            drop(locked);
            let mut ledger = self.lock();
            let index = ledger.turn_to(request.frame).then(|| ledger.0[register].insert(entered, None, since))?;
            return Some(Key { register, index });
        }
        Some(Key { register, index: locked.insert(entered, None, since) })
    }

    /// Publishes the steps of a request from `from` on, as many as may be; returns how many.
    pub(crate) fn publish(&self, key: Key, from: usize, biased: impl Fn(NodeId) -> bool) -> usize {
        let mut guard = self.registers[key.register].lock();
        let Register { owned, entries, .. } = &mut *guard;
        let entry = &mut entries[key.index];
        let steps = entry.request.plan.steps().iter().take(MOST_PUBLISHED).skip(from);
        let count = steps.take_while(|step| {
            may_publish(step, owned, &biased) && {
                if !step.mode.is_intention() {
                    owned.hold(step.node, key.index);
                }
                true
            }
        });
        let count = count.count();
        entry.published |= first_bits(from + count) & !first_bits(from);
        count
    }

    /// Removes a granted request of one root if all its steps but the last are still published. Returns it, unless
    /// the register keeps it, with the last step; the caller has the shard of that step, and must release it there.
    /// Otherwise the request gives back its steps one by one from now on.
    #[inline]
    pub(crate) fn leave(&self, key: Key) -> Result<(Option<SharedRequest<P>>, Step), Leaving<P>> {
        let mut guard = self.registers[key.register].lock();
        let register = &mut *guard;
        register.index(key.index, ModeCounts::remove);
        let entry = &mut register.entries[key.index];
        match entry.request.plan.steps() {
            [above @ .., last]
                if entry.request.plan.is_one_way()
                    && above.len() <= MOST_PUBLISHED
                    && entry.published == first_bits(above.len()) =>
            {
                let last = *last;
                let request = register.remove(key.index);
                let spent = if request.may_stay { register.keep(request) } else { Some(request) };
                Ok((spent, last))
            }
            _ => {
                entry.state = State::Walking;
                Err(Leaving::of(entry))
            }
        }
    }

    /// The node of its last step.
    pub(crate) fn last_of(&self, key: Key) -> Option<NodeId> {
        let register = self.registers[key.register].lock();
        register.entries[key.index].request.plan.steps().last().map(|step| step.node)
    }

    /// What a request that is refused has to give back.
    pub(crate) fn refuse(&self, key: Key) -> Leaving<P> {
        Leaving::of(&self.registers[key.register].lock().entries[key.index])
    }

    /// Removes an entry that is not granted.
    pub(crate) fn remove(&self, key: Key) -> SharedRequest<P> {
        self.registers[key.register].lock().remove(key.index)
    }

    /// Takes back all intentions that are published on nodes of that tag, and calls `count` for each. The caller has
    /// their shard. Returns how much there was to look through.
    pub(crate) fn unpublish(&self, tag: u64, mut count: impl FnMut(NodeId, Mode)) -> usize {
        let mut looked = 0;
        for register in &self.registers {
            let mut register = register.lock();
            register.revocations += 1;
            looked += 1 + register.entries.len();
            for entry in register.entries.values_mut().filter(|entry| entry.published != 0) {
                for index in 0..(u64::BITS - entry.published.leading_zeros()) as usize {
                    let step = entry.request.plan.steps()[index];
                    if bias::tag(step.node) == tag && step.mode.is_intention() && entry.take_back(index) {
                        count(step.node, step.mode);
                    }
                }
            }
        }
        looked
    }

    /// Takes the nodes of that tag from the register that owns them. If an entry holds one, that is no longer
    /// published, and `count` is called for it. The caller has their shard.
    pub(crate) fn disown(&self, register: usize, tag: u64, mut count: impl FnMut(NodeId, Mode)) {
        let mut guard = self.registers[register].lock();
        let Register { owned, entries, .. } = &mut *guard;
        owned.remove(tag, |node, entry| {
            let entry = &mut entries[entry];
            let index = entry.request.plan.steps().iter().position(|step| step.node == node);
            let index = index.expect("an entry has the nodes that it holds");
            let published = entry.take_back(index);
            debug_assert!(published, "invariant 4 of `own.rs`");
            count(node, entry.request.plan.steps()[index].mode);
        });
    }

    /// Lets a register own the node from now on, if there is room. The caller has the node's shard, and nobody holds
    /// or awaits the node.
    pub(crate) fn own(&self, register: usize, node: NodeId) -> bool {
        self.registers[register].lock().owned.add(node)
    }

    /// From the first `left` steps of a request, takes back the last ones, as far as they are published; returns how
    /// many are left.
    pub(crate) fn unpublish_last(&self, key: Key, left: usize) -> usize {
        let mut guard = self.registers[key.register].lock();
        let Register { owned, entries, .. } = &mut *guard;
        let entry = &mut entries[key.index];
        let published = if left > MOST_PUBLISHED { 0 } else { entry.published << (MOST_PUBLISHED - left) };
        let still = left - published.leading_ones() as usize;
        entry.published &= first_bits(still);
        let taken_back = &entry.request.plan.steps()[still..left];
        taken_back.iter().filter(|step| !step.mode.is_intention()).for_each(|step| owned.let_go(step.node));
        still
    }

    /// Takes back an intention of a request, and returns whether it was published until now. The caller has its
    /// shard.
    pub(crate) fn unpublish_step(&self, key: Key, index: usize) -> bool {
        index < MOST_PUBLISHED && self.registers[key.register].lock().entries[key.index].take_back(index)
    }

    /// The register that a request is entered in.
    #[inline]
    pub(crate) fn register(&self, key: Key) -> usize {
        key.register
    }

    /// Marks an entry as waiting at a step. The caller has the shard of that step.
    pub(crate) fn wait(&self, step: usize, standing: Standing, waiter: &Arc<Waiter>) {
        let mut register = self.registers[waiter.key.register].lock();
        let entry = &mut register.entries[waiter.key.index];
        match &mut entry.state {
            State::Walking => {
                let waiter = Arc::clone(waiter);
                entry.state = State::Waiting(Waiting { step, standing, waiter, reported: false });
                entry.since = Moment::now();
            }
            State::Waiting(waiting) => {
                waiting.step = step;
                waiting.standing = standing;
                // The cycle that it was in is over.
                waiting.reported = false;
            }
            State::Granted => debug_assert!(false, "a grant is final"),
        }
    }

    /// Marks an entry that has waited as let on from its queue: as granted if it has no further step, else as the mover of
    /// the number that `number` gives. The caller has the shard of that step.
    pub(crate) fn let_on(&self, key: Key, number: impl FnOnce() -> u64) -> LetOn {
        let mut guard = self.registers[key.register].lock();
        let register = &mut *guard;
        let entry = &mut register.entries[key.index];
        let steps = entry.request.plan.steps().len();
        match &mut entry.state {
            State::Waiting(waiting) if waiting.step + 1 < steps => {
                let number = number();
                waiting.standing = Standing::LetOn(number);
                LetOn::Moves(number)
            }
            _ => {
                register.grant(key.index);
                LetOn::Granted
            }
        }
    }

    /// Marks an entry as granted and publishes its first `above` steps, if they are still biased; otherwise does
    /// nothing and returns `false`. The caller has the shards of the other steps.
    pub(crate) fn grant_below(&self, key: Key, above: usize, biased: impl Fn(NodeId) -> bool) -> bool {
        let mut register = self.registers[key.register].lock();
        let entry = &mut register.entries[key.index];
        if publishable(&entry.request.plan, 0, biased) < above {
            return false;
        }
        entry.published = first_bits(above);
        register.grant(key.index);
        true
    }

    /// Marks an entry as granted.
    pub(crate) fn grant(&self, key: Key) {
        self.registers[key.register].lock().grant(key.index);
    }

    /// A request that waits, and where; `None` if it is granted.
    pub(crate) fn waiting(&self, key: Key) -> Option<(SharedRequest<P>, Waiting)> {
        let register = self.registers[key.register].lock();
        let entry = &register.entries[key.index];
        match &entry.state {
            State::Waiting(waiting) => Some((SharedRequest::clone(&entry.request), waiting.clone())),
            _ => None,
        }
    }

    /// Marks an entry as no longer waiting. The caller has the shard of its step.
    pub(crate) fn stop_waiting(&self, key: Key) {
        // This drops the waiter of the old state, which runs no user code.
        self.registers[key.register].lock().entries[key.index].state = State::Walking;
    }

    /// A copy of an entry.
    pub(crate) fn found(&self, key: Key) -> Found<P> {
        Found::of(&self.registers[key.register].lock().entries[key.index])
    }

    /// The request of an entry.
    pub(crate) fn request(&self, key: Key) -> SharedRequest<P> {
        SharedRequest::clone(&self.registers[key.register].lock().entries[key.index].request)
    }

    /// Replaces a granted request by a weaker one, and returns the old one. Either no step of the old one is
    /// published, or both have the same steps.
    pub(crate) fn weaken(&self, key: Key, weaker: SharedRequest<P>) -> SharedRequest<P> {
        let mut register = self.registers[key.register].lock();
        register.index(key.index, ModeCounts::remove);
        let entry = &mut register.entries[key.index];
        debug_assert!(
            entry.published == 0 || entry.request.plan.steps() == weaker.plan.steps(),
            "its nodes count all that changes"
        );
        let stronger = entry.request.0.replace(weaker);
        register.index(key.index, ModeCounts::add);
        stronger.expect("an entry has a request")
    }

    /// What an owner holds at a node by its guards.
    pub(crate) fn held(&self, owner: Option<OwnerId>, node: NodeId) -> ModeCounts {
        let Some(owner) = owner else { return ModeCounts::NONE };
        self.ask_index(owner, |held| held.get(&(owner, node)).copied()).unwrap_or_default()
    }

    /// Whether a request that waits pins guards, so that it can be a part of a deadlock: those of its owner, and the plain
    /// ones of its thread, if that is blocked.
    pub(crate) fn is_nested(&self, request: &Request<P>, sleeper: Sleeper) -> bool {
        // Every guard holds the root of the tree in some mode.
        let Some(root) = request.plan.steps().first() else { return false };
        let has_guards = |owner| self.ask_index(owner, |held| held.get(&(owner, root.node)).copied()).is_some();
        let thread = Some(request.thread.id).filter(|_| sleeper == Sleeper::Thread);
        let owner = request.owner_id().filter(|&owner| Some(owner) != thread);
        thread.into_iter().chain(owner).any(has_guards)
    }

    /// Asks the index of an owner's register, which is built if there is none.
    fn ask_index<R>(&self, owner: OwnerId, ask: impl FnOnce(&Held) -> Option<R>) -> Option<R> {
        let mut guard = self.registers[self.register_of(owner)].lock();
        let register = &mut *guard;
        if register.entries.len() == 1 && register.entries.iter().all(|(_, entry)| !entry.is_granted()) {
            // The one entry is the request that asks.
            return None;
        }
        let held = register.held.get_or_insert_with(|| {
            let mut held = HashMap::default();
            register.entries.iter().for_each(|(_, entry)| count(&mut held, entry, ModeCounts::add));
            held
        });
        register.unasked = 0;
        ask(held)
    }

    /// Locks the whole ledger: nothing is entered, marked or removed meanwhile.
    pub(crate) fn lock(&self) -> LockedLedger<'_, P> {
        LockedLedger(self.registers.iter().map(|register| register.lock()).collect())
    }

    /// The same where it need not wait.
    pub(crate) fn try_lock(&self) -> Option<LockedLedger<'_, P>> {
        self.registers.iter().map(|register| register.try_lock()).collect::<Option<_>>().map(LockedLedger)
    }

    /// The register of an owner's requests; a request without an owner is entered in that of its thread.
    #[inline]
    pub(crate) fn register_of(&self, owner: OwnerId) -> usize {
        owner as usize % REGISTERS
    }

    /// The number of requests there is room for.
    #[cfg(all(test, not(feature = "model")))]
    pub(crate) fn capacity(&self) -> usize {
        self.registers.iter().map(|register| register.lock().entries.capacity()).sum()
    }
}

/// Adds to an index, or takes from it, what an entry counts there (invariant 3).
fn count<P: TreePath + ?Sized>(held: &mut Held, entry: &Entry<P>, change: fn(&mut ModeCounts, Mode)) {
    let Some(owner) = entry.owner().filter(|_| entry.is_granted()) else { return };
    for (node, mode) in entry.holds() {
        let key = (owner, node);
        let counts = held.entry(key).or_default();
        change(counts, mode);
        if counts.is_empty() {
            held.remove(&key);
        }
    }
}

impl<P: TreePath + ?Sized> Default for Register<P> {
    fn default() -> Self {
        Register {
            entries: Places::with_capacity(0),
            held: None,
            unasked: 0,
            frame: Frame::Absolute,
            owned: Owned::default(),
            revocations: 0,
            spent: Vec::new(),
        }
    }
}

impl<P: TreePath + ?Sized> Register<P> {
    /// Whether the paths of a request are in the frame of the others (invariant 5).
    #[inline]
    fn takes(&self, request: &Request<P>) -> bool {
        request.frame.is_none_or(|frame| frame == self.frame)
    }

    /// Adds to the index, if there is one, or takes from it, what the entry counts there.
    #[inline]
    fn index(&mut self, entry: usize, change: fn(&mut ModeCounts, Mode)) {
        if let Some(held) = &mut self.held {
            count(held, &self.entries[entry], change);
        }
    }

    fn grant(&mut self, index: usize) {
        let entry = &mut self.entries[index];
        debug_assert!(!entry.is_granted(), "a grant is final");
        entry.since = Moment::now();
        // This drops the waiter of the old state, which runs no user code.
        entry.state = State::Granted;
        self.index(index, ModeCounts::add);
    }

    /// Lets the next entry hold the roots of a request, if all of it can be published here now.
    #[inline]
    fn try_hold(&mut self, plan: &Plan, biased: impl Fn(NodeId) -> bool) -> bool {
        let holder = self.entries.next();
        match plan.steps() {
            [above @ .., last] if above.len() < MOST_PUBLISHED && plan.is_one_way() => {
                let above = || publishable(plan, 0, &biased) == above.len();
                self.owned.try_hold_below(last.node, holder, self.revocations, above)
            }
            steps => {
                let may_publish = |step| may_publish(step, &self.owned, &biased);
                let may_enter = steps.len() <= MOST_PUBLISHED && steps.iter().all(may_publish);
                if may_enter {
                    plan.roots().for_each(|step| self.owned.hold(step.node, holder));
                }
                may_enter
            }
        }
    }

    /// Enters a request as granted; the next entry holds its roots already.
    #[inline(always)]
    fn enter_holding(&mut self, request: SharedRequest<P>, since: Moment) -> usize {
        let published = first_bits(request.plan.steps().len());
        self.insert(request, Some(published), since)
    }

    /// Keeps a spent request; returns it if there are enough, or if something else refers to it.
    #[inline]
    fn keep(&mut self, request: SharedRequest<P>) -> Option<SharedRequest<P>> {
        if self.spent.len() < SPARES && SharedRequest::is_unique(&request) {
            self.spent.push(request);
            None
        } else {
            Some(request)
        }
    }

    /// Enters a request: as granted, with the bits of its published steps, or else as walking.
    #[inline]
    fn insert(&mut self, request: SharedRequest<P>, granted: Option<u64>, since: Moment) -> usize {
        if self.held.is_some() {
            self.unasked += 1;
            if self.unasked > self.entries.len() + REGISTER_CAPACITY {
                self.held = None;
            }
        }
        let index = self.entries.next();
        let entry =
            self.entries.take(|| Entry { request: Entered(None), state: State::Walking, published: 0, since });
        entry.request = Entered(Some(request));
        entry.state = if granted.is_some() { State::Granted } else { State::Walking };
        entry.published = granted.unwrap_or(0);
        entry.since = since;
        self.index(index, ModeCounts::add);
        index
    }

    #[inline]
    fn remove(&mut self, index: usize) -> SharedRequest<P> {
        let entry = &mut self.entries[index];
        let request = entry.request.0.take().expect("an entry has a request");
        entry.state = State::Walking;
        self.entries.vacate(index);
        self.trim();
        request
    }

    /// Frees what is no longer needed (invariant 4).
    #[inline]
    fn trim(&mut self) {
        if self.entries.is_empty() && (self.held.is_some() || self.entries.capacity() > REGISTER_CAPACITY) {
            self.shrink();
        }
    }

    #[cold]
    fn shrink(&mut self) {
        self.held = None;
        if self.entries.capacity() > REGISTER_CAPACITY {
            self.entries = Places::with_capacity(REGISTER_CAPACITY);
        }
    }
}

impl<P: TreePath + ?Sized> Entry<P> {
    /// Takes back a step; returns whether it was published until now.
    #[inline]
    fn take_back(&mut self, index: usize) -> bool {
        let bit = 1 << index;
        let was = self.published & bit != 0;
        self.published &= !bit;
        was
    }

    /// The owner of the guard that it has, or will have.
    pub(crate) fn owner(&self) -> Option<OwnerId> {
        self.request.owner_id()
    }

    pub(crate) fn is_granted(&self) -> bool {
        matches!(self.state, State::Granted)
    }

    /// The nodes it holds, each with its mode.
    pub(crate) fn holds(&self) -> impl DoubleEndedIterator<Item = (NodeId, Mode)> + '_ {
        let steps: &[Step] = self.request.plan.steps();
        let taken = match &self.state {
            State::Waiting(Waiting { step, standing: Standing::Queued(_), .. }) => &steps[..*step],
            State::Waiting(Waiting { step, .. }) => &steps[..=*step],
            State::Granted => steps,
            State::Walking => &[],
        };
        taken.iter().map(|step| (step.node, step.mode))
    }
}

/// A copy of an entry, to be spelled out after the ledger is unlocked, since that calls user code.
pub(crate) struct Found<P: TreePath + ?Sized> {
    pub(crate) request: SharedRequest<P>,
    pub(crate) since: Moment,
    /// The step it waits at, and the mode it waits for there.
    pub(crate) waiting: Option<(usize, Mode)>,
    /// The name of the explicit owner that asked, if one did and [`Found::named`] has asked for it.
    pub(crate) owner: Option<String>,
}

impl<P: TreePath + ?Sized> Found<P> {
    pub(crate) fn of(entry: &Entry<P>) -> Self {
        let steps = entry.request.plan.steps();
        let waiting = match &entry.state {
            State::Waiting(waiting) => Some((waiting.step, steps[waiting.step].mode)),
            State::Walking | State::Granted => None,
        };
        Found { request: SharedRequest::clone(&entry.request), since: entry.since, waiting, owner: None }
    }

    /// The same with the name of its owner. The ledger is locked, so that what the owner has is not released, and its name not
    /// forgotten, meanwhile.
    pub(crate) fn named(self, names: &OwnerNames) -> Self {
        let owner = match self.request.owner {
            Owner::Handed(id) => Some(names.name(id)),
            Owner::Thread | Owner::Itself => None,
        };
        Found { owner, ..self }
    }
}

/// The ledger at one moment.
pub(crate) struct LockedLedger<'a, P: TreePath + ?Sized>(Vec<MutexGuard<'a, Register<P>>>);

impl<P: TreePath + ?Sized> LockedLedger<'_, P> {
    pub(crate) fn entries(&self) -> impl Iterator<Item = (Key, &Entry<P>)> {
        self.0.iter().enumerate().flat_map(|(register, locked)| {
            locked.entries.iter().map(move |(index, entry)| (Key { register, index }, entry))
        })
    }

    /// Turns all registers to a frame; `false` if requests of the other one are in them.
    fn turn_to(&mut self, frame: Option<Frame>) -> bool {
        let conflicts = |other: Option<Frame>| other.is_some() && other != frame;
        if self.entries().any(|(_, entry)| conflicts(entry.request.frame)) {
            return false;
        }
        for register in &mut self.0 {
            register.frame = frame.unwrap_or(register.frame);
        }
        true
    }

    /// Notes that a waiting request is about to give up, because of a deadlock that it reports.
    pub(crate) fn report(&mut self, key: Key) {
        if let State::Waiting(waiting) = &mut self.0[key.register].entries[key.index].state {
            waiting.reported = true;
        }
    }
}
