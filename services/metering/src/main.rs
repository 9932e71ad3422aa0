//! The `exchequer-metering` binary: metering over JetStream. What a daemon does beside its service is in `exchequer-serve`.

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use axum::Router;
use clap::Parser;
use exchequer_config::Reader;
use exchequer_metering::{Options, Service};
use exchequer_serve::{Arguments, Daemon};
use exchequer_stream::EventStream;
use exchequer_telemetry::Readiness;
use tonic::service::Routes;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Metering: enforces budgets, and records every decision in signed blocks.
#[derive(Parser)]
#[command(
    version,
    after_help = "Configured by the sections [stream], [auth], [telemetry] and [metering]; `--check` lists every fault."
)]
struct Command {
    #[command(flatten)]
    arguments: Arguments,
}

struct Metering(Service);

impl Daemon for Metering {
    const NAME: &'static str = "exchequer-metering";
    const SECTION: &'static str = "metering";
    const PORT: u16 = 7411;
    const SERVICES: &'static [&'static str] = &["exchequer.v1.MeteringService"];
    type Options = Options;

    fn read(reader: &mut Reader) -> Option<Options> {
        let data = reader.required::<PathBuf>("metering.data");
        let options = Options::read(reader, data.clone().unwrap_or_default());
        data.map(|_| options)
    }

    async fn start(options: Options, stream: Arc<dyn EventStream>) -> anyhow::Result<Self> {
        let service = Service::start(options, stream).await?;
        let public_key = hex::encode(service.public_key().as_bytes());
        tracing::info!(
            public_key,
            "blocks are signed with this key; the ledger has to know it (role metering)"
        );
        Ok(Self(service))
    }

    fn grpc(&self) -> Routes {
        self.0.grpc()
    }

    fn http(&self) -> (Router, Vec<String>) {
        (self.0.http(), Vec::new())
    }

    fn readiness(&self) -> Readiness {
        self.0.readiness()
    }

    async fn stop(self) {
        self.0.stop().await;
    }
}

fn main() -> ExitCode {
    exchequer_serve::run::<Metering>(&Command::parse().arguments)
}
