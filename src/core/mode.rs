//! The five modes of a node: which of them exclude each other, and which mode two of them join to.
//!
//! This is the only place that defines a conflict (Gray, Lorie, Putzolu, Traiger 1976, "Granularity of Locks and
//! Degrees of Consistency in a Shared Data Base"). A request holds S or X on the roots it names and announces them on
//! their ancestors by IS or IX, so that two requests whose sub-trees overlap meet at one node at least: the root of
//! the larger sub-tree.
//!
//! The modes are sets of two rights, to read and to write, each either on the whole sub-tree or somewhere below. Both
//! tables follow from those sets:
//!
//! ```text
//!        X             compatible   IS  IX  S   SIX X
//!        |                     IS   y   y   y   y
//!       SIX                    IX   y   y
//!      /   \                   S    y       y
//!     S     IX                 SIX  y
//!      \   /                   X
//!       IS
//! ```
//!
//! Invariant: a mode is compatible with the join of two modes exactly if it is compatible with both. `node.rs` relies
//! on it when it checks a conversion by the mode asked for alone.

use std::fmt;

/// How a request holds one node of the tree.
///
/// ```
/// use treelock::Mode;
///
/// assert!(Mode::IntentionShared.compatible(Mode::SharedIntentionExclusive));
/// assert_eq!(Mode::Shared.join(Mode::IntentionExclusive), Mode::SharedIntentionExclusive);
/// assert_eq!(Mode::SharedIntentionExclusive.to_string(), "SIX");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    /// IS: something below is held shared.
    IntentionShared = 0,
    /// IX: something below is held exclusively.
    IntentionExclusive = 1,
    /// S: the whole sub-tree is held shared.
    Shared = 2,
    /// SIX: the whole sub-tree is held shared, and something below exclusively.
    SharedIntentionExclusive = 3,
    /// X: the whole sub-tree is held exclusively.
    Exclusive = 4,
}

use Mode::{Exclusive, IntentionExclusive, IntentionShared, Shared, SharedIntentionExclusive};

impl Mode {
    /// Every mode, the weakest first.
    pub const ALL: [Mode; 5] = [IntentionShared, IntentionExclusive, Shared, SharedIntentionExclusive, Exclusive];

    /// Whether two owners may hold one node in these modes at the same time.
    #[inline]
    pub const fn compatible(self, other: Mode) -> bool {
        self.conflicts() & (1 << other as u8) == 0
    }

    /// The weakest mode that is at least as strong as both.
    pub const fn join(self, other: Mode) -> Mode {
        match (self, other) {
            (Exclusive, _) | (_, Exclusive) => Exclusive,
            (SharedIntentionExclusive, _)
            | (_, SharedIntentionExclusive)
            | (Shared, IntentionExclusive)
            | (IntentionExclusive, Shared) => SharedIntentionExclusive,
            (Shared, _) | (_, Shared) => Shared,
            (IntentionExclusive, _) | (_, IntentionExclusive) => IntentionExclusive,
            (IntentionShared, IntentionShared) => IntentionShared,
        }
    }

    /// Whether `self` gives all rights that `other` gives.
    pub const fn covers(self, other: Mode) -> bool {
        self.join(other) as u8 == self as u8
    }

    /// The mode that is left when every write in it becomes a read.
    pub const fn downgraded(self) -> Mode {
        match self {
            IntentionShared | IntentionExclusive => IntentionShared,
            Shared | SharedIntentionExclusive | Exclusive => Shared,
        }
    }

    /// What a request holds on the ancestors of a root that it holds in this mode.
    pub(crate) const fn intention(self) -> Mode {
        match self {
            IntentionShared | Shared => IntentionShared,
            IntentionExclusive | SharedIntentionExclusive | Exclusive => IntentionExclusive,
        }
    }

    /// Whether it only announces what is held below. Intentions never exclude each other.
    #[inline]
    pub(crate) const fn is_intention(self) -> bool {
        matches!(self, IntentionShared | IntentionExclusive)
    }

    /// The modes that exclude this one, as bits: `m as u8` for mode `m`.
    const fn conflicts(self) -> u8 {
        match self {
            IntentionShared => 0b10000,
            IntentionExclusive => 0b11100,
            Shared => 0b11010,
            SharedIntentionExclusive => 0b11110,
            Exclusive => 0b11111,
        }
    }
}

/// As it prints: `"SIX"`.
#[cfg(feature = "serde")]
impl serde::Serialize for Mode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            IntentionShared => "IS",
            IntentionExclusive => "IX",
            Shared => "S",
            SharedIntentionExclusive => "SIX",
            Exclusive => "X",
        })
    }
}

