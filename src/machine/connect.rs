//! Which engine a URL means.

use crate::core::path::TreePath;
use crate::inspect::Snapshot;
use crate::machine::{EngineError, MachineTreeLock, Options};

/// Opens a namespace of the engine that a URL names, and begins it if nobody has: for programs whose users choose the engine.
///
/// | URL | feature | |
/// |---|---|---|
/// | `redis://`, `rediss://`, `redis+sentinel://`, `redis+cluster://`, `unix://`, and the same with `valkey` | `redis` | [`redis`](https://docs.rs/treelock/latest/treelock/machine/redis/#urls) |
/// | `postgresql://`, `postgres://` | `postgres` | [`postgres`](https://docs.rs/treelock/latest/treelock/machine/postgres/#urls) |
/// | `memcached://HOST:PORT`, `memcache://HOST:PORT` | `memcached` | [`memcached`](https://docs.rs/treelock/latest/treelock/machine/memcached/) |
/// | `dynamodb://TABLE` | `dynamodb` | [`dynamodb`](https://docs.rs/treelock/latest/treelock/machine/dynamodb/) |
/// | `s3://BUCKET/PREFIX`, `gs://`, `az://`, `file:///DIRECTORY`, and what `object_store` knows besides | `object-store` | [`bucket`](https://docs.rs/treelock/latest/treelock/machine/bucket/): the namespace is one more part of the prefix |
///
/// ```
/// use treelock::machine::{self, EngineError, Options};
///
/// let opened = machine::connect::<str>("carrier-pigeon://roof", "my-app:files", Options::new());
/// assert!(matches!(opened, Err(EngineError::Refused(_))));
/// ```
///
/// # Errors
///
/// [`EngineError::Refused`], if no engine has such URLs, or its feature is not enabled; and those of the engine.
pub fn connect<P: ?Sized + TreePath>(
    url: &str,
    namespace: &str,
    options: Options,
) -> Result<MachineTreeLock<P>, EngineError> {
    match Kind::of(url)? {
        #[cfg(feature = "redis")]
        Kind::Redis => super::redis::RedisTreeLock::connect(url, namespace, options).map(|lock| lock.0),
        #[cfg(feature = "postgres")]
        Kind::Postgres => super::postgres::PostgresTreeLock::connect(url, namespace, options).map(|lock| lock.0),
        #[cfg(feature = "memcached")]
        Kind::Memcached => super::memcached::MemcachedTreeLock::connect(url, namespace, options).map(|lock| lock.0),
        #[cfg(feature = "dynamodb")]
        Kind::DynamoDb => {
            super::dynamodb::DynamoDbTreeLock::connect(table(url), namespace, options).map(|lock| lock.0)
        }
        #[cfg(feature = "object-store")]
        Kind::Bucket => {
            super::engine::check_name(namespace)?;
            super::bucket::BucketTreeLock::connect(&below(url, namespace), options).map(|lock| lock.0)
        }
        #[allow(unreachable_patterns, reason = "all may be built in")]
        kind => unreachable!("{kind:?} is built in"),
    }
}

/// All that is held and awaited in a namespace, for one that does not open it; `None` if nobody has begun it, or its data is lost.
///
/// It waits for nobody, and begins nothing. What a client had that is gone is shown until others are let in.
///
/// # Errors
///
/// As [`connect`]; and [`EngineError::Damaged`].
pub fn look(url: &str, namespace: &str) -> Result<Option<Snapshot>, EngineError> {
    match Kind::of(url)? {
        #[cfg(feature = "redis")]
        Kind::Redis => super::redis::look(url, namespace),
        #[cfg(feature = "postgres")]
        Kind::Postgres => super::postgres::look(url, namespace),
        #[cfg(feature = "memcached")]
        Kind::Memcached => super::memcached::look(url, namespace),
        #[cfg(feature = "dynamodb")]
        Kind::DynamoDb => super::dynamodb::look(table(url), namespace),
        #[cfg(feature = "object-store")]
        Kind::Bucket => {
            super::engine::check_name(namespace)?;
            super::bucket::look_at(&below(url, namespace))
        }
        #[allow(unreachable_patterns, reason = "all may be built in")]
        kind => unreachable!("{kind:?} is built in"),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Redis,
    Postgres,
    Memcached,
    DynamoDb,
    Bucket,
}

impl Kind {
    /// One that is built in.
    fn of(url: &str) -> Result<Self, EngineError> {
        let Some((scheme, _)) = url.split_once("://") else {
            return Err(EngineError::refused("the URL has no ://, as in redis://127.0.0.1"));
        };
        let (kind, feature, is_built) = match scheme.split('+').next().unwrap_or_default() {
            "redis" | "rediss" | "valkey" | "valkeys" | "unix" => (Kind::Redis, "redis", cfg!(feature = "redis")),
            "postgresql" | "postgres" => (Kind::Postgres, "postgres", cfg!(feature = "postgres")),
            "memcached" | "memcache" => (Kind::Memcached, "memcached", cfg!(feature = "memcached")),
            "dynamodb" => (Kind::DynamoDb, "dynamodb", cfg!(feature = "dynamodb")),
            "s3" | "s3a" | "gs" | "az" | "adl" | "azure" | "abfs" | "abfss" | "file" | "http" | "https" => {
                (Kind::Bucket, "object-store", cfg!(feature = "object-store"))
            }
            _ => return Err(EngineError::refused(format!("no engine has URLs that begin with {scheme}://"))),
        };
        match is_built {
            true => Ok(kind),
            false => Err(EngineError::refused(format!("{scheme}:// needs the feature {feature:?} of treelock"))),
        }
    }
}

#[cfg(feature = "dynamodb")]
fn table(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, table)| table.trim_end_matches('/'))
}

/// The URL of the namespace's own prefix.
#[cfg(feature = "object-store")]
fn below(url: &str, namespace: &str) -> String {
    let (place, query) =
        url.split_once('?').map_or((url, String::new()), |(place, query)| (place, format!("?{query}")));
    let name: String = url::form_urlencoded::byte_serialize(namespace.as_bytes()).collect();
    // A space is a plus there, and not in a path.
    format!("{}/{}{query}", place.trim_end_matches('/'), name.replace('+', "%20"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_of_no_engine_is_told() {
        for (url, why) in [("", "://"), ("host:1", "://"), ("ftp://host", "ftp://"), ("redis", "://")] {
            let told = look(url, "test").unwrap_err().to_string();
            assert!(told.contains(why), "{url}: {told}");
        }
    }

    #[test]
    fn engine_that_is_not_built_in_names_its_feature() {
        for (url, feature, is_built) in [
            ("valkey+sentinel://host/main", "redis", cfg!(feature = "redis")),
            ("postgres://host", "postgres", cfg!(feature = "postgres")),
            ("memcached://host", "memcached", cfg!(feature = "memcached")),
            ("dynamodb://locks", "dynamodb", cfg!(feature = "dynamodb")),
            ("s3://bucket", "object-store", cfg!(feature = "object-store")),
        ] {
            match Kind::of(url) {
                Ok(_) => assert!(is_built, "{url}"),
                Err(error) => assert!(!is_built && error.to_string().contains(feature), "{url}: {error}"),
            }
        }
    }

    #[test]
    #[cfg(feature = "object-store")]
    fn namespace_is_a_part_of_the_prefix() {
        assert_eq!(below("s3://bucket/locks/?region=x", "my app/1"), "s3://bucket/locks/my%20app%2F1?region=x");
        assert_eq!(below("file:///var/locks", "a:b"), "file:///var/locks/a%3Ab");
    }
}
