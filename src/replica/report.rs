//! What a request tells other processes about itself, and the snapshots and reports that are made from it.

use super::{InCycle, MemberId, Replica, Request, RequestId};
use crate::core::mode::Mode;
use crate::inspect::{Deadlock, Holder, Process, Root, Snapshot, Waiter};
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a request waits for: see `waits`.
///
/// Each of these holders and waiters must release, or give up, before the request is granted. Times do not tell which
/// request is ahead: one whose thread already holds something there, such as an upgrade, may come later and go first.
/// Nor does a waiter wait for all that came before it: requests that can share the node with it are not in its way.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Wait {
    /// When this was so.
    pub time: SystemTime,
    /// The request that waits.
    pub waiter: Waiter,
    /// The guards that exclude it where it waits, or further on its way.
    pub for_holders: Vec<Holder>,
    /// The waiting requests that exclude it: those that go ahead of it where it waits, and those that have taken
    /// steps on its way.
    pub for_waiters: Vec<Waiter>,
}

/// What a request tells about itself, for reports only.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Told<'a> {
    pub(crate) thread: &'a str,
    #[serde(borrow)]
    pub(crate) place: Place<'a>,
    #[serde(borrow)]
    pub(crate) roots: Vec<ToldRoot<'a>>,
}

/// Where it asked.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Place<'a> {
    Source(&'a str, u32, u32),
    /// A text that is told instead.
    Other(&'a str),
}

/// A root that has a step in the plan, even if only an intention.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ToldRoot<'a> {
    #[serde(borrow)]
    pub(crate) segments: Vec<&'a str>,
    /// The steps of the request from the top of the tree down to it.
    pub(crate) way: Vec<u32>,
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
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        postcard::to_extend(self, Vec::with_capacity(256)).expect("it has no part that cannot be written")
    }

    /// Another program may tell more, or less; what cannot be read is left out.
    fn of(request: &'a Request) -> Self {
        postcard::from_bytes(&request.ask.told).unwrap_or_default()
    }

    /// The roots whose step `which` selects, without those that lie in another root.
    fn roots(&self, request: &Request, which: impl Fn(usize) -> bool) -> Vec<Root> {
        let mode = |step: &u32| request.ask.steps.get(*step as usize).map(|step| step.mode);
        let told = |root: &ToldRoot| {
            let (last, above) = root.way.split_last()?;
            let mine = mode(last).filter(|mine| !mine.is_intention())?;
            // Or equal to one above, after a downgrade.
            let covered = above.iter().filter_map(mode).any(|above| above.covers(mine));
            (!covered && which(*last as usize)).then(|| Root { segments: owned(&root.segments), mode: mine })
        };
        self.roots.iter().filter_map(told).collect()
    }

    /// The node where the request waits: it is on the way to one of the roots.
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

pub(crate) fn snapshot(replica: &Replica) -> Snapshot {
    let (waiting, granted): (Vec<&Request>, Vec<&Request>) =
        replica.requests.values().map(Box::as_ref).partition(|request| request.waits_at().is_some());
    let holders = granted.into_iter().map(|request| holder(replica, request)).collect();
    let waiters = waiting.into_iter().map(|request| waiter(replica, request)).collect();
    Snapshot::new(SystemTime::now(), holders, waiters)
}

/// What the waiting requests of a member wait for.
pub(crate) fn waits(replica: &Replica, member: MemberId) -> Vec<Wait> {
    let of_member = replica.requests.values().filter(|request| request.ask.id.member == member);
    let wait = |own: &Request| {
        let ids: Vec<RequestId> = replica.waits_for(own.ask.id);
        let (waiting, granted): (Vec<&Request>, Vec<&Request>) =
            ids.iter().map(|id| &*replica.requests[id]).partition(|request| request.waits_at().is_some());
        Wait {
            time: SystemTime::now(),
            waiter: waiter(replica, own),
            for_holders: granted.into_iter().map(|request| holder(replica, request)).collect(),
            for_waiters: waiting.into_iter().map(|request| waiter(replica, request)).collect(),
        }
    };
    of_member.filter(|request| request.waits_at().is_some()).map(|request| wait(request)).collect()
}

pub(crate) fn deadlock(replica: &Replica, cycle: &[InCycle]) -> Deadlock {
    let told = |member: &InCycle| {
        let holds = member.guards.iter().map(|guard| holder(replica, &replica.requests[guard])).collect();
        (waiter(replica, &replica.requests[&member.waits]), holds, member.taken)
    };
    Deadlock::new(cycle.iter().map(told).collect())
}

/// What a request holds, or asks for.
pub(crate) fn roots(request: &Request) -> Vec<Root> {
    Told::of(request).roots(request, |_| true)
}

fn process(replica: &Replica, request: &Request) -> Process {
    let MemberId(member) = request.ask.id.member;
    match replica.members.get(&request.ask.id.member) {
        Some(about) => Process { member, id: about.id, command: about.command.clone(), user: about.user.clone() },
        None => Process { member, id: 0, command: String::new(), user: String::new() },
    }
}

fn since(request: &Request) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(request.progress.since)
}

fn holder(replica: &Replica, request: &Request) -> Holder {
    let told = Told::of(request);
    Holder {
        process: Some(process(replica, request)),
        roots: told.roots(request, |_| true),
        owner: None,
        thread: told.thread.to_owned(),
        location: told.place.to_string(),
        since: since(request),
    }
}

fn waiter(replica: &Replica, request: &Request) -> Waiter {
    let told = Told::of(request);
    Waiter {
        process: Some(process(replica, request)),
        roots: told.roots(request, |_| true),
        taken: told.roots(request, |last| last < request.progress.taken),
        at: told.at(request),
        owner: None,
        thread: told.thread.to_owned(),
        location: told.place.to_string(),
        since: since(request),
    }
}
