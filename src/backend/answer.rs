//! What an answer means: total functions from the wire to an [`Outcome`], in the order of the contract's table.
//!
//! Nothing here waits, reads a clock or touches a socket, so that every row can be tested.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_TYPE, DATE, RETRY_AFTER};
use prost::Message;
use serde_json::Value;

use super::{Failure, Outcome, rpc};

/// No server's wish for a pause counts for more.
pub const AFTER_MAX: Duration = Duration::from_secs(600);

/// A request up to this size that is refused with RESOURCE_EXHAUSTED or OUT_OF_RANGE is not refused for its size: no
/// server with so low a limit is known, and both codes have other uses.
pub const LARGE_BYTES: u64 = 256 * 1024;

/// Longest message of a server that is kept, in characters.
const MESSAGE_CHARS: usize = 256;

/// What is known of the request that an answer belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// Its size before compression.
    pub bytes: u64,
    /// Its spans.
    pub spans: u64,
}

/// The body of an answer, or why there is none.
pub type Body = Result<Bytes, &'static str>;

/// An HTTP answer.
#[derive(Debug, Clone)]
pub struct HttpAnswer {
    /// Status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Body,
}

/// An answer to a unary gRPC call.
#[derive(Debug, Clone)]
pub struct GrpcAnswer {
    /// Status of the HTTP layer.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Trailers; absent when the stream ended without, as in an answer of headers only.
    pub trailers: Option<HeaderMap>,
    /// The message without its frame.
    pub message: Body,
}

/// The rows of the contract's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Row {
    Delivered,
    TooLarge,
    Retry,
    Blocked,
    Refused { doubtful: bool },
}

/// An OTLP server's answer over HTTP ("OTLP specification, OTLP/HTTP Response").
pub fn otlp_http(answer: &HttpAnswer, sent: Sent, now: SystemTime) -> Outcome {
    let row = http_row(answer.status);
    if row == Row::Delivered {
        return delivered(answer.status.to_string(), partial_success(answer), sent);
    }
    let message = http_message(answer);
    let advice = loop_advice(&message).or(http_advice(answer.status));
    let failure = Failure::new(answer.status.to_string(), message).advise(advice);
    outcome(row, failure, retry_after(&answer.headers, now))
}

/// An OTLP server's answer over gRPC ("OTLP specification, OTLP/gRPC Response").
pub fn otlp_grpc(answer: &GrpcAnswer, sent: Sent, now: SystemTime) -> Outcome {
    let trailers = answer.trailers.as_ref().filter(|trailers| trailers.contains_key("grpc-status"));
    let trailers = trailers.unwrap_or(&answer.headers);
    let Some(status) = trailers.get("grpc-status") else { return without_grpc_status(answer, now) };
    // A status that is not a number, or a number that no code has, is UNKNOWN ("gRPC over HTTP2, Responses").
    let code = status.to_str().ok().and_then(|text| text.parse::<u8>().ok()).filter(|code| *code <= 16).unwrap_or(2);
    let name = grpc_name(code);
    let details = details(trailers);
    let after = details.as_ref().and_then(retry_info);
    let row = grpc_row(code, sent.bytes, after.is_some());
    if row == Row::Delivered {
        let response = answer.message.clone().and_then(|message| {
            rpc::ExportResponse::decode(message).map_err(|_| "it is not an ExportTraceServiceResponse")
        });
        return delivered(name.to_owned(), response.map(|response| response.partial_success), sent);
    }
    let message = trailers.get("grpc-message").map(|message| percent_decode(message.as_bytes())).unwrap_or_default();
    let failure = Failure::new(name, shorten(&message)).advise(loop_advice(&message).or(grpc_advice(code)));
    outcome(row, failure, after.filter(|after| !after.is_zero()))
}

