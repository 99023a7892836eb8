//! The contract, as a user of any engine sees it: one list of tests, run by every engine.
//!
//! An engine is one more [`Place`], and one more line of [`of_each_engine`]. Clients of one process are as good as those of several
//! machines here: each has its own session, its own replica and its own threads. Their time to live is long ([`LONG`]), so that what
//! works only because a session is renewed now and then, such as a lost wake-up, is seen as a wait that takes too long.

use super::server::Server;
use crate::common::wait_until;
#[cfg(feature = "postgres")]
use crate::database::Database;
use std::ops::Deref;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use treelock::machine::{EngineError, MachineLockError, MachineTreeLock, Options};
#[cfg(feature = "postgres")]
use treelock::postgres::PostgresTreeLock;
use treelock::redis::RedisTreeLock;
use treelock::{Snapshot, TreePath};

/// The time to live of the clients.
const LONG: Duration = Duration::from_secs(60);

/// What takes as long as this was not woken: a session of [`LONG`] is renewed after 20 s.
const SOON: Duration = Duration::from_secs(8);

/// A namespace of an engine, of a test's own, that takes requests.
pub(crate) trait Place: Sized + Sync {
    type Lock<P: ?Sized + TreePath + 'static>: Deref<Target = MachineTreeLock<P>> + Send + Sync;

    /// One that nobody has begun; `None` where this machine lacks what it needs.
    fn start() -> Option<Self>;

    /// One more client, whose paths are of this kind.
    fn try_open_as<P: ?Sized + TreePath + 'static>(&self, options: Options) -> Result<Self::Lock<P>, EngineError>;

    /// What an agent opens.
    fn url(&self) -> String;

    /// And what is in its environment.
    fn environment(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// What one sees that has no client.
    fn look(&self) -> Option<Snapshot>;

    fn begin() -> Option<Self> {
        let place = Self::start()?;
        place.open_quickly();
        Some(place)
    }

    /// Begins the namespace, which is closed for the time to live of the first client; the next client says another one.
    fn open_quickly(&self) {
        drop(self.open_with(Options::new().time_to_live(Duration::from_millis(50))).write("a").unwrap());
    }

    fn open_as<P: ?Sized + TreePath + 'static>(&self, options: Options) -> Self::Lock<P> {
        self.try_open_as(options).unwrap()
    }

    fn open_with(&self, options: Options) -> Self::Lock<str> {
        self.open_as(options)
    }

    /// Whether it serves clients that ask without a pause; if not, it says so.
    fn serves_a_stream(&self) -> bool {
        true
    }

    fn open(&self) -> Self::Lock<str> {
        self.open_with(Options::new().time_to_live(LONG))
    }
}

impl Place for Server {
    type Lock<P: ?Sized + TreePath + 'static> = RedisTreeLock<P>;

    fn start() -> Option<Self> {
        Server::start()
    }

    fn try_open_as<P: ?Sized + TreePath + 'static>(&self, options: Options) -> Result<RedisTreeLock<P>, EngineError> {
        RedisTreeLock::connect(&self.url(), "test", options)
    }

    fn url(&self) -> String {
        Server::url(self)
    }

    fn look(&self) -> Option<Snapshot> {
        treelock::redis::look(&self.url(), "test").unwrap()
    }
}

#[cfg(feature = "postgres")]
impl Place for Database {
    type Lock<P: ?Sized + TreePath + 'static> = PostgresTreeLock<P>;

    fn start() -> Option<Self> {
        Database::start()
    }

    fn try_open_as<P: ?Sized + TreePath + 'static>(
        &self,
        options: Options,
    ) -> Result<PostgresTreeLock<P>, EngineError> {
        PostgresTreeLock::connect(&self.url(), "test", options)
    }

    fn url(&self) -> String {
        Database::url(self)
    }

    fn look(&self) -> Option<Snapshot> {
        treelock::postgres::look(&self.url(), "test").unwrap()
    }
}

