//! What a start does: find the end, trust only what is known to be on disk, and begin a new segment.
//!
//! A group is written only after the sync of the one before it returned. So the last group of the last segment is the
//! only one of which it is not known whether it is on disk, even when it can be read: after a failed sync the page
//! cache shows what the disk does not hold. Its good records are written again into the new segment and synced; then
//! the old segment is closed before them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::scan::SegmentFile;
use super::writer::{Start, Writer, seal};
use super::{Damage, Draft, Opened, Options, SegmentInfo, Shared};
use crate::disk::Disk;
use crate::envelope::Kind;
use crate::frame::Record;
use crate::group::Group;
use crate::segment::{self, BLOCK, BadHeader, Ends, Footer, Header, Stamp};
use crate::state::{Control, State};
use crate::{Error, Now};

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
    /// Segments whose header can't be read and that are left out; the files stay as they are.
    pub unreadable: Vec<PathBuf>,
}

/// A last group that is not whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// Frames that could not be read.
    pub frames: u64,
    /// Where the bytes were put.
    pub kept_in: PathBuf,
}

pub(super) fn open(disk: Arc<dyn Disk>, dir: &Path, options: Options, wall_ns: u64) -> Result<Opened, Error> {
    let mut recovery = Recovery::default();
    make_dir(&*disk, dir)?;
    let mut found = find(&*disk, dir, options, &mut recovery)?;
    let highest_id = found.highest_id;
    let highest_epoch = found.segments.iter().map(|segment| segment.header.epoch).max().unwrap_or(0);

    let tail = take_tail(&*disk, dir, &mut found.segments, &mut recovery)?;
    let doubtful = match &tail {
        Some(tail) => Doubtful::read(&*disk, dir, tail, &mut recovery)?,
        None => Doubtful::default(),
    };
    recovery.clean = tail.is_none();

    let infos = close_earlier(&*disk, &found.segments, tail.as_ref())?;
    let state = fold(&found.segments, tail.as_ref(), &doubtful.controls, &mut recovery)?;
    let next_record = infos
        .iter()
        .map(|info| info.next_record)
        .chain([1, options.record_floor, doubtful.next_record])
        .chain(state.accounts.values().map(|account| account.place))
        .max()
        .unwrap_or(1);
    let sequence =
        found.segments.iter().filter_map(|segment| segment.footer.as_ref()).map(|footer| footer.next_sequence);
    let sequence = sequence.chain(tail.as_ref().map(|(_, scan)| scan.next_sequence())).max().unwrap_or(1);

    let shared = Shared::new(Arc::clone(&disk), dir.to_path_buf(), infos);
    recovery.rewritten = doubtful.records.len() as u64;
    let start = Start {
        segment: highest_id + 1,
        epoch: highest_epoch + 1,
        sequence,
        next_record,
        now: Now { wall_ns, clock_ms: state.clock_ms },
        state: state.clone(),
        rewrite: doubtful.records,
    };
    let writer = Writer::begin(shared.clone(), options, start)?;
    if let Some((segment, scan)) = &tail {
        // Only now: until the rewritten records were synced, the old segment was their only copy.
        segment.close(&*disk, &shared, &scan.footer)?;
    }
    Ok(Opened { writer, shared, state, recovery })
}

/// Creates `dir` and makes that durable.
fn make_dir(disk: &dyn Disk, dir: &Path) -> Result<(), Error> {
    disk.create_dir(dir).map_err(|source| Error::io("create", dir, source))?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => {
            disk.sync_dir(parent).map_err(|source| Error::sync(parent, source))
        }
        _ => Ok(()),
    }
}

#[derive(Debug)]
struct Found {
    /// Readable ones, ascending.
    segments: Vec<Segment>,
    highest_id: u64,
}

/// A segment file as it lies there.
#[derive(Debug)]
struct Segment {
    header: Header,
    /// Present when it was sealed.
    footer: Option<Footer>,
    length: u64,
    file: SegmentFile,
}

fn find(disk: &dyn Disk, dir: &Path, options: Options, recovery: &mut Recovery) -> Result<Found, Error> {
    let names = disk.list(dir).map_err(|source| Error::io("list", dir, source))?;
    let mut ids: Vec<u64> = names.iter().filter_map(|name| segment::parse_name(name)).collect();
    ids.sort_unstable();
    let mut segments = Vec::with_capacity(ids.len());
    for &id in &ids {
        let path = segment::path(dir, id);
        match Segment::open(disk, &path, id, options)? {
            Some(segment) => segments.push(segment),
            None => recovery.unreadable.push(path),
        }
    }
    // Only now, when it is known that no file is of a newer format, the first change.
    for name in names.iter().filter(|name| segment::is_unfinished(name)) {
        let path = dir.join(name);
        disk.remove(&path).map_err(|source| Error::io("remove", &path, source))?;
    }
    Ok(Found { segments, highest_id: ids.last().copied().unwrap_or(0) })
}

