//! The one thread that owns the journal's writer.
//!
//! It takes whatever waits, writes it as one group, syncs once, and answers all. While a sync runs the next group
//! forms by itself, so there is no timer to tune: alone a request waits for one sync, in a crowd for two at most.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spool::disk::Disk;
use spool::{Control, Draft, Envelope, Error, Keep, Kind, SegmentInfo, Tally, Writer};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, warn};

use super::losses::Losses;
use super::{Answer, Command, Job, Refusal, Submission};
use crate::accounts::Accounts;
use crate::clock::{Clock, millis};
use crate::config::WhenFull;
use crate::side::Side;

/// A group ends at this many bytes; a larger request is a group of its own.
const GROUP_BYTES: u64 = 8 << 20;
/// A group ends at this many requests.
const GROUP_JOBS: usize = 1024;
/// While anything moves, the state goes into the journal this often.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// What envelope, header and padding of a frame take at most, for the check whether there is room.
const FRAME_OVERHEAD: u64 = 4096;
/// The same for each further record of a job: those of a drop file, whose envelopes are short.
const NEXT_FRAME_OVERHEAD: u64 = 256;
/// How often it is looked whether kept segments have become too old.
const RECLAIM_EVERY: Duration = Duration::from_secs(10);
/// How often the bytes beside the journal are counted.
const MEASURE_EVERY: Duration = Duration::from_secs(1);
/// How often the limits are looked at that nothing at the doors asks for.
const LIMITS_EVERY: Duration = Duration::from_secs(2);

/// How much may lie on disk.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The queue cap: journal, side journal and ledger together.
    pub max_bytes: u64,
    /// Size of a segment.
    pub segment_bytes: u64,
    /// Bytes that must stay free on the disk.
    pub min_free_disk: u64,
    /// How long delivered records are kept.
    pub keep_delivered: Duration,
    /// How much of them.
    pub keep_delivered_bytes: u64,
    /// How many traces may wait.
    pub max_traces: Option<u64>,
    /// What happens when there is no room.
    pub when_full: WhenFull,
    /// Backends whose debts give way before anybody is refused.
    pub giving: BTreeSet<String>,
    /// How many bytes may wait for a backend.
    pub max_backlog_bytes: Vec<(String, u64)>,
    /// How many bytes of dead letters are kept,
    pub dead_letters_max_bytes: u64,
    /// and for how long.
    pub dead_letters_max_age: Duration,
}

/// Nothing is kept for replay.
const NOTHING: Keep = Keep { since_clock_ms: u64::MAX, bytes: 0 };
/// How often making room for what is to be kept back is tried again after it failed.
const PREPARE_AGAIN: Duration = Duration::from_secs(10);

/// What the committer is made of.
pub struct CommitterParts {
    /// The journal's writer.
    pub writer: Writer,
    /// Counts what comes in, and knows the state for checkpoints.
    pub accounts: Arc<Accounts>,
    /// Both clocks.
    pub clock: Clock,
    /// How much may lie on disk.
    pub limits: Limits,
    /// Bytes on disk beside the journal, and what is still to be kept back there, which count against the cap too.
    pub other_bytes: Box<dyn Fn() -> u64 + Send + Sync>,
    /// For the question how much room there is,
    pub disk: Arc<dyn Disk>,
    /// here.
    pub dir: PathBuf,
    /// The side journal.
    pub side: Arc<Side>,
    /// What waits to be stored.
    pub jobs: mpsc::Receiver<Job>,
    /// What is to become a fact.
    pub commands: mpsc::Receiver<Command>,
    /// Told the number behind the last durable record.
    pub durable: watch::Sender<u64>,
}

impl std::fmt::Debug for CommitterParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommitterParts").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// The committer, before it is set running.
#[derive(Debug)]
pub struct Committer {
    pub(super) parts: CommitterParts,
    /// Bytes on disk beside the journal, and when they were last counted.
    measured: Option<(Instant, u64)>,
    checkpointed: Checkpointed,
    /// When the limits were last looked at.
    limited_at: Instant,
    pub(super) losses: Losses,
    /// Not before then is anything prepared.
    prepare_at: Instant,
}

