//! Every point at which a workload can be cut off, times every way to lose what was not synced.
//!
//! Goal: nothing acknowledged is lost, nothing is invented, and the journal goes on. Method: a first run counts the calls
//! that change the disk; then the workload is run once for each of them, up to it; the disk is crashed in each way; a
//! start is checked against what was promised, and cut off itself at each of its calls.

mod common;

use common::driver::{Driver, WORKLOADS, Workload};
use spool::disk::sim::{Failure, Fate, Fault, Loss, SimDisk};

fn stop_at(at: u64) -> Fault {
    Fault { at, failure: Failure::Stop, lasting: true }
}

fn calls_of(workload: Workload) -> u64 {
    let mut driver = Driver::new(SimDisk::new());
    workload(&mut driver).expect("the workload runs on a healthy disk");
    driver.disk.calls()
}

/// Runs until call `at`, which is the last that has an effect.
fn cut_off(workload: Workload, at: u64) -> Driver {
    let mut driver = Driver::new(SimDisk::new());
    driver.disk.fail(stop_at(at));
    let _ = workload(&mut driver);
    driver
}

fn each_crash(check: impl Fn(&str, u64, &Driver, Loss)) {
    for (name, workload) in WORKLOADS {
        each_crash_of(name, workload, &check);
    }
}

fn each_crash_of(name: &str, workload: Workload, check: impl Fn(&str, u64, &Driver, Loss)) {
    for at in 0..=calls_of(workload) {
        let driver = cut_off(workload, at);
        for loss in Loss::each(at) {
            check(name, at, &driver, loss);
        }
    }
}

/// Names the case when a check in it panics.
struct Case<'a>(&'a str, u64, Loss, &'a str);

impl Drop for Case<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in {} cut off at call {}, {:?}, {}", self.0, self.1, self.2, self.3);
        }
    }
}

#[test]
fn a_crash_at_any_call_with_any_loss_loses_nothing_acknowledged() {
    each_crash(|name, at, driver, loss| {
        let _case = Case(name, at, loss, "one crash");
        driver.survives_loss(loss);
    });
}

#[test]
fn nor_where_a_segment_is_kept_as_a_copy() {
    let name = "limits without links";
    each_crash_of(name, common::driver::limits_without_links, |name, at, driver, loss| {
        let _case = Case(name, at, loss, "one crash");
        driver.survives_loss(loss);
    });
}

#[test]
fn a_second_crash_within_the_recovery_loses_nothing_either() {
    const GONE: Loss = Loss::power(Fate::Lost, Fate::Lost, Fate::Lost, 0);
    each_crash(|name, at, driver, first| {
        // Every other call of the start, the rest after the next first crash, with the ways to end that differ most.
        let disk = driver.disk.crash(first);
        let mut whole = driver.on(disk.crash(Loss::KILL));
        whole.open().expect("a healthy disk opens");
        for second_at in (at % 2..whole.disk.calls()).step_by(2) {
            let mut cut = driver.on(disk.crash(Loss::KILL));
            cut.disk.fail(stop_at(second_at));
            cut.open().expect_err("the start is cut off");
            let some = Loss::power(Fate::Some(512), Fate::Some(512), Fate::Some(512), at * 1000 + second_at);
            for second in [GONE, some, Loss::KILL] {
                let _case = Case(name, at, first, "then again");
                cut.survives_loss(second);
            }
        }
    });
}

#[test]
fn killed_then_recovered_then_a_power_cut_loses_nothing() {
    each_crash(|name, at, driver, loss| {
        if !loss.kill {
            return;
        }
        let _case = Case(name, at, loss, "killed, recovered, cut");
        let mut recovered = driver.on(driver.disk.crash(loss));
        recovered.open().expect("a healthy disk opens");
        for loss in Loss::each(at) {
            recovered.survives_loss(loss);
        }
        recovered.append(50).expect("it takes records");
        for loss in Loss::each(at) {
            recovered.survives_loss(loss);
        }
    });
}

#[test]
fn the_same_run_makes_the_same_calls() {
    let trace = || {
        let mut driver = Driver::new(SimDisk::new());
        driver.disk.start_trace();
        for (_, workload) in WORKLOADS {
            workload(&mut driver).expect("the workload runs on a healthy disk");
        }
        let mut after = driver.on(driver.disk.crash(Loss::power(Fate::Some(512), Fate::Some(512), Fate::Some(512), 5)));
        after.survives();
        after.disk.trace()
    };
    let first = trace();
    assert!(first.lines().count() > 100);
    assert_eq!(first, trace());
}

#[test]
fn an_orderly_end_is_still_orderly_after_a_power_cut() {
    let mut driver = Driver::new(SimDisk::new());
    common::driver::appends(&mut driver).expect("the workload runs on a healthy disk");
    for loss in Loss::each(1) {
        let disk = std::sync::Arc::new(driver.disk.crash(loss));
        let opened = common::try_open(disk, std::path::Path::new(common::driver::DIR), common::TINY).expect("it opens");
        assert!(opened.recovery.clean, "{loss:?}: {:?}", opened.recovery);
    }
}

#[test]
fn without_syncs_a_kill_loses_nothing_and_a_power_cut_invents_nothing() {
    for (name, workload) in WORKLOADS {
        let start = || {
            let mut driver = Driver::new(SimDisk::new());
            driver.relaxed = true;
            driver
        };
        let mut whole = start();
        workload(&mut whole).expect("the workload runs on a healthy disk");
        for at in 0..=whole.disk.calls() {
            let mut driver = start();
            driver.disk.fail(stop_at(at));
            let _ = workload(&mut driver);
            for loss in Loss::each(at) {
                let _case = Case(name, at, loss, "without syncs");
                let mut after = driver.on(driver.disk.crash(loss));
                after.may_lose = !loss.kill;
                after.open().expect("a healthy disk opens");
                after.append(100).expect("it takes records");
                after.writer().sync().expect("a healthy disk syncs");
                after.survives_loss(Loss::power(Fate::Lost, Fate::Lost, Fate::Lost, 0));
            }
        }
    }
}
