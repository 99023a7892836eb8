//! What the agents between machines do (see `common/talk.rs`), and a store that compares fences.
//!
//! | command | what it does |
//! |---|---|
//! | `lock N r:a w:b/c` | takes a guard and calls it N |
//! | `try N ...`, `for MS N ...` | the same without waiting, or for this many milliseconds |
//! | `release N` | releases it, and says whether it was held up to then |
//! | `fence N`, `valid N`, `lost N` | its fence; whether it is valid; whether `on_lost` was called |
//! | `put N FILE TEXT` | writes to a store that compares the fences; see [`Store`] |
//! | `late N FILE TEXT` | sees that N is valid, says `looked`, and does `put` when there is one more line |
//! | `blind N FILE TEXT` | the same with a store that compares nothing |
//! | `work FOLDER SEED` | what `storm.rs` says, until it is killed |
//! | `cpu` | the processor time that it has used, in microseconds |

pub(crate) use crate::talk::Agent;

use super::conformance::Place;
use super::storm;
use crate::talk::{paths, say, serve};
use rustix::fs::{FlockOperation, flock};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::ops::Deref;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use treelock::machine::{ArcMachineGuard, EngineError, MachineLockError, MachineTreeLock, Options};
use treelock::redis::RedisTreeLock;

const URL: &str = "TREELOCK_AGENT_URL";
const TIME_TO_LIVE: &str = "TREELOCK_AGENT_TIME_TO_LIVE";

impl Agent {
    /// Starts one that has the lock open.
    #[track_caller]
    pub(crate) fn new(place: &impl Place, time_to_live: Duration) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .envs(place.environment())
            .env(URL, place.url())
            .env(TIME_TO_LIVE, time_to_live.as_millis().to_string());
        Agent::start(command).unwrap()
    }

    /// Takes a guard, and returns its fence.
    #[track_caller]
    pub(crate) fn locks(&mut self, command: &str) -> u64 {
        self.does(command);
        let name = command.split(' ').nth(1).unwrap();
        self.ask(&format!("fence {name}")).parse().unwrap()
    }

    /// Sends a request that has to wait, and returns when it does.
    #[track_caller]
    pub(crate) fn waits(&mut self, command: &str, observer: &MachineTreeLock) {
        self.sends_and_waits(command, || observer.snapshot().unwrap());
    }
}

/// A file with the highest fence that it has seen, and a text. No two writes are in it at the same time.
pub(crate) struct Store(File);

impl Store {
    pub(crate) fn open(path: &Path) -> Self {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        Store(file)
    }

    /// Has `change` applied to the fence and the text.
    pub(crate) fn with<R>(&mut self, change: impl FnOnce(&mut u64, &mut String) -> R) -> R {
        flock(&self.0, FlockOperation::LockExclusive).unwrap();
        let mut all = String::new();
        self.0.rewind().unwrap();
        self.0.read_to_string(&mut all).unwrap();
        let (fence, text) = all.split_once(' ').unwrap_or(("0", ""));
        // A writer that was killed may have left half of a line.
        let (mut fence, mut text) = (fence.parse().unwrap_or(0), text.trim_end().to_owned());
        let returned = change(&mut fence, &mut text);
        // A fixed length, so that one write is enough: a process may be killed between two.
        let line = format!("{fence:020} {text:79}");
        self.0.rewind().unwrap();
        self.0.write_all(line.as_bytes()).unwrap();
        flock(&self.0, FlockOperation::Unlock).unwrap();
        returned
    }

    /// Writes, unless somebody with a higher fence has been here.
    pub(crate) fn put(&mut self, fence: u64, text: &str) -> bool {
        self.with(|highest, stored| {
            let is_new = fence >= *highest;
            if is_new {
                (*highest, *stored) = (fence, text.to_owned());
            }
            is_new
        })
    }

    pub(crate) fn get(&mut self) -> (u64, String) {
        self.with(|fence, text| (*fence, text.clone()))
    }
}

