//! The client's side: a token on every request, renewed where it can be.
//!
//! Left out: obtaining tokens from an identity provider (let its agent write a file). Invariant: the token is sent
//! marked as sensitive, so that no header dump shows it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::issuer::{Grant, Issuer, MintError};
use crate::verify::{MAX_TOKEN_BYTES, unix_now};

/// Why there is no token to send.
#[derive(Debug, thiserror::Error)]
pub enum BearerError {
    /// The token's file could not be read.
    #[error("cannot read the token file {path}: {source}")]
    Read {
        /// The file's path.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The text is empty, too long or not a token.
    #[error("this is not a bearer token")]
    Malformed,
    /// The local issuer would not mint the token.
    #[error(transparent)]
    Mint(#[from] MintError),
}

/// Sends a bearer token: an [`Interceptor`] of tonic clients; other clients take [`BearerToken::header`]. Clones share
/// the token.
#[derive(Debug, Clone)]
pub struct BearerToken(Arc<Mutex<Held>>);

#[derive(Debug)]
struct Held {
    source: Source,
    header: HeaderValue,
}

#[derive(Debug)]
enum Source {
    Fixed,
    File { path: PathBuf, stamp: Stamp },
    Issuer { issuer: Box<Issuer>, grant: Grant, renew_at: u64 },
}

/// Tells one state of a file from another: inode, length, modification time.
type Stamp = (u64, u64, i64, i64);

impl BearerToken {
    /// Always the same token.
    pub fn fixed(token: &str) -> Result<Self, BearerError> {
        Ok(Self::held(Source::Fixed, as_header(token)?))
    }

    /// The token in a file, read again whenever the file changes; while it can't be read, the last one.
    pub fn file(path: impl Into<PathBuf>) -> Result<Self, BearerError> {
        let path = path.into();
        let failed = |source| BearerError::Read { path: path.clone(), source };
        let stamp = stamp(&path).map_err(failed)?;
        let header = as_header(&std::fs::read_to_string(&path).map_err(failed)?)?;
        Ok(Self::held(Source::File { path, stamp }, header))
    }

    /// Tokens of a local issuer, each replaced when four fifths of its life have passed.
    pub fn issued(issuer: Issuer, grant: Grant) -> Result<Self, BearerError> {
        let (header, renew_at) = mint(&issuer, &grant, unix_now())?;
        Ok(Self::held(Source::Issuer { issuer: Box::new(issuer), grant, renew_at }, header))
    }

    /// The value of `authorization` to send now.
    pub fn header(&self) -> HeaderValue {
        self.header_at(unix_now())
    }

    fn header_at(&self, now: u64) -> HeaderValue {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(header) = held.source.renewed(now) {
            held.header = header;
        }
        held.header.clone()
    }

    fn held(source: Source, header: HeaderValue) -> Self {
        Self(Arc::new(Mutex::new(Held { source, header })))
    }
}

impl Interceptor for BearerToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let header = self.header();
        let mut value = MetadataValue::try_from(header.as_bytes())
            .map_err(|_| Status::internal("the bearer token is not a header value"))?;
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

impl Source {
    /// A new header if the source has one.
    fn renewed(&mut self, now: u64) -> Option<HeaderValue> {
        match self {
            Self::Fixed => None,
            Self::File { path, stamp: known } => {
                let present = stamp(path).ok().filter(|present| present != known)?;
                let header = as_header(&std::fs::read_to_string(&*path).ok()?).ok()?;
                *known = present;
                Some(header)
            }
            Self::Issuer { issuer, grant, renew_at } => {
                if now < *renew_at {
                    return None;
                }
                let (header, at) = mint(issuer, grant, now).ok()?;
                *renew_at = at;
                Some(header)
            }
        }
    }
}

fn mint(issuer: &Issuer, grant: &Grant, now: u64) -> Result<(HeaderValue, u64), BearerError> {
    let header = as_header(&issuer.mint_at(grant, now)?)?;
    Ok((header, now.saturating_add(Duration::as_secs(&grant.ttl) * 4 / 5)))
}

fn stamp(path: &Path) -> std::io::Result<Stamp> {
    let metadata = std::fs::metadata(path)?;
    Ok((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

fn as_header(token: &str) -> Result<HeaderValue, BearerError> {
    let token = token.trim();
    let is_token =
        !token.is_empty() && token.len() <= MAX_TOKEN_BYTES && token.bytes().all(|b| b.is_ascii_graphic());
    if !is_token {
        return Err(BearerError::Malformed);
    }
    let mut header = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| BearerError::Malformed)?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::Role;

    #[test]
    fn an_issued_token_is_replaced_after_four_fifths_of_its_life() {
        let directory = tempfile::tempdir().unwrap();
        let issuer = Issuer::open(directory.path(), "i", "a").unwrap();
        let ttl = Duration::from_secs(100);
        let grant = Grant { subject: "agent-1".to_owned(), tenant: None, roles: vec![Role::Agent], ttl };
        let start = unix_now();
        let token = BearerToken::issued(issuer, grant).unwrap();
        let first = token.header_at(start);
        assert_eq!(token.header_at(start + 70), first);
        let second = token.header_at(start + 90);
        assert_ne!(second, first);
        assert_eq!(token.header_at(start + 91), second);
    }
}
