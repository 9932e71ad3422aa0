//! Checkpoints: compared with the one before, signed, kept for good, then, once enough witnesses cosigned them, published.
//!
//! Every checkpoint is appended to `DATA/checkpoints/<n>`, in a frame each, when it is signed and again when it was cosigned, before it
//! becomes `log/checkpoint`. Left out: when to sign and who may; asking the witnesses. Invariant: no checkpoint is signed of which the
//! one before is not a prefix, and none is published without its quorum.

use std::{path::PathBuf, sync::Arc};

use exchequer_tlog::{
    Checkpoint, CheckpointError, Cosigner, Hash, NoteSigner, Policy, ProofInvalid, SignedCheckpoint,
    TrustError, VerifierKey, consistency_proof, verify_consistency,
};

use super::{
    files::Files,
    frame::{encode_frame, find_frame, split_frame},
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
    /// The origin makes no checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
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
    #[error(transparent)]
    Untrusted(TrustError),
}

/// The cosignatures without which no checkpoint is published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Quorum {
    /// The witnesses' keys.
    pub(crate) witnesses: Vec<VerifierKey>,
    /// How many of them have to have cosigned.
    pub(crate) needed: usize,
}

/// The checkpoints of one log.
#[derive(Debug)]
pub(crate) struct CheckpointLog {
    files: Arc<dyn Files>,
    places: Places,
    signer: NoteSigner,
    cosigner: Cosigner,
    /// What is published is the log's own and has its quorum.
    policy: Policy,
    segment: u64,
    segment_len: u64,
    /// The newest that was signed.
    last: Option<SignedCheckpoint>,
    published: Option<SignedCheckpoint>,
    previous_size: u64,
}

/// What the history on disk ends with.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) segment: u64,
    pub(super) segment_len: u64,
    /// The newest that was signed.
    pub(super) last: Option<SignedCheckpoint>,
    /// The last two trees at most whose checkpoints have their quorum, the newest last.
    pub(super) publishable: Vec<SignedCheckpoint>,
}

impl CheckpointLog {
    pub(super) fn new(
        files: Arc<dyn Files>,
        places: Places,
        (signer, cosigner): (NoteSigner, Cosigner),
        policy: Policy,
        history: History,
    ) -> Self {
        let History { segment, segment_len, last, publishable } = history;
        let mut newest = publishable.into_iter().rev();
        let published = newest.next();
        let previous_size = newest.next().map_or(0, |signed| signed.checkpoint().size());
        Self { files, places, signer, cosigner, policy, segment, segment_len, last, published, previous_size }
    }

    /// The newest checkpoint that was signed, published or not.
    #[cfg(test)]
    pub(crate) fn last(&self) -> Option<&SignedCheckpoint> {
        self.last.as_ref()
    }

    /// The newest checkpoint that was published.
    pub(crate) fn published(&self) -> Option<&SignedCheckpoint> {
        self.published.as_ref()
    }

    /// Size of the tree of the checkpoint that was published before the newest one; 0 if there is none.
    pub(crate) fn previous_size(&self) -> u64 {
        self.previous_size
    }

    /// Signs the tree at a position that is committed, with a cosignature at `now_unix_s`, and keeps the checkpoint. The newest one, if
    /// it is of that tree, is not signed again.
    pub(crate) fn sign(
        &mut self,
        reader: &LogReader,
        position: &Position,
        now_unix_s: u64,
    ) -> Result<SignedCheckpoint, SignError> {
        let checkpoint = Checkpoint::new(self.signer.verifier().name(), position.size, position.root)?;
        if let Some(last) = &self.last {
            if *last.checkpoint() == checkpoint {
                return Ok(last.clone());
            }
            check_continues(reader, last.checkpoint(), position.size, &position.root)?;
        }
        let mut signed = checkpoint.sign(&self.signer);
        signed.add(checkpoint.cosign(&self.cosigner, now_unix_s)).map_err(CheckpointError::from)?;
        self.keep(&signed)?;
        self.last = Some(signed.clone());
        Ok(signed)
    }

    /// Publishes the newest signed checkpoint, to which witnesses may have added cosignatures: those are kept first.
    pub(crate) fn publish(&mut self, signed: &SignedCheckpoint) -> Result<(), SignError> {
        signed.verify(&self.policy).map_err(|error| match error {
            TrustError::Quorum { needed, got } => {
                SignError::Quorum { size: signed.checkpoint().size(), needed, got }
            }
            error => SignError::Untrusted(error),
        })?;
        if self.last.as_ref() != Some(signed) {
            self.keep(signed)?;
            self.last = Some(signed.clone());
        }
        self.swap(signed)?;
        self.previous_size = self.published.as_ref().map_or(0, |published| published.checkpoint().size());
        self.published = Some(signed.clone());
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

/// The policy under which the ledger's own checkpoints are trusted.
pub(super) fn own_policy(signer: &NoteSigner) -> Policy {
    let key = signer.verifier().clone();
    Policy { origin: key.name().to_owned(), log_keys: vec![key], witnesses: Vec::new(), quorum: 0 }
}

/// The policy under which they are published.
pub(super) fn publishing_policy(signer: &NoteSigner, quorum: Quorum) -> Policy {
    Policy { witnesses: quorum.witnesses, quorum: quorum.needed, ..own_policy(signer) }
}

fn segment_path(places: &Places, segment: u64) -> PathBuf {
    places.history.join(format!("{segment:08}"))
}

/// Reads the end of the history: two segments at least, and more if fewer than two trees in them have their quorum. A tail that a crash
/// cut is left out and overwritten later; a broken frame before it is an error.
pub(super) fn read_history(
    files: &dyn Files,
    places: &Places,
    (own, publishing): (&Policy, &Policy),
) -> Result<History, HistoryError> {
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
            signed.verify(own)?;
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
            let is_other = |held: &SignedCheckpoint| held.checkpoint().size() > signed.checkpoint().size();
            if history.publishable.first().is_none_or(is_other) && signed.verify(publishing).is_ok() {
                history.publishable.insert(0, signed);
            }
        }
    }
    Ok(history)
}

/// The history can't be relied on.
#[derive(Debug, thiserror::Error)]
pub(super) enum HistoryError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Trust(#[from] TrustError),
}

impl StoreError {
    pub(super) fn checkpoint(path: &std::path::Path) -> impl FnOnce(CheckpointError) -> Self + '_ {
        |error| Self::Damaged { path: path.display().to_string(), reason: error.to_string() }
    }
}
