//! Addresses that a name must not lead to: everything that is not the public Internet.
//!
//! Left out: exceptions, which are rules that name an address. Invariant: an IPv6 address that carries an IPv4 address is judged by both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where Azure's hosts answer their guests: an address of the public range that is none.
const AZURE_HOST: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// What is not public about an address; `None` if it is public.
pub fn not_public(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => not_public_v4(address),
        IpAddr::V6(address) => not_public_v6(address),
    }
}

/// After the registry of special-purpose addresses (RFC 6890), its updates, and what clouds do.
fn not_public_v4(address: Ipv4Addr) -> Option<&'static str> {
    Some(match address.octets() {
        [169, 254, 169, 254] => "the metadata service of clouds",
        [100, 100, 100, 200] => "the metadata service of a cloud",
        _ if address == AZURE_HOST => "a cloud's host",
        [0, 0, 0, 0] => "unspecified",
        [0, ..] => "this network",
        [127, ..] => "loopback",
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => "private",
        [100, 64..=127, ..] => "shared by a carrier",
        [169, 254, ..] => "link-local",
        [192, 0, 0, _] | [192, 88, 99, _] | [240..=255, ..] => "reserved",
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "for documentation",
        [198, 18..=19, ..] => "for benchmarks",
        [224..=239, ..] => "multicast",
        _ => return None,
    })
}

/// Only global unicast (2000::/3) is public, without what carries something else; and the well-known prefix of NAT64.
fn not_public_v6(address: Ipv6Addr) -> Option<&'static str> {
    let s = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match s {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("unspecified"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
        // Mapped, NAT64, 6to4: they lead to the IPv4 address within.
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => not_public_v4(v4(high, low)),
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0x0fff, ..] => Some("for documentation"),
        // Teredo (whose address hides an IPv4 address), ORCHID, benchmarks.
        [0x2001, 0..=0x01ff, ..] => Some("reserved"),
        [0xfc00..=0xfdff, ..] => Some("private"),
        [0xfe80..=0xfebf, ..] => Some("link-local"),
        [0xfec0..=0xfeff, ..] => Some("site-local"),
        [0xff00..=0xffff, ..] => Some("multicast"),
        [0x2000..=0x3fff, ..] => None,
        _ => Some("not global"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        let check =
            |text: &str, want: Option<&str>| assert_eq!(not_public(text.parse().unwrap()), want, "{text}");
        for public in [
            "1.1.1.1",
            "93.184.216.34",
            "172.15.255.255",
            "172.32.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "169.253.0.1",
            "192.167.0.1",
            "223.255.255.255",
            "2606:4700:4700::1111",
            "2a00:1450::1",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
            "2001:200::1",
            "3ffe::1",
        ] {
            check(public, None);
        }
        check("127.0.0.1", Some("loopback"));
        check("127.255.255.255", Some("loopback"));
        check("0.0.0.0", Some("unspecified"));
        check("0.1.2.3", Some("this network"));
        for private in [
            "10.0.0.0",
            "10.255.255.255",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "fc00::1",
            "fd00:ec2::254",
        ] {
            check(private, Some("private"));
        }
        check("169.254.169.254", Some("the metadata service of clouds"));
        check("100.100.100.200", Some("the metadata service of a cloud"));
        check("168.63.129.16", Some("a cloud's host"));
        check("169.254.0.1", Some("link-local"));
        check("100.64.0.1", Some("shared by a carrier"));
        check("100.127.255.255", Some("shared by a carrier"));
        check("224.0.0.1", Some("multicast"));
        check("239.255.255.255", Some("multicast"));
        check("255.255.255.255", Some("reserved"));
        check("192.0.0.192", Some("reserved"));
        check("198.19.0.1", Some("for benchmarks"));
        check("::", Some("unspecified"));
        check("::1", Some("loopback"));
        check("fe80::1", Some("link-local"));
        check("fec0::1", Some("site-local"));
        check("ff02::1", Some("multicast"));
        check("2001:db8::1", Some("for documentation"));
        check("100::1", Some("not global"));
        check("4000::1", Some("not global"));
        check("64:ff9b:1::1.1.1.1", Some("not global"));
        // What IPv6 addresses carry.
        for (prefix, suffix) in [("::ffff:", ""), ("64:ff9b::", "")] {
            check(&format!("{prefix}127.0.0.1{suffix}"), Some("loopback"));
            check(&format!("{prefix}10.1.2.3{suffix}"), Some("private"));
            check(&format!("{prefix}169.254.169.254{suffix}"), Some("the metadata service of clouds"));
        }
        check("2002:7f00:1::1", Some("loopback"));
        check("2002:a9fe:a9fe::1", Some("the metadata service of clouds"));
        check("::127.0.0.1", Some("not global"));
        check("2001:0:4136:e378:8000:63bf:3fff:fdd2", Some("reserved"));
    }
}
