//! From `reads` and `writes` to the nodes that a request holds: the shortest sufficient list.
//!
//! Invariants:
//!
//! 1. Each node stands in the plan once, in the *join* of the modes that the roots ask for on it: a request that
//!    reads `a` and writes `a/b` holds SIX on `a`.
//! 2. Steps are in one total order, the same for all requests of a lock: by depth, then by node id. So
//!    ancestors come before descendants, and requests that take their steps one after the other cannot wait for
//!    each other in a circle (G2).
//! 3. Nothing is held twice: a root that lies in the sub-tree of a write root, and a read root that lies in the
//!    sub-tree of a read root, are dropped.
//! 4. The plan depends on the set of roots only, not on their order, their number or their spelling.
//!
//! Cost: O(d) for one root of d segments; O(d log d) for several of d segments in all (G5).
//!
//! Pure: no threads, no clocks. Not here: what other requests hold (`ledger.rs`), whether a step can be granted
//! (`node.rs`).

use crate::core::mode::Mode;
use crate::core::node_id::{NodeId, Seeds};
use crate::core::path::PathError;
use crate::core::path::TreePath;
use crate::core::segments::{Names, Segments};

/// One node of a plan, and the mode it is held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) node: NodeId,
    pub(crate) mode: Mode,
    pub(crate) depth: u32,
    /// Where the node's segment ends in the text of its path, if that is text (`segments.rs`).
    pub(super) end: u32,
}

impl Step {
    /// A node on a way that has no mode yet.
    #[inline]
    pub(super) fn new(node: NodeId, depth: u32, end: usize) -> Self {
        // Deeper than 4 billion segments all nodes have one depth: the order is still total, but ancestors might not
        // come first.
        Step { node, mode: Mode::IntentionShared, depth, end: u32::try_from(end).unwrap_or(u32::MAX) }
    }
}

/// The steps of one request. Its buffers are kept from one request to the next.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// The ways from the top of the tree to each root, one after the other. One way is its own plan.
    ways: Vec<Step>,
    /// Where each way begins.
    starts: Vec<usize>,
    /// The steps of several ways.
    joined: Vec<Step>,
    /// The last steps of all ways, sorted, each node once, in its strongest mode.
    tops: Vec<Step>,
}

impl Plan {
    /// Replaces the plan by the one for these roots; on an error the plan is empty.
    #[cfg(test)]
    pub(crate) fn build<P, R, W>(&mut self, seeds: &Seeds, reads: &[R], writes: &[W]) -> Result<(), PathError>
    where
        P: TreePath + ?Sized,
        R: AsRef<P>,
        W: AsRef<P>,
    {
        self.build_and_name::<P, R, W>(seeds, reads, writes, None)
    }

    /// The same; also adds the names of the segments of all roots to `names`, if given, one root after the other.
    #[cfg(any(test, feature = "replica"))]
    pub(crate) fn build_and_name<P, R, W>(
        &mut self,
        seeds: &Seeds,
        reads: &[R],
        writes: &[W],
        mut names: Option<&mut Names>,
    ) -> Result<(), PathError>
    where
        P: TreePath + ?Sized,
        R: AsRef<P>,
        W: AsRef<P>,
    {
        let mut roots = self.begin();
        let reads = reads.iter().map(|path| (path.as_ref(), Mode::Shared));
        for (path, mode) in reads.chain(writes.iter().map(|path| (path.as_ref(), Mode::Exclusive))) {
            roots.add(path, mode, seeds, None, names.as_deref_mut())?;
        }
        roots.end();
        Ok(())
    }

