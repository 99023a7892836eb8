//! One node: what is granted on it, who waits for it, and who is next.
//!
//! A node decides at once (`try_grant`) or lets the request queue (`enqueue`); from then on the request is granted by
//! whoever changes the node last (`release`, `downgrade`, `cancel`): these return the waiters whose turn has
//! come, already counted as holders. So a grant is never lost, and nobody is woken in vain (G9).
//!
//! Rules:
//!
//! 1. Where its owner already holds a mode that covers it, a request is granted past any queue.
//! 2. Else it waits for what *other* owners hold here and excludes it, and for requests that are ahead of it in the queue
//!    and exclude it (G3). It waits for nothing else (G4).
//! 3. Ahead are those that came before. But a request whose owner holds something here goes ahead of the first in the
//!    queue that this excludes, which waits for its owner anyway, and so ahead of all behind that one.
//! 4. A waiter is granted by the same rules as a newcomer, the earliest first, at each change that can let it in.
//!
//! A *conversion* is a request whose owner holds a weaker mode here (Gray 1976). By rule 3 an upgrade from S to X goes
//! ahead of the writers in the queue, and it does not go ahead of a reader that could share the node with what its owner
//! holds: or else who keeps an intention on the root, as every guard does, could starve it. (PostgreSQL queues
//! conversions by the same rule.)
//!
//! Other waiters stand in one line for each mode. A mode that excludes itself can only be granted to the first of its
//! line, and one that does not is granted to the first if to any; so only the five firsts and the conversions are looked
//! at, however long the queue is (G5, G10).
//!
//! ```text
//!  try_grant ──┬── granted ────────────────────────────── release / downgrade ──┐
//!              └── enqueue ─┬── granted by a change ──────────────┘             ├─> who is next?
//!                           └── cancel ─────────────────────────────────────────┘
//! ```
//!
//! Pure: no threads, no clocks; a waiter is whatever `W` the caller gives. Not here: finding the node
//! (`table.rs`), blocking and waking (`waiter.rs`).

use crate::core::mode::{Mode, ModeCounts};
use std::collections::BTreeMap;

/// A live node.
#[derive(Clone, Debug)]
pub(crate) struct Node<W> {
    granted: ModeCounts,
    /// How many have queued. It belongs to the node and not to the queue: a number must not be given again while its
    /// waiter may still cancel, and one that was granted keeps the node alive but not the queue.
    arrivals: u64,
    /// Made for the first waiter, dropped with the last: most nodes never have one.
    queue: Option<Box<Queue<W>>>,
}

#[derive(Clone, Debug)]
struct Queue<W> {
    /// Those whose owners hold something here, by arrival.
    conversions: BTreeMap<u64, (Claim, W)>,
    /// The others, one line for each mode, by arrival.
    lines: [BTreeMap<u64, W>; 5],
}

/// What a request asks of a node, and what its owner holds there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    mode: Mode,
    held: ModeCounts,
}

impl Claim {
    /// Whether what others hold lets it in, given all that is granted.
    fn fits(&self, granted: &ModeCounts) -> bool {
        granted.without(&self.held).compatible(self.mode)
    }
}

/// A place in the queue of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    arrival: u64,
    claim: Claim,
}

impl Ticket {
    pub(crate) fn mode(&self) -> Mode {
        self.claim.mode
    }

    /// Whether its owner holds something there already.
    pub(crate) fn converts(&self) -> bool {
        !self.claim.held.is_empty()
    }

    pub(crate) fn arrival(&self) -> u64 {
        self.arrival
    }

    /// What its owner holds there already.
    #[cfg(feature = "process")]
    pub(crate) fn held(&self) -> ModeCounts {
        self.claim.held
    }

    /// Whether it goes ahead of `other`, which waits at the same node, whoever came first (rule 3).
    pub(crate) fn passes(&self, other: &Ticket) -> bool {
        !self.claim.held.compatible(other.claim.mode)
    }
}

impl<W> Default for Node<W> {
    fn default() -> Self {
        Node { granted: ModeCounts::NONE, arrivals: 0, queue: None }
    }
}

impl<W> Node<W> {
    /// Grants `mode` to an owner that already holds `held` here, if it need not wait.
    #[inline]
    pub(crate) fn try_grant(&mut self, mode: Mode, held: &ModeCounts) -> bool {
        let granted = self.may_grant(mode, held);
        if granted {
            self.granted.add(mode);
        }
        granted
    }

    /// Counts a grant that was made elsewhere, of a mode that excludes nothing granted or awaited here (`bias.rs`).
    pub(crate) fn count(&mut self, mode: Mode) {
        debug_assert!(self.queue.is_none() && self.granted.compatible(mode));
        self.granted.add(mode);
    }

