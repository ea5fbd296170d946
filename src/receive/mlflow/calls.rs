//! What an app says about a trace beside its spans: checked as far as the answer needs it, stored, answered as an
//! MLflow server would.

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::request::Parts;
use http::{Response, StatusCode};
use http_body::Body;
use serde_json::{Map, Value, json};

use super::forward::Payload;
use super::route::{Artifact, Route, TraceId, trace_id};
use super::{Mlflow, answer};
use crate::clock::wall_ns;
use crate::intake::{Call, CallHead, Door, Refusal, Submission};
use crate::otlp::Summary;
use crate::receive::body::Inbound;
use crate::receive::budget::Charge;
use crate::receive::coding::Coding;
use crate::receive::hand_over::{Form, Labels, Parcel, hand_over, submit};
use crate::receive::refusal::{Counted, Problem};
use crate::receive::reply::Reply;
use crate::receive::service::Peer;
use crate::receive::{Reception, size};

/// A parsed message takes about so many times the memory of its text.
const PARSED: u64 = 4;
/// Longest id of an assessment; MLflow's own have 34 characters.
const ID_MAX: usize = 50;

/// One request, read.
struct Read {
    body: Bytes,
    charge: Charge,
}

/// Takes a call that belongs to a trace.
pub(super) async fn take<B>(
    reception: &Reception,
    peer: &Peer,
    head: &Parts,
    body: &mut Inbound<B>,
    route: Route,
) -> Result<Response<Reply>, Problem>
where
    B: Body<Data = Bytes> + Unpin,
{
    let is_large = body.announced().is_some_and(|length| length > reception.max_request_bytes);
    if is_large && matches!(route, Route::Artifact(_)) && reception.mlflow.forward.leads_somewhere() {
        // A file that is too large to be kept has a chance when the server is there.
        return reception.mlflow.forward.pass(head, Payload::Stream(body)).await;
    }
    let read = read(reception, head, body).await?;
    let store = Store { reception, peer, head };
    match route {
        Route::StartTrace => start_trace(&store, read).await,
        Route::Tag(trace) => {
            let message = read.message()?;
            if !message["key"].is_string() {
                return Err(Problem::invalid("Missing value for required parameter 'key'."));
            }
            store.message(read, trace).await?;
            Ok(answer(StatusCode::OK, &json!({})))
        }
        Route::NewAssessment(trace) => new_assessment(&store, read, trace).await,
        Route::ChangeAssessment(trace, id) => change_assessment(&store, read, trace, &id).await,
        Route::DeleteAssessment(trace) => {
            store.message(read, trace).await?;
            Ok(answer(StatusCode::OK, &json!({})))
        }
        Route::LinkPrompts => {
            let message = read.message()?;
            match message["trace_id"].as_str().and_then(trace_id) {
                Some(trace) => store.message(read, trace).await?,
                // A trace that is not kept here.
                None => return store.forward(read).await,
            }
            Ok(answer(StatusCode::OK, &json!({})))
        }
        Route::Artifact(Artifact { experiment, trace, is_spans }) => {
            if !is_spans || !store.spans(&read, &experiment).await? {
                store.put(read, trace, Some(experiment), true).await?;
            }
            Ok(answer(StatusCode::OK, &json!({})))
        }
        Route::Version | Route::Health | Route::TraceInfo(_) | Route::Experiment(_) | Route::Other => {
            Err(Problem::not_found())
        }
    }
}

async fn read<B>(reception: &Reception, head: &Parts, body: &mut Inbound<B>) -> Result<Read, Problem>
where
    B: Body<Data = Bytes> + Unpin,
{
    if head.headers.get(CONTENT_ENCODING).is_some_and(|coding| *coding != "identity") {
        return Err(Problem::unsupported_media_type("MLflow's calls are taken without a Content-Encoding"));
    }
    let limit = reception.max_request_bytes;
    let announced = body.announced();
    if announced.is_some_and(|length| length > limit) {
        return Err(Refusal::TooLarge { limit }.into());
    }
    let mut charge = reception.budget.open()?;
    let body = body.read(limit, &mut charge, |_| Ok(announced)).await?;
    Ok(Read { body, charge })
}

