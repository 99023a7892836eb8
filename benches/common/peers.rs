//! The peers that treelock is measured against, each behind [`Peer`].
//!
//! Where there is a choice, they get the best: canonical paths that live for ever, so that none needs to normalize or
//! copy a name; the fast seeded hash for all maps; nodes that are never dropped. Only treelock queues in order, finds
//! deadlocks, has deadlines or allows re-entrance.

use dashmap::DashMap;
use foldhash::fast::RandomState;
use lockable::LockPool;
use parking_lot::{Condvar, FairMutex, Mutex, RwLock};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::path::{Component, Path};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{hint, iter, thread};
use treelock::{TreeLock, TreePath};

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Access {
    Read,
    Write,
}

impl Access {
    pub(crate) const BOTH: [(Access, &str); 2] = [(Access::Write, "write"), (Access::Read, "read")];

    /// The mode of the ancestors, and of the root of the sub-tree.
    fn modes(self) -> (u64, u64) {
        match self {
            Access::Read => (IS, S),
            Access::Write => (IX, X),
        }
    }
}

/// A peer that locks a sub-tree, or the nearest thing that it has.
pub(crate) trait Peer<P: ?Sized + Name>: Sync {
    fn with(&self, path: &'static P, access: Access, inside: impl FnOnce());

    /// Holds all four at once. They are sorted.
    fn with_four(&self, paths: [&'static P; 4], access: Access, inside: impl FnOnce()) {
        let [first, second, third, fourth] = paths;
        self.with(first, access, || {
            self.with(second, access, || self.with(third, access, || self.with(fourth, access, inside)));
        });
    }
}

/// How peers see a path.
pub(crate) trait Name: TreePath + AsRef<Self> + Sync {
    const SPELLING: &str;
    fn of(text: &'static str) -> &'static Self;
    fn bytes(&self) -> &[u8];
    /// As a naive user would split it.
    fn split(&self) -> impl Iterator<Item = &[u8]>;
}

impl Name for str {
    const SPELLING: &str = "str";

    fn of(text: &'static str) -> &'static str {
        text
    }

    fn bytes(&self) -> &[u8] {
        self.as_bytes()
    }

    fn split(&self) -> impl Iterator<Item = &[u8]> {
        self.split('/').filter(|segment| !segment.is_empty()).map(str::as_bytes)
    }
}

impl Name for Path {
    const SPELLING: &str = "Path";

    fn of(text: &'static str) -> &'static Path {
        Path::new(text)
    }

    fn bytes(&self) -> &[u8] {
        self.as_os_str().as_encoded_bytes()
    }

    fn split(&self) -> impl Iterator<Item = &[u8]> {
        self.components().filter_map(|component| match component {
            Component::Normal(name) => Some(name.as_encoded_bytes()),
            _ => None,
        })
    }
}

/// `/`, then each node down to the path itself.
fn prefixes(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ends = (1..path.len()).filter(|&at| path[at] == b'/');
    // The root is not an empty key: comparing empty boxes costs 100 ns where memcmp looks at their dangling address.
    let whole = (path.len() > 1).then_some(path);
    iter::once(&path[..1]).chain(ends.map(|end| &path[..end])).chain(whole)
}

impl<P: ?Sized + Name> Peer<P> for TreeLock<P> {
    #[inline]
    fn with(&self, path: &'static P, access: Access, inside: impl FnOnce()) {
        let _guard = match access {
            Access::Read => self.read(path),
            Access::Write => self.write(path),
        };
        inside();
    }

    #[inline]
    fn with_four(&self, paths: [&'static P; 4], access: Access, inside: impl FnOnce()) {
        let _guard = match access {
            Access::Read => self.lock(&paths, &[]),
            Access::Write => self.lock(&[], &paths),
        };
        inside();
    }
}

// What is granted on a node, counted in one word: 21 bits each for IS, IX and S, the last for X.
const IS: u64 = 1;
const IX: u64 = 1 << 21;
const S: u64 = 1 << 42;
const X: u64 = 1 << 63;

/// Whether a node of that word may be granted the mode too.
fn admits(word: u64, mode: u64) -> bool {
    const ALL: u64 = (1 << 21) - 1;
    word & match mode {
        IS => X,
        IX => X | (S * ALL),
        S => X | (IX * ALL),
        _ => !0,
    } == 0
}

/// The floor: the cost of naming and counting the nodes, and nothing else. Per node it hashes the segment on top of
/// its parent's hash, probes one table, does one CAS, and one decrement to release. Nodes are found by their hash
/// alone and stay for ever; the table never grows; a request that must wait spins. With threads it is the *plain
/// counters*.
pub(crate) struct Floor<const DEEPEST: usize = 64> {
    hash: RandomState,
    slots: Box<[Slot]>,
}

#[derive(Default)]
struct Slot {
    /// The node's hash; 0 if there is none yet.
    id: AtomicU64,
    word: AtomicU64,
}

impl<const DEEPEST: usize> Floor<DEEPEST> {
    /// Makes a table for this many nodes.
    pub(crate) fn new(nodes: usize) -> Self {
        let slots = iter::repeat_with(Slot::default).take((nodes * 2).next_power_of_two().max(1024)).collect();
        Floor { hash: RandomState::default(), slots }
    }

    #[inline]
    fn find(&self, id: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = (id >> 20) as usize & mask;
        loop {
            let slot = &self.slots[at].id;
            // Relaxed: the number stands for itself alone, and is never changed again.
            let found = match slot.load(Ordering::Relaxed) {
                0 => slot.compare_exchange(0, id, Ordering::Relaxed, Ordering::Relaxed).err().unwrap_or(id),
                found => found,
            };
            if found == id {
                return at;
            }
            at = (at + 1) & mask;
        }
    }

    #[inline]
    fn grant(&self, at: usize, mode: u64) {
        let word = &self.slots[at].word;
        let mut seen = word.load(Ordering::Relaxed);
        let mut spins = 0;
        loop {
            if admits(seen, mode) {
                // Acquire: pairs with the Release in `with`.
                match word.compare_exchange_weak(seen, seen + mode, Ordering::Acquire, Ordering::Relaxed) {
                    Ok(_) => return,
                    Err(now) => seen = now,
                }
            } else {
                spins += 1;
                if spins % 64 == 0 {
                    thread::yield_now()
                } else {
                    hint::spin_loop()
                }
                seen = word.load(Ordering::Relaxed);
            }
        }
    }
}

impl<P: ?Sized + Name, const DEEPEST: usize> Peer<P> for Floor<DEEPEST> {
    #[inline]
    fn with(&self, path: &'static P, access: Access, inside: impl FnOnce()) {
        let (weak, strong) = access.modes();
        let mut held = [0u32; DEEPEST];
        let (mut depth, mut id) = (0, 1);
        held[0] = self.find(id) as u32;
        for segment in path.split() {
            self.grant(held[depth] as usize, weak);
            let mut hasher = self.hash.build_hasher();
            hasher.write_u64(id);
            hasher.write(segment);
            id = hasher.finish() | 1;
            depth += 1;
            held[depth] = self.find(id) as u32;
        }
        self.grant(held[depth] as usize, strong);
        inside();
        // Release: pairs with the Acquire in `grant`.
        self.slots[held[depth] as usize].word.fetch_sub(strong, Ordering::Release);
        for &at in held[..depth].iter().rev() {
            self.slots[at as usize].word.fetch_sub(weak, Ordering::Release);
        }
    }
}

/// One mutex around a map of prefixes to counts; a request that must wait wakes at any release.
#[derive(Default)]
pub(crate) struct GlobalMutex {
    nodes: Mutex<HashMap<Box<[u8]>, u64, RandomState>>,
    released: Condvar,
}

impl GlobalMutex {
    /// Counts the request in on all its nodes, or on none.
    fn enter(nodes: &mut HashMap<Box<[u8]>, u64, RandomState>, path: &[u8], (weak, strong): (u64, u64)) -> bool {
        for (index, prefix) in prefixes(path).enumerate() {
            let mode = if prefix.len() == path.len() { strong } else { weak };
            match nodes.get_mut(prefix) {
                Some(word) if admits(*word, mode) => *word += mode,
                Some(_) => {
                    prefixes(path).take(index).for_each(|taken| *nodes.get_mut(taken).expect("it is taken") -= weak);
                    return false;
                }
                None => drop(nodes.insert(prefix.into(), mode)),
            }
        }
        true
    }
}

impl<P: ?Sized + Name> Peer<P> for GlobalMutex {
    fn with(&self, path: &'static P, access: Access, inside: impl FnOnce()) {
        let (path, modes) = (path.bytes(), access.modes());
        let mut nodes = self.nodes.lock();
        while !Self::enter(&mut nodes, path, modes) {
            self.released.wait(&mut nodes);
        }
        drop(nodes);
        inside();
        let mut nodes = self.nodes.lock();
        for prefix in prefixes(path) {
            let mode = if prefix.len() == path.len() { modes.1 } else { modes.0 };
            *nodes.get_mut(prefix).expect("it is taken") -= mode;
        }
        drop(nodes);
        self.released.notify_all();
    }
}

/// A concurrent map of prefixes to locks: read on the ancestors, read or write on the node itself.
#[derive(Default)]
pub(crate) struct MapOfLocks(DashMap<Box<[u8]>, Arc<RwLock<()>>, RandomState>);

impl MapOfLocks {
    fn node(&self, prefix: &[u8]) -> Arc<RwLock<()>> {
        if let Some(node) = self.0.get(prefix) {
            return Arc::clone(&node);
        }
        Arc::clone(&self.0.entry(prefix.into()).or_default())
    }

    /// Takes the locks from `prefix`, the next of the `prefixes`, down.
    fn descend<'a>(
        &self,
        mut prefixes: impl Iterator<Item = &'a [u8]>,
        path: &'a [u8],
        access: Access,
        inside: impl FnOnce(),
    ) {
        let Some(prefix) = prefixes.next() else { return };
        let node = self.node(prefix);
        if prefix.len() < path.len() {
            let _guard = node.read();
            self.descend(prefixes, path, access, inside);
        } else {
            Peer::<str>::with(&*node, "", access, inside);
        }
    }
}

impl<P: ?Sized + Name> Peer<P> for MapOfLocks {
    fn with(&self, path: &'static P, access: Access, inside: impl FnOnce()) {
        let path = path.bytes();
        self.descend(prefixes(path), path, access, inside);
    }
}

/// One flat key without a tree, and without readers.
pub(crate) struct FlatKey(pub(crate) LockPool<&'static [u8]>);

impl Default for FlatKey {
    fn default() -> Self {
        FlatKey(LockPool::new())
    }
}

impl<P: ?Sized + Name> Peer<P> for FlatKey {
    fn with(&self, path: &'static P, _: Access, inside: impl FnOnce()) {
        let _guard = self.0.blocking_lock(path.bytes());
        inside();
    }
}

impl<P: ?Sized + Name> Peer<P> for RwLock<()> {
    fn with(&self, _: &'static P, access: Access, inside: impl FnOnce()) {
        match access {
            Access::Read => {
                let _guard = self.read();
                inside();
            }
            Access::Write => {
                let _guard = self.write();
                inside();
            }
        }
    }

    fn with_four(&self, [path, ..]: [&'static P; 4], access: Access, inside: impl FnOnce()) {
        self.with(path, access, inside);
    }
}

impl<P: ?Sized + Name> Peer<P> for Mutex<()> {
    fn with(&self, _: &'static P, _: Access, inside: impl FnOnce()) {
        let _guard = self.lock();
        inside();
    }
}

impl<P: ?Sized + Name> Peer<P> for FairMutex<()> {
    fn with(&self, _: &'static P, _: Access, inside: impl FnOnce()) {
        let _guard = self.lock();
        inside();
    }
}
