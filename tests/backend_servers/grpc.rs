//! OTLP over gRPC: C core where it can play the part, hyper where the answer breaks the protocol.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tracespool::backend::{Backend, Outcome};
use tracespool::config::{Compression, Credentials, Remote, Secret, Target, Tls};
use url::Url;

use crate::support::{Authority, Server, batch, build, build_with, delivered, remote, retry};

const LOOPBACK: &str = "127.0.0.1:0";

fn serve(script: &Value) -> Server {
    Server::grpc(script, LOOPBACK, &[])
}

fn otlp(server: &Server) -> Backend {
    build(Target::OtlpGrpc(remote(server.url("/"))))
}

#[tokio::test]
async fn a_batch_arrives_as_one_request_with_its_metadata() {
    let server = serve(&json!([{}]));
    for compression in [Compression::None, Compression::Gzip] {
        let target = Target::OtlpGrpc(Remote {
            compression,
            headers: vec![("X-Team".into(), Secret::new("search"))],
            credentials: Credentials::Bearer(Secret::new("token")),
            ..remote(server.url("/"))
        });
        assert_eq!(build(target).attempt(&batch(&["a", "b", "c"])).await, delivered());
        let call = server.request();
        assert_eq!(call["spans"], json!(["a", "b", "c"]));
        assert_eq!(call["metadata"]["x-team"], "search");
        assert_eq!(call["metadata"]["authorization"], "Bearer token");
        let agent = call["metadata"]["user-agent"].as_str().expect("agent");
        assert!(agent.starts_with(concat!("tracespool/", env!("CARGO_PKG_VERSION"))), "{agent}");
        assert!(call["remaining"].as_f64().is_some_and(|left| left < 21.0), "{call}");
    }
}

#[tokio::test]
async fn a_compression_that_the_server_does_not_know_is_suspected() {
    // gRPC's C core answers INTERNAL to it, where others answer UNIMPLEMENTED.
    let server = serve(&json!([{}]));
    let target = Target::OtlpGrpc(Remote { compression: Compression::Zstd, ..remote(server.url("/")) });
    let outcome = build(target).attempt(&batch(&["a"])).await;
    let Outcome::Refused { failure, doubtful: true } = outcome else { panic!("{outcome:?}") };
    assert!(failure.advice.expect("advice").contains("compression"));
}

#[tokio::test]
async fn a_large_batch_arrives_whole() {
    let server = serve(&json!([{}]));
    let long = "x".repeat(300_000);
    let names = vec![long.as_str(); 10];
    assert_eq!(otlp(&server).attempt(&batch(&names)).await, delivered());
    assert_eq!(server.request()["spans"], json!(names));
}

#[tokio::test]
async fn a_message_over_the_servers_limit_is_too_large() {
    let server = serve(&json!([{}]));
    let outcome = otlp(&server).attempt(&batch(&["x".repeat(5 << 20).as_str()])).await;
    assert!(matches!(&outcome, Outcome::TooLarge(failure) if failure.status == "RESOURCE_EXHAUSTED"), "{outcome:?}");
}

#[tokio::test]
async fn a_real_servers_codes_come_through() {
    let server = serve(&json!([
        {"code": 14, "message": "böse\nZeit"},
        {"code": 8, "retry_seconds": 9},
        {"code": 8},
        {"code": 3, "message": "bad id"},
        {"code": 16},
        {"rejected": 1, "message": "one is bad"},
        {"rejected": 2, "message": "all are bad"},
        {"raw": "garbage"},
    ]));
    let backend = otlp(&server);
    let attempt = async || backend.attempt(&batch(&["a", "b"])).await;
    let (failure, after) = retry(attempt().await);
    assert_eq!((failure.status.as_str(), failure.message.as_str(), after), ("UNAVAILABLE", "böse Zeit", None));
    assert_eq!(retry(attempt().await).1, Some(9));
    assert_eq!(retry(attempt().await).1, None);
    assert!(matches!(attempt().await, Outcome::Refused { doubtful: false, .. }));
    assert!(matches!(attempt().await, Outcome::Blocked { .. }));
    assert_eq!(attempt().await, Outcome::Delivered { rejected_spans: 1, message: Some("one is bad".into()) });
    assert!(matches!(attempt().await, Outcome::Refused { doubtful: false, .. }));
    assert!(matches!(attempt().await, Outcome::Delivered { rejected_spans: 0, message: Some(_) }));
}

