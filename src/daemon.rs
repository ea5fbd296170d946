//! Builds the daemon from its configuration, runs it, and drains it.

use crate::config::Loaded;
use crate::exit::{Exit, Failure, Outcome};

/// What `run` says beside the configuration.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct RunOptions {}

/// Runs until a signal ends it.
pub fn run(_loaded: Loaded, _options: RunOptions) -> Outcome {
    Err(Failure::new(Exit::Bug, "the daemon is not part of this build"))
}
