//! The head of a request to the proxy: what is asked for, and what is passed on instead of it.
//!
//! Left out: bodies, which are passed on as they come. Invariant: whatever the bytes are, it ends in a request or a fault; what is passed
//! on has one `Host`, the one that was checked.

use super::rule::Asked;

/// Most header fields. Re-exported for the crate `fuzz` alone.
pub const MAX_FIELDS: usize = 64;
/// Fields that are between the program and the proxy, or that the proxy writes itself.
const OWN_FIELDS: [&str; 9] = [
    "host",
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
    "te",
    "trailer",
    "upgrade",
];

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Where to.
    pub(super) asked: Asked,
    /// What is sent there first; nothing for a tunnel.
    pub(super) forwarded: Option<Vec<u8>>,
    /// How long the head is; what follows is passed on.
    pub(super) length: usize,
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// Where a head ends, if its end has come; nothing before `from` needs to be looked at again.
fn end(bytes: &[u8], from: usize) -> Option<usize> {
    let from = from.saturating_sub(3);
    bytes[from..].windows(4).position(|four| four == b"\r\n\r\n").map(|place| from + place + 4)
}

/// What the bytes that have come so far ask for; `None` if the head's end has not come. Nothing before `from` needs to be looked at again.
pub(super) fn read(bytes: &[u8], from: usize) -> Result<Option<Head>, Malformed> {
    if !may_begin(bytes) {
        return Err(Malformed("the request is no HTTP/1.1"));
    }
    end(bytes, from).map(|_| parse(bytes)).transpose()
}

/// Whether bytes may be the beginning of a request. TLS, for one, is not.
fn may_begin(bytes: &[u8]) -> bool {
    bytes.first().is_none_or(u8::is_ascii_uppercase)
}

/// Parses a head that has ended.
fn parse(bytes: &[u8]) -> Result<Head, Malformed> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Err(Malformed("the request's head has no end")),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Malformed("there are more than 64 header fields"));
        }
        Err(_) => return Err(Malformed("the request is no HTTP/1.1")),
    };
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(Malformed("the request has no method, target or version"));
    };
    if method == "CONNECT" {
        let asked = Asked::parse(target, None).ok_or(Malformed("CONNECT needs a host and a port"))?;
        return Ok(Head { asked, forwarded: None, length });
    }
    let (authority, path) = absolute(target)?;
    let asked =
        Asked::parse(authority, Some(80)).ok_or(Malformed("the URL has no host that can be reached"))?;
    let forwarded = forward(method, path, version, authority, request.headers);
    Ok(Head { asked, forwarded: Some(forwarded), length })
}

/// Authority and path of an absolute `http://` URL.
fn absolute(target: &str) -> Result<(&str, &str), Malformed> {
    const SCHEME: &str = "http://";
    let scheme = target.get(..SCHEME.len());
    if !scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME)) {
        return Err(Malformed("this is a proxy: it takes CONNECT host:port, and http:// URLs"));
    }
    let rest = &target[SCHEME.len()..];
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    // A fragment is never sent.
    Ok((authority, path.split('#').next().unwrap_or_default()))
}

