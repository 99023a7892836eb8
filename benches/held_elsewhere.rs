//! Does a lock cost more while other sub-trees are held, or while others wait, and how much more if the path is
//! deeper (G5)?
//!
//! - *held elsewhere*, *held beside*: a write of the path of 9 nodes while many other leaves are held, in folders far
//!   away or in its own; goal at 100,000: 1.2 x;
//! - *queue*: many threads wait for one node: a request elsewhere, a refused `try_lock` and a wait that is given up
//!   at once on that node, and how long the queue takes to be served, per waiter, including the end of its thread;
//! - *depth*: a write of a path of many nodes. Maps of prefixes hash each prefix anew, so they lose on deep paths.

mod common;

use common::peers::{Access, Floor, GlobalMutex, MapOfLocks, Peer};
use common::{Arm, Bench, Figures, digits, leak, path_of, times};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use treelock::TreeLock;

fn main() {
    let question = "does a lock cost more where others are held, wait, or lie above?";
    let Some(mut bench) = Bench::start("held_elsewhere", question) else { return };
    held(&mut bench);
    queue(&mut bench);
    depth(&mut bench);
    bench.end();
}

fn held(bench: &mut Bench) {
    let counts = bench.pick(vec![0, 1_000, 100_000], vec![0, 1_000, 100_000, 1_000_000]);
    let path = leak(path_of(9, "")).as_str();
    let elsewhere = |number: usize| format!("/held/{}/{number}", number / 1000);
    let beside = |number: usize| path_of(9, &number.to_string());
    let mut rows = vec![];
    for (case, name) in [("held elsewhere", &elsewhere as &dyn Fn(usize) -> String), ("held beside", &beside)] {
        let locks: Vec<_> = counts.iter().map(|_| TreeLock::<str>::default()).collect();
        let mut guards = vec![];
        let mut arms = vec![];
        for (lock, &count) in locks.iter().zip(&counts) {
            guards.extend((0..count).map(|number| lock.write(name(number))));
            arms.push(Arm::new("treelock", count, bench.per_call(|| drop(lock.write(black_box(path))))));
        }
        let Some(found) = bench.compare(case, bench.pick(9, 101), arms) else { continue };
        for (arm, count) in counts.iter().enumerate() {
            rows.push(vec![
                format!("{case}: {count}"),
                digits(found.median(arm, "ns")),
                digits(found.ratio(arm, 0, "ns")),
            ]);
        }
    }
    bench.print("Locks held by others", &["", "ns", "times as with none"], rows);
}

fn queue(bench: &mut Bench) {
    let counts = bench.pick(vec![10, 100, 1_000], vec![10, 100, 1_000, 4_000]);
    let arms = counts.iter().map(|&count| Arm::new("treelock", count, move || wait_in_line(count))).collect();
    let Some(found) = bench.compare("queue", bench.pick(2, 15), arms) else { return };
    let header = ["waiters", "elsewhere, ns", "refused try, ns", "given up, ns", "served, µs per waiter"];
    let units = ["elsewhere ns", "refused ns", "given up ns", "served µs"];
    let rows = counts.iter().enumerate().map(|(arm, count)| {
        let figures = units
            .map(|unit| format!("{} ({} ×)", digits(found.median(arm, unit)), digits(found.ratio(arm, 0, unit))));
        [vec![count.to_string()], figures.to_vec()].concat()
    });
    bench.print("A queue at one node (times as with 10)", &header, rows.collect());
}

fn wait_in_line(count: usize) -> Figures {
    let lock = Arc::new(TreeLock::<str>::default());
    let clock = Instant::now();
    let last = AtomicU64::new(0);
    let held = lock.write("/hot");
    let mut figures = vec![];
    let mut released = 0.0;
    thread::scope(|scope| {
        for _ in 0..count {
            let waiting = || {
                drop(lock.write("/hot"));
                // Relaxed: read after the threads have ended.
                last.fetch_max(clock.elapsed().as_nanos() as u64, Ordering::Relaxed);
            };
            thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, waiting).expect("there are threads");
        }
        while lock.snapshot().waiters.len() < count {
            thread::sleep(Duration::from_millis(1));
        }
        figures = vec![
            ("elsewhere ns", each(|| drop(lock.write("/srv/data/tenants")))),
            // These are owners of their own, as another thread's requests are.
            ("refused ns", each(|| assert!(lock.try_lock_arc(&[], &["/hot"]).is_err()))),
            ("given up ns", each(|| assert!(lock.try_lock_arc_for(&[], &["/hot"], Duration::ZERO).is_err()))),
        ];
        released = clock.elapsed().as_nanos() as f64;
        drop(held);
    });
    figures.push(("served µs", (last.into_inner() as f64 - released) / 1e3 / count as f64));
    figures
}

/// Nanoseconds per call, over 2,000 calls.
fn each(mut op: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..2_000).for_each(|_| op());
    start.elapsed().as_nanos() as f64 / 2e3
}

fn depth(bench: &mut Bench) {
    let mut rows = vec![];
    for nodes in [1, 10, 100, 1_000] {
        let path = leak(path_of(nodes, "")).as_str();
        let peers =
            (TreeLock::<str>::default(), Floor::<1024>::new(2048), GlobalMutex::default(), MapOfLocks::default());
        let arms = vec![
            Arm::new("treelock", nodes, bench.per_call(|| peers.0.with(black_box(path), Access::Write, || {}))),
            Arm::new("floor", nodes, bench.per_call(|| peers.1.with(black_box(path), Access::Write, || {}))),
            Arm::new("mutex + map", nodes, bench.per_call(|| peers.2.with(black_box(path), Access::Write, || {}))),
            Arm::new("dashmap", nodes, bench.per_call(|| peers.3.with(black_box(path), Access::Write, || {}))),
        ];
        let Some(found) = bench.compare("depth", bench.pick(9, 101), arms) else { return };
        let ours = found.median(0, "ns");
        let mut row = vec![nodes.to_string(), digits(ours), digits(ours / nodes as f64)];
        row.extend((1..4).map(|peer| times(found.ratio(0, peer, "ns"), found.median(peer, "ns"))));
        rows.push(row);
    }
    let header = ["nodes", "treelock, ns", "ns per node", "floor", "mutex + map", "dashmap"];
    bench.print("Depth: ratios to each peer (the peer's ns)", &header, rows);
}
