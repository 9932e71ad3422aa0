//! Verification of one token: structure, key, signature, claims, in this order.
//!
//! Works on the compact form of RFC 7515 with the claims of RFC 7519, held to the advice of RFC 8725. Left out:
//! encrypted tokens, detached payloads, extensions (`crit`), keys that a token brings along.
//! Invariant: nothing of the payload is looked at before the signature holds.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use tonic::Status;

use crate::caller::{Caller, Role};
use crate::jwks::{Algorithm, JwksError, MAX_KID_BYTES};
use crate::seen::{Seen, Validity, token_id};
use crate::source::KeySource;

/// Longest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// Longest `sub` and `tenant`, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 256;
/// Most entries of `roles` and of `aud`.
const MAX_CLAIM_ITEMS: usize = 32;
/// 9999-12-31T23:59:59Z: a later date is a mistake, not a date.
const MAX_NUMERIC_DATE: u64 = 253_402_300_799;
/// What a token may call itself; other types (logout tokens, DPoP proofs) are signed by the same keys for other uses.
const TOKEN_TYPES: [&str; 3] = ["jwt", "at+jwt", "application/at+jwt"];

/// Why a token was not accepted. Always `UNAUTHENTICATED`, or HTTP 401.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The request carries no `authorization`.
    #[error("a bearer token is required")]
    Missing,
    /// `authorization` is given more than once or is not of the form `Bearer <token>`.
    #[error("authorization is not a single bearer token")]
    NotBearer,
    /// The token is longer than [`MAX_TOKEN_BYTES`].
    #[error("the token is longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    /// The named part of the token is not what a JWT has there.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// The `alg` is not on the allow-list.
    #[error("the token's algorithm is not accepted")]
    Algorithm,
    /// The token demands an extension; none is understood.
    #[error("the token has a critical header that is not understood")]
    Critical,
    /// The token brings its own key, or the place of one, in the named header.
    #[error("the token brings its own key (`{0}`)")]
    EmbeddedKey(&'static str),
    /// No key of this id is known.
    #[error("the token's key is not known")]
    UnknownKey,
    /// The key of this id is for another algorithm than the token's.
    #[error("the token's algorithm is not its key's")]
    KeyMismatch,
    /// The signature does not hold.
    #[error("the token's signature is invalid")]
    Signature,
    /// A required claim is absent.
    #[error("the token lacks the claim `{0}`")]
    MissingClaim(&'static str),
    /// A claim is not of its type or out of bounds.
    #[error("the token's claim `{0}` is invalid")]
    BadClaim(&'static str),
    /// Issued by somebody else.
    #[error("the token is of another issuer")]
    Issuer,
    /// Issued for somebody else.
    #[error("the token is for another audience")]
    Audience,
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` has not come.
    #[error("the token is not valid yet")]
    NotYetValid,
}

impl TokenError {
    /// The challenge of RFC 6750 §3: no error code where no credentials came.
    pub(crate) fn challenge(&self) -> HeaderValue {
        if *self == Self::Missing {
            return HeaderValue::from_static("Bearer realm=\"exchequer\"");
        }
        let description = self.to_string().replace('"', "'");
        let text = format!(
            "Bearer realm=\"exchequer\", error=\"invalid_token\", error_description=\"{description}\""
        );
        HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("Bearer realm=\"exchequer\""))
    }
}

impl From<TokenError> for Status {
    fn from(error: TokenError) -> Self {
        Self::unauthenticated(error.to_string())
    }
}

impl IntoResponse for TokenError {
    fn into_response(self) -> Response {
        let mut response = (StatusCode::UNAUTHORIZED, self.to_string()).into_response();
        response.headers_mut().insert(header::WWW_AUTHENTICATE, self.challenge());
        response
    }
}

/// What a verifier expects of a token, and where its keys are.
#[derive(Debug, Clone)]
pub struct VerifierOptions {
    /// The only accepted `iss`.
    pub issuer: String,
    /// The value that must be (among) the `aud`.
    pub audience: String,
    /// The JWKS file.
    pub jwks: PathBuf,
    /// Clock skew allowed at `exp` and `nbf`.
    pub leeway: Duration,
    /// How long a key that was removed from the file may still verify.
    pub refresh: Duration,
    /// Shortest time between two reads of the file because of unknown key ids.
    pub cool_down: Duration,
}

impl VerifierOptions {
    /// Options with a leeway of 5 s, a refresh every 30 s and a cool-down of 5 s.
    pub fn new(issuer: impl Into<String>, audience: impl Into<String>, jwks: impl Into<PathBuf>) -> Self {
        Self {
            issuer: issuer.into(),
            audience: audience.into(),
            jwks: jwks.into(),
            leeway: Duration::from_secs(5),
            refresh: Duration::from_secs(30),
            cool_down: Duration::from_secs(5),
        }
    }
}

/// Verifies tokens; cheap to clone, all clones share the keys.
#[derive(Debug, Clone)]
pub struct Verifier(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    issuer: String,
    audience: String,
    leeway_s: u64,
    keys: KeySource,
    seen: Seen,
}

impl Verifier {
    /// Reads the keys; a JWKS file that is missing or bad at the start is an error.
    pub async fn open(options: VerifierOptions) -> Result<Self, JwksError> {
        let keys = KeySource::open(&options.jwks, options.refresh, options.cool_down).await?;
        let leeway_s = options.leeway.as_secs();
        let (issuer, audience) = (options.issuer, options.audience);
        Ok(Self(Arc::new(Inner { issuer, audience, leeway_s, keys, seen: Seen::default() })))
    }

    /// Verifies a compact JWT now.
    pub async fn verify(&self, token: &str) -> Result<Caller, TokenError> {
        self.verify_at(token, unix_now()).await
    }

    /// Verifies a compact JWT at `now`, in seconds since the Unix epoch.
    pub async fn verify_at(&self, token: &str, now: u64) -> Result<Caller, TokenError> {
        let parts = Parts::split(token)?;
        let id = token_id(token);
        let mut keys = self.0.keys.current().await;
        if let Some((caller, validity)) = self.0.seen.get(&keys, &id) {
            return validity.check(now, self.0.leeway_s).map(|()| caller);
        }
        let header = parts.header()?;
        if keys.get(&header.kid).is_none() {
            keys = self.0.keys.after_unknown(&keys).await;
        }
        let key = keys.get(&header.kid).ok_or(TokenError::UnknownKey)?;
        if key.algorithm != header.algorithm {
            return Err(TokenError::KeyMismatch);
        }
        if !key.verifies(parts.signed.as_bytes(), parts.signature) {
            return Err(TokenError::Signature);
        }
        let (caller, validity) = self.0.caller(&parts.claims()?, now)?;
        self.0.seen.put(&keys, id, caller.clone(), validity);
        Ok(caller)
    }

    /// Why the key file's present content is not in use, if it is not: for the component's readiness.
    pub fn fault(&self) -> Option<JwksError> {
        self.0.keys.fault()
    }
}

/// A clock before 1970 makes every token expired rather than eternal.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |since| since.as_secs())
}

struct Parts<'a> {
    header: &'a str,
    payload: &'a str,
    signature: &'a str,
    /// Header and payload as they were signed.
    signed: &'a str,
}

struct Header {
    algorithm: Algorithm,
    kid: String,
}

#[derive(Deserialize)]
struct RawHeader {
    alg: String,
    typ: Option<String>,
    kid: Option<String>,
    #[serde(default, deserialize_with = "present")]
    crit: bool,
    #[serde(default, deserialize_with = "present")]
    jwk: bool,
    #[serde(default, deserialize_with = "present")]
    jku: bool,
    #[serde(default, deserialize_with = "present")]
    x5u: bool,
    #[serde(default, deserialize_with = "present")]
    x5c: bool,
}

/// True for any value, `null` too: it is the name that counts.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(|_| true)
}

impl<'a> Parts<'a> {
    fn split(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Malformed("not three parts"));
        };
        let signed = &token[..header.len() + 1 + payload.len()];
        Ok(Self { header, payload, signature, signed })
    }

    fn header(&self) -> Result<Header, TokenError> {
        let malformed = TokenError::Malformed("header");
        let bytes = URL_SAFE_NO_PAD.decode(self.header).map_err(|_| malformed.clone())?;
        let raw: RawHeader = serde_json::from_slice(&bytes).map_err(|_| malformed)?;
        let algorithm = Algorithm::from_name(&raw.alg).ok_or(TokenError::Algorithm)?;
        if raw.crit {
            return Err(TokenError::Critical);
        }
        for (is_present, name) in [(raw.jwk, "jwk"), (raw.jku, "jku"), (raw.x5u, "x5u"), (raw.x5c, "x5c")] {
            if is_present {
                return Err(TokenError::EmbeddedKey(name));
            }
        }
        if raw.typ.is_some_and(|typ| !TOKEN_TYPES.contains(&typ.to_ascii_lowercase().as_str())) {
            return Err(TokenError::Malformed("type"));
        }
        let kid = raw.kid.filter(|kid| !kid.is_empty() && kid.len() <= MAX_KID_BYTES);
        Ok(Header { algorithm, kid: kid.ok_or(TokenError::Malformed("key id"))? })
    }

    fn claims(&self) -> Result<Map<String, Value>, TokenError> {
        let malformed = TokenError::Malformed("payload");
        let bytes = URL_SAFE_NO_PAD.decode(self.payload).map_err(|_| malformed.clone())?;
        serde_json::from_slice(&bytes).map_err(|_| malformed)
    }
}

impl Inner {
    fn caller(&self, claims: &Map<String, Value>, now: u64) -> Result<(Caller, Validity), TokenError> {
        if text(claims, "iss")?.ok_or(TokenError::MissingClaim("iss"))? != self.issuer {
            return Err(TokenError::Issuer);
        }
        if !audiences(claims)?.contains(&self.audience.as_str()) {
            return Err(TokenError::Audience);
        }
        let expires = date(claims, "exp")?.ok_or(TokenError::MissingClaim("exp"))?;
        // An expired token is refused as such, whatever else it says.
        Validity { not_before: None, expires }.check(now, self.leeway_s)?;
        let validity = Validity { not_before: date(claims, "nbf")?, expires };
        validity.check(now, self.leeway_s)?;
        let subject = text(claims, "sub")?.ok_or(TokenError::MissingClaim("sub"))?;
        if !is_subject(subject) {
            return Err(TokenError::BadClaim("sub"));
        }
        let tenant = text(claims, "tenant")?;
        if tenant.is_some_and(|tenant| !is_tenant(tenant)) {
            return Err(TokenError::BadClaim("tenant"));
        }
        let caller =
            Caller { subject: subject.to_owned(), tenant: tenant.map(str::to_owned), roles: roles(claims)? };
        Ok((caller, validity))
    }
}

/// A subject may be a mail address, a service path, a distinguished name: anything printable.
pub(crate) fn is_subject(text: &str) -> bool {
    !text.trim().is_empty() && text.len() <= MAX_NAME_BYTES && !text.chars().any(char::is_control)
}

/// A tenant is one word.
pub(crate) fn is_tenant(text: &str) -> bool {
    is_subject(text) && !text.chars().any(char::is_whitespace)
}

fn text<'a>(claims: &'a Map<String, Value>, name: &'static str) -> Result<Option<&'a str>, TokenError> {
    match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(TokenError::BadClaim(name)),
    }
}

/// A whole, non-negative number of seconds; a fraction or an exponent is refused rather than rounded.
fn date(claims: &Map<String, Value>, name: &'static str) -> Result<Option<u64>, TokenError> {
    match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let date = value.as_u64().filter(|date| *date <= MAX_NUMERIC_DATE);
            date.map(Some).ok_or(TokenError::BadClaim(name))
        }
    }
}

fn strings<'a>(value: &'a Value, name: &'static str) -> Result<Vec<&'a str>, TokenError> {
    let Value::Array(items) = value else {
        return Err(TokenError::BadClaim(name));
    };
    if items.len() > MAX_CLAIM_ITEMS {
        return Err(TokenError::BadClaim(name));
    }
    items.iter().map(|item| item.as_str().ok_or(TokenError::BadClaim(name))).collect()
}

fn audiences(claims: &Map<String, Value>) -> Result<Vec<&str>, TokenError> {
    match claims.get("aud") {
        None | Some(Value::Null) => Err(TokenError::MissingClaim("aud")),
        Some(Value::String(one)) => Ok(vec![one]),
        Some(many) => strings(many, "aud"),
    }
}

/// An unknown role grants nothing and is ignored: the issuer may serve other systems as well.
fn roles(claims: &Map<String, Value>) -> Result<BTreeSet<Role>, TokenError> {
    match claims.get("roles") {
        None | Some(Value::Null) => Ok(BTreeSet::new()),
        Some(value) => Ok(strings(value, "roles")?.iter().filter_map(|name| name.parse().ok()).collect()),
    }
}
