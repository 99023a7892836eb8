//! The exchange over a store, step by step: what is asked of the store, and what follows from its answers.
//!
//! It is written down as if the store answered at once, and asks by a [`Port`]. That of a client calls the store and blocks; that of the
//! simulation lets any time pass before each answer, and lets others have their turn. What a client knows changes with each answer and with
//! nothing else. So a call may end after any of them, and the next one goes on from what is known.
//!
//! The rules that are cited as R1 to R8 are those of the header of `items/mod.rs`.

use super::chain::{Author, Broken, Chain, Item, Order, Said, Snapshot, Unusable, foreign};
use super::store::{Created, Series};
use crate::machine::engine::{Call, Entry, Identity, News, Position, Reply, Says, SessionId};
use crate::machine::error::EngineError;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// So many entries are read at a time.
const MOST_READ: usize = 1000;

/// After so many conflicts one after the other a client pauses before it tries again.
const CONFLICTS_WITHOUT_PAUSE: u32 = 3;

/// What an exchange asks for. The first four are those of [`Store`](super::store::Store).
pub(super) trait Port {
    async fn create(&self, series: Series, number: u64, item: Vec<u8>) -> Result<Created, EngineError>;
    async fn read(&self, series: Series, from: u64, most: usize) -> Result<Vec<Vec<u8>>, EngineError>;
    async fn newest(&self, series: Series) -> Result<Option<u64>, EngineError>;
    async fn trim(&self, series: Series, below: u64) -> Result<(), EngineError>;

    /// A pause after so many conflicts.
    async fn pause(&self, conflicts: u32) -> Result<(), EngineError>;

    fn may_be_emptied(&self) -> bool;

    /// So long a client goes on asking.
    fn patience(&self) -> Duration;

    /// This client's monotonic clock, the only one that decides anything.
    fn now(&self) -> Instant;

    /// This client's wall clock, in microseconds since 1970.
    fn wall(&self) -> u64;

    /// A number that nobody else draws.
    fn draw(&self) -> u64;
}

/// What a client knows.
#[derive(Debug, Default)]
pub(super) struct State {
    known: Option<Known>,
    /// The order that was met last, and when.
    met: Option<(Identity, Instant)>,
}

/// What it knows of an order.
#[derive(Debug)]
struct Known {
    generation: u64,
    order: Order,
    /// When this client has met the order, by its own clock.
    met: Instant,
    chain: Chain,
    /// When the last entry of each session was read.
    heard: BTreeMap<Author, Instant>,
    /// The number of the snapshot that it began with.
    began: Option<u64>,
    /// The last entry that was known when the session was renewed last, or, before it has joined, when the snapshot was made: its number, and
    /// its tag.
    anchor: Option<(u64, u64)>,
    /// What the session of the client has not been told: the snapshot, and entries.
    start: Option<(Position, Vec<u8>)>,
    entries: Vec<Entry>,
    /// The position of the last of those.
    head: Position,
    /// Something was read that the order has not been looked at since (R6).
    is_doubtful: bool,
    /// A session was told of it, so that another one would need the snapshot again.
    is_told: bool,
    /// When the time to live of the namespace was first seen to be another one than the client insists on.
    differs: Option<Instant>,
    /// The entry that came next when a snapshot could not be kept. Another one is tried when there are as many again.
    refused: u64,
}

/// Why an exchange goes no further.
#[derive(Debug)]
enum Stop {
    Failed(EngineError),
    Replied(Reply),
    Broken,
}

impl From<EngineError> for Stop {
    fn from(error: EngineError) -> Self {
        Stop::Failed(error)
    }
}

impl From<Broken> for Stop {
    fn from(_: Broken) -> Self {
        Stop::Broken
    }
}

impl State {
    /// The order that is known, the number of the entry that comes next, and the position of the last one.
    pub(super) fn next(&self) -> Option<(Identity, u64, Position)> {
        self.known.as_ref().map(|known| (known.order.identity(), known.chain.next, known.head))
    }

