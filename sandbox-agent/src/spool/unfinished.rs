//! Executions without an outcome whose admission the journal holds no longer, in two files beside it.
//!
//! An execution that runs for long must not keep hours of confirmed events on the disk. So before a part of the journal is removed, what
//! its open executions need for an outcome is written here. The files are written in turn and in place, into blocks that were allocated
//! when they were made: a write that is cut short leaves the other file whole, and a full disk can't keep the spool from shrinking.
//!
//! Each holds a line: the SHA-256 of the rest in hex, a space, a JSON object. Left out: which executions are open. Invariant: nothing
//! before `first` is removed from the journal before a file with that `first` is on disk; so the newest whole file says at least as much
//! as was removed, and one that says less is damage.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use exchequer_event::v1;
use rustix::{fs::FallocateFlags, io::Errno};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{LostExecution, SpoolError};

/// The two files.
const FILES: [&str; 2] = ["unfinished.0", "unfinished.1"];
/// Allocated for each execution that may be open; names and ids are bounded well below it.
const EXECUTION_BYTES: u64 = 1024;
/// Allocated in any case.
const LEAST_BYTES: u64 = 16 << 10;
/// Most that is read of a file.
const MAX_BYTES: u64 = 64 << 20;

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    /// Given by [`Unfinished::write`].
    pub(super) generation: u64,
    pub(super) agent_id: String,
    pub(super) epoch: u64,
    /// The journal may begin here.
    pub(super) first: u64,
    /// Executions that were admitted before that and had no outcome before that.
    pub(super) open: Vec<Open>,
}

/// An open execution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Open {
    /// Position of the admission.
    pub(super) seq: u64,
    execution_id: String,
    tenant: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    skill: String,
    hold_id: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    reserved: Vec<(String, u64)>,
}

impl Open {
    pub(super) fn new(seq: u64, execution: &LostExecution) -> Self {
        let LostExecution { execution_id, tenant, skill, hold_id, reserved } = execution.clone();
        let reserved = reserved.into_iter().map(|of| (of.meter, of.amount)).collect();
        Self { seq, execution_id, tenant, skill, hold_id, reserved }
    }

    pub(super) fn execution(&self) -> LostExecution {
        let amount =
            |(meter, amount): &(String, u64)| v1::MeterAmount { meter: meter.clone(), amount: *amount };
        LostExecution {
            execution_id: self.execution_id.clone(),
            tenant: self.tenant.clone(),
            skill: self.skill.clone(),
            hold_id: self.hold_id.clone(),
            reserved: self.reserved.iter().map(amount).collect(),
        }
    }
}

/// The files, open for writing.
#[derive(Debug)]
pub(super) struct Unfinished {
    files: [File; 2],
    generation: u64,
}

impl Unfinished {
    /// Opens both files, made with room for so many executions if they are not there. Blocks.
    pub(super) fn open(dir: &Path, max_open: usize, newest: Option<&Snapshot>) -> Result<Self, SpoolError> {
        let open = |name: &str| -> io::Result<File> {
            let path = dir.join(name);
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
            let bytes = LEAST_BYTES + EXECUTION_BYTES * max_open as u64;
            // Where blocks can't be allocated ahead, they are when they are written.
            if let Err(error @ (Errno::NOSPC | Errno::DQUOT)) =
                rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, bytes)
            {
                tracing::warn!(name, %error, "no room is kept for the list of open executions");
            }
            Ok(file)
        };
        let io = |source| SpoolError::Io { action: "open the list of open executions", source };
        let files = [open(FILES[0]).map_err(io)?, open(FILES[1]).map_err(io)?];
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)?;
        Ok(Self { files, generation: newest.map_or(0, |snapshot| snapshot.generation) })
    }

    /// Makes it durable. If this fails, what was written before still counts. Blocks.
    pub(super) fn write(&mut self, snapshot: Snapshot) -> io::Result<()> {
        let snapshot = Snapshot { generation: self.generation + 1, ..snapshot };
        let text = serde_json::to_string(&snapshot)?;
        let line = format!("{} {text}\n", hex::encode(Sha256::digest(&text)));
        let file = &self.files[usize::from(snapshot.generation % 2 == 1)];
        file.write_all_at(line.as_bytes(), 0)?;
        file.sync_data()?;
        self.generation = snapshot.generation;
        Ok(())
    }
}

/// The newest whole snapshot in a spool's directory, if there is one. Changes nothing.
pub(super) fn newest(dir: &Path) -> Result<Option<Snapshot>, SpoolError> {
    let mut newest: Option<Snapshot> = None;
    for name in FILES {
        let mut bytes = Vec::new();
        match File::open(dir.join(name)).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => {
                return Err(SpoolError::Io { action: "read the list of open executions", source });
            }
        }
        let Some(snapshot) = decode(&bytes) else { continue };
        if newest.as_ref().is_none_or(|newest| newest.generation < snapshot.generation) {
            newest = Some(snapshot);
        }
    }
    Ok(newest)
}

fn decode(bytes: &[u8]) -> Option<Snapshot> {
    // What stands behind the line is left from a longer one.
    let line = bytes.split(|byte| *byte == b'\n').next()?;
    let (digest, text) = line.split_at_checked(64)?;
    let text = text.strip_prefix(b" ")?;
    (hex::encode(Sha256::digest(text)).as_bytes() == digest).then_some(())?;
    serde_json::from_slice(text).ok()
}

impl Snapshot {
    /// Refuses if the journal of this agent and epoch, which begins at `first` and ends at `tip`, can't be the one that it is about.
    pub(super) fn check(
        found: Option<&Self>,
        agent_id: &str,
        epoch: u64,
        first: u64,
        tip: u64,
    ) -> Result<(), SpoolError> {
        let refuse = |problem: String| Err(SpoolError::Unfinished(problem));
        let Some(snapshot) = found else {
            if first == 1 {
                return Ok(());
            }
            return refuse(format!(
                "the list of open executions is damaged or missing, and the journal begins at {first}"
            ));
        };
        if (snapshot.agent_id.as_str(), snapshot.epoch) != (agent_id, epoch) {
            return refuse(format!(
                "the list of open executions is {} {}'s",
                snapshot.agent_id, snapshot.epoch
            ));
        }
        if snapshot.first < first {
            return refuse(format!(
                "the list of open executions covers what is before {}, and the journal begins at {first}",
                snapshot.first
            ));
        }
        if snapshot.first > tip + 1 {
            return refuse(format!(
                "the journal ends at {tip}, and what is before {} was confirmed already",
                snapshot.first
            ));
        }
        Ok(())
    }
}
