//! A JWKS document (RFC 7517) as the set of keys that may verify tokens.
//!
//! Left out: where the document comes from ([`crate::source`]), certificates, symmetric keys.
//! Invariant: a key verifies one algorithm, derived from its own type and never from a token's header.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, VerifyingKey};
use jsonwebtoken::DecodingKey;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Largest JWKS document that is parsed, in bytes.
pub const MAX_JWKS_BYTES: usize = 256 * 1024;
/// Most keys in a JWKS document, usable or not.
pub const MAX_JWKS_KEYS: usize = 64;
/// Longest key id, in bytes, in a document and in a token.
pub(crate) const MAX_KID_BYTES: usize = 128;
/// Smaller RSA moduli are too weak, larger ones a way to burn the verifier's time.
const RSA_MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=512;
const MAX_RSA_EXPONENT_BYTES: usize = 4;

/// The algorithms that a token may be signed with (RFC 7518, RFC 8037). There is no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// Ed25519.
    EdDsa,
    /// ECDSA over P-256 with SHA-256.
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
}

impl Algorithm {
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::EdDsa, Self::Es256, Self::Rs256].into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// The name in a token's `alg` header.
    pub fn name(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a JWKS document was refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    /// The file could not be read.
    #[error("cannot read {path}: {reason}")]
    Read {
        /// The file's path.
        path: String,
        /// The operating system's reason.
        reason: String,
    },
    /// The document is larger than [`MAX_JWKS_BYTES`].
    #[error("the JWKS is larger than {MAX_JWKS_BYTES} bytes")]
    TooLarge,
    /// The document is not a JWK set.
    #[error("the JWKS is malformed: {0}")]
    Malformed(String),
    /// The document holds more than [`MAX_JWKS_KEYS`] keys.
    #[error("the JWKS holds {0} keys, more than {MAX_JWKS_KEYS}")]
    TooMany(usize),
    /// A usable key without a key id: no token could name it.
    #[error("key {0} of the JWKS has no `kid`, or an overlong one")]
    NoKid(usize),
    /// Two usable keys share a key id: which one verifies would be chance.
    #[error("the JWKS names `{0}` twice")]
    DuplicateKid(String),
    /// A private key stands in a document that is public by nature.
    #[error("key `{0}` of the JWKS is a private key: treat it as lost")]
    PrivateKey(String),
    /// A key contradicts itself or is not a key of its type.
    #[error("key `{kid}` of the JWKS is unusable: {reason}")]
    BadKey {
        /// The key's id.
        kid: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Nothing in the document can verify a token.
    #[error("the JWKS holds no usable key (EdDSA, ES256 or RS256, for signatures)")]
    Empty,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    d: Option<IgnoredAny>,
}

#[derive(Debug)]
enum Material {
    Ed25519(VerifyingKey),
    Other(jsonwebtoken::Algorithm, DecodingKey),
}

/// One verification key.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) algorithm: Algorithm,
    material: Material,
}

impl Key {
    /// Whether `signature` (base64url) is this key's over `message`.
    pub(crate) fn verifies(&self, message: &[u8], signature: &str) -> bool {
        let Ok(bytes) = URL_SAFE_NO_PAD.decode(signature) else {
            return false;
        };
        match &self.material {
            Material::Ed25519(key) => Signature::from_slice(&bytes)
                .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok()),
            Material::Other(algorithm, key) => {
                jsonwebtoken::crypto::verify(signature, message, key, *algorithm).unwrap_or(false)
            }
        }
    }
}

/// The usable keys of a document, by key id.
#[derive(Debug)]
pub(crate) struct KeySet(BTreeMap<String, Key>);

impl KeySet {
    pub(crate) fn get(&self, kid: &str) -> Option<&Key> {
        self.0.get(kid)
    }

