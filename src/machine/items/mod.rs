//! An engine over a store that has neither a clock nor scripts: items are created if they are not there, read, and removed.
//!
//! # What is in the store
//!
//! An *order* is begun by an item in [`Series::Orders`]; the one with the highest number is the current one. Its entries stand in a series of
//! their own, one after the other, each created by the client that has something to say, at the number behind the last one. Who meets another's
//! entry there takes it as news, and tries again behind it. So *whoever has appended has read all that stands before*: the entry that a request
//! is written in is the proof that nobody was faster. A snapshot stands for all entries up to its number.
//!
//! # The rules, and why nobody is let in too early
//!
//! R1. *Each client goes by its own monotonic clock*, and by nothing else. Clocks of two machines are never compared; only their rates
//!    matter, which differ by less than the margin.
//!
//! R2. *An entry is appended behind the last one*, by `create`. Of two, one comes first, and the other reads it before it goes on. An append
//!    whose answer is lost may be done or not, or be done much later: then its number is taken, by itself or by another one, and it does nothing.
//!    A client that finds its own batch does not write it again, and readers pass over one that is written twice (`session.rs`).
//!
//! R3. *Who is silent for one time to live is buried.* A session writes an entry each third of it. Whoever has read the last entry of a
//!    session, and by its own clock no other for one time to live since that was read, appends its *burial*. The lease of a session ends one time
//!    to live after the moment *before* its last entry was sent, less the margin: that moment is before the other one read the entry. So the
//!    lease is over when the burial is sent. A renewal that is late races with the burial for the same number: if it is first, the
//!    other one reads it, and does not bury; if it is second, its session reads that it is over.
//!
//! R4. *An order is closed* until an entry says that it is open. Whoever has known the order for one time to live by its own clock may say so,
//!    with the first thing that it writes. Leases of an older order count from before a look that found no newer one (R6); that look was
//!    before the new order began, and so such leases are over before anybody has known it for that long. Items of older orders are removed before
//!    an order opens, so that none of them can be the newest again.
//!
//! R5. *Who trims removes no entry that is needed*: only those below the snapshot before the newest, and below the entry by which each session
//!    was renewed last that is not buried. So a session that lives never meets a hole: it knows that entry, and all later ones. A number that was
//!    trimmed can be created again, but only by one whose view ends there: a session that is buried, whose lease is over (R3), and which
//!    no answer can renew (`lease.rs`); or a client that joins, or looks, and has no session that protects it. That one looks *after* it has
//!    read, and joined, whether there is a newer snapshot than the one that it began with, and begins again if so: who trims has written
//!    one before. Who trims has been renewed by the same call, so nobody in the void (R6) removes what others need.
//!
//! R6. *An order may be lost at any time*: the store is emptied, or somebody breaks the order by beginning the next one. What is read and
//!    written afterwards is in the void, where clients may meet that have seen different things. So whoever hears of news looks
//!    afterwards whether the order's item is still there: then they are older than the loss. A renewal looks besides that no newer order is
//!    there, and only then counts. What a client only lets go of is not looked at: it grants nothing to itself, and others look for themselves.
//!
//! R7. *An entry may be lost*, or many, because an older copy of the store was put in its place. Each entry names the one before by its tag,
//!    so of those that have read different ones one notices when it reads what the other has written; then the order is broken, and all begin
//!    anew. With each renewal a client looks besides whether the entry of the renewal before is there, and ends its session if not; and who
//!    joins looks for the last entry that is in its snapshot. Until somebody notices two may be let in. No call is certain to notice within
//!    a time, so this is for the fence: that of the later one is the higher one.
//!
//! R8. *Positions only rise*, and are fences: the wall clock of the author in microseconds, or one more than the last one. What is
//!    lost is forgotten, so a later position is the higher one then only if the wall clocks of the authors do not differ by more than the time
//!    between. A clock that is ahead pushes all positions of the order ahead, and one that is behind does nothing.
//!
//! | call | what is done | renews |
//! |---|---|---|
//! | joins | read all; `create`; read the order's item, newest order, newest snapshot, the last entry in that | from before it was sent |
//! | goes on, with a batch | `create`; read the order's item * | no |
//! | goes on, only lets go | `create` | no |
//! | goes on, with nothing | read what is new; if anything is, the order's item * | no |
//! | goes on, and renews, or has a snapshot | `create`; read the order's item, newest order, the entry of the renewal before | from before it was sent |
//!
//! * Where the store [may be emptied](Store::may_be_emptied) without that being noticed otherwise.
//!
//! No store wakes anybody: who waits looks again and again ([`Store::looks`]).
//!
//! # What is assumed
//!
//! The promises of [`Store`], and trust in all that may write in the namespace. Who removes single items by hand, or puts others there, does
//! harm until that is noticed (R7). What was lost does not come back by a call that was made before: if a store was emptied, and the call that
//! began the order arrives once more after that, the order seems to be there.
//!
//! # Files
//!
//! | file | concept |
//! |---|---|
//! | `mod.rs` | the engine of a client, with its clock and its pauses |
//! | `exchange.rs` | what is asked of the store, step by step |
//! | `chain.rs` | pure: what stands in items, and what follows from it |
//! | `store.rs` | what a store must do |
//! | `model.rs` | the proof: the histories of `simulation.rs`, over a store in memory |

