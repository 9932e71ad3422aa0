//! Opening the log: what counts is what the state says, if the tree on disk has the state's root and continues what was signed.
//!
//! Left out: repair. Invariant: a log that opens holds everything that any published checkpoint covers; anything else is an error
//! that names what does not fit.

use std::{collections::BTreeSet, io, path::Path, sync::Arc};

use exchequer_event::accept::KeyState;
use exchequer_tlog::{
    BundleEdge, BundleId, Hash, KeyError, LEVELS, RightEdge, SignedCheckpoint, TILE_WIDTH, TileId, TrustError,
};

use super::{
    MAX_INTEGRATION_BUNDLES,
    checkpoints::{CheckpointLog, History, LogKeys, Quorum, read_history},
    files::Files,
    read::{LogReader, Sizes, StoreError, partial_paths},
    state::Position,
    write::{LogWriter, Places},
};

/// The log can't be opened. Nothing is served or signed over it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file can't be read, written or is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The origin and key make no signer.
    #[error("the origin can't name a key: {0}")]
    Key(#[from] KeyError),
    /// The state file does not say where the log stands.
    #[error("the state file {path} can't be used: {reason}")]
    State {
        /// Its path.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The tree on disk is not the one that the state names.
    #[error("the tree of {size} entries on disk has the root {computed}, the state says {expected}")]
    Tree {
        /// Entries that count.
        size: u64,
        /// Root by the state.
        expected: Hash,
        /// Root by the tiles.
        computed: Hash,
    },
    /// A checkpoint is not the ledger's own.
    #[error("a checkpoint of this log can't be trusted: {0}")]
    Foreign(#[from] TrustError),
    /// A checkpoint covers more than there is.
    #[error(
        "a checkpoint of {signed} entries was signed, but the state counts {size} only: entries were lost"
    )]
    Beyond {
        /// Size that was signed.
        signed: u64,
        /// Entries that count.
        size: u64,
    },
    /// A checkpoint is of another tree.
    #[error(
        "the checkpoint of {signed} entries has the root {expected}, the log has {computed}: signing on would fork it"
    )]
    Fork {
        /// Size that was signed.
        signed: u64,
        /// Root that was signed.
        expected: Hash,
        /// Root by the tiles.
        computed: Hash,
    },
}

/// An opened log.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) writer: LogWriter,
    pub(crate) reader: LogReader,
    pub(crate) checkpoints: CheckpointLog,
}

/// A tree that was found to be the one that its state names. What was signed over it is yet to be compared.
#[derive(Debug)]
pub(crate) struct OpenedTree {
    files: Arc<dyn Files>,
    places: Places,
    sizes: Arc<Sizes>,
    writer: LogWriter,
    pub(crate) reader: LogReader,
}

/// Opens the tree in a data directory, beginning an empty one if there is none.
pub(crate) fn open(files: Arc<dyn Files>, data: &Path, origin: &str) -> Result<OpenedTree, OpenError> {
    let places = Places::new(data);
    for dir in [&places.log, &places.staging, &places.history] {
        files.create_dirs(dir).map_err(StoreError::io(dir))?;
    }
    for name in files.list(&places.staging).map_err(StoreError::io(&places.staging))? {
        let path = places.staging.join(name);
        files.remove(&path).map_err(StoreError::io(&path))?;
    }
    let sizes = Arc::new(Sizes::default());
    let writer = LogWriter::load(files.clone(), places.clone(), sizes.clone(), origin.to_owned())?;
    let reader = LogReader::new(files.clone(), places.log.clone(), sizes.clone());
    Ok(OpenedTree { files, places, sizes, writer, reader })
}

impl OpenedTree {
    /// Opens the checkpoints, each of which has to be signed by one of the keys that the log holds, at its size. What was signed and is
    /// not published stays so.
    pub(crate) fn with_keys(self, keys: &[KeyState], quorum: Quorum) -> Result<Opened, OpenError> {
        let Self { files, places, sizes, writer, reader } = self;
        let keys = LogKeys::new(&writer.origin, keys);
        let size = writer.position.size;
        let (served, damaged) = match files.read(&places.checkpoint) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => (None, None),
            Err(error) => return Err(StoreError::io(&places.checkpoint)(error).into()),
            Ok(bytes) => match read_served(&bytes, &places.checkpoint, &keys) {
                Ok(served) => (Some(served), None),
                Err(error) => (None, Some(error)),
            },
        };
        let served_size = served.as_ref().map_or(u64::MAX, |served| served.checkpoint().size());
        let history = read_history(&*files, &places, (&keys, &quorum), (size, served_size))?;
        let is_damaged = match damaged {
            Some(error) if history.last.is_none() => return Err(error),
            damaged => damaged.is_some(),
        };
        for signed in history.publishable.iter().chain(&history.last).chain(&served) {
            check_not_beyond(signed, size)?;
            check_covered(&reader, signed)?;
        }
        let checkpoints = recover_checkpoints(files, places, quorum, history, (served, is_damaged))?;
        let published = checkpoints.published().map_or(0, |signed| signed.checkpoint().size());
        sizes.publish(published);
        writer.remove_surplus(checkpoints.previous_size().min(published))?;
        Ok(Opened { writer, reader, checkpoints })
    }
}

/// Whether the state counts as many entries as the checkpoint.
pub(super) fn check_not_beyond(signed: &SignedCheckpoint, size: u64) -> Result<(), OpenError> {
    let signed = signed.checkpoint().size();
    if signed > size { Err(OpenError::Beyond { signed, size }) } else { Ok(()) }
}

