//! `exchequer witness`: cosigns the checkpoints of other logs, until it is told to stop.
//!
//! Left out: what it cosigns (`exchequer_ledger::witness`). Invariant: it is public; whoever asks needs a checkpoint that one of its
//! logs signed.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context as _;
use exchequer_ledger::witness::{Witness, WitnessOptions, WitnessedLog};
use exchequer_telemetry::{LogFormat, Options as Telemetry};
use tokio::net::TcpListener;

/// Cosign the checkpoints of other logs.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  exchequer witness --data /var/lib/witness --name witness.example.com/w1 --log example.org/audit+1a2b3c4d+AQ…
  exchequer witness --data w --listen 0.0.0.0:7490 --name me.example/w --log ONE --log TWO

The other party puts the verifier key that is printed, and this address, into its [[ledger.witness]]. Two parties witness each other
when each runs one for the other's log. A log's verifier key is at its /verifier-key; take it from the party itself.")]
pub struct Arguments {
    /// Data directory: what was cosigned last of each log; made if it is not there
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Where it is served; port 0 takes any free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7490")]
    listen: SocketAddr,
    /// The witness's name, such as a host and path of your own; for good
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Its key, which must be used for nothing else; made if it is not there [default: witness.key in the data directory]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// A log to cosign, by its verifier key; with =ORIGIN where that is not the key's name. Can be given more than once
    #[arg(long, value_name = "VKEY[=ORIGIN]", required = true)]
    log: Vec<WitnessedLog>,
    /// What is logged to standard error
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log_filter: String,
}

/// Runs until a signal.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let telemetry = Telemetry {
        service_name: "exchequer-witness".to_owned(),
        log_format: LogFormat::Text,
        log_filter: arguments.log_filter,
        otlp_endpoint: None,
    };
    let _telemetry = exchequer_telemetry::init(&telemetry).context("--log-filter")?;
    let stop = exchequer_serve::stop_signal();
    let options = WitnessOptions {
        key_file: arguments.key_file.unwrap_or_else(|| arguments.data.join("witness.key")),
        data: arguments.data,
        name: arguments.name,
        logs: arguments.log,
    };
    let witness = tokio::task::spawn_blocking(move || Witness::open(&options)).await??;
    let listen = arguments.listen;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
    announce(&witness, listener.local_addr()?)?;
    let readiness = {
        let witness = witness.clone();
        Arc::new(move || witness.readiness())
    };
    let (tell, told) = tokio::sync::oneshot::channel::<()>();
    let stopped = async {
        // An error says that nobody is left to tell it.
        let _ = told.await;
    };
    let serving = exchequer_serve::serve_open(listener, witness.routes(), readiness, stopped);
    tokio::pin!(serving);
    let outcome = tokio::select! {
        outcome = &mut serving => outcome,
        told = stop => {
            drop(tell);
            serving.await.and(told)
        }
    };
    match outcome {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Ok(crate::failed(&error, 1)),
    }
}

fn announce(witness: &Witness, at: SocketAddr) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "The witness is up; Ctrl-C stops it.")?;
    writeln!(out, "  HTTP          http://{at}   /add-checkpoint /verifier-key /metrics /healthz /readyz")?;
    writeln!(out, "  verifier key  {}", witness.verifier_key())?;
    for (origin, size) in witness.logs() {
        writeln!(out, "  log           {origin}, cosigned up to {size} entries")?;
    }
    out.flush()
}
