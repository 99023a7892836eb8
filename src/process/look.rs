//! What an observer sees: who holds and awaits what, without opening the lock or waiting for anybody.
//!
//! An *observer* does not lock the table. So the table may be replaced, or grow, while the observer reads it. It
//! looks again until it has seen a state that all members agreed on at one moment, but no more than [`LOOKS`] times.
//!
//! Invariants:
//!
//! 1. An observer changes nothing, and waits for nobody.
//! 2. It never shows a state of the table that is older than what a living member has noted (P4), nor the holders of an
//!    earlier time as those of now.
//! 3. A dead member holds nothing, whether it is buried or not. If no member lives, the files in the directory mean
//!    nothing.
//!
//! Not here: how a member puts back what an observer cannot read (`member/mod.rs`).

use super::error::FileError;
use super::files::{self, Directory};
use super::journal::Journal;
use super::member::now;
use crate::replica::{Effects, Event, Replica};

/// How often an observer looks at most. One look is enough unless others are busy.
const LOOKS: u32 = 100;

/// Calls `tell` with all that members hold and await, without those that are dead and not buried yet.
pub(super) fn look<R>(directory: &Directory, tell: impl Fn(&Replica) -> R) -> Result<R, FileError> {
    let nothing = || Ok(tell(&Replica::default()));
    // A member that lives has a lifeline, and has noted something.
    let is_used = || Ok::<_, FileError>(directory.has_living()? || directory.seen_beyond(0)?.is_some());
    let mut read = None;
    for looks in 1.. {
        let is_last_look = looks == LOOKS;
        match look_once(directory, &mut read) {
            Ok(Seen::All(replica)) => return Ok(tell(&replica)),
            Ok(Seen::Unsure(_)) if !is_used()? => return nothing(),
            // A lifeline was removed; its member is shown as long as any member lives.
            Ok(Seen::Unsure(replica)) if is_last_look => return Ok(tell(&replica)),
            Ok(Seen::Behind(error)) if is_last_look => return Err(error),
            Err(error) if error.is_harm() && !is_used()? => return nothing(),
            Err(error) if is_last_look || !error.is_of_the_table() => return Err(error),
            Ok(Seen::Unsure(_) | Seen::Behind(_)) | Err(_) => {}
        }
        std::thread::yield_now();
    }
    unreachable!("the last look returns")
}

/// What one look has seen.
enum Seen {
    /// What all members agreed on at one moment.
    All(Replica),
    /// The same, but some member has no lifeline: it has left since the table was read, or was buried, or its
    /// lifeline was removed. Or another table has the name now, and the lifelines may be those of its members.
    Unsure(Replica),
    /// A living member has noted something that was not in the table when that was read.
    Behind(FileError),
}

/// Looks at the table and at the lifelines. A table that was only behind stays in `read`; the next look reads on from
/// there.
fn look_once(directory: &Directory, read: &mut Option<(Journal, Replica)>) -> Result<Seen, FileError> {
    let (mut journal, mut replica) = match read.take() {
        Some(read) => read,
        None => (Journal::open_to_look(directory)?, Replica::default()),
    };
    journal.catch_up(directory, &mut replica)?;
    if !journal.is_last(directory)? {
        // Another table has taken the name since this one was opened, or this one was put back in its place.
        return Err(Journal::removed(directory));
    }
    match journal.check_seen(directory) {
        Ok(()) => {}
        Err(error) if error.is_of_the_table() => {
            // The note may be about another table, which has the name now.
            if Journal::has_name(directory, journal.inode())? {
                *read = Some((journal, replica));
            }
            return Ok(Seen::Behind(error));
        }
        Err(error) => return Err(error),
    }
    let mut are_all_there = true;
    let members: Vec<_> = replica.members.iter().map(|(&id, about)| (id, about.lifeline)).collect();
    for (member, lifeline) in members {
        match directory.watch(member, lifeline)? {
            Some(lifeline) if files::is_alive(&lifeline) => {}
            Some(_) => replica.apply(Event::Leave(member, now()), &mut Effects::default()),
            None => are_all_there = false,
        }
    }
    let is_one_moment = are_all_there && Journal::has_name(directory, journal.inode())?;
    Ok(if is_one_moment { Seen::All(replica) } else { Seen::Unsure(replica) })
}
