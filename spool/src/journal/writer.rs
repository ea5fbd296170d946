//! Appending: frames are staged, and one `commit` writes and syncs them as a group.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::spare::{For, Spare, Spares};
use super::{Draft, Durability, Options, SegmentInfo, Shared};
use crate::disk::DiskFile;
use crate::envelope::{Envelope, Kind};
use crate::error::is_full;
use crate::frame::{self, Staged};
use crate::group::{self, Group, Span};
use crate::segment::{self, BLOCK, BLOCK_LEN, Footer, Header, IndexEntry, Stamp};
use crate::state::{Control, State};
use crate::{Error, Now, Stream, Tally};

/// Room for the footer at the end of a segment, so that sealing needs no new disk space.
const FOOTER_ROOM: u64 = 2 * BLOCK;
/// The footer's index has about this many entries of 56 bytes.
const INDEX_ENTRIES: u64 = 64;
const _: () = assert!(192 + 6 + (INDEX_ENTRIES + 2) * 56 + 16 <= FOOTER_ROOM, "the footer fits the room kept for it");

static PADDING: [u8; BLOCK_LEN] = [0; BLOCK_LEN];

/// What a commit made durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Numbers of the records, in the order in which they were staged.
    pub records: Range<u64>,
    /// What they weigh.
    pub tally: Tally,
    /// Whether a new segment was begun for them.
    pub rolled: bool,
}

/// The one writer of a journal.
#[derive(Debug)]
pub struct Writer {
    shared: Shared,
    options: Options,
    spares: Spares,
    active: Active,
    next_record: u64,
    next_sequence: u64,
    batch: Batch,
    /// Whether there are groups that were not synced.
    unsynced: bool,
    poisoned: bool,
}

/// What will be the next group.
#[derive(Debug, Default)]
struct Batch {
    /// Controls and checkpoints; written first, so that recovery finds them without reading payload.
    facts: Vec<Staged>,
    /// Records with their numbers, ascending.
    records: Vec<(u64, Staged)>,
    /// Bytes of all frames.
    length: u64,
}

impl Batch {
    fn push_fact(&mut self, kind: Kind, payload: Vec<u8>, now: Now) {
        let envelope = Envelope { kind, received_ns: now.wall_ns, clock_ms: now.clock_ms, ..Envelope::default() };
        let staged = Staged::new(&envelope, payload.into());
        self.length += staged.length();
        self.facts.push(staged);
    }

    fn push_record(&mut self, number: u64, draft: Draft) {
        let staged = Staged::new(&draft.envelope, draft.payload);
        self.length += staged.length();
        self.records.push((number, staged));
    }

    fn is_empty(&self) -> bool {
        self.facts.is_empty() && self.records.is_empty()
    }
}

/// Where a writer begins.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) segment: u64,
    pub(super) epoch: u64,
    pub(super) sequence: u64,
    /// The first new record gets this number.
    pub(super) next_record: u64,
    pub(super) now: Now,
    /// Becomes the first checkpoint.
    pub(super) state: State,
    /// Records of the last, doubtful group with their numbers, ascending.
    pub(super) rewrite: Vec<(u64, Draft)>,
}

impl Writer {
    /// Begins a segment behind what recovery found, with a checkpoint and what is to be written again, in one group.
    pub(super) fn begin(shared: Shared, options: Options, mut spares: Spares, start: Start) -> Result<Self, Error> {
        let now = start.now;
        let mut batch = Batch::default();
        batch.push_fact(Kind::Checkpoint, start.state.encode(), now);
        let first_record = start.rewrite.first().map_or(start.next_record, |(number, _)| *number);
        for (number, draft) in start.rewrite {
            batch.push_record(number, draft);
        }
        let header = Header {
            stream: options.stream,
            segment: start.segment,
            epoch: start.epoch,
            first_record,
            first_sequence: start.sequence,
            created: now,
            recycled: false,
            relaxed: options.durability == Durability::Relaxed,
        };
        let active = Active::create_for(&shared, &options, &mut spares, For::Facts, header, batch.length)?;
        let next_sequence = start.sequence;
        let mut writer = Self {
            shared,
            options,
            spares,
            active,
            next_record: first_record,
            next_sequence,
            batch,
            unsynced: false,
            poisoned: false,
        };
        writer.write_group(now, start.next_record)?;
        writer.sync()?;
        writer.note_kept_back();
        Ok(writer)
    }

