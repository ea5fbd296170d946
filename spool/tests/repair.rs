//! Verifying and repairing, cut short at every call, with every way to lose what was not synced.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{TINY, draft, drain, now};
use spool::disk::Disk;
use spool::disk::sim::{Failure, Fault, Loss, SimDisk};
use spool::{Account, Control, Keep, Opened, Options, Record, Repaired, State, Tally, Verified, Watch};

const DIR: &str = "/state/journal";
const BLOCK: usize = 4096;

fn open(disk: &SimDisk) -> Opened {
    common::try_open(Arc::new(disk.clone()), Path::new(DIR), TINY).expect("the journal opens")
}

fn verify(disk: &SimDisk, watch: Watch) -> Verified {
    spool::verify(Arc::new(disk.clone()), Path::new(DIR), TINY, watch).expect("it can be looked at")
}

fn try_repair(disk: &SimDisk) -> Result<Repaired, spool::Error> {
    spool::repair(Arc::new(disk.clone()), Path::new(DIR), TINY, 7)
}

fn segment(id: u64) -> PathBuf {
    Path::new(DIR).join(format!("{id:016x}.seg"))
}

fn change(disk: &SimDisk, id: u64, change: impl Fn(&mut Vec<u8>)) {
    disk.change(&segment(id), change).expect("it is there");
}

/// What a journal held before it was damaged, and what it holds still.
struct Case {
    disk: SimDisk,
    all: BTreeMap<u64, Record>,
    /// Records that can be read.
    left: Vec<u64>,
    /// What a backend that got the first three still is owed.
    owed: u64,
}

fn state() -> State {
    let account = Account { place: 4, paused: true, ..Account::from_record(1) };
    let other = Account { place: 1, ..Account::from_record(1) };
    State { accounts: [("a".into(), account), ("b".into(), other)].into(), ..State::default() }
}

/// All backends are past what is there.
fn past(place: u64) -> State {
    let account = Account { place, ..Account::from_record(1) };
    State { accounts: [("a".into(), account.clone()), ("b".into(), account)].into(), ..State::default() }
}

/// Five sealed segments and one that is being written; two backends.
fn healthy() -> SimDisk {
    let disk = SimDisk::new();
    let mut opened = open(&disk);
    let mut name = 0;
    while opened.shared.segments().len() < 6 {
        for length in [10, 300, 900, 10] {
            name += 1;
            opened.writer.stage(draft(name, length));
        }
        opened.writer.stage_control(&Control::Paused { name: "a".into() }, now(name));
        opened.writer.commit(now(name), &mut state).expect("a healthy disk takes records");
    }
    opened.writer.stage_checkpoint(&state(), now(name));
    opened.writer.commit(now(name), &mut state).expect("a healthy disk takes facts");
    disk
}

/// One damaged in all the ways that there are: a group header, a payload, blocks that are gone, a header block, a footer,
/// a segment that is missing, and one of which no header can be read.
fn damaged() -> Case {
    let disk = healthy();
    let opened = open(&disk);
    let all: BTreeMap<u64, Record> =
        drain(&mut opened.shared.reader(1)).0.into_iter().map(|record| (record.number, record)).collect();
    let segments = opened.shared.segments();
    let owed = opened.shared.tally_from(4).expect("readable").units;
    drop(opened);
    let groups = |id: u64| -> Vec<usize> {
        let bytes = disk.content(&segment(id)).expect("there");
        (BLOCK..bytes.len()).step_by(BLOCK).filter(|at| bytes[*at..].starts_with(b"TSGR")).collect()
    };
    let (first, second) = (groups(1), groups(2));
    change(&disk, 1, |bytes| {
        // A group header with a record's header behind it, and a payload elsewhere.
        bytes[first[1] + 20] ^= 1;
        bytes[first[1] + 268] ^= 1;
        bytes[first[2] + 1200] ^= 1;
        bytes[100] ^= 1;
    });
    change(&disk, 2, |bytes| {
        bytes[second[2]..second[2] + BLOCK].fill(0);
        bytes.pop();
    });
    disk.remove(&segment(3)).expect("removed");
    disk.sync_dir(Path::new(DIR)).expect("synced");
    change(&disk, 4, |bytes| {
        for at in (0..bytes.len()).step_by(BLOCK) {
            bytes[at..at + 16].fill(0x77);
        }
        let end = bytes.len();
        bytes[end - 20..].fill(0x77);
    });
    let opened = open(&disk.crash(Loss::KILL));
    let mut left: Vec<u64> = drain(&mut opened.shared.reader(1)).0.iter().map(|record| record.number).collect();
    // Of the segment without any header, a start reads nothing; a repair does.
    let numbers = segments[3].first_record..segments[3].next_record;
    assert!(left.iter().all(|number| !numbers.contains(number)));
    left.extend(numbers);
    left.sort_unstable();
    Case { disk, all, left, owed }
}

