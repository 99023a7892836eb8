//! Threads that lock a small tree at random, in every way there is, watched by a tree of counters (G1, G2, G7, G8).
//!
//! Each node of the tree has a counter: readers count 1, writers [`WRITER`]. A thread that holds a sub-tree counts
//! itself in at all nodes of it, and checks that no other is there that must not be. The counters are relaxed, so
//! that they order nothing by themselves: what makes them exact is the lock, and a lock that does not publish what
//! its holders did shows.
//!
//! ```text
//!  lock ── count in, check ── work ── check, count out ── unlock
//!                              └── downgrade, nested requests
//! ```
//!
//! The control: the same threads without the lock must be seen to go wrong.
//!
//! No thread waits for an `Arc` guard that it has itself, or that only a waiting thread could drop: that would be a
//! deadlock that the lock cannot see. So one thread drops all `Arc` guards, and never locks.
//!
//! Not seen: starvation, needless waits, needless wake-ups. `TREELOCK_STRESS=N` runs N times as many rounds.
//!
//! For sanitizers, which want a plain `main`, `harness = false` runs the same. ThreadSanitizer needs suppressions for
//! what it cannot see in a standard library that is not instrumented: suppress `race:std::sync::mpmc`,
//! `race:std::thread::lifecycle` and `race:*Arc*drop_slow*`.
#![cfg(not(feature = "model"))]

#[path = "common/deadlocks.rs"]
mod deadlocks;

use deadlocks::{DEADLOCK, quiet_about_deadlocks};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};
use treelock::{ArcTreeLockGuard, LockError, TreeLock, TreeLockGuard};

type Lock = TreeLock<str>;

const THREADS: u64 = 6;
const ROUNDS: u64 = 15_000;
const WRITER: i64 = 1 << 20;

/// A hundred times as long as a run takes.
const FOR_EVER: Duration = Duration::from_secs(300);

/// A tree of two children a node, in the order of a heap: the children of `n` are `2n + 1` and `2n + 2`.
const NODES: usize = 15;

const PATHS: [&str; NODES] = [
    "", "a", "b", "a/a", "a/b", "b/a", "b/b", "a/a/a", "a/a/b", "a/b/a", "a/b/b", "b/a/a", "b/a/b", "b/b/a", "b/b/b",
];

/// Roots, by the numbers of their nodes.
#[derive(Clone, Debug, Default)]
struct Asked {
    reads: Vec<usize>,
    writes: Vec<usize>,
}

/// What an owner counts at each node.
#[derive(Clone, Copy, Default)]
struct Weights([i64; NODES]);

impl Weights {
    const NONE: Weights = Weights([0; NODES]);

    fn plus(self, other: Weights) -> Weights {
        Weights(std::array::from_fn(|node| self.0[node] + other.0[node]))
    }

    fn minus(self, other: Weights) -> Weights {
        Weights(std::array::from_fn(|node| self.0[node] - other.0[node]))
    }
}

impl Asked {
    fn random(random: &mut SmallRng) -> Self {
        // Mostly below the top, where not every thread is in every other's way.
        let node = |random: &mut SmallRng| match random.random_range(0..20) {
            0 => 0,
            1..4 => random.random_range(1..3),
            _ => random.random_range(3..NODES),
        };
        let (reads, writes) = *[(1, 0), (0, 1), (1, 1), (2, 0), (0, 2), (2, 1), (0, 0)].choose(random).expect("some");
        let mut roots = |count| (0..count).map(|_| node(random)).collect();
        Asked { reads: roots(reads), writes: roots(writes) }
    }

    /// A read of something that these roots hold.
    fn inner_read(&self, random: &mut SmallRng) -> Option<Asked> {
        let root = *self.reads.iter().chain(&self.writes).collect::<Vec<_>>().choose(random)?;
        let inner: Vec<usize> = (0..NODES).filter(|&node| contains(*root, node)).collect();
        Some(Asked { reads: vec![*inner.choose(random)?], writes: Vec::new() })
    }

    fn paths(&self) -> (Vec<&'static str>, Vec<&'static str>) {
        let paths = |roots: &[usize]| roots.iter().map(|&root| PATHS[root]).collect();
        (paths(&self.reads), paths(&self.writes))
    }

    fn weights(&self) -> Weights {
        let weight = |roots: &[usize], node| roots.iter().filter(|&&root| contains(root, node)).count() as i64;
        Weights(std::array::from_fn(|node| weight(&self.reads, node) + WRITER * weight(&self.writes, node)))
    }

