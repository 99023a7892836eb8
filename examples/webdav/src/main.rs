//! Serves a directory over WebDAV; see `lib.rs`.

use clap::Parser;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::net::TcpListener;
use treelock_webdav::load::{self, Load};
use treelock_webdav::server::Files;

/// Serves a directory over WebDAV, and shows at / which requests hold and await what.
#[derive(Parser)]
struct Options {
    /// The directory whose files are served below /files
    #[arg(default_value = ".")]
    directory: PathBuf,
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:4918")]
    listen: SocketAddr,
    /// How many seconds a request waits for others
    #[arg(long, default_value_t = 30.0)]
    patience: f64,
    /// Instead, serves an empty directory for this many seconds to clients that replace and copy folders, and looks
    /// whether one is torn
    #[arg(long, value_name = "SECONDS")]
    load: Option<f64>,
    /// The clients of --load
    #[arg(long, default_value_t = 12)]
    clients: usize,
    /// The control: nothing is locked
    #[arg(long)]
    no_lock: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let (Ok(patience), Ok(seconds)) =
        (Duration::try_from_secs_f64(options.patience), Duration::try_from_secs_f64(options.load.unwrap_or(0.0)))
    else {
        eprintln!("--patience and --load are numbers of seconds");
        return ExitCode::from(2);
    };
    let outcome = if options.load.is_some() {
        load::run(Load { seconds, clients: options.clients, patience, no_lock: options.no_lock }).await
    } else {
        serve(options, patience).await.map(|()| ExitCode::SUCCESS)
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::from(2)
    })
}

async fn serve(options: Options, patience: Duration) -> Result<(), String> {
    if !options.directory.is_dir() {
        return Err(format!("{} is no directory", options.directory.display()));
    }
    let files = Files::new(&options.directory, patience);
    let files = if options.no_lock { files.without_lock() } else { files };
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|error| format!("cannot listen at {}: {error}", options.listen))?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    println!("{} is at http://{address}/files/, and who uses it at http://{address}/", options.directory.display());
    let stop = async { _ = tokio::signal::ctrl_c().await };
    axum::serve(listener, files.routes()).with_graceful_shutdown(stop).await.map_err(|error| error.to_string())
}
