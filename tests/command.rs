//! The command `treelock`, as a shell sees it: exit codes, streams, signals, files.
//!
//! Each test has a lock of its own, and ends the process if it hangs. Locked commands end when their standard input
//! ends, so that none outlives its test.

use common::LIMIT;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Once};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use treelock::Snapshot;
use treelock::process::ProcessTreeLock;

#[cfg(feature = "memcached")]
#[allow(dead_code, reason = "the tests of the lock between machines use the rest")]
#[path = "common/memcached.rs"]
mod cache;
mod common;
#[cfg(feature = "postgres")]
#[allow(dead_code, reason = "the tests of the lock between machines use the rest")]
#[path = "common/database.rs"]
mod database;
#[cfg(feature = "dynamodb")]
#[allow(dead_code, reason = "the tests of the lock between machines use the rest")]
#[path = "common/dynamodb_local.rs"]
mod dynamodb_local;
#[cfg(any(feature = "dynamodb", feature = "memcached", feature = "object-store", feature = "postgres"))]
#[path = "command/engines.rs"]
mod engines;
#[cfg(feature = "redis")]
#[path = "command/machines.rs"]
mod machines;
#[cfg(feature = "redis")]
#[expect(dead_code, reason = "the tests of the lock between machines use the rest")]
#[path = "machines/server.rs"]
mod server;

const TREELOCK: &str = env!("CARGO_BIN_EXE_treelock");

/// A command that says when it has the lock, and ends when its standard input ends.
const HOLD: [&str; 4] = ["--", "sh", "-c", "echo held; exec cat"];

/// Tries again and again until there is an answer.
fn wait_for<T>(what: &str, mut answer: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = answer() {
            return answer;
        }
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} in vain: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A lock in a directory of its own, in a working directory of its own.
struct Place {
    home: TempDir,
    #[expect(dead_code, reason = "dropped at the end of the test")]
    runs: Sender<()>,
}

impl Place {
    fn new() -> Self {
        // A test run in the background of a script starts with some signals ignored. Commands get those that are
        // caught as they should be.
        static CATCH: Once = Once::new();
        CATCH.call_once(|| {
            for signal in [SIGHUP, SIGINT, SIGQUIT] {
                signal_hook::flag::register_conditional_default(signal, Arc::new(AtomicBool::new(true))).unwrap();
            }
        });
        let (runs, ended) = mpsc::channel();
        let test = thread::current().name().unwrap_or("?").to_owned();
        thread::spawn(move || {
            if let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(LIMIT * 2) {
                // Not by a macro: the test runner keeps its text until the test ends.
                let _ = writeln!(io::stderr(), "{test} hangs");
                std::process::exit(101);
            }
        });
        Place { home: tempfile::tempdir().unwrap(), runs }
    }

    fn home(&self) -> &Path {
        self.home.path()
    }

    fn lock(&self) -> PathBuf {
        self.home().join("lock")
    }

