//! The threads of a client: which of them sends, which wait, and the one that renews.
//!
//! There is no thread that sends for the others. A thread that needs something written, and finds nobody sending, sends all that
//! is in the outbox, its own and that of others, and hears the answer for all of them. Those that come meanwhile wait, and one
//! of them sends next. So the more threads ask at a time, the fewer round trips each costs.
//!
//! Two more threads do what nobody waits for. The *keeper* renews the session, asks for entries of others when there are
//! some, asks when the session of somebody else ends, so that the engine buries that one, and sends what a thread left behind that
//! gave up. The *listener* blocks at the engine while a request of this client waits, and tells the keeper of entries of
//! others: the keeper itself must never be where nobody can wake it.
//!
//! With the feature `async` tasks wait too (`client/tasks.rs`): the keeper sends for them.
//!
//! A session that is lost is replaced by a new one with the next request. Requests that waited ask again in it; guards are lost.
//!
//! Lock order: the state's mutex is never held while the engine is asked, or while callbacks run.

#[cfg(feature = "async")]
pub(crate) mod tasks;

use crate::core::node_id::Seeds;
use crate::inspect::{Root, Snapshot};
use crate::machine::Options;
use crate::machine::engine::{Call, Engine, Identity, News, Position, Reply, Says, SessionId};
use crate::machine::error::{EngineError, MachineLockError};
use crate::machine::lease::Lease;
use crate::machine::session::{Ended, Outcome, Session};
use crate::patience::{FIRST_LOOK, Patience, next_look};
use crate::replica::ask::Asking;
use crate::replica::{About, Ask, Replica, RequestId, report};
use crate::sync::{self, Condvar, Mutex, MutexGuard};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A pause after a call that failed, which grows up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// No call is given less.
const SHORTEST_CALL: Duration = Duration::from_millis(1);

/// The listener blocks no longer than this at a time, so that it ends that much later than its client at most.
const LONGEST_LISTEN: Duration = Duration::from_secs(5);

/// A session, and what guards and requests need of it.
#[derive(Clone)]
pub(crate) struct Joined {
    /// Tells the sessions of this client apart.
    pub(crate) generation: u64,
    pub(crate) lease: Arc<Lease>,
    pub(crate) asking: Arc<Asking>,
}

/// A client of an engine.
pub(crate) struct Client {
    engine: Box<dyn Engine>,
    pub(crate) settings: Options,
    base: Instant,
    about: About,
    state: Mutex<State>,
    keeper: Condvar,
    listener: Condvar,
    /// For the thread that wakes tasks.
    #[cfg(feature = "async")]
    waking: Condvar,
}

struct State {
    session: Option<(Session, Joined)>,
    generation: u64,
    /// That of the namespace, once a session has begun.
    time_to_live: Duration,
    is_sending: bool,
    /// The listener has met something that the last call did not bring.
    has_news: bool,
    /// Calls that were begun, and the last one that was answered.
    begun: u64,
    heard: u64,
    /// When the last call was sent by which the session is renewed.
    renewed: Instant,
    /// When the first of the sessions ends.
    first_end: Instant,
    /// The engine takes no batch before; see [`State::opens`].
    opens: Option<Instant>,
    failing: Option<Failing>,
    /// Sessions that this client knows to be over, and the engine may not.
    leaving: Vec<SessionId>,
    broken: Option<Identity>,
    parked: Vec<Parked>,
    #[cfg(feature = "async")]
    tasks: tasks::Tasks,
    has_ended: bool,
}

/// Calls have failed since the last one that was answered.
struct Failing {
    /// The last call that failed.
    call: u64,
    /// When the first of them was sent.
    since: Instant,
    error: EngineError,
    again: Instant,
    pause: Duration,
}

