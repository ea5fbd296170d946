//! Every row of the contract's table, for each kind of backend.

use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use http::{HeaderName, HeaderValue};

use super::*;

const SMALL: Sent = Sent { bytes: 1000, spans: 5 };
const LARGE: Sent = Sent { bytes: LARGE_BYTES + 1, spans: 5 };
const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");
const JSON: (&str, &str) = ("content-type", "application/json");

/// 2026-01-01 00:00:00 UTC.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
}

fn headers(list: &[(&str, &str)]) -> HeaderMap {
    let entry = |(name, value): &(&str, &str)| {
        (name.parse::<HeaderName>().expect("name"), HeaderValue::from_str(value).expect("value"))
    };
    list.iter().map(entry).collect()
}

fn http(status: u16, list: &[(&str, &str)], body: impl Into<Bytes>) -> HttpAnswer {
    HttpAnswer { status, headers: headers(list), body: Ok(body.into()) }
}

fn grpc(code: &str, extra: &[(&str, &str)]) -> GrpcAnswer {
    let mut trailers = headers(extra);
    trailers.insert("grpc-status", HeaderValue::from_str(code).expect("value"));
    GrpcAnswer { status: 200, headers: HeaderMap::new(), trailers: Some(trailers), message: Ok(Bytes::new()) }
}

/// The row that an outcome stands for, in one word.
fn row(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Delivered { .. } => "delivered",
        Outcome::Retry { .. } => "retry",
        Outcome::TooLarge(_) => "too large",
        Outcome::Blocked { experiment_only: false, .. } => "blocked",
        Outcome::Blocked { experiment_only: true, .. } => "blocked experiment",
        Outcome::Refused { doubtful: false, .. } => "refused",
        Outcome::Refused { doubtful: true, .. } => "refused doubtful",
    }
}

fn failure(outcome: &Outcome) -> &Failure {
    match outcome {
        Outcome::Retry { failure, .. }
        | Outcome::TooLarge(failure)
        | Outcome::Blocked { failure, .. }
        | Outcome::Refused { failure, .. } => failure,
        Outcome::Delivered { .. } => panic!("delivered"),
    }
}

fn after(outcome: &Outcome) -> Option<u64> {
    match outcome {
        Outcome::Retry { after, .. } => after.map(|after| after.as_secs()),
        other => panic!("not a retry: {other:?}"),
    }
}

/// `grpc-status-details-bin` with a `RetryInfo` of so many seconds.
fn retry_details(seconds: i64) -> Vec<u8> {
    let info = rpc::RetryInfo { retry_delay: Some(rpc::Delay { seconds, nanos: 0 }) };
    let other = rpc::Any { type_url: "type.googleapis.com/google.rpc.DebugInfo".into(), value: vec![1, 2, 3] };
    let info = rpc::Any { type_url: "type.googleapis.com/google.rpc.RetryInfo".into(), value: info.encode_to_vec() };
    rpc::Status { code: 8, message: b"busy".to_vec(), details: vec![other, info] }.encode_to_vec()
}

fn partial(rejected_spans: i64, message: &str) -> Vec<u8> {
    let partial_success = Some(rpc::PartialSuccess { rejected_spans, error_message: message.into() });
    rpc::ExportResponse { partial_success }.encode_to_vec()
}

#[test]
fn every_http_status_of_an_otlp_server_has_its_row() {
    let table = [
        ("delivered", &[200, 201, 202, 204, 299][..]),
        ("retry", &[408, 429, 502, 503, 504]),
        ("too large", &[413]),
        ("blocked", &[300, 301, 302, 303, 307, 308, 399, 401, 403, 404, 405, 415, 501]),
        ("refused", &[400, 402, 406, 407, 409, 410, 411, 412, 414, 416, 418, 421, 422, 423, 425, 426, 431, 451, 499]),
        ("refused doubtful", &[500, 505, 506, 507, 508, 510, 511, 520, 529, 599]),
    ];
    for (expected, statuses) in table {
        for &status in statuses {
            let outcome = otlp_http(&http(status, &[], ""), SMALL, now());
            assert_eq!(row(&outcome), expected, "{status}");
            if expected != "delivered" {
                assert_eq!(failure(&outcome).status, status.to_string());
                assert!(!failure(&outcome).message.is_empty(), "{status}");
            }
            if expected == "blocked" {
                assert!(failure(&outcome).advice.is_some(), "{status}: the operator must act, but how?");
            }
        }
    }
}

