//! A self-hosted MLflow server: OTLP over HTTP, with experiments.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::answer::{self, HttpAnswer, Sent};
use super::connect::Headers;
use super::encode::{self, Chunks};
use super::http::Client;
use super::otlp_http::content_headers;
use super::{Batch, BuildError, Failure, Outcome, Promised};
use crate::config::{Compression, Experiment, Remote};
use crate::otlp;

mod call;
mod relay;

pub use relay::Relay;

const EXPERIMENT: HeaderName = HeaderName::from_static("x-mlflow-experiment-id");
const WORKSPACE: HeaderName = HeaderName::from_static("x-mlflow-workspace");

/// One MLflow tracking server.
#[derive(Debug)]
pub(super) struct Mlflow {
    client: Client,
    base: Url,
    compression: Compression,
    experiment: Experiment,
    /// The ids that experiments were found to have, by name.
    resolved: std::sync::Mutex<BTreeMap<String, String>>,
    /// Held while one is looked up, so that only one request does.
    looking_up: Mutex<()>,
    workspace: Option<HeaderValue>,
}

impl Mlflow {
    /// # Errors
    /// As [`Client::build`], and for an experiment or workspace that cannot exist.
    pub(super) fn build(
        remote: &Remote,
        experiment: &Experiment,
        workspace: Option<&str>,
        timeout: Duration,
    ) -> Result<Self, BuildError> {
        match experiment {
            // An empty id is answered with success while every span is dropped, so that it must never be sent.
            Experiment::Id(id) if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_digit()) => {
                return Err(BuildError::Mlflow("experiment_id: is a number; use the experiment's name for a name"));
            }
            Experiment::Name(name) if name.trim().is_empty() => {
                return Err(BuildError::Mlflow("the experiment's name is empty"));
            }
            Experiment::Id(_) | Experiment::Name(_) => {}
        }
        let workspace = workspace.map(HeaderValue::from_str).transpose();
        let workspace = workspace.map_err(|_| BuildError::Mlflow("the workspace's name fits into no header"))?;
        // The server knows gzip and deflate only, and answers 400 to anything else.
        let compression = match remote.compression {
            Compression::None => Compression::None,
            Compression::Gzip | Compression::Zstd => Compression::Gzip,
        };
        Ok(Self {
            client: Client::build(remote, timeout)?,
            base: remote.endpoint.clone(),
            compression,
            experiment: experiment.clone(),
            resolved: std::sync::Mutex::default(),
            looking_up: Mutex::default(),
            workspace,
        })
    }

    pub(super) fn headers(&self) -> &Headers {
        &self.client.headers
    }

    /// `None` is the configured experiment, however a record names it.
    pub(super) fn partition<'a>(&self, experiment: Option<&'a str>) -> Option<&'a str> {
        let named = experiment.map(str::trim).filter(|id| !id.is_empty())?;
        match &self.experiment {
            Experiment::Id(id) if id == named => None,
            Experiment::Id(_) | Experiment::Name(_) => Some(named),
        }
    }

    pub(super) async fn attempt(&self, batch: &Batch, deadline: Instant) -> Outcome {
        self.try_attempt(batch, deadline).await.unwrap_or_else(|outcome| outcome)
    }

    /// An outcome on either side: what comes before the request ends the attempt early.
    async fn try_attempt(&self, batch: &Batch, deadline: Instant) -> Result<Outcome, Outcome> {
        let named = self.partition(batch.experiment.as_deref());
        let id = match (&batch.promised, named, &self.experiment) {
            (None, Some(id), _) => id.to_owned(),
            (Some(Promised { id: Some(id), .. }), ..) | (None, None, Experiment::Id(id)) => id.clone(),
            (Some(Promised { name, id: None }), ..) | (None, None, Experiment::Name(name)) => {
                self.resolve(name, deadline).await?
            }
        };
        if let Some(call) = &batch.call {
            return self.call(call, batch, named, &id, deadline).await;
        }
        let header = HeaderValue::from_str(&id).map_err(|_| Outcome::Refused {
            failure: Failure::new("400", "the record names an experiment id that fits into no header"),
            doubtful: false,
        })?;

        let sent = Sent { bytes: batch.bytes(), spans: batch.spans };
        let requests = batch.requests.clone();
        let io = |error: std::io::Error| Outcome::retry(Failure::new("io", error.to_string()));
        // De-duplication and typed values need the spans decoded, which takes a while for a full batch.
        let prepare = move || otlp::mlflow::prepare(requests.iter().map(|request| &request[..]));
        let prepared = encode::blocking(prepare).await.map_err(io)?.map_err(|error| Outcome::Refused {
            failure: Failure::new("undecodable", error.to_string()),
            doubtful: false,
        })?;
        let prepared = Bytes::from(prepared);
        if prepared.is_empty() && batch.spans == 0 {
            // The server answers 400 to a request without spans, where OTLP wants a success.
            return Ok(Outcome::delivered());
        }
        let body = encode::body(vec![prepared], self.compression).await.map_err(io)?;

        let mut headers = content_headers(self.compression);
        headers.push((EXPERIMENT, header));
        let answer =
            self.send(Method::POST, &self.address(&["v1", "traces"]), headers, Some(batch), body, deadline).await?;
        if answer::mlflow_missing(&answer) {
            // One that was looked up may have been created anew under the same name.
            self.resolved().retain(|_, known| *known != id);
        }
        Ok(answer::mlflow(&answer, sent, SystemTime::now()))
    }

    /// The id of the experiment of that name, which is created when there is none.
    async fn resolve(&self, name: &str, deadline: Instant) -> Result<String, Outcome> {
        // Another attempt may be looking it up, with a deadline of its own.
        let _alone = timeout_at(deadline, self.looking_up.lock()).await.map_err(|_| Outcome::timeout())?;
        if let Some(id) = self.looked_up(name) {
            return Ok(id);
        }
        let id = match self.find(name, deadline).await? {
            Some(id) => id,
            None => self.create(name, deadline).await?,
        };
        self.resolved().insert(name.to_owned(), id.clone());
        Ok(id)
    }

    pub(super) fn looked_up(&self, name: &str) -> Option<String> {
        self.resolved().get(name).cloned()
    }

    fn resolved(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.resolved.lock().expect("locked for moments that cannot panic")
    }

    async fn find(&self, name: &str, deadline: Instant) -> Result<Option<String>, Outcome> {
        let mut url = self.address(&["api", "2.0", "mlflow", "experiments", "get-by-name"]);
        url.query_pairs_mut().append_pair("experiment_name", name);
        let answer = self.send(Method::GET, &url, Vec::new(), None, Chunks::new(Vec::new()), deadline).await?;
        if answer::mlflow_missing(&answer) {
            return Ok(None);
        }
        let found = json(&answer)?;
        if found["experiment"]["lifecycle_stage"] == "deleted" {
            return Err(Outcome::Blocked {
                failure: Failure::new("404", "the experiment of the configured name is deleted")
                    .advise("restore the experiment on the server, or configure another"),
                experiment_only: true,
            });
        }
        experiment_id(&found["experiment"]).map(Some)
    }

    async fn create(&self, name: &str, deadline: Instant) -> Result<String, Outcome> {
        let url = self.address(&["api", "2.0", "mlflow", "experiments", "create"]);
        let body = Bytes::from(serde_json::json!({ "name": name }).to_string());
        let headers = vec![(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        let answer = self.send(Method::POST, &url, headers, None, Chunks::new(vec![body]), deadline).await?;
        if answer::mlflow_exists(&answer) {
            // Somebody else was faster.
            return self.find(name, deadline).await?.ok_or_else(not_mlflow);
        }
        experiment_id(&json(&answer)?)
    }

    async fn send(
        &self,
        method: Method,
        url: &Url,
        mut headers: Vec<(HeaderName, HeaderValue)>,
        batch: Option<&Batch>,
        body: Chunks,
        deadline: Instant,
    ) -> Result<HttpAnswer, Outcome> {
        headers.extend(self.workspace.clone().map(|workspace| (WORKSPACE, workspace)));
        self.client.send(method, url, &headers, batch, body, deadline).await
    }

    /// A path below the base address, which may have a path of its own.
    fn address(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        url.set_query(None);
        url.set_fragment(None);
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }
}

/// The answer of an experiment call. One that fails says nothing about the records that wait for it, so that it may
/// block or delay them, but never condemn them.
fn json(answer: &HttpAnswer) -> Result<Value, Outcome> {
    if (200..300).contains(&answer.status) {
        return answer.body.as_deref().ok().and_then(|body| serde_json::from_slice(body).ok()).ok_or_else(not_mlflow);
    }
    Err(match answer::mlflow(answer, Sent { bytes: 0, spans: 0 }, SystemTime::now()) {
        Outcome::Refused { failure, doubtful: true } => Outcome::retry(failure),
        Outcome::Refused { failure, doubtful: false } | Outcome::TooLarge(failure) => Outcome::Blocked {
            failure: failure.advise("the server does not take the experiment's name: check it"),
            experiment_only: true,
        },
        outcome => outcome,
    })
}

fn experiment_id(experiment: &Value) -> Result<String, Outcome> {
    let id = experiment["experiment_id"].as_str().filter(|id| !id.trim().is_empty());
    id.map(str::to_owned).ok_or_else(not_mlflow)
}

fn not_mlflow() -> Outcome {
    Outcome::blocked(
        Failure::new("protocol", "the answer to an experiment call is not MLflow's")
            .advise("check `endpoint`: it must be the base address of an MLflow tracking server"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Credentials, Tls};

    fn build(endpoint: &str, experiment: Experiment) -> Result<Mlflow, BuildError> {
        super::super::connect::install_tls_provider();
        let remote = Remote {
            endpoint: Url::parse(endpoint).expect("url"),
            headers: Vec::new(),
            credentials: Credentials::None,
            tls: Tls::default(),
            compression: Compression::Zstd,
        };
        Mlflow::build(&remote, &experiment, None, Duration::from_secs(5))
    }

    #[test]
    fn paths_are_added_to_the_base_address() {
        for (base, expected) in [
            ("http://h:5000", "http://h:5000/v1/traces"),
            ("http://h:5000/", "http://h:5000/v1/traces"),
            ("http://h/ml/flow", "http://h/ml/flow/v1/traces"),
            ("http://h/ml/flow/?x=1#y", "http://h/ml/flow/v1/traces"),
        ] {
            let backend = build(base, Experiment::Id("0".into())).expect("build");
            assert_eq!(backend.address(&["v1", "traces"]).as_str(), expected);
        }
    }

    #[test]
    fn an_empty_experiment_is_none_and_the_configured_one_too() {
        let by_id = build("http://h", Experiment::Id("7".into())).expect("build");
        for (named, expected) in
            [(None, None), (Some(""), None), (Some(" "), None), (Some("7"), None), (Some("8"), Some("8"))]
        {
            assert_eq!(by_id.partition(named), expected, "{named:?}");
        }
        let by_name = build("http://h", Experiment::Name("x".into())).expect("build");
        assert_eq!(by_name.partition(Some("7")), Some("7"));
    }

    #[test]
    fn experiments_that_cannot_exist_are_refused() {
        for experiment in [Experiment::Id("".into()), Experiment::Id("prod".into()), Experiment::Name(" ".into())] {
            assert!(matches!(build("http://h", experiment), Err(BuildError::Mlflow(_))));
        }
    }

    #[test]
    fn a_failed_experiment_call_never_condemns() {
        for status in 300..=599 {
            let answer = HttpAnswer { status, headers: http::HeaderMap::new(), body: Ok(Bytes::new()) };
            let outcome = json(&answer).expect_err("a failure");
            assert!(matches!(outcome, Outcome::Retry { .. } | Outcome::Blocked { .. }), "{status}: {outcome:?}");
        }
    }

    #[test]
    fn zstd_becomes_gzip() {
        assert_eq!(build("http://h", Experiment::Id("0".into())).expect("build").compression, Compression::Gzip);
    }
}
