//! The one value that a namespace has in Memcached, and what a change makes of it. Pure.
//!
//! All that decides something stands in the value: which order is the current one, how many entries it has, and which values have the older
//! entries and the snapshots. It is changed by compare-and-set alone, so whoever has changed it knows all that was there. The last
//! entries stand in the value itself. When those have become [`LONGEST_TAIL`] they move to a value of their own, a *chunk*, so that what
//! travels with each change stays short.
//!
//! A chunk and a snapshot are written before the value names them, by a tag that was drawn for them, and are never changed.

use crate::machine::engine::Identity;
use crate::machine::session::{read, write};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// In bytes.
const LONGEST_TAIL: usize = 2048;

/// All values have this length, or a multiple of it. A server that is full finds memory for an item only where others of about that length
/// have been; so if one was there, the next one has its place. And one that finds none forgets the value that was to be changed.
const BLOCK: usize = 4000;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Value {
    /// The number of the current order.
    pub(super) number: u64,
    /// Its item.
    #[serde(with = "serde_bytes")]
    pub(super) order: Vec<u8>,
    /// Its identity, once it has an entry.
    identity: Option<[u64; 2]>,
    /// Entries that have moved.
    chunks: Vec<Chunk>,
    /// The number of the first entry of the tail.
    first: u64,
    tail: Vec<ByteBuf>,
    /// The numbers of the snapshots, and their tags, in order.
    pub(super) snapshots: Vec<(u64, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Chunk {
    /// The number of its first entry.
    first: u64,
    tag: u64,
}

/// Where an entry is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// These are all from that number on.
    Here(&'a [ByteBuf]),
    /// In the chunk of this tag, as one of those behind the first so many.
    InChunk { tag: u64, skip: usize },
    /// There is none yet, or it was trimmed.
    Nowhere,
}

impl Value {
    pub(super) fn of_order(number: u64, order: &[u8]) -> Self {
        Value { number, order: order.to_vec(), ..Value::default() }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        pad(&write(self))
    }

    /// What is none of ours is an order that is damaged.
    pub(super) fn of_bytes(bytes: &[u8]) -> Self {
        let value = unpad(bytes).and_then(|value| read(value).ok());
        value.unwrap_or_else(|| Value::of_order(0, bytes))
    }

    /// Whether it has the entries and snapshots of this order, which begins with the first of them.
    pub(super) fn is_of(&self, identity: Identity) -> bool {
        match self.identity {
            Some(of) => Identity(of) == identity,
            None => true,
        }
    }

    /// The number of the entry that comes next.
    pub(super) fn next(&self) -> u64 {
        self.first + self.tail.len() as u64
    }

    pub(super) fn place(&self, number: u64) -> Place<'_> {
        if number >= self.first {
            return match self.tail.get((number - self.first) as usize..) {
                Some(rest) if !rest.is_empty() => Place::Here(rest),
                _ => Place::Nowhere,
            };
        }
        match self.chunks.iter().rev().find(|chunk| chunk.first <= number) {
            Some(chunk) => Place::InChunk { tag: chunk.tag, skip: (number - chunk.first) as usize },
            None => Place::Nowhere,
        }
    }

    /// Appends an entry. Where the tail has become long it moves to a chunk of this tag, which is returned.
    pub(super) fn append(&mut self, identity: Identity, entry: &[u8], tag: u64) -> Option<Vec<u8>> {
        self.identity = Some(identity.0);
        self.tail.push(ByteBuf::from(entry));
        let length: usize = self.tail.iter().map(|entry| entry.len()).sum();
        if length < LONGEST_TAIL {
            return None;
        }
        self.chunks.push(Chunk { first: self.first, tag });
        self.first = self.next();
        Some(pad(&write(&std::mem::take(&mut self.tail))))
    }

    /// The entries of a chunk; none, if it is damaged.
    pub(super) fn entries_of(chunk: &[u8]) -> Option<Vec<ByteBuf>> {
        read(unpad(chunk)?).ok()
    }

    /// Forgets entries below a number, and keeps some of them.
    pub(super) fn trim_entries(&mut self, below: u64) {
        let ends = self.chunks.iter().skip(1).map(|chunk| chunk.first).chain([self.first]);
        let over = ends.take_while(|end| *end <= below).count();
        self.chunks.drain(..over.min(self.chunks.len()));
    }

    pub(super) fn trim_snapshots(&mut self, below: u64) {
        self.snapshots.retain(|(number, _)| *number >= below);
    }

    /// Whether a chunk or a snapshot has this tag.
    pub(super) fn names(&self, tag: u64) -> bool {
        self.chunks.iter().any(|chunk| chunk.tag == tag) || self.snapshots.iter().any(|(_, of)| *of == tag)
    }

    /// The tags that the value in its place does not name. Chunks are only ever forgotten from the first one on.
    pub(super) fn forgotten(&self, after: &Value) -> Vec<u64> {
        let kept = after.chunks.first();
        let chunks = self.chunks.iter().take_while(|chunk| Some(*chunk) != kept).map(|chunk| chunk.tag);
        let snapshots = self.snapshots.iter().filter(|snapshot| !after.snapshots.contains(snapshot));
        chunks.chain(snapshots.map(|(_, tag)| *tag)).collect()
    }
}

/// Bytes, with their length before and zeros behind.
pub(super) fn pad(bytes: &[u8]) -> Vec<u8> {
    let mut padded = (bytes.len() as u64).to_le_bytes().to_vec();
    padded.extend(bytes);
    padded.resize(padded.len().next_multiple_of(BLOCK), 0);
    padded
}

pub(super) fn unpad(padded: &[u8]) -> Option<&[u8]> {
    let (length, rest) = padded.split_first_chunk()?;
    rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: Identity = Identity([1, 2]);

    /// Whatever was trimmed, each entry that is kept is where it is said to be, and the others are nowhere.
    #[test]
    fn entries_are_found_where_they_are() {
        let mut value = Value::of_order(0, b"order");
        let mut chunks = Vec::new();
        for number in 0..1000_u64 {
            let entry = [number.to_le_bytes().as_slice(), &vec![7; (number % 90) as usize]].concat();
            if let Some(chunk) = value.append(ORDER, &entry, number) {
                chunks.push((number, Value::entries_of(&chunk).unwrap()));
            }
            assert_eq!(value.next(), number + 1);
        }
        assert!(chunks.len() > 5 && value.to_bytes().len() == BLOCK);
        let mut kept_before = 0;
        for below in (0..=1000).step_by(50) {
            let before = value.clone();
            value.trim_entries(below);
            let forgotten = before.forgotten(&value);
            assert!(
                chunks.iter().all(|(tag, _)| before.names(*tag) == (value.names(*tag) || forgotten.contains(tag)))
            );
            assert!(!forgotten.iter().any(|tag| value.names(*tag)));
            let found: Vec<_> = (0..1001).filter(|number| value.place(*number) != Place::Nowhere).collect();
            let first = *found.first().unwrap();
            assert!(first >= kept_before && first <= below, "{first} is kept of those from {below} on");
            assert_eq!(found, (first..1000).collect::<Vec<_>>());
            kept_before = first;
            for number in found {
                let entry = match value.place(number) {
                    Place::Here(rest) => rest[0].clone(),
                    Place::InChunk { tag, skip } => chunks.iter().find(|(of, _)| *of == tag).unwrap().1[skip].clone(),
                    Place::Nowhere => unreachable!(),
                };
                assert_eq!(entry[..8], number.to_le_bytes());
            }
        }
        assert!(kept_before > 900 && Value::of_bytes(&value.to_bytes()) == value);
    }

    /// One that is longer than a tail is a chunk of its own at once.
    #[test]
    fn long_entry_moves_to_a_chunk() {
        let mut value = Value::of_order(0, b"order");
        assert_eq!(value.append(ORDER, b"short", 1), None);
        let chunk = value.append(ORDER, &[0; 100_000], 2).unwrap();
        assert_eq!(Value::entries_of(&chunk).unwrap().len(), 2);
        assert_eq!(value.place(1), Place::InChunk { tag: 2, skip: 1 });
        assert!(value.place(2) == Place::Nowhere && value.names(2) && !value.names(1));
        value.snapshots.push((1, 7));
        assert_eq!(value.forgotten(&Value::of_order(1, b"another")), [2, 7]);
    }

    #[test]
    fn what_is_none_of_ours_is_a_damaged_order() {
        assert_eq!(Value::of_bytes(b"something"), Value::of_order(0, b"something"));
    }
}