    /// The path in the working directory.
    fn absolute(&self, path: &str) -> String {
        std::env::current_dir().unwrap().join(self.home()).join(path).to_str().unwrap().to_owned()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(TREELOCK);
        command.args(words).current_dir(self.home()).env("TREELOCK_DIR", self.lock());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn treelock(&self, words: &[&str]) -> Output {
        end(self.command(words).spawn().unwrap())
    }

    /// The exit code of `treelock run`.
    fn run(&self, words: &[&str]) -> i32 {
        code(&self.treelock(&[&["run"], words].concat()))
    }

    /// Whether the lock could be taken at once.
    fn is_free(&self, words: &[&str]) -> bool {
        match self.run(&[&["-n", "-E", "99"], words, &["true"]].concat()) {
            0 => true,
            99 => false,
            other => panic!("{words:?}: {other}"),
        }
    }

    /// `treelock run` of [`HOLD`], which may have to wait.
    fn ask(&self, words: &[&str]) -> Child {
        let words = [&["run"], words, &HOLD].concat();
        self.command(&words).stdin(Stdio::piped()).spawn().unwrap()
    }

    /// `treelock run` of [`HOLD`], which holds the lock.
    fn hold(&self, words: &[&str]) -> Child {
        self.hold_with(&mut self.command(&[&["run"], words, &HOLD].concat()))
    }

    fn hold_with(&self, command: &mut Command) -> Child {
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        assert_eq!(line(child.stdout.as_mut().unwrap()), "held");
        child
    }

    /// A command that is started to ignore signals.
    fn ignoring(&self, signals: &str, words: &[&str]) -> Command {
        let mut command = Command::new("env");
        if !signals.is_empty() {
            command.arg(format!("--ignore-signal={signals}"));
        }
        command.args(words).env("TREELOCK_DIR", self.lock());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn snapshot(&self) -> Snapshot {
        ProcessTreeLock::open(self.lock()).unwrap().snapshot().unwrap()
    }

    fn wait_until_waiting(&self, count: usize) {
        wait_for("requests wait", || (self.snapshot().waiters.len() == count).then_some(()));
    }
}

/// Exactly one line.
fn line(from: &mut impl Read) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while from.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// Closes the standard input, and waits for the end.
fn end(mut child: Child) -> Output {
    drop(child.stdin.take());
    wait_for("the command ends", || child.try_wait().unwrap());
    child.wait_with_output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn is_running(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|state| !state.is_empty() && !state.starts_with('Z'))
}

/// The only line of standard error.
fn complaint(output: &Output) -> &str {
    let text = text(&output.stderr).trim_end();
    assert!(text.starts_with("treelock: ") && text.lines().count() == 1, "{text:?} is no line of ours");
    text
}

#[test]
fn a_writer_excludes_all_who_overlap_until_its_command_has_ended() {
    let place = Place::new();
    let holder = place.hold(&["-w", "data/users"]);
    for overlapping in ["data/users", "data", "data/users/7", "/"] {
        assert!(!place.is_free(&["-w", overlapping]), "{overlapping}");
        assert!(!place.is_free(&["-r", overlapping]), "{overlapping}");
    }
    assert_eq!(code(&end(holder)), 0);
    assert!(place.is_free(&["-w", "data/users"]));
}

#[test]
fn readers_share_and_exclude_writers() {
    let place = Place::new();
    let first = place.hold(&["-r", "data"]);
    let second = place.hold(&["-r", "data/users"]);
    assert!(!place.is_free(&["-w", "data/users/7"]));
    assert_eq!(code(&end(first)), 0);
    assert!(place.is_free(&["-w", "data/tables"]));
    assert!(!place.is_free(&["-w", "data/users/7"]));
    assert_eq!(code(&end(second)), 0);
}

#[test]
fn unrelated_paths_do_not_wait_even_beside_a_queue() {
    let place = Place::new();
    let holder = place.hold(&["-w", "a/b", "-r", "c"]);
    let waiter = place.ask(&["-w", "a"]);
    place.wait_until_waiting(1);
    assert!(place.is_free(&["-w", "d", "-w", "a2", "-r", "c/e"]));
    assert_eq!((code(&end(holder)), code(&end(waiter))), (0, 0));
}

#[test]
fn all_roots_are_taken_or_none() {
    let place = Place::new();
    let holder = place.hold(&["-r", "x", "--write", "y", "--write", "z"]);
    for (words, free) in [(["-r", "x"], true), (["-w", "x"], false), (["-r", "y"], false), (["-r", "z"], false)] {
        assert_eq!(place.is_free(&words), free, "{words:?}");
    }
    assert!(!place.is_free(&["-w", "free", "-w", "y"]));
    assert!(place.is_free(&["-w", "free"]));
    assert_eq!(code(&end(holder)), 0);
}

#[test]
fn a_waiting_run_goes_on_when_the_holder_has_ended() {
    let place = Place::new();
    let holder = place.hold(&["-w", "a"]);
    let mut waiter = place.ask(&["-w", "a/b"]);
    place.wait_until_waiting(1);
    assert_eq!(code(&end(holder)), 0);
    assert_eq!(line(waiter.stdout.as_mut().unwrap()), "held");
    assert!(!place.is_free(&["-r", "a"]));
    assert_eq!(code(&end(waiter)), 0);
}

#[test]
fn a_conflict_ends_quietly_with_the_code_for_it_and_without_the_command() {
    let place = Place::new();
    let holder = place.hold(&["-w", "a"]);
    for (words, expected) in [
        (&["-n"][..], 1),
        (&["--non-blocking", "-E", "77"], 77),
        (&["-n", "--conflict-exit-code", "0"], 0),
        (&["--timeout", "0"], 1),
        (&["--timeout", "0.05", "-E", "255"], 255),
        (&["-n", "--timeout", "60"], 1),
    ] {
        let output = place.treelock(&[&["run"], words, &["-w", "a", "echo", "ran"]].concat());
        assert_eq!((code(&output), text(&output.stdout), text(&output.stderr)), (expected, "", ""), "{words:?}");
    }
    assert_eq!(code(&end(holder)), 0);
}

#[test]
fn a_timeout_expires_when_it_should() {
    let place = Place::new();
    let holder = place.hold(&["-r", "a"]);
    let start = Instant::now();
    assert_eq!(place.run(&["--timeout", "0.7", "-E", "75", "-w", "a", "true"]), 75);
    let elapsed = start.elapsed();
    assert!((Duration::from_millis(700)..Duration::from_secs(5)).contains(&elapsed), "{elapsed:?}");
    assert_eq!(place.snapshot().waiters.len(), 0);
    assert_eq!(place.run(&["--timeout", "1e15", "-w", "b", "true"]), 0);
    assert_eq!(code(&end(holder)), 0);
}

#[test]
fn the_exit_code_of_the_command_passes() {
    let place = Place::new();
    for code in [0, 1, 7, 64, 255] {
        assert_eq!(place.run(&["-w", "a", "sh", "-c", &format!("exit {code}")]), code);
    }
}

#[test]
fn a_command_killed_by_a_signal_gives_128_and_its_number() {
    let place = Place::new();
    for (signal, code) in [("KILL", 137), ("TERM", 143), ("INT", 130), ("SEGV", 139)] {
        let kill = format!("ulimit -c 0; kill -{signal} $$; exec cat");
        assert_eq!(place.run(&["-w", "a", "sh", "-c", &kill]), code, "{signal}");
    }
}

#[test]
fn the_standard_streams_and_the_working_directory_pass_through() {
    let place = Place::new();
    let words = ["run", "-w", "a", "--", "sh", "-c", "tr a-z A-Z; pwd -P; echo \"$0 $1\" >&2", "-n", "two words"];
    let mut child = place.command(&words).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"told\n").unwrap();
    let output = end(child);
    let home = place.home().canonicalize().unwrap();
    assert_eq!(text(&output.stdout), format!("TOLD\n{}\n", home.display()));
    assert_eq!(text(&output.stderr), "-n two words\n");
    assert_eq!(code(&output), 0);
}

/// Holds, and exits with code 5 on one signal. The shell waits for a command that ends when its standard input ends.
fn trap(signal: &str) -> String {
    format!("trap 'exit 5' {signal}; exec 3<&0; cat <&3 >/dev/null 2>&1 & echo held; wait; exit 6")
}

#[test]
fn signals_to_the_wrapper_reach_the_command() {
    let place = Place::new();
    for (name, signal) in [
        ("TERM", Signal::TERM),
        ("HUP", Signal::HUP),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("ALRM", Signal::ALARM),
        // Not from a terminal: the group is not in the foreground.
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
    ] {
        let trap = trap(name);
        let mut command = place.command(&["run", "-w", "a", "sh", "-c", &trap]);
        let mut child = place.hold_with(command.process_group(0));
        kill_process(pid(&child), signal).unwrap();
        let status = wait_for("the command ends", || child.try_wait().unwrap());
        assert_eq!(status.code(), Some(5), "{name}");
    }
    assert!(place.is_free(&["-w", "a"]));
}

#[test]
fn an_interrupt_of_the_whole_group_leaves_the_end_to_the_command() {
    let place = Place::new();
    let mut command = place.command(&["run", "-w", "a", "sh", "-c", &trap("INT")]);
    let mut child = place.hold_with(command.process_group(0));
    kill_process_group(pid(&child), Signal::INT).unwrap();
    let status = wait_for("the command ends", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(5));
}

#[test]
fn a_stopped_command_goes_on_when_the_wrapper_is_told_to() {
    let place = Place::new();
    let mut command = place.command(&["run", "-w", "a", "sh", "-c", "echo held; echo $$; exec cat"]);
    let mut child = place.hold_with(&mut command);
    let inner = line(child.stdout.as_mut().unwrap()).parse().ok().and_then(Pid::from_raw).unwrap();
    let state = || fs::read_to_string(format!("/proc/{}/stat", inner.as_raw_nonzero())).unwrap();
    kill_process(inner, Signal::STOP).unwrap();
    wait_for("it stops", || state().contains(") T ").then_some(()));
    assert!(!place.is_free(&["-r", "a"]));
    drop(child.stdin.take());
    kill_process(pid(&child), Signal::CONT).unwrap();
    assert_eq!(code(&end(child)), 0);
}

#[test]
fn a_signal_ends_a_run_that_waits_and_its_place_in_the_queue() {
    let place = Place::new();
    let holder = place.hold(&["-r", "a"]);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let waiter = place.ask(&["-w", "a"]);
        place.wait_until_waiting(1);
        kill_process(pid(&waiter), signal).unwrap();
        let output = end(waiter);
        assert_eq!((output.status.signal(), text(&output.stdout)), (Some(signal.as_raw()), ""));
        assert!(place.is_free(&["-r", "a"]));
    }
    assert_eq!(code(&end(holder)), 0);
}

