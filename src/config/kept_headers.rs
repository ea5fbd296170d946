//! `receive.keep_headers`: which headers of an app may be stored and passed on.

use http::HeaderName;

use super::section::Found;
use super::settle::Settle;

/// More than any setup with tenants and teams needs; each makes the batches smaller.
const MOST: usize = 16;

/// Words in the names of headers that carry credentials. What is stored in a spool for days is no secret.
const CREDENTIALS: [&str; 10] =
    ["auth", "cookie", "api-key", "apikey", "api_key", "token", "secret", "password", "credential", "signature"];

/// Headers that belong to one connection or one message, beside the `content-` and `grpc-` ones.
const OF_THE_MESSAGE: [&str; 15] = [
    "accept",
    "accept-encoding",
    "connection",
    "date",
    "expect",
    "host",
    "keep-alive",
    "origin",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
];

/// Headers that are kept in any case, in places of their own.
const KEPT_ANYWAY: [&str; 3] = ["x-mlflow-experiment-id", "x-mlflow-workspace", "x-tracespool-via"];

/// Checks the names, and brings them to lower case.
pub(super) fn build(found: Found<Vec<Found<String>>>, settle: &mut Settle<'_>) -> Vec<String> {
    let hidden = found.at.hidden || found.value.iter().any(|entry| entry.at.hidden);
    settle.origins.set(found.at.key.clone(), found.at.origin.clone(), hidden);
    if found.value.len() > MOST {
        settle.mistake(&found.at, format!("has more than {MOST} names"));
    }
    let mut names = Vec::new();
    for entry in found.value {
        match check(&entry.value) {
            Err(problem) => settle.mistake(&entry.at, problem),
            Ok(name) if names.contains(&name) => settle.mistake(&entry.at, "names a header twice"),
            Ok(name) => names.push(name),
        }
    }
    names
}

fn check(name: &str) -> Result<String, &'static str> {
    let name = name.trim().to_ascii_lowercase();
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err("is not the name of a header");
    }
    if CREDENTIALS.iter().any(|word| name.contains(word)) {
        return Err("names a header that may carry credentials, and those are never stored; give them to the backend");
    }
    if OF_THE_MESSAGE.contains(&name.as_str()) || name.starts_with("content-") || name.starts_with("grpc-") {
        return Err("names a header that belongs to one message or connection, and is not passed on");
    }
    if KEPT_ANYWAY.contains(&name.as_str()) {
        return Err("names a header that is kept in any case");
    }
    if name.ends_with("-bin") {
        return Err("names binary metadata of gRPC, which is not kept");
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_in_lower_case() {
        assert_eq!(check(" X-Tenant "), Ok("x-tenant".to_owned()));
        assert_eq!(check("traceparent"), Ok("traceparent".to_owned()));
    }

    #[test]
    fn credentials_and_what_belongs_to_the_message_are_refused() {
        for name in [
            "Authorization",
            "Proxy-Authorization",
            "Cookie",
            "set-cookie",
            "X-Api-Key",
            "api-key",
            "x-auth-request-user",
            "X-Amz-Security-Token",
            "x-client-secret",
            "Content-Type",
            "grpc-timeout",
            "Host",
            "trace-bin",
            "x-mlflow-experiment-id",
            "x y",
            "",
        ] {
            assert!(check(name).is_err(), "{name}");
        }
    }
}
