//! Destinations: one attempt in, one [`Outcome`] out.
//!
//! A backend knows its protocol and nothing of journals, places or pauses. What an answer means is decided by pure
//! functions ([`answer`]), row by row as the contract has it; what to do about it is the lane's business.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use crate::config;

pub use mlflow::Relay;

pub mod answer;
mod connect;
mod encode;
mod file;
mod http;
mod mlflow;
mod otlp_grpc;
mod otlp_http;
mod rpc;

/// Sent as `User-Agent`, as the exporter specification asks ("OpenTelemetry Protocol Exporter, User Agent").
const USER_AGENT: &str = concat!("tracespool/", env!("CARGO_PKG_VERSION"));

/// Ids of the daemons that a request passed, for the detection of loops.
pub const VIA: &str = "x-tracespool-via";

/// Time beyond the deadline that is given to an attempt for coming to its own conclusion, such as an answer whose
/// status is known though its body never ended. Only work that nobody can interrupt ever needs it.
const GRACE: Duration = Duration::from_millis(500);

/// What one attempt sends.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Validated requests in the order of the journal. Concatenated they are one request.
    pub requests: Vec<Bytes>,
    /// The experiment that the records name; `None` for the backend's own. All requests of a batch share it.
    pub experiment: Option<String>,
    /// Sent with the request: the headers that the app sent and the operator keeps, and [`VIA`].
    pub headers: Vec<(String, String)>,
    /// Spans in all requests.
    pub spans: u64,
    /// Set when that experiment was promised to an app by its name, and what the records name is a provisional id.
    pub promised: Option<Promised>,
    /// Set when there is one request only, and it is not OTLP but the body of this MLflow call.
    pub call: Option<spool::Call>,
}

/// An experiment that is named by a provisional id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promised {
    /// Its name.
    pub name: String,
    /// The id that this backend's server turned out to have it under.
    pub id: Option<String>,
}

impl Batch {
    /// Size of the request before compression; this is what the limits of OTLP servers are about.
    pub fn bytes(&self) -> u64 {
        self.requests.iter().map(|request| request.len() as u64).sum()
    }
}

/// What became of one attempt. Normal life, not an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The backend has it.
    Delivered {
        /// Spans that a partial success refused; never sent again.
        rejected_spans: u64,
        /// The backend's own words, shortened, or a note about an answer that could not be read.
        message: Option<String>,
    },
    /// Nobody's fault in this batch: try again later.
    Retry {
        /// What happened.
        failure: Failure,
        /// The server's own wish, at most ten minutes.
        after: Option<Duration>,
    },
    /// The request was larger than the backend takes.
    TooLarge(Failure),
    /// The operator must act; the data is kept.
    Blocked {
        /// What happened.
        failure: Failure,
        /// Whether it holds for the batch's experiment only (MLflow's 404 for one, or a 403).
        experiment_only: bool,
    },
    /// Refused for good, in whole.
    Refused {
        /// What happened.
        failure: Failure,
        /// 5xx, INTERNAL, UNKNOWN: may be the server's trouble, so the record is not yet condemned.
        doubtful: bool,
    },
}

impl Outcome {
    /// The whole batch was taken, without a word.
    pub(crate) fn delivered() -> Self {
        Self::Delivered { rejected_spans: 0, message: None }
    }

    /// Trouble that is over by itself, without a wish of the server.
    pub(crate) fn retry(failure: Failure) -> Self {
        Self::Retry { failure, after: None }
    }

    /// Everything for this backend waits for the operator.
    pub(crate) fn blocked(failure: Failure) -> Self {
        Self::Blocked { failure, experiment_only: false }
    }

    /// The attempt did not end in time.
    pub(crate) fn timeout() -> Self {
        Self::retry(Failure::new("timeout", "no answer within the time limit of one request"))
    }

    /// Every text in it that came from outside.
    fn message_mut(&mut self) -> Option<&mut String> {
        match self {
            Self::Delivered { message, .. } => message.as_mut(),
            Self::Retry { failure, .. }
            | Self::TooLarge(failure)
            | Self::Blocked { failure, .. }
            | Self::Refused { failure, .. } => Some(&mut failure.message),
        }
    }
}

/// Why an attempt did not deliver, fit for `status`, the log and a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// HTTP status or gRPC code as text (`"503"`, `"UNAVAILABLE"`), or `"connect"`, `"timeout"`, `"io"`,
    /// `"credentials"` (their file cannot be read), `"protocol"` (no answer that the protocol knows).
    pub status: String,
    /// A short message of the backend or of the connection. No payload text, no secrets.
    pub message: String,
    /// What the operator can do about it, when there is something.
    pub advice: Option<&'static str>,
}

impl Failure {
    /// Without advice.
    pub(crate) fn new(status: impl Into<String>, message: impl Into<String>) -> Self {
        Self { status: status.into(), message: message.into(), advice: None }
    }

    /// With advice, when there is some.
    pub(crate) fn advise(mut self, advice: impl Into<Option<&'static str>>) -> Self {
        self.advice = advice.into();
        self
    }
}

