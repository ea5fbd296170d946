//! From a body to a durable record: decompress, transcode, validate, submit.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use tokio::task::JoinHandle;

use super::budget::Charge;
use super::coding::{self, Coding};
use super::refusal::Problem;
use super::{Reception, size, via};
use crate::intake::{Door, Receipt, Refusal, Submission};
use crate::otlp::json::JsonError;
use crate::otlp::trace_json::{Converted, Dialect};
use crate::otlp::{self, Summary};

/// Up to this size a body is validated where it is: a few hundred microseconds. Longer work goes to a thread of its
/// own, so that it does not hold up the other connections.
const VALIDATED_INLINE: usize = 1 << 20;
/// The same for transcoding JSON, which is slower by an order of magnitude.
const TRANSCODED_INLINE: usize = 64 << 10;
/// The same for decompressing, where both sides count: a small body may unfold to a large one.
const DECOMPRESSED_INLINE: usize = 64 << 10;
const DECOMPRESSED_INLINE_TO: u64 = 512 << 10;

/// Longest experiment id or workspace name that is kept; MLflow's own names are shorter.
const LONGEST_LABEL: usize = 250;

/// Bounds on the headers of one request that are kept, names included.
const MOST_KEPT: usize = 32;
const MOST_KEPT_BYTES: usize = 2 << 10;

/// What the body is once it is decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `ExportTraceServiceRequest` in protobuf.
    Protobuf,
    /// The same in OTLP's JSON.
    Json,
    /// A trace in OTLP's JSON or in MLflow's.
    AnyJson,
}

/// What a request says about its traces outside its body.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Labels {
    pub(super) experiment: Option<String>,
    pub(super) workspace: Option<String>,
    pub(super) kept: Vec<(String, String)>,
    pub(super) via: Vec<String>,
}

impl Labels {
    /// Reads the headers, or the gRPC metadata. An empty value is no value: MLflow's SDK sends it for "not set".
    pub(super) fn read(headers: &HeaderMap, reception: &Reception) -> Result<Self, Problem> {
        let via = via::read(headers, &reception.id)?;
        let label = |name: &'static str| match headers.get(name).map(|value| value.as_bytes().trim_ascii()) {
            None | Some([]) => Ok(None),
            Some(value) if value.len() <= LONGEST_LABEL && value.iter().all(u8::is_ascii_graphic) => {
                Ok(Some(String::from_utf8_lossy(value).into_owned()))
            }
            Some(_) => Err(Problem::invalid(format!(
                "the header {name} has more than {LONGEST_LABEL} characters, or others than visible ASCII"
            ))),
        };
        Ok(Self {
            experiment: label("x-mlflow-experiment-id")?,
            workspace: label("x-mlflow-workspace")?,
            kept: kept(headers, &reception.keep_headers)?,
            via,
        })
    }

    /// The same for the experiment `default`, when none is named.
    pub(super) fn or_experiment(self, default: &str) -> Self {
        Self { experiment: self.experiment.or_else(|| Some(default.to_owned())), ..self }
    }
}

/// The headers of these names, every value of them, in the order of the names. They are part of where a trace belongs:
/// one that can't be kept is a reason to refuse, not to go on without it.
fn kept(headers: &HeaderMap, names: &[HeaderName]) -> Result<Vec<(String, String)>, Problem> {
    let mut kept = Vec::new();
    let mut bytes = 0;
    for name in names {
        for value in headers.get_all(name) {
            let text = value.to_str().map_err(|_| {
                Problem::invalid(format!(
                    "the header {name} has other characters than visible ASCII, and is to be kept"
                ))
            })?;
            bytes += name.as_str().len() + text.len();
            if bytes > MOST_KEPT_BYTES || kept.len() == MOST_KEPT {
                return Err(Problem::invalid(format!(
                    "the headers to be kept are more than {MOST_KEPT}, or have more than {MOST_KEPT_BYTES} bytes"
                )));
            }
            kept.push((name.as_str().to_owned(), text.to_owned()));
        }
    }
    Ok(kept)
}

/// A body with all that is known about it.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) body: Bytes,
    pub(super) coding: Coding,
    pub(super) form: Form,
    pub(super) door: Door,
    pub(super) labels: Labels,
    pub(super) peer_uid: Option<u32>,
    pub(super) charge: Charge,
}

/// Returns when the traces are durable, or right away when there are none: an envelope without spans is a success and
/// leaves nothing to keep (OTLP specification, "Empty Telemetry Envelopes").
///
/// Returns the number of the record, if there is one.
pub(super) async fn hand_over(reception: &Reception, parcel: Parcel) -> Result<Option<u64>, Problem> {
    begin(reception, parcel).await?.finish().await
}

/// Traces on their way to the disk.
pub(super) enum Pending {
    /// There were none.
    Nothing,
    /// Ends when they are durable, or refused after all.
    Record(JoinHandle<Result<Receipt, Refusal>>),
}

impl Pending {
    /// The number of the record, once it is durable.
    pub(super) async fn finish(self) -> Result<Option<u64>, Problem> {
        match self {
            Self::Nothing => Ok(None),
            Self::Record(submitted) => Ok(finished(submitted.await)??.record),
        }
    }
}

