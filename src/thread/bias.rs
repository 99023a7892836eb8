//! Which nodes are *biased*: a request that holds an intention on such a node publishes it in its thread's register
//! of the ledger, and the node does not count it. So threads below a hot ancestor write nothing that another one
//! reads or writes; and one publication serves all ancestors of a request (G5).
//!
//! Intentions never exclude each other, so only a request for S, SIX or X needs to see them. Such a *strong* request
//! first *revokes* the bias: it takes back the node's tag, then goes through the registers, one after the other, and
//! turns what is published on the node there into counts.
//!
//! Invariants:
//!
//! 1. A step is published only while the node's tag stands: a thread that publishes looks at the tag under the mutex
//!    of its register, and a thread that revokes takes the tag back before it locks that register. So the one that
//!    comes later to that mutex sees the other, and no publication is missed.
//! 2. All tags of a shard are changed under the shard's mutex. While a tag stands, nobody holds or awaits the node in a
//!    strong mode, and no register owns it (`own.rs`).
//! 3. A thread that sets a tag has the shard's mutex, and so comes after all that held the node in a strong mode. A
//!    thread that publishes reads the tag with *acquire*, and so comes after them too, though it may have no mutex in
//!    common with them.
//! 4. An intention that was turned into a count stays one until it is released.
//! 5. All nodes of one tag are in one shard and are revoked together: the tag is a part of the id.
//!
//! A register remembers for which of its nodes all ancestors were biased; every revocation makes it forget: invariant
//! 5 of `own.rs`.
//!
//! A node gets a bias when it has been granted in weak modes often enough: the more the last revocation in this lock
//! had to look through, the more grants it takes. So the grants before a revocation pay for it.
//!
//! The idea: Dice and Kogan 2019, "BRAVO: Biased Locking for Reader-Writer Locks"; PostgreSQL's fast-path locks.

use crate::core::node_id::NodeId;
use crate::sync::{AtomicU32, AtomicU64, EVICT, Ordering, SHARDS, SLOTS, WARM};

/// The tag of an empty slot. A node that has this tag is never biased.
const NONE: u64 = 0;

/// The shard of a node. The hash map in it uses the outer bits of the same word.
#[inline]
pub(crate) fn shard(node: NodeId) -> usize {
    (node.bits() >> 24) as usize % SHARDS
}

/// The tag that marks the node as biased.
#[inline]
pub(crate) fn tag(node: NodeId) -> u64 {
    node.bits()
}

/// The slots of its shard that the node may have: two, so that hot nodes seldom compete for one.
#[inline]
#[allow(clippy::modulo_one, reason = "a model has two slots")]
fn slots(node: NodeId) -> [usize; 2] {
    let first = (node.bits() >> 34) as usize % SLOTS;
    let other = 1 + (node.bits() >> 40) as usize % (SLOTS - 1);
    [first, (first + other) % SLOTS]
}

/// Marks the biased nodes. All threads read it and seldom write it, so that every core keeps a copy of its own.
#[derive(Debug)]
pub(crate) struct Tags {
    tags: Box<[AtomicU64]>,
    /// The number of grants that pay for a revocation as costly as the last one. An estimate: it orders nothing, not
    /// even in a model.
    price: AtomicU32,
}

/// A tag that has to be taken back first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InTheWay {
    slot: usize,
    pub(crate) tag: u64,
}

impl Tags {
    pub(crate) fn new() -> Self {
        Tags { tags: (0..SHARDS * SLOTS).map(|_| AtomicU64::new(NONE)).collect(), price: AtomicU32::new(WARM) }
    }

    /// Whether intentions on the node are to be published. The answer holds while the caller has a mutex: that of its
    /// register, in order to publish there, or that of the node's shard.
    #[inline]
    pub(crate) fn is_set(&self, node: NodeId) -> bool {
        self.slot_of(node).is_some()
    }

