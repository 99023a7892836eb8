//! One node: what is granted on it, which requests wait for it, and which is next.
//!
//! A node grants a request at once (`try_grant`) or lets it queue (`enqueue`). A later change of the node (`release`,
//! `downgrade`, `cancel`, `enqueue`) grants the waiters that it lets in: the call returns them, already counted as
//! holders, in the order in which they were granted. So a grant is never lost, and nobody is woken in vain (G9).
//!
//! A queue is ordered by *stamps*. A request gets its stamp when it begins to wait, and keeps it in every queue that
//! it comes to later (`walk.rs`). So it has one place in the order of all waiters, wherever they wait (G3).
//!
//! Rules:
//!
//! 1. If its owner already holds a mode here that covers it, a request is granted past any queue.
//! 2. Otherwise it waits for what *other* owners hold here, if that excludes it, and for requests that are ahead of
//!    it in the queue and exclude it (G3). It waits for nothing else (G4).
//! 3. A request with an earlier stamp is ahead; a request that does not wait yet comes last. But if the owner of a
//!    request holds something here, the request goes ahead of the first waiter that this excludes, which waits for
//!    its owner anyway, and so ahead of all behind that one.
//! 4. A waiter is granted by the same rules as a newcomer, the earliest first, at each change that can let it in.
//!    Such a change is not only a release: a request that comes to the queue with an early stamp may become the first
//!    waiter that the held modes of a conversion exclude, and so let that conversion go ahead of others (rule 3).
//!
//! A *conversion* is a request whose owner holds a weaker mode here (Gray 1976). By rule 3 an upgrade from S to X goes
//! ahead of the writers in the queue, and it does not go ahead of a reader that could share the node with what its owner
//! holds: otherwise an owner that keeps an intention on the root, as every guard does, could starve that reader.
//! (PostgreSQL queues conversions by the same rule.)
//!
//! Other waiters stand in one line for each mode. If a mode excludes itself, only the first of its line can be
//! granted; if not, the first is granted if any is. So only the five firsts and the conversions are looked at,
//! however long the queue is (G5, G10).
//!
//! ```text
//!  try_grant ──┬── granted ────────────────────────────── release / downgrade ──┐
//!              └── enqueue ─┬── granted by a change ──────────────┘             ├─> who is next?
//!                           └── cancel ─────────────────────────────────────────┘
//! ```
//!
//! Pure: a waiter is any `W` that the caller gives. Not here: the steps that a request takes after this node
//! (`walk.rs`), finding the node (`thread/table.rs`), blocking and waking (`thread/waiter.rs`).

use crate::core::mode::{Mode, ModeCounts};
use std::collections::BTreeMap;

/// A live node.
#[derive(Clone, Debug)]
pub(crate) struct Node<W> {
    granted: ModeCounts,
    /// Made for the first waiter, dropped with the last: most nodes never have one.
    queue: Option<Box<Queue<W>>>,
}

#[derive(Clone, Debug)]
struct Queue<W> {
    /// The requests whose owners hold something here, by stamp.
    conversions: BTreeMap<Stamp, (Claim, W)>,
    /// The others, one line for each mode, by stamp.
    lines: [BTreeMap<Stamp, W>; 5],
}

/// When a request began to wait: its place in the order of all that wait for nodes of one lock. No two requests have the
/// same.
#[cfg_attr(feature = "replica", derive(serde::Serialize, serde::Deserialize))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Stamp(pub(crate) u64);

impl Stamp {
    /// Later than the stamp of any waiter: for a request that does not wait yet.
    pub(crate) const NEWCOMER: Stamp = Stamp(u64::MAX);
}

/// What a request asks of a node, and what its owner holds there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    mode: Mode,
    held: ModeCounts,
}

impl Claim {
    /// Whether it is compatible with what other owners hold, given all that is granted.
    fn fits(&self, granted: &ModeCounts) -> bool {
        granted.without(&self.held).compatible(self.mode)
    }
}

/// A place in the queue of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    stamp: Stamp,
    claim: Claim,
}

impl Ticket {
    pub(crate) fn mode(&self) -> Mode {
        self.claim.mode
    }

