//! What a URL says: which servers there are, as whom and how they are spoken to, and which replicas acknowledge what is written.
//!
//! `mod.rs` tells users of the forms and the parameters. The crate `redis` reads URLs of one host: this file makes such ones of a
//! list of hosts, and takes the parameters that are ours. No error repeats the URL, which may hold a password.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};
use std::borrow::Cow;
use std::time::Duration;

/// Where sentinels listen unless it is said.
const SENTINEL_PORT: u16 = 26379;

pub(super) struct Location {
    pub(super) kind: Kind,
    /// The server; or the sentinels; or the nodes of the cluster that the URL names.
    pub(super) hosts: Vec<ConnectionInfo>,
    /// How the server is spoken to, wherever it is.
    server: ConnectionInfo,
    pub(super) acknowledged: Option<Acknowledged>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Server,
    /// The sentinels know which server is the master of this name.
    Sentinels(String),
    Cluster,
}

/// So many replicas acknowledge what is written, within such a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Acknowledged {
    pub(super) replicas: u64,
    pub(super) within: Duration,
}

/// The parameters that the crate `redis` does not know.
#[derive(Default)]
struct Parameters {
    sentinel_username: Option<String>,
    sentinel_password: Option<String>,
    ssl_ca_certs: Option<String>,
    ssl_certfile: Option<String>,
    ssl_keyfile: Option<String>,
    wait_replicas: Option<u64>,
    wait_ms: Option<u64>,
}

impl Location {
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").ok_or("it does not begin with redis:// or its like")?;
        let scheme = scheme.to_ascii_lowercase();
        let (base, form) = match scheme.split_once('+') {
            Some((base, form @ ("sentinel" | "cluster"))) => (base, form),
            _ => (&*scheme, ""),
        };
        let is_socket = form.is_empty() && matches!(base, "unix" | "redis+unix" | "valkey+unix");
        let has_tls = matches!(base, "rediss" | "valkeys");
        if !is_socket && !has_tls && !matches!(base, "redis" | "valkey") {
            return Err(format!("its scheme is {scheme}, and not redis or its like"));
        }
        if has_tls && !cfg!(feature = "redis-tls") {
            return Err(format!("for {scheme}:// enable the feature `redis-tls` of the crate `treelock`"));
        }
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (path, query) = tail.split_at(tail.find(['?', '#']).unwrap_or(tail.len()));
        let (user, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        let hosts: Vec<&str> = hosts.split(',').collect();
        let (kind, path) = match form {
            "sentinel" => {
                let mut names = path.split('/').skip(1);
                let Some(master) = names.next().filter(|master| !master.is_empty()) else {
                    return Err(format!("it names no master: give {scheme}://HOST/MASTER"));
                };
                (Kind::Sentinels(master.to_owned()), format!("/{}", names.next().unwrap_or_default()))
            }
            "cluster" => (Kind::Cluster, path.to_owned()),
            _ if hosts.len() > 1 => {
                return Err("it names several hosts: give redis+sentinel:// or redis+cluster://".into());
            }
            _ => (Kind::Server, path.to_owned()),
        };
        let mut parameters = None;
        let mut servers = Vec::new();
        for host in hosts {
            let has_port = host.rsplit(']').next().is_some_and(|end| end.contains(':'));
            let port = if form == "sentinel" && !has_port { format!(":{SENTINEL_PORT}") } else { String::new() };
            let url = redis::parse_redis_url(&format!("{base}://{user}{host}{port}{path}{query}")).ok_or(
                "a host or a port of it is none; in a user or password write @ as %40, / as %2F, ? as %3F and # as %23",
            )?;
            if parameters.is_none() {
                parameters = Some(Parameters::read(url.query_pairs(), &scheme, is_socket, has_tls, &kind)?);
            }
            servers.push(url.into_connection_info().map_err(|error| error.to_string())?);
        }
        Location::new(kind, servers, parameters.unwrap_or_default())
    }

    fn new(kind: Kind, mut hosts: Vec<ConnectionInfo>, parameters: Parameters) -> Result<Self, String> {
        for host in &mut hosts {
            // It would only tell the server what is no concern of it, and take a round trip.
            let settings = host.redis_settings().clone().set_skip_set_lib_name();
            let addr = with_certificates(host.addr().clone(), &parameters)?;
            *host = host.clone().set_redis_settings(settings).set_addr(addr);
        }
        let server = hosts[0].clone();
        if let Kind::Sentinels(_) = kind {
            let mut settings = RedisConnectionInfo::default()
                .set_protocol(server.redis_settings().protocol())
                .set_skip_set_lib_name();
            if let Some(username) = parameters.sentinel_username {
                settings = settings.set_username(username);
            }
            if let Some(password) = parameters.sentinel_password {
                settings = settings.set_password(password);
            }
            for host in &mut hosts {
                *host = host.clone().set_redis_settings(settings.clone());
            }
        }
        let acknowledged = match (parameters.wait_replicas, parameters.wait_ms) {
            (Some(replicas), millis) => {
                Some(Acknowledged { replicas, within: Duration::from_millis(millis.unwrap_or(1000)) })
            }
            (None, Some(_)) => return Err("it has wait_ms, and no wait_replicas".into()),
            (None, None) => None,
        };
        Ok(Location { kind, hosts, server, acknowledged })
    }

