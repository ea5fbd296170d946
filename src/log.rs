//! Sets the log up: the journal under systemd, text on a terminal, JSON where it is wanted.

use std::io::IsTerminal;

use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{Environment, Log, LogFormat};

/// Installs the log for the life of the process. Everything goes to standard error, or to the journal.
pub fn init(log: &Log, environment: &Environment) -> Result<(), TryInitError> {
    let registry = tracing_subscriber::registry();
    let filter = filter(log.level);
    let text = || tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let to_journal = log.format == LogFormat::Auto && stderr_is_the_journal(environment);
    // A journal that can't be reached is no reason to log nothing: standard error leads there, too.
    let journal = if to_journal { tracing_journald::layer().ok() } else { None };
    match (journal, log.format) {
        (Some(journal), _) => registry.with(journal.with_filter(filter)).try_init(),
        (None, LogFormat::Json) => registry.with(text().json().flatten_event(true).with_filter(filter)).try_init(),
        (None, LogFormat::Auto | LogFormat::Text) => {
            let ansi = std::io::stderr().is_terminal() && environment.get("NO_COLOR").is_none();
            registry.with(text().with_target(false).with_ansi(ansi).with_filter(filter)).try_init()
        }
    }
}

/// Our own lines at the wanted level; of the libraries below us only what is a problem, unless everything is wanted.
fn filter(level: tracing::Level) -> Targets {
    let level = LevelFilter::from_level(level);
    let others = if level == LevelFilter::TRACE { LevelFilter::DEBUG } else { level.min(LevelFilter::WARN) };
    Targets::new().with_default(others).with_target("tracespool", level).with_target("spool", level)
}

/// Whether standard error is the stream that systemd connected to the journal. The variable alone does not tell: it
/// is inherited by processes whose standard error leads elsewhere.
fn stderr_is_the_journal(environment: &Environment) -> bool {
    let Some((device, inode)) = environment.get("JOURNAL_STREAM").and_then(|text| text.trim().split_once(':')) else {
        return false;
    };
    let (Ok(device), Ok(inode)) = (device.parse::<u64>(), inode.parse::<u64>()) else { return false };
    rustix::fs::fstat(std::io::stderr()).is_ok_and(|stat| stat.st_dev == device && stat.st_ino == inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_quieter_than_the_program() {
        let enabled = |level, target, wanted| filter(level).would_enable(target, &wanted);
        use tracing::Level;
        assert!(enabled(Level::INFO, "tracespool::deliver", Level::INFO));
        assert!(!enabled(Level::INFO, "tracespool::deliver", Level::DEBUG));
        assert!(enabled(Level::DEBUG, "spool", Level::DEBUG));
        assert!(!enabled(Level::DEBUG, "h2", Level::DEBUG));
        assert!(enabled(Level::DEBUG, "h2", Level::WARN));
        assert!(!enabled(Level::ERROR, "h2", Level::WARN));
    }

    #[test]
    fn a_stream_that_is_not_ours_is_not_the_journal() {
        let mut environment = Environment::default();
        for text in ["", "1", "x:y", "1:1"] {
            environment.vars.insert("JOURNAL_STREAM".into(), text.into());
            assert!(!stderr_is_the_journal(&environment), "{text}");
        }
        let stat = rustix::fs::fstat(std::io::stderr()).expect("standard error");
        environment.vars.insert("JOURNAL_STREAM".into(), format!("{}:{}", stat.st_dev, stat.st_ino));
        assert!(stderr_is_the_journal(&environment));
    }
}
