//! Calls that are not ours to answer: to the mlflow backend's server and back, with the caller's own credentials.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::{Semaphore, mpsc};

use super::super::body::Inbound;
use super::super::refusal::{Code, Problem};
use super::super::reply::Reply;
use super::super::via::{self, VIA};
use crate::backend::Relay;

/// Calls that are under way at once; each holds a connection and a few pieces of its bodies.
const CALLS_MAX: usize = 128;
/// Pieces of a body that may be read ahead of the server.
const PIECES: usize = 2;

/// They are about one connection, and are not passed on (RFC 9110, 7.6.1); nor is what the next connection needs its
/// own of.
const OF_THE_CONNECTION: [HeaderName; 11] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::HOST,
    header::EXPECT,
];

/// The way to the server, if there is one.
#[derive(Debug)]
pub(in crate::receive) struct Forward {
    way: Way,
    under_way: Arc<Semaphore>,
    /// This daemon's id, by which it knows what it has sent on before.
    own_id: String,
}

#[derive(Debug)]
enum Way {
    /// To this backend's server.
    To(String, Relay),
    /// There is no mlflow backend.
    Nowhere,
    /// The operator does not want it.
    Off,
}

/// The body to send.
pub(super) enum Payload<'a, B> {
    /// As it comes.
    Stream(&'a mut Inbound<B>),
    /// It was read already.
    Whole(Bytes),
}

impl Forward {
    pub(super) fn new(enabled: bool, own_id: &str, server: Option<(String, Relay)>) -> Self {
        let way = match server {
            _ if !enabled => Way::Off,
            Some((name, relay)) => Way::To(name, relay),
            None => Way::Nowhere,
        };
        Self { way, under_way: Arc::new(Semaphore::new(CALLS_MAX)), own_id: own_id.to_owned() }
    }

    /// Whether there is a server to ask at all.
    pub(super) fn leads_somewhere(&self) -> bool {
        matches!(self.way, Way::To(..))
    }

    /// Sends a call on and streams its answer back.
    pub(super) async fn pass<B>(&self, head: &Parts, payload: Payload<'_, B>) -> Result<Response<Reply>, Problem>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let permit = Arc::clone(&self.under_way).try_acquire_owned();
        let permit = permit.map_err(|_| unavailable("too many calls are being forwarded to the MLflow server"))?;
        let answer = self.ask(head, payload).await?;
        let (mut parts, body) = answer.into_parts();
        strip(&mut parts.headers);
        let mut response = Response::new(Reply::stream(body).holding(permit));
        *response.status_mut() = parts.status;
        *response.headers_mut() = parts.headers;
        Ok(response)
    }

    /// The server's answer to a call, as it is.
    pub(super) async fn ask<B>(&self, head: &Parts, payload: Payload<'_, B>) -> Result<Response<reqwest::Body>, Problem>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let (name, relay) = match &self.way {
            Way::To(name, relay) => (name, relay),
            Way::Nowhere => {
                return Err(not_implemented(
                    "no backend of kind mlflow is configured, so that only what belongs to a trace is taken here: add \
                     a [[backend]] with kind = \"mlflow\" to the daemon's configuration",
                ));
            }
            Way::Off => {
                return Err(not_implemented(
                    "calls that do not belong to a trace are not forwarded here: set receive.mlflow.forward = true in \
                     the daemon's configuration",
                ));
            }
        };
        let headers = self.headers(&head.headers)?;
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        let send = |body| relay.send(head.method.clone(), target, headers, body);
        let answer = match payload {
            Payload::Whole(bytes) => send((!bytes.is_empty()).then(|| bytes.into())).await,
            Payload::Stream(inbound) if inbound.is_over() => send(None).await,
            Payload::Stream(inbound) => {
                let (pieces, body) = Pieces::channel(inbound.announced());
                poured(inbound, pieces, send(Some(reqwest::Body::wrap(body)))).await?
            }
        };
        answer.map_err(|failure| match failure.status.as_str() {
            "400" => Problem::invalid(failure.message),
            _ => unavailable(format!(
                "the MLflow server of the backend {name} can't be reached ({}); what belongs to a trace is taken \
                 meanwhile, this call is not",
                failure.message
            )),
        })
    }

    /// The caller's headers, its credentials among them, and nothing of the daemon's but its id.
    fn headers(&self, from: &HeaderMap) -> Result<HeaderMap, Problem> {
        via::read(from, &self.own_id)?;
        let mut headers = from.clone();
        strip(&mut headers);
        // The body says its own length.
        headers.remove(header::CONTENT_LENGTH);
        headers.extend(HeaderValue::from_str(&self.own_id).ok().map(|id| (VIA, id)));
        Ok(headers)
    }
}

