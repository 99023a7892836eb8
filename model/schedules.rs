//! Random programs under random schedules on the shipped lock, judged by the specification.
//!
//! ```sh
//! cargo test --release --features shuttle --test schedules
//! SCHEDULES=1000000 cargo test --release --features shuttle --test schedules   # for longer
//! ```
//!
//! proptest makes a program (up to six threads over a small tree: several roots, nesting, timeouts, downgrades, releases of
//! some roots, `Arc` guards, owners that go from thread to thread, tasks, futures that are dropped) and a seed; shuttle's PCT scheduler runs the real lock on it (Burckhardt et al. 2010: a bug that takes d
//! ordering constraints is found with a probability that does not vanish). A failure shrinks, and prints the program
//! and the seed that replay it.
//!
//! What is asserted, by the plain overlap of `spec.rs`:
//!
//! - G1: at each grant, no granted request of another owner conflicts.
//! - G3: of two conflicting requests of one root each, the one that was seen waiting when the other was asked for is
//!   served first, unless the other's owner holds something; [`Request::goes_before`] states one more exception.
//! - G2: every program ends; a deadlock is reported only to an owner that holds something and waits for another that
//!   does.
//! - G4: a `try_lock` is refused only if some conflicting request was under way at some time during the call.
//! - G7, G9: at the end the lock is free, and has no entry of any request.
//!
//! The oracle takes a request as *under way* from before it is asked for until it is released, and as *granted* from
//! after it is granted until it is about to be released. So what the oracle sees granted is granted.
//!
//! A thread plays the clock: it strikes again and again while others run. shuttle makes no spurious wake-ups and
//! knows no weak memory; loom (`loom.rs`) does the latter for small programs.
#![cfg(all(feature = "shuttle", not(feature = "loom")))]

#[path = "spec.rs"]
mod spec;

use proptest::prelude::*;
use shuttle::scheduler::PctScheduler;
use shuttle::thread;
use spec::{Owner, Request, Way};
use std::panic::Location;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use treelock::{ArcTreeLockGuard, HeldLock, LockError, LockOwner, TreeLock, TreeLockGuard};

type Lock = TreeLock<str>;

const PATHS: [&str; 9] = ["", "a", "b", "a/a", "a/b", "a/b/c", "a/b/c/d", "b/a", "c"];

/// How many schedules each program runs under.
const SCHEDULES_PER_PROGRAM: usize = 20;

/// A program ends long before the clock has struck this often.
const MOST_STRIKES: usize = 2_000;

/// After this many strikes, an owner that no thread has releases what it holds.
const STRIKES_AT_REST: usize = 20;

const THREADS: usize = 6;

/// How often the order of service was judged, and how often there was a request that had to be served first.
static JUDGED: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

#[derive(Clone, Debug)]
enum Act {
    Ask {
        reads: Vec<usize>,
        writes: Vec<usize>,
        how: How,
        kind: Kind,
    },
    Downgrade(usize),
    /// Some of the roots of a guard, each by a bit.
    Release(usize, u8),
    Drop(usize),
    /// Takes the owner that is at rest, and leaves its own there.
    Swap,
    Yield,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    /// `lock` if nothing is held, since it panics on a deadlock; otherwise the next one.
    Lock,
    Patient,
    Timed,
    Try,
    /// By a future, on this thread. A plain request does as `Patient`.
    Task,
    /// By a future that may be dropped before it is granted. A plain request does as `Timed`.
    Dropped,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Plain,
    Arc,
    /// Asked by the explicit owner that the thread has.
    Handed,
}

enum Guard<'a> {
    Plain(TreeLockGuard<'a, str>),
    Arc(ArcTreeLockGuard<str>),
    Handed(HeldLock),
}

/// An explicit owner, with the numbers of what it holds.
struct Handed {
    owner: LockOwner<str>,
    number: usize,
    held: Vec<(usize, HeldLock)>,
}

impl Handed {
    fn release_all(&mut self, oracle: &Mutex<Oracle>) {
        for (id, held) in self.held.drain(..) {
            oracle.lock().unwrap().weakens(id, None);
            self.owner.release(held);
            oracle.lock().unwrap().end(id);
        }
    }

    /// Drops the owner with all that it holds.
    fn end(self, oracle: &Mutex<Oracle>) {
        self.held.iter().for_each(|&(id, _)| oracle.lock().unwrap().weakens(id, None));
        drop(self.owner);
        self.held.iter().for_each(|&(id, _)| drop(oracle.lock().unwrap().end(id)));
    }
}

