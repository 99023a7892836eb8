//! The lock for tasks: futures that lock.
//!
//! A task asks and waits as a thread does (`acquire.rs`), in the same queues. Only what happens while it waits differs: it
//! leaves a waker in its [`Waiter`] and returns. The thread that grants its last step wakes it.
//!
//! | | |
//! |---|---|
//! | [`LockFuture`] | the future: what it asks for, how far it has come, and whose guard it will be |
//! | [`Waits`] | its request, while that waits |
//!
//! Invariants:
//!
//! 1. Before its first poll a future has done nothing. When it has ended it holds nothing: what was granted is in a guard.
//! 2. A request that waits is in the `Waits` of its future, or of its owner. To drop the future gives it up: it leaves its
//!    queue and lets on those behind it, or releases what was granted meanwhile (G7).
//! 3. An owner keeps the `Waits` of its own request. So a future that is forgotten ([`std::mem::forget`]) leaves no request
//!    that waits while its owner releases something: the owner gives it up first.
//! 4. Code of the user (paths, wakers, subscribers of events) runs under no internal lock, and may panic.
//!
//! Lock order: that of `acquire.rs`.
#![allow(private_interfaces, reason = "`Asks` is public for the type of the futures; its methods are for this crate")]

use crate::core::deadlock::{Left, Temper};
use crate::core::owner::Owner;
use crate::core::path::TreePath;
use crate::core::roots::{NoPath, Roots};
use crate::error::LockError;
use crate::face::Stage;
#[cfg(not(feature = "model"))]
use crate::patience::{FIRST_LOOK, next_look};
use crate::thread::acquire::{Asked, Entry, granted};
use crate::thread::guard::{ArcTreeLockGuard, AsyncTreeLockGuard};
use crate::thread::ledger::Key;
use crate::thread::lock::TreeLock;
use crate::thread::owner::{HeldLock, LockOwner};
use crate::thread::request::SharedRequest;
use crate::thread::waiter::{Sleeper, Waiter};
use crate::trace::Wait;
use futures_core::FusedFuture;
use std::fmt;
use std::future::Future;
use std::mem::{self, ManuallyDrop};
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
#[cfg(not(feature = "model"))]
use std::task::Waker;
use std::task::{Context, Poll};
#[cfg(not(feature = "model"))]
use std::time::Duration;

/// A request of a task that waits.
pub(crate) struct Waits<P: ?Sized + TreePath> {
    request: SharedRequest<P>,
    waiter: Arc<Waiter>,
    /// Only a nested request looks for deadlocks.
    look: Option<Look>,
}

/// When a request looks for a deadlock next.
struct Look {
    #[cfg(not(feature = "model"))]
    delay: futures_timer::Delay,
    #[cfg(not(feature = "model"))]
    rest: Duration,
}

impl Look {
    fn first() -> Self {
        Look {
            #[cfg(not(feature = "model"))]
            delay: futures_timer::Delay::new(FIRST_LOOK),
            #[cfg(not(feature = "model"))]
            rest: FIRST_LOOK,
        }
    }

    /// Whether it is time to look. If not, the waiter wakes its task when it is.
    #[cfg(not(feature = "model"))]
    fn is_due(&mut self, waiter: &Arc<Waiter>) -> bool {
        let wakes = Waker::from(Arc::clone(waiter));
        let is_due = Pin::new(&mut self.delay).poll(&mut Context::from_waker(&wakes)).is_ready();
        if is_due {
            self.rest = next_look(self.rest);
            self.delay.reset(self.rest);
        }
        is_due
    }

    /// A model's clock strikes.
    #[cfg(feature = "model")]
    fn is_due(&mut self, waiter: &Arc<Waiter>) -> bool {
        waiter.has_struck()
    }
}

/// How a request of a task has ended; and what it waited with. To drop that may run code of the user, so the grant is put
/// into its guard first.
type Settled<P> = (Result<Entry, LockError>, Option<Waits<P>>);

impl<P: ?Sized + TreePath> TreeLock<P> {
    /// Takes the steps of a request that has been entered, until it holds everything or has to wait.
    #[cold]
    fn set_out_of_task(&self, key: Key, request: SharedRequest<P>) -> Result<Entry, Waits<P>> {
        match self.set_out(key, &request, Temper::Refusable, Sleeper::Task) {
            None => Ok(granted(key, &request)),
            Some(waiter) => {
                let look = self.ledger.is_nested(&request, Sleeper::Task).then(Look::first);
                Err(Waits { request, waiter, look })
            }
        }
    }

