//! Silences panics that report a deadlock, for tests that make many on purpose.

use std::panic;
use std::sync::Once;

/// The beginning of the text of a panic that reports a deadlock.
pub(crate) const DEADLOCK: &str = "treelock: deadlock of ";

/// From now on nothing is printed or done for those; other panics are handled as before.
pub(crate) fn quiet_about_deadlocks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !panic.payload().downcast_ref::<String>().is_some_and(|text| text.starts_with(DEADLOCK)) {
                loud(panic);
            }
        }));
    });
}
