//! What the targets share: journals made of arbitrary bytes, and what must be true of them.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use spool::disk::Disk;
use spool::disk::sim::{Loss, SimDisk};
use spool::{Draft, Envelope, Journal, Now, Opened, Options, Reader, State, Step};

/// Where the journal is.
pub const DIR: &str = "/journal";
/// Tiny segments, so that everything rolls.
pub fn options() -> Options {
    Options { segment_bytes: 32 << 10, ..Options::default() }
}

const BLOCK: usize = 4096;
const GROUP_HEAD: usize = 160;
const FRAME_HEAD: usize = 64;
/// From here on numbers are taken for used up.
const NUMBERS_END: u64 = 1 << 61;

/// A directory of these files, all of it on disk.
pub fn disk(files: &[(String, Vec<u8>)]) -> SimDisk {
    let disk = SimDisk::new();
    let dir = Path::new(DIR);
    disk.create_dir(dir).expect("a healthy disk");
    for (name, bytes) in files {
        let file = disk.create(&dir.join(name)).expect("names differ");
        file.write_at(&[bytes], 0).and_then(|()| file.sync_all()).expect("a healthy disk");
    }
    disk.sync_dir(dir).and_then(|()| disk.sync_dir(Path::new("/"))).expect("a healthy disk");
    disk
}

/// The files of a journal's directory.
pub fn files(disk: &SimDisk) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(DIR);
    let mut names = disk.list(dir).expect("a healthy disk");
    names.sort();
    let read = |name: String| {
        let file = disk.open(&dir.join(&name), false).ok()?;
        let mut bytes = vec![0; usize::try_from(file.length().ok()?).ok()?];
        file.read_at(&mut bytes, 0).ok()?;
        Some((name, bytes))
    };
    names.into_iter().filter_map(read).collect()
}

/// A small journal as the writer makes it: three sealed segments with records, facts and checkpoints, and one that
/// was being written when the process was killed.
pub fn sample() -> Vec<(String, Vec<u8>)> {
    let disk = SimDisk::new();
    for life in 0..2_u8 {
        let Opened { mut writer, mut state, .. } =
            Journal::open(Arc::new(disk.clone()), Path::new(DIR), options(), 0).expect("a healthy disk");
        state.accounts.entry("a".to_owned()).or_insert_with(|| spool::Account::from_record(1));
        for length in [10, 3000, 0, 9000, 12_000, 100] {
            let now = Now { wall_ns: 1000, clock_ms: 10 };
            writer.stage(draft(life, length));
            writer.stage(draft(life, 20));
            writer.stage_control(&spool::Control::Paused { name: "a".to_owned() }, now);
            writer.stage_checkpoint(&state, now);
            writer.commit(now, &mut || state.clone()).expect("a healthy disk");
        }
    }
    files(&disk)
}

fn draft(fill: u8, length: usize) -> Draft {
    let envelope = Envelope { spans: 1, traces: 1, experiment: Some("7".to_owned()), ..Envelope::default() };
    Draft { envelope, payload: vec![fill; length].into() }
}

/// Makes every checksum in a segment file right again, so that what was changed is taken at its word. With `adopt`,
/// groups from elsewhere become this file's own.
pub fn reseal(file: &mut [u8], adopt: bool) {
    if file.len() < BLOCK {
        return;
    }
    file[..8].copy_from_slice(b"TRSPOOL\n");
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&file[..12]), &file[16..BLOCK]);
    file[12..16].copy_from_slice(&checksum.to_le_bytes());
    let (segment, epoch) = (number(file, 16), number(file, 24));
    for at in (BLOCK..file.len()).step_by(BLOCK) {
        if file[at..].starts_with(b"TSGR") && file.len() - at >= GROUP_HEAD {
            if adopt {
                file[at + 112..at + 120].copy_from_slice(&segment.to_le_bytes());
                file[at + 120..at + 128].copy_from_slice(&epoch.to_le_bytes());
            }
            let end = at.saturating_add(GROUP_HEAD).saturating_add(length(file, at + 32)).min(file.len());
            reseal_frames(&mut file[..end], at + GROUP_HEAD, segment, epoch);
            reseal_at(file, at, at + 4, at + 8..at + GROUP_HEAD, segment, epoch);
        }
    }
    let trailer = file.len() - 16;
    if file[trailer + 8..].starts_with(b"TSFE") {
        let footer = file.len().saturating_sub(length(file, trailer));
        if file[footer..].starts_with(b"TSFT") && footer + 192 <= trailer {
            reseal_at(file, footer, footer + 4, footer + 8..trailer, segment, epoch);
        }
        let checksum = crc32c::crc32c(&file[trailer..trailer + 12]);
        file[trailer + 12..].copy_from_slice(&checksum.to_le_bytes());
    }
}

fn reseal_frames(file: &mut [u8], mut at: usize, segment: u64, epoch: u64) {
    while file.len().saturating_sub(at) >= FRAME_HEAD {
        let envelope = u32::from_le_bytes(file[at + 12..at + 16].try_into().expect("four bytes"));
        let envelope_end = (at + FRAME_HEAD).saturating_add(envelope as usize);
        let end = envelope_end.saturating_add(length(file, at + 16));
        if end > file.len() {
            return;
        }
        reseal_at(file, at, at + 4, envelope_end..end, segment, epoch);
        let head = crc32c::crc32c_append(stamp(segment, epoch, at), &file[at + 4..at + 56]);
        let head = crc32c::crc32c_append(head, &file[at + FRAME_HEAD..envelope_end]);
        file[at..at + 4].copy_from_slice(&head.to_le_bytes());
        at = end.next_multiple_of(8);
    }
}

