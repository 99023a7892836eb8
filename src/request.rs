//! One request: who asked for what, and where in the source.
//!
//! A request is told completely, user code and all, before anything is locked; it does not change afterwards, so
//! that reports can share it and spell it out after every internal lock is let go. A thread keeps a few spent ones:
//! their buffers make the next request without an allocation.

use crate::error::PathError;
use crate::path::{Seeds, TreePath};
use crate::plan::Plan;
use crate::sync::{self, ThreadInfo};
use std::panic::Location;
use std::sync::Arc;

/// Whose guards a request does not wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Those of its thread: it made a plain guard, which stays there.
    Thread,
    /// Nobody's: its guard may go anywhere.
    Itself,
}

pub(crate) struct Request<P: TreePath + ?Sized> {
    pub(crate) plan: Plan,
    pub(crate) owner: Owner,
    /// The thread that asked. A plain guard stays there; a blocked request of either kind does.
    pub(crate) thread: Arc<ThreadInfo>,
    pub(crate) location: &'static Location<'static>,
    /// The roots as they were given, reads first. There may be more, left from a request before.
    roots: Vec<P::Owned>,
    root_count: usize,
}

impl<P: TreePath + ?Sized> Request<P> {
    pub(crate) fn new<Q: AsRef<P>>(
        seeds: &Seeds,
        reads: &[Q],
        writes: &[Q],
        owner: Owner,
        location: &'static Location<'static>,
    ) -> Result<Arc<Self>, PathError> {
        let mut request = sync::with_thread_info(|thread| {
            sync::take_spare::<Self>().unwrap_or_else(|| {
                let plan = Plan::default();
                let thread = Arc::clone(thread);
                Arc::new(Request { plan, owner, thread, location, roots: Vec::new(), root_count: 0 })
            })
        });
        let this = Arc::get_mut(&mut request).expect("a spare request is nobody else's");
        sync::with_thread_info(|thread| {
            if this.thread.id != thread.id {
                this.thread = Arc::clone(thread);
            }
        });
        this.plan.build::<P, Q>(seeds, reads, writes)?;
        this.keep_roots(reads.iter().chain(writes).map(AsRef::as_ref));
        this.owner = owner;
        this.location = location;
        Ok(request)
    }

    /// Keeps the buffers of a spent request for the thread's next one.
    pub(crate) fn recycle(mut self: Arc<Self>) {
        if Arc::get_mut(&mut self).is_some_and(|request| request.plan.is_small()) {
            sync::keep_spare(self);
        }
    }

    pub(crate) fn roots(&self) -> &[P::Owned] {
        &self.roots[..self.root_count]
    }

    fn keep_roots<'p>(&mut self, roots: impl Iterator<Item = &'p P>) {
        self.root_count = 0;
        for root in roots {
            match self.roots.get_mut(self.root_count) {
                Some(old) => root.clone_into(old),
                None => self.roots.push(root.to_owned()),
            }
            self.root_count += 1;
        }
    }
}
