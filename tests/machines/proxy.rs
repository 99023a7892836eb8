//! A way to the server that can be cut: a proxy that passes on what a client sends and what the server answers, or does not.
//!
//! A client sends one call at a time, and a call is small: so what is read at once is one call, or its answer.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use treelock::machine::Options;
use treelock::redis::RedisTreeLock;

#[derive(Default)]
struct Way {
    /// The port of the server.
    to: AtomicU16,
    /// So many calls are cut off before the server gets them.
    before_call: AtomicU32,
    /// So many are cut off when the server has acted, before its answer.
    before_reply: AtomicU32,
    /// Of a thousand calls and answers so many are cut off, by a fixed sequence of chances.
    chance: AtomicU32,
    chances: AtomicU32,
    /// Everything is swallowed.
    is_silent: AtomicBool,
    /// New connections are closed at once.
    is_closed: AtomicBool,
    cuts: AtomicUsize,
    refused: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
}

pub(crate) struct Proxy {
    port: u16,
    way: Arc<Way>,
}

impl Proxy {
    pub(crate) fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy { port: listener.local_addr().unwrap().port(), way: Arc::default() };
        proxy.redirect(port);
        let way = Arc::clone(&proxy.way);
        // It ends with the process of the test.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if way.is_closed.load(Ordering::SeqCst) {
                    way.refused.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", way.to.load(Ordering::SeqCst))) else { continue };
                for stream in [&client, &server] {
                    let _ = stream.set_nodelay(true);
                    way.open.lock().unwrap().push(stream.try_clone().unwrap());
                }
                let pairs = [(&client, &server, true), (&server, &client, false)];
                for (from, to, is_call) in pairs {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let way = Arc::clone(&way);
                    thread::spawn(move || way.pass(from, to, is_call));
                }
            }
        });
        proxy
    }

    #[cfg(any(feature = "dynamodb", feature = "memcached", feature = "postgres"))]
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn open(&self, options: Options) -> RedisTreeLock {
        RedisTreeLock::connect(&format!("redis://127.0.0.1:{}/", self.port), "test", options).unwrap()
    }

    /// Sends what comes from now on to another server.
    pub(crate) fn redirect(&self, port: u16) {
        self.way.to.store(port, Ordering::SeqCst);
        self.cut();
    }

    /// Cuts all connections.
    pub(crate) fn cut(&self) {
        for stream in self.way.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn cut_before_call(&self, calls: u32) {
        self.way.before_call.store(calls, Ordering::SeqCst);
    }

    pub(crate) fn cut_before_reply(&self, calls: u32) {
        self.way.before_reply.store(calls, Ordering::SeqCst);
    }

    pub(crate) fn cut_by_chance(&self, of_a_thousand: u32) {
        self.way.chance.store(of_a_thousand, Ordering::SeqCst);
    }

    pub(crate) fn be_silent(&self, is_silent: bool) {
        self.way.is_silent.store(is_silent, Ordering::SeqCst);
        if !is_silent {
            // What was swallowed never comes.
            self.cut();
        }
    }

    /// Nobody gets through any longer, or again.
    pub(crate) fn close(&self, is_closed: bool) {
        self.way.is_closed.store(is_closed, Ordering::SeqCst);
        self.cut();
    }

    /// So many connections were closed at once.
    pub(crate) fn refused(&self) -> usize {
        self.way.refused.load(Ordering::SeqCst)
    }

    /// So many connections were cut by the counts and by chance.
    pub(crate) fn cuts(&self) -> usize {
        self.way.cuts.load(Ordering::SeqCst)
    }
}

impl Way {
    fn pass(&self, mut from: TcpStream, mut to: TcpStream, is_call: bool) {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(read) = from.read(&mut buffer) {
            if read == 0 {
                break;
            }
            if self.is_silent.load(Ordering::SeqCst) {
                continue;
            }
            let has = |word: &[u8]| buffer[..read].windows(word.len()).any(|bytes| bytes.eq_ignore_ascii_case(word));
            let is_counted = match is_call {
                true => has(b"EVAL") || has(b"XADD") || has(b"XRANGE"),
                // An array, by the script or by `XRANGE`; or the id of what was added.
                false => buffer[..read].starts_with(b"*") || (buffer[..read].starts_with(b"$") && has(b"-")),
            };
            let counted = is_counted.then_some(if is_call { &self.before_call } else { &self.before_reply });
            let down = |count: &AtomicU32| {
                count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| count.checked_sub(1)).is_ok()
            };
            if counted.is_some_and(down) || self.is_by_chance() {
                self.cuts.fetch_add(1, Ordering::SeqCst);
                break;
            }
            if to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }

    fn is_by_chance(&self) -> bool {
        let number = self.chances.fetch_add(1, Ordering::SeqCst);
        let mixed = u64::from(number).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        (mixed % 1000) < u64::from(self.chance.load(Ordering::SeqCst))
    }
}
