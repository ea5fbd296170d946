//! What can be said while no daemon runs.

use std::path::Path;

use crate::status::Status;

/// Reads the state directory of a daemon that is down. Nothing can be read yet.
pub(super) fn status(_state_dir: &Path) -> Option<Status> {
    None
}
