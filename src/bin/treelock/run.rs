//! `treelock run`: a command under a lock.

use crate::child::{self, Running};
use crate::directory::Place;
use crate::exit::{CANNOT_CREATE, Failure, OS_ERROR, USAGE};
use crate::waiting::{self, eprint_line};
use std::env::current_dir;
use std::ffi::OsString;
use std::path::{self, Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};
use treelock::process::{ArcProcessTreeLockGuard, FileProblem, Options, ProcessLockError, ProcessTreeLock};

/// How long opening waits, with -n, for another process that has the table.
const AT_ONCE: Duration = Duration::from_millis(100);

/// A release that takes longer waits for a process that is stopped.
const STOPPED: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
#[command(after_long_help = AFTER_HELP, args_override_self = true)]
pub(crate) struct Arguments {
    /// Lock the sub-tree below PATH shared: nobody writes in it; may be repeated
    #[arg(short, long = "read", value_name = "PATH")]
    pub(crate) reads: Vec<PathBuf>,
    /// Lock the sub-tree below PATH exclusively: nobody else reads or writes in it; may be repeated
    #[arg(short, long = "write", value_name = "PATH")]
    pub(crate) writes: Vec<PathBuf>,
    #[command(flatten)]
    place: Place,
    #[cfg(feature = "machine")]
    #[command(flatten)]
    server: crate::machines::Server,
    #[cfg(feature = "machine")]
    #[command(flatten)]
    pub(crate) lease: crate::machines::Lease,
    /// Give up if the lock cannot be taken within this many seconds; 0.5 is half a second, 0 means -n
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout)]
    timeout: Option<Duration>,
    /// Give up if the lock cannot be taken at once, whatever --timeout says
    #[arg(short, long)]
    non_blocking: bool,
    /// Do not tell what it waits for
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// The exit code after giving up
    #[arg(short = 'E', long, value_name = "N", default_value_t = 1)]
    pub(crate) conflict_exit_code: u8,
    /// The command, and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// In lines that fit a manual page.
const AFTER_HELP: &str = "\
Paths:
  A PATH is a name: it need not exist. It is relative to the working
  directory, as for every other command. \"..\" is resolved by the text
  alone, and symbolic links are not followed: PATH and a link to it
  are two names. Between machines it is a name in the namespace, such
  as site/2026, whatever the working directory is, and has no \".\" and
  no \"..\".

The lock:
  All of it is taken, or nothing. It is released when COMMAND has
  ended, whatever COMMAND has left in the background. A `treelock
  run` inside COMMAND is another owner: it waits for ever if it asks
  for the same, and so do two of them that cross. It needs --dir or
  --engine again, or their variables. After a second of waiting,
  standard error tells what it waits for, unless -q is given.

In a directory of this host (--dir):
  If treelock is killed, the lock is released when COMMAND and all
  that it has started have ended, or have closed the descriptors
  above 9 that they inherit for it (programs that Python starts do
  not inherit them). A treelock that is stopped, as by Ctrl-Z, keeps
  what it holds, and its place in the queue.

Between machines (--engine, where treelock is built with it):
  The lock is a lease, which treelock renews until COMMAND has ended.
  It is lost if the server loses its data, and when its time to live
  has passed after treelock was killed, or stopped, as by Ctrl-Z, or
  cut off from the server. Then others are let in, whatever COMMAND
  does. A treelock that is not killed sends COMMAND the signal TERM as
  soon as it can tell. What COMMAND writes to can refuse what comes
  too late by the number in $TREELOCK_FENCE, which is higher than that
  of everyone who had the lock before. A namespace that is new, or
  whose data was lost, is closed for one time to live. If the server
  does not answer for 10 s, or for --timeout, or with -n for 2 s, then
  the exit status is 73.

Signals:
  HUP, INT, QUIT, TERM, USR1, USR2, ALRM and CONT that are sent to
  treelock are passed on to COMMAND. Signals of the terminal reach
  COMMAND by themselves. A signal that another process sends to the
  whole group, as timeout(1) does without --foreground, reaches it
  twice. Until the lock is taken, a signal ends treelock.

Exit status:
  that of COMMAND
  128+N  signal N has ended COMMAND
  1      gave up, by -n or --timeout; -E sets another code. Nothing
         is printed, unless the cause was a process that is stopped
         in the midst of a request, or a namespace that is closed
  64     the arguments are wrong
  71     the system fails, or the files or the server of the lock
  73     the directory or the server of the lock cannot be used
  75     COMMAND ended with 0, but the lease was lost before
  126    COMMAND cannot be executed
  127    COMMAND is not found

