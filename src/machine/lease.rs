//! Until when what a session holds is held, by this machine's own monotonic clock.
//!
//! An engine ends a session one time to live after it has heard the last call. The client counts from before it sent that call,
//! and takes off a margin for clocks that run at different speeds: so its own end comes first (invariant 3 of `machine/mod.rs`).
//!
//! ```text
//!  client   sent ───────────── ends ┆ margin
//!  engine        heard ─────────────────── buries
//! ```
//!
//! A lease that has ended never comes back, also if the engine has not buried the session yet: somebody may have seen the end.

use crate::sync::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

type Callback = Box<dyn FnOnce() + Send>;

/// The end of a lease that is lost: before everything.
const LOST: u64 = 0;

/// Set when somebody has seen the end, which is final then: a renewal may be on its way that looked at the clock before.
const SEEN: u64 = 1 << 63;

/// The lease of one session.
pub(crate) struct Lease {
    /// What moments are counted from.
    base: Instant,
    /// Microseconds since then, or [`LOST`].
    end: AtomicU64,
    /// Whom to tell of the loss, by the numbers of their requests; `None` when they have been told.
    callbacks: Mutex<Option<Vec<(u64, Callback)>>>,
}

impl Lease {
    /// One that ends at the moment it begins, until it is renewed.
    pub(crate) fn new(base: Instant, end: Instant) -> Self {
        let end = AtomicU64::new(Self::since(base, end).max(LOST + 1));
        Lease { base, end, callbacks: Mutex::new(Some(Vec::new())) }
    }

    fn since(base: Instant, moment: Instant) -> u64 {
        moment.saturating_duration_since(base).as_micros() as u64
    }

    /// When a session ends by this clock that was renewed by a call sent at a moment.
    pub(crate) fn end_by(sent: Instant, time_to_live: Duration, margin: Duration) -> Instant {
        sent + time_to_live.saturating_sub(margin)
    }

    /// Moves the end; `false` if that has passed.
    pub(crate) fn renew(&self, now: Instant, end: Instant) -> bool {
        let (now, end) = (Self::since(self.base, now), Self::since(self.base, end));
        let renewed = self.end.fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| {
            (old & SEEN == 0 && now < old).then_some(old.max(end))
        });
        renewed.is_ok()
    }

    pub(crate) fn end(&self) -> Instant {
        self.base + Duration::from_micros(self.end.load(Ordering::Acquire) & !SEEN)
    }

    pub(crate) fn is_valid_at(&self, now: Instant) -> bool {
        let now = Self::since(self.base, now);
        let is_over = |end: u64| end & SEEN != 0 || end <= now;
        let see = |end: u64| is_over(end).then_some(end | SEEN);
        !is_over(self.end.load(Ordering::Acquire))
            || self.end.fetch_update(Ordering::AcqRel, Ordering::Acquire, see).is_err()
    }

    /// Has it called when the lease is lost; at once if it is.
    pub(crate) fn on_lost(&self, request: u64, callback: Callback) {
        if let Some(callbacks) = &mut *self.callbacks.lock() {
            return callbacks.push((request, callback));
        }
        callback();
    }

    /// Forgets whom to tell for a request that is released.
    pub(crate) fn forget(&self, request: u64) {
        let mut callbacks = self.callbacks.lock();
        let Some(all) = &mut *callbacks else { return };
        let (dropped, kept): (Vec<_>, Vec<_>) = std::mem::take(all).into_iter().partition(|(of, _)| *of == request);
        *all = kept;
        // What they have is dropped when nothing is locked.
        drop(callbacks);
        drop(dropped);
    }

    /// Ends it, and tells all who want to know; once.
    pub(crate) fn lose(&self) {
        self.end.store(LOST, Ordering::Release);
        let callbacks = self.callbacks.lock().take();
        for (_, callback) in callbacks.into_iter().flatten() {
            // A panic of one is not to keep the others from being told, nor to end the thread that tells them.
            let _ = catch_unwind(AssertUnwindSafe(callback));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody may have seen the end; so it is the end.
    #[test]
    fn lease_that_has_ended_never_comes_back() {
        let base = Instant::now();
        let at = |millis| base + Duration::from_millis(millis);
        let lease = Lease::new(base, at(10));
        assert!(lease.is_valid_at(at(9)) && lease.renew(at(9), at(20)));
        assert!(lease.is_valid_at(at(19)) && !lease.is_valid_at(at(20)));
        assert!(!lease.renew(at(20), at(30)) && !lease.is_valid_at(at(25)));
        let lost = Lease::new(base, at(10));
        lost.lose();
        assert!(!lost.is_valid_at(base) && !lost.renew(at(1), at(30)) && !lost.is_valid_at(at(2)));
    }

    /// An answer to an earlier call may come later.
    #[test]
    fn renewal_never_shortens_a_lease() {
        let base = Instant::now();
        let at = |millis| base + Duration::from_millis(millis);
        let lease = Lease::new(base, at(10));
        assert!(lease.renew(at(1), at(20)) && lease.renew(at(2), at(15)));
        assert_eq!(lease.end(), at(20));
    }
}
