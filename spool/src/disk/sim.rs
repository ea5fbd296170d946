//! A disk in memory that forgets, tears, fails and fills up, always in the same way for the same seed.
//!
//! It keeps what a program sees (the page cache) and what would be there after a power cut apart. Calls that change
//! something are counted, so that a test can stop, or fail, at each of them in turn.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Disk, DiskFile};

/// The smallest piece that a disk writes whole.
const SECTOR: usize = 512;

/// What becomes of something that was not synced when the power is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is gone.
    Lost,
    /// It got to the disk.
    Kept,
    /// Each piece of this many bytes (a multiple of 512), or each directory entry, on a throw of a coin.
    Some(usize),
    /// It got to the disk, but of the last write only the beginning, a multiple of 512 bytes.
    Torn,
}

/// How a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// The process is killed and the machine goes on: all stays as it was seen, synced or not.
    pub kill: bool,
    /// Content of files.
    pub data: Fate,
    /// Lengths of files.
    pub lengths: Fate,
    /// Directory entries: created, renamed, removed.
    pub entries: Fate,
    /// Of the generator that throws the coins.
    pub seed: u64,
}

impl Loss {
    /// The process is killed.
    pub const KILL: Self = Self { kill: true, ..Self::power(Fate::Kept, Fate::Kept, Fate::Kept, 0) };

    /// The power is cut.
    #[must_use]
    pub const fn power(data: Fate, lengths: Fate, entries: Fate, seed: u64) -> Self {
        Self { kill: false, data, lengths, entries, seed }
    }

    /// Every way to end, those with chance in them seeded with `seed`.
    #[must_use]
    pub fn each(seed: u64) -> Vec<Self> {
        use Fate::{Kept, Lost, Some, Torn};
        vec![
            Self::KILL,
            Self::power(Lost, Lost, Lost, seed),
            Self::power(Kept, Kept, Lost, seed),
            Self::power(Lost, Kept, Kept, seed),
            Self::power(Kept, Lost, Kept, seed),
            Self::power(Torn, Kept, Kept, seed),
            Self::power(Some(512), Kept, Kept, seed),
            Self::power(Some(512), Some(512), Some(512), seed.wrapping_add(1)),
            Self::power(Some(4096), Some(512), Some(512), seed.wrapping_add(2)),
        ]
    }
}

/// What a call answers instead of doing its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The run ends here: the call takes effect in the cache, as far as it has one, and this and every later call
    /// fails.
    Stop,
    /// An I/O error. A sync that fails leaves what it was to write visible, marked clean, and not on disk.
    Io,
    /// No room.
    Full,
    /// A write stops half-way with an I/O error; other calls fail.
    Short,
    /// A write stops half-way for want of room; other calls fail.
    ShortFull,
}

/// Which call fails, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The number of the changing call, from 0.
    pub at: u64,
    /// How.
    pub failure: Failure,
    /// Also every later one; for want of room, of those that need some.
    pub lasting: bool,
}

/// The disk. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct SimDisk {
    world: Arc<Mutex<World>>,
}

#[derive(Debug, Clone, Default)]
struct World {
    files: Vec<Inode>,
    /// By path, as seen, and as on disk; the root is always there.
    seen: BTreeMap<PathBuf, Entry>,
    durable: BTreeMap<PathBuf, Entry>,
    /// Changes of entries that no sync of their directory followed, in order.
    pending: Vec<Change>,
    /// The file and range that was written last, if it was not synced since.
    last_write: Option<(usize, usize, usize)>,
    calls: u64,
    syncs: u64,
    fault: Option<Fault>,
    stopped: bool,
    capacity: Option<u64>,
    trace: Option<String>,
    /// Files can't have two names.
    links_forbidden: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Dir,
    File(usize),
}

impl Entry {
    fn file(self) -> Option<usize> {
        match self {
            Self::File(file) => Some(file),
            Self::Dir => None,
        }
    }
}

#[derive(Debug, Clone)]
struct Change {
    add: Option<(PathBuf, Entry)>,
    remove: Option<PathBuf>,
}

#[derive(Debug, Clone, Default)]
struct Inode {
    seen: Vec<u8>,
    disk: Vec<u8>,
    /// Sectors that a sync has to write.
    dirty: BTreeSet<usize>,
    length_dirty: bool,
    /// Bytes that the medium does not give back.
    unreadable: Vec<Range<u64>>,
}

