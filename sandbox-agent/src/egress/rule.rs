//! What may be reached: `host:port`, `*.example.org:443`, `192.0.2.7:5432`, `[2001:db8::7]:443`.
//!
//! Left out: what addresses a name may have (`address`). Invariant: a name is kept in lower case without the root's dot, and never looks
//! like an address, so that one host is written in one way.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

/// Longest name of a host, bytes.
const MAX_NAME_BYTES: usize = 253;
/// Longest label of a name, bytes.
const MAX_LABEL_BYTES: usize = 63;

/// A host as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// A name.
    Name(String),
    /// An address; an IPv4 address that is mapped into IPv6 is that IPv4 address.
    Address(IpAddr),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Self::Address(IpAddr::V4(address)) => write!(f, "{address}"),
        }
    }
}

impl Host {
    /// Parses a name, or an address (IPv6 in brackets).
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(inside) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let address = inside.parse::<Ipv6Addr>().ok()?;
            return Some(Self::Address(IpAddr::V6(address).to_canonical()));
        }
        if let Ok(address) = text.parse() {
            return Some(Self::Address(IpAddr::V4(address)));
        }
        name(text).map(Self::Name)
    }
}

/// A name in its one spelling.
fn name(text: &str) -> Option<String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let is_label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // Resolvers take `127.1`, `2130706433` and `0x7f000001` for addresses.
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x");
    let is_name = name.len() <= MAX_NAME_BYTES && name.split('.').all(is_label) && !is_number;
    is_name.then_some(name)
}

/// A host and a port as they are asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// The host.
    pub host: Host,
    /// The port; not 0.
    pub port: u16,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Asked {
    /// Parses `host:port`; without a port, this one.
    pub fn parse(text: &str, default_port: Option<u16>) -> Option<Self> {
        let (host, port) = split(text);
        let port = match port {
            Some(port) => port_number(port)?,
            None => default_port?,
        };
        Some(Self { host: Host::parse(host)?, port })
    }
}

/// Host and port, where there is one; colons within brackets are the host's.
fn split(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    }
}

/// A port in plain digits, above 0.
fn port_number(text: &str) -> Option<u16> {
    let is_plain = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_plain)
}

/// Something that may be reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    hosts: Hosts,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Hosts {
    One(Host),
    /// Every name that ends in a dot and this.
    Below(String),
}

/// Why a text is no rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// There is no port, or it is none.
    #[error("needs a port from 1 to 65535, as in `example.org:443`")]
    Port,
    /// The host is none.
    #[error(
        "needs a host: a name, `*.` and a name of two labels or more, an IPv4 address, or an IPv6 address in brackets"
    )]
    Host,
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (host, port) = split(text);
        let port = port.and_then(port_number).ok_or(RuleError::Port)?;
        let hosts = match host.strip_prefix("*.") {
            // `*.org` is no allow-list.
            Some(below) => name(below).filter(|name| name.contains('.')).map(Hosts::Below),
            None => Host::parse(host).map(Hosts::One),
        };
        Ok(Self { hosts: hosts.ok_or(RuleError::Host)?, port })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hosts {
            Hosts::One(host) => write!(f, "{host}:{}", self.port),
            Hosts::Below(name) => write!(f, "*.{name}:{}", self.port),
        }
    }
}

impl Rule {
    /// Whether it admits this.
    pub fn admits(&self, asked: &Asked) -> bool {
        let of_host = match (&self.hosts, &asked.host) {
            (Hosts::One(own), host) => own == host,
            (Hosts::Below(name), Host::Name(host)) => is_below(host, name),
            (Hosts::Below(_), Host::Address(_)) => false,
        };
        of_host && self.port == asked.port
    }

    /// Whether it admits everything that the other one does: a profile's rule has to be within one of the agent's.
    pub fn covers(&self, other: &Self) -> bool {
        let of_hosts = match (&self.hosts, &other.hosts) {
            (Hosts::Below(own), Hosts::Below(other)) => own == other || is_below(other, own),
            (Hosts::Below(own), Hosts::One(Host::Name(other))) => is_below(other, own),
            (own, other) => own == other,
        };
        of_hosts && self.port == other.port
    }
}

fn is_below(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn asked(text: &str) -> Asked {
        Asked::parse(text, None).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn a_rule_admits_what_it_names_and_nothing_else() {
        let check = |by: &str, yes: &[&str], no: &[&str]| {
            let by = rule(by);
            assert_eq!(rule(&by.to_string()), by, "its text is read again");
            assert!(yes.iter().all(|text| by.admits(&asked(text))), "{by} admits {yes:?}");
            assert!(!no.iter().any(|text| by.admits(&asked(text))), "{by} does not admit {no:?}");
        };
        check(
            "Example.org:443",
            &["example.org:443", "EXAMPLE.ORG.:443"],
            &["example.org:80", "a.example.org:443", "notexample.org:443", "example.org.evil.net:443"],
        );
        check(
            "*.example.org:443",
            &["a.example.org:443", "a.b.example.org:443"],
            &["example.org:443", "notexample.org:443", "a.example.org:80", "93.184.216.34:443"],
        );
        check(
            "10.0.0.1:80",
            &["10.0.0.1:80", "[::ffff:10.0.0.1]:80"],
            &["10.0.0.2:80", "10.0.0.1.nip.io:80"],
        );
        check("[2001:db8::1]:80", &["[2001:DB8:0::1]:80"], &["[2001:db8::2]:80"]);
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        let port =
            ["example.org", "example.org:", "example.org:0", "example.org:65536", "example.org:+80", ""];
        assert!(port.iter().all(|text| text.parse::<Rule>() == Err(RuleError::Port)), "{port:?}");
        let long = format!("{}:1", "a".repeat(64));
        let host = [
            "*:443",
            "*.org:443",
            "*.:443",
            "a.*.org:443",
            "::1:80",
            "127.1:80",
            "2130706433:80",
            "0x7f000001:80",
            "a..b:1",
            "-a.org:1",
            "a b:1",
            "ü.org:1",
            "http://example.org:80",
            "user@example.org:80",
            ":80",
            &long,
        ];
        assert!(host.iter().all(|text| text.parse::<Rule>() == Err(RuleError::Host)), "{host:?}");
    }

    #[test]
    fn a_rule_covers_what_admits_no_more_than_it_does() {
        let check = |wide: &str, narrow: &str, want: bool| {
            assert_eq!(rule(wide).covers(&rule(narrow)), want, "{wide} covers {narrow}");
        };
        check("*.example.org:443", "a.example.org:443", true);
        check("*.example.org:443", "*.example.org:443", true);
        check("*.example.org:443", "*.a.example.org:443", true);
        check("*.example.org:443", "example.org:443", false);
        check("*.example.org:443", "a.example.org:80", false);
        check("*.a.example.org:443", "*.example.org:443", false);
        check("a.example.org:443", "*.example.org:443", false);
        check("10.0.0.1:1", "10.0.0.1:1", true);
        check("10.0.0.1:1", "10.0.0.2:1", false);
    }
}
