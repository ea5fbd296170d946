//! What a journal does on a real file system when nothing fails: order, rolls, reading from anywhere, reclaim.

mod common;

use common::{TINY, commit, copy_dir, draft, drain, now, numbers, open, open_with, payload, read_all, segment_files};
use spool::{Control, Error, Keep, KeptBack, Options, State, Step, Tally};

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// Records 1..61 of several sizes over several segments.
fn filled(path: &std::path::Path) -> spool::Opened {
    let mut opened = open(path);
    for first in (1..61).step_by(3) {
        let lengths = [0, 100, 5000];
        let length = lengths[usize::try_from(first / 3 % 3).expect("small")];
        commit(&mut opened.writer, first..first + 3, length);
    }
    opened
}

#[test]
fn after_a_clean_close_everything_is_there_and_numbers_go_on() {
    let dir = dir();
    let mut state = State::default();
    state.apply(&Control::BackendAdded { name: "a".into(), start: 1 });
    let opened = filled(dir.path());
    state.spool_id = opened.state.spool_id;
    opened.writer.close(now(9), &state).expect("it closes");
    let mut opened = open(dir.path());
    assert!(opened.recovery.clean);
    assert_ne!(state.spool_id, 0, "a journal has an identity from its first start on");
    assert_eq!(opened.state, State { clock_ms: 9, ..state });
    let records = read_all(&opened, 1);
    assert_eq!(numbers(&records), (1..61).collect::<Vec<_>>());
    assert!(records.iter().all(|record| record.payload.starts_with(format!("record {} ", record.number).as_bytes())));
    assert_eq!(commit(&mut opened.writer, 61..63, 10).records, 61..63);
}

#[test]
fn without_a_close_the_last_group_is_written_again_however_often_it_happens() {
    let dir = dir();
    filled(dir.path());
    for _ in 0..5 {
        let opened = open(dir.path());
        assert!(!opened.recovery.clean);
        assert_eq!((opened.recovery.rewritten, &opened.recovery.torn), (3, &None));
        assert_eq!(numbers(&read_all(&opened, 1)), (1..61).collect::<Vec<_>>());
        let groups: usize = opened.shared.segments().iter().filter(|segment| segment.tally.records == 0).count();
        assert_eq!(groups, 0, "no empty segments pile up");
    }
    let mut opened = open(dir.path());
    assert_eq!(commit(&mut opened.writer, 61..62, 10).records, 61..62);
    drop(opened);
    assert_eq!(read_all(&open(dir.path()), 61).len(), 1);
}

#[test]
fn a_reader_starts_anywhere_and_follows_over_rolls() {
    let dir = dir();
    let mut opened = filled(dir.path());
    assert!(opened.shared.segments().len() > 3, "it rolled");
    let mut tails = Vec::new();
    for place in 0..64 {
        let mut reader = opened.shared.reader(place);
        let (records, damage) = drain(&mut reader);
        assert_eq!(damage, []);
        assert_eq!(numbers(&records), (place.max(1)..61).collect::<Vec<_>>(), "from {place}");
        tails.push((reader, place.max(61)));
    }
    for first in 61..75 {
        commit(&mut opened.writer, first..first + 1, 9000);
        for (reader, next) in &mut tails {
            let expected = if first < *next { vec![] } else { vec![first] };
            assert_eq!(numbers(&drain(reader).0), expected);
        }
    }
}

#[test]
fn what_is_staged_is_not_read_before_it_is_committed() {
    let dir = dir();
    let mut opened = open(dir.path());
    opened.writer.stage(draft(1, 10));
    let mut reader = opened.shared.reader(1);
    assert!(matches!(reader.step(), Ok(Step::End)));
    opened.writer.commit(now(1), &mut State::default).expect("committed");
    assert!(matches!(reader.step(), Ok(Step::Record(record)) if record.number == 1));
}

#[test]
fn the_tally_from_a_place_is_the_sum_of_what_is_read_from_there() {
    let dir = dir();
    let mut opened = filled(dir.path());
    for _ in 0..2 {
        for place in 0..63 {
            let sum = read_all(&opened, place).iter().fold(Tally::default(), |sum, record| sum.plus(record.tally()));
            assert_eq!(opened.shared.tally_from(place).expect("readable"), sum, "from {place}");
        }
        drop(opened);
        opened = open(dir.path());
    }
}

