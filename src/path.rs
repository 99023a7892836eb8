//! How a path names its segments, and how a node is named by them.
//!
//! A [`TreePath`] tells its segments, from the root down, to [`Segments`], which turns each prefix into the
//! [`NodeId`] of one node. Nothing else of a path reaches the lock, so the tree is never built, and user code
//! runs before anything is locked: a panic in it leaves nothing behind (G8).
//!
//! Invariants:
//!
//! 1. One spelling more or less of a node gives the same id: what a type ignores, it does not push.
//! 2. The id of a node is a seeded hash of its parent's id and its segment, 128 bits wide. Two nodes that share
//!    an id are locked together: exclusion becomes coarser, not finer. For an ideal hash and a
//!    million nodes alive at once the chance that any two do is about 10^-27. A tag (`bias.rs`) is half of an id: should
//!    a biased node and one that is held strongly share that half, exclusion would be lost; the chance is about 10^-11,
//!    with all tags in use. The seed is random for each lock, so that neither can be aimed at (G5).
//! 3. All paths of one lock are in one [`Frame`]: a relative and an absolute name of one place have
//!    different segments and would pass each other silently, so the second kind is refused.
//!
//! Not here: which nodes a request holds, and how (`plan.rs`).

use crate::error::PathError;
use foldhash::SharedSeed;
use foldhash::fast::FoldHasher;
use std::fmt::{self, Debug};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

/// A name of a node in a tree: the root of the sub-tree that is to be locked.
///
/// Implemented for [`Path`], `str` and slices; implement it for the names of your own tree, and `AsRef<Self>` with it,
/// since that is how the methods of the lock take paths. The lock never asks whether two paths are equal: it compares
/// what they push.
///
/// | type | segments | the root |
/// |---|---|---|
/// | [`Path`] | its components; `.` and repeated separators are ignored, `..` takes one back | `.` or empty; `/` where paths are absolute |
/// | `str` | what stands between `/`; empty ones are ignored, `.` and `..` are names like others | empty, or `/` |
/// | `[T]` | its elements | empty |
///
/// # Paths of the file system
///
/// `Path`s are compared by their text alone; the file system is never asked. So:
///
/// - Relative and absolute paths cannot be compared, and one lock takes only one kind: the first request
///   decides, and a path of the other kind is an error from then on.
/// - `..` is resolved lexically, as if no directory were a symbolic link; above `/` it stays at `/`; a relative
///   path that leads out of its tree (`../a`) is an error.
/// - Symbolic links, hard links, bind mounts and names that differ only in case are names of their own. Where
///   these matter, lock what [`std::fs::canonicalize`] returns.
/// - They need not be UTF-8.
///
/// # Examples
///
/// Rows in tables in databases:
///
/// ```
/// use treelock::{PathError, Segments, TreeLock, TreePath};
///
/// #[derive(Clone, Debug)]
/// enum Place {
///     Database(String),
///     Table(String, String),
///     Row(String, String, u64),
/// }
///
/// impl TreePath for Place {
///     fn segments(&self, segments: &mut Segments<'_>) -> Result<(), PathError> {
///         match self {
///             Place::Database(database) => segments.push(database),
///             Place::Table(database, table) => {
///                 segments.push(database);
///                 segments.push(table);
///             }
///             Place::Row(database, table, row) => {
///                 segments.push(database);
///                 segments.push(table);
///                 segments.push(row);
///             }
///         }
///         Ok(())
///     }
/// }
///
/// impl AsRef<Place> for Place {
///     fn as_ref(&self) -> &Place {
///         self
///     }
/// }
///
/// let lock = TreeLock::<Place>::default();
/// let table = Place::Table("shop".into(), "orders".into());
/// let row = Place::Row("shop".into(), "orders".into(), 7);
/// let reading = lock.lock(&[table], &[]);
/// let writing = std::thread::scope(|scope| {
///     scope.spawn(|| lock.try_lock(&[], &[row]).is_err()).join().unwrap()
/// });
/// assert!(writing, "somebody else reads the whole table");
/// # drop(reading);
/// ```
pub trait TreePath: ToOwned<Owned: Send + Sync + 'static> + Debug + 'static {
    /// Tells the segments, from the root down; none for the root itself.
    ///
    /// Two paths that name one node must push the same segments, by the same methods of [`Segments`].
    ///
    /// It is called again, on any thread, when a snapshot or a report names the path, and must give the same then.
    ///
    /// # Errors
    ///
    /// [`PathError::new`], if the path cannot be used; the request fails, and nothing is locked.
    fn segments(&self, segments: &mut Segments<'_>) -> Result<(), PathError>;

    /// What the path is relative to. Only types whose paths come in two kinds that cannot be compared need it.
    fn frame(&self) -> Frame {
        Frame::Absolute
    }

    /// Empties a path that the lock has kept for reports and needs no longer, so that its memory can take the next one.
    /// `false`, as by default: it is dropped.
    fn clear(_kept: &mut Self::Owned) -> bool {
        false
    }
}

/// What is larger is not kept for the next path.
const MOST_BYTES: usize = 512;

/// What a path is relative to: the root of the tree, or a place that only its user knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The top of the tree.
    Absolute,
    /// A place inside of it, such as the working directory.
    Relative,
}

