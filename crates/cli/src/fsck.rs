//! `exchequer fsck`: the data directory of a stopped ledger, checked and repaired.
//!
//! Left out: the checks themselves (`exchequer-ledger`). Invariant: the exit status says whether damage remains.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use exchequer_ledger::FsckOptions;

use crate::{
    evidence::verify,
    print::{self, Format},
};

/// Check the data directory of a stopped ledger, name what is damaged, and repair it
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  exchequer fsck .exchequer/ledger
  exchequer fsck /data --repair --mirror s3://audit-mirror/log
  exchequer fsck /new --repair --mirror /backup/log --key example.com/audit+1a2b3c4d+AQ…     fill an empty directory

Every file is compared with the newest checkpoint that is found, and with the state where that counts more. Tiles are repaired from
the entries; entries from the mirror, after they were compared with the signed tree; the state from both. What no checkpoint covers
is cut off where it is damaged: the ledger integrates it from the stream again when it starts. Nothing is signed, nothing that a
checkpoint covers is dropped, and what is replaced is kept in DATA/fsck-<n>.

The records inside the entries are not looked at; `exchequer verify` does that. For s3://, credentials, region and endpoint come from
the usual AWS_* variables.
Exit status: 0 sound or repaired, 1 damage remains, 2 it could not be checked.")]
pub struct Fsck {
    /// The ledger's data directory
    #[arg(value_name = "DATA")]
    data: PathBuf,
    /// Repair what can be repaired
    #[arg(long)]
    repair: bool,
    /// Where the log is too: s3://bucket/prefix, the directory or the URL of another copy
    #[arg(long, value_name = "URL|DIR")]
    mirror: Option<String>,
    /// A token for a mirror behind HTTP that does not give entries to everybody
    #[arg(long, value_name = "FILE")]
    mirror_token_file: Option<PathBuf>,
    /// The log's verifier key, or a file that holds it; older ones are learnt from the log [default: that of DATA/ledger.key]
    #[arg(long = "key", value_name = "VKEY")]
    keys: Vec<String>,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Fsck {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let keys = self.keys.iter().map(|key| verify::read_key(key).map_err(anyhow::Error::msg));
        let keys = keys.collect::<anyhow::Result<_>>()?;
        let token = self.mirror_token_file.map(|path| {
            let read = std::fs::read_to_string(&path).with_context(|| path.display().to_string());
            read.map(|token| token.trim().to_owned())
        });
        let options = FsckOptions {
            data: self.data,
            keys,
            repair: self.repair,
            mirror: self.mirror,
            token: token.transpose()?,
        };
        let report = exchequer_ledger::fsck(options).await?;
        match self.format {
            Format::Text => print::text(report.to_string().trim_end())?,
            Format::Json => print::json(&serde_json::to_value(&report)?)?,
        }
        Ok(ExitCode::from(u8::from(!report.is_sound())))
    }
}
