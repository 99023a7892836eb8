//! The file `table`: the events of a lock in their order, and how a process keeps its replica up to date.
//!
//! ```text
//!    0  what the file is: magic, format, inodes, base, the secrets of the node ids, sum       written once
//!   84  changes: length, events, sum; one after the other                                     appended
//!   ... zeros up to the space that is kept ready
//! ```
//!
//! A change is written behind the last one in one call, and its sum stands at its end: it has happened when that is right.
//! What a process leaves that dies in the middle is no change, and the next one writes over it. So a process may die
//! anywhere (P1): nothing is ever half done, and there is nothing to repair.
//!
//! Invariants:
//!
//! 1. Only who has the exclusive `flock` on the last file writes, and decides. The last change in a file tells if there is a
//!    next one; and now and then its writer looks whether it still has its name.
//! 2. A change never changes, and its sum is one of all up to there, but for the sums. So no replica goes on past what was
//!    written over by others, nor from anything else than what it has read (P4); what it read last is compared each time.
//! 3. Nobody writes, is granted, is refused or waits where a living member knows more, or something else: whoever writes, or
//!    finds itself granted, notes with the kernel (`files.rs`) how many changes it knows, and a part of the last one's sum;
//!    and the others ask whether that is so in what they have read. So changes that were written over, or that a copy of the
//!    file does not have, or has instead of others, are an error, and not what has not happened yet.
//!    What all the living know is the beginning of what one of them knows; so of those who have noted more than was
//!    agreed on before, those with the most decide. The count goes on from file to file, each of which begins with all
//!    that its maker knew.
//! 4. A file knows its inode and that of its directory. A copy in its place is none of ours, nor is the table of another
//!    lock. Before a new file takes the name, the old one names its inode: so who is behind knows that the old one is, too.
//! 5. For each request and each member there is room to let go: on a full disk, requests fail and releases do not.
//!
//! When the changes have become long against what they led to, all of it is written to a new file, which takes the
//! name; that is also how a file comes back that somebody has removed. Cost: a change reads what others wrote since the
//! last one, and writes some hundred bytes; the rewriting is paid by the changes before it.
//!
//! Considered and rejected: a mapped table under a robust mutex (a file that is cut under it kills every process by a
//! signal, and each of its changes takes many stores, any of which may be the last); byte-range locks (linear in
//! what is held, no order, no deadlines, no list). The idea: a replicated state machine over one log (Schneider 1990), the
//! log being a file of one host and its order a `flock`.

use super::crash;
use super::error::{FileError, FileProblem};
use super::files::{self, Directory, io};
use super::replica::{Effects, Event, Replica};
use crate::core::node_id::Seeds;
use crate::core::segments::Segments;
use rustix::fd::OwnedFd;
use rustix::fs::{self, FallocateFlags, FlockOperation, OFlags};
use rustix::io::{Errno, pread, pwrite};
use std::time::{Duration, Instant};

const TABLE: &str = "table";
const NEXT_TABLE: &str = "table.new";

const MAGIC: &[u8; 8] = b"treelock";
const FORMAT: u32 = 1;

/// Where the sum of what the file is stands, and the first change.
const SUM: usize = 80;
const CHANGES: u64 = 84;

/// What a change takes beside its events: the length before, the sum behind.
const LENGTH: usize = 4;
const FRAME: usize = 8;

/// Of a file that has no next one.
const NONE: u64 = 0;

/// How much space is kept ready at a time, and how long the changes may be before a new file is worth it.
const SPACE: u64 = if cfg!(test) { 4 << 10 } else { 64 << 10 };
/// For how long a file is taken to have its name.
const LOOK: Duration = Duration::from_millis(1);

/// What is longer is no change: it is not written, and not believed.
const LONGEST: usize = 256 << 20;

/// How much is read at first; who has been away for longer reads once more.
const WINDOW: usize = 1 << 10;
/// How much of what was read last stays in memory.
const BUFFER: usize = 64 << 10;

