//! Reading records from a place to the durable end.

use std::collections::VecDeque;
use std::ops::Range;

use super::pieces::{self, Losses, Piece};
use super::scan::{Part, Parts, Reading, SegmentFile};
use super::{SegmentInfo, Shared};
use crate::frame::Record;
use crate::{Damage, Error};

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

/// Reads records in order of their numbers. Holds one segment open at most, and that only while there is more in it.
#[derive(Debug)]
pub struct Reader {
    shared: Shared,
    /// The next record to return has this number or a higher one.
    place: u64,
    cursor: Option<Cursor>,
    /// The segment that was read before, to the end.
    behind: Option<u64>,
    reading: Reading,
    /// How segments are read if nothing else is said.
    usual: Reading,
}

/// Where a reader is inside a segment.
#[derive(Debug)]
struct Cursor {
    info: SegmentInfo,
    file: SegmentFile,
    parts: Parts,
    /// Of the group or the stretch at hand, those that were not met yet.
    pieces: VecDeque<Piece>,
    /// Behind its last record.
    next: u64,
    /// What was lost in this segment with headers of groups, once that is needed.
    losses: Option<Losses>,
}

impl Reader {
    pub(super) fn new(shared: Shared, place: u64) -> Self {
        Self { shared, place, cursor: None, behind: None, reading: Reading::Strict, usual: Reading::Strict }
    }

    /// The number of the next record, unless numbers were skipped there.
    #[must_use]
    pub fn place(&self) -> u64 {
        self.place
    }

    /// A reader that takes what can't be read for damaged, where a step would fail otherwise. What is only out of reach
    /// for a moment is lost to it.
    #[must_use]
    pub fn lossy(self) -> Self {
        Self { reading: Reading::Lossy, usual: Reading::Lossy, cursor: None, ..self }
    }

    /// Takes what can't be read for damaged up to the end of the segment at hand: for use after steps failed for long.
    pub fn give_up_segment(&mut self) {
        self.reading = Reading::Lossy;
        // Opened again, at the same place.
        self.cursor = None;
    }

    /// The next record, in order.
    ///
    /// # Errors
    /// [`Error::Io`] when the file system fails; the same call may be made again.
    pub fn step(&mut self) -> Result<Step, Error> {
        loop {
            let Some(cursor) = &mut self.cursor else {
                let entry = match self.behind {
                    Some(id) => self.shared.segment_behind(id),
                    None => self.shared.segment_with(self.place),
                };
                let Some(entry) = entry else { return Ok(Step::End) };
                if let Some(damage) = self.enter(entry)? {
                    self.shared.note(&damage);
                    return Ok(Step::Damaged(damage));
                }
                continue;
            };
            if let Some(step) = cursor.step(&mut self.place)? {
                if let Step::Damaged(damage) = &step {
                    self.shared.note(damage);
                }
                return Ok(step);
            }
            // At the end of what was known of this segment: it may have grown, or been sealed.
            match self.shared.segment(cursor.info.id) {
                Some(info) if info.end > cursor.parts.end() => cursor.grow(info),
                Some(info) if !info.sealed => return Ok(Step::End),
                _ => {
                    let info = cursor.info;
                    self.leave(info);
                }
            }
        }
    }

    /// Goes to the head of a segment, or over what is missing before it, which is returned.
    fn enter(&mut self, Entry { info, missing }: Entry) -> Result<Option<Damage>, Error> {
        let missing = Damage::missing(info.id, missing).from(self.place).filter(|damage| !damage.records.is_empty());
        if let Some(damage) = missing {
            self.place = damage.records.end;
            return Ok(Some(damage));
        }
        match Cursor::open(&self.shared, info, self.reading) {
            Ok(cursor) => {
                self.place = self.place.max(info.first_record);
                self.cursor = Some(cursor);
                self.behind = None;
                Ok(None)
            }
            // It was reclaimed between the look into the catalogue and here: the next look finds another.
            Err(error) if error.is_not_found() && self.shared.segment(info.id).is_none() => Ok(None),
            // What only this process can't open, for want of file descriptors or of a permission, is not lost.
            Err(error) if self.reading == Reading::Lossy && info.sealed && error.is_of_the_medium() => {
                let lost = pieces::whole(&info).from(self.place).filter(|damage| !damage.records.is_empty());
                self.leave(info);
                Ok(lost)
            }
            Err(error) => Err(error),
        }
    }

    /// Goes on in the segment behind.
    fn leave(&mut self, info: SegmentInfo) {
        self.place = self.place.max(info.next_record);
        self.cursor = None;
        self.behind = Some(info.id);
        self.reading = self.usual;
    }
}

impl Cursor {
    fn open(shared: &Shared, info: SegmentInfo, reading: Reading) -> Result<Self, Error> {
        let file = SegmentFile::open(shared, &info, reading)?;
        let parts = info.parts();
        Ok(Self { info, file, parts, pieces: VecDeque::new(), next: info.first_record, losses: None })
    }

    fn grow(&mut self, info: SegmentInfo) {
        self.parts.grow(&info);
        self.info = info;
        self.losses = None;
    }

    /// The next record at or above `place` in what is known of this segment, or damage; `None` at its end.
    fn step(&mut self, place: &mut u64) -> Result<Option<Step>, Error> {
        loop {
            while let Some(piece) = self.pieces.pop_front() {
                match piece {
                    Piece::Record(record) if record.number >= *place => {
                        *place = record.number + 1;
                        return Ok(Some(Step::Record(record)));
                    }
                    Piece::Lost(damage) => {
                        if let Some(damage) = damage.from(*place) {
                            *place = damage.records.end;
                            return Ok(Some(Step::Damaged(damage)));
                        }
                    }
                    Piece::Record(_) | Piece::Purged(..) => {}
                }
            }
            *place = self.next.max(*place);
            let before = self.parts.clone();
            match self.load(*place) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) => {
                    // The same step may be made again: nothing of it was taken.
                    self.parts = before;
                    return Err(error);
                }
            }
        }
    }

    /// Reads the next group with something at or above `place`, or the next stretch; false at the end.
    fn load(&mut self, place: u64) -> Result<bool, Error> {
        match self.parts.next(&self.file)? {
            Some(Part::Group(at, group)) => {
                if group.tally.records > 0 && group.next_record > place {
                    self.pieces = pieces::in_group(&self.file, at, &group)?;
                }
                self.next = group.next_record;
            }
            Some(Part::Stretch(stretch)) => {
                if stretch.records.end > place {
                    let losses = Losses::once(&mut self.losses, &self.file, &self.info)?;
                    self.pieces = pieces::in_stretch(&self.file, &stretch, losses)?;
                }
                self.next = stretch.records.end;
            }
            None => return Ok(false),
        }
        Ok(true)
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
        self.entry(&segments, index.min(segments.len().saturating_sub(1)))
    }

    pub(super) fn segment(&self, id: u64) -> Option<SegmentInfo> {
        let segments = self.lock();
        segments.binary_search_by_key(&id, |segment| segment.id).ok().map(|index| segments[index])
    }

    fn segment_behind(&self, id: u64) -> Option<Entry> {
        let segments = self.lock();
        self.entry(&segments, segments.partition_point(|segment| segment.id <= id))
    }

    fn entry(&self, segments: &[SegmentInfo], index: usize) -> Option<Entry> {
        let info = *segments.get(index)?;
        Some(Entry { info, missing: self.missing_at(segments, index) })
    }
}
