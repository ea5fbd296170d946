//! OTLP over HTTP with protobuf.

use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue, Method};
use tokio::time::Instant;
use url::Url;

use super::answer::{self, Sent};
use super::connect::Headers;
use super::http::Client;
use super::{Batch, BuildError, Failure, Outcome, encode};
use crate::config::{Compression, Remote};

/// One OTLP/HTTP endpoint.
#[derive(Debug)]
pub(super) struct OtlpHttp {
    client: Client,
    url: Url,
    compression: Compression,
}

impl OtlpHttp {
    /// # Errors
    /// As [`Client::build`].
    pub(super) fn build(remote: &Remote, timeout: Duration) -> Result<Self, BuildError> {
        let client = Client::build(remote, timeout)?;
        Ok(Self { client, url: remote.endpoint.clone(), compression: remote.compression })
    }

    pub(super) fn headers(&self) -> &Headers {
        &self.client.headers
    }

    pub(super) async fn attempt(&self, batch: &Batch, deadline: Instant) -> Outcome {
        let sent = Sent { bytes: batch.bytes(), spans: batch.spans };
        let body = match encode::body(batch.requests.clone(), self.compression).await {
            Ok(body) => body,
            Err(error) => return Outcome::retry(Failure::new("io", error.to_string())),
        };
        let headers = content_headers(self.compression);
        match self.client.send(Method::POST, &self.url, &headers, Some(batch), body, deadline).await {
            Ok(answer) => answer::otlp_http(&answer, sent, SystemTime::now()),
            Err(outcome) => outcome,
        }
    }
}

/// What says how a body is to be read ("OTLP specification, OTLP/HTTP Request").
pub(super) fn content_headers(compression: Compression) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = vec![(http::header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"))];
    if let Some(coding) = encode::coding(compression) {
        headers.push((http::header::CONTENT_ENCODING, HeaderValue::from_static(coding)));
    }
    headers
}
