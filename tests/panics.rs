//! Paths whose own code panics leave the lock as it was (G8).
#![cfg(not(feature = "model"))]

mod common;

use common::{admits, join, panic_message, spawn, wait_until_waiting};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use treelock::{Frame, LockError, PathError, Segments, TreeLock, TreePath};

/// The places where the lock calls the code of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Place {
    Nowhere,
    BeforeSegments,
    BetweenSegments,
    AfterSegments,
    Hash,
    Debug,
    DebugOfSegment,
    Clone,
    Frame,
    Drop,
}

/// Panics at one place, once it is set.
#[derive(Default)]
struct Trap(AtomicU8);

impl Trap {
    fn set(&self, place: Place) {
        self.0.store(place as u8, Ordering::SeqCst);
    }

    fn at(&self, place: Place) {
        if self.0.load(Ordering::SeqCst) == place as u8 && !std::thread::panicking() {
            panic!("on purpose, at {place:?}");
        }
    }
}

/// A path of numbers, with a trap.
struct Trapped(Vec<u32>, Arc<Trap>);

impl Trapped {
    fn new(segments: &[u32], trap: &Arc<Trap>) -> Self {
        Trapped(segments.to_vec(), Arc::clone(trap))
    }
}

impl TreePath for Trapped {
    fn segments(&self, segments: &mut Segments<'_>) -> Result<(), PathError> {
        self.1.at(Place::BeforeSegments);
        for &number in &self.0 {
            if number == 0 {
                return Err(PathError::new("zero"));
            }
            segments.push(&Segment(number, &self.1));
            self.1.at(Place::BetweenSegments);
        }
        self.1.at(Place::AfterSegments);
        Ok(())
    }

    fn frame(&self) -> Option<Frame> {
        self.1.at(Place::Frame);
        Some(Frame::Absolute)
    }
}

impl Clone for Trapped {
    fn clone(&self) -> Self {
        self.1.at(Place::Clone);
        Trapped(self.0.clone(), Arc::clone(&self.1))
    }
}

impl fmt::Debug for Trapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.1.at(Place::Debug);
        self.0.fmt(f)
    }
}

impl Drop for Trapped {
    fn drop(&mut self) {
        self.1.at(Place::Drop);
    }
}

impl AsRef<Trapped> for Trapped {
    fn as_ref(&self) -> &Trapped {
        self
    }
}

struct Segment<'a>(u32, &'a Trap);

impl Hash for Segment<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
        self.1.at(Place::Hash);
    }
}

impl fmt::Debug for Segment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.1.at(Place::DebugOfSegment);
        self.0.fmt(f)
    }
}

/// The lock compares no paths: it never gets here.
impl PartialEq for Segment<'_> {
    fn eq(&self, _: &Self) -> bool {
        panic!("the lock compares segments")
    }
}

impl PartialEq for Trapped {
    fn eq(&self, _: &Self) -> bool {
        panic!("the lock compares paths")
    }
}

/// G8: everywhere in a request where user code runs, for each way to ask, while others hold and wait.
#[test]
fn a_path_that_panics_in_a_request_leaves_the_lock_as_it_was() {
    let places = [
        Place::BeforeSegments,
        Place::BetweenSegments,
        Place::AfterSegments,
        Place::Hash,
        Place::Clone,
        Place::Frame,
    ];
    let (safe, trap) = (Arc::new(Trap::default()), Arc::new(Trap::default()));
    for place in places {
        let lock = common::watched(TreeLock::<Trapped>::default());
        let path = |segments: &[u32]| Trapped::new(segments, &safe);
        let outer = lock.lock(&[path(&[1])], &[path(&[2])]);
        let waiting = spawn("waiting", {
            let (lock, path) = (Arc::clone(&lock), path(&[2, 3]));
            move || drop(lock.write(path))
        });
        wait_until_waiting(&lock, 1);

        let reads = [Trapped::new(&[5], &safe), Trapped::new(&[6, 7], &trap)];
        let writes = [Trapped::new(&[1, 1], &safe), Trapped::new(&[8], &trap)];
        trap.set(place);
        let long = Duration::from_secs(1);
        let requests: [&dyn Fn(); 5] = [
            &|| drop(lock.lock(&reads, &writes)),
            &|| drop(lock.lock_arc(&reads, &[])),
            &|| drop(lock.try_lock(&reads, &writes)),
            &|| drop(lock.try_lock_for(&[], &writes, long)),
            &|| drop(lock.try_lock_arc_for(&reads, &writes[1..], long)),
        ];
        for request in requests {
            assert_eq!(panic_message(request), format!("on purpose, at {place:?}"));
        }
        trap.set(Place::Nowhere);

        assert_eq!((lock.snapshot().holders.len(), lock.snapshot().waiters.len()), (1, 1));
        assert!(admits(&lock, &reads, &[]) && admits(&lock, &[], &writes[1..]));
        assert!(!admits(&lock, &[], &[path(&[1])]) && !admits(&lock, &[path(&[2])], &[]));
        drop(lock.lock(&reads, &writes));
        drop(outer);
        join(waiting);
        assert!(admits(&lock, &[], &[path(&[])]));
    }
}

