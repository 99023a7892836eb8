//! An engine in the memory of a test. It follows the rules of `engine.rs` as the scripts in `redis/` do, one by one, and loses
//! what it is told to lose.
//!
//! It has no clock: the test says what time it is. A clone of it is what a lagging copy of a server has; to put the clone in
//! its place is what the promotion of that copy does.

use super::engine::{Batch, Call, Entry, Identity, MOST_ENTRIES, News, Position, Reply, Says, SessionId};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

type Log = BTreeMap<Position, (Option<u64>, Vec<u8>)>;

/// What the four keys of a server have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    meta: Option<Meta>,
    /// The first entry of an order is nobody's.
    log: Option<Log>,
    /// When the session of each member ends.
    live: BTreeMap<u64, u64>,
    snap: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
struct Meta {
    identity: Identity,
    head: Position,
    snapped: Position,
    opens: u64,
    lives: u64,
    members: u64,
    alive: usize,
    /// Of each member that has a session, the key of that and the number of its last batch; `None` if it has no batch because
    /// the order was closed when it joined.
    batches: BTreeMap<u64, (u64, Option<u64>)>,
}

/// What a server may lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    All,
    Meta,
    Log,
    Live,
    Snap,
    /// The oldest entry of the log, as somebody's `XTRIM` does.
    Oldest,
}

impl Meta {
    /// The number of the last batch of a session, if that is not over.
    fn last_batch(&self, session: &SessionId) -> Option<Option<u64>> {
        self.batches.get(&session.member).filter(|(key, _)| *key == session.key).map(|(_, last)| *last)
    }
}

impl Memory {
    pub(crate) fn lose(&mut self, part: Part) {
        match part {
            Part::All => *self = Memory::default(),
            Part::Meta => self.meta = None,
            Part::Log => self.log = None,
            Part::Live => self.live.clear(),
            Part::Snap => self.snap = None,
            Part::Oldest => _ = self.log.as_mut().and_then(BTreeMap::pop_first),
        }
    }

    /// Has the session of a member end at a time.
    pub(crate) fn end_session(&mut self, session: &SessionId, end: u64) {
        if self.meta.as_ref().is_some_and(|meta| meta.last_batch(session).is_some()) {
            self.live.entry(session.member).and_modify(|until| *until = end);
        }
    }

    /// Ends the time for which a new order is closed; `false` if there is no order.
    pub(crate) fn open(&mut self) -> bool {
        self.meta.as_mut().map(|meta| meta.opens = 1).is_some()
    }

    pub(crate) fn identity(&self) -> Option<Identity> {
        self.meta.as_ref().map(|meta| meta.identity)
    }

    /// The entries from a position on that are kept.
    pub(crate) fn entries(&self, from: Bound<Position>) -> impl Iterator<Item = (Position, Option<u64>, &[u8])> {
        let entries = self.log.iter().flat_map(move |log| log.range((from, Bound::Unbounded)));
        entries.map(|(&position, (member, events))| (position, *member, &events[..]))
    }

    fn entries_from(&self, since: Position) -> Vec<Entry> {
        let entries = self.entries(Bound::Included(since)).take(MOST_ENTRIES + 1);
        let entries = entries.map(|(position, member, events)| Entry {
            position,
            member: member.unwrap_or(u64::MAX),
            events: events.to_vec(),
        });
        entries.collect()
    }

    /// The exchange, at a time in microseconds.
    pub(crate) fn exchange(&mut self, now: u64, call: &Call) -> Reply {
        if let Says::GoesOn { session, since, renews: false, batch, snapshot: None } = &call.says {
            if let Some(news) = self.short(now, *session, *since, batch.as_ref()) {
                return Reply::News(news);
            }
        }
        let lives = call.time_to_live.as_micros() as u64;
        if matches!(call.says, Says::Looks { .. })
            && !self.meta.as_ref().is_some_and(|meta| self.is_whole(meta, &call.says))
        {
            return Reply::NoOrder;
        }
        // 1. The order is whole, or it begins anew.
        let whole = self.meta.take().ok_or(None).and_then(|meta| match self.is_whole(&meta, &call.says) {
            true => Ok(meta),
            false => Err(Some(meta.head)),
        });
        let mut meta = whole.unwrap_or_else(|old| {
            let since = match call.says {
                Says::GoesOn { since, .. } => since,
                _ => Position(0),
            };
            let head = Position(now.max(old.unwrap_or_default().0 + 1).max(since.0 + 1));
            self.log = Some(BTreeMap::from([(head, (None, Vec::new()))]));
            self.live.clear();
            self.snap = Some(Vec::new());
            let (identity, opens) = (call.fresh, now + lives);
            Meta { identity, head, snapped: head, opens, lives, members: 0, alive: 0, batches: BTreeMap::new() }
        });
        let reply = self.answer(&mut meta, now, lives, call);
        self.meta = Some(meta);
        reply
    }

    /// The short way, which looks at little; `None` if that tells it to take the long way.
    fn short(&mut self, now: u64, session: SessionId, since: Position, batch: Option<&Batch>) -> Option<News> {
        if let Some(batch) = batch {
            let mut meta = self.meta.take()?;
            let is_next = meta.identity == session.identity
                && meta.last_batch(&session).flatten().is_some_and(|last| batch.number == last + 1)
                && self.log.is_some();
            let is_alone = meta.head == since;
            if is_next {
                self.write(&mut meta, now, &session, batch);
            }
            let head = meta.head;
            self.meta = Some(meta);
            if !is_next {
                return None;
            } else if is_alone {
                let entry = Entry { position: head, member: session.member, events: batch.events.clone() };
                return Some(short_news(session, vec![entry], since));
            }
        }
        let entries = self.entries_from(since);
        entries.first().is_some_and(|first| first.position == since).then(|| short_news(session, entries, since))
    }

