//! Several processes that share a store on disk, some of which are killed and stopped: the parent, and its workers.
//!
//! The parent makes a directory for the run and fills the store in it, starts the workers, kills and stops some of them,
//! and adds up what they report: one line of JSON for each operation, so that nothing is lost with a worker. When all is
//! done it looks through the store as a worker does, which finishes what is left half done. A worker works until its
//! standard input ends: so it ends with its parent too.

use crate::fences::Fences;
use crate::lock::{Lock, Roots, TIME_TO_LIVE};
use crate::store::{Fault, Key, LOCKS, Originals, Store};
use crate::worker::{Operation, Report, Task, Worker};
use crate::{Arguments, Outcome, bar, empty_table, milliseconds};
use comfy_table::Table;
use object_store::local::LocalFileSystem;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

/// How often the parent looks about.
const LOOK: Duration = Duration::from_millis(10);
/// How long one is stopped: longer than its lease lives.
const STOPPED: Duration = TIME_TO_LIVE.saturating_mul(3).checked_div(2).expect("two is not zero");
/// No operation takes so long.
const LONGEST_END: Duration = Duration::from_secs(60);

impl Store {
    fn on_disk(directory: &Path, originals: Originals) -> Result<Self, String> {
        let failed = |error: io::Error| format!("cannot work in {}: {error}", directory.display());
        let objects = directory.join("objects");
        fs::create_dir_all(&objects).map_err(failed)?;
        let objects = LocalFileSystem::new_with_prefix(objects).map_err(|error| error.to_string())?;
        let fences = Some(Fences::open(directory).map_err(failed)?);
        Ok(Store { objects: Arc::new(objects), fences, originals })
    }
}

impl Originals {
    /// As all processes are to know them: the files that they were read from may change meanwhile.
    fn save(&self, directory: &Path) -> io::Result<()> {
        let files: Vec<(&str, &[u8])> =
            self.files.iter().map(|(key, content)| (key.as_ref(), content.as_slice())).collect();
        fs::write(directory.join("originals"), postcard::to_stdvec(&files).map_err(io::Error::other)?)
    }

    fn saved(directory: &Path) -> io::Result<Self> {
        let bytes = fs::read(directory.join("originals"))?;
        let files: Vec<(String, Vec<u8>)> = postcard::from_bytes(&bytes).map_err(io::Error::other)?;
        let mut originals = Originals::default();
        for (key, content) in files {
            originals.add(Key::parse(key).map_err(io::Error::other)?, content);
        }
        Ok(originals)
    }
}

/// How many workers were killed, and stopped.
#[derive(Clone, Copy, Default)]
pub(crate) struct Deaths {
    killed: usize,
    stopped: usize,
}

/// What the parent does.
pub(crate) fn run(arguments: &Arguments) -> Result<(Outcome, Deaths), String> {
    let originals = Originals::of(&arguments.directory)?;
    let fresh = || format!("folders-{:016x}", rand::rng().random::<u64>());
    let namespace = arguments.namespace.clone().unwrap_or_else(fresh);

    // From here on there is something to be left behind.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let flag = signal_hook::flag::register(signal, Arc::clone(&interrupted));
        flag.map_err(|error| format!("cannot handle signals: {error}"))?;
    }
    let failed = |error| format!("cannot make a directory for the run: {error}");
    let place = tempfile::Builder::new().prefix("folders-").tempdir().map_err(failed)?;
    let lock = open(arguments, place.path(), &namespace)?;
    originals.save(place.path()).map_err(failed)?;
    let store = Store::on_disk(place.path(), originals)?;
    println!("works on a copy of {}, which is left as it is", arguments.directory.display());
    store.originals.print();
    store.fill()?;
    // A namespace that is new is closed for one time to live.
    drop(lock.lock(&Roots { reads: vec![Key::ROOT], writes: vec![] })?);

    let mut workers = Workers::new(arguments, namespace, place.path());
    let elapsed = workers.work(&store, &interrupted)?;
    let Workers { mut report, deaths, .. } = workers;
    let mut last = Worker::new(&store, &lock, arguments.seed, arguments.seed);
    let guard = last.begin(&Task { operation: Operation::List, here: Key::ROOT, there: Key::ROOT })?;
    let survey = store.survey(&Key::ROOT)?;
    drop(guard);
    report.recovered += last.report.recovered;
    Ok((Outcome { report, elapsed, last: survey, files: store.originals.files.len() }, deaths))
}