    /// Counts what was granted before the node was stored; before anybody queues.
    #[cfg(feature = "process")]
    pub(crate) fn restore(&mut self, mode: Mode) {
        self.granted.add(mode);
    }

    /// Whether nobody holds or awaits it in a mode that could exclude an intention.
    #[inline]
    pub(crate) fn has_intentions_only(&self) -> bool {
        self.queue.is_none() && self.granted.are_intentions()
    }

    /// Puts a request that was not granted into the queue.
    pub(crate) fn enqueue(&mut self, mode: Mode, held: ModeCounts, waiter: W) -> Ticket {
        debug_assert!(!self.may_grant(mode, &held), "who may be granted does not queue");
        let queue = self.queue.get_or_insert_default();
        let ticket = Ticket { arrival: self.arrivals, claim: Claim { mode, held } };
        self.arrivals += 1;
        if held.is_empty() {
            queue.lines[mode as usize].insert(ticket.arrival, waiter);
        } else {
            queue.conversions.insert(ticket.arrival, (ticket.claim, waiter));
        }
        ticket
    }

    /// Takes back one grant of `mode`; whose turn has come is granted and added to `due`.
    #[inline]
    pub(crate) fn release(&mut self, mode: Mode, due: &mut Vec<W>) {
        self.granted.remove(mode);
        self.advance(due);
    }

    /// Weakens one grant; whose turn has come is granted and added to `due`.
    pub(crate) fn downgrade(&mut self, from: Mode, to: Mode, due: &mut Vec<W>) {
        debug_assert!(from.covers(to));
        self.granted.remove(from);
        self.granted.add(to);
        self.advance(due);
    }

    /// Takes a waiter out of the queue; whose turn has come is granted and added to `due`. `false`: it had been
    /// granted before, and holds its mode.
    pub(crate) fn cancel(&mut self, ticket: Ticket, due: &mut Vec<W>) -> bool {
        let Some(queue) = &mut self.queue else { return false };
        let waited = queue.remove(ticket.arrival, &ticket.claim).is_some();
        if waited {
            self.advance(due);
        }
        waited
    }

    /// Whether nobody holds it, and so nobody waits for it: it may be dropped.
    #[inline]
    pub(crate) fn is_idle(&self) -> bool {
        debug_assert!(self.queue.is_none() || !self.granted.is_empty(), "who waits, waits for a holder");
        self.granted.is_empty()
    }

    #[inline]
    fn may_grant(&self, mode: Mode, held: &ModeCounts) -> bool {
        let claim = Claim { mode, held: *held };
        held.covers(mode)
            || (claim.fits(&self.granted) && self.queue.as_ref().is_none_or(|queue| queue.admits(&claim, u64::MAX)))
    }

    #[inline]
    fn advance(&mut self, due: &mut Vec<W>) {
        if let Some(queue) = &mut self.queue {
            while let Some((arrival, claim)) = queue.next(&self.granted) {
                self.granted.add(claim.mode);
                due.extend(queue.remove(arrival, &claim));
            }
            if queue.is_empty() {
                self.queue = None;
            }
        }
    }
}

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Queue { conversions: BTreeMap::new(), lines: Default::default() }
    }
}

impl<W> Queue<W> {
    fn is_empty(&self) -> bool {
        self.conversions.is_empty() && self.lines.iter().all(BTreeMap::is_empty)
    }

    fn remove(&mut self, arrival: u64, claim: &Claim) -> Option<W> {
        if claim.held.is_empty() {
            self.lines[claim.mode as usize].remove(&arrival)
        } else {
            self.conversions.remove(&arrival).map(|(_, waiter)| waiter)
        }
    }

    /// The earliest arrival of each mode.
    fn firsts(&self) -> [Option<u64>; 5] {
        let mut firsts = [const { None }; 5];
        for mode in Mode::ALL {
            let in_line = self.lines[mode as usize].keys().next();
            let converts =
                self.conversions.iter().find(|(_, (claim, _))| claim.mode == mode).map(|(arrival, _)| arrival);
            firsts[mode as usize] = in_line.into_iter().chain(converts).min().copied();
        }
        firsts
    }

    /// Whether nobody who arrived before is in the way.
    fn admits(&self, claim: &Claim, arrival: u64) -> bool {
        admits(&self.firsts(), claim, arrival)
    }

    /// The earliest waiter that may be granted now.
    fn next(&self, granted: &ModeCounts) -> Option<(u64, Claim)> {
        let firsts = self.firsts();
        let in_lines = Mode::ALL.into_iter().filter_map(|mode| {
            let first = self.lines[mode as usize].keys().next()?;
            Some((*first, Claim { mode, held: ModeCounts::NONE }))
        });
        let conversions = self.conversions.iter().map(|(&arrival, &(claim, _))| (arrival, claim));
        in_lines
            .chain(conversions)
            .filter(|(arrival, claim)| claim.fits(granted) && admits(&firsts, claim, *arrival))
            .min_by_key(|&(arrival, _)| arrival)
    }
}

