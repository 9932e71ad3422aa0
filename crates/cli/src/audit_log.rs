//! `exchequer audit-log`: the file that an agent writes of its events on its own host.
//!
//! Left out: the check itself (`sandbox_agent::audit_log`). Invariant: the exit status says whether the chain is as it was written.

use std::{path::PathBuf, process::ExitCode};

use sandbox_agent::audit_log::{self, Report, VerifyError};
use serde_json::json;

use crate::print::{self, Format};

/// Check the file that an agent writes of its events on its own host.
#[derive(clap::Subcommand)]
pub enum AuditLog {
    /// Check that no line was changed, removed, added or moved; name the first that was
    #[command(after_help = "\
Examples:
  exchequer audit-log verify /var/log/exchequer/audit.ndjson

FILE's earlier files, FILE.N to FILE.1, are read before it. Files that rotation removed from the beginning are no fault, and are said. What
can't be told from the files alone: lines that are missing at the end, and a chain that was written anew as a whole. Compare the last
event, and any other by its blake3, with the ledger's log (`exchequer log show`).
Exit status: 0 sound, 1 broken, 2 it could not be read.")]
    Verify(Verify),
}

/// Arguments of `audit-log verify`.
#[derive(clap::Args)]
pub struct Verify {
    /// The file that the agent writes (`agent.audit_log.path`)
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl AuditLog {
    /// Runs it.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Self::Verify(Verify { file, format }) = self;
        match (audit_log::verify(&file), format) {
            (Ok(report), Format::Json) => print::json(&json!({"sound": true, "report": report}))?,
            (Ok(report), Format::Text) => sound(&report)?,
            (Err(VerifyError::Broken(broken)), Format::Json) => {
                print::json(&json!({"sound": false, "broken": broken}))?;
                return Ok(ExitCode::from(1));
            }
            (Err(VerifyError::Broken(broken)), Format::Text) => {
                print::text(&format!("BROKEN: {broken}"))?;
                return Ok(ExitCode::from(1));
            }
            (Err(error), _) => return Err(error.into()),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn sound(report: &Report) -> std::io::Result<()> {
    let Report { files, lines, events, first, last, last_blake3, begins_later, holes, cuts } = report;
    print::text(&format!("SOUND: {lines} lines, {events} events, files: {}", files.join(", ")))?;
    if let (Some(first), Some(last)) = (first, last) {
        print::text(&format!(
            "agent {}, from event {} of epoch {} to event {} of epoch {}",
            last.agent, first.seq, first.epoch, last.seq, last.epoch
        ))?;
    }
    if let Some(digest) = last_blake3 {
        print::text(&format!("blake3 of the last event: {digest}"))?;
    }
    if *begins_later {
        print::text("what was before the first line is not here: rotation removes the oldest file")?;
    }
    for hole in holes {
        print::text(&format!(
            "events {} to {} of epoch {} are missing, as the file says: {}",
            hole.from, hole.until, hole.epoch, hole.reason
        ))?;
    }
    if *cuts > 0 {
        print::text(&format!("{cuts} torn lines were cut off after crashes, as the file says"))?;
    }
    Ok(())
}
