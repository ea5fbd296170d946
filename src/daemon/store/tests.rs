//! What a start makes of a journal that was cut off anywhere, with any ledger beside it.
//!
//! Goal: nothing acknowledged is lost, the accounts balance, nothing counts twice, and what is sent again is what was
//! sent after the last thing that is known. Method: a daemon in small does everything that moves a place on a simulated
//! disk, and the ledger's content is noted after each step. The run is cut off at each call; each of these ledgers, none,
//! and some of a run that went on longer are put beside each crash image, and the start is checked.

use std::collections::BTreeSet;

use bytes::Bytes;
use spool::disk::sim::{Failure, Fate, Fault, Loss, SimDisk};
use spool::{Aside, Control, DiscardReason, Draft, Envelope, Label, Ranges, Reason, Record, Step, Tally};

use super::*;
use crate::accounts::Weighed;
use crate::config::{AfterRetryTimeout, Delivery, FileTarget, StartAt, Target};
use crate::ledger::Saved;

const SEGMENT_BYTES: u64 = 64 << 10;
const RECORD_BYTES: usize = 20_000;

fn backend() -> Backend {
    let second = std::time::Duration::from_secs(1);
    Backend {
        name: "a".into(),
        target: Target::File(FileTarget { path: "/out".into(), rotate_bytes: 1 << 20, rotate_files: 1 }),
        delivery: Delivery {
            workers: 1,
            timeout: second,
            batch_max_bytes: 1 << 20,
            backoff_initial: second,
            backoff_max: second,
            retry_timeout: second,
            after_retry_timeout: AfterRetryTimeout::DeadLetter,
            blocked_retry: second,
        },
        start_at: StartAt::Auto,
        gives_way: false,
        max_backlog_bytes: None,
    }
}

fn limits() -> config::Spool {
    config::Spool {
        max_bytes: 4 * SEGMENT_BYTES,
        segment_bytes: SEGMENT_BYTES,
        max_traces: None,
        when_full: config::WhenFull::Refuse,
        min_free_disk: 0,
        keep_delivered: std::time::Duration::ZERO,
        keep_delivered_bytes: 0,
        durability: spool::Durability::Sync,
    }
}

fn dirs() -> Dirs {
    Dirs { journal: "/state/journal".into(), side: "/state/side".into() }
}

/// A ledger as it was at a moment.
#[derive(Debug, Clone, Default)]
struct Moment {
    saved: Books,
    spool_id: Option<u64>,
    facts: u64,
    /// What the backend had taken by then.
    delivered: BTreeSet<u64>,
    /// What was acknowledged by then.
    acked: BTreeSet<u64>,
    /// What ended otherwise by then, or was about to.
    gone: BTreeSet<u64>,
}

impl Moment {
    fn opened(&self) -> ledger::Opened {
        ledger::Opened { ledger: None, accounts: self.saved.clone(), spool_id: self.spool_id, set_aside: None }
    }
}

/// A daemon in small.
#[derive(Debug)]
struct Small {
    store: Store,
    /// What is true outside.
    moment: Moment,
    /// One after each step.
    history: Vec<Moment>,
    /// What the last durable checkpoint knows.
    checkpoint: Moment,
}

impl Small {
    fn start(disk: &SimDisk, moment: &Moment) -> Result<Self, Error> {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let store = Store::open(&disk, &dirs(), &limits(), &[backend()], &moment.opened())?;
        let spool_id = Some(store.state.spool_id);
        let moment = Moment { spool_id, ..moment.clone() };
        Ok(Self { store, checkpoint: moment.clone(), moment, history: Vec::new() })
    }

    /// The ledger follows the books.
    fn follow(&mut self) {
        let (state, _) = self.store.accounts.snapshot(0);
        self.moment.facts = state.facts;
        self.moment.saved =
            state.accounts.into_iter().map(|(name, account)| (name, Saved { account, facts: state.facts })).collect();
        self.history.push(self.moment.clone());
    }

    fn commit(&mut self, controls: &[Control], with_checkpoint: bool) -> Result<(), Error> {
        let now = self.store.clock.now();
        controls.iter().for_each(|control| self.store.writer.stage_control(control, now));
        let (state, _) = self.store.accounts.snapshot(now.clock_ms);
        if with_checkpoint {
            self.store.writer.stage_checkpoint(&state, now);
        }
        let committed = self.store.writer.commit(now, &mut || state.clone())?;
        self.moment.acked.extend(committed.records.clone());
        if !committed.records.is_empty() {
            self.store.accounts.commit(committed.tally, committed.records.end);
        }
        if with_checkpoint || committed.rolled {
            self.checkpoint = Moment { facts: state.facts, ..self.moment.clone() };
        }
        Ok(())
    }

