//! Walking the groups of one segment by their headers.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::{SegmentInfo, Shared};
use crate::disk::DiskFile;
use crate::disk::lossy::Lossy;
use crate::frame::{self, Bad, Head, Record};
use crate::group::{self, Group};
use crate::segment::{BLOCK, BLOCK_LEN, NUMBER_MAX, Stamp};
use crate::{Error, segment};

/// How much is read at once when looking for the next group behind damage.
const SEARCH_BYTES: usize = 1 << 20;

/// Says that somebody reads a segment.
#[derive(Debug)]
pub(super) struct Lease {
    shared: Shared,
    segment: u64,
}

impl Lease {
    fn take(shared: &Shared, segment: u64) -> Self {
        *shared.leases().entry(segment).or_insert(0) += 1;
        Self { shared: shared.clone(), segment }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut leases = self.shared.leases();
        if let Some(count) = leases.get_mut(&self.segment) {
            *count -= 1;
            if *count == 0 {
                leases.remove(&self.segment);
            }
        }
    }
}

/// An open segment, and what is needed to check its bytes.
#[derive(Debug, Clone)]
pub(super) struct SegmentFile {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) path: PathBuf,
    pub(super) stamp: Stamp,
    /// While it is held, the file is not used again for another segment.
    pub(super) _lease: Option<Arc<Lease>>,
}

/// What becomes of a block that can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// An error, which may pass.
    Strict,
    /// Damage.
    Lossy,
}

impl SegmentFile {
    /// Opens a segment to read it.
    ///
    /// # Errors
    /// `NotFound` when it was reclaimed meanwhile.
    pub(super) fn open(shared: &Shared, info: &SegmentInfo, reading: Reading) -> Result<Self, Error> {
        let path = segment::path(&shared.inner.dir, info.id);
        let lease = Lease::take(shared, info.id);
        let file = shared.inner.disk.open(&path, false).map_err(|source| Error::io("open", &path, source))?;
        // Who takes a segment off the catalogue looks at the leases afterwards. So either that is seen here, or the
        // lease was seen there.
        if shared.segment(info.id).is_none() {
            return Err(Error::io("open", &path, std::io::ErrorKind::NotFound.into()));
        }
        let file = Self { file: file.into(), path, stamp: info.stamp(), _lease: Some(Arc::new(lease)) };
        Ok(match reading {
            Reading::Strict => file,
            Reading::Lossy => file.lossy(),
        })
    }

    /// The same, read around what can't be read.
    pub(super) fn lossy(self) -> Self {
        Self { file: Arc::new(Lossy::new(self.file)), ..self }
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
        let from = offset + group::HEAD as u64;
        let skip = group.controls_len.min(group.length);
        self.frames(from + skip..from + group.length, group.first_record..group.next_record)
    }

    /// The control and checkpoint frames of the group at `offset`.
    pub(super) fn facts(&self, offset: u64, group: &Group) -> Result<Frames, Error> {
        let from = offset + group::HEAD as u64;
        self.frames(from..from + group.controls_len.min(group.length), 0..0)
    }

    /// All frames in a part of the file, those of records with a number in `numbers`.
    pub(super) fn frames(&self, part: Range<u64>, numbers: Range<u64>) -> Result<Frames, Error> {
        let length =
            usize::try_from(part.end - part.start).expect("a group that fits a file that was read fits memory");
        let mut bytes = vec![0; length];
        let filled = self.read(&mut bytes, part.start)?;
        bytes.truncate(filled);
        let is_cut = filled < length;
        Ok(Frames { bytes: bytes.into(), from: 0, offset: part.start, is_cut, stamp: self.stamp, numbers })
    }
}

fn fits(group: &Group, offset: u64, end: u64) -> bool {
    group.length < end && group.extent() <= end.saturating_sub(offset)
}

/// A walk over the groups of a segment, by their headers, over damage.
#[derive(Debug, Clone)]
pub(super) struct Groups {
    /// Where the next group begins.
    offset: u64,
    /// Behind the last group.
    end: u64,
    /// What the next group must say of itself. Sequences and records run without a gap inside a segment.
    sequence: u64,
    record: u64,
    /// Behind the last record that can be there: what is known of the segment, or what any journal can reach.
    records_end: u64,
}

/// A group on a walk.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) at: u64,
    pub(super) group: Group,
    /// What can't be read before it.
    pub(super) lost: Option<Stretch>,
}

/// A part of a segment in which no group header can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) bytes: Range<u64>,
    /// Numbers of the records in it.
    pub(super) records: Range<u64>,
}

impl Groups {
    pub(super) fn new(first_sequence: u64, first_record: u64, end: u64) -> Self {
        Self { offset: BLOCK, end, sequence: first_sequence, record: first_record, records_end: NUMBER_MAX }
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
        let lost =
            (at != self.offset).then_some(Stretch { bytes: self.offset..at, records: self.record..group.first_record });
        self.offset = at + group.extent();
        self.sequence = group.sequence.saturating_add(1);
        self.record = group.next_record;
        Ok(Some(Found { at, group, lost }))
    }

