//! Checkpoints: compared with the one before, signed or taken up, kept for good, then, once enough witnesses cosigned them, published.
//!
//! Every checkpoint is appended to `DATA/checkpoints/<n>`, in a frame each, when it is signed and again when it was cosigned, or when it
//! was taken up from others, before it becomes `log/checkpoint`. Left out: when to sign and who may; asking the witnesses; agreeing with
//! others on what is published. Invariant: no checkpoint is signed of which the one before is not a prefix, and none of the own is
//! published without its quorum; each was signed by a ledger key that the log had enrolled, and not revoked, in that tree.

use std::{path::PathBuf, sync::Arc};

use ed25519_dalek::{SigningKey, VerifyingKey};
use exchequer_event::{accept::KeyState, v1::KeyRole};
use exchequer_stream::{AppendError, ReadError};
use exchequer_tlog::{
    Checkpoint, CheckpointError, Cosigner, Hash, KeyError, NoteSigner, Policy, ProofInvalid, SignatureKind,
    SignedCheckpoint, TrustError, VerifierKey, consistency_proof, verify_consistency,
};

use super::{
    files::Files,
    frame::{encode_frame, find_frame, split_frame},
    open::{OpenError, check_not_beyond},
    read::{LogReader, StoreError},
    state::Position,
    write::{Places, swap_in},
};

/// A segment that is longer takes no further checkpoint.
const SEGMENT_BYTES: u64 = 1024 * 1024;

/// A checkpoint was not signed or not published.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignError {
    /// The log can't be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The tree does not continue the one that was signed before. Nothing may ever be signed over it.
    #[error("the tree of {size} does not continue the signed one of {signed}: {reason}")]
    Fork {
        /// Size that was to be signed.
        size: u64,
        /// Size of the newest checkpoint.
        signed: u64,
        /// What does not hold.
        reason: ProofInvalid,
    },
    /// What others published is of another tree. Nothing may ever be signed beside it.
    #[error(
        "the published checkpoint of {size} entries has the root {published}, this log has {computed}: it is forked"
    )]
    Forked {
        /// Size that was published.
        size: u64,
        /// Root that was published.
        published: Hash,
        /// Root by the tiles.
        computed: Hash,
    },
    /// The origin makes no checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// What stands where checkpoints are published is none.
    #[error("what the stream holds as the newest checkpoint is none: {0}")]
    NoCheckpoint(CheckpointError),
    /// What was published is signed by no key that may.
    #[error("the published checkpoint can't be trusted: {0}")]
    Foreign(#[from] TrustError),
    /// The key was revoked, or is not enrolled yet.
    #[error("the ledger's key may not sign a tree of {size} entries")]
    Key {
        /// Size that was to be signed.
        size: u64,
    },
    /// What is published can't be read.
    #[error("the published checkpoint can't be read: {0}")]
    Read(#[from] ReadError),
    /// The stream takes no checkpoint.
    #[error("the checkpoint can't be published: {0}")]
    Append(#[from] AppendError),
    /// It has not the cosignatures without which it is not published.
    #[error(
        "a tree of {size} entries is signed and not published: {got} witnesses cosigned it, {needed} have to"
    )]
    Quorum {
        /// Entries in the tree.
        size: u64,
        /// Witnesses that have to cosign.
        needed: usize,
        /// Witnesses that did.
        got: usize,
    },
    /// It was to be published, and its signatures don't hold.
    #[error("the own checkpoint can't be published: {0}")]
    Untrusted(TrustError),
    /// A tree beyond the own one is published. Who has it signs.
    #[error(
        "standing by: this ledger is behind what is published: it holds {size} entries, the checkpoint covers {published}"
    )]
    Behind {
        /// Entries that are published.
        published: u64,
        /// Entries that are committed here.
        size: u64,
    },
    /// Somebody else published each time.
    #[error("others publish checkpoints at the same time")]
    Contended,
}

impl SignError {
    /// Whether there are two trees: nothing may be signed any more.
    pub(crate) fn is_fork(&self) -> bool {
        matches!(self, Self::Fork { .. } | Self::Forked { .. })
    }
}