    fn take(&mut self, count: u64) -> Result<(), Error> {
        for _ in 0..count {
            let envelope = Envelope { spans: 1, traces: 1, ..Envelope::default() };
            self.store.writer.stage(Draft { envelope, payload: Bytes::from(vec![b'x'; RECORD_BYTES]) });
        }
        self.commit(&[], false)
    }

    fn deliver(&mut self, records: std::ops::Range<u64>) {
        self.store.accounts.note("a", |account| account.attempts += 1);
        self.store.accounts.settle("a", records.clone().map(weight), |account, ended| account.delivered += ended);
        self.moment.delivered.extend(records);
    }

    fn read(&self, number: u64) -> Record {
        match self.store.journal.reader(number).step() {
            Ok(Step::Record(record)) => record,
            other => panic!("record {number} can be read: {other:?}"),
        }
    }

    fn die(&mut self, number: u64) -> Result<(), Error> {
        self.moment.gone.insert(number);
        let aside = Aside {
            record: number,
            backend: "a".into(),
            reason: Reason::Rejected,
            status: "400".into(),
            message: String::new(),
            attempts: 1,
            first_attempt_ns: 1,
            last_attempt_ns: 1,
            clock_ms: 1,
        };
        let copies = self.store.side.put(vec![(self.read(number), aside)], self.store.clock.now())?;
        self.store.accounts.note("a", |account| account.attempts += 1);
        self.store.accounts.bury("a", &[weight(number)], copies.start);
        Ok(())
    }

    fn discard(&mut self, records: std::ops::Range<u64>) -> Result<(), Error> {
        let weights: Vec<_> = records.clone().map(weight).collect();
        let controls = self.store.accounts.discard_records("a", &weights, DiscardReason::QueueCap);
        self.moment.gone.extend(records);
        self.commit(&controls, true)
    }

    fn expire(&mut self) -> Result<(), Error> {
        let place = self.store.accounts.account("a").map_or(0, |account| account.place);
        let segments = self.store.journal.segments();
        let oldest = segments.iter().find(|segment| segment.sealed && segment.next_record > place);
        let oldest = *oldest.expect("there is a sealed segment that is not past");
        self.store.side.keep(&[oldest])?;
        self.moment.gone.extend(oldest.first_record..oldest.next_record);
        let label = Label {
            segment: oldest.id,
            backend: "a".into(),
            reason: Reason::Expired,
            records: Ranges::default(),
            tally: Tally::default(),
            status: String::new(),
            message: String::new(),
            attempts: 1,
            first_attempt_ns: 1,
            last_attempt_ns: 1,
            clock_ms: 2,
            received_ns: 1,
        };
        let each = self.store.journal.weigh(&oldest)?;
        let span = oldest.first_record..oldest.next_record;
        let records = Weighed { span, total: oldest.tally, each: Some(&each) };
        let controls = self.store.accounts.relabel(&records, &label).expect("each is known");
        self.commit(&controls, true)
    }

    /// Everything that moves a place, with the ledger noted after each step.
    fn run(disk: &SimDisk) -> Result<(Self, Result<(), Error>), Error> {
        let mut small = Self::start(disk, &Moment::default())?;
        let ended = (|| {
            let mut step = |step: &dyn Fn(&mut Self) -> Result<(), Error>| {
                let ended = step(&mut small);
                small.follow();
                ended
            };
            step(&|small| small.take(2))?;
            step(&|small| small.take(2))?;
            step(&|small| {
                small.deliver(1..2);
                Ok(())
            })?;
            step(&|small| small.die(3))?;
            step(&|small| small.take(2))?;
            step(&|small| small.commit(&[], true))?;
            step(&|small| {
                small.deliver(4..5);
                Ok(())
            })?;
            step(&|small| small.discard(2..3))?;
            step(&|small| {
                small.deliver(6..7);
                Ok(())
            })?;
            step(&|small| small.take(3))?;
            step(&Self::expire)?;
            step(&|small| {
                small.deliver(8..9);
                Ok(())
            })?;
            step(&|small| small.die(9))?;
            step(&|small| small.take(1))
        })();
        Ok((small, ended))
    }
}

fn weight(number: u64) -> (u64, Tally) {
    (number, Tally::one(1, 1, RECORD_BYTES as u64))
}

/// All records that can be read.
fn numbers(journal: &Shared) -> Vec<u64> {
    let mut reader = journal.reader(1);
    std::iter::from_fn(|| match reader.step().expect("it can be read") {
        Step::Record(record) => Some(record.number),
        Step::Damaged(damage) => panic!("{damage:?}"),
        Step::End => None,
    })
    .collect()
}

