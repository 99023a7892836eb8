//! What becomes of requests and guards when the server, or the way to it, stops for a while (M1, M2, M4).

use super::conformance::Place;
use super::proxy::Proxy;
use super::server::Server;
use crate::common::{LIMIT, wait_until};
use crate::talk;
use redis::Value;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use treelock::machine::{EngineError, MachineLockError, MachineTreeLock, Options};
use treelock::redis::RedisTreeLock;

const LONG: Duration = Duration::from_secs(6);
const SHORT: Duration = Duration::from_secs(1);

fn options(time_to_live: Duration) -> Options {
    Options::new().time_to_live(time_to_live)
}

/// A server whose namespace takes requests, and a way to it.
fn begin() -> Option<(Server, Proxy)> {
    let server = Server::begin()?;
    let proxy = Proxy::to(server.port);
    Some((server, proxy))
}

/// How many batches are in the log more than once, since the client did not know that the server had them. They are to count once.
fn written_again(server: &Server) -> usize {
    let Value::Array(log) = server.ask(&["XRANGE", "{treelock:test}:log", "-", "+"]).unwrap() else { panic!() };
    let mut known = HashSet::new();
    let mut is_known = |entry: &Value| {
        let Value::Array(entry) = entry else { panic!("{entry:?}") };
        let Value::Array(fields) = &entry[1] else { panic!("{entry:?}") };
        let [Value::BulkString(member), Value::BulkString(batch)] = &fields[..] else { panic!("{fields:?}") };
        // The first entry of an order is nobody's.
        !member.is_empty() && !known.insert((member.clone(), batch.clone()))
    };
    log.iter().filter(|entry| is_known(entry)).count()
}

/// M4: whether the server has acted or not.
#[test]
fn call_that_is_cut_off_acts_once_and_the_request_ends() {
    let Some((server, proxy)) = begin() else { return };
    let (lock, direct) = (proxy.open(options(LONG)), server.open_with(options(LONG)));
    for cut in [Proxy::cut_before_call, Proxy::cut_before_reply] {
        for calls in [1, 3] {
            let before = proxy.cuts();
            cut(&proxy, calls);
            let mut guard = lock.lock(&["r"], &["a"]).unwrap();
            assert_eq!(proxy.cuts(), before + calls as usize);
            assert!(matches!(direct.try_read("a"), Err(MachineLockError::WouldBlock)));
            cut(&proxy, calls);
            guard.downgrade().unwrap();
            assert_eq!(proxy.cuts(), before + 2 * calls as usize);
            drop(direct.try_read("a").unwrap());
            cut(&proxy, calls);
            assert!(matches!(direct.try_write("a"), Err(MachineLockError::WouldBlock)));
            guard.release().unwrap();
            assert_eq!(proxy.cuts(), before + 3 * calls as usize);
            let held = direct.try_write("a").unwrap();
            cut(&proxy, calls);
            assert!(matches!(lock.try_write("a"), Err(MachineLockError::WouldBlock)));
            cut(&proxy, calls);
            drop(lock.try_write("b").unwrap());
            held.release().unwrap();
            assert_eq!(proxy.cuts(), before + 5 * calls as usize);
        }
    }
    assert!(written_again(&server) > 0);
    let snapshot = direct.snapshot().unwrap();
    assert!(snapshot.holders.is_empty() && snapshot.waiters.is_empty(), "{snapshot}");
}

/// M4, and G1: six threads count, while so many of a thousand calls and answers are cut off. The third client has another way.
pub(crate) fn count_over_a_bad_way(
    proxy: &Proxy,
    clients: [&MachineTreeLock; 3],
    of_a_thousand: u32,
    rounds: u64,
    most_cuts_to_miss: usize,
) {
    proxy.cut_by_chance(of_a_thousand);
    let (count, fences) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for number in 0..6 {
            let (client, count, fences) = (clients[number % 3], &count, &fences);
            scope.spawn(move || {
                for _ in 0..rounds {
                    let guard = client.try_write_for("a", LIMIT).unwrap();
                    let seen = count.load(Ordering::Relaxed);
                    assert!(fences.swap(guard.fence(), Ordering::SeqCst) < guard.fence());
                    thread::yield_now();
                    assert!(guard.is_valid());
                    count.store(seen + 1, Ordering::Relaxed);
                }
            });
        }
    });
    eprintln!("{} sections with {} cuts", 6 * rounds, proxy.cuts());
    assert_eq!(count.into_inner(), 6 * rounds);
    assert!(proxy.cuts() > most_cuts_to_miss);
    proxy.cut_by_chance(0);
    wait_until("all is released", || clients[2].snapshot().unwrap().holders.is_empty());
}

