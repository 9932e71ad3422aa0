//! Checkpoints (tlog-checkpoint): a tree's origin, size and root as the text of a signed note, and the policy by which a
//! signed one is trusted.
//!
//! Whether a checkpoint is consistent with an earlier one is left to [`crate::verify_consistency`]. Invariant: a
//! [`Checkpoint`] has exactly one text.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::decimal;
use crate::hash::{EMPTY_ROOT, Hash};
use crate::key::{Cosigner, MAX_KEY_NAME_BYTES, NoteSigner, VerifierKey};
use crate::note::{NoteError, NoteSignature, NoteVerifyError, SignedNote};

/// The longest origin in bytes, which is also what a tlog-cosignature can commit to.
pub const MAX_ORIGIN_BYTES: usize = MAX_KEY_NAME_BYTES;

/// The head of a log's tree. Text form: the lines origin, size, root, and extensions, each ended by a newline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    origin: String,
    size: u64,
    root: Hash,
    extensions: Vec<String>,
}

/// A text or value that makes no checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The bytes are no signed note.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// Fewer than three lines, an empty line, or no newline at the end.
    #[error("a checkpoint is at least three non-empty lines")]
    Lines,
    /// The origin is empty, longer than [`MAX_ORIGIN_BYTES`] or has a control character.
    #[error("the origin has to have 1 to {MAX_ORIGIN_BYTES} bytes and no control character")]
    Origin,
    /// The size is not a decimal number without leading zeros.
    #[error("the tree size is not a decimal number")]
    Size,
    /// The root is not the base64 of a hash.
    #[error("the root is not the base64 of a hash")]
    Root,
    /// The tree is empty and the root is not that of the empty tree.
    #[error("the root is not that of the empty tree")]
    EmptyTree,
}

impl Checkpoint {
    /// The head of the tree of `size` leaves with this root, of the log known as `origin`.
    pub fn new(origin: impl Into<String>, size: u64, root: Hash) -> Result<Self, CheckpointError> {
        let origin = origin.into();
        if origin.is_empty() || origin.len() > MAX_ORIGIN_BYTES || origin.bytes().any(|byte| byte < b' ') {
            return Err(CheckpointError::Origin);
        }
        if size == 0 && root != EMPTY_ROOT {
            return Err(CheckpointError::EmptyTree);
        }
        Ok(Self { origin, size, root, extensions: Vec::new() })
    }

    /// The log's identity.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Leaves in the tree.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The tree's root.
    pub fn root(&self) -> &Hash {
        &self.root
    }

    /// Further lines, which have no meaning here; they are signed along. Our logs write none.
    pub fn extensions(&self) -> &[String] {
        &self.extensions
    }

    /// Signs as the log. That no inconsistent checkpoint was ever signed is for the caller to ensure first.
    pub fn sign(&self, signer: &NoteSigner) -> SignedCheckpoint {
        let text = self.to_string();
        let signature = signer.sign(&text);
        let note = SignedNote::new(text, vec![signature]).expect("a checkpoint with one signature is a note");
        SignedCheckpoint { checkpoint: self.clone(), note }
    }

    /// The type-04 cosignature at `time`, in seconds since the Unix epoch (at most 2^63 - 1). What it states about the
    /// log is for the caller to have checked.
    pub fn cosign(&self, cosigner: &Cosigner, time: u64) -> NoteSignature {
        cosigner.sign(&self.to_string(), time)
    }
}

impl fmt::Display for Checkpoint {
    /// The note's text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\n{}", self.origin, self.size, self.root)?;
        self.extensions.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl FromStr for Checkpoint {
    type Err = CheckpointError;

    fn from_str(text: &str) -> Result<Self, CheckpointError> {
        let mut lines = text.strip_suffix('\n').ok_or(CheckpointError::Lines)?.split('\n');
        let mut line = || lines.next().filter(|line| !line.is_empty()).ok_or(CheckpointError::Lines);
        let (origin, size, root) = (line()?, line()?, line()?);
        let size = decimal::parse(size).ok_or(CheckpointError::Size)?;
        let root = root.parse().map_err(|_| CheckpointError::Root)?;
        let mut checkpoint = Self::new(origin, size, root)?;
        for extension in lines {
            if extension.is_empty() {
                return Err(CheckpointError::Lines);
            }
            if extension.bytes().any(|byte| byte < b' ') {
                return Err(NoteError::ControlCharacter.into());
            }
            checkpoint.extensions.push(extension.to_owned());
        }
        Ok(checkpoint)
    }
}

/// A checkpoint as a log serves it: with signatures, not yet verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCheckpoint {
    checkpoint: Checkpoint,
    note: SignedNote,
}

