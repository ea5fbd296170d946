//! The way to the disk and back, beside what the same machine does without this program, in turns in the same run.
//! Only the ratio of the two says something: each is printed behind criterion's own figures.
//!
//! `cargo bench` writes below `target/`, so that it measures a real disk and not a memory file system.

use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use spool::disk::{Disk, DiskFile, OsDisk};
use spool::{Draft, Envelope, Journal, Now, Options, State, Step, Writer};

const SEGMENT_BYTES: u64 = 64 << 20;
/// What is read in a row; fits the page cache of any machine that builds this.
const READ_BYTES: u64 = 256 << 20;

fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target")
}

fn open(dir: &Path) -> Writer {
    let options = Options { segment_bytes: SEGMENT_BYTES, ..Options::default() };
    Journal::open(Arc::new(OsDisk), dir, options, 0).expect("an empty directory").writer
}

fn commit(writer: &mut Writer, payload: &Bytes, records: usize) -> spool::Committed {
    for _ in 0..records {
        writer.stage(Draft { envelope: Envelope::default(), payload: payload.clone() });
    }
    writer.commit(Now::default(), &mut State::default).expect("there is room")
}

/// The same bytes as a commit group, without anything around them.
struct Raw {
    file: Box<dyn DiskFile>,
    offset: u64,
}

impl Raw {
    fn create(path: &Path) -> Self {
        let file = OsDisk.create(path).expect("a new file");
        file.allocate(SEGMENT_BYTES).expect("there is room");
        Self { file, offset: 0 }
    }

    fn write(&mut self, bytes: &[u8]) {
        let length = bytes.len() as u64;
        if self.offset + length > SEGMENT_BYTES {
            // As a new segment: allocated blocks that were never written.
            self.file.truncate(0).and_then(|()| self.file.allocate(SEGMENT_BYTES)).expect("there is room");
            self.offset = 0;
        }
        self.file.write_at(&[bytes], self.offset).and_then(|()| self.file.sync_data()).expect("the disk works");
        self.offset += length.next_multiple_of(4096);
    }
}

/// What both sides took, turn by turn.
#[derive(Default)]
struct Turns {
    ours: Vec<Duration>,
    bare: Vec<Duration>,
}

impl Turns {
    /// Does both in turns, so that whatever else the machine does meets both; returns what ours took.
    fn take(&mut self, turns: u64, mut ours: impl FnMut(), mut bare: impl FnMut()) -> Duration {
        let timed = |work: &mut dyn FnMut()| {
            let began = Instant::now();
            work();
            began.elapsed()
        };
        let before = self.ours.len();
        for _ in 0..turns {
            self.ours.push(timed(&mut ours));
            self.bare.push(timed(&mut bare));
        }
        self.ours[before..].iter().sum()
    }

    fn report(&mut self, what: &str, bytes: u64) {
        let median = |times: &mut Vec<Duration>| {
            times.sort();
            times.get(times.len() / 2).map_or(f64::NAN, Duration::as_secs_f64)
        };
        let total = |times: &[Duration]| times.iter().sum::<Duration>().as_secs_f64();
        let all = total(&self.bare) / total(&self.ours);
        let (ours, bare) = (median(&mut self.ours), median(&mut self.bare));
        let megabytes = bytes as f64 / 1e6;
        println!(
            "{what}: {:.1} MB/s beside {:.1} MB/s bare: {:.0} % by medians, {:.0} % by totals of {} turns",
            megabytes / ours,
            megabytes / bare,
            100.0 * bare / ours,
            100.0 * all,
            self.ours.len()
        );
    }
}

/// Producers that wait for their acknowledgement put one record each into a group.
fn commits(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("commit");
    for record_bytes in [1 << 10, 16 << 10, 100 << 10] {
        for producers in [1, 8, 64] {
            let name = format!("{producers} x {} KiB", record_bytes >> 10);
            let bytes = vec![7; record_bytes * producers];
            group.throughput(Throughput::Bytes(bytes.len() as u64));
            let dir = tempfile::tempdir_in(target()).expect("target/ exists while benches run");
            let mut writer = open(&dir.path().join("journal"));
            let mut raw = Raw::create(&dir.path().join("raw"));
            let payload = Bytes::from(vec![7; record_bytes]);
            let mut turns = Turns::default();
            group.bench_function(BenchmarkId::new("journal", &name), |bencher| {
                bencher.iter_custom(|count| {
                    let ours = || {
                        let committed = commit(&mut writer, &payload, producers);
                        if committed.rolled {
                            // What lies before the new segment is needed by nobody; the disk must not fill up.
                            let reclaimed = writer.reclaim(committed.records.start, spool::Keep::default());
                            reclaimed.expect("segments can be removed");
                        }
                    };
                    turns.take(count, ours, || raw.write(&bytes))
                });
            });
            turns.report(&format!("commit {name}"), bytes.len() as u64);
        }
    }
}

/// A journal in the page cache, read from its beginning, beside its files read and checksummed in a row.
fn reads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("read");
    group.sample_size(10).throughput(Throughput::Bytes(READ_BYTES));
    for record_bytes in [1 << 10, 16 << 10, 100 << 10] {
        let dir = tempfile::tempdir_in(target()).expect("target/ exists while benches run");
        let mut writer = open(dir.path());
        let payload = Bytes::from(vec![7; record_bytes]);
        while writer.shared().file_bytes() < READ_BYTES {
            commit(&mut writer, &payload, (1 << 20) / record_bytes);
        }
        let shared = writer.shared().clone();
        writer.close(Now::default(), &State::default()).expect("the disk works");
        let files: Vec<_> =
            std::fs::read_dir(dir.path()).expect("listed").map(|entry| entry.expect("listed")).collect();
        let mut turns = Turns::default();
        let mut chunk = vec![0; 1 << 20];
        group.bench_function(BenchmarkId::new("journal", format!("{} KiB", record_bytes >> 10)), |bencher| {
            bencher.iter_custom(|count| {
                let ours = || {
                    let mut reader = shared.reader(1);
                    while let Step::Record(record) = reader.step().expect("the disk works") {
                        black_box(record);
                    }
                };
                let bare = || {
                    for file in &files {
                        let mut file = File::open(file.path()).expect("opened");
                        let mut checksum = 0;
                        loop {
                            let count = file.read(&mut chunk).expect("read");
                            if count == 0 {
                                break;
                            }
                            checksum = crc32c::crc32c_append(checksum, &chunk[..count]);
                        }
                        black_box(checksum);
                    }
                };
                turns.take(count, ours, bare)
            });
        });
        turns.report(&format!("read {} KiB records", record_bytes >> 10), READ_BYTES);
    }
}

fn validate(criterion: &mut Criterion) {
    let sample = include_bytes!("../tests/data/llm.otlp.pb");
    let request = sample.repeat((16 << 10) / sample.len());
    let mut group = criterion.benchmark_group("validate");
    group.throughput(Throughput::Bytes(request.len() as u64));
    group.bench_function("16 KiB", |bencher| bencher.iter(|| tracespool::otlp::validate(black_box(&request))));
}

criterion_group!(benches, commits, reads, validate);
criterion_main!(benches);
