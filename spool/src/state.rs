//! What the control and checkpoint frames say: the facts that are not derivable from records.
//!
//! A checkpoint holds the whole [`State`]; a [`Control`] changes it. The state after a start is the last checkpoint
//! with the controls behind it folded in, and nothing else.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::Ranges;
use crate::experiments::PromisedExperiment;
use crate::tally::Tally;
use crate::tlv::{self, CRITICAL, Encoder, Malformed};

/// The facts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Running clock at the checkpoint, milliseconds.
    pub clock_ms: u64,
    /// What came in since the spool was made.
    pub received: Received,
    /// One per backend that ever was, by name.
    pub accounts: BTreeMap<String, Account>,
    /// Experiments that apps were given provisional ids for, by that id.
    pub experiments: BTreeMap<String, PromisedExperiment>,
}

/// What came in since the spool was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Received {
    /// Requests taken.
    pub requests: u64,
    /// Traces in them, counted per request.
    pub traces: u64,
    /// Spans in them.
    pub spans: u64,
    /// Bytes in them, decompressed.
    pub bytes: u64,
    /// Requests refused because there was no room.
    pub refused_full: u64,
    /// Requests refused because they were not valid.
    pub refused_invalid: u64,
    /// Requests refused because they were too large.
    pub refused_too_large: u64,
    /// Records below this number are counted here; the journal itself says what the later ones add.
    pub counted_to: u64,
}

impl Received {
    fn numbers(&self) -> [u64; 8] {
        let Self { requests, traces, spans, bytes, refused_full, refused_invalid, refused_too_large, counted_to } =
            *self;
        [requests, traces, spans, bytes, refused_full, refused_invalid, refused_too_large, counted_to]
    }

    fn from_numbers(numbers: [u64; 8]) -> Self {
        let [requests, traces, spans, bytes, refused_full, refused_invalid, refused_too_large, counted_to] = numbers;
        Self { requests, traces, spans, bytes, refused_full, refused_invalid, refused_too_large, counted_to }
    }

    /// Counts records that were taken, the last of which has the number before `next_record`.
    pub fn count(&mut self, tally: Tally, next_record: u64) {
        self.requests += tally.records;
        self.traces += tally.traces;
        self.spans += tally.spans;
        self.bytes += tally.bytes;
        self.counted_to = next_record;
    }
}

/// Units given up, by the limit that an operator set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Discarded {
    /// Past `retry_timeout`.
    pub retry_timeout: u64,
    /// Past the queue cap.
    pub queue_cap: u64,
    /// Past the dead letters' cap in bytes.
    pub dead_letter_cap: u64,
    /// Past the dead letters' age.
    pub dead_letter_age: u64,
    /// By an operator's `purge`.
    pub purged: u64,
}

impl Discarded {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.retry_timeout + self.queue_cap + self.dead_letter_cap + self.dead_letter_age + self.purged
    }
}

/// A backend's place and its books. Place and counters move together, so that after any crash they fit each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// First record that the backend was owed.
    pub start: u64,
    /// First record that it is not owed, because the backend was taken out of the configuration; 0 while it is in.
    pub end: u64,
    /// First record that is not finished.
    pub place: u64,
    /// Records above `place` that are finished.
    pub finished: Ranges,
    /// Records at or below this number of the side journal are in `dead` and `parked`.
    pub side_place: u64,
    /// Taken by the backend.
    pub delivered: Tally,
    /// Units that partial successes refused.
    pub rejected: u64,
    /// Dead letters that exist now.
    pub dead: Tally,
    /// Set aside in the side journal to be tried again.
    pub parked: Tally,
    /// Given up by a limit.
    pub discarded: Discarded,
    /// Units lost to damage of the medium.
    pub damaged: u64,
    /// Units that this kind of backend has no place for.
    pub not_applicable: u64,
    /// Attempts made.
    pub attempts: u64,
    /// Milliseconds for which delivery was held up until the operator acted; they count in no record's age.
    pub idle_ms: u64,
    /// An operator stopped delivery.
    pub paused: bool,
}

impl Account {
    /// A backend that is owed everything from record `start` on.
    #[must_use]
    pub fn from_record(start: u64) -> Self {
        Self { start, place: start, ..Self::default() }
    }

