//! Segment files: names, the header block, the footer.

use std::path::{Path, PathBuf};

use crate::group::Span;
use crate::tally::Tally;
use crate::tlv::{self, Encoder};
use crate::{Error, Now};

/// The format version that this crate writes, and the newest it reads.
pub(crate) const VERSION: u16 = 1;

/// Alignment of commit groups and size of the header: the largest block that common disks write in one piece.
pub(crate) const BLOCK: u64 = 4096;
/// The same as a length in memory.
pub(crate) const BLOCK_LEN: usize = 4096;

const MAGIC: [u8; 8] = *b"TRSPOOL\n";
const FLAG_RECYCLED: u8 = 1;
const FLAG_RELAXED: u8 = 2;
const FOOTER_MAGIC: u32 = u32::from_le_bytes(*b"TSFT");
const TRAILER_MAGIC: u32 = u32::from_le_bytes(*b"TSFE");
const TRAILER_LEN: usize = 16;
const FOOTER_FIXED: usize = 192;

/// Which of the two journals a segment belongs to. The numbers are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Stream {
    /// What was received.
    #[default]
    Main = 1,
    /// What lanes set aside.
    Side = 2,
}

/// Binds a checksum to the one place it is valid at, so that stale bytes of a recycled file never look valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) segment: u64,
    pub(crate) epoch: u64,
}

impl Stamp {
    /// CRC-32C over segment, epoch, `offset` and `parts`.
    pub(crate) fn crc(self, offset: u64, parts: &[&[u8]]) -> u32 {
        let mut seed = [0; 24];
        seed[..8].copy_from_slice(&self.segment.to_le_bytes());
        seed[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        seed[16..].copy_from_slice(&offset.to_le_bytes());
        parts.iter().fold(crc32c::crc32c(&seed), |crc, part| crc32c::crc32c_append(crc, part))
    }
}

/// The file of segment `id` in `dir`. The only place that knows how segments are named.
pub(crate) fn path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016x}.seg"))
}

/// The same while it is being made; never read.
pub(crate) fn path_unfinished(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016x}.tmp"))
}

/// Whether `name` is an unfinished segment.
pub(crate) fn is_unfinished(name: &str) -> bool {
    name.strip_suffix(".tmp").is_some_and(|stem| parse_id(stem).is_some())
}

/// The segment that a file name stands for, if it does.
pub(crate) fn parse_name(name: &str) -> Option<u64> {
    parse_id(name.strip_suffix(".seg")?)
}

fn parse_id(stem: &str) -> Option<u64> {
    let canonical = stem.len() == 16 && stem.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    canonical.then(|| u64::from_str_radix(stem, 16).ok()).flatten()
}

/// The first block of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) stream: Stream,
    pub(crate) segment: u64,
    pub(crate) epoch: u64,
    /// Number of its first record, or that its first record would have.
    pub(crate) first_record: u64,
    /// Of its first group. Groups of earlier segments with this sequence or a higher one are superseded: what was good
    /// in them was written again here.
    pub(crate) first_sequence: u64,
    pub(crate) created: Now,
    /// The file was a segment before: behind the last group lie bytes of that life, which no checksum matches.
    pub(crate) recycled: bool,
    /// Groups in it were not synced one by one.
    pub(crate) relaxed: bool,
}

/// A header block that is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadHeader {
    /// Not a segment, or damaged.
    Damaged,
    /// Written by a newer version.
    Newer(u16),
}

