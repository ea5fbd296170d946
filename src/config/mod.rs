//! The configuration as meant: typed, checked, with every default filled in.
//!
//! `file` holds the TOML as written, `environment` the variables that count, and [`load`] turns both into a
//! [`Config`], reporting every mistake at once with file, line and key. Nothing below `main` reads the environment.

mod address;
mod backends;
mod effective;
mod environment;
mod expand;
mod file;
mod finding;
mod kept_headers;
mod load;
mod mlflow_variables;
mod otel_variables;
mod paths;
mod remote;
mod section;
mod settle;
pub mod units;

pub use effective::effective;
pub use environment::Environment;
pub use finding::{Finding, Mistakes, Origin, Origins, Source};
pub use load::{Doors, Loaded, Overrides, doors, load};
pub use paths::machine_sockets;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use spool::Durability;
use url::Url;

/// Everything the daemon needs to know before it builds itself.
#[derive(Debug, Clone)]
pub struct Config {
    /// Journal, side journal, ledger, dead letters.
    pub state_dir: PathBuf,
    /// The doors.
    pub receive: Receive,
    /// What may lie on disk.
    pub spool: Spool,
    /// How long, and how much, of what was given up is kept.
    pub dead_letters: DeadLetters,
    /// Where records are shipped; may be empty, then records wait.
    pub backends: Vec<Backend>,
    /// The operator's door.
    pub admin: Admin,
    /// What is logged, and how.
    pub log: Log,
}

/// The doors: addresses, and the bounds on what comes through them.
#[derive(Debug, Clone)]
pub struct Receive {
    /// TCP addresses; each speaks gRPC and HTTP, HTTP/1.1 and HTTP/2.
    pub listen: Vec<SocketAddr>,
    /// Bound on one request, on the wire and again after decompression.
    pub max_request_bytes: u64,
    /// Bound on the memory of all requests being received, decompressed or transcoded.
    pub max_in_flight_bytes: u64,
    /// The operator knows that whoever reaches a listener beyond loopback may write to it.
    pub insecure: bool,
    /// The TCP listeners speak TLS.
    pub tls: Option<ServerTls>,
    /// Whoever comes over TCP must know the token in this file, which is read again when it changes.
    pub token_file: Option<PathBuf>,
    /// Names, in lower case, of the apps' headers that are stored and passed on.
    pub keep_headers: Vec<String>,
    /// What becomes of metrics and logs.
    pub other_signals: OtherSignals,
    /// The spool socket.
    pub socket: Socket,
    /// MLflow's own calls.
    pub mlflow: MlflowCalls,
    /// The only users that may write to the spool socket; everybody whom its mode admits when absent.
    pub allow_uids: Option<Vec<u32>>,
    /// The drop directory.
    pub directory: Directory,
}

/// MLflow's own calls on the listeners and the spool socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MlflowCalls {
    /// They are answered.
    pub enabled: bool,
    /// The experiment of calls that name none.
    pub experiment_id: String,
    /// Those that are not spooled go to the mlflow backend.
    pub forward: bool,
}

impl Default for MlflowCalls {
    fn default() -> Self {
        Self { enabled: true, experiment_id: "0".to_owned(), forward: true }
    }
}

impl Receive {
    /// Whether a listener may be open to other machines: something keeps strangers out, or the operator wants none of
    /// that.
    pub fn is_guarded(&self) -> bool {
        self.insecure || self.tls.is_some() || self.token_file.is_some()
    }
}

/// What the listeners need to speak TLS; files in PEM form.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// The certificate, and those between it and its authority.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authorities; a client must show a certificate of one of them.
    pub client_ca: Option<PathBuf>,
}

/// What becomes of metrics and logs that SDKs send beside traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OtherSignals {
    /// Answered with success, counted, dropped.
    #[default]
    Accept,
    /// Answered as by a receiver that does not know them.
    Refuse,
}

/// The drop directory: files that are put there are taken.
#[derive(Debug, Clone)]
pub struct Directory {
    /// Where it is.
    pub path: PathBuf,
    /// How often it is looked through, whatever its events say; and how long a file that no event spoke of must have
    /// been left alone by its writer.
    pub rescan: Duration,
    /// What becomes of a file whose content is on disk.
    pub after: AfterTaking,
    /// Older files in `archive/` and `rejected/` are removed.
    pub keep: Duration,
    /// Above this the oldest files in each of the two are removed.
    pub keep_bytes: u64,
}

