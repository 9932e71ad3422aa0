//! Tiles of the Merkle tree (tlog-tiles, "Merkle Tree"): their identity, path, width and bytes.
//!
//! A tile of level `l` holds up to 256 consecutive hashes of complete subtrees of 256^l leaves. Reading and writing
//! tiles is left out. Invariant: a [`TileId`] names a tile that the format allows, so its path is always canonical.

use std::fmt;
use std::str::FromStr;

use crate::decimal;
use crate::hash::{HASH_BYTES, Hash};

/// Hashes in a full tile.
pub const TILE_WIDTH: u16 = 256;

/// Bytes of a full tile.
pub const TILE_BYTES: usize = TILE_WIDTH as usize * HASH_BYTES;

/// Levels that a tree of a 64-bit size can fill.
pub const LEVELS: u8 = 8;

/// The highest level that a path may name.
const MAX_LEVEL: u8 = 63;

/// Longer than any canonical path (`tile/entries/` and the seven groups of a 64-bit index, and `.p/255`).
pub(crate) const MAX_PATH_BYTES: usize = 64;

/// The identity of a tile: its level, its index within the level and how many hashes it holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TileId {
    level: u8,
    index: u64,
    width: u16,
}

/// A level, width or path that names no tile or bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The level is above 63.
    #[error("the level is above 63")]
    Level,
    /// The width is 0 or above 256.
    #[error("the width is not between 1 and 256")]
    Width,
    /// The path is not the canonical path of a tile or bundle.
    #[error("not the canonical path of a tile or entry bundle")]
    Malformed,
}

/// The bytes of a tile do not have the length of its width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a tile of {width} hashes has {got} bytes")]
pub struct TileError {
    /// Hashes that the tile should hold.
    pub width: u16,
    /// Bytes that it has.
    pub got: usize,
}

impl TileId {
    /// The tile of `width` hashes (1 to 256) at `index` of `level` (0 to 63).
    pub fn new(level: u8, index: u64, width: u16) -> Result<Self, PathError> {
        if level > MAX_LEVEL {
            return Err(PathError::Level);
        }
        check_width(width)?;
        Ok(Self { level, index, width })
    }

    /// The tile at `index` of `level` as wide as it is in a tree of `size` leaves; `None` if it is empty there.
    pub fn in_tree(level: u8, index: u64, size: u64) -> Option<Self> {
        let width = width_at(index, hashes_at(level, size))?;
        Some(Self { level, index, width })
    }

    /// The level; at level 0 a tile holds leaf hashes.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// The index within the level.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The number of hashes, 1 to 256.
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Whether the tile holds all of its 256 hashes, and so never changes again.
    pub fn is_full(&self) -> bool {
        self.width == TILE_WIDTH
    }
}

/// Hashes at `level` of a tree of `size` leaves, over all tiles of that level.
pub(crate) fn hashes_at(level: u8, size: u64) -> u64 {
    size.checked_shr(8 * u32::from(level)).unwrap_or(0)
}

/// The width of tile `index` where its level has `hashes` in all.
pub(crate) fn width_at(index: u64, hashes: u64) -> Option<u16> {
    let full = hashes / u64::from(TILE_WIDTH);
    let rest = u16::from(hashes.to_le_bytes()[0]);
    match index {
        _ if index < full => Some(TILE_WIDTH),
        _ if index == full && rest > 0 => Some(rest),
        _ => None,
    }
}

pub(crate) fn check_width(width: u16) -> Result<(), PathError> {
    if (1..=TILE_WIDTH).contains(&width) { Ok(()) } else { Err(PathError::Width) }
}

/// The width of the partial tile of `level` in a tree of `size` leaves; 0 if there is none.
pub fn partial_width(level: u8, size: u64) -> u16 {
    u16::from(hashes_at(level, size).to_le_bytes()[0])
}

/// Every tile of a tree of `size` leaves, level by level, the partial one of each level last.
pub fn tiles_for_size(size: u64) -> impl Iterator<Item = TileId> {
    tiles_between(0, size)
}

