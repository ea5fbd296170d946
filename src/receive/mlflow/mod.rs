//! MLflow's own calls: an app that has the daemon as its `MLFLOW_TRACKING_URI` logs traces as to a server.
//!
//! `route` says which call a request is. What belongs to a trace is stored and answered by `calls`, which asks `seen`
//! whether its spans came in; `experiments` answers for experiments while the server is away; everything else goes
//! through `forward`.

mod calls;
mod experiments;
mod forward;
mod recent;
mod route;
mod seen;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::Reception;
use super::body::Inbound;
use super::refusal::Problem;
use super::reply::Reply;
use super::service::Peer;
use crate::accounts::Accounts;
use crate::backend::Relay;
use crate::config;
use crate::intake::Commands;
use forward::{Forward, Payload};
use recent::Recent;
pub(super) use route::Route;
pub(super) use seen::Seen;

/// The newest server that this was tested with.
const TESTED_VERSION: &str = "3.17.2";
/// The SDK waits three seconds for the version, once in its life.
const VERSION_TIME: Duration = Duration::from_secs(1);
/// How long the server may take where there is another answer than its own.
const ASK_TIME: Duration = Duration::from_secs(5);
/// Longest answer that is read as a whole.
const ANSWER_BYTES: usize = 1 << 20;

/// What MLflow's calls need beside what every door needs.
#[derive(Debug)]
pub(super) struct Mlflow {
    settings: config::MlflowCalls,
    forward: Forward,
    pub(super) seen: Arc<Seen>,
    experiments: experiments::Experiments,
    recent: Recent,
    /// The server's, when it was last asked with success.
    version: Mutex<Option<String>>,
}

impl Mlflow {
    /// `server` is the mlflow backend's name and the way to it; `books` is where it stands which experiments were
    /// promised.
    pub(super) fn new(
        settings: &config::MlflowCalls,
        own_id: &str,
        server: Option<(String, Relay)>,
        books: Option<(Arc<Accounts>, Commands)>,
    ) -> Self {
        Self {
            settings: settings.clone(),
            forward: Forward::new(settings.forward, own_id, server),
            seen: Arc::default(),
            experiments: experiments::Experiments::new(books),
            recent: Recent::default(),
            version: Mutex::default(),
        }
    }

    /// Whether MLflow's calls are answered.
    pub(super) fn is_enabled(&self) -> bool {
        self.settings.enabled
    }

    /// Which of MLflow's calls a request is, if it is one and they are answered.
    pub(super) fn route(&self, head: &Parts) -> Option<Route> {
        if self.is_enabled() { Route::of(&head.method, head.uri.path()) } else { None }
    }

    /// The experiment of calls that name none.
    pub(super) fn default_experiment(&self) -> &str {
        &self.settings.experiment_id
    }

    /// Asks the server what the app asks, where a failure is no reason to fail: the answer's status and content.
    async fn ask(&self, head: &Parts, body: Bytes, time: Duration) -> Option<(StatusCode, Bytes)> {
        if !self.forward.leads_somewhere() {
            return None;
        }
        let mut head = head.clone();
        head.headers.remove(ACCEPT_ENCODING);
        let asked = async {
            let answer = self.forward.ask(&head, Payload::<reqwest::Body>::Whole(body)).await.ok()?;
            let status = answer.status();
            let content = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await.ok()?;
            Some((status, content.to_bytes()))
        };
        timeout(time, asked).await.ok().flatten()
    }

    /// What the server has at the path of a request.
    async fn fetch(&self, head: &Parts) -> Option<Value> {
        let mut head = head.clone();
        head.method = Method::GET;
        head.headers.remove(CONTENT_TYPE);
        let (status, content) = self.ask(&head, Bytes::new(), ASK_TIME).await?;
        if status == StatusCode::OK { serde_json::from_slice(&content).ok() } else { None }
    }

    /// What is known of a trace: by the server, else by what its app said lately. The SDK asks before it links prompts.
    async fn trace_info(&self, head: &Parts, name: &str) -> Result<Response<Reply>, Problem> {
        let asked = self.ask(head, Bytes::new(), ASK_TIME).await;
        if let Some((StatusCode::OK, content)) = asked {
            return Ok(passed_on(StatusCode::OK, content));
        }
        match (self.recent.find(name), asked) {
            (Some(known), _) => Ok(answer(StatusCode::OK, &known)),
            (None, Some((status, content))) => Ok(passed_on(status, content)),
            // Says why.
            (None, None) => self.forward.pass(head, Payload::<reqwest::Body>::Whole(Bytes::new())).await,
        }
    }

    async fn version(&self, head: &Parts) -> String {
        let asked = self.ask(head, Bytes::new(), VERSION_TIME).await;
        let told = asked.filter(|(status, _)| *status == StatusCode::OK).and_then(|(_, content)| version(&content));
        let mut known = self.version.lock().expect("locked for moments that cannot panic");
        if told.is_some() {
            *known = told;
        }
        known.clone().unwrap_or_else(|| TESTED_VERSION.to_owned())
    }
}

/// A version as servers write it; anything else is a page of somebody between.
fn version(content: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(content).ok()?.trim();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".+-".contains(&byte);
    let is_one = text.len() <= 32 && text.starts_with(|c: char| c.is_ascii_digit()) && text.bytes().all(plain);
    is_one.then(|| text.to_owned())
}

/// Answers one of MLflow's calls.
pub(super) async fn handle<B>(
    reception: &Reception,
    peer: &Peer,
    head: &Parts,
    body: &mut Inbound<B>,
    route: Route,
) -> Result<Response<Reply>, Problem>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mlflow = &reception.mlflow;
    match route {
        Route::Version => Ok(text(mlflow.version(head).await)),
        Route::Health => Ok(text("OK")),
        Route::TraceInfo(name) => mlflow.trace_info(head, &name).await,
        Route::Experiment(call) => experiments::handle(reception, head, body, call).await,
        Route::Other => mlflow.forward.pass(head, Payload::Stream(body)).await,
        route => calls::take(reception, peer, head, body, route).await,
    }
}

/// The answer to a call that was not taken, as MLflow's SDK reads it.
pub(super) fn refusal(problem: &Problem) -> Response<Reply> {
    // As MLflow pairs them: the SDK retries by the status and shows code and message.
    let code = match problem.http {
        StatusCode::UNAUTHORIZED => "UNAUTHENTICATED",
        StatusCode::FORBIDDEN => "PERMISSION_DENIED",
        StatusCode::NOT_FOUND => "ENDPOINT_NOT_FOUND",
        StatusCode::NOT_IMPLEMENTED => "NOT_IMPLEMENTED",
        StatusCode::SERVICE_UNAVAILABLE => "TEMPORARILY_UNAVAILABLE",
        StatusCode::BAD_REQUEST => "INVALID_PARAMETER_VALUE",
        _ => "BAD_REQUEST",
    };
    answer(problem.http, &json!({ "error_code": code, "message": problem.message }))
}

fn answer(status: StatusCode, message: &Value) -> Response<Reply> {
    let mut response = Response::new(Reply::data(message.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The server's own answer, read before.
fn passed_on(status: StatusCode, content: Bytes) -> Response<Reply> {
    let mut response = Response::new(Reply::data(content));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(text: impl Into<Bytes>) -> Response<Reply> {
    let mut response = Response::new(Reply::data(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
