//! `tracespool run`: the daemon, in the foreground.

use std::time::Duration;

use clap::Args;

use crate::config::{self, Environment, Overrides};
use crate::daemon::notify::Notify;
use crate::daemon::{self, Fatal};
use crate::exit::{Exit, Failure, Outcome};
use crate::receive::{BindError, Inherited};

/// How long an activated daemon that cannot run stays before it ends. The limit is 20 starts in 2 s (systemd.socket(5),
/// `TriggerLimitBurst=`).
const ACTIVATED_PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(super) struct Run {}

impl Run {
    pub(super) fn run(self, overrides: &Overrides, environment: &Environment) -> Outcome {
        let inherited = Inherited::of_process(environment.get("LISTEN_PID"), environment.pid)
            .map_err(|source| Failure::new(Exit::Configuration, BindError::Inherited { source }))?;
        let is_activated = !inherited.is_empty();
        let outcome = run(overrides, environment, inherited);
        if is_activated && outcome.is_err() {
            // The client that waits in such a socket makes systemd start this again at once, and a socket that does so too
            // often is closed for good.
            std::thread::sleep(ACTIVATED_PAUSE);
        }
        outcome
    }
}

fn run(overrides: &Overrides, environment: &Environment, inherited: Inherited) -> Outcome {
    let loaded = config::load(overrides, environment)?;
    crate::log::init(&loaded.config.log, environment).map_err(|error| Failure::new(Exit::Bug, error))?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let socket = environment.get("NOTIFY_SOCKET").map(str::to_owned);
    let notify = Notify::from(socket, environment.get("WATCHDOG_USEC"));
    daemon::run(&loaded, inherited, &notify).map_err(|fatal| Failure::new(exit(&fatal), &fatal))
}

/// What each end means to scripts and to systemd.
fn exit(fatal: &Fatal) -> Exit {
    use crate::daemon::state_dir::StateDirError;
    match fatal {
        Fatal::StateDir(StateDirError::Locked { .. }) => Exit::TryLater,
        Fatal::StateDir(StateDirError::Newer { .. } | StateDirError::Foreign { .. })
        | Fatal::Storage(spool::Error::Newer { .. }) => Exit::Configuration,
        Fatal::StateDir(StateDirError::Io { source, .. }) | Fatal::Bind(BindError::Io { source, .. })
            if source.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            Exit::NotPermitted
        }
        Fatal::StateDir(StateDirError::Io { .. }) | Fatal::Storage(_) => Exit::Storage,
        Fatal::Bind(BindError::InUse { .. }) => Exit::AddressInUse,
        // An address that is not there yet may come; a restart finds out.
        Fatal::Bind(BindError::Io { .. }) => Exit::Unavailable,
        Fatal::Bind(BindError::Token { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Exit::NotPermitted
        }
        Fatal::Bind(_) | Fatal::Backend { .. } => Exit::Configuration,
        Fatal::System { .. } => Exit::Bug,
    }
}
