//! A table of a test's own in DynamoDB Local, which Amazon gives for tests. The benchmark has it too.
//!
//! All tests of a process share one server, which takes a second to begin. It ends when they do.

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
};
use std::collections::HashMap;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(40);

/// The server, which ends when nobody has this any longer: it is run by a shell that waits for the end of its input.
struct Server {
    port: u16,
    _shell: Child,
}

/// Where its program is.
fn program() -> Option<PathBuf> {
    let told = std::env::var_os("DYNAMODB_LOCAL").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let kept = home.join(".cache/treelock/node_modules/amplify-dynamodb-simulator/emulator");
    let has_java = || Command::new("java").arg("-version").stderr(Stdio::null()).status().is_ok();
    let found = told.into_iter().chain([kept]).find(|folder| folder.join("DynamoDBLocal.jar").exists());
    let found = found.filter(|_| has_java());
    if found.is_none() {
        let how = "npm install --prefix ~/.cache/treelock amplify-dynamodb-simulator; Debian: default-jre-headless";
        assert!(std::env::var_os("CI").is_none(), "CI must have DynamoDB Local: {how}");
        eprintln!("left out: the tests of DynamoDB, which need DynamoDB Local ({how})");
    }
    found
}

impl Server {
    fn shared() -> Option<&'static Server> {
        static SERVER: OnceLock<Option<Server>> = OnceLock::new();
        SERVER.get_or_init(Server::start).as_ref()
    }

    fn start() -> Option<Server> {
        let folder = program()?;
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let java = format!(
            "java -Xmx512m -Djava.library.path=DynamoDBLocal_lib -jar DynamoDBLocal.jar -inMemory -sharedDb -port {port} & \
             read -r _; kill $!"
        );
        let mut command = Command::new("sh");
        command.args(["-c", &java]).current_dir(folder).stdin(Stdio::piped());
        let server = Server { port, _shell: command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap() };
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < LIMIT, "the server does not begin to answer");
            std::thread::yield_now();
        }
        Some(server)
    }
}

pub(crate) fn client(port: u16) -> Client {
    let config = aws_sdk_dynamodb::Config::builder().behavior_version(BehaviorVersion::latest());
    let config = config.region(Region::new("us-east-1")).endpoint_url(format!("http://127.0.0.1:{port}"));
    Client::from_conf(config.credentials_provider(Credentials::new("test", "secret", None, None, "a test")).build())
}

pub(crate) fn wait_for<T>(call: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(call)
}

/// The table of a test.
pub(crate) struct Table {
    pub(crate) port: u16,
    pub(crate) name: String,
}

impl Table {
    /// `None` where there is no program for it.
    pub(crate) fn fresh() -> Option<Self> {
        static TABLES: AtomicU32 = AtomicU32::new(0);
        let port = Server::shared()?.port;
        let table = Table { port, name: format!("locks-{}", TABLES.fetch_add(1, Ordering::SeqCst)) };
        table.make();
        Some(table)
    }

    pub(crate) fn make(&self) {
        let key = |name, kind, of: ScalarAttributeType| {
            let attribute = AttributeDefinition::builder().attribute_name(name).attribute_type(of).build().unwrap();
            (KeySchemaElement::builder().attribute_name(name).key_type(kind).build().unwrap(), attribute)
        };
        let keys =
            [key("pk", KeyType::Hash, ScalarAttributeType::S), key("sk", KeyType::Range, ScalarAttributeType::N)];
        let mut create = client(self.port).create_table().table_name(&self.name);
        create = create.billing_mode(BillingMode::PayPerRequest);
        for (key, attribute) in keys {
            create = create.key_schema(key).attribute_definitions(attribute);
        }
        wait_for(create.send()).unwrap();
    }

    /// What a program has in its environment that is to find it.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL_DYNAMODB", format!("http://127.0.0.1:{}", self.port)),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
        ]
    }

    /// The keys of the items whose partition has this in its name.
    pub(crate) fn keys(&self, part: &str) -> Vec<(String, String)> {
        let scanned = client(self.port).scan().table_name(&self.name).consistent_read(true);
        let scanned = wait_for(scanned.into_paginator().items().send().try_collect()).unwrap();
        let key = |item: &HashMap<String, AttributeValue>| {
            (item["pk"].as_s().unwrap().clone(), item["sk"].as_n().unwrap().clone())
        };
        let mut keys: Vec<_> = scanned.iter().map(key).filter(|(partition, _)| partition.contains(part)).collect();
        keys.sort_by_key(|(partition, number)| (partition.clone(), number.parse::<u64>().unwrap()));
        keys
    }

    pub(crate) fn delete(&self, (partition, number): (String, String)) {
        let delete = client(self.port).delete_item().table_name(&self.name);
        let delete = delete.key("pk", AttributeValue::S(partition)).key("sk", AttributeValue::N(number));
        wait_for(delete.send()).unwrap();
    }

    pub(crate) fn write_over(&self, (partition, number): (String, String), bytes: &[u8]) {
        let put = client(self.port).put_item().table_name(&self.name).item("pk", AttributeValue::S(partition));
        let put = put.item("sk", AttributeValue::N(number)).item("item", AttributeValue::B(Blob::new(bytes)));
        wait_for(put.send()).unwrap();
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // It may be gone.
        let _ = wait_for(client(self.port).delete_table().table_name(&self.name).send());
    }
}