/// How often one who only looks looks again, if what it sees makes no sense.
const LOOKS: u32 = 100;

/// What one change may take that lets something go.
const LETTING_GO: u64 = 64;

/// The open table of one member.
#[derive(Debug)]
pub(super) struct Journal {
    file: OwnedFd,
    about: About,
    /// Up to where the replica has read.
    end: u64,
    /// The sum that stands there.
    chain: u32,
    /// How many changes these are, with those of the files before.
    count: u64,
    /// The last change that was found to be what the others know.
    agreed: Known,
    /// The sums of those that were read since.
    sums: Vec<u32>,
    /// The inode of the next file, if this one has named it.
    next: u64,
    /// What this member has noted, which the kernel does not tell to itself.
    noted: Known,
    /// Up to where there is space.
    space: u64,
    /// From where it is worth a new file.
    long: u64,
    /// When it was last seen that the file has its name.
    looked: Instant,
    staged: Staged,
    /// For what is read; kept, since memory that comes and goes costs more than the reading.
    buffer: Vec<u8>,
}

/// How many changes one knows, and in the lower bits a part of the sum of the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Known(u64);

impl Known {
    /// With so many, the count lasts for years of nothing else.
    const SUM_BITS: u32 = 20;

    fn new(count: u64, sum: u32) -> Self {
        Known(count << Self::SUM_BITS | u64::from(sum) & ((1 << Self::SUM_BITS) - 1))
    }

    fn count(self) -> u64 {
        self.0 >> Self::SUM_BITS
    }
}

/// A change that is to be written.
#[derive(Debug, Default)]
struct Staged {
    /// Nothing, or room for the length, and events.
    bytes: Vec<u8>,
    /// Whether one of them needs room.
    needs_room: bool,
}

/// How much is taken down.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    length: usize,
    needs_room: bool,
}

/// What a table says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct About {
    inode: u64,
    directory: u64,
    /// How many changes there were when it was made.
    base: u64,
    secrets: [u64; 4],
}

impl About {
    fn seeds(&self) -> Seeds {
        let mut secrets = self.secrets.iter();
        Seeds::new(|| *secrets.next().expect("seeds are made of four words"))
    }

    /// Tells whether two programs name nodes alike.
    fn probe(&self) -> u64 {
        let mut ids = Vec::new();
        Segments::of("treelock/probe of names", &self.seeds(), &mut ids, None).expect("text is a path");
        ids[ids.len() - 1].bits()
    }

    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(FORMAT.to_le_bytes());
        bytes.extend([0; 4]);
        let words = [self.inode, self.directory, self.base].into_iter().chain(self.secrets).chain([self.probe()]);
        words.for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    fn of_bytes(bytes: &[u8]) -> Result<Self, FileProblem> {
        if bytes.iter().all(|&byte| byte == 0) {
            // As after a failure of power.
            return Err(FileProblem::Damaged);
        }
        if bytes.get(..8) != Some(MAGIC) {
            return Err(FileProblem::NotATable);
        }
        let format = bytes.get(8..12).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
        if format.is_some_and(|format| format != FORMAT) {
            return Err(FileProblem::OtherVersion(format.unwrap_or_default()));
        }
        let mut words = bytes.get(16..SUM).ok_or(FileProblem::Damaged)?.chunks_exact(8).map(word);
        let mut next = || words.next().unwrap_or_default();
        let about =
            About { inode: next(), directory: next(), base: next(), secrets: [next(), next(), next(), next()] };
        if bytes.get(SUM..SUM + 4) != Some(&crc32fast::hash(&bytes[..SUM]).to_le_bytes()) {
            return Err(FileProblem::Damaged);
        }
        if next() != about.probe() {
            return Err(FileProblem::OtherVersion(FORMAT));
        }
        Ok(about)
    }

    /// The sum of it, which is the first of those that follow.
    fn sum(&self) -> u32 {
        crc32fast::hash(&self.to_bytes()[..SUM])
    }
}

