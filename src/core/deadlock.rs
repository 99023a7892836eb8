//! Which request waits for which, and the cycle if there is one (G2).
//!
//! A party is a request that waits. It has what it waits for, and what cannot be released before it goes on: the
//! guards that it *pins*, and the steps that it has taken so far. A blocked thread pins its plain guards, which
//! cannot leave it; a request of an explicit owner pins that owner's guards, since the owner is borrowed meanwhile.
//! Nothing pins an `Arc` guard: any thread may drop it, so a wait for one is never part of a cycle.
//!
//! A waits for B, at the node where A waits, for one of three reasons:
//!
//! | | | |
//! |---|---|---|
//! | B's *guard* | excludes A | only nested requests do this: B waits while it pins a guard |
//! | B's *steps* | exclude A | B waits at a later node of the one order of all plans |
//! | B's *place* | is ahead of A's, for a mode that excludes A's | B has the earlier stamp, or goes ahead by rule 3 of `node.rs` |
//!
//! A goes on only when *all* of these are gone, so a cycle of parties that wait at one moment stays for ever, unless
//! one of them gives up. So no report is false, provided that the code that gathers the parties takes them all at one
//! moment.
//!
//! Steps and places alone make no cycle, since both follow an order. So each cycle has a party whose guard holds up
//! the party before it. One of those gets the report, never a party that merely stands in between. A party that takes
//! a refusal (`try_lock_for`) is preferred to one that can only panic (`lock`), for some two seconds: it may be a task that nobody
//! polls, since its executor is the thread that called `lock`.
//!
//! So only nested requests look for cycles, when they have waited for a little while, and again later. The last party
//! to enter a cycle finds it complete. The time of a look grows with the number of all granted and waiting requests.
//!
//! Pure. Not here: how the parties are gathered (`thread/parties.rs`, `replica/`). The idea: Gray 1978, "Notes on
//! Data Base Operating Systems" (waits-for graph); PostgreSQL (look only after a wait has lasted).

use crate::core::mode::Mode;
use crate::core::node::{Firsts, Stamp, Ticket};
use crate::core::node_id::NodeId;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

/// How a wait may end other than by the grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Temper {
    /// By a panic only.
    Endless,
    /// By a refusal.
    Refusable,
}

/// A request that waits.
#[derive(Debug)]
pub(crate) struct Party {
    node: NodeId,
    ticket: Ticket,
    /// Waiters with a stamp before this are ahead of it.
    ahead: Stamp,
    temper: Temper,
    /// What it pins on the nodes that anybody waits for: by guards of its own owner, which do not exclude it; by
    /// other guards; and by the steps that it has taken.
    pub(crate) own_guards: Vec<(NodeId, Mode)>,
    pub(crate) other_guards: Vec<(NodeId, Mode)>,
    pub(crate) steps: Vec<(NodeId, Mode)>,
}

/// The means by which one party holds up another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Guard,
    StepsOrPlace,
}

