//! Reading records from a place to the durable end.

use std::ops::Range;

use super::scan::{Frames, SegmentFile};
use super::{SegmentInfo, Shared};
use crate::frame::{Bad, Record};
use crate::segment::BLOCK;
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

#[derive(Debug)]
struct Cursor {
    info: SegmentInfo,
    file: SegmentFile,
    /// Where the next group begins.
    offset: u64,
    /// Where the present group began.
    group_at: u64,
    /// Behind the last record of the present group.
    group_next: u64,
    frames: Option<Frames>,
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
                match self.shared.segment_with(self.place) {
                    Some(info) => self.cursor = Some(Cursor::open(&self.shared, info)?),
                    None => return Ok(Step::End),
                }
                continue;
            };
            if let Some(step) = cursor.next_in_group(&mut self.place) {
                return Ok(step);
            }
            if cursor.offset < cursor.info.end {
                if let Some(damage) = cursor.next_group(&mut self.place)? {
                    return Ok(Step::Damaged(damage));
                }
                continue;
            }
            // At the end of what was known of this segment: it may have grown, or been sealed.
            match self.shared.segment(cursor.info.id) {
                Some(info) if info.end > cursor.offset => cursor.info = info,
                Some(info) if !info.sealed => return Ok(Step::End),
                _ => {
                    let behind = cursor.info.next_record;
                    let lost = self.place..behind;
                    let damage = Damage { segment: cursor.info.id, records: lost, offset: cursor.offset };
                    self.cursor = None;
                    if self.place < behind {
                        self.place = behind;
                        return Ok(Step::Damaged(damage));
                    }
                    match self.shared.segment_behind(damage.segment) {
                        Some(info) => {
                            self.place = self.place.max(info.first_record);
                            self.cursor = Some(Cursor::open(&self.shared, info)?);
                        }
                        None => return Ok(Step::End),
                    }
                }
            }
        }
    }
}

impl Cursor {
    fn open(shared: &Shared, info: SegmentInfo) -> Result<Self, Error> {
        let file = SegmentFile::open(shared, &info)?;
        Ok(Self { info, file, offset: BLOCK, group_at: BLOCK, group_next: 0, frames: None })
    }

    /// The next record of the group at hand at or above `place`.
    fn next_in_group(&mut self, place: &mut u64) -> Option<Step> {
        let frames = self.frames.as_mut()?;
        while let Some(frame) = frames.next() {
            let damaged = match frame {
                Ok(frame) => {
                    let wanted = frame.head.kind.is_none_or(Kind::is_record) && frame.head.number >= *place;
                    if !wanted || frame.head.purged {
                        continue;
                    }
                    let number = frame.head.number;
                    *place = number + 1;
                    match frame.record() {
                        Ok(record) => return Some(Step::Record(record)),
                        Err(Bad::Head | Bad::Payload | Bad::Unknown) => number..number + 1,
                    }
                }
                // Without its header the next frame can't be found: the rest of the group is lost to a reader.
                Err(_) => std::mem::replace(place, self.group_next.max(*place))..self.group_next,
            };
            if !damaged.is_empty() {
                return Some(Step::Damaged(Damage { segment: self.info.id, records: damaged, offset: self.group_at }));
            }
        }
        self.frames = None;
        // Frames cut off without a bad header would otherwise vanish in silence.
        if *place < self.group_next {
            let lost = std::mem::replace(place, self.group_next)..self.group_next;
            return Some(Step::Damaged(Damage { segment: self.info.id, records: lost, offset: self.group_at }));
        }
        None
    }

    /// Goes to the next group; returns what was lost on the way.
    fn next_group(&mut self, place: &mut u64) -> Result<Option<Damage>, Error> {
        let Some((at, group)) = self.file.group_at_or_behind(self.offset, self.info.end)? else {
            self.offset = self.info.end;
            return Ok(None);
        };
        let lost = *place..group.first_record;
        let damaged = at != self.offset && !lost.is_empty();
        let damage = damaged.then_some(Damage { segment: self.info.id, records: lost, offset: self.offset });
        self.offset = at + group.extent();
        if group.tally.records > 0 && group.next_record > *place {
            // Numbers may be skipped between groups, after a start above what an index had seen.
            *place = (*place).max(group.first_record);
            self.group_at = at;
            self.group_next = group.next_record;
            self.frames = Some(self.file.frames(at, &group)?);
        }
        Ok(damage)
    }
}

impl Shared {
    /// The segment to start reading at for `place`: the last that begins at or before it, else the first of all.
    fn segment_with(&self, place: u64) -> Option<SegmentInfo> {
        let segments = self.lock();
        let before = segments.partition_point(|segment| segment.first_record <= place);
        // Several may begin at the same record, when the earlier ones are empty.
        let candidates = &segments[..before];
        candidates
            .iter()
            .rev()
            .find(|segment| segment.next_record > place || segment.first_record < place)
            .or_else(|| candidates.last())
            .or_else(|| segments.first())
            .copied()
    }

    fn segment(&self, id: u64) -> Option<SegmentInfo> {
        let segments = self.lock();
        segments.binary_search_by_key(&id, |segment| segment.id).ok().map(|index| segments[index])
    }

    fn segment_behind(&self, id: u64) -> Option<SegmentInfo> {
        let segments = self.lock();
        segments.get(segments.partition_point(|segment| segment.id <= id)).copied()
    }
}
