//! The lock for the threads of one process: a thin blocking shell around `core/`.
//!
//! | file | concept |
//! |---|---|
//! | `lock.rs` | [`TreeLock`](lock::TreeLock): what a user sees |
//! | `lock_arc.rs` | its methods whose guards may go to other threads |
//! | `request.rs` | who asked for what, where in the source |
//! | `acquire.rs` | how a request is granted, and how it waits |
//! | `table.rs` | the live nodes: found or made, dropped when idle |
//! | `bias.rs` | which nodes do not count intentions, since requests publish them |
//! | `own.rs` | which nodes a thread takes without a shard, since it takes them again and again |
//! | `ledger.rs` | what is granted and what waits, by request |
//! | `moving.rs` | those that were let on from a node and have not gone on yet |
//! | `places.rs` | values at indices that do not change |
//! | `waiter.rs` | one blocked request: grant, wake |
//! | `guard.rs` | what a holder has: drop, downgrade, release a part |
//! | `owner.rs` | an owner that is no thread |
//! | `parties.rs` | the parties of a search for deadlocks |
//! | `report.rs` | snapshots and reports of deadlocks |
//!
//! Lock order: whose turn it is to look for deadlocks; the turn of one node's movers; shards of the table in the order of
//! their numbers; registers of the ledger in the order of theirs; a waiter.

pub(crate) mod acquire;
pub(crate) mod bias;
pub(crate) mod guard;
pub(crate) mod ledger;
pub(crate) mod lock;
mod lock_arc;
pub(crate) mod moving;
pub(crate) mod own;
pub(crate) mod owner;
mod parties;
mod places;
mod report;
pub(crate) mod request;
pub(crate) mod table;
pub(crate) mod waiter;