impl Segment {
    fn open(disk: &dyn Disk, path: &Path, id: u64, options: Options) -> Result<Option<Self>, Error> {
        let file = disk.open(path, false).map_err(|source| Error::io("open", path, source))?;
        let Ends { header, footer, length } = segment::read_ends(&*file, path)?;
        let of = |stamp| SegmentFile { file: file.into(), path: path.to_path_buf(), stamp };
        let header = match header {
            Ok(header) if header.segment == id && header.stream == options.stream => header,
            Err(BadHeader::Newer(version)) => return Err(Error::Newer { path: path.to_path_buf(), version }),
            _ => return Ok(None),
        };
        Ok(Some(Self { header, footer, length, file: of(header.stamp()) }))
    }

    /// Hops over the group headers up to the end, leaving out what `superseded_from` and later records are.
    fn scan(&self, superseded_from: u64) -> Result<Scan, Error> {
        let mut scan = Scan {
            footer: Footer::empty(self.header.first_record, self.header.first_sequence),
            last: None,
            damage: Vec::new(),
        };
        let mut offset = BLOCK;
        while let Some((at, group)) = self.file.group_at_or_behind(offset, self.length)? {
            if group.tally.records > 0 && group.first_record >= superseded_from {
                break;
            }
            scan.settle_last(self.length);
            if at != offset {
                let records = scan.footer.next_record..group.first_record;
                scan.damage.push(Damage { segment: self.header.segment, records, offset });
            }
            scan.footer.end = at;
            scan.last = Some(group);
            offset = at + group.extent();
        }
        Ok(scan)
    }

    /// Ends the segment behind the groups that `footer` counts.
    fn close(&self, disk: &dyn Disk, shared: &Shared, footer: &Footer) -> Result<(), Error> {
        let info = self.seal(disk, footer)?;
        if let Some(entry) = shared.lock().iter_mut().find(|entry| entry.id == info.id) {
            *entry = info;
        }
        Ok(())
    }

    fn seal(&self, disk: &dyn Disk, footer: &Footer) -> Result<SegmentInfo, Error> {
        let path = &self.file.path;
        let file = disk.open(path, true).map_err(|source| Error::io("open", path, source))?;
        let file_bytes = seal(&*file, path, self.stamp(), footer)?;
        Ok(SegmentInfo::sealed(self.stamp(), footer, file_bytes))
    }

