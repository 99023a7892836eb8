//! How the segments of a path become the ids of its nodes, and their names as text.
//!
//! Not here: what the segments of a path are (`path.rs`); how an id is made (`node_id.rs`).

use crate::core::node_id::{NodeId, Seeds};
#[cfg(feature = "process")]
use crate::core::path;
use crate::core::path::{PathError, TreePath};
use crate::core::plan::Step;
use foldhash::fast::FoldHasher;
use std::fmt::{self, Debug};
use std::hash::{Hash, Hasher};

/// Takes the segments of one path, from the root down.
pub struct Segments<'a> {
    seeds: &'a Seeds,
    /// The nodes of other ways, and then of this one, from the root to the last segment; those that may be taken back
    /// begin at `floor`.
    way: &'a mut Vec<Step>,
    floor: usize,
    known: Option<&'a [u8]>,
    names: Option<&'a mut Names>,
}

impl<'a> Segments<'a> {
    /// Puts the ids of the nodes of `path` behind `ids`, the root's first; and its segments' names, if asked.
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

    /// Puts the way to `path` into `way`, from `start` on, the root first; modes are left to the caller. If the path's text
    /// is `known` the way to that stands there already, and what both have in common stays.
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

    /// Goes down by one segment, told apart by its `Hash` and named by its `Debug`.
    ///
    /// Segments below one node should be of one type: values of different types may hash alike (`0u8` and `false` do), and
    /// are one segment then, which is safe and coarser than meant.
    #[inline]
    pub fn push<S: Hash + Debug + ?Sized>(&mut self, segment: &S) {
        // First what may panic.
        let name = self.names.is_some().then(|| format!("{segment:?}"));
        // The byte keeps a segment that hashes nothing, such as `()`, from being its own parent.
        self.step(NOT_TEXT, |hasher| {
            hasher.write_u8(1);
            segment.hash(hasher);
        });
        if let (Some(names), Some(name)) = (&mut self.names, name) {
            names.push(|text| text.push_str(&name));
        }
    }

    /// Goes down by one segment that is told by its bytes, and named by them as text: the fast way.
    ///
    /// It is another segment than the same text given to [`push`](Segments::push).
    #[inline]
    pub fn push_bytes(&mut self, segment: &[u8]) {
        self.push_text(segment, NOT_TEXT);
    }

    /// The same for a segment of a text, where it ends at that byte.
    #[inline]
    pub(super) fn push_text(&mut self, segment: &[u8], end: usize) {
        self.step(end, |hasher| hasher.write(segment));
        if let Some(names) = &mut self.names {
            names.push(|text| spell(segment, text));
        }
    }

    /// Where to begin in a text whose segments stand between `/`: behind those that it has in common with the known one,
    /// which have been told.
    #[inline]
    pub(super) fn resume(&mut self, text: &[u8]) -> usize {
        let Some(known) = self.known.take() else { return 0 };
        let shared = common_prefix(known, text);
        // A segment that ends there has told all before it, and is one of both if it ends there in both.
        let ends =
            |step: &Step| step.end as usize <= shared && text.get(step.end as usize).is_none_or(|&byte| byte == b'/');
        let kept = self.way[self.floor..].iter().rposition(ends).map_or(0, |last| last + 1);
        self.way.truncate(self.floor + kept);
        // The root ends where the text begins.
        self.way[self.floor + kept - 1].end as usize
    }

    /// Takes the last segment back; `false` if there is none.
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

    /// Tells segments that [`pop`](Segments::pop) may take back, and none of those before them.
    #[inline]
    pub(super) fn with_floor<R>(&mut self, tell: impl FnOnce(&mut Self) -> R) -> R {
        // Of what is known all may be taken back.
        let floor = if self.known.is_some() { self.floor } else { self.way.len() };
        let floor = std::mem::replace(&mut self.floor, floor);
        let told = tell(self);
        self.floor = floor;
        told
    }

    /// Nothing that has been told so far is taken back.
    #[cfg(not(unix))]
    pub(super) fn raise_floor(&mut self) {
        self.floor = self.way.len();
    }

    #[inline]
    fn step(&mut self, end: usize, write: impl Fn(&mut FoldHasher<'_>)) {
        let parent = self.way[self.way.len() - 1];
        self.way.push(Step::new(self.seeds.child(parent.node, write), parent.depth.saturating_add(1), end));
    }
}

/// The end of a segment that is not a part of a text.
const NOT_TEXT: usize = usize::MAX;

/// So many bytes are the same at the beginning of both.
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

/// Tells nothing: the seeds are secret.
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
    #[cfg(feature = "process")]
    pub(crate) fn clear(&mut self) -> bool {
        self.text.clear();
        self.ends.clear();
        self.text.capacity() <= 8 * path::MOST_BYTES && self.ends.capacity() <= path::MOST_BYTES
    }
}

/// Adds bytes to a text; what is not UTF-8 is spelled out, so that it can be told apart.
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

    /// Who knew the seeds could aim at one node (G5).
    #[test]
    fn segments_show_no_secret() {
        let (mut way, seeds) = (Vec::new(), Seeds::new(|| 7));
        let segments = Segments { seeds: &seeds, way: &mut way, floor: 0, known: None, names: None };
        assert_eq!(format!("{segments:?}"), "Segments { .. }");
    }
}
