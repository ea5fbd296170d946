//! OTLP over gRPC: the protocol of one unary call, spoken directly on HTTP/2.
//!
//! Only what a unary call needs ("gRPC over HTTP2"): one length-prefixed message in, one message and the trailers out.

use std::fmt::Write;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, Version};
use http_body::Body;

use super::body::Inbound;
use super::coding::Coding;
use super::hand_over::{Form, Labels, Parcel, hand_over};
use super::http::media_type;
use super::refusal::{Code, Problem};
use super::reply::Reply;
use super::service::{Peer, Signal, count_dropped};
use super::{Reception, size};
use crate::intake::{Door, Refusal};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// A flag byte and a length of four bytes stand before each message.
const PREFIX: usize = 5;

/// Is this a gRPC call? Others, such as gRPC-Web, only look alike.
pub(super) fn is_call(head: &Parts) -> bool {
    let media_type = media_type(&head.headers);
    head.method == Method::POST
        && (media_type.eq_ignore_ascii_case("application/grpc")
            || media_type.eq_ignore_ascii_case("application/grpc+proto"))
}

/// Answers one call.
pub(super) async fn handle<B>(
    reception: &Reception,
    peer: &Peer,
    head: &Parts,
    body: &mut Inbound<B>,
) -> Result<Response<Reply>, Problem>
where
    B: Body<Data = Bytes> + Unpin,
{
    let signal = signal(head.uri.path())
        .filter(|signal| reception.serves(*signal))
        .ok_or_else(|| Problem::unimplemented("only Export of the OpenTelemetry collector services is served"))?;
    let limit = reception.max_request_bytes;
    if signal == Signal::Traces {
        let coding = coding(&head.headers)?;
        let labels = Labels::read(&head.headers, reception)?;
        let mut charge = reception.budget.open()?;
        let framed = limit.saturating_add(size(PREFIX));
        let body = body.read(framed, &mut charge, |head| framed_length(head, limit)).await?;
        let (body, coding) = message(body, coding)?;
        let (door, form, peer_uid) = (Door::Grpc, Form::Protobuf, peer.uid());
        hand_over(reception, Parcel { body, coding, form, door, labels, peer_uid, charge }).await?;
    } else {
        body.discard(limit.saturating_add(size(PREFIX))).await?;
        count_dropped(&reception.received, signal);
    }
    Ok(success())
}

/// One empty message: an `Export...ServiceResponse` in which nothing is set.
fn success() -> Response<Reply> {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    answer(Reply::data(&[0; PREFIX][..]).with_trailers(trailers))
}

/// The answer in one block of headers that gRPC calls "Trailers-Only".
pub(super) fn refusal(problem: &Problem) -> Response<Reply> {
    let mut response = answer(Reply::empty());
    let headers = response.headers_mut();
    headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(problem.grpc.number())));
    if let Ok(message) = HeaderValue::from_str(&percent_encoded(&problem.message)) {
        headers.insert(GRPC_MESSAGE, message);
    }
    if problem.grpc == Code::Unimplemented {
        headers.insert(GRPC_ACCEPT_ENCODING, HeaderValue::from_static(Coding::ACCEPTED));
    }
    response
}

fn answer(body: Reply) -> Response<Reply> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// gRPC ends in trailers, which HTTP/1.1 has no way to promise.
pub(super) fn refuse_version(head: &Parts) -> Result<(), Problem> {
    if head.version == Version::HTTP_2 {
        Ok(())
    } else {
        Err(Problem::unsupported_media_type("gRPC needs HTTP/2; over HTTP/1.1 send application/x-protobuf"))
    }
}

fn signal(path: &str) -> Option<Signal> {
    match path {
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export" => Some(Signal::Traces),
        "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export" => Some(Signal::Metrics),
        "/opentelemetry.proto.collector.logs.v1.LogsService/Export" => Some(Signal::Logs),
        _ => None,
    }
}

fn coding(headers: &HeaderMap) -> Result<Coding, Problem> {
    headers
        .get(GRPC_ENCODING)
        .map_or(Some(Coding::Identity), |name| name.to_str().ok().and_then(Coding::named))
        .ok_or_else(|| Problem::unimplemented(format!("the grpc-encoding must be one of {}", Coding::ACCEPTED)))
}

/// How long prefix and message will be, as soon as the prefix is there. A message that is announced over the limit is
/// refused then and there.
fn framed_length(head: &[u8], limit: u64) -> Result<Option<u64>, Problem> {
    let Some((_, length)) = prefix(head) else { return Ok(None) };
    if length > limit {
        return Err(Refusal::TooLarge { limit }.into());
    }
    Ok(Some(size(PREFIX) + length))
}

