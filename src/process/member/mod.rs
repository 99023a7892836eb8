//! A member: a process that has opened a lock, its requests, how they wait, and how it sees that others are dead.
//!
//! All that members agree on is read and changed in a *change*: under the mutex of this member, then the `flock` of
//! the table, with the replica brought up to date. The result is written, both locks are released, and then others
//! are woken. A waiter has no lock while it waits. It polls, without a thread of its own, until one of these:
//!
//! - its channel has a byte: another member has moved it, to its grant or to another queue;
//! - the lifeline of a member that could be in its way has ended: it *buries* that member, for everybody;
//! - its deadline has passed, or it is time to look for a deadlock;
//! - a second has passed, in case a wake-up was lost: because a file was removed, or because the member that owes it
//!   is stopped, or is dead while a child of it lives.
//!
//! If a member dies after it has applied an event and before it wakes the others, it was in their way, or had buried
//! a member that was. They watch both, so no wake-up is lost with a process (P1).
//!
//! | file | concept |
//! |---|---|
//! | `mod.rs` | the open lock: joins, changes, leaves |
//! | `acquire.rs` | the way of a request: tried, queued, waited for, given up |
//! | `change.rs` | one change, while the table is locked |
//! | `channels.rs` | the FIFOs by which waiters are woken |
//! | `watch.rs` | which other members live; the dead are buried |
//!
//! Lock order: the member's mutex, the table's `flock`, the map of lifelines. The channels, and the requests that are
//! left over, are locked on their own.

mod acquire;
mod change;
mod channels;
mod watch;

use super::error::{FileError, FileProblem};
use super::files::{self, Directory};
use super::journal::{Journal, Limit};
use super::{Options, crash, look};
use crate::inspect::{Root, Snapshot};
use crate::replica::ask::Asking;
use crate::replica::report;
use crate::replica::{About, Event, MemberId, Replica, RequestId};
use crate::sync::{self, Mutex};
use change::Change;
use channels::Channels;
use rustix::fd::OwnedFd;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use watch::Other;

/// How long a waiter polls before it looks at its request in any case.
const LOST_WAKE: Duration = Duration::from_secs(1);

/// How often a process tries to open a directory where no member lives and none makes the first table.
const ATTEMPTS: u32 = 10;

/// An open lock.
pub(super) struct Member {
    pub(super) directory: Directory,
    id: MemberId,
    process: u32,
    asking: Asking,
    lifeline: OwnedFd,
    shared: Mutex<Shared>,
    watched: Mutex<HashMap<Other, Arc<OwnedFd>>>,
    channels: Channels,
    /// Requests that could not be withdrawn when they should have been; the next change withdraws them.
    left_over: Mutex<Vec<RequestId>>,
}

struct Shared {
    journal: Journal,
    replica: Replica,
    /// The number of requests so far.
    requests: u64,
}

impl Member {
    pub(super) fn open(path: &Path, options: &Options) -> Result<Arc<Self>, FileError> {
        let deadline = options.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let begin = |directory: &Directory| Journal::begin(directory, sync::random_seed);
        let mut attempts = 0;
        let (directory, mut journal) = loop {
            attempts += 1;
            let directory = Directory::open(path, options.network_file_system, deadline, begin)?;
            match Journal::open(&directory) {
                Ok(journal) => break (directory, journal),
                // The process that was to make the table has died, or looked at the same moment as this one and
                // others.
                Err(error) if error.is_harm() && attempts < ATTEMPTS && !directory.has_living()? => {
                    drop(directory);
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error),
            }
        };
        let seeds = journal.seeds();
        let mut replica = Replica::default();
        if !journal.lock(&directory, &mut replica, deadline.into())? {
            return Err(journal.kept(&directory));
        }
        let mut change = Change::of(&mut journal, &mut replica);
        // Otherwise its lifeline could replace that of another member.
        change.journal.check_seen(&directory)?;
        let id = change.replica.next_member();
        let (lifeline, inode) = directory.make_lifeline(id)?;
        change.add(Event::Join(About::this_process(inode, user())));
        change.commit(&directory)?;
        drop(change);
        let member = Member {
            directory,
            id,
            process: std::process::id(),
            asking: Asking { seeds, location: options.location.clone() },
            lifeline,
            shared: Mutex::new(Shared { journal, replica, requests: 0 }),
            watched: Mutex::default(),
            channels: Channels::default(),
            left_over: Mutex::default(),
        };
        member.bury_all(deadline.into())?;
        Ok(Arc::new(member))
    }

    /// The number that no other member has.
    pub(super) fn id(&self) -> MemberId {
        self.id
    }

    /// Sets whether programs that this process starts inherit what is held here.
    pub(super) fn set_inheritable(&self, inheritable: bool) -> Result<(), FileError> {
        use rustix::io::{FdFlags, fcntl_setfd};
        let flags = if inheritable { FdFlags::empty() } else { FdFlags::CLOEXEC };
        fcntl_setfd(&self.lifeline, flags)
            .and_then(|()| fcntl_setfd(self.directory.as_fd(), flags))
            .map_err(|errno| files::io(self.directory.path(), "hand on", errno))
    }

