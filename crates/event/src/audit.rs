//! The audit: the fold over log entries that a stranger runs. It trusts nothing but the bytes: every signature is verified with the
//! key that the log had enrolled at that point, every event and decision run has to stand under the seal before it, and every chain
//! has to be unbroken. Whether the entries are the leaves of a signed tree is for `exchequer-tlog`.

use std::collections::VecDeque;

use prost::{Message, bytes::Bytes};

use crate::{
    accept::Acceptor,
    control,
    digest::{Digest, Purpose},
    seal::{self, Refusal, malformed, mismatch},
    v1::{self, KeyRole, RejectionReason, entry::Kind},
};

/// The state of the audit.
#[derive(Clone, Debug, Default)]
pub struct Auditor {
    acceptor: Acceptor,
    /// Digests that the last seal promised and that have not come yet, with the purpose they are hashed for.
    pending: VecDeque<Digest>,
    pending_kind: Option<Purpose>,
    /// Stream sequence of the last entry.
    stream_seq: u64,
    counts: Counts,
}

/// What was audited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Entries of every kind.
    pub entries: u64,
    /// Events.
    pub events: u64,
    /// Decision runs.
    pub decision_runs: u64,
    /// Signatures verified.
    pub signatures: u64,
    /// Rejections found recorded.
    pub rejections: u64,
    /// Equivocations found recorded.
    pub equivocations: u64,
}

impl Auditor {
    /// Before the first entry.
    pub fn new() -> Self {
        Self::default()
    }

    /// The state that the log's entries lead to.
    pub fn acceptor(&self) -> &Acceptor {
        &self.acceptor
    }

    /// What was audited so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The next entry, in log order.
    pub fn check(&mut self, entry: &v1::Entry) -> Result<(), Refusal> {
        let kind = entry.kind.as_ref().ok_or_else(|| malformed("entry.kind is missing"))?;
        if entry.stream_seq < self.stream_seq {
            return Err(mismatch(format!("stream_seq {} after {}", entry.stream_seq, self.stream_seq)));
        }
        let follows = matches!(kind, Kind::Event(_) | Kind::DecisionRun(_));
        if follows && entry.stream_seq != self.stream_seq {
            return Err(mismatch("the record is not of the message of the seal before it"));
        }
        if !follows && !self.pending.is_empty() {
            return Err(mismatch(format!(
                "{} records of the seal before it are missing",
                self.pending.len()
            )));
        }
        match kind {
            Kind::Event(bytes) => {
                self.expect(Purpose::Event, bytes)?;
                seal::decode_event(bytes)?;
                self.counts.events += 1;
            }
            Kind::DecisionRun(bytes) => {
                self.expect(Purpose::DecisionRun, bytes)?;
                seal::decode_run(bytes)?;
                self.counts.decision_runs += 1;
            }
            Kind::BatchSealed(sealed) => self.check_batch(sealed)?,
            Kind::BlockSealed(sealed) => self.check_block(entry.stream_seq, sealed)?,
            Kind::Control(signed) => {
                self.acceptor.check_control(&control::open_control(signed)?)?;
                self.counts.signatures += 1;
            }
            Kind::Rejection(rejection) => {
                if matches!(rejection.reason(), RejectionReason::Unspecified) {
                    return Err(malformed("rejection.reason is missing"));
                }
                self.counts.rejections += 1;
            }
            Kind::Equivocation(equivocation) => self.check_equivocation(equivocation)?,
        }
        self.acceptor.evolve(entry);
        self.stream_seq = entry.stream_seq;
        self.counts.entries += 1;
        Ok(())
    }

    /// After the last entry: nothing that a seal promised may be missing.
    pub fn finish(&self) -> Result<(), Refusal> {
        if self.pending.is_empty() {
            return Ok(());
        }
        Err(mismatch(format!("{} records of the last seal are missing", self.pending.len())))
    }

    fn expect(&mut self, purpose: Purpose, bytes: &Bytes) -> Result<(), Refusal> {
        let promised = if self.pending_kind == Some(purpose) { self.pending.pop_front() } else { None };
        if promised != Some(purpose.digest(bytes)) {
            return Err(mismatch("the record is not the one that the seal before it promises"));
        }
        Ok(())
    }

    fn check_batch(&mut self, sealed: &v1::BatchSealed) -> Result<(), Refusal> {
        let checked = check_sealed_batch(sealed)?;
        if !self.acceptor.may_sign(KeyRole::Agent, &checked.agent_id, &checked.key) {
            return Err(Refusal::new(
                RejectionReason::UnknownKey,
                "the batch's key was not enrolled here, or revoked",
            ));
        }
        let skipped = sealed.skipped as usize;
        let head = self.acceptor.head(&checked.agent_id);
        let follows = match &head {
            Some(head) if head.epoch == checked.epoch => {
                let new_from = checked.first_seq + skipped as u64;
                let link = match skipped {
                    0 => checked.prev_hash,
                    _ => *checked
                        .digests
                        .get(skipped - 1)
                        .ok_or_else(|| malformed("skipped is beyond the batch"))?,
                };
                new_from == head.seq + 1 && head.hash == link.0.as_slice()
            }
            Some(head) if head.epoch > checked.epoch => false,
            _ => {
                checked.first_seq == 1
                    && skipped == 0
                    && checked.prev_hash == Digest::ZERO
                    && sealed.previous_epoch == head
            }
        };
        if !follows || skipped >= checked.digests.len() {
            return Err(Refusal::new(
                RejectionReason::WrongChain,
                "the batch does not continue its agent's chain",
            ));
        }
        self.counts.signatures += 1;
        self.pending_kind = Some(Purpose::Event);
        self.pending = checked.digests.into_iter().skip(skipped).collect();
        Ok(())
    }

