//! A Memcached server of a test's own: on a free port of the loopback, ended with the test. The benchmark has it too.

use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(40);

pub(crate) struct Memcached {
    pub(crate) port: u16,
    child: Option<Child>,
    extra: Vec<String>,
}

impl Memcached {
    /// `None` where there is no program for it.
    pub(crate) fn start_with(extra: &[&str]) -> Option<Self> {
        let is_there =
            Command::new("memcached").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
        if !is_there {
            assert!(std::env::var_os("CI").is_none(), "CI must have a server: apt-get install memcached");
            static ONCE: std::sync::Once = std::sync::Once::new();
            ONCE.call_once(|| {
                eprintln!("left out: the tests of Memcached, which need its server (Debian: memcached)")
            });
            return None;
        }
        let extra = extra.iter().map(|&word| word.to_owned()).collect();
        let mut server = Memcached {
            port: TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port(),
            child: None,
            extra,
        };
        server.go_on();
        Some(server)
    }

    /// Starts it again, on the same port.
    pub(crate) fn go_on(&mut self) {
        let mut command = Command::new("memcached");
        command.args(["-l", "127.0.0.1", "-p", &self.port.to_string(), "-u", "nobody"]).args(&self.extra);
        self.child = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let start = Instant::now();
        while self.try_ask("version", "\r\n").is_none() {
            assert!(start.elapsed() < LIMIT, "the server does not begin to answer");
            std::thread::yield_now();
        }
    }

    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().unwrap()), signal).unwrap();
    }

    pub(crate) fn try_ask(&self, command: &str, ends: &str) -> Option<String> {
        let mut connection = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        connection.set_read_timeout(Some(LIMIT)).ok()?;
        write!(connection, "{command}\r\n").ok()?;
        let (mut told, mut part) = (Vec::new(), [0; 4096]);
        while !told.ends_with(ends.as_bytes()) {
            match connection.read(&mut part) {
                Ok(read) if read > 0 => told.extend(&part[..read]),
                _ => return None,
            }
        }
        Some(String::from_utf8_lossy(&told).into_owned())
    }

    /// What the server answers to a command of one line.
    pub(crate) fn ask(&self, command: &str) -> String {
        self.try_ask(command, "\r\n").unwrap_or_else(|| panic!("{command} is not answered"))
    }

    /// The keys that begin so.
    pub(crate) fn keys(&self, begin: &str) -> Vec<String> {
        let all = self.try_ask("lru_crawler metadump all", "END\r\n").unwrap();
        let keys = all.lines().filter_map(|line| line.strip_prefix("key=")?.split(' ').next());
        // They are encoded as in URLs.
        let keys = keys.map(|key| key.replace("%3A", ":"));
        keys.filter(|key| key.starts_with(begin)).collect()
    }
}

impl Drop for Memcached {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}
