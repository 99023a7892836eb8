//! How a path names its segments.
//!
//! A [`TreePath`] passes its segments, from the root down, to [`Segments`], which turns each prefix into the id of
//! one node. Nothing else of a path reaches the lock, so the tree is never built, and user code runs before anything
//! is locked: a panic in it leaves nothing behind (G8).
//!
//! Invariants:
//!
//! 1. All spellings of a node give the same id: a type does not push what it ignores.
//! 2. All paths that are locked or awaited at one moment are in one [`Frame`]: a relative and an absolute name of one
//!    place have different segments, so their requests would silently not conflict; the second kind is refused. A
//!    kind is forgotten when its last request has gone, so a stray path does no lasting harm.
//!
//! Not here: how segments become ids (`segments.rs`, `node_id.rs`); which nodes a request holds, and how (`plan.rs`).

use crate::core::segments::Segments;
use std::error::Error;
use std::fmt::{self, Debug, Display};
use std::hash::Hash;
use std::io;
use std::path::{Path, PathBuf};

/// A name of a node in a tree: the root of the sub-tree that is to be locked.
///
/// Implemented for [`Path`], `str` and slices. Implement it for the names of your own tree, and `AsRef<Self>` too,
/// since the methods of the lock take paths by `AsRef`. The lock never asks whether two paths are equal: it compares
/// the segments that they push.
///
/// | type | segments | the root |
/// |---|---|---|
/// | [`Path`] | its components; `.` and repeated separators are ignored, `..` removes the one before | empty; `.` where paths are relative, `/` where they are absolute |
/// | `str` | the parts between `/`; empty ones are ignored, `.` and `..` are ordinary names | empty, or `/` |
/// | `[T]` | its elements | empty |
///
/// # Paths of the file system
///
/// `Path`s are compared by their text alone; the file system is never asked. So:
///
/// - Relative and absolute paths cannot be compared, so one lock takes one kind at a time. While a path of one kind
///   is locked or awaited, a path of the other kind is an error; when nothing is, the next request may be of either
///   kind. The empty path is the root in both. Before you lock paths that others choose, make them absolute, or
///   relative to one directory.
/// - `..` is resolved lexically, as if no directory were a symbolic link; above `/` it stays at `/`; a relative
///   path that leads out of its tree (`../a`) is an error.
/// - Symbolic links, hard links, bind mounts and names that differ only in case count as different names. Where these
///   matter, lock what [`std::fs::canonicalize`] returns.
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
    /// Pushes the segments, from the root down; none for the root itself.
    ///
    /// Two paths that name one node must push the same segments, by the same methods of [`Segments`].
    ///
    /// The lock calls it again, on any thread, when a snapshot or a report names the path; it must push the same
    /// segments then.
    ///
    /// # Errors
    ///
    /// [`PathError::new`], if the path cannot be used; the request fails, and nothing is locked.
    fn segments(&self, segments: &mut Segments<'_>) -> Result<(), PathError>;

    /// Returns what the path is relative to; `None` if that makes no difference, since it is the root in either
    /// frame. Only types whose paths come in two kinds that cannot be compared need to implement it.
    fn frame(&self) -> Option<Frame> {
        Some(Frame::Absolute)
    }

    /// Empties a path that the lock kept for reports and no longer needs, so that its memory can hold the next one.
    /// Returns `false`, as by default, to have it dropped.
    fn clear(_kept: &mut Self::Owned) -> bool {
        false
    }

    /// Returns the path as text, if its segments are the parts between `/` and the same text always means the same
    /// path. Only for types of this crate: it is called where user code must not run.
    #[doc(hidden)]
    #[inline]
    fn text(&self, _: OursAlone) -> Option<&[u8]> {
        None
    }
}

/// Other crates cannot name it, and so cannot implement a method that takes it.
#[derive(Clone, Copy, Debug)]
pub struct OursAlone;

