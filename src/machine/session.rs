//! What a client says to an engine, and what it makes of the answers. Pure: no threads, no clocks, no network.
//!
//! A session has a replica, and what its own threads want to have written: the *outbox*. A call takes all of it as one batch,
//! so threads that ask at the same time share a round trip (group commit). Only the entries that come back change the replica, those
//! of the session itself too. So it never believes what the engine has not put in order.
//!
//! ```text
//!  ask, withdraw ──> outbox ──> call ──> engine
//!                                          │ entries, in one order for all
//!           outcome <── replica <── hear <─┘
//! ```
//!
//! Invariants:
//!
//! 1. A batch keeps its number and its events until a reply has news. It may be written twice then, and those who read pass over
//!    all but the first: each session's batches are numbered from 1 on. They pass over what is written in the name of a session
//!    that is over, too. So the engine need not look at who writes.
//!    A batch that only lets go of something may be told to be written without news; then the next news have it.
//! 2. A session that is over never goes on. What it held, awaited or had in its outbox is over with it.
//! 3. A request is granted at the position of the entry whose events granted it. One that is learned from a snapshot is
//!    granted at the snapshot's position: later than its grant, and earlier than the release that a conflicting one needs.
//!
//! Not here: until when the session is valid (`lease.rs`); who sends the calls, and who waits (`client.rs`).

use crate::inspect::Deadlock;
use crate::machine::engine::{Entry, MOST_ENTRIES, News, Position, Says, SessionId};
use crate::replica::{About, Ask, Effects, Event, MemberId, Replica, RequestId, Stored, report};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A snapshot is written when more entries than this are kept, and more than the snapshot would have requests.
const MOST_KEPT: u64 = if cfg!(test) { 8 } else { 1000 };

/// What has become of a request of this session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is not in the order yet.
    Unheard,
    Waits,
    Granted(Position),
    /// It was a try that could not be granted at once; or it has been withdrawn.
    Refused,
    /// Requests whose paths are of the other kind are held or awaited.
    OddFrame,
}

/// Why a session cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The order says that it is over.
    Over,
    /// The order says what it cannot say: it was written over, or by something else.
    Damaged,
}

/// What a snapshot has.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Written {
    authors: BTreeMap<u64, Author>,
    replica: Stored,
}

/// A session that is not over, by its member.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Author {
    key: u64,
    /// The number of its last batch.
    last: u64,
}

/// A batch that is under way.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Batch {
    written: Vec<u8>,
    /// The last request that there was when it was written.
    last: u64,
    /// Nothing comes of it but that something is let go.
    lets_go: bool,
}

/// A client's part in one order.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Session {
    id: SessionId,
    pub(crate) replica: Replica,
    authors: BTreeMap<u64, Author>,
    /// The position of the last entry that the replica has, and that entry, if it is known.
    seen: Position,
    last: Option<Entry>,
    /// The position of the last entry that there was at the last reply.
    head: Position,
    kept: u64,
    /// Whether it was told that the order takes batches.
    is_open: bool,
    outbox: Vec<Event>,
    in_flight: Option<Batch>,
    /// Whether the last call had it.
    is_said: bool,
    batches: u64,
    requests: u64,
    /// The last request that is known to be in the order.
    written: u64,
    own: BTreeMap<u64, Outcome>,
}

impl Session {
    /// What a client says first.
    pub(crate) fn join(about: About, insists: bool) -> Says {
        Says::Joins { events: write(&(0u64, vec![Event::Join(about)])), insists }
    }

    /// Begins with the answer to that.
    pub(crate) fn begin(news: News) -> Result<Self, Ended> {
        let mut session = Session {
            id: news.session,
            replica: Replica::default(),
            authors: BTreeMap::new(),
            seen: Position(0),
            last: None,
            head: Position(0),
            kept: 0,
            is_open: false,
            outbox: Vec::new(),
            in_flight: None,
            is_said: false,
            batches: 0,
            requests: 0,
            written: 0,
            own: BTreeMap::new(),
        };
        session.hear(news)?;
        Ok(session)
    }

    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    pub(crate) fn member(&self) -> MemberId {
        MemberId(self.id.member)
    }

    pub(crate) fn seen(&self) -> Position {
        self.seen
    }

