//! The directory of a lock, and what the kernel keeps there: which members live, and how waiters are woken.
//!
//! | | | |
//! |---|---|---|
//! | the directory | a shared `flock` by each member | a process that gets it exclusively is alone, and may begin anew |
//! | | locks of bytes by each member | how much of the journal the member knows; see below |
//! | `table` | an exclusive `flock` while it is used | the journal (`journal/`) |
//! | `m7` | a FIFO that member 7 keeps open for writing | its end of file is the end of the member: *lifeline* |
//! | `m7.2` | a FIFO that a waiter of member 7 reads | a byte in it wakes the waiter: *channel* |
//!
//! So the kernel says which members live (P2). It closes what a process had open, however the process ended; a child
//! that inherits the lifeline keeps its parent's member alive. A FIFO can be polled, so a waiter need not look again
//! and again. All this works between users, and between containers that share the directory. Process ids are only
//! shown to people.
//!
//! A process that finds no table in a directory where members live must not make one: otherwise two processes could
//! hold one sub-tree in two files. The `flock` on the inode of the directory tells whether members live, whatever
//! happens to the files.
//!
//! Nor may a member believe an older copy of the table that was written over it, as when a backup is restored: all
//! that such a copy says was true, but what came later is missing. So each member keeps a read lock on bytes of the
//! directory, from the first byte up to a number that tells what the member knew of the journal when it last wrote,
//! or was granted something. A directory has no bytes, and these locks exclude nobody. They are notes: no file holds
//! them, others read them in one call, and the kernel removes them with the member.
//!
//! Not here: the contents of the table (`journal/`), and when a member is buried (`member/watch.rs`).

use super::crash;
use super::error::{FileError, FileProblem};
use crate::replica::{Channel, MemberId};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The directory of a lock, open, with a shared `flock` on it.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    fd: OwnedFd,
    /// The permissions of files in it: those of the directory.
    rights: Mode,
}

/// How long to wait while another process has an exclusive `flock` on the directory. One that makes the first table
/// has it for a moment.
const PATIENCE: Duration = Duration::from_secs(5);

/// The file systems that another host may use too. (`man 2 statfs`)
const NETWORK_FILE_SYSTEMS: [(u32, &str); 14] = [
    (0x6969, "NFS"),
    (0x517B, "SMB"),
    (0xFF53_4D42, "CIFS"),
    (0xFE53_4D42, "SMB2"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "FUSE"),
    (0x6A65_6A63, "virtiofs"),
    (0x00C3_6400, "Ceph"),
    (0x5346_414F, "AFS"),
    (0x6B41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x0BD0_0BD0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x7461_636F, "OCFS2"),
];

impl Directory {
    /// Opens an existing directory, to look at it without becoming a member.
    pub(super) fn look(path: &Path) -> Result<Self, FileError> {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::open(&path, flags, Mode::empty()).and_then(out_of_the_way);
        let fd = fd.map_err(|errno| io(&path, "open", errno))?;
        let stat = fs::fstat(&fd).map_err(|errno| io(&path, "look at", errno))?;
        let rights = Mode::from_raw_mode(stat.st_mode) & Mode::from_raw_mode(0o666);
        Ok(Directory { path, fd, rights })
    }