/// A thread that waits until somebody has answered.
struct Parked {
    wants: Wants,
    /// Whether something had to be sent for it when it began to wait.
    must_send: bool,
    turn: Arc<Condvar>,
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wants {
    Session {
        is_try: bool,
    },
    /// A request to be settled.
    Settled {
        generation: u64,
        id: RequestId,
        is_try: bool,
        /// When it is to be looked for a deadlock, if it waits in the order.
        look: Option<Instant>,
    },
    /// A batch to be in the order.
    Written {
        generation: u64,
        batch: u64,
        /// Whether it is tried again if it fails.
        waits: bool,
    },
    /// The answer to a call.
    Heard(u64),
}

/// What a thread gets.
enum Got {
    Session(Joined),
    Outcome(Outcome),
    Done,
}

/// Why it does not get it.
enum Stop {
    /// The session is over.
    Over,
    Deadline,
    Failed(EngineError),
}

type Locked<'a> = MutexGuard<'a, State>;

impl Client {
    /// Joins, and starts the keeper and the listener.
    pub(crate) fn connect(engine: Box<dyn Engine>, settings: Options) -> Result<Arc<Self>, EngineError> {
        let time_to_live = settings.time_to_live.unwrap_or(Options::TIME_TO_LIVE);
        settings.check(settings.time_to_live)?;
        let base = Instant::now();
        let client = Arc::new(Client {
            engine,
            settings,
            base,
            about: About::this_process(0, user_and_host()),
            state: Mutex::new(State {
                session: None,
                generation: 0,
                time_to_live,
                is_sending: false,
                has_news: false,
                begun: 0,
                heard: 0,
                renewed: base,
                first_end: base,
                opens: None,
                failing: None,
                leaving: Vec::new(),
                broken: None,
                parked: Vec::new(),
                #[cfg(feature = "async")]
                tasks: tasks::Tasks::default(),
                has_ended: false,
            }),
            keeper: Condvar::default(),
            listener: Condvar::default(),
            #[cfg(feature = "async")]
            waking: Condvar::default(),
        });
        if let Err(stop) = client.joined(false, None) {
            let broken = client.state.lock().broken.take();
            if let Some(identity) = broken {
                // There is no keeper that would do it.
                let _ = client.exchange(Says::Breaks { identity }, time_to_live, None);
            }
            return Err(match stop {
                Stop::Failed(error) => error,
                Stop::Over | Stop::Deadline => EngineError::Lost,
            });
        }
        for (name, run) in [("treelock-keeper", Client::keep as fn(&Client)), ("treelock-listen", Client::listen)] {
            let of_thread = Arc::clone(&client);
            let started = std::thread::Builder::new().name(name.into()).spawn(move || run(&of_thread));
            if let Err(error) = started {
                client.end();
                return Err(EngineError::Refused(Arc::new(error)));
            }
        }
        Ok(client)
    }

    /// Ends the session, the keeper and the listener.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        state.has_ended = true;
        let (session, time_to_live) = (state.session.take(), state.time_to_live);
        state.generation += 1;
        drop(state);
        if let Some((session, joined)) = session {
            joined.lease.lose();
            let session = session.id();
            // If it is not heard, the time of the session passes.
            let _ = self.exchange(Says::Leaves { session }, time_to_live, None);
        }
        // A thread that is told may end the process.
        self.state.lock().wake_all();
        self.keeper.notify_one();
        self.listener.notify_one();
        #[cfg(feature = "async")]
        self.waking.notify_one();
    }

    /// A session, if need be a new one.
    fn joined(&self, is_try: bool, deadline: Option<Instant>) -> Result<Joined, Stop> {
        match self.drive(self.state.lock(), Wants::Session { is_try }, deadline).1? {
            Got::Session(joined) => Ok(joined),
            Got::Outcome(_) | Got::Done => Err(Stop::Over),
        }
    }

    /// Has a request granted that `plan` makes for a session. It is made again for each session that it is asked in.
    pub(crate) fn acquire(
        &self,
        patience: Patience,
        mut plan: impl FnMut(&Asking) -> Result<Ask, MachineLockError>,
        odd_frame: impl Fn() -> MachineLockError,
    ) -> Result<Granted, MachineLockError> {
        let is_try = matches!(patience, Patience::None);
        let deadline = match patience {
            Patience::Until(deadline) => deadline,
            Patience::None | Patience::Endless => None,
        };
        loop {
            let joined = self.joined(is_try, deadline).map_err(|stop| stop.of_request(is_try))?;
            let ask = plan(&joined.asking)?;
            let mut state = self.state.lock();
            let Some(session) = state.session_of(joined.generation) else { continue };
            // While it waits its thread neither gets nor releases a guard.
            let is_nested = session.is_nested(&ask);
            let id = session.ask(ask, is_try);
            match self.wait(state, &joined, id, is_nested, is_try, deadline) {
                Ok(Outcome::Granted(fence)) => return Ok(Granted { joined, id, fence, by_task: false }),
                Ok(Outcome::OddFrame) => return Err(odd_frame()),
                // A snapshot does not tell why. Or a lagging copy was promoted, which has it not. So ask again.
                Ok(_) if !is_try => {}
                Ok(_) => return Err(MachineLockError::WouldBlock),
                Err(Waited::Over) => {}
                Err(Waited::Failed(error)) => return Err(error),
            }
        }
    }

