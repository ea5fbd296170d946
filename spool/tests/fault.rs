//! Every call of a workload fails in every way, once and for good.
//!
//! Goal: a failed sync ends all acknowledgements of that writer, a full disk only refuses, and what was acknowledged
//! before is never lost. Method: a daemon in small runs the workload, refuses what meets a full disk, and starts again
//! after any other failure, on the same page cache; the power is cut before and after that.

mod common;

use common::driver::Driver;
use spool::Error;
use spool::disk::sim::{Failure, Fate, Fault, Loss, SimDisk};

const GONE: Loss = Loss::power(Fate::Lost, Fate::Lost, Fate::Lost, 0);
const FAILURES: [Failure; 4] = [Failure::Io, Failure::Full, Failure::Short, Failure::ShortFull];

/// What the daemon in small does in turn.
#[derive(Debug, Clone, Copy)]
enum Job {
    Append(usize),
    Pause,
    Places(u64),
    Reclaim(u64),
    Discard(u64),
    Relabel,
    Settle,
    Prepare,
    Close,
}

const JOBS: [Job; 25] = {
    use Job::{Append, Close, Discard, Pause, Places, Prepare, Reclaim, Relabel, Settle};
    [
        Append(100),
        Pause,
        Append(6000),
        Append(9000),
        Append(5000),
        Append(12_000),
        Places(3),
        Reclaim(3),
        Append(40_000),
        Append(10),
        Close,
        Append(3000),
        Append(9000),
        Places(7),
        Reclaim(7),
        Prepare,
        Append(14_000),
        Append(9000),
        Append(14_000),
        Relabel,
        Append(20_000),
        Relabel,
        Settle,
        Discard(9),
        Append(10),
    ]
};

fn run(driver: &mut Driver, job: Job) -> Result<(), Error> {
    if driver.writer.is_none() {
        driver.open()?;
    }
    match job {
        Job::Append(length) => driver.append(length),
        Job::Pause => {
            driver.control(spool::Control::Paused { name: "a".into() });
            driver.commit()
        }
        Job::Places(place) => {
            driver.places(place);
            driver.commit()
        }
        Job::Reclaim(lowest) => driver.reclaim(lowest),
        Job::Discard(behind) => {
            driver.discard("a", 1..behind);
            driver.commit()
        }
        Job::Relabel => {
            driver.relabel("a", 1);
            driver.commit()
        }
        Job::Settle => driver.settle_label(),
        Job::Prepare => driver.prepare(),
        Job::Close => driver.close(),
    }
}

/// What a failure meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    Full,
    Failed,
}

/// Runs all jobs. After `Full` the writer goes on; after anything else it must take nothing more, and the process is
/// started again. `heals` says whether the fault is taken away at its first effect.
fn daemon(driver: &mut Driver, heals: bool) -> Vec<Met> {
    let mut met = Vec::new();
    for job in JOBS {
        let Err(error) = run(driver, job) else { continue };
        match error {
            Error::Full { .. } => {
                met.push(Met::Full);
                driver.refused();
                if driver.writer.is_some() {
                    driver.read_now();
                }
            }
            _ => {
                met.push(Met::Failed);
                // These write no record and no fact.
                let harmless = matches!(job, Job::Reclaim(_) | Job::Prepare);
                if driver.writer.is_some() && !harmless {
                    // Before the disk is well again and after, whatever comes.
                    for _ in 0..2 {
                        let again = driver.writer().commit(common::now(1), &mut spool::State::default);
                        assert!(matches!(again, Err(Error::Poisoned)), "{job:?}: {again:?}");
                        driver.disk.heal();
                    }
                }
                // The power may be cut now, or the process started again on what the cache shows.
                for loss in Loss::each(3).into_iter().step_by(2) {
                    driver.survives_loss(loss);
                }
                driver.writer = None;
            }
        }
        if heals {
            driver.disk.heal();
        }
    }
    met
}

fn calls_of_all_jobs(keeping: bool) -> u64 {
    let mut driver = Driver::new_keeping(keeping);
    assert_eq!(daemon(&mut driver, true), []);
    driver.disk.calls()
}

fn each_fault(mut check: impl FnMut(&mut Driver, Fault)) {
    for keeping in [false, true] {
        for at in 0..calls_of_all_jobs(keeping) {
            for failure in FAILURES {
                for lasting in [false, true] {
                    let fault = Fault { at, failure, lasting };
                    let mut driver = Driver::new_keeping(keeping);
                    driver.disk.fail(fault);
                    check(&mut driver, fault);
                }
            }
        }
    }
}

