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
//! Four keys, in one hash slot: `{treelock:my-app:files}:meta`, `:log`, `:live` and `:snap`. One script changes them, which is
//! atomic: nobody ever has to try again. An uncontended request runs it once, and so does a release.
//!
//! # What a server may lose
//!
//! A restart without its data, `FLUSHALL`, a deleted or evicted key: whatever is missing is noticed by the next call of any client.
//! All guards of the namespace are lost then, and it is closed for one time to live. A replica that is promoted and lacks the
//! newest writes is noticed by the clients that have seen them, with their next call, which is a third of the time to live away
//! at most; whatever was granted by the lost writes can be granted again before. The fences of what is granted later are higher, if
//! the clocks of both servers agree; so use them, or `min-replicas-to-write` and a server that is not promoted by itself.
//!
//! Configure `noeviction` for a server that keeps locks. One that is full refuses requests, and renewals too: what is held is lost
//! if that lasts for a time to live. Redis 6.2 or newer.

use crate::core::path::TreePath;
use crate::machine::engine::SessionId;
use crate::machine::engine::{
    Batch, Call, Engine, Entry, FORMAT, Identity, MOST_ENTRIES, News, Position, Reply, Says,
};
use crate::machine::{EngineError, MachineTreeLock, Options};
use crate::sync::Mutex;
use redis::{Client, Connection, ErrorKind, RedisError, Script, Value};
use std::error::Error;
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
        let client = Client::open(url).map_err(|error| EngineError::Refused(Arc::new(error)))?;
        MachineTreeLock::connect(Box::new(Redis::new(client, namespace)), options).map(RedisTreeLock)
    }
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
    script: Script,
    /// Connections that nobody uses: one for calls, one that listens, and rarely more.
    idle: Mutex<Vec<Connection>>,
}

impl Redis {
    fn new(client: Client, namespace: &str) -> Self {
        let keys = ["meta", "log", "live", "snap"].map(|key| format!("{{treelock:{namespace}}}:{key}"));
        Redis { client, keys, script: Script::new(include_str!("exchange.lua")), idle: Mutex::default() }
    }

    /// Runs something on a connection, which is used again if that works.
    fn run<R>(
        &self,
        deadline: Instant,
        run: impl FnOnce(&mut Connection) -> Result<R, RedisError>,
    ) -> Result<R, EngineError> {
        let rest = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let idle = self.idle.lock().pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.client.get_connection_with_timeout(rest()).map_err(told)?,
        };
        let timeouts =
            connection.set_read_timeout(Some(rest())).and_then(|()| connection.set_write_timeout(Some(rest())));
        timeouts.map_err(told)?;
        let result = run(&mut connection).map_err(told);
        // After an error an answer may still be on its way.
        if result.is_ok() {
            self.idle.lock().push(connection);
        }
        result
    }
}

/// Whether a server was not reached, or will not.
fn told(error: RedisError) -> EngineError {
    let is_away = error.is_io_error()
        || error.is_connection_dropped()
        || matches!(error.kind(), ErrorKind::Io)
        || matches!(error.code(), Some("LOADING" | "BUSY" | "MASTERDOWN" | "READONLY" | "CLUSTERDOWN" | "TRYAGAIN"));
    match is_away {
        true => EngineError::Away(Arc::new(error)),
        false => EngineError::Refused(Arc::new(error)),
    }
}

impl Engine for Redis {
    fn exchange(&self, call: &Call, deadline: Instant) -> Result<Reply, EngineError> {
        let mut run = self.script.prepare_invoke();
        for key in &self.keys {
            run.key(key);
        }
        run.arg(FORMAT).arg(call.fresh.to_text()).arg(call.time_to_live.as_micros() as u64);
        let session = |session: SessionId| (session.identity.to_text(), session.member.to_string());
        let nothing: &[u8] = &[];
        match &call.says {
            Says::Joins { events } => {
                run.arg("joins").arg("").arg("").arg("").arg("").arg(&events[..]).arg("").arg("");
            }
            Says::GoesOn { session: id, since, batch, snapshot } => {
                let (identity, member) = session(*id);
                run.arg("goes on").arg(identity).arg(member).arg(since.0);
                match batch {
                    Some(Batch { number, events }) => run.arg(*number).arg(&events[..]),
                    None => run.arg("").arg(""),
                };
                match snapshot {
                    Some((position, bytes)) => run.arg(position.0).arg(&bytes[..]),
                    None => run.arg("").arg(nothing),
                };
            }
            Says::Leaves { session: id } => {
                let (identity, member) = session(*id);
                run.arg("leaves").arg(identity).arg(member).arg("").arg("").arg("").arg("").arg("");
            }
            Says::Breaks { identity } => {
                run.arg("breaks").arg(identity.to_text()).arg("").arg("").arg("").arg("").arg("").arg("");
            }
        }
        run.arg(MOST_ENTRIES);
        let value: Value = self.run(deadline, |connection| run.invoke(connection))?;
        reply_of(value).ok_or_else(|| {
            EngineError::Refused(Arc::from(Box::<dyn Error + Send + Sync>::from(
                "its answer is not that of the script",
            )))
        })
    }

    fn await_entry(&self, since: Position, deadline: Instant) -> Result<(), EngineError> {
        let rest = deadline.saturating_duration_since(Instant::now());
        // The server may be late.
        let answered = deadline + Duration::from_secs(1);
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(1).arg("BLOCK").arg(rest.as_millis().max(1) as u64);
        read.arg("STREAMS").arg(&self.keys[1]).arg(format!("{}-0", since.0));
        self.run(answered, |connection| read.query::<Value>(connection)).map(drop)
    }
}

fn reply_of(value: Value) -> Option<Reply> {
    let mut fields = array(value)?.into_iter();
    let mut next = || fields.next();
    let kind = text(next()?)?;
    Some(match &*kind {
        "lost" => Reply::OrderLost,
        "expired" => Reply::Expired,
        "format" => Reply::OtherFormat(text(next()?)?),
        "closed" => Reply::Closed(Duration::from_micros(number(next()?)?)),
        "news" => {
            let session = SessionId { identity: Identity::of_text(&text(next()?)?)?, member: number(next()?)? };
            let (head, kept) = (Position(number(next()?)?), number(next()?)?);
            let first_end = Duration::from_micros(number(next()?)?);
            let (snapped, snapshot) = (text(next()?)?, bytes(next()?)?);
            let snapshot = match &*snapped {
                "" => None,
                snapped => Some((Position(snapped.parse().ok()?), snapshot)),
            };
            // One that no treelock has written: no session can take it.
            let foreign = || Entry { position: Position(0), member: 0, events: Vec::new() };
            let entries = array(next()?)?.into_iter().map(|entry| entry_of(entry).unwrap_or_else(foreign)).collect();
            Reply::News(News { session, snapshot, entries, head, kept, first_end })
        }
        _ => return None,
    })
}

fn entry_of(value: Value) -> Option<Entry> {
    let [id, fields] = <[Value; 2]>::try_from(array(value)?).ok()?;
    let position = Position(text(id)?.split('-').next()?.parse().ok()?);
    let [_, member, _, events] = <[Value; 4]>::try_from(array(fields)?).ok()?;
    Some(Entry { position, member: number(member)?, events: bytes(events)? })
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

fn number(value: Value) -> Option<u64> {
    match value {
        Value::Int(number) => number.try_into().ok(),
        value => text(value)?.parse().ok(),
    }
}
