//! What can go wrong, by what the caller must do about it.

use std::io;
use std::path::{Path, PathBuf};

/// An operation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk is full. Nothing that was staged is on disk; refuse it, and try again when there is room.
    #[error("the disk is full: cannot {operation} {}", path.display())]
    Full {
        /// What was being done.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
    },
    /// The file system failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// The file system's answer.
        source: io::Error,
    },
    /// A write or sync of the journal failed before, so it is not known what is on disk. The process must end and
    /// start again, because after a failed sync the page cache may show what the disk does not hold
    /// (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020).
    #[error("the journal failed earlier and takes nothing more; restart to recover what is on disk")]
    Poisoned,
    /// A file was written by a newer version. It is left untouched.
    #[error("{} has format version {version}, this program reads up to {}", path.display(), crate::segment::VERSION)]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u16,
    },
}

impl Error {
    /// Adds what was being done to an I/O error; a full disk becomes [`Error::Full`].
    pub(crate) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        if is_full(&source) { Self::Full { operation, path } } else { Self::Io { operation, path, source } }
    }

    /// Whether a file was not there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether the file is gone, or the medium does not give it back.
    pub(crate) fn is_of_the_medium(&self) -> bool {
        let is_lost = |source: &io::Error| crate::disk::lossy::is_of_the_medium(source);
        self.is_not_found() || matches!(self, Self::Io { source, .. } if is_lost(source))
    }

    /// A failed sync. Never [`Error::Full`], whatever the file system says: that would promise that nothing is on disk.
    pub(crate) fn sync(path: &Path, source: io::Error) -> Self {
        Self::Io { operation: "sync", path: path.to_path_buf(), source }
    }
}

/// Whether a call failed for want of room alone.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
