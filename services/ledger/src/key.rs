//! The ledger's own key: which one signs at this moment.
//!
//! Left out: replacing it ([`rotate`]), and whether the log lets it sign, which the signer asks for each tree. Invariant: everybody who
//! signs for the ledger takes the key from here, each time.

pub(crate) mod rotate;

use std::{
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use ed25519_dalek::{SigningKey, VerifyingKey};
use exchequer_auth::keys;
use exchequer_event::{accept::KeyState, v1::KeyRole};
use exchequer_tlog::KeyError;
use tokio::sync::RwLockReadGuard;

use crate::{standing::Standing, store::LogSigner};

/// Who holds the ledger's keys, in control records.
pub(crate) const HOLDER: &str = "ledger";

/// A key, in every form in which it is used.
#[derive(Debug)]
pub(crate) struct Current {
    /// Signs receipts and control records.
    pub(crate) signing: SigningKey,
    /// Signs checkpoints.
    pub(crate) signer: LogSigner,
    /// Verifies checkpoints.
    pub(crate) verifier_key: String,
}

impl Current {
    fn new(origin: &str, signing: SigningKey) -> Result<Self, KeyError> {
        let signer = LogSigner::new(origin, &signing)?;
        let verifier_key = signer.verifier().to_string();
        Ok(Self { signing, signer, verifier_key })
    }

    /// The public key.
    pub(crate) fn public(&self) -> VerifyingKey {
        self.signing.verifying_key()
    }
}

/// The key that signs now, shared by all who sign.
#[derive(Clone, Debug)]
pub(crate) struct LedgerKey(Arc<Held>);

#[derive(Debug)]
struct Held {
    origin: String,
    file: PathBuf,
    current: RwLock<Arc<Current>>,
    /// Read while a control record is signed and appended, written while the key is replaced.
    changing: tokio::sync::RwLock<()>,
    is_retired: AtomicBool,
}

impl LedgerKey {
    /// The key of a file, for the log of an origin.
    pub(crate) fn new(origin: &str, file: PathBuf, key: SigningKey) -> Result<Self, KeyError> {
        let current = RwLock::new(Arc::new(Current::new(origin, key)?));
        let held = Held {
            origin: origin.to_owned(),
            file,
            current,
            changing: tokio::sync::RwLock::default(),
            is_retired: AtomicBool::new(false),
        };
        Ok(Self(Arc::new(held)))
    }

    /// The key that signs now.
    pub(crate) fn current(&self) -> Arc<Current> {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// As long as this is held, the key stays.
    pub(crate) async fn unchanged(&self) -> RwLockReadGuard<'_, ()> {
        self.0.changing.read().await
    }

    /// Whether the log has revoked the key and no other was found: nothing may be signed with it any more.
    pub(crate) fn is_retired(&self) -> bool {
        self.0.is_retired.load(Ordering::Relaxed)
    }

    /// Another key signs from here on, after `replace` put it where it is found again.
    async fn change<E>(&self, next: SigningKey, replace: impl FnOnce() -> Result<(), E>) -> Result<(), E>
    where
        E: From<KeyError>,
    {
        let next = Arc::new(Current::new(&self.0.origin, next)?);
        let _alone = self.0.changing.write().await;
        replace()?;
        *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        self.0.is_retired.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Makes sure that the log lets the key sign what is committed. If it does not, the key file is read again: whoever runs several
    /// ledgers gives each of them the new key by replacing it.
    pub(crate) async fn check(&self, standing: &Standing) -> Result<(), String> {
        let (position, keys) = standing.at();
        let state = |key: &VerifyingKey| state_of(&keys, key).cloned();
        let may_sign = |key: &VerifyingKey| state(key).is_some_and(|state| state.is_valid_at(position.size));
        let current = self.current().public();
        if may_sign(&current) {
            self.0.is_retired.store(false, Ordering::Relaxed);
            return Ok(());
        }
        let file = self.0.file.clone();
        let found = tokio::task::spawn_blocking(move || keys::load(file)).await;
        if let Ok(Ok(found)) = found
            && may_sign(&found.verifying_key())
        {
            tracing::info!(file = %self.0.file.display(), "the key file holds a new ledger key; it signs from here on");
            return self.change(found, || Ok::<_, KeyError>(())).await.map_err(|error| error.to_string());
        }
        let is_revoked = state(&current).is_some_and(|state| state.revoked);
        self.0.is_retired.store(is_revoked, Ordering::Relaxed);
        Err(if is_revoked {
            format!(
                "standing by: the ledger's key was replaced and revoked; {} has to get the new one",
                self.0.file.display()
            )
        } else {
            "standing by: the log has not enrolled the ledger's key yet".to_owned()
        })
    }
}

/// What the log holds of a ledger key.
fn state_of<'a>(keys: &'a [KeyState], key: &VerifyingKey) -> Option<&'a KeyState> {
    keys.iter().find(|state| state.role == KeyRole::Ledger && state.key == *key)
}