    /// Units that ended in one way or another; what is owed beyond them is waiting.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.delivered.units
            + self.rejected
            + self.dead.units
            + self.discarded.total()
            + self.damaged
            + self.not_applicable
    }

    /// Whether the backend was taken out of the configuration.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.end != 0
    }

    /// The first record that must stay for this backend.
    #[must_use]
    pub fn lowest_needed(&self) -> u64 {
        if self.is_removed() && self.place >= self.end { u64::MAX } else { self.place }
    }

    /// Notes that `records` need nothing more. The place moves over the contiguous finished part; what is finished
    /// above a gap is kept as ranges, of which there are about as many as requests under way.
    pub fn finish(&mut self, records: Range<u64>) {
        self.finished.insert(records.start.max(self.place)..records.end);
        if let Some(first) = self.finished.first().filter(|first| first.start <= self.place) {
            self.place = first.end;
            self.finished.remove(first);
        }
    }

    /// Behind the highest record that this account knows of.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.finished.end().unwrap_or(self.place).max(self.end)
    }

    /// Whether `record` needs nothing more from this backend's lane.
    #[must_use]
    pub fn is_finished(&self, record: u64) -> bool {
        record < self.place || self.finished.contains(record)
    }
}

/// One fact, synced before it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// A backend is in the configuration from now on, and is owed everything from this record on. Where it was in
    /// it before, it is still owed what it was owed then.
    BackendAdded {
        /// Its name.
        name: String,
        /// First record it is owed.
        start: u64,
    },
    /// A backend was taken out of the configuration. It keeps its debt, and is not owed this record and later ones.
    BackendRemoved {
        /// Its name.
        name: String,
        /// First record it is not owed.
        end: u64,
    },
    /// An operator stopped delivery to a backend.
    Paused {
        /// Its name.
        name: String,
    },
    /// An operator started it again.
    Resumed {
        /// Its name.
        name: String,
    },
    /// An app was given a provisional id for an experiment.
    ExperimentPromised(PromisedExperiment),
}

// Controls: one critical item each, because a control that is skipped is a fact that is lost.
const CONTROL_BACKEND_ADDED: u16 = CRITICAL | 1;
const CONTROL_PAUSED: u16 = CRITICAL | 2;
const CONTROL_RESUMED: u16 = CRITICAL | 3;
const CONTROL_EXPERIMENT_PROMISED: u16 = CRITICAL | 8;
const CONTROL_BACKEND_REMOVED: u16 = CRITICAL | 14;

impl Control {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        match self {
            Self::BackendAdded { name, start } => to.bytes(CONTROL_BACKEND_ADDED, &numbered_name(*start, name)),
            Self::BackendRemoved { name, end } => to.bytes(CONTROL_BACKEND_REMOVED, &numbered_name(*end, name)),
            Self::Paused { name } => to.text(CONTROL_PAUSED, Some(name)),
            Self::Resumed { name } => to.text(CONTROL_RESUMED, Some(name)),
            Self::ExperimentPromised(promised) => to.bytes(CONTROL_EXPERIMENT_PROMISED, &promised.encode()),
        };
        to.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<Self>, Malformed> {
        let mut controls = Vec::new();
        for item in tlv::items(bytes) {
            let (tag, value) = item?;
            controls.push(match tag {
                CONTROL_BACKEND_ADDED => {
                    let (start, name) = read_numbered_name(value)?;
                    Self::BackendAdded { name, start }
                }
                CONTROL_BACKEND_REMOVED => {
                    let (end, name) = read_numbered_name(value)?;
                    Self::BackendRemoved { name, end }
                }
                CONTROL_PAUSED => Self::Paused { name: tlv::as_text(value)? },
                CONTROL_RESUMED => Self::Resumed { name: tlv::as_text(value)? },
                CONTROL_EXPERIMENT_PROMISED => Self::ExperimentPromised(PromisedExperiment::decode(value)?),
                unknown if unknown & CRITICAL != 0 => return Err(Malformed),
                _ => continue,
            });
        }
        Ok(controls)
    }
}

