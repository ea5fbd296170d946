//! Which segments may go.

use super::{SegmentInfo, Writer, quarantine};
use crate::{Error, segment};

/// What is worth keeping although no backend needs it any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// Records received at or after this running clock, in milliseconds,
    pub since_clock_ms: u64,
    /// up to this many bytes on disk.
    pub bytes: u64,
}

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Segments.
    pub segments: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

/// How many of the oldest segments may go: sealed, past `lowest` (the lowest record that any backend needs), and not
/// worth keeping. Segments go in order, so that what is left is one stretch.
pub(crate) fn choose(segments: &[SegmentInfo], lowest: u64, keep: Keep) -> usize {
    let past = segments.iter().take_while(|segment| segment.sealed && segment.next_record <= lowest).count();
    let mut kept_bytes = 0;
    // From the newest that may go backwards: what fits the allowance stays.
    let kept = segments[..past]
        .iter()
        .rev()
        .take_while(|segment| {
            kept_bytes += segment.file_bytes;
            kept_bytes <= keep.bytes && segment.tally.records > 0 && segment.clock_ms.1 >= keep.since_clock_ms
        })
        .count();
    past - kept
}

impl Writer {
    /// Removes the oldest segments that nobody needs.
    ///
    /// `lowest` must come from a checkpoint that is durable: a segment may go only when it is on disk that all backends
    /// are past it.
    ///
    /// # Errors
    /// [`Error::Io`] of the file system; what was removed until then is gone. A failed sync poisons the writer.
    pub fn reclaim(&mut self, lowest: u64, keep: Keep) -> Result<Reclaimed, Error> {
        let shared = self.shared().clone();
        let segments = shared.segments();
        // As long as the segment being written holds no group, the checkpoint that says so is in an older one.
        let count = if self.has_begun() { choose(&segments, lowest, keep) } else { 0 };
        if count > 0 {
            // The checkpoint, where commits are not synced.
            self.sync()?;
        }
        let mut reclaimed = Reclaimed::default();
        for info in &segments[..count] {
            let path = segment::path(&shared.inner.dir, info.id);
            // Out of the catalogue first: a reader that comes now must not meet a file that is about to go.
            shared.lock().retain(|segment| segment.id != info.id);
            match quarantine::keep_if_damaged(&shared, info) {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => {
                    shared.lock().insert(0, *info);
                    return Err(error);
                }
            }
            match self.retire(&path, info) {
                Ok(()) => {}
                // It went in an attempt that was reported as failed.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => {
                    // Still there: it is counted, and tried again.
                    shared.lock().insert(0, *info);
                    return Err(Error::io("remove", &path, source));
                }
            }
            reclaimed.segments += 1;
            reclaimed.bytes += info.file_bytes;
        }
        if count > 0
            && let Err(error) = self.sync_retired()
        {
            // A later sync of the directory may succeed without what this one was to write.
            self.poison();
            return Err(error);
        }
        Ok(reclaimed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tally;

    fn segment(id: u64, records: u64, sealed: bool) -> SegmentInfo {
        SegmentInfo {
            id,
            first_record: id * 10,
            next_record: id * 10 + records,
            tally: Tally { records, ..Tally::default() },
            file_bytes: 100,
            wall_ns: (0, 0),
            clock_ms: (id * 1000, id * 1000 + 999),
            sealed,
            epoch: 1,
            end: 0,
            first_sequence: 1,
            next_sequence: 1,
        }
    }

    #[test]
    fn only_what_is_past_sealed_and_not_kept_may_go() {
        let segments = [segment(1, 10, true), segment(2, 10, true), segment(3, 10, true), segment(4, 5, false)];
        let nothing = Keep { since_clock_ms: u64::MAX, bytes: 0 };
        assert_eq!(choose(&segments, 10, nothing), 0);
        assert_eq!(choose(&segments, 20, nothing), 1);
        assert_eq!(choose(&segments, 39, nothing), 2, "one record of the third is still needed");
        assert_eq!(choose(&segments, 99, nothing), 3, "the one being written stays");
        assert_eq!(choose(&segments, 99, Keep { since_clock_ms: 0, bytes: 250 }), 1, "two fit the allowance");
        assert_eq!(choose(&segments, 99, Keep { since_clock_ms: 3000, bytes: 1000 }), 2, "two are too old");
        assert_eq!(choose(&[segment(1, 0, true)], 99, Keep { since_clock_ms: 0, bytes: 1000 }), 1, "empty");
    }
}
