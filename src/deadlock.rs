//! Who waits for whom, and the cycle if there is one (G2).
//!
//! A party is a blocked thread: what it waits for, and what it cannot let go meanwhile: its plain guards, which
//! cannot leave the thread, and the steps that its request has taken so far. Finished `Arc` guards are nobody's: any
//! thread may drop them, so a wait for one is never part of a cycle.
//!
//! A waits for B if B holds, at the node where A waits, a mode that excludes A's, or waits there ahead of A for
//! one. A needs *all* of these to go, so a cycle of parties that are blocked at one moment stays for ever: only
//! one of them giving up resolves it. That is what makes a report never false; the ledger's invariants 1 and 2 give
//! that moment.
//!
//! A request that takes no refusal (`lock`, which can only panic) is not reported while somebody in its cycle
//! takes one (`try_lock_for`): that one will find the cycle too, or time out.
//!
//! Each waiter looks when it has waited for a little while, and again at growing intervals. The last to enter a cycle
//! finds it complete.
//!
//! Pure but for the entry that gathers the parties from a locked ledger. The idea: Gray 1978, "Notes on Data Base
//! Operating Systems" (waits-for graph); PostgreSQL (look only after a wait has lasted).

use crate::ledger::{Found, Key, LockedLedger, State};
use crate::mode::Mode;
use crate::node::Ticket;
use crate::path::{NodeId, TreePath};
use crate::request::Owner;
use std::collections::{HashMap, HashSet, VecDeque};

/// A blocked thread.
#[derive(Debug)]
struct Party {
    node: NodeId,
    ticket: Ticket,
    refusable: bool,
    /// Whether its own guards exclude its request: those of its thread do not exclude a plain one.
    own_guards_exclude: bool,
    /// What it holds of the nodes that anybody waits for.
    holds: Vec<(NodeId, Mode)>,
}

impl Party {
    fn waits_for(&self, other: &Party) -> bool {
        let itself = std::ptr::eq(self, other);
        let holder = (!itself || self.own_guards_exclude)
            && other.holds.iter().any(|&(node, mode)| node == self.node && !mode.compatible(self.ticket.mode));
        let ahead = !itself && self.node == other.node && self.ticket.waits_for(&other.ticket);
        holder || ahead
    }
}

/// The shortest cycle of waiting parties through `start`, which comes first.
fn cycle(parties: &[Party], start: usize) -> Option<Vec<usize>> {
    let may_belong = |&party: &usize| parties[start].refusable || !parties[party].refusable;
    let mut unseen: Vec<usize> = (0..parties.len()).filter(may_belong).collect();
    let mut came_from = HashMap::new();
    let mut next = VecDeque::from([start]);
    while let Some(at) = next.pop_front() {
        unseen.retain(|&other| {
            let found = parties[at].waits_for(&parties[other]);
            if found {
                came_from.insert(other, at);
                next.push_back(other);
            }
            !found
        });
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

/// One in a cycle: the request it waits with, and the granted ones by which it holds up the one before.
pub(crate) struct Member<P: TreePath + ?Sized> {
    pub(crate) waits: Found<P>,
    pub(crate) holds: Vec<Found<P>>,
}

/// The cycle that the entry waits in. Its mark is taken back, so that nobody else reports the same one.
pub(crate) fn find<P: TreePath + ?Sized>(mut ledger: LockedLedger<'_, P>, me: Key) -> Option<Vec<Member<P>>> {
    let mut parties = Vec::new();
    let mut keys = Vec::new();
    let mut by_thread = HashMap::new();
    for (key, entry) in ledger.entries() {
        if let State::Waiting(waiting) = &entry.state
            && !waiting.waiter.is_granted()
        {
            by_thread.insert(entry.request.thread.id, parties.len());
            keys.push(key);
            parties.push(Party {
                node: entry.request.plan.steps()[waiting.step].node,
                ticket: waiting.ticket,
                refusable: waiting.refusable,
                own_guards_exclude: entry.request.owner == Owner::Itself,
                holds: Vec::new(),
            });
        }
    }
    let awaited: HashSet<NodeId> = parties.iter().map(|party| party.node).collect();
    for (_, entry) in ledger.entries() {
        let pinned = match entry.state {
            State::Granted => entry.request.owner == Owner::Thread,
            State::Waiting(_) => true,
            State::Walking => false,
        };
        if let Some(&party) = by_thread.get(&entry.request.thread.id)
            && pinned
        {
            parties[party].holds.extend(entry.holds().filter(|(node, _)| awaited.contains(node)));
        }
    }
    let start = keys.iter().position(|&key| key == me)?;
    let cycle = cycle(&parties, start)?;
    let members = cycle
        .iter()
        .enumerate()
        .map(|(place, &party)| {
            let before = &parties[cycle[(place + cycle.len() - 1) % cycle.len()]];
            let mut member = None;
            let mut holds = Vec::new();
            for (key, entry) in ledger.entries() {
                if key == keys[party] {
                    member = Some(Found::of(entry));
                } else if matches!(entry.state, State::Granted)
                    && entry.request.owner == Owner::Thread
                    && by_thread.get(&entry.request.thread.id) == Some(&party)
                    && entry.holds().any(|(node, mode)| node == before.node && !mode.compatible(before.ticket.mode))
                {
                    holds.push(Found::of(entry));
                }
            }
            Member { waits: member.expect("a party was made from its entry"), holds }
        })
        .collect();
    ledger.stop_waiting(me);
    Some(members)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mode::ModeCounts;
    use crate::node::Node;
    use crate::path::{Seeds, Segments};
    use Mode::{Exclusive as X, Shared as S};

    fn id(name: &str) -> NodeId {
        let mut ids = Vec::new();
        Segments::of(name, &Seeds::new(|| 7), &mut ids, None).unwrap();
        ids[ids.len() - 1]
    }

    /// Waits alone in the queue of `node`, and holds something elsewhere.
    fn party(node: &str, mode: Mode, holds: &[(&str, Mode)]) -> Party {
        let mut queue = Node::default();
        assert!(queue.try_grant(X, &ModeCounts::NONE));
        Party {
            node: id(node),
            ticket: queue.enqueue(mode, ModeCounts::NONE, ()),
            refusable: false,
            own_guards_exclude: false,
            holds: holds.iter().map(|&(node, mode)| (id(node), mode)).collect(),
        }
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
        alone.own_guards_exclude = true;
        assert_eq!(cycle(std::slice::from_ref(&alone), 0), Some(vec![0]));
    }

    #[test]
    fn who_takes_no_refusal_leaves_the_report_to_who_does() {
        let mut parties = [party("b", X, &[("a", X)]), party("a", X, &[("b", X)])];
        parties[1].refusable = true;
        assert_eq!(cycle(&parties, 0), None);
        assert_eq!(cycle(&parties, 1), Some(vec![1, 0]));
    }
}
