//! `rejected/`: what could not be taken, each with the reason beside it. And the caps of it and of `archive/`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use serde::{Deserialize, Serialize};

use super::cut::Form;
use super::name::Packing;
use super::place::{self, Inner, Place};
use super::take::{MOST_PROBLEMS, Verdict, unpacked};
use crate::clock::{wall_ns, wall_time};
use crate::status::Timestamp;

/// So many problems are listed in the reason; all are counted.
const MOST_LISTED: usize = 1000;
/// No reason of ours is longer.
const LONGEST_REASON: u64 = 4 << 20;

/// Which file it was: by this a start that does it again knows what it has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    /// The file's name in the drop directory.
    file: String,
    inode: u64,
    length: u64,
    modified_ns: u64,
}

/// `NAME.reason.json`.
#[derive(Debug, Serialize)]
struct Reason<'a> {
    #[serde(flatten)]
    origin: &'a Origin,
    rejected_at: Timestamp,
    /// What lies beside this: the whole file, or only what is wrong of it.
    kept: &'a str,
    /// Lines or resources that were taken.
    taken: u64,
    /// Those that were not.
    problems_total: u64,
    /// The first of them.
    problems: Vec<Listed<'a>>,
}

#[derive(Debug, Serialize)]
struct Listed<'a> {
    #[serde(skip_serializing_if = "is_zero")]
    line: u64,
    /// Of the file, decompressed: first, and behind the last.
    bytes: [u64; 2],
    problem: &'a str,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(line: &u64) -> bool {
    *line == 0
}

/// Sets aside what is wrong with a file, durably. The file itself stays where it is, unless all of it is set aside:
/// then it is gone from there, which is the answer.
pub(super) fn set_aside(
    place: &Place,
    name: &OsStr,
    (form, packing): (Form, Packing),
    verdict: &Verdict,
) -> io::Result<bool> {
    let rejected = place.inner(Inner::Rejected)?;
    let whole = verdict.good == 0 || verdict.problems.len() >= MOST_PROBLEMS;
    // What is cut out of a file is not compressed.
    let target = if whole { name.to_owned() } else { unpacked_name(name, packing) };
    let origin = Origin {
        file: name.to_string_lossy().into_owned(),
        inode: verdict.id.inode,
        length: verdict.look.length,
        modified_ns: verdict.look.modified_ns,
    };
    let target = name_for(&rejected, &target, Some(&origin).filter(|_| !whole))?;
    let reason = Reason {
        origin: &origin,
        rejected_at: Timestamp(SystemTime::now()),
        kept: if whole { "the whole file" } else { "what could not be taken" },
        taken: verdict.good,
        problems_total: verdict.problems_total,
        problems: verdict
            .problems
            .iter()
            .take(MOST_LISTED)
            .map(|it| Listed { line: it.line, bytes: [it.bytes.start, it.bytes.end], problem: &it.what })
            .collect(),
    };
    let text = serde_json::to_vec_pretty(&reason).map_err(io::Error::other)?;
    write(&rejected, &reason_name(&target), |file| {
        file.write_all(&text)?;
        file.write_all(b"\n")
    })?;
    let gone = if whole {
        place.move_aside(name, &target, verdict.id)?.is_some()
    } else {
        write(&rejected, &target, |file| copy_problems(place, name, (form, packing), verdict, file))?;
        false
    };
    rustix::fs::fsync(&rejected)?;
    Ok(gone)
}

fn unpacked_name(name: &OsStr, packing: Packing) -> OsString {
    let stem = Path::new(name).file_stem().unwrap_or(name);
    if packing == Packing::Plain { name.to_owned() } else { stem.to_owned() }
}

fn reason_name(name: &OsStr) -> OsString {
    [name, OsStr::new(".reason.json")].into_iter().collect()
}

/// A name that is free, or under which the same was done before.
fn name_for(dir: &OwnedFd, wanted: &OsStr, origin: Option<&Origin>) -> io::Result<OsString> {
    let is_same = |name: &OsStr| origin.is_some() && origin_of(dir, name).ok().as_ref() == origin;

    for number in 0..10_000_u32 {
        let mut name = wanted.to_owned();
        if number > 0 {
            name.push(format!(".{number}"));
        }
        if place::look(dir, &name).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) || is_same(&name) {
            return Ok(name);
        }
    }
    Err(io::Error::other("there are ten thousand files of that name in rejected/"))
}

