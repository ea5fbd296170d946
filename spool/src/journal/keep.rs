//! Whole segments that are kept beside the journal, under a second name or as a copy.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{SegmentInfo, Shared, recover};
use crate::disk::Disk;
use crate::error::is_full;
use crate::{Error, segment};

/// How much is copied at once.
const COPY_BYTES: usize = 1 << 20;

/// A directory of segments that are kept.
#[derive(Debug, Clone)]
pub struct Kept {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

impl Kept {
    /// The kept segments in `dir`, which is made if need be, durably. Copies that were not finished are removed.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Io`] of the file system.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, Error> {
        recover::make_dir(&*disk, dir)?;
        for name in disk.list(dir).map_err(|source| Error::io("list", dir, source))? {
            if segment::is_unfinished(&name) {
                let path = dir.join(name);
                disk.remove(&path).map_err(|source| Error::io("remove", &path, source))?;
            }
        }
        Ok(Self { disk, dir: dir.to_path_buf() })
    }

    /// Where they are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The segments that are here with their sizes, ascending.
    ///
    /// # Errors
    /// [`Error::Io`] of the file system.
    pub fn list(&self) -> Result<Vec<(u64, u64)>, Error> {
        let names = self.disk.list(&self.dir).map_err(|source| Error::io("list", &self.dir, source))?;
        let mut found = Vec::new();
        for id in names.iter().filter_map(|name| segment::parse_name(name)) {
            let path = segment::path(&self.dir, id);
            let length = self.disk.open(&path, false).and_then(|file| file.length());
            found.push((id, length.map_err(|source| Error::io("open", &path, source))?));
        }
        found.sort_unstable();
        Ok(found)
    }

    pub(super) fn take(&self, journal: &Shared, segments: &[SegmentInfo]) -> Result<(), Error> {
        let mut made = Vec::new();
        for info in segments {
            let from = segment::path(&journal.inner.dir, info.id);
            let to = segment::path(&self.dir, info.id);
            match self.disk.link(&from, &to) {
                Ok(()) => {}
                // The content of a sealed segment does not change: whoever made it, it is the same.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(error) if is_full(&error) => {
                    return Err(Error::io("link", &to, error));
                }
                Err(_) => copy(&*self.disk, &from, &self.dir, info.id)?,
            }
            made.push(to);
        }
        self.disk.sync_dir(&self.dir).map_err(|source| {
            // After a failed sync the cache may show names that the disk does not hold. They are made anew next time;
            // those that were there before may already be somebody's dead letters.
            for path in made {
                let _ = self.disk.remove(&path);
            }
            Error::io("sync", &self.dir, source)
        })
    }

    /// Lets go of segments. Nothing must say any more that they are here; what a crash leaves is removed by whoever
    /// lists them next.
    ///
    /// # Errors
    /// [`Error::Io`] of the file system.
    pub fn remove(&self, ids: &[u64]) -> Result<(), Error> {
        for id in ids {
            let path = segment::path(&self.dir, *id);
            match self.disk.remove(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &path, error));
                }
                _ => {}
            }
        }
        if ids.is_empty() {
            return Ok(());
        }
        self.disk.sync_dir(&self.dir).map_err(|source| Error::io("sync", &self.dir, source))
    }
}

/// Where a file can't have two names.
fn copy(disk: &dyn Disk, from: &Path, dir: &Path, id: u64) -> Result<(), Error> {
    let unfinished = segment::path_unfinished(dir, id);
    let copied = (|| {
        match disk.remove(&unfinished) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let source = disk.open(from, false)?;
        let target = disk.create(&unfinished)?;
        target.allocate(source.length()?)?;
        let mut buffer = vec![0; COPY_BYTES];
        let mut offset = 0;
        loop {
            let filled = source.read_at(&mut buffer, offset)?;
            if filled == 0 {
                break;
            }
            target.write_at(&[&buffer[..filled]], offset)?;
            offset += filled as u64;
        }
        target.sync_all()?;
        disk.rename(&unfinished, &segment::path(dir, id))
    })();
    copied.map_err(|source| {
        // If this fails too, the next attempt or start removes it.
        let _ = disk.remove(&unfinished);
        Error::io("copy", from, source)
    })
}
