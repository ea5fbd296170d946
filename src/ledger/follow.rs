//! Keeping the ledger close behind the books, also when its disk was full for a while.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use spool::State;
use tracing::{info, warn};

use super::Ledger;

/// So long after a failure it is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// The one who writes the ledger.
#[derive(Debug)]
pub struct Follower {
    /// `None` after a failure: sled takes nothing more after one until it is opened again.
    ledger: Option<Ledger>,
    path: PathBuf,
    /// When it failed last.
    failed: Option<Instant>,
    /// Its size, for whoever wants to know without waiting.
    bytes: Arc<AtomicU64>,
}

impl Follower {
    /// Goes on with the ledger that a start opened at `path`, if it could.
    #[must_use]
    pub fn new(ledger: Option<Ledger>, path: PathBuf) -> Self {
        let bytes = Arc::new(AtomicU64::new(ledger.as_ref().map_or(0, Ledger::file_bytes)));
        let failed = ledger.is_none().then(Instant::now);
        Self { ledger, path, failed, bytes }
    }

    /// Bytes on disk as of the last save.
    #[must_use]
    pub fn bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.bytes)
    }

    /// Whether there is something to do although the books did not change.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.failed.is_some()
    }

    /// Writes the books. A ledger that fails is closed, and from ten seconds later on opened again, or begun anew where
    /// it can't be: all that is in it is in the books, too. Blocks.
    pub fn follow(&mut self, state: &State, now: Instant, wall_ns: u64) {
        if self.ledger.is_none() {
            if self.failed.is_some_and(|failed| now.duration_since(failed) < TRY_AGAIN) {
                return;
            }
            self.reopen(state, wall_ns);
        }
        let Some(ledger) = &self.ledger else {
            self.failed = Some(now);
            return;
        };
        match ledger.save(state) {
            Ok(()) => {
                self.bytes.store(ledger.file_bytes(), Ordering::Relaxed);
                if self.failed.take().is_some() {
                    info!("the ledger follows the books again");
                }
            }
            Err(error) => {
                // Said once; nothing depends on it but how much is sent again after a crash.
                if self.failed.replace(now).is_none() {
                    warn!(%error, "the ledger can't be written; it is tried again every {} seconds", TRY_AGAIN.as_secs());
                }
                self.ledger = None;
            }
        }
    }

    fn reopen(&mut self, state: &State, wall_ns: u64) {
        let opened = Ledger::open(&self.path, wall_ns).of_spool(state.spool_id, wall_ns);
        if let Some((path, error)) = &opened.set_aside {
            warn!(kept_in = %path.display(), error, "the ledger is of no use any more; it is built again from the books");
        }
        self.ledger = opened.ledger;
    }
}
