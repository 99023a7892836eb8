//! An engine in the memory of a test. It follows the rules of `engine.rs` as the scripts in `redis/` do, one by one, and loses
//! what it is told to lose.
//!
//! It has no clock: the test says what time it is. A clone of it is what a lagging copy of a server has; to put the clone in
//! its place is what the promotion of that copy does.

use super::engine::{Call, Entry, Identity, MOST_ENTRIES, News, Position, Reply, Says, SessionId, Short};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

/// Each entry has the member and the key of its session; the first of an order is nobody's.
type Log = BTreeMap<Position, (Option<(u64, u64)>, Vec<u8>)>;

/// What the four keys of a server have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    meta: Option<Meta>,
    log: Option<Log>,
    /// When each session ends, by its member and key.
    live: BTreeMap<(u64, u64), u64>,
    snap: Option<Vec<u8>>,
    /// Of the order that the log is of.
    last: Option<Identity>,
}

#[derive(Clone, Debug)]
struct Meta {
    identity: Identity,
    /// No new order begins before it.
    head: Position,
    snapped: Position,
    opens: u64,
    lives: u64,
    members: u64,
    alive: usize,
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
    #[cfg(any(feature = "postgres", feature = "redis"))]
    pub(crate) fn end_session(&mut self, session: &SessionId, end: u64) {
        self.live.entry((session.member, session.key)).and_modify(|until| *until = end);
    }

    /// Ends the time for which a new order is closed; `false` if there is no order.
    pub(crate) fn open(&mut self) -> bool {
        self.meta.as_mut().map(|meta| meta.opens = 1).is_some()
    }

    /// The order that the log is of, whether it is whole or not.
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.last
    }

    /// The entries from a position on that are kept.
    pub(crate) fn entries(&self, from: Bound<Position>) -> impl Iterator<Item = Entry> {
        let entries = self.log.iter().flat_map(move |log| log.range((from, Bound::Unbounded)));
        let SessionId { member, key, .. } = SessionId::nobody(Identity([0; 2]));
        entries.map(move |(&position, (author, events))| {
            let (member, key) = author.unwrap_or((member, key));
            Entry { position, member, key, events: events.clone() }
        })
    }

    fn entries_from(&self, since: Position) -> Vec<Entry> {
        self.entries(Bound::Included(since)).take(MOST_ENTRIES + 1).collect()
    }

    /// The position of the last entry.
    pub(crate) fn head(&self) -> Option<Position> {
        Some(*self.log.as_ref()?.last_key_value()?.0)
    }

    /// The exchange, at a time in microseconds.
    pub(crate) fn exchange(&mut self, now: u64, call: &Call) -> Reply {
        if let Some(reply) = call.says.short().and_then(|call| self.short(now, call)) {
            return reply;
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
            let old = old.max(self.head()).unwrap_or_default();
            let head = Position(now.max(old.0 + 1).max(since.0 + 1));
            self.log = Some(BTreeMap::from([(head, (None, Vec::new()))]));
            self.live.clear();
            self.snap = Some(Vec::new());
            self.last = Some(call.fresh);
            let (identity, opens) = (call.fresh, now + lives);
            Meta { identity, head, snapped: head, opens, lives, members: 0, alive: 0 }
        });
        let reply = self.answer(&mut meta, now, lives, call);
        if !matches!(call.says, Says::Looks { .. }) && !matches!(reply, Reply::OrderLost) {
            meta.head = self.head().expect("an order has an entry");
        }
        self.meta = Some(meta);
        reply
    }

    /// The short way, which looks at little; `None` if that tells it to take the long way.
    fn short(&mut self, now: u64, call: Short<'_>) -> Option<Reply> {
        if let Some(batch) = call.batch.filter(|_| self.log.is_some()) {
            self.append(now, author(&call.session), batch.to_vec());
            if !call.wants_news {
                return Some(Reply::Written);
            }
        }
        call.news(self.entries_from(call.since))
    }

    fn is_whole(&self, meta: &Meta, says: &Says) -> bool {
        if let Says::Breaks { identity } = says {
            return meta.identity != *identity;
        }
        let has = |position: &Position| self.log.as_ref().is_some_and(|log| log.contains_key(position));
        let head = self.head().unwrap_or_default();
        if self.live.len() != meta.alive || head < meta.head || !has(&meta.snapped) || self.snap.is_none() {
            return false;
        }
        match says {
            Says::GoesOn { session, since, .. } if session.identity == meta.identity => {
                *since <= head && (*since < meta.snapped || has(since))
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
            let mut dead: Vec<(u64, u64)> = dead.map(|(&author, _)| author).collect();
            dead.sort_by_key(|author| (self.live[author], format!("{}.", author.0)));
            dead.into_iter().for_each(|author| self.leave(meta, now, author));
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
                self.append(now, author(&session), events.clone());
                (session, None)
            }
            Says::GoesOn { session, since, batch, .. } => {
                if !self.live.contains_key(&author(session)) {
                    return Reply::Expired;
                }
                // 5.
                if let Some(batch) = batch.as_ref().filter(|_| now >= meta.opens) {
                    self.append(now, author(session), batch.clone());
                }
                (*session, Some(*since))
            }
            Says::Leaves { session } => {
                if self.live.contains_key(&author(session)) {
                    self.leave(meta, now, author(session));
                }
                return Reply::Expired;
            }
            // Its identity is no longer that of the order.
            Says::Breaks { .. } => return Reply::OrderLost,
        };
        // 6.
        if renews {
            self.live.insert(author(&session), now + meta.lives);
        }
        // 7.
        if let Says::GoesOn { snapshot: Some((position, bytes)), .. } = says {
            if *position > meta.snapped && Some(*position) <= self.head() {
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
            head: self.head().expect("an order has an entry"),
            kept: self.log.as_ref().map(|log| log.len() as u64),
            first_end: renews.then(|| Duration::from_micros(first_end)),
            time_to_live: Some(Duration::from_micros(meta.lives)),
            closed: Some(Duration::from_micros(meta.opens.saturating_sub(now))),
        })
    }

    fn append(&mut self, now: u64, author: (u64, u64), events: Vec<u8>) {
        let head = Position(now.max(self.head().unwrap_or_default().0 + 1));
        self.log.as_mut().expect("it was looked at").insert(head, (Some(author), events));
    }

    fn leave(&mut self, meta: &mut Meta, now: u64, author: (u64, u64)) {
        self.live.remove(&author);
        meta.alive -= 1;
        self.append(now, author, Vec::new());
    }
}

fn author(session: &SessionId) -> (u64, u64) {
    (session.member, session.key)
}
