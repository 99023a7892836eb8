//! Who holds what and who waits for what, as data, as a drawing and as `Debug`.
#![cfg(not(feature = "model"))]

mod common;

use common::{Other, join, join_all, spawn, wait_until, wait_until_thread_waits, wait_until_waiting};
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use treelock::{Mode, Root, Snapshot, TreeLock};

/// Roots as they print: `X a/b`.
fn told(roots: &[Root]) -> Vec<String> {
    roots.iter().map(ToString::to_string).collect()
}

/// The drawing without the parts that differ from run to run: times, and places in this file.
fn steady(drawing: &str) -> String {
    let steady = |line: &str| {
        let line = line.replace(" since just now, ", " for 0 ms, ");
        let Some((head, tail)) = line.split_once(" for ") else { return line };
        let (time, tail) = tail.split_once(", ").unwrap();
        let (number, unit) = time.split_once(' ').unwrap();
        assert!(number.parse::<f64>().is_ok() && ["s", "ms"].contains(&unit), "{time} is no time");
        let (action, place) = tail.split_once(file!()).unwrap();
        assert!(place.chars().all(|char| char.is_ascii_digit() || char == ':'), "{place} is no place");
        format!("{head} for TIME, {action}HERE")
    };
    drawing.lines().map(steady).collect::<Vec<_>>().join("\n")
}

/// The file and the line of a place in the source.
fn place(location: &str) -> (&str, u32) {
    let mut parts = location.rsplitn(3, ':');
    let [_column, line, file] = [(); 3].map(|()| parts.next().unwrap());
    (file, line.parse().unwrap())
}

/// How exact reported times are: some ticks of the system's clock.
const TICK: Duration = Duration::from_millis(50);

/// Lets enough time pass to be reported.
fn pass(time: Duration) {
    let start = Instant::now();
    wait_until("time has passed", || start.elapsed() > time);
}

/// Who, what, where and since when.
#[test]
fn a_snapshot_tells_who_holds_what_since_when_and_from_where() {
    let lock = common::new();
    let before = SystemTime::now();
    let line = line!() + 1;
    let _first = lock.lock(&["a", "c/d"], &["a/b", "e"]);
    pass(2 * TICK);
    let between = SystemTime::now();
    let own = Arc::clone(&lock);
    let other = spawn("a holder", move || own.read_arc("f/g"));
    let _second = join(other);
    let after = SystemTime::now();

    let snapshot = lock.snapshot();
    assert!(snapshot.waiters.is_empty() && snapshot.time >= after);
    let [first, second] = &snapshot.holders[..] else { panic!("{snapshot}") };
    assert_eq!(first.thread, std::thread::current().name().unwrap());
    assert_eq!(place(&first.location), (file!(), line));
    assert_eq!(first.process, None);
    assert_eq!(told(&first.roots), ["SIX a", "S c/d", "X a/b", "X e"]);
    assert!(before <= first.since + TICK && first.since + TICK <= between);
    assert_eq!(second.thread, "a holder", "whoever has it now, that one asked");
    assert_eq!(told(&second.roots), ["S f/g"]);
    assert!(between <= second.since + TICK && second.since <= after + TICK);
}

/// And where it waits: at the first node of its way where another request excludes it.
#[test]
fn a_snapshot_tells_who_waits_for_what() {
    let lock = common::new();
    let before = SystemTime::now();
    let held = lock.write("a/b");
    let waiting = spawn("a waiter", {
        let lock = Arc::clone(&lock);
        move || {
            let line = line!() + 1;
            drop(lock.lock(&["a/b/c/d", "z"], &["y"]));
            line
        }
    });
    wait_until_waiting(&lock, 1);
    let snapshot = lock.snapshot();
    drop(held);
    let line = join(waiting);
    let [waiter] = &snapshot.waiters[..] else { panic!("{snapshot}") };
    assert_eq!(waiter.thread, "a waiter");
    assert_eq!(place(&waiter.location), (file!(), line));
    assert_eq!(told(&waiter.roots), ["S a/b/c/d", "S z", "X y"]);
    assert_eq!(waiter.at.to_string(), "IS a/b");
    assert!(before <= waiter.since + TICK && waiter.since <= snapshot.time);
}

