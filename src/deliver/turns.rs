//! In which order the records of one trace go.
//!
//! Spans may reach a server in any order; what an app says about a trace may not: a tag that was set twice has the
//! second value, and there must be a trace to set it on. So an MLflow call waits until every record of its trace that
//! came before it has ended, and nothing waits for a call but later calls of the same trace.

use std::collections::{BTreeMap, BTreeSet};

use super::parcel::{Parcel, TraceId};

/// The records that a lane has in memory, by trace.
#[derive(Debug, Default)]
pub(super) struct Turns {
    unfinished: BTreeMap<TraceId, BTreeSet<u64>>,
}

impl Turns {
    /// A record was read.
    pub(super) fn enter(&mut self, record: u64, traces: &[TraceId]) {
        for trace in traces {
            self.unfinished.entry(*trace).or_default().insert(record);
        }
    }

    /// Records ended, in whatever way.
    pub(super) fn leave(&mut self, parcel: &Parcel) {
        for trace in &parcel.traces {
            let Some(records) = self.unfinished.get_mut(trace) else { continue };
            for record in &parcel.records {
                records.remove(&record.number);
            }
            if records.is_empty() {
                self.unfinished.remove(trace);
            }
        }
    }

    /// Whether nothing is left that a parcel has to wait for.
    pub(super) fn has_come(&self, parcel: &Parcel) -> bool {
        let Some(record) = parcel.records.first().filter(|_| parcel.is_call()) else { return true };
        let is_first = |records: &BTreeSet<u64>| records.first().is_none_or(|first| *first >= record.number);
        parcel.traces.iter().all(|trace| self.unfinished.get(trace).is_none_or(is_first))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Instant;

    use spool::{Call, Envelope, Record};

    use super::super::parcel::{PassedOn, take_due, take_fresh};
    use super::*;

    fn parcel(number: u64, trace: TraceId, is_call: bool) -> Parcel {
        let call = Call { method: "PATCH".into(), path: "/".into(), content_type: None };
        let envelope = Envelope { call: is_call.then_some(call), ..Envelope::default() };
        let mut parcel = Parcel::new(None, PassedOn::of(&envelope), Instant::now());
        parcel.traces.insert(trace);
        parcel.push(Record { number, envelope, payload: bytes::Bytes::new() });
        parcel
    }

    #[test]
    fn nothing_takes_a_call_out_of_its_turn() {
        const A: TraceId = [1; 16];
        const B: TraceId = [2; 16];
        let mut turns = Turns::default();
        let mut queue: VecDeque<_> = [parcel(1, A, false), parcel(2, A, true), parcel(3, B, true)].into();
        for parcel in &queue {
            turns.enter(parcel.records[0].number, &parcel.traces.iter().copied().collect::<Vec<_>>());
        }
        let later = Instant::now() + std::time::Duration::from_secs(60);
        queue[0].due = later;
        let number = |parcel: Option<Parcel>| parcel.map(|parcel| parcel.records[0].number);
        assert_eq!(
            number(take_fresh(&mut queue, 1, &turns)),
            Some(3),
            "the spans before the call are still to be sent"
        );
        assert_eq!(number(take_fresh(&mut queue, 1, &turns)), None);
        assert_eq!(number(take_due(&mut queue, &BTreeSet::new(), &turns, Instant::now())), None);
        assert_eq!(number(take_due(&mut queue, &BTreeSet::new(), &turns, later)), Some(1));
    }

    #[test]
    fn a_call_waits_for_all_that_came_before_it_about_its_trace() {
        const A: TraceId = [1; 16];
        const B: TraceId = [2; 16];
        let mut turns = Turns::default();
        let [spans, tag, other, again] =
            [parcel(1, A, false), parcel(2, A, true), parcel(3, B, true), parcel(4, A, true)];
        let late_spans = parcel(5, A, false);
        for parcel in [&spans, &tag, &other, &again, &late_spans] {
            turns.enter(parcel.records[0].number, &parcel.traces.iter().copied().collect::<Vec<_>>());
        }
        let may_go = |turns: &Turns| [&spans, &tag, &other, &again, &late_spans].map(|parcel| turns.has_come(parcel));
        assert_eq!(may_go(&turns), [true, false, true, false, true]);
        turns.leave(&spans);
        assert_eq!(may_go(&turns), [true, true, true, false, true]);
        turns.leave(&tag);
        turns.leave(&other);
        assert_eq!(may_go(&turns), [true, true, true, true, true]);
        turns.leave(&again);
        turns.leave(&late_spans);
        assert!(turns.unfinished.is_empty(), "nothing is left behind");
    }
}