Examples:
  treelock run -w data/users -r data/schema -- ./migrate.sh
  treelock run -n -w . -- make    # only if nobody else works here
  treelock run --timeout 30 -E 75 -r / -- tar cf backup.tar .
  treelock run --engine redis://db1/ --namespace my-app -w site -- \\
    sh -c 'publish --fence $TREELOCK_FENCE'
";

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().map(Duration::try_from_secs_f64);
    seconds.and_then(Result::ok).ok_or_else(|| "it is no number of seconds, such as 10 or 0.5".into())
}

/// Runs the command; returns the exit code.
pub(crate) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let non_blocking = arguments.non_blocking || arguments.timeout.is_some_and(|timeout| timeout.is_zero());
    // A timeout beyond what the clock can represent means for ever.
    let deadline = arguments.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    if arguments.reads.is_empty() && arguments.writes.is_empty() {
        return Err(Failure::new(USAGE, "nothing to lock: give a path with --read or --write"));
    }
    #[cfg(feature = "machine")]
    if let Some(server) = arguments.server.given(&arguments.place)? {
        let patience = match (non_blocking, deadline) {
            (true, _) => crate::machines::Patience::None,
            (false, deadline) => crate::machines::Patience::Until(deadline),
        };
        return server.run(arguments, patience);
    }
    #[cfg(feature = "machine")]
    arguments.lease.check_is_absent()?;
    let (reads, writes) = (absolute(&arguments.reads)?, absolute(&arguments.writes)?);
    let directory = arguments.place.made()?;
    let mut options = Options::new();
    if let Ok(directory) = current_dir() {
        options = options.location(directory.to_string_lossy());
    }
    // A stopped process may have the table.
    if let Some(limit) = if non_blocking { Some(AT_ONCE) } else { arguments.timeout } {
        options = options.timeout(limit);
    }
    let telling = (!non_blocking && !arguments.quiet).then(|| waiting::tell(&directory));
    let lock: ProcessTreeLock = match options.open(&directory) {
        Ok(lock) => lock,
        Err(error) if matches!(error.problem(), FileProblem::Flocked) && (non_blocking || deadline.is_some()) => {
            match waiting::keeper(&directory) {
                Some(keeper) => eprint_line(keeper),
                None => eprint_line(error),
            }
            return Ok(arguments.conflict_exit_code);
        }
        Err(error) => return Err(Failure::new(CANNOT_CREATE, error)),
    };
    if let Some(telling) = &telling {
        telling.opened(&lock);
    }

    let asked = if non_blocking {
        lock.try_lock_arc(&reads, &writes)
    } else {
        match deadline {
            Some(deadline) => lock.try_lock_arc_until(&reads, &writes, deadline),
            None => lock.lock_arc(&reads, &writes),
        }
    };
    drop(telling);
    let guard = match asked {
        Ok(guard) => guard,
        Err(ProcessLockError::WouldBlock | ProcessLockError::TimedOut) => return Ok(arguments.conflict_exit_code),
        Err(ProcessLockError::Path(error)) => return Err(Failure::new(USAGE, error)),
        Err(error) => return Err(Failure::new(OS_ERROR, error)),
    };
    lock.set_inheritable(true).map_err(|error| Failure::new(OS_ERROR, error))?;
    let ended = child::run(&arguments.command, &[], &Running::default());
    release(guard, &directory);
    ended
}

/// Releases the lock. Processes that the command has left in the background have inherited it, and must not keep it.
fn release(guard: ArcProcessTreeLockGuard, directory: &Path) {
    let (sender, released) = mpsc::channel();
    let release = move || {
        let _ = sender.send(guard.release());
    };
    if thread::Builder::new().spawn(release).is_err() {
        // The guard was dropped, which releases it too.
        return;
    }
    match released.recv_timeout(STOPPED) {
        Err(RecvTimeoutError::Timeout) => {
            // The end of this process releases it, unless another process has inherited it.
            if let Some(keeper) = waiting::keeper(directory) {
                eprint_line(format_args!("the lock may be held still by what COMMAND has left: {keeper}"));
            }
        }
        Ok(Err(error)) => {
            let harm = match error.problem() {
                FileProblem::Removed => "others may have been let in",
                _ => "the lock may be held still",
            };
            eprint_line(format_args!("{harm}: {error}"));
        }
        _ => {}
    }
}

fn absolute(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let absolute = |path: &PathBuf| {
        path::absolute(path).map_err(|error| Failure::new(USAGE, format_args!("unusable path {path:?}: {error}")))
    };
    paths.iter().map(absolute).collect()
}
