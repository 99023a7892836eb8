//! The bytes of a table: its head, and the frame of a change.
//!
//! ```text
//!    0  head: magic, format, inodes, base, the key of the node ids, probe, checksum    written once
//!   68  changes: length, events, checksum; one behind the other                        appended
//!   ... zeros, up to the end of the space that is kept ready
//! ```
//!
//! Invariants:
//!
//! 1. The checksum of a change is that of all bytes before it, without the other checksums. So a change is valid
//!    after one history only, and a reader that has the checksum of the last change needs nothing else to check the
//!    next one.
//! 2. An incomplete change is not valid: if a process dies while it writes, what it leaves is no change.
//! 3. A head of another format is never accepted: the reader compares its magic, its format, its checksum, and the id
//!    that its key gives to a known path.
//!
//! Pure: no files, no clocks. Not here: how the bytes are read and written (`mod.rs`), what the events mean (`replica/`).

use crate::core::node_id::Seeds;
use crate::core::segments::Segments;
use crate::process::error::FileProblem;
use crate::replica::Event;

const MAGIC: &[u8; 8] = b"treelock";

/// Goes up with every change of the contents of a table: of the head, of an event, of the ids of nodes.
const FORMAT: u32 = 2;

/// The offset of the head's checksum.
const SUM: usize = 64;

/// The offset of the first change.
pub(super) const CHANGES: u64 = 68;

/// The bytes of a change before its events: their length.
pub(super) const LENGTH: usize = 4;

/// The bytes of a change besides its events.
pub(super) const FRAME: usize = 8;

/// A longer change is not written, and a change that claims to be longer is not valid.
pub(super) const LONGEST: usize = 256 << 20;

/// What a table says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) inode: u64,
    /// The inode of the directory.
    pub(super) directory: u64,
    /// The number of changes before this file.
    pub(super) base: u64,
    /// The key of the node ids.
    pub(super) key: [u64; 2],
}

impl Head {
    pub(super) fn seeds(&self) -> Seeds {
        Seeds::specified(self.key)
    }

    /// Differs between programs that name nodes differently.
    fn probe(&self) -> u64 {
        let mut ids = Vec::new();
        Segments::of("treelock/probe of names", &self.seeds(), &mut ids, None).expect("text is a path");
        ids[ids.len() - 1].bits()
    }

    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(FORMAT.to_le_bytes());
        bytes.extend([0; 4]);
        let words = [self.inode, self.directory, self.base].into_iter().chain(self.key).chain([self.probe()]);
        words.for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    pub(super) fn of_bytes(bytes: &[u8]) -> Result<Self, FileProblem> {
        if bytes.iter().all(|&byte| byte == 0) {
            // After a power failure a file system may have left zeros.
            return Err(FileProblem::Damaged);
        }
        if bytes.get(..8) != Some(MAGIC) {
            return Err(FileProblem::NotATable);
        }
        let format = bytes.get(8..12).and_then(|word| word.try_into().ok()).map(u32::from_le_bytes);
        if format.is_some_and(|format| format != FORMAT) {
            return Err(FileProblem::OtherVersion(format.unwrap_or_default()));
        }
        let mut words = bytes.get(16..SUM).ok_or(FileProblem::Damaged)?.chunks_exact(8).map(word);
        let mut next = || words.next().unwrap_or_default();
        let head = Head { inode: next(), directory: next(), base: next(), key: [next(), next()] };
        if bytes.get(SUM..SUM + 4) != Some(&crc32fast::hash(&bytes[..SUM]).to_le_bytes()) {
            return Err(FileProblem::Damaged);
        }
        if next() != head.probe() {
            return Err(FileProblem::OtherVersion(FORMAT));
        }
        Ok(head)
    }

    /// The checksum of the head, which is the one before the first change.
    pub(super) fn sum(&self) -> u32 {
        crc32fast::hash(&self.to_bytes()[..SUM])
    }
}

/// Adds an event to a change.
pub(super) fn add(change: &mut Vec<u8>, event: &Event) {
    if change.is_empty() {
        change.extend([0; LENGTH]);
    }
    postcard::to_io(event, change).expect("an event has no part that cannot be written");
}

/// Completes a change that follows the checksum `chain`; returns its own checksum.
pub(super) fn seal(chain: u32, change: &mut Vec<u8>) -> u32 {
    let length = (change.len() - LENGTH) as u32;
    change[..LENGTH].copy_from_slice(&length.to_le_bytes());
    let sum = sum(chain, change);
    change.extend(sum.to_le_bytes());
    sum
}

/// The checksum up to the end of these bytes, where `chain` is the one up to their beginning.
fn sum(chain: u32, bytes: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new_with_initial(chain);
    sum.update(bytes);
    sum.finalize()
}

/// The events and the checksum of the change that these bytes begin with, if there is one that follows the checksum
/// `chain`.
pub(super) fn change(chain: u32, bytes: &[u8]) -> Option<(&[u8], u32)> {
    let (change, rest) = bytes.split_at_checked(length(bytes)?.saturating_add(LENGTH))?;
    let sum = Some(sum(chain, change)).filter(|sum| rest.starts_with(&sum.to_le_bytes()))?;
    Some((&change[LENGTH..], sum))
}

/// The length of the events of the change that these bytes begin with; `None` if there is no change yet.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    let length = bytes.first_chunk().map(|&length| u32::from_le_bytes(length))?;
    Some(length as usize).filter(|length| (1..=LONGEST).contains(length))
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}
