//! Fills in defaults, checks ranges, and notes where each value came from.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::section::{At, Found};
use super::{Environment, Finding, Origin, Origins, units};

/// What loading knows while it turns what was written into what is meant.
pub(super) struct Settle<'a> {
    pub environment: &'a Environment,
    pub mistakes: Vec<Finding>,
    pub warnings: Vec<Finding>,
    pub origins: Origins,
}

impl<'a> Settle<'a> {
    pub(super) fn new(environment: &'a Environment) -> Self {
        Self { environment, mistakes: Vec::new(), warnings: Vec::new(), origins: Origins::default() }
    }

    /// Notes a mistake at a place in the file.
    pub(super) fn mistake(&mut self, at: &At, message: impl Into<String>) {
        self.mistakes.push(Finding { origin: at.origin.clone(), key: at.key.clone(), message: message.into() });
    }

    /// Notes a warning at a place in the file.
    pub(super) fn warning(&mut self, at: &At, message: impl Into<String>) {
        self.warnings.push(Finding { origin: at.origin.clone(), key: at.key.clone(), message: message.into() });
    }

    /// Notes a mistake in an environment variable.
    pub(super) fn variable_mistake(&mut self, name: &str, message: impl Into<String>) {
        self.mistakes.push(variable(name, message));
    }

    /// Notes a warning about an environment variable.
    pub(super) fn variable_warning(&mut self, name: &str, message: impl Into<String>) {
        self.warnings.push(variable(name, message));
    }

    /// Takes what was written and remembers where.
    pub(super) fn optional<T>(&mut self, found: Option<Found<T>>) -> Option<T> {
        let found = found?;
        self.origins.set(found.at.key, found.at.origin, found.at.hidden);
        Some(found.value)
    }

    /// What was written, or the default.
    pub(super) fn or<T>(&mut self, found: Option<Found<T>>, default: T) -> T {
        self.optional(found).unwrap_or(default)
    }

    /// A size within bounds, or the default.
    pub(super) fn bytes(&mut self, found: Option<Found<u64>>, default: u64, range: RangeInclusive<u64>) -> u64 {
        self.within(found, default, range, |value| units::bytes(*value))
    }

    /// A time within bounds, or the default.
    pub(super) fn time(
        &mut self,
        found: Option<Found<Duration>>,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        self.within(found, default, range, |value| units::time(*value))
    }

    /// A number within bounds, or the default.
    pub(super) fn number(&mut self, found: Option<Found<u64>>, default: u32, range: RangeInclusive<u32>) -> u32 {
        let range = u64::from(*range.start())..=u64::from(*range.end());
        let value = self.within(found, u64::from(default), range, u64::to_string);
        u32::try_from(value).unwrap_or(default)
    }

    /// A number that is set or not, and then not 0.
    pub(super) fn at_least_one(&mut self, found: Option<Found<u64>>) -> Option<u64> {
        match found {
            Some(found) if found.value == 0 => {
                self.mistake(&found.at, "must be at least 1");
                None
            }
            found => self.optional(found),
        }
    }

    fn within<T: PartialOrd + Copy>(
        &mut self,
        found: Option<Found<T>>,
        default: T,
        range: RangeInclusive<T>,
        show: impl Fn(&T) -> String,
    ) -> T {
        let Some(found) = found else { return default };
        if !range.contains(&found.value) {
            let bounds = format!("must be from {} to {}", show(range.start()), show(range.end()));
            self.mistake(&found.at, bounds);
            return default;
        }
        self.or(Some(found), default)
    }

    /// Reports the second and later of things that must be unique.
    pub(super) fn unique<K: Ord, D: Display>(&mut self, things: impl IntoIterator<Item = (K, At, D)>, what: &str) {
        let mut seen: BTreeMap<K, D> = BTreeMap::new();
        for (key, at, owner) in things {
            match seen.get(&key) {
                Some(first) => {
                    let message = format!("{what} {first}");
                    self.mistake(&at, message);
                }
                None => {
                    seen.insert(key, owner);
                }
            }
        }
    }
}

/// A finding about an environment variable: its name is the key and the place.
fn variable(name: &str, message: impl Into<String>) -> Finding {
    Finding { origin: Origin::Environment(name.to_owned()), key: name.to_owned(), message: message.into() }
}

/// The place of an environment variable, for values that become part of the configuration under `key`.
pub(super) fn at_variable(key: impl Into<String>, name: &str) -> At {
    At { key: key.into(), origin: Origin::Environment(name.to_owned()), hidden: false }
}

/// A path that an environment variable names.
pub(super) fn variable_path(environment: &Environment, text: &str) -> PathBuf {
    environment.absolute(std::path::Path::new(text.trim()))
}
