//! OTLP over HTTP.

use std::time::{Duration, Instant};

use serde_json::json;
use tracespool::backend::{Backend, BuildError, Outcome};
use tracespool::config::{Compression, Credentials, Remote, Secret, Target, Tls};

use crate::support::{Authority, Server, batch, body, build, build_with, config, delivered, remote, retry, span_names};

fn otlp(server: &Server) -> Backend {
    build(Target::OtlpHttp(remote(server.url("/v1/traces"))))
}

#[tokio::test]
async fn a_batch_arrives_as_one_request_in_every_compression() {
    let server = Server::http(&json!({"/v1/traces": [{"status": 200}]}));
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let target = Target::OtlpHttp(Remote { compression, ..remote(server.url("/v1/traces")) });
        assert_eq!(build(target).attempt(&batch(&["a", "b", "c"])).await, delivered());
        let request = server.request();
        assert_eq!(request["method"], "POST");
        let headers = &request["headers"];
        assert_eq!(headers["content-type"], "application/x-protobuf");
        assert_eq!(headers["user-agent"], concat!("tracespool/", env!("CARGO_PKG_VERSION")));
        assert!(headers["content-length"].is_string() && headers["transfer-encoding"].is_null(), "{headers}");
        let sent = body(&request);
        let plain = match compression {
            Compression::None => sent,
            Compression::Gzip => {
                assert_eq!(headers["content-encoding"], "gzip");
                assert_eq!(request["left"], 0, "one member");
                sent
            }
            Compression::Zstd => {
                assert_eq!(headers["content-encoding"], "zstd");
                zstd::decode_all(&sent[..]).expect("zstd")
            }
        };
        assert_eq!(span_names(&plain), ["a", "b", "c"]);
    }
}

#[tokio::test]
async fn the_address_is_used_as_it_is() {
    let server = Server::http(&json!({"/x/y": [{"status": 200}]}));
    let backend = build(Target::OtlpHttp(remote(server.url("/x/y?key=1"))));
    assert_eq!(backend.attempt(&batch(&["a"])).await, delivered());
    assert_eq!(server.request()["path"], "/x/y?key=1");
}

#[tokio::test]
async fn a_large_batch_arrives_whole() {
    let server = Server::http(&json!({"/v1/traces": [{"status": 200}]}));
    let long = "x".repeat(300_000);
    let names = vec![long.as_str(); 10];
    for compression in [Compression::None, Compression::Gzip] {
        let target = Target::OtlpHttp(Remote { compression, ..remote(server.url("/v1/traces")) });
        assert_eq!(build(target).attempt(&batch(&names)).await, delivered());
        assert_eq!(span_names(&body(&server.request())), names);
    }
}

