//! The lock between machines for tasks: a future that locks. How a task waits is in `client/tasks.rs`.

use super::client::Granted;
use super::client::tasks::Asked;
use super::error::MachineLockError;
use super::guard::ArcMachineGuard;
use super::{MachineTreeLock, Open, are_absolute, odd_frame, plan};
use crate::core::owner::Owner;
use crate::core::path::TreePath;
use crate::core::roots::{NoPath, Roots};
use crate::face::Stage;
use crate::replica::ask::Asking;
use crate::trace::Wait;
use futures_core::FusedFuture;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::mem;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

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
    stage: Stage<Waits>,
    paths: PhantomData<fn(&P)>,
}

/// A request that waits.
struct Waits {
    wait: Wait,
    absolute: Option<bool>,
    asked: Asked,
}

impl<P: ?Sized + TreePath> MachineTreeLock<P> {
    /// Locks as [`lock`](Self::lock) does, for a task: while it waits, for others or for the engine, its thread does something else.
    ///
    /// The guard is an owner of its own, as one of [`lock_arc`](Self::lock_arc) is, and may go anywhere. To drop it does not wait
    /// for the engine; its `release` and `downgrade` do, and so does whatever is the last to have the lock: it tells the engine that
    /// the session has ended. The lists are given as they are or borrowed; a future that owns them can leave the function that made it.
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
        let (reads, writes) = (this.reads.as_slice(), this.writes.as_slice());
        if matches!(this.stage, Stage::Fresh) {
            // If a path panics it has ended.
            this.stage = Stage::Ended;
            let wait = Wait::begin();
            match are_absolute(reads, writes) {
                Ok(absolute) => this.stage = Stage::Waits(Waits { wait, absolute, asked: Asked::default() }),
                Err(error) => return Poll::Ready(this.end(wait, Err(error.into()))),
            }
        }
        let Stage::Waits(Waits { absolute, asked, .. }) = &mut this.stage else { return Poll::Pending };
        let plan = |asking: &Asking| plan(asking, reads, writes, Owner::Itself, this.location, *absolute);
        let odd_frame = || odd_frame(reads, writes);
        let granted = ready!(this.client.0.poll_acquire(asked, context.waker(), plan, odd_frame));
        match mem::replace(&mut this.stage, Stage::Ended) {
            Stage::Waits(Waits { wait, .. }) => Poll::Ready(this.end(wait, granted)),
            Stage::Fresh | Stage::Ended => unreachable!("it has waited until now"),
        }
    }
}

impl<P: ?Sized + TreePath, R: Roots<P>, W: Roots<P>> MachineLockFuture<P, R, W> {
    /// Makes the guard, and tells of the outcome; a subscriber may panic, so the grant is in its guard by then.
    fn end(&self, wait: Wait, granted: Result<Granted, MachineLockError>) -> <Self as Future>::Output {
        let outcome = granted.map(|granted| ArcMachineGuard::of(&self.client, granted));
        wait.end(self.location, &outcome, &self.reads, &self.writes);
        outcome
    }
}

impl<P: ?Sized + TreePath, R: Roots<P>, W: Roots<P>> FusedFuture for MachineLockFuture<P, R, W> {
    fn is_terminated(&self) -> bool {
        self.stage.is_ended()
    }
}

/// Nothing in it is pinned.
impl<P: ?Sized + TreePath, R, W> Unpin for MachineLockFuture<P, R, W> {}

impl<P: ?Sized + TreePath, R, W> Drop for MachineLockFuture<P, R, W> {
    fn drop(&mut self) {
        if let Stage::Waits(waits) = &mut self.stage {
            self.client.0.abandon(&mut waits.asked);
        }
    }
}

/// Shows how far it has come.
impl<P: ?Sized + TreePath, R, W> fmt::Debug for MachineLockFuture<P, R, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stage.show("MachineLockFuture", f)
    }
}
