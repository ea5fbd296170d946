//! Builds the daemon from its configuration, runs it, and drains it.

use crate::config::{Environment, Loaded, Overrides};
use crate::exit::{Exit, Failure, Outcome};

/// What `run` says beside the configuration.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// What the command line said about the configuration, to read it again on SIGHUP.
    pub overrides: Overrides,
    /// The process's surroundings: also what systemd hands over, such as `NOTIFY_SOCKET`.
    pub environment: Environment,
}

/// Runs until a signal ends it.
pub fn run(_loaded: Loaded, _options: RunOptions) -> Outcome {
    Err(Failure::new(Exit::Bug, "the daemon is not part of this build"))
}
