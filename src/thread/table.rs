//! The live nodes of a lock: made when they are first asked for, dropped when they are idle (G6).
//!
//! A hash map from node id to [`Node`], split by id into shards, each under a mutex of its own. The mutex is held for
//! one decision about one node, or about several nodes where a request must be decided at one moment. Registers of
//! the ledger are locked under it where a bias is revoked, or where an entry changes together with its node.
//!
//! Invariants:
//!
//! 1. A node is in its shard exactly while it counts a grant or a request waits for it; what is only published is in
//!    the ledger (`bias.rs`, `own.rs`). A node changes only under the shard's mutex, so none is dropped while a
//!    thread looks at it.
//! 2. A request that a change lets on is marked in the ledger under that mutex: as granted, to be woken; or as a
//!    mover, to be walked on. The caller gets both in a [`Due`], and does this after it has released the mutex.
//! 3. A shard's capacity is at most a few times the most that it needs now, and a constant when it is empty.
//!
//! Lock order: shards in the order of their numbers, and more than one only in [`Table::lock_all`]; then registers, one after
//! the other, or a [`Waiter`].

use crate::core::mode::{Mode, ModeCounts};
use crate::core::node::{Node, Stamp, Ticket};
use crate::core::node_id::{NodeId, NodeMap};
use crate::core::path::TreePath;
use crate::core::plan::Step;
use crate::sync::{CachePadded, Mutex, MutexGuard, SHARDS};
use crate::thread::bias::{self, Heats, InTheWay, Tags};
use crate::thread::ledger::{Key, Ledger, LetOn};
use crate::thread::moving::{Moving, Turn};
use crate::thread::own::{Former, Hints, Owners};
use crate::thread::waiter::{Sleeper, Waiter};
use std::collections::hash_map::Entry;
use std::sync::Arc;

#[derive(Debug)]
pub(crate) struct Table {
    shards: Box<[CachePadded<Mutex<Shard>>]>,
    tags: Tags,
    hints: Hints,
}

#[derive(Debug, Default)]
struct Shard {
    nodes: NodeMap<Node<Arc<Waiter>>>,
    moving: Moving,
    heats: Heats,
    owners: Owners,
}

/// Which shard a node is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place(usize);

impl Place {
    #[inline]
    pub(crate) fn of(node: NodeId) -> Self {
        Place(bias::shard(node))
    }

    #[inline]
    pub(crate) fn number(self) -> usize {
        self.0
    }

    #[inline]
    pub(crate) fn of_number(number: usize) -> Self {
        Place(number)
    }
}

/// The capacity that a shard always keeps.
const SHARD_CAPACITY: usize = 28;

/// What is left to be done after a change, outside the mutex of any shard.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Due {
    /// The waiters that hold everything. They are woken when this is dropped, outside any internal lock.
    pub(crate) granted: Vec<Arc<Waiter>>,
    /// The movers to be walked on, by node and number, with all movers of the node before them.
    pub(crate) moves: Vec<(NodeId, u64)>,
}

impl Due {
    pub(crate) fn is_empty(&self) -> bool {
        self.granted.is_empty() && self.moves.is_empty()
    }
}

impl Drop for Due {
    fn drop(&mut self) {
        debug_assert!(self.moves.is_empty(), "movers are left to nobody");
        // Threads first: a waker is code of the user, and may wait for one of them.
        let is_thread = |waiter: &&Arc<Waiter>| waiter.sleeper == Sleeper::Thread;
        self.granted.iter().filter(is_thread).for_each(|waiter| waiter.wake());
        self.granted.iter().filter(|waiter| !is_thread(waiter)).for_each(|waiter| waiter.wake());
    }
}

/// What became of a step.
pub(crate) enum Grant {
    Granted,
    /// It is granted, and there are movers at the node, up to this number.
    Behind(u64),
    /// It is not granted; the owner holds this there.
    Refused(ModeCounts),
}

impl Table {
    pub(crate) fn new() -> Self {
        Table {
            shards: (0..SHARDS).map(|_| CachePadded::default()).collect(),
            tags: Tags::new(),
            hints: Hints::new(),
        }
    }

