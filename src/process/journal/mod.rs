//! The file `table`: the events of a lock in their order, and how a member keeps its replica up to date with them.
//!
//! A *change* is one or more events that one member writes in one call, after the last change, with a checksum at the
//! end. It has happened once its checksum is right. If a process dies in the middle, what it leaves is no change, and
//! the next writer overwrites it. So a process may die at any step (P1): no change is ever half done, and there is
//! nothing to repair.
//!
//! | file | concept |
//! |---|---|
//! | `mod.rs` | the open table of a member: read, append, keep room |
//! | `format.rs` | pure: the bytes of a table |
//! | `known.rs` | what a member has read, and whether the others know the same |
//! | `succession.rs` | which file is the table: locked, replaced, put back |
//!
//! Invariants:
//!
//! 1. Only the member that has the exclusive `flock` on the last table writes, and decides. The last change of a
//!    table tells whether there is a next table; and a writer looks now and then whether its file still has the name.
//! 2. A change is never modified, and its checksum covers all that stands before it. So no replica reads past bytes
//!    that were overwritten, or goes on from anything but what it has read (P4); each read compares the bytes that
//!    were read last.
//! 3. No member writes, is granted, is refused or waits if a living member knows more, or something else. A member
//!    that writes, or finds itself granted, notes with the kernel how many changes it knows; the others check that
//!    they have read them. So if changes were overwritten, or a copy of the file lacks them or has others instead,
//!    that is an error, and not taken for changes that have not happened yet. The count goes on from file to file,
//!    and each file begins with all that its maker knew.
//! 4. A table contains its inode and that of its directory. So neither a copy of it nor the table of another lock is
//!    taken for the table. Before a new table takes the name, the old one names the inode of the new one; so a member
//!    that is behind learns that its table is old.
//! 5. For each request and each member there is room to release: on a full disk, requests fail and releases do not.
//!
//! When the changes are much longer than the state that they led to, a member writes that state to a new table, which
//! takes the name. A table that was removed comes back in the same way. Cost: a change reads what the others wrote
//! since the member's last change, and writes some hundred bytes; the changes before a rewriting pay for it.
//!
//! Considered and rejected: a mapped table under a robust mutex (a file that is cut under it kills every process by a
//! signal, and each of its changes takes many stores, any of which may be the last); byte-range locks (linear in what
//! is held, no order, no deadlines, no list). The idea: a replicated state machine over one log (Schneider 1990).
//! Here the log is a file of one host, and a `flock` gives the order.
//!
//! Lock order: the table's `flock`, under the mutex of the member.

mod format;
mod known;
mod succession;

use super::crash;
use super::error::{FileError, FileProblem};
use super::files::{Directory, io};
use crate::core::node_id::Seeds;
use crate::replica::{Effects, Event, Replica};
use format::{CHANGES, FRAME, Head, LENGTH, LONGEST};
use known::History;
use rustix::fd::OwnedFd;
use rustix::fs::{self, FallocateFlags, OFlags};
use rustix::io::{Errno, pread, pwrite};
use std::time::{Duration, Instant};
pub(super) use succession::Limit;
#[cfg(test)]
pub(super) use succession::STALL;

const TABLE: &str = "table";
const NEXT_TABLE: &str = "table.new";

/// Stands for the inode of the next table if none is named.
const NONE: u64 = 0;

/// The space that is allocated ahead at a time, and the least length of the changes that may be worth a new table.
const SPACE: u64 = if cfg!(test) { 4 << 10 } else { 64 << 10 };

/// How long a writer trusts that its table still has the name.
const LOOK: Duration = Duration::from_millis(1);

/// How many bytes a read takes at first. A member that is further behind reads once more.
const WINDOW: usize = 1 << 10;

/// The largest buffer for reading that is kept.
const BUFFER: usize = 64 << 10;

/// The largest size of a change that only releases something.
const LETTING_GO: u64 = 64;

