//! `treelock status`: who holds what and who waits for what.

use crate::directory::Place;
use crate::exit::{CANNOT_CREATE, Failure, IO_ERROR, OS_ERROR};
use crate::waiting::{self, Keeper};
use serde::Serialize;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use treelock::{Holder, Snapshot, Waiter, process};

#[derive(clap::Args)]
#[command(after_long_help = AFTER_HELP, args_override_self = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Place,
    #[cfg(feature = "machine")]
    #[command(flatten)]
    server: crate::machines::Server,
    /// Print one line of JSON instead of a drawing
    #[arg(long)]
    json: bool,
    /// Print it again and again, each second or at the interval given
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = parse_interval)]
    watch: Option<Duration>,
}

/// In lines that fit a manual page.
const AFTER_HELP: &str = "\
The drawing:
  It has a line at each sub-tree that is held or awaited: S reads it,
  X writes it, SIX reads it and writes a part of it. IS and IX, on
  the way to such a sub-tree, are shown where a request waits for
  them. A holder may have ended. In a directory of this host, what it
  has started keeps the lock then, and fuser(1) tells which processes
  have the FIFOs in DIR open. Between machines it is shown until its
  time to live has passed and another client has come.

JSON:
  time     when this was seen; times are seconds since 1970, with a
           fraction
  keeper   the id of a process that is stopped in the midst of a
           request, so that all others wait for it; or null
  holders  the longest first, each with
    process   {member, id, command, user}; between machines user is
              such as ada@build-7
    thread    its name
    location  the working directory of a treelock run; of other
              programs, where in the source it asked
    since     when it was granted
    roots     [{path, mode}]: path is a list of segments, mode one of
              S, X, SIX
  waiters  the longest first, each with the same and with
    since     when it began to wait where it waits
    at        {path, mode}: where that is; mode may also be IS or IX
    taken     [{path, mode}]: the roots that it has already
  With --watch, each line is such an object.

Exit status:
  0   done, whether or not something is locked
  64  the arguments are wrong
  73  the directory or the server of the lock cannot be used
  74  the output cannot be written

Examples:
  treelock status --watch
  treelock status --json | jq '.waiters[].process.id'
";

fn parse_interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|&seconds: &f64| seconds >= 0.01).map(Duration::try_from_secs_f64);
    seconds.and_then(Result::ok).ok_or_else(|| "it is no number of seconds from 0.01 on".into())
}

/// Prints the status, once or until the command is ended.
pub(crate) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let clear = arguments.watch.is_some() && !arguments.json && io::stdout().is_terminal();
    let mut first = true;
    loop {
        let Seen { snapshot, keeper, place, absent } = look(arguments)?;
        let mut text = match &snapshot {
            _ if arguments.json => json(snapshot.as_ref(), keeper)?,
            None => format!("treelock: nothing is locked, since {absent} {place}"),
            Some(snapshot) if snapshot.holders.is_empty() && snapshot.waiters.is_empty() => {
                format!("treelock: nothing is locked in {place}")
            }
            Some(snapshot) => snapshot.to_string(),
        };
        if let Some(keeper) = keeper.filter(|_| !arguments.json) {
            text.push_str(&format!("\ntreelock: {keeper}"));
        }
        let before = match () {
            () if clear => "\x1b[H\x1b[2J",
            () if !first && !arguments.json => "\n",
            () => "",
        };
        match print(&format!("{before}{text}\n")) {
            // A reader that has closed the pipe has read enough: that is no error.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(0),
            Err(error) => return Err(Failure::new(IO_ERROR, format_args!("cannot write: {error}"))),
            Ok(()) => {}
        }
        let Some(interval) = arguments.watch else { return Ok(0) };
        first = false;
        thread::sleep(interval);
    }
}

/// What is seen of a lock, and where that is.
struct Seen {
    snapshot: Option<Snapshot>,
    keeper: Option<Keeper>,
    place: String,
    /// What is said of a place that is not there.
    absent: &'static str,
}

fn look(arguments: &Arguments) -> Result<Seen, Failure> {
    #[cfg(feature = "machine")]
    if let Some(server) = arguments.server.given(&arguments.place)? {
        // Without a session: it begins no namespace, and takes part in none.
        let (snapshot, place) = (server.look()?, server.place());
        return Ok(Seen { snapshot, keeper: None, place, absent: "nobody has begun" });
    }
    let (directory, exists) = arguments.place.looked_at()?;
    // Anew each time: the directory may be made or replaced meanwhile.
    let snapshot = exists.then(|| process::snapshot(&directory)).transpose();
    let snapshot = snapshot.map_err(|error| Failure::new(CANNOT_CREATE, error))?;
    let (keeper, place) = (waiting::keeper(&directory), format!("{directory:?}"));
    Ok(Seen { snapshot, keeper, place, absent: "there is no" })
}

fn print(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush()
}

/// What `--json` prints; documented in the help.
#[derive(Serialize)]
struct Status<'a> {
    time: f64,
    keeper: Option<u32>,
    holders: &'a [Holder],
    waiters: &'a [Waiter],
}

fn json(snapshot: Option<&Snapshot>, keeper: Option<Keeper>) -> Result<String, Failure> {
    let status = Status {
        time: seconds(snapshot.map_or_else(SystemTime::now, |snapshot| snapshot.time)),
        keeper: keeper.map(|Keeper(process)| process),
        holders: snapshot.map_or(&[], |snapshot| &snapshot.holders),
        waiters: snapshot.map_or(&[], |snapshot| &snapshot.waiters),
    };
    serde_json::to_string(&status).map_err(|error| Failure::new(OS_ERROR, error))
}

/// Since 1970, to a millisecond.
fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_millis() as f64 / 1e3)
}
