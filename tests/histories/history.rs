//! The lock and the specification, side by side.

use crate::deadlocks::DEADLOCK;
use crate::spec::{Held, Id, Owner, Party, Request, Verdict, Way};
use crate::worker::{Answer, Change, Command, How, Kind, Lock, Paths, let_go, obey};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use treelock::{ArcTreeLockGuard, Deadlock, HeldLock, Holder, LockError, LockOwner, Mode};

pub(crate) const WORKERS: usize = 4;

/// The explicit owners, which no worker keeps for longer than one request.
pub(crate) const OWNERS: usize = 2;

/// Nothing here takes a thousandth of it: a request that waits for longer waits for ever.
const FOR_EVER: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// For one of the workers that do not wait: the first is 0, and the numbers go round.
    Ask(usize, Kind, How, Paths),
    /// For one of the guards that can be reached: the first is 0, and the numbers go round.
    Change(usize, Change),
}

/// What happened in the histories: a test that never meets a conflict cannot notice a missing one.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) granted: u32,
    pub(crate) refused: u32,
    pub(crate) timed_out: u32,
    pub(crate) waited: u32,
    pub(crate) met: u32,
    pub(crate) deadlocks: u32,
}

impl Seen {
    pub(crate) fn add(&mut self, other: Seen) {
        self.granted += other.granted;
        self.refused += other.refused;
        self.timed_out += other.timed_out;
        self.waited += other.waited;
        self.met += other.met;
        self.deadlocks += other.deadlocks;
    }
}

/// Whether requests may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    Never,
    Sometimes,
}

pub(crate) struct History {
    lock: Arc<Lock>,
    held: Held,
    arcs: BTreeMap<Id, ArcTreeLockGuard<str>>,
    /// The explicit owners that no request borrows, and what they hold.
    owners: [Option<LockOwner<str>>; OWNERS],
    handed: BTreeMap<Id, (usize, HeldLock)>,
    commands: Vec<Sender<Command>>,
    answers: Receiver<(usize, Option<Id>, Answer)>,
    threads: Vec<JoinHandle<()>>,
    waiting: Waiting,
    seen: Seen,
    /// The request that each worker has made since everything was at rest, or waits with.
    asked: Vec<Option<Asked>>,
    /// Which request waits where, by the latest snapshot.
    waits_at: BTreeMap<Id, Way>,
    /// The earlier waiters that a request met.
    met: BTreeMap<Id, BTreeSet<Id>>,
}

#[derive(Clone)]
struct Asked {
    id: Id,
    owner: Owner,
    request: Request,
    how: How,
}

impl History {
    pub(crate) fn new(waiting: Waiting) -> Self {
        let lock = Arc::new(Lock::default());
        let (tell, answers) = channel();
        let mut commands = Vec::new();
        let mut threads = Vec::new();
        for me in 0..WORKERS {
            let (command, obeyed) = channel();
            let (lock, tell) = (Arc::clone(&lock), tell.clone());
            let work = move || obey(&lock, &obeyed, &tell, me);
            threads.push(thread::Builder::new().name(name(me)).spawn(work).expect("a thread can be spawned"));
            commands.push(command);
        }
        let owners = std::array::from_fn(|_| Some(lock.owner()));
        History {
            lock,
            held: Held::default(),
            arcs: BTreeMap::new(),
            owners,
            handed: BTreeMap::new(),
            commands,
            answers,
            threads,
            waiting,
            seen: Seen::default(),
            asked: vec![None; WORKERS],
            waits_at: BTreeMap::new(),
            met: BTreeMap::new(),
        }
    }

    pub(crate) fn step(&mut self, op: Op) {
        match op {
            Op::Ask(worker, kind, how, paths) => {
                let idle = self.idle();
                let kind = match kind {
                    Kind::Handed(number) if self.owners.get(number).is_none_or(Option::is_none) => Kind::Plain,
                    kind => kind,
                };
                if !idle.is_empty() {
                    self.ask(idle[worker % idle.len()], kind, how, paths);
                }
            }
            Op::Change(guard, change) => {
                let ids = self.changeable();
                if !ids.is_empty() {
                    self.change(ids[guard % ids.len()], change);
                }
            }
        }
        self.settle();
    }

