//! Keys of signed notes (signed-note, "Signatures"; tlog-cosignature): names, key ids, verifier keys, signers.
//!
//! Two kinds are known: Ed25519 over the note (type 01) and timestamped Ed25519 cosignatures (type 04). Making and
//! keeping private keys is left out. Invariant: a key's name can be written into a signature line.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, SignatureError, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};

use crate::note::NoteSignature;

/// The longest name of a key in bytes, which is also what a tlog-cosignature can commit to.
pub(crate) const MAX_KEY_NAME_BYTES: usize = 255;

/// The longest text of a verifier key that is looked at.
const MAX_VKEY_BYTES: usize = MAX_KEY_NAME_BYTES + 64;

/// A cosignature's time is at most this (tlog-cosignature, "Format").
const MAX_TIME: u64 = (1 << 63) - 1;

/// What a key signs, and how. The value is the type byte of signed-note.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum SignatureKind {
    /// Ed25519 over the note's text.
    Ed25519 = 0x01,
    /// Ed25519 over the time and the note's text, as witnesses sign.
    Cosignature = 0x04,
}

/// A public key as verifiers are configured with it. Text form: the vkey `name+hex(id)+base64(type ‖ key)`.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    kind: SignatureKind,
    key: VerifyingKey,
    id: u32,
}

/// A name or text that makes no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The name is empty, longer than 255 bytes, or has a space, plus or control character.
    #[error("a key's name has 1 to 255 bytes and no space, plus or control character")]
    Name,
    /// The text is not the canonical form of a verifier key.
    #[error("not a verifier key (name+id+base64)")]
    Malformed,
    /// The key is of a kind that is not known here.
    #[error("signature type {0:#04x} is not supported")]
    Kind(u8),
    /// The id in the text is not that of the name and key.
    #[error("the key id is not that of the name and key")]
    Id,
    /// The bytes are no public key, or one under which anybody can sign.
    #[error("not a usable Ed25519 public key")]
    PublicKey,
}

impl SignatureKind {
    /// The type byte.
    pub fn byte(self) -> u8 {
        self as u8
    }

    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0x01 => Some(Self::Ed25519),
            0x04 => Some(Self::Cosignature),
            _ => None,
        }
    }
}

pub(crate) fn is_key_name(name: &str) -> bool {
    let bad = |c: char| c.is_whitespace() || c == '+' || c < ' ';
    !name.is_empty() && name.len() <= MAX_KEY_NAME_BYTES && !name.contains(bad)
}

