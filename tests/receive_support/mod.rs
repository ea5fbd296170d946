//! Doors that are really open, an intake that is answered by hand, and clients that share little with the doors.

#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracespool::config;
use tracespool::intake::{Intake, Job, Submission};
use tracespool::receive::{Budget, Doors, Inherited, Received, Reception, Totals};

/// Far longer than anything here takes; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// The id of the daemon whose doors these are.
pub(crate) const OWN_ID: &str = "0123456789abcdef";
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const PROTOBUF: &str = "application/x-protobuf";
pub(crate) const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// A real request of four spans.
pub(crate) const NESTED: &[u8] = include_bytes!("../data/nested.otlp.pb");

/// Open doors, and all that a test may look at behind them.
pub(crate) struct Open {
    pub(crate) address: SocketAddr,
    pub(crate) socket: PathBuf,
    pub(crate) budget: Budget,
    pub(crate) received: Arc<Received>,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) served: JoinHandle<()>,
    pub(crate) jobs: mpsc::Receiver<Job>,
    _directory: TempDir,
}

/// Opens the doors with the limits given in bytes.
pub(crate) fn open(max_request_bytes: u64, max_in_flight_bytes: u64) -> Open {
    open_as(max_request_bytes, max_in_flight_bytes, |_| {})
}

/// The same, with what `change` makes of the settings.
pub(crate) fn open_as(
    max_request_bytes: u64,
    max_in_flight_bytes: u64,
    change: impl FnOnce(&mut config::Receive),
) -> Open {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = receive(directory.path(), max_request_bytes, max_in_flight_bytes);
    change(&mut config);
    let doors = Doors::bind(&config, Inherited::default()).expect("the doors are bound");
    let (sender, jobs) = mpsc::channel(1024);
    let budget = Budget::new(max_in_flight_bytes);
    let received = Arc::new(Received::default());
    let reception = Reception::new(&config, OWN_ID, Intake::new(sender), budget.clone(), Arc::clone(&received));
    let reception = reception.expect("a reception");
    let (stop, stopped) = watch::channel(false);
    let address = doors.addresses()[0];
    let socket = doors.socket().to_owned();
    let served = doors.serve(Arc::new(reception), stopped).expect("the doors are open");
    Open { address, socket, budget, received, stop, served, jobs, _directory: directory }
}

/// Settings of doors whose socket is in `directory`.
pub(crate) fn receive(directory: &Path, max_request_bytes: u64, max_in_flight_bytes: u64) -> config::Receive {
    config::Receive {
        listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        max_request_bytes,
        max_in_flight_bytes,
        insecure: false,
        mlflow: config::MlflowCalls::default(),
        tls: None,
        token_file: None,
        keep_headers: Vec::new(),
        other_signals: config::OtherSignals::Accept,
        allow_uids: None,
        socket: config::Socket { path: directory.join("spool.sock"), mode: 0o600, group: None },
        directory: config::Directory::at(directory.join("drop")),
    }
}

impl Open {
    /// The next submission, not answered yet.
    pub(crate) async fn job(&mut self) -> Job {
        within(self.jobs.recv()).await.expect("a job")
    }

    /// Answers every submission from now on with a receipt, and hands them on.
    pub(crate) fn take_all(&mut self) -> mpsc::UnboundedReceiver<Submission> {
        let (_, none) = mpsc::channel(1);
        let mut jobs = std::mem::replace(&mut self.jobs, none);
        let (sender, taken) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut record = 0;
            while let Some(job) = jobs.recv().await {
                record += 1;
                // Whoever does not look at them need not.
                job.submissions.into_iter().for_each(|submission| drop(sender.send(submission)));
                let _ = job.answer.send(Ok(record..record + 1));
            }
        });
        taken
    }

    /// Waits until no request holds memory.
    pub(crate) async fn all_is_given_back(&self) {
        until(|| self.budget.used() == 0).await;
    }

    pub(crate) fn totals(&self) -> Totals {
        self.received.totals()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// Fails a test that would hang.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("it does not take so long")
}

