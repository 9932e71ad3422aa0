//! Inclusion and consistency proofs: the oracle's, and nothing else verifies.

use std::sync::LazyLock;

use exchequer_tlog::{
    EMPTY_ROOT, Hash, ProofError, ProofInvalid, Prover, RightEdge, consistency_proof, inclusion_proof,
    verify_consistency, verify_inclusion,
};
use proptest::prelude::*;

use crate::oracle::{self, Tiles, leaves, mth};

fn tree(size: u64) -> (Vec<Hash>, Tiles) {
    let leaves = leaves(size);
    let mut tiles = Tiles::default();
    tiles.write(RightEdge::new().integrate(&leaves).tiles);
    (leaves, tiles)
}

static LARGE: LazyLock<(Vec<Hash>, Tiles)> = LazyLock::new(|| tree(5000));

fn at(index: u64) -> usize {
    usize::try_from(index).unwrap()
}

/// Every proof of one changed hash, one hash less or one more.
fn mutations(proof: &[Hash]) -> Vec<Vec<Hash>> {
    let mut all = Vec::new();
    for i in 0..proof.len() {
        let mut changed = proof.to_vec();
        changed[i].0[i % 32] ^= 0x40;
        all.push(changed);
        let mut shorter = proof.to_vec();
        shorter.remove(i);
        all.push(shorter);
    }
    for extra in [EMPTY_ROOT, *proof.last().unwrap_or(&EMPTY_ROOT)] {
        all.push([proof, &[extra]].concat());
        all.push([&[extra], proof].concat());
    }
    all
}

#[test]
fn every_inclusion_proof_of_a_small_tree_is_the_oracles_and_no_other_verifies() {
    // One store, grown beyond the sizes asked for: what is right of a size must not matter.
    let (all, tiles) = tree(300);
    for size in 1..=70u64 {
        let leaves = &all[..at(size)];
        let root = mth(leaves);
        let mut prover = Prover::new(&tiles, size);
        for index in 0..size {
            let leaf = &leaves[at(index)];
            let proof = inclusion_proof(index, size, &tiles).unwrap();
            assert_eq!(proof, oracle::path(at(index), leaves));
            assert_eq!(prover.inclusion(index).unwrap(), proof);
            assert_eq!(verify_inclusion(leaf, index, size, &proof, &root), Ok(()));

            for mutated in mutations(&proof) {
                verify_inclusion(leaf, index, size, &mutated, &root).unwrap_err();
            }
            for other in (0..size).filter(|other| *other != index) {
                verify_inclusion(leaf, other, size, &proof, &root).unwrap_err();
                verify_inclusion(&leaves[at(other)], index, size, &proof, &root).unwrap_err();
            }
            verify_inclusion(leaf, index, size, &proof, &EMPTY_ROOT).unwrap_err();
        }
    }
}

#[test]
fn every_consistency_proof_of_a_small_tree_is_the_oracles_and_no_other_verifies() {
    let (all, tiles) = tree(300);
    let roots: Vec<_> = (0..=70).map(|size| mth(&all[..size])).collect();
    for new in 0..=70u64 {
        for old in 0..=new {
            let proof = consistency_proof(old, new, &tiles).unwrap();
            assert_eq!(proof, oracle::proof(at(old), &all[..at(new)]));
            let (old_root, new_root) = (roots[at(old)], roots[at(new)]);
            assert_eq!(verify_consistency(old, &old_root, new, &new_root, &proof), Ok(()));

            for mutated in mutations(&proof) {
                verify_consistency(old, &old_root, new, &new_root, &mutated).unwrap_err();
            }
            let forged = Hash([9; 32]);
            verify_consistency(old, &forged, new, &new_root, &proof).unwrap_err();
            if old > 0 {
                verify_consistency(old, &old_root, new, &forged, &proof).unwrap_err();
            }
        }
    }
}

