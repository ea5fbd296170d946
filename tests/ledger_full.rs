//! A ledger that meets a full disk. In a file of its own, because the limit that stands in for the disk is the process's.

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use spool::{Account, State};
use tokio::signal::unix::{SignalKind, signal};
use tracespool::ledger::{Follower, Ledger};

/// `SIGXFSZ`, which ends a process that writes past its limit unless it is handled.
const FILE_TOO_LARGE: i32 = 25;

fn state(attempts: u64) -> State {
    // Enough rows, all of them new, that every save needs space.
    let account = |n: u64| Account { attempts, place: attempts * 1000 + n, ..Account::from_record(n) };
    let accounts = (0..500).map(|n| (format!("backend number {n}"), account(n))).collect();
    State { accounts, spool_id: 7, ..State::default() }
}

/// Goal: a disk that was full for a while does not cost the ledger until the next start. Method: files may not grow, sled
/// fails and stays in error; when they may again, the follower opens it anew ten seconds later, and not before.
#[tokio::test]
async fn a_ledger_that_met_a_full_disk_follows_again() {
    let _handled = signal(SignalKind::from_raw(FILE_TOO_LARGE)).expect("the signal is handled");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("ledger");
    let mut follower = Follower::new(Ledger::open(&path, 1).ledger, path.clone());
    let start = Instant::now();
    follower.follow(&state(1), start, 1);
    assert!(!follower.is_behind());
    assert!(follower.bytes().load(std::sync::atomic::Ordering::Relaxed) > 0);

    let unlimited = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: Some(4096), ..unlimited }).expect("the limit is lowered");
    for attempts in 2..200 {
        follower.follow(&state(attempts), start, 1);
        if follower.is_behind() {
            break;
        }
    }
    let was_behind = follower.is_behind();
    follower.follow(&state(500), start + Duration::from_secs(11), 2);
    let still_behind = follower.is_behind();
    setrlimit(Resource::Fsize, unlimited).expect("the limit is lifted");
    assert!(was_behind && still_behind, "writing past the limit went well");

    follower.follow(&state(501), start + Duration::from_secs(12), 3);
    assert!(follower.is_behind(), "it was tried again a second later");
    follower.follow(&state(502), start + Duration::from_secs(30), 4);
    assert!(!follower.is_behind());
    follower.follow(&state(503), start + Duration::from_secs(30), 5);
    drop(follower);
    let opened = Ledger::open(&path, 6);
    assert!(opened.set_aside.is_none(), "{:?}", opened.set_aside);
    assert_eq!(opened.spool_id, Some(7));
    assert_eq!(opened.accounts["backend number 3"].account, state(503).accounts["backend number 3"]);
}
