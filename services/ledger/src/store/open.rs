//! Opening the log: what counts is what the state says, if the tree on disk has the state's root and continues what was signed.
//!
//! Left out: repair. Invariant: a log that opens holds everything that any published checkpoint covers; anything else is an error
//! that names what does not fit.

use std::{collections::BTreeSet, io, path::Path, sync::Arc};

use ed25519_dalek::SigningKey;
use exchequer_tlog::{
    BundleEdge, BundleId, Cosigner, Hash, KeyError, LEVELS, NoteSigner, Policy, RightEdge, SignedCheckpoint,
    TILE_WIDTH, TileId, TrustError,
};

use super::{
    MAX_INTEGRATION_BUNDLES,
    checkpoints::{
        CheckpointLog, History, HistoryError, Quorum, own_policy, publishing_policy, read_history,
    },
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

impl From<HistoryError> for OpenError {
    fn from(error: HistoryError) -> Self {
        match error {
            HistoryError::Store(error) => error.into(),
            HistoryError::Trust(error) => error.into(),
        }
    }
}

/// An opened log.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) writer: LogWriter,
    pub(crate) reader: LogReader,
    pub(crate) checkpoints: CheckpointLog,
}

/// Opens the log in a data directory, beginning an empty one if there is none. What was signed and lacks the quorum stays unpublished.
pub(crate) fn open(
    files: Arc<dyn Files>,
    data: &Path,
    origin: &str,
    key: &SigningKey,
    quorum: Quorum,
) -> Result<Opened, OpenError> {
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

    let signer = NoteSigner::new(origin, key.clone())?;
    let cosigner = Cosigner::new(origin, key.clone())?;
    let (policy, publishing) = (own_policy(&signer), publishing_policy(&signer, quorum));
    let history = read_history(&*files, &places, (&policy, &publishing))?;
    let served = match files.read(&places.checkpoint) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(StoreError::io(&places.checkpoint)(error).into()),
        Ok(bytes) => match read_served(&bytes, &places.checkpoint, &policy) {
            // Only the history is truth; a served copy that is damaged is replaced from it below.
            Err(_) if history.last.is_some() => None,
            served => Some(served?),
        },
    };
    for signed in history.publishable.iter().chain(&history.last).chain(&served) {
        check_covered(&reader, signed, writer.position.size)?;
    }
    let checkpoints = recover_checkpoints(files, places, (signer, cosigner), publishing, history, served)?;
    sizes.publish(checkpoints.published().map_or(0, |signed| signed.checkpoint().size()));
    writer.remove_surplus(checkpoints.previous_size())?;
    Ok(Opened { writer, reader, checkpoints })
}

/// The checkpoint as it is served, if it is the ledger's own.
fn read_served(bytes: &[u8], path: &Path, policy: &Policy) -> Result<SignedCheckpoint, OpenError> {
    let served = SignedCheckpoint::parse(bytes).map_err(StoreError::checkpoint(path))?;
    served.verify(policy)?;
    Ok(served)
}

/// Whether the log holds what the checkpoint covers.
fn check_covered(reader: &LogReader, signed: &SignedCheckpoint, size: u64) -> Result<(), OpenError> {
    let (signed, expected) = (signed.checkpoint().size(), *signed.checkpoint().root());
    if signed > size {
        return Err(OpenError::Beyond { signed, size });
    }
    let computed = reader.root(signed)?;
    if computed == expected { Ok(()) } else { Err(OpenError::Fork { signed, expected, computed }) }
}

/// The history and the served file say the same again. What was signed and has no quorum is not published here: the witnesses are asked
/// again once the log runs.
fn recover_checkpoints(
    files: Arc<dyn Files>,
    places: Places,
    signers: (NoteSigner, Cosigner),
    publishing: Policy,
    mut history: History,
    served: Option<SignedCheckpoint>,
) -> Result<CheckpointLog, OpenError> {
    let size = |signed: &SignedCheckpoint| signed.checkpoint().size();
    // A checkpoint that was served but is not in the history: the history lost its end. It is verified, so it is kept again.
    let lost = served.clone().filter(|served| history.last.as_ref().map(size) < Some(size(served)));
    if lost.is_some() {
        history.last.clone_from(&lost);
    }
    // What is served has been published, whatever quorum is asked for today.
    let publishable = history.publishable.last().map(size);
    // Also one of the same size with other signatures: what nobody verified here may be damaged.
    let is_behind = history.publishable.last().is_some_and(|newest| {
        served.as_ref().is_none_or(|served| size(served) <= size(newest) && served != newest)
    });
    if let Some(served) = served.filter(|served| publishable < Some(size(served))) {
        history.publishable.push(served);
    }
    if history.publishable.len() > 2 {
        history.publishable.remove(0);
    }
    let mut checkpoints = CheckpointLog::new(files, places, signers, publishing, history);
    if let Some(lost) = &lost {
        checkpoints.keep(lost)?;
    }
    if let (true, Some(published)) = (is_behind, checkpoints.published()) {
        checkpoints.swap(published)?;
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