    /// Whether an intention on the node is to be published, by a caller that has its register.
    #[inline]
    pub(crate) fn is_biased(&self, node: NodeId) -> bool {
        self.tags.is_set(node)
    }

    /// Whether the step seems to be one that a request of that register publishes.
    #[inline]
    pub(crate) fn seems_published(&self, register: usize, step: &Step) -> bool {
        if step.mode.is_intention() { self.is_biased(step.node) } else { self.hints.owns(register, step.node) }
    }

    /// Locks the shard of a node, for what has to be done together with the ledger.
    #[inline]
    pub(crate) fn lock(&self, place: Place) -> LockedShard<'_> {
        LockedShard { table: self, shard: self.shards[place.0].lock() }
    }

    /// Locks the shards of several nodes.
    pub(crate) fn lock_all(&self, nodes: impl Iterator<Item = NodeId>) -> LockedShards<'_> {
        let mut places: Vec<usize> = nodes.map(bias::shard).collect();
        places.sort_unstable();
        places.dedup();
        LockedShards(places.into_iter().map(|place| (place, self.lock(Place(place)))).collect())
    }

    /// The right to walk on the movers of a node, unless those up to `until` have gone.
    pub(crate) fn turn(&self, node: NodeId, until: u64) -> Option<Turn> {
        self.shard(node).lock().moving.turn(node, until)
    }

    /// The next mover of a node up to `until`, for the thread that has the turn.
    pub(crate) fn next_mover(&self, node: NodeId, until: u64) -> Option<Arc<Waiter>> {
        self.shard(node).lock().moving.next(node, until)
    }

    /// The mover that `next_mover` returned has gone as far as it can.
    pub(crate) fn arrived(&self, node: NodeId) {
        self.shard(node).lock().moving.arrived(node);
    }

    /// Turns what a request has published on a node into a count, if it is still published. `unpublish` takes back an
    /// intention.
    pub(crate) fn count<P>(&self, step: Step, ledger: &Ledger<P>, unpublish: impl FnOnce() -> bool)
    where
        P: TreePath + ?Sized,
    {
        let mut shard = self.shard(step.node).lock();
        if !step.mode.is_intention() {
            self.disown(step.node, &mut shard, ledger);
        } else if unpublish() {
            shard.nodes.entry(step.node).or_default().count(step.mode);
        }
    }

    /// The number of live nodes.
    #[cfg(any(test, feature = "model"))]
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().nodes.len()).sum()
    }

    /// The number of nodes there is room for.
    #[cfg(all(test, not(feature = "model")))]
    pub(crate) fn capacity(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().nodes.capacity()).sum()
    }

    #[inline]
    fn in_the_way(&self, step: Step, shard: &Shard) -> Option<InTheWay> {
        self.tags.in_the_way(step.node, !step.mode.is_intention(), &shard.heats)
    }

    /// Turns what registers publish on the node into counts, where that could be in the way of the step.
    fn revoke_for<P: TreePath + ?Sized>(&self, step: Step, shard: &mut Shard, ledger: &Ledger<P>) {
        if !step.mode.is_intention() {
            self.contest(step.node, shard, ledger);
        }
        self.disown(step.node, shard, ledger);
        let Some(in_the_way) = self.in_the_way(step, shard) else { return };
        self.tags.clear(step.node, in_the_way);
        let count = |node, mode| shard.nodes.entry(node).or_default().count(mode);
        let looked = ledger.unpublish(in_the_way.tag, count);
        self.tags.cool(step.node, in_the_way, looked, &mut shard.heats);
    }

    /// If this node has no place among the owned ones, one that is taken less often may lose its place to it.
    #[inline]
    fn contest<P: TreePath + ?Sized>(&self, node: NodeId, shard: &mut Shard, ledger: &Ledger<P>) {
        if let Some(former) = shard.owners.contest(node) {
            self.revoke_ownership(node, &former, shard, ledger);
        }
    }

    /// Takes the node from the register that owns it, if one does.
    #[inline]
    fn disown<P: TreePath + ?Sized>(&self, node: NodeId, shard: &mut Shard, ledger: &Ledger<P>) {
        if let Some(former) = shard.owners.remove(node) {
            self.revoke_ownership(node, &former, shard, ledger);
        }
    }

    /// Takes back what a register owned, in the shard of the node.
    #[cold]
    fn revoke_ownership<P>(&self, node: NodeId, former: &Former, shard: &mut Shard, ledger: &Ledger<P>)
    where
        P: TreePath + ?Sized,
    {
        self.hints.clear(node, former);
        ledger.disown(former.register, former.tag, |node, mode| shard.nodes.entry(node).or_default().count(mode));
    }

    #[inline]
    fn shard(&self, node: NodeId) -> &Mutex<Shard> {
        &self.shards[bias::shard(node)]
    }
}

