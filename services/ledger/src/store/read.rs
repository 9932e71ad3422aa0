//! Reading the log: tiles, bundles and entries of any size up to what is committed.
//!
//! Left out: who may read. Invariant: an answer has exactly the width that was asked for; a partial file that was superseded is
//! derived from the wider one.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use exchequer_tlog::{
    BundleError, BundleId, EntryTooLarge, HASH_BYTES, Hash, LEVELS, ProofError, RightEdge, TILE_WIDTH,
    TileError, TileId, TileReader, TreeReadError, decode_bundle, decode_tile, leaf_hash, push_entry,
};

use super::{files::Files, write::swap_in_as};

const WIDTH: u64 = TILE_WIDTH as u64;
/// A partial file can be superseded between learning its name and opening it; more often than this it is not.
const ATTEMPTS: usize = 4;

/// The log can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file has not the content that its name promises.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// Which file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// An entry is not the one that the tree holds at its index.
    #[error("entry {index} is not the one that the tree holds")]
    NotInTree {
        /// Its index.
        index: u64,
    },
    /// An entry is longer than a log can hold.
    #[error(transparent)]
    TooLarge(#[from] EntryTooLarge),
    /// What was asked for is not in the log.
    #[error("{asked} is beyond the log of {size} entries")]
    OutOfRange {
        /// The index or size.
        asked: u64,
        /// The log's size.
        size: u64,
    },
}

impl StoreError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_owned(), source }
    }
}

impl From<TreeReadError<Self>> for StoreError {
    fn from(error: TreeReadError<Self>) -> Self {
        match error {
            TreeReadError::Read { source, .. } => source,
            TreeReadError::Short { id, got } => {
                Self::Damaged { path: id.to_string(), reason: format!("{got} hashes") }
            }
        }
    }
}

impl From<ProofError<Self>> for StoreError {
    fn from(error: ProofError<Self>) -> Self {
        match error {
            ProofError::OutOfRange { asked, size } => Self::OutOfRange { asked, size },
            ProofError::Tree(error) => error.into(),
        }
    }
}

/// The sizes of the log that matter, and those of which partial files are still there.
#[derive(Debug, Default)]
pub(super) struct Sizes(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    committed: u64,
    published: u64,
    signing: Option<u64>,
    superseded: BTreeSet<u64>,
}

impl Kept {
    fn all(&self) -> BTreeSet<u64> {
        [self.committed, self.published].into_iter().chain(self.signing).collect()
    }
}

impl Sizes {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn committed(&self) -> u64 {
        self.lock().committed
    }

    /// The sizes of which every partial file is kept.
    pub(super) fn kept(&self) -> BTreeSet<u64> {
        self.lock().all()
    }

    pub(super) fn commit(&self, size: u64) {
        let mut kept = self.lock();
        let before = std::mem::replace(&mut kept.committed, size);
        kept.superseded.insert(before);
    }

    /// Keeps the committed size's files until [`Self::publish`]; the size.
    pub(super) fn pin(&self, size: u64) {
        self.lock().signing = Some(size);
    }

    pub(super) fn publish(&self, size: u64) {
        let mut kept = self.lock();
        kept.signing = None;
        let before = std::mem::replace(&mut kept.published, size);
        kept.superseded.insert(before);
    }

    /// Removes the partial files of superseded sizes. One that a kept size needs too stays, and so does one that a commit in
    /// progress relies on: widths only grow, so the committed size has it as well. Removals are not synced: what a power cut
    /// brings back is as right as it was.
    pub(super) fn remove_superseded(&self, files: &dyn Files, log: &Path) -> Result<(), StoreError> {
        let mut kept = self.lock();
        let all = kept.all();
        let needed: BTreeSet<String> = all.iter().copied().flat_map(partial_paths).collect();
        while let Some(size) = kept.superseded.iter().find(|size| !all.contains(size)).copied() {
            for path in partial_paths(size).filter(|path| !needed.contains(path)) {
                let path = log.join(path);
                files.remove(&path).map_err(StoreError::io(&path))?;
                if let Some(dir) = path.parent() {
                    // Fails as long as other widths are in it.
                    files.remove_empty_dir(dir).map_err(StoreError::io(dir))?;
                }
            }
            kept.superseded.remove(&size);
        }
        Ok(())
    }
}

/// A partial file.
enum PartialId {
    Bundle(BundleId),
    Tile(TileId),
}