/// Returns when the traces have their place in the queue for the disk.
///
/// From there on a task of its own waits for the disk. A client that leaves while it waits cancels its handler, but not
/// the append: the bytes were admitted, the record is written all the same, and the budget is charged until it is.
pub(super) async fn begin(reception: &Reception, parcel: Parcel) -> Result<Pending, Problem> {
    let Parcel { body, coding, form, door, labels, peer_uid, charge } = parcel;
    let raw = Raw { body, coding, form, charge, experiment: None };
    let Prepared { payload, summary, charge, experiment: of_trace } = prepared(reception, raw).await?;
    if summary.spans == 0 {
        reception.received.took(0, 0, size(payload.len()));
        return Ok(Pending::Nothing);
    }
    let Labels { experiment, workspace, kept: headers, via } = labels;
    let experiment = experiment.or(of_trace);
    // Whoever names an experiment may be an SDK that asks for its spans later.
    let may_ask = experiment.is_some() && reception.mlflow.is_enabled();
    let ids = if may_ask { otlp::split::ids(&payload).collect() } else { Vec::new() };
    let submission =
        Submission { payload, summary, door, experiment, workspace, headers, via, peer_uid, call: None, source: None };
    Ok(Pending::Record(enqueue(reception, submission, charge, ids).await?))
}

/// Returns when a record is durable that is not traces.
pub(super) async fn submit(reception: &Reception, submission: Submission, charge: Charge) -> Result<(), Problem> {
    finished(enqueue(reception, submission, charge, Vec::new()).await?.await)??;
    Ok(())
}

async fn enqueue(
    reception: &Reception,
    submission: Submission,
    charge: Charge,
    ids: Vec<([u8; 16], [u8; 8])>,
) -> Result<JoinHandle<Result<Receipt, Refusal>>, Refusal> {
    let bytes = size(submission.payload.len());
    let spans = u64::from(submission.summary.spans);
    let traces = size(submission.summary.trace_ids.len());
    let received = Arc::clone(&reception.received);
    let seen = Arc::clone(&reception.mlflow.seen);
    let answered = reception.intake.enqueue(submission).await?;
    Ok(tokio::spawn(async move {
        let outcome = answered.await.unwrap_or(Err(Refusal::Failed)).map(Receipt::of);
        drop(charge);
        if outcome.is_ok() {
            received.took(traces, spans, bytes);
            if !ids.is_empty() {
                seen.note(ids);
            }
        }
        outcome
    }))
}

/// A body as it came, and what is held for it.
struct Raw {
    body: Bytes,
    coding: Coding,
    form: Form,
    charge: Charge,
    /// Where the trace itself says that it belongs.
    experiment: Option<String>,
}

/// A body in the form in which it is stored.
struct Prepared {
    payload: Bytes,
    summary: Summary,
    charge: Charge,
    experiment: Option<String>,
}

/// Brings a body to the form in which it is stored, here when that is quick, else aside in one go: between two waits
/// for a thread it would hold memory for nothing.
async fn prepared(reception: &Reception, mut raw: Raw) -> Result<Prepared, Refusal> {
    let limit = reception.max_request_bytes;
    if raw.coding != Coding::Identity && raw.body.len() <= DECOMPRESSED_INLINE {
        let inline = limit.min(DECOMPRESSED_INLINE_TO);
        match raw.decompress(inline) {
            // It unfolds to more than may be done here: it starts again where it may, and little was lost.
            Err(Refusal::TooLarge { .. }) if inline < limit => {}
            outcome => outcome?,
        }
    }
    let quick = match raw.form {
        Form::Protobuf => VALIDATED_INLINE,
        Form::Json | Form::AnyJson => TRANSCODED_INLINE,
    };
    if raw.coding == Coding::Identity && raw.body.len() <= quick {
        raw.finish(limit)
    } else {
        aside(reception, move || raw.finish(limit)).await?
    }
}

impl Raw {
    /// All that is left to do.
    fn finish(mut self, limit: u64) -> Result<Prepared, Refusal> {
        self.decompress(limit)?;
        if self.form != Form::Protobuf {
            self.transcode(limit)?;
        }
        match otlp::validate(&self.body) {
            Ok(summary) => {
                let Self { body: payload, charge, experiment, .. } = self;
                Ok(Prepared { payload, summary, charge, experiment })
            }
            Err(invalid) => Err(Refusal::Invalid(invalid.to_string())),
        }
    }

    fn decompress(&mut self, limit: u64) -> Result<(), Refusal> {
        self.body = coding::decode(self.coding, &self.body, limit, &mut self.charge)?;
        self.coding = Coding::Identity;
        self.charge.hold(size(self.body.len()))
    }

    fn transcode(&mut self, limit: u64) -> Result<(), Refusal> {
        // The wire form is shorter than the JSON it comes from, but for a while both are there.
        self.charge.hold(size(self.body.len()).saturating_mul(2))?;
        let wire = self.wire().map_err(|error| Refusal::Invalid(error.to_string()))?;
        if size(wire.len()) > limit {
            return Err(Refusal::TooLarge { limit });
        }
        self.body = wire.into();
        self.form = Form::Protobuf;
        self.charge.hold(size(self.body.len()))
    }

    fn wire(&mut self) -> Result<Vec<u8>, JsonError> {
        if self.form == Form::AnyJson && Dialect::of(&self.body)? == Dialect::Mlflow {
            let Converted { wire, experiment } = otlp::trace_json::to_wire(&self.body)?;
            self.experiment = experiment;
            return Ok(wire);
        }
        otlp::json::to_wire(&self.body)
    }
}

/// Does `work` on a thread that may block, at most as many at once as there are cores.
async fn aside<T: Send + 'static>(
    reception: &Reception,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    let permit = Arc::clone(&reception.heavy).acquire_owned().await.map_err(|_| Refusal::Stopping)?;
    let done = tokio::task::spawn_blocking(move || {
        let result = work();
        drop(permit);
        result
    });
    finished(done.await)
}

/// A task ends without a result only when it panicked, which goes on here, or when the runtime is going down.
fn finished<T>(joined: Result<T, tokio::task::JoinError>) -> Result<T, Refusal> {
    joined.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Refusal::Stopping,
    })
}
