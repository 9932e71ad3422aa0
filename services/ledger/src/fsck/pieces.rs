//! The files that a tree can be put together from: those of the log, in whatever width they are there, and the mirror's.
//!
//! Left out: which of them is right. Invariant: nothing that is read here is believed; nothing longer than a tile or bundle can be is
//! read.

use std::{cell::RefCell, collections::BTreeSet, fs::File, io::Read as _, path::PathBuf};

use bytes::Bytes;
use exchequer_tlog::{
    BundleId, HASH_BYTES, Hash, MAX_ENTRY, TILE_BYTES, TILE_WIDTH, TileId, decode_bundle, decode_tile,
    leaf_hash,
};
use tokio::runtime::Handle;

use crate::mirror::Place;

/// Bytes of the largest bundle there can be.
const MAX_BUNDLE_BYTES: usize = TILE_WIDTH as usize * (MAX_ENTRY + 2);

/// What a file turned out to be.
#[derive(Debug)]
pub(super) enum Read<T> {
    Missing,
    /// Not as long as its name promises; what could be read of it.
    Truncated(T, String),
    Whole(T),
}

/// Entries of a bundle.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) entries: Vec<Bytes>,
    pub(super) hashes: Vec<Hash>,
}

/// Where tiles and bundles are read from.
pub(super) struct Pieces {
    log: PathBuf,
    mirror: Option<Place>,
    handle: Handle,
    /// The first time that the mirror could not be read.
    pub(super) mirror_fault: RefCell<Option<String>>,
}

impl Pieces {
    /// Blocks on the mirror, so it has to be used on a thread that may.
    pub(super) fn new(log: PathBuf, mirror: Option<Place>, handle: Handle) -> Self {
        Self { log, mirror, handle, mirror_fault: RefCell::new(None) }
    }

    fn local(&self, path: &str, max: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(self.log.join(path)).ok()?;
        file.take(max as u64 + 1).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    fn mirrored(&self, path: &str, max: usize) -> Option<Vec<u8>> {
        let place = self.mirror.as_ref()?;
        match self.handle.block_on(place.get(path, max)) {
            Ok(found) => found.map(|found| found.bytes.to_vec()),
            Err(error) => {
                self.mirror_fault.borrow_mut().get_or_insert_with(|| error.to_string());
                None
            }
        }
    }

    /// A tile as it lies there.
    pub(super) fn tile(&self, id: TileId) -> Read<Vec<Hash>> {
        let Some(bytes) = self.local(&id.to_string(), TILE_BYTES) else { return Read::Missing };
        match decode_tile(&bytes, id.width()) {
            Ok(hashes) => Read::Whole(hashes),
            Err(error) => {
                let (whole, _) = bytes.as_chunks::<HASH_BYTES>();
                Read::Truncated(whole.iter().copied().map(Hash).collect(), error.to_string())
            }
        }
    }

    /// A bundle as it lies there.
    pub(super) fn bundle(&self, id: BundleId) -> Read<Entries> {
        match self.local(&id.to_string(), MAX_BUNDLE_BYTES) {
            Some(bytes) => entries_of(bytes.into(), id.width()),
            None => Read::Missing,
        }
    }

    /// The first `width` hashes of every wider version of a tile that is there.
    pub(super) fn wider_tiles(&self, id: TileId) -> Vec<Vec<Hash>> {
        let named = |width| TileId::new(id.level(), id.index(), width).ok();
        let mut tiles = Vec::new();
        for wide in self.wider(id.width(), &id.to_string()).into_iter().filter_map(named) {
            if let Read::Whole(mut hashes) = self.tile(wide) {
                hashes.truncate(usize::from(id.width()));
                tiles.push(hashes);
            }
        }
        tiles
    }

    /// The first entries of every wider version of a bundle that is there.
    pub(super) fn wider_bundles(&self, id: BundleId) -> Vec<Entries> {
        let named = |width| BundleId::new(id.index(), width).ok();
        let mut bundles = Vec::new();
        for wide in self.wider(id.width(), &id.to_string()).into_iter().filter_map(named) {
            if let Read::Whole(mut entries) = self.bundle(wide) {
                entries.entries.truncate(usize::from(id.width()));
                entries.hashes.truncate(usize::from(id.width()));
                bundles.push(entries);
            }
        }
        bundles
    }

    fn wider(&self, width: u16, path: &str) -> Vec<u16> {
        if width == TILE_WIDTH {
            return Vec::new();
        }
        let mut widths = self.partial_widths(full_path(path));
        widths.insert(TILE_WIDTH);
        widths.into_iter().filter(|wide| *wide > width).collect()
    }

    /// Widths of the partial versions of a file that are there.
    pub(super) fn partial_widths(&self, full: &str) -> BTreeSet<u16> {
        let names = self.log.join(format!("{full}.p")).read_dir().into_iter().flatten();
        let width = |name: std::ffi::OsString| name.to_str()?.parse::<u16>().ok();
        names
            .filter_map(|item| width(item.ok()?.file_name()))
            .filter(|width| (1..TILE_WIDTH).contains(width))
            .collect()
    }

    /// The mirror's version of a tile: of this width, or the full one.
    pub(super) fn mirrored_tile(&self, id: TileId) -> Option<Vec<Hash>> {
        let full = TileId::new(id.level(), id.index(), TILE_WIDTH).ok()?;
        [id, full].into_iter().find_map(|wide| {
            let mut hashes =
                decode_tile(&self.mirrored(&wide.to_string(), TILE_BYTES)?, wide.width()).ok()?;
            hashes.truncate(usize::from(id.width()));
            Some(hashes)
        })
    }

    /// The mirror's version of a bundle: of this width, or the full one.
    pub(super) fn mirrored_bundle(&self, id: BundleId) -> Option<Entries> {
        let full = BundleId::new(id.index(), TILE_WIDTH).ok()?;
        [id, full].into_iter().find_map(|wide| {
            let bytes = self.mirrored(&wide.to_string(), MAX_BUNDLE_BYTES)?;
            match entries_of(bytes.into(), wide.width()) {
                Read::Whole(entries) | Read::Truncated(entries, _) => Some(entries),
                Read::Missing => None,
            }
        })
    }
}

/// The path of a file's full version.
pub(super) fn full_path(path: &str) -> &str {
    path.split_once(".p/").map_or(path, |(full, _)| full)
}

/// The entries of a bundle, or those before the place where it is cut.
fn entries_of(bytes: Bytes, width: u16) -> Read<Entries> {
    let damage = decode_bundle(&bytes, width).err();
    let mut read = Entries::default();
    let mut at = 0;
    while read.entries.len() < usize::from(width) {
        let Some(length) = bytes[at..].first_chunk::<2>() else { break };
        let (from, to) = (at + 2, at + 2 + usize::from(u16::from_be_bytes(*length)));
        if to > bytes.len() {
            break;
        }
        read.entries.push(bytes.slice(from..to));
        at = to;
    }
    read.hashes = read.entries.iter().map(|entry| leaf_hash(entry)).collect();
    match damage {
        Some(error) => Read::Truncated(read, error.to_string()),
        None => Read::Whole(read),
    }
}
