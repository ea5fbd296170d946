//! One backend's lane: from its place in the journal to the backend, and the place after it.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use spool::{Aside, DiscardReason, Label, Ranges, Reader, Reason, Record, Shared, Step, Tally};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::backoff::Backoff;
use super::concurrency::Concurrency;
use super::parcel::{Parcel, PassedOn, TraceId, take_due, take_fresh};
use super::patience::Patience;
use super::suspect::{BREAKER, Case};
use super::turns::Turns;
use crate::accounts::{Accounts, LaneState};
use crate::backend::{Backend, Failure, Outcome, Promised};
use crate::clock::{Clock, millis, wall_ns};
use crate::config::{AfterRetryTimeout, Delivery};
use crate::intake::{Command, Commands};
use crate::side::Side;

/// Records that a lane holds in memory at most, beside the bound in bytes.
const WINDOW_RECORDS: u64 = 65_536;
/// A call of so many bytes is no small part of its commit group, and not copied out of it.
const CALL_KEPT_SHARED: usize = 1 << 20;
/// Parcels that are filled at once: an app may send another header with every request.
const OPEN_MAX: usize = 256;
/// How long a stopping lane waits for the requests under way.
const STOP_GRACE: Duration = Duration::from_secs(3);
/// Nothing is given up so soon after a start, for the backend may just be starting too.
const START_GRACE: Duration = Duration::from_secs(600);
/// How long a limit of size that a backend showed is remembered.
const LIMIT_REMEMBERED: Duration = Duration::from_secs(3600);
/// While the operator must act, credential files are looked at this often.
const CREDENTIALS_LOOK_EVERY: Duration = Duration::from_secs(1);
/// No server has a lower limit of size. One that says so of a smaller request means something else.
const SIZE_LIMIT_MIN: u64 = 256 << 10;

/// What a lane is made of.
#[derive(Debug)]
pub struct LaneParts {
    /// The backend's name, the key of its books.
    pub name: String,
    /// This daemon's id, which goes with every request.
    pub id: Arc<str>,
    /// Where it sends.
    pub backend: Arc<Backend>,
    /// How it sends.
    pub delivery: Delivery,
    /// The journal.
    pub journal: Shared,
    /// The books.
    pub accounts: Arc<Accounts>,
    /// Where records go that are set aside.
    pub side: Arc<Side>,
    /// The way to the writer of the journal, for facts.
    pub commands: Commands,
    /// The running clock.
    pub clock: Clock,
    /// Changes when more is durable.
    pub durable: watch::Receiver<u64>,
    /// Turns true when the lane must stop.
    pub stop: watch::Receiver<bool>,
}

/// A lane, with what it remembers between two looks at the world.
#[derive(Debug)]
pub struct Lane {
    parts: LaneParts,
    /// Reads from the backend's place on.
    reader: Reader,
    /// Being filled, one per partition.
    open: Vec<Parcel>,
    /// To be sent, the next first.
    queue: VecDeque<Parcel>,
    in_flight: JoinSet<Finished>,
    /// Traces in the requests under way.
    busy: BTreeSet<TraceId>,
    /// What waits for what, where the order matters.
    turns: Turns,
    /// What is in memory: queued and under way.
    held: Tally,
    mode: Mode,
    backoff: Backoff,
    concurrency: Concurrency,
    /// Only below this number can there be records that were finished before they are read.
    finished_below: u64,
    /// Rises when a limit or an operator finished records,
    disturbed: Arc<AtomicU64>,
    /// and how far it had risen when they were last looked at.
    disturbed_seen: u64,
    /// Everything durable was read.
    at_end: bool,
    /// Deliveries seen.
    successes: u64,
    /// Records refused alone since the last delivery.
    suspects_in_a_row: u32,
    /// Whether the next probe is something new instead of what failed.
    probe_fresh: bool,
    /// Size that the backend refused lately, and when.
    size_limit: Option<(u64, Instant)>,
    /// Size of the last request that it took.
    size_taken: Option<u64>,
    /// Experiments that are known to be held up.
    held_up: BTreeSet<Option<String>>,
    /// The experiment of the last request that it took, if it took any.
    taken_experiment: Option<Option<String>>,
    /// Since when, as far as it is not in the books yet, the operator has had to act.
    blocked_since: Option<Instant>,
    /// When the spool is read again after it failed.
    read_again: Option<Instant>,
    /// With a spool that can't be read.
    patience: Patience,
}

