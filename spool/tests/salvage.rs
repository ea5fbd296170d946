//! What was counted is what is read and what is reported as lost, whatever the damage; and damage costs what it touched.

#![expect(clippy::single_range_in_vec_init, reason = "lists of damaged ranges, often of one")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{TINY, TINY_KEEPING, commit, draft, drain, now};
use proptest::prelude::*;
use spool::disk::Disk;
use spool::disk::sim::{Loss, SimDisk};
use spool::{Account, Control, Damage, Opened, Options, Reader, Record, Shared, State, Step, Tally};

const DIR: &str = "/state/journal";
const BLOCK: usize = 4096;

fn open(disk: &SimDisk, options: Options) -> Opened {
    common::try_open(Arc::new(disk.clone()), Path::new(DIR), options).expect("the journal opens")
}

fn files(disk: &SimDisk) -> Vec<PathBuf> {
    let mut names = disk.list(Path::new(DIR)).expect("the directory is there");
    names.retain(|name| name.ends_with(".seg"));
    names.sort();
    names.into_iter().map(|name| Path::new(DIR).join(name)).collect()
}

/// All from a place on, read around what the medium does not give back.
fn read(shared: &Shared, place: u64) -> (Vec<Record>, Vec<Damage>) {
    drain(&mut shared.reader(place).lossy())
}

fn sum(records: &[Record], damage: &[Damage]) -> Tally {
    let read = records.iter().fold(Tally::default(), |sum, record| sum.plus(record.tally()));
    damage.iter().fold(read, |sum, damage| sum.plus(damage.tally()))
}

/// The law: what the catalogue counts from any place on, and in any segment, is what a reader gives and reports.
fn check_law(shared: &Shared) -> (Vec<Record>, Vec<Damage>) {
    let (records, damage) = read(shared, 1);
    for place in 1..=shared.next_record() + 1 {
        let (records, damage) = read(shared, place);
        let counted = shared.tally_from(place).expect("the disk can be read");
        assert_eq!(sum(&records, &damage), counted, "from {place}: {damage:?}");
    }
    for segment in shared.segments() {
        let numbers = segment.first_record..segment.next_record;
        let here: Vec<Record> = records.iter().filter(|record| numbers.contains(&record.number)).cloned().collect();
        let lost: Vec<Damage> = damage
            .iter()
            .filter(|damage| damage.records.start >= numbers.start && damage.segment == segment.id)
            .cloned()
            .collect();
        assert_eq!(sum(&here, &lost), segment.tally, "in {segment:?}: {lost:?}");
    }
    assert!(records.is_sorted_by(|a, b| a.number < b.number));
    (records, damage)
}

#[derive(Debug, Clone)]
enum Harm {
    Flip,
    Fill(u8),
    /// The medium gives so many blocks no longer back.
    Unreadable(usize),
    /// The header of a group.
    Header,
    Cut,
}

/// Harms the file at this share of all files, at this share of its length.
fn harm(disk: &SimDisk, (file, at, harm): &(u16, u16, Harm)) {
    let files = files(disk);
    let path = &files[usize::from(*file) * files.len() / 65536];
    let length = disk.content(path).expect("it is there").len();
    let at = length * usize::from(*at) / 65536;
    let block = at / BLOCK * BLOCK;
    let to = |end: usize, bytes: &Vec<u8>| end.min(bytes.len());
    match harm {
        Harm::Flip => disk.change(path, |bytes| {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 0x10;
            }
        }),
        Harm::Fill(value) => disk.change(path, |bytes| {
            let range = block.min(bytes.len())..to(block + BLOCK, bytes);
            bytes[range].fill(*value);
        }),
        Harm::Header => disk.change(path, |bytes| {
            if let Some(byte) = bytes.get_mut(block + 30) {
                *byte ^= 1;
            }
        }),
        // Where no block can be read, a start takes the disk for dead.
        Harm::Unreadable(blocks) => {
            disk.make_unreadable(path, block.max(BLOCK) as u64..(block + blocks * BLOCK) as u64)
        }
        // Cutting the header block off would leave a file that is no segment.
        Harm::Cut => disk.change(path, |bytes| bytes.truncate(at.max(BLOCK))),
    }
    .expect("the file is there");
}

fn harms() -> impl Strategy<Value = (u16, u16, Harm)> {
    let harm = prop_oneof![
        4 => Just(Harm::Flip),
        4 => Just(Harm::Header),
        2 => any::<u8>().prop_map(Harm::Fill),
        2 => (1..4_usize).prop_map(Harm::Unreadable),
        1 => Just(Harm::Cut),
    ];
    (any::<u16>(), any::<u16>(), harm)
}