/// The tiles to write when a tree of `old` leaves grows to `new`: each that a tree of `old` lacks or has narrower.
/// Nothing if `new` is not greater.
pub fn tiles_between(old: u64, new: u64) -> impl Iterator<Item = TileId> {
    (0..LEVELS).flat_map(move |level| {
        widths_between(hashes_at(level, old), hashes_at(level, new)).map(move |(index, width)| TileId {
            level,
            index,
            width,
        })
    })
}

/// Index and width of each tile that changes when a level grows from `old` to `new` hashes.
pub(crate) fn widths_between(old: u64, new: u64) -> impl Iterator<Item = (u64, u16)> {
    let width = u64::from(TILE_WIDTH);
    let first = old / width;
    let end = if old < new { new.div_ceil(width) } else { first };
    (first..end).filter_map(move |index| Some((index, width_at(index, new)?)))
}

/// The bytes of a tile of these hashes.
pub fn encode_tile(hashes: &[Hash]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(hashes.len() * HASH_BYTES);
    for hash in hashes {
        bytes.extend_from_slice(&hash.0);
    }
    bytes
}

/// The hashes of a tile of `width` hashes. The length has to be exact.
pub fn decode_tile(bytes: &[u8], width: u16) -> Result<Vec<Hash>, TileError> {
    if bytes.len() != usize::from(width) * HASH_BYTES {
        return Err(TileError { width, got: bytes.len() });
    }
    let (hashes, _) = bytes.as_chunks::<HASH_BYTES>();
    Ok(hashes.iter().copied().map(Hash).collect())
}

impl fmt::Display for TileId {
    /// The path under the log's prefix, such as `tile/0/x001/x234/067.p/5`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tile/{}/", self.level)?;
        write_place(f, self.index, self.width)
    }
}

impl FromStr for TileId {
    type Err = PathError;

    fn from_str(path: &str) -> Result<Self, PathError> {
        if path.len() > MAX_PATH_BYTES {
            return Err(PathError::Malformed);
        }
        let rest = path.strip_prefix("tile/").ok_or(PathError::Malformed)?;
        let (level, place) = rest.split_once('/').ok_or(PathError::Malformed)?;
        let level = decimal::parse(level).ok_or(PathError::Malformed)?;
        let level = u8::try_from(level).map_err(|_| PathError::Level)?;
        let (index, width) = parse_place(place)?;
        Self::new(level, index, width)
    }
}

/// Writes `<N>[.p/<W>]`.
pub(crate) fn write_place(f: &mut fmt::Formatter<'_>, index: u64, width: u16) -> fmt::Result {
    fn write_groups(f: &mut fmt::Formatter<'_>, index: u64) -> fmt::Result {
        if index >= 1000 {
            write_groups(f, index / 1000)?;
        }
        write!(f, "x{:03}/", index % 1000)
    }
    if index >= 1000 {
        write_groups(f, index / 1000)?;
    }
    write!(f, "{:03}", index % 1000)?;
    if width < TILE_WIDTH { write!(f, ".p/{width}") } else { Ok(()) }
}

/// Parses `<N>[.p/<W>]` into index and width.
pub(crate) fn parse_place(place: &str) -> Result<(u64, u16), PathError> {
    let (groups, width) = match place.split_once(".p/") {
        None => (place, TILE_WIDTH),
        Some((groups, width)) => {
            let width = decimal::parse(width).ok_or(PathError::Malformed)?;
            match u16::try_from(width) {
                Ok(width @ 1..TILE_WIDTH) => (groups, width),
                _ => return Err(PathError::Width),
            }
        }
    };
    // A leading group of zeros would be a second name of the same tile.
    if groups.starts_with("x000/") {
        return Err(PathError::Malformed);
    }
    let (leading, last) = match groups.rsplit_once('/') {
        None => (None, groups),
        Some((leading, last)) => (Some(leading), last),
    };
    let mut index = 0u64;
    for group in leading.into_iter().flat_map(|leading| leading.split('/')) {
        let digits = group.strip_prefix('x').ok_or(PathError::Malformed)?;
        index = push_group(index, digits)?;
    }
    Ok((push_group(index, last)?, width))
}

