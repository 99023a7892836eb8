//! What a server says instead of an answer, or the way to it: whether that passes, and what a user can do.

use crate::machine::redis::url::{Kind, Location};
use redis::{ErrorKind, RedisError};

/// What is to be made of an error.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The same call may work later.
    pub(super) is_away: bool,
    pub(super) hint: Option<&'static str>,
}

/// The codes that pass: of a server that begins, is busy or is no master, and of a cluster that changes.
const PASSING: [&str; 8] =
    ["BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "NOREPLICAS", "READONLY", "TRYAGAIN", "UNBLOCKED"];

/// What a user can do, by codes and by words of the text.
const HINTS: [(&[&str], &[&str], &str); 10] = [
    (
        &["NOAUTH", "WRONGPASS"],
        &["AuthenticationFailed", "unauthenticated"],
        "give user and password in the URL, as in redis://user:password@host, and for sentinels sentinel_password",
    ),
    (
        &["NOPERM"],
        &["can't run this command", "o permissions"],
        "the user needs the rights that the documentation of treelock::redis lists",
    ),
    (&["OOM"], &[], "the server is full: give it more memory (maxmemory)"),
    (&["WRONGTYPE"], &[], "something else has made a key of that name: delete it, or choose another namespace"),
    (&["ASK", "MOVED"], &[], "the server is a node of a cluster: give redis+cluster://"),
    (&[], &["cluster support disabled"], "the server is in no cluster: give redis://"),
    (&[], &["nknown command"], "a server is given as redis://host, and a sentinel as redis+sentinel://host/master"),
    (
        &[],
        &["BadSignature", "UnknownIssuer"],
        "name the authority that signed the certificate by ssl_ca_certs in the URL",
    ),
    (
        &[],
        &["CertificateRequired", "HandshakeFailure"],
        "if the server asks for a certificate, name it by ssl_certfile and ssl_keyfile in the URL",
    ),
    (&[], &["InvalidContentType"], "the server does not speak TLS at this port: give redis://, or another port"),
];

impl Verdict {
    pub(super) fn of(error: &RedisError, location: &Location) -> Self {
        let (text, code) = (error.to_string(), code(error));
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        let is_any = |codes: &[&str]| code.as_deref().is_some_and(|code| codes.contains(&code));
        if location.kind == Kind::Cluster && redirection(error).is_some() {
            return Verdict { is_away: true, hint: None };
        }
        let is_of_tls = says(&["invalid peer certificate", "received fatal alert", "received corrupt message"]);
        let is_away = error.kind() == ErrorKind::Io && !is_of_tls || is_any(&PASSING);
        let hint = HINTS.iter().find(|(codes, words, _)| is_any(codes) || says(words)).map(|&(.., hint)| hint);
        let is_closed = error.is_connection_dropped() && !error.is_connection_refusal();
        let may_speak_tls = is_closed && location.is_plain();
        Verdict { is_away, hint: hint.or(may_speak_tls.then_some("if it speaks TLS, give rediss://")) }
    }
}

/// The code of the first error, which may be one of a pipeline, or of a script.
fn code(error: &RedisError) -> Option<String> {
    let errors = error.clone().into_server_errors()?;
    let (_, first) = errors.first()?;
    let details = first.details().unwrap_or_default();
    // Redis before 7.0 gives what a script met within the text of another error.
    let met = || {
        let known = || PASSING.iter().chain(HINTS.iter().flat_map(|(codes, ..)| codes.iter()));
        details.split([' ', '-']).find(|word| known().any(|code| code == word))
    };
    let is_of_script = first.code() == "ERR" && details.starts_with("Error running script");
    Some(if is_of_script { met() } else { None }.unwrap_or(first.code()).to_owned())
}

/// The node of a cluster that a server names instead of itself, as a host, which may be empty, and a port.
pub(super) fn redirection(error: &RedisError) -> Option<(String, u16)> {
    let errors = error.clone().into_server_errors()?;
    let (_, first) = errors.first()?;
    if !matches!(first.code(), "ASK" | "MOVED") {
        return None;
    }
    let (host, port) = first.details()?.split(' ').nth(1)?.rsplit_once(':')?;
    Some((host.to_owned(), port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use redis::parse_redis_value;

    fn verdict(url: &str, reply: &str) -> Verdict {
        let error = parse_redis_value(format!("-{reply}\r\n").as_bytes()).unwrap().extract_error().unwrap_err();
        Verdict::of(&error, &Location::parse(url).unwrap_or_else(|error| panic!("{error}")))
    }

    fn of_server(reply: &str) -> Verdict {
        verdict("redis://host/", reply)
    }

    #[test]
    fn what_passes_is_tried_again() {
        let replies = [
            "BUSY Redis is busy running a script.",
            "LOADING Redis is loading the dataset in memory",
            "READONLY You can't write against a read only replica.",
            "NOREPLICAS Not enough good replicas to write.",
            "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        ];
        for reply in replies {
            assert_eq!(of_server(reply), Verdict { is_away: true, hint: None }, "{reply}");
        }
        assert_eq!(of_server("ERR some other READONLY one"), Verdict { is_away: false, hint: None });
    }

    #[test]
    fn error_within_a_script_of_redis_6_is_found_in_its_text() {
        let of_script = |error: &str| {
            format!("ERR Error running script (call to f_8a): @user_script:9: @user_script: 9: {error}")
        };
        assert!(of_server(&of_script("-READONLY You can't write against a read only replica.")).is_away);
        let full = of_server(&of_script("-OOM command not allowed when used memory > 'maxmemory'."));
        assert_eq!(full, of_server("OOM command not allowed when used memory > 'maxmemory'."));
        assert!(!full.is_away && full.hint.unwrap().contains("maxmemory"));
    }

    #[test]
    fn redirection_passes_in_a_cluster_alone() {
        let moved = "MOVED 3999 10.0.0.1:6381";
        assert_eq!(verdict("redis+cluster://host", moved), Verdict { is_away: true, hint: None });
        let refused = of_server(moved);
        assert!(!refused.is_away && refused.hint.unwrap().contains("redis+cluster://"));
    }
}