    /// Begins to replace the plan; it stays empty unless [`WaysOf::end`] is called.
    #[inline]
    pub(crate) fn begin(&mut self) -> WaysOf<'_> {
        // The last way stays, since the next root may have much in common with it.
        let last = self.starts.last().copied().unwrap_or(0);
        if last > 0 {
            self.ways.drain(..last);
        }
        self.starts.clear();
        WaysOf { plan: self, ended: false }
    }

    #[inline]
    pub(crate) fn steps(&self) -> &[Step] {
        if self.is_one_way() { &self.ways } else { &self.joined }
    }

    /// Whether it consists of one root and the nodes above it.
    #[inline]
    pub(crate) fn is_one_way(&self) -> bool {
        self.starts.len() == 1
    }

    /// The steps that are no intentions.
    #[inline]
    pub(crate) fn roots(&self) -> impl Iterator<Item = &Step> {
        let steps = self.steps();
        // One root is the last step.
        let first = if self.is_one_way() { steps.len() - 1 } else { 0 };
        steps[first..].iter().filter(|step| !step.mode.is_intention())
    }

    /// The plan for some of the roots: `keep` gets the index and the mode of each root, and returns the mode to keep
    /// it in, if any.
    pub(crate) fn of_some(&self, mut keep: impl FnMut(usize, Mode) -> Option<Mode>) -> Plan {
        let mut plan = Plan::default();
        for (index, way) in self.ways().enumerate() {
            if let Some(mode) = keep(index, way[way.len() - 1].mode) {
                plan.starts.push(plan.ways.len());
                plan.ways.extend_from_slice(way);
                plan.ask_for_last_way(mode);
            }
        }
        plan.make_steps();
        plan
    }

    /// The mode of a node, if it has a step.
    pub(crate) fn mode_of(&self, step: &Step) -> Option<Mode> {
        self.index(step.node, step.depth as usize).map(|index| self.steps()[index].mode)
    }

    /// The nodes of each root as it was asked for, from the top of the tree down to it.
    pub(crate) fn ways(&self) -> impl Iterator<Item = &[Step]> {
        let ends = self.starts.iter().copied().skip(1).chain([self.ways.len()]);
        self.starts.iter().zip(ends).map(|(&start, end)| &self.ways[start..end])
    }

    /// The step at a node of that depth, if there is one.
    pub(crate) fn index(&self, node: NodeId, depth: usize) -> Option<usize> {
        let (steps, depth) = (self.steps(), u32::try_from(depth).unwrap_or(u32::MAX));
        // Down to where the roots part, each depth has one step.
        let first = depth as usize;
        if steps.get(first).is_some_and(|step| (step.depth, step.node) == (depth, node)) {
            return Some(first);
        }
        steps.binary_search_by_key(&(depth, node), |step| (step.depth, step.node)).ok()
    }

    /// Whether the buffers are small enough to be kept.
    #[inline]
    pub(crate) fn is_small(&self) -> bool {
        self.ways.capacity() <= MOST_STEPS
    }

    pub(crate) fn clear(&mut self) {
        self.ways.clear();
        self.starts.clear();
        self.joined.clear();
        self.tops.clear();
    }

    /// Sets the mode of the root of the last way, and the intentions above it.
    #[inline]
    fn ask_for_last_way(&mut self, mode: Mode) {
        let start = self.starts.last().copied().unwrap_or(0);
        if let Some((root, ancestors)) = self.ways[start..].split_last_mut() {
            root.mode = mode;
            ancestors.iter_mut().for_each(|step| step.mode = mode.intention());
        }
    }

    #[inline]
    fn make_steps(&mut self) {
        if !self.is_one_way() {
            self.join_ways();
        }
    }

    #[cold]
    fn join_ways(&mut self) {
        let Plan { ways, starts, joined, tops } = self;
        let ends = || starts.iter().copied().skip(1).chain([ways.len()]);
        let ways = || starts.iter().zip(ends()).map(|(&start, end)| &ways[start..end]);
        joined.clear();
        tops.clear();
        tops.extend(ways().map(|way| way[way.len() - 1]));
        // The strongest mode of a root comes first, and stays.
        tops.sort_unstable_by_key(|top| (top.depth, top.node, top.mode != Mode::Exclusive));
        tops.dedup_by_key(|top| top.node);
        // A root cannot lie in another root of the same depth.
        let highest = tops.first().map_or(0, |top| top.depth);

        let top = |step: &Step| {
            let found = tops.binary_search_by_key(&(step.depth, step.node), |top| (top.depth, top.node));
            found.ok().map(|index| tops[index].mode)
        };
        let mut before: &[Step] = &[];
        for way in ways() {
            let (root, ancestors) = way.split_last().expect("a way has at least the root of the tree");
            let covers = |step: &Step| top(step).is_some_and(|above| above.covers(root.mode));
            if top(root).is_some_and(|strongest| strongest != root.mode)
                || ancestors.iter().skip(highest as usize).any(covers)
            {
                continue;
            }
            // As far as both ways are one, the way before asks for the same modes.
            let same = |(one, other): &(&Step, &Step)| one.node == other.node && one.mode.covers(other.mode);
            let shared = before.iter().zip(ancestors).take_while(same).count();
            joined.extend_from_slice(&way[shared..]);
            before = way;
        }
        joined.sort_unstable_by_key(|step| (step.depth, step.node));
        joined.dedup_by(|later, kept| {
            let same = later.node == kept.node;
            if same {
                kept.mode = kept.mode.join(later.mode);
            }
            same
        });
    }
}

