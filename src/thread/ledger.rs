//! What is granted and what waits, by request: the lock's memory of who.
//!
//! Nodes only count ([`node.rs`](crate::core::node)); the ledger knows the requests behind the counts. What no node counts is
//! *published* here: intentions on biased nodes (`bias.rs`) and roots that a register owns (`own.rs`). It answers three questions, none of them on the fast path: what does this thread hold
//! at that node (re-entrancy), who waits for whom (`deadlock.rs`), and who holds what (`inspect.rs`). It is cut into
//! registers, by thread, each under a mutex of its own, so that a thread writes where no other does.
//!
//! Invariants:
//!
//! 1. The ledger is never ahead of the nodes: a request is entered as granted after its last step is granted and
//!    taken out (or weakened) before the first is released, or both happen under the mutex of its register. So two entries
//!    that are granted never conflict.
//! 2. An entry is marked as waiting after its request has queued, and the mark is taken back before it is
//!    cancelled. A mark may be stale only if the waiter has been granted, and the [`Waiter`] knows that.
//! 3. A register's index, where there is one, counts exactly the granted entries of plain guards in it.
//! 4. An empty register is of constant size.
//! 5. A bit of `published` is set while its request is on its way in; it is taken back under the mutexes of the
//!    node's shard and of the register (`bias.rs`, `own.rs`), or under the mutex of the register, by whoever drops the guard.
//! 6. A register keeps a few spent requests. Nobody else has them, and roots that are still in them are text.
//!
//! Lock order: a shard of the table; registers in the order of their numbers; a waiter.

use crate::core::deadlock::Temper;
use crate::core::mode::{Mode, ModeCounts};
use crate::core::node::Ticket;
use crate::core::node_id::NodeId;
use crate::core::owner::Owner;
use crate::core::path::TreePath;
use crate::core::plan::{Plan, Step};
use crate::sync::{CachePadded, Moment, Mutex, MutexGuard, REGISTERS, SPARES};
use crate::thread::bias;
use crate::thread::own::Owned;
use crate::thread::places::Places;
use crate::thread::request::{Asker, Request, SharedRequest};
use crate::thread::waiter::Waiter;
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

pub(crate) struct Ledger<P: TreePath + ?Sized> {
    registers: Box<[CachePadded<Mutex<Register<P>>>]>,
}

/// By thread and node.
type Held = HashMap<(u64, NodeId), ModeCounts, foldhash::fast::RandomState>;

/// Where an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// What each thread holds at each node by plain guards. Made when a request first meets a conflict that may
    /// be its own doing; most registers never have one.
    held: Option<Held>,
    /// How often it has changed since it was asked last. What nobody asks is not worth its upkeep.
    unasked: usize,
    /// The nodes that its threads take without a shard (`own.rs`).
    owned: Owned,
    /// How many revocations have been here.
    revocations: u64,
    /// Spent requests, the latest at the end (`request.rs`).
    spent: Vec<SharedRequest<P>>,
}

pub(crate) struct Entry<P: TreePath + ?Sized> {
    pub(crate) request: Entered<P>,
    pub(crate) state: State,
    pub(crate) access: Access,
    /// Which of the first steps are published here and not counted by their nodes, the first in the lowest bit:
    /// intentions on biased nodes, and roots that the register owns.
    published: u64,
    /// When the state of waiting, or of being granted, began.
    pub(crate) since: Moment,
}

/// The request of an entry; none only while the place of the entry is vacant.
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
    /// On its way, in or out: it holds some of its steps.
    Walking,
    /// Queued, or granted and not yet awake.
    Waiting(Waiting),
    /// It holds all of its steps.
    Granted,
}

/// Where a request waits.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    /// The steps before it are held.
    pub(crate) step: usize,
    pub(crate) ticket: Ticket,
    pub(crate) waiter: Arc<Waiter>,
    pub(crate) temper: Temper,
}

/// A request that is on its way out.
pub(crate) struct Leaving<P: TreePath + ?Sized> {
    pub(crate) request: SharedRequest<P>,
    pub(crate) access: Access,
    published: u64,
}

impl<P: TreePath + ?Sized> Leaving<P> {
    fn of(Entry { request, access, published, .. }: &Entry<P>) -> Self {
        Leaving { request: SharedRequest::clone(request), access: *access, published: *published }
    }

