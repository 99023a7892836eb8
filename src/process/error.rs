//! The errors of requests between processes, and of the lock's files.

use crate::core::path::PathError;
use crate::face::request_error;
use crate::inspect::Deadlock;
use std::error::Error;
use std::fmt::{self, Debug, Display};
use std::io;
use std::path::{Path, PathBuf};

/// Why a request between processes was not granted. The request holds nothing then, and nobody waits for it.
///
/// It becomes an [`io::Error`] as [`LockError`](crate::LockError) does; a [`FileError`] keeps its kind.
#[derive(Debug)]
#[non_exhaustive]
pub enum ProcessLockError {
    /// Another request holds a conflicting sub-tree, or has been waiting for one.
    WouldBlock,
    /// The deadline passed first.
    TimedOut,
    /// The request waited in a cycle of threads that wait for each other, in one or several processes.
    Deadlock(Box<Deadlock>),
    /// One of the paths cannot be used.
    Path(PathError),
    /// The lock's files cannot be used.
    File(FileError),
}

request_error!(ProcessLockError, File(FileError));

/// A file of the lock that cannot be used, and why.
///
/// `?` and `into` turn it into an [`io::Error`] of the kind that the system gave, or of the one that [`FileProblem`]
/// names.
#[derive(Debug)]
pub struct FileError {
    path: PathBuf,
    problem: FileProblem,
}

/// What is wrong with a file.
#[derive(Debug)]
#[non_exhaustive]
pub enum FileProblem {
    /// The system refused: no rights, no space, no such directory.
    Io {
        /// What was to be done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The directory is on a file system of this kind, whose locks other hosts may not see.
    /// ([`Unsupported`](io::ErrorKind::Unsupported))
    NetworkFileSystem(&'static str),
    /// The file is not one of treelock's, and is left alone. ([`InvalidData`](io::ErrorKind::InvalidData))
    NotATable,
    /// The file was written by a version of treelock whose format this one does not know.
    /// ([`InvalidData`](io::ErrorKind::InvalidData))
    OtherVersion(u32),
    /// The file has contents that it cannot have: it was written over or cut while processes use it.
    /// ([`InvalidData`](io::ErrorKind::InvalidData))
    Damaged,
    /// The file was removed, or replaced by another, while processes use it. ([`NotFound`](io::ErrorKind::NotFound))
    Removed,
    /// The directory is another user's, and *sticky*: users cannot replace each other's files in it.
    /// ([`PermissionDenied`](io::ErrorKind::PermissionDenied))
    Sticky,
    /// A process keeps an exclusive `flock`: another program on the directory, or a process that is stopped in the
    /// midst of a request on the table. ([`ResourceBusy`](io::ErrorKind::ResourceBusy))
    Flocked,
    /// The lock was opened by the process that this one was forked from. ([`Unsupported`](io::ErrorKind::Unsupported))
    Forked,
}

impl FileProblem {
    fn kind(&self) -> io::ErrorKind {
        match self {
            FileProblem::Io { source, .. } => source.kind(),
            FileProblem::NotATable | FileProblem::OtherVersion(_) | FileProblem::Damaged => {
                io::ErrorKind::InvalidData
            }
            FileProblem::Removed => io::ErrorKind::NotFound,
            FileProblem::Sticky => io::ErrorKind::PermissionDenied,
            FileProblem::Flocked => io::ErrorKind::ResourceBusy,
            FileProblem::NetworkFileSystem(_) | FileProblem::Forked => io::ErrorKind::Unsupported,
        }
    }
}

impl FileError {
    pub(super) fn new(path: impl Into<PathBuf>, problem: FileProblem) -> Self {
        FileError { path: path.into(), problem }
    }

    fn kind(&self) -> io::ErrorKind {
        self.problem.kind()
    }

    /// Whether the file is not what it should be, and not merely impossible to look at.
    pub(super) fn is_of_the_table(&self) -> bool {
        self.is_harm() || matches!(self.problem, FileProblem::NotATable)
    }

    /// Whether this is harm that does not matter where nobody uses the lock.
    pub(super) fn is_harm(&self) -> bool {
        matches!(self.problem, FileProblem::Removed | FileProblem::Damaged)
    }

    /// The file, or the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is wrong with it.
    #[must_use]
    pub fn problem(&self) -> &FileProblem {
        &self.problem
    }
}

impl Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match &self.problem {
            FileProblem::Io { doing, source } => write!(f, "cannot {doing} {path:?}: {source}"),
            FileProblem::NetworkFileSystem(kind) => write!(
                f,
                "{path:?} is on a network file system ({kind}), where processes of other hosts may not see the lock: \
                 choose a directory of this host, such as one in /run or /tmp, or insist if no other host uses it"
            ),
            FileProblem::NotATable => write!(f, "{path:?} is no table of treelock: choose another directory"),
            FileProblem::OtherVersion(version) => write!(
                f,
                "{path:?} was written by another treelock (format {version}): use one version in all programs, and \
                 remove the file when none of them runs"
            ),
            FileProblem::Damaged => write!(
                f,
                "{path:?} was written over or cut while processes use it: end them all, and the next one begins anew"
            ),
            FileProblem::Removed => write!(
                f,
                "{path:?} was removed or replaced while processes use it: end them all, and the next one begins anew"
            ),
            FileProblem::Sticky => write!(
                f,
                "{path:?} is a sticky directory of another user, where the lock's files cannot be replaced: choose another \
                 one, or let its owner run chmod -t"
            ),
            FileProblem::Flocked => {
                write!(
                    f,
                    "an exclusive flock is kept on {path:?}: let go on or end the process that is stopped with it, or give \
                     the lock a directory of its own if it is another program's"
                )
            }
            FileProblem::Forked => {
                write!(f, "the lock in {path:?} was opened before this process was forked: open it again here")
            }
        }
    }
}

impl Error for FileError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.problem {
            FileProblem::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<FileError> for io::Error {
    fn from(error: FileError) -> Self {
        io::Error::new(error.kind(), error)
    }
}