#[test]
fn a_record_larger_than_a_segment_gets_its_own() {
    let dir = dir();
    let mut opened = open(dir.path());
    commit(&mut opened.writer, 1..2, 10);
    assert!(opened.writer.growth(200_000) > 200_000);
    assert!(commit(&mut opened.writer, 2..3, 200_000).rolled);
    assert!(commit(&mut opened.writer, 3..4, 10).rolled);
    let lengths: Vec<usize> = read_all(&opened, 1).iter().map(|record| record.payload.len()).collect();
    assert_eq!(lengths, [10, 200_000, 10].map(|length| payload(1, length).len()));
    drop(opened);
    assert_eq!(numbers(&read_all(&open(dir.path()), 1)), [1, 2, 3]);
}

#[test]
fn reclaim_removes_what_is_past_and_readers_begin_behind_it() {
    let dir = dir();
    let mut opened = filled(dir.path());
    let mut early = opened.shared.reader(1);
    assert!(matches!(early.step(), Ok(Step::Record(_))));
    let files = segment_files(dir.path()).len();
    let bytes = opened.shared.file_bytes();
    let nothing = Keep { since_clock_ms: u64::MAX, bytes: 0 };
    let reclaimed = opened.writer.reclaim(30, nothing).expect("reclaimed");
    assert!(reclaimed.segments > 0);
    assert_eq!(segment_files(dir.path()).len() as u64, files as u64 - reclaimed.segments);
    assert_eq!(opened.shared.file_bytes(), bytes - reclaimed.bytes);
    let first = opened.shared.first_record();
    assert!(first > 1 && first <= 30);
    assert_eq!(numbers(&read_all(&opened, 1)), (first..61).collect::<Vec<_>>());
    // One that had a removed file open goes on, and meets no damage.
    assert_eq!(drain(&mut early).1, []);
    assert_eq!(opened.writer.reclaim(30, nothing).expect("nothing to do"), spool::Reclaimed::default());

    drop(opened);
    let mut opened = open(dir.path());
    assert_eq!(opened.recovery.damage, []);
    opened.writer.reclaim(u64::MAX, nothing).expect("reclaimed");
    assert_eq!(opened.shared.segments().len(), 1, "the one being written stays");
    assert_eq!(commit(&mut opened.writer, 61..62, 10).records, 61..62);
}

#[test]
fn no_number_is_below_the_floor() {
    let dir = dir();
    commit(&mut open(dir.path()).writer, 1..4, 10);
    let mut opened = open_with(dir.path(), Options { record_floor: 1000, ..TINY });
    assert_eq!(opened.shared.next_record(), 1000);
    assert_eq!(commit(&mut opened.writer, 1000..1002, 10).records, 1000..1002);
    commit(&mut opened.writer, 1002..1003, 10);
    for place in 0..1005 {
        let expected = [1, 2, 3, 1000, 1001, 1002].into_iter().filter(|number| *number >= place).collect::<Vec<_>>();
        assert_eq!(numbers(&read_all(&opened, place)), expected, "from {place}");
    }
    drop(opened);
    // The floor holds although it is not given again, also when nothing was written above it.
    let dir = self::dir();
    open_with(dir.path(), Options { record_floor: 1000, ..TINY });
    assert_eq!(commit(&mut open(dir.path()).writer, 1000..1001, 10).records, 1000..1001);
}

#[test]
fn a_backends_place_above_the_end_lifts_the_numbers() {
    let dir = dir();
    let mut opened = open(dir.path());
    opened.writer.stage_control(&Control::BackendAdded { name: "a".into(), start: 50 }, now(1));
    opened.writer.commit(now(1), &mut State::default).expect("committed");
    drop(opened);
    assert_eq!(commit(&mut open(dir.path()).writer, 50..51, 10).records, 50..51);
}

