//! How far a drop file was taken, after a start that found the last group whole, torn, or not at all.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{drain, now};
use spool::disk::OsDisk;
use spool::{
    Control, Door, Draft, DropFile, Envelope, FileId, Journal, Kind, Opened, Options, SourceRange, State, Writer,
};

const FILE: FileId = FileId { device: 66, inode: 77 };

fn open(dir: &Path) -> Opened {
    let options = Options { segment_bytes: 1 << 20, ..Options::default() };
    Journal::open(Arc::new(OsDisk), dir, options, 1_700_000_000_000_000_000).expect("the journal opens")
}

fn taken(behind: u64) -> DropFile {
    DropFile { behind, length: 1000, modified_ns: 5, born_ns: 4, checksum: behind + 1, ..DropFile::default() }
}

/// Stages what lies there in the file, with a payload by which its record is found again.
fn stage(writer: &mut Writer, start: u64, end: u64) {
    let source = Some(SourceRange { device: FILE.device, inode: FILE.inode, start, end });
    let envelope = Envelope { kind: Kind::OtlpTraces, door: Door::Directory, source, ..Envelope::default() };
    writer.stage(Draft { envelope, payload: format!("the payload from {start} on").into() });
}

fn commit(writer: &mut Writer, parts: &[(u64, u64)]) {
    parts.iter().for_each(|(start, end)| stage(writer, *start, *end));
    let behind = parts.last().expect("a part").1;
    writer.stage_control(&Control::FileTaken { file: FILE, taken: taken(behind) }, now(1));
    writer.commit(now(1), &mut State::default).expect("the commit succeeds");
}

/// Flips a byte of every place in the last segment where `needle` stands.
fn damage(dir: &Path, needle: &[u8]) {
    let names = std::fs::read_dir(dir).expect("readable").map(|entry| entry.expect("readable").path());
    let path = names.filter(|path| path.extension().is_some_and(|it| it == "seg")).max().expect("a segment");
    let mut bytes = std::fs::read(&path).expect("readable");
    let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(needle)).collect();
    assert!(!places.is_empty());
    places.iter().for_each(|at| bytes[*at] ^= 1);
    std::fs::write(path, bytes).expect("writable");
}

#[test]
fn what_a_whole_last_group_says_counts() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut writer = open(dir.path()).writer;
    commit(&mut writer, &[(0, 100)]);
    commit(&mut writer, &[(100, 200), (200, 300)]);
    drop(writer);
    let opened = open(dir.path());
    assert_eq!(opened.state.drop_files[&FILE], taken(300));
    assert_eq!(drain(&mut opened.shared.reader(1)).0.len(), 3);
}

#[test]
fn of_a_torn_last_group_only_what_is_there_counts() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut writer = open(dir.path()).writer;
    commit(&mut writer, &[(0, 100)]);
    commit(&mut writer, &[(100, 200), (200, 300), (300, 400)]);
    drop(writer);
    damage(dir.path(), b"the payload from 200 on");
    for start in 0..2 {
        let opened = open(dir.path());
        assert_eq!(opened.recovery.torn.is_some(), start == 0);
        let file = &opened.state.drop_files[&FILE];
        assert_eq!((file.behind, file.checksum), (100, 101), "the record from 200 on is lost");
        assert_eq!(file.beyond.iter().collect::<Vec<_>>(), [100..200, 300..400], "and these are there");
        assert_eq!(drain(&mut opened.shared.reader(1)).0.len(), 3);
    }
}

#[test]
fn records_of_a_torn_group_count_though_its_facts_are_lost() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut writer = open(dir.path()).writer;
    commit(&mut writer, &[(0, 100), (100, 200)]);
    drop(writer);
    // The control's numbers, as they lie on the disk.
    let numbers: Vec<u8> = [FILE.device, FILE.inode, 200].iter().flat_map(|number| number.to_le_bytes()).collect();
    damage(dir.path(), &numbers);
    let opened = open(dir.path());
    let file = &opened.state.drop_files[&FILE];
    assert_eq!((file.behind, file.beyond.first()), (0, Some(0..200)));
}

#[test]
fn a_checkpoint_in_the_same_group_does_not_undo_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut writer = open(dir.path()).writer;
    stage(&mut writer, 0, 100);
    writer.stage_control(&Control::FileTaken { file: FILE, taken: taken(100) }, now(1));
    writer.stage_checkpoint(&State::default(), now(1));
    writer.commit(now(1), &mut State::default).expect("the commit succeeds");
    drop(writer);
    let mut opened = open(dir.path());
    assert_eq!(opened.state.drop_files[&FILE], taken(100));
    opened.writer.stage_control(&Control::FileGone { file: FILE }, now(2));
    opened.writer.commit(now(2), &mut State::default).expect("the commit succeeds");
    drop(opened);
    assert!(open(dir.path()).state.drop_files.is_empty());
}
