//! `tracespool verify`: reads the whole spool and says what is damaged; with `--repair`, makes it whole.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use spool::{Damage, Repaired, Tally, Verified};

use super::find::{NotFound, Socket, find, name_of, not_permitted};
use super::page::{counted, size};
use crate::clock::wall_time;
use crate::config::{Environment, Overrides};
use crate::daemon::offline::{self, Checked};
use crate::daemon::state_dir::StateDirError;
use crate::exit::{Exit, Failure, Outcome};
use crate::status::Timestamp;

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
    /// Keeps what can be read, writes off what can't, and puts the damaged files aside; while the daemon is down
    #[arg(long)]
    repair: bool,
}

impl Verify {
    pub(super) fn run(self, overrides: &Overrides, environment: &Environment) -> Outcome {
        let state_dir = state_dir(overrides, environment)?;
        let failed = |error| failure(&state_dir, &error);
        let repaired = match self.repair {
            true => {
                check_owner(&state_dir, environment)?;
                Some(offline::repair(&state_dir).map_err(failed)?)
            }
            false => None,
        };
        let checked = offline::verify(&state_dir).map_err(failed)?;
        match checked.holder {
            Some(_) => super::remark(&format!("read beside the daemon that writes {}", state_dir.display())),
            None => super::remark(&format!("read {} while no daemon runs", state_dir.display())),
        }
        let report = Report::of(&state_dir, &checked, repaired.as_deref());
        let text = if self.json {
            serde_json::to_string(&report).map_err(|error| Failure::new(Exit::Bug, error))? + "\n"
        } else {
            report.page()
        };
        super::print(&text)?;
        if report.whole { Ok(()) } else { Err(Failure::new(Exit::Storage, report.advice(self.repair))) }
    }
}

/// The state directory of the daemon that runs, else the first place where there is one.
fn state_dir(overrides: &Overrides, environment: &Environment) -> Result<PathBuf, Failure> {
    let candidates = match find(Socket::Admin, overrides, environment) {
        Ok(found) => return Ok(found.doors.state_dir),
        Err(NotFound::Failure(failure)) => return Err(failure),
        Err(NotFound::NoDaemon { candidates, .. }) => candidates,
    };
    let places: Vec<PathBuf> = candidates.into_iter().map(|doors| doors.state_dir).collect();
    for place in &places {
        match place.join("journal").metadata() {
            Ok(_) => return Ok(place.clone()),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return Err(not_permitted(place)),
            Err(_) => {}
        }
    }
    let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    Err(Failure::new(Exit::NotFound, format!("there is no spool in {}", places.join(" or "))))
}

/// Files that another user makes could not be read by the daemon.
fn check_owner(state_dir: &Path, environment: &Environment) -> Outcome {
    match state_dir.metadata() {
        Ok(metadata) if metadata.uid() != environment.uid => {
            let owner = name_of("/etc/passwd", metadata.uid());
            let message = format!(
                "{} belongs to user {owner}, who runs the daemon; repair it as that user: sudo -u {owner} tracespool --state-dir {} verify --repair",
                state_dir.display(),
                state_dir.display()
            );
            Err(Failure::new(Exit::NotPermitted, message))
        }
        _ => Ok(()),
    }
}

fn failure(state_dir: &Path, error: &offline::CheckError) -> Failure {
    use offline::CheckError::{StateDir, Storage};
    let exit = match error {
        StateDir(StateDirError::Locked { .. }) => {
            let message = format!("{error}; stop it first: a repair needs the spool for itself");
            return Failure::new(Exit::TryLater, message);
        }
        StateDir(StateDirError::Io { source, .. }) | Storage(spool::Error::Io { source, .. })
            if source.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            return not_permitted(state_dir);
        }
        StateDir(StateDirError::Newer { .. } | StateDirError::Foreign { .. }) | Storage(spool::Error::Newer { .. }) => {
            Exit::Configuration
        }
        StateDir(_) | Storage(_) => Exit::Storage,
    };
    Failure::new(exit, error)
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    state_dir: PathBuf,
    /// A daemon was running.
    online: bool,
    whole: bool,
    journals: Vec<JournalReport>,
}

#[derive(Debug, Serialize)]
struct JournalReport {
    journal: &'static str,
    segments: usize,
    /// What could be read.
    records: u64,
    spans: u64,
    bytes: u64,
    /// The last write was cut short: no damage.
    torn_end: bool,
    damage: Vec<DamageReport>,
    /// Segments of which nothing can be read.
    unreadable: Vec<PathBuf>,
    /// Lost before, and written off by a repair.
    written_off_records: u64,
    /// What a repair did just now.
    #[serde(skip_serializing_if = "Option::is_none")]
    repaired: Option<RepairReport>,
}

#[derive(Debug, Serialize)]
struct RepairReport {
    segments: Vec<SegmentReport>,
    lost: Vec<DamageReport>,
}

#[derive(Debug, Serialize)]
struct SegmentReport {
    segment: u64,
    /// What is in the clean one.
    records: u64,
    /// Where the damaged one is.
    kept_in: PathBuf,
}

