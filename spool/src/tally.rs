//! Counting: what a record weighs in the accounts.

use std::ops::{AddAssign, SubAssign};

/// How much a number of records is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records.
    pub records: u64,
    /// Traces, counted per record: a trace that arrives in two requests counts twice.
    pub traces: u64,
    /// Spans.
    pub spans: u64,
    /// The unit of the accounts: spans, but at least one per record.
    pub units: u64,
    /// Payload bytes.
    pub bytes: u64,
}

impl Tally {
    /// One record.
    #[must_use]
    pub fn one(spans: u32, traces: u32, bytes: u64) -> Self {
        let spans = u64::from(spans);
        Self { records: 1, traces: u64::from(traces), spans, units: spans.max(1), bytes }
    }

    /// The difference, never below zero: a view that lags must not turn into huge numbers.
    #[must_use]
    pub fn less(mut self, other: Self) -> Self {
        self -= other;
        self
    }

    /// The sum.
    #[must_use]
    pub fn plus(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.records = self.records.saturating_add(other.records);
        self.traces = self.traces.saturating_add(other.traces);
        self.spans = self.spans.saturating_add(other.spans);
        self.units = self.units.saturating_add(other.units);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

impl SubAssign for Tally {
    fn sub_assign(&mut self, other: Self) {
        self.records = self.records.saturating_sub(other.records);
        self.traces = self.traces.saturating_sub(other.traces);
        self.spans = self.spans.saturating_sub(other.spans);
        self.units = self.units.saturating_sub(other.units);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }
}