/// Makes a module of tests for each engine, and for what is named besides. A new engine is one more line here.
macro_rules! of_each_engine {
    ([$($test:ident,)*] and $(#[$feature:meta] $engine:ident: $place:ty,)*) => {
        of_each_engine! { [$($test,)*] }
        of_each_engine! { @@ [$($test,)*] $(#[$feature] $engine: $place,)* }
    };
    (@@ $tests:tt $(#[$feature:meta] $engine:ident: $place:ty,)*) => {
        $(#[$feature]
        of_each_engine!(@ $engine, $place, $tests);)*
    };
    ([$($test:ident,)*]) => {
        of_each_engine!(@ redis, $crate::server::Server, [$($test,)*]);
        #[cfg(feature = "postgres")]
        of_each_engine!(@ postgres, $crate::database::Database, [$($test,)*]);
        #[cfg(feature = "dynamodb")]
        of_each_engine!(@ dynamodb, $crate::dynamodb_local::Table, [$($test,)*]);
        #[cfg(feature = "memcached")]
        of_each_engine!(@ memcached, $crate::cache::Memcached, [$($test,)*]);
        #[cfg(feature = "object-store")]
        of_each_engine!(@ bucket, $crate::bucket::Directory, [$($test,)*]);
    };
    (@ $engine:ident, $place:ty, [$($test:ident,)*]) => {
        mod $engine {
            $(#[test]
            fn $test() {
                let Some(place) = <$place as $crate::conformance::Place>::begin() else { return };
                super::$test(&place);
            })*
        }
    };
}

pub(crate) use of_each_engine;

of_each_engine! {
    [
        overlapping_sub_trees_exclude_clients_and_others_do_not,
        nested_read_goes_past_a_waiting_writer_of_another_client,
        upgrade_waits_for_readers_of_other_clients_and_passes_writers,
        twelve_writers_below_a_written_node_are_served_in_the_order_in_which_they_began_to_wait,
        writer_gets_in_against_a_stream_of_readers,
        try_is_refused_by_holders_and_waiters_only,
        refusals_leave_nothing_behind,
        deadlines_are_kept_while_others_hold,
        timed_out_writer_lets_readers_behind_it_in,
        writer_that_times_out_beside_another_waiter_of_its_client_lets_readers_in,
        deadlock_of_two_clients_is_reported_to_one_of_them,
        deadlock_of_two_upgrades_is_reported_again_and_again,
        wait_for_an_arc_guard_of_a_thread_that_waits_is_no_deadlock,
        arc_guard_outlives_its_lock_and_excludes_its_own_thread,
        downgrade_lets_readers_of_other_clients_in,
        guards_of_one_thread_are_released_in_any_order,
        release_of_a_good_guard_says_so,
        released_guard_is_never_told_that_it_is_lost,
        fence_rises_with_each_conflicting_grant,
        guard_tells_its_roots_their_modes_and_its_fence,
        snapshot_shows_holders_and_waiters_of_all_clients,
        look_shows_what_a_snapshot_shows_and_begins_nothing,
        time_to_live_is_that_of_the_namespace_and_another_is_refused,
        relative_and_absolute_paths_do_not_mix_and_a_stray_one_is_forgotten,
        paths_that_are_not_utf_8_exclude_themselves_only,
        empty_path_is_the_root_beside_relative_and_absolute_paths,
        refused_paths_leave_nothing_behind,
        one_path_is_tried_without_a_list,
        stamp_is_valid_until_a_write_that_overlaps_is_granted,
        stamp_that_is_made_while_a_write_is_held_is_never_valid,
        what_is_read_with_a_valid_stamp_goes_together,
        panic_releases_what_was_held,
        dropped_client_frees_what_it_forgot,
        late_comer_sees_what_is_held_and_who_waits,
        client_that_was_idle_for_three_thousand_batches_is_right,
        threads_of_two_clients_count_exactly,
        hand_overs_lose_no_wake,
    ]
    and
    #[cfg(feature = "object-store")]
    bucket_in_memory: crate::bucket::Memory,
    #[cfg(feature = "object-store-s3")]
    bucket_in_s3: crate::s3::S3,
}

pub(crate) type Guard<'a> = treelock::machine::MachineGuard<'a>;
type Roots<'a> = (Vec<&'a str>, Vec<&'a str>);

/// `r:a w:b/c` as reads and writes.
fn roots(words: &str) -> Roots<'_> {
    let of = |mark: &str| words.split(' ').filter_map(|word| word.strip_prefix(mark)).collect();
    (of("r:"), of("w:"))
}

/// Locks; fails if that takes longer than anything should.
#[track_caller]
pub(crate) fn lock<'a>(lock: &'a MachineTreeLock, words: &str) -> Guard<'a> {
    let (reads, writes) = roots(words);
    lock.try_lock_for(&reads, &writes, LONG).unwrap()
}

/// Whether an owner of its own is granted this at once.
#[track_caller]
pub(crate) fn admits(lock: &MachineTreeLock, words: &str) -> bool {
    let (reads, writes) = roots(words);
    match lock.try_lock_arc(&reads, &writes) {
        Ok(_) => true,
        Err(MachineLockError::WouldBlock) => false,
        Err(error) => panic!("{error}"),
    }
}

/// Waits until so many requests wait.
#[track_caller]
pub(crate) fn wait_for_waiters(lock: &MachineTreeLock, waiters: usize) {
    wait_until("they wait", || lock.snapshot().unwrap().waiters.len() == waiters);
}

#[track_caller]
pub(crate) fn is_free(lock: &MachineTreeLock) {
    let snapshot = lock.snapshot().unwrap();
    assert_eq!((snapshot.holders.len(), snapshot.waiters.len()), (0, 0), "{snapshot}");
}

/// What one client holds, what another asks for, and whether it is granted.
const PAIRS: [(&str, &str, bool); 16] = [
    ("r:a", "r:a", true),
    ("r:a", "w:a", false),
    ("w:a", "r:a", false),
    ("w:a", "w:a", false),
    ("w:a", "w:b", true),
    ("w:a/b", "w:a/c", true),
    ("w:a/b", "r:a", false),
    ("w:a/b", "w:a/b/c", false),
    ("r:a/b", "w:a", false),
    ("r:a/b", "r:a/b/c", true),
    ("w:a/b", "r:", false),
    ("r:", "r:a/b", true),
    ("r:", "w:a/b", false),
    // A read with a write below: a lock that keeps only one of the two modes would admit the reader.
    ("r:a w:a/b", "r:a", false),
    ("r:a w:a/b", "r:a/c", true),
    ("w:a//b//", "w:a/b", false),
];

/// G1, G4.
fn overlapping_sub_trees_exclude_clients_and_others_do_not(place: &impl Place) {
    let (one, other) = (place.open(), place.open());
    for (held, asked, granted) in PAIRS {
        for (first, second) in [(held, asked), (asked, held)] {
            let guard = lock(&one, first);
            assert_eq!(admits(&other, second), granted, "{second} beside {first}");
            assert_eq!(admits(&one, second), granted, "{second} beside {first}, of the same client");
            drop(guard);
            assert!(admits(&other, second), "{second} after {first}");
        }
    }
    is_free(&one);
}

/// G4: a thread's own guards never block it, even if a writer of another client waits.
fn nested_read_goes_past_a_waiting_writer_of_another_client(place: &impl Place) {
    let (one, other) = (place.open(), place.open());
    let outer = lock(&one, "r:a");
    thread::scope(|scope| {
        let writer = scope.spawn(|| lock(&other, "w:a").fence());
        wait_for_waiters(&one, 1);
        let inner = one.try_read("a/b").unwrap();
        assert!(!admits(&one, "r:a/b"), "another owner");
        drop(outer);
        assert!(!admits(&one, "w:a/b") && !writer.is_finished(), "the inner guard protects a/b");
        let fence = inner.fence();
        drop(inner);
        assert!(writer.join().unwrap() > fence);
    });
}

/// An upgrade goes ahead of the queue, and waits for readers only.
fn upgrade_waits_for_readers_of_other_clients_and_passes_writers(place: &impl Place) {
    let (one, two, three) = (place.open(), place.open(), place.open());
    let reader = lock(&one, "r:a");
    let served = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let read = lock(&two, "r:a");
            wait_for_waiters(&two, 1);
            let upgrade = lock(&two, "w:a");
            assert_eq!(served.fetch_add(1, Ordering::SeqCst), 0);
            drop(upgrade);
            assert!(!admits(&one, "w:a"), "the read is still held");
            drop(read);
        });
        wait_until("it reads", || one.snapshot().unwrap().holders.len() == 2);
        scope.spawn(|| {
            let _write = lock(&three, "w:a");
            assert_eq!(served.fetch_add(1, Ordering::SeqCst), 1);
        });
        wait_for_waiters(&one, 2);
        drop(reader);
    });
    is_free(&one);
}

