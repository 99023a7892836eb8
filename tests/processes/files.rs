//! The lock's files are removed, replaced, cut and written over while processes use them: that lets nobody in, and a
//! request that is refused says why (P4).
//!
//! A *scene*: one process holds a write of `a`, another reads `b` and has seen both; then something is done to the
//! files. A process that asks for `a` after that must not get it, whether it had the lock open or opens it now. When
//! all have gone, the next process begins anew.

use super::agent::{Agent, Home};
use crate::common::wait_until;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use rustix::fs::{CWD, FileType, FlockOperation, Mode, flock, mknodat};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use treelock::process::{FileError, FileProblem, Options, ProcessLockError, ProcessTreeLock, snapshot};

fn make_fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
}

/// The outcome of a request of another process.
#[derive(Debug, PartialEq)]
enum Said {
    Refused,
    Failed(String),
}

#[track_caller]
fn asks(what: &str, lock: &ProcessTreeLock, write: &str) -> Said {
    match lock.try_lock(&[], &[write]) {
        Ok(_) => panic!("{what}: two have {write}"),
        Err(ProcessLockError::WouldBlock) => Said::Refused,
        Err(ProcessLockError::File(error)) => Said::Failed(error.to_string()),
        Err(error) => panic!("{what}: {error}"),
    }
}

/// Opens the lock after all that had it open have closed it: what they left means nothing.
fn open_anew(home: &Home) -> Result<ProcessTreeLock, FileError> {
    let mut anew = ProcessTreeLock::open(home.path());
    wait_until("nobody has it open", || {
        // A child of another test keeps the lock for a moment, from its fork to its exec.
        let is_open =
            anew.as_ref().is_err_and(|error| matches!(error.problem(), FileProblem::Damaged | FileProblem::Removed));
        if is_open {
            anew = ProcessTreeLock::open(home.path());
        }
        !is_open
    });
    anew
}

/// See the header; returns the two outcomes: of the process that had the lock open, and of the one that opened it.
#[track_caller]
fn scene(what: &str, harm: impl FnOnce(&Home)) -> [Said; 2] {
    let home = Home::new();
    let (holder, reader) = (home.open(), home.open());
    // So that the table has changes before the last one.
    for round in 0..5 {
        drop(holder.write(format!("x/{round}")).unwrap());
    }
    let held = holder.write("a").unwrap();
    let read = reader.read("b").unwrap();
    // Both have a lifeline, and channels.
    let timed_out = reader.try_lock_for(&["a/c"], &[], Duration::from_millis(1)).map(drop);
    assert!(matches!(timed_out, Err(ProcessLockError::TimedOut)), "{timed_out:?}");
    harm(&home);
    let known = asks(what, &reader, "a/c");
    let late = match ProcessTreeLock::open(home.path()) {
        Ok(late) => {
            asks(what, &late, "a/c");
            asks(what, &late, "b")
        }
        Err(error) => Said::Failed(error.to_string()),
    };
    asks(what, &holder, "b/c");
    // The holder uses the lock once more, which may have repaired something.
    let _ = holder.try_lock(&[], &["x"]).map(drop);
    asks(what, &reader, "a");
    if let Ok(late) = ProcessTreeLock::open(home.path()) {
        asks(what, &late, "a");
        asks(what, &late, "b");
    }
    drop((held, read));
    drop((holder, reader));
    match open_anew(&home) {
        Ok(anew) => drop(anew.try_lock(&[], &["."]).unwrap_or_else(|error| panic!("{what}: afterwards: {error}"))),
        Err(error) => assert!(
            matches!(error.problem(), FileProblem::NotATable | FileProblem::OtherVersion(_) | FileProblem::Io { .. }),
            "{what}: afterwards: {error}"
        ),
    }
    [known, late]
}

/// The table is put back by any process that uses the lock soon after.
#[track_caller]
fn is_put_back(harm: impl Fn(&Home)) {
    scene("the table is gone", &harm);
    let home = Home::new();
    let (holder, user) = (home.open(), home.open());
    let _held = holder.write("a").unwrap();
    harm(&home);
    let harmed = Instant::now();
    let late = loop {
        drop(user.write("x").unwrap());
        match ProcessTreeLock::open(home.path()) {
            Ok(late) => break late,
            Err(error) => assert!(harmed.elapsed() < Duration::from_secs(10), "{error}"),
        }
    };
    assert_eq!(asks("the table is put back", &late, "a"), Said::Refused);
    assert_eq!(asks("the table is put back", &user, "a"), Said::Refused);
}

