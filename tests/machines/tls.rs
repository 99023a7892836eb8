//! A server over TLS, of Redis or PostgreSQL: whose certificate is trusted, and who must show one.

use super::conformance::Place;
use super::server::{Server, free_port};
use crate::common::{LIMIT, wait_until};
use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use treelock::machine::{EngineError, MachineLockError, MachineTreeLock, Options};
use treelock::redis::RedisTreeLock;

/// An authority, with a certificate of the server and one of a client, made by `openssl`.
struct Certificates(TempDir);

impl Certificates {
    /// `None` where there is no program for it.
    fn make() -> Option<Self> {
        if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
            assert!(std::env::var_os("CI").is_none(), "CI must have openssl: apt-get install openssl");
            eprintln!("left out: a test of TLS, which needs the program openssl");
            return None;
        }
        let made = Certificates(tempfile::tempdir().unwrap());
        made.openssl("req -x509 -days 2 -subj /CN=authority -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -keyout ca.key -out ca.pem");
        std::fs::write(made.0.path().join("names"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
            .unwrap();
        for name in ["server", "client"] {
            made.openssl(&format!(
                "req -new -subj /CN={name} -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -keyout {name}.key -out {name}.csr"
            ));
            made.openssl(&format!(
                "x509 -req -in {name}.csr -days 2 -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out {name}.pem"
            ));
        }
        Some(made)
    }

    fn openssl(&self, arguments: &str) {
        let made = Command::new("openssl").args(arguments.split(' ')).current_dir(&self.0).output().unwrap();
        assert!(made.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&made.stderr));
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// A server that speaks TLS at one port, and does not at the other.
    fn serve(&self, authenticates_clients: bool) -> Option<Speaks> {
        let port = free_port();
        let server = Server::start_with(&[
            "--tls-port",
            &port.to_string(),
            "--tls-cert-file",
            &self.path("server.pem"),
            "--tls-key-file",
            &self.path("server.key"),
            "--tls-ca-cert-file",
            &self.path("ca.pem"),
            "--tls-auth-clients",
            if authenticates_clients { "yes" } else { "no" },
        ])?;
        server.open_quickly();
        Some(Speaks { server, port })
    }
}

struct Speaks {
    server: Server,
    port: u16,
}

impl Speaks {
    fn url(&self, parameters: &str) -> String {
        format!("rediss://127.0.0.1:{}/?{parameters}", self.port)
    }
}

fn open(url: &str) -> Result<RedisTreeLock, EngineError> {
    RedisTreeLock::connect(url, "test", Options::new().patience(Duration::from_secs(5)))
}

/// The lock is refused at once, and the reason has these words.
#[track_caller]
fn is_refused(url: &str, words: &[&str]) {
    let start = Instant::now();
    let error = open(url).map(drop).unwrap_err();
    assert!(matches!(error, EngineError::Refused(_)), "{error}");
    assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    eprintln!("{error}");
}

fn excludes_and_wakes(one: &MachineTreeLock, other: &MachineTreeLock) {
    let held = one.write("a").unwrap();
    assert!(matches!(other.try_write("a"), Err(MachineLockError::WouldBlock)));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| other.try_write_for("a", LIMIT).map(|guard| guard.fence()));
        wait_until("it waits", || one.snapshot().unwrap().waiters.len() == 1);
        let fence = held.fence();
        held.release().unwrap();
        assert!(waiter.join().unwrap().unwrap() > fence);
    });
}

/// Grants, refusals and wake-ups go the same way, over connections that are kept.
#[test]
fn lock_over_tls_is_as_good_as_one_without() {
    let Some(certificates) = Certificates::make() else { return };
    let Some(speaks) = certificates.serve(false) else { return };
    let url = speaks.url(&format!("ssl_ca_certs={}", certificates.path("ca.pem")));
    let (one, other) = (open(&url).unwrap(), open(&url).unwrap());
    excludes_and_wakes(&one, &other);
    let connections = || speaks.server.count("stats", "total_connections_received");
    let before = connections();
    for _ in 0..100 {
        drop(one.write("a").unwrap());
    }
    assert_eq!(connections(), before + 1, "the one that asks");
}

#[test]
fn certificate_of_an_unknown_authority_or_another_host_is_refused() {
    let Some(certificates) = Certificates::make() else { return };
    let Some(speaks) = certificates.serve(false) else { return };
    is_refused(&speaks.url(""), &["UnknownIssuer", "ssl_ca_certs"]);
    let others = Certificates::make().unwrap();
    is_refused(
        &speaks.url(&format!("ssl_ca_certs={}", others.path("ca.pem"))),
        &["invalid peer certificate", "ssl_ca_certs"],
    );
    let url = speaks.url(&format!("ssl_ca_certs={}", certificates.path("ca.pem")));
    is_refused(&url.replace("127.0.0.1", "localhost"), &["not valid for", "localhost"]);
}

#[test]
fn client_shows_a_certificate_where_the_server_asks_for_one() {
    let Some(certificates) = Certificates::make() else { return };
    let Some(speaks) = certificates.serve(true) else { return };
    let authority = format!("ssl_ca_certs={}", certificates.path("ca.pem"));
    is_refused(&speaks.url(&authority), &["CertificateRequired", "ssl_certfile"]);
    let (cert, key) = (certificates.path("client.pem"), certificates.path("client.key"));
    let lock = open(&speaks.url(&format!("{authority}&ssl_certfile={cert}&ssl_keyfile={key}"))).unwrap();
    lock.write("a").unwrap().release().unwrap();
}

