//! How a server is reached: connections that are used again, and those who tell where the server is.
//!
//! Everything that a call needs is done by its deadline: of several hosts each is given a share of the time.

use crate::machine::EngineError;
use crate::machine::pool::Pool;
use crate::machine::redis::error::{Verdict, redirection};
use crate::machine::redis::url::{Acknowledged, Kind, Location};
use crate::machine::redis::{array, number, text};
use crate::sync::Mutex;
use redis::{Client, Connection, ConnectionAddr, ConnectionInfo, ConnectionLike, RedisError, RedisResult, Value};
use std::io;
use std::net::ToSocketAddrs;
use std::time::{Duration, Instant};

/// No connection is given less time.
const SHORTEST: Duration = Duration::from_millis(1);

/// The ways to the server that has a namespace.
pub(super) struct Connections {
    location: Location,
    namespace: String,
    /// Any key of the namespace: all are in one slot.
    key: String,
    /// Those who tell where the server is: sentinels, or nodes of the cluster. Whoever does not answer goes to the end.
    guides: Mutex<Vec<ConnectionInfo>>,
    links: Pool<Link>,
}

/// A connection that is used by one call at a time.
pub(super) struct Link {
    connection: Connection,
    at: ConnectionAddr,
    /// What the socket is set to.
    timeout: Duration,
    deadline: Instant,
    /// What is to be acknowledged of each request.
    acknowledged: Option<Acknowledged>,
}

/// Whether a call may change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Reads,
    Writes,
}

impl Connections {
    pub(super) fn new(location: Location, namespace: &str, key: &str) -> Self {
        Connections {
            guides: Mutex::new(location.hosts.clone()),
            location,
            namespace: namespace.to_owned(),
            key: key.to_owned(),
            links: Pool::default(),
        }
    }

    /// Runs something on a link, which is used again if that works.
    pub(super) fn run<R>(
        &self,
        deadline: Instant,
        access: Access,
        run: impl FnOnce(&mut Link) -> RedisResult<R>,
    ) -> Result<R, EngineError> {
        self.links.run(
            || self.connect(deadline),
            |link| {
                link.deadline = deadline;
                link.acknowledged = self.location.acknowledged.filter(|_| access == Access::Writes);
                run(link).map_err(|error| self.told(&link.at, &error))
            },
        )
    }

    fn connect(&self, deadline: Instant) -> Result<Link, EngineError> {
        let server = match &self.location.kind {
            Kind::Server => self.location.hosts[0].clone(),
            Kind::Sentinels(master) => self.ask_guides(deadline, |link| self.master(master, link))?,
            Kind::Cluster => self.ask_guides(deadline, |link| self.owner(link))?,
        };
        self.open(&server, deadline)
    }

