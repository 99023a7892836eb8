//! What becomes of guards when a bucket loses objects, or has something foreign (M1, M6).

use super::agent::Agent;
use super::bucket::{Directory, Memory, PREFIX};
use super::conformance::Place;
use super::loss::{self, options, watched};
use crate::common::{LIMIT, wait_until};
use futures::executor::block_on;
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use treelock::bucket::{BucketTreeLock, look};
use treelock::machine::{EngineError, MachineLockError};

const SHORT: Duration = Duration::from_secs(1);

type Bucket = Arc<dyn ObjectStore>;

fn bucket() -> Bucket {
    Arc::new(InMemory::new())
}

#[track_caller]
fn all_is_lost_by(bucket: &Bucket, lose: impl FnOnce()) {
    loss::all_is_lost_by(&mut Memory(Arc::clone(bucket)), |_| lose());
}

fn open(bucket: &Bucket) -> BucketTreeLock {
    BucketTreeLock::open(Arc::clone(bucket), PREFIX, options()).unwrap()
}

/// The objects that have this in their names, in order.
fn objects(bucket: &Bucket, part: &str) -> Vec<Path> {
    let listed = bucket.list(Some(&Path::from(PREFIX))).map_ok(|object| object.location);
    let mut all: Vec<Path> = block_on(listed.try_collect()).unwrap();
    all.retain(|path| path.as_ref().contains(part));
    all.sort();
    all
}

fn delete(bucket: &Bucket, paths: Vec<Path>) {
    assert!(!paths.is_empty());
    let paths = futures::stream::iter(paths.into_iter().map(Ok)).boxed();
    block_on(bucket.delete_stream(paths).try_collect::<Vec<_>>()).unwrap();
}

fn write_over(bucket: &Bucket, path: &Path, bytes: &[u8]) {
    block_on(bucket.put(path, bytes.to_vec().into())).unwrap();
}

#[test]
fn emptied_bucket_loses_all_guards() {
    let bucket = bucket();
    all_is_lost_by(&bucket, || delete(&bucket, objects(&bucket, "")));
}

#[test]
fn order_that_is_deleted_or_written_over_is_missed() {
    let bucket = bucket();
    all_is_lost_by(&bucket, || delete(&bucket, objects(&bucket, "/orders/")));
    all_is_lost_by(&bucket, || write_over(&bucket, &objects(&bucket, "/orders/")[0], b"something"));
    all_is_lost_by(&bucket, || write_over(&bucket, &objects(&bucket, "/orders/")[0], b""));
}

/// The next one that reads it is told.
#[test]
fn entry_that_is_deleted_or_written_over_is_missed() {
    for garbage in [None, Some(&b"something"[..])] {
        let bucket = bucket();
        all_is_lost_by(&bucket, || {
            let entries = objects(&bucket, "/entries/");
            let entry = &entries[entries.len() / 2];
            match garbage {
                None => delete(&bucket, vec![entry.clone()]),
                Some(garbage) => write_over(&bucket, entry, garbage),
            }
        });
    }
}

/// A lock that has written so much that there are two snapshots.
fn long_order(bucket: &Bucket) -> BucketTreeLock {
    let lock = open(bucket);
    while objects(bucket, "/snapshots/").len() < 2 {
        (0..50).for_each(|_| drop(lock.write("x").unwrap()));
    }
    lock
}

#[test]
fn snapshot_that_is_deleted_loses_nothing() {
    let bucket = bucket();
    let lock = long_order(&bucket);
    let (held, _) = watched(&lock, "a");
    let snapshots = objects(&bucket, "/snapshots/");
    delete(&bucket, vec![snapshots.last().unwrap().clone()]);
    let late = open(&bucket);
    assert!(matches!(late.try_write("a"), Err(MachineLockError::WouldBlock)));
    drop(late.write("b").unwrap());
    assert!(held.is_valid());
    held.release().unwrap();
}

#[test]
fn snapshots_that_are_all_gone_or_foreign_are_missed() {
    for is_deleted in [true, false] {
        let bucket = bucket();
        let _long = long_order(&bucket);
        all_is_lost_by(&bucket, || match objects(&bucket, "/snapshots/") {
            snapshots if is_deleted => delete(&bucket, snapshots),
            snapshots => write_over(&bucket, snapshots.last().unwrap(), b"something"),
        });
    }
}

/// Entries and snapshots that nobody needs are removed.
#[test]
fn bucket_is_kept_short() {
    let bucket = bucket();
    let (lock, _idle) = (open(&bucket), open(&bucket));
    (0..4000).for_each(|_| drop(lock.write("a").unwrap()));
    // What the idle client needs is known when it has renewed its session.
    wait_until("what nobody needs is removed", || {
        (0..10).for_each(|_| drop(lock.write("a").unwrap()));
        objects(&bucket, "").len() < 3500
    });
}

/// CRC-32, bit by bit.
fn sum(bytes: &[u8]) -> [u8; 4] {
    let byte =
        |sum: u32, byte: &u8| (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xEDB8_8320 * (sum & 1)));
    (!bytes.iter().fold(u32::MAX, byte)).to_le_bytes()
}

