//! Files kept back for the segments to come.
//!
//! A *spare* is the file of a segment that went, or one filled with zeros in idle time. A segment made of one costs no new
//! blocks, so that a full disk does not keep a start, a place or a checkpoint from being written; and all its blocks
//! were written before, so that a sync need not note in the file system that they are (which costs about half the
//! throughput on ext4). Its bytes are another segment's: checksums tell them apart, see `FORMAT.md`.
//!
//! The *ballast* is a small spare for facts alone, for when no other is left.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Error;
use crate::disk::{Disk, DiskFile};

/// Spares that records leave to starts and facts.
const RESERVED: usize = 1;
/// How much is filled with zeros in one step.
const STEP_BYTES: u64 = 4 << 20;

/// The suffix of a spare's name. The rest of the name is a number, without a meaning.
const SUFFIX: &str = ".spare";
const BALLAST: &str = "ballast";
/// A file that is being filled.
const UNFINISHED: &str = "spare.tmp";

static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// How many files are kept back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeptBack {
    /// Spare segments.
    pub spares: usize,
    /// Size of the ballast, 0 for none.
    pub ballast_bytes: u64,
}

/// Who asks for a spare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// Records, which can be refused.
    Records,
    /// A start, or facts alone: places and checkpoints are what frees the disk again.
    Facts,
}

#[derive(Debug)]
pub(super) struct Spare {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
}

/// The spares of a journal.
#[derive(Debug)]
pub(super) struct Spares {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    wanted: KeptBack,
    segment_bytes: u64,
    files: Vec<Spare>,
    ballast: Option<Spare>,
    filling: Option<Filling>,
    /// Whether the names are durable. A file may be used again only when no start can meet it under its old name.
    synced: bool,
    /// For the next name.
    next_name: u64,
}

#[derive(Debug)]
struct Filling {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    into: PathBuf,
    filled: u64,
    wanted: u64,
}

/// Whether `name` is a spare that is being filled, which a start removes.
pub(super) fn is_unfinished(name: &str) -> bool {
    name == UNFINISHED
}

fn is_ballast(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == BALLAST)
}

impl Spares {
    /// Those among the `names` in `dir`, changing nothing.
    pub(super) fn find(
        disk: Arc<dyn Disk>,
        dir: &Path,
        names: &[String],
        wanted: KeptBack,
        segment_bytes: u64,
    ) -> Result<Self, Error> {
        let mut spares = Self {
            disk,
            dir: dir.to_path_buf(),
            wanted,
            segment_bytes,
            files: Vec::new(),
            ballast: None,
            filling: None,
            // What is found is there; whether it is durable is not known.
            synced: false,
            next_name: 0,
        };
        for name in names {
            let path = dir.join(name);
            if let Some(number) = name.strip_suffix(SUFFIX).and_then(|stem| stem.parse::<u64>().ok()) {
                spares.next_name = spares.next_name.max(number.saturating_add(1));
                spares.files.push(spares.look_at(path)?);
            } else if name == BALLAST {
                spares.ballast = Some(spares.look_at(path)?);
            }
        }
        Ok(spares)
    }

    /// Removes what is more than wanted.
    pub(super) fn trim(&mut self) -> Result<(), Error> {
        while self.files.len() > self.wanted.spares {
            let Some(spare) = self.files.pop() else { break };
            self.remove(&spare.path)?;
        }
        if let Some(ballast) = self.ballast.take_if(|_| self.wanted.ballast_bytes == 0) {
            self.remove(&ballast.path)?;
        }
        Ok(())
    }

    fn look_at(&self, path: PathBuf) -> Result<Spare, Error> {
        let failed = |source| Error::io("open", &path, source);
        let bytes = self.disk.open(&path, false).and_then(|file| file.length()).map_err(failed)?;
        Ok(Spare { path, bytes })
    }

    fn remove(&self, path: &Path) -> Result<(), Error> {
        self.disk.remove(path).map_err(|source| Error::io("remove", path, source))
    }

    /// Bytes of all of them.
    pub(super) fn bytes(&self) -> u64 {
        let files = self.files.iter().chain(&self.ballast).map(|spare| spare.bytes).sum::<u64>();
        files + self.filling.as_ref().map_or(0, |filling| filling.filled)
    }

    /// Bytes that are still to be had for what is to be kept back.
    pub(super) fn missing_bytes(&self) -> u64 {
        let spares = self.wanted.spares.saturating_sub(self.files.len()) as u64 * self.segment_bytes;
        let ballast = if self.ballast.is_some() { 0 } else { self.wanted.ballast_bytes };
        (spares + ballast).saturating_sub(self.filling.as_ref().map_or(0, |filling| filling.filled))
    }