/// The partial files of a log of this size.
fn partial_ids(size: u64) -> impl Iterator<Item = PartialId> {
    let bundle = BundleId::in_tree(size / WIDTH, size).map(PartialId::Bundle);
    let tiles = (0..LEVELS).filter_map(move |level| {
        let index = size.checked_shr(8 * u32::from(level) + 8).unwrap_or(0);
        TileId::in_tree(level, index, size).map(PartialId::Tile)
    });
    bundle.into_iter().chain(tiles)
}

/// Their paths.
pub(super) fn partial_paths(size: u64) -> impl Iterator<Item = String> {
    partial_ids(size).map(|id| match id {
        PartialId::Bundle(id) => id.to_string(),
        PartialId::Tile(id) => id.to_string(),
    })
}

/// Reads the log's files.
#[derive(Clone, Debug)]
pub(crate) struct LogReader {
    files: Arc<dyn Files>,
    log: PathBuf,
    sizes: Arc<Sizes>,
}

impl LogReader {
    pub(super) fn new(files: Arc<dyn Files>, log: PathBuf, sizes: Arc<Sizes>) -> Self {
        Self { files, log, sizes }
    }

    /// Keeps the files of a size that is about to be signed, until [`Self::published`].
    pub(crate) fn pin(&self, size: u64) {
        self.sizes.pin(size);
    }

    /// Writes the partial files of a size, those that are not there: what others publish was committed here among other sizes. The
    /// size is pinned meanwhile.
    pub(super) fn lay_out(&self, size: u64, staging: &Path) -> Result<(), StoreError> {
        let mut new = Vec::new();
        for id in partial_ids(size) {
            let (name, bytes): (String, _) = match id {
                PartialId::Bundle(id) => {
                    (id.to_string(), self.missing(&id.to_string(), || self.bundle_bytes(id))?)
                }
                PartialId::Tile(id) => {
                    (id.to_string(), self.missing(&id.to_string(), || self.tile_bytes(id))?)
                }
            };
            if let Some(bytes) = bytes {
                let path = self.log.join(name);
                if let Some(dir) = path.parent() {
                    self.files.create_dirs(dir).map_err(StoreError::io(dir))?;
                }
                new.push((path, bytes));
            }
        }
        swap_in_as("again-", &*self.files, staging, new)
    }

    /// What a file has to hold that is not there.
    fn missing(
        &self,
        name: &str,
        bytes: impl FnOnce() -> Result<Vec<u8>, StoreError>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.log.join(name);
        let (Some(dir), Some(file)) = (path.parent(), path.file_name()) else { return Ok(None) };
        let there = self.files.list(dir).map_err(StoreError::io(dir))?;
        if there.iter().any(|there| file == there.as_str()) { Ok(None) } else { bytes().map(Some) }
    }

    /// A checkpoint of this size was published.
    pub(crate) fn published(&self, size: u64) {
        self.sizes.publish(size);
    }

    /// Removes partial files of sizes that are neither committed, nor published, nor being signed.
    pub(crate) fn remove_superseded(&self) -> Result<(), StoreError> {
        self.sizes.remove_superseded(&*self.files, &self.log)
    }

    /// Entries that are committed.
    pub(crate) fn committed(&self) -> u64 {
        self.sizes.committed()
    }

    /// A tile's bytes.
    pub(crate) fn tile_bytes(&self, id: TileId) -> Result<Vec<u8>, StoreError> {
        let at = |width| TileId::new(id.level(), id.index(), width).map(|id| id.to_string());
        let in_tree = |size| TileId::in_tree(id.level(), id.index(), size).map(|id| id.width());
        let (path, width, mut bytes) = self.read(id.width(), at, in_tree)?;
        decode_tile(&bytes, width).map_err(|TileError { got, .. }| StoreError::Damaged {
            path,
            reason: format!("{got} bytes for {width} hashes"),
        })?;
        bytes.truncate(usize::from(id.width()) * HASH_BYTES);
        Ok(bytes)
    }

    /// A bundle's bytes.
    pub(crate) fn bundle_bytes(&self, id: BundleId) -> Result<Vec<u8>, StoreError> {
        let (path, width, bytes) = self.read_bundle(id)?;
        if width == id.width() {
            return Ok(bytes);
        }
        let mut narrow = Vec::with_capacity(bytes.len());
        for entry in bundle_entries(&path, width, &bytes)?.into_iter().take(usize::from(id.width())) {
            push_entry(&mut narrow, entry)?;
        }
        Ok(narrow)
    }

    fn read_bundle(&self, id: BundleId) -> Result<(String, u16, Vec<u8>), StoreError> {
        let at = |width| BundleId::new(id.index(), width).map(|id| id.to_string());
        let in_tree = |size| BundleId::in_tree(id.index(), size).map(|id| id.width());
        let (path, width, bytes) = self.read(id.width(), at, in_tree)?;
        bundle_entries(&path, width, &bytes)?;
        Ok((path, width, bytes))
    }

