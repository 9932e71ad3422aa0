//! Log entries: the leaves of the tree. An entry is encoded once; what it is found by can be read off its bytes.

use prost::{Message, bytes::Bytes};

use crate::{
    fields::{self, bytes_field, number_field, text_field},
    name::MAX_ENTRY_BYTES,
    seal::{Refusal, malformed},
    v1::{self, EntryKind, EventKind, entry::Kind},
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
pub struct Facets<S = String> {
    /// Kind of the entry.
    pub kind: EntryKind,
    /// Kind of the event; unspecified for other entries.
    pub event_kind: EventKind,
    /// The tenant that it belongs to; empty where it belongs to none.
    pub tenant: S,
    /// The execution that it belongs to; empty where it belongs to none.
    pub execution_id: S,
    /// The skill that the execution runs; empty where it runs none.
    pub skill: S,
    /// The agent that wrote it or that it is about; empty for none.
    pub agent_id: S,
    /// Seq of an event; 0 for other entries.
    pub agent_seq: u64,
    /// The author's clock, milliseconds; 0 where the entry has none.
    pub time_unix_ms: u64,
}

impl Facets<&str> {
    /// The same with strings of its own.
    pub fn into_owned(self) -> Facets {
        Facets {
            kind: self.kind,
            event_kind: self.event_kind,
            tenant: self.tenant.to_owned(),
            execution_id: self.execution_id.to_owned(),
            skill: self.skill.to_owned(),
            agent_id: self.agent_id.to_owned(),
            agent_seq: self.agent_seq,
            time_unix_ms: self.time_unix_ms,
        }
    }
}

fn of<'a>(kind: EntryKind) -> Facets<&'a str> {
    Facets { kind, ..Facets::default() }
}

/// An entry's kind.
pub fn kind(entry: &v1::Entry) -> EntryKind {
    match &entry.kind {
        None => EntryKind::Unspecified,
        Some(Kind::BatchSealed(_)) => EntryKind::BatchSealed,
        Some(Kind::Event(_)) => EntryKind::Event,
        Some(Kind::BlockSealed(_)) => EntryKind::BlockSealed,
        Some(Kind::DecisionRun(_)) => EntryKind::DecisionRun,
        Some(Kind::Control(_)) => EntryKind::Control,
        Some(Kind::Rejection(_)) => EntryKind::Rejection,
        Some(Kind::Equivocation(_)) => EntryKind::Equivocation,
    }
}

/// Reads off an entry what it is found by. An entry that can't come from an acceptor yields its kind alone.
pub fn facets(entry: &v1::Entry) -> Facets {
    let facets = match &entry.kind {
        None => None,
        Some(Kind::BatchSealed(sealed)) => of_batch_seal(&sealed.seal),
        Some(Kind::Event(bytes)) => of_event(bytes),
        Some(Kind::BlockSealed(sealed)) => of_block_seal(&sealed.seal),
        Some(Kind::DecisionRun(bytes)) => of_run(bytes),
        Some(Kind::Control(signed)) => of_control(&signed.record),
        Some(Kind::Rejection(rejection)) => Some(of_rejection(&rejection.subject)),
        Some(Kind::Equivocation(equivocation)) => Some(of_equivocation(&equivocation.agent_id)),
    };
    facets.unwrap_or_else(|| of(kind(entry))).into_owned()
}

/// What [`facets`] says of the entry that these bytes encode, as an acceptor encodes entries: nothing is decoded or copied. `None` if
/// they are no entry.
pub fn read_facets(bytes: &[u8]) -> Option<Facets<&str>> {
    let mut found = None;
    fields::each(bytes, |number, value| {
        if (16..=22).contains(&number) {
            found = Some((number, value.bytes()?));
        }
        Some(())
    })?;
    let (number, bytes) = found?;
    let (kind, facets) = match number {
        16 => (EntryKind::BatchSealed, of_batch_seal(bytes_field(bytes, 1)?)),
        17 => (EntryKind::Event, of_event(bytes)),
        18 => (EntryKind::BlockSealed, of_block_seal(bytes_field(bytes, 1)?)),
        19 => (EntryKind::DecisionRun, of_run(bytes)),
        20 => (EntryKind::Control, of_control(bytes_field(bytes, 1)?)),
        21 => (EntryKind::Rejection, Some(of_rejection(text_field(bytes, 1)?))),
        _ => (EntryKind::Equivocation, Some(of_equivocation(text_field(bytes, 1)?))),
    };
    Some(facets.unwrap_or_else(|| of(kind)))
}

fn of_event(bytes: &[u8]) -> Option<Facets<&str>> {
    let mut facets = of(EntryKind::Event);
    fields::each(bytes, |number, value| {
        match number {
            1 => facets.agent_id = value.text()?,
            3 => facets.agent_seq = value.number()?,
            5 => facets.time_unix_ms = value.number()?,
            6 => facets.tenant = value.text()?,
            7 => facets.execution_id = value.text()?,
            8 => facets.skill = value.text()?,
            _ => {
                let kind = i32::try_from(number).ok().and_then(|number| EventKind::try_from(number).ok());
                facets.event_kind = kind.unwrap_or(facets.event_kind);
            }
        }
        Some(())
    })?;
    (facets.event_kind != EventKind::Unspecified).then_some(facets)
}

fn of_batch_seal(seal: &[u8]) -> Option<Facets<&str>> {
    Some(Facets { agent_id: text_field(seal, 1)?, ..of(EntryKind::BatchSealed) })
}

fn of_block_seal(seal: &[u8]) -> Option<Facets<&str>> {
    Some(Facets { time_unix_ms: number_field(seal, 5)?, ..of(EntryKind::BlockSealed) })
}

fn of_run(run: &[u8]) -> Option<Facets<&str>> {
    Some(Facets { tenant: text_field(run, 1)?, ..of(EntryKind::DecisionRun) })
}

fn of_control(record: &[u8]) -> Option<Facets<&str>> {
    Some(Facets { time_unix_ms: number_field(record, 1)?, ..of(EntryKind::Control) })
}

fn of_rejection(subject: &str) -> Facets<&str> {
    Facets { agent_id: subject.strip_prefix("events.").unwrap_or_default(), ..of(EntryKind::Rejection) }
}

fn of_equivocation(agent_id: &str) -> Facets<&str> {
    Facets { agent_id, ..of(EntryKind::Equivocation) }
}

#[cfg(test)]
mod tests;
