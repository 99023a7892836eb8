//! What a request can fail with.

use crate::core::path::PathError;
use crate::inspect::Deadlock;
use std::error::Error;
use std::fmt::{self, Debug, Display};
use std::io;

/// Why a request was not granted. The request holds nothing then, and nobody waits for it.
///
/// `?` and `into` turn it into an [`io::Error`] of the kind [`WouldBlock`](io::ErrorKind::WouldBlock),
/// [`TimedOut`](io::ErrorKind::TimedOut), [`Deadlock`](io::ErrorKind::Deadlock) or, for paths,
/// [`InvalidInput`](io::ErrorKind::InvalidInput). That error contains this one:
///
/// ```
/// use std::io;
/// use treelock::{LockError, TreeLock};
///
/// fn rename(lock: &TreeLock, from: &str, to: &str) -> io::Result<()> {
///     let _guard = lock.try_lock(&[], &[from, to])?;
///     Ok(())
/// }
///
/// let error = rename(&TreeLock::new(), "../a", "b").unwrap_err();
/// assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
/// assert!(matches!(error.downcast::<LockError>(), Ok(LockError::Path(_))));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LockError {
    /// Another request holds a conflicting sub-tree, or has been waiting for one.
    WouldBlock,
    /// The deadline passed first.
    TimedOut,
    /// The request waited in a cycle of threads that wait for each other.
    Deadlock(Box<Deadlock>),
    /// One of the paths cannot be used.
    Path(PathError),
}

impl Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockError::WouldBlock => f.write_str("the lock could not be taken without waiting"),
            LockError::TimedOut => f.write_str("the deadline passed before the lock could be taken"),
            LockError::Deadlock(deadlock) => Display::fmt(deadlock, f),
            LockError::Path(error) => Display::fmt(error, f),
        }
    }
}

impl Error for LockError {}

impl From<LockError> for io::Error {
    fn from(error: LockError) -> Self {
        let kind = match error {
            LockError::WouldBlock => io::ErrorKind::WouldBlock,
            LockError::TimedOut => io::ErrorKind::TimedOut,
            LockError::Deadlock(_) => io::ErrorKind::Deadlock,
            LockError::Path(_) => io::ErrorKind::InvalidInput,
        };
        io::Error::new(kind, error)
    }
}

impl From<PathError> for LockError {
    fn from(error: PathError) -> Self {
        LockError::Path(error)
    }
}
