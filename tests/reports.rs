//! What a report of a deadlock says (G2).
#![cfg(not(feature = "model"))]

mod common;

use common::{LIMIT, join, only_report, panic_message, report_of, spawn};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use treelock::{Deadlock, LockError, LockOwner, Mode, TreeLock};

/// Replaces the lines and columns of this file, which change with every edit.
fn without_places(text: &str) -> String {
    let mut parts = text.split("tests/reports.rs:");
    let head = parts.next().unwrap().to_owned();
    parts.fold(head, |text, part| {
        text + "HERE" + part.trim_start_matches(|char: char| char.is_ascii_digit() || char == ':')
    })
}

/// G2: a thread's own plain guard excludes its `Arc` request, and no other thread can end that.
#[test]
fn a_thread_that_waits_for_itself_is_told_so() {
    let lock = common::new();
    let _held = lock.write("a");
    let refused = lock.try_lock_arc_for(&["a/b"], &[], LIMIT);
    let Err(LockError::Deadlock(report)) = refused else { panic!("{refused:?}") };
    assert_eq!(report.parties.len(), 1);
    let name = std::thread::current().name().unwrap().to_owned();
    assert_eq!(
        without_places(&report.to_string()),
        format!(
            "deadlock of a thread with itself:\n  \
               \"{name}\" waits for IS a (asked for S a/b at HERE)\n    \
                 and holds X a (taken at HERE)"
        )
    );
}

/// G2: `lock` returns no error: it panics with the same report, and with advice.
#[test]
fn lock_panics_where_it_can_never_return() {
    let lock = common::new();
    let held = lock.read("a");
    let message = panic_message(|| drop(lock.lock_arc(&[], &["a"])));
    let message = without_places(&message);
    assert!(message.starts_with("treelock: deadlock of a thread with itself:\n"), "{message}");
    assert!(message.contains("waits for X a (asked for X a at HERE)"), "{message}");
    assert!(message.contains("and holds S a (taken at HERE)"), "{message}");
    assert!(message.contains("one request") && message.contains("try_lock_for"), "{message}");
    drop(held);
    common::assert_free(&lock, "".as_ref());
}

/// G2: who, what it waits for, what it asked for, what it holds, and where in the source.
#[test]
fn a_report_names_what_each_holds_and_waits_for_and_where_it_asked() {
    let lock = common::new();
    let together = Arc::new(Barrier::new(2));
    let taken = line!() + 5;
    let asked = line!() + 6;
    let parties = [("left", "a", "b/x"), ("right", "b", "a/y")].map(|(name, first, second)| {
        let (lock, together) = (Arc::clone(&lock), Arc::clone(&together));
        spawn(name, move || {
            let _first = lock.write(first);
            together.wait();
            report_of(lock.try_lock_for(&["c"], &[second], LIMIT))
        })
    });
    let report = only_report(parties);
    for party in &report.parties {
        let (holds, asks) = if party.waits.thread == "left" { ("a", ["b", "x"]) } else { ("b", ["a", "y"]) };
        assert_eq!(party.waits.at.segments, asks[..1]);
        assert_eq!(party.waits.at.mode, Mode::IntentionExclusive);
        let roots: Vec<(&[String], Mode)> =
            party.waits.roots.iter().map(|root| (&*root.segments, root.mode)).collect();
        assert_eq!(roots, [(&["c".into()][..], Mode::Shared), (&asks.map(String::from)[..], Mode::Exclusive)]);
        assert!(party.waits.location.starts_with(&format!("{}:{asked}:", file!())), "{party:?}");
        let [hold] = &party.holds[..] else { panic!("{party:?}") };
        assert_eq!((&hold.thread, &*hold.roots[0].segments), (&party.waits.thread, &[holds.to_owned()][..]));
        assert_eq!((hold.roots[0].mode, hold.roots.len()), (Mode::Exclusive, 1));
        assert!(hold.location.starts_with(&format!("{}:{taken}:", file!())), "{party:?}");
        assert!(hold.since <= party.waits.since);
    }
    let text = without_places(&report.to_string());
    let left = "\"left\" waits for IX b (asked for X b/x, S c at HERE)\n    and holds X a (taken at HERE)\n    behind \"right\"";
    let right = "\"right\" waits for IX a (asked for X a/y, S c at HERE)\n    and holds X b (taken at HERE)\n    behind \"left\"";
    let (first, second) = if report.parties[0].waits.thread == "left" { (left, right) } else { (right, left) };
    assert_eq!(text, format!("deadlock of 2 threads:\n  {first}\n  {second}"));
}