    /// Takes the file of a segment that goes, or removes it if it is `in_use` otherwise or one too many. To be made
    /// durable with [`Spares::sync`].
    pub(super) fn retire(&mut self, segment: &Path, bytes: u64, in_use: bool) -> io::Result<()> {
        if in_use || !self.wants_more() {
            self.disk.remove(segment)?;
            self.synced = false;
            return Ok(());
        }
        let path = self.new_name();
        self.disk.rename(segment, &path)?;
        self.synced = false;
        self.files.push(Spare { path, bytes });
        Ok(())
    }

    fn wants_more(&self) -> bool {
        self.files.len() < self.wanted.spares
    }

    /// Makes the names durable.
    pub(super) fn sync(&mut self) -> Result<(), Error> {
        if !self.synced {
            self.disk.sync_dir(&self.dir).map_err(|source| Error::sync(&self.dir, source))?;
            self.synced = true;
        }
        Ok(())
    }

    /// Takes a spare for a segment, if there is one for this purpose.
    pub(super) fn take(&mut self, purpose: For) -> Result<Option<Spare>, Error> {
        let left = match purpose {
            For::Records => RESERVED,
            For::Facts => 0,
        };
        if self.files.len() <= left {
            return Ok(None);
        }
        self.sync()?;
        Ok(self.files.pop())
    }

    /// Takes the ballast, for a segment of its size.
    pub(super) fn take_ballast(&mut self) -> Result<Option<Spare>, Error> {
        if self.ballast.is_some() {
            self.sync()?;
        }
        Ok(self.ballast.take())
    }

    /// Puts a file on the list.
    pub(super) fn give_back(&mut self, spare: Spare) {
        match is_ballast(&spare.path) {
            true => self.ballast = Some(spare),
            false => self.files.push(spare),
        }
    }

    /// Removes every file that may hold bytes of segments that went.
    ///
    /// # Errors
    /// [`Error::Io`] of the file system; the rest stays.
    pub(super) fn clear(&mut self) -> Result<(), Error> {
        while let Some(spare) = self.files.last() {
            self.remove(&spare.path)?;
            self.files.pop();
        }
        self.synced = false;
        self.sync()
    }

    fn new_name(&mut self) -> PathBuf {
        self.next_name += 1;
        self.dir.join(format!("{}{SUFFIX}", self.next_name - 1))
    }

    /// One step towards what is to be kept back; false when nothing is missing.
    ///
    /// # Errors
    /// [`Error`] of the file system, [`Error::Full`] too; what was begun is given back.
    pub(super) fn prepare(&mut self) -> Result<bool, Error> {
        let Some(mut filling) = self.filling.take().map_or_else(|| self.begin(), |filling| Ok(Some(filling)))? else {
            return Ok(false);
        };
        match self.step(&mut filling) {
            Ok(true) => {
                self.give_back(Spare { path: filling.into, bytes: filling.filled });
                Ok(true)
            }
            Ok(false) => {
                self.filling = Some(filling);
                Ok(true)
            }
            Err(error) => {
                // If this fails too, the next attempt replaces it.
                let _ = self.disk.remove(&filling.path);
                Err(error)
            }
        }
    }

    fn begin(&mut self) -> Result<Option<Filling>, Error> {
        let (into, wanted) = if self.ballast.is_none() && self.wanted.ballast_bytes > 0 {
            (self.dir.join(BALLAST), self.wanted.ballast_bytes)
        } else if self.wants_more() {
            (self.new_name(), self.segment_bytes)
        } else {
            return Ok(None);
        };
        let path = self.dir.join(UNFINISHED);
        let file = match self.disk.create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.disk.remove(&path).and_then(|()| self.disk.create(&path))
            }
            other => other,
        };
        let file = file.map_err(|source| Error::io("create", &path, source))?;
        if let Err(source) = file.allocate(wanted) {
            let _ = self.disk.remove(&path);
            return Err(Error::io("allocate", &path, source));
        }
        Ok(Some(Filling { file, path, into, filled: 0, wanted }))
    }

    /// Fills a little; true when the file is complete and has its name.
    fn step(&mut self, filling: &mut Filling) -> Result<bool, Error> {
        let Filling { file, path, into, filled, wanted } = filling;
        let until = (*filled + STEP_BYTES).min(*wanted);
        while *filled < until {
            let length = usize::try_from(until - *filled).unwrap_or(ZEROS.len()).min(ZEROS.len());
            file.write_at(&[&ZEROS[..length]], *filled).map_err(|source| Error::io("write", path, source))?;
            *filled += length as u64;
        }
        // A little at a time: a commit that comes now waits for this.
        file.sync_data().map_err(|source| Error::sync(path, source))?;
        if *filled < *wanted {
            return Ok(false);
        }
        self.disk.rename(path, into).map_err(|source| Error::io("rename", path, source))?;
        self.synced = false;
        self.sync()?;
        Ok(true)
    }
}