fn prefix(head: &[u8]) -> Option<(u8, u64)> {
    match head {
        [flag, a, b, c, d, ..] => Some((*flag, u64::from(u32::from_be_bytes([*a, *b, *c, *d])))),
        _ => None,
    }
}

/// Takes the one message out of the body, and says how it is compressed: a message may be sent as it is although the
/// call names an encoding.
fn message(body: Bytes, encoding: Coding) -> Result<(Bytes, Coding), Problem> {
    let Some((flag, length)) = prefix(&body) else {
        return Err(Problem::invalid("the call ended without a whole message"));
    };
    if size(body.len() - PREFIX) != length {
        return Err(Problem::invalid("the call ended within its message, or has more than one"));
    }
    let coding = match (flag, encoding) {
        (0, _) => Coding::Identity,
        // "gRPC Compression": a server answers INTERNAL to this.
        (1, Coding::Identity) => return Err(Problem::grpc_protocol("a compressed message without a grpc-encoding")),
        (1, encoding) => encoding,
        _ => return Err(Problem::grpc_protocol("the flags of the message are neither 0 nor 1")),
    };
    Ok((body.slice(PREFIX..), coding))
}

/// `grpc-message` is UTF-8 in which everything but printable ASCII, and the percent sign, is percent-encoded.
fn percent_encoded(message: &str) -> String {
    let mut encoded = String::with_capacity(message.len());
    for byte in message.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services() {
        assert_eq!(signal("/opentelemetry.proto.collector.trace.v1.TraceService/Export"), Some(Signal::Traces));
        assert_eq!(signal("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"), Some(Signal::Metrics));
        assert_eq!(signal("/opentelemetry.proto.collector.logs.v1.LogsService/Export"), Some(Signal::Logs));
        assert_eq!(signal("/opentelemetry.proto.collector.trace.v1.TraceService/Import"), None);
        assert_eq!(signal("/v1/traces"), None);
    }

    #[test]
    fn the_announced_length_is_judged_before_the_message_is_there() {
        assert_eq!(framed_length(&[0, 0, 0, 0], 10), Ok(None));
        assert_eq!(framed_length(&[0, 0, 0, 0, 10], 10), Ok(Some(15)));
        assert_eq!(framed_length(&[0, 0, 0, 0, 11], 10), Err(Refusal::TooLarge { limit: 10 }.into()));
        assert_eq!(framed_length(&[1, 255, 255, 255, 255, 7], 10), Err(Refusal::TooLarge { limit: 10 }.into()));
    }

    fn taken(body: &'static [u8], coding: Coding) -> Result<(Bytes, Coding), Code> {
        message(Bytes::from_static(body), coding).map_err(|problem| problem.grpc)
    }

    #[test]
    fn one_whole_message_is_taken() {
        let abc = Bytes::from_static(b"abc");
        assert_eq!(taken(b"\0\0\0\0\x03abc", Coding::Identity), Ok((abc.clone(), Coding::Identity)));
        assert_eq!(taken(b"\0\0\0\0\x03abc", Coding::Gzip), Ok((abc.clone(), Coding::Identity)));
        assert_eq!(taken(b"\x01\0\0\0\x03abc", Coding::Gzip), Ok((abc, Coding::Gzip)));
        assert_eq!(taken(b"\0\0\0\0\0", Coding::Identity), Ok((Bytes::new(), Coding::Identity)));
    }

    #[test]
    fn anything_else_is_refused_for_good() {
        for body in [&b""[..], b"\0\0\0\0", b"\0\0\0\0\x03ab", b"\0\0\0\0\x03abcd", b"\0\0\0\0\x01a\0\0\0\0\x01b"] {
            assert_eq!(taken(body, Coding::Identity), Err(Code::InvalidArgument), "{body:?}");
        }
        assert_eq!(taken(b"\x01\0\0\0\x03abc", Coding::Identity), Err(Code::Internal));
        assert_eq!(taken(b"\x02\0\0\0\x03abc", Coding::Gzip), Err(Code::Internal));
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encoded("plain, with spaces ~"), "plain, with spaces ~");
        assert_eq!(percent_encoded("100%\n é"), "100%25%0A %C3%A9");
    }

    #[test]
    fn an_unknown_encoding_names_the_known_ones() {
        let mut headers = HeaderMap::new();
        headers.insert(GRPC_ENCODING, HeaderValue::from_static("snappy"));
        let problem = coding(&headers).expect_err("snappy is not known");
        let response = refusal(&problem);
        assert_eq!(response.headers().get("grpc-status"), Some(&HeaderValue::from_static("12")));
        assert_eq!(
            response.headers().get("grpc-accept-encoding"),
            Some(&HeaderValue::from_static("identity,deflate,gzip,zstd"))
        );
    }
}
