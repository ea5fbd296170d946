//! Drives a journal on a simulated disk, and knows what must be true of it afterwards.
//!
//! An acknowledgement is a `commit` that returned `Ok`. Whatever a start shows to readers counts as acknowledged too,
//! because a lane may have sent it from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use spool::disk::sim::{Loss, SimDisk};
use spool::{
    Account, Control, DiscardReason, Durability, Error, Journal, Keep, Kept, Label, Letters, LettersEnd, Opened,
    Options, Ranges, Reason, State, Tally, Writer,
};

use super::{TINY, TINY_KEEPING, draft, drain, now, payload};

pub const DIR: &str = "/state/journal";
pub const LABELLED: &str = "/state/side/labelled";

/// What was promised.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// The name of the payload, by record number.
    pub acked: BTreeMap<u64, u64>,
    /// Every name that was ever staged under a number.
    staged: BTreeMap<u64, BTreeSet<u64>>,
    /// Records below this may be gone.
    reclaimed: u64,
    /// All controls that were acknowledged, folded.
    pub state: State,
    /// With what is staged folded in too.
    staged_state: State,
    /// The facts that may be found: those acknowledged, and those with what is under way, or was refused since.
    possible: Vec<State>,
    clock_ms: u64,
    staged_any: bool,
    next_name: u64,
}

#[derive(Debug)]
pub struct Driver {
    pub disk: SimDisk,
    pub model: Model,
    pub writer: Option<Writer>,
    pub options: Options,
    /// Commits are not synced.
    pub relaxed: bool,
    /// The power was cut while commits were not synced: what was acknowledged may be gone, and is forgotten then.
    pub may_lose: bool,
    /// It was, and what was lost shows as damage from then on.
    has_lost: bool,
}

impl Driver {
    pub fn new(disk: SimDisk) -> Self {
        let model = Model { possible: vec![State::default()], next_name: 1, ..Model::default() };
        Self { disk, model, writer: None, options: TINY, relaxed: false, may_lose: false, has_lost: false }
    }

    /// One that keeps files back, if `keeping`.
    pub fn new_keeping(keeping: bool) -> Self {
        let options = if keeping { TINY_KEEPING } else { TINY };
        Self { options, ..Self::new(SimDisk::new()) }
    }

    /// The same promises on another disk.
    pub fn on(&self, disk: SimDisk) -> Self {
        Self { disk, model: self.model.clone(), writer: None, ..*self }
    }

    /// Opens the journal and checks all that was promised.
    pub fn open(&mut self) -> Result<(), Error> {
        self.writer = None;
        self.model.staged_any = false;
        let durability = if self.relaxed { Durability::Relaxed } else { Durability::Sync };
        let options = Options { durability, ..self.options };
        let opened = super::try_open(Arc::new(self.disk.clone()), Path::new(DIR), options)?;
        self.check(&opened);
        self.check_labels(&opened.state)?;
        self.writer = Some(opened.writer);
        Ok(())
    }

    /// What became dead letters by whole segments can be read where it is kept; what nobody names goes.
    fn check_labels(&self, state: &State) -> Result<(), Error> {
        let kept = Kept::open(Arc::new(self.disk.clone()), Path::new(LABELLED))?;
        let named = |id: u64| state.labels.iter().any(|label| label.segment == id);
        let orphans: Vec<u64> = kept.list()?.into_iter().map(|(id, _)| id).filter(|id| !named(*id)).collect();
        kept.remove(&orphans)?;
        let inside = Journal::inspect(Arc::new(self.disk.clone()), Path::new(LABELLED), self.options)?;
        for label in &state.labels {
            let (records, _) = drain(&mut inside.shared.reader(1));
            let letters: Vec<_> = records.iter().filter(|record| label.records.contains(record.number)).collect();
            for record in &letters {
                let name = self.model.acked.get(&record.number);
                let is_right = name.is_some_and(|name| is_named(&record.payload, *name));
                assert!(is_right || self.has_lost, "dead letter {}", record.number);
            }
            let sum = letters.iter().fold(Tally::default(), |sum, record| sum.plus(record.tally()));
            assert_eq!(sum, label.tally, "{label:?}");
        }
        Ok(())
    }

