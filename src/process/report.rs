//! Who holds what and who waits for what in all processes, as plain data and as a drawing.

use super::replica::{InCycle, MemberId, Replica, Request, RequestId};
use crate::core::mode::Mode;
use crate::inspect::{Asked, Drawing, DrawnParty, Plain, Root, write_cycle};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fmt::{self, Debug, Display};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// All that a lock had granted and all that waited for it at one moment, in all processes.
///
/// Its `Display` draws the tree, as that of [`Snapshot`](crate::Snapshot) does for threads.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// Those that hold sub-trees, the longest first.
    pub holders: Vec<Holder>,
    /// Those that wait, the longest first.
    pub waiters: Vec<Waiter>,
    /// When it was taken.
    pub taken: SystemTime,
    replica: Kept,
}

/// What a snapshot tells of, for what is asked of it later.
#[derive(Clone)]
struct Kept(Arc<Replica>);

impl Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

/// Those that a request waits for: see [`Snapshot::in_the_way`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct InTheWay<'a> {
    /// The guards that exclude it where it waits, or further on its way.
    pub holders: Vec<&'a Holder>,
    /// The requests that go ahead of it where it waits and exclude it there, or have taken a part of its way; they wait
    /// themselves.
    pub waiters: Vec<&'a Waiter>,
}

impl Snapshot {
    /// Those that a waiter of this snapshot waits for: each of them must let go, or give up, before it is granted.
    ///
    /// Who is ahead of whom is not told by the times: a request whose thread already holds something there, as for an
    /// upgrade, may come later and go first. Nor does a waiter wait for all that came before: those that share the node with
    /// it are not in its way.
    ///
    /// ```
    /// # use treelock::process::ProcessTreeLock;
    /// # let directory = std::env::temp_dir().join(format!("treelock-doc-way-{}", std::process::id()));
    /// # let lock = ProcessTreeLock::open(&directory)?;
    /// let guard = lock.read("tables")?;
    /// let snapshot = std::thread::scope(|scope| {
    ///     let writer = scope.spawn(|| lock.write("tables/users").map(drop));
    ///     let snapshot = loop {
    ///         let snapshot = lock.snapshot()?;
    ///         if !snapshot.waiters.is_empty() {
    ///             break snapshot;
    ///         }
    ///     };
    ///     drop(guard);
    ///     Ok::<_, treelock::process::FileError>(snapshot)
    /// })?;
    /// let in_the_way = snapshot.in_the_way(&snapshot.waiters[0]);
    /// assert_eq!(in_the_way.holders[0].roots[0].segments, ["tables"]);
    /// # drop(lock);
    /// # std::fs::remove_dir_all(directory)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn in_the_way(&self, waiter: &Waiter) -> InTheWay<'_> {
        let ids: HashSet<RequestId> = self.replica.0.waits_for(waiter.id).into_iter().collect();
        InTheWay {
            holders: self.holders.iter().filter(|holder| ids.contains(&holder.id)).collect(),
            waiters: self.waiters.iter().filter(|waiter| ids.contains(&waiter.id)).collect(),
        }
    }
}

/// A process, as it told of itself when it opened the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Process {
    /// Its number in this lock, which nobody else has: that of [`ProcessTreeLock::member`](super::ProcessTreeLock::member).
    pub member: u64,
    /// Its number, as it knew itself. In another container it may be another one, or that of another process.
    pub id: u32,
    /// Its command line, shortened.
    pub command: String,
    /// The name of its user, or the number.
    pub user: String,
}

/// A guard that is alive.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Holder {
    /// The process that asked; a child of it may have inherited the guard.
    pub process: Process,
    /// The name of the thread that asked.
    pub thread: String,
    /// Where it asked: in its source, or what it tells instead ([`Options::location`](super::Options::location)).
    pub location: String,
    /// When it was granted.
    pub since: SystemTime,
    /// What it holds, without what lies in other roots of its own.
    pub roots: Vec<Root>,
    id: RequestId,
}

/// A request that is not granted yet.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Waiter {
    /// The process that waits.
    pub process: Process,
    /// The name of the thread that waits.
    pub thread: String,
    /// Where it asked: in its source, or what it tells instead ([`Options::location`](super::Options::location)).
    pub location: String,
    /// When it began to wait where it waits now.
    pub since: SystemTime,
    /// What it asked for, without what lies in other roots of its own.
    pub roots: Vec<Root>,
    /// Those of its roots that it has already.
    pub taken: Vec<Root>,
    /// The node where it waits now, and the mode it waits for there.
    pub at: Root,
    id: RequestId,
}

/// A cycle of threads of one or several processes, each of which waits for the next, and the last for the first.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Deadlock {
    /// The first is the one that got this report.
    pub parties: Vec<Party>,
}

/// A thread in a cycle.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Party {
    /// The request that it waits with. It may hold some of its roots already.
    pub waits: Waiter,
    /// What the one before in the cycle waits for.
    pub holds: Vec<Holder>,
}

/// What a request tells of itself, for reports alone.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Told<'a> {
    pub(super) thread: &'a str,
    #[serde(borrow)]
    pub(super) place: Place<'a>,
    #[serde(borrow)]
    pub(super) roots: Vec<ToldRoot<'a>>,
}

/// Where it asked.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Place<'a> {
    Source(&'a str, u32, u32),
    /// What is told instead of that.
    Other(&'a str),
}

/// A root that is in the plan, be it as an intention.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ToldRoot<'a> {
    #[serde(borrow)]
    pub(super) segments: Vec<&'a str>,
    /// The steps of the request from the top of the tree down to it.
    pub(super) way: Vec<u32>,
}

