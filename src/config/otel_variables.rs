//! The variables of OpenTelemetry's exporters, as a backend.

use std::path::PathBuf;

use url::Url;

use super::settle::{Settle, at_variable, variable_path};
use super::{Compression, Credentials, Remote, Secret, Target, Tls, address, expand, remote};

/// The two names of a variable: the one for traces beats the generic one.
macro_rules! names {
    ($name:literal) => {
        [concat!("OTEL_EXPORTER_OTLP_TRACES_", $name), concat!("OTEL_EXPORTER_OTLP_", $name)]
    };
}

/// What goes over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Grpc,
    Http,
}

/// The backend that the variables describe, and the variable that names its address. Without an address there is
/// none: the specification's default is where this daemon itself listens.
pub(super) fn target(settle: &mut Settle<'_>) -> Option<(&'static str, Target)> {
    let environment = settle.environment;
    let (variable, text) = environment.first(&names!("ENDPOINT"))?;
    for name in names!("TIMEOUT") {
        if environment.get(name).is_some() {
            settle.variable_warning(name, "is ignored, because SDKs disagree on its unit; use timeout in [delivery]");
        }
    }
    let protocol = protocol(text, settle);
    let (endpoint, credentials) = endpoint(variable, text, protocol, settle)?;
    let headers = headers(settle);
    let in_headers = headers.iter().any(|(name, _)| name == "authorization");
    let credentials = credentials.filter(|_| !in_headers);
    if credentials.is_some() {
        note(settle, "username", variable, false);
        note(settle, "password", variable, true);
    }
    let remote = Remote {
        endpoint,
        headers,
        credentials: credentials.unwrap_or_default(),
        tls: tls(settle),
        compression: compression(settle),
    };
    let target = match protocol {
        Protocol::Grpc => Target::OtlpGrpc(remote),
        Protocol::Http => Target::OtlpHttp(remote),
    };
    note(settle, "endpoint", variable, false);
    note(settle, "kind", variable, false);
    Some((variable, target))
}

fn note(settle: &mut Settle<'_>, key: &str, variable: &str, hidden: bool) {
    let at = at_variable(format!("backend.otlp.{key}"), variable);
    settle.origins.set(at.key, at.origin, hidden);
}

fn protocol(endpoint: &str, settle: &mut Settle<'_>) -> Protocol {
    if let Some((name, text)) = settle.environment.first(&names!("PROTOCOL")) {
        match text.trim().to_ascii_lowercase().as_str() {
            "grpc" => return Protocol::Grpc,
            "http/protobuf" => return Protocol::Http,
            "http/json" => {
                settle.variable_warning(name, "is http/json; http/protobuf is sent instead, to the same address");
                return Protocol::Http;
            }
            _ => settle.variable_warning(name, "is ignored: it must be grpc or http/protobuf"),
        }
    }
    // Without a scheme only the text behind the last colon tells.
    let complete = if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") };
    let port = Url::parse(complete.trim()).ok().and_then(|url| url.port());
    if port == Some(4317) || endpoint.trim().starts_with("unix:") { Protocol::Grpc } else { Protocol::Http }
}

fn endpoint(
    variable: &str,
    text: &str,
    protocol: Protocol,
    settle: &mut Settle<'_>,
) -> Option<(Url, Option<Credentials>)> {
    let text = text.trim();
    let has_scheme = text.contains("://") || text.starts_with("unix:");
    let complete = match protocol {
        // gRPC addresses may lack a scheme; then, and only then, INSECURE decides.
        Protocol::Grpc if !has_scheme => {
            let insecure = settle.environment.first(&names!("INSECURE"));
            let insecure = insecure.is_some_and(|(_, value)| value.trim().eq_ignore_ascii_case("true"));
            format!("{}://{text}", if insecure { "http" } else { "https" })
        }
        _ => text.to_owned(),
    };
    let mut url = match address::parse(&complete, protocol == Protocol::Grpc) {
        Ok(url) => url,
        Err(reason) => {
            settle.variable_mistake(variable, reason);
            return None;
        }
    };
    let credentials = address::take_userinfo(&mut url);
    if url.scheme() != "unix" {
        match protocol {
            // The documented example has the path of HTTP behind the port of gRPC, and clients leave it out.
            Protocol::Grpc => {
                url.set_path("");
                url.set_query(None);
            }
            Protocol::Http if variable == names!("ENDPOINT")[1] => url = address::append(&url, "v1/traces"),
            Protocol::Http => {}
        }
    }
    Some((url, credentials))
}

/// `k1=v1,k2=v2` with percent-encoded values. One bad pair costs only itself, and a warning that does not repeat it.
fn headers(settle: &mut Settle<'_>) -> Vec<(String, Secret)> {
    let Some((variable, text)) = settle.environment.first(&names!("HEADERS")) else { return Vec::new() };
    let mut headers: Vec<(String, Secret)> = Vec::new();
    for (index, pair) in text.split(',').enumerate() {
        if pair.trim().is_empty() {
            continue;
        }
        let number = index + 1;
        let Some((name, value)) = pair.split_once('=') else {
            settle.variable_warning(variable, format!("has no \"=\" in pair {number}, which is ignored"));
            continue;
        };
        let name = address::percent_decoded(name.trim()).to_ascii_lowercase();
        let value = address::percent_decoded(value.trim());
        if let Err(reason) = remote::check_header(&name, &value) {
            settle.variable_warning(variable, format!("has a pair, number {number}, that is ignored: it {reason}"));
            continue;
        }
        note(settle, &format!("headers.{name}"), variable, true);
        headers.retain(|(other, _)| *other != name);
        headers.push((name, Secret::new(value)));
    }
    headers
}

fn compression(settle: &mut Settle<'_>) -> Compression {
    let Some((name, text)) = settle.environment.first(&names!("COMPRESSION")) else { return Compression::default() };
    let compression = match text.trim().to_ascii_lowercase().as_str() {
        "none" => Compression::None,
        "gzip" => Compression::Gzip,
        "zstd" => Compression::Zstd,
        _ => {
            settle.variable_warning(name, "is ignored: it must be none, gzip or zstd");
            return Compression::default();
        }
    };
    note(settle, "compression", name, false);
    compression
}

fn tls(settle: &mut Settle<'_>) -> Tls {
    let ca = pem(&names!("CERTIFICATE"), "tls.ca", settle);
    let cert = pem(&names!("CLIENT_CERTIFICATE"), "tls.cert", settle);
    let key = pem(&names!("CLIENT_KEY"), "tls.key", settle);
    if cert.is_some() != key.is_some() {
        let name = if cert.is_some() { names!("CLIENT_KEY")[1] } else { names!("CLIENT_CERTIFICATE")[1] };
        settle.variable_mistake(name, "is missing: a client certificate needs its key, and the other way round");
    }
    Tls { ca, cert, key }
}

/// A file that must be there: without it the connection would be less safe than somebody meant.
fn pem(names: &[&'static str], key: &str, settle: &mut Settle<'_>) -> Option<PathBuf> {
    let (name, text) = settle.environment.first(names)?;
    let path = variable_path(settle.environment, text);
    if let Err(reason) = expand::read(&path) {
        settle.variable_mistake(name, format!("names {}: {reason}", path.display()));
    }
    note(settle, key, name, false);
    Some(path)
}
