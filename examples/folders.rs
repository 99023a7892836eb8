//! Folder operations on an object store, which has no folders: what [`TreeLock`] is for, on real files.
//!
//! ```text
//! cargo run --release --example folders -- [DIRECTORY] [--threads 4] [--seconds 5] [--seed 0] [--no-lock]
//! ```
//!
//! An object store reads, writes, copies and deletes single keys. To rename a folder there means to copy and delete
//! its keys one by one, and a reader meanwhile sees half of it here and half of it there. This program copies the
//! files below DIRECTORY into a store in memory, and never writes to DIRECTORY; any other [`ObjectStore`] would do.
//! Then several threads work on the folders of that store, each operation ([`Worker`]) under one request to the lock:
//!
//! | operation | reads | writes |
//! |---|---|---|
//! | list a folder, or all | the folder | |
//! | rename a folder | | where it is, where it goes |
//! | copy a folder | where it is | where it goes |
//! | delete a copy of a folder | another copy | the folder |
//!
//! # What is checked
//!
//! The store has a few shelves, and a folder keeps its place below its shelf: `inbox/src/bin` becomes `work/src/bin`,
//! and all below it comes along. So a key tells what its content and its neighbours must be, however often it has
//! moved; and there are sub-trees within sub-trees in which operations meet.
//!
//! 1. A listing reads all objects below its folder. Each directory among them has all the files that lie directly in
//!    it, or is not there at all; each file has its content.
//! 2. A folder is deleted only if another shelf has all that it has, and a copy overwrites only the same content. So
//!    a listing of the whole store finds each file at least once; so does the last one, when all is done.
//! 3. No key vanishes after it is listed and before it is read, copied or deleted.
//!
//! An observation that breaks one of these rules is *torn*. `--no-lock` runs the same without the lock, which shows
//! that the checks find what they should. An operation that comes upon a torn folder stops there and leaves the
//! damage, and a run that has lost every file ends early.
//!
//! # What can be compared
//!
//! Rates of two runs can be compared only if both had the same work. A run that has torn or lost something has less
//! and less to do, and so gets quicker; so its rates are not printed. To see what the lock costs, use one thread,
//! which tears nothing: `--threads 1` and `--threads 1 --no-lock` do the same operations on the same folders.
//!
//! # Exit code
//!
//! 0: nothing torn, nothing lost. 1: something was, which with the lock is a bug. 2: the arguments are wrong, there
//! is nothing to work on, or the store fails.

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use futures::{TryStreamExt, executor::block_on};
use indicatif::{ProgressBar, ProgressStyle};
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io, thread};
use treelock::{TreeLock, TreeLockGuard};

const SHELVES: [&str; 4] = ["inbox", "work", "archive", "backup"];
/// Directories that tools make, and make large.
const LEFT_OUT: [&str; 2] = [".git", "target"];
const LARGEST_FILE: u64 = 1 << 20;
const LARGEST_LOAD: u64 = 256 << 20;
const EXAMPLES_SHOWN: usize = 3;