/// The frame of all paths of a request; `None` if there are none.
#[inline]
pub(crate) fn common_frame<'p, P: TreePath + ?Sized>(
    mut paths: impl Iterator<Item = &'p P>,
) -> Result<Option<Frame>, PathError> {
    let Some(first) = paths.next().map(P::frame) else { return Ok(None) };
    match paths.find(|path| path.frame() != first) {
        Some(odd) => Err(odd_frame(odd)),
        None => Ok(Some(first)),
    }
}

/// What is wrong with a path of the other frame than those before it.
#[cold]
pub(crate) fn odd_frame<P: TreePath + ?Sized>(path: &P) -> PathError {
    let (this, others) = match path.frame() {
        Frame::Absolute => ("absolute", "relative"),
        Frame::Relative => ("relative", "absolute"),
    };
    PathError::new(format!(
        "it is {this} and others given to this lock are {others}, so the two cannot be compared: \
         give all of them in one way; of a Path, std::path::absolute makes an absolute one, and \"/\" is then the root"
    ))
    .at(path)
}

impl TreePath for str {
    fn segments(&self, segments: &mut Segments<'_>) -> Result<(), PathError> {
        for segment in self.as_bytes().split(|&byte| byte == b'/') {
            if !segment.is_empty() {
                segments.push_bytes(segment);
            }
        }
        Ok(())
    }

    fn clear(kept: &mut String) -> bool {
        kept.clear();
        kept.capacity() <= MOST_BYTES
    }
}

impl<T: Hash + Debug + Clone + Send + Sync + 'static> TreePath for [T] {
    fn segments(&self, segments: &mut Segments<'_>) -> Result<(), PathError> {
        for segment in self {
            segments.push(segment);
        }
        Ok(())
    }

    fn clear(kept: &mut Vec<T>) -> bool {
        kept.clear();
        kept.capacity() * size_of::<T>() <= MOST_BYTES
    }
}

impl TreePath for Path {
    fn segments(&self, segments: &mut Segments<'_>) -> Result<(), PathError> {
        // `..` takes back what this path has pushed, and not what a path has that this one is a part of.
        let floor = std::mem::replace(&mut segments.floor, segments.ids.len());
        #[cfg(unix)]
        let told = tell(self, segments);
        #[cfg(not(unix))]
        let told = tell_by_components(self, segments);
        segments.floor = floor;
        told
    }

    fn frame(&self) -> Frame {
        // On Unix the first byte tells; `is_absolute` takes the path apart for it.
        let absolute =
            if cfg!(unix) { self.as_os_str().as_encoded_bytes().first() == Some(&b'/') } else { self.is_absolute() };
        if absolute { Frame::Absolute } else { Frame::Relative }
    }

    fn clear(kept: &mut PathBuf) -> bool {
        kept.clear();
        kept.capacity() <= MOST_BYTES
    }
}

#[cfg(unix)]
fn tell(path: &Path, segments: &mut Segments<'_>) -> Result<(), PathError> {
    let bytes = path.as_os_str().as_encoded_bytes();
    for segment in bytes.split(|&byte| byte == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => parent(segments, path.frame())?,
            name => segments.push_bytes(name),
        }
    }
    Ok(())
}

#[cfg(not(unix))]
fn tell_by_components(path: &Path, segments: &mut Segments<'_>) -> Result<(), PathError> {
    use std::path::Component;
    if path.has_root() != path.is_absolute()
        || (!path.has_root() && path.components().next().is_some_and(|first| matches!(first, Component::Prefix(_))))
    {
        return Err(PathError::new("it is absolute but for its drive or its root: say both"));
    }
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir => parent(segments, path.frame())?,
            Component::Prefix(prefix) => {
                push_prefix(segments, prefix.kind());
                segments.floor = segments.ids.len();
            }
            Component::Normal(name) => segments.push_bytes(name.as_encoded_bytes()),
        }
    }
    Ok(())
}

