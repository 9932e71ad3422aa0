//! The `exchequer` program as a library: everything in one process (`up`, `demo`), and a client for each service. Programs that check
//! evidence themselves use [`evidence`]; the rest is what the command line needs.
//!
//! Left out: the services. Invariant: exit status 0 says that what was asked for holds or was done, 1 that the answer was no,
//! 2 that it could not be asked or answered. `run` has the program's own status instead.

use std::{io, process::ExitCode};

use clap::{Parser, Subcommand};

mod agents;
mod assembly;
mod audit;
mod audit_log;
mod budget;
mod bundle;
mod capabilities;
mod check;
mod client;
mod demo;
mod describe;
pub mod evidence;
mod export;
mod fsck;
mod log;
mod payload;
mod print;
mod profile;
mod progress;
mod replay;
mod run;
mod spool;
mod token;
mod up;
mod usage;
mod witness;

use client::Refused;

/// Exchequer: sandboxed executions, metered and audited.
#[derive(Parser)]
#[command(
    version,
    propagate_version = true,
    after_help = "\
Start with `exchequer up`; in another terminal:
  exchequer budget set --scope acme cpu_ms=60000 invocations=100
  exchequer run --tenant acme -- echo hello
  exchequer log show --tenant acme
  exchequer verify http://127.0.0.1:7480

Exit status: 0 done or holds, 1 refused or does not hold, 2 could not be asked; `run` has the program's own."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run ledger, metering and agent in one process, until stopped
    Up(Box<up::Up>),
    /// Walk through the whole loop on real input, each step with its proof
    Demo(demo::Arguments),
    /// Run one program in the sandbox, metered and recorded
    Run(run::Run),
    /// Set and show budgets
    #[command(subcommand)]
    Budget(budget::Budget),
    /// Show what was spent at a scope and below, and what is held
    Usage(usage::Usage),
    /// Read, follow and prove the audit log
    #[command(subcommand)]
    Log(log::Log),
    /// Verify an evidence pack, exported lines or segments, a log directory or a log at a URL; name what was changed
    Verify(check::Verify),
    /// Check and show result bundles, which `run --bundle` writes
    #[command(subcommand)]
    Bundle(bundle::Bundle),
    /// Run a bundle's inputs again and compare the results
    Replay(bundle::replay::Replay),
    /// Rebuild the budgets from the stream's first message and compare them with metering's snapshots
    VerifyReplay(replay::VerifyReplay),
    /// Write evidence: entries with proofs, and how to verify them without this program
    Export(export::Export),
    /// Check the data directory of a stopped ledger, name what is damaged, and repair it
    Fsck(fsck::Fsck),
    /// Enrol, revoke and list keys; ask what an agent enforces
    #[command(subcommand)]
    Agent(agents::Agents),
    /// Show what an agent's spool holds, and what waits in it
    #[command(subcommand)]
    Spool(spool::Spools),
    /// Check the file that an agent writes of its events on its own host
    #[command(subcommand)]
    AuditLog(audit_log::AuditLog),
    /// Check, list and show sandbox profiles
    #[command(subcommand)]
    Profile(profile::Profile),
    /// Try what is claimed on this host: attack the sandbox
    Audit(audit::Audit),
    /// Show what the sandbox enforces on this host or on an agent's, from attacks that are made just now
    Capabilities(capabilities::Capabilities),
    /// Cosign the checkpoints of other logs, so that they can't show different people different logs
    Witness(witness::Arguments),
    /// Mint a token with the data directory's own issuer
    Token(token::Token),
    /// Make a service's key file if it is not there, and print its public key; or replace the ledger's key
    Key(token::Key),
    /// Make, show and erase the keys under which tenants' payloads are encrypted
    #[command(subcommand)]
    PayloadKey(payload::PayloadKey),
}

/// Runs the verb that the program's arguments name. The first thing of a `main`: no thread may exist yet.
pub fn main() -> ExitCode {
    // Before any thread exists: the same binary is the sandbox's helper process.
    sandbox_agent::sandbox::helper::run_if_requested();
    demo::attack::run_if_requested();
    let verb = Cli::parse().verb;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into(), 2),
    };
    let outcome = runtime.block_on(async {
        match verb {
            Verb::Up(up) => Box::pin(up.run()).await,
            Verb::Demo(arguments) => Box::pin(demo::run(arguments)).await,
            Verb::Run(run) => run.run().await,
            Verb::Budget(budget) => budget.run().await,
            Verb::Usage(usage) => usage.run().await,
            Verb::Log(log) => log.run().await,
            Verb::Verify(verify) => verify.run().await,
            Verb::Bundle(bundle) => bundle.run().await,
            Verb::Replay(replay) => replay.run().await,
            Verb::VerifyReplay(replay) => replay.run().await,
            Verb::Fsck(fsck) => fsck.run().await,
            Verb::Export(export) => export.run().await,
            Verb::Agent(agents) => agents.run().await,
            Verb::Spool(spools) => spools.run().await,
            Verb::AuditLog(log) => log.run(),
            Verb::Profile(profile) => profile.run(),
            Verb::Audit(audit) => Box::pin(audit.run()).await,
            Verb::Capabilities(asked) => Box::pin(asked.run()).await,
            Verb::Witness(arguments) => witness::run(arguments).await,
            Verb::Token(token) => token.run(),
            Verb::Key(key) => key.run().await,
            Verb::PayloadKey(key) => key.run(),
        }
    });
    match outcome {
        Ok(status) => status,
        Err(error) => report(&error),
    }
}

/// Says what went wrong in a line; the status that goes with it.
fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(status) = error.downcast_ref::<tonic::Status>() {
        let (explained, said) = (client::explain(status), error.to_string());
        // What was being done, where that was said.
        let text = if said == status.to_string() { explained } else { format!("{said}: {explained}") };
        return failed(&anyhow::anyhow!(text), 1);
    }
    // Whoever reads the output has seen enough.
    if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    failed(error, if error.is::<Refused>() { 1 } else { 2 })
}

fn failed(error: &anyhow::Error, status: u8) -> ExitCode {
    print::remark(&format!("error: {error:#}"));
    ExitCode::from(status)
}
