//! Reading a request's body: bounded in size, in memory and in time.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::budget::Charge;
use super::refusal::Problem;
use super::size;
use crate::intake::Refusal;

/// A body of which nothing came for so long is given up.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Every body has this long, and then as long as its bytes take at [`LEAST_RATE`]. Well above the ten seconds after
/// which an SDK gives up by itself, so that no client that still waits is ever cut off.
const GRACE: Duration = Duration::from_secs(30);

/// In bytes a second. A body of 64 MiB may take about an hour and no longer.
const LEAST_RATE: u64 = 16 << 10;

/// The first allocation for a body that comes in more than one piece; what is announced beyond it is believed only as
/// it arrives.
const FIRST_ROOM: usize = 64 << 10;

/// How much of a refused body is still read, and for how long, so that a client which sends everything before it reads
/// finds the answer and not a reset connection.
pub(super) const DRAIN_BYTES: u64 = 256 << 20;
pub(super) const DRAIN_TIME: Duration = Duration::from_secs(5);

/// The body of one request.
#[derive(Debug)]
pub(super) struct Inbound<B> {
    body: B,
    begun: bool,
}

impl<B: Body<Data = Bytes> + Unpin> Inbound<B> {
    pub(super) fn new(body: B) -> Self {
        Self { body, begun: false }
    }

