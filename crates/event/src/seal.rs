//! Batches of events and blocks of decisions: one Merkle root and one Ed25519 signature for many records.
//!
//! [`seal_batch`] and [`seal_block`] make them; [`open_batch`] and [`open_block`] take the bytes of somebody else, check every bound
//! before decoding further, and return only what is consistent in itself. Whether it *follows* what was accepted before is for
//! [`accept`](crate::accept). Nothing is re-encoded: the bytes that were sealed are the bytes that come back.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use prost::{Message, bytes::Bytes};

use crate::{
    digest::{DIGEST_LEN, Digest, Purpose},
    lean,
    name::{
        self, MAX_BATCH_BYTES, MAX_BATCH_EVENTS, MAX_BLOCK_BYTES, MAX_BLOCK_ITEMS, MAX_EVENT_BYTES,
        MAX_ITEM_BYTES, MAX_SEAL_BYTES,
    },
    payload, tree,
    v1::{self, RejectionReason},
};

/// Why a message can't be what it says it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason:?}: {detail}")]
pub struct Refusal {
    /// The reason as it is recorded.
    pub reason: RejectionReason,
    /// What exactly was wrong.
    pub detail: String,
}

impl Refusal {
    pub(crate) fn new(reason: RejectionReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

pub(crate) fn malformed(detail: impl Into<String>) -> Refusal {
    Refusal::new(RejectionReason::Malformed, detail)
}

pub(crate) fn mismatch(detail: impl Into<String>) -> Refusal {
    Refusal::new(RejectionReason::SealMismatch, detail)
}

/// Signs a digest.
pub fn sign(key: &SigningKey, digest: Digest) -> Bytes {
    Bytes::copy_from_slice(&key.sign(&digest.0).to_bytes())
}

/// Whether the signature is the key's over the digest. Strict: small-order keys and malleable signatures are refused.
pub fn verifies(key: &VerifyingKey, digest: Digest, signature: &[u8]) -> bool {
    Signature::from_slice(signature).is_ok_and(|signature| key.verify_strict(&digest.0, &signature).is_ok())
}

/// An event's digest: the link of the agent's chain.
pub fn event_digest(event: &[u8]) -> Digest {
    Purpose::Event.digest(event)
}

/// Digests end to end, as a seal's entry holds them.
pub fn join_digests(digests: &[Digest]) -> Bytes {
    digests.iter().flat_map(|digest| digest.0).collect::<Vec<u8>>().into()
}

/// Digests from their concatenation; `None` if it is cut.
pub fn split_digests(bytes: &[u8]) -> Option<Vec<Digest>> {
    bytes.chunks(DIGEST_LEN).map(Digest::from_slice).collect()
}

/// Seals encoded events into a batch. The events have to be contiguous from `first_seq` on and chained to `prev_hash`.
pub fn seal_batch(
    key: &SigningKey,
    agent_id: &str,
    epoch: u64,
    first_seq: u64,
    prev_hash: Digest,
    events: Vec<Bytes>,
) -> v1::SignedBatch {
    let digests: Vec<_> = events.iter().map(|event| event_digest(event)).collect();
    seal_digested(key, agent_id, epoch, first_seq, prev_hash, events, &digests)
}

/// As [`seal_batch`], for an author who has the events' digests from chaining them.
pub fn seal_digested(
    key: &SigningKey,
    agent_id: &str,
    epoch: u64,
    first_seq: u64,
    prev_hash: Digest,
    events: Vec<Bytes>,
    digests: &[Digest],
) -> v1::SignedBatch {
    let seal: Bytes = v1::BatchSeal {
        agent_id: agent_id.to_owned(),
        epoch,
        first_seq,
        count: u32::try_from(events.len()).unwrap_or(u32::MAX),
        prev_hash: prev_hash.into(),
        root: tree::root(digests).into(),
    }
    .encode_to_vec()
    .into();
    let signature = sign(key, Purpose::BatchSeal.digest(&seal));
    v1::SignedBatch { seal, signature, events }
}

/// A batch that is consistent in itself.
#[derive(Clone, Debug)]
pub struct OpenBatch {
    /// The seal's fields.
    pub seal: v1::BatchSeal,
    /// The message: seal, signature and events as they were signed.
    pub signed: v1::SignedBatch,
    /// Digest of each event.
    pub digests: Vec<Digest>,
    /// The seal's `prev_hash`.
    pub prev_hash: Digest,
    /// The key that verified the signature.
    pub key: VerifyingKey,
}

impl OpenBatch {
    /// Seq of the last event.
    pub fn last_seq(&self) -> u64 {
        self.seal.first_seq + u64::from(self.seal.count) - 1
    }
}

/// Opens a batch that came as `events.<agent_id>`: bounds, decoding, identity, signature by one of the keys, root, numbering, chain.
pub fn open_batch(agent_id: &str, payload: &Bytes, keys: &[VerifyingKey]) -> Result<OpenBatch, Refusal> {
    examine_batch(agent_id, payload, keys)?.admit(keys)
}

/// All about a batch that does not depend on what was accepted before it, so that many batches can be examined at the same time.
#[derive(Clone, Debug)]
pub struct ExaminedBatch {
    seal: v1::BatchSeal,
    signed: v1::SignedBatch,
    prev_hash: Digest,
    root: Digest,
    digest: Digest,
    /// The likely key that made the signature.
    signer: Option<VerifyingKey>,
    /// Digests of the events, whose content is examined only if there is one.
    digests: Option<Result<Vec<Digest>, Refusal>>,
}

/// Examines a batch. The keys are those that are likely to be valid for it: what they say is used if they turn out to be.
pub fn examine_batch(
    agent_id: &str,
    payload: &Bytes,
    likely: &[VerifyingKey],
) -> Result<ExaminedBatch, Refusal> {
    check_size("batch", payload.len(), MAX_BATCH_BYTES)?;
    let signed = v1::SignedBatch::decode(payload.clone()).map_err(|e| malformed(format!("batch: {e}")))?;
    check_size("seal", signed.seal.len(), MAX_SEAL_BYTES)?;
    let seal = v1::BatchSeal::decode(signed.seal.clone()).map_err(|e| malformed(format!("seal: {e}")))?;
    if seal.agent_id != agent_id {
        return Err(mismatch(format!("seal.agent_id is not the subject's {agent_id}")));
    }
    let prev_hash = digest_field("seal.prev_hash", &seal.prev_hash)?;
    let root = digest_field("seal.root", &seal.root)?;
    if signed.events.is_empty() || signed.events.len() > MAX_BATCH_EVENTS {
        return Err(malformed(format!("events: {} of 1 to {MAX_BATCH_EVENTS}", signed.events.len())));
    }
    if usize::try_from(seal.count) != Ok(signed.events.len()) {
        return Err(mismatch(format!("seal.count is {}, events are {}", seal.count, signed.events.len())));
    }
    if seal.first_seq == 0 || seal.epoch == 0 || seal.first_seq.checked_add(u64::from(seal.count)).is_none() {
        return Err(malformed("seal.first_seq and seal.epoch begin at 1 and do not overflow"));
    }
    if let Some(place) = signed.events.iter().position(|event| event.len() > MAX_EVENT_BYTES) {
        check_size(&format!("events[{place}]"), signed.events[place].len(), MAX_EVENT_BYTES)?;
    }
    let digest = Purpose::BatchSeal.digest(&signed.seal);
    let mut examined = ExaminedBatch {
        seal,
        prev_hash,
        root,
        digest,
        signer: verifying_key(likely, digest, &signed.signature).ok(),
        signed,
        digests: None,
    };
    // What nobody signed is not worth hashing.
    if examined.signer.is_some() {
        examined.digests = Some(examined.examine_content());
    }
    Ok(examined)
}

impl ExaminedBatch {
    fn examine_content(&self) -> Result<Vec<Digest>, Refusal> {
        let (seal, events) = (&self.seal, &self.signed.events);
        let digests: Vec<_> = events.iter().map(|event| event_digest(event)).collect();
        if tree::root(&digests) != self.root {
            return Err(mismatch("seal.root is not the root over the events"));
        }
        let mut prev = self.prev_hash;
        for (seq, (bytes, digest)) in (seal.first_seq..).zip(events.iter().zip(&digests)) {
            let at =
                |refusal: Refusal| Refusal { detail: format!("event {seq}: {}", refusal.detail), ..refusal };
            let place = event_place(bytes).map_err(at)?;
            if place.agent_id != seal.agent_id || place.epoch != seal.epoch || place.seq != seq {
                return Err(at(mismatch("agent_id, epoch or seq is not the seal's")));
            }
            if place.prev_hash != Some(prev) {
                return Err(at(mismatch("prev_hash is not the digest of the event before")));
            }
            prev = *digest;
        }
        Ok(digests)
    }

    /// The events; none of a batch that will be refused or that no likely key signed.
    pub fn events(&self) -> &[Bytes] {
        if matches!(self.digests, Some(Ok(_))) { &self.signed.events } else { &[] }
    }

    /// The batch, if one of the keys that are valid for it signed it and its content holds.
    pub fn admit(self, valid: &[VerifyingKey]) -> Result<OpenBatch, Refusal> {
        let key = match self.signer.filter(|signer| valid.contains(signer)) {
            Some(signer) => signer,
            None => verifying_key(valid, self.digest, &self.signed.signature)?,
        };
        let digests = match self.digests {
            Some(examined) => examined?,
            None => self.examine_content()?,
        };
        let Self { seal, signed, prev_hash, .. } = self;
        Ok(OpenBatch { seal, signed, digests, prev_hash, key })
    }
}

/// Where an event says that it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EventPlace {
    pub(crate) agent_id: Bytes,
    pub(crate) epoch: u64,
    pub(crate) seq: u64,
    pub(crate) prev_hash: Option<Digest>,
}

/// Reads an event's place off bytes that [`decode_event`] accepts.
pub(crate) fn event_place(bytes: &Bytes) -> Result<EventPlace, Refusal> {
    if let Some(event) = lean::event(bytes) {
        return Ok(EventPlace {
            agent_id: bytes.slice_ref(event.agent_id),
            epoch: event.epoch,
            seq: event.seq,
            prev_hash: Digest::from_slice(event.prev_hash),
        });
    }
    let event = decode_event(bytes)?;
    Ok(EventPlace {
        agent_id: event.agent_id.into(),
        epoch: event.epoch,
        seq: event.seq,
        prev_hash: Digest::from_slice(&event.prev_hash),
    })
}

/// Decodes one event and checks its names.
pub fn decode_event(bytes: &Bytes) -> Result<v1::Event, Refusal> {
    let event = v1::Event::decode(bytes.clone()).map_err(|e| malformed(format!("event: {e}")))?;
    if event.kind.is_none() {
        return Err(malformed("kind is missing"));
    }
    if !event.tenant.is_empty() && !name::is_tenant(&event.tenant) {
        return Err(malformed("tenant is not a tenant name"));
    }
    if !event.execution_id.is_empty() && !name::is_uuid(&event.execution_id) {
        return Err(malformed("execution_id is not a UUID"));
    }
    if !event.skill.is_empty() && !name::is_skill(&event.skill) {
        return Err(malformed("skill is not a skill's name"));
    }
    if let Some(confidential) = &event.confidential {
        let v1::Confidential { key_id, nonce, ciphertext, commitment } = confidential;
        payload::check_lengths(key_id, nonce, ciphertext, commitment).map_err(malformed)?;
    }
    Ok(event)
}

/// What a decision block's seal says beside its items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockPlace {
    /// The partition.
    pub partition: String,
    /// The writer's lease epoch.
    pub epoch: u64,
    /// Position in the chain, from 1.
    pub index: u64,
    /// Digest of the seal before; zero at 1.
    pub prev_hash: Digest,
    /// The writer's clock, milliseconds.
    pub now_unix_ms: u64,
    /// Stream sequence up to which usage has been settled.
    pub usage_cursor: u64,
}

