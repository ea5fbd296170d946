//! JSON lines on the spool socket: one trace a line, one line of answer for each, in order.
//!
//! The protocol for whoever has no SDK: `printf '%s\n' "$trace" | socat - UNIX-CONNECT:spool.sock`. Lines are taken
//! while earlier ones are on their way to the disk, and a client that closes its sending side still gets all answers.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{timeout, timeout_at};

use super::body::{DRAIN_BYTES, DRAIN_TIME, Pace};
use super::budget::Charge;
use super::coding::Coding;
use super::connection::{IDLE_TIME, stopped};
use super::hand_over::{Form, Labels, Parcel, Pending, begin};
use super::refusal::Problem;
use super::{Reception, size};
use crate::intake::{Door, Refusal};

/// Lines of one connection that wait for the disk at most.
const LINES_WAITING: usize = 256;

/// KiB of such lines, beside a longer one. A client that sends a whole file at once fills this window and then waits; it
/// is never refused for want of memory on its own account.
const KIB_WAITING: u32 = 8 << 10;

/// A client that reads no answer for so long is given up.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// How long a client that still sends is listened to at the stop.
const DRAIN_TIME_AT_STOP: Duration = Duration::from_secs(1);

/// Serves one connection to its end. After `stop`, lines that are taken are answered and no others are read.
pub(super) async fn serve<I>(
    stream: BufReader<I>,
    peer_uid: Option<u32>,
    refused: Option<Problem>,
    reception: Arc<Reception>,
    mut stop: watch::Receiver<bool>,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    // The half that reads keeps what is buffered already: splitting splits the buffered stream.
    let mut lines = BufReader::new(&mut reader);
    let (answers, waiting) = mpsc::channel(LINES_WAITING);
    let reading = async {
        match refused {
            Some(problem) => {
                reception.received.refused(problem.counted);
                let _ = answers.send(Answer::Refused(problem)).await;
            }
            None => take_lines(&mut lines, peer_uid, &reception, &mut stop, &answers).await,
        }
        drop(answers);
    };
    {
        let mut writing = pin!(write_answers(waiting, &mut writer));
        tokio::select! {
            // It ends first only when the client is gone.
            () = &mut writing => return,
            () = reading => {}
        }
        writing.await;
    }
    // Closing with bytes unread would reset the connection under the answers. A daemon that stops has little time.
    let _ = writer.shutdown().await;
    let time = if *stop.borrow() { DRAIN_TIME_AT_STOP } else { DRAIN_TIME };
    let _ = timeout(time, tokio::io::copy(&mut lines.take(DRAIN_BYTES), &mut tokio::io::sink())).await;
}

/// What one line comes to.
enum Answer {
    /// It is on its way to the disk; the permit is its part of the window.
    Taken(Pending, Option<OwnedSemaphorePermit>),
    Refused(Problem),
}

/// Reads lines until the end, the stop, or one after which nothing can be read.
async fn take_lines(
    lines: &mut (impl AsyncBufRead + Unpin),
    peer_uid: Option<u32>,
    reception: &Arc<Reception>,
    stop: &mut watch::Receiver<bool>,
    answers: &mpsc::Sender<Answer>,
) {
    let window = Arc::new(Semaphore::new(usize::try_from(KIB_WAITING).unwrap_or(1)));
    loop {
        let line = tokio::select! {
            biased;
            () = stopped(stop) => return,
            line = next_line(lines, reception) => line,
        };
        let (answer, goes_on) = match line {
            Line::End => return,
            Line::Refused { problem, goes_on } => (Answer::Refused(problem), goes_on),
            Line::Whole(line, charge) => {
                let kib = u32::try_from(line.len() >> 10).unwrap_or(u32::MAX).clamp(1, KIB_WAITING);
                // The window is never closed; what waits in it goes on to the disk whether or not the client reads.
                let permit = Arc::clone(&window).acquire_many_owned(kib).await.ok();
                let parcel = Parcel {
                    body: Bytes::from(line),
                    coding: Coding::Identity,
                    form: Form::AnyJson,
                    door: Door::Lines,
                    labels: Labels::default(),
                    peer_uid,
                    charge,
                };
                match begin(reception, parcel).await {
                    Ok(pending) => (Answer::Taken(pending, permit), true),
                    Err(problem) => (Answer::Refused(problem), true),
                }
            }
        };
        if let Answer::Refused(problem) = &answer {
            reception.received.refused(problem.counted);
            tracing::debug!(?peer_uid, "refused a line: {}", problem.message);
        }
        if answers.send(answer).await.is_err() || !goes_on {
            return;
        }
    }
}

