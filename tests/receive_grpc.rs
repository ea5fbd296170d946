//! OTLP over gRPC, seen from outside, down to the frames of the message.

mod receive_support;

use bytes::Bytes;
use receive_support::{Called, EXPORT, Http2, MIB, NESTED, curl, exchange, framed, gzip, open, post, until, within};
use tracespool::intake::{Door, Refusal};

const EMPTY_MESSAGE: &[u8] = &[0; 5];

#[tokio::test]
async fn the_answer_waits_for_the_disk() {
    let mut doors = open(MIB, 16 * MIB);
    let mut client = Http2::connect(doors.address).await;
    let (body, response) = client.begin(EXPORT, &[("x-mlflow-experiment-id", "7")]);
    let response = tokio::spawn(response);
    // In pieces, so that the prefix is cut too.
    let message = framed(0, NESTED);
    for piece in [&message[..3], &message[3..700], &message[700..]] {
        body.send(Bytes::copy_from_slice(piece)).await.expect("it is taken");
    }
    drop(body);
    let job = doors.job().await;
    assert!(!response.is_finished());
    assert_eq!(job.submissions[0].payload, NESTED);
    assert_eq!((job.submissions[0].door, job.submissions[0].summary.spans), (Door::Grpc, 4));
    assert_eq!(job.submissions[0].experiment.as_deref(), Some("7"));
    job.answer.send(Ok(1..1 + 1)).expect("someone waits for it");
    let response = within(response).await.expect("the call ends").expect("a response");
    let called = Called::read(response).await;
    assert_eq!((called.status, called.data.as_ref(), called.trailers_only), (0, EMPTY_MESSAGE, false));
    assert_eq!((doors.totals().requests, doors.totals().spans), (1, 4));
    doors.all_is_given_back().await;
}

#[tokio::test]
async fn every_encoding_gives_the_same_payload() {
    let mut doors = open(MIB, 16 * MIB);
    let mut taken = doors.take_all();
    let mut client = Http2::connect(doors.address).await;
    let (one, two) = NESTED.split_at(900);
    let zstd = zstd::encode_all(NESTED, 3).expect("memory takes it");
    for (encoding, message) in [
        ("identity", framed(0, NESTED)),
        ("gzip", framed(1, &gzip(NESTED))),
        ("gzip", framed(1, &[gzip(one), gzip(two)].concat())),
        ("gzip", framed(0, NESTED)),
        ("zstd", framed(1, &zstd)),
    ] {
        let called = client.call(EXPORT, &[("grpc-encoding", encoding)], &message).await;
        assert_eq!((called.status, called.data.as_ref()), (0, EMPTY_MESSAGE), "{encoding}: {called:?}");
        assert_eq!(within(taken.recv()).await.expect("a record").payload, NESTED, "{encoding}");
    }
    doors.all_is_given_back().await;
}

#[tokio::test]
async fn an_empty_request_succeeds() {
    let mut doors = open(MIB, 16 * MIB);
    let called = Http2::connect(doors.address).await.call(EXPORT, &[], &framed(0, b"")).await;
    assert_eq!((called.status, called.data.as_ref()), (0, EMPTY_MESSAGE));
    assert!(doors.jobs.try_recv().is_err());
}

#[tokio::test]
async fn too_large_is_resource_exhausted_without_a_hint_to_retry() {
    let mut doors = open(MIB, 64 * MIB);
    let mut client = Http2::connect(doors.address).await;
    let refused = |called: &Called| {
        assert_eq!(called.status, 8, "{called:?}");
        assert!(called.trailers_only);
        assert!(called.message.contains("receive.max_request_bytes"));
        assert!(!called.headers.contains_key("grpc-status-details-bin"));
        assert!(!called.headers.contains_key("google.rpc.retryinfo-bin"));
    };
    // Announced, and nothing sent: the answer does not wait for the message.
    let (body, response) = client.begin(EXPORT, &[]);
    body.send(Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff])).await.expect("it is taken");
    refused(&Called::read(within(response).await.expect("a response")).await);
    drop(body);
    // One byte too many.
    let length = usize::try_from(MIB).expect("a length");
    refused(&client.call(EXPORT, &[], &framed(0, &vec![0; length + 1])).await);
    // Unfolded.
    let bomb = framed(1, &gzip(&vec![0; 32 * length]));
    refused(&client.call(EXPORT, &[("grpc-encoding", "gzip")], &bomb).await);
    assert_eq!(doors.totals().too_large, 3);
    assert!(doors.jobs.try_recv().is_err());
    doors.all_is_given_back().await;
}

