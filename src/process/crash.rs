//! The steps at which a process may die. In tests, a process kills itself at the step that the environment names
//! (`deaths.rs`).
//!
//! Each change of anything that other processes see is a step, and so is each half of a write. Shipped code has no steps.

#[cfg(not(test))]
#[inline(always)]
pub(super) fn step() {}

#[cfg(test)]
pub(super) use counted::{STEP, step};

#[cfg(test)]
mod counted {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Names the step at which a process is to die.
    pub(in crate::process) const STEP: &str = "TREELOCK_DIES_AT_STEP";

    static STEPS: AtomicU64 = AtomicU64::new(0);

    pub(in crate::process) fn step() {
        static LAST: OnceLock<Option<u64>> = OnceLock::new();
        let last = *LAST.get_or_init(|| std::env::var(STEP).ok()?.parse().ok());
        if Some(STEPS.fetch_add(1, Ordering::SeqCst)) == last {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}