enum Line {
    /// Without its end.
    Whole(Vec<u8>, Charge),
    /// Not taken, and whether the next one can be found.
    Refused { problem: Problem, goes_on: bool },
    /// Nothing more comes, or nobody is there.
    End,
}

/// The next line that is not blank. Its bytes are charged as they arrive; one that may not be held is read to its end
/// and kept nowhere.
async fn next_line(lines: &mut (impl AsyncBufRead + Unpin), reception: &Reception) -> Line {
    let limit = reception.max_request_bytes;
    if !skip_blanks(lines).await {
        return Line::End;
    }
    let mut pace = Pace::new();
    let mut line = reception.budget.open().map(|charge| (Vec::new(), charge)).map_err(Problem::from);
    let mut length = 0;
    loop {
        let piece = match timeout_at(pace.deadline(), lines.fill_buf()).await {
            Err(_) => return Line::Refused { problem: Problem::slow(), goes_on: false },
            Ok(Err(_)) => return Line::End,
            Ok(Ok(piece)) => piece,
        };
        let end = piece.iter().position(|byte| *byte == b'\n');
        let taken = &piece[..end.unwrap_or(piece.len())];
        length += size(taken.len());
        if length > limit {
            // The end of such a line may be as far away as the sender likes.
            return Line::Refused { problem: Refusal::TooLarge { limit }.into(), goes_on: false };
        }
        if let Ok((kept, charge)) = &mut line {
            match charge.hold(length) {
                Ok(()) => kept.extend_from_slice(taken),
                Err(refusal) => line = Err(refusal.into()),
            }
        }
        let read = piece.len().min(taken.len() + 1);
        let ended = end.is_some() || piece.is_empty();
        lines.consume(read);
        if ended {
            return match line {
                Ok((line, charge)) => Line::Whole(line, charge),
                Err(problem) => Line::Refused { problem, goes_on: true },
            };
        }
        pace.received(size(read));
    }
}

/// Whether something comes before the end, or before the client has been silent for too long.
async fn skip_blanks(lines: &mut (impl AsyncBufRead + Unpin)) -> bool {
    loop {
        let Ok(Ok(piece)) = timeout(IDLE_TIME, lines.fill_buf()).await else { return false };
        if piece.is_empty() {
            return false;
        }
        let blank = piece.iter().position(|byte| !byte.is_ascii_whitespace());
        let skipped = blank.unwrap_or(piece.len());
        lines.consume(skipped);
        if blank.is_some() {
            return true;
        }
    }
}

async fn write_answers(mut waiting: mpsc::Receiver<Answer>, writer: &mut (impl AsyncWrite + Unpin)) {
    while let Some(answer) = waiting.recv().await {
        let text = match answer {
            Answer::Refused(problem) => refusal(&problem),
            Answer::Taken(pending, permit) => {
                let outcome = pending.finish().await;
                drop(permit);
                match outcome {
                    Ok(Some(record)) => format!("{{\"ok\":true,\"record\":{record}}}\n"),
                    Ok(None) => "{\"ok\":true,\"record\":null}\n".to_owned(),
                    Err(problem) => refusal(&problem),
                }
            }
        };
        if !matches!(timeout(ANSWER_TIME, writer.write_all(text.as_bytes())).await, Ok(Ok(()))) {
            return;
        }
    }
}

fn refusal(problem: &Problem) -> String {
    // What may come again is what HTTP would answer 503.
    let retry = problem.http == http::StatusCode::SERVICE_UNAVAILABLE;
    let error = serde_json::Value::from(problem.message.as_str());
    format!("{{\"ok\":false,\"error\":{error},\"retry\":{retry}}}\n")
}