    /// What readers are made from.
    #[must_use]
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Adds a record to the next group and returns the number that it will have.
    ///
    /// # Panics
    /// If the envelope's kind is a control's: those have their own door.
    pub fn stage(&mut self, draft: Draft) -> u64 {
        assert!(draft.envelope.kind.is_record(), "a record is staged with a record's kind");
        let number = self.next_record + self.batch.records.len() as u64;
        self.batch.push_record(number, draft);
        number
    }

    /// Adds a fact to the next group.
    pub fn stage_control(&mut self, control: &Control, now: Now) {
        self.batch.push_fact(Kind::Control, control.encode(), now);
    }

    /// Adds the whole state to the next group, before all facts that are staged: they may be newer.
    pub fn stage_checkpoint(&mut self, state: &State, now: Now) {
        self.batch.push_fact(Kind::Checkpoint, state.encode(), now);
        self.batch.facts.rotate_right(1);
    }

    /// Bytes by which the files would grow if what is staged and about `extra` bytes more were committed now.
    #[must_use]
    pub fn growth(&self, extra: u64) -> u64 {
        let length = self.batch.length + extra;
        if self.active.fits(length) { 0 } else { segment_size(&self.options, length) }
    }

    /// Syncs what [`Durability::Relaxed`] left for later.
    ///
    /// # Errors
    /// [`Error::Io`]: it poisons the writer; end the process.
    pub fn sync(&mut self) -> Result<(), Error> {
        if self.poisoned {
            return Err(Error::Poisoned);
        }
        if std::mem::take(&mut self.unsynced) {
            self.active.sync(&self.shared).inspect_err(|_| self.poisoned = true)?;
        }
        Ok(())
    }

    /// Bytes by which the files may still grow for what is to be kept back.
    #[must_use]
    pub fn kept_back_missing(&self) -> u64 {
        self.spares.missing_bytes()
    }

    /// One small step towards what is to be kept back, for idle moments; false when nothing is missing.
    ///
    /// # Errors
    /// [`Error`] of the file system, a full one too: what was begun is given back, and it may be tried again later.
    pub fn prepare(&mut self) -> Result<bool, Error> {
        let prepared = self.spares.prepare();
        self.note_kept_back();
        prepared
    }

    /// Removes what is kept back of segments that went. Their records are not readable by any command, but the bytes are
    /// still there.
    ///
    /// # Errors
    /// [`Error`] of the file system.
    pub fn discard_spares(&mut self) -> Result<(), Error> {
        let cleared = self.spares.clear();
        self.note_kept_back();
        cleared
    }

    /// Gives a segment's file away.
    pub(super) fn retire(&mut self, path: &Path, info: &SegmentInfo) -> std::io::Result<()> {
        // What somebody reads, or keeps under another name, is not overwritten.
        let is_read = self.shared.leases().contains_key(&info.id);
        let in_use = is_read || !self.shared.inner.disk.links(path).is_ok_and(|links| links == 1);
        self.spares.retire(path, info.file_bytes, in_use)
    }

    /// Makes it durable that segments went.
    pub(super) fn sync_retired(&mut self) -> Result<(), Error> {
        self.note_kept_back();
        self.spares.sync()
    }

    fn note_kept_back(&self) {
        self.shared.note_kept_back(&self.spares);
    }

    /// Writes what is staged as one group and syncs it. When it returns `Ok`, all of it is durable (as far as
    /// [`Options::durability`] says) and readers see it.
    /// A new segment begins with `checkpoint()`.
    ///
    /// # Errors
    /// [`Error::Full`]: nothing of it is durable, and what was staged is forgotten; refuse it and go on. Any other
    /// error poisons the writer: end the process.
    pub fn commit(&mut self, now: Now, checkpoint: &mut dyn FnMut() -> State) -> Result<Committed, Error> {
        if self.poisoned {
            return Err(Error::Poisoned);
        }
        let result = self.try_commit(now, checkpoint);
        if let Err(error) = &result {
            self.batch = Batch::default();
            self.poisoned = !matches!(error, Error::Full { .. });
        }
        result
    }

