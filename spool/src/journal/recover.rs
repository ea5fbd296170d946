//! What a start does: find the end, trust only what is known to be on disk, and begin a new segment.
//!
//! A group is written only after the sync of the one before it returned. So the last group of the last segment is the
//! only one of which it is not known whether it is on disk, even when it can be read: after a failed sync the page
//! cache shows what the disk does not hold. Its good records are written again into the new segment and synced; only
//! then the old segment is closed before them. The rewritten group has the sequence of the doubtful one: whatever has
//! this sequence or a higher one in an older segment is superseded.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::pieces::{self, Piece};
use super::quarantine;
use super::scan::{Found, Frames, Groups, Part, SegmentFile, Stretch};
use super::spare::{self, Spares};
use super::writer::{Start, Writer, seal};
use super::{Draft, Inspected, Opened, Options, SegmentInfo, Shared};
use crate::disk::Disk;
use crate::disk::lossy::Lossy;
use crate::envelope::Kind;
use crate::frame::{self, Record};
use crate::group::{self, Group};
use crate::segment::{self, BLOCK, BLOCK_LEN, BadHeader, EPOCH_MAX, Ends, Footer, Header, Stamp};
use crate::state::{Control, State};
use crate::{Damage, Error, Now, Stream};

/// How much is kept of a torn group of unknown length where old bytes lie behind it.
const TORN_RECYCLED: u64 = 1 << 20;

/// What a start found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The journal was closed in order, or is new.
    pub clean: bool,
    /// Records of the last group that were written again.
    pub rewritten: u64,
    /// A last group that was not whole; it had not been acknowledged, unless it rotted afterwards.
    pub torn: Option<Torn>,
    /// Damage that was met. What lies in sealed segments is found by reading, not by starting.
    pub damage: Vec<Damage>,
    /// Segments of which nothing can be read and that are left out; the files stay as they are.
    pub unreadable: Vec<PathBuf>,
}

/// A last group that is not whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// Frames that could not be read; 0 when the group's own header is lost, so that it is not known how many.
    pub frames: u64,
    /// Where the bytes were put; `None` where a full disk had no room for them.
    pub kept_in: Option<PathBuf>,
}