impl Read {
    /// The body as JSON; an empty one is an empty message.
    fn message(&self) -> Result<Value, Problem> {
        if self.body.is_empty() {
            return Ok(json!({}));
        }
        serde_json::from_slice(&self.body)
            .ok()
            .filter(Value::is_object)
            .ok_or_else(|| Problem::invalid("the body must be a JSON object"))
    }

    /// The same, paid for.
    fn large_message(&mut self) -> Result<Value, Problem> {
        self.charge.hold(size(self.body.len()).saturating_mul(PARSED))?;
        self.message()
    }
}

/// Everything about a request that is not its body.
struct Store<'a> {
    reception: &'a Reception,
    peer: &'a Peer,
    head: &'a Parts,
}

impl Store<'_> {
    fn mlflow(&self) -> &Mlflow {
        &self.reception.mlflow
    }

    /// Returns when the message is durable.
    async fn message(&self, read: Read, trace: TraceId) -> Result<(), Problem> {
        self.put(read, trace, None, false).await
    }

    /// Returns when the record is durable.
    async fn put(
        &self,
        read: Read,
        trace_id: TraceId,
        experiment: Option<String>,
        is_artifact: bool,
    ) -> Result<(), Problem> {
        let content_type = self.head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let call = Call {
            method: self.head.method.to_string(),
            path: self.head.uri.path().to_owned(),
            content_type: content_type.map(str::to_owned),
        };
        let Labels { workspace, kept, via, .. } = Labels::read(&self.head.headers, self.reception)?;
        let submission = Submission {
            payload: read.body,
            summary: Summary::default(),
            door: Door::Mlflow,
            experiment,
            workspace,
            headers: kept,
            via,
            peer_uid: self.peer.uid(),
            call: Some(CallHead { call, trace_id, is_artifact }),
            source: None,
        };
        submit(self.reception, submission, read.charge).await
    }

    /// Stores a file of spans as the spans that they are, for all backends. `false` when it is not one.
    async fn spans(&self, read: &Read, experiment: &str) -> Result<bool, Problem> {
        let parcel = Parcel {
            body: read.body.clone(),
            coding: Coding::Identity,
            form: Form::AnyJson,
            door: Door::Mlflow,
            labels: Labels::read(&self.head.headers, self.reception)?.or_experiment(experiment),
            peer_uid: self.peer.uid(),
            charge: self.reception.budget.open()?,
        };
        match hand_over(self.reception, parcel).await {
            Ok(_) => Ok(true),
            // In a form of another version, for example: the server may know it.
            Err(problem) if problem.counted == Counted::Invalid => Ok(false),
            Err(problem) => Err(problem),
        }
    }

    /// Somebody else's after all.
    async fn forward(&self, read: Read) -> Result<Response<Reply>, Problem> {
        self.mlflow().forward.pass(self.head, Payload::<reqwest::Body>::Whole(read.body)).await
    }
}