/// Why a backend cannot be built from its configuration. Never shows a secret.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The address is of no use to this kind of backend.
    #[error("endpoint: {0}")]
    Endpoint(String),
    /// A header that cannot be sent, or that the protocol sets itself.
    #[error("header `{name}`: {problem}")]
    Header {
        /// Its name.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A user name, password or token that fits into no header.
    #[error("credentials: {0}")]
    Credentials(&'static str),
    /// A certificate or key that cannot be read.
    #[error("tls: {path}: {problem}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// TLS settings that do not fit together.
    #[error("tls: {0}")]
    TlsSettings(String),
    /// An experiment id or a workspace that no MLflow server knows.
    #[error("{0}")]
    Mlflow(&'static str),
}

/// One destination, ready for attempts. Cheap to share by reference; every method takes `&self`.
pub struct Backend {
    kind: Kind,
    timeout: Duration,
}

#[expect(clippy::large_enum_variant, reason = "there is one for each [[backend]], never an array of them")]
enum Kind {
    OtlpGrpc(otlp_grpc::OtlpGrpc),
    OtlpHttp(otlp_http::OtlpHttp),
    Mlflow(mlflow::Mlflow),
    File(file::File),
}

impl Backend {
    /// Reads the TLS files and checks what can be checked without the network. Needs no runtime.
    ///
    /// A credential file that is missing is not an error here: attempts are blocked until it is there, while the doors
    /// stay open.
    ///
    /// # Errors
    /// The first setting with which no attempt could ever be made.
    pub fn build(backend: &config::Backend) -> Result<Self, BuildError> {
        connect::install_tls_provider();
        let timeout = backend.delivery.timeout;
        let kind = match &backend.target {
            config::Target::OtlpGrpc(remote) => Kind::OtlpGrpc(otlp_grpc::OtlpGrpc::build(remote, timeout)?),
            config::Target::OtlpHttp(remote) => Kind::OtlpHttp(otlp_http::OtlpHttp::build(remote, timeout)?),
            config::Target::Mlflow { remote, experiment, workspace } => {
                Kind::Mlflow(mlflow::Mlflow::build(remote, experiment, workspace.as_deref(), timeout)?)
            }
            config::Target::File(target) => Kind::File(file::File::build(target)),
        };
        Ok(Self { kind, timeout })
    }

    /// Sends `batch` once. Ends within the backend's `timeout`, give or take a moment.
    pub async fn attempt(&self, batch: &Batch) -> Outcome {
        let deadline = Instant::now() + self.timeout;
        let attempt = async {
            match &self.kind {
                Kind::OtlpGrpc(backend) => backend.attempt(batch, deadline).await,
                Kind::OtlpHttp(backend) => backend.attempt(batch, deadline).await,
                Kind::Mlflow(backend) => backend.attempt(batch, deadline).await,
                Kind::File(backend) => backend.attempt(batch, deadline).await,
            }
        };
        let mut outcome = timeout_at(deadline + GRACE, attempt).await.unwrap_or_else(|_| Outcome::timeout());
        if let (Some(message), Some(headers)) = (outcome.message_mut(), self.headers()) {
            // Some servers quote the credentials that they refuse.
            headers.redact(message);
        }
        outcome
    }

    /// The part of the backend that a record for `experiment` belongs to: only records of one partition may share a
    /// batch, and [`Batch::experiment`] is this value. Kinds without experiments have one partition.
    pub fn partition<'a>(&self, experiment: Option<&'a str>) -> Option<&'a str> {
        match &self.kind {
            Kind::Mlflow(backend) => backend.partition(experiment),
            Kind::OtlpGrpc(_) | Kind::OtlpHttp(_) | Kind::File(_) => None,
        }
    }

    /// Whether no two requests with spans of the same trace may be under way at once: an MLflow server updates the
    /// trace's row with each of them.
    pub fn keeps_traces_apart(&self) -> bool {
        matches!(self.kind, Kind::Mlflow(_))
    }

    /// Whether the credential file is another one than the last attempt used, so that a blocked lane may try at once.
    /// Looks at the file system; cheap, but not for every record.
    pub fn credentials_changed(&self) -> bool {
        self.headers().is_some_and(connect::Headers::changed)
    }

    /// Whether this kind of backend has a place for such a record.
    pub fn takes(&self, kind: spool::Kind) -> bool {
        matches!(self.kind, Kind::Mlflow(_)) || kind == spool::Kind::OtlpTraces
    }

    /// The id of the experiment of this name, as far as it was looked up for an attempt.
    pub fn experiment_named(&self, name: &str) -> Option<String> {
        match &self.kind {
            Kind::Mlflow(backend) => backend.looked_up(name),
            Kind::OtlpGrpc(_) | Kind::OtlpHttp(_) | Kind::File(_) => None,
        }
    }

    fn headers(&self) -> Option<&connect::Headers> {
        match &self.kind {
            Kind::OtlpGrpc(backend) => Some(backend.headers()),
            Kind::OtlpHttp(backend) => Some(backend.headers()),
            Kind::Mlflow(backend) => Some(backend.headers()),
            Kind::File(_) => None,
        }
    }
}

/// Shows the kind only: addresses and headers may hold secrets.
impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::OtlpGrpc(_) => "OtlpGrpc",
            Kind::OtlpHttp(_) => "OtlpHttp",
            Kind::Mlflow(_) => "Mlflow",
            Kind::File(_) => "File",
        };
        f.debug_struct("Backend").field("kind", &kind).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}