/// The shard of a node, locked.
pub(crate) struct LockedShard<'a> {
    table: &'a Table,
    shard: MutexGuard<'a, Shard>,
}

impl LockedShard<'_> {
    /// Grants the step to an owner that holds nothing there, unless a bias, an owning register or another request is
    /// in the way.
    #[inline]
    pub(crate) fn try_grant(&mut self, step: Step) -> bool {
        !self.shard.owners.is_owned(step.node)
            && self.table.in_the_way(step, &self.shard).is_none()
            && self.grant(step, |node| node.try_grant(step.mode, &ModeCounts::NONE))
    }

    /// For a caller that has locked no register, before it is granted a root: see [`Owners::contest`].
    #[inline]
    pub(crate) fn contest<P: TreePath + ?Sized>(&mut self, node: NodeId, ledger: &Ledger<P>) {
        self.table.contest(node, &mut self.shard, ledger);
    }

    /// Grants the step to a request with that stamp, if it need not wait; `held` tells what its owner holds there.
    pub(crate) fn take<P>(
        &mut self,
        step: Step,
        stamp: Stamp,
        ledger: &Ledger<P>,
        held: impl FnOnce() -> ModeCounts,
    ) -> Grant
    where
        P: TreePath + ?Sized,
    {
        self.table.revoke_for(step, &mut self.shard, ledger);
        let mut own = ModeCounts::NONE;
        let taken = |node: &mut Node<_>| match node.take(stamp, step.mode, held) {
            Ok(()) => true,
            Err(held) => {
                own = held;
                false
            }
        };
        match (self.grant(step, taken), self.shard.moving.last(step.node)) {
            (true, None) => Grant::Granted,
            (true, Some(last)) => Grant::Behind(last),
            (false, _) => Grant::Refused(own),
        }
    }

    /// Queues a request that was refused; this may let others on.
    pub(crate) fn enqueue<P>(
        &mut self,
        step: Step,
        held: ModeCounts,
        waiter: &Arc<Waiter>,
        ledger: &Ledger<P>,
        due: &mut Due,
    ) -> Ticket
    where
        P: TreePath + ?Sized,
    {
        let node = self.shard.nodes.entry(step.node).or_default();
        let mut let_on = Vec::new();
        let ticket = node.enqueue(waiter.stamp, step.mode, held, Arc::clone(waiter), &mut let_on);
        self.shard.let_on(step.node, let_on, ledger, due);
        ticket
    }

    /// Puts a request that holds the step behind the movers of its node.
    pub(crate) fn move_behind(&mut self, step: Step, waiter: &Arc<Waiter>) -> u64 {
        self.shard.moving.push(step.node, Arc::clone(waiter))
    }

    /// Releases a step of a request of that register. If the step was a root and it pays, the register owns the node
    /// from then on.
    #[inline]
    pub(crate) fn release<P>(&mut self, step: &Step, register: usize, ledger: &Ledger<P>, due: &mut Due)
    where
        P: TreePath + ?Sized,
    {
        let is_free = self.take_back(step, ledger, due);
        let Shard { owners, .. } = &mut *self.shard;
        if step.mode.is_intention() {
            return;
        }
        if !is_free {
            owners.is_left_busy(step.node);
        } else if owners.is_left_free(step.node, register) {
            owners.add(step.node, ledger.own(register, step.node), &self.table.hints);
        }
    }

    /// Takes a grant back; returns whether nobody holds or awaits the node now.
    #[inline]
    pub(crate) fn take_back<P>(&mut self, step: &Step, ledger: &Ledger<P>, due: &mut Due) -> bool
    where
        P: TreePath + ?Sized,
    {
        self.change(step.node, ledger, due, |node, let_on| {
            node.release(step.mode, let_on);
            node.is_idle()
        })
    }

    pub(crate) fn downgrade<P>(&mut self, node: NodeId, from: Mode, to: Mode, ledger: &Ledger<P>, due: &mut Due)
    where
        P: TreePath + ?Sized,
    {
        self.change(node, ledger, due, |node, let_on| node.downgrade(from, to, let_on));
    }

    /// Takes a waiter out of its queue; `false` if it had been let on before. The ledger notes this before it notes
    /// the requests that this lets on, so that none of them is seen to have overtaken it.
    pub(crate) fn cancel<P>(
        &mut self,
        key: Key,
        node: NodeId,
        ticket: Ticket,
        ledger: &Ledger<P>,
        due: &mut Due,
    ) -> bool
    where
        P: TreePath + ?Sized,
    {
        self.change(node, ledger, due, |node, let_on| {
            let is_out = node.cancel(ticket, let_on);
            if is_out {
                ledger.stop_waiting(key);
            }
            is_out
        })
    }

    #[inline]
    fn grant(&mut self, step: Step, take: impl FnOnce(&mut Node<Arc<Waiter>>) -> bool) -> bool {
        let Shard { nodes, moving, heats, .. } = &mut *self.shard;
        let node = nodes.entry(step.node).or_default();
        let granted = take(node);
        let tags = &self.table.tags;
        if granted && step.mode.is_intention() && node.has_intentions_only() && !tags.is_set(step.node) {
            // Otherwise a request that publishes would pass the movers (invariant 1 of `moving.rs`).
            if moving.last(step.node).is_none() {
                tags.warm(step.node, heats);
            }
        }
        granted
    }

    /// The only place where a node loses a grant, a part of one, or a waiter that gives up.
    #[inline]
    fn change<P, R>(
        &mut self,
        node: NodeId,
        ledger: &Ledger<P>,
        due: &mut Due,
        change: impl FnOnce(&mut Node<Arc<Waiter>>, &mut Vec<Arc<Waiter>>) -> R,
    ) -> R
    where
        P: TreePath + ?Sized,
    {
        let Entry::Occupied(mut place) = self.shard.nodes.entry(node) else {
            unreachable!("a node lives while it is held or awaited (invariant 1)")
        };
        let mut let_on = Vec::new();
        let result = change(place.get_mut(), &mut let_on);
        if place.get().is_idle() {
            place.remove();
            self.shard.trim();
        } else {
            self.shard.let_on(node, let_on, ledger, due);
        }
        result
    }
}