    /// The exchange: see the header of `engine.rs`.
    pub(super) async fn exchange(&mut self, port: &impl Port, call: &Call) -> Result<Reply, EngineError> {
        let stop = match &call.says {
            Says::Joins { events, insists } => self.join(port, call, events, *insists).await,
            Says::GoesOn { .. } => self.go_on(port, &call.says).await,
            Says::Leaves { session } => self.leave(port, session).await,
            Says::Breaks { identity } => self.break_order(port, call, *identity).await,
            Says::Looks { .. } => self.look(port, call).await,
        };
        match stop {
            Ok(reply) | Err(Stop::Replied(reply)) => {
                if matches!(reply, Reply::OrderLost | Reply::Expired) {
                    self.known = None;
                }
                Ok(reply)
            }
            Err(Stop::Failed(error)) => Err(error),
            Err(Stop::Broken) => self.tell_broken(port).await,
        }
    }

    /// What cannot be, if the order is there yet, and needs the entries that the client lacks. In the void there are others like it (R5, R6).
    async fn tell_broken(&mut self, port: &impl Port) -> Result<Reply, EngineError> {
        let Some(known) = &mut self.known else { return Ok(Reply::OrderLost) };
        let identity = known.order.identity();
        let looked = match known.look_at_order(port, true).await {
            Ok(()) => known.was_trimmed_past(port).await.map_err(Stop::from),
            Err(stop) => Err(stop),
        };
        let reply = match looked {
            Err(Stop::Failed(error)) => return Err(error),
            Err(Stop::Replied(reply)) => reply,
            Ok(true) => Reply::Expired,
            Ok(false) | Err(Stop::Broken) => {
                let (session, entry) = foreign(identity);
                Reply::News(News::only(session, vec![entry], Position(u64::MAX)))
            }
        };
        self.known = None;
        Ok(reply)
    }

    /// The current order, and its number; begun, if there is none.
    async fn find(&mut self, port: &impl Port, call: &Call, begins: bool) -> Result<(u64, Order), Stop> {
        let fresh = |base: u64, replaces| {
            let lives = call.time_to_live.as_micros() as u64;
            Order::new(call.fresh, lives, port.wall().max(base), replaces)
        };
        loop {
            let (number, order) = match port.newest(Series::Orders).await? {
                None if !begins => return Err(Stop::Replied(Reply::NoOrder)),
                None => (0, fresh(0, None)),
                Some(newest) => {
                    let items = port.read(Series::Orders, newest, 1).await?;
                    // It is gone since.
                    let Some(bytes) = items.first() else { continue };
                    match Order::of_bytes(bytes) {
                        Ok(order) => return Ok((newest, order)),
                        Err(Unusable::OtherFormat(format)) => return Err(Stop::Replied(Reply::OtherFormat(format))),
                        Err(Unusable::Damaged) if !begins => return Err(EngineError::Damaged.into()),
                        Err(Unusable::Damaged) => (newest + 1, fresh(0, None)),
                    }
                }
            };
            if port.create(Series::Orders, number, order.to_bytes()).await? == Created::New {
                return Ok((number, order));
            }
        }
    }

    /// Begins to know the current order: by its newest snapshot, if there is one.
    async fn begin(&mut self, port: &impl Port, call: &Call, begins: bool) -> Result<&mut Known, Stop> {
        let (generation, order) = self.find(port, call, begins).await?;
        let identity = order.identity();
        let met = match self.met {
            Some((met, when)) if met == identity => when,
            _ => port.now(),
        };
        self.met = Some((identity, met));
        let mut known = Known {
            generation,
            met,
            chain: Chain::of_order(&order),
            heard: BTreeMap::new(),
            began: None,
            anchor: None,
            start: None,
            entries: Vec::new(),
            head: Position(0),
            is_doubtful: true,
            is_told: false,
            differs: None,
            refused: 0,
            order,
        };
        loop {
            let Some(newest) = port.newest(Series::Snapshots(identity)).await? else { break };
            let items = port.read(Series::Snapshots(identity), newest, 1).await?;
            let Some(bytes) = items.first() else { continue };
            let Ok(Snapshot { mut chain, head, sessions }) = Snapshot::of_bytes(bytes) else {
                known.began = Some(newest);
                self.known = Some(known);
                return Err(Stop::Broken);
            };
            known.began = Some(newest);
            known.anchor = Some((newest, chain.tag));
            chain.snapped = Some(newest);
            let now = port.now();
            known.heard = chain.sessions.keys().map(|&session| (session, now)).collect();
            (known.chain, known.head) = (chain, Position(head));
            known.start = Some((known.head, sessions));
            break;
        }
        Ok(self.known.insert(known))
    }

