//! Writes over the files of a lock between processes, also with older copies of themselves, and cuts, removes and
//! replaces them while three members use the lock. Whatever comes of it, no request is granted beside one that it
//! conflicts with (G1, P4).
//!
//! ```sh
//! cargo fuzz run -s none scribbles -- -max_total_time=25 -timeout=20
//! ```
//!
//! # Input
//!
//! Bytes of any kind: one for the operation, and one or two for its place and its data.
//!
//! # What is checked
//!
//! 1. A guard is granted only if no guard that is alive conflicts with it, by plain overlap of paths.
//! 2. Requests and openings end with a guard or an error, and none panics.
//! 3. When all members have closed the lock, the next one begins anew, or says that the file is not treelock's.
//!
//! The members are in one process, which makes no difference to them: each has its own files open, and excludes the
//! others.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::Cell;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use treelock::process::{ArcProcessTreeLockGuard, FileProblem, ProcessTreeLock};

const PATHS: [&str; 6] = ["", "a", "a/b", "a/b/c", "a/d", "e"];

struct Held {
    path: &'static str,
    writes: bool,
    _guard: ArcProcessTreeLockGuard,
}

/// Compared by their text alone.
fn overlap(one: &str, other: &str) -> bool {
    let below = |path: &str, root: &str| root.is_empty() || path == root || path.starts_with(&format!("{root}/"));
    below(one, other) || below(other, one)
}

/// An operation that fails on the files is skipped.
fn scribble(directory: &Path, what: u8, place: u8, value: u8) {
    let table = directory.join("table");
    let Ok(file) = OpenOptions::new().read(true).write(true).open(&table) else { return };
    // The head, the changes as far as a short history reaches, and the last changes.
    let place = match place {
        0..64 => u64::from(place) * 2,
        64..160 => 68 + (u64::from(place) - 64) * 23,
        _ => {
            let end = fs::read(&table).unwrap_or_default().iter().rposition(|&byte| byte != 0).unwrap_or(0);
            (end as u64 + 10).saturating_sub(u64::from(place) - 160)
        }
    };
    let _ = match what % 8 {
        0 => file.write_all_at(&[value], place),
        1 => file.write_all_at(&vec![0; usize::from(value)], place),
        2 => file.write_all_at(&vec![value; 64], place),
        3 => file.set_len(place),
        4 => fs::remove_file(&table),
        5 => fs::copy(&table, directory.join("copy")).and_then(|_| fs::rename(directory.join("copy"), &table)),
        6 => fs::write(&table, [value; 300]),
        _ => fs::remove_file(directory.join(format!("m{}", value % 8))),
    };
}

fuzz_target!(|bytes: &[u8]| {
    thread_local!(static RUNS: Cell<u64> = const { Cell::new(0) });
    let run = RUNS.replace(RUNS.get() + 1);
    let parent = if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
    let directory = PathBuf::from(format!("{parent}/treelock-scribbles-{}-{run}", std::process::id()));
    let mut members: [Option<ProcessTreeLock>; 3] = [const { None }; 3];
    let mut held: Vec<Held> = Vec::new();
    let mut backup = Vec::new();
    let mut bytes = bytes.iter().copied().take(300);
    while let Some(order) = bytes.next() {
        let (place, value) = (bytes.next().unwrap_or(0), order / 8);
        match order % 8 {
            0 => members[usize::from(place) % 3] = ProcessTreeLock::open(&directory).ok(),
            1..5 => {
                let path = PATHS[usize::from(place) % PATHS.len()];
                let Some(member) = &members[usize::from(value) % 3] else { continue };
                let writes = order % 2 == 0;
                let tried =
                    if writes { member.try_lock_arc(&[], &[path]) } else { member.try_lock_arc(&[path], &[]) };
                if let Ok(guard) = tried {
                    let conflicts = |other: &&Held| (writes || other.writes) && overlap(path, other.path);
                    if let Some(other) = held.iter().find(conflicts) {
                        panic!("{path:?} is granted beside {:?}", other.path);
                    }
                    held.push(Held { path, writes, _guard: guard });
                }
            }
            5 if !held.is_empty() => drop(held.swap_remove(usize::from(place) % held.len())),
            6 => scribble(&directory, value, place, bytes.next().unwrap_or(0)),
            7 if value % 2 == 0 => backup = fs::read(directory.join("table")).unwrap_or_default(),
            // Into the same file, as `cp` does.
            7 if directory.join("table").exists() => drop(fs::write(directory.join("table"), &backup)),
            _ => {}
        }
    }
    drop(held);
    drop(members);
    match ProcessTreeLock::open(&directory) {
        Ok(lock) => drop(lock.try_lock(&[], &[""]).expect("nobody else has it open")),
        Err(error) => {
            let foreign = matches!(error.problem(), FileProblem::NotATable | FileProblem::OtherVersion(_));
            assert!(foreign || !directory.exists(), "{error}");
        }
    }
    let _ = fs::remove_dir_all(&directory);
});
