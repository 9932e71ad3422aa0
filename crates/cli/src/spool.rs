//! `exchequer spool`: what an agent has recorded and the ledger has not confirmed, and why.
//!
//! Left out: reading the spool (`sandbox_agent::spool`). Invariant: nothing is changed, in the directory of a stopped agent neither.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use exchequer_event::v1;
use sandbox_agent::spool::{self, Inspection};
use serde_json::json;

use crate::{
    client::Connection,
    describe::{bytes_text, to_json, utc},
    print::{self, Format},
};

/// Show what an agent's spool holds, and what waits in it.
#[derive(clap::Subcommand)]
pub enum Spools {
    /// How far the spool is written and confirmed, what waits and for how long, and what does not work
    #[command(after_help = "\
Examples:
  exchequer spool status                                   of the agent that the connection names; role auditor or admin
  exchequer spool status --grpc worker-1:7421 --token @auditor.token
  exchequer spool status /data/spool                       of a stopped agent, from its files

A running agent says what it knows; the files alone do not tell how far receipts go beyond what was removed, nor the limit.
Exit status: 0, or 1 if the spool refuses new executions; 2 if it can't be read.")]
    Status(Status),
}

/// Arguments of `spool status`.
#[derive(clap::Args)]
pub struct Status {
    /// The spool's directory, or the agent's data directory; the agent has to be stopped
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

impl Spools {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let Self::Status(Status { dir, format, connection }) = self;
        if let Some(dir) = dir {
            let found = tokio::task::spawn_blocking(move || spool::inspect(&dir)).await??;
            match format {
                Format::Text => rows(&on_disk(&found))?,
                Format::Json => print::json(&inspection_json(&found))?,
            }
            return Ok(ExitCode::SUCCESS);
        }
        let mut agent = connection.agent().await?;
        let status = agent.get_spool_status(v1::GetSpoolStatusRequest {}).await?.into_inner();
        match format {
            Format::Text => rows(&running(&status))?,
            Format::Json => print::json(&to_json("GetSpoolStatusResponse", &status))?,
        }
        Ok(ExitCode::from(u8::from(!status.refusing.is_empty())))
    }
}

fn rows(rows: &[(&str, String)]) -> std::io::Result<()> {
    rows.iter().try_for_each(|(name, value)| print::text(&format!("{name:<11} {value}")))
}

fn running(status: &v1::GetSpoolStatusResponse) -> Vec<(&'static str, String)> {
    let written = status.written.clone().unwrap_or_default();
    let confirmed = status.confirmed.as_ref().map_or(0, |head| head.seq);
    let (kept, limit) = (bytes_text(status.kept_bytes), bytes_text(status.limit_bytes));
    let trouble =
        |trouble: &str, well: &str| if trouble.is_empty() { well.to_owned() } else { trouble.to_owned() };
    let oldest = match status.oldest_unconfirmed_unix_ms {
        0 => "nothing is unconfirmed".to_owned(),
        since => {
            let age = Duration::from_secs(status.oldest_unconfirmed_age_ms / 1000);
            format!(
                "{} to {} wait, the oldest since {} ({} s)",
                confirmed + 1,
                written.seq,
                utc(since),
                age.as_secs()
            )
        }
    };
    let mut rows = vec![
        ("agent", format!("{}, epoch {}", written.agent_id, written.epoch)),
        ("written", format!("{}  {}", written.seq, hex::encode(&written.hash))),
        ("confirmed", confirmed.to_string()),
        ("unconfirmed", oldest),
        ("kept", format!("{} events, {kept} of at most {limit}", status.kept_events)),
        ("running", format!("{} executions without an outcome", status.open_executions)),
        ("publishing", trouble(&status.publishing_trouble, "works")),
        ("executions", trouble(&status.refusing, "are admitted")),
    ];
    if !status.condemned.is_empty() {
        rows.push(("condemned", status.condemned.clone()));
    }
    if !status.audit_log_trouble.is_empty() {
        rows.push(("audit log", status.audit_log_trouble.clone()));
    }
    if !status.pruning_trouble.is_empty() {
        rows.push(("not removed", status.pruning_trouble.clone()));
    }
    rows
}

fn on_disk(found: &Inspection) -> Vec<(&'static str, String)> {
    let kept = found.written - found.removed;
    let mut rows = vec![
        ("agent", format!("{}, epoch {}", found.agent_id, found.epoch)),
        ("written", format!("{}  {}", found.written, found.hash)),
        ("confirmed", format!("at least {}: so much was removed", found.removed)),
        ("kept", format!("{kept} events, {}", bytes_text(found.kept_bytes))),
    ];
    if found.oldest_kept_unix_ms > 0 {
        rows.push(("oldest kept", utc(found.oldest_kept_unix_ms)));
    }
    rows.push(("running", format!("{} executions without an outcome", found.open.len())));
    for lost in &found.open {
        rows.push(("", format!("{}  tenant {}  hold {}", lost.execution_id, lost.tenant, lost.hold_id)));
    }
    rows
}

fn inspection_json(found: &Inspection) -> serde_json::Value {
    let open = found.open.iter().map(|lost| {
        json!({
            "execution_id": lost.execution_id,
            "tenant": lost.tenant,
            "skill": lost.skill,
            "hold_id": lost.hold_id,
        })
    });
    json!({
        "agent_id": found.agent_id,
        "epoch": found.epoch,
        "written": found.written,
        "hash": found.hash,
        "confirmed_at_least": found.removed,
        "kept_events": found.written - found.removed,
        "kept_bytes": found.kept_bytes,
        "oldest_kept_unix_ms": found.oldest_kept_unix_ms,
        "open": open.collect::<Vec<_>>(),
    })
}
