//! The variables of MLflow's clients, as a backend.

use super::settle::{Settle, at_variable};
use super::{Compression, Credentials, Experiment, Remote, Secret, Target, Tls, address};

const URI: &str = "MLFLOW_TRACKING_URI";

/// The backend that the variables describe, and the variable that names its address.
pub(super) fn target(settle: &mut Settle<'_>) -> Option<(&'static str, Target)> {
    let environment = settle.environment;
    if environment.get("DATABRICKS_HOST").is_some() {
        settle.variable_warning("DATABRICKS_HOST", "is ignored: databricks is not available in this version");
    }
    let text = environment.get(URI)?.trim();
    let scheme = text.split(':').next().unwrap_or_default().to_ascii_lowercase();
    if scheme == "databricks" || scheme == "databricks-uc" {
        settle.variable_warning(URI, "is ignored: databricks is not available in this version");
        return None;
    }
    if scheme != "http" && scheme != "https" {
        // A folder or a database of MLflow's own can only be written by MLflow.
        settle.variable_warning(URI, "is ignored: it is not the address of a server, which begins with http or https");
        return None;
    }
    let mut endpoint = match address::parse(text, false) {
        Ok(url) => url,
        Err(reason) => {
            settle.variable_mistake(URI, reason);
            return None;
        }
    };
    // MLflow's clients take user information in the address, and its own variables before it.
    let in_address = address::take_userinfo(&mut endpoint);
    let credentials = match (credentials(settle), in_address) {
        (Credentials::None, Some(in_address)) => {
            note(settle, "username", URI, false);
            note(settle, "password", URI, true);
            in_address
        }
        (credentials, _) => credentials,
    };
    let experiment = experiment(settle);
    let workspace = environment.get("MLFLOW_WORKSPACE").map(|text| text.trim().to_owned());
    if workspace.is_some() {
        note(settle, "workspace", "MLFLOW_WORKSPACE", false);
    }
    note(settle, "kind", URI, false);
    note(settle, "endpoint", URI, false);
    let remote =
        Remote { endpoint, headers: Vec::new(), credentials, tls: Tls::default(), compression: Compression::default() };
    Some((URI, Target::Mlflow { remote, experiment, workspace }))
}

fn note(settle: &mut Settle<'_>, key: &str, variable: &str, hidden: bool) {
    let at = at_variable(format!("backend.mlflow.{key}"), variable);
    settle.origins.set(at.key, at.origin, hidden);
}

/// Basic when both parts are there, else a token, as MLflow's clients decide.
fn credentials(settle: &mut Settle<'_>) -> Credentials {
    let environment = settle.environment;
    let username = environment.get("MLFLOW_TRACKING_USERNAME");
    let password = environment.get("MLFLOW_TRACKING_PASSWORD");
    if let (Some(username), Some(password)) = (username, password) {
        note(settle, "username", "MLFLOW_TRACKING_USERNAME", false);
        note(settle, "password", "MLFLOW_TRACKING_PASSWORD", true);
        return Credentials::Basic { username: username.into(), password: Secret::new(password) };
    }
    for (name, is_set) in
        [("MLFLOW_TRACKING_USERNAME", username.is_some()), ("MLFLOW_TRACKING_PASSWORD", password.is_some())]
    {
        if is_set {
            settle.variable_warning(name, "is ignored: user name and password count only together");
        }
    }
    match environment.get("MLFLOW_TRACKING_TOKEN") {
        Some(token) => {
            note(settle, "token", "MLFLOW_TRACKING_TOKEN", true);
            Credentials::Bearer(Secret::new(token.trim()))
        }
        None => Credentials::None,
    }
}

/// The id beats the name; experiment 0 exists on every server.
fn experiment(settle: &mut Settle<'_>) -> Experiment {
    let environment = settle.environment;
    if let Some(id) = environment.get("MLFLOW_EXPERIMENT_ID") {
        let id = id.trim();
        if !id.chars().all(|c| c.is_ascii_digit()) {
            settle.variable_mistake("MLFLOW_EXPERIMENT_ID", "must be the number of an experiment, such as 0");
        }
        note(settle, "experiment_id", "MLFLOW_EXPERIMENT_ID", false);
        return Experiment::Id(id.into());
    }
    match environment.get("MLFLOW_EXPERIMENT_NAME") {
        Some(name) => {
            note(settle, "experiment_name", "MLFLOW_EXPERIMENT_NAME", false);
            Experiment::Name(name.into())
        }
        None => Experiment::Id("0".into()),
    }
}