/// The open table of one member.
#[derive(Debug)]
pub(super) struct Journal {
    file: OwnedFd,
    head: Head,
    /// The offset up to which the replica has read.
    end: u64,
    history: History,
    /// The inode of the next table, if this one has named it.
    next: u64,
    /// The offset up to which space is allocated.
    space: u64,
    /// The length from which a new table is worth its cost.
    long: u64,
    /// When it was last seen that the file has its name.
    looked: Instant,
    staged: Staged,
    /// The buffer for reads. It is kept, since to allocate it each time costs more than to read.
    buffer: Vec<u8>,
}

/// A change that is to be written.
#[derive(Debug, Default)]
struct Staged {
    /// Empty, or room for the length and then the events.
    bytes: Vec<u8>,
    /// Whether one of the events needs room.
    needs_room: bool,
}

/// How much is staged.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    length: usize,
    needs_room: bool,
}

impl Journal {
    /// Opens the table as it is, to write to it.
    pub(super) fn open(directory: &Directory) -> Result<Self, FileError> {
        Self::open_for(directory, OFlags::RDWR)
    }

    /// Opens the table as it is, to look at it.
    pub(super) fn open_to_look(directory: &Directory) -> Result<Self, FileError> {
        Self::open_for(directory, OFlags::RDONLY)
    }

    fn open_for(directory: &Directory, access: OFlags) -> Result<Self, FileError> {
        let file = directory.open_file(TABLE, access)?.ok_or_else(|| Self::removed(directory))?;
        let bytes = read(directory, &file)?;
        let head = Head::of_bytes(&bytes).map_err(|problem| FileError::new(directory.path_of(TABLE), problem))?;
        let stat = fs::fstat(&file).map_err(|errno| io(&directory.path_of(TABLE), "look at", errno))?;
        if stat.st_ino != head.inode || directory.own_inode()? != head.directory {
            return Err(Self::removed(directory));
        }
        Ok(Self::new(file, head, stat.st_size as u64))
    }

