//! What a request can fail with.

use crate::inspect::Deadlock;
use std::error::Error;
use std::fmt::{self, Debug, Display};

/// Why a request was not granted. Nothing of it is held, and nobody waits for it.
#[derive(Debug)]
#[non_exhaustive]
pub enum LockError {
    /// Somebody holds a conflicting sub-tree or waits for one since before, or another `try_lock` was passing there.
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

impl From<PathError> for LockError {
    fn from(error: PathError) -> Self {
        LockError::Path(error)
    }
}

/// A path that cannot be used, and why.
///
/// ```
/// use treelock::{LockError, TreeLock};
///
/// let lock = TreeLock::new();
/// let Err(LockError::Path(error)) = lock.try_lock(&["../a"], &[]) else { panic!() };
/// assert!(error.to_string().starts_with("unusable path \"../a\": "));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathError {
    path: String,
    reason: String,
}

impl PathError {
    /// An error of a [`TreePath`](crate::TreePath); the lock adds the path's name.
    pub fn new(reason: impl Into<String>) -> Self {
        PathError { path: String::new(), reason: reason.into() }
    }

    pub(crate) fn at<P: Debug + ?Sized>(self, path: &P) -> Self {
        PathError { path: format!("{path:?}"), ..self }
    }
}

impl Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => write!(f, "unusable path: {}", self.reason),
            path => write!(f, "unusable path {path}: {}", self.reason),
        }
    }
}

impl Error for PathError {}