/// G8: the paths' own code spells out what was asked for, after all internal locks are released.
#[test]
fn a_path_that_panics_when_it_is_shown_leaves_the_lock_as_it_was() {
    let trap = Arc::new(Trap::default());
    let lock = common::watched(TreeLock::<Trapped>::default());
    let path = |segments: &[u32]| Trapped::new(segments, &trap);
    let held = lock.write(path(&[1]));
    for place in [Place::DebugOfSegment, Place::BetweenSegments, Place::Hash] {
        trap.set(place);
        assert_eq!(panic_message(|| drop(lock.snapshot())), format!("on purpose, at {place:?}"));
        assert!(format!("{lock:?}").contains("held: 1"), "Debug of the lock shows no paths");
        trap.set(Place::Nowhere);
        assert_eq!(lock.snapshot().holders.len(), 1);
        assert!(!admits(&lock, &[path(&[1])], &[]));
    }
    drop(held);
    assert!(admits(&lock, &[], &[path(&[])]));
}

/// G7, G8: a report of a deadlock whose paths cannot be shown, and an error on a path that cannot.
#[test]
fn a_path_that_panics_in_an_error_leaves_the_lock_as_it_was() {
    let trap = Arc::new(Trap::default());
    let lock = common::watched(TreeLock::<Trapped>::default());
    let path = |segments: &[u32]| Trapped::new(segments, &trap);
    let held = lock.write(path(&[1, 2]));
    trap.set(Place::DebugOfSegment);
    let message = panic_message(|| drop(lock.lock_arc(&[path(&[3])], &[path(&[1, 2])])));
    assert_eq!(message, "on purpose, at DebugOfSegment");
    trap.set(Place::Debug);
    assert_eq!(panic_message(|| drop(lock.try_lock(&[path(&[4, 0])], &[]))), "on purpose, at Debug");
    trap.set(Place::Nowhere);
    let refused = lock.try_lock(&[path(&[4, 0])], &[]);
    assert_eq!(refused.unwrap_err().to_string(), "unusable path [4, 0]: zero");
    assert!(admits(&lock, &[], &[path(&[3]), path(&[4])]) && !admits(&lock, &[path(&[1])], &[]));
    drop(held);
    assert!(admits(&lock, &[], &[path(&[])]));
}

/// G8: the lock keeps copies of paths for a while; wherever a drop of one panics, everything is released.
#[test]
fn a_path_that_panics_in_drop_leaves_the_lock_free() {
    let (safe, trap) = (Arc::new(Trap::default()), Arc::new(Trap::default()));
    let lock = common::watched(TreeLock::<Trapped>::default());
    let paths: Vec<Trapped> = (1..20).map(|number| Trapped::new(&[number], &trap)).collect();
    let mut guards: Vec<_> = paths.iter().map(|path| Some(lock.lock(&[], &[path]))).collect();
    trap.set(Place::Drop);
    for guard in &mut guards {
        let guard = guard.take();
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(guard)));
    }
    for _ in 0..20 {
        let again = || drop(lock.lock(&[], &[Trapped::new(&[30], &safe)]));
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(again));
    }
    trap.set(Place::Nowhere);
    assert!(lock.snapshot().holders.is_empty(), "{}", lock.snapshot());
    assert!(admits(&lock, &[], &[Trapped::new(&[], &safe)]));
}