/// Waits for a condition that nothing announces.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    within(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// An answer of HTTP/1.1.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The `google.rpc.Status` of a JSON body.
    pub(crate) fn status_json(&self) -> (i64, String) {
        let status: serde_json::Value = serde_json::from_slice(&self.body).expect("a JSON body");
        (status["code"].as_i64().expect("a code"), status["message"].as_str().expect("a message").to_owned())
    }

    /// The `google.rpc.Status` of a protobuf body.
    pub(crate) fn status_protobuf(&self) -> Status {
        prost::Message::decode(&self.body[..]).expect("a Status")
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Status {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

/// One request of HTTP/1.1, byte by byte.
pub(crate) fn post(path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut request = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    [request.as_bytes(), body].concat()
}

/// Reads one answer and nothing behind it.
pub(crate) async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> Answer {
    within(async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("an answer"));
        }
        let head = String::from_utf8(head).expect("a head in ASCII");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line");
        let headers: Vec<_> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let mut answer = Answer { status: status.parse().expect("a status"), headers, body: Vec::new() };
        let length = answer.header("content-length").map_or(0, |length| length.parse().expect("a length"));
        answer.body.resize(length, 0);
        stream.read_exact(&mut answer.body).await.expect("a whole body");
        answer
    })
    .await
}

/// One request on a connection of its own.
pub(crate) async fn exchange(address: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(request).await.expect("the request is sent");
    answer(&mut stream).await
}

/// Runs curl with `body` on its standard input; returns status and body of the answer.
pub(crate) async fn curl(arguments: &[&str], body: &[u8]) -> (String, Vec<u8>) {
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let body = body.to_owned();
    let run = tokio::task::spawn_blocking(move || {
        let mut child = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_version} %{http_code}"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("curl is there");
        let mut stdin = child.stdin.take().expect("an input");
        // A refused request may end before its body was read.
        let _ = std::io::Write::write_all(&mut stdin, &body);
        drop(stdin);
        child.wait_with_output().expect("curl ends").stdout
    });
    let mut output = within(run).await.expect("curl ran");
    let line = output.iter().rposition(|&byte| byte == b'\n').expect("a last line");
    let status = String::from_utf8(output.split_off(line + 1)).expect("a status");
    output.pop();
    (status, output)
}

/// A body that is fed by hand.
pub(crate) struct Fed(pub(crate) mpsc::Receiver<Bytes>);

impl Body for Fed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// A connection of HTTP/2.
#[derive(Clone)]
pub(crate) struct Http2(pub(crate) http2::SendRequest<Fed>);

impl Http2 {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("a connection");
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("a handshake");
        tokio::spawn(connection);
        Self(sender)
    }

    /// Begins a call; the sender feeds its body.
    pub(crate) fn begin(
        &mut self,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> (mpsc::Sender<Bytes>, impl Future<Output = hyper::Result<Response<Incoming>>> + 'static) {
        let (sender, body) = mpsc::channel(16);
        let mut request = Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        (sender, self.0.send_request(request.body(Fed(body)).expect("a request")))
    }

    /// A whole call: `body` is what stands on the wire.
    pub(crate) async fn call(&mut self, path: &str, headers: &[(&'static str, &str)], body: &[u8]) -> Called {
        let (sender, response) = self.begin(path, headers);
        sender.send(Bytes::copy_from_slice(body)).await.expect("the body is taken");
        drop(sender);
        Called::read(within(response).await.expect("a response")).await
    }
}

/// What a call came to.
#[derive(Debug)]
pub(crate) struct Called {
    pub(crate) status: u8,
    pub(crate) message: String,
    pub(crate) headers: HeaderMap,
    /// The answer's message with its prefix; nothing after a refusal.
    pub(crate) data: Bytes,
    /// Whether the status came in the only block of headers.
    pub trailers_only: bool,
}

impl Called {
    pub(crate) async fn read(response: Response<Incoming>) -> Self {
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        let (head, body) = response.into_parts();
        let body = within(body.collect()).await.expect("a body");
        let trailers = body.trailers().cloned();
        let text =
            |headers: &HeaderMap, name: &str| headers.get(name).map(|value| value.to_str().expect("ASCII").to_owned());
        let trailers_only = head.headers.contains_key("grpc-status");
        let end = if trailers_only { &head.headers } else { trailers.as_ref().expect("trailers") };
        Self {
            status: text(end, "grpc-status").expect("a status").parse().expect("a number"),
            message: text(end, "grpc-message").unwrap_or_default(),
            data: body.to_bytes(),
            headers: head.headers.clone(),
            trailers_only,
        }
    }
}

/// A message as gRPC frames it.
pub(crate) fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("a short message");
    [&[flag][..], &length.to_be_bytes(), message].concat()
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, data).expect("memory takes it");
    encoder.finish().expect("memory takes it")
}