#[tokio::test]
async fn a_timeout_is_ours_and_the_next_attempt_takes_a_new_connection() {
    let server = serve(&json!([{"hang": true}, {}]));
    let backend = build_with(Target::OtlpGrpc(remote(server.url("/"))), Duration::from_secs(2));
    assert_eq!(retry(backend.attempt(&batch(&["a"])).await).0.status, "timeout");
    assert_eq!(backend.attempt(&batch(&["a"])).await, delivered());
    let (first, second) = (server.request(), server.request());
    assert_ne!(first["peer"], second["peer"]);
}

#[tokio::test]
async fn a_server_that_goes_and_comes_back_is_found_again() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("otel socket");
    let address = format!("unix:{}", path.display());
    let server = Server::grpc(&json!([{}]), &address, &[]);
    let endpoint = Url::parse(&format!("unix://{}", path.display())).expect("url");
    let backend = build(Target::OtlpGrpc(remote(endpoint)));
    assert_eq!(backend.attempt(&batch(&["a"])).await, delivered());
    drop(server);
    let (failure, _) = retry(backend.attempt(&batch(&["a"])).await);
    assert_eq!(failure.status, "connect");
    let _server = Server::grpc(&json!([{}]), &address, &[]);
    assert_eq!(backend.attempt(&batch(&["a"])).await, delivered());
}

#[tokio::test]
async fn nobody_at_the_address_is_told_with_advice() {
    let unused = std::net::TcpListener::bind(LOOPBACK).expect("bind").local_addr().expect("address");
    let url = format!("http://{unused}").parse().expect("url");
    let (failure, _) = retry(build(Target::OtlpGrpc(remote(url))).attempt(&batch(&["a"])).await);
    assert_eq!(failure.status, "connect");
    assert!(failure.message.contains("refused") && failure.advice.is_some(), "{failure:?}");
}

#[tokio::test]
async fn tls_trusts_the_given_authority_only_and_shows_the_clients_certificate() {
    let authority = Authority::new();
    let (cert, key, ca) = (authority.path("server.pem"), authority.path("server.key"), authority.path("ca.pem"));
    let files: [&Path; 3] = [&cert, &key, &ca];
    let server = Server::grpc(&json!([{}]), LOOPBACK, &files);
    let mut url = server.url("/");
    url.set_scheme("https").expect("scheme");
    let client =
        Tls { ca: Some(ca.clone()), cert: Some(authority.path("client.pem")), key: Some(authority.path("client.key")) };

    let full = Remote { tls: client.clone(), ..remote(url.clone()) };
    assert_eq!(build(Target::OtlpGrpc(full)).attempt(&batch(&["a"])).await, delivered());

    let anonymous = Remote { tls: Tls { ca: client.ca.clone(), ..Tls::default() }, ..remote(url.clone()) };
    assert_eq!(retry(build(Target::OtlpGrpc(anonymous)).attempt(&batch(&["a"])).await).0.status, "connect");

    let stranger = Authority::new();
    let distrustful = Remote { tls: Tls { ca: Some(stranger.path("ca.pem")), ..client }, ..remote(url) };
    let (failure, _) = retry(build(Target::OtlpGrpc(distrustful)).attempt(&batch(&["a"])).await);
    assert!(failure.advice.expect("advice").contains("tls.ca"), "{failure:?}");
}