pub(super) fn open(disk: Arc<dyn Disk>, dir: &Path, options: Options, wall_ns: u64) -> Result<Opened, Error> {
    let mut recovery = Recovery::default();
    make_dir(&*disk, dir)?;
    let mut found = find(&*disk, dir, options, &mut recovery)?;
    // Only now, when it is known that no file is of a newer format, the first change.
    for path in &found.unfinished {
        disk.remove(path).map_err(|source| Error::io("remove", path, source))?;
    }
    let wanted = options.kept_back;
    let mut spares = Spares::find(Arc::clone(&disk), dir, &found.names, wanted, options.segment_bytes)?;
    spares.trim()?;
    let highest_id = found.highest_id;
    let highest_epoch = found.segments.iter().map(|segment| segment.header.epoch).max().unwrap_or(0);

    recovery.clean = found.segments.last().is_none_or(|segment| segment.footer.is_some());
    // Groups that were not synced one by one may be gone without a trace, with the numbers of their records: as many as
    // fit a segment, because each was synced when the next was begun. A last one without groups may be gone too.
    let unsynced = found.segments.last().filter(|segment| segment.header.relaxed);
    let unsynced_records = unsynced.map_or(0, |segment| segment.length.max(options.segment_bytes) / frame::HEAD as u64);
    let tail = take_tail(&mut found.segments, &mut |path| {
        disk.remove(path).map_err(|source| Error::io("remove", path, source))
    })?;
    let doubtful = match &tail {
        Some(tail) => Doubtful::read(&*disk, dir, tail, &mut recovery)?,
        None => Doubtful::default(),
    };
    let closings = plan(found.segments, tail)?;
    let infos: Vec<SegmentInfo> = closings.iter().map(Closing::info).collect();
    let mut state = fold(&closings, &doubtful, &mut recovery)?;
    let lowest = state.lowest_needed();
    let shared = Shared::new(Arc::clone(&disk), dir.to_path_buf(), infos.clone(), lowest);
    report_damage(&closings, &shared, &state, &mut recovery);
    *shared.quarantined() = quarantine::Files::find(&*disk, dir)?;

    let lost = found.lost;
    let next_record = infos.iter().map(|info| info.next_record).max().unwrap_or(1).saturating_add(lost.records);
    let next_record = next_record.max(doubtful.next_record).saturating_add(unsynced_records);
    let next_record = [next_record, options.record_floor]
        .into_iter()
        .chain(state.accounts.values().map(crate::Account::seen))
        .fold(1, u64::max);
    let sequence = infos.iter().map(|info| info.next_sequence).max().unwrap_or(1).saturating_add(lost.groups);

    shared.finish_skipped(&mut state);
    // What is said of segments that are gone is of no use any more.
    let first_id = infos.first().map_or(0, |info| info.id);
    state.written_off.retain(|segment, _| *segment >= first_id);
    if lost.groups == 0 {
        finish_unused(&mut state, &infos, &doubtful, next_record);
    }
    recovery.rewritten = doubtful.records.len() as u64;
    // The wall clock makes it unknown beforehand to whoever sends payloads, so that none can hold bytes with valid
    // checksums of this journal.
    let epoch = highest_epoch.saturating_add(1).max(wall_ns.min(EPOCH_MAX / 2));
    // The side journal is told whose it is.
    if state.spool_id == 0 && options.stream == Stream::Main {
        state.spool_id = epoch;
    }
    let start = Start {
        segment: highest_id + 1,
        epoch,
        sequence,
        next_record,
        now: Now { wall_ns, clock_ms: state.clock_ms },
        state: state.clone(),
        rewrite: doubtful.records,
    };
    let mut writer = Writer::begin(shared.clone(), options, spares, start)?;
    // Only now: until the rewritten records were synced, the old segments held their only copy.
    close(&*disk, &mut writer, &closings)?;
    shared.limit_quarantine()?;
    // What an operator purged, and was not erased before the last process ended.
    let purged = state.erasable();
    if !purged.is_empty() {
        writer.erase(&purged)?;
        state.erased(&purged);
    }
    Ok(Opened { writer, shared, state, recovery })
}

/// Reads what [`open`] would find, and changes nothing. The last group counts as it can be read now.
pub(super) fn inspect(disk: Arc<dyn Disk>, dir: &Path, options: Options) -> Result<Inspected, Error> {
    let Survey { shared, state, recovery, names, .. } = survey(Arc::clone(&disk), dir, options, LastGroup::Counts)?;
    *shared.quarantined() = quarantine::Files::find(&*disk, dir)?;
    let spares = Spares::find(disk, dir, &names, options.kept_back, options.segment_bytes)?;
    shared.note_kept_back(&spares);
    Ok(Inspected { shared, state, damage: recovery.damage })
}

/// What becomes of the last group of a segment that is not sealed, for somebody who only looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LastGroup {
    /// It is taken as it can be read.
    Counts,
    /// It is taken if all of it can be read.
    CountsIfWhole,
    /// A daemon may be writing it.
    IsLeftOut,
}

/// A journal that was looked at.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) shared: Shared,
    pub(super) state: State,
    pub(super) recovery: Recovery,
    /// All names in the directory.
    names: Vec<String>,
    /// Segments whose footer can't be read and should be there.
    pub(super) footers_lost: Vec<u64>,
    /// What was written last is not whole.
    pub(super) is_torn: bool,
}

