//! Redis, Valkey, and what speaks their protocol and runs Lua: [`RedisTreeLock`].
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
//! Four keys, in one hash slot: `{treelock:my-app:files}:meta`, `:log`, `:live` and `:snap`. Two scripts change them, each
//! atomically: nobody ever has to try again. An uncontended request runs the short one once, and so does a release.
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
    Batch, Call, Engine, Entry, FORMAT, Identity, MOST_ENTRIES, News, Position, Reply, Says, SessionId,
};
use crate::machine::{EngineError, MachineTreeLock, Options, client};
use crate::sync::Mutex;
use redis::{Client, Connection, ErrorKind, RedisError, Script, Value};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// The adapter.
struct Redis {
    client: Client,
    keys: [String; 4],
    exchange: Script,
    append: Script,
    /// Connections that nobody uses, with their timeouts: one for calls, one that listens, and rarely more.
    idle: Mutex<Vec<(Connection, Duration)>>,
    /// Whether other clients wrote something before the last call.
    is_shared: AtomicBool,
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
        Redis {
            client,
            keys,
            exchange: Script::new(include_str!("exchange.lua")),
            append: Script::new(include_str!("append.lua")),
            idle: Mutex::default(),
            is_shared: AtomicBool::new(false),
        }
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
                run.arg("").arg("").arg("").arg(&events[..]).arg("").arg("").arg(yes(*insists))
            }
            Says::GoesOn { since, renews, batch, snapshot, .. } => {
                run.arg(since.0).arg(yes(*renews));
                match batch {
                    Some(Batch { number, events }) => run.arg(*number).arg(&events[..]),
                    None => run.arg("").arg(""),
                };
                match snapshot {
                    Some((position, bytes)) => run.arg(position.0).arg(&bytes[..]).arg(""),
                    None => run.arg("").arg("").arg(""),
                }
            }
            Says::Looks { since } => run.arg(since.0).arg("").arg("").arg("").arg("").arg("").arg(""),
            Says::Leaves { .. } | Says::Breaks { .. } => run.arg("").arg("").arg("").arg("").arg("").arg("").arg(""),
        };
        run.arg(MOST_ENTRIES + 1);
        run.invoke(connection)
    }

    /// The short way: one that has a session, and neither renews it nor has a snapshot. `None`: it must take the long way.
    fn short(
        &self,
        connection: &mut Connection,
        session: SessionId,
        since: Position,
        batch: Option<&Batch>,
    ) -> Result<Option<Reply>, RedisError> {
        // Should the one that is known be missing, so may others.
        let mut range = redis::cmd("XRANGE");
        range.arg(&self.keys[1]).arg(id_of(since)).arg("+").arg("COUNT").arg(MOST_ENTRIES + 1);
        let (own, range) = match batch {
            None => (None, range.query(connection)?),
            Some(batch) => {
                let mut append = redis::cmd("EVALSHA");
                append.arg(self.append.get_hash()).arg(2).arg(&self.keys[..2]);
                append.arg(name_of(&session)).arg(batch.number - 1).arg(batch.number).arg(&batch.events);
                // Most who share a namespace are told of others each time, and most who do not never.
                let is_shared = self.is_shared.load(Ordering::Relaxed);
                let mut replies = if is_shared {
                    let mut sent = redis::pipe();
                    sent.add_command(append).add_command(range.clone());
                    sent.query::<Vec<Value>>(connection)?
                } else {
                    vec![append.query(connection)?]
                }
                .into_iter();
                let Some(Value::Array(positions)) = replies.next() else { return Ok(None) };
                let [before, own] = positions.into_iter().map(position_of).collect::<Vec<_>>()[..] else {
                    return Ok(None);
                };
                let is_alone = before == Some(since);
                self.is_shared.store(!is_alone, Ordering::Relaxed);
                match (is_alone, replies.next()) {
                    (true, _) => (own, Value::Nil),
                    (false, Some(range)) => (None, range),
                    (false, None) => (None, range.query(connection)?),
                }
            }
        };
        let mut entries = Vec::new();
        if let (Some(position), Some(batch)) = (own, batch) {
            entries.push(Entry { position, member: session.member, events: batch.events.clone() });
        } else {
            let all: Option<Vec<_>> = array(range).and_then(|all| all.into_iter().map(entry_of).collect());
            let Some(all) = all.filter(|all| all.first().is_some_and(|first| first.position == since)) else {
                return Ok(None);
            };
            entries = all;
        }
        let is_all = entries.len() <= MOST_ENTRIES;
        let last = entries.last().map_or(since, |last| last.position);
        let head = if is_all { last } else { Position(last.0 + 1) };
        Ok(Some(Reply::News(News {
            session,
            snapshot: None,
            entries,
            head,
            kept: None,
            first_end: None,
            time_to_live: None,
        })))
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
            if let Says::GoesOn { session, since, renews: false, batch, snapshot: None } = &call.says {
                match self.short(connection, *session, *since, batch.as_ref()) {
                    Ok(None) => {}
                    // A server that was started again does not know it.
                    Err(error) if error.code() == Some("NOSCRIPT") => {
                        self.append.prepare_invoke().load(connection)?;
                    }
                    done => return done,
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
        "closed" => Reply::Closed(Duration::from_micros(number(next()?)?)),
        "news" => {
            let (kept, head) = (number(next()?), position(next()?)?);
            let first_end = number(next()?).map(Duration::from_micros);
            let time_to_live = number(next()?).map(Duration::from_micros);
            let identity = Identity::of_text(&text(next()?)?)?;
            let session = session_of(identity, &text(next()?)?)?;
            let snapshot = match <[Value; 2]>::try_from(array(next()?)?) {
                Ok([snapped, snapshot]) => Some((position(snapped)?, bytes(snapshot)?)),
                Err(_) => None,
            };
            // One that no treelock has written: no session can take it.
            let foreign = || Entry { position: Position(0), member: 0, events: Vec::new() };
            let entries = array(next()?)?.into_iter().map(|entry| entry_of(entry).unwrap_or_else(foreign)).collect();
            Reply::News(News { session, snapshot, entries, head, kept, first_end, time_to_live })
        }
        _ => return None,
    })
}

fn entry_of(value: Value) -> Option<Entry> {
    let [id, fields] = <[Value; 2]>::try_from(array(value)?).ok()?;
    let position = position_of(id)?;
    let [member, events] = <[Value; 2]>::try_from(array(fields)?).ok()?;
    // The first entry of an order has no member.
    let member = text(member)?;
    let member = if member.is_empty() { u64::MAX } else { member.split('.').next()?.parse().ok()? };
    Some(Entry { position, member, events: bytes(events)? })
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

fn session_of(identity: Identity, name: &str) -> Option<SessionId> {
    if name.is_empty() {
        return Some(SessionId::nobody(identity));
    }
    let (member, key) = name.split_once('.')?;
    Some(SessionId { identity, member: member.parse().ok()?, key: u64::from_str_radix(key, 16).ok()? })
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