/// A larger buffer is not kept for the next path.
pub(crate) const MOST_BYTES: usize = 512;

/// What a path is relative to: the root of the tree, or a place that only its user knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The top of the tree.
    Absolute,
    /// A place inside of it, such as the working directory.
    Relative,
}

/// The frame of all paths of a request; `None` if none has one.
#[cfg(feature = "replica")]
pub(crate) fn common_frame<'p, P: TreePath + ?Sized>(
    mut paths: impl Iterator<Item = &'p P>,
) -> Result<Option<Frame>, PathError> {
    paths.try_fold(None, |common, path| join_frame(common, path))
}

/// The frame that a path has in common with others.
#[inline]
pub(crate) fn join_frame<P: TreePath + ?Sized>(others: Option<Frame>, path: &P) -> Result<Option<Frame>, PathError> {
    let frame = path.frame();
    match others {
        Some(_) if frame.is_some() && frame != others => Err(odd_frame([path].into_iter())),
        Some(_) => Ok(others),
        None => Ok(frame),
    }
}

/// The error of a request whose paths are in another frame than those that are locked or awaited.
#[cold]
pub(crate) fn odd_frame<'p, P: TreePath + ?Sized>(paths: impl Iterator<Item = &'p P>) -> PathError {
    odd_frame_with(paths, |this, others| {
        format!(
            "it is {this} and others that this lock has are {others}, so the two cannot be compared: give all of them in \
             one way; of a Path, std::path::absolute makes an absolute one, and the empty one is the root in both"
        )
    })
}

/// The same between machines, where not all need give paths of one type.
#[cfg(feature = "machine")]
#[cold]
pub(crate) fn odd_frame_of_namespace<'p, P: TreePath + ?Sized>(paths: impl Iterator<Item = &'p P>) -> PathError {
    odd_frame_with(paths, |this, others| {
        format!(
            "it is {this}, and clients of the namespace hold or await paths that are {others}, so the two cannot be \
             compared: give str in all of them, as the command treelock does, or Path in all of them, and all of those \
             absolute or all relative; a str is absolute, with or without a / in front"
        )
    })
}

fn odd_frame_with<'p, P: TreePath + ?Sized>(
    paths: impl Iterator<Item = &'p P>,
    why: impl FnOnce(&str, &str) -> String,
) -> PathError {
    let framed = paths.map(|path| (path, path.frame())).find(|(_, frame)| frame.is_some());
    let (this, others) = match framed {
        Some((_, Some(Frame::Relative))) => ("relative", "absolute"),
        _ => ("absolute", "relative"),
    };
    let error = PathError::new(why(this, others));
    match framed {
        Some((path, _)) => error.at(path),
        // Only a type whose paths change their frame comes here.
        None => error,
    }
}

impl TreePath for str {
    fn segments(&self, segments: &mut Segments<'_>) -> Result<(), PathError> {
        split(self.as_bytes(), segments, |segments, name, end| {
            segments.push_text(name, end);
            Ok(())
        })
    }

    #[inline]
    fn text(&self, _: OursAlone) -> Option<&[u8]> {
        Some(self.as_bytes())
    }

    fn clear(kept: &mut String) -> bool {
        kept.clear();
        kept.capacity() <= MOST_BYTES
    }
}

