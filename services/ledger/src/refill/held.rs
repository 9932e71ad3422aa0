//! What the log holds of a stream message: its entries, and from them the message itself where nothing of it is missing.
//!
//! Left out: the stream. Invariant: a message that is rebuilt becomes, where it was, exactly the entries that it was rebuilt from.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use exchequer_event::{
    accept::KeyState,
    control,
    digest::{self, Digest},
    entry,
    name::{MAX_SUBJECT_BYTES, Subject, budget_subject, clip, control_subject, events_subject},
    seal,
    v1::{self, KeyRole, control_record::Kind as ControlKind, entry::Kind},
};
use exchequer_stream::Record;
use prost::Message as _;

use crate::store::{LogReader, StoreError};

/// Entries read at once: a bundle.
const STEP: u64 = 256;
/// Bytes of entries after which no further message is begun.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// What the log holds of one message; no entries if it became nothing.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// Its stream sequence.
    pub(super) seq: u64,
    /// Its entries, encoded, in log order.
    pub(super) entries: Vec<Bytes>,
    kinds: Vec<Kind>,
}

/// Which messages became something, and which events they brought, of a part of the log.
#[derive(Debug, Default)]
pub(super) struct Events {
    came_at: HashMap<Digest, u64>,
    something: HashSet<u64>,
}

impl Events {
    /// Takes up what became of a message.
    pub(super) fn take(&mut self, held: &Held) {
        if !held.entries.is_empty() {
            self.something.insert(held.seq);
        }
        for event in held.kinds.iter().filter_map(event) {
            self.came_at.insert(seal::event_digest(&event), held.seq);
        }
    }

    /// Whether a batch of which the log holds every event becomes nothing at its place too, as what the log was built from did there:
    /// all of it came before. An agent that goes back publishes such a batch at any time.
    pub(super) fn is_nothing_at(&self, record: &Record) -> bool {
        let Ok(batch) = v1::SignedBatch::decode(record.payload.clone()) else { return false };
        let came_before =
            |event: &Bytes| self.came_at.get(&seal::event_digest(event)).is_none_or(|seq| *seq < record.seq);
        !self.something.contains(&record.seq) && batch.events.iter().all(came_before)
    }
}

/// What the committed log holds of the messages `from..=to`: of the first ones at least, if all are too much at once. Blocks.
pub(super) fn held(reader: &LogReader, from: u64, to: u64) -> Result<Vec<Held>, StoreError> {
    let size = reader.committed();
    let mut all = vec![Held::none(from)];
    let mut next = from;
    let mut bytes = 0;
    let mut index = first_index(reader, from, size)?;
    while index < size {
        let end = size.min(index + STEP - index % STEP);
        for (index, encoded) in (index..).zip(reader.verified_entries(index, end)?) {
            let v1::Entry { stream_seq, kind } = decode(index, &encoded)?;
            if stream_seq > to {
                return Ok(fill(all, next, to));
            }
            while next < stream_seq {
                if bytes >= MAX_BYTES {
                    return Ok(all);
                }
                next += 1;
                all.push(Held::none(next));
            }
            bytes += encoded.len();
            if let Some(held) = all.last_mut() {
                held.entries.push(encoded);
                held.kinds.extend(kind);
            }
        }
        index = end;
    }
    Ok(fill(all, next, to))
}

/// What comes after the last message that became something became nothing.
fn fill(mut all: Vec<Held>, last: u64, to: u64) -> Vec<Held> {
    all.extend((last + 1..=to).map(Held::none));
    all
}

/// Index of the first entry of a message at or behind `seq`: sequences never fall along the log.
fn first_index(reader: &LogReader, seq: u64, size: u64) -> Result<u64, StoreError> {
    let (mut lower, mut upper) = (0, size);
    while lower < upper {
        let middle = lower + (upper - lower) / 2;
        let found = reader.entries(middle, middle + 1)?;
        let before = match found.first() {
            Some(encoded) => decode(middle, encoded)?.stream_seq < seq,
            None => return Err(StoreError::OutOfRange { asked: middle, size }),
        };
        if before { lower = middle + 1 } else { upper = middle }
    }
    Ok(lower)
}

fn decode(index: u64, encoded: &Bytes) -> Result<v1::Entry, StoreError> {
    entry::decode(encoded)
        .map_err(|error| StoreError::Damaged { path: format!("entry {index}"), reason: error.to_string() })
}

/// What a control message states, if an enrolled ledger key signed it.
pub(super) fn stood_for(record: &Record, keys: &[KeyState]) -> Option<ControlKind> {
    let Some(Subject::Control(_)) = Subject::parse(&record.subject) else { return None };
    let signed = v1::SignedControl::decode(record.payload.clone()).ok()?;
    let open = control::open_control(&signed).ok()?;
    let is_enrolled = |key: &KeyState| key.role == KeyRole::Ledger && key.key == open.signer;
    keys.iter().any(is_enrolled).then_some(open.kind)
}

