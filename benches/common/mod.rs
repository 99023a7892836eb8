//! What the benches share: their options, rounds in turns, tables, raw data.
//!
//! Why not criterion or divan: both measure one candidate after the other, minutes apart, and on a shared machine the
//! noise between two of them is larger than the differences that matter here. This takes all candidates (*arms*) of a
//! case in turns, a slice of some milliseconds each, for many rounds. A ratio is taken *within* each round, where
//! both sides had the same conditions, and the median over the rounds is printed.
//!
//! The raw data goes to `target/bench-data/NAME.csv`: a line `# ...` about the run, a header, and a line per figure:
//! `"case","peer",x,unit,round,value`, where `x` is what the case varies (nodes, threads, locks held).
#![allow(dead_code)] // Each bench uses its part of it.

pub(crate) mod peers;

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::iter;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[derive(Parser)]
pub(crate) struct Options {
    /// Seconds per bench instead of minutes: few rounds, short slices, no extremes
    #[arg(long)]
    pub(crate) quick: bool,
    /// The directory whose files are the real tree of `scaling` [default: the repository]
    #[arg(long)]
    tree: Option<PathBuf>,
    /// Only the cases whose name contains this
    filter: Option<String>,
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    pub(crate) fn tree(&self) -> PathBuf {
        self.tree.clone().unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into())
    }
}

/// What one slice of an arm found: values by unit.
pub(crate) type Figures = Vec<(&'static str, f64)>;

/// One candidate of a case.
pub(crate) struct Arm<'a> {
    pub(crate) peer: &'static str,
    /// What the case varies, if the arms differ in it.
    pub(crate) x: usize,
    pub(crate) run: Box<dyn FnMut() -> Figures + 'a>,
}

impl<'a> Arm<'a> {
    pub(crate) fn new(peer: &'static str, x: usize, run: impl FnMut() -> Figures + 'a) -> Self {
        Arm { peer, x, run: Box::new(run) }
    }
}

/// One bench: a question, cases, a file of raw data.
pub(crate) struct Bench {
    pub(crate) options: Options,
    data: BufWriter<File>,
    data_path: PathBuf,
    progress: ProgressBar,
}