fn numbered_name(number: u64, name: &str) -> Vec<u8> {
    [&number.to_le_bytes()[..], name.as_bytes()].concat()
}

fn read_numbered_name(value: &[u8]) -> Result<(u64, String), Malformed> {
    let (number, name) = value.split_at_checked(8).ok_or(Malformed)?;
    Ok((tlv::as_u64(number)?, tlv::as_text(name)?))
}

const CLOCK: u16 = 1;
const RECEIVED: u16 = 2;
const ACCOUNT: u16 = 3;
const EXPERIMENT: u16 = 5;

const ACCOUNT_NAME: u16 = 1;
const ACCOUNT_PLACES: u16 = 2;
const ACCOUNT_FINISHED: u16 = 3;
const ACCOUNT_DELIVERED: u16 = 4;
const ACCOUNT_DEAD: u16 = 5;
const ACCOUNT_PARKED: u16 = 6;
const ACCOUNT_DISCARDED: u16 = 7;
const ACCOUNT_UNITS: u16 = 8;
const ACCOUNT_PAUSED: u16 = 9;

impl State {
    /// Folds one control in.
    pub fn apply(&mut self, control: &Control) {
        match control {
            Control::BackendAdded { name, start } => {
                let account = self.accounts.entry(name.clone()).or_insert_with(|| Account::from_record(*start));
                let end = std::mem::take(&mut account.end);
                if end != 0 {
                    account.finish(end..*start);
                }
            }
            Control::BackendRemoved { name, end } => {
                if let Some(account) = self.accounts.get_mut(name) {
                    account.end = *end;
                }
            }
            Control::Paused { name } => self.accounts.entry(name.clone()).or_default().paused = true,
            Control::Resumed { name } => self.accounts.entry(name.clone()).or_default().paused = false,
            Control::ExperimentPromised(promised) => {
                self.experiments.entry(promised.id.clone()).or_insert_with(|| promised.clone());
            }
        }
    }

    /// The lowest record that must stay; `None` when there never was a backend, and all must. Records that came in while
    /// no backend is configured belong to the first one that will be.
    #[must_use]
    pub fn lowest_needed(&self) -> Option<u64> {
        let debts = self.accounts.values().map(Account::lowest_needed).min()?;
        Some(debts.min(self.owed_to_nobody().unwrap_or(u64::MAX)))
    }

    /// Finishes, in all accounts, numbers that no record has and none will get.
    pub(crate) fn finish_unused(&mut self, numbers: Range<u64>) {
        self.accounts.values_mut().for_each(|account| account.finish(numbers.clone()));
    }

    /// The first record that no backend was there for; `None` while there is one.
    #[must_use]
    pub fn owed_to_nobody(&self) -> Option<u64> {
        let all_removed = self.accounts.values().all(Account::is_removed);
        self.accounts.values().map(|account| account.end).max().filter(|_| all_removed)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        to.u64(CLOCK, self.clock_ms).u64s(RECEIVED, &self.received.numbers());
        for (name, account) in &self.accounts {
            to.bytes(ACCOUNT, &account.encode(name));
        }
        for promised in self.experiments.values() {
            to.bytes(EXPERIMENT, &promised.encode());
        }
        to.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut state = Self::default();
        for item in tlv::items(bytes) {
            let (tag, value) = item?;
            match tag {
                CLOCK => state.clock_ms = tlv::as_u64(value)?,
                RECEIVED => state.received = Received::from_numbers(tlv::as_u64s(value)?),
                ACCOUNT => {
                    let (name, account) = Account::decode(value)?;
                    state.accounts.insert(name, account);
                }
                EXPERIMENT => {
                    let promised = PromisedExperiment::decode(value)?;
                    state.experiments.insert(promised.id.clone(), promised);
                }
                unknown if unknown & CRITICAL != 0 => return Err(Malformed),
                _ => {}
            }
        }
        Ok(state)
    }
}

