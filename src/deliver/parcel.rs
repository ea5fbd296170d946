//! Records that travel together.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use spool::{Record, Tally};

use super::suspect::Case;
use crate::backend::Batch;

/// Identifies a trace among those under way.
pub(super) type TraceId = [u8; 16];

/// One or more records of one partition, in order: the content of one request.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) records: Vec<Record>,
    /// All of them go to this experiment, where the backend tells experiments apart.
    pub(super) experiment: Option<String>,
    /// Traces in it; empty for backends that take the same trace in two requests at once.
    pub(super) traces: BTreeSet<TraceId>,
    /// Attempts until now.
    pub(super) attempts: u32,
    /// Wall clock of the first attempt, nanoseconds since 1970.
    pub(super) first_attempt_ns: u64,
    /// Not before.
    pub(super) due: Instant,
    /// Open when it, or the parcel that it is a part of, was refused.
    pub(super) case: Option<Case>,
    /// It waits for the operator, although the backend takes other things.
    pub(super) blocked: bool,
    /// It is one record, and was counted among those refused alone.
    pub(super) suspected: bool,
    /// Deliveries that the lane had seen when it was last sent.
    pub(super) successes_at_send: u64,
}

impl Parcel {
    pub(super) fn new(experiment: Option<String>, now: Instant) -> Self {
        Self {
            records: Vec::new(),
            experiment,
            traces: BTreeSet::new(),
            attempts: 0,
            first_attempt_ns: 0,
            due: now,
            case: None,
            blocked: false,
            suspected: false,
            successes_at_send: 0,
        }
    }

    pub(super) fn tally(&self) -> Tally {
        self.records.iter().fold(Tally::default(), |sum, record| sum.plus(record.tally()))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.records.iter().map(|record| record.payload.len() as u64).sum()
    }

    /// Lets go of the commit groups that the payloads are parts of: a small record that waits long must not keep
    /// megabytes of its neighbours in memory.
    pub(super) fn unshare(&mut self) {
        for record in &mut self.records {
            record.payload = Bytes::copy_from_slice(&record.payload);
        }
    }

    pub(super) fn batch(&self) -> Batch {
        Batch {
            requests: self.records.iter().map(|record| record.payload.clone()).collect(),
            experiment: self.experiment.clone(),
            spans: self.records.iter().map(|record| u64::from(record.envelope.spans)).sum(),
        }
    }

    /// Two halves, each to be sent at once. The parcel has two records at least.
    pub(super) fn halves(mut self) -> [Self; 2] {
        let second = self.records.split_off(self.records.len() / 2);
        let half = |records| Self {
            records,
            experiment: self.experiment.clone(),
            // An over-approximation: both halves wait for each other's traces.
            traces: self.traces.clone(),
            ..self
        };
        let second = half(second);
        let first = half(std::mem::take(&mut self.records));
        [first, second]
    }
}

/// Takes the first parcel that is due and shares no trace with what is under way.
pub(super) fn take_due(queue: &mut VecDeque<Parcel>, busy: &BTreeSet<TraceId>, now: Instant) -> Option<Parcel> {
    let at = queue.iter().position(|parcel| parcel.due <= now && parcel.traces.is_disjoint(busy))?;
    queue.remove(at)
}
