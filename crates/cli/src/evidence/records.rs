//! What the entries of a whole log say: the auditor's fold, and the name of the place where it breaks.
//!
//! Left out: whether the entries are the leaves of the signed tree. Invariant: after the first record that does not hold nothing more
//! is audited, for each record is judged by those before it, and one fault would be reported many times.

use exchequer_event::{
    audit::{Auditor, Counts, Examined, examine_bytes},
    entry::{self, Facets},
    seal::Refusal,
    v1::{self, EntryKind, entry::Kind},
};
use prost::{Message as _, bytes::Bytes};

use super::{
    keys::LedgerKeys,
    report::{Fault, FaultKind},
};

/// The audit of a log's records.
#[derive(Default)]
pub(super) struct Records {
    auditor: Auditor,
    keys: LedgerKeys,
    seal: Option<Box<Seal>>,
    stopped: bool,
}

/// An entry, examined by itself.
pub(super) struct Said {
    examined: Result<Examined, Refusal>,
    /// Boxed, since few entries have one.
    seal: Option<Box<Seal>>,
}

impl Said {
    /// Reads the entry at this index.
    pub(super) fn read(index: u64, bytes: &Bytes) -> Self {
        let examined = examine_bytes(bytes);
        let is_seal = examined.as_ref().is_ok_and(Examined::is_seal);
        let decoded = is_seal.then(|| entry::decode(bytes).ok()).flatten();
        Self { examined, seal: decoded.and_then(|entry| Seal::read(index, &entry)).map(Box::new) }
    }
}

/// What the last seal says of the entries that follow it.
struct Seal {
    index: u64,
    /// Entries that follow.
    count: u64,
    kind: SealKind,
}

enum SealKind {
    Batch { agent_id: String, epoch: u64, first_seq: u64 },
    Block { partition: String, block: u64 },
}

impl Records {
    /// Goes on where an audit held.
    pub(super) fn resume(auditor: Auditor, keys: LedgerKeys) -> Self {
        Self { auditor, keys, ..Self::default() }
    }

    /// The next entry of the log, which was read as this.
    pub(super) fn take(&mut self, index: u64, bytes: &Bytes, said: Said) -> Option<Fault> {
        if self.stopped {
            return None;
        }
        let control = said.examined.as_ref().ok().and_then(Examined::control).cloned();
        match said.examined.and_then(|examined| self.auditor.judge(examined)) {
            Ok(()) => {
                if let Some(open) = control {
                    self.keys.take(index, &open);
                }
                self.seal = said.seal.or(self.seal.take());
                None
            }
            Err(refusal) => {
                self.stopped = true;
                let fault = Fault::new(FaultKind::Record, refusal.to_string());
                Some(fault.at(index, self.describe(index, Some(bytes))))
            }
        }
    }

    /// After the last entry.
    pub(super) fn finish(&self) -> Option<Fault> {
        if self.stopped {
            return None;
        }
        let refusal = self.auditor.finish().err()?;
        let fault = Fault::new(FaultKind::Record, refusal.to_string());
        Some(match &self.seal {
            Some(seal) => fault.at(seal.index, self.describe(seal.index, None)),
            None => fault,
        })
    }

    /// Entries from here on can't be audited.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    /// Whether a record did not hold or could not be had.
    pub(super) fn stopped(&self) -> bool {
        self.stopped
    }

    pub(super) fn counts(&self) -> Counts {
        self.auditor.counts()
    }

    /// The ledger's keys as far as the records were audited.
    pub(super) fn keys(&self) -> &LedgerKeys {
        &self.keys
    }

    /// The audit's state and the ledger's keys.
    pub(super) fn into_state(self) -> (Auditor, LedgerKeys) {
        (self.auditor, self.keys)
    }

    /// What stands at an index: by the seal before it where there is one, else by the bytes as they are.
    pub(super) fn describe(&self, index: u64, bytes: Option<&Bytes>) -> String {
        if let Some(seal) = &self.seal {
            if index == seal.index {
                return seal.kind.describe();
            }
            let place = index.saturating_sub(seal.index);
            if place <= seal.count && place > 0 {
                return match &seal.kind {
                    SealKind::Batch { agent_id, epoch, first_seq } => {
                        format!("event {} of agent {agent_id}, epoch {epoch}", first_seq + place - 1)
                    }
                    SealKind::Block { partition, block } => {
                        format!("decision run {place} of block {block} of partition {partition}")
                    }
                };
            }
        }
        match bytes.map(entry::decode) {
            Some(Ok(entry)) => describe(&entry),
            Some(Err(_)) => "can't be decoded".into(),
            None => String::new(),
        }
    }
}

impl Seal {
    fn read(index: u64, entry: &v1::Entry) -> Option<Self> {
        match entry.kind.as_ref()? {
            Kind::BatchSealed(sealed) => {
                let seal = v1::BatchSeal::decode(sealed.seal.clone()).ok()?;
                let skipped = u64::from(sealed.skipped);
                Some(Self {
                    index,
                    count: u64::from(seal.count).saturating_sub(skipped),
                    kind: SealKind::Batch {
                        agent_id: seal.agent_id,
                        epoch: seal.epoch,
                        first_seq: seal.first_seq + skipped,
                    },
                })
            }
            Kind::BlockSealed(sealed) => {
                let seal = v1::BlockSeal::decode(sealed.seal.clone()).ok()?;
                let kind = SealKind::Block { partition: seal.partition, block: seal.index };
                Some(Self { index, count: u64::from(seal.count), kind })
            }
            _ => None,
        }
    }
}

impl SealKind {
    fn describe(&self) -> String {
        match self {
            Self::Batch { agent_id, epoch, first_seq } => {
                format!("seal of the batch of agent {agent_id}, epoch {epoch}, from event {first_seq}")
            }
            Self::Block { partition, block } => format!("seal of block {block} of partition {partition}"),
        }
    }
}

/// What an entry is, in words.
pub(super) fn describe(entry: &v1::Entry) -> String {
    let Facets { kind, tenant, agent_id, agent_seq, .. } = entry::facets(entry);
    match (&entry.kind, kind) {
        (_, EntryKind::Event) => format!("event {agent_seq} of agent {agent_id}"),
        (_, EntryKind::DecisionRun) => format!("decision run of tenant {tenant}"),
        (_, EntryKind::Control) => "control record".into(),
        (Some(Kind::Rejection(rejection)), _) => format!("rejection on {:?}", rejection.subject),
        (_, EntryKind::Equivocation) => format!("equivocation of agent {agent_id}"),
        _ => Seal::read(0, entry).map_or_else(|| "unknown".into(), |seal| seal.kind.describe()),
    }
}
