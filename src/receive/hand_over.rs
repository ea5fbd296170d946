//! From a body to a durable record: decompress, transcode, validate, submit.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;

use super::budget::Charge;
use super::coding::{self, Coding};
use super::refusal::Problem;
use super::{Reception, size};
use crate::intake::{Door, Refusal, Submission};
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

/// What the body is once it is decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `ExportTraceServiceRequest` in protobuf.
    Protobuf,
    /// The same in OTLP's JSON.
    Json,
}

/// What a request says about its traces outside its body.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Labels {
    experiment: Option<String>,
    workspace: Option<String>,
}

impl Labels {
    /// Reads the headers, or the gRPC metadata. An empty value is no value: MLflow's SDK sends it for "not set".
    pub(super) fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        let label = |name: &'static str| match headers.get(name).map(|value| value.as_bytes().trim_ascii()) {
            None | Some([]) => Ok(None),
            Some(value) if value.len() <= LONGEST_LABEL && value.iter().all(u8::is_ascii_graphic) => {
                Ok(Some(String::from_utf8_lossy(value).into_owned()))
            }
            Some(_) => Err(Problem::invalid(format!(
                "the header {name} has more than {LONGEST_LABEL} characters, or others than visible ASCII"
            ))),
        };
        Ok(Self { experiment: label("x-mlflow-experiment-id")?, workspace: label("x-mlflow-workspace")? })
    }

    /// The same for the experiment `default`, when none is named.
    pub(super) fn or_experiment(self, default: &str) -> Self {
        Self { experiment: self.experiment.or_else(|| Some(default.to_owned())), ..self }
    }

    /// The workspace that is named.
    pub(super) fn workspace(self) -> Option<String> {
        self.workspace
    }
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
pub(super) async fn hand_over(reception: &Reception, parcel: Parcel) -> Result<(), Problem> {
    let Parcel { body, coding, form, door, labels, peer_uid, charge } = parcel;
    let (payload, summary, charge) = prepared(reception, Raw { body, coding, form, charge }).await?;
    if summary.spans == 0 {
        reception.received.took(0, 0, size(payload.len()));
        return Ok(());
    }
    let Labels { experiment, workspace } = labels;
    // Whoever names an experiment may be an SDK that asks for its spans later.
    let ids: Vec<_> = experiment.iter().flat_map(|_| otlp::split::ids(&payload)).collect();
    let submission = Submission { payload, summary, door, experiment, workspace, peer_uid, call: None };
    submit(reception, submission, charge).await?;
    if !ids.is_empty() {
        reception.mlflow.seen.note(ids);
    }
    Ok(())
}

/// Returns when a record is durable, and counts it.
///
/// The hand-over itself runs in a task of its own. A client that leaves while it waits cancels its handler, but not
/// the append: the bytes were admitted, the record is written all the same, and the budget is charged until it is.
pub(super) async fn submit(reception: &Reception, submission: Submission, charge: Charge) -> Result<(), Problem> {
    let bytes = size(submission.payload.len());
    let spans = u64::from(submission.summary.spans);
    let traces = size(submission.summary.trace_ids.len());
    let received = Arc::clone(&reception.received);
    let intake = reception.intake.clone();
    let submitted = tokio::spawn(async move {
        let outcome = intake.submit(submission).await;
        drop(charge);
        if outcome.is_ok() {
            received.took(traces, spans, bytes);
        }
        outcome
    });
    finished(submitted.await)??;
    Ok(())
}

/// A body as it came, and what is held for it.
struct Raw {
    body: Bytes,
    coding: Coding,
    form: Form,
    charge: Charge,
}

/// Brings a body to the form in which it is stored, here when that is quick, else aside in one go: between two waits
/// for a thread it would hold memory for nothing.
async fn prepared(reception: &Reception, mut raw: Raw) -> Result<(Bytes, Summary, Charge), Refusal> {
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
        Form::Json => TRANSCODED_INLINE,
    };
    if raw.coding == Coding::Identity && raw.body.len() <= quick {
        raw.finish(limit)
    } else {
        aside(reception, move || raw.finish(limit)).await?
    }
}

impl Raw {
    /// All that is left to do.
    fn finish(mut self, limit: u64) -> Result<(Bytes, Summary, Charge), Refusal> {
        self.decompress(limit)?;
        if self.form == Form::Json {
            self.transcode(limit)?;
        }
        match otlp::validate(&self.body) {
            Ok(summary) => Ok((self.body, summary, self.charge)),
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
        let wire = otlp::json::to_wire(&self.body).map_err(|error| Refusal::Invalid(error.to_string()))?;
        if size(wire.len()) > limit {
            return Err(Refusal::TooLarge { limit });
        }
        self.body = wire.into();
        self.form = Form::Protobuf;
        self.charge.hold(size(self.body.len()))
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