/// A plan with room for more nodes is not kept for the next request.
const MOST_STEPS: usize = 1024;

/// The roots of a plan, as they are added.
pub(crate) struct WaysOf<'a> {
    plan: &'a mut Plan,
    ended: bool,
}

impl WaysOf<'_> {
    /// Adds a root. If it is text, `known` may be the text of the root before it, or, for the first root, of the last
    /// root of the plan before.
    #[inline]
    pub(crate) fn add<P: TreePath + ?Sized>(
        &mut self,
        path: &P,
        mode: Mode,
        seeds: &Seeds,
        known: Option<&[u8]>,
        names: Option<&mut Names>,
    ) -> Result<(), PathError> {
        let Plan { ways, starts, .. } = &mut *self.plan;
        let start = match (starts.last(), known) {
            (None, _) => 0,
            (Some(_), None) => ways.len(),
            (Some(&before), Some(_)) => {
                let start = ways.len();
                ways.extend_from_within(before..);
                start
            }
        };
        Segments::tell(path, seeds, ways, start, known, names)?;
        starts.push(start);
        self.plan.ask_for_last_way(mode);
        Ok(())
    }

    /// Ends the plan: there are no more roots.
    #[inline]
    pub(crate) fn end(mut self) {
        self.ended = true;
        self.plan.make_steps();
    }
}

