//! Torn ends, starts that were cut short, and damage in the middle, on a real file system.

#![expect(clippy::single_range_in_vec_init, reason = "lists of damaged ranges, often of one")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{commit, copy_dir, draft, drain, now, numbers, open, read_all, segment_files};
use spool::{Control, Opened, State};

const BLOCK: usize = 4096;

/// A directory on a file system in memory, if there is one: these tests open a journal thousands of times.
fn memory_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

struct Fixture {
    _base: tempfile::TempDir,
    whole: PathBuf,
    work: PathBuf,
}

impl Fixture {
    /// A journal that `fill` made and nobody closed; `work` is where copies of it are damaged.
    fn new(fill: impl FnOnce(&mut Opened)) -> Self {
        let base = memory_dir();
        let (whole, work) = (base.path().join("whole"), base.path().join("work"));
        fs::create_dir(&whole).expect("created");
        let mut opened = open(&whole);
        fill(&mut opened);
        Self { _base: base, whole, work }
    }

    /// A fresh copy.
    fn copy(&self) -> &Path {
        copy_dir(&self.whole, &self.work);
        &self.work
    }
}

fn change(file: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).expect("readable");
    change(&mut bytes);
    fs::write(file, bytes).expect("written");
}

fn last_segment(dir: &Path) -> PathBuf {
    segment_files(dir).pop().expect("a segment")
}

/// Offsets of the group headers in a segment file, the one behind the last included.
fn groups(file: &Path) -> Vec<usize> {
    let bytes = fs::read(file).expect("readable");
    let mut offsets = vec![BLOCK];
    loop {
        let at = *offsets.last().expect("never empty");
        if at + 160 > bytes.len() || &bytes[at..at + 4] != b"TSGR" {
            return offsets;
        }
        let length = u64::from_le_bytes(bytes[at + 32..at + 40].try_into().expect("8 bytes"));
        offsets.push((at + 160 + usize::try_from(length).expect("small")).next_multiple_of(BLOCK));
    }
}

/// Records 1..4 and 4..7 in one group each; a control in the second.
fn two_groups(opened: &mut Opened) {
    commit(&mut opened.writer, 1..4, 300);
    opened.writer.stage_control(&Control::BackendAdded { name: "a".into(), start: 1 }, now(1));
    commit(&mut opened.writer, 4..7, 300);
}

/// Every earlier record is there, no number comes twice, none is used again, and the journal takes more.
fn check_torn(dir: &Path, what: &str) -> Opened {
    let mut opened = open(dir);
    let found = numbers(&read_all(&opened, 1));
    assert_eq!(found[..3], [1, 2, 3], "{what}");
    assert!(found.is_sorted_by(|a, b| a < b) && *found.last().expect("some") < 7, "{what}: {found:?}");
    let next = commit(&mut opened.writer, 100..101, 10).records;
    assert!(!found.contains(&next.start), "{what}");
    drop(opened);
    let opened = open(dir);
    assert_eq!(numbers(&read_all(&opened, 1)), [found, vec![next.start]].concat(), "{what}, opened again");
    assert_eq!(opened.recovery.torn, None, "{what}: reported once");
    opened
}

#[test]
fn a_last_group_with_any_byte_changed_costs_only_itself() {
    let fixture = Fixture::new(two_groups);
    let ends = groups(&last_segment(&fixture.whole));
    let [.., from, to] = ends[..] else { panic!("groups") };
    let length: usize = 160 + 3 * 400 + 200;
    assert!(to - from >= length.next_multiple_of(BLOCK));
    for at in (from..from + length).step_by(3) {
        let dir = fixture.copy();
        let mut in_use = true;
        change(&last_segment(dir), |bytes| {
            in_use = bytes[at..].iter().take(8).any(|byte| *byte != 0);
            bytes[at] ^= 0x41;
        });
        let opened = open(dir);
        if let Some(torn) = &opened.recovery.torn {
            assert!(torn.frames <= 4);
            let kept_in = torn.kept_in.as_ref().expect("there is room");
            assert!(kept_in.starts_with(dir.join("quarantine")) && kept_in.is_file());
            let kept = fs::read(kept_in).expect("readable");
            let original = fs::read(last_segment(&fixture.whole)).expect("readable");
            let differing = kept.iter().zip(&original[from..]).filter(|(a, b)| a != b).count();
            assert_eq!(differing, 1, "the bytes as they lay there");
            assert_eq!(torn.frames == 0, at < from + 160, "byte {at}");
        } else {
            // Only the padding of frames and the place of the purge mark may change without a loss.
            assert_eq!(opened.recovery.rewritten, 3, "byte {at}");
        }
        drop(opened);
        let opened = check_torn(fixture.copy_changed(at), &format!("byte {at}"));
        drop(opened);
    }
}