/// The head as the target gets it: in origin form, without what is the proxy's, one request to a connection.
fn forward(
    method: &str,
    path: &str,
    version: u8,
    authority: &str,
    fields: &[httparse::Header<'_>],
) -> Vec<u8> {
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut head = format!("{method} {slash}{path} HTTP/1.{version}\r\nHost: {authority}\r\n").into_bytes();
    let named = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("connection"));
    let named = named.flat_map(|field| field.value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    let named: Vec<_> = named.collect();
    for field in fields {
        let is_own = OWN_FIELDS.iter().any(|own| field.name.eq_ignore_ascii_case(own));
        if is_own || named.iter().any(|name| name.eq_ignore_ascii_case(field.name.as_bytes())) {
            continue;
        }
        head.extend_from_slice(field.name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(field.value);
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"Connection: close\r\n\r\n");
    head
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Result<(String, Option<String>), &'static str> {
        let head = parse(text.as_bytes()).map_err(|Malformed(why)| why)?;
        assert_eq!(head.length, end(text.as_bytes(), 0).unwrap());
        Ok((head.asked.to_string(), head.forwarded.map(|bytes| String::from_utf8(bytes).unwrap())))
    }

    #[test]
    fn a_tunnel_is_asked_for_by_host_and_port() {
        let tunnel = |to: &str| Ok((to.to_owned(), None));
        assert_eq!(
            parsed("CONNECT A.example.org.:443 HTTP/1.1\r\nHost: b\r\n\r\n"),
            tunnel("a.example.org:443")
        );
        assert_eq!(parsed("CONNECT [::ffff:10.0.0.1]:1 HTTP/1.1\r\n\r\n"), tunnel("10.0.0.1:1"));
        assert_eq!(parsed("CONNECT [2001:db8::1]:1 HTTP/1.0\r\n\r\nmore"), tunnel("[2001:db8::1]:1"));
        for target in [
            "a.org",
            "a.org:",
            "a.org:0",
            "a.org:99999",
            "u@a.org:1",
            "/",
            "http://a.org:1/",
            "2130706433:1",
            "a.org:1:1",
        ] {
            let text = format!("CONNECT {target} HTTP/1.1\r\n\r\n");
            assert_eq!(parsed(&text), Err("CONNECT needs a host and a port"), "{target}");
        }
    }

    #[test]
    fn a_url_is_asked_for_in_origin_form_with_the_host_that_is_checked() {
        let text = "GET HTTP://A.org:8080?q#f HTTP/1.1\r\nHost: evil.org\r\nProxy-Authorization: x\r\nX-Own: 1\r\n\
                    Connection: x-own, close\r\nAccept: */*\r\nUpgrade: h2c\r\n\r\nbody";
        let want = "GET /?q HTTP/1.1\r\nHost: A.org:8080\r\nAccept: */*\r\nConnection: close\r\n\r\n";
        assert_eq!(parsed(text), Ok(("a.org:8080".to_owned(), Some(want.to_owned()))));
        let plain = "POST / HTTP/1.0\r\nHost: a.org\r\nConnection: close\r\n\r\n".to_owned();
        assert_eq!(parsed("POST http://a.org HTTP/1.0\r\n\r\n"), Ok(("a.org:80".to_owned(), Some(plain))));
    }

    #[test]
    fn anything_else_is_malformed() {
        let no_proxy = Err("this is a proxy: it takes CONNECT host:port, and http:// URLs");
        for target in ["/", "*", "https://a.org/", "ftp://a.org/", "a.org", "http:/", "h"] {
            assert_eq!(parsed(&format!("GET {target} HTTP/1.1\r\n\r\n")), no_proxy, "{target}");
        }
        for target in
            ["http://", "http:///", "http://u:p@a.org/", "http://a.org:x/", "http://127.1/", "http://a..b/"]
        {
            let text = format!("GET {target} HTTP/1.1\r\n\r\n");
            assert_eq!(parsed(&text), Err("the URL has no host that can be reached"), "{target}");
        }
        for text in [
            "\r\n\r\n",
            "GET\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "G\0T / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\na b\r\n\r\n",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
        let many = format!("GET http://a.org/ HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65));
        assert_eq!(parsed(&many), Err("there are more than 64 header fields"));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0_usize..200) {
            let _ = parse(&bytes);
            let whole = end(&bytes, 0);
            prop_assert_eq!(whole, end(&bytes, cut.min(bytes.len()).min(whole.unwrap_or(usize::MAX))));
        }

        #[test]
        fn nothing_that_is_passed_on_names_another_host(
            target in "[a-z./:@#?%\\[\\]0-9-]{0,40}",
            fields in proptest::collection::vec(("[hH][oO][sS][tT]|[a-z-]{1,10}", "[ -~]{0,20}"), 0..6),
        ) {
            let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let fields = fields.concat();
            let text = format!("GET http://{target} HTTP/1.1\r\n{fields}\r\n");
            if let Ok(Head { asked, forwarded: Some(forwarded), .. }) = parse(text.as_bytes()) {
                let forwarded = String::from_utf8(forwarded).unwrap();
                let hosts: Vec<_> =
                    forwarded.lines().filter(|line| line.to_ascii_lowercase().starts_with("host:")).collect();
                prop_assert_eq!(hosts.len(), 1);
                prop_assert_eq!(Asked::parse(&hosts[0]["Host: ".len()..], Some(80)), Some(asked));
            }
        }
    }
}
