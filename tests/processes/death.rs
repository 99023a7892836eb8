//! Processes that are killed, stopped, or survived by their children (P1, P2).

use super::agent::{Agent, Home, kill, number};
use crate::common::wait_until;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use treelock::process::{self, ProcessLockError};

/// A waiter that finds out only by chance takes a second; see `LOST_WAKE` in `member/mod.rs`.
const SOON: Duration = Duration::from_millis(700);

/// P1: within 100 ms, which is printed.
#[test]
fn killed_holder_frees_who_waits() {
    let home = Home::new();
    let lock = home.open();
    let mut waiter = Agent::new(&home);
    let mut times = Vec::new();
    for _ in 0..10 {
        let mut holder = Agent::new(&home);
        holder.does("lock 1 w:a/b r:c");
        waiter.waits("lock 1 w:a w:c", &lock);
        let killed = holder.kill();
        waiter.is_done();
        times.push(killed.elapsed());
        waiter.does("drop 1");
    }
    times.sort();
    eprintln!("from the kill of the holder to the grant: {times:?}");
    assert!(times[5] < SOON, "{times:?}");
}

/// P1: also for a process that comes only after the death, and does not wait.
#[test]
fn what_a_killed_process_held_is_free_for_a_try() {
    let home = Home::new();
    let lock = home.open();
    let mut holder = Agent::new(&home);
    holder.does("lock 1 w:a");
    holder.does("arc 2 r:b");
    holder.kill();
    drop(lock.try_lock(&["a/x"], &["b"]).unwrap());
    assert!(lock.snapshot().unwrap().holders.is_empty());
}

/// P5: whichever process buries them meanwhile.
#[test]
fn dead_processes_are_never_seen_to_hold() {
    let home = Home::new();
    let lock = home.open();
    for round in 0..20 {
        let mut agents: Vec<Agent> = (0..3).map(|_| Agent::new(&home)).collect();
        for (place, agent) in agents.iter_mut().enumerate() {
            agent.does(&format!("lock 1 w:{place}"));
        }
        let dead: Vec<u32> = agents.iter().map(Agent::id).collect();
        for agent in agents {
            agent.kill();
        }
        let (looks, buried) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !buried.load(Ordering::Relaxed) {
                    let seen = lock.snapshot().unwrap();
                    looks.store(true, Ordering::Relaxed);
                    let holds = seen.holders.iter().find(|holder| dead.contains(&number(&holder.process)));
                    assert!(holds.is_none(), "round {round}: {seen}");
                }
            });
            wait_until("somebody looks", || looks.load(Ordering::Relaxed));
            (0..3).for_each(|place| drop(lock.write(place.to_string()).unwrap()));
            buried.store(true, Ordering::Relaxed);
        });
    }
}

/// P1: the same for a process that exits without closing anything.
#[test]
fn exit_without_closing_frees() {
    let home = Home::new();
    let lock = home.open();
    let mut holder = Agent::new(&home);
    holder.does("lock 1 w:a");
    holder.send("exit");
    drop(lock.try_lock_for(&[], &["a"], SOON).unwrap());
}

/// P1: a waiter killed in the queue lets those behind it go on.
#[test]
fn killed_waiter_lets_those_behind_it_in() {
    let home = Home::new();
    let lock = home.open();
    let (mut first, mut second) = (Agent::new(&home), Agent::new(&home));
    let guard = lock.read("a").unwrap();
    first.waits("lock 1 w:a", &lock);
    second.waits("lock 1 r:a", &lock);
    let killed = first.kill();
    second.is_done();
    assert!(killed.elapsed() < SOON, "{:?}", killed.elapsed());
    drop(guard);
}

/// P1: a waiter that is granted while it is stopped, and killed before it knows.
#[test]
fn process_killed_before_it_knows_of_its_grant_frees() {
    let home = Home::new();
    let lock = home.open();
    let (mut first, mut second) = (Agent::new(&home), Agent::new(&home));
    let guard = lock.write("a").unwrap();
    first.waits("lock 1 w:a", &lock);
    second.waits("lock 1 w:a", &lock);
    first.stop();
    drop(guard);
    wait_until("the first is granted", || {
        lock.snapshot().unwrap().holders.iter().any(|holder| number(&holder.process) == first.id())
    });
    assert_eq!(second.answer_so_far(), None);
    let killed = first.kill();
    second.is_done();
    assert!(killed.elapsed() < SOON, "{:?}", killed.elapsed());
}

