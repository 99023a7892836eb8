//! Processes that are killed or stopped (M1, M2, M3, M5), and what a lock costs that does nothing.

use super::agent::{Agent, Store};
use super::conformance::{Place, of_each_engine};
use crate::common::{LIMIT, wait_until};
use std::time::{Duration, Instant};
use treelock::machine::{MachineLockError, Options};

const SHORT: Duration = Duration::from_secs(1);

fn options() -> Options {
    Options::new().time_to_live(SHORT)
}

of_each_engine! {
    [
        what_a_killed_process_held_is_free_when_its_session_ends,
        waiter_that_was_killed_lets_those_behind_it_in,
        holder_that_was_stopped_knows_that_it_has_lost_and_its_late_write_is_refused,
        holder_that_was_stopped_for_a_short_time_still_holds,
        clients_that_are_idle_or_wait_use_hardly_any_processor_time,
    ]
}

/// M5. A session ends one time to live after its last renewal, which may be as old as a third of it.
fn what_a_killed_process_held_is_free_when_its_session_ends(server: &impl Place) {
    let lock = server.open_with(options());
    let mut times = Vec::new();
    for _ in 0..5 {
        let mut holder = Agent::new(server, SHORT);
        let fence = holder.locks("lock 1 w:a/b r:c");
        assert!(matches!(lock.try_write("a"), Err(MachineLockError::WouldBlock)));
        let killed = holder.kill();
        let guard = lock.try_lock_for(&[], &["a", "c"], LIMIT).unwrap();
        times.push(killed.elapsed());
        assert!(guard.fence() > fence);
    }
    eprintln!("time to live {SHORT:?}; from the kill of the holder to the grant: {times:?}");
    assert!(times.iter().all(|&time| time > SHORT / 3 && time < 5 * SHORT), "{times:?}");
}

/// M5: nobody but the waiter's own client is there to see that the session is over.
fn waiter_that_was_killed_lets_those_behind_it_in(server: &impl Place) {
    let lock = server.open_with(options());
    let (mut first, mut second) = (Agent::new(server, SHORT), Agent::new(server, SHORT));
    let guard = lock.read("a").unwrap();
    first.waits("lock 1 w:a", &lock);
    second.waits("lock 1 r:a", &lock);
    let killed = first.kill();
    second.is_done();
    let time = killed.elapsed();
    eprintln!("time to live {SHORT:?}; from the kill of a waiter to the grant behind it: {time:?}");
    assert!(time > SHORT / 3 && time < 5 * SHORT, "{time:?}");
    guard.release().unwrap();
}

/// M1, M2, M3: the old holder knows that it has lost, and a store that compares fences refuses what it writes too late.
fn holder_that_was_stopped_knows_that_it_has_lost_and_its_late_write_is_refused(server: &impl Place) {
    let folder = tempfile::tempdir().unwrap();
    let (path, control) = (folder.path().join("store"), folder.path().join("control"));
    let lock = server.open_with(options());
    let mut holder = Agent::new(server, SHORT);
    let old = holder.locks("lock 1 w:a");
    holder.does(&format!("put 1 {} first", path.display()));
    // It looks at its guard, which is valid, and is stopped before it writes.
    holder.send(&format!("late 1 {} late", path.display()));
    assert_eq!(holder.answer(), "looked");
    holder.stop();
    let stopped = Instant::now();
    let guard = lock.try_write_for("a", LIMIT).unwrap();
    eprintln!("time to live {SHORT:?}; from the stop of the holder to the grant: {:?}", stopped.elapsed());
    assert!(guard.fence() > old);
    for path in [&path, &control] {
        assert!(Store::open(path).put(guard.fence(), "second"));
    }
    holder.go_on();
    assert_eq!(holder.ask("on"), "refused");
    assert_eq!(Store::open(&path).get(), (guard.fence(), "second".into()));
    assert_eq!(holder.ask("valid 1"), "false");
    wait_until("it is told", || holder.ask("lost 1") == "true");
    // Without the fence the late write lands.
    holder.does(&format!("blind 1 {} late", control.display()));
    assert_eq!(Store::open(&control).get().1, "late");
    holder.is_refused("release 1", "Engine(Lost)");
    assert!(guard.is_valid());
    // A new session is as good as the first.
    guard.release().unwrap();
    assert!(holder.locks("lock 2 w:a") > old);
}

/// M5: a process that was stopped for less than its session lives has lost nothing.
fn holder_that_was_stopped_for_a_short_time_still_holds(server: &impl Place) {
    let long = Duration::from_secs(6);
    let lock = server.open_with(options().time_to_live(long));
    let mut holder = Agent::new(server, long);
    holder.does("lock 1 w:a");
    holder.stop();
    let refused = lock.try_write_for("a", Duration::from_millis(700)).map(drop);
    assert!(matches!(refused, Err(MachineLockError::TimedOut)), "{refused:?}");
    holder.go_on();
    assert_eq!(holder.ask("valid 1"), "true");
    holder.does("release 1");
    drop(lock.try_write("a").unwrap());
}

/// An idle client renews its session thrice in a time to live, and a waiter listens besides.
fn clients_that_are_idle_or_wait_use_hardly_any_processor_time(server: &impl Place) {
    let lock = server.open_with(options());
    let (mut idle, mut holder, mut waiter) =
        (Agent::new(server, SHORT), Agent::new(server, SHORT), Agent::new(server, SHORT));
    let used = |agent: &mut Agent| agent.ask("cpu").parse::<u64>().unwrap();
    let start_of_waiter = used(&mut waiter);
    holder.does("lock 1 w:a");
    waiter.waits("for 3000 1 w:a", &lock);
    idle.does("lock 1 w:b");
    idle.does("release 1");
    let (before, start) = ([used(&mut idle), used(&mut holder)], Instant::now());
    let answer = waiter.answer();
    assert!(answer.starts_with("TimedOut"), "{answer}");
    let took = start.elapsed();
    let by_waiter = Duration::from_micros(used(&mut waiter) - start_of_waiter);
    let by = [used(&mut idle) - before[0], used(&mut holder) - before[1]].map(Duration::from_micros);
    eprintln!("in {took:?}: idle {:?}, holder {:?}; waiter {by_waiter:?}", by[0], by[1]);
    assert!(by.iter().all(|&by| by < took / 10) && by_waiter < took / 3);
}
