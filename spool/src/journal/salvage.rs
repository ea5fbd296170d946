//! Reading every byte of a journal, to say what is damaged.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::pieces::{self, Losses, Piece};
use super::recover::{self, Facts, LastGroup, Survey};
use super::scan::{Part, Reading, SegmentFile};
use super::{Options, SegmentInfo};
use crate::disk::Disk;
use crate::frame::Record;
use crate::group::Group;
use crate::{Damage, Error, State, Tally, segment};

/// Whether somebody writes the journal while it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Nobody does.
    AtRest,
    /// A daemon may: what it writes last is left out, and what it reclaims meanwhile is not missed.
    Live,
}

/// What a look at every byte found.
#[derive(Debug)]
pub struct Verified {
    /// The segments, oldest first.
    pub segments: Vec<VerifiedSegment>,
    /// Records that should be between the segments, or before the first, and are in no file.
    pub missing: Vec<Damage>,
    /// Segments of which nothing can be read.
    pub unreadable: Vec<PathBuf>,
    /// Records between the segments that a repair wrote off before.
    pub written_off: Tally,
    /// What was written last is not whole. That is what a kill or a power cut leaves, and no damage.
    pub is_torn: bool,
}

/// One segment.
#[derive(Debug)]
pub struct VerifiedSegment {
    /// Its number.
    pub segment: u64,
    /// Its size on disk.
    pub file_bytes: u64,
    /// What could be read.
    pub read: Tally,
    /// What could not. An entry without records is a header, a footer or a fact.
    pub damage: Vec<Damage>,
    /// Of what could not, what was written off before.
    pub written_off: Tally,
}

impl Verified {
    /// Whether nothing is damaged.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.unreadable.is_empty() && self.damage().next().is_none()
    }

    /// All damage.
    pub fn damage(&self) -> impl Iterator<Item = &Damage> {
        self.segments.iter().flat_map(|segment| &segment.damage).chain(&self.missing)
    }
}

/// Reads every byte of the journal in `dir` and changes nothing.
///
/// # Errors
/// [`Error::Newer`] for a newer format, [`Error::Io`] of the file system; a bad block is damage.
pub fn verify(disk: Arc<dyn Disk>, dir: &Path, options: Options, watch: Watch) -> Result<Verified, Error> {
    let last = match watch {
        Watch::AtRest => LastGroup::CountsIfWhole,
        Watch::Live => LastGroup::IsLeftOut,
    };
    let Survey { shared, state, recovery, footers_lost, is_torn, .. } =
        recover::survey(Arc::clone(&disk), dir, options, last)?;
    let mut verified = Verified {
        segments: Vec::new(),
        missing: shared.missing(state.lowest_needed().unwrap_or(0)),
        unreadable: recovery.unreadable,
        written_off: Tally::default(),
        is_torn: is_torn && watch == Watch::AtRest,
    };
    for info in shared.segments() {
        let path = segment::path(dir, info.id);
        let is_gone = || disk.open(&path, false).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
        let looked = SegmentFile::open(&shared, &info, Reading::Lossy).and_then(|file| {
            let mut looked = look_at(&file, &info, options)?;
            if footers_lost.contains(&info.id) {
                looked.damage.push(Damage::of_facts(info.id, info.end));
            }
            Ok(looked)
        });
        let is_good = looked.as_ref().is_ok_and(|looked| looked.damage.is_empty());
        // A segment that was reclaimed meanwhile may be another one by now: what its file says is no damage.
        if watch == Watch::Live && !is_good && is_gone() {
            continue;
        }
        verified.segments.push(looked?);
    }
    verified.unreadable.retain(|path| watch == Watch::AtRest || disk.open(path, false).is_ok());
    if watch == Watch::Live && !verified.missing.is_empty() {
        // A segment goes after the checkpoint that frees it was synced. That may be what was left out as written last, or
        // newer than what was looked at; by now it is there to be read.
        let now = recover::survey(Arc::clone(&disk), dir, options, LastGroup::CountsIfWhole)?;
        let lowest = now.state.lowest_needed().unwrap_or(0);
        let needed = verified.missing.iter().filter_map(|damage| damage.from(lowest));
        verified.missing = needed.filter(|damage| !damage.records.is_empty()).collect();
    }
    verified.take_written_off(&state);
    Ok(verified)
}

impl Verified {
    fn take_written_off(&mut self, state: &State) {
        let take = |list: &mut Vec<Damage>| {
            let written_off = list.extract_if(.., |damage| state.is_written_off(damage));
            written_off.fold(Tally::default(), |sum, damage| sum.plus(damage.tally()))
        };
        self.written_off = take(&mut self.missing);
        for segment in &mut self.segments {
            segment.written_off = take(&mut segment.damage);
        }
    }
}

/// Reads all of a segment.
pub(super) fn look_at(file: &SegmentFile, info: &SegmentInfo, options: Options) -> Result<VerifiedSegment, Error> {
    let mut looked = VerifiedSegment {
        segment: info.id,
        file_bytes: info.file_bytes,
        read: Tally::default(),
        damage: Vec::new(),
        written_off: Tally::default(),
    };
    let ends = segment::read_ends(&*file.file, &file.path)?;
    let header_is_good =
        ends.header.is_ok_and(|header| header.stamp() == file.stamp && header.stream == options.stream);
    if !header_is_good {
        looked.damage.push(Damage::of_facts(info.id, 0));
    }
    each_part(file, info, |part| {
        if part.group.is_none() || part.facts_lost {
            looked.damage.push(Damage::of_facts(info.id, part.at));
        }
        for piece in part.pieces {
            match piece {
                Piece::Record(record) => looked.read += record.tally(),
                Piece::Purged(..) => {}
                Piece::Lost(damage) => looked.damage.push(damage),
            }
        }
        Ok(())
    })?;
    Ok(looked)
}

/// What is in a group, or in a stretch in which the headers of groups are lost.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) at: u64,
    /// `None` in a stretch.
    pub(super) group: Option<Group>,
    /// Numbers of its records.
    pub(super) records: Range<u64>,
    pub(super) facts: Vec<Record>,
    pub(super) facts_lost: bool,
    pub(super) pieces: VecDeque<Piece>,
}

/// Reads a segment part by part.
pub(super) fn each_part(
    file: &SegmentFile,
    info: &SegmentInfo,
    mut show: impl FnMut(Contents) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut losses = None;
    let mut parts = info.parts();
    while let Some(part) = parts.next(file)? {
        let mut facts = Facts::default();
        show(match part {
            Part::Group(at, group) => {
                let good = facts.take(file.facts(at, &group)?);
                Contents {
                    at,
                    group: Some(group),
                    records: group.first_record..group.next_record,
                    facts: facts.good,
                    facts_lost: good < u64::from(group.controls),
                    pieces: pieces::in_group(file, at, &group)?,
                }
            }
            Part::Stretch(stretch) => {
                facts.take(file.frames(stretch.bytes.clone(), 0..0)?);
                Contents {
                    at: stretch.bytes.start,
                    group: None,
                    records: stretch.records.clone(),
                    facts: facts.good,
                    facts_lost: false,
                    pieces: pieces::in_stretch(file, &stretch, Losses::once(&mut losses, file, info)?)?,
                }
            }
        })?;
    }
    Ok(())
}