/// Reads what [`open`] would find, and changes nothing.
pub(super) fn survey(disk: Arc<dyn Disk>, dir: &Path, options: Options, last: LastGroup) -> Result<Survey, Error> {
    let mut recovery = Recovery::default();
    let mut found = find(&*disk, dir, options, &mut recovery)?;
    let mut tail = take_tail(&mut found.segments, &mut |_| Ok(()))?;
    let mut is_torn = false;
    if let Some((segment, scan)) = &mut tail {
        let is_whole = match scan.last {
            Some(group) => whole(&segment.file, scan.footer.end, &group)?,
            None => true,
        };
        is_torn = !is_whole || segment.is_written_at(scan.end())?;
        match last {
            LastGroup::Counts => scan.settle_last(segment.length),
            LastGroup::CountsIfWhole if is_whole => scan.settle_last(segment.length),
            LastGroup::CountsIfWhole | LastGroup::IsLeftOut => {}
        }
    }
    let closings = plan(found.segments, tail)?;
    let infos: Vec<SegmentInfo> = closings.iter().map(Closing::info).collect();
    // The last segment is being written; the one before it is closed only after that was begun.
    let open = closings.iter().rev().take(2).take_while(|closing| closing.segment.footer.is_none()).count();
    let should_be_closed = &closings[..closings.len() - open];
    let footers_lost = should_be_closed.iter().filter(|closing| closing.segment.footer.is_none());
    let footers_lost = footers_lost.map(|closing| closing.segment.header.segment).collect();
    let mut state = fold(&closings, &Doubtful::default(), &mut recovery)?;
    let lowest = state.lowest_needed();
    let shared = Shared::new(disk, dir.to_path_buf(), infos, lowest);
    report_damage(&closings, &shared, &state, &mut recovery);
    shared.finish_skipped(&mut state);
    let names = found.names;
    Ok(Survey { shared, state, recovery, names, footers_lost, is_torn })
}

/// Creates `dir` and makes that durable, with all above it: a start that was killed may have created any of them, and
/// it can't be seen that it did.
pub(super) fn make_dir(disk: &dyn Disk, dir: &Path) -> Result<(), Error> {
    disk.create_dir(dir).map_err(|source| Error::io("create", dir, source))?;
    for (distance, parent) in dir.ancestors().skip(1).enumerate() {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        match disk.sync_dir(parent) {
            Ok(()) => {}
            // Far above, there are directories that this process may not open, and file systems of other kinds; nothing
            // was created there.
            Err(error) if distance > 0 && is_foreign(&error) => {}
            Err(source) => return Err(Error::sync(parent, source)),
        }
    }
    Ok(())
}

fn is_foreign(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | Unsupported | InvalidInput)
}

#[derive(Debug)]
struct FoundSegments {
    /// Readable ones, ascending.
    segments: Vec<Segment>,
    highest_id: u64,
    /// All names in the directory.
    names: Vec<String>,
    /// Segments that a start was making when it was cut short.
    unfinished: Vec<PathBuf>,
    /// What unreadable segments behind the last readable one can have held at most.
    lost: Lost,
}

#[derive(Debug, Default)]
struct Lost {
    records: u64,
    groups: u64,
}

/// A segment file as it lies there.
#[derive(Debug)]
struct Segment {
    header: Header,
    /// The header block is damaged; what it says was found elsewhere in the file.
    header_lost: bool,
    /// Present when it was sealed.
    footer: Option<Footer>,
    length: u64,
    file: SegmentFile,
}

fn find(disk: &dyn Disk, dir: &Path, options: Options, recovery: &mut Recovery) -> Result<FoundSegments, Error> {
    let names = disk.list(dir).map_err(|source| Error::io("list", dir, source))?;
    let mut ids: Vec<u64> = names.iter().filter_map(|name| segment::parse_name(name)).collect();
    ids.sort_unstable();
    let mut segments = Vec::with_capacity(ids.len());
    let mut lost = Lost::default();
    for &id in &ids {
        let path = segment::path(dir, id);
        let opening = match Segment::open(disk, &path, id, options) {
            // A daemon reclaimed it since the names were read.
            Err(error) if error.is_not_found() => continue,
            opening => opening?,
        };
        match opening {
            Opening::Readable(segment) => {
                segments.push(*segment);
                lost = Lost::default();
            }
            Opening::Unreadable { length } => {
                recovery.unreadable.push(path);
                // Numbers are never used twice, also when it can't be seen which ones were.
                lost.records = lost.records.saturating_add(length / frame::HEAD as u64);
                lost.groups = lost.groups.saturating_add(length / BLOCK);
            }
        }
    }
    let is_unfinished = |name: &&String| segment::is_unfinished(name) || spare::is_unfinished(name);
    let unfinished = names.iter().filter(is_unfinished).map(|name| dir.join(name)).collect();
    Ok(FoundSegments { segments, highest_id: ids.last().copied().unwrap_or(0), names, unfinished, lost })
}

