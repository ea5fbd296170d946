//! What the control and checkpoint frames say: the facts that are not derivable from records.
//!
//! A checkpoint holds the whole [`State`]; a [`Control`] changes it. The state after a start is the last checkpoint
//! with the controls behind it folded in, and nothing else.

use std::collections::BTreeMap;
use std::ops::Range;

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
    /// First record that is not finished.
    pub place: u64,
    /// Records above `place` that are finished, ascending, not touching.
    pub finished: Vec<Range<u64>>,
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

    /// Whether `record` needs nothing more from this backend's lane.
    #[must_use]
    pub fn is_finished(&self, record: u64) -> bool {
        record < self.place || self.finished.iter().any(|range| range.contains(&record))
    }
}

/// One fact, synced before it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// A backend exists from now on, and is owed everything from this record on.
    BackendAdded {
        /// Its name.
        name: String,
        /// First record it is owed.
        start: u64,
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
}

// Controls: one critical item each, because a control that is skipped is a fact that is lost.
const CONTROL_BACKEND_ADDED: u16 = CRITICAL | 1;
const CONTROL_PAUSED: u16 = CRITICAL | 2;
const CONTROL_RESUMED: u16 = CRITICAL | 3;

impl Control {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        match self {
            Self::BackendAdded { name, start } => {
                to.bytes(CONTROL_BACKEND_ADDED, &[&start.to_le_bytes()[..], name.as_bytes()].concat())
            }
            Self::Paused { name } => to.text(CONTROL_PAUSED, Some(name)),
            Self::Resumed { name } => to.text(CONTROL_RESUMED, Some(name)),
        };
        to.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<Self>, Malformed> {
        let mut controls = Vec::new();
        for item in tlv::items(bytes) {
            let (tag, value) = item?;
            controls.push(match tag {
                CONTROL_BACKEND_ADDED => {
                    let (start, name) = value.split_at_checked(8).ok_or(Malformed)?;
                    Self::BackendAdded { name: tlv::as_text(name)?, start: tlv::as_u64(start)? }
                }
                CONTROL_PAUSED => Self::Paused { name: tlv::as_text(value)? },
                CONTROL_RESUMED => Self::Resumed { name: tlv::as_text(value)? },
                unknown if unknown & CRITICAL != 0 => return Err(Malformed),
                _ => continue,
            });
        }
        Ok(controls)
    }
}

const CLOCK: u16 = 1;
const RECEIVED: u16 = 2;
const ACCOUNT: u16 = 3;

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
                self.accounts.entry(name.clone()).or_insert_with(|| Account::from_record(*start));
            }
            Control::Paused { name } => self.accounts.entry(name.clone()).or_default().paused = true,
            Control::Resumed { name } => self.accounts.entry(name.clone()).or_default().paused = false,
        }
    }

    /// The lowest record that some backend still needs; `None` when there is no backend.
    #[must_use]
    pub fn lowest_place(&self) -> Option<u64> {
        self.accounts.values().map(|account| account.place).min()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        let Received { requests, traces, spans, bytes, refused_full, refused_invalid, refused_too_large } =
            self.received;
        to.u64(CLOCK, self.clock_ms);
        to.u64s(RECEIVED, &[requests, traces, spans, bytes, refused_full, refused_invalid, refused_too_large]);
        for (name, account) in &self.accounts {
            to.bytes(ACCOUNT, &account.encode(name));
        }
        to.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut state = Self::default();
        for item in tlv::items(bytes) {
            let (tag, value) = item?;
            match tag {
                CLOCK => state.clock_ms = tlv::as_u64(value)?,
                RECEIVED => {
                    let [requests, traces, spans, bytes, refused_full, refused_invalid, refused_too_large] =
                        tlv::as_u64s(value)?;
                    state.received =
                        Received { requests, traces, spans, bytes, refused_full, refused_invalid, refused_too_large };
                }
                ACCOUNT => {
                    let (name, account) = Account::decode(value)?;
                    state.accounts.insert(name, account);
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
            .u64s(ACCOUNT_PLACES, &[self.start, self.place, self.side_place])
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
            .u64s(ACCOUNT_UNITS, &[self.rejected, self.damaged, self.not_applicable, self.attempts])
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
                ACCOUNT_PLACES => [account.start, account.place, account.side_place] = tlv::as_u64s(value)?,
                ACCOUNT_FINISHED => {
                    for range in value.chunks(16) {
                        let [start, end] = tlv::as_u64s(range)?;
                        account.finished.push(start..end);
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
                    [account.rejected, account.damaged, account.not_applicable, account.attempts] =
                        tlv::as_u64s(value)?;
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
    use super::*;

    #[test]
    fn a_state_comes_back_as_written() {
        let account = Account {
            start: 1,
            place: 5,
            finished: vec![7..9, 11..12],
            side_place: 3,
            delivered: Tally::one(3, 1, 100),
            rejected: 1,
            dead: Tally::one(0, 0, 9),
            parked: Tally::one(2, 1, 8),
            discarded: Discarded { retry_timeout: 1, queue_cap: 2, dead_letter_cap: 3, dead_letter_age: 4, purged: 5 },
            damaged: 6,
            not_applicable: 7,
            attempts: 8,
            paused: true,
        };
        let state = State {
            clock_ms: 42,
            received: Received { requests: 1, refused_too_large: 7, ..Received::default() },
            accounts: [("a".to_owned(), account), ("b".to_owned(), Account::from_record(9))].into(),
        };
        assert_eq!(State::decode(&state.encode()), Ok(state));
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
}
