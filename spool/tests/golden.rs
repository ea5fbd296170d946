//! The bytes of a small journal, compared with committed ones.
//!
//! Goal: nobody changes the format without knowing it. Method: a journal with a frame of every kind and every envelope
//! item is written with fixed times, and its files are compared with the fixtures as hex. A fixture that is read back
//! shows that old files stay readable. `SPOOL_BLESS=1` writes the fixtures anew, for a change that is meant.

mod common;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{drain, now};
use spool::disk::OsDisk;
use spool::{
    Account, Aside, Control, DiscardReason, Discarded, Door, Draft, DropFile, Envelope, FileId, Journal, Kind, Label,
    Letters, LettersEnd, Opened, Options, Reason, Received, SourceRange, State, Step, Stream, Tally,
};

const WALL_NS: u64 = 1_700_000_000_000_000_000;

fn options(stream: Stream) -> Options {
    Options { stream, segment_bytes: 1 << 16, record_floor: 7, ..Options::default() }
}

fn open(dir: &Path, stream: Stream) -> Opened {
    Journal::open(Arc::new(OsDisk), dir, options(stream), WALL_NS).expect("the journal opens")
}

fn state() -> State {
    let account = Account {
        start: 1,
        end: 17,
        place: 8,
        finished: [10..12, 15..16].into_iter().collect(),
        side_place: 3,
        delivered: Tally { records: 1, traces: 2, spans: 3, units: 4, bytes: 5 },
        rejected: 6,
        dead: Tally { records: 7, traces: 8, spans: 9, units: 10, bytes: 11 },
        parked: Tally { records: 12, traces: 13, spans: 14, units: 15, bytes: 16 },
        discarded: Discarded { retry_timeout: 17, queue_cap: 18, dead_letter_cap: 19, dead_letter_age: 20, purged: 21 },
        damaged: 22,
        not_applicable: 23,
        attempts: 24,
        idle_ms: 25,
        paused: true,
    };
    State {
        clock_ms: 5000,
        received: Received {
            requests: 1,
            traces: 2,
            spans: 3,
            bytes: 4,
            refused_full: 5,
            refused_invalid: 6,
            refused_too_large: 7,
            counted_to: 8,
        },
        accounts: [("first".to_owned(), account), ("second".to_owned(), Account::from_record(9))].into(),
        spool_id: WALL_NS,
        facts: 3,
        side_settled: [1..4, 6..9].into_iter().collect(),
        labels: vec![label(5)],
        drop_files: [(FILE, drop_file([250..260, 280..300].into_iter().collect()))].into(),
        ..State::default()
    }
}

const FILE: FileId = FileId { device: 66, inode: 77 };

fn drop_file(beyond: spool::Ranges) -> DropFile {
    DropFile { behind: 200, length: 400, modified_ns: WALL_NS, born_ns: WALL_NS - 1, checksum: 0xfeed, beyond }
}

fn label(segment: u64) -> Label {
    Label {
        segment,
        backend: "first".to_owned(),
        reason: Reason::Expired,
        records: [30..32, 34..40].into_iter().collect(),
        tally: Tally { records: 8, traces: 9, spans: 10, units: 11, bytes: 12 },
        status: "503".to_owned(),
        message: "no room".to_owned(),
        attempts: 13,
        first_attempt_ns: WALL_NS + 30,
        last_attempt_ns: WALL_NS + 40,
        clock_ms: 4400,
        received_ns: WALL_NS + 5,
    }
}

fn full_envelope() -> Envelope {
    Envelope {
        kind: Kind::OtlpTraces,
        received_ns: WALL_NS + 1,
        clock_ms: 4001,
        spans: 6,
        traces: 2,
        door: Door::Directory,
        experiment: Some("17".to_owned()),
        workspace: Some("blue".to_owned()),
        headers: vec![("x-team".to_owned(), "search".to_owned()), ("x-empty".to_owned(), String::new())],
        peer_uid: Some(1000),
        source: Some(SourceRange { device: 66, inode: 77, start: 100, end: 200 }),
        via: vec!["one".to_owned(), "two".to_owned()],
        ..Envelope::default()
    }
}

