//! What the agents between processes do (see `common/talk.rs`), and the directory that they share with a test.
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

pub(crate) use crate::talk::Agent;

use crate::common::LIMIT;
use crate::talk::{paths, say, serve};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;
use treelock::Process;
use treelock::process::{ArcProcessTreeLockGuard, ProcessLockError, ProcessTreeLock, ProcessTreeLockGuard};

const DIRECTORY: &str = "TREELOCK_AGENT_DIRECTORY";

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

impl Agent {
    /// Starts an agent that has the lock open.
    #[track_caller]
    pub(crate) fn new(home: &Home) -> Self {
        Self::with(home, Command::new(std::env::current_exe().unwrap())).unwrap()
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
        let agent = Self::with(home, command);
        let _ = std::fs::remove_file(program);
        Some(agent)
    }

    #[track_caller]
    fn with(home: &Home, mut command: Command) -> Result<Self, String> {
        command.env(DIRECTORY, home.path());
        Agent::start(command)
    }

    /// Sends a request that has to wait, and returns when it does.
    #[track_caller]
    pub(crate) fn waits(&mut self, command: &str, observer: &ProcessTreeLock) {
        self.sends_and_waits(command, || observer.snapshot().unwrap());
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
    let lock = match ProcessTreeLock::open(directory) {
        Ok(lock) => lock,
        Err(error) => return say(&error.to_string()),
    };
    let mut guards: HashMap<u32, Held<'_>> = HashMap::new();
    serve(|line, lines| obey(line, &lock, &mut guards, lines));
    // The lock is dropped before the last guards: `Arc` guards keep it open.
    guards.retain(|_, guard| matches!(guard, Held::Arc(_)));
}

fn obey<'a>(
    line: &str,
    lock: &'a ProcessTreeLock,
    guards: &mut HashMap<u32, Held<'a>>,
    lines: &mut dyn Iterator<Item = String>,
) -> Result<String, ProcessLockError> {
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
            return Ok(id.to_string());
        }
        "fork" => {
            if let Ok(fork::Fork::Child) = fork::fork() {
                let refused = lock.try_lock(&[], &["of the child"]).map(drop);
                guards.clear();
                let refused = refused.map_or_else(|error| error.to_string(), |()| "granted".into());
                say(&format!("child {} {refused}", std::process::id()));
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
                say("streams");
                let _ = lines.next();
                ends.store(true, Ordering::Relaxed);
            });
        }
        "snapshot" => return Ok(lock.snapshot()?.to_string()),
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
    Ok("ok".into())
}