    /// A server that a node of the cluster names. Without a name it is on the host of that node, and `?` is none.
    pub(super) fn server_beside(&self, node: &ConnectionAddr, host: String, port: u16) -> Option<ConnectionInfo> {
        match (&*host, node) {
            ("?", _) => None,
            ("", ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. }) => {
                Some(self.server_at(host.clone(), port))
            }
            _ => Some(self.server_at(host, port)),
        }
    }

    /// How a server is reached that others have named.
    pub(super) fn server_at(&self, host: String, port: u16) -> ConnectionInfo {
        let addr = match self.server.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        self.server.clone().set_addr(addr)
    }

    /// Whether it goes over the network without TLS.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self.server.addr(), ConnectionAddr::Tcp(..))
    }
}

impl Parameters {
    fn read<'a>(
        pairs: impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)>,
        scheme: &str,
        is_socket: bool,
        has_tls: bool,
        kind: &Kind,
    ) -> Result<Self, String> {
        let mut read = Parameters::default();
        for (name, value) in pairs {
            let number = || {
                let number = value.parse().ok().filter(|&number: &u64| number > 0);
                number.ok_or_else(|| format!("{name} is {value:?}, and not a number from 1 on")).map(Some)
            };
            let text = || Some(value.clone().into_owned());
            match &*name {
                "protocol" => {}
                "db" | "user" | "pass" if is_socket => {}
                "sentinel_username" if matches!(kind, Kind::Sentinels(_)) => read.sentinel_username = text(),
                "sentinel_password" if matches!(kind, Kind::Sentinels(_)) => read.sentinel_password = text(),
                "ssl_ca_certs" if has_tls => read.ssl_ca_certs = text(),
                "ssl_certfile" if has_tls => read.ssl_certfile = text(),
                "ssl_keyfile" if has_tls => read.ssl_keyfile = text(),
                "wait_replicas" => read.wait_replicas = number()?,
                "wait_ms" => read.wait_ms = number()?,
                _ => {
                    return Err(format!(
                        "{name:?} is no parameter of {scheme}://: see the documentation of treelock::redis"
                    ));
                }
            }
        }
        Ok(read)
    }
}

#[cfg(not(feature = "redis-tls"))]
fn with_certificates(addr: ConnectionAddr, _: &Parameters) -> Result<ConnectionAddr, String> {
    Ok(addr)
}

