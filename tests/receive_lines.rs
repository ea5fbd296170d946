//! JSON lines on the spool socket.

mod receive_support;

use receive_support::{MIB, NESTED, Open, open, open_as, until, within};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tracespool::intake::{Door, Refusal};

/// One trace in OTLP's JSON, and the same in the two forms of MLflow.
const OTLP: &[u8] = include_bytes!("data/nested.otlp.json");
const TRACE: &[u8] = include_bytes!("data/nested.mlflow-trace.json");
const UPLOADED: &[u8] = include_bytes!("data/nested.mlflow-traces.json");

struct Client {
    answers: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Client {
    async fn connect(doors: &Open) -> Self {
        let (reader, writer) = UnixStream::connect(&doors.socket).await.expect("a connection").into_split();
        Self { answers: BufReader::new(reader).lines(), writer }
    }

    async fn write(&mut self, bytes: &[u8]) {
        within(self.writer.write_all(bytes)).await.expect("it is sent");
    }

    async fn answer(&mut self) -> Value {
        let line = within(self.answers.next_line()).await.expect("an answer").expect("not the end");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    async fn assert_end(&mut self) {
        assert_eq!(within(self.answers.next_line()).await.expect("a clean end"), None);
    }
}

/// A document in one line.
fn line(json: &[u8]) -> Vec<u8> {
    let mut line: Vec<u8> = json.iter().map(|byte| if *byte == b'\n' { b' ' } else { *byte }).collect();
    line.push(b'\n');
    line
}

fn invalid(answer: &Value) -> &str {
    assert_eq!((&answer["ok"], &answer["retry"]), (&json!(false), &json!(false)), "{answer}");
    answer["error"].as_str().expect("a message")
}

#[tokio::test]
async fn a_trace_a_line_is_stored_and_answered_with_its_record() {
    let mut doors = open(MIB, 16 * MIB);
    let mut taken = doors.take_all();
    let mut client = Client::connect(&doors).await;
    let me = rustix::process::geteuid().as_raw();
    for (record, (document, experiment)) in (1..).zip([(OTLP, None), (TRACE, Some("6")), (UPLOADED, None)]) {
        client.write(&line(document)).await;
        assert_eq!(client.answer().await, json!({"ok": true, "record": record}));
        let submission = within(taken.recv()).await.expect("a record");
        assert_eq!((submission.door, submission.peer_uid), (Door::Lines, Some(me)));
        assert_eq!(submission.experiment.as_deref(), experiment);
        assert_eq!((submission.summary.spans, submission.summary.trace_ids.len()), (4, 1));
        if document == OTLP {
            assert_eq!(submission.payload.as_ref(), NESTED);
        }
    }
    assert_eq!((doors.totals().requests, doors.totals().spans), (3, 12));
    doors.all_is_given_back().await;
}

/// Goal: what a shell sends: no line end, half a close, blank lines, line ends of another system.
#[tokio::test]
async fn a_client_that_closes_its_half_gets_every_answer() {
    let mut doors = open(MIB, 16 * MIB);
    let _taken = doors.take_all();
    let mut client = Client::connect(&doors).await;
    let mut text = b"\r\n\n".to_vec();
    text.extend(line(OTLP));
    text.splice(text.len() - 1.., *b"\r\n");
    text.extend(b"  \n{}\n{\"resourceSpans\":[]}\n");
    text.extend(&line(TRACE)[..line(TRACE).len() - 1]);
    client.write(&text).await;
    client.writer.shutdown().await.expect("half closed");
    for record in [json!(1), Value::Null, Value::Null, json!(2)] {
        assert_eq!(client.answer().await, json!({"ok": true, "record": record}));
    }
    client.assert_end().await;
}

/// Goal: answers come in the order of the lines and after the sync, while later lines are taken already.
#[tokio::test]
async fn lines_are_pipelined_in_order() {
    let mut doors = open(MIB, 16 * MIB);
    let mut client = Client::connect(&doors).await;
    client.write(&[line(OTLP), b"broken\n".to_vec(), line(TRACE), line(UPLOADED)].concat()).await;
    let [first, second, third] = [doors.job().await, doors.job().await, doors.job().await];
    // The lines stand in the queue for the disk as they came.
    assert_eq!(first.submissions[0].payload.as_ref(), NESTED);
    assert_eq!(second.submissions[0].experiment.as_deref(), Some("6"));
    third.answer.send(Ok(9..9 + 1)).expect("someone waits for it");
    second.answer.send(Err(Refusal::DiskFull)).expect("someone waits for it");
    first.answer.send(Ok(7..7 + 1)).expect("someone waits for it");
    assert_eq!(client.answer().await, json!({"ok": true, "record": 7}));
    assert!(invalid(&client.answer().await).contains("line 1, column 1"));
    let full = client.answer().await;
    assert_eq!((&full["ok"], &full["retry"]), (&json!(false), &json!(true)), "{full}");
    assert_eq!(client.answer().await, json!({"ok": true, "record": 9}));
}

#[tokio::test]
async fn bad_lines_are_answered_and_do_no_harm_to_the_next() {
    let mut doors = open(MIB, 16 * MIB);
    let _taken = doors.take_all();
    let mut client = Client::connect(&doors).await;
    for (bad, word) in [
        ("{", "ends early"),
        ("[]", "object"),
        ("7", "object"),
        ("{\"a\":1}", "neither"),
        ("{\"resourceMetrics\":[]}", "metrics"),
        ("{\"resourceSpans\":7}", "list"),
        ("{\"spans\":[{}]}", "trace_id"),
        ("\u{feff}{}", "byte order mark"),
        ("{\"resourceSpans\":[{\"scopeSpans\":[{\"spans\":[{\"traceId\":\"00\"}]}]}]}", "traceId"),
    ] {
        client.write(format!("{bad}\n").as_bytes()).await;
        let answer = client.answer().await;
        assert!(invalid(&answer).contains(word), "{bad}: {answer}");
    }
    client.write(b"\xff\xfe\n{\"resourceSpans\":\"\xff\"}\n").await;
    assert!(invalid(&client.answer().await).contains("UTF-8"));
    assert!(invalid(&client.answer().await).contains("UTF-8"));
    client.write(&line(OTLP)).await;
    assert_eq!(client.answer().await["ok"], true);
    assert_eq!((doors.totals().invalid, doors.totals().requests), (11, 1));
}

#[tokio::test]
async fn a_line_that_is_too_long_ends_the_connection_after_its_answer() {
    let mut doors = open(MIB, 16 * MIB);
    let _taken = doors.take_all();
    let mut client = Client::connect(&doors).await;
    // Behind it, more than fits into the socket's buffers: the client sees its answers all the same.
    let long = vec![b' '; 5 << 20];
    let mut writer = client.writer;
    let sent = tokio::spawn(async move {
        writer.write_all(&line(OTLP)).await.expect("it is sent");
        writer.write_all(b"{").await.expect("it is sent");
        writer.write_all(&long).await.expect("it is sent");
        writer
    });
    assert_eq!(
        within(client.answers.next_line()).await.expect("an answer").as_deref(),
        Some("{\"ok\":true,\"record\":1}")
    );
    let answer = within(client.answers.next_line()).await.expect("an answer").expect("not the end");
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert!(invalid(&answer).contains("receive.max_request_bytes"), "{answer}");
    assert_eq!(within(client.answers.next_line()).await.expect("a clean end"), None);
    drop(within(sent).await.expect("all was read"));
    assert_eq!(doors.totals().too_large, 1);
    doors.all_is_given_back().await;
}

/// Goal: the limit is on the line, without its end.
#[tokio::test]
async fn the_limit_is_exact() {
    let mut doors = open(2048, 16 * MIB);
    let _taken = doors.take_all();
    let mut client = Client::connect(&doors).await;
    let padded = |length: usize| format!("{{{}}}\n", " ".repeat(length - 2));
    client.write(padded(2048).as_bytes()).await;
    assert_eq!(client.answer().await["ok"], true);
    client.write(padded(2049).as_bytes()).await;
    assert!(invalid(&client.answer().await).contains("larger"));
    client.assert_end().await;
}

/// Goal: when memory is short a line is refused for now, nothing of it is kept, and the next one is found.
#[tokio::test]
async fn a_line_that_memory_has_no_room_for_may_come_again() {
    let mut doors = open(MIB, 2 * MIB);
    let _taken = doors.take_all();
    // Others hold nearly all of it.
    let mut others = Vec::new();
    for _ in 0..2 {
        let mut other = Client::connect(&doors).await;
        other.write(&vec![b'['; 1000 << 10]).await;
        others.push(other);
    }
    until(|| doors.budget.used() > 1900 << 10).await;
    let mut client = Client::connect(&doors).await;
    let mut text = vec![b'{'; 200 << 10];
    text.push(b'\n');
    client.write(&text).await;
    let answer = client.answer().await;
    assert_eq!((&answer["ok"], &answer["retry"]), (&json!(false), &json!(true)), "{answer}");
    assert_eq!(doors.totals().full, 1);
    drop(others);
    until(|| doors.budget.used() == 0).await;
    client.write(&line(OTLP)).await;
    assert_eq!(client.answer().await, json!({"ok": true, "record": 1}));
}

/// Goal: a client that sends a whole file is slowed down, not refused; it holds no more than its window and a line.
#[tokio::test]
async fn a_client_in_a_hurry_is_slowed_down() {
    let mut doors = open(MIB, 12 * MIB);
    let mut client = Client::connect(&doors).await;
    let spans = "{\"name\":\"0123456789\"},".repeat(42_000);
    let big = format!("{{\"resourceSpans\":[{{\"scopeSpans\":[{{\"spans\":[{spans}{{}}]}}]}}]}}\n");
    assert!(big.len() > 900_000);
    let mut writer = client.writer;
    let sent = tokio::spawn(async move {
        for _ in 0..40 {
            writer.write_all(big.as_bytes()).await.expect("it is sent");
        }
        writer
    });
    // Nothing is answered: the window of 8 MiB fills, and then no line is taken any more, however long one looks.
    let mut jobs = Vec::new();
    for _ in 0..9 {
        jobs.push(doors.job().await);
    }
    let one_more = tokio::time::timeout(std::time::Duration::from_secs(1), doors.jobs.recv()).await;
    assert!(one_more.is_err(), "the window has room for nine such lines");
    let (_, none) = tokio::sync::mpsc::channel(1);
    let mut rest = std::mem::replace(&mut doors.jobs, none);
    tokio::spawn(async move {
        for (record, job) in (1..).zip(jobs) {
            let _ = job.answer.send(Ok(record..record + 1));
        }
        let mut record = 9;
        while let Some(job) = rest.recv().await {
            record += 1;
            let _ = job.answer.send(Ok(record..record + 1));
        }
    });
    for record in 1..=40 {
        let answer = within(client.answers.next_line()).await.expect("an answer").expect("not the end");
        assert_eq!(answer, format!("{{\"ok\":true,\"record\":{record}}}"));
    }
    drop(within(sent).await.expect("all was taken"));
    assert_eq!(doors.totals().full, 0);
    doors.all_is_given_back().await;
}

#[tokio::test]
async fn a_stop_answers_the_lines_in_hand() {
    let mut doors = open(MIB, 16 * MIB);
    let mut client = Client::connect(&doors).await;
    client.write(&[line(OTLP), b"{\"resourceSpans\":[".to_vec()].concat()).await;
    let job = doors.job().await;
    let mut silent = UnixStream::connect(&doors.socket).await.expect("a connection");
    doors.stop.send_replace(true);
    let mut nothing = Vec::new();
    let _ = within(silent.read_to_end(&mut nothing)).await;
    job.answer.send(Ok(1..1 + 1)).expect("someone waits for it");
    assert_eq!(client.answer().await["record"], 1);
    client.assert_end().await;
    within(&mut doors.served).await.expect("the doors are closed");
    assert_eq!(doors.budget.used(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_is_let_go_and_what_was_taken_is_kept() {
    let mut doors = open(MIB, 16 * MIB);
    let mut client = Client::connect(&doors).await;
    client.write(&[line(OTLP), vec![b'{'; 100 << 10]].concat()).await;
    let job = doors.job().await;
    drop(client);
    until(|| doors.budget.used() < 64 << 10).await;
    job.answer.send(Ok(1..1 + 1)).expect("the hand-over goes on");
    doors.all_is_given_back().await;
    assert_eq!(doors.totals().requests, 1);
}

#[tokio::test]
async fn only_the_users_of_the_list_may_write() {
    let me = rustix::process::geteuid().as_raw();
    let mut mine = open_as(MIB, 16 * MIB, |config| config.allow_uids = Some(vec![me]));
    let _taken = mine.take_all();
    let mut client = Client::connect(&mine).await;
    client.write(&line(OTLP)).await;
    assert_eq!(client.answer().await["ok"], true);

    let doors = open_as(MIB, 16 * MIB, |config| config.allow_uids = Some(vec![me + 1]));
    let mut client = Client::connect(&doors).await;
    client.write(&line(OTLP)).await;
    assert!(invalid(&client.answer().await).contains("allow_uids"));
    client.assert_end().await;
    let mut stream = UnixStream::connect(&doors.socket).await.expect("a connection");
    let request = receive_support::post("/v1/traces", &[("Content-Type", receive_support::PROTOBUF)], NESTED);
    stream.write_all(&request).await.expect("it is sent");
    let answer = receive_support::answer(&mut stream).await;
    assert_eq!((answer.status, answer.status_protobuf().code), (403, 7));
}

#[tokio::test]
async fn an_abstract_socket_takes_what_others_take() {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("tracespool-test-{}", std::process::id());
    let path = format!("@{name}");
    let mut doors = open_as(MIB, 16 * MIB, |config| config.socket.path = path.clone().into());
    let _taken = doors.take_all();
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("a name");
    let stream = std::os::unix::net::UnixStream::connect_addr(&address).expect("a connection");
    stream.set_nonblocking(true).expect("set");
    let (reader, writer) = UnixStream::from_std(stream).expect("a stream").into_split();
    let mut client = Client { answers: BufReader::new(reader).lines(), writer };
    client.write(&line(OTLP)).await;
    assert_eq!(client.answer().await["ok"], true);
    assert!(!std::path::Path::new(&path).exists());
}

/// Goal: lines are the spool socket's: what a web page can reach takes requests only.
#[tokio::test]
async fn a_listener_takes_no_lines() {
    let doors = open(MIB, 16 * MIB);
    let answer = receive_support::exchange(doors.address, &line(OTLP)).await;
    assert_eq!((answer.status, answer.status_json().0), (400, 3));
}
