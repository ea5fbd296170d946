//! The way to the MLflow server for calls that are somebody else's: with the caller's credentials, never the daemon's.

use std::time::Duration;

use http::{HeaderMap, Method, Response};
use url::Url;

use super::super::connect;
use super::super::http::builder;
use super::super::{BuildError, Failure, Outcome};
use crate::config::{Remote, Tls};

/// Nothing came from the server for so long: a search over many traces takes a while, and the SDK waits for two minutes.
const PAUSE: Duration = Duration::from_secs(300);

/// A client of the server that adds nothing of the daemon's own: neither credentials nor configured headers nor the
/// daemon's certificate.
#[derive(Debug)]
pub struct Relay {
    client: reqwest::Client,
    base: Url,
}

impl Relay {
    /// # Errors
    /// An address that is not HTTP, or TLS files that are of no use.
    pub fn build(remote: &Remote) -> Result<Self, BuildError> {
        connect::install_tls_provider();
        // The server's authority is trusted; who the daemon is, is nobody's business here.
        let tls = Tls { ca: remote.tls.ca.clone(), ..Tls::default() };
        let client = builder(&remote.endpoint, &tls, PAUSE)?.read_timeout(PAUSE);
        let client = client.build().map_err(|error| BuildError::TlsSettings(connect::root(&error)))?;
        Ok(Self { client, base: remote.endpoint.clone() })
    }

    /// One request, its body and the answer's streamed. `target` is path and query below the base address.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn send(
        &self,
        method: Method,
        target: &str,
        headers: HeaderMap,
        body: Option<reqwest::Body>,
    ) -> Result<Response<reqwest::Body>, Failure> {
        let mut request = self.client.request(method, self.address(target)?).headers(headers);
        if let Some(body) = body {
            request = request.body(body);
        }
        match request.send().await {
            Ok(response) => Ok(response.into()),
            Err(error) => Err(match connect::broken(&error.without_url()) {
                Outcome::Retry { failure, .. } => failure,
                // Broken connections are retried, always.
                _ => Failure::new("connect", "no answer"),
            }),
        }
    }

    fn address(&self, target: &str) -> Result<Url, Failure> {
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let mut url = self.base.clone();
        let path = format!("{}/{}", url.path().trim_end_matches('/'), path.trim_start_matches('/'));
        url.set_path(&path);
        url.set_query(query);
        url.set_fragment(None);
        // What the parser takes for dots and slashes would lead out of the base address.
        if url.path() == path { Ok(url) } else { Err(Failure::new("400", "the path is not a plain one")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Compression, Credentials, Secret};

    fn relay(endpoint: &str) -> Relay {
        let remote = Remote {
            endpoint: Url::parse(endpoint).expect("url"),
            headers: vec![("x-key".into(), Secret::new("k"))],
            credentials: Credentials::Bearer(Secret::new("t")),
            tls: Tls::default(),
            compression: Compression::None,
        };
        Relay::build(&remote).expect("build")
    }

    #[test]
    fn targets_stay_below_the_base_address() {
        for (base, target, expected) in [
            ("http://h:5000", "/api/2.0/x?a=b%20c", "http://h:5000/api/2.0/x?a=b%20c"),
            ("http://h/ml/flow/?q", "/api/x", "http://h/ml/flow/api/x"),
            ("http://h", "/api/a%2Fb/%C3%A9", "http://h/api/a%2Fb/%C3%A9"),
        ] {
            assert_eq!(relay(base).address(target).expect("plain").as_str(), expected);
        }
        for outside in ["/api/../x", "/api/%2e%2E/x", "/api\\..\\x", "/api/./x"] {
            assert!(relay("http://h/ml").address(outside).is_err(), "{outside}");
        }
    }
}
