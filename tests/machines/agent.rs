//! Another process that does what it is told: one command a line on its standard input, one answer a line.
//!
//! | command | what it does |
//! |---|---|
//! | `lock N r:a w:b/c` | takes a guard and calls it N |
//! | `try N ...`, `for MS N ...` | the same without waiting, or for this many milliseconds |
//! | `release N` | releases it, and says whether it was held up to then |
//! | `fence N`, `valid N`, `lost N` | its fence; whether it is valid; whether `on_lost` was called |
//! | `put N FILE TEXT` | writes to a store that compares the fences; see [`Store`] |
//! | `late N FILE TEXT` | sees that N is valid, says `looked`, and does `put` when there is one more line |
//! | `blind N FILE TEXT` | the same with a store that compares nothing |
//! | `work FOLDER SEED` | what `storm.rs` says, until it is killed |
//! | `cpu` | the processor time that it has used, in microseconds |
//!
//! When its input ends, it ends in order. An answer is `ok` or what was asked for, or the error; then how many microseconds it took.

use super::server::{LIMIT, Server, wait_until};
use super::storm;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};
use treelock::machine::{ArcMachineGuard, MachineLockError, MachineTreeLock, Options};
use treelock::redis::RedisTreeLock;

/// Tells answers from the noise of the test harness.
const MARK: &str = "@@ ";
const URL: &str = "TREELOCK_AGENT_URL";
const TIME_TO_LIVE: &str = "TREELOCK_AGENT_TIME_TO_LIVE";

/// Another process.
pub(crate) struct Agent {
    child: Child,
    stdin: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl Agent {
    /// Starts one that has the lock open.
    #[track_caller]
    pub(crate) fn new(server: &Server, time_to_live: Duration) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child_process", "--ignored", "--nocapture"]);
        command.env(URL, server.url()).env(TIME_TO_LIVE, time_to_live.as_millis().to_string());
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
        let agent = Agent { child, stdin, answers };
        assert_eq!(agent.answer(), "ready");
        agent
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn send(&mut self, command: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    #[track_caller]
    pub(crate) fn answer(&self) -> String {
        match self.answers.recv_timeout(LIMIT) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => panic!("process {} does not answer", self.id()),
            Err(RecvTimeoutError::Disconnected) => panic!("process {} has ended", self.id()),
        }
    }

    /// The answer, if there is one by now.
    pub(crate) fn answer_so_far(&self) -> Option<String> {
        self.answers.try_recv().ok()
    }

    /// The answer without the time.
    #[track_caller]
    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.send(command);
        self.answer().rsplit_once(' ').unwrap().0.to_owned()
    }

    /// Makes it do something that must work.
    #[track_caller]
    pub(crate) fn does(&mut self, command: &str) {
        assert_eq!(self.ask(command), "ok", "{command}");
    }

    /// Waits until an earlier command has worked.
    #[track_caller]
    pub(crate) fn is_done(&self) {
        let answer = self.answer();
        assert!(answer.starts_with("ok "), "{answer}");
    }

    /// Takes a guard, and returns its fence.
    #[track_caller]
    pub(crate) fn locks(&mut self, command: &str) -> u64 {
        self.does(command);
        let name = command.split(' ').nth(1).unwrap();
        self.ask(&format!("fence {name}")).parse().unwrap()
    }

    /// Sends a request that has to wait, and returns when it does.
    #[track_caller]
    pub(crate) fn waits(&mut self, command: &str, observer: &MachineTreeLock) {
        self.send(command);
        let id = self.id();
        wait_until("the process waits", || {
            assert_eq!(self.answer_so_far(), None, "{command}");
            let snapshot = observer.snapshot().unwrap();
            snapshot.waiters.iter().any(|waiter| waiter.process.as_ref().unwrap().id == id)
        });
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
        stop(&self.child);
    }

    /// Sends SIGCONT.
    pub(crate) fn go_on(&self) {
        go_on(&self.child);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends SIGSTOP; returns once the process has stopped.
pub(crate) fn stop(child: &Child) {
    kill_process(Pid::from_child(child), Signal::STOP).unwrap();
    wait_until("the process has stopped", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
    });
}

/// Sends SIGCONT.
pub(crate) fn go_on(child: &Child) {
    kill_process(Pid::from_child(child), Signal::CONT).unwrap();
}

/// A file with the highest fence that it has seen, and a text. No two writes are in it at the same time.
pub(crate) struct Store(File);

impl Store {
    pub(crate) fn open(path: &Path) -> Self {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        Store(file)
    }