#[test]
fn removed_table_is_put_back() {
    is_put_back(|home| fs::remove_file(home.file("table")).unwrap());
}

#[test]
fn table_replaced_by_a_copy_lets_nobody_in() {
    is_put_back(|home| {
        fs::copy(home.file("table"), home.file("copy")).unwrap();
        fs::rename(home.file("copy"), home.file("table")).unwrap();
    });
}

#[test]
fn table_replaced_by_something_else_lets_nobody_in() {
    let table = |home: &Home| {
        fs::remove_file(home.file("table")).unwrap();
        home.file("table")
    };
    scene("a directory", |home| fs::create_dir(table(home)).unwrap());
    scene("a link to nothing", |home| symlink("/nowhere", table(home)).unwrap());
    scene("a link to a file", |home| {
        fs::write(home.file("elsewhere"), "mine").unwrap();
        symlink(home.file("elsewhere"), table(home)).unwrap();
    });
    scene("a FIFO", |home| make_fifo(&table(home)));
    scene("an empty file", |home| fs::write(table(home), "").unwrap());
    scene("some text", |home| fs::write(table(home), "text\n".repeat(1000)).unwrap());
}

/// The table of another lock knows other names.
#[test]
fn table_of_another_lock_lets_nobody_in() {
    let other = Home::new();
    let _open = other.open();
    scene("a copy of the table of another lock", |home| {
        fs::copy(other.file("table"), home.file("copy")).unwrap();
        fs::rename(home.file("copy"), home.file("table")).unwrap();
    });
    scene("the bytes of the table of another lock", |home| {
        fs::write(home.file("table"), fs::read(other.file("table")).unwrap()).unwrap();
    });
    let gone = Home::new();
    let lock = gone.open();
    scene("the table of another lock, moved", |home| fs::rename(gone.file("table"), home.file("table")).unwrap());
    drop(lock);
}

#[test]
fn cut_table_lets_nobody_in() {
    for length in [
        0, 1, 8, 12, 16, 63, 64, 67, 68, 72, 76, 127, 128, 130, 140, 141, 200, 255, 256, 257, 300, 500, 700, 1000,
        1500,
    ] {
        scene(&format!("cut to {length} bytes"), |home| {
            OpenOptions::new().write(true).open(home.file("table")).unwrap().set_len(length).unwrap();
        });
    }
}

#[test]
fn table_written_over_lets_nobody_in() {
    let mut random = SmallRng::seed_from_u64(7);
    for round in 0..120 {
        let place = match round % 3 {
            0 => random.random_range(0..240),
            _ => random.random_range(0..3000),
        };
        let mut bytes = vec![0; [1, 4, 12, 100, 4000][round % 5]];
        if round % 2 == 0 {
            random.fill_bytes(&mut bytes);
        }
        scene(&format!("{} bytes at {place}, zeros: {}", bytes.len(), round % 2 == 1), |home| {
            let table = OpenOptions::new().write(true).open(home.file("table")).unwrap();
            table.write_all_at(&bytes, place).unwrap();
        });
    }
    scene("all zeros", |home| {
        let length = fs::metadata(home.file("table")).unwrap().len() as usize;
        let table = OpenOptions::new().write(true).open(home.file("table")).unwrap();
        table.write_all_at(&vec![0; length], 0).unwrap();
    });
}

#[test]
fn removed_lifeline_lets_nobody_in() {
    scene("the holder's", |home| fs::remove_file(home.file("m0")).unwrap());
    scene("both", |home| ["m0", "m1"].iter().for_each(|name| fs::remove_file(home.file(name)).unwrap()));
}