    /// Releases everything, and expects that nothing is left.
    pub(crate) fn finish(mut self) -> Seen {
        let began = Instant::now();
        while !(self.held.holders.is_empty() && self.held.waiters.is_empty()) {
            match self.changeable().first() {
                Some(&id) => self.change(id, Change::Drop),
                // Requests that still wait now wait for others that wait: each cycle of them is reported to one (G2).
                None => self.hear(),
            }
            // A report that is on its way tells what was held when it was made.
            self.settle();
            assert!(began.elapsed() < FOR_EVER, "somebody waits for ever:\n{}", self.lock.snapshot());
        }
        self.settle();
        for worker in 0..WORKERS {
            let all = Paths { reads: Vec::new(), writes: vec!["/".into()] };
            let id = self.ask(worker, Kind::Plain, How::Try, all);
            self.change(id, Change::Drop);
        }
        let snapshot = self.lock.snapshot();
        assert!(snapshot.holders.is_empty() && snapshot.waiters.is_empty(), "{snapshot}");
        self.commands.clear();
        for thread in self.threads.drain(..) {
            thread.join().expect("a worker ends well");
        }
        self.seen
    }

    fn ask(&mut self, worker: usize, kind: Kind, how: How, paths: Paths) -> Id {
        let request = Request::of_text(&paths.reads, &paths.writes);
        let owner = match kind {
            Kind::Plain => Owner::Thread(worker),
            Kind::Arc => Owner::Itself,
            Kind::Handed(number) => Owner::Thread(WORKERS + number),
        };
        let verdict = self.held.verdict(owner, &request);
        let how = match (how, verdict) {
            (How::Lock, Verdict::Refused | Verdict::Open) if self.waiting == Waiting::Never => How::Try,
            // It takes refusals.
            (How::Lock, _) if matches!(kind, Kind::Handed(_)) => How::LongFor,
            (how, _) => how,
        };
        let met = self.meets(owner, &request);
        let id = self.held.wait(worker, owner, request.clone());
        self.met.insert(id, met);
        self.asked[worker] = Some(Asked { id, owner, request: request.clone(), how });
        let command = match kind {
            Kind::Handed(number) => {
                Command::AskBy(id, self.owners[number].take().expect("no request borrows it"), how, paths)
            }
            kind => Command::Ask(id, kind, how, paths),
        };
        self.commands[worker].send(command).expect("the worker lives");
        match how {
            How::Lock | How::LongFor | How::BriefFor => self.settle(),
            How::Try | How::For(_) | How::UntilPast => self.hear_of(id),
        }
        if self.held.waiters.contains_key(&id) {
            self.seen.waited += 1;
            self.seen.met += u32::from(!self.met[&id].is_empty());
        }
        let granted = self.held.holders.contains_key(&id);
        match verdict {
            Verdict::Granted => assert!(granted, "G4: {request:?} is refused or waits, beside {:?}", self.held),
            Verdict::Refused => assert!(!granted, "G1: {request:?} is granted beside {:?}", self.held),
            Verdict::Open => {}
        }
        id
    }

