//! A database of files that many processes work on: what [`ProcessTreeLock`] is for.
//!
//! ```text
//! cargo run --release --features process --example table_store -- [--processes 50] [--seconds 5] [--tables 8]
//!     [--rows 64] [--directory DIRECTORY] [--disk-latency 0] [--only none|flock|treelock] [--seed 0]
//! ```
//!
//! Embedded file databases keep a directory for each table, and read and write files in place. When several processes
//! do so at a time, they corrupt tables; so their users put one `flock` around every operation, which leaves no
//! concurrency. This program works on such a database (`store.rs`) in three ways, one after the other, each with as
//! many processes and a new database: without a lock, with one `flock` around all, and with locks on what each
//! operation touches (`worker.rs`):
//!
//! | operation | reads | writes |
//! |---|---|---|
//! | select a row | `tables/NAME/rows/ID`, `tables/NAME/index` | |
//! | select a table | `tables/NAME` | |
//! | edit a row's text | | `tables/NAME/rows/ID` |
//! | update a row's key | | `tables/NAME/rows/ID`, `tables/NAME/index` |
//! | insert a row | | `tables/NAME/rows/ID`, `tables/NAME/index`, `tables/NAME/meta` |
//! | delete a row, its amount goes to another | | as insert, and the other row |
//! | transfer an amount between tables | | a row and `tables/NAME/meta` of both |
//! | reorganise a table | | `tables/NAME` |
//! | check or back up the database | the root | |
//!
//! The names are those of the files because that is handy; the lock does not look at the files. Its own files are in
//! `lock`. No operation asks for more while it has something, so none can be in a deadlock. If the id that an
//! operation picks does not suit it, because it has a row or has none, the operation has read that, and is done.
//!
//! # What is measured
//!
//! Operations per second, and how long each waited for its lock. What an operation has written is synced
//! (`File::sync_data`) before it is unlocked, as every database that promises durability must do. Sub-tree locks let
//! these waits pass side by side, so the gain depends on how long a sync takes, which is printed, and on how many the
//! disk does at a time. On a file system in memory there is nothing to wait for but the processors, which one `flock`
//! already keeps busy, and the lock costs more than it gains. `--directory` chooses the file system; `--disk-latency`
//! makes each operation sleep longer by so much when it syncs, which shows the same for a slower disk. The entries of
//! directories are not synced.
//!
//! # What is checked
//!
//! The rules of `store.rs`: by each operation for what it reads, by the check for all, and by this program once more
//! when the processes have ended. Observations are counted: a file that stays torn is seen again and again. An
//! operation that comes upon a corruption stops there and leaves the damage.
//!
//! # Exit code
//!
//! 0: nothing was corrupted with a lock. 1: something was, which with treelock is a bug; or it was with `--only none`.
//! 2: the arguments are wrong, or the files fail.
//!
//! [`ProcessTreeLock`]: treelock::process::ProcessTreeLock

mod store;
mod worker;

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};
use store::{Kind, Store};
use worker::{Corruptions, Report, Way, Worker};

/// Works on a database of files by many processes, without a lock, with one flock, and with locks on sub-trees
#[derive(Parser)]
struct Arguments {
    /// How many processes work on the database
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    processes: u16,
    /// For how long in each way
    #[arg(long, default_value = "5", value_parser = parse_seconds)]
    seconds: Duration,
    /// How many tables there are
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=1000))]
    tables: u32,
    /// How many rows each has at first
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rows: u32,
    /// Where to make the databases, in a new directory that is removed at the end
    #[arg(long, default_value_os_t = env::temp_dir())]
    directory: PathBuf,
    /// Work in this way only
    #[arg(long)]
    only: Option<Way>,
    /// How many milliseconds longer each operation's sync takes, as on a slower disk
    #[arg(long, default_value = "0", value_parser = parse_milliseconds)]
    disk_latency: Duration,
    /// Decides what each process does, in which order
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// This is one of the processes, on the database in this directory
    #[arg(long, hide = true, requires = "only")]
    worker: bool,
}

impl Arguments {
    fn store(&self, database: &Path) -> Store {
        Store::new(database, self.tables, self.rows, self.disk_latency)
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("it is not a number above 0 and up to 86400, a day".into()),
    }
}