impl Header {
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp { segment: self.segment, epoch: self.epoch }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK_LEN];
        block[..8].copy_from_slice(&MAGIC);
        put_u16(&mut block, 8, VERSION);
        block[10] = self.stream as u8;
        block[11] = flag(self.recycled, FLAG_RECYCLED) | flag(self.relaxed, FLAG_RELAXED);
        put_u64(&mut block, 16, self.segment);
        put_u64(&mut block, 24, self.epoch);
        put_u64(&mut block, 32, self.first_record);
        put_u64(&mut block, 40, self.first_sequence);
        put_u64(&mut block, 48, self.created.wall_ns);
        put_u64(&mut block, 56, self.created.clock_ms);
        let crc = header_crc(&block);
        put_u32(&mut block, 12, crc);
        block
    }

    pub(crate) fn decode(block: &[u8]) -> Result<Self, BadHeader> {
        if block.len() < BLOCK_LEN || block[..8] != MAGIC || get_u32(block, 12) != header_crc(block) {
            return Err(BadHeader::Damaged);
        }
        let version = get_u16(block, 8);
        if version > VERSION {
            return Err(BadHeader::Newer(version));
        }
        let stream = match block[10] {
            1 => Stream::Main,
            2 => Stream::Side,
            _ => return Err(BadHeader::Damaged),
        };
        Ok(Self {
            stream,
            segment: get_u64(block, 16),
            epoch: get_u64(block, 24),
            first_record: get_u64(block, 32),
            first_sequence: get_u64(block, 40),
            created: Now { wall_ns: get_u64(block, 48), clock_ms: get_u64(block, 56) },
            recycled: block[11] & FLAG_RECYCLED != 0,
            relaxed: block[11] & FLAG_RELAXED != 0,
        })
    }
}

fn flag(is_set: bool, flag: u8) -> u8 {
    if is_set { flag } else { 0 }
}

fn header_crc(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[..12]), &block[16..BLOCK_LEN])
}

/// One entry of the footer's sparse index: where a group begins, and what lies before it in the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub(crate) offset: u64,
    pub(crate) first_record: u64,
    pub(crate) before: Tally,
}

/// What a sealed segment holds; written behind its last group. It repeats the header, so that a damaged header block
/// costs nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Footer {
    /// Behind the last group.
    pub(crate) end: u64,
    pub(crate) groups: u64,
    pub(crate) first_sequence: u64,
    pub(crate) created: Now,
    pub(crate) first_record: u64,
    /// Behind the last record.
    pub(crate) next_record: u64,
    pub(crate) next_sequence: u64,
    pub(crate) tally: Tally,
    /// When its records were received.
    pub(crate) received: Span,
    pub(crate) index: Vec<IndexEntry>,
}

const SECTION_INDEX: u16 = 1;
const INDEX_NUMBERS: usize = 7;

impl Footer {
    /// The footer as it is written at `end`.
    pub(crate) fn encode(&self, stamp: Stamp) -> Vec<u8> {
        let mut sections = Encoder::default();
        let mut numbers = Vec::with_capacity(self.index.len() * INDEX_NUMBERS);
        for IndexEntry { offset, first_record, before } in &self.index {
            numbers.extend([
                *offset,
                *first_record,
                before.records,
                before.traces,
                before.spans,
                before.units,
                before.bytes,
            ]);
        }
        sections.u64s(SECTION_INDEX, &numbers);
        let sections = sections.finish();

        let length = FOOTER_FIXED + sections.len() + TRAILER_LEN;
        let mut bytes = vec![0; FOOTER_FIXED];
        put_u32(&mut bytes, 0, FOOTER_MAGIC);
        put_u64(&mut bytes, 8, length as u64);
        let fields = [
            stamp.segment,
            stamp.epoch,
            self.end,
            self.groups,
            self.first_record,
            self.next_record,
            self.next_sequence,
            self.tally.records,
            self.tally.traces,
            self.tally.spans,
            self.tally.units,
            self.tally.bytes,
            self.received.wall_ns.0,
            self.received.wall_ns.1,
            self.received.clock_ms.0,
            self.received.clock_ms.1,
            self.first_sequence,
            self.created.wall_ns,
            self.created.clock_ms,
        ];
        for (index, field) in fields.into_iter().enumerate() {
            put_u64(&mut bytes, 16 + index * 8, field);
        }
        let crc = stamp.crc(self.end, &[&bytes[8..], &sections]);
        put_u32(&mut bytes, 4, crc);
        bytes.extend_from_slice(&sections);

        let mut trailer = [0; TRAILER_LEN];
        put_u64(&mut trailer, 0, length as u64);
        put_u32(&mut trailer, 8, TRAILER_MAGIC);
        let crc = crc32c::crc32c(&trailer[..12]);
        put_u32(&mut trailer, 12, crc);
        bytes.extend_from_slice(&trailer);
        bytes
    }