#[test]
fn requests_over_a_bad_way_are_granted_once_each() {
    let Some((server, proxy)) = begin() else { return };
    let clients = [proxy.open(options(LONG)), proxy.open(options(LONG)), server.open_with(options(LONG))];
    count_over_a_bad_way(&proxy, clients.each_ref().map(|client| &**client), 100, 40, 20);
    assert!(written_again(&server) > 0);
}

/// M2: while the server is there for others.
#[test]
fn client_that_is_cut_off_knows_that_it_has_lost_before_others_get_in() {
    let Some((server, proxy)) = begin() else { return };
    let time_to_live = Duration::from_secs(2);
    let options = options(time_to_live).clock_margin(Duration::from_millis(700));
    let (cut_off, other) = (proxy.open(options.clone()), server.open_with(options));
    for silently in [false, true] {
        let guard = cut_off.write_arc("a").unwrap();
        let told = Arc::new(AtomicBool::new(false));
        let tells = Arc::clone(&told);
        guard.on_lost(move || tells.store(true, Ordering::SeqCst));
        let start = Instant::now();
        match silently {
            true => proxy.be_silent(true),
            false => proxy.close(true),
        }
        let granted = other.try_write_for("a", LIMIT).unwrap();
        let took = start.elapsed();
        assert!(!guard.is_valid() && told.load(Ordering::SeqCst), "silently: {silently}");
        eprintln!("time to live {time_to_live:?}; cut off silently: {silently}; others are let in after {took:?}");
        assert!(granted.fence() > guard.fence());
        match silently {
            true => proxy.be_silent(false),
            false => proxy.close(false),
        }
        assert!(matches!(guard.release(), Err(EngineError::Lost)));
        granted.release().unwrap();
        drop(cut_off.try_write_for("a", LIMIT).unwrap());
    }
}

/// A wait may be longer than the patience with a server that does not answer: that begins when it ceases to answer.
#[test]
fn cut_of_a_moment_does_not_end_a_wait_that_is_longer_than_the_patience() {
    let Some((server, proxy)) = begin() else { return };
    let patience = Duration::from_millis(500);
    let (waits, holds) = (proxy.open(options(LONG).patience(patience)), server.open_with(options(LONG)));
    let held = holds.write("a").unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| waits.try_write_for("a", LIMIT).map(drop));
        wait_until("it waits", || holds.snapshot().unwrap().waiters.len() == 1);
        let start = Instant::now();
        wait_until("it has waited for longer than the patience", || start.elapsed() > 2 * patience);
        proxy.close(true);
        wait_until("it has called in vain", || proxy.refused() > 0);
        proxy.close(false);
        // The entries of others make it call.
        wait_until("it has called again", || {
            drop(holds.write("b").unwrap());
            start.elapsed() > 3 * patience
        });
        held.release().unwrap();
        waiter.join().unwrap().unwrap();
    });
}

/// A server that stops for less than a session lives loses nothing, whoever asks meanwhile.
#[test]
fn server_that_stops_for_a_short_time_loses_nothing() {
    let Some((server, _)) = begin() else { return };
    let options = options(LONG).response_timeout(Duration::from_millis(300));
    let (one, other) = (server.open_with(options.clone()), server.open_with(options));
    let guard = one.write("a").unwrap();
    let pause = Duration::from_millis(1000);
    for by_signal in [true, false] {
        thread::scope(|scope| {
            let start = Instant::now();
            match by_signal {
                true => talk::stop(server.child()),
                false => drop(server.ask(&["CLIENT", "PAUSE", &pause.as_millis().to_string(), "ALL"]).unwrap()),
            }
            let asks = scope.spawn(|| other.write("b").map(|guard| guard.release()));
            let waits = scope.spawn(|| other.try_write_for("a", 2 * pause).map(drop));
            wait_until("the time has passed", || start.elapsed() > pause);
            if by_signal {
                talk::go_on(server.child());
            }
            asks.join().unwrap().unwrap().unwrap();
            let refused = waits.join().unwrap();
            assert!(matches!(refused, Err(MachineLockError::TimedOut)), "{refused:?}");
        });
        assert!(guard.is_valid());
    }
    guard.release().unwrap();
    wait_until("all is released", || one.snapshot().unwrap().holders.is_empty());
}

