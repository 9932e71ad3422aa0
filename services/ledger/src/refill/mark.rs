//! The mark of a message that was put back: where the loss began that it was put back after.
//!
//! Anybody who may publish can set a header. So a mark is signed by the ledger's key, for one message at one sequence, and one that no
//! ledger key of this log signed for just that place is none. Invariant: a mark that counts was set by a ledger of this log.

use ed25519_dalek::VerifyingKey;
use exchequer_event::{
    accept::KeyState,
    digest::{Digest, Purpose},
    seal,
    v1::KeyRole,
};
use exchequer_stream::{Message, Record};

use crate::control::ControlWriter;

/// Header of a message that was put back: the first sequence that was lost with it, and the signature.
pub(super) const NAME: &str = "Exchequer-Refill";

/// What is signed.
fn signed(from: u64, seq: u64, subject: &str, payload: &[u8]) -> Digest {
    let (from, seq) = (from.to_be_bytes(), seq.to_be_bytes());
    Purpose::RefillMark.digest_fields([&from[..], &seq, subject.as_bytes(), payload])
}

/// The message with its mark. It is appended at `seq` or not at all.
pub(super) fn set(message: Message, from: u64, seq: u64, control: &ControlWriter) -> Message {
    let digest = signed(from, seq, &message.subject, &message.payload);
    let value = format!("{from} {}", hex::encode(control.sign(digest)));
    message.header(NAME, value).expecting_tip(seq - 1)
}

/// The first sequence that was lost with this message, if a ledger put it back there. A ledger key that was revoked since could sign
/// at its time.
pub(super) fn read(record: &Record, keys: &[KeyState]) -> Option<u64> {
    let (_, value) = record.headers.iter().find(|(name, _)| name == NAME)?;
    let (from, signature) = value.split_once(' ')?;
    let from = from.parse().ok().filter(|from| (1..=record.seq).contains(from))?;
    let signature = hex::decode(signature).ok()?;
    let digest = signed(from, record.seq, &record.subject, &record.payload);
    let is_of = |key: &VerifyingKey| seal::verifies(key, digest, &signature);
    keys.iter().any(|key| key.role == KeyRole::Ledger && is_of(&key.key)).then_some(from)
}
