//! Tells on standard error what this process waits for, if the wait is long; and finds the process that keeps the
//! table.
//!
//! The library says what is in the way ([`process::waits`]). Not here: the rules of the queue.

use std::fmt::{self, Display};
use std::iter::successors;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::id;
use std::sync::mpsc::{self, RecvTimeoutError, Sender, TryRecvError};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{fs, io, thread};
use treelock::process::{self, ProcessTreeLock, Wait};
use treelock::{Mode, Process, Root, Waiter};

const PATIENCE: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_secs(3);
const MOST_TOLD: usize = 5;
/// Longer than any process that is not stopped has the table.
const KEPT: Duration = Duration::from_millis(200);
const TABLE: &str = "table";

/// Messages that another thread prints until this is dropped.
pub(crate) struct Telling {
    /// The number of this process in the lock, once that is open.
    member: Arc<OnceLock<u64>>,
    #[expect(dead_code, reason = "to be dropped")]
    ended: Option<Sender<()>>,
}

impl Telling {
    /// From now on, tells what the requests of this lock wait for.
    pub(crate) fn opened(&self, lock: &ProcessTreeLock) {
        let _ = self.member.set(lock.member());
    }
}

/// Tells what this process waits for: a process that keeps the table, or the holders and waiters in the way of its
/// request.
pub(crate) fn tell(directory: &Path) -> Telling {
    let (sender, ended) = mpsc::channel();
    let member = Arc::new(OnceLock::new());
    let (directory, known) = (directory.to_owned(), Arc::clone(&member));
    let watch = move || {
        let mut told = Vec::new();
        let mut told_keeper = None;
        let mut rest = PATIENCE;
        while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(rest) {
            rest = LOOK_AGAIN;
            // Before the lock is open there is no member yet, but another process may keep the table.
            let waits = known.get().map_or(Ok(Vec::new()), |&member| process::waits(&directory, member));
            // If it fails, the request itself will fail, and say so.
            let Ok(waits) = waits else { continue };
            let Some(lines) = waits.first().map(in_the_way) else {
                // The request is not in a queue yet.
                let kept = keeper(&directory);
                let is_over = !matches!(ended.try_recv(), Err(TryRecvError::Empty));
                if let Some(keeper) = kept.filter(|_| !is_over && kept != told_keeper) {
                    eprint_line(format_args!("waiting: {keeper}"));
                    told_keeper = kept;
                }
                continue;
            };
            tell_lines(&lines, &mut told);
        }
    };
    // If the thread cannot be started, there are no messages.
    let watching = thread::Builder::new().name("messages".into()).spawn(watch);
    Telling { member, ended: watching.is_ok().then_some(sender) }
}

/// What a request between machines waits for.
#[cfg(feature = "machine")]
pub(crate) enum Awaited {
    Opening(Closed),
    Others(Vec<Wait>),
}

/// A namespace that takes no requests for so long.
#[cfg(feature = "machine")]
pub(crate) struct Closed(pub(crate) Duration);

#[cfg(feature = "machine")]
impl Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = Age(self.0.as_secs() + 1);
        write!(f, "the namespace is new, or its data was lost: it is closed for another {rest}")
    }
}

/// From now on, tells what `awaited` says, until the sender is dropped.
#[cfg(feature = "machine")]
pub(crate) fn tell_of(awaited: impl Fn() -> Option<Awaited> + Send + 'static) -> Option<Sender<()>> {
    let (sender, ended) = mpsc::channel();
    let watch = move || {
        let (mut told, mut is_closed_told, mut rest) = (Vec::new(), false, PATIENCE);
        while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(rest) {
            rest = LOOK_AGAIN;
            match awaited() {
                Some(Awaited::Opening(closed)) if !is_closed_told => {
                    eprint_line(format_args!("waiting: {closed}"));
                    is_closed_told = true;
                }
                Some(Awaited::Opening(_)) | None => {}
                Some(Awaited::Others(waits)) => {
                    is_closed_told = false;
                    if let Some(wait) = waits.first() {
                        tell_lines(&in_the_way(wait), &mut told);
                    }
                }
            }
        }
    };
    // If the thread cannot be started, there are no messages.
    thread::Builder::new().name("messages".into()).spawn(watch).is_ok().then_some(sender)
}

/// Prints what is in the way, unless that is what was told last.
fn tell_lines(lines: &[Line<'_>], told: &mut Vec<(Process, State, Root)>) {
    let who: Vec<_> = lines.iter().map(Line::identity).collect();
    if lines.is_empty() || who == *told {
        return;
    }
    for line in lines.iter().take(MOST_TOLD) {
        eprint_line(format_args!("waiting for {line}"));
    }
    if let more @ 1.. = lines.len().saturating_sub(MOST_TOLD) {
        eprint_line(format_args!("waiting for {more} more"));
    }
    *told = who;
}

/// A process that keeps the table.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Keeper(pub(crate) u32);

impl Display for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} keeps the table, and all others wait for it: is it stopped?", self.0)
    }
}

