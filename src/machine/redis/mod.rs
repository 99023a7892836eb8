//! Redis, Valkey, and what speaks their protocol and runs Lua: [`RedisTreeLock`]; and [`look`], for one that only wants to see.
//!
//! ```no_run
//! use treelock::machine::Options;
//! use treelock::redis::RedisTreeLock;
//!
//! let lock: RedisTreeLock = RedisTreeLock::connect("redis://127.0.0.1/", "my-app:files", Options::new())?;
//! let guard = lock.lock(&["templates"], &["site/2026"])?;
//! println!("write with the fence {}", guard.fence());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is in the server
//!
//! Four keys, in one hash slot: `{treelock:my-app:files}:meta`, `:log`, `:live` and `:snap`. A script changes them, atomically:
//! nobody ever has to try again. But most calls, those of a request and of a release, add an entry to the stream and
//! read what is new there, by two plain commands in one round trip.
//!
//! # URLs
//!
//! | | |
//! |---|---|
//! | `redis://user:password@host:6379/0` | one server, and the number of a database in it |
//! | `unix:///run/redis.sock?user=..&pass=..&db=0` | the same over a socket of this host |
//! | `redis+sentinel://user:password@host:26379,host/mymaster/0` | the master of that name, as a sentinel tells |
//! | `redis+cluster://user:password@host:6379,host` | the node of a cluster that has the slot of the namespace, as another node tells |
//! | `rediss://`, `rediss+sentinel://`, `rediss+cluster://` | the same over TLS, with the feature `redis-tls` |
//!
//! `valkey` and `valkeys` may stand for `redis` and `rediss`. The ports and the database are those above unless they are said. The
//! user may be left out, as in `redis://:password@host`. In a user or a password `@` is written as `%40`, `/` as `%2F`, `?` as
//! `%3F`, `#` as `%23` and `%` as `%25`. Parameters follow a `?`, with `&` between them:
//!
//! | | |
//! |---|---|
//! | `wait_replicas=1` | so many replicas acknowledge what a call writes; see below |
//! | `wait_ms=1000` | within such a time: a second unless it is said |
//! | `ssl_ca_certs=/path/ca.pem` | the authorities that may sign the server's certificate, instead of those that this machine trusts |
//! | `ssl_certfile=/path/cert.pem`, `ssl_keyfile=/path/key.pem` | the client's own certificate, and its key |
//! | `sentinel_username=..`, `sentinel_password=..` | for the sentinels; what stands before the hosts is for the server |
//! | `protocol=resp3` | version 3 of the protocol |
//!
//! Files have the PEM format, and are read when the lock is opened. This machine's trust can also be set by `$SSL_CERT_FILE`.
//!
//! # Sentinels and clusters
//!
//! After each lost connection a client asks anew where the server is. Meanwhile requests wait as they do for any server that is
//! away, for the [patience](Options::patience) at most. So guards survive a failover that takes less than the time to live, if the
//! next server has all that was written, and its clock differs from that of the last one by less than the
//! [clock margin](Options::clock_margin). Requests wait as well while a cluster moves the slot of the namespace to another node.
//!
//! # What a server may lose
//!
//! A restart without its data, `FLUSHALL`, a deleted or evicted key: whatever is missing is noticed by the next client that
//! renews its session, if no call before does. All guards of the namespace are lost then, and it is closed for one time to live. A
//! replica that is promoted and lacks the newest writes is noticed by the clients that have seen them, when they renew their
//! session at the latest, which is a third of the time to live away at most; whatever was granted by the lost writes, or kept by
//! a renewal that is lost, can be granted again before. An old master that goes on beside a new one grants what the new one grants
//! too: for as long as a partition lasts, and for some ten seconds after `SENTINEL FAILOVER`. The fences of what is granted later are
//! higher, if the clocks of both servers agree; so use them, and replicas that acknowledge.
//!
//! With `wait_replicas=N` a call that writes has an answer when N replicas have what it wrote, by the command `WAIT` in the same
//! round trip. Otherwise it has failed as one without an answer, and is made again until the patience is over.
//!
//! * A replica that is promoted has all that was granted, released and renewed, if it is one of those N. That is sure if N is the
//!   number of all replicas; sentinels and clusters prefer the replica that has most, and do not promise it.
//! * A master that N replicas do not follow grants nothing: it does no harm that it goes on.
//! * Each request and release takes as long as the slowest of the N, and none succeeds while fewer answer. Sessions are not renewed
//!   then either, so guards are lost if that lasts for a time to live.
//! * A client may see an entry before replicas have it. If the master dies at that moment, all guards are lost, as above.
//! * A replica that is restarted without its data has acknowledged in vain.
//!
//! The server's own `min-replicas-to-write` is weaker: it looks at what replicas said some seconds ago.
//!
//! Configure `noeviction` for a server that keeps locks. One that is full refuses requests, and renewals too: what is held is lost
//! if that lasts for a time to live. Redis 6.2 or newer.
//!
//! # Rights
//!
//! A user of the server needs no more than these:
//!
//! ```text
//! ACL SETUSER locker on >secret ~{treelock:my-app:files}:*
//!     +evalsha +script|load +xadd +xrange +xread
//!     +del +exists +get +hmget +hset +set +time +xlen +xrevrange +xtrim
//!     +zadd +zcard +zrange +zrangebyscore +zrem +zscore
//! ```
//!
//! and `+wait` for `wait_replicas`, `+cluster|keyslot +cluster|slots` in a cluster, and `+select` for a database other than 0. Sentinels
//! are asked for `SENTINEL GET-MASTER-ADDR-BY-NAME`.

