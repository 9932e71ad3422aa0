//! Reading a bundle and the tile over it, and all the work on them that depends on no other bundle: hashing, and examining the records.
//!
//! Left out: what stands between bundles. Invariant: it depends on the files alone, so any number of threads leads to the same.

use exchequer_tlog::{
    BundleError, BundleId, HASH_BYTES, Hash, MAX_ENTRY, TILE_BYTES, TILE_WIDTH, TileId, decode_tile,
    leaf_hash,
};
use prost::bytes::Bytes;

use super::{
    records::Said,
    report::{Fault, FaultKind},
    source::{Source, SourceError},
    tree::root_of,
};

/// Bytes of the largest bundle there can be.
const MAX_BUNDLE_BYTES: usize = TILE_WIDTH as usize * (MAX_ENTRY + 2);
pub(super) const WIDTH: u64 = TILE_WIDTH as u64;

/// A bundle as it was read, and the level-0 tile over it.
pub(super) struct Loaded {
    pub(super) bundle: Result<Frames, SourceError>,
    pub(super) tile: Result<Vec<Hash>, Fault>,
    /// Roots over the hashes of the entries and of the tile; `None` for what could not be had whole.
    pub(super) roots: (Option<Hash>, Option<Hash>),
    pub(super) stale: Vec<Fault>,
}

/// The entries of a bundle, up to the first that is cut.
pub(super) struct Frames {
    pub(super) entries: Vec<Bytes>,
    pub(super) hashes: Vec<Hash>,
    /// What each entry says.
    pub(super) said: Vec<Said>,
    pub(super) damage: Option<BundleError>,
}

impl Frames {
    /// Frames and leaf hashes; what the entries say is left out.
    fn read(bytes: Vec<u8>, width: u16) -> Self {
        let bytes = Bytes::from(bytes);
        let mut entries = Vec::with_capacity(usize::from(width));
        let (mut at, mut damage) = (0, None);
        for entry in 0..width {
            let length =
                bytes[at..].first_chunk::<2>().map(|length| usize::from(u16::from_be_bytes(*length)));
            let Some(to) = length.map(|length| at + 2 + length).filter(|to| *to <= bytes.len()) else {
                damage = Some(BundleError::Truncated { entry });
                break;
            };
            entries.push(bytes.slice(at + 2..to));
            at = to;
        }
        if damage.is_none() && at < bytes.len() {
            damage = Some(BundleError::Trailing { bytes: bytes.len() - at });
        }
        let hashes = entries.iter().map(|entry| leaf_hash(entry)).collect();
        Self { entries, hashes, said: Vec::new(), damage }
    }
}

/// Reads a file that may have grown to its full version since: partial ones may go then.
fn read_current(source: &Source, path: &str, full: &str, max: usize) -> Result<(Vec<u8>, bool), SourceError> {
    match source.read(path, max) {
        Err(SourceError::Missing) if path != full => source.read(full, max).map(|bytes| (bytes, true)),
        read => read.map(|bytes| (bytes, path == full)),
    }
}

pub(super) fn full_tile(level: u8, index: u64) -> String {
    TileId::new(level, index, TILE_WIDTH).map_or_else(|_| String::new(), |id| id.to_string())
}

fn full_bundle(index: u64) -> String {
    BundleId::new(index, TILE_WIDTH).map_or_else(|_| String::new(), |id| id.to_string())
}

pub(super) fn unreadable(path: &str, error: &SourceError) -> Fault {
    let kind = match error {
        SourceError::Missing => FaultKind::Missing,
        SourceError::TooLong(_) => FaultKind::FileDamaged,
        SourceError::Failed(_) => FaultKind::Unreadable,
    };
    Fault::new(kind, format!("{path} {error}"))
}

