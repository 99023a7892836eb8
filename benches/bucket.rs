//! What does the lock in a bucket cost, beside put-if-absent and delete in the same bucket?
//!
//! | case | |
//! |---|---|
//! | uncontended | one client, a path of 9 nodes, lock + release: goal at most 2 times one object that is put if absent, and deleted |
//! | requests | how many requests a pair of calls makes, alone and beside others, and what they cost in S3 |
//!
//! The buckets are in memory, in a temporary directory, and in memory with 2 ms for each request. In a cloud a request takes 10 to 50 ms, so
//! that their number decides, as in the last one; in the others it is what the runtime and the lock do themselves.

mod common;

use async_trait::async_trait;
use bytes::Bytes;
use common::{Arm, Bench, digits, times};
use futures::executor::block_on;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::fmt::{Debug, Display, Formatter};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use treelock::bucket::BucketTreeLock;
use treelock::machine::Options;

const PATH: &str = "srv/data/tenants/acme/projects/alpha/tables/users";

const PEERS: [&str; 2] = ["treelock", "put-if-absent and delete"];

/// Dollars for a million requests: PUT, GET, LIST. A DELETE is free. (S3 Standard, us-east-1, November 2026.)
const PRICES: [f64; 3] = [5.0, 0.4, 5.0];

fn main() {
    let Some(mut bench) = Bench::start("bucket", "what does the lock in a bucket cost?") else { return };
    uncontended(&mut bench);
    requests(&mut bench);
    bench.end();
}

fn open(store: &Arc<dyn ObjectStore>, lives: Duration) -> BucketTreeLock {
    let options = Options::new().time_to_live(lives);
    BucketTreeLock::open(Arc::clone(store), "locks", options).expect("the bucket can be used")
}

/// A namespace that takes requests, and whose clients are renewed thrice in so long a time.
fn begin(store: &Arc<dyn ObjectStore>, lives: Duration) -> BucketTreeLock {
    drop(open(store, Duration::from_millis(50)).write("a").expect("it can be had"));
    open(store, lives)
}

/// The lock that one would write with a bucket alone.
fn flat(store: &dyn ObjectStore) {
    let path = Path::from("flat/users");
    let owner = PutPayload::from_static(b"0123456789abcdef");
    block_on(async {
        store.put_opts(&path, owner, PutOptions::from(PutMode::Create)).await.expect("nobody has it");
        store.delete(&path).await.expect("it is there");
    });
}

fn uncontended(bench: &mut Bench) {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let local = LocalFileSystem::new_with_prefix(directory.path()).expect("it is a directory");
    let (counts, delay) = (Default::default(), Duration::from_millis(2));
    let far = Counted { store: InMemory::new(), counts, delay };
    let stores: [(&str, Arc<dyn ObjectStore>); 3] =
        [("memory", Arc::new(InMemory::new())), ("directory", Arc::new(local)), ("2 ms away", Arc::new(far))];
    let rounds = bench.pick(9, 51);
    let mut rows = Vec::new();
    for (name, store) in stores {
        let tree = begin(&store, Duration::from_secs(10));
        let arms = vec![
            Arm::new(PEERS[0], 0, bench.per_call(|| drop(tree.write(PATH).expect("it can be had")))),
            Arm::new(PEERS[1], 0, bench.per_call(|| flat(&*store))),
        ];
        let Some(found) = bench.compare(&format!("uncontended, {name}"), rounds, arms) else { continue };
        let ns = found.median(0, "ns");
        rows.push(vec![
            name.to_owned(),
            digits(ns / 1e3),
            times(found.ratio(0, 1, "ns"), found.median(1, "ns") / 1e3),
        ]);
    }
    bench.print("Lock + unlock of 9 nodes", &["bucket", "treelock, µs", "put-if-absent and delete (µs)"], rows);
}

/// Counts the requests that a cloud would bill.
struct Counted {
    store: InMemory,
    /// PUT, GET, LIST, objects deleted.
    counts: [AtomicU64; 4],
    /// What each request takes.
    delay: Duration,
}

