//! Walking the groups of one segment by their headers.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::{SegmentInfo, Shared};
use crate::disk::DiskFile;
use crate::frame::{self, Bad, Head, Record};
use crate::group::{self, Group};
use crate::segment::{BLOCK, BLOCK_LEN, Stamp};
use crate::{Error, Tally, segment};

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

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Error> {
        self.file.read_at(buffer, offset).map_err(|source| Error::io("read", &self.path, source))
    }

    /// The group at `offset`, if there is a valid header that fits before `end`.
    pub(super) fn group_at(&self, offset: u64, end: u64) -> Result<Option<Group>, Error> {
        let mut bytes = [0; group::HEAD];
        let filled = self.read(&mut bytes, offset)?;
        Ok(Group::decode(&bytes[..filled], self.stamp, offset).filter(|group| fits(group, offset, end)))
    }

    /// The first valid group header at a block boundary in `from..end`: the way on behind damage.
    pub(super) fn next_group(&self, from: u64, end: u64) -> Result<Option<(u64, Group)>, Error> {
        let mut buffer = vec![0; SEARCH_BYTES];
        let mut offset = from;
        while offset < end {
            let filled = self.read(&mut buffer, offset)?;
            if filled == 0 {
                break;
            }
            for (index, block) in buffer[..filled].chunks(BLOCK_LEN).enumerate() {
                let at = offset + index as u64 * BLOCK;
                match Group::decode(block, self.stamp, at) {
                    Some(group) if fits(&group, at, end) => return Ok(Some((at, group))),
                    _ => {}
                }
            }
            offset += filled as u64;
        }
        Ok(None)
    }

    /// The frames of the group at `offset`, whole.
    pub(super) fn frames(&self, offset: u64, group: &Group) -> Result<Frames, Error> {
        self.frames_of_length(offset, group.length)
    }

    /// The control frames of the group at `offset` only.
    pub(super) fn controls(&self, offset: u64, group: &Group) -> Result<Frames, Error> {
        self.frames_of_length(offset, group.controls_len.min(group.length))
    }

    fn frames_of_length(&self, offset: u64, length: u64) -> Result<Frames, Error> {
        let offset = offset + group::HEAD as u64;
        let mut bytes = vec![0; usize::try_from(length).expect("a group that fits a file that was read fits memory")];
        let filled = self.read(&mut bytes, offset)?;
        bytes.truncate(filled);
        Ok(Frames { bytes: bytes.into(), offset, stamp: self.stamp })
    }
}

fn fits(group: &Group, offset: u64, end: u64) -> bool {
    group.length < end && group.extent() <= end.saturating_sub(offset)
}

/// The frames of one group, in order.
#[derive(Debug)]
pub(super) struct Frames {
    bytes: Bytes,
    offset: u64,
    stamp: Stamp,
}

/// One frame whose header is good.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) head: Head,
    bytes: Bytes,
    offset: u64,
    stamp: Stamp,
}

impl Frame {
    pub(super) fn record(&self) -> Result<Record, Bad> {
        self.head.record(&self.bytes, self.stamp, self.offset)
    }
}

impl Frames {
    /// The next frame, `None` behind the last; `Err` when its header is damaged, which ends the walk.
    pub(super) fn next(&mut self) -> Option<Result<Frame, Bad>> {
        if self.bytes.len() < frame::HEAD {
            return None;
        }
        let head = match Head::decode(&self.bytes, self.stamp, self.offset) {
            Ok(head) => head,
            Err(bad) => {
                self.bytes.clear();
                return Some(Err(bad));
            }
        };
        let length = usize::try_from(head.length()).unwrap_or(usize::MAX).min(self.bytes.len());
        let bytes = self.bytes.split_to(length);
        let frame = Frame { head, bytes, offset: self.offset, stamp: self.stamp };
        self.offset += length as u64;
        Some(Ok(frame))
    }
}

/// What `info` holds from `place` on, where `place` lies inside it.
pub(super) fn tally_from(shared: &Shared, info: &SegmentInfo, place: u64) -> Result<Tally, Error> {
    let file = SegmentFile::open(shared, info)?;
    let mut total = Tally::default();
    let mut offset = BLOCK;
    while offset < info.end {
        let Some((at, group)) = file.group_at_or_behind(offset, info.end)? else { break };
        if group.first_record >= place {
            total += group.tally;
        } else if group.next_record > place {
            let mut frames = file.frames(at, &group)?;
            while let Some(Ok(frame)) = frames.next() {
                if frame.head.kind.is_some_and(crate::Kind::is_record) && frame.head.number >= place {
                    total += frame.head.tally();
                }
            }
        }
        offset = at + group.extent();
    }
    Ok(total)
}

impl SegmentFile {
    /// The group at `offset`, or the next one behind damage.
    pub(super) fn group_at_or_behind(&self, offset: u64, end: u64) -> Result<Option<(u64, Group)>, Error> {
        match self.group_at(offset, end)? {
            Some(group) => Ok(Some((offset, group))),
            None => self.next_group(offset + BLOCK, end),
        }
    }
}
