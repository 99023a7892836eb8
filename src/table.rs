//! The live nodes of a lock: made when they are first asked for, dropped when they are idle (G6).
//!
//! A hash map from node id to [`Node`], cut into shards by the id, each under a mutex of its own that is held for
//! one decision of one node and never while anything else is asked for.
//!
//! Invariants:
//!
//! 1. A node is in its shard exactly while somebody holds it or waits for it; all changes of it happen under the
//!    shard's mutex, so none is dropped while somebody looks.
//! 2. Whoever is granted by a change is told so under that mutex, and woken by the caller, who gets it in a
//!    [`Due`], after the mutex is let go.
//! 3. A shard's capacity is at most a few times the most that it needs now, and a constant when it is empty.
//!
//! Lock order: a shard, then the [`Waiter`]s it grants; never two shards.

use crate::mode::{Mode, ModeCounts};
use crate::node::{Node, Ticket};
use crate::path::NodeId;
use crate::plan::Step;
use crate::sync::{CachePadded, Mutex, SHARDS};
use crate::waiter::Waiter;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

#[derive(Debug)]
pub(crate) struct Table {
    shards: Box<[CachePadded<Mutex<Shard>>]>,
}

type Shard = HashMap<NodeId, Node<Arc<Waiter>>, BuildHasherDefault<IdHasher>>;

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
        Table { shards: (0..SHARDS).map(|_| CachePadded::default()).collect() }
    }

    /// Grants the step to an owner that already holds `held` there, if it need not wait.
    #[inline]
    pub(crate) fn try_grant(&self, step: Step, held: &ModeCounts) -> bool {
        match self.shard(step.node).lock().entry(step.node) {
            Entry::Occupied(mut node) => node.get_mut().try_grant(step.mode, held),
            Entry::Vacant(place) => place.insert(Node::default()).try_grant(step.mode, held),
        }
    }

    /// Grants the step, or lets `waiter` queue for it.
    pub(crate) fn request(&self, step: Step, held: ModeCounts, waiter: &Arc<Waiter>) -> Option<Ticket> {
        let mut shard = self.shard(step.node).lock();
        let node = shard.entry(step.node).or_default();
        let granted = node.try_grant(step.mode, &held);
        (!granted).then(|| node.enqueue(step.mode, held, Arc::clone(waiter)))
    }

    pub(crate) fn release(&self, node: NodeId, mode: Mode, due: &mut Due) {
        self.change(node, due, |node, due| node.release(mode, due));
    }

    pub(crate) fn downgrade(&self, node: NodeId, mode: Mode, due: &mut Due) {
        self.change(node, due, |node, due| node.downgrade(mode, mode.downgraded(), due));
    }

    /// Takes a waiter out of its queue; `false` if it had been granted before.
    pub(crate) fn cancel(&self, node: NodeId, ticket: Ticket, due: &mut Due) -> bool {
        self.change(node, due, |node, due| node.cancel(ticket, due))
    }

    /// The number of live nodes.
    #[cfg(all(test, not(feature = "model")))]
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// The number of nodes there is room for.
    #[cfg(all(test, not(feature = "model")))]
    pub(crate) fn capacity(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().capacity()).sum()
    }

    /// The one place where a node is changed that somebody holds or waits for.
    #[inline]
    fn change<R>(
        &self,
        node: NodeId,
        due: &mut Due,
        change: impl FnOnce(&mut Node<Arc<Waiter>>, &mut Vec<Arc<Waiter>>) -> R,
    ) -> R {
        let mut shard = self.shard(node).lock();
        let Entry::Occupied(mut place) = shard.entry(node) else {
            unreachable!("a node lives while it is held or awaited (invariant 1)")
        };
        let woken_before = due.0.len();
        let result = change(place.get_mut(), &mut due.0);
        due.0[woken_before..].iter().for_each(|waiter| waiter.grant());
        if place.get().is_idle() {
            place.remove();
            trim(&mut shard);
        }
        result
    }

    #[inline]
    fn shard(&self, node: NodeId) -> &Mutex<Shard> {
        &self.shards[node.shard_bits() % self.shards.len()]
    }
}

/// Gives back what a shard no longer needs; its cost is paid by the insertions that made it grow.
#[inline]
fn trim(shard: &mut Shard) {
    if shard.capacity() > SHARD_CAPACITY && shard.len() < shard.capacity() / 8 {
        shard.shrink_to(SHARD_CAPACITY.max(shard.len() * 2));
    }
}

/// A node id is a hash already.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    #[inline]
    fn write_u64(&mut self, id: u64) {
        self.0 = id;
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("a node id hashes one word")
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}
