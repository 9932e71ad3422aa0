//! Entry bundles (tlog-tiles, "Log entries"): 256 entries a file, each after its length as a big-endian u16.
//!
//! Reading and writing files is left out, and so is what an entry means. Invariant: a [`BundleEdge`] holds exactly the
//! bytes of the partial bundle of its size.

use std::fmt;
use std::str::FromStr;

use crate::tile::{self, PathError, TILE_WIDTH};

/// The longest entry in bytes: what a u16 can count.
pub const MAX_ENTRY: usize = u16::MAX as usize;

/// The identity of an entry bundle: its index and how many entries it holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BundleId {
    index: u64,
    width: u16,
}

/// An entry is longer than [`MAX_ENTRY`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an entry of {0} bytes is longer than 65535")]
pub struct EntryTooLarge(pub usize);

/// The bytes of a bundle are not the entries it should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// The bytes end within this entry (counted from 0 within the bundle) or before it.
    #[error("the bundle ends within entry {entry}")]
    Truncated {
        /// The entry, from 0 within the bundle.
        entry: u16,
    },
    /// Bytes follow the last entry.
    #[error("{bytes} bytes follow the last entry of the bundle")]
    Trailing {
        /// How many.
        bytes: usize,
    },
}

impl BundleId {
    /// The bundle of `width` entries (1 to 256) at `index`.
    pub fn new(index: u64, width: u16) -> Result<Self, PathError> {
        tile::check_width(width)?;
        Ok(Self { index, width })
    }

    /// The bundle at `index` as wide as it is in a log of `size` entries; `None` if it is empty there.
    pub fn in_tree(index: u64, size: u64) -> Option<Self> {
        let width = tile::width_at(index, size)?;
        Some(Self { index, width })
    }

    /// The index; the bundle begins with entry `256 * index`.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The number of entries, 1 to 256.
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Whether the bundle holds all of its 256 entries, and so never changes again.
    pub fn is_full(&self) -> bool {
        self.width == TILE_WIDTH
    }
}

/// Every bundle of a log of `size` entries, the partial one last.
pub fn bundles_for_size(size: u64) -> impl Iterator<Item = BundleId> {
    bundles_between(0, size)
}

/// The bundles to write when a log of `old` entries grows to `new`. Nothing if `new` is not greater.
pub fn bundles_between(old: u64, new: u64) -> impl Iterator<Item = BundleId> {
    tile::widths_between(old, new).map(|(index, width)| BundleId { index, width })
}

/// Appends one entry to the bytes of a bundle.
pub fn push_entry(bundle: &mut Vec<u8>, entry: &[u8]) -> Result<(), EntryTooLarge> {
    let length = u16::try_from(entry.len()).map_err(|_| EntryTooLarge(entry.len()))?;
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
    Ok(())
}

/// The entries of a bundle that holds `width` of them. The length has to be exact.
pub fn decode_bundle(bytes: &[u8], width: u16) -> Result<Vec<&[u8]>, BundleError> {
    // A width is trusted for an allocation only up to what a bundle can hold.
    let mut entries = Vec::with_capacity(usize::from(width.min(TILE_WIDTH)));
    let mut rest = bytes;
    for entry in 0..width {
        let truncated = BundleError::Truncated { entry };
        let (length, tail) = rest.split_first_chunk::<2>().ok_or(truncated)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (bytes, tail) = tail.split_at_checked(length).ok_or(truncated)?;
        entries.push(bytes);
        rest = tail;
    }
    if rest.is_empty() { Ok(entries) } else { Err(BundleError::Trailing { bytes: rest.len() }) }
}

/// A bundle to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Which one.
    pub id: BundleId,
    /// Its whole content.
    pub bytes: Vec<u8>,
}

/// The growing end of the bundles: the log's size and the bytes of the partial bundle.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BundleEdge {
    size: u64,
    bytes: Vec<u8>,
}

/// What appending entries leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleIntegration {
    /// The bundles to write: full ones, and the partial one if there is one.
    pub bundles: Vec<Bundle>,
    /// The state after them.
    pub edge: BundleEdge,
}