    /// Counts a weak grant of a node without a bias. The node gets one if it is hot and there is room; see
    /// [`Tags::in_the_way`] for the case that there is none. The caller has the node's shard.
    pub(crate) fn warm(&self, node: NodeId, heats: &mut Heats) {
        if let Some(slot) = heats.warm(node, self.price.load(Ordering::Relaxed)) {
            let place = self.place(node, slot);
            if place.load(Ordering::Relaxed) == NONE && heats.0[slot].grants >= heats.0[slot].enough {
                // Release: invariant 3.
                place.store(tag(node), Ordering::Release);
            }
        }
    }

    /// What must be taken back before the node may be granted: for a strong mode its own tag; for a weak one that of a
    /// colder node, if this one is hot and has no other place. The caller has the shard.
    #[inline]
    pub(crate) fn in_the_way(&self, node: NodeId, strong: bool, heats: &Heats) -> Option<InTheWay> {
        match self.slot_of(node) {
            Some(slot) => strong.then_some(InTheWay { slot, tag: tag(node) }),
            None if strong => None,
            None => {
                let slot = heats.slot_of(node)?;
                let standing = self.place(node, slot).load(Ordering::Relaxed);
                (heats.0[slot].grants >= EVICT && standing != NONE).then_some(InTheWay { slot, tag: standing })
            }
        }
    }

    /// Takes back the tag that is in the way.
    pub(crate) fn clear(&self, node: NodeId, in_the_way: InTheWay) {
        self.place(node, in_the_way.slot).store(NONE, Ordering::Relaxed);
    }

    /// Called after the revocation, which had `looked` entries to look through: the more, the longer it takes until
    /// the next bias.
    pub(crate) fn cool(&self, node: NodeId, in_the_way: InTheWay, looked: usize, heats: &mut Heats) {
        let price = u32::try_from(looked / 8).unwrap_or(u32::MAX).saturating_add(WARM);
        self.price.store(price, Ordering::Relaxed);
        if in_the_way.tag == tag(node) {
            heats.0[in_the_way.slot] = Heat { tag: tag(node), grants: 0, enough: price };
        }
    }

    #[inline]
    fn slot_of(&self, node: NodeId) -> Option<usize> {
        // Acquire: invariant 3.
        let is_set = |slot: &usize| self.place(node, *slot).load(Ordering::Acquire) == tag(node);
        slots(node).into_iter().find(is_set).filter(|_| tag(node) != NONE)
    }

    // Other loads and stores are relaxed: the mutexes of invariants 1 and 2 order what matters there.
    #[inline]
    fn place(&self, node: NodeId, slot: usize) -> &AtomicU64 {
        &self.tags[shard(node) * SLOTS + slot]
    }
}

/// How often nodes of one shard were granted in weak modes and could not be published, for each slot; under the mutex of
/// the shard.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Heats([Heat; SLOTS]);

#[derive(Clone, Copy, Debug, Default)]
struct Heat {
    tag: u64,
    grants: u32,
    enough: u32,
}

impl Heats {
    fn slot_of(&self, node: NodeId) -> Option<usize> {
        slots(node).into_iter().find(|&slot| self.0[slot].tag == tag(node))
    }

    /// Counts a weak grant of the node; returns its slot, if it has or gets one.
    fn warm(&mut self, node: NodeId, price: u32) -> Option<usize> {
        if let Some(slot) = self.slot_of(node) {
            self.0[slot].grants = self.0[slot].grants.saturating_add(1);
            return Some(slot);
        }
        let mine = slots(node);
        // Of the nodes that compete for a slot, the most frequent one stays.
        let Some(slot) = mine.into_iter().find(|&slot| self.0[slot].grants == 0) else {
            mine.into_iter().for_each(|slot| self.0[slot].grants -= 1);
            return None;
        };
        self.0[slot] = Heat { tag: tag(node), grants: 1, enough: price };
        Some(slot)
    }
}