    fn change(&mut self, id: Id, change: Change) {
        let party = self.held.holders[&id].clone();
        let handed = self.handed.remove(&id);
        let mut roots = Vec::new();
        match change {
            Change::Downgrade => self.held.downgrade(id),
            Change::Release(some) if handed.is_none() => {
                let all = party.request.reads.iter().chain(&party.request.writes).enumerate();
                let some: Vec<Way> =
                    all.filter(|(index, _)| some & (1 << index) != 0).map(|(_, way)| way.clone()).collect();
                roots = some.iter().map(text).collect();
                self.held.release_roots(id, &some);
            }
            Change::Release(_) | Change::Drop | Change::Unwind | Change::DropAt(_) => drop(self.held.release(id)),
        }
        if let Some((number, held)) = handed {
            let owner = self.owners[number].as_mut().expect("no request borrows it");
            return match change {
                Change::Downgrade => {
                    owner.downgrade(&held);
                    self.handed.insert(id, (number, held));
                }
                _ => owner.release(held),
            };
        }
        let Some(mut guard) = self.arcs.remove(&id) else {
            let command = match change {
                Change::Release(_) => Command::Release(id, roots),
                change => Command::Change(id, change),
            };
            self.commands[party.thread].send(command).expect("the worker lives");
            return self.hear_done(party.thread);
        };
        match change {
            Change::Downgrade => drop(self.arcs.insert(id, guard.downgrade())),
            Change::Release(_) => {
                guard.release(&roots).expect("they are its roots");
                self.arcs.insert(id, guard);
            }
            Change::DropAt(worker) if self.idle().contains(&worker) => {
                self.commands[worker].send(Command::DropArc(guard)).expect("the worker lives");
                self.hear_done(worker);
            }
            Change::Drop | Change::Unwind | Change::DropAt(_) => let_go(guard, change),
        }
    }

    /// The workers that can take a command.
    fn idle(&self) -> Vec<usize> {
        let waits = |worker: &usize| self.held.waiters.values().any(|waiter| waiter.thread == *worker);
        (0..WORKERS).filter(|worker| !waits(worker)).collect()
    }

    /// The guards that no waiting thread has.
    fn changeable(&self) -> Vec<Id> {
        let idle = self.idle();
        let reachable = |id: &Id, thread: usize| match self.handed.get(id) {
            Some(&(number, _)) => self.owners[number].is_some(),
            None => self.arcs.contains_key(id) || idle.contains(&thread),
        };
        self.held.holders.iter().filter(|(id, holder)| reachable(id, holder.thread)).map(|(&id, _)| id).collect()
    }

    // -- hearing --

    fn hear_of(&mut self, id: Id) {
        while self.held.waiters.contains_key(&id) {
            self.hear();
        }
    }

    fn hear_done(&mut self, worker: usize) {
        while self.hear_one(FOR_EVER) != Some((worker, None)) {}
    }

    fn hear(&mut self) {
        self.hear_one(FOR_EVER);
    }

    /// Takes one answer, if it comes in time, and judges it.
    fn hear_one(&mut self, timeout: Duration) -> Option<(usize, Option<Id>)> {
        let Ok((worker, id, answer)) = self.answers.recv_timeout(timeout) else {
            assert!(timeout < FOR_EVER, "nobody answers, {:?}\n{}", self.held, self.lock.snapshot());
            return None;
        };
        let how = self.asked[worker].as_ref().map(|asked| asked.how);
        let (Some(id), Some(how)) = (id, how) else { return Some((worker, id)) };
        let party = self.held.stop_waiting(id);
        let mut by = None;
        let answer = match answer {
            Answer::By(owner, got) => {
                let Owner::Thread(number) = party.owner else { unreachable!("it has an owner") };
                self.owners[number - WORKERS] = Some(owner);
                match got {
                    Ok(held) => {
                        by = Some((number - WORKERS, held));
                        Answer::Granted(None)
                    }
                    Err(error) => Answer::Refused(error),
                }
            }
            answer => answer,
        };
        match answer {
            Answer::Granted(guard) => {
                let excluded = self.held.holders.values().find(|holder| holder.excludes(party.owner, &party.request));
                assert!(excluded.is_none(), "G1: {party:?} is granted beside {excluded:?}");
                // The same name for the same request, now that it is held.
                self.held.holders.insert(id, party);
                self.seen.granted += 1;
                self.arcs.extend(guard.map(|guard| (id, guard)));
                self.handed.extend(by.map(|held| (id, held)));
            }
            Answer::Refused(LockError::WouldBlock) => {
                assert_eq!(how, How::Try);
                self.seen.refused += 1;
            }
            Answer::Refused(LockError::TimedOut) => {
                assert!(matches!(how, How::For(_) | How::UntilPast | How::BriefFor), "{how:?}");
                self.seen.timed_out += 1;
            }
            Answer::Refused(LockError::Deadlock(deadlock)) => {
                assert_eq!(how, How::LongFor);
                self.seen.deadlocks += 1;
                self.judge_deadlock(worker, &deadlock);
            }
            Answer::Refused(other) => panic!("{other}"),
            Answer::Panicked(text) => {
                assert!(how == How::Lock && text.starts_with(DEADLOCK), "{text}");
                self.seen.deadlocks += 1;
                assert!(self.waits_in_a_circle(worker), "G2: no deadlock, {:?}\n{text}", self.held);
            }
            Answer::Done | Answer::By(..) => unreachable!("it names no request, or is taken apart"),
        }
        Some((worker, Some(id)))
    }

