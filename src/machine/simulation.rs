//! Histories of several clients and one engine, in virtual time: every delay, loss and repetition is drawn, and none is waited for.
//!
//! Each client is a `Session` and a `Lease`, as they are shipped, and does what `client.rs` does with an answer, without its threads.
//! The engine is that of `memory.rs` here; another one is one more [`Service`]. The clocks of the clients run slower or faster than that of the engine, by nearly as much
//! as the margin allows. A call may come late, after a later one of the same client, or not at all, and so may its answer. A
//! client that is not drawn for a while is one that was stopped.
//!
//! The judge decides by the plain overlap of paths (`model/spec.rs`), in the time of the engine:
//!
//! 1. A grant lasts from its entry to the entry of its release, or to the end of the lease by its client's own clock, whichever
//!    comes first. Two grants of different owners that conflict never last at the same time (M1, M2). Where a lagging copy was
//!    promoted meanwhile, this is so from the moment at which the client of the earlier one has been renewed by that copy.
//! 2. Of two grants that conflict the later one has the higher fence, whatever was lost (M3).
//! 3. What a client wrote twice counts once, and what is written for a member that has left, or in an order that is not its own,
//!    counts for nothing (M4).
//! 4. All replicas that stand at one position of one order agree, hold nothing that conflicts, and let nobody wait who may go on.
//! 5. When the faults are over every request is granted, refused, or told of a deadlock, and at last nothing is left (M5).
//! 6. A lease that was not valid at one moment is not valid at a later one.

use super::engine::{Call, Entry, Identity, News, Position, Reply, Says, SessionId};
use super::lease::Lease;
use super::memory::{Memory, Part};
use super::session::{Ended, Outcome, Session};
use crate::core::mode::Mode;
use crate::core::node_id::Seeds;
use crate::core::owner::Owner;
use crate::replica::ask::Asking;
use crate::replica::judge::spec::Request;
use crate::replica::{About, Event, Replica, RequestId};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::Location;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// In microseconds of the engine.
const TIME_TO_LIVE: u64 = 1_000_000;
const MARGIN: u64 = TIME_TO_LIVE / 20;

pub(super) const CLIENTS: usize = 4;

/// What keeps the order in a history, and its part in each client.
pub(super) trait Service: Default {
    /// A call that is under way.
    type Letter;

    /// What stays where it is copied from.
    type Copy: Clone;

    /// How far a client's clock comes while that of the history comes to a thousand.
    const RATES: [u64; CLIENTS];

    /// What may be lost without that two are let in.
    const PARTS: &[Part];

    /// For how much longer a step of a call is drawn than a call.
    const STEPS: u32;

    /// Whether a client notices with its next renewal that an older copy has taken the place of what it knows. If not, fences are judged alone.
    const NOTICES_AT_ONCE: bool;

    /// How often what is drawn comes about, that a test of its own counts.
    const REACHED: usize;

    fn send(&mut self, client: usize, now: u64, call: &Call) -> Self::Letter;

    /// The next thing that a call does.
    fn arrive(&mut self, now: u64, call: &Call, letter: &mut Self::Letter) -> Arrived;

    /// The client waits no longer, and what is under way may arrive at any time.
    fn give_up(&mut self, letter: &mut Self::Letter);

    /// The client's process ends.
    fn die(&mut self, client: usize);

    /// Something that has arrived comes once more.
    fn repeat(&mut self, now: u64, which: usize);

    fn lose(&mut self, part: Part);
    fn copy(&self) -> Self::Copy;
    fn promote(&mut self, copy: Self::Copy);

    /// The entries that are there, and whether those before them are; what was told before may be left out.
    fn written(&mut self) -> Vec<(Identity, Entry, bool)>;
}

/// What has become of a call.
#[cfg_attr(not(feature = "items"), allow(dead_code, reason = "the other engine answers at once"))]
pub(super) enum Arrived {
    OnItsWay,
    /// And when it was given.
    Answered(Reply, u64),
    /// Nobody waits for an answer.
    Over,
}

impl Service for Memory {
    type Letter = ();
    type Copy = Memory;

    const RATES: [u64; CLIENTS] = [952, 1000, 1049, 953];
    const PARTS: &[Part] = &[Part::All, Part::Meta, Part::Log, Part::Live, Part::Snap, Part::Oldest];
    const STEPS: u32 = 1;
    const NOTICES_AT_ONCE: bool = true;
    const REACHED: usize = 14;

    fn send(&mut self, _: usize, _: u64, _: &Call) {}

    fn arrive(&mut self, now: u64, call: &Call, (): &mut ()) -> Arrived {
        Arrived::Answered(self.exchange(now, call), now)
    }

    fn give_up(&mut self, (): &mut ()) {}

    fn die(&mut self, _: usize) {}

    fn repeat(&mut self, _: u64, _: usize) {}

    fn lose(&mut self, part: Part) {
        Memory::lose(self, part);
    }

    fn copy(&self) -> Memory {
        self.clone()
    }

    fn promote(&mut self, copy: Memory) {
        *self = copy;
    }

