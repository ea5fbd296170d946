//! What the control and checkpoint frames say: the facts that are not derivable from records.
//!
//! A checkpoint holds the whole [`State`]; a [`Control`] changes it. The state after a start is the last checkpoint
//! with the controls behind it folded in, and nothing else.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::Ranges;
use crate::damage::{Damage, Share};
use crate::drop_file::{DropFile, FileId};
use crate::envelope::Reason;
use crate::envelope::SourceRange;
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
    /// Drop files of which something was taken, and that are not known to be gone.
    pub drop_files: BTreeMap<FileId, DropFile>,
    /// Which history this is: made at the journal's first start, and kept wherever a place is kept, so that the places
    /// of one spool are never taken for those of another. 0 before it is known.
    pub spool_id: u64,
    /// How many facts that move counters were folded in. A view of the books is of use only beside a journal that has
    /// seen as many: otherwise one of them has counted what the other has not.
    pub facts: u64,
    /// Records of the side journal that nobody keeps any more. Each belongs to one backend.
    pub side_settled: Ranges,
    /// Whole segments that became dead letters, oldest first.
    pub labels: Vec<Label>,
    /// Records that damage took and that a repair wrote off, by the segment in which, or before which, they were.
    pub written_off: BTreeMap<u64, Ranges>,
    /// Records that an operator purged and that are not erased yet.
    pub purges: Ranges,
}

/// A segment of the main journal that was not delivered in time, kept as dead letters of a backend as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The segment.
    pub segment: u64,
    /// The backend that did not take it.
    pub backend: String,
    /// Why.
    pub reason: Reason,
    /// Those of its records that the backend still waited for.
    pub records: Ranges,
    /// What they weigh.
    pub tally: Tally,
    /// The backend's status, as of the attempt after which it was given up.
    pub status: String,
    /// Its message, shortened.
    pub message: String,
    /// Attempts of the request that failed last.
    pub attempts: u32,
    /// Wall clock of that request's first attempt, nanoseconds since 1970.
    pub first_attempt_ns: u64,
    /// Wall clock of its last attempt.
    pub last_attempt_ns: u64,
    /// Running clock at which it was given up, milliseconds.
    pub clock_ms: u64,
    /// Wall clock of receipt of its first record.
    pub received_ns: u64,
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

/// A limit that an operator set, or the operator's own word. The numbers are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DiscardReason {
    /// Past `retry_timeout`.
    RetryTimeout = 1,
    /// Past the queue cap.
    QueueCap = 2,
    /// Past the dead letters' cap in bytes.
    DeadLetterCap = 3,
    /// Past the dead letters' age.
    DeadLetterAge = 4,
    /// By an operator's `purge`.
    Purged = 5,
}

impl DiscardReason {
    /// As `status` and the log name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RetryTimeout => "retry_timeout",
            Self::QueueCap => "queue_cap",
            Self::DeadLetterCap => "dead_letter_cap",
            Self::DeadLetterAge => "dead_letter_age",
            Self::Purged => "purged",
        }
    }

    fn from_u8(value: u8) -> Result<Self, Malformed> {
        [Self::RetryTimeout, Self::QueueCap, Self::DeadLetterCap, Self::DeadLetterAge, Self::Purged]
            .into_iter()
            .find(|reason| *reason as u8 == value)
            .ok_or(Malformed)
    }
}

impl Discarded {
    /// Counts what was given up for a reason.
    pub fn count(&mut self, reason: DiscardReason, units: u64) {
        *match reason {
            DiscardReason::RetryTimeout => &mut self.retry_timeout,
            DiscardReason::QueueCap => &mut self.queue_cap,
            DiscardReason::DeadLetterCap => &mut self.dead_letter_cap,
            DiscardReason::DeadLetterAge => &mut self.dead_letter_age,
            DiscardReason::Purged => &mut self.purged,
        } += units;
    }

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

    /// Those of `records` that the backend is owed and that are not finished.
    #[must_use]
    pub fn unfinished_in(&self, records: Range<u64>) -> Ranges {
        let end = if self.is_removed() { records.end.min(self.end) } else { records.end };
        let start = records.start.max(self.place);
        if start >= end { Ranges::default() } else { self.finished.missing_in(start..end).collect() }
    }