#[test]
fn every_http_status_there_is_has_exactly_one_row() {
    for status in 100..=999 {
        let _ = otlp_http(&http(status, &[], "x"), SMALL, now());
        let _ = mlflow(&http(status, &[], "x"), SMALL, now());
        let _ = otlp_grpc(&GrpcAnswer { status, trailers: None, ..grpc("0", &[]) }, SMALL, now());
    }
}

#[test]
fn every_grpc_code_has_its_row() {
    let table = [
        ("delivered", &[(0, "OK")][..]),
        (
            "retry",
            &[
                (1, "CANCELLED"),
                (4, "DEADLINE_EXCEEDED"),
                (8, "RESOURCE_EXHAUSTED"),
                (10, "ABORTED"),
                (11, "OUT_OF_RANGE"),
                (14, "UNAVAILABLE"),
                (15, "DATA_LOSS"),
            ],
        ),
        ("blocked", &[(7, "PERMISSION_DENIED"), (12, "UNIMPLEMENTED"), (16, "UNAUTHENTICATED")]),
        ("refused", &[(3, "INVALID_ARGUMENT"), (5, "NOT_FOUND"), (6, "ALREADY_EXISTS"), (9, "FAILED_PRECONDITION")]),
        ("refused doubtful", &[(2, "UNKNOWN"), (13, "INTERNAL")]),
    ];
    let mut seen = Vec::new();
    for (expected, codes) in table {
        for &(code, name) in codes {
            let outcome = otlp_grpc(&grpc(&code.to_string(), &[("grpc-message", "so%20it%20is%0A")]), SMALL, now());
            assert_eq!(row(&outcome), expected, "{name}");
            if code != 0 {
                assert_eq!((failure(&outcome).status.as_str(), failure(&outcome).message.as_str()), (name, "so it is"));
            }
            if expected == "blocked" {
                assert!(failure(&outcome).advice.is_some(), "{name}");
            }
            seen.push(code);
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..=16).collect::<Vec<_>>(), "each code once");
}

#[test]
fn a_code_that_is_none_is_unknown() {
    for code in ["17", "255", "256", "-1", "x", ""] {
        let outcome = otlp_grpc(&grpc(code, &[]), SMALL, now());
        assert_eq!((row(&outcome), failure(&outcome).status.as_str()), ("refused doubtful", "UNKNOWN"), "{code}");
    }
}

#[test]
fn a_large_request_that_exhausts_or_is_out_of_range_is_too_large() {
    for code in ["8", "11"] {
        assert_eq!(row(&otlp_grpc(&grpc(code, &[]), LARGE, now())), "too large");
        assert_eq!(row(&otlp_grpc(&grpc(code, &[]), Sent { bytes: LARGE_BYTES, ..LARGE }, now())), "retry");
    }
}

#[test]
fn retry_info_makes_it_a_matter_of_time_padded_or_not() {
    for text in [STANDARD.encode(retry_details(7)), STANDARD_NO_PAD.encode(retry_details(7))] {
        for code in ["8", "11", "14"] {
            let outcome = otlp_grpc(&grpc(code, &[("grpc-status-details-bin", &text)]), LARGE, now());
            assert_eq!((row(&outcome), after(&outcome)), ("retry", Some(7)), "{code}");
        }
    }
}

