//! The nodes of a cluster: the one that has the namespace's slot, and what becomes of guards when another one takes the slot.

use super::server::{Server, free_port, program};
use crate::common::{LIMIT, wait_until};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use treelock::machine::{EngineError, MachineLockError, Options};
use treelock::redis::RedisTreeLock;

/// Longer than another node needs to take a slot.
const LONG: Duration = Duration::from_secs(30);

const KEYS: [&str; 4] =
    ["{treelock:test}:meta", "{treelock:test}:log", "{treelock:test}:live", "{treelock:test}:snap"];

struct Cluster {
    /// The first one has the slot of the namespace `test`.
    nodes: Vec<Server>,
}

impl Cluster {
    /// Three nodes; `None` where there is no program for it.
    fn begin() -> Option<Self> {
        let nodes: Vec<Server> = (0..3).map(|_| Cluster::node()).collect::<Option<_>>()?;
        let mut create = Command::new(program()?.replace("-server", "-cli"));
        create.args(["--cluster", "create"]).args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)));
        let created = create.arg("--cluster-yes").stdout(Stdio::null()).status().unwrap();
        assert!(created.success());
        let mut cluster = Cluster { nodes };
        cluster.wait_until_it_works();
        let has_slot = |node: &Server| node.ask(&["EXISTS", KEYS[0]]).is_ok();
        cluster.nodes.sort_by_key(|node| !has_slot(node));
        cluster.open_quickly("test");
        Some(cluster)
    }

    fn node() -> Option<Server> {
        let port = free_port().to_string();
        Server::start_with(&["--cluster-enabled", "yes", "--cluster-port", &port, "--cluster-node-timeout", "1000"])
    }

    fn wait_until_it_works(&self) {
        let works = |node: &Server| {
            let told = format!("{:?}", node.ask(&["CLUSTER", "INFO"]).unwrap());
            told.contains("cluster_state:ok") && told.contains(&format!("cluster_known_nodes:{}", self.nodes.len()))
        };
        wait_until("all nodes know each other", || self.nodes.iter().all(works));
    }

    fn open_as(&self, which: usize, namespace: &str, options: Options) -> RedisTreeLock {
        RedisTreeLock::connect(&self.url(which), namespace, options).unwrap()
    }

    /// A client to which one node is named.
    fn open(&self, which: usize) -> RedisTreeLock {
        self.open_as(which, "test", Options::new().time_to_live(LONG).patience(LIMIT))
    }

    fn open_quickly(&self, namespace: &str) {
        let quick = Options::new().time_to_live(Duration::from_millis(50));
        drop(self.open_as(0, namespace, quick).write("a").unwrap());
    }

    fn url(&self, which: usize) -> String {
        format!("redis+cluster://127.0.0.1:{}", self.nodes[which].port)
    }

    fn id(&self, which: usize) -> String {
        redis::from_redis_value(self.nodes[which].ask(&["CLUSTER", "MYID"]).unwrap()).unwrap()
    }
}

/// Whatever node has the slot, and whatever nodes are named.
#[test]
fn clients_find_the_node_of_their_namespace() {
    let Some(cluster) = Cluster::begin() else { return };
    let is_used = |node: &Server| format!("{:?}", node.ask(&["DBSIZE"]).unwrap()) != "int(0)";
    let mut namespaces = 0;
    while !cluster.nodes.iter().all(is_used) {
        let namespace = namespaces.to_string();
        cluster.open_quickly(&namespace);
        let options = || Options::new().time_to_live(LONG);
        let (one, other) = (cluster.open_as(1, &namespace, options()), cluster.open_as(2, &namespace, options()));
        let held = one.write("a").unwrap();
        assert!(matches!(other.try_write("a"), Err(MachineLockError::WouldBlock)));
        let start = Instant::now();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| other.try_write_for("a", LIMIT).map(|guard| guard.fence()));
            wait_until("it waits", || one.snapshot().unwrap().waiters.len() == 1);
            let fence = held.fence();
            held.release().unwrap();
            assert!(waiter.join().unwrap().unwrap() > fence);
        });
        assert!(start.elapsed() < LONG / 3, "only the renewal of a session has brought it");
        let looked = treelock::redis::look(&cluster.url(0), &namespace).unwrap().unwrap();
        assert!(looked.holders.is_empty());
        namespaces += 1;
    }
    eprintln!("three nodes have {namespaces} namespaces");
}

