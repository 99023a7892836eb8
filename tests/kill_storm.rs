//! Processes that lock a small tree at random and are killed at random, watched by words in a file (G1, G2, G7, P1).
//!
//! ```text
//!  parent ── start ──> worker: lock ── mark ── work ── check, unmark ── unlock
//!     └───── kill, start another one, at any moment; sometimes stop one for a while
//! ```
//!
//! Each leaf of the tree has a word for its writer and one for each reader. A process that holds a sub-tree puts its
//! own number into the words of all its leaves, checks that no other is marked there that must not be, and checks
//! again before it releases. A word of a process that is to be killed means nothing: the parent says so before it
//! kills. There is no other lock than the one under test, so a lock that admits two is found out. The control: the
//! same processes without it must go wrong.
//!
//! In the end no process may be stuck, everything can be locked at once, and no files may be left but the parent's
//! own.
//!
//! `cargo test --features process --test kill_storm -- --kills 10000 --workers 12 --seed 7`
#![cfg(target_os = "linux")]

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio, exit};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use treelock::process::{ProcessLockError, ProcessTreeLock, ProcessTreeLockGuard};

/// Two children a node, three levels.
const LEAVES: usize = 8;
const MOST_WORKERS: usize = 64;

/// Longer than anything takes on a loaded machine.
const FOR_EVER: Duration = Duration::from_secs(30);
/// The longest time between two kills; otherwise kills follow the grants.
const PAUSE: Duration = Duration::from_millis(20);
/// Longer than a waiter may take to notice a kill; one that notices only by chance takes a second.
const TOO_LATE: Duration = Duration::from_millis(700);

const ROLE: &str = "TREELOCK_STORM_ROLE";

/// What a worker counts.
#[derive(Clone, Copy)]
enum Count {
    Granted,
    Waited,
    Violations,
    Deadlocks,
    Refused,
    LongestWait,
}

const COUNTS: usize = 6;

/// The words that all processes share: a stop sign, the counts of each worker's place, the marks, and which are to be
/// killed.
struct Words {
    file: File,
    /// The time from the kill of a process that was in the way to the grant; in nanoseconds, one after the other.
    samples: File,
}

