//! The books: what every backend was owed, got, and waits for.
//!
//! Lanes write here as records end one way or another; the committer takes a snapshot into every checkpoint, so that a
//! place and its counters are always of the same moment.
//!
//! A record ends once. A lane's delivery and a limit that gives the record up may race: whoever comes first counts it,
//! and the other counts nothing, because both decide under the lock. What a limit decides is folded in by the very
//! function with which the journal folds it in at a start.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use spool::{Account, Control, DiscardReason, Label, Ranges, Received, State, Tally};

use crate::backend::Failure;

/// All books of the daemon.
#[derive(Debug)]
pub struct Accounts {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Places, counters, and what lies in the side journal: what a checkpoint holds, but for the clock.
    state: State,
    /// Full, invalid, too large: as the journal had them when this process started.
    refused_at_start: [u64; 3],
    /// Everything committed since this process started.
    committed: Tally,
    /// One for every account.
    entries: BTreeMap<String, Entry>,
    /// Counts changes, so that an idle daemon writes nothing.
    version: u64,
}

/// What is known of an account for as long as this process lives.
#[derive(Debug, Default)]
struct Entry {
    /// What the backend waited for when this process started.
    waiting_at_start: Tally,
    /// What it was owed, ever, when this process started, and what was given up for it at the door since.
    owed_beside_commits: u64,
    /// What ended since.
    finished: Tally,
    /// Rises when another than the lane finished records.
    disturbed: Arc<AtomicU64>,
    /// `None` for a backend that is no longer configured.
    lane: Option<LaneStatus>,
}

/// Some records of the journal that a limit gives up, and what they weigh.
#[derive(Debug)]
pub struct Weighed<'a> {
    /// Their numbers. Others than those of records may be among them.
    pub span: Range<u64>,
    /// All of them together.
    pub total: Tally,
    /// Each of them, where that has been read.
    pub each: Option<&'a [(u64, Tally)]>,
}

/// A part of the records is finished: what is left of them can be told only from each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeedsEach;

impl Weighed<'_> {
    /// What those of `unfinished` weigh that are among these.
    fn of(&self, unfinished: &Ranges) -> Result<Tally, NeedsEach> {
        if unfinished.count() == self.span.end - self.span.start {
            return Ok(self.total);
        }
        let each = self.each.ok_or(NeedsEach)?.iter();
        let left = each.filter(|(number, _)| unfinished.contains(*number));
        Ok(left.fold(Tally::default(), |sum, (_, tally)| sum.plus(*tally)))
    }
}

/// All books at one moment.
#[derive(Debug, Clone)]
pub struct Report {
    /// What came in.
    pub received: Received,
    /// One per backend that ever was.
    pub books: Vec<Book>,
}

/// One backend's books at one moment.
#[derive(Debug, Clone)]
pub struct Book {
    /// The backend.
    pub name: String,
    /// Place and counters.
    pub account: Account,
    /// Units it was ever owed. Counted on its own, so that the accounts can be seen to balance.
    pub owed: u64,
    /// What it waits for.
    pub waiting: Tally,
    /// What its lane is doing; `None` for a backend that is no longer configured.
    pub lane: Option<LaneStatus>,
}

/// What a lane is doing, for `status`.
#[derive(Debug, Clone, Default)]
pub struct LaneStatus {
    /// How the backend behaves.
    pub state: LaneState,
    /// Requests under way.
    pub in_flight: u32,
    /// The last trouble, and when.
    pub last_error: Option<(SystemTime, Failure)>,
    /// When the next attempt is due, while the lane waits for one.
    pub next_attempt_at: Option<SystemTime>,
}

/// How a backend behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LaneState {
    /// It takes what it is sent.
    #[default]
    Up,
    /// Trouble that may pass; it is probed with growing pauses.
    Retrying,
    /// The operator must act.
    Blocked,
    /// The operator stopped delivery.
    Paused,
}

impl std::fmt::Display for LaneState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Retrying => "retrying",
            Self::Blocked => "blocked",
            Self::Paused => "paused",
        })
    }
}