    /// Whether one of the first steps may still be published.
    pub(crate) fn may_have_published(&self, steps: usize) -> bool {
        self.published & first_bits(steps) != 0
    }
}

/// A step that was published has become a count.
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

/// So many ones, from the lowest bit on.
#[inline]
fn first_bits(count: usize) -> u64 {
    u32::try_from(count).ok().and_then(|count| 1u64.checked_shl(count)).map_or(u64::MAX, |bit| bit - 1)
}

/// What else a thread has to do with a lock that it asks something of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Nesting {
    /// Whether it has plain guards.
    pub(crate) nested: bool,
    /// What the request's owner holds by them at the node in question.
    pub(crate) held: ModeCounts,
}

/// What became of the writes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    AsAsked,
    Downgraded,
}

impl Access {
    pub(crate) fn mode(self, asked: Mode) -> Mode {
        match self {
            Access::AsAsked => asked,
            Access::Downgraded => asked.downgraded(),
        }
    }
}

/// The capacity that a register always keeps.
const REGISTER_CAPACITY: usize = 16;

impl<P: TreePath + ?Sized> Ledger<P> {
    pub(crate) fn new() -> Self {
        Ledger { registers: (0..REGISTERS).map(|_| CachePadded::new(Mutex::new(Register::default()))).collect() }
    }

    /// A spent request of the register, if it keeps one.
    pub(crate) fn spent(&self, register: usize) -> Option<SharedRequest<P>> {
        self.registers[register].lock().spent.pop()
    }

    /// Keeps a spent request.
    pub(crate) fn keep(&self, register: usize, request: SharedRequest<P>) {
        // What is not kept is dropped after the register is let go.
        let _dropped = self.registers[register].lock().keep(request);
    }

    /// Enters the register's last request again, as [`enter_owned`](Ledger::enter_owned) does, if it asked for that root
    /// alone. Else nothing has happened, and the caller gets it for its buffers.
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

    /// Enters a request of the calling thread as granted, if all of it can be published: intentions on biased nodes, S or X
    /// on nodes that its register owns and nobody holds. Else it is given back, and nothing has happened.
    #[inline]
    pub(crate) fn enter_owned(
        &self,
        register: usize,
        request: SharedRequest<P>,
        since: Moment,
        biased: impl Fn(NodeId) -> bool,
    ) -> Result<Key, SharedRequest<P>> {
        let mut locked = self.registers[register].lock();
        if locked.try_hold(&request.plan, biased) {
            Ok(Key { register, index: locked.enter_holding(request, since) })
        } else {
            drop(locked);
            Err(request)
        }
    }

    /// Takes out a granted request of which all steps are still published; whether it was one. Then it is spent, and given
    /// back unless it is kept.
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

