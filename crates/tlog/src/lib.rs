//! C2SP transparency-log maths: tree, tiles, proofs, signed notes, checkpoints, cosignatures.
//!
//! Everything here is a function of its arguments: no IO, clock, randomness, async or logging. Callers bring the bytes
//! (through [`TileReader`]), the keys and the time, and store what comes back. Fetching, storing, witnessing over HTTP
//! and key storage are left out.
//!
//! The formats are those of <https://c2sp.org>: tlog-tiles, signed-note, tlog-checkpoint, tlog-cosignature, tlog-proof,
//! tlog-policy and the requests of tlog-witness. Every decoder is bounded and accepts the canonical form only, so that whatever parses encodes back to
//! the same bytes.

mod add_checkpoint;
mod bundle;
mod checkpoint;
mod decimal;
mod hash;
mod key;
mod note;
mod proof;
mod range;
mod tile;
mod tlog_proof;
mod tree;
mod witness_policy;

pub use add_checkpoint::{AddCheckpoint, AddCheckpointError, MAX_PROOF_LINES};
pub use bundle::{
    Bundle, BundleEdge, BundleError, BundleId, BundleIntegration, EntryTooLarge, MAX_ENTRY, bundles_between,
    bundles_for_size, decode_bundle, push_entry,
};
pub use checkpoint::{
    Checkpoint, CheckpointError, Cosigned, MAX_ORIGIN_BYTES, Policy, SignedCheckpoint, TrustError,
    VerifiedCheckpoint,
};
pub use hash::{EMPTY_ROOT, HASH_BYTES, Hash, HashParseError, leaf_hash, node_hash};
pub use key::{Cosigner, KeyError, NoteSigner, SignatureKind, VerifierKey};
pub use note::{
    MAX_NOTE_BYTES, MAX_SIGNATURES, NoteError, NoteSignature, NoteVerifyError, SignedBy, SignedNote, Verified,
};
pub use proof::{
    MAX_PROOF_HASHES, ProofError, ProofInvalid, Prover, consistency_proof, inclusion_proof,
    verify_consistency, verify_inclusion,
};
pub use range::RangeCheck;
pub use tile::{
    LEVELS, PathError, TILE_BYTES, TILE_WIDTH, TileError, TileId, decode_tile, encode_tile, partial_width,
    tiles_between, tiles_for_size,
};
pub use tlog_proof::{MAX_EXTRA_BYTES, TlogProof, TlogProofError, TlogProofInvalid};
pub use tree::{Frontier, Integration, RightEdge, TileReader, TileWrite, TreeReadError};
pub use witness_policy::{LineFault, MAX_POLICY_BYTES, PolicyError, WitnessPolicy};
