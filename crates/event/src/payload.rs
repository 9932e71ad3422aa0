//! Confidential payloads: what of an event only the holders of its tenant's payload key can read.
//!
//! [`PayloadKey::conceal`] moves the payload fields of an event into a ciphertext beside a commitment; [`PayloadKey::open`] brings them back, and
//! [`reveal`] checks a payload that somebody shows against the commitment, without a key. Acceptance, audit and proofs are over the
//! event's bytes, ciphertext included, so they hold whether or not the key still exists.
//!
//! Left out: key files and randomness. Invariant: an opened event differs from the recorded one in payload fields only, which are empty
//! there. A payload can't stand for a public field, and belongs to one place of one agent's chain.

use std::fmt;

use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305,
    aead::{Aead as _, Payload},
};
use prost::{Message, bytes::Bytes};

use crate::{
    digest::{DIGEST_LEN, Digest, Purpose},
    name::MAX_EVENT_BYTES,
    v1::{self, event::Kind},
};

/// Length of a payload key, bytes.
pub const KEY_LEN: usize = 32;
/// Length of a key's id, bytes.
pub const KEY_ID_LEN: usize = 16;
/// Length of a nonce, bytes.
pub const NONCE_LEN: usize = 24;
/// Length of the salt that a plaintext begins with, bytes.
pub const SALT_LEN: usize = 32;
const TAG_LEN: usize = 16;
/// Plaintexts are filled up to a multiple of this, so that a ciphertext's length says little of what is in it.
const PAD_LEN: usize = 256;
/// By how much an event can grow when its payload is concealed, bytes: salt and padding, tag, nonce, id, commitment, and their framing.
pub const MAX_OVERHEAD: usize = SALT_LEN + PAD_LEN + TAG_LEN + NONCE_LEN + KEY_ID_LEN + DIGEST_LEN + 32;
/// Ends the fields; zeros follow.
const END: u8 = 0x80;

/// A payload key's public id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; KEY_ID_LEN]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A tenant's payload key.
#[derive(Clone)]
pub struct PayloadKey {
    id: KeyId,
    // Wipes itself when it is dropped.
    cipher: XChaCha20Poly1305,
}

impl fmt::Debug for PayloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PayloadKey({})", self.id)
    }
}

/// What makes one concealment unlike any other: random, used once.
#[derive(Clone, Copy)]
pub struct Once {
    /// Nonce of the cipher.
    pub nonce: [u8; NONCE_LEN],
    /// Keeps the commitment from being guessed.
    pub salt: [u8; SALT_LEN],
}

/// An event whose payload has been opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Opened {
    /// The event with its payload fields, and still with its ciphertext.
    pub event: v1::Event,
    /// What the commitment is over: shown with the recorded event, it lets anybody [`reveal`] the payload.
    pub plaintext: Bytes,
}

/// Why a payload can't be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Nothing is concealed.
    #[error("the event has no confidential payload")]
    Absent,
    /// It is under another key.
    #[error("the payload is under key {0}")]
    OtherKey(KeyId),
    /// It was changed, or made for another event.
    #[error("the payload can't be decrypted: it was changed, or belongs to another event")]
    Undecryptable,
    /// It is not what the event commits to.
    #[error("the payload is not what the event commits to")]
    Commitment,
    /// It is no payload of this event.
    #[error("the payload is malformed: {0}")]
    Malformed(&'static str),
}

/// Whether the fields of a [`v1::Confidential`] have the lengths that they have to have; the field that has not.
pub(crate) fn check_lengths(
    key_id: &[u8],
    nonce: &[u8],
    ciphertext: &[u8],
    commitment: &[u8],
) -> Result<(), &'static str> {
    if key_id.len() != KEY_ID_LEN {
        return Err("confidential.key_id is not 16 bytes");
    }
    if nonce.len() != NONCE_LEN {
        return Err("confidential.nonce is not 24 bytes");
    }
    if !(SALT_LEN + TAG_LEN..=MAX_EVENT_BYTES).contains(&ciphertext.len()) {
        return Err("confidential.ciphertext is shorter than salt and tag, or longer than an event");
    }
    if commitment.len() != DIGEST_LEN {
        return Err("confidential.commitment is not 32 bytes");
    }
    Ok(())
}

/// The id of the key that an event's payload is under, if it has one.
pub fn key_id(event: &v1::Event) -> Option<KeyId> {
    event.confidential.as_ref().and_then(|confidential| confidential.key_id[..].try_into().ok()).map(KeyId)
}

impl PayloadKey {
    /// The key of these secret bytes.
    pub fn new(secret: &[u8; KEY_LEN]) -> Self {
        let mut id = [0; KEY_ID_LEN];
        id.copy_from_slice(&Purpose::PayloadKey.digest(secret).0[..KEY_ID_LEN]);
        Self { id: KeyId(id), cipher: XChaCha20Poly1305::new(&(*secret).into()) }
    }

