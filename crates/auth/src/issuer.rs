//! A local issuer of tokens, for installations without an identity provider.
//!
//! Its key is a [`crate::keys`] file, its public half a JWKS file that any [`crate::Verifier`] reads. Left out:
//! users, passwords, refresh. Invariant: it mints nothing that a verifier of the same options would refuse.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::caller::Role;
use crate::keys::{self, KeyError};
use crate::verify::{VerifierOptions, is_subject, is_tenant, unix_now};

/// Longest life of a minted token.
pub const MAX_TTL: Duration = Duration::from_secs(366 * 24 * 3600);

const KEY_FILE: &str = "issuer.key";
const JWKS_FILE: &str = "jwks.json";

/// What a token shall say about its bearer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The `sub` claim.
    pub subject: String,
    /// The `tenant` claim.
    pub tenant: Option<String>,
    /// The `roles` claim.
    pub roles: Vec<Role>,
    /// Life of the token, in whole seconds, from 1 s to [`MAX_TTL`].
    pub ttl: Duration,
}

/// Why a token was not minted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// The subject is empty, too long or not printable.
    #[error("the subject must be 1 to 256 bytes of printable text")]
    Subject,
    /// The tenant is empty, too long or not one printable word.
    #[error("the tenant must be one printable word of 1 to 256 bytes")]
    Tenant,
    /// The time to live is out of bounds.
    #[error("the time to live must lie between 1 s and 366 days")]
    Ttl,
}

/// Mints tokens with its own Ed25519 key.
#[derive(Debug, Clone)]
pub struct Issuer {
    key: SigningKey,
    kid: String,
    name: String,
    audience: String,
    jwks: PathBuf,
}

impl Issuer {
    /// Opens the issuer in `directory` (which must exist): loads or makes `issuer.key` and writes `jwks.json`.
    pub fn open(
        directory: impl AsRef<Path>,
        issuer: impl Into<String>,
        audience: impl Into<String>,
    ) -> Result<Self, KeyError> {
        let directory = directory.as_ref();
        let key = keys::load_or_create(directory.join(KEY_FILE))?;
        let x = URL_SAFE_NO_PAD.encode(key.verifying_key().as_bytes());
        // RFC 7638: the members in order, no white space.
        let thumbprint = Sha256::digest(format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#));
        let kid = URL_SAFE_NO_PAD.encode(thumbprint);
        let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid, "x": x });
        let document = format!("{:#}\n", json!({ "keys": [jwk] }));
        let jwks = directory.join(JWKS_FILE);
        keys::replace(&jwks, document.as_bytes(), 0o644)
            .map_err(|source| KeyError::Io { path: jwks.clone(), source })?;
        Ok(Self { key, kid, name: issuer.into(), audience: audience.into(), jwks })
    }

    /// The JWKS file that verifies this issuer's tokens.
    pub fn jwks_path(&self) -> &Path {
        &self.jwks
    }

    /// Options of a verifier that accepts this issuer's tokens.
    pub fn verifier_options(&self) -> VerifierOptions {
        VerifierOptions::new(&self.name, &self.audience, &self.jwks)
    }

    /// A token that is valid from now on.
    pub fn mint(&self, grant: &Grant) -> Result<String, MintError> {
        self.mint_at(grant, unix_now())
    }

    /// A token that is valid from `now` on, in seconds since the Unix epoch.
    pub fn mint_at(&self, grant: &Grant, now: u64) -> Result<String, MintError> {
        if !is_subject(&grant.subject) {
            return Err(MintError::Subject);
        }
        if grant.tenant.as_deref().is_some_and(|tenant| !is_tenant(tenant)) {
            return Err(MintError::Tenant);
        }
        if grant.ttl < Duration::from_secs(1) || grant.ttl > MAX_TTL {
            return Err(MintError::Ttl);
        }
        let header = json!({ "alg": "EdDSA", "typ": "JWT", "kid": self.kid });
        let roles: Vec<&str> = grant.roles.iter().map(|role| role.name()).collect();
        let mut claims = json!({
            "iss": self.name,
            "aud": self.audience,
            "sub": grant.subject,
            "iat": now,
            "nbf": now,
            "exp": now.saturating_add(grant.ttl.as_secs()),
            "roles": roles,
        });
        if let Some(tenant) = &grant.tenant {
            claims["tenant"] = json!(tenant);
        }
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(signed.as_bytes()).to_bytes());
        Ok(format!("{signed}.{signature}"))
    }
}
