//! Records as proto3 JSON: an entry's fields by the protocol's own names.
//!
//! 64-bit numbers are strings, bytes are base64, enums are names, fields at their default are left out. Left out: OCSF. Invariant: the
//! same entry has the same JSON, with members by name.

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use exchequer_event::{
    entry,
    v1::{self, entry::Kind},
};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, MapKey, Value};
use serde_json::{Map, Value as Json, json};

use super::Place;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(exchequer_proto::DESCRIPTORS).expect("the descriptors that this was built from")
});

/// The record of an entry.
pub(super) fn record(place: &Place<'_>, decoded: &v1::Entry) -> Json {
    let facets = entry::facets(decoded);
    let mut record = json!({
        "index": place.index,
        "kind": kind_name(facets.kind),
        "stream_seq": decoded.stream_seq,
        "leaf_hash": place.leaf,
        "proof": place.proof,
        "entry": place.entry,
        "record": content(decoded).unwrap_or(Json::Null),
    });
    if let Some(seal) = seal(decoded) {
        record["seal"] = seal;
    }
    record
}

/// A kind in lower case.
pub(super) fn kind_name(kind: v1::EntryKind) -> String {
    kind.as_str_name().trim_start_matches("ENTRY_KIND_").to_lowercase()
}

/// What the entry records.
pub(super) fn content(decoded: &v1::Entry) -> Option<Json> {
    match decoded.kind.as_ref()? {
        Kind::Event(bytes) => message("Event", bytes),
        Kind::DecisionRun(bytes) => message("DecisionRun", bytes),
        Kind::Control(signed) => message("ControlRecord", &signed.record),
        Kind::BatchSealed(sealed) => message("BatchSealed", &sealed.encode_to_vec()),
        Kind::BlockSealed(sealed) => message("BlockSealed", &sealed.encode_to_vec()),
        Kind::Rejection(rejection) => message("Rejection", &rejection.encode_to_vec()),
        Kind::Equivocation(equivocation) => message("Equivocation", &equivocation.encode_to_vec()),
    }
}

/// The seal within a sealed batch or block.
fn seal(decoded: &v1::Entry) -> Option<Json> {
    match decoded.kind.as_ref()? {
        Kind::BatchSealed(sealed) => message("BatchSeal", &sealed.seal),
        Kind::BlockSealed(sealed) => message("BlockSeal", &sealed.seal),
        _ => None,
    }
}

fn message(name: &str, bytes: &[u8]) -> Option<Json> {
    let descriptor = POOL.get_message_by_name(&format!("exchequer.v1.{name}"))?;
    Some(object(&DynamicMessage::decode(descriptor, bytes).ok()?))
}

fn object(message: &DynamicMessage) -> Json {
    let fields = message.fields().map(|(field, found)| (field.json_name().to_owned(), value(&field, found)));
    Json::Object(fields.collect::<Map<_, _>>())
}

fn value(field: &FieldDescriptor, found: &Value) -> Json {
    match found {
        Value::Bool(b) => json!(b),
        Value::I32(n) => json!(n),
        Value::U32(n) => json!(n),
        Value::I64(n) => json!(n.to_string()),
        Value::U64(n) => json!(n.to_string()),
        Value::F32(n) => json!(n),
        Value::F64(n) => json!(n),
        Value::String(text) => json!(text),
        Value::Bytes(bytes) => json!(BASE64.encode(bytes)),
        Value::EnumNumber(number) => {
            let kind = field.kind();
            let known = kind.as_enum().and_then(|descriptor| descriptor.get_value(*number));
            known.map_or(json!(number), |known| json!(known.name()))
        }
        Value::Message(message) => object(message),
        Value::List(items) => items.iter().map(|item| value(field, item)).collect(),
        Value::Map(entries) => {
            let pairs = entries.iter().map(|(key, item)| (map_key(key), value(field, item)));
            Json::Object(pairs.collect())
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
