//! `setup.sql` in a server against `memory.rs`.

use super::Postgres;
use super::database::Database;
use crate::machine::differential::{Real, compare};
use crate::machine::engine::{Engine, SessionId};
use crate::machine::memory::Part;

/// A namespace of it.
struct Namespace<'a> {
    real: Postgres,
    database: &'a Database,
}

impl Namespace<'_> {
    fn ask(&self, statement: &str) {
        self.database.ask(&statement.replace("HERE", &format!("WHERE namespace = '{}'", self.real.namespace)));
    }
}

impl Real for Namespace<'_> {
    /// A batch is not written without the row of the namespace, and is without any entry.
    const PARTS: &'static [Part] = &[Part::All, Part::Live, Part::Snap, Part::Oldest];

    fn engine(&self) -> &dyn Engine {
        &self.real
    }

    fn end_session(&mut self, session: &SessionId) {
        let (member, key) = (session.member as i64, session.key as i64);
        self.ask(&format!("UPDATE treelock.sessions SET ends = 1 HERE AND member = {member} AND key = {key}"));
    }

    fn open(&mut self) {
        self.ask("UPDATE treelock.namespaces SET opens = 1 HERE");
    }

    fn lose(&mut self, part: Part) {
        let tables: &[&str] = match part {
            Part::All => &["namespaces", "entries", "sessions", "snapshots"],
            Part::Meta => &["namespaces"],
            Part::Log => &["entries"],
            Part::Live => &["sessions"],
            Part::Snap => &["snapshots"],
            Part::Oldest => {
                return self.ask(
                    "DELETE FROM treelock.entries HERE AND position = (SELECT min(position) FROM treelock.entries HERE)",
                );
            }
        };
        tables.iter().for_each(|table| self.ask(&format!("DELETE FROM treelock.{table} HERE")));
    }
}

#[test]
fn function_and_memory_answer_alike() {
    let Some(database) = Database::start() else { return };
    database.ask(super::SETUP);
    compare(|number| Namespace {
        real: Postgres::open(&database.url(), &number.to_string()).unwrap(),
        database: &database,
    });
}