/// As when a backup is restored: the bytes go into the same file, and all of them are the lock's own, but of an hour
/// ago.
#[test]
fn older_copy_written_over_the_table_lets_nobody_in() {
    let home = Home::new();
    let (holder, known, behind) = (home.open(), home.open(), home.open());
    let taken_before: Vec<_> = (0..50).map(|number| behind.write(format!("b/{number}")).unwrap()).collect();
    let copy = fs::read(home.file("table")).unwrap();
    let held = holder.write("a").unwrap();
    assert_eq!(asks("nothing yet", &known, "a"), Said::Refused);
    fs::write(home.file("table"), &copy).unwrap();
    asks("it has seen more than stands there", &known, "a");
    asks("it has seen no more than stands there", &behind, "a");
    for (number, taken) in taken_before.into_iter().enumerate() {
        assert!(taken.release().is_err(), "{number} has let go where nobody reads it");
    }
    asks("it has seen no more, and would have let go", &behind, "a");
    if let Ok(late) = ProcessTreeLock::open(home.path()) {
        asks("it has seen nothing else", &late, "a");
    }
    drop(held);
    drop((holder, known, behind));
    drop(open_anew(&home).unwrap().try_lock(&[], &["a"]).unwrap());
}

/// The same, if a release would let in a waiter.
#[test]
fn older_copy_written_over_the_table_moves_nobody() {
    let home = Home::new();
    let (holder, behind) = (home.open(), home.open());
    let mut waiter = Agent::new(&home);
    let before = behind.write("a").unwrap();
    waiter.waits("lock 1 w:a", &behind);
    let _more = behind.write("c").unwrap();
    let copy = fs::read(home.file("table")).unwrap();
    let _held = holder.write("b").unwrap();
    fs::write(home.file("table"), &copy).unwrap();
    assert!(before.release().is_err(), "it has let one in by a state that has passed");
    asks("it has seen no more, and has let go", &behind, "b");
}

/// The same, if the later change is a grant to a waiter, which another member wrote.
#[test]
fn older_copy_written_over_the_table_takes_no_grant_back() {
    // The order of roots is random in each lock.
    for _ in 0..10 {
        let home = Home::new();
        let (holder, behind) = (home.open(), home.open());
        let mut waiter = Agent::new(&home);
        let before = holder.write("a").unwrap();
        waiter.waits("lock 1 w:a w:b", &holder);
        let copy = fs::read(home.file("table")).unwrap();
        drop(before);
        waiter.is_done();
        // Only the process that was granted knows it.
        drop(holder);
        fs::write(home.file("table"), copy).unwrap();
        asks("it has seen no more than stands there", &behind, "b");
        if let Ok(late) = ProcessTreeLock::open(home.path()) {
            asks("it has seen nothing else", &late, "b");
        }
    }
}

/// The same, if the later change was lost with its member, and another one of the same length stands there now.
#[test]
fn older_copy_that_was_written_on_lets_nobody_in_who_had_read_more() {
    let home = Home::new();
    let behind = home.open();
    let (mut lost, mut next) = (Agent::new(&home), Agent::new(&home));
    let copy = fs::read(home.file("table")).unwrap();
    lost.does("lock 1 w:a");
    assert_eq!(asks("nothing yet", &behind, "a"), Said::Refused);
    lost.kill();
    fs::write(home.file("table"), copy).unwrap();
    next.does("lock 1 w:a");
    asks("it has read what is no more", &behind, "a");
}

/// The same, if the later change is a release: a process that would wait for it for ever gets an error.
#[test]
fn older_copy_written_over_the_table_makes_nobody_wait_for_what_is_released() {
    let home = Home::new();
    let (holder, behind) = (home.open(), home.open());
    let held = holder.write("a").unwrap();
    let copy = fs::read(home.file("table")).unwrap();
    drop(held);
    fs::write(home.file("table"), copy).unwrap();
    // Any other change meanwhile would hide it.
    assert!(behind.try_lock(&[], &["something long that is written over what is missing"]).is_err());
    assert!(ProcessTreeLock::open(home.path()).is_err());
    for _ in 0..2 {
        let error = behind.try_lock_for(&[], &["a"], Duration::from_secs(5)).map(drop).unwrap_err();
        assert!(matches!(error, ProcessLockError::File(_)), "{error}");
        let error = behind.try_lock(&[], &["a"]).map(drop).unwrap_err();
        assert!(matches!(error, ProcessLockError::File(_)), "{error}");
    }
}

/// The same, if others have gone on without the changes that were lost: the copy that comes back is longer than what
/// they have.
#[test]
fn copy_of_what_was_lost_lets_nobody_in() {
    let home = Home::new();
    let behind = home.open();
    let mut lost = Agent::new(&home);
    let before = fs::read(home.file("table")).unwrap();
    for guard in 1..20 {
        lost.does(&format!("lock {guard} r:c"));
    }
    let copy = fs::read(home.file("table")).unwrap();
    lost.kill();
    fs::write(home.file("table"), before).unwrap();
    let _held = behind.write("b").unwrap();
    fs::write(home.file("table"), copy).unwrap();
    if let Ok(late) = ProcessTreeLock::open(home.path()) {
        asks("it has seen nothing else", &late, "b");
    }
    asks("it has gone on", &behind, "d");
}

