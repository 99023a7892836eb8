//! Waits: the order of service, deadlines, deadlocks, and how long a hand-over takes (G2, G3, G4, G10, P3).

use super::agent::{Agent, Home};
use crate::common::wait_until;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};
use treelock::process::{self, FileProblem, Options, ProcessLockError};

fn print_and_check(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let median = times[times.len() / 2];
    eprintln!("{what}: median {median:?}, longest {:?}", times[times.len() - 1]);
    // The goal is 200 us; a lost wake-up takes a second.
    assert!(median < Duration::from_millis(100), "{times:?}");
}

/// P3.
#[test]
fn release_wakes_a_waiting_process() {
    let home = Home::new();
    let lock = home.open();
    let mut agent = Agent::new(&home);
    let hand_over = |_| {
        let guard = lock.write("a").unwrap();
        agent.waits("lock 1 w:a", &lock);
        let released = Instant::now();
        drop(guard);
        agent.is_done();
        let time = released.elapsed();
        agent.does("drop 1");
        time
    };
    print_and_check("hand-over to a process, until its answer by a pipe", (0..50).map(hand_over).collect());
}

/// P3, without the pipe.
#[test]
fn release_wakes_who_waits_by_another_open() {
    let home = Home::new();
    let (lock, other) = (home.open(), home.open());
    let hand_over = |_| {
        let guard = lock.write("a").unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let _guard = other.write("a").unwrap();
                Instant::now()
            });
            wait_until("it waits", || !lock.snapshot().unwrap().waiters.is_empty());
            let released = Instant::now();
            drop(guard);
            waiter.join().unwrap() - released
        })
    };
    print_and_check("hand-over", (0..200).map(hand_over).collect());
}

/// G10: a refusal is never early.
#[test]
fn deadlines_are_kept_while_others_hold() {
    let home = Home::new();
    let lock = home.open();
    let mut agent = Agent::new(&home);
    let _guard = lock.read("a").unwrap();
    let mut late = Vec::new();
    for asked in [0, 1, 5, 20, 50, 100, 150, 250] {
        let took = agent.is_refused(&format!("for {asked} 1 w:a"), "TimedOut");
        let asked = Duration::from_millis(asked);
        assert!(took >= asked, "asked for {asked:?}, took {took:?}");
        late.push(took - asked);
    }
    late.sort();
    eprintln!("deadlines: late by {late:?}");
    assert!(late[4] < Duration::from_millis(200), "{late:?}");
}

/// G10: a process is stopped while it has the table, which is like a `flock` that stays.
#[test]
fn deadline_holds_while_a_stopped_process_has_the_table() {
    let home = Home::new();
    let lock = home.open();
    let mut waiter = Agent::new(&home);
    let _guard = lock.write("a").unwrap();
    waiter.waits("for 300 1 w:a", &lock);
    let table = File::open(home.file("table")).unwrap();
    flock(&table, FlockOperation::LockExclusive).unwrap();
    let answer = waiter.answer();
    assert!(answer.starts_with("TimedOut"), "{answer}");
    let took = waiter.is_refused("for 50 1 w:b", "TimedOut");
    eprintln!("with the table out of reach, 50 ms took {took:?}");
    waiter.is_refused("try 1 w:b", "WouldBlock");
    flock(&table, FlockOperation::Unlock).unwrap();
    wait_until("what timed out is withdrawn", || lock.snapshot().unwrap().waiters.is_empty());
    waiter.does("lock 1 w:b");
}

/// G10: processes that look on, come or go then are not held up either.
#[test]
fn stopped_process_with_the_table_holds_up_neither_snapshots_nor_openings_with_a_timeout() {
    let home = Home::new();
    let lock = home.open();
    let _guard = lock.write("a").unwrap();
    let leaves = home.open();
    let table = File::open(home.file("table")).unwrap();
    flock(&table, FlockOperation::LockExclusive).unwrap();
    for snapshot in [lock.snapshot(), process::snapshot(home.path())] {
        assert_eq!(snapshot.unwrap().holders[0].roots[0].to_string(), "X a");
    }
    let asked = Instant::now();
    let opened = Options::new().timeout(Duration::from_millis(50)).open::<str>(home.path());
    let error = opened.map(drop).unwrap_err();
    assert!(matches!(error.problem(), FileProblem::Flocked) && error.path() == home.file("table"), "{error}");
    drop(leaves);
    eprintln!("to be refused and to leave took {:?}", asked.elapsed());
    assert!(asked.elapsed() < Duration::from_secs(10));
    flock(&table, FlockOperation::Unlock).unwrap();
    drop(home.open().try_lock(&["b"], &[]).unwrap());
}

