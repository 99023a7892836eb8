//! The state that all members of a lock agree on: who they are, who holds what, who waits for what.
//!
//! Each member has a *replica* of this in its own memory, and changes it by *events*, in one order for all: that of the
//! journal between processes, and that of the engine between machines. So all replicas are equal at the same place, and the member that writes an event knows its
//! effect on all others, including those that wait. A request walks its plan as it does between threads
//! (`core/walk.rs`), in the same nodes (`core/node.rs`).
//!
//! Invariants:
//!
//! 1. What an event does depends on the replica and the event alone: no clock, no chance, no order of a hash map.
//! 2. A request that was tried and withdrawn leaves the replica as it was, except for the next stamp, and only the
//!    order of stamps matters. So a refused `try_lock` is not written down.
//! 3. An event returns the waiters that have other members to watch than before, or are granted what they wait for:
//!    those are woken.
//! 4. A member that can hold up a waiting request holds the node where that waits, or waits there with an earlier
//!    stamp. A waiter watches the members that it finds there when it comes, and is woken when a request with an
//!    earlier stamp comes there later.
//!
//! Pure: no files, no clocks. Not here: how events are kept and how a request waits (`process/`, `machine/`).

pub(crate) mod ask;
pub(crate) mod report;
#[cfg(feature = "machine")]
mod watch;

use crate::core::deadlock::{Left, Party, Temper, cycle_through};
use crate::core::mode::{Mode, ModeCounts};
use crate::core::node::{Firsts, Node, Stamp, Ticket};
use crate::core::node_id::{NodeId, NodeMap};
use crate::core::owner::Owner;
use crate::core::walk::{Taken, walk};
use serde::{Deserialize, Serialize};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

/// A process that has opened the lock. The number is never reused in one directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct MemberId(pub(crate) u64);

/// The requests of a member have numbers of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct RequestId {
    pub(crate) member: MemberId,
    pub(crate) number: u64,
}

/// The channel of its member that wakes a waiting request.
pub(crate) type Channel = u32;

/// A process, as it described itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    /// The inode of its lifeline, between the processes of a host.
    pub(crate) lifeline: u64,
    pub(crate) id: u32,
    pub(crate) command: String,
    pub(crate) user: String,
}

impl About {
    pub(crate) fn this_process(lifeline: u64, user: String) -> Self {
        let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
        let mut command = words.collect::<Vec<_>>().join(" ");
        if let Some((end, _)) = command.char_indices().nth(200) {
            command.truncate(end);
        }
        About { lifeline, id: std::process::id(), command, user }
    }
}

/// That of requests of tasks. Threads are numbered from 1.
#[cfg(all(feature = "machine", feature = "async"))]
pub(crate) const NO_THREAD: u64 = 0;

/// A request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ask {
    pub(crate) id: RequestId,
    /// The thread that is blocked while it waits, or [`NO_THREAD`].
    pub(crate) thread: u64,
    pub(crate) owner: Owner,
    /// Milliseconds since 1970.
    pub(crate) asked: u64,
    pub(crate) channel: Option<Channel>,
    pub(crate) absolute: Option<bool>,
    #[serde(with = "packed")]
    pub(crate) steps: Vec<Step>,
    /// What reports say about it (`report.rs`): no other file reads it.
    #[serde(with = "serde_bytes")]
    pub(crate) told: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) node: NodeId,
    pub(crate) mode: Mode,
}

/// Steps as bytes: every member reads those of all others.
mod packed {
    use super::{Mode, NodeId, Step};
    use serde::de::Error;
    use serde::{Deserializer, Serializer};

    const SIZE: usize = 17;