    /// Waits until a request is settled; gives it up if that takes too long, or would take for ever.
    fn wait<'a>(
        &'a self,
        mut state: Locked<'a>,
        joined: &Joined,
        id: RequestId,
        is_nested: bool,
        is_try: bool,
        deadline: Option<Instant>,
    ) -> Result<Outcome, Waited> {
        let generation = joined.generation;
        let mut rest = FIRST_LOOK;
        loop {
            let look = is_nested.then(|| Instant::now() + rest);
            let (locked, driven) = self.drive(state, Wants::Settled { generation, id, is_try, look }, deadline);
            state = locked;
            let session = state.session_of(generation);
            let error = match (driven, session) {
                (Ok(Got::Outcome(outcome)), Some(session)) => {
                    if !matches!(outcome, Outcome::Granted(_)) {
                        session.forget(id);
                        self.keeper.notify_one();
                    }
                    return Ok(outcome);
                }
                (Ok(_) | Err(Stop::Over), _) | (Err(_), None) => return Err(Waited::Over),
                (Err(Stop::Failed(error)), Some(_)) => error.into(),
                (Err(Stop::Deadline), Some(_)) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                    MachineLockError::TimedOut
                }
                (Err(Stop::Deadline), Some(session)) => {
                    rest = next_look(rest);
                    if session.deadlock(id).is_none() {
                        continue;
                    }
                    // Somebody may have given up since the last call.
                    let news = Wants::Heard(state.begun + 1);
                    let (locked, heard) = self.drive(state, news, deadline);
                    state = locked;
                    if heard.is_err() {
                        continue;
                    }
                    match state.session_of(generation).and_then(|session| session.deadlock(id)) {
                        None => continue,
                        Some(deadlock) => MachineLockError::Deadlock(Box::new(deadlock)),
                    }
                }
            };
            if let Some(session) = state.session_of(generation) {
                session.withdraw(id);
                drop(state);
                self.keeper.notify_one();
            }
            return Err(Waited::Failed(match error {
                MachineLockError::TimedOut if is_try => MachineLockError::WouldBlock,
                error => error,
            }));
        }
    }

    /// Releases what was granted, and says whether it was held up to then.
    pub(crate) fn release(&self, granted: &Granted, waits: bool) -> Result<(), EngineError> {
        let joined = &granted.joined;
        if granted.by_task && !waits {
            self.withdraw(joined, granted.id);
            joined.lease.forget(granted.id.number);
            return Ok(());
        }
        let released = self.write(joined, waits, |session| session.withdraw(granted.id));
        joined.lease.forget(granted.id.number);
        released
    }

    /// Gives up what is asked for or granted; the keeper says so.
    fn withdraw(&self, joined: &Joined, id: RequestId) {
        if let Some(session) = self.state.lock().session_of(joined.generation) {
            session.withdraw(id);
        }
        self.keeper.notify_one();
    }

    /// Turns the writes of what was granted into reads.
    pub(crate) fn downgrade(&self, granted: &Granted) -> Result<(), EngineError> {
        self.write(&granted.joined, true, |session| session.downgrade(granted.id))
    }

    fn write(&self, joined: &Joined, waits: bool, put: impl FnOnce(&mut Session)) -> Result<(), EngineError> {
        let generation = joined.generation;
        let mut state = self.state.lock();
        if !joined.lease.is_valid_at(Instant::now()) {
            return Err(EngineError::Lost);
        }
        let is_failing = state.failing.is_some();
        let Some(session) = state.session_of(generation) else { return Err(EngineError::Lost) };
        let batch = session.next_batch();
        put(session);
        if is_failing && !waits {
            drop(state);
            self.keeper.notify_one();
            return Ok(());
        }
        let (state, driven) = self.drive(state, Wants::Written { generation, batch, waits }, None);
        drop(state);
        match driven {
            Ok(_) => Ok(()),
            Err(Stop::Over | Stop::Deadline) => Err(EngineError::Lost),
            Err(Stop::Failed(error)) => {
                self.keeper.notify_one();
                Err(error)
            }
        }
    }

    /// What all have and await, as of now.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, EngineError> {
        loop {
            let joined = self.joined_at_last()?;
            if let Some(snapshot) = self.as_of_now(&joined, |replica| report::snapshot(replica))? {
                return Ok(snapshot);
            }
        }
    }

    /// Begins to watch what `plan` says, as of now.
    pub(crate) fn observe(
        &self,
        plan: impl Fn(&Asking) -> Result<Ask, MachineLockError>,
    ) -> Result<(Joined, u64), MachineLockError> {
        loop {
            let joined = self.joined_at_last().map_err(MachineLockError::Engine)?;
            let steps = plan(&joined.asking)?.steps;
            let watch = self.as_of_now(&joined, |replica| replica.watch(&steps)).map_err(MachineLockError::Engine)?;
            if let Some(watch) = watch {
                return Ok((joined, watch));
            }
        }
    }

    /// Whether what is watched was written, as of now.
    pub(crate) fn is_written(&self, joined: &Joined, watch: u64) -> Result<bool, EngineError> {
        Ok(self.as_of_now(joined, |replica| replica.is_hit(watch))?.unwrap_or(true))
    }

    pub(crate) fn end_watch(&self, joined: &Joined, watch: u64) {
        if let Some(session) = self.state.lock().session_of(joined.generation) {
            session.replica.end_watch(watch);
        }
    }

    fn joined_at_last(&self) -> Result<Joined, EngineError> {
        self.joined(false, None).map_err(|stop| match stop {
            Stop::Failed(error) => error,
            Stop::Over | Stop::Deadline => EngineError::Lost,
        })
    }

    /// What is to be said of the replica when it has all that there was when this was called; `None`, if the session is over.
    fn as_of_now<R>(&self, joined: &Joined, tell: impl FnOnce(&mut Replica) -> R) -> Result<Option<R>, EngineError> {
        loop {
            let state = self.state.lock();
            let wants = Wants::Heard(state.begun + 1);
            let (mut state, driven) = self.drive(state, wants, None);
            if let Err(Stop::Failed(error)) = driven {
                return Err(error);
            }
            let Some(session) = state.session_of(joined.generation) else { return Ok(None) };
            // One answer may not have had all.
            if driven.is_ok() && session.is_up_to_date() {
                return Ok(Some(tell(&mut session.replica)));
            }
        }
    }

    /// Until when the engine takes no requests, as of the last answer.
    pub(crate) fn closed_until(&self) -> Option<Instant> {
        self.state.lock().opens()
    }

    /// What the requests of this client wait for, as of the last answer.
    pub(crate) fn waits(&self) -> Vec<report::Wait> {
        let state = self.state.lock();
        state.session.as_ref().map_or(Vec::new(), |(session, _)| report::waits(&session.replica, session.member()))
    }

    /// What a request has, if the session knows.
    pub(crate) fn roots(&self, granted: &Granted) -> Option<Vec<Root>> {
        let mut state = self.state.try_lock()?;
        let session = state.session_of(granted.joined.generation)?;
        session.replica.requests.get(&granted.id).map(|request| report::roots(request))
    }

    /// Has the calling thread get what it wants: it sends if something must be sent and nobody does, or else waits.
    fn drive<'a>(
        &'a self,
        mut state: Locked<'a>,
        wants: Wants,
        deadline: Option<Instant>,
    ) -> (Locked<'a>, Result<Got, Stop>) {
        let (begun, start) = (state.begun, Instant::now());
        loop {
            match state.gets(wants) {
                Some(got) => {
                    state.hand_on(&self.keeper);
                    return (state, got);
                }
                None if state.has_ended => return (state, Err(Stop::Over)),
                None => {}
            }
            let now = Instant::now();
            let gives_up = match state.patience(wants, (begun, start), now, &self.settings) {
                Ok(until) => until,
                Err(error) => return (state, Err(Stop::Failed(error))),
            };
            let must_send = state.must_send(wants);
            // What is asked is answered first, as a try is, since the call is that of others too: unless the engine does not
            // answer.
            let deadline = deadline.filter(|_| !must_send || state.failing.is_some());
            // Nor is a call that is under way cut off for a look.
            let look = wants.look().filter(|_| !must_send);
            if [deadline, look].into_iter().flatten().any(|until| now >= until) {
                state.hand_on(&self.keeper);
                return (state, Err(Stop::Deadline));
            }
            let pause = state.pause(now);
            if must_send && !state.is_sending && pause.is_none() {
                state = self.send(state);
                continue;
            }
            let until = [deadline, look, pause.filter(|_| must_send), gives_up, state.opens()];
            let until = until.into_iter().flatten().min();
            let turn = Arc::new(Condvar::default());
            state.parked.push(Parked { wants, must_send, turn: Arc::clone(&turn) });
            if !must_send {
                // From now on it asks when the session of another client ends.
                self.keeper.notify_one();
            }
            state = turn.wait_until(state, until).0;
            state.parked.retain(|parked| !Arc::ptr_eq(&parked.turn, &turn));
        }
    }

    /// Sends what is to be said next, and takes the answer.
    fn send<'a>(&'a self, mut state: Locked<'a>) -> Locked<'a> {
        state.is_sending = true;
        state.has_news = false;
        state.begun += 1;
        let (call, generation) = (state.begun, state.generation);
        let says = state.says(&self.about, &self.settings);
        let time_to_live = state.time_to_live;
        // An answer that comes after the end of the lease is of no use, and others are to be told of the end.
        let deadline = state.session.as_ref().map(|(_, joined)| joined.lease.end());
        drop(state);
        let sent = Instant::now();
        let reply = self.exchange(says.clone(), time_to_live, deadline);
        let mut state = self.state.lock();
        state.is_sending = false;
        let mut lost = None;
        // What a session is told; that one has left says nothing of the order.
        let is_heard = reply.as_ref().is_ok_and(|reply| !matches!(reply, Reply::Written))
            && matches!(says, Says::Joins { .. } | Says::GoesOn { .. });
        match reply {
            Ok(reply) => {
                state.failing = None;
                match says {
                    Says::Leaves { session } => state.leaving.retain(|leaving| *leaving != session),
                    Says::Breaks { .. } => state.broken = None,
                    // A client that has a session has no need to.
                    Says::Looks { .. } => {}
                    Says::Joins { .. } | Says::GoesOn { .. } if state.generation != generation => {
                        // The session was lost meanwhile, or the client has ended; what was joined is left again.
                        if let (Says::Joins { .. }, Reply::News(news)) = (&says, reply) {
                            state.leaving.push(news.session);
                        }
                    }
                    Says::Joins { .. } | Says::GoesOn { .. } => lost = self.hear(&mut state, sent, reply),
                }
            }
            Err(error) => state.fail(error, sent),
        }
        if is_heard {
            state.heard = call;
        }
        state.wake_settled();
        #[cfg(feature = "async")]
        self.wake_settled_tasks(&mut state);
        state.hand_on(&self.keeper);
        if state.session.as_ref().is_some_and(|(session, _)| session.has_waiters()) {
            self.listener.notify_one();
        }
        match lost {
            None => state,
            Some(lease) => {
                drop(state);
                lease.lose();
                self.state.lock()
            }
        }
    }

    fn exchange(&self, says: Says, time_to_live: Duration, deadline: Option<Instant>) -> Result<Reply, EngineError> {
        let now = Instant::now();
        // A call that takes longer would leave no time for another one, on a new connection, before the lease ends.
        let longest = (time_to_live / 3).max(Duration::from_millis(100));
        let latest = now + self.settings.response.min(self.settings.patience).clamp(SHORTEST_CALL, longest);
        let deadline = deadline.map_or(latest, |deadline| deadline.clamp(now + SHORTEST_CALL, latest));
        let fresh = Identity([sync::random_seed(), sync::random_seed()]);
        let call = Call { fresh, time_to_live, says };
        self.engine.exchange(&call, deadline)
    }

    /// Takes an answer to its session; the lease, if that is lost by it.
    fn hear(&self, state: &mut State, sent: Instant, reply: Reply) -> Option<Arc<Lease>> {
        let now = Instant::now();
        match reply {
            Reply::News(news) => {
                if state.session.is_none() {
                    state.time_to_live = news.time_to_live.unwrap_or(state.time_to_live);
                    if let Err(error) = self.settings.check(Some(state.time_to_live)) {
                        state.leaving.push(news.session);
                        state.fail(error, sent);
                        return None;
                    }
                }
                let end = news.first_end.map(|first_end| {
                    state.renewed = sent;
                    state.first_end = now + first_end;
                    Lease::end_by(sent, state.time_to_live, self.settings.margin(state.time_to_live))
                });
                state.opens = news.closed.map_or(state.opens, |rest| Some(now + rest));
                let identity = news.session.identity;
                match self.take_news(state, end, now, news) {
                    Ok(true) => None,
                    Ok(false) => {
                        state.leave();
                        state.lose()
                    }
                    Err(Ended::Over) => state.lose(),
                    Err(Ended::Damaged) => {
                        state.broken = Some(identity);
                        state.fail(EngineError::Damaged, sent);
                        state.lose()
                    }
                }
            }
            Reply::Written => {
                let (session, joined) = state.session.as_mut()?;
                session.hear_that_it_is_written();
                if joined.lease.is_valid_at(now) {
                    return None;
                }
                state.leave();
                state.lose()
            }
            Reply::Expired | Reply::OrderLost | Reply::NoOrder => state.lose(),
            Reply::OtherFormat(format) => {
                state.fail(EngineError::OtherFormat(format), sent);
                state.lose()
            }
            Reply::OtherTimeToLive(kept) => {
                state.fail(EngineError::other_time_to_live(kept, state.time_to_live), sent);
                state.lose()
            }
        }
    }

    /// `false`: they came too late, and the lease has ended.
    fn take_news(&self, state: &mut State, end: Option<Instant>, now: Instant, news: News) -> Result<bool, Ended> {
        if let Some((session, joined)) = &mut state.session {
            let is_valid = match end {
                Some(end) => joined.lease.renew(now, end),
                None => joined.lease.is_valid_at(now),
            };
            return session.hear(news).map(|()| is_valid);
        }
        let end = end.unwrap_or(now);
        let key = news.session.identity.0;
        let session = Session::begin(news)?;
        let location = self.settings.location.clone();
        let joined = Joined {
            generation: state.generation,
            lease: Arc::new(Lease::new(self.base, end)),
            asking: Arc::new(Asking { seeds: Seeds::specified(key), location }),
        };
        state.session = Some((session, joined));
        // It has slept since the last session ended.
        self.keeper.notify_one();
        Ok(true)
    }

    /// What the keeper does, until the client ends.
    fn keep(&self) {
        let mut state = self.state.lock();
        while !state.has_ended {
            let now = Instant::now();
            let ended = state.session.as_ref().filter(|(_, joined)| !joined.lease.is_valid_at(now));
            if ended.is_some() {
                state.leave();
                let lost = state.lose();
                state.wake_all();
                #[cfg(feature = "async")]
                self.wake_settled_tasks(&mut state);
                drop(state);
                lost.into_iter().for_each(|lease| lease.lose());
                state = self.state.lock();
                continue;
            }
            let pause = state.pause(now);
            let Some((session, joined)) = &state.session else {
                let has_to_say = !state.leaving.is_empty() || state.broken.is_some() || state.must_send_for_a_task();
                state = match pause {
                    None if has_to_say && !state.is_sending => self.send(state),
                    _ => self.keeper.wait_until(state, pause.filter(|_| has_to_say)).0,
                };
                continue;
            };
            let renewal = state.renewed + Options::renewal(state.time_to_live);
            let waits = session.has_waiters();
            let end = joined.lease.end();
            let is_due = now >= renewal
                || state.has_to_say()
                || state.must_send_for_a_task()
                || !session.is_up_to_date()
                || !state.leaving.is_empty()
                || state.broken.is_some()
                || state.has_news
                // Nobody listens before a call is answered.
                || (waits && (now >= state.first_end || state.failing.is_some()));
            let mut until = renewal.min(end);
            if waits {
                until = until.min(state.first_end);
            }
            if let Some(opens) = state.opens().filter(|_| session.has_to_say()) {
                until = until.min(opens);
            }
            if state.is_sending {
                // The one that sends may fail, and leave what is due.
                let soon = now + state.time_to_live / 20;
                state = self.keeper.wait_until(state, Some(end.min(soon))).0;
            } else if is_due && pause.is_none() {
                state = self.send(state);
            } else if is_due {
                state = self.keeper.wait_until(state, pause.map(|pause| pause.min(end))).0;
            } else {
                state = self.keeper.wait_until(state, Some(until)).0;
            }
        }
    }

    /// What the listener does, until the client ends.
    fn listen(&self) {
        let mut state = self.state.lock();
        // Until when it does not ask again, after an error.
        let (mut again, mut pause): (Option<Instant>, _) = (None, FIRST_PAUSE);
        while !state.has_ended {
            again = again.filter(|&again| Instant::now() < again);
            let is_idle = !state.is_sending && !state.has_news && state.failing.is_none() && again.is_none();
            let session = state.session.as_ref().filter(|(session, _)| is_idle && session.has_waiters());
            let Some(seen) = session.map(|(session, _)| session.seen()) else {
                state = self.listener.wait_until(state, again).0;
                continue;
            };
            drop(state);
            let listened = self.engine.await_entry(seen, Instant::now() + LONGEST_LISTEN);
            state = self.state.lock();
            pause = match listened {
                Ok(()) => FIRST_PAUSE,
                Err(_) => (pause * 2).min(LONGEST_PAUSE),
            };
            again = listened.is_err().then(|| Instant::now() + pause);
            // What is being sent may bring it. Otherwise this listens again, and meets it at once.
            let is_unknown = state.session.as_ref().is_some_and(|(session, _)| session.seen() == seen);
            if is_unknown && !state.is_sending {
                state.has_news = true;
                self.keeper.notify_one();
            }
        }
    }
}

