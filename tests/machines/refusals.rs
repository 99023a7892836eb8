//! What a server refuses, and what is told of it: who may not enter, what a user may not do, and a server that is away.

use super::conformance::Place;
use super::server::Server;
use crate::common::{LIMIT, wait_until};
use redis::from_redis_value;
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};
use treelock::machine::{EngineError, MachineLockError, Options};
use treelock::redis::{RedisTreeLock, look};

const PATIENCE: Duration = Duration::from_millis(600);

fn options() -> Options {
    Options::new().patience(PATIENCE).response_timeout(PATIENCE / 2)
}

#[track_caller]
fn refusal(url: &str) -> String {
    let error = RedisTreeLock::<str>::connect(url, "test", options()).map(drop).unwrap_err();
    assert!(matches!(error, EngineError::Refused(_)), "{error}");
    eprintln!("{error}");
    error.to_string()
}

/// Whatever the server says to that, it is told where user and password belong.
#[test]
fn missing_or_wrong_password_is_told() {
    let Some(server) = Server::start() else { return };
    server.open_quickly();
    server.ask(&["ACL", "SETUSER", "ada", "on", ">lovelace", "+@all", "~*"]).unwrap();
    let with = |user: &str| format!("redis://{user}127.0.0.1:{}/", server.port);
    for user in [":secret@", "ada:byron@", "nobody:secret@"] {
        assert!(refusal(&with(user)).contains("redis://user:password@host"), "{user}");
    }
    server.ask(&["CONFIG", "SET", "requirepass", "secret"]).unwrap();
    for user in ["", "ada@", ":wrong@", "ada:byron@"] {
        let told = refusal(&with(user));
        assert!(told.contains("redis://user:password@host"), "{user}");
        assert!(!told.contains("byron") && !told.contains("wrong@"), "{user}");
    }
    assert!(look(&with(""), "test").unwrap_err().to_string().contains("redis://user:password@host"));
    for user in [":secret@", "ada:lovelace@"] {
        let lock: RedisTreeLock = RedisTreeLock::connect(&with(user), "test", options()).unwrap();
        drop(lock.write("a").unwrap());
    }
}

/// The rights that the documentation lists, for the namespace `test`.
fn documented_rights() -> Vec<String> {
    let source = include_str!("../../src/machine/redis/mod.rs");
    let (_, rights) = source.split_once("//! ACL SETUSER locker ").unwrap();
    let (rights, _) = rights.split_once("//! ```").unwrap();
    let rights = rights.replace("//!", "").replace("my-app:files", "test");
    rights.split_whitespace().map(str::to_owned).collect()
}

/// All that a client ever does: it begins, waits, looks, writes a snapshot, buries, and leaves.
#[test]
fn user_with_the_documented_rights_can_do_all() {
    let Some(server) = Server::start() else { return };
    let rights = documented_rights();
    let words: Vec<&str> =
        ["ACL", "SETUSER", "locker"].into_iter().chain(rights.iter().map(String::as_str)).collect();
    server.ask(&words).unwrap();
    let url = format!("redis://locker:secret@127.0.0.1:{}/", server.port);
    let open = |time_to_live| {
        RedisTreeLock::<str>::connect(&url, "test", options().time_to_live(Duration::from_millis(time_to_live)))
            .unwrap()
    };
    drop(open(50).write("a").unwrap());
    let (one, other) = (open(500), open(500));
    let held = one.write("a").unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| other.try_write_for("a", LIMIT).map(drop));
        wait_until("it waits", || look(&url, "test").unwrap().unwrap().waiters.len() == 1);
        held.release().unwrap();
        waiter.join().unwrap().unwrap();
    });
    // The log is cut by whoever writes a snapshot.
    let entries = || -> u64 { from_redis_value(server.ask(&["XLEN", "{treelock:test}:log"]).unwrap()).unwrap() };
    let (mut longest, mut kept) = (0, entries());
    while kept >= longest {
        longest = kept;
        drop(one.write("a").unwrap());
        kept = entries();
    }
    server.ask(&["DEL", "{treelock:test}:snap"]).unwrap();
    drop(other.try_write_for("a", LIMIT).unwrap());
    let refused = format!("{:?}", server.ask(&["ACL", "LOG"]).unwrap());
    assert_eq!(refused, "array([])");
}

