//! The channels of a member: FIFOs by which the others wake its waiters.
//!
//! A waiter has a channel of its own while it waits. The channel is kept for the next waiter afterwards, since a FIFO takes
//! longer to make than to use. A number is never given again, so a wake-up that comes late can reach only the same
//! channel, whose next waiter looks once in vain.

use crate::process::replica::Channel;
use crate::sync::Mutex;
use rustix::fd::OwnedFd;

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

    /// Keeps a channel for the next waiter.
    pub(super) fn keep(&self, number: Channel, channel: OwnedFd) {
        self.0.lock().spare.push((number, channel));
    }
}