/// Adds the certificates that the parameters name to an address over TLS.
#[cfg(feature = "redis-tls")]
fn with_certificates(addr: ConnectionAddr, parameters: &Parameters) -> Result<ConnectionAddr, String> {
    use redis::{Client, ClientTlsConfig, TlsCertificates};

    let ConnectionAddr::TcpTls { insecure, .. } = addr else { return Ok(addr) };
    if insecure {
        return Err(
            "#insecure lets anybody play the server: name the one who signed its certificate by ssl_ca_certs".into(),
        );
    }
    let read = |name: &str, path: &Option<String>| {
        let Some(path) = path else { return Ok(None) };
        let bytes = std::fs::read(path).map_err(|error| format!("{name}: {path}: {error}"))?;
        let is_pem = bytes.windows(11).any(|word| word == b"-----BEGIN ");
        if is_pem { Ok(Some(bytes)) } else { Err(format!("{name}: {path} has nothing in the PEM format")) }
    };
    let root_cert = read("ssl_ca_certs", &parameters.ssl_ca_certs)?;
    let client_cert = read("ssl_certfile", &parameters.ssl_certfile)?;
    let client_tls = match (client_cert, read("ssl_keyfile", &parameters.ssl_keyfile)?) {
        (Some(client_cert), Some(client_key)) => Some(ClientTlsConfig { client_cert, client_key }),
        (None, None) => None,
        _ => return Err("it has one of ssl_certfile and ssl_keyfile: a client's certificate needs both".into()),
    };
    // The crate `redis` takes the provider of the process, and rustls panics if the features of a build leave open which it is.
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Another thread may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    if root_cert.is_none() && client_tls.is_none() {
        return Ok(addr);
    }
    let client = Client::build_with_tls(addr, TlsCertificates { client_tls, root_cert });
    Ok(client.map_err(|error| error.to_string())?.get_connection_info().addr().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Location {
        Location::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    /// User, password, address and database.
    fn text(info: &ConnectionInfo) -> String {
        let settings = info.redis_settings();
        let (user, password) = (settings.username().unwrap_or_default(), settings.password().unwrap_or_default());
        format!("{user}:{password}@{}/{}", info.addr(), settings.db())
    }

    fn hosts(location: &Location) -> Vec<String> {
        location.hosts.iter().map(text).collect()
    }

    #[test]
    fn one_server() {
        let cases = [
            ("redis://host", ":@host:6379/0"),
            ("valkey://ada:s%40crt@host:7/3", "ada:s@crt@host:7/3"),
            ("REDIS://:secret@[::1]:7/", ":secret@::1:7/0"),
            ("redis://host/?protocol=resp3&wait_replicas=1", ":@host:6379/0"),
            ("unix:///run/redis.sock?db=2&user=ada&pass=secret", "ada:secret@/run/redis.sock/2"),
            ("redis+unix:///run/redis.sock", ":@/run/redis.sock/0"),
        ];
        for (url, host) in cases {
            let location = parse(url);
            assert_eq!((&location.kind, hosts(&location)), (&Kind::Server, vec![host.to_owned()]), "{url}");
        }
    }

    #[test]
    fn sentinels_have_a_user_of_their_own() {
        let location = parse(
            "redis+sentinel://ada:secret@one,two:7,[::1]/main/3?sentinel_username=bob&sentinel_password=other%26",
        );
        assert_eq!(location.kind, Kind::Sentinels("main".into()));
        assert_eq!(hosts(&location), ["bob:other&@one:26379/0", "bob:other&@two:7/0", "bob:other&@::1:26379/0"]);
        assert_eq!(text(&location.server_at("master".into(), 8)), "ada:secret@master:8/3");
        let location = parse("valkey+sentinel://:secret@one/main");
        assert_eq!(hosts(&location), [":@one:26379/0"]);
        assert_eq!(text(&location.server_at("master".into(), 8)), ":secret@master:8/0");
    }

    #[test]
    fn nodes_of_a_cluster_are_named_by_each_other() {
        let location = parse("redis+cluster://:secret@one,two:7");
        assert_eq!(location.kind, Kind::Cluster);
        assert_eq!(hosts(&location), [":secret@one:6379/0", ":secret@two:7/0"]);
        let beside = |host: &str| location.server_beside(location.hosts[1].addr(), host.into(), 8);
        assert_eq!(beside("three").as_ref().map(text).unwrap(), ":secret@three:8/0");
        assert_eq!(beside("").as_ref().map(text).unwrap(), ":secret@two:8/0");
        assert!(beside("?").is_none());
    }

    #[test]
    fn replicas_that_acknowledge_are_given_a_time() {
        let acknowledged = |parameters: &str| {
            let acknowledged = parse(&format!("redis://host?{parameters}")).acknowledged;
            acknowledged.map(|acknowledged| (acknowledged.replicas, acknowledged.within.as_millis()))
        };
        assert_eq!(acknowledged(""), None);
        assert_eq!(acknowledged("wait_replicas=2"), Some((2, 1000)));
        assert_eq!(acknowledged("wait_ms=50&wait_replicas=1"), Some((1, 50)));
    }

    /// Each error tells what is wrong, and no secret.
    #[test]
    fn what_cannot_be_used_is_told() {
        let cases = [
            ("nonsense", "redis://"),
            ("http://:secret@host", "http"),
            ("redis+sentinel://:secret@host", "/MASTER"),
            ("redis+sentinel://:secret@host/?protocol=resp3", "/MASTER"),
            ("redis+other://:secret@host", "redis+other"),
            ("redis://:secret@one,two", "redis+cluster://"),
            ("redis+cluster://:secret@one,", "a host"),
            ("redis://:secret@host:99999", "a port"),
            ("redis://:sec/ret@host", "%2F"),
            ("redis://:secret@host/zero", "database"),
            ("redis://:secret@host?db=1", "\"db\""),
            ("redis://:secret@host?sentinel_password=secret", "\"sentinel_password\""),
            ("redis://:secret@host?ssl_ca_certs=ca.pem", "\"ssl_ca_certs\""),
            ("redis://:secret@host?wait_replica=1", "\"wait_replica\""),
            ("redis://:secret@host?wait_replicas=0", "wait_replicas"),
            ("redis://:secret@host?wait_replicas=one", "wait_replicas"),
            ("redis://:secret@host?wait_ms=1", "wait_replicas"),
            ("redis://:secret@host?protocol=4", "protocol"),
        ];
        for (url, words) in cases {
            let Err(error) = Location::parse(url) else { panic!("{url} is taken") };
            assert!(error.contains(words) && !error.contains("secret@"), "{url}: {error}");
        }
    }

    #[cfg(not(feature = "redis-tls"))]
    #[test]
    fn tls_names_the_feature_that_it_needs() {
        for scheme in ["rediss", "valkeys", "rediss+sentinel", "rediss+cluster"] {
            let Err(error) = Location::parse(&format!("{scheme}://host/main")) else { panic!("{scheme} is taken") };
            assert!(error.contains("`redis-tls`"), "{error}");
        }
    }
}
