//! Destinations: one attempt in, one [`Outcome`] out.
//!
//! A backend knows its protocol and nothing of journals, places or pauses. What an answer means is decided by pure
//! functions (`answer`), row by row as the contract has it; what to do about it is the lane's business.

use std::time::Duration;

use bytes::Bytes;

/// What one attempt sends.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Validated requests in the order of the journal. Concatenated they are one request.
    pub requests: Vec<Bytes>,
    /// The experiment that the records name; `None` for the backend's own. All requests of a batch share it.
    pub experiment: Option<String>,
    /// Spans in all requests.
    pub spans: u64,
}

/// What became of one attempt. Normal life, not an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The backend has it.
    Delivered {
        /// Spans that a partial success refused; never sent again.
        rejected_spans: u64,
        /// The backend's own words, shortened.
        message: Option<String>,
    },
    /// Nobody's fault in this batch: try again later.
    Retry {
        /// What happened.
        failure: Failure,
        /// The server's own wish.
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

/// Why an attempt did not deliver, fit for `status`, the log and a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// HTTP status or gRPC code as text (`"503"`, `"UNAVAILABLE"`), or `"connect"`, `"timeout"`, `"io"`.
    pub status: String,
    /// A short message of the backend or of the connection. No payload text, no secrets.
    pub message: String,
    /// What the operator can do about it, when there is something.
    pub advice: Option<&'static str>,
}
