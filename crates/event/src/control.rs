//! Control records (what the services state about the log itself) and receipts (what the ledger tells an agent).

use ed25519_dalek::{SigningKey, VerifyingKey};
use prost::{Message, bytes::Bytes};

use crate::{
    digest::Purpose,
    name::{self, MAX_CONTROL_BYTES, MAX_REFILL_BYTES},
    seal::{self, Refusal, check_size, malformed},
    v1::{self, KeyRole, RejectionReason, control_record::Kind},
};

/// Longest origin of a log, bytes.
pub const MAX_ORIGIN_BYTES: usize = 200;
/// Most rotations that a receipt leads across.
pub const MAX_KEY_CHAIN: usize = 16;

/// Signs a control record.
pub fn sign_control(key: &SigningKey, record: &v1::ControlRecord) -> v1::SignedControl {
    let record: Bytes = record.encode_to_vec().into();
    let signature = seal::sign(key, Purpose::Control.digest(&record));
    let public_key = Bytes::copy_from_slice(key.verifying_key().as_bytes());
    v1::SignedControl { record, signature, public_key }
}

/// Topic of the stream subject on which a record of this kind travels.
pub fn topic(kind: &Kind) -> &'static str {
    match kind {
        Kind::Genesis(_) => "genesis",
        Kind::KeyEnrolled(_) | Kind::KeyRevoked(_) => "keys",
        Kind::DurabilityDegraded(_) => "health",
        Kind::StreamRefilled(_) => "refill",
        Kind::StreamLost(_) => "loss",
    }
}

/// A control record whose signature is its named key's. Whether that key may sign is for the acceptor.
#[derive(Clone, Debug)]
pub struct OpenControl {
    /// The record.
    pub record: v1::ControlRecord,
    /// What it states.
    pub kind: Kind,
    /// The key that signed it.
    pub signer: VerifyingKey,
}

/// Decodes a control record, checks its fields and its signature.
pub fn open_control(signed: &v1::SignedControl) -> Result<OpenControl, Refusal> {
    let mut record =
        v1::ControlRecord::decode(signed.record.clone()).map_err(|e| malformed(format!("record: {e}")))?;
    let signer = public_key("public_key", &signed.public_key)?;
    if !seal::verifies(&signer, Purpose::Control.digest(&signed.record), &signed.signature) {
        return Err(Refusal::new(RejectionReason::BadSignature, "signature is not public_key's"));
    }
    let kind = record.kind.take().ok_or_else(|| malformed("record.kind is missing"))?;
    match &kind {
        Kind::Genesis(genesis) => {
            public_key("genesis.ledger_key", &genesis.ledger_key)?;
            let origin = &genesis.origin;
            if origin.is_empty()
                || origin.len() > MAX_ORIGIN_BYTES
                || origin.contains(|c: char| c.is_whitespace() || c == '+')
            {
                return Err(malformed("genesis.origin is not a key name"));
            }
        }
        Kind::KeyEnrolled(key) => check_key(key.role, &key.holder, &key.public_key)?,
        Kind::KeyRevoked(key) => check_key(key.role, &key.holder, &key.public_key)?,
        Kind::StreamLost(lost) if lost.from == 0 || lost.from > lost.to => {
            return Err(malformed("stream_lost: from begins at 1 and is not above to"));
        }
        Kind::DurabilityDegraded(_) | Kind::StreamRefilled(_) | Kind::StreamLost(_) => {}
    }
    record.kind = Some(kind.clone());
    Ok(OpenControl { record, kind, signer })
}

/// Decodes and opens a control message as it came on the stream.
pub(crate) fn open_control_message(payload: &Bytes) -> Result<(v1::SignedControl, OpenControl), Refusal> {
    check_size("control record", payload.len(), MAX_REFILL_BYTES)?;
    let signed =
        v1::SignedControl::decode(payload.clone()).map_err(|e| malformed(format!("control: {e}")))?;
    let open = open_control(&signed)?;
    if !matches!(open.kind, Kind::StreamRefilled(_)) {
        check_size("control record", payload.len(), MAX_CONTROL_BYTES)?;
    }
    Ok((signed, open))
}

