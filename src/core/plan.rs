//! From `reads` and `writes` to the nodes that a request holds: the shortest list that says all.
//!
//! Invariants:
//!
//! 1. Each node stands in the plan once, in the *join* of the modes that the roots ask for on it: who reads `a`
//!    and writes `a/b` holds SIX on `a`.
//! 2. Steps are in one total order, the same for all requests of a lock: by depth, then by node id. So
//!    ancestors come before descendants, and requests that take their steps one after the other cannot wait for
//!    each other in a circle (G2).
//! 3. Nothing is held twice: a root that lies in the sub-tree of a write root, and a read root that lies in the
//!    sub-tree of a read root, are dropped.
//! 4. The plan depends on the set of roots only, not on their order, their number or their spelling.
//!
//! Cost: O(d) for one root of d segments; O(d log d) for several of d segments in all (G5).
//!
//! Pure: no threads, no clocks. Not here: who holds what else (`ledger.rs`), whether a step can be had
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
    depth: u32,
}

/// The steps of one request. Its buffers are kept from one request to the next.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    steps: Vec<Step>,
    /// The nodes of all roots, one way from the top after the other.
    ids: Vec<NodeId>,
    /// Where in `ids` each root's way ends, and the root's mode.
    ends: Vec<(usize, Mode)>,
    /// The roots themselves, sorted, each in its strongest mode.
    tops: Vec<(NodeId, Mode)>,
}

impl Plan {
    /// Replaces the plan by the one for these roots; on an error it is empty.
    pub(crate) fn build<P, Q>(&mut self, seeds: &Seeds, reads: &[Q], writes: &[Q]) -> Result<(), PathError>
    where
        P: TreePath + ?Sized,
        Q: AsRef<P>,
    {
        self.build_and_name::<P, Q>(seeds, reads, writes, None)
    }

    /// The same; the names of the segments of all roots, if asked, one root's after the other.
    pub(crate) fn build_and_name<P, Q>(
        &mut self,
        seeds: &Seeds,
        reads: &[Q],
        writes: &[Q],
        mut names: Option<&mut Names>,
    ) -> Result<(), PathError>
    where
        P: TreePath + ?Sized,
        Q: AsRef<P>,
    {
        self.clear();
        let reads = reads.iter().map(|path| (path, Mode::Shared));
        let writes = writes.iter().map(|path| (path, Mode::Exclusive));
        for (path, mode) in reads.chain(writes) {
            if let Err(error) = Segments::of(path.as_ref(), seeds, &mut self.ids, names.as_deref_mut()) {
                self.clear();
                return Err(error);
            }
            self.ends.push((self.ids.len(), mode));
        }
        if let [(_, mode)] = self.ends[..] {
            push_way(&mut self.steps, &self.ids, mode);
        } else {
            self.join_ways();
        }
        Ok(())
    }

    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether it is one root and the nodes above it.
    #[inline]
    pub(crate) fn is_one_way(&self) -> bool {
        self.ends.len() == 1
    }

    /// The steps that are no intentions.
    #[inline]
    pub(crate) fn roots(&self) -> impl Iterator<Item = &Step> {
        // One root is the last step.
        let first = if self.is_one_way() { self.steps.len() - 1 } else { 0 };
        self.steps[first..].iter().filter(|step| !step.mode.is_intention())
    }

    /// The nodes of each root, from the top of the tree down to it.
    #[cfg(feature = "process")]
    pub(crate) fn ways(&self) -> impl Iterator<Item = &[NodeId]> {
        let mut start = 0;
        self.ends.iter().map(move |&(end, _)| &self.ids[std::mem::replace(&mut start, end)..end])
    }

    /// The step at a node of that depth, if there is one.
    pub(crate) fn index(&self, node: NodeId, depth: usize) -> Option<usize> {
        // Where the roots have not parted yet, each depth has one step.
        if self.steps.get(depth).is_some_and(|step| (step.depth, step.node) == (as_depth(depth), node)) {
            return Some(depth);
        }
        self.steps.binary_search_by_key(&(as_depth(depth), node), |step| (step.depth, step.node)).ok()
    }

    /// Whether the buffers are small enough to be kept.
    pub(crate) fn is_small(&self) -> bool {
        self.ids.capacity() <= 1024
    }