    pub(crate) fn serialize<S: Serializer>(steps: &[Step], serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::with_capacity(SIZE * steps.len());
        for step in steps {
            bytes.extend(step.node.to_bytes());
            bytes.push(step.mode as u8);
        }
        serde_bytes::serialize(&bytes, serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Step>, D::Error> {
        let bytes: &[u8] = serde_bytes::deserialize(deserializer)?;
        let step = |bytes: &[u8]| {
            let (node, mode) = (bytes.get(..16)?.try_into().ok()?, *Mode::ALL.get(usize::from(*bytes.get(16)?))?);
            Some(Step { node: NodeId::of_bytes(node), mode })
        };
        let mut steps = Vec::with_capacity(bytes.len() / SIZE);
        for bytes in bytes.chunks(SIZE) {
            steps.push(step(bytes).ok_or_else(|| D::Error::custom("no step"))?);
        }
        Ok(steps)
    }
}

/// A change of the state that all agree on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Event {
    Join(About),
    /// The member has closed the lock, or is dead. The time is that of the grants that this leads to.
    Leave(MemberId, u64),
    Ask(Ask),
    /// Releases a request, or gives it up. The time is that of the grants that this leads to.
    Withdraw(RequestId, u64),
    /// Turns the writes of a granted request into reads. The time is that of the grants that this leads to.
    Downgrade(RequestId, u64),
    /// The whole state, instead of the events that led to it.
    Begin(Box<Stored>),
    /// The journal goes on in the file of that inode, or here if it is 0; nothing changes.
    Next(u64),
    /// A request that is not to wait: it changes nothing if it cannot be granted at once.
    Try(Ask),
}

/// A replica as it is stored.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Stored {
    absolute: Option<bool>,
    next_member: u64,
    members: Vec<(MemberId, About)>,
    requests: Vec<(Ask, Progress, Option<Queued>)>,
}

/// A place in a queue, and what the request's owner held there.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Queued {
    stamp: Stamp,
    held: ModeCounts,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// How many of its steps it has taken.
    pub(crate) taken: usize,
    /// When it began to wait where it is, or was granted; milliseconds since 1970.
    pub(crate) since: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) ask: Ask,
    pub(crate) progress: Progress,
    /// Its place, once it has begun to wait.
    stamp: Option<Stamp>,
    ticket: Option<Ticket>,
}

impl Request {
    pub(crate) fn is_granted(&self) -> bool {
        self.ticket.is_none()
    }

    /// The steps that it has taken.
    pub(crate) fn taken(&self) -> &[Step] {
        &self.ask.steps[..self.progress.taken]
    }

    /// The step that it waits for.
    pub(crate) fn waits_at(&self) -> Option<Step> {
        self.ticket.map(|_| self.ask.steps[self.progress.taken])
    }
}

/// See the header of this file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replica {
    /// Whether the paths of the last request that had absolute or relative ones were absolute. A request is refused
    /// while one of the other kind is there, so this holds for all requests that are there.
    absolute: Option<bool>,
    next_member: u64,
    pub(crate) members: BTreeMap<MemberId, About>,
    /// In boxes: otherwise the first request, and the last, would cost an allocation of some KiB.
    pub(crate) requests: BTreeMap<RequestId, Box<Request>>,
    nodes: NodeMap<Node<RequestId>>,
    /// The stamp of the next request that has to wait: later than those of all waiters.
    next_stamp: Stamp,
    /// The plain guards, by thread: member, thread, number of the request.
    nested: BTreeSet<(MemberId, u64, u64)>,
    /// What this member watches: all others have others.
    #[cfg(feature = "machine")]
    watches: watch::Watches,
}

/// A request in a cycle of waiting requests.
pub(crate) struct InCycle {
    pub(crate) waits: RequestId,
    /// The guards by which it holds up the request before.
    pub(crate) guards: Vec<RequestId>,
    /// The mode of a step that it has taken and that holds up the request before, if there is one.
    pub(crate) taken: Option<Mode>,
}

/// What other members must learn after an event.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) moved: Vec<(MemberId, Channel)>,
    pub(crate) left: Vec<MemberId>,
}

impl Replica {
    /// The number of the next member that joins.
    pub(crate) fn next_member(&self) -> MemberId {
        MemberId(self.next_member)
    }

    /// The members that have requests with absolute paths, or with relative ones.
    pub(crate) fn of_kind(&self, absolute: bool) -> BTreeSet<MemberId> {
        if self.absolute != Some(absolute) {
            return BTreeSet::new();
        }
        let asks = self.requests.values().map(|request| &request.ask);
        asks.filter(|ask| ask.absolute == Some(absolute)).map(|ask| ask.id.member).collect()
    }

