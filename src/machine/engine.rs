//! What an engine must do for the lock: keep one list of entries in one order, and judge by one clock who still lives.
//!
//! An engine has one operation, the *exchange*, which is atomic: it takes what a client has to say and returns what the client
//! has not seen. The rules of an exchange, in this order:
//!
//! 1. *The order is whole, or it begins anew.* If anything of it is missing (its head, the entry that the client saw last, the
//!    sessions, the snapshot that older entries were traded for), or if the client asks for it, then the engine drops all
//!    it has, draws a new identity, and is *closed* for one time to live: it takes no batches meanwhile. So whoever believes to
//!    hold something by the lost order ceases to believe it before anybody is let in.
//! 2. A client of another identity is told that the order was lost.
//! 3. *The dead are buried*, when a client joins or renews its session: for each session whose time has passed an entry
//!    without events is written in its name.
//! 4. A client that joins gets a member's number and a session. One whose session is over is told so. A session has a key of
//!    its own beside the number: a copy of a server that lagged, and was promoted, gives the same number again. All
//!    sessions have one time to live, that of the namespace: the client says it that begins the order, or joins while there is
//!    no session. One that insists on another is refused.
//! 5. A batch is written as one entry in the name of its session, unless the order is closed. That is all: what is written again
//!    because a reply was lost, or in the name of a session that is over, is passed over by those who read it (`session.rs`). So
//!    the plainest append that an engine has will do.
//! 6. If the client says that it renews its session, the time of that begins again.
//! 7. A snapshot takes the place of all entries up to its position.
//! 8. The reply has all entries from the position on that the client names; and the snapshot, if some of those are gone. The entry
//!    at that position is one of them, unless the engine knows that the client wrote the next one: so the client sees whether it
//!    is the one that it knows. Another server that was promoted may give a position again.
//!
//! A client that only *looks* has no session and changes nothing: it gets what rule 8 says, or is told that there is no order.
//!
//! A client whose session is open, and that neither renews it nor has a snapshot, needs rules 5 and 8 alone, as long as the entry is
//! there that it saw last. Most calls are such. One that only lets go of something, and *wants no news*, needs rule 5 alone: it reads
//! with its next call what has come meanwhile, and whether the order is whole.
//!
//! A position only rises, in a new order too: it is the engine's time in microseconds when the entry was written, as exactly as
//! the engine tells it, or one more than the last one. So it is the fence as well.
//!
//! Not here: what the events of a batch mean (`replica/mod.rs`); when a client says what (`session.rs`).

use crate::machine::error::EngineError;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// The number of what a client writes and reads. Another one is a clear error.
pub(crate) const FORMAT: u32 = 1;

/// The most entries of one reply. Whoever gets so many asks for more.
pub(crate) const MOST_ENTRIES: usize = if cfg!(test) { 6 } else { 1000 };

/// Where an entry stands in the order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Position(pub(crate) u64);

/// Names an order. Drawn by the client that begins it; the node ids of all its requests are made with it as their key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity(pub(crate) [u64; 2]);

impl Identity {
    /// The key of a session that is joined by a call which draws this one: the first half of its digits.
    pub(crate) fn key(self) -> u64 {
        self.0[0]
    }

    pub(crate) fn to_text(self) -> String {
        format!("{:016x}{:016x}", self.0[0], self.0[1])
    }

    pub(crate) fn of_text(text: &str) -> Option<Self> {
        let half = |range| u64::from_str_radix(text.get(range)?, 16).ok();
        (text.len() == 32).then_some(Identity([half(0..16)?, half(16..32)?]))
    }
}

/// What a client says.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// The identity of an order that this client would begin. It is drawn for each call, so a session that it joins by has its key
    /// of it.
    pub(crate) fresh: Identity,
    /// That of an order that it would begin. See rule 4.
    pub(crate) time_to_live: Duration,
    pub(crate) says: Says,
}

#[derive(Clone, Debug)]
pub(crate) enum Says {
    /// It begins a session, with these events as its first; it may insist on its time to live.
    Joins { events: Vec<u8>, insists: bool },
    /// It goes on.
    GoesOn {
        session: SessionId,
        since: Position,
        /// The session was told that the order takes batches.
        is_open: bool,
        /// Most calls do not, so that they cost the engine less.
        renews: bool,
        /// If it does not, that its batch is written may be the answer.
        wants_news: bool,
        batch: Option<Vec<u8>>,
        snapshot: Option<(Position, Vec<u8>)>,
    },
    /// It ends its session in order.
    Leaves { session: SessionId },
    /// It has met what cannot be: the order of this identity must begin anew.
    Breaks { identity: Identity },
    /// It looks at what there is since a position.
    Looks { since: Position },
}