/// P1: a holder that died before the waiter came to the queue that it is in now. The waiter asks for `a` and `b/c`,
/// and comes to the second, which is deeper, when it has the first.
#[test]
fn process_that_died_on_the_further_way_of_a_waiter_frees_it() {
    let home = Home::new();
    let lock = home.open();
    let mut waiter = Agent::new(&home);
    let guard = lock.write("a").unwrap();
    waiter.waits("lock 1 w:a w:b/c", &lock);
    // The waiter knows nothing about this process yet, and need not.
    waiter.stop();
    let mut holder = Agent::new(&home);
    holder.does("lock 1 w:b/c");
    holder.kill();
    waiter.go_on();
    let released = Instant::now();
    drop(guard);
    let mut granted = false;
    while !granted && released.elapsed() < Duration::from_secs(5) {
        granted = waiter.answer_so_far().is_some();
        std::thread::yield_now();
    }
    assert!(granted, "it waits for a dead process, and would for ever: {}", lock.snapshot().unwrap());
}

/// P1: the same for a waiter that is woken before the other one dies.
#[test]
fn process_that_dies_on_the_further_way_of_a_waiter_frees_it() {
    let home = Home::new();
    let lock = home.open();
    let (mut waiter, mut holder) = (Agent::new(&home), Agent::new(&home));
    let guard = lock.write("a").unwrap();
    waiter.waits("lock 1 w:a w:b/c", &lock);
    holder.does("lock 1 w:b/c");
    drop(guard);
    wait_until("it waits for the second", || {
        lock.snapshot().unwrap().waiters.iter().any(|waiter| waiter.at.segments == ["b", "c"])
    });
    let killed = holder.kill();
    waiter.is_done();
    assert!(killed.elapsed() < SOON, "{:?}", killed.elapsed());
}

/// P1: a process dies with an upgrade and the guard that it builds on. Burying it must work although one of the two
/// goes first.
#[test]
fn process_killed_while_it_upgrades_frees_both_guards() {
    let home = Home::new();
    let lock = home.open();
    let (mut upgrader, mut reader) = (Agent::new(&home), Agent::new(&home));
    upgrader.does("lock 1 r:a");
    reader.does("lock 1 r:a/b");
    upgrader.waits("lock 2 w:a", &lock);
    upgrader.kill();
    let asked = lock.try_lock(&[], &["a"]).map(drop);
    assert!(matches!(asked, Err(ProcessLockError::WouldBlock)), "{asked:?}");
    reader.does("try 2 w:a/b");
    reader.does("drop 2");
    reader.does("drop 1");
    drop(lock.try_lock(&[], &["."]).unwrap());
}

/// P5: a request that gets what a dead process held has it since then, not since the dead one got it.
#[test]
fn grant_by_a_death_is_told_with_its_time() {
    let home = Home::new();
    let lock = home.open();
    let (mut holder, mut waiter) = (Agent::new(&home), Agent::new(&home));
    holder.does("lock 1 w:a");
    let held = Instant::now();
    waiter.waits("lock 1 w:a", &lock);
    wait_until("some time has passed", || held.elapsed() > Duration::from_millis(500));
    holder.kill();
    waiter.is_done();
    let snapshot = lock.snapshot().unwrap();
    let since = snapshot.time.duration_since(snapshot.holders[0].since).unwrap();
    assert!(since < Duration::from_millis(400), "held for {since:?}");
}

/// P2: a forked child keeps the lock, as with flock(2), but cannot use the lock of its parent.
#[test]
fn forked_child_keeps_what_is_held_alive_and_cannot_use_the_lock() {
    let home = Home::new();
    let lock = home.open();
    let mut parent = Agent::new(&home);
    parent.does("lock 1 w:a");
    parent.does("lock 2 w:b");
    let (child, said) = parent.forks();
    assert!(said.contains("forked"), "{said}");
    // A guard that the child drops is still its parent's.
    assert!(matches!(lock.try_lock(&[], &["a"]), Err(ProcessLockError::WouldBlock)));
    parent.does("drop 2");
    drop(lock.try_lock(&[], &["b"]).unwrap());
    parent.does("lock 3 w:c");
    parent.kill();
    for held in ["a", "c"] {
        assert!(matches!(lock.try_lock(&[], &[held]), Err(ProcessLockError::WouldBlock)), "{held}");
    }
    kill(child);
    drop(lock.try_lock_for(&[], &["a", "c"], SOON).unwrap());
}

/// P1: a stopped process keeps what it holds, and no other process is held up elsewhere.
#[test]
fn stopped_holder_keeps_its_locks_until_it_is_killed() {
    let home = Home::new();
    let lock = home.open();
    let (mut holder, mut waiter) = (Agent::new(&home), Agent::new(&home));
    holder.does("lock 1 w:a");
    holder.stop();
    assert!(matches!(lock.try_lock(&["a"], &[]), Err(ProcessLockError::WouldBlock)));
    assert!(matches!(lock.try_lock_for(&["a"], &[], SOON), Err(ProcessLockError::TimedOut)));
    drop(lock.try_lock(&[], &["b"]).unwrap());
    waiter.waits("lock 1 w:a", &lock);
    holder.go_on();
    holder.does("lock 2 w:a/x");
    assert_eq!(waiter.answer_so_far(), None);
    holder.stop();
    let killed = holder.kill();
    waiter.is_done();
    assert!(killed.elapsed() < SOON, "{:?}", killed.elapsed());
}

