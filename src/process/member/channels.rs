//! The channels of a member: FIFOs by which the others wake its waiters.
//!
//! A waiter has a channel of its own while it waits. Some channels are kept for the next waiters, since a FIFO takes
//! longer to make than to use. They are few, since each is an open file (G6). A number is never reused, so a late
//! wake-up can reach only the channel that it was meant for; the next waiter there then looks once in vain.

use crate::replica::Channel;
use crate::sync::Mutex;
use rustix::fd::OwnedFd;

/// How many channels are kept at most.
const SPARES: usize = 16;

#[derive(Default)]
pub(super) struct Channels(Mutex<Pool>);

#[derive(Default)]
struct Pool {
    spare: Vec<(Channel, OwnedFd)>,
    made: Channel,
}

impl Channels {
    /// A channel that nobody waits at.
    pub(super) fn take(&self) -> Option<(Channel, OwnedFd)> {
        self.0.lock().spare.pop()
    }

    /// The number of a channel that is to be made.
    pub(super) fn next(&self) -> Channel {
        let mut pool = self.0.lock();
        pool.made += 1;
        pool.made
    }

    /// Keeps a channel for the next waiter; `false` if there are enough.
    pub(super) fn keep(&self, number: Channel, channel: OwnedFd) -> bool {
        let mut pool = self.0.lock();
        let keeps = pool.spare.len() < SPARES;
        if keeps {
            pool.spare.push((number, channel));
        }
        keeps
    }
}
