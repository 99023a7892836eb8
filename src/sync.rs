//! The only file that names synchronization primitives: those of `parking_lot`, `crossbeam` and `std`, or of a model
//! checker.
//!
//! Everything that blocks, is shared between threads or knows which thread it runs on goes through here, so
//! that the shipped lock itself is what the models run. The condition variable takes its guard by value and
//! returns it, the one form that all worlds can offer without `unsafe`.
//!
//! | | ordinary build | features `loom` and `shuttle` |
//! |---|---|---|
//! | [`Mutex`], [`Condvar`] | `parking_lot` | the model's; waits have no deadline, see `waiter.rs` |
//! | [`with_thread_info`] | a thread-local | the model's thread-local |
//! | [`random_seed`] | random | fixed: an interleaving must replay |
//! | [`AtomicU64`] | `std`'s | the model's |
//! | [`SHARDS`], [`REGISTERS`], [`SLOTS`], [`WARM`], [`EVICT`], [`OWNERS`], [`TO_OWN`], [`SPARES`] and their like | many | few: models stay small |
//!
//! Three more atomics are `std`'s in both worlds, since nothing is published by them: the counter that numbers the
//! threads, and the [`AtomicU32`] of an estimate in `bias.rs` and of hints in `own.rs`.

pub(crate) use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

pub(crate) use imp::*;

/// A moment, exact to a tick of the system's clock (some milliseconds). It costs a fifth of an exact one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment(coarsetime::Instant);

impl Moment {
    #[inline]
    pub(crate) fn now() -> Self {
        Moment(coarsetime::Instant::now())
    }

    #[cfg(feature = "tracing")]
    #[inline]
    pub(crate) fn elapsed(self) -> std::time::Duration {
        self.0.elapsed().into()
    }
}

/// The present on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Present {
    pub(crate) time: SystemTime,
    moment: Moment,
}

impl Present {
    pub(crate) fn now() -> Self {
        Present { time: SystemTime::now(), moment: Moment::now() }
    }

    /// When a moment of the past was, if the clock was not set since.
    pub(crate) fn time_of(self, past: Moment) -> SystemTime {
        let ago = self.moment.0.duration_since(past.0);
        self.time.checked_sub(ago.into()).unwrap_or(self.time)
    }
}

/// What the lock knows of a thread.
#[derive(Debug)]
pub(crate) struct ThreadInfo {
    /// Unique for the life of the process; never reused, so that no later thread inherits a guard that a dead thread
    /// forgot.
    pub(crate) id: u64,
    pub(crate) name: String,
}

impl ThreadInfo {
    fn new(id: u64) -> Self {
        let name = match std::thread::current().name() {
            Some(name) => name.to_owned(),
            None => format!("unnamed-{id}"),
        };
        ThreadInfo { id, name }
    }
}

/// A number for a thread, from 1 on.
fn next_thread(next: &std::sync::atomic::AtomicU64) -> u64 {
    // Relaxed: only uniqueness matters, nothing is published with the number.
    next.fetch_add(1, Ordering::Relaxed)
}

/// A number for an explicit owner, from the same sequence as those of the threads.
pub(crate) fn new_owner_id() -> u64 {
    next_thread(imp::next())
}

/// Calls a waker. Its panic is no business of the thread that calls it, and the panic hook has told of it; to drop what it
/// carried might panic again.
#[cfg(feature = "async")]
pub(crate) fn wake(waker: std::task::Waker) {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
        std::mem::forget(panic);
    }
}

#[cfg(not(feature = "model"))]
mod imp {
    use super::ThreadInfo;
    #[cfg(feature = "replica")]
    use std::any::Any;
    use std::cell::Cell;
    #[cfg(feature = "replica")]
    use std::cell::RefCell;
    use std::sync::Arc;
    use std::time::Instant;

    use crossbeam_utils::Backoff;
    pub(crate) use crossbeam_utils::CachePadded;
    pub(crate) use parking_lot::MutexGuard;
    pub(crate) use std::sync::atomic::AtomicU64;

    /// The shards of the table: enough that threads on many cores rarely meet by chance.
    pub(crate) const SHARDS: usize = 64;

