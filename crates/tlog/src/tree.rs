//! The growing tree: its right edge, and the tiles that each batch of leaves adds (RFC 6962 section 2.1).
//!
//! Storing the tiles and trusting what was read are left out: whoever loads an edge compares its root with a root that
//! was signed. Invariant: the same leaves lead to the same edge, root and tile contents, whatever the batches.

use crate::hash::{EMPTY_ROOT, Hash, node_hash};
use crate::tile::{self, LEVELS, TILE_WIDTH, TileId};

/// Where tiles are read from.
pub trait TileReader {
    /// The hashes of a tile, such as `Vec<Hash>` or `Arc<[Hash]>`.
    type Tile: AsRef<[Hash]>;
    /// Why a tile could not be read.
    type Error;

    /// The hashes of this tile: at least `id.width()`. A reader may return those of a wider version of the tile, for
    /// partial tiles may be gone once a wider one exists; what is beyond the width is ignored.
    fn tile(&self, id: TileId) -> Result<Self::Tile, Self::Error>;
}

impl<R: TileReader> TileReader for &R {
    type Tile = R::Tile;
    type Error = R::Error;

    fn tile(&self, id: TileId) -> Result<Self::Tile, Self::Error> {
        (**self).tile(id)
    }
}

/// A tile could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeReadError<E> {
    /// The reader failed.
    #[error("{id} could not be read")]
    Read {
        /// The tile that was asked for.
        id: TileId,
        /// The reader's error.
        source: E,
    },
    /// The reader returned fewer hashes than the tile holds.
    #[error("{id} has {got} hashes only")]
    Short {
        /// The tile that was asked for.
        id: TileId,
        /// The hashes it returned.
        got: usize,
    },
}

/// Reads a tile and refuses one that is too short.
pub(crate) fn read_tile<R: TileReader>(reader: &R, id: TileId) -> Result<R::Tile, TreeReadError<R::Error>> {
    let tile = reader.tile(id).map_err(|source| TreeReadError::Read { id, source })?;
    let got = tile.as_ref().len();
    if got < usize::from(id.width()) { Err(TreeReadError::Short { id, got }) } else { Ok(tile) }
}

/// The root of the complete subtree over `hashes`, whose number has to be a power of two up to 256.
pub(crate) fn complete_root(hashes: &[Hash]) -> Hash {
    const HALF: usize = TILE_WIDTH as usize / 2;
    assert!(
        hashes.len().is_power_of_two() && hashes.len() <= 2 * HALF,
        "not a complete subtree within a tile"
    );
    if let [only] = hashes {
        return *only;
    }
    let mut row = [Hash([0; 32]); HALF];
    let mut width = hashes.len() / 2;
    for (parent, pair) in row.iter_mut().zip(hashes.chunks_exact(2)) {
        *parent = node_hash(&pair[0], &pair[1]);
    }
    while width > 1 {
        width /= 2;
        for i in 0..width {
            row[i] = node_hash(&row[2 * i], &row[2 * i + 1]);
        }
    }
    row[0]
}

/// The tree as the roots of its complete subtrees, largest first: all that a root needs, at most 64 hashes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

impl Frontier {
    /// The tree without leaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one leaf by its hash.
    pub fn append(&mut self, leaf: Hash) {
        let mut node = leaf;
        // Each trailing one bit of the size is a subtree that the new leaf completes.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                node = node_hash(&left, &node);
            }
        }
        self.peaks.push(node);
        self.size = self.size.checked_add(1).expect("a log of 2^64 entries can't be written");
    }

    /// Leaves in the tree.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root of the tree.
    pub fn root(&self) -> Hash {
        self.peaks.iter().rev().copied().reduce(|right, left| node_hash(&left, &right)).unwrap_or(EMPTY_ROOT)
    }
}

/// The right edge of the tree: the size and the hashes of the partial tile of each level, at most 255 a level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RightEdge {
    size: u64,
    levels: [Vec<Hash>; LEVELS as usize],
}

/// A tile to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TileWrite {
    /// Which one; its width is the number of hashes.
    pub id: TileId,
    /// Its hashes.
    pub hashes: Vec<Hash>,
}

impl TileWrite {
    /// The tile's file content.
    pub fn bytes(&self) -> Vec<u8> {
        tile::encode_tile(&self.hashes)
    }
}