/// The same, for the process that has written last, and releases.
#[test]
fn older_copy_written_over_the_table_takes_no_release() {
    let home = Home::new();
    let (holder, behind) = (home.open(), home.open());
    let before = behind.write("b").unwrap();
    let copy = fs::read(home.file("table")).unwrap();
    let _held = holder.write("a").unwrap();
    fs::write(home.file("table"), copy).unwrap();
    assert!(before.release().is_err(), "it has let go where nobody reads it");
}

/// The same, for an observer.
#[test]
fn older_copy_written_over_the_table_is_shown_to_nobody() {
    let home = Home::new();
    let (holder, behind) = (home.open(), home.open());
    let copy = fs::read(home.file("table")).unwrap();
    let _held = holder.write("a").unwrap();
    assert_eq!(behind.snapshot().unwrap().holders.len(), 1);
    fs::write(home.file("table"), copy).unwrap();
    for looked in [behind.snapshot(), holder.snapshot(), snapshot(home.path())] {
        let error = looked.map(|snapshot| snapshot.to_string()).unwrap_err();
        assert!(matches!(error.problem(), FileProblem::Damaged), "{error}");
    }
}

/// A length that was written where the next change is to stand, in a file that could be that long.
#[test]
fn scribbled_length_takes_no_memory() {
    let home = Home::new();
    let (holder, lock) = (home.open(), home.open());
    let _held = holder.write("a").unwrap();
    let table = OpenOptions::new().read(true).write(true).open(home.file("table")).unwrap();
    let bytes = fs::read(home.file("table")).unwrap();
    let end = bytes.iter().rposition(|&byte| byte != 0).unwrap() as u64 + 1;
    table.set_len(6 << 30).unwrap();
    table.write_all_at(&[0xFF; 8], end).unwrap();
    let peak = || -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    let before = peak();
    asks("something is written there", &lock, "a");
    drop(lock.snapshot());
    assert!(peak() - before < 1 << 20, "it took {} kB", peak() - before);
}

/// A process that cannot open the lock leaves everything as it was.
#[test]
fn older_copy_written_over_the_table_costs_nobody_its_lifeline() {
    let home = Home::new();
    let _first = home.open();
    let copy = fs::read(home.file("table")).unwrap();
    let _second = home.open();
    let inode = || fs::metadata(home.file("m1")).unwrap().ino();
    let before = inode();
    fs::write(home.file("table"), copy).unwrap();
    assert!(ProcessTreeLock::open(home.path()).is_err());
    assert_eq!(before, inode());
}

/// No process writes to the file that stands there now; that must not be taken for the death of the holder.
#[test]
fn replaced_lifeline_lets_nobody_in() {
    let lifeline = |home: &Home| {
        fs::remove_file(home.file("m0")).unwrap();
        home.file("m0")
    };
    scene("an empty file", |home| fs::write(lifeline(home), "").unwrap());
    scene("a file", |home| fs::write(lifeline(home), "m0").unwrap());
    scene("a directory", |home| fs::create_dir(lifeline(home)).unwrap());
    scene("a link", |home| symlink("m1", lifeline(home)).unwrap());
    scene("a FIFO, as `cp -a` copies it", |home| make_fifo(&lifeline(home)));
}

/// Nor for a process that opens the lock only afterwards.
#[test]
fn replaced_lifeline_lets_no_late_comer_in() {
    let home = Home::new();
    let holder = home.open();
    let _held = holder.write("a").unwrap();
    fs::remove_file(home.file("m0")).unwrap();
    make_fifo(&home.file("m0"));
    if let Ok(late) = ProcessTreeLock::open(home.path()) {
        asks("the lifeline is another FIFO", &late, "a");
    }
}

/// The wake-up is lost; the waiter looks by itself.
#[test]
fn waiter_whose_channel_is_removed_is_granted_all_the_same() {
    for replace in [false, true] {
        let home = Home::new();
        let lock = home.open();
        let mut waiter = Agent::new(&home);
        for _ in 0..2 {
            let guard = lock.write("a").unwrap();
            waiter.waits("lock 1 w:a", &lock);
            let _ = fs::remove_file(home.file("m1.1"));
            if replace {
                fs::write(home.file("m1.1"), "").unwrap();
            }
            drop(guard);
            waiter.is_done();
            waiter.does("drop 1");
        }
    }
}