/// Starts on a crash image with a ledger beside it, and checks what it makes of both.
fn check(disk: &SimDisk, cut: &Small, ledger: &Moment, newer: bool) {
    let started = Small::start(disk, ledger).expect("a healthy disk opens");
    let account = started.store.accounts.account("a").expect("it is enrolled");
    let report = started.store.accounts.report();
    let book = &report.books[0];
    let delivered: BTreeSet<u64> = cut.moment.delivered.union(&ledger.delivered).copied().collect();
    let gone: BTreeSet<u64> = cut.moment.gone.union(&ledger.gone).copied().collect();

    // Nothing acknowledged is lost: it waits and can be read, or it ended.
    let mut sent_again = BTreeSet::new();
    for number in &cut.moment.acked {
        let ended = delivered.contains(number) || gone.contains(number);
        if account.is_finished(*number) {
            assert!(ended, "record {number} is past and never ended: {account:?}");
        } else {
            assert_eq!(started.read(*number).number, *number, "record {number} waits");
            if delivered.contains(number) {
                sent_again.insert(*number);
            }
        }
    }
    // What is sent again was sent after the last that is known: the checkpoint's, or the ledger's if it is of use.
    let known = if ledger.facts == started.store.state.facts { &ledger.delivered } else { &cut.checkpoint.delivered };
    let known: BTreeSet<u64> = known.union(&cut.checkpoint.delivered).copied().collect();
    assert!(sent_again.is_disjoint(&known), "{sent_again:?} were known to be delivered: {known:?}");
    // The accounts balance, with what was owed counted on its own: one unit a record.
    let found = numbers(&started.store.journal);
    let waiting = found.iter().filter(|number| !account.is_finished(**number)).count() as u64;
    assert_eq!(book.waiting.units, waiting, "{account:?}");
    assert_eq!(book.owed, account.settled() + waiting);
    if !newer {
        assert_eq!(book.owed, found.len() as u64, "each record once: {account:?}");
        assert!(account.delivered.units <= delivered.len() as u64);
    }
    if !newer {
        // Dead letters are where the books say.
        let labelled: u64 = started.store.state.labels.iter().map(|label| label.tally.units).sum();
        let settled = started.store.state.side_settled.count();
        assert_eq!(account.damaged, 0, "{account:?}");
        let copied: u64 = started.store.side.shared().segments().iter().map(|segment| segment.tally.units).sum();
        assert_eq!(account.dead.units + settled, labelled + copied, "{account:?} {:?}", started.store.state);
    }
    // It goes on with numbers that nobody has seen; so does the next start, also without a ledger.
    go_on(started, cut);
    let again = Small::start(disk, &Moment::default()).expect("it opens again");
    assert!(newer || again.store.accounts.account("a").is_some_and(|account| account.damaged == 0));
    go_on(again, cut);
}

fn go_on(mut started: Small, cut: &Small) {
    started.take(1).expect("it takes records");
    let number = started.store.journal.next_record() - 1;
    assert!(!cut.moment.acked.contains(&number), "{number} is used twice");
    assert!(!started.store.accounts.is_finished("a", number), "{number} counts as finished");
}

fn losses(seed: u64) -> [Loss; 3] {
    let some = Fate::Some(512);
    [Loss::KILL, Loss::power(Fate::Lost, Fate::Lost, Fate::Lost, seed), Loss::power(some, some, some, seed)]
}

#[test]
fn any_ledger_beside_any_crash_loses_nothing_and_counts_nothing_twice() {
    let whole = SimDisk::new();
    let (full, ended) = Small::run(&whole).expect("it starts");
    ended.expect("it runs on a healthy disk");
    let mut cases = 0;
    for at in 0..whole.calls() {
        let disk = SimDisk::new();
        disk.fail(Fault { at, failure: Failure::Stop, lasting: true });
        // Cut off before anything was acknowledged: the crash tests of the journal know more about that.
        let Ok((cut, _)) = Small::run(&disk) else { continue };
        for loss in losses(at) {
            let image = disk.crash(loss);
            // None, all older ones, the current one;
            for ledger in cut.history.iter().chain([&Moment::default()]) {
                check(&image.crash(Loss::KILL), &cut, ledger, false);
                cases += 1;
            }
            // and those of a run that went on, as if the journal had lost its end.
            let spool_id = cut.moment.spool_id;
            for ledger in full.history.iter().skip(cut.history.len().saturating_sub(1)) {
                let ledger = Moment { spool_id, ..ledger.clone() };
                check(&image.crash(Loss::KILL), &cut, &ledger, true);
                cases += 1;
            }
        }
    }
    assert!(full.history.len() >= 14 && cases > 1000, "{cases} cases");
}
