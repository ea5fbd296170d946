//! The body of every answer: at most one piece of data, and for gRPC the trailers; or what another server answers.

use std::any::Any;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

/// An answer's body; small and all there from the start, unless it is another server's.
#[derive(Debug, Default)]
pub(super) struct Reply {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
    stream: Option<reqwest::Body>,
    /// Dropped at the end of a stream.
    held: Vec<Box<dyn Any + Send>>,
}

impl Reply {
    /// Only data; empty data is no data.
    pub(super) fn data(data: impl Into<Bytes>) -> Self {
        let data = data.into();
        Self { data: (!data.is_empty()).then_some(data), ..Self::default() }
    }

    /// What another server answers, as it comes.
    pub(super) fn stream(body: reqwest::Body) -> Self {
        Self { stream: Some(body), ..Self::default() }
    }

    /// Keeps something for as long as a stream lasts; at once over for an answer that is all there.
    pub(super) fn holding(mut self, held: impl Any + Send) -> Self {
        if self.stream.is_some() {
            self.held.push(Box::new(held));
        }
        self
    }

    /// Nothing: in HTTP/2 the stream ends with the headers.
    pub(super) fn empty() -> Self {
        Self::default()
    }

    /// Data, then trailers.
    pub(super) fn with_trailers(mut self, trailers: HeaderMap) -> Self {
        self.trailers = Some(trailers);
        self
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, reqwest::Error>>> {
        if let Some(stream) = &mut self.stream {
            return Pin::new(stream).poll_frame(cx);
        }
        let frame = match self.data.take() {
            Some(data) => Some(Frame::data(data)),
            None => self.trailers.take().map(Frame::trailers),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        match &self.stream {
            Some(stream) => stream.is_end_stream(),
            None => self.data.is_none() && self.trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        if let Some(stream) = &self.stream {
            return stream.size_hint();
        }
        if self.trailers.is_some() {
            // A known length becomes a Content-Length, and a client that counts to it (curl) never sees the trailers.
            return SizeHint::default();
        }
        let length = self.data.as_ref().map_or(0, Bytes::len);
        SizeHint::with_exact(u64::try_from(length).unwrap_or(u64::MAX))
    }
}