    /// What lies between here and the end, in which there is no group that can be read; goes on behind it.
    fn finish(&mut self, next_sequence: u64, next_record: u64) -> Option<Stretch> {
        let rest = Stretch { bytes: self.offset..self.end, records: self.record..next_record.max(self.record) };
        (self.offset, self.sequence, self.record) = (self.end, next_sequence, rest.records.end);
        (!rest.bytes.is_empty()).then_some(rest)
    }

    /// Whether a group can be the next one, with as many between as fit into what was skipped: bytes in a payload that
    /// only look like a group header must not lead the walk astray.
    fn accepts(&self, at: u64, group: &Group) -> bool {
        let blocks = (at - self.offset) / BLOCK;
        let skipped = group.sequence.checked_sub(self.sequence);
        skipped.is_some_and(|skipped| skipped <= blocks && (skipped > 0) == (blocks > 0))
            && group.first_record >= self.record
            && group.next_record <= self.records_end
            && group.next_record.checked_sub(group.first_record).is_some_and(|count| group.tally.records <= count)
    }
}

/// A walk over all that is known to be in a segment.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    groups: Groups,
    /// Behind the last group.
    next_sequence: u64,
    /// The group behind the stretch that was met last.
    behind: Option<(u64, Group)>,
}

/// A part of a segment.
#[derive(Debug)]
pub(super) enum Part {
    /// A group, and where it begins.
    Group(u64, Group),
    /// What lies between groups, or behind the last that can be read.
    Stretch(Stretch),
}

impl Parts {
    pub(super) fn of(info: &SegmentInfo) -> Self {
        let groups = Groups::new(info.first_sequence, info.first_record, info.end);
        let mut parts = Self { groups, next_sequence: info.next_sequence, behind: None };
        parts.grow(info);
        parts
    }

    /// More is known of the segment.
    pub(super) fn grow(&mut self, info: &SegmentInfo) {
        (self.groups.end, self.groups.records_end) = (info.end, info.next_record);
        self.next_sequence = info.next_sequence;
    }

    /// Behind what is known.
    pub(super) fn end(&self) -> u64 {
        self.groups.end
    }

    /// The next part, in order.
    pub(super) fn next(&mut self, file: &SegmentFile) -> Result<Option<Part>, Error> {
        if let Some((at, group)) = self.behind.take() {
            return Ok(Some(Part::Group(at, group)));
        }
        Ok(match self.groups.next(file)? {
            Some(Found { at, group, lost: None }) => Some(Part::Group(at, group)),
            Some(Found { at, group, lost: Some(stretch) }) => {
                self.behind = Some((at, group));
                Some(Part::Stretch(stretch))
            }
            None => self.groups.finish(self.next_sequence, self.groups.records_end).map(Part::Stretch),
        })
    }
}

/// Some frames of a segment, in order.
#[derive(Debug)]
pub(super) struct Frames {
    bytes: Bytes,
    /// The next frame in `bytes`.
    from: usize,
    /// Where `bytes` lie in the segment.
    offset: u64,
    /// The file ends before they do.
    is_cut: bool,
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
    /// The next frame, `None` behind the last; `Err` where a header is damaged, with the place. The walk then goes on at
    /// the next good header, if there is one.
    pub(super) fn next(&mut self) -> Option<Result<Frame, u64>> {
        if self.from >= self.bytes.len() {
            return std::mem::take(&mut self.is_cut).then(|| Err(self.place()));
        }
        let Some(head) = self.head() else {
            let at = self.place();
            self.skip_to_good();
            return Some(Err(at));
        };
        let length = usize::try_from(head.length()).unwrap_or(usize::MAX);
        let to = self.from.saturating_add(length).min(self.bytes.len());
        let frame = Frame { head, bytes: self.bytes.slice(self.from..to), offset: self.place(), stamp: self.stamp };
        self.from = to;
        if head.is_record() {
            self.numbers.start = head.number.saturating_add(1);
        }
        Some(Ok(frame))
    }

    /// Where the next frame begins, or the last one ended.
    pub(super) fn place(&self) -> u64 {
        self.offset + self.from as u64
    }

    fn head(&self) -> Option<Head> {
        let head = Head::decode(&self.bytes[self.from..], self.stamp, self.place()).ok()?;
        // Numbers rise inside a group, and stay inside it.
        (!head.is_record() || self.numbers.contains(&head.number)).then_some(head)
    }

    fn skip_to_good(&mut self) {
        const STEP: usize = 8;
        const _: () = assert!(STEP as u64 == frame::ALIGN);
        loop {
            self.from = self.from.saturating_add(STEP).min(self.bytes.len());
            let rest = &self.bytes[self.from..];
            if rest.is_empty() || (Head::may_begin(rest, &self.numbers) && self.head().is_some()) {
                return;
            }
        }
    }
}
