//! What a start does: find the end, trust only what is known to be on disk, and begin a new segment.
//!
//! A group is written only after the sync of the one before it returned. So the last group of the last segment is the
//! only one of which it is not known whether it is on disk, even when it can be read: after a failed sync the page
//! cache shows what the disk does not hold. Its good records are written again into the new segment and synced; only
//! then the old segment is closed before them. The rewritten group has the sequence of the doubtful one: whatever has
//! this sequence or a higher one in an older segment is superseded.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::scan::{Found, Frames, Groups, SegmentFile};
use super::writer::{Start, Writer, seal};
use super::{Damage, Draft, Inspected, Opened, Options, SegmentInfo, Shared};
use crate::disk::Disk;
use crate::envelope::Kind;
use crate::frame::{self, Record};
use crate::group::Group;
use crate::segment::{self, BLOCK, BLOCK_LEN, BadHeader, Ends, Footer, Header, Stamp};
use crate::state::{Control, State};
use crate::{Error, Now, Stream};

/// Where torn groups are kept, beside the segments.
const QUARANTINE: &str = "quarantine";

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
    /// Where the bytes were put.
    pub kept_in: PathBuf,
}

pub(super) fn open(disk: Arc<dyn Disk>, dir: &Path, options: Options, wall_ns: u64) -> Result<Opened, Error> {
    let mut recovery = Recovery::default();
    make_dir(&*disk, dir)?;
    let mut found = find(&*disk, dir, options, &mut recovery)?;
    // Only now, when it is known that no file is of a newer format, the first change.
    for path in &found.unfinished {
        disk.remove(path).map_err(|source| Error::io("remove", path, source))?;
    }
    let highest_id = found.highest_id;
    let highest_epoch = found.segments.iter().map(|segment| segment.header.epoch).max().unwrap_or(0);

    recovery.clean = found.segments.last().is_none_or(|segment| segment.footer.is_some());
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
    report_damage(&closings, &infos, state.lowest_needed().unwrap_or(0), &mut recovery);

    let lost = found.lost;
    let next_record = infos.iter().map(|info| info.next_record).max().unwrap_or(1).saturating_add(lost.records);
    let next_record = [next_record, options.record_floor, doubtful.next_record]
        .into_iter()
        .chain(state.accounts.values().map(crate::Account::seen))
        .fold(1, u64::max);
    let sequence = infos.iter().map(|info| info.next_sequence).max().unwrap_or(1).saturating_add(lost.groups);

    let shared = Shared::new(Arc::clone(&disk), dir.to_path_buf(), infos);
    recovery.rewritten = doubtful.records.len() as u64;
    // The wall clock makes it unknown beforehand to whoever sends payloads, so that none can hold bytes with valid
    // checksums of this journal.
    let epoch = highest_epoch.saturating_add(1).max(wall_ns);
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
    let writer = Writer::begin(shared.clone(), options, start)?;
    // Only now: until the rewritten records were synced, the old segments held their only copy.
    close(&*disk, dir, &shared, &closings)?;
    Ok(Opened { writer, shared, state, recovery })
}