/// Passes each part between `/` that is not empty to `tell`, and where it ends.
#[inline]
fn split<'s>(
    text: &[u8],
    segments: &mut Segments<'s>,
    mut tell: impl FnMut(&mut Segments<'s>, &[u8], usize) -> Result<(), PathError>,
) -> Result<(), PathError> {
    let mut begin = segments.resume(text);
    while begin < text.len() {
        let length = text[begin..].iter().position(|&byte| byte == b'/').unwrap_or(text.len() - begin);
        let end = begin + length;
        if begin < end {
            tell(segments, &text[begin..end], end)?;
        }
        begin = end + 1;
    }
    Ok(())
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
        // `..` removes only what this path has pushed, not the segments of a path that this one is a part of.
        segments.with_floor(|segments| {
            #[cfg(unix)]
            return tell(self, segments);
            #[cfg(not(unix))]
            return tell_by_components(self, segments);
        })
    }

    #[inline]
    fn frame(&self) -> Option<Frame> {
        let first = self.as_os_str().as_encoded_bytes().first()?;
        // On Unix the first byte is enough; `is_absolute` would parse the path.
        let absolute = if cfg!(unix) { *first == b'/' } else { self.is_absolute() };
        Some(if absolute { Frame::Absolute } else { Frame::Relative })
    }

    fn clear(kept: &mut PathBuf) -> bool {
        kept.clear();
        kept.capacity() <= MOST_BYTES
    }

    #[cfg(unix)]
    #[inline]
    fn text(&self, _: OursAlone) -> Option<&[u8]> {
        Some(self.as_os_str().as_encoded_bytes())
    }
}

#[cfg(unix)]
fn tell(path: &Path, segments: &mut Segments<'_>) -> Result<(), PathError> {
    split(path.as_os_str().as_encoded_bytes(), segments, |segments, name, end| {
        match name {
            b"." => {}
            b".." => parent(segments, path.frame())?,
            name => segments.push_text(name, end),
        }
        Ok(())
    })
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
                segments.raise_floor();
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
fn parent(segments: &mut Segments<'_>, frame: Option<Frame>) -> Result<(), PathError> {
    if segments.pop() || frame == Some(Frame::Absolute) {
        Ok(())
    } else {
        Err(PathError::new("its \"..\" leads out of the tree: join the path to the directory that it is relative to"))
    }
}

/// A path that cannot be used, and why.
///
/// ```
/// use treelock::{LockError, TreeLock};
///
/// let lock = TreeLock::new();
/// let Err(LockError::Path(error)) = lock.try_lock(&["../a"], &[]) else { panic!() };
/// assert!(error.to_string().starts_with("unusable path \"../a\": "));
/// assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::InvalidInput);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathError(Box<Unusable>);

/// In a box of its own: every request returns a `Result`, and a large one takes longer to hand on than to lock.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unusable {
    path: String,
    reason: String,
}

impl PathError {
    /// Makes the error of a [`TreePath`](crate::TreePath); the lock adds the path's name.
    pub fn new(reason: impl Into<String>) -> Self {
        PathError(Box::new(Unusable { path: String::new(), reason: reason.into() }))
    }

    pub(crate) fn at<P: Debug + ?Sized>(mut self, path: &P) -> Self {
        self.0.path = format!("{path:?}");
        self
    }
}

impl Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unusable { path, reason } = &*self.0;
        match path.as_str() {
            "" => write!(f, "unusable path: {reason}"),
            path => write!(f, "unusable path {path}: {reason}"),
        }
    }
}

impl Error for PathError {}

/// Of the kind [`InvalidInput`](io::ErrorKind::InvalidInput).
impl From<PathError> for io::Error {
    fn from(error: PathError) -> Self {
        io::Error::new(io::ErrorKind::InvalidInput, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::node_id::{NodeId, Seeds};
    use crate::core::segments::Names;

    fn told<P: TreePath + ?Sized>(path: &P) -> Result<(Vec<NodeId>, Vec<String>), PathError> {
        let seeds = Seeds::new(|| 7);
        let (mut ids, mut names) = (Vec::new(), Names::default());
        Segments::of(path, &seeds, &mut ids, Some(&mut names))?;
        let names = names.to_vec();
        assert_eq!(ids.len(), names.len() + 1);
        Ok((ids, names))
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
        // A segment that `..` removes takes its name with it.
        assert_eq!(told(path(b"a/b\xff/../../c\xfe")).unwrap().1, ["c\\xFE"]);
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

    /// Its memory is released with the guard (G6).
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
}
