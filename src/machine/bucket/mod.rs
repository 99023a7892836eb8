//! A bucket of an object store, which need not be anything else: [`BucketTreeLock`]; and [`look`], for one that only wants to see.
//!
//! ```
//! use object_store::memory::InMemory;
//! use std::sync::Arc;
//! use std::time::Duration;
//! use treelock::bucket::BucketTreeLock;
//! use treelock::machine::Options;
//!
//! let store = Arc::new(InMemory::new());
//! let options = Options::new().time_to_live(Duration::from_millis(50));
//! let lock: BucketTreeLock = BucketTreeLock::open(store, "locks/my-app", options)?;
//! let guard = lock.lock(&["templates"], &["site/2026"])?;
//! println!("write with the fence {}", guard.fence());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The lock lives beside the data that it guards, and needs no server of its own. It is for those that lock for seconds or longer, and
//! can wait for some tenths of a second: each request is two round trips to the bucket, and nobody is woken.
//!
//! # Which stores
//!
//! The user brings the store, as [`object_store`](https://docs.rs/object_store) makes it, with its credentials, its proxies and its retries; with
//! the feature of `object_store` that it needs, such as `aws`. It must be able to create an object only if there is none
//! (`PutMode::Create`), and to read and list at once what was created. Amazon S3, Google Cloud Storage, Azure Blob Storage and
//! Cloudflare R2 do both, and so do `LocalFileSystem`, on a file system that can link files, and `InMemory`. A server that speaks
//! S3 and ignores `If-None-Match` is refused when the namespace is begun.
//!
//! Give the lock a store of its own. Its calls run in a small runtime of `tokio` that it has for itself, and a connection that was opened in another
//! runtime, by a clone of the store, works for as long as that one runs.
//!
//! # What is in the bucket
//!
//! | object, below the prefix | |
//! |---|---|
//! | `orders/00000000000000000000` | the order that is the current one, and how it was begun |
//! | `IDENTITY/entries/00000000000000001234` | what one client has said |
//! | `IDENTITY/snapshots/00000000000000001200` | what all entries up to that come to |
//!
//! Objects are never changed. Who writes a snapshot, after about 1000 entries, removes the objects that are not needed any longer. Nobody else may
//! write below the prefix, and *no rule of a lifecycle may remove objects there*. Versions of objects may be kept, if a rule removes
//! old ones. The rights to get, put, list and delete below the prefix are enough.
//!
//! # Cost
//!
//! | | requests |
//! |---|---|
//! | a request that meets nobody | 1 PUT, 1 GET |
//! | a release | 1 PUT |
//! | for each entry that others have written since | 1 GET; if that was first, 1 PUT and 1 GET besides |
//! | a renewal, each third of the time to live | 1 PUT, 2 GET, 1 LIST |
//! | a request that waits | 2 to 3 GET a second, with the [longest look](Options::longest_look) of 500 ms |
//! | to open a lock | 1 PUT, 5 GET, 4 LIST, and 1 GET for each entry since the snapshot, some at a time |
//! | for 1000 entries, whoever wrote them | 1 PUT, some LIST, 1000 DELETE |
//!
//! At the prices of S3 (a million PUT or LIST 5 $, GET 0.40 $) a million pairs that meet nobody are 10.46 $, where an object that is put if absent, and
//! deleted, is 5 $. An idle client makes 18 renewals a minute with the time to live of 10 s, which is 8.50 $ a month; with one of 90 s it is 0.95 $.
//! Choose it as long as you can wait for what a client has that was killed, and close locks that are not needed.
//!
//! # What it promises, and what it does not
//!
//! What all engines promise that have no clock of their own is told in [`engines`](crate::machine::engines#engines-without-a-clock). And here:
//!
//! * *The bucket is emptied*, or the object of the order is deleted: the next call that brings news notices, and renewals do at the latest. All
//!   guards of the namespace are lost then, and it is closed for one time to live, as a new one is.
//! * *One entry is deleted, written over, or an older copy of the bucket takes its place* while clients go on: a client that reads both sides of the
//!   gap notices, or one whose last renewal is gone. *Until then two may be let in*: a request can be granted that conflicts with one that the
//!   lost entries granted; no time is promised. Its fence is higher, if the wall clocks of both clients differ by less than the time between.
//!   So end all programs before a bucket is restored, and use the fences.
//! * One snapshot is deleted: nothing is lost, as there is another one.

use crate::core::path::TreePath;
use crate::inspect::Snapshot;
use crate::machine::items::Items;
use crate::machine::items::store::{Created, Series, Store};
use crate::machine::runtime::Blocking;
use crate::machine::{EngineError, MachineTreeLock, Options, client};
use bytes::Bytes;
use futures_util::{StreamExt, TryFutureExt, TryStreamExt, future, stream};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;
use url::Url;