/// The masks of signals as the kernel shows them, without two signals that the C library keeps for itself.
fn masks(output: &Output) -> Vec<(String, u64)> {
    let told = text(&output.stdout).lines().filter(|line| ["SigBlk:", "SigIgn:"].contains(&&line[..7]));
    let mask = |line: &str| (line[..7].to_owned(), u64::from_str_radix(line[7..].trim(), 16).unwrap() & !(3 << 31));
    let masks: Vec<_> = told.map(mask).collect();
    assert_eq!(masks.len(), 2, "{output:?}");
    masks
}

#[test]
fn the_command_has_the_signals_that_it_would_have_without_the_wrapper() {
    let place = Place::new();
    for ignored in ["", "HUP", "INT,QUIT", "CHLD", "PIPE"] {
        let with = |words: &[&str]| {
            let output = end(place.ignoring(ignored, words).spawn().unwrap());
            assert_eq!(code(&output), 0, "{ignored}: {output:?}");
            masks(&output)
        };
        let direct = with(&["cat", "/proc/self/status"]);
        let wrapped = with(&[TREELOCK, "run", "-w", "a", "cat", "/proc/self/status"]);
        match ignored {
            // Rust's own runtime resets these two signals, flock(1) the first of them.
            "CHLD" | "PIPE" => assert_eq!(wrapped, [("SigBlk:".into(), 0), ("SigIgn:".into(), 0)], "{ignored}"),
            _ => assert_eq!(wrapped, direct, "{ignored}"),
        }
    }
}

#[test]
fn a_wrapper_that_was_started_to_ignore_the_end_of_children_sees_it_all_the_same() {
    let place = Place::new();
    let words = [TREELOCK, "run", "-w", "a", "sh", "-c", "exit 9"];
    let output = end(place.ignoring("CHLD", &words).spawn().unwrap());
    assert_eq!(code(&output), 9, "{output:?}");
}