/// A channel that is gone is made anew for the next wait, which is fast again (P3).
#[test]
fn removed_channel_is_put_back_for_the_next_wait() {
    let home = Home::new();
    let lock = home.open();
    let mut waiter = Agent::new(&home);
    let hand_over = |waiter: &mut Agent| {
        let guard = lock.write("a").unwrap();
        waiter.waits("lock 1 w:a", &lock);
        let released = Instant::now();
        drop(guard);
        waiter.is_done();
        let time = released.elapsed();
        waiter.does("drop 1");
        time
    };
    hand_over(&mut waiter);
    fs::remove_file(home.file("m1.1")).unwrap();
    hand_over(&mut waiter);
    let mut times: Vec<_> = (0..5).map(|_| hand_over(&mut waiter)).collect();
    times.sort();
    assert!(times[2] < std::time::Duration::from_millis(300), "{times:?}");
}

#[test]
fn all_files_removed_lets_nobody_in() {
    let all = |home: &Home| home.files().iter().for_each(|name| fs::remove_file(home.file(name)).unwrap());
    scene("rm dir/*", all);
    // The same for a process that has not looked since.
    let home = Home::new();
    let (holder, behind) = (home.open(), home.open());
    for _ in 0..3000 {
        drop(holder.write("x").unwrap());
    }
    let _held = holder.write("a").unwrap();
    all(&home);
    asks("rm dir/*, and it is behind", &behind, "a/b");
    if let Ok(late) = ProcessTreeLock::open(home.path()) {
        asks("rm dir/*, and it comes late", &late, "a/b");
    }
}

/// To look meanwhile does no harm, and shows what it showed before.
#[test]
fn snapshot_survives_a_removed_table() {
    let home = Home::new();
    let lock = home.open();
    let _held = lock.write("a").unwrap();
    fs::remove_file(home.file("table")).unwrap();
    assert_eq!(lock.snapshot().unwrap().holders.len(), 1);
    drop(lock.write("b").unwrap());
    home.files().iter().for_each(|name| fs::remove_file(home.file(name)).unwrap());
    let error = snapshot(home.path()).map(|seen| seen.to_string()).unwrap_err();
    assert!(matches!(error.problem(), FileProblem::Removed), "somebody has the lock open: {error}");
}

/// As by `ln` before and `mv` afterwards: the table that has the name again names a next one, which is gone.
#[test]
fn old_table_put_back_in_place_of_the_next_one_is_shown_to_nobody() {
    let home = Home::new();
    let lock = home.open();
    fs::hard_link(home.file("table"), home.file("kept")).unwrap();
    let inode = |name: &str| fs::metadata(home.file(name)).unwrap().ino();
    while inode("table") == inode("kept") {
        drop(lock.write("x").unwrap());
    }
    let _held = lock.write("a").unwrap();
    fs::rename(home.file("kept"), home.file("table")).unwrap();
    let (sender, looked) = channel();
    let path = home.path().to_owned();
    std::thread::spawn(move || sender.send(snapshot(path).map(|seen| seen.to_string())));
    let looked = looked.recv_timeout(Duration::from_secs(10)).expect("it looks without end");
    let error = looked.unwrap_err();
    assert!(matches!(error.problem(), FileProblem::Removed), "{error}");
}

#[test]
fn removed_directory_is_a_clear_error() {
    let home = Home::new();
    let lock = home.open();
    let guard = lock.write("a").unwrap();
    fs::remove_dir_all(home.path()).unwrap();
    wait_until("it is noticed", || lock.try_lock(&[], &["b"]).is_err());
    let errors = [lock.write("b").unwrap_err().to_string(), lock.snapshot().unwrap_err().to_string()];
    for error in errors {
        assert!(error.contains("removed") && error.contains(&*home.path().to_string_lossy()), "{error}");
    }
    assert!(guard.release().is_err());
}

