//! One process: what it does to the database, under which lock.

use crate::store::{Corruption, Fault, Index, Kind, Meta, Row, Store, index_path, meta_path, row_path, table_path};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::path::Path;
use std::time::{Duration, Instant};
use treelock::process::{Options, ProcessTreeLock, ProcessTreeLockGuard};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Way {
    /// No lock at all
    None,
    /// One exclusive flock around each operation
    Flock,
    /// The sub-trees that an operation touches
    Treelock,
}

impl Way {
    pub(crate) const ALL: [Way; 3] = [Way::None, Way::Flock, Way::Treelock];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Way::None => "none",
            Way::Flock => "flock",
            Way::Treelock => "treelock",
        }
    }
}

#[derive(Clone, Copy)]
enum Operation {
    Select,
    SelectTable,
    Edit,
    Update,
    Insert,
    Delete,
    Transfer,
    Reorganise,
    Check,
}

/// How often each operation comes, of 1000. Since four of five ids are in use, as many rows are inserted as deleted.
const OPERATIONS: [(Operation, u32); 9] = [
    (Operation::Select, 300),
    (Operation::SelectTable, 10),
    (Operation::Edit, 500),
    (Operation::Update, 50),
    (Operation::Insert, 60),
    (Operation::Delete, 15),
    (Operation::Transfer, 62),
    (Operation::Reorganise, 2),
    (Operation::Check, 1),
];

/// What a worker has done.
#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) elapsed: Duration,
    /// How long each operation waited for its lock.
    pub(crate) waits: Vec<Duration>,
    pub(crate) corruptions: Corruptions,
}

/// What was seen of each kind: how often, and the first.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Corruptions {
    counts: [u64; 3],
    pub(crate) examples: [Option<String>; 3],
}

impl Corruptions {
    pub(crate) fn add(&mut self, corruption: Corruption) {
        self.counts[corruption.kind as usize] += 1;
        self.examples[corruption.kind as usize].get_or_insert(corruption.seen);
    }

    pub(crate) fn add_all(&mut self, others: Corruptions) {
        for kind in 0..self.counts.len() {
            self.counts[kind] += others.counts[kind];
        }
        for (example, other) in self.examples.iter_mut().zip(others.examples) {
            *example = example.take().or(other);
        }
    }

    pub(crate) fn of(&self, kind: Kind) -> u64 {
        self.counts[kind as usize]
    }

    pub(crate) fn sum(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// How operations of different processes are kept apart.
enum Lock {
    None,
    Flock(File),
    Trees(ProcessTreeLock<str>),
}

#[expect(dead_code, reason = "it is there to be dropped")]
enum Guard<'a> {
    None,
    Flock(Unlock<'a>),
    Trees(ProcessTreeLockGuard<'a, str>),
}

struct Unlock<'a>(&'a File);

impl Drop for Unlock<'_> {
    fn drop(&mut self) {
        let _ = flock(self.0, FlockOperation::Unlock);
    }
}

impl Lock {
    fn open(way: Way, directory: &Path) -> Result<Self, Fault> {
        let path = directory.join("lock");
        match way {
            Way::None => Ok(Lock::None),
            Way::Flock => match OpenOptions::new().append(true).create(true).open(path) {
                Ok(file) => Ok(Lock::Flock(file)),
                Err(error) => Err(Fault::Failed(format!("cannot open the file to lock: {error}"))),
            },
            Way::Treelock => {
                Options::new().open(path).map(Lock::Trees).map_err(|error| Fault::Failed(error.to_string()))
            }
        }
    }

    fn lock(&self, reads: &[String], writes: &[String]) -> Result<Guard<'_>, Fault> {
        match self {
            Lock::None => Ok(Guard::None),
            Lock::Flock(file) => match rustix::io::retry_on_intr(|| flock(file, FlockOperation::LockExclusive)) {
                Ok(()) => Ok(Guard::Flock(Unlock(file))),
                Err(error) => Err(Fault::Failed(format!("cannot flock: {error}"))),
            },
            Lock::Trees(trees) => {
                trees.lock(reads, writes).map(Guard::Trees).map_err(|error| Fault::Failed(error.to_string()))
            }
        }
    }
}

