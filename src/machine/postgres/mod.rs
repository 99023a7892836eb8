//! PostgreSQL: [`PostgresTreeLock`]; and [`look`], for one that only wants to see.
//!
//! ```no_run
//! use treelock::machine::Options;
//! use treelock::postgres::PostgresTreeLock;
//!
//! let lock: PostgresTreeLock =
//!     PostgresTreeLock::connect("postgresql://app:secret@127.0.0.1/app", "my-app:files", Options::new())?;
//! let guard = lock.lock(&["templates"], &["site/2026"])?;
//! println!("write with the fence {}", guard.fence());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is in the database
//!
//! A schema `treelock` with four tables and some functions. The first client that finds them missing makes them; if its user may not,
//! have somebody run [`SETUP`] who may. A request adds a row, under an advisory lock of the namespace that lasts no longer than that, and
//! reads what is new, in one round trip. A release adds a row. The time is that of the server.
//!
//! The tables are `UNLOGGED`, and nothing waits for a disk: a lock that outlives a crash of its database is of no use, since a time to
//! live is shorter. What a crash empties is empty as a whole, and so is a standby when it is promoted. All guards are lost then,
//! the namespace is closed for one time to live, and fences go on rising by the clock of the server. A server that is restarted in
//! order keeps all.
//!
//! # URLs
//!
//! What `psql` takes: `postgresql://user:password@host:5432/database?connect_timeout=5`, or `host=.. user=.. dbname=..`. Several hosts
//! stand with commas between them, and with `target_session_attrs=read-write` the one is taken that is no standby. What
//! the URL does not say is taken of `PGHOST`, `PGPORT`, `PGUSER`, `PGPASSWORD`, `PGDATABASE`, `PGSSLMODE`, `PGSSLROOTCERT`, `PGSSLCERT` and
//! `PGSSLKEY`.
//!
//! With the feature `postgres-tls`, `sslmode=require`, `verify-ca` and `verify-full` speak TLS. Each of them wants a certificate of the server
//! that is valid for its name, where `psql` wants that of `verify-full` alone: signed by an authority that this machine trusts, or that `sslrootcert`
//! names, a file. `sslcert` and `sslkey` are what a client shows that must show one. With `prefer`, `allow` or nothing it speaks without.
//!
//! A waiting client listens by `LISTEN` on a connection of its own. A pooler in transaction mode, such as PgBouncer, does not pass that
//! on: give the server itself, or a pooler in session mode.
//!
//! # Rights
//!
//! Where [`SETUP`] was run by another user:
//!
//! ```sql
//! GRANT USAGE ON SCHEMA treelock TO app;
//! GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA treelock TO app;
//! ```

mod connection;
#[cfg(test)]
#[allow(dead_code, reason = "the tests between machines need more of it")]
#[path = "../../../tests/common/database.rs"]
mod database;
#[cfg(test)]
mod differential;
mod url;

use crate::core::path::TreePath;
use crate::inspect::Snapshot;
use crate::machine::engine::{
    Call, Engine, Entry, FORMAT, Identity, MOST_ENTRIES, News, Position, Reply, Says, SessionId, Short,
};
use crate::machine::postgres::connection::{Connections, Link};
use crate::machine::{EngineError, MachineTreeLock, Options, client, engine};
use futures_util::future::try_join;
use std::ops::Deref;
use std::time::{Duration, Instant};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row};

/// What makes the schema, for one who may: it can be run again at any time.
pub const SETUP: &str = include_str!("setup.sql");

/// A [`MachineTreeLock`] in a PostgreSQL database.
#[derive(Debug)]
pub struct PostgresTreeLock<P: ?Sized + TreePath = str>(pub(super) MachineTreeLock<P>);

impl<P: ?Sized + TreePath> PostgresTreeLock<P> {
    /// Opens a namespace of a database, and begins it if nobody has.
    ///
    /// The [header of this module](self) tells of the URL. A namespace that is new is closed for one
    /// [time to live](Options::time_to_live): requests wait, and tries fail. Nothing tells a new one from one whose data was lost,
    /// whose holders may still believe in it.
    ///
    /// # Errors
    ///
    /// [`EngineError::Refused`], if the URL cannot be used or the server will not; [`EngineError::Away`], if it does not
    /// answer; [`EngineError::OtherFormat`].
    pub fn connect(url: &str, namespace: &str, options: Options) -> Result<Self, EngineError> {
        let engine = Postgres::open(url, namespace)?;
        MachineTreeLock::connect(Box::new(engine), options).map(PostgresTreeLock)
    }
}

