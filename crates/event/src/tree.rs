//! The Merkle tree under a seal: `rs_merkle` over digests, with nodes hashed in a context of their own, so that no node can pass for
//! a leaf. Its paths show one event or decision run without its neighbours.
//!
//! `rs_merkle`'s verifier takes the leaf count on trust and ignores surplus hashes; here the count comes from the signed seal and the
//! path has to have exactly the right length.

use rs_merkle::{Hasher as _, MerkleProof, MerkleTree};

use crate::digest::{DIGEST_LEN, Digest, Purpose};

#[derive(Clone)]
struct NodeHasher;

impl rs_merkle::Hasher for NodeHasher {
    type Hash = [u8; DIGEST_LEN];

    fn hash(data: &[u8]) -> Self::Hash {
        Purpose::TreeNode.digest(data).0
    }

    fn concat_and_hash(left: &Self::Hash, right: Option<&Self::Hash>) -> Self::Hash {
        match right {
            Some(right) => Purpose::TreeNode.hasher().update(left).update(right).finish().0,
            None => *left,
        }
    }
}

/// Root over the leaves, in order; [`Digest::ZERO`] for none. An odd node moves up unhashed, as in RFC 6962.
///
/// Computed in place: every batch needs it several times, and nobody needs the tree that `rs_merkle` would keep.
pub fn root(leaves: &[Digest]) -> Digest {
    let mut row: Vec<_> = leaves.iter().map(|leaf| leaf.0).collect();
    while row.len() > 1 {
        for parent in 0..row.len().div_ceil(2) {
            row[parent] = NodeHasher::concat_and_hash(&row[2 * parent], row.get(2 * parent + 1));
        }
        row.truncate(row.len().div_ceil(2));
    }
    Digest(row.first().copied().unwrap_or_default())
}

/// Hashes that lead from a leaf to the root, lowest first; `None` if there is no such leaf.
pub fn path(leaves: &[Digest], index: usize) -> Option<Vec<Digest>> {
    if index >= leaves.len() {
        return None;
    }
    let leaves: Vec<_> = leaves.iter().map(|leaf| leaf.0).collect();
    let proof = MerkleTree::<NodeHasher>::from_leaves(&leaves).proof(&[index]);
    Some(proof.proof_hashes().iter().copied().map(Digest).collect())
}

/// Whether the path leads from the leaf at this index, of this many, to the root.
pub fn path_holds(root: Digest, leaf: Digest, index: usize, count: usize, path: &[Digest]) -> bool {
    index < count
        && path.len() == path_len(index, count)
        && MerkleProof::<NodeHasher>::new(path.iter().map(|hash| hash.0).collect()).verify(
            root.0,
            &[index],
            &[leaf.0],
            count,
        )
}

fn path_len(mut index: usize, mut count: usize) -> usize {
    let mut len = 0;
    while count > 1 {
        // The last node of an odd level has no sibling.
        len += usize::from(index % 2 == 1 || index + 1 < count);
        index /= 2;
        count = count.div_ceil(2);
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(count: usize) -> Vec<Digest> {
        (0..count).map(|i| Purpose::Event.digest(&i.to_be_bytes())).collect()
    }

    fn naive_root(leaves: &[Digest]) -> Digest {
        match leaves {
            [] => Digest::ZERO,
            [leaf] => *leaf,
            _ => {
                let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
                Purpose::TreeNode
                    .hasher()
                    .update(naive_root(left).as_ref())
                    .update(naive_root(right).as_ref())
                    .finish()
            }
        }
    }

    #[test]
    fn roots_and_paths_agree_with_the_recursive_definition() {
        for count in 0..70 {
            let leaves = leaves(count);
            let root = root(&leaves);
            assert_eq!(root, naive_root(&leaves), "{count}");
            let raw: Vec<_> = leaves.iter().map(|leaf| leaf.0).collect();
            assert_eq!(
                MerkleTree::<NodeHasher>::from_leaves(&raw).root().unwrap_or_default(),
                root.0,
                "{count}"
            );
            for index in 0..count {
                let mut path = path(&leaves, index).unwrap();
                assert!(path_holds(root, leaves[index], index, count, &path), "{index} of {count}");
                assert!(!path_holds(root, leaves[index], index + 1, count, &path));
                path.push(Digest::ZERO);
                assert!(!path_holds(root, leaves[index], index, count, &path), "surplus hash");
                path.truncate(path.len().saturating_sub(2));
                assert!(count == 1 || !path_holds(root, leaves[index], index, count, &path), "missing hash");
            }
            assert_eq!(path(&leaves, count), None);
        }
    }
}