/// What came of opening a segment file.
#[derive(Debug)]
enum Opening {
    Readable(Box<Segment>),
    Unreadable { length: u64 },
}

impl Segment {
    fn open(disk: &dyn Disk, path: &Path, id: u64, options: Options) -> Result<Opening, Error> {
        let file = disk.open(path, false).map_err(|source| Error::io("open", path, source))?;
        let lossy = Lossy::new(file.into());
        let ends = segment::read_ends(&lossy, path)?;
        let length = ends.length;
        let stamp = Stamp { segment: id, epoch: 0 };
        let mut file = SegmentFile { file: Arc::new(lossy.clone()), path: path.to_path_buf(), stamp, _lease: None };
        let (header, header_lost) = match ends.header {
            Ok(header) => (Some(header), false),
            Err(BadHeader::Newer(version)) => return Err(Error::Newer { path: path.to_path_buf(), version }),
            Err(BadHeader::Damaged) => (header_from_rest(&file, &ends, options)?, true),
        };
        Ok(match header.filter(|header| header.segment == id && header.stream == options.stream) {
            Some(header) => {
                file.stamp = header.stamp();
                let footer = ends.footer.filter(|_| ends.named == Some(file.stamp));
                Opening::Readable(Box::new(Self { header, header_lost, footer, length, file }))
            }
            None if lossy.is_dead() => {
                let source = std::io::Error::other("none of its blocks can be read; is the disk well?");
                return Err(Error::io("read", path, source));
            }
            None => Opening::Unreadable { length },
        })
    }

    /// Hops over the group headers up to the end, or to the first group that is superseded.
    fn scan(&self, superseded_from: u64) -> Result<Scan, Error> {
        let mut scan = Scan { footer: Footer::empty(&self.header), last: None, damage: Vec::new() };
        let mut groups = Groups::new(self.header.first_sequence, self.header.first_record, self.length);
        while let Some(Found { at, group, lost }) = groups.next(&self.file)? {
            if group.sequence >= superseded_from {
                break;
            }
            scan.settle_last(self.length);
            if let Some(stretch) = lost {
                scan.cross(&self.file, &stretch)?;
                scan.footer.next_sequence = group.sequence;
                scan.footer.next_record = group.first_record;
            }
            scan.footer.end = at;
            scan.last = Some(group);
        }
        Ok(scan)
    }

    /// Whether there are bytes where the next group would begin, at `offset`, other than a footer's. In a recycled file
    /// that can't be told, but for the first group, whose first block was made zero.
    fn is_written_at(&self, offset: u64) -> Result<bool, Error> {
        if self.header.recycled && offset != BLOCK {
            return Ok(false);
        }
        let mut written = false;
        self.file.each_block(offset, self.length.min(offset.saturating_add(BLOCK)), |_, block| {
            written = !is_zero(block) && !Footer::begins(block);
            true
        })?;
        Ok(written)
    }
}

/// What the header block said, from the footer or else from the first group that can be read: both repeat it. But for
/// its flags: the worst is assumed.
fn header_from_rest(file: &SegmentFile, ends: &Ends, options: Options) -> Result<Option<Header>, Error> {
    // In a recycled file it may be that of a segment that went.
    let stamp = ends.named.filter(|stamp| stamp.segment == file.stamp.segment);
    if let (Some(footer), Some(stamp)) = (&ends.footer, stamp) {
        let Footer { first_record, first_sequence, created, .. } = *footer;
        return Ok(Some(rebuilt(stamp, options, first_record, first_sequence, created)));
    }
    let mut header = None;
    file.each_block(BLOCK, ends.length, |at, block| {
        let stamp = Group::named_stamp(block).filter(|stamp| stamp.segment == file.stamp.segment);
        header = stamp.and_then(|stamp| {
            let group = Group::decode(block, stamp, at)?;
            let Group { first_record, sequence: first_sequence, at: created, .. } = group;
            // Groups before this one are lost with the header: the walk begins with a sequence that skips to it.
            let first_sequence = first_sequence.saturating_sub((at - BLOCK) / BLOCK);
            Some(rebuilt(stamp, options, first_record, first_sequence, created))
        });
        header.is_some()
    })?;
    Ok(header)
}