/// An attempt that came to an end.
#[derive(Debug)]
struct Finished {
    parcel: Parcel,
    outcome: Outcome,
    /// It was sent to find out whether the backend works again.
    probe: bool,
}

/// How the lane treats its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Requests go out as concurrency allows.
    Up,
    /// One probe at a time, the next not before then.
    Probing(LaneState, Instant),
}

impl Lane {
    /// A lane at the start of its life.
    #[must_use]
    pub fn new(parts: LaneParts) -> Self {
        let Delivery { backoff_initial, backoff_max, workers, .. } = parts.delivery;
        let account = parts.accounts.account(&parts.name).unwrap_or_else(|| spool::Account::from_record(1));
        Self {
            open: Vec::new(),
            queue: VecDeque::new(),
            in_flight: JoinSet::new(),
            busy: BTreeSet::new(),
            turns: Turns::default(),
            held: Tally::default(),
            mode: Mode::Up,
            backoff: Backoff::new(backoff_initial, backoff_max),
            concurrency: Concurrency::new(usize::try_from(workers).unwrap_or(1)),
            finished_below: account.seen(),
            disturbed: parts.accounts.disturbed(&parts.name),
            disturbed_seen: 0,
            reader: parts.journal.reader(account.place),
            at_end: false,
            successes: 0,
            suspects_in_a_row: 0,
            probe_fresh: false,
            size_limit: None,
            size_taken: None,
            held_up: BTreeSet::new(),
            taken_experiment: None,
            blocked_since: None,
            read_again: None,
            patience: Patience::default(),
            parts,
        }
    }

    /// Delivers until it is told to stop.
    ///
    /// # Errors
    /// When the journal or the side journal fails: the daemon must end.
    pub async fn run(mut self) -> Result<(), spool::Error> {
        let mut stop = self.parts.stop.clone();
        let mut durable = self.parts.durable.clone();
        while !*stop.borrow() {
            self.look_at_credentials();
            self.skip_finished();
            // One moment for both questions, so that nothing falls due unseen between them.
            let now = Instant::now();
            self.launch(now);
            self.report();
            let wake = self.next_due(now);
            tokio::select! {
                Some(finished) = self.in_flight.join_next(), if !self.in_flight.is_empty() => {
                    self.conclude(finished).await?;
                }
                changed = durable.changed(), if self.at_end => match changed {
                    Ok(()) => self.at_end = false,
                    // The committer has ended; so will this lane.
                    Err(_) => { let _ = stop.changed().await; }
                },
                () = sleep_until(wake) => {}
                _ = stop.changed() => {}
            }
        }
        self.drain().await
    }

    /// Waits a little for the requests under way, so that what arrived is not sent again after the next start.
    async fn drain(mut self) -> Result<(), spool::Error> {
        let deadline = tokio::time::Instant::now() + STOP_GRACE;
        while let Ok(Some(finished)) = tokio::time::timeout_at(deadline, self.in_flight.join_next()).await {
            self.conclude(finished).await?;
        }
        Ok(())
    }

    /// An operator who replaced a credential file is not kept waiting.
    fn look_at_credentials(&mut self) {
        if let Mode::Probing(LaneState::Blocked, until) = &mut self.mode
            && *until > Instant::now()
            && self.parts.backend.credentials_changed()
        {
            *until = Instant::now();
        }
    }