impl Default for Place<'_> {
    fn default() -> Self {
        Place::Other("")
    }
}

impl Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Source(file, line, column) => write!(f, "{file}:{line}:{column}"),
            Place::Other(text) => f.write_str(text),
        }
    }
}

impl<'a> Told<'a> {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        postcard::to_extend(self, Vec::with_capacity(256)).expect("it has no part that cannot be written")
    }

    /// As another program may tell more, or less, what cannot be read is left out.
    fn of(request: &'a Request) -> Self {
        postcard::from_bytes(&request.ask.told).unwrap_or_default()
    }

    /// The roots that lie in no other one, of those whose step is asked for.
    fn roots(&self, request: &Request, which: impl Fn(usize) -> bool) -> Vec<Root> {
        let mode = |step: &u32| request.ask.steps.get(*step as usize).map(|step| step.mode);
        let told = |root: &ToldRoot| {
            let (last, above) = root.way.split_last()?;
            let mine = mode(last).filter(|mine| !mine.is_intention())?;
            // Or equal to one above, since a downgrade.
            let covered = above.iter().filter_map(mode).any(|above| above.covers(mine));
            (!covered && which(*last as usize)).then(|| Root { segments: owned(&root.segments), mode: mine })
        };
        self.roots.iter().filter_map(told).collect()
    }

    /// The node of a step: it is on the way to one of the roots.
    fn at(&self, request: &Request) -> Root {
        let step = request.progress.taken;
        let mode = request.waits_at().map_or(Mode::IntentionShared, |step| step.mode);
        let depth = |root: &ToldRoot| root.way.iter().position(|&at| at as usize == step);
        let segments = self.roots.iter().find_map(|root| root.segments.get(..depth(root)?));
        Root { segments: owned(segments.unwrap_or_default()), mode }
    }
}

fn owned(segments: &[&str]) -> Vec<String> {
    segments.iter().map(|&segment| segment.to_owned()).collect()
}

pub(super) fn snapshot(replica: Replica) -> Snapshot {
    let (mut holders, mut waiters) = (Vec::new(), Vec::new());
    for request in replica.requests.values() {
        match request.waits_at() {
            Some(_) => waiters.push(waiter(&replica, request)),
            None => holders.push(holder(&replica, request)),
        }
    }
    holders.sort_by_key(|holder| holder.since);
    waiters.sort_by_key(|waiter| waiter.since);
    Snapshot { holders, waiters, taken: SystemTime::now(), replica: Kept(Arc::new(replica)) }
}

pub(super) fn deadlock(replica: &Replica, cycle: &[InCycle]) -> Deadlock {
    let waits: Vec<Waiter> = cycle.iter().map(|member| waiter(replica, &replica.requests[&member.waits])).collect();
    let party = |(place, member): (usize, &InCycle)| {
        let before = &waits[(place + cycle.len() - 1) % cycle.len()].at;
        let taken = member.taken.map(|mode| Holder {
            roots: vec![Root { segments: before.segments.clone(), mode }],
            ..holder(replica, &replica.requests[&member.waits])
        });
        let guards = member.guards.iter().map(|guard| holder(replica, &replica.requests[guard]));
        Party { waits: waits[place].clone(), holds: guards.chain(taken).collect() }
    };
    Deadlock { parties: cycle.iter().enumerate().map(party).collect() }
}

fn process(replica: &Replica, request: &Request) -> Process {
    let member = request.ask.id.member;
    let MemberId(number) = member;
    match replica.members.get(&member) {
        Some(about) => {
            Process { member: number, id: about.id, command: about.command.clone(), user: about.user.clone() }
        }
        None => Process { member: number, id: 0, command: String::new(), user: String::new() },
    }
}

fn since(request: &Request) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(request.progress.since)
}

fn holder(replica: &Replica, request: &Request) -> Holder {
    let told = Told::of(request);
    Holder {
        process: process(replica, request),
        roots: told.roots(request, |_| true),
        thread: told.thread.to_owned(),
        location: told.place.to_string(),
        since: since(request),
        id: request.ask.id,
    }
}

fn waiter(replica: &Replica, request: &Request) -> Waiter {
    let told = Told::of(request);
    Waiter {
        process: process(replica, request),
        roots: told.roots(request, |_| true),
        taken: told.roots(request, |last| last < request.progress.taken),
        at: told.at(request),
        thread: told.thread.to_owned(),
        location: told.place.to_string(),
        since: since(request),
        id: request.ask.id,
    }
}

impl Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} \"{}\" of {}", self.id, Plain(&self.command), Plain(&self.user))
    }
}

impl Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut drawing = Drawing::default();
        let age = |since| self.taken.duration_since(since).unwrap_or_default();
        for Holder { process, location, since, roots, .. } in &self.holders {
            drawing.add_holder(&process.to_string(), location, age(*since), roots);
        }
        for Waiter { process, location, since, roots, at, taken, .. } in &self.waiters {
            drawing.add_waiter(&process.to_string(), location, age(*since), roots, at, taken);
        }
        write!(f, "treelock: {} held, {} waiting", self.holders.len(), self.waiters.len())?;
        drawing.draw(f)
    }
}

impl Display for Deadlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parties = self.parties.iter().map(|Party { waits, holds }| DrawnParty {
            who: format!("{}, thread {}", waits.process, Plain(&waits.thread).quoted()),
            at: &waits.at,
            asked: Asked { roots: &waits.roots, location: &waits.location },
            holds: holds.iter().map(|hold| Asked { roots: &hold.roots, location: &hold.location }).collect(),
        });
        write_cycle(f, &parties.collect::<Vec<_>>())
    }
}
