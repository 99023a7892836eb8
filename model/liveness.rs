//! No starvation, no lost place (G3): a search of every state that two nodes and a few owners can reach, and of every
//! way in which they can go on for ever.
//!
//! This models the owners and the walk of their requests. The nodes are the shipped ones (`core/node.rs`), stepped by
//! their own methods: a *parent* and a *child*. An owner asks for its modes again and again and releases them after a
//! while; some upgrade in between, some give up. A state is the two nodes with what each owner is doing, and there
//! are finitely many.
//!
//! *The walk.* A request takes the parent first, then the child. It gets one stamp, when it first begins to wait, and
//! each queue that it comes to is ordered by stamps. A request that is let on from a queue does not walk by itself:
//! the owner that made the change moves it on, together with all others that were let on, in the order of the queue,
//! until each holds everything or stands in its next queue. A request that comes to the parent meanwhile goes on
//! behind them. Between any two steps all other owners may act: newcomers, owners that release, owners that give up.
//!
//! *Fairness assumed*: an owner that holds something and need not wait will at some time release it, ask for more or
//! take its next step, and so will an owner that moves others on. Nothing else is assumed: an owner may stop asking,
//! and may be as quick as it likes. (It is up to the operating system that threads which were granted are scheduled
//! at all.)
//!
//! *Starvation* is a set of states that can be gone round for ever, in all of which one owner waits, while every
//! other owner that has to act does so somewhere on the way round (`liveness/search.rs`).
//!
//! *Order* is a property of single states: when a request of one root holds everything, no request of one root that
//! conflicts with it, and that waited already when it asked, still waits. [`Order`] tells the exceptions.
//!
//! Two controls show that the search sees: a barging door, where newcomers look at what is granted and overlook the
//! waiters, starves a writer; and a racing walk, where each request that is let on walks by itself, breaks the order.

#[path = "liveness/search.rs"]
mod search;

use super::{Node, Stamp, Ticket};
use crate::core::mode::{Mode, ModeCounts};
use Mode::{Exclusive, IntentionExclusive, IntentionShared, Shared, SharedIntentionExclusive};
use search::Graph;

const PARENT: usize = 0;
const CHILD: usize = 1;

/// What a request asks of the parent and of the child.
type Plan = [Option<Mode>; 2];

/// A request for the parent alone.
fn parent(mode: Mode) -> Plan {
    [Some(mode), None]
}

/// A request for the child, or for a node below it.
fn child(mode: Mode) -> Plan {
    [Some(mode.intention()), Some(mode)]
}

/// Whether it is a request of one root.
fn has_one_root(plan: Plan) -> bool {
    let is_root = |mode| mode != SharedIntentionExclusive;
    match plan {
        [Some(mode), None] => is_root(mode),
        [_, Some(mode)] => is_root(mode) && plan == child(mode),
        [None, None] => false,
    }
}

fn conflict(one: Plan, other: Plan) -> bool {
    one.iter().zip(other).any(|(one, other)| one.zip(other).is_some_and(|(one, other)| !one.compatible(other)))
}

/// What an owner does all its life.
#[derive(Clone, Copy, Debug)]
enum Habit {
    /// It takes the modes and releases them.
    Takes(Plan),
    /// The same, and it may give up while it waits.
    GivesUp(Plan),
    /// It takes the first modes, may ask for the second ones on top, and releases both.
    Upgrades(Plan, Plan),
    /// It takes the first modes and keeps them for ever, and takes and releases the second ones on top.
    Keeps(Plan, Plan),
}

impl Habit {
    fn plans(self) -> (Plan, Option<Plan>) {
        match self {
            Habit::Takes(plan) | Habit::GivesUp(plan) => (plan, None),
            Habit::Upgrades(plan, more) | Habit::Keeps(plan, more) => (plan, Some(more)),
        }
    }
}

/// Whether newcomers respect the queue.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Door {
    Fair,
    Barging,
}

/// How requests go on that were let on from a queue.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Walk {
    /// The owner that made the change moves them on, in the order of the queue.
    InOrder,
    /// Each walks by itself.
    Racing,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Idle,
    /// It has not waited yet, and takes this node next.
    Walking(usize),
    Waiting(usize),
    /// It was let on from a queue, and is to be moved on to this node.
    Moving(usize),
    Holding,
    /// What is left to release, the last first.
    Leaving(Vec<(usize, Mode)>),
}