/// How many times each mode is held.
#[cfg_attr(feature = "replica", derive(serde::Serialize, serde::Deserialize))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct ModeCounts([u32; 5]);

impl ModeCounts {
    pub(crate) const NONE: ModeCounts = ModeCounts([0; 5]);

    /// One holder, in that mode.
    pub(crate) fn of(mode: Mode) -> Self {
        let mut counts = Self::NONE;
        counts.add(mode);
        counts
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::NONE
    }

    #[inline]
    pub(crate) fn add(&mut self, mode: Mode) {
        let count = &mut self.0[mode as usize];
        *count = count.checked_add(1).expect("treelock: over 4 billion holders of one node: are guards forgotten?");
    }

    #[inline]
    pub(crate) fn remove(&mut self, mode: Mode) {
        let count = &mut self.0[mode as usize];
        *count = count.checked_sub(1).expect("treelock: a mode is released once for each grant");
    }

    /// Whether only intentions are counted.
    #[inline]
    pub(crate) fn are_intentions(&self) -> bool {
        Mode::ALL.iter().all(|&mode| mode.is_intention() || self.0[mode as usize] == 0)
    }

    /// The counts without those of `part`, which must be a part of them.
    pub(crate) fn without(&self, part: &ModeCounts) -> ModeCounts {
        ModeCounts(std::array::from_fn(|mode| self.0[mode] - part.0[mode]))
    }

    /// Whether `mode` is compatible with all that is counted.
    #[inline]
    pub(crate) fn compatible(&self, mode: Mode) -> bool {
        Mode::ALL.iter().all(|&held| self.0[held as usize] == 0 || held.compatible(mode))
    }

    /// Whether the join of all that is counted covers `mode`.
    pub(crate) fn covers(&self, mode: Mode) -> bool {
        let held = Mode::ALL.into_iter().filter(|&held| self.0[held as usize] > 0);
        held.reduce(Mode::join).is_some_and(|held| held.covers(mode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tables of Gray 1976 as printed, beside the code.
    #[test]
    fn compatibility_is_the_published_table() {
        let table = ["yyyy.", "yy...", "y.y..", "y....", "....."];
        for (row, a) in table.iter().zip(Mode::ALL) {
            for (cell, b) in row.chars().zip(Mode::ALL) {
                assert_eq!(a.compatible(b), cell == 'y', "{a} with {b}");
            }
        }
    }

    #[test]
    fn join_is_the_least_upper_bound() {
        let table = [
            ["IS", "IX", "S", "SIX", "X"],
            ["IX", "IX", "SIX", "SIX", "X"],
            ["S", "SIX", "S", "SIX", "X"],
            ["SIX", "SIX", "SIX", "SIX", "X"],
            ["X", "X", "X", "X", "X"],
        ];
        for (row, a) in table.iter().zip(Mode::ALL) {
            for (cell, b) in row.iter().zip(Mode::ALL) {
                assert_eq!(a.join(b).to_string(), *cell, "{a} with {b}");
                assert!(a.join(b).covers(a) && a.join(b).covers(b));
            }
        }
    }

    #[test]
    fn what_is_compatible_with_both_is_compatible_with_their_join() {
        for a in Mode::ALL {
            for b in Mode::ALL {
                for other in Mode::ALL {
                    let both = a.compatible(other) && b.compatible(other);
                    assert_eq!(a.join(b).compatible(other), both, "{a}, {b} with {other}");
                }
            }
        }
    }

    #[test]
    fn downgraded_is_covered_and_compatible_with_itself() {
        for mode in Mode::ALL {
            assert!(mode.covers(mode.downgraded()));
            assert!(mode.downgraded().compatible(mode.downgraded()));
            assert!(mode.downgraded().compatible(Mode::Shared));
        }
    }

    #[test]
    fn counts_compare_like_their_members() {
        for a in Mode::ALL {
            for b in Mode::ALL {
                let mut counts = ModeCounts::NONE;
                counts.add(a);
                counts.add(b);
                for mode in Mode::ALL {
                    assert_eq!(counts.compatible(mode), a.compatible(mode) && b.compatible(mode));
                    assert_eq!(counts.covers(mode), a.join(b).covers(mode));
                }
                counts.remove(a);
                counts.remove(b);
                assert!(counts.is_empty() && !counts.covers(IntentionShared));
            }
        }
    }
}
