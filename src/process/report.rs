//! Who holds what and who waits for what in all processes, as plain data and as a drawing.

use super::replica::{AskedRoot, InCycle, Replica, Request};
use crate::inspect::{Drawing, FirstOf, Plain, Root};
use crate::mode::Mode;
use std::fmt::{self, Display};
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
}

/// A process, as it told of itself when it opened the lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Process {
    /// Its number, as it knew itself: in another container it may be another one.
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
    /// Where in its source it asked.
    pub location: String,
    /// When it was granted.
    pub since: SystemTime,
    /// What it holds, without what lies in other roots of its own.
    pub roots: Vec<Root>,
}

/// A request that is not granted yet.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Waiter {
    /// The process that waits.
    pub process: Process,
    /// The name of the thread that waits.
    pub thread: String,
    /// Where in its source it asked.
    pub location: String,
    /// When it began to wait where it waits now.
    pub since: SystemTime,
    /// What it asked for, without what lies in other roots of its own.
    pub roots: Vec<Root>,
    /// Those of its roots that it has already.
    pub taken: Vec<Root>,
    /// The node where it waits now, and the mode it waits for there.
    pub at: Root,
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

pub(super) fn snapshot(replica: &Replica) -> Snapshot {
    let mut snapshot = Snapshot { holders: Vec::new(), waiters: Vec::new(), taken: SystemTime::now() };
    for request in replica.requests.values() {
        match request.waits_at() {
            Some(_) => snapshot.waiters.push(waiter(replica, request)),
            None => snapshot.holders.push(holder(replica, request)),
        }
    }
    snapshot.holders.sort_by_key(|holder| holder.since);
    snapshot.waiters.sort_by_key(|waiter| waiter.since);
    snapshot
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
    match replica.members.get(&request.ask.id.member) {
        Some(about) => Process { id: about.id, command: about.command.clone(), user: about.user.clone() },
        None => Process { id: 0, command: String::new(), user: String::new() },
    }
}

fn since(request: &Request) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(request.progress.since)
}

fn root(AskedRoot { segments, mode, .. }: &AskedRoot) -> Root {
    Root { segments: segments.clone(), mode: *mode }
}

fn roots(request: &Request) -> Vec<Root> {
    request.ask.roots.iter().map(root).collect()
}

fn holder(replica: &Replica, request: &Request) -> Holder {
    Holder {
        process: process(replica, request),
        thread: request.ask.thread_name.clone(),
        location: request.ask.location.clone(),
        since: since(request),
        roots: roots(request),
    }
}

fn waiter(replica: &Replica, request: &Request) -> Waiter {
    // Where it waits is on the way to one of its roots.
    let name = |step: usize| {
        let depth = |root: &AskedRoot| root.way.iter().position(|&at| at as usize == step);
        request.ask.roots.iter().find_map(|root| Some(root.segments[..depth(root)?].to_vec()))
    };
    let is_taken = |root: &&AskedRoot| root.way.last().is_some_and(|&last| (last as usize) < request.progress.taken);
    Waiter {
        process: process(replica, request),
        thread: request.ask.thread_name.clone(),
        location: request.ask.location.clone(),
        since: since(request),
        taken: request.ask.roots.iter().filter(is_taken).map(root).collect(),
        at: match request.waits_at() {
            Some(step) => Root { segments: name(request.progress.taken).unwrap_or_default(), mode: step.mode },
            None => Root { segments: Vec::new(), mode: Mode::IntentionShared },
        },
        roots: roots(request),
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
        write!(f, "deadlock of {} threads:", self.parties.len())?;
        for (index, Party { waits, holds }) in self.parties.iter().enumerate() {
            let who = format!("{}, thread \"{}\"", waits.process, Plain(&waits.thread));
            write!(
                f,
                "\n  {who} waits for {} (asked for {} at {})",
                waits.at,
                FirstOf(&waits.roots),
                waits.location
            )?;
            for hold in holds {
                write!(f, "\n    and holds {} (taken at {})", FirstOf(&hold.roots), hold.location)?;
            }
            let next = &self.parties[(index + 1) % self.parties.len()].waits;
            write!(f, "\n    behind {}", next.process)?;
        }
        Ok(())
    }
}