    /// Opens it once more, to look at it as others do: the kernel does not show the locks of an open file to that
    /// file itself.
    pub(super) fn as_others(&self) -> Result<Self, FileError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::openat(&self.fd, ".", flags, Mode::empty()).map_err(|errno| io(&self.path, "open", errno))?;
        Ok(Directory { path: self.path.clone(), fd, rights: self.rights })
    }

    /// Opens a directory, and creates it if it does not exist. Runs `begin` if nobody else has it open.
    pub(super) fn open(
        path: &Path,
        insist: bool,
        deadline: Option<Instant>,
        begin: impl FnOnce(&Directory) -> Result<(), FileError>,
    ) -> Result<Self, FileError> {
        std::fs::create_dir_all(path)
            .map_err(|source| FileError::new(path, FileProblem::Io { doing: "make the directory", source }))?;
        let directory = Self::look(path)?;
        let kind = fs::fstatfs(&directory.fd).map_err(|errno| io(&directory.path, "look at", errno))?.f_type as u32;
        if let (false, Some((_, kind))) = (insist, NETWORK_FILE_SYSTEMS.iter().find(|(magic, _)| *magic == kind)) {
            return Err(FileError::new(directory.path, FileProblem::NetworkFileSystem(kind)));
        }
        let stat = fs::fstat(&directory.fd).map_err(|errno| io(&directory.path, "look at", errno))?;
        let user = geteuid();
        if stat.st_mode & Mode::SVTX.as_raw_mode() != 0 && stat.st_uid != user.as_raw() && !user.is_root() {
            return Err(FileError::new(directory.path, FileProblem::Sticky));
        }
        // A child that has inherited both may have closed the directory and kept the lifeline.
        if directory.flock(FlockOperation::NonBlockingLockExclusive)? && !directory.has_living()? {
            begin(&directory)?;
        }
        // A process that runs `begin` keeps the others waiting for a moment. Between its two locks another may run it
        // once more.
        let late = Instant::now() + PATIENCE;
        let late = deadline.map_or(late, |deadline| deadline.min(late));
        while !directory.flock(FlockOperation::NonBlockingLockShared)? {
            if Instant::now() > late {
                return Err(FileError::new(directory.path, FileProblem::Flocked));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(directory)
    }

    fn flock(&self, operation: FlockOperation) -> Result<bool, FileError> {
        match flock(&self.fd, operation) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(io(&self.path, "flock", errno)),
        }
    }

    /// Whether any member lives, judged by the lifelines.
    pub(super) fn has_living(&self) -> Result<bool, FileError> {
        for (member, _) in self.fifos()?.into_iter().filter(|(_, channel)| channel.is_none()) {
            if self.open_lifeline(member)?.is_some_and(|(lifeline, _)| is_alive(&lifeline)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Opens a file for reading, or for reading and writing; `None` if there is none.
    pub(super) fn open_file(&self, name: &str, access: OFlags) -> Result<Option<OwnedFd>, FileError> {
        // If a FIFO or a device is in its place, opening must not block.
        let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        // The time of the last read need not be updated, but only the owner of the file may ask for that.
        let opened = match fs::openat(&self.fd, name, flags | OFlags::NOATIME, Mode::empty()) {
            Err(Errno::PERM) => fs::openat(&self.fd, name, flags, Mode::empty()),
            opened => opened,
        };
        match opened {
            Ok(file) => Ok(Some(file)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(io(&self.path_of(name), "open", errno)),
        }
    }

    /// Makes a file, and replaces the one that has that name.
    pub(super) fn create_file(&self, name: &str) -> Result<OwnedFd, FileError> {
        self.remove(name);
        crash::step();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOATIME;
        let file = fs::openat(&self.fd, name, flags, self.rights);
        let file = file.map_err(|errno| io(&self.path_of(name), "make", errno))?;
        // The umask has removed some permissions.
        fs::fchmod(&file, self.rights).map_err(|errno| io(&self.path_of(name), "set the rights of", errno))?;
        crash::step();
        Ok(file)
    }

    /// Gives a file another name, and replaces the file that has it.
    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), FileError> {
        crash::step();
        fs::renameat(&self.fd, from, &self.fd, to).map_err(|errno| io(&self.path_of(to), "replace", errno))?;
        crash::step();
        Ok(())
    }

    /// The inode of the directory.
    pub(super) fn own_inode(&self) -> Result<u64, FileError> {
        fs::fstat(&self.fd).map(|stat| stat.st_ino).map_err(|errno| io(&self.path, "look at", errno))
    }

    /// Whether the directory was removed, so that it can have no files.
    pub(super) fn is_removed(&self) -> Result<bool, FileError> {
        fs::fstat(&self.fd).map(|stat| stat.st_nlink == 0).map_err(|errno| io(&self.path, "look at", errno))
    }

    /// The inode of the file of that name, if there is one.
    pub(super) fn inode(&self, name: &str) -> Result<Option<u64>, FileError> {
        match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat.st_ino)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(io(&self.path_of(name), "look at", errno)),
        }
    }

    /// Removes a file that nobody needs. A failure does no harm.
    pub(super) fn remove(&self, name: &str) {
        let _ = fs::unlinkat(&self.fd, name, AtFlags::empty());
    }

    /// Removes a FIFO, and nothing else of that name.
    fn remove_fifo(&self, name: &str) {
        let found = fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        if found.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo) {
            self.remove(name);
        }
    }

    /// Removes the FIFOs of members that have left, or are buried.
    pub(super) fn remove_fifos(&self, which: impl Fn(MemberId) -> bool) {
        // A failure to list them does no harm.
        for (member, channel) in self.fifos().unwrap_or_default().into_iter().filter(|&(member, _)| which(member)) {
            crash::step();
            self.remove(&name(member, channel));
        }
    }

    /// The FIFOs of members. The directory may have other files.
    fn fifos(&self) -> Result<Vec<(MemberId, Option<Channel>)>, FileError> {
        let failed = |errno| io(&self.path, "list", errno);
        let mut fifos = Vec::new();
        for entry in fs::Dir::read_from(&self.fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some(named) = entry.file_name().to_str().ok().and_then(named) else { continue };
            match fs::statat(&self.fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo => fifos.push(named),
                Ok(_) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Ok(fifos)
    }

    /// Makes a FIFO, and replaces one that was left there. Anything else of that name is not the lock's, and is an
    /// error. Both ends of the FIFO are kept open, so that it neither ends nor blocks.
    fn make_fifo(&self, name: &str) -> Result<OwnedFd, FileError> {
        self.remove_fifo(name);
        crash::step();
        let made = fs::mknodat(&self.fd, name, FileType::Fifo, self.rights, 0)
            .and_then(|()| fs::chmodat(&self.fd, name, self.rights, AtFlags::empty()))
            .and_then(|()| {
                fs::openat(&self.fd, name, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
            });
        crash::step();
        made.map_err(|errno| io(&self.path_of(name), "make the FIFO", errno))
    }

    /// Begins the life of a member, which ends when no process has the lifeline open. Returns its inode too.
    pub(super) fn make_lifeline(&self, member: MemberId) -> Result<(OwnedFd, u64), FileError> {
        let name = lifeline(member);
        let failed = |errno| io(&self.path_of(&name), "look at", errno);
        let fifo = out_of_the_way(self.make_fifo(&name)?).map_err(failed)?;
        let stat = fs::fstat(&fifo).map_err(failed)?;
        Ok((fifo, stat.st_ino))
    }

    /// Removes a channel that no waiter of the member uses any more.
    pub(super) fn remove_channel(&self, member: MemberId, channel: Channel) {
        self.remove_fifo(&name(member, Some(channel)));
    }

    pub(super) fn make_channel(&self, member: MemberId, channel: Channel) -> Result<OwnedFd, FileError> {
        self.make_fifo(&name(member, Some(channel)))
    }

    /// Opens the lifeline of another member, to look at it and to poll it; `None` if it was removed or replaced.
    pub(super) fn watch(&self, member: MemberId, inode: u64) -> Result<Option<OwnedFd>, FileError> {
        let opened = self.open_lifeline(member)?;
        Ok(opened.filter(|&(_, found)| found == inode).map(|(lifeline, _)| lifeline))
    }

    /// Opens the file that has the name of a lifeline; returns its inode too.
    fn open_lifeline(&self, member: MemberId) -> Result<Option<(OwnedFd, u64)>, FileError> {
        let name = lifeline(member);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let opened = fs::openat(&self.fd, &*name, flags, Mode::empty());
        match opened.and_then(|lifeline| fs::fstat(&lifeline).map(|stat| (lifeline, stat.st_ino))) {
            Ok(opened) => Ok(Some(opened)),
            Err(Errno::NOENT | Errno::LOOP) => Ok(None),
            Err(errno) => Err(io(&self.path_of(&name), "open", errno)),
        }
    }

    /// Wakes a waiter, if its channel is still there.
    pub(super) fn wake(&self, member: MemberId, channel: Channel) {
        let name = name(member, Some(channel));
        // For reading too: otherwise a waiter that ends in between would cause a SIGPIPE.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        if let Ok(fifo) = fs::openat(&self.fd, &*name, flags, Mode::empty()) {
            let _ = rustix::io::write(fifo, &[1]);
        }
    }

    /// Notes how much of the journal this member knows.
    pub(super) fn note_seen(&self, known: u64) {
        crash::step();
        // If the kernel has no memory for it, it refuses, and the earlier note stays.
        let _ = fcntl(&self.fd, FcntlArg::F_OFD_SETLK(&bytes(libc::F_RDLCK, 0, known)));
    }

    /// A note of another living member that is beyond `known`, if there is one.
    pub(super) fn seen_beyond(&self, known: u64) -> Result<Option<u64>, FileError> {
        let mut beyond = bytes(libc::F_WRLCK, known, 0);
        let asked = fcntl(&self.fd, FcntlArg::F_OFD_GETLK(&mut beyond));
        asked.map_err(|errno| io(&self.path, "ask for locks of", Errno::from_raw_os_error(errno as i32)))?;
        let is_free = i32::from(beyond.l_type) == libc::F_UNLCK;
        // A lock without an end is not a note.
        let end = if beyond.l_len == 0 { libc::off_t::MAX } else { beyond.l_start + beyond.l_len };
        Ok((!is_free).then_some(end as u64))
    }

    /// Unlocks the directory, as a child does that closes what it has inherited.
    #[cfg(test)]
    pub(super) fn unlock(&self) {
        self.flock(FlockOperation::Unlock).expect("it can always be unlocked");
    }

    /// The descriptor that children must inherit, besides the lifeline, so that this member lives on in them.
    pub(super) fn as_fd(&self) -> impl AsFd {
        &self.fd
    }
}

/// A lock of `length` bytes, or of all bytes from the start on if the length is 0.
fn bytes(kind: i32, start: u64, length: u64) -> libc::flock {
    let place = |place| libc::off_t::try_from(place).unwrap_or(libc::off_t::MAX);
    let (l_start, l_len) = (place(start), place(length));
    libc::flock { l_type: kind as _, l_whence: libc::SEEK_SET as _, l_start, l_len, l_pid: 0 }
}

/// The name of a lifeline, `m7`, or of a channel, `m7.2`.
fn name(MemberId(member): MemberId, channel: Option<Channel>) -> String {
    channel.map_or(format!("m{member}"), |channel| format!("m{member}.{channel}"))
}

/// The member and the channel in a file's name, if it is such a name.
fn named(text: &str) -> Option<(MemberId, Option<Channel>)> {
    let numbers = text.strip_prefix('m')?;
    let (member, channel) =
        numbers.split_once('.').map_or((numbers, None), |(member, channel)| (member, Some(channel)));
    let named = (MemberId(member.parse().ok()?), channel.map(str::parse).transpose().ok()?);
    (name(named.0, named.1) == text).then_some(named)
}

pub(super) fn lifeline(member: MemberId) -> String {
    name(member, None)
}

/// Moves a descriptor above those that scripts use by number: a child that inherits it must not close it by accident.
fn out_of_the_way(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    // The kernel says that it is invalid if a process may not have so many descriptors.
    rustix::io::fcntl_dupfd_cloexec(fd, 10).map_err(|errno| if errno == Errno::INVAL { Errno::MFILE } else { errno })
}

/// Whether any process keeps the lifeline that was opened by [`Directory::watch`].
pub(super) fn is_alive(watched: &OwnedFd) -> bool {
    loop {
        match rustix::io::read(watched, &mut [0; 16]) {
            Ok(0) => return false,
            // No member writes there; a byte that another program writes is no sign of life.
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return true,
        }
    }
}

/// Reads the wake-ups from a channel; returns whether there were any.
pub(super) fn drain(channel: &OwnedFd) -> bool {
    let mut any = false;
    loop {
        match rustix::io::read(channel, &mut [0; 64]) {
            Ok(1..) => any = true,
            Err(Errno::INTR) => {}
            _ => return any,
        }
    }
}

/// `flock`, repeated when a signal interrupts it.
pub(super) fn flock(file: impl AsFd, operation: FlockOperation) -> Result<(), Errno> {
    rustix::io::retry_on_intr(|| fs::flock(file.as_fd(), operation))
}

pub(super) fn io(path: &Path, doing: &'static str, errno: Errno) -> FileError {
    FileError::new(path, FileProblem::Io { doing, source: errno.into() })
}
