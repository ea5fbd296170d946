//! Makes again what an app asked of its MLflow server: the calls that belong to a trace.

use std::time::SystemTime;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method};
use serde_json::Value;
use spool::Call;
use tokio::time::Instant;

use super::super::answer::{self, HttpAnswer, Sent};
use super::super::encode::Chunks;
use super::super::{Batch, Failure, Outcome};
use super::Mlflow;

/// The call that says all there is to say about a trace; it makes the trace if there is none.
const START_TRACE: &str = "/api/3.0/mlflow/traces";

impl Mlflow {
    /// `named` is the experiment that the call names, `id` the one that it is for.
    pub(super) async fn call(
        &self,
        call: &Call,
        batch: &Batch,
        named: Option<&str>,
        id: &str,
        deadline: Instant,
    ) -> Result<Outcome, Outcome> {
        let body = batch.requests.first().cloned().unwrap_or_default();
        let method = Method::from_bytes(call.method.as_bytes()).map_err(|_| malformed())?;
        let (path, body) = match named {
            Some(named) if named != id => readdressed(call, body, named, id)?,
            _ => (call.path.clone(), body),
        };
        let url = self.address(&segments(&path));
        let content_type = call.content_type.as_deref().unwrap_or("application/json");
        let content_type = HeaderValue::from_str(content_type).map_err(|_| malformed())?;
        let chunks = Chunks::new(vec![body.clone()]);
        let answer = self.send(method, &url, vec![(CONTENT_TYPE, content_type)], Some(batch), chunks, deadline).await?;
        let outcome = outcome(call, &answer, SystemTime::now());
        if let (Outcome::Refused { .. }, Some(id)) = (&outcome, new_assessment(call, &body)) {
            // It may have been sent before, and the answer was lost: the server takes no assessment twice, and says no
            // more than that something is wrong.
            let mut path = segments(&path);
            path.push(&id);
            let none = Chunks::new(Vec::new());
            let found = self.send(Method::GET, &self.address(&path), Vec::new(), Some(batch), none, deadline).await?;
            if found.status == 200 {
                return Ok(Outcome::delivered());
            }
        }
        Ok(outcome)
    }
}

/// The id of the assessment that a call makes; the daemon gave it one.
fn new_assessment(call: &Call, body: &[u8]) -> Option<String> {
    if call.method != "POST" || !call.path.ends_with("/assessments") {
        return None;
    }
    let message: Value = serde_json::from_slice(body).ok()?;
    message["assessment"]["assessment_id"].as_str().map(str::to_owned)
}

fn segments(path: &str) -> Vec<&str> {
    path.split('/').filter(|segment| !segment.is_empty()).collect()
}

fn malformed() -> Outcome {
    Outcome::Refused { failure: Failure::new("undecodable", "the record is no MLflow call"), doubtful: false }
}

/// The call with another experiment's id in it, where it names one.
fn readdressed(call: &Call, body: Bytes, named: &str, id: &str) -> Result<(String, Bytes), Outcome> {
    if call.path == START_TRACE {
        let mut message: Value = serde_json::from_slice(&body).map_err(|_| malformed())?;
        let place = message.pointer_mut("/trace/trace_info/trace_location/mlflow_experiment/experiment_id");
        *place.ok_or_else(malformed)? = Value::from(id);
        return Ok((call.path.clone(), Bytes::from(message.to_string())));
    }
    Ok((call.path.replacen(&format!("/artifacts/{named}/"), &format!("/artifacts/{id}/"), 1), body))
}