    /// Whether requests with paths of the other kind are there, so that this one is refused.
    pub(crate) fn is_odd(&self, ask: &Ask) -> bool {
        ask.absolute.is_some_and(|absolute| !self.of_kind(!absolute).is_empty())
    }

    pub(crate) fn apply(&mut self, event: Event, effects: &mut Effects) {
        match event {
            Event::Join(about) => {
                self.members.insert(MemberId(self.next_member), about);
                self.next_member += 1;
            }
            Event::Leave(member, now) => {
                let first = RequestId { member, number: 0 };
                let of_member = |&(id, _): &(&RequestId, _)| id.member == member;
                let mut ids: Vec<_> = self.requests.range(first..).take_while(of_member).map(|(&id, _)| id).collect();
                // Waiting requests go first, since a waiter counts on the guards that its thread holds.
                ids.sort_by_key(|id| self.requests[id].is_granted());
                ids.into_iter().for_each(|id| drop(self.withdraw(id, now, effects)));
                effects.moved.retain(|&(moved, _)| moved != member);
                if self.members.remove(&member).is_some() {
                    effects.left.push(member);
                }
            }
            Event::Try(ask) => {
                let (id, asked) = (ask.id, ask.asked);
                self.apply(Event::Ask(ask), effects);
                if self.requests.get(&id).is_some_and(|request| !request.is_granted()) {
                    self.withdraw(id, asked, effects);
                }
            }
            Event::Ask(ask) if self.is_odd(&ask) => {}
            Event::Ask(ask) => {
                let (id, asked) = (ask.id, ask.asked);
                self.absolute = ask.absolute.or(self.absolute);
                let progress = Progress { taken: 0, since: ask.asked };
                self.requests.insert(id, Box::new(Request { ask, progress, stamp: None, ticket: None }));
                let due = self.walk(id, effects);
                self.move_on(due, asked, effects);
            }
            Event::Withdraw(id, now) => drop(self.withdraw(id, now, effects)),
            Event::Downgrade(id, now) => self.downgrade(id, now, effects),
            Event::Begin(stored) => *self = Self::restore(*stored),
            Event::Next(_) => {}
        }
    }

    /// Takes the steps that are left, one after the other, up to one where the request has to wait; returns the
    /// requests that its coming to that queue lets on.
    fn walk(&mut self, id: RequestId, effects: &mut Effects) -> Vec<RequestId> {
        let mut due = Vec::new();
        let Some(request) = self.requests.get(&id) else { return due };
        let stamp = request.stamp;
        let mut ticket = None;
        let mut passed = Vec::new();
        let steps = &request.ask.steps;
        let stopped = walk(request.progress.taken, steps.len(), |index| {
            let Step { node: at, mode } = steps[index];
            let held = || held_by_owner(&self.requests, &self.nested, &request.ask, at);
            let node = self.nodes.entry(at).or_default();
            if stamp.is_some_and(|stamp| node.is_awaited_after(stamp)) {
                passed.push(at);
            }
            match node.take(stamp.unwrap_or(Stamp::NEWCOMER), mode, held) {
                Ok(()) => Taken::Steps(1),
                Err(held) => {
                    ticket = Some(node.enqueue(stamp.unwrap_or(self.next_stamp), mode, held, id, &mut due));
                    Taken::No
                }
            }
        });
        let taken = stopped.unwrap_or(steps.len());
        if request.ask.owner == Owner::Thread && ticket.is_none() {
            self.nested.insert((id.member, request.ask.thread, id.number));
        }
        if ticket.is_some_and(|ticket| ticket.stamp() == self.next_stamp) {
            self.next_stamp = Stamp(self.next_stamp.0 + 1);
        }
        if !passed.is_empty() {
            let requests = self.requests.values();
            let behind = requests.filter(|other| other.stamp > stamp);
            let behind = behind.filter(|other| other.waits_at().is_some_and(|at| passed.contains(&at.node)));
            effects.moved.extend(behind.filter_map(|other| Some((other.ask.id.member, other.ask.channel?))));
        }
        if let Some(request) = self.requests.get_mut(&id) {
            request.progress.taken = taken;
            request.stamp = stamp.or(ticket.map(|ticket| ticket.stamp()));
            request.ticket = ticket;
            #[cfg(feature = "machine")]
            if request.is_granted() {
                self.watches.hear_of_grant(request);
            }
        }
        due
    }

