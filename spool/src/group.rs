//! Commit groups: what was written and synced in one go.

use crate::segment::{Stamp, get_u32, get_u64, put_u32, put_u64};
use crate::tally::Tally;
use crate::{Now, round_up};

/// Length of the group header.
pub(crate) const HEAD: usize = 160;

const MAGIC: u32 = u32::from_le_bytes(*b"TSGR");

/// From when to when, by both clocks; lowest above highest when there is nothing in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) wall_ns: (u64, u64),
    pub(crate) clock_ms: (u64, u64),
}

impl Default for Span {
    fn default() -> Self {
        Self { wall_ns: (u64::MAX, 0), clock_ms: (u64::MAX, 0) }
    }
}

impl Span {
    /// The span that covers both.
    pub(crate) fn cover(self, other: Self) -> Self {
        let widest = |a: (u64, u64), b: (u64, u64)| (a.0.min(b.0), a.1.max(b.1));
        Self { wall_ns: widest(self.wall_ns, other.wall_ns), clock_ms: widest(self.clock_ms, other.clock_ms) }
    }

    /// A moment.
    pub(crate) fn at(wall_ns: u64, clock_ms: u64) -> Self {
        Self { wall_ns: (wall_ns, wall_ns), clock_ms: (clock_ms, clock_ms) }
    }
}

/// The header of a commit group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Group {
    /// One more than the group before it in the stream.
    pub(crate) sequence: u64,
    /// Number of the first record in it, or that the next record would get.
    pub(crate) first_record: u64,
    /// Behind the last record in it. Numbers may be missing in a group that recovery wrote.
    pub(crate) next_record: u64,
    /// Bytes of all frames, without the padding to the next block.
    pub(crate) length: u64,
    /// Bytes of the control and checkpoint frames, which come first.
    pub(crate) controls_len: u64,
    /// Number of control and checkpoint frames.
    pub(crate) controls: u32,
    pub(crate) tally: Tally,
    /// When it was committed.
    pub(crate) at: Now,
    /// When its records were received.
    pub(crate) received: Span,
}

impl Group {
    /// Bytes on disk, header and padding included.
    pub(crate) fn extent(&self) -> u64 {
        extent(self.length)
    }

    pub(crate) fn encode(&self, stamp: Stamp, offset: u64) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        put_u32(&mut bytes, 0, MAGIC);
        let fields = [
            self.sequence,
            self.first_record,
            self.next_record,
            self.length,
            self.controls_len,
            u64::from(self.controls),
            self.tally.records,
            self.tally.traces,
            self.tally.spans,
            self.tally.units,
            self.tally.bytes,
            self.at.wall_ns,
            self.at.clock_ms,
            stamp.segment,
            stamp.epoch,
            self.received.wall_ns.0,
            self.received.wall_ns.1,
            self.received.clock_ms.0,
            self.received.clock_ms.1,
        ];
        for (index, field) in fields.into_iter().enumerate() {
            put_u64(&mut bytes, 8 + index * 8, field);
        }
        let crc = stamp.crc(offset, &[&bytes[8..]]);
        put_u32(&mut bytes, 4, crc);
        bytes
    }

    /// The stamp that bytes which look like a group header name: how a segment is read whose header block is lost.
    pub(crate) fn named_stamp(bytes: &[u8]) -> Option<Stamp> {
        let looks = bytes.len() >= HEAD && get_u32(bytes, 0) == MAGIC;
        looks.then(|| Stamp { segment: get_u64(bytes, 112), epoch: get_u64(bytes, 120) })
    }

    pub(crate) fn decode(bytes: &[u8], stamp: Stamp, offset: u64) -> Option<Self> {
        let bytes = bytes.get(..HEAD)?;
        if get_u32(bytes, 0) != MAGIC || get_u32(bytes, 4) != stamp.crc(offset, &[&bytes[8..]]) {
            return None;
        }
        let field = |index: usize| get_u64(bytes, 8 + index * 8);
        if (field(13), field(14)) != (stamp.segment, stamp.epoch) {
            return None;
        }
        Some(Self {
            sequence: field(0),
            first_record: field(1),
            next_record: field(2),
            length: field(3),
            controls_len: field(4),
            controls: u32::try_from(field(5)).ok()?,
            tally: Tally { records: field(6), traces: field(7), spans: field(8), units: field(9), bytes: field(10) },
            at: Now { wall_ns: field(11), clock_ms: field(12) },
            received: Span { wall_ns: (field(15), field(16)), clock_ms: (field(17), field(18)) },
        })
    }
}

/// Bytes on disk of a group whose frames take `length`.
pub(crate) fn extent(length: u64) -> u64 {
    round_up(HEAD as u64 + length, crate::segment::BLOCK)
}
