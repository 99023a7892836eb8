//! Explicit owners: what they nest, hand on and wait for.
#![cfg(not(feature = "model"))]

mod common;

use common::{LIMIT, Other, admits, join, join_all, report_of, spawn, wait_until_waiting};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Barrier};
use std::time::Duration;
use treelock::{LockError, LockOwner};

#[test]
fn an_owner_does_not_wait_for_itself_and_excludes_its_thread() {
    let lock = common::new();
    let mut owner = lock.owner();
    let reading = owner.lock(&["a"], &[]).unwrap();
    let writing = owner.try_lock(&[], &["a/b"]).unwrap();
    assert!(lock.try_lock(&["a/b"], &[]).is_err(), "the thread is another owner");
    assert!(lock.owner().try_lock(&["a/b"], &[]).is_err(), "and so is another one that it made");
    owner.release(writing);
    assert!(lock.try_lock(&["a/b"], &[]).is_ok() && lock.try_lock(&[], &["a"]).is_err());
    owner.release(reading);
    assert!(admits(&lock, &[], &[""]));
}

#[test]
fn an_owner_asks_for_one_path_without_a_list() {
    let lock = common::new();
    let other = Other::holds(&lock, &["c"], &[]);
    let mut owner = lock.owner();
    let held = [owner.read("a"), owner.write("a/b"), owner.try_read("c"), owner.try_write("d")].map(Result::unwrap);
    assert!(admits(&lock, &["a/c", "c"], &[]) && !admits(&lock, &[], &["a/c"]) && !admits(&lock, &["a/b"], &[]));
    assert!(!admits(&lock, &["d"], &[]));
    assert!(matches!(owner.try_write("c"), Err(LockError::WouldBlock)));
    let soon = Duration::from_millis(1);
    assert!(matches!(owner.try_write_for("c", soon), Err(LockError::TimedOut)));
    let [read, write] = [owner.try_read_for("c", soon), owner.try_write_for("e", soon)].map(Result::unwrap);
    assert!(admits(&lock, &["c"], &[]) && !admits(&lock, &["e"], &[]));
    held.into_iter().chain([read, write]).for_each(|held| owner.release(held));
    other.releases();
    assert!(admits(&lock, &[], &[""]));
}

/// What it holds by other requests it still holds, and a root that lay in a released one comes back.
#[test]
fn an_owner_releases_roots_of_a_request() {
    let lock = common::new();
    let mut owner = lock.owner();
    let reading = owner.read("a").unwrap();
    let held = owner.lock(&["b/c"], &["a/b", "b", "c"]).unwrap();
    owner.release_roots(&held, &["b", "a/b"]).unwrap();
    assert!(admits(&lock, &["a", "b"], &["b/d"]) && !admits(&lock, &[], &["a/b"]) && !admits(&lock, &[], &["b/c"]));
    let refused = owner.release_roots(&held, &["c/d"]);
    assert!(refused.unwrap_err().to_string().contains("c/d"));
    assert!(!admits(&lock, &["c"], &[]));
    owner.release(held);
    assert!(admits(&lock, &[], &["b", "c"]) && !admits(&lock, &[], &["a"]));
    owner.release(reading);
    assert!(admits(&lock, &[], &[""]));
}

#[test]
fn what_an_owner_holds_goes_where_it_goes() {
    let lock = common::new();
    let mut owner = lock.owner();
    let _first = owner.lock(&[], &["a"]).unwrap();
    let mut owner = join(spawn("other", move || {
        let second = owner.try_lock_for(&[], &["a", "b"], LIMIT).unwrap();
        owner.downgrade(&second);
        (owner, second)
    }))
    .0;
    assert!(!admits(&lock, &["a"], &[]), "what it wrote first it still writes");
    assert!(admits(&lock, &["b"], &[]) && !admits(&lock, &[], &["b"]));
    let third = owner.try_lock(&[], &["b"]).unwrap();
    owner.release(third);
    drop(owner);
    assert!(admits(&lock, &[], &[""]), "all is released with it");
}

