//! No starvation (G3): every state that a node and a few owners can reach, and every way they can go on for ever.
//!
//! This is a model of the owners only; the node in it is the shipped one (`src/node.rs`), stepped by its own methods. Each
//! owner asks for its mode again and again, and lets go after a while; some upgrade in between. A state is the node with
//! what each owner is doing, and there are finitely many.
//!
//! *Fairness assumed*: whoever holds something and need not wait for more lets go, or asks for more, at some time. Nothing
//! else is: an owner may stop asking, and may be as quick as it likes. (That threads which were granted are scheduled at
//! all is the operating system's part.)
//!
//! *Starvation* is then a set of states that can be gone round for ever, in all of which one owner waits, while every other
//! owner that could let go does so somewhere on the way. The search finds such a set if there is one: in the graph
//! of the states in which the owner waits, a strongly connected part that is fair to all.
//!
//! The control is the same node with a barging door, where newcomers look at what is granted and overlook who waits:
//! there the search must show the starved writer, or it is blind.

use super::{Node, Stamp};
use crate::core::mode::{Mode, ModeCounts};
use Mode::{Exclusive, IntentionExclusive, IntentionShared, Shared, SharedIntentionExclusive};
use std::collections::HashMap;

/// What an owner does all its life.
#[derive(Clone, Copy, Debug)]
enum Habit {
    /// It takes the mode and lets go.
    Takes(Mode),
    /// It takes the first mode, may ask for the second one on top, and lets go of both.
    Upgrades(Mode, Mode),
    /// It takes the first mode and keeps it for ever, and takes and lets go of the second one on top.
    Keeps(Mode, Mode),
}

/// Whether newcomers respect the queue.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Door {
    Fair,
    Barging,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    Waits,
    Holds,
    WaitsForMore,
    HoldsMore,
}

/// The node, and for each owner its phase and its place in the queue.
#[derive(Clone, Debug)]
struct State {
    node: Node<usize>,
    phases: Vec<Phase>,
    stamps: Vec<Stamp>,
    next_stamp: u64,
}

type Key = (ModeCounts, Vec<Phase>, Vec<usize>);

impl Habit {
    fn modes(self) -> (Mode, Option<Mode>) {
        match self {
            Habit::Takes(mode) => (mode, None),
            Habit::Upgrades(mode, more) | Habit::Keeps(mode, more) => (mode, Some(more)),
        }
    }
}

impl State {
    fn new(owners: usize) -> Self {
        State {
            node: Node::default(),
            phases: vec![Phase::Idle; owners],
            stamps: vec![Stamp(0); owners],
            next_stamp: 1,
        }
    }

    /// The state without the numbers that grow for ever: who waits is known by rank.
    fn key(&self) -> Key {
        let waits = |owner: &usize| matches!(self.phases[*owner], Phase::Waits | Phase::WaitsForMore);
        let mut order: Vec<usize> = (0..self.phases.len()).filter(waits).collect();
        order.sort_by_key(|&owner| self.stamps[owner]);
        (self.node.granted, self.phases.clone(), order)
    }

    /// The states that the owner's next acts lead to.
    fn acts(&self, owner: usize, habits: &[Habit], door: Door) -> Vec<State> {
        let (mode, more) = habits[owner].modes();
        let mut held = ModeCounts::NONE;
        match self.phases[owner] {
            Phase::Idle => vec![self.ask(owner, mode, held, (Phase::Waits, Phase::Holds), habits, door)],
            Phase::Waits | Phase::WaitsForMore => Vec::new(),
            Phase::Holds => {
                held.add(mode);
                let phases = (Phase::WaitsForMore, Phase::HoldsMore);
                let asks = more.map(|more| self.ask(owner, more, held, phases, habits, Door::Fair));
                let keeps = matches!(habits[owner], Habit::Keeps(..));
                let releases = (!keeps).then(|| self.release(owner, &[mode], Phase::Idle));
                asks.into_iter().chain(releases).collect()
            }
            Phase::HoldsMore => {
                let more = more.expect("it asked for more");
                vec![match habits[owner] {
                    Habit::Keeps(..) => self.release(owner, &[more], Phase::Holds),
                    _ => self.release(owner, &[more, mode], Phase::Idle),
                }]
            }
        }
    }

