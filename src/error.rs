//! What a request can fail with.

use crate::core::path::PathError;
use crate::face::request_error;
use crate::inspect::Deadlock;

/// Why a request was not granted. The request holds nothing then, and nobody waits for it.
///
/// `?` and `into` turn it into an [`io::Error`](std::io::Error) of the kind
/// [`WouldBlock`](std::io::ErrorKind::WouldBlock), [`TimedOut`](std::io::ErrorKind::TimedOut),
/// [`Deadlock`](std::io::ErrorKind::Deadlock) or, for paths, [`InvalidInput`](std::io::ErrorKind::InvalidInput). That
/// error contains this one:
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
    /// The request waited in a cycle of threads and explicit owners that wait for each other.
    Deadlock(Box<Deadlock>),
    /// One of the paths cannot be used.
    Path(PathError),
}

request_error!(LockError);