impl Case {
    /// What must be true of a repaired journal: it is whole, all that could be read is there as it was, and the accounts
    /// have lost the rest, once.
    fn check(&self, disk: &SimDisk) {
        assert!(verify(disk, Watch::AtRest).is_whole(), "{:?}", verify(disk, Watch::AtRest));
        let opened = open(disk);
        assert_eq!(opened.recovery.damage, []);
        assert_eq!(opened.recovery.unreadable, [""; 0].map(PathBuf::from));
        let (records, _) = drain(&mut opened.shared.reader(1));
        for record in &records {
            assert_eq!(Some(record), self.all.get(&record.number), "as it was, under its old number");
        }
        let numbers: Vec<u64> = records.iter().map(|record| record.number).collect();
        assert_eq!(numbers, self.left);
        let account = &opened.state.accounts["a"];
        let waiting = records.iter().filter(|record| !account.is_finished(record.number));
        let waiting = waiting.fold(Tally::default(), |sum, record| sum.plus(record.tally()));
        let lost = self.all.keys().filter(|number| **number >= 4 && !self.left.contains(number));
        assert!(lost.clone().all(|number| account.is_finished(*number)), "nobody waits for what is lost");
        assert!(account.damaged >= lost.count() as u64);
        assert!(waiting.units + account.damaged <= self.owed, "and it is lost once");
        assert!(account.paused, "facts are kept");
        assert_eq!(opened.shared.damage(), Tally::default(), "it is not reported again");
    }
}

#[test]
fn what_is_whole_stays_as_it_is() {
    let disk = healthy();
    drop(open(&disk));
    let verified = verify(&disk, Watch::AtRest);
    assert!(verified.is_whole() && verified.segments.len() == 7, "{verified:?}");
    let calls = disk.calls();
    let repaired = try_repair(&disk).expect("repaired");
    assert!(repaired.segments.is_empty() && repaired.lost.is_empty());
    assert_eq!(disk.calls(), calls, "nothing was changed");
}

#[test]
fn damage_is_told_by_segment_and_repaired_once() {
    let case = damaged();
    let verified = verify(&case.disk, Watch::AtRest);
    assert!(!verified.is_whole());
    assert_eq!(verified.unreadable, [segment(4)]);
    let of = |id: u64| verified.segments.iter().find(|found| found.segment == id).expect("it is listed");
    let first = of(1);
    assert!(first.damage.iter().any(|damage| damage.records.is_empty() && damage.offset == 0), "the header block");
    assert_eq!(first.damage.iter().map(spool::Damage::tally).fold(Tally::default(), Tally::plus).records, 2);
    assert!(first.damage.iter().all(|damage| damage.records.is_empty() || damage.received.is_some()));
    assert!(of(2).damage.iter().any(|damage| damage.records.is_empty()), "the footer");
    assert_eq!(verified.missing.len(), 1, "{:?}", verified.missing);
    assert!(of(5).damage.is_empty());

    let repaired = try_repair(&case.disk).expect("repaired");
    let ids: Vec<u64> = repaired.segments.iter().map(|segment| segment.segment).collect();
    assert_eq!(ids, [1, 2, 4]);
    for segment in &repaired.segments {
        assert!(case.disk.content(&segment.kept_in).expect("there").len() > BLOCK, "the damaged one is kept");
    }
    case.check(&case.disk.crash(Loss::KILL));
    let calls = case.disk.calls();
    let again = try_repair(&case.disk).expect("repaired");
    assert!(again.segments.is_empty() && again.lost.is_empty());
    assert_eq!(case.disk.calls(), calls, "the second time changes nothing");
    // The losses stay written off over starts and checkpoints.
    let disk = case.disk.crash(Loss::KILL);
    for _ in 0..3 {
        drop(open(&disk));
    }
    case.check(&disk);
}

