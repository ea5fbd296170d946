//! The ledger: sled and bincode behind typed rows. A view of the journal for fast starts; it may be thrown away.
//!
//! It holds each backend's books as they were a moment ago, so that a start after kill -9 sends again only what was
//! under way, not what was delivered since the last checkpoint. Nothing lives in it alone.

mod follow;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bincode::{Decode, Encode};
use spool::{Account, Discarded, State, Tally};

pub use follow::Follower;

const SCHEMA_KEY: &[u8] = b"schema";
/// Which spool it follows.
const SPOOL_KEY: &[u8] = b"spool";
/// Raised whenever a row changes its shape; another schema is another ledger.
const SCHEMA: u32 = 2;
/// sled's file has this size at least, once it was opened again.
pub const MIN_BYTES: u64 = 512 << 10;
/// How long the lock of a database that was just closed is waited for,
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// and how often it is looked at.
const LOCK_LOOK: Duration = Duration::from_millis(10);
/// sled's default is 1 GB.
const CACHE_BYTES: u64 = 4 << 20;

/// An open ledger.
#[derive(Debug)]
pub struct Ledger {
    db: sled::Db,
    path: PathBuf,
}

/// What a start found.
#[derive(Debug)]
pub struct Opened {
    /// The ledger; `None` when the disk does not even allow a new one: the daemon goes on without.
    pub ledger: Option<Ledger>,
    /// The books it holds.
    pub accounts: Books,
    /// Whose books they are; `None` in a new ledger.
    pub spool_id: Option<u64>,
    /// Where a ledger that is of no use was put, and why.
    pub set_aside: Option<(PathBuf, String)>,
}

/// A backend's books at the moment when they were saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Place and counters.
    pub account: Account,
    /// How many facts were folded into them.
    pub facts: u64,
}

/// Every backend's books, by name.
pub type Books = BTreeMap<String, Saved>;

