//! Snapshots and reports of deadlocks, made from a locked ledger.
//!
//! What is reported is copied from the ledger while all of it is locked, and spelled out afterwards, since that calls
//! the paths' own code.

use crate::core::mode::Mode;
use crate::core::node_id::{NodeId, Seeds};
use crate::core::path::TreePath;
use crate::core::segments::{Names, Segments};
use crate::inspect::{Deadlock, Holder, Root, Snapshot, Waiter};
use crate::sync::Present;
use crate::thread::ledger::{Found, State};
use crate::thread::lock::TreeLock;
use crate::thread::parties::Member;
use std::collections::HashSet;

impl Snapshot {
    pub(crate) fn of<P: TreePath + ?Sized>(lock: &TreeLock<P>) -> Self {
        let ledger = lock.ledger.lock();
        let now = Present::now();
        let walking = |state: &State| matches!(state, State::Walking);
        let found: Vec<Found<P>> = ledger
            .entries()
            .filter(|(_, entry)| !walking(&entry.state))
            .map(|(_, entry)| Found::of(entry).named(&lock.owners))
            .collect();
        drop(ledger);
        let (mut holders, mut waiters) = (Vec::new(), Vec::new());
        for found in found {
            match found.waiting {
                Some(_) => waiters.push(waiter(&found, &lock.seeds, now)),
                None => holders.push(holder(&found, &lock.seeds, now)),
            }
        }
        Snapshot::new(now.time, holders, waiters)
    }
}

impl Deadlock {
    pub(crate) fn of<P: TreePath + ?Sized>(cycle: &[Member<P>], seeds: &Seeds) -> Self {
        let now = Present::now();
        let told = |member: &Member<P>| {
            let holds = member.holds.iter().map(|found| holder(found, seeds, now)).collect();
            (waiter(&member.waits, seeds, now), holds, member.taken)
        };
        Deadlock::new(cycle.iter().map(told).collect())
    }
}

/// What a guard holds.
pub(crate) fn roots<P: TreePath + ?Sized>(found: &Found<P>, seeds: &Seeds) -> Vec<Root> {
    spell(found, seeds).roots
}

fn holder<P: TreePath + ?Sized>(found: &Found<P>, seeds: &Seeds, now: Present) -> Holder {
    Holder {
        process: None,
        owner: found.owner.clone(),
        thread: found.request.thread.name.clone(),
        location: found.request.location.to_string(),
        since: now.time_of(found.since),
        roots: spell(found, seeds).roots,
    }
}

fn waiter<P: TreePath + ?Sized>(found: &Found<P>, seeds: &Seeds, now: Present) -> Waiter {
    let Spelled { roots, at, taken } = spell(found, seeds);
    Waiter {
        process: None,
        owner: found.owner.clone(),
        thread: found.request.thread.name.clone(),
        location: found.request.location.to_string(),
        since: now.time_of(found.since),
        roots,
        at: at.unwrap_or(Root { segments: Vec::new(), mode: Mode::IntentionShared }),
        taken,
    }
}

/// The roots that count, the node waited at, and the roots that a waiting request has already.
#[derive(Default)]
struct Spelled {
    roots: Vec<Root>,
    at: Option<Root>,
    taken: Vec<Root>,
}

fn spell<P: TreePath + ?Sized>(found: &Found<P>, seeds: &Seeds) -> Spelled {
    use std::borrow::Borrow;
    let plan = &found.request.plan;
    let mut spelled = Spelled::default();
    let mut seen: HashSet<NodeId> = HashSet::new();
    for root in &found.request.roots {
        let (mut ids, mut names) = (Vec::new(), Names::default());
        // The path was usable when it was asked for; if it no longer is, it is left out.
        if Segments::of::<P>(root.borrow(), seeds, &mut ids, Some(&mut names)).is_err() {
            continue;
        }
        let names = names.to_vec();
        if let (None, Some((step, mode))) = (&spelled.at, found.waiting) {
            let depth = ids.iter().position(|&id| id == plan.steps()[step].node);
            spelled.at = depth.map(|depth| Root { segments: names[..depth].to_vec(), mode });
        }
        let mode = |depth| {
            let index = plan.index(ids[depth], depth)?;
            Some((index, plan.steps()[index].mode))
        };
        let last = ids.len() - 1;
        // A root that lies in another one is not in the plan, or only as an intention.
        let Some((index, mine)) = mode(last).filter(|(_, mine)| mine.covers(Mode::Shared)) else { continue };
        if seen.insert(ids[last]) {
            let root = Root { segments: names, mode: mine };
            if found.waiting.is_some_and(|(step, _)| index < step) {
                spelled.taken.push(root.clone());
            }
            spelled.roots.push(root);
        }
    }
    spelled
}