/// Whose signatures make a checkpoint trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The log's origin; another origin is refused.
    pub origin: String,
    /// The log's keys, of which at least one has to have signed.
    pub log_keys: Vec<VerifierKey>,
    /// The witnesses' keys.
    pub witnesses: Vec<VerifierKey>,
    /// How many witnesses (by name) have to have signed.
    pub quorum: usize,
}

/// A checkpoint that can't be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// A signature is wrong, or none is by a known key.
    #[error(transparent)]
    Note(#[from] NoteVerifyError),
    /// The checkpoint is another log's.
    #[error("the checkpoint is of {got:?} instead of {expected:?}")]
    Origin {
        /// The origin in the policy.
        expected: String,
        /// The origin in the checkpoint.
        got: String,
    },
    /// None of the log's keys signed it.
    #[error("none of the log's keys signed the checkpoint")]
    NotByLog,
    /// Too few witnesses signed it.
    #[error("{got} witnesses signed the checkpoint, {needed} have to")]
    Quorum {
        /// Witnesses that have to sign.
        needed: usize,
        /// Witnesses that did.
        got: usize,
    },
}

/// A checkpoint that satisfied a [`Policy`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedCheckpoint {
    /// The tree head.
    pub checkpoint: Checkpoint,
    /// The known keys that signed it, the log's and the witnesses', each once.
    pub by: Vec<Cosigned>,
}

/// A known key that signed a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cosigned {
    /// The key.
    pub key: VerifierKey,
    /// For a cosignature its time, in seconds since the Unix epoch.
    pub time: Option<u64>,
}

impl SignedCheckpoint {
    /// Parses a signed checkpoint. Nothing in it may be trusted before [`Self::verify`].
    pub fn parse(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let note = SignedNote::parse(bytes)?;
        let checkpoint = note.text().parse()?;
        Ok(Self { checkpoint, note })
    }

    /// The tree head, not to be trusted before [`Self::verify`].
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The note.
    pub fn note(&self) -> &SignedNote {
        &self.note
    }

    /// Adds a signature, such as [`Checkpoint::cosign`] makes or a witness returns; one by the same key is replaced. It
    /// is not verified.
    pub fn add(&mut self, signature: NoteSignature) -> Result<(), NoteError> {
        self.note.add(signature)
    }

    /// Checks origin and signatures against the policy.
    pub fn verify(&self, policy: &Policy) -> Result<VerifiedCheckpoint, TrustError> {
        if self.checkpoint.origin != policy.origin {
            let (expected, got) = (policy.origin.clone(), self.checkpoint.origin.clone());
            return Err(TrustError::Origin { expected, got });
        }
        let verified = self.note.verify(policy.log_keys.iter().chain(&policy.witnesses))?;
        if !verified.by.iter().any(|signed| policy.log_keys.contains(signed.key)) {
            return Err(TrustError::NotByLog);
        }
        // By name: a witness with two keys is still one witness.
        let witnesses = verified.by.iter().filter(|signed| policy.witnesses.contains(signed.key));
        let got = witnesses.map(|signed| signed.key.name()).collect::<BTreeSet<_>>().len();
        if got < policy.quorum {
            return Err(TrustError::Quorum { needed: policy.quorum, got });
        }
        let by = verified
            .by
            .iter()
            .map(|signed| Cosigned { key: signed.key.clone(), time: signed.time })
            .collect();
        Ok(VerifiedCheckpoint { checkpoint: self.checkpoint.clone(), by })
    }
}

impl fmt::Display for SignedCheckpoint {
    /// The whole note, as it is served and stored.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.note.fmt(f)
    }
}
