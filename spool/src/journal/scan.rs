//! Walking the groups of one segment by their headers.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::{SegmentInfo, Shared};
use crate::disk::DiskFile;
use crate::frame::{self, Bad, Head, Record};
use crate::group::{self, Group};
use crate::segment::{BLOCK, BLOCK_LEN, Stamp};
use crate::{Error, Kind, Tally, segment};

/// No record has a higher number; far above what any journal reaches, and sums stay below 2^64.
const NUMBER_MAX: u64 = 1 << 62;

/// How much is read at once when looking for the next group behind damage.
const SEARCH_BYTES: usize = 1 << 20;

/// An open segment, and what is needed to check its bytes.
#[derive(Debug, Clone)]
pub(super) struct SegmentFile {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) path: PathBuf,
    pub(super) stamp: Stamp,
}

impl SegmentFile {
    pub(super) fn open(shared: &Shared, info: &SegmentInfo) -> Result<Self, Error> {
        let path = segment::path(&shared.inner.dir, info.id);
        let file = shared.inner.disk.open(&path, false).map_err(|source| Error::io("open", &path, source))?;
        Ok(Self { file: file.into(), path, stamp: info.stamp() })
    }

    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Error> {
        self.file.read_at(buffer, offset).map_err(|source| Error::io("read", &self.path, source))
    }

    /// The group at `offset`, if there is a valid header that fits before `end`.
    fn group_at(&self, offset: u64, end: u64) -> Result<Option<Group>, Error> {
        let mut bytes = [0; group::HEAD];
        let filled = self.read(&mut bytes, offset)?;
        Ok(Group::decode(&bytes[..filled], self.stamp, offset).filter(|group| fits(group, offset, end)))
    }

    /// The first valid group header at a block boundary in `from..end` that `accept` takes.
    fn find_group(
        &self,
        from: u64,
        end: u64,
        accept: impl Fn(u64, &Group) -> bool,
    ) -> Result<Option<(u64, Group)>, Error> {
        let mut found = None;
        self.each_block(from, end, |at, block| {
            found = Group::decode(block, self.stamp, at)
                .filter(|group| fits(group, at, end) && accept(at, group))
                .map(|group| (at, group));
            found.is_some()
        })?;
        Ok(found)
    }

    /// Shows the blocks in `from..end` until `stop` returns true.
    pub(super) fn each_block(
        &self,
        from: u64,
        end: u64,
        mut stop: impl FnMut(u64, &[u8]) -> bool,
    ) -> Result<(), Error> {
        let wanted = usize::try_from(end.saturating_sub(from)).unwrap_or(SEARCH_BYTES);
        let mut buffer = vec![0; SEARCH_BYTES.min(wanted.next_multiple_of(BLOCK_LEN))];
        let mut offset = from;
        while offset < end {
            let filled = self.read(&mut buffer, offset)?;
            if filled == 0 {
                break;
            }
            for (index, block) in buffer[..filled].chunks(BLOCK_LEN).enumerate() {
                if stop(offset + index as u64 * BLOCK, block) {
                    return Ok(());
                }
            }
            offset += filled as u64;
        }
        Ok(())
    }

    /// The record frames of the group at `offset`.
    pub(super) fn records(&self, offset: u64, group: &Group) -> Result<Frames, Error> {
        let skip = group.controls_len.min(group.length);
        self.frames(offset, skip..group.length, group.first_record..group.next_record)
    }

    /// The control and checkpoint frames of the group at `offset`.
    pub(super) fn facts(&self, offset: u64, group: &Group) -> Result<Frames, Error> {
        self.frames(offset, 0..group.controls_len.min(group.length), 0..0)
    }

    fn frames(&self, offset: u64, part: Range<u64>, numbers: Range<u64>) -> Result<Frames, Error> {
        let offset = offset + group::HEAD as u64 + part.start;
        let length =
            usize::try_from(part.end - part.start).expect("a group that fits a file that was read fits memory");
        let mut bytes = vec![0; length];
        let filled = self.read(&mut bytes, offset)?;
        bytes.truncate(filled);
        Ok(Frames { bytes: bytes.into(), from: 0, offset, stamp: self.stamp, numbers })
    }
}

