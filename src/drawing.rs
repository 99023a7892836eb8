//! Snapshots and reports of deadlocks as text: the tree of holders and waiters, drawn, and who waits behind whom.
//!
//! Text that others choose, such as the names of paths and threads, and commands, is escaped so that a terminal does
//! not obey it.

use crate::inspect::{Deadlock, Holder, Party, Process, Root, Snapshot, Waiter};
use std::collections::BTreeMap;
use std::fmt::{self, Debug, Display, Write};
use std::time::Duration;

impl Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.mode, Joined(&self.segments))
    }
}

/// Segments as a path, with what a terminal would take as a command escaped.
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

/// Text that others chose, with what a terminal would take as a command escaped.
struct Plain<'a>(&'a str);

impl Plain<'_> {
    fn quoted(&self) -> String {
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

/// Several roots in a sentence: names the first few.
pub(crate) struct FirstOf<'a>(pub(crate) &'a [Root]);

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

/// The roots that a waiter has asked for, those first for which it waits where it does.
fn explaining(waiter: &Waiter) -> Vec<Root> {
    let Waiter { roots, at, .. } = waiter;
    let is_for = |root: &Root| root.segments.starts_with(&at.segments) && root.mode.covers(at.mode);
    let (first, others): (Vec<&Root>, Vec<&Root>) = roots.iter().partition(|root| is_for(root));
    first.into_iter().chain(others).cloned().collect()
}

/// A list of roots as they print, for `Debug`.
pub(crate) struct ListOf<'a>(pub(crate) &'a [Root]);

impl Debug for ListOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        for root in self.0 {
            list.entry(&format_args!("{root}"));
        }
        list.finish()
    }
}

impl Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} \"{}\" of {}", self.id, Plain(&self.command), Plain(&self.user))
    }
}

/// Who holds or waits, within a process.
fn thread_or_owner(owner: &Option<String>, thread: &str) -> String {
    match owner {
        Some(owner) => format!("owner {}", Plain(owner).quoted()),
        None => Plain(thread).quoted(),
    }
}

impl Display for Deadlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owners = self.parties.iter().filter(|party| party.waits.owner.is_some()).count();
        match self.parties.len() {
            // An owner may ask in a thread that has a guard of its own.
            1 => f.write_str("deadlock of a thread with itself:")?,
            length if owners == 0 => write!(f, "deadlock of {length} threads:")?,
            length if owners == length => write!(f, "deadlock of {length} owners:")?,
            length => write!(f, "deadlock of {length} owners and threads:")?,
        }
        let who = |place: usize| {
            let Waiter { process, owner, thread, .. } = &self.parties[place].waits;
            match process {
                Some(process) => format!("{process}, thread {}", Plain(thread).quoted()),
                None => thread_or_owner(owner, thread),
            }
        };
        for (place, Party { waits, holds }) in self.parties.iter().enumerate() {
            let (roots, location) = (explaining(waits), Plain(&waits.location));
            write!(f, "\n  {} waits for {} (asked for {} at {location})", who(place), waits.at, FirstOf(&roots))?;
            let mut told: Vec<(String, usize)> = Vec::new();
            for hold in holds {
                let line = format!("{} (taken at {}", FirstOf(&hold.roots), Plain(&hold.location));
                match told.iter_mut().find(|(known, _)| *known == line) {
                    Some((_, times)) => *times += 1,
                    None => told.push((line, 1)),
                }
            }
            for (line, times) in told {
                let times = if times > 1 { format!(", {times} times") } else { String::new() };
                write!(f, "\n    and holds {line}{times})")?;
            }
            if self.parties.len() > 1 {
                write!(f, "\n    behind {}", who((place + 1) % self.parties.len()))?;
            }
        }
        Ok(())
    }
}