fn drafts() -> Vec<Draft> {
    let plain = |kind, door, payload: &'static [u8]| Draft {
        envelope: Envelope { kind, door, received_ns: WALL_NS + 2, clock_ms: 4002, ..Envelope::default() },
        payload: payload.into(),
    };
    vec![
        Draft { envelope: full_envelope(), payload: b"the first payload"[..].into() },
        plain(Kind::MlflowTraceInfo, Door::Mlflow, b"{}"),
        plain(Kind::MlflowArtifact, Door::Lines, b""),
    ]
}

fn aside_draft() -> Draft {
    let aside = Aside {
        record: 42,
        backend: "first".to_owned(),
        reason: Reason::Rejected,
        status: "400".to_owned(),
        message: "bad span".to_owned(),
        attempts: 3,
        first_attempt_ns: WALL_NS + 10,
        last_attempt_ns: WALL_NS + 20,
        clock_ms: 4100,
    };
    Draft { envelope: Envelope { aside: Some(aside), ..full_envelope() }, payload: b"dead"[..].into() }
}

fn controls() -> Vec<Control> {
    vec![
        Control::BackendAdded { name: "third".to_owned(), start: 8 },
        Control::Paused { name: "third".to_owned() },
        Control::Resumed { name: "first".to_owned() },
        Control::Discarded {
            backend: "first".to_owned(),
            records: [20..22, 23..25].into_iter().collect(),
            reason: DiscardReason::QueueCap,
            tally: Tally { records: 4, traces: 5, spans: 6, units: 7, bytes: 8 },
        },
        Control::SideSettled {
            backend: "first".to_owned(),
            letters: Letters::Numbers((6..9).into()),
            end: LettersEnd::Discarded(DiscardReason::DeadLetterAge),
            tally: Tally { records: 3, traces: 3, spans: 3, units: 3, bytes: 3 },
        },
        Control::SideSettled {
            backend: "first".to_owned(),
            letters: Letters::Segment(4),
            end: LettersEnd::Damaged,
            tally: Tally { records: 1, traces: 1, spans: 1, units: 1, bytes: 1 },
        },
        Control::Relabelled(Box::new(label(6))),
        Control::FileTaken { file: FILE, taken: drop_file(spool::Ranges::default()) },
        Control::FileGone { file: FileId { device: 66, inode: 78 } },
    ]
}

/// Two groups and an orderly end.
fn write_main(dir: &Path) {
    let mut writer = open(dir, Stream::Main).writer;
    drafts().into_iter().for_each(|draft| {
        writer.stage(draft);
    });
    controls().iter().for_each(|control| writer.stage_control(control, now(4500)));
    writer.stage_checkpoint(&state(), now(4600));
    writer.commit(now(4700), &mut State::default).expect("the commit succeeds");
    writer.close(now(4800), &state()).expect("the journal closes");
}

fn write_side(dir: &Path) {
    let mut writer = open(dir, Stream::Side).writer;
    writer.stage(aside_draft());
    writer.commit(now(10), &mut State::default).expect("the commit succeeds");
    writer.close(now(20), &State::default()).expect("the journal closes");
}

/// Offset and bytes, 32 a line; lines of zeros are left out, the last line gives the length.
fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (index, line) in bytes.chunks(32).enumerate() {
        if line.iter().any(|byte| *byte != 0) {
            write!(text, "{:06x}:", index * 32).expect("a String");
            line.chunks(4).for_each(|word| {
                text.push(' ');
                word.iter().for_each(|byte| write!(text, "{byte:02x}").expect("a String"));
            });
            text.push('\n');
        }
    }
    writeln!(text, "{:06x}", bytes.len()).expect("a String");
    text
}