    // -- judging --

    /// Lets the blocked requests come to rest, and checks that they have a reason to wait.
    fn settle(&mut self) {
        let began = Instant::now();
        loop {
            while self.hear_one(Duration::ZERO).is_some() {}
            if self.is_settled() {
                break;
            }
            assert!(
                began.elapsed() < FOR_EVER,
                "somebody waits for no reason, or holds what is not granted: {:?}\n{}",
                self.held,
                self.lock.snapshot()
            );
            thread::yield_now();
        }
        for (granted, met) in self.met.iter().filter(|(id, _)| self.held.holders.contains_key(id)) {
            let overtaken = met.iter().find(|id| self.held.waiters.contains_key(id));
            assert_eq!(overtaken, None, "G3: {granted:?} has overtaken it, {:?}", self.held);
        }
        for worker in self.idle() {
            self.asked[worker] = None;
        }
    }

    fn is_settled(&mut self) -> bool {
        let snapshot = self.lock.snapshot();
        let told = |holder: &Holder| {
            let roots = |writes: bool| {
                let some = holder.roots.iter().filter(|root| (root.mode == Mode::Exclusive) == writes);
                let mut ways: Vec<Way> = some.map(|root| way(&root.segments)).collect();
                ways.sort();
                ways
            };
            // As a snapshot shows it: each root once, and none that lies in another.
            (holder.thread.clone(), Request { reads: roots(false), writes: roots(true) })
        };
        let mut holders: Vec<_> = snapshot.holders.iter().map(told).collect();
        let mut expected: Vec<_> =
            self.held.holders.values().map(|holder| (name(holder.thread), holder.request.normalized())).collect();
        let key =
            |(thread, request): &(String, Request)| (thread.clone(), request.reads.clone(), request.writes.clone());
        holders.sort_by_key(key);
        expected.sort_by_key(key);

        self.waits_at.clear();
        for (&id, waiter) in &self.held.waiters {
            let seen = snapshot.waiters.iter().find(|seen| seen.thread == name(waiter.thread));
            self.waits_at.extend(seen.map(|seen| (id, way(&seen.at.segments))));
        }
        holders == expected
            && snapshot.waiters.len() == self.held.waiters.len()
            && self.waits_at.len() == self.held.waiters.len()
            && self.held.waiters.keys().all(|&id| self.has_a_reason_to_wait(id))
    }

    /// Whether it, or a request behind which it may stand, directly or not, conflicts with a holder.
    fn has_a_reason_to_wait(&self, id: Id) -> bool {
        let mut reached = BTreeSet::from([id]);
        let mut next = vec![id];
        while let Some(at) = next.pop() {
            let waiter = &self.held.waiters[&at];
            if self.held.holders.values().any(|holder| holder.excludes(waiter.owner, &waiter.request)) {
                return true;
            }
            for (&other, ahead) in &self.held.waiters {
                if ahead.excludes(waiter.owner, &waiter.request) && reached.insert(other) {
                    next.push(other);
                }
            }
        }
        false
    }

