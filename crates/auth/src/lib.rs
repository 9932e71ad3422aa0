//! JWT verification, JWKS, roles and the tower layer that puts them in front of every RPC and route.
//!
//! A [`Verifier`] turns a bearer token into a [`Caller`]; [`AuthLayer`] does so for every request of a tonic server or
//! an axum router; the services then ask the caller what it [may](Caller) do. An [`Issuer`] makes tokens where no
//! identity provider exists, and [`BearerToken`] sends them. [`keys`] holds the Ed25519 key files of all services,
//! [`payload_keys`] those under which tenants' payloads are encrypted.
//!
//! Left out: sessions, refresh tokens, revocation of single tokens (keep them short-lived; remove the key to revoke
//! all), and any way around verification.
//!
//! Invariant: a `Caller` in a request's extensions was put there by a verified token, never by the network.

mod bearer;
mod caller;
mod issuer;
mod jwks;
pub mod keys;
mod layer;
pub mod payload_keys;
mod seen;
mod source;
mod verify;

pub use bearer::{BearerError, BearerToken};
pub use caller::{Caller, Denied, Role};
pub use issuer::{Grant, Issuer, MAX_TTL, MintError};
pub use jwks::{Algorithm, JwksError, MAX_JWKS_BYTES, MAX_JWKS_KEYS};
pub use layer::{AuthLayer, Authenticated};
pub use source::check_jwks;
pub use verify::{MAX_TOKEN_BYTES, TokenError, Verifier, VerifierOptions};