    fn stamp(&self) -> Stamp {
        self.header.stamp()
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

    fn next_sequence(&self) -> u64 {
        self.last.map_or(self.footer.next_sequence, |group| group.sequence + 1)
    }
}

/// The segment that was being written when the journal was not closed in order, taken off the list's end, with its
/// scan. `None` after a clean stop.
fn take_tail(
    disk: &dyn Disk,
    dir: &Path,
    segments: &mut Vec<Segment>,
    recovery: &mut Recovery,
) -> Result<Option<(Segment, Scan)>, Error> {
    while let Some(last) = segments.pop_if(|segment| segment.footer.is_none()) {
        let scan = last.scan(u64::MAX)?;
        let first_group_whole = match scan.last {
            Some(group) if scan.footer.groups == 0 => whole(&last.file, scan.footer.end, &group)?,
            Some(_) => true,
            None => false,
        };
        let predecessor_open = segments.last().is_some_and(|segment| segment.footer.is_none());
        let empty = scan.last.is_none() && scan.damage.is_empty();
        if first_group_whole || !(predecessor_open || empty) {
            recovery.damage.extend(scan.damage.iter().cloned());
            return Ok(Some((last, scan)));
        }
        // A segment whose first group was never synced: nobody was told of anything in it. What a recovery was
        // writing again into it is still where it was, because the segment before is closed only afterwards.
        let path = &last.file.path;
        disk.remove(path).map_err(|source| Error::io("remove", path, source))?;
        disk.sync_dir(dir).map_err(|source| Error::sync(dir, source))?;
    }
    Ok(None)
}

/// Whether every frame of a group can be read.
fn whole(file: &SegmentFile, offset: u64, group: &Group) -> Result<bool, Error> {
    let mut frames = file.frames(offset, group)?;
    let mut good = 0;
    while let Some(frame) = frames.next() {
        match frame.and_then(|frame| frame.record()) {
            Ok(_) => good += 1,
            Err(_) => return Ok(false),
        }
    }
    Ok(good == u64::from(group.controls) + group.tally.records)
}

/// What could be read of a last group of which it is not known whether it is on disk.
#[derive(Debug, Default)]
struct Doubtful {
    controls: Vec<Record>,
    records: Vec<(u64, Draft)>,
    next_record: u64,
}

impl Doubtful {
    fn read(
        disk: &dyn Disk,
        dir: &Path,
        (segment, scan): &(Segment, Scan),
        recovery: &mut Recovery,
    ) -> Result<Self, Error> {
        let Some(group) = scan.last else { return Ok(Self::default()) };
        let offset = scan.footer.end;
        let mut doubtful = Self { next_record: group.next_record, ..Self::default() };
        let mut frames = segment.file.frames(offset, &group)?;
        while let Some(frame) = frames.next() {
            // A frame that can't be read is counted below, as one that is missing.
            let Ok(record) = frame.and_then(|frame| frame.record()) else { continue };
            if record.envelope.kind.is_record() {
                doubtful.records.push((record.number, Draft { envelope: record.envelope, payload: record.payload }));
            } else {
                doubtful.controls.push(record);
            }
        }
        let good = (doubtful.controls.len() + doubtful.records.len()) as u64;
        let frames = (u64::from(group.controls) + group.tally.records).saturating_sub(good);
        if frames > 0 {
            let kept_in = quarantine(disk, dir, segment, offset, group.extent())?;
            recovery.torn = Some(Torn { frames, kept_in });
        }
        Ok(doubtful)
    }
}

/// Copies a torn group, as it lies there, to where it is out of the way.
fn quarantine(disk: &dyn Disk, dir: &Path, segment: &Segment, offset: u64, length: u64) -> Result<PathBuf, Error> {
    let into = dir.join(QUARANTINE);
    make_dir(disk, &into)?;
    let path = into.join(format!("{:016x}-{offset:x}.group", segment.header.segment));
    let length = usize::try_from(length.min(segment.length - offset)).unwrap_or(0);
    let mut bytes = vec![0; length];
    let read = segment.file.file.read_at(&mut bytes, offset);
    let filled = read.map_err(|source| Error::io("read", &segment.file.path, source))?;
    let file = match disk.create(&path) {
        // A start that was cut short had copied it already.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => disk.open(&path, true),
        other => other,
    };
    let file = file.map_err(|source| Error::io("create", &path, source))?;
    file.write_at(&[&bytes[..filled]], 0).map_err(|source| Error::io("write", &path, source))?;
    file.sync_all().map_err(|source| Error::sync(&path, source))?;
    disk.sync_dir(&into).map_err(|source| Error::sync(&into, source))?;
    Ok(path)
}

/// The catalogue: all segments, those that a start left open closed again.
fn close_earlier(
    disk: &dyn Disk,
    segments: &[Segment],
    tail: Option<&(Segment, Scan)>,
) -> Result<Vec<SegmentInfo>, Error> {
    // A segment with records of its own supersedes what earlier ones hold from its first record on.
    let tail_first = tail.map_or(u64::MAX, |(segment, _)| segment.header.first_record);
    let mut superseded_from = tail_first;
    let mut infos = Vec::with_capacity(segments.len() + 2);
    for segment in segments.iter().rev() {
        infos.push(match &segment.footer {
            Some(footer) => SegmentInfo::sealed(segment.stamp(), footer, segment.length),
            None => {
                let mut scan = segment.scan(superseded_from)?;
                scan.settle_last(segment.length);
                segment.seal(disk, &scan.footer)?
            }
        });
        superseded_from = superseded_from.min(segment.header.first_record);
    }
    infos.reverse();
    if let Some((segment, scan)) = tail {
        let info = SegmentInfo::sealed(segment.stamp(), &scan.footer, segment.length);
        infos.push(info);
    }
    Ok(infos)
}

/// The last checkpoint with everything behind it.
fn fold(
    segments: &[Segment],
    tail: Option<&(Segment, Scan)>,
    doubtful: &[Record],
    recovery: &mut Recovery,
) -> Result<State, Error> {
    let mut all: Vec<(&Segment, u64)> = segments
        .iter()
        .map(|segment| (segment, segment.footer.as_ref().map_or(segment.length, |footer| footer.end)))
        .collect();
    all.extend(tail.map(|(segment, scan)| (segment, scan.footer.end)));
    let mut facts: Vec<Vec<Record>> = Vec::new();
    let mut clock_ms = 0;
    for (segment, end) in all.iter().rev() {
        let (records, last_clock_ms) = read_facts(segment, *end, recovery)?;
        clock_ms = clock_ms.max(segment.header.created.clock_ms).max(last_clock_ms);
        let complete = records.first().is_some_and(|record| record.envelope.kind == Kind::Checkpoint);
        facts.push(records);
        if complete {
            break;
        }
    }
    let mut state = State::default();
    for record in facts.iter().rev().flatten().chain(doubtful) {
        clock_ms = clock_ms.max(record.envelope.clock_ms);
        apply(&mut state, record, recovery);
    }
    state.clock_ms = state.clock_ms.max(clock_ms);
    Ok(state)
}

/// The controls and checkpoints of a segment, in order, and the running clock of its last group.
fn read_facts(segment: &Segment, end: u64, recovery: &mut Recovery) -> Result<(Vec<Record>, u64), Error> {
    let mut facts = Vec::new();
    let mut clock_ms = 0;
    let mut offset = BLOCK;
    while let Some((at, group)) = segment.file.group_at_or_behind(offset, end)? {
        clock_ms = group.at.clock_ms;
        if group.controls > 0 {
            let mut frames = segment.file.controls(at, &group)?;
            while let Some(frame) = frames.next() {
                match frame.and_then(|frame| frame.record()) {
                    Ok(record) => facts.push(record),
                    Err(_) => recovery.damage.push(damaged_fact(segment.header.segment, at)),
                }
            }
        }
        offset = at + group.extent();
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
