//! The proof: the histories of `simulation.rs`, with the engine of each client as it is shipped, over a store in memory.
//!
//! A call is what `exchange.rs` makes of it, and stops at each question to the store. When that comes to the store, when the answer comes
//! back, and who is first in between, is drawn. A client may give a call up at any such place: then the question that is under way may
//! come to the store at any later time, also if it has been there and only its answer is lost. What was created may be created once more
//! at any later time, as a service does that is told twice.
//!
//! The store may lose all, its newest order, or its newest snapshot, at any time; then two are never let in. It may lose an entry, or an
//! older copy may take its place; then the fence decides, and at last all go on.

use super::chain::{Item, Order};
use super::exchange::{Port, State};
use super::store::{Created, Series};
use crate::machine::engine::{Call, Entry, Identity, Reply};
use crate::machine::error::EngineError;
use crate::machine::memory::Part;
use crate::machine::simulation::{self, Arrived, CLIENTS, Service, Step, base, steps};
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// What is asked of the store.
#[derive(Clone, Debug)]
enum Question {
    Create(Series, u64, Vec<u8>),
    Read(Series, u64, usize),
    Newest(Series),
    Trim(Series, u64),
    Pause,
}

#[derive(Clone, Debug)]
enum Answer {
    Created(Created),
    Items(Vec<Vec<u8>>),
    Newest(Option<u64>),
    Done,
}

/// The way between a call and the store.
#[derive(Default)]
struct Wire {
    asked: Option<Question>,
    answer: Option<Result<Answer, EngineError>>,
}

/// The clocks of one client, and its way to the store.
struct Client {
    wire: Rc<RefCell<Wire>>,
    now: Rc<Cell<u64>>,
    draws: Rc<Cell<u64>>,
    rate: u64,
    /// How far its wall clock is ahead.
    ahead: u64,
    may_be_emptied: bool,
}

impl Client {
    async fn ask(&self, question: Question) -> Result<Answer, EngineError> {
        self.wire.borrow_mut().asked = Some(question);
        poll_fn(|_| match self.wire.borrow_mut().answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        })
        .await
    }
}

impl Port for Client {
    async fn create(&self, series: Series, number: u64, item: Vec<u8>) -> Result<Created, EngineError> {
        match self.ask(Question::Create(series, number, item)).await? {
            Answer::Created(created) => Ok(created),
            other => unreachable!("{other:?}"),
        }
    }

    async fn read(&self, series: Series, from: u64, most: usize) -> Result<Vec<Vec<u8>>, EngineError> {
        match self.ask(Question::Read(series, from, most.min(3))).await? {
            Answer::Items(items) => Ok(items),
            other => unreachable!("{other:?}"),
        }
    }

    async fn newest(&self, series: Series) -> Result<Option<u64>, EngineError> {
        match self.ask(Question::Newest(series)).await? {
            Answer::Newest(newest) => Ok(newest),
            other => unreachable!("{other:?}"),
        }
    }

    async fn trim(&self, series: Series, below: u64) -> Result<(), EngineError> {
        self.ask(Question::Trim(series, below)).await.map(drop)
    }

    async fn pause(&self, _: u32) -> Result<(), EngineError> {
        self.ask(Question::Pause).await.map(drop)
    }

    fn may_be_emptied(&self) -> bool {
        self.may_be_emptied
    }

    fn patience(&self) -> Duration {
        Duration::ZERO
    }

    fn now(&self) -> Instant {
        base() + Duration::from_micros(self.now.get() * self.rate / 1000)
    }

    fn wall(&self) -> u64 {
        self.now.get() + self.ahead
    }

    fn draw(&self) -> u64 {
        self.draws.set(self.draws.get() + 1);
        self.draws.get()
    }
}

/// A store in memory.
#[derive(Clone, Default)]
struct Shelf {
    items: HashMap<Series, BTreeMap<u64, Vec<u8>>>,
    /// Below which number entries were trimmed: what is created there is in the void.
    trimmed: HashMap<Series, u64>,
}

