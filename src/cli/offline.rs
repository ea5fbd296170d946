//! What can be said while no daemon runs.

use std::path::Path;

use crate::config::Config;
use crate::status::Status;

/// Reads the state directory of a daemon that is down; nothing when there is none, or it can't be read.
pub(super) fn status(state_dir: &Path, config: Option<&Config>) -> Option<Status> {
    crate::daemon::offline::status(state_dir, config).ok()
}