    /// Whether the first of `records` is not finished. A fact about records that were all unfinished when it was made
    /// is folded in once at most: before it none of them is finished, after it all are.
    fn awaits(&self, records: &Ranges) -> bool {
        records.first().is_some_and(|first| !self.is_finished(first.start))
    }

    /// Notes that all of these need nothing more.
    fn finish_all(&mut self, records: &Ranges) {
        records.iter().for_each(|range| self.finish(range));
    }

    /// Notes that damage took records. Those that are finished are not counted again, nor those that are not owed.
    /// Returns how much of what was waited for is lost.
    pub fn lose(&mut self, damage: &Damage) -> Tally {
        let owed_to = if self.is_removed() { self.end } else { u64::MAX };
        let open = damage.records.start.max(self.place)..damage.records.end.min(owed_to);
        let lost = self.finished.missing_in(open.start..open.end.max(open.start));
        let lost = lost.fold(Tally::default(), |sum, part| sum.plus(damage.tally_in(&part)));
        self.damaged += lost.units;
        self.finish(damage.records.start..damage.records.end.min(owed_to));
        lost
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
    /// A drop file was taken up to a byte; its records are in the same group.
    FileTaken {
        /// Which one.
        file: FileId,
        /// How far, and what it looked like then.
        taken: DropFile,
    },
    /// A drop file that was taken is gone, and its directory was synced.
    FileGone {
        /// Which one.
        file: FileId,
    },
    /// Records that a backend waited for were given up by a limit.
    Discarded {
        /// The backend.
        backend: String,
        /// The records, none of which was finished.
        records: Ranges,
        /// Which limit.
        reason: DiscardReason,
        /// What they weigh.
        tally: Tally,
    },
    /// Dead letters are kept no more.
    SideSettled {
        /// Whose they were.
        backend: String,
        /// Which ones.
        letters: Letters,
        /// How they ended.
        end: LettersEnd,
        /// What they weigh.
        tally: Tally,
    },
    /// A whole segment became dead letters of a backend.
    Relabelled(Box<Label>),
    /// An operator purged these records: they are erased when no backend waits for them.
    Purged {
        /// The records.
        records: Ranges,
    },
    /// A repair found that these can't be read, in a segment or before it. Who still waited for them has lost them.
    WrittenOff {
        /// The segment.
        segment: u64,
        /// The records.
        records: Range<u64>,
        /// How much they were.
        tally: Tally,
    },
}

/// Some dead letters of one backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Letters {
    /// By their numbers in the side journal. Numbers that no record has may be among them.
    Numbers(Ranges),
    /// All those of a segment that was re-labelled.
    Segment(u64),
}

/// How dead letters ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LettersEnd {
    /// Given up by a limit.
    Discarded(DiscardReason),
    /// Lost to damage of the medium.
    Damaged,
}

// Controls: one critical item each, because a control that is skipped is a fact that is lost.
const CONTROL_BACKEND_ADDED: u16 = CRITICAL | 1;
const CONTROL_PAUSED: u16 = CRITICAL | 2;
const CONTROL_RESUMED: u16 = CRITICAL | 3;
const CONTROL_EXPERIMENT_PROMISED: u16 = CRITICAL | 8;
const CONTROL_FILE_TAKEN: u16 = CRITICAL | 10;
const CONTROL_FILE_GONE: u16 = CRITICAL | 11;
const CONTROL_DISCARDED: u16 = CRITICAL | 5;
const CONTROL_SIDE_SETTLED: u16 = CRITICAL | 12;
const CONTROL_PURGED: u16 = CRITICAL | 4;
const CONTROL_WRITTEN_OFF: u16 = CRITICAL | 13;
const CONTROL_BACKEND_REMOVED: u16 = CRITICAL | 14;
const CONTROL_RELABELLED: u16 = CRITICAL | 15;

const DISCARD_BACKEND: u16 = 1;
const DISCARD_RECORDS: u16 = 2;
const DISCARD_REASON: u16 = 3;
const DISCARD_TALLY: u16 = 4;

const SETTLED_BACKEND: u16 = 1;
const SETTLED_NUMBERS: u16 = 2;
const SETTLED_HOW: u16 = 3;
const SETTLED_REASON: u16 = 4;
const SETTLED_TALLY: u16 = 5;
const SETTLED_SEGMENT: u16 = 6;

