//! Experiments: asked at the server while it can be reached, answered from what was learned when not.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde_json::Value;

/// Experiments that are remembered.
const KNOWN_MAX: usize = 10_000;

/// What is known of the server's experiments.
#[derive(Debug, Default)]
pub(super) struct Experiments {
    /// By id; as the server describes them.
    known: Mutex<BTreeMap<String, Value>>,
}

impl Experiments {
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