impl Held {
    fn none(seq: u64) -> Self {
        Self { seq, entries: Vec::new(), kinds: Vec::new() }
    }

    /// Subject and payload of the message, if the log holds all of it. Its author's own encoding is not kept: what comes back is the
    /// canonical one, whose signed parts are the same bytes.
    pub(super) fn original(&self) -> Option<(String, Bytes)> {
        let (first, rest) = self.kinds.split_first()?;
        match first {
            Kind::BatchSealed(sealed) if sealed.skipped == 0 => {
                let events = rest.iter().map(event).collect::<Option<_>>()?;
                let (seal, signature) = (sealed.seal.clone(), sealed.signature.clone());
                let batch = v1::SignedBatch { seal, signature, events };
                Some((events_subject(&agent_of(sealed)?), batch.encode_to_vec().into()))
            }
            Kind::BlockSealed(sealed) => {
                let items = rest.iter().map(run).collect::<Option<_>>()?;
                let (place, ..) = seal::read_block_seal(&sealed.seal).ok()?;
                let (seal, signature) = (sealed.seal.clone(), sealed.signature.clone());
                let block = v1::SignedBlock { seal, signature, items };
                Some((budget_subject(&place.partition), block.encode_to_vec().into()))
            }
            Kind::Control(signed) => {
                let kind = control::open_control(signed).ok()?.kind;
                Some((control_subject(control::topic(&kind)), signed.encode_to_vec().into()))
            }
            _ => None,
        }
    }

    /// Whether the record becomes these entries where they were: it is the message, or stands for it. Of a message that became
    /// nothing, only what stands for it is known.
    pub(super) fn is_of(&self, record: &Record, keys: &[KeyState]) -> bool {
        if let Some(ControlKind::StreamRefilled(refilled)) = stood_for(record, keys) {
            return refilled.seq == self.seq && refilled.entries == self.entries;
        }
        self.is_the_message(record).unwrap_or(false)
    }

    /// `None` if it is not even such a message.
    fn is_the_message(&self, record: &Record) -> Option<bool> {
        let (first, rest) = self.kinds.split_first()?;
        let subject = Subject::parse(&record.subject);
        let payload = record.payload.clone();
        Some(match first {
            Kind::BatchSealed(sealed) => {
                let batch = v1::SignedBatch::decode(payload).ok()?;
                let digests: Vec<_> = batch.events.iter().map(|event| seal::event_digest(event)).collect();
                subject == Some(Subject::Events(&agent_of(sealed)?))
                    && (batch.seal, batch.signature) == (sealed.seal.clone(), sealed.signature.clone())
                    && seal::join_digests(&digests) == sealed.event_digests
            }
            Kind::BlockSealed(sealed) => {
                let block = v1::SignedBlock::decode(payload).ok()?;
                let items = rest.iter().map(run).collect::<Option<Vec<_>>>()?;
                let (place, ..) = seal::read_block_seal(&sealed.seal).ok()?;
                subject == Some(Subject::Budget(&place.partition))
                    && (block.seal, block.signature) == (sealed.seal.clone(), sealed.signature.clone())
                    && block.items == items
            }
            Kind::Control(signed) => {
                matches!(subject, Some(Subject::Control(_)))
                    && v1::SignedControl::decode(payload).ok()? == *signed
            }
            Kind::Rejection(rejection) => {
                rejection.subject == clip(&record.subject, MAX_SUBJECT_BYTES)
                    && rejection.payload_size == payload.len() as u64
                    && rejection.payload_digest == digest::Purpose::Message.digest(&payload).0.as_slice()
            }
            Kind::Equivocation(evidence) => {
                let batch = v1::SignedBatch::decode(payload).ok()?;
                let digests: Vec<_> = batch.events.iter().map(|event| seal::event_digest(event)).collect();
                subject == Some(Subject::Events(&evidence.agent_id))
                    && batch.seal == evidence.offered_seal
                    && batch.signature == evidence.offered_signature
                    && seal::join_digests(&digests) == evidence.offered_event_digests
            }
            Kind::Event(_) | Kind::DecisionRun(_) => false,
        })
    }
}

fn agent_of(sealed: &v1::BatchSealed) -> Option<String> {
    v1::BatchSeal::decode(sealed.seal.clone()).ok().map(|seal| seal.agent_id)
}

fn event(kind: &Kind) -> Option<Bytes> {
    match kind {
        Kind::Event(bytes) => Some(bytes.clone()),
        _ => None,
    }
}

fn run(kind: &Kind) -> Option<Bytes> {
    match kind {
        Kind::DecisionRun(bytes) => Some(bytes.clone()),
        _ => None,
    }
}
