//! One who has opened a lock: its requests, how they wait, and how it sees that others are dead.
//!
//! All that members agree on is read and changed in a *change*: under the mutex of this member, then the `flock` of the
//! table, with the replica brought up to date; what comes of it is written, both are let go, and then others are woken. A
//! waiter has no lock while it waits. It polls, without a thread of its own, until one of these:
//!
//! - its channel has a byte: somebody has moved it;
//! - the lifeline of one who could be in its way has ended: it *buries* that member, for everybody;
//! - its deadline has passed, or it is time to look for a deadlock;
//! - a second has passed, in case that a wake was lost: with a file that somebody removed, or because who owes it is
//!   stopped, or dead while a child of it lives.
//!
//! Who applies an event and dies before it wakes the others was in their way, or had buried somebody who was, and both
//! they watch. So no wake is lost with a process (P1).
//!
//! Lock order: the member's mutex, the table's `flock`, the map of lifelines; the channels on their own.

use super::Options;
use super::error::{FileError, ProcessLockError};
use super::files::{self, Directory};
use super::journal::Journal;
use super::replica::{About, Ask, Channel, Effects, Event, MemberId, Replica, RequestId, Step};
use super::report::{self, Deadlock, Place, Snapshot, Told, ToldRoot};
use crate::core::node_id::Seeds;
use crate::core::owner::Owner;
use crate::core::path::PathError;
use crate::core::path::{Frame, TreePath, common_frame, odd_frame};
use crate::core::plan::Plan;
use crate::core::segments::Names;
use crate::patience::{FIRST_LOOK, LONGEST_LOOK, Patience};
use crate::sync::{self, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use std::collections::{BTreeSet, HashMap};
use std::panic::Location;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a `try` waits for the table, which others have for microseconds unless they are stopped there.
const TRY: Duration = Duration::from_millis(100);

/// See the header.
const LOST_WAKE: Duration = Duration::from_secs(1);

/// How often one comes anew to a directory where nobody lives and nobody has begun.
const ATTEMPTS: u32 = 10;

/// How often one looks again at who was seen to live where a lifeline is missing.
const LOOKS: u32 = 10;

/// An open lock.
pub(super) struct Member {
    pub(super) directory: Directory,
    id: MemberId,
    process: u32,
    seeds: Seeds,
    /// What is told instead of the place in the source.
    location: Option<String>,
    lifeline: OwnedFd,
    shared: Mutex<Shared>,
    watched: Mutex<HashMap<Other, Arc<OwnedFd>>>,
    channels: Mutex<Channels>,
    /// What could not be withdrawn when it should have been; the next change does it.
    left_over: Mutex<Vec<RequestId>>,
}

struct Shared {
    journal: Journal,
    replica: Replica,
    requests: u64,
}

#[derive(Default)]
struct Channels {
    spare: Vec<(Channel, OwnedFd)>,
    made: Channel,
}

/// A change of what all agree on; see the header of this file. The table is locked until it is dropped.
struct Change<'a> {
    journal: &'a mut Journal,
    replica: &'a mut Replica,
    effects: Effects,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.journal.abandon();
        self.journal.unlock();
    }
}

impl Change<'_> {
    fn add(&mut self, event: Event) {
        self.journal.stage(&event);
        self.replica.apply(event, &mut self.effects);
    }

    /// Writes what was added.
    fn commit(&mut self, directory: &Directory) -> Result<(), FileError> {
        self.journal.commit(directory, self.replica)
    }

    /// Adds a request if it is granted at once; else it is given back, as if it had never been (invariant 2 of
    /// `replica.rs`), with those who are in its way.
    fn try_ask(&mut self, ask: Ask) -> Option<(Ask, BTreeSet<MemberId>)> {
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

    /// Lets go of all that these have who are dead, if nobody has done so before.
    fn bury(&mut self, dead: impl IntoIterator<Item = MemberId>) {
        for member in dead {
            if self.replica.members.contains_key(&member) {
                self.add(Event::Leave(member, now()));
            }
        }
    }

    fn is_granted(&self, id: RequestId) -> bool {
        self.replica.requests.get(&id).is_some_and(|request| request.is_granted())
    }
}