impl Directory {
    /// With the defaults.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        let day = Duration::from_secs(86_400);
        let (rescan, after) = (Duration::from_secs(10), AfterTaking::Delete);
        Self { path, rescan, after, keep: 30 * day, keep_bytes: 1 << 30 }
    }
}

/// What becomes of a drop file whose content is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterTaking {
    /// It is removed.
    Delete,
    /// It is moved to `archive/`.
    Archive,
}

/// A Unix socket and who may open it.
#[derive(Debug, Clone)]
pub struct Socket {
    /// Where it is bound: a path, or `@` and a name in the abstract name space (unix(7)), which has neither mode nor
    /// group.
    pub path: PathBuf,
    /// Permission bits, for example `0o660`.
    pub mode: u32,
    /// Owning group; the daemon's own when absent.
    pub group: Option<String>,
}

impl Socket {
    /// The name of an abstract socket.
    pub fn abstract_name(path: &std::path::Path) -> Option<&[u8]> {
        path.as_os_str().as_encoded_bytes().strip_prefix(b"@")
    }
}

/// Limits of the journal.
#[derive(Debug, Clone)]
pub struct Spool {
    /// The queue cap: everything that lies on disk.
    pub max_bytes: u64,
    /// Size of one segment file.
    pub segment_bytes: u64,
    /// How many traces may wait.
    pub max_traces: Option<u64>,
    /// What happens when a cap is reached.
    pub when_full: WhenFull,
    /// Refuse before the disk has less than this left.
    pub min_free_disk: u64,
    /// Delivered records stay this long for replay,
    pub keep_delivered: Duration,
    /// up to this much.
    pub keep_delivered_bytes: u64,
    /// Whether a trace is acknowledged after the sync, or after the write.
    pub durability: Durability,
}

/// What happens when there is no room for what comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// It is refused; the sender keeps it.
    #[default]
    Refuse,
    /// What has waited longest is given up for it.
    DiscardOldest,
    /// It is answered with success and given up.
    DiscardNewest,
}

/// What becomes of a record that nothing could deliver in `retry_timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AfterRetryTimeout {
    /// It is kept for the operator.
    #[default]
    DeadLetter,
    /// It is given up.
    Discard,
}

/// Limits of what was given up.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    /// Above this the oldest are discarded.
    pub max_bytes: u64,
    /// Older ones are discarded.
    pub max_age: Duration,
}

/// One destination with its own place in the journal.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Unique; the key of its place in the journal.
    pub name: String,
    /// What it speaks and where it is.
    pub target: Target,
    /// How records are sent to it.
    pub delivery: Delivery,
    /// What it gets when it is new.
    pub start_at: StartAt,
    /// Its debts give way before anybody is refused,
    pub gives_way: bool,
    /// and when they reach this many bytes.
    pub max_backlog_bytes: Option<u64>,
}

/// What a newly added backend gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StartAt {
    /// Everything that is still in the journal.
    Oldest,
    /// Only what arrives from now on.
    Now,
    /// Nobody said: everything for the first backend that this spool ever has, only what is new for later ones. Only
    /// the journal knows which it is.
    #[default]
    Auto,
}

/// The kind of a backend, with what only that kind needs.
#[derive(Debug, Clone)]
pub enum Target {
    /// OTLP over gRPC.
    OtlpGrpc(Remote),
    /// OTLP over HTTP with protobuf; `Remote::endpoint` is the complete traces address.
    OtlpHttp(Remote),
    /// A self-hosted MLflow server; `Remote::endpoint` is its base address.
    Mlflow {
        /// The server.
        remote: Remote,
        /// For records that name no experiment; never empty.
        experiment: Experiment,
        /// `X-MLFLOW-WORKSPACE`, when set.
        workspace: Option<String>,
    },
    /// OTLP JSON lines in a file.
    File(FileTarget),
}

/// An MLflow experiment as the operator names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Experiment {
    /// By its numeric id.
    Id(String),
    /// By its name; looked up, or created, at the first delivery.
    Name(String),
}

/// A server that is reached over the network.
#[derive(Clone)]
pub struct Remote {
    /// `http`, `https`, or for gRPC also `unix:` addresses. Never contains user information.
    pub endpoint: Url,
    /// Sent with every request; values may be secrets.
    pub headers: Vec<(String, Secret)>,
    /// How requests authenticate.
    pub credentials: Credentials,
    /// Extra trust anchors and the client's own certificate.
    pub tls: Tls,
    /// How request bodies are compressed.
    pub compression: Compression,
}

