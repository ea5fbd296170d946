//! What a segment holds, piece by piece: records, and what is lost between them.
//!
//! The pieces of a segment always add up to what the catalogue says is in it. So whoever reads everything, and counts
//! what was lost, has counted all that was ever there, and not more.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

use super::scan::{Frames, Part, Reading, SegmentFile, Stretch};
use super::{SegmentInfo, Shared};
use crate::damage::{Damage, Share};
use crate::frame::{self, Record};
use crate::group::{Group, Span};
use crate::{Error, Tally};

/// A record, or what is in its place.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "almost every piece is a record")]
pub(super) enum Piece {
    Record(Record),
    /// An operator had it erased.
    Purged(u64, Tally),
    Lost(Damage),
}

impl Piece {
    pub(super) fn first_number(&self) -> u64 {
        match self {
            Self::Record(record) => record.number,
            Self::Purged(number, _) => *number,
            Self::Lost(damage) => damage.records.start,
        }
    }

    pub(super) fn tally(&self) -> Tally {
        self.tally_below(u64::MAX)
    }

    /// When it was received; `None` where that is not known.
    pub(super) fn received(&self) -> Option<Span> {
        match self {
            Self::Record(record) => Some(Span::at(record.envelope.received_ns, record.envelope.clock_ms)),
            Self::Purged(..) | Self::Lost(_) => None,
        }
    }

    /// What of it lies before `place`.
    pub(super) fn tally_below(&self, place: u64) -> Tally {
        match self {
            Self::Record(record) if record.number < place => record.tally(),
            Self::Purged(number, tally) if *number < place => *tally,
            Self::Lost(damage) => damage.tally_in(&(0..place)),
            _ => Tally::default(),
        }
    }
}

/// The frames of a group or a stretch.
#[derive(Debug, Default)]
struct Walked {
    /// What has a good header of its own, ascending.
    met: Vec<Piece>,
    /// How much that is.
    tally: Tally,
    /// Numbers that did not come, and where the damage is that may have taken them.
    gaps: Vec<Gap>,
}

#[derive(Debug)]
struct Gap {
    records: Range<u64>,
    offset: u64,
    /// There is damage at that place, beside the number that is missing.
    seen: bool,
}

impl Walked {
    fn of(mut frames: Frames, numbers: Range<u64>, segment: u64) -> Self {
        let mut walked = Self::default();
        let mut next = numbers.start;
        let mut bad_at = None;
        while let Some(frame) = frames.next() {
            let frame = match frame {
                Ok(frame) => frame,
                Err(at) => {
                    bad_at.get_or_insert(at);
                    continue;
                }
            };
            if !frame.head.is_record() {
                continue;
            }
            let (number, tally) = (frame.head.number, frame.head.tally());
            walked.gap(next..number, frame.offset, bad_at.take());
            next = number.saturating_add(1);
            walked.tally += tally;
            walked.met.push(if frame.head.purged {
                Piece::Purged(number, tally)
            } else {
                match frame.record() {
                    Ok(record) => Piece::Record(record),
                    Err(_) => Piece::Lost(Damage {
                        segment,
                        records: number..next,
                        offset: frame.offset,
                        received: Some((frame.head.wall_ns, frame.head.wall_ns)),
                        share: Share::one(tally),
                    }),
                }
            });
        }
        let end = frames.place();
        walked.gap(next..numbers.end, end, bad_at);
        walked
    }

    fn gap(&mut self, records: Range<u64>, at: u64, bad_at: Option<u64>) {
        if !records.is_empty() {
            self.gaps.push(Gap { records, offset: bad_at.unwrap_or(at), seen: bad_at.is_some() });
        }
    }

    fn numbers_missing(&self) -> u64 {
        self.gaps.iter().map(|gap| gap.records.end - gap.records.start).sum()
    }

