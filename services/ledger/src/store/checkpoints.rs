//! Checkpoints: compared with the one before, signed, kept for good, then published.
//!
//! Every checkpoint is appended to `DATA/checkpoints/<n>`, each after a line `checkpoint <bytes> <blake3, 16 hex digits>`, before it
//! becomes `log/checkpoint`. Left out: when to sign and who may. Invariant: no checkpoint is signed of which the one before is not a
//! prefix.

use std::{path::PathBuf, sync::Arc};

use exchequer_tlog::{
    Checkpoint, CheckpointError, Cosigner, Hash, NoteSigner, Policy, ProofInvalid, SignedCheckpoint,
    TrustError, consistency_proof, verify_consistency,
};

use super::{
    files::Files,
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
}

/// The checkpoints of one log.
#[derive(Debug)]
pub(crate) struct CheckpointLog {
    files: Arc<dyn Files>,
    places: Places,
    signer: NoteSigner,
    cosigner: Cosigner,
    segment: u64,
    segment_len: u64,
    last: Option<SignedCheckpoint>,
    previous_size: u64,
}

/// What the history on disk ends with.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) segment: u64,
    pub(super) segment_len: u64,
    /// The last two at most, the newest last.
    pub(super) newest: Vec<SignedCheckpoint>,
}

impl CheckpointLog {
    pub(super) fn new(
        files: Arc<dyn Files>,
        places: Places,
        signer: NoteSigner,
        cosigner: Cosigner,
        history: History,
    ) -> Self {
        let mut newest = history.newest.into_iter().rev();
        let last = newest.next();
        let previous_size = newest.next().map_or(0, |signed| signed.checkpoint().size());
        let (segment, segment_len) = (history.segment, history.segment_len);
        Self { files, places, signer, cosigner, segment, segment_len, last, previous_size }
    }

    /// The newest checkpoint.
    pub(crate) fn last(&self) -> Option<&SignedCheckpoint> {
        self.last.as_ref()
    }

    /// Size of the tree of the checkpoint before the newest one; 0 if there is none.
    pub(crate) fn previous_size(&self) -> u64 {
        self.previous_size
    }

    /// Signs the tree at a position that is committed, with a cosignature at `now_unix_s`, keeps the checkpoint and publishes it.
    pub(crate) fn publish(
        &mut self,
        reader: &LogReader,
        position: &Position,
        now_unix_s: u64,
    ) -> Result<SignedCheckpoint, SignError> {
        let checkpoint = Checkpoint::new(self.signer.verifier().name(), position.size, position.root)?;
        if let Some(last) = &self.last {
            check_continues(reader, last.checkpoint(), position.size, &position.root)?;
        }
        let mut signed = checkpoint.sign(&self.signer);
        signed.add(checkpoint.cosign(&self.cosigner, now_unix_s)).map_err(CheckpointError::from)?;
        self.keep(&signed)?;
        self.swap(&signed)?;
        self.previous_size = self.last.as_ref().map_or(0, |last| last.checkpoint().size());
        self.last = Some(signed.clone());
        Ok(signed)
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

fn segment_path(places: &Places, segment: u64) -> PathBuf {
    places.history.join(format!("{segment:08}"))
}

fn encode_frame(note: &str) -> Vec<u8> {
    let sum = blake3::hash(note.as_bytes()).to_hex();
    format!("checkpoint {} {}\n{note}", note.len(), &sum[..16]).into_bytes()
}

/// The first frame of these bytes and what follows it; `None` if it is cut or changed.
fn split_frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().take(64).position(|byte| *byte == b'\n')?;
    let (length, sum) =
        std::str::from_utf8(&bytes[..end]).ok()?.strip_prefix("checkpoint ")?.split_once(' ')?;
    let (note, rest) = bytes[end + 1..].split_at_checked(length.parse().ok()?)?;
    (blake3::hash(note).to_hex()[..16] == *sum).then_some((note, rest))
}

/// Reads the end of the history. A tail that a crash cut is left out and overwritten later; a broken frame before it is an error.
pub(super) fn read_history(
    files: &dyn Files,
    places: &Places,
    policy: &Policy,
) -> Result<History, HistoryError> {
    let dir = &places.history;
    let mut segments: Vec<u64> =
        files.list(dir).map_err(StoreError::io(dir))?.iter().filter_map(|name| name.parse().ok()).collect();
    segments.sort_unstable();
    let mut history = History::default();
    let first = segments.len().saturating_sub(2);
    for (place, segment) in segments.iter().enumerate().skip(first) {
        let path = segment_path(places, *segment);
        let bytes = files.read(&path).map_err(StoreError::io(&path))?;
        let mut rest = &bytes[..];
        while let Some((note, tail)) = split_frame(rest) {
            let signed = SignedCheckpoint::parse(note).map_err(StoreError::checkpoint(&path))?;
            signed.verify(policy)?;
            if history.newest.len() == 2 {
                history.newest.remove(0);
            }
            history.newest.push(signed);
            rest = tail;
        }
        if !rest.is_empty() && (place + 1 != segments.len() || find_frame(rest)) {
            let reason = "a checkpoint in the middle of the history is damaged".to_owned();
            return Err(StoreError::Damaged { path: path.display().to_string(), reason }.into());
        }
        (history.segment, history.segment_len) = (*segment, (bytes.len() - rest.len()) as u64);
    }
    Ok(history)
}

/// Whether a whole frame stands somewhere in bytes that do not begin with one: then they are no torn tail.
fn find_frame(bytes: &[u8]) -> bool {
    (1..bytes.len())
        .any(|start| bytes[start..].starts_with(b"checkpoint ") && split_frame(&bytes[start..]).is_some())
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
