//! A line of the local audit log: an event with the digest of the line before it, or what is missing in its place.
//!
//! ```text
//! {"prev_hash":"<hex>","agent":"a","epoch":1,"seq":7,"blake3":"<hex>","bytes":"<base64>","event":{…}}
//! {"prev_hash":"<hex>","agent":"a","epoch":1,"missing":{"from":8,"until":9,"reason":"…"}}
//! ```
//!
//! `prev_hash` is the SHA-256 of the bytes of the line before without its newline, `null` in the very first line. `bytes` is the event as
//! the spool recorded it, `blake3` its digest, as the log has it, and `event` the same in proto3 JSON, in order of field numbers.
//! `cut_bytes`, after `prev_hash`, says how many bytes of a torn line were cut off before this one was written.
//!
//! Left out: files. Invariant: a line is what its contents lead to, byte for byte; whatever else parses is refused.

use std::{fmt::Write as _, sync::LazyLock};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use exchequer_event::{digest::Digest, seal, v1};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, MapKey, MessageDescriptor, Value};
use serde::{Deserialize, de::IgnoredAny};
use sha2::{Digest as _, Sha256};

static EVENT: LazyLock<MessageDescriptor> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(exchequer_proto::DESCRIPTORS);
    let event = pool.ok().and_then(|pool| pool.get_message_by_name("exchequer.v1.Event"));
    event.expect("the descriptors that this was built from")
});

/// A line's place behind others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    /// SHA-256 of the line before, in hex.
    pub(super) prev_hash: Option<String>,
    /// Bytes of a torn line that were cut off before it.
    pub(super) cut_bytes: u64,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) link: Link,
    pub(super) agent: String,
    pub(super) epoch: u64,
    pub(super) content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Event {
        seq: u64,
        /// Digest of its bytes.
        digest: Digest,
        /// What it names as the digest of the event before.
        prev: Digest,
        bytes: Vec<u8>,
    },
    Missing {
        from: u64,
        until: u64,
        reason: String,
    },
}

/// Members as they are parsed; what they lead to is written by [`Line::text`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Members {
    prev_hash: Option<String>,
    #[serde(default)]
    cut_bytes: u64,
    agent: String,
    epoch: u64,
    seq: Option<u64>,
    blake3: Option<IgnoredAny>,
    bytes: Option<String>,
    event: Option<IgnoredAny>,
    missing: Option<Missing>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Missing {
    from: u64,
    until: u64,
    reason: String,
}

impl Line {
    /// The line of an event.
    pub(super) fn event(link: Link, bytes: &[u8]) -> Result<Self, String> {
        let event =
            v1::Event::decode(bytes).map_err(|error| format!("its event can't be decoded: {error}"))?;
        let prev = Digest::from_slice(&event.prev_hash).ok_or("its event has no prev_hash")?;
        let content =
            Content::Event { seq: event.seq, digest: seal::event_digest(bytes), prev, bytes: bytes.to_vec() };
        Ok(Self { link, agent: event.agent_id, epoch: event.epoch, content })
    }