/// No more, and no less.
#[test]
fn documented_rights_are_those_that_a_client_uses() {
    let script = include_str!("../../src/machine/redis/exchange.lua");
    let called = script.split("call('").skip(1).map(|call| call.split('\'').next().unwrap().to_lowercase());
    let beside = ["evalsha", "script|load", "xadd", "xrange", "xread"].map(str::to_owned);
    let used: BTreeSet<String> = called.chain(beside).collect();
    let documented = documented_rights().into_iter().filter_map(|right| right.strip_prefix('+').map(str::to_owned));
    assert_eq!(documented.collect::<BTreeSet<_>>(), used);
}

#[test]
fn missing_right_is_told() {
    let Some(server) = Server::start() else { return };
    let rights = documented_rights();
    let url = format!("redis://locker:secret@127.0.0.1:{}/", server.port);
    for lacks in ["+evalsha", "+xadd", "~{treelock:test}:*"] {
        server.ask(&["ACL", "DELUSER", "locker"]).unwrap();
        let rights = rights.iter().map(String::as_str).filter(|&right| right != lacks);
        let words: Vec<&str> = ["ACL", "SETUSER", "locker"].into_iter().chain(rights).collect();
        server.ask(&words).unwrap();
        assert!(refusal(&url).contains("treelock::redis"), "{lacks}");
    }
}

/// The code stands within the error of a pipeline: the client that sends one expects news of another.
#[test]
fn busy_server_is_away() {
    let Some(server) = Server::start() else { return };
    server.open_quickly();
    let (one, other) = (server.open_with(options()), server.open_with(options()));
    for lock in [&one, &other, &one, &other] {
        drop(lock.write("a").unwrap());
    }
    server.ask(&["CONFIG", "SET", "busy-reply-threshold", "1"]).unwrap();
    thread::scope(|scope| {
        let busy = scope.spawn(|| server.ask(&["EVAL", "while true do end", "0"]));
        let says_so = || server.ask(&["PING"]).is_err_and(|error| error.to_string().contains("BUSY"));
        wait_until("the server is busy", says_so);
        let asked = one.write("a").map(drop);
        server.ask(&["SCRIPT", "KILL"]).unwrap();
        match asked {
            Err(MachineLockError::Engine(error @ EngineError::Away(_))) => {
                assert!(error.to_string().contains("BUSY"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        assert!(busy.join().unwrap().is_err());
    });
    drop(one.write("a").unwrap());
}

/// A user has to know which of many servers it is.
#[test]
fn outage_is_told_with_the_host_and_the_namespace() {
    let Some(mut server) = Server::start() else { return };
    server.open_quickly();
    let lock = server.open_with(options());
    drop(lock.write("a").unwrap());
    server.kill();
    let told = [
        lock.write("a").map(drop).unwrap_err().to_string(),
        RedisTreeLock::<str>::connect(&server.url(), "test", options()).map(drop).unwrap_err().to_string(),
    ];
    for told in told {
        assert!(told.contains(&format!("127.0.0.1:{}", server.port)) && told.contains("\"test\""), "{told}");
        assert!(told.contains("Connection refused"), "{told}");
        eprintln!("{told}");
    }
}

/// With what is said at the beginning of a connection, and without.
#[test]
fn server_that_never_answers_is_told_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    for url in [format!("redis://{at}/"), format!("redis://:secret@{at}/1")] {
        let start = Instant::now();
        let error = RedisTreeLock::<str>::connect(&url, "test", options()).map(drop).unwrap_err();
        let took = start.elapsed();
        eprintln!("{error} after {took:?}");
        assert!(matches!(error, EngineError::Away(_)) && error.to_string().contains("no answer in time"), "{error}");
        assert!(took >= PATIENCE && took < 3 * PATIENCE, "{took:?}");
    }
}

/// A request is one round trip, on a connection that is there.
#[test]
fn requests_share_one_connection_and_take_one_call_each() {
    let Some(server) = Server::start() else { return };
    server.open_quickly();
    let lock = server.open_with(Options::new().time_to_live(Duration::from_secs(60)));
    drop(lock.write("a").unwrap());
    let connections = || server.count("stats", "total_connections_received");
    let reads = || server.count("stats", "total_reads_processed");
    let before = (connections(), reads());
    for _ in 0..100 {
        drop(lock.write("a").unwrap());
    }
    let after = (connections(), reads());
    // Two connections, and some reads, are of this test itself.
    assert_eq!(after.0 - before.0, 2);
    let read = after.1 - before.1;
    assert!((200..220).contains(&read), "{read} for 100 requests and 100 releases");
}
