//! One connection: HTTP/1.1 and HTTP/2 by what the client begins with, until it ends, idles or the daemon stops.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, timeout};

use super::authority::NamedAuthority;
use super::bare::WithBodies;
use super::service::{self, Peer};
use super::{Reception, lines};

/// How long the head of an HTTP/1.1 request may take, counted from the answer before it: also the longest pause
/// between two requests. Longer than the pools of the usual clients keep a connection.
const HEAD_TIME: Duration = Duration::from_secs(75);

/// A connection without a request for so long is closed, whatever it speaks; this is what bounds those that never
/// say what they speak, and those that never read their answer.
pub(super) const IDLE_TIME: Duration = Duration::from_secs(300);

/// What one connection may keep of bytes that no request has asked for: heads, and one frame. Not charged to the
/// budget, so it is small.
const BUFFER: u16 = u16::MAX;

/// Requests at once on one HTTP/2 connection. One client needs a few; all of them are bounded by the budget.
const STREAMS: u32 = 256;

/// Windows of HTTP/2: a large request needs many round trips with the 64 KiB that are the default.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// A peer that vanished without closing is noticed after these two.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIME: Duration = Duration::from_secs(20);

/// How connections are spoken to; the same for all.
pub(super) fn protocol() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(usize::from(BUFFER))
        // A client that closes its sending side still reads: `nc` and other simple ones do.
        .half_close(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(u32::from(BUFFER))
        .max_header_list_size(u32::from(BUFFER))
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIME);
    builder
}

/// Serves one connection to its end, in the protocol that its first bytes are of.
pub(super) async fn serve<I>(
    protocol: &Builder<TokioExecutor>,
    io: I,
    peer: Peer,
    reception: Arc<Reception>,
    mut stop: watch::Receiver<bool>,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Peer::Unix { uid } = peer else { return speak_http(protocol, io, peer, reception, stop).await };
    // Small: it is there for the first byte, and whoever reads more reads past it.
    let mut io = BufReader::with_capacity(256, io);
    let first = tokio::select! {
        () = stopped(&mut stop) => return,
        first = timeout(IDLE_TIME, io.fill_buf()) => match first {
            Ok(Ok([first, ..])) => *first,
            // It ended, failed, or said nothing for too long.
            _ => return,
        },
    };
    if lines::is_begun_by(first) {
        let refused = reception.admit_user(uid).err();
        lines::serve(io, uid, refused, reception, stop).await;
    } else {
        speak_http(protocol, NamedAuthority::new(io), peer, reception, stop).await;
    }
}

/// After `stop`, requests in hand are answered and no others are taken.
async fn speak_http<I>(
    protocol: &Builder<TokioExecutor>,
    io: I,
    peer: Peer,
    reception: Arc<Reception>,
    mut stop: watch::Receiver<bool>,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let activity = Arc::new(Activity::new());
    let service = service_fn({
        let activity = Arc::clone(&activity);
        move |request| {
            let reception = Arc::clone(&reception);
            let in_hand = Activity::request(&activity);
            async move {
                let response = service::answer(&reception, peer, request).await;
                // An answer that another server still writes is in hand to its end.
                Ok::<_, Infallible>(response.map(|reply| reply.holding(in_hand)))
            }
        }
    });
    let mut connection = pin!(protocol.serve_connection(TokioIo::new(WithBodies::new(io)), service));
    let mut looks = tokio::time::interval(IDLE_TIME / 10);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stopping = false;
    let mut closing = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(?peer, "a connection ended: {error}");
                }
                return;
            }
            () = stopped(&mut stop), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            _ = looks.tick() => {
                if !activity.is_idle_for(IDLE_TIME) {
                    closing = false;
                } else if closing {
                    // It was asked to close, and a whole look later is still there.
                    return;
                } else {
                    closing = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// Returns when the daemon stops, or when whoever could say so is gone.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Whether there is anything to wait for on a connection.
#[derive(Debug)]
struct Activity {
    in_hand: AtomicUsize,
    last: Mutex<Instant>,
}

impl Activity {
    fn new() -> Self {
        Self { in_hand: AtomicUsize::new(0), last: Mutex::new(Instant::now()) }
    }

    /// A request begins; it ends when what is returned is dropped, be it answered or given up.
    fn request(this: &Arc<Self>) -> InHand {
        this.in_hand.fetch_add(1, Ordering::Relaxed);
        InHand { activity: Arc::clone(this) }
    }

    fn is_idle_for(&self, time: Duration) -> bool {
        self.in_hand.load(Ordering::Relaxed) == 0
            && self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed() >= time
    }
}

#[derive(Debug)]
struct InHand {
    activity: Arc<Activity>,
}

impl Drop for InHand {
    fn drop(&mut self) {
        *self.activity.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.activity.in_hand.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_from_its_last_answer_on() {
        let activity = Arc::new(Activity::new());
        tokio::time::advance(IDLE_TIME).await;
        assert!(activity.is_idle_for(IDLE_TIME));
        let request = Activity::request(&activity);
        tokio::time::advance(IDLE_TIME).await;
        assert!(!activity.is_idle_for(IDLE_TIME));
        drop(request);
        assert!(!activity.is_idle_for(IDLE_TIME));
        tokio::time::advance(IDLE_TIME).await;
        assert!(activity.is_idle_for(IDLE_TIME));
    }
}
