//! Hands documents to the daemon's spool socket: JSON as lines, many under way at once, and protobuf by HTTP.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::UnixStream;
use tokio::time::timeout_at;

use super::client::{self, Client, within};
use super::documents::{Document, Form};
use crate::exit::{Exit, Failure, Outcome};

/// First pause after the daemon had no room, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Lines under way at most. Their answers fit into a socket's buffer, so that the daemon never waits for this side.
const WINDOW: usize = 64;
/// The same in bytes, beside a longer one.
const WINDOW_BYTES: usize = 8 << 20;

/// Longest line of answer.
const LONGEST_ANSWER: usize = 64 << 10;

/// Refusals that are said one by one.
const REFUSALS_SAID: u64 = 20;

/// How often progress is shown.
const SHOW_EVERY: Duration = Duration::from_millis(100);

/// What is handed over, and what came of it.
pub(super) struct Feed {
    path: PathBuf,
    timeout: Duration,
    client: Client,
    lines: Option<BufStream<UnixStream>>,
    /// Half a line may be on its way: nothing can follow it.
    is_broken: bool,
    /// On their way, in order.
    window: VecDeque<Offer>,
    window_bytes: usize,
    /// To be offered again.
    again: VecDeque<Offer>,
    pause: Duration,
    /// Why something is to be offered again.
    trouble: (Exit, String),
    /// What came of it.
    pub taken: Taken,
    progress: Progress,
}

/// A document as a line, with its place for messages and the end of our patience.
struct Offer {
    line: Bytes,
    place: String,
    until: Instant,
}

/// What the daemon took and refused.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Documents that it acknowledged.
    pub documents: u64,
    /// Those without a span, which need no record.
    pub empty: u64,
    /// Documents that it refused for good.
    pub refused: u64,
    /// The lowest and the highest record.
    pub records: Option<(u64, u64)>,
    /// The code of the first refusal.
    refused_with: Option<Exit>,
    bytes: u64,
}

/// One line of the daemon.
#[derive(Debug, Deserialize)]
struct Answer {
    ok: bool,
    record: Option<u64>,
    #[serde(default)]
    error: String,
    #[serde(default)]
    retry: bool,
}

impl Feed {
    pub(super) fn new(path: PathBuf, timeout: Duration) -> Self {
        Self {
            client: Client::new(path.clone()),
            path,
            timeout,
            lines: None,
            is_broken: false,
            window: VecDeque::new(),
            window_bytes: 0,
            again: VecDeque::new(),
            pause: PAUSES.0,
            trouble: (Exit::Unavailable, String::new()),
            taken: Taken::default(),
            progress: Progress::new(),
        }
    }

    /// Hands a document over; returns when there is room for the next, not when it is on disk.
    ///
    /// # Errors
    /// Patience is at its end. Refusals for good are counted and said.
    pub(super) async fn offer(&mut self, document: Document, place: String) -> Outcome {
        let bytes = Bytes::from(document.bytes);
        match document.form {
            Form::Line => {
                let until = Instant::now() + self.timeout;
                self.put(Offer { line: bytes, place, until }).await;
                while self.window.len() >= WINDOW || self.window_bytes >= WINDOW_BYTES {
                    self.settle_one().await?;
                }
                Ok(())
            }
            Form::Protobuf => {
                self.finish().await?;
                self.post(bytes, &place).await
            }
        }
    }

    /// Returns when everything that was offered is on disk or refused.
    ///
    /// # Errors
    /// As [`Feed::offer`].
    pub(super) async fn finish(&mut self) -> Outcome {
        while !self.window.is_empty() {
            self.settle_one().await?;
        }
        self.progress.end();
        Ok(())
    }

    /// Says whether all was taken.
    ///
    /// # Errors
    /// Something was refused for good.
    pub(super) fn conclude(&self) -> Outcome {
        match (self.taken.refused, self.taken.refused_with) {
            (0, _) | (_, None) => Ok(()),
            (refused, Some(exit)) => {
                Err(Failure::new(exit, format!("the daemon refused {}", count(refused, "document"))))
            }
        }
    }

