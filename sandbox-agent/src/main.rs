//! The `sandbox-agent` binary: the agent over JetStream. What a daemon does beside its service is in `exchequer-serve`.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use axum::Router;
use clap::Parser;
use exchequer_auth::BearerToken;
use exchequer_config::Reader;
use exchequer_serve::{Arguments, Daemon};
use exchequer_stream::EventStream;
use exchequer_telemetry::Readiness;
use sandbox_agent::{Agent, Options, Peers, sandbox};
use tonic::service::Routes;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The sandbox agent: runs programs in a sandbox, metered, and records each of them in the audit log.
#[derive(Parser)]
#[command(
    version,
    after_help = "Configured by the sections [stream], [auth], [telemetry] and [agent]; `--check` lists every fault."
)]
struct Command {
    #[command(flatten)]
    arguments: Arguments,
}

struct Worker(Agent);

impl Daemon for Worker {
    const NAME: &'static str = "sandbox-agent";
    const SECTION: &'static str = "agent";
    const PORT: u16 = 7421;
    const SERVICES: &'static [&'static str] = &["exchequer.v1.AgentService"];
    type Options = (Options, Peers, BearerToken);

    fn read(reader: &mut Reader) -> Option<Self::Options> {
        let token = match reader.required::<PathBuf>("agent.token_file").map(BearerToken::file) {
            Some(Err(error)) => {
                reader.fault("agent.token_file", error.to_string());
                None
            }
            token => token.and_then(Result::ok),
        };
        let (options, peers) = (Options::read(reader), Peers::read(reader));
        Some((options?, peers?, token?))
    }

    async fn start(
        (options, peers, token): Self::Options,
        stream: Arc<dyn EventStream>,
    ) -> anyhow::Result<Self> {
        let id = options.id.clone();
        let agent = Agent::start(options, peers, token, stream).await?;
        let public_key = hex::encode(agent.public_key().as_bytes());
        tracing::info!(
            id,
            public_key,
            "batches are signed with this key; the ledger has to know it (role agent)"
        );
        if !agent.missing_controls().is_empty() {
            tracing::warn!(
                missing = agent.missing_controls().join(", "),
                "this host does not enforce every control"
            );
        }
        Ok(Self(agent))
    }

    fn grpc(&self) -> Routes {
        self.0.grpc()
    }

    fn http(&self) -> (Router, Vec<String>) {
        (Router::new(), Vec::new())
    }

    fn readiness(&self) -> Readiness {
        self.0.readiness()
    }

    async fn stop(self) {
        self.0.stop().await;
    }
}

fn main() -> ExitCode {
    // Before any thread exists: the same binary is the sandbox's helper process.
    sandbox::helper::run_if_requested();
    exchequer_serve::run::<Worker>(&Command::parse().arguments)
}
