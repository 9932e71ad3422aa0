//! Metering as a process of its own, with what a daemon has around it: real tokens, traces, health, a real stream.
//!
//! Left out: configuration files. Invariant: it serves until its standard input ends, then says where its fold stands and stops in good
//! order.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, ensure};
use exchequer_auth::{Issuer, Verifier};
use exchequer_metering::{Options, Service};
use exchequer_serve::{Living, Parts, config::Listen};
use exchequer_stream::{EventStream, JetStream, jetstream};
use exchequer_telemetry as telemetry;
use serde::{Deserialize, Serialize};

const ISSUER: &str = "https://loadtest.example";
const AUDIENCE: &str = "exchequer";

/// What the process says once it listens.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Listening {
    pub(super) address: SocketAddr,
    /// The key that signs its blocks, hexadecimal.
    pub(super) public_key: String,
}

/// What the process says when it is told to stop.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Stood {
    /// Stream sequence of the last message folded.
    pub(super) cursor: u64,
    pub(super) blocks: u64,
    /// BLAKE3 of its budget state, hexadecimal.
    pub(super) digest: String,
}

/// The issuer that the process believes.
pub(super) fn issuer(directory: &Path) -> anyhow::Result<Issuer> {
    Ok(Issuer::open(directory, ISSUER, AUDIENCE)?)
}

/// The process' `main`.
pub(super) async fn serve(directory: &Path, nats: &str) -> anyhow::Result<()> {
    let _telemetry = telemetry::init(&telemetry::Options {
        service_name: "exchequer-metering".to_owned(),
        log_format: telemetry::LogFormat::Text,
        log_filter: "warn".to_owned(),
        otlp_endpoint: None,
    })?;
    let verifier = Verifier::open(issuer(directory)?.verifier_options()).await?;
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let bound = exchequer_serve::bind(Listen { grpc: any, http: any }).await?;
    let stream: Arc<dyn EventStream> = Arc::new(JetStream::connect(jetstream::Options::new(nats)).await?);
    let service = Service::start(Options::new(directory.join("metering")), stream).await?;
    let public_key = hex::encode(service.public_key().as_bytes());
    let (grpc, http) = (service.grpc(), service.http());
    let living = Living::new(service);
    let parts = Parts {
        grpc,
        services: vec!["exchequer.v1.MeteringService"],
        http,
        public_http: Vec::new(),
        readiness: living.readiness(Service::readiness),
    };
    let running = exchequer_serve::serve(bound, verifier, parts)?;
    crate::line(&Listening { address: running.grpc, public_key })?;
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    running.stop().await;
    let service = living.take().context("taken once")?;
    let position = service.position();
    crate::line(&Stood {
        cursor: position.cursor,
        blocks: position.blocks,
        digest: hex::encode(position.digest),
    })?;
    service.stop().await;
    Ok(())
}

/// The process, from outside; dropped without [`Instance::stop`], it is killed.
pub(super) struct Instance {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    pub(super) listening: Listening,
}

impl Instance {
    pub(super) fn start(directory: &Path, nats: &str) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["reserve", "--instance", nats, "--directory"])
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut output = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let listening = serde_json::from_str(&line).with_context(|| format!("metering said `{line}`"));
        let listening = listening.inspect_err(|_| {
            let _ = child.kill();
            let _ = child.wait();
        })?;
        Ok(Self { child, output, listening })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn stop(mut self) -> anyhow::Result<Stood> {
        drop(self.child.stdin.take());
        let mut said = String::new();
        self.output.read_to_string(&mut said)?;
        ensure!(self.child.wait()?.success(), "metering ended with a failure");
        serde_json::from_str(said.trim()).with_context(|| format!("metering said `{said}`"))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
