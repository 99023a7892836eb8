//! For whom one waits, told on standard error when that lasts; and who keeps the table.

use std::fmt::{self, Display};
use std::iter::successors;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::id;
use std::sync::mpsc::{self, RecvTimeoutError, Sender, TryRecvError};
use std::time::Duration;
use std::{fs, io, thread};
use treelock::{Mode, Process, Root, Snapshot, Waiter, process};

const PATIENCE: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_secs(3);
const MOST_TOLD: usize = 5;
/// For how long nobody has the table who is not stopped.
const KEPT: Duration = Duration::from_millis(200);
const TABLE: &str = "table";

/// Ends the messages when it is dropped.
pub(crate) struct Telling(#[expect(dead_code, reason = "to be dropped")] Option<Sender<()>>);

/// Tells who is in the way of this process, from another thread, until the result is dropped.
pub(crate) fn tell(directory: &Path) -> Telling {
    let (sender, ended) = mpsc::channel();
    let directory = directory.to_owned();
    let watch = move || {
        let mut told = Vec::new();
        let mut told_keeper = None;
        let mut rest = PATIENCE;
        while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(rest) {
            rest = LOOK_AGAIN;
            // Should it fail, the request itself will fail, and say so.
            let Ok(snapshot) = process::snapshot(&directory) else { continue };
            let Some(ahead) = in_the_way(&snapshot) else {
                // It has not come so far.
                let kept = keeper(&directory);
                let is_over = !matches!(ended.try_recv(), Err(TryRecvError::Empty));
                if let Some(keeper) = kept.filter(|_| !is_over && kept != told_keeper) {
                    eprint_line(format_args!("waiting: {keeper}"));
                    told_keeper = kept;
                }
                continue;
            };
            let who: Vec<_> = ahead.iter().map(InTheWay::identity).collect();
            if !ahead.is_empty() && who != told {
                for one in ahead.iter().take(MOST_TOLD) {
                    eprint_line(format_args!("waiting for {one}"));
                }
                if let more @ 1.. = ahead.len().saturating_sub(MOST_TOLD) {
                    eprint_line(format_args!("waiting for {more} more"));
                }
                told = who;
            }
        }
    };
    // Without a thread for them there are no messages.
    let watching = thread::Builder::new().name("messages".into()).spawn(watch);
    Telling(watching.is_ok().then_some(sender))
}

/// A process that keeps the table.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Keeper(pub(crate) u32);

impl Display for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} keeps the table, and all others wait for it: is it stopped?", self.0)
    }
}

/// Who has the table for longer than anybody has who is not stopped.
pub(crate) fn keeper(directory: &Path) -> Option<Keeper> {
    let before = locker(directory)?;
    thread::sleep(KEPT);
    locker(directory).filter(|&process| process == before).map(Keeper)
}

/// Who has the table now. (`man 5 proc`)
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

/// A line on standard error; that nobody can read it is no reason to fail.
pub(crate) fn eprint_line(line: impl Display) {
    let _ = io::Write::write_all(&mut io::stderr(), format!("treelock: {line}\n").as_bytes());
}

/// A holder, or one who waits further ahead.
struct InTheWay<'a> {
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

impl<'a> InTheWay<'a> {
    /// If one of its roots conflicts with ours.
    fn new(
        state: State,
        process: &'a Option<Process>,
        age: Duration,
        roots: &'a [Root],
        own: &Waiter,
    ) -> Option<Self> {
        let mut conflicting = roots.iter().filter(|root| own.roots.iter().any(|our| conflict(root, our)));
        let root = conflicting.next()?;
        Some(InTheWay { process: process.as_ref()?, state, age, root, others: conflicting.count() })
    }

    fn identity(&self) -> (Process, State, Root) {
        (self.process.clone(), self.state, self.root.clone())
    }
}

/// Those in the way of this process's request; `None` if that does not wait.
fn in_the_way(snapshot: &Snapshot) -> Option<Vec<InTheWay<'_>>> {
    let age = |since| snapshot.time.duration_since(since).unwrap_or_default();
    let waiters = &snapshot.waiters;
    let is_own = |waiter: &Waiter| waiter.process.as_ref().is_some_and(|process| process.id == id());
    let place = waiters.iter().position(is_own)?;
    let own = &waiters[place];
    let holders = snapshot.holders.iter();
    let holders = holders.filter_map(|it| InTheWay::new(State::Holds, &it.process, age(it.since), &it.roots, own));
    let ahead = waiters.iter().enumerate().filter(|&(other, waiter)| is_ahead(waiter, own, other < place));
    let ahead = ahead.filter_map(|(_, it)| InTheWay::new(State::Waits, &it.process, age(it.since), &it.roots, own));
    Some(holders.chain(ahead).collect())
}

/// Whether a waiter came earlier into the queue where we are, or has passed it: it waits below, or has what lies there.
fn is_ahead(other: &Waiter, own: &Waiter, is_older: bool) -> bool {
    let place = &own.at.segments;
    if other.at.segments == *place {
        return is_older;
    }
    other.at.segments.starts_with(place) || other.taken.iter().any(|root| overlap(&root.segments, place))
}

/// The contract itself: sub-trees overlap, and one of the two is written. A root is held S, SIX or X.
fn conflict(one: &Root, other: &Root) -> bool {
    [one.mode, other.mode].contains(&Mode::Exclusive) && overlap(&one.segments, &other.segments)
}

fn overlap(one: &[String], other: &[String]) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

impl Display for InTheWay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It quotes what a terminal would take as a command.
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
        if self.state == State::Holds && is_ancestor(self.process.id) {
            f.write_str("; it runs the very command that this one is a part of")?;
        }
        Ok(())
    }
}

/// Whether a process has started the one that has started this one, and so on. (`man 5 proc`)
fn is_ancestor(process: u32) -> bool {
    let parent = |id: &u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // Behind the command, which may be anything, and the state.
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
    };
    successors(Some(id()), parent).skip(1).take_while(|&id| id != 0).any(|id| id == process)
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
