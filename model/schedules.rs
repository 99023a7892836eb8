//! Random programs under random schedules on the shipped lock, judged by the specification.
//!
//! ```sh
//! cargo test --release --features shuttle --test schedules
//! SCHEDULES=1000000 cargo test --release --features shuttle --test schedules   # for longer
//! ```
//!
//! proptest makes a program (up to six threads over a small tree: several roots, nesting, timeouts, downgrades, `Arc`
//! guards) and a seed; shuttle's PCT scheduler runs the real lock on it (Burckhardt et al. 2010: a bug that takes d
//! ordering constraints is found with a probability that does not vanish). A failure shrinks, and prints the program
//! and the seed that replay it.
//!
//! What is asserted, by the plain overlap of `spec.rs`:
//!
//! - G1: at each grant, nobody else's granted request conflicts.
//! - G2: every program ends; a deadlock is reported only to who holds something and waits for somebody who does.
//! - G4: a `try_lock` is refused only if some conflicting request was under way at some time during the call.
//! - G7, G9: at the end the lock knows nobody and is free.
//!
//! Requests are told to the oracle as *under way* before they are asked for and until they are released; as *granted* after
//! they are granted and until they are about to be released. So what the oracle sees granted is granted.
//!
//! Time is played by a thread that strikes again and again while others run. shuttle makes no spurious wake-ups and knows
//! no weak memory; loom (`loom.rs`) does the latter for small programs.
#![cfg(all(feature = "shuttle", not(feature = "loom")))]

#[path = "spec.rs"]
mod spec;

use proptest::prelude::*;
use shuttle::scheduler::PctScheduler;
use shuttle::thread;
use spec::{Owner, Request};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use treelock::{ArcTreeLockGuard, LockError, TreeLock, TreeLockGuard};

type Lock = TreeLock<str>;

const PATHS: [&str; 9] = ["", "a", "b", "a/a", "a/b", "a/b/c", "b/a", "b/b", "c"];

/// Schedules that each program is run under.
const SCHEDULES_PER_PROGRAM: usize = 20;

/// A program ends long before the clock has struck so often.
const MOST_STRIKES: usize = 2_000;

#[derive(Clone, Debug)]
enum Act {
    Ask { reads: Vec<usize>, writes: Vec<usize>, how: How, kind: Kind },
    Downgrade(usize),
    Drop(usize),
    Yield,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    /// `lock` where nothing is held, since it panics on a deadlock; else the next one.
    Lock,
    Patient,
    Timed,
    Try,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Plain,
    Arc,
}

enum Guard<'a> {
    Plain(TreeLockGuard<'a, str>),
    Arc(ArcTreeLockGuard<str>),
}

impl Guard<'_> {
    fn downgrade(self) -> Self {
        match self {
            Guard::Plain(guard) => Guard::Plain(guard.downgrade()),
            Guard::Arc(guard) => Guard::Arc(guard.downgrade()),
        }
    }
}

/// A request from before it is asked for until it is released.
#[derive(Debug)]
struct UnderWay {
    id: usize,
    owner: Owner,
    request: Request,
    /// What of it the lock has granted for certain.
    granted: Option<Request>,
    /// For a `try_lock`: whether a conflicting request has been under way meanwhile.
    excused: bool,
}

/// What the specification knows. It is locked for a moment only and never across a switch of threads.
#[derive(Default)]
struct Oracle {
    under_way: Vec<UnderWay>,
    ids: usize,
}

/// Whether the owners of two requests are strangers.
fn strangers(one: &UnderWay, other: &UnderWay) -> bool {
    one.owner != other.owner || one.owner == Owner::Itself
}

fn excludes(one: &UnderWay, other: &UnderWay) -> bool {
    strangers(one, other) && one.request.conflicts_with(&other.request)
}

impl Oracle {
    fn ask(&mut self, owner: Owner, request: Request) -> usize {
        self.ids += 1;
        let mut new = UnderWay { id: self.ids, owner, request, granted: None, excused: false };
        for other in &mut self.under_way {
            if excludes(other, &new) {
                other.excused = true;
                new.excused = true;
            }
        }
        self.under_way.push(new);
        self.ids
    }

