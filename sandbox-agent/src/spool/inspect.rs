//! A spool that no agent has open, looked at on its disk.
//!
//! Left out: who may look (whoever can read the files), and what only a running agent knows: its limit, and what the last receipt
//! covers. Invariant: nothing is changed, a torn tail neither.

use std::path::{Path, PathBuf};

use exchequer_event::v1;
use exchequer_stream::journal;
use prost::Message as _;

use super::{
    LostExecution, SpoolError, epoch,
    replay::Replayed,
    unfinished::{self, Snapshot},
};

/// What is in a spool's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The agent, if the spool holds an event.
    pub agent_id: String,
    /// The epoch.
    pub epoch: u64,
    /// The last event on the disk, with the digest that the next one would name.
    pub written: u64,
    /// Its BLAKE3 digest, in hex; empty if there is none.
    pub hash: String,
    /// Events up to here were confirmed and removed; receipts may cover more.
    pub removed: u64,
    /// Bytes of events that are kept.
    pub kept_bytes: u64,
    /// When the oldest kept event was recorded, by the agent's clock then; 0 if there is none.
    pub oldest_kept_unix_ms: u64,
    /// Executions without an outcome: the next start records them as lost.
    pub open: Vec<LostExecution>,
}

/// Reads and checks a spool (the directory itself, or the agent's data directory). Blocks.
pub fn inspect(dir: &Path) -> Result<Inspection, SpoolError> {
    let below = dir.join("spool");
    let dir: PathBuf = if below.is_dir() { below } else { dir.to_owned() };
    let Some(epoch) = epoch::read_epoch(&dir)? else {
        let source = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(SpoolError::Io { action: "find an epoch file there", source });
    };
    let listed = unfinished::newest(&dir)?;
    let mut replayed = Replayed::new(listed.as_ref());
    let mut agent_id = listed.as_ref().map(|listed| listed.agent_id.clone()).unwrap_or_default();
    let mut oldest_kept_unix_ms = 0;
    let found = journal::inspect(&dir.join("journal"), |seq, bytes| {
        if agent_id.is_empty() {
            agent_id = v1::Event::decode(bytes).map_err(|error| error.to_string())?.agent_id;
        }
        let event = replayed.take(&agent_id, epoch, seq, bytes)?;
        if oldest_kept_unix_ms == 0 {
            oldest_kept_unix_ms = event.time_unix_ms;
        }
        Ok(())
    })?;
    Snapshot::check(listed.as_ref(), &agent_id, epoch, found.first, found.tip)?;
    Ok(Inspection {
        agent_id,
        epoch,
        written: found.tip,
        hash: if replayed.head.0 == 0 { String::new() } else { hex::encode(replayed.head.1.0) },
        removed: found.first - 1,
        kept_bytes: found.bytes,
        oldest_kept_unix_ms,
        open: replayed.open.into_values().map(|(_, lost)| lost).collect(),
    })
}