/// The holder is all right and goes on; it and the process that came late agree.
#[test]
fn removed_table_is_put_back_by_who_needs_it() {
    let home = Home::new();
    let mut holder = Agent::new(&home);
    let mut waiter = Agent::new(&home);
    let lock = home.open();
    holder.does("lock 1 w:a");
    waiter.waits("lock 1 w:a", &lock);
    fs::remove_file(home.file("table")).unwrap();
    let released = Instant::now();
    holder.does("drop 1");
    waiter.is_done();
    while !home.file("table").exists() {
        assert!(released.elapsed() < Duration::from_secs(10), "nobody puts it back");
        drop(lock.read("b").unwrap());
    }
    let mut late = Agent::new(&home);
    late.is_refused("try 1 r:a", "WouldBlock");
}

/// The first format had ids of nodes that were not specified.
#[test]
fn table_of_another_format_is_refused_and_left_alone() {
    for format in [1_u32, 77] {
        let home = Home::new();
        drop(home.open());
        let mut bytes = fs::read(home.file("table")).unwrap();
        bytes[8..12].copy_from_slice(&format.to_le_bytes());
        fs::write(home.file("table"), &bytes).unwrap();
        let error = ProcessTreeLock::open(home.path()).unwrap_err();
        assert!(matches!(error.problem(), FileProblem::OtherVersion(found) if *found == format), "{error}");
        let told = error.to_string();
        assert!(told.contains(&format!("format {format}")) && told.contains("table"), "{told}");
        assert!(fs::read(home.file("table")).unwrap() == bytes);
    }
}

#[test]
fn foreign_file_of_that_name_is_refused_and_left_alone() {
    let home = Home::new();
    fs::write(home.file("table"), "name;price\napple;3\n").unwrap();
    let error = ProcessTreeLock::open(home.path()).unwrap_err();
    assert!(matches!(error.problem(), FileProblem::NotATable), "{error}");
    assert_eq!(fs::read_to_string(home.file("table")).unwrap(), "name;price\napple;3\n");
}

/// Callers look at the kind; a caller that looks closer finds the error itself.
#[test]
fn io_error_has_the_kind_that_fits_and_keeps_what_it_was() {
    use std::io::{Error, ErrorKind};
    let home = Home::new();
    let lock = home.open();
    let refused = |error: ProcessLockError, kind| {
        let text = error.to_string();
        let wrapped = Error::from(error);
        assert_eq!((wrapped.kind(), wrapped.to_string()), (kind, text));
        assert!(wrapped.downcast::<ProcessLockError>().is_ok());
    };
    let _held = lock.write("a").unwrap();
    refused(lock.try_read_arc("a").unwrap_err(), ErrorKind::WouldBlock);
    refused(lock.try_write("../a").unwrap_err(), ErrorKind::InvalidInput);
    refused(lock.read_arc("a").unwrap_err(), ErrorKind::Deadlock);
    refused(home.open().try_read_for("a", Duration::from_millis(1)).unwrap_err(), ErrorKind::TimedOut);

    let other = Home::new();
    fs::write(other.file("table"), "name;price\napple;3\n").unwrap();
    let foreign = Error::from(ProcessTreeLock::open(other.path()).unwrap_err());
    assert_eq!(foreign.kind(), ErrorKind::InvalidData);
    let nowhere = ProcessTreeLock::open(other.file("table")).unwrap_err();
    let FileProblem::Io { source, .. } = nowhere.problem() else { panic!("{nowhere}") };
    let kind = source.kind();
    assert_eq!(Error::from(nowhere).kind(), kind);
}

/// The lock is opened in a directory that is not its own, by mistake.
#[test]
fn foreign_files_with_names_like_those_of_the_lock_are_left_alone() {
    let home = Home::new();
    let names = ["m1", "m2.csv", "m3.1", "m4.tar.gz", "music", "m"];
    names.iter().for_each(|name| fs::write(home.file(name), "mine").unwrap());
    let lock = home.open();
    drop(lock.write("a").unwrap());
    drop(lock);
    let left: Vec<_> = names.iter().filter(|name| !home.file(name).exists()).collect();
    assert!(left.is_empty(), "these are gone: {left:?}");
}

/// Nor a file that has the very name of a file that is to be made.
#[test]
fn foreign_file_in_the_place_of_a_lifeline_is_a_clear_error_and_left_alone() {
    let home = Home::new();
    fs::write(home.file("m0"), "mine").unwrap();
    let error = ProcessTreeLock::open(home.path()).unwrap_err();
    assert!(error.to_string().contains("m0"), "{error}");
    assert_eq!(fs::read_to_string(home.file("m0")).unwrap(), "mine");
    fs::remove_file(home.file("m0")).unwrap();
    drop(home.open().write("a").unwrap());
}

