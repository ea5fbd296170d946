//! Reading records from a place to the durable end.

use std::ops::Range;

use super::scan::{Found, Frames, Groups, SegmentFile};
use super::{SegmentInfo, Shared};
use crate::frame::Record;
use crate::group::Group;
use crate::{Error, Kind};

/// What the next step of a reader found.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "almost every step is a record, and a step is moved once")]
pub enum Step {
    /// The next record.
    Record(Record),
    /// Nothing more is durable yet.
    End,
    /// Records that were there and can't be read. The next step goes on behind them.
    Damaged(Damage),
}

/// A stretch of a segment that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub segment: u64,
    /// Records lost; empty when only controls were hit.
    pub records: Range<u64>,
    /// First damaged byte, as far as known.
    pub offset: u64,
}

/// Reads records in order of their numbers. Holds one segment open at most, and that only while there is more in it.
#[derive(Debug)]
pub struct Reader {
    shared: Shared,
    /// The next record to return has this number or a higher one.
    place: u64,
    cursor: Option<Cursor>,
}

/// Where a reader is inside a segment.
#[derive(Debug)]
struct Cursor {
    info: SegmentInfo,
    file: SegmentFile,
    groups: Groups,
    group: Option<OpenGroup>,
}

/// The group at hand.
#[derive(Debug)]
struct OpenGroup {
    frames: Frames,
    at: u64,
    /// Records of it that were not met yet.
    left: u64,
    /// The next record in it has this number or a higher one.
    record: u64,
    /// Behind its last record.
    next: u64,
}

impl Reader {
    pub(super) fn new(shared: Shared, place: u64) -> Self {
        Self { shared, place, cursor: None }
    }

    /// The number of the next record, unless numbers were skipped there.
    #[must_use]
    pub fn place(&self) -> u64 {
        self.place
    }

    /// The next record, in order.
    ///
    /// # Errors
    /// [`Error::Io`] when the file system fails; the same call may be made again.
    pub fn step(&mut self) -> Result<Step, Error> {
        loop {
            let Some(cursor) = &mut self.cursor else {
                let Some(entry) = self.shared.segment_with(self.place) else { return Ok(Step::End) };
                if let Some(damage) = self.enter(entry)? {
                    return Ok(Step::Damaged(damage));
                }
                continue;
            };
            if let Some(step) = cursor.step(&mut self.place)? {
                return Ok(step);
            }
            // At the end of what was known of this segment: it may have grown, or been sealed.
            match self.shared.segment(cursor.info.id) {
                Some(info) if info.end > cursor.groups.end => cursor.grow(info),
                Some(info) if !info.sealed => return Ok(Step::End),
                _ => {
                    let id = cursor.info.id;
                    self.place = self.place.max(cursor.info.next_record);
                    self.cursor = None;
                    let Some(entry) = self.shared.segment_behind(id) else { return Ok(Step::End) };
                    if let Some(damage) = self.enter(entry)? {
                        return Ok(Step::Damaged(damage));
                    }
                }
            }
        }
    }

    /// Goes to the head of a segment; returns what is missing before it.
    fn enter(&mut self, Entry { info, missing }: Entry) -> Result<Option<Damage>, Error> {
        match Cursor::open(&self.shared, info) {
            Ok(cursor) => self.cursor = Some(cursor),
            // It was reclaimed between the look into the catalogue and here: the next look finds another.
            Err(error) if error.is_not_found() && self.shared.segment(info.id).is_none() => return Ok(None),
            Err(error) => return Err(error),
        }
        let lost = missing.start.max(self.place)..missing.end;
        self.place = self.place.max(info.first_record);
        Ok((!lost.is_empty()).then_some(Damage { segment: info.id, records: lost, offset: 0 }))
    }
}

impl Cursor {
    fn open(shared: &Shared, info: SegmentInfo) -> Result<Self, Error> {
        let file = SegmentFile::open(shared, &info)?;
        Ok(Self { info, file, groups: info.groups(), group: None })
    }

    fn grow(&mut self, info: SegmentInfo) {
        self.groups.end = info.end;
        self.info = info;
    }