    fn try_commit(&mut self, now: Now, checkpoint: &mut dyn FnMut() -> State) -> Result<Committed, Error> {
        let first = self.next_record;
        if self.batch.is_empty() {
            return Ok(Committed { records: first..first, tally: Tally::default(), rolled: false });
        }
        let mut rolled = !self.active.fits(self.batch.length);
        // Also when a segment was begun before, but its first group met a full disk.
        if rolled || !self.has_begun() {
            self.stage_checkpoint(&checkpoint(), now);
            rolled |= !self.active.fits(self.batch.length);
        }
        if rolled {
            self.roll(now)?;
        }
        let tally = self.write_group(now, first)?;
        Ok(Committed { records: first..self.next_record, tally, rolled })
    }

    /// The segment being written, and behind its last group and behind its end.
    pub(super) fn unused(&self) -> (u64, std::ops::Range<u64>) {
        (self.active.id(), self.active.footer.end..self.active.size)
    }

    /// Nothing more is taken: it is not known what is on disk.
    pub(super) fn poison(&mut self) {
        self.poisoned = true;
    }

    /// Whether the active segment holds a group, and with it a checkpoint.
    pub(super) fn has_begun(&self) -> bool {
        self.active.footer.groups > 0
    }

    /// Goes on in a new segment.
    fn roll(&mut self, now: Now) -> Result<(), Error> {
        // A start takes what has a footer for durable.
        self.sync()?;
        let header = Header {
            stream: self.options.stream,
            segment: self.active.id() + 1,
            epoch: self.active.stamp.epoch,
            first_record: self.next_record,
            first_sequence: self.next_sequence,
            created: now,
            recycled: false,
            relaxed: self.options.durability == Durability::Relaxed,
        };
        // A side journal's records are what a lane gives up: its place must get over them.
        let refusable = self.options.stream == Stream::Main && !self.batch.records.is_empty();
        let purpose = if refusable { For::Records } else { For::Facts };
        // The new segment first: when there is no room for it, the old one stays open for smaller groups.
        let created =
            Active::create_for(&self.shared, &self.options, &mut self.spares, purpose, header, self.batch.length);
        self.note_kept_back();
        let active = created?;
        if let Err(error) = self.seal_active() {
            // The old one stays in use if the disk was full. If this fails too, the next roll replaces the file, and a
            // start removes it, because there is no group in it.
            let _ = self.shared.inner.disk.remove(&active.path(&self.shared));
            return Err(error);
        }
        self.active = active;
        self.publish(self.active.info());
        Ok(())
    }

    /// Ends the active segment with a checkpoint and its footer.
    ///
    /// # Errors
    /// As [`Writer::commit`].
    pub fn close(mut self, now: Now, state: &State) -> Result<(), Error> {
        self.stage_checkpoint(state, now);
        self.commit(now, &mut || state.clone())?;
        self.sync()?;
        self.seal_active()
    }

    /// Writes the batch behind the last group, syncs it, and lets readers see it. The next record gets `next_record` or
    /// the number behind the last one in the group.
    fn write_group(&mut self, now: Now, next_record: u64) -> Result<Tally, Error> {
        let batch = std::mem::take(&mut self.batch);
        let first_record = batch.records.first().map_or(self.next_record, |(number, _)| *number);
        let next_record = batch.records.last().map_or(next_record, |(number, _)| next_record.max(number + 1));
        let group = Group {
            sequence: self.next_sequence,
            first_record,
            next_record,
            length: batch.length,
            controls_len: batch.facts.iter().map(Staged::length).sum(),
            controls: u32::try_from(batch.facts.len()).expect("a group has few facts"),
            tally: batch.records.iter().fold(Tally::default(), |sum, (_, record)| sum.plus(record.tally())),
            at: now,
            received: batch
                .records
                .iter()
                .fold(Span::default(), |span, (_, record)| span.cover(Span::at(record.received_ns, record.clock_ms))),
        };
        self.active.write(&self.shared, &group, &batch)?;
        match self.options.durability {
            Durability::Sync => self.active.sync(&self.shared)?,
            Durability::Relaxed => self.unsynced = true,
        }
        self.active.footer.add(&group, self.active.size / INDEX_ENTRIES);
        self.next_record = next_record;
        self.next_sequence += 1;
        self.publish(self.active.info());
        Ok(group.tally)
    }

    fn seal_active(&mut self) -> Result<(), Error> {
        let path = self.active.path(&self.shared);
        let file_bytes = seal(&*self.active.file, &path, self.active.stamp, &self.active.footer)?;
        self.publish(SegmentInfo::sealed(self.active.stamp, &self.active.footer, file_bytes));
        Ok(())
    }

