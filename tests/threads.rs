//! What may go to other threads and through panics, checked by the compiler. A `compile_fail` example in the
//! documentation of the plain guard checks that it may not leave its thread.
#![cfg(not(feature = "model"))]

use std::error::Error;
use std::fmt::{Debug, Display};
use std::io::ErrorKind;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::sync::Arc;
use treelock::{
    ArcTreeLockGuard, Deadlock, Holder, LockError, Mode, Party, PathError, Process, Root, Snapshot, TreeLock,
    TreeLockGuard, Waiter,
};

fn anywhere<T: Send + Sync + 'static>() {}
fn shared<T: Sync>() {}
fn through_panics<T: UnwindSafe + RefUnwindSafe>() {}
fn printed<T: Debug + Display>() {}
fn error<T: Error + Send + Sync + 'static>() {}
fn cloned<T: Clone>() {}

/// The lock and all its reports may be shared and sent, over whatever paths.
#[test]
fn locks_arc_guards_and_reports_go_to_other_threads() {
    anywhere::<TreeLock>();
    anywhere::<TreeLock<Path>>();
    anywhere::<TreeLock<str>>();
    anywhere::<TreeLock<[u32]>>();
    anywhere::<TreeLock<[String]>>();
    anywhere::<Arc<TreeLock>>();
    anywhere::<ArcTreeLockGuard>();
    anywhere::<ArcTreeLockGuard<str>>();
    anywhere::<Mode>();
    anywhere::<Snapshot>();
    anywhere::<Holder>();
    anywhere::<Waiter>();
    anywhere::<Root>();
    anywhere::<Process>();
    anywhere::<Deadlock>();
    anywhere::<Party>();
}

/// Another thread may look at a plain guard, though the guard stays in its thread.
#[test]
fn plain_guards_are_shared_but_not_sent() {
    shared::<TreeLockGuard<'_>>();
    shared::<TreeLockGuard<'_, str>>();
    // Both implement `Ambiguous` where the guard is `Send`, and then the call below does not compile.
    trait Ambiguous<Which> {
        fn check() {}
    }
    impl<T: ?Sized> Ambiguous<()> for T {}
    impl<T: ?Sized + Send> Ambiguous<u8> for T {}
    <TreeLockGuard<'_> as Ambiguous<_>>::check();
    <TreeLockGuard<'_, str> as Ambiguous<_>>::check();
}

/// G8: nothing is poisoned, so nothing is lost on the way through a panic.
#[test]
fn all_go_through_panics() {
    through_panics::<TreeLock>();
    through_panics::<TreeLock<str>>();
    through_panics::<TreeLock<[u32]>>();
    through_panics::<TreeLockGuard<'_>>();
    through_panics::<ArcTreeLockGuard>();
    through_panics::<LockError>();
    through_panics::<Snapshot>();
}

/// Errors can be passed on as such.
#[test]
fn errors_are_errors() {
    error::<LockError>();
    error::<PathError>();
    cloned::<LockError>();
    printed::<LockError>();
    printed::<PathError>();
    printed::<Deadlock>();
    printed::<Snapshot>();
    printed::<TreeLockGuard<'_>>();
    printed::<ArcTreeLockGuard>();
    printed::<Root>();
    printed::<Process>();
    printed::<Mode>();
    let lock = TreeLock::new();
    let refused = || -> Result<(), Box<dyn Error + Send + Sync>> {
        let _guard = lock.try_lock(&["../a"], &[])?;
        Ok(())
    };
    let error = refused().unwrap_err();
    // `?` converts it in a function that does input and output, and the original is not lost.
    let refused = |lock: &TreeLock| -> std::io::Result<()> {
        let _guard = lock.try_lock(&["../a"], &[])?;
        Ok(())
    };
    let refused = refused(&lock).unwrap_err();
    assert_eq!((refused.kind(), refused.to_string()), (ErrorKind::InvalidInput, error.to_string()));
    // Tools print an error and then its causes, so an error must not be its own cause.
    assert!(error.to_string().contains("../a") && error.source().is_none());
}

/// Callers look at the kind; a caller that looks closer finds the error itself.
#[test]
fn an_io_error_has_the_kind_that_fits_and_keeps_what_it_was() {
    let lock = Arc::new(TreeLock::new());
    let _held = lock.write("a");
    let soon = std::time::Duration::from_millis(1);
    let deadlock = lock.try_lock_arc_for(&["a"], &[], std::time::Duration::from_secs(40)).map(drop);
    let refused = std::thread::scope(|scope| {
        let others = scope.spawn(|| [lock.try_read("a").map(drop), lock.try_read_for("a", soon).map(drop)]);
        others.join().unwrap()
    });
    let kinds = [ErrorKind::WouldBlock, ErrorKind::TimedOut, ErrorKind::Deadlock];
    for (refused, kind) in refused.into_iter().chain([deadlock]).zip(kinds) {
        let error = refused.unwrap_err();
        let wrapped = std::io::Error::from(error.clone());
        assert_eq!((wrapped.kind(), wrapped.to_string()), (kind, error.to_string()));
        let kept = wrapped.downcast::<LockError>().unwrap();
        assert_eq!(format!("{kept:?}"), format!("{error:?}"));
    }
}
