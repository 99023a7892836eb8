//! DynamoDB: [`DynamoDbTreeLock`]; and [`look`], for one that only wants to see.
//!
//! ```no_run
//! use treelock::dynamodb::DynamoDbTreeLock;
//! use treelock::machine::Options;
//!
//! let lock: DynamoDbTreeLock = DynamoDbTreeLock::connect("locks", "my-app:files", Options::new())?;
//! let guard = lock.lock(&["templates"], &["site/2026"])?;
//! println!("write with the fence {}", guard.fence());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The table
//!
//! One table can have any number of namespaces. It has a partition key `pk`, which is a string, and a sort key `sk`, which is a number:
//!
//! ```sh
//! aws dynamodb create-table --table-name locks --billing-mode PAY_PER_REQUEST \
//!     --attribute-definitions AttributeName=pk,AttributeType=S AttributeName=sk,AttributeType=N \
//!     --key-schema AttributeName=pk,KeyType=HASH AttributeName=sk,KeyType=RANGE
//! ```
//!
//! | `pk` | one item is | `sk` |
//! |---|---|---|
//! | `NAMESPACE/orders` | the order that is the current one, and how it was begun | 0, or 1 more than the one before |
//! | `NAMESPACE/IDENTITY/entries` | what one client has said | one after the other |
//! | `NAMESPACE/IDENTITY/snapshots` | what all entries up to that come to | that of the last entry |
//!
//! Items are put if they are not there, and never changed. Who writes a snapshot, after about 1000 entries, deletes those that are not
//! needed any longer. Give the table no attribute for a time to live, and let nobody else write below the namespace. Of a global table
//! all clients must use one region, since the others are told later, and nothing may stand between that answers of a cache, such as DAX.
//!
//! The rights are `GetItem`, `PutItem`, `Query` and `BatchWriteItem` of the table. The region, the credentials and the endpoint are those
//! of the environment, the profiles and the machine's role, as for all programs of AWS; [`open`](DynamoDbTreeLock::open) takes a client that
//! was made in another way.
//!
//! # Cost
//!
//! | | write units | read units |
//! |---|---|---|
//! | a request that meets nobody | 1 | 0 |
//! | a release | 1 | 0 |
//! | another client was faster with an entry | 1, and its entry is answered with the refusal | 1 |
//! | a renewal, each third of the time to live | 1 | 3 |
//! | a request that waits | 0 | 2 to 3 a second, with the [longest look](Options::longest_look) of 500 ms |
//! | to open a lock | 1 | 5, and 1 for each 4 KB of entries since the snapshot |
//! | for 1000 entries, whoever wrote them | 1000, to delete them, and 1 for each KB of a snapshot | 25 |
//!
//! A unit of writing is 1 KB, and an entry has the requests that the threads of a client make at a time, about 100 bytes for each root. With the
//! deletions, a million pairs that meet nobody are 4 million write units, where the lock that one writes by a conditional put and a delete
//! is 2 million; by the prices of November 2026 in us-east-1, on demand, 2.50 $ and 1.25 $. An idle client with the time to live of 10 s
//! makes 18 renewals a minute, which is 0.78 $ a month; with one of 90 s it is 0.09 $. A namespace is one partition, which takes 1000 write units
//! a second, so about 250 pairs: give what is never locked together a namespace each.
//!
//! A call that the service throttles is made again, after a pause that is drawn from a range which doubles each time (full jitter), for as
//! long as the [response timeout](Options::response_timeout) lets it; then the client has its [patience](Options::patience).
//!
//! # What it promises
//!
//! What all engines promise that have no clock of their own is told in [`engines`](crate::machine::engines#engines-without-a-clock).
//! DynamoDB loses nothing that it has answered. If somebody deletes the items or the table while clients go on, each notices with its next renewal, a third of the time to
//! live later at most, and all guards are lost; *until then two may be let in*. So end all programs before that, or give them another namespace.
//! What is held and awaited at a time must come to less than an item may be, 400 KB, or no snapshots are kept, and entries pile up.