/// G3: all waiters are let on at `q` at one moment, and keep their order below it.
fn twelve_writers_below_a_written_node_are_served_in_the_order_in_which_they_began_to_wait(place: &impl Place) {
    let clients = [place.open(), place.open(), place.open()];
    let held = lock(&clients[0], "w:q");
    let (served, fences) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for number in 0..12 {
            let client = &clients[number % 3];
            let (served, fences) = (&served, &fences);
            scope.spawn(move || {
                let write = lock(client, "w:q/x");
                assert_eq!(served.fetch_add(1, Ordering::SeqCst), number as u64);
                assert!(fences.swap(write.fence(), Ordering::SeqCst) < write.fence());
            });
            wait_for_waiters(&clients[0], number + 1);
        }
        drop(held);
    });
    assert_eq!(served.into_inner(), 12);
}

/// G3: readers of two clients that overlap all the time.
fn writer_gets_in_against_a_stream_of_readers(place: &impl Place) {
    if !place.serves_a_stream() {
        return;
    }
    let (writes, readers) = (place.open(), [place.open(), place.open()]);
    let (ends, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for number in 0..6 {
            let (reader, ends, reads) = (&readers[number % 2], &ends, &reads);
            scope.spawn(move || {
                while !ends.load(Ordering::Relaxed) {
                    let _read = lock(reader, "r:a");
                    let seen = reads.fetch_add(1, Ordering::Relaxed);
                    // Until another one has come, so that they overlap.
                    let start = Instant::now();
                    while reads.load(Ordering::Relaxed) == seen + 1 && start.elapsed() < Duration::from_millis(3) {
                        thread::yield_now();
                    }
                }
            });
        }
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            let asked = Instant::now();
            let granted = writes.try_write_for("a", SOON);
            longest = longest.max(asked.elapsed());
            if granted.is_err() {
                ends.store(true, Ordering::Relaxed);
            }
            drop(granted.unwrap());
        }
        ends.store(true, Ordering::Relaxed);
        eprintln!("the longest of 20 writes against 6 readers took {longest:?}");
    });
}

/// G4.
fn try_is_refused_by_holders_and_waiters_only(place: &impl Place) {
    let (one, other) = (place.open(), place.open());
    let read = lock(&one, "r:a/b");
    thread::scope(|scope| {
        let writer = scope.spawn(|| drop(lock(&one, "w:a/b")));
        wait_for_waiters(&one, 1);
        for _ in 0..100 {
            assert!(admits(&other, "w:a/c r:d"), "nobody has that");
        }
        assert!(!admits(&other, "r:a/b"), "it would pass the writer");
        drop(read);
        writer.join().unwrap();
    });
    assert!(admits(&other, "w:"));
}

/// G7: not even of the free parts of a request.
fn refusals_leave_nothing_behind(place: &impl Place) {
    let (one, other) = (place.open(), place.open());
    let _held = lock(&one, "w:z/z");
    for _ in 0..20 {
        assert!(!admits(&other, "w:a r:b w:z/z/z"));
        let refused = other.try_lock_for(&["b"], &["a", "z/z/z"], Duration::from_millis(2)).map(drop);
        assert!(matches!(refused, Err(MachineLockError::TimedOut)), "{refused:?}");
    }
    // The other client withdraws what timed out after it has said so.
    wait_until("it is withdrawn", || admits(&one, "w:a w:b w:z/y"));
    let snapshot = one.snapshot().unwrap();
    assert_eq!((snapshot.holders.len(), snapshot.waiters.len()), (1, 0), "{snapshot}");
}