/// A request from before it is asked for until it is released.
#[derive(Debug)]
struct UnderWay {
    id: usize,
    owner: Owner,
    request: Request,
    /// The part of it that the lock has granted for certain.
    granted: Option<Request>,
    /// For a `try_lock`: whether a conflicting request has been under way meanwhile.
    excused: bool,
}

/// What the specification knows. It is locked for a moment only and never across a switch of threads.
#[derive(Default)]
struct Oracle {
    under_way: Vec<UnderWay>,
    ids: usize,
    /// The latest request of each thread: if the thread waits, it is with this request.
    latest: [usize; THREADS],
    /// What went wrong. The main thread panics with it, since it has no guards: shuttle cannot shrink a program in
    /// which a thread unwinds while others take turns with it.
    failure: Option<String>,
}

/// Whether two requests have different owners.
fn strangers(one: &UnderWay, other: &UnderWay) -> bool {
    one.owner != other.owner || one.owner == Owner::Itself
}

fn excludes(one: &UnderWay, other: &UnderWay) -> bool {
    strangers(one, other) && one.request.conflicts_with(&other.request)
}

impl Oracle {
    fn ask(&mut self, thread: usize, owner: Owner, request: Request) -> usize {
        self.ids += 1;
        self.latest[thread] = self.ids;
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

    /// To be called after the lock has weakened it.
    fn weakened(&mut self, id: usize) {
        let index = self.index(id);
        self.under_way[index].request = self.under_way[index].granted.clone().expect("it is granted");
    }

    fn request(&self, id: usize) -> &Request {
        &self.under_way[self.index(id)].request
    }

    /// To be called after the lock has released it.
    fn end(&mut self, id: usize) -> UnderWay {
        let index = self.index(id);
        self.under_way.remove(index)
    }

    fn index(&self, id: usize) -> usize {
        self.under_way.iter().position(|request| request.id == id).expect("it is under way")
    }
}

/// The requests that wait at one moment, each with the node where it waits.
fn waiting(lock: &Lock, oracle: &Mutex<Oracle>) -> Vec<(usize, Way)> {
    let latest = oracle.lock().unwrap().latest;
    let snapshot = lock.snapshot();
    let oracle = oracle.lock().unwrap();
    let mut waiting = Vec::new();
    for waiter in &snapshot.waiters {
        let is_of_it =
            |site: &OnceLock<&Location<'static>>| site.get().is_some_and(|site| site.to_string() == waiter.location);
        let thread = SITES.iter().position(is_of_it).expect("a thread asked there");
        // If a thread has asked for something else meanwhile, it is not known with which request it waits.
        if latest[thread] == oracle.latest[thread] {
            let at = waiter.at.segments.iter().map(|segment| segment.clone().into_bytes()).collect();
            waiting.push((latest[thread], Way(at)));
        }
    }
    waiting
}

/// The requests that must be served before a request of an owner that holds nothing (G3).
fn ahead(lock: &Lock, oracle: &Mutex<Oracle>, request: &Request) -> Vec<usize> {
    let waiting = waiting(lock, oracle);
    let oracle = oracle.lock().unwrap();
    let of = |id| oracle.under_way.iter().find(|earlier| earlier.id == id);
    let goes_before =
        |&(id, ref at): &(usize, Way)| of(id).is_some_and(|earlier| earlier.request.goes_before(at, request));
    waiting.iter().filter(|waiter| goes_before(waiter)).map(|&(id, _)| id).collect()
}

fn run(program: &[Vec<Act>]) {
    let lock = Arc::new(Lock::default());
    let oracle = Arc::new(Mutex::new(Oracle::default()));
    let at_rest = Arc::new(Mutex::new(Some(Handed { owner: lock.owner(), number: 2 * THREADS, held: Vec::new() })));
    let running = Arc::new(AtomicUsize::new(program.len()));
    let threads: Vec<_> = program
        .iter()
        .cloned()
        .enumerate()
        .map(|(number, acts)| {
            let (lock, oracle, running) = (Arc::clone(&lock), Arc::clone(&oracle), Arc::clone(&running));
            let at_rest = Arc::clone(&at_rest);
            thread::spawn(move || {
                run_thread(number, &acts, &lock, &oracle, &at_rest);
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
        end_at_failure(&oracle);
        lock.strike(strikes % 2 == 0);
        strikes += 1;
        if strikes % STRIKES_AT_REST == 0 {
            // A thread may wait for an owner that no thread has. The mutex is not locked meanwhile, since shuttle
            // does not know it.
            let taken = at_rest.lock().unwrap().take();
            if let Some(mut taken) = taken {
                taken.release_all(&oracle);
                *at_rest.lock().unwrap() = Some(taken);
            }
        }
        thread::yield_now();
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    end_at_failure(&oracle);
    let at_rest = at_rest.lock().unwrap().take();
    at_rest.into_iter().for_each(|owner| owner.end(&oracle));
    let snapshot = lock.snapshot();
    assert!(snapshot.holders.is_empty() && snapshot.waiters.is_empty(), "G7: {snapshot}");
    assert_eq!(lock.live(), (0, 0), "G6, G7: a node or a request is left");
}

fn end_at_failure(oracle: &Mutex<Oracle>) {
    let failure = oracle.lock().unwrap().failure.take();
    assert!(failure.is_none(), "{}", failure.unwrap_or_default());
}

fn run_thread(
    number: usize,
    acts: &[Act],
    lock: &Arc<Lock>,
    oracle: &Mutex<Oracle>,
    at_rest: &Mutex<Option<Handed>>,
) {
    let mut handed = Handed { owner: lock.owner(), number: THREADS + number, held: Vec::new() };
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
            Act::Swap => {
                let mut at_rest = at_rest.lock().unwrap();
                if let Some(other) = at_rest.take() {
                    *at_rest = Some(std::mem::replace(&mut handed, other));
                }
            }
            Act::Drop(index) if *index < handed.held.len() => {
                let (id, its) = handed.held.remove(*index);
                oracle.lock().unwrap().weakens(id, None);
                handed.owner.release(its);
                oracle.lock().unwrap().end(id);
            }
            Act::Drop(index) if !held.is_empty() => {
                let index = index % held.len();
                release(&mut held, index);
            }
            Act::Downgrade(index) if *index < handed.held.len() => {
                let (id, its) = &handed.held[*index];
                weakens(oracle, *id, Request::downgraded);
                handed.owner.downgrade(its);
                oracle.lock().unwrap().weakened(*id);
            }
            Act::Downgrade(index) if !held.is_empty() => {
                let (id, guard) = held.remove(index % held.len());
                weakens(oracle, id, Request::downgraded);
                held.push((
                    id,
                    match guard {
                        Guard::Plain(guard) => Guard::Plain(guard.downgrade()),
                        Guard::Arc(guard) => Guard::Arc(guard.downgrade()),
                        Guard::Handed(_) => unreachable!("its owner has it"),
                    },
                ));
                oracle.lock().unwrap().weakened(id);
            }
            Act::Release(index, roots) if !held.is_empty() => {
                let index = index % held.len();
                let (id, guard) = &mut held[index];
                let request = oracle.lock().unwrap().request(*id).clone();
                let all = request.reads.iter().chain(&request.writes).enumerate();
                let some: Vec<Way> =
                    all.filter(|(index, _)| roots & (1 << index) != 0).map(|(_, root)| root.clone()).collect();
                let paths: Vec<String> =
                    some.iter().map(|way| String::from_utf8(way.0.join(&b'/')).expect("it was text")).collect();
                weakens(oracle, *id, |request| request.without(&some));
                let released = match guard {
                    Guard::Plain(guard) => guard.release(&paths),
                    Guard::Arc(guard) => guard.release(&paths),
                    Guard::Handed(_) => unreachable!("its owner has it"),
                };
                assert!(released.is_ok(), "they are its roots: {released:?}");
                oracle.lock().unwrap().weakened(*id);
            }
            Act::Drop(_) | Act::Downgrade(_) | Act::Release(..) => {}
            Act::Ask { reads, writes, how, kind } => {
                let paths = |indices: &[usize]| indices.iter().map(|&index| PATHS[index]).collect::<Vec<_>>();
                let (reads, writes) = (paths(reads), paths(writes));
                // A thread may wait for its own `Arc` guard, and a task for the plain guards of its thread, which no
                // search can see: drop these first.
                let is_task = matches!(how, How::Task | How::Dropped) && *kind != Kind::Plain;
                if is_task || *kind == Kind::Arc || held.iter().any(|(_, guard)| matches!(guard, Guard::Arc(_))) {
                    while !held.is_empty() {
                        release(&mut held, 0);
                    }
                }
                // The same holds for what the explicit owner holds, unless that owner asks.
                if *kind != Kind::Handed {
                    handed.release_all(oracle);
                }
                let (owner, owner_holds_nothing) = match kind {
                    Kind::Plain => (Owner::Thread(number), held.is_empty()),
                    Kind::Arc => (Owner::Itself, true),
                    Kind::Handed => (Owner::Thread(handed.number), handed.held.is_empty()),
                };
                let holds_nothing = held.is_empty() && handed.held.is_empty();
                let request = Request::of_text(&reads, &writes);
                let ahead = if owner_holds_nothing { ahead(lock, oracle, &request) } else { Vec::new() };
                let id = oracle.lock().unwrap().ask(number, owner, request);
                let ask = Ask { lock, reads: &reads, writes: &writes, how: *how, kind: *kind, holds_nothing };
                let outcome = match number {
                    0 => ask.by(0, &mut handed.owner),
                    1 => ask.by(1, &mut handed.owner),
                    2 => ask.by(2, &mut handed.owner),
                    3 => ask.by(3, &mut handed.owner),
                    4 => ask.by(4, &mut handed.owner),
                    _ => ask.by(5, &mut handed.owner),
                };
                match outcome {
                    Ok(guard) => {
                        oracle.lock().unwrap().grant(id);
                        JUDGED[0].fetch_add(1, Ordering::Relaxed);
                        if !ahead.is_empty() {
                            JUDGED[1].fetch_add(1, Ordering::Relaxed);
                            let overtaken =
                                waiting(lock, oracle).into_iter().find(|(waiter, _)| ahead.contains(waiter));
                            if let Some((waiter, at)) = overtaken {
                                let mut oracle = oracle.lock().unwrap();
                                let failure =
                                    format!("G3: {id} has overtaken {waiter} at {at:?}: {:#?}", oracle.under_way);
                                oracle.failure.get_or_insert(failure);
                            }
                        }
                        match guard {
                            Guard::Handed(its) => handed.held.push((id, its)),
                            guard => held.push((id, guard)),
                        }
                    }
                    Err(error) => {
                        let refused = oracle.lock().unwrap().end(id);
                        assert!(refused.excused, "G4: {:?}: {error}", refused.request);
                        match error {
                            LockError::WouldBlock => assert_eq!(*how, How::Try),
                            LockError::TimedOut => assert!(matches!(how, How::Timed | How::Dropped), "{how:?}"),
                            LockError::Deadlock(_) => assert!(!holds_nothing, "G2: it held nothing\n{error}"),
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
    handed.end(oracle);
}

/// To be called before the lock weakens it.
fn weakens(oracle: &Mutex<Oracle>, id: usize, left: impl FnOnce(&Request) -> Request) {
    let mut oracle = oracle.lock().unwrap();
    let left = left(oracle.request(id));
    oracle.weakens(id, Some(left));
}

/// Where in the source each thread asks. A snapshot shows by that whose request waits, since all threads of a model
/// have one name.
static SITES: [OnceLock<&Location<'static>>; THREADS] = [const { OnceLock::new() }; THREADS];

struct Ask<'a, 'p> {
    lock: &'a Arc<Lock>,
    reads: &'p [&'static str],
    writes: &'p [&'static str],
    how: How,
    kind: Kind,
    holds_nothing: bool,
}

impl<'a> Ask<'a, '_> {
    /// To be called at a place of its own for each thread.
    #[track_caller]
    fn by(&self, number: usize, owner: &mut LockOwner<str>) -> Result<Guard<'a>, LockError> {
        let here = Location::caller();
        assert_eq!(*SITES[number].get_or_init(|| here), here);
        let Ask { lock, reads, writes, how, kind, holds_nothing } = *self;
        // The model's clock strikes for any deadline, so a patient request has none.
        let timeout = if matches!(how, How::Timed | How::Dropped) { Duration::ZERO } else { Duration::MAX };
        let polls = if how == How::Dropped { 3 } else { usize::MAX };
        match (kind, how) {
            (Kind::Arc, How::Task | How::Dropped) => task(lock.lock_arc_async(reads, writes), polls).map(Guard::Arc),
            (Kind::Handed, How::Task | How::Dropped) => {
                task(owner.lock_async(reads, writes), polls).map(Guard::Handed)
            }
            (Kind::Plain, How::Lock) if holds_nothing => Ok(Guard::Plain(lock.lock(reads, writes))),
            (Kind::Arc, How::Lock) if holds_nothing => Ok(Guard::Arc(lock.lock_arc(reads, writes))),
            (Kind::Handed, How::Lock) => owner.lock(reads, writes).map(Guard::Handed),
            (Kind::Plain, How::Try) => lock.try_lock(reads, writes).map(Guard::Plain),
            (Kind::Arc, How::Try) => lock.try_lock_arc(reads, writes).map(Guard::Arc),
            (Kind::Handed, How::Try) => owner.try_lock(reads, writes).map(Guard::Handed),
            (Kind::Plain, _) => lock.try_lock_for(reads, writes, timeout).map(Guard::Plain),
            (Kind::Arc, _) => lock.try_lock_arc_for(reads, writes, timeout).map(Guard::Arc),
            (Kind::Handed, _) => owner.try_lock_for(reads, writes, timeout).map(Guard::Handed),
        }
    }
}

/// A waker that a thread of the model sleeps on.
#[derive(Default)]
struct Sleeper {
    woken: shuttle::sync::Mutex<bool>,
    wakes: shuttle::sync::Condvar,
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        *self.woken.lock().unwrap() = true;
        self.wakes.notify_one();
    }
}

/// Polls a future until it is ready, each time that it is woken; or so often at most, whether it is woken or not.
fn task<G, F>(mut future: F, polls: usize) -> Result<G, LockError>
where
    F: Future<Output = Result<G, LockError>> + Unpin,
{
    let sleeper = Arc::new(Sleeper::default());
    let waker = Waker::from(Arc::clone(&sleeper));
    for _ in 0..polls {
        if let Poll::Ready(outcome) = Pin::new(&mut future).poll(&mut Context::from_waker(&waker)) {
            return outcome;
        }
        if polls < usize::MAX {
            thread::yield_now();
            continue;
        }
        let mut woken = sleeper.woken.lock().unwrap();
        while !*woken {
            woken = sleeper.wakes.wait(woken).unwrap();
        }
        *woken = false;
    }
    Err(LockError::TimedOut)
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let roots = |most| prop::collection::vec(0..PATHS.len(), 0..=most);
    let how = prop_oneof![
        3 => Just(How::Lock),
        2 => Just(How::Patient),
        2 => Just(How::Timed),
        2 => Just(How::Try),
        2 => Just(How::Task),
        1 => Just(How::Dropped),
    ];
    let kind = prop_oneof![4 => Just(Kind::Plain), 2 => Just(Kind::Arc), 2 => Just(Kind::Handed)];
    // Several roots, or one, which has its place in one order.
    let one = (0..PATHS.len(), any::<bool>());
    let one = one.prop_map(|(root, writes)| if writes { (vec![], vec![root]) } else { (vec![root], vec![]) });
    let roots = prop_oneof![(roots(2), roots(2)), one];
    let asks = (roots, how, kind).prop_map(|((reads, writes), how, kind)| Act::Ask { reads, writes, how, kind });
    let act = prop_oneof![
        8 => asks,
        4 => (0..4usize).prop_map(Act::Drop),
        1 => (0..4usize).prop_map(Act::Downgrade),
        1 => (0..4usize, any::<u8>()).prop_map(|(guard, roots)| Act::Release(guard, roots)),
        1 => Just(Act::Swap),
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
    proptest!(config, |(program in prop::collection::vec(acts(), 2..=THREADS), seed: u64)| {
        let counted = Arc::clone(&counted);
        let scheduler = PctScheduler::new_from_seed(seed, 4, SCHEDULES_PER_PROGRAM);
        let runner = shuttle::Runner::new(scheduler, shuttle::Config::new());
        runner.run(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            run(&program);
        });
    });
    let counted = counted.load(Ordering::Relaxed);
    let [granted, behind] = [0, 1].map(|which| JUDGED[which].load(Ordering::Relaxed));
    println!("{counted} schedules of {programs} programs, {granted} grants, {behind} of them behind somebody");
    assert!(behind > 0, "nobody had to be served before somebody else");
    assert!(counted >= schedules);
}
