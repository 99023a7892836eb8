//! A blocking read/write lock over **sub-trees**, for std threads.
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
//!         // Reads one below; waits while it moves.
//!         let _guard = lock.lock(&["photos/2025/june"], &[]);
//!     });
//!     scope.spawn(|| {
//!         // Has nothing to do with either; never waits for them.
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
//! | not to wait, or not for long | [`try_lock`](TreeLock::try_lock), [`try_lock_for`](TreeLock::try_lock_for), [`try_lock_until`](TreeLock::try_lock_until); why they refuse: [`LockError`] |
//! | guards for other threads, tasks and structs | [`lock_arc`](TreeLock::lock_arc) and its like |
//! | to go on reading after a write | [`downgrade`](TreeLockGuard::downgrade) |
//! | paths: `Path`, `str`, `[T]`, your own | [`TreePath`] |
//! | who is served when, what a thread may nest, deadlocks, cost | [`TreeLock`] |
//! | who holds what and who waits for what | [`snapshot`](TreeLock::snapshot) |
//! | the same between the processes of a host | the feature `process`, [`ProcessTreeLock`](https://docs.rs/treelock/latest/treelock/process/) |
//!
//! # How it is built
//!
//! A pure core (no threads, no clocks) inside a thin blocking shell. The way of a request: `lock` makes a *request*, which
//! turns paths into a *plan*; it takes the plan's steps in the *table*, where each *node* grants a mode or queues a
//! *waiter*; the *ledger* remembers who it was; dropping the *guard* releases every node, and wakes those whose
//! turn has come after all internal locks are let go.
//!
//! | file | | concept |
//! |---|---|---|
//! | `path.rs` | pure | how a path names its segments, and a node is named by them |
//! | `mode.rs` | pure | IS IX S SIX X, compatible, join: the only place that knows a conflict |
//! | `plan.rs` | pure | reads and writes -> the shortest ordered list of nodes and modes |
//! | `node.rs` | pure | one node: what is granted, who waits, who is next |
//! | `deadlock.rs` | pure | who waits for whom, and the cycle if there is one |
//! | `table.rs` | shell | the live nodes: found or made, dropped when idle |
//! | `bias.rs` | shell | which nodes do not count intentions, since requests publish them |
//! | `request.rs` | shell | who asked for what, where in the source |
//! | `ledger.rs` | shell | what is granted and what waits, by request |
//! | `waiter.rs` | shell | one blocked request: grant, wake |
//! | `lock.rs` | shell | [`TreeLock`]: what a user sees |
//! | `acquire.rs` | shell | how a request is granted, and how it waits |
//! | `guard.rs` | shell | what a holder has: drop, downgrade |
//! | `inspect.rs` | data | who holds what, since when, from where |
//! | `error.rs` | data | what a request can fail with |
//! | `sync.rs` | | the one file that names primitives |
//! | `process/` | | the same contract between processes, by the pure files above and one file of events; its map is in `process/mod.rs` |
//!
//! Lock order: whose turn it is to look for deadlocks; a shard of the table; registers of the ledger in the order of their
//! numbers; a waiter.

mod acquire;
mod bias;
mod deadlock;
mod error;
mod guard;
mod inspect;
mod ledger;
mod lock;
mod mode;
mod node;
mod path;
mod plan;
#[cfg(all(feature = "process", not(feature = "model")))]
pub mod process;
mod request;
mod sync;
mod table;
mod waiter;

pub use error::{LockError, PathError};
pub use guard::{ArcTreeLockGuard, TreeLockGuard};
pub use inspect::{Deadlock, Holder, Party, Root, Snapshot, Waiter};
pub use lock::TreeLock;
pub use mode::Mode;
pub use path::{Frame, Segments, TreePath};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
