//! The pure core that every scope uses: which modes a request asks for on which nodes, what a node grants to which
//! request, and which request waits for which.
//!
//! Nothing here blocks, is shared between threads, or reads a clock, and nothing outside of `core` is imported
//! (`tests/house.rs` checks that).
//!
//! | file | concept |
//! |---|---|
//! | `path.rs` | how a path names its segments: [`TreePath`](path::TreePath) for `Path`, `str`, slices, and your own types |
//! | `segments.rs` | segments become ids, and names for reports |
//! | `node_id.rs` | a node's id: a seeded hash of the path to it |
//! | `mode.rs` | IS IX S SIX X, compatible, join: the only place that knows a conflict |
//! | `plan.rs` | reads and writes -> the shortest ordered list of nodes and modes |
//! | `roots.rs` | the lists of paths that a request is made of |
//! | `owner.rs` | owners: a request does not wait for the guards of its own |
//! | `node.rs` | one node: what is granted, which requests wait, which is next |
//! | `walk.rs` | the steps of one request, in order, and the order of requests that go on together |
//! | `deadlock.rs` | which request waits for which, and the cycle if there is one |

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
