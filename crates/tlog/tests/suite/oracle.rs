//! The definitions of RFC 6962 section 2.1 word by word, and stores of tiles and keys for the tests. Slow and plain: it
//! shares nothing with the code under test but the `Hash` type.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use exchequer_tlog::{Hash, TileId, TileReader, TileWrite};
use sha2::{Digest, Sha256};

fn sha256(parts: &[&[u8]]) -> Hash {
    Hash(Sha256::digest(parts.concat()).into())
}

pub(crate) fn leaf(index: u64) -> Hash {
    sha256(&[&[0], entry(index).as_bytes()])
}

pub(crate) fn entry(index: u64) -> String {
    format!("entry {index}")
}

pub(crate) fn leaves(size: u64) -> Vec<Hash> {
    (0..size).map(leaf).collect()
}

/// k, the largest power of two smaller than n.
fn k(n: usize) -> usize {
    let mut k = 1;
    while 2 * k < n {
        k *= 2;
    }
    k
}

/// MTH(D), where `d` are the leaf hashes.
pub(crate) fn mth(d: &[Hash]) -> Hash {
    match d {
        [] => sha256(&[]),
        [only] => *only,
        _ => {
            let (left, right) = d.split_at(k(d.len()));
            sha256(&[&[1], &mth(left).0, &mth(right).0])
        }
    }
}

/// PATH(m, D).
pub(crate) fn path(m: usize, d: &[Hash]) -> Vec<Hash> {
    if d.len() == 1 {
        return Vec::new();
    }
    let (left, right) = d.split_at(k(d.len()));
    let (mut path, sibling) =
        if m < left.len() { (path(m, left), mth(right)) } else { (path(m - left.len(), right), mth(left)) };
    path.push(sibling);
    path
}

/// PROOF(m, D), and nothing for the empty tree.
pub(crate) fn proof(m: usize, d: &[Hash]) -> Vec<Hash> {
    if m == 0 { Vec::new() } else { subproof(m, d, true) }
}

fn subproof(m: usize, d: &[Hash], b: bool) -> Vec<Hash> {
    if m == d.len() {
        return if b { Vec::new() } else { vec![mth(d)] };
    }
    let (left, right) = d.split_at(k(d.len()));
    let (mut proof, sibling) = if m <= left.len() {
        (subproof(m, left, b), mth(right))
    } else {
        (subproof(m - left.len(), right, false), mth(left))
    };
    proof.push(sibling);
    proof
}

/// Tiles by place. A wider version replaces a narrower one, as on a log that drops partial tiles.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Tiles(pub(crate) BTreeMap<(u8, u64), Vec<Hash>>);

impl Tiles {
    pub(crate) fn write(&mut self, tiles: Vec<TileWrite>) {
        for tile in tiles {
            self.0.insert((tile.id.level(), tile.id.index()), tile.hashes);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such tile")]
pub(crate) struct Missing;

impl TileReader for Tiles {
    type Tile = Vec<Hash>;
    type Error = Missing;

    fn tile(&self, id: TileId) -> Result<Vec<Hash>, Missing> {
        self.0.get(&(id.level(), id.index())).cloned().ok_or(Missing)
    }
}

pub(crate) fn signing_key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}