#[test]
fn controls_and_checkpoints_fold_over_segments_and_starts() {
    let dir = dir();
    let mut expected = State::default();
    for round in 0..12_u64 {
        let mut opened = open(dir.path());
        assert_eq!(opened.state.accounts, expected.accounts, "round {round}");
        assert_eq!(opened.state.clock_ms, round * 10, "the clock goes on where it was last seen");
        for step in 0..3 {
            let name = format!("backend {}", (round + step) % 4);
            let control = match round % 3 {
                0 => Control::BackendAdded { name, start: 1 },
                1 => Control::Paused { name },
                _ => Control::Resumed { name },
            };
            expected.apply(&control);
            opened.writer.stage_control(&control, now(round * 10 + 5));
            opened.writer.stage(draft(1, 8000));
            opened.writer.commit(now(round * 10 + 7), &mut || expected.clone()).expect("committed");
        }
        match round % 4 {
            0 => opened.writer.close(now(round * 10 + 10), &expected).expect("closed"),
            1 => {
                opened.writer.stage_checkpoint(&expected, now(round * 10 + 10));
                opened.writer.commit(now(round * 10 + 10), &mut || expected.clone()).expect("committed");
            }
            _ => {
                opened.writer.stage(draft(1, 1));
                opened.writer.commit(now(round * 10 + 10), &mut || expected.clone()).expect("committed");
            }
        }
    }
}

#[test]
fn a_commit_of_nothing_writes_nothing() {
    let dir = dir();
    let mut opened = open(dir.path());
    let before = opened.shared.segments();
    let committed = opened.writer.commit(now(1), &mut State::default).expect("nothing to do");
    assert_eq!((committed.records, committed.rolled), (1..1, false));
    assert_eq!(opened.shared.segments(), before);
}

#[test]
fn a_newer_format_is_refused_and_nothing_is_touched() {
    let dir = dir();
    filled(dir.path());
    let file = segment_files(dir.path()).pop().expect("a segment");
    let mut bytes = std::fs::read(&file).expect("readable");
    bytes[8] = 2;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..4096]);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&file, bytes).expect("written");
    std::fs::write(dir.path().join("00000000000000ff.tmp"), "unfinished").expect("written");
    let copy = self::dir();
    copy_dir(dir.path(), copy.path());
    let error = common::try_open(std::sync::Arc::new(spool::disk::OsDisk), dir.path(), TINY).expect_err("refused");
    assert!(matches!(&error, Error::Newer { version: 2, path } if *path == file), "{error}");
    let listing = |dir: &std::path::Path| {
        let mut files: Vec<_> = std::fs::read_dir(dir)
            .expect("readable")
            .map(|entry| entry.expect("an entry"))
            .map(|entry| (entry.file_name(), std::fs::read(entry.path()).expect("readable")))
            .collect();
        files.sort();
        files
    };
    assert_eq!(listing(dir.path()), listing(copy.path()));
}

#[test]
fn an_unfinished_segment_is_removed_and_other_files_are_left_alone() {
    let dir = dir();
    commit(&mut open(dir.path()).writer, 1..4, 10);
    std::fs::write(dir.path().join("00000000000000ff.tmp"), "unfinished").expect("written");
    std::fs::write(dir.path().join("notes.tmp"), "mine").expect("written");
    let opened = open(dir.path());
    assert!(!dir.path().join("00000000000000ff.tmp").exists());
    assert!(dir.path().join("notes.tmp").exists());
    assert_eq!(read_all(&opened, 1).len(), 3);
}

#[test]
fn the_other_stream_is_not_read() {
    let dir = dir();
    commit(&mut open(dir.path()).writer, 1..4, 10);
    let opened = open_with(dir.path(), Options { stream: spool::Stream::Side, ..TINY });
    assert_eq!(opened.recovery.unreadable.len(), 1);
    assert_eq!(read_all(&opened, 1).len(), 0);
    assert!(opened.shared.next_record() > 3);
}