use crate::core::path::TreePath;
use crate::inspect::Snapshot;
use crate::machine::engine::check_name;
use crate::machine::items::store::{Created, Series, Store};
use crate::machine::items::{Items, full_jitter};
use crate::machine::runtime::Blocking;
use crate::machine::{EngineError, MachineTreeLock, Options, client};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{AttributeValue, DeleteRequest, ReturnValuesOnConditionCheckFailure, WriteRequest};
use std::collections::HashMap;
use std::error::Error;
use std::ops::Deref;
use std::time::{Duration, Instant};

/// A [`MachineTreeLock`] in a table of DynamoDB.
#[derive(Debug)]
pub struct DynamoDbTreeLock<P: ?Sized + TreePath = str>(pub(super) MachineTreeLock<P>);

impl<P: ?Sized + TreePath> DynamoDbTreeLock<P> {
    /// Opens a namespace of a table, with what the environment says, and begins it if nobody has.
    ///
    /// The [header of this module](self) tells of the table. A namespace that is new is closed for one
    /// [time to live](Options::time_to_live): requests wait, and tries fail.
    ///
    /// # Errors
    ///
    /// [`EngineError::Refused`], if the table is not there, or the service or the credentials will not; [`EngineError::Away`],
    /// if the service does not answer; [`EngineError::OtherFormat`].
    pub fn connect(table: &str, namespace: &str, options: Options) -> Result<Self, EngineError> {
        let engine = Items::new(Table::of_environment(table, namespace)?, &options);
        MachineTreeLock::connect(Box::new(engine), options).map(DynamoDbTreeLock)
    }

    /// The same with a client that was made before.
    ///
    /// Its calls run in a small runtime of `tokio` that the lock has for itself. Its own repetitions are not used.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub fn open(client: &Client, table: &str, namespace: &str, options: Options) -> Result<Self, EngineError> {
        let engine = Items::new(Table::new(Blocking::new(1)?, client, table, namespace)?, &options);
        MachineTreeLock::connect(Box::new(engine), options).map(DynamoDbTreeLock)
    }
}

/// All that is held and awaited in a namespace, for one that does not open it; `None` if nobody has begun it.
///
/// It changes nothing, and waits for nobody. What a client had that is gone is shown until others are let in.
///
/// # Errors
///
/// As [`DynamoDbTreeLock::connect`]; and [`EngineError::Damaged`].
pub fn look(table: &str, namespace: &str) -> Result<Option<Snapshot>, EngineError> {
    let options = Options::new();
    client::look(&Items::new(Table::of_environment(table, namespace)?, &options), &options)
}

/// The same with a client that was made before: see [`DynamoDbTreeLock::open`].
///
/// # Errors
///
/// As [`look`].
pub fn look_by(client: &Client, table: &str, namespace: &str) -> Result<Option<Snapshot>, EngineError> {
    let options = Options::new();
    client::look(&Items::new(Table::new(Blocking::new(1)?, client, table, namespace)?, &options), &options)
}

impl<P: ?Sized + TreePath> Deref for DynamoDbTreeLock<P> {
    type Target = MachineTreeLock<P>;

    fn deref(&self) -> &MachineTreeLock<P> {
        &self.0
    }
}

const FIRST_LOOK: Duration = Duration::from_millis(25);
const LONGEST_LOOK: Duration = Duration::from_millis(500);

/// Pauses after a call that was throttled: full jitter, up to this.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// So long the machine's role may take to be found.
const LONGEST_SEARCH: Duration = Duration::from_secs(10);

/// The most items that one call deletes.
const MOST_DELETED: usize = 25;

/// The store of a namespace.
struct Table {
    runtime: Blocking,
    client: Client,
    table: String,
    namespace: String,
}

impl Table {
    fn of_environment(table: &str, namespace: &str) -> Result<Self, EngineError> {
        let runtime = Blocking::new(1)?;
        let found = async { Ok(aws_config::load_from_env().await) };
        let config = runtime.run(Instant::now() + LONGEST_SEARCH, found)?;
        Table::new(runtime, &Client::new(&config), table, namespace)
    }