/// A [`MachineTreeLock`] in a bucket.
#[derive(Debug)]
pub struct BucketTreeLock<P: ?Sized + TreePath = str>(pub(super) MachineTreeLock<P>);

impl<P: ?Sized + TreePath> BucketTreeLock<P> {
    /// Opens the namespace below a prefix of a store, and begins it if nobody has.
    ///
    /// The [header of this module](self) tells which stores will do. A namespace that is new is closed for one
    /// [time to live](Options::time_to_live): requests wait, and tries fail.
    ///
    /// # Errors
    ///
    /// [`EngineError::Refused`], if the prefix is empty or the store will not; [`EngineError::Away`], if it does not
    /// answer; [`EngineError::OtherFormat`].
    pub fn open(store: Arc<dyn ObjectStore>, prefix: &str, options: Options) -> Result<Self, EngineError> {
        let bucket = Bucket::new(store, &Path::from(prefix))?;
        MachineTreeLock::connect(Box::new(Items::new(bucket, &options)), options).map(BucketTreeLock)
    }

    /// The same by a URL, such as `s3://bucket/locks/my-app`, with the credentials of the environment.
    ///
    /// The schemes are those of `object_store::parse_url`, as far as its features are enabled, and the variables are those that it knows, such
    /// as `AWS_ACCESS_KEY_ID` or `GOOGLE_APPLICATION_CREDENTIALS`. The path of the URL is the prefix.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open); and [`EngineError::Refused`], if the URL cannot be used.
    pub fn connect(url: &str, options: Options) -> Result<Self, EngineError> {
        let (store, prefix) = store_of(url)?;
        let bucket = Bucket::new(store, &prefix)?;
        MachineTreeLock::connect(Box::new(Items::new(bucket, &options)), options).map(BucketTreeLock)
    }
}

/// All that is held and awaited below a prefix, for one that does not open it; `None` if nobody has begun it, or its data is lost.
///
/// It changes nothing, and waits for nobody. What a client had that is gone is shown until others are let in.
///
/// # Errors
///
/// As [`BucketTreeLock::open`]; and [`EngineError::Damaged`].
pub fn look(store: Arc<dyn ObjectStore>, prefix: &str) -> Result<Option<Snapshot>, EngineError> {
    let options = Options::new();
    let bucket = Bucket::new(store, &Path::from(prefix))?;
    client::look(&Items::new(bucket, &options), &options)
}

/// The same by a URL: see [`BucketTreeLock::connect`].
///
/// # Errors
///
/// As [`BucketTreeLock::connect`]; and [`EngineError::Damaged`].
pub fn look_at(url: &str) -> Result<Option<Snapshot>, EngineError> {
    let (store, prefix) = store_of(url)?;
    look(store, prefix.as_ref())
}

impl<P: ?Sized + TreePath> Deref for BucketTreeLock<P> {
    type Target = MachineTreeLock<P>;

    fn deref(&self) -> &MachineTreeLock<P> {
        &self.0
    }
}

fn store_of(url: &str) -> Result<(Arc<dyn ObjectStore>, Path), EngineError> {
    let refused = |why: String| EngineError::refused(format!("the URL cannot be used: {why}"));
    let url = Url::parse(url).map_err(|why| refused(why.to_string()))?;
    // A variable that is not of UTF-8 is none that it knows.
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let (store, prefix) = object_store::parse_url_opts(&url, variables).map_err(|why| refused(why.to_string()))?;
    Ok((store.into(), prefix))
}

/// So many objects are asked for at a time, where many entries are to be read.
const MOST_AT_A_TIME: usize = 32;

/// The store of a namespace.
struct Bucket {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    runtime: Blocking,
}

impl Bucket {
    fn new(objects: Arc<dyn ObjectStore>, prefix: &Path) -> Result<Self, EngineError> {
        if prefix.as_ref().is_empty() {
            return Err(EngineError::refused("the prefix is empty: give one that all users of the lock know"));
        }
        // `LocalFileSystem` blocks in threads of it.
        let runtime = Blocking::new(MOST_AT_A_TIME)?;
        Ok(Bucket { objects, prefix: prefix.clone(), runtime })
    }

    fn folder(&self, series: Series) -> Path {
        match series {
            Series::Orders => self.prefix.clone().join("orders"),
            Series::Entries(order) => self.prefix.clone().join(order.to_text()).join("entries"),
            Series::Snapshots(order) => self.prefix.clone().join(order.to_text()).join("snapshots"),
        }
    }

