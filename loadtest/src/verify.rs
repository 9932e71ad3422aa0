//! `verify`: how many entries per second the offline verifier checks, against the bare hashing of the same bytes on the same cores.
//!
//! Left out: reading over a network. Invariant: a log that does not verify gives no figure.

use std::{path::PathBuf, time::Instant};

use anyhow::ensure;
use clap::Args;
use exchequer::evidence::{
    report::Verdict,
    verify::{Target, Trust, verify_blocking},
};
use exchequer_tlog::{SignedCheckpoint, bundles_for_size, decode_bundle};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::{built::Built, rate, say};

/// Entries that the limit is measured with at a time.
const SAMPLE_BUNDLES: usize = 2048;

/// What to run.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Entries of the log.
    #[arg(long, default_value_t = 2_000_000)]
    entries: u64,
    /// Bytes per event.
    #[arg(long, default_value_t = 300)]
    event_bytes: usize,
    /// Where to build the log; a temporary directory if not given. A log that is there already is used.
    #[arg(long)]
    directory: Option<PathBuf>,
}

/// The result.
#[derive(Debug, Serialize)]
struct Report {
    scenario: &'static str,
    entries: u64,
    entries_per_s: f64,
    cores: usize,
    baseline: &'static str,
    limit_per_s: f64,
    ratio: f64,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let temporary = tempfile::Builder::new().prefix("exchequer-load-").tempdir()?;
    let directory = arguments.directory.clone().unwrap_or_else(|| temporary.path().to_owned());
    let built = Built::new(&directory, arguments.entries, arguments.event_bytes);
    if !built.log().join("checkpoint").exists() {
        say(format!("building a log of {} entries …", built.entries()));
        tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(built.build())?;
    }
    let cores = std::thread::available_parallelism()?.get();
    say("the limit …");
    let limit_per_s = limit(&built, cores)?;
    say("verifying …");
    let signed = SignedCheckpoint::parse(&std::fs::read(built.log().join("checkpoint"))?)?;
    let started = Instant::now();
    let report = verify_blocking(&Target::Directory(built.log()), &Trust::default(), None, |_| {});
    let entries_per_s = rate(signed.checkpoint().size(), started.elapsed());
    ensure!(report.verdict == Verdict::Holds, "{report}");
    crate::line(&Report {
        scenario: "verify",
        entries: signed.checkpoint().size(),
        entries_per_s,
        cores,
        baseline: "bare SHA-256 and BLAKE3 of the same entries in memory, on all cores",
        limit_per_s,
        ratio: entries_per_s / limit_per_s,
    })
}

/// Entries per second that all cores hash with SHA-256 and BLAKE3, and do nothing else with.
fn limit(built: &Built, cores: usize) -> anyhow::Result<f64> {
    let bundles: Vec<_> = bundles_for_size(built.entries())
        .take(SAMPLE_BUNDLES)
        .map(|id| Ok((id.width(), std::fs::read(built.log().join(id.to_string()))?)))
        .collect::<anyhow::Result<_>>()?;
    let started = Instant::now();
    let hashed: Vec<anyhow::Result<u64>> = std::thread::scope(|scope| {
        let share = bundles.len().div_ceil(cores).max(1);
        let working: Vec<_> = bundles.chunks(share).map(|part| scope.spawn(|| hash(part))).collect();
        working
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("panicked")))
            .collect()
    });
    let entries = hashed.into_iter().sum::<anyhow::Result<u64>>()?;
    Ok(rate(entries, started.elapsed()))
}

fn hash(bundles: &[(u16, Vec<u8>)]) -> anyhow::Result<u64> {
    let mut entries = 0;
    for (width, bundle) in bundles {
        for entry in decode_bundle(bundle, *width)? {
            std::hint::black_box((Sha256::digest(entry), blake3::hash(entry)));
            entries += 1;
        }
    }
    Ok(entries)
}
