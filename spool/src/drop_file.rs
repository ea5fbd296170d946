//! How far a file of the drop directory was taken: a fact until the file is known to be gone.

use std::ops::Range;

use crate::Ranges;
use crate::tlv::{self, CRITICAL, Encoder, Malformed};

/// Which file it is, under whatever name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// The device it is on.
    pub device: u64,
    /// Its inode there.
    pub inode: u64,
}

/// A file of which something was taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DropFile {
    /// What lies before this byte, counted after decompression, is in the journal or was set aside.
    pub behind: u64,
    /// Length of the file when that was read.
    pub length: u64,
    /// When it was last written to, in nanoseconds since 1970.
    pub modified_ns: u64,
    /// When the inode came into being, in nanoseconds since 1970; 0 where the file system doesn't say.
    pub born_ns: u64,
    /// CRC-32C of the bytes before `behind`.
    pub checksum: u64,
    /// Parts behind `behind` that are in the journal all the same, because a torn group held them.
    pub beyond: Ranges,
}

const NUMBERS: u16 = CRITICAL | 1;
const BEYOND: u16 = CRITICAL | 2;

impl DropFile {
    /// More of it was taken.
    pub(crate) fn advance(&mut self, to: &Self) {
        let mut beyond = std::mem::take(&mut self.beyond);
        beyond.remove(0..to.behind);
        *self = Self { beyond, ..to.clone() };
    }

    /// More of it may have been taken.
    pub(crate) fn doubt(&mut self, to: &Self) {
        let Self { behind, checksum, .. } = *self;
        *self = Self { behind, checksum, beyond: std::mem::take(&mut self.beyond), ..to.clone() };
    }

    /// This part of it is in the journal.
    pub(crate) fn note(&mut self, part: Range<u64>) {
        self.beyond.insert(part.start.max(self.behind)..part.end);
    }

    pub(crate) fn numbers(&self, file: FileId) -> [u64; 7] {
        [file.device, file.inode, self.behind, self.length, self.modified_ns, self.born_ns, self.checksum]
    }

    pub(crate) fn from_numbers(numbers: [u64; 7]) -> (FileId, Self) {
        let [device, inode, behind, length, modified_ns, born_ns, checksum] = numbers;
        let taken = Self { behind, length, modified_ns, born_ns, checksum, beyond: Ranges::default() };
        (FileId { device, inode }, taken)
    }

    pub(crate) fn encode(&self, file: FileId) -> Vec<u8> {
        let mut to = Encoder::default();
        to.u64s(NUMBERS, &self.numbers(file));
        if !self.beyond.is_empty() {
            let pairs: Vec<u64> = self.beyond.iter().flat_map(|range| [range.start, range.end]).collect();
            to.u64s(BEYOND, &pairs);
        }
        to.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<(FileId, Self), Malformed> {
        let mut found = None;
        let mut beyond = Ranges::default();
        for item in tlv::items(bytes) {
            let (tag, value) = item?;
            match tag {
                NUMBERS => found = Some(Self::from_numbers(tlv::as_u64s(value)?)),
                BEYOND => {
                    for pair in value.chunks(16) {
                        let [start, end] = tlv::as_u64s(pair)?;
                        beyond.insert(start..end);
                    }
                }
                unknown if unknown & CRITICAL != 0 => return Err(Malformed),
                _ => {}
            }
        }
        let (file, taken) = found.ok_or(Malformed)?;
        Ok((file, Self { beyond, ..taken }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::SourceRange;
    use crate::state::{Control, State};

    const FILE: FileId = FileId { device: 7, inode: 9 };

    fn taken(behind: u64) -> DropFile {
        DropFile { behind, length: 100, modified_ns: 5, born_ns: 4, checksum: behind + 1, beyond: Ranges::default() }
    }

    fn source(start: u64, end: u64) -> SourceRange {
        SourceRange { device: 7, inode: 9, start, end }
    }

    #[test]
    fn it_comes_back_as_written() {
        let mut file = taken(10);
        for parts in [vec![], vec![20..30, 40..50]] {
            parts.into_iter().for_each(|part| file.note(part));
            assert_eq!(DropFile::decode(&file.encode(FILE)), Ok((FILE, file.clone())));
        }
        for control in [Control::FileTaken { file: FILE, taken: taken(3) }, Control::FileGone { file: FILE }] {
            assert_eq!(Control::decode(&control.encode()), Ok(vec![control]));
        }
    }

    #[test]
    fn every_byte_is_where_the_format_says() {
        let numbers = |numbers: &[u64]| numbers.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<_>>();
        let item = |tag: u16, value: Vec<u8>| {
            let length = u32::try_from(value.len()).expect("short").to_le_bytes();
            [&tag.to_le_bytes()[..], &length, &value].concat()
        };
        let row = numbers(&[7, 9, 10, 100, 5, 4, 11]);
        let control = Control::FileTaken { file: FILE, taken: taken(10) };
        assert_eq!(control.encode(), item(0x800a, row.clone()));
        assert_eq!(Control::FileGone { file: FILE }.encode(), item(0x800b, numbers(&[7, 9])));
        let mut file = taken(10);
        file.note(20..30);
        assert_eq!(file.encode(FILE), [item(0x8001, row), item(0x8002, numbers(&[20, 30]))].concat());
    }

    #[test]
    fn a_whole_group_moves_the_end_and_a_torn_one_only_says_what_is_there() {
        let mut state = State::default();
        state.apply(&Control::FileTaken { file: FILE, taken: taken(10) });
        let mut torn = state.clone();
        torn.apply_in_doubt(&Control::FileTaken { file: FILE, taken: taken(40) });
        torn.note_source(source(10, 20));
        torn.note_source(source(30, 40));
        let file = &torn.drop_files[&FILE];
        assert_eq!((file.behind, file.checksum), (10, 11), "what lies between may be lost");
        assert_eq!(file.beyond.iter().collect::<Vec<_>>(), [10..20, 30..40]);
        torn.apply(&Control::FileTaken { file: FILE, taken: taken(30) });
        assert_eq!(torn.drop_files[&FILE].beyond.first(), Some(30..40));
        state.apply(&Control::FileTaken { file: FILE, taken: taken(40) });
        assert_eq!(state.drop_files[&FILE], taken(40));
        state.apply(&Control::FileGone { file: FILE });
        assert!(state.drop_files.is_empty());
    }
}
