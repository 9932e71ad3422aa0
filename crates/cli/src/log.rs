//! `exchequer log`: reads the audit log, follows it, and proves that an entry is in it.
//!
//! Left out: checking the whole log (`verify`). Invariant: a proof is printed only after it was verified here.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use exchequer_event::v1::{self, EntryKind, EventKind};
use exchequer_tlog::{Hash, Policy, SignedCheckpoint, TlogProof, VerifierKey};
use serde_json::json;

use crate::{
    client::{Connection, Refused},
    describe, evidence,
    payload::{self, Opener, Reveal},
    print::{self, Format},
};

/// Entries per page.
const PAGE: u32 = 200;
/// How often a proof is asked for again because the tree grew between two answers.
const PROOF_ATTEMPTS: u32 = 10;

/// Read, follow and prove the audit log
#[derive(clap::Subcommand)]
pub enum Log {
    /// Show entries, decoded, in log order
    #[command(after_help = "\
Examples:
  exchequer log show --tenant acme --since 10m
  exchequer log show --execution 0198c9f2-… --format json
  exchequer log show --skill sum-up --event-kind execution-finished
  exchequer log show --tenant acme --payload-key acme.key
  exchequer log show --kind control --all")]
    Show(Show),
    /// Show new entries as checkpoints cover them
    #[command(
        after_help = "Examples:\n  exchequer log tail --tenant acme\n  exchequer log tail --from 0 --format json"
    )]
    Tail(Tail),
    /// Print a proof (C2SP tlog-proof) that an entry is in the log, verified against the log's key
    #[command(after_help = "\
Examples:
  exchequer log prove 12 --out entry-12.tlog-proof --entry-out entry-12
  exchequer log prove 12 --key exchequer.local/log+1a2b3c4d+AQ…")]
    Prove(Prove),
    /// Show how far each agent's events are in the log
    Heads(Heads),
}

/// Which entries.
#[derive(clap::Args)]
#[command(next_help_heading = "Filter")]
struct Filter {
    /// Of one tenant
    #[arg(long, value_name = "TENANT", default_value = "", hide_default_value = true)]
    tenant: String,
    /// Of one execution
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    execution: String,
    /// Of one agent
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    agent: String,
    /// One event of the agent
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, requires = "agent")]
    seq: u64,
    /// Of this kind: batch-sealed, event, block-sealed, decision-run, control, rejection, equivocation; can be given more than once
    #[arg(long, value_name = "KIND", value_parser = kind)]
    kind: Vec<EntryKind>,
    /// Of executions that run this skill
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    skill: String,
    /// Events of this kind: agent-started, agent-stopped, execution-admitted, execution-denied, execution-finished,
    /// control-degraded; can be given more than once
    #[arg(long, value_name = "KIND", value_parser = event_kind)]
    event_kind: Vec<EventKind>,
    /// Events at most this old, such as 10m or 2h
    #[arg(long, value_name = "AGE", value_parser = exchequer_config::parse_duration)]
    since: Option<Duration>,
    /// Events at least this old
    #[arg(long, value_name = "AGE", value_parser = exchequer_config::parse_duration)]
    until: Option<Duration>,
}

impl Filter {
    fn wire(self) -> v1::EntryFilter {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let before = |age: Option<Duration>| {
            age.map_or(0, |age| u64::try_from(now.saturating_sub(age).as_millis()).unwrap_or(u64::MAX))
        };
        v1::EntryFilter {
            tenant: self.tenant,
            execution_id: self.execution,
            agent_id: self.agent,
            agent_seq: self.seq,
            kinds: self.kind.into_iter().map(i32::from).collect(),
            from_unix_ms: before(self.since),
            until_unix_ms: before(self.until),
            skill: self.skill,
            event_kinds: self.event_kind.into_iter().map(i32::from).collect(),
            ..Default::default()
        }
    }
}

fn kind(text: &str) -> Result<EntryKind, String> {
    let name = format!("ENTRY_KIND_{}", text.replace('-', "_").to_uppercase());
    match EntryKind::from_str_name(&name) {
        None | Some(EntryKind::Unspecified) => Err(
            "expected batch-sealed, event, block-sealed, decision-run, control, rejection or equivocation"
                .to_owned(),
        ),
        Some(kind) => Ok(kind),
    }
}

fn event_kind(text: &str) -> Result<EventKind, String> {
    let name = format!("EVENT_KIND_{}", text.replace('-', "_").to_uppercase());
    match EventKind::from_str_name(&name) {
        None | Some(EventKind::Unspecified) => Err(
            "expected agent-started, agent-stopped, execution-admitted, execution-denied, execution-finished or control-degraded"
                .to_owned(),
        ),
        Some(kind) => Ok(kind),
    }
}

