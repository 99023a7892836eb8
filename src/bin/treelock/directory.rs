//! Where the lock is: the directory that is given, or one that belongs to the user.
//!
//! A user who may write to the directory may lock, and could replace the lock by another one. So the default
//! directory must be a real one that belongs to the user and is closed to others. A directory that is given is used
//! as it is.

use crate::exit::{CANNOT_CREATE, Failure, USAGE};
use rustix::process::geteuid;
use std::env::var_os;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(crate) struct Place {
    /// The directory of the lock, on a file system of this host
    ///
    /// All commands that are to exclude each other must use the same one; it is created if it does not exist. A user
    /// who may write to it may lock; a user who may read it may see the commands of all. By default it is
    /// $TREELOCK_DIR, an absolute path; else $XDG_RUNTIME_DIR/treelock, if that runtime directory belongs to the
    /// user; else /tmp/treelock-UID. The latter two must belong to the user alone (mode 0700, no symbolic link). A
    /// cron job or a service may have no $XDG_RUNTIME_DIR, and so another default than a login: name the directory
    /// there.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Place {
    /// Whether the directory is an argument.
    #[cfg(feature = "machine")]
    pub(crate) fn is_given(&self) -> bool {
        self.dir.is_some()
    }

    /// The directory, which exists afterwards or can be created by the lock.
    pub(crate) fn made(&self) -> Result<PathBuf, Failure> {
        if let Some(given) = self.given()? {
            return Ok(given);
        }
        let path = default_directory();
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                Err(Failure::new(CANNOT_CREATE, format_args!("cannot make {path:?}: {error}")))
            }
            _ => {
                check_private(&path)?;
                Ok(path)
            }
        }
    }

    /// The directory, and whether it exists; creates nothing.
    pub(crate) fn looked_at(&self) -> Result<(PathBuf, bool), Failure> {
        let given = self.given()?;
        let path = given.clone().unwrap_or_else(default_directory);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok((path, false)),
            Err(error) => return Err(Failure::new(CANNOT_CREATE, format_args!("cannot look at {path:?}: {error}"))),
            Ok(_) => {}
        }
        if given.is_none() {
            check_private(&path)?;
        }
        Ok((path, true))
    }

    fn given(&self) -> Result<Option<PathBuf>, Failure> {
        let variable = || var_os("TREELOCK_DIR").filter(|value| !value.is_empty()).map(PathBuf::from);
        match self.dir.clone().or_else(variable) {
            // Programs in other working directories would silently use another lock.
            Some(path) if path.is_relative() && self.dir.is_none() => {
                let message = format!("TREELOCK_DIR is {path:?}: make it absolute, or give --dir");
                Err(Failure::new(USAGE, message))
            }
            given => Ok(given),
        }
    }
}

fn default_directory() -> PathBuf {
    let user = geteuid().as_raw();
    let of_the_user = |path: &PathBuf| {
        path.is_absolute() && fs::metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == user)
    };
    match var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(of_the_user) {
        Some(runtime) => runtime.join("treelock"),
        None => PathBuf::from(format!("/tmp/treelock-{user}")),
    }
}

/// Refuses a directory that other users have access to. In a sticky directory such as `/tmp` no other user can
/// replace it after this.
fn check_private(path: &Path) -> Result<(), Failure> {
    let refuse = |why: &str| Err(Failure::new(CANNOT_CREATE, format_args!("{path:?} {why}: choose one with --dir")));
    match fs::symlink_metadata(path) {
        Err(error) => Err(Failure::new(CANNOT_CREATE, format_args!("cannot look at {path:?}: {error}"))),
        Ok(found) if !found.is_dir() => refuse("is no directory"),
        Ok(found) if found.uid() != geteuid().as_raw() => refuse("belongs to another user"),
        Ok(found) if found.mode() & 0o077 != 0 => refuse("is open to other users"),
        Ok(_) => Ok(()),
    }
}
