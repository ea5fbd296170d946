//! The drop directory: files that are put there become records, and are gone once these are on disk.
//!
//! `watch` hears which files are complete, and the directory is looked through besides, because events get lost, and
//! some file systems have none. `name` says what a file is, `place` is the directory held open, `take` reads one file
//! and cuts it (`cut`) into parts. Each part becomes one commit group: its records, and the fact how far the file is
//! taken with them. So a file that is begun again, after a kill or a full spool, goes on where the journal says. Behind
//! the last part the file is moved out of sight and looked at once more, removed, the directory synced, and then the
//! journal is told that it is gone. `bins` keeps what could not be taken.
//!
//! All of this is one thread that may block. It takes files in turn, and waits where the spool is full: what it has not
//! taken stays where it is.

mod bins;
mod cut;
mod figures;
mod name;
mod place;
mod take;
mod watch;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use notify::RecommendedWatcher;
use rustix::fs::FileType;
use spool::{Control, DropFile, FileId};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch as flag};
use tracing::{info, warn};

use super::budget::{Budget, Charge};
use super::counters::Received;
use super::refusal::Counted;
use super::size;
use crate::clock::wall_ns;
use crate::config::{self, AfterTaking};
use crate::intake::{Answer, Refusal, SideEntrance, Submission};
use crate::status::DirectoryState;
use cut::Form;
use figures::Left;
use name::{Kind, Packing};
use place::{Inner, Look, Place, Removed, Seen};
use take::{Bounds, Next, Part, Taking, Verdict};
use watch::Heard;

pub use figures::Figures;

/// A part of a file is about this large.
const PART_BYTES: u64 = 1 << 20;
/// So many files are finished together: the directory is synced once for all.
const WINDOW_FILES: usize = 256;
/// So many bytes may wait for the journal's sync together.
const WINDOW_BYTES: u64 = 8 << 20;
/// How long to wait for room in the spool before asking again.
const ROOM_AGAIN: Duration = Duration::from_millis(500);
/// How long to wait for memory before asking again.
const MEMORY_AGAIN: Duration = Duration::from_millis(50);
/// How often `archive/` and `rejected/` are looked through.
const TIDY_EVERY: Duration = Duration::from_secs(60);

/// What the directory's door is made of.
#[derive(Debug)]
pub struct Parts {
    /// Where it is, and how it is treated.
    pub config: config::Directory,
    /// `receive.max_request_bytes`, for one line or resource.
    pub max_request_bytes: u64,
    /// Size of the journal's segments: parts are small beside them.
    pub segment_bytes: u64,
    /// The way into the journal.
    pub intake: SideEntrance,
    /// Shared with the other doors.
    pub budget: Budget,
    /// Shared with the other doors.
    pub received: Arc<Received>,
    /// What the journal knows of files that were begun.
    pub begun: BTreeMap<FileId, DropFile>,
    /// For `status`.
    pub figures: Arc<Figures>,
    /// Becomes true when the door is to close.
    pub stop: flag::Receiver<bool>,
}

/// The door, before it is opened.
#[derive(Debug)]
pub struct DropDirectory {
    parts: Parts,
    runtime: Handle,
    heard: Arc<Heard>,
    open: Option<Open>,
    /// What was last said about the directory, so that it is said once.
    said: Option<String>,
    /// Complete files that were not taken yet, in order.
    ready: VecDeque<OsString>,
    known: HashSet<OsString>,
    /// Files that may be still being written: how they looked, and since when.
    young: HashMap<OsString, (Seen, Instant)>,
    left: Left,
    /// Files that are on disk and could not be removed.
    stuck: HashMap<FileId, Done>,
    /// Files whose content was read, and waits to be durable.
    window: Vec<Finishing>,
    window_bytes: u64,
    scan_at: Instant,
    tidy_at: Instant,
    is_first_scan: bool,
}

#[derive(Debug)]
struct Open {
    place: Place,
    watcher: Option<RecommendedWatcher>,
}

/// A part on its way to the disk.
#[derive(Debug)]
struct Flying {
    file: FileId,
    submissions: Vec<Submission>,
    taken: DropFile,
    answer: oneshot::Receiver<Answer>,
}

