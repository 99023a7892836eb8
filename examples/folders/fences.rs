//! A store that compares fences, made of one that does not.
//!
//! A lease cannot keep a worker from writing late: it may be stopped after it has looked at its guard and before its
//! write arrives. Only the store can refuse such a write, and it knows which writes are late by their
//! [fences](treelock::machine::MachineGuard::fence), if every holder leaves its own, at all that it has, before it looks
//! at anything. Then a write is late if a higher fence stands at its path, above it or below it, and the lock
//! would have kept the two apart: readers do not exclude each other, and their fences are in any order.
//!
//! A service would do this with its own index. Here it is a file beside the objects, and another one whose `flock` makes
//! comparing and writing one step. A worker that is killed at any step leaves the file whole. The parent holds the `flock`
//! when it stops a worker, since a store is not stopped with its clients.

use crate::lock::Roots;
use crate::store::{Fault, Key};
use rustix::fs::{FlockOperation, flock};
use rustix::io::retry_on_intr;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

pub(crate) struct Fences {
    door: File,
    file: PathBuf,
}

/// The highest fence of those who have had a sub-tree.
#[derive(Default, Serialize, Deserialize)]
struct Highest {
    reads: BTreeMap<String, u64>,
    writes: BTreeMap<String, u64>,
}

impl Highest {
    fn raise(&mut self, roots: &Roots, fence: u64) {
        for (fences, roots) in [(&mut self.reads, &roots.reads), (&mut self.writes, &roots.writes)] {
            for root in roots {
                // One at an ancestor tells the same of what is below.
                fences.retain(|path, stands| *stands > fence || !key(path).prefix_matches(root));
                let stands = fences.entry(root.to_string()).or_default();
                *stands = fence.max(*stands);
            }
        }
    }

    fn is_higher(&self, roots: &Roots, fence: u64) -> bool {
        let later = |fences: &BTreeMap<String, u64>| {
            fences.iter().filter(|(_, stands)| **stands > fence).map(|(path, _)| key(path)).collect()
        };
        roots.conflict_with(&Roots { reads: later(&self.reads), writes: later(&self.writes) })
    }
}

impl Fences {
    /// Those of a directory, which has none at first.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let door = File::options().append(true).create(true).open(directory.join("door"))?;
        Ok(Fences { door, file: directory.join("fences") })
    }

    /// Leaves a fence at these roots.
    pub(crate) fn raise(&self, roots: &Roots, fence: u64) -> Result<(), Fault> {
        self.alone(|| {
            let mut highest = self.read()?;
            highest.raise(roots, fence);
            let whole = self.file.with_extension("new");
            fs::write(&whole, serde_json::to_vec(&highest)?)?;
            fs::rename(whole, &self.file)
        })
        .map_err(failed)
    }

    /// Makes a change that concerns these roots; `None` if a later holder has been there.
    pub(crate) fn unless_higher<T>(
        &self,
        roots: &Roots,
        fence: u64,
        change: impl FnOnce() -> T,
    ) -> Result<Option<T>, Fault> {
        self.alone(|| Ok((!self.read()?.is_higher(roots, fence)).then(change))).map_err(failed)
    }

    /// Does something while the store does nothing else.
    pub(crate) fn alone<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        retry_on_intr(|| flock(&self.door, FlockOperation::LockExclusive))?;
        let done = act();
        flock(&self.door, FlockOperation::Unlock)?;
        done
    }

    fn read(&self) -> io::Result<Highest> {
        match fs::read(&self.file) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Highest::default()),
            Err(error) => Err(error),
        }
    }
}

fn key(path: &str) -> Key {
    Key::parse(path).expect("it was a key when it was written")
}

fn failed(error: io::Error) -> Fault {
    Fault::Failed(format!("the fences of the store failed: {error}"))
}