impl Shelf {
    /// With the entries that were written by it.
    fn answer(&mut self, question: Question) -> (Answer, Vec<(Identity, Entry, bool)>) {
        let answer = match question {
            Question::Create(series, number, item) => {
                let items = self.items.entry(series).or_default();
                if let Some(there) = items.get(&number) {
                    return (Answer::Created(Created::Taken(there.clone())), Vec::new());
                }
                items.insert(number, item.clone());
                return (Answer::Created(Created::New), self.written(series, number, &item));
            }
            Question::Read(series, from, most) => {
                let items = self.items.get(&series);
                let there = (from..).map_while(|number| items?.get(&number).cloned());
                Answer::Items(there.take(most).collect())
            }
            Question::Newest(series) => Answer::Newest(self.newest(series)),
            // Only some, as one does that is cut off: the rest is for the next time.
            Question::Trim(series, below) => {
                let trimmed = self.trimmed.entry(series).or_default();
                *trimmed = below.max(*trimmed);
                let items = self.items.entry(series).or_default();
                let numbers: Vec<u64> = items.range(..below).map(|(&number, _)| number).take(9).collect();
                numbers.iter().for_each(|number| drop(items.remove(number)));
                Answer::Done
            }
            Question::Pause => Answer::Done,
        };
        (answer, Vec::new())
    }

    /// What a store says that has all in one value, of an order that is not in it.
    fn told_as_lost(&self, question: &Question) -> Option<Answer> {
        let (Question::Create(series, ..) | Question::Read(series, ..) | Question::Newest(series)) = question else {
            return None;
        };
        let (Series::Entries(identity) | Series::Snapshots(identity)) = series else { return None };
        let newest = self.newest(Series::Orders).map(|newest| &self.items[&Series::Orders][&newest]);
        if newest.is_some_and(|order| Order::of_bytes(order).is_ok_and(|order| order.identity() == *identity)) {
            return None;
        }
        Some(match question {
            Question::Create(..) => Answer::Created(Created::Taken(Vec::new())),
            Question::Read(..) => Answer::Items(vec![Vec::new()]),
            _ => Answer::Newest(None),
        })
    }

    fn newest(&self, series: Series) -> Option<u64> {
        self.items.get(&series)?.last_key_value().map(|(&number, _)| number)
    }

    /// What it brings, and whether it stands behind what is there, in an order that is there.
    fn written(&self, series: Series, number: u64, item: &[u8]) -> Vec<(Identity, Entry, bool)> {
        let Series::Entries(identity) = series else { return Vec::new() };
        let orders = self.items.get(&Series::Orders);
        let mut orders = orders.into_iter().flat_map(BTreeMap::values);
        let has_order = orders.any(|order| Order::of_bytes(order).is_ok_and(|order| order.identity() == identity));
        let trimmed = self.trimmed.get(&series).copied().unwrap_or_default();
        let item = Item::of_bytes(item).expect("it was written here");
        let before = number.checked_sub(1).and_then(|before| self.items[&series].get(&before));
        let is_next = match before {
            Some(before) => Item::of_bytes(before).is_ok_and(|before| before.tag == item.after),
            None => number == trimmed,
        };
        let is_whole = has_order && number >= trimmed && is_next;
        item.entries().into_iter().map(|entry| (identity, entry, is_whole)).collect()
    }

    fn lose(&mut self, part: Part) {
        let newest_order = self.newest(Series::Orders);
        let order = newest_order.and_then(|newest| Order::of_bytes(&self.items[&Series::Orders][&newest]).ok());
        let mut take = |series: Series, is_first: bool| {
            let items = self.items.entry(series).or_default();
            if is_first {
                items.pop_first()
            } else {
                items.pop_last()
            };
        };
        match (part, order.map(|order| order.identity())) {
            (Part::All, _) => *self = Shelf::default(),
            (Part::Meta, _) => take(Series::Orders, false),
            (Part::Snap, Some(identity)) => take(Series::Snapshots(identity), false),
            (Part::Log, Some(identity)) => take(Series::Entries(identity), false),
            (Part::Oldest, Some(identity)) => take(Series::Entries(identity), true),
            _ => {}
        }
    }
}

type Exchange = Pin<Box<dyn Future<Output = (State, Result<Reply, EngineError>)>>>;

/// A call.
enum Letter {
    Runs {
        client: usize,
        began: u64,
        exchange: Exchange,
        wire: Rc<RefCell<Wire>>,
        answer: Option<Answer>,
    },
    Answered(Reply, u64),
    /// It was given up.
    Late(Question),
    Over,
}