    /// Lets go of what a limit or an operator finished meanwhile. What is under way goes on: whoever settles a record
    /// first counts it.
    fn skip_finished(&mut self) {
        let disturbed = self.disturbed.load(Ordering::Acquire);
        if std::mem::replace(&mut self.disturbed_seen, disturbed) == disturbed {
            return;
        }
        let Some(account) = self.parts.accounts.account(&self.parts.name) else { return };
        self.finished_below = self.finished_below.max(account.seen());
        if self.reader.place() < account.place {
            self.reader = self.parts.journal.reader(account.place);
            self.at_end = false;
        }
        let parcels = self.queue.iter_mut().chain(&mut self.open);
        let finished: Vec<_> =
            parcels.filter_map(|parcel| parcel.take(|record| account.is_finished(record.number))).collect();
        finished.iter().for_each(|finished| self.let_go(finished));
        self.queue.retain(|parcel| !parcel.records.is_empty());
        self.open.retain(|parcel| !parcel.records.is_empty());
    }

    /// As [`Lane::skip_finished`], for a parcel that is in hand.
    fn drop_finished(&mut self, parcel: &mut Parcel) {
        if let Some(account) = self.parts.accounts.account(&self.parts.name)
            && let Some(finished) = parcel.take(|record| account.is_finished(record.number))
        {
            self.let_go(&finished);
        }
    }

    /// Records are in memory no more, because they ended in one way or another.
    fn let_go(&mut self, parcel: &Parcel) {
        self.held = self.held.less(parcel.tally());
        self.turns.leave(parcel);
    }

    /// Starts as many requests as may be under way now.
    fn launch(&mut self, now: Instant) {
        loop {
            let allowed = match self.mode {
                Mode::Up => self.concurrency.allowed(),
                Mode::Probing(_, until) if now < until => 0,
                Mode::Probing(..) => 1,
            };
            if self.in_flight.len() >= allowed {
                return;
            }
            let Some(parcel) = self.next_parcel(now) else { return };
            self.send(parcel, self.mode != Mode::Up);
        }
    }

    /// What to send next: what failed before, then what is new; while probing in turn, so that one bad record does not
    /// keep a backend down.
    fn next_parcel(&mut self, now: Instant) -> Option<Parcel> {
        let fresh_first = matches!(self.mode, Mode::Probing(..)) && std::mem::replace(&mut self.probe_fresh, false);
        if fresh_first {
            let known = self.queue.len();
            self.read_more(now);
            if let Some(parcel) = take_fresh(&mut self.queue, known, &self.turns) {
                return Some(parcel);
            }
        }
        self.probe_fresh = true;
        if let Some(parcel) = take_due(&mut self.queue, &self.busy, &self.turns, now) {
            return Some(parcel);
        }
        self.read_more(now);
        take_due(&mut self.queue, &self.busy, &self.turns, now)
    }

    fn send(&mut self, mut parcel: Parcel, probe: bool) {
        if parcel.attempts == 0 {
            parcel.first_attempt_ns = wall_ns();
        }
        parcel.attempts += 1;
        parcel.successes_at_send = self.successes;
        parcel.blocked = false;
        self.busy.extend(&parcel.traces);
        self.parts.accounts.note(&self.parts.name, |account| account.attempts += 1);
        let backend = Arc::clone(&self.parts.backend);
        let mut batch = parcel.batch(&self.parts.id);
        batch.promised = self.promised(&parcel);
        self.in_flight.spawn(async move {
            let outcome = backend.attempt(&batch).await;
            Finished { parcel, outcome, probe }
        });
    }

    /// What a provisional experiment stands for.
    fn promised(&self, parcel: &Parcel) -> Option<Promised> {
        let promised = self.parts.accounts.promised(parcel.experiment.as_deref()?)?;
        Some(Promised { id: promised.found.get(&self.parts.name).cloned(), name: promised.name })
    }

