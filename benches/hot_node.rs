//! What happens if all threads want the same node: which get through, how long do they wait, what does a hand-over
//! take, how many threads does a release wake?
//!
//! Each thread asks for the node again as soon as it has released it, and counts by one inside. A holder works for 0,
//! 0.1, 1 or 10 µs, as a thread that needs a lock does; there are 2, 4 or 8 threads. In *90/10* nine of ten requests
//! read, which the mutexes cannot tell. Throughput is measured without clocks; the waits in a slice of their own,
//! with them:
//!
//! - wait: from asking to having;
//! - hand-over: from the moment before a release to the moment when a thread that waited by then has the node;
//! - switches: how often per request a thread gave up its core of its own accord (`/proc`, Linux): a thread that
//!   parks is woken, so this counts wake-ups too. Strict order costs one per request, if nobody spins.
//!
//! A plain mutex lets in the thread that comes first, which is fast and starves the others: see its longest wait.

mod common;

use common::peers::{Access, Peer};
use common::{Arm, Bench, Figures, Moment, Window, digits, quantile, switches, times, together};
use parking_lot::{FairMutex, Mutex, RwLock};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use treelock::TreeLock;

const PEERS: [&str; 5] = ["treelock, 2 nodes", "treelock, 9 nodes", "FairMutex", "Mutex", "RwLock"];
const FAIR: usize = 2;

const FIGURES: [&str; 5] = ["median µs", "99.9 % µs", "longest µs", "hand-over µs", "switches"];

const THREADS: [usize; 3] = [2, 4, 8];
const INSIDE: [(&str, Duration); 4] = [
    ("0", Duration::ZERO),
    ("0.1 µs", Duration::from_nanos(100)),
    ("1 µs", Duration::from_micros(1)),
    ("10 µs", Duration::from_micros(10)),
];

fn main() {
    let question = "how does a node do that everybody wants?";
    let Some(mut bench) = Bench::start("hot_node", question) else { return };
    let slice = bench.pick(Duration::from_millis(4), Duration::from_millis(8));
    let (mut beside_fair, mut throughput, mut waits) = (vec![], vec![], vec![]);
    let writes = INSIDE.map(|(name, inside)| (format!("write, {name} inside"), 0, inside));
    for (kind, reads, inside) in writes.into_iter().chain([("90/10, 0 inside".into(), 9, Duration::ZERO)]) {
        let mut in_line = vec![kind.clone()];
        for count in THREADS {
            let case = format!("{kind}, {count} threads");
            let peers = (TreeLock::<str>::default(), FairMutex::new(()), Mutex::new(()), RwLock::new(()));
            let deep = "/srv/data/tenants/acme/projects/alpha/tables/users";
            let arms = vec![
                Arm::new(PEERS[0], count, || run(&peers.0, "/hot", count, reads, inside, slice)),
                Arm::new(PEERS[1], count, || run(&peers.0, deep, count, reads, inside, slice)),
                Arm::new(PEERS[FAIR], count, || run(&peers.1, "/hot", count, reads, inside, slice)),
                Arm::new(PEERS[3], count, || run(&peers.2, "/hot", count, reads, inside, slice)),
                Arm::new(PEERS[4], count, || run(&peers.3, "/hot", count, reads, inside, slice)),
            ];
            let Some(found) = bench.compare(&case, bench.pick(5, 31), arms) else { continue };
            in_line.push(times(found.ratio(0, FAIR, "M/s"), found.median(FAIR, "M/s")));
            let mut row = vec![case.clone(), digits(found.median(0, "M/s")), digits(found.median(1, "M/s"))];
            row.extend((FAIR..5).map(|peer| times(found.ratio(0, peer, "M/s"), found.median(peer, "M/s"))));
            throughput.push(row);
            let beside = |unit| {
                let figure = |peer| match unit {
                    "longest µs" => digits(found.longest(peer, unit)),
                    _ => digits(found.median(peer, unit)),
                };
                format!("{} ({})", figure(0), figure(FAIR))
            };
            waits.push([case].into_iter().chain(FIGURES.map(beside)).collect());
        }
        if in_line.len() > 1 {
            beside_fair.push(in_line);
        }
    }
    if beside_fair.iter().all(|row| row.len() == 1 + THREADS.len()) {
        let header = ["", "2 threads", "4 threads", "8 threads"];
        bench.print("Throughput beside FairMutex: treelock's ratio to it (its M/s)", &header, beside_fair);
    }
    let header = ["", "treelock, M/s", "9 nodes, M/s", "FairMutex", "Mutex", "RwLock"];
    bench.print(
        "Throughput of treelock on 2 nodes, and its ratio to each peer (the peer's M/s)",
        &header,
        throughput,
    );
    let header = [&[""], &FIGURES[..]].concat();
    bench.print("Waits for treelock on 2 nodes (for FairMutex)", &header, waits);
    bench.end();
}

