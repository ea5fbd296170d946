//! What loading found out: mistakes, warnings, and where each value came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Origin {
    /// Built in, or derived from the user and the directories in force.
    #[default]
    Default,
    /// The configuration file; line and column count from one.
    File {
        /// The file.
        path: PathBuf,
        /// Line.
        line: usize,
        /// Column, in characters.
        column: usize,
    },
    /// An environment variable.
    Environment(String),
    /// An option of the command line.
    CommandLine(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line, .. } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::CommandLine(option) => write!(f, "command line {option}"),
        }
    }
}

/// One thing that is wrong, or worth a warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where it stands.
    pub origin: Origin,
    /// The key with its sections, for example `spool.max_bytes`; empty for the file as a whole.
    pub key: String,
    /// What is wrong and what to do about it. Never contains a secret.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            // The form that editors and terminals make a link of.
            Origin::File { path, line, column } => write!(f, "{}:{line}:{column}: ", path.display())?,
            // The name of the variable is the key.
            Origin::Environment(name) if *name == self.key => write!(f, "environment: ")?,
            Origin::Default => {}
            other => write!(f, "{other}: ")?,
        }
        if self.key.is_empty() { f.write_str(&self.message) } else { write!(f, "{} {}", self.key, self.message) }
    }
}

/// Everything that is wrong with a configuration, in the order of the file. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(pub Vec<Finding>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "the configuration has {count} mistake{}:", if count == 1 { "" } else { "s" })?;
        for finding in &self.0 {
            write!(f, "\n  {finding}")?;
        }
        Ok(())
    }
}

/// Where each key that is not at its default was set, and whether its value may be shown.
#[derive(Debug, Clone, Default)]
pub struct Origins(BTreeMap<String, Source>);

/// Where one value came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// Where it was set.
    pub origin: Origin,
    /// It was put together from `${env:...}` or `${file:...}`, so it may be a secret and is not shown.
    pub hidden: bool,
}

impl Origins {
    /// Remembers where `key` was set.
    pub(super) fn set(&mut self, key: impl Into<String>, origin: Origin, hidden: bool) {
        self.0.insert(key.into(), Source { origin, hidden });
    }

    /// Where `key` was set; the default when nobody did.
    pub fn of(&self, key: &str) -> Source {
        self.0.get(key).cloned().unwrap_or_default()
    }
}
