//! The movers of the nodes of one shard: requests that were let on from a node, and have not gone on yet
//! (`core/walk.rs`).
//!
//! A change lets waiters on under the mutex of the node's shard, and there they become movers. Afterwards the thread
//! that made the change walks them on, without that mutex. Several threads may do this at once. So that the movers
//! still go on in their order, each node with movers has a *turn*: a mutex that a thread holds from before it takes
//! the first mover until the last one that it is responsible for has gone as far as it can.
//!
//! | a thread that | is responsible for |
//! |---|---|
//! | let waiters on from a node, or brought a mover there | the movers of that node up to the last of its own |
//! | comes to a node that has movers, and wants to go on | those that are there when it comes |
//! | gives up a request that is a mover | those up to that one |
//!
//! Invariants:
//!
//! 1. A node is in the list exactly while it has movers. It gets no bias meanwhile, so every request that comes finds
//!    them.
//! 2. A mover holds the step at the node, and is in no queue.
//! 3. Numbers rise for as long as the shard lives. So a thread that asks for the movers up to a number does nothing to
//!    those that came to the same node later, after the list was empty for a while.
//! 4. A thread has at most one turn, and no other internal lock when it takes it. All that it locks to walk a request
//!    on comes after the turn in the lock order, and is unlocked before the turn ends.

use crate::core::node_id::NodeId;
use crate::core::walk::Movers;
use crate::sync::Mutex;
use crate::thread::waiter::Waiter;
use std::sync::Arc;

/// The right to walk on the movers of one node.
pub(crate) type Turn = Arc<Mutex<()>>;

/// See the header. Under the mutex of the shard.
#[derive(Debug, Default)]
pub(crate) struct Moving {
    nodes: Vec<AtNode>,
    /// The number of movers so far.
    numbers: u64,
}

#[derive(Debug)]
struct AtNode {
    node: NodeId,
    movers: Movers<Arc<Waiter>>,
    turn: Turn,
}

impl Moving {
    /// Puts a request behind the movers of a node; returns its number.
    pub(crate) fn push(&mut self, node: NodeId, mover: Arc<Waiter>) -> u64 {
        self.numbers += 1;
        let number = self.numbers;
        match self.at(node) {
            Some(at) => at.movers.push(number, mover),
            None => {
                let mut movers = Movers::default();
                movers.push(number, mover);
                self.nodes.push(AtNode { node, movers, turn: Turn::default() });
            }
        }
        number
    }

    /// The number of the last mover of a node.
    #[inline]
    pub(crate) fn last(&self, node: NodeId) -> Option<u64> {
        self.nodes.iter().find(|at| at.node == node).and_then(|at| at.movers.last())
    }

    /// The right to walk on the movers of a node, unless those up to `until` have gone.
    pub(crate) fn turn(&mut self, node: NodeId, until: u64) -> Option<Turn> {
        self.at(node).filter(|at| !at.movers.have_gone(until)).map(|at| Arc::clone(&at.turn))
    }

    /// The next mover of a node up to `until`, for the thread that has the turn.
    pub(crate) fn next(&mut self, node: NodeId, until: u64) -> Option<Arc<Waiter>> {
        self.at(node)?.movers.next(until)
    }

    /// The mover that `next` returned has gone as far as it can.
    pub(crate) fn arrived(&mut self, node: NodeId) {
        if let Some(index) = self.nodes.iter().position(|at| at.node == node) {
            self.nodes[index].movers.arrived();
            if self.nodes[index].movers.is_empty() {
                self.nodes.swap_remove(index);
                // A shard keeps no room for movers that have gone (G6).
                if self.nodes.is_empty() {
                    self.nodes = Vec::new();
                }
            }
        }
    }

    fn at(&mut self, node: NodeId) -> Option<&mut AtNode> {
        self.nodes.iter_mut().find(|at| at.node == node)
    }
}
