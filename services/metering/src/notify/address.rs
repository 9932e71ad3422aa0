//! Where a webhook may lead: to the public internet, and to the hosts that the operator names.
//!
//! Tenants choose the URLs, so that without this they could have metering ask what only its own network can. Left out: resolving and
//! connecting ([`super::post`]). Invariant: an address that is not known to be public is refused.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// A host of `metering.webhook_allow`: webhooks may lead there whatever its addresses are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedHost {
    /// In lower case, without a dot at the end; an address in its canonical form.
    host: String,
    /// Any, if none.
    port: Option<u16>,
}

impl FromStr for AllowedHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: address.ip().to_string(), port: Some(address.port()) });
        }
        if bare(text).parse::<IpAddr>().is_ok() {
            return Ok(Self { host: canonical(text), port: None });
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(port.parse().map_err(|_| "expected host or host:port")?)),
            None => (text, None),
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if host.is_empty() || host.len() > 253 || !host.bytes().all(plain) {
            return Err("expected host or host:port".to_owned());
        }
        Ok(Self { host: canonical(host), port })
    }
}

impl fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

impl AllowedHost {
    /// Whether this is the host, as a URL names it, and the port.
    pub(super) fn names(&self, host: &str, port: u16) -> bool {
        self.host == canonical(host) && self.port.is_none_or(|allowed| allowed == port)
    }
}

/// A host without the brackets of an address in a URL.
pub(super) fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host)
}

fn canonical(host: &str) -> String {
    let host = bare(host);
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase(),
    }
}

/// Why an address is refused, if it is.
pub(super) fn refusal(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => refusal_v4(address),
        IpAddr::V6(address) => refusal_v6(address),
    }
}

fn refusal_v4(address: Ipv4Addr) -> Option<&'static str> {
    // RFC 6890 and its registry of special-purpose addresses.
    match address.octets() {
        [0, ..] => Some("unspecified"),
        [127, ..] => Some("loopback"),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Some("private"),
        [169, 254, ..] => Some("link-local"),
        [100, 64..=127, ..] => Some("shared"),
        [224..=239, ..] => Some("multicast"),
        [240..=255, ..] | [192, 0, 0, _] => Some("reserved"),
        [198, 18 | 19, ..] => Some("for benchmarks"),
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Some("for documentation"),
        _ => None,
    }
}

fn refusal_v6(address: Ipv6Addr) -> Option<&'static str> {
    let [high, low] = {
        let segments = address.segments();
        [[segments[1], segments[2]], [segments[6], segments[7]]]
    };
    let embedded = |[first, second]: [u16; 2]| {
        let ([a, b], [c, d]) = (first.to_be_bytes(), second.to_be_bytes());
        refusal_v4(Ipv4Addr::new(a, b, c, d))
    };
    if let Some(mapped) = address.to_ipv4_mapped() {
        return refusal_v4(mapped);
    }
    match address.segments() {
        // NAT64 and 6to4 lead to an IPv4 address, which may be anything.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => embedded(low),
        [0x2002, ..] => embedded(high),
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("unspecified"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
        [0xfe80..=0xfebf, ..] => Some("link-local"),
        [0xfc00..=0xfdff, ..] => Some("unique-local"),
        [0xff00..=0xffff, ..] => Some("multicast"),
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0x0fff, ..] => Some("for documentation"),
        // Teredo, ORCHID and other protocols' own.
        [0x2001, 0..=0x1ff, ..] => Some("reserved"),
        [0x2000..=0x3fff, ..] => None,
        _ => Some("reserved"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_not_refused() {
        for (address, want) in [
            ("1.1.1.1", None),
            ("93.184.216.34", None),
            ("172.15.0.1", None),
            ("172.32.0.1", None),
            ("100.63.255.255", None),
            ("0.0.0.0", Some("unspecified")),
            ("127.0.0.1", Some("loopback")),
            ("127.255.0.9", Some("loopback")),
            ("10.1.2.3", Some("private")),
            ("172.16.0.1", Some("private")),
            ("172.31.255.255", Some("private")),
            ("192.168.1.1", Some("private")),
            ("169.254.169.254", Some("link-local")),
            ("100.64.0.1", Some("shared")),
            ("224.0.0.1", Some("multicast")),
            ("255.255.255.255", Some("reserved")),
            ("192.0.0.8", Some("reserved")),
            ("198.19.0.1", Some("for benchmarks")),
            ("203.0.113.7", Some("for documentation")),
            ("2606:4700:4700::1111", None),
            ("2a00:1450::1", None),
            ("::", Some("unspecified")),
            ("::1", Some("loopback")),
            ("::ffff:127.0.0.1", Some("loopback")),
            ("::ffff:10.0.0.1", Some("private")),
            ("::ffff:1.1.1.1", None),
            ("::127.0.0.1", Some("reserved")),
            ("64:ff9b::a9fe:a9fe", Some("link-local")),
            ("64:ff9b::101:101", None),
            ("64:ff9b:1::1", Some("reserved")),
            ("2002:7f00:1::", Some("loopback")),
            ("2002:101:101::", None),
            ("2001::1", Some("reserved")),
            ("2001:db8::1", Some("for documentation")),
            ("fe80::1", Some("link-local")),
            ("fec0::1", Some("reserved")),
            ("fd00::1", Some("unique-local")),
            ("ff02::1", Some("multicast")),
            ("4000::1", Some("reserved")),
        ] {
            assert_eq!(refusal(address.parse().unwrap()), want, "{address}");
        }
    }

    #[test]
    fn an_allowed_host_is_that_host_however_it_is_written_and_its_port_if_it_names_one() {
        for (allowed, host, port, want) in [
            ("hooks.internal", "Hooks.Internal.", 80, true),
            ("hooks.internal:8080", "hooks.internal", 8080, true),
            ("hooks.internal:8080", "hooks.internal", 80, false),
            ("hooks.internal", "evil-hooks.internal", 80, false),
            ("127.0.0.1", "127.0.0.1", 1, true),
            ("127.0.0.1:9", "127.0.0.1", 9, true),
            ("127.0.0.1", "127.0.0.2", 9, false),
            ("::1", "[0:0:0:0:0:0:0:1]", 9, true),
            ("[::1]", "[::1]", 9, true),
            ("[::1]:8", "[::1]", 8, true),
            ("[::1]:8", "[::1]", 9, false),
        ] {
            let parsed: AllowedHost = allowed.parse().unwrap();
            assert_eq!(parsed.names(host, port), want, "{allowed} {host} {port}");
            assert_eq!(parsed.to_string().parse(), Ok(parsed));
        }
        for text in ["", ":80", "a b", "http://x", "x:", "x:70000", "x/y", "10.0.0.0/8", "*"] {
            assert!(text.parse::<AllowedHost>().is_err(), "{text}");
        }
    }
}