    /// Its public id.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Moves the payload fields of a whole event, its place and names included, into a ciphertext. An event without any stays as it is.
    pub fn conceal(&self, mut event: v1::Event, once: &Once) -> v1::Event {
        let Some(kind) = event.kind.as_mut().and_then(take_payload) else { return event };
        let mut plaintext = once.salt.to_vec();
        plaintext.extend(v1::Event { kind: Some(kind), ..v1::Event::default() }.encode_to_vec());
        plaintext.push(END);
        plaintext.resize(plaintext.len().next_multiple_of(PAD_LEN), 0);
        let aad = place(&event).0;
        let sealed = self.cipher.encrypt(&once.nonce.into(), Payload { msg: &plaintext, aad: &aad });
        event.confidential = Some(v1::Confidential {
            key_id: Bytes::copy_from_slice(&self.id.0),
            nonce: Bytes::copy_from_slice(&once.nonce),
            ciphertext: sealed.expect("a payload is far shorter than what the cipher takes").into(),
            commitment: Purpose::PayloadCommitment.digest(&plaintext).into(),
        });
        event
    }

    /// Decrypts a recorded event's payload and checks it against the commitment.
    pub fn open(&self, event: &v1::Event) -> Result<Opened, OpenError> {
        let confidential = event.confidential.as_ref().ok_or(OpenError::Absent)?;
        let v1::Confidential { key_id: id, nonce, ciphertext, commitment } = confidential;
        check_lengths(id, nonce, ciphertext, commitment).map_err(OpenError::Malformed)?;
        if let Some(id) = key_id(event).filter(|id| *id != self.id) {
            return Err(OpenError::OtherKey(id));
        }
        let nonce: [u8; NONCE_LEN] = nonce[..].try_into().map_err(|_| OpenError::Undecryptable)?;
        let aad = place(event).0;
        let plaintext = self.cipher.decrypt(&nonce.into(), Payload { msg: ciphertext, aad: &aad });
        let plaintext = Bytes::from(plaintext.map_err(|_| OpenError::Undecryptable)?);
        Ok(Opened { event: reveal(event, &plaintext)?, plaintext })
    }
}

/// Checks a plaintext that somebody shows against the commitment in a recorded event; the event with its payload fields.
pub fn reveal(event: &v1::Event, plaintext: &[u8]) -> Result<v1::Event, OpenError> {
    let confidential = event.confidential.as_ref().ok_or(OpenError::Absent)?;
    if Purpose::PayloadCommitment.digest(plaintext).0 != *confidential.commitment {
        return Err(OpenError::Commitment);
    }
    // The agent committed to it; whether it is what an agent may keep back is another question.
    let padded = plaintext.get(SALT_LEN..).ok_or(OpenError::Malformed("it is shorter than its salt"))?;
    let end = padded.iter().rposition(|byte| *byte != 0).filter(|end| padded[*end] == END);
    let fields = &padded[..end.ok_or(OpenError::Malformed("its end is not marked"))?];
    let payload = v1::Event::decode(fields).map_err(|_| OpenError::Malformed("it is no event"))?;
    let mut opened = event.clone();
    opened.merge(fields).map_err(|_| OpenError::Malformed("it is no event"))?;
    let mut public = opened.clone();
    let taken = public.kind.as_mut().and_then(take_payload);
    if public != *event || payload != (v1::Event { kind: taken, ..v1::Event::default() }) {
        return Err(OpenError::Malformed(
            "it holds more than payload fields, or the event holds some in clear",
        ));
    }
    Ok(opened)
}

/// Takes the payload fields out; `None` for kinds that have none. docs/protocol.md lists these fields.
fn take_payload(kind: &mut Kind) -> Option<Kind> {
    use std::mem::take;
    Some(match kind {
        Kind::ExecutionAdmitted(admitted) => Kind::ExecutionAdmitted(v1::ExecutionAdmitted {
            caller: take(&mut admitted.caller),
            program: take(&mut admitted.program),
            arguments_redacted: take(&mut admitted.arguments_redacted),
            input_digest: take(&mut admitted.input_digest),
            inputs: take(&mut admitted.inputs),
            ..v1::ExecutionAdmitted::default()
        }),
        Kind::ExecutionDenied(denied) => Kind::ExecutionDenied(v1::ExecutionDenied {
            caller: take(&mut denied.caller),
            reason: take(&mut denied.reason),
            program: take(&mut denied.program),
            ..v1::ExecutionDenied::default()
        }),
        // Digests of outputs and of the result could be guessed from short ones, so they are payload, too.
        Kind::ExecutionFinished(finished) => Kind::ExecutionFinished(v1::ExecutionFinished {
            stdout: take(&mut finished.stdout),
            stderr: take(&mut finished.stderr),
            result_digest: take(&mut finished.result_digest),
            detail: take(&mut finished.detail),
            artifacts: take(&mut finished.artifacts),
            egress: take(&mut finished.egress),
            ..v1::ExecutionFinished::default()
        }),
        Kind::AgentStarted(_) | Kind::AgentStopped(_) | Kind::ControlDegraded(_) => return None,
    })
}

/// What the ciphertext is bound to: which event of whose chain it is.
fn place(event: &v1::Event) -> Digest {
    let (epoch, seq) = (event.epoch.to_be_bytes(), event.seq.to_be_bytes());
    Purpose::PayloadPlace.digest_fields([
        event.agent_id.as_bytes(),
        &epoch,
        &seq,
        event.tenant.as_bytes(),
        event.execution_id.as_bytes(),
    ])
}

#[cfg(test)]
mod tests;
