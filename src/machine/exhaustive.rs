//! Small cases, searched as a whole: from each state that two or three clients and an engine can come to, every step that can follow.
//!
//! The parts are those of `simulation.rs`: a shipped `Session` for each client, and the engine in memory. What a random history
//! comes to by chance, at 100 µs or at 300, is one of a few cases here: time passes in ticks, and a session lives for one and a half;
//! the calls of a client, and their answers, come at any time in between, get lost, or come again; and the engine loses what it
//! has, or a copy of it is promoted, at most once. Two states that look alike are one.
//!
//! Each state is judged:
//!
//! 1. Two clients whose grants conflict never both believe in them (M1, M2). Where a copy was promoted, a client is judged again
//!    when that copy has renewed its session.
//! 2. What is written has a higher position than all fences that were seen (M3).
//! 3. Replicas at one position agree, and let nobody wait who may go on.
//! 4. If there are no faults from here on, every client gets what it wants (M5).
//!
//! Not here: more than one request a client, deadlocks, tries, clocks that drift, snapshots (no case is so long).

use super::engine::{Call, Identity, Position, Reply, Says, SessionId};
use super::memory::{Memory, Part};
use super::session::{Ended, Outcome, Session};
use super::simulation::seen;
use crate::core::node_id::Seeds;
use crate::core::owner::Owner;
use crate::replica::ask::Asking;
use crate::replica::judge::spec::Request;
use crate::replica::{About, RequestId};
use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::Location;
use std::time::Duration;

/// Microseconds.
const TICK: u64 = 1_000_000;
const TIME_TO_LIVE: u64 = TICK * 3 / 2;
const MARGIN: u64 = 1;

/// What a server takes at least to come back without its data, or as a copy: more than its positions may be ahead of its clock.
const COMES_BACK: u64 = 1000;

/// What one of these cases is made of.
#[derive(Clone, Debug)]
struct Case {
    /// The root that each client asks for, and how.
    wants: Vec<Want>,
    /// So many calls or answers are lost, late, or come again.
    faults: u32,
    ticks: u32,
    loses_all: bool,
    is_copied: bool,
    /// The first client does nothing more once it has its grant.
    stops: bool,
}

