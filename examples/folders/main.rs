//! Folder operations on an object store, which has no folders: what [`TreeLock`] is for, on real files.
//!
//! ```text
//! cargo run --release --example folders -- [DIRECTORY] [--threads 4] [--seconds 5] [--seed 0] [--no-lock]
//!
//! redis-server --port 7777 --save ''
//! cargo run --release --features redis --example folders -- --engine redis://127.0.0.1:7777/ [DIRECTORY]
//!     [--processes 4] [--seconds 5] [--kill-every 500ms] [--stop-every 2s] [--namespace NAME] [--seed 0] [--no-lock]
//!
//! cargo run --release --features object-store --example folders -- --bucket [DIRECTORY] [--processes 4] ...
//! ```
//!
//! An object store reads, writes, copies and deletes single keys. To rename a folder there means to copy and delete
//! its keys one by one, and a reader meanwhile sees half of it here and half of it there. This program copies the
//! files below DIRECTORY into a store, and never writes to DIRECTORY. Then it works on the folders of that store, each
//! operation (`worker.rs`) under one request to the lock:
//!
//! | operation | reads | writes |
//! |---|---|---|
//! | list a folder, or all | the folder | |
//! | rename a folder | | where it is, where it goes |
//! | copy a folder | where it is | where it goes |
//! | delete a copy of a folder | another copy | the folder |
//!
//! It does so in one of two ways: by several threads, on a store in memory ([`InMemory`], any other [`ObjectStore`]
//! would do); or by several processes as if they were on as many machines, on a store on disk ([`LocalFileSystem`]), with the lock
//! in an engine (`--engine`), or in the store that holds the folders (`--bucket`).
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
//! # Between machines
//!
//! Threads die together. A machine may die alone, in the middle of a rename, or be cut off and go on later. So now and then
//! a worker is killed (`--kill-every`) and another one takes its place, and one is stopped for longer than its lease
//! lives (`--stop-every`). The lock lets others in when the lease has ended; the rest is up to whoever uses it. An
//! operation takes these steps, here and in any program of this kind:
//!
//! 1. It locks all that it needs, in one request.
//! 2. It leaves its fence at all of that, before it looks at anything. From then on the store refuses what an earlier
//!    holder may still write (`fences.rs`).
//! 3. It looks for intents that conflict with what it has. Each is of a worker that has lost the lock half way, and is
//!    finished first: release, lock what the intent needs, do it again, remove it, and begin anew (`intents.rs`).
//! 4. It decides what to do, and writes its own intent, if it is to change anything.
//! 5. Before each write it looks whether the guard is valid, and gives the write the fence. If the guard is lost, or the
//!    store refuses, it gives up at once and leaves its intent to others. What it has read counts only if the guard is
//!    valid after that.
//! 6. It removes the intent, and releases the lock.
//!
//! All that makes a killed or late worker harmless stands in these steps. If one is left out, folders are torn, with the
//! lock; and so they are without the lock, also if nobody is killed or stopped (`--no-lock --kill-every 0 --stop-every 0`).
//! A fence that is refused to a worker whose guard is valid is counted as torn too: it would be the lock's own fault.
//!
//! # What can be compared
//!
//! Rates of two runs can be compared only if both had the same work. A run that has torn or lost something has less
//! and less to do, and so gets quicker; so its rates are not printed. To see what the lock costs, use one thread,
//! which tears nothing: `--threads 1` and `--threads 1 --no-lock` do the same operations on the same folders. Between
//! machines, add `--kill-every 0 --stop-every 0`: what is held by one that was killed is waited for, up to its time to
//! live of one second, and then the rate tells little else.
//!
//! # Exit code
//!
//! 0: nothing torn, nothing lost. 1: something was, which with the lock is a bug. 2: the arguments are wrong, there
//! is nothing to work on, the store or the server fails, or the run is interrupted.
//!
//! [`InMemory`]: object_store::memory::InMemory
//! [`LocalFileSystem`]: object_store::local::LocalFileSystem
//! [`ObjectStore`]: object_store::ObjectStore
//! [`TreeLock`]: treelock::TreeLock

#[cfg(feature = "machine")]
mod fences;
mod intents;
mod lock;
#[cfg(feature = "machine")]
mod processes;
mod store;
mod worker;

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use lock::Lock;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};
use store::{Fault, Key, Originals, Store, Survey};
use worker::{Operation, Report, Worker};