fn from_hex(text: &str) -> Vec<u8> {
    let number = |hex: &str| usize::from_str_radix(hex, 16).expect("hex");
    let last = text.lines().last().expect("a last line");
    let mut bytes = vec![0; number(last)];
    for (offset, line) in text.lines().filter_map(|line| line.split_once(':')) {
        let digits: String = line.split_whitespace().collect();
        for index in 0..digits.len() / 2 {
            bytes[number(offset) + index] = u8::try_from(number(&digits[2 * index..2 * index + 2])).expect("a byte");
        }
    }
    bytes
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn assert_golden(name: &str, file: &Path) {
    let written = to_hex(&std::fs::read(file).expect("the segment can be read"));
    if std::env::var_os("SPOOL_BLESS").is_some() {
        std::fs::write(fixture(name), &written).expect("the fixture can be written");
    }
    let golden = std::fs::read_to_string(fixture(name)).expect("the fixture is there");
    for (line, (written, golden)) in written.lines().zip(golden.lines()).enumerate() {
        assert_eq!(written, golden, "{name}, line {}", line + 1);
    }
    assert_eq!(written.lines().count(), golden.lines().count(), "{name}");
}

#[test]
fn the_bytes_of_a_journal_are_those_of_the_fixtures() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (main, side) = (dir.path().join("main"), dir.path().join("side"));
    write_main(&main);
    assert_golden("main.hex", &main.join("0000000000000001.seg"));
    write_side(&side);
    assert_golden("side.hex", &side.join("0000000000000001.seg"));
}

/// Puts a fixture where a journal would be, and opens it.
fn open_fixture(dir: &Path, name: &str, stream: Stream) -> Opened {
    let text = std::fs::read_to_string(fixture(name)).expect("the fixture is there");
    std::fs::write(dir.join("0000000000000001.seg"), from_hex(&text)).expect("written");
    open(dir, stream)
}

/// A start skips the numbers up to the highest that an account knows of, and no account waits for them.
fn after_a_start(mut state: State) -> State {
    let next = state.accounts.values().map(spool::Account::seen).max().expect("accounts");
    state.accounts.values_mut().for_each(|account| account.finish(10..next));
    state
}

#[test]
fn the_fixtures_read_back_as_what_was_written() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let opened = open_fixture(dir.path(), "main.hex", Stream::Main);
    assert!(opened.recovery.clean, "{:?}", opened.recovery);
    assert_eq!(opened.state, after_a_start(state()));
    let (records, damage) = drain(&mut opened.shared.reader(1));
    assert_eq!(damage, []);
    assert_eq!(records.iter().map(|record| record.number).collect::<Vec<_>>(), [7, 8, 9]);
    for (record, draft) in records.iter().zip(drafts()) {
        assert_eq!((&record.envelope, &record.payload), (&draft.envelope, &draft.payload));
    }

    let dir = tempfile::tempdir().expect("a temporary directory");
    let opened = open_fixture(dir.path(), "side.hex", Stream::Side);
    let Step::Record(record) = opened.shared.reader(1).step().expect("readable") else { panic!("a record") };
    assert_eq!((record.envelope, record.payload), (aside_draft().envelope, aside_draft().payload));
}

#[test]
fn the_golden_segment_without_its_footer_gives_the_same_records_and_facts() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let text = std::fs::read_to_string(fixture("main.hex")).expect("the fixture is there");
    let mut bytes = from_hex(&text);
    bytes.truncate(bytes.len() - 1);
    std::fs::write(dir.path().join("0000000000000001.seg"), bytes).expect("written");
    let opened = open(dir.path(), Stream::Main);
    assert!(!opened.recovery.clean);
    assert_eq!(opened.state, after_a_start(state()));
    assert_eq!(drain(&mut opened.shared.reader(1)).0.len(), 3);
}
