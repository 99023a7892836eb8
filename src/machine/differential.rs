//! An engine that people run against `memory.rs`: the same calls have the same answers, so what the simulations find of the one
//! is so of the other. Each engine has its part of it in its own folder.
//!
//! The two have different clocks, so positions are compared by the entries that stand at them, and times not at all. All sessions
//! live for a day or two, and end when the test says so.

use super::engine::{Call, Engine, Entry, Identity, News, Position, Reply, Says, SessionId};
use super::memory::{Memory, Part};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const DAY: Duration = Duration::from_secs(86_400);

/// Longer than a test takes, in microseconds.
const HOUR: u64 = 3_600_000_000;

#[derive(Clone, Debug)]
enum Step {
    /// It may insist on a time to live, which is one of two.
    Join {
        events: Vec<u8>,
        insists: bool,
        is_long: bool,
    },
    Look(Since),
    /// One of the sessions goes on, from one of the positions that were seen, perhaps with a batch, and with a snapshot of one of
    /// those positions.
    GoOn {
        which: usize,
        /// The key is that of another session.
        is_other: bool,
        is_open: bool,
        renews: bool,
        wants_news: bool,
        since: Since,
        batch: Option<Vec<u8>>,
        snapshot: Option<(usize, Vec<u8>)>,
    },
    Leave(usize),
    Break(usize),
    /// The session's time is over.
    Expire(usize),
    /// An order that is closed is no longer.
    Open,
    Lose(Part),
}

#[derive(Clone, Copy, Debug)]
enum Since {
    /// Such a number of entries before the last that was seen.
    Before(usize),
    /// Where nothing is.
    Beyond,
    Zero,
}

fn steps(parts: &'static [Part]) -> impl Strategy<Value = Vec<Step>> {
    let bytes = || proptest::collection::vec(any::<u8>(), 1..4);
    let which = || 0..5usize;
    let since = || {
        prop_oneof![
            20 => Just(Since::Before(0)),
            8 => (1..12usize).prop_map(Since::Before),
            1 => Just(Since::Beyond),
            2 => Just(Since::Zero),
        ]
    };
    let snapshot = proptest::option::weighted(0.15, (0..8usize, bytes()));
    let go_on = (
        which(),
        prop::bool::weighted(0.05),
        prop::bool::weighted(0.7),
        any::<bool>(),
        prop::bool::weighted(0.7),
        since(),
        proptest::option::of(bytes()),
        snapshot,
    );
    let step = prop_oneof![
        6 => (bytes(), prop::bool::weighted(0.3), any::<bool>())
            .prop_map(|(events, insists, is_long)| Step::Join { events, insists, is_long }),
        2 => since().prop_map(Step::Look),
        30 => go_on.prop_map(|(which, is_other, is_open, renews, wants_news, since, batch, snapshot)| Step::GoOn { which, is_other, is_open, renews, wants_news, since, batch, snapshot }),
        2 => which().prop_map(Step::Leave),
        1 => which().prop_map(Step::Break),
        3 => which().prop_map(Step::Expire),
        4 => Just(Step::Open),
        1 => prop::sample::select(parts).prop_map(Step::Lose),
    ];
    proptest::collection::vec(step, 0..60)
}

/// A namespace of an engine that people run, and what is done to it there.
pub(super) trait Real {
    /// What it can lose and still take a batch, or not, as the one for tests does. What else it loses is a test of its own.
    const PARTS: &'static [Part];

    fn engine(&self) -> &dyn Engine;

    /// Has a session end, and the time for which a new order is closed.
    fn end_session(&mut self, session: &SessionId);
    fn open(&mut self);

    /// Loses something, so that an order which begins anew gives no position again.
    fn lose(&mut self, part: Part);
}

/// Both engines, and what is known of them.
struct Pair<R> {
    real: R,
    memory: Memory,
    now: u64,
    time_to_live: Duration,
    identities: u64,
    sessions: Vec<SessionId>,
    /// Where the same entry stands in the one and in the other.
    same: BTreeMap<Position, Position>,
    kinds: BTreeMap<&'static str, u64>,
}

impl<R: Real> Pair<R> {
    /// A position that was seen, in both.
    fn back(&self, back: usize) -> Option<(Position, Position)> {
        self.same.iter().rev().nth(back).map(|(&real, &memory)| (real, memory))
    }

    fn at(&self, since: Since) -> (Position, Position) {
        match since {
            Since::Before(back) => self.back(back).unwrap_or_default(),
            Since::Beyond => {
                let (real, memory) = self.back(0).unwrap_or_default();
                (Position(real.0 / 1000 * 1000 + HOUR), Position(memory.0 + HOUR))
            }
            Since::Zero => Default::default(),
        }
    }