    fn open(&self, server: &ConnectionInfo, deadline: Instant) -> Result<Link, EngineError> {
        let at = server.addr();
        let connect = || {
            // Each address of a host is tried for so long.
            let addresses = match at {
                ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                    (&**host, *port).to_socket_addrs()?.count().max(1)
                }
                _ => 1,
            };
            let rest = deadline.saturating_duration_since(Instant::now()).max(SHORTEST);
            Client::open(server.clone())?.get_connection_with_timeout(rest / addresses as u32)
        };
        let connection = connect().map_err(|error| self.told(at, &error))?;
        Ok(Link { connection, at: at.clone(), timeout: Duration::ZERO, deadline, acknowledged: None })
    }

    /// Asks one guide after the other until one tells.
    fn ask_guides(
        &self,
        deadline: Instant,
        ask: impl Fn(&mut Link) -> Result<ConnectionInfo, EngineError>,
    ) -> Result<ConnectionInfo, EngineError> {
        let guides = self.guides.lock().clone();
        let mut told = None;
        for guide in guides {
            let now = Instant::now();
            // The next ones, and the server itself, are to have some time too.
            let share = now + deadline.saturating_duration_since(now) / 4;
            let answer = self.open(&guide, share).and_then(|mut link| ask(&mut link));
            if answer.is_ok() {
                return answer;
            }
            told = Some(answer);
            let mut guides = self.guides.lock();
            if let Some(place) = guides.iter().position(|known| known.addr() == guide.addr()) {
                guides[place..].rotate_left(1);
            }
        }
        told.expect("a URL has a host at least")
    }

    /// The master, as a sentinel knows it.
    fn master(&self, name: &str, sentinel: &mut Link) -> Result<ConnectionInfo, EngineError> {
        let mut ask = redis::cmd("SENTINEL");
        ask.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
        let found: RedisResult<Option<(String, u16)>> = ask.query(sentinel);
        match found.map_err(|error| self.told(&sentinel.at, &error))? {
            Some((host, port)) => Ok(self.location.server_at(host, port)),
            None => Err(EngineError::refused(self.at(&sentinel.at, format!("it knows no master {name:?}")))),
        }
    }

    /// The node that has the slot of the namespace, as another node knows it. All others may tell the next time.
    fn owner(&self, node: &mut Link) -> Result<ConnectionInfo, EngineError> {
        let mut ask = redis::pipe();
        ask.cmd("CLUSTER").arg("KEYSLOT").arg(&self.key).cmd("CLUSTER").arg("SLOTS");
        let told: RedisResult<(u64, Vec<Value>)> = ask.query(node);
        let (slot, ranges) = told.map_err(|error| self.told(&node.at, &error))?;
        let (mut owner, mut others) = (None, Vec::new());
        for range in ranges {
            let mut fields = array(range).unwrap_or_default().into_iter();
            let ends = (fields.next().and_then(number), fields.next().and_then(number));
            let mut nodes = fields.map(|told| self.node(told, &node.at)).peekable();
            if ends.0.is_some_and(|first| first <= slot) && ends.1.is_some_and(|last| slot <= last) {
                owner = nodes.peek().cloned().flatten();
            }
            others.extend(nodes.flatten());
        }
        let mut guides = self.guides.lock();
        let is_asked = |guide: &ConnectionInfo| *guide.addr() == node.at;
        let first = guides.iter().find(|guide| is_asked(guide)).cloned();
        let named = self.location.hosts.iter().cloned();
        guides.clear();
        for guide in first.into_iter().chain(others).chain(named) {
            if guides.iter().all(|known| known.addr() != guide.addr()) {
                guides.push(guide);
            }
        }
        let why = || EngineError::away(self.at(&node.at, "no node of the cluster has the slot of the namespace"));
        owner.ok_or_else(why)
    }

    /// A node, as another one tells of it.
    fn node(&self, told: Value, by: &ConnectionAddr) -> Option<ConnectionInfo> {
        let mut fields = array(told)?.into_iter();
        let (host, port) = (text(fields.next()?).unwrap_or_default(), number(fields.next()?)?);
        self.location.server_beside(by, host, port.try_into().ok()?)
    }

    /// What becomes of an error that was met there.
    fn told(&self, at: &ConnectionAddr, error: &RedisError) -> EngineError {
        if let (Kind::Cluster, Some((host, port))) = (&self.location.kind, redirection(error)) {
            // Nobody knows better who has the slot.
            self.guides.lock().splice(0..0, self.location.server_beside(at, host, port));
        }
        let Verdict { is_away, hint } = Verdict::of(error, &self.location);
        let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
        // The system's own text tells of a resource.
        let said = if error.is_timeout() { "no answer in time".to_owned() } else { error.to_string() };
        let why = self.at(at, format!("{said}{hint}"));
        if is_away { EngineError::away(why) } else { EngineError::refused(why) }
    }

    fn at(&self, at: &ConnectionAddr, what: impl std::fmt::Display) -> String {
        format!("{at}, namespace {:?}: {what}", self.namespace)
    }
}

