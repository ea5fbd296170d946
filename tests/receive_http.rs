//! OTLP over HTTP, seen from outside.

mod receive_support;

use std::time::Duration;

use receive_support::{Answer, MIB, NESTED, PROTOBUF, answer, curl, exchange, gzip, open, post, until, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracespool::intake::{Door, Refusal};

const TYPE: (&str, &str) = ("Content-Type", PROTOBUF);
const JSON: (&str, &str) = ("Content-Type", "application/json");

fn is_status(answer: &Answer, status: u16, code: i32) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some(PROTOBUF));
    let body = answer.status_protobuf();
    assert_eq!(body.code, code, "{body:?}");
    assert!(!body.message.is_empty());
}

/// Goal: nobody is told "taken" before the record is durable.
#[tokio::test]
async fn the_answer_waits_for_the_disk() {
    let mut doors = open(MIB, 16 * MIB);
    let mut stream = TcpStream::connect(doors.address).await.expect("a connection");
    let labels = [TYPE, ("X-MLflow-Experiment-Id", "7"), ("X-MLFLOW-WORKSPACE", "search")];
    stream.write_all(&post("/v1/traces", &labels, NESTED)).await.expect("it is sent");
    let job = doors.job().await;
    let mut byte = [0];
    let early = stream.try_read(&mut byte).expect_err("no answer yet");
    assert_eq!(early.kind(), std::io::ErrorKind::WouldBlock);

    let taken = &job.submissions[0];
    assert_eq!(taken.payload, NESTED);
    assert_eq!(taken.door, Door::Http);
    assert_eq!((taken.summary.spans, taken.summary.trace_ids.len()), (4, 1));
    assert_eq!((taken.experiment.as_deref(), taken.workspace.as_deref()), (Some("7"), Some("search")));
    assert_eq!(taken.peer_uid, None);
    assert!(doors.budget.used() > 0);

    job.answer.send(Ok(1..1 + 1)).expect("someone waits for it");
    let answer = answer(&mut stream).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some(PROTOBUF));
    assert_eq!(answer.header("content-length"), Some("0"));
    let totals = doors.totals();
    assert_eq!((totals.requests, totals.traces, totals.spans), (1, 1, 4));
    assert_eq!(totals.bytes, u64::try_from(NESTED.len()).expect("a length"));
    doors.all_is_given_back().await;
}

#[tokio::test]
async fn requests_without_spans_succeed_and_leave_nothing() {
    let mut doors = open(MIB, 16 * MIB);
    let empty_envelope = b"\x0a\x02\x12\x00";
    for body in [&b""[..], empty_envelope] {
        let answer = exchange(doors.address, &post("/v1/traces", &[TYPE], body)).await;
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b""[..]));
    }
    let answer = exchange(doors.address, &post("/v1/traces", &[JSON], b"{}")).await;
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"{}"[..]));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(doors.jobs.try_recv().is_err());
    assert_eq!(doors.totals().requests, 3);
}

#[tokio::test]
async fn json_is_stored_as_protobuf_and_answered_as_json() {
    const DOCUMENT: &[u8] = include_bytes!("data/nested.otlp.json");
    let mut doors = open(MIB, 16 * MIB);
    let mut taken = doors.take_all();
    let media_type = ("Content-Type", "Application/JSON; charset=utf-8");
    // The second is long enough to be worked on aside.
    let padded = [&b" ".repeat(100 << 10)[..], DOCUMENT].concat();
    for body in [DOCUMENT, &padded] {
        let answer = exchange(doors.address, &post("/v1/traces", &[media_type], body)).await;
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b"{}"[..]));
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let submission = within(taken.recv()).await.expect("a record");
        assert_eq!(submission.summary.spans, 4);
        let stored = tracespool::otlp::validate(&submission.payload).expect("it is a valid request");
        assert_eq!(stored, tracespool::otlp::validate(NESTED).expect("so is this"));
    }
    let wrong = exchange(doors.address, &post("/v1/traces", &[JSON], b"{\"resourceSpans\":[}")).await;
    assert_eq!((wrong.status, wrong.status_json().0), (400, 3));
    doors.all_is_given_back().await;
}