    /// The next record at or above `place` in what is known of this segment, or damage; `None` at its end.
    fn step(&mut self, place: &mut u64) -> Result<Option<Step>, Error> {
        loop {
            if let Some(group) = &mut self.group {
                match group.step(self.info.id, place) {
                    Some(step) => return Ok(Some(step)),
                    None => self.group = None,
                }
            }
            let before = self.groups.clone();
            let lost = match self.groups.next(&self.file)? {
                Some(Found { at, group, lost }) => {
                    self.open_group(at, &group, *place)?;
                    lost
                }
                None if before.offset < before.end => {
                    // Nothing good is left up to the end.
                    self.groups.finish(self.info.next_sequence, self.info.next_record);
                    Some((before.offset, before.record..self.info.next_record))
                }
                None => return Ok(None),
            };
            if let Some((offset, records)) = lost {
                let records = records.start.max(*place)..records.end;
                if !records.is_empty() {
                    *place = records.end;
                    return Ok(Some(Step::Damaged(Damage { segment: self.info.id, records, offset })));
                }
            }
        }
    }

    fn open_group(&mut self, at: u64, group: &Group, place: u64) -> Result<(), Error> {
        if group.tally.records > 0 && group.next_record > place {
            let frames = match self.file.records(at, group) {
                Ok(frames) => frames,
                Err(error) => {
                    // The same step may be made again: nothing of it was taken.
                    self.groups.rewind(at, group);
                    return Err(error);
                }
            };
            let (left, record, next) = (group.tally.records, group.first_record, group.next_record);
            self.group = Some(OpenGroup { frames, at, left, record, next });
        }
        Ok(())
    }
}

impl OpenGroup {
    /// The next record at or above `place`, or damage; `None` at the end of the group.
    fn step(&mut self, segment: u64, place: &mut u64) -> Option<Step> {
        let damaged = |records: Range<u64>, offset| Some(Step::Damaged(Damage { segment, records, offset }));
        let mut damage_met = false;
        while let Some(frame) = self.frames.next() {
            let Ok(frame) = frame else {
                damage_met = true;
                continue;
            };
            if !frame.head.kind.is_none_or(Kind::is_record) {
                continue;
            }
            let number = frame.head.number;
            let lost = self.record.max(*place)..number;
            if damage_met && !lost.is_empty() {
                // Behind what is lost, this frame is met again.
                self.record = number;
                *place = number;
                self.frames.rewind(&frame);
                return damaged(lost, self.at);
            }
            self.record = self.record.max(number.saturating_add(1));
            self.left = self.left.saturating_sub(1);
            if number < *place {
                continue;
            }
            *place = self.record;
            if frame.head.purged {
                continue;
            }
            return match frame.record() {
                Ok(record) => Some(Step::Record(record)),
                Err(_) => damaged(number..self.record, frame.offset),
            };
        }
        // Numbers may be missing in a group that recovery wrote; records are missing only if fewer came than it counts.
        let lost = self.record.max(*place)..self.next;
        *place = self.next.max(*place);
        if std::mem::take(&mut self.left) > 0 && !lost.is_empty() { damaged(lost, self.at) } else { None }
    }
}

/// A segment to read, and the records that should be between it and the one before, but are in no file.
#[derive(Debug)]
struct Entry {
    info: SegmentInfo,
    missing: Range<u64>,
}

impl Shared {
    /// The segment to start reading at for `place`: the first that ends behind it, else the last.
    fn segment_with(&self, place: u64) -> Option<Entry> {
        let segments = self.lock();
        let index = segments.partition_point(|segment| segment.next_record <= place);
        Entry::at(&segments, index.min(segments.len().saturating_sub(1)))
    }

    pub(super) fn segment(&self, id: u64) -> Option<SegmentInfo> {
        let segments = self.lock();
        segments.binary_search_by_key(&id, |segment| segment.id).ok().map(|index| segments[index])
    }

    fn segment_behind(&self, id: u64) -> Option<Entry> {
        let segments = self.lock();
        Entry::at(&segments, segments.partition_point(|segment| segment.id <= id))
    }
}

impl Entry {
    fn at(segments: &[SegmentInfo], index: usize) -> Option<Self> {
        let info = *segments.get(index)?;
        let before = index.checked_sub(1).map(|before| segments[before]);
        let missing = before.map_or(0..0, |before| before.missing_behind(&info));
        Some(Self { info, missing })
    }
}