    /// The biased nodes that a shard can have.
    pub(crate) const SLOTS: usize = 8;

    /// After this many weak grants without a bias, a node takes the place of another's bias.
    pub(crate) const EVICT: u32 = 4096;

    /// The weak grants of a node after which it may be biased.
    pub(crate) const WARM: u32 = 8;

    /// The registers of the ledger: this many threads have one of their own.
    pub(crate) const REGISTERS: usize = 64;

    /// The nodes that a register can own: this many sets, with this many nodes each.
    pub(crate) const OWNED_SETS: usize = 8;
    pub(crate) const OWNED_WAYS: usize = 4;

    /// The nodes of a shard that can be owned.
    pub(crate) const OWNERS: usize = 4;

    /// The releases in a row after which a register owns a node, and the most that it takes for a node that was often
    /// disowned.
    pub(crate) const TO_OWN: u16 = 4;
    pub(crate) const MOST_TO_OWN: u16 = 64;

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(parking_lot::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(parking_lot::Mutex::new(value))
        }

        #[inline]
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock()
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock()
        }

        #[cfg(feature = "process")]
        pub(crate) fn try_lock_until(&self, deadline: Instant) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock_until(deadline)
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct Condvar(parking_lot::Condvar);

    impl Condvar {
        /// Whether there was a thread to wake.
        pub(crate) fn notify_one(&self) -> bool {
            self.0.notify_one()
        }

        /// Waits for a notification, or until the deadline, and says whether that has passed. May wake for no reason.
        pub(crate) fn wait_until<'a, T>(
            &self,
            mut guard: MutexGuard<'a, T>,
            deadline: Option<Instant>,
        ) -> (MutexGuard<'a, T>, bool) {
            let passed = match deadline {
                Some(deadline) => self.0.wait_until(&mut guard, deadline).timed_out(),
                None => {
                    self.0.wait(&mut guard);
                    false
                }
            };
            (guard, passed)
        }
    }

    thread_local! {
        /// Needs no destructor, so it can be read while the thread's other locals are being destroyed: a thread that
        /// locks there is still the owner of what it holds.
        static ID: Cell<u64> = const { Cell::new(0) };
        static INFO: Arc<ThreadInfo> = Arc::new(ThreadInfo::new(thread_id()));
    }

    static NEXT: AtomicU64 = AtomicU64::new(1);

    pub(crate) fn next() -> &'static AtomicU64 {
        &NEXT
    }

    /// The number of the calling thread.
    #[inline]
    pub(crate) fn thread_id() -> u64 {
        ID.with(|id| {
            if id.get() == 0 {
                id.set(super::next_thread(&NEXT));
            }
            id.get()
        })
    }

    /// The calling thread, without a clone.
    #[inline]
    pub(crate) fn with_thread_info<R>(read: impl FnOnce(&Arc<ThreadInfo>) -> R) -> R {
        let mut read = Some(read);
        let seen = INFO.try_with(|info| (read.take().expect("runs once"))(info));
        seen.unwrap_or_else(|_| (read.take().expect("did not run"))(&Arc::new(ThreadInfo::new(thread_id()))))
    }

    pub(crate) fn thread_info() -> Arc<ThreadInfo> {
        with_thread_info(Arc::clone)
    }

    /// The most spares that are kept in one place: as many guards as are usually nested.
    pub(crate) const SPARES: usize = 4;

    #[cfg(feature = "replica")]
    thread_local! {
        /// A `Vec<T>` for each type of them.
        static SPARES_BY_TYPE: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
    }

    /// A spent object of the calling thread, if it keeps one of this type.
    #[cfg(feature = "replica")]
    pub(crate) fn take_spare<T: Any>() -> Option<T> {
        let take = |shelves: &RefCell<Vec<Box<dyn Any>>>| {
            shelves.borrow_mut().iter_mut().find_map(|shelf| shelf.downcast_mut::<Vec<T>>()).and_then(Vec::pop)
        };
        SPARES_BY_TYPE.try_with(take).ok().flatten()
    }

    /// Keeps an object for [`take_spare`], or drops it, if there are enough or the thread ends.
    #[cfg(feature = "replica")]
    pub(crate) fn keep_spare<T: Any>(spare: T) {
        let mut spare = Some(spare);
        // An object that is not kept is dropped after the cell is released, since its drop might come back here.
        let _ = SPARES_BY_TYPE.try_with(|shelves| {
            let mut shelves = shelves.borrow_mut();
            match shelves.iter_mut().find_map(|shelf| shelf.downcast_mut::<Vec<T>>()) {
                Some(shelf) if shelf.len() < SPARES => shelf.extend(spare.take()),
                Some(_) => {}
                None => shelves.push(Box::new(Vec::from_iter(spare.take()))),
            }
        });
    }

    /// Tries for some microseconds, which is less than it takes to park and to be woken.
    #[inline]
    pub(crate) fn spin(mut done: impl FnMut() -> bool) -> bool {
        let backoff = Backoff::new();
        while !backoff.is_completed() {
            if done() {
                return true;
            }
            backoff.snooze();
        }
        false
    }

    /// A seed that an adversary cannot know.
    pub(crate) fn random_seed() -> u64 {
        use std::hash::{BuildHasher, Hasher, RandomState};
        RandomState::new().build_hasher().finish()
    }
}