impl Fixture {
    fn copy_changed(&self, at: usize) -> &Path {
        let dir = self.copy();
        change(&last_segment(dir), |bytes| bytes[at] ^= 0x41);
        dir
    }
}

#[test]
fn a_last_group_cut_anywhere_costs_only_itself() {
    let fixture = Fixture::new(two_groups);
    let ends = groups(&last_segment(&fixture.whole));
    let [.., from, to] = ends[..] else { panic!("groups") };
    for zeroed in [false, true] {
        for at in (from..to).step_by(7).chain([from + 1, to]) {
            let dir = fixture.copy();
            change(&last_segment(dir), |bytes| match zeroed {
                true => bytes[at..].fill(0),
                false => bytes.truncate(at),
            });
            check_torn(dir, &format!("cut at {at}, zeroed: {zeroed}"));
        }
    }
}

#[test]
fn the_numbers_of_a_torn_group_stay_unused_over_restarts() {
    let fixture = Fixture::new(two_groups);
    let dir = fixture.copy();
    let [.., from, _] = groups(&last_segment(dir))[..] else { panic!("groups") };
    // The last record of the last group: its payload ends before the padding.
    change(&last_segment(dir), |bytes| {
        let end = (from..from + BLOCK).rev().find(|at| bytes[*at] != 0).expect("bytes");
        bytes[end] ^= 1;
    });
    let opened = open(dir);
    assert_eq!(opened.recovery.torn.as_ref().map(|torn| torn.frames), Some(1));
    assert_eq!(numbers(&read_all(&opened, 1)), [1, 2, 3, 4, 5]);
    assert!(opened.state.accounts.contains_key("a"), "the control of the torn group is kept");
    drop(opened);
    drop(open(dir));
    let mut opened = open(dir);
    assert_eq!(commit(&mut opened.writer, 0..1, 10).records, 7..8, "6 may have been seen");
}

#[test]
fn a_start_that_was_cut_short_is_begun_again() {
    let fixture = Fixture::new(two_groups);
    // The state behind a whole start, from which the states within it are made.
    let after = memory_dir();
    copy_dir(&fixture.whole, after.path());
    drop(open(after.path()));
    let new_segment = |bytes_of: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let dir = fixture.copy();
        let file = last_segment(after.path());
        let bytes = bytes_of(fs::read(&file).expect("readable"));
        fs::write(dir.join(file.file_name().expect("a name")), bytes).expect("written");
        dir.to_path_buf()
    };
    let all = [1, 2, 3, 4, 5, 6];
    let check = |dir: &Path, what: &str| {
        let opened = open(dir);
        assert_eq!(numbers(&read_all(&opened, 1)), all, "{what}");
        assert!(opened.state.accounts.contains_key("a"), "{what}");
        assert_eq!(opened.recovery.damage, [], "{what}");
        drop(opened);
        let mut opened = open(dir);
        assert_eq!(numbers(&read_all(&opened, 1)), all, "{what}, again");
        assert_eq!(commit(&mut opened.writer, 7..8, 10).records, 7..8, "{what}");
    };
    check(
        &new_segment(&|mut bytes| {
            bytes[BLOCK..].fill(0);
            bytes
        }),
        "new segment empty",
    );
    check(&new_segment(&|bytes| bytes), "new segment whole, old one still open");
    let end = BLOCK + 3 * 400;
    for at in (BLOCK..end).step_by(57) {
        let torn = new_segment(&|mut bytes| {
            bytes[at..].fill(0);
            bytes
        });
        check(&torn, &format!("first group torn at {at}, old segment still open"));
    }
    // The old segment half closed: the footer over the doubtful group is torn, or not cut yet.
    let [.., from, _] = groups(&last_segment(&fixture.whole))[..] else { panic!("groups") };
    for torn in [0, 100, 192, 512, BLOCK] {
        let dir = new_segment(&|bytes| bytes);
        let sealed = fs::read(&segment_files(after.path())[0]).expect("readable");
        let footer = &sealed[from..];
        change(&segment_files(&dir)[0], |bytes| {
            let length = footer.len().min(torn);
            bytes[from..from + length].copy_from_slice(&footer[..length]);
        });
        check(&dir, &format!("{torn} bytes of the footer written"));
    }
}