/// A ledger that can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The database failed.
    #[error("{0}")]
    Database(#[from] sled::Error),
    /// A row is not what was written.
    #[error("a row can't be read: {0}")]
    Row(#[from] bincode::error::DecodeError),
    /// A row can't be written.
    #[error("a row can't be written: {0}")]
    Encode(#[from] bincode::error::EncodeError),
    /// Written by another version.
    #[error("it has another schema")]
    Schema,
    /// It follows the books of another spool.
    #[error("it belongs to another spool")]
    Foreign,
    /// A key is not a name.
    #[error("a key can't be read")]
    Key,
}

impl Ledger {
    /// Opens the ledger at `path`. One that can't be read is set aside beside it, and a new one begun. On a full disk
    /// there may be none for now.
    #[must_use]
    pub fn open(path: &Path, wall_ns: u64) -> Opened {
        match Self::try_open(path) {
            Ok((ledger, accounts, spool_id)) => Opened { ledger: Some(ledger), accounts, spool_id, set_aside: None },
            // Nothing is wrong with what is there; it is tried again when there is room.
            Err(error) if error.is_full() => Opened::none(None),
            Err(error) => Self::begin_anew(path, &error, wall_ns),
        }
    }

    /// Sets the ledger at `path` aside and begins a new one.
    fn begin_anew(path: &Path, why: &LedgerError, wall_ns: u64) -> Opened {
        let aside = path.with_extension(format!("damaged-{wall_ns}"));
        // When even this fails, the next open says so, and the daemon goes on without a ledger.
        let _ = std::fs::rename(path, &aside);
        let opened = Opened::none(Some((aside, why.to_string())));
        Opened { ledger: Self::try_open(path).ok().map(|(ledger, ..)| ledger), ..opened }
    }

    fn try_open(path: &Path) -> Result<(Self, Books, Option<u64>), LedgerError> {
        let db = open_database(path)?;
        match db.get(SCHEMA_KEY)? {
            None => {
                db.insert(SCHEMA_KEY, &SCHEMA.to_le_bytes())?;
            }
            Some(schema) if *schema == SCHEMA.to_le_bytes() => {}
            Some(_) => return Err(LedgerError::Schema),
        }
        let mut accounts = BTreeMap::new();
        for item in db.open_tree("accounts")?.iter() {
            let (name, row) = item?;
            let name = std::str::from_utf8(&name).map_err(|_| LedgerError::Key)?;
            let (row, _): (Row, usize) = bincode::decode_from_slice(&row, bincode::config::standard())?;
            accounts.insert(name.to_owned(), row.into());
        }
        let spool_id = db.get(SPOOL_KEY)?.and_then(|id| Some(u64::from_le_bytes(id.as_ref().try_into().ok()?)));
        Ok((Self { db, path: path.to_path_buf() }, accounts, spool_id))
    }

    /// Writes every backend's books.
    ///
    /// # Errors
    /// Of the database. After one the ledger is of no use until it is opened again.
    pub fn save(&self, state: &State) -> Result<(), LedgerError> {
        let tree = self.db.open_tree("accounts")?;
        self.db.insert(SPOOL_KEY, &state.spool_id.to_le_bytes())?;
        for (name, account) in &state.accounts {
            // The number of facts is in each row: rows that were saved together need not survive together.
            let row = Row { facts: state.facts, ..Row::from(account) };
            let row = bincode::encode_to_vec(row, bincode::config::standard())?;
            tree.insert(name.as_bytes(), row)?;
        }
        self.db.flush()?;
        Ok(())
    }

    /// Bytes on disk.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.db.size_on_disk().unwrap_or(0)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Opens the database, and waits a little for its lock. Whoever opens a ledger holds the state directory, so no other
/// daemon has it: it is what is left of a handle that was just closed, in a thread of sled's, or in a child between fork and
/// exec. Taking that for damage would set a good ledger aside.
fn open_database(path: &Path) -> Result<sled::Db, sled::Error> {
    let began = Instant::now();
    loop {
        match sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None).open() {
            Err(sled::Error::Io(error)) if is_locked(&error) && began.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(LOCK_LOOK);
            }
            opened => return opened,
        }
    }
}

/// sled has no error of its own for this.
fn is_locked(error: &std::io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

impl LedgerError {
    fn is_full(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Database(sled::Error::Io(error)) if matches!(error.kind(), StorageFull | QuotaExceeded))
    }
}

impl Opened {
    fn none(set_aside: Option<(PathBuf, String)>) -> Self {
        Self { ledger: None, accounts: BTreeMap::new(), spool_id: None, set_aside }
    }

    /// The ledger, if it is that of this spool; else it is set aside and a new one begun.
    #[must_use]
    pub fn of_spool(self, spool_id: u64, wall_ns: u64) -> Self {
        match &self.ledger {
            Some(ledger) if self.spool_id.is_some_and(|found| found != spool_id) => {
                let path = ledger.path.clone();
                // Closed before the new one is opened.
                drop(self);
                Ledger::begin_anew(&path, &LedgerError::Foreign, wall_ns)
            }
            _ => self,
        }
    }
}

/// Puts the ledger at `path` out of the way, so that the next start builds it again from the journal. Returns where it is
/// then.
pub fn set_aside(path: &Path, wall_ns: u64) -> PathBuf {
    let aside = path.with_extension(format!("damaged-{wall_ns}"));
    // When even this fails, the next open says so, and the daemon goes on without a ledger.
    let _ = std::fs::rename(path, &aside);
    aside
}

/// Takes from the ledger what it knows better: it is further than the journal's last checkpoint when it has seen more
/// attempts, of which there are only ever more. What an operator decided stays as the journal has it. Books with other
/// facts in them than the journal's are of no use: what a limit gave up would be counted twice, or not at all.
pub fn merge(state: &mut State, ledger: Books) {
    let facts = state.facts;
    for (name, Saved { account: further, .. }) in ledger.into_iter().filter(|(_, saved)| saved.facts == facts) {
        let progress = |account: &Account| (account.attempts, account.settled());
        if let Some(account) = state.accounts.get_mut(&name).filter(|account| progress(&further) > progress(account)) {
            *account = Account { start: account.start, end: account.end, paused: account.paused, ..further };
        }
    }
}

type TallyRow = [u64; 5];

/// An account as it is stored.
#[derive(Debug, Encode, Decode)]
struct Row {
    start: u64,
    place: u64,
    finished: Vec<(u64, u64)>,
    side_place: u64,
    delivered: TallyRow,
    dead: TallyRow,
    parked: TallyRow,
    discarded: [u64; 5],
    rejected: u64,
    damaged: u64,
    not_applicable: u64,
    attempts: u64,
    idle_ms: u64,
    facts: u64,
}

impl From<&Account> for Row {
    fn from(account: &Account) -> Self {
        let tally = |t: Tally| [t.records, t.traces, t.spans, t.units, t.bytes];
        let d = account.discarded;
        Self {
            start: account.start,
            place: account.place,
            finished: account.finished.iter().map(|range| (range.start, range.end)).collect(),
            side_place: account.side_place,
            delivered: tally(account.delivered),
            dead: tally(account.dead),
            parked: tally(account.parked),
            discarded: [d.retry_timeout, d.queue_cap, d.dead_letter_cap, d.dead_letter_age, d.purged],
            rejected: account.rejected,
            damaged: account.damaged,
            not_applicable: account.not_applicable,
            attempts: account.attempts,
            idle_ms: account.idle_ms,
            facts: 0,
        }
    }
}

impl From<Row> for Saved {
    fn from(row: Row) -> Self {
        let tally = |[records, traces, spans, units, bytes]: TallyRow| Tally { records, traces, spans, units, bytes };
        let [retry_timeout, queue_cap, dead_letter_cap, dead_letter_age, purged] = row.discarded;
        let account = Account {
            start: row.start,
            place: row.place,
            finished: row.finished.into_iter().map(|(start, end)| start..end).collect(),
            side_place: row.side_place,
            delivered: tally(row.delivered),
            dead: tally(row.dead),
            parked: tally(row.parked),
            discarded: Discarded { retry_timeout, queue_cap, dead_letter_cap, dead_letter_age, purged },
            rejected: row.rejected,
            damaged: row.damaged,
            not_applicable: row.not_applicable,
            attempts: row.attempts,
            idle_ms: row.idle_ms,
            ..Account::default()
        };
        Self { account, facts: row.facts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(attempts: u64) -> State {
        let finished = [9..12, 14..15].into_iter().collect();
        let account = Account { place: 7, finished, attempts, ..Account::from_record(1) };
        State { accounts: [("a".to_owned(), account)].into(), spool_id: 5, facts: 2, ..State::default() }
    }

    fn saved(state: &State) -> BTreeMap<String, Saved> {
        let saved = |account: &Account| Saved { account: account.clone(), facts: state.facts };
        state.accounts.iter().map(|(name, account)| (name.clone(), saved(account))).collect()
    }

    #[test]
    fn books_come_back_after_reopening() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("ledger");
        let opened = Ledger::open(&path, 1);
        assert!(opened.accounts.is_empty() && opened.set_aside.is_none() && opened.spool_id.is_none());
        opened.ledger.expect("a new ledger").save(&state(3)).expect("it can be written");
        let again = Ledger::open(&path, 2).of_spool(5, 3);
        assert_eq!((again.accounts, again.spool_id), (saved(&state(3)), Some(5)));
        assert!(again.set_aside.is_none());
    }

    #[test]
    fn a_ledger_that_is_still_being_closed_is_waited_for() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("ledger");
        let held = Ledger::open(&path, 1).ledger.expect("a new ledger");
        held.save(&state(3)).expect("it can be written");
        let (asked, open) = std::sync::mpsc::channel();
        let again = std::thread::scope(|scope| {
            let path = &path;
            let again = scope.spawn(move || {
                asked.send(()).expect("someone listens");
                Ledger::open(path, 2)
            });
            open.recv().expect("it begins");
            // Held for some looks at least: one that gave up would be back by now, or be set aside.
            std::thread::sleep(3 * LOCK_LOOK);
            drop(held);
            again.join().expect("no panic")
        });
        assert_eq!((again.accounts, again.set_aside), (saved(&state(3)), None));
    }

    #[test]
    fn a_damaged_ledger_is_set_aside_and_a_new_one_begun() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("ledger");
        std::fs::write(&path, "not a directory").expect("it can be written");
        let opened = Ledger::open(&path, 1);
        assert!(opened.accounts.is_empty());
        let (aside, _) = opened.set_aside.expect("reported");
        assert!(aside.exists() && opened.ledger.is_some());
    }

    #[test]
    fn the_ledger_of_another_spool_is_set_aside() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("ledger");
        Ledger::open(&path, 1).ledger.expect("a new ledger").save(&state(3)).expect("it can be written");
        let opened = Ledger::open(&path, 2).of_spool(6, 2);
        assert!(opened.accounts.is_empty() && opened.ledger.is_some());
        let (aside, why) = opened.set_aside.expect("reported");
        assert!(aside.exists() && why.contains("another spool"), "{why}");
        assert_eq!(Ledger::open(&aside, 3).accounts, saved(&state(3)), "nothing of it is lost");
    }

    #[test]
    fn only_a_ledger_that_is_further_counts() {
        let mut journal = state(5);
        merge(&mut journal, saved(&state(4)));
        assert_eq!(journal, state(5));
        let mut further = state(6);
        further.accounts.get_mut("a").expect("there").place = 20;
        further.accounts.insert("unknown".to_owned(), Account::default());
        for facts in [1, 3] {
            merge(&mut journal, saved(&State { facts, ..further.clone() }));
            assert_eq!(journal, state(5), "with other facts in it, it is of no use");
        }
        journal.accounts.get_mut("a").expect("there").paused = true;
        merge(&mut journal, saved(&further));
        assert_eq!(journal.accounts["a"].place, 20);
        assert!(journal.accounts["a"].paused, "an operator's word is only in the journal");
        assert_eq!(journal.accounts.len(), 1);
    }
}
