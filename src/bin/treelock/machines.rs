//! The command between machines: the lock of a namespace of an engine, instead of a directory.
//!
//! A PATH is a name in the namespace here, whatever the working directory is: machines have no directories in common.

use crate::child::{self, Running};
use crate::directory::Place;
use crate::exit::{CANNOT_CREATE, Failure, OS_ERROR, USAGE};
use crate::run::Arguments;
use crate::waiting::{Awaited, Closed, eprint_line, tell_of};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use signal_hook::low_level::emulate_default_handler;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use treelock::Snapshot;
use treelock::machine::{self, EngineError, MachineLockError, MachineTreeLock, Options};

/// The exit code if the command ended well, and the lease was lost before: that of sysexits.h for what may work when it is tried
/// again.
const LOST: u8 = 75;

/// Where the fence of the lock stands for the command.
const FENCE: &str = "TREELOCK_FENCE";

/// A server that lives answers within this.
const ANSWER: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
pub(crate) struct Server {
    /// Lock between machines, in the engine at URL, instead of a directory
    ///
    /// Such as redis://user:password@host:6379/0, postgresql://user:password@host/database, memcached://host:11211,
    /// dynamodb://table, s3://bucket/prefix or file:///directory, as far as treelock is built with the feature of each; the
    /// documentation of treelock::machine::connect tells all. By default it is $TREELOCK_ENGINE, unless --dir is given; others can
    /// read a password there less easily than in an argument.
    #[arg(long, value_name = "URL", conflicts_with = "dir")]
    engine: Option<String>,
    /// The namespace in that engine, by default $TREELOCK_NAMESPACE: all that are to exclude each other use the same one
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
}

#[derive(clap::Args)]
pub(crate) struct Lease {
    /// How long the lock is kept for a machine that is gone, by default as the namespace has it: 10 if it is new
    ///
    /// Give it in all commands of a namespace, or in none: another one than that of those who have it open is refused.
    #[arg(long, value_name = "SECONDS", value_parser = parse_time_to_live)]
    time_to_live: Option<Duration>,
}

/// How long the request waits.
#[derive(Clone, Copy)]
pub(crate) enum Patience {
    None,
    Until(Option<Instant>),
}

/// A server that is given.
pub(crate) struct Given {
    url: String,
    namespace: String,
}

fn parse_time_to_live(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| (0.01..=86_400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "it is no number of seconds from 0.01 to 86400".into())
}

impl Server {
    /// The server, if one is to be used instead of a directory.
    pub(crate) fn given(&self, place: &Place) -> Result<Option<Given>, Failure> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let by_default = || variable("TREELOCK_ENGINE").filter(|_| !place.is_given());
        let Some(url) = self.engine.clone().or_else(by_default) else {
            return if self.namespace.is_some() { Err(no_server("--namespace")) } else { Ok(None) };
        };
        let Some(namespace) = self.namespace.clone().or_else(|| variable("TREELOCK_NAMESPACE")) else {
            return Err(Failure::new(USAGE, "no namespace in the engine: give --namespace, or TREELOCK_NAMESPACE"));
        };
        Ok(Some(Given { url, namespace }))
    }
}

impl Lease {
    /// Refuses what no directory knows.
    pub(crate) fn check_is_absent(&self) -> Result<(), Failure> {
        self.time_to_live.map_or(Ok(()), |_| Err(no_server("--time-to-live")))
    }
}

fn no_server(option: &str) -> Failure {
    Failure::new(USAGE, format_args!("no engine for {option}: give --engine, or TREELOCK_ENGINE"))
}

impl Given {
    fn open(&self, lease: &Lease, patience: Patience) -> Result<MachineTreeLock, Failure> {
        let mut options = Options::new();
        if let Some(time_to_live) = lease.time_to_live {
            options = options.time_to_live(time_to_live);
        }
        // Nobody waits longer for a server that is away than for the lock.
        let longest = match patience {
            Patience::None => Some(Duration::ZERO),
            Patience::Until(deadline) => deadline.map(|until| until.saturating_duration_since(Instant::now())),
        };
        if let Some(longest) = longest {
            options = options.patience(longest.max(ANSWER));
        }
        if let Ok(directory) = std::env::current_dir() {
            options = options.location(directory.to_string_lossy());
        }
        machine::connect(&self.url, &self.namespace, options).map_err(|error| Failure::new(CANNOT_CREATE, error))
    }

    /// What is held and awaited in the namespace, if anybody has begun it.
    pub(crate) fn look(&self) -> Result<Option<Snapshot>, Failure> {
        machine::look(&self.url, &self.namespace).map_err(|error| Failure::new(CANNOT_CREATE, error))
    }