#[tokio::test]
async fn wrong_calls_are_refused_for_good_and_the_connection_goes_on() {
    let mut doors = open(MIB, 16 * MIB);
    let mut client = Http2::connect(doors.address).await;
    let gzipped = [("grpc-encoding", "gzip")];
    for (headers, body, status) in [
        (&[][..], framed(0, b"\xff\xff"), 3),
        (&[], framed(0, &NESTED[..100]), 3),
        (&[], Vec::new(), 3),
        (&[], framed(0, NESTED)[..50].to_vec(), 3),
        (&[], framed(0, NESTED).repeat(2), 3),
        (&[], framed(0, b"").repeat(2), 3),
        (&gzipped, framed(1, NESTED), 3),
        (&gzipped, framed(1, &gzip(NESTED)[..200]), 3),
        (&[], framed(1, &gzip(NESTED)), 13),
        (&[], framed(7, NESTED), 13),
    ] {
        let called = client.call(EXPORT, headers, &body).await;
        assert_eq!(called.status, status, "{headers:?} {} bytes: {called:?}", body.len());
        assert!(called.trailers_only && !called.message.is_empty());
    }
    assert!(doors.jobs.try_recv().is_err());
    let _taken = doors.take_all();
    assert_eq!(client.call(EXPORT, &[], &framed(0, NESTED)).await.status, 0);
    doors.all_is_given_back().await;
}

#[tokio::test]
async fn what_is_not_served_is_unimplemented() {
    let doors = open(MIB, 16 * MIB);
    let mut client = Http2::connect(doors.address).await;
    for path in ["/opentelemetry.proto.collector.trace.v1.TraceService/Import", "/v1/traces", "/x.Y/Z"] {
        assert_eq!(client.call(path, &[], &framed(0, b"")).await.status, 12, "{path}");
    }
    let called = client.call(EXPORT, &[("grpc-encoding", "snappy")], &framed(1, b"x")).await;
    assert_eq!(called.status, 12);
    assert_eq!(called.headers["grpc-accept-encoding"], "identity,deflate,gzip,zstd");
    // gRPC over HTTP/1.1 cannot be answered in kind.
    let answer = exchange(doors.address, &post(EXPORT, &[("Content-Type", "application/grpc")], &framed(0, b""))).await;
    assert_eq!((answer.status, answer.status_json().0), (415, 12));
}

#[tokio::test]
async fn what_the_intake_refuses_is_unavailable() {
    let mut doors = open(MIB, 16 * MIB);
    let mut client = Http2::connect(doors.address).await;
    for refusal in [Refusal::Full { max_bytes: 1 }, Refusal::DiskFull, Refusal::Stopping, Refusal::Failed] {
        let (body, response) = client.begin(EXPORT, &[]);
        let response = tokio::spawn(response);
        body.send(framed(0, NESTED).into()).await.expect("it is taken");
        drop(body);
        doors.job().await.answer.send(Err(refusal)).expect("someone waits for it");
        let called = Called::read(within(response).await.expect("it ends").expect("a response")).await;
        assert_eq!((called.status, called.trailers_only), (14, true));
    }
}