/// The cosignatures without which no checkpoint is published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Quorum {
    /// The witnesses' keys.
    pub(crate) witnesses: Vec<VerifierKey>,
    /// How many of them have to have cosigned.
    pub(crate) needed: usize,
}

/// A key as it signs checkpoints.
#[derive(Clone, Debug)]
pub(crate) struct LogSigner {
    note: NoteSigner,
    cosigner: Cosigner,
}

impl LogSigner {
    /// The signer of the log of this origin.
    pub(crate) fn new(origin: &str, key: &SigningKey) -> Result<Self, KeyError> {
        Ok(Self {
            note: NoteSigner::new(origin, key.clone())?,
            cosigner: Cosigner::new(origin, key.clone())?,
        })
    }

    /// The verifier key of what it signs.
    pub(crate) fn verifier(&self) -> &VerifierKey {
        self.note.verifier()
    }
}

/// The log's own keys, each with the sizes that it may sign.
#[derive(Clone, Debug)]
pub(crate) struct LogKeys {
    origin: String,
    keys: Vec<KeyState>,
}

impl LogKeys {
    /// The ledger keys among these.
    pub(crate) fn new(origin: &str, keys: &[KeyState]) -> Self {
        let keys = keys.iter().filter(|key| key.role == KeyRole::Ledger).cloned().collect();
        Self { origin: origin.to_owned(), keys }
    }

    fn valid_at(&self, size: u64) -> impl Iterator<Item = &VerifyingKey> {
        self.keys.iter().filter(move |key| key.is_valid_at(size)).map(|key| &key.key)
    }

    /// Whether the key may sign a tree of this size.
    pub(crate) fn may_sign(&self, key: &VerifyingKey, size: u64) -> bool {
        self.valid_at(size).any(|valid| valid == key)
    }

    /// The policy under which a checkpoint of this size is trusted.
    pub(crate) fn policy(&self, size: u64) -> Policy {
        let key = |key: &VerifyingKey| VerifierKey::new(&*self.origin, SignatureKind::Ed25519, *key).ok();
        let log_keys = self.valid_at(size).filter_map(key).collect();
        Policy { origin: self.origin.clone(), log_keys, witnesses: Vec::new(), quorum: 0 }
    }

    /// Checks a checkpoint of a tree beyond the own one as far as it can be: that a ledger key signed it. Before the first key, none can.
    pub(crate) fn check_beyond(&self, signed: &SignedCheckpoint) -> Result<(), TrustError> {
        if self.keys.is_empty() {
            return Ok(());
        }
        signed.verify(&self.policy(signed.checkpoint().size())).map(drop)
    }

    /// The policy under which a checkpoint of this size is published.
    fn publishing(&self, size: u64, quorum: &Quorum) -> Policy {
        Policy { witnesses: quorum.witnesses.clone(), quorum: quorum.needed, ..self.policy(size) }
    }
}

/// The checkpoints of one log.
#[derive(Debug)]
pub(crate) struct CheckpointLog {
    files: Arc<dyn Files>,
    places: Places,
    quorum: Quorum,
    segment: u64,
    segment_len: u64,
    /// The newest that was signed or taken up.
    last: Option<SignedCheckpoint>,
    published: Option<SignedCheckpoint>,
    previous_size: u64,
}

/// What the history on disk ends with.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) segment: u64,
    pub(super) segment_len: u64,
    /// The newest that was signed or taken up.
    pub(super) last: Option<SignedCheckpoint>,
    /// Of the trees up to what is served, the last two at most whose checkpoints have their quorum, the newest last.
    pub(super) publishable: Vec<SignedCheckpoint>,
}

impl CheckpointLog {
    pub(super) fn new(
        files: Arc<dyn Files>,
        places: Places,
        quorum: Quorum,
        history: History,
        published: Option<SignedCheckpoint>,
    ) -> Self {
        let History { segment, segment_len, last, publishable } = history;
        let sizes = publishable.iter().map(|signed| signed.checkpoint().size());
        let size = published.as_ref().map_or(u64::MAX, |published| published.checkpoint().size());
        // Where it is not known which was the newest, the older of two was published for sure.
        let previous_size = match published {
            Some(_) => sizes.rev().find(|previous| *previous < size).unwrap_or(0),
            None => sizes.min().unwrap_or(0),
        };
        Self { files, places, quorum, segment, segment_len, last, published, previous_size }
    }

