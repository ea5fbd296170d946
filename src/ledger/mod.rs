//! The ledger: sled and bincode behind typed rows. A view of the journal for fast starts; it may be thrown away.
//!
//! It holds each backend's books as they were a moment ago, so that a start after kill -9 sends again only what was
//! under way, not what was delivered since the last checkpoint. Nothing lives in it alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bincode::{Decode, Encode};
use spool::{Account, Discarded, State, Tally};

const SCHEMA_KEY: &[u8] = b"schema";
/// Raised whenever a row changes its shape; another schema is another ledger.
const SCHEMA: u32 = 1;
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
    pub accounts: BTreeMap<String, Account>,
    /// Where a ledger that could not be read was put, and why.
    pub set_aside: Option<(PathBuf, String)>,
}

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
    /// A key is not a name.
    #[error("a key can't be read")]
    Key,
}

impl Ledger {
    /// Opens the ledger at `path`. One that can't be read is set aside beside it, and a new one begun.
    #[must_use]
    pub fn open(path: &Path, wall_ns: u64) -> Opened {
        match Self::try_open(path) {
            Ok((ledger, accounts)) => Opened { ledger: Some(ledger), accounts, set_aside: None },
            Err(error) => {
                let aside = set_aside(path, wall_ns);
                let fresh = Self::try_open(path);
                Opened {
                    ledger: fresh.ok().map(|(ledger, _)| ledger),
                    accounts: BTreeMap::new(),
                    set_aside: Some((aside, error.to_string())),
                }
            }
        }
    }

    fn try_open(path: &Path) -> Result<(Self, BTreeMap<String, Account>), LedgerError> {
        let db = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None).open()?;
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
        Ok((Self { db, path: path.to_path_buf() }, accounts))
    }

    /// Writes every backend's books.
    ///
    /// # Errors
    /// Of the database. After one the ledger is of no use until it is opened again.
    pub fn save(&self, state: &State) -> Result<(), LedgerError> {
        let tree = self.db.open_tree("accounts")?;
        for (name, account) in &state.accounts {
            let row = bincode::encode_to_vec(Row::from(account), bincode::config::standard())?;
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

/// Puts the ledger at `path` out of the way, so that the next start builds it again from the journal. Returns where it is
/// then.
pub fn set_aside(path: &Path, wall_ns: u64) -> PathBuf {
    let aside = path.with_extension(format!("damaged-{wall_ns}"));
    // When even this fails, the next open says so, and the daemon goes on without a ledger.
    let _ = std::fs::rename(path, &aside);
    aside
}

/// Takes from the ledger what it knows better: it is further than the journal's last checkpoint when it has seen more
/// attempts, of which there are only ever more. What an operator decided stays as the journal has it.
pub fn merge(state: &mut State, ledger: BTreeMap<String, Account>) {
    for (name, further) in ledger {
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
        }
    }
}

impl From<Row> for Account {
    fn from(row: Row) -> Self {
        let tally = |[records, traces, spans, units, bytes]: TallyRow| Tally { records, traces, spans, units, bytes };
        let [retry_timeout, queue_cap, dead_letter_cap, dead_letter_age, purged] = row.discarded;
        Self {
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
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(attempts: u64) -> State {
        let finished = [9..12, 14..15].into_iter().collect();
        let account = Account { place: 7, finished, attempts, ..Account::from_record(1) };
        State { accounts: [("a".to_owned(), account)].into(), ..State::default() }
    }

    #[test]
    fn books_come_back_after_reopening() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("ledger");
        let opened = Ledger::open(&path, 1);
        assert!(opened.accounts.is_empty() && opened.set_aside.is_none());
        opened.ledger.expect("a new ledger").save(&state(3)).expect("it can be written");
        assert_eq!(Ledger::open(&path, 2).accounts, state(3).accounts);
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
    fn only_a_ledger_that_is_further_counts() {
        let mut journal = state(5);
        merge(&mut journal, state(4).accounts);
        assert_eq!(journal, state(5));
        let mut further = state(6);
        further.accounts.get_mut("a").expect("there").place = 20;
        further.accounts.insert("unknown".to_owned(), Account::default());
        journal.accounts.get_mut("a").expect("there").paused = true;
        merge(&mut journal, further.accounts);
        assert_eq!(journal.accounts["a"].place, 20);
        assert!(journal.accounts["a"].paused, "an operator's word is only in the journal");
        assert_eq!(journal.accounts.len(), 1);
    }
}