    fn written(&mut self) -> Vec<(Identity, Entry, bool)> {
        let entries = self.entries(std::ops::Bound::Unbounded);
        self.identity().map_or(Vec::new(), |identity| entries.map(|entry| (identity, entry, true)).collect())
    }
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Ask {
        client: usize,
        thread: u64,
        owner: Owner,
        is_try: bool,
        reads: Vec<&'static str>,
        writes: Vec<&'static str>,
    },
    /// Releases a guard, or gives up a request.
    LetGo(usize, usize),
    Downgrade(usize, usize),
    /// Sends, and has the answer at once.
    Exchange(usize),
    Send(usize),
    /// One of the calls of the client that are under way comes to the engine.
    Arrive(usize, usize),
    Hear(usize),
    /// One of the calls that are under way, or its answer, is lost.
    Drop(usize, usize),
    /// The client looks at its clock.
    Look(usize),
    /// The same, with so much time before the call arrives, and before the answer does.
    ExchangeLate(usize, u64, u64),
    /// Some clients go on for a time, and the others are stopped.
    GoOn(u8, u64),
    /// The client's process ends, and another one begins.
    Die(usize),
    Wait(u64),
    Lose(Part),
    /// The server is copied.
    Copy,
    /// A copy is promoted.
    Promote(usize),
    /// Something that has arrived comes once more.
    Repeat(usize),
}

pub(super) fn steps<S: Service>(is_copied: bool) -> impl Strategy<Value = Vec<Step>> {
    let paths = || proptest::collection::vec(prop::sample::select(vec!["", "a", "a/b", "a/c", "d"]), 0..3);
    let owner = prop_oneof![4 => Just(Owner::Thread), 1 => Just(Owner::Itself)];
    let client = || 0..CLIENTS;
    let ask = (client(), 0..2u64, owner, prop::bool::weighted(0.3), paths(), paths());
    let ask = ask.prop_map(|(client, thread, owner, is_try, reads, writes)| Step::Ask {
        client,
        thread,
        owner,
        is_try,
        reads,
        writes,
    });
    let part = prop::sample::select(S::PARTS.to_vec());
    let step = prop_oneof![
        20 => ask,
        12 => (client(), 0..6usize).prop_map(|(client, which)| Step::LetGo(client, which)),
        3 => (client(), 0..6usize).prop_map(|(client, which)| Step::Downgrade(client, which)),
        30 => client().prop_map(Step::Exchange),
        10 => client().prop_map(Step::Send),
        10 * S::STEPS => (client(), 0..3usize).prop_map(|(client, which)| Step::Arrive(client, which)),
        10 => client().prop_map(Step::Hear),
        3 => (client(), 0..3usize).prop_map(|(client, which)| Step::Drop(client, which)),
        3 => client().prop_map(Step::Look),
        1 => client().prop_map(Step::Die),
        4 => (client(), 0..TIME_TO_LIVE / 4, 0..TIME_TO_LIVE / 2)
            .prop_map(|(client, before, after)| Step::ExchangeLate(client, before, after)),
        12 => (1..16u8, 0..TIME_TO_LIVE * 3 / 2).prop_map(|(who, time)| Step::GoOn(who, time)),
        12 => (1..TIME_TO_LIVE / 5).prop_map(Step::Wait),
        2 => (TIME_TO_LIVE / 2..TIME_TO_LIVE * 2).prop_map(Step::Wait),
        1 => part.prop_map(Step::Lose),
    ];
    let copied = prop_oneof![2 => Just(Step::Copy), 1 => (0..4usize).prop_map(Step::Promote)];
    let step = if is_copied { prop_oneof![40 => step, 1 => copied].boxed() } else { step.boxed() };
    let repeated = (0..8usize).prop_map(Step::Repeat);
    let step = if S::STEPS > 1 { prop_oneof![40 => step, 1 => repeated].boxed() } else { step };
    proptest::collection::vec(step, 0..120 * S::STEPS.min(3) as usize)
}

/// What a thread asked for.
#[derive(Clone, Debug)]
struct Wish {
    thread: u64,
    owner: Owner,
    is_try: bool,
    reads: Vec<&'static str>,
    writes: Vec<&'static str>,
}

/// A wish that is asked for in a session.
#[derive(Debug)]
struct Asked {
    id: RequestId,
    wish: Wish,
    /// By its place among all grants.
    granted: Option<usize>,
}

/// A call that is under way, or its answer.
struct Letter<L> {
    number: u64,
    sent: u64,
    generation: u64,
    call: Call,
    under_way: L,
    /// And when it was given.
    reply: Option<(Reply, u64)>,
}

struct Client<L> {
    rate: u64,
    about: About,
    generation: u64,
    /// With its place among all sessions.
    session: Option<(Session, usize)>,
    asking: Option<Asking>,
    asked: Vec<Asked>,
    wishes: Vec<Wish>,
    letters: Vec<Letter<L>>,
    /// The letter whose answer the client waits for.
    awaited: Option<u64>,
    opens: Option<u64>,
    /// When the last call was sent that renewed the session, and when the first of all sessions ends.
    renewed: u64,
    first_end: u64,
    leaving: Vec<SessionId>,
    broken: Option<Identity>,
}

/// A session that there was.
struct Lived {
    lease: Lease,
    /// Of its client's clock.
    rate: u64,
    /// When its client gave it up.
    lost: Option<u64>,
    was_invalid: bool,
    /// The news by which it was renewed: when they were given, and heard.
    told: Vec<(u64, u64)>,
}

/// The thread that owns a request, and what it asks for.
type Known = (Option<u64>, Request);

/// A grant that a client has learned of.
#[derive(Debug)]
struct Grant {
    owner: (usize, Option<u64>),
    request: Request,
    session: usize,
    id: (Identity, RequestId),
    fence: Position,
    /// When its entry was written.
    time: u64,
}

