//! What a request tells about itself: the steps that it takes, and what reports say about it.
//!
//! The paths push their segments here, while nothing is locked: a panic in a user's path leaves nothing behind (G8).
//!
//! Not here: how the request is granted (`process/member/acquire.rs`).

use super::MemberId;
use super::report::{Place, Told, ToldRoot};
use super::{Ask, RequestId, Step};
use crate::core::node_id::Seeds;
use crate::core::owner::Owner;
use crate::core::path::{PathError, TreePath};
use crate::core::plan::Plan;
use crate::core::segments::Names;
use crate::sync;
use std::panic::Location;

/// The buffers of a request, kept from one to the next.
#[derive(Default)]
struct Planned {
    plan: Plan,
    names: Names,
}

/// What all requests of a member have in common.
pub(crate) struct Asking {
    pub(crate) seeds: Seeds,
    /// What reports tell instead of the place in the source.
    pub(crate) location: Option<String>,
}

impl Asking {
    /// A request for these roots, which has no number yet.
    pub(crate) fn plan<P, R, W>(
        &self,
        reads: &[R],
        writes: &[W],
        owner: Owner,
        location: &Location<'_>,
    ) -> Result<Ask, PathError>
    where
        P: TreePath + ?Sized,
        R: AsRef<P>,
        W: AsRef<P>,
    {
        let Planned { mut plan, mut names } = sync::take_spare().unwrap_or_default();
        plan.build_and_name::<P, R, W>(&self.seeds, reads, writes, Some(&mut names))?;
        let steps: Vec<Step> = plan.steps().iter().map(|step| Step { node: step.node, mode: step.mode }).collect();
        let (mut roots, mut is_told) = (Vec::new(), vec![false; steps.len()]);
        let mut segments = names.iter();
        for nodes in plan.ways() {
            let segments = segments.by_ref().take(nodes.len() - 1).collect();
            let mut way: Vec<u32> = Vec::with_capacity(nodes.len());
            let steps = nodes.iter().enumerate().map_while(|(depth, step)| plan.index(step.node, depth));
            way.extend(steps.map(|index| index as u32));
            let last = way[way.len() - 1] as usize;
            if way.len() == nodes.len() && !std::mem::replace(&mut is_told[last], true) {
                roots.push(ToldRoot { segments, way });
            }
        }
        let place = Place::Source(location.file(), location.line(), location.column());
        let place = self.location.as_deref().map_or(place, Place::Other);
        let (thread, told) =
            sync::with_thread_info(|info| (info.id, Told { thread: &info.name, place, roots }.to_bytes()));
        drop(segments);
        if plan.is_small() && names.clear() {
            sync::keep_spare(Planned { plan, names });
        }
        let id = RequestId { member: MemberId(0), number: 0 };
        Ok(Ask { id, thread, owner, asked: 0, channel: None, absolute: None, steps, told })
    }
}
