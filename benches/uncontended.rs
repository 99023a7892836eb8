//! What does it cost one thread to lock and unlock a sub-tree that no other thread wants?
//!
//! By nodes from the root to the path, for `str` and `Path`, write and read. *Warm* is one path again and again.
//! *Cold* is any of 20,000 paths of 9 nodes which share 5 of them; peers never drop a node, so they know them all
//! already. *In turns* are 16 leaves in one folder, one after the other. *Four roots* are four leaves in one folder:
//! treelock takes them by one request, the peers one after the other. Python's `treelock` joins on the path of 9 nodes if it can be installed, in `target/`.

mod common;

use common::peers::{Access, FlatKey, Floor, GlobalMutex, MapOfLocks, Name, Peer};
use common::{Arm, Bench, digits, leak, path_of, times};
use parking_lot::RwLock;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use treelock::TreeLock;

fn main() {
    let question = "what does a sub-tree lock cost that nobody else wants?";
    let Some(mut bench) = Bench::start("uncontended", question) else { return };
    let mut rows = vec![];
    for (access, verb) in Access::BOTH {
        for nodes in [1, 4, 9, 17, 33] {
            warm::<str>(&mut bench, &mut rows, access, verb, nodes);
            // The root alone is the same for both.
            if nodes > 1 {
                warm::<Path>(&mut bench, &mut rows, access, verb, nodes);
            }
        }
        special::<str>(&mut bench, &mut rows, access, verb);
        special::<Path>(&mut bench, &mut rows, access, verb);
    }
    let header =
        ["lock + unlock", "treelock, ns", "floor", "lockable, one flat key", "mutex + map", "dashmap", "RwLock, one"];
    bench.print("Ratios: treelock to each peer (the peer's ns)", &header, rows);
    python(&mut bench);
    bench.end();
}

fn warm<P: ?Sized + Name>(bench: &mut Bench, rows: &mut Vec<Vec<String>>, access: Access, verb: &str, nodes: usize) {
    let paths = leak(vec![[P::of(leak(path_of(nodes, "")))]]);
    compare(bench, rows, &format!("{verb} {} {nodes} nodes", P::SPELLING), nodes, access, paths);
}

fn special<P: ?Sized + Name>(bench: &mut Bench, rows: &mut Vec<Vec<String>>, access: Access, verb: &str) {
    let folder = path_of(5, "");
    let mut cold: Vec<[&P; 1]> =
        (0..20_000).map(|leaf| [P::of(leak(format!("{folder}/{leaf}/alpha/tables/users")))]).collect();
    cold.shuffle(&mut SmallRng::seed_from_u64(4));
    compare(bench, rows, &format!("{verb} {} 9 nodes cold", P::SPELLING), 9, access, leak(cold));
    let turns = (0..16).map(|leaf| [P::of(leak(path_of(9, &format!("leaf {leaf}"))))]).collect::<Vec<_>>();
    compare(bench, rows, &format!("{verb} {} 9 nodes in turns", P::SPELLING), 9, access, leak(turns));
    let four = ["items", "logs", "orders", "users"].map(|leaf| P::of(leak(path_of(9, leaf))));
    compare(bench, rows, &format!("{verb} {} 9 nodes four roots", P::SPELLING), 9, access, leak(vec![four]));
}

/// Locks each of the requests in turn, of one root or four.
fn compare<P: ?Sized + Name, const ROOTS: usize>(
    bench: &mut Bench,
    rows: &mut Vec<Vec<String>>,
    case: &str,
    nodes: usize,
    access: Access,
    requests: &'static [[&'static P; ROOTS]],
) {
    let arms = vec![
        arm("treelock", bench, nodes, access, requests, TreeLock::<P>::default()),
        arm("floor", bench, nodes, access, requests, <Floor>::new(requests.len() * 4)),
        arm("lockable", bench, nodes, access, requests, FlatKey::default()),
        arm("mutex + map", bench, nodes, access, requests, GlobalMutex::default()),
        arm("dashmap", bench, nodes, access, requests, MapOfLocks::default()),
        arm("RwLock", bench, nodes, access, requests, RwLock::new(())),
    ];
    let Some(found) = bench.compare(case, bench.pick(9, 101), arms) else { return };
    let mut row = vec![case.into(), digits(found.median(0, "ns"))];
    row.extend((1..6).map(|peer| times(found.ratio(0, peer, "ns"), found.median(peer, "ns"))));
    rows.push(row);
}

fn arm<P: ?Sized + Name, const ROOTS: usize>(
    name: &'static str,
    bench: &Bench,
    nodes: usize,
    access: Access,
    requests: &'static [[&'static P; ROOTS]],
    peer: impl Peer<P> + 'static,
) -> Arm<'static> {
    let mut next = 0;
    let lock = move || {
        let request = black_box(&requests[next]);
        next = if next + 1 == requests.len() { 0 } else { next + 1 };
        match request[..] {
            [path] => peer.with(path, access, || {}),
            [first, second, third, fourth] => peer.with_four([first, second, third, fourth], access, || {}),
            _ => unreachable!("one root or four"),
        }
    };
    Arm::new(name, nodes, bench.per_call(lock))
}

/// The Python package that this work began with, in rounds with this one.
fn python(bench: &mut Bench) {
    let path = leak(path_of(9, "")).as_str();
    let mut child = match python_peer(path) {
        Ok(child) => child,
        Err(reason) => return println!("\nPython treelock: absent ({reason})"),
    };
    let mut asks = child.stdin.take().expect("it is piped");
    let mut answers = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let lock = TreeLock::<str>::default();
    let arms = vec![
        Arm::new("treelock", 9, bench.per_call(|| drop(lock.write(black_box(path))))),
        Arm::new("Python treelock", 9, || {
            writeln!(asks).expect("Python listens");
            let answer = answers.next().expect("Python answers").expect("Python answers");
            vec![("ns", answer.parse().expect("Python answers with a number"))]
        }),
    ];
    if let Some(found) = bench.compare("write 9 nodes Python", bench.pick(9, 101), arms) {
        let [ours, theirs] = [0, 1].map(|arm| digits(found.median(arm, "ns")));
        let row = vec!["write 9 nodes".into(), ours, theirs, digits(found.ratio(1, 0, "ns"))];
        bench.print("Python", &["", "treelock, ns", "Python treelock 0.0.17, ns", "times ours"], vec![row]);
    }
    drop(asks);
    let _ = child.wait();
}

/// Starts it; the first time it is installed below `target/`.
fn python_peer(path: &str) -> Result<Child, String> {
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    let run = |program: &Path, arguments: &[&str]| match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("it fails").to_owned()),
        Err(error) => Err(format!("{}: {error}", program.display())),
    };
    let python = venv.join("bin/python3");
    if run(&python, &["-c", "import treelock"]).is_err() {
        run(Path::new("python3"), &["-m", "venv", &venv.to_string_lossy()])?;
        run(&python, &["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "treelock==0.0.17"])?;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/python_peer.py");
    let (stdin, stdout) = (Stdio::piped(), Stdio::piped());
    Command::new(python).args([script, path]).stdin(stdin).stdout(stdout).spawn().map_err(|error| error.to_string())
}
