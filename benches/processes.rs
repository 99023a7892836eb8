//! What does the lock between processes cost, for one process and for many, and how soon does a waiter get in? (P6)
//!
//! | case | |
//! |---|---|
//! | uncontended | one process, a path of 9 nodes: goal 10 µs for lock + unlock; and with 1,000 others held: at most 3 times that |
//! | hand-over | a process holds, another waits: from the moment before the release to having it; goal 200 µs at the median |
//! | throughput | many processes, each in a sub-tree of its own, or all at one node |
//!
//! The peer is `flock(2)` on one file: the name without the tree. The processes are further runs of this program,
//! which report by their standard output. The lock's directory is on a file system in memory where there is one.

mod common;

use common::{Arm, Bench, Figures, digits, quantile, times};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use treelock::process::ProcessTreeLock;

const PATH: &str = "srv/data/tenants/acme/projects/alpha/tables/users";

/// Tells a program that it is a child, and for which way, directory and path.
const CHILD: &str = "TREELOCK_BENCH_CHILD";

const WAYS: [&str; 2] = ["treelock", "flock"];

fn main() {
    if let Some(order) = std::env::var_os(CHILD) {
        return child(order.to_str().expect("an order is text"));
    }
    let question = "what does the lock between processes cost?";
    let Some(mut bench) = Bench::start("processes", question) else { return };
    let directory = tempfile::tempdir_in(if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" });
    let directory = directory.expect("a directory can be made");
    uncontended(&mut bench, directory.path());
    hand_over(&mut bench, directory.path());
    throughput(&mut bench, directory.path());
    bench.end();
}

/// Both ways to lock.
enum Way {
    Tree(ProcessTreeLock),
    Flat(File),
}

impl Way {
    fn open(way: &str, directory: &Path) -> Self {
        match way {
            "treelock" => Way::Tree(ProcessTreeLock::open(directory.join("lock")).expect("the directory is fit")),
            _ => Way::Flat(File::create(directory.join("flat")).expect("the directory is fit")),
        }
    }

    fn with(&self, path: &str, run: impl FnOnce()) {
        match self {
            Way::Tree(lock) => {
                let _guard = lock.write(path).expect("it can be had");
                run();
            }
            Way::Flat(file) => {
                rustix::fs::flock(file, rustix::fs::FlockOperation::LockExclusive).expect("it can be had");
                run();
                rustix::fs::flock(file, rustix::fs::FlockOperation::Unlock).expect("it is held");
            }
        }
    }
}

fn uncontended(bench: &mut Bench, directory: &Path) {
    let (tree, flat) = (Way::open("treelock", directory), Way::open("flock", directory));
    let rounds = bench.pick(9, 51);
    let mut rows = Vec::new();
    let mut alone = None;
    for held in [0, 1_000] {
        let Way::Tree(lock) = &tree else { unreachable!("it was opened so") };
        let others: Vec<_> = (0..held)
            .map(|other| lock.write_arc(format!("srv/data/tenants/t{}/o{other}", other % 10)).expect("it can be had"))
            .collect();
        let arms = vec![
            Arm::new(WAYS[0], held, bench.per_call(|| tree.with(PATH, || {}))),
            Arm::new(WAYS[1], held, bench.per_call(|| flat.with(PATH, || {}))),
        ];
        let Some(found) = bench.compare(&format!("uncontended, {held} others held"), rounds, arms) else { continue };
        let ns = found.median(0, "ns");
        let first = *alone.get_or_insert(ns);
        rows.push(vec![
            held.to_string(),
            digits(ns / 1e3),
            digits(ns / first),
            times(found.ratio(0, 1, "ns"), found.median(1, "ns") / 1e3),
        ]);
        drop(others);
    }
    bench.print("Lock + unlock of 9 nodes", &["others held", "treelock, µs", "times as alone", "flock (µs)"], rows);
}

fn hand_over(bench: &mut Bench, directory: &Path) {
    let rounds = bench.pick(3, 11);
    let arms = WAYS.map(|way| Arm::new(way, 2, move || one_waits(way, directory))).into_iter().collect();
    let Some(found) = bench.compare("hand-over", rounds, arms) else { return };
    let figures = ["median µs", "99 % µs", "longest µs"];
    let row = |(arm, way): (usize, &str)| {
        let told = figures.map(|unit| {
            digits(if unit == "longest µs" { found.longest(arm, unit) } else { found.median(arm, unit) })
        });
        [way.to_owned()].into_iter().chain(told).collect()
    };
    let header = ["", figures[0], figures[1], figures[2]];
    bench.print("Hand-over to a waiting process", &header, WAYS.into_iter().enumerate().map(row).collect());
}

/// Holds until a child waits, then releases; the child tells when it had the lock.
fn one_waits(way: &'static str, directory: &Path) -> Figures {
    let lock = Way::open(way, directory);
    let mut child = start(&format!("wait:{way}"), directory);
    let mut orders = child.stdin.take().expect("it is piped");
    let mut told = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let mut waits: Vec<u32> = (0..50)
        .map(|_| {
            let mut released = 0;
            lock.with(PATH, || {
                writeln!(orders, "now").expect("it listens");
                assert_eq!(told.next().expect("it answers").expect("in text"), "asks");
                // The child has a long way into the queue; with flock, nobody can see it arrive there.
                let late = Instant::now() + Duration::from_millis(2);
                while Instant::now() < late {
                    std::thread::yield_now();
                }
                released = clock();
            });
            let had: u64 = told.next().expect("it answers").expect("in text").parse().expect("a time");
            had.saturating_sub(released) as u32
        })
        .collect();
    drop(orders);
    child.wait().expect("it ends");
    waits.sort_unstable();
    vec![
        ("median µs", quantile(&waits, 0.5)),
        ("99 % µs", quantile(&waits, 0.99)),
        ("longest µs", quantile(&waits, 1.0)),
    ]
}

fn throughput(bench: &mut Bench, directory: &Path) {
    let (rounds, slice) = (bench.pick(1, 5), bench.pick(300, 1000));
    let mut rows = Vec::new();
    for (case, own) in [("disjoint", true), ("one node", false)] {
        for count in [1, 2, 8, 50] {
            let arms = WAYS.map(|way| Arm::new(way, count, move || all_at_once(way, directory, count, own, slice)));
            let Some(found) =
                bench.compare(&format!("{case}, {count} processes"), rounds, arms.into_iter().collect())
            else {
                continue;
            };
            let peer = times(found.ratio(0, 1, "k/s"), found.median(1, "k/s"));
            rows.push(vec![case.into(), count.to_string(), digits(found.median(0, "k/s")), peer]);
        }
    }
    bench.print("Grants by all together", &["", "processes", "treelock, k/s", "flock (k/s)"], rows);
}

fn all_at_once(way: &str, directory: &Path, count: usize, own: bool, slice: u64) -> Figures {
    let children: Vec<Child> = (0..count)
        .map(|child| {
            let path =
                if own { format!("srv/data/tenants/t{child}/projects/alpha/tables/users") } else { PATH.into() };
            start(&format!("run:{way}:{slice}:{path}"), directory)
        })
        .collect();
    let mut streams = Vec::new();
    for mut child in children {
        let orders = child.stdin.take().expect("it is piped");
        let mut told = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        assert_eq!(told.next().expect("it answers").expect("in text"), "ready");
        streams.push((child, orders, told));
    }
    streams.iter_mut().for_each(|(_, orders, _)| writeln!(orders, "now").expect("it listens"));
    let mut done = 0.0;
    for (mut child, orders, mut told) in streams {
        done += told.next().expect("it answers").expect("in text").parse::<f64>().expect("a number");
        drop(orders);
        child.wait().expect("it ends");
    }
    vec![("k/s", done / slice as f64)]
}

fn start(order: &str, directory: &Path) -> Child {
    Command::new(std::env::current_exe().expect("a bench has a program"))
        .env(CHILD, format!("{}:{order}", directory.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process can be started")
}

/// Nanoseconds on a clock that all processes share.
fn clock() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn child(order: &str) {
    let words: Vec<&str> = order.split(':').collect();
    let lock = Way::open(words[2], &PathBuf::from(words[0]));
    let orders = std::io::stdin().lines();
    if words[1] == "run" {
        println!("ready");
    }
    for _ in orders {
        if words[1] == "wait" {
            println!("asks");
            let mut had = 0;
            lock.with(PATH, || had = clock());
            println!("{had}");
        } else {
            let end = Instant::now() + Duration::from_millis(words[3].parse().expect("a number"));
            let mut done = 0;
            while Instant::now() < end {
                lock.with(words[4], || done += 1);
            }
            println!("{done}");
        }
    }
}
