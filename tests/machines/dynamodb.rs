//! What becomes of requests when DynamoDB throttles them, and of guards when it loses items (M1, M4, M6).

use super::conformance::Place;
use super::loss::{all_is_lost_by, options};
use super::network::count_over_a_bad_way;
use super::proxy::Proxy;
use super::server::free_port;
use crate::common::{LIMIT, wait_until};
use crate::dynamodb_local::{Table, client, wait_for};
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use treelock::dynamodb::{DynamoDbTreeLock, look_by};
use treelock::machine::{EngineError, MachineLockError, Options};
use treelock::{Snapshot, TreePath};

impl Place for Table {
    type Lock<P: ?Sized + TreePath + 'static> = DynamoDbTreeLock<P>;

    fn start() -> Option<Self> {
        Table::fresh()
    }

    fn try_open_as<P: ?Sized + TreePath + 'static>(
        &self,
        options: Options,
    ) -> Result<DynamoDbTreeLock<P>, EngineError> {
        DynamoDbTreeLock::open(&client(self.port), &self.name, "test", options)
    }

    /// It takes a moment to answer at first.
    fn open_quickly(&self) {
        drop(self.open_with(Options::new().time_to_live(Duration::from_millis(500))).write("a").unwrap());
    }

    fn url(&self) -> String {
        format!("dynamodb:{}", self.name)
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        Table::environment(self)
    }

    fn look(&self) -> Option<Snapshot> {
        look_by(&client(self.port), &self.name, "test").unwrap()
    }
}

fn open_by(table: &Table, port: u16, options: Options) -> DynamoDbTreeLock {
    DynamoDbTreeLock::open(&client(port), &table.name, "test", options).unwrap()
}

/// A way to the server that counts calls by their kind, and throttles some of them.
struct Gate {
    port: u16,
    counts: Arc<Mutex<BTreeMap<String, u32>>>,
    /// One of so many is let through; 0: all.
    throttles: Arc<AtomicU32>,
}

impl Gate {
    fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gate =
            Gate { port: listener.local_addr().unwrap().port(), counts: Arc::default(), throttles: Arc::default() };
        let (counts, throttles) = (Arc::clone(&gate.counts), Arc::clone(&gate.throttles));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (counts, throttles) = (Arc::clone(&counts), Arc::clone(&throttles));
                // It ends with its connection.
                thread::spawn(move || pass(client, server, &counts, &throttles));
            }
        });
        gate
    }

    fn counts(&self) -> BTreeMap<String, u32> {
        self.counts.lock().unwrap().clone()
    }
}

fn pass(
    client: TcpStream,
    server: u16,
    counts: &Mutex<BTreeMap<String, u32>>,
    throttles: &AtomicU32,
) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", server))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut from_server) =
        (BufReader::new(client.try_clone()?), BufReader::new(server.try_clone()?));
    let calls = AtomicU32::new(0);
    loop {
        let call = message(&mut from_client)?;
        let head = String::from_utf8_lossy(&call).to_ascii_lowercase();
        let target = head.split("x-amz-target: dynamodb_20120810.").nth(1).and_then(|rest| rest.split("\r\n").next());
        *counts.lock().unwrap().entry(target.unwrap_or("other").to_owned()).or_default() += 1;
        let one_of = throttles.load(Ordering::SeqCst);
        if one_of > 0 && calls.fetch_add(1, Ordering::SeqCst) % one_of != one_of - 1 {
            *counts.lock().unwrap().entry("throttled".to_owned()).or_default() += 1;
            let body = r#"{"__type":"com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException","message":"slow"}"#;
            let length = body.len();
            let head = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/x-amz-json-1.0";
            write!(&client, "{head}\r\nContent-Length: {length}\r\n\r\n{body}")?;
            continue;
        }
        (&server).write_all(&call)?;
        (&client).write_all(&message(&mut from_server)?)?;
    }
}