    /// The newest checkpoint that is kept, published or not.
    #[cfg(test)]
    pub(crate) fn last(&self) -> Option<&SignedCheckpoint> {
        self.last.as_ref()
    }

    /// Size of the tree of the checkpoint that was published before the newest one; 0 if there is none.
    pub(crate) fn previous_size(&self) -> u64 {
        self.previous_size
    }

    /// The newest one that was published.
    pub(crate) fn published(&self) -> Option<&SignedCheckpoint> {
        self.published.as_ref()
    }

    /// Signs the tree at a position that is committed, with a cosignature at `now_unix_s`, and keeps the checkpoint. One of this very
    /// size that is kept already is as good as a new one.
    pub(crate) fn sign(
        &mut self,
        reader: &LogReader,
        position: &Position,
        signer: &LogSigner,
        now_unix_s: u64,
    ) -> Result<SignedCheckpoint, SignError> {
        if let Some(last) = &self.last {
            check_continues(reader, last.checkpoint(), position.size, &position.root)?;
            if last.checkpoint().size() == position.size {
                return Ok(last.clone());
            }
        }
        let checkpoint = Checkpoint::new(signer.verifier().name(), position.size, position.root)?;
        let mut signed = checkpoint.sign(&signer.note);
        signed.add(checkpoint.cosign(&signer.cosigner, now_unix_s)).map_err(CheckpointError::from)?;
        self.keep(&signed)?;
        Ok(signed)
    }

    /// Keeps the newest signed checkpoint with what witnesses added to it; an error if they are too few to publish it.
    pub(crate) fn settle(&mut self, signed: &SignedCheckpoint, keys: &LogKeys) -> Result<(), SignError> {
        let size = signed.checkpoint().size();
        signed.verify(&keys.publishing(size, &self.quorum)).map_err(|error| match error {
            TrustError::Quorum { needed, got } => SignError::Quorum { size, needed, got },
            error => SignError::Untrusted(error),
        })?;
        if self.last.as_ref() != Some(signed) {
            self.keep(signed)?;
        }
        Ok(())
    }

    /// Checks a checkpoint that somebody else published, of a tree that is committed here, and keeps it unless a newer one is.
    pub(crate) fn take_up(
        &mut self,
        reader: &LogReader,
        signed: &SignedCheckpoint,
        keys: &LogKeys,
    ) -> Result<(), SignError> {
        let (size, published) = (signed.checkpoint().size(), *signed.checkpoint().root());
        signed.verify(&keys.policy(size))?;
        let computed = reader.root(size)?;
        if computed != published {
            return Err(SignError::Forked { size, published, computed });
        }
        let newest = self.last.as_ref().map_or(0, |last| last.checkpoint().size());
        if size >= newest && self.last.as_ref() != Some(signed) {
            self.keep(signed)?;
        }
        Ok(())
    }

    /// Makes a kept checkpoint the log's `checkpoint`, with the partial files of just its size beside it.
    pub(crate) fn publish(
        &mut self,
        reader: &LogReader,
        signed: &SignedCheckpoint,
    ) -> Result<(), StoreError> {
        let size = signed.checkpoint().size();
        reader.pin(size);
        reader.lay_out(size, &self.places.staging)?;
        self.swap(signed)?;
        reader.published(size);
        let before = self.published.replace(signed.clone()).map_or(0, |before| before.checkpoint().size());
        if before < size {
            self.previous_size = before;
        }
        Ok(())
    }