#[derive(Debug, Serialize)]
struct DamageReport {
    segment: u64,
    offset: u64,
    /// The first and the last number, if it is records that were hit.
    first_record: Option<u64>,
    last_record: Option<u64>,
    records: u64,
    spans: u64,
    bytes: u64,
    received_from: Option<Timestamp>,
    received_to: Option<Timestamp>,
}

impl Report {
    fn of(state_dir: &Path, checked: &Checked, repaired: Option<&[Repaired]>) -> Self {
        let journals = [("journal", &checked.journal), ("side", &checked.side)];
        let journals: Vec<JournalReport> = journals
            .into_iter()
            .enumerate()
            .map(|(index, (name, verified))| {
                JournalReport::of(name, verified, repaired.and_then(|repaired| repaired.get(index)))
            })
            .collect();
        Self {
            state_dir: state_dir.to_path_buf(),
            online: checked.holder.is_some(),
            whole: checked.journal.is_whole() && checked.side.is_whole(),
            journals,
        }
    }

    fn page(&self) -> String {
        let mut lines = Vec::new();
        for journal in &self.journals {
            journal.page(&mut lines);
        }
        lines.join("\n") + "\n"
    }

    fn advice(&self, repaired: bool) -> String {
        let what = "the spool is damaged; what can be read is delivered, and what can't is counted per backend";
        match (self.online, repaired) {
            (_, true) => format!("{what}; damage is left after the repair: is the disk well?"),
            (true, false) => format!("{what}; to make it whole, stop the daemon and run: tracespool verify --repair"),
            (false, false) => format!("{what}; to make it whole: tracespool verify --repair"),
        }
    }
}

impl JournalReport {
    fn of(journal: &'static str, verified: &Verified, repaired: Option<&Repaired>) -> Self {
        let read = verified.segments.iter().fold(Tally::default(), |sum, segment| sum.plus(segment.read));
        let written_off = verified.segments.iter().fold(verified.written_off, |sum, found| sum.plus(found.written_off));
        Self {
            journal,
            segments: verified.segments.len(),
            records: read.records,
            spans: read.spans,
            bytes: read.bytes,
            torn_end: verified.is_torn,
            damage: verified.damage().map(DamageReport::of).collect(),
            unreadable: verified.unreadable.clone(),
            written_off_records: written_off.records,
            repaired: repaired.map(|repaired| RepairReport {
                segments: repaired
                    .segments
                    .iter()
                    .map(|found| SegmentReport {
                        segment: found.segment,
                        records: found.kept.records,
                        kept_in: found.kept_in.clone(),
                    })
                    .collect(),
                lost: repaired.lost.iter().map(DamageReport::of).collect(),
            }),
        }
    }

    fn page(&self, lines: &mut Vec<String>) {
        if let Some(repaired) = &self.repaired {
            for segment in &repaired.segments {
                lines.push(format!(
                    "{}: segment {} made new with {}; the damaged one is {}",
                    self.journal,
                    segment.segment,
                    counted(segment.records, "record"),
                    segment.kept_in.display()
                ));
            }
            lines.extend(repaired.lost.iter().map(|lost| format!("{}: written off: {}", self.journal, lost.line())));
        }
        let is_whole = self.damage.is_empty() && self.unreadable.is_empty();
        lines.push(format!(
            "{}: {}, {}, {}, {}: {}",
            self.journal,
            counted(self.segments as u64, "segment"),
            counted(self.records, "record"),
            counted(self.spans, "span"),
            size(self.bytes),
            if is_whole { "whole" } else { "DAMAGED" }
        ));
        lines.extend(self.damage.iter().map(|damage| format!("  {}", damage.line())));
        lines.extend(self.unreadable.iter().map(|path| format!("  nothing can be read in {}", path.display())));
        if self.written_off_records > 0 {
            lines.push(format!("  {} written off by an earlier repair", counted(self.written_off_records, "record")));
        }
        if self.torn_end {
            lines.push(
                "  the last write was cut short, as by a kill or a power cut; the next start completes it".into(),
            );
        }
    }
}

impl DamageReport {
    fn of(damage: &Damage) -> Self {
        let lost = damage.tally();
        let any = !damage.records.is_empty();
        let time = |ns| Timestamp(wall_time(ns));
        Self {
            segment: damage.segment,
            offset: damage.offset,
            first_record: any.then_some(damage.records.start),
            last_record: any.then(|| damage.records.end - 1),
            records: lost.records,
            spans: lost.spans,
            bytes: lost.bytes,
            received_from: damage.received.map(|(from, _)| time(from)),
            received_to: damage.received.map(|(_, to)| time(to)),
        }
    }

    fn line(&self) -> String {
        let place = format!("segment {}, byte {}", self.segment, self.offset);
        let (Some(first), Some(last)) = (self.first_record, self.last_record) else {
            return format!("{place}: a header or a fact; no record");
        };
        let numbers = if first == last { format!("record {first}") } else { format!("records {first} to {last}") };
        let lost = format!("{}, {}", counted(self.records, "record"), counted(self.spans, "span"));
        let received = match (self.received_from, self.received_to) {
            (Some(from), Some(to)) => format!(", received {from} to {to}"),
            _ => String::new(),
        };
        format!("{place}: {numbers} ({lost}{received})")
    }
}
