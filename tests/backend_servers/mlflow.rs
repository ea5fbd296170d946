//! An MLflow server, as far as it can be played.

use serde_json::{Value, json};
use tracespool::backend::{Backend, Batch, Outcome};
use tracespool::config::{Compression, Experiment, Remote, Target};

use crate::support::{Server, batch, build, delivered, remote, retry};

const FIND: &str = "/ml/api/2.0/mlflow/experiments/get-by-name";
const CREATE: &str = "/ml/api/2.0/mlflow/experiments/create";

fn mlflow(server: &Server, experiment: Experiment) -> Backend {
    let remote = Remote { compression: Compression::Gzip, ..remote(server.url("/ml/")) };
    build(Target::Mlflow { remote, experiment, workspace: Some("team".into()) })
}

fn by_name(server: &Server) -> Backend {
    mlflow(server, Experiment::Name("prod/a b".into()))
}

fn found(id: &str, stage: &str) -> Value {
    json!({"status": 200, "body": json!({"experiment": {"experiment_id": id, "lifecycle_stage": stage}}).to_string()})
}

fn error(status: u16, code: &str) -> Value {
    json!({"status": status, "body": json!({"error_code": code, "message": "No Experiment, and payload"}).to_string()})
}

#[tokio::test]
async fn a_batch_names_its_experiment_or_the_configured_one() {
    let server = Server::http(&json!({"/ml/v1/traces": [{"status": 200}]}));
    let backend = mlflow(&server, Experiment::Id("3".into()));
    for (named, expected) in [(None, "3"), (Some(""), "3"), (Some("12"), "12")] {
        let batch = Batch { experiment: named.map(str::to_owned), ..batch(&["a"]) };
        assert_eq!(backend.attempt(&batch).await, delivered());
        let request = server.request();
        assert_eq!((&request["method"], &request["path"]), (&json!("POST"), &json!("/ml/v1/traces")));
        let headers = &request["headers"];
        assert_eq!(headers["x-mlflow-experiment-id"], expected);
        assert_eq!(headers["x-mlflow-workspace"], "team");
        assert_eq!(
            (&headers["content-type"], &headers["content-encoding"]),
            (&json!("application/x-protobuf"), &json!("gzip"))
        );
    }
}

#[tokio::test]
async fn an_experiment_is_looked_up_once() {
    let server = Server::http(&json!({FIND: [found("17", "active")], "/ml/v1/traces": [{"status": 200}]}));
    let backend = by_name(&server);
    for _ in 0..2 {
        assert_eq!(backend.attempt(&batch(&["a"])).await, delivered());
    }
    let lookup = server.request();
    assert_eq!(lookup["path"], format!("{FIND}?experiment_name=prod%2Fa+b"));
    assert_eq!(lookup["headers"]["x-mlflow-workspace"], "team");
    for _ in 0..2 {
        assert_eq!(server.request()["headers"]["x-mlflow-experiment-id"], "17");
    }
}

#[tokio::test]
async fn an_experiment_that_is_not_there_is_created() {
    let server = Server::http(&json!({
        FIND: [error(404, "RESOURCE_DOES_NOT_EXIST")],
        CREATE: [{"status": 200, "body": "{\"experiment_id\":\"21\"}"}],
        "/ml/v1/traces": [{"status": 200}],
    }));
    assert_eq!(by_name(&server).attempt(&batch(&["a"])).await, delivered());
    server.request();
    let create = server.request();
    assert_eq!(crate::support::body(&create), br#"{"name":"prod/a b"}"#);
    assert_eq!(server.request()["headers"]["x-mlflow-experiment-id"], "21");
}

#[tokio::test]
async fn somebody_else_may_create_it_at_the_same_time() {
    let server = Server::http(&json!({
        FIND: [error(404, "RESOURCE_DOES_NOT_EXIST"), found("22", "active")],
        CREATE: [error(400, "RESOURCE_ALREADY_EXISTS")],
        "/ml/v1/traces": [{"status": 200}],
    }));
    assert_eq!(by_name(&server).attempt(&batch(&["a"])).await, delivered());
}

#[tokio::test]
async fn an_experiment_that_vanished_is_looked_up_again() {
    let server = Server::http(&json!({
        FIND: [found("1", "active"), found("2", "active")],
        "/ml/v1/traces": [error(404, "RESOURCE_DOES_NOT_EXIST"), {"status": 200}],
    }));
    let backend = by_name(&server);
    let outcome = backend.attempt(&batch(&["a"])).await;
    let Outcome::Blocked { failure, experiment_only: true } = outcome else { panic!("{outcome:?}") };
    assert!(!failure.message.contains("payload"), "{failure:?}");
    assert_eq!(backend.attempt(&batch(&["a"])).await, delivered());
    let ids = (0..4).map(|_| server.request()["headers"]["x-mlflow-experiment-id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids, [Value::Null, json!("1"), Value::Null, json!("2")]);
}

#[tokio::test]
async fn a_lookup_that_fails_delays_or_blocks_but_condemns_nothing() {
    let traces = json!([{"status": 200}]);
    for (answer, expected) in [
        (error(503, "TEMPORARILY_UNAVAILABLE"), "retry"),
        (error(500, "INTERNAL_ERROR"), "retry"),
        (json!({"reset": "now"}), "retry"),
        (json!({"status": 401}), "blocked"),
        (json!({"status": 404, "body": "<html>"}), "blocked"),
        (json!({"status": 200, "body": "<html>"}), "blocked"),
        (found("", "active"), "blocked"),
        (found("5", "deleted"), "blocked experiment"),
        (error(400, "INVALID_PARAMETER_VALUE"), "blocked experiment"),
    ] {
        let server = Server::http(&json!({FIND: [answer], "/ml/v1/traces": traces}));
        let outcome = by_name(&server).attempt(&batch(&["a"])).await;
        let row = match &outcome {
            Outcome::Retry { .. } => "retry",
            Outcome::Blocked { experiment_only: false, .. } => "blocked",
            Outcome::Blocked { experiment_only: true, .. } => "blocked experiment",
            _ => "other",
        };
        assert_eq!(row, expected, "{answer}: {outcome:?}");
        server.request();
        server.assert_idle();
    }
}

#[tokio::test]
async fn nothing_of_an_error_but_its_code_is_kept() {
    let server = Server::http(&json!({"/ml/v1/traces": [
        {"status": 503, "body": "{\"error_code\":\"TEMPORARILY_UNAVAILABLE\",\"message\":\"INSERT payload\"}", "headers": {"Retry-After": "3"}},
    ]}));
    let (failure, after) = retry(mlflow(&server, Experiment::Id("0".into())).attempt(&batch(&["a"])).await);
    assert_eq!((failure.status.as_str(), after), ("503", Some(3)));
    assert_eq!(failure.message, "the server is unavailable (TEMPORARILY_UNAVAILABLE)");
}
