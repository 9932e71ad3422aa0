//! An agent's public key as others write it: SubjectPublicKeyInfo (RFC 8410) in PEM, and the key id of DSSE.
//!
//! Left out: private keys. Invariant: an id is the SHA-256 of the key's SubjectPublicKeyInfo in DER, in lower-case hex, so
//! `openssl pkey -pubin -in KEY.pem -outform DER | sha256sum` prints it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::VerifyingKey;
use sha2::{Digest as _, Sha256};

/// SubjectPublicKeyInfo of an Ed25519 key up to the key itself: SEQUENCE { SEQUENCE { 1.3.101.112 }, BIT STRING }.
const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

fn spki(key: &VerifyingKey) -> Vec<u8> {
    [&SPKI_HEAD[..], key.as_bytes()].concat()
}

/// The id under which a signature names its key.
pub fn key_id(key: &VerifyingKey) -> String {
    hex::encode(Sha256::digest(spki(key)))
}

/// The key as PEM.
pub fn public_key_pem(key: &VerifyingKey) -> String {
    format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode(spki(key)))
}

/// An Ed25519 key out of PEM; `None` if it is anything else, a key of small order too.
pub fn public_key_from_pem(text: &str) -> Option<VerifyingKey> {
    let body: String = text.trim().strip_prefix(BEGIN)?.strip_suffix(END)?.split_whitespace().collect();
    let der = STANDARD.decode(body).ok()?;
    let key = der.strip_prefix(&SPKI_HEAD)?.try_into().ok()?;
    VerifyingKey::from_bytes(key).ok().filter(|key| !key.is_weak())
}
