//! A directory that was a journal, after arbitrary changes: bytes, lengths, blocks from elsewhere, files gone and
//! added; some with checksums made right.

#![no_main]

use std::sync::LazyLock;

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;

static SAMPLE: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(tracespool_fuzz::sample);
const BLOCK: usize = 4096;

#[derive(Debug, Arbitrary)]
enum Change {
    /// Other bytes at an offset.
    Patch {
        file: u8,
        at: u16,
        bytes: [u8; 8],
        length: u8,
    },
    Cut {
        file: u8,
        length: u16,
    },
    Grow {
        file: u8,
        bytes: u16,
    },
    Remove {
        file: u8,
    },
    /// A block of one file over one of another, or of the same.
    Copy {
        from: u8,
        block: u8,
        to: u8,
        at: u8,
    },
    /// A file under another number.
    Twice {
        file: u8,
        id: u8,
    },
    Reseal {
        file: u8,
        adopt: bool,
    },
}

fn changed(input: &mut Unstructured<'_>) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = SAMPLE.clone();
    for _ in 0..32 {
        if input.is_empty() || files.is_empty() {
            break;
        }
        let count = files.len();
        let pick = |file: u8| usize::from(file) % count;
        match Change::arbitrary(input)? {
            Change::Patch { file, at, bytes, length } => {
                let file = &mut files[pick(file)].1;
                let length = usize::from(length) % 9;
                if let Some(to) = file.get_mut(usize::from(at)..usize::from(at) + length) {
                    to.copy_from_slice(&bytes[..length]);
                }
            }
            Change::Cut { file, length } => files[pick(file)].1.truncate(usize::from(length)),
            Change::Grow { file, bytes } => {
                let file = &mut files[pick(file)].1;
                file.resize((file.len() + usize::from(bytes)).min(1 << 18), 0);
            }
            Change::Remove { file } => drop(files.remove(pick(file))),
            Change::Copy { from, block, to, at } => {
                let (block, at) = (usize::from(block) * BLOCK, usize::from(at) * BLOCK);
                let Some(bytes) = files[pick(from)].1.get(block..block + BLOCK).map(<[u8]>::to_vec) else { continue };
                if let Some(to) = files[pick(to)].1.get_mut(at..at + BLOCK) {
                    to.copy_from_slice(&bytes);
                }
            }
            Change::Twice { file, id } => {
                let (name, bytes) = (format!("{id:016x}.seg"), files[pick(file)].1.clone());
                if files.len() < 12 && files.iter().all(|(other, _)| *other != name) {
                    files.push((name, bytes));
                }
            }
            Change::Reseal { file, adopt } => tracespool_fuzz::reseal(&mut files[pick(file)].1, adopt),
        }
    }
    Ok(files)
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(files) = changed(&mut Unstructured::new(bytes)) {
        tracespool_fuzz::check(&tracespool_fuzz::disk(&files));
    }
});
