//! Who holds what and who waits for what, as plain data and as a drawing.
//!
//! Not here: how it is gathered (`thread/report.rs`, `process/report.rs`); how a cycle is found (`core/deadlock.rs`).

use crate::core::mode::Mode;
use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};
use std::panic::Location;
use std::time::{Duration, Instant};

/// All that a lock had granted and all that waited for it at one moment, and what those that wait have taken already.
///
/// Its `Display` draws the tree:
///
/// ```text
/// treelock: 2 held, 1 waiting
/// /
/// ├─ data
/// │  └─ users
/// │       X    held by "worker-1" for 1.2 s, taken at src/job.rs:41:22
/// │       S    awaited by "worker-2" for 310 ms, asked for at src/job.rs:64:22
/// └─ logs/today
///      S    held by "main" for 2.0 s, taken at src/main.rs:12:20
/// ```
///
/// ```
/// let lock = treelock::TreeLock::new();
/// let guard = lock.write("data/users");
/// let snapshot = lock.snapshot();
/// assert_eq!(snapshot.holders[0].roots[0].segments, ["data", "users"]);
/// assert!(snapshot.to_string().contains("data/users"));
/// # drop(guard);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// Those that hold sub-trees, the longest first.
    pub holders: Vec<Holder>,
    /// Those that wait, the longest first.
    pub waiters: Vec<Waiter>,
    /// When it was taken.
    pub taken: Instant,
}

/// A guard that is alive, or was forgotten.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Holder {
    /// The name of the thread that asked, or `unnamed-` and a number.
    pub thread: String,
    /// Where in the source it asked.
    pub location: &'static Location<'static>,
    /// When it was granted, to a few milliseconds.
    pub since: Instant,
    /// What it holds, without what lies in other roots of its own.
    pub roots: Vec<Root>,
}

/// A request that is not granted yet.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Waiter {
    /// The name of the thread that waits, or `unnamed-` and a number.
    pub thread: String,
    /// Where in the source it asked.
    pub location: &'static Location<'static>,
    /// When it began to wait, to a few milliseconds.
    pub since: Instant,
    /// What it asked for, without what lies in other roots of its own.
    pub roots: Vec<Root>,
    /// The node where it waits now, and the mode it waits for there.
    pub at: Root,
    /// Those of its roots that it has already, on its way from the root of the tree down.
    pub taken: Vec<Root>,
}

/// A node, and how it is held or asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Root {
    /// The names of the segments from the root of the tree down, as text; what is not UTF-8 is spelled `\xFF`.
    pub segments: Vec<String>,
    /// S or X on what was asked for, SIX on a read root with a write root of the same request below.
    pub mode: Mode,
}

/// A cycle of threads each of which waits for the next, and the last for the first.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Deadlock {
    /// The first is the one that got this report.
    pub parties: Vec<Party>,
}

/// A thread in a cycle.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Party {
    /// The request that it waits with. It may hold some of its roots already.
    pub waits: Waiter,
    /// What the one before in the cycle waits for: guards of this thread, and what its request has taken so far.
    pub holds: Vec<Holder>,
}

impl Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.mode, Joined(&self.segments))
    }
}

/// Segments as a path, quoted, with what a terminal would take as a command spelled out.
struct Joined<'a>(&'a [String]);

impl Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("/");
        }
        for (index, segment) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_char('/')?;
            }
            Plain(segment).fmt(f)?;
        }
        Ok(())
    }
}

/// Text of others, with what a terminal would take as a command spelled out.
pub(crate) struct Plain<'a>(pub(crate) &'a str);

impl Plain<'_> {
    pub(crate) fn quoted(&self) -> String {
        format!("\"{self}\"")
    }
}

impl Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
            if char.is_control() || is_direction(char) {
                Display::fmt(&char.escape_default(), f)?
            } else {
                f.write_char(char)?
            }
        }
        Ok(())
    }
}

/// Whether a character changes the direction in which others are shown.
fn is_direction(char: char) -> bool {
    matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Several roots in a sentence: the first few by name.
struct FirstOf<'a>(&'a [Root]);

impl Display for FirstOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, root) in self.0.iter().take(3).enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            Display::fmt(root, f)?;
        }
        match self.0.len() {
            0 => f.write_str("nothing"),
            more @ 4.. => write!(f, " and {} more", more - 3),
            _ => Ok(()),
        }
    }
}

impl Display for Deadlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parties = self.parties.iter().map(|Party { waits, holds }| DrawnParty {
            who: Plain(&waits.thread).quoted(),
            at: &waits.at,
            asked: Asked { roots: &waits.roots, location: &waits.location },
            holds: holds.iter().map(|hold| Asked { roots: &hold.roots, location: &hold.location }).collect(),
        });
        write_cycle(f, &parties.collect::<Vec<_>>())
    }
}

/// One in a cycle, as it is written down.
pub(crate) struct DrawnParty<'a> {
    pub(crate) who: String,
    pub(crate) at: &'a Root,
    pub(crate) asked: Asked<'a>,
    pub(crate) holds: Vec<Asked<'a>>,
}

/// What was asked for, and where in the source.
pub(crate) struct Asked<'a> {
    pub(crate) roots: &'a [Root],
    pub(crate) location: &'a dyn Display,
}

