//! Makes a path that gRPC's C core sends for a name into a name.
//!
//! gRPC over a Unix socket has no host, and gRPC's C core (Python, C++, Ruby, PHP) takes the path of the socket, with
//! `%2F` for its slashes, for the `:authority`. The h2 library refuses that as malformed, as RFC 3986 has it, and with it
//! every call of a client that does not know to set `grpc.default_authority`. On a Unix socket nobody looks at the
//! authority, so its percent signs are replaced before h2 sees them: one byte for one byte, in place, so that neither
//! lengths nor the state of header compression change.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection whose client may send a path for the authority.
#[derive(Debug)]
pub(super) struct NamedAuthority<I> {
    inner: I,
    scan: Scan,
}

impl<I> NamedAuthority<I> {
    pub(super) fn new(inner: I) -> Self {
        Self { inner, scan: Scan::default() }
    }
}

/// Where in the client's bytes we are (RFC 9113, sections 3.4 and 4.1).
#[derive(Debug)]
enum Scan {
    /// So many bytes of HTTP/2's first words have come.
    Preface(usize),
    /// The head of a frame, as far as it has come.
    Head([u8; HEAD], usize),
    /// So many bytes of a frame that holds no headers.
    Other(usize),
    /// So many bytes of a frame that does.
    Headers(usize, Search),
    /// It is not HTTP/2.
    Off,
}

impl Default for Scan {
    fn default() -> Self {
        Self::Preface(0)
    }
}

/// Where in a block of headers we are (RFC 7541, section 6.2). C core writes the name out, and neither name nor value in
/// Huffman's code; what is written otherwise is left alone. A name that is written out begins with its length, which for
/// this one is a line break, so that it can't be mistaken for a part of a value: those have none.
#[derive(Debug, Clone, Copy)]
enum Search {
    /// So many bytes of the name have come.
    Name(usize),
    /// The length of the value, when it does not fit into one byte: what it is so far, and the place of the next bits.
    Length(usize, u32),
    /// So many bytes of the value are to come.
    Value(usize),
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const NAME: &[u8] = b"\n:authority";
/// A length of seven bits that says that more follow.
const LONG: usize = 0x7f;
/// Longer than any encoded path of a socket.
const LONGEST: usize = 1024;

impl Scan {
    fn run(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let mut used = 1;
            *self = match std::mem::replace(self, Self::Off) {
                Self::Off => return,
                Self::Preface(at) if bytes[0] != PREFACE[at] => return,
                Self::Preface(at) if at + 1 < PREFACE.len() => Self::Preface(at + 1),
                Self::Preface(_) => Self::Head([0; HEAD], 0),
                Self::Head(mut head, at) => {
                    head[at] = bytes[0];
                    if at + 1 < HEAD { Self::Head(head, at + 1) } else { Self::frame(head) }
                }
                Self::Other(left) => {
                    used = left.min(bytes.len());
                    Self::rest(left - used, Self::Other)
                }
                Self::Headers(left, search) => {
                    let search = search.next(&mut bytes[0]);
                    Self::rest(left - 1, |left| Self::Headers(left, search))
                }
            };
            bytes = &mut bytes[used..];
        }
    }

    fn frame(head: [u8; HEAD]) -> Self {
        let length = usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).unwrap_or(usize::MAX);
        Self::rest(length, |length| match head[3] {
            HEADERS | CONTINUATION => Self::Headers(length, Search::Name(0)),
            _ => Self::Other(length),
        })
    }

    fn rest(left: usize, scan: impl FnOnce(usize) -> Self) -> Self {
        if left == 0 { Self::Head([0; HEAD], 0) } else { scan(left) }
    }
}

impl Search {
    fn next(self, byte: &mut u8) -> Self {
        match self {
            Self::Name(at) if at == NAME.len() => match usize::from(*byte) {
                LONG => Self::Length(LONG, 0),
                length if length < LONG => Self::value(length),
                _ => Self::Name(0),
            },
            Self::Name(at) if *byte == NAME[at] => Self::Name(at + 1),
            Self::Name(_) => Self::Name(usize::from(*byte == NAME[0])),
            Self::Length(length, shift) => {
                let length = length + (usize::from(*byte & 0x7f) << shift);
                match *byte & 0x80 {
                    _ if length > LONGEST => Self::Name(0),
                    0 => Self::value(length),
                    _ if shift < 14 => Self::Length(length, shift + 7),
                    _ => Self::Name(0),
                }
            }
            Self::Value(left) => {
                if *byte == b'%' {
                    *byte = b'.';
                }
                Self::value(left - 1)
            }
        }
    }

    fn value(left: usize) -> Self {
        if left == 0 { Self::Name(0) } else { Self::Value(left) }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for NamedAuthority<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        self.scan.run(&mut buf.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for NamedAuthority<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, 4, 0, 0, 0, 1], payload].concat()
    }

    /// A block of headers as C core writes it, with this length before the value.
    fn block(length: &[u8], authority: &str) -> Vec<u8> {
        [b"@\x05:path\x04/a%b@\n:authority", length, authority.as_bytes(), b"\x83\x86@\x02te\x03%2F"].concat()
    }

    fn connection(authority: &str, length: &[u8]) -> Vec<u8> {
        let block = block(length, authority);
        [PREFACE.to_vec(), frame(4, b""), frame(0, b"\n:authority\x03%2F"), frame(1, &block), frame(0, b"%2F%2F")]
            .concat()
    }

    #[test]
    fn the_authority_loses_its_percent_signs_and_nothing_else_changes() {
        let long = format!("tmp{}", "%2Fdirectory".repeat(12));
        let length = long.len() - LONG;
        let length = [0x7f, u8::try_from(length).expect("short")];
        for (authority, length) in
            [("run%2Fspool.sock", &[16_u8][..]), (&long, &length), ("localhost", &[9]), ("", &[0])]
        {
            let sent = connection(authority, length);
            let expected = connection(&authority.replace('%', "."), length);
            // However the bytes are cut.
            for step in [1, 2, 3, 7, sent.len()] {
                let mut seen = sent.clone();
                let mut scan = Scan::default();
                seen.chunks_mut(step).for_each(|piece| scan.run(piece));
                assert_eq!(seen, expected, "{authority} in pieces of {step}");
            }
        }
    }

    #[test]
    fn what_is_written_otherwise_is_left_alone() {
        // In Huffman's code, with a length that is none, and no HTTP/2 at all.
        let huffman = [PREFACE.to_vec(), frame(1, b"@\n:authority\x83%%%")].concat();
        let endless = [PREFACE.to_vec(), frame(1, b"@\n:authority\x7f\xff\xff\xff\xff%%%")].concat();
        for sent in [huffman, endless, b"POST /%2F HTTP/1.1\r\nx:\n:authority\x03%2F".to_vec()] {
            let mut seen = sent.clone();
            Scan::default().run(&mut seen);
            assert_eq!(seen, sent);
        }
    }
}
