//! The directory itself, held open: everything in it is reached through its handle, and no link is followed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rustix::fs::{AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use spool::FileId;

/// Files are moved here before they are removed, so that what is removed is certainly what was taken.
const TAKEN: &str = ".taken";
/// What could not be taken.
const REJECTED: &str = "rejected";
/// What was taken, where the operator wants to keep it.
const ARCHIVE: &str = "archive";

/// A directory inside the drop directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inner {
    Taken,
    Rejected,
    Archive,
}

impl Inner {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Taken => TAKEN,
            Self::Rejected => REJECTED,
            Self::Archive => ARCHIVE,
        }
    }
}

/// Why the directory can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("{} is watched by another daemon; give each a directory of its own (receive.directory.path)", .0.display())]
    Held(PathBuf),
    #[error("cannot use {}: {source}{}", path.display(), cure.as_deref().unwrap_or_default())]
    Io { path: PathBuf, source: io::Error, cure: Option<String> },
}

/// The drop directory.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    id: FileId,
    dir: OwnedFd,
}

/// What can be known of a file without opening it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) id: FileId,
    pub(super) kind: FileType,
    pub(super) look: Look,
    /// When anything about it changed last, its names included; nanoseconds since 1970.
    pub(super) changed_ns: u64,
    pub(super) owner: u32,
    pub(super) mode: u32,
}

/// By this a file is seen to have been written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) length: u64,
    pub(super) modified_ns: u64,
}

impl Look {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { length: metadata.len(), modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()) })
    }
}

impl Place {
    /// Opens the directory, makes it if it is missing, and takes the lock that keeps other daemons out.
    pub(super) fn open(path: &Path) -> Result<Self, Unusable> {
        let failed = |error: Errno| {
            let cure = (error == Errno::ACCESS || error == Errno::ROFS).then(|| cure_of_directory(path));
            Unusable::Io { path: path.to_owned(), source: error.into(), cure }
        };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                rustix::fs::mkdir(path, Mode::from_raw_mode(0o770)).map_err(failed)?;
                rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(failed)?
            }
            opened => opened.map_err(failed)?,
        };
        // Where there are no such locks, nobody can be kept out.
        if rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            return Err(Unusable::Held(path.to_owned()));
        }
        let id = id(&rustix::fs::fstat(&dir).map_err(failed)?);
        // Where nothing can be made, nothing can be removed, and so nothing is taken.
        inner(&dir, Inner::Taken).map_err(failed)?;
        Ok(Self { path: path.to_owned(), id, dir })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn device(&self) -> u64 {
        self.id.device
    }

    /// Whether the path still leads here: a directory may be removed, renamed, mounted over.
    pub(super) fn is_there(&self) -> bool {
        rustix::fs::stat(&self.path).is_ok_and(|stat| id(&stat) == self.id)
    }

    /// The names in it.
    pub(super) fn names(&self) -> io::Result<Vec<OsString>> {
        names(&self.dir)
    }

    /// The names of files that were about to be removed when the daemon was killed.
    pub(super) fn names_taken(&self) -> io::Result<Vec<OsString>> {
        names(&self.inner(Inner::Taken)?)
    }

    pub(super) fn look(&self, name: &OsStr) -> io::Result<Seen> {
        look(&self.dir, name)
    }

    pub(super) fn look_at_taken(&self, name: &OsStr) -> io::Result<Seen> {
        look(&self.inner(Inner::Taken)?, name)
    }

    /// Opens a file for reading, without following a link or waiting for anybody. With the moment when it came into
    /// being, where the file system says that.
    pub(super) fn read(&self, name: &OsStr) -> io::Result<(File, FileId, u64)> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let file = File::from(rustix::fs::openat(&self.dir, name, flags, Mode::empty())?);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a file any more"));
        }
        let born = metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        let born_ns = born.map_or(0, |born| u64::try_from(born.as_nanos()).unwrap_or(0));
        Ok((file, FileId { device: metadata.dev(), inode: metadata.ino() }, born_ns))
    }

    /// Takes a file out of the directory, if it still is the file it was, and looks as it did.
    pub(super) fn take_away(&self, name: &OsStr, was: FileId, looked: Look, archive: bool) -> io::Result<Removed> {
        let into = &self.inner(if archive { Inner::Archive } else { Inner::Taken })?;
        let target = move_to(&self.dir, name, into, name)?;
        let seen = look(into, &target)?;
        if seen.id != was || seen.look != looked {
            // Somebody else's, or more of it: back to where it was, unless there is another one already.
            put_back(into, &target, &self.dir, name)?;
            return Ok(Removed::Changed);
        }
        if !archive {
            rustix::fs::unlinkat(into, &target, AtFlags::empty())?;
        }
        Ok(Removed::Gone)
    }

    /// Moves a file as it is to where the operator finds it, and says under which name.
    pub(super) fn move_aside(&self, name: &OsStr, to: &OsStr, was: FileId) -> io::Result<Option<OsString>> {
        let rejected = self.inner(Inner::Rejected)?;
        let target = move_to(&self.dir, name, &rejected, to)?;
        if look(&rejected, &target)?.id != was {
            put_back(&rejected, &target, &self.dir, name)?;
            return Ok(None);
        }
        Ok(Some(target))
    }

    /// Removes what a killed daemon was about to remove.
    pub(super) fn finish_taken(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(self.inner(Inner::Taken)?, name, AtFlags::empty())?)
    }

    /// Puts back what a killed daemon had only moved.
    pub(super) fn put_back(&self, name: &OsStr) -> io::Result<()> {
        put_back(&self.inner(Inner::Taken)?, name, &self.dir, name)
    }

    /// A directory inside it, made if it is missing.
    pub(super) fn inner(&self, which: Inner) -> io::Result<OwnedFd> {
        Ok(inner(&self.dir, which)?)
    }

    /// Makes it durable that files went.
    pub(super) fn sync(&self, archive: bool) -> io::Result<()> {
        rustix::fs::fsync(self.inner(if archive { Inner::Archive } else { Inner::Taken })?)?;
        Ok(rustix::fs::fsync(&self.dir)?)
    }
}