    /// Looks whether a request that waits has ended.
    fn go_on(&self, place: &mut Option<Waits<P>>, context: &mut Context<'_>) -> Poll<Settled<P>> {
        let Some(Waits { request, waiter, look }) = place else { return Poll::Pending };
        if waiter.poll(context.waker()) {
            return Poll::Ready((Ok(granted(waiter.key, request)), place.take()));
        }
        let key = waiter.key;
        while look.as_mut().is_some_and(|look| look.is_due(waiter)) {
            if let Some(refusal) = self.look(key, &mut Left::default()) {
                let _waker = waiter.take_waker();
                let waits = place.take();
                return Poll::Ready((Err(self.explain(refusal)), waits));
            }
        }
        Poll::Pending
    }

    /// Gives up a request that waits; what it has been granted meanwhile is released.
    #[cold]
    pub(crate) fn abandon(&self, place: &mut Option<Waits<P>>) {
        // The waker and the timer are dropped after the rest, even by unwinding: they run code of the user.
        let Some(Waits { request, waiter, look: _look }) = place.take() else { return };
        let _waker = waiter.take_waker();
        // It is granted: what it holds is released before any others are woken.
        if let Err(_due) = self.give_up(waiter.key) {
            self.release(granted(waiter.key, &request));
        }
    }

    /// Locks as [`lock`](TreeLock::lock) does, for a task: while it waits, its thread does something else.
    ///
    /// Tasks and threads wait in the same queues, first come, first served. The guard is an owner of its own, as one of
    /// [`lock_arc`](TreeLock::lock_arc) is. Nothing happens before the future is polled.
    ///
    /// The lists are given as they are or borrowed (see [`Roots`]); a future that owns them can leave the function that
    /// made it.
    ///
    /// ```
    /// # pollster::block_on(async {
    /// let lock = treelock::TreeLock::new();
    /// let moving = lock.lock_async(&["config"], &["inbox/report", "archive/2026"]).await?;
    /// // Held across any other `.await`.
    /// drop(moving);
    ///
    /// let year = lock.lock_async([], [format!("site/{}", 2026)]);
    /// let guard = year.await?;
    /// # drop(guard);
    /// # Ok::<(), treelock::LockError>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Cancellation
    ///
    /// The future is cancel safe. To drop it at any time leaves nothing behind: the request leaves its queue, and those that waited behind it
    /// go on. So the deadlines of a runtime work:
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio::time::timeout;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let lock = treelock::TreeLock::new();
    /// let held = lock.read_async("a").await?;
    /// let late = timeout(Duration::from_millis(10), lock.write_async("a/b")).await;
    /// let late = late.map_err(|_| treelock::LockError::TimedOut).and_then(|outcome| outcome);
    /// assert!(matches!(late, Err(treelock::LockError::TimedOut)));
    /// assert!(lock.try_read("a/b").is_ok(), "nothing is left of it");
    /// # drop(held);
    /// # Ok::<(), treelock::LockError>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// [`LockError::Path`]. There is no panic for it, as there is in `lock`, since a task often gets its paths from others.
    ///
    /// # Cost
    ///
    /// That of `lock`. It allocates nothing if it need not wait. It is woken once, when it holds everything.
    #[track_caller]
    pub fn lock_async<R: Roots<P>, W: Roots<P>>(&self, reads: R, writes: W) -> LockFuture<&Self, R, W> {
        LockFuture::new(self, reads, writes)
    }

    /// Locks the sub-tree below `path` shared: `lock_async([path], [])`.
    ///
    /// # Errors
    ///
    /// As [`lock_async`](TreeLock::lock_async).
    #[track_caller]
    pub fn read_async<Q: AsRef<P>>(&self, path: Q) -> LockFuture<&Self, [Q; 1], [NoPath; 0]> {
        self.lock_async([path], [])
    }

    /// Locks the sub-tree below `path` exclusively: `lock_async([], [path])`.
    ///
    /// # Errors
    ///
    /// As [`lock_async`](TreeLock::lock_async).
    #[track_caller]
    pub fn write_async<Q: AsRef<P>>(&self, path: Q) -> LockFuture<&Self, [NoPath; 0], [Q; 1]> {
        self.lock_async([], [path])
    }