/// Lists, renames, copies and deletes folders on an object store, from several threads or processes
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
    /// Decides what each thread or process does, in which order
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Work without the lock, to see what goes wrong
    #[arg(long)]
    no_lock: bool,
    /// Work by processes that are kept apart by this engine, as in redis://127.0.0.1:7777/
    #[arg(long, value_name = "URL", conflicts_with = "threads", group = "machines")]
    engine: Option<String>,
    /// Work by processes that are kept apart by a lock in the store that holds the folders
    #[arg(long, conflicts_with = "threads", group = "machines")]
    bucket: bool,
    /// How many processes work on the folders
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=100), requires = "machines")]
    processes: u16,
    /// The namespace of the lock in the server; one of its own for each run, unless it is given
    #[arg(long, requires = "machines")]
    namespace: Option<String>,
    /// How often a process is killed, and another one started; 0 for never
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = parse_time, requires = "machines")]
    kill_every: Duration,
    /// How often a process is stopped for longer than its lease lives; 0 for never
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_time, requires = "machines")]
    stop_every: Duration,
    /// This is one of the processes, with such a number, and works in this directory
    #[arg(long, hide = true, requires = "machines")]
    worker: Option<u64>,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("it is not a number above 0 and up to 86400, a day".into()),
    }
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let (number, unit) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => (number, 1e-3),
        (None, Some(number)) => (number, 1.0),
        (None, None) => (text, 0.0),
    };
    match number.parse::<f64>().map(|number| (number, number * unit)) {
        Ok((0.0, _)) => Ok(Duration::ZERO),
        Ok((_, seconds)) if (0.01..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("it is neither 0 nor a time from 10ms to 86400s, as in 500ms or 2s".into()),
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
    if arguments.engine.is_none() && !arguments.bucket {
        let outcome = by_threads(arguments)?;
        return Ok(conclude(arguments, &outcome, &table(&outcome)));
    }
    #[cfg(feature = "machine")]
    return match arguments.worker {
        None => {
            let (outcome, deaths) = processes::run(arguments)?;
            Ok(conclude(arguments, &outcome, &processes::table(&outcome, &deaths)))
        }
        Some(number) => processes::work(arguments, number, &arguments.directory).map(|()| true),
    };
    #[cfg(not(feature = "machine"))]
    Err("it needs the feature of the engine: cargo run --release --features redis --example folders -- --engine URL, or \
         --features object-store and --bucket"
        .into())
}

/// What came of a run.
struct Outcome {
    report: Report,
    elapsed: Duration,
    /// What the store has in the end.
    last: Survey,
    /// How many files it had at first.
    files: usize,
}

impl Outcome {
    fn is_clean(&self) -> bool {
        self.report.all().torn == 0 && self.last.torn.is_empty()
    }

    /// How many of them were done in a second, if that can be told.
    fn rate(&self, operations: usize) -> String {
        match self.is_clean() {
            true => format!("{:.0}", operations as f64 / self.elapsed.as_secs_f64()),
            false => "–".into(),
        }
    }
}

/// Explains what was seen, and returns whether that is as it should be.
fn conclude(arguments: &Arguments, outcome: &Outcome, table: &Table) -> bool {
    let Outcome { report, elapsed, last, files } = outcome;
    let clean = outcome.is_clean();
    println!("{table}");
    if *elapsed < arguments.seconds {
        println!("ended after {elapsed:.2?}: all files were lost");
    }
    if !clean {
        println!(
            "no rates are told: the more is lost the less is left to do (compare --threads 1 with and without --no-lock)"
        );
    }
    println!("torn observations: {}", report.all().torn);
    for seen in report.examples.iter().chain(last.torn.iter().take(worker::EXAMPLES_SHOWN)) {
        println!("    {seen}");
    }
    println!("files accounted for: {} of {files}", last.files.len());
    if !clean && !arguments.no_lock {
        println!("the lock has failed: please report this as a bug of treelock");
    }
    clean
}

/// Lets threads work until the time is up or the store is empty.
fn by_threads(arguments: &Arguments) -> Result<Outcome, String> {
    let originals = Originals::of(&arguments.directory)?;
    println!("works on a copy in memory of {}, which is left as it is", arguments.directory.display());
    originals.print();
    let lock = if arguments.no_lock { Lock::None } else { Lock::Threads(Box::default()) };
    let store = Store::in_memory(originals);
    store.fill()?;

    let bar = bar(arguments.seconds);
    let start = Instant::now();
    let work = &|number| {
        let mut worker = Worker::new(&store, &lock, number, arguments.seed.wrapping_add(number));
        while start.elapsed() < arguments.seconds && !worker.nothing_left {
            worker.operate()?;
            bar.set_position(start.elapsed().as_millis() as u64);
        }
        Ok(worker.report)
    };
    let reports: Result<Vec<_>, Fault> = thread::scope(|scope| {
        let workers: Vec<_> = (0..arguments.threads.into()).map(|number| scope.spawn(move || work(number))).collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker panicked")).collect()
    });
    let elapsed = start.elapsed();
    bar.finish_and_clear();
    let mut report = Report::default();
    reports?.into_iter().for_each(|of_one| report.add(of_one));
    Ok(Outcome { report, elapsed, last: store.survey(&Key::ROOT)?, files: store.originals.files.len() })
}

fn bar(time: Duration) -> ProgressBar {
    ProgressBar::new(time.as_millis() as u64)
        .with_style(ProgressStyle::with_template("{wide_bar} {elapsed}").expect("the template is valid"))
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

fn table(outcome: &Outcome) -> Table {
    let report = &outcome.report;
    let mut table = empty_table(&["operation", "count", "per second", "objects", "longest wait", "torn"]);
    let rows = Operation::ALL.map(|operation| (operation.name(), report.tallies[operation as usize]));
    for (name, tally) in rows.into_iter().chain([("all".to_owned(), report.all())]) {
        table.add_row([
            name,
            tally.operations.to_string(),
            outcome.rate(tally.operations),
            tally.objects.to_string(),
            milliseconds(tally.longest_wait),
            tally.torn.to_string(),
        ]);
    }
    table
}

/// One whose first column has names, and the others numbers.
fn empty_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Without leases nobody is late.
#[cfg(not(feature = "machine"))]
mod fences {
    use crate::lock::Roots;
    use crate::store::Fault;

    pub(crate) enum Fences {}

    impl Fences {
        pub(crate) fn raise(&self, _: &Roots, _: u64) -> Result<(), Fault> {
            match *self {}
        }

        pub(crate) fn unless_higher<T>(&self, _: &Roots, _: u64, _: impl FnOnce() -> T) -> Result<Option<T>, Fault> {
            match *self {}
        }
    }
}