    pub(crate) fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// What its owner holds there already.
    #[cfg(feature = "replica")]
    pub(crate) fn held(&self) -> ModeCounts {
        self.claim.held
    }
}

/// The earliest waiter at a node for each mode: all that rules 2 and 3 need to know of a queue.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Firsts([Option<Stamp>; 5]);

impl Firsts {
    pub(crate) fn add(&mut self, ticket: &Ticket) {
        self.see(ticket.claim.mode, ticket.stamp);
    }

    fn see(&mut self, mode: Mode, stamp: Stamp) {
        let first = &mut self.0[mode as usize];
        *first = Some(first.map_or(stamp, |first| first.min(stamp)));
    }

    /// The earliest stamp of the waiters whose mode `counts` selects.
    fn earliest(&self, counts: impl Fn(Mode) -> bool) -> Stamp {
        let modes = Mode::ALL.into_iter().filter(|&mode| counts(mode));
        modes.filter_map(|mode| self.0[mode as usize]).min().unwrap_or(Stamp::NEWCOMER)
    }

    /// The requests ahead of a waiter are those with stamps before this (rule 3).
    pub(crate) fn place(&self, ticket: &Ticket) -> Stamp {
        self.place_of(&ticket.claim, ticket.stamp)
    }

    /// Whether one waiter goes ahead of another by rule 3, because it came earlier or as a conversion. A conversion
    /// comes just before the request whose stamp is its place.
    #[cfg(feature = "replica")]
    pub(crate) fn puts_ahead(&self, one: &Ticket, other: &Ticket) -> bool {
        let key = |ticket: &Ticket| {
            let place = self.place(ticket);
            (place, place == ticket.stamp, ticket.stamp)
        };
        key(one) < key(other)
    }

    fn place_of(&self, claim: &Claim, stamp: Stamp) -> Stamp {
        stamp.min(self.earliest(|mode| !claim.held.compatible(mode)))
    }

    /// Whether no waiter ahead of a request excludes it (rule 2).
    fn admits(&self, claim: &Claim, stamp: Stamp) -> bool {
        self.earliest(|mode| !claim.mode.compatible(mode)) >= self.place_of(claim, stamp)
    }
}

impl<W> Default for Node<W> {
    fn default() -> Self {
        Node { granted: ModeCounts::NONE, queue: None }
    }
}

impl<W> Node<W> {
    /// Grants `mode` to an owner that already holds `held` here, if it need not wait.
    #[inline]
    pub(crate) fn try_grant(&mut self, mode: Mode, held: &ModeCounts) -> bool {
        self.try_grant_at(Stamp::NEWCOMER, mode, held)
    }

    /// The same for a request that has waited elsewhere, and so is ahead of all waiters with a later stamp.
    #[inline]
    pub(crate) fn try_grant_at(&mut self, stamp: Stamp, mode: Mode, held: &ModeCounts) -> bool {
        let granted = self.may_grant(stamp, mode, held);
        if granted {
            self.granted.add(mode);
        }
        granted
    }

    /// Grants `mode` to a request with that stamp, or returns what its owner holds here, which `enqueue` needs.
    /// `held` is called only where it matters.
    pub(crate) fn take(
        &mut self,
        stamp: Stamp,
        mode: Mode,
        held: impl FnOnce() -> ModeCounts,
    ) -> Result<(), ModeCounts> {
        if self.try_grant_at(stamp, mode, &ModeCounts::NONE) {
            return Ok(());
        }
        let held = held();
        if !held.is_empty() && self.try_grant_at(stamp, mode, &held) { Ok(()) } else { Err(held) }
    }

    /// Counts a grant that was made elsewhere, of a mode that excludes nothing granted or awaited here (`bias.rs`).
    pub(crate) fn count(&mut self, mode: Mode) {
        debug_assert!(self.queue.is_none() && self.granted.compatible(mode));
        self.granted.add(mode);
    }

    /// Counts a grant that was made before the node was stored. Call it before anybody queues.
    #[cfg(feature = "replica")]
    pub(crate) fn restore(&mut self, mode: Mode) {
        self.granted.add(mode);
    }

