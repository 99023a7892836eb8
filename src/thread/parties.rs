//! The parties of a search for deadlocks, gathered from a locked ledger. The search itself is in `core/deadlock.rs`.

use crate::core::deadlock::{Left, Party, cycle_through};
use crate::core::mode::Mode;
use crate::core::node_id::NodeId;
use crate::core::owner::OwnerId;
use crate::core::path::TreePath;
use crate::thread::ledger::{Entry, Found, Key, LockedLedger, State};
use crate::thread::owner::OwnerNames;
use crate::thread::waiter::Sleeper;
use std::collections::{HashMap, HashSet};

/// A party of a cycle: the request that it waits with, and its granted requests that hold up the party before.
pub(crate) struct Member<P: TreePath + ?Sized> {
    pub(crate) waits: Found<P>,
    pub(crate) holds: Vec<Found<P>>,
    /// The mode of a step that its request has taken and that holds up the party before, if there is one.
    pub(crate) taken: Option<Mode>,
}

/// Finds the cycle that the entry waits in and has to report, and marks the entry, so that no other request reports the same cycle.
pub(crate) fn find<P: TreePath + ?Sized>(
    mut ledger: LockedLedger<'_, P>,
    me: Key,
    names: &OwnerNames,
    left: &mut Left,
) -> Option<Vec<Member<P>>> {
    let mut parties = Vec::new();
    let mut keys = Vec::new();
    let mut owners = Vec::new();
    let mut pinned_by: HashMap<OwnerId, usize> = HashMap::new();
    for (key, entry) in ledger.entries() {
        let State::Waiting(waiting) = &entry.state else { continue };
        let Some(ticket) = waiting.blocked() else { continue };
        // Its owner is borrowed, and its thread is blocked, unless it is that of a task: neither releases anything
        // meanwhile.
        if waiting.waiter.sleeper == Sleeper::Thread {
            pinned_by.insert(entry.request.thread.id, parties.len());
        }
        owners.push(entry.owner());
        pinned_by.extend(entry.owner().map(|owner| (owner, parties.len())));
        keys.push(key);
        let node = entry.request.plan.steps()[waiting.step].node;
        parties.push(Party::new(node, ticket, waiting.waiter.temper));
    }
    let awaited: HashSet<NodeId> = parties.iter().map(Party::node).collect();
    let pins = |entry: &Entry<P>| pinned_by.get(&entry.owner().filter(|_| entry.is_granted())?).copied();
    let mut waits = 0;
    for (key, entry) in ledger.entries() {
        let pinned = if let Some(party) = pins(entry) {
            match owners[party] == entry.owner() {
                true => &mut parties[party].own_guards,
                false => &mut parties[party].other_guards,
            }
        } else if keys.get(waits) == Some(&key) {
            waits += 1;
            &mut parties[waits - 1].steps
        } else {
            continue;
        };
        pinned.extend(entry.holds().filter(|(node, _)| awaited.contains(node)));
    }
    let start = keys.iter().position(|&key| key == me)?;
    let cycle = cycle_through(&mut parties, start, left)?;
    let members = cycle
        .iter()
        .enumerate()
        .map(|(place, &party)| {
            let before = &parties[cycle[(place + cycle.len() - 1) % cycle.len()]];
            let holds_up = |held: &(NodeId, Mode)| before.is_excluded_by(held);
            let taken = parties[party].steps.iter().copied().find(holds_up).map(|(_, mode)| mode);
            let mut waits = None;
            let mut holds = Vec::new();
            for (key, entry) in ledger.entries() {
                if key == keys[party] {
                    waits = Some(Found::of(entry).named(names));
                } else if pins(entry) == Some(party) && entry.holds().any(|held| holds_up(&held)) {
                    holds.push(Found::of(entry).named(names));
                }
            }
            Member { waits: waits.expect("a party was made from its entry"), holds, taken }
        })
        .collect();
    ledger.report(me);
    Some(members)
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    /// G2, in a real ledger: plain guards belong to their thread, and `Arc` guards to no thread.
    #[test]
    fn wait_for_an_own_plain_guard_is_reported_and_for_an_own_arc_guard_is_not() {
        use crate::{LockError, TreeLock};
        use std::time::Duration;
        let lock = std::sync::Arc::new(TreeLock::<str>::default());
        let _nests = lock.write("a");
        let refused = lock.try_lock_arc_for(&["a"], &[], Duration::from_secs(5));
        let Err(LockError::Deadlock(report)) = refused else { panic!("{refused:?}") };
        assert_eq!((report.parties.len(), report.parties[0].holds.len()), (1, 1));
        let _anybodys = lock.lock_arc(&[], &["b"]);
        let refused = lock.try_lock_arc_for(&["b"], &[], Duration::from_millis(500));
        assert!(matches!(refused, Err(LockError::TimedOut)), "{refused:?}");
    }
}
