//! What a witness holds of one log: the newest checkpoint that it cosigned, in a file of its own.
//!
//! Left out: who may ask. Invariant: a cosignature is made only while the lock is held and its tree head is durable; what is held
//! never becomes smaller or another tree.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use exchequer_tlog::{AddCheckpoint, SignedCheckpoint};

use super::decide::{Head, Refusal, decide};
use crate::store::{
    StoreError,
    files::{Files, NewFile},
    frame::{encode_frame, split_frame},
};

/// The state of one log.
#[derive(Debug)]
pub(super) struct Register {
    files: Arc<dyn Files>,
    dir: PathBuf,
    path: PathBuf,
    held: Mutex<Head>,
}

impl Register {
    /// Opens the state of the log with this origin; the directory is there.
    pub(super) fn open(files: Arc<dyn Files>, dir: &Path, origin: &str) -> Result<Self, StoreError> {
        // An origin may hold any character, and more of them than a file name.
        let name = &blake3::hash(origin.as_bytes()).to_hex()[..32];
        let path = dir.join(name);
        // A process may have ended between the file's new name and the sync of it; what is relied on has to outlast the power, too.
        files.sync_dir(dir).map_err(StoreError::io(dir))?;
        let held = match files.read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Head::EMPTY,
            Err(error) => return Err(StoreError::io(&path)(error)),
            Ok(bytes) => read(&bytes, origin)
                .map_err(|reason| StoreError::Damaged { path: path.display().to_string(), reason })?,
        };
        Ok(Self { files, dir: dir.to_owned(), path, held: Mutex::new(held) })
    }

    /// The newest tree head that was cosigned.
    pub(super) fn held(&self) -> Head {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares an admitted request with what is held, makes its checkpoint durable, and only then calls `sign`, all in one piece: a
    /// cosignature's time has to be one at which no larger tree was held.
    pub(super) fn advance<T>(&self, request: &AddCheckpoint, sign: impl FnOnce() -> T) -> Result<T, Advance> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let new = decide(&held, request).map_err(Advance::Refused)?;
        if new != *held {
            // After a failure the file is either one; both are continued by whatever is cosigned next.
            self.keep(&request.signed).map_err(Advance::NotKept)?;
            *held = new;
        }
        Ok(sign())
    }

    fn keep(&self, signed: &SignedCheckpoint) -> Result<(), StoreError> {
        let staged = self.path.with_extension("new");
        let new = NewFile { path: staged.clone(), bytes: encode_frame(&signed.to_string()) };
        self.files.write(&[new]).map_err(StoreError::io(&staged))?;
        self.files.rename(&staged, &self.path).map_err(StoreError::io(&self.path))?;
        self.files.sync_dir(&self.dir).map_err(StoreError::io(&self.dir))
    }
}

/// Why a request led to no cosignature.
#[derive(Debug)]
pub(super) enum Advance {
    Refused(Refusal),
    NotKept(StoreError),
}

fn read(bytes: &[u8], origin: &str) -> Result<Head, String> {
    let (note, rest) = split_frame(bytes).ok_or("its checksum is wrong")?;
    if !rest.is_empty() {
        return Err("something follows the checkpoint".to_owned());
    }
    let signed = SignedCheckpoint::parse(note).map_err(|error| error.to_string())?;
    if signed.checkpoint().origin() != origin {
        return Err(format!("it is of the log `{}`, not `{origin}`", signed.checkpoint().origin()));
    }
    Ok(Head::of(signed.checkpoint()))
}
