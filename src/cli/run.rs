//! `tracespool run`: the daemon, in the foreground.

use clap::Args;

use crate::config::{self, Environment, Overrides};
use crate::daemon::{self, RunOptions};
use crate::exit::{Exit, Failure, Outcome};

#[derive(Debug, Args)]
pub(super) struct Run {}

impl Run {
    pub(super) fn run(self, overrides: &Overrides, environment: &Environment) -> Outcome {
        let loaded = config::load(overrides, environment)?;
        crate::log::init(&loaded.config.log, environment).map_err(|error| Failure::new(Exit::Bug, error))?;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        if loaded.config.backends.is_empty() {
            tracing::warn!("no backend is configured: records wait on disk until there is one");
        }
        daemon::run(loaded, RunOptions { overrides: overrides.clone(), environment: environment.clone() })
    }
}