    /// Remembers what an attempt found out about a provisional experiment.
    fn note_experiment(&self, parcel: &Parcel) {
        if let Some(Promised { name, id: None }) = self.promised(parcel)
            && let (Some(promised), Some(id)) = (&parcel.experiment, self.parts.backend.experiment_named(&name))
        {
            self.parts.accounts.found_experiment(promised, &self.parts.name, &id);
        }
    }

    /// Reads until a batch is full, or there is nothing more.
    fn read_more(&mut self, now: Instant) {
        if self.at_end || self.read_again.is_some_and(|again| now < again) {
            return;
        }
        self.read_again = None;
        // The page cache answers at once where the lane keeps up; behind, a read may wait for the disk.
        tokio::task::block_in_place(|| self.read_batches(now));
    }

    fn read_batches(&mut self, now: Instant) {
        let batch_bytes = self.batch_bytes();
        let held_max = batch_bytes.saturating_mul(2 * u64::from(self.parts.delivery.workers.max(1)));
        while self.held.bytes < held_max && self.held.records < WINDOW_RECORDS {
            let place = self.reader.place();
            let step = match self.reader.step() {
                Ok(step) => {
                    self.patience.renew();
                    step
                }
                Err(error) if self.patience.is_over(now) => {
                    error!(
                        backend = self.parts.name,
                        %error,
                        "the spool can't be read for minutes; what can't be read now is counted as damaged"
                    );
                    self.reader.give_up_segment();
                    self.patience.renew();
                    continue;
                }
                Err(error) => {
                    // The same can be asked again. What is in hand goes on, and the doors stay open.
                    error!(backend = self.parts.name, %error, "the spool can't be read; trying again");
                    self.note(&Failure::new("spool", error.to_string()));
                    self.read_again = Some(now + self.parts.delivery.backoff_max);
                    break;
                }
            };
            match step {
                Step::Record(record) => {
                    self.skip(place..record.number);
                    if record.number < self.finished_below && self.is_finished(record.number) {
                        continue;
                    }
                    if !self.parts.backend.takes(record.envelope.kind) {
                        self.pass_over(&record);
                        continue;
                    }
                    self.held += record.tally();
                    if self.pack(record, batch_bytes, now) {
                        return;
                    }
                }
                Step::Damaged(damage) => {
                    self.skip(place..damage.records.start);
                    self.lose(&damage);
                }
                Step::End => {
                    self.at_end = true;
                    break;
                }
            }
        }
        self.queue.extend(self.open.drain(..));
    }

    /// Puts a record to its partition's open parcel. A parcel that it would overfill is queued first; then true.
    fn pack(&mut self, record: Record, batch_bytes: u64, now: Instant) -> bool {
        if record.envelope.call.is_some() {
            self.queue_call(record, now);
            return false;
        }
        let open = &mut self.open;
        let partition = self.parts.backend.partition(record.envelope.experiment.as_deref());
        let envelope = &record.envelope;
        let at = open
            .iter()
            .position(|parcel| parcel.experiment.as_deref() == partition && parcel.passed_on.is_of(envelope));
        let at = at.unwrap_or_else(|| {
            if open.len() == OPEN_MAX {
                self.queue.push_back(open.remove(0));
            }
            open.push(Parcel::new(partition.map(str::to_owned), PassedOn::of(envelope), now));
            open.len() - 1
        });
        let size = record.payload.len() as u64;
        let full = !open[at].records.is_empty() && open[at].bytes() + size > batch_bytes;
        if full {
            let (experiment, passed_on) = (open[at].experiment.clone(), open[at].passed_on.clone());
            let parcel = std::mem::replace(&mut open[at], Parcel::new(experiment, passed_on, now));
            self.queue.push_back(parcel);
        }
        if self.parts.backend.keeps_traces_apart() {
            let ids = crate::otlp::validate(&record.payload).map(|summary| summary.trace_ids).unwrap_or_default();
            self.turns.enter(record.number, &ids);
            open[at].traces.extend(ids);
        }
        open[at].push(record);
        full
    }

