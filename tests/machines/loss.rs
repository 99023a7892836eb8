//! What becomes of guards when the server loses data, is full, or holds something foreign (M1, M3, M6).

use super::conformance::Place;
use super::proxy::Proxy;
use super::server::Server;
use crate::common::{LIMIT, wait_until};
use redis::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use treelock::machine::{ArcMachineGuard, EngineError, MachineLockError, MachineTreeLock, Options};
use treelock::redis::RedisTreeLock;

const SHORT: Duration = Duration::from_secs(1);

pub(crate) fn options() -> Options {
    Options::new().time_to_live(SHORT).patience(Duration::from_secs(5))
}

fn key(name: &str) -> String {
    format!("{{treelock:test}}:{name}")
}

/// A guard, and whether it was told that it is lost.
pub(crate) fn watched(lock: &MachineTreeLock, path: &str) -> (ArcMachineGuard, Arc<AtomicBool>) {
    let guard = lock.write_arc(path).unwrap();
    let told = Arc::new(AtomicBool::new(false));
    let tells = Arc::clone(&told);
    guard.on_lost(move || tells.store(true, Ordering::SeqCst));
    (guard, told)
}

/// Guards of two clients are lost, and others get in after one time to live, with higher fences.
#[track_caller]
pub(crate) fn all_is_lost_by<S: Place>(server: &mut S, lose: impl FnOnce(&mut S)) {
    let (one, other) = (server.open_with(options()), server.open_with(options()));
    let held = [watched(&one, "a"), watched(&other, "b")];
    let fence = held.iter().map(|(guard, _)| guard.fence()).max().unwrap();
    assert!(held.iter().all(|(guard, _)| guard.is_valid()));
    let lost = Instant::now();
    lose(server);
    let third = open_at_last(server);
    let asked = Instant::now();
    let granted = third.try_write_for("a", LIMIT).unwrap();
    let took = lost.elapsed();
    assert!(held.iter().all(|(guard, _)| !guard.is_valid()), "another one was let in before they were lost");
    eprintln!("asked {:?} after the loss, let in after {took:?}", asked - lost);
    // The clock of the server is not that of the test.
    assert!(took > SHORT.mul_f64(0.95) && took < LIMIT / 2, "{took:?}");
    assert!(granted.fence() > fence);
    for (guard, told) in held {
        wait_until("it is told", || told.load(Ordering::SeqCst));
        let released = guard.release();
        assert!(matches!(released, Err(EngineError::Lost)), "{released:?}");
    }
    // All clients go on.
    granted.release().unwrap();
    for lock in [&one, &other, &third] {
        assert!(lock.try_lock_for(&[], &["a", "b"], LIMIT).unwrap().fence() > fence);
    }
    let snapshot = one.snapshot().unwrap();
    assert!(snapshot.holders.is_empty() && snapshot.waiters.is_empty(), "{snapshot}");
}

/// Opens the lock, again and again; one that meets something foreign is told, and the next one finds that it begins anew.
fn open_at_last<S: Place>(server: &S) -> S::Lock<str> {
    let start = Instant::now();
    loop {
        match server.try_open_as(options()) {
            Ok(lock) => return lock,
            Err(error) => eprintln!("told after {:?}: {error}", start.elapsed()),
        }
        assert!(start.elapsed() < LIMIT);
    }
}

#[test]
fn restart_without_data_loses_all_guards() {
    let Some(mut server) = Server::start() else { return };
    all_is_lost_by(&mut server, |server| {
        server.kill();
        server.go_on();
    });
}

#[test]
fn flushed_server_loses_all_guards() {
    let Some(mut server) = Server::start() else { return };
    all_is_lost_by(&mut server, |server| drop(server.ask(&["FLUSHALL"]).unwrap()));
}

#[test]
fn each_key_that_is_deleted_is_missed() {
    let Some(mut server) = Server::start() else { return };
    for name in ["meta", "log", "live", "snap"] {
        all_is_lost_by(&mut server, |server| {
            assert_eq!(server.ask(&["DEL", &key(name)]).unwrap(), Value::Int(1), "{name}");
        });
    }
}