/// All that is held and awaited in a namespace, for one that does not open it; `None` if nobody has begun it, or its data is lost.
///
/// It waits for nobody, and changes nothing but that it makes the schema where that is missing. What a client had that is gone is shown
/// until others are let in.
///
/// # Errors
///
/// As [`PostgresTreeLock::connect`]; and [`EngineError::Damaged`].
pub fn look(url: &str, namespace: &str) -> Result<Option<Snapshot>, EngineError> {
    client::look(&Postgres::open(url, namespace)?, &Options::new())
}

impl<P: ?Sized + TreePath> Deref for PostgresTreeLock<P> {
    type Target = MachineTreeLock<P>;

    fn deref(&self) -> &MachineTreeLock<P> {
        &self.0
    }
}

/// The most entries that are read at once.
const MOST: i64 = MOST_ENTRIES as i64 + 1;

/// The adapter.
struct Postgres {
    connections: Connections,
    namespace: String,
}

impl Postgres {
    fn open(url: &str, namespace: &str) -> Result<Self, EngineError> {
        engine::check_name(namespace)?;
        if namespace.contains('\0') {
            return Err(EngineError::refused("the namespace has a character that PostgreSQL does not take: U+0000"));
        }
        let config = url::config(url, |name| std::env::var(name).ok())
            .map_err(|why| EngineError::refused(format!("the URL cannot be used: {why}")))?;
        Ok(Postgres { connections: Connections::new(config, namespace), namespace: namespace.to_owned() })
    }
}

impl Postgres {
    /// The long way, which takes whatever a client says.
    async fn long(&self, link: &Link, call: &Call) -> Result<Row, Error> {
        let fresh = call.fresh.to_text();
        let (format, lives) = (FORMAT as i32, call.time_to_live.as_micros() as i64);
        let nobody = SessionId::nobody(Identity([0; 2]));
        let (mut key, mut member, mut identity) = (nobody.key as i64, nobody.member as i64, String::new());
        let mut of = |session: &SessionId| {
            (key, member, identity) = (session.key as i64, session.member as i64, session.identity.to_text());
        };
        let (mut insist, mut renew) = (false, true);
        let (mut from, mut said, mut snapped_at, mut snapped) = (None, None, None, None);
        let says = match &call.says {
            Says::Joins { events, insists } => {
                of(&SessionId { key: call.fresh.0[0], ..nobody });
                (insist, said) = (*insists, Some(&events[..]));
                "joins"
            }
            Says::GoesOn { session, since, renews, batch, snapshot, .. } => {
                of(session);
                (from, said, renew) = (Some(since.0 as i64), batch.as_deref(), *renews);
                if let Some((position, bytes)) = snapshot {
                    (snapped_at, snapped) = (Some(position.0 as i64), Some(&bytes[..]));
                }
                "goes on"
            }
            Says::Leaves { session } => {
                of(session);
                "leaves"
            }
            Says::Breaks { identity } => {
                of(&SessionId { identity: *identity, ..nobody });
                "breaks"
            }
            Says::Looks { since } => {
                (from, renew) = (Some(since.0 as i64), false);
                "looks"
            }
        };
        let words: [&(dyn ToSql + Sync); 15] = [
            &self.namespace,
            &format,
            &fresh,
            &key,
            &lives,
            &says,
            &insist,
            &identity,
            &member,
            &from,
            &renew,
            &said,
            &snapped_at,
            &snapped,
            &MOST,
        ];
        link.client.query_one(&link.statements.exchange, &words).await
    }

    /// The short way, for most calls (see the header of `engine.rs`): what is to be written and what is to be read travel together.
    /// `None`: it must take the long way.
    async fn short(&self, link: &Link, call: Short<'_>) -> Result<Option<Reply>, Error> {
        let Link { client, statements, .. } = link;
        let write = async {
            let Some(batch) = call.batch else { return Ok(true) };
            let (format, member, key) = (FORMAT as i32, call.session.member as i64, call.session.key as i64);
            let words: [&(dyn ToSql + Sync); 5] = [&self.namespace, &format, &member, &key, &batch];
            client.query_one(&statements.write, &words).await?.try_get(0)
        };
        if !call.wants_news {
            return Ok(write.await?.then_some(Reply::Written));
        }
        let since = call.since.0 as i64;
        let words: [&(dyn ToSql + Sync); 3] = [&self.namespace, &since, &MOST];
        // What is polled first is sent first, so what is read has what was written.
        let (is_written, rows) = try_join(write, client.query(&statements.read, &words)).await?;
        let entries = rows.iter().map(entry_of).collect::<Result<Vec<_>, _>>()?;
        Ok(call.news(entries).filter(|_| is_written))
    }
}

