//! What becomes of guards when a Memcached server forgets what it has (M1, M6).

use super::conformance::Place;
use super::loss::{all_is_lost_by, options};
use super::network::count_over_a_bad_way;
use super::proxy::Proxy;
use super::server::free_port;
use crate::cache::Memcached;
use crate::common::{LIMIT, wait_until};
use rustix::process::Signal;
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;
use treelock::machine::{EngineError, MachineLockError, Options};
use treelock::memcached::{MemcachedTreeLock, look};
use treelock::{Snapshot, TreePath};

impl Place for Memcached {
    type Lock<P: ?Sized + TreePath + 'static> = MemcachedTreeLock<P>;

    fn start() -> Option<Self> {
        Memcached::start_with(&[])
    }

    fn try_open_as<P: ?Sized + TreePath + 'static>(
        &self,
        options: Options,
    ) -> Result<MemcachedTreeLock<P>, EngineError> {
        MemcachedTreeLock::connect(&self.url(), "test", options)
    }

    fn url(&self) -> String {
        format!("memcached://127.0.0.1:{}", self.port)
    }

    fn look(&self) -> Option<Snapshot> {
        look(&self.url(), "test").unwrap()
    }
}

#[test]
fn server_that_forgets_all_loses_all_guards() {
    let Some(mut server) = Memcached::begin() else { return };
    all_is_lost_by(&mut server, |server| assert_eq!(server.ask("flush_all"), "OK\r\n"));
}

/// It counts anew, so that a change that was prepared before would fit by chance.
#[test]
fn restarted_server_loses_all_guards() {
    let Some(mut server) = Memcached::begin() else { return };
    all_is_lost_by(&mut server, |server| {
        server.kill();
        server.go_on();
    });
}

#[test]
fn value_that_is_deleted_or_written_over_is_missed() {
    let Some(mut server) = Memcached::begin() else { return };
    for (loses, answer) in [
        ("delete treelock:test", "DELETED\r\n"),
        ("set treelock:test 0 0 9\r\nsomething", "STORED\r\n"),
        ("set treelock:test 0 0 0\r\n", "STORED\r\n"),
    ] {
        all_is_lost_by(&mut server, |server| assert_eq!(server.ask(loses), answer));
    }
}

/// It may be the value that an entry is in, or a snapshot: a client that comes then needs both.
#[test]
fn value_that_the_first_one_names_is_missed() {
    let Some(mut server) = Memcached::begin() else { return };
    all_is_lost_by(&mut server, |server| {
        let lock = server.open_with(options());
        let named = || server.keys("treelock:test:");
        while named().is_empty() {
            (0..20).for_each(|_| drop(lock.write("x").unwrap()));
        }
        for key in named() {
            assert_eq!(server.ask(&format!("delete {key}")), "DELETED\r\n");
        }
    });
}

/// Others fill a small server, and all that is not used goes.
#[test]
fn namespace_that_is_used_is_not_evicted() {
    let Some(server) = Memcached::start_with(&["-m", "8", "-o", "no_lru_crawler"]) else { return };
    server.open_quickly();
    let lock = server.open_with(options());
    let guard = lock.write("a").unwrap();
    let mut connection = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    let value = "x".repeat(1000);
    for number in 0..40_000 {
        write!(connection, "set other:{number} 0 0 1000 noreply\r\n{value}\r\n").unwrap();
        if number % 1000 == 0 {
            drop(lock.write("b").unwrap());
        }
    }
    let evicted = server.try_ask("stats", "END\r\n").unwrap();
    let evicted = evicted.lines().find_map(|line| line.strip_prefix("STAT evictions ")).unwrap();
    assert_ne!(evicted, "0");
    assert!(guard.is_valid());
    guard.release().unwrap();
}

/// Values that nobody needs are deleted.
#[test]
fn server_is_kept_short() {
    let Some(server) = Memcached::begin() else { return };
    let (lock, _idle) = (server.open_with(options()), server.open_with(options()));
    (0..4000).for_each(|_| drop(lock.write("a").unwrap()));
    let bytes = || {
        let told = server.try_ask("stats", "END\r\n").unwrap();
        let bytes = told.lines().find_map(|line| line.strip_prefix("STAT bytes ")).unwrap().to_owned();
        bytes.parse::<u64>().unwrap()
    };
    wait_until("what nobody needs is deleted", || {
        (0..10).for_each(|_| drop(lock.write("a").unwrap()));
        server.keys("treelock:test:").len() < 60 && bytes() < 400_000
    });
}

/// A server that stops for longer than a session lives has lost nothing, and yet nobody may believe in what was held.
#[test]
fn requests_go_on_when_the_server_does() {
    let Some(server) = Memcached::begin() else { return };
    let lock = server.open_with(options());
    let held = lock.write("a").unwrap();
    server.signal(Signal::STOP);
    wait_until("the lease ends", || !held.is_valid());
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| lock.try_write_for("a", LIMIT).map(drop));
        server.signal(Signal::CONT);
        waits.join().unwrap().unwrap();
    });
    assert!(matches!(held.release(), Err(EngineError::Lost)));
}

#[test]
fn requests_over_a_bad_way_are_granted_once_each() {
    let Some(server) = Memcached::begin() else { return };
    let proxy = Proxy::to(server.port);
    let by_proxy = || {
        let options = Options::new().time_to_live(Duration::from_secs(60)).patience(LIMIT);
        MemcachedTreeLock::<str>::connect(&format!("127.0.0.1:{}", proxy.port()), "test", options).unwrap()
    };
    let clients = [by_proxy(), by_proxy(), server.open()];
    count_over_a_bad_way(&proxy, clients.each_ref().map(|client| &**client), 30, 40, 20);
}

#[test]
fn server_that_is_away_or_cannot_be_used_is_told() {
    let opened = |url: &str, name: &str| {
        let options = Options::new().patience(Duration::from_millis(50));
        MemcachedTreeLock::<str>::connect(url, name, options).map(drop)
    };
    let nobody = format!("127.0.0.1:{}", free_port());
    assert!(matches!(opened(&nobody, "test"), Err(EngineError::Away(_))));
    assert!(matches!(opened("redis://127.0.0.1", "test"), Err(EngineError::Refused(_))));
    assert!(matches!(opened(&nobody, "a name"), Err(EngineError::Refused(_))));
    let Some(server) = Memcached::start_with(&["-C"]) else { return };
    let refused = opened(&server.url(), "test").unwrap_err();
    assert!(refused.to_string().contains("compare-and-set"), "{refused}");
}

/// What a snapshot comes to, and so what waits and is held, is more than an item of the server may be; requests are granted all the same.
#[test]
fn namespace_that_outgrows_an_item_goes_on() {
    let Some(server) = Memcached::begin() else { return };
    let lock = server.open_with(options());
    let paths: Vec<String> = (0..60).map(|number| format!("folder/{number:020000}")).collect();
    let guards: Vec<_> = paths.iter().map(|path| lock.write_arc(path).unwrap()).collect();
    for _ in 0..700 {
        drop(lock.write("x").unwrap());
    }
    assert!(guards.iter().all(|guard| guard.is_valid()));
    let many: Vec<&str> = paths.iter().map(String::as_str).collect();
    drop(guards);
    let refused = lock.try_lock_for(&[], &many, LIMIT).map(drop);
    assert!(matches!(refused, Err(MachineLockError::Engine(EngineError::Refused(_)))), "{refused:?}");
}
