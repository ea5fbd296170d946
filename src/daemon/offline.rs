//! What can be said of a spool while no daemon runs. Changes nothing.

use std::path::Path;
use std::sync::Arc;

use spool::disk::OsDisk;
use spool::{Error, Journal, Options, Stream};

use super::{books, kinds};
use crate::accounts::Accounts;
use crate::admin::View;
use crate::config::Config;
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
        received: Arc::new(Received::default()),
        journal: main.shared,
        side: side.clone(),
        other_bytes: Box::new(move || side.file_bytes()),
        disk: Arc::new(OsDisk),
    };
    Ok(Status { state: State::Down, pid: 0, started_at: None, ..view.status() })
}
