//! Request bodies: the requests of a batch in a row, whole or compressed, without a needless copy.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, Write};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::config::Compression;

/// Below this a compression is over before another thread would have begun.
const INLINE_BYTES: usize = 32 * 1024;

/// The body of one request: `parts` in a row.
///
/// `ExportTraceServiceRequest` is one repeated field, and protobuf merges concatenated messages, so this is one request.
/// Compressed, it is one stream over all parts: many servers read only the first of several concatenated members.
///
/// # Errors
/// When the compressor fails, which is a lack of memory.
pub(super) async fn body(parts: Vec<Bytes>, compression: Compression) -> io::Result<Chunks> {
    if compression == Compression::None {
        return Ok(Chunks::new(parts));
    }
    let size = parts.iter().map(Bytes::len).sum::<usize>();
    let compressed = if size < INLINE_BYTES {
        compress(&parts, compression)?
    } else {
        blocking(move || compress(&parts, compression)).await??
    };
    Ok(Chunks::new(vec![Bytes::from(compressed)]))
}

/// Runs `work`, which takes a while, where it delays no other task.
///
/// # Errors
/// When the runtime is shutting down.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// The value of `Content-Encoding` and `grpc-encoding`.
pub(super) fn coding(compression: Compression) -> Option<&'static str> {
    match compression {
        Compression::None => None,
        Compression::Gzip => Some("gzip"),
        Compression::Zstd => Some("zstd"),
    }
}

fn compress(parts: &[Bytes], compression: Compression) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    match compression {
        Compression::None => parts.iter().for_each(|part| out.extend_from_slice(part)),
        Compression::Gzip => {
            // The fast level: traces are repetitive, and the time is spent once for every backend.
            let mut encoder = flate2::write::GzEncoder::new(&mut out, flate2::Compression::fast());
            for part in parts {
                encoder.write_all(part)?;
            }
            encoder.finish()?;
        }
        Compression::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(&mut out, 1)?;
            for part in parts {
                encoder.write_all(part)?;
            }
            encoder.finish()?;
        }
    }
    Ok(out)
}

/// A body of known length that hands out its parts as they are.
#[derive(Debug)]
pub(super) struct Chunks {
    parts: VecDeque<Bytes>,
    left: u64,
}

impl Chunks {
    /// `parts` in a row.
    pub(super) fn new(parts: Vec<Bytes>) -> Self {
        let left = parts.iter().map(|part| part.len() as u64).sum();
        // An empty frame in the middle of a body is legal, but some peers count such frames as an attack.
        Self { parts: parts.into_iter().filter(|part| !part.is_empty()).collect(), left }
    }

    /// Bytes in all parts that are still to be sent.
    pub(super) fn len(&self) -> u64 {
        self.left
    }

    /// Puts `part` in front.
    pub(super) fn prepend(&mut self, part: Bytes) {
        self.left += part.len() as u64;
        self.parts.push_front(part);
    }
}

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = self.parts.pop_front();
        if let Some(part) = &part {
            self.left -= part.len() as u64;
        }
        Poll::Ready(part.map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use http_body_util::BodyExt;

    use super::*;

    const PARTS: [&[u8]; 4] = [b"one", b"", b"two", b"three"];

    async fn sent(compression: Compression) -> Vec<u8> {
        let body = body(PARTS.iter().map(|part| Bytes::from_static(part)).collect(), compression).await.expect("body");
        let announced = body.len();
        let bytes = body.collect().await.expect("infallible").to_bytes();
        assert_eq!(announced, bytes.len() as u64);
        bytes.to_vec()
    }

    #[tokio::test]
    async fn uncompressed_parts_go_out_in_a_row() {
        assert_eq!(sent(Compression::None).await, b"onetwothree");
    }

    #[tokio::test]
    async fn compressed_parts_are_one_gzip_member() {
        let mut text = Vec::new();
        // This decoder stops after the first member, as those of many servers do.
        flate2::bufread::GzDecoder::new(&sent(Compression::Gzip).await[..]).read_to_end(&mut text).expect("gzip");
        assert_eq!(text, b"onetwothree");
    }

    #[tokio::test]
    async fn compressed_parts_are_one_zstd_frame() {
        let sent = sent(Compression::Zstd).await;
        let mut text = Vec::new();
        zstd::stream::read::Decoder::new(&sent[..]).expect("zstd").single_frame().read_to_end(&mut text).expect("zstd");
        assert_eq!(text, b"onetwothree");
    }
}
