//! What is granted and what waits, by request: the lock's memory of who.
//!
//! Nodes only count ([`node.rs`](crate::node)); the ledger knows the requests behind the counts. It answers three
//! questions, none of them on the fast path: what does this thread hold at that node (re-entrancy), who waits for
//! whom (`deadlock.rs`), and who holds what (`inspect.rs`). It is cut into registers, by thread, each under a
//! mutex of its own, so that a thread writes where no other does.
//!
//! Invariants:
//!
//! 1. The ledger is never ahead of the nodes: a request is entered as granted after its last step is granted and
//!    taken out (or weakened) before the first is released. So two entries that are granted never conflict.
//! 2. An entry is marked as waiting after its request has queued, and the mark is taken back before it is
//!    cancelled. A mark may be stale only if the waiter has been granted, and the [`Waiter`] knows that.
//! 3. A register's index, where there is one, counts exactly the granted entries of plain guards in it.
//! 4. An empty register is of constant size.
//!
//! Lock order: registers in the order of their numbers, then a waiter; never together with a shard of the table.

use crate::mode::{Mode, ModeCounts};
use crate::node::Ticket;
use crate::path::{NodeId, TreePath};
use crate::plan::Step;
use crate::request::{Owner, Request};
use crate::sync::{CachePadded, Mutex, MutexGuard, REGISTERS};
use crate::waiter::Waiter;
use slab::Slab;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

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

pub(crate) struct Register<P: TreePath + ?Sized> {
    entries: Slab<Entry<P>>,
    /// What each thread holds at each node by plain guards. Made when a request first meets a conflict that may
    /// be its own doing; most registers never have one.
    held: Option<Held>,
}

pub(crate) struct Entry<P: TreePath + ?Sized> {
    pub(crate) request: Arc<Request<P>>,
    pub(crate) state: State,
    pub(crate) access: Access,
    /// When the state of waiting, or of being granted, began.
    pub(crate) since: Instant,
}

#[derive(Debug)]
pub(crate) enum State {
    /// On its way between two waits: it holds some of its steps.
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

/// How a wait may end other than by the grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Temper {
    /// By a panic only.
    Endless,
    /// By a refusal.
    Refusable,
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
        let register = || Register { entries: Slab::new(), held: None };
        Ledger { registers: (0..REGISTERS).map(|_| CachePadded::new(Mutex::new(register()))).collect() }
    }

    /// Enters a request, which the calling thread has made.
    pub(crate) fn insert(&self, request: Arc<Request<P>>, state: State) -> Key {
        let register = self.register_of(request.thread.id);
        let entry = Entry { request, state, access: Access::AsAsked, since: Instant::now() };
        let mut locked = self.registers[register].lock();
        locked.index(&entry, ModeCounts::add);
        Key { register, index: locked.entries.insert(entry) }
    }

    /// Takes out an entry.
    pub(crate) fn remove(&self, key: Key) -> Entry<P> {
        let mut register = self.registers[key.register].lock();
        let entry = register.entries.remove(key.index);
        register.index(&entry, ModeCounts::remove);
        register.trim();
        entry
    }

    /// Marks an entry that is not granted.
    pub(crate) fn set_state(&self, key: Key, state: State) {
        let mut guard = self.registers[key.register].lock();
        let register = &mut *guard;
        let entry = &mut register.entries[key.index];
        debug_assert!(!matches!(entry.state, State::Granted), "a grant is final");
        if !matches!(state, State::Walking) {
            entry.since = Instant::now();
        }
        // The waiter of the old state goes with it: nobody else's code runs in its drop.
        entry.state = state;
        if let Some(held) = &mut register.held {
            count(held, entry, ModeCounts::add);
        }
    }

    /// Marks an entry as downgraded; `None` if it was already.
    pub(crate) fn downgrade(&self, key: Key) -> Option<Arc<Request<P>>> {
        let mut guard = self.registers[key.register].lock();
        let register = &mut *guard;
        let entry = &mut register.entries[key.index];
        if entry.access == Access::Downgraded {
            return None;
        }
        if let Some(held) = &mut register.held {
            count(held, entry, ModeCounts::remove);
        }
        entry.access = Access::Downgraded;
        if let Some(held) = &mut register.held {
            count(held, entry, ModeCounts::add);
        }
        Some(Arc::clone(&entry.request))
    }

    /// What matters of the other guards of a request's thread, when it cannot be granted at once at `node`.
    pub(crate) fn nesting(&self, request: &Request<P>, node: NodeId) -> Nesting {
        let thread = request.thread.id;
        let mut guard = self.registers[self.register_of(thread)].lock();
        let register = &mut *guard;
        if register.entries.is_empty() {
            return Nesting::default();
        }
        let held = register.held.get_or_insert_with(|| {
            let mut held = HashMap::default();
            register.entries.iter().for_each(|(_, entry)| count(&mut held, entry, ModeCounts::add));
            held
        });
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
    fn register_of(&self, thread: u64) -> usize {
        thread as usize % self.registers.len()
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

impl<P: TreePath + ?Sized> Register<P> {
    #[inline]
    fn index(&mut self, entry: &Entry<P>, change: fn(&mut ModeCounts, Mode)) {
        if let Some(held) = &mut self.held {
            count(held, entry, change);
        }
    }

    /// Gives back what is no longer needed (invariant 4).
    #[inline]
    fn trim(&mut self) {
        if self.entries.is_empty() {
            self.held = None;
            if self.entries.capacity() > REGISTER_CAPACITY {
                self.entries = Slab::with_capacity(REGISTER_CAPACITY);
            }
        }
    }
}

impl<P: TreePath + ?Sized> Entry<P> {
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
    pub(crate) request: Arc<Request<P>>,
    pub(crate) access: Access,
    pub(crate) since: Instant,
    /// The step it waits at, and how.
    pub(crate) waiting: Option<(NodeId, Ticket)>,
}

impl<P: TreePath + ?Sized> Found<P> {
    pub(crate) fn of(entry: &Entry<P>) -> Self {
        let waiting = match &entry.state {
            State::Waiting(waiting) => Some((entry.request.plan.steps()[waiting.step].node, waiting.ticket)),
            State::Walking | State::Granted => None,
        };
        Found { request: Arc::clone(&entry.request), access: entry.access, since: entry.since, waiting }
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