#[test]
fn a_roll_that_was_cut_short_keeps_the_segment_before() {
    let fixture = Fixture::new(|opened| {
        two_groups(opened);
        while !commit(&mut opened.writer, 7..8, 9000).rolled {}
    });
    let expected = numbers(&read_all(&open(fixture.copy()), 1));
    for at in [BLOCK, BLOCK + 100, BLOCK + 600, BLOCK + 8000] {
        let dir = fixture.copy();
        change(&last_segment(dir), |bytes| bytes[at..].fill(0));
        let opened = open(dir);
        assert!(!opened.recovery.clean);
        let last = expected.len() - 1;
        assert_eq!(numbers(&read_all(&opened, 1)), expected[..last], "at {at}");
        assert_eq!(opened.recovery.torn.is_some(), at > BLOCK, "at {at}");
        assert_eq!(opened.recovery.damage, []);
    }
}

/// Three groups of three records in a segment that is sealed, and more in the next.
fn sealed() -> (Fixture, Vec<usize>) {
    let fixture = Fixture::new(|opened| {
        for first in [1, 4, 7] {
            commit(&mut opened.writer, first..first + 3, 300);
        }
        while !commit(&mut opened.writer, 10..11, 9000).rolled {}
        commit(&mut opened.writer, 20..21, 10);
    });
    let first = segment_files(&fixture.whole)[0].clone();
    let groups = groups(&first);
    (fixture, groups)
}

/// Reads all with segment 1 changed; returns the damaged ranges, after checking that what is left is all the rest.
fn read_damaged(fixture: &Fixture, damage: impl FnOnce(&mut Vec<u8>)) -> Vec<std::ops::Range<u64>> {
    let all = numbers(&read_all(&open(fixture.copy()), 1));
    let dir = fixture.copy();
    change(&segment_files(dir)[0], damage);
    let opened = open(dir);
    let (records, found) = drain(&mut opened.shared.reader(1));
    let lost: Vec<_> = found.iter().map(|damage| damage.records.clone()).collect();
    let left: Vec<u64> = all.into_iter().filter(|number| !lost.iter().any(|range| range.contains(number))).collect();
    assert_eq!(numbers(&records), left);
    assert!(found.iter().all(|damage| damage.segment == 1 || damage.offset == 0));
    // From every place, the same records are lost that are at or above it.
    for place in 1..12 {
        let (_, found) = drain(&mut opened.shared.reader(place));
        let expected: Vec<_> =
            lost.iter().filter(|range| range.end > place).map(|range| range.start.max(place)..range.end).collect();
        assert_eq!(found.into_iter().map(|damage| damage.records).collect::<Vec<_>>(), expected, "from {place}");
    }
    lost
}

