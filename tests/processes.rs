//! The lock between real processes, as a user would see it: G1-G10 between them, and what happens to their files.
//!
//! The others are *agents*: this same program, started again, doing what it is told line by line; see
//! `common/talk.rs` and `processes/agent.rs`. Where a second process is not needed, the test opens the lock twice: the
//! two exclude each other as two processes do.
#![cfg(target_os = "linux")]

mod common;
#[path = "common/talk.rs"]
mod talk;

mod processes {
    pub(crate) mod agent;
    mod death;
    mod disk;
    mod exclusion;
    mod files;
    mod growth;
    mod in_the_way;
    mod waits;
}

/// What an agent runs; not a test.
#[test]
#[ignore = "is run by the other tests, as the process that they talk to"]
fn child_process() {
    processes::agent::run();
}