/// G10: a refusal is never early.
fn deadlines_are_kept_while_others_hold(place: &impl Place) {
    let (one, other) = (place.open(), place.open());
    let _held = lock(&one, "r:a");
    let mut late = Vec::new();
    for asked in [0, 1, 5, 20, 50, 100, 150, 250].map(Duration::from_millis) {
        for is_until in [false, true] {
            let start = Instant::now();
            let refused = match is_until {
                true => other.try_lock_until(&[], &["a"], start + asked).map(drop),
                false => other.try_write_for("a", asked).map(drop),
            };
            let took = start.elapsed();
            assert!(matches!(refused, Err(MachineLockError::TimedOut)), "{refused:?}");
            assert!(took >= asked, "asked for {asked:?}, took {took:?}");
            late.push(took - asked);
        }
    }
    late.sort();
    eprintln!("deadlines: late by {late:?}");
    assert!(late[8] < Duration::from_millis(200), "{late:?}");
}

/// G7: a request that waited behind one that timed out is let in.
fn timed_out_writer_lets_readers_behind_it_in(place: &impl Place) {
    let (one, two, three) = (place.open(), place.open(), place.open());
    let _held = lock(&one, "r:a");
    thread::scope(|scope| {
        let writer = scope.spawn(|| two.try_write_for("a", Duration::from_millis(500)).map(drop));
        wait_for_waiters(&one, 1);
        let reader = scope.spawn(|| lock(&three, "r:a").is_valid());
        let refused = writer.join().unwrap();
        let start = Instant::now();
        assert!(matches!(refused, Err(MachineLockError::TimedOut)), "{refused:?}");
        assert!(reader.join().unwrap());
        let took = start.elapsed();
        eprintln!("let in {took:?} after the writer gave up");
        assert!(took < SOON, "{took:?}");
    });
}

/// G7: the same while the client of the writer goes on listening for others.
fn writer_that_times_out_beside_another_waiter_of_its_client_lets_readers_in(place: &impl Place) {
    let (one, two, three) = (place.open(), place.open(), place.open());
    let held = lock(&one, "r:a w:b");
    thread::scope(|scope| {
        let waits_on = scope.spawn(|| drop(lock(&two, "w:b")));
        wait_for_waiters(&one, 1);
        let writer = scope.spawn(|| two.try_write_for("a", Duration::from_millis(500)).map(drop));
        wait_for_waiters(&one, 2);
        let reader = scope.spawn(|| three.try_read_for("a", SOON).is_ok());
        let refused = writer.join().unwrap();
        let is_let_in = reader.join().unwrap();
        drop(held);
        waits_on.join().unwrap();
        assert!(matches!(refused, Err(MachineLockError::TimedOut)), "{refused:?}");
        assert!(is_let_in);
    });
}

/// Two threads that lock what the other one holds; returns the reports.
fn reports(clients: [&MachineTreeLock; 2], firsts: [&str; 2], seconds: [&str; 2]) -> Vec<String> {
    let both_hold = Barrier::new(2);
    let meet = |number: usize| {
        let first = lock(clients[number], firsts[number]);
        both_hold.wait();
        let (reads, writes) = roots(seconds[number]);
        let second = clients[number].try_lock_for(&reads, &writes, SOON);
        let report = second.as_ref().err().map(|error| {
            assert!(matches!(error, MachineLockError::Deadlock(_)), "{error}");
            error.to_string()
        });
        drop(second);
        drop(first);
        report
    };
    thread::scope(|scope| {
        let parties = [0, 1].map(|number| scope.spawn(move || meet(number)));
        parties.into_iter().filter_map(|party| party.join().unwrap()).collect()
    })
}

/// G2: the other one goes on.
fn deadlock_of_two_clients_is_reported_to_one_of_them(place: &impl Place) {
    let (one, other) = (place.open(), place.open());
    let told = reports([&one, &other], ["w:a", "w:b"], ["r:b/x", "w:a"]);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("deadlock of 2 threads") && told[0].contains("conformance.rs"), "{}", told[0]);
    is_free(&one);
}

/// G2: the one that gives up leaves nothing, and the two may meet again.
fn deadlock_of_two_upgrades_is_reported_again_and_again(place: &impl Place) {
    let (one, other) = (place.open(), place.open());
    for _ in 0..3 {
        let told = reports([&one, &other], ["r:a", "r:a"], ["w:a", "w:a"]);
        assert_eq!(told.len(), 1, "{told:?}");
        is_free(&one);
    }
}

/// G2: an `Arc` guard may be dropped by anybody, so a wait for it is no part of a deadlock.
fn wait_for_an_arc_guard_of_a_thread_that_waits_is_no_deadlock(place: &impl Place) {
    let (one, other) = (place.open(), place.open());
    let write = lock(&one, "w:y");
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let arc = other.write_arc("x").unwrap();
            drop(lock(&other, "w:y"));
            drop(arc);
        });
        wait_for_waiters(&one, 1);
        let refused = one.try_read_for("x", Duration::from_millis(500)).map(drop);
        assert!(matches!(refused, Err(MachineLockError::TimedOut)), "{refused:?}");
        drop(write);
        waits.join().unwrap();
    });
}

/// An `Arc` guard is an owner of its own, may go to other threads, and keeps the session.
fn arc_guard_outlives_its_lock_and_excludes_its_own_thread(place: &impl Place) {
    let (one, other) = (place.open(), place.open());
    let guard = one.write_arc("a").unwrap();
    assert!(matches!(one.try_read("a"), Err(MachineLockError::WouldBlock)));
    drop(one);
    assert!(!admits(&other, "r:a") && guard.is_valid());
    thread::spawn(move || guard.release().unwrap()).join().unwrap();
    assert!(admits(&other, "w:"));
}

