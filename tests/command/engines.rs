//! The command over each engine: it excludes, it tells who holds what, and it knows a namespace that nobody has begun.

use crate::{HOLD, Place, code, complaint, end, text};
use std::process::Command;

/// The words and variables by which a command finds a namespace.
struct Engine {
    place: Place,
    url: String,
    variables: Vec<(&'static str, String)>,
}

impl Engine {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.place.command(words);
        command.env("TREELOCK_ENGINE", &self.url).env("TREELOCK_NAMESPACE", "a namespace of ours");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    fn excludes_and_tells_who_holds_what(&self) {
        let treelock = |words: &[&str]| end(self.command(words).spawn().unwrap());
        let nobody = treelock(&["status"]);
        assert!(text(&nobody.stderr).is_empty() && text(&nobody.stdout).contains("nobody has begun"), "{nobody:?}");
        // A new one is closed for one time to live.
        let brief = ["--time-to-live", "1"];
        let fence = |words: &[&str]| {
            let all = [&["run"][..], words, &["-w", "site/2026", "printenv", "TREELOCK_FENCE"]].concat();
            let told = treelock(&all);
            text(&told.stdout).trim().parse::<u64>().unwrap_or_else(|_| panic!("{told:?}"))
        };
        let first = fence(&brief);
        let holder = self.place.hold_with(&mut self.command(&[&["run", "-w", "site"][..], &HOLD].concat()));
        let refused = treelock(&["run", "-n", "-r", "site/2026", "true"]);
        assert_eq!(code(&refused), 1, "{refused:?}");
        assert_eq!(code(&treelock(&["run", "-n", "-w", "other", "true"])), 0);
        let status = treelock(&["status"]);
        assert!(text(&status.stdout).contains("└─ site\n     X    held by"), "{status:?}");
        let ended = end(holder);
        assert_eq!(code(&ended), 0, "{ended:?}");
        assert!(fence(&[]) > first);
    }
}

#[test]
#[cfg(feature = "object-store")]
fn bucket() {
    let place = Place::new();
    let folder = place.home().join("store");
    std::fs::create_dir_all(&folder).unwrap();
    let url = format!("file://{}", folder.display());
    Engine { place, url, variables: vec![] }.excludes_and_tells_who_holds_what();
}

#[test]
#[cfg(feature = "dynamodb")]
fn dynamodb() {
    let Some(table) = crate::dynamodb_local::Table::fresh() else { return };
    let url = format!("dynamodb://{}", table.name);
    Engine { place: Place::new(), url, variables: table.environment() }.excludes_and_tells_who_holds_what();
}

#[test]
#[cfg(feature = "memcached")]
fn memcached() {
    let Some(server) = crate::cache::Memcached::start_with(&[]) else { return };
    let url = format!("memcached://127.0.0.1:{}", server.port);
    let engine = Engine { place: Place::new(), url, variables: vec![] };
    // A key of Memcached has no spaces.
    let refused = end(engine.command(&["status"]).spawn().unwrap());
    assert_eq!(code(&refused), 73);
    assert!(complaint(&refused).contains("without spaces"), "{refused:?}");
    Engine { variables: vec![("TREELOCK_NAMESPACE", "ours".to_owned())], ..engine }
        .excludes_and_tells_who_holds_what();
}

#[test]
#[cfg(feature = "postgres")]
fn postgres() {
    let Some(database) = crate::database::Database::start() else { return };
    Engine { place: Place::new(), url: database.url(), variables: vec![] }.excludes_and_tells_who_holds_what();
}

#[test]
fn engine_that_is_unknown_is_told() {
    let engine = Engine { place: Place::new(), url: "carrier-pigeon://roof".to_owned(), variables: vec![] };
    let refused = end(engine.command(&["run", "-w", "a", "true"]).spawn().unwrap());
    assert_eq!(code(&refused), 73);
    assert!(complaint(&refused).contains("carrier-pigeon://"), "{refused:?}");
}