    /// Whether nobody waits, and nobody holds the node in a mode that could exclude an intention.
    #[inline]
    pub(crate) fn has_intentions_only(&self) -> bool {
        self.queue.is_none() && self.granted.are_intentions()
    }

    /// Puts a request that was not granted into the queue. Waiters that this lets in are granted and added to `due`;
    /// there are none if no request with a later stamp waits here.
    pub(crate) fn enqueue(
        &mut self,
        stamp: Stamp,
        mode: Mode,
        held: ModeCounts,
        waiter: W,
        due: &mut Vec<W>,
    ) -> Ticket {
        debug_assert!(!self.may_grant(stamp, mode, &held), "a request that may be granted does not queue");
        let ticket = self.insert(stamp, mode, held, waiter);
        if self.is_awaited_after(stamp) {
            self.advance(due);
        }
        ticket
    }

    /// Puts a request back into the queue of a node that is being restored: others may still be missing.
    #[cfg(feature = "replica")]
    pub(crate) fn restore_waiter(&mut self, stamp: Stamp, mode: Mode, held: ModeCounts, waiter: W) -> Ticket {
        self.insert(stamp, mode, held, waiter)
    }

    /// Whether a request with a later stamp waits here.
    pub(crate) fn is_awaited_after(&self, stamp: Stamp) -> bool {
        let Some(queue) = &self.queue else { return false };
        let lasts = queue.lines.iter().filter_map(|line| line.keys().next_back());
        lasts.chain(queue.conversions.keys().next_back()).any(|&last| last > stamp)
    }

    fn insert(&mut self, stamp: Stamp, mode: Mode, held: ModeCounts, waiter: W) -> Ticket {
        let queue = self.queue.get_or_insert_default();
        let ticket = Ticket { stamp, claim: Claim { mode, held } };
        if held.is_empty() {
            queue.lines[mode as usize].insert(stamp, waiter);
        } else {
            queue.conversions.insert(stamp, (ticket.claim, waiter));
        }
        ticket
    }

    /// Takes back one grant of `mode`. Waiters that this lets in are granted and added to `due`.
    #[inline]
    pub(crate) fn release(&mut self, mode: Mode, due: &mut Vec<W>) {
        self.granted.remove(mode);
        self.advance(due);
    }

    /// Weakens one grant. Waiters that this lets in are granted and added to `due`.
    pub(crate) fn downgrade(&mut self, from: Mode, to: Mode, due: &mut Vec<W>) {
        debug_assert!(from.covers(to));
        self.granted.remove(from);
        self.granted.add(to);
        self.advance(due);
    }

