//! Proof of a whole range of leaves: the inclusion proofs of its first and its last leaf, and the leaves between them.
//!
//! The left siblings of the first leaf's proof are the tree before the range, the right siblings of the last leaf's the rest of the
//! tree after it. With all leaves of the range they lead to the root, so a leaf that is changed, missing or moved shows. Left out:
//! reading. Invariant: as many hashes are held as a tree has levels.

use crate::{
    hash::{EMPTY_ROOT, Hash, node_hash},
    proof::{ProofInvalid, split},
};

/// The check of one range, leaf by leaf.
#[derive(Clone, Debug)]
pub struct RangeCheck {
    size: u64,
    next: u64,
    before: Hash,
    /// Heights and roots of the complete subtrees that make up the leaves before `next`, largest first.
    peaks: Vec<(u32, Hash)>,
}

impl RangeCheck {
    /// Begins at the leaf `first` of the tree of `size` leaves, whose inclusion proof this is.
    pub fn new(size: u64, first: u64, proof: &[Hash]) -> Result<Self, ProofInvalid> {
        let siblings = siblings(size, first, proof)?;
        let peaks: Vec<_> =
            siblings.filter(|(right, ..)| !right).map(|(_, height, hash)| (height, hash)).collect();
        Ok(Self { size, next: first, before: fold(&peaks), peaks })
    }

    /// The next leaf.
    pub fn push(&mut self, leaf: Hash) {
        let (mut height, mut hash) = (0, leaf);
        while let Some((_, left)) = self.peaks.pop_if(|(last, _)| *last == height) {
            hash = node_hash(&left, &hash);
            height += 1;
        }
        self.peaks.push((height, hash));
        self.next += 1;
    }

    /// The index of the next leaf.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Root of the tree of the leaves before the range, if the range turns out to be right.
    pub fn before(&self) -> Hash {
        self.before
    }

    /// Root of the tree of the leaves up to the last one that was pushed, if the range turns out to be right.
    pub fn after(&self) -> Hash {
        fold(&self.peaks)
    }

    /// The root of the whole tree, given the inclusion proof of the last leaf that was pushed.
    pub fn root(&self, proof_of_last: &[Hash]) -> Result<Hash, ProofInvalid> {
        let last = self.next.saturating_sub(1);
        let siblings = siblings(self.size, last, proof_of_last)?;
        let mut rest = siblings.filter(|(right, ..)| *right).map(|(.., hash)| hash);
        Ok(self.join(0, self.size, &self.peaks, &mut rest))
    }

    /// The root over `start..end`, of which these peaks are the leaves up to `next`, and `rest` the siblings after them, highest first.
    fn join(
        &self,
        start: u64,
        end: u64,
        peaks: &[(u32, Hash)],
        rest: &mut impl Iterator<Item = Hash>,
    ) -> Hash {
        let Some((first, others)) = peaks.split_first().filter(|_| end > self.next) else {
            return fold(peaks);
        };
        let middle = start + split(end - start);
        if self.next <= middle {
            let right = rest.next().unwrap_or(EMPTY_ROOT);
            node_hash(&self.join(start, middle, peaks, rest), &right)
        } else {
            node_hash(&first.1, &self.join(middle, end, others, rest))
        }
    }
}

/// The siblings that an inclusion proof names, highest first: whether it is to the right, height of the subtree, hash.
fn siblings(
    size: u64,
    index: u64,
    proof: &[Hash],
) -> Result<impl Iterator<Item = (bool, u32, Hash)>, ProofInvalid> {
    if index >= size {
        return Err(ProofInvalid::OutOfRange { asked: index, size });
    }
    let (mut start, mut end) = (0, size);
    let mut path = Vec::new();
    while end - start > 1 {
        let width = split(end - start);
        let right = index < start + width;
        path.push((right, width.ilog2()));
        if right {
            end = start + width;
        } else {
            start += width;
        }
    }
    if path.len() != proof.len() {
        return Err(ProofInvalid::Length { expected: path.len(), got: proof.len() });
    }
    Ok(path.into_iter().zip(proof.iter().rev()).map(|((right, height), hash)| (right, height, *hash)))
}

