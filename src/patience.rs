//! How long a request waits, and when it looks for a deadlock meanwhile; the same in every scope.

use std::time::{Duration, Instant};

/// What a request does when it cannot be granted at once.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    /// It is refused.
    None,
    /// It waits, until the deadline if there is one, and may be refused.
    Until(Option<Instant>),
    /// It waits; it ends without a grant only if it can never succeed.
    Endless,
}

impl Patience {
    /// It waits this long; for ever, if the deadline is beyond what the clock can represent.
    pub(crate) fn within(timeout: Duration) -> Self {
        Patience::Until(Instant::now().checked_add(timeout))
    }
}

/// A nested request first looks for a deadlock when it has waited this long, and again after twice as long, and so on
/// up to the longest. (The second look matters where one party leaves the report to another.)
pub(crate) const FIRST_LOOK: Duration = Duration::from_millis(20);
const LONGEST_LOOK: Duration = Duration::from_millis(160);

/// How long a request waits for its next look, after it has waited this long for one.
pub(crate) fn next_look(last: Duration) -> Duration {
    (last * 2).min(LONGEST_LOOK)
}
