//! The spool's epoch, in a file beside the journal.
//!
//! Left out: what an epoch means to the ledger. Invariant: a directory keeps its epoch for good; a new one takes a higher.

use std::{fs, io::Write, path::Path};

use super::{SpoolError, unix_ms};

/// File that holds the epoch, in decimal.
const EPOCH_FILE: &str = "epoch";

/// The epoch of a spool that is there, if it is.
pub(super) fn read_epoch(dir: &Path) -> Result<Option<u64>, SpoolError> {
    match fs::read_to_string(dir.join(EPOCH_FILE)) {
        Ok(text) => text.trim().parse().ok().filter(|epoch| *epoch > 0).ok_or(SpoolError::Epoch).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SpoolError::Io { action: "read the epoch file", source }),
    }
}

/// The spool's epoch; for a new spool one that is above the ledger's last and, by the clock, above any that was lost unseen.
pub(super) fn read_or_create_epoch(dir: &Path, min_epoch: u64) -> Result<u64, SpoolError> {
    let io = |action| move |source| SpoolError::Io { action, source };
    fs::create_dir_all(dir).map_err(io("create the directory"))?;
    if let Some(epoch) = read_epoch(dir)? {
        return Ok(epoch);
    }
    let epoch = (unix_ms() / 1000).max(min_epoch.saturating_add(1));
    let staged = dir.join("epoch.new");
    let mut file = fs::File::create(&staged).map_err(io("create the epoch file"))?;
    writeln!(file, "{epoch}").and_then(|()| file.sync_all()).map_err(io("write the epoch file"))?;
    fs::rename(&staged, dir.join(EPOCH_FILE)).map_err(io("place the epoch file"))?;
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("sync the directory"))?;
    Ok(epoch)
}
