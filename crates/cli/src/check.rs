//! `exchequer verify`: evidence, checked.
//!
//! Left out: the checks themselves (`evidence`). Invariant: the exit status is the verdict's.

use std::{num::NonZeroUsize, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, bail};
use exchequer_tlog::WitnessPolicy;

use crate::{
    client::Connection,
    evidence::{
        report::Verdict,
        saved::{MAX_SAVED, read_saved},
        state::Verified,
        verify::{self, Target, Trust},
    },
    print::{self, Format},
    progress::Shown,
};

/// Verify an evidence pack, exported lines or segments, a log directory or a log at a URL; name what was changed
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  exchequer verify acme.pack --key exchequer.local/log+1a2b3c4d+AQ…
  exchequer verify acme.ndjson                                       with acme.ndjson.proof beside it
  exchequer verify segments/                                          what `export --follow` wrote: each segment, and no gap
  exchequer verify .exchequer/ledger
  exchequer verify http://127.0.0.1:7480
  exchequer verify /backup/log --checkpoint yesterday.checkpoint      the log must continue what was signed yesterday
  exchequer verify acme.pack --key KEY --witness W1 --witness W2 --quorum 1      one of the two must have cosigned
  exchequer verify .exchequer/ledger --checkpoint .exchequer/ledger/checkpoints      and every checkpoint ever signed
  exchequer verify .exchequer/ledger --since verified --save verified      only what is new, once the whole was verified with --save

--key may be any ledger key of the log, the first or a later one: from there the log's own control records are followed to the key
that signed a checkpoint, which has to be enrolled and unrevoked in the entries that the checkpoint covers. A pack's
own control records are followed in the same way, and of segments the last one's. --since shows what a verification of the whole would, if the earlier one was right and its file is yours;
whether the entries before it are still there, unchanged, it does not show.
Without --key the log's own word for its key is taken: that shows that the log is consistent, not whose it is. Only the URL of
the data directory's own `exchequer up` is held to the key in its client.json.
https:// URLs can't be read; put a local proxy in front, or copy the log's directory.
Exit status: 0 it holds, 1 something was changed or too few witnesses cosigned, 2 it could not be checked.")]
pub struct Verify {
    /// What to verify
    #[arg(value_name = "PATH|URL")]
    target: String,
    /// The log's verifier key, or a file that holds it
    #[arg(long, value_name = "VKEY")]
    key: Option<String>,
    /// Earlier checkpoints that the log has to continue: a file, or a directory such as the ledger's `checkpoints`; repeatable
    #[arg(long, value_name = "PATH")]
    checkpoint: Vec<PathBuf>,
    /// Read on from an earlier verification of this log, which `--save` left, and nothing before it
    #[arg(long, value_name = "FILE")]
    since: Option<PathBuf>,
    /// If it holds, leave in this file what `--since` can go on from; keep the file as you keep a key
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Threads that read and hash; one for each core if not given
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// The verifier key of a witness that is believed, or a file that holds it; can be given more than once
    #[arg(long, value_name = "VKEY")]
    witness: Vec<String>,
    /// How many of them have to have cosigned the checkpoint [default: all]
    #[arg(long, value_name = "N", requires = "witness")]
    quorum: Option<usize>,
    /// Who has to have signed and cosigned, as a C2SP tlog-policy file. Its only log, if it names one, stands for --key
    #[arg(long, value_name = "FILE", conflicts_with = "witness")]
    policy: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

impl Verify {
    fn witnesses(&self) -> anyhow::Result<Option<WitnessPolicy>> {
        if let Some(path) = &self.policy {
            return Ok(Some(verify::read_policy(path).map_err(anyhow::Error::msg)?));
        }
        if self.witness.is_empty() {
            return Ok(None);
        }
        let keys = self.witness.iter().map(|key| verify::read_key(key).map_err(anyhow::Error::msg));
        let keys = keys.collect::<anyhow::Result<Vec<_>>>()?;
        let needed = self.quorum.unwrap_or(keys.len());
        Ok(Some(WitnessPolicy::of(keys, needed).context("--witness")?))
    }

    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let target = Target::parse(&self.target);
        let is_own = match &target {
            Target::Url(url) => self
                .connection
                .http_url()
                .is_ok_and(|own| own.trim_end_matches('/') == url.trim_end_matches('/')),
            Target::Directory(_) | Target::Pack(_) | Target::Receipt(_) | Target::Lines { .. } => false,
        };
        let witnesses = self.witnesses()?;
        let logs = witnesses.as_ref().map_or(&[][..], WitnessPolicy::logs);
        let key = match (&self.key, logs) {
            (Some(key), _) => Some(verify::read_key(key).map_err(anyhow::Error::msg)?),
            (None, [log]) => Some(log.clone()),
            (None, [_, ..]) => bail!("the policy names several logs; --key says which one this is"),
            (None, []) if is_own => self.connection.verifier_key()?,
            (None, []) => None,
        };
        if let Some(key) = key.as_ref().filter(|key| !logs.is_empty() && !logs.contains(key)) {
            bail!("{key} is not among the logs of the policy");
        }
        let mut checkpoints = Vec::new();
        for path in &self.checkpoint {
            checkpoints.extend(read_saved(path).map_err(anyhow::Error::msg)?);
        }
        if checkpoints.len() > MAX_SAVED {
            bail!("--checkpoint: more than {MAX_SAVED} checkpoints: give them in parts");
        }
        let since = self.since.as_deref().map(Verified::read).transpose().map_err(anyhow::Error::msg)?;
        // A token goes to the address that it is for, and to one that it was given with.
        let token = if is_own || self.connection.token.is_some() { self.connection.token()? } else { None };
        let mut shown = Shown::new("verified");
        let trust = Trust { key, checkpoints, since, witnesses };
        let request = verify::Request { target, trust, token, threads: self.threads };
        let verify::Finished { report, verified } =
            verify::run(request, move |progress| shown.update(progress.done, progress.total)).await;
        match self.format {
            Format::Text => print::text(&report.to_string())?,
            Format::Json => print::json(&serde_json::to_value(&report)?)?,
        }
        if let Some(path) = self.save.filter(|_| report.verdict == Verdict::Holds) {
            let Some(verified) = verified else { bail!("--save: a pack leaves nothing to go on from") };
            verified.write(&path).with_context(|| format!("--save {}", path.display()))?;
        }
        Ok(ExitCode::from(report.verdict.exit_code()))
    }
}