async fn start_trace(store: &Store<'_>, mut read: Read) -> Result<Response<Reply>, Problem> {
    let mut message = read.large_message()?;
    let Some(info) = message.pointer_mut("/trace/trace_info").and_then(Value::as_object_mut) else {
        return Err(Problem::invalid("Missing value for required parameter 'trace'."));
    };
    let name = info.get("trace_id").and_then(Value::as_str).unwrap_or_default().to_owned();
    let of_experiment = info
        .get("trace_location")
        .is_none_or(|location| location["mlflow_experiment"].is_object() || location.get("type").is_none());
    let Some(trace) = trace_id(&name).filter(|_| of_experiment) else {
        return store.forward(read).await;
    };
    let (experiment, experiment_is_new) = experiment_of(info, &store.mlflow().settings.experiment_id);
    // Assessments without an id get one from the server, at every attempt another: one that is repeated would be twice
    // there.
    let mut assessment_is_new = false;
    for assessment in info.get_mut("assessments").and_then(Value::as_array_mut).into_iter().flatten() {
        assessment_is_new |= assessment.as_object_mut().is_some_and(give_id);
    }
    let spans = spans_in(info);
    if experiment_is_new || assessment_is_new {
        read.body = message.to_string().into();
    }
    let has_spans = match spans {
        Some(spans) => store.mlflow().seen.has(&trace, spans).await,
        None => store.mlflow().seen.count(&trace) > 0,
    };
    let artifacts = store.mlflow().experiments.artifacts_of(&experiment);
    store.put(read, trace, Some(experiment), false).await?;

    if let Some(info) = message.pointer_mut("/trace/trace_info").and_then(Value::as_object_mut) {
        let tags = info.entry("tags").or_insert_with(|| json!({}));
        tags["mlflow.artifactLocation"] = format!("{artifacts}/traces/{name}/artifacts").into();
        if has_spans {
            // Else the SDK uploads them in a file, which it must when it never posted them.
            tags["mlflow.trace.spansLocation"] = "TRACKING_STORE".into();
        }
    }
    store.mlflow().recent.keep(&name, &message);
    Ok(answer(StatusCode::OK, &message))
}

/// The experiment that a trace names; the default one is written into it when it names none, and then true.
fn experiment_of(info: &mut Map<String, Value>, default: &str) -> (String, bool) {
    let named = info.get("trace_location").and_then(|location| location["mlflow_experiment"]["experiment_id"].as_str());
    if let Some(named) = named.map(str::trim).filter(|id| !id.is_empty()) {
        return (named.to_owned(), false);
    }
    let location = json!({ "type": "MLFLOW_EXPERIMENT", "mlflow_experiment": { "experiment_id": default } });
    info.insert("trace_location".to_owned(), location);
    (default.to_owned(), true)
}

/// How many spans the SDK says the trace has.
fn spans_in(info: &Map<String, Value>) -> Option<usize> {
    let stats = info.get("trace_metadata")?.get("mlflow.trace.sizeStats")?.as_str()?;
    let stats: Value = serde_json::from_str(stats).ok()?;
    usize::try_from(stats["num_spans"].as_u64()?).ok()
}

/// Gives an assessment an id as MLflow makes them, unless it has one.
fn give_id(assessment: &mut Map<String, Value>) -> bool {
    let has_one = assessment.get("assessment_id").and_then(Value::as_str).is_some_and(|id| !id.is_empty());
    if !has_one {
        assessment.insert("assessment_id".to_owned(), format!("a-{:032x}", fastrand::u128(..)).into());
    }
    !has_one
}

async fn new_assessment(store: &Store<'_>, mut read: Read, trace: TraceId) -> Result<Response<Reply>, Problem> {
    let mut message = read.large_message()?;
    let Some(assessment) = message.get_mut("assessment").and_then(Value::as_object_mut) else {
        return Err(Problem::invalid("Missing value for required parameter 'assessment'."));
    };
    let given = assessment.get("assessment_id").and_then(Value::as_str).unwrap_or_default();
    if given.len() > ID_MAX || !given.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)) {
        return Err(Problem::invalid("the assessment's id must be letters, digits, - and _"));
    }
    give_id(assessment);
    let now = timestamp();
    for time in ["create_time", "last_update_time"] {
        assessment.entry(time).or_insert_with(|| now.clone().into());
    }
    assessment.insert("trace_id".to_owned(), trace_name(&trace).into());
    assessment.entry("valid").or_insert(Value::Bool(true));
    let id = assessment["assessment_id"].as_str().unwrap_or_default().to_owned();
    read.body = message.to_string().into();
    store.message(read, trace).await?;
    store.mlflow().recent.keep(&id, &message);
    Ok(answer(StatusCode::OK, &message))
}