/// The next message of HTTP, whose head tells its length.
fn message(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut message = Vec::new();
    let mut length = 0;
    loop {
        let before = message.len();
        if from.read_until(b'\n', &mut message)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = String::from_utf8_lossy(&message[before..]).to_ascii_lowercase();
        if let Some(told) = line.strip_prefix("content-length:") {
            length = told.trim().parse().map_err(io::Error::other)?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let head = message.len();
    message.resize(head + length, 0);
    from.read_exact(&mut message[head..])?;
    Ok(message)
}

const LONG: Duration = Duration::from_secs(60);

/// Two units of writing, and none of reading.
#[test]
fn pair_that_meets_nobody_is_two_puts() {
    let Some(table) = Table::begin() else { return };
    let gate = Gate::to(table.port);
    let lock = open_by(&table, gate.port, Options::new().time_to_live(LONG));
    drop(lock.write("a").unwrap());
    let before = gate.counts();
    (0..100).for_each(|_| drop(lock.write("srv/data/tenants/acme/projects/alpha/tables/users").unwrap()));
    wait_until("all is released", || lock.snapshot().unwrap().holders.is_empty());
    let mut calls = gate.counts();
    calls.iter_mut().for_each(|(kind, count)| *count -= before.get(kind).copied().unwrap_or_default());
    eprintln!("calls of 100 pairs: {calls:?}");
    assert_eq!(calls.remove("putitem"), Some(200));
    // A snapshot of the lock reads once.
    assert!(calls.values().sum::<u32>() < 10, "{calls:?}");
}

/// Each request is granted once, with pauses in between.
#[test]
fn throttled_calls_are_made_again() {
    let Some(table) = Table::begin() else { return };
    let gate = Gate::to(table.port);
    let options = Options::new().time_to_live(LONG).patience(LIMIT);
    let (lock, other) = (open_by(&table, gate.port, options), table.open());
    gate.throttles.store(6, Ordering::SeqCst);
    let start = Instant::now();
    let mut fence = 0;
    for _ in 0..5 {
        let guard = lock.write("a").unwrap();
        assert!(matches!(other.try_write("a"), Err(MachineLockError::WouldBlock)));
        assert!(guard.fence() > fence);
        fence = guard.fence();
    }
    eprintln!("5 pairs, of whose calls five of six were throttled, took {:?}: {:?}", start.elapsed(), gate.counts());
    let throttled = gate.counts()["throttled"];
    assert!(throttled >= 50, "{throttled}");
    // The five pauses of a call are drawn from ranges that come to 0.8 s.
    assert!(start.elapsed() > Duration::from_secs(1), "it hardly pauses");
}

#[test]
fn service_that_always_throttles_is_told() {
    let Some(table) = Table::begin() else { return };
    let gate = Gate::to(table.port);
    let options = Options::new().time_to_live(LONG).patience(Duration::from_millis(300));
    let lock = open_by(&table, gate.port, options.response_timeout(Duration::from_millis(200)));
    gate.throttles.store(u32::MAX, Ordering::SeqCst);
    let told = lock.write("a").map(drop);
    assert!(matches!(told, Err(MachineLockError::Engine(EngineError::Away(_)))), "{told:?}");
    gate.throttles.store(0, Ordering::SeqCst);
    drop(lock.try_write_for("a", LIMIT).unwrap());
}

#[test]
fn requests_over_a_bad_way_are_granted_once_each() {
    let Some(table) = Table::begin() else { return };
    let proxy = Proxy::to(table.port);
    let by_proxy = || open_by(&table, proxy.port(), Options::new().time_to_live(LONG).patience(LIMIT));
    let clients = [by_proxy(), by_proxy(), table.open()];
    count_over_a_bad_way(&proxy, clients.each_ref().map(|client| &**client), 30, 20, 10);
}

#[test]
fn order_that_is_deleted_or_written_over_is_missed() {
    let Some(mut table) = Table::begin() else { return };
    let order = |table: &Table| table.keys("/orders").pop().unwrap();
    all_is_lost_by(&mut table, |table| table.delete(order(table)));
    all_is_lost_by(&mut table, |table| table.write_over(order(table), b"something"));
    all_is_lost_by(&mut table, |table| table.keys("").into_iter().for_each(|key| table.delete(key)));
}

/// The next one that reads it is told.
#[test]
fn entry_that_is_deleted_or_written_over_is_missed() {
    let Some(mut table) = Table::begin() else { return };
    let middle = |table: &Table| {
        let entries = table.keys("/entries");
        entries[entries.len() / 2].clone()
    };
    all_is_lost_by(&mut table, |table| table.delete(middle(table)));
    all_is_lost_by(&mut table, |table| table.write_over(middle(table), b"something"));
}

/// All are told when it is made anew.
#[test]
fn table_that_is_deleted_is_told() {
    let Some(mut table) = Table::begin() else { return };
    all_is_lost_by(&mut table, |table| {
        wait_for(client(table.port).delete_table().table_name(&table.name).send()).unwrap();
        let gone = table.try_open_as::<str>(options()).map(drop).unwrap_err();
        assert!(matches!(gone, EngineError::Refused(_)) && gone.to_string().contains("create it"), "{gone}");
        table.make();
    });
}

/// Items that nobody needs are deleted, in batches.
#[test]
fn table_is_kept_short() {
    let Some(table) = Table::begin() else { return };
    let lock = table.open_with(options());
    (0..1200).for_each(|_| drop(lock.write("a").unwrap()));
    wait_until("what nobody needs is deleted", || {
        (0..20).for_each(|_| drop(lock.write("a").unwrap()));
        let kept = table.keys("").len();
        kept > 100 && kept < 2300
    });
}

#[test]
fn what_cannot_be_used_is_told() {
    let Some(table) = Table::begin() else { return };
    let opened = |port, table: &str, name: &str| {
        let options = Options::new().patience(Duration::from_millis(50));
        DynamoDbTreeLock::<str>::open(&client(port), table, name, options).map(drop)
    };
    assert!(matches!(opened(free_port(), &table.name, "test"), Err(EngineError::Away(_))));
    for (of, name) in [("", "test"), (&*table.name, ""), ("no-table", "test")] {
        let refused = opened(table.port, of, name);
        assert!(matches!(refused, Err(EngineError::Refused(_))), "{refused:?}");
    }
}
