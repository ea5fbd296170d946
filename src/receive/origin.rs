//! Who led this request here? Guards the TCP listeners against web pages.
//!
//! A page in a browser on this machine can make requests to loopback addresses. It is found out by its `Origin`, or,
//! when it let its own name point to 127.0.0.1 (DNS rebinding), by the `Host` that it asked for. Apps that ship traces
//! send no `Origin`, and ask for a loopback name or an address.

use std::net::IpAddr;

use http::Uri;
use http::uri::Authority;

/// Names that every machine gives to its loopback addresses; nobody else can point them elsewhere.
const LOOPBACK_NAMES: [&str; 4] = ["localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"];

/// What is foreign about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Foreign {
    /// The name asked for is not this machine's.
    #[error("the Host of the request is neither an address nor a loopback name")]
    Host,
    /// It was sent by a web page of another site.
    #[error("requests from web pages of other sites are not taken")]
    Origin,
}

/// Checks the hosts (`Host`, `:authority`) and the origins that a request names.
///
/// `local` is the address the connection came in at. Away from loopback, where a listener must be protected by other
/// means and is asked for by whatever names the network has for this machine, hosts are not judged. `own_name` is the
/// machine's host name, which some systems let point to a loopback address.
pub(super) fn check<'a>(
    local: IpAddr,
    own_name: &str,
    hosts: &[&'a str],
    origins: impl IntoIterator<Item = &'a str>,
) -> Result<(), Foreign> {
    if local.to_canonical().is_loopback() && !hosts.iter().all(|host| is_ours(host, own_name)) {
        return Err(Foreign::Host);
    }
    for origin in origins {
        // Also "null": a page of any site gets it from a sandboxed frame of its own.
        if !hosts.iter().any(|host| is_same(origin, host)) {
            return Err(Foreign::Origin);
        }
    }
    Ok(())
}

fn is_ours(host: &str, own_name: &str) -> bool {
    if host.is_empty() {
        // HTTP/1.1 allows it, and no browser sends it.
        return true;
    }
    let Ok(authority) = host.parse::<Authority>() else { return false };
    if host.contains('@') {
        return false;
    }
    let name = authority.host();
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    if address.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    LOOPBACK_NAMES.contains(&name.as_str())
        || name.ends_with(".localhost")
        || (!own_name.is_empty() && name.eq_ignore_ascii_case(own_name))
}

fn is_same(origin: &str, host: &str) -> bool {
    origin
        .parse::<Uri>()
        .ok()
        .and_then(|uri| uri.authority().map(|authority| authority.as_str().eq_ignore_ascii_case(host)))
        .unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn host(host: &str) -> Result<(), Foreign> {
        check(HERE, "build-7", &[host], [])
    }

    #[test]
    fn addresses_and_loopback_names_are_ours() {
        for ours in [
            "localhost",
            "LocalHost:4318",
            "localhost.",
            "app.localhost:1",
            "127.0.0.1:4318",
            "127.0.0.2",
            "[::1]:4318",
            "192.168.1.7:80",
            "build-7:4318",
            "ip6-localhost",
            "",
        ] {
            assert_eq!(host(ours), Ok(()), "{ours}");
        }
    }

    #[test]
    fn other_names_are_foreign() {
        for foreign in [
            "evil.example",
            "evil.example:4318",
            "localhost.evil.example",
            "evillocalhost",
            "127.0.0.1.evil.example",
            "user@localhost",
            "localhost/x",
            "build-77",
        ] {
            assert_eq!(host(foreign), Err(Foreign::Host), "{foreign}");
        }
    }

    #[test]
    fn every_host_named_must_be_ours() {
        assert_eq!(check(HERE, "", &["localhost", "evil.example"], []), Err(Foreign::Host));
        assert_eq!(check(HERE, "", &[], []), Ok(()));
    }

    #[test]
    fn away_from_loopback_any_name_will_do() {
        let lan = IpAddr::from([10, 0, 0, 7]);
        assert_eq!(check(lan, "", &["collector.internal:4318"], []), Ok(()));
        let mapped = IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped());
        assert_eq!(check(mapped, "", &["collector.internal:4318"], []), Err(Foreign::Host));
        assert_eq!(check(IpAddr::V6(Ipv6Addr::LOCALHOST), "", &["evil.example"], []), Err(Foreign::Host));
    }

    #[test]
    fn only_the_own_origin_is_taken() {
        let from = |origin| check(HERE, "", &["localhost:4318"], [origin]);
        assert_eq!(from("http://localhost:4318"), Ok(()));
        for foreign in
            ["null", "http://localhost:3000", "https://evil.example", "http://evil.example:4318", "garbage", ""]
        {
            assert_eq!(from(foreign), Err(Foreign::Origin), "{foreign}");
        }
        let lan = IpAddr::from([10, 0, 0, 7]);
        assert_eq!(check(lan, "", &["a.internal"], ["https://evil.example"]), Err(Foreign::Origin));
    }
}
