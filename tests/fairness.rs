//! The order of service (G3), and that compatible requests do not wait (G4).
#![cfg(not(feature = "model"))]

mod common;

use common::{Other, Paths, admits, join, join_all, spawn, wait_until, wait_until_thread_waits, wait_until_waiting};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use treelock::TreeLock;

/// Threads that queue one after the other, and note their names when they are served.
#[derive(Default)]
struct Queue {
    served: Arc<Mutex<Vec<&'static str>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Queue {
    fn join(&mut self, lock: &Arc<TreeLock>, name: &'static str, reads: Paths, writes: Paths) {
        let (own, served) = (Arc::clone(lock), Arc::clone(&self.served));
        self.threads.push(spawn(name, move || {
            let guard = own.lock(reads, writes);
            served.lock().unwrap().push(name);
            drop(guard);
        }));
        wait_until_thread_waits(lock, name);
    }

    /// Requests that queue one after the other: their names, reads and writes.
    fn join_all(&mut self, lock: &Arc<TreeLock>, requests: &[Request]) {
        requests.iter().for_each(|&(name, reads, writes)| self.join(lock, name, reads, writes));
    }

    /// The order of service, once all are served.
    fn served(self) -> Vec<&'static str> {
        join_all(self.threads);
        Arc::try_unwrap(self.served).unwrap().into_inner().unwrap()
    }
}