impl Words {
    fn open(directory: &Path) -> Self {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true);
        let file = options.open(directory.join("words")).unwrap();
        let samples = OpenOptions::new().append(true).create(true).open(directory.join("samples")).unwrap();
        Words { file, samples }
    }

    fn get(&self, word: usize) -> u64 {
        let mut bytes = [0; 8];
        match self.file.read_at(&mut bytes, word as u64 * 8) {
            Ok(8) => u64::from_le_bytes(bytes),
            Ok(_) => 0,
            Err(error) => panic!("{error}"),
        }
    }

    fn set(&self, word: usize, value: u64) {
        self.file.write_all_at(&value.to_le_bytes(), word as u64 * 8).unwrap();
    }

    const STOP: usize = 0;

    fn count(place: usize, count: Count) -> usize {
        1 + place * COUNTS + count as usize
    }

    fn sum(&self, count: Count) -> u64 {
        let mut bytes = vec![0; MOST_WORKERS * COUNTS * 8];
        let length = self.file.read_at(&mut bytes, 8).unwrap();
        let words = bytes[..length].chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        words.skip(count as usize).step_by(COUNTS).sum()
    }

    fn writer(leaf: usize) -> usize {
        1 + MOST_WORKERS * COUNTS + leaf * (1 + MOST_WORKERS)
    }

    fn reader(leaf: usize, place: usize) -> usize {
        Self::writer(leaf) + 1 + place
    }

    /// When that process was killed, if it was; in nanoseconds since 1970.
    fn killed(number: u64) -> usize {
        Self::writer(LEAVES) + number as usize
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// A node: its path, and the leaves below it.
fn node(random: &mut SmallRng) -> (String, std::ops::Range<usize>) {
    let depth = [3, 3, 3, 3, 2, 2, 2, 1, 1, 0][random.random_range(0..10)];
    let place = random.random_range(0..1_usize << depth);
    let segments: Vec<String> = (1..=depth).map(|level| format!("{}", (place >> (depth - level)) & 1)).collect();
    let width = LEAVES >> depth;
    let path = if depth == 0 { ".".to_owned() } else { segments.join("/") };
    (path, place * width..(place + 1) * width)
}

/// The leaves of a request, read or written.
type Leaves = Vec<(usize, Access)>;

#[derive(Clone, Copy, PartialEq)]
enum Access {
    Read,
    Write,
}

struct Worker {
    words: Words,
    place: usize,
    number: u64,
    random: SmallRng,
    reads: [u32; LEAVES],
    writes: [u32; LEAVES],
}

impl Worker {
    fn add(&self, count: Count, value: u64) {
        let word = Words::count(self.place, count);
        self.words.set(word, self.words.get(word) + value);
    }

    /// Checks a mark, which must be that of this process or of a dead one.
    fn look(&self, word: usize, waited_since: Option<u64>, granted: u64) {
        let mark = self.words.get(word);
        if mark == 0 || mark == self.number {
            return;
        }
        let killed = self.words.get(Words::killed(mark));
        if killed == 0 {
            self.add(Count::Violations, 1);
            return;
        }
        self.words.set(word, 0);
        if waited_since.is_some_and(|since| since < killed && killed < granted) {
            let _ = (&self.words.samples).write_all(&(granted - killed).to_le_bytes());
        }
    }

    fn look_for_others(&self, leaf: usize, access: Access, waited_since: Option<u64>, granted: u64) {
        self.look(Words::writer(leaf), waited_since, granted);
        if access == Access::Write {
            let places = (0..MOST_WORKERS).filter(|&place| place != self.place && place < self.places());
            places.for_each(|place| self.look(Words::reader(leaf, place), waited_since, granted));
        }
    }

    fn places(&self) -> usize {
        self.words.get(Words::killed(0)) as usize
    }

    fn mark(&mut self, leaves: &Leaves, waited_since: Option<u64>) {
        let granted = now();
        for &(leaf, access) in leaves {
            self.look_for_others(leaf, access, waited_since, granted);
            match access {
                Access::Read => {
                    self.reads[leaf] += 1;
                    self.words.set(Words::reader(leaf, self.place), self.number);
                }
                Access::Write => {
                    self.writes[leaf] += 1;
                    self.words.set(Words::writer(leaf), self.number);
                }
            }
        }
    }

    fn unmark(&mut self, leaves: &Leaves) {
        for &(leaf, access) in leaves {
            self.look_for_others(leaf, access, None, 0);
            match access {
                Access::Read => {
                    self.reads[leaf] -= 1;
                    if self.reads[leaf] == 0 {
                        self.words.set(Words::reader(leaf, self.place), 0);
                    }
                }
                Access::Write => {
                    if self.words.get(Words::writer(leaf)) != self.number {
                        self.add(Count::Violations, 1);
                    }
                    self.writes[leaf] -= 1;
                    if self.writes[leaf] == 0 {
                        self.words.set(Words::writer(leaf), 0);
                    }
                }
            }
        }
    }

    /// A random request: what it reads, what it writes, and the leaves of both.
    fn request(&mut self) -> (Vec<String>, Vec<String>, Leaves) {
        let (mut reads, mut writes, mut leaves) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..[1, 1, 1, 2, 3][self.random.random_range(0..5)] {
            let (path, below) = node(&mut self.random);
            let access = if self.random.random_bool(0.5) { Access::Read } else { Access::Write };
            leaves.extend(below.map(|leaf| (leaf, access)));
            if access == Access::Read { reads.push(path) } else { writes.push(path) }
        }
        (reads, writes, leaves)
    }

    /// Works until the stop sign.
    fn run(&mut self, lock: Option<&ProcessTreeLock>) {
        type Held<'a> = Vec<(Option<ProcessTreeLockGuard<'a>>, Leaves)>;
        let mut held: Held<'_> = Vec::new();
        while self.words.get(Words::STOP) == 0 {
            let (reads, writes, leaves) = self.request();
            let asked = now();
            let way = self.random.random_range(0..10);
            let taken = lock.map(|lock| match way {
                0 | 1 => lock.try_lock(&reads, &writes),
                2..=4 => {
                    let limit = Duration::from_micros(self.random.random_range(0..20_000));
                    lock.try_lock_for(&reads, &writes, limit)
                }
                _ => lock.lock(&reads, &writes),
            });
            let wait = (now() - asked) / 1000;
            let waited = wait > 1000;
            self.add(Count::Waited, waited.into());
            let word = Words::count(self.place, Count::LongestWait);
            self.words.set(word, self.words.get(word).max(wait));
            match taken.transpose() {
                Ok(guard) => {
                    self.add(Count::Granted, 1);
                    self.mark(&leaves, Some(asked));
                    held.push((guard, leaves));
                    match self.random.random_range(0..4) {
                        0 => thread::sleep(Duration::from_micros(self.random.random_range(0..500))),
                        1 => thread::yield_now(),
                        _ => {}
                    }
                }
                Err(ProcessLockError::WouldBlock | ProcessLockError::TimedOut) => self.add(Count::Refused, 1),
                Err(ProcessLockError::Deadlock(_)) => {
                    self.add(Count::Deadlocks, 1);
                    held.drain(..).for_each(|(guard, leaves)| self.let_go(guard, &leaves));
                }
                Err(error) => {
                    eprintln!("worker {}: {error}", self.number);
                    exit(3);
                }
            }
            while held.len() > 2 || (!held.is_empty() && self.random.random_bool(0.7)) {
                let (guard, leaves) = held.swap_remove(self.random.random_range(0..held.len()));
                self.let_go(guard, &leaves);
            }
        }
        held.drain(..).for_each(|(guard, leaves)| self.let_go(guard, &leaves));
    }

    fn let_go(&mut self, guard: Option<ProcessTreeLockGuard<'_>>, leaves: &Leaves) {
        self.unmark(leaves);
        drop(guard);
    }
}