    /// The namespace and its server, as they may be told: without the user and the password.
    pub(crate) fn place(&self) -> String {
        let (scheme, rest) = self.url.split_once("://").unwrap_or(("", &self.url));
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let (server, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let server = server.rsplit('@').next().unwrap_or_default();
        format!("the namespace {:?} in {scheme}://{server}{path}", self.namespace)
    }

    /// Runs the command under the lock; returns the exit code.
    pub(crate) fn run(&self, arguments: &Arguments, patience: Patience) -> Result<u8, Failure> {
        let (reads, writes) = (names(&arguments.reads)?, names(&arguments.writes)?);
        let lock = Arc::new(self.open(&arguments.lease, patience)?);
        // Not an owner of it: the lock must end before this process does.
        let watched = Arc::downgrade(&lock);
        let is_told = matches!(patience, Patience::Until(_)) && !arguments.quiet;
        let awaited = move || watched.upgrade().map(|lock| awaited(&lock));
        let telling = is_told.then(|| tell_of(awaited));
        let interrupted = Interrupted::catch(&lock)?;
        let asked = match patience {
            Patience::None => lock.try_lock_arc(&reads, &writes),
            Patience::Until(Some(deadline)) => lock.try_lock_arc_until(&reads, &writes, deadline),
            Patience::Until(None) => lock.lock_arc(&reads, &writes),
        };
        drop(telling);
        interrupted.end();
        let guard = match asked {
            Ok(guard) => guard,
            Err(MachineLockError::WouldBlock | MachineLockError::TimedOut) => {
                if let Some(closed) = closed(&lock) {
                    eprint_line(closed);
                }
                lock.close();
                return Ok(arguments.conflict_exit_code);
            }
            Err(MachineLockError::Path(error)) => return Err(Failure::new(USAGE, error)),
            Err(error) => return Err(Failure::new(OS_ERROR, error)),
        };
        let running = Running::default();
        let lost = running.clone();
        guard.on_lost(move || {
            eprint_line("the lease is lost, so others may be let in: the command is sent TERM");
            lost.terminate();
        });
        let ended = child::run(&arguments.command, &[(FENCE, guard.fence().to_string())], &running);
        let released = guard.release();
        lock.close();
        match released {
            Ok(()) => ended,
            Err(EngineError::Lost) => {
                eprint_line("the lease was lost before the command ended: others may have been let in");
                ended.map(|code| if code == 0 { LOST } else { code })
            }
            Err(error) => {
                eprint_line(format_args!("the lock is held until its time to live has passed: {error}"));
                ended
            }
        }
    }
}

/// What a request of this lock waits for.
fn awaited(lock: &MachineTreeLock) -> Awaited {
    closed(lock).map_or_else(|| Awaited::Others(lock.waits()), Awaited::Opening)
}

fn closed(lock: &MachineTreeLock) -> Option<Closed> {
    lock.closed_until().map(|until| Closed(until.saturating_duration_since(Instant::now())))
}

/// Ends the lock if a signal ends this process while it waits, so that nobody waits for the dead.
struct Interrupted {
    handle: Handle,
    has_come: Arc<AtomicBool>,
}

impl Interrupted {
    fn catch(lock: &Arc<MachineTreeLock>) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::new(OS_ERROR, format_args!("cannot catch signals: {error}"));
        let caught = [SIGHUP, SIGINT, SIGQUIT, SIGTERM].into_iter().filter(|&signal| !child::is_ignored(signal));
        let mut signals = Signals::new(caught).map_err(failed)?;
        let (handle, lock) = (signals.handle(), Arc::downgrade(lock));
        let has_come = Arc::new(AtomicBool::new(false));
        let comes = Arc::clone(&has_come);
        let wait = move || {
            if let Some(signal) = signals.forever().next() {
                comes.store(true, Ordering::SeqCst);
                if let Some(lock) = lock.upgrade() {
                    lock.close();
                }
                let _ = emulate_default_handler(signal);
            }
        };
        thread::Builder::new().name("interrupted".into()).spawn(wait).map_err(failed)?;
        Ok(Interrupted { handle, has_come })
    }

    /// From now on signals are for the command. One that has come ends this process.
    fn end(self) {
        self.handle.close();
        while self.has_come.load(Ordering::SeqCst) {
            thread::park();
        }
    }
}

/// Paths as names of a namespace.
fn names(paths: &[PathBuf]) -> Result<Vec<String>, Failure> {
    let name = |path: &PathBuf| {
        let refuse =
            |why: &str| Failure::new(USAGE, format_args!("unusable path {path:?}: a name in a namespace {why}"));
        let name = path.to_str().ok_or_else(|| refuse("is UTF-8"))?;
        let is_relative = name.split('/').any(|segment| matches!(segment, "." | ".."));
        if is_relative { Err(refuse("has no . and no .., such as site/2026")) } else { Ok(name.to_owned()) }
    };
    paths.iter().map(name).collect()
}