impl Account {
    fn encode(&self, name: &str) -> Vec<u8> {
        let mut to = Encoder::default();
        let finished: Vec<u64> = self.finished.iter().flat_map(|range| [range.start, range.end]).collect();
        let discarded = self.discarded;
        to.text(ACCOUNT_NAME, Some(name))
            .u64s(ACCOUNT_PLACES, &[self.start, self.place, self.side_place, self.end])
            .u64s(ACCOUNT_FINISHED, &finished)
            .u64s(ACCOUNT_DELIVERED, &numbers(self.delivered))
            .u64s(ACCOUNT_DEAD, &numbers(self.dead))
            .u64s(ACCOUNT_PARKED, &numbers(self.parked))
            .u64s(
                ACCOUNT_DISCARDED,
                &[
                    discarded.retry_timeout,
                    discarded.queue_cap,
                    discarded.dead_letter_cap,
                    discarded.dead_letter_age,
                    discarded.purged,
                ],
            )
            .u64s(ACCOUNT_UNITS, &[self.rejected, self.damaged, self.not_applicable, self.attempts, self.idle_ms])
            .u8(ACCOUNT_PAUSED, u8::from(self.paused));
        to.finish()
    }

    fn decode(bytes: &[u8]) -> Result<(String, Self), Malformed> {
        let mut name = None;
        let mut account = Self::default();
        for item in tlv::items(bytes) {
            let (tag, value) = item?;
            match tag {
                ACCOUNT_NAME => name = Some(tlv::as_text(value)?),
                ACCOUNT_PLACES => {
                    [account.start, account.place, account.side_place, account.end] = tlv::as_u64s(value)?
                }
                ACCOUNT_FINISHED => {
                    for range in value.chunks(16) {
                        let [start, end] = tlv::as_u64s(range)?;
                        account.finished.insert(start..end);
                    }
                }
                ACCOUNT_DELIVERED => account.delivered = tally(value)?,
                ACCOUNT_DEAD => account.dead = tally(value)?,
                ACCOUNT_PARKED => account.parked = tally(value)?,
                ACCOUNT_DISCARDED => {
                    let [retry_timeout, queue_cap, dead_letter_cap, dead_letter_age, purged] = tlv::as_u64s(value)?;
                    account.discarded =
                        Discarded { retry_timeout, queue_cap, dead_letter_cap, dead_letter_age, purged };
                }
                ACCOUNT_UNITS => {
                    let Self { rejected, damaged, not_applicable, attempts, idle_ms, .. } = &mut account;
                    [*rejected, *damaged, *not_applicable, *attempts, *idle_ms] = tlv::as_u64s(value)?;
                }
                ACCOUNT_PAUSED => account.paused = tlv::as_u8(value)? != 0,
                unknown if unknown & CRITICAL != 0 => return Err(Malformed),
                _ => {}
            }
        }
        Ok((name.ok_or(Malformed)?, account))
    }
}

fn numbers(tally: Tally) -> [u64; 5] {
    [tally.records, tally.traces, tally.spans, tally.units, tally.bytes]
}