    /// As [`lock_async`](TreeLock::lock_async), but the future and the guard also own the lock.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// # tokio::runtime::Builder::new_multi_thread().build().unwrap().block_on(async {
    /// let lock = Arc::new(treelock::TreeLock::new());
    /// let moving = tokio::spawn(lock.lock_arc_async(["config"], ["inbox", "archive"]));
    /// let guard = moving.await.unwrap()?;
    /// tokio::spawn(async move { drop(guard) }).await.unwrap();
    /// # Ok::<(), treelock::LockError>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// As [`lock_async`](TreeLock::lock_async).
    #[track_caller]
    pub fn lock_arc_async<R: Roots<P>, W: Roots<P>>(
        self: &Arc<Self>,
        reads: R,
        writes: W,
    ) -> LockFuture<Arc<Self>, R, W> {
        LockFuture::new(Arc::clone(self), reads, writes)
    }

    /// As [`read_async`](TreeLock::read_async), but the future and the guard also own the lock.
    ///
    /// # Errors
    ///
    /// As [`lock_async`](TreeLock::lock_async).
    #[track_caller]
    pub fn read_arc_async<Q: AsRef<P>>(self: &Arc<Self>, path: Q) -> LockFuture<Arc<Self>, [Q; 1], [NoPath; 0]> {
        self.lock_arc_async([path], [])
    }

    /// As [`write_async`](TreeLock::write_async), but the future and the guard also own the lock.
    ///
    /// # Errors
    ///
    /// As [`lock_async`](TreeLock::lock_async).
    #[track_caller]
    pub fn write_arc_async<Q: AsRef<P>>(self: &Arc<Self>, path: Q) -> LockFuture<Arc<Self>, [NoPath; 0], [Q; 1]> {
        self.lock_arc_async([], [path])
    }
}

impl<P: ?Sized + TreePath> LockOwner<P> {
    /// Locks as [`TreeLock::lock_async`] does, for this owner: it never waits for what it holds itself, so requests of one
    /// task nest and upgrade as those of one thread do, and a deadlock among owners is reported.
    ///
    /// ```
    /// # pollster::block_on(async {
    /// use std::sync::Arc;
    ///
    /// let lock = Arc::new(treelock::TreeLock::new());
    /// let mut session = lock.owner();
    /// let reading = session.lock_async(&["docs"], &[]).await?;
    /// let writing = session.lock_async(&[], &["docs/index"]).await?;
    /// session.release(writing);
    /// session.release(reading);
    /// # Ok::<(), treelock::LockError>(())
    /// # }).unwrap();
    /// ```
    ///
    /// To drop the future gives up this request alone. The owner keeps what it has got by others, even if what named that was dropped
    /// too, as by a deadline around several requests: [`release_all`](LockOwner::release_all) releases it, or to drop the owner.
    ///
    /// With the first nested request that has to wait, a thread begins that tells such requests when to look for
    /// a deadlock; there is one in a process.
    ///
    /// # Errors
    ///
    /// [`LockError::Deadlock`], [`LockError::Path`].
    ///
    /// # Panics
    ///
    /// When it is polled, if that thread cannot be started.
    #[track_caller]
    pub fn lock_async<R: Roots<P>, W: Roots<P>>(&mut self, reads: R, writes: W) -> LockFuture<&mut Self, R, W> {
        self.settle();
        LockFuture::new(self, reads, writes)
    }

    /// Locks the sub-tree below `path` shared: `lock_async([path], [])`.
    ///
    /// # Errors
    ///
    /// As [`lock_async`](LockOwner::lock_async).
    #[track_caller]
    pub fn read_async<Q: AsRef<P>>(&mut self, path: Q) -> LockFuture<&mut Self, [Q; 1], [NoPath; 0]> {
        self.lock_async([path], [])
    }

    /// Locks the sub-tree below `path` exclusively: `lock_async([], [path])`.
    ///
    /// # Errors
    ///
    /// As [`lock_async`](LockOwner::lock_async).
    #[track_caller]
    pub fn write_async<Q: AsRef<P>>(&mut self, path: Q) -> LockFuture<&mut Self, [NoPath; 0], [Q; 1]> {
        self.lock_async([], [path])
    }
}

