//! The same contract between the machines that share an engine: a server that keeps one list in one order.
//!
//! # How it is built
//!
//! Every client keeps a replica of all that is held and awaited (`replica/`), as the processes of one host do, and brings it up
//! to date from one list of entries that an *engine* keeps. What decides a conflict, a place in the queue and who is next stands
//! in the replica alone. The engine knows nothing of it: it keeps the order, and judges by its own clock which *sessions* are
//! over. Most requests take one round trip: it writes them down and brings what others did, and both tell what came of it.
//!
//! A lease is what no network can do without: a session that is not renewed in time is *buried*, and what it held is given to
//! others. The client knows that before they do, by its own monotonic clock, counted from before it sent its last renewal,
//! less a margin for clocks that run at different speeds. But between the moment at which a holder looks at its clock and the
//! moment at which its write arrives any time may pass, so what must never be written by a late holder needs the *fence*:
//! a number that rises with each grant, and that the written thing compares.
//!
//! # What it costs
//!
//! A request is one round trip, in which the engine adds an entry and reads what is new. A release is another one, which only adds.
//! The cost does not depend on what is held. Each client reads what all write: with N busy clients an entry is read N times. So
//! where many clients are busy in trees that have nothing to do with each other, give each tree a namespace of its own. Clients
//! that are idle cost their renewals, and what they read with them. `benches/README.md` has the figures.
//!
//! Which of the engines to take is told in [`engines`].
//!
//! # Considered and rejected
//!
//! | | why not |
//! |---|---|
//! | tables of counters of modes in the server, changed by a script; clients need not read what others do | a second implementation of modes, order and deadlocks, in another language for each engine. And dearer: for 9 nodes a script that looks at three counters a node and raises one takes 36 µs of the server's time, and 21 to lower them |
//! | one document with the whole state, changed by compare-and-set | whoever loses tries again, so that n busy clients try n times; and the whole state travels |
//! | a script that looks who writes before it adds an entry | 29 µs of the server's time a pair instead of 15, on a busy machine, and a rule in each engine that the readers can have once |
//! | a lock for threads before the engine, so that a client asks for one of its threads at a time | no faster, as requests that wait cost no round trips: 8 threads at one path make 3,400 pairs a second without it and 3,360 with it; and it loses the order: four threads of one client have as much as one of another, instead of 2.8 times that |
//!
//! # Files
//!
//! | file | concept |
//! |---|---|
//! | `mod.rs` | [`MachineTreeLock`]: what a user sees of every engine |
//! | `guard.rs` | what a holder has: fence, validity, release, downgrade |
//! | `engine.rs` | what an engine must do, in eight rules |
//! | `session.rs` | pure: what a client says, and what it makes of the answers |
//! | `client.rs` | the threads of a client: who sends, who waits, who renews |
//! | `task.rs`, `client/tasks.rs` | futures; how tasks wait |
//! | `observe.rs` | stamps: was anything written since? |
//! | `lease.rs` | until when what is held is held |
//! | `pool.rs` | connections that are used again |
//! | `error.rs` | what a request, and an engine, can fail with |
//! | `connect.rs`, `engines.md` | which engine a URL means; which one to take |
//! | `memory.rs` | an engine for tests, which loses what it is told to lose |
//! | `simulation.rs` | the model: histories of clients and engine in virtual time, and their judge |
//! | `exhaustive.rs` | small cases of the same, searched as a whole |
//! | `differential.rs` | real engines against the one for tests |
//! | `redis/`, `postgres/` | Redis and Valkey; PostgreSQL |
//! | `items/` | the engine of stores that can only create and read |
//! | `bucket/`, `dynamodb/`, `memcached/` | such stores: an object store; a table of DynamoDB; one value of Memcached |
//! | `runtime.rs` | how a store asks a client that is asynchronous |
//!
//! # Invariants
//!
//! 1. All replicas that have applied the entries up to one position agree.
//! 2. At most one call of a client is under way. A batch whose reply was lost is sent again, as it was, before any other.
//! 3. A client ceases to believe in its session before the engine does.
//! 4. A request is granted at the position of the entry that grants it, which is its fence. Of two grants that conflict the
//!    later one has the higher fence, whatever was lost in between.
//!
//! Lock order: the client's mutex is never held while the engine is asked. The lease's list of callbacks comes last.

