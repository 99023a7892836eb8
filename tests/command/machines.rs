//! The command between machines, over a real server.

use crate::server::Server;
use crate::{HOLD, LIMIT, Place, code, complaint, end, line, text, wait_for};
use redis::Value as Answer;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use treelock::Snapshot;
use treelock::machine::Options;
use treelock::redis::RedisTreeLock;

/// A server of a test's own, and where the command runs.
struct Site {
    place: Place,
    server: Server,
}

impl Site {
    /// `None` where there is no program that serves.
    fn begin() -> Option<Self> {
        Some(Site { place: Place::new(), server: Server::start()? })
    }

    /// One whose namespace takes requests.
    fn open() -> Option<Self> {
        let site = Site::begin()?;
        site.begin_namespace();
        Some(site)
    }

    /// It is closed for the time to live of the first client; the next client says another one.
    fn begin_namespace(&self) {
        let options = Options::new().time_to_live(Duration::from_millis(50));
        let lock: RedisTreeLock = RedisTreeLock::connect(&self.server.url(), "test", options).unwrap();
        drop(lock.write("a").unwrap());
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.place.command(words);
        command.env("TREELOCK_ENGINE", self.server.url()).env("TREELOCK_NAMESPACE", "test");
        command
    }

    fn treelock(&self, words: &[&str]) -> Output {
        end(self.command(words).spawn().unwrap())
    }

    /// `treelock run` of [`HOLD`], which holds the lock.
    fn hold(&self, words: &[&str]) -> Child {
        self.place.hold_with(&mut self.command(&[&["run"], words, &HOLD].concat()))
    }

    fn look(&self) -> Snapshot {
        treelock::redis::look(&self.server.url(), "test").unwrap().unwrap()
    }

    /// What changes with each session that begins or ends, and with each request.
    fn entries(&self) -> Answer {
        self.server.ask(&["XLEN", "{treelock:test}:log"]).unwrap()
    }
}

fn of_json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_writer_excludes_other_machines_and_its_command_knows_its_fence() {
    let Some(site) = Site::open() else { return };
    let fence = || text(&site.treelock(&["run", "-w", "a", "printenv", "TREELOCK_FENCE"]).stdout).trim().to_owned();
    let before: u64 = fence().parse().unwrap();
    let holder = site.hold(&["-w", "a/b"]);
    for overlapping in ["a", "a/b", "/a/b/c/"] {
        let output = site.treelock(&["run", "-n", "-r", overlapping, "true"]);
        assert_eq!((code(&output), text(&output.stderr)), (1, ""), "{overlapping}");
    }
    assert_eq!(code(&site.treelock(&["run", "-n", "-w", "c", "true"])), 0);
    assert_eq!(code(&end(holder)), 0);
    assert!(fence().parse::<u64>().unwrap() > before);
}

#[test]
fn status_of_a_namespace_says_if_nobody_has_begun_it_and_takes_no_part_in_it() {
    let Some(site) = Site::begin() else { return };
    let place = format!("the namespace \"test\" in redis://127.0.0.1:{}/", site.server.port);
    let url = site.server.url().replace("://", "://default:secret@") + "?protocol=resp3";
    let status = |words: &[&str]| end(site.command(words).env("TREELOCK_ENGINE", &url).spawn().unwrap());
    let told = |expected: &str| {
        let output = status(&["status"]);
        let expected = format!("treelock: nothing is locked{expected} {place}\n");
        assert_eq!((code(&output), text(&output.stdout), text(&output.stderr)), (0, &*expected, ""));
        let status = of_json(&status(&["status", "--json"]));
        assert_eq!(
            [&status["holders"], &status["waiters"], &status["keeper"]],
            [&json!([]), &json!([]), &json!(null)]
        );
    };
    told(", since nobody has begun");
    assert_eq!(site.server.ask(&["DBSIZE"]).unwrap(), Answer::Int(0));
    site.begin_namespace();
    let before = site.entries();
    told(" in");
    assert_eq!(site.entries(), before);
}

#[test]
fn status_shows_who_holds_and_who_waits_on_all_machines() {
    let Some(site) = Site::open() else { return };
    let holder = site.hold(&["-w", "data/users"]);
    let mut command = site.command(&[&["run", "-r", "data"], &HOLD[..]].concat());
    let waiter = command.stdin(Stdio::piped()).spawn().unwrap();
    wait_for("it waits", || (site.look().waiters.len() == 1).then_some(()));
    let before = site.entries();
    let drawn = site.treelock(&["status"]);
    assert!(text(&drawn.stdout).starts_with("treelock: 1 held, 1 waiting\n"), "{drawn:?}");
    let told = of_json(&site.treelock(&["status", "--json"]));
    let [held, waits] = [&told["holders"][0], &told["waiters"][0]];
    assert_eq!([&held["process"]["id"], &waits["process"]["id"]], [&json!(holder.id()), &json!(waiter.id())]);
    assert_eq!(held["roots"], json!([{"path": ["data", "users"], "mode": "X"}]));
    assert_eq!(site.entries(), before);
    assert_eq!((code(&end(holder)), code(&end(waiter))), (0, 0));
}

#[test]
fn status_watches_a_namespace_from_before_it_begins() {
    let Some(site) = Site::begin() else { return };
    let mut watch = site.command(&["status", "--watch", "0.02"]).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut next = |start: &str| {
        let begun = Instant::now();
        let found = lines.find(|line| line.starts_with(start) || begun.elapsed() > LIMIT).unwrap();
        assert!(found.starts_with(start), "{found}");
    };
    next("treelock: nothing is locked, since nobody has begun the namespace ");
    let holder = site.hold(&["--time-to-live", "0.5", "-w", "a"]);
    next("treelock: 1 held, 0 waiting");
    assert_eq!(code(&end(holder)), 0);
    next("treelock: nothing is locked in the namespace ");
    // One client only was ever there.
    assert_eq!(
        site.server.ask(&["HGET", "{treelock:test}:meta", "members"]).unwrap(),
        Answer::BulkString(b"1".into())
    );
    drop(lines);
    assert_eq!(code(&end(watch)), 0);
}