    /// A call is a request of its own.
    fn queue_call(&mut self, record: Record, now: Instant) {
        let partition = self.parts.backend.partition(record.envelope.experiment.as_deref());
        let passed_on = PassedOn::of(&record.envelope);
        let mut parcel = Parcel::new(partition.map(str::to_owned), passed_on, now);
        parcel.traces.extend(&record.envelope.trace_ids);
        self.turns.enter(record.number, &record.envelope.trace_ids);
        let is_small = record.payload.len() < CALL_KEPT_SHARED;
        parcel.push(record);
        if is_small {
            // It may have to wait for its trace.
            parcel.unshare();
        }
        self.queue.push_back(parcel);
    }

    /// The backend has no place for such a record.
    fn pass_over(&self, record: &Record) {
        let passed = [(record.number, record.tally())];
        self.parts.accounts.settle(&self.parts.name, passed, |account, ended| account.not_applicable += ended.units);
    }

    /// The bound on one batch: as configured, or what the backend lately showed to be its limit.
    fn batch_bytes(&mut self) -> u64 {
        let configured = self.parts.delivery.batch_max_bytes;
        match self.size_limit {
            Some((limit, at)) if at.elapsed() < LIMIT_REMEMBERED => configured.min(limit),
            _ => configured,
        }
    }

    /// Acts on what became of an attempt.
    async fn conclude(&mut self, finished: Result<Finished, tokio::task::JoinError>) -> Result<(), spool::Error> {
        let Ok(Finished { parcel, outcome, probe }) = finished else {
            // With `panic = "abort"` this is never reached in a release; in tests it must not pass for a delivery.
            error!(backend = self.parts.name, "an attempt panicked; its records stay until the next start");
            return Ok(());
        };
        for trace in &parcel.traces {
            self.busy.remove(trace);
        }
        match outcome {
            Outcome::Delivered { rejected_spans, message } => self.delivered(parcel, rejected_spans, message).await,
            Outcome::Retry { failure, after } => self.retry(parcel, failure, after, probe).await,
            Outcome::Blocked { failure, experiment_only } => {
                self.blocked(parcel, failure, experiment_only);
                Ok(())
            }
            Outcome::TooLarge(failure) => self.too_large(parcel, failure).await,
            Outcome::Refused { failure, doubtful } => self.refused(parcel, failure, doubtful, Reason::Rejected).await,
        }
    }

    async fn delivered(
        &mut self,
        parcel: Parcel,
        rejected_spans: u64,
        message: Option<String>,
    ) -> Result<(), spool::Error> {
        let tally = parcel.tally();
        if rejected_spans > 0 {
            let message = message.unwrap_or_default();
            warn!(backend = self.parts.name, rejected_spans, message, "the backend refused spans of a request it took");
            // All of it refused is a refusal; the data may be sent once more to find out which record it is.
            if rejected_spans >= tally.spans {
                let failure = Failure { status: "partial_success".into(), message, advice: None };
                return self.refused(parcel, failure, false, Reason::Rejected).await;
            }
        }
        self.note_experiment(&parcel);
        self.successes += 1;
        self.suspects_in_a_row = 0;
        self.size_taken = Some(parcel.bytes());
        self.held_up.remove(&parcel.experiment);
        self.taken_experiment = Some(parcel.experiment.clone());
        self.recovered();
        self.concurrency.success();
        self.finish(&parcel, |account, ended| {
            let rejected = rejected_spans.min(ended.units);
            let taken = Tally { spans: ended.spans.saturating_sub(rejected), units: ended.units - rejected, ..ended };
            account.delivered += taken;
            account.rejected += rejected;
        });
        Ok(())
    }

