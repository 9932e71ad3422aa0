//! What a verification leaves behind so that the next one needs to read only what is new: the checkpoint that was verified and the
//! audit's state there.
//!
//! Left out: whether the file is the caller's own. Whoever can write it can have a log verified that is not whole, so it has to be kept
//! like a key. Invariant: a state is made only of a log that was found to hold from its beginning, or from a state before it.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use exchequer_event::{
    accept::{Acceptor, KeyState},
    audit::Auditor,
};
use exchequer_tlog::SignedCheckpoint;
use serde::{Deserialize, Serialize};

use super::keys::LedgerKeys;

/// Of another version nothing is taken over: its rules may be others.
const VERSION: &str = concat!("exchequer verified 1, ", env!("CARGO_PKG_VERSION"));

/// A log as it was verified once.
#[derive(Clone, Debug)]
pub struct Verified {
    pub(super) checkpoint: SignedCheckpoint,
    pub(super) auditor: Auditor,
    pub(super) keys: LedgerKeys,
}

#[derive(Serialize, Deserialize)]
struct StateFile {
    version: String,
    checkpoint: String,
    stream_seq: u64,
    acceptor: String,
    ledger_keys: LedgerKeys,
}

impl Verified {
    /// The checkpoint that was verified.
    pub fn checkpoint(&self) -> &SignedCheckpoint {
        &self.checkpoint
    }

    /// Every key that was ever enrolled in it.
    pub fn keys(&self) -> &[KeyState] {
        self.auditor.acceptor().keys()
    }

    /// Reads what [`write`](Self::write) wrote.
    pub fn read(path: &Path) -> Result<Self, String> {
        let at = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| at(&error))?;
        let file: StateFile = serde_json::from_str(&text)
            .map_err(|error| at(&format!("not the state of a verification (see --save): {error}")))?;
        if file.version != VERSION {
            let error = format!("it is by another version ({}): verify the whole log once", file.version);
            return Err(at(&error));
        }
        let acceptor = STANDARD.decode(&file.acceptor).map_err(|error| at(&error))?;
        let acceptor = Acceptor::restore(&acceptor).map_err(|error| at(&error))?;
        Ok(Self {
            checkpoint: SignedCheckpoint::parse(file.checkpoint.as_bytes()).map_err(|error| at(&error))?,
            auditor: Auditor::resume(acceptor, file.stream_seq),
            keys: file.ledger_keys,
        })
    }

    /// Writes the state, as a whole or not at all.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let file = StateFile {
            version: VERSION.into(),
            checkpoint: self.checkpoint.to_string(),
            stream_seq: self.auditor.stream_seq(),
            acceptor: STANDARD.encode(self.auditor.acceptor().snapshot()),
            ledger_keys: self.keys.clone(),
        };
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut temp = tempfile::Builder::new().prefix(".exchequer-verified-").tempfile_in(dir)?;
        serde_json::to_writer(temp.as_file_mut(), &file)?;
        temp.as_file().sync_all()?;
        temp.persist(path).map_err(|error| error.error)?;
        Ok(())
    }
}