/// What a process does that was started by the parent: `work DIRECTORY PLACE NUMBER SEED`, `bare` the same without
/// the lock, or `hold DIRECTORY`.
fn child(role: &str) {
    // Otherwise a run that is broken off would leave it running.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let words: Vec<&str> = role.split('\n').collect();
    let directory = Path::new(words[1]);
    let number = |index: usize| words[index].parse::<u64>().unwrap();
    if words[0] == "hold" {
        let lock = ProcessTreeLock::open(directory.join("lock")).unwrap();
        let _guard = lock.write("held").unwrap();
        println!("holds");
        loop {
            thread::park();
        }
    }
    let lock = (words[0] == "work").then(|| {
        ProcessTreeLock::open(directory.join("lock")).unwrap_or_else(|error| {
            eprintln!("worker {}: {error}", words[3]);
            exit(3);
        })
    });
    let mut worker = Worker {
        words: Words::open(directory),
        place: number(2) as usize,
        number: number(3),
        random: SmallRng::seed_from_u64(number(4)),
        reads: [0; LEAVES],
        writes: [0; LEAVES],
    };
    worker.run(lock.as_ref());
}

fn start(role: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(ROLE, role).stdin(Stdio::null()).spawn().unwrap()
}

struct Storm {
    directory: PathBuf,
    words: Words,
    kind: &'static str,
    random: SmallRng,
    workers: Vec<(u64, Child)>,
    started: u64,
    seen: (u64, Instant),
}

impl Storm {
    fn new(directory: PathBuf, kind: &'static str, workers: usize, seed: u64) -> Self {
        std::fs::create_dir_all(directory.join("lock")).unwrap();
        let words = Words::open(&directory);
        words.set(Words::killed(0), workers as u64);
        let random = SmallRng::seed_from_u64(seed);
        let mut storm =
            Storm { directory, words, kind, random, workers: vec![], started: 0, seen: (0, Instant::now()) };
        for place in 0..workers {
            let worker = storm.start(place);
            storm.workers.push(worker);
        }
        storm
    }

    fn start(&mut self, place: usize) -> (u64, Child) {
        self.started += 1;
        let (directory, seed) = (self.directory.display(), self.random.random::<u32>());
        (self.started, start(&format!("{}\n{directory}\n{place}\n{}\n{seed}", self.kind, self.started)))
    }

