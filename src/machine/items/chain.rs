//! What stands in items, and what a client makes of them. Pure: no store, no clock.
//!
//! Entries make a *chain*: each has a tag, drawn for it, and names that of the entry before. So whoever reads an entry knows that the one
//! before is the one that its author had read, and with it all before that. An entry says up to four things: which sessions it buries, that
//! the order is open, that its author joins, and what events it brings. The first and the last are entries of the engine's contract, each
//! with a position of its own; any entry is a sign that its author lives.
//!
//! Positions are the wall clock of the author in microseconds, or one more than the last one if that is higher.
//!
//! Not here: which entry may be appended when (`exchange.rs`).

use crate::machine::engine::{Entry, FORMAT, Identity, Position, SessionId};
use crate::machine::session::{read, write};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A member's number and its key.
pub(super) type Author = (u64, u64);

/// What was read is not what a client has written here: it is damaged, or a part before it is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// An order, as the item says that begins it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    identity: [u64; 2],
    /// The first time to live, in microseconds.
    pub(super) lives: u64,
    /// All positions are above it, and it is above those that were known of older orders.
    pub(super) base: u64,
    /// The order that it took the place of.
    replaces: Option<[u64; 2]>,
}

/// Why an order cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    Damaged,
    OtherFormat(String),
}

impl Order {
    pub(super) fn new(identity: Identity, lives: u64, base: u64, replaces: Option<Identity>) -> Self {
        Order { identity: identity.0, lives, base, replaces: replaces.map(|order| order.0) }
    }

    pub(super) fn identity(&self) -> Identity {
        Identity(self.identity)
    }

    pub(super) fn replaces(&self) -> Option<Identity> {
        self.replaces.map(Identity)
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        write(&(FORMAT, write(self)))
    }

    pub(super) fn of_bytes(bytes: &[u8]) -> Result<Self, Unusable> {
        let (format, order): (u32, Vec<u8>) = read(bytes).map_err(|_| Unusable::Damaged)?;
        if format != FORMAT {
            return Err(Unusable::OtherFormat(format.to_string()));
        }
        read(&order).map_err(|_| Unusable::Damaged)
    }
}

/// What an entry says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Said {
    /// Nobody, for one that only buries.
    pub(super) author: Option<Author>,
    /// These sessions are over.
    pub(super) buries: Vec<Author>,
    /// The order takes batches from here on.
    pub(super) opens: bool,
    /// The author begins its session, and says the time to live if there is no other session.
    pub(super) joins: Option<u64>,
    /// The author renews its session, and looks for this entry when it does so next.
    pub(super) renews: bool,
    /// The newest snapshot that the author knows.
    pub(super) snapped: Option<u64>,
    #[serde(with = "serde_bytes")]
    pub(super) events: Option<Vec<u8>>,
}

/// An entry, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Item {
    /// That of the entry before.
    pub(super) after: u64,
    pub(super) tag: u64,
    position: u64,
    said: Said,
}

impl Item {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        write(self)
    }

    pub(super) fn of_bytes(bytes: &[u8]) -> Result<Self, Broken> {
        read(bytes).map_err(|_| Broken)
    }

    pub(super) fn author(&self) -> Option<Author> {
        self.said.author
    }

    /// What it brings for those who read: each burial, and its events.
    pub(super) fn entries(self) -> Vec<Entry> {
        let Item { position, said: Said { author, buries, events, .. }, .. } = self;
        let dead = buries.into_iter().map(|dead| (dead, Vec::new()));
        let said = dead.chain(author.zip(events)).zip(position..);
        let entry = |(((member, key), events), position)| Entry { position: Position(position), member, key, events };
        said.map(entry).collect()
    }
}

/// What all entries up to one come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Chain {
    /// The number of the entry that comes next.
    pub(super) next: u64,
    /// Of the last entry.
    pub(super) tag: u64,
    /// The last one that was given.
    pub(super) position: u64,
    pub(super) is_open: bool,
    /// The time to live, in microseconds.
    pub(super) lives: u64,
    /// The number of the member that joins next.
    pub(super) members: u64,
    /// Those that are not buried, with the number of the entry that they were last renewed by.
    pub(super) sessions: BTreeMap<Author, u64>,
    /// The newest snapshot that is known.
    pub(super) snapped: Option<u64>,
}

impl Chain {
    pub(super) fn of_order(order: &Order) -> Self {
        Chain {
            next: 0,
            tag: order.identity[0],
            position: order.base,
            is_open: false,
            lives: order.lives,
            members: 0,
            sessions: BTreeMap::new(),
            snapped: None,
        }
    }

    /// The entry that would come next.
    pub(super) fn item(&self, tag: u64, wall: u64, said: Said) -> Item {
        Item { after: self.tag, tag, position: wall.max(self.position.saturating_add(1)), said }
    }

    /// Takes the entry that comes next; what it brings for those who read.
    pub(super) fn take(&mut self, item: Item) -> Result<Vec<Entry>, Broken> {
        let Item { after, tag, position, ref said } = item;
        let last = position.checked_add(said.buries.len() as u64).ok_or(Broken)?;
        if after != self.tag || position <= self.position {
            return Err(Broken);
        }
        for dead in &said.buries {
            self.sessions.remove(dead).ok_or(Broken)?;
        }
        if let (Some(author), Some(lives)) = (said.author, said.joins) {
            if author.0 != self.members || said.events.is_none() {
                return Err(Broken);
            }
            if self.sessions.is_empty() {
                self.lives = lives;
            }
            self.members += 1;
            self.sessions.insert(author, self.next);
        }
        if let Some(author) = said.author {
            let renewed = self.sessions.get_mut(&author).ok_or(Broken)?;
            if said.renews {
                *renewed = self.next;
            }
        }
        self.next += 1;
        (self.tag, self.position) = (tag, last);
        self.is_open |= said.opens;
        self.snapped = self.snapped.max(said.snapped);
        Ok(item.entries())
    }

    /// How many entries a snapshot would stand for.
    pub(super) fn kept(&self) -> u64 {
        self.next - self.snapped.map_or(0, |snapped| snapped + 1).min(self.next)
    }

    /// Below which number nobody needs an entry, who begins with the snapshot before the newest or has a session.
    pub(super) fn unneeded_below(&self, snapshot_before: u64) -> u64 {
        self.sessions.values().copied().min().map_or(snapshot_before, |last| last.min(snapshot_before))
    }
}

/// What stands for all entries up to one: what the engine makes of them, and what the sessions do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Snapshot {
    pub(super) chain: Chain,
    /// The position of the last entry of the engine's contract.
    pub(super) head: u64,
    #[serde(with = "serde_bytes")]
    pub(super) sessions: Vec<u8>,
}

impl Snapshot {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        write(self)
    }

    pub(super) fn of_bytes(bytes: &[u8]) -> Result<Self, Broken> {
        read(bytes).map_err(|_| Broken)
    }
}

/// An entry that no session can take: what is told of a chain that is broken.
pub(super) fn foreign(identity: Identity) -> (SessionId, Entry) {
    let session = SessionId::nobody(identity);
    // It has no sum.
    (session, Entry { position: Position(u64::MAX), member: session.member, key: session.key, events: vec![0] })
}