/// Adds an event to a change.
fn add(change: &mut Vec<u8>, event: &Event) {
    if change.is_empty() {
        change.extend([0; LENGTH]);
    }
    postcard::to_io(event, change).expect("an event has no part that cannot be written");
}

/// Makes a change complete, that is to stand behind what has that sum; returns its own.
fn seal(chain: u32, change: &mut Vec<u8>) -> u32 {
    let length = (change.len() - LENGTH) as u32;
    change[..LENGTH].copy_from_slice(&length.to_le_bytes());
    let sum = sum(chain, change);
    change.extend(sum.to_le_bytes());
    sum
}

/// The sum of all up to the end of these bytes, given the one of all before.
fn sum(chain: u32, bytes: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new_with_initial(chain);
    sum.update(bytes);
    sum.finalize()
}

/// The change that begins these bytes, if it is one behind what has that sum: its events, and its own sum.
fn change(chain: u32, bytes: &[u8]) -> Option<(&[u8], u32)> {
    let (change, rest) = bytes.split_at_checked(length(bytes)?.saturating_add(LENGTH))?;
    let sum = Some(sum(chain, change)).filter(|sum| rest.starts_with(&sum.to_le_bytes()))?;
    Some((&change[LENGTH..], sum))
}

/// Whether a change is short enough to be written.
fn check_length(directory: &Directory, change: &[u8]) -> Result<(), FileError> {
    match change.len() - LENGTH <= LONGEST {
        true => Ok(()),
        false => Err(io(&directory.path_of(TABLE), "write so long a request to", Errno::FBIG)),
    }
}

