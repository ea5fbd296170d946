//! Journal, side journal and books at a start, fitted to each other and to what the ledger knows.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use spool::disk::Disk;
use spool::{Error, Journal, Kept, KeptBack, Opened, Options, Shared, State, Stream, Writer};
use tracing::{error, info, warn};

use super::books;
use crate::accounts::Accounts;
use crate::clock::{Clock, wall_ns};
use crate::config::{self, Backend};
use crate::ledger::{self, Books};
use crate::side::{LABELLED, Side};

/// Size of the side journal's segments: it is small and seldom written.
const SIDE_SEGMENT_BYTES: u64 = 4 << 20;
/// Room for facts when a full disk has nothing else left.
const BALLAST_BYTES: u64 = 1 << 20;

/// Where everything lies.
#[derive(Debug)]
pub(super) struct Dirs {
    pub(super) journal: PathBuf,
    pub(super) side: PathBuf,
}

/// Everything that is kept, opened.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) writer: Writer,
    pub(super) journal: Shared,
    pub(super) side: Arc<Side>,
    pub(super) accounts: Arc<Accounts>,
    pub(super) clock: Clock,
    /// What the first checkpoint of this run says.
    pub(super) state: State,
}

impl Store {
    /// Opens what is in `dirs`. A ledger of another spool counts for nothing.
    pub(super) fn open(
        disk: &Arc<dyn Disk>,
        dirs: &Dirs,
        limits: &config::Spool,
        backends: &[Backend],
        ledger: &ledger::Opened,
    ) -> Result<Self, Error> {
        let seen = ledger.accounts.values().map(|saved| &saved.account);
        let record_floor = seen.clone().map(spool::Account::seen).max().unwrap_or(1);
        let config::Spool { segment_bytes, max_bytes, durability, .. } = *limits;
        let kept_back = |segment_bytes| kept_back(segment_bytes, max_bytes);
        let options = Options {
            segment_bytes,
            record_floor,
            kept_back: kept_back(segment_bytes),
            durability,
            ..Options::default()
        };
        let Opened { mut writer, shared: journal, mut state, .. } = open_journal(disk, &dirs.journal, options)?;
        let spool_id = state.spool_id;
        let side_places = state.accounts.values().chain(seen).map(|account| account.side_place);
        let side_segment_bytes = segment_bytes.min(SIDE_SEGMENT_BYTES);
        let side_options = Options {
            stream: Stream::Side,
            segment_bytes: side_segment_bytes,
            record_floor: side_places.max().unwrap_or(1),
            kept_back: kept_back(side_segment_bytes),
            ..Options::default()
        };
        let mut side = open_side(disk, &dirs.side, side_options, spool_id)?;

        let is_ours = ledger.spool_id == Some(spool_id);
        let saved = if is_ours { ledger.accounts.clone() } else { Books::new() };
        books::recover(&mut state, saved, &journal, &side.shared)?;
        let clock = Clock::from(state.clock_ms);
        let now = clock.now();
        books::enrol(&mut state, backends, &mut writer, now);
        books::close_aside(&mut state, &side.shared);
        let labelled = Kept::open(Arc::clone(disk), &dirs.side.join(LABELLED))?;
        books::miss_labelled(&mut state, &labelled)?;
        // What ledger and side journal knew better is the journal's from here on.
        writer.stage_checkpoint(&state, now);
        writer.commit(now, &mut || state.clone())?;
        let accounts = Arc::new(Accounts::new(&state));
        books::open(&state, &journal, backends, &accounts)?;
        // From its first segment on it can be told whose it is.
        let side_state = State { clock_ms: now.clock_ms, spool_id, ..State::default() };
        side.writer.stage_checkpoint(&side_state, now);
        side.writer.commit(now, &mut || side_state.clone())?;
        let side = Arc::new(Side::new(side.writer, labelled, &state.labels, journal.clone(), spool_id)?);
        Ok(Self { writer, journal, side, accounts, clock, state })
    }
}

/// What a journal keeps back for a full disk: less where the cap has no room for it.
fn kept_back(segment_bytes: u64, max_bytes: u64) -> KeptBack {
    let spares = match max_bytes / segment_bytes {
        0..8 => 0,
        8..16 => 1,
        16.. => 2,
    };
    KeptBack { spares, ballast_bytes: BALLAST_BYTES.min(segment_bytes / 4) }
}

fn open_journal(disk: &Arc<dyn Disk>, dir: &Path, options: Options) -> Result<Opened, Error> {
    let opened = Journal::open(Arc::clone(disk), dir, options, wall_ns())?;
    let recovery = &opened.recovery;
    if !recovery.clean {
        info!(journal = %dir.display(), rewritten = recovery.rewritten, "recovered after an unclean stop");
    }
    if let Some(torn) = &recovery.torn {
        let kept_in = torn.kept_in.as_ref().map(|path| path.display().to_string());
        warn!(frames = torn.frames, kept_in, "the last write was torn; it had not been acknowledged");
    }
    for damage in &recovery.damage {
        let lost = damage.tally();
        error!(
            journal = %dir.display(),
            segment = damage.segment,
            offset = damage.offset,
            records = lost.records,
            spans = lost.spans,
            "the journal is damaged; the files stay as they are; see: tracespool verify"
        );
    }
    for path in &recovery.unreadable {
        error!(segment = %path.display(), "a segment can't be read and is left out; the file stays as it is");
    }
    Ok(opened)
}

/// Opens the side journal of this spool. One of another history is set aside: its numbers mean other records.
fn open_side(disk: &Arc<dyn Disk>, dir: &Path, options: Options, spool_id: u64) -> Result<Opened, Error> {
    // A directory that is not there yet belongs to nobody.
    let found = Journal::inspect(Arc::clone(disk), dir, options).map_or(0, |found| found.state.spool_id);
    if found != 0 && found != spool_id {
        let aside = dir.with_extension(format!("foreign-{}", wall_ns()));
        let path = dir.to_path_buf();
        disk.rename(dir, &aside).map_err(|source| Error::Io { operation: "set aside", path, source })?;
        warn!(kept_in = %aside.display(), "the side journal belongs to another spool and is set aside; its dead letters are not this spool's");
    }
    open_journal(disk, dir, options)
}

#[cfg(test)]
mod tests;