fn push_group(index: u64, digits: &str) -> Result<u64, PathError> {
    if digits.len() != 3 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(PathError::Malformed);
    }
    let group = digits.parse::<u64>().map_err(|_| PathError::Malformed)?;
    index.checked_mul(1000).and_then(|index| index.checked_add(group)).ok_or(PathError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(level: u8, index: u64, width: u16, path: &str) {
        let id = TileId::new(level, index, width).unwrap();
        assert_eq!(id.to_string(), path);
        assert_eq!(path.parse(), Ok(id));
    }

    #[test]
    fn a_path_groups_the_index_by_three_digits() {
        check(0, 1_234_067, 256, "tile/0/x001/x234/067");
        check(0, 1_234_067, 5, "tile/0/x001/x234/067.p/5");
        check(0, 0, 256, "tile/0/000");
        check(1, 999, 1, "tile/1/999.p/1");
        check(2, 1000, 255, "tile/2/x001/000.p/255");
        check(63, u64::MAX, 255, "tile/63/x018/x446/x744/x073/x709/x551/615.p/255");
    }

    #[test]
    fn a_path_in_any_other_spelling_is_refused() {
        for bad in [
            "",
            "tile/",
            "tile/0",
            "tile/0/",
            "/tile/0/000",
            "tile/00/000",
            "tile/+1/000",
            "tile/0/0",
            "tile/0/0000",
            "tile/0/x000",
            "tile/0/x000/000",
            "tile/0/001/000",
            "tile/0/x001/x000",
            "tile/0/x1/000",
            "tile/0/X001/000",
            "tile/0/x001//000",
            "tile/0/000/",
            "tile/0/000.p",
            "tile/0/000.p/",
            "tile/0/000.p/01",
            "tile/0/000.p/+1",
            "tile/0/000.p/1/",
            "tile/0/000.p/1.p/1",
            "tile/0/../000",
            "tile/0/x018/x446/x744/x073/x709/x551/616",
            "tile/0/x999/x999/x999/x999/x999/x999/x999/x999/x999/x999/x999/x999/999",
            "tile/entries/000",
        ] {
            assert_eq!(bad.parse::<TileId>(), Err(PathError::Malformed), "{bad}");
        }
        for bad in ["tile/64/000", "tile/256/000"] {
            assert_eq!(bad.parse::<TileId>(), Err(PathError::Level), "{bad}");
        }
        for bad in ["tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/70000"] {
            assert_eq!(bad.parse::<TileId>(), Err(PathError::Width), "{bad}");
        }
    }

    #[test]
    fn a_tree_of_70000_has_the_tiles_that_the_specification_counts() {
        let tiles: Vec<_> = tiles_for_size(70_000).collect();
        let count = |level, width| tiles.iter().filter(|t| t.level == level && t.width == width).count();
        assert_eq!((count(0, 256), count(0, 112)), (273, 1));
        assert_eq!((count(1, 256), count(1, 17)), (1, 1));
        assert_eq!(count(2, 1), 1);
        assert_eq!(tiles.len(), 277);
    }

    #[test]
    fn a_tree_of_256_has_one_full_tile_and_its_parent() {
        let tiles: Vec<_> = tiles_for_size(256).map(|tile| tile.to_string()).collect();
        assert_eq!(tiles, ["tile/0/000", "tile/1/000.p/1"]);
        assert_eq!(tiles_for_size(0).count(), 0);
    }

    #[test]
    fn the_largest_size_overflows_nothing() {
        let last: Vec<_> = tiles_between(u64::MAX - 1, u64::MAX).collect();
        assert_eq!(last, [TileId::new(0, u64::MAX / 256, 255).unwrap()]);
        assert_eq!((0..10).map(|level| partial_width(level, u64::MAX)).max(), Some(255));
        assert_eq!(TileId::in_tree(8, 0, u64::MAX), None);
    }

    #[test]
    fn a_tile_of_other_length_is_refused() {
        let hashes = [Hash([1; 32]), Hash([2; 32])];
        let bytes = encode_tile(&hashes);
        assert_eq!(decode_tile(&bytes, 2).unwrap(), hashes);
        for (bytes, width) in [(&bytes[..63], 2), (&bytes[..], 1), (&bytes[..], 3)] {
            assert_eq!(decode_tile(bytes, width), Err(TileError { width, got: bytes.len() }));
        }
    }
}
