//! Memcached: [`MemcachedTreeLock`]; and [`look`], for one that only wants to see.
//!
//! ```no_run
//! use treelock::machine::Options;
//! use treelock::memcached::MemcachedTreeLock;
//!
//! let lock: MemcachedTreeLock = MemcachedTreeLock::connect("127.0.0.1:11211", "my-app:files", Options::new())?;
//! let guard = lock.lock(&["templates"], &["site/2026"])?;
//! println!("write with the fence {}", guard.fence());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Which servers
//!
//! One server, by its host and port, with or without `memcached://` or `memcache://` before it; the port is 11211 unless it is said.
//! A namespace is on one server: several servers can have a namespace each, and programs that share one must name the same server. The server
//! must be memcached 1.6 or newer, for its meta commands, and must not run without compare-and-set (`-C`). TLS and SASL are not there: keep the
//! server on a private network, as one does. A proxy between must not change the server while a connection lasts.
//!
//! # What is in the server
//!
//! | key | |
//! |---|---|
//! | `treelock:NAMESPACE` | all that decides who is let in: the current order, the number of its entries, and the last of them |
//! | `treelock:NAMESPACE:TAG` | older entries, and snapshots, which the first one names |
//!
//! The first value is only ever changed by compare-and-set. So whoever has changed it knows all that was there, *and a server that
//! forgets it, forgets all*: by eviction, by `flush_all`, by a restart. Then all guards of the namespace are lost, which each client is
//! told by its next call or its next renewal, and the namespace is closed for one time to live. If one of the other values is lost, a client that
//! needs it notices, and all begin anew in the same way. Nobody is let in too early by any of these.
//!
//! A cache that is full evicts what was used last longest ago, of items of about the same length. A namespace whose clients live is used each
//! third of a time to live, and all its values are as long as each other, so it keeps its place. A server may be so full when the lock
//! is opened that it has none: give it more memory, or open the lock when it begins.
//!
//! # Cost
//!
//! A request that meets nobody is one `ms` with compare-and-set, of 4 KB, and so is its release. One that another client was faster
//! than is two round trips more. A request that waits looks again after 1 ms, then after 2, and so on, up to the
//! [longest look](Options::longest_look), which is 50 ms here unless it is said. A look is an `mg` of 4 KB. For each 2 KB of entries
//! there is one more `ms`, and for each 1000 entries a snapshot and some `md`.
//!
//! # What it promises
//!
//! What all engines promise that have no clock of their own is told in [`engines`](crate::machine::engines#engines-without-a-clock).

mod value;

use crate::core::path::TreePath;
use crate::inspect::Snapshot;
use crate::machine::items::Items;
use crate::machine::items::store::{Created, Series, Store};
use crate::machine::pool::Pool;
use crate::machine::{EngineError, MachineTreeLock, Options, client, engine};
use crate::sync;
use memcache::exp::{
    DeleteOptions, Error, GetOptions, MetaCommand, MetaCommandResult, MetaConnection, ReturnCode, SetMode,
    SetOptions, build_delete, build_get, build_set, parse_meta_result,
};
use serde_bytes::ByteBuf;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};
use value::{Place, Value, pad, unpad};

/// A [`MachineTreeLock`] in a Memcached server.
#[derive(Debug)]
pub struct MemcachedTreeLock<P: ?Sized + TreePath = str>(pub(super) MachineTreeLock<P>);

impl<P: ?Sized + TreePath> MemcachedTreeLock<P> {
    /// Opens a namespace of a server, and begins it if nobody has.
    ///
    /// A namespace that is new is closed for one [time to live](Options::time_to_live): requests wait, and tries fail. Nothing tells a new one
    /// from one whose data was lost, whose holders may still believe in it.
    ///
    /// # Errors
    ///
    /// [`EngineError::Refused`], if the server or the namespace cannot be used; [`EngineError::Away`], if the server does not
    /// answer; [`EngineError::OtherFormat`].
    pub fn connect(server: &str, namespace: &str, options: Options) -> Result<Self, EngineError> {
        let engine = Items::new(Memcached::new(server, namespace)?, &options);
        MachineTreeLock::connect(Box::new(engine), options).map(MemcachedTreeLock)
    }
}

