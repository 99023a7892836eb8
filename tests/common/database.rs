//! A PostgreSQL server of a test's own: on a free port of the loopback, with a directory of its own, ended with the test.
//!
//! The unit tests and the benchmark have it too. It refuses to run as root, so where the tests do, it runs as the user `nobody`.

use rustix::process::{Pid, Signal, kill_process};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) struct Database {
    directory: TempDir,
    pub(crate) port: u16,
    child: Option<Child>,
    extra: Vec<String>,
}

/// Where the programs of the server are, if this machine has them.
fn programs() -> Option<PathBuf> {
    let debian = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = debian.chain(std::env::split_paths(&path)).find(|folder| folder.join("initdb").exists());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "CI must have a server: apt-get install postgresql");
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| eprintln!("left out: the tests of PostgreSQL, which need its server (Debian: postgresql)"));
    }
    found
}

/// The user and group of `nobody`, for root.
fn other_user() -> Option<(u32, u32)> {
    rustix::process::getuid().is_root().then_some((65534, 65534))
}

fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some((user, group)) = other_user() {
        command.uid(user).gid(group);
    }
    command.stdout(Stdio::null()).stderr(Stdio::null()).env_remove("PGDATA");
    command
}

impl Database {
    /// `None` where there is no program for it.
    pub(crate) fn start() -> Option<Database> {
        let programs = programs()?;
        let directory = tempfile::tempdir().unwrap();
        if let Some((user, group)) = other_user() {
            std::os::unix::fs::chown(directory.path(), Some(user), Some(group)).unwrap();
        }
        let data = directory.path().join("data");
        let mut init = command(&programs.join("initdb"));
        init.arg("--pgdata").arg(&data).args(["--username=ada", "--auth=trust", "--no-sync", "--encoding=UTF8"]);
        assert!(
            init.args(["--no-locale", "--no-instructions"]).current_dir(directory.path()).status().unwrap().success()
        );
        let mut database = Database {
            directory,
            port: TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port(),
            child: None,
            extra: Vec::new(),
        };
        database.go_on();
        Some(database)
    }

    /// Starts it again, on the same port and directory.
    pub(crate) fn go_on(&mut self) {
        let mut server = command(&programs().unwrap().join("postgres"));
        server.arg("-D").arg(self.directory.path().join("data")).args([
            "-p",
            &self.port.to_string(),
            "-h",
            "127.0.0.1",
            "-F",
        ]);
        server
            .arg("-k")
            .arg(self.directory.path())
            .args(["-c", "max_connections=200"])
            .args(&self.extra)
            .current_dir(self.directory.path());
        self.child = Some(server.spawn().unwrap());
        let start = Instant::now();
        while self.try_ask("SELECT 1").is_err() {
            assert!(start.elapsed() < Duration::from_secs(40), "the server does not begin to answer");
            std::thread::yield_now();
        }
    }

    #[cfg_attr(
        not(all(feature = "postgres-tls", feature = "redis-tls")),
        allow(dead_code, reason = "that is what its test needs")
    )]
    /// Has it speak TLS too, by files of these names in a folder; whoever comes by TLS shows a certificate of that authority, if that is asked.
    pub(crate) fn speak_tls(&mut self, folder: &Path, authenticates_clients: bool) {
        for name in ["ca.pem", "server.pem", "server.key"] {
            let own = self.directory.path().join(name);
            std::fs::copy(folder.join(name), &own).unwrap();
            std::fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            if let Some((user, group)) = other_user() {
                std::os::unix::fs::chown(&own, Some(user), Some(group)).unwrap();
            }
            let option = ["ssl_ca_file", "ssl_cert_file", "ssl_key_file"]
                [usize::from(name != "ca.pem") + usize::from(name == "server.key")];
            self.extra.extend(["-c".to_owned(), format!("{option}={}", own.display())]);
        }
        self.extra.extend(["-c".to_owned(), "ssl=on".to_owned()]);
        if authenticates_clients {
            let rules = "host all all 127.0.0.1/32 trust\n";
            let rules = format!("hostssl all all 127.0.0.1/32 trust clientcert=verify-ca\n{rules}");
            std::fs::write(self.directory.path().join("data/pg_hba.conf"), rules).unwrap();
        }
        self.shut_down();
        self.go_on();
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// To the server and the processes that it has for its connections.
    pub(crate) fn signal_all(&self, signal: Signal) {
        let pid = self.pid().as_raw_nonzero();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        self.signal(signal);
        for child in children.split_whitespace().filter_map(|child| Pid::from_raw(child.parse().unwrap())) {
            // It may have ended.
            let _ = kill_process(child, signal);
        }
    }

    /// Ends it in order.
    pub(crate) fn shut_down(&mut self) {
        self.signal(Signal::INT);
        self.child.take().unwrap().wait().unwrap();
    }

    /// Ends all its processes at once, as a crash does: to go on it must recover.
    pub(crate) fn crash(&mut self) {
        self.signal(Signal::QUIT);
        self.child.take().unwrap().wait().unwrap();
    }

    pub(crate) fn url(&self) -> String {
        self.url_of("ada")
    }

    pub(crate) fn url_of(&self, user: &str) -> String {
        format!("postgresql://{user}@127.0.0.1:{}/postgres", self.port)
    }

    /// Has statements run by the server.
    pub(crate) fn ask(&self, statements: &str) {
        self.try_ask(statements).unwrap_or_else(|error| panic!("{statements}: {error:?}"));
    }

    fn try_ask(&self, statements: &str) -> Result<(), tokio_postgres::Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&self.url(), tokio_postgres::NoTls).await?;
            let connection = tokio::spawn(connection);
            client.batch_execute(statements).await?;
            drop(client);
            connection.await.unwrap()
        })
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.signal_all(Signal::CONT);
            self.crash();
        }
    }
}
