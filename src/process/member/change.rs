//! One change of the state that all members agree on, made while the table is locked.
//!
//! A [`Change`] applies events to the replica and stages them in the journal. [`commit`](Change::commit) writes what was
//! staged; dropping the change unlocks the table, and makes the replica forget what was not written.
//!
//! Not here: how the table is locked, and which waiters are woken afterwards (`mod.rs`).

use crate::process::error::FileError;
use crate::process::files::Directory;
use crate::process::journal::Journal;
use crate::process::member::now;
use crate::replica::{Ask, Effects, Event, MemberId, Replica, RequestId};
use std::collections::BTreeSet;

pub(super) struct Change<'a> {
    pub(super) journal: &'a mut Journal,
    pub(super) replica: &'a mut Replica,
    pub(super) effects: Effects,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.journal.abandon();
        self.journal.unlock();
    }
}

impl<'a> Change<'a> {
    /// Begins a change of a table that is locked, and of a replica that is up to date.
    pub(super) fn of(journal: &'a mut Journal, replica: &'a mut Replica) -> Self {
        Change { journal, replica, effects: Effects::default() }
    }

    pub(super) fn add(&mut self, event: Event) {
        self.journal.stage(&event);
        self.replica.apply(event, &mut self.effects);
    }

    /// Writes what was added.
    pub(super) fn commit(&mut self, directory: &Directory) -> Result<(), FileError> {
        self.journal.commit(directory, self.replica)
    }

    /// Adds a request if it is granted at once. Otherwise nothing is added (invariant 2 of `replica.rs`), and the request
    /// comes back with the members that are in its way.
    pub(super) fn try_ask(&mut self, ask: Ask) -> Option<(Ask, BTreeSet<MemberId>)> {
        let id = ask.id;
        let event = Event::Ask(ask);
        let before = self.journal.staged();
        self.journal.stage(&event);
        self.replica.apply(event, &mut self.effects);
        if self.is_granted(id) {
            return None;
        }
        let in_the_way = self.replica.in_the_way(id);
        let back = self.replica.withdraw(id, 0, &mut self.effects);
        self.journal.unstage(before);
        back.map(|ask| (ask, in_the_way))
    }

    /// Releases all that these dead members have, unless another member has done so before.
    pub(super) fn bury(&mut self, dead: impl IntoIterator<Item = MemberId>) {
        for member in dead {
            if self.replica.members.contains_key(&member) {
                self.add(Event::Leave(member, now()));
            }
        }
    }

    pub(super) fn is_granted(&self, id: RequestId) -> bool {
        self.replica.requests.get(&id).is_some_and(|request| request.is_granted())
    }
}
