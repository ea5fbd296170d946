//! The way to the disk: appending and committing, beside what the same disk does with a bare `write` + `fdatasync` of
//! the same bytes in the same run. Only the ratio of the two says something about this program.
//!
//! `cargo bench` writes below `target/`, so that it measures a real disk and not a memory file system.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use spool::disk::{Disk, OsDisk};
use spool::{Draft, Envelope, Journal, Now, Options, State, Writer};

const SEGMENT_BYTES: u64 = 64 << 20;

/// A commit group as the daemon writes it: so many records of such a size.
#[derive(Debug, Clone, Copy)]
struct Group {
    record_bytes: usize,
    records: usize,
}

impl Group {
    fn bytes(self) -> u64 {
        (self.record_bytes * self.records) as u64
    }
}

fn open(dir: &Path) -> Writer {
    let options = Options { segment_bytes: SEGMENT_BYTES, ..Options::default() };
    Journal::open(Arc::new(OsDisk), dir, options, 0).expect("an empty directory").writer
}

fn commit(writer: &mut Writer, payload: &Bytes, records: usize) {
    for _ in 0..records {
        writer.stage(Draft { envelope: Envelope::default(), payload: payload.clone() });
    }
    let committed = writer.commit(Now::default(), &mut State::default).expect("there is room");
    if committed.rolled {
        // What lies before the new segment is needed by nobody; the disk must not fill up.
        writer.reclaim(committed.records.start, spool::Keep::default()).expect("segments can be removed");
    }
}

fn journal(criterion: &mut Criterion) {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let mut group = criterion.benchmark_group("commit");
    for (record_bytes, records) in
        [(1 << 10, 1), (1 << 10, 64), (16 << 10, 1), (16 << 10, 8), (16 << 10, 64), (100 << 10, 8)]
    {
        let shape = Group { record_bytes, records };
        let name = format!("{records} x {} KiB", record_bytes >> 10);
        group.throughput(Throughput::Bytes(shape.bytes()));

        let dir = tempfile::tempdir_in(&target).expect("target/ exists while benches run");
        let mut writer = open(&dir.path().join("journal"));
        let payload = Bytes::from(vec![7; record_bytes]);
        group.bench_function(BenchmarkId::new("journal", &name), |bencher| {
            bencher.iter(|| commit(&mut writer, &payload, records));
        });

        let path = dir.path().join("raw");
        let file = OsDisk.create(&path).expect("a new file");
        file.allocate(SEGMENT_BYTES).expect("there is room");
        let bytes = vec![7; record_bytes * records];
        let mut offset = 0;
        group.bench_function(BenchmarkId::new("write + fdatasync", &name), |bencher| {
            bencher.iter(|| {
                if offset + shape.bytes() > SEGMENT_BYTES {
                    // As a new segment: allocated blocks that were never written.
                    file.truncate(0).and_then(|()| file.allocate(SEGMENT_BYTES)).expect("there is room");
                    offset = 0;
                }
                file.write_at(&[&bytes], offset).and_then(|()| file.sync_data()).expect("the disk works");
                offset += shape.bytes().next_multiple_of(4096);
            });
        });
    }
}

fn validate(criterion: &mut Criterion) {
    let sample = include_bytes!("../tests/data/llm.otlp.pb");
    let request = sample.repeat((16 << 10) / sample.len());
    let mut group = criterion.benchmark_group("validate");
    group.throughput(Throughput::Bytes(request.len() as u64));
    group.bench_function("16 KiB", |bencher| bencher.iter(|| tracespool::otlp::validate(black_box(&request))));
}

criterion_group!(benches, journal, validate);
criterion_main!(benches);
