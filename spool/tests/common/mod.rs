//! What the tests share.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::allow_attributes, reason = "what is unused differs from test file to test file")]

pub mod driver;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use spool::disk::{Disk, OsDisk};
use spool::{
    Committed, Damage, Draft, Durability, Envelope, Journal, KeptBack, Now, Opened, Options, Reader, Record, State,
    Step, Writer,
};

/// Segments that roll after a few records.
pub const TINY: Options = Options {
    stream: spool::Stream::Main,
    segment_bytes: 32 << 10,
    record_floor: 1,
    kept_back: KeptBack { spares: 0, ballast_bytes: 0 },
    durability: Durability::Sync,
};

/// The same, with files kept back.
pub const TINY_KEEPING: Options = Options { kept_back: KeptBack { spares: 2, ballast_bytes: 28 << 10 }, ..TINY };

pub fn now(clock_ms: u64) -> Now {
    Now { wall_ns: clock_ms * 1_000_000, clock_ms }
}

/// A payload that is known by its name, and of any length above that.
pub fn payload(name: u64, length: usize) -> Bytes {
    let mut bytes = format!("record {name} ").into_bytes();
    let mixed = name.wrapping_mul(0x5851_F42D_4C95_7F2D).to_le_bytes();
    let pattern = [&mixed[..], b" of an odd length, so that nothing repeats per block"].concat();
    let missing = length.saturating_sub(bytes.len());
    // Whole copies are fast also without optimization, and the tests make many.
    bytes.extend_from_slice(&pattern.repeat(missing.div_ceil(pattern.len()))[..missing]);
    bytes.into()
}

pub fn draft(name: u64, length: usize) -> Draft {
    let spans = u32::try_from(name % 4).expect("small");
    let envelope =
        Envelope { received_ns: name * 10, clock_ms: name, spans, traces: spans.min(1), ..Envelope::default() };
    Draft { envelope, payload: payload(name, length) }
}

pub fn try_open(disk: Arc<dyn Disk>, dir: &Path, options: Options) -> Result<Opened, spool::Error> {
    Journal::open(disk, dir, options, 0)
}

pub fn open(dir: &Path) -> Opened {
    open_with(dir, TINY)
}

pub fn open_with(dir: &Path, options: Options) -> Opened {
    try_open(Arc::new(OsDisk), dir, options).expect("the journal opens")
}

/// Commits records of these names, as one group.
pub fn commit(writer: &mut Writer, names: std::ops::Range<u64>, length: usize) -> Committed {
    for name in names {
        writer.stage(draft(name, length));
    }
    writer.commit(now(1), &mut State::default).expect("the commit succeeds")
}

/// All that a reader gives from where it is, records and damage.
pub fn drain(reader: &mut Reader) -> (Vec<Record>, Vec<Damage>) {
    let (mut records, mut damage) = (Vec::new(), Vec::new());
    loop {
        match reader.step().expect("the disk can be read") {
            Step::Record(record) => records.push(record),
            Step::Damaged(found) => damage.push(found),
            Step::End => return (records, damage),
        }
    }
}

pub fn numbers(records: &[Record]) -> Vec<u64> {
    records.iter().map(|record| record.number).collect()
}

/// Everything from `place` on, which must be undamaged.
pub fn read_all(opened: &Opened, place: u64) -> Vec<Record> {
    let (records, damage) = drain(&mut opened.shared.reader(place));
    assert_eq!(damage, [], "nothing is damaged");
    records
}

/// The segment files, ascending.
pub fn segment_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .expect("the directory is there")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    files.sort();
    files
}

/// Copies a journal's directory.
pub fn copy_dir(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).expect("a new directory");
    for entry in std::fs::read_dir(from).expect("the directory is there") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            std::fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
        }
    }
}