/// How requests authenticate.
#[derive(Debug, Clone, Default)]
pub enum Credentials {
    /// Not at all.
    #[default]
    None,
    /// `Authorization: Bearer`, the token given outright (environment).
    Bearer(Secret),
    /// `Authorization: Bearer`, the token read from this file again whenever the file changes.
    BearerFile(PathBuf),
    /// `Authorization: Basic`.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: Secret,
    },
    /// `Authorization: Basic`, the password read from this file again whenever the file changes.
    BasicFile {
        /// User name.
        username: String,
        /// File with the password.
        password_file: PathBuf,
    },
}

/// TLS files in PEM form; all optional.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Certificate authorities to trust for this server instead of the system's.
    pub ca: Option<PathBuf>,
    /// Client certificate; together with `key`.
    pub cert: Option<PathBuf>,
    /// Key of the client certificate.
    pub key: Option<PathBuf>,
}

/// Compression of request bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// As they are.
    None,
    /// The only coding the OTLP specification knows.
    #[default]
    Gzip,
    /// Widespread, though not in the specification.
    Zstd,
}

/// Where the `file` backend writes.
#[derive(Debug, Clone)]
pub struct FileTarget {
    /// The current file; rotated ones get `.1`, `.2` and so on appended.
    pub path: PathBuf,
    /// Rotate when the file would grow past this.
    pub rotate_bytes: u64,
    /// How many rotated files are kept.
    pub rotate_files: u32,
}

/// How a lane sends.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Requests in flight at most.
    pub workers: u32,
    /// Bound on one request.
    pub timeout: Duration,
    /// Bound on one batch, uncompressed; a larger record is sent alone.
    pub batch_max_bytes: u64,
    /// First pause after trouble.
    pub backoff_initial: Duration,
    /// Longest pause after trouble.
    pub backoff_max: Duration,
    /// Time in service after which a record that nothing could deliver is given up.
    pub retry_timeout: Duration,
    /// What becomes of it then.
    pub after_retry_timeout: AfterRetryTimeout,
    /// Pause between tries while the operator must act.
    pub blocked_retry: Duration,
}

/// The operator's door.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Serves `status` and later the verbs that steer delivery.
    pub socket: Socket,
}

/// What is logged, and how.
#[derive(Debug, Clone)]
pub struct Log {
    /// Least severe level that is logged.
    pub level: tracing::Level,
    /// Form of the lines.
    pub format: LogFormat,
}

/// Form of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// The journal under systemd, text otherwise.
    Auto,
    /// Human-readable.
    Text,
    /// One JSON object a line.
    Json,
}

/// A string that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `value` from `Debug`.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Target {
    /// The name of the kind, as the file and `status` have it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::OtlpGrpc(_) => "otlp_grpc",
            Self::OtlpHttp(_) => "otlp_http",
            Self::Mlflow { .. } => "mlflow",
            Self::File(_) => "file",
        }
    }

    /// The server, for the kinds that have one.
    pub fn remote(&self) -> Option<&Remote> {
        match self {
            Self::OtlpGrpc(remote) | Self::OtlpHttp(remote) | Self::Mlflow { remote, .. } => Some(remote),
            Self::File(_) => None,
        }
    }
}

impl Remote {
    /// The address, fit for the log: a query may hold a key and is not shown.
    pub fn shown(&self) -> String {
        let mut url = self.endpoint.clone();
        if url.query().is_some() {
            url.set_query(Some("***"));
        }
        url.to_string()
    }
}

/// Reads the name of a level.
pub(crate) fn log_level(text: &str) -> Result<tracing::Level, String> {
    text.trim()
        .parse::<tracing::Level>()
        .ok()
        // The parser also takes numbers, which nobody could read in a file.
        .filter(|_| !text.trim().starts_with(|c: char| c.is_ascii_digit()))
        .ok_or_else(|| "must be one of error, warn, info, debug, trace".to_owned())
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote")
            .field("endpoint", &self.shown())
            .field("headers", &self.headers)
            .field("credentials", &self.credentials)
            .field("tls", &self.tls)
            .field("compression", &self.compression)
            .finish()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}