    /// Releases all that a request has and awaits, and moves on the requests that this lets on.
    pub(crate) fn withdraw(&mut self, id: RequestId, now: u64, effects: &mut Effects) -> Option<Ask> {
        let Request { ask, progress, ticket, .. } = *self.requests.remove(&id)?;
        self.nested.remove(&(id.member, ask.thread, id.number));
        let mut due = Vec::new();
        if let Some(ticket) = ticket {
            self.change(ask.steps[progress.taken].node, |node| node.cancel(ticket, &mut due));
        }
        for step in ask.steps[..progress.taken].iter().rev() {
            self.change(step.node, |node| node.release(step.mode, &mut due));
        }
        self.move_on(due, now, effects);
        Some(ask)
    }

    fn downgrade(&mut self, id: RequestId, now: u64, effects: &mut Effects) {
        let Some(request) = self.requests.get_mut(&id).filter(|request| request.is_granted()) else { return };
        let before = request.ask.steps.clone();
        request.ask.steps.iter_mut().for_each(|step| step.mode = step.mode.downgraded());
        let mut due = Vec::new();
        for step in before.iter().rev().filter(|step| step.mode != step.mode.downgraded()) {
            self.change(step.node, |node| node.downgrade(step.mode, step.mode.downgraded(), &mut due));
        }
        self.move_on(due, now, effects);
    }

    /// The requests that have got the step that they waited for take the next ones.
    fn move_on(&mut self, due: Vec<RequestId>, now: u64, effects: &mut Effects) {
        let mut due = VecDeque::from(due);
        while let Some(id) = due.pop_front() {
            let Some(request) = self.requests.get_mut(&id) else { continue };
            request.progress = Progress { taken: request.progress.taken + 1, since: now };
            effects.moved.extend(request.ask.channel.map(|channel| (id.member, channel)));
            due.extend(self.walk(id, effects));
        }
    }

    fn change<R>(&mut self, node: NodeId, change: impl FnOnce(&mut Node<RequestId>) -> R) {
        if let Entry::Occupied(mut place) = self.nodes.entry(node) {
            change(place.get_mut());
            if place.get().is_idle() {
                place.remove();
                // Memory that is no longer needed is freed (G6); the insertions that made it grow pay for the cost.
                if self.nodes.capacity() > 1024 && self.nodes.len() < self.nodes.capacity() / 8 {
                    self.nodes.shrink_to(self.nodes.len() * 2);
                }
            }
        }
    }

    fn guards_of(&self, member: MemberId, thread: u64) -> impl Iterator<Item = RequestId> {
        guards_of(&self.nested, member, thread)
    }

    /// The other members that may be in the way of a waiting request (invariant 4).
    #[cfg(any(test, feature = "process"))]
    pub(crate) fn in_the_way(&self, id: RequestId) -> BTreeSet<MemberId> {
        let Some(at) = self.requests.get(&id).and_then(|request| request.waits_at()) else { return BTreeSet::new() };
        let is_there = |request: &&Request| {
            let steps = request.taken().iter().copied().chain(request.waits_at());
            request.ask.id.member != id.member && steps.into_iter().any(|step| step.node == at.node)
        };
        self.requests.values().map(Box::as_ref).filter(is_there).map(|request| request.ask.id.member).collect()
    }

    /// Whether the thread that asks has plain guards: only such a request ever gets the report of a deadlock.
    #[cfg(feature = "process")]
    pub(crate) fn is_nested(&self, id: RequestId) -> bool {
        let Some(Request { ask, .. }) = self.requests.get(&id).map(Box::as_ref) else { return false };
        self.has_guards(id.member, ask.thread)
    }

    /// Whether a thread has plain guards.
    pub(crate) fn has_guards(&self, member: MemberId, thread: u64) -> bool {
        self.guards_of(member, thread).next().is_some()
    }

