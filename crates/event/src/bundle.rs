//! Result bundles: what an agent hands out of one execution for others to keep and check (docs/bundle.md).
//!
//! A bundle is a DSSE envelope (v1) around an in-toto Statement (v1) that names what came out (standard output and error, artifacts, the
//! result) by digest, and how: inputs, limits, usage, controls as read back, hold, and both positions in the agent's chain. It is signed
//! with the agent's key. [`sign_bundle`] makes one, [`verify_bundle`] checks one, [`read_unverified`] only reads.
//!
//! Left out: whether the key was the agent's, which the log tells, and whether files have the digests, which who has them tells.
//! Invariant: equal parts under equal keys are equal bytes, and a payload that verifies is byte for byte what this module encodes of it.

mod content;
mod dsse;
mod execution;
mod key;
mod of_records;
mod statement;

#[cfg(test)]
mod tests;

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};

pub use content::{ContentDigests, ContentHasher, input_digest, result_digest};
pub use dsse::{Envelope, PAYLOAD_TYPE, Signature, pae};
pub use execution::{
    Agent, Amount, Control, EgressTarget, Execution, ExecutionResult, File, Hold, Inputs, Limits, Position,
    Profile, Recorded, SIGNED, Stream, UNSIGNED, Usage,
};
pub use key::{key_id, public_key_from_pem, public_key_pem};
pub use of_records::BundleParts;
pub use statement::{
    ARTIFACTS, DigestSet, Hex, PREDICATE_TYPE, RESULT, STATEMENT_TYPE, STDERR, STDOUT, Statement, Subject,
};

/// Largest bundle, bytes. Both events together are at most 64 KiB; this leaves room for hex, escapes and base64.
pub const MAX_BUNDLE_BYTES: usize = 1 << 20;
/// Most signatures of an envelope.
pub const MAX_SIGNATURES: usize = 8;

/// Why a bundle is not believed, or can't be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// It is larger than a bundle can be.
    #[error("it has {0} bytes, the most is {MAX_BUNDLE_BYTES}")]
    TooLarge(usize),
    /// It is no DSSE envelope.
    #[error("it is no DSSE envelope: {0}")]
    Envelope(String),
    /// The envelope says that something else is in it.
    #[error("the payload's type is {0:?}, expected {PAYLOAD_TYPE:?}")]
    PayloadType(String),
    /// Nobody signed it.
    #[error("unsigned")]
    Unsigned,
    /// Somebody signed it, and not with this key.
    #[error("it is signed with key {found}, not with {expected}")]
    OtherKey {
        /// Id of the key that was to have signed.
        expected: String,
        /// Id of the key that its first signature names.
        found: String,
    },
    /// The signature that names the key is not the key's over this payload.
    #[error("the signature does not verify: payload or signature was changed")]
    BadSignature,
    /// The payload is no Statement about an execution.
    #[error("the payload is no Statement about an execution: {0}")]
    Statement(String),
    /// The payload says the same as another encoding, which is the one that is signed.
    #[error("the payload is not in its canonical encoding")]
    NotCanonical,
    /// The Statement contradicts itself or its signature.
    #[error("the Statement contradicts itself: {0}")]
    Inconsistent(&'static str),
    /// A record that a bundle is to be made of has a field that can't be.
    #[error("{0} is malformed")]
    Parts(&'static str),
}

/// A signed bundle.
pub fn sign_bundle(parts: &BundleParts<'_>, key: &SigningKey) -> Result<Vec<u8>, BundleError> {
    let statement = Statement::of(Execution::of(parts, &key.verifying_key(), SIGNED)?, parts)?;
    let payload = statement.encode();
    let signature = key.sign(&pae(PAYLOAD_TYPE, &payload));
    let signature = Signature { key_id: key_id(&key.verifying_key()), sig: signature.to_bytes().to_vec() };
    encode(payload, vec![signature])
}

/// A bundle of an agent whose key is not at hand: it says so, and [`verify_bundle`] refuses it.
pub fn unsigned_bundle(parts: &BundleParts<'_>, public_key: &VerifyingKey) -> Result<Vec<u8>, BundleError> {
    let statement = Statement::of(Execution::of(parts, public_key, UNSIGNED)?, parts)?;
    encode(statement.encode(), Vec::new())
}

fn encode(payload: Vec<u8>, signatures: Vec<Signature>) -> Result<Vec<u8>, BundleError> {
    let envelope = Envelope { payload_type: PAYLOAD_TYPE.to_owned(), payload, signatures };
    let bytes = envelope.encode();
    if bytes.len() > MAX_BUNDLE_BYTES {
        return Err(BundleError::TooLarge(bytes.len()));
    }
    Ok(bytes)
}

/// What a bundle says, if this key signed it. Signatures of others beside the key's are passed over.
pub fn verify_bundle(bytes: &[u8], key: &VerifyingKey) -> Result<Statement, BundleError> {
    let envelope = open(bytes)?;
    if envelope.signatures.is_empty() {
        return Err(BundleError::Unsigned);
    }
    let expected = key_id(key);
    // A signature may leave out the id, which is only a hint.
    let by_key = |signature: &&Signature| signature.key_id == expected || signature.key_id.is_empty();
    let mut candidates = envelope.signatures.iter().filter(by_key).peekable();
    if candidates.peek().is_none() {
        return Err(BundleError::OtherKey { expected, found: envelope.signatures[0].key_id.clone() });
    }
    let message = pae(&envelope.payload_type, &envelope.payload);
    let verifies = |signature: &Signature| {
        ed25519_dalek::Signature::from_slice(&signature.sig)
            .is_ok_and(|signature| key.verify_strict(&message, &signature).is_ok())
    };
    if !candidates.any(verifies) {
        return Err(BundleError::BadSignature);
    }
    let statement = Statement::decode(&envelope.payload)?;
    if statement.predicate.agent.public_key.0 != *key.as_bytes() {
        return Err(BundleError::Inconsistent("agent.public_key is not the key that signed"));
    }
    if statement.predicate.signing_status != SIGNED {
        return Err(BundleError::Inconsistent("signing_status is `unsigned` under a signature"));
    }
    Ok(statement)
}

/// What a bundle says, and its envelope; nobody's word for it has been checked.
pub fn read_unverified(bytes: &[u8]) -> Result<(Statement, Envelope), BundleError> {
    let envelope = open(bytes)?;
    Ok((Statement::decode(&envelope.payload)?, envelope))
}

fn open(bytes: &[u8]) -> Result<Envelope, BundleError> {
    if bytes.len() > MAX_BUNDLE_BYTES {
        return Err(BundleError::TooLarge(bytes.len()));
    }
    let envelope = Envelope::decode(bytes)?;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(BundleError::PayloadType(envelope.payload_type));
    }
    Ok(envelope)
}
