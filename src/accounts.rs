//! The books: what every backend was owed, got, and waits for.
//!
//! Lanes write here as records end one way or another; the committer takes a snapshot into every checkpoint, so that a
//! place and its counters are always of the same moment.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;

use spool::{Account, Control, PromisedExperiment, Received, State, Tally};

use crate::backend::Failure;

/// All books of the daemon.
#[derive(Debug)]
pub struct Accounts {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    received: Received,
    /// Full, invalid, too large: as the journal had them when this process started.
    refused_at_start: [u64; 3],
    /// Everything committed since this process started.
    committed: Tally,
    entries: BTreeMap<String, Entry>,
    /// Experiments that apps were given provisional ids for, by that id.
    experiments: BTreeMap<String, PromisedExperiment>,
    /// Counts changes, so that an idle daemon writes nothing.
    version: u64,
}

#[derive(Debug)]
struct Entry {
    /// Place and counters; what a checkpoint holds.
    account: Account,
    /// What the backend waited for when this process started.
    waiting_at_start: Tally,
    /// What it was owed, ever, when this process started.
    owed_at_start: u64,
    /// What ended since.
    finished: Tally,
    /// `None` for a backend that is no longer configured.
    lane: Option<LaneStatus>,
}

/// All books at one moment.
#[derive(Debug, Clone)]
pub struct Report {
    /// What came in.
    pub received: Received,
    /// One per backend that ever was.
    pub books: Vec<Book>,
}

/// One backend's books at one moment.
#[derive(Debug, Clone)]
pub struct Book {
    /// The backend.
    pub name: String,
    /// Place and counters.
    pub account: Account,
    /// Units it was ever owed. Counted on its own, so that the accounts can be seen to balance.
    pub owed: u64,
    /// What it waits for.
    pub waiting: Tally,
    /// What its lane is doing; `None` for a backend that is no longer configured.
    pub lane: Option<LaneStatus>,
}

/// What a lane is doing, for `status`.
#[derive(Debug, Clone, Default)]
pub struct LaneStatus {
    /// How the backend behaves.
    pub state: LaneState,
    /// Requests under way.
    pub in_flight: u32,
    /// The last trouble, and when.
    pub last_error: Option<(SystemTime, Failure)>,
    /// When the next attempt is due, while the lane waits for one.
    pub next_attempt_at: Option<SystemTime>,
}

/// How a backend behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LaneState {
    /// It takes what it is sent.
    #[default]
    Up,
    /// Trouble that may pass; it is probed with growing pauses.
    Retrying,
    /// The operator must act.
    Blocked,
    /// The operator stopped delivery.
    Paused,
}

impl std::fmt::Display for LaneState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Retrying => "retrying",
            Self::Blocked => "blocked",
            Self::Paused => "paused",
        })
    }
}

impl Accounts {
    /// The books as the journal's state has them.
    #[must_use]
    pub fn new(state: &State) -> Self {
        let entry = |account: &Account| Entry {
            account: account.clone(),
            waiting_at_start: Tally::default(),
            owed_at_start: account.settled(),
            finished: Tally::default(),
            lane: None,
        };
        let entries = state.accounts.iter().map(|(name, account)| (name.clone(), entry(account))).collect();
        let received = state.received;
        let refused_at_start = [received.refused_full, received.refused_invalid, received.refused_too_large];
        let experiments = state.experiments.clone();
        let inner = Inner { received, refused_at_start, committed: Tally::default(), entries, experiments, version: 0 };
        Self { inner: Mutex::new(inner) }
    }

    /// Notes what a backend waits for at the start of this process, before anything is committed.
    pub fn open(&self, name: &str, waiting: Tally, configured: bool) {
        let mut inner = self.lock();
        if let Some(entry) = inner.entries.get_mut(name) {
            entry.waiting_at_start = waiting;
            entry.owed_at_start = entry.account.settled() + waiting.units;
            entry.lane = configured.then(LaneStatus::default);
        }
    }

