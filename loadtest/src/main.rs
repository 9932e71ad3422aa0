//! The load tests: each runs one scenario for real, with a baseline in the same run, checks what came out, and ends with one line of
//! JSON.
//!
//! Left out: judging. A figure belongs to the machine it was taken on; `docs/performance.md` has those of one. Invariant: what is
//! counted was checked, and a run whose results do not check out ends with an error.

mod agent;
mod baseline;
mod built;
mod cpu;
mod execute;
mod generated;
mod ingest;
mod recover;
mod reserve;
mod scan;
mod verify;

use std::{io::Write as _, process::ExitCode};

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measured scenarios of Exchequer.
#[derive(Parser)]
#[command(version)]
struct Command {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand)]
enum Scenario {
    /// Agents' signed events through a nats-server into the ledger, up to the receipt under a signed checkpoint.
    Ingest(ingest::Arguments),
    /// The offline verifier over a large log, against bare hashing of the same bytes.
    Verify(verify::Arguments),
    /// Budgets under contention through a real metering process and nats-server, against Redis with a Lua script.
    Reserve(reserve::Arguments),
    /// Opening a large log again.
    Recover(recover::Arguments),
    /// Executions in the sandbox, single and many at a time, against bubblewrap; and through an agent, audited.
    Execute(execute::Arguments),
}

fn main() -> ExitCode {
    // Before any thread exists: this binary is the sandbox's helper process and, for `execute`, the `exchequer` program, too.
    sandbox_agent::sandbox::helper::run_if_requested();
    if std::env::args_os().nth(1).is_some_and(|verb| verb == "up") {
        return exchequer::main();
    }
    let scenario = Command::parse().scenario;
    // What the scenario measures in a process of its own has that process' telemetry.
    if !matches!(&scenario, Scenario::Reserve(arguments) if arguments.is_instance()) {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into());
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    let outcome = match scenario {
        Scenario::Ingest(arguments) => ingest::run(&arguments),
        Scenario::Verify(arguments) => verify::run(&arguments),
        Scenario::Reserve(arguments) => reserve::run(&arguments),
        Scenario::Recover(arguments) => recover::run(&arguments),
        Scenario::Execute(arguments) => execute::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The scenario's result, as the last line of the output.
fn line(report: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, report)?;
    writeln!(out)?;
    Ok(())
}

/// So many in that time, per second.
#[allow(clippy::cast_precision_loss)]
fn rate(count: u64, time: std::time::Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

/// Says how far the scenario is.
fn say(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