    fn publish(&self, info: SegmentInfo) {
        let mut segments = self.shared.lock();
        match segments.last_mut() {
            Some(last) if last.id == info.id => *last = info,
            _ => segments.push(info),
        }
    }
}

/// The segment being written.
#[derive(Debug)]
struct Active {
    file: Arc<dyn DiskFile>,
    stamp: Stamp,
    /// Bytes allotted; groups may reach up to `FOOTER_ROOM` before it.
    size: u64,
    /// Grows with every group.
    footer: Footer,
}

impl Active {
    /// A segment for a group of `length` bytes and what follows: of a spare if there is one, else a new file. Where
    /// there is no room for either, facts get what just fits them: they are what frees the disk again.
    fn create_for(
        shared: &Shared,
        options: &Options,
        spares: &mut Spares,
        purpose: For,
        header: Header,
        length: u64,
    ) -> Result<Self, Error> {
        let size = segment_size(options, length);
        let least = BLOCK + group::extent(length) + FOOTER_ROOM;
        let spare = spares.take(purpose)?;
        if let Some(active) = Self::recycle(shared, spares, header, spare, size, least)? {
            return Ok(active);
        }
        match Self::create(shared, header, size) {
            Err(Error::Full { .. }) if purpose == For::Facts => {}
            created => return created,
        }
        let ballast = spares.take_ballast()?;
        match Self::recycle(shared, spares, header, ballast, least, least)? {
            Some(active) => Ok(active),
            None => Self::create(shared, header, least),
        }
    }

    /// As [`Active::create`], of a file that is kept back. `None` if there is none, or it is too small and can't grow.
    fn recycle(
        shared: &Shared,
        spares: &mut Spares,
        header: Header,
        spare: Option<Spare>,
        size: u64,
        least: u64,
    ) -> Result<Option<Self>, Error> {
        let Some(spare) = spare else { return Ok(None) };
        let (disk, dir, path) = (&shared.inner.disk, &shared.inner.dir, &spare.path);
        let header = Header { recycled: true, ..header };
        let made = (|| {
            let file = disk.open(path, true).map_err(|source| Error::io("open", path, source))?;
            let size = match file.allocate(size.max(spare.bytes)) {
                Ok(()) => size.max(spare.bytes),
                Err(source) if is_full(&source) => spare.bytes,
                Err(source) => return Err(Error::io("allocate", path, source)),
            };
            if size < least {
                return Ok(None);
            }
            // The block behind the header too: so it can be told whether a first group was ever written.
            file.write_at(&[&header.encode(), &PADDING], 0).map_err(|source| Error::io("write", path, source))?;
            file.sync_all().map_err(|source| Error::sync(path, source))?;
            let segment = segment::path(dir, header.segment);
            disk.rename(path, &segment).map_err(|source| Error::io("rename", path, source))?;
            Ok(Some((file, size)))
        })();
        let Ok(Some((file, size))) = made else {
            spares.give_back(spare);
            return made.map(|_| None);
        };
        disk.sync_dir(dir).map_err(|source| Error::sync(dir, source))?;
        let footer = Footer::empty(&header);
        Ok(Some(Self { file: file.into(), stamp: header.stamp(), size, footer }))
    }