    fn step(&mut self, step: Step) {
        self.now += 1000;
        let session = |which: usize, of: &Self| of.sessions.iter().rev().nth(which).copied();
        match step {
            Step::Join { events, insists, is_long } => {
                self.time_to_live = if is_long { 2 * DAY } else { DAY };
                self.compare(|_| Says::Joins { events: events.clone(), insists });
            }
            Step::Look(since) => {
                let (real, memory) = self.at(since);
                self.compare(|is_real| Says::Looks { since: if is_real { real } else { memory } });
            }
            Step::GoOn { which, is_other, is_open, renews, wants_news, since, batch, snapshot } => {
                let Some(session) = session(which, self) else { return };
                let key = if is_other { !session.key } else { session.key };
                let session = SessionId { key, ..session };
                let since = self.at(since);
                let snapshot = snapshot.and_then(|(back, bytes)| Some((self.back(back)?, bytes)));
                self.compare(|is_real| {
                    let of = |(real, memory): (Position, Position)| if is_real { real } else { memory };
                    let snapshot = snapshot.clone().map(|(position, bytes)| (of(position), bytes));
                    Says::GoesOn {
                        session,
                        since: of(since),
                        is_open,
                        renews,
                        wants_news,
                        batch: batch.clone(),
                        snapshot,
                    }
                });
            }
            Step::Leave(which) => {
                let Some(session) = session(which, self) else { return };
                self.compare(|_| Says::Leaves { session });
            }
            Step::Break(which) => {
                let Some(SessionId { identity, .. }) = session(which, self) else { return };
                self.compare(|_| Says::Breaks { identity });
            }
            Step::Expire(which) => {
                let Some(session) = session(which, self) else { return };
                self.real.end_session(&session);
                self.memory.end_session(&session, 1);
            }
            Step::Open => {
                if self.memory.open() {
                    self.real.open();
                }
            }
            Step::Lose(part) => {
                self.memory.lose(part);
                self.real.lose(part);
            }
        }
    }

    fn compare(&mut self, says: impl Fn(bool) -> Says) {
        self.identities += 1;
        let fresh = Identity([self.identities << 32, 7]);
        let call = |is_real| Call { fresh, time_to_live: self.time_to_live, says: says(is_real) };
        let real = self.real.engine().exchange(&call(true), Instant::now() + Duration::from_secs(20)).unwrap();
        let memory = self.memory.exchange(self.now, &call(false));
        let kind = match (real, memory) {
            (Reply::News(real), Reply::News(memory)) => {
                assert_eq!((real.session, real.time_to_live), (memory.session, memory.time_to_live));
                let is_one = real.session != SessionId::nobody(real.session.identity);
                if is_one && !self.sessions.contains(&real.session) {
                    self.sessions.push(real.session);
                }
                assert_eq!(real.kept, memory.kept);
                let is_closed = |news: &News| news.closed.map(|rest| !rest.is_zero());
                assert_eq!(is_closed(&real), is_closed(&memory));
                let kind = if is_closed(&real) == Some(true) { "closed" } else { "news" };
                let told = |entries: &[Entry]| {
                    entries.iter().map(|entry| (entry.member, entry.events.clone())).collect::<Vec<_>>()
                };
                assert_eq!(told(&real.entries), told(&memory.entries));
                let position = |entry: &Entry| entry.position;
                let mut pairs: Vec<(Position, Position)> =
                    real.entries.iter().map(position).zip(memory.entries.iter().map(position)).collect();
                // The short way only tells whether there is more.
                if real.kept.is_some() {
                    pairs.push((real.head, memory.head));
                }
                match (real.snapshot, memory.snapshot) {
                    (None, None) => {}
                    (Some((at, bytes)), Some((at_memory, bytes_memory))) => {
                        assert_eq!(bytes, bytes_memory);
                        pairs.push((at, at_memory));
                    }
                    (real, memory) => panic!("{real:?}, and in memory {memory:?}"),
                }
                for (real, memory) in pairs {
                    let known = *self.same.entry(real).or_insert(memory);
                    assert_eq!(known, memory, "the entry at {real:?} stood elsewhere before");
                }
                kind
            }
            (Reply::Written, Reply::Written) => "written",
            (Reply::Expired, Reply::Expired) => "expired",
            (Reply::OrderLost, Reply::OrderLost) => "lost",
            (Reply::NoOrder, Reply::NoOrder) => "none",
            (Reply::OtherTimeToLive(real), Reply::OtherTimeToLive(memory)) => {
                assert_eq!(real, memory);
                "other time to live"
            }
            (real, memory) => panic!("{real:?}, and in memory {memory:?}"),
        };
        *self.kinds.entry(kind).or_default() += 1;
    }
}

/// All eight rules of `engine.rs`, in namespaces that are numbered.
pub(super) fn compare<R: Real>(begin: impl Fn(u64) -> R) {
    let cases = std::env::var("COMPARISONS").ok().and_then(|cases| cases.parse().ok()).unwrap_or(200);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let namespaces = std::cell::Cell::new(0);
    let kinds = std::cell::RefCell::new(BTreeMap::<&str, u64>::new());
    let run = proptest::test_runner::TestRunner::new(config).run(&steps(R::PARTS), |steps| {
        namespaces.set(namespaces.get() + 1);
        let mut pair = Pair {
            real: begin(namespaces.get()),
            memory: Memory::default(),
            now: 1_000_000,
            time_to_live: DAY,
            identities: 0,
            sessions: Vec::new(),
            same: BTreeMap::new(),
            kinds: BTreeMap::new(),
        };
        steps.into_iter().for_each(|step| pair.step(step));
        pair.kinds.into_iter().for_each(|(kind, count)| *kinds.borrow_mut().entry(kind).or_default() += count);
        Ok(())
    });
    run.unwrap_or_else(|error| panic!("{error}"));
    let kinds = kinds.into_inner();
    println!("{kinds:?}");
    assert_eq!(
        kinds.into_keys().collect::<Vec<_>>(),
        ["closed", "expired", "lost", "news", "none", "other time to live", "written"],
        "each was seen"
    );
}