    /// The same, for clients that look at the same time: of those that may report, only the one that began to wait last does.
    /// In all replicas it is the same one.
    #[cfg(feature = "machine")]
    pub(crate) fn deadlock_of_one(&self, me: RequestId) -> Option<Vec<InCycle>> {
        let stamp = |party: &InCycle| self.requests[&party.waits].stamp;
        let cycle = self.deadlock(me)?;
        let mut later = cycle.iter().filter(|party| stamp(party) > stamp(&cycle[0]));
        later.all(|party| self.deadlock(party.waits).is_none()).then_some(cycle)
    }

    /// The cycle that a waiting request is in, itself first, if it is the one to report it.
    pub(crate) fn deadlock(&self, me: RequestId) -> Option<Vec<InCycle>> {
        let waiting: Vec<&Request> =
            self.requests.values().map(Box::as_ref).filter(|request| !request.is_granted()).collect();
        let awaited: HashSet<NodeId> =
            waiting.iter().filter_map(|request| request.waits_at()).map(|at| at.node).collect();
        let of_awaited = |request: &Request| {
            let held = request.taken().iter().map(|step| (step.node, step.mode));
            held.filter(|(node, _)| awaited.contains(node)).collect::<Vec<_>>()
        };
        let guards_of = |ask: &Ask| self.guards_of(ask.id.member, ask.thread);
        let party = |request: &&Request| {
            let (step, ticket) = request.waits_at().zip(request.ticket)?;
            let mut party = Party::new(step.node, ticket, Temper::Refusable);
            let pinned = guards_of(&request.ask).flat_map(|guard| of_awaited(&self.requests[&guard])).collect();
            match request.ask.owner {
                Owner::Thread => party.own_guards = pinned,
                Owner::Itself | Owner::Handed(_) => party.other_guards = pinned,
            }
            party.steps = of_awaited(request);
            Some(party)
        };
        let mut parties: Vec<Party> = waiting.iter().filter_map(party).collect();
        let start = waiting.iter().position(|request| request.ask.id == me)?;
        let cycle = cycle_through(&mut parties, start, &mut Left::default())?;
        let member = |place: usize| {
            let (request, before) = (waiting[cycle[place]], waiting[cycle[(place + cycle.len() - 1) % cycle.len()]]);
            let holds_up = |step: &&Step| {
                before.waits_at().is_some_and(|at| at.node == step.node && !at.mode.compatible(step.mode))
            };
            let guards = guards_of(&request.ask)
                .filter(|guard| self.requests[guard].taken().iter().any(|step| holds_up(&step)));
            InCycle {
                waits: request.ask.id,
                guards: guards.collect(),
                taken: request.taken().iter().find(holds_up).map(|step| step.mode),
            }
        };
        Some((0..cycle.len()).map(member).collect())
    }

    /// Whether nobody waits who may go on (G4, G9).
    #[cfg(test)]
    pub(crate) fn is_settled(&self) -> bool {
        self.nodes.values().all(Node::is_settled)
    }

    pub(crate) fn store(&self) -> Stored {
        let stored = |request: &Request| {
            let queued = request.ticket.map(|ticket| Queued { stamp: ticket.stamp(), held: ticket.held() });
            (request.ask.clone(), request.progress, queued)
        };
        Stored {
            absolute: self.absolute,
            next_member: self.next_member,
            members: self.members.iter().map(|(&id, about)| (id, about.clone())).collect(),
            requests: self.requests.values().map(Box::as_ref).map(stored).collect(),
        }
    }

    fn restore(stored: Stored) -> Self {
        let mut replica = Replica {
            absolute: stored.absolute,
            next_member: stored.next_member,
            members: stored.members.into_iter().collect(),
            ..Self::default()
        };
        let mut queued = Vec::new();
        for (ask, progress, place) in stored.requests {
            for step in &ask.steps[..progress.taken.min(ask.steps.len())] {
                replica.nodes.entry(step.node).or_default().restore(step.mode);
            }
            match place {
                Some(place) => queued.push((place, ask.id)),
                None if ask.owner == Owner::Thread => {
                    replica.nested.insert((ask.id.member, ask.thread, ask.id.number));
                }
                None => {}
            }
            let stamp = place.map(|place| place.stamp);
            replica.requests.insert(ask.id, Box::new(Request { ask, progress, stamp, ticket: None }));
        }
        for (Queued { stamp, held }, id) in queued {
            let Some(request) = replica.requests.get_mut(&id) else { continue };
            let Some(step) = request.ask.steps.get(request.progress.taken) else { continue };
            let node = replica.nodes.entry(step.node).or_default();
            request.ticket = Some(node.restore_waiter(stamp, step.mode, held, id));
            replica.next_stamp = replica.next_stamp.max(Stamp(stamp.0.saturating_add(1)));
        }
        replica
    }