    async fn retry(
        &mut self,
        mut parcel: Parcel,
        failure: Failure,
        after: Option<Duration>,
        probe: bool,
    ) -> Result<(), spool::Error> {
        // Several requests that were under way together are one trouble.
        if probe || self.mode == Mode::Up {
            let pause = self.backoff.next(after, fastrand::f64());
            self.trouble(LaneState::Retrying, pause, &failure);
        }
        parcel.due = Instant::now();
        if let Some(before_clock_ms) = self.expired_before() {
            self.expire_segments(&parcel, &failure, before_clock_ms).await;
            self.drop_finished(&mut parcel);
            if let Some(expired) = parcel.take(|record| record.envelope.clock_ms < before_clock_ms) {
                match self.parts.delivery.after_retry_timeout {
                    AfterRetryTimeout::DeadLetter => self.set_aside(expired, Reason::Expired, &failure).await?,
                    AfterRetryTimeout::Discard => self.discard(expired).await,
                }
            }
        }
        if !parcel.records.is_empty() {
            self.queue.push_back(parcel);
        }
        Ok(())
    }

    /// Gives up whole segments from the place on, if the oldest one has expired: a long backlog is not copied record by
    /// record. The attempt that just failed is the one that all of them waited for.
    async fn expire_segments(&mut self, parcel: &Parcel, failure: &Failure, before_clock_ms: u64) {
        let Some(account) = self.parts.accounts.account(&self.parts.name) else { return };
        let segments = self.parts.journal.segments();
        let first = segments.iter().find(|segment| segment.next_record > account.place);
        if !first.is_some_and(|segment| segment.sealed && segment.clock_ms.1 < before_clock_ms) {
            return;
        }
        let now = self.parts.clock.now();
        let label = Label {
            segment: 0,
            backend: self.parts.name.clone(),
            reason: Reason::Expired,
            records: Ranges::default(),
            tally: Tally::default(),
            status: failure.status.clone(),
            message: failure.message.clone(),
            attempts: parcel.attempts,
            first_attempt_ns: parcel.first_attempt_ns,
            last_attempt_ns: now.wall_ns,
            clock_ms: now.clock_ms,
            received_ns: 0,
        };
        let discard = self.parts.delivery.after_retry_timeout == AfterRetryTimeout::Discard;
        // If it can't be done now, the next failure asks again.
        self.parts.commands.ask(|done| Command::Expire { label, before_clock_ms, discard, done }).await;
        self.skip_finished();
    }

    /// Gives up records without keeping them.
    async fn discard(&mut self, parcel: Parcel) {
        self.let_go(&parcel);
        let records: Vec<_> = parcel.weights().collect();
        let controls = self.parts.accounts.discard_records(&self.parts.name, &records, DiscardReason::RetryTimeout);
        self.parts.commands.ask(|done| Command::Record { controls, done }).await;
    }

    fn blocked(&mut self, mut parcel: Parcel, failure: Failure, experiment_only: bool) {
        let pause = self.parts.delivery.blocked_retry;
        // "Not permitted" is about the experiment only where another one is permitted.
        let another_is_taken = self.taken_experiment.as_ref().is_some_and(|taken| *taken != parcel.experiment);
        if experiment_only && (failure.status != "403" || another_is_taken) {
            if self.held_up.insert(parcel.experiment.clone()) {
                warn!(
                    backend = self.parts.name,
                    experiment = parcel.experiment,
                    status = failure.status,
                    message = failure.message,
                    advice = failure.advice,
                    "one experiment is held up; its records stay in the spool"
                );
            }
            self.note(&failure);
            // The connection is fine: others may pass while these wait.
            parcel.due = Instant::now() + pause;
            parcel.blocked = true;
            parcel.unshare();
            self.recovered();
        } else {
            self.trouble(LaneState::Blocked, pause, &failure);
            parcel.due = Instant::now();
        }
        self.queue.push_back(parcel);
    }

    async fn too_large(&mut self, parcel: Parcel, failure: Failure) -> Result<(), spool::Error> {
        let bytes = parcel.bytes();
        let is_about_size = bytes > SIZE_LIMIT_MIN || self.size_taken.is_some_and(|taken| bytes > taken);
        if is_about_size && parcel.records.len() > 1 {
            self.size_limit = Some((bytes / 2, Instant::now()));
        }
        let reason = if is_about_size { Reason::TooLarge } else { Reason::Rejected };
        // A lone record is convicted of its size as of anything else: only when others are taken.
        self.refused(parcel, failure, false, reason).await
    }