impl Counted {
    fn count(&self, what: usize) {
        self.counts[what].fetch_add(1, Ordering::Relaxed);
        let start = Instant::now();
        // A sleep of some microseconds takes 50 more.
        while start.elapsed() < self.delay {
            std::thread::yield_now();
        }
    }

    fn all(&self) -> [u64; 4] {
        self.counts.each_ref().map(|count| count.load(Ordering::Relaxed))
    }
}

impl Debug for Counted {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        Debug::fmt(&self.store, f)
    }
}

impl Display for Counted {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        Display::fmt(&self.store, f)
    }
}

#[async_trait]
impl ObjectStore for Counted {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.count(0);
        self.store.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.count(1);
        self.store.get_opts(path, options).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[std::ops::Range<u64>]) -> Result<Vec<Bytes>> {
        self.store.get_ranges(path, ranges).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        // In the lock, by one request for a thousand; and free.
        self.count(3);
        self.store.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.count(2);
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.count(2);
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}

/// Without renewals, as good as: their cost is one of time, and stands in a row of its own.
fn requests(bench: &mut Bench) {
    const LONG: Duration = Duration::from_secs(3600);
    let pairs: u64 = bench.pick(2_000, 20_000);
    let mut rows = Vec::new();
    let mut row = |name: &str, counts: [u64; 4], pairs: f64| {
        let each = [0, 1, 2].map(|what| counts[what] as f64 / pairs);
        let dollars: f64 = each.iter().zip(PRICES).map(|(each, price)| each * price).sum();
        let mut row = vec![name.to_owned()];
        row.extend(each.map(|each| format!("{each:.2}")));
        row.push(format!("{dollars:.2}"));
        rows.push(row);
    };
    row("put-if-absent and delete", [1, 0, 0, 0], 1.0);
    for (name, clients, path, delay) in [
        ("one client", 1, None, 0),
        ("4 clients in turns, sub-trees of their own", 4, None, 0),
        ("4 clients at a time, sub-trees of their own", 4, None, 1000),
        ("4 clients at a time, one path, held 20 ms", 4, Some(PATH), 1000),
    ] {
        let delay = Duration::from_micros(delay);
        let counted = Arc::new(Counted { store: InMemory::new(), counts: Default::default(), delay });
        let store: Arc<dyn ObjectStore> = Arc::<Counted>::clone(&counted);
        let first = begin(&store, LONG);
        let mut locks = vec![first];
        locks.extend((1..clients).map(|_| open(&store, LONG)));
        let before = counted.all();
        let path_of =
            |client: usize| path.map_or_else(|| format!("srv/{client}/projects/alpha/tables/users"), str::to_owned);
        let pairs = if delay.is_zero() { pairs } else { pairs / 100 } / clients as u64 * clients as u64;
        if delay.is_zero() {
            for pair in 0..pairs as usize {
                let client = pair % clients;
                drop(locks[client].write(path_of(client)).expect("it can be had"));
            }
        } else {
            std::thread::scope(|scope| {
                for (client, lock) in locks.iter().enumerate() {
                    scope.spawn(move || {
                        for _ in 0..pairs / clients as u64 {
                            let guard = lock.write(path_of(client)).expect("it can be had");
                            if path.is_some() {
                                std::thread::sleep(Duration::from_millis(20));
                            }
                            drop(guard);
                        }
                    });
                }
            });
        }
        let after = counted.all();
        row(name, [0, 1, 2, 3].map(|what| after[what] - before[what]), pairs as f64);
    }
    // A renewal each third of the time to live.
    row("an hour of an idle client, time to live 10 s", [1080, 2160, 1080, 0], 1.0);
    bench.print(
        "Requests for a pair of calls, and dollars for a million pairs; of the last row, for a million hours",
        &["", "PUT", "GET", "LIST", "$"],
        rows,
    );
}
