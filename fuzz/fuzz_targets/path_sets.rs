//! Two requests of random paths, in every spelling: granted beside each other if and only if the specification says so.
//!
//! ```sh
//! cargo fuzz run -s none path_sets -- -max_total_time=25 -timeout=20      # stable
//! cargo +nightly fuzz run path_sets -- -max_total_time=25 -timeout=20     # with AddressSanitizer
//! ```
//!
//! # Input
//!
//! Text, so that a case can be read and written by hand; bytes of any kind are well-formed. Lines end in `\n`, and
//! paths cannot contain it. The first byte of the first line gives the type of the paths: `s` for `str` (what is not
//! UTF-8 is replaced), anything else for `Path`. Of the other lines, `r...` reads the path that follows and `w...`
//! writes it, and `=...` begins the second request. The rest is ignored, and so are the roots of a request after its
//! first 16.
//!
//! ```text
//! p
//! r a/./b
//! w ../c
//! =
//! w /a
//! ```
//!
//! reads `" a/./b"` and writes `" ../c"`; then writes `" /a"`: a space is an ordinary byte.
//!
//! # What is checked
//!
//! 1. The first request, alone, fails if and only if the specification cannot read its paths (`PathError`).
//! 2. The second one, by another owner, is granted, would block or is unusable as specified (G1, G4).
//! 3. To the owner of the first one it is granted, in whatever modes (re-entrancy).
//! 4. It is granted or not as specified when the first has been downgraded.
//! 5. A snapshot can be drawn, and the drawing contains no command for a terminal.
//! 6. Refused requests leave nothing behind, and neither does the end (G7): the whole tree can be written.
//!
//! Not here: waiting, and more than two requests: see `tests/histories.rs`.

#![no_main]

#[path = "../../model/spec.rs"]
mod spec;

use libfuzzer_sys::fuzz_target;
use spec::{Origin, Request, Unusable};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use treelock::{ArcTreeLockGuard, LockError, TreeLock, TreePath};

const ROOTS: usize = 16;

fuzz_target!(|input: &[u8]| {
    let mut lines = input.split(|&byte| byte == b'\n');
    let text = lines.next().is_some_and(|first| first.first() == Some(&b's'));
    let mut requests = [Roots::default(), Roots::default()];
    let mut which = 0;
    for line in lines {
        match line.split_first() {
            Some((b'r', path)) => requests[which].reads.push(path),
            Some((b'w', path)) => requests[which].writes.push(path),
            Some((b'=', _)) => which = 1,
            _ => {}
        }
    }
    let [first, second] = requests.map(|mut roots| {
        roots.reads.truncate(ROOTS);
        roots.writes.truncate(ROOTS - roots.reads.len());
        roots
    });
    if text {
        let tell = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let tell = |roots: &Roots<'_>| {
            let (reads, writes) = roots.tell(tell);
            let request = Request::of_text(&reads, &writes);
            let origin = (!reads.is_empty() || !writes.is_empty()).then_some(Origin::Top);
            Told { meaning: Ok((origin, request)), reads, writes }
        };
        check::<str, String>(&tell(&first), &tell(&second));
    } else {
        let tell = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        let tell = |roots: &Roots<'_>| {
            let (reads, writes) = roots.tell(tell);
            Told { meaning: Request::of_paths(&reads, &writes), reads, writes }
        };
        check::<Path, PathBuf>(&tell(&first), &tell(&second));
    }
});

/// The roots of a request, as they stand in the input.
#[derive(Default)]
struct Roots<'a> {
    reads: Vec<&'a [u8]>,
    writes: Vec<&'a [u8]>,
}

impl Roots<'_> {
    fn tell<T>(&self, tell: impl Fn(&[u8]) -> T) -> (Vec<T>, Vec<T>) {
        let paths = |paths: &[&[u8]]| paths.iter().map(|bytes| tell(bytes)).collect();
        (paths(&self.reads), paths(&self.writes))
    }
}

/// A request as it is given to the lock, and what it means.
#[derive(Debug)]
struct Told<T> {
    reads: Vec<T>,
    writes: Vec<T>,
    meaning: Result<(Option<Origin>, Request), Unusable>,
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Granted,
    WouldBlock,
    Unusable,
}

fn outcome<G>(answer: &Result<G, LockError>) -> Outcome {
    match answer {
        Ok(_) => Outcome::Granted,
        Err(LockError::WouldBlock) => Outcome::WouldBlock,
        Err(LockError::Path(error)) => {
            assert!(error.to_string().starts_with("unusable path "));
            Outcome::Unusable
        }
        Err(other) => panic!("{other}"),
    }
}

/// What must become of `second` while another owner holds `first`, which decided what the lock's paths are relative
/// to.
fn expected(first: Option<&Request>, origin: Option<Origin>, second: &Told<impl Sized>) -> Outcome {
    match &second.meaning {
        Err(Unusable) => Outcome::Unusable,
        Ok((Some(other), _)) if origin.is_some_and(|origin| origin != *other) => Outcome::Unusable,
        Ok((_, request)) if first.is_some_and(|first| first.conflicts_with(request)) => Outcome::WouldBlock,
        Ok(_) => Outcome::Granted,
    }
}

fn check<P: ?Sized + TreePath, T: AsRef<P> + From<String> + std::fmt::Debug>(first: &Told<T>, second: &Told<T>) {
    let lock = Arc::new(TreeLock::<P>::default());
    let held = lock.try_lock_arc(&first.reads, &first.writes);
    assert_eq!(outcome(&held), expected(None, None, first), "{first:?}");
    let held = held.ok();
    let (origin, request) = match &first.meaning {
        Ok((origin, request)) => (*origin, Some(request)),
        Err(Unusable) => (None, None),
    };
    let other_owner = || outcome(&lock.try_lock_arc(&second.reads, &second.writes));

    assert_eq!(other_owner(), expected(request, origin, second), "{first:?}\n{second:?}");
    let weaker = request.map(Request::downgraded);
    let held = held.map(ArcTreeLockGuard::downgrade);
    assert_eq!(other_owner(), expected(weaker.as_ref(), origin, second), "downgraded {first:?}\n{second:?}");
    drop(held);

    if request.is_some() {
        let own = lock.try_lock(&first.reads, &first.writes);
        assert_eq!(outcome(&own), Outcome::Granted, "{first:?}");
        let nested = lock.try_lock(&second.reads, &second.writes);
        assert_eq!(outcome(&nested), expected(None, origin, second), "{first:?}\n{second:?}");
        // The first guard is dropped first: what is left is the nested one.
        drop(own);
        let snapshot = lock.snapshot();
        assert_eq!(snapshot.holders.len(), usize::from(nested.is_ok()), "{snapshot}");
        assert!(snapshot.to_string().chars().all(|char| char == '\n' || !char.is_control()), "{snapshot:?}");
    }
    let snapshot = lock.snapshot();
    assert!(snapshot.holders.is_empty() && snapshot.waiters.is_empty(), "{snapshot}");
    let root = ["", "/"].map(|root| outcome(&lock.try_lock_arc(&[], &[T::from(root.into())])));
    assert!(root.contains(&Outcome::Granted), "{root:?}: something is left of {first:?}\n{second:?}");
}