/// The process that has the table for longer than one that is not stopped would.
pub(crate) fn keeper(directory: &Path) -> Option<Keeper> {
    let before = locker(directory)?;
    thread::sleep(KEPT);
    locker(directory).filter(|&process| process == before).map(Keeper)
}

/// The process that has the table now. (`man 5 proc`)
fn locker(directory: &Path) -> Option<u32> {
    let table = fs::metadata(directory.join(TABLE)).ok()?;
    let (major, minor) = (rustix::fs::major(table.dev()), rustix::fs::minor(table.dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", table.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| match *line.split_whitespace().collect::<Vec<_>>() {
        [_, "FLOCK", _, "WRITE", process, locked, ..] if locked == file => process.parse().ok(),
        _ => None,
    })
}

/// Prints a line on standard error; if nobody can read it, that is no reason to fail.
pub(crate) fn eprint_line(line: impl Display) {
    let _ = io::Write::write_all(&mut io::stderr(), format!("treelock: {line}\n").as_bytes());
}

/// A holder or a waiter that is in the way.
struct Line<'a> {
    process: &'a Process,
    state: State,
    age: Duration,
    /// The first of its roots that conflicts with ours, and how many others do.
    root: &'a Root,
    others: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Holds,
    Waits,
}

impl<'a> Line<'a> {
    /// `None` if none of its roots conflicts with ours: another version of treelock may tell its roots differently.
    fn new(
        state: State,
        process: &'a Option<Process>,
        age: Duration,
        roots: &'a [Root],
        own: &Waiter,
    ) -> Option<Self> {
        let mut conflicting = roots.iter().filter(|root| own.roots.iter().any(|our| conflict(root, our)));
        let root = conflicting.next()?;
        Some(Line { process: process.as_ref()?, state, age, root, others: conflicting.count() })
    }

    fn identity(&self) -> (Process, State, Root) {
        (self.process.clone(), self.state, self.root.clone())
    }
}

/// The holders and waiters that a request waits for.
fn in_the_way(wait: &Wait) -> Vec<Line<'_>> {
    let age = |since| wait.time.duration_since(since).unwrap_or_default();
    let own = &wait.waiter;
    let holders = wait.for_holders.iter();
    let holders = holders.filter_map(|it| Line::new(State::Holds, &it.process, age(it.since), &it.roots, own));
    let waiters = wait.for_waiters.iter();
    let waiters = waiters.filter_map(|it| Line::new(State::Waits, &it.process, age(it.since), &it.roots, own));
    holders.chain(waiters).collect()
}

/// The contract itself: sub-trees overlap, and one of the two is written. A root is held S, SIX or X.
fn conflict(one: &Root, other: &Root) -> bool {
    [one.mode, other.mode].contains(&Mode::Exclusive) && overlap(&one.segments, &other.segments)
}

fn overlap(one: &[String], other: &[String]) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

impl Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It escapes what a terminal would take as a command.
        let root = self.root.to_string();
        let path = root.split_once(' ').map_or("", |(_, path)| path.trim_start_matches('/'));
        let does = match (self.state, self.root.mode) {
            (State::Holds, Mode::Exclusive) => "writing",
            (State::Holds, _) => "reading",
            (State::Waits, Mode::Exclusive) => "waiting to write",
            (State::Waits, _) => "waiting to read",
        };
        write!(f, "{}, which has been {does} /{path}", self.process)?;
        if let others @ 1.. = self.others {
            write!(f, " and {others} more")?;
        }
        write!(f, " for {}", Age(self.age.as_secs()))?;
        if self.state == State::Holds && is_ancestor(self.process) {
            f.write_str("; it runs the very command that this one is a part of")?;
        }
        Ok(())
    }
}

/// Whether a process is an ancestor of this one. (`man 5 proc`)
fn is_ancestor(process: &Process) -> bool {
    let parent = |id: &u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The parent stands behind the command, which may be any text, and the state.
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
    };
    // In a container, another process may have that number.
    let is_it = |id: u32| -> bool {
        let words = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let words: Vec<_> = words.split(|&byte| byte == 0).map(String::from_utf8_lossy).collect();
        id == process.id && words.join(" ").starts_with(&process.command)
    };
    successors(Some(id()), parent).skip(1).take_while(|&id| id != 0).any(is_it)
}

/// Seconds, or the largest unit that fits.
struct Age(u64);

impl Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            seconds @ ..180 => write!(f, "{seconds} s"),
            seconds @ ..10_800 => write!(f, "{} min", seconds / 60),
            seconds @ ..172_800 => write!(f, "{} h", seconds / 3600),
            seconds => write!(f, "{} d", seconds / 86_400),
        }
    }
}