impl VerifierKey {
    /// The key named `name` for signatures of this kind.
    pub fn new(name: impl Into<String>, kind: SignatureKind, key: VerifyingKey) -> Result<Self, KeyError> {
        let name = name.into();
        if !is_key_name(&name) {
            return Err(KeyError::Name);
        }
        if key.is_weak() {
            return Err(KeyError::PublicKey);
        }
        let digest = Sha256::new()
            .chain_update(name.as_bytes())
            .chain_update([b'\n', kind.byte()])
            .chain_update(key.as_bytes())
            .finalize();
        let id = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
        Ok(Self { name, kind, key, id })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kind of its signatures.
    pub fn kind(&self) -> SignatureKind {
        self.kind
    }

    /// The Ed25519 key.
    pub fn public_key(&self) -> &VerifyingKey {
        &self.key
    }

    /// The key id, which picks out the key together with the name. It is no fingerprint: 32 bits are easily found.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Checks that these bytes (as in a signature line, after the key id) sign the text. A cosignature has a time.
    pub(crate) fn verify(&self, text: &str, bytes: &[u8]) -> Result<Option<u64>, SignatureError> {
        match self.kind {
            SignatureKind::Ed25519 => {
                self.key.verify_strict(text.as_bytes(), &Signature::from_slice(bytes)?)?;
                Ok(None)
            }
            SignatureKind::Cosignature => {
                let (time, bytes) = bytes.split_first_chunk::<8>().ok_or_else(SignatureError::new)?;
                let time = u64::from_be_bytes(*time);
                if time > MAX_TIME {
                    return Err(SignatureError::new());
                }
                self.key.verify_strict(cosigned(text, time).as_bytes(), &Signature::from_slice(bytes)?)?;
                Ok(Some(time))
            }
        }
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [self.kind.byte(); 33];
        bytes[1..].copy_from_slice(self.key.as_bytes());
        write!(f, "{}+{:08x}+{}", self.name, self.id, STANDARD.encode(bytes))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifierKey({self})")
    }
}

impl FromStr for VerifierKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        if text.len() > MAX_VKEY_BYTES {
            return Err(KeyError::Malformed);
        }
        // The base64 may contain a plus; the name and the id can't.
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(KeyError::Malformed);
        };
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if id.len() != 8 || !id.bytes().all(is_hex) {
            return Err(KeyError::Malformed);
        }
        let id = u32::from_str_radix(id, 16).map_err(|_| KeyError::Malformed)?;
        let bytes = STANDARD.decode(key).map_err(|_| KeyError::Malformed)?;
        let (kind, key) = bytes.split_first().ok_or(KeyError::Malformed)?;
        let kind = SignatureKind::from_byte(*kind).ok_or(KeyError::Kind(*kind))?;
        let key = VerifyingKey::try_from(key).map_err(|_| KeyError::PublicKey)?;
        let parsed = Self::new(name, kind, key)?;
        if parsed.id == id { Ok(parsed) } else { Err(KeyError::Id) }
    }
}

/// Signs notes with Ed25519 (type 01), as a log signs its checkpoints.
#[derive(Clone)]
pub struct NoteSigner {
    key: SigningKey,
    verifier: VerifierKey,
}

impl NoteSigner {
    /// The signer of this name, for a log its origin.
    pub fn new(name: impl Into<String>, key: SigningKey) -> Result<Self, KeyError> {
        let verifier = VerifierKey::new(name, SignatureKind::Ed25519, key.verifying_key())?;
        Ok(Self { key, verifier })
    }

    /// The public key.
    pub fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }

    /// The signature over a note's text, which includes its last newline.
    pub fn sign(&self, text: &str) -> NoteSignature {
        NoteSignature::of(&self.verifier, self.key.sign(text.as_bytes()).to_vec())
    }
}

impl fmt::Debug for NoteSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NoteSigner({})", self.verifier)
    }
}

/// Signs checkpoints with a time (type 04), as witnesses do. What the signature states about the log is in
/// tlog-cosignature; one key must not be used under two names, because the message does not contain the name.
#[derive(Clone)]
pub struct Cosigner {
    key: SigningKey,
    verifier: VerifierKey,
}

impl Cosigner {
    /// The cosigner of this name.
    pub fn new(name: impl Into<String>, key: SigningKey) -> Result<Self, KeyError> {
        let verifier = VerifierKey::new(name, SignatureKind::Cosignature, key.verifying_key())?;
        Ok(Self { key, verifier })
    }

    /// The public key.
    pub fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }

    /// The cosignature over a checkpoint's text at `time`, in seconds since the Unix epoch.
    pub(crate) fn sign(&self, text: &str, time: u64) -> NoteSignature {
        assert!(time <= MAX_TIME, "a cosignature's time is at most 2^63 - 1");
        let signature = self.key.sign(cosigned(text, time).as_bytes());
        NoteSignature::of(&self.verifier, [&time.to_be_bytes()[..], &signature.to_bytes()].concat())
    }
}

impl fmt::Debug for Cosigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cosigner({})", self.verifier)
    }
}

/// The message of a type-04 cosignature (tlog-cosignature, "Ed25519 signed message").
fn cosigned(text: &str, time: u64) -> String {
    format!("cosignature/v1\ntime {time}\n{text}")
}