fn rebuilt(stamp: Stamp, options: Options, first_record: u64, first_sequence: u64, created: Now) -> Header {
    Header {
        stream: options.stream,
        segment: stamp.segment,
        epoch: stamp.epoch,
        first_record,
        first_sequence,
        created,
        // No record number must be used twice, whatever the header said.
        recycled: true,
        relaxed: true,
    }
}

/// What a walk over an unsealed segment found.
#[derive(Debug)]
struct Scan {
    /// Counts every group but the last; its `end` is where the last one begins.
    footer: Footer,
    last: Option<Group>,
    damage: Vec<Damage>,
}

impl Scan {
    /// Counts the last group too, because something behind it proves it durable.
    fn settle_last(&mut self, segment_bytes: u64) {
        if let Some(group) = self.last.take() {
            self.footer.add(&group, segment_bytes / 64);
        }
    }

    /// Counts what lies in a part without a group header that can be read: records by their own headers, and for each
    /// that is missing one unit.
    fn cross(&mut self, file: &SegmentFile, stretch: &Stretch) -> Result<(), Error> {
        self.damage.push(Damage::of_facts(file.stamp.segment, stretch.bytes.start));
        for piece in pieces::in_uncounted(file, stretch)? {
            self.footer.tally += piece.tally();
            if let Some(span) = piece.received() {
                self.footer.received = self.footer.received.cover(span);
            }
            if let Piece::Lost(damage) = piece {
                self.damage.push(damage);
            }
        }
        Ok(())
    }

    /// Behind the last group, whether it counts or not.
    fn end(&self) -> u64 {
        self.footer.end + self.last.map_or(0, |group| group.extent())
    }
}

/// The segment that was being written when the journal was not closed in order, taken off the list's end, with its
/// scan. `None` after a clean stop. Segments that count for nothing are given to `discard`.
fn take_tail(
    segments: &mut Vec<Segment>,
    discard: &mut dyn FnMut(&Path) -> Result<(), Error>,
) -> Result<Option<(Segment, Scan)>, Error> {
    while let Some(last) = segments.pop_if(|segment| segment.footer.is_none()) {
        let scan = last.scan(u64::MAX)?;
        let first_group_whole = match scan.last {
            Some(group) if scan.footer.groups == 0 => whole(&last.file, scan.footer.end, &group)?,
            Some(_) => true,
            None => false,
        };
        let predecessor_open = segments.last().is_some_and(|segment| segment.footer.is_none());
        let empty = scan.last.is_none() && scan.damage.is_empty() && !last.is_written_at(BLOCK)?;
        if first_group_whole || !(predecessor_open || empty) {
            return Ok(Some((last, scan)));
        }
        // A segment whose first group was never synced: nobody was told of anything in it. What a recovery was
        // writing again into it is still where it was, because the segment before is closed only afterwards. If it
        // comes back, it is removed again; the directory is synced with the next segment, before anything else changes.
        discard(&last.file.path)?;
    }
    Ok(None)
}

/// Whether every frame of a group can be read.
fn whole(file: &SegmentFile, offset: u64, group: &Group) -> Result<bool, Error> {
    Ok(each_good(file, offset, group, |_| ())? == u64::from(group.controls) + group.tally.records)
}

/// Shows every frame of a group that can be read, but for records that were purged. Returns how many are as they should
/// be, those included.
fn each_good(file: &SegmentFile, offset: u64, group: &Group, mut show: impl FnMut(Record)) -> Result<u64, Error> {
    let mut good = 0;
    let mut walk = |mut frames: Frames| {
        while let Some(frame) = frames.next() {
            let Ok(frame) = frame else { continue };
            if frame.head.purged {
                good += 1;
            } else if let Ok(record) = frame.record() {
                good += 1;
                show(record);
            }
        }
    };
    walk(file.facts(offset, group)?);
    walk(file.records(offset, group)?);
    Ok(good)
}

/// What could be read of a last group of which it is not known whether it is on disk.
#[derive(Debug, Default)]
struct Doubtful {
    controls: Vec<Record>,
    records: Vec<(u64, Draft)>,
    next_record: u64,
    /// Running clock of its commit.
    clock_ms: u64,
    /// Something of it could not be read.
    torn: bool,
}