#[test]
fn another_format_is_told() {
    let bucket = bucket();
    let lock = open(&bucket);
    let (held, told) = watched(&lock, "a");
    // 999 as postcard writes it, nothing else, and a sum.
    let order = [0xE7, 0x07, 0];
    write_over(&bucket, &objects(&bucket, "/orders/")[0], &[&order[..], &sum(&order)].concat());
    let opened = BucketTreeLock::<str>::open(Arc::clone(&bucket), PREFIX, options()).map(drop);
    assert!(matches!(&opened, Err(EngineError::OtherFormat(format)) if format == "999"), "{opened:?}");
    assert!(matches!(look(Arc::clone(&bucket), PREFIX), Err(EngineError::OtherFormat(_))));
    wait_until("the guard is lost", || !held.is_valid() && told.load(Ordering::SeqCst));
    let asked = lock.write("b").map(drop);
    assert!(matches!(asked, Err(MachineLockError::Engine(EngineError::OtherFormat(_)))), "{asked:?}");
}

/// Nothing else tells a client that was killed from one that lives.
#[test]
fn other_time_to_live_is_taken_when_all_that_had_the_old_one_were_watched_in_vain() {
    let Some(directory) = Directory::begin() else { return };
    let twice = options().time_to_live(2 * SHORT);
    let mut killed = Agent::new(&directory, SHORT);
    killed.does("lock 1 w:a");
    let refused = directory.try_open_as::<str>(twice.clone()).map(drop);
    assert!(matches!(refused, Err(EngineError::Refused(_))), "{refused:?}");
    killed.kill();
    let impatient = directory.try_open_as::<str>(twice.clone().patience(SHORT / 4)).map(drop);
    assert!(matches!(impatient, Err(EngineError::Refused(_))), "{impatient:?}");
    let start = Instant::now();
    let lock = directory.try_open_as::<str>(twice).unwrap();
    assert!(start.elapsed() > SHORT / 2, "{:?}", start.elapsed());
    drop(lock.try_write_for("a", LIMIT).unwrap());
}

#[test]
fn prefix_and_url_that_cannot_be_used_are_refused() {
    let refused = BucketTreeLock::<str>::open(bucket(), "", options()).map(drop);
    assert!(matches!(refused, Err(EngineError::Refused(_))), "{refused:?}");
    for url in ["no url", "ftp://host/locks", "memory:///"] {
        let refused = BucketTreeLock::<str>::connect(url, options()).map(drop);
        assert!(matches!(refused, Err(EngineError::Refused(_))), "{url}: {refused:?}");
    }
}

/// A new namespace is closed for one time to live: requests wait, tries fail, deadlines pass, and snapshots are answered.
#[test]
fn new_namespace_is_closed_for_one_time_to_live() {
    let bucket = bucket();
    let start = Instant::now();
    let lock = open(&bucket);
    assert!(matches!(lock.try_write("a"), Err(MachineLockError::WouldBlock)));
    let refused = lock.try_write_for("a", Duration::from_millis(50)).map(drop);
    assert!(matches!(refused, Err(MachineLockError::TimedOut)), "{refused:?}");
    assert!(lock.snapshot().unwrap().holders.is_empty());
    let guard = lock.write("a").unwrap();
    let took = start.elapsed();
    assert!(took >= SHORT && took < 2 * SHORT, "{took:?}");
    guard.release().unwrap();
    (0..100).for_each(|_| drop(lock.try_write("a").unwrap()));
}

/// Inside a runtime of tokio a thread may lock too.
#[test]
fn thread_of_a_runtime_may_lock() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let lock = open(&bucket());
        lock.write("a").unwrap().release().unwrap();
    });
}

/// Some servers that speak S3 put an object whatever the condition says.
mod heedless {
    use super::*;
    use async_trait::async_trait;
    use futures::stream::BoxStream;
    use object_store::{
        CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMode, PutMultipartOptions,
        PutOptions, PutPayload, PutResult, Result,
    };
    use std::fmt::{Display, Formatter};

    #[derive(Debug)]
    struct Heedless(InMemory);

    impl Display for Heedless {
        fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
            f.write_str("heedless")
        }
    }

    #[async_trait]
    impl ObjectStore for Heedless {
        async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
            self.0.put_opts(path, payload, PutOptions { mode: PutMode::Overwrite, ..options }).await
        }

        async fn put_multipart_opts(
            &self,
            path: &Path,
            options: PutMultipartOptions,
        ) -> Result<Box<dyn MultipartUpload>> {
            self.0.put_multipart_opts(path, options).await
        }

        async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
            self.0.get_opts(path, options).await
        }

        fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
            self.0.delete_stream(paths)
        }

        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            self.0.list(prefix)
        }

        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
            self.0.list_with_delimiter(prefix).await
        }

        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
            self.0.copy_opts(from, to, options).await
        }
    }

    #[test]
    fn store_that_writes_over_what_is_there_is_refused() {
        let bucket: Bucket = Arc::new(Heedless(InMemory::new()));
        for _ in 0..2 {
            let refused = BucketTreeLock::<str>::open(Arc::clone(&bucket), PREFIX, options()).map(drop);
            assert!(matches!(&refused, Err(EngineError::Refused(why)) if why.to_string().contains("If-None-Match")));
            assert!(objects(&bucket, "").is_empty());
        }
    }
}