#[tokio::test]
async fn a_servers_wish_for_a_pause_is_heard_in_both_forms() {
    let date = "Sun, 06 Nov 2044 08:50:00 GMT";
    // Python's server tells its own Date, and the distant one is cut to ten minutes.
    let server = Server::http(&json!({"/v1/traces": [
        {"status": 429, "headers": {"Retry-After": "7"}},
        {"status": 503, "headers": {"Retry-After": date}},
        {"status": 503, "headers": {"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}},
        {"status": 504},
    ]}));
    let backend = otlp(&server);
    for (status, after) in [("429", Some(7)), ("503", Some(600)), ("503", None), ("504", None)] {
        let (failure, wish) = retry(backend.attempt(&batch(&["a"])).await);
        assert_eq!((failure.status.as_str(), wish), (status, after));
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let server = Server::http(&json!({
        "/v1/traces": [{"status": 302, "headers": {"Location": "/elsewhere"}}],
        "/elsewhere": [{"status": 200}],
    }));
    let outcome = otlp(&server).attempt(&batch(&["a"])).await;
    let Outcome::Blocked { failure, experiment_only: false } = outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.status, "302");
    assert_eq!(server.request()["path"], "/v1/traces");
    server.assert_idle();
}

#[tokio::test]
async fn a_success_counts_however_its_body_ends() {
    let protobuf = json!({"Content-Type": "application/x-protobuf"});
    let server = Server::http(&json!({"/v1/traces": [
        {"status": 200, "headers": protobuf, "body": "ab", "length": 100},
        {"status": 200, "headers": protobuf, "body": "x".repeat(1 << 16), "repeat": 1024},
        {"status": 200, "headers": protobuf, "length": 10, "hang": "body"},
        {"status": 200, "headers": {"Content-Encoding": "gzip"}, "body": "x"},
    ]}));
    let backend = build_with(Target::OtlpHttp(remote(server.url("/v1/traces"))), Duration::from_secs(1));
    for why in ["broke off", "longer than 4 MiB", "did not end in time", "compressed"] {
        let outcome = backend.attempt(&batch(&["a"])).await;
        let Outcome::Delivered { rejected_spans: 0, message: Some(message) } = outcome else {
            panic!("{why}: {outcome:?}")
        };
        assert!(message.contains(why), "{message}");
    }
}

#[tokio::test]
async fn a_failure_counts_however_its_body_ends() {
    let server = Server::http(&json!({"/v1/traces": [
        {"status": 503, "body": "ab", "length": 100},
        {"status": 503, "body": "x".repeat(1 << 16), "repeat": 1024},
    ]}));
    let backend = otlp(&server);
    for _ in 0..2 {
        assert_eq!(retry(backend.attempt(&batch(&["a"])).await).0.status, "503");
    }
}

#[tokio::test]
async fn a_server_that_never_answers_costs_one_timeout() {
    let server = Server::http(&json!({"/v1/traces": [{"hang": "answer"}]}));
    let backend = build_with(Target::OtlpHttp(remote(server.url("/v1/traces"))), Duration::from_secs(1));
    let begun = Instant::now();
    assert_eq!(retry(backend.attempt(&batch(&["a"])).await).0.status, "timeout");
    assert!(begun.elapsed() < Duration::from_secs(5));
    server.request();
    server.assert_idle();
}

#[tokio::test]
async fn a_reset_connection_is_tried_again_by_the_lane_only() {
    let server = Server::http(&json!({"/v1/traces": [{"reset": "now"}, {"status": 200}]}));
    let backend = otlp(&server);
    assert_eq!(retry(backend.attempt(&batch(&["a"])).await).0.status, "connect");
    server.request();
    server.assert_idle();
    assert_eq!(backend.attempt(&batch(&["a"])).await, delivered());
}

#[tokio::test]
async fn a_kept_connection_that_the_server_drops_costs_one_attempt() {
    let server = Server::http(&json!({"/v1/traces": [{"status": 200, "reset": "later"}, {"status": 200}]}));
    let backend = otlp(&server);
    assert_eq!(backend.attempt(&batch(&["a"])).await, delivered());
    assert_eq!(retry(backend.attempt(&batch(&["b"])).await).0.status, "connect");
    assert_eq!(backend.attempt(&batch(&["b"])).await, delivered());
    server.request();
    assert_eq!(span_names(&body(&server.request())), ["b"]);
}

#[tokio::test]
async fn connections_are_kept() {
    let server = Server::http(&json!({"/v1/traces": [{"status": 200}]}));
    let backend = otlp(&server);
    for _ in 0..3 {
        assert_eq!(backend.attempt(&batch(&["a"])).await, delivered());
    }
    let peers = (0..3).map(|_| server.request()["peer"].clone()).collect::<Vec<_>>();
    assert!(peers.iter().all(|peer| *peer == peers[0]), "{peers:?}");
}

#[tokio::test]
async fn nobody_at_the_address_is_told_with_advice() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
    let url = format!("http://{unused}/v1/traces").parse().expect("url");
    let (failure, after) = retry(build(Target::OtlpHttp(remote(url))).attempt(&batch(&["a"])).await);
    assert_eq!((failure.status.as_str(), after), ("connect", None));
    assert!(failure.message.contains("refused") && failure.advice.is_some(), "{failure:?}");
}

#[tokio::test]
async fn the_servers_words_come_along_but_not_our_secrets() {
    let server = Server::http(&json!({"/v1/traces": [{
        "status": 401,
        "headers": {"Content-Type": "application/json"},
        "body": "{\"code\":16,\"message\":\"bad token t0ps3cret, key kkkk-1\"}",
    }]}));
    let target = Target::OtlpHttp(Remote {
        headers: vec![("x-api-key".into(), Secret::new("kkkk-1"))],
        credentials: Credentials::Bearer(Secret::new("t0ps3cret")),
        ..remote(server.url("/v1/traces"))
    });
    let backend = build(target);
    let outcome = backend.attempt(&batch(&["a"])).await;
    let Outcome::Blocked { failure, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.message, "bad token ***, key ***");
    let headers = &server.request()["headers"];
    assert_eq!((&headers["authorization"], &headers["x-api-key"]), (&json!("Bearer t0ps3cret"), &json!("kkkk-1")));
    let debug = format!("{backend:?}");
    assert!(!debug.contains("t0ps3cret") && !debug.contains("kkkk"), "{debug}");
}

#[tokio::test]
async fn tls_trusts_the_given_authority_only_and_shows_the_clients_certificate() {
    let authority = Authority::new();
    let (cert, key, ca) = (authority.path("server.pem"), authority.path("server.key"), authority.path("ca.pem"));
    let server = Server::http_with(&json!({"/v1/traces": [{"status": 200}]}), &[&cert, &key, &ca]);
    let mut url = server.url("/v1/traces");
    url.set_scheme("https").expect("scheme");
    let client =
        Tls { ca: Some(ca), cert: Some(authority.path("client.pem")), key: Some(authority.path("client.key")) };

    let full = Remote { tls: client.clone(), ..remote(url.clone()) };
    assert_eq!(build(Target::OtlpHttp(full)).attempt(&batch(&["a"])).await, delivered());

    let anonymous = Remote { tls: Tls { ca: client.ca.clone(), ..Tls::default() }, ..remote(url.clone()) };
    assert_eq!(retry(build(Target::OtlpHttp(anonymous)).attempt(&batch(&["a"])).await).0.status, "connect");

    let stranger = Authority::new();
    let distrustful = Remote { tls: Tls { ca: Some(stranger.path("ca.pem")), ..client }, ..remote(url) };
    let (failure, _) = retry(build(Target::OtlpHttp(distrustful)).attempt(&batch(&["a"])).await);
    assert!(failure.advice.expect("advice").contains("tls.ca"), "{failure:?}");
}

#[test]
fn what_can_never_work_is_not_built() {
    let url = |text: &str| text.parse().expect("url");
    let build = |remote| Backend::build(&config(Target::OtlpHttp(remote), Duration::from_secs(1)));
    assert!(matches!(build(remote(url("unix:///x"))), Err(BuildError::Endpoint(_))));
    let half = Tls { cert: Some("/c".into()), ..Tls::default() };
    assert!(matches!(
        build(Remote { tls: half, ..remote(url("https://h")) }),
        Err(BuildError::TlsSettings(_) | BuildError::Tls { .. })
    ));
    let bad = vec![("content-length".to_owned(), Secret::new("1"))];
    assert!(matches!(build(Remote { headers: bad, ..remote(url("http://h")) }), Err(BuildError::Header { .. })));
}
