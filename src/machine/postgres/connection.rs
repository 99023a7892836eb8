//! How a database is reached: connections that are used again, and what becomes of an error.
//!
//! A connection has a runtime of one thread, the one that calls. A call that does not end by its deadline is given up with its
//! connection, so it is not known whether the database has acted.

use crate::machine::EngineError;
use crate::machine::pool::Pool;
use crate::machine::postgres::url::Tls;
use std::future::{Future, poll_fn};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout_at;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{AsyncMessage, Client, Config, Error, NoTls, Socket, Statement};

/// What [`Connections::run`] gives the time for at least.
const SHORTEST: Duration = Duration::from_millis(1);

/// The statements of all calls.
const EXCHANGE: &str =
    "SELECT * FROM treelock.exchange_1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)";
const WRITE: &str = "SELECT treelock.write_1($1, $2, $3, $4, $5)";
const READ: &str = "SELECT position, member, key, events FROM treelock.entries WHERE namespace = $1 AND position >= $2 ORDER BY position LIMIT $3";
const LISTEN: &str = "SELECT treelock.listen_1($1, $2, $3)";

/// As `setup.sql` needs it; and plans that are made once, and go by the index: the tables are short, and full of what was deleted a
/// moment ago, so that no statistics tell what is best.
const SETTINGS: &str = "SET default_transaction_isolation = 'read committed'; SET plan_cache_mode = force_generic_plan; \
    SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off";

/// The ways to the server that has a namespace.
pub(super) struct Connections {
    config: Config,
    tls: Tls,
    namespace: String,
    connections: Pool<Connection>,
    /// A call has met that something is missing, which the next connection is to make.
    lacks: AtomicBool,
}

/// A connection that is used by one call at a time.
pub(super) struct Connection {
    runtime: Runtime,
    pub(super) link: Link,
}

pub(super) struct Link {
    pub(super) client: Client,
    pub(super) statements: Statements,
    /// One for each notification.
    pub(super) told: UnboundedReceiver<()>,
    pub(super) listens: bool,
}

pub(super) struct Statements {
    pub(super) exchange: Statement,
    pub(super) write: Statement,
    pub(super) read: Statement,
    pub(super) listen: Statement,
}

impl Connections {
    pub(super) fn new((config, tls): (Config, Tls), namespace: &str) -> Self {
        Connections {
            config,
            tls,
            namespace: namespace.to_owned(),
            connections: Pool::default(),
            lacks: AtomicBool::new(false),
        }
    }

    /// Runs something on a connection, which is used again if that works.
    pub(super) fn run<R>(
        &self,
        deadline: Instant,
        run: impl AsyncFnOnce(&mut Link) -> Result<R, Error>,
    ) -> Result<R, EngineError> {
        let deadline = deadline.max(Instant::now() + SHORTEST);
        self.connections
            .run(|| self.connect(deadline), |Connection { runtime, link }| self.by(runtime, deadline, run(link)))
    }

    /// Has the future done by the deadline, or given up.
    fn by<R>(
        &self,
        runtime: &Runtime,
        deadline: Instant,
        future: impl Future<Output = Result<R, Error>>,
    ) -> Result<R, EngineError> {
        match runtime.block_on(async { timeout_at(deadline.into(), future).await }) {
            Ok(done) => done.map_err(|error| self.told(&error)),
            Err(_) => Err(EngineError::away(self.named("no answer in time"))),
        }
    }

    fn connect(&self, deadline: Instant) -> Result<Connection, EngineError> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| EngineError::away(self.named(&error.to_string())))?;
        let mut config = self.config.clone();
        // Of several hosts each is given its share.
        let hosts = config.get_hosts().len().max(config.get_hostaddrs().len()).max(1) as u32;
        config.connect_timeout(deadline.saturating_duration_since(Instant::now()).max(SHORTEST) / hosts);
        let link = self.by(&runtime, deadline, async {
            let (client, told) = match &self.tls {
                None => start(&config, NoTls).await?,
                Some(tls) => start(&config, Clone::clone(tls)).await?,
            };
            client.batch_execute(SETTINGS).await?;
            let prepared = prepare(&client).await;
            let lacks = self.lacks.swap(false, Ordering::Relaxed) || prepared.as_ref().is_err_and(lacks_setup);
            let statements = if lacks {
                client.batch_execute(super::SETUP).await?;
                prepare(&client).await?
            } else {
                prepared?
            };
            Ok(Link { client, statements, told, listens: false })
        })?;
        Ok(Connection { runtime, link })
    }

    /// What becomes of an error that was met.
    fn told(&self, error: &Error) -> EngineError {
        let Some(by_server) = error.as_db_error() else {
            let said = with_causes(error);
            // A URL that asks for TLS, or gives no password.
            let of_config =
                ["TLS support", "not support TLS", "peer certificate", "fatal alert", "invalid configuration"];
            let is_of_config = of_config.iter().any(|words| said.contains(words));
            let why = self.named(&said);
            return if is_of_config { EngineError::refused(why) } else { EngineError::away(why) };
        };
        let code = by_server.code();
        let hint = match *code {
            SqlState::INSUFFICIENT_PRIVILEGE => {
                "; the user needs the rights that the documentation of treelock::postgres lists"
            }
            SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => {
                "; give user and password in the URL, as in postgresql://user:password@host/database, or in PGUSER and PGPASSWORD"
            }
            _ => "",
        };
        let why = self.named(&format!("{}{hint}", by_server.message()));
        let class = &code.code()[..2];
        // Of the way to it; it begins, ends or is full; it is a standby; what was set up is gone, and is made by the next call.
        let passes =
            matches!(class, "08" | "53" | "57" | "40" | "55") || *code == SqlState::READ_ONLY_SQL_TRANSACTION;
        let lacks = lacks_setup(error);
        self.lacks.fetch_or(lacks, Ordering::Relaxed);
        if passes || lacks || is_stale(by_server.message()) {
            EngineError::away(why)
        } else {
            EngineError::refused(why)
        }
    }

    fn named(&self, what: &str) -> String {
        format!("namespace {:?}: {what}", self.namespace)
    }
}

/// Connects, and passes on that there are notifications.
async fn start<T>(config: &Config, tls: T) -> Result<(Client, UnboundedReceiver<()>), Error>
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
{
    let (client, mut connection) = config.connect(tls).await?;
    let (tell, told) = unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if matches!(message, AsyncMessage::Notification(_)) && tell.send(()).is_err() {
                break;
            }
        }
    });
    Ok((client, told))
}

async fn prepare(client: &Client) -> Result<Statements, Error> {
    Ok(Statements {
        exchange: client.prepare(EXCHANGE).await?,
        write: client.prepare(WRITE).await?,
        read: client.prepare(READ).await?,
        listen: client.prepare(LISTEN).await?,
    })
}

/// Whether the schema, a table or a function is missing.
fn lacks_setup(error: &Error) -> bool {
    let missing = [SqlState::UNDEFINED_FUNCTION, SqlState::INVALID_SCHEMA_NAME, SqlState::UNDEFINED_TABLE];
    error.code().is_some_and(|code| missing.contains(code))
}

/// A table was made anew since the connection was.
fn is_stale(message: &str) -> bool {
    message.contains("cached plan must not change") || message.contains("could not open relation")
}

fn with_causes(error: &Error) -> String {
    let mut said = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        said = format!("{said}: {next}");
        cause = next.source();
    }
    said
}
