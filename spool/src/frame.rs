//! Frames: one record, control or checkpoint each.

use bytes::Bytes;

use crate::envelope::{Envelope, Kind};
use crate::segment::{Stamp, get_u32, get_u64, put_u32, put_u64};
use crate::tally::Tally;

/// Length of the fixed part.
pub(crate) const HEAD: usize = 64;
/// Frames begin at multiples of this.
pub(crate) const ALIGN: u64 = 8;

/// No frame is longer: far above what fits a disk, far below where sums overflow.
const MAX_LEN: usize = 1 << 48;

/// The header checksum covers bytes `CHECKED_FROM..MARK_AT` and the envelope: all but itself and the purge mark,
/// which is written later, in place.
const CHECKED_FROM: usize = 4;
pub(crate) const MARK_AT: usize = 56;
const MARK_PURGED: u32 = u32::from_le_bytes(*b"PURG");

/// A record as a reader gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number.
    pub number: u64,
    /// What is known of it.
    pub envelope: Envelope,
    /// The bytes as they were received.
    pub payload: Bytes,
}

impl Record {
    /// What it weighs in the accounts.
    #[must_use]
    pub fn tally(&self) -> Tally {
        Tally::one(self.envelope.spans, self.envelope.traces, self.payload.len() as u64)
    }
}

/// The fixed part of a frame, and where its variable parts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Option<Kind>,
    pub(crate) envelope_len: usize,
    pub(crate) payload_len: usize,
    pub(crate) number: u64,
    pub(crate) clock_ms: u64,
    pub(crate) wall_ns: u64,
    pub(crate) spans: u32,
    pub(crate) traces: u32,
    crc_payload: u32,
    pub(crate) purged: bool,
}

/// Why bytes are not the frame that should be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bad {
    /// The header or envelope does not match its checksum: nothing of the frame can be trusted, its length included.
    Head,
    /// The payload does not match its checksum; the frame behind can be found.
    Payload,
    /// Checksums match, but this version can't read it: a kind or critical item that it does not know.
    Unknown,
}

/// A frame that is to be written: everything but its place.
#[derive(Debug, Clone)]
pub(crate) struct Staged {
    pub(crate) kind: Kind,
    pub(crate) received_ns: u64,
    pub(crate) clock_ms: u64,
    spans: u32,
    traces: u32,
    /// The envelope's variable part.
    pub(crate) variable: Vec<u8>,
    pub(crate) payload: Bytes,
}

impl Staged {
    pub(crate) fn new(envelope: &Envelope, payload: Bytes) -> Self {
        Self {
            kind: envelope.kind,
            received_ns: envelope.received_ns,
            clock_ms: envelope.clock_ms,
            spans: envelope.spans,
            traces: envelope.traces,
            variable: envelope.encode(),
            payload,
        }
    }

    /// Length of the whole frame with its padding.
    pub(crate) fn length(&self) -> u64 {
        length(self.variable.len(), self.payload.len())
    }

    pub(crate) fn tally(&self) -> Tally {
        Tally::one(self.spans, self.traces, self.payload.len() as u64)
    }

    /// The fixed part of the frame at `offset`; the variable part and the payload follow it.
    pub(crate) fn head(&self, number: u64, stamp: Stamp, offset: u64) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        put_u32(&mut bytes, 4, stamp.crc(offset, &[&self.payload]));
        bytes[8] = self.kind as u8;
        put_u32(&mut bytes, 12, u32::try_from(self.variable.len()).expect("envelopes are small"));
        put_u64(&mut bytes, 16, self.payload.len() as u64);
        put_u64(&mut bytes, 24, number);
        put_u64(&mut bytes, 32, self.clock_ms);
        put_u64(&mut bytes, 40, self.received_ns);
        put_u32(&mut bytes, 48, self.spans);
        put_u32(&mut bytes, 52, self.traces);
        let crc = stamp.crc(offset, &[&bytes[CHECKED_FROM..MARK_AT], &self.variable]);
        put_u32(&mut bytes, 0, crc);
        bytes
    }
}

/// Length of a whole frame with its padding.
fn length(envelope_len: usize, payload_len: usize) -> u64 {
    crate::round_up((HEAD + envelope_len + payload_len) as u64, ALIGN)
}

impl Head {
    /// Length of the whole frame with its padding.
    pub(crate) fn length(&self) -> u64 {
        length(self.envelope_len, self.payload_len)
    }