/// What was written in an engine, and its copies have with it.
#[derive(Clone, Default)]
struct Noted {
    /// The requests that were asked for.
    once: HashSet<(Identity, RequestId)>,
    /// The batches that counted, by their member, key and number.
    counted: HashSet<(Identity, u64, u64, u64)>,
    /// The sessions that have left, by member and key.
    left: HashSet<(Identity, u64, u64)>,
}

pub(super) struct World<S: Service> {
    now: u64,
    base: Instant,
    pub(super) service: S,
    copies: Vec<(S::Copy, Noted)>,
    promoted: Vec<u64>,
    /// When the first entry was lost without a trace.
    torn: Option<u64>,
    snapshots_lost: u32,
    letters: u64,
    clients: Vec<Client<S::Letter>>,
    sessions: Vec<Lived>,
    grants: Vec<Grant>,
    /// When the entries were written.
    written: HashMap<(Identity, Position), u64>,
    noted: Noted,
    /// The requests that were seen to wait.
    waited: HashSet<(Identity, RequestId)>,
    /// The batches that came to the engine, by their member, key and number.
    arrived: HashSet<(Identity, u64, u64, u64)>,
    /// When entries released a request, or turned its writes into reads. After a promotion two requests can have one name.
    released: HashMap<(Identity, RequestId), Vec<u64>>,
    downgraded: HashMap<(Identity, RequestId), Vec<u64>>,
    /// With the thread that owns it; nothing, where two have one name.
    requests: HashMap<(Identity, RequestId), Option<Known>>,
    replicas: HashMap<(Identity, Position), Seen>,
    identities: u64,
    /// How often what is to be judged came about.
    pub(super) reached: BTreeMap<&'static str, u64>,
}

/// Of each request, how many of its steps it has taken, whether it is granted, and its modes.
pub(super) type Seen = Vec<(RequestId, usize, bool, Vec<Mode>)>;

/// What can be seen of a replica.
pub(super) fn seen(replica: &Replica) -> Seen {
    let requests = replica.requests.values();
    let seen = requests.map(|request| {
        let modes = request.ask.steps.iter().map(|step| step.mode).collect();
        (request.ask.id, request.progress.taken, request.is_granted(), modes)
    });
    seen.collect()
}

/// What moments are counted from. Any one will do, and all histories of one program have the same.
pub(super) fn base() -> Instant {
    static BASE: OnceLock<Instant> = OnceLock::new();
    *BASE.get_or_init(Instant::now)
}

impl<S: Service> World<S> {
    fn new() -> Self {
        let client = |index: usize| Client {
            rate: S::RATES[index],
            about: About { lifeline: 0, id: index as u32, command: String::new(), user: String::new() },
            generation: 0,
            session: None,
            asking: None,
            asked: Vec::new(),
            wishes: Vec::new(),
            letters: Vec::new(),
            awaited: None,
            opens: None,
            renewed: 0,
            first_end: 0,
            leaving: Vec::new(),
            broken: None,
        };
        World {
            now: 10 * TIME_TO_LIVE,
            base: base(),
            service: S::default(),
            copies: Vec::new(),
            promoted: Vec::new(),
            torn: None,
            snapshots_lost: 0,
            letters: 0,
            clients: (0..CLIENTS).map(client).collect(),
            sessions: Vec::new(),
            grants: Vec::new(),
            written: HashMap::new(),
            noted: Noted::default(),
            waited: HashSet::new(),
            arrived: HashSet::new(),
            released: HashMap::new(),
            downgraded: HashMap::new(),
            requests: HashMap::new(),
            replicas: HashMap::new(),
            identities: 0,
            reached: BTreeMap::new(),
        }
    }

    fn reach(&mut self, what: &'static str) {
        *self.reached.entry(what).or_default() += 1;
    }

    /// The clock of a client.
    fn clock(&self, client: usize) -> u64 {
        self.now * self.clients[client].rate / 1000
    }

    fn instant(&self, micros: u64) -> Instant {
        self.base + Duration::from_micros(micros)
    }

