//! The walk of a request: it takes the steps of its plan one after the other, ancestors first, until it holds them
//! all.
//!
//! Rules, for every scope:
//!
//! 1. A request has one place in the order of all waiters: the [stamp](crate::core::node::Stamp) that it gets when it
//!    first has to wait. Every queue that it comes to is ordered by stamps. So it keeps its place wherever it waits
//!    (G3).
//! 2. Half way, a request stops only in a queue. When a change lets it on from there, the thread that made the change
//!    walks it on, until it holds everything or stands in its next queue. Its thread is woken once, when it holds
//!    everything (G9).
//! 3. The requests that a node lets on are its *movers*. They are walked on in the order in which they were let on,
//!    each to its end before the next begins; a request that comes to the node meanwhile goes on behind them. So of
//!    two requests for the same node below, the earlier one gets there first, although this node grants both an
//!    intention at once.
//!
//! Between processes, rule 3 holds because one event is applied at a time. Between threads, several may change a
//! node, walk and arrive at once, so the movers of a node stand in [`Movers`], and one thread at a time walks them on
//! (`thread/moving.rs`).
//!
//! Cost: a release does the work of the requests that it lets on, O(depth) for each, and of those that were let on at
//! the same node before. Nothing else that is held or waits matters.
//!
//! Pure. Not here: what one node grants (`node.rs`); which steps there are (`plan.rs`).

use std::collections::VecDeque;

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// This many steps are taken, from this one on.
    Steps(usize),
    /// The walk ends here for now: the request stands in a queue, or is refused.
    No,
}

/// Takes the steps of a request from `next` on, as long as each can be taken. Returns the index of the first step
/// that could not be taken, or `None` if the request holds them all.
#[inline]
pub(crate) fn walk(mut next: usize, steps: usize, mut take: impl FnMut(usize) -> Taken) -> Option<usize> {
    while next < steps {
        match take(next) {
            Taken::Steps(taken) => next += taken,
            Taken::No => return Some(next),
        }
    }
    None
}

/// The movers of one node, in the order in which they were let on (rule 3). Each has a number; later ones have higher
/// numbers.
#[derive(Debug)]
pub(crate) struct Movers<W> {
    waiting: VecDeque<(u64, W)>,
    /// The one that is being walked on.
    walking: Option<u64>,
}

impl<W> Default for Movers<W> {
    fn default() -> Self {
        Movers { waiting: VecDeque::new(), walking: None }
    }
}

impl<W> Movers<W> {
    pub(crate) fn push(&mut self, number: u64, mover: W) {
        debug_assert!(self.last().is_none_or(|last| last < number), "numbers rise");
        self.waiting.push_back((number, mover));
    }

    /// The number of the last mover: a request that goes on behind it goes on behind all.
    pub(crate) fn last(&self) -> Option<u64> {
        self.waiting.back().map(|&(number, _)| number).or(self.walking)
    }

    /// The next one to be walked on, if it is among those up to `until`.
    pub(crate) fn next(&mut self, until: u64) -> Option<W> {
        // Movers that came later are left to another thread's turn.
        self.waiting.front().filter(|&&(number, _)| number <= until)?;
        debug_assert!(self.walking.is_none(), "one at a time");
        let (number, mover) = self.waiting.pop_front()?;
        self.walking = Some(number);
        Some(mover)
    }

    /// The mover that `next` returned has gone as far as it can.
    pub(crate) fn arrived(&mut self) {
        debug_assert!(self.walking.is_some(), "it was walked on");
        self.walking = None;
    }

    /// Whether all movers up to `until` have gone on.
    pub(crate) fn have_gone(&self, until: u64) -> bool {
        self.walking.is_none_or(|number| number > until)
            && self.waiting.front().is_none_or(|&(number, _)| number > until)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.walking.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walk_ends_where_a_step_cannot_be_taken() {
        let taken = |index| if index == 3 { Taken::No } else { Taken::Steps(1) };
        assert_eq!(walk(0, 5, taken), Some(3));
        assert_eq!(walk(0, 3, taken), None);
        assert_eq!(walk(4, 5, taken), None);
        assert_eq!(walk(0, 5, |_| Taken::Steps(5)), None, "several at once");
    }

    #[test]
    fn movers_go_on_in_their_order_and_one_at_a_time() {
        let mut movers = Movers::default();
        movers.push(1, "first");
        movers.push(4, "second");
        assert_eq!(movers.last(), Some(4));
        assert_eq!(movers.next(1), Some("first"));
        assert!(!movers.have_gone(1), "it is still on its way");
        movers.arrived();
        assert!(movers.have_gone(1) && movers.have_gone(3) && !movers.have_gone(4));
        assert_eq!(movers.next(3), None, "the next one came later");
        assert_eq!(movers.next(4), Some("second"));
        assert!(!movers.is_empty() && movers.last() == Some(4));
        movers.arrived();
        assert!(movers.is_empty() && movers.have_gone(u64::MAX) && movers.last().is_none());
    }
}
