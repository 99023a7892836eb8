//! What does the lock between machines cost in DynamoDB, beside the lock that its users write?
//!
//! | case | |
//! |---|---|
//! | uncontended | one client, a path of 9 nodes: goal at most 2 times a conditional put and a delete |
//! | hand-over | from the release to the grant of a waiter of another client |
//!
//! The server is DynamoDB Local, which is SQLite behind Java: its times are not those of the service, where a call takes some milliseconds. How
//! many units a call takes is what `tests/machines/dynamodb.rs` counts.

mod common;
#[allow(dead_code, reason = "the tests need more of it")]
#[path = "../tests/common/dynamodb_local.rs"]
mod dynamodb_local;
#[allow(dead_code, reason = "other benches need more of it")]
#[path = "common/engines.rs"]
mod engines;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use common::{Arm, Bench, digits, times};
use dynamodb_local::{Table, client};
use engines::{PATH, hand_overs, print_hand_overs};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use treelock::dynamodb::DynamoDbTreeLock;
use treelock::machine::Options;

const PEERS: [&str; 2] = ["treelock", "conditional put and delete"];

fn main() {
    let Some(mut bench) = Bench::start("dynamodb", "what does the lock cost in DynamoDB?") else { return };
    let Some(table) = Table::fresh() else { return };
    uncontended(&mut bench, &table);
    hand_over(&mut bench, &table);
    bench.end();
}

fn tree(table: &Table, namespace: &str) -> DynamoDbTreeLock {
    // A new namespace is closed for so long.
    let options = Options::new().time_to_live(Duration::from_secs(2));
    let tree = DynamoDbTreeLock::open(&client(table.port), &table.name, namespace, options);
    let tree: DynamoDbTreeLock = tree.expect("the server runs");
    drop(tree.write("first").expect("it can be had"));
    tree
}

/// An item that is put if it is not there, as one writes it with the client alone.
struct Flat<'a> {
    client: Client,
    table: &'a str,
    runtime: Runtime,
}

impl Flat<'_> {
    fn pair(&self) {
        let (path, number) = (AttributeValue::S(PATH.to_owned()), AttributeValue::N("0".to_owned()));
        let put = self.client.put_item().table_name(self.table).item("pk", path.clone()).item("sk", number.clone());
        let put = put.item("owner", AttributeValue::S("me".to_owned()));
        let delete = self.client.delete_item().table_name(self.table).key("pk", path).key("sk", number);
        self.runtime.block_on(async {
            put.condition_expression("attribute_not_exists(pk)").send().await.expect("nobody has it");
            delete.send().await.expect("it is there");
        });
    }
}

fn uncontended(bench: &mut Bench, table: &Table) {
    let measured = tree(table, "uncontended");
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    let flat = Flat { client: client(table.port), table: &table.name, runtime };
    let arms = vec![
        Arm::new(PEERS[0], 0, bench.per_call(|| drop(measured.write(PATH).expect("it can be had")))),
        Arm::new(PEERS[1], 0, bench.per_call(|| flat.pair())),
    ];
    let Some(found) = bench.compare("uncontended ", bench.pick(9, 31), arms) else { return };
    let ratio = times(found.ratio(0, 1, "ns"), found.median(1, "ns") / 1e3);
    let row = vec![digits(found.median(0, "ns") / 1e3), ratio];
    bench.print("Lock + unlock of 9 nodes", &["treelock, µs", "conditional put and delete (µs)"], vec![row]);
}

fn hand_over(bench: &mut Bench, table: &Table) {
    let (holder, waiter) = (tree(table, "hand-over"), tree(table, "hand-over"));
    let turns = bench.pick(10, 50);
    let arms = vec![Arm::new(PEERS[0], 0, || hand_overs(turns, &holder, &waiter))];
    let Some(found) = bench.compare("hand-over", bench.pick(3, 11), arms) else { return };
    print_hand_overs(bench, &found, &PEERS[..1]);
}
