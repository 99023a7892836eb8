//! How much memory does the lock take while it is held, while others wait, and afterwards? Does a request allocate?
//!
//! Live bytes, and calls, as the allocator counts them. *Kept* is what is left of paths that were locked once, one
//! after the other; peers that never drop a node keep it for ever. A held lock keeps a copy of its paths, so
//! bytes depend on their length: here `/srv/data/tenants` and some segments of 6 bytes and `/`.

mod common;

use common::peers::{Access, FlatKey, GlobalMutex, MapOfLocks, Name, Peer};
use common::{Arm, Bench, Figures, digits, leak, path_of};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;
use treelock::TreeLock;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn live_bytes() -> f64 {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated as f64 - stats.bytes_deallocated as f64
}

fn main() {
    let Some(mut bench) = Bench::start("memory", "what does the lock take of memory?") else { return };
    let count = bench.pick(10_000, 100_000);
    let mut rows = vec![];

    let [short, long] = [1, 5].map(|segments| names(count, segments));
    let arms = vec![
        Arm::new("1 node each", 1, || hold(&short)),
        Arm::new("5 nodes each", 5, || hold(&long)),
        Arm::new("lockable", 1, || hold_flat(&long)),
    ];
    if let Some(found) = bench.compare("held", 1, arms) {
        let figures = [0, 1, 2].map(|arm| found.median(arm, "bytes"));
        let mut told = |what: &str, bytes: f64| rows.push(vec![what.to_owned(), digits(bytes)]);
        told("held lock that adds 1 node", figures[0]);
        told("held lock that adds 5 nodes", figures[1]);
        told("live node, with its part of the path", (figures[1] - figures[0]) / 4.0);
        told(&format!("a lock after {count} were held at once, in all"), found.median(1, "left"));
        told("for comparison: key held in `lockable`", figures[2]);
    }
    let waiters = bench.pick(100, 1_000);
    if let Some(found) = bench.compare("waiting", 1, vec![Arm::new("treelock", waiters, || wait(waiters))]) {
        rows.push(vec!["waiter on 2 nodes, with what its thread keeps".into(), digits(found.median(0, "bytes"))]);
    }
    let arms = vec![
        Arm::new("treelock", 5, || pass(TreeLock::<str>::default(), &long)),
        Arm::new("lockable", 5, || pass(FlatKey::default(), &long)),
        Arm::new("mutex + map", 5, || pass(GlobalMutex::default(), &long)),
        Arm::new("dashmap", 5, || pass(MapOfLocks::default(), &long)),
    ];
    if let Some(found) = bench.compare("kept", 1, arms) {
        for (arm, peer) in ["treelock", "lockable", "mutex + map", "dashmap"].into_iter().enumerate() {
            rows.push(vec![format!("kept per path of 5 nodes by {peer}"), digits(found.median(arm, "bytes"))]);
        }
    }
    bench.print("Memory", &["", "bytes"], rows);

    let mut rows = vec![];
    for (access, verb) in Access::BOTH {
        let (text, path) = (TreeLock::<str>::default(), TreeLock::<Path>::default());
        let arms = vec![
            Arm::new("treelock str", 1, || allocations::<str>(&text, access)),
            Arm::new("treelock Path", 1, || allocations::<Path>(&path, access)),
            Arm::new("treelock str", 4, || allocations_of_four::<str>(&text, access)),
            Arm::new("treelock Path", 4, || allocations_of_four::<Path>(&path, access)),
            Arm::new("lockable", 1, || allocations::<str>(&FlatKey::default(), access)),
            Arm::new("mutex + map", 1, || allocations::<str>(&GlobalMutex::default(), access)),
            Arm::new("dashmap", 1, || allocations::<str>(&MapOfLocks::default(), access)),
        ];
        let Some(found) = bench.compare(&format!("allocations {verb}"), 3, arms) else { continue };
        let figures = (0..7).map(|arm| digits(found.median(arm, "allocations")));
        rows.push([verb.to_owned()].into_iter().chain(figures).collect());
    }
    let header =
        ["", "treelock str", "Path", "four roots str", "four roots Path", "lockable", "mutex + map", "dashmap"];
    bench.print("Allocations per lock and unlock of a path of 9 nodes, in the steady state", &header, rows);
    bench.end();
}

/// Paths with so many segments below `/srv/data/tenants` that no other has.
fn names(count: usize, segments: usize) -> Vec<&'static str> {
    let name = |number: usize| (0..segments).map(|_| format!("/{number:06}")).collect::<String>();
    (0..count).map(|number| leak(format!("/srv/data/tenants{}", name(number))).as_str()).collect()
}

fn hold(paths: &[&'static str]) -> Figures {
    let lock = TreeLock::<str>::default();
    let mut guards = Vec::with_capacity(paths.len());
    drop(lock.write(paths[0]));
    let before = live_bytes();
    guards.extend(paths.iter().map(|path| lock.write(path)));
    let held = (live_bytes() - before) / paths.len() as f64;
    drop(guards);
    let whole = live_bytes();
    drop(lock);
    vec![("bytes", held), ("left", whole - live_bytes())]
}

fn hold_flat(paths: &[&'static str]) -> Figures {
    let pool = FlatKey::default();
    let mut guards = Vec::with_capacity(paths.len());
    let before = live_bytes();
    guards.extend(paths.iter().map(|path| pool.0.blocking_lock(path.as_bytes())));
    vec![("bytes", (live_bytes() - before) / paths.len() as f64)]
}

/// Threads that exist already come to wait: this counts what they ask for, and what a thread needs for its first
/// request.
fn wait(count: usize) -> Figures {
    let lock = TreeLock::<str>::default();
    let (ready, go) = (Barrier::new(count + 1), Barrier::new(count + 1));
    thread::scope(|scope| {
        for _ in 0..count {
            let waiting = || {
                ready.wait();
                go.wait();
                drop(lock.write("/hot"));
            };
            thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, waiting).expect("there are threads");
        }
        ready.wait();
        let held = lock.write("/hot");
        let before = live_bytes();
        go.wait();
        while lock.snapshot().waiters.len() < count {
            thread::sleep(Duration::from_millis(1));
        }
        let waiting = live_bytes() - before;
        drop(held);
        vec![("bytes", waiting / count as f64)]
    })
}

/// What is left after each path was locked and unlocked.
fn pass(peer: impl Peer<str>, paths: &[&'static str]) -> Figures {
    let before = live_bytes();
    paths.iter().for_each(|path| peer.with(path, Access::Write, || {}));
    vec![("bytes", (live_bytes() - before) / paths.len() as f64)]
}

fn allocations<P: ?Sized + Name>(peer: &impl Peer<P>, access: Access) -> Figures {
    let path = P::of(leak(path_of(9, "")));
    count_allocations(|| peer.with(path, access, || {}))
}

fn allocations_of_four<P: ?Sized + Name>(peer: &impl Peer<P>, access: Access) -> Figures {
    let four = ["items", "logs", "orders", "users"].map(|leaf| P::of(leak(path_of(9, leaf))));
    count_allocations(|| peer.with_four(four, access, || {}))
}

fn count_allocations(mut op: impl FnMut()) -> Figures {
    (0..100).for_each(|_| op());
    let before = ALLOCATOR.stats();
    (0..1_000).for_each(|_| op());
    let after = ALLOCATOR.stats();
    let calls = after.allocations + after.reallocations - before.allocations - before.reallocations;
    vec![("allocations", calls as f64 / 1e3)]
}
