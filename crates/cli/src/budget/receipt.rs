//! `exchequer budget receipt`: what shows a decision of metering to somebody who trusts no server, made and checked.
//!
//! Left out: the format and its checks (`evidence::receipt`). Invariant: what is written was verified; the exit status of `--verify` is
//! the verdict's.

use std::{io::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use exchequer_tlog::VerifierKey;
use serde_json::json;

use crate::{
    client::Connection,
    evidence::{
        receipt::{
            About,
            fetch::{Wanted, fetch},
        },
        report::Report,
        verify::{self, Target, Trust},
    },
    export::explained,
    print::{self, Format},
};

/// Arguments of `budget receipt`.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("about").args(["key", "hold"]))]
pub struct Arguments {
    /// Check this receipt, offline, instead of asking for one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["stream_seq", "key", "hold", "tenant", "out"])]
    verify: Option<PathBuf>,
    /// The answer's `stream_seq`: the stream sequence of the block that holds the decision
    #[arg(long, value_name = "SEQ", required_unless_present = "verify", requires = "about")]
    stream_seq: Option<u64>,
    /// The decision that answered this idempotency key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// What was decided of this hold
    #[arg(long, value_name = "HOLD")]
    hold: Option<String>,
    /// The tenant, where the token is not of one
    #[arg(long, value_name = "TENANT", default_value = "", hide_default_value = true)]
    tenant: String,
    /// The log's verifier key, or a file that holds it; else the data directory's, else the log's own word
    #[arg(long, value_name = "VKEY")]
    vkey: Option<String>,
    /// Write the receipt here; else to standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// How long to wait for a checkpoint that covers the decision
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = exchequer_config::parse_duration)]
    wait: Duration,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

impl Arguments {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let given = self.vkey.as_deref().map(verify::read_key).transpose().map_err(anyhow::Error::msg)?;
        if let Some(path) = self.verify {
            // Offline: no data directory says whose log it is.
            let trust = Trust { key: given, ..Trust::default() };
            let report = verify::verify(Target::Receipt(path), trust, None, |_| {}).await;
            show(&report, self.format)?;
            return Ok(ExitCode::from(report.verdict.exit_code()));
        }
        let key: Option<VerifierKey> = match given {
            Some(key) => Some(key),
            None => self.connection.verifier_key()?,
        };
        let about = match (self.key, self.hold) {
            (Some(key), _) => About::IdempotencyKey(key),
            (None, Some(hold)) => About::HoldId(hold),
            (None, None) => anyhow::bail!("--key or --hold is required"),
        };
        let stream_seq = self.stream_seq.context("--stream-seq is required")?;
        let wanted = Wanted { tenant: self.tenant, stream_seq, about, key, patience: self.wait };
        let (receipt, mut report) =
            fetch(self.connection.ledger().await?, &wanted).await.map_err(explained)?;
        let Some(out) = self.out else {
            print::bytes(std::io::stdout().lock(), &receipt.encode())?;
            return Ok(ExitCode::SUCCESS);
        };
        let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
        let at = || format!("writing {}", out.display());
        let mut file = tempfile::Builder::new().prefix(".receipt-").tempfile_in(dir).with_context(at)?;
        file.write_all(&receipt.encode()).with_context(at)?;
        file.persist(&out).map_err(|error| error.error).with_context(at)?;
        report.target = out.display().to_string();
        show(&report, self.format)?;
        if self.format == Format::Text {
            print::text(&format!(
                "check it anywhere: exchequer budget receipt --verify {} --vkey {}",
                out.display(),
                receipt.log_key
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show(report: &Report, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Text => print::text(&report.to_string())?,
        Format::Json => print::json(&json!(report))?,
    }
    Ok(())
}
