//! OTLP over gRPC.
//!
//! tonic makes and keeps the connection. The call itself is made here, because it is small and two of its details
//! matter: an answer without `grpc-status` must be told from a server's own UNKNOWN, and a malformed
//! `grpc-status-details-bin` is a panic in tonic 0.14 (`Status::from_header_map`), which would end the daemon. It also
//! saves the copies that a codec makes of every request.

use std::future::poll_fn;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE};
use http::{Method, Request, Version};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use url::Url;

use super::answer::{self, GrpcAnswer, Sent};
use super::connect::{self, Headers, TlsFiles};
use super::{Batch, BuildError, Failure, Outcome, USER_AGENT, encode};
use crate::config::{Compression, Remote};

const PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Bound on an answer ("OTLP specification, OTLP/gRPC Response").
const RESPONSE_BYTES: usize = 4 * 1024 * 1024;

/// Flag and length in front of every gRPC message.
const PREFIX_BYTES: usize = 5;

/// A handshake that takes longer than this will not come to an end.
const CONNECT: Duration = Duration::from_secs(10);

/// One OTLP/gRPC endpoint.
pub(super) struct OtlpGrpc {
    endpoint: Endpoint,
    headers: Headers,
    compression: Compression,
    timeout: Duration,
    /// Made by the first attempt, since it needs a runtime, and made anew after a time-out.
    channel: Mutex<Option<(u64, Channel)>>,
}

impl OtlpGrpc {
    /// # Errors
    /// An address that gRPC has no use for, headers that cannot be sent, TLS files that are of no use.
    pub(super) fn build(remote: &Remote, timeout: Duration) -> Result<Self, BuildError> {
        let target = target(&remote.endpoint)?;
        let endpoint = Endpoint::from_shared(target).and_then(|endpoint| endpoint.user_agent(USER_AGENT));
        let mut endpoint = endpoint
            .map_err(|error| BuildError::Endpoint(connect::root(&error)))?
            .tcp_nodelay(true)
            .tcp_keepalive(Some(Duration::from_secs(30)))
            .connect_timeout(timeout.min(CONNECT))
            .http2_max_header_list_size(64 * 1024);
        // No HTTP/2 pings: servers that count them close the connection ("gRPC, Keepalive").
        if remote.endpoint.scheme() == "https" {
            let tls = TlsFiles::read(&remote.tls)?;
            let mut config = ClientTlsConfig::new();
            config = match &tls.ca {
                Some(ca) => config.ca_certificate(Certificate::from_pem(ca)),
                None => config.with_native_roots(),
            };
            if let Some((cert, key)) = &tls.identity {
                config = config.identity(Identity::from_pem(cert, key));
            }
            endpoint = endpoint.tls_config(config).map_err(|error| BuildError::TlsSettings(connect::root(&error)))?;
        }
        let headers = Headers::build(&remote.headers, &remote.credentials)?;
        Ok(Self { endpoint, headers, compression: remote.compression, timeout, channel: Mutex::new(None) })
    }

    pub(super) fn headers(&self) -> &Headers {
        &self.headers
    }

    pub(super) async fn attempt(&self, batch: &Batch, deadline: Instant) -> Outcome {
        let sent = Sent { bytes: batch.bytes(), spans: batch.spans };
        let request = match self.request(batch).await {
            Ok(request) => request,
            Err(outcome) => return outcome,
        };
        let (number, channel) = self.channel();
        match timeout_at(deadline, call(channel, request)).await {
            Ok(Ok(answer)) => self.advise(answer::otlp_grpc(&answer, sent, SystemTime::now())),
            // tonic keeps the time that it sees in `grpc-timeout` too, and may be first to end the call.
            Ok(Err(outcome)) if Instant::now() < deadline => outcome,
            Ok(Err(_)) | Err(_) => {
                // The connection may lead nowhere, which the kernel notices only after a quarter of an hour. Other
                // attempts keep their hold on it and end as they may.
                self.forget(number);
                Outcome::timeout()
            }
        }
    }

    /// gRPC's C core calls an unknown compression INTERNAL, which nobody would trace back to a setting.
    fn advise(&self, mut outcome: Outcome) -> Outcome {
        if let Outcome::Refused { failure, doubtful: true } = &mut outcome
            && self.compression == Compression::Zstd
        {
            failure.advice = Some("the server may not know zstd: try `compression = \"gzip\"`");
        }
        outcome
    }

    async fn request(&self, batch: &Batch) -> Result<Request<Body>, Outcome> {
        let mut headers = self.headers.current().await?;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(TIMEOUT, grpc_timeout(self.timeout));
        let coding = encode::coding(self.compression);
        if let Some(coding) = coding {
            headers.insert(ENCODING, HeaderValue::from_static(coding));
        }
        connect::pass_on(batch, &mut headers);
        let body = encode::body(batch.requests.clone(), self.compression).await;
        let mut body = body.map_err(|error| Outcome::retry(Failure::new("io", error.to_string())))?;
        let Ok(length) = u32::try_from(body.len()) else {
            return Err(Outcome::TooLarge(Failure::new("RESOURCE_EXHAUSTED", "longer than a gRPC message can be")));
        };
        let mut prefix = BytesMut::with_capacity(PREFIX_BYTES);
        prefix.put_u8(u8::from(coding.is_some()));
        prefix.put_u32(length);
        body.prepend(prefix.freeze());

        let mut request = Request::new(Body::new(body));
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = http::Uri::from_static(PATH);
        *request.headers_mut() = headers;
        Ok(request)
    }

