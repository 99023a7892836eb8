// With the features of the model checkers a lock works only inside a model, where rustdoc cannot run an example. So
// under `cargo test --features loom` rustdoc sees an empty crate. This attribute must come first: rustdoc reads
// whatever precedes it.
#![cfg(not(all(doctest, feature = "model")))]

//! A read/write lock over **sub-trees**: for std threads and async tasks, for the processes of a host, and for machines that share
//! an engine such as Redis or PostgreSQL.
//!
//! [`TreeLock::lock`] takes shared locks on some sub-trees and exclusive locks on others, all or nothing, in
//! O(depth), without the tree ever being built.
//!
//! ```
//! use std::thread;
//! use treelock::TreeLock;
//!
//! let lock = TreeLock::new();
//! thread::scope(|scope| {
//!     scope.spawn(|| {
//!         // Renames a folder, key by key: nobody sees it half done.
//!         let _guard = lock.lock(&[], &["photos/2025", "archive/2025"]);
//!     });
//!     scope.spawn(|| {
//!         // Reads one folder below: waits while it moves.
//!         let _guard = lock.lock(&["photos/2025/june"], &[]);
//!     });
//!     scope.spawn(|| {
//!         // Has nothing to do with either: never waits for them.
//!         let _guard = lock.lock(&["photos/2024"], &["thumbnails"]);
//!     });
//! });
//! ```
//!
//! # Where to look
//!
//! | | |
//! |---|---|
//! | to lock | [`lock`](TreeLock::lock), or [`read`](TreeLock::read) and [`write`](TreeLock::write) for one root |
//! | to lock without waiting, or until a deadline | [`try_lock`](TreeLock::try_lock), [`try_lock_for`](TreeLock::try_lock_for), [`try_lock_until`](TreeLock::try_lock_until), [`try_read`](TreeLock::try_read), [`try_write`](TreeLock::try_write); the errors: [`LockError`] |
//! | to lock one node without what is below it | [a name that no child has](TreeLock#one-node-without-what-is-below) |
//! | guards for other threads, tasks and structs | [`lock_arc`](TreeLock::lock_arc) and its like |
//! | to go on reading after a write, or to give back some roots | [`downgrade`](TreeLockGuard::downgrade), [`release`](TreeLockGuard::release) |
//! | an owner that moves from thread to thread | [`LockOwner`] |
//! | to lock in async code | the feature `async`, [`lock_async`](https://docs.rs/treelock/latest/treelock/struct.TreeLock.html#method.lock_async), its [future](https://docs.rs/treelock/latest/treelock/struct.LockFuture.html) and [guard](https://docs.rs/treelock/latest/treelock/struct.AsyncTreeLockGuard.html) |
//! | paths: `Path`, `str`, `[T]`, your own | [`TreePath`]; lists of them: [`Roots`] |
//! | the order of service, nesting, deadlocks, cost | [`TreeLock`] |
//! | who holds what and who waits for what | [`snapshot`](TreeLock::snapshot) |
//! | the same between the processes of a host | the feature `process`, [`ProcessTreeLock`](https://docs.rs/treelock/latest/treelock/process/) |
//! | the same between machines | the feature `redis`, [`RedisTreeLock`](https://docs.rs/treelock/latest/treelock/machine/redis/), `postgres`, [`PostgresTreeLock`](https://docs.rs/treelock/latest/treelock/machine/postgres/), or `object-store`, [`BucketTreeLock`](https://docs.rs/treelock/latest/treelock/machine/bucket/) |
//!
//! # Features
//!
//! | | none is on by default |
//! |---|---|
//! | `async` | tasks wait in the queues of threads, on any runtime |
//! | `process` | the lock between the processes of a host, on Linux |
//! | `redis` | the lock between machines, over a Redis or Valkey server, also behind sentinels or in a cluster |
//! | `postgres` | the same, over a PostgreSQL database |
//! | `dynamodb` | the same, in a table of DynamoDB |
//! | `memcached` | the same, over a Memcached server; it needs Rust 1.87 |
//! | `object-store` | the same, in a bucket: S3, Google, Azure, a directory |
//! | `redis-tls`, `postgres-tls` | the same over TLS; they imply `redis`, `postgres` |
//! | `cli` | the command `treelock`; implies `process`; with the feature of an engine it locks between machines too |
//! | `serde` | `Serialize` for [`Snapshot`] and [`Deadlock`] |
//! | `tracing` | events of `tracing`: a request that waited for a second or longer, a deadlock that is reported |
//! | `loom`, `shuttle` | **For the tests of this crate only: no other crate may enable them.** |
//!
//! `loom` and `shuttle` replace the primitives of all locks by those of a model checker. Such a lock panics outside a
//! model. Cargo builds a crate once, with every feature that any crate in the build asks for, so one crate that
//! enables `loom` makes the lock unusable for all others. Together with `process`, or with each other, they do not
//! compile; so `--all-features` does not compile either.
//!
//! # How it is built
//!
//! A pure core (no threads, no clocks) serves every *scope*: threads and processes are scopes, each in a folder
//! beside it. The way of a request: `lock` makes a *request*, which turns paths into a *plan*; the request takes the
//! plan's steps in the *table*, where each *node* grants a mode or queues a *waiter*; the *ledger* records the
//! request; dropping the *guard* releases every node and, when no internal lock is held any longer, wakes the waiters
//! that are granted.
//!
//! | | |
//! |---|---|
//! | `core/` | pure: paths, modes, plans, the queue of a node, the search for deadlocks; its map is in `core/mod.rs` |
//! | `thread/` | [`TreeLock`], for the threads of a process; its map is in `thread/mod.rs` |
//! | `replica/` | pure: the state that all members of a lock agree on, beyond one process, and what an event does to it |
//! | `machine/` | the same contract between machines; its map is in `machine/mod.rs` |
//! | `process/` | the same contract between the processes of a host; its map is in `process/mod.rs` |
//! | `face/` | what users see of every scope, written once: methods, guards, errors; its map is in `face/mod.rs` |
//! | `inspect.rs` | snapshots and deadlock reports as data, for all scopes: who holds and awaits what, since when, and where it asked |
//! | `drawing.rs` | the same as text |
//! | `error.rs` | what a request can fail with |
//! | `trace.rs` | the events for `tracing`, with the feature of that name |
//! | `patience.rs` | how long a request waits, and when it looks for a deadlock |
//! | `sync.rs` | the only file that names synchronization primitives |
//!
//! The map of each scope states its lock order.

