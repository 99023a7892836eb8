//! A Redis server of a test's own: on a free port of the loopback, with a directory of its own, ended with the test.

use crate::common::{LIMIT, wait_until};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use tempfile::TempDir;

const CONFIGURATION: &str = "server.conf";

/// A port that nobody used a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) struct Server {
    directory: TempDir,
    pub(crate) port: u16,
    child: Option<Child>,
    extra: Vec<String>,
}

/// The program that serves, if this machine has one.
pub(crate) fn program() -> Option<&'static str> {
    let is_there = |program: &&str| {
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    let found = ["redis-server", "valkey-server"].into_iter().find(|program| is_there(program));
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "CI must have a server: apt-get install redis-server");
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| eprintln!("left out: the tests of Redis, which need redis-server (Debian: redis-server)"));
    }
    found
}

impl Server {
    /// `None` where there is no program for it.
    pub(crate) fn start() -> Option<Server> {
        Server::start_with(&[])
    }

    pub(crate) fn start_with(extra: &[&str]) -> Option<Server> {
        Server::configured("", extra)
    }

    /// One with a configuration in a file, which it may rewrite.
    pub(crate) fn configured(configuration: &str, extra: &[&str]) -> Option<Server> {
        program()?;
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(CONFIGURATION), configuration).unwrap();
        let extra = extra.iter().map(|&word| word.to_owned()).collect();
        let mut server = Server { directory, port: free_port(), child: None, extra };
        server.go_on();
        Some(server)
    }

    /// One more, that has what this one has.
    pub(crate) fn replica(&self) -> Server {
        let replica = Server::start_with(&["--replicaof", "127.0.0.1", &self.port.to_string()]).unwrap();
        wait_until("the replica has all", || self.info("replication").contains("state=online"));
        // It is sent what comes later when it has said so.
        let mut acknowledged = redis::pipe();
        acknowledged.cmd("PUBLISH").arg("all").arg("").ignore().cmd("WAIT").arg(1).arg(LIMIT.as_millis() as u64);
        let client = redis::Client::open(self.url()).unwrap();
        let (replicas,): (u64,) = acknowledged.query(&mut client.get_connection().unwrap()).unwrap();
        assert_eq!(replicas, 1);
        replica
    }

    /// Starts it again, on the same port and directory.
    pub(crate) fn go_on(&mut self) {
        let mut command = Command::new(program().unwrap());
        command.arg(self.directory.path().join(CONFIGURATION));
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"]);
        command.arg(self.directory.path()).args(["--repl-diskless-sync-delay", "0"]);
        command.args(&self.extra).stdout(Stdio::null());
        self.child = Some(command.spawn().unwrap());
        let start = Instant::now();
        while self.ask(&["PING"]).is_err() {
            assert!(start.elapsed() < LIMIT, "the server does not begin to answer");
            std::thread::yield_now();
        }
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn child(&self) -> &Child {
        self.child.as_ref().unwrap()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Has a command run by the server.
    pub(crate) fn ask(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        let client = redis::Client::open(self.url())?;
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query(&mut client.get_connection()?)
    }

    /// What the server tells of itself.
    pub(crate) fn info(&self, section: &str) -> String {
        redis::from_redis_value(self.ask(&["INFO", section]).unwrap()).unwrap()
    }

    /// One of those numbers.
    pub(crate) fn count(&self, section: &str, name: &str) -> u64 {
        let told = self.info(section);
        let value = told.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("{name} is not in {told}")).parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}