/// The future of [`TreeLock::lock_async`] and its like: it ends when it holds everything.
///
/// | `A`, what locks | made by | the guard |
/// |---|---|---|
/// | `&TreeLock<P>` | [`lock_async`](TreeLock::lock_async), `read_async`, `write_async` | [`AsyncTreeLockGuard`] |
/// | `Arc<TreeLock<P>>` | [`lock_arc_async`](TreeLock::lock_arc_async), `read_arc_async`, `write_arc_async` | [`ArcTreeLockGuard`] |
/// | `&mut LockOwner<P>` | [`LockOwner::lock_async`], `read_async`, `write_async` | [`HeldLock`] |
///
/// `R` and `W` are the lists of reads and writes, `[NoPath; 0]` where there are none. One that is stored by its type is best asked
/// for with two lists of one type:
///
/// ```
/// use std::sync::Arc;
/// use treelock::{LockFuture, TreeLock};
///
/// struct Job {
///     lock: LockFuture<Arc<TreeLock>, Vec<String>, Vec<String>>,
/// }
///
/// let lock = Arc::new(TreeLock::new());
/// let job = Job { lock: lock.lock_arc_async(vec![], vec!["inbox".into()]) };
/// let guard = pollster::block_on(job.lock)?;
/// # drop(guard);
/// # Ok::<(), treelock::LockError>(())
/// ```
///
/// Generic code is best written for what it is: `impl Future<Output = Result<G, LockError>>`.
///
/// It is cancel safe. In each round of a loop of `select!`, a new future gets a new place in the queue; `&mut future` keeps its
/// place. But it holds what it has been granted from then on, polled or not: so the other arms must not wait for anything that
/// conflicts with it, or they wait for ever.
///
/// The future is lazy: it does nothing before it is polled. When it has ended it stays pending ([`FusedFuture`]). To drop it gives
/// the request up; to forget it ([`std::mem::forget`]) leaves the request where it is, for ever or until its owner is used again.
#[must_use = "a future does nothing unless it is polled or awaited"]
pub struct LockFuture<A: Asks, R, W> {
    /// Its guard takes it.
    asks: Option<A>,
    reads: R,
    writes: W,
    location: &'static Location<'static>,
    stage: Stage<Wait>,
    /// `drop` takes it out, so there is nothing else to drop; to look again took longer than the rest.
    waits: ManuallyDrop<Option<Waits<A::Path>>>,
}

/// What asks for a lock, and gets its guard. Sealed: no other crate can name it.
pub trait Asks {
    type Path: ?Sized + TreePath;
    type Guard;

    fn owner(&self) -> Owner;

    /// Its lock, and where its request is while that waits: with the future, unless it has a place for it.
    fn lock<'a>(
        &'a mut self,
        own: &'a mut Option<Waits<Self::Path>>,
    ) -> (&'a TreeLock<Self::Path>, &'a mut Option<Waits<Self::Path>>);

    fn guard(self, entry: Entry) -> Self::Guard;
}

impl<'a, P: ?Sized + TreePath> Asks for &'a TreeLock<P> {
    type Path = P;
    type Guard = AsyncTreeLockGuard<'a, P>;

    #[inline]
    fn owner(&self) -> Owner {
        Owner::Itself
    }

    #[inline]
    fn lock<'b>(&'b mut self, own: &'b mut Option<Waits<P>>) -> (&'b TreeLock<P>, &'b mut Option<Waits<P>>) {
        (self, own)
    }

    #[inline]
    fn guard(self, entry: Entry) -> Self::Guard {
        AsyncTreeLockGuard::new(self, entry)
    }
}

impl<P: ?Sized + TreePath> Asks for Arc<TreeLock<P>> {
    type Path = P;
    type Guard = ArcTreeLockGuard<P>;

    #[inline]
    fn owner(&self) -> Owner {
        Owner::Itself
    }

    #[inline]
    fn lock<'b>(&'b mut self, own: &'b mut Option<Waits<P>>) -> (&'b TreeLock<P>, &'b mut Option<Waits<P>>) {
        (self, own)
    }

    #[inline]
    fn guard(self, entry: Entry) -> Self::Guard {
        ArcTreeLockGuard::of(self, entry)
    }
}

impl<P: ?Sized + TreePath> Asks for &mut LockOwner<P> {
    type Path = P;
    type Guard = HeldLock;

