//! The DSSE envelope (secure-systems-lab/dsse, protocol and envelope v1.0.2): its JSON, and the bytes that are signed.
//!
//! Left out: what the payload means and whose the signatures are. Invariant: a field that DSSE names stands once, and base64 is the
//! standard alphabet with padding and no spare bits. Fields that DSSE does not name are passed over, as it demands.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use super::{BundleError, MAX_SIGNATURES};

/// What an in-toto Statement is called in an envelope.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// An envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// What the payload is.
    pub payload_type: String,
    /// The payload.
    pub payload: Vec<u8>,
    /// Signatures over [`pae`] of both.
    pub signatures: Vec<Signature>,
}

/// A signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Whose it may be: a hint that is not signed. May be empty.
    pub key_id: String,
    /// The signature.
    pub sig: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct EnvelopeJson {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<SignatureJson>,
}

#[derive(Serialize, Deserialize)]
struct SignatureJson {
    #[serde(default)]
    keyid: String,
    sig: String,
}

/// DSSE's pre-authentication encoding: the bytes that are signed.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

impl Envelope {
    /// As JSON.
    pub fn encode(&self) -> Vec<u8> {
        let signature = |signature: &Signature| SignatureJson {
            keyid: signature.key_id.clone(),
            sig: STANDARD.encode(&signature.sig),
        };
        let json = EnvelopeJson {
            payload: STANDARD.encode(&self.payload),
            payload_type: self.payload_type.clone(),
            signatures: self.signatures.iter().map(signature).collect(),
        };
        // Strings in structs: nothing of it can fail.
        serde_json::to_vec(&json).unwrap_or_default()
    }

    /// From JSON. The caller bounds the length; nesting is bounded by the JSON reader (128).
    pub fn decode(bytes: &[u8]) -> Result<Self, BundleError> {
        let refuse = |reason: String| BundleError::Envelope(reason);
        let json: EnvelopeJson = serde_json::from_slice(bytes).map_err(|error| refuse(error.to_string()))?;
        if json.signatures.len() > MAX_SIGNATURES {
            return Err(refuse(format!("more than {MAX_SIGNATURES} signatures")));
        }
        let base64 = |field: &str, text: &str| {
            STANDARD.decode(text).map_err(|error| refuse(format!("{field} is no standard base64: {error}")))
        };
        let payload = base64("payload", &json.payload)?;
        let signatures = json
            .signatures
            .into_iter()
            .map(|signature| Ok(Signature { sig: base64("sig", &signature.sig)?, key_id: signature.keyid }))
            .collect::<Result<_, BundleError>>()?;
        Ok(Self { payload_type: json.payload_type, payload, signatures })
    }
}
