//! Experiments: asked at the server while it can be reached, answered from what was learned when not.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::request::Parts;
use http::{Response, StatusCode};
use http_body::Body;
use serde_json::{Value, json};
use spool::Control;

use super::forward::unavailable;
use super::route::ExperimentCall;
use super::{ASK_TIME, answer, passed_on};
use crate::accounts::Accounts;
use crate::intake::{Command, Commands};
use crate::receive::Reception;
use crate::receive::body::Inbound;
use crate::receive::hand_over::Labels;
use crate::receive::refusal::Problem;
use crate::receive::reply::Reply;

/// Experiments that are remembered.
const KNOWN_MAX: usize = 10_000;

/// Experiments that may be promised: each is in every checkpoint.
const PROMISED_MAX: usize = 1000;
/// Longest name of an experiment; MLflow's own limit.
const NAME_MAX: usize = 500;
/// Provisional ids are taken from here: numbers, as MLflow's ids are, and so high that no server gets there. Those of SQL
/// servers count from 0, the longest others have 18 digits.
const PROVISIONAL: RangeInclusive<u64> = 9_000_000_000_000_000_000..=9_222_999_999_999_999_999;
/// Longest body of such a call.
const BODY_BYTES: u64 = 1 << 20;

/// Answers a call about experiments.
pub(super) async fn handle<B>(
    reception: &Reception,
    head: &Parts,
    body: &mut Inbound<B>,
    call: ExperimentCall,
) -> Result<Response<Reply>, Problem>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mlflow = &reception.mlflow;
    let mut charge = reception.budget.open()?;
    let announced = body.announced();
    let body = body.read(BODY_BYTES, &mut charge, |_| Ok(announced)).await?;
    let known = &mlflow.experiments;
    let wanted = match call {
        ExperimentCall::Get => parameter(head, "experiment_id"),
        ExperimentCall::GetByName => parameter(head, "experiment_name"),
        ExperimentCall::Create => {
            let message: Value = serde_json::from_slice(&body).unwrap_or_default();
            message["name"].as_str().map(str::to_owned)
        }
    };
    if call == ExperimentCall::Get
        && let Some(promised) = wanted.as_deref().and_then(|id| known.promised(id))
    {
        // An id that no server knows.
        return Ok(answer(StatusCode::OK, &json!({ "experiment": promised })));
    }
    let asked = mlflow.ask(head, body.clone(), ASK_TIME).await;
    if let Some((status, content)) = asked.filter(|(status, _)| !is_away(*status)) {
        if status == StatusCode::OK {
            let described: Value = serde_json::from_slice(&content).unwrap_or_default();
            known.learn(&described["experiment"]);
        }
        return Ok(passed_on(status, content));
    }
    let wanted = wanted.filter(|wanted| !wanted.trim().is_empty());
    let found = |experiment| Ok(answer(StatusCode::OK, &json!({ "experiment": experiment })));
    let workspace = Labels::read(&head.headers, reception)?.workspace;
    match call {
        ExperimentCall::Get => {
            let id = wanted.unwrap_or_else(|| mlflow.default_experiment().to_owned());
            // An id that nobody has described yet may be right: the app had it from somewhere.
            found(known.by_id(&id).unwrap_or_else(|| described(&id, &format!("experiment {id}"))))
        }
        ExperimentCall::GetByName => {
            let name = wanted.ok_or_else(|| missing("experiment_name"))?;
            match known.by_name(&name) {
                Some(experiment) => found(experiment),
                None => found(known.promise(&name, workspace.as_deref()).await?),
            }
        }
        ExperimentCall::Create => {
            let name = wanted.ok_or_else(|| missing("name"))?;
            if known.by_name(&name).is_some() {
                let message = format!("Experiment(name={name}) already exists.");
                let message = json!({ "error_code": "RESOURCE_ALREADY_EXISTS", "message": message });
                return Ok(answer(StatusCode::BAD_REQUEST, &message));
            }
            let experiment = known.promise(&name, workspace.as_deref()).await?;
            Ok(answer(StatusCode::OK, &json!({ "experiment_id": experiment["experiment_id"] })))
        }
    }
}