/// A block's place in its chain as the digest that the next block names.
pub fn block_digest(seal: &[u8]) -> Digest {
    Purpose::BlockSeal.digest(seal)
}

/// Seals encoded decision runs into a block.
pub fn seal_block(key: &SigningKey, place: BlockPlace, items: Vec<Bytes>) -> v1::SignedBlock {
    let digests: Vec<_> = items.iter().map(|item| Purpose::DecisionRun.digest(item)).collect();
    let seal: Bytes = v1::BlockSeal {
        partition: place.partition,
        epoch: place.epoch,
        index: place.index,
        prev_hash: place.prev_hash.into(),
        now_unix_ms: place.now_unix_ms,
        usage_cursor: place.usage_cursor,
        count: u32::try_from(items.len()).unwrap_or(u32::MAX),
        root: tree::root(&digests).into(),
    }
    .encode_to_vec()
    .into();
    let signature = sign(key, Purpose::BlockSeal.digest(&seal));
    v1::SignedBlock { seal, signature, items }
}

/// A block that is consistent in itself.
#[derive(Clone, Debug)]
pub struct OpenBlock {
    /// The seal's fields.
    pub place: BlockPlace,
    /// The message: seal, signature and items as they were signed.
    pub signed: v1::SignedBlock,
    /// The items, decoded.
    pub runs: Vec<v1::DecisionRun>,
    /// Digest of each item.
    pub digests: Vec<Digest>,
    /// Digest of the seal: what the next block names.
    pub hash: Digest,
    /// The key that verified the signature.
    pub key: VerifyingKey,
}

