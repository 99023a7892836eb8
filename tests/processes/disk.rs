//! Disks that are full, and file systems that cannot allocate space ahead (P4). These tests mount, which only root
//! may; otherwise they are skipped.

use super::agent::Home;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use treelock::process::{FileProblem, ProcessLockError, ProcessTreeLock};

/// A file system that is mounted until this is dropped.
struct Mounted(Home);

impl Mounted {
    fn new(kind: &str, options: &str) -> Option<Self> {
        let home = Home::new();
        let mount = Command::new("mount").args(["-t", kind, "-o", options, kind]).arg(home.path()).output();
        if mount.is_ok_and(|output| output.status.success()) {
            return Some(Mounted(home));
        }
        eprintln!("skipped: {kind} cannot be mounted here");
        None
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn fill(file: &Path) {
    let mut file = fs::File::create(file).unwrap();
    while file.write_all(&[7; 1024]).is_ok() {}
}

fn is_full(error: &ProcessLockError) -> bool {
    let ProcessLockError::File(error) = error else { return false };
    matches!(error.problem(), FileProblem::Io { source, .. } if source.raw_os_error() == Some(28))
}

/// P4, invariant 5 of the journal.
#[test]
fn full_disk_fails_requests_and_not_releases() {
    let Some(mounted) = Mounted::new("tmpfs", "size=256k") else { return };
    let home = &mounted.0;
    let (lock, other) = (home.open(), home.open());
    let read = other.read("read").unwrap();
    fill(&home.file("filler"));
    let mut guards = Vec::new();
    let error = loop {
        match lock.try_lock(&[], &[format!("a/{}", guards.len())]) {
            Ok(guard) => guards.push(guard),
            Err(error) => break error,
        }
        assert!(guards.len() < 10_000);
    };
    assert!(is_full(&error), "{error}");
    eprintln!("{} guards until the disk was full: {error}", guards.len());
    assert!(matches!(other.try_lock(&["a/0"], &[]), Err(ProcessLockError::WouldBlock)));
    // Members that die or leave release what they have as well.
    guards.drain(..10).for_each(|guard| guard.release().unwrap());
    read.release().unwrap();
    drop(other);
    guards.into_iter().for_each(|guard| guard.release().unwrap());
    let opened = ProcessTreeLock::open(home.path());
    eprintln!("to open it now: {:?}", opened.as_ref().map(drop).map_err(ToString::to_string));
    drop(opened);
    fs::remove_file(home.file("filler")).unwrap();
    drop(lock.try_lock(&[], &["."]).unwrap());
    let other = home.open();
    drop(other.try_lock(&[], &["."]).unwrap());
    assert!(lock.snapshot().unwrap().holders.is_empty());
}

/// A disk that is full from the beginning is a clear error.
#[test]
fn full_disk_is_a_clear_error_when_the_lock_is_opened() {
    let Some(mounted) = Mounted::new("tmpfs", "size=64k") else { return };
    fill(&mounted.0.file("filler"));
    let error = ProcessLockError::from(ProcessTreeLock::open(mounted.0.path()).unwrap_err());
    assert!(is_full(&error), "{error}");
}

/// Where there is no `fallocate`, as on ramfs: a member does not overwrite what others have written meanwhile.
#[test]
fn file_system_without_fallocate_loses_nothing() {
    let Some(mounted) = Mounted::new("ramfs", "mode=755") else { return };
    let home = &mounted.0;
    let (one, other) = (home.open(), home.open());
    // Enough is held that the table gets long before it is written anew, and others are far behind.
    let held: Vec<_> = (0..400).map(|place| one.write(format!("held/{place}")).unwrap()).collect();
    drop(other.write("x").unwrap());
    for round in 0..3000 {
        drop(one.write(format!("x/{round}")).unwrap());
        if round % 600 == 599 {
            drop(other.write("x").unwrap());
            let late = ProcessTreeLock::open(home.path()).unwrap_or_else(|error| panic!("round {round}: {error}"));
            assert!(matches!(late.try_lock(&["held/7"], &[]), Err(ProcessLockError::WouldBlock)));
        }
    }
    drop(held);
    drop(other.try_lock(&[], &["."]).unwrap());
}
