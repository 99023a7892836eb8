//! The pure core that every scope stands on: what a request asks of which nodes, what one node grants to whom, and who
//! waits for whom.
//!
//! Nothing here blocks, is shared between threads, or reads a clock, and nothing outside of `core` is imported
//! (`tests/house.rs` says so).
//!
//! | file | concept |
//! |---|---|
//! | `path.rs` | how a path names its segments: [`TreePath`](path::TreePath) for `Path`, `str`, slices, and yours |
//! | `segments.rs` | segments become ids, and names for reports |
//! | `node_id.rs` | a node's id: a seeded hash of the way to it |
//! | `mode.rs` | IS IX S SIX X, compatible, join: the only place that knows a conflict |
//! | `plan.rs` | reads and writes -> the shortest ordered list of nodes and modes |
//! | `roots.rs` | the lists of paths that a request is made of |
//! | `owner.rs` | whose guards a request does not wait for |
//! | `node.rs` | one node: what is granted, who waits, who is next |
//! | `walk.rs` | the steps of one request, in order, and the order of those that go on together |
//! | `deadlock.rs` | who waits for whom, and the cycle if there is one |

pub(crate) mod deadlock;
pub(crate) mod mode;
pub(crate) mod node;
pub(crate) mod node_id;
pub(crate) mod owner;
pub(crate) mod path;
pub(crate) mod plan;
pub(crate) mod roots;
pub(crate) mod segments;
pub(crate) mod walk;