    /// A table from which nothing has been read yet.
    fn new(file: OwnedFd, head: Head, space: u64) -> Self {
        Journal {
            file,
            head,
            end: CHANGES,
            history: History::new(head.base, head.sum()),
            next: NONE,
            space,
            long: SPACE,
            looked: Instant::now(),
            staged: Staged::default(),
            buffer: Vec::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn look_again(&mut self) {
        self.looked = Instant::now() - LOOK;
    }

    pub(super) fn seeds(&self) -> Seeds {
        self.head.seeds()
    }

    /// The inode of the table.
    pub(super) fn inode(&self) -> u64 {
        self.head.inode
    }

    /// The error that another process keeps the table locked for too long.
    pub(super) fn kept(&self, directory: &Directory) -> FileError {
        FileError::new(directory.path_of(TABLE), FileProblem::Flocked)
    }

    /// The error that the table was removed, or replaced by another file.
    pub(super) fn removed(directory: &Directory) -> FileError {
        FileError::new(directory.path_of(TABLE), FileProblem::Removed)
    }

    /// The error that the table is not what it should be.
    fn damaged(&self, directory: &Directory) -> FileError {
        FileError::new(directory.path_of(TABLE), FileProblem::Damaged)
    }

    /// Reads what was written since the last time.
    pub(super) fn catch_up(&mut self, directory: &Directory, replica: &mut Replica) -> Result<(), FileError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let caught_up = self.catch_up_by(&mut buffer, directory, replica);
        if buffer.capacity() <= BUFFER {
            self.buffer = buffer;
        }
        // The first change of a table is the state when it was made, so there is one.
        caught_up.and_then(|()| if self.end > CHANGES { Ok(()) } else { Err(self.damaged(directory)) })
    }

    fn catch_up_by(
        &mut self,
        buffer: &mut Vec<u8>,
        directory: &Directory,
        replica: &mut Replica,
    ) -> Result<(), FileError> {
        let mut window = WINDOW;
        loop {
            buffer.resize(window.max(buffer.len()), 0);
            let before = self.history.chain().to_le_bytes();
            let read = read_into(directory, &self.file, self.end - before.len() as u64, &mut buffer[..window])?;
            let mut rest = buffer[..read].strip_prefix(&before).ok_or_else(|| self.damaged(directory))?;
            while let Some((events, sum)) = format::change(self.history.chain(), rest) {
                let taken = events.len() + FRAME;
                if self.apply(events, replica).is_err() {
                    self.begin_again();
                    return Err(self.damaged(directory));
                }
                self.end += taken as u64;
                self.history.push(sum);
                rest = &rest[taken..];
            }
            let needed = format::length(rest).map_or(FRAME, |length| length.saturating_add(FRAME));
            let ends = || self.file_length(directory).map(|length| self.end + needed as u64 > length);
            // What follows is no change, or was read as a whole.
            if rest.starts_with(&[0; LENGTH]) || needed <= rest.len() || ends()? {
                return Ok(());
            }
            window = BUFFER.max(before.len() + needed);
        }
    }

    /// Applies a change that another member has written. That member wakes the waiters that it concerns.
    fn apply(&mut self, mut events: &[u8], replica: &mut Replica) -> postcard::Result<()> {
        let length = events.len();
        while !events.is_empty() {
            let (event, rest) = postcard::take_from_bytes(events)?;
            match event {
                Event::Begin(_) => self.long = long(length as u64),
                Event::Next(inode) => self.next = inode,
                _ => {}
            }
            replica.apply(event, &mut Effects::default());
            events = rest;
        }
        Ok(())
    }

    /// Forgets what was read, since the replica does not match it. Everything is read again with the next lock.
    fn begin_again(&mut self) {
        (self.end, self.next) = (CHANGES, NONE);
        self.history.begin_again(self.head.base, self.head.sum());
    }

    fn file_length(&self, directory: &Directory) -> Result<u64, FileError> {
        let stat = fs::fstat(&self.file).map_err(|errno| io(&directory.path_of(TABLE), "look at", errno))?;
        Ok(stat.st_size as u64)
    }

    /// Stages an event, which is written with the next [`commit`](Journal::commit).
    pub(super) fn stage(&mut self, event: &Event) {
        format::add(&mut self.staged.bytes, event);
        self.staged.needs_room |= needs_room(event);
    }

    /// Whether nothing is staged.
    pub(super) fn is_unchanged(&self) -> bool {
        self.staged.bytes.is_empty()
    }

    /// How much is staged.
    pub(super) fn staged(&self) -> Mark {
        Mark { length: self.staged.bytes.len(), needs_room: self.staged.needs_room }
    }

    /// Drops what was staged since that mark.
    pub(super) fn unstage(&mut self, Mark { length, needs_room }: Mark) {
        self.staged.bytes.truncate(length);
        self.staged.needs_room = needs_room;
    }

    /// Drops what was staged and not written, if there is anything.
    pub(super) fn abandon(&mut self) {
        if !self.is_unchanged() {
            self.unstage(Mark::default());
            self.begin_again();
        }
    }

    /// Writes what was staged, which the replica has applied.
    pub(super) fn commit(&mut self, directory: &Directory, replica: &Replica) -> Result<(), FileError> {
        if self.is_unchanged() {
            return Ok(());
        }
        check_length(directory, &self.staged.bytes)?;
        self.check_seen(directory)?;
        let needed = (self.staged.bytes.len() + FRAME - LENGTH) as u64;
        // A change that only releases has its room already (invariant 5).
        let room = self.make_room(directory, needed + room_to_let_go(replica));
        let has_room = !self.staged.needs_room && self.end + needed <= self.space;
        room.or_else(|error| if has_room { Ok(()) } else { Err(error) })?;
        let mut change = std::mem::take(&mut self.staged).bytes;
        let written = self.append(directory, &mut change);
        change.clear();
        self.staged.bytes = change;
        written.inspect_err(|_| self.begin_again())?;
        if self.end > self.long {
            // If there is no room for a second file, the first one stays in use.
            if self.rewrite(directory, replica).is_err() {
                self.long *= 2;
            }
        }
        self.note_seen(directory);
        Ok(())
    }

    fn append(&mut self, directory: &Directory, change: &mut Vec<u8>) -> Result<(), FileError> {
        let sum = format::seal(self.history.chain(), change);
        write(directory, &self.file, self.end, change)?;
        self.end += change.len() as u64;
        self.history.push_own(sum);
        Ok(())
    }

    /// Notes with the kernel what was read (invariant 3).
    pub(super) fn note_seen(&mut self, directory: &Directory) {
        self.history.note(directory);
    }

    /// Fails unless this member has read all that living members have noted, and the same (invariant 3).
    pub(super) fn check_seen(&mut self, directory: &Directory) -> Result<(), FileError> {
        if self.history.agrees_with_others(directory)? { Ok(()) } else { Err(self.damaged(directory)) }
    }

    fn make_room(&mut self, directory: &Directory, needed: u64) -> Result<(), FileError> {
        let needed = self.end + needed;
        if needed > self.space {
            // Another member may have allocated some.
            self.space = self.space.max(self.file_length(directory)?);
        }
        if needed > self.space {
            let more = (needed - self.space).next_multiple_of(SPACE);
            allocate(directory, &self.file, self.space, more)?;
            self.space += more;
        }
        Ok(())
    }
}

/// Whether an event needs room: all do but those that only release (invariant 5). A downgrade needs room too, since
/// it can wait.
fn needs_room(event: &Event) -> bool {
    matches!(event, Event::Join(_) | Event::Ask(_) | Event::Downgrade(..))
}

/// The length from which a new table is worth it, if the whole state takes `all` bytes.
fn long(all: u64) -> u64 {
    SPACE.max(4 * all)
}

/// The room that is needed to release each request, to let each member leave, to name a next table, and to take that
/// back.
fn room_to_let_go(replica: &Replica) -> u64 {
    LETTING_GO * (replica.requests.len() + replica.members.len() + 2) as u64
}

/// Fails if a change is too long to be written.
fn check_length(directory: &Directory, change: &[u8]) -> Result<(), FileError> {
    match change.len() - LENGTH <= LONGEST {
        true => Ok(()),
        false => Err(io(&directory.path_of(TABLE), "write so long a request to", Errno::FBIG)),
    }
}

fn allocate(directory: &Directory, file: &OwnedFd, from: u64, length: u64) -> Result<(), FileError> {
    crash::step();
    let allocated = rustix::io::retry_on_intr(|| fs::fallocate(file, FallocateFlags::empty(), from, length));
    crash::step();
    match allocated {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => write(directory, file, from, &vec![0; length as usize]),
        other => other.map_err(|errno| io(&directory.path_of(TABLE), "find space for", errno)),
    }
}

/// The bytes of a table's head, as far as the file has them.
fn read(directory: &Directory, file: &OwnedFd) -> Result<Vec<u8>, FileError> {
    let mut bytes = vec![0; CHANGES as usize];
    let done = read_into(directory, file, 0, &mut bytes)?;
    bytes.truncate(done);
    Ok(bytes)
}

/// Reads from an offset up to the end of the file or of the buffer; returns the number of bytes.
fn read_into(directory: &Directory, file: &OwnedFd, from: u64, bytes: &mut [u8]) -> Result<usize, FileError> {
    let mut done = 0;
    while done < bytes.len() {
        match pread(file, &mut bytes[done..], from + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(io(&directory.path_of(TABLE), "read", errno)),
        }
    }
    Ok(done)
}

fn write(directory: &Directory, file: &OwnedFd, from: u64, bytes: &[u8]) -> Result<(), FileError> {
    let mut done = 0;
    // In tests a process may die in the middle too (`crash.rs`).
    let halves = if cfg!(test) { bytes.len() / 2 } else { bytes.len() };
    while done < bytes.len() {
        crash::step();
        let to = if done < halves { halves } else { bytes.len() };
        match pwrite(file, &bytes[done..to], from + done as u64) {
            Ok(0) => return Err(io(&directory.path_of(TABLE), "write", Errno::NOSPC)),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(io(&directory.path_of(TABLE), "write", errno)),
        }
    }
    crash::step();
    Ok(())
}