/// Lists, renames, copies and deletes folders on an object store, from several threads
#[derive(Parser)]
struct Arguments {
    /// The directory whose files to load, without links, files above 1 MiB, all beyond 256 MiB, .git and target
    #[arg(default_value = env!("CARGO_MANIFEST_DIR"))]
    directory: PathBuf,
    /// How many threads work on the folders
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000))]
    threads: u16,
    /// For how long
    #[arg(long, default_value = "5", value_parser = parse_seconds)]
    seconds: Duration,
    /// Decides what each thread does, in which order
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Work without the lock, to see what goes wrong
    #[arg(long)]
    no_lock: bool,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("it is not a number above 0 and up to 86400, a day".into()),
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(clean) => ExitCode::from(u8::from(!clean)),
        Err(message) => {
            eprintln!("folders: {message}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether nothing was torn or lost.
fn run(arguments: &Arguments) -> Result<bool, String> {
    let directory = arguments.directory.display();
    let mut originals = Originals::default();
    originals.load(&arguments.directory, &Key::ROOT).map_err(|error| format!("cannot read {directory}: {error}"))?;
    let Originals { files, folders, bytes, left_out } = &originals;
    if files.is_empty() {
        return Err(format!("no files to work on in {directory}"));
    }
    let (files, folders) = (files.len(), folders.len());
    println!("works on a copy in memory of {directory}, which is left as it is");
    println!("files: {files}, folders: {folders}, bytes: {bytes}, left out: {left_out}");

    let lock = (!arguments.no_lock).then(TreeLock::default);
    let store = Store { objects: Arc::new(InMemory::new()), lock, originals };
    store.fill()?;
    let start = Instant::now();
    let reports = store.work(arguments, start)?;
    let elapsed = start.elapsed();
    let last = store.survey(&Key::ROOT)?;
    let torn = Tally::sum(reports.iter().flat_map(|report| report.tallies)).torn;
    let clean = torn == 0 && last.torn.is_empty();
    println!("{}", table(&reports, clean.then_some(elapsed)));

    if elapsed < arguments.seconds {
        println!("ended after {elapsed:.2?}: all files were lost");
    }
    if !clean {
        println!(
            "no rates are told: the more is lost the less is left to do (compare --threads 1 with and without --no-lock)"
        );
    }
    println!("torn observations: {torn}");
    for seen in reports
        .iter()
        .flat_map(|report| &report.examples)
        .take(EXAMPLES_SHOWN)
        .chain(last.torn.iter().take(EXAMPLES_SHOWN))
    {
        println!("    {seen}");
    }
    println!("files accounted for: {} of {files}", last.files.len());
    if !clean && !arguments.no_lock {
        println!("the lock has failed: please report this as a bug of treelock");
    }
    Ok(clean)
}

/// What was loaded, which the checks compare with. Keys are relative to the directory, that is to a shelf.
#[derive(Default)]
struct Originals {
    files: BTreeMap<Key, Vec<u8>>,
    /// Every directory that has files below it, with the number of those directly in it.
    folders: BTreeMap<Key, usize>,
    bytes: u64,
    left_out: usize,
}

impl Originals {
    /// Reads the files below `directory`. What cannot be read or named inside of it is left out.
    fn load(&mut self, directory: &Path, folder: &Key) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let loaded = match entry.file_name().to_str() {
                Some(name) if kind.is_file() => self.load_file(&entry.path(), folder.clone().join(name)),
                Some(name) if kind.is_dir() && !LEFT_OUT.contains(&name) => {
                    self.load(&entry.path(), &folder.clone().join(name))
                }
                _ => Err(io::ErrorKind::Unsupported.into()),
            };
            self.left_out += usize::from(loaded.is_err());
        }
        Ok(())
    }

    fn load_file(&mut self, path: &Path, key: Key) -> io::Result<()> {
        let size = fs::metadata(path)?.len();
        if size > LARGEST_FILE.min(LARGEST_LOAD - self.bytes) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let content = fs::read(path)?;
        self.bytes += size;
        let mut ancestor = key.parent();
        let mut files = 1;
        while let Some(folder) = ancestor {
            ancestor = folder.parent();
            *self.folders.entry(folder).or_default() += files;
            files = 0;
        }
        self.files.insert(key, content);
        Ok(())
    }
}

/// The objects, the lock over their keys, and what is known of them.
struct Store {
    objects: Arc<dyn ObjectStore>,
    /// None with `--no-lock`.
    lock: Option<TreeLock<str>>,
    originals: Originals,
}

/// Why an operation cannot go on.
enum Fault {
    /// A rule is broken: this is what was seen.
    Torn(String),
    Store(object_store::Error),
}

impl From<object_store::Error> for Fault {
    fn from(error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { path, .. } => Fault::Torn(format!("{path} was listed, then it was gone")),
            other => Fault::Store(other),
        }
    }
}

impl From<Fault> for String {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Torn(seen) => seen,
            Fault::Store(error) => format!("the store failed: {error}"),
        }
    }
}

/// What is below a folder.
#[derive(Default)]
struct Survey {
    /// Relative to their shelf.
    files: BTreeSet<Key>,
    objects: usize,
    /// What breaks rule 1 or 2.
    torn: Vec<String>,
}

impl Survey {
    /// The number of objects, if none of the folders is torn.
    fn whole(self) -> Result<usize, Fault> {
        self.torn.into_iter().next().map_or(Ok(self.objects), |seen| Err(Fault::Torn(seen)))
    }
}

impl Store {
    fn fill(&self) -> Result<(), Fault> {
        for (file, content) in &self.originals.files {
            self.ask(self.objects.put(&place(SHELVES[0], file), content.clone().into()))?;
        }
        Ok(())
    }

