//! Many tasks, and threads beside them, under both flavours of tokio and under a small executor, with deadlines that cut
//! requests off; watched by counters (G1, G7). The control: the same without the lock must go wrong.

use crate::common::{LIMIT, assert_free, watched};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::task::yield_now;
use tokio::time::timeout;
use treelock::{ArcTreeLockGuard, TreeLock};

/// Each node of a tree, and its place in the counters.
const PATHS: [&str; 7] = ["", "a", "b", "a/a", "a/b", "b/a", "b/b"];
const WRITER: i64 = 1 << 20;
const TASKS: u64 = 24;
const ROUNDS: usize = 300;

/// Counts who is in which node: relaxed, so that they order nothing by themselves.
#[derive(Default)]
struct Tree {
    inside: [AtomicI64; PATHS.len()],
    wrong: AtomicUsize,
    granted: AtomicUsize,
    cut_off: AtomicUsize,
}

fn is_below(root: &str, node: &str) -> bool {
    root.is_empty() || node == root || node.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'))
}

impl Tree {
    fn count(&self, root: &str, by: i64) {
        let below = (0..PATHS.len()).filter(|&node| is_below(root, PATHS[node]));
        for node in below {
            let before = self.inside[node].fetch_add(by, Relaxed);
            let is_alone = before == 0 || (by == 1 && before < WRITER);
            if by > 0 && !is_alone {
                self.wrong.fetch_add(1, Relaxed);
            }
        }
    }
}

async fn task(lock: Option<Arc<TreeLock<str>>>, tree: Arc<Tree>, seed: u64, has_clock: bool) {
    let mut random = SmallRng::seed_from_u64(seed);
    for _ in 0..ROUNDS {
        let (root, writes) = (*PATHS.choose(&mut random).unwrap(), random.random_bool(0.4));
        let asked = async {
            let lock = lock.as_ref()?;
            let (reads, writes) = if writes { (vec![], vec![root]) } else { (vec![root], vec![]) };
            Some(lock.lock_arc_async(reads, writes).await.expect("the path can be used"))
        };
        let granted: Option<ArcTreeLockGuard<str>> = if has_clock && random.random_bool(0.3) {
            match timeout(Duration::from_micros(random.random_range(0..200)), asked).await {
                Ok(granted) => granted,
                Err(_) => {
                    tree.cut_off.fetch_add(1, Relaxed);
                    continue;
                }
            }
        } else {
            asked.await
        };
        let weight = if writes { WRITER } else { 1 };
        tree.count(root, weight);
        for _ in 0..random.random_range(0..3) {
            yield_now().await;
        }
        tree.count(root, -weight);
        tree.granted.fetch_add(1, Relaxed);
        drop(granted);
    }
}

/// A thread that locks the same tree, and blocks.
fn thread_beside(lock: &Arc<TreeLock<str>>, tree: &Arc<Tree>) -> thread::JoinHandle<()> {
    let (lock, tree) = (Arc::clone(lock), Arc::clone(tree));
    thread::spawn(move || {
        for round in 0..ROUNDS {
            let root = PATHS[round % PATHS.len()];
            let _guard = lock.write(root);
            tree.count(root, WRITER);
            tree.count(root, -WRITER);
        }
    })
}

fn tasks(
    lock: Option<&Arc<TreeLock<str>>>,
    tree: &Arc<Tree>,
    has_clock: bool,
) -> Vec<impl Future<Output = ()> + use<>> {
    (0..TASKS).map(|seed| task(lock.cloned(), Arc::clone(tree), seed, has_clock)).collect()
}

/// Runs the tasks with the lock, beside threads that lock too.
fn run(has_clock: bool, run: impl FnOnce(Vec<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>>)) {
    let (lock, tree) = (watched(TreeLock::<str>::default()), Arc::default());
    let threads = [0, 1].map(|_| thread_beside(&lock, &tree));
    run(tasks(Some(&lock), &tree, has_clock).into_iter().map(|task| Box::pin(task) as _).collect());
    threads.into_iter().for_each(crate::common::join);
    let (granted, cut_off) = (tree.granted.load(Relaxed), tree.cut_off.load(Relaxed));
    println!("{granted} requests of tasks granted, {cut_off} cut off");
    assert_eq!(granted + cut_off, TASKS as usize * ROUNDS);
    assert_eq!(cut_off > 0, has_clock, "{cut_off} requests were cut off");
    assert_eq!(tree.wrong.load(Relaxed), 0, "two were in one sub-tree");
    assert_free(&lock, "");
}

#[test]
fn tasks_of_tokio_on_many_threads() {
    run(true, |tasks| {
        let tokio = Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
        let tasks: Vec<_> = tasks.into_iter().map(|task| tokio.spawn(task)).collect();
        tokio.block_on(async {
            let all = futures::future::try_join_all(tasks);
            timeout(LIMIT, all).await.expect("the tasks end").expect("no task panics");
        });
    });
}

#[test]
fn tasks_of_tokio_on_one_thread() {
    run(true, |tasks| {
        let tokio = Builder::new_current_thread().enable_time().build().unwrap();
        tokio.block_on(async {
            timeout(LIMIT, futures::future::join_all(tasks)).await.expect("the tasks end");
        });
    });
}

#[test]
fn tasks_of_pollster() {
    run(false, |tasks| {
        let threads: Vec<_> = tasks.into_iter().map(|task| thread::spawn(|| pollster::block_on(task))).collect();
        threads.into_iter().for_each(crate::common::join);
    });
}

#[test]
fn tasks_of_the_executor_of_futures() {
    run(false, |tasks| {
        futures::executor::block_on(futures::future::join_all(tasks));
    });
}

#[test]
fn control_without_the_lock_two_meet() {
    let tree = Arc::default();
    let tokio = Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
    let tasks: Vec<_> = tasks(None, &tree, true).into_iter().map(|task| tokio.spawn(task)).collect();
    tasks.into_iter().for_each(|task| tokio.block_on(task).unwrap());
    assert!(tree.wrong.load(Relaxed) > 0, "the counters cannot see what the lock is for");
}
