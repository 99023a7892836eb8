//! What is done to the folders: each operation takes all that it needs in one request, and keeps it until it is done.

use crate::intents::Intent;
use crate::lock::{Guard, Lock, Roots};
use crate::store::{Fault, Key, Late, SHELVES, Store, below_shelf, place};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub(crate) const EXAMPLES_SHOWN: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    List,
    Rename,
    Copy,
    Delete,
}

impl Operation {
    pub(crate) const ALL: [Operation; 4] = [Operation::List, Operation::Rename, Operation::Copy, Operation::Delete];

    pub(crate) fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// An operation, and the folders on which it is done.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) operation: Operation,
    pub(crate) here: Key,
    pub(crate) there: Key,
}

impl Task {
    /// What it needs locked.
    pub(crate) fn roots(&self) -> Roots {
        let (here, there) = (self.here.clone(), self.there.clone());
        let (reads, writes) = match self.operation {
            Operation::List => (vec![here], vec![]),
            Operation::Rename => (vec![], vec![here, there]),
            Operation::Copy => (vec![here], vec![there]),
            Operation::Delete => (vec![there], vec![here]),
        };
        Roots { reads, writes }
    }
}

/// What a worker has done.
#[derive(Default)]
#[cfg_attr(feature = "machine", derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Report {
    pub(crate) tallies: [Tally; Operation::ALL.len()],
    /// Operations of others, which were killed or stopped in them, that it has finished.
    pub(crate) recovered: usize,
    /// Operations that it gave up because the lease was lost; and those of them in which the store has told it so.
    pub(crate) given_up: usize,
    pub(crate) refused: usize,
    /// Some torn observations.
    pub(crate) examples: Vec<String>,
}

#[derive(Clone, Copy, Default)]
#[cfg_attr(feature = "machine", derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct Tally {
    pub(crate) operations: usize,
    pub(crate) objects: usize,
    pub(crate) longest_wait: Duration,
    pub(crate) torn: usize,
}

impl Report {
    pub(crate) fn add(&mut self, other: Report) {
        for (tally, other) in self.tallies.iter_mut().zip(other.tallies) {
            *tally = Tally::sum([*tally, other]);
        }
        self.recovered += other.recovered;
        self.given_up += other.given_up;
        self.refused += other.refused;
        self.examples.extend(other.examples);
        self.examples.truncate(EXAMPLES_SHOWN);
    }

    pub(crate) fn all(&self) -> Tally {
        Tally::sum(self.tallies)
    }
}

impl Tally {
    fn sum(tallies: impl IntoIterator<Item = Tally>) -> Tally {
        tallies.into_iter().fold(Tally::default(), |sum, tally| Tally {
            operations: sum.operations + tally.operations,
            objects: sum.objects + tally.objects,
            longest_wait: sum.longest_wait.max(tally.longest_wait),
            torn: sum.torn + tally.torn,
        })
    }
}

