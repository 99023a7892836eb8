//! Panics that report a deadlock, where a test makes many and they are as planned.

use std::panic;
use std::sync::Once;

/// How the text of a panic begins that reports a deadlock.
pub(crate) const DEADLOCK: &str = "treelock: deadlock of ";

/// From now on nothing is printed, and nothing else is done, for those; other panics go where they went.
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