    /// Whether it knows all that was in the order at the last reply.
    pub(crate) fn is_up_to_date(&self) -> bool {
        self.seen >= self.head
    }

    /// Whether there is something to be written.
    pub(crate) fn has_to_say(&self) -> bool {
        !self.outbox.is_empty() || self.in_flight.is_some()
    }

    /// The number of the batch that has what is put into the outbox now.
    pub(crate) fn next_batch(&self) -> u64 {
        self.batches + 1
    }

    /// Whether that batch is in the order.
    pub(crate) fn has_written(&self, batch: u64) -> bool {
        batch < self.batches || (batch == self.batches && self.in_flight.is_none())
    }

    /// Whether the thread that asks has guards, so that its wait may be part of a deadlock.
    pub(crate) fn is_nested(&self, ask: &Ask) -> bool {
        self.replica.has_guards(self.member(), ask.thread)
    }

    /// The deadlock that a request is in, if it is the one to report it.
    pub(crate) fn deadlock(&self, id: RequestId) -> Option<Deadlock> {
        let waits = self.outcome(id) == Outcome::Waits;
        let cycle = waits.then(|| self.replica.deadlock_of_one(id)).flatten()?;
        Some(report::deadlock(&self.replica, &cycle))
    }

    /// Puts a request into the outbox. A try is not to wait.
    pub(crate) fn ask(&mut self, mut ask: Ask, is_try: bool) -> RequestId {
        self.requests += 1;
        let id = RequestId { member: self.member(), number: self.requests };
        ask.id = id;
        // Waiters are told by their member alone: which of its requests moved, it sees itself.
        ask.channel = Some(0);
        self.own.insert(id.number, Outcome::Unheard);
        self.outbox.push(if is_try { Event::Try(ask) } else { Event::Ask(ask) });
        id
    }

    pub(crate) fn withdraw(&mut self, id: RequestId) {
        self.own.remove(&id.number);
        self.outbox.push(Event::Withdraw(id, 0));
    }

    /// Forgets a request that is refused, or is to be if it is not heard yet.
    pub(crate) fn forget(&mut self, id: RequestId) {
        if self.own.remove(&id.number) == Some(Outcome::Unheard) {
            self.outbox.push(Event::Withdraw(id, 0));
        }
    }

    pub(crate) fn downgrade(&mut self, id: RequestId) {
        self.outbox.push(Event::Downgrade(id, 0));
    }

    pub(crate) fn outcome(&self, id: RequestId) -> Outcome {
        self.own.get(&id.number).copied().unwrap_or(Outcome::Refused)
    }

    /// Whether any request of this client waits.
    pub(crate) fn has_waiters(&self) -> bool {
        self.own.values().any(|outcome| *outcome == Outcome::Waits)
    }

    /// What to say next: what was said before, if its reply is not known, or else all that is in the outbox. Nothing of that
    /// while the engine takes no batches, which is no reason not to renew the session.
    pub(crate) fn call(&mut self, takes_batches: bool, renews: bool) -> Says {
        if takes_batches && self.in_flight.is_none() && !self.outbox.is_empty() {
            self.batches += 1;
            let events = std::mem::take(&mut self.outbox);
            let lets_go = events.iter().all(|event| matches!(event, Event::Withdraw(..) | Event::Downgrade(..)));
            let written = write(&(self.batches, events));
            self.in_flight = Some(Batch { written, last: self.requests, lets_go });
        }
        let is_long = self.kept > MOST_KEPT.max(4 * self.replica.requests.len() as u64);
        let written = || Written { authors: self.authors.clone(), replica: self.replica.store() };
        let snapshot = (is_long && self.is_up_to_date()).then(|| (self.seen, write(&written())));
        let batch = self.in_flight.as_ref().filter(|_| takes_batches);
        self.is_said = batch.is_some();
        let wants_news = !batch.is_some_and(|batch| batch.lets_go);
        let batch = batch.map(|batch| batch.written.clone());
        let is_open = self.is_open;
        Says::GoesOn { session: self.id, since: self.seen, is_open, renews, wants_news, batch, snapshot }
    }

    /// The last call's batch is written, and nothing is said of the order.
    pub(crate) fn hear_that_it_is_written(&mut self) {
        if let Some(batch) = self.in_flight.take_if(|_| self.is_said) {
            self.written = batch.last;
        }
    }

