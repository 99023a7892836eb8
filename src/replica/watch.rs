//! Sub-trees that a member watches: was any write granted in them since?
//!
//! A *watch* is kept beside the replica, and is no part of what all members agree on. It is hit by the first grant of a write that
//! overlaps what it watches, and by one that is held when it begins. While nobody watches, a grant costs one look at an empty list.
//!
//! Pure. Not here: how a member knows that it has read all (`machine/observe.rs`).

use super::{Replica, Request, Step};
use crate::core::mode::Mode;
use crate::core::node_id::NodeId;
use std::collections::HashSet;

/// The watches of a member.
#[derive(Clone, Debug, Default)]
pub(super) struct Watches {
    next: u64,
    watches: Vec<(u64, Watch)>,
}

#[derive(Clone, Debug)]
struct Watch {
    /// The roots that it watches.
    roots: HashSet<NodeId>,
    /// Those, and all above them.
    ways: HashSet<NodeId>,
    is_hit: bool,
}

impl Watch {
    /// Whether a request writes in, above or below what is watched.
    fn overlaps(&self, steps: &[Step]) -> bool {
        let writes_at_or_above = |step: &Step| step.mode == Mode::Exclusive && self.ways.contains(&step.node);
        let writes_below =
            |step: &Step| step.mode.intention() == Mode::IntentionExclusive && self.roots.contains(&step.node);
        steps.iter().any(|step| writes_at_or_above(step) || writes_below(step))
    }
}

impl Watches {
    pub(super) fn hear_of_grant(&mut self, request: &Request) {
        for (_, watch) in &mut self.watches {
            watch.is_hit |= watch.overlaps(&request.ask.steps);
        }
    }
}

impl Replica {
    /// Begins to watch the roots of a request that only reads; returns the number of the watch.
    pub(crate) fn watch(&mut self, reads: &[Step]) -> u64 {
        let nodes = |of: fn(&&Step) -> bool| reads.iter().filter(of).map(|step| step.node).collect();
        let mut watch =
            Watch { roots: nodes(|step| step.mode == Mode::Shared), ways: nodes(|_| true), is_hit: false };
        let mut held = self.requests.values().filter(|request| request.is_granted());
        watch.is_hit = held.any(|request| watch.overlaps(&request.ask.steps));
        let number = self.watches.next;
        self.watches.next += 1;
        self.watches.watches.push((number, watch));
        number
    }

    /// Whether it was hit.
    pub(crate) fn is_hit(&self, number: u64) -> bool {
        let watch = self.watches.watches.iter().find(|(of, _)| *of == number);
        watch.is_none_or(|(_, watch)| watch.is_hit)
    }

    pub(crate) fn end_watch(&mut self, number: u64) {
        self.watches.watches.retain(|(of, _)| *of != number);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::ask;
    use super::super::{Effects, Event, MemberId, RequestId};
    use super::*;
    use crate::core::owner::Owner;

    const PATHS: [&str; 7] = ["", "a", "a/b", "a/b/c", "a/d", "b", "b/c"];

    fn overlap(one: &str, other: &str) -> bool {
        let is_below = |below: &str, above: &str| {
            above.is_empty() || below == above || below.strip_prefix(above).is_some_and(|rest| rest.starts_with('/'))
        };
        is_below(one, other) || is_below(other, one)
    }

    fn asks(number: u64, reads: &[&str], writes: &[&str]) -> Event {
        Event::Ask(ask(number, 0, number, Owner::Itself, reads, writes))
    }

    /// By each pair of paths that are watched, and each pair that is written and read.
    #[test]
    fn watch_is_hit_by_writes_that_overlap_and_by_nothing_else() {
        for watched in PATHS.iter().flat_map(|one| PATHS.map(|other| [*one, other])) {
            for (write, read) in PATHS.iter().flat_map(|write| PATHS.map(|read| (*write, read))) {
                let mut replica = Replica::default();
                let number = replica.watch(&ask(0, 0, 0, Owner::Itself, &watched, &[]).steps);
                replica.apply(asks(1, &[read], &[]), &mut Effects::default());
                assert!(!replica.is_hit(number));
                replica
                    .apply(Event::Withdraw(RequestId { member: MemberId(0), number: 1 }, 0), &mut Effects::default());
                replica.apply(asks(2, &[read], &[write]), &mut Effects::default());
                let expected = watched.iter().any(|watched| overlap(watched, write));
                assert_eq!(replica.is_hit(number), expected, "watched {watched:?}, written {write:?}, read {read:?}");
                let held = replica.watch(&ask(0, 0, 0, Owner::Itself, &watched, &[]).steps);
                assert_eq!(replica.is_hit(held), expected, "the same, when it is held");
            }
        }
    }

    /// It is hit when the write is granted, not when it is asked for.
    #[test]
    fn write_that_waits_has_written_nothing() {
        let mut replica = Replica::default();
        let withdraw = |number| Event::Withdraw(RequestId { member: MemberId(0), number }, 0);
        replica.apply(asks(1, &["a"], &[]), &mut Effects::default());
        let (number, other) = (replica.watch(&ask(0, 0, 0, Owner::Itself, &["a/b"], &[]).steps), replica.watch(&[]));
        replica.apply(asks(2, &[], &["a"]), &mut Effects::default());
        assert!(!replica.is_hit(number));
        replica.apply(withdraw(1), &mut Effects::default());
        assert!(replica.is_hit(number) && !replica.is_hit(other));
        replica.end_watch(other);
        assert!(replica.is_hit(number) && replica.is_hit(other), "one that has ended knows nothing");
    }
}