    fn check(&mut self, opened: &Opened) {
        let (records, damage) = drain(&mut opened.shared.reader(1));
        let may_lose = std::mem::take(&mut self.may_lose);
        self.has_lost |= may_lose;
        let below = |records: &std::ops::Range<u64>| self.has_lost || records.end <= self.model.reclaimed;
        assert!(damage.iter().all(|damage| below(&damage.records)), "damage: {damage:?}");
        assert!(opened.recovery.damage.iter().all(|damage| below(&damage.records)), "{:?}", opened.recovery);
        assert_eq!(opened.recovery.unreadable.len(), 0);
        assert!(records.is_sorted_by(|a, b| a.number < b.number), "order holds");
        let mut found = BTreeMap::new();
        for record in &records {
            let names = self.model.staged.get(&record.number);
            let name = names.into_iter().flatten().find(|name| is_named(&record.payload, **name));
            let name = *name.unwrap_or_else(|| panic!("record {} was never staged", record.number));
            assert_eq!(record.payload, payload(name, record.payload.len()), "the payload of {}", record.number);
            assert_eq!(record.envelope, draft(name, 0).envelope);
            found.insert(record.number, name);
        }
        if may_lose {
            let last = self.model.acked.keys().last().copied().unwrap_or(0);
            self.model.acked.retain(|number, _| found.contains_key(number));
            assert!(opened.shared.next_record() > last, "no number of a record that is gone is used again");
        }
        for (number, name) in self.model.acked.range(self.model.reclaimed..) {
            assert_eq!(found.get(number), Some(name), "record {number} was acknowledged; {:?}", opened.recovery);
        }
        for (&number, &name) in &found {
            let acked = *self.model.acked.entry(number).or_insert(name);
            assert_eq!(acked, name, "number {number} has one payload");
        }
        // A start finishes numbers that no record has; what is said of records must be what was said.
        let unused: Vec<u64> = (0..opened.shared.next_record()).filter(|number| !found.contains_key(number)).collect();
        let said = |state: &State| {
            let mut accounts = state.accounts.clone();
            for account in accounts.values_mut() {
                unused.iter().for_each(|number| account.finish(*number..number + 1));
            }
            (accounts, state.labels.clone(), state.side_settled.clone())
        };
        let possible: Vec<_> = self.model.possible.iter().map(&said).collect();
        assert!(may_lose || possible.contains(&said(&opened.state)), "{:?} not in {possible:?}", opened.state);
        assert!(may_lose || opened.state.clock_ms >= self.model.state.clock_ms, "the clock never goes back");
        self.model.state = opened.state.clone();
        self.model.clock_ms = self.model.clock_ms.max(opened.state.clock_ms);
        self.settle();
        assert!(opened.shared.segments().is_sorted_by(|a, b| a.id < b.id && a.next_record <= b.first_record));
    }

    fn settle(&mut self) {
        self.model.staged_state = self.model.state.clone();
        self.model.possible = vec![self.model.state.clone()];
    }

    pub fn writer(&mut self) -> &mut Writer {
        self.writer.as_mut().expect("the journal is open")
    }

    pub fn stage(&mut self, length: usize) {
        let name = self.model.next_name;
        self.model.next_name += 1;
        let number = self.writer().stage(draft(name, length));
        self.model.staged.entry(number).or_default().insert(name);
        self.model.staged_any = true;
    }

    pub fn control(&mut self, control: Control) {
        let now = now(self.model.clock_ms);
        self.writer().stage_control(&control, now);
        self.model.staged_any = true;
        self.model.staged_state.apply(&control);
        // Of a group that was never acknowledged, any frames may be found.
        for mut state in self.model.possible.clone() {
            state.apply(&control);
            if !self.model.possible.contains(&state) {
                self.model.possible.push(state);
            }
        }
    }

    /// A checkpoint in which every backend has come to `place`.
    pub fn places(&mut self, place: u64) {
        let mut after = self.model.staged_state.clone();
        after.accounts.values_mut().for_each(|account: &mut Account| account.place = place);
        let now = now(self.model.clock_ms);
        self.writer().stage_checkpoint(&after, now);
        self.model.possible.push(after.clone());
        self.model.staged_any = true;
        self.model.staged_state = after;
    }

    /// Gives up what a backend waits for in these records.
    pub fn discard(&mut self, name: &str, records: std::ops::Range<u64>) {
        let Some(account) = self.model.staged_state.accounts.get(name) else { return };
        let next = self.writer.as_ref().map_or(0, |writer| writer.shared().next_record());
        // Of records that are there: a limit gives up nothing that is still to come.
        let records = account.unfinished_in(records.start..records.end.min(next));
        if !records.is_empty() {
            let tally = Tally { records: records.count(), units: records.count(), ..Tally::default() };
            self.control(Control::Discarded { backend: name.into(), records, reason: DiscardReason::QueueCap, tally });
        }
    }

