//! Bringing a mirror up to a checkpoint: what is new of bundles and tiles, then the state, then the checkpoint.
//!
//! Left out: when. Invariant: what is put was computed from the log's entries and is covered by the signed checkpoint; a state is put
//! only after all that it covers, over exactly the state that was read before, and a checkpoint only after its state.

use std::collections::BTreeMap;

use bytes::Bytes;
use exchequer_tlog::{
    BundleEdge, BundleId, Checkpoint, Hash, LEVELS, MAX_NOTE_BYTES, RightEdge, SignedCheckpoint, TILE_WIDTH,
    TileId, TileWrite, consistency_proof, leaf_hash, verify_consistency,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    CHECKPOINT,
    place::{Found, Nature, Place, PlaceError},
};
use crate::store::{LogKeys, LogReader, StoreError};

/// Where a mirror says up to which checkpoint it is complete.
pub(crate) const STATE: &str = "state";
const WIDTH: u64 = TILE_WIDTH as u64;
/// Entries' bytes after which a step takes no further bundle.
const STEP_BYTES: usize = 4 * 1024 * 1024;
/// Bundles that one step takes at most.
const STEP_BUNDLES: u64 = 64;
/// Objects in flight at once.
const CONCURRENT_PUTS: usize = 16;
/// Somebody else got in between; more often than this, it is tried again later.
const ATTEMPTS: usize = 8;

/// The mirror is not up to date.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MirrorError {
    /// The object store failed.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The log can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Others write all the time.
    #[error("the mirror's {0} changed in between {ATTEMPTS} times")]
    Contended(&'static str),
    /// It holds more than this log.
    #[error(
        "the mirror has a checkpoint of {mirrored} entries, this log has {size} only: it is not overwritten"
    )]
    Ahead {
        /// Entries that the mirror's checkpoint names.
        mirrored: u64,
        /// Entries here.
        size: u64,
    },
    /// Entries here are not those that were signed.
    #[error("the entries up to {size} are not those under the signed checkpoint: see `exchequer fsck`")]
    Damaged {
        /// Where it was found.
        size: u64,
    },
    /// It holds another tree under this log's key.
    #[error(
        "the mirror's tree of {size} entries is {mirrored}, this log's is {here}: it is a fork, or this log is damaged; nothing is \
         overwritten"
    )]
    Fork {
        /// Entries of both.
        size: u64,
        /// The mirror's root.
        mirrored: Hash,
        /// This log's root.
        here: Hash,
    },
    /// It is not this log's mirror.
    #[error("the mirror is not this log's: {0}; nothing is overwritten")]
    Foreign(String),
}

impl MirrorError {
    /// Whether trying again is of no use.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::Fork { .. } | Self::Foreign(_))
    }
}

/// A mirror of a log.
#[derive(Debug)]
pub(crate) struct Mirror {
    place: Place,
    keys: LogKeys,
    reader: LogReader,
}

/// A checkpoint of the mirror, as it was read.
struct Held {
    signed: SignedCheckpoint,
    found: Found,
}

impl Mirror {
    pub(crate) fn new(place: Place, keys: LogKeys, reader: LogReader) -> Self {
        Self { place, keys, reader }
    }

    /// Brings the mirror up to this published checkpoint; the size up to which it is complete then, which may be more.
    pub(crate) async fn push(&self, signed: &SignedCheckpoint) -> Result<u64, MirrorError> {
        let head = signed.checkpoint();
        for _ in 0..ATTEMPTS {
            let state = self.held(STATE).await?;
            let from = state.as_ref().map_or(0, |held| held.signed.checkpoint().size());
            match &state {
                Some(held) => self.check_prefix(held.signed.checkpoint()).await?,
                None if self.place.get(CHECKPOINT, MAX_NOTE_BYTES).await?.is_some() => {
                    // Another ledger of this log may have filled it just now.
                    if self.held(STATE).await?.is_some() {
                        continue;
                    }
                    return Err(MirrorError::Foreign("it has a checkpoint, and no state".to_owned()));
                }
                None => {}
            }
            let newest = match &state {
                Some(held) if from >= head.size() => &held.signed,
                _ => {
                    self.fill(from, head).await?;
                    let bytes = Bytes::from(signed.to_string());
                    let found = state.as_ref().map(|held| &held.found);
                    if !self.place.replace(STATE, bytes, found).await? {
                        continue;
                    }
                    signed
                }
            };
            self.show(newest).await?;
            self.remove_superseded(from, newest.checkpoint().size()).await;
            return Ok(newest.checkpoint().size());
        }
        Err(MirrorError::Contended(STATE))
    }

