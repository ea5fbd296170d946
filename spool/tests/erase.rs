//! Purged payload is nowhere on the disk any more, whenever the machine stopped.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{TINY, draft, drain, now, payload};
use spool::disk::Disk;
use spool::disk::sim::{Failure, Fate, Fault, Loss, SimDisk};
use spool::{Account, Control, Error, Keep, KeptBack, Opened, Options, Ranges, Record, State, Tally, Writer};

const DIR: &str = "/state/journal";
const OPTIONS: Options = Options { kept_back: KeptBack { spares: 2, ballast_bytes: 8 << 12 }, ..TINY };
const GONE: Loss = Loss::power(Fate::Lost, Fate::Lost, Fate::Lost, 0);

fn try_open(disk: &SimDisk) -> Result<Opened, Error> {
    common::try_open(Arc::new(disk.clone()), Path::new(DIR), OPTIONS)
}

fn open(disk: &SimDisk) -> Opened {
    try_open(disk).expect("the journal opens")
}

/// Bytes as text, one character each: texts are searched fast also without optimization.
fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// Every file of the journal, as it would be found after this loss.
fn files(disk: &SimDisk, loss: Loss) -> Vec<(PathBuf, String)> {
    let disk = disk.crash(loss);
    let mut found = Vec::new();
    for dir in [PathBuf::from(DIR), Path::new(DIR).join("quarantine")] {
        for name in disk.list(&dir).unwrap_or_default() {
            let path = dir.join(name);
            found.extend(disk.content(&path).ok().map(|content| (path, text(&content))));
        }
    }
    found
}

/// Where the payload of records is found, whole or in part.
fn traces_of(disk: &SimDisk, numbers: impl IntoIterator<Item = u64>, loss: Loss) -> Vec<PathBuf> {
    let files = files(disk, loss);
    let mut found = Vec::new();
    for number in numbers {
        // Records are named by their numbers here, and the name is mixed into all of a payload.
        let whole = payload(number, 600);
        let needles = [text(&whole[..24]), text(&whole[300..360])];
        let holding = files.iter().filter(|(_, content)| needles.iter().any(|needle| content.contains(needle)));
        found.extend(holding.map(|(path, _)| path.clone()));
    }
    found
}

fn places(place: u64) -> State {
    State { accounts: [("a".into(), Account { place, ..Account::from_record(1) })].into(), ..State::default() }
}

fn append(writer: &mut Writer, names: std::ops::Range<u64>, state: &State) -> Result<(), Error> {
    for name in names {
        assert_eq!(writer.stage(draft(name, 600)), name);
    }
    writer.commit(now(1), &mut || state.clone()).map(|_| ())
}

/// Records, of which the first are reclaimed, and the files of some of those used again; one segment that was damaged is
/// kept aside.
fn filled() -> SimDisk {
    let disk = SimDisk::new();
    let mut opened = open(&disk);
    let state = places(11);
    let mut name = 1;
    while opened.shared.segments().len() < 4 {
        append(&mut opened.writer, name..name + 2, &state).expect("a healthy disk takes records");
        name += 2;
    }
    let segments = opened.shared.segments();
    disk.rot(&Path::new(DIR).join(format!("{:016x}.seg", segments[1].id)), 2 * BLOCK + 500, 1).expect("there");
    drain(&mut opened.shared.reader(1));
    let state = places(segments[2].first_record);
    opened.writer.stage_checkpoint(&state, now(1));
    opened.writer.commit(now(1), &mut || state.clone()).expect("a healthy disk takes facts");
    let keep = Keep { since_clock_ms: u64::MAX, bytes: 0 };
    assert!(opened.writer.reclaim(segments[2].first_record, keep).expect("reclaimed").segments > 0);
    while opened.shared.segments().len() < 7 {
        append(&mut opened.writer, name..name + 2, &state).expect("a healthy disk takes records");
        name += 2;
    }
    append(&mut opened.writer, name..name + 2, &state).expect("a healthy disk takes records");
    // Two more go, and their files are kept back.
    let state = places(opened.shared.segments()[2].first_record);
    opened.writer.stage_checkpoint(&state, now(1));
    opened.writer.commit(now(1), &mut || state.clone()).expect("a healthy disk takes facts");
    assert_eq!(opened.writer.reclaim(state.accounts["a"].place, keep).expect("reclaimed").segments, 2);
    append(&mut opened.writer, name + 2..name + 4, &state).expect("a healthy disk takes records");
    disk
}

