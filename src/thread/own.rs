//! Which nodes a register of the ledger *owns*: a thread that takes the same sub-trees again and again takes them under
//! the mutex of its register alone, without a shard and without a node in the table.
//!
//! A bias (`bias.rs`) does this for the intentions of a request, ownership for its roots. A step in S or X on an
//! owned node is *published*, like the intentions above it: a bit of the request's entry says so, and no node counts
//! it. An owned node is free, or held by exactly one entry of its register. Anything else *disowns* the node first,
//! under the mutex of its shard, which turns what is published there into a count: a request of another register, a
//! second request of this one, or an intention on the node by a request for a node below it.
//!
//! ```text
//!              released by one register several times in a row
//!   in the table ───────────────────────────────────────────────> owned and free ───── granted ────> owned and held
//!        ^                                                           │        ^                        │       │
//!        └──────────────────────────── disowned ─────────────────────┴────────┼────────────────────────┘       │
//!                                                                             └────────── released ────────────┘
//! ```
//!
//! Invariants:
//!
//! 1. What a register owns is in its [`Owned`], which changes under the register's mutex. A node is added under the
//!    mutex of its shard too, while nobody holds or awaits it.
//! 2. While a node is owned, the table has no node for it and no tag stands for it. So a request that comes to its shard
//!    disowns it before anything else.
//! 3. The [`Owners`] of a shard name the register of each owned node of that shard. They may also name a register that has
//!    given up the node for another one: then there is nothing to take back.
//! 4. A held node knows the place of its holder, whose entry has that step published. An entry that has a step in S or
//!    X published holds a node that its register owns.
//! 5. [`Owned`] may remember of a node that all nodes above it are biased. A revocation of any bias goes through all
//!    registers after it has taken back the tag, and makes each of them forget that. So a request that relies on it comes
//!    to the register before the revocation, which then finds what it has published.
//! 6. All nodes of one tag are in one shard and are disowned together, as they are revoked together (`bias.rs`).
//!
//! A register comes to own a node when it has released the node a number of times in a row and left nobody there.
//! Each time the node is disowned, that number doubles, up to a limit; so nodes that several threads take in turn are
//! soon left alone.
//!
//! The number of nodes that a register owns is bounded, and so is the number of owned nodes in a shard (G6). Where
//! there is no room, the nodes that are in use stay.

use crate::core::node_id::NodeId;
use crate::sync::{AtomicU32, MOST_TO_OWN, OWNED_SETS, OWNED_WAYS, OWNERS, Ordering, SHARDS, TO_OWN};
use crate::thread::bias;

/// The nodes that one register owns; under its mutex. Room for them is made with the first.
#[derive(Debug, Default)]
pub(crate) struct Owned(Vec<[Slot; OWNED_WAYS]>);

#[derive(Clone, Copy, Debug)]
struct Slot {
    node: NodeId,
    state: State,
    /// Whether it was taken since another node last wanted its slot.
    used: bool,
    /// How many revocations the register had seen when all nodes above were last found biased (invariant 5).
    checked: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The slot has no node.
    Vacant,
    Free,
    /// Held by the entry at that place.
    Held(usize),
}

impl Owned {
    /// Whether the node is owned and nobody holds it.
    #[inline]
    pub(crate) fn is_free(&self, node: NodeId) -> bool {
        self.slot(node).is_some_and(|slot| slot.state == State::Free)
    }

    /// Lets the entry at that place hold the node, if the node is owned and free, and all nodes above it are biased.
    /// `above` says whether they are; once they were, it is not called again before the next revocation.
    #[inline]
    pub(crate) fn try_hold_below(
        &mut self,
        node: NodeId,
        entry: usize,
        revocations: u64,
        above: impl FnOnce() -> bool,
    ) -> bool {
        let Some(slot) = self.slot_mut(node).filter(|slot| slot.state == State::Free) else { return false };
        if slot.checked != revocations {
            if !above() {
                return false;
            }
            slot.checked = revocations;
        }
        slot.hold(entry);
        true
    }

    /// Lets the entry at that place hold the node, which is free.
    pub(crate) fn hold(&mut self, node: NodeId, entry: usize) {
        self.slot_mut(node).expect("it is owned").hold(entry);
    }

    /// Frees a node that an entry held.
    #[inline]
    pub(crate) fn let_go(&mut self, node: NodeId) {
        let slot = self.slot_mut(node).expect("an entry holds what its register owns (invariant 4)");
        debug_assert!(matches!(slot.state, State::Held(_)), "invariant 4");
        slot.state = State::Free;
    }