fn origin_of(dir: &OwnedFd, name: &OsStr) -> io::Result<Origin> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(dir, reason_name(name), flags, Mode::empty())?);
    serde_json::from_reader(io::BufReader::new(file.take(LONGEST_REASON))).map_err(io::Error::other)
}

/// Writes a whole file under its name, or nothing.
fn write(dir: &OwnedFd, name: &OsStr, content: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    const UNFINISHED: &str = ".unfinished";
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(dir, UNFINISHED, flags, Mode::from_raw_mode(0o660))?);
    content(&mut file)?;
    file.sync_all()?;
    Ok(rustix::fs::renameat_with(dir, UNFINISHED, dir, name, RenameFlags::empty())?)
}

/// Copies the pieces that were not taken, and nothing between them.
fn copy_problems(
    place: &Place,
    name: &OsStr,
    (form, packing): (Form, Packing),
    verdict: &Verdict,
    to: &mut File,
) -> io::Result<()> {
    let (file, id, _) = place.read(name)?;
    if id != verdict.id {
        return Err(io::Error::other("another file has its name now"));
    }
    let mut reader = unpacked(file, packing, &Arc::new(AtomicBool::new(false)))?;
    let mut at = 0;
    for problem in &verdict.problems {
        let between = io::copy(&mut reader.by_ref().take(problem.bytes.start.saturating_sub(at)), &mut io::sink());
        let length = problem.bytes.end - problem.bytes.start;
        // What is cut short can't be read to its end here either.
        let copied = between.and_then(|_| io::copy(&mut reader.by_ref().take(length), to));
        if packing == Packing::Plain {
            copied?;
        } else if copied.is_err() {
            return Ok(());
        }
        if form == Form::Documents {
            to.write_all(b"\n")?;
        }
        at = problem.bytes.end;
    }
    Ok(())
}

/// Removes what is too old, and the oldest of what is too much. Returns how many files went.
pub(super) fn tidy(place: &Place, which: Inner, keep: Duration, keep_bytes: u64) -> io::Result<u64> {
    let dir = place.inner(which)?;
    let mut files = Vec::new();
    let mut total = 0_u64;
    for name in place::names(&dir)? {
        if let Ok(seen) = place::look(&dir, &name)
            && seen.kind == FileType::RegularFile
        {
            total += seen.look.length;
            files.push((seen.changed_ns, name, seen.look.length));
        }
    }
    files.sort_unstable();
    let now = wall_time(wall_ns());
    let mut gone = 0;
    for (moved_ns, name, length) in files {
        let age = now.duration_since(wall_time(moved_ns)).unwrap_or_default();
        if total <= keep_bytes && age <= keep {
            break;
        }
        rustix::fs::unlinkat(&dir, &name, AtFlags::empty())?;
        total -= length;
        gone += 1;
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first_and_only_as_many_as_must() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let place = Place::open(&dir.path().join("drop")).map_err(io::Error::other)?;
        place.inner(Inner::Archive)?;
        let mut before = 0;
        for name in ["c", "a", "b"] {
            let path = place.path().join("archive").join(name);
            // Clocks of file systems have steps; each file is to be younger than the one before.
            loop {
                std::fs::write(&path, [0; 100])?;
                let now = place::look(&place.inner(Inner::Archive)?, OsStr::new(name))?.changed_ns;
                if std::mem::replace(&mut before, now) < now {
                    break;
                }
            }
        }
        let names = || {
            place::names(&place.inner(Inner::Archive)?).map(|mut names| {
                names.sort();
                names
            })
        };
        let long = Duration::from_secs(3600);
        assert_eq!(tidy(&place, Inner::Archive, long, 300)?, 0);
        assert_eq!(tidy(&place, Inner::Archive, long, 299)?, 1);
        assert_eq!(names()?, ["a", "b"]);
        assert_eq!(tidy(&place, Inner::Archive, Duration::ZERO, 300)?, 2);
        assert_eq!(names()?.len(), 0);
        Ok(())
    }
}