/// What a request is told with. Its buffers are kept from one request to the next.
#[derive(Default)]
struct Planned {
    plan: Plan,
    names: Names,
}

/// Another member, and the inode of its lifeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Other {
    member: MemberId,
    lifeline: u64,
}

/// Another member, and what tells whether it lives.
struct Watched {
    member: Other,
    lifeline: Arc<OwnedFd>,
    is_new: bool,
}

/// Why a waiter went on.
struct Polled {
    ended: Vec<Other>,
    /// Whether there was a byte in its channel.
    woken: bool,
}

/// What became of a request that is not to wait yet.
enum Tried {
    Granted(RequestId),
    /// It may be granted when the dead ones of these are buried.
    Refused {
        ask: Ask,
        others: Vec<Other>,
        /// Whether the table says all that others have noted.
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
    /// The table says less than others have written.
    Failed(FileError),
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
                // Whoever was to begin has died, or looked at the same moment as this one and others.
                Err(error) if error.is_harm() && attempts < ATTEMPTS && !directory.has_living()? => {
                    drop(directory);
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error),
            }
        };
        let seeds = journal.seeds();
        let mut replica = Replica::default();
        if !journal.lock(&directory, &mut replica, deadline)? {
            return Err(journal.kept(&directory));
        }
        let mut change = Change { journal: &mut journal, replica: &mut replica, effects: Effects::default() };
        // Or else its lifeline would take the place of another's.
        change.journal.check_seen(&directory)?;
        let id = change.replica.next_member();
        let (lifeline, inode) = directory.make_lifeline(id)?;
        change.add(Event::Join(about_this_process(inode)));
        change.commit(&directory)?;
        drop(change);
        let member = Member {
            directory,
            id,
            process: std::process::id(),
            seeds,
            location: options.location.clone(),
            lifeline,
            shared: Mutex::new(Shared { journal, replica, requests: 0 }),
            watched: Mutex::default(),
            channels: Mutex::default(),
            left_over: Mutex::default(),
        };
        member.bury_all(deadline)?;
        Ok(Arc::new(member))
    }

    /// Whether children that this process starts keep what is held here.
    pub(super) fn set_inheritable(&self, inheritable: bool) -> Result<(), FileError> {
        use rustix::io::{FdFlags, fcntl_setfd};
        let flags = if inheritable { FdFlags::empty() } else { FdFlags::CLOEXEC };
        fcntl_setfd(&self.lifeline, flags)
            .and_then(|()| fcntl_setfd(self.directory.as_fd(), flags))
            .map_err(|errno| files::io(self.directory.path(), "hand on", errno))
    }

    /// Ends its life in the eyes of the others.
    #[cfg(test)]
    pub(super) fn cut_lifeline(&mut self) {
        self.lifeline = std::fs::File::open("/dev/null").expect("it is always there").into();
    }

    /// Looks for the table's name with the next change.
    #[cfg(test)]
    pub(super) fn look_again(&self) {
        self.shared.lock().journal.look_again();
    }

    /// Runs `change` on what all agree on, and writes and tells what it did; `None` if the deadline passes before.
    fn change<R>(
        &self,
        deadline: Option<Instant>,
        change: impl FnOnce(&mut Change<'_>, &mut u64) -> R,
    ) -> Result<Option<R>, FileError> {
        if std::process::id() != self.process {
            return Err(FileError::new(self.directory.path(), super::FileProblem::Forked));
        }
        let guard = match deadline {
            None => Some(self.shared.lock()),
            Some(deadline) => self.shared.try_lock_until(deadline),
        };
        let Some(mut guard) = guard else { return Ok(None) };
        let Shared { journal, replica, requests } = &mut *guard;
        if !journal.lock(&self.directory, replica, deadline)? {
            return Ok(None);
        }
        let mut changed = Change { journal, replica, effects: Effects::default() };
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
            super::crash::step();
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

    /// Takes a request, or waits for it.
    #[track_caller]
    pub(super) fn acquire<P, Q>(
        self: &Arc<Self>,
        reads: &[Q],
        writes: &[Q],
        owner: Owner,
        patience: Patience,
    ) -> Result<RequestId, ProcessLockError>
    where
        P: TreePath + ?Sized,
        Q: AsRef<P>,
    {
        let location = Location::caller();
        let frame = common_frame(reads.iter().chain(writes).map(AsRef::as_ref))?;
        let mut ask = self.plan::<P, Q>(reads, writes, owner, location)?;
        ask.absolute = frame.map(|frame| frame == Frame::Absolute);
        let odd_frame = || {
            let first = reads.iter().chain(writes).next().expect("a request without paths is of no frame");
            ProcessLockError::from(odd_frame(first.as_ref()))
        };
        let deadline = match patience {
            Patience::None => Some(Instant::now() + TRY),
            Patience::Until(deadline) => deadline,
            Patience::Endless => None,
        };
        let spare = match patience {
            Patience::None => None,
            _ => self.channels.lock().spare.pop(),
        };
        let (number, channel) = match spare {
            Some(spare) => spare,
            // Most who never wait need no channel.
            None => match self.try_acquire(ask, patience, deadline)? {
                Tried::Granted(id) => return Ok(id),
                Tried::OddFrame => return Err(odd_frame()),
                Tried::Refused { ask: back, .. } => {
                    ask = back;
                    self.make_channel()?
                }
            },
        };
        ask.channel = Some(number);
        let mut is_lost = false;
        let waited = self.wait(ask, deadline, &channel, &mut is_lost, odd_frame);
        if is_lost {
            self.directory.remove_channel(self.id, number);
        } else {
            self.channels.lock().spare.push((number, channel));
        }
        waited
    }

    /// Takes a request, if that needs no waiting.
    fn try_acquire(
        &self,
        ask: Ask,
        patience: Patience,
        deadline: Option<Instant>,
    ) -> Result<Tried, ProcessLockError> {
        let mut ask = Some(ask);
        loop {
            let tried = self.change(deadline, |change, requests| {
                let mut ask = ask.take().expect("who is refused gets it back");
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
                    if !self.bury(&others, deadline)? {
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

    /// Gives a request its number and its time; `None` if its paths cannot be compared with those before (invariant 3 of
    /// `path.rs`).
    fn number(&self, change: &Change<'_>, ask: &mut Ask, requests: &mut u64) -> Option<RequestId> {
        let agreed = change.replica.absolute;
        if agreed.is_some_and(|agreed| ask.absolute.is_some_and(|absolute| absolute != agreed)) {
            return None;
        }
        *requests += 1;
        ask.id = RequestId { member: self.id, number: *requests };
        ask.asked = now();
        Some(ask.id)
    }

    /// Takes a request, or queues and waits.
    fn wait(
        self: &Arc<Self>,
        mut ask: Ask,
        deadline: Option<Instant>,
        channel: &OwnedFd,
        is_lost: &mut bool,
        odd_frame: impl FnOnce() -> ProcessLockError,
    ) -> Result<RequestId, ProcessLockError> {
        let queued = self.change(deadline, |change, requests| {
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
                    // Nobody could tell: its channel is no longer the one of that name.
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
                if ended.is_empty() { Ok(false) } else { self.bury(&ended, deadline) }
            });
            if let Err(error) = buried {
                // A wait that cannot be kept up is given up.
                return self.give_up(id, error.into());
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| now >= deadline) {
                return self.give_up(id, ProcessLockError::TimedOut);
            }
            let due = look.is_some_and(|(at, _)| now >= at);
            if let (true, Some((_, rest))) = (due, look) {
                let rest = (rest * 2).min(LONGEST_LOOK);
                look = Some((now + rest, rest));
            }
            outcome = match self.change(deadline, |change, _| self.outcome(change, id, due)) {
                Ok(Some(outcome)) => outcome,
                Ok(None) => return self.give_up(id, ProcessLockError::TimedOut),
                Err(error) => return self.give_up(id, error.into()),
            };
        }
    }

    fn outcome(&self, change: &mut Change<'_>, id: RequestId, look: bool) -> Outcome {
        while let Some(cycle) = look.then(|| change.replica.deadlock(id)).flatten() {
            // The dead wait for nobody; and this one watches only those at its own node.
            let dead = self.dead_among(change, cycle.iter().map(|party| party.waits.member));
            if dead.is_empty() {
                let report = report::deadlock(change.replica, &cycle);
                change.add(Event::Withdraw(id, now()));
                return Outcome::Deadlock(Box::new(report));
            }
            change.bury(dead);
        }
        // What is written is checked then.
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

    /// A grant by others, whose own note of that may go with them.
    fn note_grant(&self, change: &mut Change<'_>) {
        if change.journal.is_unchanged() {
            change.journal.note_seen(&self.directory);
        }
    }

    /// The lifelines of members, which are about to be watched.
    fn others(&self, change: &Change<'_>, members: impl IntoIterator<Item = MemberId>) -> Vec<Other> {
        let known = &change.replica.members;
        let mut watched = self.watched.lock();
        // Of those who have left, as seen by others, there is nothing more to see.
        if watched.len() > 2 * known.len() {
            watched.retain(|watched, _| known.contains_key(&watched.member));
        }
        let other = |member| Some(Other { member, lifeline: known.get(&member)?.lifeline });
        members.into_iter().filter_map(other).collect()
    }

    /// Withdraws a request that waits; if it was granted in the last moment, it is taken.
    fn give_up(self: &Arc<Self>, id: RequestId, error: ProcessLockError) -> Result<RequestId, ProcessLockError> {
        // Somebody may be stopped with the table; the deadline of this one has passed all the same.
        let soon = Instant::now() + Duration::from_millis(5);
        let given_up = self.change(Some(soon), |change, _| {
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
                // It is withdrawn as soon as that can be.
                let _ = std::thread::Builder::new().spawn(move || member.change(None, |_, _| ()));
                Err(error)
            }
        }
    }

    /// Waits for a byte in the channel, the end of a member, or a time.
    fn poll(
        &self,
        others: &[Other],
        channel: &OwnedFd,
        deadline: Option<Instant>,
        look: Option<Instant>,
    ) -> Result<Polled, FileError> {
        let watched = self.watch(others, deadline)?;
        if watched.len() < others.len() {
            // Some have left, and may have died before they could wake this one: it looks again.
            return Ok(Polled { ended: Vec::new(), woken: true });
        }
        // A FIFO that nobody writes any more when it is opened never says that it has ended.
        let ended = watched.iter().filter(|watched| watched.is_new && !files::is_alive(&watched.lifeline));
        let ended: Vec<Other> = ended.map(|watched| watched.member).collect();
        if !ended.is_empty() {
            return Ok(Polled { ended, woken: false });
        }
        let mut polled = vec![PollFd::new(channel, PollFlags::IN)];
        polled.extend(watched.iter().map(|watched| PollFd::new(&*watched.lifeline, PollFlags::empty())));
        let until = [deadline, look].into_iter().flatten().min();
        let rest = until.map_or(LOST_WAKE, |until| until.saturating_duration_since(Instant::now()).min(LOST_WAKE));
        let rest = Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: rest.subsec_nanos().into() };
        let events = match poll(&mut polled, Some(&rest)) {
            Ok(events) => events,
            Err(rustix::io::Errno::INTR) => 0,
            Err(errno) => return Err(files::io(self.directory.path(), "poll in", errno)),
        };
        let woken = files::drain(channel);
        let ended = polled[1..].iter().zip(&watched).filter(|(polled, watched)| {
            // Nothing at all for so long: another thread may have opened this one when it was over.
            !polled.revents().is_empty() || (events == 0 && !files::is_alive(&watched.lifeline))
        });
        Ok(Polled { ended: ended.map(|(_, watched)| watched.member).collect(), woken })
    }

    /// The lifelines of members, opened once for each; without those who have left meanwhile.
    fn watch(&self, members: &[Other], deadline: Option<Instant>) -> Result<Vec<Watched>, FileError> {
        let mut found = Vec::with_capacity(members.len());
        let mut missing = Vec::new();
        let mut watched = self.watched.lock();
        for &member in members {
            if let Some(lifeline) = watched.get(&member) {
                found.push(Watched { member, lifeline: Arc::clone(lifeline), is_new: false });
            } else if let Some(lifeline) = self.directory.watch(member.member, member.lifeline)?.map(Arc::new) {
                watched.insert(member, Arc::clone(&lifeline));
                found.push(Watched { member, lifeline, is_new: true });
            } else {
                missing.push(member);
            }
        }
        drop(watched);
        if !missing.is_empty() {
            // Who leaves says so before its lifeline is removed.
            let still = self.change(deadline, |change, _| {
                missing.into_iter().find(|missing| change.replica.members.contains_key(&missing.member))
            })?;
            if let Some(missing) = still.flatten() {
                let path = self.directory.path_of(&files::lifeline(missing.member));
                return Err(FileError::new(path, super::FileProblem::Removed));
            }
        }
        Ok(found)
    }

    /// Lets go of all that the dead ones among these members have; whether there were any.
    fn bury(&self, members: &[Other], deadline: Option<Instant>) -> Result<bool, FileError> {
        let watched = self.watch(members, deadline)?;
        let dead = watched.iter().filter(|watched| !files::is_alive(&watched.lifeline));
        let dead: Vec<MemberId> = dead.map(|watched| watched.member.member).collect();
        if dead.is_empty() {
            return Ok(false);
        }
        self.change(deadline, |change, _| change.bury(dead))?;
        Ok(true)
    }

    /// Lets go of what the dead have, whether anybody asks for it or not; and removes what they had no time to remove.
    fn bury_all(&self, deadline: Option<Instant>) -> Result<(), FileError> {
        let buried = self.change(deadline, |change, _| {
            let members: Vec<MemberId> = change.replica.members.keys().copied().collect();
            let dead = self.dead_among(change, members);
            change.bury(dead);
            let living: BTreeSet<MemberId> = change.replica.members.keys().copied().collect();
            (living, change.replica.next_member())
        })?;
        if let Some((living, next)) = buried {
            self.directory.remove_fifos(|member| member < next && !living.contains(&member));
        }
        Ok(())
    }

    /// Those members who are dead. Whose lifeline was removed cannot be asked, and lives.
    fn dead_among(&self, change: &Change<'_>, members: impl IntoIterator<Item = MemberId>) -> BTreeSet<MemberId> {
        let is_dead = |member: &MemberId| {
            let about = change.replica.members.get(member).filter(|_| *member != self.id);
            let lifeline = about.and_then(|about| self.directory.watch(*member, about.lifeline).ok().flatten());
            lifeline.is_some_and(|lifeline| !files::is_alive(&lifeline))
        };
        members.into_iter().filter(is_dead).collect()
    }

    /// What all have and await.
    pub(super) fn snapshot(&self) -> Result<Snapshot, FileError> {
        match look(&self.directory.as_others()?) {
            // A change puts back what can be.
            Err(error) if error.is_of_the_table() => {
                let soon = Instant::now() + TRY;
                let changed = self.change(Some(soon), |change, _| {
                    change.journal.check_seen(&self.directory).map(|()| report::snapshot(change.replica))
                });
                changed?.unwrap_or(Err(error))
            }
            looked => looked,
        }
    }

    /// Releases what was granted.
    pub(super) fn release(&self, id: RequestId) -> Result<(), FileError> {
        let released = self.change(None, |change, _| change.add(Event::Withdraw(id, now())));
        if released.is_err() {
            self.left_over.lock().push(id);
        }
        released.map(|_| ())
    }

    /// Turns the writes of what was granted into reads.
    pub(super) fn downgrade(&self, id: RequestId) -> Result<(), FileError> {
        self.change(None, |change, _| change.add(Event::Downgrade(id, now()))).map(|_| ())
    }

    /// Leaves; what it still has is released. If that cannot be said now, the end of the lifeline says it.
    fn leave(&self) {
        let soon = Instant::now() + TRY;
        let _ = self.change(Some(soon), |change, _| change.add(Event::Leave(self.id, now())));
    }

    fn make_channel(&self) -> Result<(Channel, OwnedFd), FileError> {
        let mut channels = self.channels.lock();
        channels.made += 1;
        let number = channels.made;
        drop(channels);
        Ok((number, self.directory.make_channel(self.id, number)?))
    }

    /// Tells a request completely, user code and all, before anything is locked.
    fn plan<P, Q>(&self, reads: &[Q], writes: &[Q], owner: Owner, location: &Location<'_>) -> Result<Ask, PathError>
    where
        P: TreePath + ?Sized,
        Q: AsRef<P>,
    {
        let Planned { mut plan, mut names } = sync::take_spare().unwrap_or_default();
        plan.build_and_name::<P, Q>(&self.seeds, reads, writes, Some(&mut names))?;
        let steps: Vec<Step> = plan.steps().iter().map(|step| Step { node: step.node, mode: step.mode }).collect();
        let (mut roots, mut is_told) = (Vec::new(), vec![false; steps.len()]);
        let mut segments = names.iter();
        for nodes in plan.ways() {
            let segments = segments.by_ref().take(nodes.len() - 1).collect();
            let mut way: Vec<u32> = Vec::with_capacity(nodes.len());
            let steps = nodes.iter().enumerate().map_while(|(depth, step)| plan.index(step.node, depth));
            way.extend(steps.map(|index| index as u32));
            let last = way[way.len() - 1] as usize;
            if way.len() == nodes.len() && !std::mem::replace(&mut is_told[last], true) {
                roots.push(ToldRoot { segments, way });
            }
        }
        let place = Place::Source(location.file(), location.line(), location.column());
        let place = self.location.as_deref().map_or(place, Place::Other);
        let (thread, told) =
            sync::with_thread_info(|info| (info.id, Told { thread: &info.name, place, roots }.to_bytes()));
        drop(segments);
        if plan.is_small() && names.clear() {
            sync::keep_spare(Planned { plan, names });
        }
        let id = RequestId { member: self.id, number: 0 };
        Ok(Ask { id, thread, owner, asked: 0, channel: None, absolute: None, steps, told })
    }
}

/// What all members have and await, without those who are dead and not buried yet; nothing is changed, and nobody waited for.
pub(super) fn look(directory: &Directory) -> Result<Snapshot, FileError> {
    let mut looks = 0;
    let nothing = || Ok(report::snapshot(&Replica::default()));
    // Who lives has noted something.
    let is_used = || Ok::<_, FileError>(directory.has_living()? || directory.seen_beyond(0)?.is_some());
    loop {
        looks += 1;
        let (mut replica, table) = match Journal::look(directory) {
            Err(error) if error.is_harm() => match is_used()? {
                // Somebody may have begun meanwhile.
                true if looks < LOOKS => continue,
                true => return Err(error),
                // It means nothing, like any other that nobody uses.
                false => return nothing(),
            },
            looked => looked?,
        };
        let mut are_all_there = true;
        for (member, lifeline) in replica.members.iter().map(|(&id, about)| (id, about.lifeline)).collect::<Vec<_>>()
        {
            match directory.watch(member, lifeline)? {
                Some(lifeline) if files::is_alive(&lifeline) => {}
                Some(_) => replica.apply(Event::Leave(member, now()), &mut Effects::default()),
                None => are_all_there = false,
            }
        }
        // It has left since the table was read, or been buried; or else its lifeline was removed, and it stays while
        // anybody is there.
        if !are_all_there && !is_used()? {
            return nothing();
        }
        // In another table the same lifelines may be those of others.
        if looks == LOOKS || (are_all_there && Journal::has_name(directory, table)?) {
            return Ok(report::snapshot(&replica));
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Milliseconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn about_this_process(lifeline: u64) -> About {
    let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let mut command = words.collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = command.char_indices().nth(200) {
        command.truncate(end);
    }
    About { lifeline, id: std::process::id(), command, user: user() }
}

/// The user's name, where the system's list of users has it, or the number.
fn user() -> String {
    let number = rustix::process::geteuid().as_raw().to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let name = fields.into_iter().find(|fields| fields.get(2) == Some(&&*number)).map(|fields| fields[0].to_owned());
    name.unwrap_or(number)
}