#[test]
fn retry_info_without_a_useful_delay_still_means_retry() {
    for (seconds, expected) in [(0, None), (-5, None), (100_000, Some(600)), (i64::MAX, Some(600)), (i64::MIN, None)] {
        let text = STANDARD.encode(retry_details(seconds));
        let outcome = otlp_grpc(&grpc("8", &[("grpc-status-details-bin", &text)]), LARGE, now());
        assert_eq!((row(&outcome), after(&outcome)), ("retry", expected), "{seconds}");
    }
}

#[test]
fn garbage_in_the_details_is_ignored() {
    let cut = STANDARD.encode(&retry_details(7)[..9]);
    for text in ["!!!", "", "=", "AAAA", "____", cut.as_str()] {
        let outcome = otlp_grpc(&grpc("8", &[("grpc-status-details-bin", text)]), LARGE, now());
        assert_eq!(row(&outcome), "too large", "{text:?}");
    }
}

#[test]
fn a_status_in_the_headers_counts_when_there_are_no_trailers() {
    let answer = GrpcAnswer { headers: headers(&[("grpc-status", "16")]), trailers: None, ..grpc("0", &[]) };
    assert_eq!(row(&otlp_grpc(&answer, SMALL, now())), "blocked");
}

#[test]
fn without_a_grpc_status_the_http_status_decides_and_200_is_tried_again() {
    let table = [
        (200, "retry", "protocol"),
        (204, "retry", "protocol"),
        (429, "retry", "429"),
        (502, "retry", "502"),
        (503, "retry", "503"),
        (504, "retry", "504"),
        (413, "too large", "413"),
        (301, "blocked", "301"),
        (401, "blocked", "401"),
        (403, "blocked", "403"),
        (404, "blocked", "404"),
        (415, "blocked", "415"),
        (400, "refused", "400"),
        (500, "refused doubtful", "500"),
    ];
    for (status, expected, text) in table {
        let list = headers(&[("retry-after", "9")]);
        let answer = GrpcAnswer { status, headers: list, trailers: None, message: Ok(Bytes::new()) };
        let outcome = otlp_grpc(&answer, SMALL, now());
        assert_eq!((row(&outcome), failure(&outcome).status.as_str()), (expected, text), "{status}");
        if status == 429 {
            assert_eq!(after(&outcome), Some(9));
        }
    }
    // Trailers without a status are as good as none.
    let answer = GrpcAnswer { trailers: Some(headers(&[("x", "y")])), ..grpc("0", &[]) };
    assert_eq!(row(&otlp_grpc(&answer, SMALL, now())), "retry");
}

#[test]
fn partial_success_is_delivered_unless_every_span_was_rejected() {
    let table = [
        (0, "", 0, "delivered"),
        (0, "deprecated", 0, "delivered"),
        (2, "bad ids", 2, "delivered"),
        (-3, "", 0, "delivered"),
        (5, "none good", 0, "refused"),
        (9, "more than sent", 0, "refused"),
    ];
    for (rejected, text, expected, expected_row) in table {
        let body = partial(rejected, text);
        let http = otlp_http(&http(200, &[PROTOBUF], body.clone()), SMALL, now());
        let grpc = otlp_grpc(&GrpcAnswer { message: Ok(body.into()), ..grpc("0", &[]) }, SMALL, now());
        for outcome in [http, grpc] {
            assert_eq!(row(&outcome), expected_row, "{rejected}");
            if let Outcome::Delivered { rejected_spans, message } = outcome {
                assert_eq!((rejected_spans, message.as_deref().unwrap_or_default()), (expected, text));
            } else {
                assert_eq!(failure(&outcome).message, text);
            }
        }
    }
    let none = Sent { spans: 0, ..SMALL };
    assert_eq!(row(&otlp_http(&http(200, &[PROTOBUF], partial(3, "")), none, now())), "delivered");
}

