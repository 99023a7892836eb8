//! Threads that read and write plain data which nothing but the lock protects, for ThreadSanitizer to watch.
//!
//! Each node of a small tree has a plain integer. A thread that is granted a sub-tree for writing writes those of all
//! its nodes; one that is granted it for reading reads them. An access that the lock does not order after the one it
//! conflicts with is a data race, and ThreadSanitizer reports it: a grant too many, or one that does not publish what
//! came before.
//!
//! | argument | what the threads do | what must be seen |
//! |---|---|---|
//! | none | lock what they touch | no race |
//! | `--race` | the same without the lock | a race: the data is plain |
//! | `--elsewhere` | lock the same below a name of their own | a race: that they all pass the root hides none |
//!
//! `--rounds N` sets the rounds of each thread. Exit code 0 says only that the program came to its end:
//! ThreadSanitizer reports the races.
//!
//! The standard library is not instrumented, so ThreadSanitizer reports false races for what it does by fences or by
//! itself. Hence no channels and no mutex of `std` here; the fence in the last drop of an `Arc` is suppressed by the
//! script.
//!
//! Not seen: orders that no run takes; see `loom.rs` for those.

use parking_lot::{Condvar, Mutex};
use std::cell::UnsafeCell;
use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};
use treelock::{ArcTreeLockGuard, TreeLock, TreeLockGuard};

const THREADS: usize = 4;

/// The children of `n` are `2n + 1` and `2n + 2`.
const NODES: usize = 15;
const NAMES: [&str; NODES] = [
    "", "a", "b", "a/a", "a/b", "b/a", "b/b", "a/a/a", "a/a/b", "a/b/a", "a/b/b", "b/a/a", "b/a/b", "b/b/a", "b/b/b",
];

/// What is protected.
struct Data([UnsafeCell<u64>; NODES]);

// SAFETY: none of its own. A thread that touches it holds the lock for it, except in the controls: their purpose is
// to race, and they promise nothing.
unsafe impl Sync for Data {}

static DATA: Data = Data([const { UnsafeCell::new(0) }; NODES]);

#[inline(never)]
fn read(node: usize) -> u64 {
    // SAFETY: the caller holds `node` for reading at least, so that nobody writes.
    black_box(unsafe { *DATA.0[node].get() })
}

#[inline(never)]
fn write(node: usize, value: u64) {
    // SAFETY: the caller holds `node` for writing, so that nobody else reads or writes.
    unsafe { *DATA.0[node].get() = black_box(value) }
}

/// How the threads take what they touch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Locking {
    Proper,
    None,
    Elsewhere,
}

/// Roots, by the numbers of their nodes.
#[derive(Clone)]
struct Asked {
    reads: Vec<usize>,
    writes: Vec<usize>,
}

/// An `Arc` guard that another thread drops, with what it protects.
type Parcel = (Asked, ArcTreeLockGuard<str>);

/// One place for each worker, so that it does not order workers. Not a channel of `std`, see above.
static PARCELS: [Mutex<Option<Parcel>>; THREADS] = [const { Mutex::new(None) }; THREADS];

static GRANTED: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);
static BY_TASKS: AtomicU64 = AtomicU64::new(0);
static HANDED_OVER: AtomicU64 = AtomicU64::new(0);
static FINISHED: AtomicUsize = AtomicUsize::new(0);

struct Worker {
    lock: &'static Arc<TreeLock<str>>,
    locking: Locking,
    number: usize,
    random: u64,
}

