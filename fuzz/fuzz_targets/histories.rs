//! Histories of many owners: the answer to each request, and the report of each guard, are as the specification says.
//!
//! ```sh
//! cargo fuzz run -s none histories -- -max_total_time=25 -timeout=60      # stable
//! cargo +nightly fuzz run histories -- -max_total_time=25 -timeout=60     # with AddressSanitizer
//! ```
//!
//! Histories with waiting are slow by nature; `-entropic_scale_per_exec_time=1` takes fewer of them.
//!
//! # Input
//!
//! Text, so that a case can be read and written by hand; bytes of any kind are well-formed. A first line that begins
//! with `w` lets requests wait, with any other they never do; if it has a `*`, the top of the tree was busy before,
//! so that intentions are published there. Each other line is one operation: a letter, a number of one digit, and for
//! a request its roots, `r...` to read and `w...` to write, apart by spaces.
//!
//! | letter | operation | number |
//! |---|---|---|
//! | `t` | `try_lock` | the thread that asks, counted among those that do not wait |
//! | `s` | `try_lock` a while later, when brief waits have ended | |
//! | `z` | `try_lock_for` no time at all | |
//! | `p` | `try_lock_until` now | |
//! | `l` | `lock`, `read` or `write` | |
//! | `f` | `try_lock_for`, for ever | |
//! | `b` | `try_lock_for`, for so long that others may come | |
//! | a capital | the same for an `Arc` guard, an owner of its own | |
//! | `-` `d` `u` | drop, downgrade, unwind through a guard | the guard, counted from the eldest |
//! | `m` | drop an `Arc` guard on another thread | the guard and, in a second digit, the thread |
//!
//! ```text
//! one thread
//! l0 ra wa/b
//! T0 ra/b/c
//! d0
//! ```
//!
//! reads `a` and writes `a/b`; tries to read `a/b/c` as another owner, which would block; and downgrades the first.
//!
//! # What is checked
//!
//! Where requests never wait, one thread does everything, quickly, and after each operation:
//!
//! 1. The request is granted if and only if it conflicts with no other owner (G1, G4), re-entrant ones included. A
//!    request that would block is refused in the way that it asked for. One that would wait for ever is made by
//!    `try_lock` instead, except for the first `Arc` guard that waits only for plain guards of its own thread: that
//!    is a deadlock, and is reported (G2).
//! 2. The snapshot has the same holders as the specification, with their roots and modes, and nobody who waits (G7).
//! 3. At the end nothing is left, and the whole tree can be written (G7).
//!
//! Where requests may wait, [`History`] runs them on four threads, and judges them: see `tests/histories.rs`.
//!
//! Not here: spelling (`path_sets.rs`), and what happens only if two threads are inside the lock at one moment.

#![no_main]

#[path = "../../tests/common/deadlocks.rs"]
mod deadlocks;
// A part of it is used.
#[allow(dead_code)]
#[path = "../../tests/histories/history.rs"]
mod history;
#[path = "../../model/spec.rs"]
mod spec;
#[path = "../../tests/histories/worker.rs"]
mod worker;

use deadlocks::{DEADLOCK, quiet_about_deadlocks};
use history::{History, Op, Waiting};
use libfuzzer_sys::fuzz_target;
use spec::{Held, Id, Owner, Party, Request, Verdict, Way};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use treelock::{ArcTreeLockGuard, Deadlock, LockError, Mode, Root, TreeLockGuard};
use worker::{Answer, Change, How, Kind, Lock, Paths, answer, arc, let_go, plain};

/// The most operations of a history on one thread, and of one on several threads, which is slower by far.
const OPS: usize = 100;
const OPS_WITH_WAITING: usize = 30;
const ROOTS: usize = 8;

/// Longer than brief waits, unless the machine is busy: then less is seen.
const A_WHILE: Duration = Duration::from_millis(8);