    /// The waiters that a new request cannot pass: it conflicts with them where they wait, or with what they have on
    /// the way there; or each has one root, and the specification says so. A request whose owner holds up a waiter
    /// may go ahead (conversions), so it meets nobody.
    fn meets(&self, owner: Owner, request: &Request) -> BTreeSet<Id> {
        let mut own = self.held.holders.values().filter(|holder| owner != Owner::Itself && holder.owner == owner);
        let holds_up =
            |own: &Party| self.held.waiters.values().any(|waiter| own.request.conflicts_with(&waiter.request));
        if own.any(holds_up) {
            return BTreeSet::new();
        }
        let cannot_pass = |waiter: &Request, at: &Way| {
            let clash = |ours: &[Way], theirs: &[Way]| {
                let seen_there = |our: &Way, their: &Way| at.contains(their) && (their == at || our.contains(at));
                ours.iter().any(|our| theirs.iter().any(|their| our.overlaps(their) && seen_there(our, their)))
            };
            clash(&request.writes, &waiter.writes)
                || clash(&request.writes, &waiter.reads)
                || clash(&request.reads, &waiter.writes)
        };
        let holds_nothing = !self.held.holders.values().any(|holder| owner != Owner::Itself && holder.owner == owner);
        let goes_before = |waiter: &Request, at: &Way| holds_nothing && waiter.goes_before(at, request);
        let waits = self.waits_at.iter().filter_map(|(id, at)| Some((id, self.held.waiters.get(id)?, at)));
        waits
            .filter(|(_, waiter, at)| cannot_pass(&waiter.request, at) || goes_before(&waiter.request, at))
            .map(|(&id, ..)| id)
            .collect()
    }

    /// Whether the request that `before` waits with, or has just waited with, conflicts with that of `after`, or with
    /// a plain guard of `after`.
    fn may_wait_for(&self, before: usize, after: usize) -> bool {
        let (Some(waits), Some(next)) = (&self.asked[before], &self.asked[after]) else { return false };
        let behind = before != after && waits.request.conflicts_with(&next.request);
        let mut holders = self.held.holders.iter().filter(|(id, _)| **id != next.id);
        // What it pins: its plain guards, and what the owner of its request holds.
        let pins = |owner: Owner| owner == Owner::Thread(after) || (owner != Owner::Itself && owner == next.owner);
        let stopped = holders.any(|(_, holder)| pins(holder.owner) && holder.excludes(waits.owner, &waits.request));
        behind || stopped
    }

    fn waits_in_a_circle(&self, start: usize) -> bool {
        let mut reached = BTreeSet::new();
        let mut next = vec![start];
        while let Some(at) = next.pop() {
            for after in (0..WORKERS).filter(|&after| self.may_wait_for(at, after)) {
                if reached.insert(after) {
                    next.push(after);
                }
            }
        }
        reached.contains(&start)
    }

    /// G2: each party of a report waits for the next, and one of them holds a guard while it asks for more.
    fn judge_deadlock(&self, worker: usize, deadlock: &Deadlock) {
        let parties: Vec<usize> = deadlock.parties.iter().map(|party| number(&party.waits.thread)).collect();
        assert_eq!(parties[0], worker, "the first is the one that is told: {deadlock}");
        for (index, &party) in parties.iter().enumerate() {
            let next = parties[(index + 1) % parties.len()];
            assert!(
                self.may_wait_for(party, next),
                "G2: {party} does not wait for {next}: {deadlock}\n{:?}",
                self.held
            );
        }
        assert!(deadlock.parties.iter().any(|party| !party.holds.is_empty()), "G2: nobody holds a guard: {deadlock}");
    }
}

fn name(worker: usize) -> String {
    format!("worker-{worker}")
}

fn number(name: &str) -> usize {
    name.strip_prefix("worker-").expect("it names a worker").parse().expect("it has a number")
}

fn text(way: &Way) -> String {
    String::from_utf8(way.0.join(&b'/')).expect("it was text")
}

fn way(segments: &[String]) -> Way {
    Way(segments.iter().map(|segment| segment.clone().into_bytes()).collect())
}
