//! Which lock keeps operations apart: the choice stands here, and nowhere else.

use crate::store::{Fault, Key};
use treelock::{TreeLock, TreeLockGuard};
#[cfg(feature = "machine")]
use {
    std::time::Duration,
    treelock::machine::{self, MachineGuard, MachineTreeLock, Options},
};

/// So long others wait for what a process had that was killed. It is short, since this program kills many.
#[cfg(feature = "machine")]
pub(crate) const TIME_TO_LIVE: Duration = Duration::from_millis(500);

/// The sub-trees that are read, and those that are changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roots {
    pub(crate) reads: Vec<Key>,
    pub(crate) writes: Vec<Key>,
}

impl Roots {
    pub(crate) fn writes(key: &Key) -> Self {
        Roots { reads: vec![], writes: vec![key.clone()] }
    }

    /// Whether the lock would keep them apart: by the same rule.
    pub(crate) fn conflict_with(&self, others: &Roots) -> bool {
        let overlap = |one: &[Key], other: &[Key]| {
            one.iter().any(|one| other.iter().any(|other| one.prefix_matches(other) || other.prefix_matches(one)))
        };
        overlap(&self.writes, &others.writes)
            || overlap(&self.writes, &others.reads)
            || overlap(&self.reads, &others.writes)
    }
}

pub(crate) enum Lock {
    /// With `--no-lock`.
    None,
    Threads(Box<TreeLock<str>>),
    #[cfg(feature = "machine")]
    Machines(MachineTreeLock),
}

/// What an operation holds.
pub(crate) enum Guard<'a> {
    None,
    Threads(#[expect(dead_code, reason = "it is there to be dropped")] TreeLockGuard<'a, str>),
    #[cfg(feature = "machine")]
    Machines(MachineGuard<'a, str>),
}

impl Lock {
    #[cfg(feature = "machine")]
    pub(crate) fn between_machines(url: &str, namespace: &str) -> Result<Self, Fault> {
        let options = Options::new().time_to_live(TIME_TO_LIVE);
        let opened = machine::connect(url, namespace, options);
        opened.map(Lock::Machines).map_err(|error| Fault::Failed(error.to_string()))
    }

    pub(crate) fn lock(&self, Roots { reads, writes }: &Roots) -> Result<Guard<'_>, Fault> {
        match self {
            Lock::None => Ok(Guard::None),
            Lock::Threads(lock) => Ok(Guard::Threads(lock.lock(reads, writes))),
            #[cfg(feature = "machine")]
            Lock::Machines(lock) => {
                lock.lock(reads, writes).map(Guard::Machines).map_err(|error| Fault::Failed(error.to_string()))
            }
        }
    }
}

impl Guard<'_> {
    /// Whether nobody else can have been let in. Only a lease can be lost.
    pub(crate) fn is_valid(&self) -> bool {
        match self {
            Guard::None | Guard::Threads(_) => true,
            #[cfg(feature = "machine")]
            Guard::Machines(guard) => guard.is_valid(),
        }
    }

    /// The fence of a lease.
    pub(crate) fn fence(&self) -> Option<u64> {
        match self {
            Guard::None | Guard::Threads(_) => None,
            #[cfg(feature = "machine")]
            Guard::Machines(guard) => Some(guard.fence()),
        }
    }
}
