//! Committing entries: bundles and tiles first, then the state that counts them.
//!
//! Left out: checkpoints. Invariant: after an error nothing of this writer may be used any more; reopening decides what counts.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use exchequer_event::digest::Digest;
use exchequer_tlog::{BundleEdge, Hash, RightEdge, leaf_hash};

use super::{
    files::{Files, NewFile},
    read::{Sizes, StoreError},
    state::Position,
};

/// Directories known to exist, so that the ordinary commit asks for none.
const MAX_KNOWN_DIRS: usize = 4096;

/// Where the parts of the store are.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) data: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) staging: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) checkpoint: PathBuf,
    pub(crate) history: PathBuf,
}

impl Places {
    pub(crate) fn new(data: &Path) -> Self {
        let log = data.join("log");
        Self {
            data: data.to_owned(),
            staging: data.join("staging"),
            state: data.join("state"),
            checkpoint: log.join("checkpoint"),
            history: data.join("checkpoints"),
            log,
        }
    }
}

/// Swaps files in as a whole: content, then names, then the directories that hold the names.
pub(crate) fn swap_in(
    files: &dyn Files,
    staging: &Path,
    new: impl IntoIterator<Item = (PathBuf, Vec<u8>)>,
) -> Result<(), StoreError> {
    swap_in_as("", files, staging, new)
}

/// As [`swap_in`]; whoever swaps in files of the same name at the same time has to name them differently in staging.
pub(super) fn swap_in_as(
    staged_as: &str,
    files: &dyn Files,
    staging: &Path,
    new: impl IntoIterator<Item = (PathBuf, Vec<u8>)>,
) -> Result<(), StoreError> {
    let mut staged = Vec::new();
    let mut targets = Vec::new();
    for (count, (target, bytes)) in new.into_iter().enumerate() {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        staged.push(NewFile { path: staging.join(format!("{staged_as}{count}-{name}")), bytes });
        targets.push(target);
    }
    if staged.is_empty() {
        return Ok(());
    }
    files.write(&staged).map_err(StoreError::io(staging))?;
    let mut dirs = BTreeSet::new();
    for (new, target) in staged.iter().zip(&targets) {
        files.rename(&new.path, target).map_err(StoreError::io(target))?;
        dirs.extend(target.parent());
    }
    dirs.into_iter().try_for_each(|dir| files.sync_dir(dir).map_err(StoreError::io(dir)))
}

/// Writes files that nothing counts yet, at their places. After a crash in the middle the same content is written there again, or the
/// file is found surplus.
fn write_new(files: &dyn Files, new: Vec<NewFile>) -> Result<(), StoreError> {
    let path = new.first().map(|new| new.path.clone()).unwrap_or_default();
    files.write(&new).map_err(StoreError::io(&path))?;
    let dirs: BTreeSet<_> = new.iter().filter_map(|new| new.path.parent()).collect();
    dirs.into_iter().try_for_each(|dir| files.sync_dir(dir).map_err(StoreError::io(dir)))
}

/// Appends to the log. There is one per data directory.
#[derive(Debug)]
pub(crate) struct LogWriter {
    pub(super) files: Arc<dyn Files>,
    pub(super) places: Places,
    pub(super) sizes: Arc<Sizes>,
    pub(super) origin: String,
    pub(super) tree: RightEdge,
    pub(super) bundles: BundleEdge,
    pub(super) position: Position,
    pub(super) known_dirs: BTreeSet<PathBuf>,
}

impl LogWriter {
    /// Where the log stands.
    pub(crate) fn position(&self) -> &Position {
        &self.position
    }

    /// Makes entries part of the log, together with the stream sequence up to which it now holds the stream.
    pub(crate) fn commit(
        &mut self,
        entries: &[Bytes],
        cursor: u64,
        last_message: Digest,
    ) -> Result<(), StoreError> {
        let leaves: Vec<_> = entries.iter().map(|entry| leaf_hash(entry)).collect();
        self.commit_leaves(entries, &leaves, cursor, last_message)
    }

    /// [`commit`](Self::commit) for entries whose leaf hashes are known.
    pub(crate) fn commit_leaves(
        &mut self,
        entries: &[Bytes],
        leaves: &[Hash],
        cursor: u64,
        last_message: Digest,
    ) -> Result<(), StoreError> {
        debug_assert!(entries.iter().map(|entry| leaf_hash(entry)).eq(leaves.iter().copied()));
        let mut next = Position { cursor, last_message, ..self.position.clone() };
        if !entries.is_empty() {
            let tree = self.tree.integrate(leaves);
            let bundles = self.bundles.integrate(entries)?;
            let named = |id: String, bytes| NewFile { path: self.places.log.join(id), bytes };
            let new: Vec<_> = bundles
                .bundles
                .into_iter()
                .map(|bundle| named(bundle.id.to_string(), bundle.bytes))
                .chain(tree.tiles.iter().map(|tile| named(tile.id.to_string(), tile.bytes())))
                .collect();
            for dir in new.iter().filter_map(|new| new.path.parent()) {
                if !self.known_dirs.contains(dir) {
                    self.files.create_dirs(dir).map_err(StoreError::io(dir))?;
                    self.known_dirs.insert(dir.to_owned());
                }
            }
            if self.known_dirs.len() > MAX_KNOWN_DIRS {
                self.known_dirs.clear();
            }
            write_new(&*self.files, new)?;
            (next.size, next.root) = (tree.edge.size(), tree.root);
            (self.tree, self.bundles) = (tree.edge, bundles.edge);
        }
        // The commit: from here on the entries count.
        let state = (self.places.state.clone(), next.encode(&self.origin));
        swap_in(&*self.files, &self.places.staging, [state])?;
        self.sizes.commit(next.size);
        self.position = next;
        Ok(())
    }
}
