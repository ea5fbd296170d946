//! The one thread that owns the journal's writer.
//!
//! It takes whatever waits, writes it as one group, syncs once, and answers all. While a sync runs the next group
//! forms by itself, so there is no timer to tune: alone a request waits for one sync, in a crowd for two at most.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spool::disk::Disk;
use spool::{Draft, Envelope, Error, Keep, Kind, Writer};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, warn};

use super::{Command, Job, Receipt, Refusal, Submission};
use crate::accounts::Accounts;
use crate::clock::{Clock, millis};

/// A group ends at this many bytes; a larger request is a group of its own.
const GROUP_BYTES: u64 = 8 << 20;
/// A group ends at this many requests.
const GROUP_JOBS: usize = 1024;
/// While anything moves, the state goes into the journal this often.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// What envelope, header and padding of a frame take at most, for the check whether there is room.
const FRAME_OVERHEAD: u64 = 4096;
/// How often it is looked whether kept segments have become too old.
const RECLAIM_EVERY: Duration = Duration::from_secs(10);
/// How often the bytes beside the journal are counted.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// How much may lie on disk.
#[derive(Debug, Clone, Copy)]
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
}

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
    /// Bytes on disk beside the journal, which count against the cap too.
    pub other_bytes: Box<dyn Fn() -> u64 + Send + Sync>,
    /// For the question how much room there is,
    pub disk: Arc<dyn Disk>,
    /// here.
    pub dir: PathBuf,
    /// What waits to be stored.
    pub jobs: mpsc::Receiver<Job>,
    /// Facts to be made durable.
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
    parts: CommitterParts,
    /// Bytes on disk beside the journal, and when they were last counted.
    measured: Option<(Instant, u64)>,
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

type Answer = oneshot::Sender<Result<Receipt, Refusal>>;

impl Committer {
    /// A committer that has not begun.
    #[must_use]
    pub fn new(parts: CommitterParts) -> Self {
        Self { parts, measured: None, prepare_at: Instant::now() }
    }