/// A trimmed stream, a session that was taken away.
#[test]
fn part_of_a_key_that_is_deleted_is_missed() {
    let Some(mut server) = Server::start() else { return };
    all_is_lost_by(&mut server, |server| drop(server.ask(&["XTRIM", &key("log"), "MAXLEN", "0"]).unwrap()));
    all_is_lost_by(&mut server, |server| drop(server.ask(&["ZREMRANGEBYRANK", &key("live"), "0", "0"]).unwrap()));
    all_is_lost_by(&mut server, |server| drop(server.ask(&["HDEL", &key("meta"), "head"]).unwrap()));
}

/// One that waits asks again in the new order.
#[test]
fn waiter_gets_in_after_the_loss() {
    let Some(server) = Server::start() else { return };
    let (one, other) = (server.open_with(options()), server.open_with(options()));
    let (held, _) = watched(&one, "a");
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| other.try_write_for("a", LIMIT).map(|guard| guard.fence()));
        wait_until("it waits", || one.snapshot().unwrap().waiters.len() == 1);
        server.ask(&["FLUSHALL"]).unwrap();
        assert!(waiter.join().unwrap().unwrap() > held.fence());
    });
    assert!(!held.is_valid());
}

/// What a callback does is none of the lock's business.
#[test]
fn callback_that_panics_leaves_the_lock_usable() {
    let Some(server) = Server::start() else { return };
    let lock = server.open_with(options());
    let (guard, told) = watched(&lock, "a");
    guard.on_lost(|| std::panic::resume_unwind(Box::new("as it was told")));
    let (_second, told_too) = watched(&lock, "b");
    server.ask(&["FLUSHALL"]).unwrap();
    wait_until("both are told", || told.load(Ordering::SeqCst) && told_too.load(Ordering::SeqCst));
    let later = lock.write_arc("a").unwrap();
    let start = Instant::now();
    wait_until("two times to live have passed", || start.elapsed() > 2 * SHORT);
    assert!(later.is_valid(), "nobody renews the session");
}

/// A new namespace is closed for one time to live: requests wait, tries fail, deadlines pass, and snapshots are answered. The client that
/// waits renews its session meanwhile.
#[test]
fn new_namespace_is_closed_for_one_time_to_live() {
    let Some(server) = Server::start() else { return };
    let time_to_live = 3 * SHORT;
    let lock = server.open_with(options().time_to_live(time_to_live));
    let start = Instant::now();
    assert!(matches!(lock.try_write("a"), Err(MachineLockError::WouldBlock)));
    let refused = lock.try_write_for("a", Duration::from_millis(50)).map(drop);
    assert!(matches!(refused, Err(MachineLockError::TimedOut)), "{refused:?}");
    assert!(lock.snapshot().unwrap().holders.is_empty());
    assert!(start.elapsed() < SHORT, "{:?}", start.elapsed());
    let guard = lock.write("a").unwrap();
    let took = start.elapsed();
    eprintln!("time to live {time_to_live:?}: the first grant after {took:?}");
    assert!(took > time_to_live.mul_f64(0.95) && took < 2 * time_to_live);
    let members = server.ask(&["HGET", &key("meta"), "members"]).unwrap();
    assert_eq!(members, Value::BulkString(b"1".into()), "it has needed another session");
    guard.release().unwrap();
    for _ in 0..100 {
        drop(lock.try_write("a").unwrap());
    }
}

/// Such a client would lose each session as it begins.
#[test]
fn margin_that_leaves_nothing_of_the_time_to_live_is_refused() {
    let Some(server) = Server::start() else { return };
    let open =
        |margin| RedisTreeLock::<str>::connect(&server.url(), "test", options().clock_margin(margin)).map(drop);
    for margin in [SHORT, 2 * SHORT] {
        assert!(matches!(open(margin), Err(EngineError::Refused(_))), "{margin:?}");
    }
    open(SHORT / 2).unwrap();
}