    fn channel(&self) -> (u64, Channel) {
        let mut slot = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert_with(|| (fastrand::u64(..), self.endpoint.connect_lazy())).clone()
    }

    fn forget(&self, number: u64) {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner).take_if(|(current, _)| *current == number);
    }
}

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// What tonic calls the address.
fn target(endpoint: &Url) -> Result<String, BuildError> {
    match endpoint.scheme() {
        "http" | "https" if endpoint.has_host() => Ok(endpoint.to_string()),
        "unix" if endpoint.path().starts_with('/') => {
            // A URL holds the path percent-encoded, a socket's name is plain.
            let plain = Url::parse(&format!("file://{}", endpoint.path())).ok().and_then(|url| url.to_file_path().ok());
            let plain = plain.and_then(|path| path.into_os_string().into_string().ok());
            plain
                .map(|path| format!("unix://{path}"))
                .ok_or_else(|| BuildError::Endpoint("is not a socket's path".into()))
        }
        "unix" => Err(BuildError::Endpoint("needs the absolute path of the socket: `unix:///path`".into())),
        other => Err(BuildError::Endpoint(format!("needs an http, https or unix address, not `{other}:`"))),
    }
}

/// The server may stop working on a request that nobody waits for. At most eight digits are allowed.
fn grpc_timeout(timeout: Duration) -> HeaderValue {
    let text = match timeout.as_millis() {
        millis @ 0..=99_999_999 => format!("{millis}m"),
        _ => format!("{}S", timeout.as_secs().min(99_999_999)),
    };
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("99999999S"))
}

async fn call(mut channel: Channel, request: Request<Body>) -> Result<GrpcAnswer, Outcome> {
    poll_fn(|cx| GrpcService::poll_ready(&mut channel, cx)).await.map_err(|error| connect::broken(&error))?;
    let response = GrpcService::call(&mut channel, request).await.map_err(|error| connect::broken(&error))?;
    let (head, mut body) = response.into_parts();
    let (mut message, mut trailers) = (BytesMut::new(), None::<HeaderMap>);
    let mut too_long = false;
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            // In an answer of headers only everything has been said.
            Err(_) if head.headers.contains_key("grpc-status") => break,
            Err(error) => return Err(connect::broken(&error)),
        };
        match frame.into_data() {
            // What is too long is read on to the trailers, which say whether the request was taken, but not kept.
            Ok(data) if too_long || message.len() + data.len() > RESPONSE_BYTES + PREFIX_BYTES => too_long = true,
            Ok(data) => message.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok().or(trailers),
        }
    }
    let message = if too_long { Err("it is longer than 4 MiB") } else { unframe(message.freeze()) };
    Ok(GrpcAnswer { status: head.status.as_u16(), headers: head.headers, trailers, message })
}

/// The one message of a unary answer.
fn unframe(mut body: Bytes) -> Result<Bytes, &'static str> {
    if body.len() < PREFIX_BYTES {
        return Err("there is no message");
    }
    let prefix = body.split_to(PREFIX_BYTES);
    if prefix[0] != 0 {
        return Err("it is compressed, which was not asked for");
    }
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    if usize::try_from(length) == Ok(body.len()) { Ok(body) } else { Err("it is not one whole message") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_become_targets() {
        for (endpoint, expected) in [
            ("http://localhost:4317", Some("http://localhost:4317/")),
            ("https://[::1]:4317", Some("https://[::1]:4317/")),
            ("unix:///run/otel.sock", Some("unix:///run/otel.sock")),
            ("unix:/run/my%20otel.sock", Some("unix:///run/my otel.sock")),
            ("unix:relative.sock", None),
            ("ftp://host", None),
        ] {
            assert_eq!(target(&Url::parse(endpoint).expect("url")).ok().as_deref(), expected, "{endpoint}");
        }
    }

    #[test]
    fn the_timeout_has_at_most_eight_digits() {
        for (timeout, expected) in [
            (Duration::from_millis(1500), "1500m"),
            (Duration::from_secs(99_999), "99999000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::MAX, "99999999S"),
        ] {
            assert_eq!(grpc_timeout(timeout), expected);
        }
    }

    #[test]
    fn only_one_whole_message_is_read() {
        let frame = |bytes: &'static [u8]| unframe(Bytes::from_static(bytes));
        assert_eq!(frame(b"\0\0\0\0\x02ab").expect("whole"), "ab");
        assert_eq!(frame(b"\0\0\0\0\0").expect("empty"), "");
        for broken in [&b""[..], b"\0\0\0\0", b"\0\0\0\0\x02a", b"\0\0\0\0\x01ab", b"\x01\0\0\0\x02ab"] {
            assert!(frame(broken).is_err(), "{broken:?}");
        }
    }
}