mod connection;
#[cfg(test)]
mod differential;
mod error;
mod url;

use crate::core::path::TreePath;
use crate::inspect::Snapshot;
use crate::machine::engine::{
    Call, Engine, Entry, FORMAT, Identity, MOST_ENTRIES, News, Position, Reply, Says, SessionId, Short,
};
use crate::machine::redis::connection::{Access, Connections, Link};
use crate::machine::redis::url::Location;
use crate::machine::{EngineError, MachineTreeLock, Options, client, engine};
use redis::{ConnectionLike, RedisError, Script, Value};
use std::ops::Deref;
use std::time::{Duration, Instant};

/// A [`MachineTreeLock`] in a Redis or Valkey server.
#[derive(Debug)]
pub struct RedisTreeLock<P: ?Sized + TreePath = str>(pub(super) MachineTreeLock<P>);

impl<P: ?Sized + TreePath> RedisTreeLock<P> {
    /// Opens a namespace of a server, and begins it if nobody has.
    ///
    /// The [header of this module](self) tells of the forms of the URL. A namespace that is new is closed for one
    /// [time to live](Options::time_to_live): requests wait, and tries fail. Nothing tells a new one from one whose data was lost,
    /// whose holders may still believe in it.
    ///
    /// # Errors
    ///
    /// [`EngineError::Refused`], if the URL cannot be used or the server will not; [`EngineError::Away`], if it does not
    /// answer; [`EngineError::OtherFormat`].
    pub fn connect(url: &str, namespace: &str, options: Options) -> Result<Self, EngineError> {
        let engine = Redis::open(url, namespace)?;
        MachineTreeLock::connect(Box::new(engine), options).map(RedisTreeLock)
    }
}

/// All that is held and awaited in a namespace, for one that does not open it; `None` if nobody has begun it, or its data is lost.
///
/// It changes nothing, and waits for nobody. What a client had that is gone is shown until others are let in.
///
/// # Errors
///
/// As [`RedisTreeLock::connect`]; and [`EngineError::Damaged`].
pub fn look(url: &str, namespace: &str) -> Result<Option<Snapshot>, EngineError> {
    client::look(&Redis::open(url, namespace)?, &Options::new())
}

impl<P: ?Sized + TreePath> Deref for RedisTreeLock<P> {
    type Target = MachineTreeLock<P>;

    fn deref(&self) -> &MachineTreeLock<P> {
        &self.0
    }
}

/// With so many entries in one millisecond the short way is not taken. So many clients may take it at once all the same.
const MOST_IN_A_MILLISECOND: u64 = 500;

/// The adapter.
struct Redis {
    connections: Connections,
    keys: [String; 4],
    exchange: Script,
}

impl Redis {
    fn open(url: &str, namespace: &str) -> Result<Self, EngineError> {
        engine::check_name(namespace)?;
        let location =
            Location::parse(url).map_err(|why| EngineError::refused(format!("the URL cannot be used: {why}")))?;
        let keys = ["meta", "log", "live", "snap"].map(|key| format!("{{treelock:{namespace}}}:{key}"));
        Ok(Redis {
            connections: Connections::new(location, namespace, &keys[0]),
            keys,
            exchange: Script::new(include_str!("exchange.lua")),
        })
    }