impl Engine for Postgres {
    fn exchange(&self, call: &Call, deadline: Instant) -> Result<Reply, EngineError> {
        let reply = self.connections.run(deadline, async |link| {
            if let Some(short) = call.says.short() {
                if let Some(reply) = self.short(link, short).await? {
                    return Ok(Ok(reply));
                }
            }
            self.long(link, call).await.map(|row| reply_of(&row))
        })?;
        reply.map_err(|why| EngineError::refused(format!("its answer is not that of the function: {why}")))
    }

    fn await_entry(&self, since: Position, deadline: Instant) -> Result<(), EngineError> {
        let (since, namespace) = (since.0 as i64, &self.namespace);
        // The server may be late.
        self.connections.run(deadline + Duration::from_secs(1), async |link| {
            if !link.listens {
                let channel = link.client.query_one("SELECT treelock.channel_1($1)", &[namespace]).await?;
                let channel: &str = channel.try_get(0)?;
                link.client.batch_execute(&format!("LISTEN {channel}")).await?;
                link.listens = true;
            }
            while link.told.try_recv().is_ok() {}
            let during = deadline.saturating_duration_since(Instant::now()).as_micros() as i64;
            let row = link.client.query_one(&link.statements.listen, &[namespace, &since, &during]).await?;
            if !row.try_get::<_, bool>(0)? {
                let told = tokio::time::timeout_at(deadline.into(), link.told.recv()).await;
                if told == Ok(None) {
                    // The connection has ended, and says why.
                    link.client.batch_execute("").await?;
                }
            }
            Ok(())
        })
    }
}

/// What the function answers. `Err` is what no function of ours does.
fn reply_of(row: &Row) -> Result<Reply, String> {
    let unreadable = |error: Error| error.to_string();
    let answer: &str = row.try_get("answer").map_err(unreadable)?;
    let micros = |micros: i64| Duration::from_micros(micros.max(0) as u64);
    let told: Option<Vec<i64>> = row.try_get("told").map_err(unreadable)?;
    let identity: Option<&str> = row.try_get("identity").map_err(unreadable)?;
    Ok(match (answer, told.as_deref()) {
        ("lost", ..) => Reply::OrderLost,
        ("none", ..) => Reply::NoOrder,
        ("expired", ..) => Reply::Expired,
        ("format", ..) => Reply::OtherFormat(identity.unwrap_or_default().to_owned()),
        ("lives", Some(&[lives])) => Reply::OtherTimeToLive(micros(lives)),
        ("news", Some(&[member, key, snapped, head, kept, first_end, lives, closed])) => {
            let identity = identity.and_then(Identity::of_text).ok_or("it names no order")?;
            let snapshot: Option<Vec<u8>> = row.try_get("snapshot").map_err(unreadable)?;
            Reply::News(News {
                session: SessionId { identity, member: member as u64, key: key as u64 },
                snapshot: snapshot.map(|snapshot| (Position(snapped as u64), snapshot)),
                entries: entries_of(row).map_err(unreadable)?,
                head: Position(head as u64),
                kept: Some(kept as u64),
                first_end: (first_end >= 0).then(|| micros(first_end)),
                time_to_live: Some(micros(lives)),
                closed: Some(micros(closed)),
            })
        }
        (other, ..) => return Err(format!("{other:?}, with {told:?}")),
    })
}

fn entries_of(row: &Row) -> Result<Vec<Entry>, Error> {
    let numbers = |name| row.try_get::<_, Option<Vec<i64>>>(name).map(Option::unwrap_or_default);
    let (positions, members, keys) = (numbers("positions")?, numbers("members")?, numbers("keys")?);
    let events = row.try_get::<_, Option<Vec<Vec<u8>>>>("events")?.unwrap_or_default();
    let entries = positions.into_iter().zip(members).zip(keys).zip(events);
    let entries = entries.map(|(((position, member), key), events)| Entry {
        position: Position(position as u64),
        member: member as u64,
        key: key as u64,
        events,
    });
    Ok(entries.collect())
}

fn entry_of(row: &Row) -> Result<Entry, Error> {
    let number = |name| row.try_get::<_, i64>(name).map(|number| number as u64);
    let position = Position(number("position")?);
    Ok(Entry { position, member: number("member")?, key: number("key")?, events: row.try_get("events")? })
}