/// How a request stands to an earlier one that conflicts with it and that waited already when it asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Order {
    /// It may not be served before the other.
    Behind,
    /// It has passed the node where the other waits, since they do not conflict there.
    Passed,
    /// Both now wait at one node, where it came first, and the other has the lower stamp.
    Joined,
}

#[derive(Clone, Debug)]
struct Owner {
    phase: Phase,
    /// Whether the request is the second one, on top of what the owner holds.
    nested: bool,
    stamp: Option<u64>,
    ticket: Option<Ticket>,
    /// By owner.
    order: Vec<Option<Order>>,
}

#[derive(Clone, Debug)]
struct State<'a> {
    habits: &'a [Habit],
    door: Door,
    walk: Walk,
    nodes: [Node<usize>; 2],
    owners: Vec<Owner>,
    /// The requests that were let on from the queue of the parent, in that order.
    movers: Vec<usize>,
    stamps: u64,
    /// Which request was served before which on the way to this state.
    overtakes: Vec<Overtake>,
}

/// The later request, and the earlier one that still waits.
type Overtake = (usize, usize, Order);

/// A state without the numbers that grow for ever: a waiter is known by its rank.
type Key = ([ModeCounts; 2], Vec<(Phase, bool, Vec<Option<Order>>)>, [Vec<usize>; 2], Vec<usize>, Vec<usize>);

impl<'a> State<'a> {
    fn new(habits: &'a [Habit], door: Door, walk: Walk) -> Self {
        let order = vec![None; habits.len()];
        let owner = Owner { phase: Phase::Idle, nested: false, stamp: None, ticket: None, order };
        State {
            habits,
            door,
            walk,
            nodes: Default::default(),
            owners: vec![owner; habits.len()],
            movers: Vec::new(),
            stamps: 0,
            overtakes: Vec::new(),
        }
    }

    fn key(&self) -> Key {
        let ranked = |rank: &dyn Fn(&Owner) -> Option<u64>| {
            let mut ranks: Vec<_> =
                self.owners.iter().enumerate().filter_map(|(at, owner)| Some((rank(owner)?, at))).collect();
            ranks.sort_unstable();
            ranks.into_iter().map(|(_, owner)| owner).collect::<Vec<_>>()
        };
        let queue = |node| {
            ranked(&|owner: &Owner| {
                let ticket = owner.ticket.filter(|_| owner.phase == Phase::Waiting(node));
                ticket.map(|ticket| ticket.stamp().0)
            })
        };
        let owner = |owner: &Owner| (owner.phase.clone(), owner.nested, owner.order.clone());
        (
            self.nodes.each_ref().map(|node| node.granted),
            self.owners.iter().map(owner).collect(),
            [queue(PARENT), queue(CHILD)],
            ranked(&|owner| owner.stamp),
            self.movers.clone(),
        )
    }

    /// What the owner asks for.
    fn plan(&self, owner: usize) -> Plan {
        let (plan, more) = self.habits[owner].plans();
        if self.owners[owner].nested { more.expect("it asks for more") } else { plan }
    }

    /// What the owner holds of a node by its first request, when it is at the second one.
    fn held(&self, owner: usize, node: usize) -> ModeCounts {
        let mut held = ModeCounts::NONE;
        if self.owners[owner].nested {
            self.habits[owner].plans().0[node].into_iter().for_each(|mode| held.add(mode));
        }
        held
    }

    /// The states to which the owner's next acts lead.
    fn acts(&self, owner: usize) -> Vec<Self> {
        let mut next = self.clone();
        let (plan, more) = self.habits[owner].plans();
        let steps = |plan: Plan| plan.into_iter().enumerate().rev().filter_map(|(node, mode)| Some((node, mode?)));
        match self.owners[owner].phase.clone() {
            Phase::Idle => self.ask(owner, false).into_iter().collect(),
            Phase::Walking(node) => {
                next.take(owner, node);
                vec![next]
            }
            Phase::Moving(node) => {
                if self.walk == Walk::InOrder && self.movers[0] != owner {
                    return Vec::new();
                }
                next.movers.retain(|&mover| mover != owner);
                next.take(owner, node);
                vec![next]
            }
            Phase::Waiting(node) if matches!(self.habits[owner], Habit::GivesUp(_)) => {
                let mut due = Vec::new();
                let ticket = next.owners[owner].ticket.take().expect("it waits");
                assert!(next.nodes[node].cancel(ticket, &mut due), "it waits");
                next.no_longer_waits(owner);
                next.leave(owner, steps(plan).filter(|&(taken, _)| taken < node).collect());
                next.let_on(due, node);
                vec![next]
            }
            Phase::Waiting(_) => Vec::new(),
            Phase::Holding => {
                let asks = more.filter(|_| !self.owners[owner].nested).and_then(|_| self.ask(owner, true));
                let keeps = matches!(self.habits[owner], Habit::Keeps(..));
                let of_more = more.filter(|_| self.owners[owner].nested).map(steps).into_iter().flatten();
                let of_first = (!keeps).then(|| steps(plan)).into_iter().flatten();
                let releases: Vec<_> = of_more.chain(of_first).collect();
                let leaves = (!releases.is_empty()).then(|| next.release(owner, releases));
                asks.into_iter().chain(leaves).collect()
            }
            Phase::Leaving(left) => vec![next.release(owner, left)],
        }
    }