    fn step(&mut self, step: Step) {
        // Nothing happens at the same moment.
        self.now += 50;
        match step {
            Step::Ask { client, thread, owner, is_try, reads, writes } => {
                let is_busy = |wish: &Wish| wish.thread == thread;
                let this = &mut self.clients[client];
                let waits = this.asked.iter().any(|asked| asked.granted.is_none() && is_busy(&asked.wish));
                if !waits && !this.wishes.iter().any(is_busy) && this.asked.len() < 6 {
                    this.wishes.push(Wish { thread, owner, is_try, reads, writes });
                    self.ask(client);
                }
            }
            Step::LetGo(client, which) => {
                let this = &mut self.clients[client];
                // A thread that waits drops nothing.
                let runs: Vec<u64> =
                    this.asked.iter().filter(|asked| asked.granted.is_some()).map(|asked| asked.id.number).collect();
                let waits =
                    |thread| this.asked.iter().any(|asked| asked.granted.is_none() && asked.wish.thread == thread);
                let Some(asked) = this.asked.get(which) else { return };
                if runs.contains(&asked.id.number) && asked.wish.owner == Owner::Thread && waits(asked.wish.thread) {
                    return;
                }
                let asked = this.asked.remove(which);
                if let Some((session, _)) = &mut this.session {
                    session.withdraw(asked.id);
                }
            }
            Step::Downgrade(client, which) => {
                let this = &mut self.clients[client];
                let waits =
                    |thread| this.asked.iter().any(|asked| asked.granted.is_none() && asked.wish.thread == thread);
                let granted =
                    this.asked.get(which).filter(|asked| asked.granted.is_some() && !waits(asked.wish.thread));
                if let (Some(asked), Some((session, _))) = (granted, &mut this.session) {
                    session.downgrade(asked.id);
                }
            }
            Step::Exchange(client) => self.exchange(client),
            Step::Send(client) => self.send(client),
            Step::Arrive(client, which) => self.arrive(client, which),
            Step::Hear(client) => self.hear(client),
            Step::Drop(client, which) => {
                let this = &mut self.clients[client];
                if which < this.letters.len() {
                    let mut letter = this.letters.remove(which);
                    self.service.give_up(&mut letter.under_way);
                    this.awaited = this.awaited.filter(|&awaited| awaited != letter.number);
                }
            }
            Step::Look(client) => self.look(client),
            Step::ExchangeLate(client, before, after) => {
                self.send(client);
                self.now += before;
                self.arrive(client, usize::MAX);
                self.now += after;
                self.arrive_wholly(client);
                self.hear(client);
            }
            Step::GoOn(who, time) => {
                for _ in 0..8 {
                    self.now += time / 8;
                    (0..CLIENTS).filter(|client| who & (1 << client) != 0).for_each(|client| self.exchange(client));
                }
            }
            Step::Die(client) => {
                self.lose(client);
                self.give_up(client);
                self.service.die(client);
                let this = &mut self.clients[client];
                this.wishes.clear();
                this.leaving.clear();
                (this.awaited, this.broken) = (None, None);
            }
            Step::Wait(time) => self.now += time,
            Step::Lose(part) => {
                if !S::PARTS.contains(&part) {
                    self.torn = self.torn.or(Some(self.now));
                }
                self.snapshots_lost += u32::from(part == Part::Snap);
                self.service.lose(part);
            }
            Step::Repeat(which) => {
                self.service.repeat(self.now, which);
                self.note();
            }
            Step::Copy => self.copies.push((self.service.copy(), self.noted.clone())),
            Step::Promote(which) => {
                if let Some(copy) = self.copies.iter().rev().nth(which) {
                    let (copy, noted) = copy.clone();
                    self.service.promote(copy);
                    self.noted = noted;
                    self.promoted.push(self.now);
                }
            }
        }
        for (index, lived) in self.sessions.iter_mut().enumerate() {
            if let Some(client) =
                self.clients.iter().find(|client| client.session.as_ref().is_some_and(|(_, of)| *of == index))
            {
                let clock = self.base + Duration::from_micros(self.now * client.rate / 1000);
                let is_valid = lived.lease.is_valid_at(clock);
                assert!(!(is_valid && lived.was_invalid), "a lease that has ended came back");
                lived.was_invalid = !is_valid;
            }
        }
    }

    /// Asks for all that a client wishes, in the session that it has.
    fn ask(&mut self, client: usize) {
        let this = &mut self.clients[client];
        let (Some((session, _)), Some(asking)) = (&mut this.session, &this.asking) else { return };
        for wish in this.wishes.drain(..) {
            let (owner, here) = (wish.owner, Location::caller());
            let mut ask = asking.plan::<str, _, _>(&wish.reads, &wish.writes, owner, here).unwrap();
            ask.thread = wish.thread;
            let id = session.ask(ask, wish.is_try);
            let request = Request::of_text(&wish.reads, &wish.writes);
            let thread = (owner == Owner::Thread).then_some(wish.thread);
            let known = self.requests.entry((session.id().identity, id));
            known.and_modify(|known| *known = None).or_insert(Some((thread, request)));
            this.asked.push(Asked { id, wish, granted: None });
        }
    }

    /// As the client's keeper does.
    fn look(&mut self, client: usize) {
        let clock = self.instant(self.clock(client));
        let is_over = |(_, place): &(Session, usize)| !self.sessions[*place].lease.is_valid_at(clock);
        if self.clients[client].session.as_ref().is_some_and(is_over) {
            self.leave(client);
            self.lose(client);
        }
    }

    fn leave(&mut self, client: usize) {
        let this = &mut self.clients[client];
        this.leaving.extend(this.session.as_ref().map(|(session, _)| session.id()));
    }

    fn lose(&mut self, client: usize) {
        let now = self.now;
        let this = &mut self.clients[client];
        this.generation += 1;
        this.opens = None;
        let Some((_, place)) = this.session.take() else { return };
        self.sessions[place].lost = Some(now);
        // Requests that wait ask again in the next session; guards are lost.
        let waiting = this.asked.drain(..).filter(|asked| asked.granted.is_none());
        this.wishes.extend(waiting.map(|asked| asked.wish));
    }

    /// A call whose answer is awaited.
    fn give_up(&mut self, client: usize) {
        let this = &mut self.clients[client];
        let awaited = this.letters.iter_mut().find(|letter| Some(letter.number) == this.awaited);
        if let Some(letter) = awaited.filter(|letter| letter.reply.is_none()) {
            self.service.give_up(&mut letter.under_way);
        }
        this.awaited = None;
    }

