//! Content codings: which there are, and how a body is decompressed without trusting it.

use std::io::Read;

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};

use super::budget::Charge;
use super::size;
use crate::intake::Refusal;

/// How much is decompressed before the limit and the budget are asked again.
const STEP: usize = 64 << 10;

/// Largest back-reference distance of a zstd frame as a power of two: 8 MiB, which is what "Window Sizing for Zstandard
/// Content Encoding" (RFC 9659) allows a sender. The decoder's memory follows it, so it must not be the sender's choice.
pub(super) const ZSTD_WINDOW_LOG: u32 = 23;

/// How a body, or a gRPC message, is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// Not at all.
    Identity,
    /// RFC 1952, any number of members.
    Gzip,
    /// RFC 1950 as HTTP means it, or RFC 1951 as many send it.
    Deflate,
    /// RFC 8878, any number of frames.
    Zstd,
}

impl Coding {
    /// For `grpc-accept-encoding`.
    pub(super) const ACCEPTED: &str = "identity,deflate,gzip,zstd";

    /// The coding of that name, in any case; none of that name is `None`.
    pub(super) fn named(name: &str) -> Option<Self> {
        let name = name.trim();
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("identity") || name.is_empty() {
            Some(Self::Identity)
        } else if is("gzip") || is("x-gzip") {
            Some(Self::Gzip)
        } else if is("deflate") || is("zlib") {
            Some(Self::Deflate)
        } else if is("zstd") {
            Some(Self::Zstd)
        } else {
            None
        }
    }
}

/// Decompresses the whole of `input`, or refuses it: what remains behind the last member is an error and never
/// ignored, because ignoring it would acknowledge data that is then lost.
///
/// `charge` holds input and output as the output grows. The limit ends the work at most one step late, however much
/// the input would expand to.
pub(super) fn decode(coding: Coding, input: &Bytes, limit: u64, charge: &mut Charge) -> Result<Bytes, Refusal> {
    let mut output = Output { bytes: Vec::new(), input: size(input.len()), limit, charge };
    match coding {
        Coding::Identity => return Ok(input.clone()),
        Coding::Gzip => output.fill(MultiGzDecoder::new(&input[..]), "gzip")?,
        Coding::Deflate => inflate(input, &mut output)?,
        Coding::Zstd => {
            if input.is_empty() {
                return Err(corrupt("zstd"));
            }
            let mut decoder = zstd::Decoder::with_buffer(&input[..]).map_err(|_| corrupt("zstd"))?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(|_| corrupt("zstd"))?;
            output.fill(decoder, "zstd")?;
        }
    }
    Ok(output.bytes.into())
}

/// Zlib when it looks like zlib (RFC 1950, section 2.2: the first two bytes are a multiple of 31 and name method 8),
/// else raw. The streaming readers take the end of the input for the end of the stream, so the end is checked here.
fn inflate(input: &[u8], output: &mut Output<'_>) -> Result<(), Refusal> {
    let zlib = match input {
        [first, second, ..] => first & 0x0f == 8 && u16::from_be_bytes([*first, *second]).is_multiple_of(31),
        _ => false,
    };
    let mut stream = Decompress::new(zlib);
    loop {
        let (read, written) = (stream.total_in(), stream.total_out());
        let rest = usize::try_from(read).ok().and_then(|read| input.get(read..)).unwrap_or_default();
        output.bytes.reserve(output.step());
        let status =
            stream.decompress_vec(rest, &mut output.bytes, FlushDecompress::None).map_err(|_| corrupt("deflate"))?;
        output.settle()?;
        match status {
            Status::StreamEnd if stream.total_in() == size(input.len()) => return Ok(()),
            Status::StreamEnd => return Err(Refusal::Invalid("there are bytes behind the deflate stream".into())),
            Status::Ok | Status::BufError => {
                if stream.total_in() == read && stream.total_out() == written {
                    return Err(corrupt("deflate"));
                }
            }
        }
    }
}

/// What came out so far, and what it may become.
struct Output<'a> {
    bytes: Vec<u8>,
    input: u64,
    limit: u64,
    charge: &'a mut Charge,
}

impl Output<'_> {
    /// Takes all that `reader` gives.
    fn fill(&mut self, mut reader: impl Read, name: &'static str) -> Result<(), Refusal> {
        loop {
            let step = self.step();
            let count = reader
                .by_ref()
                .take(size(step))
                .read_to_end(&mut self.bytes)
                // The error's own text may quote the input.
                .map_err(|_| corrupt(name))?;
            self.settle()?;
            if count < step {
                return Ok(());
            }
        }
    }

    /// One byte more than the limit is enough to know that it is passed.
    fn step(&self) -> usize {
        let left = self.limit.saturating_sub(size(self.bytes.len())).saturating_add(1);
        usize::try_from(left).unwrap_or(STEP).min(STEP)
    }

    fn settle(&mut self) -> Result<(), Refusal> {
        let length = size(self.bytes.len());
        if length > self.limit {
            return Err(Refusal::TooLarge { limit: self.limit });
        }
        self.charge.hold(self.input + length)
    }
}

