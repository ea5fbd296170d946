//! What `status` shows, put together from the books and the journal.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use spool::disk::Disk;
use spool::{Shared, Step, Tally};

use crate::accounts::{Accounts, Book, LaneState};
use crate::clock::wall_time;
use crate::receive;
use crate::side::Letters;
use crate::status::{
    Backend, BackendState, Backlog, Damage, DeadLetters, Discarded, Kept, LastError, Received, Refused, Rejected,
    Spool, State, Status, Timestamp, Volume,
};

/// Everything that `status` looks at.
pub struct View {
    /// The backends of the configuration with their kinds.
    pub kinds: BTreeMap<String, &'static str>,
    /// `spool.max_bytes`.
    pub max_bytes: u64,
    /// `dead_letters.max_bytes`.
    pub dead_letters_max_bytes: u64,
    /// Where everything lies.
    pub state_dir: PathBuf,
    /// The TCP addresses that were really taken.
    pub addresses: Vec<SocketAddr>,
    /// When the daemon started.
    pub started_at: SystemTime,
    /// Set when the doors close.
    pub stopping: AtomicBool,
    /// The books.
    pub accounts: Arc<Accounts>,
    /// What the doors refused.
    pub received: Arc<receive::Received>,
    /// The drop directory.
    pub directory: Option<Arc<receive::directory::Figures>>,
    /// The journal.
    pub journal: Shared,
    /// The side journal.
    pub side: Shared,
    /// Bytes on disk beside the journal.
    pub other_bytes: Box<dyn Fn() -> u64 + Send + Sync>,
    /// For the question how much room there is.
    pub disk: Arc<dyn Disk>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl View {
    /// Whether the doors are open.
    pub fn is_ready(&self) -> bool {
        !self.stopping.load(Ordering::Relaxed)
    }

    /// The daemon at this moment. Reads a record of each backend from the disk, for its age.
    pub fn status(&self) -> Status {
        self.received.enter(&self.accounts);
        let report = self.accounts.report();
        let received = report.received;
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            state: if self.is_ready() { State::Ready } else { State::Stopping },
            started_at: Some(Timestamp(self.started_at)),
            listen: self.addresses.iter().map(SocketAddr::to_string).collect(),
            spool: self.spool(&report.books),
            received: Received {
                requests: received.requests,
                traces: received.traces,
                spans: received.spans,
                bytes: received.bytes,
                refused: Refused {
                    full: received.refused_full,
                    invalid: received.refused_invalid,
                    too_large: received.refused_too_large,
                },
            },
            directory: self.directory.as_ref().map(|directory| directory.report()),
            backends: report.books.iter().map(|book| self.backend(book)).collect(),
            replays: Vec::new(),
        }
    }

    fn spool(&self, books: &[Book]) -> Spool {
        let segments = self.journal.segments();
        let stored = segments.iter().fold(Tally::default(), |sum, segment| sum.plus(segment.tally));
        // Places differ, and the backend furthest behind waits for everything that any other waits for.
        let waiting = books.iter().map(|book| book.waiting).max_by_key(|waiting| waiting.records);
        let waiting = waiting.unwrap_or(stored);
        let lowest = books.iter().map(|book| book.account.lowest_needed()).min();
        let kept = stored.less(waiting);
        let dead = books.iter().fold(Tally::default(), |sum, book| sum.plus(book.account.dead));
        let damage = self.journal.damage().plus(self.side.damage());
        let first = self.received_at(self.journal.first_record());
        Spool {
            records: waiting.records,
            traces: waiting.traces,
            spans: waiting.spans,
            bytes: self.journal.file_bytes() + (self.other_bytes)(),
            max_bytes: self.max_bytes,
            oldest_at: if waiting.records == 0 { None } else { lowest.map_or(first, |place| self.received_at(place)) },
            disk_free_bytes: self.disk.free_bytes(&self.state_dir).unwrap_or(0),
            seconds_until_full: None,
            kept: Kept {
                records: kept.records,
                bytes: kept.bytes,
                oldest_at: if kept.records == 0 { None } else { first },
            },
            dead_letters: DeadLetters {
                records: dead.records,
                bytes: dead.bytes,
                max_bytes: self.dead_letters_max_bytes,
                oldest_at: if dead.records == 0 { None } else { self.oldest_letter() },
            },
            damage: Damage { records: damage.records, bytes: damage.bytes },
        }
    }

    fn backend(&self, book: &Book) -> Backend {
        let Book { account, waiting, lane, .. } = book;
        let lane_status = lane.as_ref();
        let volume = |tally: Tally| Volume { records: tally.records, spans: tally.units, bytes: tally.bytes };
        let discarded = account.discarded;
        Backend {
            name: book.name.clone(),
            kind: self.kinds.get(&book.name).copied().unwrap_or_default().to_owned(),
            state: lane_status.map_or(BackendState::Removed, |lane| shown(lane.state)),
            owed: book.owed,
            backlog: Backlog {
                records: waiting.records,
                traces: waiting.traces,
                spans: waiting.units,
                bytes: waiting.bytes,
                oldest_at: if waiting.records == 0 { None } else { self.received_at(account.place) },
                parked: account.parked.records,
            },
            in_flight: lane_status.map_or(0, |lane| u64::from(lane.in_flight)),
            delivered: volume(account.delivered),
            rejected: Rejected { spans: account.rejected },
            dead: volume(account.dead),
            discarded: Discarded {
                retry_timeout: discarded.retry_timeout,
                queue_cap: discarded.queue_cap,
                dead_letter_cap: discarded.dead_letter_cap,
                dead_letter_age: discarded.dead_letter_age,
                purged: discarded.purged,
            },
            damaged: account.damaged,
            not_applicable: account.not_applicable,
            attempts: account.attempts,
            last_error: lane_status.and_then(|lane| lane.last_error.as_ref()).map(|(at, failure)| LastError {
                at: Timestamp(*at),
                status: failure.status.clone(),
                message: failure.message.clone(),
                advice: failure.advice.map(str::to_owned),
            }),
            next_attempt_at: lane_status.and_then(|lane| lane.next_attempt_at).map(Timestamp),
        }
    }

    /// When the oldest dead letter came in.
    fn oldest_letter(&self) -> Option<Timestamp> {
        let (lowest, settled, whole) = self.accounts.look(|state| {
            let whole = state.labels.iter().map(|label| label.received_ns).min();
            (state.side_lowest(), state.side_settled.clone(), whole)
        });
        let copied = Letters::of(&self.side, lowest).next(&settled).ok().flatten().map(|letter| letter.received_ns);
        whole.into_iter().chain(copied).min().map(|ns| Timestamp(wall_time(ns)))
    }

    /// When the first record at or behind `place` came in.
    fn received_at(&self, place: u64) -> Option<Timestamp> {
        match self.journal.reader(place).step() {
            Ok(Step::Record(record)) => Some(Timestamp(wall_time(record.envelope.received_ns))),
            _ => None,
        }
    }
}

fn shown(state: LaneState) -> BackendState {
    match state {
        LaneState::Up => BackendState::Up,
        LaneState::Retrying => BackendState::Retrying,
        LaneState::Blocked => BackendState::Blocked,
        LaneState::Paused => BackendState::Paused,
    }
}