    /// All pieces in order, where `share` was lost in the gaps.
    fn pieces(self, segment: u64, mut share: Share, received: Option<(u64, u64)>) -> VecDeque<Piece> {
        let mut pieces = self.met;
        if share.total != Tally::default() {
            for Gap { records, offset, .. } in self.gaps {
                let count = records.end - records.start;
                pieces.push(Piece::Lost(Damage { segment, records, offset, received, share }));
                share = share.behind(count);
            }
            pieces.sort_by_key(Piece::first_number);
        }
        pieces.into()
    }
}

/// The pieces of a group whose header is good: what its header counts and can't be read is lost.
pub(super) fn in_group(file: &SegmentFile, at: u64, group: &Group) -> Result<VecDeque<Piece>, Error> {
    let pieces = read_group(file, at, group)?;
    if pieces.iter().all(|piece| !matches!(piece, Piece::Lost(_))) {
        return Ok(pieces);
    }
    // It may have been read in the middle of being purged: its mark from before, its payload from after.
    read_group(file, at, group)
}

fn read_group(file: &SegmentFile, at: u64, group: &Group) -> Result<VecDeque<Piece>, Error> {
    let segment = file.stamp.segment;
    let numbers = group.first_record..group.next_record;
    let mut walked = Walked::of(file.records(at, group)?, numbers, segment);
    let total = group.tally.less(walked.tally);
    // Numbers may be missing in a group that recovery wrote; where there is damage, those before it are lost.
    let is_last = |gap: &Gap| gap.records.end == group.next_record;
    let any_seen = walked.gaps.iter().any(|gap| gap.seen);
    walked.gaps.retain(|gap| gap.seen || (!any_seen && is_last(gap)));
    let share = Share { total, over: walked.numbers_missing(), before: 0 };
    let received = (group.tally.records > 0).then_some(group.received.wall_ns);
    Ok(walked.pieces(segment, share, received))
}

/// What was lost in a segment with the headers of groups.
#[derive(Debug, Clone)]
pub(super) struct Losses {
    /// Of all stretches together.
    share: Share,
    received: Option<(u64, u64)>,
    /// Where each stretch begins, and the numbers missing in the ones before.
    stretches: Vec<(u64, u64)>,
}

impl Losses {
    /// [`Losses::of`], for the first stretch that is met in a segment.
    pub(super) fn once<'a>(
        known: &'a mut Option<Self>,
        file: &SegmentFile,
        info: &SegmentInfo,
    ) -> Result<&'a Self, Error> {
        Ok(match known {
            Some(losses) => losses,
            none => none.insert(Self::of(file, info)?),
        })
    }

    /// Reads all of a segment that has no good group header, and the group headers.
    fn of(file: &SegmentFile, info: &SegmentInfo) -> Result<Self, Error> {
        let mut left = info.tally;
        let mut missing = 0;
        let mut stretches = Vec::new();
        let mut parts = info.parts();
        while let Some(part) = parts.next(file)? {
            match part {
                Part::Group(_, group) => left -= group.tally,
                Part::Stretch(stretch) => {
                    stretches.push((stretch.bytes.start, missing));
                    let walked = walk(file, &stretch)?;
                    left -= walked.tally;
                    missing += walked.numbers_missing();
                }
            }
        }
        let received = (info.wall_ns.0 <= info.wall_ns.1).then_some(info.wall_ns);
        Ok(Self { share: Share { total: left, over: missing, before: 0 }, received, stretches })
    }
}

/// The pieces of a stretch in a segment in which that was lost.
pub(super) fn in_stretch(file: &SegmentFile, stretch: &Stretch, losses: &Losses) -> Result<VecDeque<Piece>, Error> {
    let before = losses.stretches.iter().find(|(at, _)| *at == stretch.bytes.start).map_or(0, |(_, before)| *before);
    Ok(walk(file, stretch)?.pieces(file.stamp.segment, losses.share.behind(before), losses.received))
}