#[cfg(feature = "object-store")]
pub mod bucket;
mod client;
mod connect;
#[cfg(all(test, any(feature = "postgres", feature = "redis")))]
mod differential;
#[cfg(feature = "dynamodb")]
pub mod dynamodb;
#[cfg_attr(
    not(all(feature = "items", feature = "redis")),
    allow(dead_code, reason = "not all engines need all of it")
)]
mod engine;
mod error;
#[cfg(test)]
mod exhaustive;
mod guard;
#[cfg(feature = "items")]
mod items;
mod lease;
#[cfg(feature = "memcached")]
pub mod memcached;
#[cfg(test)]
mod memory;
mod observe;
#[cfg(any(feature = "memcached", feature = "postgres", feature = "redis"))]
mod pool;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(any(feature = "dynamodb", feature = "object-store"))]
mod runtime;
mod session;
#[cfg(test)]
mod simulation;
#[cfg(feature = "async")]
mod task;

#[doc = include_str!("engines.md")]
pub mod engines {}

pub use crate::replica::report::Wait;
pub use connect::{connect, look};
pub use error::{EngineError, MachineLockError};
pub use guard::{ArcMachineGuard, MachineGuard};
pub use observe::{Conflict, Stamp};
#[cfg(feature = "async")]
pub use task::MachineLockFuture;

use crate::core::owner::Owner;
use crate::core::path::{self, Frame, PathError, TreePath};
use crate::core::roots::Roots;
use crate::face::lock_methods;
use crate::inspect::Snapshot;
use crate::patience::Patience;
use crate::replica::Ask;
use crate::replica::ask::Asking;
use client::{Client, Granted};
use std::fmt;
use std::marker::PhantomData;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A read/write lock over the sub-trees of a tree, for all threads of all clients that open one *namespace* of an engine.
///
/// It is [`TreeLock`](crate::TreeLock) between machines: what overlaps, what conflicts, who is served first and what a
/// thread may nest is said there, and holds between all of them. Explicit owners, and guards that release a part of what they
/// have, are between threads alone: a queue counts on what a waiter's owner holds, which must not change while it waits. Each engine opens its own, and [`connect`] that which a URL names: see [`engines`].
///
/// A process opens a namespace once, and shares the lock: two clients in one thread wait for each other, and no report tells of
/// it. All clients give paths of one type. (A `str` is an absolute `Path`, with or without a `/` in front. While relative `Path`s are
/// held or awaited, both are refused.)
///
/// # Namespaces
///
/// A namespace has one [time to live](Options::time_to_live) for all its clients. One that is new is
/// [closed](MachineTreeLock::closed_until) for that long: requests wait, and tries are refused. Nothing tells it from one whose data
/// was lost, whose holders may still believe in it.
///
/// # What a lease can promise, and what it cannot
///
/// While a guard [is valid](MachineGuard::is_valid), nobody else is granted anything that conflicts with it. A client that is
/// cut off from its engine, stopped, or late, loses its session when its time to live has passed, and with it all its guards:
/// first in its own eyes, a margin later in those of the others. But a holder may be stopped between its look at
/// [`is_valid`](MachineGuard::is_valid) and its write, and no lock in the world can then call that write back. So let what is
/// written compare the [fence](MachineGuard::fence), which rises with each grant: keep the highest one seen, and refuse lower ones.
/// (Gray and Cheriton 1989 for leases; Burrows 2006, section 2.4, for sequencers, which fences are.)
///
/// # Cost
///
/// A request takes one round trip to the engine and a release another one; those of threads that ask at the same time share
/// them. Every client reads what all clients of the namespace write: so names that are never locked together, such as those of
/// tenants or buckets, are best split into a namespace each.
pub struct MachineTreeLock<P: ?Sized + TreePath = str> {
    client: Arc<Open>,
    paths: PhantomData<fn(&P)>,
}