#[cfg(test)]
thread_local! {
    /// The pairs that were compared, for a test of the cost.
    static COMPARED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

impl Party {
    /// A party that waits at a node; the caller adds what it holds.
    pub(crate) fn new(node: NodeId, ticket: Ticket, temper: Temper) -> Self {
        let ahead = ticket.stamp();
        Party { node, ticket, ahead, temper, own_guards: vec![], other_guards: vec![], steps: vec![] }
    }

    /// The node where it waits.
    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    /// Whether a grant to another request keeps it waiting.
    pub(crate) fn is_excluded_by(&self, &(node, mode): &(NodeId, Mode)) -> bool {
        node == self.node && !mode.compatible(self.ticket.mode())
    }

    fn waits_for(&self, other: &Party) -> Option<By> {
        #[cfg(test)]
        COMPARED.set(COMPARED.get() + 1);
        let excludes = |held: &[(NodeId, Mode)]| held.iter().any(|held| self.is_excluded_by(held));
        if std::ptr::eq(self, other) {
            return excludes(&self.other_guards).then_some(By::Guard);
        }
        let ahead = self.node == other.node
            && other.ticket.stamp() < self.ahead
            && !self.ticket.mode().compatible(other.ticket.mode());
        if excludes(&other.own_guards) || excludes(&other.other_guards) {
            Some(By::Guard)
        } else if excludes(&other.steps) || ahead {
            Some(By::StepsOrPlace)
        } else {
            None
        }
    }

    /// Whether this party, which holds up the party before it by `by`, is preferred for the report of the cycle.
    fn takes_report(&self, by: By) -> bool {
        by == By::Guard && self.temper == Temper::Refusable
    }
}

/// Sets for each party which others are ahead of it.
fn settle_queues(parties: &mut [Party]) {
    let mut queues: HashMap<NodeId, Firsts> = HashMap::new();
    for party in parties.iter() {
        queues.entry(party.node).or_default().add(&party.ticket);
    }
    for party in parties.iter_mut() {
        party.ahead = queues[&party.node].place(&party.ticket);
    }
}

/// The cycle that a party which can only panic has left to others, and at how many looks in a row.
#[derive(Debug, Default)]
pub(crate) struct Left {
    cycle: Vec<Stamp>,
    looks: u32,
}

impl Left {
    /// Some two seconds.
    const LOOKS: u32 = 15;

    /// Whether it has been left to others for long enough.
    fn for_long(&mut self, cycle: Vec<Stamp>) -> bool {
        if self.cycle != cycle {
            *self = Left { cycle, looks: 0 };
        }
        self.looks += 1;
        self.looks > Self::LOOKS
    }
}

/// The shortest cycle of waiting parties through `start`, which comes first, that `start` has to report. `left` is what it has left
/// to others at its looks before.
pub(crate) fn cycle_through(parties: &mut [Party], start: usize, left: &mut Left) -> Option<Vec<usize>> {
    settle_queues(parties);
    let Some(any) = cycle_as(parties, start, Temper::Refusable) else {
        *left = Left::default();
        return None;
    };
    if parties[start].temper == Temper::Refusable {
        return Some(any);
    }
    let stamps = |cycle: &Vec<usize>| cycle.iter().map(|&party| parties[party].ticket.stamp()).collect();
    cycle(parties, start).or_else(|| Some(any).filter(|any| left.for_long(stamps(any))))
}

/// The same, where it is settled which party is ahead of which.
fn cycle(parties: &[Party], start: usize) -> Option<Vec<usize>> {
    cycle_as(parties, start, parties[start].temper)
}

/// The same, if `start` had that temper.
fn cycle_as(parties: &[Party], start: usize, temper: Temper) -> Option<Vec<usize>> {
    let mut unseen: Vec<usize> = (0..parties.len()).collect();
    let mut came_from = HashMap::new();
    let mut next = VecDeque::from([start]);
    // What a party waits for follows from its node, its mode and its place, except for itself; so a long queue does
    // not take time that grows with its square.
    let mut followed: HashMap<(NodeId, Mode), Stamp> = HashMap::new();
    while let Some(at) = next.pop_front() {
        let Party { node, ticket, ahead, .. } = &parties[at];
        if at != start {
            match followed.entry((*node, ticket.mode())) {
                Entry::Occupied(further) if further.get() >= ahead => continue,
                place => place.insert_entry(*ahead),
            };
        }
        let mut newly = Vec::new();
        unseen.retain(|&other| {
            let found = parties[at].waits_for(&parties[other]).is_some_and(|by| match other == start {
                true => by == By::Guard,
                false => temper != Temper::Endless || !parties[other].takes_report(by),
            });
            if found {
                came_from.insert(other, at);
                newly.push(other);
            }
            !found
        });
        // The party that waits for the most goes first: the others of its queue wait for a part of that.
        newly.sort_unstable_by_key(|&other| std::cmp::Reverse(parties[other].ahead));
        next.extend(newly);
        if let Some(&last) = came_from.get(&start) {
            let mut way = vec![last];
            while way[way.len() - 1] != start {
                way.push(came_from[&way[way.len() - 1]]);
            }
            way.reverse();
            return Some(way);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::mode::ModeCounts;
    use crate::core::node::Node;
    use crate::core::node_id::Seeds;
    use crate::core::segments::Segments;
    use Mode::{Exclusive as X, IntentionExclusive as IX, IntentionShared as IS, Shared as S};

    fn id(name: &str) -> NodeId {
        let mut ids = Vec::new();
        Segments::of(name, &Seeds::new(|| 7), &mut ids, None).unwrap();
        ids[ids.len() - 1]
    }

    /// A party that waits alone in the queue of `node`, and has guards elsewhere.
    fn party(node: &str, mode: Mode, guards: &[(&str, Mode)]) -> Party {
        party_since(0, node, mode, guards)
    }

    /// The same with that stamp.
    fn party_since(stamp: u64, node: &str, mode: Mode, guards: &[(&str, Mode)]) -> Party {
        let mut queue = Node::default();
        assert!(queue.try_grant(X, &ModeCounts::NONE));
        let ticket = queue.enqueue(Stamp(stamp), mode, ModeCounts::NONE, (), &mut Vec::new());
        let own_guards = guards.iter().map(|&(node, mode)| (id(node), mode)).collect();
        Party { own_guards, ..Party::new(id(node), ticket, Temper::Endless) }
    }

    fn with_steps(party: Party, steps: &[(&str, Mode)]) -> Party {
        Party { steps: steps.iter().map(|&(node, mode)| (id(node), mode)).collect(), ..party }
    }

    #[test]
    fn cycle_of_two_and_of_three_is_found() {
        let two = [party("b", X, &[("a", X)]), party("a", X, &[("b", S)])];
        assert_eq!(cycle(&two, 0), Some(vec![0, 1]));
        assert_eq!(cycle(&two, 1), Some(vec![1, 0]));
        let three = [party("b", X, &[("a", X)]), party("a", X, &[("c", X)]), party("c", S, &[("b", X)])];
        assert_eq!(cycle(&three, 0), Some(vec![0, 2, 1]));
    }

    #[test]
    fn chain_and_compatible_modes_are_no_cycle() {
        let chain = [party("b", X, &[("a", X)]), party("c", X, &[("b", X)]), party("d", X, &[("c", X)])];
        assert!((0..3).all(|start| cycle(&chain, start).is_none()));
        let readers = [party("b", S, &[("a", S)]), party("a", S, &[("b", S)])];
        assert_eq!(cycle(&readers, 0), None);
    }

    #[test]
    fn who_waits_for_a_cycle_is_not_in_it() {
        let parties = [party("b", X, &[("a", X)]), party("a", X, &[("b", X)]), party("a", X, &[])];
        assert_eq!(cycle(&parties, 2), None);
    }

    #[test]
    fn own_guard_excludes_only_a_request_of_another_owner() {
        let mut alone = party("a", X, &[("a", S)]);
        assert_eq!(cycle(std::slice::from_ref(&alone), 0), None);
        alone.other_guards = std::mem::take(&mut alone.own_guards);
        assert_eq!(cycle(std::slice::from_ref(&alone), 0), Some(vec![0]));
    }

    #[test]
    fn who_takes_no_refusal_leaves_the_report_to_who_does() {
        let mut parties = [party("b", X, &[("a", X)]), party("a", X, &[("b", X)])];
        parties[1].temper = Temper::Refusable;
        assert_eq!(cycle(&parties, 0), None);
        assert_eq!(cycle(&parties, 1), Some(vec![1, 0]));
    }

    /// The other one may never look. A wait that was merely long before, or was in other cycles, has left nothing to others.
    #[test]
    fn what_is_left_to_others_for_long_is_reported() {
        let cycle_with = |stamp| {
            let other = Party { temper: Temper::Refusable, ..party_since(stamp, "a", X, &[("b", X)]) };
            [party("b", X, &[("a", X)]), other]
        };
        let apart = || [party("b", X, &[("a", X)]), party("c", X, &[("b", X)])];
        let mut left = Left::default();
        let mut look = |mut parties: [Party; 2]| cycle_through(&mut parties, 0, &mut left);
        assert!((0..100).all(|_| look(apart()).is_none()));
        assert!((1..100).all(|stamp| look(cycle_with(stamp)).is_none()), "others give up and ask again");
        assert!((0..Left::LOOKS).all(|_| look(cycle_with(1)).is_none()));
        assert!(look(apart()).is_none());
        assert!((0..Left::LOOKS).all(|_| look(cycle_with(1)).is_none()));
        assert_eq!(look(cycle_with(1)), Some(vec![0, 1]));
    }

    /// The first one nests; the second one, which takes refusals, has no guard, only the steps of its one request.
    #[test]
    fn report_goes_to_who_nests() {
        let one_guard = with_steps(party("a", X, &[]), &[("b", X)]);
        let mut parties = [party("b", X, &[("a", X)]), one_guard];
        parties[1].temper = Temper::Refusable;
        assert_eq!(cycle(&parties, 1), None);
        assert_eq!(cycle(&parties, 0), Some(vec![0, 1]), "nobody else would");
    }

    /// A party that holds nothing and stands in the queue between two in a deadlock is not refused: that would
    /// resolve nothing.
    #[test]
    fn who_only_stands_in_between_is_not_reported() {
        let mut queue = Node::default();
        assert!(queue.try_grant(X, &ModeCounts::NONE));
        let mut queued = |stamp, party| {
            let ticket = queue.enqueue(Stamp(stamp), X, ModeCounts::NONE, (), &mut Vec::new());
            Party { ticket, ahead: ticket.stamp(), ..party }
        };
        let (between, nests) = (queued(0, party("b", X, &[])), queued(1, party("b", X, &[("c", X)])));
        let holds = with_steps(party("c", X, &[]), &[("b", X)]);
        let parties = [between, nests, holds];
        assert_eq!(parties[1].waits_for(&parties[0]), Some(By::StepsOrPlace));
        assert_eq!(cycle(&parties, 0), None);
        assert_eq!(cycle(&parties, 1), Some(vec![1, 2]));
        assert_eq!(cycle(&parties, 2), None);
    }

    /// The parties that wait at `node`, which is `granted` to others, in the order in which they came; each has
    /// guards there.
    fn queued(node: &str, granted: &[Mode], waiting: &[(Mode, &[Mode])]) -> Vec<Party> {
        let mut queue = Node::default();
        let guards = waiting.iter().flat_map(|&(_, guards)| guards);
        granted.iter().chain(guards).for_each(|&mode| assert!(queue.try_grant(mode, &ModeCounts::NONE)));
        let mut stamp = 0;
        let mut wait = |&(mode, guards): &(Mode, &[Mode])| {
            stamp += 1;
            let mut held = ModeCounts::NONE;
            guards.iter().for_each(|&mode| held.add(mode));
            let ticket = queue.enqueue(Stamp(stamp), mode, held, (), &mut Vec::new());
            let guards: Vec<_> = guards.iter().map(|&mode| (node, mode)).collect();
            Party { ticket, ahead: ticket.stamp(), ..party(node, mode, &guards) }
        };
        waiting.iter().map(&mut wait).collect()
    }

    /// Otherwise a report would name a party that holds up nobody (G2).
    #[test]
    fn place_holds_up_those_behind_it_that_it_excludes() {
        let here = queued("a", &[X], &[(S, &[]), (X, &[]), (S, &[])]);
        let elsewhere = queued("b", &[X], &[(X, &[]), (X, &[])]);
        assert_eq!(here[1].waits_for(&here[0]), Some(By::StepsOrPlace));
        assert_eq!(here[2].waits_for(&here[1]), Some(By::StepsOrPlace));
        assert_eq!(here[0].waits_for(&here[1]), None, "it came later");
        assert_eq!(here[2].waits_for(&here[0]), None, "both read");
        assert_eq!(elsewhere[1].waits_for(&here[0]), None, "it waits at another node");
    }

    /// The queue has the order of rule 3 of `node.rs`; otherwise reports would be false (G2).
    #[test]
    fn upgrade_waits_for_nobody_whom_it_passes() {
        let mut parties = queued("a", &[IX], &[(S, &[]), (X, &[]), (X, &[IS])]);
        settle_queues(&mut parties);
        let [reader, writer, upgrade] = &parties[..] else { unreachable!() };
        assert_eq!(upgrade.waits_for(reader), Some(By::StepsOrPlace), "IS does not exclude it");
        assert_eq!(upgrade.waits_for(writer), None);
        assert_eq!(writer.waits_for(upgrade), Some(By::Guard));
    }

    /// Two parties of one queue are in the way, and only the place of the later one leads on (G2: a cycle is
    /// reported).
    #[test]
    fn cycle_through_the_later_of_two_places_is_found() {
        let mut parties = queued("q", &[S, IS], &[(IX, &[]), (X, &[]), (IX, &[])]);
        for reader in [0, 2] {
            parties[reader].own_guards = vec![(id("s"), S)];
        }
        parties.push(party("s", X, &[("q", IS)]));
        assert_eq!(cycle(&parties, 3), Some(vec![3, 2, 1]));
    }

    /// The same where the later one is further away in the search, so that the earlier one was looked at long before.
    #[test]
    fn cycle_through_a_later_place_that_is_further_away_is_found() {
        let mut parties = queued("q", &[S, IS], &[(IX, &[]), (X, &[]), (IX, &[])]);
        parties[0].own_guards = vec![(id("s"), S)];
        parties[2].own_guards = vec![(id("r"), S)];
        parties.push(party("s", X, &[("q", IS)]));
        parties.push(party("r", X, &[("s", S)]));
        assert_eq!(cycle(&parties, 3), Some(vec![3, 4, 2, 1]));
    }

    /// A look has the whole ledger locked, so its time must not grow with the square of the number of waiters (G5).
    #[test]
    fn long_queue_is_looked_through_once() {
        const MANY: usize = 2000;
        let mut parties = queued("q", &[X], &vec![(X, &[][..]); MANY]);
        parties.extend(queued("apart", &[X], &vec![(X, &[][..]); MANY]));
        // From the last of the queue, wherever it is in the ledger.
        for last in [MANY - 1, MANY] {
            COMPARED.set(0);
            assert_eq!(cycle(&parties, last), None);
            assert!(COMPARED.get() < 8 * parties.len(), "{} pairs of {}", COMPARED.get(), parties.len());
            parties.reverse();
        }
    }
}