/// The checkpoint as it is served, if it is the log's own.
fn read_served(bytes: &[u8], path: &Path, keys: &LogKeys) -> Result<SignedCheckpoint, OpenError> {
    let served = SignedCheckpoint::parse(bytes).map_err(StoreError::checkpoint(path))?;
    served.verify(&keys.policy(served.checkpoint().size()))?;
    Ok(served)
}

/// Whether the log holds what the checkpoint covers.
fn check_covered(reader: &LogReader, signed: &SignedCheckpoint) -> Result<(), OpenError> {
    let (signed, expected) = (signed.checkpoint().size(), *signed.checkpoint().root());
    let computed = reader.root(signed)?;
    if computed == expected { Ok(()) } else { Err(OpenError::Fork { signed, expected, computed }) }
}

/// The history holds what is served. A checkpoint that is kept and not served is not published here: whether it may be is agreed upon
/// with the others first.
fn recover_checkpoints(
    files: Arc<dyn Files>,
    places: Places,
    quorum: Quorum,
    history: History,
    (served, is_damaged): (Option<SignedCheckpoint>, bool),
) -> Result<CheckpointLog, OpenError> {
    let size = |signed: &SignedCheckpoint| signed.checkpoint().size();
    let kept = history.last.as_ref().map(size);
    // A checkpoint that was served but is not in the history: the history lost its end. It is verified, so it is kept again.
    let lost = served.clone().filter(|served| kept.is_none_or(|kept| size(served) > kept));
    // What is served is in the history as it was published. A copy of another content decayed, in signatures that nobody verified here
    // or altogether; what is in its place then is the newest that may be published.
    let newest = history.publishable.last().cloned();
    let is_other = |newest: &SignedCheckpoint| match &served {
        Some(served) => size(served) == size(newest) && served != newest,
        None => is_damaged,
    };
    let whole = newest.filter(is_other);
    let mut checkpoints = CheckpointLog::new(files, places, quorum, history, whole.clone().or(served));
    if let Some(whole) = &whole {
        checkpoints.swap(whole)?;
    }
    if let Some(lost) = &lost {
        checkpoints.keep(lost)?;
    }
    Ok(checkpoints)
}

impl LogWriter {
    /// The writer at what the state says.
    fn load(
        files: Arc<dyn Files>,
        places: Places,
        sizes: Arc<Sizes>,
        origin: String,
    ) -> Result<Self, OpenError> {
        // A commit may have failed, or its process ended, between the state's new name and the sync of it. What is believed, and
        // signed over, has to be there after a power loss, too.
        files.sync_dir(&places.data).map_err(StoreError::io(&places.data))?;
        let position = match files.read(&places.state) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Position::empty(),
            Err(error) => return Err(StoreError::io(&places.state)(error).into()),
            Ok(bytes) => Position::decode(&bytes, &origin)
                .map_err(|reason| OpenError::State { path: places.state.display().to_string(), reason })?,
        };
        let size = position.size;
        sizes.commit(size);
        let reader = LogReader::new(files.clone(), places.log.clone(), sizes.clone());
        let tree = RightEdge::load(size, &reader).map_err(StoreError::from)?;
        let computed = tree.root();
        if computed != position.root {
            return Err(OpenError::Tree { size, expected: position.root, computed });
        }
        let partial = match BundleId::in_tree(size / u64::from(TILE_WIDTH), size) {
            Some(id) => {
                // The edge of the tree is compared with the state; so are the entries that are below it.
                reader.verified_entries(id.index() * u64::from(TILE_WIDTH), size)?;
                reader.bundle_bytes(id)?
            }
            None => Vec::new(),
        };
        let bundles = BundleEdge::load(size, partial).map_err(|error| StoreError::Damaged {
            path: places.log.display().to_string(),
            reason: error.to_string(),
        })?;
        Ok(Self { files, places, sizes, origin, tree, bundles, position, known_dirs: BTreeSet::new() })
    }

    /// The writer again after one of its commits failed.
    pub(crate) fn reload(&self) -> Result<Self, OpenError> {
        Self::load(self.files.clone(), self.places.clone(), self.sizes.clone(), self.origin.clone())
    }

    /// Removes partial files that are of no size that is kept: those of a commit that did not come to its end, and those that were
    /// superseded since the checkpoint before the last one.
    fn remove_surplus(&self, since: u64) -> Result<(), StoreError> {
        let kept: BTreeSet<String> = self.sizes.kept().into_iter().flat_map(partial_paths).collect();
        let width = u64::from(TILE_WIDTH);
        for level in 0..=LEVELS {
            // The last round is for the bundles, whose indexes are those of level 0.
            let (shift, is_bundle) =
                if level == LEVELS { (8, true) } else { (8 * u32::from(level) + 8, false) };
            let at = |size: u64| size.checked_shr(shift).unwrap_or(0);
            let ahead = MAX_INTEGRATION_BUNDLES.checked_shr(shift - 8).unwrap_or(0) + 1;
            for index in at(since)..=at(self.position.size).saturating_add(ahead).min(u64::MAX / width) {
                let narrowest = if is_bundle {
                    BundleId::new(index, 1).map(|id| id.to_string())
                } else {
                    TileId::new(level, index, 1).map(|id| id.to_string())
                };
                let Ok(dir) = narrowest.map(|path| path.trim_end_matches("/1").to_owned()) else { continue };
                let absolute = self.places.log.join(&dir);
                for name in self.files.list(&absolute).map_err(StoreError::io(&absolute))? {
                    if !kept.contains(&format!("{dir}/{name}")) {
                        let path = absolute.join(name);
                        self.files.remove(&path).map_err(StoreError::io(&path))?;
                    }
                }
                self.files.remove_empty_dir(&absolute).map_err(StoreError::io(&absolute))?;
            }
        }
        Ok(())
    }
}
