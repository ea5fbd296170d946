//! Who may come in, and what is kept of what they send: tokens, TLS, kept headers, loops, other signals, bare refusals.

mod receive_support;

use std::path::{Path, PathBuf};
use std::process::Command;

use receive_support::{
    EXPORT, Http2, MIB, NESTED, OWN_ID, PROTOBUF, curl, exchange, framed, open, open_as, post, within,
};
use tracespool::config::{OtherSignals, Receive, ServerTls};

const TYPE: (&str, &str) = ("Content-Type", PROTOBUF);

#[tokio::test]
async fn a_token_opens_the_listeners_and_only_the_token() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("token");
    std::fs::write(&file, "s3cret\n").expect("written");
    let mut doors = open_as(MIB, 16 * MIB, |config| config.token_file = Some(file));
    let _taken = doors.take_all();
    for (headers, status) in [
        (&[TYPE][..], 401),
        (&[TYPE, ("Authorization", "Bearer wrong")], 401),
        (&[TYPE, ("Authorization", "Bearer s3cret")], 200),
    ] {
        let answer = exchange(doors.address, &post("/v1/traces", headers, NESTED)).await;
        assert_eq!(answer.status, status);
        if status == 401 {
            assert_eq!((answer.header("www-authenticate"), answer.status_protobuf().code), (Some("Bearer"), 16));
        }
    }
    let mut client = Http2::connect(doors.address).await;
    let called = client.call(EXPORT, &[], &framed(0, NESTED)).await;
    assert_eq!((called.status, called.message.contains("receive.token_file")), (16, true));
    let called = client.call(EXPORT, &[("authorization", "Bearer s3cret")], &framed(0, NESTED)).await;
    assert_eq!(called.status, 0);
    // Who may open the spool socket needs none.
    let socket = doors.socket.to_str().expect("a path");
    let content = format!("Content-Type: {PROTOBUF}");
    let arguments = ["--unix-socket", socket, "http://localhost/v1/traces", "-H", &content, "--data-binary", "@-"];
    assert_eq!(curl(&arguments, NESTED).await.0, "1.1 200");
}

/// An authority, a certificate for localhost, and one for a client, as openssl makes them.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn make() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let made = Self(directory);
        let openssl = |arguments: &[&str]| {
            let output = Command::new("openssl").current_dir(made.0.path()).args(arguments).output().expect("openssl");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        openssl(&[&new[..], &["-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem"]].concat());
        for (name, alternative) in [("server", "DNS:localhost,IP:127.0.0.1"), ("client", "DNS:client")] {
            let (key, cert) = (format!("{name}.key"), format!("{name}.pem"));
            let (subject, alternative) = (format!("/CN={name}"), format!("subjectAltName={alternative}"));
            let own = ["-CA", "ca.pem", "-CAkey", "ca.key", "-subj", &subject, "-addext", &alternative];
            let usual = ["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", &key, "-out", &cert];
            openssl(&[&new[..], &own, &usual].concat());
        }
        made
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn tls(&self, client_ca: bool) -> ServerTls {
        let client_ca = client_ca.then(|| self.path("ca.pem"));
        ServerTls { cert: self.path("server.pem"), key: self.path("server.key"), client_ca }
    }
}

#[tokio::test]
async fn tls_is_spoken_in_both_versions_of_http() {
    let certificates = Certificates::make();
    let mut doors = open_as(MIB, 16 * MIB, |config| config.tls = Some(certificates.tls(false)));
    let mut taken = doors.take_all();
    let url = format!("https://localhost:{}/v1/traces", doors.address.port());
    let ca = certificates.path("ca.pem");
    let ca = ca.to_str().expect("a path");
    let content = format!("Content-Type: {PROTOBUF}");
    for (version, status) in [("--http1.1", "1.1 200"), ("--http2", "2 200")] {
        let arguments = [version, "--cacert", ca, "-H", &content, "--data-binary", "@-", &url];
        assert_eq!(curl(&arguments, NESTED).await.0, status);
        assert_eq!(within(taken.recv()).await.expect("a record").payload.as_ref(), NESTED);
    }
    // Whoever speaks no TLS is let go, and disturbs nobody.
    let plain = doors.url("/v1/traces");
    assert_eq!(curl(&[&plain, "-H", &content, "--data-binary", "@-"], NESTED).await.0, "0 000");
    let arguments = ["--cacert", ca, "-H", &content, "--data-binary", "@-", &url];
    assert!(curl(&arguments, NESTED).await.0.ends_with(" 200"));
}

#[tokio::test]
async fn clients_show_a_certificate_where_one_is_asked_for() {
    let certificates = Certificates::make();
    let mut doors = open_as(MIB, 16 * MIB, |config| config.tls = Some(certificates.tls(true)));
    let _taken = doors.take_all();
    let url = format!("https://localhost:{}/v1/traces", doors.address.port());
    let path = |name: &str| certificates.path(name).to_str().expect("a path").to_owned();
    let (ca, cert, key) = (path("ca.pem"), path("client.pem"), path("client.key"));
    let content = format!("Content-Type: {PROTOBUF}");
    let usual = ["--cacert", &ca, "-H", &content, "--data-binary", "@-", &url];
    assert!(curl(&usual, NESTED).await.0.ends_with(" 000"));
    let with_certificate = [&["--cert", &cert, "--key", &key][..], &usual].concat();
    assert!(curl(&with_certificate, NESTED).await.0.ends_with(" 200"));
}