    fn new(runtime: Blocking, client: &Client, table: &str, namespace: &str) -> Result<Self, EngineError> {
        check_name(namespace)?;
        if table.is_empty() {
            return Err(EngineError::refused("the table has no name"));
        }
        let config = client.config().to_builder().retry_config(RetryConfig::disabled());
        Ok(Table {
            runtime,
            client: Client::from_conf(config.build()),
            table: table.to_owned(),
            namespace: namespace.to_owned(),
        })
    }

    fn partition(&self, series: Series) -> AttributeValue {
        let namespace = &self.namespace;
        AttributeValue::S(match series {
            Series::Orders => format!("{namespace}/orders"),
            Series::Entries(order) => format!("{namespace}/{}/entries", order.to_text()),
            Series::Snapshots(order) => format!("{namespace}/{}/snapshots", order.to_text()),
        })
    }

    /// The items of a query, or their keys, in order; those that one answer has.
    async fn query(
        &self,
        series: Series,
        compare: Option<(&str, u64)>,
        most: Option<i32>,
        is_forward: bool,
        is_keys: bool,
    ) -> Result<Vec<Attributes>, EngineError> {
        let condition = match compare {
            Some((operator, _)) => format!("pk = :p AND sk {operator} :n"),
            None => "pk = :p".to_owned(),
        };
        let mut query = self.client.query().table_name(&self.table).consistent_read(true);
        query = query.key_condition_expression(condition).expression_attribute_values(":p", self.partition(series));
        query = query.set_limit(most).scan_index_forward(is_forward);
        if let Some((_, number)) = compare {
            query = query.expression_attribute_values(":n", number_of(number));
        }
        if is_keys {
            query = query.projection_expression("pk, sk");
        }
        Ok(patiently(|| query.clone().send()).await.map_err(told)?.items.unwrap_or_default())
    }
}

type Attributes = HashMap<String, AttributeValue>;

fn number_of(number: u64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

/// The number of an item; that is none of ours which has none.
fn sort_key(item: &Attributes) -> Result<u64, EngineError> {
    let number = item.get("sk").and_then(|number| number.as_n().ok()).and_then(|number| number.parse().ok());
    number
        .ok_or_else(|| EngineError::refused("an item of the namespace has a sort key that is no number of the lock"))
}

/// What stands in an item; nothing, if it is none of ours.
fn bytes(item: &mut Attributes) -> Vec<u8> {
    match item.remove("item") {
        Some(AttributeValue::B(blob)) => blob.into_inner(),
        _ => Vec::new(),
    }
}

/// Has a call made again for as long as it is throttled.
async fn patiently<T, E, C>(mut call: impl FnMut() -> C) -> Result<T, SdkError<E>>
where
    C: Future<Output = Result<T, SdkError<E>>>,
    E: ProvideErrorMetadata,
{
    let mut pauses = Pauses::default();
    loop {
        match call().await {
            Err(SdkError::ServiceError(error)) if is_throttled(error.err().code()) => pauses.next().await,
            answer => return answer,
        }
    }
}

/// Full jitter: each pause is drawn from a range that doubles.
#[derive(Default)]
struct Pauses(u32);

impl Pauses {
    async fn next(&mut self) {
        let pause = full_jitter(FIRST_PAUSE, LONGEST_PAUSE, self.0);
        self.0 += 1;
        tokio::time::sleep(pause).await;
    }
}

fn is_throttled(code: Option<&str>) -> bool {
    matches!(
        code,
        Some(
            "ProvisionedThroughputExceededException"
                | "ThrottlingException"
                | "Throttling"
                | "RequestLimitExceeded"
                | "LimitExceededException"
        )
    )
}

/// What is not better the next time is a refusal.
fn told<E: ProvideErrorMetadata + Error + Send + Sync + 'static>(error: SdkError<E>) -> EngineError {
    let why = DisplayErrorContext(&error).to_string();
    match &error {
        SdkError::ServiceError(of_service) => {
            let is_fault = of_service.raw().status().is_server_error();
            match of_service.err().code() {
                _ if is_fault => EngineError::away(why),
                Some("ResourceNotFoundException") => EngineError::refused(format!(
                    "the table is not there, in this region and account: create it with the keys pk (S) and sk (N): {why}"
                )),
                _ => EngineError::refused(why),
            }
        }
        SdkError::ConstructionFailure(_) => EngineError::refused(why),
        // There are no credentials, or no region.
        SdkError::DispatchFailure(failure)
            if failure.is_other() && failure.as_connector_error().is_some_and(|error| error.as_other().is_none()) =>
        {
            EngineError::refused(why)
        }
        _ => EngineError::away(why),
    }
}

