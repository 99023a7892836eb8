//! A thread that carries out commands: one command, one answer.

use crate::spec::Id;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};
use treelock::{ArcTreeLockGuard, HeldLock, LockError, LockOwner, TreeLock, TreeLockGuard};

pub(crate) type Lock = TreeLock<str>;

/// What [`How::BriefFor`] waits for.
const BRIEF: Duration = Duration::from_millis(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    Arc,
    /// Asked by one of the explicit owners.
    Handed(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Try,
    For(Duration),
    UntilPast,
    /// `lock`; or `try_lock`, where it would block and nothing may.
    Lock,
    /// `try_lock_for`, practically for ever.
    LongFor,
    /// `try_lock_for`, long enough that others may come meanwhile.
    BriefFor,
}

#[derive(Clone)]
pub(crate) struct Paths {
    pub(crate) reads: Vec<String>,
    pub(crate) writes: Vec<String>,
}

/// On one line, so that a failing history can be read.
impl fmt::Debug for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Paths { reads, writes } = self;
        write!(f, "Paths {{ reads: {reads:?}, writes: {writes:?} }}")
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    Downgrade,
    /// Releases some of its roots, each by a bit; of an explicit owner, all that one request locked.
    Release(u8),
    Drop,
    /// By a panic that unwinds through it.
    Unwind,
    /// Dropped on another thread, if it may go there.
    DropAt(usize),
}

pub(crate) enum Command {
    Ask(Id, Kind, How, Paths),
    AskBy(Id, LockOwner<str>, How, Paths),
    Change(Id, Change),
    Release(Id, Vec<String>),
    DropArc(ArcTreeLockGuard<str>),
}

pub(crate) enum Answer {
    Granted(Option<ArcTreeLockGuard<str>>),
    /// The owner comes back, with what it locked.
    By(LockOwner<str>, Result<HeldLock, LockError>),
    Refused(LockError),
    /// `lock` panicked.
    Panicked(String),
    Done,
}

pub(crate) fn obey(
    lock: &Arc<Lock>,
    commands: &Receiver<Command>,
    answers: &Sender<(usize, Option<Id>, Answer)>,
    me: usize,
) {
    let mut guards: BTreeMap<Id, TreeLockGuard<'_, str>> = BTreeMap::new();
    for command in commands {
        let answer = match command {
            Command::Ask(id, Kind::Plain, how, paths) => (
                Some(id),
                answer(
                    || plain(lock, how, &paths),
                    |guard| {
                        guards.insert(id, guard);
                        None
                    },
                ),
            ),
            Command::Ask(id, Kind::Arc, how, paths) => (Some(id), answer(|| arc(lock, how, &paths), Some)),
            Command::Ask(_, Kind::Handed(_), ..) => unreachable!("its owner comes with it"),
            Command::AskBy(id, mut owner, how, paths) => {
                let got = handed(&mut owner, how, &paths);
                (Some(id), Answer::By(owner, got))
            }
            Command::Release(id, roots) => {
                let guard = guards.get_mut(&id).expect("it is held here");
                guard.release(&roots).expect("they are its roots");
                (None, Answer::Done)
            }
            Command::Change(id, change) => {
                let guard = guards.remove(&id).expect("it is held here");
                if let Change::Downgrade = change {
                    guards.insert(id, guard.downgrade());
                } else {
                    let_go(guard, change);
                }
                (None, Answer::Done)
            }
            Command::DropArc(guard) => {
                drop(guard);
                (None, Answer::Done)
            }
        };
        if answers.send((me, answer.0, answer.1)).is_err() {
            return;
        }
    }
}

pub(crate) fn answer<G>(
    ask: impl FnOnce() -> Result<G, LockError>,
    keep: impl FnOnce(G) -> Option<ArcTreeLockGuard<str>>,
) -> Answer {
    match catch_unwind(AssertUnwindSafe(ask)) {
        Ok(Ok(guard)) => Answer::Granted(keep(guard)),
        Ok(Err(error)) => Answer::Refused(error),
        Err(panic) => Answer::Panicked(panic.downcast_ref::<String>().cloned().unwrap_or_default()),
    }
}

pub(crate) fn plain<'a>(
    lock: &'a Arc<Lock>,
    how: How,
    Paths { reads, writes }: &Paths,
) -> Result<TreeLockGuard<'a, str>, LockError> {
    match (how, &reads[..], &writes[..]) {
        (How::Try, ..) => lock.try_lock(reads, writes),
        (How::For(timeout), ..) => lock.try_lock_for(reads, writes, timeout),
        (How::UntilPast, ..) => lock.try_lock_until(reads, writes, Instant::now()),
        (How::LongFor, ..) => lock.try_lock_for(reads, writes, Duration::MAX),
        (How::BriefFor, ..) => lock.try_lock_for(reads, writes, BRIEF),
        (How::Lock, [read], []) => Ok(lock.read(read)),
        (How::Lock, [], [write]) => Ok(lock.write(write)),
        (How::Lock, ..) => Ok(lock.lock(reads, writes)),
    }
}

pub(crate) fn arc(
    lock: &Arc<Lock>,
    how: How,
    Paths { reads, writes }: &Paths,
) -> Result<ArcTreeLockGuard<str>, LockError> {
    match (how, &reads[..], &writes[..]) {
        (How::Try, ..) => lock.try_lock_arc(reads, writes),
        (How::For(timeout), ..) => lock.try_lock_arc_for(reads, writes, timeout),
        (How::UntilPast, ..) => lock.try_lock_arc_until(reads, writes, Instant::now()),
        (How::LongFor, ..) => lock.try_lock_arc_for(reads, writes, Duration::MAX),
        (How::BriefFor, ..) => lock.try_lock_arc_for(reads, writes, BRIEF),
        (How::Lock, [read], []) => Ok(lock.read_arc(read)),
        (How::Lock, [], [write]) => Ok(lock.write_arc(write)),
        (How::Lock, ..) => Ok(lock.lock_arc(reads, writes)),
    }
}

pub(crate) fn handed(
    owner: &mut LockOwner<str>,
    how: How,
    Paths { reads, writes }: &Paths,
) -> Result<HeldLock, LockError> {
    match how {
        How::Try => owner.try_lock(reads, writes),
        How::For(timeout) => owner.try_lock_for(reads, writes, timeout),
        How::UntilPast => owner.try_lock_until(reads, writes, Instant::now()),
        How::BriefFor => owner.try_lock_for(reads, writes, BRIEF),
        How::LongFor | How::Lock => owner.lock(reads, writes),
    }
}

pub(crate) fn let_go<G>(guard: G, change: Change) {
    if let Change::Unwind = change {
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            let _guard = guard;
            resume_unwind(Box::new("as planned"));
        }));
        assert!(unwound.is_err());
    }
}
