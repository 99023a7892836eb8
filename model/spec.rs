//! The executable specification: which requests conflict, and which may be granted beside which.
//!
//! It defines what the guarantees mean, not how they are met. Conflicts are decided by plain path overlap, request
//! against request, in O(everything): no modes, no intentions, no nodes, no queues, no hashes. An oracle that shares
//! the lock's algorithm shares its bugs, so this file imports nothing of the crate, and the crate nothing of it.
//!
//! ```text
//!  spelling ──> Way ──> Request ──────────> Held
//!  of_text      a root  reads and writes    who holds and who waits for what
//!  of_path              conflicts_with      verdict
//! ```
//!
//! 1. Two sub-trees overlap if the way to one root is a prefix of the way to the other.
//! 2. Two requests conflict if a write of one overlaps a read or a write of the other.
//! 3. Requests of one owner never conflict. A thread owns its plain guards; each `Arc` guard owns itself.
//! 4. A guard protects what *it* asked for until it is dropped; a downgrade makes its writes reads.
//!
//! What it leaves open: the order of waiters, except for requests of one root each ([`Request::goes_before`]). If a
//! request conflicts with no holder, but with a waiter, the answer is [`Verdict::Open`]: the queues of the single
//! nodes decide.
//!
//! Not here: spelling of segments beyond `str` and `Path`; deadlocks, except for which request is in the way of
//! which.
//!
//! Included by `#[path = "../model/spec.rs"] mod spec;`; its own tests are in `tests/specification.rs`.

// Each user includes all of it and uses a part.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path};

/// The way from the root of the tree to a node: its segments. It stands for the sub-tree below that node.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Way(pub(crate) Vec<Vec<u8>>);

/// As a path, so that a failing case can be read.
impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0.join(&b'/').escape_ascii())
    }
}

/// What a [`Path`] is relative to. Ways with different origins cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Top,
    Somewhere,
}

/// A path that names no node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unusable;

impl Way {
    /// The way that a `str` names: the parts between separators that are not empty.
    pub(crate) fn of_text(text: &str) -> Way {
        let mut way = vec![Vec::new()];
        for byte in text.bytes() {
            match byte {
                b'/' => way.push(Vec::new()),
                other => way.last_mut().expect("it begins with one").push(other),
            }
        }
        way.retain(|segment| !segment.is_empty());
        Way(way)
    }

    /// The way that a `Path` names, by `std`'s own reading of it. The empty one is the root, whatever it is relative
    /// to: it has no origin.
    pub(crate) fn of_path(path: &Path) -> Result<(Option<Origin>, Way), Unusable> {
        let mut way = Vec::new();
        let mut origin = Origin::Somewhere;
        for component in path.components() {
            match component {
                Component::Prefix(_) | Component::RootDir => origin = Origin::Top,
                Component::CurDir => {}
                Component::ParentDir => {
                    if way.pop().is_none() && origin == Origin::Somewhere {
                        return Err(Unusable);
                    }
                }
                Component::Normal(name) => way.push(name.as_encoded_bytes().to_vec()),
            }
        }
        Ok(((!path.as_os_str().is_empty()).then_some(origin), Way(way)))
    }

    /// Whether `other` lies in the sub-tree of `self`: one direction of rule 1.
    pub(crate) fn contains(&self, other: &Way) -> bool {
        other.0.starts_with(&self.0)
    }

    /// Rule 1.
    pub(crate) fn overlaps(&self, other: &Way) -> bool {
        self.contains(other) || other.contains(self)
    }
}

/// The roots that a request reads and writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) reads: Vec<Way>,
    pub(crate) writes: Vec<Way>,
}

impl Request {
    pub(crate) fn of_text<S: AsRef<str>>(reads: &[S], writes: &[S]) -> Request {
        let ways = |paths: &[S]| paths.iter().map(|path| Way::of_text(path.as_ref())).collect();
        Request { reads: ways(reads), writes: ways(writes) }
    }

    /// Refuses a request with an unusable path, and one whose paths cannot be compared.
    /// Its origin is `None` if none of its paths has one.
    pub(crate) fn of_paths<S: AsRef<Path>>(reads: &[S], writes: &[S]) -> Result<(Option<Origin>, Request), Unusable> {
        let mut origins = Vec::new();
        let mut ways = |paths: &[S]| -> Result<Vec<Way>, Unusable> {
            let told = paths.iter().map(|path| {
                let (origin, way) = Way::of_path(path.as_ref())?;
                origins.extend(origin);
                Ok(way)
            });
            told.collect()
        };
        let request = Request { reads: ways(reads)?, writes: ways(writes)? };
        match origins.iter().all(|origin| *origin == origins[0]) {
            true => Ok((origins.first().copied(), request)),
            false => Err(Unusable),
        }
    }

    /// Rule 2.
    pub(crate) fn conflicts_with(&self, other: &Request) -> bool {
        let written_over = |writer: &Request, other: &Request| {
            let mut others = other.reads.iter().chain(&other.writes);
            others.any(|root| writer.writes.iter().any(|write| write.overlaps(root)))
        };
        written_over(self, other) || written_over(other, self)
    }

    /// Rule 4.
    pub(crate) fn downgraded(&self) -> Request {
        Request { reads: self.reads.iter().chain(&self.writes).cloned().collect(), writes: Vec::new() }
    }