    /// Counts what a commit made durable.
    pub fn commit(&self, tally: Tally, next_record: u64) {
        let mut inner = self.lock();
        inner.committed += tally;
        inner.received.count(tally, next_record);
        inner.version += 1;
    }

    /// Sets how many requests were refused since this process started.
    pub fn set_refused(&self, full: u64, invalid: u64, too_large: u64) {
        let mut inner = self.lock();
        let before = inner.received;
        let at_start = inner.refused_at_start;
        inner.received.refused_full = at_start[0] + full;
        inner.received.refused_invalid = at_start[1] + invalid;
        inner.received.refused_too_large = at_start[2] + too_large;
        inner.version += u64::from(inner.received != before);
    }

    /// Changes a backend's books: `finished` of what it waited for has ended in the way that `change` notes.
    pub fn settle(&self, name: &str, finished: Tally, change: impl FnOnce(&mut Account)) {
        let mut inner = self.lock();
        inner.version += 1;
        if let Some(entry) = inner.entries.get_mut(name) {
            entry.finished += finished;
            change(&mut entry.account);
        }
    }

    /// Notes that records were lost to damage. Those that had ended already are not counted again. Returns what was lost.
    pub fn lose(&self, name: &str, damage: &spool::Damage) -> Tally {
        let mut inner = self.lock();
        inner.version += 1;
        let Some(entry) = inner.entries.get_mut(name) else { return Tally::default() };
        let account = &mut entry.account;
        let open = damage.records.start.max(account.place)..damage.records.end;
        let lost =
            account.finished.missing_in(open).fold(Tally::default(), |sum, part| sum.plus(damage.tally_in(&part)));
        entry.finished += lost;
        account.damaged += lost.units;
        account.finish(damage.records.clone());
        lost
    }

    /// Changes what `status` says of a lane.
    pub fn lane(&self, name: &str, change: impl FnOnce(&mut LaneStatus)) {
        let mut inner = self.lock();
        if let Some(lane) = inner.entries.get_mut(name).and_then(|entry| entry.lane.as_mut()) {
            change(lane);
        }
    }

    /// What a checkpoint holds, and a number that changes when it does.
    #[must_use]
    pub fn snapshot(&self, clock_ms: u64) -> (State, u64) {
        let inner = self.lock();
        let accounts = inner.entries.iter().map(|(name, entry)| (name.clone(), entry.account.clone())).collect();
        (State { clock_ms, received: inner.received, accounts, experiments: inner.experiments.clone() }, inner.version)
    }

