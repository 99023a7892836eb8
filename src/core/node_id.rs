//! The ids of nodes: keyed hashes of the path from the root to the node.
//!
//! The id of a node is a hash of its parent's id and its segment, 128 bits wide. There are two hashes: ids that stay
//! in one process must be fast, since every request makes some, and ids that several processes share must be the same
//! in all their builds:
//!
//! | | for | a segment costs | |
//! |---|---|--:|---|
//! | foldhash, twice | the threads of one process | 2 ns | its authors promise it for one version in one process only |
//! | SipHash-2-4 with 128 bits | several processes, or machines | 30 ns | specified (Aumasson and Bernstein 2012) |
//!
//! The second one, with a key of 16 bytes, and with ids that are the 16 bytes of a SipHash:
//!
//! ```text
//! id(root)  = SipHash-2-4-128(key, "")
//! id(child) = SipHash-2-4-128(key, id(parent) || 0 || segment)               told by its bytes
//!             SipHash-2-4-128(key, id(parent) || 1 || what its Hash writes)   told by its Hash
//! ```
//!
//! Considered and rejected: SipHash-1-3, which saves 9 ns a segment, but has half of the rounds that its authors ask
//! for where an adversary chooses the input; BLAKE3 with a key, which takes 90 ns.
//!
//! Invariants:
//!
//! 1. Two nodes that share an id are locked together: exclusion becomes coarser, not finer. For an ideal hash and a
//!    million nodes alive at once the chance that any two do is about 10^-27. A tag (`thread/bias.rs`) is half of an
//!    id: if a biased node and one that is held in a strong mode shared that half, exclusion would be lost; the
//!    chance is about 10^-11, with all tags in use. The key is random for each lock, so that an adversary can aim at
//!    neither (G5).
//! 2. The specified ids never change: a test has some that were computed elsewhere. A change of them needs new
//!    numbers for the formats that contain them (`process/journal/format.rs`).

use foldhash::SharedSeed;
use foldhash::fast::FoldHasher;
#[cfg(feature = "replica")]
use siphasher::sip128::{Hasher128, SipHasher24};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// A map of nodes.
pub(crate) type NodeMap<T> = HashMap<NodeId, T, BuildHasherDefault<IdHasher>>;

/// Names a node, by a hash of the path from the root to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeId(u64, u64);

impl NodeId {
    /// The whole id, for other processes.
    #[cfg(feature = "replica")]
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.0) << 64 | u128::from(self.1)).to_le_bytes()
    }

    #[cfg(feature = "replica")]
    pub(crate) fn of_bytes(bytes: [u8; 16]) -> Self {
        let bits = u128::from_le_bytes(bytes);
        NodeId((bits >> 64) as u64, bits as u64)
    }

    /// One word of the id, to choose places by.
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

/// The secret of one lock's node ids, and the hash that makes them.
pub(crate) struct Seeds {
    root: NodeId,
    hash: IdHash,
}

enum IdHash {
    /// foldhash, twice: the fastest, but only good within this build of this program, since its authors may change
    /// it.
    Local([SharedSeed; 2]),
    /// SipHash-2-4 with 128 bits: the same in all builds of all programs.
    #[cfg(feature = "replica")]
    Specified(SipHasher24),
}

impl Seeds {
    /// The seeds of a lock whose ids stay in this process.
    pub(crate) fn new(mut random: impl FnMut() -> u64) -> Self {
        let hash = IdHash::Local([SharedSeed::from_u64(random()), SharedSeed::from_u64(!random())]);
        // The root is secret as well: the hash of the first segment starts from it.
        Seeds { root: NodeId(random(), !random()), hash }
    }

    /// The seeds of a lock whose ids other processes see; the key is secret, and all of them have it.
    #[cfg(feature = "replica")]
    pub(crate) fn specified([first, second]: [u64; 2]) -> Self {
        let hash = SipHasher24::new_with_keys(first, second);
        Seeds { root: id_of(hash), hash: IdHash::Specified(hash) }
    }

    #[inline]
    pub(crate) fn root(&self) -> NodeId {
        self.root
    }