/// Reads one tile of the tree of this size.
pub(super) fn load_tile(source: &Source, level: u8, index: u64, size: u64) -> Result<Vec<Hash>, Fault> {
    let Some(id) = TileId::in_tree(level, index, size) else {
        return Ok(Vec::new());
    };
    let (path, full) = (id.to_string(), full_tile(level, index));
    let read = read_current(source, &path, &full, TILE_BYTES);
    let (bytes, is_full) = read.map_err(|error| unreadable(&path, &error))?;
    let width = if is_full { TILE_WIDTH } else { id.width() };
    let mut hashes = decode_tile(&bytes, width)
        .map_err(|error| Fault::new(FaultKind::FileDamaged, format!("{path}: {error}")))?;
    hashes.truncate(usize::from(id.width()));
    Ok(hashes)
}

/// Superseded partial versions of a tile that are no prefix of it.
pub(super) fn stale_tiles(source: &Source, level: u8, index: u64, current: &[Hash]) -> Vec<Fault> {
    let full = full_tile(level, index);
    let mut faults = Vec::new();
    for width in source.partials(&full).into_iter().map(usize::from) {
        if width >= current.len() {
            continue;
        }
        let path = format!("{full}.p/{width}");
        let Ok(bytes) = source.read(&path, TILE_BYTES) else { continue };
        let expected = exchequer_tlog::encode_tile(&current[..width]);
        if bytes != expected {
            let position = bytes.iter().zip(&expected).take_while(|(a, b)| a == b).count() / HASH_BYTES;
            let detail = format!("{path}, which is superseded, differs from {full} at hash {position}");
            faults.push(Fault::new(FaultKind::StaleFileChanged, detail));
        }
    }
    faults
}

/// Superseded partial versions of a bundle that are no prefix of it.
fn stale_bundles(source: &Source, index: u64, current: &[Hash]) -> Vec<Fault> {
    let full = full_bundle(index);
    let mut faults = Vec::new();
    for width in source.partials(&full) {
        if usize::from(width) >= current.len() {
            continue;
        }
        let path = format!("{full}.p/{width}");
        let Ok(bytes) = source.read(&path, MAX_BUNDLE_BYTES) else { continue };
        let frames = Frames::read(bytes, width);
        let same = frames.hashes.iter().zip(current).take_while(|(a, b)| a == b).count();
        if same < usize::from(width) || frames.damage.is_some() {
            let place = index * WIDTH + same as u64;
            let detail =
                format!("{path}, which is superseded, differs from the current bundle at entry {place}");
            faults.push(Fault::new(FaultKind::StaleFileChanged, detail));
        }
    }
    faults
}

/// Reads a bundle and its tile, and makes of them all that depends on no other bundle.
pub(super) fn load(source: &Source, index: u64, size: u64) -> Loaded {
    let id = BundleId::in_tree(index, size);
    let width = id.map_or(0, |id| id.width());
    let path = id.map_or_else(String::new, |id| id.to_string());
    let bundle =
        read_current(source, &path, &full_bundle(index), MAX_BUNDLE_BYTES).map(|(bytes, is_full)| {
            let mut frames = Frames::read(bytes, if is_full { TILE_WIDTH } else { width });
            frames.entries.truncate(usize::from(width));
            frames.hashes.truncate(usize::from(width));
            frames.said =
                (index * WIDTH..).zip(&frames.entries).map(|(at, bytes)| Said::read(at, bytes)).collect();
            frames
        });
    let tile = load_tile(source, 0, index, size);
    let mut stale = Vec::new();
    if let Ok(frames) = &bundle
        && frames.damage.is_none()
    {
        stale.extend(stale_bundles(source, index, &frames.hashes));
        stale.extend(stale_tiles(source, 0, index, &frames.hashes));
    }
    let by_entries =
        bundle.as_ref().ok().filter(|frames| frames.damage.is_none()).map(|frames| &frames.hashes);
    let entries_root = by_entries.map(|hashes| root_of(hashes));
    let tile_root = match (&tile, by_entries) {
        (Ok(tile), Some(hashes)) if tile == hashes => entries_root,
        (Ok(tile), _) => Some(root_of(tile)),
        (Err(_), _) => None,
    };
    Loaded { bundle, tile, roots: (entries_root, tile_root), stale }
}
