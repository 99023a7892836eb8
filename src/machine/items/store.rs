//! What the engine of `items/mod.rs` needs of a place that keeps items: to create one that is not there, and to read.
//!
//! A store needs neither a clock nor scripts, and nothing in it is ever changed: items are created, read, and at last removed. They stand in
//! three *series*, and have a number within each:
//!
//! | series | one item is | numbers |
//! |---|---|---|
//! | [`Series::Orders`] | an order that was begun, of the namespace; the one with the highest number is the current one | one after the other |
//! | [`Series::Entries`] | what one client has appended to an order | one after the other, from 0 on |
//! | [`Series::Snapshots`] | what all entries up to that number come to | that of the last entry that is in it |
//!
//! What a store must promise, and the engine is proved with (`simulation.rs`):
//!
//! 1. *Of two that create one item, one at most does*, and the other is told what stands there. A call that was given up may be carried out at
//!    any later time, and may be carried out twice.
//! 2. *What was created is read* by every call that begins later, by number and as the newest, until it is removed or lost. So reads are those
//!    that a service calls strongly consistent.
//! 3. An item is there as a whole or not at all.
//!
//! 4. A call that is carried out late, or twice, does not bring back what was lost.
//! 5. A store may notice that the order of an entry or a snapshot is lost. Then it tells of an empty item there, which nobody writes.
//!
//! It may lose what it has: the engine notices, as its header says. Not here: what stands in an item (`items/chain.rs`).

use crate::machine::engine::Identity;
use crate::machine::error::EngineError;
use std::time::{Duration, Instant};

/// Where an item stands, beside its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Series {
    Orders,
    Entries(Identity),
    Snapshots(Identity),
}

/// What has become of an item that was to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Created {
    /// It was not there.
    New,
    /// This is there. It may be the same one, if a service was told twice.
    Taken(Vec<u8>),
}

/// One namespace of a service. Each call ends by its deadline, more or less; an error leaves open whether it was carried out.
///
/// A service that cannot be reached, or does not answer, is [`EngineError::Away`], and the call is made again for as long as the client has
/// patience. One that throttles is asked again by the store itself, with full jitter, before that. What will not be better the next time is
/// [`EngineError::Refused`]; so is an item that is larger than the service takes. (An entry has what the threads of a client ask for at a
/// time, about 100 bytes for each root. A snapshot has all that is held and awaited; if it is refused, entries are kept for longer.)
pub(crate) trait Store: Send + Sync + 'static {
    /// Creates an item, if there is none of its number.
    fn create(&self, series: Series, number: u64, item: &[u8], deadline: Instant) -> Result<Created, EngineError>;

    /// The items from a number on: up to the first that is not there, and no more than `most`. There may be more behind what is returned, unless
    /// that is nothing: so one that has many to read returns a part of them before the deadline. `most` is at least 1.
    fn read(&self, series: Series, from: u64, most: usize, deadline: Instant) -> Result<Vec<Vec<u8>>, EngineError>;

    /// The highest number that is there.
    fn newest(&self, series: Series, deadline: Instant) -> Result<Option<u64>, EngineError>;

    /// Removes the items below a number, and may leave some. It is called about once for a thousand entries.
    fn trim(&self, series: Series, below: u64, deadline: Instant) -> Result<(), EngineError>;

    /// Whether all may be lost at once, while clients go on, without being noticed by whoever creates or reads an entry. If so, a client
    /// that hears of news looks whether its order is there: one more [`Store::read`] for each request. If not, the next renewal does.
    fn may_be_emptied(&self) -> bool {
        true
    }

    /// The shortest and the longest pause between two looks for an entry that is waited for, where the options say no other longest one. Each look is a [`Store::read`] of one item.
    fn looks(&self) -> (Duration, Duration) {
        (Duration::from_millis(5), Duration::from_millis(500))
    }
}
