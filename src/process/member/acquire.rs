//! The way of a request: tried, queued, waited for, given up.
//!
//! ```text
//!  plan ──> try ──┬── granted
//!                 └── channel ──> ask ──> wait ─┬── granted
//!                                     ^         ├── in a deadlock, out of time, cannot wait ──> withdrawn
//!                                     └─ poll ──┘
//! ```
//!
//! Whenever a waiter goes on, for whatever reason, it looks at its request in the table: only the table decides.
//! `mod.rs` lists the reasons.
//!
//! Not here: which request is next (`replica/`); how the others are watched (`watch.rs`).

use super::change::Change;
use super::watch::{Other, Polled};
use super::{Member, now};
use crate::core::owner::Owner;
use crate::core::path::{Frame, TreePath, common_frame, odd_frame};
use crate::inspect::Deadlock;
use crate::patience::{FIRST_LOOK, Patience, next_look};
use crate::process::error::{FileError, ProcessLockError};
use crate::process::journal::Limit;
use crate::replica::report;
use crate::replica::{Ask, Event, RequestId};
use rustix::fd::OwnedFd;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What became of a request that does not wait yet.
enum Tried {
    Granted(RequestId),
    /// It may be granted once the dead among these members are buried.
    Refused {
        ask: Ask,
        others: Vec<Other>,
        /// An error if the table does not say what others have noted.
        seen: Result<(), FileError>,
    },
    OddFrame,
}

/// What became of a waiting request.
enum Outcome {
    Granted,
    Waits {
        others: Vec<Other>,
    },
    Deadlock(Box<Deadlock>),
    /// The table does not say what others have noted.
    Failed(FileError),
}

impl Member {
    /// Gets a request granted, after a wait if one is needed.
    #[track_caller]
    pub(in crate::process) fn acquire<P, R, W>(
        self: &Arc<Self>,
        reads: &[R],
        writes: &[W],
        owner: Owner,
        patience: Patience,
    ) -> Result<RequestId, ProcessLockError>
    where
        P: TreePath + ?Sized,
        R: AsRef<P>,
        W: AsRef<P>,
    {
        let location = Location::caller();
        let paths = || reads.iter().map(AsRef::as_ref).chain(writes.iter().map(AsRef::as_ref));
        let frame = common_frame(paths())?;
        let mut ask = self.asking.plan::<P, R, W>(reads, writes, owner, location)?;
        ask.absolute = frame.map(|frame| frame == Frame::Absolute);
        let odd_frame = || ProcessLockError::from(odd_frame(paths()));
        let deadline = match patience {
            Patience::Until(deadline) => deadline,
            Patience::None | Patience::Endless => None,
        };
        let spare = match patience {
            Patience::None => None,
            _ => self.channels.take(),
        };
        let (number, channel) = match spare {
            Some(spare) => spare,
            // Most requests never wait. So a channel is made only after the first try.
            None => match self.try_acquire(ask, patience)? {
                Tried::Granted(id) => return Ok(id),
                Tried::OddFrame => return Err(odd_frame()),
                Tried::Refused { ask: back, .. } => {
                    ask = back;
                    let number = self.channels.next();
                    (number, self.directory.make_channel(self.id, number)?)
                }
            },
        };
        ask.channel = Some(number);
        let mut is_lost = false;
        let waited = self.wait(ask, deadline, &channel, &mut is_lost, odd_frame);
        if is_lost || !self.channels.keep(number, channel) {
            self.directory.remove_channel(self.id, number);
        }
        waited
    }

    /// Gets a request granted if that needs no waiting.
    fn try_acquire(&self, ask: Ask, patience: Patience) -> Result<Tried, ProcessLockError> {
        let limit = match patience {
            Patience::None => Limit::Stalled,
            Patience::Until(deadline) => deadline.into(),
            Patience::Endless => Limit::Never,
        };
        let mut ask = Some(ask);
        loop {
            let tried = self.change(limit, |change, requests| {
                let mut ask = ask.take().expect("a refused request comes back");
                let Some(id) = self.number(change, &mut ask, requests) else { return Tried::OddFrame };
                match change.try_ask(ask) {
                    None => Tried::Granted(id),
                    Some((ask, in_the_way)) => {
                        let seen = change.journal.check_seen(&self.directory);
                        Tried::Refused { ask, others: self.others(change, in_the_way), seen }
                    }
                }
            })?;
            match (tried, patience) {
                (Some(Tried::Refused { seen: Err(error), .. }), _) => return Err(error.into()),
                (Some(Tried::Refused { ask: back, others, .. }), Patience::None) => {
                    if !self.bury(&others, limit)? {
                        return Err(ProcessLockError::WouldBlock);
                    }
                    ask = Some(back);
                }
                (Some(tried), _) => return Ok(tried),
                (None, Patience::None) => return Err(ProcessLockError::WouldBlock),
                (None, _) => return Err(ProcessLockError::TimedOut),
            }
        }
    }