#[derive(Clone, Copy, Debug)]
enum Want {
    Read(&'static str),
    Write(&'static str),
    /// Turns its write into a read before it lets go.
    Downgrade(&'static str),
}

impl Want {
    /// What is read, and what is written.
    fn roots(self) -> (Vec<&'static str>, Vec<&'static str>) {
        match self {
            Want::Read(root) => (vec![root], vec![]),
            Want::Write(root) | Want::Downgrade(root) => (vec![], vec![root]),
        }
    }

    fn request(self) -> Request {
        let (reads, writes) = self.roots();
        Request::of_text(&reads, &writes)
    }
}

/// How far a client has come with what it wants.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Wants,
    Asked(RequestId),
    Has(RequestId, Position),
    Reads(RequestId, Position),
    Done,
}

/// A call that is under way, or its answer.
#[derive(Clone, Debug)]
struct Letter {
    says: Says,
    sent: u64,
    reply: Option<Reply>,
}

#[derive(Clone, Debug)]
struct Client {
    session: Option<Session>,
    phase: Phase,
    /// When its lease ends.
    end: u64,
    renewed: u64,
    first_end: u64,
    opens: u64,
    letter: Option<Letter>,
    /// A call that it has given up, or that comes again.
    late: Option<Says>,
    leaving: Option<SessionId>,
    broken: Option<Identity>,
    /// A copy was promoted, which has not renewed it yet.
    is_doubtful: bool,
}

#[derive(Clone, Debug)]
struct World {
    now: u64,
    engine: Memory,
    copy: Option<Memory>,
    clients: Vec<Client>,
    identities: u64,
    /// The highest fence that anybody has seen.
    fence: Position,
    was_promoted: bool,
    left: Case,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The thread of a client downgrades or lets go.
    Act(usize),
    Send(usize),
    Arrive(usize),
    Hear(usize),
    /// The call, or its answer.
    Lose(usize),
    /// The client gives it up before it has arrived.
    GiveUp(usize),
    /// A copy of it stays under way.
    Repeat(usize),
    ArriveLate(usize),
    Tick,
    LoseAll,
    Copy,
    Promote,
}

impl World {
    fn new(case: Case) -> Self {
        let client = Client {
            session: None,
            phase: Phase::Wants,
            end: 0,
            renewed: 0,
            first_end: 0,
            opens: 0,
            letter: None,
            late: None,
            leaving: None,
            broken: None,
            is_doubtful: false,
        };
        World {
            now: 10 * TICK,
            engine: Memory::default(),
            copy: None,
            clients: vec![client; case.wants.len()],
            identities: 0,
            fence: Position(0),
            was_promoted: false,
            left: case,
        }
    }

    /// The namespace is open and all have joined.
    fn begun(case: Case) -> Self {
        let mut world = World::new(case);
        (0..world.clients.len()).for_each(|client| world.exchange(client));
        world.engine.open();
        world.clients.iter_mut().for_each(|client| client.opens = 0);
        world
    }

    fn exchange(&mut self, client: usize) {
        for step in [Step::Send(client), Step::Arrive(client), Step::Hear(client)] {
            self.step(step);
        }
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (index, client) in self.clients.iter().enumerate() {
            let has_fault = self.left.faults > 0;
            match &client.letter {
                _ if self.has_stopped(index) => {}
                None if self.wants_to_send(client) => steps.push(Step::Send(index)),
                None => {}
                Some(letter) if letter.reply.is_none() => {
                    steps.push(Step::Arrive(index));
                    if has_fault && client.late.is_none() {
                        steps.extend([Step::GiveUp(index), Step::Repeat(index)]);
                    }
                    steps.extend(has_fault.then_some(Step::Lose(index)));
                }
                Some(_) => {
                    steps.push(Step::Hear(index));
                    steps.extend(has_fault.then_some(Step::Lose(index)));
                }
            }
            steps.extend(client.late.as_ref().map(|_| Step::ArriveLate(index)));
            steps.extend(self.can_act(index).then_some(Step::Act(index)));
        }
        steps.extend((self.left.ticks > 0).then_some(Step::Tick));
        steps.extend(self.left.loses_all.then_some(Step::LoseAll));
        steps.extend((self.left.is_copied && self.copy.is_none()).then_some(Step::Copy));
        steps.extend((self.left.is_copied && self.copy.is_some()).then_some(Step::Promote));
        steps
    }

    fn has_stopped(&self, client: usize) -> bool {
        client == 0 && self.left.stops && matches!(self.clients[0].phase, Phase::Has(..))
    }

    fn can_act(&self, index: usize) -> bool {
        let Client { session, phase, .. } = &self.clients[index];
        let acts = matches!(phase, Phase::Has(..) | Phase::Reads(..));
        acts && session.is_some() && !self.has_stopped(index)
    }

    fn is_renewing(&self, client: &Client) -> bool {
        self.now >= client.renewed + TIME_TO_LIVE / 3 || self.now >= client.first_end
    }

    fn wants_to_send(&self, client: &Client) -> bool {
        let is_done = client.phase == Phase::Done;
        let Some(session) = &client.session else { return !is_done || client.is_leaving() };
        let takes_batches = client.opens <= self.now;
        // Whoever waits is woken by an entry.
        let is_woken = session.has_waiters() && self.engine.head() != Some(session.seen());
        client.is_leaving()
            || (takes_batches && (session.has_to_say() || client.phase == Phase::Wants))
            // One that is done is of no interest any longer.
            || (!is_done && (!session.is_up_to_date() || is_woken || self.is_renewing(client)))
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Act(index) => self.act(index),
            Step::Send(index) => self.send(index),
            Step::Arrive(index) => {
                let Some(letter) = &self.clients[index].letter else { return };
                let reply = self.tell_engine(letter.says.clone());
                self.clients[index].letter.as_mut().expect("it is there").reply = Some(reply);
            }
            Step::Hear(index) => self.hear(index),
            Step::Lose(index) => {
                self.left.faults -= 1;
                self.clients[index].letter = None;
            }
            Step::GiveUp(index) => {
                self.left.faults -= 1;
                self.clients[index].late = self.clients[index].letter.take().map(|letter| letter.says);
            }
            Step::Repeat(index) => {
                self.left.faults -= 1;
                let client = &mut self.clients[index];
                client.late = client.letter.as_ref().map(|letter| letter.says.clone());
            }
            Step::ArriveLate(index) => {
                if let Some(says) = self.clients[index].late.take() {
                    self.tell_engine(says);
                }
            }
            Step::Tick => {
                self.left.ticks = self.left.ticks.saturating_sub(1);
                self.now += TICK;
            }
            Step::LoseAll => {
                self.left.loses_all = false;
                self.engine.lose(Part::All);
                self.now += COMES_BACK;
            }
            Step::Copy => self.copy = Some(self.engine.clone()),
            Step::Promote => {
                self.left.is_copied = false;
                self.was_promoted = true;
                self.engine = self.copy.take().expect("there is one");
                self.now += COMES_BACK;
                self.clients.iter_mut().for_each(|client| client.is_doubtful = true);
            }
        }
    }

    /// What is written has a position above all fences that were seen.
    fn tell_engine(&mut self, says: Says) -> Reply {
        let fresh = Identity([(self.identities + 1) << 32, 7]);
        let (before, joins) = (self.engine.head(), matches!(says, Says::Joins { .. }));
        let call = Call { fresh, time_to_live: Duration::from_micros(TIME_TO_LIVE), says };
        let reply = self.engine.exchange(self.now, &call);
        // States that differ in names that nobody has are one.
        self.identities += u64::from(joins || self.engine.identity() == Some(fresh));
        let head = self.engine.head();
        assert!(head == before || head > Some(self.fence), "an entry at {head:?} is not above {:?}", self.fence);
        reply
    }

    fn act(&mut self, index: usize) {
        let want = self.left.wants[index];
        let client = &mut self.clients[index];
        let Some(session) = &mut client.session else { return };
        client.phase = match (client.phase, want) {
            (Phase::Wants, _) => {
                let seeds = Seeds::specified(session.id().identity.0);
                let asking = Asking { seeds, location: Some(String::new()) };
                let (reads, writes) = want.roots();
                let plan = asking.plan::<str, _, _>(&reads, &writes, Owner::Thread, Location::caller());
                let mut ask = plan.expect("the roots are right");
                ask.thread = 0;
                Phase::Asked(session.ask(ask, false))
            }
            (Phase::Has(id, fence), Want::Downgrade(_)) => {
                session.downgrade(id);
                Phase::Reads(id, fence)
            }
            (Phase::Has(id, _) | Phase::Reads(id, _), _) => {
                session.withdraw(id);
                Phase::Done
            }
            (phase @ (Phase::Asked(_) | Phase::Done), _) => phase,
        };
    }

    fn send(&mut self, index: usize) {
        self.give_up_if_over(index);
        // It could have asked at any time since the last call.
        if self.clients[index].phase == Phase::Wants {
            self.act(index);
        }
        let is_renewing = self.is_renewing(&self.clients[index]);
        let client = &mut self.clients[index];
        let about = || About { lifeline: 0, id: index as u32, command: String::new(), user: String::new() };
        let says = match (client.broken, client.leaving, &mut client.session) {
            (Some(identity), ..) => Says::Breaks { identity },
            (None, Some(session), _) => Says::Leaves { session },
            (None, None, Some(session)) => session.call(client.opens <= self.now, is_renewing),
            (None, None, None) => Session::join(about(), true),
        };
        client.letter = Some(Letter { says, sent: self.now, reply: None });
    }

    fn give_up_if_over(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if client.session.is_some() && client.end <= self.now {
            client.leaving = client.session.as_ref().map(Session::id);
            client.lose();
        }
    }

    fn hear(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let Some(Letter { says, sent, reply: Some(reply) }) = client.letter.take() else { return };
        match says {
            Says::Leaves { .. } => client.leaving = None,
            Says::Breaks { .. } => client.broken = None,
            Says::Looks { .. } => unreachable!("it has a session"),
            // It was said in a session that is over.
            Says::GoesOn { session, .. } if client.session.as_ref().map(Session::id) != Some(session) => {}
            Says::Joins { .. } | Says::GoesOn { .. } => match reply {
                Reply::News(news) => {
                    client.opens = news.closed.map_or(client.opens, |rest| self.now + rest.as_micros() as u64);
                    let identity = news.session.identity;
                    if let Some(first_end) = news.first_end {
                        if client.session.is_some() && client.end <= self.now {
                            return self.give_up_if_over(index);
                        }
                        client.renewed = sent;
                        client.first_end = self.now + first_end.as_micros() as u64;
                        client.end = client.end.max(sent + TIME_TO_LIVE - MARGIN);
                        client.is_doubtful = false;
                    }
                    let heard = match &mut client.session {
                        Some(session) => session.hear(news),
                        None => Session::begin(news).map(|session| client.session = Some(session)),
                    };
                    match heard {
                        Ok(()) => self.learn(index),
                        Err(Ended::Over) => client.lose(),
                        Err(Ended::Damaged) => {
                            assert!(self.was_promoted, "an order that nobody has written over is damaged");
                            client.broken = Some(identity);
                            client.lose();
                        }
                    }
                }
                Reply::Written => {
                    if let Some(session) = &mut client.session {
                        session.hear_that_it_is_written();
                        self.give_up_if_over(index);
                    }
                }
                Reply::Expired | Reply::OrderLost => client.lose(),
                Reply::OtherFormat(_) | Reply::NoOrder | Reply::OtherTimeToLive(_) => {
                    unreachable!("there is one format and one time to live")
                }
            },
        }
    }

    fn learn(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let Some(session) = &client.session else { return };
        match (client.phase, session.outcome_of(client.phase)) {
            (Phase::Asked(id), Some(Outcome::Granted(fence))) => {
                client.phase = Phase::Has(id, fence);
                self.fence = self.fence.max(fence);
            }
            (Phase::Asked(_), Some(Outcome::Refused | Outcome::OddFrame)) => {
                assert!(self.was_promoted, "a request is refused that was to wait");
                client.phase = Phase::Wants;
            }
            (Phase::Has(_, fence) | Phase::Reads(_, fence), outcome) => {
                assert_eq!(outcome, Some(Outcome::Granted(fence)), "of what was granted");
            }
            _ => {}
        }
    }

    /// 1 and 3.
    fn judge(&self) {
        let believing = self.clients.iter().zip(&self.left.wants).filter_map(|(client, want)| {
            let request = match client.phase {
                Phase::Has(..) => want.request(),
                Phase::Reads(..) => want.request().downgraded(),
                _ => return None,
            };
            (self.now < client.end && !client.is_doubtful).then_some(request)
        });
        let believing: Vec<Request> = believing.collect();
        for (index, request) in believing.iter().enumerate() {
            let other = believing[..index].iter().find(|other| other.conflicts_with(request));
            assert!(other.is_none(), "{request:?} and {other:?} are both believed in");
        }
        let sessions: Vec<&Session> = self.clients.iter().filter_map(|client| client.session.as_ref()).collect();
        for (index, session) in sessions.iter().enumerate() {
            assert!(session.replica.is_settled(), "somebody waits who may go on");
            let is_beside =
                |other: &&&Session| (other.id().identity, other.seen()) == (session.id().identity, session.seen());
            let other = sessions[..index].iter().find(is_beside);
            if let Some(other) = other {
                assert_eq!(seen(&other.replica), seen(&session.replica), "two replicas do not agree");
            }
        }
    }

    /// 4.
    fn judge_end(&self) {
        let mut world = self.clone();
        for _ in 0..40 {
            let all = 0..world.clients.len();
            if all.clone().all(|index| world.clients[index].phase == Phase::Done || world.has_stopped(index)) {
                return;
            }
            for index in all {
                if world.has_stopped(index) {
                    continue;
                }
                world.give_up_if_over(index);
                for _ in 0..4 {
                    if world.can_act(index) {
                        world.act(index);
                    }
                    if world.clients[index].letter.is_none() {
                        world.step(Step::Send(index));
                    }
                    if world.clients[index].letter.as_ref().is_some_and(|letter| letter.reply.is_none()) {
                        world.step(Step::Arrive(index));
                    }
                    world.step(Step::Hear(index));
                    world.judge();
                }
            }
            world.step(Step::Tick);
        }
        panic!("somebody waits for ever: {world:#?}");
    }
}

impl Client {
    fn is_leaving(&self) -> bool {
        self.leaving.is_some() || self.broken.is_some()
    }

