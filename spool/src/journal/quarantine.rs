//! Where damaged bytes are kept aside: torn groups, and damaged segments that nobody needs any more.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::{SegmentInfo, Shared};
use crate::disk::Disk;
use crate::{Error, segment};

/// The directory beside the segments.
const DIR: &str = "quarantine";
/// No more files are kept; the oldest go first.
const FILES_MAX: usize = 16;

/// The files that are there, with their sizes. Their names begin with the segment, so the oldest comes first.
#[derive(Debug, Default)]
pub(super) struct Files(BTreeMap<String, u64>);

impl Files {
    /// Those beside the journal in `dir`.
    pub(super) fn find(disk: &dyn Disk, dir: &Path) -> Result<Self, Error> {
        let dir = path(dir);
        let names = match disk.list(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            names => names.map_err(|source| Error::io("list", &dir, source))?,
        };
        let mut files = BTreeMap::new();
        // What an operator puts there stays, and keeps no start from succeeding; nor does a file that can't be opened.
        for name in names.into_iter().filter(|name| is_ours(name)) {
            let bytes = disk.open(&dir.join(&name), false).and_then(|file| file.length()).unwrap_or(0);
            files.insert(name, bytes);
        }
        Ok(Self(files))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.values().sum()
    }
}

/// Whether a name is one of a segment's, of a torn group's (`<segment>-<offset>.group`) or of a repair's
/// (`<segment>-<count>.seg`).
fn is_ours(name: &str) -> bool {
    let stem = name.strip_suffix(".seg").or_else(|| name.strip_suffix(".group"));
    let segment = stem.map(|stem| stem.split_once('-').map_or(stem, |(segment, _)| segment));
    segment.is_some_and(|segment| segment::parse_name(&format!("{segment}.seg")).is_some())
}

/// The directory beside the segments in `dir`.
pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join(DIR)
}

/// Makes the directory, durably.
pub(super) fn make(disk: &dyn Disk, dir: &Path) -> Result<PathBuf, Error> {
    let into = path(dir);
    disk.create_dir(&into).map_err(|source| Error::io("create", &into, source))?;
    disk.sync_dir(dir).map_err(|source| Error::sync(dir, source))?;
    Ok(into)
}

/// Moves a segment that goes here if it is known to be damaged; says whether it did. One of which there is no room to
/// make the directory is not kept.
pub(super) fn keep_if_damaged(shared: &Shared, info: &SegmentInfo) -> Result<bool, Error> {
    if !shared.known().is_damaged(info.id) {
        return Ok(false);
    }
    let (disk, dir) = (&*shared.inner.disk, &shared.inner.dir);
    let into = match make(disk, dir) {
        Err(Error::Full { .. }) => return Ok(false),
        made => made?,
    };
    let from = segment::path(dir, info.id);
    let to = segment::path(&into, info.id);
    match disk.rename(&from, &to) {
        // It went in an attempt that was reported as failed; or there is no room for the name.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::StorageFull) => return Ok(false),
        moved => moved.map_err(|source| Error::io("rename", &from, source))?,
    }
    if let Some(name) = to.file_name().and_then(|name| name.to_str()) {
        shared.quarantined().0.insert(name.to_owned(), info.file_bytes);
    }
    disk.sync_dir(&into).map_err(|source| Error::io("sync", &into, source))?;
    shared.limit_quarantine()?;
    Ok(true)
}

impl Shared {
    /// Removes the oldest of the files that were kept aside because they are damaged; false when there is none.
    ///
    /// # Errors
    /// [`Error::Io`] of the file system.
    pub fn drop_quarantined(&self) -> Result<bool, Error> {
        let Some(name) = self.quarantined().0.keys().next().cloned() else { return Ok(false) };
        let file = path(&self.inner.dir).join(&name);
        match self.inner.disk.remove(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &file, error)),
            _ => {}
        }
        self.quarantined().0.remove(&name);
        Ok(true)
    }

    pub(super) fn limit_quarantine(&self) -> Result<(), Error> {
        while self.quarantined().0.len() > FILES_MAX {
            self.drop_quarantined()?;
        }
        Ok(())
    }
}