    fn grant(&mut self, id: usize) {
        let index = self.index(id);
        let new = &self.under_way[index];
        for other in self.under_way.iter().filter(|other| other.id != id && strangers(other, new)) {
            let conflict = other.granted.as_ref().is_some_and(|granted| granted.conflicts_with(&new.request));
            assert!(!conflict, "G1: {:?} and {:?}", other.granted, new.request);
        }
        self.under_way[index].granted = Some(new.request.clone());
    }

    /// To be called before the lock releases, or with what is left before it downgrades.
    fn weakens(&mut self, id: usize, left: Option<Request>) {
        let index = self.index(id);
        self.under_way[index].granted = left;
    }

    /// To be called after the lock has downgraded.
    fn downgraded(&mut self, id: usize) {
        let index = self.index(id);
        self.under_way[index].request = self.under_way[index].request.downgraded();
    }

    /// To be called after it has.
    fn end(&mut self, id: usize) -> UnderWay {
        let index = self.index(id);
        self.under_way.remove(index)
    }

    fn index(&self, id: usize) -> usize {
        self.under_way.iter().position(|request| request.id == id).expect("it is under way")
    }
}

fn run(program: &[Vec<Act>]) {
    let lock = Arc::new(Lock::default());
    let oracle = Arc::new(Mutex::new(Oracle::default()));
    let running = Arc::new(AtomicUsize::new(program.len()));
    let threads: Vec<_> = program
        .iter()
        .cloned()
        .enumerate()
        .map(|(number, acts)| {
            let (lock, oracle, running) = (Arc::clone(&lock), Arc::clone(&oracle), Arc::clone(&running));
            thread::spawn(move || {
                run_thread(number, &acts, &lock, &oracle);
                running.fetch_sub(1, Ordering::Relaxed);
            })
        })
        .collect();
    // The clock: deadlines and looks for deadlocks by turns.
    let mut strikes = 0;
    while running.load(Ordering::Relaxed) > 0 {
        assert!(
            strikes < MOST_STRIKES,
            "G2: it does not end: {}\nunder way: {:#?}",
            lock.snapshot(),
            oracle.lock().unwrap().under_way
        );
        lock.strike(strikes % 2 == 0);
        strikes += 1;
        thread::yield_now();
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let snapshot = lock.snapshot();
    assert!(snapshot.holders.is_empty() && snapshot.waiters.is_empty(), "G7: {snapshot}");
    assert_eq!(lock.live(), (0, 0), "G6, G7: a node or a request is left");
}

fn run_thread(number: usize, acts: &[Act], lock: &Arc<Lock>, oracle: &Mutex<Oracle>) {
    let mut held: Vec<(usize, Guard<'_>)> = Vec::new();
    let release = |held: &mut Vec<(usize, Guard<'_>)>, index: usize| {
        let (id, guard) = held.remove(index);
        oracle.lock().unwrap().weakens(id, None);
        drop(guard);
        oracle.lock().unwrap().end(id);
    };
    for act in acts {
        match act {
            Act::Yield => thread::yield_now(),
            Act::Drop(index) if !held.is_empty() => {
                let index = index % held.len();
                release(&mut held, index);
            }
            Act::Downgrade(index) if !held.is_empty() => {
                let (id, guard) = held.remove(index % held.len());
                {
                    let mut oracle = oracle.lock().unwrap();
                    let left = oracle.under_way[oracle.index(id)].request.downgraded();
                    oracle.weakens(id, Some(left));
                }
                held.push((id, guard.downgrade()));
                oracle.lock().unwrap().downgraded(id);
            }
            Act::Drop(_) | Act::Downgrade(_) => {}
            Act::Ask { reads, writes, how, kind } => {
                let paths = |indices: &[usize]| indices.iter().map(|&index| PATHS[index]).collect::<Vec<_>>();
                let (reads, writes) = (paths(reads), paths(writes));
                // An `Arc` guard may be waited for by its own thread, which nobody can see: drop them first.
                if *kind == Kind::Arc || held.iter().any(|(_, guard)| matches!(guard, Guard::Arc(_))) {
                    while !held.is_empty() {
                        release(&mut held, 0);
                    }
                }
                let owner = if *kind == Kind::Arc { Owner::Itself } else { Owner::Thread(number) };
                let id = oracle.lock().unwrap().ask(owner, Request::of_text(&reads, &writes));
                match ask(lock, &reads, &writes, *how, *kind, held.is_empty()) {
                    Ok(guard) => {
                        oracle.lock().unwrap().grant(id);
                        held.push((id, guard));
                    }
                    Err(error) => {
                        let refused = oracle.lock().unwrap().end(id);
                        assert!(refused.excused, "G4: {:?}: {error}", refused.request);
                        match error {
                            LockError::WouldBlock => assert_eq!(*how, How::Try),
                            LockError::TimedOut => assert_eq!(*how, How::Timed),
                            LockError::Deadlock(_) => assert!(!held.is_empty(), "G2: it held nothing\n{error}"),
                            other => panic!("{other}"),
                        }
                    }
                }
            }
        }
    }
    while !held.is_empty() {
        release(&mut held, 0);
    }
}

fn ask<'a>(
    lock: &'a Arc<Lock>,
    reads: &[&str],
    writes: &[&str],
    how: How,
    kind: Kind,
    holds_nothing: bool,
) -> Result<Guard<'a>, LockError> {
    // The model's clock strikes for any deadline there is: a patient request has none.
    let timeout = if how == How::Timed { Duration::ZERO } else { Duration::MAX };
    match (kind, how) {
        (Kind::Plain, How::Lock) if holds_nothing => Ok(Guard::Plain(lock.lock(reads, writes))),
        (Kind::Arc, How::Lock) if holds_nothing => Ok(Guard::Arc(lock.lock_arc(reads, writes))),
        (Kind::Plain, How::Try) => lock.try_lock(reads, writes).map(Guard::Plain),
        (Kind::Arc, How::Try) => lock.try_lock_arc(reads, writes).map(Guard::Arc),
        (Kind::Plain, _) => lock.try_lock_for(reads, writes, timeout).map(Guard::Plain),
        (Kind::Arc, _) => lock.try_lock_arc_for(reads, writes, timeout).map(Guard::Arc),
    }
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let roots = |most| prop::collection::vec(0..PATHS.len(), 0..=most);
    let how = prop_oneof![3 => Just(How::Lock), 2 => Just(How::Patient), 2 => Just(How::Timed), 2 => Just(How::Try)];
    let kind = prop_oneof![4 => Just(Kind::Plain), 1 => Just(Kind::Arc)];
    let asks =
        (roots(2), roots(2), how, kind).prop_map(|(reads, writes, how, kind)| Act::Ask { reads, writes, how, kind });
    let act = prop_oneof![
        6 => asks,
        3 => (0..4usize).prop_map(Act::Drop),
        1 => (0..4usize).prop_map(Act::Downgrade),
        1 => Just(Act::Yield),
    ];
    prop::collection::vec(act, 1..6)
}

#[test]
fn random_programs_keep_the_contract_under_random_schedules() {
    let schedules: usize =
        std::env::var("SCHEDULES").map_or(10_000, |text| text.parse().expect("a number of schedules"));
    let programs = schedules.div_ceil(SCHEDULES_PER_PROGRAM);
    let counted = Arc::new(AtomicUsize::new(0));
    let config = ProptestConfig {
        cases: u32::try_from(programs).expect("fewer programs than 4 billion"),
        failure_persistence: Some(Box::new(proptest::test_runner::FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    };
    proptest!(config, |(program in prop::collection::vec(acts(), 2..=6), seed: u64)| {
        let counted = Arc::clone(&counted);
        let scheduler = PctScheduler::new_from_seed(seed, 4, SCHEDULES_PER_PROGRAM);
        let runner = shuttle::Runner::new(scheduler, shuttle::Config::new());
        runner.run(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            run(&program);
        });
    });
    let counted = counted.load(Ordering::Relaxed);
    println!("{counted} schedules of {programs} programs");
    assert!(counted >= schedules);
}