/// A root that another one covers is left out.
#[test]
fn a_snapshot_names_each_root_once_and_none_that_lies_in_another() {
    let lock = TreeLock::new();
    let roots = |reads: &[&str], writes: &[&str]| {
        let _guard = lock.lock(reads, writes);
        told(&lock.snapshot().holders[0].roots)
    };
    assert_eq!(roots(&["a", "a", "./a/", "a/b"], &[]), ["S a"]);
    assert_eq!(roots(&["a/b", "a"], &["a"]), ["X a"]);
    assert_eq!(roots(&["a/b"], &["a", "c", "c/d"]), ["X a", "X c"]);
    assert_eq!(roots(&["."], &["a"]), ["SIX /", "X a"]);
    assert_eq!(roots(&[], &[]), [""; 0]);
}

/// A root is S, X or SIX; a read root in a read root is not reported again.
#[test]
fn a_snapshot_does_not_name_a_covered_root_above_a_write() {
    let lock = TreeLock::new();
    let _guard = lock.lock(&["a", "a/b"], &["a/b/c"]);
    assert_eq!(told(&lock.snapshot().holders[0].roots), ["SIX a", "X a/b/c"]);
}

/// What was written below a read root is a part of it from then on.
#[test]
fn a_downgrade_leaves_one_root_where_one_covers_the_other() {
    let lock = TreeLock::new();
    let _guard = lock.lock(&["a", "b/c"], &["a/b", "b"]).downgrade();
    assert_eq!(told(&lock.snapshot().holders[0].roots), ["S a", "S b"]);
}

/// A request has one wait, in whatever queue it stands; its age is that of the wait.
#[test]
fn a_snapshot_tells_since_when_a_request_waits_also_where_it_has_moved_on() {
    let lock = common::new();
    let near = lock.write("a");
    let far = lock.write("x/y");
    let waiting = spawn("waiting", {
        let lock = Arc::clone(&lock);
        move || drop(lock.lock(&["a", "x/y"], &[]))
    });
    wait_until_waiting(&lock, 1);
    let began = lock.snapshot().waiters[0].since;
    pass(2 * TICK);
    drop(near);
    let snapshot = lock.snapshot();
    assert_eq!(snapshot.waiters[0].at.segments, ["x", "y"], "the release walked it on");
    assert!(snapshot.waiters[0].since <= began + TICK, "it waits since {began:?}");
    drop(far);
    join(waiting);
}

/// The snapshot shows what a downgraded guard holds now.
#[test]
fn a_snapshot_tells_downgraded_writes_as_reads() {
    let lock = TreeLock::new();
    let _guard = lock.lock(&["a"], &["a/b", "c"]).downgrade();
    let roots = told(&lock.snapshot().holders[0].roots);
    assert!(roots.contains(&"S a".into()) && roots.contains(&"S c".into()), "{roots:?}");
    assert!(roots.iter().all(|root| root.starts_with("S ")), "{roots:?}");
}

/// A thread without a name has a number.
#[test]
fn threads_without_a_name_are_told_apart() {
    let lock = Arc::new(TreeLock::new());
    let ask = |path: &'static str| {
        let lock = Arc::clone(&lock);
        join(std::thread::spawn(move || lock.read_arc(path)))
    };
    let _guards = (ask("a"), ask("b"));
    let snapshot = lock.snapshot();
    let [one, other] = &snapshot.holders[..] else { panic!("{snapshot}") };
    assert!(one.thread.starts_with("unnamed-") && other.thread.starts_with("unnamed-"));
    assert_ne!(one.thread, other.thread);
}