/// Values of [`SETTLED_HOW`]; those below are reserved.
const HOW_DISCARDED: u8 = 5;
const HOW_DAMAGED: u8 = 6;

impl Control {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        match self {
            Self::BackendAdded { name, start } => to.bytes(CONTROL_BACKEND_ADDED, &numbered_name(*start, name)),
            Self::BackendRemoved { name, end } => to.bytes(CONTROL_BACKEND_REMOVED, &numbered_name(*end, name)),
            Self::Paused { name } => to.text(CONTROL_PAUSED, Some(name)),
            Self::Resumed { name } => to.text(CONTROL_RESUMED, Some(name)),
            Self::ExperimentPromised(promised) => to.bytes(CONTROL_EXPERIMENT_PROMISED, &promised.encode()),
            Self::FileTaken { file, taken } => to.u64s(CONTROL_FILE_TAKEN, &taken.numbers(*file)),
            Self::FileGone { file } => to.u64s(CONTROL_FILE_GONE, &[file.device, file.inode]),
            Self::Discarded { backend, records, reason, tally } => {
                let mut inner = Encoder::default();
                inner
                    .text(DISCARD_BACKEND, Some(backend))
                    .u64s(DISCARD_RECORDS, &pairs(records))
                    .u8(DISCARD_REASON, *reason as u8)
                    .u64s(DISCARD_TALLY, &numbers(*tally));
                to.bytes(CONTROL_DISCARDED, &inner.finish())
            }
            Self::SideSettled { backend, letters, end, tally } => {
                let mut inner = Encoder::default();
                inner.text(SETTLED_BACKEND, Some(backend));
                match letters {
                    Letters::Numbers(numbers) => inner.u64s(SETTLED_NUMBERS, &pairs(numbers)),
                    Letters::Segment(segment) => inner.u64(SETTLED_SEGMENT, *segment),
                };
                match end {
                    LettersEnd::Discarded(reason) => {
                        inner.u8(SETTLED_HOW, HOW_DISCARDED).u8(SETTLED_REASON, *reason as u8)
                    }
                    LettersEnd::Damaged => inner.u8(SETTLED_HOW, HOW_DAMAGED),
                };
                inner.u64s(SETTLED_TALLY, &numbers(*tally));
                to.bytes(CONTROL_SIDE_SETTLED, &inner.finish())
            }
            Self::Relabelled(label) => to.bytes(CONTROL_RELABELLED, &label.encode()),
            Self::Purged { records } => {
                let mut nested = Encoder::default();
                nested.u64s(PURGED_RECORDS, &pairs(records));
                to.bytes(CONTROL_PURGED, &nested.finish())
            }
            Self::WrittenOff { segment, records, tally } => {
                let Tally { records: count, traces, spans, units, bytes } = *tally;
                let numbers = [*segment, records.start, records.end, count, traces, spans, units, bytes];
                to.u64s(CONTROL_WRITTEN_OFF, &numbers)
            }
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
                CONTROL_FILE_TAKEN => {
                    let (file, taken) = DropFile::from_numbers(tlv::as_u64s(value)?);
                    Self::FileTaken { file, taken }
                }
                CONTROL_FILE_GONE => {
                    let [device, inode] = tlv::as_u64s(value)?;
                    Self::FileGone { file: FileId { device, inode } }
                }
                CONTROL_DISCARDED => read_discarded(value)?,
                CONTROL_SIDE_SETTLED => read_side_settled(value)?,
                CONTROL_RELABELLED => Self::Relabelled(Box::new(Label::decode(value)?)),
                CONTROL_PURGED => {
                    let mut records = Ranges::default();
                    for item in tlv::items(value) {
                        match item? {
                            (PURGED_RECORDS, value) => records = read_pairs(value)?,
                            (unknown, _) if unknown & CRITICAL != 0 => return Err(Malformed),
                            _ => {}
                        }
                    }
                    Self::Purged { records }
                }
                CONTROL_WRITTEN_OFF => {
                    let [segment, start, end, records, traces, spans, units, bytes] = tlv::as_u64s(value)?;
                    let tally = Tally { records, traces, spans, units, bytes };
                    Self::WrittenOff { segment, records: start..end, tally }
                }
                unknown if unknown & CRITICAL != 0 => return Err(Malformed),
                _ => continue,
            });
        }
        Ok(controls)
    }
}