/// Opens a block that came as `budget.<partition>`.
pub fn open_block(partition: &str, payload: &Bytes, keys: &[VerifyingKey]) -> Result<OpenBlock, Refusal> {
    check_size("block", payload.len(), MAX_BLOCK_BYTES)?;
    let signed = v1::SignedBlock::decode(payload.clone()).map_err(|e| malformed(format!("block: {e}")))?;
    let (place, count, root) = read_block_seal(&signed.seal)?;
    if place.partition != partition {
        return Err(mismatch(format!("seal.partition is not the subject's {partition}")));
    }
    if signed.items.len() > MAX_BLOCK_ITEMS || usize::try_from(count) != Ok(signed.items.len()) {
        return Err(mismatch(format!("seal.count is {count}, items are {}", signed.items.len())));
    }
    for (place, item) in signed.items.iter().enumerate() {
        check_size(&format!("items[{place}]"), item.len(), MAX_ITEM_BYTES)?;
    }
    let hash = block_digest(&signed.seal);
    let key = verifying_key(keys, hash, &signed.signature)?;
    let digests: Vec<_> = signed.items.iter().map(|item| Purpose::DecisionRun.digest(item)).collect();
    if tree::root(&digests) != root {
        return Err(mismatch("seal.root is not the root over the items"));
    }
    let runs = signed.items.iter().map(decode_run).collect::<Result<_, _>>()?;
    Ok(OpenBlock { place, signed, runs, digests, hash, key })
}