/// G10: the same where the waiter also has a dead holder to bury, for which it needs the table.
#[test]
fn deadline_holds_while_the_table_is_out_of_reach_and_a_holder_dies() {
    let home = Home::new();
    let lock = home.open();
    let (mut holder, mut waiter) = (Agent::new(&home), Agent::new(&home));
    holder.does("lock 1 w:a");
    waiter.waits("for 500 1 w:a", &lock);
    let table = File::open(home.file("table")).unwrap();
    flock(&table, FlockOperation::LockExclusive).unwrap();
    holder.kill();
    let start = Instant::now();
    let mut answer = None;
    while answer.is_none() && start.elapsed() < Duration::from_secs(5) {
        answer = waiter.answer_so_far();
        thread::yield_now();
    }
    flock(&table, FlockOperation::Unlock).unwrap();
    assert!(answer.is_some_and(|answer| answer.starts_with("TimedOut")), "waits for 5 s where it was to wait 0.5 s");
}

/// G3: readers of three processes, two threads each, that overlap all the time.
#[test]
fn writer_gets_in_against_a_stream_of_readers() {
    let home = Home::new();
    let lock = home.open();
    let mut readers: Vec<Agent> = (0..3).map(|_| Agent::new(&home)).collect();
    for reader in &mut readers {
        reader.send("stream 3 r:a");
        assert_eq!(reader.answer(), "streams");
    }
    let start = Instant::now();
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        let asked = Instant::now();
        drop(lock.try_lock_for(&[], &["a"], Duration::from_secs(20)).unwrap());
        longest = longest.max(asked.elapsed());
    }
    eprintln!("20 writes against 6 readers took {:?}, the longest {longest:?}", start.elapsed());
    for reader in &mut readers {
        reader.does("stop");
    }
}

/// Makes processes ask one after the other while `q` is written; returns the order in which they are served.
fn order_of_service(requests: &[&str]) -> Vec<usize> {
    let home = Home::new();
    let lock = home.open();
    let held = lock.write("q").unwrap();
    let asks = |request: &&str| {
        let mut agent = Agent::new(&home);
        agent.waits(&format!("lock 1 {request}"), &lock);
        agent
    };
    let mut waiting: Vec<(usize, Agent)> = requests.iter().map(asks).enumerate().collect();
    drop(held);
    let mut served = Vec::new();
    while !waiting.is_empty() {
        let mut next = None;
        wait_until("one is served", || {
            next = waiting.iter().position(|(_, agent)| agent.has_answered());
            next.is_some()
        });
        let (number, mut agent) = waiting.remove(next.unwrap());
        agent.is_done();
        agent.does("drop 1");
        served.push(number);
    }
    served
}

/// G3: all waiters are let on at `q` at one moment, and keep their order below it.
#[test]
fn twelve_writers_below_a_written_node_are_served_in_the_order_in_which_they_began_to_wait() {
    assert_eq!(order_of_service(&["w:q/x"; 12]), Vec::from_iter(0..12));
}

/// G3: readers share with readers, in any order, and none passes a writer that began to wait before it.
#[test]
fn twelve_writers_and_readers_below_a_written_node_keep_their_order() {
    let is_reader = |number: usize| matches!(number, 1 | 2 | 5 | 7 | 8 | 9);
    let requests: [&str; 12] = std::array::from_fn(|number| if is_reader(number) { "r:q/x" } else { "w:q/x" });
    let served = order_of_service(&requests);
    for (place, &later) in served.iter().enumerate() {
        let overtaken =
            served[place..].iter().find(|&&earlier| earlier < later && !(is_reader(earlier) && is_reader(later)));
        assert_eq!(overtaken, None, "{later} is served before it: {served:?}");
    }
}

/// G3: the requests part on the way. Each conflicts with all others.
#[test]
fn writers_of_several_depths_below_a_written_node_keep_their_order() {
    let requests = ["w:q/x/y", "w:q/x", "w:q/x/y/z", "w:q/x/y", "w:q", "w:q/x/y/z", "w:q/x", "w:q/x/y"];
    assert_eq!(order_of_service(&requests), Vec::from_iter(0..requests.len()));
}

/// G4: a `try_lock` of what is free is not refused because others use the table.
#[test]
fn try_of_what_is_free_is_granted_while_others_are_busy() {
    let home = Home::new();
    let lock = home.open();
    let mut busy: Vec<Agent> = (0..3).map(|_| Agent::new(&home)).collect();
    for (place, agent) in busy.iter_mut().enumerate() {
        agent.send(&format!("stream 0 w:busy/{place}"));
        assert_eq!(agent.answer(), "streams");
    }
    let refused = (0..1000).filter(|_| lock.try_lock(&[], &["free"]).is_err()).count();
    for agent in &mut busy {
        agent.does("stop");
    }
    assert_eq!(refused, 0, "of 1000");
}

