//! Which of MLflow's calls a request is.

use http::Method;

/// Identifies a trace.
pub(in crate::receive) type TraceId = [u8; 16];

/// One of MLflow's calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::receive) enum Route {
    /// Which server is it?
    Version,
    /// Is it there?
    Health,
    /// Everything about a trace but its spans; sent at its end.
    StartTrace,
    /// What is known of a trace, by its name.
    TraceInfo(String),
    /// A tag of a trace is set or removed.
    Tag(TraceId),
    /// A trace is assessed.
    NewAssessment(TraceId),
    /// An assessment is changed.
    ChangeAssessment(TraceId, String),
    /// An assessment is removed.
    DeleteAssessment(TraceId),
    /// Prompts that a trace used; the body names it.
    LinkPrompts,
    /// A file of a trace.
    Artifact(Artifact),
    /// An experiment is asked for or made.
    Experiment(ExperimentCall),
    /// Anything else; not ours to answer.
    Other,
}

/// A file of a trace: an attachment, or its spans when the server did not take them otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::receive) struct Artifact {
    /// Of which experiment.
    pub(in crate::receive) experiment: String,
    /// Of which trace.
    pub(in crate::receive) trace: TraceId,
    /// It holds the trace's spans.
    pub(in crate::receive) is_spans: bool,
}

/// A call about experiments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::receive) enum ExperimentCall {
    /// By its id.
    Get,
    /// By its name.
    GetByName,
    /// A new one.
    Create,
}

impl Route {
    /// `None` for what is none of MLflow's calls at all.
    pub(in crate::receive) fn of(method: &Method, path: &str) -> Option<Self> {
        match path {
            "/version" if method == Method::GET => return Some(Self::Version),
            "/health" if method == Method::GET => return Some(Self::Health),
            _ => {}
        }
        if let Some(rest) = path.strip_prefix("/api/") {
            return Some(Self::of_api(method.as_str(), rest).unwrap_or(Self::Other));
        }
        let others = ["/ajax-api/", "/get-artifact", "/model-versions/get-artifact", "/graphql", "/gateway/"];
        others.iter().any(|prefix| path.starts_with(prefix)).then_some(Self::Other)
    }

    fn of_api(method: &str, path: &str) -> Option<Self> {
        // Whatever is written in another way than MLflow's SDK writes it is forwarded: it is sent on with the daemon's
        // own credentials later, so that nothing in it may need an interpretation.
        if !path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte)) {
            return None;
        }
        let segments: Vec<&str> = path.split('/').collect();
        if segments.iter().any(|segment| segment.is_empty() || *segment == "." || *segment == "..") {
            return None;
        }
        Some(match (method, segments.as_slice()) {
            ("POST", ["3.0", "mlflow", "traces"]) => Self::StartTrace,
            ("GET", ["3.0", "mlflow", "traces", trace]) if trace_id(trace).is_some() => {
                Self::TraceInfo((*trace).to_owned())
            }
            ("PATCH" | "DELETE", ["2.0" | "3.0", "mlflow", "traces", trace, "tags"]) => Self::Tag(trace_id(trace)?),
            ("POST", ["3.0", "mlflow", "traces", trace, "assessments"]) => Self::NewAssessment(trace_id(trace)?),
            ("PATCH", ["3.0", "mlflow", "traces", trace, "assessments", id]) => {
                Self::ChangeAssessment(trace_id(trace)?, (*id).to_owned())
            }
            ("DELETE", ["3.0", "mlflow", "traces", trace, "assessments", _]) => {
                Self::DeleteAssessment(trace_id(trace)?)
            }
            ("POST", ["2.0" | "3.0", "mlflow", "traces", "link-prompts"]) => Self::LinkPrompts,
            ("PUT", ["2.0", "mlflow-artifacts", "artifacts", experiment, "traces", trace, "artifacts", file @ ..])
                if !file.is_empty() && experiment.bytes().all(|byte| byte.is_ascii_digit()) =>
            {
                Self::Artifact(Artifact {
                    experiment: (*experiment).to_owned(),
                    trace: trace_id(trace)?,
                    is_spans: *file == ["traces.json"],
                })
            }
            ("GET", ["2.0" | "3.0", "mlflow", "experiments", "get"]) => Self::Experiment(ExperimentCall::Get),
            ("GET", ["2.0" | "3.0", "mlflow", "experiments", "get-by-name"]) => {
                Self::Experiment(ExperimentCall::GetByName)
            }
            ("POST", ["2.0" | "3.0", "mlflow", "experiments", "create"]) => Self::Experiment(ExperimentCall::Create),
            _ => return None,
        })
    }
}