#[cfg(all(feature = "model", feature = "process"))]
compile_error!(
    "the features `loom` and `shuttle` of `treelock` are for its own tests and take `process` away: find the crate that \
     enables them with `cargo tree -e features -i treelock`, and do not use `--all-features`"
);
#[cfg(all(feature = "loom", feature = "shuttle"))]
compile_error!("the features `loom` and `shuttle` of `treelock` exclude each other: a lock runs in one model");

mod core;
mod drawing;
mod error;
mod face;
mod inspect;
#[cfg(all(feature = "machine", not(feature = "model")))]
pub mod machine;
mod patience;
#[cfg(all(feature = "process", not(feature = "model")))]
pub mod process;
#[cfg(all(feature = "object-store", not(feature = "model")))]
pub use machine::bucket;
#[cfg(all(feature = "dynamodb", not(feature = "model")))]
pub use machine::dynamodb;
#[cfg(all(feature = "memcached", not(feature = "model")))]
pub use machine::memcached;
#[cfg(all(feature = "postgres", not(feature = "model")))]
pub use machine::postgres;
#[cfg(all(feature = "redis", not(feature = "model")))]
pub use machine::redis;
#[cfg(all(feature = "replica", not(feature = "model")))]
mod replica;
mod sync;
mod thread;
mod trace;

pub use crate::core::mode::Mode;
pub use crate::core::path::{Frame, PathError, TreePath};
pub use crate::core::roots::{NoPath, Roots};
pub use crate::core::segments::Segments;
#[cfg(feature = "async")]
pub use crate::thread::guard::AsyncTreeLockGuard;
pub use crate::thread::guard::{ArcTreeLockGuard, TreeLockGuard};
pub use crate::thread::lock::TreeLock;
pub use crate::thread::owner::{HeldLock, LockOwner};
#[cfg(feature = "async")]
pub use crate::thread::task::LockFuture;
pub use error::LockError;
pub use inspect::{Deadlock, Holder, Party, Process, Root, Snapshot, Waiter};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