/// A store that may be emptied, and whose entries know nothing of their order.
const PLAIN: u8 = 0;
/// The same, where two clients have wall clocks that are ahead.
const AHEAD: u8 = 1;
/// All is in one value, as in Memcached: what is asked of an order that is lost is told that.
const ONE_VALUE: u8 = 2;
/// Nothing is lost, as in DynamoDB.
const DURABLE: u8 = 3;

/// The store, and the engines of all clients.
#[derive(Default)]
struct Stores<const KIND: u8> {
    shelf: Shelf,
    /// Nothing while a call is under way.
    states: [Option<State>; CLIENTS],
    given_up: Rc<RefCell<Vec<(usize, State)>>>,
    now: Rc<Cell<u64>>,
    draws: Rc<Cell<u64>>,
    written: Vec<(Identity, Entry, bool)>,
    /// All that was ever created. What was lost does not come again, unless it was trimmed: see the assumptions.
    ever: HashSet<Vec<u8>>,
    /// The last things that were created.
    created: VecDeque<Question>,
}

impl<const KIND: u8> Stores<KIND> {
    fn ask(&mut self, question: Question) -> Answer {
        if matches!(question, Question::Create(..)) {
            self.created.push_front(question.clone());
            self.created.truncate(8);
        }
        if let Question::Create(_, _, item) = &question {
            self.ever.insert(item.clone());
        }
        if let Some(answer) = self.shelf.told_as_lost(&question).filter(|_| KIND == ONE_VALUE) {
            return answer;
        }
        let (answer, written) = self.shelf.answer(question);
        self.written.extend(written);
        answer
    }
}

impl<const KIND: u8> Stores<KIND> {
    /// Nobody waits for an answer.
    fn ask_late(&mut self, question: Question) {
        if let Question::Create(series, number, item) = &question {
            let is_there = self.shelf.items.get(series).is_some_and(|items| items.contains_key(number));
            let is_trimmed = self.shelf.trimmed.get(series).is_some_and(|below| number < below);
            if !is_there && !is_trimmed && self.ever.contains(item) {
                return;
            }
        }
        self.ask(question);
    }
}