/// What all have and await, for one that has no session; `None` if there is no order.
pub(crate) fn look(engine: &dyn Engine, settings: &Options) -> Result<Option<Snapshot>, EngineError> {
    let mut seen: Option<Session> = None;
    loop {
        let since = seen.as_ref().map_or(Position::default(), Session::seen);
        let call = Call { fresh: Identity([0; 2]), time_to_live: Options::TIME_TO_LIVE, says: Says::Looks { since } };
        match engine.exchange(&call, Instant::now() + settings.response.max(SHORTEST_CALL))? {
            Reply::News(news) => {
                let is_same = |session: &Session| session.id().identity == news.session.identity;
                let session = match seen.take().filter(is_same) {
                    Some(mut session) => session.hear(news).map(|()| session),
                    // Another order has begun since.
                    None if since != Position::default() => continue,
                    None => Session::begin(news),
                };
                let session = session.map_err(|_| EngineError::Damaged)?;
                if session.is_up_to_date() {
                    return Ok(Some(report::snapshot(&session.replica)));
                }
                seen = Some(session);
            }
            Reply::OtherFormat(format) => return Err(EngineError::OtherFormat(format)),
            _ => return Ok(None),
        }
    }
}

/// Why a request ended without being settled.
enum Waited {
    Over,
    Failed(MachineLockError),
}

