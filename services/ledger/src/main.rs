//! The `exchequer-ledger` binary: the ledger over JetStream. What a daemon does beside its service is in `exchequer-serve`.

use std::{process::ExitCode, sync::Arc};

use axum::Router;
use clap::Parser;
use exchequer_config::Reader;
use exchequer_ledger::{Options, Service, public_paths};
use exchequer_serve::{Arguments, Daemon};
use exchequer_stream::EventStream;
use exchequer_telemetry::Readiness;
use tonic::service::Routes;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The ledger: turns the stream into a Merkle log with signed checkpoints, and serves it and its proofs.
#[derive(Parser)]
#[command(
    version,
    after_help = "Configured by the sections [stream], [auth], [telemetry] and [ledger]; `--check` lists every fault."
)]
struct Command {
    #[command(flatten)]
    arguments: Arguments,
}

struct Ledger {
    service: Service,
    public_http: Vec<String>,
}

impl Daemon for Ledger {
    const NAME: &'static str = "exchequer-ledger";
    const SECTION: &'static str = "ledger";
    const PORT: u16 = 7401;
    const SERVICES: &'static [&'static str] = &["exchequer.v1.LedgerService"];
    type Options = Options;

    fn read(reader: &mut Reader) -> Option<Options> {
        Options::read(reader)
    }

    async fn start(options: Options, stream: Arc<dyn EventStream>) -> anyhow::Result<Self> {
        let public_http = public_paths(&options);
        let service = Service::start(options, stream).await?;
        tracing::info!(verifier_key = %service.verifier_key(), "checkpoints and receipts are signed with this key");
        Ok(Self { service, public_http })
    }

    fn grpc(&self) -> Routes {
        self.service.grpc()
    }

    fn http(&self) -> (Router, Vec<String>) {
        (self.service.http(), self.public_http.clone())
    }

    fn readiness(&self) -> Readiness {
        self.service.readiness()
    }

    async fn stop(self) {
        self.service.stop().await;
    }
}

fn main() -> ExitCode {
    exchequer_serve::run::<Ledger>(&Command::parse().arguments)
}