    /// Enters a request of the calling thread as granted: its last step by `grant`, all above by publishing them, if
    /// they are biased. Else it is given back, and nothing has happened. The caller has the shard of the last step.
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
        if publishable(&request.plan, 0, &biased) < above || !grant() {
            drop(locked);
            return Err(request);
        }
        Ok(Key { register, index: locked.insert(request, Some(first_bits(above)), since) })
    }

    /// Enters a request of the calling thread that has taken nothing yet.
    pub(crate) fn enter(&self, register: usize, request: SharedRequest<P>, since: Moment) -> Key {
        Key { register, index: self.registers[register].lock().insert(request, None, since) }
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

    /// Takes out a granted request of one root of which all steps but the last are still published, and that one released by
    /// `release`. Else it is on its way out from now on. The caller has the shard of the last step.
    #[inline]
    pub(crate) fn leave(
        &self,
        key: Key,
        release: impl FnOnce(NodeId, Mode, &mut Owned),
    ) -> Result<Option<SharedRequest<P>>, Leaving<P>> {
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
                release(last.node, entry.access.mode(last.mode), &mut register.owned);
                let request = register.remove(key.index);
                Ok(if request.may_stay { register.keep(request) } else { Some(request) })
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

    /// Takes out an entry that is not granted.
    pub(crate) fn remove(&self, key: Key) -> SharedRequest<P> {
        self.registers[key.register].lock().remove(key.index)
    }

    /// Takes back all that is published on nodes of that tag, each told to `count`, under the mutex of their shard;
    /// returns how much there was to look through.
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
                        count(step.node, entry.access.mode(step.mode));
                    }
                }
            }
        }
        looked
    }

    /// Takes the nodes of that tag from the register that owns them; what an entry holds of them is told to `count`, and is
    /// no longer published. The caller has their shard.
    pub(crate) fn disown(&self, register: usize, tag: u64, mut count: impl FnMut(NodeId, Mode)) {
        let mut guard = self.registers[register].lock();
        let Register { owned, entries, .. } = &mut *guard;
        owned.remove(tag, |node, entry| {
            let entry = &mut entries[entry];
            let index = entry.request.plan.steps().iter().position(|step| step.node == node);
            let index = index.expect("an entry has the nodes that it holds");
            let published = entry.take_back(index);
            debug_assert!(published, "invariant 4 of `own.rs`");
            count(node, entry.access.mode(entry.request.plan.steps()[index].mode));
        });
    }

    /// A register owns the node from now on, if there is room. The caller has its shard, where nobody holds or awaits it.
    pub(crate) fn own(&self, register: usize, node: NodeId) -> bool {
        self.registers[register].lock().owned.add(node)
    }

    /// Takes back the last of the first `left` steps of a request, as far as they are published; returns how many are left.
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

    /// Takes back an intention of a request, whose shard the caller has; whether it was published until now.
    pub(crate) fn unpublish_step(&self, key: Key, index: usize) -> bool {
        index < MOST_PUBLISHED && self.registers[key.register].lock().entries[key.index].take_back(index)
    }

    /// The register that a request is entered in.
    #[inline]
    pub(crate) fn register(&self, key: Key) -> usize {
        key.register
    }

    /// Marks an entry that is not granted.
    pub(crate) fn set_state(&self, key: Key, state: State) {
        let mut guard = self.registers[key.register].lock();
        let register = &mut *guard;
        let entry = &mut register.entries[key.index];
        debug_assert!(!matches!(entry.state, State::Granted), "a grant is final");
        if !matches!(state, State::Walking) {
            entry.since = Moment::now();
        }
        // The waiter of the old state goes with it: nobody else's code runs in its drop.
        entry.state = state;
        register.index(key.index, ModeCounts::add);
    }

    /// The request of an entry, unless it is downgraded.
    pub(crate) fn as_asked(&self, key: Key) -> Option<SharedRequest<P>> {
        let entry = &self.registers[key.register].lock().entries[key.index];
        (entry.access == Access::AsAsked).then(|| SharedRequest::clone(&entry.request))
    }

    /// Marks an entry as downgraded.
    pub(crate) fn downgrade(&self, key: Key) {
        let mut register = self.registers[key.register].lock();
        register.index(key.index, ModeCounts::remove);
        register.entries[key.index].access = Access::Downgraded;
        register.index(key.index, ModeCounts::add);
    }

    /// What matters of the other guards of a request's thread, when it cannot be granted at once at `node`.
    pub(crate) fn nesting(&self, request: &Request<P>, node: NodeId) -> Nesting {
        let thread = request.thread.id;
        let mut guard = self.registers[self.register_of(thread)].lock();
        let register = &mut *guard;
        if register.entries.len() == 1 {
            // It is the one that asks.
            return Nesting::default();
        }
        let held = register.held.get_or_insert_with(|| {
            let mut held = HashMap::default();
            register.entries.iter().for_each(|(_, entry)| count(&mut held, entry, ModeCounts::add));
            held
        });
        register.unasked = 0;
        // Whatever a guard holds, it holds the root of the tree.
        let nested = request.plan.steps().first().is_some_and(|root| held.contains_key(&(thread, root.node)));
        let held = match request.owner {
            Owner::Thread => held.get(&(thread, node)).copied().unwrap_or_default(),
            Owner::Itself => ModeCounts::NONE,
        };
        Nesting { nested, held }
    }

    /// Locks the whole ledger: nothing is entered, marked or taken out meanwhile.
    pub(crate) fn lock(&self) -> LockedLedger<'_, P> {
        LockedLedger(self.registers.iter().map(|register| register.lock()).collect())
    }

    /// The same where it need not wait.
    pub(crate) fn try_lock(&self) -> Option<LockedLedger<'_, P>> {
        self.registers.iter().map(|register| register.try_lock()).collect::<Option<_>>().map(LockedLedger)
    }

    /// Where a thread's requests are entered.
    #[inline]
    pub(crate) fn register_of(&self, thread: u64) -> usize {
        thread as usize % REGISTERS
    }

    /// The number of requests there is room for.
    #[cfg(all(test, not(feature = "model")))]
    pub(crate) fn capacity(&self) -> usize {
        self.registers.iter().map(|register| register.lock().entries.capacity()).sum()
    }
}

