//! kill -9 of a real process on a real disk, at random moments: what it said it had is there.
//!
//! The test runs itself as a child, which appends, rolls, checkpoints, reclaims, closes and opens again, and says on
//! standard output what it is about to do and what was acknowledged. After each kill the journal is opened here.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRng, TestRunner};
use spool::disk::OsDisk;
use spool::{Account, Control, Keep, Opened};

use common::{TINY, draft, drain, now, payload, try_open};

const ROUNDS: u64 = 60;
/// The child's directory and seed; only with them is it one.
const CHILD: &str = "SPOOL_TEST_KILL_CHILD";
const SEED: &str = "SPOOL_TEST_SEED";

/// What the child says, a line each.
#[derive(Debug, Clone, Copy)]
enum Word {
    /// It is about to commit this payload under this number.
    Staged { number: u64, name: u64, length: usize },
    /// This number was committed.
    Acked { number: u64 },
    /// A checkpoint with this place was committed.
    Placed { place: u64 },
    /// Records below may go from now on.
    Reclaims { lowest: u64 },
    /// The backend is about to be paused or resumed.
    Pauses { paused: bool },
    /// It is.
    Paused { paused: bool },
}

impl Word {
    fn write(self) -> String {
        match self {
            Self::Staged { number, name, length } => format!("@staged {number} {name} {length}\n"),
            Self::Acked { number } => format!("@acked {number}\n"),
            Self::Placed { place } => format!("@placed {place}\n"),
            Self::Reclaims { lowest } => format!("@reclaims {lowest}\n"),
            Self::Pauses { paused } => format!("@pauses {}\n", u8::from(paused)),
            Self::Paused { paused } => format!("@paused {}\n", u8::from(paused)),
        }
    }

    /// The harness writes lines too, and may not end one before the child begins.
    fn read(line: &str) -> Option<Self> {
        let mut words = line.split_once('@')?.1.split(' ');
        let word = words.next()?;
        let numbers: Vec<u64> = words.map(|number| number.parse().expect("a number")).collect();
        Some(match (word, numbers.as_slice()) {
            ("staged", &[number, name, length]) => {
                Self::Staged { number, name, length: usize::try_from(length).expect("short") }
            }
            ("acked", &[number]) => Self::Acked { number },
            ("placed", &[place]) => Self::Placed { place },
            ("reclaims", &[lowest]) => Self::Reclaims { lowest },
            ("pauses", &[paused]) => Self::Pauses { paused: paused == 1 },
            ("paused", &[paused]) => Self::Paused { paused: paused == 1 },
            _ => panic!("the child said {line:?}"),
        })
    }
}

/// Standard output itself: the harness would keep what `println!` writes.
fn say(words: &[Word]) {
    let text: String = words.iter().map(|word| word.write()).collect();
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).expect("the parent listens");
}

fn dice(seed: RngSeed) -> TestRng {
    TestRunner::new(ProptestConfig { rng_seed: seed, ..ProptestConfig::default() }).new_rng()
}

/// A number from 0 up to, not including, `below`.
fn throw(dice: &mut TestRng, below: u64) -> u64 {
    u64::from(dice.next_u32()) % below
}

/// Not a test by itself: what the child of the other one does, until it is killed.
#[test]
fn child() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let (seed, dir) = told.split_once(' ').expect("a seed and a directory");
    let seed = seed.parse().expect("a seed");
    work(Path::new(dir), seed);
}

/// A journal at work. It never ends.
fn work(dir: &Path, seed: u64) {
    let mut dice = dice(RngSeed::Fixed(seed));
    let mut name = seed << 20;
    loop {
        let Opened { mut writer, mut state, shared, .. } =
            try_open(Arc::new(OsDisk), dir, TINY).expect("the journal opens");
        let mut clock_ms = state.clock_ms;
        for _ in 0..throw(&mut dice, 60) {
            clock_ms += 1;
            let mut done = Vec::new();
            let first = shared.next_record();
            for number in first..first + throw(&mut dice, 4) {
                name += 1;
                let length = [10, 700, 5000, 40_000][usize::try_from(throw(&mut dice, 4)).expect("small")];
                say(&[Word::Staged { number, name, length }]);
                assert_eq!(writer.stage(draft(name, length)), number);
                done.push(Word::Acked { number });
            }
            let account = state.accounts.entry("a".to_owned()).or_insert_with(|| {
                writer.stage_control(&Control::BackendAdded { name: "a".to_owned(), start: 1 }, now(clock_ms));
                Account::from_record(1)
            });
            match throw(&mut dice, 6) {
                0 => {
                    account.place = account.place.max(shared.next_record().saturating_sub(throw(&mut dice, 200)));
                    done.push(Word::Placed { place: account.place });
                    writer.stage_checkpoint(&state, now(clock_ms));
                }
                1 => {
                    account.paused = !account.paused;
                    let (paused, name) = (account.paused, "a".to_owned());
                    say(&[Word::Pauses { paused }]);
                    done.push(Word::Paused { paused });
                    let control = if paused { Control::Paused { name } } else { Control::Resumed { name } };
                    writer.stage_control(&control, now(clock_ms));
                }
                2 => {
                    // What is in the books now was in a commit before: nothing is staged that changes it.
                    let lowest = account.place;
                    writer.stage_checkpoint(&state, now(clock_ms));
                    writer.commit(now(clock_ms), &mut || state.clone()).expect("the disk works");
                    say(&done);
                    say(&[Word::Reclaims { lowest }]);
                    done.clear();
                    writer.reclaim(lowest, Keep { since_clock_ms: u64::MAX, bytes: 0 }).expect("the disk works");
                }
                _ => {}
            }
            writer.commit(now(clock_ms), &mut || state.clone()).expect("the disk works");
            say(&done);
        }
        if throw(&mut dice, 2) == 0 {
            writer.close(now(clock_ms + 1), &state).expect("the disk works");
        }
    }
}

