//! What a URL of PostgreSQL says, and its environment.

use tokio_postgres::config::SslMode;
use tokio_postgres::{Config, Error};

/// How a connection speaks TLS, if it does.
#[cfg(feature = "postgres-tls")]
pub(super) type Tls = Option<tokio_postgres_rustls::MakeRustlsConnect>;
#[cfg(not(feature = "postgres-tls"))]
pub(super) type Tls = Option<tokio_postgres::NoTls>;

/// What a URL says, and the environment of what it does not say.
pub(super) fn config(url: &str, variable: impl Fn(&str) -> Option<String>) -> Result<(Config, Tls), String> {
    if url.contains("://") && !["postgresql://", "postgres://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(format!("{url:?} begins with neither postgresql:// nor postgres://"));
    }
    let (rest, told) = without_tls(url)?;
    let mut config: Config = rest.parse().map_err(|error: Error| match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    })?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        config.host(variable("PGHOST").unwrap_or_else(|| "localhost".to_owned()));
    }
    if config.get_ports().is_empty() {
        if let Some(port) = variable("PGPORT") {
            config.port(port.parse().map_err(|_| format!("PGPORT is {port:?}, which is no port"))?);
        }
    }
    if config.get_user().is_none() {
        variable("PGUSER").map(|user| config.user(user));
    }
    if config.get_password().is_none() {
        variable("PGPASSWORD").map(|password| config.password(password));
    }
    if config.get_dbname().is_none() {
        variable("PGDATABASE").map(|database| config.dbname(database));
    }
    if config.get_application_name().is_none() {
        config.application_name("treelock");
    }
    let told = |name: &str| told.iter().rev().find(|(of, _)| of == name).map(|(_, value)| value.clone());
    let told = |name: &str| told(name).or_else(|| variable(&format!("PG{}", name.to_uppercase())));
    let tls = match told("sslmode").as_deref() {
        None | Some("disable" | "allow" | "prefer") => None,
        Some("require" | "verify-ca" | "verify-full") => {
            config.ssl_mode(SslMode::Require);
            tls(&told)?
        }
        Some(other) => return Err(format!("sslmode is {other:?}, which is no mode of PostgreSQL")),
    };
    if tls.is_none() {
        config.ssl_mode(SslMode::Disable);
    }
    Ok((config, tls))
}

const OF_TLS: [&str; 4] = ["sslmode", "sslrootcert", "sslcert", "sslkey"];

/// What is said of TLS, and the URL without that, which the client would not take as `psql` does.
fn without_tls(url: &str) -> Result<(String, Vec<(String, String)>), String> {
    let mut told = Vec::new();
    let mut is_other = |part: &&str| match part.split_once('=') {
        Some((name, value)) if OF_TLS.contains(&name) => {
            told.push((name.to_owned(), value.to_owned()));
            false
        }
        _ => true,
    };
    let Some((place, query)) = url.split_once('?').filter(|_| url.contains("://")) else {
        // Words, as in `host=localhost sslmode=require`.
        let is_url = url.contains("://");
        let rest: Vec<&str> = url.split(' ').filter(|part| is_url || is_other(part)).collect();
        return Ok((rest.join(" "), told));
    };
    let rest: Vec<&str> = query.split('&').filter(is_other).collect();
    for (name, value) in &mut told {
        *value = decoded(value).ok_or_else(|| format!("{name} is {value:?}, which is not encoded as in a URL"))?;
    }
    Ok((if rest.is_empty() { place.to_owned() } else { format!("{place}?{}", rest.join("&")) }, told))
}

/// `%2F` as `/`.
fn decoded(value: &str) -> Option<String> {
    let mut parts = value.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(not(feature = "postgres-tls"))]
fn tls(_: &impl Fn(&str) -> Option<String>) -> Result<Tls, String> {
    Err("for TLS enable the feature `postgres-tls` of the crate `treelock`".to_owned())
}