/// When and of what the last durable checkpoint was.
#[derive(Debug)]
struct Checkpointed {
    at: Instant,
    /// The books' version then.
    version: u64,
    /// The lowest record that a backend needed then. Nothing from it on may go.
    lowest_needed: u64,
    /// When segments were last looked through.
    reclaimed_at: Instant,
}

/// What one more request would take.
#[derive(Debug, Clone, Copy)]
struct Asked {
    bytes: u64,
    /// With those that are staged already.
    traces: u64,
}

/// What there is not enough of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Short {
    /// Bytes under the cap.
    Bytes,
    /// Traces under theirs.
    Traces,
    /// Bytes on the disk.
    Disk,
}

/// What was staged, and who waits for it.
#[derive(Debug, Default)]
struct Staged {
    /// How many records each job has, and where its answer goes.
    answers: Vec<(u64, oneshot::Sender<Answer>)>,
    facts: Vec<Control>,
}

impl Committer {
    /// A committer that has not begun.
    #[must_use]
    pub fn new(parts: CommitterParts) -> Self {
        let now = Instant::now();
        let checkpointed = Checkpointed { at: now, version: u64::MAX, lowest_needed: 0, reclaimed_at: now };
        let losses = Losses::default();
        Self { parts, measured: None, checkpointed, limited_at: now, losses, prepare_at: now }
    }

    /// Works until every [`super::Intake`] is gone; then all that was submitted is answered. Blocks; it has a thread
    /// of its own, and borrows a runtime only to wait.
    ///
    /// # Errors
    /// When the journal failed. Nothing was acknowledged after the failure, and the process must end.
    pub fn run(mut self, runtime: &Handle) -> Result<Writer, Error> {
        let mut waiting = VecDeque::new();
        let mut received = Vec::new();
        loop {
            let mut command = self.parts.commands.try_recv().ok();
            if waiting.is_empty() && command.is_none() {
                let CommitterParts { jobs, commands, .. } = &mut self.parts;
                let wait = async {
                    tokio::select! {
                        count = jobs.recv_many(&mut received, GROUP_JOBS) => (Some(count), None),
                        Some(command) = commands.recv() => (None, Some(command)),
                        () = tokio::time::sleep(CHECKPOINT_EVERY) => (None, None),
                    }
                };
                let (count, found) = runtime.block_on(wait);
                match (count, &found) {
                    (Some(0), _) => break,
                    (None, None) => self.prepare(),
                    _ => {}
                }
                command = found;
                waiting.extend(received.drain(..));
            }
            let obeyed = command.map_or(Ok(()), |command| self.obey(command));
            if let Err(error) = obeyed.and_then(|()| self.turn(&mut waiting)).and_then(|()| self.keep_limits()) {
                error!(%error, "the journal failed; nothing more is acknowledged");
                for job in waiting {
                    // Who left does not want the answer.
                    let _ = job.answer.send(Err(Refusal::Failed));
                }
                return Err(error);
            }
        }
        self.losses.say();
        Ok(self.parts.writer)
    }

    /// A little of what is kept back for a full disk, as long as the limits allow it: in idle time, and once a second
    /// under load.
    fn prepare(&mut self) {
        let missing = self.parts.writer.kept_back_missing();
        if missing == 0 || Instant::now() < self.prepare_at {
            return;
        }
        self.prepare_at = Instant::now() + PREPARE_AGAIN;
        let Limits { max_bytes, min_free_disk, .. } = self.parts.limits;
        let free = self.parts.disk.free_bytes(&self.parts.dir).unwrap_or(0);
        let used = self.parts.writer.shared().file_bytes() + self.other_bytes();
        if free < min_free_disk.saturating_add(missing) || used + missing > max_bytes {
            return;
        }
        match self.parts.writer.prepare() {
            Ok(_) => self.prepare_at = Instant::now(),
            Err(error) => debug!(%error, "cannot keep space back now"),
        }
    }

