//! What one log entry shows by itself: digests, signatures by the keys it names, fields in their bounds. No entry's examination
//! depends on another's, so they can be made on as many cores as there are.
//!
//! Left out: whether the entry may stand where it stands, which [`Auditor::judge`](super::Auditor::judge) says. Invariant: examining
//! refuses nothing. What does not hold is carried along and comes up in its turn, after what the entries before it decide.

use ed25519_dalek::VerifyingKey;
use prost::{Message, bytes::Bytes};

use crate::{
    control::{self, OpenControl},
    digest::{Digest, Purpose},
    entry, lean,
    name::MAX_ENTRY_BYTES,
    seal::{self, BlockPlace, EventPlace, Refusal, malformed, mismatch},
    v1::{self, RejectionReason, entry::Kind},
};

/// The field of an entry that holds an event.
const EVENT: u32 = 17;

/// An entry that was examined.
#[derive(Clone, Debug)]
pub struct Examined {
    pub(super) stream_seq: u64,
    pub(super) shown: Shown,
}

impl Examined {
    /// Whether records have to follow it.
    pub fn is_seal(&self) -> bool {
        matches!(self.shown, Shown::Batch(_) | Shown::Block(_))
    }

    /// The control record that it is, if its signature is that of the key it names.
    pub fn control(&self) -> Option<&OpenControl> {
        match &self.shown {
            Shown::Control(control) => control.1.as_ref().ok(),
            _ => None,
        }
    }
}

/// What an entry of each kind shows.
#[derive(Clone, Debug)]
pub(super) enum Shown {
    Nothing,
    Event { digest: Digest, place: Result<EventPlace, Refusal> },
    DecisionRun { digest: Digest, sound: Result<(), Refusal> },
    Batch(Box<(v1::BatchSealed, Result<CheckedBatch, Refusal>)>),
    Block(Box<(v1::BlockSealed, Result<CheckedBlock, Refusal>)>),
    Control(Box<(v1::SignedControl, Result<OpenControl, Refusal>)>),
    Rejection(Result<(), Refusal>),
    // It does not name its key, so there is little to say of it without the state.
    Equivocation(Box<v1::Equivocation>),
}

/// Decodes and examines the bytes of an entry.
pub fn examine_bytes(bytes: &Bytes) -> Result<Examined, Refusal> {
    if bytes.len() <= MAX_ENTRY_BYTES
        && let Some((stream_seq, event)) = lean::record(bytes, EVENT)
    {
        return Ok(Examined { stream_seq, shown: examine_event(&bytes.slice_ref(event)) });
    }
    entry::decode(bytes).map(examine)
}

/// Examines an entry.
pub fn examine(entry: v1::Entry) -> Examined {
    let v1::Entry { stream_seq, kind } = entry;
    let shown = match kind {
        None => Shown::Nothing,
        Some(Kind::Event(bytes)) => examine_event(&bytes),
        Some(Kind::DecisionRun(bytes)) => Shown::DecisionRun {
            digest: Purpose::DecisionRun.digest(&bytes),
            sound: if lean::is_run(&bytes) { Ok(()) } else { seal::decode_run(&bytes).map(drop) },
        },
        Some(Kind::BatchSealed(sealed)) => {
            let batch = check_sealed_batch(&sealed);
            Shown::Batch(Box::new((sealed, batch)))
        }
        Some(Kind::BlockSealed(sealed)) => {
            let block = open_sealed_block(&sealed);
            Shown::Block(Box::new((sealed, block)))
        }
        Some(Kind::Control(signed)) => {
            let open = control::open_control(&signed);
            Shown::Control(Box::new((signed, open)))
        }
        Some(Kind::Rejection(rejection)) => Shown::Rejection(match rejection.reason() {
            RejectionReason::Unspecified => Err(malformed("rejection.reason is missing")),
            _ => Ok(()),
        }),
        Some(Kind::Equivocation(equivocation)) => Shown::Equivocation(Box::new(equivocation)),
    };
    Examined { stream_seq, shown }
}

fn examine_event(bytes: &Bytes) -> Shown {
    Shown::Event { digest: seal::event_digest(bytes), place: seal::event_place(bytes) }
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
    pub key: VerifyingKey,
}

/// Checks a batch's entry by itself: the signature is its key's, the digests are those under the signed root. With this, one event
/// can be shown to be signed without its neighbours. Whether the key was enrolled is for the caller.
pub fn check_sealed_batch(sealed: &v1::BatchSealed) -> Result<CheckedBatch, Refusal> {
    let seal = v1::BatchSeal::decode(sealed.seal.clone()).map_err(|e| malformed(format!("seal: {e}")))?;
    let root = seal::digest_field("seal.root", &seal.root)?;
    let digests = sealed_digests(&sealed.event_digests, seal.count, root)?;
    let key = sealed_key(&sealed.public_key, Purpose::BatchSeal, &sealed.seal, &sealed.signature)?;
    let overflows = seal.first_seq.checked_add(u64::from(seal.count)).is_none();
    if seal.first_seq == 0 || seal.count == 0 || overflows {
        return Err(malformed("seal: first_seq and count begin at 1 and do not overflow"));
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

/// The fields of a sealed block whose signature and root hold.
#[derive(Clone, Debug)]
pub(super) struct CheckedBlock {
    pub(super) place: BlockPlace,
    pub(super) digests: Vec<Digest>,
    pub(super) key: VerifyingKey,
}

fn open_sealed_block(sealed: &v1::BlockSealed) -> Result<CheckedBlock, Refusal> {
    let (place, count, root) = seal::read_block_seal(&sealed.seal)?;
    let digests = sealed_digests(&sealed.item_digests, count, root)?;
    let key = sealed_key(&sealed.public_key, Purpose::BlockSeal, &sealed.seal, &sealed.signature)?;
    Ok(CheckedBlock { place, digests, key })
}

/// Checks a decision block's entry by itself, and returns the digests of its items and the key that signed it.
pub fn check_sealed_block(sealed: &v1::BlockSealed) -> Result<(Vec<Digest>, VerifyingKey), Refusal> {
    open_sealed_block(sealed).map(|block| (block.digests, block.key))
}

pub(super) fn sealed_digests(bytes: &[u8], count: u32, root: Digest) -> Result<Vec<Digest>, Refusal> {
    let digests = seal::split_digests(bytes).ok_or_else(|| malformed("digests are cut"))?;
    if usize::try_from(count) != Ok(digests.len()) || crate::tree::root(&digests) != root {
        return Err(mismatch("the digests are not those under the sealed root"));
    }
    Ok(digests)
}

fn sealed_key(key: &[u8], purpose: Purpose, seal: &[u8], signature: &[u8]) -> Result<VerifyingKey, Refusal> {
    let key = control::public_key("public_key", key)?;
    seal::verifying_key(&[key], purpose.digest(seal), signature)
}