/// A file that was read to its end.
#[derive(Debug)]
struct Finishing {
    done: Done,
    last: Option<Flying>,
    _charge: Option<Charge>,
}

#[derive(Debug)]
struct Done {
    name: OsString,
    kind: (Form, Packing),
    verdict: Verdict,
}

/// The door is to close, or the journal takes nothing any more.
struct Stopped;

impl DropDirectory {
    /// A door that is not open yet.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let now = Instant::now();
        Self {
            parts,
            runtime: Handle::current(),
            heard: Arc::default(),
            open: None,
            said: None,
            ready: VecDeque::new(),
            known: HashSet::new(),
            young: HashMap::new(),
            left: Left::default(),
            stuck: HashMap::new(),
            window: Vec::new(),
            window_bytes: 0,
            scan_at: now,
            tidy_at: now,
            is_first_scan: true,
        }
    }

    /// Takes files until it is told to stop. Blocks.
    pub fn run(mut self) {
        while self.turn().is_ok() {}
    }

    fn turn(&mut self) -> Result<(), Stopped> {
        self.go_on()?;
        let (complete, lost) = self.heard.fetch();
        complete.into_iter().for_each(|name| self.make_ready(name));
        if lost || Instant::now() >= self.scan_at {
            self.scan_at = Instant::now() + self.parts.config.rescan;
            self.attend();
            if self.open.is_some() {
                self.scan();
                self.tidy();
            }
        }
        self.take_all()?;
        self.report();
        self.wait(self.scan_at.saturating_duration_since(Instant::now()), true)
    }

    fn go_on(&self) -> Result<(), Stopped> {
        if *self.parts.stop.borrow() { Err(Stopped) } else { Ok(()) }
    }

    /// Waits so long, or until there is news if that is of interest, or until the door is to close.
    fn wait(&mut self, time: Duration, for_news: bool) -> Result<(), Stopped> {
        let Self { parts, heard, runtime, .. } = self;
        runtime.block_on(async {
            tokio::select! {
                () = tokio::time::sleep(time) => {}
                () = heard.news.notified(), if for_news => {}
                _ = parts.stop.wait_for(|stop| *stop) => {}
            }
        });
        self.go_on()
    }

    /// Opens and watches the directory, again if it is another one now.
    fn attend(&mut self) {
        if self.open.as_ref().is_some_and(|open| !open.place.is_there()) {
            // Closed before it is opened: it may be the same one under its old name again, and its lock is ours.
            self.open = None;
        }
        if self.open.is_none() {
            match Place::open(&self.parts.config.path) {
                Ok(place) => self.open = Some(Open { place, watcher: None }),
                Err(error) => {
                    self.ready.clear();
                    self.known.clear();
                    return self.say(DirectoryState::Missing, Some(error.to_string()));
                }
            }
        }
        let Some(open) = &mut self.open else { return };
        let trouble = match &open.watcher {
            Some(_) => None,
            None => match watch::watch(open.place.path(), &self.heard) {
                Ok(watcher) => {
                    open.watcher = Some(watcher);
                    None
                }
                Err(reason) => Some(reason),
            },
        };
        let state = if trouble.is_none() { DirectoryState::Watching } else { DirectoryState::Scanning };
        if !open.place.is_there() {
            // It went while it was opened: what is watched may be another one.
            self.open = None;
            self.scan_at = Instant::now();
            return;
        }
        self.say(state, trouble);
    }

    fn say(&mut self, state: DirectoryState, trouble: Option<String>) {
        self.parts.figures.change(|figures| {
            figures.state = state;
            figures.trouble.clone_from(&trouble);
        });
        let path = self.parts.config.path.display();
        let now = trouble.clone().unwrap_or_default();
        if self.said.as_ref() == Some(&now) {
            return;
        }
        match (state, &trouble) {
            (DirectoryState::Scanning, Some(reason)) => warn!(
                "cannot watch {path}: {reason}; it is looked through every {} instead",
                config::units::time(self.parts.config.rescan)
            ),
            (_, Some(reason)) => warn!("no files are taken: {reason}"),
            (_, None) => info!("taking files from {path}"),
        }
        self.said = Some(now);
    }

    /// Looks through the directory for files that are complete as far as can be seen.
    fn scan(&mut self) {
        let Some(Open { place, .. }) = &self.open else { return };
        let names = match place.names() {
            Ok(names) => names,
            Err(error) => {
                warn!(%error, "cannot list {}", place.path().display());
                return;
            }
        };
        if std::mem::take(&mut self.is_first_scan) {
            self.recover(&names);
        }
        let mut young = HashMap::new();
        let mut there = HashSet::new();
        let mut complete = Vec::new();
        for name in names {
            there.insert(name.clone());
            match name::kind(&name) {
                Kind::Unfinished => continue,
                Kind::Unknown => {
                    self.leave_unknown(&name);
                    continue;
                }
                Kind::Traces(..) => {}
            }
            let Some(Open { place, .. }) = &self.open else { return };
            let Ok(seen) = place.look(&name) else { continue };
            if self.known.contains(&name) {
                continue;
            }
            // What is no file is looked at when it is tried; that needs no waiting.
            let left = self.rest_of_quiet(&name, &seen).filter(|_| seen.kind == FileType::RegularFile);
            match left {
                None => complete.push((seen.look.modified_ns, name)),
                Some(left) => {
                    self.scan_at = self.scan_at.min(Instant::now() + left);
                    let since = self.young.get(&name).filter(|(before, _)| *before == seen).map(|(_, since)| *since);
                    young.insert(name, (seen, since.unwrap_or_else(Instant::now)));
                }
            }
        }
        self.young = young;
        self.left.retain(|name| there.contains(name));
        complete.sort_unstable();
        complete.into_iter().for_each(|(_, name)| self.make_ready(name));
    }

    /// How long a file must still be left alone by its writer; nothing when that was long enough.
    fn rest_of_quiet(&self, name: &OsStr, seen: &Seen) -> Option<Duration> {
        let quiet = self.parts.config.rescan;
        let changed_ns = seen.changed_ns.max(seen.look.modified_ns);
        let age = Duration::from_nanos(wall_ns().saturating_sub(changed_ns));
        // The clock of a file server may be ahead of ours.
        let watched = self.young.get(name).filter(|(before, _)| before == seen).map(|(_, since)| since.elapsed());
        let age = age.max(watched.unwrap_or_default());
        (age < quiet).then(|| quiet - age)
    }

    /// At the first look: what a killed daemon was about to remove, and files that are gone.
    fn recover(&mut self, names: &[OsString]) {
        let Some(Open { place, .. }) = &self.open else { return };
        for name in place.names_taken().unwrap_or_default() {
            let Ok(seen) = place.look_at_taken(&name) else { continue };
            let Look { length, modified_ns } = seen.look;
            let begun = self.parts.begun.get(&seen.id);
            let is_taken = begun.is_some_and(|it| it.length == length && it.modified_ns == modified_ns);
            let done = if is_taken { place.finish_taken(&name) } else { place.put_back(&name) };
            if let Err(error) = done {
                warn!(%error, "cannot clear up {}", name.display());
            }
        }
        let there: HashSet<FileId> =
            names.iter().filter_map(|name| place.look(name).ok()).map(|seen| seen.id).collect();
        let is_gone = |file: &&FileId| file.device == place.device() && !there.contains(file);
        let gone: Vec<FileId> = self.parts.begun.keys().filter(is_gone).copied().collect();
        if place.sync(false).is_ok() {
            self.forget(gone);
        }
    }

    /// Tells the journal that files are gone. When that fails, the next start finds it out.
    fn forget(&mut self, gone: Vec<FileId>) {
        gone.iter().for_each(|file| drop(self.parts.begun.remove(file)));
        let facts: Vec<Control> = gone.into_iter().map(|file| Control::FileGone { file }).collect();
        if facts.is_empty() {
            return;
        }
        let _ = self.runtime.block_on(async {
            let answer = self.parts.intake.submit(Vec::new(), facts).await?;
            answer.await.unwrap_or(Err(Refusal::Stopping))
        });
    }

    fn tidy(&mut self) {
        if Instant::now() < self.tidy_at {
            return;
        }
        self.tidy_at = Instant::now() + TIDY_EVERY;
        let Some(Open { place, .. }) = &self.open else { return };
        let config::Directory { keep, keep_bytes, .. } = self.parts.config;
        for which in [Inner::Rejected, Inner::Archive] {
            if place.look(OsStr::new(which.name())).is_err() {
                continue;
            }
            match bins::tidy(place, which, keep, keep_bytes) {
                Ok(0) => {}
                Ok(files) => info!(files, "removed the oldest from {}/{}", place.path().display(), which.name()),
                Err(error) => warn!(%error, "cannot tidy up {}/{}", place.path().display(), which.name()),
            }
        }
    }

    fn make_ready(&mut self, name: OsString) {
        if matches!(name::kind(&name), Kind::Traces(..)) && self.known.insert(name.clone()) {
            self.ready.push_back(name);
        }
    }

    fn take_all(&mut self) -> Result<(), Stopped> {
        while let Some(name) = self.ready.pop_front() {
            self.known.remove(&name);
            self.go_on()?;
            if self.open.is_none() {
                break;
            }
            if let Kind::Traces(form, packing) = name::kind(&name)
                && let Err(error) = self.take(&name, (form, packing))?
            {
                let seen = self.open.as_ref().and_then(|open| open.place.look(&name).ok());
                self.leave(&name, seen.as_ref(), &why_unreadable(&error, seen.as_ref()));
            }
            if self.window.len() >= WINDOW_FILES || self.window_bytes >= WINDOW_BYTES {
                self.finish_window()?;
                self.report();
            }
        }
        self.finish_window()
    }

    /// Reads one file and hands its parts in. The error is the file's.
    fn take(&mut self, name: &OsString, kind: (Form, Packing)) -> Result<io::Result<()>, Stopped> {
        let Some(Open { place, .. }) = &self.open else { return Ok(Ok(())) };
        let seen = match place.look(name) {
            Ok(seen) => seen,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.left.forget(name);
                return Ok(Ok(()));
            }
            Err(error) => return Ok(Err(error)),
        };
        if seen.kind != FileType::RegularFile {
            self.leave(name, Some(&seen), what_it_is(seen.kind));
            return Ok(Ok(()));
        }
        if let Some(done) = self.stuck.remove(&seen.id).filter(|done| done.verdict.look == seen.look) {
            let done = Done { name: name.clone(), ..done };
            self.window.push(Finishing { done, last: None, _charge: None });
            return Ok(Ok(()));
        }
        let mut taking = match self.begin(name, kind, true)? {
            Ok(taking) => taking,
            Err(error) => return Ok(Err(error)),
        };
        let mut flying: Option<Flying> = None;
        loop {
            match taking.next() {
                Err(error) => {
                    self.land(flying)?;
                    return Ok(Err(error));
                }
                Ok(Next::Part(part)) => {
                    // One after the other: each says that all before it is taken, too.
                    self.land(flying.take())?;
                    flying = Some(self.launch(taking.id(), part)?);
                }
                Ok(Next::Busy) => {
                    self.land(flying.take())?;
                    self.finish_window()?;
                    self.wait(MEMORY_AGAIN, false)?;
                }
                Ok(Next::Another) => {
                    self.land(flying.take())?;
                    taking = match self.begin(name, kind, false)? {
                        Ok(taking) => taking,
                        Err(error) => return Ok(Err(error)),
                    };
                }
                Ok(Next::End) => break,
            }
        }
        let (verdict, charge) = taking.finish();
        self.window_bytes += flying.as_ref().map_or(0, Flying::bytes);
        let done = Done { name: name.clone(), kind, verdict };
        self.window.push(Finishing { done, last: flying, _charge: Some(charge) });
        Ok(Ok(()))
    }

    /// Opens a file. `known`: what the journal knows of it counts.
    fn begin(&mut self, name: &OsStr, kind: (Form, Packing), known: bool) -> Result<io::Result<Taking>, Stopped> {
        let part_bytes = PART_BYTES.min(self.parts.segment_bytes / 8);
        let bounds = Bounds { piece_bytes: self.parts.max_request_bytes, part_bytes };
        loop {
            let Some(Open { place, .. }) = &self.open else { return Err(Stopped) };
            let opened = match place.read(name) {
                Ok(opened) => opened,
                Err(error) => return Ok(Err(error)),
            };
            let before = known.then(|| self.begun(opened.1, opened.2)).flatten();
            match Taking::begin(opened, kind, before, bounds, &self.parts.budget) {
                Ok(taking) => return Ok(taking),
                Err(_) => {
                    self.finish_window()?;
                    self.wait(MEMORY_AGAIN, false)?;
                }
            }
        }
    }

    /// What is known to be taken of a file. A file system may have another device number after a start of the machine;
    /// inode and time of birth say then that it is the same.
    fn begun(&self, file: FileId, born_ns: u64) -> Option<DropFile> {
        let is_it = |id: &FileId, begun: &DropFile| {
            let same_birth = begun.born_ns == born_ns && born_ns != 0;
            id.inode == file.inode && (same_birth || id.device == file.device && (begun.born_ns == 0 || born_ns == 0))
        };
        let exact = self.parts.begun.get(&file).filter(|begun| is_it(&file, begun));
        exact.or_else(|| self.parts.begun.iter().find(|(id, begun)| is_it(id, begun)).map(|(_, begun)| begun)).cloned()
    }

    fn launch(&self, file: FileId, part: Part) -> Result<Flying, Stopped> {
        let Part { submissions, taken } = part;
        let answer = self.submit(file, &submissions, &taken)?;
        Ok(Flying { file, submissions, taken, answer })
    }

    fn submit(
        &self,
        file: FileId,
        submissions: &[Submission],
        taken: &DropFile,
    ) -> Result<oneshot::Receiver<Answer>, Stopped> {
        let facts = vec![Control::FileTaken { file, taken: taken.clone() }];
        let submitted = self.parts.intake.submit(submissions.to_vec(), facts);
        self.runtime.block_on(submitted).map_err(|_| Stopped)
    }

    /// Waits until a part is durable, however long there is no room for it.
    fn land(&mut self, flying: Option<Flying>) -> Result<(), Stopped> {
        let Some(mut flying) = flying else { return Ok(()) };
        let mut said = false;
        loop {
            let answer = self.runtime.block_on(&mut flying.answer).unwrap_or(Err(Refusal::Stopping));
            match answer {
                Ok(_) => break,
                Err(Refusal::Stopping | Refusal::Failed) => return Err(Stopped),
                Err(refusal) => {
                    if !std::mem::replace(&mut said, true) {
                        warn!("files wait in {}: {refusal}", self.parts.config.path.display());
                        self.parts.figures.change(|figures| figures.waits_for_room = true);
                        self.report();
                    }
                    self.wait(ROOM_AGAIN, false)?;
                    flying.answer = self.submit(flying.file, &flying.submissions, &flying.taken)?;
                }
            }
        }
        for submission in &flying.submissions {
            let Submission { payload, summary, .. } = submission;
            self.parts.received.took(size(summary.trace_ids.len()), u64::from(summary.spans), size(payload.len()));
        }
        let records = size(flying.submissions.len());
        self.parts.figures.change(|figures| {
            figures.records += records;
            figures.waits_for_room = false;
        });
        self.parts.begun.insert(flying.file, flying.taken);
        Ok(())
    }

    /// Removes the files whose content is durable, and tells the journal.
    fn finish_window(&mut self) -> Result<(), Stopped> {
        self.window_bytes = 0;
        let mut durable = Vec::new();
        for Finishing { done, last, _charge } in std::mem::take(&mut self.window) {
            self.land(last)?;
            durable.push(done);
        }
        let finished = durable.len();
        let gone: Vec<FileId> = durable.into_iter().filter_map(|done| self.finish(done)).collect();
        let Some(Open { place, .. }) = self.open.as_ref().filter(|_| finished > 0) else { return Ok(()) };
        if let Err(error) = place.sync(self.archives()) {
            // They may come back after a power cut, and are known then.
            warn!(%error, "cannot sync {}", place.path().display());
            return Ok(());
        }
        let begun = gone.into_iter().filter(|file| self.parts.begun.contains_key(file)).collect();
        self.forget(begun);
        Ok(())
    }

    fn archives(&self) -> bool {
        self.parts.config.after == AfterTaking::Archive
    }

    /// Sets aside what is wrong with a file, and takes it out of the directory. Returns which file is gone.
    fn finish(&mut self, mut done: Done) -> Option<FileId> {
        let (name, id) = (done.name.clone(), done.verdict.id);
        let archive = self.archives();
        let Some(Open { place, .. }) = &self.open else { return None };
        if done.verdict.problems_total > 0 {
            match bins::set_aside(place, &name, done.kind, &done.verdict) {
                Ok(all) => {
                    self.count_problems(&name, &done.verdict);
                    done.verdict.problems_total = 0;
                    if all {
                        self.left.forget(&name);
                        return Some(id);
                    }
                }
                Err(error) => return self.keep(done, &format!("it has errors, and cannot be set aside: {error}")),
            }
        }
        let Some(Open { place, .. }) = &self.open else { return None };
        match place.take_away(&name, id, done.verdict.look, archive) {
            Ok(Removed::Gone) => {
                self.left.forget(&name);
                self.parts.figures.change(|figures| figures.files += 1);
                Some(id)
            }
            // Its writer will be heard of again.
            Ok(Removed::Changed) => None,
            Err(_) if place.look(&name).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) => Some(id),
            Err(error) => self.keep(done, &format!("its content is on disk, and it cannot be removed: {error}")),
        }
    }

    fn keep(&mut self, done: Done, reason: &str) -> Option<FileId> {
        let seen = self.open.as_ref().and_then(|open| open.place.look(&done.name).ok());
        self.leave(&done.name, seen.as_ref(), reason);
        self.stuck.insert(done.verdict.id, done);
        None
    }

    fn count_problems(&self, name: &OsStr, verdict: &Verdict) {
        let Verdict { problems, problems_total, good, .. } = verdict;
        for problem in problems {
            self.parts.received.refused(if problem.too_large { Counted::TooLarge } else { Counted::Invalid });
        }
        self.parts.figures.change(|figures| {
            figures.rejected_files += 1;
            figures.rejected_pieces += problems_total;
        });
        if let Some(first) = problems.first() {
            warn!(
                file = %name.display(), problems = problems_total, taken = good,
                "set aside in rejected/: the first at line {}, byte {}: {}", first.line, first.bytes.start, first.what
            );
        }
    }

    /// Notes that a file stays where it is, and says so once.
    fn leave(&mut self, name: &OsString, seen: Option<&Seen>, reason: &str) {
        if self.left.note(name, seen.map(|seen| seen.id), reason) {
            warn!(file = %name.display(), "left in {}: {reason}", self.parts.config.path.display());
        }
    }

    /// A file whose name says nothing is left, a directory is none of ours.
    fn leave_unknown(&mut self, name: &OsString) {
        let Some(Open { place, .. }) = &self.open else { return };
        let Ok(seen) = place.look(name) else { return };
        if seen.kind != FileType::Directory {
            self.leave(name, Some(&seen), "its name ends in none of .json, .jsonl, .pb, with or without .gz or .zst");
        }
    }

    fn report(&self) {
        let waiting = size(self.ready.len());
        self.parts.figures.change(|figures| {
            figures.waiting = waiting;
            self.left.show(figures);
        });
    }
}

impl Flying {
    fn bytes(&self) -> u64 {
        self.submissions.iter().map(|submission| size(submission.payload.len())).sum()
    }
}

fn what_it_is(kind: FileType) -> &'static str {
    match kind {
        FileType::Symlink => "it is a symbolic link, and links are not followed",
        FileType::Directory => "it is a directory",
        FileType::Fifo => "it is a FIFO, not a file",
        FileType::Socket => "it is a socket, not a file",
        _ => "it is a device, not a file",
    }
}

fn why_unreadable(error: &io::Error, seen: Option<&Seen>) -> String {
    match (error.kind(), seen) {
        (io::ErrorKind::PermissionDenied, Some(Seen { owner, mode, .. })) => format!(
            "it belongs to user {owner} and has mode {mode:04o}, so the daemon (user {}) may not read it: its writer must \
             let the group read it (chmod g+r, or umask 027), and the directory give its group to it (chmod g+s)",
            rustix::process::geteuid().as_raw()
        ),
        _ => format!("it cannot be read: {error}"),
    }
}
