//! The locked command: started, sent the signals that come for it, and waited for.
//!
//! Invariants:
//!
//! 1. No signal goes to another process: the child is reaped, which frees its number, only after the last signal was sent,
//!    and after [`Running`] has forgotten it.
//! 2. The child starts with the signals as they were when this program started. A signal that was ignored then stays
//!    ignored, for both (`nohup`, a job in the background of a script). A signal that is caught here is reset when
//!    the child's program starts.

use crate::exit::{Failure, NOT_EXECUTABLE, NOT_FOUND, OS_ERROR};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getpgrp, kill_process, waitid};
use rustix::termios::tcgetpgrp;
use signal_hook::consts::{SIGALRM, SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::Signals;
use std::env::{split_paths, var_os};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fs, thread};

const FORWARDED: [i32; 9] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGCONT, SIGWINCH];

/// A command that may be running: another thread can send it a signal.
#[derive(Clone, Default)]
pub(crate) struct Running(Arc<Mutex<Started>>);

#[derive(Default)]
struct Started {
    pid: Option<Pid>,
    /// It is to be terminated, as soon as it has started.
    is_terminated: bool,
}

impl Running {
    /// Sends the signal TERM, if the command has started and has not ended.
    #[cfg(feature = "machine")]
    pub(crate) fn terminate(&self) {
        let mut child = self.child();
        child.is_terminated = true;
        if let Some(pid) = child.pid {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    fn started(&self, pid: Pid) {
        let mut child = self.child();
        child.pid = Some(pid);
        if child.is_terminated {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    fn child(&self) -> MutexGuard<'_, Started> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the command to its end, with these variables in its environment; returns its exit code.
pub(crate) fn run(words: &[OsString], variables: &[(&str, String)], running: &Running) -> Result<u8, Failure> {
    let failed =
        |doing: &'static str| move |error: io::Error| Failure::new(OS_ERROR, format_args!("cannot {doing}: {error}"));
    let ignored = ignored_signals();
    let caught = FORWARDED.into_iter().filter(|signal| ignored & (1 << (signal - 1)) == 0);
    // If SIGCHLD were ignored, the child's exit status would be lost.
    let mut signals = Signals::new(caught.chain([SIGCHLD])).map_err(failed("catch signals"))?;
    let handle = signals.handle();
    let mut child = spawn(words, variables)?;
    let pid = Pid::from_child(&child);
    running.started(pid);
    let forward = move || signals.forever().for_each(|signal| forward(signal, pid));
    let forwarder = thread::Builder::new().name("signals".into()).spawn(forward);
    let ended = retry_on_intr(|| waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT));
    handle.close();
    if let Ok(forwarder) = forwarder {
        let _ = forwarder.join();
    }
    running.child().pid = None;
    let status = ended.map_err(io::Error::from).and_then(|_| child.wait()).map_err(failed("wait for the command"))?;
    Ok(code(status))
}

/// The exit code that shells give.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    u8::try_from(code).unwrap_or(u8::MAX)
}

fn spawn(words: &[OsString], variables: &[(&str, String)]) -> Result<Child, Failure> {
    let [program, arguments @ ..] = words else { unreachable!("the arguments ask for a command") };
    let with = |program: &OsStr| {
        let mut command = Command::new(program);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        command
    };
    let spawned = with(program).args(arguments).spawn().or_else(|error| match script(program) {
        // execvp(3) and all shells run a script without "#!" by the shell.
        Some(script) if error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error()) => {
            with("/bin/sh".as_ref()).arg(script).args(arguments).spawn()
        }
        _ => Err(error),
    });
    spawned.map_err(|error| {
        let code = match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT) => NOT_FOUND,
            Some(Errno::AGAIN | Errno::NOMEM) => OS_ERROR,
            _ => NOT_EXECUTABLE,
        };
        Failure::new(code, format_args!("cannot run {program:?}: {error}"))
    })
}

/// The file that a program's name means.
fn script(program: &OsStr) -> Option<PathBuf> {
    if program.as_encoded_bytes().contains(&b'/') {
        // So that the shell does not take it for an option.
        return Some(Path::new(".").join(program));
    }
    split_paths(&var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Sends a signal to the child, unless the terminal has sent it to all processes in its foreground.
fn forward(signal: i32, child: Pid) {
    let from_the_terminal = [SIGINT, SIGQUIT, SIGWINCH].contains(&signal) && in_foreground();
    if let (false, true, Some(signal)) = (from_the_terminal, signal != SIGCHLD, Signal::from_named_raw(signal)) {
        // It fails if the child has ended.
        let _ = kill_process(child, signal);
    }
}

fn in_foreground() -> bool {
    let terminal = open("/dev/tty", OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty());
    terminal.and_then(tcgetpgrp).is_ok_and(|group| group == getpgrp())
}

/// Whether this program was started to ignore a signal.
#[cfg(feature = "machine")]
pub(crate) fn is_ignored(signal: i32) -> bool {
    ignored_signals() & (1 << (signal - 1)) != 0
}

/// The signals that this program was started to ignore, one bit for each. (`man 5 proc`)
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
