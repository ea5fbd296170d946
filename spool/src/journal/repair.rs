//! Making a damaged journal whole: what can be read is kept under its numbers, what can't is written off.
//!
//! First the losses are noted in the journal, synced. Only then each damaged segment is replaced: the clean one is written
//! and synced under another name, the damaged one gets a second name in `quarantine/`, and the clean one takes its place in
//! one step. A repair that is cut short can be begun again at any point: what is written off is not lost twice.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::pieces::{self, Piece};
use super::salvage::{self, Contents};
use super::scan::{Reading, SegmentFile, Stretch};
use super::writer::{padding, seal};
use super::{Journal, Options, SegmentInfo, Shared, Watch, quarantine};
use crate::disk::lossy::Lossy;
use crate::disk::{Disk, DiskFile};
use crate::frame::{self, Record, Staged};
use crate::group::{self, Group, Span};
use crate::segment::{self, BLOCK, Footer, Header, Stamp};
use crate::state::Control;
use crate::{Damage, Error, Now, Tally};

/// How much is copied at once.
const COPY_BYTES: usize = 1 << 20;

/// Bytes between two entries of a footer's index.
const INDEX_SPACING: u64 = 1 << 20;

/// What a repair did.
#[derive(Debug, Default)]
pub struct Repaired {
    /// Segments that were replaced.
    pub segments: Vec<RepairedSegment>,
    /// What could not be read, and is written off now.
    pub lost: Vec<Damage>,
}

/// A segment that was replaced by a clean one.
#[derive(Debug)]
pub struct RepairedSegment {
    /// Its number.
    pub segment: u64,
    /// What is in the clean one.
    pub kept: Tally,
    /// What could not be read. An entry without records is a header, a footer or a fact.
    pub damage: Vec<Damage>,
    /// Where the damaged one is.
    pub kept_in: PathBuf,
}

/// Repairs the journal in `dir`, which no writer has open. Changes nothing when all is whole.
///
/// # Errors
/// As [`Journal::open`]. What was repaired until then stays so; the same can be tried again.
pub fn repair(disk: Arc<dyn Disk>, dir: &Path, options: Options, wall_ns: u64) -> Result<Repaired, Error> {
    let before = salvage::verify(Arc::clone(&disk), dir, options, Watch::AtRest)?;
    let is_begun = before.segments.iter().any(|segment| segment.written_off != Tally::default());
    if before.is_whole() && !is_begun {
        return Ok(Repaired::default());
    }
    let opened = Journal::open(Arc::clone(&disk), dir, options, wall_ns)?;
    let (mut writer, shared, mut state) = (opened.writer, opened.shared, opened.state);
    let now = Now { wall_ns, clock_ms: state.clock_ms };
    let job = Job { disk: &*disk, dir, options, shared: &shared };

    let mut repaired = Repaired::default();
    let mut clean = Vec::new();
    for path in &opened.recovery.unreadable {
        job.revive(path)?;
    }
    for info in shared.segments().into_iter().filter(|info| info.sealed) {
        let file = SegmentFile::open(&shared, &info, Reading::Lossy)?;
        let damage = salvage::look_at(&file, &info, options)?.damage;
        if !damage.is_empty() {
            repaired.lost.extend(damage.iter().filter(|damage| !damage.records.is_empty()).cloned());
            clean.push((info, damage));
        }
    }
    repaired.lost.extend(shared.missing(state.lowest_needed().unwrap_or(0)));
    repaired.lost.retain(|damage| !state.is_written_off(damage));
    for damage in &repaired.lost {
        let control =
            Control::WrittenOff { segment: damage.segment, records: damage.records.clone(), tally: damage.tally() };
        state.apply(&control);
        writer.stage_control(&control, now);
    }
    writer.commit(now, &mut || state.clone())?;
    for (info, damage) in clean {
        let (kept, kept_in) = job.replace(&info)?;
        repaired.segments.push(RepairedSegment { segment: info.id, kept, damage, kept_in });
    }
    writer.close(now, &state)?;
    Ok(repaired)
}

/// The journal that is being repaired.
struct Job<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    options: Options,
    shared: &'a Shared,
}