    /// Takes the answer to the last call. On an error it is of no use any longer.
    pub(crate) fn hear(&mut self, news: News) -> Result<(), Ended> {
        let is_closed = news.closed.is_some_and(|rest| !rest.is_zero());
        self.is_open |= news.closed.is_some() && !is_closed;
        // Only a reply to a call that had the batch says that it is written.
        if !is_closed {
            self.hear_that_it_is_written();
        }
        self.head = news.head;
        if let Some((position, bytes)) = news.snapshot {
            // That of an order that begins is empty.
            let written = match &bytes[..] {
                [] => Written::default(),
                bytes => read(bytes)?,
            };
            self.authors = written.authors;
            self.replica.apply(Event::Begin(Box::new(written.replica)), &mut Effects::default());
            (self.seen, self.last) = (position, None);
            self.settle_waiting();
        }
        let mut entries = news.entries.into_iter().peekable();
        if let Some(known) = entries.next_if(|first| first.position == self.seen) {
            if self.last.as_ref().is_some_and(|last| *last != known) {
                return Err(Ended::Damaged);
            }
        }
        self.kept = news.kept.unwrap_or(self.kept + entries.len() as u64);
        let is_all = entries.len() < MOST_ENTRIES;
        for entry in entries {
            self.apply(entry)?;
        }
        if self.is_up_to_date() {
            if self.id != SessionId::nobody(self.id.identity) {
                let last = self.author(self.id.member, self.id.key).ok_or(Ended::Over)?.last;
                // One that was written, and is not there: a copy was promoted that lacks it.
                if last + u64::from(self.in_flight.is_some()) < self.batches {
                    return Err(Ended::Damaged);
                }
            }
            // Their entry is one of those that the snapshot stands for.
            let written = self.own.range(..=self.written);
            let unheard: Vec<u64> =
                written.filter(|(_, own)| **own == Outcome::Unheard).map(|(&own, _)| own).collect();
            unheard.into_iter().for_each(|number| self.settle(number));
        } else if is_all {
            return Err(Ended::Damaged);
        }
        Ok(())
    }

    /// What is known of the session of this name, if it is not over.
    fn author(&self, member: u64, key: u64) -> Option<&Author> {
        self.authors.get(&member).filter(|author| author.key == key)
    }

    fn apply(&mut self, entry: Entry) -> Result<(), Ended> {
        if entry.position <= self.seen {
            return Err(Ended::Damaged);
        }
        self.seen = entry.position;
        // By the engine's clock, for all alike.
        let now = entry.position.0 / 1000;
        let member = MemberId(entry.member);
        let mut effects = Effects::default();
        if entry.events.is_empty() {
            if self.author(entry.member, entry.key).is_none() {
                return Err(Ended::Damaged);
            }
            self.authors.remove(&entry.member);
            if member == self.member() {
                return Err(Ended::Over);
            }
            self.replica.apply(Event::Leave(member, now), &mut effects);
        } else {
            let (number, events): (u64, Vec<Event>) = read(&entry.events)?;
            if self.counts(&entry, number, &events)? {
                for event in events {
                    self.apply_event(event, member, now, &mut effects)?;
                }
            }
        }
        if effects.moved.iter().any(|&(moved, _)| moved == self.member()) {
            self.settle_waiting();
        }
        self.last = Some(entry);
        Ok(())
    }

    /// Whether a batch is to be read, or passed over: see invariant 1.
    fn counts(&mut self, entry: &Entry, number: u64, events: &[Event]) -> Result<bool, Ended> {
        if let [Event::Join(_)] = events {
            let is_next = self.replica.next_member().0 == entry.member && number == 0;
            self.authors.insert(entry.member, Author { key: entry.key, last: 0 });
            return if is_next { Ok(true) } else { Err(Ended::Damaged) };
        }
        let author = self.authors.get_mut(&entry.member).filter(|author| author.key == entry.key);
        let Some(author) = author.filter(|author| number > author.last) else { return Ok(false) };
        // Its batches before that are lost.
        if number > author.last + 1 {
            return Err(Ended::Damaged);
        }
        author.last = number;
        Ok(true)
    }