    fn downgraded(&self) -> Asked {
        Asked { reads: [&self.reads[..], &self.writes].concat(), writes: Vec::new() }
    }
}

/// Whether `node` is in the sub-tree of `root`.
fn contains(root: usize, mut node: usize) -> bool {
    while node > root {
        node = (node - 1) / 2;
    }
    node == root
}

/// The counters of all nodes.
#[derive(Default)]
struct Oracle {
    counters: [AtomicI64; NODES],
    violations: AtomicU64,
    /// What was granted, and what was not.
    granted: AtomicU64,
    refused: AtomicU64,
    deadlocks: AtomicU64,
}

impl Oracle {
    /// Counts an owner in that has `own` there already.
    fn enter(&self, weights: Weights, own: Weights) {
        for (node, counter) in self.counters.iter().enumerate() {
            let before = counter.fetch_add(weights.0[node], Relaxed);
            self.judge(weights.0[node], before - own.0[node]);
        }
    }

    /// Checks an owner that is in with `weights`, and with `own` altogether.
    fn check(&self, weights: Weights, own: Weights) {
        for (node, counter) in self.counters.iter().enumerate() {
            self.judge(weights.0[node], counter.load(Relaxed) - own.0[node]);
        }
    }

    fn leave(&self, weights: Weights) {
        for (counter, weight) in self.counters.iter().zip(weights.0) {
            counter.fetch_sub(weight, Relaxed);
        }
    }

    fn judge(&self, weight: i64, others: i64) {
        let allowed = match weight {
            0 => return,
            WRITER.. => others == 0,
            _ => (0..WRITER).contains(&others),
        };
        if !allowed {
            self.violations.fetch_add(1, Relaxed);
        }
    }
}

/// The lock, or none: the control.
enum Subject {
    Locked(Arc<Lock>),
    Unlocked,
}

/// A granted request. The guard is dropped after what it protects is left.
struct Held<'a> {
    asked: Asked,
    guard: Option<TreeLockGuard<'a, str>>,
}

/// An `Arc` guard on its way to the thread that drops it, with what it counts.
type Parcel = (Weights, Option<ArcTreeLockGuard<str>>);

struct Worker<'a> {
    subject: &'a Subject,
    oracle: &'a Oracle,
    random: SmallRng,
    /// What its plain guards count.
    own: Weights,
    parcels: Sender<Parcel>,
}

impl<'a> Worker<'a> {
    fn round(&mut self) {
        let asked = Asked::random(&mut self.random);
        if self.random.random_range(0..4) == 0 {
            return self.send_parcel(&asked);
        }
        let Some(outer) = self.plain(asked) else { return };
        let mut guards = vec![outer];
        for _ in 0..self.random.random_range(0..3) {
            self.work();
            let nested = match self.random.random_range(0..4) {
                0 => self.nested_read(&guards),
                1 => self.nested_any(),
                2 => self.send_small_parcel(),
                _ => self.downgrade(&mut guards),
            };
            guards.extend(nested);
        }
        self.work();
        while !guards.is_empty() {
            let last = self.random.random_range(0..guards.len());
            self.let_go(guards.swap_remove(last));
        }
    }

    /// Lets the others run, now and then.
    fn work(&mut self) {
        if self.random.random_range(0..2) == 0 {
            thread::yield_now();
        }
    }