/// What the server's answer to a call means.
///
/// A call is about one trace, and so is its refusal: except for credentials, and for what may pass by itself, nothing
/// that is answered to it holds up others.
fn outcome(call: &Call, answer: &HttpAnswer, now: SystemTime) -> Outcome {
    let is_start = call.path == START_TRACE;
    if call.method == "DELETE" && answer::mlflow_missing(answer) {
        // What is to be gone is gone; this may be the second time.
        return Outcome::delivered();
    }
    let refused =
        |words: &str, doubtful| Outcome::Refused { failure: Failure::new(answer.status.to_string(), words), doubtful };
    if answer.status == 503 && answer::mlflow_says(answer, "--serve-artifacts") {
        return refused("the server takes no files: it was started without --serve-artifacts", false);
    }
    match answer::mlflow(answer, Sent { bytes: 0, spans: 0 }, now) {
        Outcome::Blocked { .. } if answer::mlflow_missing(answer) && !is_start => {
            // Its spans may still be on their way, by another daemon for example.
            refused("the trace does not exist on the server", true)
        }
        Outcome::Blocked { .. } if matches!(answer.status, 404 | 405 | 501) && !answer::mlflow_missing(answer) => {
            refused("the server does not know this call; it may be too old for it", true)
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn call(method: &str, path: &str) -> Call {
        Call { method: method.into(), path: path.into(), content_type: None }
    }

    fn answered(call: &Call, status: u16, body: &'static str) -> Outcome {
        let answer = HttpAnswer { status, headers: HeaderMap::new(), body: Ok(Bytes::from_static(body.as_bytes())) };
        outcome(call, &answer, SystemTime::UNIX_EPOCH)
    }

    const MISSING: &str = r#"{"error_code":"RESOURCE_DOES_NOT_EXIST","message":"x"}"#;

    #[test]
    fn only_credentials_hold_up_others() {
        let calls = [call("POST", START_TRACE), call("PATCH", "/api/2.0/mlflow/traces/tr-1/tags")];
        for call in &calls {
            for status in 300..=599 {
                let outcome = answered(call, status, "{}");
                let held_up = matches!(outcome, Outcome::Blocked { experiment_only: false, .. });
                // 3xx and 415 say that the address is wrong, which holds for all.
                assert_eq!(held_up, matches!(status, 300..=399 | 401 | 415), "{status}: {outcome:?}");
            }
        }
    }

    #[test]
    fn a_missing_experiment_is_waited_for_and_a_missing_trace_is_doubted() {
        let missing = answered(&call("POST", START_TRACE), 404, MISSING);
        assert!(matches!(missing, Outcome::Blocked { experiment_only: true, .. }), "{missing:?}");
        let missing = answered(&call("PATCH", "/api/2.0/mlflow/traces/tr-1/tags"), 404, MISSING);
        assert!(matches!(missing, Outcome::Refused { doubtful: true, .. }), "{missing:?}");
        let gone = answered(&call("DELETE", "/api/2.0/mlflow/traces/tr-1/tags"), 404, MISSING);
        assert!(matches!(gone, Outcome::Delivered { .. }), "{gone:?}");
    }

    #[test]
    fn a_server_without_files_is_not_asked_for_ever() {
        let put = call("PUT", "/api/2.0/mlflow-artifacts/artifacts/0/traces/tr-1/artifacts/x");
        let outcome = answered(&put, 503, "disabled due to the mlflow server running without `--serve-artifacts`");
        assert!(matches!(outcome, Outcome::Refused { doubtful: false, .. }), "{outcome:?}");
        assert!(matches!(answered(&put, 503, "later"), Outcome::Retry { .. }));
    }

    #[test]
    fn another_experiment_is_named_where_the_first_was() {
        let body = r#"{"trace":{"trace_info":{"trace_id":"tr-1","trace_location":{"mlflow_experiment":{"experiment_id":"9"}}}}}"#;
        let (path, body) =
            readdressed(&call("POST", START_TRACE), Bytes::from_static(body.as_bytes()), "9", "7").expect("one");
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["trace"]["trace_info"]["trace_location"]["mlflow_experiment"]["experiment_id"], "7");
        assert_eq!(body["trace"]["trace_info"]["trace_id"], "tr-1");
        assert_eq!(path, START_TRACE);
        let put = call("PUT", "/api/2.0/mlflow-artifacts/artifacts/9/traces/tr-9/artifacts/9/x");
        let (path, body) = readdressed(&put, Bytes::from_static(b"9"), "9", "7").expect("one");
        assert_eq!(path, "/api/2.0/mlflow-artifacts/artifacts/7/traces/tr-9/artifacts/9/x");
        assert_eq!(&body[..], b"9");
    }
}