    /// Writes a line. A connection that breaks shows when its answer is read.
    async fn put(&mut self, offer: Offer) {
        if self.lines.is_none() && self.window.is_empty() {
            match client::connect(&self.path) {
                Ok(stream) => (self.lines, self.is_broken) = (Some(BufStream::new(stream)), false),
                Err(error) => self.trouble = (Exit::Unavailable, error.to_string()),
            }
        }
        if let Some(stream) = self.lines.as_mut().filter(|_| !self.is_broken) {
            let write = async {
                stream.write_all(&offer.line).await?;
                stream.write_all(b"\n").await?;
                stream.flush().await
            };
            let broken = match timeout_at(offer.until.into(), write).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("the daemon does not read".into()),
            };
            if let Some(reason) = broken {
                // What was read before may still be answered, and is then not offered twice.
                self.is_broken = true;
                self.trouble = (Exit::Unavailable, reason);
            }
        }
        self.window_bytes += offer.line.len();
        self.window.push_back(offer);
    }

    /// Reads the answer to the oldest line. When no line is left under way, those without luck are offered again.
    async fn settle_one(&mut self) -> Outcome {
        match self.read_answer().await {
            Ok(answer) => {
                let Some(offer) = self.window.pop_front() else { return Ok(()) };
                self.window_bytes -= offer.line.len();
                if answer.ok {
                    self.pause = PAUSES.0;
                    self.took(answer.record, offer.line.len());
                } else if answer.retry {
                    self.trouble = (Exit::TryLater, answer.error);
                    self.again.push_back(offer);
                } else {
                    let exit = if answer.error.contains("allow_uids") { Exit::NotPermitted } else { Exit::BadInput };
                    self.refuse(exit, &offer.place, &answer.error);
                }
            }
            Err(reason) => {
                // A lost answer means that it is offered again: twice is better than never.
                if self.lines.take().is_some() {
                    self.trouble = (Exit::Unavailable, reason);
                }
                self.again.append(&mut self.window);
                self.window_bytes = 0;
            }
        }
        if self.window.is_empty() && !self.again.is_empty() {
            return self.offer_again().await;
        }
        Ok(())
    }

    async fn read_answer(&mut self) -> Result<Answer, String> {
        let (Some(offer), Some(stream)) = (self.window.front(), &mut self.lines) else {
            return Err("there is no connection".into());
        };
        let mut line = String::new();
        let read = async {
            use tokio::io::AsyncReadExt;
            (&mut *stream).take(LONGEST_ANSWER as u64).read_line(&mut line).await
        };
        match timeout_at(offer.until.into(), read).await {
            Err(_) => Err("the daemon does not answer".into()),
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(0)) => Err("the daemon closed the connection".into()),
            Ok(Ok(_)) => serde_json::from_str(&line).map_err(|_| "the daemon's answer is not understood".into()),
        }
    }

    async fn offer_again(&mut self) -> Outcome {
        if let Some(first) = self.again.front()
            && Instant::now() + self.pause >= first.until
        {
            return Err(self.give_up(&first.place));
        }
        // Many senders that were refused together must not come back together.
        tokio::time::sleep(self.pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        self.pause = (self.pause * 2).min(PAUSES.1);
        for offer in std::mem::take(&mut self.again) {
            self.put(offer).await;
        }
        Ok(())
    }

    fn give_up(&self, place: &str) -> Failure {
        let limit = crate::config::units::time(self.timeout);
        let (exit, reason) = &self.trouble;
        Failure::new(*exit, format!("{place}: not taken within {limit}: {reason}"))
    }

    /// Offers one message by HTTP until it is taken, refused for good, or time is up.
    async fn post(&mut self, body: Bytes, place: &str) -> Outcome {
        let until = Instant::now() + self.timeout;
        let mut pause = PAUSES.0;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let answer = within(left, self.client.post("/v1/traces", "application/x-protobuf", body.clone())).await;
            self.trouble = match answer {
                Ok(answer) if answer.status.is_success() => {
                    self.took(answer.record, body.len());
                    self.progress.end();
                    return Ok(());
                }
                Ok(answer) => match answer.status.as_u16() {
                    408 | 429 | 502..=504 => (Exit::TryLater, answer.reason()),
                    status => {
                        let exit = match status {
                            401 | 403 => Exit::NotPermitted,
                            400..=499 => Exit::BadInput,
                            _ => Exit::Unavailable,
                        };
                        self.refuse(exit, place, &answer.reason());
                        return Ok(());
                    }
                },
                // It was there a moment ago, so it is probably being restarted.
                Err(reason) => (Exit::Unavailable, reason),
            };
            if Instant::now() + pause >= until {
                return Err(self.give_up(place));
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    fn took(&mut self, record: Option<u64>, bytes: usize) {
        self.taken.documents += 1;
        self.taken.bytes += bytes as u64;
        match record {
            None => self.taken.empty += 1,
            Some(record) => {
                let (low, high) = self.taken.records.unwrap_or((record, record));
                self.taken.records = Some((low.min(record), high.max(record)));
            }
        }
        self.progress.show(&self.taken);
    }

    fn refuse(&mut self, exit: Exit, place: &str, error: &str) {
        self.progress.end();
        self.taken.refused += 1;
        self.taken.refused_with.get_or_insert(exit);
        match self.taken.refused {
            ..=REFUSALS_SAID => super::remark(&format!("{place}: the daemon refuses it: {error}")),
            said if said == REFUSALS_SAID + 1 => super::remark("more are refused, and not said one by one"),
            _ => {}
        }
    }
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verb = if self.documents == 1 { "is" } else { "are" };
        write!(f, "{} {verb} on disk", count(self.documents, "document"))?;
        match self.records {
            Some((low, high)) if low == high => write!(f, " as record {low}")?,
            // Others may have written in between.
            Some((low, high)) => write!(f, " as records from {low} to {high}")?,
            None => {}
        }
        if self.empty > 0 && self.records.is_some() {
            write!(f, " ({} without spans)", self.empty)?;
        }
        Ok(())
    }
}

fn count(number: u64, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

/// A line on the terminal that says how far it is; nothing elsewhere.
struct Progress {
    shown: Option<Instant>,
    is_terminal: bool,
}

impl Progress {
    fn new() -> Self {
        Self { shown: None, is_terminal: std::io::stderr().is_terminal() }
    }

    fn show(&mut self, taken: &Taken) {
        if self.is_terminal && self.shown.is_none_or(|shown| shown.elapsed() >= SHOW_EVERY) {
            self.shown = Some(Instant::now());
            let (documents, bytes) = (count(taken.documents, "document"), bytesize::ByteSize(taken.bytes));
            let _ = write!(std::io::stderr(), "\r\x1b[K{documents} on disk, {bytes}");
        }
    }

    /// Clears the line for what is said next.
    fn end(&mut self) {
        if self.shown.take().is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_reads_like_a_sentence() {
        let taken = |documents, empty, records| Taken { documents, empty, records, ..Taken::default() };
        assert_eq!(taken(0, 0, None).to_string(), "0 documents are on disk");
        assert_eq!(taken(1, 0, Some((7, 7))).to_string(), "1 document is on disk as record 7");
        assert_eq!(
            taken(3, 1, Some((7, 9))).to_string(),
            "3 documents are on disk as records from 7 to 9 (1 without spans)"
        );
        assert_eq!(taken(1, 1, None).to_string(), "1 document is on disk");
    }
}
