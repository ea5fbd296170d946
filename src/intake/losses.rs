//! What limits gave up, said once per burst.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use spool::{Control, LettersEnd, Tally};
use tracing::warn;

/// While it goes on, it is said this often.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Counts between two lines of the log.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// By backend and reason.
    counts: BTreeMap<(String, &'static str), Tally>,
    said: Option<Instant>,
}

impl Losses {
    /// Counts what became of these facts.
    pub(super) fn count_all(&mut self, controls: &[Control]) {
        for control in controls {
            match control {
                Control::Discarded { backend, reason, tally, .. } => self.add(backend, reason.name(), *tally),
                Control::SideSettled { backend, end: LettersEnd::Discarded(reason), tally, .. } => {
                    self.add(backend, reason.name(), *tally);
                }
                Control::Relabelled(label) => self.add(&label.backend, "expired, kept as dead letters", label.tally),
                _ => {}
            }
        }
        self.say_if_due();
    }

    /// Counts what was given up at the door.
    pub(super) fn count(&mut self, backend: &str, tally: Tally) {
        self.add(backend, spool::DiscardReason::QueueCap.name(), tally);
        self.say_if_due();
    }

    fn add(&mut self, backend: &str, reason: &'static str, tally: Tally) {
        *self.counts.entry((backend.to_owned(), reason)).or_default() += tally;
    }

    /// The first of a burst at once.
    fn say_if_due(&mut self) {
        if self.said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            self.say();
        }
    }

    /// What is left of a burst that has ended, or goes on.
    pub(super) fn say_if_over(&mut self) {
        if !self.counts.is_empty() {
            self.say_if_due();
        }
    }

    pub(super) fn say(&mut self) {
        for ((backend, reason), tally) in std::mem::take(&mut self.counts) {
            let Tally { records, units: spans, bytes, .. } = tally;
            warn!(backend, reason, records, spans, bytes, "a limit gave up records");
            self.said = Some(Instant::now());
        }
    }
}