impl Link {
    /// Sends requests, and returns the answers to them.
    fn ask(&mut self, requests: &[u8], answers: usize) -> RedisResult<Vec<Value>> {
        self.keep_to_the_deadline()?;
        match self.acknowledged {
            None => self.connection.send_packed_command(requests)?,
            Some(Acknowledged { replicas, within }) => {
                let within = within.min(self.timeout).max(SHORTEST);
                let mut wait = redis::cmd("WAIT");
                wait.arg(replicas).arg(within.as_millis() as u64);
                let mut both = requests.to_vec();
                wait.write_packed_command(&mut both);
                self.connection.send_packed_command(&both)?;
            }
        }
        let answered = (0..answers).map(|_| self.answer()).collect::<RedisResult<Vec<_>>>()?;
        let Some(Acknowledged { replicas, within }) = self.acknowledged else { return Ok(answered) };
        let acknowledged = self.answer()?.extract_error();
        // What failed has nothing that could be acknowledged.
        if answered.iter().any(|answer| matches!(answer, Value::ServerError(_))) {
            return Ok(answered);
        }
        let by = number(acknowledged?).unwrap_or_default();
        if by < replicas {
            let why = format!("{by} of {replicas} replicas acknowledged the call within {within:?}");
            return Err(io::Error::other(why).into());
        }
        Ok(answered)
    }

    fn answer(&mut self) -> RedisResult<Value> {
        self.keep_to_the_deadline()?;
        loop {
            match self.connection.recv_response()? {
                Value::Push { .. } => {}
                answer => return Ok(answer),
            }
        }
    }

    fn keep_to_the_deadline(&mut self) -> RedisResult<()> {
        let rest = self.deadline.saturating_duration_since(Instant::now()).max(SHORTEST);
        // To set it is two calls of the kernel.
        if rest < self.timeout * 9 / 10 || self.timeout < rest * 9 / 10 {
            self.connection.set_read_timeout(Some(rest))?;
            self.connection.set_write_timeout(Some(rest))?;
            self.timeout = rest;
        }
        Ok(())
    }
}

impl ConnectionLike for Link {
    fn req_packed_command(&mut self, request: &[u8]) -> RedisResult<Value> {
        Ok(self.ask(request, 1)?.remove(0))
    }

    fn req_packed_commands(&mut self, requests: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        Ok(self.ask(requests, offset + count)?.split_off(offset))
    }

    fn get_db(&self) -> i64 {
        self.connection.get_db()
    }

    fn check_connection(&mut self) -> bool {
        self.connection.check_connection()
    }

    fn is_open(&self) -> bool {
        self.connection.is_open()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn connections_to(listeners: &[TcpListener], form: &str) -> Connections {
        let hosts = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect::<Vec<_>>();
        let location = Location::parse(&form.replace("HOSTS", &hosts.join(",")));
        Connections::new(location.unwrap_or_else(|error| panic!("{error}")), "test", "key")
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    /// The first link may lead to an old master, and the second to the new one.
    #[test]
    fn link_that_is_older_than_a_failure_is_not_used_again() {
        let silent = [TcpListener::bind("127.0.0.1:0").unwrap()];
        let connections = connections_to(&silent, "redis://HOSTS");
        let idle = || connections.links.idle();
        connections.run(soon(), Access::Reads, |_| Ok(())).unwrap();
        assert_eq!(idle(), 1);
        connections
            .run(soon(), Access::Reads, |_| {
                let failed = connections.run(soon(), Access::Reads, |link| redis::cmd("PING").query::<()>(link));
                assert!(matches!(failed, Err(EngineError::Away(_))), "{failed:?}");
                Ok(())
            })
            .unwrap();
        assert_eq!(idle(), 0);
    }

    #[test]
    fn guide_that_is_silent_is_asked_last_the_next_time() {
        let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let connections = connections_to(&listeners, "redis+sentinel://HOSTS/main");
        let guides = || connections.guides.lock().iter().map(|guide| guide.addr().to_string()).collect::<Vec<_>>();
        let before = guides();
        let (start, end) = (Instant::now(), soon());
        let silent = |link: &mut Link| {
            let is_first = link.at.to_string() == before[0];
            let answered = if is_first { redis::cmd("PING").query::<()>(link) } else { Ok(()) };
            let told = answered.map_err(|error| connections.told(&link.at, &error));
            told.map(|()| connections.location.server_at("master".into(), 1))
        };
        assert_eq!(connections.ask_guides(end, silent).unwrap().addr().to_string(), "master:1");
        assert!(start.elapsed() >= Duration::from_millis(250) && Instant::now() < end, "{:?}", start.elapsed());
        assert_eq!(guides(), [before[1].clone(), before[2].clone(), before[0].clone()]);
    }
}