    async fn join(&mut self, port: &impl Port, call: &Call, events: &[u8], insists: bool) -> Result<Reply, Stop> {
        let (key, lives) = (call.fresh.key(), call.time_to_live.as_micros() as u64);
        self.known.take_if(|known| known.is_told);
        loop {
            let known = match &mut self.known {
                Some(known) => known,
                None => self.begin(port, call, true).await?,
            };
            known.read_on(port).await?;
            let mut other = None;
            known
                .append(port, |known, now| {
                    let has_joined = known.chain.sessions.keys().any(|(_, of)| *of == key);
                    let buries = known.overdue(now, None);
                    let is_first = known.chain.sessions.len() == buries.len();
                    if insists && !is_first && known.chain.lives != lives {
                        other = Some(known.chain.lives);
                    }
                    (!has_joined && other.is_none()).then(|| Said {
                        author: Some((known.chain.members, key)),
                        buries,
                        joins: Some(lives),
                        events: Some(events.to_vec()),
                        ..Said::default()
                    })
                })
                .await?;
            if let Some(kept) = other.map(Duration::from_micros) {
                // Those that it has may all be over, which is known when nothing was heard of them for so long.
                let now = port.now();
                let refused = *known.differs.get_or_insert(now) + port.patience();
                let heard = known.heard.values().max().copied().unwrap_or(now);
                if heard + known.lives() < refused {
                    return Err(EngineError::other_time_to_live_yet(kept, call.time_to_live).into());
                }
                return Ok(Reply::OtherTimeToLive(kept));
            }
            // The order first: if it is there, all that was read was of it (R6).
            known.look_at_order(port, true).await?;
            if !known.began_with_the_newest(port).await? {
                self.known = None;
                continue;
            }
            let Some(&(member, key)) = known.chain.sessions.keys().find(|(_, of)| *of == key) else {
                return Ok(Reply::Expired);
            };
            known.is_told = true;
            known.anchor = known.last();
            let session = SessionId { identity: known.order.identity(), member, key };
            return Ok(Reply::News(known.news(port.now(), session, true, false)));
        }
    }

    async fn look(&mut self, port: &impl Port, call: &Call) -> Result<Reply, Stop> {
        loop {
            let known = self.begin(port, call, false).await?;
            let is_all = match known.read_on(port).await {
                Ok(()) => known.look_at_order(port, true).await,
                // It may have been trimmed meanwhile.
                Err(Stop::Broken) if !known.began_with_the_newest(port).await? => continue,
                Err(stop) => return Err(stop),
            };
            match is_all {
                Ok(()) if known.began_with_the_newest(port).await? => {
                    let session = SessionId::nobody(known.order.identity());
                    return Ok(Reply::News(known.news(port.now(), session, false, false)));
                }
                // Another one has begun meanwhile.
                Ok(()) | Err(Stop::Replied(Reply::OrderLost)) => {}
                Err(stop) => return Err(stop),
            }
        }
    }

