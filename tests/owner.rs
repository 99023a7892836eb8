//! What a thread may ask for while it holds guards of its own, and how long each of them protects.
//!
//! An *owner*, as G1 and G2 use the word, is a thread with its plain guards, or a single `Arc` guard.
#![cfg(not(feature = "model"))]

mod common;

use common::{LIMIT, Other, admits, spawn};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use treelock::{LockError, TreeLock, TreeLockGuard};

/// G2: a sequence that would deadlock with most reader-writer locks.
#[test]
fn a_read_nested_in_a_read_does_not_wait_behind_a_waiting_writer() {
    let lock = common::new();
    let outer = lock.read("a");
    let writer = Other::waits(&lock, &[], &["a"]);
    let same = lock.read("a");
    let below = lock.read("a/b");
    let tried = lock.try_lock(&["a/c", "a"], &[]).unwrap();
    assert!(!admits(&lock, &["a/b"], &[]), "somebody else has to queue");
    drop((outer, same, below));
    assert!(!writer.is_granted());
    drop(tried);
    writer.releases();
}

/// G2: what the thread holds below is a part of what it asks for above; so it goes ahead there too.
#[test]
fn a_read_of_an_ancestor_passes_a_writer_that_waits_for_the_reader() {
    let lock = common::new();
    let below = lock.read("a/b");
    let writer = Other::waits(&lock, &[], &["a"]);
    let above = lock.read("a");
    drop(below);
    assert!(!writer.is_granted() && !admits(&lock, &["a/c"], &[]));
    drop(above);
    writer.releases();
}

/// G2.
#[test]
fn anything_nested_in_a_write_is_granted_past_the_queue() {
    let lock = common::new();
    let outer = lock.write("a");
    let queue =
        [Other::waits(&lock, &[], &["a"]), Other::waits(&lock, &["a/b"], &[]), Other::waits(&lock, &[""], &[])];
    let nested = [
        lock.write("a"),
        lock.read("a"),
        lock.write("a/b"),
        lock.lock(&["a/c"], &["a/d", "a/e/f"]),
        lock.try_lock(&["a"], &["a/b"]).unwrap(),
        lock.try_lock_for(&[], &["a/b/c"], LIMIT).unwrap(),
    ];
    drop(outer);
    assert!(queue.iter().all(|other| !other.is_granted()));
    drop(nested);
    queue.into_iter().for_each(Other::releases);
}

/// G3: the upgrade is the one exception to the order of coming.
#[test]
fn an_upgrade_waits_for_other_readers_alone_and_goes_ahead_of_the_queue() {
    let lock = common::new();
    let other_reader = Other::holds(&lock, &["a"], &[]);
    let upgrading = spawn("upgrading", {
        let lock = Arc::clone(&lock);
        move || {
            let _read = lock.read("a");
            let writer = Other::waits(&lock, &[], &["a"]);
            let reader = Other::waits(&lock, &["a/b"], &[]);
            let write = lock.write("a");
            assert!(!writer.is_granted() && !reader.is_granted());
            drop(write);
            (writer, reader)
        }
    });
    common::wait_until_thread_waits(&lock, "upgrading");
    assert!(!admits(&lock, &["a/c"], &[]), "newcomers wait behind the upgrade");
    other_reader.releases();
    let (writer, reader) = common::join(upgrading);
    writer.releases();
    reader.releases();
}

/// G1.
#[test]
fn an_upgrade_excludes_until_it_is_dropped_and_the_read_stays() {
    let lock = common::new();
    let read = lock.read("a");
    let write = lock.write("a/b");
    assert!(!admits(&lock, &["a/b"], &[]) && !admits(&lock, &["a"], &[]));
    assert!(admits(&lock, &["a/c"], &[]), "only a/b is written");
    drop(write);
    assert!(admits(&lock, &["a"], &[]) && !admits(&lock, &[], &["a/b"]), "a is read as before");
    drop(read);
    common::assert_free(&lock, "".as_ref());
}

