//! Scripted servers, and what the tests send to them.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use serde_json::Value;
use tracespool::backend::{Backend, Batch, Failure, Outcome};
use tracespool::config::{self, Compression, Credentials, Delivery, Remote, StartAt, Target, Tls};
use url::Url;

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server in a process of its own, ended with the test.
pub(crate) struct Server {
    child: Child,
    lines: Receiver<String>,
    pub(crate) port: u16,
}

impl Server {
    /// An HTTP server that answers as `script` says.
    pub(crate) fn http(script: &Value) -> Self {
        Self::http_with(script, &[])
    }

    pub(crate) fn http_with(script: &Value, tls: &[&Path]) -> Self {
        let mut command = Command::new("python3");
        command.arg(peer("scripted_http.py")).arg(script.to_string()).args(tls);
        Self::start(command)
    }

    /// A gRPC server that answers as `script` says.
    pub(crate) fn grpc(script: &Value, address: &str, tls: &[&Path]) -> Self {
        let python = std::env::var_os("TRACESPOOL_TEST_PYTHON").expect(
            "TRACESPOOL_TEST_PYTHON must name a Python with grpcio, opentelemetry-proto and googleapis-common-protos: run tests/run",
        );
        let mut command = Command::new(python);
        command.arg(peer("scripted_grpc.py")).arg(script.to_string()).arg(address).args(tls);
        Self::start(command)
    }

    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the server's Python");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut server = Self { child, lines, port: 0 };
        server.port = server.line().parse().expect("a port");
        server
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line of the server")
    }

    /// The next request that arrived.
    pub(crate) fn request(&self) -> Value {
        serde_json::from_str(&self.line()).expect("JSON")
    }

    /// No request has arrived that was not looked at.
    pub(crate) fn assert_idle(&self) {
        assert_eq!(self.lines.try_recv().ok(), None);
    }

    pub(crate) fn url(&self, path: &str) -> Url {
        Url::parse(&format!("http://127.0.0.1:{}{path}", self.port)).expect("url")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn peer(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(name)
}

pub(crate) fn remote(endpoint: Url) -> Remote {
    Remote {
        endpoint,
        headers: Vec::new(),
        credentials: Credentials::None,
        tls: Tls::default(),
        compression: Compression::None,
    }
}

pub(crate) fn build(target: Target) -> Backend {
    build_with(target, PATIENCE)
}

pub(crate) fn build_with(target: Target, timeout: Duration) -> Backend {
    Backend::build(&config(target, timeout)).expect("build")
}

pub(crate) fn config(target: Target, timeout: Duration) -> config::Backend {
    let delivery = Delivery {
        workers: 1,
        timeout,
        batch_max_bytes: 3 << 20,
        backoff_initial: Duration::from_secs(1),
        backoff_max: Duration::from_secs(30),
        retry_timeout: Duration::from_secs(3600),
        after_retry_timeout: tracespool::config::AfterRetryTimeout::DeadLetter,
        blocked_retry: Duration::from_secs(60),
    };
    config::Backend {
        name: "test".into(),
        target,
        delivery,
        start_at: StartAt::Oldest,
        gives_way: false,
        max_backlog_bytes: None,
    }
}

/// Requests with one span each, of these names.
pub(crate) fn batch(names: &[&str]) -> Batch {
    let requests = names.iter().map(|name| request(name)).collect();
    let spans = names.len() as u64;
    Batch { requests, experiment: None, headers: Vec::new(), spans, promised: None, call: None }
}

fn request(name: &str) -> Bytes {
    let span = Span { trace_id: vec![1; 16], span_id: vec![2; 8], name: name.into(), ..Span::default() };
    let scope_spans = vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }];
    let resource_spans = vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec().into()
}

/// The body of a request that the HTTP server saw, decompressed by it.
pub(crate) fn body(request: &Value) -> Vec<u8> {
    STANDARD.decode(request["body"].as_str().expect("body")).expect("base64")
}

/// The names of the spans in a request.
pub(crate) fn span_names(body: &[u8]) -> Vec<String> {
    let request = ExportTraceServiceRequest::decode(body).expect("a request");
    let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    scopes.flat_map(|scope| scope.spans).map(|span| span.name).collect()
}

pub(crate) fn delivered() -> Outcome {
    Outcome::Delivered { rejected_spans: 0, message: None }
}

/// The failure of an attempt that is to be tried again, and the server's wish in seconds.
pub(crate) fn retry(outcome: Outcome) -> (Failure, Option<u64>) {
    match outcome {
        Outcome::Retry { failure, after } => (failure, after.map(|after| after.as_secs())),
        other => panic!("not a retry: {other:?}"),
    }
}

/// A certificate authority with a certificate for 127.0.0.1 and one for a client.
pub(crate) struct Authority {
    dir: tempfile::TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let authority = Self { dir: tempfile::tempdir().expect("dir") };
        let subject = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
        authority.openssl(
            &[&["req", "-x509", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem"], &subject[..]].concat(),
        );
        for (name, extension) in [("server", "subjectAltName=IP:127.0.0.1"), ("client", "extendedKeyUsage=clientAuth")]
        {
            let (key, out) = (format!("{name}.key"), format!("{name}.pem"));
            let own = ["req", "-x509", "-CA", "ca.pem", "-CAkey", "ca.key", "-subj", "/CN=peer", "-addext", extension];
            let leaf = ["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", &key, "-out", &out];
            authority.openssl(&[&own[..], &leaf, &subject].concat());
        }
        authority
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl").args(arguments).current_dir(self.dir.path()).output().expect("openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