/// What a call is to do.
enum Go {
    Work,
    /// Take effect as far as a call can that is cut short, then fail.
    Cut(io::Error),
    Fail(io::Error),
}

/// The kinds of changing calls, as far as faults tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Create,
    Rename,
    Link,
    Remove,
    Write,
    Allocate,
    Truncate,
    Sync,
}

fn io_error() -> io::Error {
    io::Error::other("simulated I/O error")
}

fn full() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

impl World {
    fn check(&self) -> io::Result<()> {
        if self.stopped { Err(io::Error::other("the simulated run has ended")) } else { Ok(()) }
    }

    /// Counts a changing call and says what it is to do.
    fn begin(&mut self, call: Call, what: &dyn std::fmt::Display) -> io::Result<Go> {
        self.check()?;
        let number = self.calls;
        self.calls += 1;
        if let Some(trace) = &mut self.trace {
            writeln!(trace, "{number} {call:?} {what}").map_err(io::Error::other)?;
        }
        let Some(fault) = self.fault else { return Ok(Go::Work) };
        let needs_room = matches!(call, Call::Create | Call::Rename | Call::Link | Call::Write | Call::Allocate);
        let lasting = match fault.failure {
            Failure::Full | Failure::ShortFull => needs_room,
            _ => true,
        };
        if number != fault.at && !(number > fault.at && fault.lasting && lasting) {
            return Ok(Go::Work);
        }
        Ok(match fault.failure {
            Failure::Stop => {
                self.stopped = true;
                if call == Call::Sync { Go::Fail(io_error()) } else { Go::Cut(io_error()) }
            }
            Failure::Io => Go::Fail(io_error()),
            Failure::Full => Go::Fail(full()),
            Failure::Short if call == Call::Write => Go::Cut(io_error()),
            Failure::ShortFull if call == Call::Write => Go::Cut(full()),
            Failure::Short => Go::Fail(io_error()),
            Failure::ShortFull => Go::Fail(full()),
        })
    }

    /// A changing call without parts: it is done, or not.
    fn change(&mut self, call: Call, path: &Path, work: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        match self.begin(call, &path.display())? {
            Go::Work => work(self),
            Go::Cut(error) => work(self).and(Err(error)),
            Go::Fail(error) => Err(error),
        }
    }

    fn used(&self) -> u64 {
        // A file with two names takes its room once.
        let named: BTreeSet<usize> = self.seen.values().filter_map(|entry| entry.file()).collect();
        named.into_iter().map(|file| self.files[file].seen.len() as u64).sum()
    }