/// A client that ends with the last that has it.
pub(crate) struct Open(Arc<Client>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// How a client of an engine behaves, where the defaults do not fit.
///
/// ```
/// use std::time::{Duration, Instant};
///
/// let options = treelock::machine::Options::new().time_to_live(Duration::from_secs(30)).location("nightly job");
/// # let _ = options;
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    /// If it is said.
    pub(crate) time_to_live: Option<Duration>,
    margin: Option<Duration>,
    pub(crate) patience: Duration,
    pub(crate) response: Duration,
    pub(crate) location: Option<String>,
    pub(crate) longest_look: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Options::new()
    }
}

impl Options {
    /// That of a namespace whose first client does not say it.
    pub(crate) const TIME_TO_LIVE: Duration = Duration::from_secs(10);

    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Options {
            time_to_live: None,
            margin: None,
            patience: Duration::from_secs(10),
            response: Duration::from_secs(2),
            location: None,
            longest_look: None,
        }
    }

    /// How long a session lives that is not renewed. So long others wait for what a client has that was killed, and so long a
    /// new namespace, or one whose data was lost, is closed. It is renewed at a third of it.
    ///
    /// The namespace has one for all: 10 s, unless the client that begins it says another. One that does not say it takes
    /// that of the namespace. One that says another than the namespace has is [refused](EngineError::Refused) as
    /// long as there are other clients. Say it in all programs or in none: after a loss of the server's data
    /// the first client begins anew, and lets others in after its own.
    ///
    /// # Panics
    ///
    /// If it is less than 10 ms or more than a day.
    #[must_use]
    pub fn time_to_live(mut self, time_to_live: Duration) -> Self {
        let fits = (Duration::from_millis(10)..=Duration::from_secs(86_400)).contains(&time_to_live);
        assert!(fits, "treelock: a time to live of {time_to_live:?}; choose one from 10 ms to a day");
        self.time_to_live = Some(time_to_live);
        self
    }

    /// How much sooner than the engine a client holds its session to be over: a twentieth of the time to live unless it is said. It
    /// must be more than the clocks of both machines drift apart in one time to live, and less than that, or the lock is not opened.
    #[must_use]
    pub fn clock_margin(mut self, margin: Duration) -> Self {
        self.margin = Some(margin);
        self
    }

    /// How long a request waits for an engine that does not answer, before it fails with [`EngineError::Away`]: 10 s unless
    /// it is said. Its own deadline comes first, but for the answer to the first call. A try waits for the
    /// [response timeout](Options::response_timeout) alone.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How long an answer may take before the connection is given up and the call is sent again by another one: 2 s unless it is
    /// said; with a short time to live, a third of that.
    #[must_use]
    pub fn response_timeout(mut self, response: Duration) -> Self {
        self.response = response;
        self
    }

    /// How long a request that waits pauses at most before it looks again whether it is granted, in an engine that wakes nobody:
    /// half a second in a bucket and in DynamoDB, and 50 ms in Memcached, unless it is said. The first pauses are shorter. The others have no use for it.
    ///
    /// # Panics
    ///
    /// If it is less than 1 ms.
    #[must_use]
    pub fn longest_look(mut self, longest: Duration) -> Self {
        assert!(longest >= Duration::from_millis(1), "treelock: a look each {longest:?}; choose 1 ms or more");
        self.longest_look = Some(longest);
        self
    }

    /// A session is renewed when this has passed since the last renewal.
    pub(crate) fn renewal(time_to_live: Duration) -> Duration {
        time_to_live / 3
    }

    pub(crate) fn margin(&self, time_to_live: Duration) -> Duration {
        self.margin.unwrap_or(time_to_live / 20)
    }

    /// Whether they go together.
    fn check(&self, time_to_live: Option<Duration>) -> Result<(), EngineError> {
        match (self.margin, time_to_live) {
            (Some(margin), Some(lives)) if margin >= lives => Err(EngineError::refused(format!(
                "a clock margin of {margin:?} in a time to live of {lives:?}: choose one that is less"
            ))),
            _ => Ok(()),
        }
    }

    /// What reports tell of the requests instead of the place in the source.
    #[must_use]
    pub fn location(mut self, location: impl Into<String>) -> Self {
        self.location = Some(location.into());
        self
    }
}