impl Store for Table {
    fn create(&self, series: Series, number: u64, item: &[u8], deadline: Instant) -> Result<Created, EngineError> {
        let put = self.client.put_item().table_name(&self.table).item("pk", self.partition(series));
        let put = put.item("sk", number_of(number)).item("item", AttributeValue::B(Blob::new(item)));
        let put = put.condition_expression("attribute_not_exists(pk)");
        let put = put.return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        self.runtime.run(deadline, async {
            match patiently(|| put.clone().send()).await {
                Ok(_) => Ok(Created::New),
                Err(SdkError::ServiceError(error)) if error.err().is_conditional_check_failed_exception() => {
                    let PutItemError::ConditionalCheckFailedException(taken) = error.into_err() else {
                        unreachable!("it is that one")
                    };
                    Ok(Created::Taken(bytes(&mut taken.item.unwrap_or_default())))
                }
                Err(error) => Err(told(error)),
            }
        })
    }

    fn read(&self, series: Series, from: u64, most: usize, deadline: Instant) -> Result<Vec<Vec<u8>>, EngineError> {
        self.runtime.run(deadline, async {
            if most == 1 {
                let get = self.client.get_item().table_name(&self.table).consistent_read(true);
                let get = get.key("pk", self.partition(series)).key("sk", number_of(from));
                let got = patiently(|| get.clone().send()).await.map_err(told)?;
                return Ok(got.item.map(|mut item| bytes(&mut item)).into_iter().collect());
            }
            let found = self.query(series, Some((">=", from)), Some(most as i32), true, false).await?;
            let mut items = Vec::new();
            for mut item in found {
                if sort_key(&item)? != from + items.len() as u64 {
                    break;
                }
                items.push(bytes(&mut item));
            }
            Ok(items)
        })
    }

    fn newest(&self, series: Series, deadline: Instant) -> Result<Option<u64>, EngineError> {
        self.runtime.run(deadline, async {
            self.query(series, None, Some(1), false, true).await?.first().map(sort_key).transpose()
        })
    }

    fn trim(&self, series: Series, below: u64, deadline: Instant) -> Result<(), EngineError> {
        self.runtime.run(deadline, async {
            let mut pauses = Pauses::default();
            loop {
                let keys = self.query(series, Some(("<", below)), None, true, true).await?;
                if keys.is_empty() {
                    return Ok(());
                }
                for some in keys.chunks(MOST_DELETED) {
                    let deletes = some.iter().map(|key| {
                        let delete = DeleteRequest::builder().set_key(Some(key.clone())).build();
                        delete.map(|delete| WriteRequest::builder().delete_request(delete).build())
                    });
                    let deletes: Result<Vec<_>, _> = deletes.collect();
                    let deletes = deletes.map_err(|error| EngineError::refused(error.to_string()))?;
                    let write = self.client.batch_write_item().request_items(&self.table, deletes);
                    let written = patiently(|| write.clone().send()).await.map_err(told)?;
                    // What was throttled is found by the next query.
                    if written.unprocessed_items.is_some_and(|left| !left.is_empty()) {
                        pauses.next().await;
                    }
                }
            }
        })
    }

    /// A service that is told to delete what it has: see the header.
    fn may_be_emptied(&self) -> bool {
        false
    }

    fn looks(&self) -> (Duration, Duration) {
        (FIRST_LOOK, LONGEST_LOOK)
    }
}