pub(crate) fn table(outcome: &Outcome, deaths: &Deaths) -> Table {
    let (report, all) = (&outcome.report, outcome.report.all());
    let mut table = empty_table(&[
        "operations",
        "per second",
        "torn",
        "killed",
        "stopped",
        "recovered",
        "given up",
        "refused late writes",
        "longest wait",
    ]);
    table.add_row([
        all.operations.to_string(),
        outcome.rate(all.operations),
        all.torn.to_string(),
        deaths.killed.to_string(),
        deaths.stopped.to_string(),
        report.recovered.to_string(),
        report.given_up.to_string(),
        report.refused.to_string(),
        milliseconds(all.longest_wait),
    ]);
    table
}

/// What a worker does.
pub(crate) fn work(arguments: &Arguments, number: u64, directory: &Path) -> Result<(), String> {
    let originals = Originals::saved(directory).map_err(|error| format!("cannot read the originals: {error}"))?;
    let store = Store::on_disk(directory, originals)?;
    let lock = open(arguments, directory, arguments.namespace.as_deref().unwrap_or_default())?;
    let is_over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&is_over);
    thread::spawn(move || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        ends.store(true, Ordering::Relaxed);
    });
    let mut worker = Worker::new(&store, &lock, number, arguments.seed.wrapping_add(number));
    while !is_over.load(Ordering::Relaxed) && !worker.nothing_left {
        worker.operate()?;
        let line = serde_json::to_string(&std::mem::take(&mut worker.report)).expect("a report can be written");
        writeln!(io::stdout(), "{line}").map_err(|error| format!("cannot report to the parent: {error}"))?;
    }
    Ok(())
}

fn open(arguments: &Arguments, directory: &Path, namespace: &str) -> Result<Lock, Fault> {
    let beside = || format!("file://{}/objects/{LOCKS}", directory.display());
    match &arguments.engine {
        _ if arguments.no_lock => Ok(Lock::None),
        Some(url) => Lock::between_machines(url, namespace),
        None => Lock::between_machines(&beside(), namespace),
    }
}

/// One process, which is killed at the latest when this is dropped.
struct Process {
    number: u64,
    child: Child,
    /// When it is to go on, if it is stopped.
    stopped_until: Option<Instant>,
}

impl Process {
    fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Returns once it has stopped, or ended.
    fn stop(&mut self) -> io::Result<()> {
        self.signal(Signal::STOP)?;
        let seen = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(Pid::from_child(&self.child)), seen)?;
        self.stopped_until = Some(Instant::now() + STOPPED);
        Ok(())
    }

    fn go_on(&mut self) -> io::Result<()> {
        self.stopped_until = None;
        self.signal(Signal::CONT)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended, unless it is to be killed, or something has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Workers<'a> {
    arguments: &'a Arguments,
    namespace: String,
    directory: &'a Path,
    processes: Vec<Process>,
    /// How many were started.
    started: u64,
    deaths: Deaths,
    sender: Sender<Report>,
    reports: Receiver<Report>,
    report: Report,
    rng: StdRng,
}

impl<'a> Workers<'a> {
    fn new(arguments: &'a Arguments, namespace: String, directory: &'a Path) -> Self {
        let (sender, reports) = channel();
        Workers {
            arguments,
            namespace,
            directory,
            processes: Vec::new(),
            started: 0,
            deaths: Deaths::default(),
            sender,
            reports,
            report: Report::default(),
            rng: StdRng::seed_from_u64(arguments.seed),
        }
    }

    fn start_one(&mut self) -> Result<(), String> {
        let failed = |error: io::Error| format!("cannot start a worker: {error}");
        self.started += 1;
        let mut command = Command::new(env::current_exe().map_err(failed)?);
        match &self.arguments.engine {
            Some(url) => command.args(["--engine", url]),
            None => command.arg("--bucket"),
        };
        command.args(["--namespace", &self.namespace]);
        command.args(["--seed", &self.arguments.seed.to_string(), "--worker", &self.started.to_string()]);
        command.args(self.arguments.no_lock.then_some("--no-lock")).arg(self.directory);
        // Ctrl-C is for the parent alone.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let (reports, lines) = (self.sender.clone(), BufReader::new(child.stdout.take().expect("it is piped")));
        thread::spawn(move || {
            // The last line of one that was killed may be cut.
            for report in lines.lines().map_while(Result::ok).map_while(|line| serde_json::from_str(&line).ok()) {
                let _ = reports.send(report);
            }
        });
        self.processes.push(Process { number: self.started, child, stopped_until: None });
        Ok(())
    }