impl Stop {
    fn of_request(self, is_try: bool) -> MachineLockError {
        match self {
            Stop::Deadline if is_try => MachineLockError::WouldBlock,
            Stop::Deadline => MachineLockError::TimedOut,
            Stop::Failed(error) => error.into(),
            Stop::Over => EngineError::Lost.into(),
        }
    }
}

/// A request that was granted.
pub(crate) struct Granted {
    pub(crate) joined: Joined,
    pub(crate) id: RequestId,
    pub(crate) fence: Position,
    /// Whether a task has it: to drop its guard must not wait for the engine.
    by_task: bool,
}

impl Wants {
    /// Whether it is left to the keeper after the first call that fails.
    fn is_not_waited_for(self) -> bool {
        matches!(self, Wants::Written { waits: false, .. })
    }

    /// How long an engine may be away before this fails. A try does not wait, so that is as long as one answer may take.
    fn patience(self, settings: &Options) -> Duration {
        match self {
            Wants::Session { is_try: true } | Wants::Settled { is_try: true, .. } => {
                settings.response.min(settings.patience)
            }
            _ => settings.patience,
        }
    }

    fn look(self) -> Option<Instant> {
        match self {
            Wants::Settled { look, .. } => look,
            Wants::Session { .. } | Wants::Written { .. } | Wants::Heard(_) => None,
        }
    }
}

