//! A start does not take longer with a larger backlog: 10 MB and 10 GB of it side by side, after a stop in order and
//! after a kill.
//!
//! The journals are made below `target/` and removed afterwards. `TRACESPOOL_BENCH_BACKLOG` is the size of the large one
//! in bytes; it needs that much room on the disk.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use spool::disk::OsDisk;
use spool::{Draft, Envelope, Journal, Now, Opened, Options, State, Writer};

const SMALL: u64 = 10_000_000;
const LARGE: u64 = 10_000_000_000;
/// Starts that are measured of each kind; the median counts.
const STARTS: usize = 21;

fn open(dir: &Path) -> Opened {
    Journal::open(Arc::new(OsDisk), dir, Options::default(), 0).expect("it opens")
}

fn commit(writer: &mut Writer, payload: &Bytes, records: usize) {
    for _ in 0..records {
        writer.stage(Draft { envelope: Envelope::default(), payload: payload.clone() });
    }
    writer.commit(Now::default(), &mut State::default).expect("there is room");
}

/// A journal with so many bytes of records.
fn fill(dir: &Path, bytes: u64) {
    let began = Instant::now();
    let mut writer = open(dir).writer;
    // Large records in large groups: as fast as the disk is.
    let payload = Bytes::from(vec![7; 1 << 20]);
    let mut written = 0;
    while written < bytes {
        commit(&mut writer, &payload, 8);
        written += 8 << 20;
    }
    writer.close(Now::default(), &State::default()).expect("the disk works");
    println!("made {:.2} GB in {:.1} s", mega(bytes) / 1e3, began.elapsed().as_secs_f64());
}

/// How the life before a start ended.
#[derive(Debug, Clone, Copy)]
enum End {
    InOrder,
    Kill,
}

/// One life: what its start took.
fn start(dir: &Path, end: End) -> Duration {
    let began = Instant::now();
    let opened = open(dir);
    let took = began.elapsed();
    let mut writer = opened.writer;
    // Something is in the last segment, as after a real life.
    for _ in 0..10 {
        commit(&mut writer, &Bytes::from(vec![7; 16 << 10]), 8);
    }
    match end {
        End::InOrder => writer.close(Now::default(), &State::default()).expect("the disk works"),
        End::Kill => drop(writer),
    }
    took
}

fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn main() {
    // Only `cargo bench` says this; a test run builds the benches and need not wait for them.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let large = std::env::var("TRACESPOOL_BENCH_BACKLOG")
        .map_or(LARGE, |bytes| bytes.parse().expect("TRACESPOOL_BENCH_BACKLOG is a number of bytes"));
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let dirs = [SMALL, large].map(|bytes| {
        let dir = tempfile::tempdir_in(&target).expect("target/ exists while benches run");
        fill(dir.path(), bytes);
        (bytes, dir)
    });
    for end in [End::InOrder, End::Kill] {
        // In turns, so that whatever else the machine does meets both. The first of each only sets the scene.
        let mut times = [const { Vec::new() }; 2];
        for turn in 0..=STARTS {
            for (times, (_, dir)) in times.iter_mut().zip(&dirs) {
                let took = start(dir.path(), end);
                if turn > 0 {
                    times.push(took);
                }
            }
        }
        let medians = times.map(|mut times| {
            times.sort();
            times[STARTS / 2].as_secs_f64() * 1e3
        });
        for ((bytes, dir), median) in dirs.iter().zip(medians) {
            let segments = std::fs::read_dir(dir.path()).expect("listed").count();
            println!("after {end:?}: {median:.2} ms to open {:.0} MB, by now {segments} segments", mega(*bytes));
        }
        println!("after {end:?}: the large one takes {:.2} times as long", medians[1] / medians[0]);
    }
}