const BLOCK: usize = 4096;

/// Those of each kind: reclaimed, kept aside, in a sealed segment, in the one being written, in the last group.
fn chosen(opened: &Opened) -> Ranges {
    let segments = opened.shared.segments();
    let next = opened.shared.next_record();
    let sealed = segments[0].first_record;
    [1..sealed, sealed + 3..sealed + 4, next - 3..next - 2, next - 1..next].into_iter().collect()
}

/// An operator purges, and all of it is erased.
fn purge(opened: &mut Opened, records: &Ranges) -> Result<(), Error> {
    let mut state = std::mem::take(&mut opened.state);
    let next = opened.shared.next_record();
    state.apply(&Control::Purged { records: records.clone() });
    opened.writer.stage_control(&Control::Purged { records: records.clone() }, now(2));
    // The backend is past all of it, or purging took it from there.
    state.accounts.values_mut().for_each(|account| account.finish(1..next));
    opened.writer.stage_checkpoint(&state, now(2));
    opened.writer.commit(now(2), &mut || state.clone())?;
    opened.writer.erase(records)?;
    state.erased(records);
    opened.writer.stage_checkpoint(&state, now(3));
    opened.writer.commit(now(3), &mut || state.clone())?;
    append(&mut opened.writer, next..next + 2, &state)
}

fn check_left(opened: &Opened, before: &BTreeMap<u64, Record>, purged: &Ranges, what: &str) {
    let (records, damage) = drain(&mut opened.shared.reader(1));
    assert_eq!(damage, [], "{what}");
    let found: BTreeMap<u64, Record> = records.into_iter().map(|record| (record.number, record)).collect();
    for (number, record) in before {
        let expected = if purged.contains(*number) { None } else { Some(record) };
        assert_eq!(found.get(number), expected, "{what}: record {number}");
    }
}

fn all(opened: &Opened) -> BTreeMap<u64, Record> {
    drain(&mut opened.shared.reader(1)).0.into_iter().map(|record| (record.number, record)).collect()
}

#[test]
fn purged_payload_is_gone_from_every_file_and_the_rest_is_whole() {
    let disk = filled();
    let mut opened = open(&disk);
    let before = all(&opened);
    let records = chosen(&opened);
    let found: Vec<PathBuf> = traces_of(&disk, records.iter().flatten(), Loss::KILL);
    for part in [".spare", "quarantine", ".seg"] {
        assert!(found.iter().any(|path| path.to_string_lossy().contains(part)), "{part} in {found:?}");
    }
    let (last, _) = files(&disk, Loss::KILL)
        .into_iter()
        .filter(|(path, _)| path.extension().is_some_and(|end| end == "seg"))
        .max()
        .expect("one");
    let stale = records.iter().flatten().filter(|number| !before.contains_key(number));
    assert!(traces_of(&disk, stale, Loss::KILL).contains(&last), "behind the end");
    let counted = opened.shared.tally_from(1).expect("readable");
    let erased = opened.writer.erase(&records).expect("erased");
    let there: Ranges = records.iter().flatten().filter(|n| before.contains_key(n)).map(|n| n..n + 1).collect();
    assert_eq!(erased.records, there, "what was there");
    let weight = before.values().filter(|record| records.contains(record.number));
    assert_eq!(erased.tally, weight.fold(Tally::default(), |sum, record| sum.plus(record.tally())));
    for loss in [Loss::KILL, GONE] {
        assert_eq!(traces_of(&disk, records.iter().flatten(), loss), [""; 0].map(PathBuf::from));
    }
    check_left(&opened, &before, &records, "at once");
    assert_eq!(opened.shared.tally_from(1).expect("readable"), counted, "counts stay");
    let number = *before.keys().next_back().expect("records") + 1;
    append(&mut opened.writer, number..number + 1, &State::default()).expect("it goes on");
    drop(opened);
    let opened = open(&disk);
    assert_eq!((&opened.recovery.damage, &opened.recovery.torn), (&vec![], &None), "a purged record is no damage");
    check_left(&opened, &before, &records, "after a start");
    let verified = spool::verify(Arc::new(disk.crash(Loss::KILL)), Path::new(DIR), OPTIONS, spool::Watch::AtRest);
    assert!(verified.expect("it can be looked at").is_whole());
}