fuzz_target!(
    init: quiet_about_deadlocks(),
    |input: &[u8]| {
        let mut lines = input.split(|&byte| byte == b'\n');
        let first = lines.next().unwrap_or_default();
        let busy = if first.contains(&b'*') { busy_top() } else { Vec::new() };
        if first.first() == Some(&b'w') {
            let mut history = History::new(Waiting::Sometimes);
            busy.into_iter().for_each(|op| history.step(op));
            for line in lines.filter(|line| op(line).is_some()).take(OPS_WITH_WAITING) {
                if matches!(line[0], b's' | b'S') {
                    thread::sleep(A_WHILE);
                }
                history.step(op(line).expect("it is one"));
            }
            history.finish();
        } else {
            let lock = Arc::new(Lock::default());
            let mut alone = Alone::new(&lock);
            busy.into_iter().for_each(|op| alone.step(op));
            lines.filter_map(op).take(OPS).for_each(|op| alone.step(op));
            alone.finish();
        }
    }
);

/// More requests than it takes until the nodes above are biased.
fn busy_top() -> Vec<Op> {
    let paths = Paths { reads: vec!["a/a".into()], writes: vec!["a/b".into(), "b/b".into()] };
    let once = [Op::Ask(0, Kind::Plain, How::Try, paths), Op::Change(0, Change::Drop)];
    std::iter::repeat_n(once, 20).flatten().collect()
}

/// One line of the input.
fn op(line: &[u8]) -> Option<Op> {
    let digit = |at: usize| usize::from(line.get(at).unwrap_or(&b'0').wrapping_sub(b'0'));
    let letter = *line.first()?;
    let change = match letter {
        b'-' => Some(Change::Drop),
        b'd' => Some(Change::Downgrade),
        b'u' => Some(Change::Unwind),
        b'm' => Some(Change::DropAt(digit(2))),
        b'r' => Some(Change::Release(digit(2) as u8)),
        _ => None,
    };
    if let Some(change) = change {
        return Some(Op::Change(digit(1), change));
    }
    let how = match letter.to_ascii_lowercase() {
        b't' | b's' => How::Try,
        b'z' => How::For(Duration::ZERO),
        b'p' => How::UntilPast,
        b'l' | b'h' => How::Lock,
        b'f' => How::LongFor,
        b'b' => How::BriefFor,
        _ => return None,
    };
    let kind = match letter {
        b'h' => Kind::Handed(digit(1)),
        letter if letter.is_ascii_uppercase() => Kind::Arc,
        _ => Kind::Plain,
    };
    let mut paths = Paths { reads: Vec::new(), writes: Vec::new() };
    for root in line.get(2..).unwrap_or_default().split(|&byte| byte == b' ').take(ROOTS) {
        match root.split_first() {
            Some((b'r', path)) => paths.reads.push(String::from_utf8_lossy(path).into_owned()),
            Some((b'w', path)) => paths.writes.push(String::from_utf8_lossy(path).into_owned()),
            _ => {}
        }
    }
    Some(Op::Ask(digit(1), kind, how, paths))
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Granted,
    WouldBlock,
    TimedOut,
    Deadlock,
}

/// A history on one thread. It owns its plain guards; each `Arc` guard is another owner.
struct Alone<'a> {
    lock: &'a Arc<Lock>,
    held: Held,
    plain: BTreeMap<Id, TreeLockGuard<'a, str>>,
    arcs: BTreeMap<Id, ArcTreeLockGuard<str>>,
    /// Whether there was a deadlock already: each takes its time, so there is one at the most.
    deadlocked: bool,
}

const ME: Owner = Owner::Thread(0);

