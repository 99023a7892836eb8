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

use common::{Arm, Bench, Figures, digits, quantile, times};
use database::Database;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, NoTls, Statement};
use treelock::machine::Options;
use treelock::postgres::PostgresTreeLock;

const PATH: &str = "srv/data/tenants/acme/projects/alpha/tables/users";

const PEERS: [&str; 2] = ["treelock", "pg_advisory_lock"];

fn main() {
    let Some(mut bench) = Bench::start("postgres", "what does the lock cost in PostgreSQL?") else { return };
    let Some(database) = Database::start() else { return };
    uncontended(&mut bench, &database);
    disjoint(&mut bench, &database);
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

/// Pairs in a slice by so many threads, each with its own lock.
fn rate<T: Send>(slice: Duration, of: &[Mutex<T>], pair: impl Fn(&mut T, usize) + Sync) -> Figures {
    let done = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for (thread, its) in of.iter().enumerate() {
            let (done, pair) = (&done, &pair);
            scope.spawn(move || {
                let mut its = its.lock().expect("nobody panics");
                while start.elapsed() < slice {
                    pair(&mut its, thread);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    vec![("per second", done.into_inner() as f64 / start.elapsed().as_secs_f64())]
}

fn disjoint(bench: &mut Bench, database: &Database) {
    const CLIENTS: usize = 8;
    let trees: Vec<_> = (0..CLIENTS).map(|_| Mutex::new(tree(database, "disjoint"))).collect();
    let apart: Vec<_> = (0..CLIENTS).map(|of| Mutex::new(tree(database, &format!("apart {of}")))).collect();
    let flats: Vec<_> = (0..CLIENTS).map(|_| Mutex::new(Advisory::new(database))).collect();
    let slice = bench.pick(Duration::from_millis(100), Duration::from_millis(300));
    let path = |client: usize| format!("srv/data/tenants/t{client}/projects/alpha/tables/users");
    let write = |tree: &mut PostgresTreeLock, client: usize| drop(tree.write(path(client)).expect("it can be had"));
    let arms = vec![
        Arm::new(PEERS[0], CLIENTS, || rate(slice, &trees, write)),
        Arm::new(PEERS[1], CLIENTS, || rate(slice, &flats, |flat: &mut Advisory, client| flat.pair(&path(client)))),
        Arm::new("namespaces", CLIENTS, || rate(slice, &apart, write)),
    ];
    let Some(found) = bench.compare("disjoint, 8 clients", bench.pick(5, 15), arms) else { return };
    let row = |arm: usize, what: &str| {
        let ratio = times(found.ratio(arm, 1, "per second"), found.median(1, "per second"));
        vec![what.to_owned(), digits(found.median(arm, "per second")), ratio]
    };
    let header = ["each has", "treelock", "pg_advisory_lock (pairs)"];
    bench.print("8 clients, pairs a second", &header, vec![row(0, "a sub-tree"), row(2, "a namespace")]);
}

fn hand_over(bench: &mut Bench, database: &Database) {
    let (holder, waiter) = (tree(database, "hand-over"), tree(database, "hand-over"));
    let (flat, flat_waiter) = (Advisory::new(database), Mutex::new(Advisory::new(database)));
    let turns = bench.pick(20, 100);
    let by_tree = || {
        spread((0..turns).map(|_| {
            let guard = holder.write(PATH).expect("it can be had");
            std::thread::scope(|scope| {
                let waits = scope.spawn(|| {
                    let _guard = waiter.write(PATH).expect("it can be had");
                    Instant::now()
                });
                while holder.snapshot().expect("the server runs").waiters.is_empty() {
                    std::thread::yield_now();
                }
                let released = Instant::now();
                drop(guard);
                waits.join().expect("it had it").saturating_duration_since(released)
            })
        }))
    };
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
    let rows = PEERS.iter().enumerate().map(|(arm, peer)| {
        vec![peer.to_string(), digits(found.median(arm, "median µs")), digits(found.median(arm, "longest µs"))]
    });
    bench.print("Hand-over to a waiter of another client", &["", "median, µs", "longest, µs"], rows.collect());
}

fn spread(waits: impl Iterator<Item = Duration>) -> Figures {
    let mut waits: Vec<u32> = waits.map(|wait| wait.as_nanos() as u32).collect();
    waits.sort_unstable();
    let [median, longest] = [0.5, 1.0].map(|share| quantile(&waits, share));
    vec![("median µs", median), ("longest µs", longest)]
}