#[test]
fn the_command_of_a_killed_wrapper_keeps_the_lock_until_it_ends() {
    let place = Place::new();
    let mut wrapper = place.hold(&["-w", "a"]);
    let stdin = wrapper.stdin.take();
    wrapper.kill().unwrap();
    wrapper.wait().unwrap();
    assert!(!place.is_free(&["-r", "a"]));
    let waiter = place.ask(&["-r", "a"]);
    place.wait_until_waiting(1);
    assert!(!place.is_free(&["-r", "a"]));
    drop(stdin);
    assert_eq!(code(&end(waiter)), 0);
    assert!(place.is_free(&["-w", "a"]));
}

#[test]
fn a_script_that_uses_descriptors_by_number_leaves_those_of_the_lock_alone() {
    let place = Place::new();
    let all = "exec 3<&0 4<&0 5<&0 6<&0 7<&0 8<&0 9<&0; echo held; exec cat";
    let mut wrapper = place.hold_with(&mut place.command(&["run", "-w", "a", "sh", "-c", all]));
    let stdin = wrapper.stdin.take();
    wrapper.kill().unwrap();
    wrapper.wait().unwrap();
    assert!(!place.is_free(&["-r", "a"]));
    drop(stdin);
    wait_for("the command ends", || place.is_free(&["-r", "a"]).then_some(()));
}