    /// The length that `Content-Length` announced.
    pub(super) fn announced(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// Reads all of it into one piece; a body that comes in one piece is not copied, any other once.
    ///
    /// `length` is asked with what is there so far how long the whole will be. It may refuse, and once it knows, bytes
    /// beyond are refused.
    pub(super) async fn read(
        &mut self,
        limit: u64,
        charge: &mut Charge,
        mut length: impl FnMut(&[u8]) -> Result<Option<u64>, Problem>,
    ) -> Result<Bytes, Problem> {
        let mut gathered = Gathered::default();
        let mut whole = length(&[])?;
        let mut pace = Pace::new();
        while let Some(piece) = self.next(&mut pace).await? {
            let received = size(gathered.as_slice().len()) + size(piece.len());
            if received > limit {
                return Err(Refusal::TooLarge { limit }.into());
            }
            if let Some(total) = whole {
                charge.announce(total);
            }
            charge.hold(received)?;
            gathered.push(piece, whole);
            if whole.is_none() {
                whole = length(gathered.as_slice())?;
            }
            if whole.is_some_and(|whole| received > whole) {
                return Err(Problem::invalid("there are bytes behind the end of the message"));
            }
        }
        Ok(gathered.into_bytes())
    }

    /// Whether there is nothing to read.
    pub(super) fn is_over(&self) -> bool {
        self.body.is_end_stream()
    }

    /// Hands every piece on as it comes, until `to` wants no more.
    pub(super) async fn pour<F: Future<Output = bool>>(&mut self, to: impl Fn(Bytes) -> F) -> Result<(), Problem> {
        let mut pace = Pace::new();
        while let Some(piece) = self.next(&mut pace).await? {
            if !to(piece).await {
                break;
            }
            // How long the other side took is not the client's doing.
            pace.last = Instant::now();
        }
        Ok(())
    }

    /// Reads all of it and keeps nothing.
    pub(super) async fn discard(&mut self, limit: u64) -> Result<(), Problem> {
        let mut received = 0;
        let mut pace = Pace::new();
        while let Some(piece) = self.next(&mut pace).await? {
            received += size(piece.len());
            if received > limit {
                return Err(Refusal::TooLarge { limit }.into());
            }
        }
        Ok(())
    }

    /// The next piece of data, or the end.
    async fn next(&mut self, pace: &mut Pace) -> Result<Option<Bytes>, Problem> {
        self.begun = true;
        loop {
            match timeout_at(pace.deadline(), self.body.frame()).await {
                Err(_) => return Err(Problem::slow()),
                Ok(None) => return Ok(None),
                // Whoever broke off does not read the answer; whoever broke HTTP's framing may.
                Ok(Some(Err(_))) => return Err(Problem::invalid("the body ended early or is not framed as HTTP asks")),
                Ok(Some(Ok(frame))) => {
                    // Trailers of a request say nothing here.
                    if let Ok(piece) = frame.into_data() {
                        pace.received(size(piece.len()));
                        return Ok(Some(piece));
                    }
                }
            }
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin + Send + 'static> Inbound<B> {
    /// Leaves the rest of the body behind, after an answer that did not need it.
    ///
    /// A client that waits for `100 Continue` and never got it sends nothing, so nothing is read: reading would ask it
    /// to send.
    pub(super) fn leave(self, waits_for_continue: bool) {
        if self.body.is_end_stream() || (waits_for_continue && !self.begun) {
            return;
        }
        tokio::spawn(async move {
            let mut body = self.body;
            let drained = async {
                let mut received = 0;
                while let Some(Ok(frame)) = body.frame().await {
                    received += frame.data_ref().map_or(0, |data| size(data.len()));
                    if received > DRAIN_BYTES {
                        break;
                    }
                }
            };
            // Either way the body is dropped, which closes the stream or the connection.
            let _ = tokio::time::timeout(DRAIN_TIME, drained).await;
        });
    }
}

/// The pieces so far, contiguous.
#[derive(Debug, Default)]
enum Gathered {
    #[default]
    Nothing,
    /// As it came from the connection.
    One(Bytes),
    /// Copied together.
    Many(Vec<u8>),
}

impl Gathered {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Nothing => &[],
            Self::One(piece) => piece,
            Self::Many(pieces) => pieces,
        }
    }

    /// Room grows by doubling, but not beyond the announced whole.
    fn push(&mut self, piece: Bytes, whole: Option<u64>) {
        let whole = whole.and_then(|whole| usize::try_from(whole).ok()).unwrap_or(usize::MAX);
        *self = match std::mem::take(self) {
            Self::Nothing => Self::One(piece),
            Self::One(first) => {
                let needed = first.len() + piece.len();
                let mut pieces = Vec::with_capacity(whole.min(FIRST_ROOM).max(needed));
                pieces.extend_from_slice(&first);
                pieces.extend_from_slice(&piece);
                Self::Many(pieces)
            }
            Self::Many(mut pieces) => {
                let needed = pieces.len() + piece.len();
                if needed > pieces.capacity() {
                    let room = whole.min(pieces.capacity().saturating_mul(2)).max(needed);
                    pieces.reserve_exact(room - pieces.len());
                }
                pieces.extend_from_slice(&piece);
                Self::Many(pieces)
            }
        };
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::Nothing => Bytes::new(),
            Self::One(piece) => piece,
            Self::Many(pieces) => pieces.into(),
        }
    }
}

/// How long the next piece may take.
#[derive(Debug)]
pub(super) struct Pace {
    started: Instant,
    last: Instant,
    received: u64,
}