fn reseal_at(file: &mut [u8], at: usize, to: usize, over: std::ops::Range<usize>, segment: u64, epoch: u64) {
    let checksum = crc32c::crc32c_append(stamp(segment, epoch, at), &file[over]);
    file[to..to + 4].copy_from_slice(&checksum.to_le_bytes());
}

fn stamp(segment: u64, epoch: u64, at: usize) -> u32 {
    crc32c::crc32c(&[segment, epoch, at as u64].map(u64::to_le_bytes).concat())
}

fn number(file: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(file[at..at + 8].try_into().expect("eight bytes"))
}

fn length(file: &[u8], at: usize) -> usize {
    usize::try_from(number(file, at)).unwrap_or(usize::MAX)
}

/// Looks at the journal, opens it, writes to it, and opens it again after each way to end: it never panics, what was
/// found once is found again, and no number is given twice.
pub fn check(disk: &SimDisk) {
    let open = |disk: &SimDisk| Journal::open(Arc::new(disk.clone()), Path::new(DIR), options(), 0);
    if let Ok(inspected) = Journal::inspect(Arc::new(disk.clone()), Path::new(DIR), options()) {
        drain(&mut inspected.shared.reader(0));
    }
    // A newer format is not touched.
    let verbose = std::env::var_os("FUZZ_SHOW").is_some();
    if verbose {
        eprintln!("given:\n{}", show(disk));
    }
    let Ok(opened) = open(disk) else { return };
    if verbose {
        eprintln!("opened: {:?}\n{}", opened.recovery, show(disk));
    }
    // Almost no number is left that the format allows: see FORMAT.md, Limits.
    if opened.shared.next_record() > NUMBERS_END {
        return;
    }
    let mut expected = drain(&mut opened.shared.reader(0));
    let mut writer = opened.writer;
    for round in 0..3_u8 {
        let number = writer.stage(draft(round, 100));
        assert!(expected.last().is_none_or(|(last, _)| *last < number), "{number} was given out before");
        let Ok(committed) = writer.commit(Now::default(), &mut || opened.state.clone()) else { return };
        assert_eq!(committed.records, number..number + 1);
        expected.push((number, vec![round; 100].into()));
        if verbose {
            eprintln!("committed {number} in round {round}:\n{}", show(disk));
        }
        let next = match round {
            0 => {
                drop(writer);
                open(disk)
            }
            1 => {
                drop(writer);
                open(&disk.crash(Loss::KILL))
            }
            _ => {
                writer.close(Now::default(), &State::default()).expect("a healthy disk");
                open(disk)
            }
        };
        let next = next.expect("a journal that was opened opens again");
        assert!(next.recovery.torn.is_none(), "what was synced is not torn: {:?}", next.recovery);
        if verbose {
            eprintln!("opened again:\n{}{:#?}", show(disk), next.shared.segments());
        }
        let found = drain(&mut next.shared.reader(0));
        if found != expected {
            let numbers = |records: &[(u64, Bytes)]| {
                records.iter().map(|(number, payload)| format!("{number}:{}", payload.len())).collect::<Vec<_>>()
            };
            panic!(
                "round {round}: found {:?}, expected {:?}; {:?}",
                numbers(&found),
                numbers(&expected),
                next.recovery
            );
        }
        if round == 1 {
            // The other disk is thrown away.
            writer = open(disk).expect("opens again").writer;
            continue;
        }
        writer = next.writer;
    }
}

/// All records from there on, with their numbers.
fn drain(reader: &mut Reader) -> Vec<(u64, Bytes)> {
    let mut records = Vec::new();
    loop {
        match reader.step().expect("a healthy disk") {
            Step::Record(record) => {
                let last: Option<&(u64, Bytes)> = records.last();
                assert!(last.is_none_or(|(last, _)| *last < record.number), "numbers rise");
                records.push((record.number, record.payload));
            }
            Step::Damaged(damage) => {
                if std::env::var_os("FUZZ_SHOW").is_some() {
                    eprintln!("{damage:?}, place {}", reader.place());
                }
            }
            Step::End => return records,
        }
    }
}

/// What a journal's directory looks like, for who looks at a finding.
pub fn show(disk: &SimDisk) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    for (name, file) in files(disk) {
        let _ = write!(out, "{name}: {} bytes", file.len());
        if file.len() >= BLOCK {
            let at = |at| number(&file, at);
            let _ = write!(out, ", segment {} epoch {} first {} sequence {}", at(16), at(24), at(32), at(40));
        }
        for at in (BLOCK..file.len().saturating_sub(GROUP_HEAD)).step_by(BLOCK) {
            if file[at..].starts_with(b"TSGR") {
                let _ = write!(
                    out,
                    "; {at:x}: sequence {} first {} next {} of {}/{}",
                    number(&file, at + 8),
                    number(&file, at + 16),
                    number(&file, at + 24),
                    number(&file, at + 112),
                    number(&file, at + 120)
                );
            }
        }
        let _ = writeln!(out);
    }
    out
}