type Guards = HashMap<u32, (ArcMachineGuard, Arc<AtomicBool>)>;

/// The agent itself.
pub(crate) fn run() {
    let Some(url) = std::env::var_os(URL) else { return };
    let time_to_live = std::env::var(TIME_TO_LIVE).unwrap().parse().unwrap();
    let options = Options::new().time_to_live(Duration::from_millis(time_to_live));
    let url = url.to_str().unwrap();
    #[cfg(feature = "postgres")]
    if url.starts_with("postgresql") {
        return run_with(treelock::postgres::PostgresTreeLock::connect(url, "test", options));
    }
    #[cfg(feature = "dynamodb")]
    if let Some(table) = url.strip_prefix("dynamodb:") {
        return run_with(treelock::dynamodb::DynamoDbTreeLock::connect(table, "test", options));
    }
    #[cfg(feature = "memcached")]
    if url.starts_with("memcached:") {
        return run_with(treelock::memcached::MemcachedTreeLock::connect(url, "test", options));
    }
    #[cfg(feature = "object-store")]
    if url.starts_with("file:") {
        return run_with(treelock::bucket::BucketTreeLock::connect(url, options));
    }
    run_with(RedisTreeLock::connect(url, "test", options));
}

fn run_with(opened: Result<impl Deref<Target = MachineTreeLock>, EngineError>) {
    match opened {
        Ok(lock) => {
            let mut guards = Guards::new();
            serve(|line, lines| obey(line, &lock, &mut guards, lines));
        }
        Err(error) => say(&error.to_string()),
    }
}

fn obey(
    line: &str,
    lock: &MachineTreeLock,
    guards: &mut Guards,
    lines: &mut dyn Iterator<Item = String>,
) -> Result<String, MachineLockError> {
    let mut words = line.split(' ');
    let command = words.next().unwrap();
    let mut number = || words.next().unwrap().parse::<u32>().unwrap();
    let is_ok = |is: bool| if is { "ok" } else { "refused" }.to_owned();
    match command {
        "lock" | "try" | "for" => {
            let limit = (command == "for").then(|| Duration::from_millis(number().into()));
            let name = number();
            let (reads, writes) = paths(words);
            let guard = match (command, limit) {
                ("try", _) => lock.try_lock_arc(&reads, &writes)?,
                (_, Some(limit)) => lock.try_lock_arc_for(&reads, &writes, limit)?,
                _ => lock.lock_arc(&reads, &writes)?,
            };
            let lost = Arc::new(AtomicBool::new(false));
            let tells = Arc::clone(&lost);
            guard.on_lost(move || tells.store(true, Ordering::SeqCst));
            assert!(guards.insert(name, (guard, lost)).is_none(), "{name} is taken");
        }
        "release" => guards.remove(&number()).unwrap().0.release()?,
        "fence" => return Ok(guards[&number()].0.fence().to_string()),
        "valid" => return Ok(guards[&number()].0.is_valid().to_string()),
        "lost" => return Ok(guards[&number()].1.load(Ordering::SeqCst).to_string()),
        "put" | "late" | "blind" => {
            let guard = &guards[&number()].0;
            let (mut store, text) = (Store::open(Path::new(words.next().unwrap())), words.next().unwrap());
            if command == "late" {
                assert!(guard.is_valid());
                say("looked");
                let _ = lines.next();
            }
            match command {
                "blind" => store.with(|_, stored| *stored = text.to_owned()),
                _ => return Ok(is_ok(store.put(guard.fence(), text))),
            }
        }
        "work" => storm::work(lock, Path::new(words.next().unwrap()), words.next().unwrap().parse().unwrap()),
        "cpu" => {
            let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
            return Ok((used.tv_sec * 1_000_000 + used.tv_nsec / 1000).to_string());
        }
        other => panic!("no such command: {other}"),
    }
    Ok("ok".into())
}