impl Drop for WaysOf<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.plan.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// The plan as text: `a/b` is written by its segments, `.` is the root.
    fn plan(reads: &[&str], writes: &[&str]) -> Vec<String> {
        let seeds = Seeds::new(|| 7);
        let mut names = HashMap::new();
        for path in reads.iter().chain(writes) {
            let (mut ids, mut segments) = (Vec::new(), Names::default());
            Segments::of(*path, &seeds, &mut ids, Some(&mut segments)).unwrap();
            let segments = segments.to_vec();
            for (depth, id) in ids.into_iter().enumerate() {
                names.insert(id, if depth == 0 { ".".into() } else { segments[..depth].join("/") });
            }
        }
        let mut plan = Plan::default();
        plan.build::<str, _, _>(&seeds, reads, writes).unwrap();
        let order: Vec<_> = plan.steps().iter().map(|step| (step.depth, step.node)).collect();
        assert!(order.is_sorted_by(|one, next| one < next), "invariant 2");
        let mut told: Vec<_> =
            plan.steps().iter().map(|step| format!("{} {}", names[&step.node], step.mode)).collect();
        told.sort();
        told
    }

    #[test]
    fn one_root_announces_itself_above() {
        assert_eq!(plan(&["a/b"], &[]), [". IS", "a IS", "a/b S"]);
        assert_eq!(plan(&[], &["a/b"]), [". IX", "a IX", "a/b X"]);
        assert_eq!(plan(&[], &["/"]), [". X"]);
        assert!(plan(&[], &[]).is_empty());
    }

    #[test]
    fn read_with_write_below_is_six() {
        assert_eq!(plan(&["a"], &["a/b"]), [". IX", "a SIX", "a/b X"]);
        assert_eq!(plan(&["a/c"], &["a/b"]), [". IX", "a IX", "a/b X", "a/c S"]);
    }

    #[test]
    fn what_is_covered_is_dropped() {
        assert_eq!(plan(&["a/b", "a", "a"], &[]), [". IS", "a S"]);
        assert_eq!(plan(&["a/b"], &["a", "a/c"]), [". IX", "a X"]);
        assert_eq!(plan(&["a"], &["a"]), [". IX", "a X"]);
        assert_eq!(plan(&["a", "a/b"], &["a/b"]), [". IX", "a SIX", "a/b X"]);
        assert_eq!(plan(&["a/b"], &["a/b/c"]), [". IX", "a IX", "a/b SIX", "a/b/c X"]);
    }

    #[test]
    fn order_and_repetition_do_not_matter() {
        assert_eq!(plan(&["b", "a"], &["c/d", "a/x"]), plan(&["a", "b", "a"], &["a//x", "c/d", "c/d/"]));
    }

    /// Invariant 2: otherwise two requests that take their steps one after the other could wait for each other (G2).
    #[test]
    fn ancestors_come_before_descendants() {
        let seeds = Seeds::new(|| 7);
        for names in 0..20 {
            let roots = [format!("{names}/a/b/c"), format!("{names}/d/e"), format!("f/{names}")];
            let mut plan = Plan::default();
            plan.build::<str, &str, _>(&seeds, &[], &roots).unwrap();
            let mut taken = Vec::new();
            for root in &roots {
                let mut way = Vec::new();
                Segments::of(root.as_str(), &seeds, &mut way, None).unwrap();
                let place = |node: &NodeId| plan.steps().iter().position(|step| step.node == *node).unwrap();
                taken.push(way.iter().map(place).collect::<Vec<_>>());
            }
            assert!(taken.iter().all(|way| way.is_sorted()), "{taken:?}");
        }
    }

    #[test]
    fn node_is_found_at_its_depth_only() {
        let seeds = Seeds::new(|| 7);
        let mut plan = Plan::default();
        plan.build::<str, _, _>(&seeds, &["a/b", "c"], &["a/d"]).unwrap();
        for (index, step) in plan.steps().iter().enumerate() {
            let depth = step.depth as usize;
            assert_eq!(plan.index(step.node, depth), Some(index));
            assert_eq!(plan.index(step.node, depth + 1), None);
        }
    }

    /// What is left of a guard that gives back some of its roots, or turns writes into reads.
    #[test]
    fn plan_of_some_roots_is_the_plan_of_these() {
        let seeds = Seeds::new(|| 7);
        let mut all = Plan::default();
        all.build::<str, _, _>(&seeds, &["a/b", "c"], &["a", "d"]).unwrap();
        let mut some = Plan::default();
        some.build::<str, _, _>(&seeds, &["a/b"], &["d"]).unwrap();
        assert_eq!(all.of_some(|index, mode| [0, 3].contains(&index).then_some(mode)).steps(), some.steps());
        let mut read = Plan::default();
        read.build::<str, _, &str>(&seeds, &["a/b", "c", "a", "d"], &[]).unwrap();
        assert_eq!(all.of_some(|_, mode| Some(mode.downgraded())).steps(), read.steps());
        assert!(all.of_some(|_, _| None).steps().is_empty());
    }

    /// A thread keeps the buffers of its last plan; they must not stay as large as the largest plan it ever made
    /// (G6).
    #[test]
    fn only_small_plans_are_kept() {
        let seeds = Seeds::new(|| 7);
        let mut plan = Plan::default();
        plan.build::<str, _, &str>(&seeds, &["a/b"], &[]).unwrap();
        assert!(plan.is_small());
        plan.build::<str, _, &str>(&seeds, &["a/".repeat(2000)], &[]).unwrap();
        assert!(!plan.is_small());
    }
}