impl Accounts {
    /// The books as the journal's state has them.
    #[must_use]
    pub fn new(state: &State) -> Self {
        let entry = |account: &Account| Entry { owed_beside_commits: account.settled(), ..Entry::default() };
        let entries = state.accounts.iter().map(|(name, account)| (name.clone(), entry(account))).collect();
        let received = state.received;
        let refused_at_start = [received.refused_full, received.refused_invalid, received.refused_too_large];
        let state = state.clone();
        let inner = Inner { state, refused_at_start, committed: Tally::default(), entries, version: 0 };
        Self { inner: Mutex::new(inner) }
    }

    /// Notes what a backend waits for at the start of this process, before anything is committed.
    pub fn open(&self, name: &str, waiting: Tally, configured: bool) {
        let mut inner = self.lock();
        let Inner { state, entries, .. } = &mut *inner;
        if let (Some(entry), Some(account)) = (entries.get_mut(name), state.accounts.get(name)) {
            entry.waiting_at_start = waiting;
            entry.owed_beside_commits = account.settled() + waiting.units;
            entry.lane = configured.then(LaneStatus::default);
        }
    }

    /// Counts what a commit made durable.
    pub fn commit(&self, tally: Tally, next_record: u64) {
        let mut inner = self.lock();
        inner.committed += tally;
        inner.state.received.count(tally, next_record);
        inner.version += 1;
    }

    /// Counts what was acknowledged and given up at once, for every backend that would have got it.
    pub fn drop_newest(&self, tally: Tally) {
        let mut inner = self.lock();
        inner.version += 1;
        let Inner { state, entries, .. } = &mut *inner;
        let counted_to = state.received.counted_to;
        state.received.count(tally, counted_to);
        for (name, account) in state.accounts.iter_mut().filter(|(_, account)| !account.is_removed()) {
            account.discarded.count(DiscardReason::QueueCap, tally.units);
            if let Some(entry) = entries.get_mut(name) {
                entry.owed_beside_commits += tally.units;
            }
        }
    }

    /// Sets how many requests were refused since this process started.
    pub fn set_refused(&self, full: u64, invalid: u64, too_large: u64) {
        let mut inner = self.lock();
        let before = inner.state.received;
        let at_start = inner.refused_at_start;
        let received = &mut inner.state.received;
        received.refused_full = at_start[0] + full;
        received.refused_invalid = at_start[1] + invalid;
        received.refused_too_large = at_start[2] + too_large;
        inner.version += u64::from(inner.state.received != before);
    }

    /// Finishes those of `records` that are not finished yet; `change` notes in the books how these ended, of which it
    /// is told what they weigh.
    pub fn settle(
        &self,
        name: &str,
        records: impl IntoIterator<Item = (u64, Tally)>,
        change: impl FnOnce(&mut Account, Tally),
    ) {
        self.books(name, |account, entry| {
            let mut ended = Tally::default();
            for (number, tally) in records {
                if !account.is_finished(number) {
                    account.finish(number..number + 1);
                    ended += tally;
                }
            }
            entry.finished += ended;
            change(account, ended);
        });
    }

    /// Copies in the side journal, numbered from `first` on, of `records` that became dead letters in this order. The
    /// copy of one that was finished by then is nobody's.
    pub fn bury(&self, name: &str, records: &[(u64, Tally)], first: u64) {
        let mut inner = self.lock();
        inner.version += 1;
        let Inner { state, entries, .. } = &mut *inner;
        let (Some(account), Some(entry)) = (state.accounts.get_mut(name), entries.get_mut(name)) else { return };
        let mut side_number = first;
        for (number, tally) in records {
            if account.is_finished(*number) {
                state.side_settled.insert(side_number..side_number + 1);
                // A ledger that is past the copy must not be believed by a journal that does not know whose it is.
                state.facts += 1;
            } else {
                account.finish(*number..number + 1);
                account.dead += *tally;
                entry.finished += *tally;
            }
            side_number += 1;
        }
        account.side_place = account.side_place.max(side_number);
    }

    /// Finishes numbers that no record has.
    pub fn pass(&self, name: &str, numbers: Range<u64>) {
        self.books(name, |account, _| account.finish(numbers));
    }

