//! Reading without a lock: a stamp tells afterwards whether somebody wrote meanwhile.

use super::client::Joined;
use super::error::{EngineError, MachineLockError};
use super::{MachineTreeLock, Open};
use crate::core::owner::Owner;
use crate::core::path::{self, TreePath};
use std::error::Error;
use std::fmt::{self, Debug, Display};
use std::panic::Location;
use std::sync::Arc;

/// Why what was read since a stamp was made may not go together.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Conflict {
    /// A write was held when the stamp was made, or was granted since, that overlaps what it watches; or the session was lost since,
    /// so that nobody knows.
    Written,
    /// The engine could not be asked.
    Engine(EngineError),
}

impl Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Conflict::Written => f.write_str(
                "a write was granted in what was read, or nobody knows whether one was: read it again, or under a lock",
            ),
            Conflict::Engine(error) => Display::fmt(error, f),
        }
    }
}

impl Error for Conflict {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Conflict::Written => None,
            Conflict::Engine(error) => error.source(),
        }
    }
}

/// Knows whether a write was granted in some sub-trees since it was made: see [`MachineTreeLock::observe`].
#[must_use = "it tells nothing unless it is asked"]
pub struct Stamp {
    client: Arc<Open>,
    joined: Joined,
    watch: u64,
}

impl Stamp {
    /// Whether what was read since this stamp was made goes together: no write that overlaps it was held in between. One round trip.
    ///
    /// What is read after this call may be written already. A stamp that is valid can be asked again.
    ///
    /// # Errors
    ///
    /// [`Conflict`]. A stamp that has met a write stays so.
    pub fn validate(&self) -> Result<(), Conflict> {
        match self.client.0.is_written(&self.joined, self.watch) {
            Ok(false) => Ok(()),
            Ok(true) => Err(Conflict::Written),
            Err(error) => Err(Conflict::Engine(error)),
        }
    }
}

impl Drop for Stamp {
    fn drop(&mut self) {
        self.client.0.end_watch(&self.joined, self.watch);
    }
}

impl Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stamp").finish_non_exhaustive()
    }
}

impl<P: ?Sized + TreePath> MachineTreeLock<P> {
    /// Watches sub-trees that are to be read without a lock: optimistic locking. Read what they name after this, and keep it only if
    /// [`Stamp::validate`] says so.
    ///
    /// It holds up nobody, and nothing holds it up: for what is read much more often than it is written. A write that somebody holds
    /// already is a conflict from the start. It costs one round trip, and with each stamp that is kept each grant that this client hears of
    /// costs a little more.
    ///
    /// There is no such call between the threads of a process: there a request that meets nobody writes to no memory that threads share,
    /// which is what it gains, and a write that a stamp could see would have to. A lock for reading costs less than both calls.
    ///
    /// ```no_run
    /// # use treelock::machine::{self, Options};
    /// # fn read(folder: &str) -> Vec<String> { vec![folder.to_owned()] }
    /// let lock = machine::connect::<str>("redis://127.0.0.1/", "my-app:files", Options::new())?;
    /// let pages = loop {
    ///     let stamp = lock.observe(&["site/2026"])?;
    ///     let pages = read("site/2026");
    ///     if stamp.validate().is_ok() {
    ///         break pages;
    ///     }
    /// };
    /// # let _ = pages;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`MachineLockError::Path`], [`MachineLockError::Engine`].
    #[track_caller]
    pub fn observe<R: AsRef<P>>(&self, paths: &[R]) -> Result<Stamp, MachineLockError> {
        let location = Location::caller();
        path::common_frame(paths.iter().map(AsRef::as_ref))?;
        let (joined, watch) =
            self.client.0.observe(|asking| Ok(asking.plan::<P, R, R>(paths, &[], Owner::Itself, location)?))?;
        Ok(Stamp { client: Arc::clone(&self.client), joined, watch })
    }
}