    /// The requests that a waiting one waits for: those that hold what excludes it where it waits or further on its
    /// way, and those that exclude it and are ahead of it in the queue where it waits (rules 2 and 3 of `node.rs`).
    pub(crate) fn waits_for(&self, id: RequestId) -> Vec<RequestId> {
        let Some(request) = self.requests.get(&id) else { return Vec::new() };
        let Some((at, ticket)) = request.waits_at().zip(request.ticket) else { return Vec::new() };
        let others = || self.requests.values().map(Box::as_ref);
        let here =
            |other: &Request| other.ticket.filter(|_| other.waits_at().is_some_and(|step| step.node == at.node));
        let mut firsts = Firsts::default();
        others().filter_map(here).for_each(|ticket| firsts.add(&ticket));
        let is_ahead = |other: &Ticket| firsts.puts_ahead(other, &ticket) && !other.mode().compatible(at.mode);
        let left = &request.ask.steps[request.progress.taken..];
        let left: HashMap<NodeId, Mode> = left.iter().map(|step| (step.node, step.mode)).collect();
        let excludes = |step: &Step| left.get(&step.node).is_some_and(|mode| !mode.compatible(step.mode));
        let own: Vec<RequestId> = match request.ask.owner {
            Owner::Thread => self.guards_of(id.member, request.ask.thread).collect(),
            Owner::Itself | Owner::Handed(_) => Vec::new(),
        };
        let others = self.requests.iter().filter(|(other, _)| **other != id && !own.contains(other));
        let in_the_way = others.filter(|(_, other)| {
            other.taken().iter().any(excludes) || here(other).is_some_and(|other| is_ahead(&other))
        });
        in_the_way.map(|(&other, _)| other).collect()
    }
}

/// The plain guards of a thread, by their requests.
fn guards_of(
    nested: &BTreeSet<(MemberId, u64, u64)>,
    member: MemberId,
    thread: u64,
) -> impl Iterator<Item = RequestId> {
    let guards = nested.range((member, thread, 0)..=(member, thread, u64::MAX));
    guards.map(|&(member, _, number)| RequestId { member, number })
}

/// What the owner of a request holds at a node by its other guards.
fn held_by_owner(
    requests: &BTreeMap<RequestId, Box<Request>>,
    nested: &BTreeSet<(MemberId, u64, u64)>,
    ask: &Ask,
    node: NodeId,
) -> ModeCounts {
    let mut held = ModeCounts::NONE;
    if ask.owner == Owner::Thread {
        let steps = guards_of(nested, ask.id.member, ask.thread).flat_map(|guard| requests[&guard].taken());
        steps.filter(|step| step.node == node).for_each(|step| held.add(step.mode));
    }
    held
}

#[cfg(test)]
pub(crate) mod judge;

#[cfg(test)]
mod tests {
    use super::judge::{Judge, PATHS};
    use super::*;
    use crate::core::node_id::Seeds;
    use crate::core::plan::Plan;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Change {
        /// A thread of a member asks for some reads and writes.
        Ask(u64, u64, Owner, Vec<&'static str>, Vec<&'static str>),
        /// Withdraws one of the requests that are there.
        Withdraw(usize),
        Downgrade(usize),
        Leave(u64),
        /// Stores and restores one of the replicas.
        Rewrite,
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let paths = || proptest::collection::vec(prop::sample::select(&PATHS), 0..3);
        let owner = prop_oneof![3 => Just(Owner::Thread), 1 => Just(Owner::Itself)];
        let ask = (0..3u64, 0..2u64, owner, paths(), paths());
        let change = prop_oneof![
            6 => ask.prop_map(|(member, thread, owner, reads, writes)| Change::Ask(member, thread, owner, reads, writes)),
            5 => (0..20usize).prop_map(Change::Withdraw),
            1 => (0..20usize).prop_map(Change::Downgrade),
            1 => (0..3u64).prop_map(Change::Leave),
            2 => Just(Change::Rewrite),
        ];
        proptest::collection::vec(change, 0..60)
    }