    /// Takes the first step of a request, but not while others are moved on from that node, since it goes on behind
    /// them.
    fn ask(&self, owner: usize, nested: bool) -> Option<Self> {
        let mut next = self.clone();
        next.owners[owner].nested = nested;
        let plan = next.plan(owner);
        let first = if plan[PARENT].is_some() { PARENT } else { CHILD };
        if self.walk == Walk::InOrder && first == PARENT && !self.movers.is_empty() {
            return None;
        }
        let is_behind = |other: usize| {
            let waits = matches!(self.owners[other].phase, Phase::Waiting(_) | Phase::Moving(_));
            let converts = nested || self.owners[other].nested;
            let plans = [plan, self.plan(other)];
            waits && !converts && plans.into_iter().all(has_one_root) && conflict(plans[0], plans[1])
        };
        next.owners[owner].order =
            (0..self.owners.len()).map(|other| is_behind(other).then_some(Order::Behind)).collect();
        next.take(owner, first);
        Some(next)
    }

    /// Takes a node, or queues there.
    fn take(&mut self, owner: usize, node: usize) {
        let mode = self.plan(owner)[node].expect("it is on the way");
        let (held, stamp) = (self.held(owner, node), self.owners[owner].stamp);
        let barges = self.door == Door::Barging && self.nodes[node].granted.compatible(mode);
        if barges {
            self.nodes[node].granted.add(mode);
        }
        if barges || self.nodes[node].try_grant_at(stamp.map_or(Stamp::NEWCOMER, Stamp), mode, &held) {
            return self.granted(owner, node);
        }
        let stamp = stamp.unwrap_or(self.stamps);
        self.stamps = self.stamps.max(stamp + 1);
        let mut due = Vec::new();
        let ticket = self.nodes[node].enqueue(Stamp(stamp), mode, held, owner, &mut due);
        let this = &mut self.owners[owner];
        (this.phase, this.stamp, this.ticket) = (Phase::Waiting(node), Some(stamp), Some(ticket));
        for other in self.owners.iter_mut().filter(|other| other.phase == Phase::Waiting(node)) {
            if other.order[owner] == Some(Order::Passed) {
                other.order[owner] = Some(Order::Joined);
            }
        }
        // The requests that it waits for, and that others waited for until it came.
        self.let_on(due, node);
    }

    /// The request has the node, and goes on.
    fn granted(&mut self, owner: usize, node: usize) {
        let mode = self.plan(owner)[node].expect("it is on the way");
        for other in 0..self.owners.len() {
            if self.owners[other].phase == Phase::Waiting(node)
                && self.owners[owner].order[other] == Some(Order::Behind)
            {
                let asked = self.plan(other)[node].expect("it waits for it");
                let overtakes = self.door == Door::Fair && !asked.compatible(mode);
                assert!(!overtakes, "{owner} overtakes {other}, who waits for {asked}: {:?}", self.habits);
                self.owners[owner].order[other] = Some(Order::Passed);
            }
        }
        let next = (node + 1..self.nodes.len()).find(|&next| self.plan(owner)[next].is_some());
        let has_waited = self.owners[owner].stamp.is_some();
        self.owners[owner].phase = match next {
            Some(next) if has_waited => {
                self.movers.push(owner);
                Phase::Moving(next)
            }
            Some(next) => Phase::Walking(next),
            None => {
                let order = std::mem::take(&mut self.owners[owner].order);
                let overtaken = order.iter().enumerate().filter_map(|(other, order)| Some((owner, other, (*order)?)));
                self.overtakes.extend(overtaken);
                self.no_longer_waits(owner);
                Phase::Holding
            }
        };
    }

