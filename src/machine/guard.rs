//! What a holder has, between machines: a guard releases its request when it is dropped, can turn its writes into reads, and
//! tells its fence and until when it is valid.

use super::client::{Client, Granted};
use super::error::EngineError;
use super::{MachineTreeLock, Open};
use crate::core::path::TreePath;
use crate::face::guards;
use crate::inspect::Root;
use crate::thread::guard::StaysInItsThread;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Instant;

/// Sub-trees that are held by the thread that asked for them, against all clients of all machines, until this is dropped or
/// [lost](MachineGuard::is_valid). `Debug` and `Display` show them, or that the lock is busy; `Debug` the fence too.
#[must_use = "what it holds is released when the guard is dropped, here at once"]
pub struct MachineGuard<'a, P: ?Sized + TreePath = str> {
    lock: &'a MachineTreeLock<P>,
    granted: Option<Granted>,
    _stays: StaysInItsThread,
}

/// Sub-trees that are held until this is dropped, on whatever thread that is, or lost. It keeps the session of its lock.
/// `Debug` and `Display` are as those of [`MachineGuard`].
#[must_use = "what it holds is released when the guard is dropped, here at once"]
pub struct ArcMachineGuard {
    /// Whatever its paths are: a guard has no use for their type.
    lock: MachineTreeLock,
    granted: Option<Granted>,
}

impl<'a, P: ?Sized + TreePath> MachineGuard<'a, P> {
    pub(super) fn new(lock: &'a MachineTreeLock<P>, granted: Granted) -> Self {
        MachineGuard { lock, granted: Some(granted), _stays: StaysInItsThread(PhantomData) }
    }
}

impl ArcMachineGuard {
    pub(super) fn new<P: ?Sized + TreePath>(lock: &MachineTreeLock<P>, granted: Granted) -> Self {
        Self::of(&lock.client, granted)
    }

    pub(super) fn of(client: &Arc<Open>, granted: Granted) -> Self {
        let lock = MachineTreeLock { client: Arc::clone(client), paths: PhantomData };
        ArcMachineGuard { lock, granted: Some(granted) }
    }
}

guards! {
    impl['a, P: ?Sized + TreePath] MachineGuard<'a, P>;
    impl[] ArcMachineGuard;
    shows [fence];
    {
        /// A number that is higher than that of every grant before with which this one conflicts, whatever was lost in
        /// between. Give it to what is written, and let that refuse lower ones than the highest it has seen.
        ///
        /// Grants that do not conflict have fences in any order. So a store of a tree keeps the fence of each write with its
        /// path, and refuses a write if a higher fence stands at its path, above it or below it. A holder tells it the fence at
        /// its roots first, so that late writes are refused where it only reads, too. (The README has such a store.) A nested
        /// guard has a higher fence than the outer one: give what is written below both of them the inner one's, to the end.
        #[must_use]
        pub fn fence(&self) -> u64 {
            self.granted().fence.0
        }

        /// Whether nobody else can have been granted what this holds. Once it is `false` it stays so.
        ///
        /// It is read from this machine's monotonic clock, which counts no time while the machine is suspended. And a server
        /// whose clock is set forward by more than the margin ends sessions early. The fence holds nevertheless. See [what a lease cannot
        /// promise](MachineTreeLock#what-a-lease-can-promise-and-what-it-cannot).
        #[must_use]
        pub fn is_valid(&self) -> bool {
            self.granted().joined.lease.is_valid_at(Instant::now())
        }

        /// Until when [it is valid](Self::is_valid) if the session is not renewed once more; a moment of the past if it is
        /// lost.
        #[must_use]
        pub fn valid_until(&self) -> Instant {
            self.granted().joined.lease.end()
        }

        /// Has `callback` called when this is lost, by a thread of the lock, or by one that is asking it for something; at
        /// once, by this thread, if it is lost. So it must not wait for what such a thread may have. Not
        /// if the guard is released before. It must be short: no session is renewed meanwhile. A panic of it is caught.
        pub fn on_lost(&self, callback: impl FnOnce() + Send + 'static) {
            let granted = self.granted();
            granted.joined.lease.on_lost(granted.id.number, Box::new(callback));
        }

        /// Turns the writes into reads, without letting go in between, and lets in all who may come then.
        ///
        /// # Errors
        ///
        /// [`EngineError`]. Its writes may be reads then, or become so at any time after, since it is tried again until the
        /// session ends. So write no more.
        pub fn downgrade(&mut self) -> Result<(), EngineError> {
            self.client().downgrade(self.granted())
        }

        /// Releases what it holds, as dropping it does, and says whether it was held up to then.
        ///
        /// # Errors
        ///
        /// [`EngineError::Lost`], if others may have been let in before. [`EngineError::Away`] and
        /// [`Refused`](EngineError::Refused), if the release could not be written; it is tried again until the session ends.
        pub fn release(mut self) -> Result<(), EngineError> {
            match self.granted.take() {
                Some(granted) => self.client().release(&granted, true),
                None => Ok(()),
            }
        }

        fn granted(&self) -> &Granted {
            self.granted.as_ref().expect("it is taken when the guard is released, and not used after that")
        }

        fn client(&self) -> &Client {
            &self.lock.client.0
        }

        fn let_go(&mut self) {
            if let Some(granted) = self.granted.take() {
                let _ = self.client().release(&granted, false);
            }
        }

        fn roots(&self) -> Option<Vec<Root>> {
            self.client().roots(self.granted())
        }
    }
}