#[tokio::test]
async fn tls_files_that_are_of_no_use_are_named() {
    let certificates = Certificates::make();
    let bind = |cert: &Path, key: &Path, ca: &Path| {
        let directory = tempfile::tempdir().expect("a directory");
        let mut config = receive_support::receive(directory.path(), MIB, 16 * MIB);
        config.tls = Some(ServerTls { cert: cert.into(), key: key.into(), client_ca: Some(ca.into()) });
        tracespool::receive::Doors::bind(&config, tracespool::receive::Inherited::default())
            .map(drop)
            .map_err(|error| error.to_string())
    };
    let [cert, key, ca] = ["server.pem", "server.key", "ca.pem"].map(|name| certificates.path(name));
    assert_eq!(bind(&cert, &key, &ca), Ok(()));
    for (problem, name) in [
        (bind(&key, &key, &ca), "server.key: holds no certificate"),
        (bind(&cert, &cert, &ca), "server.pem: holds no key"),
        (bind(&cert, &certificates.path("ca.key"), &ca), "ca.key"),
        (bind(&cert, &key, &key), "server.key: holds no certificate"),
        (bind(&cert, &key, &certificates.path("none")), "none"),
    ] {
        let problem = problem.expect_err(name);
        assert!(problem.contains(name), "{problem}");
    }
}

#[tokio::test]
async fn chosen_headers_are_kept_and_no_others() {
    let keep = |config: &mut Receive| config.keep_headers = vec!["x-team".into(), "x-tenant".into()];
    let mut doors = open_as(MIB, 16 * MIB, keep);
    let mut taken = doors.take_all();
    let headers = [TYPE, ("X-Tenant", "t"), ("X-Other", "o"), ("X-Team", "b"), ("x-team", "a"), ("Cookie", "c")];
    let answer = exchange(doors.address, &post("/v1/traces", &headers, NESTED)).await;
    assert_eq!((answer.status, answer.header("x-tracespool-record")), (200, Some("1")));
    let kept = within(taken.recv()).await.expect("a record").headers;
    let kept: Vec<_> = kept.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(kept, [("x-team", "b"), ("x-team", "a"), ("x-tenant", "t")]);
    let mut client = Http2::connect(doors.address).await;
    assert_eq!(client.call(EXPORT, &[("x-team", "g"), ("x-other", "o")], &framed(0, NESTED)).await.status, 0);
    let kept = within(taken.recv()).await.expect("a record").headers;
    assert_eq!(kept, [("x-team".to_owned(), "g".to_owned())]);
    // What cannot be kept is not dropped in silence.
    let long = "x".repeat(3000);
    let answer = exchange(doors.address, &post("/v1/traces", &[TYPE, ("X-Team", &long)], NESTED)).await;
    assert_eq!(answer.status, 400);
    let answer = exchange(doors.address, &post("/v1/traces", &[TYPE, ("X-Team", "é")], NESTED)).await;
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn what_has_been_here_before_is_refused() {
    let mut doors = open(MIB, 16 * MIB);
    let mut taken = doors.take_all();
    let via = |value: &str| post("/v1/traces", &[TYPE, ("X-Tracespool-Via", value)], NESTED);
    let answer = exchange(doors.address, &via("aa, bb")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(within(taken.recv()).await.expect("a record").via, ["aa", "bb"]);
    let looped = format!("aa,{OWN_ID}");
    let answer = exchange(doors.address, &via(&looped)).await;
    let status = answer.status_protobuf();
    assert_eq!((answer.status, status.code), (403, 7));
    assert!(status.message.contains("x-tracespool-via") && status.message.contains("ship to each other"), "{status:?}");
    let mut client = Http2::connect(doors.address).await;
    assert_eq!(client.call(EXPORT, &[("x-tracespool-via", OWN_ID)], &framed(0, NESTED)).await.status, 7);
    assert_eq!(exchange(doors.address, &via("no id!")).await.status, 400);
    assert_eq!((doors.totals().looped, doors.totals().requests), (2, 1));
}

#[tokio::test]
async fn other_signals_are_refused_where_the_operator_says_so() {
    let doors = open_as(MIB, 16 * MIB, |config| config.other_signals = OtherSignals::Refuse);
    for path in ["/v1/metrics", "/v1/logs"] {
        let answer = exchange(doors.address, &post(path, &[TYPE], b"")).await;
        assert_eq!((answer.status, answer.status_protobuf().code), (404, 12));
    }
    let mut client = Http2::connect(doors.address).await;
    let metrics = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
    assert_eq!(client.call(metrics, &[], &framed(0, b"")).await.status, 12);
    assert_eq!((doors.totals().metrics, doors.totals().logs), (0, 0));
}

/// Goal: also what never becomes a request is refused with a Status in the body.
#[tokio::test]
async fn what_is_no_http_is_refused_with_a_status() {
    let doors = open(MIB, 16 * MIB);
    let long = format!("POST / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(100 << 10));
    for (request, status) in [
        (&b"hello, are you there?\r\n\r\n"[..], 400),
        (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (long.as_bytes(), 431),
    ] {
        let answer = exchange(doors.address, request).await;
        assert_eq!((answer.status, answer.header("content-type")), (status, Some("application/json")));
        assert!(!answer.status_json().1.is_empty());
    }
}