/// G1: each of several nested guards protects what it asked for exactly as long as it lives, in every order of drops.
#[test]
fn each_guard_protects_what_it_asked_for_until_it_is_dropped_in_any_order() {
    type Ask = fn(&TreeLock) -> TreeLockGuard<'_>;
    // Each guard with what others may still do beside it: read a, write a/b, write a/c, read a/b/d.
    let asked: [(Ask, [bool; 4]); 5] = [
        (|lock| lock.write("a"), [false; 4]),
        (|lock| lock.read("a"), [true, false, false, true]),
        (|lock| lock.write("a/b"), [false, false, true, false]),
        (|lock| lock.read("a/b"), [true, false, true, true]),
        (|lock| lock.lock(&["a"], &["a/b/d"]), [false; 4]),
    ];
    let probes = |lock: &Arc<TreeLock>| {
        [
            admits(lock, &["a"], &[]),
            admits(lock, &[], &["a/b"]),
            admits(lock, &[], &["a/c"]),
            admits(lock, &["a/b/d"], &[]),
        ]
    };
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for choice in 0..asked.len().pow(3) {
        let chosen = [choice % 5, choice / 5 % 5, choice / 25];
        for order in orders {
            let lock = common::new();
            let mut guards = chosen.map(|which| Some(asked[which].0(&lock)));
            for last in 0..4 {
                let mut expected = [true; 4];
                for (_, which) in guards.iter().zip(chosen).filter(|(guard, _)| guard.is_some()) {
                    expected = std::array::from_fn(|probe| expected[probe] && asked[which].1[probe]);
                }
                assert_eq!(probes(&lock), expected, "{chosen:?} dropped in the order {order:?}, {last} so far");
                if let Some(&next) = order.get(last) {
                    guards[next] = None;
                }
            }
        }
    }
}

/// G1: a guard that is dropped while others wait lets in only those that no other guard of the thread excludes.
#[test]
fn dropping_the_outer_guard_first_lets_in_only_who_fits_beside_the_inner_one() {
    let lock = common::new();
    let outer = lock.write("a");
    let inner = lock.write("a/b");
    let beside = Other::waits(&lock, &[], &["a/c"]);
    let within = Other::waits(&lock, &["a/b/x"], &[]);
    drop(outer);
    beside.releases();
    assert!(!within.is_granted() && !admits(&lock, &["a/b/x"], &[]));
    drop(inner);
    within.releases();
}

/// G4: a thread alone is never refused, whatever it holds: its own guards are no reason to wait.
#[test]
fn a_thread_alone_is_granted_anything_at_any_time() {
    let lock = common::new();
    let paths = ["", "a", "a/b", "a/b/c", "a/d", "e"];
    let mut guards = Vec::new();
    let mut random = 1u64;
    let mut below = |limit: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % limit
    };
    for _ in 0..3000 {
        match (below(3), guards.len()) {
            (0, held @ 1..) => drop(guards.swap_remove(below(held))),
            (1, held @ 1..) => {
                let downgraded = guards.swap_remove(below(held));
                guards.push(TreeLockGuard::downgrade(downgraded));
            }
            _ => {
                let (read, write) = (paths[below(6)], paths[below(6)]);
                let guard = match below(3) {
                    0 => lock.try_lock(&[read], &[]),
                    1 => lock.try_lock(&[], &[write]),
                    _ => lock.try_lock(&[read], &[write]),
                };
                guards.push(guard.expect("nobody else is there"));
            }
        }
    }
    drop(guards);
    common::assert_free(&lock, "".as_ref());
}

/// G1: the owner is the thread, not its name and not its place in the source.
#[test]
fn guards_of_one_thread_do_not_help_another() {
    let lock = common::new();
    let own = Arc::clone(&lock);
    let read = |lock: Arc<TreeLock>| lock.try_lock(&["a"], &[]).is_ok();
    let _held = lock.write("a");
    assert!(read(Arc::clone(&lock)));
    let name = std::thread::current().name().unwrap().to_owned();
    assert!(!common::join(spawn(&name, move || read(own))));
}

/// G1: an `Arc` guard may leave its thread, so it is an owner of its own.
#[test]
fn an_arc_guard_excludes_every_other_guard_of_its_thread() {
    let lock = common::new();
    let held = lock.lock_arc(&["a"], &["b"]);
    let refused = |reads: common::Paths, writes: common::Paths| {
        let plain = matches!(lock.try_lock(reads, writes), Err(LockError::WouldBlock));
        let arc = matches!(lock.try_lock_arc(reads, writes), Err(LockError::WouldBlock));
        assert_eq!(plain, arc);
        plain
    };
    assert!(refused(&["b"], &[]) && refused(&[], &["b/c"]) && refused(&[], &["a"]));
    assert!(!refused(&["a"], &["c"]), "two that read are compatible as ever");
    drop(held);
    let _plain = lock.write("a");
    assert!(matches!(lock.try_lock_arc(&["a"], &[]), Err(LockError::WouldBlock)));
}