    /// A checkpoint that the mirror holds, signed by a key that this log holds at its size.
    async fn held(&self, path: &'static str) -> Result<Option<Held>, MirrorError> {
        let Some(found) = self.place.get(path, MAX_NOTE_BYTES).await? else { return Ok(None) };
        let foreign = |reason: String| MirrorError::Foreign(format!("{path}: {reason}"));
        let signed = SignedCheckpoint::parse(&found.bytes).map_err(|error| foreign(error.to_string()))?;
        let (mirrored, size) = (signed.checkpoint().size(), self.reader.committed());
        match signed.verify(&self.keys.policy(mirrored)) {
            Ok(_) => {}
            // The key that signed it may be in entries that are not here yet.
            Err(_) if mirrored > size => return Err(MirrorError::Ahead { mirrored, size }),
            Err(error) => return Err(foreign(error.to_string())),
        }
        Ok(Some(Held { signed, found }))
    }

    /// Whether what the mirror holds is a prefix of this log.
    async fn check_prefix(&self, held: &Checkpoint) -> Result<(), MirrorError> {
        let (mirrored, size) = (held.size(), self.reader.committed());
        if mirrored > size {
            return Err(MirrorError::Ahead { mirrored, size });
        }
        let here = self.blocking(move |reader| Ok(reader.root(mirrored)?)).await?;
        if here == *held.root() {
            return Ok(());
        }
        Err(MirrorError::Fork { size: mirrored, mirrored: *held.root(), here })
    }

    /// Puts what a log of the head's size has beyond one of `from` entries.
    async fn fill(&self, from: u64, head: &Checkpoint) -> Result<(), MirrorError> {
        let mut filling = self.blocking(move |reader| Filling::begin(reader, from)).await?;
        while filling.tree.size() < head.size() {
            let head = head.clone();
            let (rest, files) = self
                .blocking(move |reader| {
                    let files = filling.step(reader, &head)?;
                    Ok((filling, files))
                })
                .await?;
            filling = rest;
            let puts = stream::iter(files).map(|(path, bytes)| self.put_once(path, bytes));
            puts.buffer_unordered(CONCURRENT_PUTS).try_collect::<()>().await?;
        }
        Ok(())
    }

    /// Puts an immutable object. One that is there has to be the same.
    async fn put_once(&self, path: String, bytes: Bytes) -> Result<(), MirrorError> {
        if self.place.create(&path, bytes.clone(), Nature::Immutable).await? {
            return Ok(());
        }
        // Another object there, whatever its size, is not overwritten; the largest of ours bounds what is read.
        match self.place.get(&path, bytes.len()).await {
            Ok(Some(found)) if found.bytes == bytes => Ok(()),
            Ok(Some(_)) | Err(PlaceError::TooLong { .. }) => {
                Err(MirrorError::Foreign(format!("{path} holds something else")))
            }
            // Removed in between.
            Ok(None) => Err(MirrorError::Contended("tiles")),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a checkpoint that the state covers the visible one, unless a newer one is.
    async fn show(&self, newest: &SignedCheckpoint) -> Result<(), MirrorError> {
        for _ in 0..ATTEMPTS {
            let shown = self.held(CHECKPOINT).await?;
            if shown
                .as_ref()
                .is_some_and(|held| held.signed.checkpoint().size() >= newest.checkpoint().size())
            {
                return Ok(());
            }
            let found = shown.as_ref().map(|held| &held.found);
            if self.place.replace(CHECKPOINT, Bytes::from(newest.to_string()), found).await? {
                return Ok(());
            }
        }
        Err(MirrorError::Contended(CHECKPOINT))
    }

    /// Partial files of the size before may go where the full one is there now (tlog-tiles). Those of sizes that a crash or another
    /// ledger left behind stay: they are right, and nothing needs them.
    async fn remove_superseded(&self, from: u64, to: u64) {
        let bundle = BundleId::in_tree(from / WIDTH, from)
            .filter(|id| BundleId::in_tree(id.index(), to).is_some_and(|id| id.is_full()))
            .and_then(|id| BundleId::new(id.index(), TILE_WIDTH).ok());
        let tiles = (0..LEVELS).filter_map(|level| {
            let index = from.checked_shr(8 * u32::from(level) + 8)?;
            TileId::in_tree(level, index, from)?;
            TileId::in_tree(level, index, to).filter(TileId::is_full)
        });
        let full = bundle.iter().map(ToString::to_string).chain(tiles.map(|id| id.to_string()));
        for path in full.collect::<Vec<_>>() {
            if let Err(error) = self.place.remove_partials(&path).await {
                tracing::debug!(%error, path, "superseded partial files stay in the mirror");
            }
        }
    }

    /// Reads the log on a thread that may wait.
    async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&LogReader) -> Result<T, MirrorError> + Send + 'static,
    ) -> Result<T, MirrorError> {
        let reader = self.reader.clone();
        let reading = tokio::task::spawn_blocking(move || read(&reader));
        reading.await.expect("reading the log does not panic")
    }
}