/// Each client is idle but for its renewals while others write much.
#[test]
fn log_is_kept_short() {
    let Some(server) = Server::start() else { return };
    server.open_quickly();
    let (lock, _idle) = (server.open_with(options()), server.open_with(options()));
    let mut longest = 0;
    for _ in 0..15 {
        for _ in 0..100 {
            drop(lock.write("a").unwrap());
        }
        let Value::Int(entries) = server.ask(&["XLEN", &key("log")]).unwrap() else { panic!() };
        longest = longest.max(entries);
    }
    eprintln!("3000 batches; never more than {longest} entries seen");
    assert!(longest < 1500, "{longest}");
}

/// The first client that opens it afterwards is told, and the namespace begins anew, as its error says.
#[test]
fn foreign_entries_are_told_and_the_namespace_begins_anew() {
    for garbage in [
        vec!["*", "some", "thing"],
        vec!["*", "m", "x", "e", "y"],
        vec!["9999999999999999-1", "m", "0", "e", "\u{1}"],
    ] {
        let Some(mut server) = Server::start() else { return };
        let log = key("log");
        let words: Vec<&str> = ["XADD", &log].into_iter().chain(garbage.iter().copied()).collect();
        let add = |server: &Server| drop(server.ask(&words).unwrap());
        // With clients that are there.
        all_is_lost_by(&mut server, |server| add(server));
        // And with none.
        add(&server);
        let lock = open_at_last(&server);
        drop(lock.try_write_for("a", LIMIT).unwrap());
    }
}