    async fn refused(
        &mut self,
        mut parcel: Parcel,
        failure: Failure,
        doubtful: bool,
        reason: Reason,
    ) -> Result<(), spool::Error> {
        self.note(&failure);
        let now = Instant::now();
        let case = match parcel.case.take() {
            Some(case) => case.refused_again(doubtful),
            None => Case::open(now, doubtful, self.successes),
        };
        parcel.case = Some(case);
        if parcel.records.len() > 1 {
            self.requeue_halves(parcel);
            return Ok(());
        }
        if case.is_convicted(now, parcel.successes_at_send) {
            return self.set_aside(parcel, reason, &failure).await;
        }
        self.suspects_in_a_row += u32::from(!parcel.suspected);
        parcel.suspected = true;
        if self.suspects_in_a_row >= BREAKER {
            self.trouble(LaneState::Blocked, self.parts.delivery.blocked_retry, &failure);
        }
        parcel.due = now + case.pause();
        parcel.unshare();
        self.queue.push_back(parcel);
        Ok(())
    }

    /// The halves go next, so that a bad record is found before the window is full.
    fn requeue_halves(&mut self, parcel: Parcel) {
        let [first, second] = parcel.halves();
        self.queue.push_front(second);
        self.queue.push_front(first);
    }

    /// What was received before this running clock is older than the backend's `retry_timeout`; `None` soon after a
    /// start.
    fn expired_before(&self) -> Option<u64> {
        let timeout = self.parts.delivery.retry_timeout;
        if self.parts.clock.uptime() < timeout.min(START_GRACE) {
            return None;
        }
        // All the time that the backend was ever blocked, not only this record's: what errs here errs on its side.
        let idle_ms = self.parts.accounts.account(&self.parts.name).map_or(0, |account| account.idle_ms);
        Some(self.parts.clock.now().clock_ms.saturating_sub(millis(timeout)).saturating_sub(idle_ms))
    }