#[test]
fn damage_in_a_sealed_segment_is_bounded_and_what_lies_behind_is_read() {
    let (fixture, groups) = sealed();
    // groups[0] is the first checkpoint's, then three groups of records.
    let group = groups[2];
    let flip = |at: usize| move |bytes: &mut Vec<u8>| bytes[at] ^= 1;
    let frame = |index: usize| group + 160 + index * (64 + 7 + 300_usize).next_multiple_of(8);
    let probe = fs::read(&segment_files(&fixture.whole)[0]).expect("readable");
    for (index, number) in [4_u64, 5, 6].into_iter().enumerate() {
        let at = frame(index);
        assert_eq!(probe[at + 24..at + 32], number.to_le_bytes(), "the frames are where this test thinks");
        // In the payload, in the frame's header, in its envelope.
        assert_eq!(read_damaged(&fixture, flip(at + 100)), [number..number + 1]);
        assert_eq!(read_damaged(&fixture, flip(at + 20)), [number..number + 1]);
        assert_eq!(read_damaged(&fixture, flip(at + 66)), [number..number + 1]);
    }
    // A group header costs nothing, the last one's neither: the frames have checksums of their own.
    const NOTHING: [std::ops::Range<u64>; 0] = [];
    assert_eq!(read_damaged(&fixture, flip(group + 40)), NOTHING);
    assert_eq!(read_damaged(&fixture, |bytes| bytes[group..group + 160].fill(0xFF)), NOTHING);
    let last = groups.len() - 2;
    assert_eq!(read_damaged(&fixture, flip(groups[last] + 9)), NOTHING);
    // With a frame's header; a group with its header and all; several groups.
    let header_and_frame = |bytes: &mut Vec<u8>| {
        bytes[group + 40] ^= 1;
        bytes[frame(1) + 20] ^= 1;
    };
    assert_eq!(read_damaged(&fixture, header_and_frame), [5..6]);
    assert_eq!(read_damaged(&fixture, |bytes| bytes[group..group + BLOCK].fill(0)), [4..7]);
    assert_eq!(read_damaged(&fixture, |bytes| bytes[groups[1]..groups[3]].fill(0xAA)), [1..7]);
    // The first group of a segment, which holds facts only.
    assert_eq!(read_damaged(&fixture, flip(groups[0] + 40)), [] as [std::ops::Range<u64>; 0]);
}

#[test]
fn a_damaged_header_block_or_footer_costs_nothing() {
    let (fixture, _) = sealed();
    for at in [0, 9, 20, 500] {
        assert_eq!(read_damaged(&fixture, |bytes| bytes[at] ^= 0x10), [] as [std::ops::Range<u64>; 0]);
    }
    assert_eq!(
        read_damaged(&fixture, |bytes| {
            let end = bytes.len();
            bytes[end - 1] ^= 1;
        }),
        [] as [std::ops::Range<u64>; 0]
    );
    let both = |bytes: &mut Vec<u8>| {
        bytes[30] ^= 1;
        bytes.push(0);
    };
    assert_eq!(read_damaged(&fixture, both), [] as [std::ops::Range<u64>; 0]);
    let dir = fixture.copy();
    change(&segment_files(dir)[0], both);
    let opened = open(dir);
    assert_eq!(opened.recovery.unreadable, [] as [PathBuf; 0]);
    assert!(!opened.recovery.damage.is_empty(), "it is reported");
}