    /// Changes what is in a backend's books beside its records.
    pub fn note(&self, name: &str, change: impl FnOnce(&mut Account)) {
        self.books(name, |account, _| change(account));
    }

    fn books(&self, name: &str, change: impl FnOnce(&mut Account, &mut Entry)) {
        let mut inner = self.lock();
        inner.version += 1;
        let Inner { state, entries, .. } = &mut *inner;
        if let (Some(account), Some(entry)) = (state.accounts.get_mut(name), entries.get_mut(name)) {
            change(account, entry);
        }
    }

    /// Gives up those of `records` that are not finished, for every backend that `chosen` names. The facts are in the
    /// books already, and have to be in the journal before anything is deleted for them.
    ///
    /// # Errors
    /// [`NeedsEach`]: nothing has changed.
    pub fn discard(
        &self,
        records: &Weighed<'_>,
        reason: DiscardReason,
        chosen: impl Fn(&str) -> bool,
    ) -> Result<Vec<Control>, NeedsEach> {
        self.enact(|state| {
            let mut controls = Vec::new();
            for (name, account) in state.accounts.iter().filter(|(name, _)| chosen(name)) {
                let unfinished = account.unfinished_in(records.span.clone());
                if !unfinished.is_empty() {
                    let (backend, tally) = (name.clone(), records.of(&unfinished)?);
                    controls.push(Control::Discarded { backend, records: unfinished, reason, tally });
                }
            }
            Ok(controls)
        })
    }

    /// Gives up those of single records that are not finished. As [`Accounts::discard`].
    pub fn discard_records(&self, name: &str, records: &[(u64, Tally)], reason: DiscardReason) -> Vec<Control> {
        let decided = self.enact(|state| {
            let Some(account) = state.accounts.get(name) else { return Ok::<_, Infallible>(Vec::new()) };
            let (mut numbers, mut sum) = (Ranges::default(), Tally::default());
            for (number, tally) in records.iter().filter(|(number, _)| !account.is_finished(*number)) {
                numbers.insert(*number..number + 1);
                sum += *tally;
            }
            let backend = name.to_owned();
            let control = Control::Discarded { backend, records: numbers, reason, tally: sum };
            Ok(if sum.records == 0 { Vec::new() } else { vec![control] })
        });
        let Ok(controls) = decided;
        controls
    }

    /// Makes those of a segment's records that a backend waits for its dead letters. As [`Accounts::discard`].
    ///
    /// # Errors
    /// [`NeedsEach`]: nothing has changed.
    pub fn relabel(&self, records: &Weighed<'_>, label: &Label) -> Result<Vec<Control>, NeedsEach> {
        self.enact(|state| {
            let account = state.accounts.get(&label.backend);
            let unfinished = account.map(|account| account.unfinished_in(records.span.clone())).unwrap_or_default();
            if unfinished.is_empty() {
                return Ok(Vec::new());
            }
            let tally = records.of(&unfinished)?;
            Ok(vec![Control::Relabelled(Box::new(Label { records: unfinished, tally, ..label.clone() }))])
        })
    }

    /// Folds in what `decide` says when it sees the books, and returns it.
    ///
    /// # Errors
    /// That of `decide`; then nothing has changed.
    pub fn enact<E>(&self, decide: impl FnOnce(&State) -> Result<Vec<Control>, E>) -> Result<Vec<Control>, E> {
        let mut inner = self.lock();
        let controls = decide(&inner.state)?;
        inner.version += u64::from(!controls.is_empty());
        for control in &controls {
            inner.state.apply(control);
            let (backend, ended) = match control {
                Control::Discarded { backend, tally, .. } => (backend, *tally),
                Control::Relabelled(label) => (&label.backend, label.tally),
                _ => continue,
            };
            if let Some(entry) = inner.entries.get_mut(backend) {
                entry.finished += ended;
                entry.disturbed.fetch_add(1, Ordering::Release);
            }
        }
        Ok(controls)
    }

    /// Rises when another than the lane finished records of a backend, so that the lane need not ask for each.
    #[must_use]
    pub fn disturbed(&self, name: &str) -> Arc<AtomicU64> {
        self.lock().entries.get(name).map(|entry| Arc::clone(&entry.disturbed)).unwrap_or_default()
    }

