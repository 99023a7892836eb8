//! Another process that does what it is told: one command a line on its standard input, one answer a line.
//!
//! | command | what it does |
//! |---|---|
//! | `lock N r:a w:b/c` | takes a plain guard and calls it N; also `arc`, which takes an `Arc` guard |
//! | `try N ...`, `for MS N ...` | the same without waiting, or for this many milliseconds |
//! | `drop N`, `release N`, `forget N` | the methods of a guard; `clear` drops all guards |
//! | `inherit`, `spawn` | makes guards inheritable; starts `sleep`, which outlives it, and prints its process id |
//! | `fork` | a child, without a program of its own: it tries the lock, drops all guards, prints the results and its process id, and stays |
//! | `stream MS r:a` | two threads that lock this and release it, again and again, until there is another line |
//! | `snapshot`, `panic`, `exit` | |
//!
//! When its input ends, it ends in order. An answer is `ok` or the error, then how many microseconds it took.

use rustix::process::{Pid, Signal, kill_process};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};
use treelock::Process;
use treelock::process::{ArcProcessTreeLockGuard, ProcessLockError, ProcessTreeLock, ProcessTreeLockGuard};

/// Longer than anything takes on a loaded machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(40);

/// Tells answers from the noise of the test harness.
const MARK: &str = "@@ ";
const DIRECTORY: &str = "TREELOCK_AGENT_DIRECTORY";

/// Checks again and again until the answer is yes.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} in vain until {what}");
        thread::yield_now();
    }
}

/// A directory of a test, removed with it.
pub(crate) struct Home(PathBuf);