fn check_key(role: i32, holder: &str, key: &[u8]) -> Result<(), Refusal> {
    match KeyRole::try_from(role) {
        Ok(KeyRole::Unspecified) | Err(_) => return Err(malformed("key.role is not a role")),
        Ok(_) => {}
    }
    if !name::is_holder(holder) {
        return Err(malformed("key.holder is not a name"));
    }
    public_key("key.public_key", key).map(drop)
}

/// An Ed25519 public key from 32 bytes; small-order points are refused.
pub fn public_key(field: &str, bytes: &[u8]) -> Result<VerifyingKey, Refusal> {
    <&[u8; 32]>::try_from(bytes)
        .ok()
        .and_then(|bytes| VerifyingKey::from_bytes(bytes).ok())
        .filter(|key| !key.is_weak())
        .ok_or_else(|| malformed(format!("{field} is not an Ed25519 public key")))
}

/// Signs a receipt.
pub fn sign_receipt(key: &SigningKey, receipt: &v1::Receipt) -> v1::SignedReceipt {
    let receipt: Bytes = receipt.encode_to_vec().into();
    let signature = seal::sign(key, Purpose::Receipt.digest(&receipt));
    v1::SignedReceipt { receipt, signature }
}

/// The records that lead from the genesis' key to this one, oldest first: each enrols the key that signed the next. The newest
/// [`MAX_KEY_CHAIN`] at most. `enrolments` are the log's, in its order.
pub fn key_chain(enrolments: &[v1::SignedControl], key: &VerifyingKey) -> Vec<v1::SignedControl> {
    let mut wanted = Bytes::copy_from_slice(key.as_bytes());
    let mut chain = Vec::new();
    for signed in enrolments.iter().rev() {
        if chain.len() < MAX_KEY_CHAIN && enrolled_ledger_key(signed).is_some_and(|key| key == wanted) {
            wanted = signed.public_key.clone();
            chain.push(signed.clone());
        }
    }
    chain.reverse();
    chain
}

/// The key that a record enrols for a ledger, if that is what it does. Its signature is not looked at.
fn enrolled_ledger_key(signed: &v1::SignedControl) -> Option<Bytes> {
    match v1::ControlRecord::decode(signed.record.clone()).ok()?.kind? {
        Kind::KeyEnrolled(enrolled) if enrolled.role() == KeyRole::Ledger => Some(enrolled.public_key),
        _ => None,
    }
}

/// The keys that a chain leads to from a trusted one.
pub(crate) fn followed_keys(
    trusted: &VerifyingKey,
    chain: &[v1::SignedControl],
) -> Result<Vec<VerifyingKey>, Refusal> {
    if chain.len() > MAX_KEY_CHAIN {
        return Err(malformed(format!("key_chain has {} records; at most {MAX_KEY_CHAIN}", chain.len())));
    }
    let mut keys = vec![*trusted];
    for signed in chain {
        // A chain may begin before the key that is trusted; what leads to it is of no interest.
        if !keys.iter().any(|key| key.as_bytes().as_slice() == signed.public_key) {
            continue;
        }
        if let Kind::KeyEnrolled(enrolled) = open_control(signed)?.kind
            && enrolled.role() == KeyRole::Ledger
        {
            keys.push(public_key("key_chain", &enrolled.public_key)?);
        }
    }
    Ok(keys)
}

/// A receipt, if the ledger signed it, by the trusted key or by one that its chain leads to from there, and it is about this agent.
/// Whether a key was revoked since does not stand in a receipt.
pub fn open_receipt(payload: &Bytes, ledger: &VerifyingKey, agent_id: &str) -> Result<v1::Receipt, Refusal> {
    let signed =
        v1::SignedReceipt::decode(payload.clone()).map_err(|e| malformed(format!("receipt: {e}")))?;
    let digest = Purpose::Receipt.digest(&signed.receipt);
    let receipt =
        v1::Receipt::decode(signed.receipt.clone()).map_err(|e| malformed(format!("receipt: {e}")))?;
    let is_signed = seal::verifies(ledger, digest, &signed.signature)
        || followed_keys(ledger, &receipt.key_chain)?
            .iter()
            .any(|key| seal::verifies(key, digest, &signed.signature));
    if !is_signed {
        return Err(Refusal::new(RejectionReason::BadSignature, "the receipt is not the ledger's"));
    }
    if receipt.head.as_ref().is_none_or(|head| head.agent_id != agent_id) {
        return Err(malformed("the receipt is about another agent"));
    }
    Ok(receipt)
}
