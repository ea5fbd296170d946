//! The journal: a directory of segments with one writer and any number of readers.

mod erase;
mod keep;
mod known;
mod pieces;
mod quarantine;
mod reader;
mod reclaim;
mod recover;
mod repair;
mod salvage;
mod scan;
mod spare;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use crate::disk::Disk;
use crate::envelope::Envelope;
use crate::segment::{Footer, Stamp};
use crate::state::State;
use crate::{Damage, Error, Stream, Tally};
use known::Known;

pub use erase::Erased;
pub use keep::Kept;
pub use reader::{Reader, Step};
pub use reclaim::{Keep, Reclaimed};
pub use recover::{Recovery, Torn};
pub use repair::{Repaired, RepairedSegment, repair};
pub use salvage::{Verified, VerifiedSegment, Watch, verify};
pub use spare::KeptBack;
pub use writer::{Committed, Writer};

/// When a commit returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// After the sync.
    #[default]
    Sync,
    /// After the write: what it returned for outlives the process, and the machine only after [`Writer::sync`].
    Relaxed,
}

/// How a journal is laid out.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Which of the two journals it is.
    pub stream: Stream,
    /// Size of a segment file in bytes; a larger commit group gets a segment of its own.
    pub segment_bytes: u64,
    /// No record gets a number below this: what others (an index, a backend's place) have seen already.
    pub record_floor: u64,
    /// Files that are kept back for the segments to come.
    pub kept_back: KeptBack,
    /// When a commit returns.
    pub durability: Durability,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            stream: Stream::Main,
            segment_bytes: 64 << 20,
            record_floor: 1,
            kept_back: KeptBack::default(),
            durability: Durability::Sync,
        }
    }
}

/// A record to be written.
#[derive(Debug, Clone)]
pub struct Draft {
    /// What is known of it; its `kind` must be one of records.
    pub envelope: Envelope,
    /// The bytes as they were received.
    pub payload: Bytes,
}

/// A journal's directory.
#[derive(Debug)]
pub struct Journal;

/// A journal that was opened and recovered.
#[derive(Debug)]
pub struct Opened {
    /// The one writer.
    pub writer: Writer,
    /// What readers are made from.
    pub shared: Shared,
    /// The last checkpoint with all controls behind it folded in.
    pub state: State,
    /// What had to be done.
    pub recovery: Recovery,
}

/// A journal that was looked at and not opened.
#[derive(Debug)]
pub struct Inspected {
    /// What readers are made from.
    pub shared: Shared,
    /// The last checkpoint with all controls behind it folded in.
    pub state: State,
    /// Damage that was met on the way.
    pub damage: Vec<Damage>,
}

impl Journal {
    /// Looks at the journal in `dir` and changes nothing. Only for a journal that no writer has open.
    ///
    /// # Errors
    /// [`Error::Newer`] for a newer format, [`Error::Io`] of the file system.
    pub fn inspect(disk: Arc<dyn Disk>, dir: &Path, options: Options) -> Result<Inspected, Error> {
        recover::inspect(disk, dir, options)
    }

    /// Opens the journal in `dir`, recovers what is in it, and begins a new segment.
    ///
    /// The caller holds a lock on the directory: two writers would destroy it. `wall_ns` also makes the epoch of this
    /// run, see `FORMAT.md`.
    ///
    /// All directories above `dir` are synced, because a start that was killed may have created any of them.
    ///
    /// # Errors
    /// [`Error::Newer`] for a newer format (nothing is touched), [`Error::Full`] or [`Error::Io`] of the file system.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: Options, wall_ns: u64) -> Result<Opened, Error> {
        recover::open(disk, dir, options, wall_ns)
    }
}

/// What is known of one segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its number; later ones are higher.
    pub id: u64,
    /// Number of its first record, or that its first record would have.
    pub first_record: u64,
    /// Behind its last record.
    pub next_record: u64,
    /// What is in it.
    pub tally: Tally,
    /// Its size on disk.
    pub file_bytes: u64,
    /// Wall clock of receipt, lowest and highest, nanoseconds since 1970.
    pub wall_ns: (u64, u64),
    /// Running clock of receipt, lowest and highest, milliseconds.
    pub clock_ms: (u64, u64),
    /// Whether it will grow no more.
    pub sealed: bool,
    pub(crate) epoch: u64,
    /// Behind its last durable group.
    pub(crate) end: u64,
    /// Of its first group, and behind its last one.
    pub(crate) first_sequence: u64,
    pub(crate) next_sequence: u64,
}