/// The location is that of the call in the user's source, for each method.
#[test]
fn every_way_to_lock_tells_where_it_was_called() {
    #[track_caller]
    fn here(lock: &Arc<TreeLock>) {
        let snapshot = lock.snapshot();
        let (file, line) = place(&snapshot.holders[0].location);
        assert_eq!((file, line + 1), (file!(), Location::caller().line()));
    }
    let lock = Arc::new(TreeLock::new());
    let soon = Duration::from_secs(1);
    {
        let _guard = lock.lock(&["a"], &["b"]);
        here(&lock);
    }
    {
        let _guard = lock.read("a");
        here(&lock);
    }
    {
        let _guard = lock.write("a");
        here(&lock);
    }
    {
        let _guard = lock.try_lock(&["a"], &[]).unwrap();
        here(&lock);
    }
    {
        let _guard = lock.try_lock_for(&["a"], &[], soon).unwrap();
        here(&lock);
    }
    {
        let _guard = lock.try_lock_until(&["a"], &[], Instant::now() + soon).unwrap();
        here(&lock);
    }
    {
        let _guard = lock.try_read("a").unwrap();
        here(&lock);
    }
    {
        let _guard = lock.try_write("a").unwrap();
        here(&lock);
    }
    {
        let _guard = lock.try_read_for("a", soon).unwrap();
        here(&lock);
    }
    {
        let _guard = lock.try_write_for("a", soon).unwrap();
        here(&lock);
    }
    {
        let _guard = lock.lock_arc(&["a"], &[]);
        here(&lock);
    }
    {
        let _guard = lock.try_read_arc("a").unwrap();
        here(&lock);
    }
    {
        let _guard = lock.try_write_arc("a").unwrap();
        here(&lock);
    }
    {
        let _guard = lock.try_read_arc_for("a", soon).unwrap();
        here(&lock);
    }
    {
        let _guard = lock.try_write_arc_for("a", soon).unwrap();
        here(&lock);
    }
    {
        let _guard = lock.read_arc("a");
        here(&lock);
    }
    {
        let _guard = lock.write_arc("a");
        here(&lock);
    }
    {
        let _guard = lock.try_lock_arc(&["a"], &[]).unwrap();
        here(&lock);
    }
    {
        let _guard = lock.try_lock_arc_for(&["a"], &[], soon).unwrap();
        here(&lock);
    }
    {
        let _guard = lock.try_lock_arc_until(&["a"], &[], Instant::now() + soon).unwrap();
        here(&lock);
    }
}

/// A panic names a place in the user's code, not in the library.
#[test]
fn a_panic_of_lock_tells_where_it_was_called() {
    let lock = common::new();
    let place = Arc::new(std::sync::Mutex::new(None));
    let own = Arc::clone(&place);
    std::panic::set_hook(Box::new(move |panic| {
        *own.lock().unwrap() = panic.location().map(|location| (location.file().to_owned(), location.line()));
    }));
    type Call = fn(&Arc<TreeLock>);
    let calls: [(u32, Call); 4] = [
        (line!(), |lock| drop(lock.lock(&["../a"], &[]))),
        (line!(), |lock| drop(lock.write("../a"))),
        (line!(), |lock| drop(lock.lock_arc(&["../a"], &[]))),
        (line!(), |lock| drop(lock.read_arc("../a"))),
    ];
    for (line, call) in calls {
        common::panic_message(|| call(&lock));
        assert_eq!(place.lock().unwrap().take(), Some((file!().to_owned(), line)));
    }
    drop(std::panic::take_hook());
}

/// Line by line: nodes in the order of their names, chains in one line, holders before waiters, the oldest first.
#[test]
fn a_drawing_shows_the_tree() {
    let lock = common::new();
    assert_eq!(lock.snapshot().to_string(), "treelock: 0 held, 0 waiting");

    let (release, wait) = std::sync::mpsc::channel::<()>();
    let holder = spawn("holder", {
        let lock = Arc::clone(&lock);
        move || {
            let _mixed = lock.lock(&["data", "logs/today"], &["data/users"]);
            let _deep = lock.lock(&["srv/cache/images", "srv/cache/pages/index"], &[]);
            let _ = wait.recv();
        }
    });
    wait_until("both are held", || lock.snapshot().holders.len() == 2);
    let mut waiting = Vec::new();
    for (name, reads, writes) in
        [("reader", &["data/users/7"][..], &[][..]), ("writer", &[], &["srv"]), ("all", &["logs"], &["."])]
    {
        let own = Arc::clone(&lock);
        waiting.push(spawn(name, move || drop(own.lock(reads, writes))));
        wait_until_thread_waits(&lock, name);
    }
    let drawing = lock.snapshot().to_string();
    drop(release);
    join(holder);
    join_all(waiting);
    let expected = r#"
treelock: 2 held, 3 waiting
/
  X    awaited by "all" for TIME, asked for at HERE
├─ data
│    SIX  held by "holder" for TIME, taken at HERE
│  └─ users
│       X    held by "holder" for TIME, taken at HERE
│       IS   awaited by "reader" for TIME, on its way to S data/users/7, asked for at HERE
├─ logs/today
│    S    held by "holder" for TIME, taken at HERE
└─ srv
     X    awaited by "writer" for TIME, asked for at HERE
   └─ cache
      ├─ images
      │    S    held by "holder" for TIME, taken at HERE
      └─ pages/index
           S    held by "holder" for TIME, taken at HERE"#;
    assert_eq!(steady(&drawing), expected.trim_start());
}