    /// Makes one request. A real store takes a while for it; one in memory does not, so this lets other threads run.
    fn ask<T>(&self, request: impl Future<Output = object_store::Result<T>>) -> Result<T, Fault> {
        thread::yield_now();
        Ok(block_on(request)?)
    }

    fn keys_below(&self, folder: &Key) -> Result<Vec<Key>, Fault> {
        self.ask(self.objects.list(Some(folder)).map_ok(|object| object.location).try_collect())
    }

    /// Reads all objects below `folder` and says what is torn.
    fn survey(&self, folder: &Key) -> Result<Survey, Fault> {
        let mut survey = Survey::default();
        let mut found = BTreeMap::<Key, usize>::new();
        for key in self.keys_below(folder)? {
            let content = self.ask(async { self.objects.get(&key).await?.bytes().await })?;
            let file = below_shelf(&key);
            if self.originals.files.get(&file).is_none_or(|original| *original != content) {
                survey.torn.push(format!("{key} does not have its content"));
            }
            survey.files.insert(file);
            survey.objects += 1;
            *found.entry(key.parent().unwrap_or_default()).or_default() += 1;
        }
        for (place, found) in found {
            let all = self.originals.folders.get(&below_shelf(&place)).copied().unwrap_or_default();
            if found != all {
                survey.torn.push(format!("{place} had {found} of its {all} files"));
            }
        }
        let (found, all) = (survey.files.len(), self.originals.files.len());
        if folder.is_root() && found < all {
            survey.torn.push(format!("the whole store had {found} of the {all} files"));
        }
        Ok(survey)
    }

    /// Lets the threads work until the time is up or the store is empty.
    fn work(&self, arguments: &Arguments, start: Instant) -> Result<Vec<Report>, Fault> {
        let bar = ProgressBar::new(arguments.seconds.as_millis() as u64)
            .with_style(ProgressStyle::with_template("{wide_bar} {elapsed}").expect("the template is valid"));
        let work = &|seed| {
            let rng = StdRng::seed_from_u64(seed);
            let mut worker = Worker { store: self, rng, report: Report::default(), nothing_left: false };
            while start.elapsed() < arguments.seconds && !worker.nothing_left {
                worker.operate()?;
                bar.set_position(start.elapsed().as_millis() as u64);
            }
            Ok(worker.report)
        };
        let reports = thread::scope(|scope| {
            let seeds = (0..arguments.threads).map(|index| arguments.seed.wrapping_add(index.into()));
            let workers: Vec<_> = seeds.map(|seed| scope.spawn(move || work(seed))).collect();
            workers.into_iter().map(|worker| worker.join().expect("a worker panicked")).collect()
        });
        bar.finish_and_clear();
        reports
    }
}

/// The operations of one thread: each takes all that it needs in one request, and keeps it until it is done.
struct Worker<'a> {
    store: &'a Store,
    rng: StdRng,
    report: Report,
    /// All files are lost.
    nothing_left: bool,
}

impl<'a> Worker<'a> {
    /// Does something, somewhere.
    fn operate(&mut self) -> Result<(), Fault> {
        let operation = *Operation::ALL.choose(&mut self.rng).expect("there are operations");
        let folder = self.store.originals.folders.keys().choose(&mut self.rng).expect("there are folders");
        let shelves: Vec<_> = SHELVES.choose_multiple(&mut self.rng, 2).collect();
        let (here, there) = (place(shelves[0], folder), place(shelves[1], folder));
        let done = match operation {
            Operation::List if self.rng.random_ratio(1, 16) => self.list(&Key::ROOT),
            Operation::List => self.list(&here),
            Operation::Rename => self.rename(&here, &there),
            Operation::Copy => self.copy(&here, &there),
            Operation::Delete => self.delete(&here, &there),
        };
        match done {
            Ok(objects) => self.report.tallies[operation as usize].objects += objects,
            Err(Fault::Torn(seen)) => {
                self.report.tallies[operation as usize].torn += 1;
                self.report.examples.push(format!("{operation:?}: {seen}"));
                self.report.examples.truncate(EXAMPLES_SHOWN);
            }
            Err(fault) => return Err(fault),
        }
        Ok(())
    }

    fn list(&mut self, folder: &Key) -> Result<usize, Fault> {
        let _guard = self.lock(Operation::List, &[folder], &[]);
        let survey = self.store.survey(folder)?;
        self.nothing_left = folder.is_root() && survey.objects == 0;
        survey.whole()
    }