/// Goal: many calls on one connection, and none waits for another's record.
#[tokio::test]
async fn calls_do_not_wait_for_each_other() {
    let mut doors = open(MIB, 16 * MIB);
    let mut client = Http2::connect(doors.address).await;
    let mut responses = Vec::new();
    for _ in 0..100 {
        let (body, response) = client.begin(EXPORT, &[]);
        responses.push(tokio::spawn(response));
        body.send(framed(0, NESTED).into()).await.expect("it is taken");
    }
    let mut jobs = Vec::new();
    for _ in 0..100 {
        jobs.push(doors.job().await);
    }
    for job in jobs.into_iter().rev() {
        job.answer.send(Ok(1..1 + 1)).expect("someone waits for it");
    }
    for response in responses {
        let response = within(response).await.expect("it ends").expect("a response");
        assert_eq!(Called::read(response).await.status, 0);
    }
    doors.all_is_given_back().await;
}

#[tokio::test]
async fn a_call_that_is_given_up_frees_its_memory() {
    let mut doors = open(64 * MIB, 16 * MIB);
    let mut client = Http2::connect(doors.address).await;
    let mut begun = Vec::new();
    for _ in 0..64 {
        let (body, response) = client.begin(EXPORT, &[]);
        let response = tokio::spawn(response);
        // 64 MiB each are announced.
        body.send(Bytes::from_static(b"\0\x04\0\0\0abc")).await.expect("it is taken");
        begun.push((body, response));
    }
    until(|| doors.budget.used() >= 64 * 4096).await;
    assert!(doors.budget.used() < MIB);
    let _taken = doors.take_all();
    assert_eq!(client.call(EXPORT, &[], &framed(0, NESTED)).await.status, 0);
    for (body, response) in begun {
        response.abort();
        drop(body);
    }
    doors.all_is_given_back().await;
}

#[tokio::test]
async fn a_record_is_written_though_its_call_was_given_up() {
    let mut doors = open(MIB, 16 * MIB);
    let mut client = Http2::connect(doors.address).await;
    let (body, response) = client.begin(EXPORT, &[]);
    let response = tokio::spawn(response);
    body.send(framed(0, NESTED).into()).await.expect("it is taken");
    drop(body);
    let job = doors.job().await;
    response.abort();
    // The reset was read before what comes behind it on the same connection.
    assert_eq!(client.call(EXPORT, &[], &framed(0, b"")).await.status, 0);
    assert!(doors.budget.used() > 0);
    job.answer.send(Ok(1..1 + 1)).expect("the hand-over still waits");
    until(|| doors.totals().spans == 4).await;
    doors.all_is_given_back().await;
}

#[tokio::test]
async fn metrics_and_logs_are_answered_counted_and_dropped() {
    let doors = open(MIB, 16 * MIB);
    let mut client = Http2::connect(doors.address).await;
    for path in [
        "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    ] {
        let called = client.call(path, &[], &framed(0, b"anything")).await;
        assert_eq!((called.status, called.data.as_ref()), (0, EMPTY_MESSAGE));
    }
    assert_eq!((doors.totals().metrics, doors.totals().logs, doors.totals().requests), (1, 1, 0));
}

#[tokio::test]
async fn a_foreign_authority_is_denied() {
    let doors = open(MIB, 16 * MIB);
    let mut client = Http2::connect(doors.address).await;
    let called = client.call(EXPORT, &[("origin", "https://evil.example")], &framed(0, NESTED)).await;
    assert_eq!(called.status, 7);
    let request = http::Request::post(format!("http://evil.example{EXPORT}"))
        .header("content-type", "application/grpc")
        .body(receive_support::Fed(tokio::sync::mpsc::channel(1).1))
        .expect("a request");
    let response = within(client.0.send_request(request)).await.expect("a response");
    assert_eq!(Called::read(response).await.status, 7);
}

/// The same with a client that has nothing in common with the doors.
#[tokio::test]
async fn curl_makes_a_call() {
    let mut doors = open(MIB, 16 * MIB);
    let mut taken = doors.take_all();
    let url = doors.url(EXPORT);
    let options = ["--http2-prior-knowledge", "-H", "Content-Type: application/grpc", "--data-binary", "@-"];
    let (status, answer) = curl(&[&[url.as_str()][..], &options].concat(), &framed(0, NESTED)).await;
    assert_eq!((status.as_str(), answer.as_slice()), ("2 200", EMPTY_MESSAGE));
    assert_eq!(within(taken.recv()).await.expect("a record").payload, NESTED);
}