/// Or a new user would see nothing happen for ten seconds.
#[test]
fn a_namespace_that_is_new_is_told_to_those_who_wait_and_to_those_who_give_up() {
    let Some(site) = Site::begin() else { return };
    let new = |namespace: &str, words: &[&str]| {
        let options = ["run", "--namespace", namespace, "--time-to-live", "5", "-w", "a"];
        let start = Instant::now();
        let output = site.treelock(&[&options, words, &["echo", "ran"]].concat());
        assert!(code(&output) == 1 || start.elapsed() >= Duration::from_secs(5), "{output:?}");
        output
    };
    let waited = new("waits", &[]);
    assert_eq!((code(&waited), text(&waited.stdout)), (0, "ran\n"));
    let start = "treelock: waiting: the namespace is new, or its data was lost: it is closed for another ";
    assert!(complaint(&waited).starts_with(start) && complaint(&waited).ends_with(" s"), "{waited:?}");
    let quiet = new("is quiet", &["-q"]);
    assert_eq!((code(&quiet), text(&quiet.stderr)), (0, ""));
    for (namespace, words) in [("tries", &["-n"][..]), ("gives up", &["--timeout", "0.1"])] {
        let refused = new(namespace, words);
        assert_eq!((code(&refused), text(&refused.stdout)), (1, ""));
        let start = "treelock: the namespace is new, or its data was lost: it is closed for another ";
        assert!(complaint(&refused).starts_with(start), "{refused:?}");
    }
}

#[test]
fn a_command_whose_lease_is_lost_is_sent_term_and_its_success_becomes_75() {
    let Some(site) = Site::open() else { return };
    for (trap, expected) in [("trap 'exit 0' TERM", 75), ("trap 'exit 7' TERM", 7), (":", 143)] {
        // The shell waits for a command that ends when its standard input ends.
        let script = format!("{trap}; exec 3<&0; cat <&3 >/dev/null 2>&1 & echo held; wait; exit 6");
        let words = ["run", "--time-to-live", "1", "-w", "a", "sh", "-c", &script];
        let mut holder = site.place.hold_with(&mut site.command(&words));
        site.server.ask(&["FLUSHALL"]).unwrap();
        let status = wait_for("it ends", || holder.try_wait().unwrap());
        assert_eq!(status.code(), Some(expected), "{trap}");
        let told = line(holder.stderr.as_mut().unwrap());
        assert!(told.starts_with("treelock: the lease is lost") && told.contains("TERM"), "{told}");
        assert!(line(holder.stderr.as_mut().unwrap()).starts_with("treelock: the lease was lost before"));
    }
}

/// And not after the ten seconds for which a request waits that may.
#[test]
fn a_server_that_is_away_gives_73_soon_to_those_who_do_not_wait() {
    let Some(mut site) = Site::open() else { return };
    site.server.kill();
    for words in [&["run", "-n", "-w", "a", "true"][..], &["run", "--timeout", "0.1", "-w", "a", "true"], &["status"]]
    {
        let start = Instant::now();
        let output = site.treelock(words);
        assert_eq!((code(&output), text(&output.stdout)), (73, ""), "{words:?}");
        complaint(&output);
        assert!(start.elapsed() < Duration::from_secs(8), "{words:?} took {:?}", start.elapsed());
    }
}

#[test]
fn arguments_that_need_a_server_or_a_namespace_are_refused_without() {
    let place = Place::new();
    for (words, expected) in [
        (&["run", "--namespace", "test", "-w", "a", "true"][..], "--namespace: give --engine"),
        (&["run", "--time-to-live", "5", "-w", "a", "true"], "--time-to-live: give --engine"),
        (&["run", "--engine", "redis://127.0.0.1/", "-w", "a", "true"], "give --namespace"),
        (&["status", "--namespace", "test"], "--namespace: give --engine"),
        (&["status", "--engine", "redis://127.0.0.1/", "--dir", "locks"], "cannot be used with"),
        (&["run", "--engine", "redis://127.0.0.1/", "--namespace", "test", "-w", "../a", "true"], "no . and no .."),
    ] {
        let output = place.treelock(words);
        assert_eq!((code(&output), text(&output.stdout)), (64, ""), "{words:?}");
        assert!(complaint(&output).contains(expected), "{output:?}");
    }
}

#[test]
fn help_and_manual_and_readme_tell_the_same_exit_statuses() {
    let place = Place::new();
    let codes = |text: &str, before: &str| -> BTreeSet<String> {
        let table = text.split(before).nth(1).unwrap().split("\n\n").next().unwrap();
        let words = table.lines().filter_map(|line| line.trim_start_matches([' ', '|']).split(' ').next());
        words.filter(|word| word.starts_with(|first: char| first.is_ascii_digit())).map(str::to_owned).collect()
    };
    assert_eq!(code(&place.treelock(&["man", "manual/pages"])), 0);
    let told = |command: &str| {
        let help = codes(text(&place.treelock(&[command, "--help"]).stdout), "Exit status:\n");
        let manual = place.home().join(format!("manual/pages/treelock-{command}.1"));
        assert_eq!(codes(&fs::read_to_string(manual).unwrap(), "Exit status:\n"), help);
        help
    };
    assert_eq!(codes(include_str!("../../README.md"), "command that it runs, or with\n\n"), told("run"));
    assert!(told("status").contains("74"));
}
