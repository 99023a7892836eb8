//! Random histories of several owners, each outcome judged by the specification.
//!
//! Each logical thread is a real one, which takes one command at a time, so that plain guards stay where they were
//! made. `Arc` guards are handed to the test, which drops them on any thread; explicit owners go from the test to a
//! thread and back with each request. Commands are given one after the other, so the order of everything is known,
//! except for what blocked requests do by themselves.
//!
//! | | nobody blocks | some block |
//! |---|---|---|
//! | `try_lock` and its like | granted if and only if no holder conflicts (G1, G4) | the same, if no waiter conflicts |
//! | `lock` and its like | only where the specification lets it in | granted or seen waiting in a snapshot |
//! | a grant | | conflicts with no holder (G1), overtakes no waiter that it met (G3) |
//! | a waiter | | has a reason to wait (G4, G9), and goes on in the end (G2, G3) |
//! | a reported deadlock | | is a cycle of conflicts (G2) |
//! | the snapshot | shows who holds what | shows who holds what, and who waits |
//! | the end | everything is released (G7) | everything is released (G7) |
//!
//! Not seen: what happens only if two threads are inside the lock at the same moment (`stress.rs`, and loom).
//!
//! A failure shrinks, and is kept in `proptest-regressions/`; set `PROPTEST_CASES` for more of them.
#![cfg(not(feature = "model"))]

#[path = "common/deadlocks.rs"]
mod deadlocks;
#[path = "histories/history.rs"]
mod history;
#[path = "../model/spec.rs"]
mod spec;
#[path = "histories/worker.rs"]
mod worker;

use deadlocks::quiet_about_deadlocks;
use history::{History, OWNERS, Op, Seen, WORKERS, Waiting};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, prop_oneof};
use proptest::sample::select;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use std::cell::RefCell;
use std::time::Duration;
use worker::{Change, How, Kind, Paths};

/// G1, G4, G7, G8: where nobody waits, a request is granted if and only if it conflicts with no other holder.
#[test]
fn histories_without_waiting_go_as_specified() {
    let regressions = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/histories_without_waiting.txt");
    let seen = run(800, regressions, how_without_waiting(), Waiting::Never);
    assert!(seen.granted.min(seen.refused).min(seen.timed_out) > 0, "{seen:?}");
    assert_eq!(seen.waited + seen.deadlocks, 0, "{seen:?}");
}

/// G1, G2, G3, G4, G7, G9: a waiter has a reason to wait, and is served in turn.
#[test]
fn histories_with_waiting_go_as_specified() {
    let regressions = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/histories_with_waiting.txt");
    let seen = run(400, regressions, how_with_waiting(), Waiting::Sometimes);
    assert!(seen.granted.min(seen.refused).min(seen.waited).min(seen.met) > 0, "{seen:?}");
    assert!(seen.deadlocks > 0, "{seen:?}");
}

/// Runs this many histories, and returns what was seen in them.
fn run(cases: u32, regressions: &'static str, how: impl Strategy<Value = How>, waiting: Waiting) -> Seen {
    quiet_about_deadlocks();
    let default = Config::default();
    let config = Config {
        cases: if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { cases },
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(regressions))),
        max_shrink_time: 120_000,
        max_shrink_iters: 100_000,
        ..default
    };
    let seen = RefCell::new(Seen::default());
    let history = |ops| {
        let mut history = History::new(waiting);
        for op in ops {
            history.step(op);
        }
        seen.borrow_mut().add(history.finish());
        Ok(())
    };
    if let Err(failure) = TestRunner::new(config).run(&vec(op(how), 1..60), history) {
        panic!("{failure}");
    }
    let seen = seen.into_inner();
    println!("{seen:?}");
    seen
}

fn path() -> impl Strategy<Value = String> {
    let depth = prop_oneof![1 => Just(0usize), 3 => Just(1usize), 4 => Just(2usize), 3 => Just(3usize)];
    depth.prop_flat_map(|depth| vec(select(vec!["a", "b"]), depth)).prop_map(|names| names.join("/"))
}

fn paths() -> impl Strategy<Value = Paths> {
    (vec(path(), 0..=2), vec(path(), 0..=2)).prop_map(|(reads, writes)| Paths { reads, writes })
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        2 => Just(Change::Downgrade),
        2 => (0..16u8).prop_map(Change::Release),
        4 => Just(Change::Drop),
        1 => Just(Change::Unwind),
        1 => (0..WORKERS).prop_map(Change::DropAt),
    ]
}

fn op(how: impl Strategy<Value = How>) -> impl Strategy<Value = Op> {
    let kind = prop_oneof![6 => Just(Kind::Plain), 2 => Just(Kind::Arc), 3 => (0..OWNERS).prop_map(Kind::Handed)];
    let ask =
        (0..WORKERS, kind, how, paths()).prop_map(|(worker, kind, how, paths)| Op::Ask(worker, kind, how, paths));
    let change = (0..16usize, change()).prop_map(|(guard, change)| Op::Change(guard, change));
    prop_oneof![3 => ask, 2 => change]
}

fn how_without_waiting() -> impl Strategy<Value = How> {
    prop_oneof![
        8 => Just(How::Try),
        4 => Just(How::For(Duration::ZERO)),
        2 => Just(How::UntilPast),
        1 => Just(How::For(Duration::from_millis(1))),
        6 => Just(How::Lock),
    ]
}

fn how_with_waiting() -> impl Strategy<Value = How> {
    prop_oneof![
        4 => Just(How::Lock),
        2 => Just(How::LongFor),
        2 => Just(How::BriefFor),
        3 => Just(How::Try),
        1 => Just(How::For(Duration::ZERO)),
    ]
}
