//! The state directory: its format, and the lock that keeps a second daemon out.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The one line in `<state>/FORMAT`.
const FORMAT: &str = "tracespool 1\n";

/// How often, and with what pauses, a lock that is held is tried again.
const LOCK_TRIES: u32 = 5;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// A state directory that belongs to this process as long as the value lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

/// Why a state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another daemon holds it.
    #[error("{} is in use by another daemon{}", path.display(), holder.as_ref().map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process id of the holder, where it can be read.
        holder: Option<String>,
    },
    /// It is not a state directory, or its `FORMAT` is damaged.
    #[error("{} says {found:?}, which no version of tracespool writes; name another state directory", path.display())]
    Foreign {
        /// The file `FORMAT`.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// A newer version made it.
    #[error("{} says {found:?}: a newer version of tracespool made this state directory; install that version", path.display())]
    Newer {
        /// The file `FORMAT`.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// The file system failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
}

impl StateDir {
    /// Makes the directory if need be, locks it, and checks its format.
    ///
    /// # Errors
    /// [`StateDirError`]; a directory of a newer format is left untouched.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let failed = |operation, path: &Path| {
            let path = path.to_path_buf();
            move |source| StateDirError::Io { operation, path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create", path))?;
        let format = path.join("FORMAT");
        let known = check_format(&format)?;
        let lock = lock(path)?;
        if !known {
            write_format(path, &format).map_err(failed("write", &format))?;
        }
        Ok(Self { path: path.to_path_buf(), _lock: lock })
    }

    /// This daemon's id, which requests carry on to other daemons so that none goes round in a loop: 16 hex digits,
    /// made at the first start. A copy of the directory on another machine is another daemon. One that can't be kept, on
    /// a full disk, serves until the next start; loops are found then, too, a round later.
    pub fn id(&self) -> String {
        let path = self.path.join("ID");
        let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        let machine = machine.trim();
        let known = fs::read_to_string(&path).unwrap_or_default();
        if let Some((id, of_machine)) = known.trim_end_matches('\n').split_once(' ')
            && of_machine == machine
            && id.len() == 16
            && id.bytes().all(|byte| byte.is_ascii_hexdigit())
        {
            return id.to_owned();
        }
        let id = format!("{:016x}", fastrand::u64(..));
        if let Err(error) = self.write_id(&path, &format!("{id} {machine}\n")) {
            tracing::warn!("cannot write {}: {error}; the daemon has another id after the next start", path.display());
        }
        id
    }

    fn write_id(&self, path: &Path, text: &str) -> io::Result<()> {
        let fresh = self.path.join("ID.new");
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    }

    /// The directory of the journal.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// The directory of the side journal.
    #[must_use]
    pub fn side(&self) -> PathBuf {
        self.path.join("side")
    }

    /// The directory of the ledger.
    #[must_use]
    pub fn ledger(&self) -> PathBuf {
        self.path.join("ledger")
    }
}

/// The process id of the daemon that holds the directory, as far as it can be read; `None` when none does. Changes nothing.
///
/// # Errors
/// The file system's.
pub fn holder(dir: &Path) -> Result<Option<String>, StateDirError> {
    let path = dir.join("LOCK");
    let failed = |operation| {
        let path = path.clone();
        move |source| StateDirError::Io { operation, path, source }
    };
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed("open"))?,
    };
    // Held for a moment only; a daemon that starts just then tries again.
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            file.read_to_string(&mut text).map_err(failed("read"))?;
            Ok(Some(text.trim().to_owned()))
        }
        Err(TryLockError::Error(source)) => Err(failed("lock")(source)),
    }
}

/// Checks the format of a directory that is only looked at.
///
/// # Errors
/// When it is of another format.
pub fn check(dir: &Path) -> Result<(), StateDirError> {
    check_format(&dir.join("FORMAT")).map(|_| ())
}

/// Whether the directory has the format of this version already.
fn check_format(path: &Path) -> Result<bool, StateDirError> {
    match fs::read_to_string(path) {
        // Empty: the power went while it was written, before anything else was.
        Ok(found) if found.is_empty() => Ok(false),
        Ok(found) if found == FORMAT => Ok(true),
        Ok(found) => Err(unknown_format(path, found.trim())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(StateDirError::Io { operation: "read", path: path.to_path_buf(), source }),
    }
}

fn unknown_format(path: &Path, text: &str) -> StateDirError {
    let newer = text.strip_prefix("tracespool ").is_some_and(|version| version.parse::<u32>().is_ok());
    let (path, found) = (path.to_path_buf(), text.chars().take(80).collect());
    if newer { StateDirError::Newer { path, found } } else { StateDirError::Foreign { path, found } }
}

fn write_format(dir: &Path, path: &Path) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(FORMAT.as_bytes())?;
    file.sync_all()?;
    File::open(dir)?.sync_all()?;
    // The directory itself may be new too.
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

/// The lock is the kernel's and ends with the process, however that ends; the number in the file is for people.
fn lock(dir: &Path) -> Result<File, StateDirError> {
    let path = dir.join("LOCK");
    let failed = |operation| {
        let path = path.clone();
        move |source| StateDirError::Io { operation, path, source }
    };
    let mut options = fs::OpenOptions::new();
    let mut file =
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed("open"))?;
    // Somebody may be looking whether it is held: that takes a moment, a daemon takes longer.
    let mut locked = file.try_lock();
    for _ in 0..LOCK_TRIES {
        if !matches!(locked, Err(TryLockError::WouldBlock)) {
            break;
        }
        std::thread::sleep(LOCK_PAUSE);
        locked = file.try_lock();
    }
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let holder = file.read_to_string(&mut text).ok().map(|_| text.trim().to_owned());
            return Err(StateDirError::Locked {
                path: dir.to_path_buf(),
                holder: holder.filter(|pid| !pid.is_empty()),
            });
        }
        Err(TryLockError::Error(source)) => return Err(failed("lock")(source)),
    }
    file.set_len(0).map_err(failed("write"))?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(failed("write"))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_holds_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let held = StateDir::open(dir.path()).expect("free");
        let refused = StateDir::open(dir.path()).expect_err("held").to_string();
        assert!(refused.contains(&std::process::id().to_string()), "{refused}");
        drop(held);
        StateDir::open(dir.path()).expect("free again");
    }

    #[test]
    fn the_id_stays_but_not_on_another_machine() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let state_dir = StateDir::open(dir.path()).expect("free");
        let id = state_dir.id();
        assert_eq!(id.len(), 16);
        assert_eq!(state_dir.id(), id);
        for other in [format!("{id} another-machine\n"), "damaged".into(), String::new()] {
            fs::write(dir.path().join("ID"), other).expect("written");
            assert_ne!(state_dir.id(), id);
        }
    }

    #[test]
    fn a_newer_format_is_left_untouched() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("FORMAT"), "tracespool 2\n").expect("it can be written");
        let error = StateDir::open(dir.path()).expect_err("newer");
        assert!(matches!(error, StateDirError::Newer { .. }));
        fs::write(dir.path().join("FORMAT"), "something else").expect("it can be written");
        assert!(matches!(StateDir::open(dir.path()).expect_err("foreign"), StateDirError::Foreign { .. }));
        let names: Vec<_> = fs::read_dir(dir.path()).expect("there").collect();
        assert_eq!(names.len(), 1, "not even a lock file was made");
    }
}