    /// Bytes by which files may still grow.
    fn room(&self) -> u64 {
        self.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(self.used()))
    }

    fn is_dir(&self, path: &Path) -> bool {
        path.parent().is_none() || self.seen.get(path) == Some(&Entry::Dir)
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        match self.seen.get(path) {
            Some(Entry::File(file)) => Ok(*file),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn apply(&mut self, change: Change) {
        change.apply_to(&mut self.seen);
        self.pending.push(change);
    }

    fn sync_dir(&mut self, dir: &Path) {
        let is_in = |change: &Change| change.path().parent() == Some(dir);
        for change in self.pending.extract_if(.., |change| is_in(change)) {
            change.apply_to(&mut self.durable);
        }
    }

    /// Writes what is dirty of a file, or, when it fails, forgets that it is.
    fn sync(&mut self, file: usize, call: io::Result<Go>) -> io::Result<()> {
        let go = call?;
        if self.last_write.is_some_and(|(last, ..)| last == file) {
            self.last_write = None;
        }
        let inode = &mut self.files[file];
        match go {
            Go::Work => {
                inode.flush();
                self.syncs += 1;
                Ok(())
            }
            Go::Cut(error) | Go::Fail(error) => {
                if !self.stopped {
                    inode.dirty.clear();
                    inode.length_dirty = false;
                }
                Err(error)
            }
        }
    }
}

impl Change {
    fn path(&self) -> &Path {
        let added = self.add.as_ref().map(|(path, _)| path);
        added.or(self.remove.as_ref()).expect("a change changes something")
    }

    fn apply_to(&self, entries: &mut BTreeMap<PathBuf, Entry>) {
        if let Some(path) = &self.remove {
            entries.remove(path);
        }
        if let Some((path, entry)) = &self.add {
            entries.insert(path.clone(), *entry);
        }
    }
}

impl Inode {
    fn flush(&mut self) {
        resize(&mut self.disk, self.seen.len());
        for sector in std::mem::take(&mut self.dirty) {
            self.flush_sector(sector);
        }
        self.length_dirty = false;
    }

    fn flush_sector(&mut self, sector: usize) {
        let from = sector * SECTOR;
        let to = (from + SECTOR).min(self.seen.len()).min(self.disk.len());
        if from < to {
            self.disk[from..to].copy_from_slice(&self.seen[from..to]);
        }
    }

    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if end > self.seen.len() {
            self.set_length(end);
        }
        self.seen[offset..end].copy_from_slice(bytes);
        self.dirty.extend(offset / SECTOR..end.div_ceil(SECTOR));
    }

    fn set_length(&mut self, length: usize) {
        if length < self.seen.len() {
            // What is cut off and comes back later comes back as zeros.
            self.dirty.extend(length / SECTOR..self.seen.len().div_ceil(SECTOR));
        }
        self.length_dirty |= length != self.seen.len();
        resize(&mut self.seen, length);
    }

    /// What is on disk after a power cut; `torn` is how much of the last write got there.
    fn settle(&mut self, loss: Loss, coins: &mut Coins, torn: Option<(usize, usize)>) {
        let old = self.disk.len();
        let keep_length = !self.length_dirty || loss.lengths != Fate::Lost && coins.keeps(loss.lengths);
        let length = if keep_length && self.length_dirty { self.seen.len() } else { old };
        resize(&mut self.disk, length.max(old));
        let mut decided = BTreeMap::new();
        for sector in std::mem::take(&mut self.dirty) {
            let kept = match loss.data {
                Fate::Some(unit) => {
                    let piece = sector * SECTOR / unit;
                    *decided.entry(piece).or_insert_with(|| coins.throw())
                }
                Fate::Torn => torn.is_none_or(|(from, to)| !(from..to).contains(&sector)),
                fate => fate == Fate::Kept,
            };
            if kept {
                self.flush_sector(sector);
            }
        }
        self.disk.truncate(length);
        self.length_dirty = false;
        self.seen.clone_from(&self.disk);
    }
}

/// As `Vec::resize` with zeros, but fast also without optimization: this is called very often.
fn resize(bytes: &mut Vec<u8>, length: usize) {
    if length > bytes.len() {
        let mut longer = vec![0; length];
        longer[..bytes.len()].copy_from_slice(bytes);
        *bytes = longer;
    } else {
        bytes.truncate(length);
    }
}

/// A small generator (SplitMix64).
#[derive(Debug)]
struct Coins(u64);

impl Coins {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn throw(&mut self) -> bool {
        self.next() & 1 == 0
    }

    fn keeps(&mut self, fate: Fate) -> bool {
        match fate {
            Fate::Lost => false,
            Fate::Kept | Fate::Torn => true,
            Fate::Some(_) => self.throw(),
        }
    }
}

impl SimDisk {
    /// An empty disk without limits.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on, counted from the present call on, a call fails.
    pub fn fail(&self, fault: Fault) {
        let mut world = self.lock();
        world.fault = Some(Fault { at: world.calls.saturating_add(fault.at), ..fault });
    }

    /// Calls succeed again.
    pub fn heal(&self) {
        self.lock().fault = None;
    }

    /// Files can hold this many bytes together.
    pub fn limit(&self, capacity: Option<u64>) {
        self.lock().capacity = capacity;
    }

    /// From now on no file gets a second name, as on some network and FAT file systems.
    pub fn forbid_links(&self) {
        self.lock().links_forbidden = true;
    }