    /// Notes that records were lost to damage. Those that had ended already are not counted again. Returns what was lost.
    pub fn lose(&self, name: &str, damage: &spool::Damage) -> Tally {
        let mut lost = Tally::default();
        self.books(name, |account, entry| {
            lost = account.lose(damage);
            entry.finished += lost;
        });
        lost
    }

    /// Changes what `status` says of a lane.
    pub fn lane(&self, name: &str, change: impl FnOnce(&mut LaneStatus)) {
        let mut inner = self.lock();
        if let Some(lane) = inner.entries.get_mut(name).and_then(|entry| entry.lane.as_mut()) {
            change(lane);
        }
    }

    /// What a checkpoint holds, and a number that changes when it does.
    #[must_use]
    pub fn snapshot(&self, clock_ms: u64) -> (State, u64) {
        let inner = self.lock();
        (State { clock_ms, ..inner.state.clone() }, inner.version)
    }

    /// Looks at what a checkpoint would hold.
    pub fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.lock().state)
    }

    /// Changes whenever a snapshot would.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.lock().version
    }

    /// What a backend's books say, if there are any.
    #[must_use]
    pub fn account(&self, name: &str) -> Option<Account> {
        self.lock().state.accounts.get(name).cloned()
    }

    /// Whether a backend needs nothing more of a record.
    #[must_use]
    pub fn is_finished(&self, name: &str, record: u64) -> bool {
        self.lock().state.accounts.get(name).is_some_and(|account| account.is_finished(record))
    }

    /// What every backend waits for, by name.
    #[must_use]
    pub fn waiting(&self) -> BTreeMap<String, Tally> {
        let inner = self.lock();
        inner.entries.iter().map(|(name, entry)| (name.clone(), inner.waiting_of(name, entry))).collect()
    }

    /// All books at one moment.
    #[must_use]
    pub fn report(&self) -> Report {
        let inner = self.lock();
        let book = |(name, entry): (&String, &Entry)| {
            let account = inner.state.accounts.get(name).cloned().unwrap_or_default();
            let new = inner.new_for(&account);
            Book {
                name: name.clone(),
                owed: entry.owed_beside_commits + new.units,
                waiting: inner.waiting_of(name, entry),
                lane: entry.lane.clone(),
                account,
            }
        };
        Report { received: inner.state.received, books: inner.entries.iter().map(book).collect() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("the books are locked for moments that cannot panic")
    }
}

impl Inner {
    /// What came in for a backend since this process started.
    fn new_for(&self, account: &Account) -> Tally {
        if account.is_removed() { Tally::default() } else { self.committed }
    }

