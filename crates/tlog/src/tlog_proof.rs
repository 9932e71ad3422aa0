//! Self-contained proofs that an entry is in a log (tlog-proof): the inclusion proof and the signed checkpoint in one
//! text file.
//!
//! Invariant: what was parsed encodes back to the same bytes.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::checkpoint::{CheckpointError, Policy, SignedCheckpoint, TrustError, VerifiedCheckpoint};
use crate::decimal;
use crate::hash::{Hash, leaf_hash};
use crate::note::MAX_NOTE_BYTES;
use crate::proof::{MAX_PROOF_HASHES, ProofInvalid, verify_inclusion};

/// The most extra data in bytes.
pub const MAX_EXTRA_BYTES: usize = 65_536;

/// The first line of a proof.
const HEADER: &str = "c2sp.org/tlog-proof@v1";

/// The longest proof in bytes: its lines before the checkpoint, generously, and the checkpoint.
const MAX_PROOF_BYTES: usize = MAX_EXTRA_BYTES * 4 / 3 + MAX_PROOF_HASHES * 45 + 256 + MAX_NOTE_BYTES;

/// A proof that an entry is at an index of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlogProof {
    extra: Vec<u8>,
    index: u64,
    hashes: Vec<Hash>,
    checkpoint: SignedCheckpoint,
}

/// The bytes are no proof, or one beyond the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TlogProofError {
    /// The proof is longer than the longest there can be.
    #[error("the proof is too long")]
    TooLarge,
    /// The proof is not UTF-8.
    #[error("the proof is not UTF-8")]
    Encoding,
    /// The first line is not `c2sp.org/tlog-proof@v1`.
    #[error("not a c2sp.org/tlog-proof@v1")]
    Header,
    /// The extra data is empty, too long or not base64.
    #[error("the extra data is not 1 to {MAX_EXTRA_BYTES} bytes in base64")]
    Extra,
    /// The index line is missing or not a decimal number.
    #[error("the index is not a decimal number")]
    Index,
    /// A line of the inclusion proof is no hash, or no blank line ends them.
    #[error("hash {line} of the inclusion proof is malformed")]
    Hash {
        /// Which one, from 0.
        line: usize,
    },
    /// There are more than [`MAX_PROOF_HASHES`].
    #[error("the inclusion proof has more than {MAX_PROOF_HASHES} hashes")]
    TooManyHashes,
    /// What follows is no signed checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// The proof does not prove that the entry is in the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlogProofInvalid {
    /// The checkpoint can't be trusted.
    #[error(transparent)]
    Checkpoint(#[from] TrustError),
    /// The entry is not the one at the index of the checkpoint's tree.
    #[error(transparent)]
    Inclusion(#[from] ProofInvalid),
}

impl TlogProof {
    /// The proof that the leaf at `index` is in the checkpoint's tree, by the hashes of its inclusion proof. `extra` is
    /// carried along without being authenticated; empty means none.
    pub fn new(
        index: u64,
        hashes: Vec<Hash>,
        checkpoint: SignedCheckpoint,
        extra: Vec<u8>,
    ) -> Result<Self, TlogProofError> {
        if extra.len() > MAX_EXTRA_BYTES {
            return Err(TlogProofError::Extra);
        }
        if hashes.len() > MAX_PROOF_HASHES {
            return Err(TlogProofError::TooManyHashes);
        }
        Ok(Self { extra, index, hashes, checkpoint })
    }

    /// Parses a proof. Nothing in it may be trusted before [`Self::verify`].
    pub fn parse(bytes: &[u8]) -> Result<Self, TlogProofError> {
        if bytes.len() > MAX_PROOF_BYTES {
            return Err(TlogProofError::TooLarge);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| TlogProofError::Encoding)?;
        let mut rest = text;
        let mut line = || {
            let (line, tail) = rest.split_once('\n')?;
            rest = tail;
            Some(line)
        };
        if line() != Some(HEADER) {
            return Err(TlogProofError::Header);
        }
        let mut index_line = line().ok_or(TlogProofError::Index)?;
        let mut extra = Vec::new();
        if let Some(base64) = index_line.strip_prefix("extra ") {
            extra = STANDARD.decode(base64).map_err(|_| TlogProofError::Extra)?;
            if extra.is_empty() {
                return Err(TlogProofError::Extra);
            }
            index_line = line().ok_or(TlogProofError::Index)?;
        }
        let index =
            index_line.strip_prefix("index ").and_then(decimal::parse).ok_or(TlogProofError::Index)?;
        let mut hashes = Vec::new();
        loop {
            let malformed = TlogProofError::Hash { line: hashes.len() };
            match line().ok_or(malformed)? {
                "" => break,
                _ if hashes.len() == MAX_PROOF_HASHES => return Err(TlogProofError::TooManyHashes),
                hash => hashes.push(hash.parse().map_err(|_| malformed)?),
            }
        }
        let checkpoint = SignedCheckpoint::parse(rest.as_bytes())?;
        Self::new(index, hashes, checkpoint, extra)
    }

    /// The leaf's index, not to be trusted before [`Self::verify`].
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The inclusion proof, from the leaf's sibling upwards.
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// The checkpoint, not to be trusted before [`Self::verify`].
    pub fn checkpoint(&self) -> &SignedCheckpoint {
        &self.checkpoint
    }

    /// The extra data, never to be trusted: nothing authenticates it.
    pub fn extra(&self) -> &[u8] {
        &self.extra
    }

    /// Checks that this entry is at [`Self::index`] of a log that the policy trusts, and returns its checkpoint.
    pub fn verify(&self, entry: &[u8], policy: &Policy) -> Result<VerifiedCheckpoint, TlogProofInvalid> {
        let verified = self.checkpoint.verify(policy)?;
        let head = &verified.checkpoint;
        verify_inclusion(&leaf_hash(entry), self.index, head.size(), &self.hashes, head.root())?;
        Ok(verified)
    }
}

impl fmt::Display for TlogProof {
    /// The whole proof, as it is stored with the extension `.tlog-proof`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}")?;
        if !self.extra.is_empty() {
            writeln!(f, "extra {}", STANDARD.encode(&self.extra))?;
        }
        writeln!(f, "index {}", self.index)?;
        self.hashes.iter().try_for_each(|hash| writeln!(f, "{hash}"))?;
        write!(f, "\n{}", self.checkpoint)
    }
}