/// Arguments of `log show`.
#[derive(clap::Args)]
pub struct Show {
    #[command(flatten)]
    filter: Filter,
    /// One entry, by index
    #[arg(long, value_name = "N")]
    index: Option<u64>,
    #[command(flatten)]
    reveal: Reveal,
    /// Check the opening (in hex, as --format json shows it to who has the key) that this file holds against the entry's commitment, and
    /// show the payload: nothing else of the tenant's is needed
    #[arg(
        long,
        value_name = "FILE",
        requires = "index",
        conflicts_with = "payload_key",
        help_heading = "Confidential payloads"
    )]
    opening: Option<PathBuf>,
    /// Stop after so many
    #[arg(long, value_name = "N", default_value_t = 100, conflicts_with = "all")]
    limit: u64,
    /// Show all of them
    #[arg(long)]
    all: bool,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

/// Arguments of `log tail`.
#[derive(clap::Args)]
pub struct Tail {
    #[command(flatten)]
    filter: Filter,
    /// Begin at this index instead of the end
    #[arg(long, value_name = "N")]
    from: Option<u64>,
    /// Stop after so many entries
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    reveal: Reveal,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

/// Arguments of `log prove`.
#[derive(clap::Args)]
pub struct Prove {
    /// Index of the entry
    #[arg(value_name = "INDEX")]
    index: u64,
    /// The log's verifier key, or a file that holds it; else the data directory's, else the ledger's own word
    #[arg(long, value_name = "VKEY")]
    key: Option<String>,
    /// Write the proof here instead of to standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write the entry's bytes here: what the proof is about
    #[arg(long, value_name = "FILE")]
    entry_out: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

/// Arguments of `log heads`.
#[derive(clap::Args)]
pub struct Heads {
    /// One agent
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    agent: String,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

impl Log {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Show(show) => show.run().await?,
            Self::Tail(tail) => tail.run().await?,
            Self::Prove(prove) => prove.run().await?,
            Self::Heads(heads) => heads.run().await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show_entry(entry: &v1::LogEntry, format: Format, opener: &Opener) -> anyhow::Result<()> {
    match (opener.open(entry)?, format) {
        (None, Format::Text) => print::text(&describe::line(entry))?,
        (None, Format::Json) => print::json(&describe::to_json("LogEntry", entry))?,
        (Some(opened), Format::Text) => {
            let event = v1::Event { confidential: None, ..opened.event };
            print::text(&format!(
                "{} (confidential, opened)",
                describe::line(&payload::with_event(entry, &event))
            ))?;
        }
        (Some(opened), Format::Json) => {
            let mut json = describe::to_json("LogEntry", &payload::with_event(entry, &opened.event));
            json["entry"]["event"]["confidential"]["opening"] = json!(hex::encode(&opened.plaintext));
            print::json(&json)?;
        }
    }
    Ok(())
}

impl Show {
    async fn run(self) -> anyhow::Result<()> {
        let mut opener = self.reveal.opener()?;
        if let Some(file) = &self.opening {
            opener = opener.with_opening(file)?;
        }
        let mut client = self.connection.ledger().await?;
        if let Some(index) = self.index {
            let answer = client.get_entry(v1::GetEntryRequest { index }).await?.into_inner();
            return show_entry(&answer.entry.context("the ledger answered no entry")?, self.format, &opener);
        }
        let filter = self.filter.wire();
        let mut left = if self.all { u64::MAX } else { self.limit };
        let mut page_token = String::new();
        while left > 0 {
            let page_size = u32::try_from(left).unwrap_or(PAGE).min(PAGE);
            let request = v1::ListEntriesRequest {
                filter: Some(filter.clone()),
                page_size,
                page_token,
                ..Default::default()
            };
            let page = client.list_entries(request).await?.into_inner();
            for entry in &page.entries {
                show_entry(entry, self.format, &opener)?;
            }
            left = left.saturating_sub(page.entries.len() as u64);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(());
            }
        }
        print::remark("there are more; --limit N shows more of them, --all shows all");
        Ok(())
    }
}

impl Tail {
    async fn run(self) -> anyhow::Result<()> {
        let opener = self.reveal.opener()?;
        let mut client = self.connection.ledger().await?;
        let from_index = match self.from {
            Some(index) => index,
            None => checkpoint(
                &client.get_checkpoint(v1::GetCheckpointRequest {}).await?.into_inner().checkpoint,
            )?
            .checkpoint()
            .size(),
        };
        let request = v1::TailEntriesRequest { filter: Some(self.filter.wire()), from_index };
        let mut entries = client.tail_entries(request).await?.into_inner();
        let mut shown = 0;
        while self.count.is_none_or(|count| shown < count) {
            let Some(answer) = entries.message().await? else {
                bail!(Refused("the ledger ended the answer".to_owned()));
            };
            if let Some(entry) = &answer.entry {
                show_entry(entry, self.format, &opener)?;
                shown += 1;
            }
        }
        Ok(())
    }
}

fn checkpoint(note: &[u8]) -> anyhow::Result<SignedCheckpoint> {
    SignedCheckpoint::parse(note).context("the ledger's checkpoint")
}

impl Prove {
    async fn run(self) -> anyhow::Result<()> {
        let mut client = self.connection.ledger().await?;
        let known = match &self.key {
            Some(key) => Some(evidence::verify::read_key(key).map_err(anyhow::Error::msg)?),
            None => self.connection.verifier_key()?,
        };
        let is_known = known.is_some();
        let key: VerifierKey = if let Some(key) = known {
            key
        } else {
            let answer = client.get_checkpoint(v1::GetCheckpointRequest {}).await?.into_inner();
            answer.verifier_key.trim().parse().context("the ledger's verifier key")?
        };
        let answer = client.get_entry(v1::GetEntryRequest { index: self.index }).await?.into_inner();
        let logged = answer.entry.context("the ledger answered no entry")?;
        let mut attempts = 0;
        let inclusion = loop {
            let request = v1::GetInclusionProofRequest { index: self.index, tree_size: 0 };
            let answer = client.get_inclusion_proof(request).await?.into_inner();
            if !answer.checkpoint.is_empty() {
                break answer;
            }
            attempts += 1;
            if attempts == PROOF_ATTEMPTS {
                bail!(Refused("the ledger gives no proof for its newest checkpoint".to_owned()));
            }
        };
        let hashes = inclusion
            .hashes
            .iter()
            .map(|hash| {
                <[u8; 32]>::try_from(&hash[..])
                    .map(Hash)
                    .context("the ledger's proof holds something that is no hash")
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let proof = TlogProof::new(self.index, hashes, checkpoint(&inclusion.checkpoint)?, Vec::new())?;
        let policy = Policy {
            origin: key.name().to_owned(),
            log_keys: vec![key.clone()],
            witnesses: Vec::new(),
            quorum: 0,
        };
        let verified = proof.verify(&logged.entry, &policy).map_err(|error| {
            Refused(format!("the ledger's proof of entry {} does not hold: {error}", self.index))
        })?;
        let note = proof.to_string();
        if let Some(path) = &self.entry_out {
            std::fs::write(path, &logged.entry).with_context(|| path.display().to_string())?;
        }
        if let Some(path) = &self.out {
            std::fs::write(path, &note).with_context(|| path.display().to_string())?;
        }
        let head = &verified.checkpoint;
        match self.format {
            Format::Json => print::json(&json!({
                "index": self.index,
                "entry": describe::to_json("LogEntry", &logged)["entry"],
                "tree_size": head.size(),
                "root": head.root().to_string(),
                "verifier_key": key.to_string(),
                "key_given": is_known,
                "proof": note,
            }))?,
            Format::Text if self.out.is_none() => print::text(note.trim_end_matches('\n'))?,
            Format::Text => {}
        }
        let source =
            if is_known { "" } else { " (the ledger's own word; give --key to know whose log it is)" };
        print::remark(&format!(
            "entry {} is in the tree of {} entries with root {}, signed by {key}{source}",
            self.index,
            head.size(),
            head.root()
        ));
        Ok(())
    }
}

impl Heads {
    async fn run(self) -> anyhow::Result<()> {
        let request = v1::ListAgentHeadsRequest { agent_id: self.agent };
        let heads = self.connection.ledger().await?.list_agent_heads(request).await?.into_inner().heads;
        if self.format == Format::Json {
            print::json(&heads.iter().map(|head| describe::to_json("AgentHead", head)).collect())?;
            return Ok(());
        }
        let rows: Vec<_> = heads
            .into_iter()
            .map(|head| [head.agent_id, head.epoch.to_string(), head.seq.to_string(), hex::encode(head.hash)])
            .collect();
        Ok(print::table(["AGENT", "EPOCH", "SEQ", "HASH"], &rows)?)
    }
}