    /// Copies records to the side journal, and moves the place over them when they are durable there.
    async fn set_aside(&mut self, mut parcel: Parcel, reason: Reason, failure: &Failure) -> Result<(), spool::Error> {
        let now = self.parts.clock.now();
        let aside = |record: &Record| Aside {
            record: record.number,
            backend: self.parts.name.clone(),
            reason,
            status: failure.status.clone(),
            message: failure.message.clone(),
            attempts: parcel.attempts,
            first_attempt_ns: parcel.first_attempt_ns,
            last_attempt_ns: now.wall_ns,
            clock_ms: now.clock_ms,
        };
        let records: Vec<_> = parcel.records.iter().map(|record| (record.clone(), aside(record))).collect();
        let side = Arc::clone(&self.parts.side);
        let put = tokio::task::spawn_blocking(move || side.put(records, now)).await;
        match put {
            Ok(Ok(numbers)) => {
                let tally = parcel.tally();
                warn!(
                    backend = self.parts.name,
                    records = tally.records,
                    spans = tally.spans,
                    reason = ?reason,
                    status = failure.status,
                    "set aside as dead letters"
                );
                self.let_go(&parcel);
                let records: Vec<_> = parcel.weights().collect();
                self.parts.accounts.bury(&self.parts.name, &records, numbers.start);
                Ok(())
            }
            Ok(Err(error @ spool::Error::Full { .. })) => {
                warn!(backend = self.parts.name, %error, "records can't be set aside now; they stay where they are");
                parcel.due = Instant::now() + self.parts.delivery.backoff_max;
                self.queue.push_back(parcel);
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(spool::Error::Poisoned),
        }
    }

    /// Notes in the books how records ended.
    fn finish(&mut self, parcel: &Parcel, change: impl FnOnce(&mut spool::Account, Tally)) {
        self.let_go(parcel);
        self.parts.accounts.settle(&self.parts.name, parcel.weights(), change);
    }

    /// Numbers that no record has: skipped at a start, or reclaimed.
    fn skip(&self, numbers: Range<u64>) {
        if !numbers.is_empty() {
            self.parts.accounts.pass(&self.parts.name, numbers);
        }
    }

    fn lose(&self, damage: &spool::Damage) {
        let lost = self.parts.accounts.lose(&self.parts.name, damage);
        error!(
            backend = self.parts.name,
            segment = damage.segment,
            offset = damage.offset,
            records = lost.records,
            spans = lost.spans,
            "records can't be read from the spool; the files stay as they are"
        );
    }

    fn is_finished(&self, record: u64) -> bool {
        self.parts.accounts.is_finished(&self.parts.name, record)
    }

    fn note(&self, failure: &Failure) {
        self.parts.accounts.lane(&self.parts.name, |lane| {
            lane.last_error = Some((std::time::SystemTime::now(), failure.clone()));
        });
    }

    /// The backend works again.
    fn recovered(&mut self) {
        self.backoff.reset();
        self.note_idle(false);
        if let Mode::Probing(state, _) = std::mem::replace(&mut self.mode, Mode::Up) {
            info!(backend = self.parts.name, was = %state, "the backend takes requests again");
        }
    }

    /// The backend, not a record, is in trouble.
    fn trouble(&mut self, state: LaneState, pause: Duration, failure: &Failure) {
        let changed = !matches!(self.mode, Mode::Probing(before, _) if before == state);
        if changed {
            warn!(
                backend = self.parts.name,
                %state,
                status = failure.status,
                message = failure.message,
                advice = failure.advice,
                "delivery is held up; records stay in the spool"
            );
        }
        self.note(failure);
        self.note_idle(state == LaneState::Blocked);
        self.concurrency.trouble();
        self.mode = Mode::Probing(state, Instant::now() + pause);
    }

    /// Puts the time in the books for which the operator had to act; goes on counting if `still`.
    fn note_idle(&mut self, still: bool) {
        let now = Instant::now();
        let since = if still { self.blocked_since.replace(now) } else { self.blocked_since.take() };
        if let Some(since) = since {
            let idle = millis(now - since);
            self.parts.accounts.note(&self.parts.name, |account| account.idle_ms += idle);
        }
    }

    fn report(&self) {
        let in_flight = u32::try_from(self.in_flight.len()).unwrap_or(u32::MAX);
        let only_blocked = in_flight == 0 && !self.queue.is_empty() && self.queue.iter().all(|parcel| parcel.blocked);
        let (state, until) = match self.mode {
            // Nothing moves, and nothing will before the operator acts: that must not look well.
            Mode::Up if only_blocked => (LaneState::Blocked, self.queue.iter().map(|parcel| parcel.due).min()),
            Mode::Up => (LaneState::Up, None),
            Mode::Probing(state, until) => (state, Some(until)),
        };
        let wait = until.map(|until| std::time::SystemTime::now() + until.saturating_duration_since(Instant::now()));
        self.parts.accounts.lane(&self.parts.name, |lane| {
            lane.state = state;
            lane.in_flight = in_flight;
            lane.next_attempt_at = wait;
        });
    }

    /// When there may be something to do although nothing happened. What is due already waits for something else.
    fn next_due(&self, now: Instant) -> Option<Instant> {
        let not_before = match self.mode {
            Mode::Up => None,
            Mode::Probing(_, until) => Some(until),
        };
        let parcels = self.queue.iter().map(|parcel| parcel.due).filter(|due| *due > now).min();
        let look = matches!(self.mode, Mode::Probing(LaneState::Blocked, _)).then(|| now + CREDENTIALS_LOOK_EVERY);
        [not_before, parcels.max(not_before), look, self.read_again]
            .into_iter()
            .flatten()
            .filter(|due| *due > now)
            .min()
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}