#[test]
fn a_repair_that_is_cut_short_is_begun_again() {
    let case = damaged();
    let whole = case.disk.crash(Loss::KILL);
    try_repair(&whole).expect("repaired");
    for forbid_links in [false, true] {
        for at in 0..whole.calls() {
            let cut = case.disk.crash(Loss::KILL);
            if forbid_links {
                cut.forbid_links();
            }
            cut.fail(Fault { at, failure: Failure::Stop, lasting: true });
            let ended = try_repair(&cut);
            for (turn, loss) in Loss::each(at).into_iter().enumerate() {
                // Every loss at every other call, or so.
                if !(at + turn as u64).is_multiple_of(if forbid_links { 5 } else { 2 }) {
                    continue;
                }
                let disk = cut.crash(loss);
                // A start between: what can be read is there, nothing else, and nothing is lost twice.
                let between = disk.crash(Loss::KILL);
                let opened = open(&between);
                let (records, _) = drain(&mut opened.shared.reader(1));
                for record in &records {
                    assert_eq!(Some(record), case.all.get(&record.number));
                }
                drop(opened);
                for disk in [disk, between] {
                    try_repair(&disk).unwrap_or_else(|error| panic!("call {at}, {loss:?}: {error}, {ended:?}"));
                    case.check(&disk);
                }
            }
        }
    }
}

#[test]
fn a_repair_without_room_leaves_all_as_it_was() {
    let case = damaged();
    let whole = case.disk.crash(Loss::KILL);
    try_repair(&whole).expect("repaired");
    for failure in [Failure::Full, Failure::Io] {
        for at in 0..whole.calls() {
            let disk = case.disk.crash(Loss::KILL);
            disk.fail(Fault { at, failure, lasting: failure == Failure::Full });
            let _ = try_repair(&disk);
            disk.heal();
            let disk = disk.crash(Loss::power(
                spool::disk::sim::Fate::Lost,
                spool::disk::sim::Fate::Lost,
                spool::disk::sim::Fate::Lost,
                0,
            ));
            try_repair(&disk).expect("there is room now");
            case.check(&disk);
        }
    }
}

#[test]
fn a_torn_end_is_no_damage() {
    let disk = healthy();
    let last = disk.list(Path::new(DIR)).expect("there").into_iter().filter(|name| name.ends_with(".seg")).max();
    let path = Path::new(DIR).join(last.expect("a segment"));
    let bytes = disk.content(&path).expect("there");
    let last = (0..bytes.len()).step_by(BLOCK).filter(|at| bytes[*at..].starts_with(b"TSGR")).max().expect("a group");
    disk.rot(&path, last + 200, 1).expect("there");
    for (watch, torn) in [(Watch::AtRest, true), (Watch::Live, false)] {
        let verified = verify(&disk, watch);
        assert!(verified.is_whole() && verified.is_torn == torn, "{verified:?}");
    }
}

/// A disk on which a daemon reclaims, and uses a file again, while its journal is read.
#[derive(Debug, Clone)]
struct Busy {
    disk: SimDisk,
    opened: Arc<std::sync::Mutex<Option<Opened>>>,
    /// Already before the second segment is opened.
    is_early: bool,
}

#[derive(Debug)]
struct BusyFile(Box<dyn spool::disk::DiskFile>, Busy);

impl Busy {
    /// The moment at which a group of the second segment is read.
    fn turn(&self) {
        let Some(mut opened) = self.opened.lock().expect("one thread").take() else { return };
        let next = opened.shared.next_record();
        let go_on = |opened: &mut Opened| {
            for name in 0..20 {
                opened.writer.stage(draft(name, 9000));
                opened.writer.commit(now(1), &mut state).expect("it goes on");
            }
        };
        // What frees them is in a segment that was not there when the names were read.
        go_on(&mut opened);
        opened.writer.stage_checkpoint(&past(next), now(1));
        opened.writer.commit(now(1), &mut || past(next)).expect("it takes places");
        opened.writer.reclaim(next, Keep { since_clock_ms: u64::MAX, bytes: 0 }).expect("reclaimed");
        if !self.is_early {
            go_on(&mut opened);
        }
    }
}