    /// One group, with a checkpoint in it when one is due.
    fn turn(&mut self, waiting: &mut VecDeque<Job>) -> Result<(), Error> {
        let Staged { answers, facts } = self.stage(waiting)?;
        let now = self.parts.clock.now();
        let due = self.checkpointed.at.elapsed() >= CHECKPOINT_EVERY
            && self.checkpointed.version != self.parts.accounts.version();
        match self.commit(due)? {
            Some(records) => {
                self.parts.accounts.note_facts(&facts);
                let mut next = records.start;
                for (records, answer) in answers {
                    let _ = answer.send(Ok(next..next + records));
                    next += records;
                }
            }
            None => {
                // What is kept for replay gives way, for the next ones.
                self.reclaim(NOTHING);
                answer_all(answers, &Err(Refusal::DiskFull));
            }
        }
        if due {
            self.prepare();
        }
        if due || self.checkpointed.reclaimed_at.elapsed() >= RECLAIM_EVERY {
            self.checkpointed.reclaimed_at = Instant::now();
            self.reclaim(Keep {
                since_clock_ms: now.clock_ms.saturating_sub(millis(self.parts.limits.keep_delivered)),
                bytes: self.parts.limits.keep_delivered_bytes,
            });
        }
        Ok(())
    }

    /// Makes what is staged durable, if need be with a checkpoint behind it. `None` when the disk is full.
    fn commit(&mut self, with_checkpoint: bool) -> Result<Option<std::ops::Range<u64>>, Error> {
        let now = self.parts.clock.now();
        let snapshot = with_checkpoint.then(|| self.parts.accounts.snapshot(now.clock_ms));
        if let Some((state, _)) = &snapshot {
            self.parts.writer.stage_checkpoint(state, now);
        }
        let accounts = Arc::clone(&self.parts.accounts);
        let committed = match self.parts.writer.commit(now, &mut || accounts.snapshot(now.clock_ms).0) {
            Ok(committed) => committed,
            Err(error @ Error::Full { .. }) => {
                warn!(%error, "refusing until there is room");
                self.checkpointed.at = Instant::now();
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if !committed.records.is_empty() {
            self.parts.accounts.commit(committed.tally, committed.records.end);
            self.parts.durable.send_replace(committed.records.end);
        }
        if with_checkpoint {
            // With `durability = "relaxed"`, at most as much as comes in between two checkpoints is not on disk.
            self.parts.writer.sync()?;
        }
        if let Some((state, version)) = snapshot {
            self.checkpointed.at = Instant::now();
            self.checkpointed.version = version;
            self.checkpointed.lowest_needed = state.lowest_needed().unwrap_or(0);
            if let Err(error) = self.parts.side.reclaim(&state) {
                warn!(%error, "cannot remove dead letters that are kept no more");
            }
        }
        Ok(Some(committed.records))
    }

    /// Makes facts durable that are in the books already, together with the books, so that what they free may go.
    /// Whether it is done: when the disk is full, the next checkpoint says the same.
    pub(super) fn record(&mut self, controls: &[Control]) -> Result<bool, Error> {
        if controls.is_empty() {
            return Ok(true);
        }
        let now = self.parts.clock.now();
        controls.iter().for_each(|control| self.parts.writer.stage_control(control, now));
        let recorded = self.commit(true)?.is_some();
        self.measured = None;
        Ok(recorded)
    }

    /// Whether a segment may go once the books are durable as they are.
    pub(super) fn checkpoint_frees(&mut self, segment: &SegmentInfo) -> Result<bool, Error> {
        let may_go = |lowest: u64| segment.next_record <= lowest;
        if may_go(self.checkpointed.lowest_needed)
            || !may_go(self.parts.accounts.look(|state| state.lowest_needed().unwrap_or(0)))
        {
            return Ok(false);
        }
        self.commit(true)?;
        Ok(may_go(self.checkpointed.lowest_needed))
    }

    /// Whether the oldest segment may go once the books are durable as they are: the last checkpoint can be a second old.
    fn books_free_the_oldest(&mut self) -> Result<bool, Error> {
        let oldest = self.parts.writer.shared().segments().first().copied().filter(|oldest| oldest.sealed);
        oldest.map_or(Ok(false), |oldest| self.checkpoint_frees(&oldest))
    }

    fn keep_limits(&mut self) -> Result<(), Error> {
        if self.limited_at.elapsed() < LIMITS_EVERY {
            return Ok(());
        }
        self.limited_at = Instant::now();
        self.losses.say_if_over();
        self.bound_letters()?;
        self.bound_backlogs()
    }

    /// Stages what fits one group and refuses what there is no room for.
    fn stage(&mut self, waiting: &mut VecDeque<Job>) -> Result<Staged, Error> {
        let mut staged = Staged { answers: Vec::with_capacity(waiting.len().min(GROUP_JOBS)), facts: Vec::new() };
        let (mut bytes, mut traces) = (0, 0);
        while let Some(job) = waiting.pop_front() {
            let tally = job.submissions.iter().map(tally).fold(Tally::default(), Tally::plus);
            let overhead = FRAME_OVERHEAD + tally.records * NEXT_FRAME_OVERHEAD;
            let asked = Asked { bytes: tally.bytes + overhead, traces: traces + tally.traces };
            // Facts alone are what makes room again.
            let mut short = if tally.records == 0 { None } else { self.short_of(asked) };
            // Room is made between groups: what is staged goes first.
            if !staged.answers.is_empty() && (bytes + tally.bytes > GROUP_BYTES || short.is_some()) {
                waiting.push_front(job);
                break;
            }
            if short.is_some() {
                short = self.make_room(asked)?;
            }
            match short {
                None => {
                    bytes += tally.bytes;
                    traces += tally.traces;
                    let now = self.parts.clock.now();
                    job.facts.iter().for_each(|fact| self.parts.writer.stage_control(fact, now));
                    staged.facts.extend(job.facts);
                    for submission in job.submissions {
                        let draft = self.draft(submission);
                        self.parts.writer.stage(draft);
                    }
                    staged.answers.push((tally.records, job.answer));
                }
                // What lies in a file stays there: that costs nothing.
                Some(Short::Bytes | Short::Traces)
                    if self.parts.limits.when_full == WhenFull::DiscardNewest && job.facts.is_empty() =>
                {
                    self.parts.accounts.drop_newest(tally);
                    self.losses.count("everyone", tally);
                    let _ = job.answer.send(Ok(0..0));
                }
                Some(short) => {
                    let _ = job.answer.send(Err(self.refusal(short)));
                }
            }
        }
        Ok(staged)
    }

    fn refusal(&self, short: Short) -> Refusal {
        match short {
            Short::Bytes => Refusal::Full { max_bytes: self.parts.limits.max_bytes },
            Short::Traces => Refusal::TooManyTraces { max_traces: self.parts.limits.max_traces.unwrap_or_default() },
            Short::Disk => Refusal::DiskFull,
        }
    }

    /// What there is not enough of for one more request.
    fn short_of(&mut self, asked: Asked) -> Option<Short> {
        let growth = self.parts.writer.growth(asked.bytes);
        let Limits { max_bytes, min_free_disk, segment_bytes, max_traces, .. } = self.parts.limits;
        // Also asked when the segment at hand has room, and with one more kept back: a start begins a segment without
        // asking, and the cap holds over starts too.
        let kept_back = self.parts.writer.kept_back_missing().max(segment_bytes);
        if self.parts.writer.shared().file_bytes() + self.other_bytes() + growth + kept_back > max_bytes {
            return Some(Short::Bytes);
        }
        if let Some(max) = max_traces
            && self.parts.accounts.waiting().values().any(|waiting| waiting.traces + asked.traces > max)
        {
            return Some(Short::Traces);
        }
        // Nor may records take what starts and facts need on a full disk, also where the segment at hand has room.
        let missing = self.parts.writer.kept_back_missing();
        let needed = match growth {
            0 => missing,
            growth => (growth + missing).saturating_add(min_free_disk),
        };
        // Where it is unknown, the allocation will tell.
        let free = if needed == 0 { Ok(u64::MAX) } else { self.parts.disk.free_bytes(&self.parts.dir) };
        free.is_ok_and(|free| free < needed).then_some(Short::Disk)
    }

    /// Makes room in the order that is promised, and says what there still is not enough of.
    fn make_room(&mut self, asked: Asked) -> Result<Option<Short>, Error> {
        if self.never_fits(asked) {
            return Ok(Some(Short::Bytes));
        }
        // What is kept for replay gives way first, then what is kept aside because it is damaged.
        self.reclaim(NOTHING);
        loop {
            let gave_way = match self.short_of(asked) {
                Some(Short::Bytes | Short::Disk) if self.drop_quarantined() => true,
                Some(Short::Bytes) => self.give_way_in_bytes()?,
                Some(Short::Traces) => self.give_way_in_traces(asked.traces)?,
                // Something else fills the disk, and would fill what is freed, too: only what is delivered goes for it.
                Some(Short::Disk) => self.books_free_the_oldest()?,
                None => return Ok(None),
            };
            if !gave_way {
                return Ok(self.short_of(asked));
            }
            self.reclaim(NOTHING);
        }
    }

    /// Whether there would not be room if all gave way that may. The segment being written never does.
    fn never_fits(&self, asked: Asked) -> bool {
        let Limits { max_bytes, segment_bytes, .. } = self.parts.limits;
        let active = self.parts.writer.shared().segments().last().map_or(0, |active| active.file_bytes);
        active + self.parts.writer.growth(asked.bytes) + segment_bytes > max_bytes
    }

    /// Asking the file system for every request would cost more than the answer is worth.
    fn other_bytes(&mut self) -> u64 {
        let (at, bytes) = self
            .measured
            .filter(|(at, _)| at.elapsed() < MEASURE_EVERY)
            .unwrap_or_else(|| (Instant::now(), (self.parts.other_bytes)()));
        self.measured = Some((at, bytes));
        bytes
    }

    pub(super) fn reclaim(&mut self, keep: Keep) {
        match self.parts.writer.reclaim(self.checkpointed.lowest_needed, keep) {
            Ok(reclaimed) if reclaimed.segments > 0 => {
                // A segment that is kept beside the journal, too, counts there from now on.
                self.measured = None;
                debug!(segments = reclaimed.segments, bytes = reclaimed.bytes, "removed what every backend is past");
            }
            Ok(_) => {}
            // They are still there, and will be tried again; the cap sees to it that they do no harm.
            Err(error) => warn!(%error, "cannot remove delivered segments"),
        }
    }

    fn drop_quarantined(&self) -> bool {
        let dropped = self.parts.writer.shared().drop_quarantined();
        dropped.unwrap_or_else(|error| {
            warn!(%error, "cannot remove damaged segments that were kept aside");
            false
        })
    }

    fn draft(&self, submission: Submission) -> Draft {
        let now = self.parts.clock.now();
        let summary = &submission.summary;
        let kind = match &submission.call {
            None => Kind::OtlpTraces,
            Some(head) if head.is_artifact => Kind::MlflowArtifact,
            Some(_) => Kind::MlflowTraceInfo,
        };
        let (trace_ids, call) = submission.call.map(|head| (vec![head.trace_id], head.call)).unzip();
        Draft {
            envelope: Envelope {
                kind,
                received_ns: now.wall_ns,
                clock_ms: now.clock_ms,
                spans: summary.spans,
                traces: u32::try_from(summary.trace_ids.len()).unwrap_or(u32::MAX),
                door: submission.door,
                experiment: submission.experiment,
                workspace: submission.workspace,
                headers: submission.headers,
                via: submission.via,
                peer_uid: submission.peer_uid,
                trace_ids: trace_ids.unwrap_or_default(),
                call,
                source: submission.source,
                ..Envelope::default()
            },
            payload: submission.payload,
        }
    }
}

fn tally(submission: &Submission) -> Tally {
    let traces = u32::try_from(submission.summary.trace_ids.len()).unwrap_or(u32::MAX);
    Tally::one(submission.summary.spans, traces, submission.payload.len() as u64)
}

fn answer_all(answers: Vec<(u64, oneshot::Sender<Answer>)>, answer: &Answer) {
    for (_, waiting) in answers {
        let _ = waiting.send(answer.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;
    use spool::disk::OsDisk;
    use spool::{Account, Journal, Kept, Options, State, Stream};

    use super::*;
    use crate::otlp::Summary;

    const SEGMENT_BYTES: u64 = 64 << 10;

    /// A committer on an empty spool with one backend that takes nothing, the way to it, and its books.
    fn committer(dir: &Path, when_full: WhenFull) -> (Committer, mpsc::Sender<Job>, Arc<Accounts>) {
        let disk: Arc<dyn Disk> = Arc::new(OsDisk);
        let open = |name: &str, stream| {
            let options = Options { stream, segment_bytes: SEGMENT_BYTES, ..Options::default() };
            Journal::open(Arc::clone(&disk), &dir.join(name), options, 1).expect("the journal opens")
        };
        let (main, side) = (open("journal", Stream::Main), open("side", Stream::Side));
        let labelled = Kept::open(Arc::clone(&disk), &dir.join("labelled")).expect("the directory can be made");
        let side = Side::new(side.writer, labelled, &[], main.shared.clone(), 1).expect("the directory can be read");
        let state = State { accounts: [("a".to_owned(), Account::from_record(1))].into(), ..State::default() };
        let accounts = Arc::new(Accounts::new(&state));
        let limits = Limits {
            max_bytes: 8 * SEGMENT_BYTES,
            segment_bytes: SEGMENT_BYTES,
            min_free_disk: 0,
            keep_delivered: Duration::ZERO,
            keep_delivered_bytes: 0,
            max_traces: None,
            when_full,
            giving: BTreeSet::new(),
            max_backlog_bytes: Vec::new(),
            dead_letters_max_bytes: 0,
            dead_letters_max_age: Duration::from_secs(1),
        };
        let (jobs, waiting) = mpsc::channel(64);
        let parts = CommitterParts {
            writer: main.writer,
            accounts: Arc::clone(&accounts),
            clock: Clock::from(0),
            limits,
            other_bytes: Box::new(|| 0),
            disk,
            dir: dir.to_path_buf(),
            side: Arc::new(side),
            jobs: waiting,
            commands: mpsc::channel(1).1,
            durable: watch::channel(1).0,
        };
        (Committer::new(parts), jobs, accounts)
    }

    /// Goal: a backlog is not given up for a request that does not fit an empty spool either. Method: one that just fits,
    /// and one that is a little larger, after the same backlog.
    #[tokio::test]
    async fn a_request_that_never_fits_costs_no_backlog() {
        let room = 8 * SEGMENT_BYTES - 2 * SEGMENT_BYTES;
        for (bytes, fits) in [(room - 8 * FRAME_OVERHEAD, true), (room + 1, false)] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let (committer, jobs, accounts) = committer(dir.path(), WhenFull::DiscardOldest);
            let running = tokio::task::spawn_blocking(move || committer.run(&Handle::current()));
            let intake = crate::intake::Intake::new(jobs);
            let submit = |bytes: u64| {
                intake.submit(Submission {
                    payload: Bytes::from(vec![0; usize::try_from(bytes).expect("small")]),
                    summary: Summary::default(),
                    door: crate::intake::Door::Http,
                    experiment: None,
                    workspace: None,
                    headers: Vec::new(),
                    via: Vec::new(),
                    peer_uid: None,
                    call: None,
                    source: None,
                })
            };
            for _ in 0..4 {
                submit(50_000).await.expect("there is room");
            }
            let answer = submit(bytes).await;
            let discarded = accounts.account("a").expect("it is there").discarded.queue_cap;
            drop(intake);
            running.await.expect("it does not panic").expect("the journal works");
            assert_eq!(
                (answer.is_ok(), discarded > 0),
                (fits, fits),
                "{bytes} bytes: {answer:?}, {discarded} discarded"
            );
        }
    }
}
