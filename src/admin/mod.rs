//! The operator's door: HTTP on the admin socket.

mod view;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::config;
use crate::receive::{BindError, UnixDoor};
pub use view::View;

/// Operators are few; whoever comes beyond this waits in the kernel.
const CONNECTIONS: usize = 32;
/// A client has this long to send its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept, which is almost always a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The admin socket, bound and not yet served.
#[derive(Debug)]
pub struct Admin {
    door: UnixDoor,
}

impl Admin {
    /// Binds the socket.
    ///
    /// # Errors
    /// Why it can't be bound.
    pub fn bind(config: &config::Admin) -> Result<Self, BindError> {
        Ok(Self { door: UnixDoor::bind(&config.socket)? })
    }

    /// Serves until the task is aborted.
    ///
    /// # Errors
    /// When the runtime does not take the socket.
    pub fn serve(self, view: Arc<View>) -> std::io::Result<JoinHandle<()>> {
        let listener = self.door.listener()?;
        Ok(tokio::spawn(accept(self.door, listener, view)))
    }
}

/// Holds the door: its file goes when this ends.
async fn accept(_door: UnixDoor, listener: UnixListener, view: Arc<View>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let view = Arc::clone(&view);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&view)));
            let mut protocol = http1::Builder::new();
            protocol.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
            // A client that breaks off is its own business.
            let _ = protocol.serve_connection(TokioIo::new(stream), service).await;
            drop(permit);
        });
    }
}

async fn answer(request: Request<Incoming>, view: Arc<View>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n"));
    }
    Ok(match request.uri().path() {
        "/status" => status(view).await,
        "/health/live" => text(StatusCode::OK, "live\n"),
        "/health/ready" if view.is_ready() => text(StatusCode::OK, "ready\n"),
        "/health/ready" => text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
        _ => text(StatusCode::NOT_FOUND, "not found\n"),
    })
}

async fn status(view: Arc<View>) -> Response<Full<Bytes>> {
    // It reads a record of each backend from the disk.
    let status = tokio::task::spawn_blocking(move || view.status()).await;
    match status.ok().and_then(|status| serde_json::to_vec(&status).ok()) {
        Some(body) => reply(StatusCode::OK, "application/json", body.into()),
        None => text(StatusCode::INTERNAL_SERVER_ERROR, "the status can't be read\n"),
    }
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", Bytes::from_static(body.as_bytes()))
}

fn reply(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}
