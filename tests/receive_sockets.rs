//! The doors themselves: the spool socket, and how they close.

mod receive_support;

use std::os::unix::fs::MetadataExt;

use receive_support::{EXPORT, Http2, MIB, NESTED, PROTOBUF, answer, curl, framed, open, post, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

const TYPE: (&str, &str) = ("Content-Type", PROTOBUF);

#[tokio::test]
async fn the_spool_socket_takes_what_the_listeners_take() {
    let mut doors = open(MIB, 16 * MIB);
    let mut taken = doors.take_all();
    let socket = doors.socket.to_str().expect("a path");
    let me = std::fs::metadata(&doors.socket).expect("the socket").uid();
    let content = format!("Content-Type: {PROTOBUF}");
    for options in [
        vec!["http://localhost/v1/traces", "-H", &content],
        vec!["http://any.name.will.do/v1/traces", "-H", &content],
        vec!["http://localhost/v1/traces", "-H", &content, "-H", "Host;"],
        vec!["http://localhost/v1/traces", "-H", &content, "--http2-prior-knowledge"],
    ] {
        let arguments = [&["--unix-socket", socket, "--data-binary", "@-"][..], &options].concat();
        let (status, _) = curl(&arguments, NESTED).await;
        assert!(status.ends_with(" 200"), "{options:?}: {status}");
        let submission = within(taken.recv()).await.expect("a record");
        assert_eq!((submission.payload.as_ref(), submission.peer_uid), (NESTED, Some(me)));
    }
    let url = format!("http://localhost{EXPORT}");
    let options = ["--http2-prior-knowledge", "-H", "Content-Type: application/grpc", "--data-binary", "@-"];
    let arguments = [&["--unix-socket", socket, &url][..], &options].concat();
    let (status, message) = curl(&arguments, &framed(0, NESTED)).await;
    assert_eq!((status.as_str(), message.as_slice()), ("2 200", &[0; 5][..]));
    assert_eq!(within(taken.recv()).await.expect("a record").peer_uid, Some(me));
}

/// Goal: after a stop, what is in hand is answered, everything else finds closed doors, and nothing stays behind.
#[tokio::test]
async fn a_stop_answers_what_is_in_hand_and_closes_the_doors() {
    let mut doors = open(MIB, 16 * MIB);
    let mut http = TcpStream::connect(doors.address).await.expect("a connection");
    http.write_all(&post("/", &[TYPE], NESTED)).await.expect("it is sent");
    let mut unix = UnixStream::connect(&doors.socket).await.expect("a connection");
    unix.write_all(&post("/", &[TYPE], NESTED)).await.expect("it is sent");
    let mut client = Http2::connect(doors.address).await;
    let call = tokio::spawn({
        let mut client = client.clone();
        async move { client.call(EXPORT, &[], &framed(0, NESTED)).await }
    });
    let mut silent = TcpStream::connect(doors.address).await.expect("a connection");
    let jobs = [doors.job().await, doors.job().await, doors.job().await];

    doors.stop.send_replace(true);
    // Whoever has no request in hand is let go at once.
    let mut nothing = Vec::new();
    let _ = within(silent.read_to_end(&mut nothing)).await;
    assert!(nothing.is_empty());
    receive_support::until(|| !doors.socket.exists()).await;
    receive_support::until(|| std::net::TcpStream::connect(doors.address).is_err()).await;
    assert!(!doors.served.is_finished());

    for job in jobs {
        job.answer.send(Ok(1..1 + 1)).expect("someone waits for it");
    }
    assert_eq!(answer(&mut http).await.status, 200);
    assert_eq!(answer(&mut unix).await.status, 200);
    assert_eq!(within(call).await.expect("it ends").status, 0);
    within(&mut doors.served).await.expect("the doors are closed");
    assert!(within(client.0.ready()).await.is_err());
    assert_eq!(doors.totals().requests, 3);
    assert_eq!(doors.budget.used(), 0);
}

/// Goal: a caller whose patience ends can cut off whoever is still there.
#[tokio::test]
async fn an_aborted_stop_lets_go_of_unfinished_requests() {
    let doors = open(MIB, 16 * MIB);
    let mut slow = TcpStream::connect(doors.address).await.expect("a connection");
    let request = post("/", &[TYPE], NESTED);
    slow.write_all(&request[..request.len() - 1]).await.expect("almost all of it is sent");
    receive_support::until(|| doors.budget.used() > 4096).await;
    doors.stop.send_replace(true);
    doors.served.abort();
    doors.all_is_given_back().await;
    let mut nothing = Vec::new();
    let _ = within(slow.read_to_end(&mut nothing)).await;
    assert!(nothing.is_empty());
}

/// Goal: a client that is slow in sending delays nobody.
#[tokio::test]
async fn many_slow_clients_delay_nobody() {
    let mut doors = open(MIB, 64 * MIB);
    let _taken = doors.take_all();
    let request = post("/", &[TYPE], NESTED);
    let mut slow = Vec::new();
    for sent in 0..200 {
        let mut client = TcpStream::connect(doors.address).await.expect("a connection");
        client.write_all(&request[..sent]).await.expect("the beginning is sent");
        slow.push(client);
    }
    let mut stream = TcpStream::connect(doors.address).await.expect("a connection");
    stream.write_all(&request).await.expect("it is sent");
    assert_eq!(answer(&mut stream).await.status, 200);
    // And each of them is served once it goes on.
    for (sent, mut client) in slow.into_iter().enumerate() {
        client.write_all(&request[sent..]).await.expect("the rest is sent");
        assert_eq!(answer(&mut client).await.status, 200);
    }
    doors.all_is_given_back().await;
}
