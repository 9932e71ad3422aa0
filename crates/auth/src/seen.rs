//! Tokens that were verified before: verifying a signature costs more than all else that a call costs.
//!
//! A token is known by the SHA-256 of all of it, so that one with another signature, header or claim is another token. Left out: what was
//! refused, which is examined again each time. Invariant: what is known holds for the key set that verified it and no other, and its dates
//! are compared with the clock each time.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use sha2::{Digest as _, Sha256};

use crate::caller::Caller;
use crate::jwks::KeySet;
use crate::verify::TokenError;

/// Most tokens that are known at one time. Only valid ones count, so nobody without the issuer's help can fill it.
const MAX_SEEN: usize = 4096;

/// When a token is valid, in seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    /// From when on, if it says so.
    pub(crate) not_before: Option<u64>,
    /// Until when.
    pub(crate) expires: u64,
}

impl Validity {
    /// Whether it is valid at `now`, give or take `leeway_s`.
    pub(crate) fn check(self, now: u64, leeway_s: u64) -> Result<(), TokenError> {
        if now >= self.expires.saturating_add(leeway_s) {
            return Err(TokenError::Expired);
        }
        if self.not_before.is_some_and(|at| now.saturating_add(leeway_s) < at) {
            return Err(TokenError::NotYetValid);
        }
        Ok(())
    }
}

/// Names a token.
pub(crate) type TokenId = [u8; 32];

/// The name of a token.
pub(crate) fn token_id(token: &str) -> TokenId {
    Sha256::digest(token).into()
}

/// The tokens that are known.
#[derive(Debug, Default)]
pub(crate) struct Seen(RwLock<Known>);

#[derive(Debug, Default)]
struct Known {
    /// What verified them.
    keys: Option<Arc<KeySet>>,
    tokens: HashMap<TokenId, (Caller, Validity)>,
}

impl Seen {
    /// The caller of a token that these very keys verified before.
    pub(crate) fn get(&self, keys: &Arc<KeySet>, id: &TokenId) -> Option<(Caller, Validity)> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.keys.as_ref().filter(|by| Arc::ptr_eq(by, keys))?;
        known.tokens.get(id).cloned()
    }

    /// Keeps a token that these keys have verified.
    pub(crate) fn put(&self, keys: &Arc<KeySet>, id: TokenId, caller: Caller, validity: Validity) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let is_same = known.keys.as_ref().is_some_and(|by| Arc::ptr_eq(by, keys));
        if !is_same || known.tokens.len() >= MAX_SEEN {
            known.tokens.clear();
            known.keys = Some(Arc::clone(keys));
        }
        known.tokens.insert(id, (caller, validity));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const JWKS: &[u8] =
        br#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    const VALIDITY: Validity = Validity { not_before: Some(100), expires: 200 };

    fn keys() -> Arc<KeySet> {
        Arc::new(KeySet::parse(JWKS).unwrap())
    }

    fn caller() -> Caller {
        Caller { subject: "alice".to_owned(), tenant: None, roles: BTreeSet::new() }
    }

    #[test]
    fn a_token_is_known_to_the_keys_that_verified_it_and_to_no_others() {
        let (seen, first, second) = (Seen::default(), keys(), keys());
        seen.put(&first, token_id("a"), caller(), VALIDITY);
        assert_eq!(seen.get(&first, &token_id("a")), Some((caller(), VALIDITY)));
        assert_eq!(seen.get(&first, &token_id("b")), None);
        assert_eq!(seen.get(&second, &token_id("a")), None, "equal keys, read again");
        seen.put(&second, token_id("b"), caller(), VALIDITY);
        assert_eq!(seen.get(&first, &token_id("a")), None, "the old keys are forgotten");
        assert_eq!(seen.get(&second, &token_id("a")), None);
    }

    #[test]
    fn more_tokens_than_the_bound_are_not_kept() {
        let (seen, keys) = (Seen::default(), keys());
        for number in 0..=MAX_SEEN {
            seen.put(&keys, token_id(&number.to_string()), caller(), VALIDITY);
            assert!(seen.0.read().unwrap().tokens.len() <= MAX_SEEN);
        }
        assert!(seen.get(&keys, &token_id(&MAX_SEEN.to_string())).is_some());
    }

    #[test]
    fn dates_have_their_leeway_on_both_sides() {
        let at = |now| VALIDITY.check(now, 5);
        assert_eq!([at(94), at(95)], [Err(TokenError::NotYetValid), Ok(())]);
        assert_eq!([at(204), at(205)], [Ok(()), Err(TokenError::Expired)]);
        assert_eq!(Validity { not_before: None, expires: 200 }.check(0, 0), Ok(()));
    }
}