/// G3: nor does an `Arc` guard pass a queue.
#[test]
fn an_arc_read_beside_an_own_read_waits_behind_a_waiting_writer() {
    let lock = common::new();
    let (plain, arc) = (lock.read("a"), lock.read_arc("a"));
    let writer = Other::waits(&lock, &[], &["a"]);
    assert!(matches!(lock.try_lock_arc(&["a"], &[]), Err(LockError::WouldBlock)));
    drop(plain);
    assert!(matches!(lock.try_lock(&["a"], &[]), Err(LockError::WouldBlock)), "an Arc guard is not this thread's");
    drop(arc);
    writer.releases();
}

/// G3: what a thread held once gives it no right afterwards.
#[test]
fn a_thread_that_has_dropped_its_guards_queues_like_others() {
    let lock = common::new();
    let other = Other::holds(&lock, &["a"], &[]);
    let own = lock.read("a");
    let writer = Other::waits(&lock, &[], &["a"]);
    assert!(lock.try_lock(&["a"], &[]).is_ok());
    drop(own);
    assert!(lock.try_lock(&["a"], &[]).is_err());
    other.releases();
    writer.releases();
}

/// G1: a downgraded guard is weaker, also with respect to what its own thread may ask for.
#[test]
fn a_write_after_a_downgrade_is_an_upgrade() {
    let lock = common::new();
    let own = lock.write("a").downgrade();
    let reader = Other::holds(&lock, &["a"], &[]);
    assert!(matches!(lock.try_lock(&[], &["a"]), Err(LockError::WouldBlock)), "the other one reads");
    reader.releases();
    let again = lock.write("a");
    assert!(!admits(&lock, &["a"], &[]));
    drop(again);
    assert!(admits(&lock, &["a"], &[]));
    drop(own);
}

/// G1: the write of an inner guard outlives the downgrade of the outer one.
#[test]
fn downgrading_one_guard_leaves_the_others_as_they_are() {
    let lock = common::new();
    let outer = lock.write("a");
    let inner = lock.write("a/b");
    let outer = outer.downgrade();
    assert!(!admits(&lock, &["a/b"], &[]) && admits(&lock, &["a/c"], &[]) && !admits(&lock, &[], &["a/c"]));
    drop(inner);
    assert!(admits(&lock, &["a/b"], &[]));
    drop(outer);
    common::assert_free(&lock, "".as_ref());
}

/// G1: a thread's ownership is per lock.
#[test]
fn two_locks_know_nothing_of_each_other() {
    let (one, other) = (common::new(), common::new());
    let _held = one.write("a");
    assert!(admits(&other, &[], &["a"]) && !admits(&one, &[], &["a"]));
}

/// G1, G2: while a thread's locals are destroyed, in whatever order, it is still the owner of what it holds.
#[test]
fn a_thread_is_the_same_owner_in_its_last_destructors() {
    use std::cell::OnceCell;
    use std::sync::LazyLock;
    static LOCK: LazyLock<TreeLock> = LazyLock::new(TreeLock::new);
    static UPGRADED: AtomicUsize = AtomicUsize::new(0);
    struct Cache(OnceCell<TreeLockGuard<'static>>);
    impl Drop for Cache {
        fn drop(&mut self) {
            let _all = LOCK.read("cache");
            let upgraded = LOCK.try_lock_for(&[], &["cache/mine", "kept/inner"], LIMIT);
            UPGRADED.fetch_add(upgraded.is_ok().into(), Ordering::SeqCst);
        }
    }
    thread_local! {
        static BEFORE: Cache = const { Cache(OnceCell::new()) };
        static AFTER: Cache = const { Cache(OnceCell::new()) };
    }
    common::join(spawn("ends", || {
        BEFORE.with(|cache| cache.0.set(LOCK.write("kept")).unwrap());
        AFTER.with(|cache| cache.0.set(LOCK.read("other")).unwrap());
    }));
    assert_eq!(UPGRADED.load(Ordering::SeqCst), 2);
    assert!(LOCK.snapshot().holders.is_empty());
}
