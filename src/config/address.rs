//! Addresses of backends: what may be written, and whether one leads back to ourselves.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use url::{Host, Url};

use super::{Credentials, Secret};

/// Reads an address. Messages never repeat it: it may contain a password, also where it should not.
pub(super) fn parse(text: &str, unix_too: bool) -> Result<Url, String> {
    let schemes = if unix_too { "http://, https:// or unix:///" } else { "http:// or https://" };
    let text = text.trim();
    let is_unix = text.starts_with("unix:");
    // `localhost:4317` is a URL with a scheme of its own to the parser.
    if !text.contains("://") && !is_unix {
        return Err(format!("must be a complete address that begins with {schemes}"));
    }
    let url = Url::parse(text).map_err(|error| format!("is not an address: {error}"))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        "unix" if unix_too && url.host().is_none() && url.path().starts_with('/') => Ok(url),
        _ => Err(format!("must begin with {schemes}")),
    }
}

/// The user information of an address, taken out of it.
pub(super) fn take_userinfo(url: &mut Url) -> Option<Credentials> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let credentials = Credentials::Basic {
        username: percent_decoded(url.username()),
        password: Secret::new(percent_decoded(url.password().unwrap_or_default())),
    };
    // Neither fails for http and https, which have hosts.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    Some(credentials)
}

/// Appends a path to a base address, with exactly one slash between them.
pub(super) fn append(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
    url
}

/// Decodes `%41`; what does not decode to text stays as it is.
pub(super) fn percent_decoded(text: &str) -> String {
    match percent_encoding::percent_decode_str(text).decode_utf8() {
        Ok(decoded) => decoded.into_owned(),
        Err(_) => text.to_owned(),
    }
}

/// Whether an address leads to one of our own doors.
pub(super) fn is_our_own(url: &Url, listen: &[SocketAddr], spool_socket: &Path) -> bool {
    if url.scheme() == "unix" {
        return Path::new(url.path()) == spool_socket;
    }
    let Some(port) = url.port_or_known_default() else { return false };
    listen.iter().filter(|door| door.port() == port).any(|door| match url.host() {
        Some(Host::Domain(name)) => is_localhost(name) && (door.ip().is_loopback() || door.ip().is_unspecified()),
        Some(Host::Ipv4(ip)) => leads_to(IpAddr::V4(ip), door.ip()),
        Some(Host::Ipv6(ip)) => leads_to(IpAddr::V6(ip).to_canonical(), door.ip()),
        None => false,
    })
}

fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

fn leads_to(target: IpAddr, door: IpAddr) -> bool {
    target == door || ((target.is_loopback() || target.is_unspecified()) && door.is_unspecified())
        // To connect to no address in particular is to connect to this machine.
        || (target.is_unspecified() && door.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_addresses_are_taken() {
        for text in ["http://h:1", "https://h/x?y=z", "http://[::1]:4318"] {
            assert!(parse(text, false).is_ok(), "{text}");
        }
        assert!(parse("unix:///run/c.sock", true).is_ok());
        for (text, unix_too) in [
            ("localhost:4317", true),
            ("h", false),
            ("ftp://h", false),
            ("unix:///run/c.sock", false),
            ("unix:c.sock", true),
            ("http://", true),
            ("http://u:s3cret@h:port", false),
        ] {
            let error = parse(text, unix_too).expect_err(text);
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn user_information_is_decoded_and_gone_from_the_address() {
        let mut url = parse("http://ada:p%40ss@h:5000/x", false).expect("an address");
        let Some(Credentials::Basic { username, password }) = take_userinfo(&mut url) else { panic!("none") };
        assert_eq!((username.as_str(), password.expose()), ("ada", "p@ss"));
        assert_eq!(url.as_str(), "http://h:5000/x");
        assert!(take_userinfo(&mut url).is_none());
    }

    #[test]
    fn a_path_is_appended_with_one_slash() {
        for (base, whole) in [
            ("http://h:4318", "http://h:4318/v1/traces"),
            ("http://h:4318/", "http://h:4318/v1/traces"),
            ("http://h/api/otel", "http://h/api/otel/v1/traces"),
            ("http://h/api/otel/", "http://h/api/otel/v1/traces"),
        ] {
            assert_eq!(append(&parse(base, false).expect("an address"), "v1/traces").as_str(), whole);
        }
    }

    #[test]
    fn our_own_doors_are_recognised() {
        let own = |text: &str, listen: &str| {
            let url = parse(text, true).expect("an address");
            is_our_own(&url, &[listen.parse().expect("an address")], Path::new("/run/spool.sock"))
        };
        assert!(own("http://localhost:4317", "127.0.0.1:4317"));
        assert!(own("http://127.0.0.1:4317/v1/traces", "127.0.0.1:4317"));
        assert!(own("http://LOCALHOST.:4317", "[::1]:4317"));
        assert!(own("http://0.0.0.0:4317", "127.0.0.1:4317"));
        assert!(own("http://127.0.0.1:4317", "0.0.0.0:4317"));
        assert!(own("http://[::ffff:127.0.0.1]:4317", "127.0.0.1:4317"));
        assert!(own("http://localhost", "127.0.0.1:80"));
        assert!(own("unix:///run/spool.sock", "127.0.0.1:1"));
        assert!(!own("http://localhost:4316", "127.0.0.1:4317"));
        assert!(!own("http://collector:4317", "127.0.0.1:4317"));
        assert!(!own("http://10.0.0.7:4317", "127.0.0.1:4317"));
        assert!(!own("unix:///run/other.sock", "127.0.0.1:1"));
    }
}
