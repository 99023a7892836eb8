//! Replicas that acknowledge what is written (`wait_replicas`).

use super::conformance::Place;
use super::server::Server;
use super::talk;
use crate::common::{LIMIT, wait_until};
use std::time::{Duration, Instant};
use treelock::machine::{EngineError, MachineLockError, Options};
use treelock::redis::{self, RedisTreeLock};

/// Longer than any of these tests.
const LONG: Duration = Duration::from_secs(60);

const PATIENCE: Duration = Duration::from_millis(800);

fn url(server: &Server) -> String {
    format!("{}?wait_replicas=1&wait_ms=100", server.url())
}

fn open(server: &Server, patience: Duration) -> Result<RedisTreeLock, EngineError> {
    RedisTreeLock::connect(&url(server), "test", Options::new().time_to_live(LONG).patience(patience))
}

fn is_away(error: &EngineError) -> bool {
    matches!(error, EngineError::Away(_)) && error.to_string().contains("0 of 1 replicas")
}

/// However often it is tried, and on connections that have written nothing before. What is given up or released meanwhile is free
/// afterwards.
#[test]
fn request_is_granted_when_a_replica_has_it_and_not_before() {
    let Some(primary) = Server::start() else { return };
    primary.open_quickly();
    let replica = primary.replica();
    let (lock, patient) = (open(&primary, PATIENCE).unwrap(), open(&primary, LIMIT).unwrap());
    let released = lock.write_arc("released").unwrap();
    talk::stop(replica.child());
    let start = Instant::now();
    match lock.write("a").map(drop) {
        Err(MachineLockError::Engine(error)) => assert!(is_away(&error), "{error}"),
        other => panic!("{other:?}"),
    }
    assert!(start.elapsed() >= PATIENCE && start.elapsed() < LIMIT / 2, "{:?}", start.elapsed());
    assert!(is_away(&released.release().unwrap_err()));
    let error = open(&primary, PATIENCE).map(drop).unwrap_err();
    assert!(is_away(&error), "{error}");
    eprintln!("{error}");
    // One who only looks writes nothing.
    let is_there = |path: &str| {
        let looked = redis::look(&url(&primary), "test").unwrap().unwrap();
        looked.holders.iter().any(|holder| holder.roots.iter().any(|root| root.segments == [path]))
    };
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| patient.write("b").map(|guard| guard.release()));
        wait_until("the primary has it", || is_there("b"));
        let start = Instant::now();
        wait_until("it is tried again", || start.elapsed() > PATIENCE);
        assert!(!asked.is_finished() && is_there("b"));
        talk::go_on(replica.child());
        asked.join().unwrap().unwrap().unwrap();
    });
    drop(patient.try_lock_for(&[], &["a", "released"], LIMIT).unwrap());
    drop(lock.write("a").unwrap());
}

/// With the next server a guard is held, whenever the first one dies.
#[test]
fn promoted_replica_has_what_it_acknowledged() {
    let Some(mut primary) = Server::start() else { return };
    primary.open_quickly();
    let replica = primary.replica();
    let lock = open(&primary, PATIENCE).unwrap();
    let held = lock.write("a").unwrap();
    primary.kill();
    replica.ask(&["REPLICAOF", "NO", "ONE"]).unwrap();
    let next = replica.open_with(Options::new());
    assert!(matches!(next.try_write("a"), Err(MachineLockError::WouldBlock)));
    assert!(next.write("b").unwrap().fence() > held.fence());
}