/// What all threads share. Relaxed everywhere: the lock orders it; if it does not, the figures are bad.
struct Shared {
    clock: Instant,
    /// How long a holder works.
    inside: Duration,
    /// When the last holder was about to release.
    released: AtomicU64,
    /// Counted by writers, as if each were alone.
    entered: AtomicU64,
    /// Counted by each thread for itself, and added at its end.
    writes: AtomicU64,
}

#[derive(Default)]
struct Seen {
    waits: Vec<u32>,
    hand_overs: Vec<u32>,
    done: usize,
    rate: f64,
    switches: Option<u64>,
}

/// One slice for the throughput, one for the waits.
fn run(
    peer: &impl Peer<str>,
    path: &'static str,
    count: usize,
    reads: usize,
    inside: Duration,
    slice: Duration,
) -> Figures {
    let shared = Shared {
        inside,
        clock: Instant::now(),
        released: AtomicU64::new(0),
        entered: AtomicU64::new(0),
        writes: AtomicU64::new(0),
    };
    let plain = together(count, slice, |_, window| work::<false>(peer, path, reads, window, &shared));
    let timed = together(count, slice, |_, window| work::<true>(peer, path, reads, window, &shared));
    assert_eq!(shared.writes.into_inner(), shared.entered.into_inner(), "two were inside at once");

    let mut figures = vec![("M/s", plain.iter().map(|seen| seen.rate).sum())];
    if let Some(switches) = plain.iter().map(|seen| seen.switches).sum::<Option<u64>>() {
        let done: usize = plain.iter().map(|seen| seen.done).sum();
        figures.push((FIGURES[4], switches as f64 / done as f64));
    }
    let mut waits: Vec<u32> = timed.iter().flat_map(|seen| &seen.waits).copied().collect();
    waits.sort_unstable();
    figures.extend(FIGURES.into_iter().zip([0.5, 0.999, 1.0]).map(|(unit, share)| (unit, quantile(&waits, share))));
    let mut hand_overs: Vec<u32> = timed.iter().flat_map(|seen| &seen.hand_overs).copied().collect();
    hand_overs.sort_unstable();
    if reads == 0 && !hand_overs.is_empty() {
        figures.push((FIGURES[3], quantile(&hand_overs, 0.5)));
    }
    figures
}

fn work<const TIMED: bool>(
    peer: &impl Peer<str>,
    path: &'static str,
    reads: usize,
    mut window: Window,
    shared: &Shared,
) -> Seen {
    let now = || shared.clock.elapsed().as_nanos() as u64;
    let mut seen = Seen::default();
    let (mut before, mut writes) = (None, 0);
    for turn in 1.. {
        let access = if turn % (reads + 1) == 0 { Access::Write } else { Access::Read };
        let asked = if TIMED { now() } else { 0 };
        let (mut had, mut released) = (0, 0);
        peer.with(path, access, || {
            if TIMED {
                (had, released) = (now(), shared.released.load(Ordering::Relaxed));
            }
            if access == Access::Write {
                writes += 1;
                shared.entered.store(shared.entered.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            }
            if !shared.inside.is_zero() {
                let had = Instant::now();
                while had.elapsed() < shared.inside {}
            }
            if TIMED {
                shared.released.store(now(), Ordering::Relaxed);
            }
        });
        if TIMED {
            seen.waits.push((had - asked) as u32);
            if released > asked {
                seen.hand_overs.push(had.saturating_sub(released) as u32);
            }
        }
        seen.done += 1;
        if TIMED || turn % 16 == 0 {
            match window.look() {
                Moment::Inside => {}
                Moment::Begins => {
                    seen = Seen::default();
                    before = switches();
                }
                Moment::Ends => break,
            }
        }
    }
    shared.writes.fetch_add(writes, Ordering::Relaxed);
    seen.rate = window.rate(seen.done);
    seen.switches = switches().zip(before).map(|(after, before)| after - before);
    seen
}
