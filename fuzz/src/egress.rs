//! The head of a request to the egress proxy, as a program inside a sandbox wrote it: what is asked for, and what is passed on.

use sandbox_agent::egress::{MAX_FIELDS, read_head, rule::Asked};

const END: &[u8] = b"\r\n\r\n";

/// A head, and maybe what follows it.
pub(crate) fn head(data: &[u8]) -> bool {
    let read = read_head(data, 0);
    // However the bytes come, the same is found. As the proxy does: what was looked at before is not looked at again.
    let in_two = |split: usize| match read_head(&data[..split], 0) {
        Ok(None) => read_head(data, split),
        found => found,
    };
    assert_eq!(in_two(somewhere(data)), read);
    let Some(end) = data.windows(END.len()).position(|four| four == END).map(|place| place + END.len())
    else {
        assert!(!matches!(read, Ok(Some(_))), "a head without an end");
        return false;
    };
    // The end itself may come in pieces, and what follows it changes nothing.
    for split in end - END.len()..=end {
        assert_eq!(in_two(split), read);
    }
    let Ok(found) = read else { return false };
    // Not before the end has come.
    assert_eq!(read_head(&data[..end - 1], 0), Ok(None));
    let (asked, forwarded, length) = found.expect("a head that has ended is whole or refused");
    assert!(length <= end);
    assert_eq!(Asked::parse(&asked.to_string(), None).as_ref(), Some(&asked));
    if let Some(forwarded) = forwarded {
        is_one_request(&forwarded, &asked);
    }
    true
}

/// A place between two bytes, or before or after all, that depends on each of them.
fn somewhere(data: &[u8]) -> usize {
    let sum = data.iter().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    sum % (data.len() + 1)
}

/// What is passed on is one head in origin form, for the host that is checked and for no other.
fn is_one_request(forwarded: &[u8], asked: &Asked) {
    let text = String::from_utf8_lossy(forwarded.strip_suffix(END).expect("it ends"));
    let lines: Vec<_> = text.split("\r\n").collect();
    assert!(lines.iter().all(|line| !line.is_empty() && !line.contains(['\r', '\n', '\0'])), "{text:?}");
    let [_, target, version] = lines[0].split(' ').collect::<Vec<_>>()[..] else { panic!("{text:?}") };
    assert!(target.starts_with('/') && ["HTTP/1.0", "HTTP/1.1"].contains(&version), "{text:?}");
    let fields: Vec<_> =
        lines[1..].iter().map(|line| line.split_once(": ").expect("a name and a value")).collect();
    // The proxy adds `Host` and `Connection`.
    assert!(fields.len() <= MAX_FIELDS + 2, "{text:?}");
    let values = |name: &str| -> Vec<_> {
        let named = fields.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name));
        named.map(|(_, value)| *value).collect()
    };
    let [host] = values("host")[..] else { panic!("{text:?}") };
    assert_eq!(Asked::parse(host, Some(80)).as_ref(), Some(asked), "{text:?}");
    assert_eq!(values("connection"), ["close"], "{text:?}");
}

pub(crate) fn heads() -> Vec<Vec<u8>> {
    let get = |fields: &str| format!("GET http://a.example/ HTTP/1.1\r\n{fields}\r\n");
    let fields = "Host: evil.example\r\nConnection: x-own, close\r\nX-Own: 1\r\nAccept: */*\r\n\r\nbody";
    let texts = [
        "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n".to_owned(),
        "CONNECT [::ffff:10.0.0.1]:1 HTTP/1.0\r\n\r\nmore".to_owned(),
        format!("GET HTTP://A.example:8080/p?q#f HTTP/1.1\r\n{fields}"),
        get(&"a: b\r\n".repeat(MAX_FIELDS)),
        get(&"a: b\r\n".repeat(MAX_FIELDS + 1)),
        // Longer than the proxy waits for the end.
        format!("GET http://a.example/{} HTTP/1.1\r\n", "a".repeat(16 << 10)),
        "GET http://a.example/ HTTP/1.1\nHost: evil.example\n\nGET / HTTP/1.1\r\n\r\n".to_owned(),
        "G\0T http://a.example/ HTTP/1.1\r\n\r\n".to_owned(),
        get("a: \0\r\n"),
        // A field that goes on in the next line.
        get("a: b\r\n c: d\r\n"),
    ];
    texts.map(String::into_bytes).into()
}