    /// Bytes that files hold together.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.lock().used()
    }

    /// Changing calls until now.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Successful syncs of files until now.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// Writes down the changing calls from now on.
    pub fn start_trace(&self) {
        self.lock().trace = Some(String::new());
    }

    /// The changing calls that were written down, one a line.
    #[must_use]
    pub fn trace(&self) -> String {
        self.lock().trace.clone().unwrap_or_default()
    }

    /// Changes a byte of a file, in the cache and on disk: it rots.
    ///
    /// # Errors
    /// `NotFound` when there is no such file or byte.
    pub fn rot(&self, path: &Path, offset: usize, flip: u8) -> io::Result<()> {
        let mut world = self.lock();
        let file = world.file(path)?;
        let inode = &mut world.files[file];
        *inode.seen.get_mut(offset).ok_or(io::ErrorKind::NotFound)? ^= flip;
        if let Some(byte) = inode.disk.get_mut(offset) {
            *byte ^= flip;
        }
        Ok(())
    }

    /// Changes bytes of a file, in the cache and on disk, without a call that counts.
    ///
    /// # Errors
    /// `NotFound` when there is no such file.
    pub fn change(&self, path: &Path, change: impl Fn(&mut Vec<u8>)) -> io::Result<()> {
        let mut world = self.lock();
        let file = world.file(path)?;
        let inode = &mut world.files[file];
        change(&mut inode.seen);
        change(&mut inode.disk);
        Ok(())
    }

    /// Reads that touch these bytes of a file fail from now on, also after a crash, with the error of a bad block.
    ///
    /// # Errors
    /// `NotFound` when there is no such file.
    pub fn make_unreadable(&self, path: &Path, bytes: Range<u64>) -> io::Result<()> {
        let mut world = self.lock();
        let file = world.file(path)?;
        world.files[file].unreadable.push(bytes);
        Ok(())
    }

    /// All files can be read again.
    pub fn make_readable(&self) {
        self.lock().files.iter_mut().for_each(|inode| inode.unreadable.clear());
    }

    /// The content of a file as it is seen.
    ///
    /// # Errors
    /// `NotFound` when there is no such file.
    pub fn content(&self, path: &Path) -> io::Result<Vec<u8>> {
        let world = self.lock();
        Ok(world.files[world.file(path)?].seen.clone())
    }

    /// The disk as the next process finds it. This one stays as it is.
    #[must_use]
    pub fn crash(&self, loss: Loss) -> Self {
        let mut world = self.lock().clone();
        world.fault = None;
        world.stopped = false;
        world.calls = 0;
        world.syncs = 0;
        if !loss.kill {
            world.cut_power(loss);
        }
        Self { world: Arc::new(Mutex::new(world)) }
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl World {
    fn cut_power(&mut self, loss: Loss) {
        let mut coins = Coins(loss.seed);
        for change in std::mem::take(&mut self.pending) {
            if coins.keeps(loss.entries) {
                change.apply_to(&mut self.durable);
            }
        }
        self.seen = self.durable.clone();
        // What lies in a directory that is not there can't be found.
        while let Some(orphan) =
            self.seen.keys().find(|path| path.parent().is_some_and(|parent| !self.is_dir(parent))).cloned()
        {
            self.seen.remove(&orphan);
        }
        self.durable = self.seen.clone();
        let last_write = self.last_write.take();
        for (index, inode) in self.files.iter_mut().enumerate() {
            let torn = last_write.filter(|(file, ..)| *file == index).map(|(_, from, to)| {
                let sectors = from / SECTOR..to.div_ceil(SECTOR);
                let kept = usize::try_from(coins.next() % (sectors.len() as u64 + 1)).unwrap_or(0);
                (sectors.start + kept, sectors.end)
            });
            inode.settle(loss, &mut coins, torn);
        }
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.lock();
        let missing: Vec<PathBuf> = dir.ancestors().filter(|dir| !world.is_dir(dir)).map(Path::to_path_buf).collect();
        world.check()?;
        for dir in missing.into_iter().rev() {
            let change = Change { add: Some((dir.clone(), Entry::Dir)), remove: None };
            world.change(Call::Create, &dir, |world| {
                world.apply(change);
                Ok(())
            })?;
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let world = self.lock();
        world.check()?;
        if !world.is_dir(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = world.seen.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut world = self.lock();
        let mut file = 0;
        world.change(Call::Create, path, |world| {
            if world.seen.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            if !path.parent().is_some_and(|parent| world.is_dir(parent)) {
                return Err(io::ErrorKind::NotFound.into());
            }
            file = world.files.len();
            world.files.push(Inode::default());
            world.apply(Change { add: Some((path.to_path_buf(), Entry::File(file))), remove: None });
            Ok(())
        })?;
        Ok(Box::new(SimFile { disk: self.clone(), file, writable: true }))
    }

    fn open(&self, path: &Path, writable: bool) -> io::Result<Box<dyn DiskFile>> {
        let world = self.lock();
        world.check()?;
        let file = world.file(path)?;
        drop(world);
        Ok(Box::new(SimFile { disk: self.clone(), file, writable }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.lock().change(Call::Rename, from, |world| {
            let file = world.file(from)?;
            let add = Some((to.to_path_buf(), Entry::File(file)));
            world.apply(Change { add, remove: Some(from.to_path_buf()) });
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.lock().change(Call::Remove, path, |world| {
            world.file(path)?;
            world.apply(Change { add: None, remove: Some(path.to_path_buf()) });
            Ok(())
        })
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.lock().change(Call::Link, to, |world| {
            if world.links_forbidden {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            let file = world.file(from)?;
            if world.seen.contains_key(to) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            if !to.parent().is_some_and(|parent| world.is_dir(parent)) {
                return Err(io::ErrorKind::NotFound.into());
            }
            world.apply(Change { add: Some((to.to_path_buf(), Entry::File(file))), remove: None });
            Ok(())
        })
    }

    fn links(&self, path: &Path) -> io::Result<u64> {
        let world = self.lock();
        world.check()?;
        let file = world.file(path)?;
        Ok(world.seen.values().filter(|entry| **entry == Entry::File(file)).count() as u64)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.lock();
        match world.begin(Call::Sync, &dir.display())? {
            Go::Work => world.sync_dir(dir),
            Go::Cut(error) | Go::Fail(error) => return Err(error),
        }
        Ok(())
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        let world = self.lock();
        world.check()?;
        Ok(world.room())
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    file: usize,
    writable: bool,
}

impl SimFile {
    fn begin(&self, world: &mut World, call: Call, from: u64, to: u64) -> io::Result<Go> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        world.begin(call, &format_args!("file {} {from}..{to}", self.file))
    }

    fn resize(&self, call: Call, length: u64) -> io::Result<()> {
        let mut world = self.disk.lock();
        let failed = match self.begin(&mut world, call, 0, length)? {
            Go::Work => None,
            Go::Cut(error) => Some(error),
            Go::Fail(error) => return Err(error),
        };
        let room = world.room();
        let inode = &mut world.files[self.file];
        if length.saturating_sub(inode.seen.len() as u64) > room {
            return Err(full());
        }
        let length = usize::try_from(length).map_err(io::Error::other)?;
        if call == Call::Truncate || length > inode.seen.len() {
            inode.set_length(length);
        }
        failed.map_or(Ok(()), Err)
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.disk.lock();
        let call = self.begin(&mut world, Call::Sync, 0, 0);
        world.sync(self.file, call)
    }
}

impl DiskFile for SimFile {
    fn length(&self) -> io::Result<u64> {
        let world = self.disk.lock();
        world.check()?;
        Ok(world.files[self.file].seen.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let world = self.disk.lock();
        world.check()?;
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let inode = &world.files[self.file];
        let rest = inode.seen.get(from..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        let asked = offset..offset + length as u64;
        if inode.unreadable.iter().any(|bad| bad.start < asked.end && asked.start < bad.end) {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
        }
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        let mut bytes = parts.concat();
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let mut world = self.disk.lock();
        let mut failed = match self.begin(&mut world, Call::Write, offset, offset + bytes.len() as u64)? {
            Go::Work => None,
            Go::Cut(error) => {
                // The end of a run is no limit to what was written: the loss decides that.
                if !world.stopped {
                    bytes.truncate(bytes.len() / 2);
                }
                Some(error)
            }
            Go::Fail(error) => return Err(error),
        };
        let room = usize::try_from(world.room()).unwrap_or(usize::MAX);
        let inode = &mut world.files[self.file];
        let limit = inode.seen.len().saturating_add(room);
        if from + bytes.len() > limit {
            bytes.truncate(limit.saturating_sub(from));
            failed = Some(full());
        }
        inode.write(&bytes, from);
        world.last_write = Some((self.file, from, from + bytes.len()));
        failed.map_or(Ok(()), Err)
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        self.resize(Call::Allocate, length)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.resize(Call::Truncate, length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync()
    }
}
