//! What a node is called inside of the lock: a seeded hash of the way from the root to it.
//!
//! Invariant: the id of a node is a hash of its parent's id and its segment, 128 bits wide. Two nodes that share an id are
//! locked together: exclusion becomes coarser, not finer. For an ideal hash and a million nodes alive at once the chance
//! that any two do is about 10^-27. A tag (`thread/bias.rs`) is half of an id: should a biased node and one that is held
//! strongly share that half, exclusion would be lost; the chance is about 10^-11, with all tags in use. The seed is random
//! for each lock, so that neither can be aimed at (G5).

use foldhash::SharedSeed;
use foldhash::fast::FoldHasher;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// A map of nodes.
pub(crate) type NodeMap<T> = HashMap<NodeId, T, BuildHasherDefault<IdHasher>>;

/// Names a node, by a hash of the way from the root to it (invariant 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeId(u64, u64);

impl NodeId {
    /// All of it, to be told to another process.
    #[cfg(feature = "process")]
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.0) << 64 | u128::from(self.1)).to_le_bytes()
    }

    #[cfg(feature = "process")]
    pub(crate) fn of_bytes(bytes: [u8; 16]) -> Self {
        let bits = u128::from_le_bytes(bytes);
        NodeId((bits >> 64) as u64, bits as u64)
    }

    /// A word of it, to choose places by.
    #[inline]
    pub(crate) fn bits(self) -> u64 {
        self.0
    }
}

impl Hash for NodeId {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

/// The secret of one lock's node ids.
pub(crate) struct Seeds {
    halves: [SharedSeed; 2],
    root: NodeId,
}

impl Seeds {
    pub(crate) fn new(mut random: impl FnMut() -> u64) -> Self {
        Seeds {
            halves: [SharedSeed::from_u64(random()), SharedSeed::from_u64(!random())],
            // Secret as well: it is where the hash of the first segment starts from.
            root: NodeId(random(), !random()),
        }
    }

    #[inline]
    pub(crate) fn root(&self) -> NodeId {
        self.root
    }

    #[inline]
    pub(super) fn child(&self, parent: NodeId, write: impl Fn(&mut FoldHasher<'_>)) -> NodeId {
        let [first, second] = &self.halves;
        let mut first = FoldHasher::with_seed(parent.0, first);
        let mut second = FoldHasher::with_seed(parent.1, second);
        write(&mut first);
        write(&mut second);
        NodeId(first.finish(), second.finish())
    }
}

/// A node id is a hash already.
#[derive(Debug, Default)]
pub(crate) struct IdHasher(u64);

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Or nodes would share shards and places, whatever hash names them (G5).
    #[test]
    fn nodes_are_told_apart_by_their_bits_and_by_their_hash() {
        use std::collections::HashSet;
        use std::hash::{BuildHasher, DefaultHasher};
        let seeds = Seeds::new(|| 7);
        let nodes = (0..1000u32).map(|name| seeds.child(seeds.root(), |hasher| hasher.write_u32(name)));
        let (bits, hashes): (HashSet<_>, HashSet<_>) =
            nodes.map(|node| (node.bits(), BuildHasherDefault::<DefaultHasher>::default().hash_one(node))).unzip();
        assert_eq!((bits.len(), hashes.len()), (1000, 1000));
    }
}