    /// The child of a node by a segment that is told by its bytes.
    #[inline]
    pub(super) fn child_by_bytes(&self, parent: NodeId, segment: &[u8]) -> NodeId {
        match &self.hash {
            IdHash::Local(seeds) => local_child(seeds, parent, |hasher| hasher.write(segment)),
            #[cfg(feature = "replica")]
            IdHash::Specified(hash) => specified_child_by_bytes(hash, parent, segment),
        }
    }

    /// The child of a node by a segment that is told by its `Hash`.
    #[inline]
    pub(super) fn child_by_hash<S: Hash + ?Sized>(&self, parent: NodeId, segment: &S) -> NodeId {
        match &self.hash {
            IdHash::Local(seeds) => local_child(seeds, parent, |hasher| {
                // Without this, a segment that hashes nothing, such as `()`, would be its own parent.
                hasher.write_u8(1);
                segment.hash(hasher);
            }),
            #[cfg(feature = "replica")]
            IdHash::Specified(hash) => specified_child_by_hash(hash, parent, segment),
        }
    }
}

#[inline]
fn local_child([first, second]: &[SharedSeed; 2], parent: NodeId, write: impl Fn(&mut FoldHasher<'_>)) -> NodeId {
    let mut first = FoldHasher::with_seed(parent.0, first);
    let mut second = FoldHasher::with_seed(parent.1, second);
    write(&mut first);
    write(&mut second);
    NodeId(first.finish(), second.finish())
}

/// Never inlined, and cold, so that the lock for threads does not pay for the lock between processes.
#[cfg(feature = "replica")]
#[cold]
#[inline(never)]
fn specified_child_by_bytes(hash: &SipHasher24, parent: NodeId, segment: &[u8]) -> NodeId {
    specified_child(hash, parent, 0, |hasher| hasher.write(segment))
}

#[cfg(feature = "replica")]
#[cold]
#[inline(never)]
fn specified_child_by_hash<S: Hash + ?Sized>(hash: &SipHasher24, parent: NodeId, segment: &S) -> NodeId {
    specified_child(hash, parent, 1, |hasher| segment.hash(hasher))
}

/// The hash of the parent's id, a byte for the kind of the segment, and the segment.
#[cfg(feature = "replica")]
#[inline]
fn specified_child(hash: &SipHasher24, parent: NodeId, kind: u8, write: impl FnOnce(&mut Portable)) -> NodeId {
    let mut hasher = Portable(*hash);
    hasher.write(&parent.to_bytes());
    hasher.write_u8(kind);
    write(&mut hasher);
    id_of(hasher.0)
}

/// The id of what was hashed.
#[cfg(feature = "replica")]
fn id_of(hash: SipHasher24) -> NodeId {
    NodeId::of_bytes(hash.finish128().as_bytes())
}

/// Hashes numbers as their bytes, the lowest first, and numbers of the width of a pointer as 64 bits, so that the
/// hash is the same on every machine.
#[cfg(feature = "replica")]
struct Portable(SipHasher24);

#[cfg(feature = "replica")]
impl Hasher for Portable {
    fn write(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    fn write_u8(&mut self, number: u8) {
        self.0.write_u8(number);
    }

    fn write_u16(&mut self, number: u16) {
        self.write(&number.to_le_bytes());
    }

    fn write_u32(&mut self, number: u32) {
        self.write(&number.to_le_bytes());
    }

    fn write_u64(&mut self, number: u64) {
        self.write(&number.to_le_bytes());
    }

    fn write_u128(&mut self, number: u128) {
        self.write(&number.to_le_bytes());
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_i64(number as i64);
    }

    fn finish(&self) -> u64 {
        self.0.finish()
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

    /// Otherwise nodes would share shards and places, whatever hash names them (G5).
    #[test]
    fn nodes_are_told_apart_by_their_bits_and_by_their_hash() {
        use std::collections::HashSet;
        use std::hash::{BuildHasher, DefaultHasher};
        let seeds = Seeds::new(|| 7);
        let nodes = (0..1000u32).map(|name| seeds.child_by_hash(seeds.root(), &name));
        let (bits, hashes): (HashSet<_>, HashSet<_>) =
            nodes.map(|node| (node.bits(), BuildHasherDefault::<DefaultHasher>::default().hash_one(node))).unzip();
        assert_eq!((bits.len(), hashes.len()), (1000, 1000));
    }
}