/// As a file system may leave it after a power failure.
#[test]
fn table_of_zeros_that_nobody_uses_is_begun_anew() {
    let home = Home::new();
    fs::write(home.file("table"), vec![0; 64 << 10]).unwrap();
    let lock = ProcessTreeLock::open(home.path()).unwrap_or_else(|error| panic!("{error}"));
    drop(lock.try_lock(&[], &["a"]).unwrap());
}

/// A table that is cut or damaged while nobody uses it means nothing, like any other.
#[test]
fn damaged_table_that_nobody_uses_is_begun_anew() {
    let home = Home::new();
    for length in [0, 40, 100, 200, 300] {
        drop(home.open());
        let table = OpenOptions::new().write(true).open(home.file("table")).unwrap();
        table.set_len(length).unwrap();
        drop(home.open().try_lock(&[], &["a"]).unwrap());
        fs::write(home.file("table.new"), "left over").unwrap();
    }
}

/// Permissions do not bind root, so another user tries.
#[test]
fn directory_without_rights_is_a_clear_error() {
    let home = Home::new();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for used in [false, true] {
        let _lock = used.then(|| home.open());
        if let Some(opened) = Agent::of_nobody(&home) {
            let error = opened.err().expect("nobody has no rights");
            assert!(error.contains("ermission denied") && error.contains("treelock-processes"), "{error}");
        }
    }
}

/// In a sticky directory users cannot replace each other's files; its owner can.
#[test]
fn sticky_directory_of_another_user_is_a_clear_error() {
    let home = Home::new();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    drop(home.open().write("a").unwrap());
    if let Some(opened) = Agent::of_nobody(&home) {
        let error = opened.err().expect("it is another's");
        assert!(error.contains("sticky") && error.contains(&*home.path().to_string_lossy()), "{error}");
    }
}

/// As a process leaves it that dies when it begins: no member lives, and there is no table.
#[test]
fn directory_that_somebody_else_begins_is_waited_for() {
    let home = Home::new();
    let directory = fs::File::open(home.path()).unwrap();
    flock(&directory, FlockOperation::LockShared).unwrap();
    let home = &home;
    std::thread::scope(|scope| {
        let opened = scope.spawn(|| ProcessTreeLock::open(home.path()));
        let asked = Instant::now();
        wait_until("it has seen that there is no table", || asked.elapsed() > Duration::from_millis(3));
        flock(&directory, FlockOperation::Unlock).unwrap();
        drop(opened.join().unwrap().unwrap().write("a").unwrap());
    });
}

/// A user who may write to the directory may lock, and is excluded like all others.
#[test]
fn two_users_share_a_directory_that_both_may_write_to() {
    let home = Home::new();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let lock = home.open();
    let Some(nobody) = Agent::of_nobody(&home) else { return };
    let mut nobody = nobody.unwrap();
    nobody.does("lock 1 w:a");
    assert!(matches!(lock.try_lock(&["a"], &[]), Err(ProcessLockError::WouldBlock)));
    let mine = lock.write("b").unwrap();
    nobody.waits("lock 2 w:b", &lock);
    assert_eq!(lock.snapshot().unwrap().waiters[0].process.as_ref().unwrap().user, "nobody");
    drop(mine);
    nobody.is_done();
    // Each rewrites the table from time to time, with permissions for the other.
    for _ in 0..2000 {
        drop(lock.write("x").unwrap());
    }
    nobody.does("drop 1");
    nobody.send("stream 0 w:y");
    assert_eq!(nobody.answer(), "streams");
    for _ in 0..1000 {
        drop(lock.write("y").unwrap());
    }
    nobody.does("stop");
    nobody.kill();
    drop(lock.try_lock(&[], &["."]).unwrap());
}

/// A file where the directory should be, and a directory that does not exist but can be made.
#[test]
fn directory_is_made_and_a_file_in_its_place_is_a_clear_error() {
    let home = Home::new();
    let lock = ProcessTreeLock::open(home.file("a/b/c")).unwrap();
    drop(lock.write("x").unwrap());
    fs::write(home.file("file"), "").unwrap();
    let error = Options::new().open::<str>(home.file("file")).unwrap_err();
    assert!(error.to_string().contains("file"), "{error}");
}