/// What became of a file that was to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removed {
    Gone,
    /// It is not the file that was taken, or there is more in it now. It stays.
    Changed,
}

fn inner(dir: &OwnedFd, which: Inner) -> Result<OwnedFd, Errno> {
    let mode = if which == Inner::Taken { 0o700 } else { 0o770 };
    match rustix::fs::mkdirat(dir, which.name(), Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, which.name(), flags, Mode::empty())
}

/// The names in a directory, without those of itself and its parent.
pub(super) fn names(dir: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

pub(super) fn look(dir: &OwnedFd, name: &OsStr) -> io::Result<Seen> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(Seen {
        id: id(&stat),
        kind: FileType::from_raw_mode(stat.st_mode),
        look: Look {
            length: u64::try_from(stat.st_size).unwrap_or(0),
            modified_ns: ns(stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        },
        changed_ns: ns(stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or(0)),
        owner: stat.st_uid,
        mode: stat.st_mode & 0o7777,
    })
}

/// Moves a file to that name, or, where there is one of that name, to one like it.
fn move_to(from: &OwnedFd, name: &OsStr, to: &OwnedFd, target: &OsStr) -> io::Result<OsString> {
    for number in 0..10_000_u32 {
        let mut target = target.to_owned();
        if number > 0 {
            target.push(format!(".{number}"));
        }
        match move_exactly(from, name, to, &target) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // A name that is too long by these few characters.
            moved => return moved.map(|()| target),
        }
    }
    Err(io::Error::other("there are ten thousand files of that name"))
}

/// Moves a file back to its name, or, where there is another one by now, to a name that says as much.
fn put_back(from: &OwnedFd, name: &OsStr, to: &OwnedFd, was: &OsStr) -> io::Result<()> {
    for number in 0..10_000_u32 {
        let mut target = OsString::from(if number > 0 { format!("{number}-") } else { String::new() });
        target.push(was);
        match move_exactly(from, name, to, &target) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            moved => return moved,
        }
    }
    Err(io::Error::other("there are ten thousand files of that name"))
}