    fn apply_event(
        &mut self,
        mut event: Event,
        member: MemberId,
        now: u64,
        effects: &mut Effects,
    ) -> Result<(), Ended> {
        let (is_its, asked) = match &mut event {
            Event::Join(_) => (self.replica.next_member() == member, None),
            Event::Ask(ask) | Event::Try(ask) => {
                ask.asked = now;
                (ask.id.member == member, Some(&*ask))
            }
            Event::Withdraw(id, at) | Event::Downgrade(id, at) => {
                *at = now;
                (id.member == member, None)
            }
            Event::Leave(..) | Event::Begin(_) | Event::Next(_) => (false, None),
        };
        if !is_its {
            return Err(Ended::Damaged);
        }
        let own = asked.filter(|_| member == self.member()).map(|ask| (ask.id.number, self.replica.is_odd(ask)));
        self.replica.apply(event, effects);
        match own {
            Some((number, true)) => drop(self.own.entry(number).and_modify(|own| *own = Outcome::OddFrame)),
            Some((number, false)) => self.settle(number),
            None => {}
        }
        Ok(())
    }

    /// Looks what has become of a request that is in the order.
    fn settle(&mut self, number: u64) {
        let id = RequestId { member: self.member(), number };
        let outcome = match self.replica.requests.get(&id) {
            Some(request) if request.is_granted() => Outcome::Granted(self.seen),
            Some(_) => Outcome::Waits,
            None => Outcome::Refused,
        };
        // It may have been withdrawn meanwhile.
        self.own.entry(number).and_modify(|own| *own = outcome);
    }

    fn settle_waiting(&mut self) {
        let waiting = self.own.iter().filter(|(_, own)| **own == Outcome::Waits);
        let waiting: Vec<u64> = waiting.map(|(&number, _)| number).collect();
        waiting.into_iter().for_each(|number| self.settle(number));
    }
}