    fn ask(
        &self,
        owner: usize,
        mode: Mode,
        held: ModeCounts,
        (waits, holds): (Phase, Phase),
        habits: &[Habit],
        door: Door,
    ) -> State {
        let mut next = self.clone();
        let barges = door == Door::Barging && self.node.granted.compatible(mode);
        let granted = if barges {
            next.node.granted.add(mode);
            true
        } else {
            next.node.try_grant(mode, &held)
        };
        if granted && door == Door::Fair && held.is_empty() {
            for (other, phase) in self.phases.iter().enumerate() {
                let asked = match phase {
                    Phase::Waits => habits[other].modes().0,
                    Phase::WaitsForMore => habits[other].modes().1.expect("it asked for more"),
                    _ => continue,
                };
                assert!(asked.compatible(mode), "{owner} overtakes {other}, who waits for {asked}");
            }
        }
        next.phases[owner] = if granted { holds } else { waits };
        if !granted {
            let stamp = Stamp(next.next_stamp);
            next.next_stamp += 1;
            let mut nobody = Vec::new();
            next.node.enqueue(stamp, mode, held, owner, &mut nobody);
            assert!(nobody.is_empty(), "who comes last lets in nobody");
            next.stamps[owner] = stamp;
        }
        next
    }

    fn release(&self, owner: usize, modes: &[Mode], then: Phase) -> State {
        let mut next = self.clone();
        next.phases[owner] = then;
        let mut due = Vec::new();
        modes.iter().for_each(|&mode| next.node.release(mode, &mut due));
        for granted in due {
            let phase = &mut next.phases[granted];
            *phase = match *phase {
                Phase::Waits => Phase::Holds,
                Phase::WaitsForMore => Phase::HoldsMore,
                other => panic!("granted to {granted}, who is {other:?}"),
            };
        }
        next
    }
}

/// All states that the owners can reach, with who acts on the way from one to the next.
struct Graph {
    states: Vec<Vec<Phase>>,
    next: Vec<Vec<(usize, usize)>>,
}

impl Graph {
    fn of(habits: &[Habit], door: Door) -> Self {
        let mut graph = Graph { states: Vec::new(), next: Vec::new() };
        let mut known: HashMap<Key, usize> = HashMap::new();
        let start = State::new(habits.len());
        known.insert(start.key(), 0);
        let mut reached = vec![start];
        while graph.next.len() < reached.len() {
            let state = reached[graph.next.len()].clone();
            let mut edges = Vec::new();
            for owner in 0..habits.len() {
                for next in state.acts(owner, habits, door) {
                    let new = reached.len();
                    let index = *known.entry(next.key()).or_insert(new);
                    if index == new {
                        reached.push(next);
                    }
                    edges.push((owner, index));
                }
            }
            graph.states.push(state.phases);
            graph.next.push(edges);
        }
        graph
    }

    /// Whether the owner can wait for ever while all others are fair, where what they keep does not exclude it.
    fn starves(&self, owner: usize) -> bool {
        let waits = |state: usize| matches!(self.states[state][owner], Phase::Waits | Phase::WaitsForMore);
        self.components(&waits).iter().any(|component| {
            let inside = |state: &usize| component.contains(state);
            let edges = || component.iter().flat_map(|&from| self.next[from].iter().filter(|(_, to)| inside(to)));
            let fair = |other: usize| {
                let holds = |&state: &usize| matches!(self.states[state][other], Phase::Holds | Phase::HoldsMore);
                !component.iter().all(holds) || edges().any(|&(actor, _)| actor == other)
            };
            edges().next().is_some() && (0..self.states[0].len()).all(fair)
        })
    }