#[cfg(feature = "model")]
mod imp {
    use super::ThreadInfo;
    use std::ops::Deref;
    use std::sync::Arc;

    #[cfg(feature = "loom")]
    use loom as world;
    #[cfg(not(feature = "loom"))]
    use shuttle as world;

    pub(crate) use world::sync::MutexGuard;
    pub(crate) use world::sync::atomic::AtomicU64;

    pub(crate) const SHARDS: usize = 2;

    pub(crate) const SLOTS: usize = 2;

    pub(crate) const EVICT: u32 = 2;

    /// At once; otherwise a model would never see a bias.
    pub(crate) const WARM: u32 = 1;

    /// One for each of three threads; otherwise a shared register would order what the tags have to order.
    pub(crate) const REGISTERS: usize = 3;

    pub(crate) const OWNED_SETS: usize = 1;

    pub(crate) const OWNED_WAYS: usize = 2;

    pub(crate) const OWNERS: usize = 2;

    /// Not after one release; otherwise every thread of a model would own what it takes once. No later for a node
    /// that was disowned.
    pub(crate) const TO_OWN: u16 = 2;

    pub(crate) const MOST_TO_OWN: u16 = 2;

    /// Padding has no meaning in a model.
    #[derive(Debug, Default)]
    pub(crate) struct CachePadded<T>(T);

    impl<T> CachePadded<T> {
        pub(crate) fn new(value: T) -> Self {
            CachePadded(value)
        }
    }

    impl<T> Deref for CachePadded<T> {
        type Target = T;
        fn deref(&self) -> &T {
            &self.0
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(world::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(world::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect(UNPOISONED)
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct Condvar(world::sync::Condvar);

    impl Condvar {
        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
            self.0.wait(guard).expect(UNPOISONED)
        }
    }

    const UNPOISONED: &str = "nothing panics under an internal lock";

    world::lazy_static! {
        /// Counts the threads of one iteration: which register a thread uses must not depend on earlier iterations.
        static ref NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    }

    pub(crate) fn next() -> &'static std::sync::atomic::AtomicU64 {
        &NEXT
    }

    world::thread_local! {
        static INFO: Arc<ThreadInfo> = Arc::new(ThreadInfo::new(super::next_thread(&NEXT)));
    }

    pub(crate) fn with_thread_info<R>(read: impl FnOnce(&Arc<ThreadInfo>) -> R) -> R {
        INFO.with(read)
    }

    pub(crate) fn thread_info() -> Arc<ThreadInfo> {
        with_thread_info(Arc::clone)
    }

    pub(crate) fn thread_id() -> u64 {
        with_thread_info(|info| info.id)
    }

    pub(crate) const SPARES: usize = 1;

    pub(crate) fn random_seed() -> u64 {
        0x5eed
    }
}
