//! What can go wrong with an engine, and with a request.

use crate::core::path::PathError;
use crate::face::request_error;
use crate::inspect::Deadlock;
use std::error::Error;
use std::fmt::{self, Debug, Display};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Why a request between machines was not granted. Nothing of it is held. Of one that waited the engine is told after the caller is,
/// so others may wait for it for one more round trip, or, if the engine is away, until it answers or the session ends.
///
/// It becomes an [`io::Error`] as [`LockError`](crate::LockError) does; of the engine, by the kinds that [`EngineError`] tells.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum MachineLockError {
    /// A request that holds a conflicting sub-tree, or waits for one since before, is in the way; or the namespace is
    /// [closed](crate::machine::MachineTreeLock::closed_until).
    WouldBlock,
    /// The deadline passed first.
    TimedOut,
    /// The request waited in a cycle of threads that wait for each other, on whatever machines.
    Deadlock(Box<Deadlock>),
    /// One of the paths cannot be used.
    Path(PathError),
    /// The engine could not be asked, or refused.
    Engine(EngineError),
}

request_error!(MachineLockError, Engine(EngineError));

/// Why an engine could not be asked, or what it refused.
///
/// It becomes an [`io::Error`] by `?` or `into`, of the kind that stands at each.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum EngineError {
    /// It was not reached, or did not answer in time. ([`NotConnected`](io::ErrorKind::NotConnected))
    Away(Arc<dyn Error + Send + Sync>),
    /// It answered that it will not: no rights, no memory, a URL that it cannot use.
    /// ([`Other`](io::ErrorKind::Other))
    Refused(Arc<dyn Error + Send + Sync>),
    /// The namespace was begun by a treelock of this format, which this one does not know: use one version in all programs,
    /// or another namespace. ([`Unsupported`](io::ErrorKind::Unsupported))
    OtherFormat(String),
    /// The engine said what it cannot say: something else has written to the keys of the namespace. That begins anew, and all its
    /// guards are lost. ([`InvalidData`](io::ErrorKind::InvalidData))
    Damaged,
    /// The session has ended, and with it all guards, so what they held may have been granted to others since. The client was
    /// cut off, stopped or late for longer than its time to live, or the engine lost its data, or the lock was
    /// [closed](crate::machine::MachineTreeLock::close). ([`BrokenPipe`](io::ErrorKind::BrokenPipe))
    Lost,
}

impl EngineError {
    pub(crate) fn away(why: impl Into<String>) -> Self {
        EngineError::Away(Arc::from(Box::<dyn Error + Send + Sync>::from(why.into())))
    }

    /// A refusal by this side, before the engine or of what it answered.
    pub(crate) fn refused(why: impl Into<String>) -> Self {
        EngineError::Refused(Arc::from(Box::<dyn Error + Send + Sync>::from(why.into())))
    }

    /// What the namespace has is not what a client insists on.
    pub(crate) fn other_time_to_live(kept: Duration, said: Duration) -> Self {
        EngineError::refused(format!(
            "the namespace has a time to live of {kept:?}, and this client says {said:?}: say the same in all programs, or \
             in none"
        ))
    }

    /// The same, as long as it is not known whether one of its clients lives.
    #[cfg(feature = "items")]
    pub(crate) fn other_time_to_live_yet(kept: Duration, said: Duration) -> Self {
        EngineError::away(format!(
            "the namespace has a time to live of {kept:?}, and this client says {said:?}; whether another client lives is known \
             when it was watched for so long"
        ))
    }

    fn kind(&self) -> io::ErrorKind {
        match self {
            EngineError::Away(_) => io::ErrorKind::NotConnected,
            EngineError::Refused(_) => io::ErrorKind::Other,
            EngineError::OtherFormat(_) => io::ErrorKind::Unsupported,
            EngineError::Damaged => io::ErrorKind::InvalidData,
            EngineError::Lost => io::ErrorKind::BrokenPipe,
        }
    }
}

impl Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EngineError::Away(source) => write!(f, "the server of the lock does not answer: {source}"),
            EngineError::Refused(source) => write!(f, "the server of the lock refused: {source}"),
            EngineError::OtherFormat(format) => write!(
                f,
                "the namespace was begun by another treelock (format {format:?}): use one version in all programs, or \
                 another namespace"
            ),
            EngineError::Damaged => f.write_str(
                "something else has written to the keys of the namespace, which begins anew: find out what, or choose \
                 another namespace",
            ),
            EngineError::Lost => f.write_str(
                "the lease is lost, so others may have been let in: the lock was closed, or the server lost its data, or this \
                 client was stopped, late or cut off for longer than the time to live; let what is written compare the \
                 fence, and choose a time to live that is longer than such breaks",
            ),
        }
    }
}

impl Error for EngineError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            EngineError::Away(source) | EngineError::Refused(source) => Some(&**source),
            _ => None,
        }
    }
}

impl From<EngineError> for io::Error {
    fn from(error: EngineError) -> Self {
        io::Error::new(error.kind(), error)
    }
}