fn missing(parameter: &str) -> Problem {
    Problem::invalid(format!("Missing value for required parameter '{parameter}'."))
}

/// Statuses with which a proxy or a server says that it can't answer now.
fn is_away(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 500 | 502 | 503 | 504)
}

fn parameter(head: &Parts, name: &str) -> Option<String> {
    let query = head.uri.query().unwrap_or_default();
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// An experiment as a server describes it.
fn described(id: &str, name: &str) -> Value {
    json!({
        "experiment_id": id,
        "name": name,
        "artifact_location": format!("mlflow-artifacts:/{id}"),
        "lifecycle_stage": "active",
    })
}

/// What is known of experiments.
#[derive(Debug)]
pub(super) struct Experiments {
    /// By id; as the server describes them.
    known: Mutex<BTreeMap<String, Value>>,
    /// Where it stands which were promised, and the way to make that durable.
    books: Option<(Arc<Accounts>, Commands)>,
}

impl Experiments {
    pub(super) fn new(books: Option<(Arc<Accounts>, Commands)>) -> Self {
        Self { known: Mutex::default(), books }
    }

    /// Describes the experiment of that name under an id that is provisional, and durable.
    async fn promise(&self, name: &str, workspace: Option<&str>) -> Result<Value, Problem> {
        if name.chars().count() > NAME_MAX {
            return Err(Problem::invalid(format!("the name of an experiment has {NAME_MAX} characters at most")));
        }
        let Some((accounts, commands)) = &self.books else { return Err(Problem::not_found()) };
        let new = fastrand::u64(PROVISIONAL).to_string();
        let Some(Control::ExperimentPromised(promised)) = accounts.promise(name, workspace, &new, PROMISED_MAX) else {
            return Err(unavailable("too many experiments were asked for by name while the MLflow server was away"));
        };
        let fact = Control::ExperimentPromised(promised.clone());
        if !commands.ask(|done| Command::Record { controls: vec![fact], done }).await {
            return Err(unavailable("the provisional id of an experiment can't be stored now"));
        }
        if promised.id == new {
            tracing::info!(
                experiment = promised.name,
                provisional_id = promised.id,
                "the MLflow server can't be asked for an experiment; it is looked up, or created, at delivery"
            );
        }
        Ok(described(&promised.id, name))
    }

    /// The server described an experiment.
    pub(super) fn learn(&self, experiment: &Value) {
        let Some(id) = experiment["experiment_id"].as_str() else { return };
        let mut known = self.known.lock().expect("locked for moments that cannot panic");
        if known.len() < KNOWN_MAX || known.contains_key(id) {
            known.insert(id.to_owned(), experiment.clone());
        }
    }

    /// By its id.
    pub(super) fn by_id(&self, id: &str) -> Option<Value> {
        self.known.lock().expect("locked for moments that cannot panic").get(id).cloned()
    }

    /// One that was promised, by its provisional id.
    fn promised(&self, id: &str) -> Option<Value> {
        self.books.as_ref()?.0.promised(id).map(|promised| described(id, &promised.name))
    }

    /// By its name.
    pub(super) fn by_name(&self, name: &str) -> Option<Value> {
        let known = self.known.lock().expect("locked for moments that cannot panic");
        known.values().find(|experiment| experiment["name"] == name).cloned()
    }

    /// Where the files of an experiment's traces belong. Only what goes through the server is told: an app that writes
    /// to a store of its own needs no daemon for it.
    pub(super) fn artifacts_of(&self, id: &str) -> String {
        let learned = self.by_id(id).and_then(|experiment| experiment["artifact_location"].as_str().map(str::to_owned));
        let served = learned.filter(|location| location.starts_with("mlflow-artifacts:"));
        served.map_or_else(|| format!("mlflow-artifacts:/{id}"), |location| location.trim_end_matches('/').to_owned())
    }
}