/// An MLflow server's answer to a `POST /v1/traces`.
///
/// The server takes a request whole or refuses it whole, and uses statuses of its own for what is a matter of
/// configuration. Its messages quote SQL with the content of spans, so that none of its words are kept, but for
/// `error_code`.
pub fn mlflow(answer: &HttpAnswer, sent: Sent, now: SystemTime) -> Outcome {
    let body = MlflowBody::of(answer);
    let mut row = http_row(answer.status);
    if row == Row::Delivered {
        // No MLflow server is known that answers a partial success, but one behind a gateway may.
        let partial = partial_success(answer)
            .map(|partial| partial.map(|partial| rpc::PartialSuccess { error_message: Vec::new(), ..partial }));
        return delivered(answer.status.to_string(), partial, sent);
    }
    let mut experiment_only = false;
    let mut advice = http_advice(answer.status);
    let mut words = http_words(answer.status);
    match (answer.status, body.code()) {
        (
            _,
            "TEMPORARILY_UNAVAILABLE"
            | "DEADLINE_EXCEEDED"
            | "REQUEST_LIMIT_EXCEEDED"
            | "RESOURCE_EXHAUSTED"
            | "ABORTED",
        ) => {
            row = Row::Retry;
        }
        (_, "INVALID_STATE") => {
            row = Row::Refused { doubtful: false };
            words = "the server does not take spans for this trace any more; it may be archived";
        }
        (404, "RESOURCE_DOES_NOT_EXIST") if !body.says("orkspace") => {
            experiment_only = true;
            words = "the experiment does not exist";
            advice = Some("create or restore the experiment, or correct `experiment_id`");
        }
        (403, _) if body.says("Invalid Host header") => {
            words = "the server refuses this Host";
            advice = Some("start the MLflow server with --allowed-hosts for the host in `endpoint`");
        }
        (403, _) => {
            experiment_only = true;
            words = "not permitted";
            advice = Some("give the user EDIT permission on the experiment");
        }
        (501, _) => {
            words = "the server cannot store traces sent by OTLP";
            advice = Some("the MLflow server needs an SQL database: --backend-store-uri");
        }
        (422, _) if body.says("x-mlflow-experiment-id") => {
            row = Row::Blocked;
            words = "the server did not see the experiment's header";
            advice = Some("check that no proxy on the way removes x-mlflow-experiment-id");
        }
        (400, _) if body.says("Unsupported Content-Encoding") || body.says("Invalid Content-Type") => {
            row = Row::Blocked;
            words = "the server does not take this encoding";
            advice = Some("set `compression = \"none\"`, and check for proxies on the way that change headers");
        }
        _ => {}
    }
    let message = match body.code() {
        "" => words.to_owned(),
        code => format!("{words} ({code})"),
    };
    let failure =
        Failure::new(answer.status.to_string(), message).advise(if row == Row::Retry { None } else { advice });
    match outcome(row, failure, retry_after(&answer.headers, now)) {
        Outcome::Blocked { failure, .. } => Outcome::Blocked { failure, experiment_only },
        outcome => outcome,
    }
}

/// A server's text, fit for a log: one line without control characters, of limited length.
pub fn shorten(text: &str) -> String {
    let clean = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short = clean.take(MESSAGE_CHARS + 1).collect::<String>();
    if let Some((end, _)) = short.char_indices().nth(MESSAGE_CHARS) {
        short.truncate(end);
    }
    short
}

/// The pause that `Retry-After` asks for: seconds or a date, and nothing when it is neither or lies in the past
/// ("RFC 9110, 10.2.3").
///
/// A date is read by the server's own clock, when it tells it, since ours may be wrong.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let after = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        value.parse().map_or(AFTER_MAX, Duration::from_secs)
    } else {
        let date = httpdate::parse_http_date(value).ok()?;
        let theirs = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        date.duration_since(theirs.unwrap_or(now)).ok()?
    };
    Some(after.min(AFTER_MAX)).filter(|after| !after.is_zero())
}

/// Whether an MLflow answer says that something, such as an experiment, does not exist.
pub(super) fn mlflow_missing(answer: &HttpAnswer) -> bool {
    answer.status == 404 && MlflowBody::of(answer).code() == "RESOURCE_DOES_NOT_EXIST"
}

/// Whether an MLflow answer has these words in it.
pub(super) fn mlflow_says(answer: &HttpAnswer, words: &str) -> bool {
    MlflowBody::of(answer).says(words)
}

/// Whether an MLflow answer says that what was to be created exists already.
pub(super) fn mlflow_exists(answer: &HttpAnswer) -> bool {
    MlflowBody::of(answer).code() == "RESOURCE_ALREADY_EXISTS"
}

fn http_row(status: u16) -> Row {
    match status {
        200..=299 => Row::Delivered,
        413 => Row::TooLarge,
        408 | 429 | 502 | 503 | 504 => Row::Retry,
        300..=399 | 401 | 403 | 404 | 405 | 415 | 501 => Row::Blocked,
        400..=499 => Row::Refused { doubtful: false },
        _ => Row::Refused { doubtful: true },
    }
}

/// Retryable codes as in "OTLP specification, OTLP/gRPC Response, Failures"; `RetryInfo` makes RESOURCE_EXHAUSTED one,
/// even with a delay of zero.
fn grpc_row(code: u8, bytes: u64, retry_info: bool) -> Row {
    match code {
        0 => Row::Delivered,
        // OUT_OF_RANGE (11) is how some gRPC libraries refuse a message that is too long.
        8 | 11 if !retry_info && bytes > LARGE_BYTES => Row::TooLarge,
        // CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS.
        1 | 4 | 8 | 10 | 11 | 14 | 15 => Row::Retry,
        // PERMISSION_DENIED, UNIMPLEMENTED, UNAUTHENTICATED.
        7 | 12 | 16 => Row::Blocked,
        // INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION.
        3 | 5 | 6 | 9 => Row::Refused { doubtful: false },
        // UNKNOWN, INTERNAL, and what is no code at all.
        _ => Row::Refused { doubtful: true },
    }
}