#[tokio::test]
async fn every_coding_and_framing_gives_the_same_payload() {
    let mut doors = open(MIB, 16 * MIB);
    let mut taken = doors.take_all();
    let zlib = {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut encoder, NESTED).expect("memory takes it");
        encoder.finish().expect("memory takes it")
    };
    let (one, two) = NESTED.split_at(100);
    let members = [gzip(one), gzip(two)].concat();
    let zstd = zstd::encode_all(NESTED, 3).expect("memory takes it");
    let bodies =
        [("identity", NESTED.to_vec()), ("gzip", gzip(NESTED)), ("GZIP", members), ("deflate", zlib), ("zstd", zstd)];
    for (coding, body) in &bodies {
        let request = post("/v1/traces", &[TYPE, ("Content-Encoding", coding)], body);
        assert_eq!(exchange(doors.address, &request).await.status, 200, "{coding}");
        assert_eq!(within(taken.recv()).await.expect("a record").payload, NESTED, "{coding}");
    }
    let url = doors.url("/v1/traces");
    let body = ["-H", "Content-Type: application/x-protobuf; x=y", "--data-binary", "@-"];
    for (options, version) in [
        (vec![], "1.1 200"),
        (vec!["-H", "Transfer-Encoding: chunked"], "1.1 200"),
        (vec!["-H", "Expect: 100-continue"], "1.1 200"),
        (vec!["--http1.0"], "1 200"),
        (vec!["--http2-prior-knowledge"], "2 200"),
    ] {
        let arguments = [&[url.as_str()][..], &body, &options].concat();
        let (status, answer) = curl(&arguments, NESTED).await;
        assert_eq!(status, version, "{options:?}");
        assert_eq!(answer, b"");
        assert_eq!(within(taken.recv()).await.expect("a record").payload, NESTED, "{options:?}");
    }
    let (status, _) = curl(&[&[doors.url("/").as_str()][..], &body].concat(), NESTED).await;
    assert_eq!(status, "1.1 200");
    doors.all_is_given_back().await;
}

#[tokio::test]
async fn requests_may_be_pipelined() {
    let mut doors = open(MIB, 16 * MIB);
    let mut taken = doors.take_all();
    let mut stream = TcpStream::connect(doors.address).await.expect("a connection");
    let requests = post("/v1/traces", &[TYPE], NESTED).repeat(5);
    stream.write_all(&requests).await.expect("they are sent");
    for _ in 0..5 {
        assert_eq!(answer(&mut stream).await.status, 200);
        within(taken.recv()).await.expect("a record");
    }
}

#[tokio::test]
async fn what_is_not_served_is_refused_as_the_collector_does() {
    let doors = open(MIB, 16 * MIB);
    is_status(&exchange(doors.address, &post("/v1/spans", &[TYPE], b"")).await, 404, 12);
    for method in ["GET", "PUT", "DELETE"] {
        let request = format!("{method} /v1/traces HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let answer = exchange(doors.address, request.as_bytes()).await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")), "{method}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.status_json().0, 12);
    }
    for media_type in ["text/plain", "application/grpc-web", "application/grpc"] {
        let request = post("/v1/traces", &[("Content-Type", media_type)], b"");
        let answer = exchange(doors.address, &request).await;
        assert_eq!((answer.status, answer.status_json().0), (415, 12), "{media_type}");
    }
    let answer = exchange(doors.address, &post("/v1/traces", &[], b"")).await;
    assert_eq!(answer.status, 415);
    assert_eq!(doors.totals().invalid, 0);
}

#[tokio::test]
async fn wrong_data_is_refused_for_good() {
    let mut doors = open(MIB, 16 * MIB);
    let gzipped = ("Content-Encoding", "gzip");
    for (headers, body) in [
        (vec![TYPE], &b"\xff\xff\xff"[..]),
        (vec![TYPE], &NESTED[..NESTED.len() - 1]),
        (vec![TYPE, gzipped], NESTED),
        (vec![TYPE, ("Content-Encoding", "br")], NESTED),
        (vec![TYPE, ("X-MLflow-Experiment-Id", "two words")], NESTED),
    ] {
        is_status(&exchange(doors.address, &post("/v1/traces", &headers, body)).await, 400, 3);
    }
    let answer = exchange(doors.address, &post("/v1/traces", &[JSON, gzipped], b"{}")).await;
    assert_eq!((answer.status, answer.status_json().0), (400, 3));
    assert_eq!(doors.totals().invalid, 6);
    assert!(doors.jobs.try_recv().is_err());
    doors.all_is_given_back().await;
}