    fn clear(&mut self) {
        self.steps.clear();
        self.ids.clear();
        self.ends.clear();
        self.tops.clear();
    }

    fn join_ways(&mut self) {
        let Plan { steps, ids, ends, tops } = self;
        tops.extend(ends.iter().map(|&(end, mode)| (ids[end - 1], mode)));
        // The strongest mode of a root comes first, and stays.
        tops.sort_unstable_by_key(|&(node, mode)| (node, mode != Mode::Exclusive));
        tops.dedup_by_key(|&mut (node, _)| node);

        let top = |node: &NodeId| tops.binary_search_by_key(node, |&(top, _)| top).ok().map(|index| tops[index].1);
        let mut start = 0;
        for &(end, mode) in ends.iter() {
            let way = &ids[start..end];
            start = end;
            let (root, ancestors) = way.split_last().expect("a way has at least the root of the tree");
            let covered = top(root).is_some_and(|strongest| strongest != mode)
                || ancestors.iter().filter_map(top).any(|above| above.covers(mode));
            if !covered {
                push_way(steps, way, mode);
            }
        }
        steps.sort_unstable_by_key(|step| (step.depth, step.node));
        steps.dedup_by(|later, kept| {
            let same = later.node == kept.node;
            if same {
                kept.mode = kept.mode.join(later.mode);
            }
            same
        });
    }
}

/// Adds what one root asks for: `mode` on the last node of its way, intentions above.
fn push_way(steps: &mut Vec<Step>, way: &[NodeId], mode: Mode) {
    let last = way.len() - 1;
    steps.extend(way.iter().enumerate().map(|(depth, &node)| Step {
        node,
        mode: if depth == last { mode } else { mode.intention() },
        depth: as_depth(depth),
    }));
}

/// Below 4 billion segments all are of one depth: the order is still one, but ancestors might not come first.
fn as_depth(depth: usize) -> u32 {
    u32::try_from(depth).unwrap_or(u32::MAX)
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
        plan.build::<str, _>(&seeds, reads, writes).unwrap();
        let order: Vec<_> = plan.steps.iter().map(|step| (step.depth, step.node)).collect();
        assert!(order.is_sorted_by(|one, next| one < next), "invariant 2");
        let mut told: Vec<_> = plan.steps.iter().map(|step| format!("{} {}", names[&step.node], step.mode)).collect();
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

    /// Invariant 2: or two requests that take their steps one after the other could wait for each other (G2).
    #[test]
    fn ancestors_come_before_descendants() {
        let seeds = Seeds::new(|| 7);
        for names in 0..20 {
            let roots = [format!("{names}/a/b/c"), format!("{names}/d/e"), format!("f/{names}")];
            let mut plan = Plan::default();
            plan.build::<str, _>(&seeds, &[], &roots).unwrap();
            let mut taken = Vec::new();
            for root in &roots {
                let mut way = Vec::new();
                Segments::of(root.as_str(), &seeds, &mut way, None).unwrap();
                let place = |node: &NodeId| plan.steps.iter().position(|step| step.node == *node).unwrap();
                taken.push(way.iter().map(place).collect::<Vec<_>>());
            }
            assert!(taken.iter().all(|way| way.is_sorted()), "{taken:?}");
        }
    }

    #[test]
    fn node_is_found_at_its_depth_only() {
        let seeds = Seeds::new(|| 7);
        let mut plan = Plan::default();
        plan.build::<str, _>(&seeds, &["a/b", "c"], &["a/d"]).unwrap();
        for (index, step) in plan.steps.iter().enumerate() {
            let depth = step.depth as usize;
            assert_eq!(plan.index(step.node, depth), Some(index));
            assert_eq!(plan.index(step.node, depth + 1), None);
        }
    }

    /// A thread keeps the buffers of its last plan, which must not be those of the largest it ever made (G6).
    #[test]
    fn only_small_plans_are_kept() {
        let seeds = Seeds::new(|| 7);
        let mut plan = Plan::default();
        plan.build::<str, _>(&seeds, &["a/b"], &[]).unwrap();
        assert!(plan.is_small());
        plan.build::<str, _>(&seeds, &["a/".repeat(2000)], &[]).unwrap();
        assert!(!plan.is_small());
    }
}