/// Reads what [`open`] would find, and changes nothing. The last group counts as it can be read now.
pub(super) fn inspect(disk: Arc<dyn Disk>, dir: &Path, options: Options) -> Result<Inspected, Error> {
    let mut recovery = Recovery::default();
    let mut found = find(&*disk, dir, options, &mut recovery)?;
    let mut tail = take_tail(&mut found.segments, &mut |_| Ok(()))?;
    if let Some((segment, scan)) = &mut tail {
        scan.settle_last(segment.length);
    }
    let closings = plan(found.segments, tail)?;
    let infos: Vec<SegmentInfo> = closings.iter().map(Closing::info).collect();
    let state = fold(&closings, &Doubtful::default(), &mut recovery)?;
    report_damage(&closings, &infos, state.lowest_needed().unwrap_or(0), &mut recovery);
    Ok(Inspected { shared: Shared::new(disk, dir.to_path_buf(), infos), state, damage: recovery.damage })
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
        match Segment::open(disk, &path, id, options)? {
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
    let unfinished = names.iter().filter(|name| segment::is_unfinished(name)).map(|name| dir.join(name)).collect();
    Ok(FoundSegments { segments, highest_id: ids.last().copied().unwrap_or(0), unfinished, lost })
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
        let ends = segment::read_ends(&*file, path)?;
        let length = ends.length;
        let mut file =
            SegmentFile { file: file.into(), path: path.to_path_buf(), stamp: Stamp { segment: id, epoch: 0 } };
        let (header, header_lost) = match ends.header {
            Ok(header) => (Some(header), false),
            Err(BadHeader::Newer(version)) => return Err(Error::Newer { path: path.to_path_buf(), version }),
            Err(BadHeader::Damaged) => (header_from_rest(&file, &ends, options)?, true),
        };
        Ok(match header.filter(|header| header.segment == id && header.stream == options.stream) {
            Some(header) => {
                file.stamp = header.stamp();
                Opening::Readable(Box::new(Self { header, header_lost, footer: ends.footer, length, file }))
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
            if let Some((offset, records)) = lost {
                scan.damage.push(Damage { segment: self.header.segment, records, offset });
                scan.footer.next_sequence = group.sequence;
                scan.footer.next_record = group.first_record;
            }
            scan.footer.end = at;
            scan.last = Some(group);
        }
        Ok(scan)
    }

    /// Whether there are bytes where the next group would begin, at `offset`, other than a footer's.
    fn is_written_at(&self, offset: u64) -> Result<bool, Error> {
        let mut written = false;
        self.file.each_block(offset, self.length.min(offset.saturating_add(BLOCK)), |_, block| {
            written = !is_zero(block) && !Footer::begins(block);
            true
        })?;
        Ok(written)
    }
}

/// What the header block said, from the footer or else from the first group that can be read: both repeat it.
fn header_from_rest(file: &SegmentFile, ends: &Ends, options: Options) -> Result<Option<Header>, Error> {
    if let (Some(footer), Some(stamp)) = (&ends.footer, ends.named) {
        let Footer { first_record, first_sequence, created, .. } = *footer;
        let Stamp { segment, epoch } = stamp;
        return Ok(Some(Header { stream: options.stream, segment, epoch, first_record, first_sequence, created }));
    }
    let mut header = None;
    file.each_block(BLOCK, ends.length, |at, block| {
        let stamp = Group::named_stamp(block).filter(|stamp| stamp.segment == file.stamp.segment);
        header = stamp.and_then(|stamp| {
            let group = Group::decode(block, stamp, at)?;
            let Stamp { segment, epoch } = stamp;
            let Group { first_record, sequence: first_sequence, at: created, .. } = group;
            // Groups before this one are lost with the header: the walk begins with a sequence that skips to it.
            let first_sequence = first_sequence.saturating_sub((at - BLOCK) / BLOCK);
            Some(Header { stream: options.stream, segment, epoch, first_record, first_sequence, created })
        });
        header.is_some()
    })?;
    Ok(header)
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
    let mut good = 0;
    each_good(file, offset, group, |_| good += 1)?;
    Ok(good == u64::from(group.controls) + group.tally.records)
}

/// Shows every frame of a group that can be read.
fn each_good(file: &SegmentFile, offset: u64, group: &Group, mut show: impl FnMut(Record)) -> Result<(), Error> {
    let mut walk = |mut frames: Frames| {
        while let Some(frame) = frames.next() {
            // One that can't be read is missing in the caller's count.
            if let Ok(record) = frame.and_then(|frame| frame.record()) {
                show(record);
            }
        }
    };
    walk(file.facts(offset, group)?);
    walk(file.records(offset, group)?);
    Ok(())
}

/// What could be read of a last group of which it is not known whether it is on disk.
#[derive(Debug, Default)]
struct Doubtful {
    controls: Vec<Record>,
    records: Vec<(u64, Draft)>,
    next_record: u64,
    /// Running clock of its commit.
    clock_ms: u64,
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
            each_good(&segment.file, offset, &group, |record| doubtful.take(record))?;
            let good = (doubtful.controls.len() + doubtful.records.len()) as u64;
            let frames = (u64::from(group.controls) + group.tally.records).saturating_sub(good);
            torn = (frames > 0).then_some((frames, offset, group.extent()));
        }
        // A group whose header did not get to the disk, behind one that did.
        if torn.is_none() && segment.is_written_at(scan.end())? {
            torn = Some((0, scan.end(), u64::MAX));
        }
        if let Some((frames, offset, length)) = torn {
            let kept_in = quarantine(disk, dir, segment, offset, length)?;
            recovery.torn = Some(Torn { frames, kept_in });
        }
        Ok(doubtful)
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
fn quarantine(disk: &dyn Disk, dir: &Path, segment: &Segment, offset: u64, length: u64) -> Result<PathBuf, Error> {
    let into = dir.join(QUARANTINE);
    disk.create_dir(&into).map_err(|source| Error::io("create", &into, source))?;
    disk.sync_dir(dir).map_err(|source| Error::sync(dir, source))?;
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
    written.map_err(|source| Error::io("write", &path, source))?;
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

    /// Whether there is nothing in it that anybody could miss.
    fn is_void(&self) -> bool {
        self.footer.groups == 0 && self.damage.is_empty()
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

/// Seals what is still open, and removes what would be an empty segment then.
fn close(disk: &dyn Disk, dir: &Path, shared: &Shared, closings: &[Closing]) -> Result<(), Error> {
    let mut removed = false;
    for closing in closings.iter().filter(|closing| closing.segment.footer.is_none()) {
        let path = &closing.segment.file.path;
        let id = closing.segment.header.segment;
        if closing.is_void() {
            disk.remove(path).map_err(|source| Error::io("remove", path, source))?;
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
    if removed {
        disk.sync_dir(dir).map_err(|source| Error::sync(dir, source))?;
    }
    Ok(())
}

/// What is missing from the lowest record that anybody needs on.
fn report_damage(closings: &[Closing], infos: &[SegmentInfo], lowest: u64, recovery: &mut Recovery) {
    for closing in closings {
        recovery.damage.extend(closing.damage.iter().cloned());
        if closing.segment.header_lost {
            recovery.damage.push(damaged_fact(closing.segment.header.segment, 0));
        }
    }
    for pair in infos.windows(2) {
        let missing = pair[0].missing_behind(&pair[1]);
        let records = missing.start.max(lowest)..missing.end;
        if !records.is_empty() {
            recovery.damage.push(Damage { segment: pair[1].id, records, offset: 0 });
        }
    }
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
    for record in facts.iter().rev().flatten().chain(&doubtful.controls) {
        clock_ms = clock_ms.max(record.envelope.clock_ms);
        apply(&mut state, record, recovery);
    }
    state.clock_ms = state.clock_ms.max(clock_ms);
    Ok(state)
}

/// The controls and checkpoints of a segment, in order, and the running clock of its last group.
fn read_facts(closing: &Closing, recovery: &mut Recovery) -> Result<(Vec<Record>, u64), Error> {
    let file = &closing.segment.file;
    let mut facts = Vec::new();
    let mut clock_ms = 0;
    let mut groups = closing.info().groups();
    while let Some(Found { at, group, .. }) = groups.next(file)? {
        clock_ms = group.at.clock_ms;
        if group.controls > 0 {
            let mut frames = file.facts(at, &group)?;
            let mut good = 0;
            while let Some(frame) = frames.next() {
                if let Ok(record) = frame.and_then(|frame| frame.record()) {
                    good += 1;
                    facts.push(record);
                }
            }
            if good < group.controls {
                recovery.damage.push(damaged_fact(closing.segment.header.segment, at));
            }
        }
    }
    Ok((facts, clock_ms))
}

fn damaged_fact(segment: u64, offset: u64) -> Damage {
    Damage { segment, records: 0..0, offset }
}

fn apply(state: &mut State, record: &Record, recovery: &mut Recovery) {
    let applied = match record.envelope.kind {
        Kind::Checkpoint => State::decode(&record.payload).map(|checkpoint| *state = checkpoint),
        _ => Control::decode(&record.payload).map(|controls| controls.iter().for_each(|control| state.apply(control))),
    };
    if applied.is_err() {
        recovery.damage.push(damaged_fact(0, 0));
    }
}
