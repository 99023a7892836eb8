//! The server over HTTP, in a directory of its own; and its page in a real browser, if there is one.

use reqwest::{Client, Method, StatusCode};
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use treelock::Snapshot;
use treelock_webdav::load::{self, Load};
use treelock_webdav::server::Files;

struct Server {
    files: Files,
    address: SocketAddr,
    http: Client,
    directory: TempDir,
}

impl Server {
    async fn start(patience: Duration) -> Server {
        let directory = tempfile::tempdir().unwrap();
        for folder in ["docs", "docs/old", "other"] {
            std::fs::create_dir(directory.path().join(folder)).unwrap();
        }
        std::fs::write(directory.path().join("docs/old/letter"), "Dear all").unwrap();
        let files = Files::new(directory.path(), patience);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = files.clone().routes();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Server { files, address, http: Client::new(), directory }
    }

    async fn ask(&self, method: &str, path: &str, destination: Option<&str>) -> (StatusCode, String) {
        let mut request = self.http.request(Method::from_bytes(method.as_bytes()).unwrap(), self.url(path));
        if let Some(destination) = destination {
            request = request.header("destination", destination);
        }
        let answer = request.send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A client that has sent half a file, so its request holds what it writes.
    async fn puts_half(&self, path: &str) -> TcpStream {
        let mut client = TcpStream::connect(self.address).await.unwrap();
        let head = format!("PUT {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: 10\r\n\r\nhalf ", self.address);
        client.write_all(head.as_bytes()).await.unwrap();
        self.wait_until(|snapshot| !snapshot.holders.is_empty()).await;
        client
    }

    async fn wait_until(&self, done: impl Fn(&Snapshot) -> bool) {
        let start = Instant::now();
        while !done(&self.files.lock.snapshot()) {
            assert!(start.elapsed() < Duration::from_secs(40), "in vain: {}", self.files.lock.snapshot());
            tokio::task::yield_now().await;
        }
    }
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn files_come_and_go() {
    let server = Server::start(LONG).await;
    assert_eq!(server.ask("GET", "/files/docs/old/letter", None).await, (StatusCode::OK, "Dear all".into()));
    let moved = server.ask("MOVE", "/files/docs/old", Some("/files/other/new%20name")).await;
    assert_eq!(moved.0, StatusCode::CREATED);
    assert!(server.directory.path().join("other/new name/letter").exists());
    let copied = server.ask("COPY", "/files/other", Some(&server.url("/files/docs/again"))).await;
    assert_eq!(copied.0, StatusCode::CREATED);
    assert_eq!(server.ask("DELETE", "/files/other/", None).await.0, StatusCode::NO_CONTENT);
    assert_eq!(server.ask("GET", "/files/docs/again/new%20name/letter", None).await.1, "Dear all");
    assert_eq!(server.ask("GET", "/elsewhere", None).await.0, StatusCode::NOT_FOUND);
    assert_eq!(server.ask("PUT", "/files/../../etc", None).await.0, StatusCode::NOT_FOUND);
    server.wait_until(|snapshot| snapshot.holders.is_empty() && snapshot.waiters.is_empty()).await;
}

/// A folder that is being written to is not moved away below its writer; others go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_waits_for_who_writes_below() {
    let server = Server::start(LONG).await;
    let mut put = server.puts_half("/files/docs/old/new").await;
    let moving = server.ask("MOVE", "/files/docs", Some("/files/moved"));
    let meanwhile = async {
        server.wait_until(|snapshot| snapshot.waiters.len() == 1).await;
        assert_eq!(server.ask("PUT", "/files/other/file", None).await.0, StatusCode::CREATED);
        put.write_all(b"whole").await.unwrap();
    };
    let ((status, _), ()) = tokio::join!(moving, meanwhile);
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(server.ask("GET", "/files/moved/old/new", None).await.1, "half whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_refused_when_the_patience_ends() {
    let server = Server::start(Duration::from_millis(50)).await;
    let _put = server.puts_half("/files/docs/new").await;
    let (status, text) = server.ask("DELETE", "/files/docs", None).await;
    assert_eq!((status, &*text), (StatusCode::SERVICE_UNAVAILABLE, "/files/docs is in use by other requests\n"));
    assert!(server.files.lock.snapshot().waiters.is_empty());
}

/// To hang up is to give up.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_hang_up_leave_nothing() {
    let server = Server::start(LONG).await;
    let put = server.puts_half("/files/docs/new").await;
    let mut waits = TcpStream::connect(server.address).await.unwrap();
    waits.write_all(b"DELETE /files/docs HTTP/1.1\r\nhost: here\r\n\r\n").await.unwrap();
    server.wait_until(|snapshot| snapshot.waiters.len() == 1).await;
    drop(waits);
    server.wait_until(|snapshot| snapshot.waiters.is_empty()).await;
    drop(put);
    server.wait_until(|snapshot| snapshot.holders.is_empty()).await;
}

/// The page shows who holds and who waits.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_holders_and_waiters_in_a_browser() {
    let browsers = ["chromium", "chromium-browser", "google-chrome"];
    let Some(browser) = browsers.into_iter().find(|name| Command::new(name).arg("--version").output().is_ok()) else {
        return eprintln!("left out: the page in a browser, which needs chromium");
    };
    let server = Server::start(LONG).await;
    let empty = browse(browser, &server).await;
    assert!(empty.contains("Nobody holds or awaits anything."), "{empty}");
    let _put = server.puts_half("/files/docs/new").await;
    let http = server.http.clone();
    let url = server.url("/files/docs/");
    tokio::spawn(async move { http.delete(url).send().await });
    server.wait_until(|snapshot| snapshot.waiters.len() == 1).await;
    let page = browse(browser, &server).await;
    for text in [
        "1 hold, 1 wait",
        ">docs<",
        ">new<",
        "(the folder itself)",
        ">PUT /files/docs/new writes, ",
        ">DELETE /files/docs/ waits to write, ",
    ] {
        assert!(page.contains(text), "no '{text}' in:\n{page}");
    }
    assert!(page.contains("id=\"lost\" hidden"), "{page}");
}

/// What the page has become when its script has run for a while.
async fn browse(browser: &'static str, server: &Server) -> String {
    let url = server.url("/");
    let profile = server.directory.path().parent().unwrap().join(format!("browser-{}", server.address.port()));
    let told = tokio::task::spawn_blocking(move || {
        let output = Command::new(browser)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--virtual-time-budget=2000",
                "--dump-dom",
            ])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(url)
            .output();
        _ = std::fs::remove_dir_all(profile);
        output
    });
    let output = tokio::time::timeout(LONG, told).await.expect("the browser ends").unwrap().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_folder_is_torn_under_load() {
    let load = Load { seconds: Duration::from_secs(2), clients: 12, patience: LONG, no_lock: false };
    let seen = load::clients(load).await.unwrap();
    let count = |of: &std::sync::atomic::AtomicU64| of.load(std::sync::atomic::Ordering::Relaxed);
    assert!(count(&seen.read) > 10 && count(&seen.replaced) > 10 && count(&seen.copied) > 10, "{seen:?}");
    assert_eq!((count(&seen.torn), count(&seen.refused)), (0, 0), "{seen:?}");
    let control = load::clients(Load { no_lock: true, ..load }).await.unwrap();
    assert!(count(&control.torn) > 0, "the clients cannot see what the locks are for: {control:?}");
}
