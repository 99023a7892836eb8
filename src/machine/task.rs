//! The lock between machines for tasks: a future that locks. How a task waits is in `client/tasks.rs`.

use super::client::tasks::Asked;
use super::error::MachineLockError;
use super::guard::ArcMachineGuard;
use super::{MachineTreeLock, Open, plan_of};
use crate::core::owner::Owner;
use crate::core::path::{self, TreePath};
use crate::core::roots::{NoPath, Roots};
use crate::trace::Wait;
use futures_core::FusedFuture;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The future of [`MachineTreeLock::lock_async`] and its like: it ends when it holds everything.
///
/// It is lazy: it does nothing before it is polled. When it has ended it stays pending ([`FusedFuture`]). To drop it gives the
/// request up; to forget it ([`std::mem::forget`]) leaves the request until the session ends.
#[must_use = "a future does nothing unless it is polled or awaited"]
pub struct MachineLockFuture<P: ?Sized + TreePath, R, W> {
    client: Arc<Open>,
    reads: R,
    writes: W,
    location: &'static Location<'static>,
    stage: Stage,
    paths: PhantomData<fn(&P)>,
}

enum Stage {
    Fresh,
    Waits(Wait, Asked),
    Ended,
}

impl<P: ?Sized + TreePath> MachineTreeLock<P> {
    /// Locks as [`lock`](Self::lock) does, for a task: while it waits, for others or for the engine, its thread does something else.
    ///
    /// The guard is an owner of its own, as one of [`lock_arc`](Self::lock_arc) is, and may go anywhere. To drop it does not wait
    /// for the engine; its `release` and `downgrade` do. The lists are given as they are or borrowed; a future that owns them can leave the function that made it.
    ///
    /// To drop the future at any time leaves nothing behind, so that the deadlines of a runtime work
    /// ([`TreeLock::lock_async`](crate::TreeLock::lock_async) has an example).
    ///
    /// ```no_run
    /// # use treelock::machine::{self, Options};
    /// # async fn rename() -> Result<(), Box<dyn std::error::Error>> {
    /// let lock = machine::connect::<str>("redis://127.0.0.1/", "my-app:files", Options::new())?;
    /// let moving = lock.lock_async([], ["inbox/report", "archive/2026"]).await?;
    /// // Other tasks of this thread go on.
    /// drop(moving);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`MachineLockError::Path`], [`MachineLockError::Engine`]. Nothing is held then.
    ///
    /// # Cost
    ///
    /// A thread of the lock sends what tasks ask for, and one more wakes them: it begins with the first task that waits.
    #[track_caller]
    pub fn lock_async<R: Roots<P>, W: Roots<P>>(&self, reads: R, writes: W) -> MachineLockFuture<P, R, W> {
        let (client, location) = (Arc::clone(&self.client), Location::caller());
        MachineLockFuture { client, reads, writes, location, stage: Stage::Fresh, paths: PhantomData }
    }

    /// Locks the sub-tree below `path` shared: `lock_async([path], [])`.
    ///
    /// # Errors
    ///
    /// As [`lock_async`](Self::lock_async).
    #[track_caller]
    pub fn read_async<Q: AsRef<P>>(&self, path: Q) -> MachineLockFuture<P, [Q; 1], [NoPath; 0]> {
        self.lock_async([path], [])
    }

    /// Locks the sub-tree below `path` exclusively: `lock_async([], [path])`.
    ///
    /// # Errors
    ///
    /// As [`lock_async`](Self::lock_async).
    #[track_caller]
    pub fn write_async<Q: AsRef<P>>(&self, path: Q) -> MachineLockFuture<P, [NoPath; 0], [Q; 1]> {
        self.lock_async([], [path])
    }
}

impl<P: ?Sized + TreePath, R: Roots<P>, W: Roots<P>> Future for MachineLockFuture<P, R, W> {
    type Output = Result<ArcMachineGuard, MachineLockError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if matches!(this.stage, Stage::Fresh) {
            this.stage = Stage::Waits(Wait::begin(), Asked::default());
        }
        let Stage::Waits(_, asked) = &mut this.stage else { return Poll::Pending };
        let (reads, writes) = (this.reads.as_slice(), this.writes.as_slice());
        let plan = plan_of::<P, _, _>(reads, writes, Owner::Itself, this.location);
        let paths = || reads.iter().map(AsRef::as_ref).chain(writes.iter().map(AsRef::as_ref));
        let odd_frame = || path::odd_frame_of_namespace(paths()).into();
        let granted = match plan {
            Ok(plan) => this.client.0.poll_acquire(asked, context.waker(), plan, odd_frame),
            Err(error) => Some(Err(error)),
        };
        let Some(granted) = granted else { return Poll::Pending };
        let outcome = granted.map(|granted| ArcMachineGuard::of(&this.client, granted));
        if let Stage::Waits(wait, _) = std::mem::replace(&mut this.stage, Stage::Ended) {
            wait.end_of(this.location, &outcome, &this.reads, &this.writes);
        }
        Poll::Ready(outcome)
    }
}

impl<P: ?Sized + TreePath, R: Roots<P>, W: Roots<P>> FusedFuture for MachineLockFuture<P, R, W> {
    fn is_terminated(&self) -> bool {
        matches!(self.stage, Stage::Ended)
    }
}

/// Nothing in it is pinned.
impl<P: ?Sized + TreePath, R, W> Unpin for MachineLockFuture<P, R, W> {}

impl<P: ?Sized + TreePath, R, W> Drop for MachineLockFuture<P, R, W> {
    fn drop(&mut self) {
        if let Stage::Waits(_, asked) = &mut self.stage {
            self.client.0.abandon(asked);
        }
    }
}

/// Shows how far it has come.
impl<P: ?Sized + TreePath, R, W> fmt::Debug for MachineLockFuture<P, R, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            Stage::Fresh => "not polled",
            Stage::Waits(..) => "waits",
            Stage::Ended => "ended",
        };
        f.debug_struct("MachineLockFuture").field("stage", &format_args!("{stage}")).finish_non_exhaustive()
    }
}
