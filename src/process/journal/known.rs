//! How much of the journal a member knows, and whether the others know the same (invariant 3 of `mod.rs`).
//!
//! A member *notes* with the kernel what it knows ([`Directory::note_seen`]): no file holds the note, so nobody can
//! overwrite it, and the kernel takes it back when the member dies. Before a member decides anything, it asks for the
//! notes of the others and checks that it has read what they noted.
//!
//! Invariants:
//!
//! 1. What a member has *agreed* on is known to every member that has noted more. So a note of fewer changes, or as
//!    many, need not be compared.
//! 2. The checksums of all later changes are kept. So a note of more changes can be compared with the change that it
//!    is about.
//!
//! Not here: how a note is kept (`files.rs`).

use crate::process::error::FileError;
use crate::process::files::Directory;

/// A number of changes and, in the lower bits, a part of the checksum of the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Known(u64);

impl Known {
    /// The other bits are enough to count the changes of years.
    const SUM_BITS: u32 = 20;

    fn new(count: u64, sum: u32) -> Self {
        Known(count << Self::SUM_BITS | u64::from(sum) & ((1 << Self::SUM_BITS) - 1))
    }

    fn count(self) -> u64 {
        self.0 >> Self::SUM_BITS
    }
}

/// What a member has read of the journal, from file to file.
#[derive(Debug)]
pub(super) struct History {
    /// The number of changes.
    count: u64,
    /// The checksum of the last one.
    chain: u32,
    /// The changes on which it last agreed with the others.
    agreed: Known,
    /// The checksums of the changes that it has read since.
    sums: Vec<u32>,
    /// What this member has noted: the kernel does not show the member its own note.
    noted: Known,
}

impl History {
    /// The history before the first change of a file whose head has that checksum.
    pub(super) fn new(base: u64, sum: u32) -> Self {
        let (sums, noted) = (Vec::new(), Known::default());
        History { count: base, chain: sum, agreed: Known::new(base, 0), sums, noted }
    }

    /// Goes back to before the first change of a file, to read all of it again.
    pub(super) fn begin_again(&mut self, base: u64, sum: u32) {
        *self = History { noted: self.noted, ..Self::new(base, sum) };
    }

    /// Takes over what the same member noted before, about another file.
    pub(super) fn continue_from(&mut self, before: &History) {
        self.noted = before.noted;
    }

    /// The number of changes that were read.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The checksum of the last change that was read.
    pub(super) fn chain(&self) -> u32 {
        self.chain
    }

    /// Adds a change that was read.
    pub(super) fn push(&mut self, sum: u32) {
        (self.count, self.chain) = (self.count + 1, sum);
        self.sums.push(sum);
    }

    /// Adds a change that this member has written. It agreed with the others before that.
    pub(super) fn push_own(&mut self, sum: u32) {
        (self.count, self.chain) = (self.count + 1, sum);
        self.agree();
    }

    /// Notes with the kernel what was read.
    pub(super) fn note(&mut self, directory: &Directory) {
        self.noted = self.known();
        directory.note_seen(self.noted.0);
    }

    /// Whether this member has read all that the living members have noted, and the same.
    pub(super) fn agrees_with_others(&mut self, directory: &Directory) -> Result<bool, FileError> {
        let mut noted = Some(self.noted);
        let mut most = self.agreed;
        while let Some(one) = noted {
            if !self.has_read(one) {
                return Ok(false);
            }
            most = most.max(one);
            noted = directory.seen_beyond(most.0)?.map(Known);
        }
        self.agree();
        Ok(true)
    }

    fn known(&self) -> Known {
        Known::new(self.count, self.chain)
    }

    fn agree(&mut self) {
        self.agreed = self.known();
        self.sums.clear();
    }

    /// Whether this member has read all that is noted there, or more.
    fn has_read(&self, noted: Known) -> bool {
        match noted.count().checked_sub(self.agreed.count() + 1) {
            // Invariant 1.
            None => true,
            Some(place) => self.sums.get(place as usize).is_some_and(|&sum| noted == Known::new(noted.count(), sum)),
        }
    }
}