#[test]
fn what_the_command_leaves_in_the_background_does_not_keep_the_lock() {
    let place = Place::new();
    let leave = "exec 9<&0; cat <&9 >/dev/null 2>&1 & echo $!";
    let mut command = place.command(&["run", "-w", "a", "sh", "-c", leave]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take();
    let output = end(child);
    let left = text(&output.stdout).trim().parse().ok().and_then(Pid::from_raw).unwrap();
    assert_eq!(code(&output), 0);
    assert!(place.is_free(&["-w", "a"]));
    assert!(is_running(left), "so nothing was shown");
    drop(stdin);
    wait_for("it ends", || (!is_running(left)).then_some(()));
}

#[test]
fn a_wait_of_a_second_tells_for_whom() {
    let place = Place::new();
    let holder = place.hold(&["-r", "a/b", "-w", "c"]);
    let start = Instant::now();
    let mut writer = place.ask(&["-w", "a"]);
    place.wait_until_waiting(1);
    let mut reader = place.ask(&["-r", "a/b/d"]);
    let told = line(writer.stderr.as_mut().unwrap());
    assert!(start.elapsed() >= Duration::from_secs(1));
    let [path, command] = [place.absolute("a/b"), "run -r a/b -w c -- sh -c".into()];
    assert!(told.starts_with(&format!("treelock: waiting for {} \"", holder.id())), "{told}");
    assert!(told.contains(&command) && told.contains(&format!(", which has been reading {path} for ")), "{told}");
    assert!(told.ends_with(" s"), "{told}");

    // It does not conflict with the other reader, but with the writer that came before.
    let told = line(reader.stderr.as_mut().unwrap());
    assert!(told.starts_with(&format!("treelock: waiting for {} \"", writer.id())), "{told}");
    assert!(told.contains(&format!(", which has been waiting to write {} for ", place.absolute("a"))), "{told}");

    assert_eq!(code(&end(holder)), 0);
    for waiter in [writer, reader] {
        let output = end(waiter);
        assert_eq!((code(&output), text(&output.stderr)), (0, ""), "it tells once");
    }
}

/// A program that reads and wants to write goes ahead of earlier waiters, which cannot pass it.
#[test]
fn a_wait_tells_of_an_upgrade_that_came_later_and_passes_it() {
    let place = Place::new();
    let path = place.absolute("a");
    let other = place.hold(&["-r", "a"]);
    let lock = ProcessTreeLock::open(place.lock()).unwrap();
    thread::scope(|scope| {
        let (upgrades, may_upgrade) = mpsc::channel();
        let (reads, has_read) = mpsc::channel();
        let (lock, path) = (&lock, &path);
        scope.spawn(move || {
            let _outer = lock.read(path).unwrap();
            reads.send(()).unwrap();
            may_upgrade.recv().unwrap();
            drop(lock.write(path).unwrap());
        });
        has_read.recv().unwrap();
        let mut writer = place.ask(&["-w", "a"]);
        place.wait_until_waiting(1);
        upgrades.send(()).unwrap();
        place.wait_until_waiting(2);
        let (sender, told) = mpsc::channel();
        let messages = BufReader::new(writer.stderr.take().unwrap());
        thread::spawn(move || messages.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let upgrade = format!("treelock: waiting for {} ", std::process::id());
        let is_upgrade = |line: String| line.starts_with(&upgrade) && line.contains("waiting to write");
        wait_for("it tells of the upgrade", || is_upgrade(told.try_recv().ok()?).then_some(()));
        assert_eq!((code(&end(other)), code(&end(writer))), (0, 0));
    });
}

/// In containers that share the directory, processes may have the same numbers.
#[test]
fn a_wait_tells_of_its_own_request_and_not_of_another_process_with_its_number() {
    let place = Place::new();
    let container = ["--pid", "--fork", "--kill-child"];
    if !Command::new("unshare").args(container).arg("true").status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: needs unshare, and the right to use it");
        return;
    }
    let ask = |words: &[&str]| {
        let inside = place.command(&[]);
        let mut command = Command::new("unshare");
        command.args(container).arg(TREELOCK).arg("run").args(words).args(HOLD).current_dir(place.home());
        command.envs(inside.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let holder = place.hold(&["-r", "a/b"]);
    let writer = ask(&["-w", "a"]);
    place.wait_until_waiting(1);
    let mut reader = ask(&["-r", "a/b/c"]);
    let told = line(reader.stderr.as_mut().unwrap());
    assert!(told.starts_with("treelock: waiting for 1 \"") && told.contains("waiting to write"), "{told}");
    assert_eq!((code(&end(holder)), code(&end(writer)), code(&end(reader))), (0, 0, 0));
}

#[test]
fn it_tells_again_only_when_it_waits_for_others() {
    let place = Place::new();
    let first = place.hold(&["-w", "a/b"]);
    let second = place.hold(&["-r", "a/c"]);
    let mut waiter = place.ask(&["-w", "a"]);
    let mut told = BufReader::new(waiter.stderr.take().unwrap()).lines().map(Result::unwrap);
    let of = |child: &Child| format!("treelock: waiting for {} ", child.id());
    let lines = [told.next().unwrap(), told.next().unwrap()];
    assert!(lines[0].starts_with(&of(&first)) && lines[1].starts_with(&of(&second)), "{lines:?}");
    assert_eq!(code(&end(first)), 0);
    let line = told.next().unwrap();
    assert!(line.starts_with(&of(&second)), "{line}");
    // The waiting command has looked again by then.
    let told_at = Instant::now();
    wait_for("time has passed", || (told_at.elapsed() > Duration::from_secs(4)).then_some(()));
    assert_eq!((code(&end(second)), code(&end(waiter))), (0, 0));
    assert_eq!(told.next(), None);
}

#[test]
fn a_short_wait_tells_nothing() {
    let place = Place::new();
    let holder = place.hold(&["-w", "a"]);
    let start = Instant::now();
    let waiter = place.ask(&["-w", "a"]);
    place.wait_until_waiting(1);
    assert_eq!(code(&end(holder)), 0);
    let output = end(waiter);
    if start.elapsed() < Duration::from_millis(900) {
        assert_eq!(text(&output.stderr), "");
    }
}

#[test]
fn status_draws_holders_and_waiters() {
    let place = Place::new();
    let holder = place.hold(&["-w", "data/users"]);
    let waiter = place.ask(&["-r", "data"]);
    place.wait_until_waiting(1);
    let output = place.treelock(&["status"]);
    let drawing = text(&output.stdout);
    assert_eq!(code(&output), 0);
    assert!(drawing.starts_with("treelock: 1 held, 1 waiting\n/\n"), "{drawing}");
    assert!(drawing.contains(&format!("X    held by {} \"", holder.id())), "{drawing}");
    assert!(drawing.contains(&format!("S    awaited by {} \"", waiter.id())), "{drawing}");
    assert!(drawing.contains("users\n") && drawing.ends_with('\n'), "{drawing}");
    assert_eq!((code(&end(holder)), code(&end(waiter))), (0, 0));
}

#[test]
fn status_as_json_has_the_fields_that_the_help_tells() {
    let place = Place::new();
    let holder = place.hold(&["-w", "data/users", "-r", "schema"]);
    let waiter = place.ask(&["-w", "data"]);
    place.wait_until_waiting(1);
    let output = place.treelock(&["status", "--json"]);
    assert_eq!((code(&output), text(&output.stdout).lines().count()), (0, 1));
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    let segments = |path: &str| -> Vec<String> {
        place.absolute(path).split('/').filter(|segment| !segment.is_empty()).map(str::to_owned).collect()
    };
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&status), ["holders", "keeper", "time", "waiters"]);

    let [held, waits] = [&status["holders"], &status["waiters"]].map(|all| {
        assert_eq!(all.as_array().unwrap().len(), 1, "{status}");
        &all[0]
    });
    assert_eq!(keys(held), ["location", "process", "roots", "since", "thread"]);
    assert_eq!(keys(&held["process"]), ["command", "id", "member", "user"]);
    assert_eq!(held["process"]["id"], holder.id());
    assert!(held["process"]["command"].as_str().unwrap().contains(" run -w data/users -r schema -- sh -c "));
    assert!(!held["process"]["user"].as_str().unwrap().is_empty());
    let roots: Vec<Value> = [("schema", "S"), ("data/users", "X")]
        .map(|(path, mode)| serde_json::json!({"path": segments(path), "mode": mode}))
        .into();
    assert!(roots.iter().all(|root| held["roots"].as_array().unwrap().contains(root)), "{held}");
    assert_eq!(held["roots"].as_array().unwrap().len(), 2);
    assert_eq!(held["thread"], "main");
    assert_eq!(held["location"], Value::from(fs::canonicalize(place.home()).unwrap().to_str().unwrap()));

    assert_eq!(keys(waits), ["at", "location", "process", "roots", "since", "taken", "thread"]);
    assert_eq!(waits["process"]["id"], waiter.id());
    assert_eq!(waits["at"], serde_json::json!({"path": segments("data"), "mode": "X"}));
    assert_eq!(waits["roots"], serde_json::json!([waits["at"]]));
    assert_eq!(waits["taken"], serde_json::json!([]));

    let [since, waited, time] = [&held["since"], &waits["since"], &status["time"]].map(|it| it.as_f64().unwrap());
    assert!(1e9 < since && since <= waited && waited <= time && time - since < 1000.0, "{status}");
    assert_eq!((code(&end(holder)), code(&end(waiter))), (0, 0));
}

#[test]
fn status_where_nothing_is_locked_says_so_and_makes_nothing() {
    let place = Place::new();
    let nothing = |place: &Place, how: &str| {
        let output = place.treelock(&["status"]);
        let expected = format!("treelock: nothing is locked{how} {:?}\n", place.lock());
        assert_eq!((code(&output), text(&output.stdout), text(&output.stderr)), (0, &*expected, ""));
        let output = place.treelock(&["status", "--json"]);
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&status["holders"], &status["waiters"]), (&serde_json::json!([]), &serde_json::json!([])));
        assert!(status["time"].as_f64().unwrap() > 1e9);
    };
    nothing(&place, ", since there is no");
    assert!(!place.lock().exists());
    assert_eq!(place.run(&["-w", "a", "true"]), 0);
    assert!(place.lock().exists());
    nothing(&place, " in");
}