/// Decodes one decision run and checks its tenant.
pub fn decode_run(bytes: &Bytes) -> Result<v1::DecisionRun, Refusal> {
    let run = v1::DecisionRun::decode(bytes.clone()).map_err(|e| malformed(format!("decision run: {e}")))?;
    if !name::is_tenant(&run.tenant) {
        return Err(malformed("decision run: tenant is not a tenant name"));
    }
    Ok(run)
}

/// Reads a block seal: its place, its count of items and its root.
pub fn read_block_seal(seal: &Bytes) -> Result<(BlockPlace, u32, Digest), Refusal> {
    check_size("seal", seal.len(), MAX_SEAL_BYTES)?;
    let seal = v1::BlockSeal::decode(seal.clone()).map_err(|e| malformed(format!("seal: {e}")))?;
    let place = BlockPlace {
        prev_hash: digest_field("seal.prev_hash", &seal.prev_hash)?,
        partition: seal.partition,
        epoch: seal.epoch,
        index: seal.index,
        now_unix_ms: seal.now_unix_ms,
        usage_cursor: seal.usage_cursor,
    };
    Ok((place, seal.count, digest_field("seal.root", &seal.root)?))
}

pub(crate) fn digest_field(field: &str, bytes: &[u8]) -> Result<Digest, Refusal> {
    Digest::from_slice(bytes)
        .ok_or_else(|| malformed(format!("{field}: {} bytes, not {DIGEST_LEN}", bytes.len())))
}

pub(crate) fn check_size(what: &str, size: usize, max: usize) -> Result<(), Refusal> {
    if size > max {
        return Err(Refusal::new(RejectionReason::TooLarge, format!("{what}: {size} bytes, at most {max}")));
    }
    Ok(())
}

/// The first of the keys that made the signature.
pub(crate) fn verifying_key(
    keys: &[VerifyingKey],
    digest: Digest,
    signature: &[u8],
) -> Result<VerifyingKey, Refusal> {
    if keys.is_empty() {
        return Err(Refusal::new(RejectionReason::UnknownKey, "no enrolled, unrevoked key"));
    }
    keys.iter()
        .find(|key| verifies(key, digest, signature))
        .copied()
        .ok_or_else(|| Refusal::new(RejectionReason::BadSignature, "no enrolled key made this signature"))
}