#[test]
fn partial_success_is_read_from_json_too() {
    for body in [
        r#"{"partialSuccess":{"rejectedSpans":"2","errorMessage":"m"}}"#,
        r#"{"partialSuccess":{"rejectedSpans":2,"errorMessage":"m"}}"#,
    ] {
        let outcome = otlp_http(&http(200, &[("content-type", "Application/JSON; charset=utf-8")], body), SMALL, now());
        assert_eq!(outcome, Outcome::Delivered { rejected_spans: 2, message: Some("m".into()) });
    }
    assert_eq!(otlp_http(&http(200, &[JSON], "{}"), SMALL, now()), Outcome::delivered());
}

#[test]
fn a_success_that_cannot_be_read_is_a_success_and_noted() {
    let answers = [
        http(200, &[PROTOBUF], &b"\x0a\xffgarbage"[..]),
        http(200, &[JSON], "{"),
        http(200, &[("content-type", "text/html")], "<html>"),
        HttpAnswer { body: Err("too long"), ..http(200, &[PROTOBUF], "") },
    ];
    for answer in answers {
        let Outcome::Delivered { rejected_spans: 0, message: Some(message) } = otlp_http(&answer, SMALL, now()) else {
            panic!("not delivered: {answer:?}")
        };
        assert!(message.contains("could not be read") && !message.contains("html>"), "{message}");
    }
    let answer = GrpcAnswer { message: Err("no message"), ..grpc("0", &[]) };
    assert!(matches!(otlp_grpc(&answer, SMALL, now()), Outcome::Delivered { message: Some(_), .. }));
}

