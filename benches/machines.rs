//! What does the lock between machines cost, beside the simplest lock that users of the same server write?
//!
//! | case | |
//! |---|---|
//! | uncontended | one client, a path of 9 nodes: goal at most 1.5 times `SET NX PX` and a compare-and-delete script |
//! | disjoint | 8 clients in sub-trees of their own: goal at least half of what as many plain keys reach; and in namespaces of their own |
//! | group | 32 threads of one client, disjoint: goal at least 3 times one thread |
//! | hand-over | from the release to the grant of a waiter of another client: goal 1 ms at the median; beside a poll each 50 ms |
//! | held | the cost with 10,000 sub-trees held elsewhere: goal at most 1.2 times that with none |
//! | clients | the cost of a request while 1, 8, 64 and 512 other clients are in the namespace |
//!
//! The server is a `redis-server` or `valkey-server` on the loopback, started here in a temporary directory and ended by its
//! process id. All figures are of one server and one machine: a real network adds its round trip to both sides.

mod common;
#[path = "common/engines.rs"]
mod engines;

use common::{Arm, Bench, digits, times};
use engines::{PATH, disjoint, hand_overs, path_of, print_hand_overs, rate, spread};
use redis::{Connection, Script};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use treelock::machine::Options;
use treelock::redis::RedisTreeLock;

const PEERS: [&str; 2] = ["treelock", "SET NX PX"];

fn main() {
    let question = "what does the lock between machines cost?";
    let Some(mut bench) = Bench::start("machines", question) else { return };
    let Some(server) = Server::start() else {
        println!("left out: it needs redis-server or valkey-server (Debian: redis-server)");
        return;
    };
    uncontended(&mut bench, &server);
    let rounds = bench.pick(5, 21);
    disjoint(
        &mut bench,
        rounds,
        PEERS[1],
        |namespace| server.tree(namespace),
        || server.flat(),
        |flat, path| flat.pair(path),
    );
    group(&mut bench, &server);
    hand_over(&mut bench, &server);
    clients(&mut bench, &server);
    bench.end();
}

struct Server {
    port: u16,
    child: Child,
    _directory: tempfile::TempDir,
}

