//! The lock for the threads of one process: a thin blocking shell around `core/`.
//!
//! | file | concept |
//! |---|---|
//! | `lock.rs` | [`TreeLock`](lock::TreeLock): the public type |
//! | `request.rs` | who asked for what, and where in the source |
//! | `acquire.rs` | how a request is granted, and how it waits |
//! | `table.rs` | the live nodes: found or made, dropped when idle |
//! | `bias.rs` | which nodes do not count intentions, because requests publish them in the ledger |
//! | `own.rs` | which nodes a thread takes without locking a shard, because it takes them again and again |
//! | `ledger.rs` | what is granted and what waits, by request |
//! | `moving.rs` | movers: requests that a node has let on and that have not gone on yet |
//! | `places.rs` | values at stable indices |
//! | `waiter.rs` | one blocked request, of a thread or a task: grant, wake |
//! | `guard.rs` | guards: drop, downgrade, release a part |
//! | `task.rs` | futures: how a task asks and waits |
//! | `owner.rs` | explicit owners, which are not threads |
//! | `parties.rs` | the parties of a search for deadlocks |
//! | `report.rs` | snapshots and reports of deadlocks |
//!
//! Lock order: the turn to look for deadlocks; the turn of one node's movers; the shards of the table, by number; the
//! registers of the ledger, by number; a waiter.

pub(crate) mod acquire;
pub(crate) mod bias;
pub(crate) mod guard;
pub(crate) mod ledger;
pub(crate) mod lock;
pub(crate) mod moving;
pub(crate) mod own;
pub(crate) mod owner;
mod parties;
mod places;
mod report;
pub(crate) mod request;
pub(crate) mod table;
#[cfg(feature = "async")]
pub(crate) mod task;
pub(crate) mod waiter;
