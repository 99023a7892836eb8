//! The live nodes of a lock: made when they are first asked for, dropped when they are idle (G6).
//!
//! A hash map from node id to [`Node`], cut into shards by the id, each under a mutex of its own that is held for
//! one decision of one node. Registers of the ledger are locked under it, where a bias is revoked or a request entered or
//! taken out together with its last step.
//!
//! Invariants:
//!
//! 1. A node is in its shard exactly while it counts a grant or somebody waits for it; what is only published is in the
//!    ledger (`bias.rs`, `own.rs`). All changes of it happen under the shard's mutex, so none is dropped while somebody looks.
//! 2. Whoever is granted by a change is told so under that mutex, and woken by the caller, who gets it in a
//!    [`Due`], after the mutex is let go.
//! 3. A shard's capacity is at most a few times the most that it needs now, and a constant when it is empty.
//!
//! Lock order: a shard, then the registers that a revocation goes through, one after the other, or the one that owns or is
//! to own a node, or the [`Waiter`]s that it grants; never two shards.

use crate::core::mode::{Mode, ModeCounts};
use crate::core::node::{Node, Ticket};
use crate::core::node_id::{NodeId, NodeMap};
use crate::core::path::TreePath;
use crate::core::plan::Step;
use crate::sync::{CachePadded, Mutex, MutexGuard, SHARDS};
use crate::thread::bias::{self, Heats, InTheWay, Tags};
use crate::thread::ledger::Ledger;
use crate::thread::own::{Former, Hints, Owners};
use crate::thread::waiter::Waiter;
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

/// Those that were granted and are yet to be woken: when this is dropped, outside of any internal lock.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Due(Vec<Arc<Waiter>>);

impl Drop for Due {
    fn drop(&mut self) {
        self.0.iter().for_each(|waiter| waiter.wake());
    }
}

impl Table {
    pub(crate) fn new() -> Self {
        Table {
            shards: (0..SHARDS).map(|_| CachePadded::default()).collect(),
            tags: Tags::new(),
            hints: Hints::new(),
        }
    }

    /// Whether the step seems to be one that a request of that register publishes.
    #[inline]
    pub(crate) fn seems_published(&self, register: usize, step: &Step) -> bool {
        if step.mode.is_intention() { self.is_biased(step.node) } else { self.hints.owns(register, step.node) }
    }

    /// Whether an intention on the node is to be published, by a caller that has its register.
    #[inline]
    pub(crate) fn is_biased(&self, node: NodeId) -> bool {
        self.tags.is_set(node)
    }

    /// Grants the step to an owner that already holds `held` there, if it need not wait.
    pub(crate) fn try_grant<P>(&self, step: Step, held: &ModeCounts, ledger: &Ledger<P>) -> bool
    where
        P: TreePath + ?Sized,
    {
        let mut shard = self.shard(step.node).lock();
        self.revoke_for(step, &mut shard, ledger);
        self.grant(step, held, &mut shard)
    }

