//! What becomes of guards when a database loses data, is restarted, stopped or refuses (M1, M2, M3, M6).

use super::conformance::Place;
use super::database::Database;
use super::loss::{all_is_lost_by, options, watched};
use super::network::count_over_a_bad_way;
use super::proxy::Proxy;
use crate::common::{LIMIT, wait_until};
use rustix::process::Signal;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};
use treelock::machine::{EngineError, MachineLockError, Options};
use treelock::postgres::PostgresTreeLock;

const LONG: Duration = Duration::from_secs(60);

fn open(url: &str, options: Options) -> Result<PostgresTreeLock, EngineError> {
    PostgresTreeLock::connect(url, "test", options)
}

/// Rule 1: whatever is missing is missed.
#[test]
fn each_table_that_is_emptied_is_missed() {
    let Some(mut database) = Database::begin() else { return };
    for table in ["namespaces", "entries", "sessions", "snapshots"] {
        all_is_lost_by(&mut database, |database| database.ask(&format!("TRUNCATE treelock.{table}")));
    }
}

#[test]
fn part_of_a_table_that_is_deleted_is_missed() {
    let Some(mut database) = Database::begin() else { return };
    for lose in [
        "DELETE FROM treelock.entries WHERE position = (SELECT max(position) FROM treelock.entries)",
        "DELETE FROM treelock.entries WHERE position = (SELECT min(position) FROM treelock.entries)",
        "DELETE FROM treelock.sessions WHERE member = (SELECT max(member) FROM treelock.sessions)",
    ] {
        all_is_lost_by(&mut database, |database| database.ask(lose));
    }
}

/// It is made again by whoever comes next, on connections that knew the old one too.
#[test]
fn schema_that_is_dropped_is_made_again() {
    let Some(mut database) = Database::begin() else { return };
    all_is_lost_by(&mut database, |database| database.ask("DROP SCHEMA treelock CASCADE"));
    all_is_lost_by(&mut database, |database| database.ask("DROP TABLE treelock.sessions"));
}

/// The tables are not logged: what is lost is lost as a whole.
#[test]
fn crash_loses_all_guards() {
    let Some(mut database) = Database::begin() else { return };
    all_is_lost_by(&mut database, |database| {
        database.crash();
        database.go_on();
    });
}

#[test]
fn restart_in_order_loses_nothing() {
    let Some(mut database) = Database::begin() else { return };
    let (lock, other) = (database.open(), database.open());
    let guard = lock.write("a").unwrap();
    database.shut_down();
    database.go_on();
    let second = lock.write("b").unwrap();
    assert!(matches!(other.try_write("a"), Err(MachineLockError::WouldBlock)));
    assert!(guard.is_valid() && second.fence() > guard.fence());
    guard.release().unwrap();
    drop(other.try_write("a").unwrap());
}

/// M2.
#[test]
fn server_that_is_stopped_for_longer_than_a_lease_has_nobody_believe_in_it() {
    let Some(database) = Database::begin() else { return };
    let (lock, other) = (database.open_with(options()), database.open_with(options()));
    let (guard, told) = watched(&lock, "a");
    database.signal_all(Signal::STOP);
    wait_until("it is told", || told.load(Ordering::SeqCst));
    assert!(!guard.is_valid());
    database.signal_all(Signal::CONT);
    let next = other.try_write_for("a", LIMIT).unwrap();
    assert!(next.fence() > guard.fence());
}

#[test]
fn connections_that_are_ended_lose_nothing() {
    let Some(database) = Database::begin() else { return };
    let lock = database.open();
    let guard = lock.write("a").unwrap();
    for _ in 0..3 {
        database.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'treelock'");
        drop(lock.try_write("b").unwrap());
    }
    guard.release().unwrap();
}

/// A waiter whose connection is ended while it listens is woken all the same.
#[test]
fn waiter_whose_connection_is_ended_gets_in() {
    let Some(database) = Database::begin() else { return };
    let (lock, other) = (database.open(), database.open());
    let guard = lock.write("a").unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| other.try_write_for("a", LIMIT).map(drop));
        wait_until("it waits", || lock.snapshot().unwrap().waiters.len() == 1);
        database.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'treelock'");
        let start = Instant::now();
        guard.release().unwrap();
        waiter.join().unwrap().unwrap();
        eprintln!("let in {:?} after the release", start.elapsed());
        assert!(start.elapsed() < LONG / 6, "it was let in by a renewal");
    });
}

/// What is cut off is one packet in twenty: a call here has several.
#[test]
fn requests_over_a_bad_way_are_granted_once_each() {
    let Some(database) = Database::begin() else { return };
    let proxy = Proxy::to(database.port);
    let url = format!("postgresql://ada@127.0.0.1:{}/postgres", proxy.port());
    let options = || Options::new().time_to_live(LONG);
    let clients = [open(&url, options()).unwrap(), open(&url, options()).unwrap(), database.open_with(options())];
    count_over_a_bad_way(&proxy, clients.each_ref().map(|client| &**client), 50, 20, 10);
}

/// What is kept stays short, and so does the row that renewals and snapshots change.
#[test]
fn tables_do_not_grow() {
    let Some(database) = Database::begin() else { return };
    let lock = database.open();
    let held = lock.read("held").unwrap();
    for _ in 0..3000 {
        drop(lock.write("a").unwrap());
    }
    held.release().unwrap();
    database.ask(
        "DO $$ BEGIN
            ASSERT (SELECT count(*) FROM treelock.entries) < 2000;
            ASSERT pg_relation_size('treelock.namespaces') <= 65536;
        END $$",
    );
}

#[test]
fn user_without_rights_is_told_what_it_needs() {
    let Some(database) = Database::start() else { return };
    database.ask("CREATE ROLE bob LOGIN");
    let told = |expected: &str| {
        let error = open(&database.url_of("bob"), options()).map(drop).unwrap_err();
        assert!(matches!(error, EngineError::Refused(_)), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    // There is no schema, and bob may make none.
    told("rights");
    database.ask(treelock::postgres::SETUP);
    told("rights");
    // What the documentation says.
    database.ask(
        "GRANT USAGE ON SCHEMA treelock TO bob;
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA treelock TO bob;",
    );
    drop(open(&database.url_of("bob"), options()).unwrap().write("a").unwrap());
}

#[test]
fn what_cannot_be_opened_is_told() {
    let Some(mut database) = Database::begin() else { return };
    let told = |url: &str, expected: &str| {
        let error = open(url, options()).map(drop).unwrap_err();
        assert!(matches!(error, EngineError::Refused(_)), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    told("redis://127.0.0.1/", "URL");
    told(&format!("postgresql://ada@127.0.0.1:{}/nowhere", database.port), "nowhere");
    told(&format!("{}?sslmode=require", database.url()), "TLS");
    database.ask("UPDATE treelock.namespaces SET format = 99");
    let other = open(&database.url(), options()).map(drop).unwrap_err();
    assert!(matches!(&other, EngineError::OtherFormat(format) if format == "99"), "{other:?}");
    database.shut_down();
    let away = open(&database.url(), options().patience(Duration::from_millis(100))).map(drop).unwrap_err();
    assert!(matches!(away, EngineError::Away(_)), "{away:?}");
}
