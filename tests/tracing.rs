//! The events of the feature `tracing`, and that a subscriber that panics does no harm.
#![cfg(not(feature = "model"))]

mod common;

use common::{LIMIT, Other, admits, join, panic_message, spawn, wait_until_thread_waits};
use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber, subscriber};
use treelock::LockError;

/// Keeps the events of this crate as text, or panics at each.
#[derive(Clone, Default)]
struct Listener {
    told: Arc<Mutex<Vec<(Level, String)>>>,
    panics: bool,
}

impl Listener {
    /// The events while something runs in this thread.
    fn hears(run: impl FnOnce()) -> Vec<(Level, String)> {
        let listener = Listener::default();
        subscriber::with_default(listener.clone(), run);
        let told = listener.told.lock().unwrap();
        told.clone()
    }
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "treelock"
    }

    fn event(&self, event: &Event<'_>) {
        assert!(!self.panics, "as it was told");
        struct Text(String);
        impl Visit for Text {
            fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
                write!(self.0, "{field}={value:?} ").unwrap();
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.told.lock().unwrap().push((*event.metadata().level(), text.0));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Longer than the least wait that is reported, whatever the step of the clock.
const LONG: Duration = Duration::from_millis(1100);

/// Waits for what another thread holds, which releases it when this thread has waited for this long.
fn waits_for(time: Duration, name: &str, lock: &Arc<treelock::TreeLock>, ask: impl FnOnce()) {
    let other = Other::holds(lock, &[], &["a"]);
    let (lock, name) = (Arc::clone(lock), name.to_owned());
    let releases = spawn("releases", move || {
        wait_until_thread_waits(&lock, &name);
        let waits = Instant::now();
        common::wait_until("time has passed", || waits.elapsed() >= time);
        other.releases();
    });
    ask();
    join(releases);
}

/// The name of the thread that runs a test.
fn own_name() -> String {
    std::thread::current().name().unwrap().to_owned()
}

#[test]
fn a_long_wait_is_told_when_it_has_ended_and_a_short_one_is_not() {
    let lock = common::new();
    let line = line!() + 2;
    let told = Listener::hears(|| {
        let ask = || drop(lock.lock(&["a/b", "1", "2", "3", "4"], &["c"]));
        waits_for(LONG, &own_name(), &lock, ask);
        waits_for(Duration::ZERO, &own_name(), &lock, || drop(lock.write("a")));
        drop(lock.write("a"));
    });
    let [(level, text)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(*level, Level::INFO);
    for part in [r#"reads=["a/b", "1", "2", and 2 more]"#, r#"writes=["c"]"#, "granted", "seconds=1."] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    assert!(text.contains(&format!("location={}:{line}:", file!())), "{text}");
}

#[test]
fn a_long_wait_that_times_out_is_told() {
    let lock = common::new();
    let _held = Other::holds(&lock, &["a"], &[]);
    let told = Listener::hears(|| drop(lock.try_write_arc_for("a", LONG)));
    let [(_, text)] = &told[..] else { panic!("{told:?}") };
    assert!(text.contains(r#"writes=["a"]"#) && text.contains("the deadline passed"), "{text}");
}

#[test]
fn a_deadlock_is_told_with_its_report() {
    let lock = common::new();
    let _held = lock.write("a");
    let mut report = String::new();
    let told = Listener::hears(|| match lock.try_read_arc_for("a/b", LIMIT) {
        Err(LockError::Deadlock(deadlock)) => report = deadlock.to_string(),
        other => panic!("{other:?}"),
    });
    let [(level, text)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(*level, Level::WARN);
    assert!(text.contains(&report), "{text}");
}

/// G8.
#[test]
fn a_subscriber_that_panics_leaves_the_lock_free() {
    let lock = common::new();
    let listener = Listener { panics: true, ..Listener::default() };
    let message = panic_message(|| {
        subscriber::with_default(listener, || {
            waits_for(LONG, &own_name(), &lock, || drop(lock.write("a")));
        });
    });
    assert_eq!(message, "as it was told");
    common::wait_until("the other has let go", || admits(&lock, &[], &["a"]));
    common::assert_free(&lock, "".as_ref());
}

#[cfg(all(feature = "process", target_os = "linux"))]
#[test]
fn a_long_wait_between_processes_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let open = || treelock::process::ProcessTreeLock::open(directory.path()).unwrap();
    let (lock, other) = (open(), open());
    let held = other.write_arc("a").unwrap();
    let observer = open();
    let releases = spawn("releases", move || {
        common::wait_until("it waits", || !observer.snapshot().unwrap().waiters.is_empty());
        let waits = Instant::now();
        common::wait_until("time has passed", || waits.elapsed() >= LONG);
        drop(held);
    });
    let told = Listener::hears(|| drop(lock.read("a/b").unwrap()));
    join(releases);
    let [(_, text)] = &told[..] else { panic!("{told:?}") };
    assert!(text.contains(r#"reads=["a/b"]"#) && text.contains("granted"), "{text}");
}