impl SegmentInfo {
    fn stamp(&self) -> Stamp {
        Stamp { segment: self.id, epoch: self.epoch }
    }

    fn sealed(stamp: Stamp, footer: &Footer, file_bytes: u64) -> Self {
        Self {
            id: stamp.segment,
            first_record: footer.first_record,
            next_record: footer.next_record,
            tally: footer.tally,
            file_bytes,
            wall_ns: footer.received.wall_ns,
            clock_ms: footer.received.clock_ms,
            sealed: true,
            epoch: stamp.epoch,
            end: footer.end,
            first_sequence: footer.first_sequence,
            next_sequence: footer.next_sequence,
        }
    }

    /// A walk over what is in it.
    fn parts(&self) -> scan::Parts {
        scan::Parts::of(self)
    }

    /// Records that are in no file, between this segment and the one behind it. Sequences run without a gap from
    /// segment to segment, record numbers need not.
    fn missing_behind(&self, next: &Self) -> Range<u64> {
        if next.first_sequence > self.next_sequence { self.next_record..next.first_record } else { 0..0 }
    }
}

/// What writer and readers share: which segments there are, and up to where they are durable.
#[derive(Debug, Clone)]
pub struct Shared {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Ascending; the last one is being written. Locked for moments only, never over a call to the disk.
    segments: Mutex<Vec<SegmentInfo>>,
    /// How often each segment is open for reading.
    leases: Mutex<BTreeMap<u64, usize>>,
    /// Bytes of the files that are kept back.
    kept_back_bytes: AtomicU64,
    /// Records that are still needed, and should be before the first segment that was there at the start.
    missing_before: Range<u64>,
    /// Damage that was met. Locked as `segments` is, and never both.
    known: Mutex<Known>,
    /// What is kept aside because it is damaged. Locked in the same way.
    quarantined: Mutex<quarantine::Files>,
}

impl Shared {
    /// Records from `lowest` on that are in no segment, but should be, are missing.
    fn new(disk: Arc<dyn Disk>, dir: PathBuf, segments: Vec<SegmentInfo>, lowest: Option<u64>) -> Self {
        let missing_before = match (lowest, segments.first()) {
            // The first record has number 1.
            (Some(lowest), Some(first)) if lowest < first.first_record => lowest.max(1)..first.first_record,
            _ => 0..0,
        };
        let (segments, leases, known) = (Mutex::new(segments), Mutex::default(), Mutex::default());
        let kept_back_bytes = AtomicU64::new(0);
        let quarantined = Mutex::default();
        let inner = Inner { disk, dir, segments, leases, kept_back_bytes, missing_before, known, quarantined };
        Self { inner: Arc::new(inner) }
    }

    /// A reader from `place` on: the first record it returns has that number or the next higher one.
    #[must_use]
    pub fn reader(&self, place: u64) -> Reader {
        Reader::new(self.clone(), place)
    }