/// The holder reads on; readers get in, also those that waited, and writers do not.
fn downgrade_lets_readers_of_other_clients_in(place: &impl Place) {
    let (one, other) = (place.open(), place.open());
    let (reads, writes) = roots("r:a r:c w:a/b w:d");
    let mut guard = one.lock_arc(&reads, &writes).unwrap();
    let fence = guard.fence();
    thread::scope(|scope| {
        let reader = scope.spawn(|| lock(&other, "r:a/b/x r:d").fence());
        wait_for_waiters(&one, 1);
        guard.downgrade().unwrap();
        assert!(reader.join().unwrap() > fence);
    });
    wait_until("it tells that a/b lies in a", || guard.to_string() == "S a, S c, S d");
    assert_eq!(guard.fence(), fence);
    assert!(!admits(&other, "w:a/b") && !admits(&other, "w:c") && admits(&other, "r:d"));
    guard.release().unwrap();
    assert!(admits(&other, "w:a w:c w:d"));
}

/// Each guard protects what it asked for until it is released.
fn guards_of_one_thread_are_released_in_any_order(place: &impl Place) {
    let (one, other) = (place.open(), place.open());
    let (write, read) = (lock(&one, "w:a"), lock(&one, "r:a/b"));
    write.release().unwrap();
    assert!(!admits(&other, "w:a/b") && admits(&other, "r:a"));
    let write = lock(&one, "w:a/b");
    read.release().unwrap();
    assert!(!admits(&other, "r:a/b"));
    write.release().unwrap();
    assert!(admits(&other, "w:"));
}

/// M2.
fn release_of_a_good_guard_says_so(place: &impl Place) {
    let one = place.open();
    for _ in 0..20 {
        let guard = one.write("a").unwrap();
        assert!(guard.is_valid() && guard.valid_until() > Instant::now() + LONG / 2);
        guard.release().unwrap();
        one.read_arc("a").unwrap().release().unwrap();
    }
    is_free(&one);
}

fn released_guard_is_never_told_that_it_is_lost(place: &impl Place) {
    struct Dropped<'a>(&'a AtomicBool);
    impl Drop for Dropped<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    static TOLD: AtomicBool = AtomicBool::new(false);
    static DROPPED: AtomicBool = AtomicBool::new(false);
    let one = place.open();
    let guard = one.write("a").unwrap();
    let dropped = Dropped(&DROPPED);
    guard.on_lost(move || {
        TOLD.store(true, Ordering::SeqCst);
        drop(dropped);
    });
    guard.release().unwrap();
    assert!(DROPPED.load(Ordering::SeqCst), "what the callback has is kept after the guard");
    drop(one);
    assert!(!TOLD.load(Ordering::SeqCst));
}

/// M3.
fn fence_rises_with_each_conflicting_grant(place: &impl Place) {
    let clients = [place.open(), place.open()];
    let mut highest = 0;
    for round in 0..40 {
        let guard = lock(&clients[round % 2], ["w:a", "r:a/b w:c", "w:a/b", "r:a w:"][round % 4]);
        assert!(guard.fence() > highest, "{} after {highest}", guard.fence());
        highest = guard.fence();
    }
}

/// Or that the lock is busy: other threads of it use it now and then.
fn guard_tells_its_roots_their_modes_and_its_fence(place: &impl Place) {
    let one = place.open();
    let mut plain = lock(&one, "r:a r:b/c w:a/b");
    let fence = plain.fence();
    wait_until("it tells its roots", || plain.to_string() == "SIX a, S b/c, X a/b");
    let told = format!("MachineGuard {{ roots: [SIX a, S b/c, X a/b], fence: {fence}, .. }}");
    wait_until("it tells its fence", || format!("{plain:?}") == told);
    plain.downgrade().unwrap();
    wait_until("it tells other modes", || plain.to_string() == "S a, S b/c");
    let arc = one.write_arc("x").unwrap();
    wait_until("an Arc guard tells", || format!("{arc} {arc:?}").starts_with("X x ArcMachineGuard { roots: [X x], "));
}

/// P5: and by which client.
fn snapshot_shows_holders_and_waiters_of_all_clients(place: &impl Place) {
    let named = |name| place.open_as::<str>(Options::new().time_to_live(LONG).location(name));
    let (one, other, looks) = (named("nightly job"), place.open(), place.open());
    let held = lock(&one, "r:logs w:data/users");
    thread::scope(|scope| {
        let waiter = scope.spawn(|| drop(lock(&other, "w:a r:data/users/7")));
        wait_for_waiters(&looks, 1);
        for snapshot in [&one, &other, &looks].map(|lock| lock.snapshot().unwrap()) {
            let (holder, waiter) = (&snapshot.holders[0], &snapshot.waiters[0]);
            let of = [&holder.process, &waiter.process].map(|process| process.as_ref().unwrap());
            assert!(of.iter().all(|process| process.id == std::process::id()), "{snapshot}");
            assert!(of.iter().all(|process| process.user.contains('@')), "{snapshot}");
            assert_ne!(of[0].member, of[1].member);
            assert_eq!(holder.location, "nightly job");
            assert!(waiter.location.contains("conformance.rs"), "{snapshot}");
            assert_eq!(
                (waiter.at.segments.join("/"), waiter.taken[0].to_string()),
                ("data/users".into(), "X a".into())
            );
            assert!(snapshot.age_of_holder() < LONG, "{snapshot}");
        }
        drop(held);
        waiter.join().unwrap();
    });
    is_free(&looks);
}

