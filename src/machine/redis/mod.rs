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
//! # What a server may lose
//!
//! A restart without its data, `FLUSHALL`, a deleted or evicted key: whatever is missing is noticed by the next client that
//! renews its session, if no call before does. All guards of the namespace are lost then, and it is closed for one time to live. A
//! replica that is promoted and lacks the newest writes is noticed by the clients that have seen them, when they renew their
//! session at the latest, which is a third of the time to live away at most; whatever was granted by the lost writes, or kept by
//! a renewal that is lost, can be granted again before. The fences of what is granted later are higher, if the clocks of both
//! servers agree; so use them, or `min-replicas-to-write` and a server that is not promoted by itself.
//!
//! Configure `noeviction` for a server that keeps locks. One that is full refuses requests, and renewals too: what is held is lost
//! if that lasts for a time to live. Redis 6.2 or newer.

#[cfg(test)]
mod differential;

use crate::core::path::TreePath;
use crate::inspect::Snapshot;
use crate::machine::engine::{
    Call, Engine, Entry, FORMAT, Identity, MOST_ENTRIES, News, Position, Reply, Says, SessionId,
};
use crate::machine::{EngineError, MachineTreeLock, Options, client};
use crate::sync::Mutex;
use redis::{Client, Connection, ErrorKind, RedisError, Script, Value};
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A [`MachineTreeLock`] in a Redis or Valkey server.
#[derive(Debug)]
pub struct RedisTreeLock<P: ?Sized + TreePath = str>(MachineTreeLock<P>);

impl<P: ?Sized + TreePath> RedisTreeLock<P> {
    /// Opens a namespace of a server, and begins it if nobody has.
    ///
    /// The URL is as of the crate `redis`: `redis://user:password@host:port/database`, or `unix:///path`. A namespace
    /// that is new is closed for one [time to live](Options::time_to_live): requests wait, and tries fail. Nothing tells a new one
    /// from one whose data was lost, whose holders may still believe in it.
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
    client: Client,
    keys: [String; 4],
    exchange: Script,
    /// Connections that nobody uses, with their timeouts: one for calls, one that listens, and rarely more.
    idle: Mutex<Vec<(Connection, Duration)>>,
}

impl Redis {
    fn open(url: &str, namespace: &str) -> Result<Self, EngineError> {
        if namespace.is_empty() {
            return Err(EngineError::refused("the namespace has no name: give one that all its users know"));
        }
        let client = Client::open(url).map_err(|error| {
            EngineError::refused(format!(
                "the URL cannot be used, give redis://user:password@host:port/database: {error}"
            ))
        })?;
        Ok(Redis::new(client, namespace))
    }

    fn new(client: Client, namespace: &str) -> Self {
        let keys = ["meta", "log", "live", "snap"].map(|key| format!("{{treelock:{namespace}}}:{key}"));
        Redis { client, keys, exchange: Script::new(include_str!("exchange.lua")), idle: Mutex::default() }
    }

    /// Runs something on a connection, which is used again if that works.
    fn run<R>(
        &self,
        deadline: Instant,
        run: impl FnOnce(&mut Connection) -> Result<R, RedisError>,
    ) -> Result<R, EngineError> {
        let rest = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let idle = self.idle.lock().pop();
        let (mut connection, mut timeout) = match idle {
            Some(idle) => idle,
            None => (self.client.get_connection_with_timeout(rest()).map_err(told)?, Duration::ZERO),
        };
        let rest = rest();
        // To set it is two more calls of the kernel.
        if rest < timeout * 9 / 10 || timeout < rest * 9 / 10 {
            timeout = rest;
            connection.set_read_timeout(Some(rest)).map_err(told)?;
            connection.set_write_timeout(Some(rest)).map_err(told)?;
        }
        let result = run(&mut connection).map_err(told);
        // After an error an answer may still be on its way.
        if result.is_ok() {
            self.idle.lock().push((connection, timeout));
        }
        result
    }

    /// The long way, which takes whatever a client says.
    fn long(&self, connection: &mut Connection, call: &Call) -> Result<Value, RedisError> {
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

    /// The short way, for most calls (see the header of `engine.rs`). `None`: it must take the long way, where a batch is written again
    /// if it was written here.
    fn short(
        &self,
        connection: &mut Connection,
        session: SessionId,
        since: Position,
        batch: Option<&[u8]>,
    ) -> Result<Option<Reply>, RedisError> {
        // The server counts entries within a millisecond, beyond a thousand if its clock is set back.
        if since.0 % 1000 >= MOST_IN_A_MILLISECOND {
            return Ok(None);
        }
        let mut sent = redis::pipe();
        if let Some(batch) = batch {
            // Where there is no log, none is made.
            sent.cmd("XADD").arg(&self.keys[1]).arg("NOMKSTREAM").arg("*").arg(name_of(&session)).arg(batch).ignore();
        }
        // With the one that is known: should that be missing, so may others.
        sent.cmd("XRANGE").arg(&self.keys[1]).arg(id_of(since)).arg("+").arg("COUNT").arg(MOST_ENTRIES + 1);
        let (range,): (Value,) = sent.query(connection)?;
        let entries: Option<Vec<_>> = array(range).and_then(|all| all.into_iter().map(entry_of).collect());
        let Some(entries) = entries.filter(|all| all.first().is_some_and(|first| first.position == since)) else {
            return Ok(None);
        };
        let is_all = entries.len() <= MOST_ENTRIES;
        let last = entries.last().map_or(since, |last| last.position);
        let head = if is_all { last } else { Position(last.0 + 1) };
        Ok(Some(Reply::News(News::only(session, entries, head))))
    }
}

/// Whether a server was not reached, or will not.
fn told(error: RedisError) -> EngineError {
    let is_away = error.is_io_error()
        || error.is_connection_dropped()
        || matches!(error.kind(), ErrorKind::Io)
        || matches!(
            error.code(),
            Some("LOADING" | "BUSY" | "MASTERDOWN" | "READONLY" | "CLUSTERDOWN" | "TRYAGAIN" | "NOREPLICAS")
        );
    match is_away {
        true => EngineError::Away(Arc::new(error)),
        false => EngineError::Refused(Arc::new(error)),
    }
}

impl Engine for Redis {
    fn exchange(&self, call: &Call, deadline: Instant) -> Result<Reply, EngineError> {
        let reply = self.run(deadline, |connection| {
            if let Says::GoesOn { session, since, is_open: true, renews: false, batch, snapshot: None } = &call.says {
                if let Some(reply) = self.short(connection, *session, *since, batch.as_deref())? {
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
        self.run(answered, |connection| read.query::<Value>(connection)).map(drop)
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