    /// The narrowest file that is at least so wide: its path, width and bytes.
    fn read<E>(
        &self,
        width: u16,
        at: impl Fn(u16) -> Result<String, E>,
        in_tree: impl Fn(u64) -> Option<u16>,
    ) -> Result<(String, u16, Vec<u8>), StoreError> {
        let mut missing = PathBuf::new();
        for _ in 0..ATTEMPTS {
            let mut widths = vec![width, TILE_WIDTH];
            widths.extend(self.sizes.kept().into_iter().filter_map(&in_tree).filter(|wide| *wide > width));
            widths.sort_unstable();
            widths.dedup();
            for width in widths {
                let Ok(name) = at(width) else { continue };
                let path = self.log.join(&name);
                match self.files.read(&path) {
                    Ok(bytes) => return Ok((name, width, bytes)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => missing = path,
                    Err(error) => return Err(StoreError::io(&path)(error)),
                }
            }
        }
        Err(StoreError::io(&missing)(io::ErrorKind::NotFound.into()))
    }

    /// The entries `from..to`, which have to be committed.
    pub(crate) fn entries(&self, from: u64, to: u64) -> Result<Vec<Bytes>, StoreError> {
        let size = self.committed();
        if to > size {
            return Err(StoreError::OutOfRange { asked: to, size });
        }
        let mut entries = Vec::new();
        let mut next = from;
        while next < to {
            let index = next / WIDTH;
            let end = to.min((index + 1) * WIDTH);
            let width = u16::try_from(end - index * WIDTH).unwrap_or(TILE_WIDTH);
            let Ok(id) = BundleId::new(index, width) else { break };
            let (path, width, bytes) = self.read_bundle(id)?;
            let bytes = Bytes::from(bytes);
            let place = |index: u64| usize::try_from(index % WIDTH).unwrap_or_default();
            let found = bundle_entries(&path, width, &bytes)?;
            let wanted = found.into_iter().skip(place(next)).take(place(end - next - 1) + 1);
            entries.extend(wanted.map(|entry| bytes.slice_ref(entry)));
            next = end;
        }
        Ok(entries)
    }

    /// The entries `from..to`, each compared with the tree's leaf.
    pub(crate) fn verified_entries(&self, from: u64, to: u64) -> Result<Vec<Bytes>, StoreError> {
        let entries = self.entries(from, to)?;
        let mut tile: Option<(u64, Vec<Hash>)> = None;
        for (index, entry) in (from..).zip(&entries) {
            let hashes = match &tile {
                Some((held, hashes)) if *held == index / WIDTH => hashes,
                _ => &tile.insert((index / WIDTH, self.leaf_tile(index / WIDTH, to)?)).1,
            };
            let place = usize::try_from(index % WIDTH).unwrap_or_default();
            if hashes.get(place) != Some(&leaf_hash(entry)) {
                return Err(StoreError::NotInTree { index });
            }
        }
        Ok(entries)
    }

    fn leaf_tile(&self, index: u64, size: u64) -> Result<Vec<Hash>, StoreError> {
        let id =
            TileId::in_tree(0, index, size).ok_or(StoreError::OutOfRange { asked: index * WIDTH, size })?;
        self.tile(id)
    }

    /// The hash of the leaf at an index.
    pub(crate) fn leaf(&self, index: u64) -> Result<Hash, StoreError> {
        let hashes = self.leaf_tile(index / WIDTH, index + 1)?;
        hashes.last().copied().ok_or(StoreError::NotInTree { index })
    }

    /// The root of the tree of the first `size` entries.
    pub(crate) fn root(&self, size: u64) -> Result<Hash, StoreError> {
        Ok(RightEdge::load(size, self)?.root())
    }
}

impl TileReader for LogReader {
    type Tile = Vec<Hash>;
    type Error = StoreError;

    fn tile(&self, id: TileId) -> Result<Self::Tile, Self::Error> {
        let bytes = self.tile_bytes(id)?;
        decode_tile(&bytes, id.width())
            .map_err(|error| StoreError::Damaged { path: id.to_string(), reason: error.to_string() })
    }
}

fn bundle_entries<'a>(path: &str, width: u16, bytes: &'a [u8]) -> Result<Vec<&'a [u8]>, StoreError> {
    decode_bundle(bytes, width).map_err(|error: BundleError| StoreError::Damaged {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}