    fn send(&mut self, client: usize) {
        self.give_up(client);
        let clock = self.clock(client);
        self.letters += 1;
        self.identities += 1;
        let fresh = Identity([self.identities << 32, 7]);
        let this = &mut self.clients[client];
        let takes_batches = this.opens.is_none_or(|opens| opens <= clock);
        let says = if let Some(identity) = this.broken {
            Says::Breaks { identity }
        } else if let Some(&session) = this.leaving.first() {
            Says::Leaves { session }
        } else {
            match &mut this.session {
                Some((session, _)) => {
                    let renews = clock >= this.renewed + TIME_TO_LIVE / 3 || clock >= this.first_end;
                    session.call(takes_batches, renews)
                }
                None => Session::join(this.about.clone(), true),
            }
        };
        let call = Call { fresh, time_to_live: Duration::from_micros(TIME_TO_LIVE), says };
        // What was sent before is given up, and may arrive all the same.
        this.awaited = Some(self.letters);
        this.letters.push(Letter {
            number: self.letters,
            sent: clock,
            generation: this.generation,
            under_way: self.service.send(client, self.now, &call),
            call,
            reply: None,
        });
        if this.letters.len() > 4 {
            this.letters.remove(0);
        }
    }

    fn arrive(&mut self, client: usize, which: usize) {
        let mut under_way =
            self.clients[client].letters.iter().enumerate().filter(|(_, letter)| letter.reply.is_none());
        let Some((index, _)) = under_way.clone().nth(which).or(under_way.next_back()) else { return };
        let Letter { call, under_way, .. } = &mut self.clients[client].letters[index];
        let arrived = self.service.arrive(self.now, call, under_way);
        let joins = matches!(call.says, Says::Joins { .. });
        let batch = match &call.says {
            Says::GoesOn { session, batch: Some(batch), .. } => {
                let (number, _) = postcard::take_from_bytes::<u64>(batch).unwrap();
                Some((session.identity, session.member, session.key, number))
            }
            _ => None,
        };
        let (reply, given) = match arrived {
            Arrived::Answered(reply, given) => (reply, given),
            Arrived::OnItsWay => return self.note(),
            Arrived::Over => {
                self.clients[client].letters.remove(index);
                return self.note();
            }
        };
        if batch.is_some_and(|batch| !self.arrived.insert(batch)) {
            self.reach("a batch that arrives again");
        }
        self.reach(match &reply {
            Reply::News(News { closed: Some(rest), .. }) if batch.is_some() && !rest.is_zero() => "a closed order",
            Reply::News(news) if news.snapshot.is_some() && !joins => "a snapshot",
            Reply::News(news) if news.first_end.is_none() => "news without a renewal",
            Reply::News(_) => "news with a renewal",
            Reply::Written => "no news",
            Reply::Expired => "a session that is over",
            Reply::OrderLost => "an order that is lost",
            Reply::OtherFormat(_) | Reply::NoOrder | Reply::OtherTimeToLive(_) => {
                unreachable!("there is one format and one time to live")
            }
        });
        self.note();
        let this = &mut self.clients[client];
        if this.awaited == Some(this.letters[index].number) {
            this.letters[index].reply = Some((reply, given));
        } else {
            this.letters.remove(index);
        }
    }

    /// Notes what the engine has written.
    fn note(&mut self) {
        // In an order that is not whole, and that somebody breaks, it does no harm.
        let may_diverge = self.torn.is_some() || (!S::NOTICES_AT_ONCE && !self.promoted.is_empty());
        for (identity, Entry { position, member, key, events }, is_whole) in self.service.written() {
            if self.written.contains_key(&(identity, position)) || member == u64::MAX {
                continue;
            }
            self.written.insert((identity, position), self.now);
            if !is_whole {
                continue;
            }
            let author = (identity, member, key);
            if events.is_empty() {
                assert!(self.noted.left.insert(author) || may_diverge, "a member leaves twice");
                continue;
            }
            let (number, events): (u64, Vec<Event>) = postcard::from_bytes(&events).unwrap();
            let has_joined = number == 0 || self.noted.counted.contains(&(identity, member, key, 0));
            if !has_joined || self.noted.left.contains(&author) {
                *self.reached.entry("a batch of one that has left, or of another order").or_default() += 1;
                continue;
            }
            if !self.noted.counted.insert((identity, member, key, number)) {
                *self.reached.entry("a batch that is written again").or_default() += 1;
                continue;
            }
            for event in events {
                match event {
                    Event::Ask(ask) | Event::Try(ask) => {
                        let is_first = self.noted.once.insert((identity, ask.id));
                        assert!(is_first || may_diverge, "{:?} is written twice", ask.id);
                    }
                    Event::Withdraw(id, _) => self.released.entry((identity, id)).or_default().push(self.now),
                    Event::Downgrade(id, _) => self.downgraded.entry((identity, id)).or_default().push(self.now),
                    Event::Join(_) | Event::Leave(..) | Event::Begin(_) | Event::Next(_) => {}
                }
            }
        }
    }

    fn exchange(&mut self, client: usize) {
        self.send(client);
        self.now += 100;
        self.arrive_wholly(client);
        if self.clients[client].awaited.is_some() {
            self.now += 100;
            self.hear(client);
        }
    }

    /// All that is left of the call that the client waits for.
    fn arrive_wholly(&mut self, client: usize) {
        loop {
            let this = &self.clients[client];
            let under_way = this.letters.iter().filter(|letter| letter.reply.is_none());
            let Some(last) = under_way.enumerate().last() else { return };
            let (which, number) = (last.0, last.1.number);
            if this.awaited != Some(number) {
                return;
            }
            self.arrive(client, which);
            self.now += u64::from(S::STEPS > 1) * 10;
        }
    }