/// It is not ours to delete. When it is gone all goes on.
#[test]
fn keys_of_another_type_are_refused_with_their_reason() {
    for name in ["meta", "log", "live", "snap"] {
        let Some(server) = Server::start() else { return };
        let lock = server.open_with(options());
        let (held, told) = watched(&lock, "a");
        let commands = match name {
            "snap" => vec![vec!["DEL", "K"], vec!["LPUSH", "K", "x"]],
            _ => vec![vec!["SET", "K", "x"]],
        };
        for command in commands {
            let words: Vec<String> = command.iter().map(|word| word.replace('K', &key(name))).collect();
            server.ask(&words.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        }
        let start = Instant::now();
        let refused = RedisTreeLock::<str>::connect(&server.url(), "test", options());
        let told_at_once = refused.map(drop).map_err(|error| error.to_string());
        if name == "snap" {
            // It is read only by one who needs it, as this one did.
            assert!(told_at_once.is_err(), "{name}");
        }
        let error = told_at_once.unwrap_err();
        assert!(error.contains("refused") && error.contains("WRONGTYPE"), "{name}: {error}");
        eprintln!("{name}: {error}");
        if name != "snap" {
            wait_until("the guard is lost", || !held.is_valid() && told.load(Ordering::SeqCst));
            let asked = lock.try_write("b").map(drop);
            assert!(matches!(asked, Err(MachineLockError::Engine(EngineError::Refused(_)))), "{name}: {asked:?}");
        }
        assert!(start.elapsed() < LIMIT / 2);
        server.ask(&["DEL", &key(name)]).unwrap();
        drop(lock.try_write_for("a", LIMIT).unwrap());
    }
}

#[test]
fn another_format_is_told() {
    let Some(server) = Server::start() else { return };
    let lock = server.open_with(options());
    let (held, told) = watched(&lock, "a");
    server.ask(&["HSET", &key("meta"), "format", "999"]).unwrap();
    let opened = RedisTreeLock::<str>::connect(&server.url(), "test", options()).map(drop);
    assert!(matches!(&opened, Err(EngineError::OtherFormat(format)) if format == "999"), "{opened:?}");
    wait_until("the guard is lost", || !held.is_valid() && told.load(Ordering::SeqCst));
    let asked = lock.write("b").map(drop);
    assert!(matches!(asked, Err(MachineLockError::Engine(EngineError::OtherFormat(_)))), "{asked:?}");
    // Nothing of it was touched.
    assert_eq!(server.ask(&["HGET", &key("meta"), "format"]).unwrap(), Value::BulkString(b"999".into()));
}

/// A request is refused with the reason, leaves nothing, and what is held is held when there is memory again.
#[test]
fn full_server_refuses_and_nothing_is_left_locked() {
    let Some(server) = Server::start() else { return };
    let lock = server.open_with(options());
    let (held, _) = watched(&lock, "a");
    let dropped = lock.write_arc("dropped").unwrap();
    server.ask(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    let start = Instant::now();
    for refused in
        [lock.try_write("b").map(drop), lock.write("c").map(drop), lock.try_write_for("d", LIMIT).map(drop)]
    {
        assert!(matches!(refused, Err(MachineLockError::Engine(EngineError::Refused(_)))), "{refused:?}");
        assert!(refused.unwrap_err().to_string().contains("OOM"));
    }
    let opened = RedisTreeLock::<str>::connect(&server.url(), "test", options()).map(drop);
    assert!(opened.unwrap_err().to_string().contains("OOM"));
    drop(dropped);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    server.ask(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    let looks = server.open_with(options());
    wait_until("only what is held is held", || {
        let snapshot = looks.snapshot().unwrap();
        snapshot.holders.len() == 1 && snapshot.waiters.is_empty()
    });
    assert!(held.is_valid());
    held.release().unwrap();
    drop(looks.try_lock(&[], &["a", "b", "c", "d", "dropped"]).unwrap());
}

/// For longer than a session lives: what is held is lost, since no session can be renewed.
#[test]
fn guards_are_lost_if_the_server_is_full_for_too_long() {
    let Some(server) = Server::start() else { return };
    let lock = server.open_with(options());
    let (held, told) = watched(&lock, "a");
    server.ask(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    wait_until("it is lost", || !held.is_valid() && told.load(Ordering::SeqCst));
    server.ask(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    assert!(lock.try_write_for("a", LIMIT).unwrap().fence() > held.fence());
}

/// A replica that is promoted and lacks the newest writes: clients that have seen those lose their guards with their next call.
#[test]
fn promoted_replica_that_lacks_the_newest_writes_loses_all_guards() {
    let (Some(primary), Some(replica)) = (Server::start(), Server::start()) else { return };
    replica.ask(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]).unwrap();
    let proxy = Proxy::to(primary.port);
    let (one, other) = (proxy.open(options()), proxy.open(options()));
    let (early, early_told) = watched(&one, "early");
    let entries = |server: &Server| server.ask(&["XLEN", &key("log")]).unwrap();
    wait_until("the replica has it", || entries(&replica) == entries(&primary));
    replica.ask(&["REPLICAOF", "NO", "ONE"]).unwrap();
    // The replica lacks this.
    let (late, late_told) = watched(&other, "late");
    let (fence, moved) = (early.fence().max(late.fence()), Instant::now());
    proxy.redirect(replica.port);
    let third = proxy.open(options());
    let granted = third.try_lock_for(&[], &["early", "late"], LIMIT).unwrap();
    eprintln!("let in {:?} after the other server took over", moved.elapsed());
    assert!(granted.fence() > fence);
    for (guard, told) in [(early, early_told), (late, late_told)] {
        assert!(!guard.is_valid());
        wait_until("it is told", || told.load(Ordering::SeqCst));
        assert!(matches!(guard.release(), Err(EngineError::Lost)));
    }
    granted.release().unwrap();
    drop((one.try_write_for("early", LIMIT).unwrap(), other.try_write_for("late", LIMIT).unwrap()));
}

/// The same replica without a loss: it has all, and nothing is lost.
#[test]
fn promoted_replica_that_has_all_writes_keeps_all_guards() {
    let (Some(primary), Some(replica)) = (Server::start(), Server::start()) else { return };
    replica.ask(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]).unwrap();
    let proxy = Proxy::to(primary.port);
    let long = options().time_to_live(Duration::from_secs(6));
    let (one, other) = (proxy.open(long.clone()), proxy.open(long));
    let (held, _) = watched(&one, "a");
    let head = |server: &Server| server.ask(&["HGET", &key("meta"), "head"]).unwrap();
    wait_until("the replica has it", || head(&replica) == head(&primary));
    replica.ask(&["REPLICAOF", "NO", "ONE"]).unwrap();
    proxy.redirect(replica.port);
    assert!(matches!(other.try_write("a"), Err(MachineLockError::WouldBlock)));
    let fence = other.write("b").unwrap().fence();
    assert!(fence > held.fence() && held.is_valid());
    held.release().unwrap();
}