/// One that looks has no session: it neither begins an order nor ends one.
fn look_shows_what_a_snapshot_shows_and_begins_nothing(place: &impl Place) {
    let one = place.open();
    let _held: Vec<_> = (0..20).map(|name| one.write_arc(format!("held/{name}")).unwrap()).collect();
    let told = |snapshot: Snapshot| {
        let roots = |holder: &treelock::Holder| format!("{:?}", holder.roots);
        (snapshot.holders.iter().map(roots).collect::<Vec<_>>(), snapshot.waiters.len())
    };
    let seen = told(place.look().unwrap());
    assert_eq!(seen.0.len(), 20);
    assert_eq!(seen, told(one.snapshot().unwrap()));
}

/// A client that says nothing takes what there is. When there is no client, the next one says it anew.
fn time_to_live_is_that_of_the_namespace_and_another_is_refused(place: &impl Place) {
    let said = |time_to_live| place.try_open_as::<str>(Options::new().time_to_live(time_to_live));
    let rest = |guard: Guard| guard.valid_until().saturating_duration_since(Instant::now());
    let one = said(LONG).unwrap();
    match said(2 * LONG) {
        Err(EngineError::Refused(why)) => {
            assert!(why.to_string().contains("time to live of 60s, and this client says 120s"), "{why}");
        }
        other => panic!("{:?}", other.map(drop)),
    }
    let silent = place.try_open_as::<str>(Options::new()).unwrap();
    assert!(rest(silent.write("a").unwrap()) > LONG / 2, "it has that of the namespace");
    drop((one, silent));
    let other = said(2 * LONG).unwrap();
    assert!(rest(other.write("a").unwrap()) > LONG, "it has its own");
}

trait Age {
    fn age_of_holder(&self) -> Duration;
}

impl Age for treelock::Snapshot {
    fn age_of_holder(&self) -> Duration {
        self.time.duration_since(self.holders[0].since).unwrap_or_default()
    }
}

/// Two names of one place would silently not conflict. Requests that are gone do not set the kind.
fn relative_and_absolute_paths_do_not_mix_and_a_stray_one_is_forgotten(place: &impl Place) {
    let open = || place.open_as::<Path>(Options::new().time_to_live(LONG));
    let (one, other) = (open(), open());
    for (first, then) in [("a", "/a"), ("/a", "a"), ("a/b", "/c")] {
        let held = one.read(first).unwrap();
        let refused = [other.write(then).map(drop), other.try_write(then).map(drop), one.read(then).map(drop)];
        for refused in refused {
            assert!(matches!(refused, Err(MachineLockError::Path(_))), "{then} beside {first}: {refused:?}");
        }
        assert!(matches!(other.lock(&[first], &[then]), Err(MachineLockError::Path(_))));
        held.release().unwrap();
        let held = other.write(then).unwrap();
        assert!(matches!(one.try_read(first), Err(MachineLockError::Path(_))));
        held.release().unwrap();
    }
    let stray = one.read("/a").unwrap();
    std::mem::forget(stray);
    assert!(matches!(other.try_write("a"), Err(MachineLockError::Path(_))));
    drop(one);
    let held = other.try_write("a/./b/../c").unwrap();
    // A str is absolute, and the error says what other clients do.
    let names = place.open();
    let told = |refused: Result<(), MachineLockError>| refused.unwrap_err().to_string();
    let error = told(names.try_write("c").map(drop));
    assert!(
        error.contains("\"c\": it is absolute, and clients of the namespace hold or await paths that are relative"),
        "{error}"
    );
    drop(held);
    let _held = names.write("a/b").unwrap();
    let error = told(other.try_write("a").map(drop));
    assert!(error.contains("it is relative, and") && error.contains("give str in all of them"), "{error}");
    assert!(matches!(other.try_read("/a"), Err(MachineLockError::WouldBlock)));
}

/// The lock goes by bytes; what it prints is escaped.
fn paths_that_are_not_utf_8_exclude_themselves_only(place: &impl Place) {
    use std::os::unix::ffi::OsStrExt;
    let open = || place.open_as::<Path>(Options::new().time_to_live(LONG));
    let path = |bytes: &'static [u8]| Path::new(std::ffi::OsStr::from_bytes(bytes));
    let (one, other) = (open(), open());
    let _held = one.write(path(b"a/\xff")).unwrap();
    assert!(matches!(other.try_read(path(b"a/\xff/x")), Err(MachineLockError::WouldBlock)));
    drop(other.try_write(path(b"a/\xfe")).unwrap());
    assert_eq!(other.snapshot().unwrap().holders[0].roots[0].segments, ["a", "\\xFF"]);
}

/// G1: the empty path is everything, whatever the other paths are relative to.
fn empty_path_is_the_root_beside_relative_and_absolute_paths(place: &impl Place) {
    let open = || place.open_as::<Path>(Options::new().time_to_live(LONG));
    let (one, other) = (open(), open());
    for kind in ["a", "/a"] {
        let held = one.write(kind).unwrap();
        assert!(matches!(other.try_read(""), Err(MachineLockError::WouldBlock)), "{kind}");
        drop(one.try_lock(&[""], &[kind, ""]).unwrap());
        drop(held);
        let held = other.read("").unwrap();
        assert!(matches!(one.try_write(kind), Err(MachineLockError::WouldBlock)), "{kind}");
        drop(one.try_read(kind).unwrap());
        drop(held);
    }
}