    /// A request of a thread that holds nothing: it may wait for ever, and never has to (G2).
    fn plain(&mut self, asked: Asked) -> Option<Held<'a>> {
        let (reads, writes) = asked.paths();
        let Subject::Locked(lock) = self.subject else { return Some(self.enter(asked, None)) };
        let timeout = Duration::from_micros(self.random.random_range(0..300));
        let answer = match (self.random.random_range(0..6), &reads[..], &writes[..]) {
            (0, ..) => lock.try_lock(&reads, &writes),
            (1, ..) => lock.try_lock_for(&reads, &writes, timeout),
            (2, ..) => lock.try_lock_until(&reads, &writes, Instant::now() + timeout),
            (_, [read], []) => Ok(lock.read(read)),
            (_, [], [write]) => Ok(lock.write(write)),
            (..) => Ok(lock.lock(&reads, &writes)),
        };
        match answer {
            Ok(guard) => Some(self.enter(asked, Some(guard))),
            Err(error) => self.refused(&error, false),
        }
    }

    /// A read within what is held: it never waits, so `lock` cannot deadlock.
    fn nested_read(&mut self, guards: &[Held<'a>]) -> Option<Held<'a>> {
        let asked = guards.choose(&mut self.random)?.asked.inner_read(&mut self.random)?;
        let (reads, writes) = asked.paths();
        let guard = match self.subject {
            Subject::Locked(lock) => Some(lock.lock(&reads, &writes)),
            Subject::Unlocked => None,
        };
        Some(self.enter(asked, guard))
    }

    /// Any nested request, such as an upgrade: it may be refused, also because it would deadlock.
    fn nested_any(&mut self) -> Option<Held<'a>> {
        let asked = Asked::random(&mut self.random);
        let (reads, writes) = asked.paths();
        let Subject::Locked(lock) = self.subject else { return Some(self.enter(asked, None)) };
        let answer = match self.random.random_range(0..20) {
            0..10 => lock.try_lock(&reads, &writes),
            10..18 => lock.try_lock_for(&reads, &writes, Duration::from_micros(200)),
            // For ever: a deadlock is reported, or this hangs.
            18 => lock.try_lock_for(&reads, &writes, Duration::MAX),
            _ => match catch_unwind(AssertUnwindSafe(|| lock.lock(&reads, &writes))) {
                Ok(guard) => Ok(guard),
                Err(panic) => return self.panicked(&*panic),
            },
        };
        match answer {
            Ok(guard) => Some(self.enter(asked, Some(guard))),
            Err(error) => self.refused(&error, true),
        }
    }

    fn panicked(&self, panic: &(dyn Any + Send)) -> Option<Held<'a>> {
        assert!(panic.downcast_ref::<String>().is_some_and(|text| text.starts_with(DEADLOCK)), "another panic");
        self.oracle.deadlocks.fetch_add(1, Relaxed);
        None
    }

    fn downgrade(&mut self, guards: &mut Vec<Held<'a>>) -> Option<Held<'a>> {
        let index = self.random.random_range(0..guards.len());
        let Held { asked, guard } = guards.swap_remove(index);
        let weaker = asked.downgraded();
        self.oracle.check(asked.weights(), self.own);
        // Counts itself out of the writers while it is still one.
        let writer = asked.weights().minus(weaker.weights());
        self.oracle.leave(writer);
        self.own = self.own.minus(writer);
        Some(Held { asked: weaker, guard: guard.map(TreeLockGuard::downgrade) })
    }

    fn send_parcel(&mut self, asked: &Asked) {
        let (reads, writes) = asked.paths();
        let timeout = Duration::from_micros(self.random.random_range(0..300));
        let answer = match self.subject {
            Subject::Unlocked => Ok(None),
            Subject::Locked(lock) => match (self.random.random_range(0..6), &reads[..], &writes[..]) {
                (0, ..) => lock.try_lock_arc(&reads, &writes).map(Some),
                (1, ..) => lock.try_lock_arc_for(&reads, &writes, timeout).map(Some),
                (2, ..) => lock.try_lock_arc_until(&reads, &writes, Instant::now() + timeout).map(Some),
                (_, [read], []) => Ok(Some(lock.read_arc(read))),
                (_, [], [write]) => Ok(Some(lock.write_arc(write))),
                (..) => Ok(Some(lock.lock_arc(&reads, &writes))),
            },
        };
        match answer {
            Ok(guard) => self.post(asked.weights(), guard),
            Err(error) => drop(self.refused(&error, false)),
        }
    }

    /// An `Arc` guard beside the thread's own ones: it must not conflict with them either.
    fn send_small_parcel(&mut self) -> Option<Held<'a>> {
        let asked = Asked::random(&mut self.random);
        let (reads, writes) = asked.paths();
        let answer = match self.subject {
            Subject::Unlocked => Ok(None),
            Subject::Locked(lock) => lock.try_lock_arc(&reads, &writes).map(Some),
        };
        match answer {
            Ok(guard) => {
                self.post(asked.weights(), guard);
                None
            }
            Err(error) => self.refused(&error, false),
        }
    }

    fn post(&mut self, weights: Weights, guard: Option<ArcTreeLockGuard<str>>) {
        self.oracle.granted.fetch_add(1, Relaxed);
        self.oracle.enter(weights, Weights::NONE);
        let guard = match self.random.random_range(0..2) {
            0 => guard,
            // Panics on the way, which releases the guard.
            _ => return self.lose(weights, guard),
        };
        self.parcels.send((weights, guard)).expect("the other end outlives the workers");
    }

    /// A panic unwinds through the guard (G8).
    fn lose(&self, weights: Weights, guard: Option<ArcTreeLockGuard<str>>) {
        self.oracle.check(weights, weights);
        self.oracle.leave(weights);
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            let _guard = guard;
            resume_unwind(Box::new("as planned"));
        }));
        assert!(unwound.is_err());
    }

    fn refused(&self, error: &LockError, nested: bool) -> Option<Held<'a>> {
        self.oracle.refused.fetch_add(1, Relaxed);
        match error {
            LockError::WouldBlock | LockError::TimedOut => None,
            LockError::Deadlock(_) if nested => {
                self.oracle.deadlocks.fetch_add(1, Relaxed);
                None
            }
            other => panic!("{other}"),
        }
    }

    fn enter(&mut self, asked: Asked, guard: Option<TreeLockGuard<'a, str>>) -> Held<'a> {
        self.oracle.granted.fetch_add(1, Relaxed);
        self.oracle.enter(asked.weights(), self.own);
        self.own = self.own.plus(asked.weights());
        Held { asked, guard }
    }

    fn let_go(&mut self, held: Held<'a>) {
        let weights = held.asked.weights();
        self.oracle.check(weights, self.own);
        self.oracle.leave(weights);
        self.own = self.own.minus(weights);
        drop(held.guard);
    }
}