/// One process's operations: each takes all that it needs in one request, and keeps it until it is done.
pub(crate) struct Worker {
    store: Store,
    lock: Lock,
    rng: StdRng,
    /// How long each operation waited for its lock.
    waits: RefCell<Vec<Duration>>,
}

impl Worker {
    pub(crate) fn open(store: Store, way: Way, directory: &Path, seed: u64) -> Result<Self, Fault> {
        let lock = Lock::open(way, directory)?;
        Ok(Worker { store, lock, rng: StdRng::seed_from_u64(seed), waits: RefCell::default() })
    }

    pub(crate) fn work(mut self, time: Duration) -> Result<Report, Fault> {
        let mut corruptions = Corruptions::default();
        let start = Instant::now();
        while start.elapsed() < time {
            match self.operate() {
                Err(Fault::Corrupt(corruption)) => corruptions.add(corruption),
                other => other?,
            }
        }
        Ok(Report { elapsed: start.elapsed(), waits: self.waits.into_inner(), corruptions })
    }

    /// Does something, somewhere.
    fn operate(&mut self) -> Result<(), Fault> {
        let operation = OPERATIONS.choose_weighted(&mut self.rng, |(_, often)| *often).expect("there are weights").0;
        let tables = 0..self.store.tables();
        let tables = tables.collect::<Vec<_>>().choose_multiple(&mut self.rng, 2).copied().collect::<Vec<_>>();
        let ids = [(); 2].map(|()| self.rng.random_range(0..self.store.ids()));
        let (table, id) = (tables[0], ids[0]);
        let value = self.rng.random();
        match operation {
            Operation::Select => self.select(table, id),
            Operation::SelectTable => self.select_table(table),
            Operation::Edit => self.edit(table, id, value),
            Operation::Update => self.update(table, id, value),
            Operation::Insert => self.insert(table, id, value),
            Operation::Delete => self.delete(table, ids),
            Operation::Transfer => self.transfer([(table, id), (tables[1], ids[1])], i64::from(value % 100)),
            Operation::Reorganise => self.reorganise(table),
            Operation::Check => self.check(),
        }
    }

