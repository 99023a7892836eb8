//! How the segments of a path become node ids, and names as text.
//!
//! A path pushes its segments one after the other, from the root down. Each becomes the id of a node at once, and,
//! where a report may need it, a name. Paths that push the same segments name the same node; nothing else of a path
//! is kept.
//!
//! Not here: what the segments of a path are (`path.rs`); how an id is made (`node_id.rs`).

use crate::core::node_id::{NodeId, Seeds};
#[cfg(feature = "replica")]
use crate::core::path;
use crate::core::path::{PathError, TreePath};
use crate::core::plan::Step;
use std::fmt::{self, Debug};
use std::hash::Hash;

/// Takes the segments of one path, from the root down.
///
/// # Between processes
///
/// Programs that share a lock must turn a path into the same nodes, or requests for one node would not exclude each
/// other.
///
/// - The lock knows a segment that is given to [`push_bytes`](Segments::push_bytes), as those of `str` and `Path`
///   are, by its bytes alone. It is the same node in every build of every program, on every kind of machine.
/// - It knows a segment that is given to [`push`](Segments::push) by what its [`Hash`] writes. A single integer is
///   the same node everywhere, even a `usize` or an `isize`. Nothing else is promised, since [`Hash` promises
///   nothing](Hash#portability): any type may change with the version of Rust or of its crate, and a slice of
///   integers with the byte order of the machine. So build these programs by one version of Rust, with one version of
///   the type, for one kind of machine; or push bytes.
pub struct Segments<'a> {
    seeds: &'a Seeds,
    /// The nodes of other ways, and then of this one, from the root to the last segment; those that
    /// [`pop`](Segments::pop) may remove begin at `floor`.
    way: &'a mut Vec<Step>,
    floor: usize,
    known: Option<&'a [u8]>,
    names: Option<&'a mut Names>,
}

impl<'a> Segments<'a> {
    /// Appends the ids of the nodes of `path` to `ids`, the root's first; and its segments' names to `names`, if
    /// given.
    pub(crate) fn of<P: TreePath + ?Sized>(
        path: &P,
        seeds: &'a Seeds,
        ids: &mut Vec<NodeId>,
        names: Option<&'a mut Names>,
    ) -> Result<(), PathError> {
        let mut way = Vec::new();
        Segments::tell(path, seeds, &mut way, 0, None, names)?;
        ids.extend(way.iter().map(|step| step.node));
        Ok(())
    }