/// For longer: guards are lost in the eyes of their holders before others are let in.
#[test]
fn server_that_stops_for_too_long_loses_guards_before_others_get_in() {
    let Some((server, _)) = begin() else { return };
    let (one, other) = (server.open_with(options(SHORT)), server.open_with(options(SHORT)));
    let guard = one.write_arc("a").unwrap();
    let told = Arc::new(AtomicBool::new(false));
    let tells = Arc::clone(&told);
    guard.on_lost(move || tells.store(true, Ordering::SeqCst));
    talk::stop(server.child());
    let start = Instant::now();
    wait_until("it is invalid", || !guard.is_valid());
    let invalid = start.elapsed();
    wait_until("it is told", || told.load(Ordering::SeqCst));
    eprintln!("time to live {SHORT:?}: invalid after {invalid:?}, told after {:?}", start.elapsed());
    assert!(invalid <= SHORT && start.elapsed() < SHORT * 2);
    talk::go_on(server.child());
    assert!(other.try_write_for("a", LIMIT).unwrap().fence() > guard.fence());
    assert!(matches!(guard.release(), Err(EngineError::Lost)));
}

/// A request fails when the patience is over, a deadline comes first, and all goes on when the server is back.
#[test]
fn server_that_is_away_is_told_after_the_patience() {
    let Some((server, proxy)) = begin() else { return };
    let patience = Duration::from_millis(800);
    let options = options(LONG).patience(patience).response_timeout(Duration::from_millis(300));
    let lock = proxy.open(options.clone());
    let held = lock.write_arc("held").unwrap();
    let dropped = lock.write_arc("dropped").unwrap();
    for silently in [false, true] {
        match silently {
            true => proxy.be_silent(true),
            false => proxy.close(true),
        }
        for is_snapshot in [false, true] {
            let start = Instant::now();
            let refused = match is_snapshot {
                false => lock.write("a").map(drop),
                true => lock.snapshot().map(drop).map_err(MachineLockError::from),
            };
            let took = start.elapsed();
            assert!(matches!(refused, Err(MachineLockError::Engine(EngineError::Away(_)))), "{refused:?}");
            assert!(took >= patience - Duration::from_millis(5) && took < patience * 4, "{took:?}");
            let error = refused.unwrap_err();
            eprintln!("silently: {silently}; after {took:?}: {error}");
            assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::NotConnected);
        }
        let start = Instant::now();
        let refused = lock.try_write_for("a", patience / 4).map(drop);
        assert!(matches!(refused, Err(MachineLockError::TimedOut)), "{refused:?}");
        assert!(start.elapsed() < patience, "{:?}", start.elapsed());
        match silently {
            true => proxy.be_silent(false),
            false => proxy.close(false),
        }
        drop(lock.try_write_for("a", LIMIT).unwrap());
        assert!(held.is_valid());
    }
    proxy.close(true);
    let start = Instant::now();
    drop(dropped);
    assert!(start.elapsed() < patience, "a guard that is dropped does not wait for the server");
    assert!(matches!(held.release(), Err(EngineError::Away(_))));
    proxy.close(false);
    let looks = server.open_with(options);
    wait_until("all is released", || looks.snapshot().unwrap().holders.is_empty());
}

/// A try does not wait for the patience, whether the client has a session or needs a new one.
#[test]
fn try_fails_after_one_answer_that_does_not_come() {
    let Some((server, proxy)) = begin() else { return };
    let response = Duration::from_millis(300);
    let lock = proxy.open(options(SHORT).patience(2 * LIMIT).response_timeout(response));
    for silently in [false, true] {
        let held = lock.try_write_for("held", LIMIT).unwrap();
        match silently {
            true => proxy.be_silent(true),
            false => proxy.close(true),
        }
        for has_session in [true, false] {
            wait_until("the session is over", || has_session || !held.is_valid());
            let start = Instant::now();
            let refused = lock.try_write("a").map(drop);
            let took = start.elapsed();
            assert!(matches!(refused, Err(MachineLockError::Engine(EngineError::Away(_)))), "{refused:?}");
            eprintln!("silently: {silently}; with a session: {has_session}; after {took:?}");
            assert!(took >= response - Duration::from_millis(5) && took < LIMIT, "{took:?}");
        }
        match silently {
            true => proxy.be_silent(false),
            false => proxy.close(false),
        }
        drop(held);
    }
    let looks = server.open_with(options(SHORT));
    wait_until("nothing is left", || looks.snapshot().unwrap().holders.is_empty());
}

/// It is not waited for when a client is dropped, nor by the threads of that.
#[test]
fn client_is_dropped_in_bounded_time_while_the_server_does_not_answer() {
    let Some((server, _)) = begin() else { return };
    let lock = server.open_with(options(SHORT).response_timeout(Duration::from_millis(300)));
    let guard = lock.write_arc("a").unwrap();
    talk::stop(server.child());
    let start = Instant::now();
    drop(guard);
    drop(lock);
    let took = start.elapsed();
    eprintln!("guard and client dropped in {took:?}");
    talk::go_on(server.child());
    assert!(took < 3 * SHORT, "{took:?}");
    drop(server.open_with(options(SHORT)).try_write_for("a", LIMIT).unwrap());
}

