//! Names that travel in records, and the bounds of records. Everything here is checked before anything is decoded further.

/// Largest encoded event, bytes. Anything larger is recorded by digest.
pub const MAX_EVENT_BYTES: usize = 32 * 1024;
/// Most events in a batch.
pub const MAX_BATCH_EVENTS: usize = 512;
/// Largest encoded batch, bytes.
pub const MAX_BATCH_BYTES: usize = 256 * 1024;
/// Largest encoded seal, bytes. Decoders skip unknown fields, so a seal's own fields do not bound it.
pub const MAX_SEAL_BYTES: usize = 1024;
/// Most items in a decision block.
pub const MAX_BLOCK_ITEMS: usize = 512;
/// Largest encoded decision run, bytes: leaves room for the entry around it.
pub const MAX_ITEM_BYTES: usize = 60 * 1024;
/// Largest encoded decision block, bytes.
pub const MAX_BLOCK_BYTES: usize = 512 * 1024;
/// Largest encoded control record with its signature, bytes.
pub const MAX_CONTROL_BYTES: usize = 16 * 1024;
/// Largest control record that stands for a lost message, bytes: the entries of the largest batch, with room to spare.
pub const MAX_REFILL_BYTES: usize = 512 * 1024;
/// Largest log entry, bytes: what a C2SP entry bundle can hold.
pub const MAX_ENTRY_BYTES: usize = 65_535;
/// Largest text kept in a rejection's detail, bytes.
pub const MAX_DETAIL_BYTES: usize = 512;
/// Longest subject that a rejection repeats, bytes.
pub const MAX_SUBJECT_BYTES: usize = 256;

/// The stream subject of an agent's batches.
pub fn events_subject(agent_id: &str) -> String {
    format!("events.{agent_id}")
}

/// The stream subject of a partition's decision blocks.
pub fn budget_subject(partition: &str) -> String {
    format!("budget.{partition}")
}

/// The stream subject of control records on a topic.
pub fn control_subject(topic: &str) -> String {
    format!("control.{topic}")
}

/// The key under which an agent's latest receipt is kept.
pub fn receipt_key(agent_id: &str) -> String {
    format!("receipts.{agent_id}")
}

/// What a stream subject is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// Batches of the named agent.
    Events(&'a str),
    /// Decision blocks of the named partition.
    Budget(&'a str),
    /// Control records on the named topic.
    Control(&'a str),
}

impl<'a> Subject<'a> {
    /// Reads a subject; `None` if it is not one of the protocol's.
    pub fn parse(subject: &'a str) -> Option<Self> {
        let (kind, name) = subject.split_once('.')?;
        match kind {
            _ if !is_holder(name) => None,
            "events" => Some(Self::Events(name)),
            "budget" => Some(Self::Budget(name)),
            "control" => Some(Self::Control(name)),
            _ => None,
        }
    }
}

/// Whether this can name an agent, a service, a partition or a topic: `^[a-z0-9][a-z0-9_-]{0,62}$`.
pub fn is_holder(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| inner(*byte))
        && bytes[0].is_ascii_alphanumeric()
}

/// Whether this can name a tenant: 1 to 64 of `[A-Za-z0-9._-]`.
pub fn is_tenant(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// Whether this can name a skill: `^[a-z0-9][a-z0-9._-]{0,62}$`.
pub fn is_skill(name: &str) -> bool {
    let inner =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-');
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| inner(*byte))
        && bytes[0].is_ascii_alphanumeric()
}

/// Whether this can name an execution or a hold: a UUID in lower-case hyphenated form.
pub fn is_uuid(name: &str) -> bool {
    let bytes = name.as_bytes();
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    bytes.len() == 36
        && [8, 13, 18, 23].iter().all(|place| bytes[*place] == b'-')
        && [0..8, 9..13, 14..18, 19..23, 24..36]
            .into_iter()
            .all(|group| bytes[group].iter().all(|byte| is_hex(*byte)))
}

/// The beginning of a text, at most `max` bytes, cut at a character.
pub fn clip(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_name_one_thing_or_nothing() {
        assert_eq!(Subject::parse("events.agent-1"), Some(Subject::Events("agent-1")));
        assert_eq!(Subject::parse("budget.0"), Some(Subject::Budget("0")));
        assert_eq!(Subject::parse("control.keys"), Some(Subject::Control("keys")));
        for bad in [
            "",
            "events",
            "events.",
            "events.A",
            "events.a.b",
            "events.-a",
            "event.a",
            "events.ä",
            "receipts.a",
        ] {
            assert_eq!(Subject::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_are_bounded() {
        assert!(
            is_tenant("Acme_1.eu-x") && !is_tenant("a/b") && !is_tenant("") && !is_tenant(&"a".repeat(65))
        );
        assert!(is_holder(&"a".repeat(63)) && !is_holder(&"a".repeat(64)));
        assert!(
            is_uuid("0190b2a4-0000-7000-8000-00000000000f")
                && !is_uuid("0190B2A4-0000-7000-8000-00000000000F")
        );
        assert!(is_skill("python3.sum-up_2") && is_skill(&"a".repeat(63)));
        for bad in ["", "Python", ".a", "a/b", "a b", "ä", &"a".repeat(64)] {
            assert!(!is_skill(bad), "{bad}");
        }
        assert_eq!(clip("aä", 2), "a");
    }
}
