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
can't be told from the files alone: lines that are missing at the end, until the agent runs again and says so in the file, and a chain that
was written anew as a whole. Compare the last event, and any other by its blake3, with the ledger's log (`exchequer log show`).
A last line of FILE without an end is being written, or was torn by a crash and is cut when the agent starts: all before it is checked.
Exit status: 0 sound, 1 broken, or lines were written and are gone as the file says, 2 it could not be read, or all but its last line.")]
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
            (Ok(report), format) => {
                match format {
                    Format::Json => print::json(&json!({"sound": status(&report) == 0, "report": report}))?,
                    Format::Text => show(&report)?,
                }
                Ok(ExitCode::from(status(&report)))
            }
            (Err(VerifyError::Broken(broken)), Format::Json) => {
                print::json(&json!({"sound": false, "broken": broken}))?;
                Ok(ExitCode::from(1))
            }
            (Err(VerifyError::Broken(broken)), Format::Text) => {
                print::text(&format!("BROKEN: {broken}"))?;
                Ok(ExitCode::from(1))
            }
            (Err(error), _) => Err(error.into()),
        }
    }
}

fn status(report: &Report) -> u8 {
    match (report.is_gone(), report.unfinished) {
        (true, _) => 1,
        (false, Some(_)) => 2,
        (false, None) => 0,
    }
}

fn show(report: &Report) -> std::io::Result<()> {
    let Report { files, lines, events, first, last, last_blake3, begins_later, holes, cuts, unfinished } =
        report;
    let word = match status(report) {
        0 => "SOUND",
        1 => "GONE",
        _ => "UNFINISHED",
    };
    print::text(&format!("{word}: {lines} lines, {events} events, files: {}", files.join(", ")))?;
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
    if let Some(line) = unfinished {
        print::text(&format!("line {line} of the last file is being written or was torn"))?;
    }
    if *cuts > 0 {
        print::text(&format!("{cuts} torn lines were cut off after crashes, as the file says"))?;
    }
    Ok(())
}
