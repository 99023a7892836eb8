//! What does a lock cost in a task, and how do tasks do that all want one node?
//!
//! On the runtime of tokio with a thread for each core. *Uncontended*: one task locks and unlocks a path again and again,
//! by `lock_async` and by the blocking call. *One node*: each task asks for it again as soon as it has released it, and
//! works for 1 µs inside; the peers are `tokio::sync::RwLock`, written, and `lockable`'s pool with one key.

mod common;

use common::{Arm, Bench, Figures, digits, leak, path_of, times};
use lockable::LockPool;
use std::hint;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::RwLock;
use treelock::TreeLock;

const CALLS: u32 = 5_000;
const INSIDE: Duration = Duration::from_micros(1);

fn main() {
    let Some(mut bench) = Bench::start("tasks", "what does a lock cost in a task?") else { return };
    let tokio = Builder::new_multi_thread().enable_time().build().expect("a runtime");
    let mut rows = vec![];
    for nodes in [1, 4, 9] {
        let path: &'static str = leak(path_of(nodes, "")).as_str();
        let lock: &'static TreeLock<str> = leak(TreeLock::default());
        let shared: &'static Arc<TreeLock<str>> = leak(Arc::default());
        let arms = vec![
            Arm::new("lock_async", nodes, || each(&tokio, move || async move { drop(lock.write_async(path).await) })),
            Arm::new("lock", nodes, || each(&tokio, move || async move { drop(lock.write(path)) })),
            Arm::new("lock_arc_async", nodes, || {
                each(&tokio, move || async move { drop(shared.write_arc_async(path).await) })
            }),
            Arm::new("lock_arc", nodes, || each(&tokio, move || async move { drop(shared.write_arc(path)) })),
        ];
        let case = format!("uncontended, {nodes} nodes");
        let Some(found) = bench.compare(&case, bench.pick(21, 201), arms) else { continue };
        let figure = |arm| digits(found.median(arm, "ns"));
        let beside = |arm, of| times(found.ratio(arm, of, "ns"), found.median(of, "ns"));
        rows.push(vec![case, figure(0), beside(0, 1), figure(2), beside(2, 3)]);
    }
    let header = ["lock + unlock", "lock_async, ns", "to lock (ns)", "lock_arc_async, ns", "to lock_arc (ns)"];
    bench.print("Uncontended, in one task", &header, rows);

    let mut rows = vec![];
    let slice = bench.pick(Duration::from_millis(20), Duration::from_millis(40));
    for tasks in [2, 8, 64] {
        let deep: &'static str = leak(path_of(9, "")).as_str();
        let locks: &'static [TreeLock<str>; 2] = leak([TreeLock::default(), TreeLock::default()]);
        let peer: &'static RwLock<()> = leak(RwLock::new(()));
        let pool: &'static LockPool<&str> = leak(LockPool::new());
        let arms = vec![
            Arm::new("treelock, 2 nodes", tasks, || {
                hot(&tokio, tasks, slice, move || async move { drop((locks[0].write_async("/hot").await, work())) })
            }),
            Arm::new("treelock, 9 nodes", tasks, || {
                hot(&tokio, tasks, slice, move || async move { drop((locks[1].write_async(deep).await, work())) })
            }),
            Arm::new("tokio::sync::RwLock", tasks, || {
                hot(&tokio, tasks, slice, move || async move { drop((peer.write().await, work())) })
            }),
            Arm::new("lockable", tasks, || {
                hot(&tokio, tasks, slice, move || async move { drop((pool.async_lock("/hot").await, work())) })
            }),
        ];
        let case = format!("one node, {tasks} tasks, 1 µs inside");
        let Some(found) = bench.compare(&case, bench.pick(15, 61), arms) else { continue };
        let beside = |of| times(found.ratio(0, of, "M/s"), found.median(of, "M/s"));
        let figure = |arm| digits(found.median(arm, "M/s"));
        rows.push(vec![case, figure(0), figure(1), beside(2), beside(3)]);
    }
    let header = ["", "treelock, M/s", "9 nodes, M/s", "to tokio::sync::RwLock", "to lockable"];
    bench.print("Throughput where all want one node, and treelock's ratio to each peer (its M/s)", &header, rows);
    bench.end();
}

/// Nanoseconds per call, in one task.
fn each<C, F>(tokio: &Runtime, call: C) -> Figures
where
    C: Fn() -> F + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let timed = async move {
        let start = Instant::now();
        for _ in 0..CALLS {
            call().await;
        }
        start.elapsed()
    };
    let elapsed = tokio.block_on(tokio.spawn(timed)).expect("it does not panic");
    vec![("ns", elapsed.as_nanos() as f64 / f64::from(CALLS))]
}

/// Millions of calls a second, by all tasks.
fn hot<C, F>(tokio: &Runtime, tasks: usize, slice: Duration, call: C) -> Figures
where
    C: Fn() -> F + Copy + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let start = Instant::now();
    let task = move || async move {
        let mut done = 0_u64;
        while start.elapsed() < slice {
            call().await;
            done += 1;
        }
        done
    };
    let tasks: Vec<_> = (0..tasks).map(|_| tokio.spawn(task())).collect();
    let done: u64 = tasks.into_iter().map(|task| tokio.block_on(task).expect("it does not panic")).sum();
    vec![("M/s", done as f64 / start.elapsed().as_nanos() as f64 * 1e3)]
}

fn work() {
    let end = Instant::now() + INSIDE;
    while Instant::now() < end {
        hint::spin_loop();
    }
}