    /// Puts the way to `path` into `way`, from `start` on, the root first; the caller sets the modes. If `known` is
    /// given, the way to that text stands there already, and the part that both texts have in common stays.
    #[inline]
    pub(crate) fn tell<'w, P: TreePath + ?Sized>(
        path: &P,
        seeds: &'w Seeds,
        way: &'w mut Vec<Step>,
        start: usize,
        known: Option<&'w [u8]>,
        names: Option<&'w mut Names>,
    ) -> Result<(), PathError> {
        if known.is_none() {
            way.truncate(start);
            way.push(Step::new(seeds.root(), 0, 0));
        }
        let mut segments = Segments { seeds, way, floor: start + 1, known, names };
        path.segments(&mut segments).map_err(|error| error.at(path))
    }

    /// Goes down by one segment, which is identified by its `Hash` and named by its `Debug`.
    ///
    /// Segments below one node should be of one type: values of different types may hash alike (`0u8` and `false`
    /// do), and are then one segment, which is safe but coarser than meant.
    #[inline]
    pub fn push<S: Hash + Debug + ?Sized>(&mut self, segment: &S) {
        // The part that may panic comes first.
        let name = self.names.is_some().then(|| format!("{segment:?}"));
        self.step(NOT_TEXT, |seeds, parent| seeds.child_by_hash(parent, segment));
        if let (Some(names), Some(name)) = (&mut self.names, name) {
            names.push(|text| text.push_str(&name));
        }
    }

    /// Goes down by one segment, which is identified by its bytes, and named by them as text. This is faster than
    /// [`push`](Segments::push).
    ///
    /// The same text given to [`push`](Segments::push) is a different segment.
    #[inline]
    pub fn push_bytes(&mut self, segment: &[u8]) {
        self.push_text(segment, NOT_TEXT);
    }

    /// The same for a segment that ends at the byte `end` of its path's text.
    #[inline]
    pub(super) fn push_text(&mut self, segment: &[u8], end: usize) {
        self.step(end, |seeds, parent| seeds.child_by_bytes(parent, segment));
        if let Some(names) = &mut self.names {
            names.push(|text| spell(segment, text));
        }
    }

    /// Where to begin in a text whose segments stand between `/`: behind those that it has in common with the known
    /// text, which are in the way already.
    #[inline]
    pub(super) fn resume(&mut self, text: &[u8]) -> usize {
        let Some(known) = self.known.take() else { return 0 };
        let shared = common_prefix(known, text);
        // A segment that ends within the common prefix belongs to both texts, if it ends at the same byte in both.
        let ends =
            |step: &Step| step.end as usize <= shared && text.get(step.end as usize).is_none_or(|&byte| byte == b'/');
        let kept = self.way[self.floor..].iter().rposition(ends).map_or(0, |last| last + 1);
        self.way.truncate(self.floor + kept);
        // The root ends where the text begins.
        self.way[self.floor + kept - 1].end as usize
    }

    /// Removes the last segment; returns `false` if there is none.
    pub fn pop(&mut self) -> bool {
        let inside = self.way.len() > self.floor;
        if inside {
            self.way.pop();
            if let Some(names) = &mut self.names {
                names.pop();
            }
        }
        inside
    }

    /// Runs `tell`, which pushes segments: [`pop`](Segments::pop) may remove those, and none of those before them.
    #[inline]
    pub(super) fn with_floor<R>(&mut self, tell: impl FnOnce(&mut Self) -> R) -> R {
        // All segments that the known text shares may be removed.
        let floor = if self.known.is_some() { self.floor } else { self.way.len() };
        let floor = std::mem::replace(&mut self.floor, floor);
        let told = tell(self);
        self.floor = floor;
        told
    }

    /// No segment so far may be removed from now on.
    #[cfg(not(unix))]
    pub(super) fn raise_floor(&mut self) {
        self.floor = self.way.len();
    }

    #[inline]
    fn step(&mut self, end: usize, child: impl FnOnce(&Seeds, NodeId) -> NodeId) {
        let parent = self.way[self.way.len() - 1];
        self.way.push(Step::new(child(self.seeds, parent.node), parent.depth.saturating_add(1), end));
    }
}

/// The `end` of a segment that is not a part of a text.
const NOT_TEXT: usize = usize::MAX;

/// The number of bytes that are the same at the beginning of both.
#[inline]
fn common_prefix(one: &[u8], other: &[u8]) -> usize {
    fn words(text: &[u8]) -> impl Iterator<Item = u64> {
        text.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")))
    }
    let mut shared = 0;
    for (one, other) in words(one).zip(words(other)) {
        if one != other {
            return shared + ((one ^ other).trailing_zeros() / 8) as usize;
        }
        shared += 8;
    }
    shared + one[shared..].iter().zip(&other[shared..]).take_while(|(one, other)| one == other).count()
}

/// Shows nothing: the seeds are secret.
impl Debug for Segments<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segments").finish_non_exhaustive()
    }
}

/// The names of segments as text, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Names {
    text: String,
    /// Where in the text each of them ends.
    ends: Vec<usize>,
}

impl Names {
    #[inline]
    fn push(&mut self, write: impl FnOnce(&mut String)) {
        write(&mut self.text);
        self.ends.push(self.text.len());
    }