/// `tr-` and 32 hex digits. Traces with other names, such as those in Unity Catalog, are not kept in a spool.
pub(in crate::receive) fn trace_id(name: &str) -> Option<TraceId> {
    let digits = name.strip_prefix("tr-").filter(|digits| digits.len() == 32)?;
    // `from_str_radix` takes a sign, too.
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(digits, 16).ok().map(u128::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "tr-c07e173d858ac4f9ed1a505a8d75c233";

    fn route(method: &str, path: &str) -> Option<Route> {
        Route::of(&method.parse().expect("a method"), &path.replace("TRACE", TRACE))
    }

    #[test]
    fn what_belongs_to_a_trace_is_recognised() {
        let trace = trace_id(TRACE).expect("a trace");
        assert_eq!(trace[..2], [0xc0, 0x7e]);
        let artifact = |is_spans| Route::Artifact(Artifact { experiment: "7".into(), trace, is_spans });
        for (method, path, expected) in [
            ("GET", "/version", Route::Version),
            ("GET", "/health", Route::Health),
            ("POST", "/api/3.0/mlflow/traces", Route::StartTrace),
            ("GET", "/api/3.0/mlflow/traces/TRACE", Route::TraceInfo(TRACE.into())),
            ("PATCH", "/api/2.0/mlflow/traces/TRACE/tags", Route::Tag(trace)),
            ("DELETE", "/api/3.0/mlflow/traces/TRACE/tags", Route::Tag(trace)),
            ("POST", "/api/3.0/mlflow/traces/TRACE/assessments", Route::NewAssessment(trace)),
            ("PATCH", "/api/3.0/mlflow/traces/TRACE/assessments/a-1", Route::ChangeAssessment(trace, "a-1".into())),
            ("DELETE", "/api/3.0/mlflow/traces/TRACE/assessments/a-1", Route::DeleteAssessment(trace)),
            ("POST", "/api/2.0/mlflow/traces/link-prompts", Route::LinkPrompts),
            ("PUT", "/api/2.0/mlflow-artifacts/artifacts/7/traces/TRACE/artifacts/traces.json", artifact(true)),
            ("PUT", "/api/2.0/mlflow-artifacts/artifacts/7/traces/TRACE/artifacts/attachments/x", artifact(false)),
            ("GET", "/api/2.0/mlflow/experiments/get-by-name", Route::Experiment(ExperimentCall::GetByName)),
        ] {
            assert_eq!(route(method, path), Some(expected), "{method} {path}");
        }
    }

    #[test]
    fn the_rest_is_forwarded_or_not_ours() {
        for (method, path) in [
            ("GET", "/api/3.0/mlflow/traces/get"),
            ("POST", "/api/3.0/mlflow/traces/search"),
            ("POST", "/api/2.0/mlflow/traces"),
            ("PATCH", "/api/2.0/mlflow/traces/tr-1/tags"),
            ("PATCH", "/api/2.0/mlflow/traces/tr-+07e173d858ac4f9ed1a505a8d75c233/tags"),
            ("PUT", "/api/2.0/mlflow-artifacts/artifacts/7/TRACE/model.bin"),
            ("PUT", "/api/2.0/mlflow-artifacts/artifacts/7/traces/TRACE/artifacts/../../x"),
            ("PUT", "/api/2.0/mlflow-artifacts/artifacts/7/traces/TRACE/artifacts/%2e%2e/x"),
            ("PUT", "/api/2.0/mlflow-artifacts/artifacts/7/traces/TRACE/artifacts"),
            ("PUT", "/api/2.0/mlflow-artifacts/artifacts/7/traces/TRACE/artifacts/"),
            ("POST", "/api/2.0/mlflow/runs/log-metric"),
            ("POST", "/ajax-api/2.0/mlflow/traces/TRACE/tags"),
            ("GET", "/get-artifact"),
        ] {
            assert_eq!(route(method, path), Some(Route::Other), "{method} {path}");
        }
        for (method, path) in
            [("POST", "/version"), ("POST", "/v1/traces"), ("POST", "/"), ("GET", "/"), ("GET", "/apix")]
        {
            assert_eq!(route(method, path), None, "{method} {path}");
        }
    }
}