fn strip(headers: &mut HeaderMap) {
    let named = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<String> = named.flat_map(|names| names.split(',')).map(|name| name.trim().to_owned()).collect();
    for name in named {
        headers.remove(name.as_str());
    }
    for name in &OF_THE_CONNECTION {
        headers.remove(name);
    }
}

pub(super) fn unavailable(message: impl Into<String>) -> Problem {
    Problem::outside(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, message)
}

fn not_implemented(message: &str) -> Problem {
    Problem::outside(StatusCode::NOT_IMPLEMENTED, Code::Unimplemented, message)
}

/// Feeds the caller's body to the request until there is an answer, which may come before the body's end.
async fn poured<B, T>(
    inbound: &mut Inbound<B>,
    pieces: mpsc::Sender<Result<Bytes, Broken>>,
    answer: impl Future<Output = T>,
) -> Result<T, Problem>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut answer = pin!(answer);
    let pour = inbound.pour(|piece| {
        let pieces = pieces.clone();
        async move { pieces.send(Ok(piece)).await.is_ok() }
    });
    tokio::select! {
        biased;
        answer = answer.as_mut() => return Ok(answer),
        poured = pour => if let Err(problem) = poured {
            // Without this a body of unknown length would look complete.
            let _ = pieces.send(Err(Broken)).await;
            return Err(problem);
        },
    }
    drop(pieces);
    Ok(answer.await)
}

/// The caller broke off.
#[derive(Debug, thiserror::Error)]
#[error("the caller's body broke off")]
struct Broken;

/// A body that is fed by hand.
struct Pieces {
    from: mpsc::Receiver<Result<Bytes, Broken>>,
    left: Option<u64>,
}

impl Pieces {
    fn channel(length: Option<u64>) -> (mpsc::Sender<Result<Bytes, Broken>>, Self) {
        let (sender, from) = mpsc::channel(PIECES);
        (sender, Self { from, left: length })
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let piece = std::task::ready!(self.from.poll_recv(cx));
        if let (Some(Ok(piece)), Some(left)) = (&piece, &mut self.left) {
            *left = left.saturating_sub(piece.len() as u64);
        }
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn the_callers_credentials_go_along_and_what_is_of_the_connection_does_not() {
        let forward = Forward::new(true, "ab12", None);
        let from = map(&[
            ("authorization", "Basic YTpi"),
            ("cookie", "a=b"),
            ("x-mlflow-workspace", "blue"),
            ("connection", "keep-alive, X-Of-The-Connection"),
            ("x-of-the-connection", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("host", "127.0.0.1:4318"),
            ("content-length", "7"),
        ]);
        let to = forward.headers(&from).expect("no loop");
        let mut names: Vec<_> = to.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "cookie", "x-mlflow-workspace", "x-tracespool-via"]);
        assert_eq!(to["authorization"], "Basic YTpi");
    }

    #[test]
    fn a_call_that_comes_back_is_refused() {
        let forward = Forward::new(true, "ab12", None);
        let once = forward.headers(&HeaderMap::new()).expect("no loop");
        assert_eq!(forward.headers(&once).expect_err("a loop").http, 403);
        let other = Forward::new(true, "cd34", None);
        let twice = other.headers(&once).expect("another daemon's mark is no loop");
        assert_eq!(forward.headers(&twice).expect_err("a loop").http, 403);
    }
}
