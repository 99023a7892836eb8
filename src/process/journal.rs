//! The file `table`: the events of a lock in their order, and how a process keeps its replica up to date.
//!
//! ```text
//!    0  what the file is: magic, format, inodes, base, the secrets of the node ids, sum       written once
//!  128  up to where it holds: end, the inode of the next file if there is one, sums           the commit
//!  256  events: length, sum, bytes; one after the other                                       appended
//!   ... zeros up to the space that is kept ready
//! ```
//!
//! A change is a few events behind the end, and then a new end. Before the end is written nothing has happened, and the next
//! one writes over it; afterwards it has. So a process may die anywhere (P1): nothing is ever half done, and there is
//! nothing to repair. A write of some bytes in one page is done or not.
//!
//! Invariants:
//!
//! 1. Only who has the exclusive `flock` on the last file writes, and decides. Who has it sees in the commit whether a next
//!    file has been named, and now and then looks whether the file still has its name.
//! 2. What stands before the end never changes, and the sum of each event follows from all those before it. So whatever does
//!    not fit there was written over by others, and is an error to everybody (P4): no replica goes on past it, nor from
//!    anything else than what it has read.
//! 3. A file knows its inode and that of its directory. A copy in its place is none of ours, nor is the table of another
//!    lock. Before a new file takes the name, the old one names its inode: so who is behind knows that the old one is, too.
//!    Nor is an older state of the same file: whoever writes, or finds itself granted, notes with the kernel up to which
//!    *position* it has seen the journal (`files.rs`); and nobody writes, is refused or waits where a living member, itself
//!    included, has noted more. The position grows from file to file: the base of each is where the one before ended.
//!    Asking costs a call, so who finds the file as it has left it lets go once without: that is shorter than any event by
//!    which somebody gets something, so it hides none of these from the next one who asks.
//! 4. For each request and each member there is room to let go: on a full disk, requests fail and releases do not.
//!
//! When the events have become long against what they led to, all of it is written to a new file, which takes the
//! name; that is also how a file comes back that somebody has removed. Cost: a change reads what others wrote since the
//! last one, and writes some hundred bytes; the rewriting is paid by the events before it.
//!
//! Considered and rejected: a mapped table under a robust mutex (a file that is cut under it kills every process by a
//! signal, and each of its changes takes many stores, any of which may be the last); byte-range locks (linear in
//! what is held, no order, no deadlines, no list). The idea: a replicated state machine over one log (Schneider 1990), the
//! log being a file of one host and its order a `flock`.

use super::crash;
use super::error::{FileError, FileProblem};
use super::files::{self, Directory, io};
use super::replica::{Effects, Event, Replica};
use crate::path::{Seeds, Segments};
use rustix::fd::OwnedFd;
use rustix::fs::{self, FallocateFlags, FlockOperation, OFlags};
use rustix::io::{Errno, pread, pwrite};
use std::time::{Duration, Instant};

const TABLE: &str = "table";
const NEXT_TABLE: &str = "table.new";

const MAGIC: &[u8; 8] = b"treelock";
const FORMAT: u32 = 1;

/// Where the parts of the file begin.
const SUM: usize = 80;
const COMMIT: u64 = 128;
const EVENTS: u64 = 256;

/// The length of the commit.
const COMMIT_LENGTH: usize = 24;

/// Of a file that has no next one.
const NONE: u64 = 0;

/// How much space is kept ready at a time, and how long the events may be before a new file is worth it.
const SPACE: u64 = if cfg!(test) { 4 << 10 } else { 64 << 10 };
/// For how long a file is taken to have its name.
const LOOK: Duration = Duration::from_millis(1);

/// Shorter than any event by which somebody gets something (invariant 3); a withdrawal takes up to 39.
const SHORT: usize = 40;

/// How much of what was read last stays in memory.
const BUFFER: usize = 64 << 10;

/// How often one who only looks looks again, if what it sees makes no sense.
const LOOKS: u32 = 100;

/// What one event may take that lets something go.
const LETTING_GO: u64 = 64;