/// Whether these first bytes begin a JSON line, and not a request of HTTP: what begins with space, or as a JSON value
/// does. Methods of HTTP are capital letters.
pub(super) fn is_begun_by(first: u8) -> bool {
    first.is_ascii_whitespace() || matches!(first, b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | 0xef)
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;
    use crate::config;
    use crate::intake::Intake;
    use crate::receive::Budget;

    #[test]
    fn lines_and_requests_are_told_apart() {
        for line in ["{\"resourceSpans\":[]}", "\n{}", " {}", "[1]", "\"x\"", "7", "\u{feff}{}"] {
            assert!(is_begun_by(line.as_bytes()[0]), "{line:?}");
        }
        for request in ["POST / HTTP/1.1", "GET /", "PRI * HTTP/2.0", "hello", "\0"] {
            assert!(!is_begun_by(request.as_bytes()[0]), "{request:?}");
        }
    }

    fn reception() -> Arc<Reception> {
        let config = config::Receive {
            listen: Vec::new(),
            max_request_bytes: 1 << 20,
            max_in_flight_bytes: 1 << 24,
            insecure: false,
            mlflow: config::MlflowCalls::default(),
            tls: None,
            token_file: None,
            keep_headers: Vec::new(),
            other_signals: config::OtherSignals::Accept,
            socket: config::Socket { path: "/nowhere".into(), mode: 0, group: None },
            allow_uids: None,
            directory: config::Directory::at("/nowhere".into()),
        };
        let (jobs, _) = mpsc::channel(1);
        let budget = Budget::new(config.max_in_flight_bytes);
        let reception = Reception::new(&config, "id", Intake::new(jobs), budget, Arc::default());
        Arc::new(reception.expect("a reception"))
    }

    /// A connection in memory, served until it ends.
    fn serving() -> (DuplexStream, tokio::task::JoinHandle<()>, watch::Sender<bool>, Arc<Reception>) {
        let (client, server) = tokio::io::duplex(1 << 10);
        let (stop, stopped) = watch::channel(false);
        let reception = reception();
        let served = tokio::spawn(serve(BufReader::new(server), None, None, Arc::clone(&reception), stopped));
        (client, served, stop, reception)
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_trickles_is_given_up() {
        let (client, served, _stop, reception) = serving();
        let (mut reader, mut writer) = tokio::io::split(client);
        let trickle = tokio::spawn(async move {
            while writer.write_all(b"{").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let begun = tokio::time::Instant::now();
        let mut answers = String::new();
        reader.read_to_string(&mut answers).await.expect("text");
        assert_eq!(answers, refusal(&Problem::slow()));
        // The same patience as with a body.
        assert_eq!(begun.elapsed().as_secs(), 30);
        served.await.expect("it ends");
        assert_eq!(reception.budget.used(), 0);
        trickle.await.expect("it ends when nobody reads");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_without_a_line_is_let_go() {
        let (mut client, served, _stop, _) = serving();
        let begun = tokio::time::Instant::now();
        client.write_all(b"{}\n \n").await.expect("written");
        let mut answers = String::new();
        client.read_to_string(&mut answers).await.expect("text");
        assert_eq!(answers, "{\"ok\":true,\"record\":null}\n");
        assert_eq!(begun.elapsed(), IDLE_TIME);
        drop(client);
        served.await.expect("it ends");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_no_answer_is_given_up() {
        let (mut client, served, _stop, reception) = serving();
        // More answers than the connection holds, and lines behind them for as long as they are taken.
        let sent = tokio::spawn(async move {
            while client.write_all(b"x\n{}\n").await.is_ok() {}
            client
        });
        served.await.expect("it ends");
        drop(sent.await.expect("nobody reads any more"));
        assert_eq!(reception.budget.used(), 0);
    }

    #[test]
    fn a_refusal_is_one_line_of_json() {
        let refused: serde_json::Value =
            serde_json::from_str(&refusal(&Problem::invalid("a \"quote\"\nand a line"))).expect("JSON");
        assert_eq!(
            refused,
            serde_json::json!({"ok": false, "error": "invalid request: a \"quote\"\nand a line", "retry": false})
        );
        assert_eq!(refusal(&Problem::slow()).matches('\n').count(), 1);
        assert!(refusal(&Problem::slow()).contains("\"retry\":true"));
    }
}