impl Server {
    fn start() -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let port =
            TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port is free").port();
        let child = ["redis-server", "valkey-server"].into_iter().find_map(|program| {
            let mut command = Command::new(program);
            command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"]);
            command.arg(directory.path()).stdout(Stdio::null()).spawn().ok()
        })?;
        let server = Server { port, child, _directory: directory };
        while server.client().get_connection().is_err() {
            std::thread::yield_now();
        }
        Some(server)
    }

    fn client(&self) -> redis::Client {
        redis::Client::open(format!("redis://127.0.0.1:{}/", self.port)).expect("the URL is right")
    }

    fn tree(&self, namespace: &str) -> RedisTreeLock {
        // A new namespace is closed for so long.
        let options = Options::new().time_to_live(Duration::from_secs(2));
        let url = format!("redis://127.0.0.1:{}/", self.port);
        RedisTreeLock::connect(&url, namespace, options).expect("the server runs")
    }

    fn flat(&self) -> Flat {
        let connection = self.client().get_connection().expect("the server runs");
        let release =
            Script::new("if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end");
        Flat { connection, release, token: format!("{:016x}", rand::random::<u64>()) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lock that the documentation of Redis tells.
struct Flat {
    connection: Connection,
    release: Script,
    token: String,
}

impl Flat {
    fn try_lock(&mut self, key: &str) -> bool {
        let mut set = redis::cmd("SET");
        set.arg(key).arg(&self.token).arg("NX").arg("PX").arg(10_000);
        set.query::<Option<String>>(&mut self.connection).expect("the server runs").is_some()
    }

    fn unlock(&mut self, key: &str) {
        let released = self.release.key(key).arg(&self.token).invoke::<i64>(&mut self.connection);
        assert_eq!(released.expect("the server runs"), 1, "it was held");
    }

    fn pair(&mut self, key: &str) {
        assert!(self.try_lock(key), "nobody else wants it");
        self.unlock(key);
    }
}

fn uncontended(bench: &mut Bench, server: &Server) {
    let (tree, mut flat) = (server.tree("uncontended"), server.flat());
    let (holder, rounds) = (server.tree("uncontended"), bench.pick(9, 51));
    let mut rows = Vec::new();
    let mut alone = None;
    let mut held = Vec::new();
    for others in [0, 100, 10_000] {
        let hold = |other: usize| holder.write_arc(format!("srv/data/tenants/t{}/o{other}", other % 100));
        held.extend((held.len()..others).map(|other| hold(other).expect("it can be had")));
        let arms = vec![
            Arm::new(PEERS[0], others, bench.per_call(|| drop(tree.write(PATH).expect("it can be had")))),
            Arm::new(PEERS[1], others, bench.per_call(|| flat.pair(PATH))),
        ];
        let Some(found) = bench.compare(&format!("uncontended, {others} held elsewhere"), rounds, arms) else {
            continue;
        };
        let ns = found.median(0, "ns");
        let first = *alone.get_or_insert(ns);
        rows.push(vec![
            others.to_string(),
            digits(ns / 1e3),
            digits(ns / first),
            times(found.ratio(0, 1, "ns"), found.median(1, "ns") / 1e3),
        ]);
    }
    let header = ["held elsewhere", "treelock, µs", "times as with none", "SET NX PX (µs)"];
    bench.print("Lock + unlock of 9 nodes", &header, rows);
}

fn group(bench: &mut Bench, server: &Server) {
    const THREADS: [usize; 4] = [1, 2, 8, 32];
    let tree = server.tree("group");
    let slice = bench.pick(Duration::from_millis(100), Duration::from_millis(300));
    let run = |threads: usize| {
        let trees: Vec<_> = (0..threads).map(|_| Mutex::new(&tree)).collect();
        rate(slice, &trees, |tree: &mut &RedisTreeLock, thread| {
            drop(tree.write(path_of(thread)).expect("it can be had"));
        })
    };
    let arms = THREADS.iter().map(|&threads| Arm::new(PEERS[0], threads, move || run(threads))).collect();
    let Some(found) = bench.compare("group, threads of one client", bench.pick(5, 21), arms) else { return };
    let row = |(arm, threads): (usize, &usize)| {
        let rate = found.median(arm, "per second");
        vec![threads.to_string(), digits(rate), digits(found.ratio(arm, 0, "per second"))]
    };
    let rows = THREADS.iter().enumerate().map(row).collect();
    bench.print("Threads of one client, disjoint, pairs a second", &["threads", "pairs", "times one thread"], rows);
}

fn hand_over(bench: &mut Bench, server: &Server) {
    let (holder, waiter) = (server.tree("hand-over"), server.tree("hand-over"));
    let (flat_holder, flat_waiter) = (Mutex::new(server.flat()), Mutex::new(server.flat()));
    let turns = bench.pick(20, 50);
    let tree = || hand_overs(turns, &holder, &waiter);
    let flat = || {
        spread((0..turns / 5).map(|turn| {
            let mut holder = flat_holder.lock().expect("nobody panics");
            assert!(holder.try_lock(PATH), "nobody has it");
            let tries = AtomicU64::new(0);
            std::thread::scope(|scope| {
                let waits = scope.spawn(|| {
                    let mut waiter = flat_waiter.lock().expect("nobody panics");
                    while !waiter.try_lock(PATH) {
                        tries.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    let had = Instant::now();
                    waiter.unlock(PATH);
                    had
                });
                while tries.load(Ordering::Relaxed) == 0 {
                    std::thread::yield_now();
                }
                // At any moment of its pause.
                std::thread::sleep(Duration::from_millis(7 * (turn as u64 % 7)));
                let released = Instant::now();
                holder.unlock(PATH);
                waits.join().expect("it had it").saturating_duration_since(released)
            })
        }))
    };
    let arms = vec![Arm::new(PEERS[0], 2, tree), Arm::new("poll each 50 ms", 2, flat)];
    let Some(found) = bench.compare("hand-over", bench.pick(3, 11), arms) else { return };
    print_hand_overs(bench, &found, &[PEERS[0], "poll each 50 ms"]);
}

/// What one client pays while others are there, of which one is busy: every client reads what all write.
fn clients(bench: &mut Bench, server: &Server) {
    let measured = server.tree("clients");
    let mut others: Vec<RedisTreeLock> = Vec::new();
    let mut rows = Vec::new();
    let mut first = None;
    for count in [1, 8, 64, 512] {
        if bench.options.quick && count > 64 {
            break;
        }
        others.extend((others.len()..count).map(|_| server.tree("clients")));
        let mut turn = 0;
        let mut busy = || {
            turn += 1;
            let other = turn % others.len();
            drop(others[other].write(format!("other/{other}")).expect("it can be had"));
        };
        let arms = vec![
            Arm::new("alone", count, bench.per_call(|| drop(measured.write(PATH).expect("it can be had")))),
            Arm::new("in turns with all others", count, bench.per_call(&mut busy)),
        ];
        let Some(found) = bench.compare(&format!("clients, {count}"), bench.pick(5, 21), arms) else { continue };
        let ns = [0, 1].map(|arm| found.median(arm, "ns"));
        let first = *first.get_or_insert(ns[0]);
        rows.push(vec![count.to_string(), digits(ns[0] / 1e3), digits(ns[0] / first), digits(ns[1] / 1e3)]);
    }
    let header = ["other clients", "one goes on, µs", "times as beside one", "all in turns, µs"];
    bench.print("Lock + unlock while other clients are there", &header, rows);
}
