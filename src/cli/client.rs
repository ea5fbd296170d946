//! HTTP over a Unix socket, one request at a time.

use std::future::Future;
use std::os::linux::net::SocketAddrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::config::Socket;
use crate::exit::{Exit, Failure};

/// Largest answer that is taken; a status with thousands of backends is smaller.
const LONGEST_ANSWER: usize = 16 << 20;

/// An answer of the daemon.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
    /// The record that the traces of the request became.
    pub record: Option<u64>,
}

impl Answer {
    /// The daemon's own words about a refusal: the message of the `google.rpc.Status` in the body, as JSON or as
    /// protobuf (field 2), else nothing but the code.
    pub(super) fn reason(&self) -> String {
        #[derive(serde::Deserialize)]
        struct Json {
            message: String,
        }
        #[derive(Clone, PartialEq, prost::Message)]
        struct Proto {
            #[prost(string, tag = "2")]
            message: String,
        }
        let json = serde_json::from_slice::<Json>(&self.body).map(|json| json.message).ok();
        let proto = || <Proto as prost::Message>::decode(&self.body[..]).map(|proto| proto.message).ok();
        match json.or_else(proto).filter(|message| !message.is_empty()) {
            Some(message) => format!("{message} ({})", self.status.as_u16()),
            None => self.status.to_string(),
        }
    }
}

/// A connection that is made when it is first needed, and again when it broke.
pub(super) struct Client {
    path: PathBuf,
    open: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, open: None }
    }

    pub(super) async fn get(&mut self, path: &str) -> Result<Answer, String> {
        self.ask(Request::get(path), Bytes::new()).await
    }

    pub(super) async fn post(&mut self, path: &str, kind: &str, body: Bytes) -> Result<Answer, String> {
        self.ask(Request::post(path).header(header::CONTENT_TYPE, kind), body).await
    }

    async fn ask(&mut self, request: http::request::Builder, body: Bytes) -> Result<Answer, String> {
        let request = request
            .header(header::HOST, "localhost")
            .header(header::USER_AGENT, concat!("tracespool/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        let mut open = match self.open.take() {
            Some(open) if !open.is_closed() => open,
            _ => self.connect().await?,
        };
        open.ready().await.map_err(|error| error.to_string())?;
        let answer = open.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let record = answer.headers().get("x-tracespool-record").and_then(|value| value.to_str().ok()?.parse().ok());
        let body =
            Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await.map_err(|error| error.to_string())?;
        self.open = Some(open);
        Ok(Answer { status, body: body.to_bytes(), record })
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let stream = connect(&self.path).map_err(|error| error.to_string())?;
        let (open, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        // Its end shows at the sender; there is nothing more to say about it.
        tokio::spawn(async move { drop(connection.await) });
        Ok(open)
    }
}

/// Connects to a daemon's socket; a connection on this machine is made at once, or not.
pub(super) fn connect(path: &Path) -> std::io::Result<UnixStream> {
    let stream = connect_blocking(path)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// The same without a runtime.
pub(super) fn connect_blocking(path: &Path) -> std::io::Result<std::os::unix::net::UnixStream> {
    match Socket::abstract_name(path) {
        Some(name) => {
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            std::os::unix::net::UnixStream::connect_addr(&address)
        }
        None => std::os::unix::net::UnixStream::connect(path),
    }
}

/// Runs the asynchronous part of a command.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Bug, format!("cannot start: {error}")))?
        .block_on(work)
}

/// Bounds a question to a daemon that may hang.
pub(super) async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err("the daemon does not answer".into()))
}