impl Disk for Busy {
    fn create_dir(&self, dir: &Path) -> std::io::Result<()> {
        self.disk.create_dir(dir)
    }
    fn list(&self, dir: &Path) -> std::io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn create(&self, path: &Path) -> std::io::Result<Box<dyn spool::disk::DiskFile>> {
        self.disk.create(path)
    }
    fn open(&self, path: &Path, writable: bool) -> std::io::Result<Box<dyn spool::disk::DiskFile>> {
        if self.is_early && path == segment(2) {
            self.turn();
        }
        let file = self.disk.open(path, writable)?;
        Ok(if path == segment(2) { Box::new(BusyFile(file, self.clone())) } else { file })
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> std::io::Result<()> {
        self.disk.remove(path)
    }
    fn link(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.disk.link(from, to)
    }
    fn links(&self, path: &Path) -> std::io::Result<u64> {
        self.disk.links(path)
    }
    fn sync_dir(&self, dir: &Path) -> std::io::Result<()> {
        self.disk.sync_dir(dir)
    }
    fn free_bytes(&self, dir: &Path) -> std::io::Result<u64> {
        self.disk.free_bytes(dir)
    }
}

impl spool::disk::DiskFile for BusyFile {
    fn length(&self) -> std::io::Result<u64> {
        self.0.length()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
        // Headers and footers begin on blocks.
        if !offset.is_multiple_of(BLOCK as u64) && buffer.len() > 512 {
            self.1.turn();
        }
        self.0.read_at(buffer, offset)
    }
    fn write_at(&self, parts: &[&[u8]], offset: u64) -> std::io::Result<()> {
        self.0.write_at(parts, offset)
    }
    fn allocate(&self, length: u64) -> std::io::Result<()> {
        self.0.allocate(length)
    }
    fn truncate(&self, length: u64) -> std::io::Result<()> {
        self.0.truncate(length)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        self.0.sync_data()
    }
    fn sync_all(&self) -> std::io::Result<()> {
        self.0.sync_all()
    }
}

#[test]
fn a_segment_that_is_reclaimed_and_used_again_while_it_is_read_is_no_damage() {
    for is_early in [false, true] {
        let disk = healthy();
        let kept_back = spool::KeptBack { spares: 3, ballast_bytes: 0 };
        let options = Options { kept_back, ..TINY };
        let opened = common::try_open(Arc::new(disk.clone()), Path::new(DIR), options).expect("it opens");
        let busy = Busy { disk, opened: Arc::new(Some(opened).into()), is_early };
        let verified = spool::verify(Arc::new(busy.clone()), Path::new(DIR), TINY, Watch::Live).expect("looked at");
        assert!(busy.opened.lock().expect("one thread").is_none(), "the moment came");
        assert!(verified.is_whole(), "{verified:?}");
        assert!(is_early || verified.segments.iter().any(|found| found.segment == 1), "what was read before was read");
    }
}

/// Goal: what the newest checkpoint freed is not missed. Method: that checkpoint is the last thing that was written, as it
/// is after a backlog was delivered at once, and all it frees is gone.
#[test]
fn what_the_last_group_of_a_quiet_daemon_freed_is_not_missed() {
    let disk = healthy();
    let mut opened = open(&disk);
    let next = opened.shared.next_record();
    opened.writer.stage_checkpoint(&past(next), now(1));
    opened.writer.commit(now(1), &mut || past(next)).expect("it takes places");
    opened.writer.reclaim(next, Keep { since_clock_ms: u64::MAX, bytes: 0 }).expect("reclaimed");
    assert_eq!(opened.shared.segments().len(), 1);
    let verified = verify(&disk, Watch::Live);
    assert!(verified.is_whole(), "{verified:?}");
    // What somebody else takes away is missed.
    for name in 0..9 {
        opened.writer.stage(draft(name, 9000));
        opened.writer.commit(now(1), &mut || past(next)).expect("it takes records");
    }
    let segments = opened.shared.segments();
    disk.remove(&segment(segments[1].id)).expect("removed");
    let verified = verify(&disk, Watch::Live);
    let [missing] = &verified.missing[..] else { panic!("{verified:?}") };
    assert_eq!(missing.records, segments[1].first_record..segments[1].next_record);
}
