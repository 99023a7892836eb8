//! Which other members live: their lifelines are watched, and the dead are buried.
//!
//! To *bury* a member is to write into the journal that it has left: this releases all that it held and awaited. Any
//! member may do that, as soon as it sees that the lifeline has ended.
//!
//! Invariants:
//!
//! 1. A member is buried only if its own lifeline has ended: the FIFO with its inode, not a file that now has its
//!    name.
//! 2. A lifeline that was removed tells nothing. Its member is assumed to live, and a wait for it fails.
//! 3. A lifeline is kept open while its member may be waited for again; those of members that have left are closed.
//!
//! Lock order: the map of lifelines is locked last.

use super::change::Change;
use super::{LOST_WAKE, Member};
use crate::process::error::{FileError, FileProblem};
use crate::process::files;
use crate::process::journal::Limit;
use crate::replica::MemberId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

/// Another member, and the inode of its lifeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Other {
    pub(super) member: MemberId,
    lifeline: u64,
}

/// Another member, and its lifeline, which tells whether it lives.
struct Watched {
    member: Other,
    lifeline: Arc<OwnedFd>,
    /// Whether it was opened just now.
    is_new: bool,
}

/// Why a waiter goes on.
pub(super) struct Polled {
    pub(super) ended: Vec<Other>,
    /// Whether there was a byte in its channel.
    pub(super) woken: bool,
}

impl Member {
    /// The lifelines of members that are about to be watched.
    pub(super) fn others(&self, change: &Change<'_>, members: impl IntoIterator<Item = MemberId>) -> Vec<Other> {
        let known = &change.replica.members;
        let mut watched = self.watched.lock();
        // Other members may have written that some have left.
        if watched.len() > 2 * known.len() {
            watched.retain(|watched, _| known.contains_key(&watched.member));
        }
        let other = |member| Some(Other { member, lifeline: known.get(&member)?.lifeline });
        members.into_iter().filter_map(other).collect()
    }

    /// Waits for a byte in the channel, the end of a member, or a time.
    pub(super) fn poll(
        &self,
        others: &[Other],
        channel: &OwnedFd,
        deadline: Option<Instant>,
        look: Option<Instant>,
    ) -> Result<Polled, FileError> {
        let watched = self.watch(others, deadline.into())?;
        if watched.len() < others.len() {
            // Some have left, and may have died before they could wake this waiter. So it looks again.
            return Ok(Polled { ended: Vec::new(), woken: true });
        }
        // `poll` never reports the end of a FIFO that had no writer any more when it was opened.
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
            // If nothing happened at all, another thread may have opened this lifeline after its end.
            !polled.revents().is_empty() || (events == 0 && !files::is_alive(&watched.lifeline))
        });
        Ok(Polled { ended: ended.map(|(_, watched)| watched.member).collect(), woken })
    }

    /// Opens the lifelines of members, each once; leaves out the members that have left meanwhile.
    fn watch(&self, members: &[Other], limit: Limit) -> Result<Vec<Watched>, FileError> {
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
            // A member that leaves writes so before its lifeline is removed.
            let still = self.change(limit, |change, _| {
                missing.into_iter().find(|missing| change.replica.members.contains_key(&missing.member))
            })?;
            if let Some(missing) = still.flatten() {
                let path = self.directory.path_of(&files::lifeline(missing.member));
                return Err(FileError::new(path, FileProblem::Removed));
            }
        }
        Ok(found)
    }

    /// Buries the dead among these members; returns whether there were any.
    pub(super) fn bury(&self, members: &[Other], limit: Limit) -> Result<bool, FileError> {
        let watched = self.watch(members, limit)?;
        let dead = watched.iter().filter(|watched| !files::is_alive(&watched.lifeline));
        let dead: Vec<MemberId> = dead.map(|watched| watched.member.member).collect();
        if dead.is_empty() {
            return Ok(false);
        }
        self.change(limit, |change, _| change.bury(dead))?;
        Ok(true)
    }

    /// Buries all dead members, whether or not they are in anybody's way, and removes the files that they had no time
    /// to remove.
    pub(super) fn bury_all(&self, limit: Limit) -> Result<(), FileError> {
        let buried = self.change(limit, |change, _| {
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

    /// The dead among these members.
    pub(super) fn dead_among(
        &self,
        change: &Change<'_>,
        members: impl IntoIterator<Item = MemberId>,
    ) -> BTreeSet<MemberId> {
        let is_dead = |member: &MemberId| {
            let about = change.replica.members.get(member).filter(|_| *member != self.id);
            let lifeline = about.and_then(|about| self.directory.watch(*member, about.lifeline).ok().flatten());
            lifeline.is_some_and(|lifeline| !files::is_alive(&lifeline))
        };
        members.into_iter().filter(is_dead).collect()
    }
}