/// Names come from the user, and perhaps from the user's users.
#[test]
fn a_drawing_spells_out_what_a_terminal_would_obey() {
    let lock = common::new();
    let _guard = lock.write("a\x1b[2J\n\r\tb\u{9b}31m");
    let _other = join(spawn("evil\x07\n", {
        let lock = Arc::clone(&lock);
        move || lock.read_arc("c")
    }));
    let drawing = lock.snapshot().to_string();
    assert!(!drawing.chars().any(|char| char.is_control() && char != '\n'), "{drawing:?}");
    assert_eq!(drawing.lines().count(), 6, "{drawing}");
    assert!(drawing.contains(r"a\u{1b}[2J\n\r\tb\u{9b}31m") && drawing.contains(r#""evil\u{7}\n""#), "{drawing}");
}

/// Otherwise a request that waits behind such a guard would seem to wait for nobody.
#[test]
fn a_drawing_tells_what_a_waiting_request_has_taken() {
    let lock = common::new();
    let held = lock.write("b/c");
    let first = Other::waits(&lock, &[], &["a", "b/c"]);
    let second = Other::waits(&lock, &["a"], &[]);
    let snapshot = lock.snapshot();
    assert_eq!(told(&snapshot.waiters[0].taken), ["X a"]);
    assert!(snapshot.waiters[1].taken.is_empty());
    let drawing = snapshot.to_string();
    assert!(
        drawing.contains("X    taken by ") && drawing.contains(", which waits at b/c, asked for at"),
        "{drawing}"
    );
    assert!(drawing.contains(", on its way to X b/c, X a, asked for at"), "{drawing}");
    drop(held);
    first.releases();
    second.releases();
}

/// Two nodes are drawn as two, even if neither name is UTF-8.
#[cfg(unix)]
#[test]
fn a_drawing_tells_apart_names_that_are_not_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let path = |bytes: &'static [u8]| std::path::Path::new(std::ffi::OsStr::from_bytes(bytes));
    let lock = Arc::new(TreeLock::new());
    let _guards = (lock.write_arc(path(b"a\xff")), lock.write_arc(path(b"a\xfe")));
    // Otherwise it would look as if two requests held one node exclusively.
    let drawing = lock.snapshot().to_string();
    assert!(drawing.contains(r"─ a\xFF") && drawing.contains(r"─ a\xFE"), "{drawing}");
}

/// `Debug` counts, and shows no more than that.
#[test]
fn debug_tells_how_much_is_held_and_awaited() {
    let lock = common::new();
    assert_eq!(format!("{lock:?}"), "TreeLock { held: 0, waiting: 0, .. }");
    let first = lock.read("a");
    let second = lock.read_arc("b");
    let waiting = [Other::waits(&lock, &[], &["a"]), Other::waits(&lock, &[], &["b"])];
    assert_eq!(format!("{lock:?}"), "TreeLock { held: 2, waiting: 2, .. }");
    drop((first, second));
    waiting.into_iter().for_each(Other::releases);
}

/// A guard prints what it holds now, of what it asked for.
#[test]
fn a_guard_tells_its_roots_and_their_modes() {
    let lock = common::new();
    let plain = lock.lock(&["a", "b/c", "a/x"], &["a/b"]);
    assert_eq!(plain.to_string(), "SIX a, S b/c, X a/b");
    assert_eq!(format!("{plain:?}"), "TreeLockGuard { roots: [SIX a, S b/c, X a/b], .. }");
    let nested = lock.read("a/b");
    assert_eq!(nested.to_string(), "S a/b");
    let plain = plain.downgrade();
    assert_eq!(plain.to_string(), "S a, S b/c");

    let arc = lock.lock_arc(&["1", "2", "3", "4", "5"], &[]);
    assert_eq!(join(spawn("elsewhere", move || arc.to_string())), "S 1, S 2, S 3 and 2 more");
    let arc = lock.write_arc("e\x1b[2J");
    assert_eq!(format!("{arc:?}"), r"ArcTreeLockGuard { roots: [X e\u{1b}[2J], .. }");
    assert_eq!(lock.lock(&[], &[]).to_string(), "nothing");
}

/// Neither `Debug` nor a snapshot is in anybody's way, or waits for long; and a snapshot was true at one moment: no
/// two of its holders conflict (G1).
#[test]
fn a_lock_in_use_can_be_looked_at_and_is_never_seen_in_a_conflict() {
    fn overlap(one: &Root, other: &Root) -> bool {
        one.segments.starts_with(&other.segments) || other.segments.starts_with(&one.segments)
    }
    fn writes(root: &Root) -> bool {
        root.mode == Mode::Exclusive
    }
    fn assert_no_conflict(snapshot: &Snapshot) {
        for (index, one) in snapshot.holders.iter().enumerate() {
            for other in snapshot.holders[..index].iter().filter(|other| other.thread != one.thread) {
                let conflict = one.roots.iter().any(|root| {
                    other.roots.iter().any(|other| (writes(root) || writes(other)) && overlap(root, other))
                });
                assert!(!conflict, "{snapshot}");
            }
        }
    }
    let lock = common::new();
    let stop = Arc::new(AtomicBool::new(false));
    let threads = ["t0", "t1", "t2"].map(|name| {
        let (lock, stop) = (Arc::clone(&lock), Arc::clone(&stop));
        spawn(name, move || {
            let paths = ["a", "a/b", "a/c", ".", "d"];
            for round in (0..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                let guard = lock.lock(&[paths[round % 5]], &[paths[round % 3 + 1], paths[round % 7 % 5]]);
                if round % 2 == 0 { drop(guard) } else { drop(guard.downgrade()) }
            }
        })
    });
    let mut seen = 0;
    wait_until("somebody was seen in 300 snapshots", || {
        let debug = format!("{lock:?}");
        assert!(debug.starts_with("TreeLock { held: ") || debug == "TreeLock { busy: true, .. }", "{debug}");
        let snapshot = lock.snapshot();
        assert_no_conflict(&snapshot);
        assert!(!snapshot.to_string().is_empty());
        seen += usize::from(!snapshot.holders.is_empty());
        seen > 300
    });
    stop.store(true, Ordering::Relaxed);
    join_all(threads);
}

/// What the documentation of `Snapshot` shows, field by field.
#[cfg(feature = "serde")]
#[test]
fn a_snapshot_is_serialized_as_documented() {
    use serde_json::{Value, json};
    let lock = common::new();
    let held = lock.lock(&["data"], &["data/users"]);
    let waiting = Other::waits(&lock, &["data/users/7"], &["a"]);
    let snapshot = lock.snapshot();
    drop(held);
    waiting.releases();
    let mut told = serde_json::to_value(&snapshot).unwrap();
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    for (told, time) in [
        (told["time"].take(), snapshot.time),
        (told["holders"][0]["since"].take(), snapshot.holders[0].since),
        (told["waiters"][0]["since"].take(), snapshot.waiters[0].since),
    ] {
        assert!((told.as_f64().unwrap() - seconds(time)).abs() < 0.002, "{told}");
    }
    let [holder, waiter] = [&snapshot.holders[0].thread, &snapshot.waiters[0].thread];
    assert_eq!(
        told,
        json!({
            "time": Value::Null,
            "holders": [{
                "thread": holder, "location": snapshot.holders[0].location, "since": Value::Null,
                "roots": [{"path": ["data"], "mode": "SIX"}, {"path": ["data", "users"], "mode": "X"}],
            }],
            "waiters": [{
                "thread": waiter, "location": snapshot.waiters[0].location, "since": Value::Null,
                "roots": [{"path": ["data", "users", "7"], "mode": "S"}, {"path": ["a"], "mode": "X"}],
                "at": {"path": ["data", "users"], "mode": "IS"}, "taken": [{"path": ["a"], "mode": "X"}],
            }],
        })
    );
}

/// The same words as in a snapshot.
#[cfg(feature = "serde")]
#[test]
fn a_report_of_a_deadlock_is_serialized() {
    let lock = common::new();
    let _held = lock.write("a");
    let refused = lock.try_read_arc_for("a/b", common::LIMIT);
    let Err(treelock::LockError::Deadlock(report)) = refused else { panic!("{refused:?}") };
    let told = serde_json::to_value(&report).unwrap();
    let [party] = &told["parties"].as_array().unwrap()[..] else { panic!("{told}") };
    assert_eq!(party["waits"]["at"], serde_json::json!({"path": ["a"], "mode": "IS"}));
    assert_eq!(party["holds"][0]["roots"], serde_json::json!([{"path": ["a"], "mode": "X"}]));
    assert_eq!(party["waits"].get("owner"), None);
    let mut owner = lock.owner();
    owner.set_name("ada");
    let _held = owner.write("b").unwrap();
    let told = serde_json::to_value(lock.snapshot()).unwrap();
    assert_eq!((told["holders"][0].get("owner"), &told["holders"][1]["owner"]), (None, &"ada".into()));
}