impl Doubtful {
    fn read(
        disk: &dyn Disk,
        dir: &Path,
        (segment, scan): &(Segment, Scan),
        recovery: &mut Recovery,
    ) -> Result<Self, Error> {
        let mut doubtful = Self::default();
        let mut torn = None;
        if let Some(group) = scan.last {
            let offset = scan.footer.end;
            doubtful.next_record = group.next_record;
            doubtful.clock_ms = group.at.clock_ms;
            let good = each_good(&segment.file, offset, &group, |record| doubtful.take(record))?;
            let frames = (u64::from(group.controls) + group.tally.records).saturating_sub(good);
            torn = (frames > 0).then_some((frames, offset, group.extent()));
        }
        // A group whose header did not get to the disk, or rotted there, behind one that did.
        let written = segment.is_written_at(scan.end())?;
        let salvaged = (written || segment.header.recycled) && doubtful.salvage(segment, scan)?;
        if written || salvaged {
            // How long it was is not known.
            let length = if segment.header.recycled { TORN_RECYCLED } else { u64::MAX };
            torn = Some(torn.map_or((0, scan.end(), length), |(frames, offset, _)| (frames, offset, length)));
        }
        if let Some((frames, offset, length)) = torn {
            let kept_in = match keep_torn(disk, dir, segment, offset, length) {
                // They are only of use to whoever wants to look at them; the start must succeed.
                Err(Error::Full { .. }) => None,
                kept => Some(kept?),
            };
            recovery.torn = Some(Torn { frames, kept_in });
            doubtful.torn = true;
        }
        Ok(doubtful)
    }

    /// Takes what can be read behind the last group header that can; false when that is nothing.
    fn salvage(&mut self, segment: &Segment, scan: &Scan) -> Result<bool, Error> {
        let from = scan.end() + group::HEAD as u64;
        if from >= segment.length {
            return Ok(false);
        }
        let before = self.controls.len() + self.records.len();
        let first = self.next_record.max(scan.footer.next_record);
        let fit = (segment.length - from) / frame::HEAD as u64;
        let mut frames = segment.file.frames(from..segment.length, first..first.saturating_add(fit))?;
        let mut in_a_row = true;
        while let Some(frame) = frames.next() {
            let Ok(frame) = frame else {
                in_a_row = false;
                continue;
            };
            // A fact has no number that would show whether it was of this group. Behind the first block there may be
            // those of one that was refused; those that stand first in a row are of the last write.
            in_a_row &= !frame.head.is_record();
            if let Ok(record) = frame.record()
                && !frame.head.purged
                && (in_a_row || frame.head.is_record())
            {
                self.next_record = self.next_record.max(frame.head.number.saturating_add(1));
                self.take(record);
            }
        }
        Ok(self.controls.len() + self.records.len() > before)
    }

    fn take(&mut self, record: Record) {
        if record.envelope.kind.is_record() {
            self.records.push((record.number, Draft { envelope: record.envelope, payload: record.payload }));
        } else {
            self.controls.push(record);
        }
    }
}

fn is_zero(block: &[u8]) -> bool {
    static ZEROS: [u8; BLOCK_LEN] = [0; BLOCK_LEN];
    ZEROS.starts_with(block)
}

/// Copies a torn group of `length` bytes at most, as it lies there, to where it is out of the way.
fn keep_torn(disk: &dyn Disk, dir: &Path, segment: &Segment, offset: u64, length: u64) -> Result<PathBuf, Error> {
    let into = quarantine::make(disk, dir)?;
    let path = into.join(format!("{:016x}-{offset:x}.group", segment.header.segment));
    let file = match disk.create(&path) {
        // A start that was cut short had copied it already.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => disk.open(&path, true),
        other => other,
    };
    let file = file.map_err(|source| Error::io("create", &path, source))?;
    let mut written = Ok(());
    segment.file.each_block(offset, segment.length.min(offset.saturating_add(length)), |at, block| {
        // Blocks that were never written are left out; the copy has holes there.
        if !is_zero(block) {
            written = file.write_at(&[block], at - offset);
        }
        written.is_err()
    })?;
    if let Err(source) = written {
        // Half of it is of no use, and takes what is left. If this fails too, it is one of the files that go first.
        let _ = disk.remove(&path);
        return Err(Error::io("write", &path, source));
    }
    file.sync_all().map_err(|source| Error::sync(&path, source))?;
    disk.sync_dir(&into).map_err(|source| Error::sync(&into, source))?;
    Ok(path)
}