#[test]
fn server_that_is_not_there_is_told_when_the_lock_is_opened() {
    let Some(mut server) = Server::start() else { return };
    server.kill();
    let patience = Duration::from_millis(300);
    let start = Instant::now();
    let opened = RedisTreeLock::<str>::connect(&server.url(), "test", Options::new().patience(patience)).map(drop);
    assert!(matches!(opened, Err(EngineError::Away(_))), "{opened:?}");
    assert!(start.elapsed() >= patience && start.elapsed() < LIMIT / 2);
    for url in ["nonsense", "http://127.0.0.1/"] {
        let opened = RedisTreeLock::<str>::connect(url, "test", Options::new()).map(drop);
        assert!(matches!(opened, Err(EngineError::Refused(_))), "{opened:?}");
    }
}

/// The session that a client begins after a loss is renewed as the first one was.
#[test]
fn guard_of_a_second_session_stays_valid() {
    let Some((server, _)) = begin() else { return };
    let (lock, other) = (server.open_with(options(SHORT)), server.open_with(options(SHORT)));
    let first = lock.write_arc("a").unwrap();
    server.ask(&["FLUSHALL"]).unwrap();
    wait_until("it is lost", || !first.is_valid());
    // When this has got in, the namespace takes requests again, and nobody waits.
    drop(other.try_write_for("b", LIMIT).unwrap());
    let second = lock.write_arc("a").unwrap();
    let start = Instant::now();
    wait_until("two times to live have passed", || start.elapsed() > 2 * SHORT);
    assert!(second.is_valid());
    second.release().unwrap();
}

/// It asks again in a new session, behind those that came meanwhile.
#[test]
fn waiter_whose_session_is_lost_asks_again() {
    let Some((server, proxy)) = begin() else { return };
    let (waits, holds) = (proxy.open(options(SHORT)), server.open_with(options(SHORT)));
    let held = holds.write("a").unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| waits.try_write_for("a", LIMIT).map(|guard| guard.release()));
        let number = || {
            let waiters = holds.snapshot().unwrap().waiters;
            waiters.first().map(|waiter| waiter.process.as_ref().unwrap().member)
        };
        wait_until("it waits", || number().is_some());
        let first = number();
        proxy.be_silent(true);
        wait_until("it is buried", || number().is_none());
        proxy.be_silent(false);
        wait_until("it waits again", || number().is_some_and(|number| Some(number) != first));
        held.release().unwrap();
        waiter.join().unwrap().unwrap().unwrap();
    });
}

/// What was cut off is asked for again at once, not when the session is to be renewed.
#[test]
fn waiter_whose_connections_were_cut_hears_of_its_grant() {
    let Some((server, proxy)) = begin() else { return };
    let (waits, holds) = (proxy.open(options(10 * LONG)), server.open_with(options(10 * LONG)));
    let held = holds.write("a").unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| waits.try_write_for("a", LIMIT).map(drop));
        wait_until("it waits", || holds.snapshot().unwrap().waiters.len() == 1);
        proxy.close(true);
        wait_until("it has called in vain", || proxy.refused() > 0);
        proxy.close(false);
        let start = Instant::now();
        held.release().unwrap();
        waiter.join().unwrap().unwrap();
        eprintln!("granted {:?} after the release", start.elapsed());
        assert!(start.elapsed() < LONG);
    });
}

/// While nobody answers a waiting client asks now and then, and not all the time.
#[test]
fn client_that_waits_while_the_server_is_away_does_not_ask_all_the_time() {
    let Some((server, proxy)) = begin() else { return };
    let (waits, holds) = (proxy.open(options(LONG)), server.open_with(options(LONG)));
    let held = holds.write("a").unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| waits.try_write_for("a", LIMIT).map(drop));
        wait_until("it waits", || holds.snapshot().unwrap().waiters.len() == 1);
        proxy.close(true);
        let before = proxy.refused();
        let start = Instant::now();
        wait_until("the time has passed", || start.elapsed() > Duration::from_secs(2));
        let asked = proxy.refused() - before;
        proxy.close(false);
        held.release().unwrap();
        waiter.join().unwrap().unwrap();
        eprintln!("{asked} connections tried in 2 s");
        assert!(asked < 100, "{asked}");
    });
}
