//! Which nodes are *biased*: an intention on such a node is published by the request that holds it, in its own
//! thread's register of the ledger, and the node does not count it. So threads below a hot ancestor write nothing that
//! another one reads or writes; and one publication serves all ancestors of a request (G4).
//!
//! Intentions never exclude each other, so nobody need see them but who asks for S, SIX or X. Such a *strong* request
//! first *revokes* the bias: it takes back the node's tag, then goes through the registers, one after the other, and
//! turns what is published on the node there into counts.
//!
//! Invariants:
//!
//! 1. A step is published only while the node's tag stands: whoever publishes looks at the tag under the mutex of
//!    its register, and who revokes takes the tag back before it locks that. So of the two, who comes later at that
//!    mutex sees the other, and no publication is missed.
//! 2. All tags of a shard are changed under the shard's mutex. While a tag stands, nobody holds or awaits the node in a
//!    strong mode.
//! 3. What was turned into a count stays one until it is released.
//! 4. A node and all others of its tag are in one shard and are revoked together: tags are a part of the id.
//!
//! A node gets a bias when it has been granted in weak modes often enough; after a revocation that takes the more, the
//! more there was to look through, so that a node with many strong requests is not worse off than without all this.
//!
//! The idea: Dice and Kogan 2019, "BRAVO: Biased Locking for Reader-Writer Locks"; PostgreSQL's fast-path locks.

use crate::path::NodeId;
use crate::sync::{AtomicU64, Ordering, SHARDS, WARM};

/// The biased nodes that a shard can have.
pub(crate) const SLOTS: usize = 4;

/// A node takes the place of another after so many grants that could not be published.
const EVICT: u32 = 4096;

/// The shard of a node. The hash map in it uses the outer bits of the same word.
#[inline]
pub(crate) fn shard(node: NodeId) -> usize {
    (node.bits() >> 24) as usize % SHARDS
}

/// Its slot among those of its shard.
#[inline]
pub(crate) fn slot(node: NodeId) -> usize {
    (node.bits() >> 34) as usize % SLOTS
}

/// What marks it as biased.
#[inline]
pub(crate) fn tag(node: NodeId) -> u64 {
    node.bits()
}

/// Marks the biased nodes. Read by all, written seldom, so that every core keeps a copy of its own.
#[derive(Debug)]
pub(crate) struct Tags(Box<[AtomicU64]>);

/// How often the nodes of a shard were granted in weak modes, for one slot.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Heat {
    tag: u64,
    grants: u32,
    enough: u32,
}

impl Tags {
    pub(crate) fn new() -> Self {
        Tags((0..SHARDS * SLOTS).map(|_| AtomicU64::new(NONE)).collect())
    }

    /// Whether intentions on the node are to be published. The answer stands while the caller has a mutex: its register,
    /// in order to publish there, or the shard of the node.
    #[inline]
    pub(crate) fn is_set(&self, node: NodeId) -> bool {
        tag(node) != NONE && self.get(node) == tag(node)
    }

    /// The tag that stands where the node's would; under the mutex of the shard, as all that changes it.
    #[inline]
    pub(crate) fn get(&self, node: NodeId) -> u64 {
        // Relaxed, here and below: the mutexes of invariants 1 and 2 order all that matters.
        self.0[shard(node) * SLOTS + slot(node)].load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, node: NodeId, tag: u64) {
        self.0[shard(node) * SLOTS + slot(node)].store(tag, Ordering::Relaxed);
    }
}

/// Stands where no node is biased. One whose tag this is never is.
pub(crate) const NONE: u64 = 0;

impl Heat {
    /// Counts a weak grant of the node with that tag, given the one that stands; whether it is worth a bias by now.
    pub(crate) fn warm(&mut self, tag: u64, standing: u64) -> bool {
        if self.tag != tag {
            // Of those that share a slot the most frequent one stays.
            if self.grants > 0 {
                self.grants -= 1;
                return false;
            }
            *self = Heat { tag, grants: 0, enough: WARM };
        }
        self.grants = self.grants.saturating_add(1);
        self.is_hot(tag, standing)
    }

    pub(crate) fn is_hot(&self, tag: u64, standing: u64) -> bool {
        self.tag == tag && self.grants >= if standing == NONE { self.enough } else { self.enough.max(EVICT) }
    }

    /// After a revocation that had so much to look through.
    pub(crate) fn cooled(tag: u64, looked: usize) -> Self {
        let enough = u32::try_from(looked).unwrap_or(u32::MAX).saturating_mul(2).saturating_add(WARM);
        Heat { tag, grants: 0, enough }
    }
}