    fn is_whole(&self, meta: &Meta, says: &Says) -> bool {
        if let Says::Breaks { identity } = says {
            return meta.identity != *identity;
        }
        let has = |position: &Position| self.log.as_ref().is_some_and(|log| log.contains_key(position));
        if self.live.len() != meta.alive || !has(&meta.head) || !has(&meta.snapped) || self.snap.is_none() {
            return false;
        }
        match says {
            Says::GoesOn { session, since, .. } if session.identity == meta.identity => {
                *since <= meta.head && (*since < meta.snapped || has(since))
            }
            _ => true,
        }
    }

    fn answer(&mut self, meta: &mut Meta, now: u64, lives: u64, call: &Call) -> Reply {
        let says = &call.says;
        // 2.
        let identity = match says {
            Says::Joins { .. } | Says::Looks { .. } => meta.identity,
            Says::GoesOn { session, .. } | Says::Leaves { session } => session.identity,
            Says::Breaks { identity } => *identity,
        };
        if identity != meta.identity {
            return Reply::OrderLost;
        }
        // 3. The dead are buried, those first whose time ended first.
        let renews = !matches!(says, Says::GoesOn { renews: false, .. } | Says::Looks { .. });
        if renews {
            let dead = self.live.iter().filter(|(_, end)| **end < now);
            let mut dead: Vec<u64> = dead.map(|(&member, _)| member).collect();
            dead.sort_by_key(|member| (self.live[member], format!("{member}.")));
            dead.into_iter().for_each(|member| self.leave(meta, now, member));
        }
        // 4.
        let (session, since) = match says {
            Says::Looks { since } => (SessionId::nobody(identity), Some(*since)),
            Says::Joins { events, insists } => {
                if meta.alive == 0 {
                    meta.lives = lives;
                } else if *insists && meta.lives != lives {
                    return Reply::OtherTimeToLive(Duration::from_micros(meta.lives));
                }
                let session = SessionId { identity, member: meta.members, key: call.fresh.key() };
                meta.members += 1;
                meta.alive += 1;
                self.write(meta, now, &session, &Batch { number: 0, events: events.clone() });
                if now < meta.opens {
                    meta.batches.insert(session.member, (session.key, None));
                }
                (session, None)
            }
            Says::GoesOn { session, since, batch, .. } => {
                let Some(last) = meta.last_batch(session) else { return Reply::Expired };
                // 5.
                if let Some(batch) = batch.as_ref().filter(|batch| batch.number > last.unwrap_or(0)) {
                    if now < meta.opens {
                        return Reply::Closed(Duration::from_micros(meta.opens - now));
                    }
                    self.write(meta, now, session, batch);
                }
                (*session, Some(*since))
            }
            Says::Leaves { session } => {
                if meta.last_batch(session).is_some() {
                    self.leave(meta, now, session.member);
                }
                return Reply::Expired;
            }
            // Its identity is no longer that of the order.
            Says::Breaks { .. } => return Reply::OrderLost,
        };
        // 6.
        if renews {
            self.live.insert(session.member, now + meta.lives);
        }
        // 7.
        if let Says::GoesOn { snapshot: Some((position, bytes)), .. } = says {
            if *position > meta.snapped && *position <= meta.head {
                meta.snapped = *position;
                self.snap = Some(bytes.clone());
                self.log = self.log.take().map(|mut log| log.split_off(position));
            }
        }
        // 8.
        let is_older = since.is_none_or(|since| since < meta.snapped);
        let snapshot = is_older.then(|| (meta.snapped, self.snap.clone().expect("it is whole")));
        let since = since.unwrap_or_default().max(meta.snapped);
        let first_end = self.live.values().min().map_or(0, |end| end.saturating_sub(now));
        Reply::News(News {
            session,
            snapshot,
            entries: self.entries_from(since),
            head: meta.head,
            kept: self.log.as_ref().map(|log| log.len() as u64),
            first_end: renews.then(|| Duration::from_micros(first_end)),
            time_to_live: Some(Duration::from_micros(meta.lives)),
        })
    }

    fn write(&mut self, meta: &mut Meta, now: u64, session: &SessionId, batch: &Batch) {
        self.append(meta, now, session.member, batch.events.clone());
        meta.batches.insert(session.member, (session.key, Some(batch.number)));
    }

    fn append(&mut self, meta: &mut Meta, now: u64, member: u64, events: Vec<u8>) {
        meta.head = Position(now.max(meta.head.0 + 1));
        self.log.as_mut().expect("it was looked at").insert(meta.head, (Some(member), events));
    }

    fn leave(&mut self, meta: &mut Meta, now: u64, member: u64) {
        self.live.remove(&member);
        meta.batches.remove(&member);
        meta.alive -= 1;
        self.append(meta, now, member, Vec::new());
    }
}

/// As the adapter makes it.
fn short_news(session: SessionId, entries: Vec<Entry>, since: Position) -> News {
    let last = entries.last().map_or(since, |last| last.position);
    let head = if entries.len() <= MOST_ENTRIES { last } else { Position(last.0 + 1) };
    News { session, snapshot: None, entries, head, kept: None, first_end: None, time_to_live: None }
}