#[test]
fn status_watches_until_nobody_reads_it() {
    let place = Place::new();
    let mut watch = place.command(&["status", "--watch", "0.02"]).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut next = |start: &str| {
        let begun = Instant::now();
        let found = lines.find(|line| line.starts_with(start) || begun.elapsed() > LIMIT).unwrap();
        assert!(found.starts_with(start), "{found}");
    };
    next("treelock: nothing is locked, since there is no ");
    let holder = place.hold(&["-w", "a"]);
    next("treelock: 1 held, 0 waiting");
    assert_eq!(code(&end(holder)), 0);
    next("treelock: nothing is locked in ");
    drop(lines);
    let output = end(watch);
    assert_eq!((code(&output), text(&output.stderr)), (0, ""));
}

#[test]
fn wrong_arguments_give_64_and_one_line() {
    let place = Place::new();
    for words in [
        &[][..],
        &["frobnicate"],
        &["--frobnicate"],
        &["run"],
        &["run", "-w", "a"],
        &["run", "-w", "a", "--"],
        &["run", "true"],
        &["run", "-n", "--", "true"],
        &["run", "-w", "", "true"],
        &["run", "-x", "-w", "a", "true"],
        &["run", "--timeout", "soon", "-w", "a", "true"],
        &["run", "--timeout", "-1", "-w", "a", "true"],
        &["run", "--timeout", "NaN", "-w", "a", "true"],
        &["run", "--timeout", "1e300", "-w", "a", "true"],
        &["run", "-E", "256", "-w", "a", "true"],
        &["status", "more"],
        &["status", "--watch", "0"],
    ] {
        let output = place.treelock(words);
        assert_eq!((code(&output), text(&output.stdout)), (64, ""), "{words:?}");
        complaint(&output);
    }
    assert!(!place.lock().exists());
}

#[test]
fn a_command_that_cannot_be_run_gives_127_or_126_and_one_line() {
    let place = Place::new();
    fs::write(place.home().join("data"), "no program").unwrap();
    for (command, expected) in [("no-such-command", 127), ("./nothing", 127), ("./data", 126), ("/", 126)] {
        let output = place.treelock(&["run", "-w", "a", command]);
        assert_eq!(code(&output), expected, "{command}");
        assert!(complaint(&output).contains(&format!("cannot run {command:?}: ")), "{output:?}");
    }
}