/// G2: past the queue, like an upgrade of a thread.
#[test]
fn an_upgrade_of_an_owner_goes_ahead_of_waiting_writers() {
    let lock = common::new();
    let mut owner = lock.owner();
    let _reading = owner.lock(&["a"], &[]).unwrap();
    let reader = Other::holds(&lock, &["a"], &[]);
    let writer = Other::waits(&lock, &[], &["a"]);
    let upgrade = spawn("upgrade", move || {
        let _writing = owner.try_lock_for(&[], &["a"], LIMIT).unwrap();
        drop(owner);
    });
    wait_until_waiting(&lock, 2);
    reader.releases();
    join(upgrade);
    writer.releases();
}

/// Two upgrades at one node: one of the two gets the report.
#[test]
fn a_cycle_of_owners_is_reported_to_one() {
    let lock = common::new();
    // Both read before either asks for more; otherwise the second one would wait behind the first.
    let both_read = Arc::new(Barrier::new(2));
    let upgrade = |_| {
        let (mut owner, both_read) = (lock.owner(), Arc::clone(&both_read));
        spawn("owner", move || {
            let _reading = owner.lock(&["a"], &[]).unwrap();
            both_read.wait();
            report_of(owner.try_lock_for(&[], &["a"], LIMIT)).map_or(0, |deadlock| deadlock.parties.len() - 1)
        })
    };
    let reports: usize = join_all((0..2).map(upgrade)).into_iter().sum();
    assert_eq!(reports, 1);
}

/// A thread that waits, by an owner, for its own plain guard waits for itself.
#[test]
fn a_thread_that_waits_for_its_own_guard_by_an_owner_is_told() {
    let lock = common::new();
    let _plain = lock.write("a");
    let refused = lock.owner().try_lock_for(&["a"], &[], LIMIT);
    let Err(LockError::Deadlock(deadlock)) = refused else { panic!("{refused:?}") };
    assert_eq!(deadlock.parties.len(), 1);
}

/// G2, no false report: any thread that has an owner which does not wait may release it.
#[test]
fn a_wait_for_an_idle_owner_is_no_deadlock() {
    let lock = common::new();
    let mut idle = lock.owner();
    let _held = idle.lock(&[], &["a"]).unwrap();
    let mut waits = lock.owner();
    let _own = waits.lock(&[], &["b"]).unwrap();
    let refused = waits.try_lock_for(&[], &["a"], Duration::from_millis(200));
    assert!(matches!(refused, Err(LockError::TimedOut)), "{refused:?}");
    drop(idle);
    assert!(waits.try_lock(&[], &["a"]).is_ok());
}

#[test]
fn what_one_owner_holds_cannot_be_released_by_another() {
    let lock = common::new();
    let (mut one, mut other) = (lock.owner(), lock.owner());
    let held = one.lock(&[], &["a"]).unwrap();
    let _same_place = other.lock(&[], &["b"]).unwrap();
    let panic = catch_unwind(AssertUnwindSafe(|| other.release(held))).unwrap_err();
    assert!(panic.downcast_ref::<&str>().unwrap().contains("another owner has locked this"));
    drop((one, other));
    assert!(admits(&lock, &[], &[""]), "nothing is left");
}

#[test]
fn an_owner_is_send_and_static() {
    fn check<T: Send + 'static>() {}
    check::<LockOwner>();
    check::<LockOwner<str>>();
}

/// What earlier requests have got stays when a later one fails, and can be released without being named.
#[test]
fn an_owner_releases_all_at_once() {
    let lock = common::new();
    let other = Other::holds(&lock, &["a"], &[]);
    let mut owner = lock.owner();
    let reading = owner.lock(&["a"], &[]).unwrap();
    assert!(owner.try_lock(&[], &["a/b"]).is_err());
    let _more = owner.lock(&[], &["b"]).unwrap();
    assert!(!admits(&lock, &["b"], &[]));
    owner.release_all();
    assert!(admits(&lock, &[], &["b"]));
    other.releases();
    assert!(admits(&lock, &[], &[""]), "nothing is left");
    let panic = common::panic_message(|| owner.release(reading));
    assert!(panic.contains("released all that it held"), "{panic}");
    let _again = owner.lock(&[], &["a"]).unwrap();
}
