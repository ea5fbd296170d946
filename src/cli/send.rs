//! `tracespool send`: hands traces from files to the running daemon, and waits for the acknowledgement.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use clap::Args;

use super::client::{Answer, Client, block_on, within};
use super::documents::{Bad, Document, Documents};
use super::find::{Found, Socket, find};
use super::test_trace::TestTrace;
use crate::config::{Environment, Overrides};
use crate::exit::{Exit, Failure, Outcome};
use crate::status::{Backend, BackendState, Status, Timestamp};

/// First pause after the daemon had no room, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Pause between two looks at the backlog.
const LOOK: Duration = Duration::from_millis(250);

#[derive(Debug, Args)]
pub(super) struct Send {
    /// Files with OTLP JSON (one document, or one a line) or an OTLP protobuf message, each also as gzip or zstd;
    /// - is standard input
    #[arg(value_name = "FILE", required_unless_present = "test", conflicts_with = "test")]
    files: Vec<PathBuf>,
    /// Sends one small marked trace instead
    #[arg(long)]
    test: bool,
    /// Waits until every backend is done with what was sent; a backend is when nothing that came in before waits for
    /// it any more. Exits 75 when that takes longer
    #[arg(long, value_name = "DURATION", value_parser = super::duration)]
    wait: Option<Duration>,
    /// How long one document is offered to a daemon that has no room
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = super::duration)]
    timeout: Duration,
}

impl Send {
    pub(super) fn run(self, overrides: &Overrides, environment: &Environment) -> Outcome {
        let found = find(Socket::Spool, overrides, environment)?;
        block_on(async {
            let mut door = Door { client: Client::new(found.path.clone()), found: &found, timeout: self.timeout };
            // Counted before anything is sent, so that what goes wrong with it shows as a difference; and who may not
            // look at the backlog learns it before a second try would send everything twice.
            let before = match self.wait {
                Some(_) => Some(super::status::fetch(&found.doors.admin).await?),
                None => None,
            };
            if self.test {
                self.send_test(&mut door).await?;
            } else {
                self.send_files(&mut door).await?;
            }
            match (self.wait, before) {
                (Some(limit), Some(before)) => wait(limit, &before, &found).await,
                _ => Ok(()),
            }
        })
    }

    async fn send_test(&self, door: &mut Door<'_>) -> Outcome {
        let test = TestTrace::new(SystemTime::now());
        let body = Bytes::from(test.request);
        door.offer(body, "application/x-protobuf", "the test trace").await?;
        super::print(&format!(
            "trace {} is on disk, acknowledged by the daemon at {}\n",
            test.id,
            door.found.path.display()
        ))
    }

    async fn send_files(&self, door: &mut Door<'_>) -> Outcome {
        let mut sent = 0_u64;
        for file in &self.files {
            let outcome = send_file(file, door, &mut sent).await;
            outcome.map_err(|failure| match sent {
                0 => failure,
                _ => Failure { message: format!("{}\n{} before it on disk", failure.message, are(sent)), ..failure },
            })?;
        }
        super::print(&format!("{} on disk, acknowledged by the daemon at {}\n", are(sent), door.found.path.display()))
    }
}

fn are(documents: u64) -> String {
    if documents == 1 { "1 document is".into() } else { format!("{documents} documents are") }
}

async fn send_file(file: &Path, door: &mut Door<'_>, sent: &mut u64) -> Outcome {
    let (name, reader): (String, Box<dyn Read>) = if file == Path::new("-") {
        ("standard input".into(), Box::new(std::io::stdin()))
    } else {
        let name = file.display().to_string();
        let open = File::open(file).map_err(|error| unreadable(&name, &error))?;
        let metadata = open.metadata().map_err(|error| unreadable(&name, &error))?;
        // A file may grow while it is read, by the daemon's own `file` backend, for one: what is there now is meant.
        let length = if metadata.is_file() { metadata.len() } else { u64::MAX };
        (name, Box::new(open.take(length)))
    };
    let bad = |bad: Bad| match bad {
        Bad::Content { line: Some(line), message } => Failure::new(Exit::BadInput, format!("{name}:{line}: {message}")),
        Bad::Content { line: None, message } => Failure::new(Exit::BadInput, format!("{name}: {message}")),
        Bad::Io(error) => unreadable(&name, &error),
    };
    let mut documents = Documents::new(reader).map_err(bad)?;
    while let Some(Document { bytes, kind, line }) = documents.next().map_err(bad)? {
        let place = line.map_or_else(|| name.clone(), |line| format!("{name}:{line}"));
        door.offer(Bytes::from(bytes), kind, &place).await?;
        *sent += 1;
    }
    Ok(())
}

fn unreadable(name: &str, error: &std::io::Error) -> Failure {
    let exit = match error.kind() {
        ErrorKind::NotFound => Exit::NotFound,
        ErrorKind::PermissionDenied => Exit::NotPermitted,
        ErrorKind::IsADirectory => Exit::BadInput,
        _ => Exit::Storage,
    };
    Failure::new(exit, format!("{name}: {error}"))
}