    fn lock(&self, reads: &[String], writes: &[String]) -> Result<Guard<'_>, Fault> {
        let asked = Instant::now();
        let guard = self.lock.lock(reads, writes)?;
        self.waits.borrow_mut().push(asked.elapsed());
        Ok(guard)
    }

    /// Reads a row, and compares it to the index.
    fn select(&self, table: u32, id: u32) -> Result<(), Fault> {
        let _guard = self.lock(&[row_path(table, id), index_path(table)], &[])?;
        self.find(table, id).map(drop)
    }

    /// Reads all of a table, and compares it.
    fn select_table(&self, table: u32) -> Result<(), Fault> {
        let _guard = self.lock(&[table_path(table)], &[])?;
        self.store.survey_table(table)?.whole().map(drop)
    }

    /// Changes what only the row has.
    fn edit(&self, table: u32, id: u32, value: u32) -> Result<(), Fault> {
        let _guard = self.lock(&[], &[row_path(table, id)])?;
        let Some(mut row) = self.store.read_row(table, id)? else { return Ok(()) };
        row.text = format!("{value:b}");
        self.store.write_row(table, id, &row)?;
        self.store.sync()
    }

    /// Changes what the index has too.
    fn update(&self, table: u32, id: u32, value: u32) -> Result<(), Fault> {
        let _guard = self.lock(&[], &[row_path(table, id), index_path(table)])?;
        let (Some(mut row), mut index) = self.find(table, id)? else { return Ok(()) };
        row.key = value;
        self.store.write_row(table, id, &row)?;
        index.insert(id, value);
        self.store.write_index(table, &index)?;
        self.store.sync()
    }

    fn insert(&self, table: u32, id: u32, value: u32) -> Result<(), Fault> {
        let _guard = self.lock(&[], &[row_path(table, id), index_path(table), meta_path(table)])?;
        let (None, mut index) = self.find(table, id)? else { return Ok(()) };
        let meta = self.store.read_meta(table)?;
        self.store.write_row(table, id, &Row { key: value, amount: 0, text: String::new() })?;
        index.insert(id, value);
        self.store.write_index(table, &index)?;
        self.store.write_meta(table, Meta { rows: meta.rows + 1, ..meta })?;
        self.store.sync()
    }

    /// Removes the first row; the second one gets its amount.
    fn delete(&self, table: u32, ids: [u32; 2]) -> Result<(), Fault> {
        let [id, heir] = ids;
        let writes = [row_path(table, id), row_path(table, heir), index_path(table), meta_path(table)];
        let _guard = self.lock(&[], &writes)?;
        let (Some(row), mut index) = self.find(table, id)? else { return Ok(()) };
        let Some(mut richer) = self.store.read_row(table, heir)?.filter(|_| id != heir) else { return Ok(()) };
        let meta = self.store.read_meta(table)?;
        richer.amount += row.amount;
        self.store.write_row(table, heir, &richer)?;
        self.store.remove_row(table, id)?;
        index.remove(&id);
        self.store.write_index(table, &index)?;
        self.store.write_meta(table, Meta { rows: meta.rows.saturating_sub(1), ..meta })?;
        self.store.sync()
    }

    /// Moves an amount between rows of two tables.
    fn transfer(&self, places: [(u32, u32); 2], amount: i64) -> Result<(), Fault> {
        let writes = places.map(|(table, id)| [row_path(table, id), meta_path(table)]).concat();
        let _guard = self.lock(&[], &writes)?;
        let [from, to] = places.map(|(table, id)| self.store.read_row(table, id));
        let (Some(from), Some(to)) = (from?, to?) else { return Ok(()) };
        let metas = places.map(|(table, _)| self.store.read_meta(table));
        let changes = places.into_iter().zip([from, to]).zip(metas).zip([-amount, amount]);
        for ((((table, id), row), meta), amount) in changes {
            let meta = meta?;
            self.store.write_row(table, id, &Row { amount: row.amount + amount, ..row })?;
            self.store.write_meta(table, Meta { amount: meta.amount + amount, ..meta })?;
        }
        self.store.sync()
    }

    /// Writes a whole table anew, the rows numbered from 0.
    fn reorganise(&self, table: u32) -> Result<(), Fault> {
        let _guard = self.lock(&[], &[table_path(table)])?;
        let rows = self.store.survey_table(table)?.whole()?.rows;
        let mut index = Index::new();
        for (id, row) in (0..).zip(rows.values()) {
            self.store.write_row(table, id, row)?;
            index.insert(id, row.key);
        }
        for id in rows.keys().filter(|id| !index.contains_key(id)) {
            self.store.remove_row(table, *id)?;
        }
        self.store.write_index(table, &index)?;
        self.store.sync()
    }

    /// Reads the whole database, as for a backup.
    fn check(&self) -> Result<(), Fault> {
        let _guard = self.lock(&[String::new()], &[])?;
        self.store.survey()?.whole().map(drop)
    }

    /// A row and the index, which agree. Needs both read.
    fn find(&self, table: u32, id: u32) -> Result<(Option<Row>, Index), Fault> {
        let (row, index) = (self.store.read_row(table, id)?, self.store.read_index(table)?);
        self.store.compare(table, id, row.as_ref(), index.get(&id).copied())?;
        Ok((row, index))
    }
}
