//! The ledger's keys as the log itself has them: which was enrolled by which, where, and where it was revoked.
//!
//! A checkpoint of N entries has to be signed by a key that those N entries enrol and do not revoke. From a key that the caller trusts,
//! trust goes on to the keys that it enrolled, and to those that these enrolled.
//!
//! Left out: whether the control records hold; only those that the audit took come here. Invariant: a revoked key never comes back.

use ed25519_dalek::VerifyingKey;
use exchequer_event::{
    control::{OpenControl, public_key},
    v1::{KeyRole, control_record::Kind},
};
use exchequer_tlog::{Policy, SignatureKind, SignedCheckpoint, TrustError, VerifierKey};
use serde::{Deserialize, Serialize};

/// A ledger key and its place in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LedgerKey {
    #[serde(with = "hex::serde")]
    key: [u8; 32],
    /// The key that signed the enrolment; of the first, itself.
    #[serde(with = "hex::serde")]
    by: [u8; 32],
    holder: String,
    /// Index of the entry that enrolled it.
    pub(super) enrolled_at: u64,
    /// Index of the entry that revoked it.
    pub(super) revoked_at: Option<u64>,
}

/// All ledger keys, in order of enrolment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LedgerKeys {
    origin: String,
    keys: Vec<LedgerKey>,
}

impl LedgerKey {
    fn is_valid_at(&self, size: u64) -> bool {
        self.enrolled_at < size && self.revoked_at.is_none_or(|revoked| revoked >= size)
    }
}

impl LedgerKeys {
    /// Takes the control record at an index.
    pub(super) fn take(&mut self, index: u64, open: &OpenControl) {
        let by = *open.signer.as_bytes();
        match &open.kind {
            Kind::Genesis(genesis) => {
                genesis.origin.clone_into(&mut self.origin);
                self.enrol(index, &genesis.ledger_key, by, "ledger");
            }
            Kind::KeyEnrolled(key) if key.role() == KeyRole::Ledger => {
                self.enrol(index, &key.public_key, by, &key.holder);
            }
            Kind::KeyRevoked(revoked) if revoked.role() == KeyRole::Ledger => {
                let is_it =
                    |key: &&mut LedgerKey| key.key == *revoked.public_key && key.holder == revoked.holder;
                if let Some(key) = self.keys.iter_mut().find(is_it) {
                    key.revoked_at = key.revoked_at.or(Some(index));
                }
            }
            _ => {}
        }
    }

    fn enrol(&mut self, index: u64, key: &[u8], by: [u8; 32], holder: &str) {
        let Ok(key) = <[u8; 32]>::try_from(key) else { return };
        if !self.keys.iter().any(|known| known.key == key && known.holder == holder) {
            let holder = holder.to_owned();
            self.keys.push(LedgerKey { key, by, holder, enrolled_at: index, revoked_at: None });
        }
    }

    /// The log's origin; empty before the genesis.
    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    /// The key of the genesis.
    pub(super) fn first(&self) -> Option<VerifierKey> {
        verifier(&self.origin, &self.keys.first()?.key)
    }

    /// Where this key stands in the log, as it is or was enrolled for any holder: the place that leaves it valid longest.
    pub(super) fn find(&self, key: &VerifyingKey) -> Option<&LedgerKey> {
        let known = self.keys.iter().filter(|known| known.key == *key.as_bytes());
        known.max_by_key(|known| known.revoked_at.unwrap_or(u64::MAX))
    }

    /// Whether this key may sign a tree of so many entries.
    pub(super) fn may_sign(&self, key: &VerifyingKey, size: u64) -> bool {
        self.keys.iter().any(|known| known.key == *key.as_bytes() && known.is_valid_at(size))
    }

    /// A trusted key and all that it leads to.
    pub(super) fn reached_from(&self, trusted: &VerifierKey) -> Vec<VerifierKey> {
        let mut keys = vec![trusted.clone()];
        for known in &self.keys {
            let leads = keys.iter().any(|key| *key.public_key().as_bytes() == known.by);
            let is_new = keys.iter().all(|key| *key.public_key().as_bytes() != known.key);
            if leads && is_new {
                keys.extend(verifier(trusted.name(), &known.key));
            }
        }
        keys
    }
}

fn verifier(origin: &str, key: &[u8]) -> Option<VerifierKey> {
    VerifierKey::new(origin, SignatureKind::Ed25519, public_key("key", key).ok()?).ok()
}

/// What the signatures of a checkpoint say.
pub(super) struct Signed {
    /// The log's keys that signed it.
    pub(super) by: Vec<VerifierKey>,
    /// Time of the ledger's own cosignature, seconds since the Unix epoch.
    pub(super) time: Option<u64>,
    /// How many signatures are by keys that are not known here.
    pub(super) unknown: usize,
}

/// Verifies that at least one of these keys, which have one name, signed a checkpoint, and that none of theirs is wrong.
pub(super) fn verify_signatures(
    signed: &SignedCheckpoint,
    origin: &str,
    keys: &[VerifierKey],
) -> Result<Signed, TrustError> {
    // The ledger cosigns with the same key under the same name: that is where the time comes from.
    let cosigner =
        |key: &VerifierKey| VerifierKey::new(key.name(), SignatureKind::Cosignature, *key.public_key()).ok();
    let policy = Policy {
        origin: origin.to_owned(),
        log_keys: keys.to_vec(),
        witnesses: keys.iter().filter_map(cosigner).collect(),
        quorum: 0,
    };
    let verified = signed.verify(&policy)?;
    Ok(Signed {
        time: verified.by.iter().find_map(|by| by.time),
        unknown: signed.note().signatures().len().saturating_sub(verified.by.len()),
        by: verified.by.into_iter().map(|by| by.key).filter(|key| keys.contains(key)).collect(),
    })
}