    /// G3: whether this request, which waits at the node `at`, must be served before `later`, which an owner that
    /// holds nothing asks for meanwhile. This is so for two conflicting requests of one root each, with one
    /// exception: a reader may pass a writer that waits above both roots.
    ///
    /// Why this is the only exception: a request has announced itself at each node above `at`, and waits at `at` for
    /// its root or to announce itself. If the two conflict, one root lies in the other.
    ///
    /// - If the later root is above `at`, this request has announced there what it writes or reads below: that
    ///   excludes the later one.
    /// - If `at` is one of the roots, and the later one comes there, one of them asks for the whole sub-tree and the other for
    ///   something in it, one of them to write: they exclude each other, and the later one queues behind.
    /// - If `at` is above both, each only announces itself there, and announcements do not exclude each other. A
    ///   request that announces a write is kept out by one that holds, or awaited earlier, the whole sub-tree; that
    ///   one keeps out the next request that announces a write too. A request that announces a read is kept out by
    ///   one that writes the whole sub-tree, which keeps out everybody. But one that reads the whole sub-tree keeps
    ///   out this request, which writes, and not a later one that reads.
    pub(crate) fn goes_before(&self, at: &Way, later: &Request) -> bool {
        let (Some((root, writes)), Some((later_root, later_writes))) = (self.only_root(), later.only_root()) else {
            return false;
        };
        let is_above_both = [root, later_root].into_iter().all(|root| at != root && at.contains(root));
        self.conflicts_with(later) && !(is_above_both && writes && !later_writes)
    }

    /// The root of a request that names one, and whether it is written.
    fn only_root(&self) -> Option<(&Way, bool)> {
        match (&self.reads[..], &self.writes[..]) {
            ([root], []) => Some((root, false)),
            ([], [root]) => Some((root, true)),
            _ => None,
        }
    }

    /// What is left when the roots at these nodes are released.
    pub(crate) fn without(&self, released: &[Way]) -> Request {
        let left = |roots: &[Way]| roots.iter().filter(|root| !released.contains(root)).cloned().collect();
        Request { reads: left(&self.reads), writes: left(&self.writes) }
    }

    /// The same rights in the fewest roots, sorted: afterwards, requests that mean the same are equal.
    pub(crate) fn normalized(&self) -> Request {
        let within = |roots: &[Way], inner: &Way| roots.iter().any(|outer| outer != inner && outer.contains(inner));
        let mut writes: Vec<Way> = self.writes.clone();
        writes.retain(|root| !within(&self.writes, root));
        let mut reads: Vec<Way> = self.reads.clone();
        reads.retain(|root| !within(&self.reads, root) && !self.writes.iter().any(|write| write.contains(root)));
        for roots in [&mut reads, &mut writes] {
            roots.sort();
            roots.dedup();
        }
        Request { reads, writes }
    }
}

/// The owner of a request: requests of one owner do not conflict (rule 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Thread(usize),
    Itself,
}

/// Names a request that is held or waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id(u64);

#[derive(Clone, Debug)]
pub(crate) struct Party {
    pub(crate) owner: Owner,
    pub(crate) request: Request,
    /// The thread that asked.
    pub(crate) thread: usize,
}

impl Party {
    /// Rules 2 and 3.
    pub(crate) fn excludes(&self, owner: Owner, request: &Request) -> bool {
        (owner == Owner::Itself || self.owner != owner) && self.request.conflicts_with(request)
    }
}

/// What must become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It conflicts with no request, or its owner holds all of it already: granted without waiting (G4).
    Granted,
    /// It conflicts with a holder: not granted (G1).
    Refused,
    /// It conflicts only with waiters: it may have to wait for them (G3).
    Open,
}

/// Which requests hold and which wait.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    pub(crate) holders: BTreeMap<Id, Party>,
    pub(crate) waiters: BTreeMap<Id, Party>,
    ids: u64,
}

impl Held {
    pub(crate) fn verdict(&self, owner: Owner, request: &Request) -> Verdict {
        if self.holders.values().any(|holder| holder.excludes(owner, request)) {
            Verdict::Refused
        } else if self.owner_has(owner, request)
            || !self.waiters.values().any(|waiter| waiter.excludes(owner, request))
        {
            Verdict::Granted
        } else {
            Verdict::Open
        }
    }

    /// Whether each root lies in a root that the owner holds already, with the same right or a stronger one.
    fn owner_has(&self, owner: Owner, request: &Request) -> bool {
        let own = || self.holders.values().filter(|holder| owner != Owner::Itself && holder.owner == owner);
        let writes = || own().flat_map(|holder| &holder.request.writes);
        let reads = || own().flat_map(|holder| &holder.request.reads);
        request.writes.iter().all(|root| writes().any(|outer| outer.contains(root)))
            && request.reads.iter().all(|root| writes().chain(reads()).any(|outer| outer.contains(root)))
    }

    pub(crate) fn grant(&mut self, thread: usize, owner: Owner, request: Request) -> Id {
        let id = self.next_id();
        self.holders.insert(id, Party { owner, request, thread });
        id
    }

    pub(crate) fn release(&mut self, id: Id) -> Party {
        self.holders.remove(&id).expect("it is held")
    }

    pub(crate) fn downgrade(&mut self, id: Id) {
        let holder = self.holders.get_mut(&id).expect("it is held");
        holder.request = holder.request.downgraded();
    }

    /// Releases the roots at these nodes.
    pub(crate) fn release_roots(&mut self, id: Id, released: &[Way]) {
        let holder = self.holders.get_mut(&id).expect("it is held");
        holder.request = holder.request.without(released);
    }

    pub(crate) fn wait(&mut self, thread: usize, owner: Owner, request: Request) -> Id {
        let id = self.next_id();
        self.waiters.insert(id, Party { owner, request, thread });
        id
    }

    pub(crate) fn stop_waiting(&mut self, id: Id) -> Party {
        self.waiters.remove(&id).expect("it waits")
    }

    fn next_id(&mut self) -> Id {
        self.ids += 1;
        Id(self.ids)
    }
}