    /// Changes whenever a snapshot would.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.lock().version
    }

    /// Whether a backend needs nothing more of a record.
    #[must_use]
    pub fn is_finished(&self, name: &str, record: u64) -> bool {
        self.lock().entries.get(name).is_some_and(|entry| entry.account.is_finished(record))
    }

    /// Behind the highest record that a backend's books know of.
    #[must_use]
    pub fn seen(&self, name: &str) -> u64 {
        self.lock().entries.get(name).map_or(0, |entry| entry.account.seen())
    }

    /// For how long delivery was held up until an operator acted, ever.
    #[must_use]
    pub fn idle_ms(&self, name: &str) -> u64 {
        self.lock().entries.get(name).map_or(0, |entry| entry.account.idle_ms)
    }

    /// The experiment that is promised under an id.
    #[must_use]
    pub fn promised(&self, id: &str) -> Option<PromisedExperiment> {
        self.lock().experiments.get(id).cloned()
    }

    /// Promises an experiment under the id `new`, unless it is promised already: the fact is to be durable before
    /// anybody is told, also when it is another's that may be on its way. Nothing when there are `max` promises.
    pub fn promise(&self, name: &str, workspace: Option<&str>, new: &str, max: usize) -> Option<Control> {
        let mut inner = self.lock();
        let is_it = |known: &&PromisedExperiment| known.name == name && known.workspace.as_deref() == workspace;
        if let Some(known) = inner.experiments.values().find(is_it) {
            return Some(Control::ExperimentPromised(known.clone()));
        }
        if inner.experiments.len() >= max {
            return None;
        }
        let workspace = workspace.map(str::to_owned);
        let made = PromisedExperiment { id: new.into(), name: name.into(), workspace, found: BTreeMap::new() };
        inner.experiments.insert(made.id.clone(), made.clone());
        inner.version += 1;
        Some(Control::ExperimentPromised(made))
    }

    /// A backend's server has the promised experiment under this id.
    pub fn found_experiment(&self, promised: &str, backend: &str, id: &str) {
        let mut inner = self.lock();
        if let Some(experiment) = inner.experiments.get_mut(promised) {
            let before = experiment.found.insert(backend.to_owned(), id.to_owned());
            inner.version += u64::from(before.as_deref() != Some(id));
        }
    }

    /// All books at one moment.
    #[must_use]
    pub fn report(&self) -> Report {
        let inner = self.lock();
        let book = |(name, entry): (&String, &Entry)| {
            let new = if entry.account.is_removed() { Tally::default() } else { inner.committed };
            Book {
                name: name.clone(),
                account: entry.account.clone(),
                owed: entry.owed_at_start + new.units,
                waiting: entry.waiting_at_start.plus(new).less(entry.finished),
                lane: entry.lane.clone(),
            }
        };
        Report { received: inner.received, books: inner.entries.iter().map(book).collect() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("the books are locked for moments that cannot panic")
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use bytes::Bytes;
    use spool::disk::OsDisk;
    use spool::{Draft, Envelope, Journal, Now, Options, Step};

    use super::*;

    /// Four records of 3, 4, 5 and 6 spans in one group, of which the headers of the middle two are overwritten.
    fn damaged(dir: &Path) -> spool::Damage {
        let mut opened = Journal::open(Arc::new(OsDisk), dir, Options::default(), 1).expect("the journal opens");
        for spans in 3..7 {
            let envelope = Envelope { spans, ..Envelope::default() };
            opened.writer.stage(Draft { envelope, payload: Bytes::from_static(&[b'x'; 3000]) });
        }
        opened.writer.commit(Now::default(), &mut State::default).expect("committed");
        let file = std::fs::OpenOptions::new().write(true).open(dir.join("0000000000000001.seg")).expect("there");
        let group = 2 * 4096;
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 3200], group + 3232).expect("written");
        let mut reader = opened.shared.reader(1);
        loop {
            match reader.step().expect("readable") {
                Step::Damaged(damage) => return damage,
                Step::Record(_) => {}
                Step::End => panic!("no damage was met"),
            }
        }
    }

    #[test]
    fn damage_leaves_no_residue_and_counts_nothing_twice() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let damage = damaged(&dir.path().join("journal"));
        assert_eq!((damage.records.clone(), damage.tally().units), (2..4, 9));
        for already in [0..0, 2..3, 3..4, 2..4] {
            let state = State { accounts: [("a".to_owned(), Account::from_record(1))].into(), ..State::default() };
            let accounts = Accounts::new(&state);
            let all = Tally { records: 4, units: 18, spans: 18, bytes: 12_000, traces: 0 };
            accounts.open("a", all, true);
            let ended = damage.tally_in(&already);
            accounts.settle("a", ended, |account| {
                account.finish(already.clone());
                account.delivered += ended;
            });
            assert_eq!(accounts.lose("a", &damage), damage.tally().less(ended));
            accounts.lose("a", &damage);
            let rest = all.less(damage.tally());
            let book = accounts.report().books.remove(0);
            assert_eq!(book.waiting, rest, "with {already:?} ended before");
            assert_eq!(book.owed, book.account.settled() + book.waiting.units);
        }
    }
}