/// A name, reads and writes.
type Request = (&'static str, Paths, Paths);

const Q: Paths = &["q"];
const X: Paths = &["q/x"];
const Y: Paths = &["q/x/y"];
const Z: Paths = &["q/x/y/z"];

/// Whether a write of one overlaps what the other reads or writes.
fn conflict(one: &Request, other: &Request) -> bool {
    let overlap = |one: &str, other: &str| Path::new(one).starts_with(other) || Path::new(other).starts_with(one);
    let excludes = |(_, _, writes): &Request, (_, reads, others): &Request| {
        writes.iter().any(|write| reads.iter().chain(*others).any(|path| overlap(write, path)))
    };
    excludes(one, other) || excludes(other, one)
}

/// Of two conflicting requests, the one that queued first was served first.
#[track_caller]
fn assert_in_order(queued: &[Request], served: &[&str]) {
    let place = |name| served.iter().position(|&other| other == name).expect("all are served");
    for (index, later) in queued.iter().enumerate() {
        for earlier in queued[..index].iter().filter(|earlier| conflict(earlier, later)) {
            assert!(place(earlier.0) < place(later.0), "{} is served before {}: {served:?}", later.0, earlier.0);
        }
    }
}

/// G3.
#[test]
fn conflicting_requests_are_served_in_the_order_of_their_coming() {
    let lock = common::new();
    let held = lock.write("a");
    let mut queue = Queue::default();
    queue.join(&lock, "write a", &[], &["a"]);
    queue.join(&lock, "read a", &["a"], &[]);
    queue.join(&lock, "write below", &[], &["a/b"]);
    queue.join(&lock, "read a and write below", &["a"], &["a/c"]);
    queue.join(&lock, "write a again", &[], &["a"]);
    queue.join(&lock, "read far below", &["a/b/c/d"], &[]);
    drop(held);
    let order = ["write a", "read a", "write below", "read a and write below", "write a again", "read far below"];
    assert_eq!(queue.served(), order);
}

/// G3: also when the queue is long.
#[test]
fn a_hundred_writers_are_served_in_the_order_of_their_coming() {
    let lock = common::new();
    let held = lock.write("a");
    let names: Vec<&'static str> = (0..100).map(|number| &*format!("writer {number}").leak()).collect();
    let mut queue = Queue::default();
    for name in &names {
        queue.join(&lock, name, &[], &["a"]);
    }
    drop(held);
    assert_eq!(queue.served(), names);
}

/// G3: at the root of the tree too.
#[test]
fn who_wants_the_whole_tree_is_served_in_turn() {
    let lock = common::new();
    let held = lock.write("a");
    let mut queue = Queue::default();
    queue.join(&lock, "all", &[], &[""]);
    queue.join(&lock, "somewhere", &[], &["b"]);
    queue.join(&lock, "read all", &["."], &[]);
    assert!(!admits(&lock, &["c"], &[]), "nobody overtakes who waits for the whole tree");
    drop(held);
    assert_eq!(queue.served(), ["all", "somewhere", "read all"]);
}

/// G3.
#[test]
fn newcomers_do_not_overtake_a_waiting_writer() {
    let lock = common::new();
    let held = Other::holds(&lock, &["a"], &[]);
    let writer = Other::waits(&lock, &[], &["a"]);
    assert!(!admits(&lock, &["a"], &[]), "a reader of the same");
    assert!(!admits(&lock, &["a/b"], &[]), "a reader below");
    assert!(!admits(&lock, &[""], &[]), "a reader of all");
    assert!(!admits(&lock, &["b", "a/b"], &["c"]), "a reader of several");
    held.releases();
    writer.wait_until_granted();
    assert!(!admits(&lock, &["a"], &[]));
    writer.releases();
    assert!(admits(&lock, &["a"], &[]));
}

/// G3, G4: a writer below `a` waits for the readers of `a`; a reader elsewhere below `a` conflicts with neither.
#[test]
fn who_fits_passes_the_queue_and_who_does_not_stays_behind() {
    let lock = common::new();
    let held = Other::holds(&lock, &["a"], &[]);
    let writer = Other::waits(&lock, &[], &["a/b"]);
    assert!(admits(&lock, &["a/c"], &[]), "conflicts with nobody");
    assert!(admits(&lock, &["a/c", "a/d/e"], &["b"]), "conflicts with nobody");
    assert!(!admits(&lock, &["a"], &[]), "fits beside the reader, but not beside the writer that was there before");
    assert!(!admits(&lock, &[], &["a/c"]), "fits beside the writer, but not beside the reader");
    held.releases();
    writer.releases();
}

/// G3, G4: two compatible waiters do not hold up each other.
#[test]
fn all_whose_turn_has_come_are_served_together() {
    let lock = common::new();
    let held = lock.write("a");
    let together = Arc::new(Barrier::new(4));
    let cases: [(Paths, Paths); 4] = [(&["a"], &[]), (&["a"], &[]), (&["a/b"], &[]), (&["a/b", "a/c"], &["d"])];
    let readers = cases.map(|(reads, writes)| {
        let (lock, together) = (Arc::clone(&lock), Arc::clone(&together));
        spawn("reader", move || {
            let _guard = lock.lock(reads, writes);
            together.wait();
        })
    });
    wait_until_waiting(&lock, 4);
    drop(held);
    join_all(readers);
}

/// G3, G4: waiters that are compatible with the first of the queue are granted with it, those behind the next writer
/// are not.
#[test]
fn readers_behind_the_next_writer_do_not_come_with_those_before_it() {
    let lock = common::new();
    let held = lock.write("a");
    let first = [Other::waits(&lock, &["a"], &[]), Other::waits(&lock, &["a/b"], &[])];
    let writer = Other::waits(&lock, &[], &["a"]);
    let last = Other::waits(&lock, &["a"], &[]);
    drop(held);
    first.iter().for_each(Other::wait_until_granted);
    assert_eq!(lock.snapshot().holders.len(), 2);
    assert!(!writer.is_granted() && !last.is_granted());
    first.into_iter().for_each(Other::releases);
    writer.wait_until_granted();
    assert!(!last.is_granted());
    writer.releases();
    last.releases();
}

/// G3: each reader asks while the one before it still holds, so that there would always be a reader.
#[test]
fn a_writer_is_not_starved_by_a_stream_of_overlapping_readers() {
    let lock = common::new();
    let readers: [Paths; 3] = [&["a"], &["a/b"], &["a/b/c"]];
    let before = readers.map(|reads| Other::holds(&lock, reads, &[]));
    let writer = Other::waits(&lock, &[], &["a"]);
    let after = readers.map(|reads| Other::waits(&lock, reads, &[]));
    before.into_iter().for_each(Other::releases);
    wait_until("the writer is in", || writer.is_granted());
    assert!(after.iter().all(|reader| !reader.is_granted()));
    writer.releases();
    after.into_iter().for_each(Other::releases);
}

/// G3: the same without a plan, on several threads that never stop asking.
#[test]
fn writers_get_in_between_readers_that_never_stop() {
    let lock = common::new();
    let stop = Arc::new(AtomicBool::new(false));
    let readers = ["a", "a/b", "a/b/c"].map(|path| {
        let (lock, stop) = (Arc::clone(&lock), Arc::clone(&stop));
        spawn(path, move || {
            while !stop.load(Ordering::Relaxed) {
                let _guard = lock.read(path);
                thread::yield_now();
            }
        })
    });
    for path in ["a", "", "a/b"].repeat(30) {
        let guard = lock.try_lock_for(&[], &[path], common::LIMIT);
        drop(guard.expect("the writer is starved"));
    }
    stop.store(true, Ordering::Relaxed);
    join_all(readers);
}

/// G3: a request of several roots waits for each of them in turn, and is not overtaken for ever.
#[test]
fn a_request_of_several_roots_is_not_starved_by_requests_of_one() {
    let lock = common::new();
    let stop = Arc::new(AtomicBool::new(false));
    let single = ["a", "b/x", "c/x/y"].map(|path| {
        let (lock, stop) = (Arc::clone(&lock), Arc::clone(&stop));
        spawn(path, move || {
            while !stop.load(Ordering::Relaxed) {
                let _guard = lock.write(path);
                thread::yield_now();
            }
        })
    });
    for _ in 0..50 {
        let guard = lock.try_lock_for(&["b/x"], &["a", "c/x/y"], common::LIMIT);
        drop(guard.expect("it is starved"));
    }
    stop.store(true, Ordering::Relaxed);
    join_all(single);
}

/// G3: requests that were there before are served once each, however often their threads ask again.
#[test]
fn nobody_is_served_twice_while_another_waits() {
    let lock = common::new();
    let served: Arc<[AtomicUsize; 3]> = Arc::default();
    let held = lock.write("a");
    let others = [0, 1, 2].map(|number| {
        let (lock, served) = (Arc::clone(&lock), Arc::clone(&served));
        spawn("other", move || {
            for _ in 0..20 {
                let _guard = lock.write("a/b");
                served[number].fetch_add(1, Ordering::SeqCst);
            }
        })
    });
    wait_until_waiting(&lock, 3);
    let last = spawn("last", {
        let (lock, served) = (Arc::clone(&lock), Arc::clone(&served));
        move || {
            let _guard = lock.write("a");
            served.each_ref().map(|count| count.load(Ordering::SeqCst))
        }
    });
    wait_until_waiting(&lock, 4);
    drop(held);
    assert_eq!(join(last), [1, 1, 1]);
    join_all(others);
}

/// G3: a waiter that is refused later leaves no place behind.
#[test]
fn the_order_is_kept_when_one_in_the_middle_gives_up() {
    let lock = common::new();
    let held = lock.write("a");
    let mut queue = Queue::default();
    queue.join(&lock, "first", &[], &["a"]);
    let own = Arc::clone(&lock);
    let impatient = spawn("impatient", move || own.try_lock_for(&[], &["a"], Duration::from_millis(300)).is_err());
    wait_until("it waits, or has", || lock.snapshot().waiters.len() == 2 || impatient.is_finished());
    queue.join(&lock, "third", &["a"], &[]);
    queue.join(&lock, "fourth", &[], &["a/b"]);
    assert!(join(impatient));
    drop(held);
    assert_eq!(queue.served(), ["first", "third", "fourth"]);
}

/// G3: all waiters are let on at `q` at one moment, and keep their order below it.
#[test]
fn twelve_writers_below_a_written_node_are_served_in_the_order_in_which_they_began_to_wait() {
    let lock = common::new();
    let held = lock.write("q");
    let names: [&str; 12] = std::array::from_fn(|number| &*format!("writer {number}").leak());
    let mut queue = Queue::default();
    queue.join_all(&lock, &names.map(|name| (name, &[][..], X)));
    drop(held);
    assert_eq!(queue.served(), names);
}

/// G3: readers share with readers, and none passes a writer that began to wait before it.
#[test]
fn twelve_writers_and_readers_below_a_written_node_keep_their_order() {
    let lock = common::new();
    let held = lock.write("q");
    let queued: [Request; 12] = std::array::from_fn(|number| match number {
        1 | 2 | 5 | 7 | 8 | 9 => (&*format!("reader {number}").leak(), X, &[][..]),
        _ => (&*format!("writer {number}").leak(), &[][..], X),
    });
    let mut queue = Queue::default();
    queue.join_all(&lock, &queued);
    drop(held);
    assert_in_order(&queued, &queue.served());
}

/// G3: the requests part on the way, and their order holds at each node.
#[test]
fn requests_of_several_depths_below_a_written_node_keep_their_order() {
    let lock = common::new();
    let held = lock.write("q");
    let queued: [Request; 12] = [
        ("writes x", &[], X),
        ("writes z", &[], Z),
        ("reads y", Y, &[]),
        ("writes beside y", &[], &["q/x/beside"]),
        ("writes y", &[], Y),
        ("reads x", X, &[]),
        ("reads z", Z, &[]),
        ("writes z again", &[], Z),
        ("reads beside y", &["q/x/beside"], &[]),
        ("writes x again", &[], X),
        ("reads y again", Y, &[]),
        ("writes q", &[], Q),
    ];
    let mut queue = Queue::default();
    queue.join_all(&lock, &queued);
    drop(held);
    assert_in_order(&queued, &queue.served());
}

/// G3: also if they began to wait at different nodes.
#[test]
fn requests_that_wait_at_several_nodes_keep_their_order() {
    let lock = common::new();
    let held = lock.write("q/x/y");
    let queued: [Request; 8] = [
        ("writes z", &[], Z),
        ("reads x", X, &[]),
        ("writes y", &[], Y),
        ("writes q", &[], Q),
        ("writes z again", &[], Z),
        ("reads z", Z, &[]),
        ("writes x", &[], X),
        ("reads q", Q, &[]),
    ];
    let mut queue = Queue::default();
    queue.join_all(&lock, &queued);
    drop(held);
    assert_in_order(&queued, &queue.served());
}

/// The one exception to that order: at `q`, a request that only reads below `q` conflicts neither with the reader of
/// `q` nor with the writer below that waits for it, so it passes both, and gets its place at `q/x`. It passes nobody
/// there.
#[test]
fn reader_passes_a_writer_that_waits_further_up_for_another_reader() {
    let lock = common::new();
    let held = lock.write("q/x");
    let queued: [Request; 4] =
        [("reads q", Q, &[]), ("writes x", &[], X), ("reads x", X, &[]), ("writes x again", &[], X)];
    let mut queue = Queue::default();
    queue.join_all(&lock, &queued);
    drop(held);
    let served = queue.served();
    let place = |name| served.iter().position(|served| *served == name).unwrap();
    assert!(place("reads q") < place("writes x") && place("writes x") < place("writes x again"), "{served:?}");
    assert!(place("reads x") < place("writes x again"), "{served:?}");
}

/// G4, G9: the stamp of a request that is walked on puts it ahead of some waiters at the next node, and so it may let
/// in another one: a nested request goes ahead of the first waiter that waits for its owner anyway (rule 3 of
/// `node.rs`).
#[test]
fn a_request_that_is_walked_on_lets_in_whom_it_waits_for() {
    let lock = common::new();
    let (m, other) = (lock.write("m"), lock.write("k/n/r"));
    let both = Other::waits(&lock, &[], &["m", "k/n"]);
    let (asks, asked) = std::sync::mpsc::channel::<()>();
    let granted = Arc::new(AtomicBool::new(false));
    let nests = spawn("nests", {
        let (lock, granted) = (Arc::clone(&lock), Arc::clone(&granted));
        move || {
            let _reading = lock.read("k/n/p");
            asked.recv().unwrap();
            let _writing = lock.write("k/n/q");
            granted.store(true, Ordering::SeqCst);
        }
    });
    wait_until("it reads", || lock.snapshot().holders.len() == 3);
    // The reader waits for the writer of `k/n/r`, and the nested request waits behind the reader, which is not held
    // up by what the nested one reads.
    let reads = Other::waits(&lock, &["k/n"], &[]);
    asks.send(()).unwrap();
    wait_until_thread_waits(&lock, "nests");
    // Now the first request comes to `k/n`. It waits for what is read below, and the reader of all of `k/n` waits
    // behind it.
    drop(m);
    wait_until("the nested request waits for nobody now", || granted.load(Ordering::SeqCst));
    join(nests);
    drop(other);
    both.releases();
    reads.releases();
}