/// G7.
fn refused_paths_leave_nothing_behind(place: &impl Place) {
    let one = place.open_as::<Path>(Options::new().time_to_live(LONG));
    for path in ["../a", "a/../.."] {
        let refused = one.lock(&["b"], &[path]).map(drop);
        assert!(matches!(refused, Err(MachineLockError::Path(_))), "{refused:?}");
        assert!(std::io::Error::from(refused.unwrap_err()).kind() == std::io::ErrorKind::InvalidInput);
    }
    let snapshot = one.snapshot().unwrap();
    assert!(snapshot.holders.is_empty() && snapshot.waiters.is_empty(), "{snapshot}");
    drop(one.try_write("b").unwrap());
}

/// A method for one path refuses as that for a list of one path does, in either form.
fn one_path_is_tried_without_a_list(place: &impl Place) {
    let one = place.open();
    let _held = one.lock_arc(&["r"], &["w"]).unwrap();
    let soon = Duration::from_millis(20);
    fn told<G>(answer: Result<G, MachineLockError>) -> String {
        answer.err().map_or("granted".into(), |error| format!("{error:?}"))
    }
    for (path, read, write) in [("r/x", true, false), ("w/x", false, false)] {
        let expected = |granted, error: &str| if granted { "granted".into() } else { error.to_owned() };
        let (reads, writes) = (expected(read, "WouldBlock"), expected(write, "WouldBlock"));
        assert_eq!([told(one.try_read(path)), told(one.try_read_arc(path))], [&*reads; 2], "{path}");
        assert_eq!([told(one.try_write(path)), told(one.try_write_arc(path))], [&*writes; 2], "{path}");
        let writes = expected(write, "TimedOut");
        assert_eq!([told(one.try_write_for(path, soon)), told(one.try_write_arc_for(path, soon))], [&*writes; 2]);
        let until = one.try_lock_arc_until(&[], &[path], Instant::now() + soon);
        assert_eq!([told(until), told(one.try_lock_arc_for(&[], &[path], soon))], [&*writes; 2]);
    }
    drop((one.try_read_for("x", LONG).unwrap(), one.try_read_arc_for("x", LONG).unwrap()));
}

/// By whichever client, its own one too.
fn stamp_is_valid_until_a_write_that_overlaps_is_granted(place: &impl Place) {
    let (one, other) = (place.open(), place.open());
    for (watched, granted, is_valid) in [
        (&["a/b"][..], "w:a/b", false),
        (&["a/b"], "w:a", false),
        (&["a/b"], "w:a/b/c", false),
        (&["a/b", "x"], "w:x/y", false),
        (&["a/b"], "r:a/b r:a", true),
        (&["a/b"], "w:a/c w:a/bb w:b", true),
        (&["a/b"], "r:a w:a/c", true),
        (&[], "w:", true),
    ] {
        for writer in [&other, &one] {
            let stamp = one.observe(watched).unwrap();
            stamp.validate().unwrap();
            drop(lock(writer, granted));
            let validated = stamp.validate();
            assert_eq!(validated.is_ok(), is_valid, "{watched:?}, {granted}: {validated:?}");
            assert_eq!(stamp.validate().is_ok(), is_valid);
        }
    }
    let stamp = one.observe(&["a"]).unwrap();
    one.close();
    assert!(stamp.validate().is_err());
}

fn stamp_that_is_made_while_a_write_is_held_is_never_valid(place: &impl Place) {
    let (one, other) = (place.open(), place.open());
    let held = lock(&other, "r:a w:b/c");
    let (of_read, of_written) = (one.observe(&["a"]).unwrap(), one.observe(&["b"]).unwrap());
    of_read.validate().unwrap();
    held.release().unwrap();
    assert!(of_written.validate().is_err());
    one.observe(&["b"]).unwrap().validate().unwrap();
}

/// Two numbers that a writer changes one after the other; and without a stamp they would be seen to differ.
fn what_is_read_with_a_valid_stamp_goes_together(place: &impl Place) {
    if !place.serves_a_stream() {
        return;
    }
    let (one, other) = (place.open(), place.open());
    let (numbers, is_asked) = ([AtomicU64::new(0), AtomicU64::new(0)], AtomicBool::new(false));
    let has_ended = AtomicBool::new(false);
    let read = || {
        let first = numbers[0].load(Ordering::SeqCst);
        thread::yield_now();
        (first, numbers[1].load(Ordering::SeqCst))
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            while !has_ended.load(Ordering::SeqCst) {
                if is_asked.swap(false, Ordering::SeqCst) {
                    let _write = lock(&other, "w:a/b");
                    numbers[0].fetch_add(1, Ordering::SeqCst);
                    thread::yield_now();
                    numbers[1].fetch_add(1, Ordering::SeqCst);
                }
                thread::yield_now();
            }
        });
        let _ends = Ends(&has_ended);
        let (mut valid, mut refused) = (0, 0);
        for round in 0..100_000 {
            is_asked.store(round % 3 == 0, Ordering::SeqCst);
            let stamp = one.observe(&["a"]).unwrap();
            let (first, second) = read();
            match stamp.validate() {
                Ok(()) => {
                    assert_eq!(first, second);
                    valid += 1;
                }
                Err(_) => refused += 1,
            }
            if valid >= 20 && refused >= 5 {
                break;
            }
        }
        eprintln!("{valid} valid, {refused} refused");
        assert!(valid >= 20 && refused >= 5);
        wait_until("it is seen that they differ without a stamp", || {
            is_asked.store(true, Ordering::SeqCst);
            (0..1000).any(|_| matches!(read(), (first, second) if first != second))
        });
    });
}

