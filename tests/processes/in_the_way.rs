//! What a request waits for, as `waits` tells it: by the order of the queue, and not by that of the times (G2 of
//! reports, G3).

use super::agent::{Agent, Home};
use crate::common::LIMIT;
use std::sync::mpsc::channel;
use std::thread;
use treelock::Process;
use treelock::process::{ProcessTreeLock, snapshot, waits};

/// The processes that a waiter of another one waits for: holders, then waiters.
fn in_the_way(home: &Home, process: u32) -> (Vec<u32>, Vec<u32>) {
    let snapshot = snapshot(home.path()).unwrap();
    let id = |process: &Option<Process>| process.as_ref().unwrap().id;
    let waiter = snapshot.waiters.iter().find(|waiter| id(&waiter.process) == process).expect("it waits");
    let [found] = &waits(home.path(), waiter.process.as_ref().unwrap().member).unwrap()[..] else {
        panic!("one waits")
    };
    let mut holders: Vec<_> = found.for_holders.iter().map(|holder| id(&holder.process)).collect();
    let mut waiters: Vec<_> = found.for_waiters.iter().map(|waiter| id(&waiter.process)).collect();
    holders.sort_unstable();
    waiters.sort_unstable();
    (holders, waiters)
}

fn sorted<const N: usize>(agents: [&Agent; N]) -> Vec<u32> {
    let mut ids = agents.map(Agent::id).to_vec();
    ids.sort_unstable();
    ids
}

#[test]
fn waiter_waits_for_those_that_exclude_it_and_for_no_others() {
    let home = Home::new();
    let lock = home.open();
    let [mut holder, mut writer, mut reader, mut below, mut elsewhere] = [(); 5].map(|()| Agent::new(&home));
    holder.does("lock 1 r:a");
    elsewhere.does("lock 1 w:b");
    writer.waits("lock 1 w:a", &lock);
    reader.waits("lock 1 r:a", &lock);
    below.waits("lock 1 w:a/x", &lock);
    assert_eq!(in_the_way(&home, writer.id()), (sorted([&holder]), vec![]));
    assert_eq!(in_the_way(&home, reader.id()), (vec![], sorted([&writer])), "both read with the holder");
    assert_eq!(in_the_way(&home, below.id()), (sorted([&holder]), sorted([&writer, &reader])));
}

/// Holders further on its way are in its way already; waiters there may be ahead of it or not, when it comes.
#[test]
fn waiter_waits_for_the_holders_of_all_its_roots() {
    let home = Home::new();
    let lock = home.open();
    let [mut first, mut second, mut other, mut waiter] = [(); 4].map(|()| Agent::new(&home));
    first.does("lock 1 w:a/x");
    second.does("lock 1 w:b/x");
    other.waits("lock 1 w:c r:a/x", &lock);
    waiter.waits("lock 1 w:a w:b w:c", &lock);
    let (holders, waiters) = in_the_way(&home, waiter.id());
    assert_eq!(holders, sorted([&first, &second]));
    // The order of all nodes decides whether the other request has taken `c` before it came to `a/x`.
    assert!(waiters.is_empty() || waiters == sorted([&other]), "{waiters:?}");
}

/// A thread's own outer guard does not hold up its request, which goes ahead of a writer that came before.
#[test]
fn upgrade_waits_for_the_other_readers_and_the_writer_waits_for_it() {
    let home = Home::new();
    let lock = home.open();
    let observer = home.open();
    let [mut other, mut writer] = [(); 2].map(|()| Agent::new(&home));
    other.does("lock 1 r:a");
    thread::scope(|scope| {
        let (has_read, reads) = channel();
        let (upgrades, may_upgrade) = channel();
        let lock: &ProcessTreeLock = &lock;
        scope.spawn(move || {
            let _outer = lock.read("a").unwrap();
            has_read.send(()).unwrap();
            may_upgrade.recv().unwrap();
            drop(lock.try_lock_for(&[], &["a"], LIMIT).unwrap());
        });
        reads.recv().unwrap();
        writer.waits("lock 1 w:a", &observer);
        upgrades.send(()).unwrap();
        while observer.snapshot().unwrap().waiters.len() < 2 {
            thread::yield_now();
        }
        let me = std::process::id();
        assert_eq!(in_the_way(&home, me), (sorted([&other]), vec![]));
        let (holders, waiters) = in_the_way(&home, writer.id());
        assert!(holders.contains(&me) && holders.contains(&other.id()), "{holders:?}");
        assert_eq!(waiters, [me], "the upgrade came later and goes first");
        other.does("drop 1");
    });
    writer.is_done();
}

/// A number that no other open lock has, not even another one of the same process.
#[test]
fn members_are_told_apart() {
    let home = Home::new();
    let (one, other) = (home.open(), home.open());
    let _guards = (one.read("a").unwrap(), other.read("a").unwrap());
    let mut members: Vec<_> =
        one.snapshot().unwrap().holders.iter().map(|holder| holder.process.as_ref().unwrap().member).collect();
    members.sort_unstable();
    assert_eq!(members, [one.member(), other.member()]);
    assert_ne!(one.member(), other.member());
}