impl Bench {
    /// `None` unless `cargo bench` runs it: `cargo test --benches` only builds the benches, and does not wait for
    /// them.
    pub(crate) fn start(name: &str, question: &str) -> Option<Bench> {
        if !std::env::args().any(|argument| argument == "--bench") {
            println!("{name}: run it by `cargo bench`");
            return None;
        }
        let options = Options::parse();
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench-data");
        fs::create_dir_all(&directory).expect("the target directory is writable");
        let data_path = directory.join(format!("{name}.csv"));
        let mut data = BufWriter::new(File::create(&data_path).expect("the target directory is writable"));
        let mode = if options.quick { "quick" } else { "full" };
        let about = format!("commit {}, {} cores, {mode}", commit(), cores());
        writeln!(data, "# {about}\ncase,peer,x,unit,round,value").expect("the disk takes the data");
        println!("\n{name}: {question}\n{about}");
        let progress = ProgressBar::new_spinner();
        progress.set_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}").expect("the template is right"));
        Some(Bench { options, data, data_path, progress })
    }

    pub(crate) fn end(mut self) {
        self.progress.finish_and_clear();
        self.data.flush().expect("the disk takes the data");
        println!("\nraw data: {}", self.data_path.display());
        let [peaceful, disturbed] = SLICES.each_ref().map(|count| count.load(Ordering::Relaxed));
        if disturbed > 0 {
            println!(
                "Left out, as others kept threads from their cores: {disturbed} of {} slices.",
                peaceful + disturbed
            );
        }
    }

    /// `quick` in quick mode, else `full`.
    pub(crate) fn pick<T>(&self, quick: T, full: T) -> T {
        if self.options.quick { quick } else { full }
    }

    /// Nanoseconds per call of `op`, by slices of 1 or 2 ms.
    pub(crate) fn per_call<'a>(&self, mut op: impl FnMut() + 'a) -> impl FnMut() -> Figures + 'a {
        let slice = self.pick(Duration::from_millis(1), Duration::from_millis(2));
        let mut calls = 1u64;
        move || loop {
            let start = Instant::now();
            for _ in 0..calls {
                op();
            }
            let elapsed = start.elapsed();
            if elapsed >= slice / 2 {
                return vec![("ns", elapsed.as_nanos() as f64 / calls as f64)];
            }
            calls *= 2;
        }
    }

    /// Runs the arms in turns, each round beginning with another one; `None` if the case was not asked for.
    pub(crate) fn compare(&mut self, case: &str, rounds: usize, mut arms: Vec<Arm<'_>>) -> Option<Outcome> {
        if self.options.filter.as_ref().is_some_and(|filter| !case.contains(filter)) {
            return None;
        }
        if self.progress.is_hidden() {
            eprintln!("... {case}");
        }
        let mut figures = vec![vec![]; arms.len()];
        // The round before the first warms up.
        for round in 0..=rounds {
            self.progress.set_message(format!("{case}: round {round} of {rounds}"));
            self.progress.tick();
            for turn in 0..arms.len() {
                let at = (turn + round) % arms.len();
                let before = SLICES[1].load(Ordering::Relaxed);
                let found = (arms[at].run)();
                if SLICES[1].load(Ordering::Relaxed) > before {
                    // The slice was disturbed, so it tells nothing.
                    figures[at].extend((round > 0).then(Vec::new));
                } else if round > 0 {
                    for (unit, value) in &found {
                        let Arm { peer, x, .. } = &arms[at];
                        writeln!(self.data, "\"{case}\",\"{peer}\",{x},{unit},{round},{value:.3}")
                            .expect("the disk takes the data");
                    }
                    figures[at].push(found);
                }
            }
        }
        Some(Outcome { figures })
    }

    pub(crate) fn print(&self, title: &str, header: &[&str], rows: Vec<Vec<String>>) {
        if rows.is_empty() {
            return;
        }
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN).set_header(header).add_rows(rows);
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        self.progress.suspend(|| println!("\n{title}\n\n{table}"));
    }
}

/// Runs `work` on a number of threads, all in one window. If others took the cores meanwhile, it is repeated a few
/// times; if that is in vain, `compare` leaves it out.
pub(crate) fn together<T: Send>(count: usize, slice: Duration, work: impl Fn(usize, Window) -> T + Sync) -> Vec<T> {
    for _ in 0..4 {
        let (results, disturbed): (Vec<T>, Vec<Duration>) = once(count, slice, &work).into_iter().unzip();
        // More threads than cores disturb each other.
        if count > cores() || disturbed.into_iter().max() < Some(slice / 10) {
            SLICES[0].fetch_add(1, Ordering::Relaxed);
            return results;
        }
    }
    SLICES[1].fetch_add(1, Ordering::Relaxed);
    once(count, slice, &work).into_iter().map(|(result, _)| result).collect()
}

/// How many windows were undisturbed, and how many could not be had undisturbed.
static SLICES: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

/// The results, with the time for which each thread was kept from its core.
fn once<T: Send>(count: usize, slice: Duration, work: &(impl Fn(usize, Window) -> T + Sync)) -> Vec<(T, Duration)> {
    let (missing, start) = (AtomicUsize::new(count), OnceLock::new());
    let run = |number| {
        let before = waited_for_core();
        // They spin, and this thread is one of them, so that the kernel puts each on a core of its own, if there are
        // enough. Relaxed: it publishes nothing.
        missing.fetch_sub(1, Ordering::Relaxed);
        while missing.load(Ordering::Relaxed) > 0 {
            thread::yield_now();
        }
        let begins = *start.get_or_init(Instant::now) + slice / 4;
        let result = work(number, Window { begins, ends: begins + slice, warm: false });
        (result, waited_for_core().saturating_sub(before))
    };
    thread::scope(|scope| {
        let run = &run;
        let others: Vec<_> = (1..count).map(|number| scope.spawn(move || run(number))).collect();
        let first = run(0);
        let others = others.into_iter().map(|thread| thread.join().expect("no peer panics"));
        iter::once(first).chain(others).collect()
    })
}

