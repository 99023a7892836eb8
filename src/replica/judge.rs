//! Judges a replica by what is seen of it before and after each event: in which order requests are served (G3), and who
//! watches whom (invariant 4 of the replica).
//!
//! It has an order of its own, that in which requests began to wait, and knows the rules of `node.rs` without its code;
//! between requests of one root each the specification decides.

#[path = "../../model/spec.rs"]
pub(crate) mod spec;

use super::{Channel, MemberId, Replica, Request, RequestId, Step};
use crate::core::mode::Mode;
use crate::core::node_id::{NodeId, Seeds};
use crate::core::owner::Owner;
use crate::core::plan::Plan;
use spec::Way;
use std::collections::{BTreeMap, BTreeSet};

/// What the requests ask for; with each its ancestors.
pub(super) const PATHS: [&str; 5] = ["", "a", "a/b", "a/b/c", "d"];

/// See the header.
#[derive(Default)]
pub(super) struct Judge {
    /// By request.
    asked: BTreeMap<RequestId, spec::Request>,
    /// Those that have begun to wait, in that order.
    began: Vec<RequestId>,
    /// By request, those that have to be served before it (`spec.rs`).
    first: BTreeMap<RequestId, Vec<RequestId>>,
    /// By waiting request, the members that it watches.
    watched: BTreeMap<RequestId, BTreeSet<MemberId>>,
}

impl Judge {
    /// Its place in the order of all that wait, or later than all.
    fn place(&self, id: RequestId) -> usize {
        self.began.iter().position(|&began| began == id).unwrap_or(usize::MAX)
    }

    /// Those that are ahead of a request at a node come before this: as a conversion it goes just before the first that waits
    /// for what its owner holds there (rule 3).
    fn place_there(&self, queue: &[(RequestId, Mode)], id: RequestId, held: &[Mode]) -> (usize, bool, usize) {
        let waits_for_it = queue.iter().filter(|(_, mode)| held.iter().any(|held| !held.compatible(*mode)));
        let place = self.place(id);
        let first = waits_for_it.map(|&(first, _)| self.place(first)).fold(place, usize::min);
        (first, first == place, place)
    }

    /// Judges one event, which told these that they were moved.
    pub(super) fn judge(&mut self, before: &Replica, after: &Replica, moved: &[(MemberId, Channel)]) {
        let waiting = after.requests.values().filter(|request| !request.is_granted());
        self.began.extend(waiting.map(|request| request.ask.id).find(|id| !self.began.contains(id)));
        for request in after.requests.values() {
            self.judge_order(before, after, request);
            self.judge_watch(before, after, moved, request);
        }
    }

    /// G3: whoever is served where an earlier one waits that excludes it has a right to that.
    fn judge_order(&mut self, before: &Replica, after: &Replica, served: &Request) {
        let id = served.ask.id;
        let was = before.requests.get(&id);
        for step in &served.taken()[was.map_or(0, |was| was.progress.taken)..] {
            let held = held_there(before, served, step.node);
            let is_covered = held.iter().copied().reduce(Mode::join).is_some_and(|held| held.covers(step.mode));
            let (queue, stay) = (waiting_there(before, step.node), waiting_there(after, step.node));
            let (first, ..) = self.place_there(&[&queue[..], &stay].concat(), id, &held);
            for &(passed, mode) in stay.iter().filter(|waits| queue.contains(waits) && !is_covered) {
                let is_fair = mode.compatible(step.mode) || first <= self.place(passed);
                assert!(is_fair, "{id:?} passes {passed:?} (rules 1 and 3 of `node.rs`)");
            }
        }
        if was.is_none() {
            self.asked.insert(id, request_of(served));
            let waits_first = |waits: &Request| {
                let at = Way::of_text(path_of(waits.waits_at()?.node));
                self.asked[&waits.ask.id].goes_before(&at, &self.asked[&id]).then_some(waits.ask.id)
            };
            if before.requests.values().all(|other| !is_same_owner(other, served)) {
                self.first.insert(id, before.requests.values().filter_map(|waits| waits_first(waits)).collect());
            }
        }
        if served.is_granted() {
            for first in self.first.remove(&id).unwrap_or_default() {
                let waits = after.requests.get(&first).is_some_and(|first| !first.is_granted());
                assert!(!waits, "{id:?} is served before {first:?} (`goes_before` of `spec.rs`)");
            }
        }
    }

    /// Invariant 4: it watches all that can hold it up since it came to its queue, or was told.
    fn judge_watch(&mut self, before: &Replica, after: &Replica, moved: &[(MemberId, Channel)], waits: &Request) {
        let id = waits.ask.id;
        let Some(at) = waits.waits_at() else { return };
        let stays = before.requests.get(&id).is_some_and(|was| was.waits_at() == Some(at));
        if !stays || waits.ask.channel.is_some_and(|channel| moved.contains(&(id.member, channel))) {
            self.watched.insert(id, after.in_the_way(id));
        }
        let queue = waiting_there(after, at.node);
        let place =
            |request: &Request| self.place_there(&queue, request.ask.id, &held_there(after, request, at.node));
        let excludes = |step: &Step| step.node == at.node && !step.mode.compatible(at.mode);
        let watched = &self.watched[&id];
        for other in after.requests.values().filter(|other| other.ask.id.member != id.member) {
            let is_ahead = other.waits_at().is_some_and(|step| excludes(&step)) && place(other) < place(waits);
            if is_ahead || other.taken().iter().any(excludes) {
                let holds_up = other.ask.id;
                assert!(
                    watched.contains(&holds_up.member),
                    "{id:?} watches {watched:?}, not {holds_up:?} (invariant 4)"
                );
            }
        }
    }
}

fn path_of(node: NodeId) -> &'static str {
    let mut plan = Plan::default();
    let mut is_it = |path: &&str| {
        plan.build::<str, _, _>(&Seeds::new(|| 7), &[path], &[""; 0]).unwrap();
        plan.steps().last().is_some_and(|root| root.node == node)
    };
    PATHS.into_iter().find(|path| is_it(path)).expect("it is one of them or above one")
}

/// What it asks for, by plain paths.
fn request_of(request: &Request) -> spec::Request {
    let roots = |is_root: fn(Mode) -> bool| {
        let roots = request.ask.steps.iter().filter(|step| is_root(step.mode));
        roots.map(|root| path_of(root.node)).collect::<Vec<_>>()
    };
    let reads = roots(|mode| matches!(mode, Mode::Shared | Mode::SharedIntentionExclusive));
    spec::Request::of_text(&reads, &roots(|mode| mode == Mode::Exclusive))
}

/// Who waits at a node, and for which mode.
fn waiting_there(replica: &Replica, node: NodeId) -> Vec<(RequestId, Mode)> {
    let there = |request: &Request| Some((request.ask.id, request.waits_at().filter(|at| at.node == node)?.mode));
    replica.requests.values().filter_map(|request| there(request)).collect()
}

fn is_same_owner(one: &Request, other: &Request) -> bool {
    let owner = |request: &Request| {
        (request.ask.owner == Owner::Thread).then_some((request.ask.id.member, request.ask.thread))
    };
    owner(one).is_some() && owner(one) == owner(other)
}

/// The modes in which the owner of a request has a node by its guards.
fn held_there(replica: &Replica, request: &Request, node: NodeId) -> Vec<Mode> {
    let guards = replica.requests.values().filter(|other| other.is_granted() && other.ask.id != request.ask.id);
    let own = guards.filter(|guard| is_same_owner(guard, request));
    own.flat_map(|guard| guard.taken()).filter(|step| step.node == node).map(|step| step.mode).collect()
}
