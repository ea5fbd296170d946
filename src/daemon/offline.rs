//! What can be said of a spool, and done to it, without a daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use spool::disk::OsDisk;
use spool::{Error, Journal, Options, Repaired, Stream, Verified, Watch};

use super::state_dir::{self, StateDir, StateDirError};
use super::{books, kinds};
use crate::accounts::Accounts;
use crate::admin::View;
use crate::clock::wall_ns;
use crate::config::Config;
use crate::ledger;
use crate::receive::Received;
use crate::status::{State, Status};

/// Reads journal and side journal of the state directory `dir`; the ledger is left alone, so what was delivered in the
/// last second before an unclean stop may still show as waiting. `config`, where there is one, tells kinds and limits.
///
/// # Errors
/// When there is no journal there, or it can't be read.
pub fn status(dir: &Path, config: Option<&Config>) -> Result<Status, Error> {
    let main = Journal::inspect(Arc::new(OsDisk), &dir.join("journal"), Options::default())?;
    let side_options = Options { stream: Stream::Side, ..Options::default() };
    let side = Journal::inspect(Arc::new(OsDisk), &dir.join("side"), side_options)?.shared;
    let mut state = main.state;
    books::count_received(&mut state, &main.shared)?;
    books::count_aside(&mut state, &side)?;
    let accounts = Arc::new(Accounts::new(&state));
    books::open(&state, &main.shared, config.map_or(&[], |config| &config.backends), &accounts)?;
    let view = View {
        kinds: config.map(kinds).unwrap_or_default(),
        max_bytes: config.map_or(0, |config| config.spool.max_bytes),
        dead_letters_max_bytes: config.map_or(0, |config| config.dead_letters.max_bytes),
        state_dir: dir.to_path_buf(),
        addresses: Vec::new(),
        started_at: std::time::SystemTime::now(),
        stopping: false.into(),
        accounts,
        directory: None,
        received: Arc::new(Received::default()),
        journal: main.shared,
        side: side.clone(),
        other_bytes: Box::new(move || side.file_bytes()),
        disk: Arc::new(OsDisk),
    };
    Ok(Status { state: State::Down, pid: 0, started_at: None, ..view.status() })
}

/// Why a spool could not be looked at, or not be repaired.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The state directory can't be used.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// Journal or side journal failed.
    #[error(transparent)]
    Storage(#[from] Error),
}

/// Both journals of a state directory, every byte read.
#[derive(Debug)]
pub struct Checked {
    /// The process id of the daemon that runs meanwhile.
    pub holder: Option<String>,
    /// The journal.
    pub journal: Verified,
    /// The side journal.
    pub side: Verified,
}

const SIDE: Options = Options { stream: Stream::Side, segment_bytes: 4 << 20, ..DEFAULTS };
const DEFAULTS: Options = Options {
    stream: Stream::Main,
    segment_bytes: 64 << 20,
    record_floor: 1,
    kept_back: spool::KeptBack { spares: 0, ballast_bytes: 0 },
    durability: spool::Durability::Sync,
};

/// Reads both journals of the state directory `dir`, beside a daemon or without one. Changes nothing.
///
/// # Errors
/// When there are none, or they can't be read.
pub fn verify(dir: &Path) -> Result<Checked, CheckError> {
    state_dir::check(dir)?;
    let look = |holder: Option<String>| -> Result<Checked, CheckError> {
        let watch = if holder.is_some() { Watch::Live } else { Watch::AtRest };
        let look = |name, options| spool::verify(Arc::new(OsDisk), &dir.join(name), options, watch);
        Ok(Checked { holder, journal: look("journal", DEFAULTS)?, side: look("side", SIDE)? })
    };
    let holder = state_dir::holder(dir)?;
    let is_at_rest = holder.is_none();
    let checked = look(holder)?;
    if checked.journal.is_whole() && checked.side.is_whole() {
        return Ok(checked);
    }
    // A daemon may have started meanwhile, and changed what was looked at.
    match state_dir::holder(dir)?.filter(|_| is_at_rest) {
        Some(holder) => look(Some(holder)),
        None => Ok(checked),
    }
}

/// Repairs both journals of the state directory `dir`, in this order.
///
/// # Errors
/// [`StateDirError::Locked`] while a daemon runs; what else can go wrong with files.
pub fn repair(dir: &Path) -> Result<Vec<Repaired>, CheckError> {
    let state_dir = StateDir::open(dir)?;
    let repair = |path: PathBuf, options| spool::repair(Arc::new(OsDisk), &path, options, wall_ns());
    let journal = repair(state_dir.journal(), DEFAULTS)?;
    if !journal.lost.is_empty() {
        // It does not know what was written off, and is only a view of the journal.
        ledger::set_aside(&state_dir.ledger(), wall_ns());
    }
    let side = repair(state_dir.side(), SIDE)?;
    Ok(vec![journal, side])
}