impl State {
    fn session_of(&mut self, generation: u64) -> Option<&mut Session> {
        self.session.as_mut().filter(|(_, joined)| joined.generation == generation).map(|(session, _)| session)
    }

    /// What a thread wants, if it is there, or will never be.
    fn gets(&self, wants: Wants) -> Option<Result<Got, Stop>> {
        let session = self.session.as_ref();
        let of = |generation: u64| session.filter(|(_, joined)| joined.generation == generation);
        match wants {
            Wants::Session { .. } => session.map(|(_, joined)| Ok(Got::Session(joined.clone()))),
            Wants::Settled { generation, id, is_try, .. } => match of(generation) {
                None => Some(Err(Stop::Over)),
                Some((session, _)) => match session.outcome(id) {
                    Outcome::Unheard if is_try && self.opens().is_some() => Some(Ok(Got::Outcome(Outcome::Refused))),
                    Outcome::Unheard | Outcome::Waits => None,
                    settled => Some(Ok(Got::Outcome(settled))),
                },
            },
            Wants::Written { generation, batch, .. } => match of(generation) {
                None => Some(Err(Stop::Over)),
                Some((session, _)) => session.has_written(batch).then_some(Ok(Got::Done)),
            },
            Wants::Heard(call) => (self.heard >= call).then_some(Ok(Got::Done)),
        }
    }