/// How long this thread was kept from its core, beyond some 2 µs for each time that it was woken; 0 but on Linux.
fn waited_for_core() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let waited = text.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0);
    Duration::from_nanos(waited).saturating_sub(Duration::from_micros(2 * switches().unwrap_or(0)))
}

/// How often this thread has given up its core of its own accord, where the system tells it.
pub(crate) fn switches() -> Option<u64> {
    let status = fs::read_to_string("/proc/thread-self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"))?;
    line.split_whitespace().next_back()?.parse().ok()
}

/// The time in which threads do what is counted: the same for all, after a quarter of it as a warm-up.
pub(crate) struct Window {
    begins: Instant,
    ends: Instant,
    warm: bool,
}

#[derive(PartialEq)]
pub(crate) enum Moment {
    Inside,
    /// The time from which on it counts.
    Begins,
    Ends,
}

impl Window {
    pub(crate) fn look(&mut self) -> Moment {
        let now = Instant::now();
        match self.warm {
            false if now >= self.begins => {
                self.warm = true;
                Moment::Begins
            }
            true if now >= self.ends => Moment::Ends,
            _ => Moment::Inside,
        }
    }

    /// Millions a second, for a thread that has done so many. A thread that got no core for a while has done less for
    /// that reason.
    pub(crate) fn rate(&self, done: usize) -> f64 {
        done as f64 / self.begins.elapsed().as_nanos() as f64 * 1e3
    }
}

/// What a case found: the figures of each round of each arm.
pub(crate) struct Outcome {
    figures: Vec<Vec<Figures>>,
}

impl Outcome {
    /// By round; none if the round was disturbed, or has no such figure.
    fn each(&self, arm: usize, unit: &str) -> impl Iterator<Item = Option<f64>> {
        let value = move |figures: &Figures| figures.iter().find(|figure| figure.0 == unit).map(|figure| figure.1);
        self.figures[arm].iter().map(value)
    }

    /// Not a number if the arm has no such figure.
    pub(crate) fn median(&self, arm: usize, unit: &str) -> f64 {
        median(self.each(arm, unit).flatten().collect())
    }

    pub(crate) fn longest(&self, arm: usize, unit: &str) -> f64 {
        self.each(arm, unit).flatten().fold(f64::NAN, f64::max)
    }

    /// How many times as much arm `arm` took as arm `of`: the median of the rounds' ratios.
    pub(crate) fn ratio(&self, arm: usize, of: usize, unit: &str) -> f64 {
        let rounds = self.each(arm, unit).zip(self.each(of, unit));
        median(rounds.filter_map(|(this, that)| Some(this? / that?)).collect())
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The microseconds below which `share` of the sorted nanoseconds lie.
pub(crate) fn quantile(sorted: &[u32], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).map_or(f64::NAN, |&value| f64::from(value) / 1e3)
}

/// Three digits, or a dash for what is not known.
pub(crate) fn digits(value: f64) -> String {
    match value.abs() {
        size if size.is_nan() => "–".into(),
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A ratio, and the figure of the peer that it refers to.
pub(crate) fn times(ratio: f64, of: f64) -> String {
    format!("{} × ({})", digits(ratio), digits(of))
}

pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// 1, 2, 4, 8, 16, as far as there are cores.
pub(crate) fn thread_counts() -> Vec<usize> {
    [1, 2, 4, 8, 16].into_iter().filter(|&count| count <= cores()).collect()
}

fn commit() -> String {
    let git = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    match git {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".into(),
    }
}

/// A path of this many nodes, including the root: the one of 9 is
/// `/srv/data/tenants/acme/projects/alpha/tables/users`.
pub(crate) fn path_of(nodes: usize, leaf: &str) -> String {
    const NAMES: [&str; 8] = ["srv", "data", "tenants", "acme", "projects", "alpha", "tables", "users"];
    let mut names: Vec<&str> = NAMES.into_iter().cycle().take(nodes.saturating_sub(1)).collect();
    if let Some(last) = names.last_mut().filter(|_| !leaf.is_empty()) {
        *last = leaf;
    }
    format!("/{}", names.join("/"))
}

/// Makes a path live for ever, as peers that keep names like it.
pub(crate) fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}
