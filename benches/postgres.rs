//! What does the lock between machines cost in PostgreSQL, beside the lock that its users write?
//!
//! | case | |
//! |---|---|
//! | uncontended | one client, a path of 9 nodes: goal at most 2 times `pg_advisory_lock` and `pg_advisory_unlock`; with sub-trees held elsewhere |
//! | disjoint | 8 clients in sub-trees of their own, beside as many advisory locks |
//! | hand-over | from the release to the grant of a waiter of another client, beside that of an advisory lock |
//! | after many | the same as the first, when the tables have seen 100,000 calls |
//!
//! The server is a `postgres` on the loopback, started here in a temporary directory and ended by its process id. It syncs nothing.

mod common;
#[allow(dead_code, reason = "the tests need more of it")]
#[path = "../tests/common/database.rs"]
mod database;
#[path = "common/engines.rs"]
mod engines;

use common::{Arm, Bench, digits, times};
use database::Database;
use engines::{PATH, disjoint, hand_overs, print_hand_overs, spread};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, NoTls, Statement};
use treelock::machine::Options;
use treelock::postgres::PostgresTreeLock;

const PEERS: [&str; 2] = ["treelock", "pg_advisory_lock"];

fn main() {
    let Some(mut bench) = Bench::start("postgres", "what does the lock cost in PostgreSQL?") else { return };
    let Some(database) = Database::start() else { return };
    uncontended(&mut bench, &database);
    let rounds = bench.pick(5, 15);
    disjoint(
        &mut bench,
        rounds,
        PEERS[1],
        |namespace| tree(&database, namespace),
        || Advisory::new(&database),
        |flat, path| flat.pair(path),
    );
    hand_over(&mut bench, &database);
    bench.end();
}

fn tree(database: &Database, namespace: &str) -> PostgresTreeLock {
    // A new namespace is closed for so long.
    let options = Options::new().time_to_live(Duration::from_secs(2));
    PostgresTreeLock::connect(&database.url(), namespace, options).expect("the server runs")
}

/// A lock that the server keeps for a connection, by a number.
struct Advisory {
    runtime: Runtime,
    client: Client,
    lock: Statement,
    unlock: Statement,
}

impl Advisory {
    fn new(database: &Database) -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
        let (client, lock, unlock) = runtime.block_on(async {
            let (client, connection) =
                tokio_postgres::connect(&database.url(), NoTls).await.expect("the server runs");
            tokio::spawn(connection);
            let lock = client.prepare("SELECT pg_advisory_lock(hashtextextended($1, 0))").await;
            let unlock = client.prepare("SELECT pg_advisory_unlock(hashtextextended($1, 0))").await;
            (client, lock.expect("it is right"), unlock.expect("it is right"))
        });
        Advisory { runtime, client, lock, unlock }
    }

    fn lock(&self, path: &str) {
        self.runtime.block_on(self.client.query_one(&self.lock, &[&path])).expect("the server runs");
    }

    fn unlock(&self, path: &str) {
        let row = self.runtime.block_on(self.client.query_one(&self.unlock, &[&path])).expect("the server runs");
        assert!(row.get::<_, bool>(0), "it was held");
    }

    fn pair(&self, path: &str) {
        self.lock(path);
        self.unlock(path);
    }
}

fn uncontended(bench: &mut Bench, database: &Database) {
    let (measured, flat) = (tree(database, "uncontended"), Advisory::new(database));
    let holder = tree(database, "uncontended");
    let (mut rows, mut held, mut alone) = (Vec::new(), Vec::new(), None);
    let pair = || drop(measured.write(PATH).expect("it can be had"));
    for (case, others, calls) in [
        ("", 0, 0),
        ("100 held elsewhere", 100, 0),
        ("10,000 held elsewhere", 10_000, 0),
        ("100,000 calls later", 0, 50_000),
    ] {
        if bench.options.quick && calls > 0 {
            break;
        }
        if others < held.len() {
            held.clear();
        }
        let hold = |other: usize| holder.write_arc(format!("srv/data/tenants/t{}/o{other}", other % 100));
        held.extend((held.len()..others).map(|other| hold(other).expect("it can be had")));
        (0..calls).for_each(|_| pair());
        let arms = vec![
            Arm::new(PEERS[0], others + calls, bench.per_call(pair)),
            Arm::new(PEERS[1], others + calls, bench.per_call(|| flat.pair(PATH))),
        ];
        let name = format!("uncontended {case}");
        let Some(found) = bench.compare(&name, bench.pick(9, 31), arms) else { continue };
        let ns = found.median(0, "ns");
        let first = *alone.get_or_insert(ns);
        let ratio = times(found.ratio(0, 1, "ns"), found.median(1, "ns") / 1e3);
        rows.push(vec![case.to_owned(), digits(ns / 1e3), digits(ns / first), ratio]);
    }
    let header = ["", "treelock, µs", "times as at first", "pg_advisory_lock (µs)"];
    bench.print("Lock + unlock of 9 nodes", &header, rows);
}

fn hand_over(bench: &mut Bench, database: &Database) {
    let (holder, waiter) = (tree(database, "hand-over"), tree(database, "hand-over"));
    let (flat, flat_waiter) = (Advisory::new(database), Mutex::new(Advisory::new(database)));
    let turns = bench.pick(20, 100);
    let by_tree = || hand_overs(turns, &holder, &waiter);
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    let by_flat = || {
        spread((0..turns).map(|_| {
            flat.lock(PATH);
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| {
                    let waiter = flat_waiter.lock().expect("nobody panics");
                    waiter.lock(PATH);
                    let had = Instant::now();
                    waiter.unlock(PATH);
                    had
                });
                let is_awaited =
                    || flat.runtime.block_on(flat.client.query_one(waits, &[])).map(|row| row.get::<_, i64>(0));
                while is_awaited().expect("the server runs") == 0 {
                    std::thread::yield_now();
                }
                let released = Instant::now();
                flat.unlock(PATH);
                waiter.join().expect("it had it").saturating_duration_since(released)
            })
        }))
    };
    let arms = vec![Arm::new(PEERS[0], 2, by_tree), Arm::new(PEERS[1], 2, by_flat)];
    let Some(found) = bench.compare("hand-over", bench.pick(3, 9), arms) else { return };
    print_hand_overs(bench, &found, &PEERS);
}
