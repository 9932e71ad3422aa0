//! Inclusion and consistency proofs (RFC 6962 sections 2.1.1 and 2.1.2): made from tiles, verified from nothing.
//!
//! Whether the root came from a signed checkpoint is the caller's concern. Invariant: a proof that verifies has exactly
//! the length that its index and sizes demand.

use crate::hash::{EMPTY_ROOT, Hash, node_hash};
use crate::tile::{LEVELS, TILE_WIDTH, TileId};
use crate::tree::{TileReader, TreeReadError, complete_root, read_tile};

/// More hashes than this no inclusion or consistency proof in a tree of a 64-bit size has.
pub const MAX_PROOF_HASHES: usize = 65;

/// A proof could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError<E> {
    /// The tree has no such leaf, or no such earlier size: the question is wrong.
    #[error("{asked} is beyond the tree of {size} leaves")]
    OutOfRange {
        /// The index or earlier size asked for.
        asked: u64,
        /// The size of the tree.
        size: u64,
    },
    /// A tile could not be had.
    #[error(transparent)]
    Tree(#[from] TreeReadError<E>),
}

/// A proof does not prove what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofInvalid {
    /// The index is not in the tree, or the old size is above the new one.
    #[error("{asked} is beyond the tree of {size} leaves")]
    OutOfRange {
        /// The index or earlier size.
        asked: u64,
        /// The size of the tree.
        size: u64,
    },
    /// The proof has more or fewer hashes than it must have.
    #[error("the proof has {got} hashes instead of {expected}")]
    Length {
        /// Hashes that it must have.
        expected: usize,
        /// Hashes that it has.
        got: usize,
    },
    /// The proof leads to another root.
    #[error("the proof leads to the root {computed} instead of {expected}")]
    Root {
        /// The root to be reached.
        expected: Hash,
        /// The root that the proof leads to.
        computed: Hash,
    },
}

type Held<T> = Option<(TileId, T)>;

/// Makes proofs in the tree of one size. It keeps the last tiles read (at most two a level), so that the proofs of
/// neighbouring leaves cost few reads.
pub struct Prover<R: TileReader> {
    reader: R,
    size: u64,
    /// Per level: the tile on the right edge, and the last other one.
    tiles: [[Held<R::Tile>; 2]; LEVELS as usize],
}

impl<R: TileReader> Prover<R> {
    /// Proofs in the tree of `size` leaves.
    pub fn new(reader: R, size: u64) -> Self {
        Self { reader, size, tiles: std::array::from_fn(|_| [None, None]) }
    }

    /// The hashes from the leaf's sibling to the root's child that prove the leaf at `index`.
    pub fn inclusion(&mut self, index: u64) -> Result<Vec<Hash>, ProofError<R::Error>> {
        if index >= self.size {
            return Err(ProofError::OutOfRange { asked: index, size: self.size });
        }
        let (mut start, mut end) = (0, self.size);
        let mut proof = Vec::new();
        while end - start > 1 {
            let middle = start + split(end - start);
            if index < middle {
                proof.push(self.range_root(middle, end)?);
                end = middle;
            } else {
                proof.push(self.range_root(start, middle)?);
                start = middle;
            }
        }
        proof.reverse();
        Ok(proof)
    }

    /// The hashes that prove the tree of `old` leaves to be a prefix of this one. Empty if `old` is 0 or the size.
    pub fn consistency(&mut self, old: u64) -> Result<Vec<Hash>, ProofError<R::Error>> {
        if old > self.size {
            return Err(ProofError::OutOfRange { asked: old, size: self.size });
        }
        let mut proof = Vec::new();
        if old == 0 {
            return Ok(proof);
        }
        let (mut start, mut end) = (0, self.size);
        while end != old {
            let middle = start + split(end - start);
            if old <= middle {
                proof.push(self.range_root(middle, end)?);
                end = middle;
            } else {
                proof.push(self.range_root(start, middle)?);
                start = middle;
            }
        }
        // A subtree that starts at 0 is the old tree itself, whose root the verifier has.
        if start > 0 {
            proof.push(self.range_root(start, end)?);
        }
        proof.reverse();
        Ok(proof)
    }

    /// The root over leaves `start..end`, where `start` is a multiple of the largest power of two within the range.
    fn range_root(&mut self, start: u64, end: u64) -> Result<Hash, TreeReadError<R::Error>> {
        let mut peaks = Vec::new();
        let mut start = start;
        while start < end {
            let height = (end - start).ilog2();
            peaks.push(self.node(height, start >> height)?);
            start += 1 << height;
        }
        let root = peaks.into_iter().rev().reduce(|right, left| node_hash(&left, &right));
        Ok(root.expect("a proof asks for no empty range"))
    }

    /// The root of the complete subtree of 2^height leaves at `index` among those of its height.
    fn node(&mut self, height: u32, index: u64) -> Result<Hash, TreeReadError<R::Error>> {
        let level = u8::try_from(height / 8).expect("a height is below 64");
        let width = 1usize << (height % 8);
        let first = index << (height % 8);
        let tile = first / u64::from(TILE_WIDTH);
        let id = TileId::in_tree(level, tile, self.size).expect("a complete subtree lies within the tree");
        let next = TileId::in_tree(level, tile + 1, self.size);
        let slot = &mut self.tiles[usize::from(level)][usize::from(next.is_some())];
        let hashes = match slot {
            Some((held, hashes)) if *held == id => hashes,
            _ => &mut slot.insert((id, read_tile(&self.reader, id)?)).1,
        };
        let from = usize::from(first.to_le_bytes()[0]);
        Ok(complete_root(&hashes.as_ref()[from..from + width]))
    }
}