#[test]
fn certificates_that_cannot_be_used_are_told() {
    let Some(certificates) = Certificates::make() else { return };
    let (authority, key) = (certificates.path("ca.pem"), certificates.path("client.key"));
    let nothing = certificates.path("names");
    let of = |parameters: &str| format!("rediss://127.0.0.1:1/?{parameters}");
    is_refused(&of("ssl_ca_certs=/no/where"), &["ssl_ca_certs", "/no/where", "No such file"]);
    is_refused(&of(&format!("ssl_ca_certs={nothing}")), &["ssl_ca_certs", &nothing, "PEM"]);
    is_refused(&of(&format!("ssl_certfile={authority}")), &["ssl_keyfile"]);
    is_refused(&of(&format!("ssl_certfile={key}&ssl_keyfile={authority}")), &["key"]);
    is_refused("rediss://127.0.0.1:1/#insecure", &["#insecure", "ssl_ca_certs"]);
}

#[test]
fn server_that_speaks_tls_is_told_where_the_url_does_not_say_so() {
    let Some(certificates) = Certificates::make() else { return };
    let Some(speaks) = certificates.serve(false) else { return };
    let options = Options::new().patience(Duration::from_millis(300));
    let url = speaks.url("").replace("rediss:", "redis:");
    let error = RedisTreeLock::<str>::connect(&url, "test", options).map(drop).unwrap_err();
    assert!(matches!(error, EngineError::Away(_)) && error.to_string().contains("rediss://"), "{error}");
}

#[test]
fn server_that_does_not_speak_tls_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("rediss://{}/", listener.local_addr().unwrap());
    // It ends with the process of the test.
    std::thread::spawn(move || {
        let mut clients = Vec::new();
        for mut client in listener.incoming().map_while(Result::ok) {
            let _ = client.write_all(b"-ERR unknown command\r\n");
            clients.push(client);
        }
    });
    is_refused(&url, &["InvalidContentType", "redis://"]);
}

#[cfg(feature = "postgres-tls")]
mod postgres {
    use super::*;
    use crate::database::Database;
    use treelock::postgres::PostgresTreeLock;

    fn begin(authenticates_clients: bool) -> Option<(Certificates, Database)> {
        let (certificates, mut database) = (Certificates::make()?, Database::start()?);
        database.speak_tls(certificates.0.path(), authenticates_clients);
        database.open_quickly();
        Some((certificates, database))
    }

    fn open(url: &str) -> Result<PostgresTreeLock, EngineError> {
        PostgresTreeLock::connect(url, "test", Options::new().patience(Duration::from_secs(5)))
    }

    #[track_caller]
    fn is_refused(url: &str, words: &str) {
        let error = open(url).map(drop).unwrap_err();
        assert!(matches!(error, EngineError::Refused(_)) && error.to_string().contains(words), "{error}");
        eprintln!("{error}");
    }

    #[test]
    fn lock_over_tls_is_as_good_as_one_without() {
        let Some((certificates, database)) = begin(false) else { return };
        let url = format!("{}?sslmode=verify-full&sslrootcert={}", database.url(), certificates.path("ca.pem"));
        let (one, other) = (open(&url).unwrap(), open(&url).unwrap());
        let without = open(&database.url()).unwrap();
        excludes_and_wakes(&one, &other);
        let held = one.write("a").unwrap();
        assert!(matches!(without.try_write("a"), Err(MachineLockError::WouldBlock)));
        drop(held);
        let spoken = "DO $$ BEGIN ASSERT (SELECT count(*) FROM pg_stat_ssl WHERE ssl) > 1; END $$";
        database.ask(spoken);
    }

    #[test]
    fn certificate_of_an_unknown_authority_or_another_host_is_refused() {
        let Some((certificates, database)) = begin(false) else { return };
        is_refused(&format!("{}?sslmode=require", database.url()), "UnknownIssuer");
        let others = Certificates::make().unwrap();
        let by = |of: &Certificates| format!("{}?sslmode=require&sslrootcert={}", database.url(), of.path("ca.pem"));
        is_refused(&by(&others), "invalid peer certificate");
        is_refused(&by(&certificates).replace("127.0.0.1", "localhost"), "not valid for");
        is_refused(&format!("{}&sslcert={}", by(&certificates), certificates.path("client.pem")), "needs both");
        is_refused(&by(&certificates).replace("ca.pem", "ca.key"), "no certificate");
    }

    #[test]
    fn client_shows_a_certificate_where_the_server_asks_for_one() {
        let Some((certificates, database)) = begin(true) else { return };
        let url = format!("{}?sslmode=require&sslrootcert={}", database.url(), certificates.path("ca.pem"));
        is_refused(&url, "certificate");
        let shown = ["sslcert", "sslkey"]
            .map(|name| format!("&{name}={}", certificates.path(&name.replace("ssl", "client."))));
        let shown = shown.concat().replace("client.cert", "client.pem");
        drop(open(&(url + &shown)).unwrap().write("a").unwrap());
    }

    #[test]
    fn server_that_speaks_no_tls_is_told() {
        let Some(database) = Database::start() else { return };
        is_refused(&format!("{}?sslmode=require", database.url()), "TLS");
    }
}