    /// Appends to the history.
    pub(super) fn keep(&mut self, signed: &SignedCheckpoint) -> Result<(), StoreError> {
        if self.segment_len >= SEGMENT_BYTES {
            (self.segment, self.segment_len) = (self.segment + 1, 0);
        }
        let path = segment_path(&self.places, self.segment);
        let frame = encode_frame(&signed.to_string());
        self.files.append(&path, self.segment_len, &frame).map_err(StoreError::io(&path))?;
        if self.segment_len == 0 {
            let dir = &self.places.history;
            self.files.sync_dir(dir).map_err(StoreError::io(dir))?;
        }
        self.segment_len += frame.len() as u64;
        self.last = Some(signed.clone());
        Ok(())
    }

    /// Makes it the log's `checkpoint`.
    pub(super) fn swap(&self, signed: &SignedCheckpoint) -> Result<(), StoreError> {
        let file = (self.places.checkpoint.clone(), signed.to_string().into_bytes());
        swap_in(&*self.files, &self.places.staging, [file])
    }
}

/// Whether the tree of this size and root has the checkpoint's tree as its prefix.
fn check_continues(reader: &LogReader, last: &Checkpoint, size: u64, root: &Hash) -> Result<(), SignError> {
    let signed = last.size();
    let fork = |reason| SignError::Fork { size, signed, reason };
    if size < signed {
        return Err(fork(ProofInvalid::OutOfRange { asked: signed, size }));
    }
    let proof = consistency_proof(signed, size, reader).map_err(StoreError::from)?;
    verify_consistency(signed, last.root(), size, root, &proof).map_err(fork)
}

fn segment_path(places: &Places, segment: u64) -> PathBuf {
    places.history.join(format!("{segment:08}"))
}

/// Reads the end of the history of a log of so many entries, of which so many are served: two segments at least, and more if fewer than two trees in them have their
/// quorum. A tail that a crash cut is left out and overwritten later; a broken frame before it is an error.
pub(super) fn read_history(
    files: &dyn Files,
    places: &Places,
    (keys, quorum): (&LogKeys, &Quorum),
    (tree_size, served_size): (u64, u64),
) -> Result<History, OpenError> {
    let dir = &places.history;
    let mut segments: Vec<u64> =
        files.list(dir).map_err(StoreError::io(dir))?.iter().filter_map(|name| name.parse().ok()).collect();
    segments.sort_unstable();
    let mut history = History::default();
    for (back, segment) in segments.iter().rev().enumerate() {
        if back >= 2 && history.publishable.len() == 2 {
            break;
        }
        let path = segment_path(places, *segment);
        let bytes = files.read(&path).map_err(StoreError::io(&path))?;
        let mut rest = &bytes[..];
        let mut notes = Vec::new();
        while let Some((note, tail)) = split_frame(rest) {
            let signed = SignedCheckpoint::parse(note).map_err(StoreError::checkpoint(&path))?;
            check_not_beyond(&signed, tree_size)?;
            signed.verify(&keys.policy(signed.checkpoint().size()))?;
            notes.push(signed);
            rest = tail;
        }
        if !rest.is_empty() && (back > 0 || find_frame(rest)) {
            let reason = "a checkpoint in the middle of the history is damaged".to_owned();
            return Err(StoreError::Damaged { path: path.display().to_string(), reason }.into());
        }
        if back == 0 {
            (history.segment, history.segment_len) = (*segment, (bytes.len() - rest.len()) as u64);
        }
        if history.last.is_none() {
            history.last = notes.last().cloned();
        }
        for signed in notes.into_iter().rev() {
            if history.publishable.len() == 2 {
                break;
            }
            // Of one tree, the last says most: it has the cosignatures.
            let size = signed.checkpoint().size();
            let is_other = |held: &SignedCheckpoint| held.checkpoint().size() > size;
            if size <= served_size
                && history.publishable.first().is_none_or(is_other)
                && signed.verify(&keys.publishing(size, quorum)).is_ok()
            {
                history.publishable.insert(0, signed);
            }
        }
    }
    Ok(history)
}

impl StoreError {
    pub(super) fn checkpoint(path: &std::path::Path) -> impl FnOnce(CheckpointError) -> Self + '_ {
        |error| Self::Damaged { path: path.display().to_string(), reason: error.to_string() }
    }
}