/// All that is held and awaited in a namespace, for one that does not open it; `None` if nobody has begun it, or its data is lost.
///
/// It changes nothing, and waits for nobody. What a client had that is gone is shown until others are let in.
///
/// # Errors
///
/// As [`MemcachedTreeLock::connect`]; and [`EngineError::Damaged`].
pub fn look(server: &str, namespace: &str) -> Result<Option<Snapshot>, EngineError> {
    let options = Options::new();
    client::look(&Items::new(Memcached::new(server, namespace)?, &options), &options)
}

impl<P: ?Sized + TreePath> Deref for MemcachedTreeLock<P> {
    type Target = MachineTreeLock<P>;

    fn deref(&self) -> &MachineTreeLock<P> {
        &self.0
    }
}

const PORT: u16 = 11211;
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_millis(50);

/// So long a key may be, less what stands around a namespace.
const LONGEST_NAME: usize = memcache::exp::MAX_KEY_LENGTH - "treelock::0123456789abcdef".len();

/// The store of a namespace.
struct Memcached {
    links: Pool<Link>,
    host: String,
    port: u16,
    key: String,
}

/// A connection, and what was read last by it.
///
/// That is good for a compare-and-set by this connection alone: a server that was restarted counts anew, so that what another one has
/// changed may be of the number that was read here before.
struct Link {
    connection: MetaConnection,
    copy: Option<Copy>,
}

struct Copy {
    /// The number that the server compares.
    unique: u64,
    value: Value,
}

/// What is to become of a value.
enum Change<R> {
    /// It stays as it is.
    Stays(R),
    /// This takes its place. The value of the tag is written before.
    Put { value: Value, besides: Option<(u64, Vec<u8>)>, then: R },
    /// What is known may be old: read it anew.
    Reads,
}

/// That an order is not there: see [`Store`].
fn lost() -> Vec<u8> {
    Vec::new()
}

impl Memcached {
    fn new(server: &str, namespace: &str) -> Result<Self, EngineError> {
        engine::check_name(namespace)?;
        if namespace.len() > LONGEST_NAME || namespace.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(EngineError::refused(format!(
                "the namespace {namespace:?} cannot be a key of Memcached: choose one of {LONGEST_NAME} bytes or less, without \
                 spaces and control characters"
            )));
        }
        let (host, port) = host_of(server).map_err(EngineError::refused)?;
        Ok(Memcached { links: Pool::default(), host, port, key: format!("treelock:{namespace}") })
    }

    fn key_of(&self, tag: u64) -> String {
        format!("{}:{tag:016x}", self.key)
    }

    fn connect(&self, deadline: Instant) -> Result<Link, EngineError> {
        let away = |error: io::Error| EngineError::Away(Arc::new(error));
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{} has no address", self.host));
        for address in (self.host.as_str(), self.port).to_socket_addrs().map_err(away)? {
            match TcpStream::connect_timeout(&address, time_until(deadline)) {
                Ok(stream) => {
                    stream.set_nodelay(true).map_err(away)?;
                    return Ok(Link { connection: MetaConnection::from_stream(stream), copy: None });
                }
                Err(error) => last = error,
            }
        }
        Err(away(last))
    }

    fn run<R>(
        &self,
        deadline: Instant,
        run: impl FnOnce(&mut Link) -> Result<R, EngineError>,
    ) -> Result<R, EngineError> {
        self.links.run(|| self.connect(deadline), run)
    }

    /// Has the value changed, by what is known of it, or, if that is old, by what is there.
    fn change<R>(
        &self,
        deadline: Instant,
        mut change: impl FnMut(Option<&Value>, bool) -> Change<R>,
    ) -> Result<R, EngineError> {
        self.run(deadline, |link| {
            let mut is_fresh = false;
            loop {
                match change(link.copy.as_ref().map(|copy| &copy.value), is_fresh) {
                    Change::Stays(then) => return Ok(then),
                    Change::Put { value, besides, then } => {
                        if link.put(self, value, besides, deadline)? {
                            return Ok(then);
                        }
                    }
                    Change::Reads => {}
                }
                if is_fresh && Instant::now() >= deadline {
                    return Err(EngineError::away("many clients change the value at a time"));
                }
                link.read(self, deadline)?;
                is_fresh = true;
            }
        })
    }

    /// What a value says that is read now.
    fn read<R>(
        &self,
        deadline: Instant,
        run: impl FnOnce(&mut Link, Option<Value>) -> Result<R, EngineError>,
    ) -> Result<R, EngineError> {
        self.run(deadline, |link| {
            link.read(self, deadline)?;
            let value = link.copy.as_ref().map(|copy| copy.value.clone());
            run(link, value)
        })
    }
}