impl Job<'_> {
    /// Looks for records in a segment of which neither header nor footer nor a group header can be read. Their checksums
    /// need the epoch, which is that of another segment, most likely of a neighbour. If there are none, the file is put
    /// aside.
    fn revive(&self, path: &Path) -> Result<(), Error> {
        let Some(id) = path.file_name().and_then(|name| segment::parse_name(name.to_str()?)) else { return Ok(()) };
        let segments = self.shared.segments();
        let at = segments.partition_point(|segment| segment.id < id);
        let Some(next) = segments.get(at) else { return Ok(()) };
        let before = at.checked_sub(1).map(|before| segments[before]);
        let first_record = before.map_or(1, |before| before.next_record);
        let mut epochs: Vec<(u64, u64)> = segments.iter().map(|other| (other.id.abs_diff(id), other.epoch)).collect();
        epochs.sort_unstable();
        epochs.dedup_by_key(|(_, epoch)| *epoch);

        let file = self.disk.open(path, false).map_err(|source| Error::io("open", path, source))?;
        let file_bytes = file.length().map_err(|source| Error::io("read", path, source))?;
        let file: Arc<dyn DiskFile> = file.into();
        for (_, epoch) in epochs {
            let stamp = Stamp { segment: id, epoch };
            let file = SegmentFile { file: Arc::clone(&file), path: path.to_path_buf(), stamp, _lease: None }.lossy();
            let stretch =
                Stretch { bytes: BLOCK.min(file_bytes)..file_bytes, records: first_record..next.first_record };
            let pieces = pieces::in_uncounted(&file, &stretch)?;
            let last = pieces.iter().rev().find_map(|piece| match piece {
                Piece::Record(record) => Some(record.number),
                _ => None,
            });
            let Some(last) = last else { continue };
            // The numbers behind the last segment were skipped by the start, because nothing was known of it.
            let next_record = if next.sealed { next.first_record } else { last + 1 };
            let pieces = pieces.iter().filter(|piece| piece.first_number() < next_record);
            let info = SegmentInfo {
                id,
                first_record,
                next_record,
                tally: pieces.fold(Tally::default(), |sum, piece| sum.plus(piece.tally_below(next_record))),
                file_bytes,
                wall_ns: Span::default().wall_ns,
                clock_ms: Span::default().clock_ms,
                sealed: true,
                epoch,
                end: file_bytes,
                first_sequence: before.map_or(next.first_sequence, |before| before.next_sequence),
                next_sequence: next.first_sequence,
            };
            self.shared.lock().insert(at, info);
            return Ok(());
        }
        let kept_in = self.keep_aside(path, id)?;
        self.disk.remove(path).map_err(|source| Error::io("remove", path, source))?;
        self.disk.sync_dir(self.dir).map_err(|source| Error::sync(&kept_in, source))
    }

    /// Puts a clean segment in the place of a damaged one. Returns what is in it, and where the damaged one is.
    fn replace(&self, info: &SegmentInfo) -> Result<(Tally, PathBuf), Error> {
        let damaged = SegmentFile::open(self.shared, info, Reading::Lossy)?;
        let unfinished = segment::path_unfinished(self.dir, info.id);
        let path = segment::path(self.dir, info.id);
        let made = self.make_clean(&damaged, info, &unfinished).and_then(|kept| {
            let kept_in = self.keep_aside(&path, info.id)?;
            self.disk.rename(&unfinished, &path).map_err(|source| Error::io("rename", &unfinished, source))?;
            Ok((kept, kept_in))
        });
        if made.is_err() {
            // If this fails too, the next start removes it.
            let _ = self.disk.remove(&unfinished);
        }
        let made = made?;
        self.disk.sync_dir(self.dir).map_err(|source| Error::sync(self.dir, source))?;
        Ok(made)
    }

    fn make_clean(&self, damaged: &SegmentFile, info: &SegmentInfo, path: &Path) -> Result<Tally, Error> {
        match self.disk.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", path, error)),
            _ => {}
        }
        let ends = segment::read_ends(&*damaged.file, &damaged.path)?;
        let created = ends.header.map(|header| header.created).ok().or(ends.footer.map(|footer| footer.created));
        let header = Header {
            stream: self.options.stream,
            segment: info.id,
            epoch: info.epoch,
            first_record: info.first_record,
            first_sequence: info.first_sequence,
            created: created.unwrap_or_default(),
            recycled: false,
            relaxed: false,
        };
        let file = self.disk.create(path).map_err(|source| Error::io("create", path, source))?;
        file.write_at(&[&header.encode()], 0).map_err(|source| Error::io("write", path, source))?;
        let mut clean =
            Clean { file: &*file, path, stamp: header.stamp(), footer: Footer::empty(&header), at: header.created };
        salvage::each_part(damaged, info, |part| clean.put(part))?;
        let mut footer = clean.footer;
        (footer.next_record, footer.next_sequence) = (info.next_record, info.next_sequence);
        seal(&*file, path, header.stamp(), &footer)?;
        Ok(footer.tally)
    }

    /// Gives a damaged segment a second name in `quarantine/`, or copies it there.
    fn keep_aside(&self, path: &Path, id: u64) -> Result<PathBuf, Error> {
        let into = quarantine::make(self.disk, self.dir)?;
        let mut to = segment::path(&into, id);
        let mut others = 0;
        loop {
            match self.disk.link(path, &to) {
                Ok(()) => break,
                // Of an earlier repair, or of this one before it was cut short.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    others += 1;
                    to = into.join(format!("{id:016x}-{others}.seg"));
                }
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Err(Error::io("link", &to, error)),
                Err(_) => {
                    copy(self.disk, path, &to)?;
                    break;
                }
            }
        }
        self.disk.sync_dir(&into).map_err(|source| Error::sync(&into, source))?;
        Ok(to)
    }
}

