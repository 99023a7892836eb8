//! The tasks of a client: requests of futures, which nobody sleeps on.
//!
//! A task wants what a thread wants (`Wants`), and has left a waker where a thread has left a condition variable. It does not send:
//! the keeper sends for it. Wakers are code of the user, so one more thread calls them, outside of the state's mutex: one that
//! takes long holds up other tasks, and no renewal. That thread begins with the first task that waits and ends with the client. It
//! also wakes the tasks whose patience with an engine that is away has ended.
//!
//! Invariants:
//!
//! A task waits here from a poll that leaves it waiting until it is to be polled again: what it wants is there or will never be, its
//! patience is over, a call has failed, or the client has ended. Then its waker is due. It leaves earlier if it is polled for another
//! reason, or its future is dropped. So a task that was woken and that nobody polls has nobody ask for a session.

use super::{Client, Got, Granted, Joined, Locked, Stop, Wants};
use crate::machine::error::MachineLockError;
use crate::machine::session::Outcome;
use crate::replica::ask::Asking;
use crate::replica::{Ask, NO_THREAD, RequestId};
use crate::sync;
use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::task::{Poll, Waker, ready};
use std::time::Instant;

/// See the header. Under the state's mutex.
#[derive(Default)]
pub(super) struct Tasks {
    /// Those that wait, by number.
    waiting: BTreeMap<u64, Task>,
    /// The number of tasks so far.
    numbers: u64,
    /// The wakers that are to be called.
    due: Vec<Waker>,
    /// Whether there is a thread that wakes them.
    has_thread: bool,
}

struct Task {
    wants: Wants,
    /// When its patience ends.
    until: Option<Instant>,
    waker: Waker,
}

impl Tasks {
    /// Has a task wait no longer.
    fn leave(&mut self, turn: &mut Turn) -> Option<Waker> {
        Some(self.waiting.remove(&turn.number.take()?)?.waker)
    }

    /// Has those woken that are to be polled again.
    fn wake(&mut self, is_due: impl Fn(&Task) -> bool) {
        let due: Vec<u64> = self.waiting.iter().filter(|(_, task)| is_due(task)).map(|(&number, _)| number).collect();
        self.due.extend(due.iter().filter_map(|number| self.waiting.remove(number)).map(|task| task.waker));
    }

    /// What those want that wait.
    pub(super) fn waiting(&self) -> impl Iterator<Item = Wants> {
        self.waiting.values().map(|task| task.wants)
    }
}

/// A task, for its future.
#[derive(Default)]
struct Turn {
    /// The calls that had been begun when it came, and when that was.
    since: Option<(u64, Instant)>,
    number: Option<u64>,
}

/// How far a request of a task has come; [`Client::abandon`] gives it up.
#[derive(Default)]
pub(crate) struct Asked {
    turn: Turn,
    /// What it has asked for in a session; before, it waits for a session.
    request: Option<(Joined, RequestId)>,
}

