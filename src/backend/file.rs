//! OTLP JSON lines in a file that rotates.
//!
//! A batch is delivered when its lines are synced to disk. At least once holds here too: after a crash or a failed write
//! lines may be there twice, and a line that a crash cut off stands alone, ended by the next append, so that a reader
//! loses that line only, which is written again in full behind it.

use std::fs::{self, DirBuilder, File as Handle, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::{Batch, Failure, Outcome, encode};
use crate::config::FileTarget;
use crate::otlp;

/// Traces hold what users typed: others on the machine have no business with them.
const FILE_MODE: u32 = 0o640;
const DIR_MODE: u32 = 0o750;

/// One file and its predecessors.
#[derive(Debug)]
pub(super) struct File {
    /// One writer at a time. An attempt that runs out of time while it waits leaves nothing behind; one that is writing
    /// holds the lock until it has written.
    writer: Arc<Mutex<Writer>>,
}

impl File {
    pub(super) fn build(target: &FileTarget) -> Self {
        Self { writer: Arc::new(Mutex::new(Writer { target: target.clone() })) }
    }

    pub(super) async fn attempt(&self, batch: &Batch, deadline: Instant) -> Outcome {
        let Ok(writer) = timeout_at(deadline, self.writer.clone().lock_owned()).await else {
            return Outcome::timeout();
        };
        let requests = batch.requests.clone();
        let work = encode::blocking(move || writer.append(&lines(&requests)));
        match timeout_at(deadline, work).await {
            Err(_) => Outcome::timeout(),
            Ok(Ok(Ok(()))) => Outcome::delivered(),
            Ok(Ok(Err(failed))) => failed.outcome(),
            Ok(Err(error)) => Failed { doing: "writing", error }.outcome(),
        }
    }
}

/// One line for each record, each with its end.
fn lines(requests: &[Bytes]) -> Vec<u8> {
    let mut out = Vec::new();
    for request in requests {
        let before = out.len();
        otlp::json::from_wire(request, &mut out);
        if out.len() > before {
            out.push(b'\n');
        }
    }
    out
}

/// What could not be done. The path is left out: the reader has it from the configuration.
#[derive(Debug)]
struct Failed {
    doing: &'static str,
    error: io::Error,
}

impl Failed {
    fn outcome(self) -> Outcome {
        let message = format!("{}: {}", self.doing, self.error);
        let failure = Failure::new("io", message);
        match self.error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Outcome::blocked(failure.advise(
                "the daemon's user must be able to write `path` and its directory; as a service also ReadWritePaths=",
            )),
            ErrorKind::IsADirectory
            | ErrorKind::NotADirectory
            | ErrorKind::InvalidInput
            | ErrorKind::InvalidFilename => {
                Outcome::blocked(failure.advise("check `path`: it must name a regular file"))
            }
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                Outcome::retry(failure.advise("make room on the disk of `path`, or lower `rotate_files`"))
            }
            _ => Outcome::retry(failure),
        }
    }
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> Failed {
    move |error| Failed { doing, error }
}

#[derive(Debug)]
struct Writer {
    target: FileTarget,
}

impl Writer {
    /// Appends whole lines and syncs them, over as many files as the limit makes necessary.
    ///
    /// The file is opened anew each time, so that one which somebody moved away or removed is simply begun again; beside
    /// the sync this costs nothing.
    fn append(&self, lines: &[u8]) -> Result<(), Failed> {
        if lines.is_empty() {
            return Ok(());
        }
        let (mut file, mut size) = self.open()?;
        let mut rest = lines;
        while !rest.is_empty() {
            let fits = fitting(rest, self.target.rotate_bytes.saturating_sub(size));
            // A line that is longer than a file may be has one to itself.
            let take = if fits == 0 && size == 0 { line(rest) } else { fits };
            if take > 0 {
                let (now, later) = rest.split_at(take);
                write(&file, size, now)?;
                rest = later;
            }
            if !rest.is_empty() {
                drop(file);
                self.rotate().map_err(failed("rotating"))?;
                (file, size) = self.open()?;
            }
        }
        Ok(())
    }