mod chain;
mod exchange;
#[cfg(test)]
mod model;
pub(crate) mod store;

use crate::machine::Options;
use crate::machine::engine::{Call, Engine, Position, Reply};
use crate::machine::error::EngineError;
use crate::sync::{self, Mutex};
use exchange::{Port, State};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};
use store::{Created, Series, Store};

/// Pauses after conflicts: full jitter, up to this. They only part clients that try at the same moments. With longer ones a client that has won
/// goes on winning while the others pause.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(25);

/// The engine of a client over a store.
pub(crate) struct Items<S> {
    store: S,
    patience: Duration,
    longest_look: Duration,
    state: Mutex<State>,
    /// The entry that was looked for last, and the pause after that.
    looked: Mutex<(u64, Duration)>,
}

impl<S: Store> Items<S> {
    pub(crate) fn new(store: S, options: &Options) -> Self {
        let (_, longest) = store.looks();
        Items {
            store,
            patience: options.patience,
            longest_look: options.longest_look.unwrap_or(longest),
            state: Mutex::new(State::default()),
            looked: Mutex::new((0, Duration::ZERO)),
        }
    }
}

impl<S: Store> Engine for Items<S> {
    fn exchange(&self, call: &Call, deadline: Instant) -> Result<Reply, EngineError> {
        let blocking = Blocking { store: &self.store, patience: self.patience, deadline };
        let mut state = self.state.lock();
        let exchange = pin!(state.exchange(&blocking, call));
        // Each step of it blocks.
        match exchange.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(reply) => reply,
            Poll::Pending => unreachable!("no step is left for later"),
        }
    }

    fn await_entry(&self, since: Position, deadline: Instant) -> Result<(), EngineError> {
        let (shortest, _) = self.store.looks();
        loop {
            let next = self.state.lock().next();
            let Some((identity, number, head)) = next else { return Ok(()) };
            if head > since {
                return Ok(());
            }
            let pause = {
                let mut looked = self.looked.lock();
                let pause = if looked.0 == number { (looked.1 * 2).min(self.longest_look) } else { shortest };
                *looked = (number, pause);
                pause
            };
            let now = Instant::now();
            if now >= deadline {
                return Ok(());
            }
            // Clients that began to wait at one time do not look at one time.
            let pause = pause / 2 + share(pause / 2, sync::random_seed());
            std::thread::sleep(pause.min(deadline - now));
            let until = deadline.max(Instant::now() + LONGEST_LOOK);
            if !self.store.read(Series::Entries(identity), number, 1, until)?.is_empty() {
                return Ok(());
            }
        }
    }
}

/// A look is given so long, also by one that is to end earlier.
const LONGEST_LOOK: Duration = Duration::from_secs(2);

/// A part of a time, by a number that was drawn.
fn share(of: Duration, drawn: u64) -> Duration {
    of.mul_f64((drawn >> 11) as f64 / (1u64 << 53) as f64)
}

/// A pause that is drawn from a range which doubles each time, up to the longest.
pub(crate) fn full_jitter(first: Duration, longest: Duration, times: u32) -> Duration {
    share(first.saturating_mul(1 << times.min(16)).min(longest), sync::random_seed())
}

/// Asks the store, and waits for its answers.
struct Blocking<'a, S> {
    store: &'a S,
    patience: Duration,
    deadline: Instant,
}

impl<S: Store> Blocking<'_, S> {
    fn in_time(&self) -> Result<Instant, EngineError> {
        if Instant::now() < self.deadline {
            return Ok(self.deadline);
        }
        Err(EngineError::away("it takes too long, or many clients write at a time"))
    }
}

impl<S: Store> Port for Blocking<'_, S> {
    async fn create(&self, series: Series, number: u64, item: Vec<u8>) -> Result<Created, EngineError> {
        self.store.create(series, number, &item, self.in_time()?)
    }

    async fn read(&self, series: Series, from: u64, most: usize) -> Result<Vec<Vec<u8>>, EngineError> {
        self.store.read(series, from, most, self.in_time()?)
    }

    async fn newest(&self, series: Series) -> Result<Option<u64>, EngineError> {
        self.store.newest(series, self.in_time()?)
    }

    async fn trim(&self, series: Series, below: u64) -> Result<(), EngineError> {
        self.store.trim(series, below, self.in_time()?)
    }

    async fn pause(&self, conflicts: u32) -> Result<(), EngineError> {
        let pause = full_jitter(FIRST_PAUSE, LONGEST_PAUSE, conflicts);
        let rest = self.in_time()? - Instant::now().min(self.deadline);
        std::thread::sleep(pause.min(rest));
        Ok(())
    }

    fn may_be_emptied(&self) -> bool {
        self.store.may_be_emptied()
    }

    fn patience(&self) -> Duration {
        self.patience
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall(&self) -> u64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |wall| wall.as_micros() as u64)
    }

    fn draw(&self) -> u64 {
        sync::random_seed()
    }
}