/// The shards of several nodes, locked: what is decided there is decided at one moment.
pub(crate) struct LockedShards<'a>(Vec<(usize, LockedShard<'a>)>);

impl<'a> LockedShards<'a> {
    /// The shard of a node.
    pub(crate) fn of(&mut self, node: NodeId) -> &mut LockedShard<'a> {
        let shard = bias::shard(node);
        let index = self.0.binary_search_by_key(&shard, |(place, _)| *place);
        &mut self.0[index.expect("it is locked")].1
    }
}

impl Shard {
    /// Marks the requests that a node has let on (invariant 2).
    #[inline]
    fn let_on<P>(&mut self, node: NodeId, mut let_on: Vec<Arc<Waiter>>, ledger: &Ledger<P>, due: &mut Due)
    where
        P: TreePath + ?Sized,
    {
        let_on.retain(|waiter| {
            let number = || self.moving.push(node, Arc::clone(waiter));
            match ledger.let_on(waiter.key, number) {
                LetOn::Granted => {
                    waiter.grant();
                    true
                }
                LetOn::Moves(number) => {
                    due.moves.push((node, number));
                    false
                }
            }
        });
        match due.granted.is_empty() {
            true => due.granted = let_on,
            false => due.granted.append(&mut let_on),
        }
    }

    /// Frees what it no longer needs; the insertions that made it grow pay for the cost.
    #[inline]
    fn trim(&mut self) {
        let nodes = &mut self.nodes;
        if nodes.capacity() > SHARD_CAPACITY && nodes.len() < nodes.capacity() / 8 {
            nodes.shrink_to(SHARD_CAPACITY.max(nodes.len() * 2));
        }
    }
}