    /// The file, with its last line ended, and its size.
    fn open(&self) -> Result<(Handle, u64), Failed> {
        let path = &self.target.path;
        let mut options = OpenOptions::new();
        // Nothing that blocks when opened, such as a named pipe, may hold up the lock.
        options.read(true).append(true).mode(FILE_MODE).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
        let file = match options.open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let parent = parent(path);
                make_dirs(&parent).map_err(failed("creating the directory"))?;
                let file = options.create(true).open(path).map_err(failed("creating the file"))?;
                sync_dir(&parent).map_err(failed("syncing the directory"))?;
                file
            }
            other => other.map_err(failed("opening the file"))?,
        };
        let meta = file.metadata().map_err(failed("opening the file"))?;
        if !meta.is_file() {
            return Err(failed("opening the file")(io::Error::new(
                ErrorKind::InvalidInput,
                "it is not a regular file",
            )));
        }
        let mut size = meta.len();
        let mut last = [b'\n'];
        if size > 0 {
            file.read_exact_at(&mut last, size - 1).map_err(failed("reading the file"))?;
        }
        if last != [b'\n'] {
            // A crash cut the last line off. It is synced together with what follows.
            (&file).write_all(b"\n").map_err(failed("appending"))?;
            size += 1;
        }
        Ok((file, size))
    }

    /// Makes way for a new file: `.1` becomes `.2` and so on up to the first gap, and what is beyond the limit goes.
    fn rotate(&self) -> io::Result<()> {
        let keep = self.target.rotate_files;
        let mut beyond = keep.max(1);
        if keep == 0 {
            fs::remove_file(&self.target.path)?;
            beyond = 0;
        } else {
            let mut free = 1;
            while free < keep && self.rotated(free).try_exists()? {
                free += 1;
            }
            // From the oldest on, so that a crash in between leaves a gap and never two of one name. Renaming onto the
            // last one removes it.
            for number in (1..free).rev() {
                fs::rename(self.rotated(number), self.rotated(number + 1))?;
            }
            fs::rename(&self.target.path, self.rotated(1))?;
        }
        // Left over from a time when more were kept.
        while remove(&self.rotated(beyond + 1))? {
            beyond += 1;
        }
        sync_dir(&parent(&self.target.path))
    }

    fn rotated(&self, number: u32) -> PathBuf {
        let mut path = self.target.path.clone().into_os_string();
        path.push(format!(".{number}"));
        path.into()
    }
}

/// Whether there was such a file.
fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Appends `lines` to a file of `size` bytes and syncs them. What was written of them before an error is taken back, as
/// far as that succeeds: on a full disk every try would leave another half line.
fn write(mut file: &Handle, size: u64, lines: &[u8]) -> Result<(), Failed> {
    let written = file.write_all(lines).map_err(failed("appending"));
    let synced = written.and_then(|()| file.sync_data().map_err(failed("syncing")));
    if synced.is_err() {
        let _ = file.set_len(size);
    }
    synced
}

/// Bytes of the whole lines at the head of `lines` that fit into `room`.
fn fitting(lines: &[u8], room: u64) -> usize {
    let room = usize::try_from(room).unwrap_or(usize::MAX).min(lines.len());
    lines[..room].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)
}