    /// The strongly connected parts of the graph of those states (Kosaraju).
    fn components(&self, within: &dyn Fn(usize) -> bool) -> Vec<Vec<usize>> {
        let count = self.states.len();
        let mut back = vec![Vec::new(); count];
        for from in (0..count).filter(|&state| within(state)) {
            for &(_, to) in self.next[from].iter().filter(|&&(_, to)| within(to)) {
                back[to].push(from);
            }
        }
        let mut left = Vec::new();
        let mut seen = vec![false; count];
        for start in (0..count).filter(|&state| within(state)) {
            let mut stack = vec![(start, 0)];
            while let Some((at, edge)) = stack.pop() {
                if edge == 0 && std::mem::replace(&mut seen[at], true) {
                    continue;
                }
                match self.next[at].get(edge) {
                    Some(&(_, to)) => {
                        stack.push((at, edge + 1));
                        if within(to) && !seen[to] {
                            stack.push((to, 0));
                        }
                    }
                    None => left.push(at),
                }
            }
        }
        let mut taken = vec![false; count];
        let mut components = Vec::new();
        for &start in left.iter().rev() {
            let mut component = Vec::new();
            let mut stack = vec![start];
            while let Some(at) = stack.pop() {
                if !std::mem::replace(&mut taken[at], true) {
                    component.push(at);
                    stack.extend(&back[at]);
                }
            }
            if !component.is_empty() {
                components.push(component);
            }
        }
        components
    }
}

/// Every group of three owners, of any modes; nobody starves, and nobody overtakes.
#[test]
fn nobody_starves() {
    let (mut groups, mut states) = (0, 0);
    for a in Mode::ALL {
        for b in Mode::ALL {
            for c in Mode::ALL {
                let habits = [a, b, c].map(Habit::Takes);
                let graph = Graph::of(&habits, Door::Fair);
                (groups, states) = (groups + 1, states + graph.states.len());
                assert!((0..3).all(|owner| !graph.starves(owner)), "{habits:?}");
            }
        }
    }
    println!("{groups} groups of three owners, {states} states");
    assert!(states > 1_000);
}

/// A writer among three overlapping readers, and a writer below.
#[test]
fn writer_gets_in_against_a_stream_of_readers() {
    let habits = [Exclusive, Shared, Shared, Shared, IntentionExclusive].map(Habit::Takes);
    let graph = Graph::of(&habits, Door::Fair);
    println!("{} states", graph.states.len());
    assert!((0..habits.len()).all(|owner| !graph.starves(owner)));
}

/// An upgrade goes ahead of the queue, and still nobody starves, since it has to let go at last.
#[test]
fn nobody_starves_behind_an_upgrade() {
    for more in [Exclusive, SharedIntentionExclusive, Shared] {
        for a in Mode::ALL {
            for b in Mode::ALL {
                let habits = [Habit::Upgrades(IntentionShared, more), Habit::Takes(a), Habit::Takes(b)];
                let graph = Graph::of(&habits, Door::Fair);
                assert!((0..3).all(|owner| !graph.starves(owner)), "{habits:?}");
            }
        }
    }
}

/// Owners that keep a mode for ever, and nest again and again, starve nobody whom that mode does not exclude.
#[test]
fn nested_requests_starve_nobody_whom_the_outer_guard_lets_in() {
    let mut groups = 0;
    for kept in Mode::ALL {
        for more in Mode::ALL {
            for mode in Mode::ALL.into_iter().filter(|mode| mode.compatible(kept)) {
                let nests = Habit::Keeps(kept, more);
                let graph = Graph::of(&[Habit::Takes(mode), nests, nests], Door::Fair);
                assert!(!graph.starves(0), "{mode} behind {nests:?}");
                groups += 1;
            }
        }
    }
    assert_eq!(groups, 45, "nine pairs of modes are compatible");
}

/// The control: at a door that lets newcomers overlook the queue, two readers starve a writer for ever.
#[test]
fn barging_readers_starve_a_writer() {
    let habits = [Exclusive, Shared, Shared].map(Habit::Takes);
    let graph = Graph::of(&habits, Door::Barging);
    assert!(graph.starves(0), "the search is blind");
    assert!(!graph.starves(1) && !graph.starves(2));
}