    pub(super) fn ask(number: u64, member: u64, thread: u64, owner: Owner, reads: &[&str], writes: &[&str]) -> Ask {
        let mut plan = Plan::default();
        plan.build::<str, _, _>(&Seeds::new(|| 7), reads, writes).unwrap();
        Ask {
            id: RequestId { member: MemberId(member), number },
            thread,
            owner,
            asked: number,
            channel: Some(number as Channel),
            absolute: None,
            steps: plan.steps().iter().map(|step| Step { node: step.node, mode: step.mode }).collect(),
            told: Vec::new(),
        }
    }

    /// What can be seen of a replica.
    fn seen(replica: &Replica) -> Vec<(RequestId, usize, bool)> {
        let seen = |request: &Request| (request.ask.id, request.progress.taken, request.is_granted());
        replica.requests.values().map(Box::as_ref).map(seen).collect()
    }

    /// Whether the thread of a request does not wait.
    fn is_of_one_who_runs(replica: &Replica, request: &Request) -> bool {
        let thread = |request: &Request| (request.ask.id.member, request.ask.thread);
        replica.requests.values().map(Box::as_ref).all(|other| other.is_granted() || thread(other) != thread(request))
    }

    /// G4, G9: the third request comes to `k/n` with the earliest stamp, and waits there for what the nested one reads. So
    /// that one goes ahead of the reader that waits there already (rule 3 of `node.rs`).
    #[test]
    fn request_that_is_walked_on_lets_in_whom_it_waits_for() {
        let mut replica = Replica::default();
        let mut apply = |event| {
            let mut effects = Effects::default();
            replica.apply(event, &mut effects);
            effects.moved.iter().map(|&(_, channel)| channel).collect::<Vec<_>>()
        };
        apply(by(1, 1, &[], &["m"]));
        apply(by(2, 2, &[], &["k/n/r"]));
        apply(by(3, 3, &[], &["m", "k/n"]));
        apply(by(4, 4, &["k/n/p"], &[]));
        apply(by(5, 5, &["k/n"], &[]));
        apply(by(6, 4, &[], &["k/n/q"]));
        let moved = apply(release(1));
        assert_eq!(moved, [3, 5, 6, 6], "the third, whom it passes, and whom that lets in");
        let waits =
            |number: &u64| !replica.requests[&RequestId { member: MemberId(0), number: *number }].is_granted();
        assert_eq!((2..=6).filter(waits).collect::<Vec<_>>(), [3, 5]);
    }

    /// The requests that wait after these events, by number.
    fn waiting_after<const N: usize>(events: [Event; N]) -> Vec<u64> {
        let mut replica = Replica::default();
        events.into_iter().for_each(|event| replica.apply(event, &mut Effects::default()));
        let waiting = replica.requests.values().filter(|request| !request.is_granted());
        waiting.map(|request| request.ask.id.number).collect()
    }

    fn by(number: u64, thread: u64, reads: &[&str], writes: &[&str]) -> Event {
        Event::Ask(ask(number, 0, thread, Owner::Thread, reads, writes))
    }

    fn release(number: u64) -> Event {
        Event::Withdraw(RequestId { member: MemberId(0), number }, 0)
    }

    /// G3: or the third would get to `a/b` before the second.
    #[test]
    fn those_let_on_together_go_on_in_their_order() {
        let asked = [by(1, 1, &[], &["a"]), by(2, 2, &[], &["a/b"]), by(3, 3, &[], &["a/b"]), release(1)];
        assert_eq!(waiting_after(asked), [3]);
    }

    /// G3: the third waits at `a`, where the fourth passes it, and comes to `a/b` when that one waits there.
    #[test]
    fn request_keeps_its_place_in_its_next_queue() {
        let (reads, nests) = (by(1, 1, &["a"], &[]), by(2, 1, &[], &["a/b/x"]));
        let (writes, passes) = (by(3, 2, &[], &["a/b"]), by(4, 3, &["a/b"], &[]));
        assert_eq!(waiting_after([reads, nests, writes, passes, release(1), release(2)]), [4]);
    }