/// Bytes of the first line.
fn line(lines: &[u8]) -> usize {
    lines.iter().position(|byte| *byte == b'\n').map_or(lines.len(), |end| end + 1)
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Creates `dir` and what is above it, each synced into its parent: a synced file in a directory that a power cut
/// forgets is gone too.
fn make_dirs(dir: &Path) -> io::Result<()> {
    if dir.try_exists()? {
        return Ok(());
    }
    let above = parent(dir);
    make_dirs(&above)?;
    match DirBuilder::new().mode(DIR_MODE).create(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => sync_dir(&above),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    Handle::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    struct Scene {
        dir: tempfile::TempDir,
        writer: Writer,
    }

    impl Scene {
        fn new(rotate_bytes: u64, rotate_files: u32) -> Self {
            let dir = tempfile::tempdir().expect("dir");
            let path = dir.path().join("a/b/traces.jsonl");
            Self { dir, writer: Writer { target: FileTarget { path, rotate_bytes, rotate_files } } }
        }

        fn append(&self, lines: &str) {
            self.writer.append(lines.as_bytes()).expect("append");
        }

        /// Content of the current file (0) or a rotated one; empty when there is none.
        fn content(&self, number: u32) -> String {
            let path = if number == 0 { self.writer.target.path.clone() } else { self.writer.rotated(number) };
            fs::read_to_string(path).unwrap_or_default()
        }
    }

    #[test]
    fn directories_are_made_and_lines_appended() {
        let scene = Scene::new(1000, 3);
        scene.append("one\n");
        scene.append("two\nthree\n");
        assert_eq!(scene.content(0), "one\ntwo\nthree\n");
        let mode = fs::metadata(&scene.writer.target.path).expect("meta").permissions().mode();
        assert_eq!(mode & 0o007, 0, "others have no business here");
    }

    #[test]
    fn a_file_rotates_before_it_would_pass_its_limit() {
        let scene = Scene::new(8, 2);
        scene.append("aaa\n");
        scene.append("bbb\n");
        assert_eq!(scene.content(0), "aaa\nbbb\n", "exactly at the limit is not past it");
        scene.append("c\n");
        assert_eq!((scene.content(0), scene.content(1)), ("c\n".into(), "aaa\nbbb\n".into()));
    }

    #[test]
    fn one_batch_may_fill_several_files_and_the_oldest_goes() {
        let scene = Scene::new(8, 2);
        scene.append("a1\nb2\nc3\nd4\ne5\nf6\ng7\n");
        assert_eq!(
            (scene.content(0), scene.content(1), scene.content(2)),
            ("g7\n".into(), "e5\nf6\n".into(), "c3\nd4\n".into())
        );
        assert_eq!(scene.content(3), "");
    }

    #[test]
    fn a_line_longer_than_a_file_has_one_to_itself() {
        let scene = Scene::new(4, 9);
        scene.append("a\n0123456789\nb\n");
        assert_eq!(
            (scene.content(0), scene.content(1), scene.content(2)),
            ("b\n".into(), "0123456789\n".into(), "a\n".into())
        );
    }

    #[test]
    fn without_rotated_files_the_old_one_goes() {
        let scene = Scene::new(4, 0);
        scene.append("aa\nbb\n");
        assert_eq!((scene.content(0), scene.content(1)), ("bb\n".into(), String::new()));
    }

    #[test]
    fn a_gap_spares_the_oldest_and_more_than_are_kept_go() {
        let scene = Scene::new(4, 3);
        scene.append("aa\n");
        for (number, text) in [(1, "one"), (3, "three"), (4, "four"), (5, "five")] {
            fs::write(scene.writer.rotated(number), text).expect("write");
        }
        scene.append("bb\n");
        let found = (0..6).map(|number| scene.content(number)).collect::<Vec<_>>();
        assert_eq!(found, ["bb\n", "aa\n", "one", "three", "", ""]);
    }

    #[test]
    fn a_torn_last_line_is_ended_first() {
        let scene = Scene::new(1000, 3);
        scene.append("whole\n");
        fs::OpenOptions::new()
            .append(true)
            .open(&scene.writer.target.path)
            .and_then(|mut file| file.write_all(b"torn"))
            .expect("tear");
        scene.append("next\n");
        assert_eq!(scene.content(0), "whole\ntorn\nnext\n");
    }

    #[test]
    fn a_file_that_was_moved_away_is_begun_again() {
        let scene = Scene::new(1000, 3);
        scene.append("one\n");
        fs::rename(&scene.writer.target.path, scene.dir.path().join("elsewhere")).expect("rename");
        scene.append("two\n");
        assert_eq!(scene.content(0), "two\n");
    }

    #[test]
    fn what_only_the_operator_can_mend_blocks_and_the_rest_is_tried_again() {
        let outcome = |errno: rustix::io::Errno| failed("appending")(errno.into()).outcome();
        for errno in
            [rustix::io::Errno::ACCESS, rustix::io::Errno::PERM, rustix::io::Errno::ROFS, rustix::io::Errno::ISDIR]
        {
            assert!(matches!(outcome(errno), Outcome::Blocked { .. }), "{errno}");
        }
        for errno in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT, rustix::io::Errno::IO] {
            let Outcome::Retry { failure, after: None } = outcome(errno) else { panic!("{errno}") };
            assert_eq!(failure.status, "io");
        }
    }

    #[test]
    fn what_is_no_regular_file_blocks() {
        for path in ["/dev/null", "/"] {
            let writer = Writer { target: FileTarget { path: path.into(), rotate_bytes: 10, rotate_files: 1 } };
            let outcome = writer.append(b"x\n").expect_err(path).outcome();
            assert!(matches!(outcome, Outcome::Blocked { .. }), "{path}: {outcome:?}");
        }
    }

    #[test]
    fn a_full_disk_leaves_no_half_lines() {
        // /dev/full refuses every write; the error must come out of `write` itself.
        let full = OpenOptions::new().append(true).open("/dev/full").expect("open");
        let outcome = write(&full, 0, b"x\n").expect_err("full").outcome();
        assert!(matches!(outcome, Outcome::Retry { .. }), "{outcome:?}");
    }
}