impl BundleEdge {
    /// The end of a log of `size` entries, whose partial bundle (empty if there is none) has these bytes.
    pub fn load(size: u64, bytes: Vec<u8>) -> Result<Self, BundleError> {
        decode_bundle(&bytes, tile::partial_width(0, size))?;
        Ok(Self { size, bytes })
    }

    /// Entries in the log.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The bundles to write for these further entries, and the state then. The state before is left as it was, so
    /// that it can be kept until the bundles are durable.
    pub fn integrate<E: AsRef<[u8]>>(
        &self,
        entries: impl IntoIterator<Item = E>,
    ) -> Result<BundleIntegration, EntryTooLarge> {
        let mut edge = self.clone();
        let mut bundles = Vec::new();
        for entry in entries {
            push_entry(&mut edge.bytes, entry.as_ref())?;
            edge.size += 1;
            if edge.size.is_multiple_of(u64::from(TILE_WIDTH)) {
                let id = BundleId { index: edge.size / u64::from(TILE_WIDTH) - 1, width: TILE_WIDTH };
                // The next bundle is probably about as long as this one.
                let next = Vec::with_capacity(edge.bytes.len());
                bundles.push(Bundle { id, bytes: std::mem::replace(&mut edge.bytes, next) });
            }
        }
        let width = tile::partial_width(0, edge.size);
        if edge.size > self.size && width > 0 {
            let id = BundleId { index: edge.size / u64::from(TILE_WIDTH), width };
            bundles.push(Bundle { id, bytes: edge.bytes.clone() });
        }
        Ok(BundleIntegration { bundles, edge })
    }
}

impl fmt::Display for BundleId {
    /// The path under the log's prefix, such as `tile/entries/x001/x234/067.p/5`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tile/entries/")?;
        tile::write_place(f, self.index, self.width)
    }
}

impl FromStr for BundleId {
    type Err = PathError;

    fn from_str(path: &str) -> Result<Self, PathError> {
        if path.len() > tile::MAX_PATH_BYTES {
            return Err(PathError::Malformed);
        }
        let place = path.strip_prefix("tile/entries/").ok_or(PathError::Malformed)?;
        let (index, width) = tile::parse_place(place)?;
        Self::new(index, width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_path_is_that_of_a_tile_under_entries() {
        let id = BundleId::new(1_234_067, 5).unwrap();
        assert_eq!(id.to_string(), "tile/entries/x001/x234/067.p/5");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("tile/0/000".parse::<BundleId>(), Err(PathError::Malformed));
    }

    #[test]
    fn an_entry_is_framed_by_its_length() {
        let mut bytes = Vec::new();
        push_entry(&mut bytes, b"ab").unwrap();
        push_entry(&mut bytes, b"").unwrap();
        assert_eq!(bytes, [0, 2, b'a', b'b', 0, 0]);
        assert_eq!(decode_bundle(&bytes, 2).unwrap(), [&b"ab"[..], b""]);
        assert_eq!(decode_bundle(&bytes, 1), Err(BundleError::Trailing { bytes: 2 }));
        assert_eq!(decode_bundle(&bytes, 3), Err(BundleError::Truncated { entry: 2 }));
        assert_eq!(decode_bundle(&bytes[..3], 1), Err(BundleError::Truncated { entry: 0 }));
    }

    #[test]
    fn the_longest_entry_fits_and_a_longer_one_is_refused() {
        let mut bytes = Vec::new();
        push_entry(&mut bytes, &vec![7; MAX_ENTRY]).unwrap();
        assert_eq!(decode_bundle(&bytes, 1).unwrap(), [vec![7; MAX_ENTRY]]);
        assert_eq!(push_entry(&mut bytes, &vec![7; MAX_ENTRY + 1]), Err(EntryTooLarge(MAX_ENTRY + 1)));
        assert_eq!(bytes.len(), MAX_ENTRY + 2);
    }
}
