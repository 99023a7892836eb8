//! What does the lock between machines cost in Memcached, beside the lock that its users write?
//!
//! | case | |
//! |---|---|
//! | uncontended | one client, a path of 9 nodes: goal at most 2 times `add` and `delete`; with sub-trees held elsewhere |
//! | disjoint | 8 clients in sub-trees of their own, beside as many keys |
//! | hand-over | from the release to the grant of a waiter of another client |
//!
//! The server is a `memcached` on the loopback, started here and ended by its process id.

#[allow(dead_code, reason = "the tests need more of it")]
#[path = "../tests/common/memcached.rs"]
mod cache;
mod common;
#[path = "common/engines.rs"]
mod engines;

use cache::Memcached;
use common::{Arm, Bench, digits, times};
use engines::{PATH, disjoint, hand_overs, print_hand_overs};
use memcache::exp::{Delete, MetaClient, Set};
use std::time::Duration;
use treelock::machine::Options;
use treelock::memcached::MemcachedTreeLock;

const PEERS: [&str; 2] = ["treelock", "add and delete"];

fn main() {
    let Some(mut bench) = Bench::start("memcached", "what does the lock cost in Memcached?") else { return };
    let Some(server) = Memcached::start_with(&[]) else { return };
    uncontended(&mut bench, &server);
    let rounds = bench.pick(5, 15);
    disjoint(
        &mut bench,
        rounds,
        PEERS[1],
        |namespace| tree(&server, namespace),
        || flat(&server),
        |client, path| pair(client, path),
    );
    hand_over(&mut bench, &server);
    bench.end();
}

fn tree(server: &Memcached, namespace: &str) -> MemcachedTreeLock {
    // A new namespace is closed for so long.
    let options = Options::new().time_to_live(Duration::from_secs(2));
    let tree = MemcachedTreeLock::connect(&format!("127.0.0.1:{}", server.port), namespace, options);
    let tree: MemcachedTreeLock = tree.expect("the server runs");
    drop(tree.write("first").expect("it can be had"));
    tree
}

fn flat(server: &Memcached) -> MetaClient {
    MetaClient::connect(("127.0.0.1", server.port)).expect("the server runs")
}

/// The lock of a key, with a time to live, as one writes it with a cache alone.
fn pair(client: &MetaClient, path: &str) {
    let key = path.replace(' ', "_");
    assert!(client.run(Set::new(&key, "me").ttl_raw(10).add()).expect("the server runs").applied());
    assert!(client.run(Delete::new(&key)).expect("the server runs").applied());
}

fn uncontended(bench: &mut Bench, server: &Memcached) {
    let (measured, holder, flat) = (tree(server, "uncontended"), tree(server, "uncontended"), flat(server));
    let (mut rows, mut held, mut alone) = (Vec::new(), Vec::new(), None);
    for (case, others) in [("", 0), ("100 held elsewhere", 100), ("2,000 held elsewhere", 2000)] {
        let hold = |other: usize| holder.write_arc(format!("srv/data/tenants/t{}/o{other}", other % 100));
        held.extend((held.len()..others).map(|other| hold(other).expect("it can be had")));
        let arms = vec![
            Arm::new(PEERS[0], others, bench.per_call(|| drop(measured.write(PATH).expect("it can be had")))),
            Arm::new(PEERS[1], others, bench.per_call(|| pair(&flat, PATH))),
        ];
        let name = format!("uncontended {case}");
        let Some(found) = bench.compare(&name, bench.pick(9, 31), arms) else { continue };
        let ns = found.median(0, "ns");
        let first = *alone.get_or_insert(ns);
        let ratio = times(found.ratio(0, 1, "ns"), found.median(1, "ns") / 1e3);
        rows.push(vec![case.to_owned(), digits(ns / 1e3), digits(ns / first), ratio]);
    }
    let header = ["", "treelock, µs", "times as at first", "add and delete (µs)"];
    bench.print("Lock + unlock of 9 nodes", &header, rows);
}

fn hand_over(bench: &mut Bench, server: &Memcached) {
    let (holder, waiter) = (tree(server, "hand-over"), tree(server, "hand-over"));
    let turns = bench.pick(20, 100);
    let arms = vec![Arm::new(PEERS[0], 0, || hand_overs(turns, &holder, &waiter))];
    let Some(found) = bench.compare("hand-over", bench.pick(3, 11), arms) else { return };
    print_hand_overs(bench, &found, &PEERS[..1]);
}