    fn check_block(&mut self, stream_seq: u64, sealed: &v1::BlockSealed) -> Result<(), Refusal> {
        let (place, count, root) = seal::read_block_seal(&sealed.seal)?;
        let digests = sealed_digests(&sealed.item_digests, count, root)?;
        let key = sealed_key(&sealed.public_key, Purpose::BlockSeal, &sealed.seal, &sealed.signature)?;
        let enrolled =
            self.acceptor.keys().iter().any(|k| k.role == KeyRole::Metering && !k.revoked && k.key == key);
        if !enrolled {
            return Err(Refusal::new(
                RejectionReason::UnknownKey,
                "the block's key was not enrolled here, or revoked",
            ));
        }
        let head = self.acceptor.partition(&place.partition);
        if place.index != head.index + 1
            || place.prev_hash != head.hash
            || place.epoch < head.epoch
            || place.now_unix_ms < head.now_unix_ms
            || place.usage_cursor < head.usage_cursor
            || place.usage_cursor >= stream_seq
        {
            return Err(Refusal::new(
                RejectionReason::WrongChain,
                "the block does not continue its partition's chain",
            ));
        }
        self.counts.signatures += 1;
        self.pending_kind = Some(Purpose::DecisionRun);
        self.pending = digests.into();
        Ok(())
    }

    fn check_equivocation(&mut self, equivocation: &v1::Equivocation) -> Result<(), Refusal> {
        let seal = v1::BatchSeal::decode(equivocation.offered_seal.clone())
            .map_err(|e| malformed(format!("offered_seal: {e}")))?;
        let keys: Vec<_> = self
            .acceptor
            .keys()
            .iter()
            .filter(|key| key.role == KeyRole::Agent && key.holder == equivocation.agent_id && !key.revoked)
            .map(|key| key.key)
            .collect();
        let digest = Purpose::BatchSeal.digest(&equivocation.offered_seal);
        seal::verifying_key(&keys, digest, &equivocation.offered_signature)?;
        let root = seal::digest_field("offered_seal.root", &seal.root)?;
        let digests = sealed_digests(&equivocation.offered_event_digests, seal.count, root)?;
        let place =
            equivocation.seq.checked_sub(seal.first_seq).and_then(|place| usize::try_from(place).ok());
        let offered = place.and_then(|place| digests.get(place)).copied();
        if offered != Some(seal::event_digest(&equivocation.offered_event))
            || offered.is_none_or(|digest| digest.0 != *equivocation.offered_digest)
            || equivocation.offered_digest == equivocation.recorded_digest
            || seal.agent_id != equivocation.agent_id
            || seal.epoch != equivocation.epoch
        {
            return Err(mismatch("the evidence does not show two events in one place"));
        }
        self.counts.signatures += 1;
        self.counts.equivocations += 1;
        Ok(())
    }
}

/// The fields of a sealed batch whose signature and root hold.
#[derive(Clone, Debug)]
pub struct CheckedBatch {
    /// The agent.
    pub agent_id: String,
    /// Epoch of the events.
    pub epoch: u64,
    /// Seq of the first event.
    pub first_seq: u64,
    /// Digest of the event before the first.
    pub prev_hash: Digest,
    /// Digests of all events.
    pub digests: Vec<Digest>,
    /// The key that signed it.
    pub key: ed25519_dalek::VerifyingKey,
}

/// Checks a batch's entry by itself: the signature is its key's, the digests are those under the signed root. With this, one event
/// can be shown to be signed without its neighbours. Whether the key was enrolled is for the caller.
pub fn check_sealed_batch(sealed: &v1::BatchSealed) -> Result<CheckedBatch, Refusal> {
    let seal = v1::BatchSeal::decode(sealed.seal.clone()).map_err(|e| malformed(format!("seal: {e}")))?;
    let root = seal::digest_field("seal.root", &seal.root)?;
    let digests = sealed_digests(&sealed.event_digests, seal.count, root)?;
    let key = sealed_key(&sealed.public_key, Purpose::BatchSeal, &sealed.seal, &sealed.signature)?;
    if seal.first_seq == 0 || seal.count == 0 {
        return Err(malformed("seal: first_seq and count begin at 1"));
    }
    Ok(CheckedBatch {
        prev_hash: seal::digest_field("seal.prev_hash", &seal.prev_hash)?,
        agent_id: seal.agent_id,
        epoch: seal.epoch,
        first_seq: seal.first_seq,
        digests,
        key,
    })
}

/// Checks a decision block's entry by itself, and returns the digests of its items and the key that signed it.
pub fn check_sealed_block(
    sealed: &v1::BlockSealed,
) -> Result<(Vec<Digest>, ed25519_dalek::VerifyingKey), Refusal> {
    let (_, count, root) = seal::read_block_seal(&sealed.seal)?;
    let digests = sealed_digests(&sealed.item_digests, count, root)?;
    let key = sealed_key(&sealed.public_key, Purpose::BlockSeal, &sealed.seal, &sealed.signature)?;
    Ok((digests, key))
}

fn sealed_digests(bytes: &[u8], count: u32, root: Digest) -> Result<Vec<Digest>, Refusal> {
    let digests = seal::split_digests(bytes).ok_or_else(|| malformed("digests are cut"))?;
    if usize::try_from(count) != Ok(digests.len()) || crate::tree::root(&digests) != root {
        return Err(mismatch("the digests are not those under the sealed root"));
    }
    Ok(digests)
}

fn sealed_key(
    key: &[u8],
    purpose: Purpose,
    seal: &[u8],
    signature: &[u8],
) -> Result<ed25519_dalek::VerifyingKey, Refusal> {
    let key = control::public_key("public_key", key)?;
    seal::verifying_key(&[key], purpose.digest(seal), signature)
}