    /// The long way, which takes whatever a client says.
    fn long(&self, connection: &mut Link, call: &Call) -> Result<Value, RedisError> {
        let mut run = self.exchange.prepare_invoke();
        for key in &self.keys {
            run.key(key);
        }
        run.arg(FORMAT).arg(call.fresh.to_text()).arg(call.time_to_live.as_micros() as u64);
        let of = |session: &SessionId| (session.identity.to_text(), name_of(session));
        let (kind, (identity, member)) = match &call.says {
            Says::Joins { .. } => ("joins", Default::default()),
            Says::Looks { .. } => ("looks", Default::default()),
            Says::GoesOn { session, .. } => ("goes on", of(session)),
            Says::Leaves { session } => ("leaves", of(session)),
            Says::Breaks { identity } => ("breaks", (identity.to_text(), String::new())),
        };
        run.arg(kind).arg(identity).arg(member);
        let yes = |is: bool| if is { "1" } else { "" };
        match &call.says {
            Says::Joins { events, insists } => {
                run.arg("").arg("").arg(&events[..]).arg("").arg("").arg(yes(*insists))
            }
            Says::GoesOn { since, renews, batch, snapshot, .. } => {
                run.arg(since.0).arg(yes(*renews)).arg(batch.as_deref().unwrap_or_default());
                match snapshot {
                    Some((position, bytes)) => run.arg(position.0).arg(&bytes[..]).arg(""),
                    None => run.arg("").arg("").arg(""),
                }
            }
            Says::Looks { since } => run.arg(since.0).arg("").arg("").arg("").arg("").arg(""),
            Says::Leaves { .. } | Says::Breaks { .. } => run.arg("").arg("").arg("").arg("").arg("").arg(""),
        };
        run.arg(MOST_ENTRIES + 1);
        run.invoke(connection)
    }

    /// The short way, for most calls (see the header of `engine.rs`). `None`: it must take the long way.
    fn short(&self, connection: &mut Link, call: Short<'_>) -> Result<Option<Reply>, RedisError> {
        let Short { session, since, batch, wants_news } = call;
        // The server counts entries within a millisecond, beyond a thousand if its clock is set back.
        if since.0 % 1000 >= MOST_IN_A_MILLISECOND {
            return Ok(None);
        }
        let (mut sent, mut answers) = (Vec::new(), 0);
        if let Some(batch) = batch {
            let mut adds = redis::cmd("XADD");
            // Where there is no log, none is made.
            adds.arg(&self.keys[1]).arg("NOMKSTREAM").arg("*").arg(name_of(&session)).arg(batch);
            adds.write_packed_command(&mut sent);
            answers += 1;
        }
        if wants_news {
            let mut reads = redis::cmd("XRANGE");
            // With the one that is known.
            reads.arg(&self.keys[1]).arg(id_of(since)).arg("+").arg("COUNT").arg(MOST_ENTRIES + 1);
            reads.write_packed_command(&mut sent);
            answers += 1;
        }
        // A pipeline of the crate would turn over each part of an answer to look for errors, and these have none inside.
        let mut last = Value::Nil;
        for answer in connection.req_packed_commands(&sent, 0, answers)? {
            last = match answer {
                Value::ServerError(error) => return Err(error.into()),
                answer => answer,
            };
        }
        if !wants_news {
            return Ok(position_of(last).map(|_| Reply::Written));
        }
        let entries: Option<Vec<_>> = array(last).and_then(|all| all.into_iter().map(entry_of).collect());
        Ok(entries.and_then(|entries| call.news(entries)))
    }
}

impl Engine for Redis {
    fn exchange(&self, call: &Call, deadline: Instant) -> Result<Reply, EngineError> {
        let access = match &call.says {
            Says::Looks { .. } | Says::GoesOn { renews: false, batch: None, snapshot: None, .. } => Access::Reads,
            _ => Access::Writes,
        };
        let reply = self.connections.run(deadline, access, |connection| {
            if let Some(short) = call.says.short() {
                if let Some(reply) = self.short(connection, short)? {
                    return Ok(Some(reply));
                }
            }
            self.long(connection, call).map(reply_of)
        })?;
        reply.ok_or_else(|| EngineError::refused("its answer is not that of the script"))
    }