/// An answer that never came to a gRPC server, or never back from it.
///
/// With another HTTP status than 200 it is a proxy that speaks, and its status means what it means over HTTP: its 413
/// would otherwise be held against the records. A 200 without a status says nothing about the request, so that it is
/// tried again, where gRPC libraries report UNKNOWN.
fn without_grpc_status(answer: &GrpcAnswer, now: SystemTime) -> Outcome {
    let row = http_row(answer.status);
    if row == Row::Delivered {
        return Outcome::retry(
            Failure::new("protocol", "the answer has no grpc-status")
                .advise("check `endpoint`: a proxy or a server that does not speak gRPC may be there"),
        );
    }
    let message = format!("{} (HTTP status, without a grpc-status)", http_words(answer.status));
    let failure = Failure::new(answer.status.to_string(), message).advise(http_advice(answer.status));
    outcome(row, failure, retry_after(&answer.headers, now))
}

fn outcome(row: Row, failure: Failure, after: Option<Duration>) -> Outcome {
    match row {
        Row::Delivered => Outcome::delivered(),
        Row::TooLarge => Outcome::TooLarge(failure),
        Row::Retry => Outcome::Retry { failure, after },
        Row::Blocked => Outcome::blocked(failure),
        Row::Refused { doubtful } => Outcome::Refused { failure, doubtful },
    }
}

/// A success, with what a partial success says. A body that cannot be read is no reason to send anything again: the
/// server has it.
fn delivered(status: String, partial: Result<Option<rpc::PartialSuccess>, &'static str>, sent: Sent) -> Outcome {
    let partial = match partial {
        Err(why) => {
            let message = Some(format!("delivered, but the answer's body could not be read: {why}"));
            return Outcome::Delivered { rejected_spans: 0, message };
        }
        Ok(None) => return Outcome::delivered(),
        Ok(Some(partial)) => partial,
    };
    let message = shorten(&String::from_utf8_lossy(&partial.error_message));
    // More than was sent cannot be rejected, and less than nothing neither.
    let rejected_spans = u64::try_from(partial.rejected_spans).unwrap_or(0).min(sent.spans);
    if rejected_spans > 0 && rejected_spans == sent.spans {
        let failure = Failure::new(status, if message.is_empty() { "every span was rejected".into() } else { message });
        return Outcome::Refused { failure, doubtful: false };
    }
    Outcome::Delivered { rejected_spans, message: Some(message).filter(|message| !message.is_empty()) }
}

fn is_json(headers: &HeaderMap) -> bool {
    media_type(headers) == "application/json"
}

fn is_protobuf(headers: &HeaderMap) -> bool {
    matches!(media_type(headers).as_str(), "application/x-protobuf" | "application/protobuf")
}

fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// What a success says beyond its status. Some servers answer JSON to protobuf.
fn partial_success(answer: &HttpAnswer) -> Result<Option<rpc::PartialSuccess>, &'static str> {
    let body = answer.body.clone()?;
    if body.is_empty() {
        return Ok(None);
    }
    if is_protobuf(&answer.headers) {
        let response = rpc::ExportResponse::decode(body).map_err(|_| "it is not an ExportTraceServiceResponse")?;
        return Ok(response.partial_success);
    }
    if is_json(&answer.headers) {
        let response = serde_json::from_slice::<Value>(&body).map_err(|_| "it is not JSON")?;
        let Some(partial) = response.get("partialSuccess") else { return Ok(None) };
        let rejected = &partial["rejectedSpans"];
        let rejected = rejected.as_i64().or_else(|| rejected.as_str()?.parse().ok()).unwrap_or(0);
        let message = partial["errorMessage"].as_str().unwrap_or_default();
        return Ok(Some(rpc::PartialSuccess { rejected_spans: rejected, error_message: message.into() }));
    }
    Err("it is neither protobuf nor JSON")
}

/// The message of the `google.rpc.Status` that OTLP wants in every error, else our own words.
fn http_message(answer: &HttpAnswer) -> String {
    let body = answer.body.as_deref().unwrap_or_default();
    let message = if is_protobuf(&answer.headers) {
        rpc::Status::decode(body).map(|status| String::from_utf8_lossy(&status.message).into_owned()).ok()
    } else if is_json(&answer.headers) {
        serde_json::from_slice::<Value>(body).ok().and_then(|status| Some(status.get("message")?.as_str()?.to_owned()))
    } else {
        None
    };
    let message = shorten(&message.unwrap_or_default());
    if message.is_empty() { http_words(answer.status).to_owned() } else { message }
}

