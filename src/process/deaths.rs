//! Tests that kill a process at each step of all that it changes, and check each time that the other processes, or
//! the next one, find everything in order (P1).
//!
//! The victim is a second run of this test program, with the number of the step in its environment (`crash.rs`). It
//! does everything that writes: it makes the first table, joins, is granted requests, waits, is moved, gives up,
//! buries others, writes new tables, and leaves.

use super::{ProcessTreeLock, crash};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const DIRECTORY: &str = "TREELOCK_VICTIM_DIRECTORY";

/// The sub-tree that the test process itself holds all the time.
const HELD: &str = "held by the witness";

/// A directory for one test, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("treelock-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs in a process of its own; see [`start`].
#[test]
#[ignore = "a part of the other tests"]
fn victim() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let lock = ProcessTreeLock::open(&directory).unwrap();
    let first = lock.write("a/b").unwrap();
    let mut second = lock.lock(&["c"], &["d", "a/b/nested"]).unwrap();
    drop(first);
    // Waits, is moved on to its second root, waits again, gives up.
    std::thread::scope(|scope| {
        let queued = scope.spawn(|| lock.try_lock_for(&[], &["c", HELD], Duration::from_millis(20)).map(drop));
        while lock.snapshot().unwrap().waiters.is_empty() && !queued.is_finished() {}
        second.downgrade().unwrap();
        drop(second);
        let _ = queued.join().unwrap();
    });
    // Enough requests that the table is rewritten some times.
    for turn in 0..20 {
        let outer = lock.read(format!("e/{turn}")).unwrap();
        let inner = lock.write(format!("e/{turn}/x")).unwrap();
        drop((outer, inner));
    }
    // It buries a dead member: another one of this process, whose lifeline ends.
    let mut dead = ProcessTreeLock::open(&directory).unwrap();
    std::mem::forget(dead.write("f").unwrap());
    Arc::get_mut(&mut dead.member).unwrap().cut_lifeline();
    drop(lock.write("f").unwrap());
    std::mem::forget(dead);
    let _all = lock.lock(&["a", "b", "c", "d"], &["e"]).unwrap();
}

/// Puts back a table that was removed.
#[test]
#[ignore = "a part of the other tests"]
fn victim_without_table() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let lock = ProcessTreeLock::open(&directory).unwrap();
    std::fs::remove_file(directory.join("table")).unwrap();
    lock.member.look_again();
    drop(lock.write("a").unwrap());
}

fn use_until_there_is_a_table(lock: &ProcessTreeLock, directory: &Path) {
    while !directory.join("table").exists() {
        drop(lock.write("a").unwrap());
    }
}

/// Starts a process that dies at a step, unless it ends before.
fn start(victim: &str, directory: &Path, step: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("process::deaths::{victim}"), "--ignored", "--nocapture"]);
    command.env(DIRECTORY, directory).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.env(crash::STEP, step.to_string());
    command.spawn().unwrap()
}

/// Lets a process die at each step, and looks at what it leaves; returns the number of steps.
fn die_at_every_step(victim: &str, directory: &Path, look: impl Fn(u64)) -> u64 {
    for step in 0.. {
        let status = start(victim, directory, step).wait().unwrap();
        look(step);
        if status.success() {
            return step;
        }
        assert_eq!(status.signal(), Some(9), "step {step}: the victim failed by itself");
    }
    unreachable!("it ends some time")
}

/// The names of the files in the directory.
fn files(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// P1, while others have the lock open: one holds a sub-tree, and one waits for the victim.
#[test]
fn whoever_dies_at_any_step_lets_the_others_go_on() {
    let scratch = Scratch::new("deaths");
    let lock: ProcessTreeLock = ProcessTreeLock::open(&scratch.0).unwrap();
    let _held = lock.write(HELD).unwrap();
    let longest = std::cell::Cell::new(Duration::ZERO);
    let steps = die_at_every_step("victim", &scratch.0, |step| {
        let start = Instant::now();
        let all = lock.try_lock_for(&[], &["a", "b", "c", "d", "e", "f"], Duration::from_secs(5));
        drop(all.unwrap_or_else(|error| panic!("step {step}: {error}\n{}", lock.snapshot().unwrap())));
        longest.set(longest.get().max(start.elapsed()));
        let snapshot = lock.snapshot().unwrap();
        assert!(snapshot.holders.len() == 1 && snapshot.waiters.is_empty(), "step {step}: {snapshot}");
        // A victim that had nothing is in nobody's way. The next process that opens the lock buries it, and removes
        // its files.
        drop(ProcessTreeLock::open(&scratch.0).unwrap());
        let mut left = files(&scratch.0);
        left.retain(|name| name != "table" && name != "table.new" && name.split('.').next() != Some("m0"));
        assert!(left.is_empty(), "step {step}: {left:?}");
    });
    let longest = longest.get();
    eprintln!("died at {steps} steps; the others went on after {longest:?} at the latest");
    assert!(steps > 150, "only {steps} steps: the victim does not do what it should");
    assert!(longest < Duration::from_secs(1), "the others waited {longest:?}");
}

/// P1 and P4, if the victim was about to put back a table that was removed.
#[test]
fn whoever_dies_while_there_is_no_table_lets_the_others_go_on() {
    let scratch = Scratch::new("deaths-without-table");
    let lock: ProcessTreeLock = ProcessTreeLock::open(&scratch.0).unwrap();
    let _held = lock.write(HELD).unwrap();
    let steps = die_at_every_step("victim_without_table", &scratch.0, |step| {
        use_until_there_is_a_table(&lock, &scratch.0);
        drop(lock.try_lock(&[], &["a"]).unwrap_or_else(|error| panic!("step {step}: {error}")));
    });
    assert!(steps > 20, "only {steps} steps: the victim does not do what it should");
}

/// P1, if the victim was alone: the next process begins anew, whatever it finds.
#[test]
fn whoever_dies_alone_leaves_nothing_that_matters() {
    let scratch = Scratch::new("deaths-alone");
    let steps = die_at_every_step("victim", &scratch.0, |step| {
        let lock = ProcessTreeLock::open(&scratch.0).unwrap_or_else(|error| panic!("step {step}: {error}"));
        let snapshot = lock.snapshot().unwrap();
        assert!(snapshot.holders.is_empty() && snapshot.waiters.is_empty(), "step {step}: {snapshot}");
        drop(lock.try_lock(&[], &[""]).unwrap_or_else(|error| panic!("step {step}: {error}")));
        drop(lock);
        let left = files(&scratch.0);
        assert!(left == ["table"] || left == ["table", "table.new"], "step {step}: {left:?}");
    });
    eprintln!("died at {steps} steps, alone");
    assert!(steps > 150, "only {steps} steps: the victim does not do what it should");
}

/// P2: a member lives as long as its lifeline, even if the lifeline is all that a child has kept of what it
/// inherited.
#[test]
fn lifeline_alone_keeps_what_is_held() {
    let scratch = Scratch::new("lifeline");
    let child = ProcessTreeLock::open(&scratch.0).unwrap();
    let _held = child.write("a").unwrap();
    child.member.directory.unlock();
    let lock = ProcessTreeLock::open(&scratch.0).unwrap();
    assert!(lock.try_lock(&["a"], &[]).is_err());
    assert!(lock.try_lock(&["b"], &[]).is_ok());
}