struct Case(Fault);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("with {:?}", self.0);
        }
    }
}

#[test]
fn whatever_call_fails_nothing_acknowledged_is_lost() {
    each_fault(|driver, fault| {
        let _case = Case(fault);
        daemon(driver, !fault.lasting);
        driver.disk.heal();
        if driver.writer.is_some() {
            driver.read_now();
        }
        for loss in [Loss::KILL, GONE] {
            driver.survives_loss(loss);
        }
    });
}

#[test]
fn a_full_disk_only_refuses_and_heals() {
    each_fault(|driver, fault| {
        if !matches!(fault.failure, Failure::Full | Failure::ShortFull) || !fault.lasting {
            return;
        }
        let _case = Case(fault);
        for job in JOBS {
            match run(driver, job) {
                Ok(()) => {}
                Err(Error::Full { .. }) => driver.refused(),
                // Syncs and removals do not lack room, so this is the first call's own failure.
                Err(_) => return,
            }
        }
        driver.disk.heal();
        for length in [10, 9000, 40_000] {
            match &driver.writer {
                Some(_) => driver.append(length).expect("it takes records again without a restart"),
                None => driver.open().expect("it opens again"),
            }
        }
        driver.read_now();
        driver.survives_loss(GONE);
    });
}

#[test]
fn a_disk_that_is_really_full_refuses_until_room_is_made() {
    for capacity in (20_000..160_000).step_by(4096) {
        let mut driver = Driver::new(SimDisk::new());
        driver.disk.limit(Some(capacity));
        let mut refused = 0;
        for length in [100, 8000, 3000, 20_000, 100, 9000, 9000, 50, 12_000] {
            match run(&mut driver, Job::Append(length)) {
                Ok(()) => {}
                Err(Error::Full { .. }) => {
                    refused += 1;
                    driver.refused();
                }
                Err(error) => panic!("a full disk only refuses: {error}"),
            }
        }
        assert!(capacity > 120_000 || refused > 0);
        // A start on the full disk refuses too, or opens; nothing is lost by trying.
        let mut again = driver.on(driver.disk.crash(GONE));
        let _ = again.open();
        again.survives_loss_without_limit();
        driver.disk.limit(None);
        run(&mut driver, Job::Append(30_000)).expect("there is room again");
        driver.read_now();
        driver.survives_loss(GONE);
    }
}

#[test]
fn on_a_full_disk_it_starts_and_takes_facts_and_heals() {
    for kills in [0, 1, 2, 3, 12] {
        let mut driver = Driver::new_keeping(true);
        driver.open().expect("a healthy disk opens");
        driver.control(spool::Control::BackendAdded { name: "a".into(), start: 1 });
        driver.append(9000).expect("a healthy disk takes records");
        driver.prepare().expect("there is room");
        for _ in 0..9 {
            driver.append(9000).expect("a healthy disk takes records");
        }
        // Something else fills the disk to the last byte.
        let used = driver.disk.used();
        driver.disk.limit(Some(used));
        while driver.append(9000).is_ok() {}
        driver.refused();
        // Two spares and the ballast are there for starts, also after kills.
        for _ in 0..kills {
            driver = driver.on(driver.disk.crash(GONE));
            let used = driver.disk.used();
            driver.disk.limit(Some(used));
            driver.open().expect("a full disk opens");
            // As a daemon does that counts its attempts.
            for _ in 0..2 {
                driver.places(1);
                driver.commit().expect("a full disk takes facts");
            }
            let used = driver.disk.used();
            driver.disk.limit(Some(used));
        }
        driver.places(5);
        driver.commit().expect("a full disk takes places");
        driver.reclaim(5).expect("what is delivered goes");
        driver.survives_loss_without_limit();
        driver.disk.limit(None);
        driver.append(9000).expect("it takes records again");
        driver.read_now();
        driver.survives_loss(GONE);
    }
}