impl<'a> Alone<'a> {
    fn new(lock: &'a Arc<Lock>) -> Self {
        let (plain, arcs) = (BTreeMap::new(), BTreeMap::new());
        Alone { lock, held: Held::default(), plain, arcs, deadlocked: false }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Ask(_, kind, how, paths) => self.ask(kind, how, &paths),
            Op::Change(guard, change) => {
                let ids: Vec<Id> = self.held.holders.keys().copied().collect();
                if !ids.is_empty() {
                    self.change(ids[guard % ids.len()], change);
                }
            }
        }
        self.check();
    }

    fn finish(mut self) {
        let snapshot = self.lock.snapshot().to_string();
        assert!(snapshot.chars().all(|char| char == '\n' || !char.is_control()), "{snapshot:?}");
        while let Some(&id) = self.held.holders.keys().next() {
            self.change(id, Change::Drop);
            self.check();
        }
        assert!(self.lock.try_lock_arc(&[], &["/"]).is_ok(), "G7: something is left\n{}", self.lock.snapshot());
    }

    fn ask(&mut self, kind: Kind, how: How, paths: &Paths) {
        let request = Request::of_text(&paths.reads, &paths.writes);
        let owner = match kind {
            Kind::Plain => ME,
            // On one thread an explicit owner is another owner too.
            Kind::Arc | Kind::Handed(_) => Owner::Itself,
        };
        let (how, expected) = self.expected(owner, &request, how);
        let answer = match kind {
            Kind::Plain => {
                let mut granted = None;
                let answer = answer(
                    || plain(self.lock, how, paths),
                    |guard| {
                        granted = Some(guard);
                        None
                    },
                );
                granted.map(|guard| self.plain.insert(self.held.grant(0, owner, request.clone()), guard));
                answer
            }
            Kind::Arc | Kind::Handed(_) => answer(|| arc(self.lock, how, paths), Some),
        };
        let outcome = match answer {
            Answer::Granted(guard) => {
                guard.map(|guard| self.arcs.insert(self.held.grant(0, owner, request.clone()), guard));
                Outcome::Granted
            }
            Answer::Refused(LockError::WouldBlock) => Outcome::WouldBlock,
            Answer::Refused(LockError::TimedOut) => Outcome::TimedOut,
            Answer::Refused(LockError::Deadlock(deadlock)) => {
                self.judge_deadlock(&request, &deadlock);
                Outcome::Deadlock
            }
            Answer::Panicked(text) if text.starts_with(DEADLOCK) => Outcome::Deadlock,
            Answer::Refused(other) => panic!("{other}"),
            Answer::Panicked(text) => panic!("{text}"),
            Answer::Done | Answer::By(..) => unreachable!("it was asked, by no explicit owner"),
        };
        assert_eq!(outcome, expected, "{how:?} of {request:?} by {owner:?}, after it {:?}", self.held);
    }

    /// How to make a request so that it ends, and what must become of it.
    fn expected(&mut self, owner: Owner, request: &Request, how: How) -> (How, Outcome) {
        // No other request comes meanwhile.
        let how = if how == How::BriefFor { How::For(Duration::ZERO) } else { how };
        let endless = matches!(how, How::Lock | How::LongFor);
        if self.held.verdict(owner, request) == Verdict::Granted {
            return (how, Outcome::Granted);
        }
        let mut in_the_way = self.in_the_way(owner, request);
        if endless && !self.deadlocked && in_the_way.all(|holder| holder.owner == ME) {
            drop(in_the_way);
            self.deadlocked = true;
            return (how, Outcome::Deadlock);
        }
        match how {
            How::For(_) | How::UntilPast => (how, Outcome::TimedOut),
            _ => (How::Try, Outcome::WouldBlock),
        }
    }

    fn in_the_way(&self, owner: Owner, request: &Request) -> impl Iterator<Item = &Party> {
        self.held.holders.values().filter(move |holder| holder.excludes(owner, request))
    }

    /// G2: a thread that waits for guards of its own.
    fn judge_deadlock(&self, request: &Request, deadlock: &Deadlock) {
        let [party] = &deadlock.parties[..] else { panic!("G2: there is one thread: {deadlock}") };
        assert_eq!(meaning(&party.waits.roots), request.normalized(), "{deadlock}");
        assert!(!party.holds.is_empty(), "G2: it holds nothing: {deadlock}");
        for hold in &party.holds {
            let told = meaning(&hold.roots);
            let mut in_the_way = self.in_the_way(Owner::Itself, request);
            assert!(in_the_way.any(|holder| holder.request.normalized() == told), "G2: {told:?}: {deadlock}");
        }
    }

    fn change(&mut self, id: Id, change: Change) {
        let mut roots = Vec::new();
        match change {
            Change::Downgrade => self.held.downgrade(id),
            Change::Release(some) => {
                let request = &self.held.holders[&id].request;
                let all = request.reads.iter().chain(&request.writes).enumerate();
                let some: Vec<Way> =
                    all.filter(|(index, _)| some >> (index % 8) & 1 != 0).map(|(_, way)| way.clone()).collect();
                roots = some.iter().map(|way| String::from_utf8(way.0.join(&b'/')).expect("it was text")).collect();
                self.held.release_roots(id, &some);
            }
            Change::Drop | Change::Unwind | Change::DropAt(_) => drop(self.held.release(id)),
        }
        match (self.plain.remove(&id), self.arcs.remove(&id), change) {
            (Some(guard), _, Change::Downgrade) => drop(self.plain.insert(id, guard.downgrade())),
            (_, Some(guard), Change::Downgrade) => drop(self.arcs.insert(id, guard.downgrade())),
            (Some(mut guard), _, Change::Release(_)) => {
                guard.release(&roots).expect("they are its roots");
                self.plain.insert(id, guard);
            }
            (_, Some(mut guard), Change::Release(_)) => {
                guard.release(&roots).expect("they are its roots");
                self.arcs.insert(id, guard);
            }
            (plain, arc, _) => {
                plain.into_iter().for_each(|guard| let_go(guard, change));
                arc.into_iter().for_each(|guard| let_go(guard, change));
            }
        }
    }

    /// Compares who holds what.
    fn check(&self) {
        let snapshot = self.lock.snapshot();
        let holders = &snapshot.holders;
        assert!(holders.is_sorted_by_key(|holder| holder.since), "the longest first: {snapshot}");
        assert!(snapshot.waiters.is_empty(), "G7: nobody waits: {snapshot}");
        let mut expected: Vec<Request> =
            self.held.holders.values().map(|holder| holder.request.normalized()).collect();
        for holder in holders {
            let told = meaning(&holder.roots);
            let found = expected.iter().position(|request| *request == told);
            let found = found.unwrap_or_else(|| panic!("nobody holds {told:?}, {:?}\n{snapshot}", self.held));
            expected.swap_remove(found);
        }
        assert!(expected.is_empty(), "untold: {expected:?}\n{snapshot}");
        let told = format!("{:?}", self.lock);
        assert_eq!(told, format!("TreeLock {{ held: {}, waiting: 0, .. }}", holders.len()));
    }
}

/// The meaning of reported roots; each must be reported once, in the right mode, and none may lie in another.
fn meaning(roots: &[Root]) -> Request {
    let ways = |write: bool| {
        let some = roots.iter().filter(|root| (root.mode == Mode::Exclusive) == write);
        let way = |root: &Root| Way(root.segments.iter().map(|segment| segment.clone().into_bytes()).collect());
        let mut ways: Vec<Way> = some.map(way).collect();
        ways.sort();
        ways
    };
    let request = Request { reads: ways(false), writes: ways(true) };
    let read_above_write = |root: &Root| {
        roots.iter().any(|other| other.mode == Mode::Exclusive && other.segments.starts_with(&root.segments))
    };
    for root in roots.iter().filter(|root| root.mode != Mode::Exclusive) {
        let mode = if read_above_write(root) { Mode::SharedIntentionExclusive } else { Mode::Shared };
        assert_eq!(root.mode, mode, "{roots:?}");
    }
    request
}