/// The daemon's spool socket.
struct Door<'a> {
    client: Client,
    found: &'a Found,
    timeout: Duration,
}

impl Door<'_> {
    /// Offers one document until it is taken, refused for good, or time is up. A lost answer means that it is offered
    /// again: twice is better than never.
    async fn offer(&mut self, body: Bytes, kind: &str, place: &str) -> Outcome {
        let end = Instant::now() + self.timeout;
        let mut pause = PAUSES.0;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let answer = within(left, self.client.post("/v1/traces", kind, body.clone())).await;
            let (exit, reason) = match answer {
                Ok(answer) if answer.status.is_success() => return check_whole(&answer, place),
                Ok(answer) => match answer.status.as_u16() {
                    408 | 429 | 502..=504 => (Exit::TryLater, answer.reason()),
                    401 | 403 => return Err(Failure::new(Exit::NotPermitted, refused(place, &answer))),
                    400..=499 => return Err(Failure::new(Exit::BadInput, refused(place, &answer))),
                    _ => return Err(Failure::new(Exit::Unavailable, refused(place, &answer))),
                },
                // It was there a moment ago, so it is probably being restarted.
                Err(reason) => (Exit::Unavailable, reason),
            };
            if Instant::now() + pause >= end {
                let limit = crate::config::units::time(self.timeout);
                return Err(Failure::new(exit, format!("{place}: not taken within {limit}: {reason}")));
            }
            // Many senders that were refused together must not come back together.
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }
}

fn refused(place: &str, answer: &Answer) -> String {
    format!("{place}: the daemon refuses it: {}", answer.reason())
}

/// The daemon takes a request whole or not at all; anything else in the answer would be news.
fn check_whole(answer: &Answer, place: &str) -> Outcome {
    if answer.body.is_empty() || &answer.body[..] == b"{}" {
        return Ok(());
    }
    super::remark(&format!("{place}: taken, with an answer that is not understood"));
    Ok(())
}

/// Waits until no backend has anything waiting that came in up to now. Lanes take the oldest first, so a backend
/// whose oldest waiting record came in later is done with ours, however busy the daemon is.
async fn wait(limit: Duration, before: &Status, found: &Found) -> Outcome {
    let sent_at = Timestamp::now();
    let end = Instant::now() + limit;
    let mut told = std::collections::BTreeSet::new();
    loop {
        let status = super::status::fetch(&found.doors.admin).await?;
        let awaited = || status.backends.iter().filter(|backend| backend.state != BackendState::Removed);
        if awaited().next().is_none() {
            return Err(Failure::new(Exit::TryLater, "no backend is configured: what was sent waits on disk"));
        }
        let mut waiting = Vec::new();
        for backend in awaited() {
            if !is_done(backend, sent_at) {
                waiting.push(backend);
            } else if told.insert(backend.name.clone()) {
                report(backend, before)?;
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        if Instant::now() >= end {
            let limit = crate::config::units::time(limit);
            let lines: Vec<_> = waiting.iter().map(|backend| describe(backend)).collect();
            return Err(Failure::new(Exit::TryLater, format!("not delivered within {limit}: {}", lines.join("; "))));
        }
        tokio::time::sleep(LOOK.min(end.saturating_duration_since(Instant::now()))).await;
    }
}

fn is_done(backend: &Backend, sent_at: Timestamp) -> bool {
    backend.backlog.records == 0 || backend.backlog.oldest_at.is_some_and(|oldest| oldest > sent_at)
}

/// Says what a backend did. That records were given up meanwhile does not mean that they are ours, but the one who
/// asks must not be told that all is well.
fn report(backend: &Backend, before: &Status) -> Outcome {
    let given_up = |backend: &Backend| backend.dead.spans + backend.rejected.spans + backend.discarded.total();
    let earlier = before.backends.iter().find(|earlier| earlier.name == backend.name).map_or(0, given_up);
    let lost = given_up(backend).saturating_sub(earlier);
    if lost == 0 {
        return super::print(&format!("{}: delivered\n", backend.name));
    }
    Err(Failure::new(
        Exit::TryLater,
        format!("{}: {lost} spans were refused or given up meanwhile; see: tracespool status", backend.name),
    ))
}

fn describe(backend: &Backend) -> String {
    let state = match backend.state {
        BackendState::Up => "up",
        BackendState::Retrying => "retrying",
        BackendState::Blocked => "blocked",
        BackendState::Paused => "paused",
        BackendState::Removed => "removed",
    };
    let error = backend.last_error.as_ref().map_or_else(String::new, |error| format!(": {}", error.message));
    let records = if backend.backlog.records == 1 { "record" } else { "records" };
    format!("{} is {state} with {} {records} waiting{error}", backend.name, backend.backlog.records)
}
