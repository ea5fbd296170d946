//! What the two HTTP kinds share: a client without surprises, and answers of bounded size.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_ENCODING;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::answer::HttpAnswer;
use super::connect::{self, Headers, TlsFiles};
use super::encode::Chunks;
use super::{Batch, BuildError, Outcome, USER_AGENT};
use crate::config::{Remote, Tls};

/// Bound on an answer's body ("OTLP specification, OTLP/HTTP Response").
const RESPONSE_BYTES: usize = 4 * 1024 * 1024;

/// Some servers close a connection after five idle seconds (uvicorn's default, which MLflow keeps), and one that is
/// closed just as a request goes out on it costs an attempt.
const IDLE: Duration = Duration::from_secs(3);

/// A handshake that takes longer than this will not come to an end.
const CONNECT: Duration = Duration::from_secs(10);

/// A connection pool for one server, and what goes with every request to it.
#[derive(Debug)]
pub(super) struct Client {
    client: reqwest::Client,
    pub(super) headers: Headers,
}

impl Client {
    /// # Errors
    /// An address that is not HTTP, headers that cannot be sent, TLS files that are of no use.
    pub(super) fn build(remote: &Remote, timeout: Duration) -> Result<Self, BuildError> {
        let client = builder(&remote.endpoint, &remote.tls, timeout)?.user_agent(USER_AGENT);
        let headers = Headers::build(&remote.headers, &remote.credentials)?;
        Ok(Self { client: client.build().map_err(settings)?, headers })
    }

    /// One request and its answer, whatever it is, with the headers that `batch` brings along. The outcome of an attempt without an answer is the error.
    ///
    /// Once the status is known it decides: a body that breaks off, or does not end before `deadline`, is unreadable.
    pub(super) async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: &[(HeaderName, HeaderValue)],
        batch: Option<&Batch>,
        body: Chunks,
        deadline: Instant,
    ) -> Result<HttpAnswer, Outcome> {
        let mut all = self.headers.current().await?;
        for (name, value) in headers {
            all.insert(name, value.clone());
        }
        if let Some(batch) = batch {
            connect::pass_on(batch, &mut all);
        }
        let mut request = self.client.request(method.clone(), url.clone()).headers(all);
        if method != Method::GET {
            request = request.body(reqwest::Body::wrap(body));
        }
        let response = match timeout_at(deadline, request.send()).await {
            Err(_) => return Err(Outcome::timeout()),
            Ok(Err(error)) => return Err(connect::broken(&error.without_url())),
            Ok(Ok(response)) => response,
        };
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let body = if plain(&headers) {
            timeout_at(deadline, read(response)).await.unwrap_or(Err("it did not end in time"))
        } else {
            Err("it is compressed, which was not asked for")
        };
        Ok(HttpAnswer { status, headers, body })
    }
}

/// A client without surprises, before anything is said of who asks.
///
/// # Errors
/// An address that is not HTTP, TLS files that are of no use.
pub(super) fn builder(endpoint: &Url, tls: &Tls, timeout: Duration) -> Result<reqwest::ClientBuilder, BuildError> {
    check(endpoint)?;
    let mut client = reqwest::Client::builder()
        // A redirect turns a POST into a GET, whose 200 would look like an acknowledgement.
        .redirect(reqwest::redirect::Policy::none())
        // Attempts are counted and paced by the lane alone.
        .retry(reqwest::retry::never())
        // Proxy variables are made for browsers and would capture loopback addresses too.
        .no_proxy()
        .referer(false)
        .tcp_nodelay(true)
        .tcp_keepalive(Duration::from_secs(30))
        // Else a connection whose peer is gone would be offered again until the kernel gives up on it.
        .tcp_user_timeout(timeout)
        .connect_timeout(timeout.min(CONNECT))
        .pool_idle_timeout(IDLE);
    let tls = TlsFiles::read(tls)?;
    if let Some(ca) = &tls.ca {
        client = client.tls_certs_only(reqwest::Certificate::from_pem_bundle(ca).map_err(settings)?);
    } else if endpoint.scheme() == "http" {
        // Plain connections need no trust store, and must work on a machine that has none.
        client = client.tls_certs_only([]);
    }
    if let Some((cert, key)) = &tls.identity {
        let both = [cert.as_slice(), b"\n", key].concat();
        client = client.identity(reqwest::Identity::from_pem(&both).map_err(settings)?);
    }
    Ok(client)
}

fn settings(error: reqwest::Error) -> BuildError {
    BuildError::TlsSettings(connect::root(&error))
}

fn check(endpoint: &Url) -> Result<(), BuildError> {
    match endpoint.scheme() {
        "http" | "https" if endpoint.has_host() => Ok(()),
        other => Err(BuildError::Endpoint(format!("needs an http or https address, not `{other}:`"))),
    }
}

fn plain(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_ENCODING).is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// The body in chunks, so that no announced length reserves memory.
async fn read(mut response: reqwest::Response) -> Result<Bytes, &'static str> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|_| "it broke off")? {
        if body.len() + chunk.len() > RESPONSE_BYTES {
            return Err("it is longer than 4 MiB");
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}