    /// Owns the node from now on, if there is room.
    pub(crate) fn add(&mut self, node: NodeId) -> bool {
        debug_assert!(self.slot(node).is_none(), "nobody owns what the table has (invariant 2)");
        let vacant = Slot { node, state: State::Vacant, used: false, checked: u64::MAX };
        if self.0.is_empty() {
            self.0 = vec![[vacant; OWNED_WAYS]; OWNED_SETS];
        }
        let set = &mut self.0[set(node)];
        let place = set.iter().position(|slot| slot.state == State::Vacant);
        match place.or_else(|| set.iter().position(|slot| slot.state == State::Free && !slot.used)) {
            Some(place) => {
                set[place] = Slot { state: State::Free, ..vacant };
                true
            }
            None => {
                set.iter_mut().for_each(|slot| slot.used = false);
                false
            }
        }
    }

    /// Gives up all nodes of that tag; calls `held` for those that an entry holds.
    pub(crate) fn remove(&mut self, tag: u64, mut held: impl FnMut(NodeId, usize)) {
        for slot in self.0.iter_mut().flatten().filter(|slot| bias::tag(slot.node) == tag) {
            if let State::Held(entry) = slot.state {
                held(slot.node, entry);
            }
            slot.state = State::Vacant;
        }
    }

    #[inline]
    fn slot(&self, node: NodeId) -> Option<&Slot> {
        self.0.get(set(node))?.iter().find(|slot| slot.is(node))
    }

    #[inline]
    fn slot_mut(&mut self, node: NodeId) -> Option<&mut Slot> {
        self.0.get_mut(set(node))?.iter_mut().find(|slot| slot.is(node))
    }
}

impl Slot {
    #[inline]
    fn is(&self, node: NodeId) -> bool {
        self.node == node && self.state != State::Vacant
    }

    #[inline]
    fn hold(&mut self, entry: usize) {
        debug_assert!(self.state == State::Free, "one entry holds it (invariant 4)");
        self.state = State::Held(entry);
        self.used = true;
    }
}

/// The set of a register that a node may be in.
#[inline]
#[allow(clippy::modulo_one, reason = "a model has one set")]
fn set(node: NodeId) -> usize {
    (node.bits() >> 46) as usize % OWNED_SETS
}

/// The registers that own nodes of one shard, or may come to own them; under the shard's mutex.
#[derive(Debug)]
pub(crate) struct Owners {
    tags: [u64; OWNERS],
    owners: [Owner; OWNERS],
    /// How many of them own their node.
    owning: usize,
}

#[derive(Clone, Copy, Debug)]
struct Owner {
    register: u16,
    owns: bool,
    /// How often in a row the register has released the node and left it free.
    run: u16,
    /// How often it must do so to own the node.
    enough: u16,
}

/// A register that may own nodes of that tag, which are to be disowned.
pub(crate) struct Former {
    pub(crate) register: usize,
    pub(crate) tag: u64,
    place: usize,
}

impl Default for Owners {
    fn default() -> Self {
        let nobody = Owner { register: 0, owns: false, run: 0, enough: TO_OWN };
        Owners { tags: [0; OWNERS], owners: [nobody; OWNERS], owning: 0 }
    }
}

impl Owners {
    #[inline]
    fn place(&self, node: NodeId) -> Option<usize> {
        self.tags.iter().position(|&tag| tag == bias::tag(node))
    }

    /// Whether a register may own the node.
    #[inline]
    pub(crate) fn is_owned(&self, node: NodeId) -> bool {
        self.owning > 0 && self.place(node).is_some_and(|place| self.owners[place].owns)
    }

    /// Nobody owns the node from now on; returns the register that may have owned it until now.
    #[inline]
    pub(crate) fn remove(&mut self, node: NodeId) -> Option<Former> {
        if self.owning == 0 {
            return None;
        }
        let place = self.place(node)?;
        let owner = &mut self.owners[place];
        std::mem::take(&mut owner.owns).then(|| {
            owner.run = 0;
            owner.enough = owner.enough.saturating_mul(2).min(MOST_TO_OWN);
            self.owning -= 1;
            Former { register: usize::from(owner.register), tag: bias::tag(node), place }
        })
    }