    fn path(&self, series: Series, number: u64) -> Path {
        self.folder(series).join(format!("{number:020}"))
    }

    fn run<T: Send>(
        &self,
        deadline: Instant,
        call: impl Future<Output = Result<T, Error>> + Send,
    ) -> Result<T, EngineError> {
        self.runtime.run(deadline, call.map_err(told))
    }

    /// Creates an object; whether there was none.
    async fn put(&self, path: &Path, item: Bytes) -> Result<bool, EngineError> {
        match self.objects.put_opts(path, item.into(), PutOptions::from(PutMode::Create)).await {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(told(error)),
        }
    }

    async fn get(&self, series: Series, number: u64) -> Result<Option<Bytes>, Error> {
        let got = match self.objects.get(&self.path(series, number)).await {
            Ok(got) => got.bytes().await,
            Err(error) => Err(error),
        };
        match got {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn numbers(&self, series: Series) -> Result<Vec<u64>, Error> {
        let folder = self.folder(series);
        let listed = self.objects.list(Some(&folder));
        // What else is there is none of ours.
        let numbers = listed.try_filter_map(async |object| Ok(object.location.filename().and_then(number_of)));
        numbers.try_collect().await
    }
}

/// The number in the name of an object.
fn number_of(name: &str) -> Option<u64> {
    (name.len() == 20).then(|| name.parse().ok())?
}

impl Store for Bucket {
    fn create(&self, series: Series, number: u64, item: &[u8], deadline: Instant) -> Result<Created, EngineError> {
        let path = self.path(series, number);
        let item = Bytes::copy_from_slice(item);
        self.runtime.run(deadline, async {
            loop {
                if self.put(&path, item.clone()).await? {
                    // Nobody has used the order yet, so this is the time to see whether the store heeds what it is told.
                    if series == Series::Orders && self.put(&path, item.clone()).await? {
                        self.objects.delete(&path).await.map_err(told)?;
                        return Err(EngineError::refused(
                            "the store writes over an object that it is told to create only if there is none (If-None-Match): a \
                             lock cannot be in it",
                        ));
                    }
                    return Ok(Created::New);
                }
                // It may be trimmed meanwhile.
                if let Some(there) = self.get(series, number).await.map_err(told)? {
                    return Ok(Created::Taken(there.to_vec()));
                }
            }
        })
    }

    fn read(&self, series: Series, from: u64, most: usize, deadline: Instant) -> Result<Vec<Vec<u8>>, EngineError> {
        // What was read by then is a part of the way, and the next call goes on from there.
        let half = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
        self.run(deadline, async {
            let mut items = Vec::new();
            let mut at_a_time = 1;
            // Nobody knows how many there are: so more and more.
            while items.len() < most && (items.is_empty() || Instant::now() < half) {
                let first = from + items.len() as u64;
                let numbers = first..first + at_a_time.min(most - items.len()) as u64;
                let wanted = numbers.end - numbers.start;
                let got: Vec<_> = future::try_join_all(numbers.map(|number| self.get(series, number))).await?;
                items.extend(got.into_iter().map_while(|item| Some(item?.to_vec())));
                if (items.len() as u64) < first - from + wanted {
                    break;
                }
                at_a_time = (at_a_time * 2).min(MOST_AT_A_TIME);
            }
            Ok(items)
        })
    }

    fn newest(&self, series: Series, deadline: Instant) -> Result<Option<u64>, EngineError> {
        self.run(deadline, async { Ok(self.numbers(series).await?.into_iter().max()) })
    }

    fn trim(&self, series: Series, below: u64, deadline: Instant) -> Result<(), EngineError> {
        self.run(deadline, async {
            let mut numbers = self.numbers(series).await?;
            numbers.retain(|number| *number < below);
            numbers.sort_unstable();
            let paths: Vec<_> = numbers.into_iter().map(|number| Ok(self.path(series, number))).collect();
            let deleted = self.objects.delete_stream(stream::iter(paths).boxed());
            // Somebody else may trim at this moment.
            let others = deleted.filter(|deleted| future::ready(!matches!(deleted, Err(Error::NotFound { .. }))));
            others.try_for_each(async |_| Ok(())).await
        })
    }
}

/// What is not better the next time is a refusal.
fn told(error: Error) -> EngineError {
    match error {
        Error::PermissionDenied { .. }
        | Error::Unauthenticated { .. }
        | Error::NotSupported { .. }
        | Error::NotImplemented { .. }
        | Error::InvalidPath { .. }
        | Error::NotFound { .. }
        | Error::UnknownConfigurationKey { .. } => EngineError::Refused(Arc::new(error)),
        error => EngineError::Away(Arc::new(error)),
    }
}
