//! `tracespool send`: hands traces from files to the running daemon, and waits for the acknowledgement.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use clap::Args;

use super::client::block_on;
use super::documents::{Bad, Document, Documents, Form};
use super::feed::Feed;
use super::find::{Found, Socket, find};
use super::test_trace::TestTrace;
use crate::config::{Environment, Overrides};
use crate::exit::{Exit, Failure, Outcome};
use crate::status::{Backend, BackendState, Status, Timestamp};

/// Pause between two looks at the backlog.
const LOOK: Duration = Duration::from_millis(250);

#[derive(Debug, Args)]
pub(super) struct Send {
    /// Files with OTLP JSON, MLflow's trace JSON (Trace.to_json(), traces.json), one document or many, or an OTLP protobuf
    /// message, each also as gzip or zstd; - is standard input
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
            let mut feed = Feed::new(found.path.clone(), self.timeout);
            // Counted before anything is sent, so that what goes wrong with it shows as a difference; and who may not
            // look at the backlog learns it before a second try would send everything twice.
            let before = match self.wait {
                Some(_) => Some(super::status::fetch(&found.doors.admin).await?),
                None => None,
            };
            if self.test {
                send_test(&mut feed, &found).await?;
            } else {
                self.send_files(&mut feed, &found).await?;
            }
            match (self.wait, before) {
                (Some(limit), Some(before)) => wait(limit, &before, &found).await,
                _ => Ok(()),
            }
        })
    }

    /// A document that is refused stops nothing: those behind it are as good as ever, and the user is told which are
    /// not.
    async fn send_files(&self, feed: &mut Feed, found: &Found) -> Outcome {
        let mut outcome = Ok(());
        for file in &self.files {
            outcome = send_file(file, feed).await;
            if outcome.is_err() {
                break;
            }
        }
        // What was read before a mistake is still on its way.
        let finished = feed.finish().await;
        let outcome = outcome.and(finished).and_then(|()| feed.conclude());
        let said = format!("{}, acknowledged by the daemon at {}", feed.taken, found.path.display());
        match outcome {
            Ok(()) => super::print(&format!("{said}\n")),
            Err(failure) if feed.taken.documents == 0 => Err(failure),
            Err(failure) => Err(Failure { message: format!("{}\n{said}", failure.message), ..failure }),
        }
    }
}

async fn send_test(feed: &mut Feed, found: &Found) -> Outcome {
    let test = TestTrace::new(SystemTime::now());
    let document = Document { bytes: test.request, form: Form::Protobuf, line: None };
    feed.offer(document, "the test trace".into()).await?;
    feed.conclude()?;
    let record = feed.taken.records.map_or_else(String::new, |(record, _)| format!(" as record {record}"));
    super::print(&format!(
        "trace {} is on disk{record}, acknowledged by the daemon at {}\n",
        test.id,
        found.path.display()
    ))
}

async fn send_file(file: &Path, feed: &mut Feed) -> Outcome {
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
    while let Some(document) = documents.next().map_err(bad)? {
        let place = document.line.map_or_else(|| name.clone(), |line| format!("{name}:{line}"));
        feed.offer(document, place).await?;
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
