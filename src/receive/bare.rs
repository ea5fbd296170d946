//! Gives a body to the refusals that hyper writes by itself.
//!
//! What is no HTTP/1.1 never becomes a request that could be answered here: hyper answers 400, 414 or 431, without a
//! body, and closes. Clients of OTLP look for a `google.rpc.Status` in every refusal, so it is put in on the way out.
//! hyper's own answers are told from ours by what they lack: ours name a type.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::refusal::Code;

/// A connection on which no refusal of HTTP/1.1 is without a body.
#[derive(Debug)]
pub(super) struct WithBodies<I> {
    inner: I,
    /// An answer that was changed, as far as it is not written.
    pending: Vec<u8>,
}

impl<I: AsyncWrite + Unpin> WithBodies<I> {
    pub(super) fn new(inner: I) -> Self {
        Self { inner, pending: Vec::new() }
    }

    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.pending))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

/// The same bytes with a body, when they end in a refusal that has none.
fn completed(bytes: &[u8]) -> Option<Vec<u8>> {
    const START: &[u8] = b"HTTP/1.1 ";
    const NO_BODY: &str = "content-length: 0\r\n";
    // Such an answer is the last on its connection, and what is written together begins with an answer.
    if !bytes.starts_with(START) || !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let start = bytes.windows(START.len()).rposition(|window| window == START)?;
    let head = std::str::from_utf8(&bytes[start..]).ok()?;
    let status = head.get(START.len()..)?.get(..3)?;
    if !status.starts_with(['4', '5']) || head.contains("content-type:") || !head.contains(NO_BODY) {
        return None;
    }
    let (code, message) = match status {
        "414" => (Code::ResourceExhausted, "the address of the request is too long"),
        "431" => (Code::ResourceExhausted, "the head of the request is larger than 64 KiB"),
        _ => (Code::InvalidArgument, "this is not a request of HTTP/1.1 or HTTP/2"),
    };
    let body = serde_json::json!({ "code": code.number(), "message": message }).to_string();
    let head = head.replace(NO_BODY, &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()));
    Some([&bytes[..start], head.as_bytes(), body.as_bytes()].concat())
}

impl<I: AsyncRead + Unpin> AsyncRead for WithBodies<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

/// Vectored writes are not offered, so that an answer comes in one piece; answers are small.
impl<I: AsyncWrite + Unpin> AsyncWrite for WithBodies<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_pending(cx))?;
        match completed(buf) {
            None => Pin::new(&mut self.inner).poll_write(cx, buf),
            Some(bytes) => {
                // All of it is taken; what can't be written now goes out with the flush that follows.
                self.pending = bytes;
                if let Poll::Ready(Err(error)) = self.poll_pending(cx) {
                    return Poll::Ready(Err(error));
                }
                Poll::Ready(Ok(buf.len()))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_refusals_without_a_body_are_changed() {
        let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let ours = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        let with_body = String::from_utf8(completed(bare).expect("changed")).expect("text");
        assert!(
            with_body.ends_with(r#"{"code":8,"message":"the head of the request is larger than 64 KiB"}"#),
            "{with_body}"
        );
        assert!(with_body.contains("\r\ncontent-length: 68\r\n"), "{with_body}");
        let both = completed(&[&ours[..], bare].concat()).expect("changed");
        assert!(both.starts_with(ours) && both.ends_with(b"}"));
        for unchanged in [
            &ours[..],
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
            b"\0\0\0\x04HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
            b"",
        ] {
            assert_eq!(completed(unchanged), None);
        }
    }
}