fn http_words(status: u16) -> &'static str {
    match status {
        300..=399 => "the server redirects to another address",
        400 => "the server calls the request bad",
        401 => "the server wants credentials",
        403 => "not permitted",
        404 => "nothing at this address",
        405 => "the address takes no POST",
        408 => "the server waited too long for the request",
        413 => "the request is too large",
        415 => "the server does not take this encoding",
        422 => "the server cannot make sense of the request",
        429 => "too many requests",
        500 => "the server failed on the request",
        501 => "the server does not implement this",
        502 | 504 => "a gateway cannot reach the server",
        503 => "the server is unavailable",
        _ => "the server refused the request",
    }
}

fn http_advice(status: u16) -> Option<&'static str> {
    match status {
        300..=399 => Some("redirects are not followed: set `endpoint` to the address where they lead"),
        401 => Some("check `token_file`, or `username` and `password_file`, or the headers"),
        403 => Some("the credentials are known but not permitted to write traces here"),
        404 | 405 => Some("check `endpoint`: the path is not that of an OTLP or MLflow server"),
        415 => Some("check `endpoint` and `compression`"),
        501 => Some("the server cannot take traces: check `endpoint` and the server's settings"),
        _ => None,
    }
}

/// Another daemon of this kind names the header when it refuses what it has sent on itself.
fn loop_advice(message: &str) -> Option<&'static str> {
    message.contains(super::VIA).then_some("daemons ship to each other: take one of these backends out")
}

fn grpc_advice(code: u8) -> Option<&'static str> {
    match code {
        7 => http_advice(403),
        12 => Some(
            "check `endpoint` and `compression`: the server has no OTLP trace service there, or does not know the compression",
        ),
        16 => http_advice(401),
        _ => None,
    }
}

fn grpc_name(code: u8) -> &'static str {
    match code {
        0 => "OK",
        1 => "CANCELLED",
        3 => "INVALID_ARGUMENT",
        4 => "DEADLINE_EXCEEDED",
        5 => "NOT_FOUND",
        6 => "ALREADY_EXISTS",
        7 => "PERMISSION_DENIED",
        8 => "RESOURCE_EXHAUSTED",
        9 => "FAILED_PRECONDITION",
        10 => "ABORTED",
        11 => "OUT_OF_RANGE",
        12 => "UNIMPLEMENTED",
        13 => "INTERNAL",
        14 => "UNAVAILABLE",
        15 => "DATA_LOSS",
        16 => "UNAUTHENTICATED",
        _ => "UNKNOWN",
    }
}

/// The `google.rpc.Status` in the trailers. Garbage there is ignored, and must be: it is only an addition.
fn details(trailers: &HeaderMap) -> Option<rpc::Status> {
    // Some peers pad the base64, others do not ("gRPC over HTTP2, Requests": both must be taken).
    const CONFIG: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const LENIENT: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, CONFIG);
    let bytes = LENIENT.decode(trailers.get("grpc-status-details-bin")?.as_bytes()).ok()?;
    rpc::Status::decode(&bytes[..]).ok()
}

/// The delay of `RetryInfo`, zero when it names none or a negative one ("OTLP specification, OTLP/gRPC Throttling").
fn retry_info(status: &rpc::Status) -> Option<Duration> {
    let info = status.details.iter().find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let info = rpc::RetryInfo::decode(&info.value[..]).ok()?;
    let delay = info.retry_delay.unwrap_or_default();
    let delay = match (u64::try_from(delay.seconds), u32::try_from(delay.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Duration::new(seconds, nanos),
        _ => Duration::ZERO,
    };
    Some(delay.min(AFTER_MAX))
}

/// Undoes the percent encoding of `grpc-message`; what is not such an encoding stays as it is.
fn percent_decode(text: &[u8]) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match (byte, hex) {
            (b'%', Some(decoded)) => {
                out.push(decoded);
                rest = &tail[2..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The body of an MLflow error: read for what it is about, never shown.
struct MlflowBody {
    code: String,
    text: String,
}

impl MlflowBody {
    fn of(answer: &HttpAnswer) -> Self {
        let body = answer.body.as_deref().unwrap_or_default();
        let json = serde_json::from_slice::<Value>(body).unwrap_or_default();
        // Only what looks like a code is taken for one, since it is shown.
        let code = json["error_code"].as_str().unwrap_or_default();
        let plain = code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
        Self {
            code: if plain { code.to_owned() } else { String::new() },
            text: String::from_utf8_lossy(body).into_owned(),
        }
    }

    fn code(&self) -> &str {
        &self.code
    }

    fn says(&self, words: &str) -> bool {
        self.text.contains(words)
    }
}

#[cfg(test)]
mod tests;