/// What was promised in all lives.
#[derive(Debug, Default)]
struct Promised {
    staged: BTreeMap<u64, BTreeSet<(u64, usize)>>,
    acked: BTreeSet<u64>,
    reclaimed: u64,
    place: u64,
    /// What it may be found to be: as acknowledged, or as it was about to become.
    paused: BTreeSet<bool>,
}

impl Promised {
    fn hear(&mut self, word: Word) {
        match word {
            Word::Staged { number, name, length } => {
                assert!(!self.acked.contains(&number), "number {number} was given out twice");
                self.staged.entry(number).or_default().insert((name, length));
            }
            Word::Acked { number } => drop(self.acked.insert(number)),
            Word::Placed { place } => self.place = self.place.max(place),
            Word::Reclaims { lowest } => self.reclaimed = self.reclaimed.max(lowest),
            Word::Pauses { paused } => drop(self.paused.insert(paused)),
            Word::Paused { paused } => self.paused = BTreeSet::from([paused]),
        }
    }

    /// Opens the journal and checks all of it.
    fn check(&mut self, dir: &Path) {
        let opened = try_open(Arc::new(OsDisk), dir, TINY).expect("the journal opens");
        assert_eq!(opened.recovery.damage, [], "a kill is no damage");
        assert_eq!(opened.recovery.unreadable.len(), 0);
        let (records, damage) = drain(&mut opened.shared.reader(1));
        assert_eq!(damage, []);
        let mut found = BTreeSet::new();
        for record in records {
            let fits = |(name, length): &(u64, usize)| record.payload == payload(*name, *length);
            let staged = self.staged.get(&record.number);
            assert!(staged.into_iter().flatten().any(fits), "record {} is one that was staged", record.number);
            found.insert(record.number);
        }
        let lost: Vec<_> = self.acked.range(self.reclaimed..).filter(|number| !found.contains(number)).collect();
        assert!(lost.is_empty(), "acknowledged and gone: {lost:?}");
        let account = opened.state.accounts.get("a").cloned().unwrap_or_default();
        assert!(account.place >= self.place, "the place went back from {} to {}", self.place, account.place);
        assert!(self.paused.is_empty() || self.paused.contains(&account.paused), "{account:?}, not {:?}", self.paused);
        // What a start shows counts as acknowledged.
        self.acked.extend(found);
        self.paused = BTreeSet::from([account.paused]);
    }
}

/// A child that is killed when the test ends, however it does.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_a_killed_process_acknowledged_is_there() {
    let seed: u64 = std::env::var(SEED)
        .map_or_else(|_| u64::from(dice(RngSeed::Random).next_u32()), |seed| seed.parse().expect("a number"));
    println!("seed {seed}: repeat with {SEED}={seed}");
    let mut dice = dice(RngSeed::Fixed(seed));
    let folder = tempfile::tempdir().expect("a directory");
    let dir = folder.path().join("journal");
    let mut promised = Promised::default();
    for round in 0..ROUNDS {
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, format!("{} {}", seed.wrapping_add(round) % (1 << 40), dir.display()))
            .stdout(Stdio::piped())
            .spawn();
        let mut child = Killed(child.expect("started"));
        let mut lines = BufReader::new(child.0.stdout.take().expect("piped")).lines();
        let mut hear = |promised: &mut Promised| {
            let line = lines.next()?.expect("text");
            if let Some(word) = Word::read(&line) {
                promised.hear(word);
            }
            Some(())
        };
        for _ in 0..throw(&mut dice, 150) {
            hear(&mut promised).expect("the child works until it is killed");
        }
        // Not right behind what it says: that is right behind a sync.
        let until = Instant::now() + Duration::from_micros(throw(&mut dice, 2000));
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        child.0.kill().expect("killed");
        // What it said before counts, too.
        while hear(&mut promised).is_some() {}
        drop(child);
        promised.check(&dir);
    }
    assert!(promised.acked.len() > 100, "only {} records in all lives", promised.acked.len());
    println!("{} records in {ROUNDS} lives, reclaimed below {}", promised.acked.len(), promised.reclaimed);
}