    /// Has `change` applied to the fence and the text.
    pub(crate) fn with<R>(&mut self, change: impl FnOnce(&mut u64, &mut String) -> R) -> R {
        flock(&self.0, FlockOperation::LockExclusive).unwrap();
        let mut all = String::new();
        self.0.rewind().unwrap();
        self.0.read_to_string(&mut all).unwrap();
        let (fence, text) = all.split_once(' ').unwrap_or(("0", ""));
        // A writer that was killed may have left half of a line.
        let (mut fence, mut text) = (fence.parse().unwrap_or(0), text.trim_end().to_owned());
        let returned = change(&mut fence, &mut text);
        // A fixed length, so that one write is enough: a process may be killed between two.
        let line = format!("{fence:020} {text:79}");
        self.0.rewind().unwrap();
        self.0.write_all(line.as_bytes()).unwrap();
        flock(&self.0, FlockOperation::Unlock).unwrap();
        returned
    }

    /// Writes, unless somebody with a higher fence has been here.
    pub(crate) fn put(&mut self, fence: u64, text: &str) -> bool {
        self.with(|highest, stored| {
            let is_new = fence >= *highest;
            if is_new {
                (*highest, *stored) = (fence, text.to_owned());
            }
            is_new
        })
    }

    pub(crate) fn get(&mut self) -> (u64, String) {
        self.with(|fence, text| (*fence, text.clone()))
    }
}

type Guards = HashMap<u32, (ArcMachineGuard, Arc<AtomicBool>)>;

/// The agent itself.
pub(crate) fn run() {
    let Some(url) = std::env::var_os(URL) else { return };
    let time_to_live = std::env::var(TIME_TO_LIVE).unwrap().parse().unwrap();
    let say = |answer: &str| println!("{MARK}{}", answer.replace('\n', " | "));
    let options = Options::new().time_to_live(Duration::from_millis(time_to_live));
    let lock = match RedisTreeLock::connect(url.to_str().unwrap(), "test", options) {
        Ok(lock) => lock,
        Err(error) => return say(&error.to_string()),
    };
    say("ready");
    let mut guards = Guards::new();
    let mut lines = BufReader::new(std::io::stdin()).lines().map_while(Result::ok);
    while let Some(line) = lines.next() {
        let start = Instant::now();
        let done = obey(&line, &lock, &mut guards, &mut lines);
        let micros = start.elapsed().as_micros();
        match done {
            Ok(said) => say(&format!("{said} {micros}")),
            Err(error) => say(&format!("{error:?} {micros}")),
        }
    }
}

fn obey(
    line: &str,
    lock: &MachineTreeLock,
    guards: &mut Guards,
    lines: &mut impl Iterator<Item = String>,
) -> Result<String, MachineLockError> {
    let mut words = line.split(' ');
    let command = words.next().unwrap();
    let mut number = || words.next().unwrap().parse::<u32>().unwrap();
    let is_ok = |is: bool| if is { "ok" } else { "refused" }.to_owned();
    match command {
        "lock" | "try" | "for" => {
            let limit = (command == "for").then(|| Duration::from_millis(number().into()));
            let name = number();
            let roots: Vec<&str> = words.collect();
            let of = |mark: &str| roots.iter().filter_map(|word| word.strip_prefix(mark)).collect::<Vec<_>>();
            let (reads, writes) = (of("r:"), of("w:"));
            let guard = match (command, limit) {
                ("try", _) => lock.try_lock_arc(&reads, &writes)?,
                (_, Some(limit)) => lock.try_lock_arc_for(&reads, &writes, limit)?,
                _ => lock.lock_arc(&reads, &writes)?,
            };
            let lost = Arc::new(AtomicBool::new(false));
            let tells = Arc::clone(&lost);
            guard.on_lost(move || tells.store(true, Ordering::SeqCst));
            assert!(guards.insert(name, (guard, lost)).is_none(), "{name} is taken");
        }
        "release" => guards.remove(&number()).unwrap().0.release()?,
        "fence" => return Ok(guards[&number()].0.fence().to_string()),
        "valid" => return Ok(guards[&number()].0.is_valid().to_string()),
        "lost" => return Ok(guards[&number()].1.load(Ordering::SeqCst).to_string()),
        "put" | "late" | "blind" => {
            let guard = &guards[&number()].0;
            let (mut store, text) = (Store::open(Path::new(words.next().unwrap())), words.next().unwrap());
            if command == "late" {
                assert!(guard.is_valid());
                println!("{MARK}looked");
                let _ = lines.next();
            }
            match command {
                "blind" => store.with(|_, stored| *stored = text.to_owned()),
                _ => return Ok(is_ok(store.put(guard.fence(), text))),
            }
        }
        "work" => storm::work(lock, Path::new(words.next().unwrap()), words.next().unwrap().parse().unwrap()),
        "cpu" => {
            let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
            return Ok((used.tv_sec * 1_000_000 + used.tv_nsec / 1000).to_string());
        }
        other => panic!("no such command: {other}"),
    }
    Ok("ok".into())
}
