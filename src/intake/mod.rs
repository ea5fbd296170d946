//! The waist of the hourglass: admission, group commit, answers when durable.

mod committer;
mod letters;
mod losses;
mod room;

use std::ops::Range;

use bytes::Bytes;
use spool::{Control, Label};
use tokio::sync::{mpsc, oneshot};

use crate::otlp::Summary;

pub use committer::{Committer, CommitterParts, Limits};
pub use spool::{Call, Door, SourceRange};

/// A validated request on its way to the journal.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The request as protobuf, contiguous, never decoded.
    pub payload: Bytes,
    /// What validation found in it.
    pub summary: Summary,
    /// Where it came in.
    pub door: Door,
    /// `x-mlflow-experiment-id`, when the client named one.
    pub experiment: Option<String>,
    /// `X-MLFLOW-WORKSPACE`, when the client named one.
    pub workspace: Option<String>,
    /// The headers that the operator wants kept, in order.
    pub headers: Vec<(String, String)>,
    /// Ids of the daemons that it passed.
    pub via: Vec<String>,
    /// Peer of a Unix socket.
    pub peer_uid: Option<u32>,
    /// Set when the payload is no OTLP request, but the body of one of MLflow's own calls about a trace.
    pub call: Option<CallHead>,
    /// Where in which drop file it came from.
    pub source: Option<SourceRange>,
}

/// What is known of an MLflow call beside its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallHead {
    /// What is to be sent to an MLflow server.
    pub call: Call,
    /// The trace that it is about.
    pub trace_id: [u8; 16],
    /// The body is a file, not a message.
    pub is_artifact: bool,
}

/// The promise: the record is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Its number in the journal; `None` when the operator's limit gave it up, as `when_full = "discard_newest"` says.
    pub record: Option<u64>,
}

impl Receipt {
    /// For the one record of a request.
    #[must_use]
    pub fn of(records: Range<u64>) -> Self {
        Self { record: (!records.is_empty()).then_some(records.start) }
    }
}

/// Why a request is not taken. Normal life, not an error; `receive::refusal` turns it into status codes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The bytes are not what they claim to be; never retryable.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// Over `receive.max_request_bytes`, on the wire or decompressed.
    #[error("the request is larger than receive.max_request_bytes = {limit}")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// `spool.max_bytes` is reached.
    #[error("the spool is full (spool.max_bytes = {max_bytes})")]
    Full {
        /// The limit in bytes.
        max_bytes: u64,
    },
    /// `spool.max_traces` is reached.
    #[error("the spool is full (spool.max_traces = {max_traces})")]
    TooManyTraces {
        /// The limit.
        max_traces: u64,
    },
    /// The disk is nearly or really full.
    #[error("the disk that holds the spool is full")]
    DiskFull,
    /// `receive.max_in_flight_bytes` is reached.
    #[error("too many requests are being received (receive.max_in_flight_bytes = {limit})")]
    Busy {
        /// The limit in bytes.
        limit: u64,
    },
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
    /// The journal failed; the process is about to exit.
    #[error("the journal failed")]
    Failed,
}

/// What is to be stored in one commit group, or not at all, with the way back to who waits for it.
#[derive(Debug)]
pub struct Job {
    /// Become records, in this order.
    pub submissions: Vec<Submission>,
    /// Facts that are true as soon as these are durable. Without submissions they are never refused for want of room.
    pub facts: Vec<Control>,
    /// Gets the answer. Nobody may be there any more: the records are stored all the same.
    pub answer: oneshot::Sender<Answer>,
}

/// What a job is answered with: the numbers of its records; none where the operator's limit gave them up.
pub type Answer = Result<Range<u64>, Refusal>;

/// What others than the doors ask of the committer, the only writer of the journal. An answer that does not come means
/// that it is not known to be durable.
#[derive(Debug)]
pub enum Command {
    /// Facts that are in the books already are to be durable.
    Record {
        /// The facts.
        controls: Vec<Control>,
        /// Told when they are.
        done: oneshot::Sender<()>,
    },
    /// Whole segments that a backend did not take in time are to be given up.
    Expire {
        /// Whose dead letters they become, and why; the committer adds what is the segment's.
        label: Label,
        /// All in them was received before this running clock.
        before_clock_ms: u64,
        /// They are discarded, not kept as dead letters.
        discard: bool,
        /// Told when it is done.
        done: oneshot::Sender<()>,
    },
}

/// The way to the committer for those who ask it for facts; cheap to clone.
#[derive(Debug, Clone)]
pub struct Commands {
    commands: mpsc::Sender<Command>,
}

impl Commands {
    /// A way to whoever receives `commands`.
    #[must_use]
    pub fn new(commands: mpsc::Sender<Command>) -> Self {
        Self { commands }
    }

    /// Asks, and returns when it is durable. `false` when it is not known to be: the committer has ended, or the disk is
    /// full.
    pub async fn ask(&self, command: impl FnOnce(oneshot::Sender<()>) -> Command) -> bool {
        let (done, answered) = oneshot::channel();
        self.commands.send(command(done)).await.is_ok() && answered.await.is_ok()
    }
}

/// The way into the journal; cheap to clone. When the last one is gone, the committer ends.
#[derive(Debug, Clone)]
pub struct Intake {
    jobs: mpsc::Sender<Job>,
}

impl Intake {
    /// A way to whoever receives `jobs`.
    #[must_use]
    pub fn new(jobs: mpsc::Sender<Job>) -> Self {
        Self { jobs }
    }

    /// Appends the request and returns when it is durable. Dropping the future does not take the request back.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub async fn submit(&self, submission: Submission) -> Result<Receipt, Refusal> {
        self.enqueue(submission).await?.await.unwrap_or(Err(Refusal::Failed)).map(Receipt::of)
    }

    /// Puts the request into the queue, in which requests stay in the order of these calls; the answer comes when it is
    /// durable. It is stored also when nobody waits for that.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub async fn enqueue(&self, submission: Submission) -> Result<oneshot::Receiver<Answer>, Refusal> {
        let (answer, answered) = oneshot::channel();
        let job = Job { submissions: vec![submission], facts: Vec::new(), answer };
        // A full queue is waited for: its length is bounded by the budget of bytes that every request was charged to.
        self.jobs.send(job).await.map_err(|_| Refusal::Stopping)?;
        Ok(answered)
    }

    /// A way in that is closed as soon as every [`Intake`] is gone.
    #[must_use]
    pub fn side_entrance(&self) -> SideEntrance {
        SideEntrance { jobs: self.jobs.downgrade() }
    }
}

/// A way into the journal that does not hold up the committer's end.
#[derive(Debug, Clone)]
pub struct SideEntrance {
    jobs: mpsc::WeakSender<Job>,
}

impl SideEntrance {
    /// Hands in what belongs into one commit group, and returns where the answer comes; without one, the committer has
    /// ended.
    ///
    /// # Errors
    /// [`Refusal::Stopping`]: nothing is taken any more.
    pub async fn submit(
        &self,
        submissions: Vec<Submission>,
        facts: Vec<Control>,
    ) -> Result<oneshot::Receiver<Answer>, Refusal> {
        let (answer, answered) = oneshot::channel();
        let jobs = self.jobs.upgrade().ok_or(Refusal::Stopping)?;
        jobs.send(Job { submissions, facts, answer }).await.map_err(|_| Refusal::Stopping)?;
        Ok(answered)
    }
}