    /// G2: the one that began to wait last holds no guard in the cycle, so it cannot be the one that reports.
    #[test]
    #[cfg(feature = "machine")]
    fn deadlock_is_reported_by_one_that_may_report_it() {
        let mut names = ["p", "q", "r"];
        let step = |name: &str| ask(0, 0, 0, Owner::Thread, &[], &[name]).steps[1].node;
        let order = ask(0, 0, 0, Owner::Thread, &[], &names).steps;
        names.sort_by_key(|name| order.iter().position(|at| at.node == step(name)));
        let [first, second, third] = names;
        let mut replica = Replica::default();
        let nests = by(3, 1, &[], &[first, second]);
        let events =
            [by(1, 1, &[], &[third]), by(2, 2, &[], &[first]), nests, by(4, 3, &[], &[second, third]), release(2)];
        events.into_iter().for_each(|event| replica.apply(event, &mut Effects::default()));
        let reports = |number| replica.deadlock_of_one(RequestId { member: MemberId(0), number }).is_some();
        assert_eq!([3, 4].map(reports), [true, false]);
    }

    proptest! {
        /// A member that reads the events and one that reads a new table agree for ever after (invariant 1): on which
        /// request has what, and on which are moved, in which order. And the events that are read are those that were
        /// written. Both
        /// serve in the right order, and know which members to watch.
        #[test]
        fn restored_replica_goes_on_as_the_one_that_was_stored(changes in changes()) {
            let (mut always, mut restored) = (Replica::default(), Replica::default());
            let mut judge = Judge::default();
            let mut apply = |event: Event, restored: &mut Replica| {
                let bytes = postcard::to_stdvec(&event).unwrap();
                let (mut one, mut other) = (Effects::default(), Effects::default());
                let before = always.clone();
                always.apply(event, &mut one);
                restored.apply(postcard::from_bytes(&bytes).unwrap(), &mut other);
                judge.judge(&before, &always, &one.moved);
                assert_eq!((one.moved, one.left), (other.moved, other.left));
                assert_eq!(seen(&always), seen(restored));
                assert!(always.is_settled(), "somebody waits who may go on (G4, G9)");
            };
            for member in 0..3 {
                let about = About { lifeline: 0, id: member, command: String::new(), user: String::new() };
                apply(Event::Join(about), &mut restored);
            }
            let mut numbers = 0;
            for change in changes {
                match change {
                    Change::Ask(member, thread, owner, reads, writes) => {
                        // A thread that waits asks for nothing.
                        let is_its = |request: &&Request| request.ask.id.member.0 == member && request.ask.thread == thread;
                        if restored.requests.values().map(Box::as_ref).filter(is_its).all(Request::is_granted) {
                            numbers += 1;
                            apply(Event::Ask(ask(numbers, member, thread, owner, &reads, &writes)), &mut restored);
                        }
                    }
                    Change::Withdraw(which) => {
                        // A thread that waits drops nothing; it may give up.
                        let may = |request: &&Request| !request.is_granted() || is_of_one_who_runs(&restored, request);
                        let id = restored.requests.values().map(Box::as_ref).filter(may).map(|request| request.ask.id).nth(which);
                        if let Some(id) = id {
                            apply(Event::Withdraw(id, 0), &mut restored);
                        }
                    }
                    Change::Downgrade(which) => {
                        let may = |request: &&Request| is_of_one_who_runs(&restored, request);
                        let id = restored.requests.values().map(Box::as_ref).filter(may).map(|request| request.ask.id).nth(which);
                        if let Some(id) = id {
                            apply(Event::Downgrade(id, 0), &mut restored);
                        }
                    }
                    Change::Leave(member) => apply(Event::Leave(MemberId(member), 0), &mut restored),
                    Change::Rewrite => {
                        let stored = postcard::to_stdvec(&restored.store()).unwrap();
                        restored = Replica::restore(postcard::from_bytes(&stored).unwrap());
                    }
                }
            }
            (0..3).for_each(|member| apply(Event::Leave(MemberId(member), 0), &mut restored));
            prop_assert!(restored.nodes.is_empty() && restored.nested.is_empty(), "a node is left");
        }
    }
}