fn fits(group: &Group, offset: u64, end: u64) -> bool {
    group.length < end && group.extent() <= end.saturating_sub(offset)
}

/// A walk over the groups of a segment, by their headers, over damage.
#[derive(Debug, Clone)]
pub(super) struct Groups {
    /// Where the next group begins.
    pub(super) offset: u64,
    /// Behind the last group.
    pub(super) end: u64,
    /// What the next group must say of itself. Sequences and records run without a gap inside a segment.
    pub(super) sequence: u64,
    pub(super) record: u64,
}

/// A group on a walk.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) at: u64,
    pub(super) group: Group,
    /// When there was damage before it: where that began, and the records that were in it.
    pub(super) lost: Option<(u64, Range<u64>)>,
}

impl Groups {
    pub(super) fn new(first_sequence: u64, first_record: u64, end: u64) -> Self {
        Self { offset: BLOCK, end, sequence: first_sequence, record: first_record }
    }

    /// The next group, or the next one behind damage.
    pub(super) fn next(&mut self, file: &SegmentFile) -> Result<Option<Found>, Error> {
        if self.offset >= self.end {
            return Ok(None);
        }
        let (at, group) = match file.group_at(self.offset, self.end)? {
            Some(group) if self.accepts(self.offset, &group) => (self.offset, group),
            _ => match file.find_group(self.offset + BLOCK, self.end, |at, group| self.accepts(at, group))? {
                Some(found) => found,
                None => return Ok(None),
            },
        };
        let lost = (at != self.offset).then_some((self.offset, self.record..group.first_record));
        self.offset = at + group.extent();
        self.sequence = group.sequence.saturating_add(1);
        self.record = group.next_record;
        Ok(Some(Found { at, group, lost }))
    }

    /// Goes on behind all that can't be read, up to the end.
    pub(super) fn finish(&mut self, next_sequence: u64, next_record: u64) {
        (self.offset, self.sequence, self.record) = (self.end, next_sequence, next_record);
    }

    /// Goes back to a group, to find it again.
    pub(super) fn rewind(&mut self, at: u64, group: &Group) {
        (self.offset, self.sequence, self.record) = (at, group.sequence, group.first_record);
    }

    /// Whether a group can be the next one, with as many between as fit into what was skipped: bytes in a payload that
    /// only look like a group header must not lead the walk astray.
    fn accepts(&self, at: u64, group: &Group) -> bool {
        let blocks = (at - self.offset) / BLOCK;
        let skipped = group.sequence.checked_sub(self.sequence);
        skipped.is_some_and(|skipped| skipped <= blocks && (skipped > 0) == (blocks > 0))
            && group.first_record >= self.record
            && group.next_record <= NUMBER_MAX
            && group.next_record.checked_sub(group.first_record).is_some_and(|count| group.tally.records <= count)
    }
}

/// Some frames of one group, in order.
#[derive(Debug)]
pub(super) struct Frames {
    bytes: Bytes,
    /// The next frame in `bytes`.
    from: usize,
    /// Where `bytes` lie in the segment.
    offset: u64,
    stamp: Stamp,
    /// Numbers that the records to come can have.
    numbers: Range<u64>,
}

/// One frame whose header is good.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) head: Head,
    bytes: Bytes,
    /// Where it begins.
    pub(super) offset: u64,
    stamp: Stamp,
}

impl Frame {
    pub(super) fn record(&self) -> Result<Record, Bad> {
        self.head.record(&self.bytes, self.stamp, self.offset)
    }
}

impl Frames {
    /// The next frame, `None` behind the last; `Err` where a header is damaged. The walk then goes on at the next good
    /// header of a record, if there is one.
    pub(super) fn next(&mut self) -> Option<Result<Frame, Bad>> {
        if self.from >= self.bytes.len() {
            return None;
        }
        let head = match self.head() {
            Ok(head) => head,
            Err(bad) => {
                self.skip_to_good();
                return Some(Err(bad));
            }
        };
        let length = usize::try_from(head.length()).unwrap_or(usize::MAX);
        let to = self.from.saturating_add(length).min(self.bytes.len());
        let frame = Frame { head, bytes: self.bytes.slice(self.from..to), offset: self.place(), stamp: self.stamp };
        self.from = to;
        if head.kind.is_none_or(Kind::is_record) {
            self.numbers.start = self.numbers.start.max(head.number.saturating_add(1));
        }
        Some(Ok(frame))
    }

