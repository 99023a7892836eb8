//! How long a request waits, and when it looks whether it is in a deadlock meanwhile; in every scope.

use std::time::{Duration, Instant};

/// What a request does when it cannot be granted at once.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    /// It is refused.
    None,
    /// It waits, until the deadline if there is one, and takes a refusal.
    Until(Option<Instant>),
    /// It waits; only what can never succeed ends it.
    Endless,
}

impl Patience {
    /// It waits for so long; for ever, if that is beyond what the clock can tell.
    pub(crate) fn within(timeout: Duration) -> Self {
        Patience::Until(Instant::now().checked_add(timeout))
    }
}

/// A nested request looks whether it is in a deadlock when it has waited for so long, and after twice as long again, and
/// so on up to the longest. (The second look matters where one party leaves the report to another.)
pub(crate) const FIRST_LOOK: Duration = Duration::from_millis(20);
pub(crate) const LONGEST_LOOK: Duration = Duration::from_millis(160);