/// Adds to an index, or takes from it, what an entry counts there (invariant 3).
fn count<P: TreePath + ?Sized>(held: &mut Held, entry: &Entry<P>, change: fn(&mut ModeCounts, Mode)) {
    if entry.request.owner != Owner::Thread || !matches!(entry.state, State::Granted) {
        return;
    }
    for (node, mode) in entry.holds() {
        let key = (entry.request.thread.id, node);
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
            owned: Owned::default(),
            revocations: 0,
            spent: Vec::new(),
        }
    }
}

impl<P: TreePath + ?Sized> Register<P> {
    /// Adds to the index, if there is one, or takes from it, what the entry counts there.
    #[inline]
    fn index(&mut self, entry: usize, change: fn(&mut ModeCounts, Mode)) {
        if let Some(held) = &mut self.held {
            count(held, &self.entries[entry], change);
        }
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

    /// Enters a request as granted, whose roots the next entry holds.
    #[inline(always)]
    fn enter_holding(&mut self, request: SharedRequest<P>, since: Moment) -> usize {
        let published = first_bits(request.plan.steps().len());
        self.insert(request, Some(published), since)
    }

    /// Keeps a spent request, unless there are enough, or somebody else has it.
    #[inline]
    fn keep(&mut self, request: SharedRequest<P>) -> Option<SharedRequest<P>> {
        if self.spent.len() < SPARES && SharedRequest::is_unique(&request) {
            self.spent.push(request);
            None
        } else {
            Some(request)
        }
    }

    /// Enters a request: as granted, with what it has published, or else on its way.
    #[inline]
    fn insert(&mut self, request: SharedRequest<P>, granted: Option<u64>, since: Moment) -> usize {
        if self.held.is_some() {
            self.unasked += 1;
            if self.unasked > self.entries.len() + REGISTER_CAPACITY {
                self.held = None;
            }
        }
        let index = self.entries.next();
        let entry = self.entries.take(|| Entry {
            request: Entered(None),
            state: State::Walking,
            access: Access::AsAsked,
            published: 0,
            since,
        });
        entry.request = Entered(Some(request));
        entry.state = if granted.is_some() { State::Granted } else { State::Walking };
        entry.access = Access::AsAsked;
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

    /// Gives back what is no longer needed (invariant 4).
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
    /// Whether the step was published; it is not any longer.
    #[inline]
    fn take_back(&mut self, index: usize) -> bool {
        let bit = 1 << index;
        let was = self.published & bit != 0;
        self.published &= !bit;
        was
    }

    /// The nodes it holds, each with its mode.
    pub(crate) fn holds(&self) -> impl DoubleEndedIterator<Item = (NodeId, Mode)> + '_ {
        let steps: &[Step] = self.request.plan.steps();
        let taken = match &self.state {
            State::Waiting(waiting) => &steps[..waiting.step],
            State::Granted => steps,
            State::Walking => &[],
        };
        taken.iter().map(|step| (step.node, self.access.mode(step.mode)))
    }
}

/// A copy of an entry, to be spelled out after the ledger is let go: that calls user code.
pub(crate) struct Found<P: TreePath + ?Sized> {
    pub(crate) request: SharedRequest<P>,
    pub(crate) access: Access,
    pub(crate) since: Moment,
    /// The step it waits at, and the mode it waits for there.
    pub(crate) waiting: Option<(usize, Mode)>,
}

impl<P: TreePath + ?Sized> Found<P> {
    pub(crate) fn of(entry: &Entry<P>) -> Self {
        let waiting = match &entry.state {
            State::Waiting(waiting) => Some((waiting.step, waiting.ticket.mode())),
            State::Walking | State::Granted => None,
        };
        Found { request: SharedRequest::clone(&entry.request), access: entry.access, since: entry.since, waiting }
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

    /// Takes back the mark of one that waits.
    pub(crate) fn stop_waiting(&mut self, key: Key) {
        self.0[key.register].entries[key.index].state = State::Walking;
    }
}