/// The report of two owners that each ask for what the other has taken.
fn report_of_two_owners(lock: &Arc<TreeLock>, take: fn(&mut LockOwner, &'static str)) -> Deadlock {
    let together = Arc::new(Barrier::new(2));
    only_report([("a", "b"), ("b", "a")].map(|(first, second)| {
        let (mut owner, together) = (lock.owner(), Arc::clone(&together));
        spawn("worker", move || {
            take(&mut owner, first);
            together.wait();
            report_of(owner.write(second))
        })
    }))
}

/// G2: an owner is known by its name, since any thread may ask for it.
#[test]
fn a_report_and_a_snapshot_name_owners() {
    let lock = common::new();
    let report = report_of_two_owners(&lock, |owner, first| {
        if first == "a" {
            owner.set_name("nobody");
            owner.set_name("ada");
        }
        let _first = owner.lock(&[], &[first]).unwrap();
    });
    let text = report.to_string();
    assert!(text.starts_with("deadlock of 2 owners:\n"), "{text}");
    assert!(text.contains("owner \"ada\" waits for X b") && text.contains("behind owner \"unnamed-"), "{text}");
    let is_ada = |party: &&treelock::Party| party.waits.owner.as_deref() == Some("ada");
    let ada = report.parties.iter().find(is_ada).unwrap();
    assert_eq!((ada.holds[0].owner.as_deref(), &*ada.holds[0].thread), (Some("ada"), "worker"));

    let mut owner = lock.owner();
    let _held = owner.read("c").unwrap();
    let of_thread = lock.read("c");
    let [named, plain] = [0, 1].map(|index| lock.snapshot().holders[index].owner.clone());
    assert!(named.is_some_and(|name| name.starts_with("unnamed-")) && plain.is_none());
    owner.set_name("bob");
    assert!(lock.snapshot().to_string().contains("S    held by owner \"bob\" since"));
    drop((owner, of_thread));
    common::assert_free(&lock, "".as_ref());
}

/// Of many roots, those are told first for which it waits where it does.
#[test]
fn a_waiter_on_its_way_to_many_roots_tells_those_that_explain_its_wait() {
    let lock = common::new();
    let held = lock.read("hot");
    let waits = common::Other::waits(&lock, &["a", "b", "c", "hot/x"], &["hot/y", "d"]);
    let drawn = lock.snapshot().to_string();
    assert!(drawn.contains("on its way to X hot/y, S a, S b and 3 more, asked for"), "{drawn}");
    drop(held);
    waits.releases();
}

/// What an owner has taken many times at one place is one line.
#[test]
fn a_report_folds_what_is_held_alike() {
    let report = report_of_two_owners(&common::new(), |owner, first| {
        let _first = [0; 12].map(|_| owner.read(first).unwrap());
    });
    let text = report.to_string();
    assert_eq!(text.matches("and holds").count(), 2, "{text}");
    assert_eq!(text.matches(", 12 times)").count(), 2, "{text}");
}

/// G2: for each party of a longer cycle, the guards that hold up the party before it; no guard elsewhere, and no
/// `Arc` guard.
#[test]
fn a_report_names_no_guards_but_those_that_hold_up_the_one_before() {
    let lock = common::new();
    let together = Arc::new(Barrier::new(3));
    let paths = ["a", "b", "c"];
    let report = only_report((0..3).map(|number| {
        let (lock, together) = (Arc::clone(&lock), Arc::clone(&together));
        spawn(paths[number], move || {
            let _holds_up = lock.read(paths[number]);
            let _elsewhere = lock.write(["x", "y", "z"][number]);
            let _anybodys = lock.lock_arc(&[paths[number]], &[]);
            together.wait();
            report_of(lock.try_lock_for(&[], &[paths[(number + 1) % 3]], LIMIT))
        })
    }));
    assert_eq!(report.parties.len(), 3);
    for party in &report.parties {
        let [hold] = &party.holds[..] else { panic!("{report}") };
        assert_eq!(hold.thread, party.waits.thread);
        assert_eq!(hold.roots[0].to_string(), format!("S {}", party.waits.thread));
    }
}

/// G2, G8: if all of them called `lock`, one panics, which releases what it held, and the others go on.
#[test]
fn one_of_several_in_lock_panics_and_frees_the_others() {
    let lock = common::new();
    let together = Arc::new(Barrier::new(3));
    let paths = ["a", "b", "c"];
    let parties: Vec<_> = (0..3)
        .map(|number| {
            let (lock, together) = (Arc::clone(&lock), Arc::clone(&together));
            spawn(&format!("t{number}"), move || {
                let _first = lock.write(paths[number]);
                together.wait();
                drop(lock.write(paths[(number + 1) % 3]));
            })
        })
        .collect();
    common::wait_until("all have ended", || parties.iter().all(JoinHandle::is_finished));
    let messages: Vec<String> = parties
        .into_iter()
        .filter_map(|party| party.join().err())
        .map(|panic| *panic.downcast::<String>().expect("it says why"))
        .collect();
    let [message] = &messages[..] else { panic!("{messages:?}") };
    assert!(message.starts_with("treelock: deadlock of 3 threads:\n"), "{message}");
    assert!(
        ["t0", "t1", "t2"].iter().all(|thread| message.contains(&format!("\"{thread}\" waits for"))),
        "{message}"
    );
    common::assert_free(&lock, "".as_ref());
}

/// G2: a request that waits half way holds what it has taken so far.
#[test]
fn a_report_names_what_a_request_that_waits_half_way_holds() {
    let lock = common::new();
    let deep = lock.write("x/y");
    let (refused, half_way) = common::refused_by_one_half_way(&lock);
    drop(deep);
    join(half_way);
    let LockError::Deadlock(report) = refused else { panic!("{refused:?}") };
    let holds: Vec<String> =
        report.parties[1].holds.iter().flat_map(|hold| &hold.roots).map(ToString::to_string).collect();
    assert_eq!(holds, ["X a"], "{report}");
}