    /// Locks the shard of a node, for what has to be done together with the ledger.
    #[inline]
    pub(crate) fn lock(&self, place: Place) -> LockedShard<'_> {
        LockedShard { table: self, shard: self.shards[place.0].lock() }
    }

    /// Grants the step, or lets `waiter` queue for it.
    pub(crate) fn request<P>(
        &self,
        step: Step,
        held: ModeCounts,
        waiter: &Arc<Waiter>,
        ledger: &Ledger<P>,
    ) -> Option<Ticket>
    where
        P: TreePath + ?Sized,
    {
        let mut shard = self.shard(step.node).lock();
        self.revoke_for(step, &mut shard, ledger);
        let granted = self.grant(step, &held, &mut shard);
        let mut queue =
            || shard.nodes.get_mut(&step.node).map(|node| node.enqueue(step.mode, held, Arc::clone(waiter)));
        if granted { None } else { queue() }
    }

    pub(crate) fn downgrade(&self, node: NodeId, mode: Mode, due: &mut Due) {
        self.change(node, due, |node, due| node.downgrade(mode, mode.downgraded(), due));
    }

    /// Takes a waiter out of its queue; `false` if it had been granted before.
    pub(crate) fn cancel(&self, node: NodeId, ticket: Ticket, due: &mut Due) -> bool {
        self.change(node, due, |node, due| node.cancel(ticket, due))
    }

    /// Releases a step of a request of that register.
    pub(crate) fn release<P>(&self, node: NodeId, mode: Mode, register: usize, ledger: &Ledger<P>, due: &mut Due)
    where
        P: TreePath + ?Sized,
    {
        let mut shard = self.lock(Place::of(node));
        if mode.is_intention() {
            shard.shard.change(node, due, |node, due| node.release(mode, due));
        } else {
            shard.release(node, mode, register, due, || ledger.own(register, node));
        }
    }

    /// Turns what a request has published on a node into a count of it, if it still is. `unpublish` takes back an intention.
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
    fn change<R>(
        &self,
        node: NodeId,
        due: &mut Due,
        change: impl FnOnce(&mut Node<Arc<Waiter>>, &mut Vec<Arc<Waiter>>) -> R,
    ) -> R {
        self.shard(node).lock().change(node, due, change)
    }

    #[inline]
    fn grant(&self, step: Step, held: &ModeCounts, shard: &mut Shard) -> bool {
        let Shard { nodes, heats, .. } = shard;
        let node = nodes.entry(step.node).or_default();
        let granted = node.try_grant(step.mode, held);
        if granted && step.mode.is_intention() && node.has_intentions_only() && !self.tags.is_set(step.node) {
            self.tags.warm(step.node, heats);
        }
        granted
    }

    #[inline]
    fn in_the_way(&self, step: Step, shard: &Shard) -> Option<InTheWay> {
        self.tags.in_the_way(step.node, !step.mode.is_intention(), &shard.heats)
    }

    /// Turns what registers publish on the node into counts, as far as that could be in the way of the step.
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

    /// A node that is in the way of this one among the owned, and is taken less often, loses its place.
    #[inline]
    fn contest<P: TreePath + ?Sized>(&self, node: NodeId, shard: &mut Shard, ledger: &Ledger<P>) {
        if let Some(former) = shard.owners.contest(node) {
            self.take_back(node, &former, shard, ledger);
        }
    }

    /// Takes the node from the register that owns it, if one does.
    #[inline]
    fn disown<P: TreePath + ?Sized>(&self, node: NodeId, shard: &mut Shard, ledger: &Ledger<P>) {
        if let Some(former) = shard.owners.remove(node) {
            self.take_back(node, &former, shard, ledger);
        }
    }

    /// Takes what a register owned, in the shard of the node.
    #[cold]
    fn take_back<P>(&self, node: NodeId, former: &Former, shard: &mut Shard, ledger: &Ledger<P>)
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
    /// Grants the step to an owner that holds nothing there; not if a bias or another owner is in the way.
    #[inline]
    pub(crate) fn try_grant(&mut self, step: Step) -> bool {
        !self.shard.owners.is_owned(step.node)
            && self.table.in_the_way(step, &self.shard).is_none()
            && self.table.grant(step, &ModeCounts::NONE, &mut self.shard)
    }

    /// Before a root is granted by a caller that has no register: see [`Owners::contest`].
    #[inline]
    pub(crate) fn contest<P: TreePath + ?Sized>(&mut self, node: NodeId, ledger: &Ledger<P>) {
        self.table.contest(node, &mut self.shard, ledger);
    }

    /// Releases a root of a request of that register, which owns the node from then on by `own`, if that pays.
    #[inline]
    pub(crate) fn release(
        &mut self,
        node: NodeId,
        mode: Mode,
        register: usize,
        due: &mut Due,
        own: impl FnOnce() -> bool,
    ) {
        let shard = &mut *self.shard;
        if !shard.change(node, due, |node, due| {
            node.release(mode, due);
            node.is_idle()
        }) {
            shard.owners.is_left_busy(node);
        } else if shard.owners.is_left_free(node, register) {
            let owns = own();
            shard.owners.add(node, owns, &self.table.hints);
        }
    }
}

impl Shard {
    /// The one place where somebody lets go of a node, and where others may be granted by that.
    #[inline]
    fn change<R>(
        &mut self,
        node: NodeId,
        due: &mut Due,
        change: impl FnOnce(&mut Node<Arc<Waiter>>, &mut Vec<Arc<Waiter>>) -> R,
    ) -> R {
        let Entry::Occupied(mut place) = self.nodes.entry(node) else {
            unreachable!("a node lives while it is held or awaited (invariant 1)")
        };
        let woken_before = due.0.len();
        let result = change(place.get_mut(), &mut due.0);
        due.0[woken_before..].iter().for_each(|waiter| waiter.grant());
        if place.get().is_idle() {
            place.remove();
            self.trim();
        }
        result
    }

    /// Gives back what it no longer needs; the cost is paid by the insertions that made it grow.
    #[inline]
    fn trim(&mut self) {
        let nodes = &mut self.nodes;
        if nodes.capacity() > SHARD_CAPACITY && nodes.len() < nodes.capacity() / 8 {
            nodes.shrink_to(SHARD_CAPACITY.max(nodes.len() * 2));
        }
    }
}