#[tokio::test]
async fn too_large_is_413_however_it_becomes_so() {
    let mut doors = open(MIB, 64 * MIB);
    let length = usize::try_from(MIB).expect("a length");
    // Announced, and nothing sent.
    let head = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: {PROTOBUF}\r\nContent-Length: {}\r\n\r\n",
        MIB + 1
    );
    is_status(&exchange(doors.address, head.as_bytes()).await, 413, 8);
    // Announced by a client that asks first: it gets the answer instead of the invitation to send, and as it will send
    // nothing, nobody waits for it.
    let head = head.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    let mut stream = TcpStream::connect(doors.address).await.expect("a connection");
    stream.write_all(head.as_bytes()).await.expect("it is sent");
    is_status(&answer(&mut stream).await, 413, 8);
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(2), stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok() && rest.is_empty(), "{ended:?} {rest:?}");
    // Sent whole before the answer is read.
    is_status(&exchange(doors.address, &post("/", &[TYPE], &vec![0; 8 * length])).await, 413, 8);
    // Not announced.
    let url = doors.url("/v1/traces");
    let options =
        ["-H", "Content-Type: application/x-protobuf", "-H", "Transfer-Encoding: chunked", "--data-binary", "@-"];
    let (status, _) = curl(&[&[url.as_str()][..], &options].concat(), &vec![0; length + 1]).await;
    assert_eq!(status, "1.1 413");
    // Unfolded, from a small body and from a larger one.
    let bomb = gzip(&vec![0; 32 * length]);
    is_status(&exchange(doors.address, &post("/", &[TYPE, ("Content-Encoding", "gzip")], &bomb)).await, 413, 8);
    let small = gzip(&vec![0; length + 1]);
    is_status(&exchange(doors.address, &post("/", &[TYPE, ("Content-Encoding", "gzip")], &small)).await, 413, 8);
    assert_eq!(doors.totals().too_large, 6);
    assert!(doors.jobs.try_recv().is_err());
    doors.all_is_given_back().await;
}

#[tokio::test]
async fn a_request_of_exactly_the_limit_is_taken() {
    let limit = u64::try_from(NESTED.len()).expect("a length");
    let mut doors = open(limit, 16 * MIB);
    let _taken = doors.take_all();
    let plain = post("/", &[TYPE], NESTED);
    assert_eq!(exchange(doors.address, &plain).await.status, 200);
    let gzipped = post("/", &[TYPE, ("Content-Encoding", "gzip")], &gzip(NESTED));
    assert_eq!(exchange(doors.address, &gzipped).await.status, 200);
}

#[tokio::test]
async fn what_the_intake_refuses_may_be_sent_again_soon() {
    let mut doors = open(MIB, 16 * MIB);
    for refusal in [Refusal::Full { max_bytes: 1 }, Refusal::DiskFull, Refusal::Stopping, Refusal::Failed] {
        let mut stream = TcpStream::connect(doors.address).await.expect("a connection");
        stream.write_all(&post("/v1/traces", &[TYPE], NESTED)).await.expect("it is sent");
        let job = doors.job().await;
        job.answer.send(Err(refusal)).expect("someone waits for it");
        let answer = answer(&mut stream).await;
        is_status(&answer, 503, 14);
        assert_eq!(answer.header("retry-after"), None);
    }
    let totals = doors.totals();
    assert_eq!((totals.full, totals.unavailable, totals.requests), (2, 2, 0));
}

/// Goal: past the budget requests are refused at once and not parked, and small ones still find room.
#[tokio::test]
async fn past_the_budget_large_requests_are_refused_and_small_ones_taken() {
    let mut doors = open(8 * MIB, 8 * MIB);
    let _taken = doors.take_all();
    // Seven eighths are for all: a request of 7 MiB that is not finished holds most of them.
    let mut slow = TcpStream::connect(doors.address).await.expect("a connection");
    let large = post("/", &[TYPE], &vec![0; 7 << 20]);
    let most = large.len() - (512 << 10);
    slow.write_all(&large[..most]).await.expect("most of it is sent");
    until(|| doors.budget.used() >= 6 * MIB + (511 << 10)).await;

    // Refused on what is announced together with what came, without waiting for the rest.
    let request = post("/", &[TYPE], &vec![0; 3 << 20]);
    let busy = exchange(doors.address, &request[..900 << 10]).await;
    is_status(&busy, 503, 14);
    assert_eq!(exchange(doors.address, &post("/", &[TYPE], NESTED)).await.status, 200);
    drop(slow);
    doors.all_is_given_back().await;
    assert_eq!(doors.totals().full, 1);
}