#[cfg(feature = "postgres-tls")]
fn tls(told: &impl Fn(&str) -> Option<String>) -> Result<Tls, String> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{ClientConfig, RootCertStore};
    use std::sync::Arc;

    let certificates = |name: &str, path: &str| {
        let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        match read {
            Ok(read) if !read.is_empty() => Ok(read),
            Ok(_) => Err(format!("{name}: {path} has no certificate in the PEM format")),
            Err(error) => Err(format!("{name}: {path}: {error}")),
        }
    };
    let mut roots = RootCertStore::empty();
    match told("sslrootcert").filter(|path| path != "system") {
        Some(path) => {
            for root in certificates("sslrootcert", &path)? {
                roots.add(root).map_err(|error| format!("sslrootcert: {path}: {error}"))?;
            }
        }
        // Some of them may be none that rustls takes.
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    // Not the provider of the process: the features of a build may leave open which it is.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?.with_root_certificates(roots);
    let config = match (told("sslcert"), told("sslkey")) {
        (Some(certificate), Some(key)) => {
            let shown = certificates("sslcert", &certificate)?;
            let key = PrivateKeyDer::from_pem_file(&key).map_err(|error| format!("sslkey: {key}: {error}"))?;
            builder.with_client_auth_cert(shown, key).map_err(|error| format!("sslcert and sslkey: {error}"))?
        }
        (None, None) => builder.with_no_client_auth(),
        _ => return Err("it has one of sslcert and sslkey: a client's certificate needs both".to_owned()),
    };
    Ok(Some(tokio_postgres_rustls::MakeRustlsConnect::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_postgres::config::Host;

    #[test]
    fn environment_says_what_the_url_does_not() {
        let variable = |name: &str| match name {
            "PGPORT" => Some("7".to_owned()),
            name => (!name.starts_with("PGSSL")).then(|| name.to_lowercase()),
        };
        let all = config("postgresql://", variable).unwrap().0;
        assert_eq!(all.get_hosts(), [Host::Tcp("pghost".to_owned())]);
        assert_eq!((all.get_ports(), all.get_user()), (&[7][..], Some("pguser")));
        assert_eq!((all.get_password(), all.get_dbname()), (Some(&b"pgpassword"[..]), Some("pgdatabase")));
        let none = config("postgresql://ada:secret@here:5/there", variable).unwrap().0;
        assert_eq!(none.get_hosts(), [Host::Tcp("here".to_owned())]);
        assert_eq!((none.get_ports(), none.get_user()), (&[5][..], Some("ada")));
        assert_eq!((none.get_password(), none.get_dbname()), (Some(&b"secret"[..]), Some("there")));
    }

    #[test]
    fn url_that_cannot_be_used_is_told() {
        for (url, why) in [("redis://host", "postgresql://"), ("postgresql://host:port/", "port"), ("", "PGPORT")] {
            let variable = |name: &str| (name == "PGPORT").then(|| "seven".to_owned());
            let told = config(url, variable).map(drop).err().unwrap_or_else(|| panic!("{url} is taken"));
            assert!(told.contains(why), "{url}: {told}");
        }
    }
    #[test]
    fn what_is_said_of_tls_is_taken_out_of_the_url() {
        for (url, rest, told) in [
            ("postgresql://a@h/d", "postgresql://a@h/d", &[][..]),
            ("postgresql://h?sslmode=disable", "postgresql://h", &[("sslmode", "disable")]),
            (
                "postgresql://h?sslmode=require&connect_timeout=5&sslrootcert=%2Fetc/a%20b",
                "postgresql://h?connect_timeout=5",
                &[("sslmode", "require"), ("sslrootcert", "/etc/a b")],
            ),
            ("host=h sslmode=require user=u", "host=h user=u", &[("sslmode", "require")]),
        ] {
            let expected = told.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            assert_eq!(without_tls(url), Ok((rest.to_owned(), expected)), "{url}");
        }
        assert!(without_tls("postgresql://h?sslcert=%zz").is_err());
        let mode = |url: &str, by_environment: Option<&str>| {
            let variable = |name: &str| by_environment.filter(|_| name == "PGSSLMODE").map(str::to_owned);
            config(url, variable).map(|(config, tls)| (config.get_ssl_mode(), tls.is_some()))
        };
        assert_eq!(mode("postgresql://h", None), Ok((SslMode::Disable, false)));
        assert_eq!(mode("postgresql://h?sslmode=prefer", Some("require")), Ok((SslMode::Disable, false)));
        assert!(mode("postgresql://h?sslmode=sometimes", None).is_err());
        let by_tls = mode("postgresql://h", Some("verify-full"));
        match cfg!(feature = "postgres-tls") {
            true => assert_eq!(by_tls, Ok((SslMode::Require, true))),
            false => assert!(by_tls.unwrap_err().contains("`postgres-tls`")),
        }
    }
}