pub(crate) fn write_cycle(f: &mut fmt::Formatter<'_>, parties: &[DrawnParty<'_>]) -> fmt::Result {
    match parties.len() {
        1 => f.write_str("deadlock of a thread with itself:")?,
        length => write!(f, "deadlock of {length} threads:")?,
    }
    for (index, DrawnParty { who, at, asked, holds }) in parties.iter().enumerate() {
        write!(f, "\n  {who} waits for {at} (asked for {} at {})", FirstOf(asked.roots), asked.location)?;
        for hold in holds {
            write!(f, "\n    and holds {} (taken at {})", FirstOf(hold.roots), hold.location)?;
        }
        if parties.len() > 1 {
            write!(f, "\n    behind {}", parties[(index + 1) % parties.len()].who)?;
        }
    }
    Ok(())
}

impl Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut drawing = Drawing::default();
        let age = |since| self.taken.saturating_duration_since(since);
        for Holder { thread, location, since, roots } in &self.holders {
            drawing.add_holder(&Plain(thread).quoted(), location, age(*since), roots);
        }
        for Waiter { thread, location, since, roots, at, taken } in &self.waiters {
            drawing.add_waiter(&Plain(thread).quoted(), location, age(*since), roots, at, taken);
        }
        write!(f, "treelock: {} held, {} waiting", self.holders.len(), self.waiters.len())?;
        drawing.draw(f)
    }
}

/// A duration in three digits or so.
struct Short(Duration);

impl Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        match seconds {
            100.0.. => write!(f, "{seconds:.0} s"),
            1.0.. => write!(f, "{seconds:.1} s"),
            0.001.. => write!(f, "{:.0} ms", seconds * 1e3),
            _ => write!(f, "{:.0} µs", seconds * 1e6),
        }
    }
}

/// A tree of names with lines of text at some of them. Nodes are in one vector: paths may be deeper than a stack.
#[derive(Default)]
pub(crate) struct Drawing {
    nodes: Vec<DrawnNode>,
}

#[derive(Default)]
struct DrawnNode {
    name: String,
    children: BTreeMap<String, usize>,
    lines: Vec<String>,
}

impl Drawing {
    pub(crate) fn add_holder(&mut self, who: &str, location: &dyn Display, age: Duration, roots: &[Root]) {
        for root in roots {
            self.add(root, format_args!("held by {who} for {}, taken at {location}", Short(age)));
        }
    }

    pub(crate) fn add_waiter(
        &mut self,
        who: &str,
        location: &dyn Display,
        age: Duration,
        roots: &[Root],
        at: &Root,
        taken: &[Root],
    ) {
        for root in taken {
            let at = Joined(&at.segments);
            self.add(root, format_args!("taken by {who}, which waits at {at}, asked for at {location}"));
        }
        let age = Short(age);
        if *roots == [at.clone()] {
            self.add(at, format_args!("awaited by {who} for {age}, asked for at {location}"));
        } else {
            let roots = FirstOf(roots);
            self.add(at, format_args!("awaited by {who} for {age}, on its way to {roots}, asked for at {location}"));
        }
    }

    fn add(&mut self, root: &Root, line: fmt::Arguments<'_>) {
        if self.nodes.is_empty() {
            self.nodes.push(DrawnNode::default());
        }
        let mut at = 0;
        for segment in &root.segments {
            let new = self.nodes.len();
            at = *self.nodes[at].children.entry(segment.clone()).or_insert(new);
            if at == new {
                self.nodes.push(DrawnNode { name: segment.clone(), ..DrawnNode::default() });
            }
        }
        self.nodes[at].lines.push(format!("{:<4} {line}", root.mode));
    }

    pub(crate) fn draw(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes.is_empty() {
            return Ok(());
        }
        f.write_str("\n/")?;
        for line in &self.nodes[0].lines {
            write!(f, "\n  {line}")?;
        }
        let mut open = Vec::new();
        self.open_children(0, "", &mut open);
        while let Some((mut at, indent)) = open.pop() {
            // `indent` ends in the branch to this node.
            write!(f, "\n{indent}{}", Plain(&self.nodes[at].name))?;
            // A chain of nodes that have nothing to tell is drawn as one.
            while self.nodes[at].lines.is_empty() && self.nodes[at].children.len() == 1 {
                at = *self.nodes[at].children.values().next().expect("it has one");
                write!(f, "/{}", Plain(&self.nodes[at].name))?;
            }
            let below = match indent.strip_suffix("└─ ") {
                Some(above) => format!("{above}   "),
                None => format!("{}│  ", indent.strip_suffix("├─ ").unwrap_or_default()),
            };
            for line in &self.nodes[at].lines {
                write!(f, "\n{below}  {line}")?;
            }
            self.open_children(at, &below, &mut open);
        }
        Ok(())
    }

    fn open_children(&self, at: usize, below: &str, open: &mut Vec<(usize, String)>) {
        for (index, &child) in self.nodes[at].children.values().rev().enumerate() {
            let branch = if index == 0 { "└─ " } else { "├─ " };
            open.push((child, format!("{below}{branch}")));
        }
    }
}