    /// Called before a root is granted. If the node has no place here, it competes with the node that is taken least
    /// often; that one loses its place to this one when this has happened often enough.
    #[inline]
    pub(crate) fn contest(&mut self, node: NodeId) -> Option<Former> {
        if self.place(node).is_some() {
            return None;
        }
        let place = (1..OWNERS).fold(
            0,
            |least, next| {
                if self.owners[next].run < self.owners[least].run { next } else { least }
            },
        );
        let owner = &mut self.owners[place];
        if owner.run > 0 {
            owner.run -= 1;
            return None;
        }
        let former = Former { register: usize::from(owner.register), tag: self.tags[place], place };
        let owned = owner.owns;
        *owner = Owner { register: 0, owns: false, run: 0, enough: TO_OWN };
        self.tags[place] = bias::tag(node);
        self.owning -= usize::from(owned);
        owned.then_some(former)
    }

    /// Counts a release that left the node free, if the node has its place here; returns whether the register is to
    /// own the node.
    #[inline]
    pub(crate) fn is_left_free(&mut self, node: NodeId, register: usize) -> bool {
        let Some(place) = self.place(node) else { return false };
        let owner = &mut self.owners[place];
        if owner.owns {
            // It owns another node of this tag.
            return false;
        }
        if usize::from(owner.register) != register {
            (owner.register, owner.run) = (register as u16, 0);
        }
        owner.run = owner.run.saturating_add(1);
        owner.run >= owner.enough
    }

    /// Ends the row of releases: another request is there.
    #[inline]
    pub(crate) fn is_left_busy(&mut self, node: NodeId) {
        if let Some(place) = self.place(node) {
            self.owners[place].run = 0;
        }
    }

    /// Notes that the register of the last count owns the node now, or has no room for it.
    pub(crate) fn add(&mut self, node: NodeId, owns: bool, hints: &Hints) {
        let Some(place) = self.place(node) else { return };
        let owner = &mut self.owners[place];
        owner.owns = owns;
        self.owning += usize::from(owns);
        // Other nodes must want its place this often.
        owner.run = if owns { MOST_TO_OWN } else { 0 };
        if owns {
            hints.at(node, place).store(mark(owner.register.into(), node), Ordering::Relaxed);
        }
    }
}

/// Which register owns which node, for a look before anything is locked. This only decides which way to try first, so
/// it may be wrong, and orders nothing.
#[derive(Debug)]
pub(crate) struct Hints(Box<[[AtomicU32; OWNERS]]>);

impl Hints {
    pub(crate) fn new() -> Self {
        Hints((0..SHARDS).map(|_| Default::default()).collect())
    }

    #[inline]
    pub(crate) fn owns(&self, register: usize, node: NodeId) -> bool {
        let mark = mark(register, node);
        self.0[bias::shard(node)].iter().any(|hint| hint.load(Ordering::Relaxed) == mark)
    }

    /// Clears the hint of a former owner, in the shard of the node.
    pub(crate) fn clear(&self, node: NodeId, former: &Former) {
        self.at(node, former.place).store(0, Ordering::Relaxed);
    }

    fn at(&self, node: NodeId, place: usize) -> &AtomicU32 {
        &self.0[bias::shard(node)][place]
    }
}