    /// Gives a request its number and its time; returns `None` if its paths are not in the frame of those that are
    /// held or awaited (invariant 2 of `path.rs`).
    fn number(&self, change: &mut Change<'_>, ask: &mut Ask, requests: &mut u64) -> Option<RequestId> {
        let of_other_kind = ask.absolute.map(|absolute| change.replica.of_kind(!absolute)).unwrap_or_default();
        if !of_other_kind.is_empty() {
            let dead = self.dead_among(change, of_other_kind.iter().copied());
            let is_free = dead.len() == of_other_kind.len();
            change.bury(dead);
            if !is_free {
                return None;
            }
        }
        *requests += 1;
        ask.id = RequestId { member: self.id, number: *requests };
        ask.asked = now();
        Some(ask.id)
    }

    /// Puts a request into the queue, unless it is granted at once, and waits.
    fn wait(
        self: &Arc<Self>,
        mut ask: Ask,
        deadline: Option<Instant>,
        channel: &OwnedFd,
        is_lost: &mut bool,
        odd_frame: impl FnOnce() -> ProcessLockError,
    ) -> Result<RequestId, ProcessLockError> {
        let queued = self.change(deadline.into(), |change, requests| {
            let id = self.number(change, &mut ask, requests)?;
            change.add(Event::Ask(ask));
            Some((id, change.replica.is_nested(id), self.outcome(change, id, false)))
        })?;
        let (id, nested, mut outcome) = match queued {
            None => return Err(ProcessLockError::TimedOut),
            Some(None) => return Err(odd_frame()),
            Some(Some(queued)) => queued,
        };
        let mut look = nested.then(|| (Instant::now() + FIRST_LOOK, FIRST_LOOK));
        let mut was_woken = true;
        loop {
            let others = match outcome {
                Outcome::Granted => {
                    // Nobody could wake it: the file of that name is no longer its channel.
                    *is_lost = !was_woken;
                    return Ok(id);
                }
                Outcome::Deadlock(deadlock) => return Err(ProcessLockError::Deadlock(deadlock)),
                Outcome::Failed(error) => return self.give_up(id, error.into()),
                Outcome::Waits { others } => others,
            };
            let polled = self.poll(&others, channel, deadline, look.map(|(at, _)| at));
            let buried = polled.and_then(|Polled { ended, woken }| {
                was_woken = woken || !ended.is_empty();
                if ended.is_empty() { Ok(false) } else { self.bury(&ended, deadline.into()) }
            });
            if let Err(error) = buried {
                // The members in its way cannot be watched, so it would not learn of their end.
                return self.give_up(id, error.into());
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| now >= deadline) {
                return self.give_up(id, ProcessLockError::TimedOut);
            }
            let due = look.is_some_and(|(at, _)| now >= at);
            if let (true, Some((_, rest))) = (due, look) {
                let rest = next_look(rest);
                look = Some((now + rest, rest));
            }
            outcome = match self.change(deadline.into(), |change, _| self.outcome(change, id, due)) {
                Ok(Some(outcome)) => outcome,
                Ok(None) => return self.give_up(id, ProcessLockError::TimedOut),
                Err(error) => return self.give_up(id, error.into()),
            };
        }
    }

    fn outcome(&self, change: &mut Change<'_>, id: RequestId, look: bool) -> Outcome {
        while let Some(cycle) = look.then(|| change.replica.deadlock(id)).flatten() {
            // A dead member waits for nobody; and this waiter watches only the members at its own node.
            let dead = self.dead_among(change, cycle.iter().map(|party| party.waits.member));
            if dead.is_empty() {
                let report = report::deadlock(change.replica, &cycle);
                change.add(Event::Withdraw(id, now()));
                return Outcome::Deadlock(Box::new(report));
            }
            change.bury(dead);
        }
        // A change that is written is checked when it is written.
        if change.journal.is_unchanged() {
            if let Err(error) = change.journal.check_seen(&self.directory) {
                return Outcome::Failed(error);
            }
        }
        if change.is_granted(id) {
            self.note_grant(change);
            return Outcome::Granted;
        }
        Outcome::Waits { others: self.others(change, change.replica.in_the_way(id)) }
    }

    /// Notes a grant by another member, whose own note may go with it (invariant 3 of `journal/mod.rs`).
    fn note_grant(&self, change: &mut Change<'_>) {
        if change.journal.is_unchanged() {
            change.journal.note_seen(&self.directory);
        }
    }

    /// Withdraws a waiting request. If it was granted at the last moment, it stays granted.
    fn give_up(self: &Arc<Self>, id: RequestId, error: ProcessLockError) -> Result<RequestId, ProcessLockError> {
        // Its deadline has passed, and another member may be stopped with the table.
        let soon = Instant::now() + Duration::from_millis(5);
        let given_up = self.change(Limit::At(soon), |change, _| {
            let granted = change.is_granted(id) && change.journal.check_seen(&self.directory).is_ok();
            match granted {
                true => self.note_grant(change),
                false => change.add(Event::Withdraw(id, now())),
            }
            granted
        });
        match given_up {
            Ok(Some(true)) => Ok(id),
            Ok(Some(false)) => Err(error),
            Ok(None) | Err(_) => {
                self.left_over.lock().push(id);
                let member = Arc::clone(self);
                // The request is withdrawn as soon as the table can be locked.
                let _ = std::thread::Builder::new().spawn(move || member.change(Limit::Never, |_, _| ()));
                Err(error)
            }
        }
    }
}