fn fold(peaks: &[(u32, Hash)]) -> Hash {
    let hashes = peaks.iter().rev().map(|(_, hash)| *hash);
    hashes.reduce(|right, left| node_hash(&left, &right)).unwrap_or(EMPTY_ROOT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RightEdge, TileId, inclusion_proof, leaf_hash};
    use std::{collections::BTreeMap, convert::Infallible};

    struct Tiles(BTreeMap<TileId, Vec<Hash>>);

    impl crate::TileReader for Tiles {
        type Tile = Vec<Hash>;
        type Error = Infallible;

        fn tile(&self, id: TileId) -> Result<Vec<Hash>, Infallible> {
            Ok(self.0[&id].clone())
        }
    }

    fn tree(leaves: &[Hash]) -> (Hash, Tiles) {
        let tree = RightEdge::new().integrate(leaves);
        (tree.root, Tiles(tree.tiles.into_iter().map(|tile| (tile.id, tile.hashes)).collect()))
    }

    fn leaves(size: u64) -> Vec<Hash> {
        (0..size).map(|n| leaf_hash(&n.to_be_bytes())).collect()
    }

    #[test]
    fn every_range_of_every_small_tree_leads_to_the_root_and_to_those_of_its_ends() {
        let all = leaves(40);
        let roots: Vec<_> = (0..=40).map(|size| tree(&all[..size]).0).collect();
        for size in 1..=40 {
            let (root, tiles) = tree(&all[..size]);
            let proof = |index: usize| inclusion_proof(index as u64, size as u64, &tiles).unwrap();
            for first in 0..size {
                let mut check = RangeCheck::new(size as u64, first as u64, &proof(first)).unwrap();
                assert_eq!(check.before(), roots[first]);
                for end in first + 1..=size {
                    check.push(all[end - 1]);
                    assert_eq!(check.root(&proof(end - 1)).unwrap(), root, "{first}..{end} of {size}");
                    assert_eq!((check.after(), check.next()), (roots[end], end as u64));
                }
            }
        }
    }

    #[test]
    fn a_leaf_changed_missing_or_swapped_leads_elsewhere() {
        let (all, first, end) = (leaves(300), 37, 290);
        let (root, tiles) = tree(&all);
        let proof = |index: usize| inclusion_proof(index as u64, 300, &tiles).unwrap();
        let run = |range: &[Hash]| {
            let mut check = RangeCheck::new(300, first as u64, &proof(first)).unwrap();
            for leaf in range {
                check.push(*leaf);
            }
            check.root(&proof(end - 1))
        };
        let range = all[first..end].to_vec();
        assert_eq!(run(&range), Ok(root));
        for at in 0..range.len() {
            let mut changed = range.clone();
            changed[at].0[0] ^= 1;
            assert_ne!(run(&changed), Ok(root), "{at}");
            let mut missing = range.clone();
            missing.remove(at);
            assert_ne!(run(&missing), Ok(root), "{at}");
        }
        let mut swapped = range.clone();
        swapped.swap(3, 200);
        assert_ne!(run(&swapped), Ok(root));
        // Hashes of the proofs are part of it.
        let mut proof_of_first = proof(first);
        for at in 0..proof_of_first.len() {
            proof_of_first[at].0[0] ^= 1;
            let mut check = RangeCheck::new(300, first as u64, &proof_of_first).unwrap();
            for leaf in &range {
                check.push(*leaf);
            }
            let is_left = siblings(300, 37, &proof(37)).unwrap().collect::<Vec<_>>();
            let right = is_left[is_left.len() - 1 - at].0;
            assert_eq!(check.root(&proof(end - 1)) == Ok(root), right, "{at}");
            proof_of_first[at].0[0] ^= 1;
        }
        assert!(RangeCheck::new(300, 37, &proof(37)[1..]).is_err());
        assert!(RangeCheck::new(300, 300, &proof(37)).is_err());
    }
}