    /// Makes the oldest sealed segments dead letters of a backend. Where they can't be kept, nothing changes.
    pub fn relabel(&mut self, name: &str, count: usize) {
        let shared = self.writer().shared().clone();
        let place = self.model.staged_state.accounts.get(name).map_or(u64::MAX, |account| account.place);
        let segments: Vec<_> = shared
            .segments()
            .into_iter()
            .filter(|segment| segment.sealed && segment.next_record > place && segment.tally.records > 0)
            .take(count)
            .collect();
        let kept = Kept::open(Arc::new(self.disk.clone()), Path::new(LABELLED));
        if kept.and_then(|kept| shared.keep_copies(&segments, &kept)).is_err() {
            return;
        }
        for segment in segments {
            let records =
                self.model.staged_state.accounts[name].unfinished_in(segment.first_record..segment.next_record);
            let weights = shared.weigh(&segment).expect("it can be read");
            let inside = weights.iter().filter(|(number, _)| records.contains(*number));
            let tally = inside.fold(Tally::default(), |sum, (_, tally)| sum.plus(*tally));
            if !records.is_empty() {
                self.control(Control::Relabelled(Box::new(label(name, segment.id, records, tally))));
            }
        }
    }

    /// Lets go of the oldest segment that is kept whole, and of the file when the fact is durable.
    pub fn settle_label(&mut self) -> Result<(), Error> {
        let Some(label) = self.model.staged_state.labels.first().cloned() else { return Ok(()) };
        self.control(Control::SideSettled {
            backend: label.backend,
            letters: Letters::Segment(label.segment),
            end: LettersEnd::Discarded(DiscardReason::DeadLetterCap),
            tally: label.tally,
        });
        self.commit()?;
        // Also where commits are not synced, the fact is on disk before the file goes.
        self.writer().sync()?;
        let gone = !self.model.state.labels.iter().any(|other| other.segment == label.segment);
        // What can't be removed is removed by the next start.
        let kept = Kept::open(Arc::new(self.disk.clone()), Path::new(LABELLED));
        if let Ok(kept) = kept
            && gone
        {
            let _ = kept.remove(&[label.segment]);
        }
        Ok(())
    }

    /// Reclaims what no backend needs, as the facts say that are durable.
    pub fn reclaim_past(&mut self) -> Result<(), Error> {
        let lowest = self.model.state.lowest_needed().unwrap_or(0);
        self.reclaim(lowest)
    }

    pub fn commit(&mut self) -> Result<(), Error> {
        self.model.clock_ms += 1;
        let now = now(self.model.clock_ms);
        let after = self.model.staged_state.clone();
        // The checkpoint of a roll is that of a daemon that has taken in what it staged, or has not yet.
        let state = if now.clock_ms.is_multiple_of(2) { after.clone() } else { self.model.state.clone() };
        let committed = self.writer().commit(now, &mut || state.clone())?;
        // A commit of nothing writes nothing, not even over what was refused before.
        if std::mem::take(&mut self.model.staged_any) {
            self.model.state = State { clock_ms: now.clock_ms, ..after };
            self.settle();
        }
        for number in committed.records {
            let name = *self.model.staged[&number].last().expect("it was staged");
            let before = self.model.acked.insert(number, name);
            assert_eq!(before, None, "number {number} was acknowledged before");
        }
        Ok(())
    }

    /// What was staged is forgotten. It may still be found by a start, until a later group took its place on disk.
    pub fn refused(&mut self) {
        self.model.staged_state = self.model.state.clone();
        self.model.staged_any = false;
    }

    pub fn append(&mut self, length: usize) -> Result<(), Error> {
        self.stage(length);
        self.commit()
    }

    pub fn reclaim(&mut self, lowest: u64) -> Result<(), Error> {
        self.model.reclaimed = self.model.reclaimed.max(lowest);
        self.writer().reclaim(lowest, Keep { since_clock_ms: u64::MAX, bytes: 0 }).map(|_| ())
    }

    /// Until all that is to be kept back is there.
    pub fn prepare(&mut self) -> Result<(), Error> {
        while self.writer().prepare()? {}
        assert_eq!(self.writer().kept_back_missing(), 0);
        Ok(())
    }

    pub fn close(&mut self) -> Result<(), Error> {
        let state = self.model.state.clone();
        self.model.clock_ms += 1;
        let now = now(self.model.clock_ms);
        self.writer.take().expect("the journal is open").close(now, &state)
    }

    /// What the present process sees, before anything is lost.
    pub fn read_now(&mut self) {
        let shared = self.writer().shared().clone();
        let (records, damage) = drain(&mut shared.reader(self.model.reclaimed));
        assert!(self.has_lost || damage.is_empty(), "{damage:?}");
        let found: BTreeMap<u64, _> = records.into_iter().map(|record| (record.number, record.payload)).collect();
        for (number, name) in self.model.acked.range(self.model.reclaimed..) {
            assert!(found.get(number).is_some_and(|payload| is_named(payload, *name)), "record {number}");
        }
        for number in found.keys() {
            assert!(self.model.acked.contains_key(number), "a reader sees only what is durable: {number}");
        }
    }