    /// Parses a line without its newline; refuses one that is not what its contents lead to.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let members: Members = serde_json::from_slice(bytes)
            .map_err(|error| format!("is not a line of an audit log: {error}"))?;
        let link = Link { prev_hash: members.prev_hash, cut_bytes: members.cut_bytes };
        let line = match (members.bytes, members.missing) {
            (Some(event), None) => {
                let event =
                    BASE64.decode(event).map_err(|error| format!("its bytes are not base64: {error}"))?;
                Self::event(link, &event)?
            }
            (None, Some(Missing { from, until, reason })) if from <= until => Self {
                link,
                agent: members.agent,
                epoch: members.epoch,
                content: Content::Missing { from, until, reason },
            },
            _ => return Err("holds neither an event nor what is missing".to_owned()),
        };
        // The other members are read only to be written again.
        let _ = (members.seq, members.blake3, members.event);
        if line.text()?.as_bytes() == bytes {
            Ok(line)
        } else {
            Err("is not what its bytes lead to".to_owned())
        }
    }

    /// The line without its newline.
    pub(super) fn text(&self) -> Result<String, String> {
        let mut text = String::from("{\"prev_hash\":");
        match &self.link.prev_hash {
            Some(hash) => string(&mut text, hash),
            None => text.push_str("null"),
        }
        if self.link.cut_bytes > 0 {
            write(&mut text, format_args!(",\"cut_bytes\":{}", self.link.cut_bytes));
        }
        text.push_str(",\"agent\":");
        string(&mut text, &self.agent);
        write(&mut text, format_args!(",\"epoch\":{}", self.epoch));
        match &self.content {
            Content::Event { seq, digest, bytes, .. } => {
                write(&mut text, format_args!(",\"seq\":{seq},\"blake3\":\"{}\"", hex::encode(digest.0)));
                write(&mut text, format_args!(",\"bytes\":\"{}\",\"event\":", BASE64.encode(bytes)));
                let event = DynamicMessage::decode(EVENT.clone(), bytes.as_slice());
                message(&mut text, &event.map_err(|error| error.to_string())?);
            }
            Content::Missing { from, until, reason } => {
                write(
                    &mut text,
                    format_args!(",\"missing\":{{\"from\":{from},\"until\":{until},\"reason\":"),
                );
                string(&mut text, reason);
                text.push('}');
            }
        }
        text.push('}');
        Ok(text)
    }

    /// The first and the last seq that it is about.
    pub(super) fn span(&self) -> (u64, u64) {
        match &self.content {
            Content::Event { seq, .. } => (*seq, *seq),
            Content::Missing { from, until, .. } => (*from, *until),
        }
    }
}

/// What the next line names as `prev_hash`.
pub(super) fn hash(line: &[u8]) -> String {
    hex::encode(Sha256::digest(line))
}

fn write(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a string takes everything");
}

fn string(text: &mut String, value: &str) {
    text.push_str(&serde_json::to_string(value).expect("a string is JSON"));
}

fn separated<T>(text: &mut String, items: impl Iterator<Item = T>, mut put: impl FnMut(&mut String, T)) {
    for (place, item) in items.enumerate() {
        if place > 0 {
            text.push(',');
        }
        put(text, item);
    }
}

/// Proto3 JSON: 64-bit numbers are strings, bytes are base64, enums are names, fields at their default are left out.
fn message(text: &mut String, message: &DynamicMessage) {
    text.push('{');
    separated(text, message.fields(), |text, (field, found)| {
        string(text, field.json_name());
        text.push(':');
        value(text, &field, found);
    });
    text.push('}');
}

fn value(text: &mut String, field: &FieldDescriptor, found: &Value) {
    match found {
        Value::Bool(b) => write(text, format_args!("{b}")),
        Value::I32(n) => write(text, format_args!("{n}")),
        Value::U32(n) => write(text, format_args!("{n}")),
        Value::I64(n) => write(text, format_args!("\"{n}\"")),
        Value::U64(n) => write(text, format_args!("\"{n}\"")),
        // Events have none; as JSON writes them, which has no word for what is not a number.
        Value::F32(n) => text.push_str(&serde_json::Value::from(*n).to_string()),
        Value::F64(n) => text.push_str(&serde_json::Value::from(*n).to_string()),
        Value::String(value) => string(text, value),
        Value::Bytes(bytes) => write(text, format_args!("\"{}\"", BASE64.encode(bytes))),
        Value::EnumNumber(number) => {
            let kind = field.kind();
            match kind.as_enum().and_then(|descriptor| descriptor.get_value(*number)) {
                Some(known) => string(text, known.name()),
                None => write(text, format_args!("{number}")),
            }
        }
        Value::Message(inner) => message(text, inner),
        Value::List(items) => {
            text.push('[');
            separated(text, items.iter(), |text, item| value(text, field, item));
            text.push(']');
        }
        Value::Map(entries) => {
            let mut entries: Vec<_> = entries.iter().map(|(key, item)| (map_key(key), item)).collect();
            entries.sort_by(|one, other| one.0.cmp(&other.0));
            text.push('{');
            separated(text, entries.into_iter(), |text, (key, item)| {
                string(text, &key);
                text.push(':');
                value(text, field, item);
            });
            text.push('}');
        }
    }
}

fn map_key(key: &MapKey) -> String {
    match key {
        MapKey::Bool(b) => b.to_string(),
        MapKey::I32(n) => n.to_string(),
        MapKey::I64(n) => n.to_string(),
        MapKey::U32(n) => n.to_string(),
        MapKey::U64(n) => n.to_string(),
        MapKey::String(text) => text.clone(),
    }
}