fn move_exactly(from: &OwnedFd, name: &OsStr, to: &OwnedFd, target: &OsStr) -> io::Result<()> {
    match rustix::fs::renameat_with(from, name, to, target, RenameFlags::NOREPLACE) {
        // A file system that can't promise it.
        Err(Errno::INVAL | Errno::NOSYS) => {
            if look(to, target).is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            Ok(rustix::fs::renameat(from, name, to, target)?)
        }
        moved => Ok(moved?),
    }
}

fn id(stat: &Stat) -> FileId {
    FileId { device: stat.st_dev, inode: stat.st_ino }
}

/// Seconds and nanoseconds since 1970 as one number; before 1970 it is 0.
fn ns(seconds: i64, nanoseconds: i64) -> u64 {
    let ns = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    u64::try_from(ns.max(0)).unwrap_or(u64::MAX)
}

/// Who could make a directory usable, and how.
fn cure_of_directory(path: &Path) -> String {
    let owner = rustix::fs::stat(path).map(|stat| (stat.st_uid, stat.st_mode & 0o7777));
    let me = rustix::process::geteuid().as_raw();
    match owner {
        Ok((owner, mode)) => format!(
            "; it belongs to user {owner} and has mode {mode:04o}, and the daemon runs as user {me}: let it read and \
             write there"
        ),
        Err(_) => format!("; make it, and let user {me} read and write there"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn place() -> (tempfile::TempDir, Place) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let place = Place::open(&dir.path().join("drop")).expect("it is made");
        (dir, place)
    }

    fn seen(place: &Place, name: &str) -> Seen {
        place.look(OsStr::new(name)).expect("it is there")
    }

    #[test]
    fn only_the_file_that_was_taken_goes() -> io::Result<()> {
        let (_dir, place) = place();
        let path = place.path().join("a.jsonl");
        fs::write(&path, "one")?;
        let was = seen(&place, "a.jsonl");
        let take_away = |was: &Seen| place.take_away(OsStr::new("a.jsonl"), was.id, was.look, false);

        fs::write(&path, "one and more")?;
        assert_eq!(take_away(&was)?, Removed::Changed);
        assert_eq!(fs::read_to_string(&path)?, "one and more", "it is where it was");

        fs::write(place.path().join("other"), "another")?;
        fs::rename(place.path().join("other"), &path)?;
        assert_eq!(take_away(&was)?, Removed::Changed);
        assert_eq!(fs::read_to_string(&path)?, "another");

        assert_eq!(take_away(&seen(&place, "a.jsonl"))?, Removed::Gone);
        assert!(!path.exists() && place.names_taken()?.is_empty());
        Ok(())
    }

    #[test]
    fn what_was_only_moved_comes_back_beside_a_newer_one() -> io::Result<()> {
        let (_dir, place) = place();
        fs::write(place.path().join(".taken/a.json"), "older")?;
        fs::write(place.path().join("a.json"), "newer")?;
        place.put_back(OsStr::new("a.json"))?;
        assert_eq!(fs::read_to_string(place.path().join("a.json"))?, "newer");
        assert_eq!(fs::read_to_string(place.path().join("1-a.json"))?, "older");
        Ok(())
    }

    #[test]
    fn no_link_is_followed() -> io::Result<()> {
        let (dir, place) = place();
        fs::write(dir.path().join("secret"), "not to be read")?;
        std::os::unix::fs::symlink(dir.path().join("secret"), place.path().join("a.json"))?;
        assert!(place.read(OsStr::new("a.json")).is_err());
        assert_eq!(seen(&place, "a.json").kind, FileType::Symlink);
        // Nor is a directory of the daemon's own that somebody put a link in the place of.
        fs::remove_dir(place.path().join(".taken"))?;
        std::os::unix::fs::symlink(dir.path(), place.path().join(".taken"))?;
        assert!(place.names_taken().is_err());
        Ok(())
    }

    #[test]
    fn it_is_held_by_one_and_seen_to_be_gone() -> io::Result<()> {
        let (dir, place) = place();
        assert!(place.is_there());
        assert!(matches!(Place::open(place.path()), Err(Unusable::Held(_))));
        fs::rename(place.path(), dir.path().join("elsewhere"))?;
        assert!(!place.is_there());
        fs::create_dir(place.path())?;
        assert!(!place.is_there(), "another one of that name is another one");
        Ok(())
    }
}
