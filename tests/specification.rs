//! The specification against its own definitions, spelled out: sub-trees as sets of nodes, rights as sets of pairs.
//! What the other tests compare the lock with must be right by itself.
#![cfg(not(feature = "model"))]

#[path = "../model/spec.rs"]
mod spec;

use spec::{Held, Origin, Owner, Request, Unusable, Verdict, Way};
use std::collections::BTreeSet;
use std::path::Path;

/// Every way of at most `depth` segments over two names.
fn ways(depth: usize) -> Vec<Way> {
    let mut ways = vec![Way::default()];
    let mut start = 0;
    for _ in 0..depth {
        let end = ways.len();
        for parent in start..end {
            for name in [b"a", b"b"] {
                let mut way = ways[parent].clone();
                way.0.push(name.to_vec());
                ways.push(way);
            }
        }
        start = end;
    }
    ways
}

fn request(reads: &[&str], writes: &[&str]) -> Request {
    Request::of_text(reads, writes)
}

#[test]
fn sub_trees_overlap_if_they_share_a_node() {
    // One level more than the roots have: a sub-tree is never empty.
    let universe = ways(4);
    for one in ways(3) {
        for other in ways(3) {
            let shared = universe.iter().any(|node| one.contains(node) && other.contains(node));
            assert_eq!(one.overlaps(&other), shared, "{one:?} {other:?}");
        }
    }
}

#[test]
fn requests_conflict_if_one_writes_a_node_that_the_other_touches() {
    let universe = ways(3);
    let below = |roots: &[Way]| -> BTreeSet<Way> {
        universe.iter().filter(|node| roots.iter().any(|root| root.contains(node))).cloned().collect()
    };
    let some = ways(2);
    let mut requests = Vec::new();
    for read in [None].into_iter().chain(some.iter().map(Some)) {
        for write in [None].into_iter().chain(some.iter().map(Some)) {
            requests.push(Request {
                reads: read.into_iter().cloned().collect(),
                writes: write.into_iter().cloned().collect(),
            });
        }
    }
    for one in &requests {
        for other in &requests {
            let (one_writes, other_writes) = (below(&one.writes), below(&other.writes));
            let one_touches = &below(&one.reads) | &one_writes;
            let other_touches = &below(&other.reads) | &other_writes;
            let clash = !one_writes.is_disjoint(&other_touches) || !other_writes.is_disjoint(&one_touches);
            assert_eq!(one.conflicts_with(other), clash, "{one:?} {other:?}");
        }
        // A root that is left out adds nothing to the rest.
        let short = one.normalized();
        assert_eq!(below(&short.writes), below(&one.writes));
        assert_eq!(&below(&short.reads) | &below(&short.writes), &below(&one.reads) | &below(&one.writes));
        assert!(one.downgraded().writes.is_empty());
        assert_eq!(below(&one.downgraded().reads), &below(&one.reads) | &below(&one.writes));
    }
}

#[test]
fn spellings_of_one_node_are_one_way() {
    let way = |text: &str| Way::of_text(text);
    assert_eq!(way("//a///b/"), Way(vec![b"a".to_vec(), b"b".to_vec()]));
    assert_eq!(way("/"), Way::default());
    assert_eq!(way("a/../b").0.len(), 3, "dots are names in text");

    let path = |text: &str| Way::of_path(Path::new(text));
    assert_eq!(path("./a//x/../b/."), Ok((Some(Origin::Somewhere), way("a/b"))));
    assert_eq!(path(""), Ok((None, Way::default())));
    assert_eq!(path("/../../a"), Ok((Some(Origin::Top), way("a"))));
    assert_eq!(path("a/../../b"), Err(Unusable));

    let paths = |reads: &[&str], writes: &[&str]| Request::of_paths(reads, writes).map(|(origin, _)| origin);
    assert_eq!(paths(&["a"], &["/a"]), Err(Unusable));
    assert_eq!(paths(&["/a"], &["/a"]), Ok(Some(Origin::Top)));
    assert_eq!(paths(&["", "/a"], &[""]), Ok(Some(Origin::Top)));
    assert_eq!(paths(&[], &[""]), Ok(None));
}

#[test]
fn own_guards_exclude_nothing_and_arc_guards_are_strangers() {
    let mut held = Held::default();
    let write = request(&[], &["a"]);
    let id = held.grant(0, Owner::Thread(0), write.clone());
    assert_eq!(held.verdict(Owner::Thread(0), &write), Verdict::Granted);
    assert_eq!(held.verdict(Owner::Thread(1), &write), Verdict::Refused);
    assert_eq!(held.verdict(Owner::Itself, &write), Verdict::Refused);
    held.release(id);
    let id = held.grant(0, Owner::Itself, write.clone());
    assert_eq!(held.verdict(Owner::Itself, &write), Verdict::Refused);
    assert_eq!(held.verdict(Owner::Thread(0), &write), Verdict::Refused);
    held.downgrade(id);
    assert_eq!(held.verdict(Owner::Thread(0), &request(&["a/b"], &["b"])), Verdict::Granted);
}

#[test]
fn who_waits_leaves_it_open_but_for_what_the_owner_has() {
    let mut held = Held::default();
    held.grant(0, Owner::Thread(0), request(&["a"], &[]));
    let waiter = held.wait(1, Owner::Thread(1), request(&[], &["a/b"]));
    assert_eq!(held.verdict(Owner::Thread(2), &request(&["a/b/c"], &[])), Verdict::Open);
    assert_eq!(held.verdict(Owner::Thread(2), &request(&["a/c"], &[])), Verdict::Granted);
    assert_eq!(held.verdict(Owner::Thread(0), &request(&["a/b/c"], &[])), Verdict::Granted);
    assert_eq!(held.verdict(Owner::Thread(0), &request(&[], &["a/b/c"])), Verdict::Open);
    held.stop_waiting(waiter);
    assert_eq!(held.verdict(Owner::Thread(0), &request(&[], &["a/b/c"])), Verdict::Granted);
}