/// G8: a path that was given by value is dropped after its grant.
#[test]
fn a_path_that_panics_when_its_request_drops_it_is_not_left_locked() {
    struct Trapped(&'static str);

    impl AsRef<str> for Trapped {
        fn as_ref(&self) -> &str {
            self.0
        }
    }

    impl Drop for Trapped {
        fn drop(&mut self) {
            panic!("on purpose");
        }
    }

    let (lock, long) = (common::watched(TreeLock::<str>::default()), Duration::from_secs(1));
    let requests: [&dyn Fn(); 12] = [
        &|| drop(lock.read(Trapped("a"))),
        &|| drop(lock.write(Trapped("a"))),
        &|| drop(lock.try_read(Trapped("a"))),
        &|| drop(lock.try_write(Trapped("a"))),
        &|| drop(lock.try_read_for(Trapped("a"), long)),
        &|| drop(lock.try_write_for(Trapped("a"), long)),
        &|| drop(lock.read_arc(Trapped("a"))),
        &|| drop(lock.write_arc(Trapped("a"))),
        &|| drop(lock.try_read_arc(Trapped("a"))),
        &|| drop(lock.try_write_arc(Trapped("a"))),
        &|| drop(lock.try_read_arc_for(Trapped("a"), long)),
        &|| drop(lock.try_write_arc_for(Trapped("a"), long)),
    ];
    for request in requests {
        assert_eq!(panic_message(request), "on purpose");
        assert!(admits(&lock, &[], &["a"]), "{}", lock.snapshot());
    }
}

/// G8: an owner that is dropped releases all that it holds, even if paths panic meanwhile.
#[test]
fn a_path_that_panics_while_an_owner_is_dropped_leaves_the_lock_free() {
    let (safe, trap) = (Arc::new(Trap::default()), Arc::new(Trap::default()));
    let lock = common::watched(TreeLock::<Trapped>::default());
    let mut owner = lock.owner();
    for number in 1..20 {
        let _held = owner.lock(&[], &[Trapped::new(&[number], &trap)]).unwrap();
    }
    trap.set(Place::Drop);
    assert_eq!(panic_message(|| drop(owner)), "on purpose, at Drop");
    trap.set(Place::Nowhere);
    assert!(lock.snapshot().holders.is_empty(), "{}", lock.snapshot());
    assert!(admits(&lock, &[], &[Trapped::new(&[], &safe)]));
}

/// G8: a guard that releases a part copies the paths that stay, and drops its old paths.
#[test]
fn a_path_that_panics_while_a_part_is_released_leaves_a_guard_that_can_be_dropped() {
    let (safe, trap) = (Arc::new(Trap::default()), Arc::new(Trap::default()));
    let path = |segments: &[u32]| Trapped::new(segments, &safe);
    for number in 0..20 {
        for place in [Place::Clone, Place::Drop] {
            let lock = common::watched(TreeLock::<Trapped>::default());
            let mut guard = lock.lock(&[Trapped::new(&[], &trap)], &[Trapped::new(&[number + 1], &trap)]);
            let released = [path(&[number + 1])];
            trap.set(place);
            let message = panic_message(|| guard.release(&released).unwrap());
            assert_eq!(message, format!("on purpose, at {place:?}"));
            trap.set(Place::Nowhere);
            assert_eq!(admits(&lock, &released, &[]), place == Place::Drop, "it is not released half");
            assert!(!admits(&lock, &[], &[path(&[100])]));
            drop(guard);
            assert!(lock.snapshot().holders.is_empty(), "{}", lock.snapshot());
            assert!(admits(&lock, &[], &[path(&[])]));

            let guard = lock.lock(&[], &[Trapped::new(&[number + 1], &trap)]);
            trap.set(place);
            panic_message(|| drop(guard.downgrade()));
            trap.set(Place::Nowhere);
            assert!(admits(&lock, &[], &[path(&[])]));
        }
    }
}

/// G8: a path's own code may use the lock that it is given to.
#[test]
fn a_path_may_lock_while_it_is_told() {
    #[derive(Clone)]
    struct Locking(Arc<TreeLock<Locking>>, u32);

    impl fmt::Debug for Locking {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.1.fmt(f)
        }
    }

    impl AsRef<Locking> for Locking {
        fn as_ref(&self) -> &Locking {
            self
        }
    }

    impl TreePath for Locking {
        fn segments(&self, segments: &mut Segments<'_>) -> Result<(), PathError> {
            if let Some(below) = self.1.checked_sub(1) {
                drop(self.0.read(Locking(Arc::clone(&self.0), below)));
                assert!(!format!("{:?}", self.0).is_empty());
            }
            segments.push(&self.1);
            Ok(())
        }
    }

    let lock = Arc::new(TreeLock::<Locking>::default());
    let guard = lock.write(Locking(Arc::clone(&lock), 3));
    assert!(matches!(lock.try_lock_arc(&[Locking(Arc::clone(&lock), 3)], &[]), Err(LockError::WouldBlock)));
    assert_eq!(lock.snapshot().holders[0].roots[0].segments, ["3"]);
    drop(guard);
}
