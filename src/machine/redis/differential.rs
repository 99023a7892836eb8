//! `exchange.lua` in a server against `memory.rs`.

use super::Redis;
use crate::machine::differential::{Real, compare};
use crate::machine::engine::{Engine, SessionId};
use crate::machine::memory::Part;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server of the test's own, ended with it.
struct Server {
    _directory: tempfile::TempDir,
    child: Child,
    url: String,
    client: redis::Client,
}

impl Server {
    /// `None` where there is no program for it.
    fn start() -> Option<Server> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = tempfile::tempdir().unwrap();
        let child = ["redis-server", "valkey-server"].into_iter().find_map(|program| {
            let mut command = Command::new(program);
            command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"]);
            command.arg(directory.path()).stdout(Stdio::null()).spawn().ok()
        });
        let Some(child) = child else {
            assert!(std::env::var_os("CI").is_none(), "CI must have a server: apt-get install redis-server");
            eprintln!("left out: the comparison with a server, which needs redis-server (Debian: redis-server)");
            return None;
        };
        let url = format!("redis://127.0.0.1:{port}/");
        let client = redis::Client::open(&*url).unwrap();
        let start = Instant::now();
        while client.get_connection().is_err() {
            assert!(start.elapsed() < Duration::from_secs(30), "the server does not begin to answer");
            std::thread::yield_now();
        }
        Some(Server { _directory: directory, child, url, client })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A namespace of it.
struct Namespace {
    real: Redis,
    connection: redis::Connection,
}

impl Namespace {
    fn ask(&mut self, words: &[&str]) -> redis::Value {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query(&mut self.connection).unwrap()
    }

    /// Deletes the entry that a command finds.
    fn delete(&mut self, find: &[&str]) {
        let found = super::array(self.ask(find)).unwrap();
        let Some(entry) = found.into_iter().next() else { return };
        let id = super::array(entry).unwrap().into_iter().next().and_then(super::text).unwrap();
        self.ask(&["XDEL", find[1], &id]);
    }
}

impl Real for Namespace {
    const PARTS: &'static [Part] = &[Part::All, Part::Meta, Part::Log, Part::Live, Part::Snap, Part::Oldest];

    fn engine(&self) -> &dyn Engine {
        &self.real
    }

    fn end_session(&mut self, session: &SessionId) {
        let [_, _, live, _] = self.real.keys.clone();
        self.ask(&["ZADD", &live, "XX", "1", &super::name_of(session)]);
    }

    fn open(&mut self) {
        let [meta, ..] = self.real.keys.clone();
        self.ask(&["HSET", &meta, "opens", "1"]);
    }

    fn lose(&mut self, part: Part) {
        let [meta, log, live, snap] = self.real.keys.clone();
        // So that an order which begins anew gives no position again.
        let millis = |of: &mut Self| {
            of.ask(&["EVAL", "local t = redis.call('TIME') return t[1] * 1000 + math.floor(t[2] / 1000)", "0"])
        };
        let lost = millis(self);
        while millis(self) == lost {}
        match part {
            Part::All => drop(self.ask(&["DEL", &meta, &log, &live, &snap])),
            Part::Meta => drop(self.ask(&["DEL", &meta])),
            Part::Log => drop(self.ask(&["DEL", &log])),
            Part::Live => drop(self.ask(&["DEL", &live])),
            Part::Snap => drop(self.ask(&["DEL", &snap])),
            Part::Oldest => self.delete(&["XRANGE", &log, "-", "+", "COUNT", "1"]),
        }
    }
}

#[test]
fn script_and_memory_answer_alike() {
    let Some(server) = Server::start() else { return };
    compare(|number| Namespace {
        real: Redis::open(&server.url, &number.to_string()).unwrap(),
        connection: server.client.get_connection().unwrap(),
    });
}