/// P1: a stopped waiter keeps its place, and is granted what it asked for.
#[test]
fn stopped_waiter_keeps_its_place() {
    let home = Home::new();
    let lock = home.open();
    let mut waiter = Agent::new(&home);
    let guard = lock.write("a").unwrap();
    waiter.waits("lock 1 w:a", &lock);
    waiter.stop();
    drop(guard);
    assert!(matches!(lock.try_lock(&["a"], &[]), Err(ProcessLockError::WouldBlock)));
    waiter.go_on();
    waiter.is_done();
}

/// P2: an inherited lock is held until the last process that inherited it has ended.
#[test]
fn child_that_inherits_keeps_what_its_killed_parent_held() {
    let home = Home::new();
    let lock = home.open();
    let (mut parent, mut waiter) = (Agent::new(&home), Agent::new(&home));
    parent.does("lock 1 w:a");
    parent.does("inherit");
    let child: u32 = parent.ask("spawn").parse().unwrap();
    waiter.waits("lock 1 w:a", &lock);
    parent.kill();
    assert!(matches!(lock.try_lock_for(&["a"], &[], SOON), Err(ProcessLockError::TimedOut)));
    assert_eq!(waiter.answer_so_far(), None);
    kill(child);
    let killed = Instant::now();
    waiter.is_done();
    assert!(killed.elapsed() < SOON, "{:?}", killed.elapsed());
}

/// P2: a guard that is dropped is released, whichever processes have inherited it.
#[test]
fn child_that_inherits_does_not_keep_what_is_dropped() {
    let home = Home::new();
    let lock = home.open();
    let mut parent = Agent::new(&home);
    parent.does("inherit");
    parent.does("lock 1 w:a");
    let child: u32 = parent.ask("spawn").parse().unwrap();
    parent.does("drop 1");
    drop(lock.try_lock(&[], &["a"]).unwrap());
    parent.end();
    drop(lock.try_lock(&[], &["."]).unwrap());
    kill(child);
}

/// P2: a child that inherits nothing does not matter.
#[test]
fn child_that_does_not_inherit_keeps_nothing() {
    let home = Home::new();
    let lock = home.open();
    let (mut parent, mut waiter) = (Agent::new(&home), Agent::new(&home));
    parent.does("lock 1 w:a");
    let child: u32 = parent.ask("spawn").parse().unwrap();
    waiter.waits("lock 1 w:a", &lock);
    let killed = parent.kill();
    waiter.is_done();
    assert!(killed.elapsed() < SOON, "{:?}", killed.elapsed());
    kill(child);
}

/// G2, P1: a cycle through a dead process is not a deadlock.
#[test]
fn cycle_with_a_dead_process_is_not_reported() {
    let home = Home::new();
    let lock = home.open();
    for _ in 0..5 {
        let mut other = Agent::new(&home);
        let mine = lock.write("a").unwrap();
        other.does("lock 1 w:b");
        other.send("lock 2 w:a");
        other.kill();
        let granted = lock.try_lock_for(&[], &["b"], Duration::from_secs(20));
        assert!(granted.is_ok(), "{:?}", granted.map(drop));
        drop((granted, mine));
    }
}

/// When all have died, the next process begins anew.
#[test]
fn lock_of_which_all_processes_died_is_free() {
    let home = Home::new();
    for _ in 0..5 {
        let mut agents = [Agent::new(&home), Agent::new(&home)];
        agents[0].does("try 1 w:a");
        agents[1].does("try 1 w:b");
        agents[1].send("lock 2 w:a");
        for agent in agents {
            agent.kill();
        }
    }
    let lock = home.open();
    drop(lock.try_lock(&[], &["."]).unwrap());
    assert_eq!(home.files(), ["m0", "table"]);
}

/// Dead members are never shown, even if another process begins anew meanwhile, in files that the kernel may give the
/// same inode numbers.
#[test]
fn dead_of_an_earlier_time_are_never_shown() {
    let home = Home::new();
    let (dead, ended) = (AtomicU32::new(0), AtomicBool::new(false));
    drop(home.open());
    thread::scope(|scope| {
        let look = || {
            while !ended.load(Ordering::Relaxed) {
                let dead = dead.load(Ordering::SeqCst);
                let snapshot = process::snapshot(home.path()).unwrap();
                assert!(
                    snapshot.holders.iter().all(|holder| number(&holder.process) != dead),
                    "{dead} is dead: {snapshot}"
                );
            }
        };
        let looking = scope.spawn(look);
        for _ in 0..200 {
            let mut holder = Agent::new(&home);
            holder.does("lock 1 w:a");
            let process = holder.id();
            holder.kill();
            dead.store(process, Ordering::SeqCst);
            if looking.is_finished() {
                break;
            }
        }
        ended.store(true, Ordering::Relaxed);
    });
}