    fn rename(&mut self, from: &Key, to: &Key) -> Result<usize, Fault> {
        let _guard = self.lock(Operation::Rename, &[], &[from, to]);
        let keys = self.copy_keys(from, to)?;
        self.delete_keys(&keys)
    }

    fn copy(&mut self, from: &Key, to: &Key) -> Result<usize, Fault> {
        let _guard = self.lock(Operation::Copy, &[from], &[to]);
        Ok(self.copy_keys(from, to)?.len())
    }

    /// Deletes `folder` if `other` has all that it has. The lock keeps `other` as it is meanwhile.
    fn delete(&mut self, folder: &Key, other: &Key) -> Result<usize, Fault> {
        let _guard = self.lock(Operation::Delete, &[other], &[folder]);
        let kept: BTreeSet<_> = self.store.keys_below(other)?.iter().map(below_shelf).collect();
        let keys = self.store.keys_below(folder)?;
        let is_copy = keys.iter().all(|key| kept.contains(&below_shelf(key)));
        if is_copy { self.delete_keys(&keys) } else { Ok(0) }
    }

    fn lock(&mut self, operation: Operation, reads: &[&Key], writes: &[&Key]) -> Option<TreeLockGuard<'a, str>> {
        let asked = Instant::now();
        let guard = self.store.lock.as_ref().map(|lock| lock.lock(reads, writes));
        let tally = &mut self.report.tallies[operation as usize];
        tally.longest_wait = tally.longest_wait.max(asked.elapsed());
        tally.operations += 1;
        guard
    }

    /// Needs `from` read and `to` written.
    fn copy_keys(&self, from: &Key, to: &Key) -> Result<Vec<Key>, Fault> {
        let keys = self.store.keys_below(from)?;
        for key in &keys {
            let copy = to.parts().chain(key.prefix_match(from).expect("it is below")).collect();
            self.store.ask(self.store.objects.copy(key, &copy))?;
        }
        Ok(keys)
    }

    /// Needs them written.
    fn delete_keys(&self, keys: &[Key]) -> Result<usize, Fault> {
        for key in keys {
            self.store.ask(self.store.objects.delete(key))?;
        }
        Ok(keys.len())
    }
}

/// The place of a file or folder on a shelf.
fn place(shelf: &str, name: &Key) -> Key {
    Key::from(shelf).parts().chain(name.parts()).collect()
}

/// The rest of a key, without its shelf.
fn below_shelf(key: &Key) -> Key {
    key.parts().skip(1).collect()
}

#[derive(Clone, Copy, Debug)]
enum Operation {
    List,
    Rename,
    Copy,
    Delete,
}

impl Operation {
    const ALL: [Operation; 4] = [Operation::List, Operation::Rename, Operation::Copy, Operation::Delete];
}

/// What a worker has done.
#[derive(Default)]
struct Report {
    tallies: [Tally; Operation::ALL.len()],
    /// Some torn observations.
    examples: Vec<String>,
}

#[derive(Clone, Copy, Default)]
struct Tally {
    operations: usize,
    objects: usize,
    longest_wait: Duration,
    torn: usize,
}

impl Tally {
    fn sum(tallies: impl Iterator<Item = Tally>) -> Tally {
        tallies.fold(Tally::default(), |sum, tally| Tally {
            operations: sum.operations + tally.operations,
            objects: sum.objects + tally.objects,
            longest_wait: sum.longest_wait.max(tally.longest_wait),
            torn: sum.torn + tally.torn,
        })
    }
}

/// With rates if the time is given.
fn table(reports: &[Report], elapsed: Option<Duration>) -> Table {
    let rate = |operations: usize| match elapsed {
        Some(elapsed) => format!("{:.0}", operations as f64 / elapsed.as_secs_f64()),
        None => "–".into(),
    };
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header(["operation", "count", "per second", "objects", "longest wait", "torn"]);
    let mut add_row = |name: &str, tally: Tally| {
        table.add_row([
            name,
            &tally.operations.to_string(),
            &rate(tally.operations),
            &tally.objects.to_string(),
            &format!("{:.2} ms", tally.longest_wait.as_secs_f64() * 1e3),
            &tally.torn.to_string(),
        ]);
    };
    for operation in Operation::ALL {
        let tallies = reports.iter().map(|report| report.tallies[operation as usize]);
        add_row(&format!("{operation:?}").to_lowercase(), Tally::sum(tallies));
    }
    add_row("all", Tally::sum(reports.iter().flat_map(|report| report.tallies)));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