fn poll(exchange: &mut Exchange) -> Option<(State, Result<Reply, EngineError>)> {
    match exchange.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

impl<const KIND: u8> Service for Stores<KIND> {
    type Letter = Letter;
    type Copy = Shelf;

    /// Of any two, one is not faster than the other by more than the margin.
    const RATES: [u64; CLIENTS] = [976, 1000, 1024, 977];
    const PARTS: &[Part] = &[Part::All, Part::Meta, Part::Snap];
    const STEPS: u32 = 6;
    const NOTICES_AT_ONCE: bool = false;
    const REACHED: usize = 11;

    fn send(&mut self, client: usize, now: u64, call: &Call) -> Letter {
        let mut given_up = self.given_up.borrow_mut();
        let given_up = given_up.iter().position(|(of, _)| *of == client).map(|index| given_up.remove(index).1);
        let mut state = given_up.or(self.states[client].take()).unwrap_or_default();
        let wire = Rc::new(RefCell::new(Wire::default()));
        let ahead = if KIND == AHEAD { [0, 7_000_000, 400_000, 0][client] } else { 0 };
        let (draws, clock) = (Rc::clone(&self.draws), Rc::clone(&self.now));
        let (rate, call) = (Self::RATES[client], call.clone());
        let port = Client {
            wire: Rc::clone(&wire),
            now: clock,
            draws,
            rate,
            ahead,
            may_be_emptied: matches!(KIND, PLAIN | AHEAD),
        };
        self.now.set(now);
        let mut exchange: Exchange = Box::pin(async move {
            let reply = state.exchange(&port, &call).await;
            (state, reply)
        });
        match poll(&mut exchange) {
            None => Letter::Runs { client, began: now, exchange, wire, answer: None },
            // Nothing was to be asked.
            Some((state, reply)) => {
                self.states[client] = Some(state);
                Letter::Answered(reply.expect("the store was not asked"), now)
            }
        }
    }

    fn arrive(&mut self, now: u64, _: &Call, letter: &mut Letter) -> Arrived {
        self.now.set(now);
        match std::mem::replace(letter, Letter::Over) {
            Letter::Over => Arrived::Over,
            Letter::Answered(reply, given) => Arrived::Answered(reply, given),
            Letter::Late(question) => {
                self.ask_late(question);
                Arrived::Over
            }
            Letter::Runs { client, began, exchange, wire, answer: None } => {
                let question = wire.borrow().asked.clone().expect("it waits for an answer");
                let answer = Some(self.ask(question));
                *letter = Letter::Runs { client, began, exchange, wire, answer };
                Arrived::OnItsWay
            }
            Letter::Runs { client, began, mut exchange, wire, answer: Some(answer) } => {
                wire.borrow_mut().answer = Some(Ok(answer));
                match poll(&mut exchange) {
                    None => {
                        *letter = Letter::Runs { client, began, exchange, wire, answer: None };
                        Arrived::OnItsWay
                    }
                    Some((state, reply)) => {
                        self.states[client] = Some(state);
                        // What it looked at first, it saw as it was then.
                        Arrived::Answered(reply.expect("the store answers"), began)
                    }
                }
            }
        }
    }

    fn give_up(&mut self, letter: &mut Letter) {
        let Letter::Runs { client, mut exchange, wire, .. } = std::mem::replace(letter, Letter::Over) else { return };
        *letter = Letter::Late(wire.borrow().asked.clone().expect("it waits for an answer"));
        loop {
            wire.borrow_mut().answer = Some(Err(EngineError::away("given up")));
            if let Some((state, _)) = poll(&mut exchange) {
                self.given_up.borrow_mut().push((client, state));
                return;
            }
        }
    }

    fn die(&mut self, client: usize) {
        self.given_up.borrow_mut().retain(|(of, _)| *of != client);
        self.states[client] = None;
    }

    fn repeat(&mut self, now: u64, which: usize) {
        self.now.set(now);
        if let Some(question) = self.created.get(which).cloned() {
            self.ask_late(question);
        }
    }

    fn lose(&mut self, part: Part) {
        self.shelf.lose(part);
    }

    fn copy(&self) -> Shelf {
        self.shelf.clone()
    }

    fn promote(&mut self, copy: Shelf) {
        self.shelf = copy;
    }

    fn written(&mut self) -> Vec<(Identity, Entry, bool)> {
        std::mem::take(&mut self.written)
    }
}

type Plain = Stores<PLAIN>;

#[test]
fn histories_come_to_what_they_judge() {
    simulation::come_to_what_they_judge::<Plain>();
}

proptest! {
    #![proptest_config(simulation::config())]

    #[test]
    fn no_fault_lets_two_in(steps in steps::<Plain>(false)) {
        simulation::run::<Plain>(steps);
    }

    #[test]
    fn fences_rise_and_all_go_on_when_an_older_copy_takes_the_place(steps in steps::<Plain>(true)) {
        simulation::run::<Plain>(steps);
    }

    /// By somebody who removes it.
    #[test]
    fn fences_rise_and_all_go_on_when_an_entry_is_lost(
        mut steps in steps::<Plain>(false),
        lost in proptest::collection::vec((any::<prop::sample::Index>(), prop::sample::select(vec![Part::Log, Part::Oldest])), 1..4),
    ) {
        for (place, part) in lost {
            let place = place.index(steps.len() + 1);
            steps.insert(place, Step::Lose(part));
        }
        simulation::run::<Plain>(steps);
    }

    #[test]
    fn no_fault_of_one_value_lets_two_in(mut steps in steps::<Stores<ONE_VALUE>>(false)) {
        // It has no order that could be lost alone.
        steps.retain(|step| !matches!(step, Step::Lose(Part::Meta)));
        simulation::run::<Stores<ONE_VALUE>>(steps);
    }

    #[test]
    fn store_that_loses_nothing_lets_nobody_in(mut steps in steps::<Stores<DURABLE>>(false)) {
        steps.retain(|step| !matches!(step, Step::Lose(_)));
        simulation::run::<Stores<DURABLE>>(steps);
    }

    /// The wall clocks of two clients are ahead, by more than a time to live of one. Fences of an order that is not lost rise.
    #[test]
    fn wall_clocks_let_nobody_in(mut steps in steps::<Stores<AHEAD>>(false)) {
        steps.retain(|step| !matches!(step, Step::Lose(_)));
        simulation::run::<Stores<AHEAD>>(steps);
    }
}