fn parse_milliseconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(milliseconds) if (0.0..=10_000.0).contains(&milliseconds) => {
            Ok(Duration::from_secs_f64(milliseconds / 1e3))
        }
        _ => Err("it is not a number from 0 to 10000".into()),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.only {
        Some(way) if arguments.worker => work(&arguments, way).map(|()| true),
        _ => run(&arguments),
    };
    match done {
        Ok(clean) => ExitCode::from(u8::from(!clean)),
        Err(message) => {
            eprintln!("table_store: {message}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether nothing was corrupted that should not have been.
fn run(arguments: &Arguments) -> Result<bool, String> {
    let Arguments { processes, tables, rows, directory, .. } = arguments;
    let refused = |error| format!("cannot work in {}: {error}", directory.display());
    let place = tempfile::Builder::new().prefix("table_store-").tempdir_in(directory).map_err(refused)?;
    let path = place.path().canonicalize().map_err(refused)?;
    let sync = sync_time(&path).map_err(refused)?;
    println!("{} ({}, a sync takes {})", directory.display(), file_system(&path), milliseconds(sync));
    println!("processes: {processes}, tables: {tables}, rows in each: {rows}");

    let ways = arguments.only.map_or(Way::ALL.to_vec(), |way| vec![way]);
    let mut outcomes = Vec::new();
    for way in ways {
        outcomes.push(Outcome::of(arguments, way, &path.join(way.name()))?);
    }
    println!("{}", table(&outcomes));
    Ok(conclude(&outcomes))
}

/// Explains what was seen, and returns whether that is as it should be.
fn conclude(outcomes: &[Outcome]) -> bool {
    for Outcome { way, corruptions, .. } in outcomes {
        for seen in corruptions.examples.iter().flatten() {
            println!("{}: {seen}", way.name());
        }
        match way {
            Way::None if corruptions.sum() == 0 => {
                println!("none: nothing was corrupted this time, which proves nothing")
            }
            Way::Treelock if corruptions.sum() > 0 => {
                println!("the lock has failed: please report this as a bug of treelock");
            }
            _ => {}
        }
    }
    let per_second = |way| outcomes.iter().find(|outcome| outcome.way == way).map(Outcome::per_second);
    if let (Some(flock), Some(treelock)) = (per_second(Way::Flock), per_second(Way::Treelock)) {
        println!("treelock does {:.1} times as much as flock", treelock / flock);
    }
    outcomes.iter().all(|outcome| outcome.corruptions.sum() == 0 || outcome.way == Way::None && outcomes.len() > 1)
}

/// The results of one way.
struct Outcome {
    way: Way,
    elapsed: Duration,
    /// From the shortest to the longest.
    waits: Vec<Duration>,
    corruptions: Corruptions,
}

impl Outcome {
    fn of(arguments: &Arguments, way: Way, database: &Path) -> Result<Self, String> {
        let store = arguments.store(database);
        store.create()?;
        let reports = Processes::start(arguments, way, database)?.work(arguments.seconds, way)?;
        let mut outcome =
            Outcome { way, elapsed: Duration::ZERO, waits: Vec::new(), corruptions: Corruptions::default() };
        for report in reports {
            outcome.elapsed = outcome.elapsed.max(report.elapsed);
            outcome.waits.extend(report.waits);
            outcome.corruptions.add_all(report.corruptions);
        }
        outcome.waits.sort_unstable();
        store.survey()?.corruptions.into_iter().for_each(|corruption| outcome.corruptions.add(corruption));
        fs::remove_dir_all(database).map_err(|error| format!("cannot remove {}: {error}", database.display()))?;
        Ok(outcome)
    }

    fn per_second(&self) -> f64 {
        self.waits.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// The wait that this many of 100 waits do not exceed.
    fn wait(&self, percent: usize) -> String {
        let place = (self.waits.len() * percent / 100).min(self.waits.len().saturating_sub(1));
        match self.waits.get(place) {
            Some(wait) if self.way != Way::None => milliseconds(*wait),
            _ => "-".into(),
        }
    }
}

/// The processes, each of which has opened the database and waits for the start.
struct Processes(Vec<Child>);

impl Processes {
    fn start(arguments: &Arguments, way: Way, database: &Path) -> Result<Self, String> {
        let failed = |error: io::Error| format!("cannot start a process: {error}");
        let program = env::current_exe().map_err(failed)?;
        let mut processes = Processes(Vec::new());
        for index in 0..arguments.processes {
            let mut command = Command::new(&program);
            command.args(["--worker", "--only", way.name(), "--directory"]).arg(database);
            for (name, value) in [
                ("--tables", arguments.tables.to_string()),
                ("--rows", arguments.rows.to_string()),
                ("--seconds", arguments.seconds.as_secs_f64().to_string()),
                ("--disk-latency", (arguments.disk_latency.as_secs_f64() * 1e3).to_string()),
                ("--seed", arguments.seed.wrapping_add(index.into()).to_string()),
            ] {
                command.args([name, &value]);
            }
            processes.0.push(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?);
        }
        for process in &mut processes.0 {
            let ready = process.stdout.as_mut().expect("it is piped").read_exact(&mut [0]);
            ready.map_err(|_| "a process has ended early".to_string())?;
        }
        Ok(processes)
    }

    fn work(mut self, time: Duration, way: Way) -> Result<Vec<Report>, String> {
        let bar = ProgressBar::new(time.as_millis() as u64)
            .with_style(ProgressStyle::with_template("{msg:8} {wide_bar} {elapsed}").expect("the template is valid"))
            .with_message(way.name());
        let start = Instant::now();
        self.0.iter_mut().for_each(|process| drop(process.stdin.take()));
        while start.elapsed() < time {
            bar.set_position(start.elapsed().as_millis() as u64);
            thread::sleep(Duration::from_millis(100).min(time.saturating_sub(start.elapsed())));
        }
        let reports = self.0.iter_mut().map(|process| {
            let mut bytes = Vec::new();
            let read = process.stdout.as_mut().expect("it is piped").read_to_end(&mut bytes);
            read.map_err(|error| format!("cannot read what a process reports: {error}"))?;
            postcard::from_bytes(&bytes).map_err(|_| "a process has ended early".to_string())?
        });
        let reports = reports.collect();
        bar.finish_and_clear();
        reports
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for process in &mut self.0 {
            // It has ended, unless something has failed.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// The work of one process: it says that it is ready, waits for the start, works and reports.
fn work(arguments: &Arguments, way: Way) -> Result<(), String> {
    let store = arguments.store(&arguments.directory);
    // Its error is in its report, so that one process prints it.
    let worker = Worker::open(store, way, &arguments.directory, arguments.seed);
    let failed = |error: io::Error| format!("cannot talk to the parent: {error}");
    let mut parent = io::stdout();
    parent.write_all(&[0]).and_then(|()| parent.flush()).map_err(failed)?;
    io::stdin().read_to_end(&mut Vec::new()).map_err(failed)?;
    let report = worker.and_then(|worker| worker.work(arguments.seconds)).map_err(String::from);
    let report = postcard::to_stdvec(&report).expect("a report can be written");
    parent.write_all(&report).and_then(|()| parent.flush()).map_err(failed)
}

/// The kind of file system that a path without links is on.
fn file_system(path: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = mounts.lines().filter_map(|mount| {
        let (place, kind) = mount.split_once(" - ")?;
        Some((Path::new(place.split(' ').nth(4)?), kind.split(' ').next()?))
    });
    // If several are mounted at the same place, the last one is seen.
    let found =
        mounts.filter(|(place, _)| path.starts_with(place)).max_by_key(|(place, _)| place.components().count());
    found.map_or("unknown file system", |(_, kind)| kind).to_owned()
}

/// The usual time to make one small file durable, while nothing else does so.
fn sync_time(directory: &Path) -> io::Result<Duration> {
    let mut times = [Duration::ZERO; 31];
    for time in &mut times {
        let start = Instant::now();
        let mut file = File::create(directory.join("sync"))?;
        file.write_all(&[0; 100])?;
        file.sync_data()?;
        *time = start.elapsed();
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

fn table(outcomes: &[Outcome]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header(["way", "operations", "per second", "torn", "index", "money", "median wait", "99 %", "longest"]);
    for outcome in outcomes {
        let corrupt = |kind| outcome.corruptions.of(kind).to_string();
        table.add_row([
            outcome.way.name(),
            &outcome.waits.len().to_string(),
            &format!("{:.0}", outcome.per_second()),
            &corrupt(Kind::Torn),
            &corrupt(Kind::Index),
            &corrupt(Kind::Money),
            &outcome.wait(50),
            &outcome.wait(99),
            &outcome.wait(100),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