    /// When the engine will take batches, if it does not yet.
    fn opens(&self) -> Option<Instant> {
        self.opens.filter(|&opens| Instant::now() < opens)
    }

    /// Whether the keeper has to send for a task.
    fn must_send_for_a_task(&self) -> bool {
        #[cfg(feature = "async")]
        return self.tasks.waiting().any(|wants| self.gets(wants).is_none() && self.must_send(wants));
        #[cfg(not(feature = "async"))]
        return false;
    }

    /// Whether there is something to be written that the engine would take.
    fn has_to_say(&self) -> bool {
        self.session.as_ref().is_some_and(|(session, _)| session.has_to_say()) && self.opens().is_none()
    }

    /// Whether something must be sent for it.
    fn must_send(&self, wants: Wants) -> bool {
        match (wants, &self.session) {
            (Wants::Session { .. } | Wants::Heard(_), _) | (_, None) => true,
            (Wants::Written { .. }, Some(_)) => self.opens().is_none(),
            (Wants::Settled { id, .. }, Some((session, _))) => {
                session.outcome(id) == Outcome::Unheard && self.opens().is_none()
            }
        }
    }

    /// Until when it is waited for while the engine is away, or why it is not, for one that has begun at that time, after that
    /// many calls.
    fn patience(
        &self,
        wants: Wants,
        (begun, start): (u64, Instant),
        now: Instant,
        settings: &Options,
    ) -> Result<Option<Instant>, EngineError> {
        let Some(failing) = &self.failing else { return Ok(None) };
        let is_new = failing.call > begun;
        let mut gives_up = None;
        let is_over = match failing.error {
            EngineError::Away(_) => {
                gives_up = failing.since.max(start).checked_add(wants.patience(settings));
                gives_up.is_some_and(|until| now >= until) || (is_new && wants.is_not_waited_for())
            }
            _ => is_new,
        };
        if is_over { Err(failing.error.clone()) } else { Ok(gives_up) }
    }