impl Client {
    /// Has a request granted to a task, as [`Client::acquire`] does to a thread.
    pub(crate) fn poll_acquire(
        self: &Arc<Self>,
        asked: &mut Asked,
        waker: &Waker,
        mut plan: impl FnMut(&Asking) -> Result<Ask, MachineLockError>,
        odd_frame: impl Fn() -> MachineLockError,
    ) -> Poll<Result<Granted, MachineLockError>> {
        loop {
            let Some((joined, id)) = asked.request.clone() else {
                match ready!(self.poll(Wants::Session { is_try: false }, &mut asked.turn, waker)) {
                    Ok(Got::Session(joined)) => {
                        let ask = match plan(&joined.asking) {
                            // The thread that polls is not blocked, so nothing that it holds is pinned by this request.
                            Ok(ask) => Ask { thread: NO_THREAD, ..ask },
                            Err(error) => return Poll::Ready(Err(error)),
                        };
                        let mut state = self.state.lock();
                        if let Some(session) = state.session_of(joined.generation) {
                            asked.request = Some((joined, session.ask(ask, false)));
                        }
                    }
                    Ok(Got::Outcome(_) | Got::Done) => unreachable!("it wants a session"),
                    Err(stop) => return Poll::Ready(Err(stop.of_request(false))),
                }
                continue;
            };
            let generation = joined.generation;
            let wants = Wants::Settled { generation, id, is_try: false, look: None };
            let settled = ready!(self.poll(wants, &mut asked.turn, waker));
            asked.request = None;
            match settled {
                Ok(Got::Outcome(Outcome::Granted(fence))) => {
                    return Poll::Ready(Ok(Granted { joined, id, fence, by_task: true }));
                }
                Ok(got) => {
                    if let Some(session) = self.state.lock().session_of(generation) {
                        session.forget(id);
                    }
                    self.keeper.notify_one();
                    if matches!(got, Got::Outcome(Outcome::OddFrame)) {
                        return Poll::Ready(Err(odd_frame()));
                    }
                    // As in `acquire`: it asks again.
                }
                Err(Stop::Over | Stop::Deadline) => {}
                Err(Stop::Failed(error)) => {
                    self.withdraw(&joined, id);
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
    }

    /// Gives up a request of a task: what was asked for, or granted meanwhile.
    pub(crate) fn abandon(&self, asked: &mut Asked) {
        let mut state = self.state.lock();
        let waker = state.tasks.leave(&mut asked.turn);
        drop(state);
        if let Some((joined, id)) = asked.request.take() {
            self.withdraw(&joined, id);
        }
        drop(waker);
    }

    /// What a task wants, if it is there; otherwise the waker is called when the task is to ask again.
    fn poll(self: &Arc<Self>, wants: Wants, turn: &mut Turn, waker: &Waker) -> Poll<Result<Got, Stop>> {
        let waker = waker.clone();
        let mut state = self.state.lock();
        let former = state.tasks.leave(turn);
        let now = Instant::now();
        let since = *turn.since.get_or_insert((state.begun, now));
        let outcome = match state.gets(wants) {
            None if state.has_ended => Some(Err(Stop::Over)),
            None => match state.patience(wants, since, now, &self.settings) {
                Err(error) => Some(Err(Stop::Failed(error))),
                Ok(until) => match self.start_waking(&mut state) {
                    Ok(()) => {
                        self.park(&mut state, wants, turn, waker, until);
                        None
                    }
                    Err(stop) => Some(Err(stop)),
                },
            },
            got => got,
        };
        if outcome.is_some() {
            turn.since = None;
            state.hand_on(&self.keeper);
        } else {
            self.keeper.notify_one();
        }
        drop(state);
        drop(former);
        outcome.map_or(Poll::Pending, Poll::Ready)
    }

    /// Starts the thread that wakes tasks, unless there is one.
    fn start_waking(self: &Arc<Self>, state: &mut Locked<'_>) -> Result<(), Stop> {
        if !state.tasks.has_thread {
            let client = Arc::clone(self);
            let started = std::thread::Builder::new().name("treelock-wake".into()).spawn(move || client.wake_tasks());
            started.map_err(|error| Stop::Failed(super::EngineError::Refused(Arc::new(error))))?;
            state.tasks.has_thread = true;
        }
        Ok(())
    }

    /// Has a task wait.
    fn park(&self, state: &mut Locked<'_>, wants: Wants, turn: &mut Turn, waker: Waker, until: Option<Instant>) {
        state.tasks.numbers += 1;
        let number = state.tasks.numbers;
        turn.number = Some(number);
        state.tasks.waiting.insert(number, Task { wants, until, waker });
        if until.is_some() {
            self.waking.notify_one();
        }
    }

    /// Has those tasks woken that have got what they want, or may give up; after an answer, or a failure.
    pub(super) fn wake_settled_tasks(&self, state: &mut Locked<'_>) {
        let mut tasks = mem::take(&mut state.tasks);
        tasks.wake(|task| state.failing.is_some() || state.has_ended || state.gets(task.wants).is_some());
        state.tasks = tasks;
        if !state.tasks.due.is_empty() {
            self.waking.notify_one();
        }
    }

    /// What the thread does that wakes tasks, until the client ends.
    fn wake_tasks(&self) {
        let mut state = self.state.lock();
        loop {
            let (now, has_ended) = (Instant::now(), state.has_ended);
            let tasks = &mut state.tasks;
            tasks.wake(|task| has_ended || task.until.is_some_and(|until| now >= until));
            let due = mem::take(&mut tasks.due);
            if !due.is_empty() {
                drop(state);
                due.into_iter().for_each(sync::wake);
                state = self.state.lock();
            } else if has_ended {
                return;
            } else {
                let until = tasks.waiting.values().filter_map(|task| task.until).min();
                state = self.waking.wait_until(state, until).0;
            }
        }
    }
}
