//! Any sequence of operations, failures and crashes equals a simple model.
//!
//! The model is that of the crash tests: what was acknowledged, by number, and the facts folded. Segments are tiny, so
//! that everything rolls.

mod common;

use common::driver::Driver;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use spool::disk::sim::{Failure, Fault, Loss};
use spool::{Control, Error, Options};

#[derive(Debug, Clone)]
enum Op {
    /// Records of these lengths in one group, with a fact or without.
    Commit(Vec<usize>, Option<u8>),
    /// A checkpoint with every backend at this share of what was acknowledged, in percent.
    Places(u64),
    /// Reclaims up to the place of the last checkpoint.
    Reclaim,
    /// Gives up some of what a backend waits for.
    Discard(u64, u64),
    /// Makes the oldest segments dead letters.
    Relabel(usize),
    /// Gives up the oldest of these.
    Settle,
    Prepare,
    Close,
    Kill,
    PowerCut(usize, u64),
    /// The call that comes so many calls later fails.
    Fail(u64, Failure, bool),
    Heal,
}

fn op() -> impl Strategy<Value = Op> {
    let length = prop_oneof![4 => 0..600_usize, 2 => 600..9000_usize, 1 => 9000..50_000_usize];
    let failure = prop_oneof![
        Just(Failure::Io),
        Just(Failure::Full),
        Just(Failure::Short),
        Just(Failure::ShortFull),
        Just(Failure::Stop)
    ];
    prop_oneof![
        8 => (prop::collection::vec(length, 0..4), prop::option::of(0..3_u8)).prop_map(|(l, c)| Op::Commit(l, c)),
        2 => (0..=100_u64).prop_map(Op::Places),
        2 => Just(Op::Reclaim),
        2 => (0..60_u64, 1..9_u64).prop_map(|(from, count)| Op::Discard(from, count)),
        2 => (1..3_usize).prop_map(Op::Relabel),
        1 => Just(Op::Settle),
        1 => Just(Op::Prepare),
        1 => Just(Op::Close),
        1 => Just(Op::Kill),
        2 => (0..9_usize, any::<u64>()).prop_map(|(loss, seed)| Op::PowerCut(loss, seed)),
        2 => (0..12_u64, failure, any::<bool>()).prop_map(|(at, failure, lasting)| Op::Fail(at, failure, lasting)),
        1 => Just(Op::Heal),
    ]
}

struct Run {
    driver: Driver,
    /// The place that a durable checkpoint gives every backend.
    place: u64,
    /// That of the checkpoint that is being written.
    next_place: u64,
}

impl Run {
    fn apply(&mut self, op: &Op) -> Result<(), Error> {
        match op {
            Op::Fail(at, failure, lasting) => {
                self.driver.disk.fail(Fault { at: *at, failure: *failure, lasting: *lasting });
                return Ok(());
            }
            Op::Heal => {
                self.driver.disk.heal();
                return Ok(());
            }
            Op::Kill => {
                self.crash(Loss::KILL);
                return Ok(());
            }
            Op::PowerCut(loss, seed) => {
                self.crash(Loss::each(*seed)[*loss]);
                return Ok(());
            }
            _ => {}
        }
        if self.driver.writer.is_none() {
            self.driver.open()?;
        }
        match op {
            Op::Commit(lengths, fact) => {
                lengths.iter().for_each(|length| self.driver.stage(*length));
                let name = "a".to_owned();
                match fact {
                    Some(0) => self.driver.control(Control::BackendAdded { name, start: 1 }),
                    Some(1) => self.driver.control(Control::Paused { name }),
                    Some(_) => self.driver.control(Control::Resumed { name }),
                    None => {}
                }
                self.driver.commit()
            }
            Op::Places(percent) => {
                let end = self.driver.model.acked.keys().last().map_or(0, |last| last + 1);
                self.next_place = self.place.max(end * percent / 100);
                self.driver.places(self.next_place);
                self.driver.commit()?;
                self.place = self.next_place;
                Ok(())
            }
            Op::Reclaim => self.driver.reclaim(self.place),
            Op::Discard(from, count) => {
                self.driver.discard("a", *from..from + count);
                self.driver.commit()
            }
            Op::Relabel(count) => {
                self.driver.relabel("a", *count);
                self.driver.commit()
            }
            Op::Settle => self.driver.settle_label(),
            Op::Prepare => self.driver.prepare(),
            _ => self.driver.close(),
        }
    }

    /// The next operation opens what is left.
    fn crash(&mut self, loss: Loss) {
        let disk = self.driver.disk.crash(loss);
        self.driver = self.driver.on(disk);
    }

    fn step(&mut self, op: &Op) {
        match self.apply(op) {
            Ok(()) => {}
            Err(Error::Full { .. }) if self.driver.writer.is_some() => {
                self.driver.refused();
                self.driver.read_now();
            }
            // The process ends, and starts again on a disk that is well.
            Err(_) => self.crash(Loss::KILL),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        // More by PROPTEST_CASES; this many take about a second.
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(300),
        max_shrink_iters: 2000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/model.proptest-regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_sequence_of_operations_equals_the_model(
        ops in prop::collection::vec(op(), 1..40),
        keeping in any::<bool>(),
        segment_bytes in 12_000..70_000_u64,
        last in (0..9_usize, any::<u64>()),
    ) {
        let mut driver = Driver::new_keeping(keeping);
        driver.options = Options { segment_bytes, ..driver.options };
        let mut run = Run { driver, place: 0, next_place: 0 };
        ops.iter().for_each(|op| run.step(op));
        run.driver.survives_loss(Loss::each(last.1)[last.0]);
    }
}
