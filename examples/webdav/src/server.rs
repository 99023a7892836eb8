//! The requests, each under its locks, and the page that shows them.

use crate::touch::{FILES, NoFile, Touch};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use dav_server::DavHandler;
use dav_server::fakels::FakeLs;
use dav_server::localfs::LocalFs;
use futures_util::StreamExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use treelock::{LockError, Snapshot, TreeLock};

/// What is served, and how.
#[derive(Clone)]
pub struct Files {
    pub lock: Arc<TreeLock>,
    dav: DavHandler,
    /// How long a request waits for its locks.
    patience: Duration,
    /// For the control: nothing is locked.
    no_lock: bool,
}

impl Files {
    #[must_use]
    pub fn new(directory: &Path, patience: Duration) -> Files {
        let dav = DavHandler::builder()
            .filesystem(LocalFs::new(directory, false, false, false))
            .locksystem(FakeLs::new())
            .strip_prefix(FILES)
            .autoindex(true)
            .build_handler();
        Files { lock: Arc::default(), dav, patience, no_lock: false }
    }

    /// The control, in which nothing is locked.
    #[must_use]
    pub fn without_lock(self) -> Files {
        Files { no_lock: true, ..self }
    }

    /// The page at `/`, what it shows at `/locks`, and the files below `/files`.
    pub fn routes(self) -> Router {
        let page = || async { Html(include_str!("page.html")) };
        Router::new().route("/", get(page)).route("/locks", get(locks)).fallback(file).with_state(self)
    }
}

async fn locks(State(files): State<Files>) -> Json<Snapshot> {
    Json(files.lock.snapshot())
}

async fn file(State(files): State<Files>, request: Request) -> Response {
    let Touch { reads, writes } = match Touch::of(request.method(), request.uri(), request.headers()) {
        Ok(touch) => touch,
        Err(NoFile(address)) => {
            return (StatusCode::NOT_FOUND, format!("{address} is no file here\n")).into_response();
        }
    };
    if files.no_lock {
        return files.dav.handle(request).await.into_response();
    }
    // If the client hangs up meanwhile, this future is dropped, and the request leaves its queue.
    let mut owner = files.lock.owner();
    owner.set_name(format!("{} {}", request.method(), request.uri().path()));
    match timeout(files.patience, owner.lock_async(reads, writes)).await {
        // The owner has it until it is dropped.
        Ok(Ok(_held)) => {}
        Ok(Err(LockError::Path(error))) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
        Ok(Err(error)) => return (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        Err(_) => {
            let busy = format!("{} is in use by other requests\n", request.uri().path());
            return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], busy).into_response();
        }
    }
    let answer = files.dav.handle(request).await;
    // A file is read while it is sent.
    answer.map(|body| Body::from_stream(body.inspect(move |_| _ = &owner))).into_response()
}