impl<P: ?Sized + TreePath> MachineTreeLock<P> {
    lock_methods! {
        guard: MachineGuard<'_, P>;
        arc guard: ArcMachineGuard, from &Self;
        error: MachineLockError;
        lock {
            /// # Errors
            ///
            /// [`MachineLockError::Path`], [`MachineLockError::Deadlock`], [`MachineLockError::Engine`]. Nothing is
            /// held then.
        }
        try_lock {
            /// # Errors
            ///
            /// [`MachineLockError::WouldBlock`], also while a new order is closed; [`MachineLockError::Path`],
            /// [`MachineLockError::Engine`].
        }
        try_lock_for {
            /// # Errors
            ///
            /// [`MachineLockError::TimedOut`], and as [`lock`](Self::lock).
        }
    }

    /// All that is held and awaited in the namespace, now. Its `Display` draws the tree.
    ///
    /// # Errors
    ///
    /// [`EngineError`].
    pub fn snapshot(&self) -> Result<Snapshot, EngineError> {
        self.client.0.snapshot()
    }

    /// Until when the namespace takes no requests because it is new, or its data was lost; as far as this client knows, which has
    /// asked for something since.
    #[must_use]
    pub fn closed_until(&self) -> Option<Instant> {
        self.client.0.closed_until()
    }

    /// What the waiting requests of this client wait for, as far as it knows. It asks nobody, and is meant for messages: a client
    /// whose request waits hears of all changes.
    #[must_use]
    pub fn waits(&self) -> Vec<Wait> {
        self.client.0.waits()
    }

    /// Ends the session, and with it all guards, which are lost. For a program that is about to exit without dropping them:
    /// others are let in at once, and not when the time to live has passed. Requests fail from then on.
    pub fn close(&self) {
        self.client.0.end();
    }

    pub(crate) fn connect(engine: Box<dyn engine::Engine>, options: Options) -> Result<Self, EngineError> {
        let client = Arc::new(Open(Client::connect(engine, options)?));
        Ok(MachineTreeLock { client, paths: PhantomData })
    }

    #[track_caller]
    fn acquire<R: AsRef<P>, W: AsRef<P>>(
        &self,
        reads: &[R],
        writes: &[W],
        owner: Owner,
        patience: Patience,
    ) -> Result<Granted, MachineLockError> {
        let (location, absolute) = (Location::caller(), are_absolute(reads, writes)?);
        let plan = |asking: &Asking| plan(asking, reads, writes, owner, location, absolute);
        self.client.0.acquire(patience, plan, || odd_frame(reads, writes))
    }
}

fn paths<'q, P: ?Sized + 'q, R: AsRef<P>, W: AsRef<P>>(
    reads: &'q [R],
    writes: &'q [W],
) -> impl Iterator<Item = &'q P> {
    reads.iter().map(AsRef::as_ref).chain(writes.iter().map(AsRef::as_ref))
}

/// Whether the paths of a request are absolute, unless all of them are the root; they must be of one kind.
fn are_absolute<P, R, W>(reads: &[R], writes: &[W]) -> Result<Option<bool>, PathError>
where
    P: ?Sized + TreePath,
    R: AsRef<P>,
    W: AsRef<P>,
{
    Ok(path::common_frame(paths(reads, writes))?.map(|frame| frame == Frame::Absolute))
}

/// Makes the request for a session that it is asked in.
fn plan<P: ?Sized + TreePath, R: AsRef<P>, W: AsRef<P>>(
    asking: &Asking,
    reads: &[R],
    writes: &[W],
    owner: Owner,
    location: &'static Location<'static>,
    absolute: Option<bool>,
) -> Result<Ask, MachineLockError> {
    let mut ask = asking.plan::<P, R, W>(reads, writes, owner, location)?;
    ask.absolute = absolute;
    Ok(ask)
}

/// Its paths are of another kind than those of the others.
fn odd_frame<P: ?Sized + TreePath, R: AsRef<P>, W: AsRef<P>>(reads: &[R], writes: &[W]) -> MachineLockError {
    path::odd_frame_of_namespace(paths(reads, writes)).into()
}

impl<P: ?Sized + TreePath> fmt::Debug for MachineTreeLock<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MachineTreeLock").finish_non_exhaustive()
    }
}
