//! Log entries: the leaves of the tree. An entry is encoded once; an index, a tenant and an execution can be read off it.

use prost::{Message, bytes::Bytes};

use crate::{
    name::MAX_ENTRY_BYTES,
    seal::{self, Refusal, malformed},
    v1::{self, EntryKind, entry::Kind},
};

/// Encodes an entry. `None` if it is larger than a log entry can be; the bounds of its parts exclude that.
pub fn encode(entry: &v1::Entry) -> Option<Bytes> {
    let bytes = entry.encode_to_vec();
    (bytes.len() <= MAX_ENTRY_BYTES).then(|| bytes.into())
}

/// Decodes an entry.
pub fn decode(bytes: &Bytes) -> Result<v1::Entry, Refusal> {
    if bytes.len() > MAX_ENTRY_BYTES {
        return Err(malformed(format!("entry: {} bytes, at most {MAX_ENTRY_BYTES}", bytes.len())));
    }
    let entry = v1::Entry::decode(bytes.clone()).map_err(|e| malformed(format!("entry: {e}")))?;
    if entry.kind.is_none() {
        return Err(malformed("entry.kind is missing"));
    }
    Ok(entry)
}

/// What entries are found by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facets {
    /// Kind of the entry.
    pub kind: EntryKind,
    /// The tenant that it belongs to; empty where it belongs to none.
    pub tenant: String,
    /// The execution that it belongs to; empty where it belongs to none.
    pub execution_id: String,
    /// The agent that wrote it or that it is about; empty for none.
    pub agent_id: String,
    /// Seq of an event; 0 for other entries.
    pub agent_seq: u64,
    /// The author's clock, milliseconds; 0 where the entry has none.
    pub time_unix_ms: u64,
}

/// Reads off an entry what it is found by. An entry that nobody signed as it should (it can't come from an acceptor) yields its kind
/// alone.
pub fn facets(entry: &v1::Entry) -> Facets {
    let of = |kind| Facets { kind, ..Facets::default() };
    match &entry.kind {
        None => of(EntryKind::Unspecified),
        Some(Kind::BatchSealed(sealed)) => Facets {
            agent_id: v1::BatchSeal::decode(sealed.seal.clone())
                .map(|seal| seal.agent_id)
                .unwrap_or_default(),
            ..of(EntryKind::BatchSealed)
        },
        Some(Kind::Event(bytes)) => {
            let Ok(event) = seal::decode_event(bytes) else {
                return of(EntryKind::Event);
            };
            Facets {
                kind: EntryKind::Event,
                tenant: event.tenant,
                execution_id: event.execution_id,
                agent_id: event.agent_id,
                agent_seq: event.seq,
                time_unix_ms: event.time_unix_ms,
            }
        }
        Some(Kind::BlockSealed(sealed)) => Facets {
            time_unix_ms: seal::read_block_seal(&sealed.seal).map_or(0, |(place, ..)| place.now_unix_ms),
            ..of(EntryKind::BlockSealed)
        },
        Some(Kind::DecisionRun(bytes)) => Facets {
            tenant: seal::decode_run(bytes).map(|run| run.tenant).unwrap_or_default(),
            ..of(EntryKind::DecisionRun)
        },
        Some(Kind::Control(signed)) => Facets {
            time_unix_ms: v1::ControlRecord::decode(signed.record.clone())
                .map_or(0, |record| record.time_unix_ms),
            ..of(EntryKind::Control)
        },
        Some(Kind::Rejection(rejection)) => Facets {
            agent_id: rejection.subject.strip_prefix("events.").unwrap_or_default().to_owned(),
            ..of(EntryKind::Rejection)
        },
        Some(Kind::Equivocation(equivocation)) => {
            Facets { agent_id: equivocation.agent_id.clone(), ..of(EntryKind::Equivocation) }
        }
    }
}