impl Says {
    /// What rules 5 and 8 are enough for, or rule 5 alone; see the header.
    pub(crate) fn short(&self) -> Option<Short<'_>> {
        match self {
            Says::GoesOn { session, since, is_open: true, renews: false, wants_news, batch, snapshot: None } => {
                let (session, since, batch) = (*session, *since, batch.as_deref());
                Some(Short { session, since, batch, wants_news: *wants_news || batch.is_none() })
            }
            _ => None,
        }
    }
}

/// A call that may go the short way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Short<'a> {
    pub(crate) session: SessionId,
    pub(crate) since: Position,
    pub(crate) batch: Option<&'a [u8]>,
    /// Or else there is a batch.
    pub(crate) wants_news: bool,
}

impl Short<'_> {
    /// The news, if these are the first entries from [`since`](Short::since) on, one more than [`MOST_ENTRIES`] at most. `None`: the
    /// one that is known is missing, and so may others be. The call must go the long way, where a batch is written again if it was
    /// written here.
    pub(crate) fn news(&self, entries: Vec<Entry>) -> Option<Reply> {
        let last = entries.last().filter(|_| entries[0].position == self.since)?.position;
        // There may be more.
        let head = if entries.len() <= MOST_ENTRIES { last } else { Position(last.0 + 1) };
        Some(Reply::News(News::only(self.session, entries, head)))
    }
}

/// A session, in one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SessionId {
    pub(crate) identity: Identity,
    pub(crate) member: u64,
    /// See rule 4, and [`Identity::key`].
    pub(crate) key: u64,
}

impl SessionId {
    /// What a client has that only looks.
    pub(crate) fn nobody(identity: Identity) -> Self {
        SessionId { identity, member: u64::MAX, key: 0 }
    }
}

/// What the engine answers.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    News(News),
    /// The batch is written, of a client that wants no news.
    Written,
    /// The session is over: its time has passed, or it has left.
    Expired,
    /// The order that the client speaks of is lost.
    OrderLost,
    /// There is none that a client could look at.
    NoOrder,
    /// The sessions of the namespace have this time to live, and the client insists on another.
    OtherTimeToLive(Duration),
    /// It was begun by a treelock whose format this one does not know.
    OtherFormat(String),
}

#[derive(Clone, Debug)]
pub(crate) struct News {
    pub(crate) session: SessionId,
    pub(crate) snapshot: Option<(Position, Vec<u8>)>,
    pub(crate) entries: Vec<Entry>,
    /// The position of the last entry.
    pub(crate) head: Position,
    /// So many entries are kept, where that is told.
    pub(crate) kept: Option<u64>,
    /// When the first of the sessions ends, if nobody renews it; told to a client that joins or renews its own.
    pub(crate) first_end: Option<Duration>,
    /// That of the namespace; told to a client that joins.
    pub(crate) time_to_live: Option<Duration>,
    /// For so long the order is closed yet, and the batch was not taken; where that is told.
    pub(crate) closed: Option<Duration>,
}

impl News {
    /// Entries, and nothing of what only a whole exchange tells.
    pub(crate) fn only(session: SessionId, entries: Vec<Entry>, head: Position) -> Self {
        News { session, snapshot: None, entries, head, kept: None, first_end: None, time_to_live: None, closed: None }
    }
}

/// An entry of the order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) position: Position,
    /// In whose name it is written.
    pub(crate) member: u64,
    pub(crate) key: u64,
    /// None: the member has left, or its time has passed.
    pub(crate) events: Vec<u8>,
}

/// Refuses a namespace without a name.
pub(crate) fn check_name(namespace: &str) -> Result<(), EngineError> {
    match namespace {
        "" => Err(EngineError::refused("the namespace has no name: give one that all its users know")),
        _ => Ok(()),
    }
}

/// An adapter to a service that people run.
pub(crate) trait Engine: Send + Sync + 'static {
    /// The exchange: see the header of this file. An error leaves open whether it has happened.
    fn exchange(&self, call: &Call, deadline: Instant) -> Result<Reply, EngineError>;

    /// Blocks until there may be an entry after `since`, or until the deadline.
    fn await_entry(&self, since: Position, deadline: Instant) -> Result<(), EngineError>;
}
