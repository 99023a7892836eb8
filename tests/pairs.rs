//! Every pair of small requests, through the public API, against the specification (G1, G4).
//!
//! Small is: at most one read and one write, each of at most three segments over two names. Where the two ways part
//! decides a conflict, and no more is needed to see that. `plan.rs` joins the roots of larger requests;
//! `histories.rs` and fuzzing test that. Nothing waits here.
#![cfg(not(feature = "model"))]

#[path = "../model/spec.rs"]
mod spec;

use spec::{Held, Owner, Request, Verdict, Way};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use treelock::{ArcTreeLockGuard, LockError, TreeLock, TreeLockGuard, TreePath};

/// The paths of at most `depth` segments over two names.
fn paths(depth: usize) -> Vec<String> {
    let mut paths = vec![String::new()];
    let mut start = 0;
    for _ in 0..depth {
        let end = paths.len();
        for parent in start..end {
            let above = if parent == 0 { String::new() } else { format!("{}/", paths[parent]) };
            paths.extend(["a", "b"].map(|name| format!("{above}{name}")));
        }
        start = end;
    }
    paths
}

/// A request, as it is given to the lock and to the specification.
struct Asked<T> {
    reads: Vec<T>,
    writes: Vec<T>,
    request: Request,
}

/// Nothing, R, W and R+W: a read of one path or none, with a write of another or none.
fn requests<T: From<String>>(depth: usize) -> Vec<Asked<T>> {
    let some = || [None].into_iter().chain(paths(depth).into_iter().map(Some));
    let mut requests = Vec::new();
    for read in some() {
        for write in some() {
            requests.push(Asked {
                request: Request::of_text(read.as_slice(), write.as_slice()),
                reads: read.clone().map(T::from).into_iter().collect(),
                writes: write.map(T::from).into_iter().collect(),
            });
        }
    }
    requests
}

/// Whether it was granted; the only other answer is that it would block.
fn granted<G>(answer: &Result<G, LockError>) -> bool {
    match answer {
        Ok(_) => true,
        Err(LockError::WouldBlock) => false,
        Err(other) => panic!("{other}"),
    }
}

struct Subject<P: ?Sized + TreePath, T>(Arc<TreeLock<P>>, Vec<Asked<T>>);

impl<P: ?Sized + TreePath, T: AsRef<P> + From<String>> Subject<P, T> {
    fn new(depth: usize) -> Self {
        Subject(Arc::new(TreeLock::default()), requests(depth))
    }

    fn lock(&self, asked: &Asked<T>) -> ArcTreeLockGuard<P> {
        self.0.lock_arc(&asked.reads, &asked.writes)
    }

    fn try_arc(&self, asked: &Asked<T>) -> bool {
        granted(&self.0.try_lock_arc(&asked.reads, &asked.writes))
    }

    fn try_plain(&self, asked: &Asked<T>) -> Result<TreeLockGuard<'_, P>, LockError> {
        self.0.try_lock(&asked.reads, &asked.writes)
    }

    /// G7: nobody holds anything, so the whole tree can be locked.
    fn finish(&self) {
        assert!(self.0.snapshot().holders.is_empty());
        assert!(granted(&self.0.try_lock(&[], &[T::from(String::new())])));
    }

    fn every_pair_of_owners(depth: usize, count: usize) {
        let subject = Self::new(depth);
        let mut pairs = 0;
        for first in &subject.1 {
            let guard = subject.lock(first);
            for second in &subject.1 {
                let free = !first.request.conflicts_with(&second.request);
                assert_eq!(subject.try_arc(second), free, "{:?} then {:?}", first.request, second.request);
                let plain = granted(&subject.try_plain(second));
                assert_eq!(plain, free, "{:?} then plain {:?}", first.request, second.request);
                pairs += 1;
            }
            let reading = guard.downgrade();
            for second in &subject.1 {
                let free = !first.request.downgraded().conflicts_with(&second.request);
                assert_eq!(subject.try_arc(second), free, "downgraded {:?}, {:?}", first.request, second.request);
            }
            drop(reading);
            assert!(subject.try_arc(first), "{:?} is given back", first.request);
        }
        assert_eq!(pairs, count);
        subject.finish();
    }

    fn every_pair_of_one_thread(depth: usize, count: usize) {
        let subject = Self::new(depth);
        let mut pairs = 0;
        for first in &subject.1 {
            let guard = subject.try_plain(first).expect("nobody holds anything");
            for second in &subject.1 {
                let nested = subject.try_plain(second);
                assert!(granted(&nested), "{:?} then {:?}", first.request, second.request);
                pairs += 1;
            }
            drop(guard);
        }
        assert_eq!(pairs, count);
        subject.finish();
    }
}

/// 256 requests, so 65,536 pairs.
const DEEP: (usize, usize) = (3, 256 * 256);