    pub(crate) fn tally(&self) -> Tally {
        Tally::one(self.spans, self.traces, self.payload_len as u64)
    }

    /// Reads and checks fixed part and envelope at the start of `bytes`, which lie at `offset` of the segment.
    pub(crate) fn decode(bytes: &[u8], stamp: Stamp, offset: u64) -> Result<Self, Bad> {
        if bytes.len() < HEAD {
            return Err(Bad::Head);
        }
        let envelope_len = usize::try_from(get_u32(bytes, 12)).map_err(|_| Bad::Head)?;
        let payload_len = usize::try_from(get_u64(bytes, 16)).map_err(|_| Bad::Head)?;
        let envelope = bytes.get(HEAD..).and_then(|rest| rest.get(..envelope_len)).ok_or(Bad::Head)?;
        // A payload that reaches behind the bytes at hand is told by `record`; one that no file can hold ends here, so
        // that no sum of lengths overflows.
        if payload_len > MAX_LEN {
            return Err(Bad::Head);
        }
        if stamp.crc(offset, &[&bytes[CHECKED_FROM..MARK_AT], envelope]) != get_u32(bytes, 0) {
            return Err(Bad::Head);
        }
        let mark = get_u32(bytes, MARK_AT);
        let purged =
            mark == MARK_PURGED && stamp.crc(offset, &[&bytes[MARK_AT..MARK_AT + 4]]) == get_u32(bytes, MARK_AT + 4);
        Ok(Self {
            kind: Kind::from_u8(bytes[8]),
            envelope_len,
            payload_len,
            number: get_u64(bytes, 24),
            clock_ms: get_u64(bytes, 32),
            wall_ns: get_u64(bytes, 40),
            spans: get_u32(bytes, 48),
            traces: get_u32(bytes, 52),
            crc_payload: get_u32(bytes, 4),
            purged,
        })
    }

    /// Where the payload of the frame at `offset` lies in the segment.
    pub(crate) fn payload_at(&self, offset: u64) -> std::ops::Range<u64> {
        let start = offset + (HEAD + self.envelope_len) as u64;
        start..start + self.payload_len as u64
    }

    /// The mark with which the frame at `offset` is purged, for the bytes from `MARK_AT` on.
    pub(crate) fn purge_mark(stamp: Stamp, offset: u64) -> [u8; 8] {
        let mut mark = [0; 8];
        put_u32(&mut mark, 0, MARK_PURGED);
        let crc = stamp.crc(offset, &[&mark[..4]]);
        put_u32(&mut mark, 4, crc);
        mark
    }

    /// Whether it is a record's, perhaps of a kind that this version does not know.
    pub(crate) fn is_record(&self) -> bool {
        self.kind.is_none_or(Kind::is_record)
    }

    /// Whether `bytes` may begin with a frame of a fact, or of a record numbered within `numbers`. Cheap, so that a
    /// search for the next good frame need not compute a checksum at every step.
    pub(crate) fn may_begin(bytes: &[u8], numbers: &std::ops::Range<u64>) -> bool {
        bytes.len() >= HEAD
            && bytes[9..12] == [0; 3]
            && match Kind::from_u8(bytes[8]) {
                Some(kind) if !kind.is_record() => get_u64(bytes, 24) == 0,
                Some(_) => numbers.contains(&get_u64(bytes, 24)),
                None => false,
            }
    }

    /// Reads the whole frame, of which this is the head, from `bytes` that begin with it.
    pub(crate) fn record(&self, bytes: &Bytes, stamp: Stamp, offset: u64) -> Result<Record, Bad> {
        let from = HEAD + self.envelope_len;
        let to = from.checked_add(self.payload_len).filter(|to| *to <= bytes.len()).ok_or(Bad::Payload)?;
        if stamp.crc(offset, &[&bytes[from..to]]) != self.crc_payload {
            return Err(Bad::Payload);
        }
        let mut envelope = Envelope {
            kind: self.kind.ok_or(Bad::Unknown)?,
            received_ns: self.wall_ns,
            clock_ms: self.clock_ms,
            spans: self.spans,
            traces: self.traces,
            ..Envelope::default()
        };
        envelope.decode(&bytes[HEAD..from]).map_err(|_| Bad::Unknown)?;
        Ok(Record { number: self.number, envelope, payload: bytes.slice(from..to) })
    }
}