/// A segment with the footer that it has, or is to get.
#[derive(Debug)]
struct Closing {
    segment: Segment,
    footer: Footer,
    damage: Vec<Damage>,
}

impl Closing {
    fn info(&self) -> SegmentInfo {
        SegmentInfo::sealed(self.segment.header.stamp(), &self.footer, self.segment.length)
    }

    /// Whether there is nothing in it that anybody could miss: its facts are in the new checkpoint. Its sequences will be
    /// missing, which tells nothing as long as no record number is missing between its neighbours.
    fn is_void(&self, shared: &Shared) -> bool {
        let Footer { first_record, next_record, groups, .. } = self.footer;
        let segments = shared.lock();
        let at = segments.partition_point(|segment| segment.id < self.segment.header.segment);
        let before = at.checked_sub(1).map_or(first_record, |before| segments[before].next_record);
        let behind = segments.get(at + 1).map_or(next_record, |behind| behind.first_record);
        self.damage.is_empty() && (groups == 0 || before == behind)
    }
}

/// All segments, and where those that are still open will end.
fn plan(segments: Vec<Segment>, tail: Option<(Segment, Scan)>) -> Result<Vec<Closing>, Error> {
    let mut superseded_from = u64::MAX;
    let mut closings = Vec::with_capacity(segments.len() + 1);
    if let Some((segment, scan)) = tail {
        superseded_from = segment.header.first_sequence;
        closings.push(Closing { segment, footer: scan.footer, damage: scan.damage });
    }
    for mut segment in segments.into_iter().rev() {
        let first_sequence = segment.header.first_sequence;
        closings.push(match segment.footer.take() {
            Some(footer) => {
                segment.footer = Some(footer.clone());
                Closing { segment, footer, damage: Vec::new() }
            }
            None => {
                let mut scan = segment.scan(superseded_from)?;
                scan.settle_last(segment.length);
                Closing { segment, footer: scan.footer, damage: scan.damage }
            }
        });
        superseded_from = superseded_from.min(first_sequence);
    }
    closings.reverse();
    Ok(closings)
}

/// Seals what is still open. A segment that would hold no record then goes, with all the space that it was allotted: so
/// a daemon that is killed again and again on a full disk does not run out of what it keeps back.
fn close(disk: &dyn Disk, writer: &mut Writer, closings: &[Closing]) -> Result<(), Error> {
    let shared = writer.shared().clone();
    let mut removed = false;
    for closing in closings.iter().filter(|closing| closing.segment.footer.is_none()) {
        let path = &closing.segment.file.path;
        let id = closing.segment.header.segment;
        if closing.is_void(&shared) {
            writer.retire(path, &closing.info()).map_err(|source| Error::io("remove", path, source))?;
            shared.lock().retain(|entry| entry.id != id);
            removed = true;
            continue;
        }
        let file = disk.open(path, true).map_err(|source| Error::io("open", path, source))?;
        if closing.segment.header_lost {
            file.write_at(&[&closing.segment.header.encode()], 0).map_err(|source| Error::io("write", path, source))?;
        }
        let file_bytes = seal(&*file, path, closing.segment.header.stamp(), &closing.footer)?;
        if let Some(entry) = shared.lock().iter_mut().find(|entry| entry.id == id) {
            *entry = SegmentInfo { file_bytes, ..*entry };
        }
    }
    if removed { writer.sync_retired() } else { Ok(()) }
}

