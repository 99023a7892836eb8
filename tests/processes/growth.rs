//! Nothing leaks for ever while one process stays: neither files, nor open files, nor the table (G6, P1).

use super::agent::{Agent, Home};
use crate::common::wait_until;
use treelock::process::ProcessTreeLock;

/// How many of the lock's files this process has open; removed ones too.
fn open_files(home: &Home) -> usize {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    files.filter(|file| std::fs::read_link(file.path()).is_ok_and(|name| name.starts_with(home.path()))).count()
}

/// Enough rounds for all that is done only from time to time.
fn use_it(lock: &ProcessTreeLock) {
    for _ in 0..2000 {
        drop(lock.write("x").unwrap());
    }
}

/// P1: dead members that held nothing are in nobody's way, and are removed all the same.
#[test]
fn processes_killed_while_they_hold_nothing_leave_nothing() {
    let home = Home::new();
    let lock = home.open();
    for _ in 0..5 {
        let mut agent = Agent::new(&home);
        agent.does("lock 1 w:a");
        agent.does("drop 1");
        agent.kill();
    }
    use_it(&lock);
    drop(home.open());
    assert_eq!(home.files(), ["m0", "table"]);
}

/// P1: also if no request ever waits for them.
#[test]
fn what_killed_processes_held_is_gone_in_the_end() {
    let home = Home::new();
    let lock = home.open();
    for place in 0..5 {
        let mut agent = Agent::new(&home);
        agent.does(&format!("lock 1 w:held/{place}"));
        agent.kill();
    }
    use_it(&lock);
    drop(home.open());
    assert_eq!(home.files(), ["m0", "table"]);
}

/// The lifeline of a member that this process waited for, or tried to pass, is not kept open after that member has
/// closed the lock.
#[test]
fn open_files_do_not_grow_with_those_who_came_and_went() {
    let home = Home::new();
    let lock = home.open();
    let contend = || {
        let other = home.open();
        let guard = other.write("a").unwrap();
        assert!(lock.try_lock(&[], &["a"]).is_err());
        drop(guard);
        drop(other);
        drop(lock.write("a").unwrap());
    };
    contend();
    let before = open_files(&home);
    (0..100).for_each(|_| contend());
    let grown = open_files(&home).saturating_sub(before);
    assert!(grown < 50, "{grown} more files are open");
}

/// G6: a crowd of threads that waited at one moment leaves a few FIFOs for the next waiters, and not one each.
#[test]
fn channels_do_not_stay_as_many_as_ever_waited_at_once() {
    const MANY: usize = 100;
    let home = Home::new();
    let lock = home.open();
    let held = lock.write("a").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..MANY {
            scope.spawn(|| drop(lock.write("a").unwrap()));
        }
        wait_until("all wait", || lock.snapshot().unwrap().waiters.len() == MANY);
        drop(held);
    });
    assert!(home.files().len() < 40, "{:?}", home.files());
    assert!(open_files(&home) < 40, "{} files are open", open_files(&home));
}

/// Nor are the lifelines of the members that were there when this process came.
#[test]
fn opening_keeps_no_files_of_others_open() {
    let home = Home::new();
    let others: Vec<_> = (0..40).map(|_| home.open()).collect();
    let before = open_files(&home);
    let _lock = home.open();
    let grown = open_files(&home) - before;
    assert!(grown < 10, "{grown} files among {} others", others.len());
}

/// Short-lived processes that open the lock, use it once and go, while one keeps it open and does nothing.
#[test]
fn table_does_not_grow_with_those_who_came_and_went() {
    let home = Home::new();
    let _idle = home.open();
    for _ in 0..1000 {
        drop(home.open().write("a").unwrap());
    }
    let size = std::fs::metadata(home.file("table")).unwrap().len();
    assert!(size <= 128 << 10, "the table has {size} bytes");
    assert_eq!(home.files(), ["m0", "table"]);
}

/// G6: after a crowd, the table is small again.
#[test]
fn table_shrinks_after_many_were_held() {
    let home = Home::new();
    let lock = home.open();
    let held: Vec<_> = (0..2000).map(|place| lock.write(format!("held/{place}")).unwrap()).collect();
    drop(held);
    for _ in 0..8000 {
        drop(lock.write("x").unwrap());
    }
    let size = std::fs::metadata(home.file("table")).unwrap().len();
    assert!(size <= 256 << 10, "the table has {size} bytes");
}
