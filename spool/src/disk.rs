//! The only door to the file system.
//!
//! Few, positional, whole-buffer calls, so that a simulated disk can stand in for the real one, count every call, and
//! lose, tear or refuse any of them.

pub(crate) mod lossy;
#[cfg(feature = "sim")]
pub mod sim;

use std::fmt::Debug;
use std::fs;
use std::io::{self, IoSlice};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// A file system.
pub trait Disk: Debug + Send + Sync {
    /// Creates `dir` (mode 0700) and its missing parents. Not durable before [`Disk::sync_dir`] of each parent.
    ///
    /// # Errors
    /// The file system's.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// The names in `dir`, in no order.
    ///
    /// # Errors
    /// The file system's.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Creates a file (mode 0600) that must not exist, for reading and writing.
    ///
    /// # Errors
    /// The file system's; `AlreadyExists` when it does.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens an existing file for reading, and for writing if `writable`.
    ///
    /// # Errors
    /// The file system's.
    fn open(&self, path: &Path, writable: bool) -> io::Result<Box<dyn DiskFile>>;

    /// Renames, replacing `to`.
    ///
    /// # Errors
    /// The file system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// The file system's.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Gives a file a second name, which must not exist. Not durable before [`Disk::sync_dir`].
    ///
    /// # Errors
    /// The file system's; `AlreadyExists` when the name is taken, and others where files can't have two names.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// How many names a file has. One with a second name must not be written over: it is somebody else's, too.
    ///
    /// # Errors
    /// The file system's.
    fn links(&self, path: &Path) -> io::Result<u64>;

    /// Makes the entries of `dir` durable: what was created, renamed or removed in it.
    ///
    /// # Errors
    /// The file system's. Whether the entries are durable is then unknown.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Bytes that an unprivileged process may still use on the file system of `dir`.
    ///
    /// # Errors
    /// The file system's.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
}

/// An open file. All calls are positional; there is no cursor.
pub trait DiskFile: Debug + Send + Sync {
    /// Its length in bytes.
    ///
    /// # Errors
    /// The file system's.
    fn length(&self) -> io::Result<u64>;

    /// Fills `buffer` from `offset`; returns less than its length only at the end of the file.
    ///
    /// # Errors
    /// The file system's.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all `parts` in a row from `offset`.
    ///
    /// # Errors
    /// The file system's; how much was written is then unknown.
    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()>;

    /// Sets the length and makes sure that there is room for all of it.
    ///
    /// # Errors
    /// The file system's, `StorageFull` when there is no room.
    fn allocate(&self, length: u64) -> io::Result<()>;

    /// Cuts the file.
    ///
    /// # Errors
    /// The file system's.
    fn truncate(&self, length: u64) -> io::Result<()>;

    /// Makes the content durable, and the length if it changed (`fdatasync`).
    ///
    /// # Errors
    /// The file system's. After one the page cache may hold what the disk does not: do not write on.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes content and metadata durable (`fsync`).
    ///
    /// # Errors
    /// As [`DiskFile::sync_data`].
    fn sync_all(&self) -> io::Result<()>;
}

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        // A name that is not UTF-8 is not one of ours.
        fs::read_dir(dir)?
            .filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose())
            .collect()
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Box::new(OsFile(file)))
    }

    fn open(&self, path: &Path, writable: bool) -> io::Result<Box<dyn DiskFile>> {
        let file = fs::OpenOptions::new().read(true).write(writable).open(path)?;
        Ok(Box::new(OsFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn links(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.nlink())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// The kernel takes at most this many parts in one call (`IOV_MAX`).
const PARTS_MAX: usize = 1024;

#[derive(Debug)]
struct OsFile(fs::File);

impl DiskFile for OsFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, parts: &[&[u8]], mut offset: u64) -> io::Result<()> {
        for parts in parts.chunks(PARTS_MAX) {
            let mut slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
            let mut slices = slices.as_mut_slice();
            // Also drops empty slices at the front, on which a write of nothing would not advance.
            IoSlice::advance_slices(&mut slices, 0);
            while !slices.is_empty() {
                match rustix::io::pwritev(&self.0, slices, offset) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => {
                        IoSlice::advance_slices(&mut slices, count);
                        offset += count as u64;
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), 0, length) {
            Ok(()) => Ok(()),
            // A file system that cannot promise room: the length is set, and a full disk shows at the write.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => self.0.set_len(length),
            Err(error) => Err(error.into()),
        }
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }
}