/// How far a mirror is filled.
struct Filling {
    tree: RightEdge,
    bundles: BundleEdge,
    /// The newest partial tile of each level, put with the last step only: those in between are of no published size.
    partial: BTreeMap<u8, TileWrite>,
}

impl Filling {
    fn begin(reader: &LogReader, from: u64) -> Result<Self, MirrorError> {
        let tree = RightEdge::load(from, reader).map_err(StoreError::from)?;
        let partial = match BundleId::in_tree(from / WIDTH, from) {
            Some(id) => reader.bundle_bytes(id)?,
            None => Vec::new(),
        };
        let bundles = BundleEdge::load(from, partial).map_err(|_| MirrorError::Damaged { size: from })?;
        Ok(Self { tree, bundles, partial: BTreeMap::new() })
    }

    /// Takes the next entries; the files to put for them, all of which the head covers.
    fn step(&mut self, reader: &LogReader, head: &Checkpoint) -> Result<Vec<(String, Bytes)>, MirrorError> {
        let first = self.tree.size();
        let (mut entries, mut bytes, mut next) = (Vec::new(), 0, first);
        while next < head.size() && bytes < STEP_BYTES && next / WIDTH - first / WIDTH < STEP_BUNDLES {
            let end = head.size().min((next / WIDTH + 1) * WIDTH);
            let read = reader.entries(next, end)?;
            bytes += read.iter().map(Bytes::len).sum::<usize>();
            entries.extend(read);
            next = end;
        }
        let leaves: Vec<Hash> = entries.iter().map(|entry| leaf_hash(entry)).collect();
        let grown = self.tree.integrate(&leaves);
        // The tree was computed from the entries; the proof comes from the log's tiles and ends in what was signed.
        let proof = consistency_proof(next, head.size(), reader).map_err(StoreError::from)?;
        verify_consistency(next, &grown.root, head.size(), head.root(), &proof)
            .map_err(|_| MirrorError::Damaged { size: next })?;
        let bundled = self.bundles.integrate(&entries).map_err(StoreError::from)?;
        let is_last = next == head.size();
        let mut files: Vec<(String, Bytes)> = bundled
            .bundles
            .into_iter()
            .filter(|bundle| bundle.id.is_full() || is_last)
            .map(|bundle| (bundle.id.to_string(), bundle.bytes.into()))
            .collect();
        for tile in grown.tiles {
            if tile.id.is_full() {
                self.partial.remove(&tile.id.level());
                files.push((tile.id.to_string(), tile.bytes().into()));
            } else {
                self.partial.insert(tile.id.level(), tile);
            }
        }
        if is_last {
            let partial = std::mem::take(&mut self.partial);
            files.extend(partial.into_values().map(|tile| (tile.id.to_string(), tile.bytes().into())));
        }
        (self.tree, self.bundles) = (grown.edge, bundled.edge);
        Ok(files)
    }
}