    /// Makes a segment of `size` bytes that is durable under its name, with no group in it.
    fn create(shared: &Shared, header: Header, size: u64) -> Result<Self, Error> {
        let (disk, dir) = (&shared.inner.disk, &shared.inner.dir);
        let unfinished = segment::path_unfinished(dir, header.segment);
        let file = match disk.create(&unfinished) {
            // Left by an attempt after which it could not be removed.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                disk.remove(&unfinished).and_then(|()| disk.create(&unfinished))
            }
            other => other,
        };
        let file = file.map_err(|source| Error::io("create", &unfinished, source))?;
        let path = segment::path(dir, header.segment);
        let made = (|| {
            file.allocate(size).map_err(|source| Error::io("allocate", &unfinished, source))?;
            file.write_at(&[&header.encode()], 0).map_err(|source| Error::io("write", &unfinished, source))?;
            file.sync_all().map_err(|source| Error::sync(&unfinished, source))?;
            disk.rename(&unfinished, &path).map_err(|source| Error::io("rename", &unfinished, source))
        })();
        if let Err(error) = made {
            // If this fails too, the next start removes it; an unfinished segment is never read.
            let _ = disk.remove(&unfinished);
            return Err(error);
        }
        disk.sync_dir(dir).map_err(|source| Error::sync(dir, source))?;
        let footer = Footer::empty(&header);
        Ok(Self { file: file.into(), stamp: header.stamp(), size, footer })
    }

    fn id(&self) -> u64 {
        self.stamp.segment
    }

    fn path(&self, shared: &Shared) -> std::path::PathBuf {
        segment::path(&shared.inner.dir, self.id())
    }

    /// Whether a group of `length` bytes of frames fits behind the last one.
    fn fits(&self, length: u64) -> bool {
        self.footer.end + group::extent(length) + FOOTER_ROOM <= self.size
    }

    /// Writes a group behind the last one, from the buffers in which its parts lie.
    fn write(&self, shared: &Shared, group: &Group, batch: &Batch) -> Result<(), Error> {
        let offset = self.footer.end;
        let mut at = offset + group::HEAD as u64;
        let mut frames = Vec::with_capacity(batch.facts.len() + batch.records.len());
        let facts = batch.facts.iter().map(|fact| (0, fact));
        for (number, staged) in facts.chain(batch.records.iter().map(|(number, staged)| (*number, staged))) {
            frames.push((staged.head(number, self.stamp, at), staged));
            at += staged.length();
        }
        let header = group.encode(self.stamp, offset);
        let mut parts: Vec<&[u8]> = Vec::with_capacity(2 + 4 * frames.len());
        parts.push(&header);
        for (head, staged) in &frames {
            let length = (head.len() + staged.variable.len() + staged.payload.len()) as u64;
            parts.extend([&head[..], &staged.variable, &staged.payload, padding(length, frame::ALIGN)]);
        }
        parts.push(padding(group::HEAD as u64 + group.length, BLOCK));
        let path = self.path(shared);
        if let Err(source) = self.file.write_at(&parts, offset) {
            // After a full disk this group is refused: a start should not find half of it. That is no promise, because
            // it is not synced; the next group goes over it.
            let _ = self.file.write_at(&[&PADDING], offset);
            return Err(Error::io("write", &path, source));
        }
        Ok(())
    }

    fn sync(&self, shared: &Shared) -> Result<(), Error> {
        self.file.sync_data().map_err(|source| Error::sync(&self.path(shared), source))
    }

    fn info(&self) -> SegmentInfo {
        SegmentInfo { sealed: false, ..SegmentInfo::sealed(self.stamp, &self.footer, self.size) }
    }
}

impl Footer {
    /// Of a segment without groups.
    pub(super) fn empty(header: &Header) -> Self {
        let Header { first_record, first_sequence, created, .. } = *header;
        Self {
            end: BLOCK,
            first_record,
            next_record: first_record,
            first_sequence,
            next_sequence: first_sequence,
            created,
            ..Self::default()
        }
    }

    /// Counts a group that lies at the end, and puts it into the index if the last entry is `spacing` bytes away.
    pub(super) fn add(&mut self, group: &Group, spacing: u64) {
        if self.index.last().is_none_or(|entry| self.end - entry.offset >= spacing) {
            self.index.push(IndexEntry { offset: self.end, first_record: group.first_record, before: self.tally });
        }
        self.end += group.extent();
        self.groups += 1;
        self.tally += group.tally;
        self.received = self.received.cover(group.received);
        self.next_record = self.next_record.max(group.next_record);
        self.next_sequence = group.sequence + 1;
    }
}

/// Writes a segment's footer behind its last group, cuts the file there, and syncs it. Returns its size.
pub(super) fn seal(file: &dyn DiskFile, path: &Path, stamp: Stamp, footer: &Footer) -> Result<u64, Error> {
    let bytes = footer.encode(stamp);
    let length = footer.end + bytes.len() as u64;
    // Written before the cut: inside the room that was kept for it, the footer needs no new block.
    file.write_at(&[&bytes], footer.end).map_err(|source| Error::io("write", path, source))?;
    file.truncate(length).map_err(|source| Error::io("truncate", path, source))?;
    file.sync_all().map_err(|source| Error::sync(path, source))?;
    Ok(length)
}

fn segment_size(options: &Options, length: u64) -> u64 {
    options.segment_bytes.max(BLOCK + group::extent(length) + FOOTER_ROOM)
}

/// Zeros from `length` to the next multiple of `unit`.
pub(super) fn padding(length: u64, unit: u64) -> &'static [u8] {
    let missing = crate::round_up(length, unit) - length;
    &PADDING[..usize::try_from(missing).expect("less than a block")]
}