/// Drops the guards of others.
fn drop_parcels(oracle: &Oracle, parcels: &Receiver<Parcel>) {
    for (weights, guard) in parcels {
        oracle.check(weights, weights);
        oracle.leave(weights);
        drop(guard);
    }
}

/// Runs all threads to their end.
fn run(subject: &Subject, seed: u64, rounds: u64) -> Oracle {
    let oracle = Oracle::default();
    let (parcels, received) = channel();
    thread::scope(|scope| {
        let oracle = &oracle;
        scope.spawn(move || drop_parcels(oracle, &received));
        for thread in 0..THREADS {
            let random = SmallRng::seed_from_u64(seed * THREADS + thread);
            let mut worker = Worker { subject, oracle, random, own: Weights::NONE, parcels: parcels.clone() };
            scope.spawn(move || (0..rounds).for_each(|_| worker.round()));
        }
        drop(parcels);
    });
    oracle
}

/// Runs the threads on the lock; a hang fails, and the message says who waits for whom.
fn run_locked(lock: &Arc<Lock>, seed: u64) -> Oracle {
    let (done, finished) = channel();
    let subject = Subject::Locked(Arc::clone(lock));
    let threads = thread::spawn(move || drop(done.send(run(&subject, seed, ROUNDS))));
    match finished.recv_timeout(FOR_EVER) {
        Ok(oracle) => oracle,
        Err(RecvTimeoutError::Timeout) => panic!("somebody waits for ever:\n{}", lock.snapshot()),
        Err(RecvTimeoutError::Disconnected) => resume_unwind(threads.join().expect_err("it said nothing")),
    }
}

fn factor() -> u64 {
    std::env::var("TREELOCK_STRESS").map_or(1, |factor| factor.parse().expect("TREELOCK_STRESS is a number"))
}

fn stress_the_lock() {
    quiet_about_deadlocks();
    let lock = Arc::new(Lock::default());
    for seed in 0..factor() {
        let oracle = run_locked(&lock, seed);
        assert_eq!(oracle.violations.into_inner(), 0);
        assert!(oracle.counters.iter().all(|counter| counter.load(Relaxed) == 0));
        let (granted, refused) = (oracle.granted.into_inner(), oracle.refused.into_inner());
        println!("{granted} granted, {refused} refused, {} deadlocks", oracle.deadlocks.into_inner());
        assert!(granted > 0 && refused > 0, "{granted} granted, {refused} refused: nobody is in anybody's way");
        let snapshot = lock.snapshot();
        assert!(snapshot.holders.is_empty() && snapshot.waiters.is_empty(), "{snapshot}");
        assert!(lock.try_lock(&[], &[""]).is_ok());
    }
}

fn stress_nothing() {
    let seen = (0..100).any(|seed| run(&Subject::Unlocked, seed, 200).violations.into_inner() > 0);
    assert!(seen, "the oracle is blind");
}

/// G1, G2, G7, G8.
#[test]
fn no_holder_meets_one_that_it_excludes() {
    stress_the_lock();
}

/// The control: without a lock, the errors happen that the oracle is to find.
#[test]
fn without_the_lock_holders_are_seen_to_meet() {
    stress_nothing();
}

/// With `harness = false`.
#[allow(dead_code)]
fn main() {
    stress_nothing();
    stress_the_lock();
}
