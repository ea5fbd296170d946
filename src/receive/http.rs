//! OTLP over HTTP: paths, media types, and answers in the request's own encoding.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body::Body;

use super::body::Inbound;
use super::coding::Coding;
use super::hand_over::{Form, Labels, Parcel, hand_over};
use super::refusal::Problem;
use super::reply::Reply;
use super::service::{Peer, Signal, count_dropped};
use super::{Reception, size};
use crate::intake::{Door, Refusal};

/// The number of the record that the traces of a request became.
const RECORD: HeaderName = HeaderName::from_static("x-tracespool-record");

const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";

/// Answers one request that is not gRPC.
pub(super) async fn handle<B>(
    reception: &Reception,
    peer: &Peer,
    head: &Parts,
    body: &mut Inbound<B>,
) -> Result<Response<Reply>, Problem>
where
    B: Body<Data = Bytes> + Unpin,
{
    // In the order of the OpenTelemetry Collector: path, method, media type.
    let signal = signal(head.uri.path()).filter(|signal| reception.serves(*signal)).ok_or_else(Problem::not_found)?;
    if head.method != Method::POST {
        return Err(Problem::method_not_allowed());
    }
    let form = form(&head.headers).ok_or_else(|| {
        Problem::unsupported_media_type("the Content-Type must be application/x-protobuf or application/json")
    })?;
    let coding = coding(&head.headers)?;

    let limit = reception.max_request_bytes;
    let announced = body.announced();
    if announced.is_some_and(|length| length > limit) {
        return Err(Refusal::TooLarge { limit }.into());
    }
    if signal == Signal::Traces {
        let mut labels = Labels::read(&head.headers, reception)?;
        if head.headers.contains_key("x-mlflow-experiment-id") {
            // It may be there and empty: then an MLflow SDK asks, and the operator says for which experiment.
            labels = labels.or_experiment(reception.mlflow.default_experiment());
        }
        let mut charge = reception.budget.open()?;
        let body = body.read(limit, &mut charge, |_| Ok(announced)).await?;
        let (door, peer_uid) = (Door::Http, peer.uid());
        let record = hand_over(reception, Parcel { body, coding, form, door, labels, peer_uid, charge }).await?;
        let mut response = success(form);
        if let Some(record) = record {
            response.headers_mut().insert(RECORD, record.into());
        }
        return Ok(response);
    }
    body.discard(limit).await?;
    count_dropped(&reception.received, signal);
    Ok(success(form))
}

/// The answer to a request that was taken whole: an `ExportTraceServiceResponse` in which nothing is set.
fn success(form: Form) -> Response<Reply> {
    let (media_type, body) = match form {
        Form::Protobuf => (PROTOBUF, ""),
        Form::Json | Form::AnyJson => (JSON, "{}"),
    };
    answer(StatusCode::OK, media_type, Reply::data(body))
}