    /// Parses a document. Keys for other purposes or of other types are skipped, as RFC 7517 §5 asks; a key that
    /// is meant for us and wrong refuses the whole document.
    pub(crate) fn parse(document: &[u8]) -> Result<Self, JwksError> {
        if document.len() > MAX_JWKS_BYTES {
            return Err(JwksError::TooLarge);
        }
        let document: Document =
            serde_json::from_slice(document).map_err(|error| JwksError::Malformed(error.to_string()))?;
        if document.keys.len() > MAX_JWKS_KEYS {
            return Err(JwksError::TooMany(document.keys.len()));
        }
        let mut keys = BTreeMap::new();
        for (index, jwk) in document.keys.iter().enumerate() {
            if jwk.d.is_some() {
                return Err(JwksError::PrivateKey(jwk.kid.clone().unwrap_or_default()));
            }
            let Some(algorithm) = jwk.purpose()? else {
                continue;
            };
            let kid = jwk.kid.as_ref().filter(|kid| !kid.is_empty() && kid.len() <= MAX_KID_BYTES);
            let kid = kid.ok_or(JwksError::NoKid(index))?;
            let material =
                jwk.material(algorithm).map_err(|reason| JwksError::BadKey { kid: kid.clone(), reason })?;
            if keys.insert(kid.clone(), Key { algorithm, material }).is_some() {
                return Err(JwksError::DuplicateKid(kid.clone()));
            }
        }
        if keys.is_empty() { Err(JwksError::Empty) } else { Ok(Self(keys)) }
    }
}

impl Jwk {
    /// The algorithm that this key verifies for us; `None` if it is not for us.
    fn purpose(&self) -> Result<Option<Algorithm>, JwksError> {
        let signs = self.usage.as_deref().is_none_or(|usage| usage == "sig")
            && self.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        let algorithm = match (self.kty.as_str(), self.crv.as_deref()) {
            ("OKP", Some("Ed25519")) => Algorithm::EdDsa,
            ("EC", Some("P-256")) => Algorithm::Es256,
            ("RSA", _) => Algorithm::Rs256,
            _ => return Ok(None),
        };
        if !signs {
            return Ok(None);
        }
        match self.alg.as_deref() {
            None => Ok(Some(algorithm)),
            Some(name) if name == algorithm.name() => Ok(Some(algorithm)),
            // Of our algorithms, but not this key's: a contradiction. Of others (PS256): simply not for us.
            Some(name) if Algorithm::from_name(name).is_some() => Err(JwksError::BadKey {
                kid: self.kid.clone().unwrap_or_default(),
                reason: "`alg` does not fit the key's type",
            }),
            Some(_) => Ok(None),
        }
    }

    fn material(&self, algorithm: Algorithm) -> Result<Material, &'static str> {
        match algorithm {
            Algorithm::EdDsa => {
                let bytes =
                    <[u8; 32]>::try_from(field(self.x.as_deref())?).map_err(|_| "`x` is not 32 bytes")?;
                let key = VerifyingKey::from_bytes(&bytes).map_err(|_| "`x` is not a point of the curve")?;
                if key.is_weak() { Err("`x` is a point of small order") } else { Ok(Material::Ed25519(key)) }
            }
            Algorithm::Es256 => {
                let (x, y) = (field(self.x.as_deref())?, field(self.y.as_deref())?);
                if x.len() != 32 || y.len() != 32 {
                    return Err("`x` or `y` is not 32 bytes");
                }
                let point: Vec<u8> = [&[4], x.as_slice(), y.as_slice()].concat();
                let key = DecodingKey::from_ec_der(&point);
                // An invalid point only shows when a verifier is built, so build one now.
                jsonwebtoken::crypto::verify("", b"", &key, jsonwebtoken::Algorithm::ES256)
                    .map_err(|_| "`x`, `y` is not a point of the curve")?;
                Ok(Material::Other(jsonwebtoken::Algorithm::ES256, key))
            }
            Algorithm::Rs256 => {
                let (n, e) = (field(self.n.as_deref())?, field(self.e.as_deref())?);
                if !RSA_MODULUS_BYTES.contains(&n.len()) || n[0] == 0 {
                    return Err("`n` is not between 2048 and 4096 bits");
                }
                let is_odd = e.last().is_some_and(|byte| byte % 2 == 1);
                if e.len() > MAX_RSA_EXPONENT_BYTES || !is_odd || e == [1] {
                    return Err("`e` is not an odd number above 1 of at most 32 bits");
                }
                let key = DecodingKey::from_rsa_raw_components(&n, &e);
                Ok(Material::Other(jsonwebtoken::Algorithm::RS256, key))
            }
        }
    }
}

fn field(text: Option<&str>) -> Result<Vec<u8>, &'static str> {
    let text = text.ok_or("a coordinate or the modulus is missing")?;
    URL_SAFE_NO_PAD.decode(text).map_err(|_| "a coordinate or the modulus is not base64url")
}
