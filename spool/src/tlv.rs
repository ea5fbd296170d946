//! Type, length, value: the extensible part of envelopes, controls, checkpoints and footers.
//!
//! Each item is a tag (`u16`), a length (`u32`) and that many bytes, little-endian. A reader skips tags it does not
//! know, unless [`CRITICAL`] is set: then it must not guess at the rest.

/// Set in the tags that a reader must understand to read the rest right.
pub(crate) const CRITICAL: u16 = 0x8000;

const HEAD: usize = 6;

/// The bytes are not a sequence of items, or a value has another shape than its tag says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Appends items.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    pub(crate) fn bytes(&mut self, tag: u16, value: &[u8]) -> &mut Self {
        let length = u32::try_from(value.len()).expect("no value of this format reaches 4 GiB");
        self.bytes.extend_from_slice(&tag.to_le_bytes());
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(value);
        self
    }

    pub(crate) fn text(&mut self, tag: u16, value: Option<&str>) -> &mut Self {
        if let Some(value) = value {
            self.bytes(tag, value.as_bytes());
        }
        self
    }

    pub(crate) fn u8(&mut self, tag: u16, value: u8) -> &mut Self {
        self.bytes(tag, &[value])
    }

    pub(crate) fn u32(&mut self, tag: u16, value: u32) -> &mut Self {
        self.bytes(tag, &value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, tag: u16, value: u64) -> &mut Self {
        self.bytes(tag, &value.to_le_bytes())
    }

    /// Several numbers in a row under one tag.
    pub(crate) fn u64s(&mut self, tag: u16, values: &[u64]) -> &mut Self {
        let mut bytes = Vec::with_capacity(values.len() * 8);
        for value in values {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        self.bytes(tag, &bytes)
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Walks the items of `bytes`.
pub(crate) fn items(bytes: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), Malformed>> {
    let mut rest = bytes;
    let mut failed = false;
    std::iter::from_fn(move || {
        if rest.is_empty() || failed {
            return None;
        }
        let item = split(rest);
        match item {
            Some((tag, value, behind)) => {
                rest = behind;
                Some(Ok((tag, value)))
            }
            None => {
                failed = true;
                Some(Err(Malformed))
            }
        }
    })
}

fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (head, behind) = bytes.split_at_checked(HEAD)?;
    let tag = u16::from_le_bytes([head[0], head[1]]);
    let length = u32::from_le_bytes([head[2], head[3], head[4], head[5]]);
    let (value, behind) = behind.split_at_checked(usize::try_from(length).ok()?)?;
    Some((tag, value, behind))
}

pub(crate) fn as_u8(value: &[u8]) -> Result<u8, Malformed> {
    <[u8; 1]>::try_from(value).map(|[byte]| byte).map_err(|_| Malformed)
}

pub(crate) fn as_u32(value: &[u8]) -> Result<u32, Malformed> {
    value.try_into().map(u32::from_le_bytes).map_err(|_| Malformed)
}

pub(crate) fn as_u64(value: &[u8]) -> Result<u64, Malformed> {
    value.try_into().map(u64::from_le_bytes).map_err(|_| Malformed)
}

/// Numbers in a row; a longer row than the caller knows is an extension, a shorter one reads as zeros.
pub(crate) fn as_u64s<const N: usize>(value: &[u8]) -> Result<[u64; N], Malformed> {
    if !value.len().is_multiple_of(8) {
        return Err(Malformed);
    }
    let mut numbers = [0; N];
    for (number, bytes) in numbers.iter_mut().zip(value.chunks_exact(8)) {
        *number = as_u64(bytes)?;
    }
    Ok(numbers)
}

pub(crate) fn as_text(value: &[u8]) -> Result<String, Malformed> {
    std::str::from_utf8(value).map(str::to_owned).map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_back_as_written_and_a_cut_is_noticed() {
        let mut encoder = Encoder::default();
        encoder.u8(1, 7).text(2, Some("é")).text(3, None).u64s(4, &[1, u64::MAX]);
        let bytes = encoder.finish();
        let read: Vec<_> = items(&bytes).collect::<Result<_, _>>().expect("well formed");
        assert_eq!(read.iter().map(|(tag, _)| *tag).collect::<Vec<_>>(), [1, 2, 4]);
        assert_eq!(as_u64s::<3>(read[2].1), Ok([1, u64::MAX, 0]));
        for cut in 1..bytes.len() {
            let whole = items(&bytes[..cut]).all(|item| item.is_ok());
            // A cut between two items can't be seen here; the frame's checksum covers the whole.
            let between = [7, 15].contains(&cut);
            assert_eq!(whole, between, "cut at {cut}");
        }
    }
}