    fn waiting_of(&self, name: &str, entry: &Entry) -> Tally {
        let new = self.state.accounts.get(name).map(|account| self.new_for(account)).unwrap_or_default();
        entry.waiting_at_start.plus(new).less(entry.finished)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;
    use spool::disk::OsDisk;
    use spool::{Draft, Envelope, Journal, Now, Options, Step};

    use super::*;

    fn weight(number: u64) -> (u64, Tally) {
        (number, Tally::one(u32::try_from(number % 3).expect("small"), 1, number))
    }

    fn weights(numbers: Range<u64>) -> Vec<(u64, Tally)> {
        numbers.map(weight).collect()
    }

    fn sum(numbers: Range<u64>) -> Tally {
        numbers.fold(Tally::default(), |sum, number| sum.plus(weight(number).1))
    }

    /// Books of one backend that waits for these records.
    fn books(numbers: Range<u64>) -> Accounts {
        let state = State { accounts: [("a".to_owned(), Account::from_record(1))].into(), ..State::default() };
        let accounts = Accounts::new(&state);
        accounts.open("a", sum(numbers), true);
        accounts
    }

    #[track_caller]
    fn assert_balanced(accounts: &Accounts) -> Book {
        let book = accounts.report().books.remove(0);
        assert_eq!(book.owed, book.account.settled() + book.waiting.units, "{book:?}");
        book
    }

    /// Goal: each record ends once. Method: a lane and a limit finish the same records at the same time, round by round,
    /// the lane in two halves.
    #[test]
    fn deliveries_and_discards_that_race_count_each_record_once() {
        const END: u64 = 4001;
        let accounts = books(1..END);
        let together = std::sync::Barrier::new(2);
        // Asked at the end: a panic in between would leave the other thread waiting.
        let mut always_balanced = true;
        let rounds = || (1..END).step_by(10).map(|first| first..first + 10);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in rounds() {
                    together.wait();
                    for half in [round.start + 5..round.end, round.start..round.start + 5] {
                        accounts.settle("a", weights(half), |account, ended| account.delivered += ended);
                    }
                }
            });
            for span in rounds() {
                let each = weights(span.clone());
                let records = Weighed { total: sum(span.clone()), span, each: Some(&each) };
                together.wait();
                let decided = accounts.discard(&records, DiscardReason::QueueCap, |_| true);
                let book = accounts.report().books.remove(0);
                always_balanced &= decided.is_ok() && book.owed == book.account.settled() + book.waiting.units;
            }
        });
        assert!(always_balanced);
        let book = assert_balanced(&accounts);
        assert_eq!(book.account.settled(), sum(1..END).units);
        assert_eq!((book.waiting, book.account.place), (Tally::default(), END));
    }

    #[test]
    fn a_partial_success_of_what_was_given_up_in_part_counts_what_was_left() {
        let accounts = books(1..4);
        accounts.discard_records("a", &weights(1..2), DiscardReason::RetryTimeout);
        accounts.settle("a", weights(1..4), |account, ended| account.delivered += ended);
        let book = assert_balanced(&accounts);
        assert_eq!(book.account.delivered, sum(2..4));
        assert_eq!(book.account.discarded.retry_timeout, sum(1..2).units);
        assert_eq!(accounts.discard_records("a", &weights(1..4), DiscardReason::RetryTimeout), []);
    }

    #[test]
    fn what_is_finished_in_part_is_weighed_record_by_record() {
        let accounts = books(1..11);
        let whole = |each| Weighed { span: 1..11, total: sum(1..11), each };
        accounts.settle("a", weights(3..5), |account, ended| account.delivered += ended);
        assert_eq!(accounts.discard(&whole(None), DiscardReason::QueueCap, |_| true), Err(NeedsEach));
        assert_balanced(&accounts);
        let disturbed = accounts.disturbed("a");
        let each = weights(1..11);
        let controls = accounts.discard(&whole(Some(&each)), DiscardReason::QueueCap, |_| true).expect("each is known");
        let [Control::Discarded { records, tally, .. }] = &controls[..] else { panic!("{controls:?}") };
        assert_eq!((records.count(), *tally), (8, sum(1..3).plus(sum(5..11))));
        assert_eq!(disturbed.load(Ordering::Relaxed), 1, "the lane is told");
        assert_eq!(assert_balanced(&accounts).account.place, 11);
        // Again, nothing is left of it; and another backend's books are nobody's.
        assert_eq!(accounts.discard(&whole(None), DiscardReason::QueueCap, |_| true), Ok(Vec::new()));
    }

    #[test]
    fn a_copy_of_a_record_that_was_given_up_meanwhile_is_nobodys() {
        let accounts = books(1..4);
        let controls = accounts.discard_records("a", &weights(2..3), DiscardReason::QueueCap);
        accounts.note("a", |account| account.attempts += 1);
        accounts.bury("a", &weights(1..4), 10);
        let book = assert_balanced(&accounts);
        assert_eq!((book.account.dead, book.account.side_place), (weight(1).1.plus(weight(3).1), 13));
        accounts.look(|state| assert_eq!(state.side_settled, (11..12).into()));
        // The journal knows of the discarded record, a ledger that was saved now of the copy too.
        let mut state = State { accounts: [("a".to_owned(), Account::from_record(1))].into(), ..State::default() };
        controls.iter().for_each(|control| state.apply(control));
        let saved = accounts.look(|now| crate::ledger::Saved { account: now.accounts["a"].clone(), facts: now.facts });
        crate::ledger::merge(&mut state, [("a".to_owned(), saved)].into());
        assert_eq!(state.accounts["a"].side_place, 0, "a start has to look at the copies again");
    }

    #[test]
    fn what_is_given_up_at_the_door_is_owed_and_discarded() {
        let accounts = books(1..1);
        accounts.commit(sum(1..4), 4);
        accounts.drop_newest(sum(4..9));
        let book = assert_balanced(&accounts);
        assert_eq!((book.account.discarded.queue_cap, book.waiting), (sum(4..9).units, sum(1..4)));
        let received = accounts.report().received;
        assert_eq!((received.requests, received.counted_to), (8, 4), "it has no place in the journal");
    }

    /// Goal: what a limit decides is in the journal as it is in the books. Method: the facts are folded into the state
    /// from before.
    #[test]
    fn facts_fold_to_what_the_books_say() {
        let accounts = books(1..21);
        let (mut folded, _) = accounts.snapshot(0);
        let each = weights(1..21);
        let label = Label {
            segment: 2,
            backend: "a".into(),
            reason: spool::Reason::Expired,
            records: Ranges::default(),
            tally: Tally::default(),
            status: "503".into(),
            message: String::new(),
            attempts: 1,
            first_attempt_ns: 1,
            last_attempt_ns: 1,
            clock_ms: 1,
            received_ns: 1,
        };
        let part = |span: Range<u64>| Weighed { total: sum(span.clone()), span, each: Some(&each) };
        let mut controls = accounts.discard(&part(1..6), DiscardReason::QueueCap, |_| true).expect("each is known");
        controls.extend(accounts.relabel(&part(4..16), &label).expect("each is known"));
        controls.extend(accounts.discard_records("a", &weights(15..21), DiscardReason::RetryTimeout));
        assert_eq!(controls.len(), 3);
        controls.iter().for_each(|control| folded.apply(control));
        assert_eq!(folded, accounts.snapshot(0).0);
        assert_balanced(&accounts);
    }

    /// Four records of 3, 4, 5 and 6 spans in one group, of which the headers of the middle two are overwritten.
    fn damaged(dir: &Path) -> spool::Damage {
        let mut opened = Journal::open(Arc::new(OsDisk), dir, Options::default(), 1).expect("the journal opens");
        for spans in 3..7 {
            let envelope = Envelope { spans, ..Envelope::default() };
            opened.writer.stage(Draft { envelope, payload: Bytes::from_static(&[b'x'; 3000]) });
        }
        opened.writer.commit(Now::default(), &mut State::default).expect("committed");
        let file = std::fs::OpenOptions::new().write(true).open(dir.join("0000000000000001.seg")).expect("there");
        let group = 2 * 4096;
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 3200], group + 3232).expect("written");
        let mut reader = opened.shared.reader(1);
        loop {
            match reader.step().expect("readable") {
                Step::Damaged(damage) => return damage,
                Step::Record(_) => {}
                Step::End => panic!("no damage was met"),
            }
        }
    }

    #[test]
    fn damage_leaves_no_residue_and_counts_nothing_twice() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let damage = damaged(&dir.path().join("journal"));
        assert_eq!((damage.records.clone(), damage.tally().units), (2..4, 9));
        for already in [0..0, 2..3, 3..4, 2..4] {
            let state = State { accounts: [("a".to_owned(), Account::from_record(1))].into(), ..State::default() };
            let accounts = Accounts::new(&state);
            let all = Tally { records: 4, units: 18, spans: 18, bytes: 12_000, traces: 0 };
            accounts.open("a", all, true);
            let ended = damage.tally_in(&already);
            let each = already.clone().map(|number| (number, damage.tally_in(&(number..number + 1))));
            accounts.settle("a", each, |account, ended| account.delivered += ended);
            assert_eq!(accounts.lose("a", &damage), damage.tally().less(ended));
            accounts.lose("a", &damage);
            let rest = all.less(damage.tally());
            let book = accounts.report().books.remove(0);
            assert_eq!(book.waiting, rest, "with {already:?} ended before");
            assert_eq!(book.owed, book.account.settled() + book.waiting.units);
        }
    }
}