/// A drive or a share, however it is spelled: `c:`, `C:` and `\\?\C:` are one.
#[cfg(not(unix))]
fn push_prefix(segments: &mut Segments<'_>, prefix: std::path::Prefix<'_>) {
    use std::path::Prefix::{DeviceNS, Disk, UNC, Verbatim, VerbatimDisk, VerbatimUNC};
    let mut push = |name: &std::ffi::OsStr| segments.push_bytes(&name.as_encoded_bytes().to_ascii_lowercase());
    match prefix {
        Disk(letter) | VerbatimDisk(letter) => segments.push_bytes(&[letter.to_ascii_lowercase(), b':']),
        UNC(server, share) | VerbatimUNC(server, share) => {
            push(server);
            push(share);
        }
        DeviceNS(name) | Verbatim(name) => push(name),
    }
}

/// Resolves `..`.
fn parent(segments: &mut Segments<'_>, frame: Frame) -> Result<(), PathError> {
    if segments.pop() || frame == Frame::Absolute {
        Ok(())
    } else {
        Err(PathError::new("its \"..\" leads out of the tree: join the path to the directory that it is relative to"))
    }
}

/// Takes the segments of one path, from the root down.
pub struct Segments<'a> {
    seeds: &'a Seeds,
    /// The ids of the nodes from the root to the last segment; those of this path begin at `floor`.
    ids: &'a mut Vec<NodeId>,
    floor: usize,
    names: Option<&'a mut Names>,
}

impl<'a> Segments<'a> {
    /// Puts the ids of the nodes of `path` behind `ids`, the root's first; and its segments' names, if asked.
    pub(crate) fn of<P: TreePath + ?Sized>(
        path: &P,
        seeds: &'a Seeds,
        ids: &'a mut Vec<NodeId>,
        names: Option<&'a mut Names>,
    ) -> Result<(), PathError> {
        ids.push(seeds.root());
        let floor = ids.len();
        path.segments(&mut Segments { seeds, ids, floor, names }).map_err(|error| error.at(path))
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
        self.step(|hasher| {
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
        self.step(|hasher| hasher.write(segment));
        if let Some(names) = &mut self.names {
            names.push(|text| spell(segment, text));
        }
    }

    /// Takes the last segment back; `false` if there is none.
    pub fn pop(&mut self) -> bool {
        let inside = self.ids.len() > self.floor;
        if inside {
            self.ids.pop();
            if let Some(names) = &mut self.names {
                names.pop();
            }
        }
        inside
    }

    #[inline]
    fn step(&mut self, write: impl Fn(&mut FoldHasher<'_>)) {
        let parent = self.ids[self.ids.len() - 1];
        self.ids.push(self.seeds.child(parent, write));
    }
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
        self.text.capacity() <= 8 * MOST_BYTES && self.ends.capacity() <= MOST_BYTES
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

/// Names a node, by a hash of the way from the root to it (invariant 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeId(u64, u64);

impl NodeId {
    /// All of it, to be told to another process.
    #[cfg(feature = "process")]
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.0) << 64 | u128::from(self.1)).to_le_bytes()
    }

    #[cfg(feature = "process")]
    pub(crate) fn of_bytes(bytes: [u8; 16]) -> Self {
        let bits = u128::from_le_bytes(bytes);
        NodeId((bits >> 64) as u64, bits as u64)
    }

    /// A word of it, to choose places by.
    #[inline]
    pub(crate) fn bits(self) -> u64 {
        self.0
    }
}

impl Hash for NodeId {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

/// The secret of one lock's node ids.
pub(crate) struct Seeds {
    halves: [SharedSeed; 2],
    root: NodeId,
}

impl Seeds {
    pub(crate) fn new(mut random: impl FnMut() -> u64) -> Self {
        Seeds {
            halves: [SharedSeed::from_u64(random()), SharedSeed::from_u64(!random())],
            // Secret as well: it is where the hash of the first segment starts from.
            root: NodeId(random(), !random()),
        }
    }

    #[inline]
    pub(crate) fn root(&self) -> NodeId {
        self.root
    }

