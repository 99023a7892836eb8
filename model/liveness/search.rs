//! The graph of all states, and whether an owner can be kept waiting for ever in it: it can if the graph of the
//! states in which it waits has a strongly connected part that is fair to all.

use super::{Door, Habit, Key, Overtake, Phase, State, Walk};
use std::collections::{HashMap, HashSet};

/// All states that the owners can reach, and which owner acts on the way from one to the next.
pub(super) struct Graph {
    pub(super) states: Vec<Vec<Phase>>,
    next: Vec<Vec<(usize, usize)>>,
    pub(super) overtakes: HashSet<Overtake>,
}

impl Graph {
    pub(super) fn of(habits: &[Habit], door: Door, walk: Walk) -> Self {
        let mut graph = Graph { states: Vec::new(), next: Vec::new(), overtakes: HashSet::new() };
        let mut known: HashMap<Key, usize> = HashMap::new();
        let start = State::new(habits, door, walk);
        known.insert(start.key(), 0);
        let mut reached = vec![start];
        while graph.next.len() < reached.len() {
            let state = reached[graph.next.len()].clone();
            let mut edges = Vec::new();
            for owner in 0..habits.len() {
                for mut next in state.acts(owner) {
                    graph.overtakes.extend(next.overtakes.drain(..));
                    let new = reached.len();
                    let index = *known.entry(next.key()).or_insert(new);
                    if index == new {
                        reached.push(next);
                    }
                    edges.push((owner, index));
                }
            }
            graph.states.push(state.owners.into_iter().map(|owner| owner.phase).collect());
            graph.next.push(edges);
        }
        graph
    }

    /// Whether no owner can act any more.
    pub(super) fn is_stuck(&self) -> bool {
        self.next.iter().any(Vec::is_empty)
    }

    /// Whether any of them can be kept waiting for ever, or all at once.
    pub(super) fn starves_anybody(&self) -> bool {
        self.is_stuck() || (0..self.states[0].len()).any(|owner| self.starves(owner))
    }

    /// Whether the owner can wait for ever while all others are fair, and what they keep for ever does not exclude
    /// it.
    pub(super) fn starves(&self, owner: usize) -> bool {
        let asks = |phase: &Phase| matches!(phase, Phase::Walking(_) | Phase::Moving(_) | Phase::Waiting(_));
        let has_to_act = |phase: &Phase| !matches!(phase, Phase::Idle | Phase::Waiting(_));
        let waits = |state: usize| asks(&self.states[state][owner]);
        self.components(&waits).iter().any(|component| {
            let inside = |state: &usize| component.contains(state);
            let edges = || component.iter().flat_map(|&from| self.next[from].iter().filter(|(_, to)| inside(to)));
            let fair = |other: usize| {
                let always_has_to = component.iter().all(|&state| has_to_act(&self.states[state][other]));
                !always_has_to || edges().any(|&(actor, _)| actor == other)
            };
            edges().next().is_some() && (0..self.states[0].len()).all(fair)
        })
    }

    /// The strongly connected parts of the graph of those states (Kosaraju).
    fn components(&self, within: &dyn Fn(usize) -> bool) -> Vec<HashSet<usize>> {
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
            let mut component = HashSet::new();
            let mut stack = vec![start];
            while let Some(at) = stack.pop() {
                if !std::mem::replace(&mut taken[at], true) {
                    component.insert(at);
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