/// What is missing from the lowest record that anybody needs on, but for what was written off.
fn report_damage(closings: &[Closing], shared: &Shared, state: &State, recovery: &mut Recovery) {
    shared.known().write_off(&state.written_off);
    for closing in closings {
        recovery.damage.extend(closing.damage.iter().cloned());
        if closing.segment.header_lost {
            recovery.damage.push(Damage::of_facts(closing.segment.header.segment, 0));
        }
    }
    let missing = shared.missing(state.lowest_needed().unwrap_or(0));
    recovery.damage.extend(missing.into_iter().filter(|damage| !state.is_written_off(damage)));
    recovery.damage.iter().for_each(|damage| shared.note(damage));
}

/// Finishes the numbers that this start skips: a place then stands at a record that exists, or at the end.
fn finish_unused(state: &mut State, infos: &[SegmentInfo], doubtful: &Doubtful, next_record: u64) {
    let Some(mut unused) = infos.last().map(|info| info.next_record) else { return };
    for (number, _) in &doubtful.records {
        state.finish_unused(unused..*number);
        unused = number + 1;
    }
    state.finish_unused(unused..next_record);
}

/// The last checkpoint with everything behind it.
fn fold(closings: &[Closing], doubtful: &Doubtful, recovery: &mut Recovery) -> Result<State, Error> {
    let mut facts: Vec<Vec<Record>> = Vec::new();
    let mut clock_ms = doubtful.clock_ms;
    for closing in closings.iter().rev() {
        let (records, last_clock_ms) = read_facts(closing, recovery)?;
        clock_ms = clock_ms.max(closing.segment.header.created.clock_ms).max(last_clock_ms);
        let complete = records.first().is_some_and(|record| record.envelope.kind == Kind::Checkpoint);
        facts.push(records);
        if complete {
            break;
        }
    }
    let mut state = State::default();
    for record in facts.iter().rev().flatten() {
        clock_ms = clock_ms.max(record.envelope.clock_ms);
        apply(&mut state, record, State::apply, recovery);
    }
    let fold = if doubtful.torn { State::apply_in_doubt } else { State::apply };
    for record in &doubtful.controls {
        clock_ms = clock_ms.max(record.envelope.clock_ms);
        apply(&mut state, record, fold, recovery);
    }
    if doubtful.torn {
        doubtful.records.iter().filter_map(|(_, draft)| draft.envelope.source).for_each(|it| state.note_source(it));
    }
    state.clock_ms = state.clock_ms.max(clock_ms);
    Ok(state)
}

/// The controls and checkpoints of a segment, in order, and the running clock of its last group.
fn read_facts(closing: &Closing, recovery: &mut Recovery) -> Result<(Vec<Record>, u64), Error> {
    let file = &closing.segment.file;
    let info = closing.info();
    let mut facts = Facts::default();
    let mut clock_ms = 0;
    let mut parts = info.parts();
    while let Some(part) = parts.next(file)? {
        match part {
            Part::Group(at, group) => {
                clock_ms = group.at.clock_ms;
                if group.controls > 0 && facts.take(file.facts(at, &group)?) < u64::from(group.controls) {
                    recovery.damage.push(Damage::of_facts(info.id, at));
                }
            }
            Part::Stretch(stretch) => {
                // How many there were, the header of their group said.
                facts.take(file.frames(stretch.bytes, stretch.records)?);
            }
        }
    }
    Ok((facts.good, clock_ms))
}

/// Controls and checkpoints in order.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) good: Vec<Record>,
}

impl Facts {
    /// Takes those that can be read, and says how many that are.
    pub(super) fn take(&mut self, mut frames: Frames) -> u64 {
        let before = self.good.len();
        while let Some(frame) = frames.next() {
            if let Some(record) =
                frame.ok().filter(|frame| !frame.head.is_record()).and_then(|frame| frame.record().ok())
            {
                self.good.push(record);
            }
        }
        (self.good.len() - before) as u64
    }
}

fn apply(state: &mut State, record: &Record, fold: fn(&mut State, &Control), recovery: &mut Recovery) {
    let applied = match record.envelope.kind {
        Kind::Checkpoint => State::decode(&record.payload).map(|checkpoint| *state = checkpoint),
        _ => Control::decode(&record.payload).map(|controls| controls.iter().for_each(|control| fold(state, control))),
    };
    if applied.is_err() {
        recovery.damage.push(Damage::of_facts(0, 0));
    }
}