    async fn go_on(&mut self, port: &impl Port, says: &Says) -> Result<Reply, Stop> {
        let Says::GoesOn { session, since, renews, wants_news, batch, snapshot, .. } = says else {
            unreachable!("it is one of those")
        };
        let known = self.known.as_mut().filter(|known| known.is_told && known.order.identity() == session.identity);
        let Some(known) = known else { return Ok(Reply::OrderLost) };
        known.entries.retain(|entry| entry.position > *since);
        let snapshot = snapshot.as_ref().and_then(|(position, bytes)| known.snapshot(*position, bytes));
        // Nobody trims what others need who are in the void.
        let renews = *renews || snapshot.is_some();
        let me = (session.member, session.key);
        let mut is_closed = false;
        if batch.is_some() || renews {
            known
                .append(port, |known, now| {
                    if !known.chain.sessions.contains_key(&me) {
                        return None;
                    }
                    let opens = !known.chain.is_open && known.rest_closed(now).is_zero();
                    is_closed = !known.chain.is_open && !opens;
                    // It may be there, where the answer was lost.
                    let events = batch.clone().filter(|batch| !is_closed && !known.has(me, batch));
                    (events.is_some() || renews).then(|| Said {
                        author: Some(me),
                        buries: known.overdue(now, Some(me)),
                        opens,
                        renews,
                        snapped: known.chain.snapped,
                        events,
                        ..Said::default()
                    })
                })
                .await?;
            if !known.chain.sessions.contains_key(&me) {
                return Ok(Reply::Expired);
            }
        } else {
            known.read_on(port).await?;
        }
        let is_written = batch.is_some() && !is_closed;
        let last = known.last();
        let reply = if is_written && !renews && !wants_news {
            Reply::Written
        } else {
            if renews || (known.is_doubtful && port.may_be_emptied()) {
                known.look_at_order(port, renews).await?;
            }
            if renews {
                known.look_at_anchor(port).await?;
                known.anchor = last;
            }
            let is_refused = batch.is_some() && is_closed;
            Reply::News(known.news(port.now(), *session, renews, is_refused))
        };
        if let Some(snapshot) = snapshot {
            // If it fails it is for a later one to do.
            if known.keep_snapshot(port, snapshot).await.is_err() {
                known.refused = known.chain.next;
            }
        }
        Ok(reply)
    }

    async fn leave(&mut self, port: &impl Port, session: &SessionId) -> Result<Reply, Stop> {
        let is_it = |known: &&mut Known| known.order.identity() == session.identity;
        if let Some(known) = self.known.as_mut().filter(is_it) {
            let dead = (session.member, session.key);
            let buries = |known: &Known, _| {
                let lives = known.chain.sessions.contains_key(&dead);
                lives.then(|| Said { buries: vec![dead], ..Said::default() })
            };
            match known.append(port, buries).await {
                Ok(()) | Err(Stop::Broken) => {}
                Err(stop) => return Err(stop),
            }
        }
        Ok(Reply::Expired)
    }

    /// Begins another order, if that is the current one.
    async fn break_order(&mut self, port: &impl Port, call: &Call, identity: Identity) -> Result<Reply, Stop> {
        let position = self.known.as_ref().map_or(0, |known| known.chain.position);
        if let Some(newest) = port.newest(Series::Orders).await? {
            let items = port.read(Series::Orders, newest, 1).await?;
            let order = items.first().and_then(|bytes| Order::of_bytes(bytes).ok());
            if order.is_some_and(|order| order.identity() == identity) {
                let lives = call.time_to_live.as_micros() as u64;
                let order = Order::new(call.fresh, lives, port.wall().max(position + 1), Some(identity));
                port.create(Series::Orders, newest + 1, order.to_bytes()).await?;
            }
        }
        Ok(Reply::OrderLost)
    }
}

impl Known {
    fn entries_of(&self) -> Series {
        Series::Entries(self.order.identity())
    }

    fn lives(&self) -> Duration {
        Duration::from_micros(self.chain.lives)
    }

    /// For how long the order is closed yet, for this client (R4).
    fn rest_closed(&self, now: Instant) -> Duration {
        (self.met + self.lives()).saturating_duration_since(now)
    }

