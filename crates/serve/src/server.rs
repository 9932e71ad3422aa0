//! One gRPC and one HTTP listener around some services.
//!
//! Every request of [`serve`] passes: trace (span, metrics) → authentication → service. Public are health and reflection, `/metrics`, `/healthz` and
//! `/readyz`, and what the service names. gRPC health follows the service's readiness. [`serve_open`] is for what is public as a whole.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::Router;
use exchequer_auth::{AuthLayer, Verifier};
use exchequer_telemetry::{Readiness, TraceLayer, http_routes};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};
use tonic_health::ServingStatus;

use crate::{config::Listen, connections::Listener};

/// gRPC paths that need no token: health, and reflection, which tells what this repository tells.
const PUBLIC_GRPC: [&str; 3] = [
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
];
/// HTTP paths that need no token.
const PUBLIC_HTTP: [&str; 3] = ["/metrics", "/healthz", "/readyz"];
/// How often readiness is asked for gRPC health.
const HEALTH_PERIOD: Duration = Duration::from_secs(1);
/// Requests of one connection at one time.
const MAX_STREAMS: u32 = 1024;
/// How long open requests may take once the process was told to stop: longer than the agent drains.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// What is served.
pub struct Parts {
    /// The gRPC services.
    pub grpc: Routes,
    /// Their full names, for health.
    pub services: Vec<&'static str>,
    /// The HTTP routes.
    pub http: Router,
    /// HTTP paths that need no token; one that ends in `/` stands for all below it.
    pub public_http: Vec<String>,
    /// What works.
    pub readiness: Arc<dyn Fn() -> Readiness + Send + Sync>,
}

/// Servers that are listening.
#[derive(Debug)]
pub struct Running {
    /// Where gRPC is served.
    pub grpc: SocketAddr,
    /// Where HTTP is served.
    pub http: SocketAddr,
    stop: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
}

/// Listeners that are bound and don't answer yet: for services that have to know their addresses before they start.
#[derive(Debug)]
pub struct Bound {
    /// Where gRPC will be served.
    pub grpc: SocketAddr,
    /// Where HTTP will be served.
    pub http: SocketAddr,
    grpc_listener: TcpListener,
    http_listener: TcpListener,
}

/// Binds both listeners. Connections wait until [`serve`].
pub async fn bind(listen: Listen) -> anyhow::Result<Bound> {
    let listener =
        async |at: SocketAddr| TcpListener::bind(at).await.with_context(|| format!("listening on {at}"));
    let (grpc_listener, http_listener) = (listener(listen.grpc).await?, listener(listen.http).await?);
    let (grpc, http) = (grpc_listener.local_addr()?, http_listener.local_addr()?);
    Ok(Bound { grpc, http, grpc_listener, http_listener })
}

/// Serves on bound listeners.
pub fn serve(bound: Bound, verifier: Verifier, parts: Parts) -> anyhow::Result<Running> {
    let Parts { grpc, services, http, public_http, readiness } = parts;
    let Bound { grpc: grpc_at, http: http_at, grpc_listener, http_listener } = bound;
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();

    let (reporter, health) = tonic_health::server::health_reporter();
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(exchequer_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let routes = grpc
        .add_service(health)
        .add_service(reflection().build_v1().context("reflection")?)
        .add_service(reflection().build_v1alpha().context("reflection")?);
    let server = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .layer(TraceLayer::server())
        .layer(AuthLayer::new(verifier.clone(), PUBLIC_GRPC))
        .add_routes(routes);
    let stopped = stop.clone();
    tasks.spawn(async move {
        let incoming = Listener::new(grpc_listener).incoming();
        server.serve_with_incoming_shutdown(incoming, stopped.cancelled_owned()).await.context("gRPC")
    });

    let asked = Arc::clone(&readiness);
    let public: Vec<String> = PUBLIC_HTTP.iter().map(|path| (*path).to_owned()).chain(public_http).collect();
    let router = http
        .merge(http_routes(move || asked()))
        .layer(AuthLayer::new(verifier, public))
        .layer(TraceLayer::server());
    let stopped = stop.clone();
    tasks.spawn(async move {
        axum::serve(Listener::new(http_listener), router)
            .with_graceful_shutdown(stopped.cancelled_owned())
            .await
            .context("HTTP")
    });

    let stopped = stop.clone();
    tasks.spawn(async move {
        let mut period = tokio::time::interval(HEALTH_PERIOD);
        loop {
            tokio::select! {
                _ = period.tick() => {}
                () = stopped.cancelled() => return Ok(()),
            }
            let status =
                if readiness().is_ready() { ServingStatus::Serving } else { ServingStatus::NotServing };
            for service in services.iter().copied().chain([""]) {
                reporter.set_service_status(service, status).await;
            }
        }
    });
    Ok(Running { grpc: grpc_at, http: http_at, stop, tasks })
}

/// Serves routes that everybody may use, with the operators' routes beside them, until `stop` ends; then open requests have a while.
pub async fn serve_open(
    listener: TcpListener,
    http: Router,
    readiness: Arc<dyn Fn() -> Readiness + Send + Sync>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let router = http.merge(http_routes(move || readiness())).layer(TraceLayer::server());
    let stopped = CancellationToken::new();
    let told = stopped.clone();
    let signal = async move {
        stop.await;
        told.cancel();
    };
    let served = axum::serve(Listener::new(listener), router).with_graceful_shutdown(signal);
    let cut_off = async {
        stopped.cancelled().await;
        tokio::time::sleep(STOP_PATIENCE).await;
    };
    tokio::select! {
        outcome = served => outcome.context("HTTP"),
        () = cut_off => Ok(()),
    }
}

impl Running {
    /// Stops listening and lets open requests end, for a while.
    pub async fn stop(mut self) {
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_PATIENCE, ended).await.is_err() {
            tracing::info!("open requests were cut off");
        }
    }

    /// Waits until a server fails, which it does not in good order.
    pub async fn failed(&mut self) -> anyhow::Error {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => return error,
                Some(Err(error)) => return error.into(),
                None => return anyhow::anyhow!("the servers ended"),
            }
        }
    }
}

/// Waits for SIGINT or SIGTERM.
pub async fn stop_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