/// The largest power of two below `leaves`, which are at least 2.
pub(crate) fn split(leaves: u64) -> u64 {
    1 << (leaves - 1).ilog2()
}

/// The inclusion proof of the leaf at `index` in the tree of `size` leaves, from the leaf's sibling upwards.
pub fn inclusion_proof<R: TileReader>(
    index: u64,
    size: u64,
    reader: &R,
) -> Result<Vec<Hash>, ProofError<R::Error>> {
    Prover::new(reader, size).inclusion(index)
}

/// The consistency proof between the trees of `old` and `new` leaves. Empty if `old` is 0 or equals `new`.
pub fn consistency_proof<R: TileReader>(
    old: u64,
    new: u64,
    reader: &R,
) -> Result<Vec<Hash>, ProofError<R::Error>> {
    Prover::new(reader, new).consistency(old)
}

/// Checks that `leaf` is at `index` of the tree of `size` leaves with this root.
pub fn verify_inclusion(
    leaf: &Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
    root: &Hash,
) -> Result<(), ProofInvalid> {
    if index >= size {
        return Err(ProofInvalid::OutOfRange { asked: index, size });
    }
    let (inner, border) = path_lengths(index, size);
    let (inner, border) = split_proof(proof, inner, border)?;
    let node = climb(*leaf, inner, index);
    expect_root(root, climb_border(node, border))
}

/// Checks that the tree of `old_size` leaves with `old_root` is a prefix of the one of `new_size` with `new_root`.
///
/// The empty tree is a prefix of every tree. Its root has to be [`EMPTY_ROOT`].
pub fn verify_consistency(
    old_size: u64,
    old_root: &Hash,
    new_size: u64,
    new_root: &Hash,
    proof: &[Hash],
) -> Result<(), ProofInvalid> {
    if old_size > new_size {
        return Err(ProofInvalid::OutOfRange { asked: old_size, size: new_size });
    }
    if old_size == 0 || old_size == new_size {
        split_proof(proof, 0, 0)?;
        if old_size == 0 {
            expect_root(&EMPTY_ROOT, *old_root)?;
        }
        return if old_size == new_size { expect_root(old_root, *new_root) } else { Ok(()) };
    }
    let (inner, border) = path_lengths(old_size - 1, new_size);
    // The path begins at the largest complete subtree that ends the old tree. If that is the whole old tree, the proof
    // leaves its hash out.
    let skipped = old_size.trailing_zeros();
    let inner = inner - skipped as usize;
    let (seed, rest) = if old_size.is_power_of_two() {
        (*old_root, proof)
    } else {
        match proof.split_first() {
            Some((seed, rest)) => (*seed, rest),
            None => {
                return Err(ProofInvalid::Length { expected: 1 + inner + border, got: 0 });
            }
        }
    };
    let (inner, border) = split_proof(rest, inner, border).map_err(|error| match error {
        ProofInvalid::Length { expected, .. } => {
            ProofInvalid::Length { expected: expected + proof.len() - rest.len(), got: proof.len() }
        }
        other => other,
    })?;
    let path = (old_size - 1) >> skipped;
    // Only the left siblings on the path are part of the old tree.
    let mut old_node = seed;
    for (height, sibling) in inner.iter().enumerate() {
        if (path >> height) & 1 == 1 {
            old_node = node_hash(sibling, &old_node);
        }
    }
    expect_root(old_root, climb_border(old_node, border))?;
    expect_root(new_root, climb_border(climb(seed, inner, path), border))
}

/// How many siblings the path from leaf `index` has below the right edge of the tree, and how many above, where each
/// further one is to the left.
fn path_lengths(index: u64, size: u64) -> (usize, usize) {
    let inner = u64::BITS - (index ^ (size - 1)).leading_zeros();
    let border = index.checked_shr(inner).unwrap_or(0).count_ones();
    (inner as usize, border as usize)
}

fn split_proof(proof: &[Hash], inner: usize, border: usize) -> Result<(&[Hash], &[Hash]), ProofInvalid> {
    if proof.len() != inner + border {
        return Err(ProofInvalid::Length { expected: inner + border, got: proof.len() });
    }
    Ok(proof.split_at(inner))
}

fn climb(node: Hash, siblings: &[Hash], path: u64) -> Hash {
    siblings.iter().enumerate().fold(node, |node, (height, sibling)| {
        if (path >> height) & 1 == 0 { node_hash(&node, sibling) } else { node_hash(sibling, &node) }
    })
}

fn climb_border(node: Hash, siblings: &[Hash]) -> Hash {
    siblings.iter().fold(node, |node, sibling| node_hash(sibling, &node))
}

fn expect_root(expected: &Hash, computed: Hash) -> Result<(), ProofInvalid> {
    if *expected == computed { Ok(()) } else { Err(ProofInvalid::Root { expected: *expected, computed }) }
}