    /// Goes back to a frame of this walk, to return it again.
    pub(super) fn rewind(&mut self, frame: &Frame) {
        self.from = usize::try_from(frame.offset - self.offset).expect("an offset into bytes in memory");
        self.numbers.start = frame.head.number;
    }

    fn place(&self) -> u64 {
        self.offset + self.from as u64
    }

    fn head(&self) -> Result<Head, Bad> {
        let head = Head::decode(&self.bytes[self.from..], self.stamp, self.place())?;
        // Numbers rise inside a group, and stay inside it.
        let is_record = head.kind.is_some_and(Kind::is_record);
        if is_record && !self.numbers.contains(&head.number) { Err(Bad::Head) } else { Ok(head) }
    }

    fn skip_to_good(&mut self) {
        const STEP: usize = 8;
        const _: () = assert!(STEP as u64 == frame::ALIGN);
        loop {
            self.from = self.from.saturating_add(STEP).min(self.bytes.len());
            let rest = &self.bytes[self.from..];
            if rest.is_empty() || (Head::may_begin(rest, &self.numbers) && self.head().is_ok()) {
                return;
            }
        }
    }
}

/// What `info` holds from each of `places` on, which lie inside it, ascending.
pub(super) fn tallies_from(
    shared: &Shared,
    info: &SegmentInfo,
    places: &BTreeSet<u64>,
) -> Result<Vec<(u64, Tally)>, Error> {
    let file = SegmentFile::open(shared, info)?;
    let index =
        if info.sealed { segment::read_ends(&*file.file, &file.path)?.footer.map(|footer| footer.index) } else { None };
    let index = index.unwrap_or_default();
    let mut found = Vec::with_capacity(places.len());
    let mut walk = info.groups();
    let mut before = Tally::default();
    let mut places = places.iter().copied().peekable();
    while let Some(place) = places.peek().copied() {
        // The last entry at or before the place, if that is further than the walk has come.
        let entry = index[..index.partition_point(|entry| entry.first_record <= place)].last();
        if let Some(entry) = entry.filter(|entry| entry.offset > walk.offset)
            && let Some(group) = file.group_at(entry.offset, walk.end)?
        {
            walk.rewind(entry.offset, &group);
            before = entry.before;
        }
        let Some(Found { at, group, .. }) = walk.next(&file)? else { break };
        if group.next_record > place {
            let mut weights = weigh_group(&file, at, &group)?.into_iter().peekable();
            let mut below = before;
            while let Some(place) = places.next_if(|place| *place < group.next_record) {
                while let Some((_, tally)) = weights.next_if(|(number, _)| *number < place) {
                    below += tally;
                }
                found.push((place, info.tally.less(below)));
            }
        }
        before += group.tally;
    }
    // Behind the last group that can be found: nothing is known to be there.
    found.extend(places.map(|place| (place, info.tally.less(before))));
    Ok(found)
}

/// The records of a segment with what each weighs.
pub(super) fn weigh(shared: &Shared, info: &SegmentInfo) -> Result<Vec<(u64, Tally)>, Error> {
    let file = SegmentFile::open(shared, info)?;
    let mut weights = Vec::new();
    let mut groups = info.groups();
    while let Some(Found { at, group, .. }) = groups.next(&file)? {
        weights.extend(weigh_group(&file, at, &group)?);
    }
    Ok(weights)
}

/// The records of a group with what each weighs; what can't be read counts with the last number in it.
fn weigh_group(file: &SegmentFile, at: u64, group: &Group) -> Result<Vec<(u64, Tally)>, Error> {
    let mut weights: Vec<(u64, Tally)> = Vec::new();
    if group.tally.records == 0 {
        return Ok(weights);
    }
    let mut left = group.tally;
    let mut frames = file.records(at, group)?;
    while let Some(frame) = frames.next() {
        if let Ok(frame) = frame
            && frame.head.kind.is_none_or(Kind::is_record)
        {
            left -= frame.head.tally();
            weights.push((frame.head.number, frame.head.tally()));
        }
    }
    if left != Tally::default() {
        weights.push((group.next_record - 1, left));
    }
    Ok(weights)
}