/// Whether none of those ahead of a request that came at `arrival` excludes it; given the earliest of each mode.
fn admits(firsts: &[Option<u64>; 5], claim: &Claim, arrival: u64) -> bool {
    let earliest = |counts: fn(&Claim, Mode) -> bool| {
        let modes = Mode::ALL.into_iter().filter(|&mode| counts(claim, mode));
        modes.filter_map(|mode| firsts[mode as usize]).min().unwrap_or(u64::MAX)
    };
    let passes = earliest(|claim, mode| !claim.held.compatible(mode));
    let excludes = earliest(|claim, mode| !claim.mode.compatible(mode));
    excludes >= arrival.min(passes)
}

#[cfg(test)]
#[path = "../../model/liveness.rs"]
mod liveness;

#[cfg(test)]
mod tests {
    use super::*;
    use Mode::{Exclusive as X, IntentionExclusive as IX, IntentionShared as IS, Shared as S};

    /// What an owner holds that holds `modes`.
    fn held(modes: &[Mode]) -> ModeCounts {
        let mut held = ModeCounts::NONE;
        modes.iter().for_each(|&mode| held.add(mode));
        held
    }

    /// A node held by others in `modes`.
    fn node(modes: &[Mode]) -> Node<&'static str> {
        Node { granted: held(modes), ..Node::default() }
    }

    impl Node<&'static str> {
        fn wait(&mut self, name: &'static str, mode: Mode) -> Ticket {
            self.wait_holding(name, mode, &[])
        }

        fn wait_holding(&mut self, name: &'static str, mode: Mode, modes: &[Mode]) -> Ticket {
            assert!(!self.try_grant(mode, &held(modes)), "{name} does not wait");
            self.enqueue(mode, held(modes), name)
        }

        fn after_release(&mut self, mode: Mode) -> Vec<&'static str> {
            let mut due = Vec::new();
            self.release(mode, &mut due);
            due
        }

        fn after_cancel(&mut self, ticket: Ticket) -> Option<Vec<&'static str>> {
            let mut due = Vec::new();
            self.cancel(ticket, &mut due).then_some(due)
        }
    }

    #[test]
    fn newcomer_does_not_overtake_a_conflicting_waiter() {
        let mut node = node(&[S]);
        node.wait("writer", X);
        assert!(!node.try_grant(S, &ModeCounts::NONE), "rule 2");
        node.wait("reader", S);
        assert_eq!(node.after_release(S), ["writer"]);
        assert_eq!(node.after_release(X), ["reader"]);
    }

    #[test]
    fn newcomer_passes_waiters_that_it_does_not_conflict_with() {
        let mut node = node(&[S]);
        node.wait("below", IX);
        assert!(node.try_grant(IS, &ModeCounts::NONE), "IS conflicts neither with S nor with IX");
        assert_eq!(node.after_release(S), ["below"]);
    }

    #[test]
    fn all_that_are_due_are_granted_together() {
        let mut node = node(&[X]);
        for name in ["r1", "r2"] {
            node.wait(name, S);
        }
        node.wait("w", X);
        node.wait("r3", S);
        assert_eq!(node.after_release(X), ["r1", "r2"]);
        assert!(node.after_release(S).is_empty());
        assert_eq!(node.after_release(S), ["w"]);
        assert_eq!(node.after_release(X), ["r3"]);
        assert!(node.after_release(S).is_empty() && node.is_idle());
    }

    #[test]
    fn order_holds_across_the_lines() {
        let mut node = node(&[X]);
        node.wait("s1", S);
        node.wait("ix", IX);
        node.wait("s2", S);
        node.wait("is", IS);
        assert_eq!(node.after_release(X), ["s1", "is"], "s2 stays behind ix");
        assert_eq!(node.after_release(S), ["ix"]);
        assert_eq!(node.after_release(IX), ["s2"]);
    }

    #[test]
    fn cancel_lets_in_who_waited_behind() {
        let mut node = node(&[S]);
        let writer = node.wait("writer", X);
        node.wait("reader", S);
        assert_eq!(node.after_cancel(writer), Some(vec!["reader"]));
        assert_eq!(node.after_cancel(writer), None, "it is gone");
    }

    #[test]
    fn cancel_after_the_grant_says_so() {
        let mut node = node(&[X]);
        let reader = node.wait("reader", S);
        node.wait("writer", X);
        assert_eq!(node.after_release(X), ["reader"]);
        assert_eq!(node.after_cancel(reader), None);
        assert_eq!(node.after_release(S), ["writer"]);
    }

    /// A deadline may pass between the grant and the wake-up, and others may queue meanwhile.
    #[test]
    fn late_cancel_takes_nobody_else_out() {
        let mut node = node(&[X]);
        let first = node.wait("first", X);
        assert_eq!(node.after_release(X), ["first"]);
        let second = node.wait("second", X);
        assert_ne!(first, second);
        assert_eq!(node.after_cancel(first), None);
        assert_eq!(node.after_release(X), ["second"]);
    }

    #[test]
    fn owner_passes_the_queue_where_it_holds_enough() {
        let mut node = node(&[S]);
        node.wait("writer", X);
        assert!(node.try_grant(S, &held(&[S])) && node.try_grant(IS, &held(&[S, S])), "rule 1");
    }

    #[test]
    fn conversion_goes_ahead_of_the_queue() {
        let mut node = node(&[S, S]);
        node.wait("writer", X);
        node.wait_holding("upgrade", X, &[S]);
        assert_eq!(node.after_release(S), ["upgrade"], "rule 3");
        assert!(node.after_release(X).is_empty());
        assert_eq!(node.after_release(S), ["writer"]);
    }

    #[test]
    fn conversion_does_not_overtake_who_could_share_what_is_held() {
        let mut node = node(&[IS, IX]);
        node.wait("reader", S);
        node.wait_holding("nested", IX, &[IS]);
        assert_eq!(node.after_release(IX), ["reader"], "rule 3: it does not wait for IS");
        assert_eq!(node.after_release(S), ["nested"]);
    }

    /// Or it would wait for a reader that waits for a writer that waits for it.
    #[test]
    fn conversion_passes_who_queues_behind_one_that_waits_for_what_is_held() {
        let mut node = node(&[S, S]);
        node.wait("writer", X);
        node.wait("reader", S);
        node.wait_holding("upgrade", X, &[S]);
        assert_eq!(node.after_release(S), ["upgrade"]);
        assert!(node.after_release(X).is_empty());
        assert_eq!(node.after_release(S), ["writer"]);
    }

    #[test]
    fn conversion_passes_one_that_waits_for_what_is_held() {
        let mut node = node(&[IS, IX]);
        node.wait_holding("first", X, &[IS]);
        assert!(!node.try_grant(S, &ModeCounts::NONE), "newcomers wait behind it");
        assert!(node.try_grant(S, &held(&[IX])), "the first waits for IX anyway");
    }

    #[test]
    fn cancelled_conversion_lets_newcomers_in() {
        let mut node = node(&[S, S]);
        let upgrade = node.wait_holding("upgrade", X, &[S]);
        node.wait("reader", S);
        assert_eq!(node.after_cancel(upgrade), Some(vec!["reader"]));
    }

    #[test]
    fn downgrade_lets_readers_in() {
        let mut node = node(&[X]);
        node.wait("reader", S);
        node.wait("writer", X);
        let mut due = Vec::new();
        node.downgrade(X, S, &mut due);
        assert_eq!(due, ["reader"]);
    }

    #[test]
    fn ticket_passes_whom_its_held_modes_exclude() {
        let mut node = node(&[S, S]);
        let first = node.wait("w1", X);
        let second = node.wait("r", S);
        let upgrade = node.wait_holding("upgrade", X, &[S]);
        assert!(upgrade.passes(&first) && !upgrade.passes(&second) && !second.passes(&first));
    }

    /// Or an intention would be published past somebody whom it excludes (G1).
    #[test]
    fn node_has_intentions_only_while_nobody_holds_or_awaits_more() {
        let mut node = node(&[]);
        assert!(node.has_intentions_only());
        assert!(node.try_grant(IS, &ModeCounts::NONE) && node.try_grant(IX, &ModeCounts::NONE));
        assert!(node.has_intentions_only());
        let reader = node.wait("reader", S);
        assert!(!node.has_intentions_only(), "it is awaited");
        assert_eq!(node.after_cancel(reader), Some(vec![]));
        assert!(node.has_intentions_only(), "nobody waits any longer");
        assert!(node.after_release(IX).is_empty() && node.try_grant(S, &ModeCounts::NONE));
        assert!(!node.has_intentions_only(), "it is read");
    }

    /// A revoked intention excludes what any other one does (G1), until it is released.
    #[test]
    fn intention_counted_later_is_a_grant() {
        let mut node = node(&[]);
        node.count(IX);
        assert!(!node.is_idle());
        node.wait("reader", S);
        assert_eq!(node.after_release(IX), ["reader"]);
    }
}