    /// Makes this member look dead to the others.
    #[cfg(test)]
    pub(super) fn cut_lifeline(&mut self) {
        self.lifeline = std::fs::File::open("/dev/null").expect("it is always there").into();
    }

    /// Looks for the table's name with the next change.
    #[cfg(test)]
    pub(super) fn look_again(&self) {
        self.shared.lock().journal.look_again();
    }

    /// Runs `change` on the state that all members agree on, writes what it did, and wakes the waiters that it moved;
    /// returns `None` if the limit is reached first.
    fn change<R>(
        &self,
        limit: Limit,
        change: impl FnOnce(&mut Change<'_>, &mut u64) -> R,
    ) -> Result<Option<R>, FileError> {
        if std::process::id() != self.process {
            return Err(FileError::new(self.directory.path(), FileProblem::Forked));
        }
        let guard = match limit.first_end() {
            None => Some(self.shared.lock()),
            Some(end) => self.shared.try_lock_until(end),
        };
        let Some(mut guard) = guard else { return Ok(None) };
        let Shared { journal, replica, requests } = &mut *guard;
        if !journal.lock(&self.directory, replica, limit)? {
            return Ok(None);
        }
        let mut changed = Change::of(journal, replica);
        let left_over = std::mem::take(&mut *self.left_over.lock());
        left_over.iter().for_each(|&id| changed.add(Event::Withdraw(id, now())));
        let result = change(&mut changed, requests);
        if let Err(error) = changed.commit(&self.directory) {
            self.left_over.lock().extend(left_over);
            return Err(error);
        }
        let effects = std::mem::take(&mut changed.effects);
        drop(changed);
        drop(guard);
        for (member, channel) in effects.moved {
            crash::step();
            self.directory.wake(member, channel);
        }
        if !effects.left.is_empty() {
            let mut watched = self.watched.lock();
            watched.retain(|watched, _| !effects.left.contains(&watched.member));
            drop(watched);
            self.directory.remove_fifos(|member| effects.left.contains(&member));
        }
        Ok(Some(result))
    }

    /// All that members hold and await.
    pub(super) fn snapshot(&self) -> Result<Snapshot, FileError> {
        match look::look(&self.directory.as_others()?, report::snapshot) {
            // A change puts a table back, if that is possible.
            Err(error) if error.is_of_the_table() => {
                let changed = self.change(Limit::Stalled, |change, _| {
                    change.journal.check_seen(&self.directory).map(|()| report::snapshot(change.replica))
                });
                changed?.unwrap_or(Err(error))
            }
            looked => looked,
        }
    }

    /// The roots of a granted request, if no thread of this process is in the midst of a change.
    pub(super) fn roots(&self, id: RequestId) -> Option<Vec<Root>> {
        let shared = self.shared.try_lock()?;
        shared.replica.requests.get(&id).map(|request| report::roots(request))
    }

    /// Releases a granted request.
    pub(super) fn release(&self, id: RequestId) -> Result<(), FileError> {
        let released = self.change(Limit::Never, |change, _| change.add(Event::Withdraw(id, now())));
        if released.is_err() {
            self.left_over.lock().push(id);
        }
        released.map(|_| ())
    }

    /// Turns the writes of a granted request into reads.
    pub(super) fn downgrade(&self, id: RequestId) -> Result<(), FileError> {
        self.change(Limit::Never, |change, _| change.add(Event::Downgrade(id, now()))).map(|_| ())
    }

    /// Leaves, and releases what it still has. If that cannot be written now, the end of the lifeline tells the
    /// others.
    fn leave(&self) {
        let _ = self.change(Limit::Stalled, |change, _| change.add(Event::Leave(self.id, now())));
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Milliseconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The user's name, if the system's list of users has it, or the number.
fn user() -> String {
    let number = rustix::process::geteuid().as_raw().to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let name = fields.into_iter().find(|fields| fields.get(2) == Some(&&*number)).map(|fields| fields[0].to_owned());
    name.unwrap_or(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::ProcessTreeLock;
    use crate::process::journal::STALL;

    /// G4: others have the table, one after the other and each for long, as on an overloaded machine.
    #[test]
    fn try_waits_for_the_table_as_long_as_others_make_progress() {
        let directory = tempfile::tempdir().unwrap();
        let busy = ProcessTreeLock::open(directory.path()).unwrap();
        let lock = ProcessTreeLock::open(directory.path()).unwrap();
        let is_kept = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for turn in 0..5 {
                    let keep = |change: &mut Change<'_>, _: &mut u64| {
                        if turn == 0 {
                            is_kept.wait();
                        }
                        // An event that changes nothing, but is written.
                        change.add(Event::Withdraw(RequestId { member: change.replica.next_member(), number: 0 }, 0));
                        std::thread::sleep(STALL * 2 / 3);
                    };
                    busy.member.change(Limit::Never, keep).unwrap();
                }
            });
            is_kept.wait();
            assert!(lock.try_lock(&[], &["free"]).is_ok());
        });
    }
}