/// Goal: what waits at any place is known without walking the journal once for each. Method: compared with the sum of
/// what a reader shows.
#[test]
fn tallies_from_many_places_are_those_that_a_reader_counts() {
    let dir = dir();
    // Large segments with many small groups, so that the footer's index is jumped into.
    let mut opened = open_with(dir.path(), Options { segment_bytes: 1 << 20, ..TINY });
    let mut name = 1;
    for round in 0..600_u64 {
        let count = 1 + round % 3;
        commit(&mut opened.writer, name..name + count, 10);
        name += count;
    }
    assert!(opened.shared.segments().len() >= 2);
    let records = read_all(&opened, 1);
    let places: Vec<u64> = (0..name + 5).collect();
    let found = opened.shared.tallies_from(&places).expect("readable");
    let mut expected = Tally::default();
    for place in places.into_iter().rev() {
        if let Some(record) = records.iter().find(|record| record.number == place) {
            expected += record.tally();
        }
        assert_eq!(found[&place], expected, "from {place}");
        if place % 97 == 0 {
            assert_eq!(opened.shared.tally_from(place).expect("readable"), expected);
        }
    }
    for segment in opened.shared.segments() {
        let weights = opened.shared.weigh(&segment).expect("readable");
        assert!(weights.iter().map(|(number, _)| *number).eq(segment.first_record..segment.next_record));
        assert_eq!(weights.iter().fold(Tally::default(), |sum, (_, tally)| sum.plus(*tally)), segment.tally);
    }
}

#[test]
fn a_file_that_a_reader_has_open_is_not_used_again() {
    let dir = dir();
    let path = dir.path().join("journal");
    let mut opened = common::open_with(&path, common::TINY_KEEPING);
    let spares = || {
        let names = std::fs::read_dir(&path).expect("the directory is there").map(|entry| entry.expect("one").path());
        names.filter(|path| path.extension().is_some_and(|extension| extension == "spare")).count()
    };
    for name in 1..=16 {
        common::commit(&mut opened.writer, name..name + 1, 3000);
    }
    let mut reader = opened.shared.reader(7);
    assert!(matches!(reader.step(), Ok(Step::Record(record)) if record.number == 7));
    let (segments, next) = (opened.shared.segments(), opened.shared.next_record());
    // It is in the middle of a segment when all but the last go.
    let reclaimed = opened.writer.reclaim(next, Keep { since_clock_ms: u64::MAX, bytes: 0 }).expect("the disk works");
    assert_eq!(reclaimed.segments, segments.len() as u64 - 1);
    assert_eq!(spares(), 2, "of the others");
    for name in 20..60 {
        common::commit(&mut opened.writer, name..name + 1, 3000);
    }
    assert!(spares() < 2, "they were used");
    let (records, damage) = common::drain(&mut reader);
    assert_eq!(damage, []);
    let read = common::numbers(&records);
    assert_eq!(read[..2], [8, 9], "the rest of its segment is what it was");
    assert_eq!(read.last(), Some(&(opened.shared.next_record() - 1)));
}

#[test]
fn what_is_kept_back_stays_over_starts_and_no_more_than_that() {
    let dir = dir();
    let path = dir.path().join("journal");
    let mut opened = common::open_with(&path, common::TINY_KEEPING);
    let before = opened.shared.file_bytes();
    let missing = opened.writer.kept_back_missing();
    while opened.writer.prepare().expect("the disk works") {}
    assert_eq!((opened.shared.file_bytes(), opened.writer.kept_back_missing()), (before + missing, 0));
    opened.writer.close(common::now(1), &State::default()).expect("the disk works");
    let fewer = Options { kept_back: KeptBack { spares: 1, ballast_bytes: 0 }, ..common::TINY_KEEPING };
    let opened = common::open_with(&path, fewer);
    // The start took one for its segment.
    assert_eq!(opened.writer.kept_back_missing(), fewer.segment_bytes);
    let names = std::fs::read_dir(&path).expect("the directory is there").count();
    assert_eq!(names, opened.shared.segments().len(), "what is too many went");
}

#[test]
fn a_clock_that_is_out_of_all_reason_does_no_harm() {
    let dir = dir();
    let path = dir.path().join("journal");
    for (start, wall_ns) in [u64::MAX, 1 << 63, 0].into_iter().enumerate() {
        let mut opened = spool::Journal::open(std::sync::Arc::new(spool::disk::OsDisk), &path, TINY, wall_ns)
            .expect("the journal opens");
        assert_eq!(numbers(&read_all(&opened, 1)).len(), start);
        commit(&mut opened.writer, 1..2, 10);
    }
}