    /// All segments, oldest first; the last one is being written.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.lock().clone()
    }

    /// Behind the last durable record.
    #[must_use]
    pub fn next_record(&self) -> u64 {
        self.lock().last().map_or(1, |segment| segment.next_record)
    }

    /// The first record that is still there.
    #[must_use]
    pub fn first_record(&self) -> u64 {
        self.lock().first().map_or(1, |segment| segment.first_record)
    }

    /// Bytes of all segment files, the allotted part of the one being written, what is kept back and what is kept aside
    /// included.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        let segments: u64 = self.lock().iter().map(|segment| segment.file_bytes).sum();
        segments + self.inner.kept_back_bytes.load(Ordering::Relaxed) + self.quarantined().bytes()
    }

    /// What is in the journal from `place` on, with what is lost: as much as a reader from there on returns and reports.
    /// Reads group headers of one segment, and one group.
    ///
    /// # Errors
    /// [`Error::Io`] of the file system.
    pub fn tally_from(&self, place: u64) -> Result<Tally, Error> {
        Ok(self.tallies_from(&[place])?.remove(&place).unwrap_or_default())
    }

    /// What is in the journal from each of these places on, in one walk.
    ///
    /// # Errors
    /// [`Error::Io`] of the file system.
    pub fn tallies_from(&self, places: &[u64]) -> Result<BTreeMap<u64, Tally>, Error> {
        let segments = self.segments();
        let mut left: BTreeSet<u64> = places.iter().copied().collect();
        let mut found = BTreeMap::new();
        let mut behind = Tally::default();
        for (index, segment) in segments.iter().enumerate().rev() {
            for place in left.split_off(&segment.next_record) {
                found.insert(place, behind);
            }
            let inside = left.split_off(&(segment.first_record + 1));
            if !inside.is_empty() {
                for (place, tally) in pieces::tallies_from(self, segment, &inside)? {
                    found.insert(place, tally.plus(behind));
                }
            }
            behind += segment.tally;
            let missing = Damage::missing(segment.id, self.missing_at(&segments, index));
            if !missing.records.is_empty() {
                for place in left.split_off(&(missing.records.start + 1)) {
                    let rest = missing.from(place).map(|damage| damage.tally()).unwrap_or_default();
                    found.insert(place, rest.plus(behind));
                }
                behind += missing.tally();
            }
        }
        found.extend(left.into_iter().map(|place| (place, behind)));
        Ok(found)
    }

    /// The records of a segment with what each weighs, ascending. Reads the whole segment.
    ///
    /// With what is lost: together it is what the catalogue says.
    ///
    /// # Errors
    /// [`Error::Io`] of the file system.
    pub fn weigh(&self, segment: &SegmentInfo) -> Result<Vec<(u64, Tally)>, Error> {
        pieces::weigh(self, segment)
    }

    /// Keeps sealed segments beside the journal: each gets a second name there, or where files can't have one, is
    /// copied. Durable when it returns. What is there already is from an attempt that was cut short, and is as good.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Io`] of the file system; no harm is done.
    pub fn keep_copies(&self, segments: &[SegmentInfo], kept: &Kept) -> Result<(), Error> {
        kept.take(self, segments)
    }

    fn note_kept_back(&self, spares: &spare::Spares) {
        self.inner.kept_back_bytes.store(spares.bytes(), Ordering::Relaxed);
    }

    fn leases(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.inner.leases.lock().expect("the leases are locked for moments that cannot panic")
    }

    /// What the damage took that was met until now, by a start or by readers.
    #[must_use]
    pub fn damage(&self) -> Tally {
        self.known().tally()
    }

    /// Finishes, in all accounts, the numbers between segments that no record ever had: a place then stands at a record
    /// that exists, or at the end, and a lost segment can be told from numbers that a start skipped.
    pub fn finish_skipped(&self, state: &mut State) {
        let segments = self.segments();
        for pair in segments.windows(2) {
            if pair[0].missing_behind(&pair[1]).is_empty() {
                state.finish_unused(pair[0].next_record..pair[1].first_record);
            }
        }
    }

    /// Records from `lowest` on that are in no file.
    fn missing(&self, lowest: u64) -> Vec<Damage> {
        let segments = self.segments();
        let at = |index: usize| Damage::missing(segments[index].id, self.missing_at(&segments, index));
        (0..segments.len())
            .filter_map(|index| at(index).from(lowest))
            .filter(|damage| !damage.records.is_empty())
            .collect()
    }

    /// Records that are in no file, before the segment at `index`.
    fn missing_at(&self, segments: &[SegmentInfo], index: usize) -> Range<u64> {
        match index.checked_sub(1) {
            Some(before) => segments[before].missing_behind(&segments[index]),
            // What was there at the start and went since is not missed.
            None => self.inner.missing_before.start..self.inner.missing_before.end.min(segments[index].first_record),
        }
    }

    fn note(&self, damage: &Damage) {
        self.known().note(damage);
    }

    fn quarantined(&self) -> MutexGuard<'_, quarantine::Files> {
        self.inner.quarantined.lock().expect("the list of files is locked for moments that cannot panic")
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.inner.known.lock().expect("what is known is locked for moments that cannot panic")
    }

    fn lock(&self) -> MutexGuard<'_, Vec<SegmentInfo>> {
        self.inner.segments.lock().expect("the catalogue is locked for moments that cannot panic")
    }
}