    /// Takes a waiter out of the queue. Waiters that this lets in are granted and added to `due`. Returns `false` if
    /// it had been granted before, and so holds its mode.
    pub(crate) fn cancel(&mut self, ticket: Ticket, due: &mut Vec<W>) -> bool {
        let Some(queue) = &mut self.queue else { return false };
        let waited = queue.remove(ticket.stamp, &ticket.claim).is_some();
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

    /// Whether no waiter is left that may be granted.
    #[cfg(test)]
    pub(crate) fn is_settled(&self) -> bool {
        self.queue.as_ref().is_none_or(|queue| queue.next(&self.granted).is_none() && !self.granted.is_empty())
    }

    #[inline]
    fn may_grant(&self, stamp: Stamp, mode: Mode, held: &ModeCounts) -> bool {
        let claim = Claim { mode, held: *held };
        held.covers(mode)
            || (claim.fits(&self.granted)
                && self.queue.as_ref().is_none_or(|queue| queue.firsts().admits(&claim, stamp)))
    }

    #[inline]
    fn advance(&mut self, due: &mut Vec<W>) {
        while let Some(queue) = &mut self.queue {
            if queue.is_empty() {
                self.queue = None;
                return;
            }
            let Some((stamp, claim)) = queue.next(&self.granted) else { return };
            self.granted.add(claim.mode);
            due.extend(queue.remove(stamp, &claim));
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

    fn remove(&mut self, stamp: Stamp, claim: &Claim) -> Option<W> {
        if claim.held.is_empty() {
            self.lines[claim.mode as usize].remove(&stamp)
        } else {
            self.conversions.remove(&stamp).map(|(_, waiter)| waiter)
        }
    }

    fn firsts(&self) -> Firsts {
        let mut firsts = Firsts(self.lines.each_ref().map(|line| line.keys().next().copied()));
        self.conversions.iter().for_each(|(&stamp, (claim, _))| firsts.see(claim.mode, stamp));
        firsts
    }

    /// The earliest waiter that may be granted now.
    fn next(&self, granted: &ModeCounts) -> Option<(Stamp, Claim)> {
        let firsts = self.firsts();
        let in_lines = Mode::ALL.into_iter().filter_map(|mode| {
            let first = self.lines[mode as usize].keys().next()?;
            Some((*first, Claim { mode, held: ModeCounts::NONE }))
        });
        let conversions = self.conversions.iter().map(|(&stamp, &(claim, _))| (stamp, claim));
        in_lines
            .chain(conversions)
            .filter(|(stamp, claim)| claim.fits(granted) && firsts.admits(claim, *stamp))
            .min_by_key(|&(stamp, _)| stamp)
    }
}

#[cfg(test)]
#[path = "../../model/liveness.rs"]
mod liveness;

#[cfg(test)]
mod tests {
    use super::*;
    use Mode::{Exclusive as X, IntentionExclusive as IX, IntentionShared as IS, Shared as S};

    /// What an owner of grants in `modes` holds.
    fn held(modes: &[Mode]) -> ModeCounts {
        let mut held = ModeCounts::NONE;
        modes.iter().for_each(|&mode| held.add(mode));
        held
    }

    /// A node held by others in `modes`.
    fn node(modes: &[Mode]) -> Node<&'static str> {
        Node { granted: held(modes), ..Node::default() }
    }

    /// A stamp later than all before.
    fn next_stamp() -> Stamp {
        use std::cell::Cell;
        thread_local!(static NEXT: Cell<u64> = const { Cell::new(100) });
        Stamp(NEXT.replace(NEXT.get() + 1))
    }

    impl Node<&'static str> {
        fn wait(&mut self, name: &'static str, mode: Mode) -> Ticket {
            self.wait_holding(name, mode, &[])
        }

        fn wait_holding(&mut self, name: &'static str, mode: Mode, modes: &[Mode]) -> Ticket {
            assert!(!self.try_grant(mode, &held(modes)), "{name} does not wait");
            let mut nobody = Vec::new();
            let ticket = self.enqueue(next_stamp(), mode, held(modes), name, &mut nobody);
            assert!(nobody.is_empty(), "who comes last lets in nobody");
            ticket
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

    /// Otherwise it would wait for a reader that waits for a writer that waits for it.
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
    fn conversion_is_ahead_of_the_first_that_its_held_modes_exclude() {
        let mut node = node(&[S, S]);
        let mut firsts = Firsts::default();
        let writer = node.wait("writer", X);
        let reader = node.wait("reader", S);
        let upgrade = node.wait_holding("upgrade", X, &[S]);
        [writer, reader, upgrade].iter().for_each(|ticket| firsts.add(ticket));
        assert_eq!(firsts.place(&upgrade), writer.stamp(), "S excludes X");
        assert_eq!(firsts.place(&writer), writer.stamp());
        assert_eq!(firsts.place(&reader), reader.stamp());
        #[cfg(feature = "replica")]
        for (place, &one) in [upgrade, writer, reader].iter().enumerate() {
            let ahead = [upgrade, writer, reader].map(|other| firsts.puts_ahead(&other, &one));
            assert_eq!(ahead, [0, 1, 2].map(|other| other < place), "of {one:?}");
        }
    }

    /// G3: a request that began to wait elsewhere, and comes here later.
    #[test]
    fn request_with_an_earlier_stamp_is_ahead_of_those_that_came_before_it() {
        let early = Stamp(1);
        let mut node = node(&[X]);
        node.wait("late writer", X);
        assert!(!node.try_grant_at(early, X, &ModeCounts::NONE));
        node.enqueue(early, X, ModeCounts::NONE, "early writer", &mut Vec::new());
        assert_eq!(node.after_release(X), ["early writer"]);
        assert_eq!(node.after_release(X), ["late writer"]);
    }

    /// G4: a request waits for nobody behind it.
    #[test]
    fn request_with_an_earlier_stamp_passes_a_later_waiter() {
        let mut node = node(&[S]);
        node.wait("writer", X);
        assert!(!node.try_grant(S, &ModeCounts::NONE), "a newcomer waits");
        assert!(node.try_grant_at(Stamp(1), S, &ModeCounts::NONE));
    }

    /// G4, G9: a conversion goes ahead of a request that comes late with an early stamp. Otherwise the conversion
    /// would wait for a reader that waits for the late request, which waits for the conversion.
    #[test]
    fn request_with_an_earlier_stamp_lets_in_the_conversion_that_it_waits_for() {
        let mut node = node(&[IS, IX]);
        let early = next_stamp();
        node.wait("reader", S);
        node.wait_holding("nested", IX, &[IS]);
        assert!(!node.try_grant_at(early, X, &ModeCounts::NONE));
        let mut due = Vec::new();
        node.enqueue(early, X, ModeCounts::NONE, "early writer", &mut due);
        assert_eq!(due, ["nested"]);
    }

    proptest::proptest! {
        /// G4, G9: after any change no waiter is left that may be granted, since perhaps no later change comes to let
        /// it in. And a request that comes last lets in nobody, so a `try_lock` that takes steps and gives them back
        /// changes nothing.
        #[test]
        fn nobody_is_left_waiting_who_may_be_granted(
            changes in proptest::collection::vec((0..4u8, 0..5usize, 0..8usize, 0..30usize), 1..60)
        ) {
            let mut node = Node::<usize>::default();
            // By number of the owner: what it holds, and what it waits for.
            let mut holds: Vec<Vec<Mode>> = vec![Vec::new(); 8];
            let mut waits: Vec<Option<Ticket>> = vec![None; 8];
            let mut stamps = std::collections::BTreeSet::new();
            for (change, mode, owner, stamp) in changes {
                let mode = Mode::ALL[mode];
                let mut due = Vec::new();
                match (change, waits[owner]) {
                    (0 | 1, None) => {
                        let own = held(&holds[owner]);
                        let newcomer = change == 0;
                        let last: usize = stamps.last().copied().unwrap_or(0);
                        // A request that has waited elsewhere has any stamp that no other has; a newcomer has the
                        // last one.
                        let stamp = if newcomer { last + 1 } else { stamp };
                        let asks = if newcomer { Stamp::NEWCOMER } else { Stamp(stamp as u64) };
                        if stamps.contains(&stamp) {
                            continue;
                        }
                        if node.try_grant_at(asks, mode, &own) {
                            holds[owner].push(mode);
                        } else {
                            stamps.insert(stamp);
                            waits[owner] = Some(node.enqueue(Stamp(stamp as u64), mode, own, owner, &mut due));
                            assert!(!newcomer || due.is_empty());
                        }
                    }
                    (2, Some(ticket)) => {
                        assert!(node.cancel(ticket, &mut due));
                        waits[owner] = None;
                    }
                    // An owner that waits releases nothing.
                    (3, None) if !holds[owner].is_empty() => {
                        let mode = holds[owner].swap_remove(0);
                        node.release(mode, &mut due);
                    }
                    _ => {}
                }
                for owner in due {
                    holds[owner].extend(waits[owner].take().map(|ticket| ticket.mode()));
                }
                assert!(node.is_settled());
            }
        }
    }

    /// Otherwise an intention would be published past a request that it excludes (G1).
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

    /// An intention that is counted after a revocation excludes what any other one does (G1), until it is released.
    #[test]
    fn intention_counted_later_is_a_grant() {
        let mut node = node(&[]);
        node.count(IX);
        assert!(!node.is_idle());
        node.wait("reader", S);
        assert_eq!(node.after_release(IX), ["reader"]);
    }
}