#[test]
fn a_failed_sync_hides_nothing_over_restarts_and_a_power_cut() {
    // Each sync of a run fails once; the process starts again, and one sync of that start fails too; then the power goes.
    for at in 0..calls_of_all_jobs(true) {
        let mut driver = Driver::new_keeping(true);
        driver.disk.fail(Fault { at, failure: Failure::Io, lasting: false });
        if !JOBS.iter().any(|job| matches!(run(&mut driver, *job), Err(Error::Io { .. }))) {
            continue;
        }
        let mut whole = driver.on(driver.disk.crash(Loss::KILL));
        whole.open().expect("a healthy disk opens");
        for second in 0..whole.disk.calls() {
            let _case = Case(Fault { at: second, failure: Failure::Io, lasting: false });
            let mut again = driver.on(driver.disk.crash(Loss::KILL));
            again.disk.fail(Fault { at: second, failure: Failure::Io, lasting: false });
            again.open().expect_err("the start fails");
            again.disk.heal();
            // The third start is cut off, at another call each time.
            let mut third = again.on(again.disk.crash(Loss::KILL));
            third.open().expect("a healthy disk opens");
            for stop in (second % 3..third.disk.calls()).step_by(3) {
                let mut cut = again.on(again.disk.crash(Loss::KILL));
                cut.disk.fail(Fault { at: stop, failure: Failure::Stop, lasting: true });
                cut.open().expect_err("the start is cut off");
                cut.survives_loss(GONE);
            }
            again.survives_loss(GONE);
        }
    }
}

#[test]
fn a_sync_that_fails_for_want_of_room_is_no_refusal() {
    // A refusal promises that nothing is on disk; after a failed sync that is not known.
    let mut traced = Driver::new_keeping(true);
    traced.disk.start_trace();
    assert_eq!(daemon(&mut traced, true), []);
    let trace = traced.disk.trace();
    let syncs = trace.lines().filter(|line| line.contains(" Sync file"));
    let mut tried = 0;
    for sync in syncs {
        let at = sync.split(' ').next().and_then(|number| number.parse().ok()).expect("the number of the call");
        let mut driver = Driver::new_keeping(true);
        driver.disk.fail(Fault { at, failure: Failure::Full, lasting: false });
        assert_eq!(daemon(&mut driver, true), [Met::Failed], "{sync}");
        tried += 1;
    }
    assert!(tried > 15);
}

#[test]
fn facts_survive_when_the_first_group_of_a_segment_met_a_full_disk() {
    let jobs = |driver: &mut Driver| -> Result<(), Error> {
        for length in [9000, 9000, 9000, 14_000, 10] {
            match driver.append(length) {
                Err(Error::Full { .. }) => driver.refused(),
                other => other?,
            }
        }
        let behind = driver.model.acked.keys().last().map_or(0, |last| last + 1);
        driver.reclaim(behind)
    };
    for failure in [Failure::Full, Failure::ShortFull] {
        for at in 0..40 {
            let mut driver = Driver::new(SimDisk::new());
            driver.open().expect("a healthy disk opens");
            driver.control(spool::Control::BackendAdded { name: "a".into(), start: 1 });
            driver.commit().expect("a healthy disk takes facts");
            driver.disk.fail(Fault { at, failure, lasting: false });
            let _case = Case(Fault { at, failure, lasting: false });
            if jobs(&mut driver).is_ok() {
                driver.survives_loss(GONE);
                driver.survives_loss(Loss::KILL);
            }
        }
    }
}

#[test]
fn a_segment_that_could_not_be_removed_is_counted_and_tried_again() {
    let mut driver = Driver::new(SimDisk::new());
    driver.open().expect("a healthy disk opens");
    for _ in 0..6 {
        driver.append(9000).expect("a healthy disk takes records");
    }
    let shared = driver.writer().shared().clone();
    let before = shared.segments();
    driver.disk.fail(Fault { at: 1, failure: Failure::Io, lasting: false });
    driver.reclaim(7).expect_err("the second removal fails");
    assert_eq!(shared.segments(), before[1..], "one is gone, the others are still counted");
    driver.reclaim(7).expect("the disk is well again");
    assert_eq!(shared.segments().len(), 1);
    driver.append(10).expect("the journal goes on");
    driver.survives_loss(GONE);
}

/// Goal: nothing is acknowledged after any failed sync, one for the sake of reclaiming included.
#[test]
fn a_failed_sync_of_what_was_reclaimed_ends_all_acknowledgements() {
    for keeping in [false, true] {
        let mut driver = Driver::new_keeping(keeping);
        driver.open().expect("a healthy disk opens");
        driver.control(spool::Control::BackendAdded { name: "a".into(), start: 1 });
        for _ in 0..9 {
            driver.append(9000).expect("a healthy disk takes records");
        }
        driver.places(2);
        driver.commit().expect("a healthy disk takes places");
        let removal = 1;
        driver.disk.fail(Fault { at: removal, failure: Failure::Io, lasting: false });
        assert!(matches!(driver.reclaim(2), Err(Error::Io { operation: "sync", .. })));
        assert!(matches!(driver.append(10), Err(Error::Poisoned)));
    }
}