fn read_discarded(bytes: &[u8]) -> Result<Control, Malformed> {
    let (mut backend, mut records, mut reason, mut sum) = (None, Ranges::default(), None, Tally::default());
    for item in tlv::items(bytes) {
        let (tag, value) = item?;
        match tag {
            DISCARD_BACKEND => backend = Some(tlv::as_text(value)?),
            DISCARD_RECORDS => records = read_pairs(value)?,
            DISCARD_REASON => reason = Some(DiscardReason::from_u8(tlv::as_u8(value)?)?),
            DISCARD_TALLY => sum = tally(value)?,
            unknown if unknown & CRITICAL != 0 => return Err(Malformed),
            _ => {}
        }
    }
    let (backend, reason) = (backend.ok_or(Malformed)?, reason.ok_or(Malformed)?);
    Ok(Control::Discarded { backend, records, reason, tally: sum })
}

fn read_side_settled(bytes: &[u8]) -> Result<Control, Malformed> {
    let (mut backend, mut letters, mut how, mut reason, mut sum) = (None, None, 0, None, Tally::default());
    for item in tlv::items(bytes) {
        let (tag, value) = item?;
        match tag {
            SETTLED_BACKEND => backend = Some(tlv::as_text(value)?),
            SETTLED_NUMBERS => letters = Some(Letters::Numbers(read_pairs(value)?)),
            SETTLED_SEGMENT => letters = Some(Letters::Segment(tlv::as_u64(value)?)),
            SETTLED_HOW => how = tlv::as_u8(value)?,
            SETTLED_REASON => reason = Some(DiscardReason::from_u8(tlv::as_u8(value)?)?),
            SETTLED_TALLY => sum = tally(value)?,
            unknown if unknown & CRITICAL != 0 => return Err(Malformed),
            _ => {}
        }
    }
    let end = match how {
        HOW_DISCARDED => LettersEnd::Discarded(reason.ok_or(Malformed)?),
        HOW_DAMAGED => LettersEnd::Damaged,
        _ => return Err(Malformed),
    };
    let (backend, letters) = (backend.ok_or(Malformed)?, letters.ok_or(Malformed)?);
    Ok(Control::SideSettled { backend, letters, end, tally: sum })
}

const LABEL_SEGMENT: u16 = 1;
const LABEL_BACKEND: u16 = 2;
const LABEL_REASON: u16 = 3;
const LABEL_RECORDS: u16 = 4;
const LABEL_TALLY: u16 = 5;
const LABEL_STATUS: u16 = 6;
const LABEL_MESSAGE: u16 = 7;
const LABEL_TIMES: u16 = 8;

impl Label {
    fn encode(&self) -> Vec<u8> {
        let mut to = Encoder::default();
        to.u64(LABEL_SEGMENT, self.segment)
            .text(LABEL_BACKEND, Some(&self.backend))
            .u8(LABEL_REASON, self.reason as u8)
            .u64s(LABEL_RECORDS, &pairs(&self.records))
            .u64s(LABEL_TALLY, &numbers(self.tally))
            .text(LABEL_STATUS, Some(&self.status))
            .text(LABEL_MESSAGE, Some(&self.message))
            .u64s(
                LABEL_TIMES,
                &[
                    u64::from(self.attempts),
                    self.first_attempt_ns,
                    self.last_attempt_ns,
                    self.clock_ms,
                    self.received_ns,
                ],
            );
        to.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut label = Self {
            segment: 0,
            backend: String::new(),
            reason: Reason::Expired,
            records: Ranges::default(),
            tally: Tally::default(),
            status: String::new(),
            message: String::new(),
            attempts: 0,
            first_attempt_ns: 0,
            last_attempt_ns: 0,
            clock_ms: 0,
            received_ns: 0,
        };
        for item in tlv::items(bytes) {
            let (tag, value) = item?;
            match tag {
                LABEL_SEGMENT => label.segment = tlv::as_u64(value)?,
                LABEL_BACKEND => label.backend = tlv::as_text(value)?,
                LABEL_REASON => label.reason = Reason::from_u8(tlv::as_u8(value)?).ok_or(Malformed)?,
                LABEL_RECORDS => label.records = read_pairs(value)?,
                LABEL_TALLY => label.tally = tally(value)?,
                LABEL_STATUS => label.status = tlv::as_text(value)?,
                LABEL_MESSAGE => label.message = tlv::as_text(value)?,
                LABEL_TIMES => {
                    let [attempts, first, last, clock_ms, received_ns] = tlv::as_u64s(value)?;
                    label.attempts = u32::try_from(attempts).map_err(|_| Malformed)?;
                    (label.first_attempt_ns, label.last_attempt_ns) = (first, last);
                    (label.clock_ms, label.received_ns) = (clock_ms, received_ns);
                }
                unknown if unknown & CRITICAL != 0 => return Err(Malformed),
                _ => {}
            }
        }
        Ok(label)
    }
}