#[test]
fn the_empty_tree_proves_nothing_and_is_a_prefix_of_all() {
    let (all, tiles) = tree(5);
    let root = mth(&all);
    assert_eq!(inclusion_proof(0, 0, &tiles), Err(ProofError::OutOfRange { asked: 0, size: 0 }));
    let refused = verify_inclusion(&all[0], 0, 0, &[], &EMPTY_ROOT);
    assert_eq!(refused, Err(ProofInvalid::OutOfRange { asked: 0, size: 0 }));
    assert_eq!(verify_consistency(0, &EMPTY_ROOT, 5, &root, &[]), Ok(()));
    assert_eq!(verify_consistency(0, &EMPTY_ROOT, 0, &EMPTY_ROOT, &[]), Ok(()));
    let expected = Err(ProofInvalid::Length { expected: 0, got: 1 });
    assert_eq!(verify_consistency(0, &EMPTY_ROOT, 5, &root, &[root]), expected);
    let expected = Err(ProofInvalid::Root { expected: EMPTY_ROOT, computed: root });
    assert_eq!(verify_consistency(0, &root, 5, &root, &[]), expected);
    assert_eq!(verify_consistency(0, &EMPTY_ROOT, 0, &root, &[]), expected);
    verify_consistency(0, &root, 0, &root, &[]).unwrap_err();
}

#[test]
fn a_question_beyond_the_tree_is_refused() {
    let (all, tiles) = tree(5);
    assert_eq!(inclusion_proof(5, 5, &tiles), Err(ProofError::OutOfRange { asked: 5, size: 5 }));
    assert_eq!(consistency_proof(6, 5, &tiles), Err(ProofError::OutOfRange { asked: 6, size: 5 }));
    let refused = verify_consistency(6, &all[0], 5, &all[0], &[]);
    assert_eq!(refused, Err(ProofInvalid::OutOfRange { asked: 6, size: 5 }));
    assert!(matches!(inclusion_proof(0, 900, &tiles), Err(ProofError::Tree(_))));
}

#[test]
fn the_length_of_a_proof_is_checked_before_any_hash() {
    let (all, tiles) = tree(9);
    let root = mth(&all);
    let refused = verify_consistency(6, &root, 9, &root, &[]);
    assert_eq!(refused, Err(ProofInvalid::Length { expected: 4, got: 0 }));
    let proof = consistency_proof(6, 9, &tiles).unwrap();
    assert_eq!(proof.len(), 4);
    let refused = verify_consistency(6, &root, 9, &root, &proof[..3]);
    assert_eq!(refused, Err(ProofInvalid::Length { expected: 4, got: 3 }));
    let refused = verify_inclusion(&root, u64::MAX - 1, u64::MAX, &[], &root);
    assert!(matches!(refused, Err(ProofInvalid::Length { got: 0, .. })));
    let refused = verify_consistency(u64::MAX - 1, &root, u64::MAX, &root, &[root; 70]);
    assert!(matches!(refused, Err(ProofInvalid::Length { got: 70, .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_proof_in_a_larger_tree_is_the_oracles(size in 1u64..=5000, seeds in prop::collection::vec(any::<u64>(), 1..6)) {
        let (all, tiles) = &*LARGE;
        let leaves = &all[..at(size)];
        let root = mth(leaves);
        let mut prover = Prover::new(tiles, size);
        for seed in seeds {
            let index = seed % size;
            let proof = prover.inclusion(index).unwrap();
            prop_assert_eq!(&proof, &oracle::path(at(index), leaves));
            prop_assert_eq!(verify_inclusion(&leaves[at(index)], index, size, &proof, &root), Ok(()));

            let old = seed % (size + 1);
            let proof = prover.consistency(old).unwrap();
            prop_assert_eq!(&proof, &oracle::proof(at(old), leaves));
            let old_root = mth(&leaves[..at(old)]);
            prop_assert_eq!(verify_consistency(old, &old_root, size, &root, &proof), Ok(()));
        }
    }

    #[test]
    fn verifying_random_proofs_never_panics(
        numbers in any::<(u64, u64)>(),
        shift in 0u32..64,
        proof in prop::collection::vec(any::<[u8; 32]>().prop_map(Hash), 0..70),
        root in any::<[u8; 32]>().prop_map(Hash),
    ) {
        let (a, b) = (numbers.0 >> shift, numbers.1 >> shift);
        prop_assert!(verify_inclusion(&EMPTY_ROOT, a, b, &proof, &root).is_err());
        prop_assert!(verify_consistency(a.max(1), &EMPTY_ROOT, b, &root, &proof).is_err());
    }
}
