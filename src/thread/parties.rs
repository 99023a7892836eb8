//! The parties of a search for deadlocks, gathered from a locked ledger. The search itself is in `core/deadlock.rs`.

use crate::core::deadlock::{Party, cycle_through};
use crate::core::mode::Mode;
use crate::core::node_id::NodeId;
use crate::core::owner::Owner;
use crate::core::path::TreePath;
use crate::thread::ledger::{Found, Key, LockedLedger, State};
use std::collections::{HashMap, HashSet};

/// One in a cycle: the request it waits with, and the granted ones by which it holds up the one before.
pub(crate) struct Member<P: TreePath + ?Sized> {
    pub(crate) waits: Found<P>,
    pub(crate) holds: Vec<Found<P>>,
    /// The mode by which the steps that its request has taken do the same.
    pub(crate) taken: Option<Mode>,
}

/// The cycle that the entry waits in. Its mark is taken back, so that nobody else reports the same one.
pub(crate) fn find<P: TreePath + ?Sized>(mut ledger: LockedLedger<'_, P>, me: Key) -> Option<Vec<Member<P>>> {
    let mut parties = Vec::new();
    let mut keys = Vec::new();
    let mut by_thread = HashMap::new();
    for (key, entry) in ledger.entries() {
        let State::Waiting(waiting) = &entry.state else { continue };
        if waiting.waiter.is_granted() {
            continue;
        }
        by_thread.insert(entry.request.thread.id, parties.len());
        keys.push(key);
        let node = entry.request.plan.steps()[waiting.step].node;
        parties.push(Party::new(node, waiting.ticket, waiting.temper, entry.request.owner));
    }
    let awaited: HashSet<NodeId> = parties.iter().map(Party::node).collect();
    for (_, entry) in ledger.entries() {
        let Some(&party) = by_thread.get(&entry.request.thread.id) else { continue };
        let pinned = match entry.state {
            State::Granted if entry.request.owner == Owner::Thread => &mut parties[party].guards,
            State::Waiting(_) => &mut parties[party].steps,
            State::Granted | State::Walking => continue,
        };
        pinned.extend(entry.holds().filter(|(node, _)| awaited.contains(node)));
    }
    let start = keys.iter().position(|&key| key == me)?;
    let cycle = cycle_through(&mut parties, start)?;
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
                    waits = Some(Found::of(entry));
                } else if matches!(entry.state, State::Granted)
                    && entry.request.owner == Owner::Thread
                    && by_thread.get(&entry.request.thread.id) == Some(&party)
                    && entry.holds().any(|held| holds_up(&held))
                {
                    holds.push(Found::of(entry));
                }
            }
            Member { waits: waits.expect("a party was made from its entry"), holds, taken }
        })
        .collect();
    ledger.stop_waiting(me);
    Some(members)
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    /// G2, by a look at a real ledger: plain guards are their thread's, and `Arc` guards are nobody's.
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