    /// Works until every [`super::Intake`] is gone; then all that was submitted is answered. Blocks; it has a thread
    /// of its own, and borrows a runtime only to wait.
    ///
    /// # Errors
    /// When the journal failed. Nothing was acknowledged after the failure, and the process must end.
    pub fn run(mut self, runtime: &Handle) -> Result<Writer, Error> {
        let mut checkpointed =
            Checkpointed { at: Instant::now(), version: u64::MAX, lowest_needed: 0, reclaimed_at: Instant::now() };
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
                match count {
                    Some(0) => break,
                    Some(_) => waiting.extend(received.drain(..)),
                    None if found.is_none() => self.prepare(),
                    None => {}
                }
                command = found;
            }
            let obeyed = command.map_or(Ok(()), |command| self.obey(command));
            if let Err(error) = obeyed.and_then(|()| self.turn(&mut waiting, &mut checkpointed)) {
                error!(%error, "the journal failed; nothing more is acknowledged");
                for job in waiting {
                    // Who left does not want the answer.
                    let _ = job.answer.send(Err(Refusal::Failed));
                }
                return Err(error);
            }
        }
        Ok(self.parts.writer)
    }

    /// In idle time, a little of what is kept back for a full disk, as long as the limits allow it.
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

    fn obey(&mut self, command: Command) -> Result<(), Error> {
        let Command::Record { controls, done } = command;
        let now = self.parts.clock.now();
        controls.iter().for_each(|control| self.parts.writer.stage_control(control, now));
        let accounts = Arc::clone(&self.parts.accounts);
        match self.parts.writer.commit(now, &mut || accounts.snapshot(now.clock_ms).0) {
            Ok(_) => {
                self.parts.writer.sync()?;
                let _ = done.send(());
                Ok(())
            }
            // Whoever asked is told by the silence; the next checkpoint says the same.
            Err(error @ Error::Full { .. }) => {
                warn!(%error, "a fact can't be noted until there is room");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// One group, with a checkpoint in it when one is due.
    fn turn(&mut self, waiting: &mut VecDeque<Job>, checkpointed: &mut Checkpointed) -> Result<(), Error> {
        let answers = self.stage(waiting, checkpointed);
        let now = self.parts.clock.now();
        let due =
            checkpointed.at.elapsed() >= CHECKPOINT_EVERY && checkpointed.version != self.parts.accounts.version();
        let snapshot = due.then(|| self.parts.accounts.snapshot(now.clock_ms));
        if let Some((state, _)) = &snapshot {
            self.parts.writer.stage_checkpoint(state, now);
        }
        let accounts = Arc::clone(&self.parts.accounts);
        let committed = self.parts.writer.commit(now, &mut || accounts.snapshot(now.clock_ms).0);
        let committed = match committed {
            Ok(committed) => committed,
            Err(error @ Error::Full { .. }) => {
                warn!(%error, "refusing until there is room");
                checkpointed.at = Instant::now();
                answer_all(answers, &Err(Refusal::DiskFull));
                return Ok(());
            }
            Err(error) => {
                answer_all(answers, &Err(Refusal::Failed));
                return Err(error);
            }
        };
        if !committed.records.is_empty() {
            self.parts.accounts.commit(committed.tally, committed.records.end);
            self.parts.durable.send_replace(committed.records.end);
            for (record, answer) in committed.records.zip(answers) {
                let _ = answer.send(Ok(Receipt { record }));
            }
        }
        if due {
            // With `durability = "relaxed"`, at most as much as comes in between two checkpoints is not on disk.
            self.parts.writer.sync()?;
        }
        if let Some((state, version)) = snapshot {
            checkpointed.at = Instant::now();
            checkpointed.version = version;
            checkpointed.lowest_needed = state.lowest_needed().unwrap_or(0);
        }
        if due || checkpointed.reclaimed_at.elapsed() >= RECLAIM_EVERY {
            checkpointed.reclaimed_at = Instant::now();
            let keep = Keep {
                since_clock_ms: now.clock_ms.saturating_sub(millis(self.parts.limits.keep_delivered)),
                bytes: self.parts.limits.keep_delivered_bytes,
            };
            self.reclaim(checkpointed.lowest_needed, keep);
        }
        Ok(())
    }

    /// Stages what fits one group and refuses what there is no room for.
    fn stage(&mut self, waiting: &mut VecDeque<Job>, checkpointed: &Checkpointed) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(waiting.len().min(GROUP_JOBS));
        let mut bytes = 0;
        while let Some(job) = waiting.pop_front() {
            let length = job.submission.payload.len() as u64;
            if !answers.is_empty() && bytes + length > GROUP_BYTES {
                waiting.push_front(job);
                break;
            }
            match self.admit(length, checkpointed.lowest_needed) {
                Ok(()) => {
                    bytes += length;
                    self.parts.writer.stage(self.draft(job.submission));
                    answers.push(job.answer);
                }
                Err(refusal) => {
                    let _ = job.answer.send(Err(refusal));
                }
            }
        }
        answers
    }

    /// Whether there is room for one more request of `length` bytes.
    fn admit(&mut self, length: u64, lowest_needed: u64) -> Result<(), Refusal> {
        let growth = self.parts.writer.growth(length + FRAME_OVERHEAD);
        let Limits { max_bytes, min_free_disk, .. } = self.parts.limits;
        let other_bytes = self.other_bytes();
        // Also asked when the segment at hand has room, and with one more kept back: a start begins a segment without
        // asking, and the cap holds over starts too.
        let segment_bytes = self.parts.limits.segment_bytes;
        let over_cap = |this: &Self| {
            let writer = &this.parts.writer;
            let kept_back = writer.kept_back_missing().max(segment_bytes);
            writer.shared().file_bytes() + other_bytes + growth + kept_back > max_bytes
        };
        if growth == 0 && !over_cap(self) {
            return Ok(());
        }
        let over_disk = |this: &Self| match this.parts.disk.free_bytes(&this.parts.dir) {
            Ok(free) => free.saturating_sub(growth) < min_free_disk,
            // Unknown: the allocation will tell.
            Err(_) => false,
        };
        if over_cap(self) || over_disk(self) {
            // What is kept for replay gives way first.
            self.reclaim(lowest_needed, Keep { since_clock_ms: u64::MAX, bytes: 0 });
        }
        // Then what is kept aside because it is damaged.
        while (over_cap(self) || over_disk(self)) && self.drop_quarantined() {}
        if over_cap(self) {
            return Err(Refusal::Full { max_bytes });
        }
        if growth > 0 && over_disk(self) {
            return Err(Refusal::DiskFull);
        }
        Ok(())
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

    fn reclaim(&mut self, lowest_needed: u64, keep: Keep) {
        match self.parts.writer.reclaim(lowest_needed, keep) {
            Ok(reclaimed) if reclaimed.segments > 0 => {
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
                peer_uid: submission.peer_uid,
                trace_ids: trace_ids.unwrap_or_default(),
                call,
                ..Envelope::default()
            },
            payload: submission.payload,
        }
    }
}

fn answer_all(answers: Vec<Answer>, answer: &Result<Receipt, Refusal>) {
    for waiting in answers {
        let _ = waiting.send(answer.clone());
    }
}