#[test]
fn a_damaged_header_block_of_the_last_segment_costs_nothing() {
    let fixture = Fixture::new(two_groups);
    let dir = fixture.copy();
    change(&last_segment(dir), |bytes| bytes[..100].fill(7));
    let opened = open(dir);
    assert_eq!(numbers(&read_all(&opened, 1)), [1, 2, 3, 4, 5, 6]);
    drop(opened);
    let opened = open(dir);
    assert_eq!(opened.recovery.damage, [], "it was closed in order");
    assert_eq!(numbers(&read_all(&opened, 1)), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_cut_or_missing_segment_shows_as_a_gap() {
    let (fixture, groups) = sealed();
    let next = fs::read(&segment_files(&fixture.whole)[1]).expect("readable");
    let next = u64::from_le_bytes(next[32..40].try_into().expect("8 bytes"));
    assert_eq!(read_damaged(&fixture, |bytes| bytes.truncate(groups[2])), [4..next]);
    // A segment in the middle is gone.
    let fixture = Fixture::new(|opened| {
        while opened.shared.segments().len() < 4 {
            commit(&mut opened.writer, 1..2, 900);
        }
    });
    let dir = fixture.copy();
    let segments = open(dir).shared.segments();
    let dir = fixture.copy();
    fs::remove_file(&segment_files(dir)[1]).expect("removed");
    let opened = open(dir);
    let (_, damage) = drain(&mut opened.shared.reader(1));
    let lost = segments[1].first_record..segments[1].next_record;
    assert_eq!(damage.iter().map(|damage| damage.records.clone()).collect::<Vec<_>>(), std::slice::from_ref(&lost));
    assert_eq!(opened.recovery.damage, damage);
    assert_eq!(drain(&mut opened.shared.reader(lost.start + 1)).1[0].records, lost.start + 1..lost.end);
    assert_eq!(drain(&mut opened.shared.reader(lost.end)).1, []);
}

#[test]
fn a_segment_of_which_nothing_can_be_read_is_left_alone_and_its_numbers_too() {
    let fixture = Fixture::new(two_groups);
    let dir = fixture.copy();
    let file = last_segment(dir);
    change(&file, |bytes| bytes.fill(0x55));
    let mut opened = open(dir);
    assert_eq!(opened.recovery.unreadable, std::slice::from_ref(&file));
    assert!(commit(&mut opened.writer, 1..2, 10).records.start > 6);
    assert!(fs::read(&file).expect("readable").iter().all(|byte| *byte == 0x55));
    drop(opened);
    // Damage in the middle is seen although the file is left out.
    let opened = open(dir);
    assert_eq!(read_all(&opened, 1).len(), 1);
}

#[test]
fn any_block_of_any_file_may_be_lost_and_the_rest_is_read() {
    let (fixture, _) = sealed();
    let all = read_all(&open(fixture.copy()), 1);
    for index in 0..segment_files(&fixture.whole).len() {
        let length = fs::metadata(&segment_files(&fixture.whole)[index]).expect("there").len();
        for block in 0..usize::try_from(length).expect("small").div_ceil(BLOCK) {
            for fill in [0, 0xFF] {
                let dir = fixture.copy();
                change(&segment_files(dir)[index], |bytes| {
                    let end = bytes.len().min((block + 1) * BLOCK);
                    bytes[block * BLOCK..end].fill(fill);
                });
                let mut opened = open(dir);
                let (records, damage) = drain(&mut opened.shared.reader(1));
                let what = format!("file {index}, block {block} filled with {fill}: {damage:?} {:?}", opened.recovery);
                assert!(records.iter().all(|record| all.contains(record)), "{what}");
                assert!(numbers(&records).is_sorted_by(|a, b| a < b), "{what}");
                let is_last = index + 1 == segment_files(&fixture.whole).len();
                for record in all.iter().filter(|record| !records.contains(record)) {
                    let told = damage.iter().any(|damage| damage.records.contains(&record.number));
                    // Of the last group it can't be told whether it was ever there.
                    assert!(told || (is_last && record.number >= all.len() as u64), "{what}: {}", record.number);
                }
                let next = commit(&mut opened.writer, 1..2, 10).records.start;
                assert!(next >= all.last().expect("some").number, "{what}");
            }
        }
    }
}

#[test]
fn hostile_lengths_are_refused_without_a_panic() {
    let fixture = Fixture::new(two_groups);
    let file = last_segment(&fixture.whole);
    let bytes = fs::read(&file).expect("readable");
    let [.., from, _] = groups(&file)[..] else { panic!("groups") };
    let (segment, epoch) = (&bytes[16..24], &bytes[24..32]);
    let stamp = |offset: usize, part: &[u8]| {
        let seed = [segment, epoch, &(offset as u64).to_le_bytes(), part].concat();
        crc32c::crc32c(&seed).to_le_bytes()
    };
    // Any field of the last group's header, and of its first frame's, with its checksum made good again.
    for value in [0, 1, 1 << 20, u64::MAX / 2, u64::MAX - 100, u64::MAX] {
        for at in (8..160).step_by(8).chain([160 + 8, 160 + 16, 160 + 24, 160 + 32]) {
            let dir = fixture.copy();
            change(&last_segment(dir), |bytes| {
                bytes[from + at..from + at + 8].copy_from_slice(&u64::to_le_bytes(value));
                let crc = stamp(from, &bytes[from + 8..from + 160]);
                bytes[from + 4..from + 8].copy_from_slice(&crc);
                let frame = from + 160;
                let length = u32::from_le_bytes(bytes[frame + 12..frame + 16].try_into().expect("4 bytes")) as usize;
                let envelope = bytes[frame + 64..].get(..length).unwrap_or_default();
                let crc = stamp(frame, &[&bytes[frame + 4..frame + 56], envelope].concat());
                bytes[frame..frame + 4].copy_from_slice(&crc);
            });
            let mut opened = open(dir);
            let (records, _) = drain(&mut opened.shared.reader(1));
            assert_eq!(numbers(&records)[..3], [1, 2, 3], "{at}: {value}");
            opened.writer.stage(draft(1, 1));
            opened.writer.commit(now(1), &mut State::default).expect("committed");
        }
    }
}

/// The checksum of a part at an offset, stamped as the segment's header says.
fn stamped(bytes: &[u8], offset: usize, part: &[u8]) -> [u8; 4] {
    let seed = [&bytes[16..32], &(offset as u64).to_le_bytes(), part].concat();
    crc32c::crc32c(&seed).to_le_bytes()
}

#[test]
fn a_purged_record_is_skipped_and_is_no_damage() {
    let (fixture, groups) = sealed();
    for whole_mark in [true, false] {
        // The last record of its group, so that nothing behind it hides what is wrong.
        let at = groups[3] - BLOCK + 160 + 2 * (64 + 7 + 300_usize).next_multiple_of(8);
        let dir = fixture.copy();
        change(&segment_files(dir)[0], |bytes| {
            assert_eq!(bytes[at + 24..at + 32], 6_u64.to_le_bytes(), "the frame is where this test thinks");
            bytes[at + 64 + 7..at + 64 + 7 + 300].fill(0);
            bytes[at + 56..at + 60].copy_from_slice(b"PURG");
            let crc = stamped(bytes, at, b"PURG");
            bytes[at + 60..at + 64].copy_from_slice(&crc);
            bytes[at + 60] ^= u8::from(!whole_mark);
        });
        let (records, damage) = drain(&mut open(dir).shared.reader(1));
        assert!(!numbers(&records).contains(&6) && numbers(&records).contains(&7));
        let lost: Vec<_> = damage.into_iter().map(|damage| damage.records).collect();
        assert_eq!(lost, if whole_mark { vec![] } else { vec![6..7] });
    }
}

#[test]
fn a_group_header_inside_a_payload_does_not_lead_astray() {
    let fixture = Fixture::new(|opened| {
        commit(&mut opened.writer, 1..2, 10);
        commit(&mut opened.writer, 2..3, 6000);
        commit(&mut opened.writer, 3..4, 10);
        while !commit(&mut opened.writer, 4..5, 9000).rolled {}
    });
    let groups = groups(&segment_files(&fixture.whole)[0]);
    assert_eq!(groups.len(), 5, "the first checkpoint, three records, the end");
    // The group of record 2 loses its header; in its payload lies what looks like a later group.
    let (lost, forged) = (groups[2], groups[2] + BLOCK);
    for (sequence, first, next) in [(1000, 2, 3), (4, 1, 3), (4, 2, u64::MAX), (4, 9, 3), (2, 3, 4)] {
        let found = read_damaged(&fixture, |bytes| {
            bytes[lost + 20] ^= 1;
            bytes.copy_within(groups[3]..groups[3] + 160, forged);
            for (at, value) in [(8, sequence), (16, first), (24, next)] {
                bytes[forged + at..forged + at + 8].copy_from_slice(&u64::to_le_bytes(value));
            }
            let crc = stamped(bytes, forged, &bytes[forged + 8..forged + 160]);
            bytes[forged + 4..forged + 8].copy_from_slice(&crc);
        });
        assert_eq!(found, [2..3], "sequence {sequence}, records {first}..{next}");
    }
}