impl Worker {
    /// Xorshift (Marsaglia 2003): no dependency, and the same in each run.
    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 33) as usize % below
    }

    fn asked(&mut self) -> Asked {
        // Mostly below the top, where not every thread is in every other's way.
        let mut node = || match self.random(16) {
            0 => 0,
            1..4 => 1 + self.random(2),
            _ => 3 + self.random(NODES - 3),
        };
        let (first, second) = (node(), node());
        match self.random(6) {
            0 | 1 => Asked { reads: vec![first], writes: vec![] },
            2 | 3 => Asked { reads: vec![], writes: vec![first] },
            4 => Asked { reads: vec![first], writes: vec![second] },
            _ => Asked { reads: vec![], writes: vec![first, second] },
        }
    }

    fn paths(&self, roots: &[usize]) -> Vec<String> {
        let path = |&root: &usize| match self.locking {
            Locking::Elsewhere => format!("{}/{}", self.number, NAMES[root]),
            Locking::Proper | Locking::None => NAMES[root].to_owned(),
        };
        roots.iter().map(path).collect()
    }

    fn round(&mut self) {
        let asked = self.asked();
        if self.locking == Locking::None {
            GRANTED.fetch_add(1, Ordering::Relaxed);
            return asked.touch();
        }
        match self.random(8) {
            0 => return self.hand_over(asked),
            1 => return self.as_a_task(asked),
            _ => {}
        }
        let Some(guard) = self.take(&asked, Nesting::Outermost) else { return };
        asked.touch();
        match self.random(3) {
            0 => {}
            1 => {
                let inner = self.asked();
                if let Some(nested) = self.take(&inner, Nesting::Nested) {
                    inner.touch();
                    // The outer guard first, or the inner one.
                    if self.random(2) == 0 {
                        drop(guard);
                        inner.touch();
                        return drop(nested);
                    }
                }
                asked.touch();
            }
            _ => {
                let reading = guard.downgrade();
                let weaker = Asked { reads: [&asked.reads[..], &asked.writes].concat(), writes: vec![] };
                weaker.touch();
                drop(reading);
            }
        }
    }

    fn take(&mut self, asked: &Asked, nesting: Nesting) -> Option<TreeLockGuard<'static, str>> {
        let (reads, writes) = (self.paths(&asked.reads), self.paths(&asked.writes));
        let brief = Duration::from_micros(self.random(300) as u64);
        let answer = match (nesting, self.random(4)) {
            (_, 0) => self.lock.try_lock(&reads, &writes),
            (Nesting::Outermost, 2..) => Ok(self.lock.lock(&reads, &writes)),
            (..) => self.lock.try_lock_for(&reads, &writes, brief),
        };
        let counter = if answer.is_ok() { &GRANTED } else { &REFUSED };
        counter.fetch_add(1, Ordering::Relaxed);
        answer.ok()
    }

    /// Asks as a task, which sleeps until its waker is called, or is given up after a few polls.
    fn as_a_task(&mut self, asked: Asked) {
        let (reads, writes) = (self.paths(&asked.reads), self.paths(&asked.writes));
        let mut asks = self.lock.lock_async(reads, writes);
        let mut polls = if self.random(2) == 0 { 2 } else { usize::MAX };
        let sleeper = Arc::new(Sleeper::default());
        let waker = Waker::from(Arc::clone(&sleeper));
        while polls > 0 {
            if let Poll::Ready(guard) = Pin::new(&mut asks).poll(&mut Context::from_waker(&waker)) {
                BY_TASKS.fetch_add(1, Ordering::Relaxed);
                asked.touch();
                return drop(guard);
            }
            polls -= 1;
            if polls > 2 {
                sleeper.sleep();
            } else {
                thread::yield_now();
            }
        }
        REFUSED.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes an `Arc` guard for another thread, which touches the same data and drops it.
    fn hand_over(&mut self, asked: Asked) {
        let (reads, writes) = (self.paths(&asked.reads), self.paths(&asked.writes));
        let Ok(guard) = self.lock.try_lock_arc_for(&reads, &writes, Duration::from_millis(1)) else {
            REFUSED.fetch_add(1, Ordering::Relaxed);
            return;
        };
        GRANTED.fetch_add(1, Ordering::Relaxed);
        asked.touch();
        let mut place = PARCELS[self.number].lock();
        if place.is_none() {
            *place = Some((asked, guard));
        }
    }
}

/// A waker that a thread sleeps on. (Not that of `std`'s threads, see above.)
#[derive(Default)]
struct Sleeper {
    woken: Mutex<bool>,
    wakes: Condvar,
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        *self.woken.lock() = true;
        self.wakes.notify_one();
    }
}

impl Sleeper {
    fn sleep(&self) {
        let mut woken = self.woken.lock();
        while !*woken {
            self.wakes.wait(&mut woken);
        }
        *woken = false;
    }
}

/// Drops the guards of other threads, until those have ended.
fn drop_parcels() {
    while FINISHED.load(Ordering::Relaxed) < THREADS || PARCELS.iter().any(|place| place.lock().is_some()) {
        for place in &PARCELS {
            let parcel = place.lock().take();
            if let Some((asked, guard)) = parcel {
                HANDED_OVER.fetch_add(1, Ordering::Relaxed);
                asked.touch();
                drop(guard);
            }
        }
        thread::yield_now();
    }
}

/// Whether the thread holds something already: then it must not wait for ever.
#[derive(Clone, Copy)]
enum Nesting {
    Outermost,
    Nested,
}

impl Asked {
    /// Reads and writes all that was granted.
    fn touch(&self) {
        let below = |root: usize| (0..NODES).filter(move |&node| contains(root, node));
        for node in self.writes.iter().flat_map(|&root| below(root)) {
            write(node, read(node) + 1);
        }
        for node in self.reads.iter().flat_map(|&root| below(root)) {
            black_box(read(node));
        }
    }
}

/// Whether `node` is in the sub-tree of `root`.
fn contains(root: usize, mut node: usize) -> bool {
    while node > root {
        node = (node - 1) / 2;
    }
    node == root
}

fn main() -> ExitCode {
    let mut locking = Locking::Proper;
    let mut rounds = 20_000;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--race" => locking = Locking::None,
            "--elsewhere" => locking = Locking::Elsewhere,
            "--rounds" => match arguments.next().and_then(|rounds| rounds.parse().ok()) {
                Some(number) => rounds = number,
                None => return usage(),
            },
            _ => return usage(),
        }
    }
    let began = Instant::now();
    let lock: &'static Arc<TreeLock<str>> = Box::leak(Box::new(Arc::default()));
    let dropper = thread::spawn(drop_parcels);
    let workers: Vec<_> = (0..THREADS)
        .map(|number| {
            let mut worker = Worker { lock, locking, number, random: 0x9e37_79b9_7f4a_7c15 ^ (number as u64 + 1) };
            thread::spawn(move || {
                (0..rounds).for_each(|_| worker.round());
                FINISHED.fetch_add(1, Ordering::Relaxed);
            })
        })
        .collect();
    for thread in workers.into_iter().chain([dropper]) {
        thread.join().expect("it ends well");
    }
    println!(
        "{THREADS} threads: {} granted, {} of them to tasks, {} refused or given up, {} handed over, {:.1} s",
        GRANTED.load(Ordering::Relaxed) + BY_TASKS.load(Ordering::Relaxed),
        BY_TASKS.load(Ordering::Relaxed),
        REFUSED.load(Ordering::Relaxed),
        HANDED_OVER.load(Ordering::Relaxed),
        began.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("usage: tsan [--race | --elsewhere] [--rounds N]");
    ExitCode::from(2)
}
