//! Which file is the table: how a member locks the last one, replaces it, and puts it back.
//!
//! ```text
//!               names the next one, by inode        takes the name
//!  table ──────────────────────────────────> table.new ──────────> table
//!    ^                                           │ its maker died before that
//!    └──────────── takes it back ────────────────┘
//! ```
//!
//! This file upholds invariants 1 and 4 of `mod.rs`. If a table is replaced while a member waits for its `flock`, the
//! member reads there that there is a next table, and opens that. A table that has lost its name by other means is
//! still the one that members lock, and has all that they agreed on. So they put it back, as a new table. They do not
//! if the old one names a next table that has had the name: that one may have more changes.
//!
//! Lock order: the old table's `flock`, then that of the new one, which no other process knows yet.

use super::format::{self, Head};
use super::{Journal, LOOK, NEXT_TABLE, NONE, SPACE, TABLE, long, room_to_let_go};
use crate::process::error::{FileError, FileProblem};
use crate::process::files::{self, Directory, io};
use crate::replica::{Event, Replica};
use rustix::fs::{self, FlockOperation, OFlags};
use rustix::io::Errno;
use std::time::{Duration, Instant};

/// How long a member waits for the table, which others keep for microseconds unless they are stopped.
#[derive(Clone, Copy, Debug)]
pub(in crate::process) enum Limit {
    /// For ever.
    Never,
    At(Instant),
    /// Until nobody has written for [`STALL`], but not for ever.
    Stalled,
}

/// A member that has the table, and has not written for this long, is taken to be stopped.
pub(in crate::process) const STALL: Duration = Duration::from_millis(100);

/// How often the time may begin anew because others have written.
const MOST_STALLS: u32 = 20;

impl From<Option<Instant>> for Limit {
    fn from(deadline: Option<Instant>) -> Self {
        deadline.map_or(Limit::Never, Limit::At)
    }
}

impl Limit {
    /// When to give up if nobody writes until then.
    pub(in crate::process) fn first_end(self) -> Option<Instant> {
        match self {
            Limit::Never => None,
            Limit::At(deadline) => Some(deadline),
            Limit::Stalled => Some(Instant::now() + STALL),
        }
    }
}

impl Journal {
    /// Makes an empty table, in a directory that nobody else has open.
    pub(in crate::process) fn begin(directory: &Directory, random: impl FnMut() -> u64) -> Result<(), FileError> {
        // Others may have made it when the directory had other permissions.
        if let Some(file) = directory.open_file(TABLE, OFlags::RDONLY)? {
            let bytes = super::read(directory, &file)?;
            match Head::of_bytes(&bytes) {
                Ok(_) => {}
                Err(FileProblem::Damaged) => {}
                Err(problem) => return Err(FileError::new(directory.path_of(TABLE), problem)),
            }
        }
        let mut key = [0; 2];
        key.fill_with(random);
        create(directory, Head { inode: 0, directory: 0, base: 0, key }, &Replica::default())?;
        directory.rename(NEXT_TABLE, TABLE)?;
        // Only now: as long as the old table had the name, an observer needed the FIFOs to see that its members are
        // dead.
        directory.remove_fifos(|_| true);
        Ok(())
    }

    /// Whether the table of that inode has the name.
    pub(in crate::process) fn has_name(directory: &Directory, inode: u64) -> Result<bool, FileError> {
        Ok(directory.inode(TABLE)? == Some(inode))
    }

    /// Whether this is the last table, as far as it was read: it names no next one, or the maker of the next one died
    /// before it took the name.
    pub(in crate::process) fn is_last(&self, directory: &Directory) -> Result<bool, FileError> {
        Ok(self.next == NONE || (Self::has_name(directory, self.head.inode)? && self.is_next_unnamed(directory)?))
    }

