//! The command `treelock` locks sub-trees from the shell, as flock(1) locks files. `treelock --help` tells the rest.
//!
//! It uses only the public API: [`treelock::process`], and `treelock::machine`.
//!
//! | file | concept |
//! |---|---|
//! | `main.rs` | the subcommands |
//! | `run.rs` | `treelock run`: takes the lock, runs the command, releases |
//! | `waiting.rs` | tells on standard error what it waits for |
//! | `child.rs` | the command: its signals, its end |
//! | `status.rs` | `treelock status`: as a drawing, as JSON, again and again |
//! | `directory.rs` | where the lock is |
//! | `machines.rs` | the same between machines, where an engine is built in |
//! | `exit.rs` | its exit codes |

mod child;
mod directory;
mod exit;
#[cfg(feature = "machine")]
mod machines;
mod run;
mod status;
mod waiting;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use exit::{CANNOT_CREATE, Failure, USAGE};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use waiting::eprint_line;

/// Locks sub-trees for commands, between the processes of a host or between machines
///
/// A command that writes a sub-tree excludes all commands that read or write a sub-tree that overlaps it; a command
/// that reads a sub-tree excludes those that write an overlapping one. Commands whose sub-trees do not overlap never
/// wait for each other.
///
/// The lock is a directory of this host, or, where treelock is built with the feature of an engine, a namespace between machines: in
/// Redis, PostgreSQL, Memcached, DynamoDB or a bucket.
#[derive(Parser)]
#[command(version, after_help = AFTER_HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a command under a lock
    Run(run::Arguments),
    /// Show who holds what and who waits for what
    Status(status::Arguments),
    /// Print the completions for a shell
    #[command(hide = true)]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages to a directory, which is made if it does not exist
    #[command(hide = true)]
    Man {
        /// The directory
        directory: PathBuf,
    },
}

const AFTER_HELP: &str = "\
Examples:
  treelock run -w data/users -r data/schema -- ./migrate.sh
  treelock status

More: treelock run --help, treelock status --help
For shells: treelock completions bash|zsh|fish, treelock man DIRECTORY
";

fn main() -> ExitCode {
    let done = match Arguments::try_parse() {
        Ok(arguments) => carry_out(&arguments.command),
        Err(error) => usage(&error),
    };
    let code = done.unwrap_or_else(|failure| {
        eprint_line(failure.message);
        failure.code
    });
    ExitCode::from(code)
}

fn carry_out(command: &Command) -> Result<u8, Failure> {
    match command {
        Command::Run(arguments) => run::run(arguments),
        Command::Status(arguments) => status::run(arguments),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Arguments::command(), "treelock", &mut script);
            // A reader that has closed the pipe has read enough: that is no error.
            let _ = std::io::stdout().write_all(&script);
            Ok(0)
        }
        Command::Man { directory } => write_manual(directory),
    }
}

fn write_manual(directory: &Path) -> Result<u8, Failure> {
    let made = std::fs::create_dir_all(directory);
    let written = made.and_then(|()| clap_mangen::generate_to(Arguments::command(), directory));
    written.map_err(|error| Failure::new(CANNOT_CREATE, format_args!("cannot write to {directory:?}: {error}")))?;
    Ok(0)
}

/// Prints the help or the version, or returns in one line what is wrong with the arguments.
fn usage(error: &clap::Error) -> Result<u8, Failure> {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // A reader that has closed the pipe has read enough: that is no error.
        let _ = error.print();
        return Ok(0);
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Err(Failure::new(USAGE, "nothing to do: try 'treelock --help'"));
    }
    let text = error.to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.is_empty());
    let message = lines.collect::<Vec<_>>().join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    Err(Failure::new(USAGE, format_args!("{message}; try --help")))
}