#[test]
fn a_purge_that_was_answered_is_finished_whenever_the_machine_stops() {
    let filled = filled();
    let base = open(&filled.crash(Loss::KILL));
    let before = all(&base);
    let records = chosen(&base);
    drop(base);
    let whole = filled.crash(Loss::KILL);
    let mut opened = open(&whole);
    let opening = whole.calls();
    purge(&mut opened, &records).expect("a healthy disk");
    let calls = whole.calls();
    for at in opening..calls {
        let disk = filled.crash(Loss::KILL);
        let mut opened = open(&disk);
        disk.fail(Fault { at: at - opening, failure: Failure::Stop, lasting: true });
        purge(&mut opened, &records).expect_err("cut off");
        for loss in Loss::each(at).into_iter().skip(usize::try_from(at).expect("few") % 2).step_by(2) {
            let after = disk.crash(loss);
            let opened = open(&after);
            let what = format!("cut off at call {at}, {loss:?}");
            let (found, damage) = drain(&mut opened.shared.reader(1));
            assert_eq!(damage, [], "{what}");
            let found: BTreeMap<u64, Record> = found.into_iter().map(|record| (record.number, record)).collect();
            for (number, record) in &before {
                match found.get(number) {
                    Some(read) => assert_eq!(read, record, "{what}"),
                    None => assert!(records.contains(*number), "{what}: record {number} was not purged"),
                }
            }
            // The control was the first commit: its write and its sync.
            let answered = at - opening >= 2;
            assert!(!answered || opened.state.accounts["a"].place > 20, "{what}");
            for loss in [Loss::KILL, GONE].into_iter().filter(|_| answered) {
                let left = traces_of(&after, records.iter().flatten(), loss);
                assert_eq!(left, [""; 0].map(PathBuf::from), "{what}, then {loss:?}");
            }
        }
    }
}

#[test]
fn a_record_is_whole_or_purged_whenever_the_machine_stops() {
    let filled = filled();
    let base = open(&filled.crash(Loss::KILL));
    let before = all(&base);
    let records = chosen(&base);
    drop(base);
    for at in 0.. {
        let disk = filled.crash(Loss::KILL);
        let mut opened = open(&disk);
        disk.fail(Fault { at, failure: Failure::Stop, lasting: true });
        let ended = opened.writer.erase(&records);
        for loss in Loss::each(at) {
            // Nobody told the next process what was to be purged.
            let opened = open(&disk.crash(loss));
            let what = format!("cut off at call {at}, {loss:?}");
            assert_eq!(opened.recovery.torn, None, "{what}");
            let (found, damage) = drain(&mut opened.shared.reader(1));
            assert_eq!(damage, [], "{what}");
            for record in found {
                assert_eq!(Some(&record), before.get(&record.number), "{what}");
            }
        }
        if ended.is_ok() {
            assert!(at > 10);
            break;
        }
    }
}

#[test]
fn what_a_backend_waits_for_is_not_erased_at_a_start() {
    let disk = filled();
    let mut opened = open(&disk);
    let next = opened.shared.next_record();
    let mut records = Ranges::default();
    records.insert(next - 2..next);
    let purged = Control::Purged { records };
    opened.writer.stage_control(&purged, now(2));
    opened.writer.commit(now(2), &mut State::default).expect("committed");
    drop(opened);
    let opened = open(&disk);
    assert_eq!(opened.state.purges.count(), 2, "it is still to be done");
    assert!(!traces_of(&disk, [next - 1], Loss::KILL).is_empty());
}

#[test]
fn a_failing_disk_ends_the_writer() {
    let filled = filled();
    let records = chosen(&open(&filled.crash(Loss::KILL)));
    for at in 0..12 {
        let disk = filled.crash(Loss::KILL);
        let mut opened = open(&disk);
        disk.fail(Fault { at, failure: Failure::Io, lasting: false });
        opened.writer.erase(&records).expect_err("the call fails");
        disk.heal();
        let next = opened.writer.commit(now(1), &mut State::default);
        assert!(matches!(next, Err(Error::Poisoned)), "{next:?}");
    }
}