    /// Locks the table that has the name now, and brings the replica up to date; `false` if the limit is reached first.
    pub(in crate::process) fn lock(
        &mut self,
        directory: &Directory,
        replica: &mut Replica,
        limit: Limit,
    ) -> Result<bool, FileError> {
        loop {
            if !self.flock(directory, replica, limit)? {
                return Ok(false);
            }
            match self.check(directory, replica) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error) => {
                    self.unlock();
                    return Err(error);
                }
            }
        }
    }

    pub(in crate::process) fn unlock(&self) {
        let _ = files::flock(&self.file, FlockOperation::Unlock);
    }

    fn flock(&mut self, directory: &Directory, replica: &mut Replica, limit: Limit) -> Result<bool, FileError> {
        let failed = |errno| io(&directory.path_of(TABLE), "flock", errno);
        match files::flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            // Another member has the table and writes, so there is something to read. Most of it is read now, while
            // nobody has to wait for that. Bytes before the end never change; an error here comes again under the
            // lock.
            Err(Errno::WOULDBLOCK) => drop(self.catch_up(directory, replica)),
            Err(errno) => return Err(failed(errno)),
        }
        let Some(mut end) = limit.first_end() else {
            return files::flock(&self.file, FlockOperation::LockExclusive).map(|()| true).map_err(failed);
        };
        let (mut read, mut stalls) = (self.history.count(), 0);
        // Members keep it for microseconds, unless they are stopped. So it is enough to try again and again.
        for attempt in 0_u32.. {
            match files::flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(true),
                Err(Errno::WOULDBLOCK) if Instant::now() >= end => {
                    // As above.
                    drop(self.catch_up(directory, replica));
                    let goes_on =
                        matches!(limit, Limit::Stalled) && self.history.count() > read && stalls < MOST_STALLS;
                    if !goes_on {
                        return Ok(false);
                    }
                    (read, stalls, end) = (self.history.count(), stalls + 1, Instant::now() + STALL);
                }
                Err(Errno::WOULDBLOCK) if attempt < 64 => std::thread::yield_now(),
                Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_micros(10 << (attempt / 64).min(5))),
                Err(errno) => return Err(failed(errno)),
            }
        }
        unreachable!("it tries without end")
    }

    /// Whether the locked table is the last one; the replica is then up to date. Otherwise the last one is now open,
    /// but not locked.
    fn check(&mut self, directory: &Directory, replica: &mut Replica) -> Result<bool, FileError> {
        let caught_up = self.catch_up(directory, replica);
        let names_no_next = self.next == NONE;
        // If the table lost its name by other means, no next table can take it. So it is enough to look now and then.
        if caught_up.is_ok() && names_no_next && self.looked.elapsed() < LOOK {
            return Ok(true);
        }
        if Self::has_name(directory, self.head.inode)? {
            caught_up?;
            if !names_no_next {
                // Otherwise this table was put back in the place of the next one.
                if !self.is_next_unnamed(directory)? {
                    return Err(Self::removed(directory));
                }
                self.check_seen(directory)?;
                self.name_no_next(directory)?;
            }
            self.looked = Instant::now();
            return Ok(true);
        }
        if directory.is_removed()? {
            return Err(FileError::new(directory.path(), FileProblem::Removed));
        }
        match Journal::open(directory) {
            Ok(next) if next.head.key == self.head.key && next.head.base > self.head.base => {
                self.move_to(next);
                Ok(false)
            }
            Ok(_) => Err(Self::removed(directory)),
            // The table was removed, or something else was put in its place. All that was agreed on is still here.
            Err(error) if error.is_of_the_table() && (names_no_next || self.is_next_unnamed(directory)?) => {
                caught_up?;
                self.check_seen(directory)?;
                self.name_no_next(directory)?;
                self.rewrite(directory, replica)?;
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the next table, which this one names, has not taken the name, because its maker died before that.
    fn is_next_unnamed(&self, directory: &Directory) -> Result<bool, FileError> {
        Ok(directory.inode(NEXT_TABLE)? == Some(self.next))
    }

    /// Writes the whole state of the replica to a new table, which takes the name and is locked.
    pub(super) fn rewrite(&mut self, directory: &Directory, replica: &Replica) -> Result<(), FileError> {
        let head = Head { base: self.history.count(), ..self.head };
        let next = create(directory, head, replica)?;
        files::flock(&next.file, FlockOperation::LockExclusive)
            .map_err(|errno| io(&directory.path_of(NEXT_TABLE), "flock", errno))?;
        self.make_room(directory, room_to_let_go(replica))?;
        // The old table names the next one before that takes the name, and takes this back if it does not get the
        // name.
        self.name_next(directory, next.head.inode)?;
        if let Err(error) = directory.rename(NEXT_TABLE, TABLE) {
            self.name_no_next(directory)?;
            return Err(error);
        }
        self.move_to(next);
        Ok(())
    }

    /// Goes on in the next table, and unlocks the old one, for which others wait.
    fn move_to(&mut self, mut next: Journal) {
        // Closing it would not be enough: a forked child may have it open too.
        self.unlock();
        next.history.continue_from(&self.history);
        *self = next;
    }

    /// Takes back that this table names a next one, if it does.
    fn name_no_next(&mut self, directory: &Directory) -> Result<(), FileError> {
        if self.next == NONE { Ok(()) } else { self.name_next(directory, NONE) }
    }

    fn name_next(&mut self, directory: &Directory, inode: u64) -> Result<(), FileError> {
        let mut change = Vec::new();
        format::add(&mut change, &Event::Next(inode));
        self.append(directory, &mut change)?;
        self.next = inode;
        Ok(())
    }
}

/// Makes a table of the whole state of the replica, not yet under its name.
fn create(directory: &Directory, head: Head, replica: &Replica) -> Result<Journal, FileError> {
    let file = directory.create_file(NEXT_TABLE)?;
    let stat = fs::fstat(&file).map_err(|errno| io(&directory.path_of(NEXT_TABLE), "look at", errno))?;
    let head = Head { inode: stat.st_ino, directory: directory.own_inode()?, ..head };
    let mut begin = Vec::new();
    format::add(&mut begin, &Event::Begin(Box::new(replica.store())));
    super::check_length(directory, &begin)?;
    let needed = format::CHANGES + (begin.len() + format::FRAME - format::LENGTH) as u64 + room_to_let_go(replica);
    let space = needed.next_multiple_of(SPACE);
    super::allocate(directory, &file, 0, space)?;
    super::write(directory, &file, 0, &head.to_bytes())?;
    let mut journal = Journal::new(file, head, space);
    journal.append(directory, &mut begin)?;
    journal.long = long(journal.end);
    Ok(journal)
}

#[cfg(test)]
mod tests {
    use crate::process::ProcessTreeLock;
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Members replace tables all the time while others wait for the old one.
    #[test]
    fn new_tables_lose_nothing() {
        let parent = if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
        let directory = tempfile::tempdir_in(parent).unwrap();
        let counts = [const { AtomicU64::new(0) }; 2];
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (lock, place) = (ProcessTreeLock::open(directory.path()).unwrap(), thread % 2);
                let count = &counts[place];
                scope.spawn(move || {
                    for _ in 0..500 {
                        let _guard = lock.write(place.to_string()).unwrap();
                        let seen = count.load(Ordering::Relaxed);
                        std::thread::yield_now();
                        count.store(seen + 1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(counts.map(AtomicU64::into_inner), [1000, 1000]);
    }
}