/// The operations of one thread, or of one process.
pub(crate) struct Worker<'a> {
    store: &'a Store,
    lock: &'a Lock,
    /// What others of the store have not.
    number: u64,
    rng: StdRng,
    pub(crate) report: Report,
    /// All files are lost.
    pub(crate) nothing_left: bool,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(store: &'a Store, lock: &'a Lock, number: u64, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        Worker { store, lock, number, rng, report: Report::default(), nothing_left: false }
    }

    /// Does something, somewhere.
    pub(crate) fn operate(&mut self) -> Result<(), Fault> {
        let operation = *Operation::ALL.choose(&mut self.rng).expect("there are operations");
        let folder = self.store.originals.folders.keys().choose(&mut self.rng).expect("there are folders");
        let shelves: Vec<_> = SHELVES.choose_multiple(&mut self.rng, 2).collect();
        let (mut here, there) = (place(shelves[0], folder), place(shelves[1], folder));
        if operation == Operation::List && self.rng.random_ratio(1, 16) {
            here = Key::ROOT;
        }
        let done = self.perform(&Task { operation, here, there });
        let tally = &mut self.report.tallies[operation as usize];
        tally.operations += 1;
        match done {
            Ok(objects) => tally.objects += objects,
            Err(Fault::Torn(seen)) => {
                tally.torn += 1;
                self.report.examples.push(format!("{operation:?}: {seen}"));
                self.report.examples.truncate(EXAMPLES_SHOWN);
            }
            Err(Fault::Late(late)) => {
                self.report.given_up += 1;
                self.report.refused += usize::from(late == Late::Store);
            }
            Err(fault) => return Err(fault),
        }
        Ok(())
    }

    fn perform(&mut self, task: &Task) -> Result<usize, Fault> {
        let guard = self.begin(task)?;
        let done = match task.operation {
            Operation::List => self.list(&task.here),
            Operation::Rename | Operation::Copy | Operation::Delete => self.change(task, &guard),
        };
        // What was seen counts only if nobody can have been let in up to now.
        match done {
            Err(Fault::Torn(_)) if !guard.is_valid() => Err(Fault::Late(Late::Guard)),
            done => done,
        }
    }

    /// Locks what a task needs, when no operation is left half done that the lock would keep from it.
    pub(crate) fn begin(&mut self, task: &Task) -> Result<Guard<'a>, Fault> {
        let mut guard = self.lock(task)?;
        while let Some(left) = self.store.left_intent(&task.roots(), &guard)? {
            // What it needs may be more than this has.
            drop(guard);
            self.finish(&left)?;
            guard = self.lock(task)?;
        }
        Ok(guard)
    }

    fn lock(&mut self, task: &Task) -> Result<Guard<'a>, Fault> {
        let (roots, asked) = (task.roots(), Instant::now());
        let guard = self.lock.lock(&roots)?;
        let tally = &mut self.report.tallies[task.operation as usize];
        tally.longest_wait = tally.longest_wait.max(asked.elapsed());
        self.store.fence_off(&roots, &guard)?;
        Ok(guard)
    }

    /// Finishes what another worker has left, unless somebody was quicker.
    fn finish(&mut self, left: &Intent) -> Result<(), Fault> {
        let guard = self.lock(&left.task)?;
        if self.store.has_intent(left)? {
            self.carry_out(&left.task, &guard)?;
            self.store.remove_intent(left)?;
            self.report.recovered += 1;
        }
        Ok(())
    }

    fn list(&mut self, folder: &Key) -> Result<usize, Fault> {
        let survey = self.store.survey(folder)?;
        self.nothing_left = folder.is_root() && survey.objects == 0;
        survey.whole()
    }

    fn change(&self, task: &Task, guard: &Guard) -> Result<usize, Fault> {
        if task.operation == Operation::Delete && !self.is_copy(&task.here, &task.there)? {
            return Ok(0);
        }
        let intent = self.store.intend(task, guard, self.number)?;
        let objects = self.carry_out(task, guard)?;
        intent.map_or(Ok(()), |intent| self.store.remove_intent(&intent))?;
        Ok(objects)
    }

    /// Makes all changes of a task, of which some may have been made before: whoever does it again finishes it.
    fn carry_out(&self, task: &Task, guard: &Guard) -> Result<usize, Fault> {
        let Task { operation, here, there } = task;
        let keys = self.store.keys_below(here)?;
        if matches!(operation, Operation::Rename | Operation::Copy) {
            for key in &keys {
                let to = there.parts().chain(key.prefix_match(here).expect("it is below")).collect();
                self.store.copy(key, &to, guard)?;
            }
        }
        if matches!(operation, Operation::Rename | Operation::Delete) {
            for key in &keys {
                self.store.delete(key, guard)?;
            }
        }
        Ok(keys.len())
    }

    /// Whether `other` has all that `folder` has. The lock keeps `other` as it is meanwhile.
    fn is_copy(&self, folder: &Key, other: &Key) -> Result<bool, Fault> {
        let kept: BTreeSet<_> = self.store.keys_below(other)?.iter().map(below_shelf).collect();
        Ok(self.store.keys_below(folder)?.iter().all(|key| kept.contains(&below_shelf(key))))
    }
}