/// How long the events are of the change that begins these bytes; `None` if there is none yet.
fn length(bytes: &[u8]) -> Option<usize> {
    let length = bytes.first_chunk().map(|&length| u32::from_le_bytes(length))?;
    Some(length as usize).filter(|length| (1..=LONGEST).contains(length))
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

impl Journal {
    /// Begins anew, in a directory that nobody else has open.
    pub(super) fn begin(directory: &Directory, random: impl FnMut() -> u64) -> Result<(), FileError> {
        // Which others may have made when the directory had other rights.
        if let Some(file) = directory.open_file(TABLE, OFlags::RDONLY)? {
            let bytes = read(directory, &file)?;
            match About::of_bytes(&bytes) {
                Ok(_) => {}
                Err(FileProblem::Damaged) => {}
                Err(problem) => return Err(FileError::new(directory.path_of(TABLE), problem)),
            }
        }
        let mut secrets = [0; 4];
        secrets.fill_with(random);
        create(directory, About { inode: 0, directory: 0, base: 0, secrets }, &Replica::default())?;
        directory.rename(NEXT_TABLE, TABLE)?;
        // Afterwards: as long as the old table has the name, its dead must be seen to be dead.
        directory.remove_fifos(|_| true);
        Ok(())
    }

    /// What the table says now, for who only looks, and its inode: neither locked nor waited for.
    pub(super) fn look(directory: &Directory) -> Result<(Replica, u64), FileError> {
        let mut looks = 0;
        loop {
            looks += 1;
            match Self::look_once(directory) {
                Ok(Some(looked)) => return Ok(looked),
                // A new one has taken the name since this one was opened.
                Err(error) if !error.is_of_the_table() || looks > LOOKS => return Err(error),
                _ => std::thread::yield_now(),
            }
        }
    }

    /// `None` if it was replaced meanwhile.
    fn look_once(directory: &Directory) -> Result<Option<(Replica, u64)>, FileError> {
        let mut journal = Self::open_for(directory, OFlags::RDONLY)?;
        let mut replica = Replica::default();
        for _ in 0..LOOKS {
            journal.catch_up(directory, &mut replica)?;
            let is_last = journal.next == NONE
                || (Self::has_name(directory, journal.about.inode)? && journal.is_next_unnamed(directory)?);
            if !is_last {
                return Ok(None);
            }
            match journal.check_seen(directory) {
                Ok(()) => return Ok(Some((replica, journal.about.inode))),
                // More may have been written since it was read.
                Err(error) if error.is_of_the_table() => {}
                Err(error) => return Err(error),
            }
        }
        Err(journal.damaged(directory))
    }

    /// Whether the table of that inode has the name.
    pub(super) fn has_name(directory: &Directory, inode: u64) -> Result<bool, FileError> {
        Ok(directory.inode(TABLE)? == Some(inode))
    }

    /// Opens the table as it is.
    pub(super) fn open(directory: &Directory) -> Result<Self, FileError> {
        Self::open_for(directory, OFlags::RDWR)
    }

    fn open_for(directory: &Directory, access: OFlags) -> Result<Self, FileError> {
        let removed = || FileError::new(directory.path_of(TABLE), FileProblem::Removed);
        let file = directory.open_file(TABLE, access)?.ok_or_else(removed)?;
        let bytes = read(directory, &file)?;
        let about = About::of_bytes(&bytes).map_err(|problem| FileError::new(directory.path_of(TABLE), problem))?;
        let stat = fs::fstat(&file).map_err(|errno| io(&directory.path_of(TABLE), "look at", errno))?;
        if stat.st_ino != about.inode || directory.own_inode()? != about.directory {
            return Err(removed());
        }
        Ok(Self::new(file, about, stat.st_size as u64))
    }

    /// Of a table of which nothing has been read.
    fn new(file: OwnedFd, about: About, space: u64) -> Self {
        let mut journal = Journal {
            file,
            about,
            end: 0,
            chain: 0,
            count: 0,
            agreed: Known::default(),
            sums: Vec::new(),
            next: NONE,
            noted: Known::default(),
            space,
            long: SPACE,
            looked: Instant::now(),
            staged: Staged::default(),
            buffer: Vec::new(),
        };
        journal.begin_again();
        journal
    }

    #[cfg(test)]
    pub(super) fn look_again(&mut self) {
        self.looked = Instant::now() - LOOK;
    }

    pub(super) fn seeds(&self) -> Seeds {
        self.about.seeds()
    }

    /// Locks the table that has the name now, and brings the replica up to date; `false` if the deadline passes first.
    pub(super) fn lock(
        &mut self,
        directory: &Directory,
        replica: &mut Replica,
        deadline: Option<Instant>,
    ) -> Result<bool, FileError> {
        loop {
            if !self.flock(directory, replica, deadline)? {
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

    /// Why the table cannot be locked in time.
    pub(super) fn kept(&self, directory: &Directory) -> FileError {
        FileError::new(directory.path_of(TABLE), FileProblem::Flocked)
    }

    pub(super) fn unlock(&self) {
        let _ = files::flock(&self.file, FlockOperation::Unlock);
    }

    fn flock(
        &mut self,
        directory: &Directory,
        replica: &mut Replica,
        deadline: Option<Instant>,
    ) -> Result<bool, FileError> {
        let failed = |errno| io(&directory.path_of(TABLE), "flock", errno);
        match files::flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            // Others are at it, so there is something to read: most of it now, while nobody has to wait for that. What
            // stands before the end never changes; if it cannot be read, that shows again under the lock.
            Err(Errno::WOULDBLOCK) => drop(self.catch_up(directory, replica)),
            Err(errno) => return Err(failed(errno)),
        }
        let Some(deadline) = deadline else {
            return files::flock(&self.file, FlockOperation::LockExclusive).map(|()| true).map_err(failed);
        };
        // Others have it for some microseconds; longer only if one is stopped there, so there is no need to be told.
        for attempt in 0_u32.. {
            match files::flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(true),
                Err(Errno::WOULDBLOCK) if Instant::now() >= deadline => return Ok(false),
                Err(Errno::WOULDBLOCK) if attempt < 64 => std::thread::yield_now(),
                Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_micros(10 << (attempt / 64).min(5))),
                Err(errno) => return Err(failed(errno)),
            }
        }
        unreachable!("it tries without end")
    }

    /// Whether the table that is locked still is the last, if so with the replica up to date; else the one that is is open
    /// now, and not locked.
    fn check(&mut self, directory: &Directory, replica: &mut Replica) -> Result<bool, FileError> {
        let caught_up = self.catch_up(directory, replica);
        // If a next one has been named, it may have had the name, and all that was agreed on since.
        let is_last = self.next == NONE;
        // Should the name be gone by other means, nobody else can take it; so it is enough to look now and then.
        if caught_up.is_ok() && is_last && self.looked.elapsed() < LOOK {
            return Ok(true);
        }
        if Self::has_name(directory, self.about.inode)? {
            caught_up?;
            if !is_last {
                // Or else this one was put back in its place.
                if !self.is_next_unnamed(directory)? {
                    return Err(FileError::new(directory.path_of(TABLE), FileProblem::Removed));
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
            Ok(next) if next.about.secrets == self.about.secrets && next.about.base > self.about.base => {
                // Closing it would not do: a forked child may have it too.
                self.unlock();
                *self = Journal { noted: self.noted, ..next };
                Ok(false)
            }
            Ok(_) => Err(FileError::new(directory.path_of(TABLE), FileProblem::Removed)),
            // It was removed, or something else put in its place. All that was agreed on is still here.
            Err(error) if error.is_of_the_table() && (is_last || self.is_next_unnamed(directory)?) => {
                caught_up?;
                self.check_seen(directory)?;
                self.name_no_next(directory)?;
                self.rewrite(directory, replica)?;
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the next table, which this one names, has not taken the name: who made it died before.
    fn is_next_unnamed(&self, directory: &Directory) -> Result<bool, FileError> {
        Ok(directory.inode(NEXT_TABLE)? == Some(self.next))
    }

    /// Reads what was written since the last time.
    fn catch_up(&mut self, directory: &Directory, replica: &mut Replica) -> Result<(), FileError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let caught_up = self.catch_up_by(&mut buffer, directory, replica);
        if buffer.capacity() <= BUFFER {
            self.buffer = buffer;
        }
        // A table begins with all there was when it was made.
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
            let before = self.chain.to_le_bytes();
            let read = read_into(directory, &self.file, self.end - before.len() as u64, &mut buffer[..window])?;
            let mut rest = buffer[..read].strip_prefix(&before).ok_or_else(|| self.damaged(directory))?;
            while let Some((events, sum)) = change(self.chain, rest) {
                let taken = events.len() + FRAME;
                if self.apply(events, replica).is_err() {
                    self.begin_again();
                    return Err(self.damaged(directory));
                }
                (self.end, self.chain, self.count) = (self.end + taken as u64, sum, self.count + 1);
                self.sums.push(sum);
                rest = &rest[taken..];
            }
            let needed = length(rest).map_or(FRAME, |length| length.saturating_add(FRAME));
            let ends = || self.file_length(directory).map(|length| self.end + needed as u64 > length);
            // What follows is no change, or is all there.
            if rest.starts_with(&[0; LENGTH]) || needed <= rest.len() || ends()? {
                return Ok(());
            }
            window = BUFFER.max(before.len() + needed);
        }
    }

    /// Applies what others have written, who tell those whom it concerns.
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

    fn damaged(&self, directory: &Directory) -> FileError {
        FileError::new(directory.path_of(TABLE), FileProblem::Damaged)
    }

    /// Nothing has been read, or the replica is not what was: all is read with the next lock.
    fn begin_again(&mut self) {
        (self.end, self.chain, self.next) = (CHANGES, self.about.sum(), NONE);
        self.count = self.about.base;
        self.agreed = Known::new(self.count, 0);
        self.sums.clear();
    }

    fn file_length(&self, directory: &Directory) -> Result<u64, FileError> {
        let stat = fs::fstat(&self.file).map_err(|errno| io(&directory.path_of(TABLE), "look at", errno))?;
        Ok(stat.st_size as u64)
    }

    /// Takes down an event, which is written with the next [`commit`](Journal::commit).
    pub(super) fn stage(&mut self, event: &Event) {
        add(&mut self.staged.bytes, event);
        self.staged.needs_room |= needs_room(event);
    }

    /// Whether nothing is taken down.
    pub(super) fn is_unchanged(&self) -> bool {
        self.staged.bytes.is_empty()
    }

    /// How much is taken down.
    pub(super) fn staged(&self) -> Mark {
        Mark { length: self.staged.bytes.len(), needs_room: self.staged.needs_room }
    }

    /// Goes back to when so much was taken down.
    pub(super) fn unstage(&mut self, Mark { length, needs_room }: Mark) {
        self.staged.bytes.truncate(length);
        self.staged.needs_room = needs_room;
    }

    /// Drops what was taken down and not written, if there is anything.
    pub(super) fn abandon(&mut self) {
        if !self.is_unchanged() {
            self.unstage(Mark::default());
            self.begin_again();
        }
    }

    /// Writes what was taken down, which the replica has applied.
    pub(super) fn commit(&mut self, directory: &Directory, replica: &Replica) -> Result<(), FileError> {
        if self.is_unchanged() {
            return Ok(());
        }
        check_length(directory, &self.staged.bytes)?;
        self.check_seen(directory)?;
        let needed = (self.staged.bytes.len() + FRAME - LENGTH) as u64;
        // What only lets go has its room already (invariant 5).
        let room = self.make_room(directory, needed + room_to_let_go(replica));
        let has_room = !self.staged.needs_room && self.end + needed <= self.space;
        room.or_else(|error| if has_room { Ok(()) } else { Err(error) })?;
        let mut change = std::mem::take(&mut self.staged).bytes;
        let written = self.append(directory, &mut change);
        change.clear();
        self.staged.bytes = change;
        written.inspect_err(|_| self.begin_again())?;
        if self.end > self.long {
            // If there is no room for a second file, the first goes on.
            if self.rewrite(directory, replica).is_err() {
                self.long *= 2;
            }
        }
        self.note_seen(directory);
        Ok(())
    }

    fn append(&mut self, directory: &Directory, change: &mut Vec<u8>) -> Result<(), FileError> {
        let sum = seal(self.chain, change);
        write(directory, &self.file, self.end, change)?;
        (self.end, self.chain, self.count) = (self.end + change.len() as u64, sum, self.count + 1);
        // Who writes has asked before.
        self.agree();
        Ok(())
    }

    fn known(&self) -> Known {
        Known::new(self.count, self.chain)
    }

    /// Leaves word of what was read (invariant 3).
    pub(super) fn note_seen(&mut self, directory: &Directory) {
        self.noted = self.known();
        directory.note_seen(self.noted.0);
    }

    /// Whether what was read is what those who live have noted, or goes on from there (invariant 3).
    pub(super) fn check_seen(&mut self, directory: &Directory) -> Result<(), FileError> {
        let mut noted = Some(self.noted);
        let mut most = self.agreed;
        while let Some(one) = noted {
            if !self.has_read(one) {
                return Err(self.damaged(directory));
            }
            most = most.max(one);
            noted = directory.seen_beyond(most.0)?.map(Known);
        }
        self.agree();
        Ok(())
    }

    fn agree(&mut self) {
        self.agreed = self.known();
        self.sums.clear();
    }

    /// Whether somebody who knows that much knows the same as this one.
    fn has_read(&self, noted: Known) -> bool {
        match noted.count().checked_sub(self.agreed.count() + 1) {
            // It is the beginning of what was agreed on.
            None => true,
            Some(place) => self.sums.get(place as usize).is_some_and(|&sum| noted == Known::new(noted.count(), sum)),
        }
    }

    fn make_room(&mut self, directory: &Directory, needed: u64) -> Result<(), FileError> {
        let needed = self.end + needed;
        if needed > self.space {
            // Another may have made it.
            self.space = self.space.max(self.file_length(directory)?);
        }
        if needed > self.space {
            let more = (needed - self.space).next_multiple_of(SPACE);
            allocate(directory, &self.file, self.space, more)?;
            self.space += more;
        }
        Ok(())
    }

    /// Writes all that the replica says to a new table, which takes the name, and is locked.
    fn rewrite(&mut self, directory: &Directory, replica: &Replica) -> Result<(), FileError> {
        let about = About { base: self.count, ..self.about };
        let next = create(directory, about, replica)?;
        files::flock(&next.file, FlockOperation::LockExclusive)
            .map_err(|errno| io(&directory.path_of(NEXT_TABLE), "flock", errno))?;
        self.make_room(directory, room_to_let_go(replica))?;
        // Before it is true, and taken back if it does not become so.
        self.name_next(directory, next.about.inode)?;
        if let Err(error) = directory.rename(NEXT_TABLE, TABLE) {
            self.name_no_next(directory)?;
            return Err(error);
        }
        // Who waits there finds that there is a next one.
        self.unlock();
        *self = Journal { noted: self.noted, ..next };
        Ok(())
    }

    /// Takes back what `name_next` has said, if it has.
    fn name_no_next(&mut self, directory: &Directory) -> Result<(), FileError> {
        if self.next == NONE { Ok(()) } else { self.name_next(directory, NONE) }
    }

    fn name_next(&mut self, directory: &Directory, inode: u64) -> Result<(), FileError> {
        let mut change = Vec::new();
        add(&mut change, &Event::Next(inode));
        self.append(directory, &mut change)?;
        self.next = inode;
        Ok(())
    }
}

/// Makes a table of all that the replica says, not yet under its name.
fn create(directory: &Directory, about: About, replica: &Replica) -> Result<Journal, FileError> {
    let file = directory.create_file(NEXT_TABLE)?;
    let stat = fs::fstat(&file).map_err(|errno| io(&directory.path_of(NEXT_TABLE), "look at", errno))?;
    let about = About { inode: stat.st_ino, directory: directory.own_inode()?, ..about };
    let mut begin = Vec::new();
    add(&mut begin, &Event::Begin(Box::new(replica.store())));
    check_length(directory, &begin)?;
    let needed = CHANGES + (begin.len() + FRAME - LENGTH) as u64 + room_to_let_go(replica);
    let space = needed.next_multiple_of(SPACE);
    allocate(directory, &file, 0, space)?;
    write(directory, &file, 0, &about.to_bytes())?;
    let mut journal = Journal::new(file, about, space);
    journal.append(directory, &mut begin)?;
    journal.long = long(journal.end);
    Ok(journal)
}

/// Whether it needs room, and does not only let go (invariant 5). A downgrade can wait.
fn needs_room(event: &Event) -> bool {
    matches!(event, Event::Join(_) | Event::Ask(_) | Event::Downgrade(..))
}

/// From where a new file is worth it, if all there is takes so much.
fn long(all: u64) -> u64 {
    SPACE.max(4 * all)
}

/// For each request and each member; and to name a next file, and to take that back.
fn room_to_let_go(replica: &Replica) -> u64 {
    LETTING_GO * (replica.requests.len() + replica.members.len() + 2) as u64
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

/// What a table says of itself, if it says so much.
fn read(directory: &Directory, file: &OwnedFd) -> Result<Vec<u8>, FileError> {
    let mut bytes = vec![0; CHANGES as usize];
    let done = read_into(directory, file, 0, &mut bytes)?;
    bytes.truncate(done);
    Ok(bytes)
}

/// What stands there, up to the end of the file; how many bytes that are.
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
    // In tests a process dies in the middle too.
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

#[cfg(test)]
mod tests {
    use super::super::ProcessTreeLock;
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Tables are replaced all the time, here, while others wait for the old one.
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