    /// Whether bytes look like the beginning of a footer.
    pub(crate) fn begins(bytes: &[u8]) -> bool {
        bytes.len() >= 4 && get_u32(bytes, 0) == FOOTER_MAGIC
    }

    /// The stamp that a footer names, without knowing it from the header.
    fn named_stamp(bytes: &[u8]) -> Option<Stamp> {
        (bytes.len() >= FOOTER_FIXED).then(|| Stamp { segment: get_u64(bytes, 16), epoch: get_u64(bytes, 24) })
    }

    /// Reads the whole footer, trailer included, which lies at `at`. Blocks that this version does not know may lie
    /// between the last group and the footer.
    pub(crate) fn decode(bytes: &[u8], stamp: Stamp, at: u64) -> Option<Self> {
        if bytes.len() < FOOTER_FIXED + TRAILER_LEN || get_u32(bytes, 0) != FOOTER_MAGIC {
            return None;
        }
        let field = |index: usize| get_u64(bytes, 16 + index * 8);
        let end = field(2);
        let body = &bytes[..bytes.len() - TRAILER_LEN];
        if get_u64(bytes, 8) != bytes.len() as u64 || stamp.crc(at, &[&body[8..]]) != get_u32(bytes, 4) {
            return None;
        }
        if Self::named_stamp(bytes) != Some(stamp) || end < BLOCK || end > at {
            return None;
        }
        let mut index = Vec::new();
        for item in tlv::items(&body[FOOTER_FIXED..]) {
            let (tag, value) = item.ok()?;
            if tag == SECTION_INDEX {
                index = decode_index(value)?;
            }
        }
        Some(Self {
            end,
            groups: field(3),
            first_record: field(4),
            next_record: field(5),
            next_sequence: field(6),
            tally: Tally { records: field(7), traces: field(8), spans: field(9), units: field(10), bytes: field(11) },
            received: Span { wall_ns: (field(12), field(13)), clock_ms: (field(14), field(15)) },
            first_sequence: field(16),
            created: Now { wall_ns: field(17), clock_ms: field(18) },
            index,
        })
    }

    /// The length of a footer, from the last 16 bytes of a file.
    pub(crate) fn length(trailer: &[u8; TRAILER_LEN]) -> Option<u64> {
        let valid = get_u32(trailer, 8) == TRAILER_MAGIC && get_u32(trailer, 12) == crc32c::crc32c(&trailer[..12]);
        valid.then(|| get_u64(trailer, 0))
    }
}

fn decode_index(value: &[u8]) -> Option<Vec<IndexEntry>> {
    let mut index = Vec::with_capacity(value.len() / (INDEX_NUMBERS * 8));
    for entry in value.chunks(INDEX_NUMBERS * 8) {
        let [offset, first_record, records, traces, spans, units, bytes] = tlv::as_u64s(entry).ok()?;
        index.push(IndexEntry { offset, first_record, before: Tally { records, traces, spans, units, bytes } });
    }
    Some(index)
}

/// What the two ends of a segment file say.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) header: Result<Header, BadHeader>,
    /// Present when the segment was sealed.
    pub(crate) footer: Option<Footer>,
    /// The stamp that the footer names.
    pub(crate) named: Option<Stamp>,
    /// Of the file.
    pub(crate) length: u64,
}