    /// Kills a process at some moment, and starts another one.
    fn kill(&mut self) -> Result<(), String> {
        let (grants, late) = (self.random.random_range(0..30), Instant::now() + PAUSE);
        let granted = self.words.sum(Count::Granted) + grants;
        while self.words.sum(Count::Granted) < granted && Instant::now() < late {
            thread::sleep(Duration::from_micros(self.random.random_range(0..1000)));
        }
        let place = self.random.random_range(0..self.workers.len());
        let (number, child) = &mut self.workers[place];
        if let Some(status) = child.try_wait().unwrap() {
            return Err(format!("worker {number} ended by itself: {status}"));
        }
        if self.random.random_bool(0.1) {
            kill_process(Pid::from_child(child), Signal::STOP).unwrap();
            thread::sleep(Duration::from_micros(self.random.random_range(0..5_000)));
            if self.random.random_bool(0.5) {
                kill_process(Pid::from_child(child), Signal::CONT).unwrap();
            }
        }
        self.words.set(Words::killed(*number), now());
        child.kill().unwrap();
        child.wait().unwrap();
        self.workers[place] = self.start(place);
        self.watch()
    }

    /// Whether there is progress.
    fn watch(&mut self) -> Result<(), String> {
        let granted = self.words.sum(Count::Granted);
        if granted != self.seen.0 {
            self.seen = (granted, Instant::now());
        }
        if self.seen.1.elapsed() > FOR_EVER { Err("nobody gets on".into()) } else { Ok(()) }
    }

