//! Subjects, filters, keys and headers: which are accepted, and which subject a filter matches.
//!
//! Left out: who may use a subject. Invariant: both implementations accept and refuse the same messages.

use crate::stream::{AppendError, MAX_HEADER_BYTES, MAX_HEADERS, MAX_LATEST, MAX_PAYLOAD, Message};

/// The subjects of the stream, as filters: signed batches, decision blocks, control records.
pub const SUBJECTS: [&str; 3] = ["events.*", "budget.*", "control.*"];
/// Bytes of a subject, of a key and of a lease's name or holder.
pub const MAX_NAME: usize = 200;

/// Whether `filter` (tokens, `*` for one token, a closing `>` for one or more) matches `subject`.
pub fn matches(filter: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    let mut wanted = filter.split('.');
    loop {
        match (wanted.next(), tokens.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) => return wanted.next().is_none(),
            (Some("*"), Some(_)) => {}
            (Some(want), Some(token)) if want == token => {}
            _ => return false,
        }
    }
}

fn is_token(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'*' | b'>' | b'.'))
}

pub(crate) fn check_subject(subject: &str) -> Result<(), String> {
    if subject.len() > MAX_NAME {
        return Err(format!("subject of {} bytes; at most {MAX_NAME}", subject.len()));
    }
    if !subject.split('.').all(is_token) || !SUBJECTS.iter().any(|s| matches(s, subject)) {
        return Err(format!("subject {subject:?} is none of {SUBJECTS:?}"));
    }
    Ok(())
}

pub(crate) fn check_filter(filter: &str) -> Result<(), String> {
    let tokens: Vec<&str> = filter.split('.').collect();
    let closing = tokens.len() - 1;
    let valid =
        tokens.iter().enumerate().all(|(i, t)| is_token(t) || *t == "*" || (*t == ">" && i == closing));
    if filter.len() > MAX_NAME || !valid {
        return Err(format!("filter {filter:?} is malformed"));
    }
    Ok(())
}

/// Keys are also file names and the tokens of a NATS subject.
pub(crate) fn check_key(key: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'=');
    let valid = key.len() <= MAX_NAME && key.split('.').all(|t| !t.is_empty() && t.bytes().all(plain));
    if valid { Ok(()) } else { Err(format!("key {key:?} is not of [A-Za-z0-9-_=] tokens joined by dots")) }
}

pub(crate) fn check_holder(holder: &str) -> Result<(), String> {
    if holder.is_empty() || holder.len() > MAX_NAME || !holder.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("holder {holder:?} is not 1 to {MAX_NAME} printable characters"));
    }
    Ok(())
}

pub(crate) fn check_latest(key: &str, value: &[u8]) -> Result<(), AppendError> {
    check_key(key).map_err(AppendError::Invalid)?;
    if value.len() > MAX_LATEST {
        return Err(AppendError::TooLarge { what: "latest value", size: value.len(), limit: MAX_LATEST });
    }
    Ok(())
}

/// Checks everything about a message but its expectation.
pub(crate) fn check_message(message: &Message) -> Result<(), AppendError> {
    check_subject(&message.subject).map_err(AppendError::Invalid)?;
    if message.payload.len() > MAX_PAYLOAD {
        return Err(AppendError::TooLarge {
            what: "payload",
            size: message.payload.len(),
            limit: MAX_PAYLOAD,
        });
    }
    if message.headers.len() > MAX_HEADERS {
        return Err(AppendError::TooLarge {
            what: "header count",
            size: message.headers.len(),
            limit: MAX_HEADERS,
        });
    }
    let size = message.headers.iter().map(|(n, v)| n.len() + v.len()).sum();
    if size > MAX_HEADER_BYTES {
        return Err(AppendError::TooLarge { what: "headers", size, limit: MAX_HEADER_BYTES });
    }
    for (name, value) in &message.headers {
        let name_ok = !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b':');
        let value_ok = value.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
            && value.trim() == value
            && !value.is_empty();
        if !name_ok || !value_ok || is_broker_header(name) {
            return Err(AppendError::Invalid(format!("header {name:?}: {value:?}")));
        }
    }
    Ok(())
}

pub(crate) fn is_broker_header(name: &str) -> bool {
    name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_in_nats() {
        let check = |filter, subject, expected| {
            assert_eq!(matches(filter, subject), expected, "{filter} on {subject}");
        };
        check("events.a", "events.a", true);
        check("events.a", "events.b", false);
        check("events.*", "events.a", true);
        check("events.*", "events.a.b", false);
        check("events.>", "events.a.b", true);
        check("events.>", "events", false);
        check(">", "events.a", true);
        check("*.a", "events.a", true);
        check("events.a.b", "events.a", false);
        check("events", "events.a", false);
    }

    #[test]
    fn malformed_names_are_refused() {
        for subject in [
            "",
            "events",
            "events.",
            "events.a.b",
            "events.*",
            "events.>",
            "events.a b",
            "other.a",
            "events.ä",
        ] {
            assert!(check_subject(subject).is_err(), "{subject:?}");
        }
        for key in ["", ".", "..", ".tmp", "a..b", "a/b", "a b", "a*"] {
            assert!(check_key(key).is_err(), "{key:?}");
        }
        for filter in ["", "events..a", "events.>.a", "a b"] {
            assert!(check_filter(filter).is_err(), "{filter:?}");
        }
        for (name, value) in
            [("", "v"), ("a b", "v"), ("a:", "v"), ("n", "a\r\nb"), ("n", " v"), ("n", ""), ("nats-x", "v")]
        {
            let message = Message::new("events.a", "x").header(name, value);
            assert!(matches!(check_message(&message), Err(AppendError::Invalid(_))), "{name:?} {value:?}");
        }
    }
}