/// Reads header and, if there is one, footer of an open segment.
pub(crate) fn read_ends(file: &dyn crate::disk::DiskFile, path: &Path) -> Result<Ends, Error> {
    let failed = |source| Error::io("read", path, source);
    let length = file.length().map_err(failed)?;
    let mut block = vec![0; BLOCK_LEN];
    let filled = file.read_at(&mut block, 0).map_err(failed)?;
    let header = Header::decode(&block[..filled]);
    let stamp = header.as_ref().ok().map(Header::stamp);
    let footer = read_footer(file, stamp, length).map_err(failed)?;
    Ok(Ends {
        header,
        footer: footer.as_ref().map(|(_, footer)| footer.clone()),
        named: footer.map(|(stamp, _)| stamp),
        length,
    })
}

/// The footer, if there is a valid one, and the stamp that it names; it must be `stamp` where that is known.
fn read_footer(
    file: &dyn crate::disk::DiskFile,
    stamp: Option<Stamp>,
    length: u64,
) -> std::io::Result<Option<(Stamp, Footer)>> {
    let mut trailer = [0; TRAILER_LEN];
    let Some(trailer_at) = length.checked_sub(TRAILER_LEN as u64).filter(|at| *at >= BLOCK) else { return Ok(None) };
    file.read_at(&mut trailer, trailer_at)?;
    let footer_len = Footer::length(&trailer).filter(|footer_len| *footer_len <= length - BLOCK);
    let Some(footer_len) = footer_len.and_then(|footer_len| usize::try_from(footer_len).ok()) else { return Ok(None) };
    let footer_at = length - footer_len as u64;
    let mut bytes = vec![0; footer_len];
    file.read_at(&mut bytes, footer_at)?;
    let Some(stamp) = stamp.or_else(|| Footer::named_stamp(&bytes)) else { return Ok(None) };
    Ok(Footer::decode(&bytes, stamp, footer_at).map(|footer| (stamp, footer)))
}

pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_only_as_they_are_written() {
        let dir = Path::new("");
        assert_eq!(path(dir, 26), Path::new("000000000000001a.seg"));
        assert_eq!(parse_name("000000000000001a.seg"), Some(26));
        for other in ["1a.seg", "000000000000001A.seg", "000000000000001a.tmp", "+00000000000001a.seg", "x.seg"] {
            assert_eq!(parse_name(other), None, "{other}");
        }
        assert!(is_unfinished("000000000000001a.tmp") && !is_unfinished("note.tmp"));
    }

    #[test]
    fn every_flipped_bit_of_header_and_footer_is_noticed() {
        let header = Header {
            stream: Stream::Side,
            segment: 3,
            epoch: 2,
            first_record: 100,
            first_sequence: 9,
            created: Now { wall_ns: 5, clock_ms: 6 },
            recycled: true,
            relaxed: true,
        };
        let block = header.encode();
        assert_eq!(Header::decode(&block), Ok(header));
        let footer = Footer {
            end: 8192,
            next_record: 107,
            first_sequence: 4,
            created: Now { wall_ns: 8, clock_ms: 9 },
            index: vec![IndexEntry { offset: 4096, first_record: 100, before: Tally::default() }],
            ..Footer::default()
        };
        let bytes = footer.encode(header.stamp());
        assert_eq!(Footer::decode(&bytes, header.stamp(), 8192), Some(footer));
        assert_eq!(Footer::decode(&bytes, header.stamp(), 8200), None, "elsewhere");
        assert_eq!(Footer::decode(&bytes, Stamp { segment: 3, epoch: 1 }, 8192), None, "stale");
        for (bytes, is_read) in [
            (&block, (|b: &[u8]| Header::decode(b).is_ok()) as fn(&[u8]) -> bool),
            (&bytes, |b| {
                let trailer = b[b.len() - TRAILER_LEN..].try_into().expect("16 bytes");
                Footer::length(&trailer) == Some(b.len() as u64)
                    && Footer::decode(b, Stamp { segment: 3, epoch: 2 }, 8192).is_some()
            }),
        ] {
            for at in 0..bytes.len() {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1;
                assert!(!is_read(&bytes), "byte {at}");
            }
        }
    }
}
