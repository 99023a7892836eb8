//! What a request that waits learns, when the connection is cut on which it listens.

use super::conformance::Place;
use super::server::Server;
use crate::common::LIMIT;
use std::time::{Duration, Instant};
use treelock::machine::Options;

/// G9: with a long time to live nobody renews soon, so the one that waits must ask again by itself.
#[test]
fn waiter_whose_connection_is_cut_hears_of_the_release() {
    let Some(server) = Server::start() else { return };
    server.open_quickly();
    let long = Options::new().time_to_live(Duration::from_secs(600)).patience(Duration::from_secs(5));
    let (first, second) = (server.open_with(long.clone()), server.open_with(long));
    let guard = first.write("a").unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| second.read("a").map(drop));
        let start = Instant::now();
        while !format!("{:?}", server.ask(&["INFO", "clients"]).unwrap()).contains("blocked_clients:1") {
            assert!(start.elapsed() < LIMIT, "nobody listens");
        }
        server.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).unwrap();
        guard.release().unwrap();
        let released = Instant::now();
        waits.join().unwrap().unwrap();
        assert!(released.elapsed() < Duration::from_secs(3), "it took {:?}", released.elapsed());
    });
}