    /// Until when nothing may be sent.
    fn pause(&self, now: Instant) -> Option<Instant> {
        self.failing.as_ref().map(|failing| failing.again).filter(|&until| until > now)
    }

    fn says(&mut self, about: &About, settings: &Options) -> Says {
        if let Some(identity) = self.broken {
            return Says::Breaks { identity };
        }
        if let Some(&session) = self.leaving.first() {
            return Says::Leaves { session };
        }
        let takes_batches = self.opens().is_none();
        let now = Instant::now();
        let renews = now >= self.renewed + Options::renewal(self.time_to_live) || now >= self.first_end;
        match &mut self.session {
            Some((session, _)) => session.call(takes_batches, renews),
            None => {
                // Another one may have been that of the namespace before.
                self.time_to_live = settings.time_to_live.unwrap_or(self.time_to_live);
                Session::join(about.clone(), settings.time_to_live.is_some())
            }
        }
    }

    /// Notes that the last call has failed.
    fn fail(&mut self, error: EngineError, sent: Instant) {
        let (since, pause) = match &self.failing {
            Some(failing) => (failing.since, (failing.pause * 2).min(LONGEST_PAUSE)),
            None => (sent, FIRST_PAUSE),
        };
        self.failing = Some(Failing { call: self.begun, since, error, again: Instant::now() + pause, pause });
    }

    /// Has the engine told that the session is over.
    fn leave(&mut self) {
        let session = self.session.as_ref().map(|(session, _)| session.id());
        self.leaving.extend(session);
    }

    /// Gives the session up; the lease is to be lost when nothing is locked.
    fn lose(&mut self) -> Option<Arc<Lease>> {
        self.generation += 1;
        self.opens = None;
        self.session.take().map(|(_, joined)| joined.lease)
    }

    /// Wakes those that have got what they want.
    fn wake_settled(&self) {
        for parked in &self.parked {
            // One that was not in the order yet may wait there now, and then its deadline counts.
            let is_heard = parked.must_send && !self.must_send(parked.wants);
            if is_heard || self.failing.is_some() || self.gets(parked.wants).is_some() {
                parked.turn.notify_one();
            }
        }
    }

    fn wake_all(&self) {
        for parked in &self.parked {
            parked.turn.notify_one();
        }
    }

    /// Has one of those send that need it, if nobody does; or else the keeper, which has others to do.
    fn hand_on(&self, keeper: &Condvar) {
        if self.is_sending {
            return;
        }
        let next =
            self.parked.iter().find(|parked| self.gets(parked.wants).is_none() && self.must_send(parked.wants));
        let session = self.session.as_ref();
        let keeper_must = self.has_to_say()
            || self.must_send_for_a_task()
            || session.is_none_or(|(session, _)| !session.is_up_to_date());
        match next {
            Some(parked) => _ = parked.turn.notify_one(),
            None if keeper_must || !self.leaving.is_empty() || self.broken.is_some() => _ = keeper.notify_one(),
            None => {}
        }
    }
}

/// Who asks, as others know it: `ada@build-7`.
fn user_and_host() -> String {
    let of = |names: [&str; 2]| names.iter().find_map(|name| std::env::var(name).ok());
    let user = of(["USER", "USERNAME"]).unwrap_or_else(|| "somebody".to_owned());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = host.or_else(|| of(["HOSTNAME", "COMPUTERNAME"])).unwrap_or_else(|| "somewhere".to_owned());
    format!("{user}@{}", host.trim())
}
