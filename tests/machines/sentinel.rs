//! A master that sentinels name, and the server that takes its place.
//!
//! What is lost if that one lacks the newest writes, see `loss.rs`.

use super::conformance::Place;
use super::server::{Server, free_port};
use crate::common::{LIMIT, wait_until};
use redis::Value;
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};
use treelock::machine::{EngineError, MachineLockError, Options};
use treelock::redis::RedisTreeLock;

/// Longer than a failover takes.
const LONG: Duration = Duration::from_secs(30);

/// A master, its replica, and a sentinel that decides alone.
struct Watched {
    master: Server,
    replica: Server,
    sentinel: Server,
}

impl Watched {
    /// `None` where there is no program for it.
    fn begin() -> Option<Self> {
        let master = Server::start()?;
        master.open_quickly();
        let replica = master.replica();
        let port = master.port;
        let configuration = format!(
            "sentinel monitor main 127.0.0.1 {port} 1\nsentinel down-after-milliseconds main 500\nsentinel \
             failover-timeout main 5000\n"
        );
        let sentinel = Server::configured(&configuration, &["--sentinel"])?;
        let knows = |words: &str| sentinel.info("sentinel").contains(words);
        wait_until("the sentinel knows both", || knows("status=ok") && knows("slaves=1"));
        Some(Watched { master, replica, sentinel })
    }

    fn url(&self) -> String {
        format!("redis+sentinel://127.0.0.1:{},127.0.0.1:{}/main", free_port(), self.sentinel.port)
    }

    fn open(&self) -> RedisTreeLock {
        RedisTreeLock::connect(&self.url(), "test", Options::new().time_to_live(LONG).patience(LIMIT)).unwrap()
    }

    /// Another client holds what a waiter waits for, while another server becomes the master.
    fn guards_survive(mut self, failover: impl FnOnce(&mut Self)) {
        let (one, other) = (self.open(), self.open());
        let held = one.write_arc("a").unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| other.try_write_for("a", LIMIT).map(|guard| guard.fence()));
            wait_until("it waits", || one.snapshot().unwrap().waiters.len() == 1);
            let head = |server: &Server| server.ask(&["HGET", "{treelock:test}:meta", "head"]).unwrap();
            wait_until("the replica has all", || head(&self.replica) == head(&self.master));
            let start = Instant::now();
            failover(&mut self);
            let second = one.write("b").unwrap().fence();
            eprintln!("a grant {:?} after the loss of the master began", start.elapsed());
            assert!(held.is_valid() && second > held.fence());
            assert!(matches!(self.open().try_write("a"), Err(MachineLockError::WouldBlock)));
            let fence = held.fence();
            held.release().unwrap();
            assert!(waiter.join().unwrap().unwrap() > fence);
        });
        assert!(self.replica.info("replication").contains("role:master"));
        let entries = self.replica.ask(&["XLEN", "{treelock:test}:log"]).unwrap();
        assert!(matches!(entries, Value::Int(8..)), "it is not where the clients write: {entries:?}");
    }
}

#[test]
fn guards_survive_the_death_of_a_master_whose_replica_has_all() {
    let Some(watched) = Watched::begin() else { return };
    watched.guards_survive(|watched| watched.master.kill());
}

/// The old master is there, as a replica that has not closed the clients' connections.
#[test]
fn guards_survive_the_demotion_of_a_master_whose_replica_has_all() {
    let Some(watched) = Watched::begin() else { return };
    watched.guards_survive(|watched| {
        let (sentinel, replica) = (&watched.sentinel, watched.replica.port.to_string());
        wait_until("it finds the replica good", || sentinel.ask(&["SENTINEL", "FAILOVER", "main"]).is_ok());
        let master = || format!("{:?}", sentinel.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"]).unwrap());
        wait_until("it names the other one", || master().contains(&replica));
        // The sentinel would do so in ten seconds.
        watched.master.ask(&["REPLICAOF", "127.0.0.1", &replica]).unwrap();
    });
}

/// Each is given a share of the time, and is asked last from then on.
#[test]
fn sentinel_that_is_silent_takes_a_share_of_the_time() {
    let Some(watched) = Watched::begin() else { return };
    let silent = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let silent = silent.each_ref().map(|listener| listener.local_addr().unwrap().to_string());
    let url = |sentinels: &[&str]| format!("redis+sentinel://{}/main", sentinels.join(","));
    let response = Duration::from_millis(1000);
    let options = Options::new().response_timeout(response).patience(3 * response);
    let there = format!("127.0.0.1:{}", watched.sentinel.port);
    let start = Instant::now();
    let lock: RedisTreeLock =
        RedisTreeLock::connect(&url(&[&silent[0], &silent[1], &there]), "test", options.clone()).unwrap();
    let took = start.elapsed();
    assert!(took > response / 4 && took < 3 * response, "{took:?}");
    drop(lock.write("a").unwrap());
    // With none that answers the deadline is kept.
    let start = Instant::now();
    let error =
        RedisTreeLock::<str>::connect(&url(&[&silent[0], &silent[1]]), "test", options).map(drop).unwrap_err();
    let took = start.elapsed();
    eprintln!("after {took:?}: {error}");
    assert!(matches!(error, EngineError::Away(_)) && took < 4 * response, "{took:?}: {error}");
}

/// What stands before the hosts is for the server.
#[test]
fn sentinels_and_the_server_have_passwords_of_their_own() {
    let Some(watched) = Watched::begin() else { return };
    watched.master.ask(&["CONFIG", "SET", "requirepass", "first"]).unwrap();
    watched.sentinel.ask(&["ACL", "SETUSER", "default", "resetpass", ">second"]).unwrap();
    let open = |user: &str, parameters: &str| {
        let url = format!("redis+sentinel://{user}127.0.0.1:{}/main{parameters}", watched.sentinel.port);
        RedisTreeLock::<str>::connect(&url, "test", Options::new())
    };
    let of_sentinel = "?sentinel_password=second";
    for (user, parameters, port) in [(":first@", "", watched.sentinel.port), ("", of_sentinel, watched.master.port)] {
        let error = open(user, parameters).map(drop).unwrap_err().to_string();
        assert!(error.contains("sentinel_password") && error.contains(&format!(":{port},")), "{error}");
    }
    drop(open(":first@", of_sentinel).unwrap().write("a").unwrap());
}

#[test]
fn master_that_no_sentinel_knows_is_told() {
    let Some(watched) = Watched::begin() else { return };
    let open = |url: &str| RedisTreeLock::<str>::connect(url, "test", Options::new()).map(drop).unwrap_err();
    let port = watched.sentinel.port;
    let cases = [
        (format!("redis+sentinel://127.0.0.1:{port}/other"), "knows no master \"other\""),
        (format!("redis://127.0.0.1:{port}/"), "redis+sentinel://host/master"),
        (format!("redis+sentinel://127.0.0.1:{}/main", watched.master.port), "redis://host"),
    ];
    for (url, words) in cases {
        let error = open(&url);
        assert!(matches!(error, EngineError::Refused(_)) && error.to_string().contains(words), "{url}: {error}");
        eprintln!("{error}");
    }
}