    /// As `client.rs` does it.
    fn hear(&mut self, client: usize) {
        let clock = self.clock(client);
        let this = &mut self.clients[client];
        let is_it = |letter: &Letter<S::Letter>| Some(letter.number) == this.awaited && letter.reply.is_some();
        let Some(index) = this.letters.iter().position(is_it) else { return };
        let letter = this.letters.remove(index);
        this.awaited = None;
        let (reply, given) = letter.reply.expect("it has one");
        match letter.call.says {
            Says::Leaves { session } => this.leaving.retain(|leaving| *leaving != session),
            Says::Breaks { .. } => this.broken = None,
            Says::Looks { .. } => unreachable!("it has a session"),
            says if this.generation != letter.generation => {
                if let (Says::Joins { .. }, Reply::News(news)) = (says, reply) {
                    this.leaving.push(news.session);
                }
            }
            Says::Joins { .. } | Says::GoesOn { .. } => match reply {
                Reply::News(news) => {
                    let closed = news.closed.map_or(0, |rest| rest.as_micros() as u64);
                    if closed > 0 {
                        this.opens = Some(clock + closed);
                        let tries = this.asked.iter().filter(|asked| asked.wish.is_try).map(|asked| asked.id);
                        if let Some((session, _)) = &mut this.session {
                            let refused: Vec<RequestId> =
                                tries.filter(|&id| session.outcome(id) == Outcome::Unheard).collect();
                            refused.iter().for_each(|&id| session.forget(id));
                            this.asked.retain(|asked| !refused.contains(&asked.id));
                        }
                    }
                    let identity = news.session.identity;
                    let renewed = news.first_end.map(|first_end| {
                        this.renewed = letter.sent;
                        this.first_end = clock + first_end.as_micros() as u64;
                        letter.sent
                    });
                    match self.take_news(client, renewed, given, news) {
                        Ok(true) => self.heard(client),
                        Ok(false) => {
                            self.reach("an answer that is too late");
                            self.leave(client);
                            self.lose(client);
                        }
                        Err(Ended::Over) => self.lose(client),
                        Err(Ended::Damaged) => {
                            let may_be = !self.promoted.is_empty() || self.torn.is_some() || self.snapshots_lost > 1;
                            assert!(may_be, "an order that nobody has written over is damaged");
                            self.clients[client].broken = Some(identity);
                            self.lose(client);
                        }
                    }
                }
                Reply::Written => {
                    if let Some((session, place)) = &mut this.session {
                        session.hear_that_it_is_written();
                        let is_valid =
                            self.sessions[*place].lease.is_valid_at(self.base + Duration::from_micros(clock));
                        if !is_valid {
                            self.leave(client);
                            self.lose(client);
                        }
                    }
                }
                Reply::Expired | Reply::OrderLost => self.lose(client),
                Reply::OtherFormat(_) | Reply::NoOrder | Reply::OtherTimeToLive(_) => {
                    unreachable!("there is one format and one time to live")
                }
            },
        }
    }

    fn take_news(&mut self, client: usize, renewed: Option<u64>, given: u64, news: News) -> Result<bool, Ended> {
        let clock = self.instant(self.clock(client));
        let time_to_live = Duration::from_micros(TIME_TO_LIVE);
        let margin = Duration::from_micros(MARGIN);
        let end = renewed.map(|sent| Lease::end_by(self.instant(sent), time_to_live, margin));
        let heard = self.now;
        let this = &mut self.clients[client];
        if let Some((session, place)) = &mut this.session {
            let lived = &mut self.sessions[*place];
            let is_valid = match end {
                Some(end) => lived.lease.renew(clock, end),
                None => lived.lease.is_valid_at(clock),
            };
            if is_valid && end.is_some() {
                lived.told.push((given, heard));
            }
            return session.hear(news).map(|()| is_valid);
        }
        let asking = Asking { seeds: Seeds::specified(news.session.identity.0), location: Some(String::new()) };
        let session = Session::begin(news)?;
        this.asking = Some(asking);
        this.session = Some((session, self.sessions.len()));
        let (lease, rate) = (Lease::new(self.base, end.unwrap_or(clock)), this.rate);
        self.sessions.push(Lived { lease, rate, lost: None, was_invalid: false, told: vec![(given, heard)] });
        self.ask(client);
        Ok(true)
    }

