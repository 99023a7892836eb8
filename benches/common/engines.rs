//! What the benches of the engines measure alike.

use crate::common::{Arm, Bench, Figures, Outcome, digits, quantile, times};
use std::ops::Deref;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use treelock::machine::MachineTreeLock;

/// Of 9 nodes.
pub(crate) const PATH: &str = "srv/data/tenants/acme/projects/alpha/tables/users";

/// The same for each of several tenants.
pub(crate) fn path_of(tenant: usize) -> String {
    format!("srv/data/tenants/t{tenant}/projects/alpha/tables/users")
}

/// Pairs in a slice by a thread for each of these.
pub(crate) fn rate<T: Send>(slice: Duration, of: &[Mutex<T>], pair: impl Fn(&mut T, usize) + Sync) -> Figures {
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

/// Eight clients in sub-trees of their own, beside the peer, and in namespaces of their own.
pub(crate) fn disjoint<T, F>(
    bench: &mut Bench,
    rounds: usize,
    peer: &'static str,
    tree: impl Fn(&str) -> T,
    flat: impl Fn() -> F,
    pair: impl Fn(&mut F, &str) + Sync,
) where
    T: Deref<Target = MachineTreeLock> + Send,
    F: Send,
{
    const CLIENTS: usize = 8;
    let trees: Vec<_> = (0..CLIENTS).map(|_| Mutex::new(tree("disjoint"))).collect();
    let apart: Vec<_> = (0..CLIENTS).map(|of| Mutex::new(tree(&format!("apart-{of}")))).collect();
    let flats: Vec<_> = (0..CLIENTS).map(|_| Mutex::new(flat())).collect();
    let slice = bench.pick(Duration::from_millis(100), Duration::from_millis(300));
    let write = |tree: &mut T, client: usize| drop(tree.write(path_of(client)).expect("it can be had"));
    let arms = vec![
        Arm::new("treelock", CLIENTS, || rate(slice, &trees, write)),
        Arm::new(peer, CLIENTS, || rate(slice, &flats, |flat: &mut F, client| pair(flat, &path_of(client)))),
        Arm::new("namespaces", CLIENTS, || rate(slice, &apart, write)),
    ];
    let Some(found) = bench.compare("disjoint, 8 clients", rounds, arms) else { return };
    print_disjoint(bench, &found, peer);
}

/// Eight clients in sub-trees of their own, the peer, and clients in namespaces of their own.
fn print_disjoint(bench: &Bench, found: &Outcome, peer: &str) {
    let flat = found.median(1, "per second");
    let row = |arm: usize, what: &str| {
        let ratio = found.ratio(arm, 1, "per second");
        vec![what.to_owned(), digits(found.median(arm, "per second")), times(ratio, flat)]
    };
    let rows = vec![row(0, "a sub-tree"), row(2, "a namespace")];
    bench.print("8 clients, pairs a second", &["each has", "treelock", &format!("{peer} (pairs)")], rows);
}

/// From the release by one client to the grant of another one that waits.
pub(crate) fn hand_overs(turns: usize, holder: &MachineTreeLock, waiter: &MachineTreeLock) -> Figures {
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
}

pub(crate) fn spread(waits: impl Iterator<Item = Duration>) -> Figures {
    let mut waits: Vec<u32> = waits.map(|wait| wait.as_nanos() as u32).collect();
    waits.sort_unstable();
    let [median, longest] = [0.5, 1.0].map(|share| quantile(&waits, share));
    vec![("median µs", median), ("longest µs", longest)]
}

pub(crate) fn print_hand_overs(bench: &Bench, found: &Outcome, peers: &[&str]) {
    let rows = peers.iter().enumerate().map(|(arm, peer)| {
        vec![peer.to_string(), digits(found.median(arm, "median µs")), digits(found.median(arm, "longest µs"))]
    });
    bench.print("Hand-over to a waiter of another client", &["", "median, µs", "longest, µs"], rows.collect());
}