/// The open table of one member.
#[derive(Debug)]
pub(super) struct Journal {
    file: OwnedFd,
    about: About,
    /// Up to where the replica has read.
    end: u64,
    /// The sum of the last event there.
    chain: u32,
    /// Whether the last events are this member's, which had asked before (invariant 3).
    is_fresh: bool,
    /// What this member has noted, which `is_seen_beyond` does not tell to itself.
    noted: u64,
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

/// Events that are to be written behind the end.
#[derive(Debug, Default)]
struct Staged {
    bytes: Vec<u8>,
    /// The sum of the last one.
    chain: u32,
    /// Whether one of them needs room.
    needs_room: bool,
}

/// What stands at `COMMIT`.
#[derive(Clone, Copy, Debug)]
struct Commit {
    /// Up to where the file holds.
    end: u64,
    /// The inode of the next file.
    next: u64,
    /// The sum of the last event before the end.
    chain: u32,
}

/// How much is taken down.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    length: usize,
    chain: u32,
    needs_room: bool,
}

/// What a table says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct About {
    inode: u64,
    directory: u64,
    /// The position where the file before ended.
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

    fn commit(&self, Commit { end, next, chain }: Commit) -> [u8; COMMIT_LENGTH] {
        let mut bytes = [0; COMMIT_LENGTH];
        bytes[..8].copy_from_slice(&end.to_le_bytes());
        bytes[8..16].copy_from_slice(&next.to_le_bytes());
        bytes[16..20].copy_from_slice(&chain.to_le_bytes());
        let sum = self.sum(chain, COMMIT, &bytes[..20]);
        bytes[20..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// `None` if the bytes are no commit.
    fn commit_of(&self, bytes: &[u8]) -> Option<Commit> {
        let chain = u32::from_le_bytes(bytes.get(16..20)?.try_into().ok()?);
        let commit = Commit { end: word(bytes.get(..8)?), next: word(bytes.get(8..16)?), chain };
        (bytes == self.commit(commit)).then_some(commit)
    }

    /// A sum that fits nowhere else, and after nothing else.
    fn sum(&self, chain: u32, place: u64, bytes: &[u8]) -> u32 {
        let mut head = [0; 28];
        head[..8].copy_from_slice(&self.secrets[0].to_le_bytes());
        head[8..16].copy_from_slice(&self.base.to_le_bytes());
        head[16..24].copy_from_slice(&place.to_le_bytes());
        head[24..].copy_from_slice(&chain.to_le_bytes());
        let mut sum = crc32fast::Hasher::new();
        sum.update(&head);
        sum.update(bytes);
        sum.finalize()
    }

    /// Adds an event to those that are to stand from `start` on; its sum, given the one before.
    fn encode(&self, start: u64, chain: u32, events: &mut Vec<u8>, event: &Event) -> u32 {
        let head = events.len();
        events.extend([0; 8]);
        let body = events.len();
        postcard::to_io(event, &mut *events).expect("an event has no part that cannot be written");
        let length = u32::try_from(events.len() - body).expect("treelock: a request of 4 GiB");
        let sum = self.sum(chain, start + head as u64, &events[body..]);
        events[head..head + 4].copy_from_slice(&length.to_le_bytes());
        events[head + 4..body].copy_from_slice(&sum.to_le_bytes());
        sum
    }

    /// The event that stands at `place`, given the sum before it and the bytes from there on; how many of them it takes, and
    /// its sum. `None` if it is none.
    fn decode(&self, place: u64, chain: u32, bytes: &[u8]) -> Option<(Event, usize, u32)> {
        let length = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let sum = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
        let event = bytes.get(8..8 + length).filter(|event| sum == self.sum(chain, place, event))?;
        Some((postcard::from_bytes(event).ok()?, 8 + length, sum))
    }
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

impl Journal {
    /// Begins anew, in a directory that nobody else has open.
    pub(super) fn begin(directory: &Directory, random: impl FnMut() -> u64) -> Result<(), FileError> {
        // Which others may have made when the directory had other rights.
        if let Some(file) = directory.open_file(TABLE, OFlags::RDONLY)? {
            let bytes = read(directory, &file, 0, EVENTS)?;
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

    /// What the table says now, for who only looks: neither locked nor waited for.
    pub(super) fn look(directory: &Directory) -> Result<Replica, FileError> {
        let mut looks = 0;
        loop {
            looks += 1;
            match Self::look_once(directory) {
                Ok(Some(replica)) => return Ok(replica),
                // It was read while it was written.
                Err(error) if !error.is_of_the_table() || looks > LOOKS => return Err(error),
                _ => std::thread::yield_now(),
            }
        }
    }

    /// `None` if it was replaced meanwhile.
    fn look_once(directory: &Directory) -> Result<Option<Replica>, FileError> {
        let mut journal = Self::open_for(directory, OFlags::RDONLY)?;
        let mut replica = Replica::default();
        let commit = journal.read_commit(directory)?;
        let next = commit.map_or(NONE, |commit| commit.next);
        let is_last = next == NONE
            || (directory.inode(TABLE)? == Some(journal.about.inode) && directory.inode(NEXT_TABLE)? == Some(next));
        journal.catch_up_to(directory, &mut replica, commit)?;
        Ok(is_last.then_some(replica))
    }

    /// Opens the table as it is.
    pub(super) fn open(directory: &Directory) -> Result<Self, FileError> {
        Self::open_for(directory, OFlags::RDWR)
    }

    fn open_for(directory: &Directory, access: OFlags) -> Result<Self, FileError> {
        let removed = || FileError::new(directory.path_of(TABLE), FileProblem::Removed);
        let file = directory.open_file(TABLE, access)?.ok_or_else(removed)?;
        let bytes = read(directory, &file, 0, EVENTS)?;
        let about = About::of_bytes(&bytes).map_err(|problem| FileError::new(directory.path_of(TABLE), problem))?;
        let stat = fs::fstat(&file).map_err(|errno| io(&directory.path_of(TABLE), "look at", errno))?;
        if stat.st_ino != about.inode || directory.own_inode()? != about.directory {
            return Err(removed());
        }
        Ok(Journal {
            file,
            about,
            end: EVENTS,
            chain: 0,
            is_fresh: false,
            noted: 0,
            space: stat.st_size as u64,
            long: SPACE,
            looked: Instant::now(),
            staged: Staged::default(),
            buffer: Vec::new(),
        })
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
    pub(super) fn is_kept(&self, directory: &Directory) -> FileError {
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
        let commit = self.read_commit(directory)?;
        // If a next one has been named, it may have had the name, and all that was agreed on since.
        let is_last = commit.is_some_and(|commit| commit.next == NONE);
        // Should the name be gone by other means, nobody else can take it; so it is enough to look now and then.
        if is_last && self.looked.elapsed() < LOOK {
            self.catch_up_to(directory, replica, commit)?;
            return Ok(true);
        }
        if directory.inode(TABLE)? == Some(self.about.inode) {
            if let Some(commit) = commit.filter(|_| !is_last) {
                // Whoever named it died before it took the name; or else this one was put back in its place.
                if directory.inode(NEXT_TABLE)? != Some(commit.next) {
                    return Err(FileError::new(directory.path_of(TABLE), FileProblem::Removed));
                }
                write(directory, &self.file, COMMIT, &self.about.commit(Commit { next: NONE, ..commit }))?;
            }
            self.looked = Instant::now();
            self.catch_up_to(directory, replica, commit)?;
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
            Err(error) if error.is_of_the_table() && is_last => {
                self.catch_up_to(directory, replica, commit)?;
                self.check_seen(directory)?;
                self.rewrite(directory, replica)?;
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    fn catch_up(&mut self, directory: &Directory, replica: &mut Replica) -> Result<(), FileError> {
        let commit = self.read_commit(directory)?;
        self.catch_up_to(directory, replica, commit)
    }

    /// `None` if what stands there is no commit.
    fn read_commit(&self, directory: &Directory) -> Result<Option<Commit>, FileError> {
        let mut bytes = [0; COMMIT_LENGTH];
        let length = read_into(directory, &self.file, COMMIT, &mut bytes)?;
        Ok(self.about.commit_of(&bytes[..length]))
    }

    fn catch_up_to(
        &mut self,
        directory: &Directory,
        replica: &mut Replica,
        commit: Option<Commit>,
    ) -> Result<(), FileError> {
        let damaged = || FileError::new(directory.path_of(TABLE), FileProblem::Damaged);
        let Commit { end, chain, .. } = commit.filter(|commit| commit.end >= self.end).ok_or_else(damaged)?;
        if end == self.end {
            return if chain == self.chain { Ok(()) } else { Err(damaged()) };
        }
        self.is_fresh = false;
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes.resize((end - self.end) as usize, 0);
        let length = read_into(directory, &self.file, self.end, &mut bytes)?;
        let mut rest = &bytes[..length];
        while self.end < end {
            let (event, length, sum) = self.about.decode(self.end, self.chain, rest).ok_or_else(damaged)?;
            if let Event::Begin(_) = event {
                // All there was when the file was made.
                self.long = long(length as u64);
            }
            // Whoever wrote it tells those whom it concerns.
            replica.apply(event, &mut Effects::default());
            self.end += length as u64;
            self.chain = sum;
            rest = &rest[length..];
        }
        if bytes.capacity() <= BUFFER {
            self.buffer = bytes;
        }
        if chain == self.chain { Ok(()) } else { Err(damaged()) }
    }

    /// Takes down an event, which is written with the next [`commit`](Journal::commit).
    pub(super) fn stage(&mut self, event: &Event) {
        let before = if self.staged.bytes.is_empty() { self.chain } else { self.staged.chain };
        self.staged.chain = self.about.encode(self.end, before, &mut self.staged.bytes, event);
        self.staged.needs_room |= needs_room(event);
    }

    /// Whether nothing is taken down.
    pub(super) fn is_unchanged(&self) -> bool {
        self.staged.bytes.is_empty()
    }

    /// How much is taken down.
    pub(super) fn staged(&self) -> Mark {
        Mark { length: self.staged.bytes.len(), chain: self.staged.chain, needs_room: self.staged.needs_room }
    }

    /// Goes back to when so much was taken down.
    pub(super) fn unstage(&mut self, Mark { length, chain, needs_room }: Mark) {
        self.staged.bytes.truncate(length);
        (self.staged.chain, self.staged.needs_room) = (chain, needs_room);
    }

    /// Drops what was taken down and not written, if there is anything: the replica is ahead of the file then, and begins
    /// again with the next lock.
    pub(super) fn abandon(&mut self) {
        if !self.staged.bytes.is_empty() {
            self.unstage(Mark::default());
            (self.end, self.chain, self.is_fresh) = (EVENTS, 0, false);
        }
    }

    /// Writes what was taken down behind the end, and the new end. The replica has applied it, and `moves` says whether
    /// somebody who waited gets something by that.
    pub(super) fn commit(&mut self, directory: &Directory, replica: &Replica, moves: bool) -> Result<(), FileError> {
        if self.staged.bytes.is_empty() {
            return Ok(());
        }
        let asks = moves || self.staged.needs_room || !self.is_fresh || self.staged.bytes.len() > SHORT;
        let asked = if asks { self.check_seen(directory) } else { Ok(()) };
        let written = asked.and_then(|()| self.write(directory, replica));
        if written.is_err() {
            self.abandon();
            return written;
        }
        self.unstage(Mark::default());
        self.is_fresh = asks;
        if self.end > self.long {
            // If there is no room for a second file, the first goes on.
            if self.rewrite(directory, replica).is_err() {
                self.long *= 2;
            }
        }
        self.note_seen(directory);
        Ok(())
    }

    fn position(&self) -> u64 {
        self.about.base + self.end
    }

    /// Leaves word of what was read (invariant 3).
    pub(super) fn note_seen(&mut self, directory: &Directory) {
        self.noted = self.position();
        directory.note_seen(self.noted);
    }

    /// Whether nobody who lives has noted more than was read (invariant 3).
    pub(super) fn check_seen(&self, directory: &Directory) -> Result<(), FileError> {
        match self.position() < self.noted || directory.is_seen_beyond(self.position())? {
            true => Err(FileError::new(directory.path_of(TABLE), FileProblem::Damaged)),
            false => Ok(()),
        }
    }

    fn write(&mut self, directory: &Directory, replica: &Replica) -> Result<(), FileError> {
        let end = self.end + self.staged.bytes.len() as u64;
        // What only lets go has its room already (invariant 4).
        let room = self.make_room(directory, end + room_to_let_go(replica));
        room.or_else(|error| if self.staged.needs_room || end > self.space { Err(error) } else { Ok(()) })?;
        write(directory, &self.file, self.end, &self.staged.bytes)?;
        let chain = self.staged.chain;
        write(directory, &self.file, COMMIT, &self.about.commit(Commit { end, next: NONE, chain }))?;
        (self.end, self.chain) = (end, chain);
        Ok(())
    }

    fn make_room(&mut self, directory: &Directory, needed: u64) -> Result<(), FileError> {
        if needed > self.space {
            // Another may have made it.
            let stat = fs::fstat(&self.file).map_err(|errno| io(&directory.path_of(TABLE), "look at", errno))?;
            self.space = self.space.max(stat.st_size as u64);
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
        let about = About { base: self.position(), ..self.about };
        let next = create(directory, about, replica)?;
        files::flock(&next.file, FlockOperation::LockExclusive)
            .map_err(|errno| io(&directory.path_of(NEXT_TABLE), "flock", errno))?;
        // Before it is true, and taken back if it does not become so.
        let commit = Commit { end: self.end, next: next.about.inode, chain: self.chain };
        write(directory, &self.file, COMMIT, &self.about.commit(commit))?;
        if let Err(error) = directory.rename(NEXT_TABLE, TABLE) {
            write(directory, &self.file, COMMIT, &self.about.commit(Commit { next: NONE, ..commit }))?;
            return Err(error);
        }
        // Who waits there finds that there is a next one.
        self.unlock();
        *self = Journal { noted: self.noted, ..next };
        // Of those who died when they had left, and had no time to clear up.
        directory.remove_fifos(|member| member < replica.next_member() && !replica.members.contains_key(&member));
        Ok(())
    }
}

/// Makes a table of all that the replica says, not yet under its name.
fn create(directory: &Directory, about: About, replica: &Replica) -> Result<Journal, FileError> {
    let file = directory.create_file(NEXT_TABLE)?;
    let stat = fs::fstat(&file).map_err(|errno| io(&directory.path_of(NEXT_TABLE), "look at", errno))?;
    let about = About { inode: stat.st_ino, directory: directory.own_inode()?, ..about };
    let mut events = Vec::new();
    let chain = about.encode(EVENTS, 0, &mut events, &Event::Begin(Box::new(replica.store())));
    let end = EVENTS + events.len() as u64;
    let space = (end + room_to_let_go(replica)).next_multiple_of(SPACE);
    allocate(directory, &file, 0, space)?;
    write(directory, &file, 0, &about.to_bytes())?;
    write(directory, &file, EVENTS, &events)?;
    write(directory, &file, COMMIT, &about.commit(Commit { end, next: NONE, chain }))?;
    let (is_fresh, noted, long) = (false, 0, long(end));
    let (looked, staged, buffer) = (Instant::now(), Staged::default(), Vec::new());
    Ok(Journal { file, about, end, chain, is_fresh, noted, space, long, looked, staged, buffer })
}

/// Whether it needs room, and does not only let go (invariant 4). A downgrade can wait.
fn needs_room(event: &Event) -> bool {
    matches!(event, Event::Join(_) | Event::Ask(_) | Event::Downgrade(..))
}

/// From where a new file is worth it, if all there is takes so much.
fn long(all: u64) -> u64 {
    SPACE.max(4 * all)
}

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

/// What stands there, up to the end of the file.
fn read(directory: &Directory, file: &OwnedFd, from: u64, length: u64) -> Result<Vec<u8>, FileError> {
    let mut bytes = vec![0; length as usize];
    let done = read_into(directory, file, from, &mut bytes)?;
    bytes.truncate(done);
    Ok(bytes)
}

/// The same, and how many bytes that are.
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
    // In tests a process dies in the middle too; but the commit is too short for that.
    let halves = if cfg!(test) && bytes.len() > COMMIT_LENGTH { bytes.len() / 2 } else { bytes.len() };
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