/// A journal of groups of records of such lengths, and starts (`None`) between.
fn fill(disk: &SimDisk, options: Options, groups: &[Option<Vec<usize>>], close: bool) -> BTreeMap<u64, Record> {
    let mut opened = open(disk, options);
    let mut name = 0;
    let mut state = State::default();
    state.accounts.insert("a".into(), Account { paused: true, ..Account::default() });
    for group in groups {
        let Some(lengths) = group else {
            drop(opened);
            opened = open(disk, options);
            continue;
        };
        for length in lengths {
            name += 1;
            opened.writer.stage(draft(name, *length));
        }
        if name.is_multiple_of(2) {
            opened.writer.stage_control(&Control::Paused { name: "a".into() }, now(name));
        }
        opened.writer.commit(now(name), &mut || state.clone()).expect("a healthy disk takes records");
    }
    let all = drain(&mut opened.shared.reader(1)).0;
    if close {
        opened.writer.close(now(name), &state).expect("it closes");
    }
    all.into_iter().map(|record| (record.number, record)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(250),
        failure_persistence: Some(Box::new(
            proptest::test_runner::FileFailurePersistence::Direct("tests/salvage.proptest-regressions")
        )),
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_was_counted_is_read_or_reported_as_lost(
        groups in prop::collection::vec(
            prop::option::weighted(0.9, prop::collection::vec(prop_oneof![3 => 0..900_usize, 1 => 900..9000_usize], 0..5)),
            1..12,
        ),
        segment_bytes in 12_000..50_000_u64,
        close in any::<bool>(),
        before in prop::collection::vec(harms(), 0..4),
        after in prop::collection::vec(harms(), 0..4),
        floor in 0..3_u64,
    ) {
        let disk = SimDisk::new();
        let options = Options { segment_bytes, ..TINY };
        let all = fill(&disk, options, &groups, close);
        before.iter().for_each(|one| harm(&disk, one));
        let end = all.keys().last().map_or(1, |last| last + 1);
        let opened = open(&disk, Options { record_floor: end + floor, ..options });
        check_law(&opened.shared);
        let counted = opened.shared.tally_from(1).expect("the disk can be read");
        after.iter().for_each(|one| harm(&disk, one));
        let (records, damage) = check_law(&opened.shared);
        prop_assert_eq!(sum(&records, &damage), counted, "what was counted before is counted after");
        for record in &records {
            prop_assert_eq!(Some(record), all.get(&record.number), "as it was written");
        }
        if before.is_empty() {
            let written = all.values().fold(Tally::default(), |sum, record| sum.plus(record.tally()));
            prop_assert_eq!(counted, written);
            for number in all.keys() {
                let read = records.binary_search_by_key(number, |record| record.number).is_ok();
                let lost = damage.iter().filter(|damage| damage.records.contains(number)).count();
                prop_assert_eq!(usize::from(read) + lost, 1, "record {} is read or lost", number);
            }
        }
        drop(opened);
        let again = open(&disk.crash(Loss::KILL), options);
        check_law(&again.shared);
    }
}

/// Three records in each of three groups, and so much more that a second segment follows.
fn two_segments(disk: &SimDisk) -> BTreeMap<u64, Record> {
    let mut opened = open(disk, TINY);
    for first in [1, 4, 7] {
        commit(&mut opened.writer, first..first + 3, 300);
    }
    while !commit(&mut opened.writer, 10..11, 9000).rolled {}
    drain(&mut opened.shared.reader(1)).0.into_iter().map(|record| (record.number, record)).collect()
}

#[test]
fn damage_in_group_headers_alone_costs_no_record_and_no_fact() {
    for close in [false, true] {
        let groups: Vec<_> = (1..8).map(|count| Some(vec![200 * count; count])).collect();
        let disk = SimDisk::new();
        let all = fill(&disk, TINY, &groups, close);
        for path in files(&disk) {
            disk.change(&path, |bytes| {
                for at in (BLOCK..bytes.len())
                    .step_by(BLOCK)
                    .filter(|at| bytes[*at..].starts_with(b"TSGR"))
                    .collect::<Vec<_>>()
                {
                    bytes[at..at + 160].fill(0xEE);
                }
            })
            .expect("it is there");
        }
        let opened = open(&disk, TINY);
        let (records, _) = check_law(&opened.shared);
        assert_eq!(records, all.values().cloned().collect::<Vec<_>>());
        assert!(opened.state.accounts["a"].paused, "the facts are read too");
    }
}

#[test]
fn a_bad_block_is_damage_to_a_start_and_an_error_to_a_reader_until_it_gives_up() {
    let disk = SimDisk::new();
    let all = two_segments(&disk);
    let first = &files(&disk)[0];
    let group = 3 * BLOCK as u64;
    disk.make_unreadable(first, group..group + 1).expect("it is there");
    disk.make_unreadable(&files(&disk)[1], 0..BLOCK as u64).expect("it is there");
    let opened = open(&disk, TINY);
    assert!(!opened.recovery.damage.is_empty(), "the bad header block is reported");
    let mut reader = opened.shared.reader(1);
    let mut read = Vec::new();
    let failed = loop {
        match reader.step() {
            Ok(Step::Record(record)) => read.push(record),
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(failed, spool::Error::Io { .. }));
    assert_eq!(common::numbers(&read), [1, 2, 3]);
    reader.step().expect_err("the same again");
    disk.make_readable();
    assert!(matches!(reader.step(), Ok(Step::Record(record)) if record.number == 4), "it was only for a moment");
    disk.make_unreadable(first, group..group + 1).expect("it is there");
    let mut reader = opened.shared.reader(3);
    reader.step().expect("record 3");
    reader.step().expect_err("the group behind");
    reader.give_up_segment();
    let (rest, damage) = drain(&mut reader);
    assert_eq!(damage.iter().map(|damage| damage.records.clone()).collect::<Vec<_>>(), [4..7]);
    let lost = (4..7).fold(Tally::default(), |sum, number| sum.plus(all[&number].tally()));
    assert_eq!(damage[0].tally(), lost, "the footer tells how much that was");
    assert_eq!(rest.len(), all.len() - 6);
    assert_eq!(opened.shared.damage(), lost, "and it is known from now on");
}

#[test]
fn a_disk_that_does_not_answer_is_no_damage() {
    let disk = SimDisk::new();
    two_segments(&disk);
    disk.make_unreadable(&files(&disk)[1], 0..u64::MAX).expect("it is there");
    common::try_open(Arc::new(disk.clone()), Path::new(DIR), TINY).expect_err("nothing is given up");
    disk.make_readable();
    assert!(drain(&mut open(&disk, TINY).shared.reader(1)).1.is_empty());
}

#[test]
fn a_segment_that_is_gone_is_lost_to_a_reader_that_gives_up() {
    let disk = SimDisk::new();
    let all = two_segments(&disk);
    let opened = open(&disk, TINY);
    let first = opened.shared.segments()[0];
    disk.remove(&files(&disk)[0]).expect("removed");
    opened.shared.reader(1).step().expect_err("it may come back");
    let (records, damage) = read(&opened.shared, 2);
    assert_eq!(damage.iter().map(|damage| damage.records.clone()).collect::<Vec<_>>(), [2..first.next_record]);
    assert_eq!(records.len() as u64, all.len() as u64 + 1 - first.next_record);
}

fn reader_reports(reader: &mut Reader) -> Vec<std::ops::Range<u64>> {
    drain(reader).1.into_iter().map(|damage| damage.records).collect()
}

#[test]
fn an_oldest_segment_that_is_still_needed_is_missed_and_one_that_went_in_order_is_not() {
    let disk = SimDisk::new();
    let mut opened = open(&disk, TINY);
    opened.writer.stage_control(&Control::BackendAdded { name: "a".into(), start: 1 }, now(1));
    while opened.shared.segments().len() < 3 {
        let state = || State { accounts: [("a".to_owned(), Account::from_record(1))].into(), ..State::default() };
        opened.writer.stage(draft(1, 3000));
        opened.writer.commit(now(1), &mut { state }).expect("committed");
    }
    let segments = opened.shared.segments();
    let needed = Account { place: 3, ..Account::from_record(1) };
    opened.writer.stage_checkpoint(&State { accounts: [("a".to_owned(), needed)].into(), ..State::default() }, now(1));
    opened.writer.commit(now(1), &mut State::default).expect("committed");
    drop(opened);
    disk.remove(&files(&disk)[0]).expect("removed");
    let lost = 3..segments[0].next_record;
    let opened = open(&disk, TINY);
    let ranges = |damage: &[Damage]| damage.iter().map(|damage| damage.records.clone()).collect::<Vec<_>>();
    let only_lost = std::slice::from_ref(&lost);
    assert_eq!(ranges(&opened.recovery.damage), only_lost);
    assert_eq!(reader_reports(&mut opened.shared.reader(3)), only_lost);
    assert_eq!(reader_reports(&mut opened.shared.reader(4)), [4..lost.end]);
    assert_eq!(reader_reports(&mut opened.shared.reader(lost.end)), []);
    assert_eq!(opened.shared.damage().records, lost.end - lost.start);
    check_law(&opened.shared);
    // Inspecting says the same.
    let found = spool::Journal::inspect(Arc::new(disk.crash(Loss::KILL)), Path::new(DIR), TINY).expect("readable");
    assert_eq!(ranges(&found.damage), only_lost);
}

#[test]
fn numbers_that_a_start_skipped_are_not_missed() {
    let disk = SimDisk::new();
    let mut opened = open(&disk, TINY);
    opened.writer.stage_control(&Control::BackendAdded { name: "a".into(), start: 1 }, now(1));
    commit(&mut opened.writer, 1..3, 10);
    // The backend has had all there is; its place stands at the end.
    let state = |place| State {
        accounts: [("a".to_owned(), Account { place, ..Account::from_record(1) })].into(),
        ..State::default()
    };
    opened.writer.close(now(1), &state(3)).expect("closed");
    let mut opened = open(&disk, Options { record_floor: 50, ..TINY });
    assert_eq!(opened.state.accounts["a"].place, 50, "a place stands where a record can be");
    commit(&mut opened.writer, 3..4, 10);
    let keep = spool::Keep { since_clock_ms: u64::MAX, bytes: 0 };
    assert_eq!(opened.writer.reclaim(3, keep).expect("reclaimed").segments, 1);
    drop(opened);
    let opened = open(&disk, TINY);
    assert_eq!(opened.recovery.damage, []);
    assert_eq!(reader_reports(&mut opened.shared.reader(1)), []);
}

#[test]
fn a_damaged_segment_that_nobody_needs_is_kept_aside_and_gives_way() {
    let disk = SimDisk::new();
    let mut opened = open(&disk, TINY);
    while opened.shared.segments().len() < 22 {
        commit(&mut opened.writer, 1..2, 20_000);
    }
    let segments = opened.shared.segments();
    for segment in &segments[1..20] {
        let path = Path::new(DIR).join(format!("{:016x}.seg", segment.id));
        disk.rot(&path, 2 * BLOCK + 1000, 1).expect("there");
    }
    let before = opened.shared.file_bytes();
    assert_eq!(reader_reports(&mut opened.shared.reader(1)).len(), 19);
    let keep = spool::Keep { since_clock_ms: u64::MAX, bytes: 0 };
    let reclaimed = opened.writer.reclaim(segments[20].first_record, keep).expect("reclaimed");
    assert_eq!(reclaimed.segments, 1, "what is kept aside frees nothing");
    let kept = |disk: &SimDisk| {
        let mut names = disk.list(&Path::new(DIR).join("quarantine")).expect("it is there");
        names.sort();
        names
    };
    let expected: Vec<_> = segments[4..20].iter().map(|segment| format!("{:016x}.seg", segment.id)).collect();
    assert_eq!(kept(&disk), expected, "the newest sixteen");
    let gone = &segments[..4];
    assert_eq!(opened.shared.file_bytes(), before - gone.iter().map(|segment| segment.file_bytes).sum::<u64>());
    assert!(opened.shared.drop_quarantined().expect("dropped"));
    assert_eq!(kept(&disk), expected[1..]);
    drop(opened);
    let opened = open(&disk, TINY);
    let aside: u64 = segments[5..20].iter().map(|segment| segment.file_bytes).sum();
    let journal: u64 = opened.shared.segments().iter().map(|segment| segment.file_bytes).sum();
    assert_eq!(opened.shared.file_bytes(), journal + aside, "a start counts them too");
    while opened.shared.drop_quarantined().expect("dropped") {}
    assert_eq!(kept(&disk), [""; 0]);
}

/// Goal: a start needs no room for bytes that are only kept for whoever wants to look at them. Method: the disk is full
/// to the last byte when the last write was torn.
#[test]
fn a_torn_group_keeps_no_start_from_succeeding_on_a_full_disk() {
    let disk = SimDisk::new();
    let mut opened = open(&disk, TINY_KEEPING);
    while opened.writer.prepare().expect("there is room") {}
    for name in 0..3 {
        commit(&mut opened.writer, name..name + 1, 9000);
    }
    let last = files(&disk).pop().expect("a segment");
    let torn = disk.content(&last).expect("there").chunks(BLOCK).rposition(|block| block.starts_with(b"TSGR"));
    disk.rot(&last, torn.expect("a group") * BLOCK + 5000, 1).expect("there");
    for room in [0, 4096] {
        let disk = disk.crash(Loss::KILL);
        disk.limit(Some(disk.used() + room));
        let opened = open(&disk, TINY_KEEPING);
        let torn = opened.recovery.torn.as_ref().expect("it is reported");
        assert_eq!((torn.frames, &torn.kept_in), (1, &None));
        assert_eq!(disk.list(&Path::new(DIR).join("quarantine")).unwrap_or_default(), [""; 0], "nothing half-way");
        assert_eq!(common::numbers(&drain(&mut opened.shared.reader(1)).0), [1, 2]);
    }
}

/// Goal: an old footer at the end of a recycled file does not cost the segment. Method: a large record's file is used
/// again, and the header block of its new segment rots.
#[test]
fn a_lost_header_of_a_large_recycled_file_costs_no_record() {
    let options = Options { kept_back: spool::KeptBack { spares: 2, ballast_bytes: 0 }, ..TINY };
    let disk = SimDisk::new();
    let mut opened = open(&disk, options);
    for name in 0..3 {
        commit(&mut opened.writer, name..name + 1, 100_000);
    }
    let next = opened.shared.next_record();
    let keep = spool::Keep { since_clock_ms: u64::MAX, bytes: 0 };
    opened.writer.reclaim(next, keep).expect("reclaimed");
    let before = opened.shared.segments().len();
    while opened.shared.segments().len() == before {
        commit(&mut opened.writer, 9..10, 9000);
    }
    commit(&mut opened.writer, 9..10, 9000);
    let all = common::numbers(&drain(&mut opened.shared.reader(1)).0);
    let last = files(&disk).pop().expect("a segment");
    assert!(disk.content(&last).expect("there").len() > 100_000, "it is recycled");
    disk.rot(&last, 20, 1).expect("there");
    let opened = open(&disk.crash(Loss::KILL), options);
    assert_eq!(opened.recovery.unreadable, [""; 0].map(PathBuf::from));
    assert_eq!(common::numbers(&drain(&mut opened.shared.reader(1)).0), all);
}

/// Goal: a segment that only can't be opened is not given up. Method: for a while, its name leads in a circle.
#[test]
fn what_can_not_be_opened_for_a_while_is_not_lost() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut opened = common::open(dir.path());
    for name in 0..9 {
        commit(&mut opened.writer, name..name + 1, 9000);
    }
    let file = common::segment_files(dir.path()).remove(1);
    let away = dir.path().join("away");
    std::fs::rename(&file, &away).expect("renamed");
    std::os::unix::fs::symlink(&file, &file).expect("linked");
    let mut reader = opened.shared.reader(1);
    let mut steps = 0;
    while matches!(reader.step(), Ok(Step::Record(_))) {
        steps += 1;
    }
    reader.give_up_segment();
    reader.step().expect_err("it is waited for");
    std::fs::rename(&away, &file).expect("renamed");
    let (rest, damage) = drain(&mut reader);
    assert_eq!((damage, steps + rest.len()), (vec![], 9));
    // What somebody took away is lost.
    std::fs::remove_file(&file).expect("removed");
    let mut reader = opened.shared.reader(1);
    while matches!(reader.step(), Ok(Step::Record(_))) {}
    reader.give_up_segment();
    assert!(matches!(reader.step(), Ok(Step::Damaged(_))));
}

/// Goal: what an operator keeps in `quarantine/` is left alone. Method: there is a directory when all that is kept aside
/// has to go, because a record was purged.
#[test]
fn what_an_operator_puts_into_quarantine_keeps_no_start_from_succeeding() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mine = dir.path().join("quarantine").join("mine");
    let aside = dir.path().join("quarantine").join("0000000000000007-1000.group");
    let mut opened = common::open(dir.path());
    commit(&mut opened.writer, 1..3, 300);
    let mut past = || State { accounts: [("a".into(), Account::from_record(3))].into(), ..State::default() };
    opened.writer.stage_checkpoint(&past(), now(1));
    opened.writer.stage_control(&Control::Purged { records: (1..2).into() }, now(1));
    opened.writer.commit(now(1), &mut past).expect("it takes facts");
    drop(opened);
    std::fs::create_dir_all(&mine).expect("made");
    std::fs::write(&aside, "torn").expect("written");
    let opened = common::open(dir.path());
    assert!(opened.state.purges.is_empty() && mine.is_dir() && !aside.exists());
}