/// The pieces of a stretch in a segment that nothing counts. No more records are taken for lost than fit into it.
pub(super) fn in_uncounted(file: &SegmentFile, stretch: &Stretch) -> Result<VecDeque<Piece>, Error> {
    let walked = walk(file, stretch)?;
    let missing = walked.numbers_missing();
    let fit = (stretch.bytes.end - stretch.bytes.start) / frame::HEAD as u64;
    let share = Share::unknown(missing.min(fit.saturating_sub(walked.met.len() as u64)), missing);
    Ok(walked.pieces(file.stamp.segment, share, None))
}

/// A segment of which nothing can be read.
pub(super) fn whole(info: &SegmentInfo) -> Damage {
    let records = info.first_record..info.next_record;
    let share = Share { total: info.tally, over: records.end - records.start, before: 0 };
    let received = (info.wall_ns.0 <= info.wall_ns.1).then_some(info.wall_ns);
    Damage { segment: info.id, records, offset: 0, received, share }
}

fn walk(file: &SegmentFile, stretch: &Stretch) -> Result<Walked, Error> {
    let frames = file.frames(stretch.bytes.clone(), stretch.records.clone())?;
    Ok(Walked::of(frames, stretch.records.clone(), file.stamp.segment))
}

/// Walks all pieces of a segment: shows each group and stretch with what it weighs and where its numbers end, and reads
/// its pieces only if they are asked for. Ends where `more` says so.
fn each_part(
    file: &SegmentFile,
    info: &SegmentInfo,
    mut show: impl FnMut(u64, Tally, &mut dyn FnMut() -> Result<VecDeque<Piece>, Error>) -> Result<bool, Error>,
) -> Result<(), Error> {
    let mut parts = info.parts();
    let mut losses = None;
    while let Some(part) = parts.next(file)? {
        let more = match part {
            Part::Group(at, group) => show(group.next_record, group.tally, &mut || in_group(file, at, &group))?,
            Part::Stretch(stretch) => {
                let mut pieces = in_stretch(file, &stretch, Losses::once(&mut losses, file, info)?)?;
                let tally = pieces.iter().fold(Tally::default(), |sum, piece| sum.plus(piece.tally()));
                show(stretch.records.end, tally, &mut || Ok(std::mem::take(&mut pieces)))?
            }
        };
        if !more {
            break;
        }
    }
    Ok(())
}

/// What `info` holds from each of `places` on, which lie inside it: as much as a reader from there on returns and
/// reports. One walk over the group headers; only groups in which there is a place are read.
pub(super) fn tallies_from(
    shared: &Shared,
    info: &SegmentInfo,
    places: &BTreeSet<u64>,
) -> Result<Vec<(u64, Tally)>, Error> {
    let file = SegmentFile::open(shared, info, Reading::Lossy)?;
    let mut found = Vec::with_capacity(places.len());
    let mut before = Tally::default();
    let mut places = places.iter().copied().peekable();
    each_part(&file, info, |end, tally, read| {
        if places.peek().is_some_and(|place| *place < end) {
            let pieces = read()?;
            while let Some(place) = places.next_if(|place| *place < end) {
                let below = pieces.iter().fold(before, |sum, piece| sum.plus(piece.tally_below(place)));
                found.push((place, info.tally.less(below)));
            }
        }
        before += tally;
        Ok(places.peek().is_some())
    })?;
    found.extend(places.map(|place| (place, info.tally.less(before))));
    Ok(found)
}

/// The records of a segment with what each weighs. What is lost is spread over the numbers that it can have had.
pub(super) fn weigh(shared: &Shared, info: &SegmentInfo) -> Result<Vec<(u64, Tally)>, Error> {
    let file = SegmentFile::open(shared, info, Reading::Lossy)?;
    let mut weights = Vec::new();
    each_part(&file, info, |_, _, read| {
        for piece in read()? {
            match piece {
                Piece::Record(record) => weights.push((record.number, record.tally())),
                Piece::Purged(number, tally) => weights.push((number, tally)),
                Piece::Lost(damage) => {
                    let each = damage.records.clone().map(|number| (number, damage.tally_in(&(number..number + 1))));
                    weights.extend(each);
                }
            }
        }
        Ok(true)
    })?;
    Ok(weights)
}