impl Pace {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { started: now, last: now, received: 0 }
    }

    pub(super) fn received(&mut self, bytes: u64) {
        self.last = Instant::now();
        self.received += bytes;
    }

    pub(super) fn deadline(&self) -> Instant {
        let earned = Duration::from_secs(self.received / LEAST_RATE);
        (self.started + GRACE + earned).min(self.last + LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use http_body::Frame;
    use tokio::sync::mpsc;

    use super::*;
    use crate::receive::budget::Budget;

    /// A body fed by hand.
    struct Fed(mpsc::Receiver<Bytes>);

    impl Body for Fed {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
        }
    }

    fn pieces(pieces: &[&'static [u8]]) -> Inbound<Fed> {
        let (sender, receiver) = mpsc::channel(pieces.len().max(1));
        for piece in pieces {
            sender.try_send(Bytes::from_static(piece)).expect("there is room for all");
        }
        Inbound::new(Fed(receiver))
    }

    fn charge() -> Charge {
        Budget::new(1 << 20).open().expect("the budget is unused")
    }

    #[expect(clippy::unnecessary_wraps, reason = "it stands in for a function that may refuse")]
    fn unknown(_: &[u8]) -> Result<Option<u64>, Problem> {
        Ok(None)
    }

    #[tokio::test]
    async fn one_piece_is_not_copied() {
        let piece: &'static [u8] = b"a trace";
        let whole = pieces(&[piece]).read(100, &mut charge(), unknown).await.expect("it is read");
        assert_eq!(whole.as_ptr(), piece.as_ptr());
    }

    #[tokio::test]
    async fn several_pieces_become_one() {
        let whole = pieces(&[b"a ", b"", b"tr", b"ace"]).read(100, &mut charge(), unknown).await;
        assert_eq!(whole.expect("it is read"), "a trace");
        let nothing = pieces(&[]).read(100, &mut charge(), unknown).await;
        assert_eq!(nothing.expect("it is read"), "");
    }

    #[tokio::test]
    async fn the_limit_is_exact() {
        assert!(pieces(&[b"1234", b"5"]).read(5, &mut charge(), unknown).await.is_ok());
        let over = pieces(&[b"1234", b"56"]).read(5, &mut charge(), unknown).await;
        assert_eq!(over, Err(Refusal::TooLarge { limit: 5 }.into()));
        assert!(pieces(&[b"1234", b"5"]).discard(5).await.is_ok());
        assert!(pieces(&[b"1234", b"56"]).discard(5).await.is_err());
    }

    #[tokio::test]
    async fn what_the_first_bytes_announce_is_held_against_the_rest() {
        let announced = |head: &[u8]| Ok(head.first().map(|&length| u64::from(length)));
        assert!(pieces(&[&[4], b"abc"]).read(100, &mut charge(), announced).await.is_ok());
        assert!(pieces(&[&[4], b"abcd"]).read(100, &mut charge(), announced).await.is_err());
    }

    #[tokio::test]
    async fn an_announcement_reserves_nothing() {
        let mut gathered = Gathered::default();
        gathered.push(Bytes::from_static(b"ab"), Some(64 << 20));
        gathered.push(Bytes::from_static(b"cd"), Some(64 << 20));
        let Gathered::Many(pieces) = gathered else { panic!("two pieces are many") };
        assert_eq!(pieces.capacity(), FIRST_ROOM);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_is_given_up() {
        let (sender, receiver) = mpsc::channel(1);
        let begun = Instant::now();
        // However much came before.
        sender.try_send(Bytes::from_static(&[0; 256 << 10])).expect("there is room");
        let outcome = Inbound::new(Fed(receiver)).read(1 << 20, &mut charge(), unknown).await;
        assert_eq!(outcome, Err(Problem::slow()));
        assert_eq!(begun.elapsed().as_secs(), LONGEST_PAUSE.as_secs());
        drop(sender);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_given_up() {
        let (sender, receiver) = mpsc::channel(1);
        let begun = Instant::now();
        let client = tokio::spawn(async move {
            while sender.send(Bytes::from_static(b"a")).await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let budget = Budget::new(1 << 20);
        let mut charge = budget.open().expect("the budget is unused");
        let outcome = Inbound::new(Fed(receiver)).read(1 << 20, &mut charge, unknown).await;
        assert_eq!(outcome, Err(Problem::slow()));
        assert_eq!(begun.elapsed().as_secs(), GRACE.as_secs());
        drop(charge);
        assert_eq!(budget.used(), 0);
        client.await.expect("the client ends when nobody reads");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_but_steady_body_has_its_time() {
        const PIECE: &[u8] = &[0; 32 << 10];
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            for _ in 0..60 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if sender.send(Bytes::from_static(PIECE)).await.is_err() {
                    return;
                }
            }
        });
        let mut charge = Budget::new(8 << 20).open().expect("the budget is unused");
        let whole = Inbound::new(Fed(receiver)).read(4 << 20, &mut charge, unknown).await;
        assert_eq!(whole.expect("it is read").len(), 60 * PIECE.len());
    }
}