    /// Nobody has its place any longer.
    fn no_longer_waits(&mut self, owner: usize) {
        self.owners[owner].order = vec![None; self.owners.len()];
        (self.owners[owner].stamp, self.owners[owner].ticket) = (None, None);
        self.owners.iter_mut().for_each(|other| other.order[owner] = None);
    }

    fn let_on(&mut self, due: Vec<usize>, node: usize) {
        due.into_iter().for_each(|owner| self.granted(owner, node));
    }

    /// Releases the first of these, the others later.
    fn release(mut self, owner: usize, mut left: Vec<(usize, Mode)>) -> Self {
        let (node, mode) = left.remove(0);
        let mut due = Vec::new();
        self.nodes[node].release(mode, &mut due);
        self.leave(owner, left);
        self.let_on(due, node);
        self
    }

    fn leave(&mut self, owner: usize, left: Vec<(usize, Mode)>) {
        let keeps = matches!(self.habits[owner], Habit::Keeps(..));
        let this = &mut self.owners[owner];
        this.nested &= !left.is_empty();
        this.phase = match (left.is_empty(), keeps) {
            (false, _) => Phase::Leaving(left),
            (true, true) => Phase::Holding,
            (true, false) => Phase::Idle,
        };
    }
}

fn graph(habits: &[Habit]) -> Graph {
    Graph::of(habits, Door::Fair, Walk::InOrder)
}

/// Every group of this many of the plans; the order in a group does not matter.
fn groups(plans: &[Plan], size: usize) -> Vec<Vec<Plan>> {
    match size {
        0 => vec![Vec::new()],
        _ => (0..plans.len())
            .flat_map(|first| {
                let others = groups(&plans[first..], size - 1);
                others.into_iter().map(move |others| [vec![plans[first]], others].concat())
            })
            .collect(),
    }
}

/// All requests for the two nodes by one root.
fn of_one_root() -> Vec<Plan> {
    let roots = [IntentionShared, IntentionExclusive, Shared, Exclusive];
    [Shared, Exclusive].map(parent).into_iter().chain(roots.map(child)).collect()
}

/// Every group of three owners at one node, of any modes; nobody starves, and nobody overtakes.
#[test]
fn nobody_starves() {
    let (mut number, mut states) = (0, 0);
    for plans in groups(&Mode::ALL.map(parent), 3) {
        let habits: Vec<Habit> = plans.into_iter().map(Habit::Takes).collect();
        let graph = graph(&habits);
        (number, states) = (number + 1, states + graph.states.len());
        assert!(!graph.starves_anybody() && graph.overtakes.is_empty(), "{habits:?}: {:?}", graph.overtakes);
    }
    println!("{number} groups of three owners, {states} states");
}

/// The same at two nodes.
#[test]
fn nobody_starves_on_the_way_through_two_nodes() {
    let mut plans = of_one_root();
    plans.extend([[Some(SharedIntentionExclusive), Some(Exclusive)], [Some(IntentionExclusive), Some(Shared)]]);
    let (mut number, mut states) = (0, 0);
    for plans in groups(&plans, 3) {
        let habits: Vec<Habit> = plans.into_iter().map(Habit::Takes).collect();
        let graph = graph(&habits);
        (number, states) = (number + 1, states + graph.states.len());
        assert!(!graph.starves_anybody(), "{habits:?}");
    }
    println!("{number} groups of three owners, {states} states");
}

/// Every group of four requests of one root each: two that come one after the other, and two for which they wait.
#[test]
fn nobody_who_waits_is_overtaken_by_a_later_request_that_conflicts() {
    let (mut number, mut states, mut joined) = (0, 0, false);
    for plans in groups(&of_one_root(), 4) {
        let habits: Vec<Habit> = plans.iter().copied().map(Habit::Takes).collect();
        let graph = graph(&habits);
        (number, states) = (number + 1, states + graph.states.len());
        for &(later, earlier, order) in &graph.overtakes {
            let reads_below = plans[later][CHILD].is_some_and(|mode| mode.intention() == IntentionShared);
            let writes_below = plans[earlier][CHILD].is_some_and(|mode| mode.intention() == IntentionExclusive);
            assert!(reads_below && writes_below, "{later} overtakes {earlier} of {plans:?}");
            assert_ne!(order, Order::Behind, "{later} overtakes {earlier} of {plans:?}");
            joined |= order == Order::Joined;
        }
    }
    println!("{number} groups of four owners, {states} states");
    assert!(!joined, "a queue is ordered by stamps and not by arrival");
}