    fn pop(&mut self) {
        self.ends.pop();
        self.text.truncate(self.ends.last().copied().unwrap_or(0));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |&end| &self.text[std::mem::replace(&mut start, end)..end])
    }

    pub(crate) fn to_vec(&self) -> Vec<String> {
        self.iter().map(str::to_owned).collect()
    }

    /// Empties it; whether its buffers are small enough to be kept.
    #[cfg(feature = "replica")]
    pub(crate) fn clear(&mut self) -> bool {
        self.text.clear();
        self.ends.clear();
        self.text.capacity() <= 8 * path::MOST_BYTES && self.ends.capacity() <= path::MOST_BYTES
    }
}

/// Adds bytes to a text; bytes that are not UTF-8 are escaped, so that different names stay different.
fn spell(bytes: &[u8], text: &mut String) {
    if let Ok(valid) = std::str::from_utf8(bytes) {
        return text.push_str(valid);
    }
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02X}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_utf8_is_spelled_out() {
        let spelled = |bytes: &[u8]| {
            let mut text = String::new();
            spell(bytes, &mut text);
            text
        };
        assert_eq!(spelled("gr\u{fc}n".as_bytes()), "gr\u{fc}n");
        assert_eq!(spelled(b"a\xffb\xc3"), "a\\xFFb\\xC3");
    }

    /// An adversary who knew the seeds could aim at one node (G5).
    #[test]
    fn segments_show_no_secret() {
        let (mut way, seeds) = (Vec::new(), Seeds::new(|| 7));
        let segments = Segments { seeds: &seeds, way: &mut way, floor: 0, known: None, names: None };
        assert_eq!(format!("{segments:?}"), "Segments { .. }");
    }

    /// Known answers, computed by OpenSSL: for the root, and for each node from the id of its parent followed by the
    /// segment:
    ///
    /// ```sh
    /// K=000102030405060708090a0b0c0d0e0f
    /// openssl mac -macopt hexkey:$K -macopt size:16 -in /dev/null SIPHASH
    /// (printf a3817f04ba25a8e66df67214c755029300 | xxd -r -p; printf srv) > node
    /// openssl mac -macopt hexkey:$K -macopt size:16 -in node SIPHASH
    /// ```
    ///
    /// A build that gives other answers has another format (invariant 2 of `node_id.rs`). The last one depends on
    /// what the `Hash` of `str` writes, which is std's: should it change, programs of both versions cannot share such
    /// segments.
    #[cfg(feature = "replica")]
    #[test]
    fn specified_ids_are_the_known_ones() {
        let seeds = Seeds::specified([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]);
        let told = |tell: &dyn Fn(&mut Segments<'_>)| {
            let mut way = vec![Step::new(seeds.root(), 0, 0)];
            tell(&mut Segments { seeds: &seeds, way: &mut way, floor: 1, known: None, names: None });
            let hex = |step: &Step| step.node.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            way.iter().map(hex).collect::<Vec<_>>()
        };
        let by_bytes = told(&|segments| {
            segments.push_bytes(b"srv");
            segments.push_bytes(b"data");
        });
        assert_eq!(by_bytes[0], "a3817f04ba25a8e66df67214c7550293");
        assert_eq!(by_bytes[1], "4c9431c89d1b6d5d1c7993fb6d02c1e8");
        assert_eq!(by_bytes[2], "316f92bb7b527d52b155433289e9b52e");
        assert_eq!(told(&|segments| segments.push_bytes(&[b'x'; 300]))[1], "1d40913caff102fdf72efe864835fb60");
        assert_eq!(told(&|segments| segments.push(&7u32))[1], "606a0ba0da5be813483803d0ac0ea0a3");
        assert_eq!(told(&|segments| segments.push(&7usize))[1], "e29780d0549af5d53a518e7e4022f6c7", "64 bits");
        assert_eq!(told(&|segments| segments.push(&-1isize))[1], "9689e41d9abf7ff7b1ee8e3ab44f9be9", "64 bits");
        assert_eq!(told(&|segments| segments.push("srv"))[1], "52fa40dbc29f09592e1b61410b12f9ee");
    }
}