impl Home {
    pub(crate) fn new() -> Self {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("treelock-processes-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Home(path)
    }

    pub(crate) fn open(&self) -> ProcessTreeLock {
        ProcessTreeLock::open(&self.0).unwrap()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The names of the files in it, sorted.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Another process.
pub(crate) struct Agent {
    child: Child,
    stdin: Option<ChildStdin>,
    answers: Receiver<String>,
    /// An answer that has arrived and was not taken yet.
    seen: RefCell<Option<String>>,
}

impl Agent {
    /// Starts an agent that has the lock open.
    #[track_caller]
    pub(crate) fn new(home: &Home) -> Self {
        Self::start(home, Command::new(std::env::current_exe().unwrap())).unwrap()
    }

    /// The same for a user without rights, or the error if that user cannot open the lock; `None` where that cannot
    /// be tried.
    pub(crate) fn of_nobody(home: &Home) -> Option<Result<Self, String>> {
        let is_root = rustix::process::geteuid().is_root();
        let has_setpriv = Command::new("setpriv").arg("--version").output().is_ok();
        if !is_root || !has_setpriv {
            eprintln!("skipped: needs to be root, and setpriv");
            return None;
        }
        // The program may lie where other users may not look.
        let program = std::env::temp_dir().join(format!("treelock-agent-{}", std::process::id()));
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        let agent = Self::start(home, command);
        let _ = std::fs::remove_file(program);
        Some(agent)
    }

    #[track_caller]
    fn start(home: &Home, mut command: Command) -> Result<Self, String> {
        command.args(["--exact", "child_process", "--ignored", "--nocapture"]).env(DIRECTORY, home.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        let (sender, answers) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some((_, answer)) = line.split_once(MARK) {
                    let _ = sender.send(answer.to_owned());
                }
            }
        });
        let agent = Agent { child, stdin, answers, seen: RefCell::default() };
        match agent.answer() {
            opened if opened == "ready" => Ok(agent),
            error => Err(error),
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn send(&mut self, command: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    #[track_caller]
    pub(crate) fn answer(&self) -> String {
        if let Some(seen) = self.seen.take() {
            return seen;
        }
        match self.answers.recv_timeout(LIMIT) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => panic!("process {} does not answer", self.id()),
            Err(RecvTimeoutError::Disconnected) => panic!("process {} has ended", self.id()),
        }
    }

    /// The answer, if there is one by now.
    pub(crate) fn answer_so_far(&self) -> Option<String> {
        self.seen.take().or_else(|| self.answers.try_recv().ok())
    }

    /// Whether there is an answer to take.
    pub(crate) fn has_answered(&self) -> bool {
        let answer = self.answer_so_far();
        self.seen.replace(answer);
        self.seen.borrow().is_some()
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.send(command);
        self.answer()
    }

    /// Makes it do something that must work; returns how long that took.
    #[track_caller]
    pub(crate) fn does(&mut self, command: &str) -> Duration {
        self.send(command);
        self.is_done()
    }

    /// Waits until an earlier command has worked.
    #[track_caller]
    pub(crate) fn is_done(&self) -> Duration {
        let answer = self.answer();
        let micros = answer.strip_prefix("ok ").and_then(|micros| micros.parse().ok());
        Duration::from_micros(micros.unwrap_or_else(|| panic!("process {}: {answer}", self.id())))
    }

    /// Makes it ask for what must be refused with an error of that name; returns how long that took.
    #[track_caller]
    pub(crate) fn is_refused(&mut self, command: &str, error: &str) -> Duration {
        let answer = self.ask(command);
        assert!(answer.starts_with(error), "{command}: {answer}");
        Duration::from_micros(answer.split(' ').nth(1).unwrap().parse().unwrap())
    }

    /// Sends a request that has to wait, and returns when it does.
    #[track_caller]
    pub(crate) fn waits(&mut self, command: &str, observer: &ProcessTreeLock) {
        self.send(command);
        let id = self.id();
        wait_until("the process waits", || {
            assert_eq!(self.answer_so_far(), None, "{command}");
            observer.snapshot().unwrap().waiters.iter().any(|waiter| number(&waiter.process) == id)
        });
    }

    /// Makes it fork, without a new program; returns the child's process id, and what the child says about the lock.
    #[track_caller]
    pub(crate) fn forks(&mut self) -> (u32, String) {
        self.send("fork");
        // The answers of both processes, in any order.
        let answers = [self.answer(), self.answer()];
        let of_child = answers.iter().find_map(|answer| answer.strip_prefix("child ")?.split_once(' '));
        let (id, said) = of_child.unwrap_or_else(|| panic!("{answers:?}"));
        (id.parse().unwrap(), said.to_owned())
    }

    /// Ends it in order.
    #[track_caller]
    pub(crate) fn end(mut self) {
        drop(self.stdin.take());
        let start = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < LIMIT, "process {} does not end", self.id());
            thread::yield_now();
        }
    }

    /// Sends SIGKILL; returns when that was.
    pub(crate) fn kill(mut self) -> Instant {
        let at = Instant::now();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        at
    }

    /// Sends SIGSTOP; returns once the process has stopped.
    pub(crate) fn stop(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).unwrap();
        wait_until("the process has stopped", || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
            stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
        });
    }

    /// Sends SIGCONT.
    pub(crate) fn go_on(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The id of a process that a snapshot names.
pub(crate) fn number(process: &Option<Process>) -> u32 {
    process.as_ref().expect("between processes each is named").id
}

/// Kills a process that an agent has started.
pub(crate) fn kill(id: u32) {
    let id = Pid::from_raw(id as i32).unwrap();
    let _ = kill_process(id, Signal::KILL);
}

enum Held<'a> {
    Plain(ProcessTreeLockGuard<'a>),
    Arc(ArcProcessTreeLockGuard),
}

/// The agent itself.
pub(crate) fn run() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let say = |answer: &str| println!("{MARK}{}", answer.replace('\n', " | "));
    let lock = match ProcessTreeLock::open(directory) {
        Ok(lock) => lock,
        Err(error) => return say(&format!("File 0 {error}")),
    };
    say("ready");
    let mut guards: HashMap<u32, Held<'_>> = HashMap::new();
    let mut lines = BufReader::new(std::io::stdin()).lines().map_while(Result::ok);
    while let Some(line) = lines.next() {
        let start = Instant::now();
        let done = obey(&line, &lock, &mut guards, &mut lines);
        let micros = start.elapsed().as_micros();
        match done {
            Ok(said) => say(&format!("{} {micros}", said.unwrap_or_else(|| "ok".into()))),
            Err(error) => {
                let kind = format!("{error:?}");
                let kind = kind.split(['(', ' ']).next().unwrap_or_default();
                say(&format!("{kind} {micros} {error}"));
            }
        }
    }
    // The lock is dropped before the last guards: `Arc` guards keep it open.
    guards.retain(|_, guard| matches!(guard, Held::Arc(_)));
}

