//! Five hundred processes that work on the same tree and are killed at random moments. None may see another one in its section.
//!
//! Each node of the tree has a file with the highest fence that was there, and who wrote last. A worker that writes a node leaves its
//! mark there, does something else, and looks whether its mark still stands; one that reads looks whether it changes. Whoever finds
//! that somebody else was there while its guard was valid has seen a *violation*. The file compares the fences, so a late write of one
//! who has lost the lock does not count.

use super::agent::{Agent, Store};
use super::conformance::Place;
use super::server::Server;
use crate::common::LIMIT;
use crate::talk;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use treelock::machine::MachineTreeLock;

/// Three in a row are a node and what is below it.
const NODES: [&str; 12] = ["a", "a/b", "a/c", "d", "d/e", "d/f", "g", "g/h", "g/i", "j", "j/k", "j/l"];

/// Works until the process is killed.
pub(crate) fn work(lock: &MachineTreeLock, folder: &Path, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    loop {
        let (node, is_write) = (random.random_range(0..NODES.len()), random.random_bool(0.7));
        let (reads, writes) = if is_write { (vec![], vec![NODES[node]]) } else { (vec![NODES[node]], vec![]) };
        let guard = match lock.try_lock_for(&reads, &writes, LIMIT) {
            Ok(guard) => guard,
            Err(error) => {
                note(folder, &format!("an error: {error}"));
                continue;
            }
        };
        visit(folder, node, is_write, guard.fence(), || guard.is_valid());
        if random.random_bool(0.5) {
            let _ = guard.release();
        }
    }
}

/// What is done with a sub-tree that is held.
fn visit(folder: &Path, node: usize, is_write: bool, fence: u64, is_valid: impl Fn() -> bool) {
    // What is below is held as well.
    let held: Vec<usize> =
        (0..NODES.len()).filter(|&other| other == node || (node % 3 == 0 && other / 3 == node / 3)).collect();
    let mark = format!("{} {fence}", std::process::id());
    let mut stores: Vec<Store> = held.iter().map(|node| Store::open(&folder.join(node.to_string()))).collect();
    let mut seen = Vec::new();
    for store in &mut stores {
        let put = store.with(|highest, text| {
            // A reader of a sub-tree that others read may have a lower fence than they.
            if is_write && fence <= *highest {
                return Err(*highest);
            }
            *highest = fence.max(*highest);
            if is_write {
                *text = mark.clone();
            }
            Ok(text.clone())
        });
        match put {
            Ok(text) => seen.push(text),
            Err(highest) if is_valid() => return note(folder, &format!("{mark} comes after {highest}")),
            Err(_) => return,
        }
    }
    for _ in 0..20 {
        thread::yield_now();
    }
    for (store, seen) in stores.iter_mut().zip(&seen) {
        let now = store.get().1;
        if now != *seen && is_valid() {
            note(folder, &format!("{mark} finds {now} where it left {seen}"));
        }
    }
    let mut visits = Store::open(&folder.join("visits"));
    visits.with(|visits, _| *visits += 1);
}

fn note(folder: &Path, what: &str) {
    let file = File::options().append(true).create(true).open(folder.join("violations"));
    file.unwrap().write_all(format!("{what}\n").as_bytes()).unwrap();
}

fn violations(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("violations")).unwrap_or_default()
}

/// M1, M3, M5.
#[test]
fn five_hundred_processes_that_are_killed_at_random_moments_never_meet() {
    let Some(server) = Server::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let time_to_live = Duration::from_millis(600);
    let mut random = StdRng::seed_from_u64(7);
    let start = Instant::now();
    let mut workers = Vec::new();
    for number in 0..500 {
        let mut worker = Agent::new(&server, time_to_live);
        worker.send(&format!("work {} {number}", folder.path().display()));
        workers.push(worker);
        if workers.len() >= 5 {
            let (which, when) = (random.random_range(0..workers.len()), random.random_range(0..160));
            let moment = Instant::now() + Duration::from_millis(when);
            while Instant::now() < moment {
                thread::sleep(Duration::from_millis(1));
            }
            workers.remove(which).kill();
        }
    }
    drop(workers);
    let killed = start.elapsed();
    let lock = server.open_with(treelock::machine::Options::new().time_to_live(time_to_live));
    drop(lock.try_write_for("", LIMIT).unwrap());
    let visits = Store::open(&folder.path().join("visits")).get().0;
    eprintln!("500 processes killed in {killed:?}, {visits} visits, violations: {:?}", violations(folder.path()));
    assert_eq!(violations(folder.path()), "");
    assert!(visits > 100, "{visits}");
    assert!(lock.snapshot().unwrap().holders.is_empty());
}

/// M1, M3, M6: the same while the server is killed, flushed or stopped at random moments.
#[test]
fn processes_never_meet_while_the_server_loses_all_now_and_then() {
    let Some(mut server) = Server::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let time_to_live = Duration::from_millis(600);
    let mut random = StdRng::seed_from_u64(11);
    let start = Instant::now();
    let mut workers: Vec<Agent> = (0..5).map(|_| Agent::new(&server, time_to_live)).collect();
    for (number, worker) in workers.iter_mut().enumerate() {
        worker.send(&format!("work {} {number}", folder.path().display()));
    }
    let pass = |time: u64| {
        let moment = Instant::now() + Duration::from_millis(time);
        while Instant::now() < moment {
            thread::sleep(Duration::from_millis(1));
        }
    };
    for round in 0..15 {
        // Often enough in the time in which nobody is let in, and often later.
        pass(random.random_range(200..1600));
        match round % 3 {
            0 => {
                server.kill();
                server.go_on();
            }
            1 => drop(server.ask(&["FLUSHALL"]).unwrap()),
            _ => {
                talk::stop(server.child());
                pass(random.random_range(100..1200));
                talk::go_on(server.child());
            }
        }
    }
    pass(1500);
    drop(workers);
    let visits = Store::open(&folder.path().join("visits")).get().0;
    eprintln!("15 losses in {:?}, {visits} visits, violations: {:?}", start.elapsed(), violations(folder.path()));
    assert_eq!(violations(folder.path()), "");
    assert!(visits > 100, "{visits}");
}

/// The check can fail: without the lock they meet.
#[test]
fn processes_without_the_lock_are_seen_to_meet() {
    let folder = tempfile::tempdir().unwrap();
    let start = Instant::now();
    while violations(folder.path()).is_empty() {
        assert!(start.elapsed() < LIMIT, "nobody meets");
        thread::scope(|scope| {
            for number in 0..4 {
                let folder = folder.path();
                scope.spawn(move || {
                    for _ in 0..50 {
                        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
                        visit(folder, number % 3, true, now.as_nanos() as u64, || true);
                    }
                });
            }
        });
    }
}