fn corrupt(name: &str) -> Refusal {
    Refusal::Invalid(format!("the body is not what its {name} encoding says, or it is cut short"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;
    use crate::receive::budget::Budget;

    const MIB: u64 = 1 << 20;

    fn decoded(coding: Coding, input: Vec<u8>, limit: u64) -> Result<Vec<u8>, Refusal> {
        let mut charge = Budget::new(64 * MIB).open()?;
        decode(coding, &input.into(), limit, &mut charge).map(Vec::from)
    }

    fn gzip(data: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(data)?;
        encoder.finish()
    }

    fn zlib(data: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(data)?;
        encoder.finish()
    }

    fn raw(data: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(data)?;
        encoder.finish()
    }

    fn sample() -> Vec<u8> {
        (0..300_000u32).flat_map(u32::to_le_bytes).collect()
    }

    /// The same data in every coding that compresses.
    fn all(data: &[u8]) -> std::io::Result<Vec<(Coding, Vec<u8>)>> {
        Ok(vec![
            (Coding::Gzip, gzip(data)?),
            (Coding::Deflate, zlib(data)?),
            (Coding::Deflate, raw(data)?),
            (Coding::Zstd, zstd::encode_all(data, 3)?),
        ])
    }

    #[test]
    fn names_are_compared_in_any_case() {
        assert_eq!(Coding::named("GZip"), Some(Coding::Gzip));
        assert_eq!(Coding::named(" identity "), Some(Coding::Identity));
        assert_eq!(Coding::named("deflate"), Some(Coding::Deflate));
        assert_eq!(Coding::named("zstd"), Some(Coding::Zstd));
        assert_eq!(Coding::named("br"), None);
        assert_eq!(Coding::named("gzip, zstd"), None);
    }

    #[test]
    fn every_coding_gives_back_what_went_in() -> Result<(), Box<dyn std::error::Error>> {
        for data in [sample(), b"x".to_vec(), Vec::new()] {
            for (coding, input) in all(&data)? {
                assert_eq!(decoded(coding, input, 2 * MIB)?, data, "{coding:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn all_members_and_frames_are_read() -> Result<(), Box<dyn std::error::Error>> {
        let members = [gzip(b"one ")?, gzip(b"two ")?, gzip(b"three")?].concat();
        assert_eq!(decoded(Coding::Gzip, members, MIB)?, b"one two three");
        let frames = [zstd::encode_all(&b"one "[..], 1)?, zstd::encode_all(&b"two"[..], 1)?].concat();
        assert_eq!(decoded(Coding::Zstd, frames, MIB)?, b"one two");
        Ok(())
    }

    #[test]
    fn whatever_follows_the_stream_is_refused() -> Result<(), Box<dyn std::error::Error>> {
        for (coding, mut input) in all(b"a trace")? {
            input.extend_from_slice(b"and what is this?");
            assert!(matches!(decoded(coding, input, MIB), Err(Refusal::Invalid(_))), "{coding:?}");
        }
        Ok(())
    }

    #[test]
    fn a_stream_cut_anywhere_is_refused() -> Result<(), Box<dyn std::error::Error>> {
        for (coding, input) in all(b"a trace, a trace, a short trace")? {
            for end in 0..input.len() {
                let outcome = decoded(coding, input[..end].to_vec(), MIB);
                assert!(matches!(outcome, Err(Refusal::Invalid(_))), "{coding:?} cut at {end}: {outcome:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn the_limit_is_exact_and_ends_the_work() -> Result<(), Box<dyn std::error::Error>> {
        let data = sample();
        let length = size(data.len());
        for (coding, input) in all(&data)? {
            assert_eq!(decoded(coding, input.clone(), length)?.len(), data.len(), "{coding:?}");
            let over = decoded(coding, input, length - 1);
            assert_eq!(over, Err(Refusal::TooLarge { limit: length - 1 }), "{coding:?}");
        }
        Ok(())
    }

    #[test]
    fn a_bomb_is_charged_while_it_unfolds() -> Result<(), Box<dyn std::error::Error>> {
        let bomb: Bytes = gzip(&vec![0; 32 << 20])?.into();
        let budget = Budget::new(8 * MIB);
        let mut charge = budget.open()?;
        assert!(matches!(decode(Coding::Gzip, &bomb, 64 * MIB, &mut charge), Err(Refusal::Busy { .. })));
        assert!(budget.used() <= 8 * MIB);
        drop(charge);
        assert_eq!(budget.used(), 0);
        Ok(())
    }

    #[test]
    fn a_zstd_window_beyond_the_rfc_is_refused() -> Result<(), Box<dyn std::error::Error>> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1)?;
        encoder.window_log(24)?;
        encoder.write_all(&vec![7; 20 << 20])?;
        let input = encoder.finish()?;
        assert!(matches!(decoded(Coding::Zstd, input, 64 * MIB), Err(Refusal::Invalid(_))));
        Ok(())
    }

    #[test]
    fn plain_text_is_no_compressed_stream() {
        for coding in [Coding::Gzip, Coding::Deflate, Coding::Zstd] {
            assert!(matches!(decoded(coding, b"{\"resourceSpans\":[]}".to_vec(), MIB), Err(Refusal::Invalid(_))));
        }
    }
}