fn obey<'a>(
    line: &str,
    lock: &'a ProcessTreeLock,
    guards: &mut HashMap<u32, Held<'a>>,
    lines: &mut impl Iterator<Item = String>,
) -> Result<Option<String>, ProcessLockError> {
    let mut words = line.split(' ');
    let command = words.next().unwrap();
    let mut number = || words.next().unwrap().parse::<u32>().unwrap();
    match command {
        "lock" | "arc" | "try" | "for" => {
            let limit = (command == "for").then(|| Duration::from_millis(number().into()));
            let name = number();
            let (reads, writes) = paths(words);
            let held = match (command, limit) {
                ("arc", _) => Held::Arc(lock.lock_arc(&reads, &writes)?),
                ("try", _) => Held::Plain(lock.try_lock(&reads, &writes)?),
                (_, Some(limit)) => Held::Plain(lock.try_lock_for(&reads, &writes, limit)?),
                _ => Held::Plain(lock.lock(&reads, &writes)?),
            };
            assert!(guards.insert(name, held).is_none(), "{name} is taken");
        }
        "drop" => drop(guards.remove(&number()).unwrap()),
        "clear" => guards.clear(),
        "release" => match guards.remove(&number()).unwrap() {
            Held::Plain(guard) => guard.release()?,
            Held::Arc(guard) => guard.release()?,
        },
        "forget" => std::mem::forget(guards.remove(&number()).unwrap()),
        "inherit" => lock.set_inheritable(true)?,
        "spawn" => {
            let mut sleep = Command::new("sleep");
            sleep.arg("60").stdin(Stdio::null()).stdout(Stdio::null());
            let mut child = sleep.spawn().unwrap();
            let id = child.id();
            thread::spawn(move || child.wait());
            return Ok(Some(id.to_string()));
        }
        "fork" => {
            if let Ok(fork::Fork::Child) = fork::fork() {
                let refused = lock.try_lock(&[], &["of the child"]).map(drop);
                guards.clear();
                let refused = refused.map_or_else(|error| error.to_string(), |()| "granted".into());
                println!("{MARK}child {} {refused}", std::process::id());
                loop {
                    thread::sleep(LIMIT);
                }
            }
        }
        "stream" => {
            let time = Duration::from_millis(number().into());
            let (reads, writes) = paths(words);
            let ends = AtomicBool::new(false);
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        while !ends.load(Ordering::Relaxed) {
                            let guard = lock.lock(&reads, &writes).unwrap();
                            thread::sleep(time);
                            drop(guard);
                        }
                    });
                }
                println!("{MARK}streams");
                let _ = lines.next();
                ends.store(true, Ordering::Relaxed);
            });
        }
        "snapshot" => return Ok(Some(lock.snapshot()?.to_string())),
        "panic" => {
            let guard = guards.drain();
            let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                let _guards: Vec<_> = guard.collect();
                panic!("as it was told");
            }));
            assert!(unwound.is_err());
        }
        "exit" => std::process::exit(0),
        other => panic!("no such command: {other}"),
    }
    Ok(None)
}

fn paths<'a>(words: impl Iterator<Item = &'a str>) -> (Vec<&'a str>, Vec<&'a str>) {
    let (reads, writes): (Vec<_>, Vec<_>) = words.partition(|word| word.starts_with("r:"));
    let path = |word: &'a str| word.split_once(':').unwrap().1;
    (reads.into_iter().map(path).collect(), writes.into_iter().map(path).collect())
}
