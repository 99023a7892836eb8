//! The talk with *agents*: other processes that do what they are told. One command a line on their standard input, one
//! answer a line.
//!
//! An agent is this same program, started again with its test `child_process` alone. That one opens a lock and
//! [`serve`]s; each scope adds how its agents are started, and what they can do. When the input of an agent ends, it
//! ends in order.
#![allow(dead_code)] // each test binary uses a part of this

use crate::common::{LIMIT, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::cell::RefCell;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};
use treelock::Snapshot;

/// Tells answers from the noise of the test harness.
const MARK: &str = "@@ ";

/// Another process.
pub(crate) struct Agent {
    child: Child,
    stdin: Option<ChildStdin>,
    answers: Receiver<String>,
    /// An answer that has arrived and was not taken yet.
    seen: RefCell<Option<String>>,
}

impl Agent {
    /// Starts an agent that has its lock open, or returns why it could not open it. The command runs this program.
    #[track_caller]
    pub(crate) fn start(mut command: Command) -> Result<Self, String> {
        command.args(["--exact", "child_process", "--ignored", "--nocapture"]);
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

    /// What it says next.
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

    /// What came of a command, and how long that took.
    #[track_caller]
    fn outcome(&self) -> (String, Duration) {
        let answer = self.answer();
        let timed = answer.rsplit_once(' ').and_then(|(outcome, micros)| Some((outcome, micros.parse().ok()?)));
        let (outcome, micros) = timed.unwrap_or_else(|| panic!("process {}: {answer}", self.id()));
        (outcome.to_owned(), Duration::from_micros(micros))
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.send(command);
        self.outcome().0
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
        let (outcome, took) = self.outcome();
        assert_eq!(outcome, "ok", "process {}", self.id());
        took
    }

    /// Makes it ask for what must be refused with an error of that name; returns how long that took.
    #[track_caller]
    pub(crate) fn is_refused(&mut self, command: &str, error: &str) -> Duration {
        self.send(command);
        let (outcome, took) = self.outcome();
        assert!(outcome.starts_with(error), "{command}: {outcome}");
        took
    }

    /// Sends a request that has to wait, and returns when it does, as an observer sees.
    #[track_caller]
    pub(crate) fn sends_and_waits(&mut self, command: &str, observer: impl Fn() -> Snapshot) {
        self.send(command);
        let id = Some(self.id());
        wait_until("the process waits", || {
            assert_eq!(self.answer_so_far(), None, "{command}");
            observer().waiters.iter().any(|waiter| waiter.process.as_ref().map(|process| process.id) == id)
        });
    }

    /// Ends it in order.
    #[track_caller]
    pub(crate) fn end(mut self) {
        drop(self.stdin.take());
        wait_until("the process has ended", || self.child.try_wait().unwrap().is_some());
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

/// Says something, as an agent.
pub(crate) fn say(answer: &str) {
    println!("{MARK}{}", answer.replace('\n', " | "));
}

/// Obeys, as an agent that has its lock open, until the input ends. What comes of a command, or else its error, is
/// said together with how many microseconds it took. A command may read more lines.
pub(crate) fn serve<E: Error>(mut obey: impl FnMut(&str, &mut dyn Iterator<Item = String>) -> Result<String, E>) {
    say("ready");
    let mut lines = BufReader::new(std::io::stdin()).lines().map_while(Result::ok);
    while let Some(line) = lines.next() {
        let start = Instant::now();
        let outcome = obey(&line, &mut lines);
        let micros = start.elapsed().as_micros();
        say(&format!("{} {micros}", outcome.unwrap_or_else(|error| format!("{error:?}: {error}"))));
    }
}

/// The paths to read and to write in the words `r:a w:b/c`.
pub(crate) fn paths<'a>(words: impl Iterator<Item = &'a str>) -> (Vec<&'a str>, Vec<&'a str>) {
    let (reads, writes): (Vec<_>, Vec<_>) = words.partition(|word| word.starts_with("r:"));
    let path = |word: &'a str| word.split_once(':').unwrap().1;
    (reads.into_iter().map(path).collect(), writes.into_iter().map(path).collect())
}