    fn await_entry(&self, since: Position, deadline: Instant) -> Result<(), EngineError> {
        let rest = deadline.saturating_duration_since(Instant::now());
        // The server may be late.
        let answered = deadline + Duration::from_secs(1);
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(1).arg("BLOCK").arg(rest.as_millis().max(1) as u64);
        read.arg("STREAMS").arg(&self.keys[1]).arg(id_of(since));
        self.connections.run(answered, Access::Reads, |connection| read.query::<Value>(connection)).map(drop)
    }
}

fn reply_of(value: Value) -> Option<Reply> {
    let mut fields = array(value)?.into_iter();
    let mut next = || fields.next();
    Some(match &*text(next()?)? {
        "lost" => Reply::OrderLost,
        "none" => Reply::NoOrder,
        "lives" => Reply::OtherTimeToLive(Duration::from_micros(number(next()?)?)),
        "expired" => Reply::Expired,
        "format" => Reply::OtherFormat(text(next()?)?),
        "news" => {
            let (kept, head) = (number(next()?), position(next()?)?);
            let first_end = number(next()?).map(Duration::from_micros);
            let time_to_live = number(next()?).map(Duration::from_micros);
            let closed = number(next()?).map(Duration::from_micros);
            let identity = Identity::of_text(&text(next()?)?)?;
            let session = session_of(identity, &text(next()?)?)?;
            let snapshot = match <[Value; 2]>::try_from(array(next()?)?) {
                Ok([snapped, snapshot]) => Some((position(snapped)?, bytes(snapshot)?)),
                Err(_) => None,
            };
            // One that no treelock has written: no session can take it.
            let foreign = || Entry { position: Position(0), member: 0, key: 0, events: Vec::new() };
            let entries = array(next()?)?.into_iter().map(|entry| entry_of(entry).unwrap_or_else(foreign)).collect();
            Reply::News(News { session, snapshot, entries, head, kept, first_end, time_to_live, closed })
        }
        _ => return None,
    })
}

fn entry_of(value: Value) -> Option<Entry> {
    let [id, fields] = <[Value; 2]>::try_from(array(value)?).ok()?;
    let position = position_of(id)?;
    let [member, events] = <[Value; 2]>::try_from(array(fields)?).ok()?;
    let (member, key) = author_of(&text(member)?)?;
    Some(Entry { position, member, key, events: bytes(events)? })
}

/// How the scripts name a session, beside its order.
fn name_of(session: &SessionId) -> String {
    format!("{}.{:016x}", session.member, session.key)
}

/// The id of the entry at a position. See `exchange.lua`.
fn id_of(position: Position) -> String {
    format!("{}-{}", position.0 / 1000, position.0 % 1000)
}

/// The position that an id tells, if it is one that treelock gives.
fn position_of(id: Value) -> Option<Position> {
    let id = text(id)?;
    let (millis, rest) = id.split_once('-')?;
    let (millis, rest) = (millis.parse::<u64>().ok()?, rest.parse::<u64>().ok()?);
    (rest < 1000).then(|| Some(Position(millis.checked_mul(1000)? + rest)))?
}

/// Nobody has the name of the first entry of an order, which is empty, nor of one that looks.
fn author_of(name: &str) -> Option<(u64, u64)> {
    let SessionId { member, key, .. } = SessionId::nobody(Identity([0; 2]));
    match name.split_once('.') {
        None => name.is_empty().then_some((member, key)),
        Some((member, key)) => Some((member.parse().ok()?, u64::from_str_radix(key, 16).ok()?)),
    }
}

fn session_of(identity: Identity, name: &str) -> Option<SessionId> {
    let (member, key) = author_of(name)?;
    Some(SessionId { identity, member, key })
}

/// `None` where it is negative.
fn number(value: Value) -> Option<u64> {
    match value {
        Value::Int(number) => number.try_into().ok(),
        _ => None,
    }
}

fn position(value: Value) -> Option<Position> {
    number(value).map(Position)
}

fn array(value: Value) -> Option<Vec<Value>> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    }
}

fn text(value: Value) -> Option<String> {
    String::from_utf8(bytes(value)?).ok()
}