    /// The sessions, without one's own, of which nothing was heard for one time to live (R3).
    fn overdue(&self, now: Instant, me: Option<Author>) -> Vec<Author> {
        let ended =
            self.heard.iter().filter(|(session, heard)| Some(**session) != me && **heard + self.lives() <= now);
        ended.map(|(&session, _)| session).collect()
    }

    fn last(&self) -> Option<(u64, u64)> {
        Some((self.chain.next.checked_sub(1)?, self.chain.tag))
    }

    /// Whether an entry of this session is known, and not told yet, that has this batch.
    fn has(&self, (member, key): Author, batch: &[u8]) -> bool {
        self.entries.iter().any(|entry| (entry.member, entry.key) == (member, key) && entry.events == batch)
    }

    fn take(&mut self, bytes: &[u8], now: Instant) -> Result<(), Broken> {
        let item = Item::of_bytes(bytes)?;
        let author = item.author();
        let entries = self.chain.take(item)?;
        self.is_doubtful = true;
        self.heard.extend(author.map(|author| (author, now)));
        self.heard.retain(|session, _| self.chain.sessions.contains_key(session));
        self.head = entries.last().map_or(self.head, |last| last.position);
        self.entries.extend(entries);
        Ok(())
    }

    /// Reads all entries that there are.
    async fn read_on(&mut self, port: &impl Port) -> Result<(), Stop> {
        loop {
            let items = port.read(self.entries_of(), self.chain.next, MOST_READ).await?;
            let now = port.now();
            for item in &items {
                self.take(item, now)?;
            }
            if items.is_empty() {
                return Ok(());
            }
        }
    }

    /// Appends an entry that is made from all entries before it; none, if nothing is to be said any longer (R2).
    async fn append(
        &mut self,
        port: &impl Port,
        mut says: impl FnMut(&Self, Instant) -> Option<Said>,
    ) -> Result<(), Stop> {
        let mut conflicts = 0;
        loop {
            let Some(said) = says(self, port.now()) else { return Ok(()) };
            let opens = said.opens;
            if opens {
                // One that is older would be the newest if this order's item was lost.
                port.trim(Series::Orders, self.generation).await?;
            }
            let item = self.chain.item(port.draw(), port.wall(), said).to_bytes();
            let created = port.create(self.entries_of(), self.chain.next, item.clone()).await?;
            let (there, is_own) = match created {
                Created::New => (item, true),
                // A service may have been told twice.
                Created::Taken(there) => {
                    let is_own = there == item;
                    (there, is_own)
                }
            };
            self.take(&there, port.now())?;
            if !is_own {
                conflicts += 1;
                if conflicts >= CONFLICTS_WITHOUT_PAUSE {
                    port.pause(conflicts).await?;
                }
                // Just before the next try, or that one is late again.
                self.read_on(port).await?;
                continue;
            }
            if let Some(older) = self.order.replaces().filter(|_| opens) {
                // Nobody has a lease in it any longer.
                let _ = port.trim(Series::Entries(older), u64::MAX).await;
                let _ = port.trim(Series::Snapshots(older), u64::MAX).await;
            }
            return Ok(());
        }
    }

    /// The order's item is there, and, if that is asked for, is the newest one (R6).
    async fn look_at_order(&mut self, port: &impl Port, is_newest: bool) -> Result<(), Stop> {
        let items = port.read(Series::Orders, self.generation, 1).await?;
        let is_there = items.first().is_some_and(|bytes| Order::of_bytes(bytes).as_ref() == Ok(&self.order));
        if !is_there {
            let other = items.first().map(|bytes| Order::of_bytes(bytes));
            return Err(Stop::Replied(match other {
                Some(Err(Unusable::OtherFormat(format))) => Reply::OtherFormat(format),
                _ => Reply::OrderLost,
            }));
        }
        if is_newest && port.newest(Series::Orders).await? != Some(self.generation) {
            return Err(Stop::Replied(Reply::OrderLost));
        }
        self.is_doubtful = false;
        Ok(())
    }