const PURGED_RECORDS: u16 = 1;

/// Ranges as numbers in a row: first and behind of each.
fn pairs(ranges: &Ranges) -> Vec<u64> {
    ranges.iter().flat_map(|range| [range.start, range.end]).collect()
}

fn read_pairs(value: &[u8]) -> Result<Ranges, Malformed> {
    let ranges = value.chunks(16).map(|pair| tlv::as_u64s(pair).map(|[start, end]| start..end));
    ranges.collect()
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
const DROP_FILE: u16 = 6;
const LABEL: u16 = 8;
const SIDE_SETTLED: u16 = 9;
const SPOOL_ID: u16 = 10;
const PURGES: u16 = 7;
const WRITTEN_OFF: u16 = 12;

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
            Control::FileTaken { file, taken } => self.drop_files.entry(*file).or_default().advance(taken),
            Control::FileGone { file } => drop(self.drop_files.remove(file)),
            Control::Discarded { backend, records, reason, tally } => {
                if let Some(account) = self.accounts.get_mut(backend).filter(|account| account.awaits(records)) {
                    account.finish_all(records);
                    account.discarded.count(*reason, tally.units);
                    self.facts += 1;
                }
            }
            Control::SideSettled { backend, letters, end, tally } => {
                if !self.settle_letters(backend, letters) {
                    return;
                }
                self.facts += 1;
                if let Some(account) = self.accounts.get_mut(backend) {
                    account.dead -= *tally;
                    match end {
                        LettersEnd::Discarded(reason) => account.discarded.count(*reason, tally.units),
                        LettersEnd::Damaged => account.damaged += tally.units,
                    }
                }
            }
            Control::Relabelled(label) => {
                let account = self.accounts.get_mut(&label.backend);
                if let Some(account) = account.filter(|account| account.awaits(&label.records)) {
                    account.finish_all(&label.records);
                    account.dead += label.tally;
                    self.labels.push(Label::clone(label));
                    self.facts += 1;
                }
            }
            Control::Purged { records } => records.iter().for_each(|range| self.purges.insert(range)),
            Control::WrittenOff { segment, records, tally } => {
                let share = Share { total: *tally, over: records.end.saturating_sub(records.start), before: 0 };
                let (segment, records) = (*segment, records.clone());
                let damage = Damage { segment, records, offset: 0, received: None, share };
                self.accounts.values_mut().for_each(|account| {
                    account.lose(&damage);
                });
                self.written_off.entry(segment).or_default().insert(damage.records);
            }
        }
    }

    /// Folds in a control of a group of which not everything could be read. That a drop file was taken does not count
    /// then: its records may be missing. Which of them are there, [`State::note_source`] is told.
    pub(crate) fn apply_in_doubt(&mut self, control: &Control) {
        match control {
            Control::FileTaken { file, taken } => self.drop_files.entry(*file).or_default().doubt(taken),
            other => self.apply(other),
        }
    }

    /// Notes that what lies there in a drop file is in the journal, though perhaps not all before it.
    pub(crate) fn note_source(&mut self, source: SourceRange) {
        let file = FileId { device: source.device, inode: source.inode };
        self.drop_files.entry(file).or_default().note(source.start..source.end);
    }

    /// The lowest record that must stay; `None` when there never was a backend, and all must. Records that came in while
    /// no backend is configured belong to the first one that will be.
    #[must_use]
    pub fn lowest_needed(&self) -> Option<u64> {
        let debts = self.accounts.values().map(Account::lowest_needed).min()?;
        Some(debts.min(self.owed_to_nobody().unwrap_or(u64::MAX)))
    }

    /// Whether these letters were there still.
    fn settle_letters(&mut self, backend: &str, letters: &Letters) -> bool {
        match letters {
            Letters::Numbers(numbers) => {
                let is_new = numbers.first().is_some_and(|first| !self.side_settled.contains(first.start));
                numbers.iter().for_each(|range| self.side_settled.insert(range));
                is_new
            }
            Letters::Segment(segment) => {
                let before = self.labels.len();
                self.labels.retain(|label| label.segment != *segment || label.backend != *backend);
                self.labels.len() < before
            }
        }
    }

    /// The first record of the side journal that is kept.
    #[must_use]
    pub fn side_lowest(&self) -> u64 {
        self.side_settled.first().filter(|first| first.start <= 1).map_or(1, |first| first.end)
    }

    /// Of what was purged, what no backend waits for: it may be erased.
    #[must_use]
    pub fn erasable(&self) -> Ranges {
        let mut erasable = self.purges.clone();
        for account in self.accounts.values() {
            let behind = if account.is_removed() { account.end } else { u64::MAX };
            let open = account.finished.missing_in(account.place..behind.max(account.place));
            open.for_each(|range| erasable.remove(range));
        }
        if let Some(first) = self.owed_to_nobody() {
            erasable.remove(first..u64::MAX);
        }
        erasable
    }

    /// Notes that records are erased.
    pub fn erased(&mut self, records: &Ranges) {
        records.iter().for_each(|range| self.purges.remove(range));
    }

    /// Whether all the records that damage took were written off.
    pub(crate) fn is_written_off(&self, damage: &Damage) -> bool {
        let known = self.written_off.get(&damage.segment);
        !damage.records.is_empty()
            && known.is_some_and(|known| known.missing_in(damage.records.clone()).next().is_none())
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
        for (file, taken) in &self.drop_files {
            to.bytes(DROP_FILE, &taken.encode(*file));
        }
        for label in &self.labels {
            to.bytes(LABEL, &label.encode());
        }
        to.u64s(SIDE_SETTLED, &pairs(&self.side_settled)).u64s(SPOOL_ID, &[self.spool_id, self.facts]);
        if !self.purges.is_empty() {
            to.u64s(PURGES, &pairs(&self.purges));
        }
        for (segment, records) in &self.written_off {
            to.u64s(WRITTEN_OFF, &[&[*segment], &pairs(records)[..]].concat());
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
                DROP_FILE => {
                    let (file, taken) = DropFile::decode(value)?;
                    state.drop_files.insert(file, taken);
                }
                LABEL => state.labels.push(Label::decode(value)?),
                SIDE_SETTLED => state.side_settled = read_pairs(value)?,
                SPOOL_ID => [state.spool_id, state.facts] = tlv::as_u64s(value)?,
                PURGES => state.purges = read_pairs(value)?,
                WRITTEN_OFF => {
                    let [segment] = tlv::as_u64s(value)?;
                    state.written_off.insert(segment, read_pairs(value.get(8..).unwrap_or_default())?);
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
        let discarded = self.discarded;
        to.text(ACCOUNT_NAME, Some(name))
            .u64s(ACCOUNT_PLACES, &[self.start, self.place, self.side_place, self.end])
            .u64s(ACCOUNT_FINISHED, &pairs(&self.finished))
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
                ACCOUNT_FINISHED => account.finished = read_pairs(value)?,
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
            drop_files: [(FileId { device: 1, inode: 2 }, DropFile { behind: 3, ..DropFile::default() })].into(),
            spool_id: 77,
            facts: 78,
            side_settled: [1..4, 6..7].into_iter().collect(),
            labels: vec![label()],
            written_off: [(3, [5..7, 9..10].into_iter().collect())].into(),
            purges: [2..4, 8..9].into_iter().collect(),
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

    fn label() -> Label {
        Label {
            segment: 3,
            backend: "a".into(),
            reason: Reason::Expired,
            records: [7..9, 11..20].into_iter().collect(),
            tally: Tally { records: 11, traces: 12, spans: 13, units: 14, bytes: 15 },
            status: "503".into(),
            message: "away".into(),
            attempts: 4,
            first_attempt_ns: 5,
            last_attempt_ns: 6,
            clock_ms: 7,
            received_ns: 8,
        }
    }

    fn decoded(control: &Control) -> Control {
        let read = Control::decode(&control.encode()).expect("a control that was written can be read");
        assert_eq!(read, std::slice::from_ref(control));
        read.into_iter().next().expect("one")
    }

    fn tally_of(units: u64) -> Tally {
        Tally { records: units, units, ..Tally::default() }
    }

    /// Goal: a fact counts once, also when a checkpoint that has it folded in stands before it.
    #[test]
    fn a_fact_that_moves_counters_is_folded_in_once() {
        let mut state = State { accounts: [("a".to_owned(), Account::from_record(1))].into(), ..State::default() };
        state.accounts.get_mut("a").expect("there").finish(4..6);
        let records = state.accounts["a"].unfinished_in(1..7);
        assert_eq!(records.iter().collect::<Vec<_>>(), [1..4, 6..7]);
        let discarded =
            Control::Discarded { backend: "a".into(), records, reason: DiscardReason::QueueCap, tally: tally_of(4) };
        let relabelled = Control::Relabelled(Box::new(label()));
        let numbers = Letters::Numbers((1..3).into());
        let settled =
            |letters, units, end| Control::SideSettled { backend: "a".into(), letters, end, tally: tally_of(units) };
        let by_cap = settled(numbers, 2, LettersEnd::Discarded(DiscardReason::DeadLetterCap));
        let lost = settled(Letters::Segment(3), 5, LettersEnd::Damaged);
        let mut once = state.clone();
        for (facts, control) in (1..).zip([discarded, relabelled, by_cap, lost]) {
            let control = decoded(&control);
            once.apply(&control);
            assert_eq!(once.facts, facts, "{control:?}");
            let mut twice = once.clone();
            twice.apply(&control);
            assert_eq!(twice, once);
        }
        let account = &once.accounts["a"];
        assert_eq!((account.place, &account.finished), (9, &(11..20).into()));
        assert_eq!((account.discarded.queue_cap, account.discarded.dead_letter_cap, account.damaged), (4, 2, 5));
        assert_eq!((account.dead.units, account.settled()), (7, 18), "14 died, of which 7 were settled");
        assert!(once.labels.is_empty());
        assert_eq!(once.side_lowest(), 3);
    }

    #[test]
    fn unfinished_records_are_those_that_are_owed() {
        let mut account = Account { end: 20, ..Account::from_record(5) };
        account.finish(8..10);
        assert_eq!(account.unfinished_in(1..30), [5..8, 10..20].into_iter().collect());
        assert!(account.unfinished_in(1..5).is_empty());
        assert!(account.unfinished_in(25..30).is_empty(), "behind the end of a removed backend");
        account.end = 0;
        assert_eq!(account.unfinished_in(9..12), (10..12).into());
    }

    #[test]
    fn controls_fold_in_order() {
        let controls = [
            Control::BackendAdded { name: "a".into(), start: 4 },
            Control::Paused { name: "a".into() },
            Control::BackendAdded { name: "a".into(), start: 99 },
            Control::Resumed { name: "a".into() },
            Control::Paused { name: "a".into() },
            Control::WrittenOff { segment: 1, records: 2..9, tally: Tally { units: 14, ..Tally::one(9, 3, 7) } },
            Control::WrittenOff { segment: 1, records: 2..9, tally: Tally { units: 14, ..Tally::one(9, 3, 7) } },
        ];
        let mut state = State::default();
        for control in &controls {
            let read = Control::decode(&control.encode()).expect("a control that was written can be read");
            assert_eq!(read, std::slice::from_ref(control));
            state.apply(&read[0]);
        }
        assert_eq!(state.accounts["a"].place, 9, "a backend that exists keeps its place; what is lost is passed");
        assert_eq!(state.accounts["a"].damaged, 10, "of seven records, five were waited for; they are lost once");
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
