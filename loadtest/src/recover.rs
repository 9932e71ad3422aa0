//! `recover`: how long a ledger takes to open a large log again, and how much memory it needs for it, each in a process of its own.
//!
//! Left out: rebuilding what is derived, which goes on in the background and is reported apart. Invariant: a log counts as open once the
//! checkpoint that covers all of it is served.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::{
    built::{Built, covered},
    cpu, say,
};

/// What to run.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Entries of the log.
    #[arg(long, default_value_t = 10_000_000)]
    entries: u64,
    /// Bytes per event.
    #[arg(long, default_value_t = 300)]
    event_bytes: usize,
    /// Where to build the log; a temporary directory if not given. A log that is there already is used.
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Opens the log of the directory, reports and ends: what the scenario runs in a process of its own.
    #[arg(long, hide = true)]
    open: bool,
}

/// One opening.
#[derive(Debug, Serialize, Deserialize)]
struct Opening {
    ms: f64,
    peak_mib: f64,
}

/// The result.
#[derive(Debug, Serialize)]
struct Report {
    scenario: &'static str,
    entries: u64,
    reopen_ms: f64,
    reopen_peak_mib: f64,
    /// The same with all derived data deleted: what the acceptor knows is read back from the log first.
    reopen_without_derived_ms: f64,
    build_entries_per_s: f64,
    build_peak_mib: f64,
    baseline: &'static str,
    baseline_ms: f64,
    ratio: f64,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let temporary = tempfile::Builder::new().prefix("exchequer-load-").tempdir()?;
    let directory = arguments.directory.clone().unwrap_or_else(|| temporary.path().to_owned());
    let built = Built::new(&directory, arguments.entries, arguments.event_bytes);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if arguments.open {
        let started = Instant::now();
        let (service, _stream) = runtime.block_on(built.start())?;
        ensure!(covered(&service) == built.entries(), "the log has {} entries", covered(&service));
        let ms = started.elapsed().as_secs_f64() * 1000.0;
        let opening = Opening { ms, peak_mib: cpu::peak_mib()? };
        runtime.block_on(service.stop());
        return crate::line(&opening);
    }
    let mut build_entries_per_s = 0.0;
    if !built.log().join("checkpoint").exists() {
        say(format!("building a log of {} entries …", built.entries()));
        build_entries_per_s = runtime.block_on(built.build())?;
    }
    let build_peak_mib = cpu::peak_mib()?;
    say("opening it again …");
    let reopened = open(arguments, &directory)?;
    let baseline_ms = read_all(&built.log())?;
    say("and without derived data …");
    std::fs::remove_dir_all(built.ledger().join("derived"))?;
    let without = open(arguments, &directory)?;
    crate::line(&Report {
        scenario: "recover",
        entries: built.entries(),
        reopen_ms: reopened.ms,
        reopen_peak_mib: reopened.peak_mib,
        reopen_without_derived_ms: without.ms,
        build_entries_per_s,
        build_peak_mib,
        baseline: "reading the log's entries once, as a log without a recovery point has to",
        baseline_ms,
        ratio: baseline_ms / reopened.ms,
    })
}

/// Opens the log in another process.
fn open(arguments: &Arguments, directory: &Path) -> anyhow::Result<Opening> {
    let output = Command::new(std::env::current_exe()?)
        .args(["recover", "--open", "--entries", &arguments.entries.to_string()])
        .args(["--event-bytes", &arguments.event_bytes.to_string(), "--directory"])
        .arg(directory)
        .stderr(std::process::Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "the log could not be opened again");
    let text = String::from_utf8(output.stdout)?;
    serde_json::from_str(text.trim()).with_context(|| text)
}

/// Milliseconds to read all entry bundles.
fn read_all(log: &Path) -> anyhow::Result<f64> {
    let started = Instant::now();
    let mut directories = vec![log.join("tile/entries")];
    let mut bytes = 0;
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            } else {
                bytes += std::fs::read(entry.path())?.len();
            }
        }
    }
    ensure!(bytes > 0, "the log has no entries");
    Ok(started.elapsed().as_secs_f64() * 1000.0)
}
