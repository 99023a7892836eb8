//! What the benches of the engines measure alike.

use crate::common::{Bench, Figures, Outcome, digits, quantile, times};
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

/// Eight clients in sub-trees of their own, the peer, and clients in namespaces of their own.
pub(crate) fn print_disjoint(bench: &Bench, found: &Outcome, peer: &str) {
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
