//! Clients that replace and copy folders over HTTP, and look whether one is torn.
//!
//! There are a few folders, each with some files that all say the same number. *Replacers* put a new folder aside, file by
//! file, and `MOVE` it over one of them. *Copiers* `COPY` one over another. *Readers* `COPY` one aside and read that: if
//! its files do not all say one number, or one is missing, somebody has seen a folder half done: it is *torn*.
//!
//! The control, `--no-lock`, must be torn: otherwise this load cannot see what the locks are for.

use crate::server::Files;
use comfy_table::Table;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use reqwest::{Client, Method, StatusCode};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

const FOLDERS: usize = 3;
const FILES: usize = 12;

/// The lines of a file.
const LINES: usize = 200;

/// What `--load` does.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub seconds: Duration,
    pub clients: usize,
    pub patience: Duration,
    pub no_lock: bool,
}

/// What the clients have seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub replaced: AtomicU64,
    pub copied: AtomicU64,
    pub read: AtomicU64,
    pub torn: AtomicU64,
    /// Refused, since others were at it for longer than the server's patience.
    pub refused: AtomicU64,
    /// A number for each folder that is put aside.
    numbers: AtomicU64,
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Serves a fresh directory, and runs the clients. Prints a table; exit code 1 if a folder was torn.
///
/// # Errors
///
/// If the server cannot be started, or a client gets no answer.
pub async fn run(load: Load) -> Result<ExitCode, String> {
    let seen = clients(load).await.map_err(|error| error.to_string())?;
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(["replaced", "copied over another", "read", "torn", "refused"]);
    table.add_row([&seen.replaced, &seen.copied, &seen.read, &seen.torn, &seen.refused].map(|of| of.load(Relaxed)));
    let locked = if load.no_lock { "nothing is locked" } else { "each request holds what it touches" };
    println!("{} clients, {:.1} s, {locked}\n\n{table}", load.clients, load.seconds.as_secs_f64());
    Ok(if seen.torn.load(Relaxed) == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// The same without a table.
///
/// # Errors
///
/// As [`run`].
pub async fn clients(load: Load) -> Result<Arc<Seen>, Failed> {
    let directory = tempfile::tempdir()?;
    let files = Files::new(directory.path(), load.patience);
    let files = if load.no_lock { files.without_lock() } else { files };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}/files", listener.local_addr()?);
    let server = tokio::spawn(async move { axum::serve(listener, files.routes()).await });

    let seen = Arc::new(Seen::default());
    let user = User { http: Client::new(), base, seen: Arc::clone(&seen), random: SmallRng::seed_from_u64(1) };
    for folder in ["/aside", "/box"] {
        user.ask("MKCOL", folder, None).await?;
    }
    for folder in 0..FOLDERS {
        user.replace(&boxed(folder)).await?;
    }
    let end = Instant::now() + load.seconds;
    let clients: Vec<_> = (0..load.clients)
        .map(|number| {
            let mut user = User { random: SmallRng::seed_from_u64(number as u64), ..user.clone() };
            tokio::spawn(async move {
                while Instant::now() < end {
                    user.act(number).await?;
                }
                Ok::<_, Failed>(())
            })
        })
        .collect();
    for client in clients {
        client.await??;
    }
    server.abort();
    Ok(seen)
}

fn boxed(number: usize) -> String {
    format!("/box/{number}")
}

#[derive(Clone)]
struct User {
    http: Client,
    base: String,
    seen: Arc<Seen>,
    random: SmallRng,
}

impl User {
    async fn ask(&self, method: &str, path: &str, destination: Option<&str>) -> Result<(StatusCode, String), Failed> {
        self.send(method, path, destination, String::new()).await
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        destination: Option<&str>,
        body: String,
    ) -> Result<(StatusCode, String), Failed> {
        let method = Method::from_bytes(method.as_bytes())?;
        let mut request = self.http.request(method, format!("{}{path}", self.base)).body(body);
        if let Some(destination) = destination {
            request = request.header("destination", format!("{}{destination}", self.base)).header("overwrite", "T");
        }
        let answer = request.send().await?;
        let status = answer.status();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            self.seen.refused.fetch_add(1, Relaxed);
        }
        Ok((status, answer.text().await?))
    }

    async fn act(&mut self, number: usize) -> Result<(), Failed> {
        let number_of_folder = self.random.random_range(0..FOLDERS);
        let folder = boxed(number_of_folder);
        match number % 3 {
            0 => self.replace(&folder).await,
            1 => {
                let other = (number_of_folder + self.random.random_range(1..FOLDERS)) % FOLDERS;
                if self.ask("COPY", &folder, Some(&boxed(other))).await?.0.is_success() {
                    self.seen.copied.fetch_add(1, Relaxed);
                }
                Ok(())
            }
            _ => self.read(&folder).await,
        }
    }

    /// Puts a new folder aside, and moves it over the other one.
    async fn replace(&self, folder: &str) -> Result<(), Failed> {
        let number = self.seen.numbers.fetch_add(1, Relaxed);
        let aside = format!("/aside/{number}");
        self.ask("MKCOL", &aside, None).await?;
        for file in 0..FILES {
            self.send("PUT", &format!("{aside}/{file}"), None, format!("{number}\n").repeat(LINES)).await?;
        }
        if self.ask("MOVE", &aside, Some(folder)).await?.0.is_success() {
            self.seen.replaced.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    /// Copies a folder aside, and looks whether it is one whole.
    async fn read(&self, folder: &str) -> Result<(), Failed> {
        let aside = format!("/aside/{}", self.seen.numbers.fetch_add(1, Relaxed));
        let (status, _) = self.ask("COPY", folder, Some(&aside)).await?;
        if status == StatusCode::SERVICE_UNAVAILABLE {
            return Ok(());
        }
        let mut texts = Vec::new();
        for file in 0..FILES {
            let (status, text) = self.ask("GET", &format!("{aside}/{file}"), None).await?;
            texts.push(status.is_success().then_some(text));
        }
        self.ask("DELETE", &aside, None).await?;
        let is_whole = |text: &String| text.lines().count() == LINES;
        let is_one = texts[0].as_ref().is_some_and(is_whole) && texts.iter().all(|text| *text == texts[0]);
        self.seen.read.fetch_add(1, Relaxed);
        if !is_one {
            self.seen.torn.fetch_add(1, Relaxed);
        }
        Ok(())
    }
}
