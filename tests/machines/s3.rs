//! A server that speaks S3, of a test's own: moto, which simulates it in memory, on a free port of the loopback.
//!
//! It serves one request after the other: with threads it looks whether an object is there, and puts it, in two steps.

use super::bucket::PREFIX;
use super::conformance::Place;
use crate::common::{LIMIT, wait_until};
use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Once};
use std::time::Duration;
use treelock::bucket::{BucketTreeLock, look};
use treelock::machine::{EngineError, Options};
use treelock::{Snapshot, TreePath};

const SERVER: &str = "
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
application = DomainDispatcherApplication(create_backend_app)
run_simple('127.0.0.1', int(sys.argv[1]), application, threaded=False)
";

pub(crate) struct S3 {
    port: u16,
    child: Child,
}

impl S3 {
    fn start() -> Option<S3> {
        let python = |arguments: &[&str]| {
            let mut command = Command::new("python3");
            command.arg("-c").args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        if !python(&["import moto.server"]).status().is_ok_and(|status| status.success()) {
            assert!(std::env::var_os("CI").is_none(), "CI must have a server: pip install 'moto[server,s3]'");
            static ONCE: Once = Once::new();
            ONCE.call_once(|| {
                eprintln!("left out: the tests of S3, which need moto (pip install 'moto[server,s3]')")
            });
            return None;
        }
        // One that nobody used a moment ago.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = python(&[SERVER, &port.to_string()]).spawn().unwrap();
        let server = S3 { port, child };
        wait_until("the server has a bucket", || server.make_bucket().is_some_and(|answer| answer.contains(" 200 ")));
        Some(server)
    }

    fn make_bucket(&self) -> Option<String> {
        let mut connection = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        connection.set_read_timeout(Some(LIMIT)).ok()?;
        let host = format!("127.0.0.1:{}", self.port);
        write!(connection, "PUT /bucket HTTP/1.0\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n").ok()?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// The client of one lock.
    fn store(&self) -> Arc<dyn ObjectStore> {
        let builder = AmazonS3Builder::new().with_endpoint(format!("http://127.0.0.1:{}", self.port));
        let builder = builder.with_allow_http(true).with_region("us-east-1").with_bucket_name("bucket");
        Arc::new(builder.with_access_key_id("somebody").with_secret_access_key("secret").build().unwrap())
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Place for S3 {
    type Lock<P: ?Sized + TreePath + 'static> = BucketTreeLock<P>;

    fn start() -> Option<Self> {
        S3::start()
    }

    fn try_open_as<P: ?Sized + TreePath + 'static>(
        &self,
        options: Options,
    ) -> Result<BucketTreeLock<P>, EngineError> {
        BucketTreeLock::open(self.store(), PREFIX, options)
    }

    fn url(&self) -> String {
        unreachable!("the tests of other processes have a bucket in a directory")
    }

    fn open_quickly(&self) {
        drop(self.open_with(Options::new().time_to_live(Duration::from_secs(2))).write("a").unwrap());
    }

    fn serves_a_stream(&self) -> bool {
        eprintln!(
            "left out: it answers 200 requests a second, one by one, so that a client that is behind stays behind"
        );
        false
    }

    fn look(&self) -> Option<Snapshot> {
        look(self.store(), PREFIX).unwrap()
    }
}