impl Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut drawing = Drawing::default();
        let who = |process: &Option<Process>, owner: &Option<String>, thread: &str| match process {
            Some(process) => process.to_string(),
            None => thread_or_owner(owner, thread),
        };
        for holder @ Holder { process, owner, thread, since, .. } in &self.holders {
            drawing.add_holder(&who(process, owner, thread), holder, Since(self.age(*since)));
        }
        for waiter @ Waiter { process, owner, thread, since, .. } in &self.waiters {
            drawing.add_waiter(&who(process, owner, thread), waiter, Since(self.age(*since)));
        }
        write!(f, "treelock: {} held, {} waiting", self.holders.len(), self.waiters.len())?;
        drawing.draw(f)
    }
}

/// For how long, in about three digits. The clocks that each request reads are exact to some milliseconds only.
#[derive(Clone, Copy)]
struct Since(Duration);

impl Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        match seconds {
            100.0.. => write!(f, "for {seconds:.0} s"),
            1.0.. => write!(f, "for {seconds:.1} s"),
            0.01.. => write!(f, "for {:.0} ms", seconds * 1e3),
            _ => f.write_str("since just now"),
        }
    }
}

/// A tree of names with lines of text at some of them. Nodes are in one vector, since paths may be too deep for a
/// recursion.
#[derive(Default)]
struct Drawing {
    nodes: Vec<DrawnNode>,
}

#[derive(Default)]
struct DrawnNode {
    name: String,
    children: BTreeMap<String, usize>,
    lines: Vec<String>,
}

impl Drawing {
    fn add_holder(&mut self, who: &str, holder: &Holder, since: Since) {
        let location = Plain(&holder.location);
        for root in &holder.roots {
            self.add(root, format_args!("held by {who} {since}, taken at {location}"));
        }
    }

    fn add_waiter(&mut self, who: &str, waiter: &Waiter, since: Since) {
        let Waiter { roots, at, taken, .. } = waiter;
        let location = Plain(&waiter.location);
        for root in taken {
            let at = Joined(&at.segments);
            self.add(root, format_args!("taken by {who}, which waits at {at}, asked for at {location}"));
        }
        if *roots == [at.clone()] {
            self.add(at, format_args!("awaited by {who} {since}, asked for at {location}"));
        } else {
            let explaining = explaining(waiter);
            let roots = FirstOf(&explaining);
            self.add(at, format_args!("awaited by {who} {since}, on its way to {roots}, asked for at {location}"));
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

    fn draw(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
            // A chain of nodes without lines is drawn as one.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::mode::Mode;
    use std::time::SystemTime;

    #[test]
    fn age_is_told_in_three_digits_or_as_just_now() {
        let told = |micros| Since(Duration::from_micros(micros)).to_string();
        assert_eq!([told(0), told(9_999)], ["since just now"; 2]);
        assert_eq!([told(10_000), told(999_000)], ["for 10 ms", "for 999 ms"]);
        assert_eq!([told(1_240_000), told(123_400_000)], ["for 1.2 s", "for 123 s"]);
    }

    /// Another process chooses the text of its location, and perhaps of its command.
    #[test]
    fn what_others_tell_is_spelled_out_where_a_terminal_would_obey_it() {
        let (time, evil) = (SystemTime::now(), || String::from("e\x1b[2J\n"));
        let holder = Holder {
            process: Some(Process { member: 1, id: 7, command: evil(), user: evil() }),
            owner: None,
            thread: evil(),
            location: evil(),
            since: time,
            roots: vec![Root { segments: vec![evil()], mode: Mode::Exclusive }],
        };
        let Holder { process, owner, thread, location, since, roots } = holder.clone();
        let (at, taken) = (roots[0].clone(), Vec::new());
        let waiter = Waiter { process, owner, thread, location, since, roots, at, taken };
        let cycle = vec![(waiter.clone(), vec![holder.clone()], Some(Mode::Shared))];
        let of_owner = Holder { process: None, owner: Some(evil()), ..holder.clone() };
        let lines = [
            (Snapshot::new(time, vec![holder, of_owner], vec![waiter]).to_string(), 6),
            (Deadlock::new(cycle).to_string(), 4),
        ];
        for (told, count) in lines {
            assert!(!told.chars().any(|char| char.is_control() && char != '\n'), "{told:?}");
            assert_eq!(told.lines().count(), count, "{told}");
        }
    }
}
