//! Who holds what and who waits for what, as plain data: the same for all scopes.
//!
//! Not here: how it is gathered (`thread/report.rs`, `process/report.rs`); how it is drawn and told (`drawing.rs`); how a
//! cycle is found (`core/deadlock.rs`).

use crate::core::mode::Mode;
use std::time::{Duration, SystemTime};

/// All that a lock had granted and all that waited for it at one moment, and what those that wait have taken already.
///
/// Its `Display` draws the tree:
///
/// ```text
/// treelock: 2 held, 1 waiting
/// /
/// ├─ data
/// │  └─ users
/// │       X    held by "worker-1" for 1.2 s, taken at src/job.rs:41:22
/// │       S    awaited by "worker-2" for 310 ms, asked for at src/job.rs:64:22
/// └─ logs/today
///      S    held by "main" since just now, taken at src/main.rs:12:20
/// ```
///
/// ```
/// let lock = treelock::TreeLock::new();
/// let guard = lock.write("data/users");
/// let snapshot = lock.snapshot();
/// assert_eq!(snapshot.holders[0].roots[0].segments, ["data", "users"]);
/// assert!(snapshot.to_string().contains("data/users"));
/// # drop(guard);
/// ```
///
/// # Serialization
///
/// The feature `serde` makes this, and a [`Deadlock`], `Serialize`; as JSON:
///
/// ```text
/// {"time": 1767225600.25,
///  "holders": [{"thread": "worker-1", "location": "src/job.rs:41:22", "since": 1767225599.05,
///               "roots": [{"path": ["data", "users"], "mode": "X"}]}],
///  "waiters": [{"thread": "worker-2", "location": "src/job.rs:64:22", "since": 1767225599.94,
///               "roots": [{"path": ["data", "users", "7"], "mode": "S"}],
///               "at": {"path": ["data", "users"], "mode": "IS"}, "taken": []}]}
/// ```
///
/// Times are seconds since 1970, with a fraction. Between processes each holder and waiter has a `process` too, which is
/// `{"member": 3, "id": 4711, "command": "./migrate.sh", "user": "ada"}`. More fields may come.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// When it was taken.
    #[cfg_attr(feature = "serde", serde(serialize_with = "as_seconds"))]
    pub time: SystemTime,
    /// Those that hold sub-trees, the longest first.
    pub holders: Vec<Holder>,
    /// Those that wait, the longest first.
    pub waiters: Vec<Waiter>,
}

/// A guard that is alive, or was forgotten.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Holder {
    /// The process that asked, where processes share the lock; a child of it may have inherited the guard.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub process: Option<Process>,
    /// The name of the thread that asked, or `unnamed-` and a number.
    pub thread: String,
    /// Where it asked: a place in the source, as `src/job.rs:41:22`, or what its program tells instead.
    pub location: String,
    /// When it was granted, to a few milliseconds.
    #[cfg_attr(feature = "serde", serde(serialize_with = "as_seconds"))]
    pub since: SystemTime,
    /// What it holds, without what lies in other roots of its own.
    pub roots: Vec<Root>,
}

/// A request that is not granted yet.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Waiter {
    /// The process that waits, where processes share the lock.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub process: Option<Process>,
    /// The name of the thread that waits, or `unnamed-` and a number.
    pub thread: String,
    /// Where it asked: a place in the source, as `src/job.rs:41:22`, or what its program tells instead.
    pub location: String,
    /// When it began to wait, to a few milliseconds.
    #[cfg_attr(feature = "serde", serde(serialize_with = "as_seconds"))]
    pub since: SystemTime,
    /// What it asked for, without what lies in other roots of its own.
    pub roots: Vec<Root>,
    /// The node where it waits now, and the mode it waits for there.
    pub at: Root,
    /// Those of its roots that it has already, on its way from the root of the tree down.
    pub taken: Vec<Root>,
}

/// A process, as it told of itself when it opened the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Process {
    /// Its number in the lock, which nobody else has.
    pub member: u64,
    /// Its number, as it knew itself: in another container it may be another one.
    pub id: u32,
    /// Its command line, shortened.
    pub command: String,
    /// The name of its user, or the number.
    pub user: String,
}

/// A node, and how it is held or asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Root {
    /// The names of the segments from the root of the tree down, as text; what is not UTF-8 is spelled `\xFF`.
    #[cfg_attr(feature = "serde", serde(rename = "path"))]
    pub segments: Vec<String>,
    /// S or X on what was asked for, SIX on a read root with a write root of the same request below.
    pub mode: Mode,
}

/// A cycle of threads, of one or several processes, each of which waits for the next, and the last for the first.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Deadlock {
    /// The first is the one that got this report.
    pub parties: Vec<Party>,
}

/// A thread in a cycle.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Party {
    /// The request that it waits with. It may hold some of its roots already.
    pub waits: Waiter,
    /// What the one before in the cycle waits for: guards of this thread, and what its request has taken so far.
    pub holds: Vec<Holder>,
}

impl Snapshot {
    /// One of those, sorted.
    pub(crate) fn new(time: SystemTime, mut holders: Vec<Holder>, mut waiters: Vec<Waiter>) -> Self {
        holders.sort_by_key(|holder| holder.since);
        waiters.sort_by_key(|waiter| waiter.since);
        Snapshot { time, holders, waiters }
    }

    /// How long before the snapshot that was.
    pub(crate) fn age(&self, since: SystemTime) -> Duration {
        self.time.duration_since(since).unwrap_or_default()
    }
}

impl Deadlock {
    /// The report of a cycle, of each in it: what it waits with, its guards that hold up the one before, and how the steps
    /// that its request has taken do the same.
    pub(crate) fn new(cycle: Vec<(Waiter, Vec<Holder>, Option<Mode>)>) -> Self {
        let last = cycle.len() - 1;
        let awaited: Vec<Vec<String>> = cycle.iter().map(|(waits, ..)| waits.at.segments.clone()).collect();
        let party = |(place, (waits, mut holds, taken)): (usize, (Waiter, Vec<Holder>, Option<Mode>))| {
            let before = &awaited[place.checked_sub(1).unwrap_or(last)];
            holds.extend(taken.map(|mode| Holder {
                process: waits.process.clone(),
                thread: waits.thread.clone(),
                location: waits.location.clone(),
                since: waits.since,
                roots: vec![Root { segments: before.clone(), mode }],
            }));
            Party { waits, holds }
        };
        Deadlock { parties: cycle.into_iter().enumerate().map(party).collect() }
    }
}

/// Since 1970, to a millisecond.
#[cfg(feature = "serde")]
fn as_seconds<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    serializer.serialize_f64(since.as_millis() as f64 / 1e3)
}