/// Serves one kind of answer over HTTP/2: status, headers, body, trailers.
async fn broken_server(
    status: u16,
    headers: &[(&'static str, &str)],
    body: Bytes,
    trailers: &[(&'static str, &str)],
) -> Url {
    let map = |list: &[(&'static str, &str)]| {
        list.iter()
            .map(|(name, value)| (name.parse().expect("name"), value.parse().expect("value")))
            .collect::<HeaderMap>()
    };
    let (headers, trailers) = (map(headers), map(trailers));
    let listener = TcpListener::bind(LOOPBACK).await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (headers, trailers, body) = (headers.clone(), trailers.clone(), body.clone());
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let (headers, trailers, body) = (headers.clone(), trailers.clone(), body.clone());
                async move {
                    let _ = request.into_body().collect().await;
                    let trailers = (!trailers.is_empty()).then_some(Ok(trailers));
                    let mut response = Response::new(Full::new(body).with_trailers(std::future::ready(trailers)));
                    *response.status_mut() = http::StatusCode::from_u16(status).expect("status");
                    *response.headers_mut() = headers;
                    Ok::<_, Infallible>(response)
                }
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
        }
    });
    format!("http://{address}").parse().expect("url")
}

async fn broken(
    status: u16,
    headers: &[(&'static str, &str)],
    body: Bytes,
    trailers: &[(&'static str, &str)],
) -> Outcome {
    let url = broken_server(status, headers, body, trailers).await;
    build(Target::OtlpGrpc(remote(url))).attempt(&batch(&["a"])).await
}

const NOTHING: Bytes = Bytes::from_static(b"\0\0\0\0\0");
const GRPC: (&str, &str) = ("content-type", "application/grpc");

#[tokio::test]
async fn an_answer_without_grpc_status_is_tried_again() {
    for (body, trailers) in [(NOTHING, &[][..]), (Bytes::new(), &[]), (NOTHING, &[("x", "y")])] {
        let (failure, _) = retry(broken(200, &[GRPC], body, trailers).await);
        assert_eq!(failure.status, "protocol");
        assert!(failure.advice.is_some());
    }
    let (failure, _) = retry(broken(200, &[("content-type", "text/html")], "<html>".into(), &[]).await);
    assert_eq!(failure.status, "protocol");
}

#[tokio::test]
async fn an_unknown_of_the_servers_own_is_a_refusal() {
    let outcome = broken(200, &[GRPC], Bytes::new(), &[("grpc-status", "2"), ("grpc-message", "50%25 of 100%")]).await;
    let Outcome::Refused { failure, doubtful: true } = outcome else { panic!("{outcome:?}") };
    assert_eq!((failure.status.as_str(), failure.message.as_str()), ("UNKNOWN", "50% of 100%"));
}

#[tokio::test]
async fn malformed_details_are_ignored() {
    for details in ["!!! not base64", "AAAA", ""] {
        let outcome =
            broken(200, &[GRPC], Bytes::new(), &[("grpc-status", "14"), ("grpc-status-details-bin", details)]).await;
        assert_eq!(retry(outcome).0.status, "UNAVAILABLE", "{details}");
        let outcome =
            broken(200, &[GRPC, ("grpc-status", "14"), ("grpc-status-details-bin", details)], Bytes::new(), &[]).await;
        assert_eq!(retry(outcome).0.status, "UNAVAILABLE", "{details}");
    }
}

#[tokio::test]
async fn a_proxys_status_means_what_it_means_over_http() {
    let outcome = broken(413, &[], Bytes::new(), &[]).await;
    assert!(matches!(outcome, Outcome::TooLarge(_)), "{outcome:?}");
    let outcome = broken(404, &[("content-type", "text/html")], "<html>".into(), &[]).await;
    assert!(matches!(outcome, Outcome::Blocked { .. }), "{outcome:?}");
    assert_eq!(retry(broken(503, &[("retry-after", "11")], Bytes::new(), &[]).await).1, Some(11));
}

#[tokio::test]
async fn an_answer_of_any_length_is_judged_by_its_status() {
    let huge = Bytes::from(vec![0; 16 << 20]);
    let outcome = broken(200, &[GRPC], huge.clone(), &[("grpc-status", "0")]).await;
    let Outcome::Delivered { rejected_spans: 0, message: Some(message) } = outcome else { panic!("{outcome:?}") };
    assert!(message.contains("longer than 4 MiB"), "{message}");
    assert_eq!(retry(broken(200, &[GRPC], huge, &[("grpc-status", "14")]).await).0.status, "UNAVAILABLE");
}
