//! Do more threads lock more sub-trees, if the sub-trees do not overlap but share ancestors?
//!
//! | case | each thread |
//! |---|---|
//! | disjoint | writes a path of 9 nodes of its own; 4 of them are shared by all: goal 1.8 x on 2 threads |
//! | files | writes files of a real tree at random (`--tree DIR`) |
//! | files 90/10 | reads nine files for one that it writes |
//! | rare X, rare S | as disjoint, but 1 % of its requests are a write, or a read, of the lowest shared ancestor |
//!
//! For the last two the strong requests are timed too, from asking to having. The threads do nothing but ask: real
//! ones meet less often. Peers: *plain counters* (the floor with threads: an atomic word per node), a `dashmap` of
//! locks, one mutex with a map.

mod common;

use common::peers::{Access, Floor, GlobalMutex, MapOfLocks, Peer};
use common::{Arm, Bench, Figures, Moment, Window, digits, leak, quantile, thread_counts, times, together};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};
use treelock::TreeLock;

/// What one thread asks for, again and again.
type Script = Vec<Request>;

#[derive(Clone, Copy)]
struct Request {
    path: &'static str,
    access: Access,
    timed: bool,
}

/// The length of each script: more than a branch predictor learns.
const REQUESTS: usize = 4096;

const HOT: &str = "/srv/data/tenants";

/// What is printed about the timed requests.
const STRONG: [&str; 3] = ["median µs", "99 % µs", "longest µs"];

fn main() {
    let question = "do more threads lock more, below shared ancestors?";
    let Some(mut bench) = Bench::start("scaling", question) else { return };
    let files = files(&bench.options.tree());
    let mut rng = SmallRng::seed_from_u64(5);
    let mut file = |write_share: f64| {
        let path = files[rng.random_range(0..files.len())];
        let access = if rng.random_bool(write_share) { Access::Write } else { Access::Read };
        Request { path, access, timed: false }
    };
    let names: Vec<&str> =
        (0..16).map(|thread| leak(format!("{HOT}/t{thread}/projects/alpha/tables/users")).as_str()).collect();
    let own = |thread: usize, _| Request { path: names[thread], access: Access::Write, timed: false };
    let (mut rows, mut waits) = (vec![], vec![]);
    compare(&mut bench, &mut rows, &mut waits, "disjoint", own);
    compare(&mut bench, &mut rows, &mut waits, "files", |_, _| file(1.0));
    compare(&mut bench, &mut rows, &mut waits, "files 90/10", |_, _| file(0.1));
    for (case, access) in [("rare X", Access::Write), ("rare S", Access::Read)] {
        compare(&mut bench, &mut rows, &mut waits, case, |thread, turn| match turn % 100 {
            // Not in the same turn for all threads.
            at if at == (thread * 37) % 100 => Request { path: HOT, access, timed: true },
            _ => own(thread, turn),
        });
    }
    let header = ["threads", "treelock, M/s", "x 1 thread", "plain counters", "dashmap", "mutex + map"];
    bench.print(
        &format!("Throughput of treelock, and its ratio to each peer (the peer's M/s; {} files)", files.len()),
        &header,
        rows,
    );
    let header = ["threads", "", "treelock", "plain counters", "dashmap", "mutex + map"];
    bench.print("The rare strong request of the shared ancestor: from asking to having", &header, waits);
    bench.end();
}

fn compare(
    bench: &mut Bench,
    rows: &mut Vec<Vec<String>>,
    waits: &mut Vec<Vec<String>>,
    case: &str,
    mut request: impl FnMut(usize, usize) -> Request,
) {
    let counts = thread_counts();
    let most = counts.iter().copied().max().unwrap_or(1);
    let scripts: &[Script] =
        leak((0..most).map(|thread| (0..REQUESTS).map(|turn| request(thread, turn)).collect()).collect::<Vec<_>>());
    let slice = bench.pick(Duration::from_millis(3), Duration::from_millis(8));
    // One lock for all numbers of threads: it has seen all its nodes.
    let peers = (TreeLock::<str>::default(), <Floor>::new(1 << 17), MapOfLocks::default(), GlobalMutex::default());
    let mut arms = vec![];
    for &count in &counts {
        let scripts = &scripts[..count];
        arms.push(Arm::new("treelock", count, || run(&peers.0, scripts, slice)));
        arms.push(Arm::new("plain counters", count, || run(&peers.1, scripts, slice)));
        arms.push(Arm::new("dashmap", count, || run(&peers.2, scripts, slice)));
        arms.push(Arm::new("mutex + map", count, || run(&peers.3, scripts, slice)));
    }
    let Some(found) = bench.compare(case, bench.pick(7, 51), arms) else { return };
    for (arm, &count) in (0..).step_by(4).zip(&counts) {
        let ours = found.median(arm, "M/s");
        let mut row = vec![format!("{case}: {count}"), digits(ours), digits(found.ratio(arm, 0, "M/s"))];
        row.extend((arm + 1..arm + 4).map(|peer| times(found.ratio(arm, peer, "M/s"), found.median(peer, "M/s"))));
        rows.push(row);
        if found.median(arm, STRONG[0]).is_finite() {
            waits.extend(STRONG.map(|unit| {
                let figure = |peer| match unit {
                    "longest µs" => digits(found.longest(peer, unit)),
                    _ => digits(found.median(peer, unit)),
                };
                let mut row = vec![format!("{case}: {count}"), unit.into()];
                row.extend((arm..arm + 4).map(figure));
                row
            }));
        }
    }
}

/// A thread per script, for one slice.
fn run(peer: &impl Peer<str>, scripts: &[Script], slice: Duration) -> Figures {
    let found = together(scripts.len(), slice, |thread, window| work(peer, &scripts[thread], window));
    let mut figures = vec![("M/s", found.iter().map(|thread| thread.0).sum())];
    let mut waits: Vec<u32> = found.into_iter().flat_map(|thread| thread.1).collect();
    if !waits.is_empty() {
        waits.sort_unstable();
        figures.extend(STRONG.into_iter().zip([0.5, 0.99, 1.0]).map(|(unit, share)| (unit, quantile(&waits, share))));
    }
    figures
}

/// Millions of requests a second, and the nanoseconds that the timed ones waited.
fn work(peer: &impl Peer<str>, script: &Script, mut window: Window) -> (f64, Vec<u32>) {
    let mut waits = Vec::with_capacity(1 << 16);
    let mut done = 0;
    for part in script.chunks(64).cycle() {
        for &Request { path, access, timed } in part {
            if timed {
                let asked = Instant::now();
                peer.with(black_box(path), access, || waits.push(asked.elapsed().as_nanos() as u32));
            } else {
                peer.with(black_box(path), access, || {});
            }
        }
        done += part.len();
        match window.look() {
            Moment::Inside => {}
            Moment::Begins => {
                done = 0;
                waits.clear();
            }
            Moment::Ends => break,
        }
    }
    (window.rate(done), waits)
}

/// The files below a directory, 20,000 at most, as paths from there; no build results, no history.
fn files(top: &Path) -> Vec<&'static str> {
    let mut found = vec![];
    let mut directories = vec![top.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && !["target", ".git"].iter().any(|name| entry.file_name() == *name) => {
                    directories.push(path);
                }
                Ok(kind) if kind.is_file() => {
                    let name = path.strip_prefix(top).unwrap_or(&path).to_string_lossy();
                    found.push(leak(format!("/{name}")).as_str());
                }
                _ => {}
            }
        }
    }
    assert!(!found.is_empty(), "no files below {}", top.display());
    found.sort_unstable();
    found.truncate(20_000);
    found
}