/// The answer to a request that was not taken: a `google.rpc.Status` in the request's encoding, or in JSON when that
/// is unknown (OTLP specification, "Failures").
pub(super) fn refusal(headers: &HeaderMap, problem: &Problem) -> Response<Reply> {
    let mut response = match form(headers) {
        Some(Form::Protobuf) => answer(problem.http, PROTOBUF, Reply::data(status_message(problem))),
        Some(Form::Json | Form::AnyJson) | None => {
            let status = serde_json::json!({ "code": problem.grpc.number(), "message": problem.message });
            answer(problem.http, JSON, Reply::data(status.to_string()))
        }
    };
    if problem.http == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    }
    if problem.http == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn answer(status: StatusCode, media_type: &'static str, body: Reply) -> Response<Reply> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// `google.rpc.Status`: `code` is field 1, `message` field 2.
fn status_message(problem: &Problem) -> Vec<u8> {
    const CODE: u8 = 1 << 3;
    const MESSAGE: u8 = 2 << 3 | 2;
    let mut bytes = vec![CODE, problem.grpc.number(), MESSAGE];
    prost::encoding::encode_varint(size(problem.message.len()), &mut bytes);
    bytes.extend_from_slice(problem.message.as_bytes());
    bytes
}

fn signal(path: &str) -> Option<Signal> {
    match path {
        // MLflow posts to the endpoint as configured, and appends nothing to one without a path.
        "/v1/traces" | "/" => Some(Signal::Traces),
        "/v1/metrics" => Some(Signal::Metrics),
        "/v1/logs" => Some(Signal::Logs),
        _ => None,
    }
}

/// The media type in any case and without its parameters.
pub(super) fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

fn form(headers: &HeaderMap) -> Option<Form> {
    let media_type = media_type(headers);
    if media_type.eq_ignore_ascii_case(PROTOBUF) {
        Some(Form::Protobuf)
    } else if media_type.eq_ignore_ascii_case(JSON) {
        Some(Form::Json)
    } else {
        None
    }
}

/// An unknown coding is 400, as the Collector answers it; several codings on top of each other are unknown too.
fn coding(headers: &HeaderMap) -> Result<Coding, Problem> {
    let mut values = headers.get_all(CONTENT_ENCODING).iter();
    let known = match (values.next(), values.next()) {
        (None, _) => Some(Coding::Identity),
        (Some(value), None) => value.to_str().ok().and_then(Coding::named),
        (Some(_), Some(_)) => None,
    };
    known.ok_or_else(|| Problem::invalid("the Content-Encoding must be one of identity, gzip, deflate, zstd"))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn media_types_are_compared_in_any_case_and_without_parameters() {
        for json in ["application/json", "APPLICATION/JSON", "application/json; charset=utf-8", " application/json ;x"]
        {
            assert_eq!(form(&headers(&[("content-type", json)])), Some(Form::Json), "{json}");
        }
        assert_eq!(form(&headers(&[("content-type", "application/X-Protobuf")])), Some(Form::Protobuf));
        for other in ["", "text/plain", "application/jsonl", "application/grpc", "application/protobuf"] {
            assert_eq!(form(&headers(&[("content-type", other)])), None, "{other}");
        }
        assert_eq!(form(&HeaderMap::new()), None);
    }

    #[test]
    fn paths() {
        assert_eq!(signal("/v1/traces"), Some(Signal::Traces));
        assert_eq!(signal("/"), Some(Signal::Traces));
        assert_eq!(signal("/v1/metrics"), Some(Signal::Metrics));
        assert_eq!(signal("/v1/logs"), Some(Signal::Logs));
        for other in ["/v1/traces/", "/v1", "/V1/traces", "/v1/profiles", ""] {
            assert_eq!(signal(other), None, "{other}");
        }
    }

    #[test]
    fn codings() {
        let coding = |pairs: &[_]| coding(&headers(pairs)).ok();
        assert_eq!(coding(&[]), Some(Coding::Identity));
        assert_eq!(coding(&[("content-encoding", "gzip")]), Some(Coding::Gzip));
        assert_eq!(coding(&[("content-encoding", "br")]), None);
        assert_eq!(coding(&[("content-encoding", "gzip, gzip")]), None);
        assert_eq!(coding(&[("content-encoding", "gzip"), ("content-encoding", "gzip")]), None);
    }

    /// `google.rpc.Status`, as another decoder sees it.
    #[derive(Clone, PartialEq, Message)]
    struct Status {
        #[prost(int32, tag = "1")]
        code: i32,
        #[prost(string, tag = "2")]
        message: String,
    }

    #[test]
    fn an_error_body_is_a_status() {
        for length in [0, 1, 127, 128, 20_000] {
            let problem = Problem::invalid("é".repeat(length));
            let status = Status::decode(&status_message(&problem)[..]).expect("it is a Status");
            assert_eq!(status, Status { code: 3, message: problem.message });
        }
    }

    #[test]
    fn a_refusal_is_in_the_encoding_of_the_request() {
        let refused = |pairs: &[_], problem| {
            let response = refusal(&headers(pairs), &problem);
            let header =
                |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
            (response.status().as_u16(), header("content-type"), header("allow"))
        };
        let protobuf = [("content-type", "application/x-protobuf")];
        let problem = Problem::invalid("x");
        assert_eq!(refused(&protobuf, problem.clone()), (400, Some(PROTOBUF.into()), None));
        assert_eq!(refused(&[("content-type", "text/plain")], problem), (400, Some(JSON.into()), None));
        assert_eq!(refused(&[], Problem::method_not_allowed()), (405, Some(JSON.into()), Some("POST".into())));
    }
}
