//! Records that travel together.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use spool::{Envelope, Record, Tally};

use super::suspect::Case;
use super::turns::Turns;
use crate::backend::{Batch, VIA};

/// Identifies a trace among those under way.
pub(super) type TraceId = [u8; 16];

/// What goes on with a record beside its payload: only records that share it share a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PassedOn {
    headers: Vec<(String, String)>,
    via: Vec<String>,
}

impl PassedOn {
    pub(super) fn of(envelope: &Envelope) -> Self {
        Self { headers: envelope.headers.clone(), via: envelope.via.clone() }
    }

    pub(super) fn is_of(&self, envelope: &Envelope) -> bool {
        self.headers == envelope.headers && self.via == envelope.via
    }

    /// The headers of the request, the daemon's own id among them.
    fn headers(&self, own_id: &str) -> Vec<(String, String)> {
        let mut headers = self.headers.clone();
        let via: Vec<_> = self.via.iter().map(String::as_str).chain([own_id]).collect();
        headers.push((VIA.to_owned(), via.join(",")));
        headers
    }
}

/// One or more records of one partition, in order: the content of one request.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) records: Vec<Record>,
    /// Of all payloads; asked for every record that is packed.
    bytes: u64,
    /// All of them go to this experiment, where the backend tells experiments apart.
    pub(super) experiment: Option<String>,
    /// All of them came with it.
    pub(super) passed_on: PassedOn,
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
    pub(super) fn new(experiment: Option<String>, passed_on: PassedOn, now: Instant) -> Self {
        Self {
            records: Vec::new(),
            bytes: 0,
            experiment,
            passed_on,
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
        self.bytes
    }

    /// The records with what each weighs.
    pub(super) fn weights(&self) -> impl Iterator<Item = (u64, Tally)> {
        self.records.iter().map(|record| (record.number, record.tally()))
    }

    pub(super) fn push(&mut self, record: Record) {
        self.bytes += record.payload.len() as u64;
        self.records.push(record);
    }

    /// Lets go of the commit groups that the payloads are parts of: a small record that waits long must not keep
    /// megabytes of its neighbours in memory.
    pub(super) fn unshare(&mut self) {
        for record in &mut self.records {
            record.payload = Bytes::copy_from_slice(&record.payload);
        }
    }

    pub(super) fn batch(&self, own_id: &str) -> Batch {
        Batch {
            requests: self.records.iter().map(|record| record.payload.clone()).collect(),
            experiment: self.experiment.clone(),
            headers: self.passed_on.headers(own_id),
            spans: self.records.iter().map(|record| u64::from(record.envelope.spans)).sum(),
            promised: None,
            call: self.records.first().and_then(|record| record.envelope.call.clone()),
        }
    }

    /// An MLflow call, which is sent alone and in its turn.
    pub(super) fn is_call(&self) -> bool {
        self.records.first().is_some_and(|record| record.envelope.call.is_some())
    }

    /// Two halves, each to be sent at once. The parcel has two records at least.
    pub(super) fn halves(mut self) -> [Self; 2] {
        let second = self.records.split_off(self.records.len() / 2);
        let first = std::mem::take(&mut self.records);
        [self.part(first), self.part(second)]
    }

    /// Takes out the records that `chosen` says; `None` when there are none.
    pub(super) fn take(&mut self, chosen: impl FnMut(&Record) -> bool) -> Option<Self> {
        let (taken, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.records).into_iter().partition(chosen);
        *self = self.part(left);
        (!taken.is_empty()).then(|| self.part(taken))
    }

    /// Some of its records, with its history. All parts wait for each other's traces, which is more than need be.
    fn part(&self, records: Vec<Record>) -> Self {
        let bytes = records.iter().map(|record| record.payload.len() as u64).sum();
        let (experiment, passed_on, traces) = (self.experiment.clone(), self.passed_on.clone(), self.traces.clone());
        Self { records, bytes, experiment, passed_on, traces, ..*self }
    }
}

/// Takes the first parcel that is due, shares no trace with what is under way, and has nothing to wait for.
pub(super) fn take_due(
    queue: &mut VecDeque<Parcel>,
    busy: &BTreeSet<TraceId>,
    turns: &Turns,
    now: Instant,
) -> Option<Parcel> {
    let may_go = |parcel: &Parcel| parcel.due <= now && parcel.traces.is_disjoint(busy) && turns.has_come(parcel);
    let at = queue.iter().position(may_go)?;
    queue.remove(at)
}

/// Takes the first of the parcels behind the `known` first ones that has nothing to wait for. Nothing is under way.
pub(super) fn take_fresh(queue: &mut VecDeque<Parcel>, known: usize, turns: &Turns) -> Option<Parcel> {
    let at = (known..queue.len()).find(|at| turns.has_come(&queue[*at]))?;
    queue.remove(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parcel(sizes: &[usize]) -> Parcel {
        let mut parcel = Parcel::new(Some("7".to_owned()), PassedOn::default(), Instant::now());
        for (number, size) in (1..).zip(sizes) {
            parcel.push(Record { number, envelope: Envelope::default(), payload: vec![0; *size].into() });
        }
        parcel
    }

    #[test]
    fn what_is_passed_on_ends_in_the_own_id() {
        let mut envelope = Envelope {
            headers: vec![("x-team".into(), "a".into()), ("x-team".into(), "b".into())],
            via: vec!["1".into()],
            ..Envelope::default()
        };
        let passed_on = PassedOn::of(&envelope);
        assert!(passed_on.is_of(&envelope));
        let expected = [("x-team", "a"), ("x-team", "b"), (VIA, "1,me")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(passed_on.headers("me"), expected);
        envelope.via.clear();
        assert!(!passed_on.is_of(&envelope), "records that passed other daemons travel apart");
        assert_eq!(PassedOn::default().headers("me"), [(VIA.to_owned(), "me".to_owned())]);
    }

    #[test]
    fn parts_share_the_records_and_weigh_what_they_hold() {
        let mut whole = parcel(&[1, 10, 100]);
        assert_eq!(whole.bytes(), 111);
        let taken = whole.take(|record| record.number == 2).expect("there is one");
        assert_eq!((taken.bytes(), whole.bytes()), (10, 101));
        assert!(whole.take(|_| false).is_none() && whole.bytes() == 101, "nothing taken, nothing changed");
        let [first, second] = whole.halves();
        assert_eq!((first.bytes(), second.bytes()), (1, 100));
        assert_eq!(second.experiment.as_deref(), Some("7"));
    }
}
