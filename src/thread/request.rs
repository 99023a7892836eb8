//! One request: who asked for what, and where in the source.
//!
//! A request is told completely, user code and all, before anything is locked; it does not change afterwards, so
//! that reports can share it and spell it out after every internal lock is let go. A guard that is weakened gets another. A thread keeps a few spent ones, for
//! their buffers; the paths in them are dropped, or emptied, with the guard.

use crate::core::mode::Mode;
use crate::core::node_id::Seeds;
use crate::core::owner::{Owner, OwnerId};
use crate::core::path::{Frame, PathError, TreePath, common_frame};
use crate::core::plan::Plan;
use crate::sync::{self, ThreadInfo};
use std::borrow::Borrow;
use std::panic::Location;
use std::sync::Arc;

/// A request with room for more roots is not kept for the next one.
const MOST_ROOTS: usize = 64;

/// A request as its guard's entry, reports and snapshots have it.
pub(crate) type SharedRequest<P> = triomphe::Arc<Request<P>>;

pub(crate) struct Request<P: TreePath + ?Sized> {
    pub(crate) plan: Plan,
    pub(crate) owner: Owner,
    /// That of its paths, if one of them has one.
    pub(crate) frame: Option<Frame>,
    /// The thread that asked. A plain guard stays there; a blocked request of either kind does.
    pub(crate) thread: Arc<ThreadInfo>,
    pub(crate) location: &'static Location<'static>,
    /// The roots as they were given, reads first.
    pub(crate) roots: Vec<P::Owned>,
    /// Emptied roots of earlier requests.
    emptied: Vec<P::Owned>,
}

impl<P: TreePath + ?Sized> Request<P> {
    pub(crate) fn new<R: AsRef<P>, W: AsRef<P>>(
        seeds: &Seeds,
        reads: &[R],
        writes: &[W],
        owner: Owner,
        location: &'static Location<'static>,
    ) -> Result<SharedRequest<P>, PathError> {
        let mut request = sync::with_thread_info(|thread| {
            sync::take_spare::<SharedRequest<P>>().unwrap_or_else(|| {
                let plan = Plan::default();
                let thread = Arc::clone(thread);
                let (roots, emptied) = (Vec::new(), Vec::new());
                SharedRequest::new(Request { plan, owner, frame: None, thread, location, roots, emptied })
            })
        });
        let this = SharedRequest::get_mut(&mut request).expect("a spare request is nobody else's");
        sync::with_thread_info(|thread| {
            if this.thread.id != thread.id {
                this.thread = Arc::clone(thread);
            }
        });
        this.plan.build::<P, R, W>(seeds, reads, writes)?;
        let paths = || reads.iter().map(AsRef::as_ref).chain(writes.iter().map(AsRef::as_ref));
        this.frame = common_frame(paths())?;
        for path in paths() {
            let root = match this.emptied.pop() {
                Some(mut root) => {
                    path.clone_into(&mut root);
                    root
                }
                None => path.to_owned(),
            };
            this.roots.push(root);
        }
        this.owner = owner;
        this.location = location;
        Ok(request)
    }

    /// Whose guard it is, or will be.
    #[inline]
    pub(crate) fn owner_id(&self) -> Option<OwnerId> {
        self.owner.id(self.thread.id)
    }

    /// The same request for some of its roots, each in the mode that `keep` says: given the index and the mode of each.
    pub(crate) fn of_some(&self, mut keep: impl FnMut(usize, Mode) -> Option<Mode>) -> SharedRequest<P> {
        let mut roots = Vec::new();
        let plan = self.plan.of_some(|index, mode| {
            let kept = keep(index, mode)?;
            roots.push(self.roots[index].borrow().to_owned());
            Some(kept)
        });
        let thread = Arc::clone(&self.thread);
        let Request { owner, frame, location, .. } = *self;
        SharedRequest::new(Request { plan, owner, frame, thread, location, roots, emptied: Vec::new() })
    }

    /// Keeps the buffers of a spent request for the thread's next one.
    pub(crate) fn recycle(mut this: SharedRequest<P>) {
        if let Some(request) = SharedRequest::get_mut(&mut this) {
            while let Some(mut root) = request.roots.pop() {
                if P::clear(&mut root) {
                    request.emptied.push(root);
                }
            }
            if request.plan.is_small() && request.roots.capacity().max(request.emptied.capacity()) <= MOST_ROOTS {
                sync::keep_spare(this);
            }
        }
    }
}