    /// Ends all workers in order.
    fn end(&mut self) -> Result<(), String> {
        self.words.set(Words::STOP, 1);
        let late = Instant::now() + FOR_EVER;
        for (number, child) in &mut self.workers {
            loop {
                match child.try_wait().unwrap() {
                    Some(status) if status.success() => break,
                    Some(status) => return Err(format!("worker {number} ended by itself: {status}")),
                    None if Instant::now() > late => return Err(format!("worker {number} is stuck")),
                    None => thread::yield_now(),
                }
            }
        }
        Ok(())
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        for (_, child) in &mut self.workers {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn spread(mut times: Vec<u64>) -> (String, Option<Duration>) {
    times.sort_unstable();
    let at =
        |part: f64| times.get(((times.len() as f64 - 1.0) * part) as usize).map(|&time| Duration::from_nanos(time));
    let (Some(median), Some(most), Some(longest)) = (at(0.5), at(0.99), at(1.0)) else {
        return ("none".into(), None);
    };
    let text = format!("{:>6} {median:>10.0?} {most:>10.1?} {longest:>10.1?}", times.len());
    (text, Some(most))
}

/// The time from the kill of a process that only holds to the grant, in a quiet lock.
fn quiet(directory: &Path, lock: &ProcessTreeLock, rounds: usize) -> Result<Vec<u64>, String> {
    use std::io::Read;
    let waiter = ProcessTreeLock::open(directory.join("lock")).unwrap();
    let round = |_| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let role = format!("hold\n{}", directory.display());
        let mut holder = command.env(ROLE, role).stdout(Stdio::piped()).spawn().unwrap();
        holder.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
        thread::scope(|scope| {
            let waits = scope.spawn(|| waiter.write("held").map(|_| Instant::now()).unwrap());
            while lock.snapshot().unwrap().waiters.is_empty() {
                thread::yield_now();
            }
            let killed = Instant::now();
            holder.kill().unwrap();
            holder.wait().unwrap();
            while !waits.is_finished() {
                thread::yield_now();
                if killed.elapsed() > FOR_EVER {
                    // This buries the dead, so that the waiter can be waited for.
                    let snapshot = lock.snapshot().unwrap();
                    return Err(format!("who waits does not learn of a death\n{snapshot}"));
                }
            }
            Ok((waits.join().unwrap() - killed).as_nanos() as u64)
        })
    };
    (0..rounds).map(round).collect()
}

fn without_the_lock(directory: &Path, workers: usize, seed: u64) {
    let mut storm = Storm::new(directory.join("bare"), "bare", workers, seed);
    while storm.words.sum(Count::Violations) == 0 {
        storm.kill().expect("without a lock nobody is stuck");
        assert!(storm.started < 1000, "the control finds nothing: the marks show nothing");
    }
    println!("control, without the lock: violations after {} kills", storm.started - workers as u64);
}

fn with_the_lock(directory: &Path, workers: usize, seed: u64, kills: u64) -> Result<(), String> {
    let began = Instant::now();
    let directory = directory.join("storm");
    // It stays open, so that nobody begins anew.
    let lock = ProcessTreeLock::open(directory.join("lock")).map_err(|error| error.to_string())?;
    let mut storm = Storm::new(directory.clone(), "work", workers, seed);
    let drawn = |problem: String| match lock.snapshot() {
        Ok(snapshot) => format!("{problem}; and, after the dead were buried:\n{snapshot}"),
        Err(error) => format!("{problem}\nand no snapshot: {error}"),
    };
    let stormed = (0..kills).try_for_each(|_| storm.kill());
    if let Err(problem) = stormed.and_then(|()| storm.end()) {
        let problem = drawn(problem);
        let goes_on = storm.end().is_ok();
        return Err(format!("{problem}\nnow all go on and end: {goes_on}"));
    }
    let took = began.elapsed();

    let free = lock.try_lock(&[], &["."]).map(drop);
    free.map_err(|error| drawn(format!("not all is free in the end: {error}")))?;
    let snapshot = lock.snapshot().map_err(|error| error.to_string())?;
    if !snapshot.holders.is_empty() || !snapshot.waiters.is_empty() {
        return Err(drawn("somebody is left in the end".into()));
    }
    // The next process may tidy up.
    drop(ProcessTreeLock::open(directory.join("lock")));
    let entries = std::fs::read_dir(directory.join("lock")).unwrap();
    let mut left: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.retain(|name| name != "table" && name != "m0");
    left.sort();

    let sum = |count| storm.words.sum(count);
    let longest = (0..MOST_WORKERS).map(|place| storm.words.get(Words::count(place, Count::LongestWait))).max();
    println!("{workers} workers, {kills} kills in {took:.1?}, seed {seed}");
    println!("{:>10} granted, {} requests took more than 1 ms", sum(Count::Granted), sum(Count::Waited));
    println!("{:>10} refused or timed out, {} deadlocks", sum(Count::Refused), sum(Count::Deadlocks));
    println!("{:>10.1?} was the longest wait", Duration::from_micros(longest.unwrap_or_default()));
    println!("{:>10} violations", sum(Count::Violations));
    let samples = std::fs::read(directory.join("samples")).unwrap();
    let samples = samples.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    println!("from the kill to the grant     times     median       99 %    longest");
    println!("  in the storm, with others    {}", spread(samples).0);
    let (text, most) = spread(quiet(&directory, &lock, 100)?);
    println!("  in quiet                     {text}");

    if sum(Count::Violations) > 0 {
        return Err("two had what only one may have".into());
    }
    if !left.is_empty() {
        return Err(format!("files are left: {left:?}"));
    }
    if most.is_some_and(|most| most > TOO_LATE) {
        return Err("who waits learns of a death too late".into());
    }
    Ok(())
}

fn main() {
    if let Ok(role) = std::env::var(ROLE) {
        return child(&role);
    }
    let (mut kills, mut workers, mut seed) = (1000, 6, rand::random::<u32>().into());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number =
            || arguments.next().and_then(|number| number.parse::<u64>().ok()).expect("a number is missing");
        match &*argument {
            "--kills" => kills = number(),
            "--workers" => workers = number() as usize,
            "--seed" => seed = number(),
            // `cargo test NAME` and `cargo test -- --list` are for the other tests.
            "--list" => return,
            name if !name.starts_with('-') && !"kill_storm".contains(name) => return,
            _ => {}
        }
    }
    assert!((2..=MOST_WORKERS).contains(&workers), "2 to {MOST_WORKERS} workers");
    let directory = std::env::temp_dir().join(format!("treelock-storm-{}", std::process::id()));
    without_the_lock(&directory, workers, seed);
    let stormed = with_the_lock(&directory, workers, seed, kills);
    let _ = std::fs::remove_dir_all(&directory);
    if let Err(problem) = stormed {
        eprintln!("seed {seed}: {problem}");
        exit(1);
    }
}
