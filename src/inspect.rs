//! Who holds what and who waits for what, as plain data: the same for all scopes.
//!
//! Not here: how it is gathered (`thread/report.rs`, `replica/report.rs`); how it is drawn and printed
//! (`drawing.rs`); how a cycle is found (`core/deadlock.rs`).

use crate::core::mode::Mode;
use std::time::{Duration, SystemTime};

/// All that a lock had granted at one moment, all requests that waited for it, and what these had taken already.
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
/// With the feature `serde`, this and [`Deadlock`] are `Serialize`. As JSON:
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
/// Times are seconds since 1970, with a fraction. Between processes and machines each holder and waiter also has a `process`,
/// such as `{"member": 3, "id": 4711, "command": "./migrate.sh", "user": "ada"}`. What an explicit owner asked for also has an
/// `owner`, its name. More fields may be added.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// When it was taken.
    #[cfg_attr(feature = "serde", serde(serialize_with = "as_seconds"))]
    pub time: SystemTime,
    /// The guards that hold sub-trees, the oldest first.
    pub holders: Vec<Holder>,
    /// The requests that wait, the oldest first.
    pub waiters: Vec<Waiter>,
}

/// A guard that is alive, or was forgotten; or what a future was granted that was not polled since.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Holder {
    /// The process that asked, where processes share the lock; a child of it may have inherited the guard.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub process: Option<Process>,
    /// The explicit owner that asked, if one did: its [name](crate::LockOwner::set_name), or `unnamed-` and a number.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub owner: Option<String>,
    /// The name of the thread that asked, or `unnamed-` and a number.
    pub thread: String,
    /// Where it asked: a place in the source, as `src/job.rs:41:22`, or the text that its program gives instead.
    pub location: String,
    /// When it was granted, to a few milliseconds.
    #[cfg_attr(feature = "serde", serde(serialize_with = "as_seconds"))]
    pub since: SystemTime,
    /// The roots that it holds, without those that lie in others of them.
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
    /// The explicit owner that waits, if one does: its [name](crate::LockOwner::set_name), or `unnamed-` and a number.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub owner: Option<String>,
    /// The name of the thread that asked, or `unnamed-` and a number. It waits, unless a task does.
    pub thread: String,
    /// Where it asked: a place in the source, as `src/job.rs:41:22`, or the text that its program gives instead.
    pub location: String,
    /// When it began to wait, to a few milliseconds.
    #[cfg_attr(feature = "serde", serde(serialize_with = "as_seconds"))]
    pub since: SystemTime,
    /// The roots that it asked for, without those that lie in others of them.
    pub roots: Vec<Root>,
    /// The node where it waits now, and the mode it waits for there.
    pub at: Root,
    /// Those of its roots that it has already taken, on its way from the root of the tree down.
    pub taken: Vec<Root>,
}

/// A process, as it described itself when it opened the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Process {
    /// Its number in the lock, which no other process has.
    pub member: u64,
    /// Its process id, as it knew it; in another container the same process may have another id.
    pub id: u32,
    /// Its command line, shortened.
    pub command: String,
    /// The name of its user, or the number; between machines with that of its host, as `ada@build-7`.
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

/// A cycle of threads and explicit owners, in one or several processes: each waits for the next, and the last for the first.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Deadlock {
    /// The first is the one that got this report.
    pub parties: Vec<Party>,
}

/// A thread or an explicit owner in a cycle.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Party {
    /// The request that it waits with. It may hold some of its roots already.
    pub waits: Waiter,
    /// What the party before it in the cycle waits for: guards of this one, and what its request has taken so far.
    pub holds: Vec<Holder>,
}

impl Snapshot {
    /// Makes a snapshot of these, sorted.
    pub(crate) fn new(time: SystemTime, mut holders: Vec<Holder>, mut waiters: Vec<Waiter>) -> Self {
        holders.sort_by_key(|holder| holder.since);
        waiters.sort_by_key(|waiter| waiter.since);
        Snapshot { time, holders, waiters }
    }

    /// How long before the snapshot `since` was.
    pub(crate) fn age(&self, since: SystemTime) -> Duration {
        self.time.duration_since(since).unwrap_or_default()
    }
}

impl Deadlock {
    /// The report of a cycle. For each party: the request that it waits with, its guards that hold up the party
    /// before, and, if the steps that its request has taken hold that up too, their mode.
    pub(crate) fn new(cycle: Vec<(Waiter, Vec<Holder>, Option<Mode>)>) -> Self {
        let last = cycle.len() - 1;
        let awaited: Vec<Vec<String>> = cycle.iter().map(|(waits, ..)| waits.at.segments.clone()).collect();
        let party = |(place, (waits, mut holds, taken)): (usize, (Waiter, Vec<Holder>, Option<Mode>))| {
            let before = &awaited[place.checked_sub(1).unwrap_or(last)];
            holds.extend(taken.map(|mode| Holder {
                process: waits.process.clone(),
                owner: waits.owner.clone(),
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

/// Seconds since 1970, to a millisecond.
#[cfg(feature = "serde")]
fn as_seconds<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    serializer.serialize_f64(since.as_millis() as f64 / 1e3)
}
