//! The exit codes of `treelock`, besides those of the command that it runs.

use std::fmt::Display;

/// The numbers of sysexits.h that are used, as flock(1) uses them.
pub(crate) const USAGE: u8 = 64;
pub(crate) const OS_ERROR: u8 = 71;
pub(crate) const CANNOT_CREATE: u8 = 73;
pub(crate) const IO_ERROR: u8 = 74;
/// Those of the shells.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
pub(crate) const NOT_FOUND: u8 = 127;

/// Why `treelock` ends early, in one line.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl Display) -> Self {
        Failure { code, message: message.to_string() }
    }
}