    /// Its session is over: what it had is lost, and what it asked for is asked for again.
    fn lose(&mut self) {
        self.session = None;
        self.end = 0;
        self.phase = match self.phase {
            Phase::Asked(_) => Phase::Wants,
            Phase::Has(..) | Phase::Reads(..) => Phase::Done,
            phase => phase,
        };
    }
}

impl Session {
    fn outcome_of(&self, phase: Phase) -> Option<Outcome> {
        match phase {
            Phase::Asked(id) | Phase::Has(id, _) | Phase::Reads(id, _) => Some(self.outcome(id)),
            Phase::Wants | Phase::Done => None,
        }
    }
}

/// Goes through all states, and counts them. What leads to a state that is wrong is told.
fn search(case: Case) -> usize {
    let name = |world: &World| {
        let mut hasher = DefaultHasher::new();
        format!("{world:?}").hash(&mut hasher);
        hasher.finish()
    };
    let first = World::begun(case);
    let mut known = HashSet::from([name(&first)]);
    let mut way = vec![(0, Step::Tick)];
    let mut next = VecDeque::from([(first, 0)]);
    while let Some((world, place)) = next.pop_front() {
        let steps = {
            let _told = Told { way: &way, place };
            world.judge();
            world.judge_end();
            let after = |step| {
                let mut after = world.clone();
                after.step(step);
                (step, after)
            };
            world.steps().into_iter().map(after).collect::<Vec<_>>()
        };
        for (step, after) in steps {
            if known.insert(name(&after)) {
                way.push((place, step));
                next.push_back((after, way.len() - 1));
            }
        }
    }
    println!("{} states", known.len());
    known.len()
}

/// Prints the steps that led to a state if its judge panics.
struct Told<'a> {
    way: &'a [(usize, Step)],
    place: usize,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let mut steps = Vec::new();
        let mut place = self.place;
        while place != 0 {
            let (before, step) = self.way[place];
            steps.push(step);
            place = before;
        }
        steps.reverse();
        println!("after {steps:?}");
    }
}

fn case(wants: &[Want]) -> Case {
    Case { wants: wants.to_vec(), faults: 0, ticks: 0, loses_all: false, is_copied: false, stops: false }
}

const TWO_WRITERS: [Want; 2] = [Want::Write("a"), Want::Write("a/b")];

#[test]
fn two_writers_of_an_engine_that_loses_all() {
    search(Case { loses_all: true, ..case(&TWO_WRITERS) });
}

#[test]
fn two_writers_of_an_engine_whose_copy_is_promoted() {
    search(Case { is_copied: true, ..case(&TWO_WRITERS) });
}

#[test]
fn two_writers_whose_calls_are_lost_or_come_again() {
    search(Case { faults: 2, ..case(&TWO_WRITERS) });
}

#[test]
fn two_writers_whose_leases_may_end() {
    search(Case { ticks: 2, stops: true, ..case(&TWO_WRITERS) });
}

#[test]
fn three_clients() {
    search(case(&[Want::Read("a/b"), Want::Write("a"), Want::Read("")]));
}

#[test]
fn downgrade_beside_a_reader() {
    search(case(&[Want::Downgrade("a"), Want::Read("a/b")]));
}
