//! Which cache lines does one thread write that another one writes or reads too, where their sub-trees have nothing in
//! common but ancestors?
//!
//! Such a line moves to and fro between cores, which is what keeps plain counters from scaling. So this tells for
//! many cores what `scaling` can measure only for the cores that the machine has. It does not measure time: the
//! program runs once more under valgrind, whose `lackey` lists every load and store, and the threads lock paths of
//! their own in turn, in the steady state. The peers are the control: they do share lines. Two threads never lock at
//! the same moment, so what they write when they meet is not seen.
//!
//! What each thread did is cut out of the list by its stores to a line that nothing else touches.

mod common;

use common::peers::{Access, Floor, GlobalMutex, MapOfLocks, Peer};
use common::{Bench, leak};
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;
use treelock::TreeLock;

const PEERS: [&str; 4] = ["treelock", "plain counters", "mutex + map", "dashmap"];

/// The rounds before the lists begin: every node is hot by then.
const WARM: usize = 200;
const LISTED: usize = 100;

/// Each thread stores here when its list begins and when it ends.
#[repr(align(128))]
struct Mark(AtomicU64);

static MARK: Mark = Mark(AtomicU64::new(0));

/// Names the peer and the number of threads to a program that is being listed.
const PROGRAM: &str = "TREELOCK_LISTED_PROGRAM";

fn main() {
    if let Ok(program) = std::env::var(PROGRAM) {
        let (peer, threads) = program.split_once(':').expect("a peer and a number");
        return listed(peer, threads.parse().expect("a number of threads"));
    }
    let question = "which cache lines do threads share, below shared ancestors?";
    let Some(bench) = Bench::start("cache_lines", question) else { return };
    if Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("valgrind is not installed: nothing is listed");
        return bench.end();
    }
    let mut rows = Vec::new();
    for threads in [2, bench.pick(4, 16)] {
        for peer in PEERS {
            println!("... {peer}, {threads} threads");
            let lines = lines(peer, threads);
            let count = |counts: fn(&Line) -> bool| lines.values().filter(|line| counts(line)).count();
            let shared = [
                count(|line| line.writers.count_ones() > 1),
                count(|line| line.writers.count_ones() == 1 && line.readers & !line.writers != 0),
            ];
            let written = count(|line| line.writers != 0) / threads;
            let read = count(|line| line.readers != 0 && line.writers == 0);
            let mut row = vec![format!("{peer}, {threads} threads")];
            row.extend(shared.into_iter().chain([written, read]).map(|lines| lines.to_string()));
            rows.push(row);
        }
    }
    let header = [
        "",
        "written by several",
        "written by one, read by others",
        "written, per thread",
        "only read, by all together",
    ];
    bench.print("Cache lines of 64 bytes", &header, rows);
    bench.end();
}

/// The program that is listed.
fn listed(peer: &str, threads: usize) {
    match peer {
        "treelock" => take_turns(&TreeLock::<str>::default(), threads),
        "plain counters" => take_turns(&Floor::<64>::new(1 << 10), threads),
        "mutex + map" => take_turns(&GlobalMutex::default(), threads),
        "dashmap" => take_turns(&MapOfLocks::default(), threads),
        _ => panic!("{PROGRAM} names no peer: {peer}"),
    }
}

fn take_turns(peer: &impl Peer<str>, threads: usize) {
    println!("{:p}", &raw const MARK);
    thread::scope(|scope| {
        let turns: Vec<_> = (0..threads)
            .map(|thread| {
                let path = leak(format!("/srv/data/tenants/t{thread}/projects/alpha/tables/users")).as_str();
                let (turn, wait) = channel();
                let (done, ended) = channel();
                scope.spawn(move || {
                    (0..WARM).for_each(|_| peer.with(path, Access::Write, || {}));
                    while let Ok(()) = wait.recv() {
                        // Sequentially consistent: it stays where it is.
                        MARK.0.store(1, Ordering::SeqCst);
                        (0..LISTED).for_each(|_| peer.with(path, Access::Write, || {}));
                        MARK.0.store(0, Ordering::SeqCst);
                        done.send(()).expect("somebody waits for it");
                    }
                });
                (turn, ended)
            })
            .collect();
        // The first round is a rehearsal: everything is warm after it.
        for _ in 0..2 {
            for (turn, ended) in &turns {
                turn.send(()).expect("it waits for its turn");
                ended.recv().expect("it ends its turn");
                // The thread has said that it is done, and is not back at its wait yet: what it does until then
                // belongs to no list.
                thread::sleep(Duration::from_millis(20));
            }
        }
    });
}

/// Which threads read a line and which wrote it: a bit for each thread.
#[derive(Clone, Copy, Default)]
struct Line {
    readers: u64,
    writers: u64,
}

/// What the threads touched between their marks.
fn lines(peer: &str, threads: usize) -> HashMap<u64, Line> {
    let mut child = Command::new("valgrind")
        .args(["--tool=lackey", "--trace-mem=yes", "--log-fd=1"])
        .arg(std::env::current_exe().expect("a bench has a program"))
        .env(PROGRAM, format!("{peer}:{threads}"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("valgrind was there before");
    let output = BufReader::new(child.stdout.take().expect("it is piped"));
    let (mut mark, mut marks) = (None, 0);
    let mut lines: HashMap<u64, Line> = HashMap::new();
    for text in output.lines().map(|text| text.expect("valgrind writes text")) {
        if let Some(address) = text.strip_prefix("0x") {
            mark = u64::from_str_radix(address, 16).ok();
        }
        // ` S 1ffefff5c8,8`: a store; `L` is a load, `M` both, `I` an instruction.
        let (reads, writes) = match text.get(..3) {
            Some(" L ") => (1, 0),
            Some(" S ") => (0, 1),
            Some(" M ") => (1, 1),
            _ => continue,
        };
        let Some((address, size)) = text[3..].split_once(',') else { continue };
        let (Ok(address), Ok(size)) = (u64::from_str_radix(address, 16), size.parse::<u64>()) else { continue };
        if Some(address) == mark {
            marks += writes;
            continue;
        }
        // Two marks for each thread of the first round; then its two in this one.
        let Some(mark) = (marks as usize).checked_sub(2 * threads).filter(|mark| mark % 2 == 1) else { continue };
        for line in address / 64..=(address + size - 1) / 64 {
            let line = lines.entry(line).or_default();
            line.readers |= reads << (mark / 2);
            line.writers |= writes << (mark / 2);
        }
    }
    assert!(child.wait().is_ok_and(|status| status.success()), "valgrind failed on {peer}");
    assert_eq!(marks as usize, 4 * threads, "the list of {peer} is not complete");
    lines
}