/// G1, G4.
#[test]
fn text_requests_of_two_owners_exclude_each_other_as_specified() {
    Subject::<str, String>::every_pair_of_owners(DEEP.0, DEEP.1);
}

/// G1, G4.
#[test]
fn path_requests_of_two_owners_exclude_each_other_as_specified() {
    Subject::<Path, PathBuf>::every_pair_of_owners(DEEP.0, DEEP.1);
}

/// Re-entrancy: see "Owner" in the design.
#[test]
fn text_requests_of_one_thread_never_exclude_each_other() {
    Subject::<str, String>::every_pair_of_one_thread(DEEP.0, DEEP.1);
}

/// Re-entrancy: see "Owner" in the design.
#[test]
fn path_requests_of_one_thread_never_exclude_each_other() {
    Subject::<Path, PathBuf>::every_pair_of_one_thread(DEEP.0, DEEP.1);
}

/// G1, G4: two spellings of one node never miss each other.
#[test]
fn paths_in_odd_spellings_exclude_each_other_as_specified() {
    let text = [|path: &str| format!("/{path}//"), |path: &str| path.replace('/', "///")];
    let path = [
        |path: &str| format!("./{path}/."),
        |path: &str| format!("b/../{path}"),
        |path: &str| format!("./{path}/a/.."),
        |path: &str| path.replace('/', "/./b/..//"),
    ];
    spellings_of_two_owners::<str, String>(&text);
    spellings_of_two_owners::<Path, PathBuf>(&path);
}

fn spellings_of_two_owners<P: ?Sized + TreePath, T: AsRef<P> + From<String>>(spellings: &[fn(&str) -> String]) {
    let lock = Arc::new(TreeLock::<P>::default());
    for first in paths(3) {
        let guard = lock.write_arc(T::from(first.clone()));
        for second in paths(3) {
            let free = !Way::of_text(&first).overlaps(&Way::of_text(&second));
            for spell in spellings {
                let odd = spell(&second);
                assert_eq!(granted(&lock.try_lock_arc(&[T::from(odd.clone())], &[])), free, "{first:?} {odd:?}");
            }
        }
        drop(guard);
    }
}

/// What becomes of the first of two nested guards while another owner asks.
#[derive(Clone, Copy, Debug)]
enum Change {
    Nothing,
    DropFirst,
    DropSecond,
    DowngradeFirst,
    DowngradeSecond,
}

/// G1, G4: two nested guards of one thread, weakened or dropped in either order, beside every request of another
/// owner. Each guard protects what it asked for until it is dropped, and nothing longer.
#[test]
fn each_nested_guard_protects_what_it_asked_for_until_it_is_dropped() {
    let subject = Subject::<str, String>::new(2);
    let singles = subject.1.iter().filter(|asked| asked.reads.len() + asked.writes.len() <= 1);
    let strangers: Vec<&Asked<String>> = singles.collect();
    let changes =
        [Change::Nothing, Change::DropFirst, Change::DropSecond, Change::DowngradeFirst, Change::DowngradeSecond];
    let mut cases = 0;
    for first in &subject.1 {
        for second in &subject.1 {
            for change in changes {
                let mut held = Held::default();
                let ids = [first, second].map(|asked| held.grant(0, Owner::Thread(0), asked.request.clone()));
                let [one, other] =
                    [first, second].map(|asked| subject.try_plain(asked).expect("nobody else holds anything"));
                let mut guards = [Some(one), Some(other)];
                match change {
                    Change::Nothing => {}
                    Change::DropFirst => give_back(&mut held, &mut guards, ids, 0),
                    Change::DropSecond => give_back(&mut held, &mut guards, ids, 1),
                    Change::DowngradeFirst => downgrade(&mut held, &mut guards, ids, 0),
                    Change::DowngradeSecond => downgrade(&mut held, &mut guards, ids, 1),
                }
                for stranger in &strangers {
                    let free = held.verdict(Owner::Itself, &stranger.request) == Verdict::Granted;
                    let granted = subject.try_arc(stranger);
                    assert_eq!(granted, free, "{change:?} {held:?} {:?}", stranger.request);
                    cases += 1;
                }
            }
        }
    }
    // 64 requests; those of the other owner are nothing and R or W of 7 paths.
    assert_eq!(cases, 64 * 64 * 5 * 15);
    subject.finish();
}

type Guards<'a> = [Option<TreeLockGuard<'a, str>>; 2];

fn give_back(held: &mut Held, guards: &mut Guards<'_>, ids: [spec::Id; 2], which: usize) {
    held.release(ids[which]);
    guards[which] = None;
}

fn downgrade(held: &mut Held, guards: &mut Guards<'_>, ids: [spec::Id; 2], which: usize) {
    held.downgrade(ids[which]);
    guards[which] = guards[which].take().map(TreeLockGuard::downgrade);
}
