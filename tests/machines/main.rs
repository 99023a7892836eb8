//! The lock between machines, over real servers that the tests start and end.
//!
//! | file | question |
//! |---|---|
//! | `cluster.rs`, `sentinel.rs` | is the server found that has a namespace, and do guards survive when another one takes its place? |
//! | `conformance.rs` | does an engine keep the contract? One list of tests for all engines |
//! | `death.rs` | what is left of a process that is killed or stopped, and who is told |
//! | `listening.rs` | what becomes of a waiter whose connection is cut while it listens |
//! | `loss.rs` | what becomes of guards when the server loses data, or is full, or holds something foreign |
//! | `bucket.rs`, `bucket_loss.rs` | buckets for the kit; what becomes of guards when a bucket loses objects, or a process dies |
//! | `network.rs` | what becomes of requests when the server, or the way to it, stops for a while |
//! | `refusals.rs` | what is told by a server that refuses or is away, and what rights does a user need? |
//! | `replicas.rs` | is nothing granted that replicas have not acknowledged? |
//! | `s3.rs` | a server that speaks S3 |
//! | `storm.rs` | five hundred processes killed at random moments |
//! | `tls.rs` | whose certificates are trusted, and who must show one? |
//! | `agent.rs`, `proxy.rs`, `server.rs` | other processes, with `common/talk.rs`; a way to the server that can be cut; the server |

#[cfg(any(feature = "object-store", feature = "redis"))]
mod agent;
#[cfg(feature = "object-store")]
mod bucket;
#[cfg(feature = "object-store")]
mod bucket_loss;
#[cfg(feature = "redis")]
mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod conformance;
#[cfg(feature = "redis")]
mod death;
#[cfg(feature = "redis")]
mod listening;
#[cfg(feature = "redis")]
mod loss;
#[cfg(feature = "redis")]
mod network;
#[cfg(feature = "redis")]
mod proxy;
#[cfg(feature = "redis")]
mod refusals;
#[cfg(feature = "redis")]
mod replicas;
#[cfg(feature = "object-store-s3")]
mod s3;
#[cfg(feature = "redis")]
mod sentinel;
#[cfg(feature = "redis")]
mod server;
#[cfg(feature = "redis")]
mod storm;
#[cfg(any(feature = "object-store", feature = "redis"))]
#[path = "../common/talk.rs"]
mod talk;
#[cfg(feature = "redis-tls")]
mod tls;

/// What an agent runs; not a test.
#[cfg(any(feature = "object-store", feature = "redis"))]
#[test]
#[ignore = "is run by the other tests, as the process that they talk to"]
fn child_process() {
    agent::run();
}
