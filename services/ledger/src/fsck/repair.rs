//! Putting repaired files in place, the way the store does: written and synced aside, renamed, the directory synced.
//!
//! Left out: what is right. Invariant: what is replaced or removed is in `DATA/fsck-<n>/` first, under its path, durably.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::store::{Disk, Files as _, Places, StoreError, swap_in};

/// A repair in progress.
pub(super) struct Repair {
    places: Places,
    aside: PathBuf,
    is_used: bool,
}

impl Repair {
    /// Begins a repair; the directory for what it replaces is made when it is needed.
    pub(super) fn begin(places: Places) -> Self {
        let free = |number: &u32| !places.data.join(format!("fsck-{number}")).exists();
        let number = (1..=u32::MAX).find(free).unwrap_or_default();
        Self { aside: places.data.join(format!("fsck-{number}")), places, is_used: false }
    }

    /// Where what was replaced is, if anything was.
    pub(super) fn aside(&self) -> Option<PathBuf> {
        self.is_used.then(|| self.aside.clone())
    }

    /// Puts a file in place; its path is under the data directory.
    pub(super) fn put(&mut self, path: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        let target = self.places.data.join(path);
        // What lies there after a first copy was made is this repair's own.
        if target.exists() && !self.aside.join(path).exists() {
            let copy = self.room(path)?;
            fs::copy(&target, &copy)
                .and_then(|_| fs::File::open(&copy)?.sync_all())
                .map_err(StoreError::io(&copy))?;
            sync_parent(&copy)?;
        }
        for dir in target.parent().into_iter().chain([&*self.places.staging]) {
            Disk.create_dirs(dir).map_err(StoreError::io(dir))?;
        }
        swap_in(&Disk, &self.places.staging, [(target, bytes)])
    }

    /// Moves a file or directory away.
    pub(super) fn remove(&mut self, path: &str) -> Result<(), StoreError> {
        let target = self.places.data.join(path);
        let kept = self.room(path)?;
        fs::rename(&target, &kept).map_err(StoreError::io(&target))?;
        sync_parent(&kept)?;
        sync_parent(&target)?;
        // The directory of partial files goes with the last of them.
        if let Some(dir) = target.parent().filter(|dir| dir.extension().is_some_and(|name| name == "p")) {
            Disk.remove_empty_dir(dir).map_err(StoreError::io(dir))?;
        }
        Ok(())
    }

    /// The path to keep a file under.
    fn room(&mut self, path: &str) -> Result<PathBuf, StoreError> {
        let kept = self.aside.join(path);
        if let Some(dir) = kept.parent() {
            Disk.create_dirs(dir).map_err(StoreError::io(dir))?;
        }
        self.is_used = true;
        Ok(kept)
    }
}

fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let synced: io::Result<()> = Disk.sync_dir(dir);
    synced.map_err(StoreError::io(dir))
}