fn time_until(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

impl Link {
    fn ask(
        &mut self,
        command: Result<MetaCommand, Error>,
        deadline: Instant,
    ) -> Result<MetaCommandResult, EngineError> {
        self.connection.set_io_timeout(Some(time_until(deadline)));
        let answer = command.and_then(|command| self.connection.execute(&command)).and_then(parse_meta_result);
        answer.map_err(told)
    }

    /// Reads the value.
    fn read(&mut self, server: &Memcached, deadline: Instant) -> Result<(), EngineError> {
        self.copy = None;
        let mut options = GetOptions::default();
        (options.value, options.return_cas) = (true, true);
        let answer = self.ask(build_get(&server.key, &options), deadline)?;
        if let Some(bytes) = answer.value {
            let unique = answer.cas.filter(|unique| *unique != 0);
            let unique =
                unique.ok_or_else(|| EngineError::refused("it runs without compare-and-set: leave out -C"))?;
            self.copy = Some(Copy { unique, value: Value::of_bytes(&bytes) });
        }
        Ok(())
    }

    /// One of the values that the first one names.
    fn read_tag(&mut self, server: &Memcached, tag: u64, deadline: Instant) -> Result<Option<Vec<u8>>, EngineError> {
        let mut options = GetOptions::default();
        options.value = true;
        Ok(self.ask(build_get(server.key_of(tag), &options), deadline)?.value)
    }

    /// Puts a value in the place of the one that is known; whether that was there yet.
    fn put(
        &mut self,
        server: &Memcached,
        value: Value,
        besides: Option<(u64, Vec<u8>)>,
        deadline: Instant,
    ) -> Result<bool, EngineError> {
        let new = besides.as_ref().map(|(tag, _)| *tag);
        if let Some((tag, bytes)) = besides {
            let answer = self.ask(build_set(server.key_of(tag), bytes, &SetOptions::default()), deadline)?;
            if answer.rc != ReturnCode::Hd {
                return Err(EngineError::away(format!("it answered {:?} to a set", answer.rc)));
            }
        }
        let before = self.copy.take();
        let mut options = SetOptions::default();
        options.return_cas = true;
        match &before {
            Some(copy) => options.compare_cas = Some(copy.unique),
            None => options.mode = SetMode::Add,
        }
        let answer = self.ask(build_set(&server.key, value.to_bytes(), &options), deadline)?;
        let is_put = match answer.rc {
            ReturnCode::Hd => true,
            // It has changed, or is not there, or is there already.
            ReturnCode::Ex | ReturnCode::Nf | ReturnCode::Ns => false,
            other => return Err(EngineError::away(format!("it answered {other:?} to a set"))),
        };
        let unneeded: Vec<u64> = if is_put {
            before.map(|copy| copy.value.forgotten(&value)).unwrap_or_default()
        } else {
            new.into_iter().collect()
        };
        for tag in unneeded {
            self.ask(build_delete(server.key_of(tag), &DeleteOptions::default()), deadline)?;
        }
        if is_put {
            self.copy = answer.cas.map(|unique| Copy { unique, value });
        }
        Ok(is_put)
    }

    /// The entries from one on that are where it is; that the order is lost, if they are not.
    fn entries(
        &mut self,
        server: &Memcached,
        value: &Value,
        from: u64,
        deadline: Instant,
    ) -> Result<Vec<Vec<u8>>, EngineError> {
        let (tag, skip) = match value.place(from) {
            Place::Here(rest) => return Ok(rest.iter().map(|entry| entry.to_vec()).collect()),
            Place::Nowhere => return Ok(Vec::new()),
            Place::InChunk { tag, skip } => (tag, skip),
        };
        let chunk = self.read_tag(server, tag, deadline)?;
        if let Some(entries) = chunk.as_deref().and_then(Value::entries_of) {
            return Ok(entries.into_iter().skip(skip).map(ByteBuf::into_vec).collect());
        }
        // It may have been trimmed meanwhile.
        self.read(server, deadline)?;
        let is_named = self.copy.as_ref().is_none_or(|copy| copy.value.names(tag));
        Ok(if is_named { vec![lost()] } else { Vec::new() })
    }
}

impl Store for Memcached {
    fn create(&self, series: Series, number: u64, item: &[u8], deadline: Instant) -> Result<Created, EngineError> {
        let tag = sync::random_seed();
        match series {
            Series::Orders => self.change(deadline, |value, is_fresh| match value {
                Some(value) if value.number >= number => Change::Stays(Created::Taken(value.order.clone())),
                None if !is_fresh => Change::Reads,
                _ => Change::Put { value: Value::of_order(number, item), besides: None, then: Created::New },
            }),
            Series::Entries(order) => {
                let there = self.change(deadline, |value, is_fresh| match value {
                    Some(known) if known.is_of(order) && known.next() == number => {
                        let mut value = known.clone();
                        let chunk = value.append(order, item, tag);
                        Change::Put { value, besides: chunk.map(|chunk| (tag, chunk)), then: None }
                    }
                    _ if !is_fresh => Change::Reads,
                    value => Change::Stays(Some(value.filter(|value| value.is_of(order)).cloned())),
                })?;
                match there {
                    None => Ok(Created::New),
                    Some(None) => Ok(Created::Taken(lost())),
                    Some(Some(value)) => {
                        let entries = self.run(deadline, |link| link.entries(self, &value, number, deadline))?;
                        Ok(Created::Taken(entries.into_iter().next().unwrap_or_else(lost)))
                    }
                }
            }
            Series::Snapshots(order) => self.change(deadline, |value, is_fresh| match value {
                Some(known) if known.is_of(order) && known.snapshots.iter().all(|(kept, _)| *kept < number) => {
                    let mut value = known.clone();
                    value.snapshots.push((number, tag));
                    Change::Put { value, besides: Some((tag, pad(item))), then: Created::New }
                }
                _ if !is_fresh => Change::Reads,
                _ => Change::Stays(Created::Taken(lost())),
            }),
        }
    }

    fn read(&self, series: Series, from: u64, most: usize, deadline: Instant) -> Result<Vec<Vec<u8>>, EngineError> {
        self.read(deadline, |link, value| {
            let mut items = match (series, value) {
                (Series::Orders, Some(value)) if value.number == from => vec![value.order],
                (Series::Orders, _) => Vec::new(),
                (Series::Entries(order), Some(value)) if value.is_of(order) => {
                    link.entries(self, &value, from, deadline)?
                }
                (Series::Snapshots(order), Some(value)) if value.is_of(order) => {
                    let tag = value.snapshots.iter().find(|(number, _)| *number == from).map(|(_, tag)| *tag);
                    let snapshot = tag.map(|tag| link.read_tag(self, tag, deadline)).transpose()?;
                    snapshot.map(|snapshot| unpadded(&snapshot.unwrap_or_default())).into_iter().collect()
                }
                _ => vec![lost()],
            };
            items.truncate(most);
            Ok(items)
        })
    }

    fn newest(&self, series: Series, deadline: Instant) -> Result<Option<u64>, EngineError> {
        self.read(deadline, |_, value| {
            let Some(value) = value else { return Ok(None) };
            Ok(match series {
                Series::Orders => Some(value.number),
                Series::Entries(order) if value.is_of(order) => value.next().checked_sub(1),
                Series::Snapshots(order) if value.is_of(order) => value.snapshots.last().map(|(number, _)| *number),
                _ => None,
            })
        })
    }

    fn trim(&self, series: Series, below: u64, deadline: Instant) -> Result<(), EngineError> {
        self.change(deadline, |value, is_fresh| {
            let mut kept = match value {
                Some(value) if is_fresh => value.clone(),
                None if is_fresh => return Change::Stays(()),
                _ => return Change::Reads,
            };
            match series {
                Series::Entries(order) if kept.is_of(order) => kept.trim_entries(below),
                Series::Snapshots(order) if kept.is_of(order) => kept.trim_snapshots(below),
                // An older order has nothing left.
                _ => {}
            }
            if value == Some(&kept) {
                return Change::Stays(());
            }
            Change::Put { value: kept, besides: None, then: () }
        })
    }

    /// Entries are in one value with the order.
    fn may_be_emptied(&self) -> bool {
        false
    }

    fn looks(&self) -> (Duration, Duration) {
        (FIRST_LOOK, LONGEST_LOOK)
    }
}

/// What was padded, or what is taken for lost.
fn unpadded(bytes: &[u8]) -> Vec<u8> {
    unpad(bytes).map_or_else(lost, <[u8]>::to_vec)
}

/// What is not better the next time is a refusal.
fn told(error: Error) -> EngineError {
    match error {
        Error::Rejected(why) => EngineError::refused(format!("it is no memcached of 1.6 or newer: {why}")),
        Error::Server(why) if why.contains("too large") => EngineError::refused(format!(
            "what the namespace has is larger than an item may be: {why}; let the server take larger ones (-I)"
        )),
        Error::Usage(why) => EngineError::refused(why),
        error => EngineError::Away(Arc::new(error)),
    }
}

/// The host and the port.
fn host_of(server: &str) -> Result<(String, u16), String> {
    let refused = |why: &str| Err(format!("the server {server:?} cannot be used: {why}; give it as host:port"));
    let address = match server.split_once("://") {
        Some(("memcached" | "memcache", address)) => address.trim_end_matches('/'),
        Some((scheme, _)) => return refused(&format!("{scheme}:// is another service")),
        None => server,
    };
    if address.contains([',', ' ']) {
        return refused("it is a list, and a namespace is on one server");
    }
    let (host, port) = match address.rsplit_once(':') {
        // The colons of an address of IPv6 stand in brackets, if a port is there.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => match port.parse() {
            Ok(port) => (host, port),
            Err(_) => return refused(&format!("{port:?} is no port")),
        },
        _ => (address, PORT),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return refused("it has no host");
    }
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_is_a_host_and_a_port() {
        for (server, host, port) in [
            ("cache", "cache", 11211),
            ("127.0.0.1:7", "127.0.0.1", 7),
            ("memcached://cache:7/", "cache", 7),
            ("memcache://[::1]:7", "::1", 7),
            ("::1", "::1", 11211),
            ("[::1]", "::1", 11211),
        ] {
            assert_eq!(host_of(server), Ok((host.to_owned(), port)), "{server}");
        }
        for (server, why) in
            [("", "no host"), ("redis://x", "another service"), ("a:b", "no port"), ("a:1,b:2", "one server")]
        {
            let told = host_of(server).unwrap_err();
            assert!(told.contains(why), "{server}: {told}");
        }
    }

    #[test]
    fn name_that_is_no_key_is_refused() {
        for name in ["", "a b", "a\u{7f}", &"x".repeat(LONGEST_NAME + 1)] {
            let made = Memcached::new("cache", name).map(drop);
            assert!(matches!(made, Err(EngineError::Refused(_))), "{name:?}");
        }
        assert!(Memcached::new("cache", &"x".repeat(LONGEST_NAME)).is_ok());
    }
}