    /// Opens, checks, and sees that the journal takes more; then the same again.
    pub fn survives(&mut self) {
        for _ in 0..2 {
            self.open().expect("a healthy disk opens");
            self.append(100).expect("a healthy disk takes records");
            self.read_now();
        }
    }

    /// As [`Driver::survives`], after this loss, with nothing changed here.
    pub fn survives_loss(&self, loss: Loss) {
        self.on(self.disk.crash(loss)).survives();
    }
}

impl Driver {
    /// As [`Driver::survives_loss`] by a kill, on a disk that has room.
    pub fn survives_loss_without_limit(&self) {
        let disk = self.disk.crash(Loss::KILL);
        disk.limit(None);
        self.on(disk).survives();
    }
}

fn label(backend: &str, segment: u64, records: Ranges, tally: Tally) -> Label {
    Label {
        segment,
        backend: backend.into(),
        reason: Reason::Expired,
        records,
        tally,
        status: "503".into(),
        message: "away".into(),
        attempts: 1,
        first_attempt_ns: 2,
        last_attempt_ns: 3,
        clock_ms: 4,
        received_ns: 5,
    }
}

fn is_named(bytes: &[u8], name: u64) -> bool {
    bytes.starts_with(format!("record {name} ").as_bytes())
}

/// A sequence of operations that ends at the first failure.
pub type Workload = fn(&mut Driver) -> Result<(), Error>;

fn added(name: &str) -> Control {
    Control::BackendAdded { name: name.into(), start: 1 }
}

/// Appends of many sizes, several to a group, over rolls.
pub fn appends(driver: &mut Driver) -> Result<(), Error> {
    driver.open()?;
    for (count, length) in [(1, 0), (3, 10), (2, 700), (1, 5000), (1, 9000), (4, 300), (1, 30_000), (1, 10), (2, 4000)]
    {
        (0..count).for_each(|_| driver.stage(length));
        driver.commit()?;
    }
    driver.close()
}

/// Facts, checkpoints and reclaim between records, over rolls.
pub fn facts(driver: &mut Driver) -> Result<(), Error> {
    driver.open()?;
    for round in 0..5_u64 {
        driver.control(added(if round < 2 { "a" } else { "b" }));
        driver.append(3000)?;
        driver.control(match round % 2 {
            0 => Control::Paused { name: "a".into() },
            _ => Control::Resumed { name: "a".into() },
        });
        driver.stage(5000);
        driver.commit()?;
        driver.places(round * 2);
        driver.commit()?;
        driver.reclaim(round * 2)?;
    }
    driver.close()
}

/// Starts after orderly and disorderly ends, with a little between.
pub fn starts(driver: &mut Driver) -> Result<(), Error> {
    driver.open()?;
    driver.control(added("a"));
    driver.append(100)?;
    driver.open()?;
    driver.open()?;
    driver.append(2000)?;
    driver.append(100)?;
    driver.close()?;
    driver.open()?;
    driver.close()?;
    driver.open()?;
    driver.append(20_000)?;
    driver.control(Control::Paused { name: "a".into() });
    driver.append(20_000)?;
    driver.open()?;
    driver.append(10)
}

/// A backlog of two backends of which one segment after the other is given up, or kept as dead letters, and dead
/// letters that are given up in turn.
pub fn limits(driver: &mut Driver) -> Result<(), Error> {
    driver.open()?;
    driver.control(added("a"));
    driver.control(added("b"));
    for length in [14_000, 14_000, 14_000, 100] {
        driver.append(length)?;
    }
    driver.relabel("a", 2);
    driver.discard("b", 1..2);
    driver.commit()?;
    driver.reclaim_past()?;
    driver.relabel("b", 1);
    driver.append(100)?;
    driver.reclaim_past()?;
    driver.settle_label()?;
    driver.discard("a", 1..20);
    driver.append(100)
}

/// The same where files can't have two names.
pub fn limits_without_links(driver: &mut Driver) -> Result<(), Error> {
    driver.disk.forbid_links();
    limits(driver)
}

/// Segments made of the files of others, full of valid frames, over starts.
pub fn recycling(driver: &mut Driver) -> Result<(), Error> {
    driver.options = TINY_KEEPING;
    driver.open()?;
    driver.control(added("a"));
    for round in 1..=4 {
        for length in [9000, 10, 7000, 9000, 20, 9000] {
            driver.append(length)?;
        }
        let next = driver.writer().shared().next_record();
        driver.places(next - 3);
        driver.commit()?;
        driver.reclaim(next - 3)?;
        match round {
            1 => driver.prepare()?,
            2 => driver.open()?,
            _ => {}
        }
    }
    driver.writer().discard_spares()?;
    driver.append(9000)?;
    driver.close()
}

pub const WORKLOADS: [(&str, Workload); 5] =
    [("appends", appends), ("facts", facts), ("starts", starts), ("recycling", recycling), ("limits", limits)];