/// Goal: announcements cost nothing, and whoever leaves takes nothing with it.
#[tokio::test]
async fn announced_and_unfinished_bodies_cost_only_what_came() {
    let mut doors = open(64 * MIB, 16 * MIB);
    let head = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: {PROTOBUF}\r\nContent-Length: 67108864\r\n\r\nabc"
    );
    let mut clients = Vec::new();
    for _ in 0..64 {
        let mut client = TcpStream::connect(doors.address).await.expect("a connection");
        client.write_all(head.as_bytes()).await.expect("it is sent");
        clients.push(client);
    }
    until(|| doors.budget.used() >= 64 * 4096).await;
    assert!(doors.budget.used() < MIB);
    let _taken = doors.take_all();
    assert_eq!(exchange(doors.address, &post("/", &[TYPE], NESTED)).await.status, 200);
    drop(clients);
    doors.all_is_given_back().await;
}

#[tokio::test]
async fn a_record_is_written_though_its_client_left() {
    let mut doors = open(MIB, 16 * MIB);
    let mut stream = TcpStream::connect(doors.address).await.expect("a connection");
    stream.write_all(&post("/", &[TYPE], NESTED)).await.expect("it is sent");
    let job = doors.job().await;
    drop(stream);
    assert!(doors.budget.used() > 0);
    job.answer.send(Ok(1..1 + 1)).expect("the hand-over still waits");
    until(|| doors.totals().requests == 1).await;
    doors.all_is_given_back().await;
}

#[tokio::test]
async fn a_client_that_closed_its_sending_side_is_answered() {
    let mut doors = open(MIB, 16 * MIB);
    let mut stream = TcpStream::connect(doors.address).await.expect("a connection");
    stream.write_all(&post("/", &[TYPE], NESTED)).await.expect("it is sent");
    stream.shutdown().await.expect("half of it is closed");
    let job = doors.job().await;
    // Time for the doors to notice.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    job.answer.send(Ok(1..1 + 1)).expect("someone waits for it");
    assert_eq!(answer(&mut stream).await.status, 200);
    let mut rest = Vec::new();
    within(stream.read_to_end(&mut rest)).await.expect("the connection ends");
    assert!(rest.is_empty());
}

#[tokio::test]
async fn metrics_and_logs_are_answered_counted_and_dropped() {
    let mut doors = open(MIB, 16 * MIB);
    for path in ["/v1/metrics", "/v1/logs"] {
        let answer = exchange(doors.address, &post(path, &[TYPE], b"anything")).await;
        assert_eq!((answer.status, answer.body.len()), (200, 0));
        let answer = exchange(doors.address, &post(path, &[JSON], b"{}")).await;
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b"{}"[..]));
        let large = post(path, &[TYPE], &vec![0; (1 << 20) + 1]);
        assert_eq!(exchange(doors.address, &large).await.status, 413);
    }
    let totals = doors.totals();
    assert_eq!((totals.metrics, totals.logs, totals.requests), (2, 2, 0));
    assert!(doors.jobs.try_recv().is_err());
}

#[tokio::test]
async fn web_pages_are_kept_out() {
    let mut doors = open(MIB, 16 * MIB);
    let _taken = doors.take_all();
    let rebound = post("/", &[TYPE], NESTED);
    let rebound =
        String::from_utf8_lossy(&rebound[..rebound.len() - NESTED.len()]).replace("localhost", "evil.example");
    is_status(&exchange(doors.address, &[rebound.as_bytes(), NESTED].concat()).await, 403, 7);
    let foreign = post("/", &[TYPE, ("Origin", "https://evil.example")], NESTED);
    is_status(&exchange(doors.address, &foreign).await, 403, 7);
    let own = post("/", &[TYPE, ("Origin", "http://localhost")], NESTED);
    assert_eq!(exchange(doors.address, &own).await.status, 200);
}