    #[inline]
    fn child(&self, parent: NodeId, write: impl Fn(&mut FoldHasher<'_>)) -> NodeId {
        let [first, second] = &self.halves;
        let mut first = FoldHasher::with_seed(parent.0, first);
        let mut second = FoldHasher::with_seed(parent.1, second);
        write(&mut first);
        write(&mut second);
        NodeId(first.finish(), second.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told<P: TreePath + ?Sized>(path: &P) -> Result<(Vec<NodeId>, Vec<String>), PathError> {
        let seeds = Seeds::new(|| 7);
        let (mut ids, mut names) = (Vec::new(), Names::default());
        Segments::of(path, &seeds, &mut ids, Some(&mut names))?;
        assert_eq!(ids.len(), names.ends.len() + 1);
        Ok((ids, names.to_vec()))
    }

    #[test]
    fn spellings_of_one_path_are_one_node() {
        let spellings = ["a/b", "a//b/", "./a/./b", "a/x/../b", "a/b/.", "a/b/c/.."];
        for spelling in spellings {
            assert_eq!(told(Path::new(spelling)).unwrap(), told(Path::new("a/b")).unwrap(), "{spelling}");
        }
        for root in ["", ".", "a/..", "./"] {
            assert_eq!(told(Path::new(root)).unwrap().1.len(), 0, "{root}");
        }
        assert_eq!(told(Path::new("/../..//a")).unwrap(), told(Path::new("/a")).unwrap());
    }

    #[test]
    fn names_are_not_joined_across_separators() {
        for (one, other) in [("a/b", "ab"), ("a/b", "b/a"), ("a", "a/a"), ("ab/c", "a/bc")] {
            assert_ne!(told(Path::new(one)).unwrap().0, told(Path::new(other)).unwrap().0);
            assert_ne!(told(one).unwrap().0, told(other).unwrap().0);
        }
    }

    #[test]
    fn leading_parent_is_refused_by_name() {
        for path in ["..", "../a", "a/../../b"] {
            let error = told(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains(&format!("{path:?}")), "{error}");
        }
    }

    #[test]
    fn text_takes_dots_as_names() {
        assert_eq!(told("/a//b/").unwrap(), told("a/b").unwrap());
        assert_eq!(told("a/../b").unwrap().1, ["a", "..", "b"]);
        assert_eq!(told("/").unwrap().1.len(), 0);
    }

    #[test]
    fn slices_name_their_elements() {
        assert_eq!(told([1u32, 3, 6].as_slice()).unwrap().1, ["1", "3", "6"]);
        assert_eq!(told([(), ()].as_slice()).unwrap().0.windows(2).filter(|pair| pair[0] == pair[1]).count(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn paths_need_not_be_utf8() {
        use std::os::unix::ffi::OsStrExt;
        let path = |bytes: &'static [u8]| Path::new(std::ffi::OsStr::from_bytes(bytes));
        assert_ne!(told(path(b"a/\xff")).unwrap().0, told(path(b"a/\xfe")).unwrap().0);
        // And what is taken back takes its name with it.
        assert_eq!(told(path(b"a/b\xff/../../c\xfe")).unwrap().1, ["c\\xFE"]);
    }

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

    /// What a thread keeps for its next request is empty and small (G6).
    #[test]
    fn kept_paths_are_emptied_and_small() {
        fn kept<P: TreePath + ?Sized>(mut path: P::Owned) -> Option<P::Owned> {
            P::clear(&mut path).then_some(path)
        }
        let text = |bytes: usize| "x".repeat(bytes);
        assert_eq!(kept::<str>(text(MOST_BYTES)), Some(String::new()));
        assert_eq!(kept::<str>(text(MOST_BYTES + 1)), None);
        assert_eq!(kept::<Path>(text(MOST_BYTES).into()), Some(PathBuf::new()));
        assert_eq!(kept::<Path>(text(MOST_BYTES + 1).into()), None);
        let most = MOST_BYTES / size_of::<u64>();
        assert_eq!(kept::<[u64]>(vec![7; most]), Some(vec![]));
        assert_eq!(kept::<[u64]>(vec![7; most + 1]), None);
    }

    /// What it owns is let go with the guard (G6).
    #[test]
    fn path_that_cannot_be_emptied_is_not_kept() {
        #[derive(Clone, Debug)]
        struct Own;
        impl TreePath for Own {
            fn segments(&self, _: &mut Segments<'_>) -> Result<(), PathError> {
                Ok(())
            }
        }
        assert!(!Own::clear(&mut Own));
    }

    /// Or nodes would share shards and places, whatever hash names them (G5).
    #[test]
    fn nodes_are_told_apart_by_their_bits_and_by_their_hash() {
        use std::collections::HashSet;
        use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
        let nodes = (0..1000u32).map(|name| told([name].as_slice()).unwrap().0[1]);
        let (bits, hashes): (HashSet<_>, HashSet<_>) =
            nodes.map(|node| (node.bits(), BuildHasherDefault::<DefaultHasher>::default().hash_one(node))).unzip();
        assert_eq!((bits.len(), hashes.len()), (1000, 1000));
    }

    /// Who knew the seeds could aim at one node (G5).
    #[test]
    fn segments_show_no_secret() {
        let (mut ids, seeds) = (Vec::new(), Seeds::new(|| 7));
        let segments = Segments { seeds: &seeds, ids: &mut ids, floor: 0, names: None };
        assert_eq!(format!("{segments:?}"), "Segments { .. }");
    }
}
