//! One request: who asked for what, and where in the source.
//!
//! A request is told completely, user code and all, before anything is locked; it does not change afterwards, so
//! that reports can share it and spell it out after every internal lock is let go. A thread keeps a few spent ones, for
//! the buffers of their plans; the paths in them are dropped with the guard.

use crate::error::PathError;
use crate::path::{Seeds, TreePath};
use crate::plan::Plan;
use crate::sync::{self, ThreadInfo};
use std::panic::Location;
use std::sync::Arc;

/// A request with room for more roots is not kept for the next one.
const MOST_ROOTS: usize = 64;

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
    /// The roots as they were given, reads first.
    pub(crate) roots: Vec<P::Owned>,
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
                Arc::new(Request { plan, owner, thread, location, roots: Vec::new() })
            })
        });
        let this = Arc::get_mut(&mut request).expect("a spare request is nobody else's");
        sync::with_thread_info(|thread| {
            if this.thread.id != thread.id {
                this.thread = Arc::clone(thread);
            }
        });
        this.plan.build::<P, Q>(seeds, reads, writes)?;
        this.roots.extend(reads.iter().chain(writes).map(|path| path.as_ref().to_owned()));
        this.owner = owner;
        this.location = location;
        Ok(request)
    }

    /// Keeps the buffers of a spent request for the thread's next one.
    pub(crate) fn recycle(mut self: Arc<Self>) {
        if let Some(request) = Arc::get_mut(&mut self) {
            request.roots.clear();
            if request.plan.is_small() && request.roots.capacity() <= MOST_ROOTS {
                sync::keep_spare(self);
            }
        }
    }
}
