//! The `main` that the daemons have in common: configuration, telemetry, stream, service, listeners; and all of it back in order.
//!
//! Left out: what the service is. Invariant: nothing starts before the whole configuration was found good; the process ends with
//! status 0 only if it was told to stop, 2 if it was told something wrong, 1 if it failed.

use std::{
    process::ExitCode,
    sync::{Arc, PoisonError, RwLock},
};

use anyhow::Context as _;
use axum::Router;
use exchequer_config::Reader;
use exchequer_stream::EventStream;
use exchequer_telemetry::{self as telemetry, Readiness};
use tonic::service::Routes;

use crate::{
    config::{self, Arguments, Listen, Shared},
    server::{self, Parts},
};

/// A service as a process of its own.
pub trait Daemon: Sized + Send + Sync + 'static {
    /// Name of the process in traces and logs.
    const NAME: &'static str;
    /// Its section of the configuration.
    const SECTION: &'static str;
    /// Its default gRPC port on loopback; HTTP is at the next.
    const PORT: u16;
    /// Full names of its gRPC services.
    const SERVICES: &'static [&'static str];
    /// What it is told.
    type Options: Send;

    /// Reads its section. `None` means that the reader holds a fault.
    fn read(reader: &mut Reader) -> Option<Self::Options>;

    /// Starts the service over a stream.
    fn start(
        options: Self::Options,
        stream: Arc<dyn EventStream>,
    ) -> impl Future<Output = anyhow::Result<Self>> + Send;

    /// Its gRPC services.
    fn grpc(&self) -> Routes;

    /// Its HTTP routes, and the paths among them that need no token.
    fn http(&self) -> (Router, Vec<String>);

    /// What works.
    fn readiness(&self) -> Readiness;

    /// Finishes what is in flight.
    fn stop(self) -> impl Future<Output = ()> + Send;
}

/// A service that is asked for its readiness until it is taken away to be stopped.
#[derive(Debug)]
pub struct Living<T>(Arc<RwLock<Option<T>>>);

impl<T> Clone for Living<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Send + Sync + 'static> Living<T> {
    /// A service that runs.
    pub fn new(service: T) -> Self {
        Self(Arc::new(RwLock::new(Some(service))))
    }

    /// Asks the service; `None` once it was taken.
    pub fn ask<R>(&self, question: impl FnOnce(&T) -> R) -> Option<R> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(question)
    }

    /// Takes the service away.
    pub fn take(&self) -> Option<T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The readiness of the service, and "stopping" once it was taken.
    pub fn readiness(
        &self,
        of: impl Fn(&T) -> Readiness + Send + Sync + 'static,
    ) -> Arc<dyn Fn() -> Readiness + Send + Sync> {
        let living = self.clone();
        Arc::new(move || {
            living.ask(&of).unwrap_or_else(|| Readiness::new().component("process", Err("stopping")))
        })
    }
}

/// The whole life of a daemon, from its command line to its exit status.
pub fn run<D: Daemon>(arguments: &Arguments) -> ExitCode {
    let mut reader = match arguments.reader(&["stream", "auth", "telemetry", D::SECTION]) {
        Ok(reader) => reader,
        Err(error) => return failed(&error, 2),
    };
    let shared = Shared::read(&mut reader, D::NAME, true);
    let listen = Listen::read(&mut reader, D::SECTION, D::PORT);
    let options = D::read(&mut reader);
    config::check_key_file(&mut reader, D::SECTION);
    if let Err(faults) = reader.finish() {
        config::exit_with(&faults)
    }
    let Some(options) = options else {
        return failed(&anyhow::anyhow!("section [{}] is incomplete", D::SECTION), 2);
    };
    if arguments.check {
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into(), 1),
    };
    match runtime.block_on(live::<D>(shared, listen, options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error, 1),
    }
}

async fn live<D: Daemon>(shared: Shared, listen: Listen, options: D::Options) -> anyhow::Result<()> {
    let _telemetry = telemetry::init(&shared.telemetry).context("telemetry")?;
    let stop = server::stop_signal();
    tokio::pin!(stop);
    let verifier = shared.verifier().await?;
    let bound = server::bind(listen).await?;
    let reachable = shared.stream.context("stream.url is not configured")?;
    let stream = tokio::select! {
        stream = reachable.connect() => stream?,
        told = &mut stop => return told,
    };
    let service = D::start(options, stream).await?;
    let (http, public_http) = service.http();
    let grpc = service.grpc();
    let living = Living::new(service);
    let parts = Parts {
        grpc,
        services: D::SERVICES.to_vec(),
        http,
        public_http,
        readiness: living.readiness(D::readiness),
    };
    let mut running = server::serve(bound, verifier, parts)?;
    tracing::info!(grpc = %running.grpc, http = %running.http, "serving");
    let outcome = tokio::select! {
        told = &mut stop => told,
        error = running.failed() => Err(error),
    };
    tracing::info!("stopping");
    // The listeners close at once; open calls end while the service stops, since only the service can end them.
    let stopped = async {
        if let Some(service) = living.take() {
            service.stop().await;
        }
    };
    tokio::join!(running.stop(), stopped);
    outcome
}

fn failed(error: &anyhow::Error, status: u8) -> ExitCode {
    #[allow(clippy::print_stderr)]
    {
        eprintln!("error: {error:#}");
    }
    ExitCode::from(status)
}