/// What appending leaves leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Integration {
    /// The tiles to write, those of [`tile::tiles_between`] the two sizes in the same order.
    pub tiles: Vec<TileWrite>,
    /// The state after them.
    pub edge: RightEdge,
    /// The root after them.
    pub root: Hash,
}

impl Default for RightEdge {
    fn default() -> Self {
        Self::new()
    }
}

impl RightEdge {
    /// The tree without leaves.
    pub fn new() -> Self {
        Self { size: 0, levels: std::array::from_fn(|_| Vec::new()) }
    }

    /// The edge of a tree of `size` leaves, from its partial tiles (at most one a level is read). Nothing says that the
    /// reader told the truth until [`Self::root`] equals a root that the caller trusts.
    pub fn load<R: TileReader>(size: u64, reader: &R) -> Result<Self, TreeReadError<R::Error>> {
        let mut edge = Self { size, ..Self::new() };
        for (level, hashes) in (0..LEVELS).zip(&mut edge.levels) {
            let width = tile::partial_width(level, size);
            let index = tile::hashes_at(level, size) / u64::from(TILE_WIDTH);
            if let Some(id) = TileId::in_tree(level, index, size) {
                let tile = read_tile(reader, id)?;
                hashes.extend_from_slice(&tile.as_ref()[..usize::from(width)]);
            }
        }
        Ok(edge)
    }

    /// Leaves in the tree.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root of the tree.
    pub fn root(&self) -> Hash {
        let mut root = None;
        for hashes in &self.levels {
            let mut rest = &hashes[..];
            while !rest.is_empty() {
                // The lowest set bit of the width is the smallest, rightmost complete subtree left.
                let smallest = 1 << rest.len().trailing_zeros();
                let (left, subtree) = rest.split_at(rest.len() - smallest);
                let peak = complete_root(subtree);
                root = Some(root.map_or(peak, |right| node_hash(&peak, &right)));
                rest = left;
            }
        }
        root.unwrap_or(EMPTY_ROOT)
    }

    /// The roots of the complete subtrees, from which leaves can be appended one by one.
    pub fn frontier(&self) -> Frontier {
        let mut peaks = Vec::new();
        for hashes in self.levels.iter().rev() {
            let mut rest = &hashes[..];
            while !rest.is_empty() {
                let largest = 1 << rest.len().ilog2();
                let (subtree, right) = rest.split_at(largest);
                peaks.push(complete_root(subtree));
                rest = right;
            }
        }
        Frontier { size: self.size, peaks }
    }

    /// The tiles to write for these further leaves, and the state and root then. The state before is left as it was,
    /// so that it can be kept until the tiles are durable.
    pub fn integrate(&self, leaves: &[Hash]) -> Integration {
        let added = u64::try_from(leaves.len()).ok().and_then(|added| self.size.checked_add(added));
        let mut edge = self.clone();
        edge.size = added.expect("a log of 2^64 entries can't be written");
        let mut tiles = Vec::with_capacity(leaves.len() / usize::from(TILE_WIDTH) + usize::from(LEVELS));
        let mut completed: Vec<Hash>;
        let mut new = leaves;
        for (level, partial) in (0..LEVELS).zip(&mut edge.levels) {
            if new.is_empty() {
                break;
            }
            let mut index = tile::hashes_at(level, self.size) / u64::from(TILE_WIDTH);
            let mut parents = Vec::with_capacity(new.len() / usize::from(TILE_WIDTH) + 1);
            while !new.is_empty() {
                let room = usize::from(TILE_WIDTH) - partial.len();
                let (taken, rest) = new.split_at(room.min(new.len()));
                partial.extend_from_slice(taken);
                new = rest;
                if partial.len() == usize::from(TILE_WIDTH) {
                    parents.push(complete_root(partial));
                    let next = Vec::with_capacity(usize::from(TILE_WIDTH).min(new.len()));
                    tiles.push(write(level, index, std::mem::replace(partial, next)));
                    index += 1;
                }
            }
            if !partial.is_empty() {
                tiles.push(write(level, index, partial.clone()));
            }
            completed = parents;
            new = &completed;
        }
        let root = edge.root();
        Integration { tiles, edge, root }
    }
}

fn write(level: u8, index: u64, hashes: Vec<Hash>) -> TileWrite {
    let id = u16::try_from(hashes.len()).ok().and_then(|width| TileId::new(level, index, width).ok());
    TileWrite { id: id.expect("a tile to write holds 1 to 256 hashes"), hashes }
}