fn tally(value: &[u8]) -> Result<Tally, Malformed> {
    let [records, traces, spans, units, bytes] = tlv::as_u64s(value)?;
    Ok(Tally { records, traces, spans, units, bytes })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_state_comes_back_as_written() {
        let account = Account {
            start: 1,
            end: 99,
            place: 5,
            finished: [7..9, 11..12].into_iter().collect(),
            side_place: 3,
            delivered: Tally::one(3, 1, 100),
            rejected: 1,
            dead: Tally::one(0, 0, 9),
            parked: Tally::one(2, 1, 8),
            discarded: Discarded { retry_timeout: 1, queue_cap: 2, dead_letter_cap: 3, dead_letter_age: 4, purged: 5 },
            damaged: 6,
            not_applicable: 7,
            attempts: 8,
            idle_ms: 9,
            paused: true,
        };
        let state = State {
            clock_ms: 42,
            received: Received { requests: 1, refused_too_large: 7, counted_to: 9, ..Received::default() },
            accounts: [("a".to_owned(), account), ("b".to_owned(), Account::from_record(9))].into(),
            experiments: [("9".to_owned(), promised())].into(),
        };
        assert_eq!(State::decode(&state.encode()), Ok(state));
    }

    fn promised() -> PromisedExperiment {
        PromisedExperiment {
            id: "9".into(),
            name: "größer".into(),
            workspace: Some("blue".into()),
            found: [("mlflow".to_owned(), "7".to_owned()), ("other".to_owned(), "12".to_owned())].into(),
        }
    }

    #[test]
    fn a_promise_is_kept_as_it_was_given() {
        let mut state = State::default();
        let first = PromisedExperiment { workspace: None, found: BTreeMap::new(), ..promised() };
        let again = PromisedExperiment { name: "another".into(), ..first.clone() };
        for given in [&first, &again] {
            let control = Control::ExperimentPromised(given.clone());
            assert_eq!(Control::decode(&control.encode()).as_deref(), Ok(&[control.clone()][..]));
            state.apply(&control);
        }
        assert_eq!(state.experiments["9"], first);
    }

    #[test]
    fn controls_fold_in_order() {
        let controls = [
            Control::BackendAdded { name: "a".into(), start: 4 },
            Control::Paused { name: "a".into() },
            Control::BackendAdded { name: "a".into(), start: 99 },
            Control::Resumed { name: "a".into() },
            Control::Paused { name: "a".into() },
        ];
        let mut state = State::default();
        for control in &controls {
            let read = Control::decode(&control.encode()).expect("a control that was written can be read");
            assert_eq!(read, std::slice::from_ref(control));
            state.apply(&read[0]);
        }
        assert_eq!(state.accounts["a"].place, 4, "a backend that exists keeps its place");
        assert!(state.accounts["a"].paused);
    }

    #[test]
    fn an_unknown_fact_is_not_skipped() {
        let mut to = Encoder::default();
        to.u8(CRITICAL | 99, 1);
        assert_eq!(Control::decode(&to.finish()), Err(Malformed));
    }

    #[test]
    fn a_backend_that_comes_back_is_owed_what_it_was_and_not_what_came_between() {
        let mut state = State::default();
        let added = |start| Control::BackendAdded { name: "a".into(), start };
        state.apply(&added(1));
        state.accounts.get_mut("a").expect("added").finish(1..5);
        state.apply(&Control::BackendRemoved { name: "a".into(), end: 10 });
        assert_eq!(state.lowest_needed(), Some(5), "its debt stays");
        state.apply(&added(20));
        let account = &state.accounts["a"];
        assert!(
            !account.is_removed() && !account.is_finished(9) && account.is_finished(10) && !account.is_finished(20)
        );
        state.accounts.get_mut("a").expect("added").finish(5..10);
        assert_eq!(state.accounts["a"].place, 20);
        state.apply(&Control::BackendRemoved { name: "a".into(), end: 20 });
        assert_eq!(state.lowest_needed(), Some(20), "what comes while there is no backend waits for one");
        state.apply(&Control::BackendAdded { name: "b".into(), start: 20 });
        state.accounts.get_mut("b").expect("added").finish(20..30);
        assert_eq!(state.lowest_needed(), Some(30), "a removed backend without debt needs nothing");
    }

    #[test]
    fn the_place_waits_at_a_gap() {
        let mut account = Account::from_record(10);
        account.finish(12..13);
        account.finish(14..16);
        assert_eq!((account.place, account.finished.iter().collect()), (10, vec![12..13, 14..16]));
        account.finish(13..14);
        assert_eq!((account.place, account.finished.first(), account.finished.count()), (10, Some(12..16), 4));
        account.finish(10..12);
        assert_eq!((account.place, account.finished.is_empty()), (16, true));
        account.finish(3..9);
        assert_eq!(account.place, 16, "what is behind the place changes nothing");
    }

    proptest! {
        #[test]
        fn in_any_order_it_equals_a_set(ranges in prop::collection::vec((0_u64..60, 1_u64..6), 0..60)) {
            let mut account = Account::from_record(0);
            let mut set = std::collections::BTreeSet::new();
            for (start, length) in ranges {
                account.finish(start..start + length);
                set.extend(start..start + length);
                let place = (0..).find(|record| !set.contains(record)).expect("sets are finite");
                prop_assert_eq!(account.place, place);
                for record in 0..70 {
                    prop_assert_eq!(account.is_finished(record), set.contains(&record));
                }
                prop_assert!(account.finished.first().is_none_or(|first| first.start > account.place));
            }
        }
    }
}