/// Where a file can't have two names.
fn copy(disk: &dyn Disk, from: &Path, to: &Path) -> Result<(), Error> {
    let failed = |source| Error::io("copy", from, source);
    let source = Lossy::new(disk.open(from, false).map_err(failed)?.into());
    let target = match disk.create(to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => disk.open(to, true),
        created => created,
    };
    let target = target.map_err(failed)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut offset = 0;
    loop {
        let filled = source.read_at(&mut buffer, offset).map_err(failed)?;
        if filled == 0 {
            return target.sync_all().map_err(failed);
        }
        target.write_at(&[&buffer[..filled]], offset).map_err(failed)?;
        offset += filled as u64;
    }
}

/// A clean segment that is being written.
struct Clean<'a> {
    file: &'a dyn DiskFile,
    path: &'a Path,
    stamp: Stamp,
    footer: Footer,
    /// Of the last group.
    at: Now,
}

impl Clean<'_> {
    /// Writes what can be read of a part as a group. The sequences run on; there are as many as before, or fewer.
    fn put(&mut self, part: Contents) -> Result<(), Error> {
        let records: Vec<Record> = part
            .pieces
            .into_iter()
            .filter_map(|piece| match piece {
                Piece::Record(record) => Some(record),
                Piece::Purged(..) | Piece::Lost(_) => None,
            })
            .collect();
        if part.facts.is_empty() && records.is_empty() {
            return Ok(());
        }
        self.at = part.group.map_or(self.at, |group| group.at);
        let stage = |record: &Record| (record.number, Staged::new(&record.envelope, record.payload.clone()));
        let controls_len = part.facts.iter().map(|fact| stage(fact).1.length()).sum();
        let frames: Vec<(u64, Staged)> = part.facts.iter().chain(&records).map(stage).collect();
        let group = Group {
            sequence: self.footer.next_sequence,
            first_record: part.records.start,
            next_record: part.records.end,
            length: frames.iter().map(|(_, frame)| frame.length()).sum(),
            controls_len,
            controls: u32::try_from(part.facts.len()).expect("no more than there were"),
            tally: records.iter().fold(Tally::default(), |sum, record| sum.plus(record.tally())),
            at: self.at,
            received: records.iter().fold(Span::default(), |span, record| {
                span.cover(Span::at(record.envelope.received_ns, record.envelope.clock_ms))
            }),
        };
        let offset = self.footer.end;
        let mut at = offset;
        let mut put = |parts: &[&[u8]]| {
            let written = self.file.write_at(parts, at);
            at += parts.iter().map(|part| part.len() as u64).sum::<u64>();
            written.map_err(|source| Error::io("write", self.path, source))
        };
        put(&[&group.encode(self.stamp, offset)])?;
        let mut frame_at = offset + group::HEAD as u64;
        for (number, frame) in &frames {
            let head = frame.head(*number, self.stamp, frame_at);
            let length = (head.len() + frame.variable.len() + frame.payload.len()) as u64;
            put(&[&head, &frame.variable, &frame.payload, padding(length, frame::ALIGN)])?;
            frame_at += frame.length();
        }
        put(&[padding(group::HEAD as u64 + group.length, BLOCK)])?;
        self.footer.add(&group, INDEX_SPACING);
        Ok(())
    }
}