#[inline]
fn mark(register: usize, node: NodeId) -> u32 {
    (node.bits() as u32).wrapping_add(register as u32 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::node_id::Seeds;
    use crate::core::segments::Segments;

    fn nodes(count: usize) -> Vec<NodeId> {
        let (seeds, mut ids) = (Seeds::new(|| 7), Vec::new());
        (0..count).for_each(|name| Segments::of(&*format!("{name}"), &seeds, &mut ids, None).unwrap());
        // The root comes with each.
        ids.into_iter().skip(1).step_by(2).collect()
    }

    /// G6, and invariant 4: however many nodes want to be owned, those that are held are not given up for them.
    #[test]
    fn owned_nodes_are_bounded_and_held_ones_stay() {
        let mut owned = Owned::default();
        let nodes = nodes(1000);
        let held: Vec<_> = nodes.iter().take(OWNED_WAYS).filter(|&&node| owned.add(node)).collect();
        assert!(!held.is_empty());
        held.iter().for_each(|&&node| owned.hold(node, 1));
        let free = |owned: &Owned| nodes.iter().filter(|&&node| owned.is_free(node)).count();
        for &node in &nodes[OWNED_WAYS..] {
            // Refused once, as all others are in use.
            if owned.add(node) || owned.add(node) {
                owned.hold(node, 2);
                owned.let_go(node);
            }
            assert!(held.iter().all(|&&node| matches!(owned.slot(node), Some(slot) if slot.state == State::Held(1))));
            assert!(free(&owned) + held.len() <= OWNED_SETS * OWNED_WAYS);
        }
        held.iter().for_each(|&&node| owned.let_go(node));
        assert!(held.iter().all(|&&node| owned.is_free(node)));
    }

    /// A node that is used again before the next one wants its slot stays; one that is not goes.
    #[test]
    fn used_slot_is_given_up_last() {
        let mut owned = Owned::default();
        let mut nodes = nodes(1000);
        let first = nodes[0];
        nodes.retain(|&node| set(node) == set(first));
        nodes.iter().take(OWNED_WAYS).for_each(|&node| assert!(owned.add(node)));
        for &node in &nodes[OWNED_WAYS..] {
            assert!(owned.try_hold_below(first, 0, 0, || true));
            owned.let_go(first);
            let _ = owned.add(node);
        }
        assert!(owned.is_free(first));
        assert!(!owned.is_free(nodes[1]), "nobody used it");
    }

    /// Invariant 5.
    #[test]
    fn what_is_above_is_looked_at_once_for_each_revocation() {
        let mut owned = Owned::default();
        let node = nodes(1)[0];
        assert!(owned.add(node));
        let mut hold = |revocations, above| {
            let mut looked = 0;
            let held = owned.try_hold_below(node, 0, revocations, || {
                looked += 1;
                above
            });
            if held {
                owned.let_go(node);
            }
            (held, looked)
        };
        assert_eq!(hold(0, false), (false, 1));
        assert_eq!(hold(0, true), (true, 1));
        assert_eq!(hold(0, false), (true, 0));
        assert_eq!(hold(1, false), (false, 1));
        assert_eq!(hold(1, true), (true, 1));
    }

    /// The more often a node was owned in vain, the more releases in a row it takes to own it again.
    #[test]
    fn ownership_that_is_taken_back_gets_dearer() {
        let (mut owners, hints, node) = (Owners::default(), Hints::new(), nodes(1)[0]);
        assert!(owners.contest(node).is_none());
        let mut enough = TO_OWN;
        for _ in 0..20 {
            (1..enough).for_each(|_| assert!(!owners.is_left_free(node, 1)));
            assert!(owners.is_left_free(node, 1));
            owners.add(node, true, &hints);
            assert!(owners.is_owned(node) && hints.owns(1, node) && !hints.owns(2, node));
            let former = owners.remove(node).expect("it is owned");
            assert_eq!(former.register, 1);
            hints.clear(node, &former);
            assert!(!hints.owns(1, node) && owners.remove(node).is_none());
            enough = (enough * 2).min(MOST_TO_OWN);
        }
        // In a row means that neither another register nor a waiter comes in between.
        (1..enough).for_each(|_| assert!(!owners.is_left_free(node, 1)));
        assert_eq!(owners.is_left_free(node, 2), enough == 1);
        owners.is_left_busy(node);
        (1..enough).for_each(|_| assert!(!owners.is_left_free(node, 2)));
        assert!(owners.is_left_free(node, 2));
    }

    /// A node that is used now gets the place of one that is no longer used, and not of one that is.
    #[test]
    fn place_goes_to_who_wants_it_most_often() {
        let (mut owners, hints) = (Owners::default(), Hints::new());
        let mut nodes = nodes(10_000);
        let shard = bias::shard(nodes[0]);
        nodes.retain(|&node| bias::shard(node) == shard);
        for &node in &nodes[..OWNERS] {
            assert!(owners.contest(node).is_none());
            (1..TO_OWN).for_each(|_| assert!(!owners.is_left_free(node, 3)));
            assert!(owners.is_left_free(node, 3));
            owners.add(node, true, &hints);
        }
        let newcomer = nodes[OWNERS];
        let mut wanted = 0;
        let former = loop {
            wanted += 1;
            if let Some(former) = owners.contest(newcomer) {
                break former;
            }
        };
        assert!(wanted > usize::from(MOST_TO_OWN) && former.register == 3);
        assert_eq!(nodes[..OWNERS].iter().filter(|&&node| owners.is_owned(node)).count(), OWNERS - 1);
        assert!(owners.contest(newcomer).is_none() && !owners.is_owned(newcomer));
    }
}
