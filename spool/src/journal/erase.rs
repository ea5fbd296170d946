//! Purging: making the payload of records physically unreadable.
//!
//! The mark in a frame's header is written and synced first, then the payload is overwritten with zeros and synced. So a
//! reader meets a whole record, or the mark, and never takes a record that was purged for a damaged one. Copies of old
//! bytes go too: spare files, what lies behind the end of a recycled segment, and what is kept aside in `quarantine/`.

use std::ops::Range;

use super::scan::{Frames, Part, Reading, SegmentFile};
use super::{SegmentInfo, Shared, Writer, quarantine};
use crate::disk::DiskFile;
use crate::frame::{self, Head};
use crate::{Error, Ranges, Tally, segment};

static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// What was erased.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Erased {
    /// The records whose payload is gone from the files, and what they weigh.
    pub tally: Tally,
    /// Their numbers. Of the others that were asked for, no frame is there: they were reclaimed, or are damaged so that
    /// it can't be told where their bytes are.
    pub records: Ranges,
}

/// Where a record's frame is.
#[derive(Debug)]
struct Place {
    offset: u64,
    payload: Range<u64>,
}

impl Writer {
    /// Erases the payload of records from all files of the journal, durably. The same may be asked for again, and must be
    /// after a start, until it returned once: [`super::Journal::open`] sees to that for what [`crate::State::purges`] has.
    ///
    /// # Errors
    /// [`Error::Io`] of the file system: the writer is poisoned, the process must end.
    pub fn erase(&mut self, records: &Ranges) -> Result<Erased, Error> {
        // A failed sync of the segment being written must not be this one's.
        self.sync()?;
        let erased = self.try_erase(records);
        if erased.is_err() {
            self.poison();
        }
        erased
    }

    fn try_erase(&mut self, records: &Ranges) -> Result<Erased, Error> {
        let shared = self.shared().clone();
        let mut erased = Erased::default();
        for info in shared.segments() {
            if records.touches(&(info.first_record..info.next_record)) {
                erase_in(&shared, &info, records, &mut erased)?;
            }
        }
        // Old bytes: of records that went long ago, and of those above.
        self.discard_spares()?;
        let aside = quarantine::path(&shared.inner.dir);
        while shared.drop_quarantined()? {}
        // Also when there was nothing: it may have been removed by a process that ended before this.
        match shared.inner.disk.sync_dir(&aside) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            synced => synced.map_err(|source| Error::sync(&aside, source))?,
        }
        let (id, unused) = self.unused();
        let path = segment::path(&shared.inner.dir, id);
        let failed = |source| Error::io("write", &path, source);
        let file = shared.inner.disk.open(&path, true).map_err(|source| Error::io("open", &path, source))?;
        let end = file.length().map_err(failed)?.min(unused.end);
        fill(&*file, unused.start..end).map_err(failed)?;
        file.sync_data().map_err(|source| Error::sync(&path, source))?;
        let dir = &shared.inner.dir;
        shared.inner.disk.sync_dir(dir).map_err(|source| Error::sync(dir, source))?;
        Ok(erased)
    }
}

/// Erases what is in one segment.
fn erase_in(shared: &Shared, info: &SegmentInfo, records: &Ranges, erased: &mut Erased) -> Result<(), Error> {
    let file = SegmentFile::open(shared, info, Reading::Lossy)?;
    let mut places = Vec::new();
    let mut find = |mut frames: Frames| {
        while let Some(frame) = frames.next() {
            let Ok(frame) = frame else { continue };
            if frame.head.is_record() && records.contains(frame.head.number) {
                let payload = frame.head.payload_at(frame.offset);
                places.push(Place { offset: frame.offset, payload });
                erased.tally += frame.head.tally();
                erased.records.insert(frame.head.number..frame.head.number + 1);
            }
        }
    };
    let mut parts = info.parts();
    while let Some(part) = parts.next(&file)? {
        match part {
            Part::Group(at, group) if records.touches(&(group.first_record..group.next_record)) => {
                find(file.records(at, &group)?);
            }
            Part::Group(..) => {}
            Part::Stretch(stretch) => find(file.frames(stretch.bytes, stretch.records)?),
        }
    }
    if places.is_empty() {
        return Ok(());
    }
    let path = &file.path;
    let failed = |source| Error::io("write", path, source);
    let target = shared.inner.disk.open(path, true).map_err(|source| Error::io("open", path, source))?;
    for place in &places {
        let mark = Head::purge_mark(file.stamp, place.offset);
        target.write_at(&[&mark], place.offset + frame::MARK_AT as u64).map_err(failed)?;
    }
    target.sync_data().map_err(|source| Error::sync(path, source))?;
    for place in &places {
        // Not past the end of a file that was cut.
        let end = place.payload.end.min(info.end);
        fill(&*target, place.payload.start.min(end)..end).map_err(failed)?;
    }
    target.sync_data().map_err(|source| Error::sync(path, source))
}

/// Overwrites a part of a file with zeros.
fn fill(file: &dyn DiskFile, part: Range<u64>) -> std::io::Result<()> {
    let mut at = part.start;
    while at < part.end {
        let count = usize::try_from(part.end - at).unwrap_or(usize::MAX).min(ZEROS.len());
        file.write_at(&[&ZEROS[..count]], at)?;
        at += count as u64;
    }
    Ok(())
}