#[test]
fn the_message_of_an_error_is_that_of_its_status_in_either_encoding() {
    let status = rpc::Status { code: 3, message: b"bad\x1b[31m trace\xff id\n".to_vec(), details: Vec::new() };
    let outcome = otlp_http(&http(400, &[PROTOBUF], status.encode_to_vec()), SMALL, now());
    assert_eq!(failure(&outcome).message, "bad [31m trace\u{fffd} id");
    let outcome = otlp_http(&http(400, &[JSON], r#"{"code":3,"message":"bad trace id"}"#), SMALL, now());
    assert_eq!(failure(&outcome).message, "bad trace id");
    let outcome = otlp_http(&http(400, &[("content-type", "text/html")], "<h1>Oh no</h1>"), SMALL, now());
    assert_eq!(failure(&outcome).message, "the server calls the request bad");
}

#[test]
fn messages_are_cut_between_characters() {
    assert_eq!(shorten(&"ä".repeat(1000)), "ä".repeat(256));
    assert_eq!(shorten(&"b".repeat(256)), "b".repeat(256));
    assert_eq!(shorten(" a\r\nb\t\u{9b}c "), "a  b  c");
}

#[test]
fn retry_after_in_seconds_or_as_a_date() {
    let table = [
        ("5", Some(5)),
        (" 5 ", Some(5)),
        ("0", None),
        ("86400", Some(600)),
        ("99999999999999999999999", Some(600)),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("Thu, 01 Jan 2026 00:00:30 GMT", Some(30)),
        ("Thu, 01 Jan 2026 00:00:00 GMT", None),
        ("Wed, 31 Dec 2025 23:59:00 GMT", None),
        ("Fri, 01 Jan 2027 00:00:00 GMT", Some(600)),
        ("Thu, 99 Foo 2026 00:00:30 GMT", None),
    ];
    for (text, expected) in table {
        for status in [408, 429, 502, 503, 504] {
            let outcome = otlp_http(&http(status, &[("retry-after", text)], ""), SMALL, now());
            assert_eq!(after(&outcome), expected, "{status} {text:?}");
        }
    }
}

#[test]
fn a_date_is_read_by_the_servers_clock() {
    let list = [("retry-after", "Mon, 02 Mar 2026 10:00:20 GMT"), ("date", "Mon, 02 Mar 2026 10:00:00 GMT")];
    assert_eq!(retry_after(&headers(&list), now()), Some(Duration::from_secs(20)));
}

#[test]
fn every_mlflow_answer_has_its_row() {
    let code = |code: &str| format!(r#"{{"error_code":"{code}","message":"INSERT INTO spans secret-payload"}}"#);
    let detail = |text: &str| format!(r#"{{"detail":"{text}"}}"#);
    let missing_header = r#"{"detail":[{"type":"missing","loc":["header","x-mlflow-experiment-id"],"input":null}]}"#;
    let no_experiment = r#"{"error_code":"RESOURCE_DOES_NOT_EXIST","message":"No Experiment with id=999999 exists"}"#;
    let no_workspace = r#"{"error_code":"RESOURCE_DOES_NOT_EXIST","message":"Workspace 'x' not found"}"#;
    let table = [
        (200, String::new(), "delivered"),
        (400, code("INVALID_PARAMETER_VALUE"), "refused"),
        (400, code("BAD_REQUEST"), "refused"),
        (400, detail("Invalid OpenTelemetry format"), "refused"),
        (400, detail("Unsupported Content-Encoding: zstd"), "blocked"),
        (400, detail("Invalid Content-Type: text/plain"), "blocked"),
        (401, "You are not authenticated.".into(), "blocked"),
        (403, "Permission denied".into(), "blocked experiment"),
        (403, code("PERMISSION_DENIED"), "blocked experiment"),
        (403, "Invalid Host header - possible DNS rebinding attack detected".into(), "blocked"),
        (404, no_experiment.into(), "blocked experiment"),
        (404, no_workspace.into(), "blocked"),
        (404, detail("Not Found"), "blocked"),
        (404, "<html>".into(), "blocked"),
        (405, detail("Method Not Allowed"), "blocked"),
        (413, String::new(), "too large"),
        (422, missing_header.into(), "blocked"),
        (422, detail("Cannot convert OpenTelemetry span to MLflow span"), "refused"),
        (422, detail("Failed to log OpenTelemetry spans"), "refused"),
        (500, code("INTERNAL_ERROR"), "refused doubtful"),
        (500, code("INVALID_STATE"), "refused"),
        (500, String::new(), "refused doubtful"),
        (501, detail("REST OTLP span logging is not supported by FileStore"), "blocked"),
        (302, String::new(), "blocked"),
        (408, String::new(), "retry"),
        (429, code("REQUEST_LIMIT_EXCEEDED"), "retry"),
        (502, String::new(), "retry"),
        (503, code("TEMPORARILY_UNAVAILABLE"), "retry"),
        (503, "{".into(), "retry"),
        (504, String::new(), "retry"),
        (500, code("TEMPORARILY_UNAVAILABLE"), "retry"),
        (400, code("DEADLINE_EXCEEDED"), "retry"),
        (400, code("REQUEST_LIMIT_EXCEEDED"), "retry"),
        (403, code("RESOURCE_EXHAUSTED"), "retry"),
        (409, code("ABORTED"), "retry"),
    ];
    for (status, body, expected) in table {
        let outcome = mlflow(&http(status, &[("retry-after", "4")], body.clone()), SMALL, now());
        assert_eq!(row(&outcome), expected, "{status} {body}");
        if let Outcome::Retry { .. } = outcome {
            assert_eq!(after(&outcome), Some(4));
        }
        if expected.starts_with("blocked") {
            assert!(failure(&outcome).advice.is_some(), "{status} {body}");
        }
        assert!(!format!("{outcome:?}").contains("payload"), "{outcome:?}");
    }
}

#[test]
fn mlflow_messages_hold_our_words_and_a_code_that_looks_like_one() {
    let outcome = mlflow(&http(500, &[], r#"{"error_code":"INTERNAL_ERROR","message":"SELECT 1"}"#), SMALL, now());
    assert_eq!(failure(&outcome).message, "the server failed on the request (INTERNAL_ERROR)");
    let outcome = mlflow(&http(500, &[], r#"{"error_code":"SELECT secret","message":""}"#), SMALL, now());
    assert_eq!(failure(&outcome).message, "the server failed on the request");
    let answer = http(200, &[PROTOBUF], partial(1, "secret words"));
    assert_eq!(mlflow(&answer, SMALL, now()), Outcome::Delivered { rejected_spans: 1, message: None });
}
