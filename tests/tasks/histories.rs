//! Random histories of futures on one thread: asked, polled, dropped, granted and released, judged by the specification.
//!
//! After each act: no two granted requests conflict (G1); a request that conflicts with nobody is granted (G4); nobody
//! waits where nothing is held; of two requests of one root each, the earlier one is served first (G3, with the exception
//! of `spec.rs`); and a future was woken once if it is granted, and else never (G9). At the end nothing is left (G7).

use super::{Calls, poll, waits};
use crate::common::assert_free;
use crate::spec::{Held, Id, Owner, Request, Verdict};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use treelock::{ArcTreeLockGuard, LockFuture, TreeLock};

const PATHS: [&str; 8] = ["", "a", "b", "a/a", "a/b", "a/b/c", "b/a", "c"];

type Lock = Arc<TreeLock<str>>;
type Future = LockFuture<Lock, Vec<&'static str>, Vec<&'static str>>;

#[derive(Clone, Debug)]
enum Act {
    Ask(Vec<&'static str>, Vec<&'static str>),
    /// With another waker, or the one that it has.
    Poll(usize, bool),
    DropFuture(usize),
    DropGuard(usize),
    Downgrade(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let paths = |most| prop::collection::vec(prop::sample::select(&PATHS[..]), 0..=most);
    let act = prop_oneof![
        6 => (paths(2), paths(2)).prop_map(|(reads, writes)| Act::Ask(reads, writes)),
        3 => prop::sample::select(&PATHS[..]).prop_map(|path| Act::Ask(vec![], vec![path])),
        3 => prop::sample::select(&PATHS[..]).prop_map(|path| Act::Ask(vec![path], vec![])),
        3 => (any::<usize>(), any::<bool>()).prop_map(|(index, other)| Act::Poll(index, other)),
        4 => any::<usize>().prop_map(Act::DropFuture),
        6 => any::<usize>().prop_map(Act::DropGuard),
        1 => any::<usize>().prop_map(Act::Downgrade),
    ];
    prop::collection::vec(act, 1..60)
}

/// A future that has been polled.
struct Asked {
    future: Future,
    id: Id,
    waker: Waker,
    calls: Arc<Calls>,
    /// What its former wakers have counted is to stay nothing.
    former: Vec<Arc<Calls>>,
    granted: bool,
}

#[derive(Default)]
struct World {
    lock: Lock,
    held: Held,
    asked: Vec<Asked>,
    guards: Vec<(Id, ArcTreeLockGuard<str>)>,
}

/// How often a future waited, was dropped while it waited, and was dropped after its grant.
static SEEN: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

fn see(what: usize) {
    SEEN[what].fetch_add(1, Ordering::Relaxed);
}

impl World {
    fn act(&mut self, act: &Act) {
        match act {
            Act::Ask(reads, writes) => {
                let request = Request::of_text(reads, writes);
                let verdict = self.held.verdict(Owner::Itself, &request);
                let mut future = self.lock.lock_arc_async(reads.clone(), writes.clone());
                let (calls, waker) = Calls::new();
                match poll(&mut future, &waker) {
                    Poll::Ready(guard) => {
                        assert_ne!(verdict, Verdict::Refused, "G1: {request:?} {}", self.lock.snapshot());
                        let id = self.held.grant(0, Owner::Itself, request);
                        self.guards.push((id, guard.expect("its paths can be used")));
                    }
                    Poll::Pending => {
                        assert_ne!(verdict, Verdict::Granted, "G4: {request:?} {}", self.lock.snapshot());
                        see(0);
                        let id = self.held.wait(0, Owner::Itself, request);
                        self.asked.push(Asked { future, id, waker, calls, former: vec![], granted: false });
                    }
                }
            }
            Act::Poll(index, other) if !self.asked.is_empty() => {
                let index = index % self.asked.len();
                let asked = &mut self.asked[index];
                if *other && !asked.granted {
                    let (calls, waker) = Calls::new();
                    asked.former.push(std::mem::replace(&mut asked.calls, calls));
                    asked.waker = waker;
                }
                if !asked.granted {
                    return waits(&mut asked.future, &asked.waker);
                }
                let mut asked = self.asked.swap_remove(index);
                let Poll::Ready(Ok(guard)) = poll(&mut asked.future, &asked.waker) else { panic!("it was woken") };
                self.guards.push((asked.id, guard));
            }
            Act::DropFuture(index) if !self.asked.is_empty() => {
                let asked = self.asked.swap_remove(index % self.asked.len());
                match asked.granted {
                    true => drop((see(2), self.held.release(asked.id))),
                    false => drop((see(1), self.held.stop_waiting(asked.id))),
                }
            }
            Act::DropGuard(index) if !self.guards.is_empty() => {
                let (id, guard) = self.guards.swap_remove(index % self.guards.len());
                self.held.release(id);
                drop(guard);
            }
            Act::Downgrade(index) if !self.guards.is_empty() => {
                let (id, guard) = self.guards.swap_remove(index % self.guards.len());
                self.held.downgrade(id);
                self.guards.push((id, guard.downgrade()));
            }
            _ => {}
        }
    }

    fn check(&mut self) {
        for asked in &mut self.asked {
            assert!(asked.former.iter().all(|calls| calls.count() == 0), "a waker that was replaced was woken");
            assert!(asked.calls.count() <= 1, "G9: it was woken twice");
            if asked.calls.count() == 1 && !asked.granted {
                asked.granted = true;
                let party = self.held.stop_waiting(asked.id);
                let earlier = self.held.waiters.range(..asked.id).map(|(_, earlier)| &earlier.request);
                for earlier in earlier {
                    let one_root = |request: &Request| request.reads.len() + request.writes.len() == 1;
                    let may_pass = !earlier.writes.is_empty() && party.request.writes.is_empty();
                    let both_of_one = one_root(earlier) && one_root(&party.request);
                    assert!(
                        !both_of_one || may_pass || !earlier.conflicts_with(&party.request),
                        "G3: {:?} before {earlier:?}",
                        party.request
                    );
                }
                let id = self.held.grant(0, party.owner, party.request);
                asked.id = id;
            }
        }
        for (id, holder) in &self.held.holders {
            let others = self.held.holders.range(id..).skip(1).map(|(_, other)| &other.request);
            others.for_each(|other| {
                assert!(!holder.request.conflicts_with(other), "G1: {:?} {other:?}", holder.request)
            });
        }
        for (id, waiter) in &self.held.waiters {
            let mut others = self.held.clone();
            others.stop_waiting(*id);
            let verdict = others.verdict(Owner::Itself, &waiter.request);
            assert_ne!(verdict, Verdict::Granted, "G4: {:?} {}", waiter.request, self.lock.snapshot());
        }
        assert!(!self.held.holders.is_empty() || self.held.waiters.is_empty(), "they wait for nothing");
    }
}

#[test]
fn futures_that_are_polled_and_dropped_at_random() {
    let config = ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(acts in acts())| {
        let mut world = World::default();
        for act in &acts {
            world.act(act);
            world.check();
        }
        let World { lock, asked, guards, .. } = world;
        drop(asked);
        drop(guards);
        assert_free(&lock, "");
        assert!(lock.snapshot().holders.is_empty());
    });
    let [waited, dropped, dropped_late] = [0, 1, 2].map(|what| SEEN[what].load(Ordering::Relaxed));
    println!("{waited} futures waited, {dropped} were dropped while they did, {dropped_late} after their grant");
    assert!(waited > 1_000 && dropped > 500 && dropped_late > 100, "{SEEN:?}");
}