fn executable(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_script_that_names_no_interpreter_is_one_of_the_shell() {
    let place = Place::new();
    executable(&place.home().join("-script"), "echo \"$1\"; exit 3\n");
    let path = format!("{}:/usr/bin:/bin", place.home().display());
    for script in ["./-script", "-script"] {
        let mut command = place.command(&["run", "-w", "a", "--", script, "one"]);
        let output = end(command.env("PATH", &path).spawn().unwrap());
        assert_eq!((code(&output), text(&output.stdout)), (3, "one\n"), "{output:?}");
    }
}

#[test]
fn paths_are_relative_to_the_working_directory_and_links_are_names() {
    let place = Place::new();
    fs::create_dir(place.home().join("data")).unwrap();
    symlink("data", place.home().join("link")).unwrap();
    let mut command = place.command(&["run", "-w", "users", "--", "sh", "-c", "echo held; exec cat"]);
    let holder = place.hold_with(command.current_dir(place.home().join("data")));
    for same in
        ["data/users", "./data//users/", "data/../data/users", "link/../data/users/7", &*place.absolute("data")]
    {
        assert!(!place.is_free(&["-r", same]), "{same}");
    }
    for other in ["users", "link/users", "/data/users"] {
        assert!(place.is_free(&["-w", other]), "{other}");
    }
    assert_eq!(code(&end(holder)), 0);
}

#[test]
fn the_directory_given_goes_before_that_of_the_environment_and_both_before_the_default() {
    let place = Place::new();
    let home = |name: &str| place.home().join(name);
    fs::create_dir(home("runtime")).unwrap();
    let run = |words: &[&str], environment: &str| {
        let mut command = place.command(&[&["run", "-w", "a"], words, &["true"]].concat());
        let environment = if environment.is_empty() { "".into() } else { home(environment) };
        command.env("XDG_RUNTIME_DIR", home("runtime")).env("TREELOCK_DIR", environment);
        assert_eq!(code(&end(command.spawn().unwrap())), 0);
        let there = |name: &&str| home(name).exists();
        let found: Vec<&str> = ["given", "environment", "runtime/treelock"].into_iter().filter(there).collect();
        found
    };
    assert_eq!(run(&["--dir", "given"], "environment"), ["given"]);
    assert_eq!(run(&[], "environment"), ["given", "environment"]);
    assert_eq!(run(&[], ""), ["given", "environment", "runtime/treelock"]);
    assert_eq!(fs::metadata(home("runtime/treelock")).unwrap().permissions().mode() & 0o777, 0o700);
}

/// A relative TREELOCK_DIR would silently mean another lock in each working directory.
#[test]
fn a_relative_directory_in_the_environment_is_refused() {
    let place = Place::new();
    for words in [&["run", "-w", "a", "echo", "ran"][..], &["status"]] {
        let mut command = place.command(words);
        let output = end(command.env("TREELOCK_DIR", "locks").spawn().unwrap());
        assert_eq!((code(&output), text(&output.stdout)), (64, ""), "{words:?}");
        assert!(complaint(&output).contains("TREELOCK_DIR"), "{output:?}");
        assert!(!place.home().join("locks").exists());
    }
}

#[test]
fn a_wait_for_the_command_that_it_is_a_part_of_says_so() {
    let place = Place::new();
    let nested = [TREELOCK, "run", "--timeout", "1.5", "-E", "9", "-r", "a/b", "true"];
    let output = place.treelock(&[&["run", "-w", "a"], &nested[..]].concat());
    assert_eq!(code(&output), 9);
    assert!(complaint(&output).ends_with("a part of"), "{output:?}");
}

/// Keeps the table as a process does that is stopped in the midst of a request.
#[test]
fn a_table_that_is_kept_holds_up_neither_status_nor_a_limit() {
    let place = Place::new();
    let mut holder = place.hold(&["-w", "a"]);
    let table = fs::File::open(place.lock().join("table")).unwrap();
    flock(&table, FlockOperation::LockExclusive).unwrap();
    let drawn = place.treelock(&["status"]);
    assert!(text(&drawn.stdout).contains("1 held, 0 waiting"), "{drawn:?}");
    let kept = format!("process {} keeps the table", std::process::id());
    assert!(text(&drawn.stdout).contains(&kept), "{drawn:?}");
    let told: Value = serde_json::from_slice(&place.treelock(&["status", "--json"]).stdout).unwrap();
    assert_eq!(told["keeper"], std::process::id());
    let told = |words: &[&str]| {
        let output = place.treelock(&[&["run", "-E", "9"], words, &["-w", "b", "true"]].concat());
        assert_eq!(code(&output), 9, "{words:?}");
        complaint(&output).to_owned()
    };
    assert!(told(&["-n"]).contains(&kept));
    assert!(told(&["--timeout", "0.2"]).contains(&kept));
    let mut waits = place.ask(&["-w", "b"]);
    let told = line(waits.stderr.as_mut().unwrap());
    assert!(told.starts_with("treelock: ") && told.contains(&kept), "{told}");
    // When its command has ended, `treelock run` must not wait any more.
    drop(holder.stdin.take());
    assert_eq!(code(&end(holder)), 0);
    flock(&table, FlockOperation::Unlock).unwrap();
    assert_eq!(code(&end(waits)), 0);
    assert!(place.is_free(&["-w", "a", "-w", "b"]));
    let free: Value = serde_json::from_slice(&place.treelock(&["status", "--json"]).stdout).unwrap();
    assert_eq!(free["keeper"], Value::Null);
}

/// A removed FIFO cannot show that its owner is dead; but if no member is left, nothing is held.
#[test]
fn those_who_died_without_their_files_are_not_shown_when_nobody_is_left() {
    let place = Place::new();
    let holder = place.hold(&["-w", "a"]);
    fs::remove_file(place.lock().join("m0")).unwrap();
    let drawn = || text(&place.treelock(&["status"]).stdout).to_owned();
    assert!(drawn().contains("1 held, 0 waiting"), "{}", drawn());
    kill_process(pid(&holder), Signal::KILL).unwrap();
    end(holder);
    wait_for("nothing is locked", || drawn().contains("nothing is locked").then_some(()));
    assert!(place.is_free(&["-w", "a"]));
}

#[test]
fn a_quiet_wait_tells_nothing() {
    let place = Place::new();
    let holder = place.hold(&["-w", "a"]);
    let output = place.treelock(&["run", "-q", "--timeout", "1.3", "-E", "9", "-w", "a", "true"]);
    assert_eq!((code(&output), text(&output.stderr)), (9, ""));
    assert_eq!(code(&end(holder)), 0);
}

/// As if an alias contains some options already.
#[test]
fn the_last_of_equal_options_counts() {
    let place = Place::new();
    let holder = place.hold(&["-w", "a"]);
    assert_eq!(
        place.run(&["-n", "-n", "--timeout", "60", "--timeout", "0.1", "-E", "7", "-E", "8", "-w", "a", "true"]),
        8
    );
    assert_eq!(code(&end(holder)), 0);
}

#[test]
fn a_default_directory_that_others_could_have_prepared_is_refused() {
    let place = Place::new();
    let runtime = place.home().join("runtime");
    let default = runtime.join("treelock");
    let refused = |why: &str| {
        for words in [&["run", "-w", "a", "echo", "ran"][..], &["status"]] {
            let mut command = place.command(words);
            command.env("XDG_RUNTIME_DIR", &runtime).env_remove("TREELOCK_DIR");
            let output = end(command.spawn().unwrap());
            assert_eq!((code(&output), text(&output.stdout)), (73, ""), "{why}");
            assert!(complaint(&output).contains(why), "{output:?}");
        }
    };
    fs::create_dir(&runtime).unwrap();
    fs::create_dir(runtime.join("elsewhere")).unwrap();
    fs::set_permissions(runtime.join("elsewhere"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("elsewhere", &default).unwrap();
    refused("is no directory");
    fs::remove_file(&default).unwrap();
    fs::create_dir(&default).unwrap();
    fs::set_permissions(&default, fs::Permissions::from_mode(0o770)).unwrap();
    refused("is open to other users");
    // Only root can give the directory to another user.
    if std::os::unix::fs::chown(&default, Some(12_345), None).is_ok() {
        fs::set_permissions(&default, fs::Permissions::from_mode(0o700)).unwrap();
        refused("belongs to another user");
    }
    assert_eq!(fs::read_dir(runtime.join("elsewhere")).unwrap().count(), 0);
}

#[test]
fn a_directory_that_cannot_be_used_gives_73_and_one_line() {
    let place = Place::new();
    fs::write(place.lock(), "no directory").unwrap();
    for words in [&["run", "-w", "a", "echo", "ran"][..], &["status"]] {
        let output = place.treelock(words);
        assert_eq!((code(&output), text(&output.stdout)), (73, ""), "{words:?}");
        complaint(&output);
    }
}

#[test]
fn help_version_completions_and_manual_are_there() {
    let place = Place::new();
    let told = |words: &[&str]| {
        let output = place.treelock(words);
        assert_eq!((code(&output), text(&output.stderr)), (0, ""), "{words:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(told(&["--version"]), format!("treelock {}\n", env!("CARGO_PKG_VERSION")));
    assert!(told(&["--help"]).contains("treelock run -w data/users -r data/schema -- ./migrate.sh"));
    for expected in ["TREELOCK_DIR", "/tmp/treelock-UID", "128+N", "working", "links are not followed"] {
        assert!(told(&["run", "--help"]).contains(expected), "{expected}");
    }
    assert!(told(&["status", "--help"]).contains("waiters"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(told(&["completions", shell]).contains("conflict-exit-code"), "{shell}");
    }
    told(&["man", "."]);
    assert!(fs::read_to_string(place.home().join("treelock-run.1")).unwrap().contains("Exit status"));
}

#[test]
fn it_ends_as_flock_does() {
    let version = Command::new("flock").arg("--version").stdout(Stdio::piped()).stderr(Stdio::null()).output();
    match version {
        Ok(version) if text(&version.stdout).contains("util-linux") => {}
        _ => return eprintln!("flock of util-linux is missing here: nothing was compared"),
    }
    let place = Place::new();
    executable(&place.home().join("script"), "exit 3\n");
    let ours = |options: &[&str], command: &[&str]| place.run(&[options, &["-w", "a"], command].concat());
    let theirs = |options: &[&str], command: &[&str]| {
        let mut flock = Command::new("flock");
        flock.args(options).arg("file").args(command).current_dir(place.home());
        code(&end(flock.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()))
    };
    let free: [(&[&str], &[&str]); 8] = [
        (&[], &["true"]),
        (&[], &["sh", "-c", "exit 7"]),
        (&[], &["sh", "-c", "kill -KILL $$"]),
        (&[], &["sh", "-c", "kill -TERM $$"]),
        (&[], &["./script"]),
        (&["-n"], &["true"]),
        (&["-E", "300"], &["true"]),
        (&["--frobnicate"], &["true"]),
    ];
    for (options, command) in free {
        assert_eq!(ours(options, command), theirs(options, command), "{options:?} {command:?}");
    }
    for timeout in ["0", "0.1", "5", "soon"] {
        let (option, flocks) = (["--timeout", timeout], ["-w", timeout]);
        assert_eq!(ours(&option, &["true"]), theirs(&flocks, &["true"]), "{timeout}");
    }
    // Whatever the reason, a command that cannot be run is "unavailable" for flock; treelock uses the codes of the
    // shells.
    for (command, expected) in [("no-such-command", 127), ("/", 126)] {
        assert_eq!((ours(&[], &[command]), theirs(&[], &[command])), (expected, 69));
    }

    let holders = [place.hold(&["-w", "a"]), {
        let mut flock = Command::new("flock");
        flock.args(["file", "sh", "-c", "echo held; exec cat"]).current_dir(place.home());
        place.hold_with(flock.stdout(Stdio::piped()))
    }];
    for options in [&["-n"][..], &["-n", "-E", "77"], &["-n", "-E", "0"]] {
        assert_eq!(ours(options, &["true"]), theirs(options, &["true"]), "{options:?}");
    }
    for timeout in ["0", "0.1"] {
        for code in ["1", "75"] {
            let (option, flocks) = (["-E", code, "--timeout", timeout], ["-E", code, "-w", timeout]);
            assert_eq!(ours(&option, &["true"]), theirs(&flocks, &["true"]), "{timeout} {code}");
        }
    }
    holders.into_iter().for_each(|holder| assert_eq!(code(&end(holder)), 0));
}
