//! The lock between machines, over real servers that the tests start and end.
//!
//! | file | question |
//! |---|---|
//! | `bucket.rs`, `bucket_loss.rs` | buckets; what becomes of guards when one loses objects |
//! | `cluster.rs`, `sentinel.rs` | is the server found that has a namespace, and do guards survive when another one takes its place? |
//! | `conformance.rs` | does an engine keep the contract? One list of tests for all engines |
//! | `death.rs` | what is left of a process that is killed or stopped, and who is told |
//! | `dynamodb.rs` | what becomes of requests when DynamoDB throttles them, or loses items |
//! | `listening.rs` | what becomes of a waiter whose connection is cut while it listens |
//! | `loss.rs` | what becomes of guards when the server loses data, or is full, or holds something foreign |
//! | `memcached.rs` | what becomes of guards when a Memcached server forgets what it has |
//! | `network.rs` | what becomes of requests when the server, or the way to it, stops for a while |
//! | `refusals.rs` | what is told by a server that refuses or is away, and what rights does a user need? |
//! | `replicas.rs` | is nothing granted that replicas have not acknowledged? |
//! | `s3.rs` | a server that speaks S3 |
//! | `storm.rs` | five hundred processes killed at random moments |
//! | `tasks.rs` | how do tasks wait beside threads, and what do they leave? |
//! | `tls.rs` | whose certificates are trusted, and who must show one? |
//! | `postgres.rs` | what becomes of guards when a database loses data, is restarted, stopped or refuses |
//! | `agent.rs`, `proxy.rs`, `server.rs` | other processes, with `common/talk.rs`; a way to the server that can be cut; the server, as `common/database.rs`, `common/dynamodb_local.rs`, `common/memcached.rs` |

mod agent;
#[cfg(feature = "object-store")]
mod bucket;
#[cfg(feature = "object-store")]
mod bucket_loss;
#[cfg(feature = "memcached")]
#[path = "../common/memcached.rs"]
mod cache;
mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod conformance;
#[cfg(feature = "postgres")]
#[path = "../common/database.rs"]
mod database;
mod death;
#[cfg(feature = "dynamodb")]
mod dynamodb;
#[cfg(feature = "dynamodb")]
#[path = "../common/dynamodb_local.rs"]
mod dynamodb_local;
mod listening;
mod loss;
#[cfg(feature = "memcached")]
mod memcached;
mod network;
#[cfg(feature = "postgres")]
mod postgres;
mod proxy;
mod refusals;
mod replicas;
#[cfg(feature = "object-store-s3")]
mod s3;
mod sentinel;
mod server;
mod storm;
#[path = "../common/talk.rs"]
mod talk;
#[cfg(feature = "async")]
mod tasks;
#[cfg(feature = "redis-tls")]
mod tls;

/// What an agent runs; not a test.
#[test]
#[ignore = "is run by the other tests, as the process that they talk to"]
fn child_process() {
    agent::run();
}