    /// What the threads of a client do when there are news; and what is to be so of its replica.
    fn heard(&mut self, client: usize) {
        let this = &mut self.clients[client];
        let Some((session, place)) = &mut this.session else { return };
        let identity = session.id().identity;
        for asked in &mut this.asked {
            match (session.outcome(asked.id), asked.granted) {
                (Outcome::Granted(fence), None) => {
                    let request = Request::of_text(&asked.wish.reads, &asked.wish.writes);
                    let thread = (asked.wish.owner == Owner::Thread).then_some(asked.wish.thread);
                    let id = (identity, asked.id);
                    let owner = match thread {
                        Some(thread) => (*place, Some(thread)),
                        None => (self.grants.len(), None),
                    };
                    let time = self.written.get(&(identity, fence)).copied();
                    let time = time.unwrap_or_else(|| panic!("no entry is at {fence:?}, the fence of {id:?}"));
                    asked.granted = Some(self.grants.len());
                    let what = match self.waited.contains(&id) {
                        true => "a grant after waiting",
                        false => "a grant at once",
                    };
                    *self.reached.entry(what).or_default() += 1;
                    self.grants.push(Grant { owner, request, session: *place, id, fence, time });
                }
                (Outcome::Granted(fence), Some(grant)) => {
                    assert_eq!(fence, self.grants[grant].fence, "the fence of a grant changes")
                }
                (outcome, Some(_)) => panic!("what was granted is {outcome:?}"),
                (Outcome::Waits, None) => {
                    assert!(!asked.wish.is_try, "a try waits");
                    self.waited.insert((identity, asked.id));
                }
                (Outcome::Refused | Outcome::OddFrame, None) => {
                    session.forget(asked.id);
                    if !asked.wish.is_try {
                        let may_be = !self.promoted.is_empty() || self.torn.is_some();
                        assert!(may_be, "a request is refused that was to wait");
                        this.wishes.push(asked.wish.clone());
                    }
                }
                (Outcome::Unheard, None) => {}
            }
        }
        this.asked.retain(|asked| asked.granted.is_some() || session.outcome(asked.id) != Outcome::Refused);
        self.ask(client);
        self.judge_replica(client);
    }

    /// 4.
    fn judge_replica(&mut self, client: usize) {
        let Some((session, _)) = &self.clients[client].session else { return };
        let identity = session.id().identity;
        let replica = &session.replica;
        let seen = seen(replica);
        let others = self.replicas.entry((identity, session.seen())).or_insert_with(|| seen.clone());
        assert_eq!(*others, seen, "two replicas at {:?} do not agree", session.seen());
        assert!(replica.is_settled(), "somebody waits who may go on");
        // Those of another history that was lost are not known here.
        let known = replica.requests.values().filter_map(|request| {
            let (thread, asked) = self.requests.get(&(identity, request.ask.id))?.as_ref()?;
            let reads = request.ask.steps.iter().all(|step| step.mode == step.mode.downgraded());
            let asked = if reads { asked.downgraded() } else { asked.clone() };
            let owner = (request.ask.id.member, thread.ok_or(request.ask.id.number));
            Some((owner, request.is_granted(), asked))
        });
        let known: Vec<_> = known.collect();
        let are_all = known.len() == replica.requests.len();
        for (index, (owner, is_granted, request)) in known.iter().enumerate() {
            let mut others = known.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, other)| other);
            if *is_granted {
                let conflict =
                    others.find(|(of, granted, other)| *granted && of != owner && other.conflicts_with(request));
                assert!(conflict.is_none(), "{owner:?} has {request:?} beside {conflict:?}");
            } else {
                let is_free = !others.any(|(of, _, other)| of != owner && other.conflicts_with(request));
                assert!(!is_free || !are_all, "{request:?} waits for nobody");
            }
        }
    }

    /// 5. There are no faults any longer.
    fn end(&mut self) {
        // A time to live for the sessions of the dead, one for an order that is new, and some to wait for each other.
        let (rounds, pause) = if S::STEPS > 1 { (120, TIME_TO_LIVE / 30) } else { (200, TIME_TO_LIVE / 100) };
        for _ in 0..rounds {
            for client in 0..CLIENTS {
                self.look(client);
                for _ in 0..8 {
                    self.exchange(client);
                    let this = &self.clients[client];
                    let is_quiet = |(session, _): &(Session, usize)| !session.has_to_say() && session.is_up_to_date();
                    if this.session.as_ref().is_some_and(is_quiet) && this.leaving.is_empty() && this.broken.is_none()
                    {
                        break;
                    }
                }
                let this = &mut self.clients[client];
                let Some((session, _)) = &mut this.session else { continue };
                let waiting: Vec<u64> = this
                    .asked
                    .iter()
                    .filter(|asked| asked.granted.is_none())
                    .map(|asked| asked.wish.thread)
                    .collect();
                this.asked.retain(|asked| match asked.granted {
                    Some(_) if asked.wish.owner == Owner::Itself || !waiting.contains(&asked.wish.thread) => {
                        session.withdraw(asked.id);
                        false
                    }
                    None if session.outcome(asked.id) == Outcome::Waits
                        && session.replica.has_guards(session.member(), asked.wish.thread)
                        && session.deadlock(asked.id).is_some() =>
                    {
                        session.withdraw(asked.id);
                        false
                    }
                    _ => true,
                });
                self.now += pause;
            }
            let is_done = |client: &Client<S::Letter>| client.asked.is_empty() && client.wishes.is_empty();
            let is_done = self.clients.iter().all(|client| {
                let is_empty = |(session, _): &(Session, usize)| {
                    !session.has_to_say() && session.is_up_to_date() && session.replica.requests.is_empty()
                };
                is_done(client) && client.session.as_ref().is_some_and(is_empty)
            });
            if is_done {
                return;
            }
        }
        let left: Vec<_> =
            self.clients.iter().map(|client| (&client.wishes, &client.asked, &client.session)).collect();
        panic!("somebody waits for ever, or something is left: {left:#?}");
    }

    /// 1 and 2.
    fn judge_grants(&mut self) {
        let first_after = |times: &HashMap<(Identity, RequestId), Vec<u64>>, grant: &Grant| {
            times.get(&grant.id)?.iter().copied().find(|time| *time >= grant.time)
        };
        let end_of = |grant: &Grant| {
            let lived = &self.sessions[grant.session];
            let end = lived.lease.end().saturating_duration_since(self.base).as_micros() as u64;
            let end = (end * 1000 / lived.rate).min(lived.lost.unwrap_or(u64::MAX));
            end.min(first_after(&self.released, grant).unwrap_or(u64::MAX))
        };
        // A downgraded grant is one of writes that ends there, and one of reads.
        let mut lasting: Vec<(&Grant, Request, u64, u64)> = Vec::new();
        for grant in &self.grants {
            let end = end_of(grant);
            match first_after(&self.downgraded, grant) {
                Some(downgraded) => {
                    lasting.push((grant, grant.request.clone(), grant.time, end.min(downgraded)));
                    lasting.push((grant, grant.request.downgraded(), grant.time, end));
                }
                None => lasting.push((grant, grant.request.clone(), grant.time, end)),
            }
        }
        let mut conflicts = 0;
        let older = self.promoted.first().filter(|_| !S::NOTICES_AT_ONCE);
        let torn = self.torn.into_iter().chain(older.copied()).min().unwrap_or(u64::MAX);
        for (first, request, start, end) in &lasting {
            for (later, other, later_start, _) in &lasting {
                let is_earlier = start < later_start;
                if !is_earlier || first.owner == later.owner || !request.conflicts_with(other) {
                    continue;
                }
                assert!(first.fence < later.fence, "the later grant has the lower fence: {first:?} {later:?}");
                let told = &self.sessions[first.session].told;
                let since = told.first().map_or(0, |(given, _)| *given);
                let promoted = self.promoted.iter().filter(|time| (since..=*later_start).contains(time)).max();
                conflicts += 1;
                let from = match promoted {
                    None => *later_start,
                    Some(promoted) => {
                        let told = told.iter().find(|(given, _)| given > promoted);
                        told.map_or(u64::MAX, |(_, heard)| *later_start.max(heard))
                    }
                };
                assert!(
                    *end <= from || torn <= *later_start,
                    "both are valid: {first:?} up to {end}, {later:?}; promoted {:?}",
                    self.promoted
                );
            }
        }
        *self.reached.entry("a pair of grants that conflict").or_default() += conflicts;
    }
}