/// Also when the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// G8.
fn panic_releases_what_was_held(place: &impl Place) {
    let (one, other) = (place.open(), place.open());
    thread::scope(|scope| {
        let panics = scope.spawn(|| {
            let _guards = (lock(&one, "w:a"), one.write_arc("b").unwrap());
            std::panic::resume_unwind(Box::new("with both"));
        });
        assert!(panics.join().is_err());
    });
    assert!(admits(&other, "w:") && admits(&one, "w:"));
}

/// M5: at once, since it says that it leaves.
fn dropped_client_frees_what_it_forgot(place: &impl Place) {
    let (one, other) = (place.open(), place.open());
    std::mem::forget(lock(&one, "w:a"));
    std::mem::forget(lock(&one, "r:b"));
    assert!(!admits(&other, "r:a"));
    thread::scope(|scope| {
        let waiter = scope.spawn(|| drop(lock(&other, "w:b")));
        wait_for_waiters(&other, 1);
        let start = Instant::now();
        drop(one);
        waiter.join().unwrap();
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    });
    assert!(admits(&other, "w:"));
    is_free(&other);
}

/// G1, G3: also from a snapshot, since the entries before it are gone.
fn late_comer_sees_what_is_held_and_who_waits(place: &impl Place) {
    if !place.serves_a_stream() {
        return;
    }
    let clients = [place.open(), place.open()];
    let held = lock(&clients[0], "w:a/b r:c");
    let served = AtomicU64::new(0);
    thread::scope(|scope| {
        for number in 0..3 {
            let (client, served) = (&clients[number % 2], &served);
            scope.spawn(move || {
                let _write = lock(client, "w:a");
                assert_eq!(served.fetch_add(1, Ordering::SeqCst), number as u64);
            });
            wait_for_waiters(&clients[0], number + 1);
        }
        for round in 0..800 {
            drop(lock(&clients[round % 2], "w:x"));
        }
        let late = place.open();
        assert!(!admits(&late, "r:a/b/d") && !admits(&late, "w:c") && admits(&late, "r:c w:d"));
        let reader = scope.spawn(|| {
            let late = place.open();
            let _read = lock(&late, "r:a/x");
            assert_eq!(served.fetch_add(1, Ordering::SeqCst), 3);
        });
        wait_for_waiters(&late, 4);
        held.release().unwrap();
        reader.join().unwrap();
    });
    is_free(&clients[0]);
}

/// It has seen none of them when it goes on, and some are gone.
fn client_that_was_idle_for_three_thousand_batches_is_right(place: &impl Place) {
    if !place.serves_a_stream() {
        return;
    }
    let (idle, busy) = (place.open(), place.open());
    let mine = lock(&idle, "w:mine r:shared");
    let held = lock(&busy, "w:held");
    for _ in 0..1500 {
        drop(lock(&busy, "w:a/b"));
    }
    let snapshot = idle.snapshot().unwrap();
    let mut held_now: Vec<_> =
        snapshot.holders.iter().flat_map(|holder| &holder.roots).map(ToString::to_string).collect();
    held_now.sort();
    assert_eq!(held_now, ["S shared", "X held", "X mine"]);
    assert!(
        !admits(&idle, "r:held") && admits(&idle, "w:a") && !admits(&busy, "r:mine") && !admits(&busy, "w:shared")
    );
    let fence = held.fence();
    held.release().unwrap();
    assert!(lock(&idle, "w:held").fence() > fence);
    mine.release().unwrap();
    assert!(admits(&busy, "w:"));
}

/// Eight threads of two clients that count what only the lock guards; returns the count.
fn count(rounds: u64, enter: impl Fn(u64, u64) -> Option<Box<dyn Send>> + Sync) -> u64 {
    let count = AtomicU64::new(0);
    thread::scope(|scope| {
        for thread in 0..8 {
            let (count, enter) = (&count, &enter);
            scope.spawn(move || {
                for round in 0..rounds {
                    let guard = enter(thread, round);
                    let seen = count.load(Ordering::Relaxed);
                    thread::yield_now();
                    count.store(seen + 1, Ordering::Relaxed);
                    drop(guard);
                }
            });
        }
    });
    count.into_inner()
}

/// G1: and without the lock they would not.
fn threads_of_two_clients_count_exactly(place: &impl Place) {
    if !place.serves_a_stream() {
        return;
    }
    let clients = [place.open(), place.open()];
    let start = Instant::now();
    let counted = count(100, |thread, round| {
        let client = &clients[thread as usize % 2];
        let path = if (thread + round) % 3 == 0 { "a" } else { "a/b" };
        Some(Box::new(client.try_lock_arc_for(&[], &[path], LONG).unwrap()))
    });
    eprintln!("800 exclusive sections of 8 threads took {:?}", start.elapsed());
    assert_eq!(counted, 800);
    wait_until("it is seen that nothing guards the count without the lock", || count(1000, |_, _| None) < 8000);
}

/// G9: a lost wake-up takes until the session is renewed.
fn hand_overs_lose_no_wake(place: &impl Place) {
    if !place.serves_a_stream() {
        return;
    }
    let clients = [place.open(), place.open()];
    let mut times = Vec::new();
    for round in 0..50 {
        let (one, other) = (&clients[round % 2], &clients[1 - round % 2]);
        let guard = lock(one, "w:a");
        thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let _guard = lock(other, "w:a");
                Instant::now()
            });
            wait_for_waiters(one, 1);
            let released = Instant::now();
            drop(guard);
            times.push(waiter.join().unwrap() - released);
        });
    }
    times.sort();
    eprintln!("hand-over: median {:?}, longest {:?}", times[25], times[49]);
    assert!(times[49] < SOON, "{times:?}");
}