/// G4: a request for something else does not wait behind a queue.
#[test]
fn unrelated_requests_pass_queues_at_once() {
    let home = Home::new();
    let lock = home.open();
    let (mut holder, mut writer, mut other) = (Agent::new(&home), Agent::new(&home), Agent::new(&home));
    holder.does("lock 1 r:a/b");
    writer.waits("lock 1 w:a/b", &lock);
    other.does("try 1 w:a/c r:d");
    other.is_refused("try 2 r:a/b", "WouldBlock");
    holder.does("drop 1");
    writer.is_done();
}

/// The report that one of two processes gets; the other goes on when that one releases.
fn only_report(parties: &mut [Agent; 2]) -> String {
    let mut told = None;
    wait_until("one of them gets an answer", || {
        told = parties.iter().position(|party| party.has_answered());
        told.is_some()
    });
    let (told, other) = (told.unwrap(), 1 - told.unwrap());
    let report = parties[told].answer();
    assert!(report.starts_with("Deadlock"), "{report}");
    assert!(!parties[other].has_answered(), "only one of them is told: {report}");
    parties[told].does("drop 1");
    parties[other].is_done();
    report
}

/// G2: the deadlock is reported to one of them, with both named, and the other goes on.
#[test]
fn deadlock_of_two_processes_is_reported_to_one_of_them() {
    let home = Home::new();
    let mut parties = [Agent::new(&home), Agent::new(&home)];
    parties[0].does("lock 1 w:a");
    parties[1].does("lock 1 w:b");
    parties[0].send("lock 2 r:b/x");
    parties[1].send("lock 2 w:a");
    let report = only_report(&mut parties);
    let ids = [parties[0].id(), parties[1].id()].map(|id| id.to_string());
    assert!(ids.iter().all(|id| report.contains(id)) && report.contains("deadlock of 2 threads"), "{report}");
}

/// G2: the one that gives up leaves nothing, and the two may meet again.
#[test]
fn deadlock_of_two_upgrades_is_reported_again_and_again() {
    let home = Home::new();
    let lock = home.open();
    let mut parties = [Agent::new(&home), Agent::new(&home)];
    for _ in 0..3 {
        for party in &mut parties {
            party.does("lock 1 r:a");
        }
        for party in &mut parties {
            party.send("lock 2 w:a");
        }
        only_report(&mut parties);
        let snapshot = lock.snapshot().unwrap();
        assert_eq!((snapshot.holders.len(), snapshot.waiters.len()), (2, 0), "{snapshot}");
        for party in &mut parties {
            party.does("clear");
        }
    }
}

/// G2: an `Arc` guard may be dropped by anybody, so a wait for it is no part of a deadlock.
#[test]
fn wait_for_an_arc_guard_of_a_process_that_waits_is_no_deadlock() {
    let home = Home::new();
    let lock = home.open();
    let mut agent = Agent::new(&home);
    agent.does("arc 1 w:x");
    let _write = lock.write("y").unwrap();
    agent.waits("for 2000 2 w:y", &lock);
    let refused = lock.try_lock_for(&["x"], &[], Duration::from_millis(300)).map(drop);
    assert!(matches!(refused, Err(ProcessLockError::TimedOut)), "{refused:?}");
}

/// G9, P3: hand-overs in a ring of processes, each woken by the one before. A lost wake-up takes a second.
#[test]
fn hand_overs_between_processes_lose_no_wake() {
    let home = Home::new();
    let lock = home.open();
    let mut agents: Vec<Agent> = (0..3).map(|_| Agent::new(&home)).collect();
    let guard = lock.write("a").unwrap();
    for agent in &mut agents {
        agent.waits("lock 1 w:a", &lock);
    }
    drop(guard);
    let mut times = Vec::new();
    for round in 0..60 {
        let agent = &mut agents[round % 3];
        let released = Instant::now();
        agent.is_done();
        times.push(released.elapsed());
        agent.does("drop 1");
        agent.waits("lock 1 w:a", &lock);
    }
    times.sort();
    let late = times.iter().filter(|&&time| time > Duration::from_millis(700)).count();
    assert!(late < 3, "{times:?}");
}

/// G2: a dead process waits for nobody, even if the process that would have to bury it is stopped.
#[test]
fn cycle_with_a_dead_process_behind_a_stopped_one_is_not_reported() {
    let home = Home::new();
    let lock = home.open();
    let (mut first, mut stopped, mut dead) = (Agent::new(&home), Agent::new(&home), Agent::new(&home));
    first.does("lock 1 w:first");
    stopped.does("lock 1 w:stopped");
    dead.does("lock 1 w:dead");
    dead.waits("lock 2 w:first", &lock);
    stopped.waits("lock 2 w:dead", &lock);
    stopped.stop();
    dead.kill();
    first.is_refused("for 300 2 w:stopped", "TimedOut");
    stopped.go_on();
    stopped.is_done();
}
