//! What a log asks a witness (tlog-witness, "add-checkpoint"): the body of the request.
//!
//! What the witness decides, and HTTP, are left out. Invariant: at most [`MAX_PROOF_LINES`] hashes are taken, and what was parsed
//! encodes back to the same bytes.

use std::fmt;

use crate::checkpoint::{CheckpointError, SignedCheckpoint};
use crate::decimal;
use crate::hash::{Hash, HashParseError};

/// The most hashes that a request may carry.
pub const MAX_PROOF_LINES: usize = 63;

/// A request for a cosignature: the checkpoint, and the proof that it continues the size that the witness is thought to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddCheckpoint {
    /// Size of the newest tree that the witness cosigned, as far as the log knows; 0 for none.
    pub old: u64,
    /// Consistency proof from that size; empty if it is 0 or the checkpoint's.
    pub proof: Vec<Hash>,
    /// The checkpoint, not to be trusted before its signatures were checked.
    pub signed: SignedCheckpoint,
}

/// Bytes that are no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddCheckpointError {
    /// The first line is not `old` and a decimal number.
    #[error("the first line has to be `old` and a decimal number")]
    Old,
    /// There are more than [`MAX_PROOF_LINES`] hashes.
    #[error("more than {MAX_PROOF_LINES} proof lines")]
    TooManyLines,
    /// A proof line is not the base64 of a hash.
    #[error("proof line {line} is not the base64 of a hash")]
    ProofLine {
        /// Which one, from 0.
        line: usize,
    },
    /// No blank line ends the proof.
    #[error("no blank line ends the proof")]
    NoCheckpoint,
    /// What follows the blank line is no signed checkpoint.
    #[error("checkpoint: {0}")]
    Checkpoint(#[from] CheckpointError),
}

impl AddCheckpoint {
    /// Parses a request's body. The caller bounds its length.
    pub fn parse(bytes: &[u8]) -> Result<Self, AddCheckpointError> {
        let mut rest = bytes;
        let mut line = || {
            let end = rest.iter().position(|byte| *byte == b'\n')?;
            let line = std::str::from_utf8(&rest[..end]);
            rest = &rest[end + 1..];
            // A line that is no text is none of the lines that may stand here.
            Some(line.unwrap_or("?"))
        };
        let old = line().and_then(|line| decimal::parse(line.strip_prefix("old ")?));
        let old = old.ok_or(AddCheckpointError::Old)?;
        let mut proof = Vec::new();
        loop {
            match line() {
                None => return Err(AddCheckpointError::NoCheckpoint),
                Some("") => break,
                Some(_) if proof.len() == MAX_PROOF_LINES => return Err(AddCheckpointError::TooManyLines),
                Some(hash) => {
                    let wrong = |_: HashParseError| AddCheckpointError::ProofLine { line: proof.len() };
                    let hash = hash.parse().map_err(wrong)?;
                    proof.push(hash);
                }
            }
        }
        Ok(Self { old, proof, signed: SignedCheckpoint::parse(rest)? })
    }
}

impl fmt::Display for AddCheckpoint {
    /// The request's body.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "old {}", self.old)?;
        self.proof.iter().try_for_each(|hash| writeln!(f, "{hash}"))?;
        write!(f, "\n{}", self.signed)
    }
}
