//! What a process sees that only looks: who holds and awaits what, without opening the lock or waiting for anybody.
//!
//! An *observer* has no lock on the table. So whatever it reads may be replaced, or go on, while it reads. It looks again
//! until what it saw is what all had agreed on at one moment, and gives up after so many tries.
//!
//! Invariants:
//!
//! 1. It changes nothing, and waits for nobody.
//! 2. It never shows a state of the table that is older than what a living member has noted (P4), nor the holders of an
//!    earlier time as those of now.
//! 3. A dead member holds nothing, buried or not. Where nobody lives, what stands in the directory means nothing.

use super::error::FileError;
use super::files::{self, Directory};
use super::journal::Journal;
use super::member::now;
use super::replica::{Effects, Event, Replica};
use super::report::{self, Snapshot};

/// How often an observer looks again, if what it sees in the table makes no sense.
const LOOKS_AT_TABLE: u32 = 100;

/// How often it looks again at members that were seen to live where a lifeline is missing.
const LOOKS: u32 = 10;

/// What all members have and await, without those who are dead and not buried yet.
pub(super) fn look(directory: &Directory) -> Result<Snapshot, FileError> {
    let mut looks = 0;
    let nothing = || Ok(report::snapshot(&Replica::default()));
    // Who lives has noted something.
    let is_used = || Ok::<_, FileError>(directory.has_living()? || directory.seen_beyond(0)?.is_some());
    loop {
        looks += 1;
        let (mut replica, table) = match look_at_table(directory) {
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

/// What the table says now, and its inode.
fn look_at_table(directory: &Directory) -> Result<(Replica, u64), FileError> {
    let mut looks = 0;
    loop {
        looks += 1;
        match look_once(directory) {
            Ok(Some(looked)) => return Ok(looked),
            // A new one has taken the name since this one was opened.
            Err(error) if !error.is_of_the_table() || looks > LOOKS_AT_TABLE => return Err(error),
            _ => std::thread::yield_now(),
        }
    }
}

/// `None` if it was replaced meanwhile.
fn look_once(directory: &Directory) -> Result<Option<(Replica, u64)>, FileError> {
    let mut journal = Journal::open_to_look(directory)?;
    let mut replica = Replica::default();
    for _ in 0..LOOKS_AT_TABLE {
        journal.catch_up(directory, &mut replica)?;
        if !journal.is_last(directory)? {
            return Ok(None);
        }
        match journal.check_seen(directory) {
            Ok(()) => return Ok(Some((replica, journal.inode()))),
            // More may have been written since it was read.
            Err(error) if error.is_of_the_table() => {}
            Err(error) => return Err(error),
        }
    }
    Err(journal.damaged(directory))
}