/// With a sum behind it. What it tells of is what somebody has broken or written by mistake: whoever may write in a namespace is
/// trusted, and the network has sums of its own.
pub(super) fn write(what: &impl Serialize) -> Vec<u8> {
    let mut bytes = postcard::to_stdvec(what).expect("it has no part that cannot be written");
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Ended> {
    let (written, sum) = bytes.split_last_chunk().ok_or(Ended::Damaged)?;
    if crc32fast::hash(written).to_le_bytes() != *sum {
        return Err(Ended::Damaged);
    }
    postcard::from_bytes(written).map_err(|_| Ended::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::node_id::Seeds;
    use crate::core::owner::Owner;
    use crate::machine::engine::{Call, Identity, Reply};
    use crate::machine::memory::Memory;
    use crate::replica::ask::Asking;
    use proptest::prelude::*;
    use std::ops::Bound;
    use std::panic::Location;
    use std::time::Duration;

    const TIME_TO_LIVE: Duration = Duration::from_secs(1);

    /// An engine, and when it has its next call.
    #[derive(Clone, Default)]
    struct World {
        engine: Memory,
        now: u64,
        identities: u64,
    }

    impl World {
        fn exchange(&mut self, says: Says) -> News {
            self.identities += 1;
            let call = Call { fresh: Identity([self.identities, 0]), time_to_live: TIME_TO_LIVE, says };
            match self.engine.exchange(self.now, &call) {
                Reply::News(news) => news,
                other => panic!("{other:?}"),
            }
        }

        fn join(&mut self, user: &str) -> Session {
            Session::begin(self.exchange(Session::join(About::this_process(0, user.to_owned()), false))).unwrap()
        }

        fn goes_on(&mut self, session: &mut Session, renews: bool) -> Result<(), Ended> {
            let says = session.call(true, renews);
            session.hear(self.exchange(says))
        }
    }

    /// Whatever the client believes of the time: its clock may be ahead.
    #[test]
    fn batch_that_a_closed_order_does_not_take_is_said_again() {
        let mut world = World::default();
        let mut session = world.join("one");
        let id = RequestId { member: session.member(), number: 1 };
        session.withdraw(id);
        for _ in 0..2 {
            world.goes_on(&mut session, false).unwrap();
            assert!(session.has_to_say(), "the order is closed");
        }
        world.now += TIME_TO_LIVE.as_micros() as u64;
        world.goes_on(&mut session, false).unwrap();
        assert!(!session.has_to_say());
    }

    /// A copy that lagged and was promoted can give a position again that was seen before.
    #[test]
    fn other_entry_at_the_position_that_was_seen_is_noticed() {
        let mut world = World::default();
        let mut session = world.join("one");
        let mut lagging = world.clone();
        world.join("ada");
        (0..2).for_each(|_| world.goes_on(&mut session, true).unwrap());
        lagging.join("bob");
        assert_eq!(lagging.engine.entries(Bound::Included(session.seen())).count(), 1, "it gave it again");
        assert_eq!(lagging.goes_on(&mut session, true), Err(Ended::Damaged));
    }

    /// Its author has gone on from what is lost, so others can tell who have not seen it.
    #[test]
    fn batches_that_are_lost_are_missed() {
        let mut world = World::default();
        let (mut author, mut reader) = (world.join("author"), world.join("reader"));
        world.goes_on(&mut author, true).unwrap();
        let mut batch_at = |position: Position| {
            author.withdraw(RequestId { member: author.member(), number: 1 });
            let Says::GoesOn { batch: Some(events), .. } = author.call(true, false) else { panic!("it has one") };
            let SessionId { member, key, .. } = author.id();
            let entry = Entry { position, member, key, events };
            author.hear(News::only(author.id(), vec![entry.clone()], position)).unwrap();
            entry
        };
        let after = |position: Position| Position(position.0 + 1);
        let first = batch_at(after(reader.seen()));
        let lost = batch_at(after(first.position));
        let third = batch_at(after(lost.position));
        let (id, head) = (reader.id(), third.position);
        assert_eq!(reader.hear(News::only(id, vec![first, third], head)), Err(Ended::Damaged));
    }

    /// Another one has its number in the copy that was promoted, and what it has seen is traded for a snapshot there.
    #[test]
    fn session_of_a_lost_tail_is_over() {
        let mut world = World::default();
        let mut lagging = world.clone();
        let mut session = world.join("one");
        lagging.identities = 100;
        lagging.join("another");
        let mut news = lagging.exchange(Says::Looks { since: Position::default() });
        news.session = session.id();
        assert_eq!(session.hear(news), Err(Ended::Over));
    }

    /// A snapshot of four requests: two are granted, one is nested, and one waits.
    fn snapshot_of_some() -> (News, Vec<u8>) {
        let mut world = World::default();
        let mut session = world.join("one");
        world.now += TIME_TO_LIVE.as_micros() as u64;
        let asking = Asking { seeds: Seeds::specified(session.id().identity.0), location: Some(String::new()) };
        for (thread, owner, root) in
            [(0, Owner::Thread, "a/b"), (0, Owner::Thread, "a/b/c"), (1, Owner::Itself, "d"), (2, Owner::Thread, "a")]
        {
            let mut ask = asking.plan::<str, _, _>(&["e"], &[root], owner, Location::caller()).unwrap();
            ask.thread = thread;
            session.ask(ask, false);
        }
        world.goes_on(&mut session, true).unwrap();
        assert_eq!(session.replica.requests.len(), 4);
        let bytes = write(&Written { authors: session.authors.clone(), replica: session.replica.store() });
        (world.exchange(Says::Looks { since: Position::default() }), bytes)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Of the snapshot, or of the batch that comes after it.
        #[test]
        fn scribbled_bytes_are_damage(
            is_batch: bool,
            scribbles in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let (mut news, mut snapshot) = snapshot_of_some();
            let SessionId { member, key, .. } = SessionId { member: 0, ..news.session };
            let head = Position(news.head.0 + 1);
            let leaves = write(&(2u64, vec![Event::Withdraw(RequestId { member: MemberId(0), number: 1 }, 0)]));
            let mut entry = Entry { position: head, member, key, events: leaves };
            let scribbled = if is_batch { &mut entry.events } else { &mut snapshot };
            let before = scribbled.clone();
            scribbles.into_iter().for_each(|(at, byte)| *at.get_mut(scribbled) = byte);
            let is_damaged = *scribbled != before;
            (news.entries, news.snapshot, news.head) = (vec![entry], Some((news.head, snapshot)), head);
            let begun = Session::begin(news);
            prop_assert_eq!(begun.err(), is_damaged.then_some(Ended::Damaged));
        }
    }
}