    /// Lets them work until the time is up or the store is empty; returns how long that was.
    fn work(&mut self, store: &Store, interrupted: &AtomicBool) -> Result<Duration, String> {
        for _ in 0..self.arguments.processes {
            self.start_one()?;
        }
        let (start, time) = (Instant::now(), self.arguments.seconds);
        let mut kills = Schedule::new(start, self.arguments.kill_every);
        let mut stops = Schedule::new(start, self.arguments.stop_every);
        let bar = bar(time);
        while start.elapsed() < time && !self.processes.is_empty() {
            thread::sleep(LOOK.min(time.saturating_sub(start.elapsed())));
            bar.set_position(start.elapsed().as_millis() as u64);
            self.look_about(interrupted)?;
            if kills.is_due() {
                self.kill_one(store)?;
            }
            if stops.is_due() {
                self.stop_one(store)?;
            }
        }
        let elapsed = start.elapsed();
        bar.finish_and_clear();
        for process in &mut self.processes {
            drop(process.child.stdin.take());
        }
        while !self.processes.is_empty() {
            if start.elapsed() > elapsed + LONGEST_END {
                return Err(format!("a worker has not ended {LONGEST_END:?} after it was told to"));
            }
            thread::sleep(LOOK);
            self.look_about(interrupted)?;
        }
        // The threads that read what they report have each a sender, and end with them.
        self.sender = channel().0;
        self.reports.iter().for_each(|report| self.report.add(report));
        Ok(elapsed)
    }

    /// Takes reports, lets those go on that were stopped long enough, and looks who has ended.
    fn look_about(&mut self, interrupted: &AtomicBool) -> Result<(), String> {
        if interrupted.load(Ordering::Relaxed) {
            return Err("interrupted".into());
        }
        self.reports.try_iter().for_each(|report| self.report.add(report));
        let now = Instant::now();
        let mut running = Vec::new();
        for mut process in self.processes.drain(..) {
            let failed = |error| format!("cannot look after a worker: {error}");
            if process.stopped_until.is_some_and(|until| now >= until) {
                process.go_on().map_err(failed)?;
            }
            match process.child.try_wait().map_err(failed)? {
                None => running.push(process),
                Some(status) if status.success() => {}
                Some(status) => return Err(format!("a worker has ended early: {status}")),
            }
        }
        self.processes = running;
        Ok(())
    }

    /// One that is not stopped; one that is in the middle of a change, if there is any, since most wait for the lock.
    fn choose_one(&mut self, store: &Store) -> Result<Option<usize>, Fault> {
        let changing = store.intending_workers()?;
        let running = self.processes.iter().enumerate().filter(|(_, process)| process.stopped_until.is_none());
        let preferred = running.clone().filter(|(_, process)| changing.contains(&process.number));
        let chosen = preferred.choose(&mut self.rng).or_else(|| running.choose(&mut self.rng));
        Ok(chosen.map(|(index, _)| index))
    }

    fn kill_one(&mut self, store: &Store) -> Result<(), String> {
        let Some(index) = self.choose_one(store)? else { return Ok(()) };
        self.processes.swap_remove(index);
        self.deaths.killed += 1;
        self.start_one()
    }

    /// Stops one that has just looked at its guard, if it is about to write: it waits for the door of the store then. Nor
    /// is a store stopped with its clients, so none may be stopped behind the door.
    fn stop_one(&mut self, store: &Store) -> Result<(), String> {
        let (Some(index), Some(fences)) = (self.choose_one(store)?, &store.fences) else { return Ok(()) };
        self.deaths.stopped += 1;
        let stopped = fences.alone(|| {
            thread::sleep(Duration::from_millis(1));
            self.processes[index].stop()
        });
        stopped.map_err(|error| format!("cannot stop a worker: {error}"))
    }
}

/// What is to be done again and again.
struct Schedule {
    every: Duration,
    next: Option<Instant>,
}

impl Schedule {
    /// Zero: never.
    fn new(start: Instant, every: Duration) -> Self {
        Schedule { every, next: (!every.is_zero()).then(|| start + every) }
    }

    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let is_due = self.next.is_some_and(|next| now >= next);
        if is_due {
            self.next = Some(now + self.every);
        }
        is_due
    }
}