    /// Whether that entry is there. It is not trimmed, as it is the one by which this session was renewed, or a later one.
    async fn has_anchor(&self, port: &impl Port) -> Result<bool, EngineError> {
        let Some((number, tag)) = self.anchor else { return Ok(true) };
        let items = port.read(self.entries_of(), number, 1).await?;
        Ok(items.first().is_some_and(|bytes| Item::of_bytes(bytes).is_ok_and(|item| item.tag == tag)))
    }

    /// If not, the session is over: nobody has needed it, or an older copy took the place of what it knows (R5, R7).
    async fn look_at_anchor(&self, port: &impl Port) -> Result<(), Stop> {
        if self.has_anchor(port).await? { Ok(()) } else { Err(Stop::Replied(Reply::Expired)) }
    }

    /// Whether that was removed of which something is missing, since nobody needs it but one that is over or has not joined (R5).
    async fn was_trimmed_past(&self, port: &impl Port) -> Result<bool, EngineError> {
        let newest = port.newest(Series::Snapshots(self.order.identity())).await?;
        if !self.is_told {
            return Ok(newest != self.began);
        }
        Ok(newest > self.anchor.map(|(number, _)| number) || !self.has_anchor(port).await?)
    }

    /// Nothing that was read can have been trimmed, and written again by somebody who is over (R5); and the snapshot is of these entries (R7).
    async fn began_with_the_newest(&mut self, port: &impl Port) -> Result<bool, Stop> {
        if port.newest(Series::Snapshots(self.order.identity())).await? != self.began {
            return Ok(false);
        }
        if self.began.is_some() {
            return if self.has_anchor(port).await? { Ok(true) } else { Err(Stop::Broken) };
        }
        let newest = port.newest(self.entries_of()).await?;
        if newest.is_some_and(|newest| newest >= self.chain.next) {
            self.read_on(port).await?;
        }
        if newest.is_some_and(|newest| newest >= self.chain.next) {
            return Err(Stop::Broken);
        }
        Ok(true)
    }

    /// One that has all that is known, with its number, if the session that made it has been told of all that.
    fn snapshot(&self, position: Position, sessions: &[u8]) -> Option<(u64, Vec<u8>)> {
        let (number, _) = self.last()?;
        let is_all = self.entries.is_empty() && self.head == position;
        let snapshot = || Snapshot { chain: self.chain.clone(), head: self.head.0, sessions: sessions.to_vec() };
        is_all.then(|| (number, snapshot().to_bytes()))
    }

    /// Keeps it, and the one before it, and the entries that are not in that or that tell who lives (R5).
    async fn keep_snapshot(&mut self, port: &impl Port, (number, bytes): (u64, Vec<u8>)) -> Result<(), EngineError> {
        let snapshots = Series::Snapshots(self.order.identity());
        port.create(snapshots, number, bytes).await?;
        let before = self.chain.snapped.filter(|before| *before < number);
        self.chain.snapped = self.chain.snapped.max(Some(number));
        let Some(before) = before else { return Ok(()) };
        port.trim(self.entries_of(), self.chain.unneeded_below(before)).await?;
        port.trim(snapshots, before).await
    }

    /// All that was not told. `is_refused`: there was a batch, and the order was closed.
    fn news(&mut self, now: Instant, session: SessionId, renews: bool, is_refused: bool) -> News {
        let me = (session.member, session.key);
        let others = self.heard.iter().filter(|(session, _)| **session != me).map(|(_, heard)| *heard);
        let first_end =
            others.min().map_or(self.lives(), |heard| (heard + self.lives()).saturating_duration_since(now));
        let closed = if self.chain.is_open { Duration::ZERO } else { self.rest_closed(now) };
        News {
            session,
            snapshot: self.start.take(),
            entries: self.entries.clone(),
            head: self.head,
            kept: Some(self.chain.kept().min(self.chain.next - self.refused)),
            first_end: renews.then_some(first_end),
            time_to_live: Some(self.lives()),
            closed: Some(if is_refused { closed.max(Duration::from_millis(1)) } else { closed }),
        }
    }
}