/// Requests wait while the keys are on their way. What is held is held, and a waiter hears of the release at the new node.
#[test]
fn guards_survive_the_move_of_their_slot() {
    let Some(cluster) = Cluster::begin() else { return };
    let (one, other) = (cluster.open(1), cluster.open(0));
    let held = one.write_arc("a").unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| other.try_write_for("a", LIMIT).map(|guard| guard.fence()));
        wait_until("it waits", || one.snapshot().unwrap().waiters.len() == 1);
        let [from, to, _] = &cluster.nodes[..] else { panic!() };
        let slot = format!("{:?}", from.ask(&["CLUSTER", "KEYSLOT", KEYS[0]]).unwrap());
        let slot = slot.trim_start_matches("int(").trim_end_matches(')');
        let (from_id, to_id) = (cluster.id(0), cluster.id(1));
        to.ask(&["CLUSTER", "SETSLOT", slot, "IMPORTING", &from_id]).unwrap();
        from.ask(&["CLUSTER", "SETSLOT", slot, "MIGRATING", &to_id]).unwrap();
        for keys in [&KEYS[..2], &KEYS[2..]] {
            let port = to.port.to_string();
            let migrate = [&["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"], keys].concat();
            from.ask(&migrate).unwrap();
            let asked = one.try_write_for("b", Duration::from_millis(50)).map(drop);
            assert!(matches!(asked, Err(MachineLockError::TimedOut)), "{asked:?}");
        }
        for node in [to, from] {
            node.ask(&["CLUSTER", "SETSLOT", slot, "NODE", &to_id]).unwrap();
        }
        let second = one.write("b").unwrap().fence();
        assert!(held.is_valid() && second > held.fence());
        let fence = held.fence();
        held.release().unwrap();
        assert!(waiter.join().unwrap().unwrap() > fence);
        assert!(to.ask(&["EXISTS", KEYS[0]]).is_ok());
    });
}

/// The clients were told of no other node.
#[test]
fn guards_survive_the_death_of_a_node_whose_replica_has_all() {
    let Some(mut cluster) = Cluster::begin() else { return };
    let Some(replica) = Cluster::node() else { return };
    let master = cluster.nodes[0].port.to_string();
    let mut add = Command::new(program().unwrap().replace("-server", "-cli"));
    add.args(["--cluster", "add-node", &format!("127.0.0.1:{}", replica.port), &format!("127.0.0.1:{master}")]);
    add.args(["--cluster-slave", "--cluster-master-id", &cluster.id(0)]);
    assert!(add.stdout(Stdio::null()).status().unwrap().success());
    cluster.nodes.push(replica);
    cluster.wait_until_it_works();
    let (one, other) = (cluster.open(0), cluster.open(0));
    let held = one.write_arc("a").unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| other.try_write_for("a", LIMIT).map(|guard| guard.fence()));
        wait_until("it waits", || one.snapshot().unwrap().waiters.len() == 1);
        let offset = |which: usize| cluster.nodes[which].count("replication", "master_repl_offset");
        wait_until("the replica has all", || offset(0) == offset(3));
        cluster.nodes[0].kill();
        let start = Instant::now();
        let second = one.write("b").unwrap().fence();
        eprintln!("a grant {:?} after the death of the node", start.elapsed());
        assert!(held.is_valid() && second > held.fence());
        let fence = held.fence();
        held.release().unwrap();
        assert!(waiter.join().unwrap().unwrap() > fence);
    });
    assert!(cluster.nodes[3].info("replication").contains("role:master"));
}

#[test]
fn cluster_is_told_where_the_url_does_not_say_so_and_the_other_way_round() {
    let Some(cluster) = Cluster::begin() else { return };
    let Some(server) = Server::start() else { return };
    let cases = [
        (cluster.url(1).replace("redis+cluster:", "redis:"), "redis+cluster://"),
        (server.url().replace("redis:", "redis+cluster:"), "redis://"),
    ];
    for (url, words) in cases {
        let error = RedisTreeLock::<str>::connect(&url, "test", Options::new()).map(drop).unwrap_err();
        assert!(matches!(error, EngineError::Refused(_)) && error.to_string().contains(words), "{url}: {error}");
        eprintln!("{error}");
    }
}
