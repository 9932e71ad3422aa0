//! `exchequer up`: everything in one process, until it is told to stop.
//!
//! Left out: how the parts are put together (`assembly.rs`). Invariant: client.json is readable by its owner only, since it holds a
//! token that may do everything.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use exchequer_auth::{Grant, Role};
use exchequer_serve::{Arguments, Shared, config, config::Listen};

use crate::{
    assembly::{Assembly, AssemblyOptions},
    client::{CLIENT_FILE, ClientFile},
};

/// Life of the token that is printed.
const TOKEN_TTL: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long readiness is waited for before what is not ready is named.
const READY_PATIENCE: Duration = Duration::from_secs(15);

/// Run ledger, metering and agent in one process.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  exchequer up
  exchequer up --data /var/lib/exchequer --grpc 0.0.0.0:7400 --http 0.0.0.0:7480
  exchequer up --nats nats://127.0.0.1:4222
  exchequer up --set agent.allow_degraded=true      run although this host can't enforce every control

The log, the keys and the embedded stream are below the data directory. Other commands find the addresses and a token there.")]
pub struct Up {
    /// Data directory; made if it is not there
    #[arg(long, value_name = "DIR", env = "EXCHEQUER_DATA", default_value = ".exchequer")]
    data: PathBuf,
    /// Use this NATS server instead of the embedded stream
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    /// Where gRPC is served; port 0 takes any free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7400")]
    grpc: SocketAddr,
    /// Where log files, metrics and health are served; port 0 takes any free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7480")]
    http: SocketAddr,
    #[command(flatten)]
    arguments: Arguments,
}

impl Up {
    /// Runs until a signal.
    pub async fn run(mut self) -> anyhow::Result<ExitCode> {
        if let Some(url) = &self.nats {
            self.arguments.set.push(("stream.url".to_owned(), url.clone()));
        }
        let sections = ["stream", "auth", "telemetry", "ledger", "metering", "agent"];
        let mut reader = self.arguments.reader(&sections)?;
        let shared = Shared::read(&mut reader, "exchequer", false);
        let listen = Listen { grpc: self.grpc, http: self.http };
        let options = AssemblyOptions::read(&mut reader, &self.data, listen, &shared);
        if let Err(faults) = reader.finish() {
            config::exit_with(&faults)
        }
        let options = options.context("the configuration is incomplete")?;
        if self.arguments.check {
            return Ok(ExitCode::SUCCESS);
        }
        let _telemetry = exchequer_telemetry::init(&shared.telemetry).context("telemetry")?;
        let stop = exchequer_serve::stop_signal();
        tokio::pin!(stop);
        let allow_degraded = options.agent.allow_degraded;
        let mut assembly = tokio::select! {
            biased;
            told = &mut stop => return told.map(|()| ExitCode::SUCCESS),
            started = Assembly::start(options) => match started {
                Ok(assembly) => assembly,
                Err(error) => return Ok(crate::failed(&error, 1)),
            },
        };
        let outcome = tokio::select! {
            biased;
            told = &mut stop => told,
            announced = announce(&assembly, &self.data, allow_degraded) => match announced {
                Ok(()) => tokio::select! {
                    told = &mut stop => told,
                    error = assembly.failed() => Err(error),
                },
                Err(error) => Err(error),
            },
        };
        tracing::info!("stopping");
        assembly.stop().await;
        match outcome {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) => Ok(crate::failed(&error, 1)),
        }
    }
}

async fn announce(assembly: &Assembly, data: &Path, allow_degraded: bool) -> anyhow::Result<()> {
    let ready = assembly.ready(READY_PATIENCE).await;
    let grant =
        Grant { subject: "operator".to_owned(), tenant: None, roles: vec![Role::Admin], ttl: TOKEN_TTL };
    let token = assembly.issuer.as_ref().map(|_| assembly.mint(&grant)).transpose()?;
    let client = ClientFile {
        grpc: assembly.grpc.to_string(),
        http: assembly.http.to_string(),
        token: token.clone(),
        verifier_key: assembly.verifier_key.to_string(),
    };
    let file = data.join(CLIENT_FILE);
    client.write(&file)?;

    let mut out = io::stdout().lock();
    writeln!(out, "Exchequer is up; Ctrl-C stops it.")?;
    writeln!(out, "  gRPC          {}", assembly.grpc)?;
    writeln!(
        out,
        "  HTTP          http://{}   /checkpoint /tile/… /metrics /healthz /readyz",
        assembly.http
    )?;
    writeln!(out, "  data          {}", data.display())?;
    writeln!(out, "  verifier key  {}", assembly.verifier_key)?;
    match token {
        Some(token) => {
            writeln!(out, "  token         {token}")?;
            writeln!(out, "                role admin, 30 days; `exchequer token` makes lesser ones")?;
        }
        None => writeln!(out, "  token         from the configured issuer")?,
    }
    if !assembly.missing_controls.is_empty() {
        let missing = assembly.missing_controls.join(", ");
        let consequence = if allow_degraded {
            "executions run without them and are recorded so"
        } else {
            "executions are refused; `--set agent.allow_degraded=true` lets them run, recorded as degraded"
        };
        writeln!(out, "  controls      this host does not enforce {missing}: {consequence}")?;
        writeln!(out, "                `exchequer agent capabilities` says how to get them")?;
    }
    for (component, reason) in ready.err().into_iter().flatten() {
        writeln!(out, "  not ready     {component}: {reason}")?;
    }
    writeln!(out, "Try:")?;
    let named =
        if data == Path::new(".exchequer") { String::new() } else { format!(" --data {}", data.display()) };
    writeln!(out, "  exchequer budget set{named} --scope acme cpu_ms=60000 invocations=100")?;
    writeln!(out, "  exchequer run{named} --tenant acme -- echo hello")?;
    Ok(out.flush()?)
}