/// The control: two writers of the child that wait at the parent are let on together, and the later one is quicker.
#[test]
fn racing_walk_breaks_the_order() {
    let habits = [parent(Exclusive), child(Exclusive), child(Exclusive)].map(Habit::Takes);
    assert!(graph(&habits).overtakes.is_empty());
    let racing = Graph::of(&habits, Door::Fair, Walk::Racing);
    assert!(racing.overtakes.contains(&(2, 1, Order::Behind)), "the search is blind: {:?}", racing.overtakes);
}

/// Requests that give up let in the waiters behind them, and leave no place behind.
#[test]
fn nobody_starves_or_is_overtaken_where_others_give_up() {
    for plans in groups(&of_one_root(), 2) {
        for gives_up in of_one_root() {
            let habits = [Habit::GivesUp(gives_up), Habit::Takes(plans[0]), Habit::Takes(plans[1])];
            let graph = graph(&habits);
            assert!((1..3).all(|owner| !graph.starves(owner)) && !graph.is_stuck(), "{habits:?}");
            assert!(graph.overtakes.iter().all(|&(_, _, order)| order != Order::Behind), "{habits:?}");
        }
    }
}

/// Two nodes that are no parent and child: a request of two roots takes both.
#[test]
fn request_of_two_roots_is_not_starved_by_requests_of_one() {
    for mode in [Shared, Exclusive] {
        let plans = [[Some(mode); 2], [Some(Exclusive), None], [None, Some(Exclusive)], [None, Some(Exclusive)]];
        let graph = graph(&plans.map(Habit::Takes));
        println!("{} states", graph.states.len());
        assert!(!graph.starves_anybody(), "{mode}");
    }
}

/// A writer among three overlapping readers, and a writer below.
#[test]
fn writer_gets_in_against_a_stream_of_readers() {
    let habits = [Exclusive, Shared, Shared, Shared, IntentionExclusive].map(|mode| Habit::Takes(parent(mode)));
    let graph = graph(&habits);
    println!("{} states", graph.states.len());
    assert!(!graph.starves_anybody());
}

/// An upgrade goes ahead of the queue, and still nobody starves, since it has to release in the end.
#[test]
fn nobody_starves_behind_an_upgrade() {
    for more in [Exclusive, SharedIntentionExclusive, Shared] {
        for others in groups(&Mode::ALL.map(parent), 2) {
            let upgrades = Habit::Upgrades(parent(IntentionShared), parent(more));
            let habits = [upgrades, Habit::Takes(others[0]), Habit::Takes(others[1])];
            assert!(!graph(&habits).starves_anybody(), "{habits:?}");
        }
    }
}

/// The same for an upgrade of the child, where the others want either node. By way of both nodes it may then wait for
/// itself: that is a deadlock, and is reported.
#[test]
fn nobody_starves_behind_an_upgrade_of_the_child() {
    for others in groups(&of_one_root(), 2) {
        let upgrades = Habit::Upgrades(child(Shared), child(Exclusive));
        let habits = [upgrades, Habit::Takes(others[0]), Habit::Takes(others[1])];
        let graph = graph(&habits);
        assert!((0..3).all(|owner| !graph.starves(owner)), "{habits:?}");
    }
}

/// Owners that keep a mode for ever, and nest again and again, starve nobody whom that mode does not exclude.
#[test]
fn nested_requests_starve_nobody_whom_the_outer_guard_lets_in() {
    let mut groups = 0;
    for kept in Mode::ALL {
        for more in Mode::ALL {
            for mode in Mode::ALL.into_iter().filter(|mode| mode.compatible(kept)) {
                let nests = Habit::Keeps(parent(kept), parent(more));
                let graph = graph(&[Habit::Takes(parent(mode)), nests, nests]);
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
    let habits = [Exclusive, Shared, Shared].map(|mode| Habit::Takes(parent(mode)));
    let graph = Graph::of(&habits, Door::Barging, Walk::InOrder);
    assert!(graph.starves(0), "the search is blind");
    assert!(!graph.starves(1) && !graph.starves(2));
}