/// Stores the change, and answers with the assessment as it will be.
async fn change_assessment(
    store: &Store<'_>,
    read: Read,
    trace: TraceId,
    id: &str,
) -> Result<Response<Reply>, Problem> {
    let message = read.message()?;
    let Some(changes) = message["assessment"].as_object() else {
        return Err(Problem::invalid("Missing value for required parameter 'assessment'."));
    };
    let known = match store.mlflow().recent.find(id) {
        Some(known) => known,
        None => store.mlflow().fetch(store.head).await.unwrap_or_default(),
    };
    let after = changed(known["assessment"].clone(), changes, &trace, id);
    store.message(read, trace).await?;
    let answered = json!({ "assessment": after });
    store.mlflow().recent.keep(id, &answered);
    Ok(answer(StatusCode::OK, &answered))
}

fn changed(before: Value, changes: &Map<String, Value>, trace: &TraceId, id: &str) -> Value {
    let mut after = match before {
        Value::Object(before) => before,
        _ => Map::new(),
    };
    for (key, value) in changes {
        match (key.as_str(), after.get_mut(key), value) {
            ("metadata", Some(Value::Object(known)), Value::Object(more)) => known.extend(more.clone()),
            _ => drop(after.insert(key.clone(), value.clone())),
        }
    }
    after.insert("assessment_id".to_owned(), id.into());
    after.insert("trace_id".to_owned(), trace_name(trace).into());
    after.insert("last_update_time".to_owned(), timestamp().into());
    Value::Object(after)
}

fn trace_name(trace: &TraceId) -> String {
    format!("tr-{:032x}", u128::from_be_bytes(*trace))
}

/// Now, as protobuf's JSON has it.
fn timestamp() -> String {
    let now = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(wall_ns());
    humantime::format_rfc3339_millis(now).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn a_trace_without_an_experiment_gets_the_default_one() {
        let located = |id: &str| json!({"trace_location": {"mlflow_experiment": {"experiment_id": id}}});
        let mut info = object(located("7"));
        assert_eq!(experiment_of(&mut info, "0"), ("7".to_owned(), false));
        for without in [located(""), located(" "), json!({})] {
            let mut info = object(without);
            assert_eq!(experiment_of(&mut info, "3"), ("3".to_owned(), true));
            assert_eq!(info["trace_location"]["mlflow_experiment"]["experiment_id"], "3");
        }
    }

    #[test]
    fn the_sdk_says_how_many_spans_there_are() {
        let sample =
            br#"{"trace_metadata":{"mlflow.trace.sizeStats":"{\"total_size_bytes\": 3474, \"num_spans\": 4}"}}"#;
        let info: Value = serde_json::from_slice(sample).expect("JSON");
        assert_eq!(spans_in(&object(info)), Some(4));
        for none in [json!({}), json!({"trace_metadata": {"mlflow.trace.sizeStats": "?"}})] {
            assert_eq!(spans_in(&object(none)), None);
        }
    }

    #[test]
    fn an_assessment_keeps_its_id_and_gets_one_when_it_has_none() {
        let mut with = object(json!({"assessment_id": "a-1"}));
        assert!(!give_id(&mut with));
        assert_eq!(with["assessment_id"], "a-1");
        let mut without = object(json!({}));
        assert!(give_id(&mut without));
        assert_eq!(without["assessment_id"].as_str().expect("text").len(), 34);
    }

    #[test]
    fn a_change_leaves_what_it_does_not_name() {
        let before = json!({"assessment_name": "n", "metadata": {"a": "1", "b": "2"}, "feedback": {"value": 1}});
        let changes = object(json!({"metadata": {"b": "3"}, "feedback": {"value": 2}}));
        let after = changed(before, &changes, &[0; 16], "a-1");
        assert_eq!(after["assessment_name"], "n");
        assert_eq!(after["metadata"], json!({"a": "1", "b": "3"}));
        assert_eq!(after["feedback"], json!({"value": 2}));
        assert_eq!(after["trace_id"], "tr-00000000000000000000000000000000");
    }
}
