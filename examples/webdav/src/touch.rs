//! Which sub-trees a request reads and writes.
//!
//! | request | reads | writes |
//! |---|---|---|
//! | `GET`, `HEAD` | the file; of a folder, itself | |
//! | `PROPFIND` | what it lists | |
//! | `PUT`, `MKCOL`, `DELETE` | | the path, and its folder itself |
//! | `PROPPATCH`, `LOCK`, `UNLOCK` | | the path itself |
//! | `COPY` | the source | the destination, and its folder itself |
//! | `MOVE` | | source and destination, and their folders themselves |
//! | others | | |
//!
//! *A folder itself* is the list of its entries without what is in them: a child of it with a name that no file has.

use axum::http::{HeaderMap, Method, Uri};
use dav_server::davpath::DavPath;
use std::path::{Path, PathBuf};

/// Where the files are.
pub const FILES: &str = "/files";

/// The name of the child that stands for a folder itself: no file name contains a zero byte.
pub const ITSELF: &str = "\0itself";

/// What a request touches.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touch {
    pub reads: Vec<PathBuf>,
    pub writes: Vec<PathBuf>,
}

/// The address of a request names no file.
#[derive(Debug, PartialEq, Eq)]
pub struct NoFile(pub String);

impl Touch {
    /// What a request touches.
    ///
    /// # Errors
    ///
    /// If its path, or that of its `Destination`, names no file of this server.
    pub fn of(method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Touch, NoFile> {
        let path = || file_of(uri.path());
        let (reads, writes) = match method.as_str() {
            "GET" | "HEAD" if uri.path().ends_with('/') => (vec![itself(path()?)], vec![]),
            "GET" | "HEAD" => (vec![path()?], vec![]),
            "PROPFIND" => match headers.get("depth").map(|depth| depth.as_bytes()) {
                Some(b"0" | b"1") => (vec![itself(path()?)], vec![]),
                _ => (vec![path()?], vec![]),
            },
            "PUT" | "MKCOL" | "DELETE" => (vec![], with_folder(path()?)),
            "PROPPATCH" | "LOCK" | "UNLOCK" => (vec![], vec![itself(path()?)]),
            "COPY" => (vec![path()?], with_folder(destination(headers)?)),
            "MOVE" => (vec![], [with_folder(path()?), with_folder(destination(headers)?)].concat()),
            _ => (vec![], vec![]),
        };
        Ok(Touch { reads, writes })
    }
}

/// The file that an address names, from the folder that is served on. Spellings of one file are one path.
fn file_of(address: &str) -> Result<PathBuf, NoFile> {
    let no_file = || NoFile(address.to_owned());
    let mut path = DavPath::new(address).map_err(|_| no_file())?;
    path.set_prefix(FILES).map_err(|_| no_file())?;
    Ok(path.as_rel_ospath().to_owned())
}

fn destination(headers: &HeaderMap) -> Result<PathBuf, NoFile> {
    let header = headers.get("destination").ok_or_else(|| NoFile("no Destination".into()))?;
    let address = header.to_str().map_err(|_| NoFile(format!("{header:?}")))?;
    let uri: Uri = address.parse().map_err(|_| NoFile(address.to_owned()))?;
    file_of(uri.path())
}

fn itself(path: PathBuf) -> PathBuf {
    path.join(ITSELF)
}

/// A path whose entry comes or goes, and the folder that lists it.
fn with_folder(path: PathBuf) -> Vec<PathBuf> {
    let folder = path.parent().map(Path::to_owned);
    [Some(path), folder.map(itself)].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(
        method: &str,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<(Vec<String>, Vec<String>), NoFile> {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let told = |paths: Vec<PathBuf>| {
            paths.iter().map(|path| path.to_str().unwrap().replace('\0', "")).collect::<Vec<_>>()
        };
        Touch::of(&method, &path.parse().unwrap(), &headers)
            .map(|Touch { reads, writes }| (told(reads), told(writes)))
    }

    fn paths(reads: &[&str], writes: &[&str]) -> Result<(Vec<String>, Vec<String>), NoFile> {
        let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
        Ok((owned(reads), owned(writes)))
    }

    #[test]
    fn each_method_touches_what_it_reads_and_writes() {
        let to = |to| [("destination", to)];
        assert_eq!(touch("GET", "/files/a/b", &[]), paths(&["a/b"], &[]));
        assert_eq!(touch("GET", "/files/a/", &[]), paths(&["a/itself"], &[]));
        assert_eq!(touch("PROPFIND", "/files/a", &[("depth", "1")]), paths(&["a/itself"], &[]));
        assert_eq!(touch("PROPFIND", "/files/a", &[]), paths(&["a"], &[]));
        assert_eq!(touch("PUT", "/files/a/b", &[]), paths(&[], &["a/b", "a/itself"]));
        assert_eq!(touch("DELETE", "/files/a", &[]), paths(&[], &["a", "itself"]));
        assert_eq!(touch("DELETE", "/files/", &[]), paths(&[], &[""]));
        assert_eq!(touch("COPY", "/files/a", &to("/files/b/c")), paths(&["a"], &["b/c", "b/itself"]));
        let moved = paths(&[], &["a", "itself", "b/c", "b/itself"]);
        assert_eq!(touch("MOVE", "/files/a", &to("http://here:80/files/b/c/")), moved);
        assert_eq!(touch("OPTIONS", "/files/a", &[]), paths(&[], &[]));
    }

    #[test]
    fn spellings_of_one_file_are_one_path() {
        for spelling in ["/files/a%20b/c", "/files//a%20b/./c", "/files/x/../a%20b/c", "/files/a%20b/c/"] {
            assert_eq!(touch("DELETE", spelling, &[]).unwrap().1[0], "a b/c", "{spelling}");
        }
    }

    #[test]
    fn what_names_no_file_is_refused() {
        assert_eq!(touch("PUT", "/elsewhere/a", &[]), Err(NoFile("/elsewhere/a".into())));
        assert!(touch("PUT", "/files/../../a", &[]).is_err());
        assert!(touch("PUT", "/files/a%00itself", &[]).is_err());
        assert!(touch("MOVE", "/files/a", &[]).is_err());
        assert!(touch("MOVE", "/files/a", &[("destination", "/elsewhere/a")]).is_err());
    }
}