    #[inline]
    fn owner(&self) -> Owner {
        LockOwner::owner(self)
    }

    /// With the owner: invariant 3.
    #[inline]
    fn lock<'b>(&'b mut self, _own: &'b mut Option<Waits<P>>) -> (&'b TreeLock<P>, &'b mut Option<Waits<P>>) {
        self.lock_and_waits()
    }

    #[inline]
    fn guard(self, entry: Entry) -> HeldLock {
        self.hold(entry)
    }
}

impl<A: Asks, R, W> LockFuture<A, R, W> {
    #[track_caller]
    #[inline]
    fn new(asks: A, reads: R, writes: W) -> Self {
        let location = Location::caller();
        let (stage, waits) = (Stage::Fresh, ManuallyDrop::new(None));
        LockFuture { asks: Some(asks), reads, writes, location, stage, waits }
    }
}

impl<A: Asks, R: Roots<A::Path>, W: Roots<A::Path>> LockFuture<A, R, W> {
    /// The first poll.
    #[inline]
    fn ask(&mut self, context: &mut Context<'_>) -> Poll<<Self as Future>::Output> {
        let LockFuture { asks, reads, writes, location, stage, waits } = self;
        // If anything panics it has ended.
        *stage = Stage::Ended;
        let Some(asks) = asks else { return Poll::Pending };
        let wait = Wait::begin();
        let owner = asks.owner();
        let (lock, waits) = asks.lock(waits);
        let granted = match lock.ask(reads.as_slice(), writes.as_slice(), owner, location) {
            Ok(Asked::Granted(entry)) => Ok(entry),
            Ok(Asked::Entered(key, request)) => match lock.set_out_of_task(key, request) {
                Ok(entry) => Ok(entry),
                Err(begun) => {
                    *waits = Some(begun);
                    *stage = Stage::Waits(wait);
                    return self.go_on(context);
                }
            },
            Err(error) => Err(error),
        };
        Poll::Ready(self.end(wait, granted))
    }

    /// A poll while its request waits, or when it has ended.
    #[cold]
    fn go_on(&mut self, context: &mut Context<'_>) -> Poll<<Self as Future>::Output> {
        let LockFuture { asks, stage, waits, .. } = self;
        // If anything panics it has ended, and a request that waits still is given up when the future is dropped.
        let (Some(asks), Stage::Waits(wait)) = (asks, mem::replace(stage, Stage::Ended)) else {
            return Poll::Pending;
        };
        let (lock, waits) = asks.lock(waits);
        let Poll::Ready((granted, _spent)) = lock.go_on(waits, context) else {
            *stage = Stage::Waits(wait);
            return Poll::Pending;
        };
        Poll::Ready(self.end(wait, granted))
    }

    /// Makes the guard, and tells of the outcome; a subscriber may panic, so the grant is in its guard by then.
    #[inline]
    fn end(&mut self, wait: Wait, granted: Result<Entry, LockError>) -> <Self as Future>::Output {
        let outcome = granted.map(|entry| self.asks.take().expect("it has not ended yet").guard(entry));
        wait.end(self.location, &outcome, &self.reads, &self.writes);
        outcome
    }
}

impl<A: Asks, R: Roots<A::Path>, W: Roots<A::Path>> Future for LockFuture<A, R, W> {
    type Output = Result<A::Guard, LockError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        match this.stage {
            Stage::Fresh => this.ask(context),
            Stage::Waits(_) | Stage::Ended => this.go_on(context),
        }
    }
}

impl<A: Asks, R: Roots<A::Path>, W: Roots<A::Path>> FusedFuture for LockFuture<A, R, W> {
    fn is_terminated(&self) -> bool {
        self.stage.is_ended()
    }
}

/// Nothing in it is pinned.
impl<A: Asks, R, W> Unpin for LockFuture<A, R, W> {}

impl<A: Asks, R, W> Drop for LockFuture<A, R, W> {
    #[inline]
    fn drop(&mut self) {
        let Some(asks) = &mut self.asks else { return };
        let (lock, waits) = asks.lock(&mut self.waits);
        if waits.is_some() {
            lock.abandon(waits);
        }
    }
}

/// Shows how far it has come.
impl<A: Asks, R, W> fmt::Debug for LockFuture<A, R, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stage.show("LockFuture", f)
    }
}