pub(super) fn run<S: Service>(steps: Vec<Step>) -> World<S> {
    let mut world = World::new();
    steps.into_iter().for_each(|step| world.step(step));
    world.end();
    world.judge_grants();
    world
}

pub(super) fn config() -> ProptestConfig {
    let cases = std::env::var("SIMULATIONS").ok().and_then(|cases| cases.parse().ok()).unwrap_or(500);
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default() }
}

pub(super) fn write(client: usize, root: &'static str) -> Step {
    Step::Ask { client, thread: 0, owner: Owner::Thread, is_try: false, reads: vec![], writes: vec![root] }
}

/// The histories have what they are to judge, or their silence would mean nothing.
pub(super) fn come_to_what_they_judge<S: Service>() {
    let mut runner = TestRunner::deterministic();
    let mut reached = BTreeMap::<&str, u64>::new();
    for _ in 0..300 {
        let steps = steps::<S>(true).new_tree(&mut runner).unwrap().current();
        run::<S>(steps).reached.into_iter().for_each(|(what, count)| *reached.entry(what).or_default() += count);
    }
    println!("{reached:#?}");
    let all = reached.len() == S::REACHED && reached.values().all(|count| *count > 0);
    assert!(all, "something does not come about: {reached:#?}");
}

#[test]
fn histories_come_to_what_they_judge() {
    come_to_what_they_judge::<Memory>();
}

/// M1: the number of a member that joined in the part of the order that was lost is given to another one.
#[test]
fn client_of_a_lost_tail_ends_no_session_of_another() {
    let joined = vec![Step::Exchange(2), Step::Copy, Step::Exchange(1), Step::Wait(TIME_TO_LIVE * 2)];
    let promoted = vec![Step::Promote(0), Step::Exchange(0), write(0, ""), Step::Exchange(0)];
    // It is late, and leaves by a number that is that of another now.
    let left = vec![Step::Look(1), Step::Exchange(1), Step::Exchange(1), write(1, "a"), Step::Exchange(1)];
    run::<Memory>([joined, promoted, left].concat());
}

/// M6: the entries in which the copy differs from what a client has seen may be gone when it calls again.
#[test]
fn snapshot_does_not_hide_a_lost_tail() {
    let open = vec![Step::Exchange(0), Step::Exchange(1), Step::GoOn(3, TIME_TO_LIVE * 3 / 2), Step::Copy];
    let lost = vec![write(0, ""), Step::Exchange(0), Step::Promote(0)];
    let traffic = vec![write(1, "d"), Step::Exchange(1), Step::LetGo(1, 0), Step::Exchange(1)];
    let granted =
        vec![Step::Wait(TIME_TO_LIVE / 2), Step::Exchange(0), write(1, "a"), Step::Exchange(1), Step::Wait(1000)];
    run::<Memory>([open, lost, vec![traffic; 10].concat(), granted].concat());
}

proptest! {
    #![proptest_config(config())]

    /// M1 to M6, G1 to G4.
    #[test]
    fn no_fault_lets_two_in(steps in steps::<Memory>(false)) {
        run::<Memory>(steps);
    }

    /// The same where a copy that lags is promoted: what its clients were not told of is judged by fences alone.
    #[test]
    fn promoted_copy_that_lags_lets_nobody_in_for_longer_than_told(steps in steps::<Memory>(true)) {
        run::<Memory>(steps);
    }
}
