//! The audited path: ledger, metering and agent as `exchequer up` runs them, in a process of their own, called over gRPC.
//!
//! Left out: a NATS server (the stream is the embedded one). Invariant: an execution counts once its outcome was answered, which is
//! after it is on disk, with exit code 0.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use exchequer_auth::BearerToken;
use exchequer_event::v1::{
    self, agent_service_client::AgentServiceClient, execute_response::Part,
    metering_service_client::MeteringServiceClient,
};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tonic::{service::interceptor::InterceptedService, transport::Channel};

use super::{Many, PROGRAM, at_once};

/// Connections to the agent.
pub(super) const CONNECTIONS: usize = 4;
/// How long starting and stopping may take.
const PATIENCE: Duration = Duration::from_secs(60);
const TENANT: &str = "load";
/// More than any run uses of any meter.
const PLENTY: u64 = 1 << 40;

/// What `exchequer up` leaves for clients.
#[derive(Deserialize)]
struct ClientFile {
    grpc: String,
    token: String,
}

/// Everything in one process; killed if it is dropped without [`World::stop`].
pub(super) struct World {
    child: Child,
    directory: tempfile::TempDir,
    peers: ClientFile,
}

impl World {
    /// Starts it with a budget, for so many executions at a time.
    pub(super) async fn start(concurrent: u16, allow_degraded: bool) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("exchequer-load-").tempdir()?;
        let child = Command::new(std::env::current_exe()?)
            .args(["up", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .args(["--set", &format!("agent.max_concurrent={concurrent}")])
            .args(["--set", &format!("agent.max_concurrent_per_tenant={concurrent}")])
            .args(["--set", &format!("agent.allow_degraded={allow_degraded}")])
            .arg("--data")
            .arg(directory.path())
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let peers = ClientFile { grpc: String::new(), token: String::new() };
        let mut world = Self { child, directory, peers };
        world.peers = world.appeared().await?;
        world.set_budget().await?;
        Ok(world)
    }

    async fn appeared(&mut self) -> anyhow::Result<ClientFile> {
        let file = self.directory.path().join("client.json");
        let deadline = Instant::now() + PATIENCE;
        while !Path::new(&file).exists() {
            if let Some(ended) = self.child.try_wait()? {
                bail!("`exchequer up` ended with {ended}");
            }
            ensure!(Instant::now() < deadline, "`exchequer up` does not come up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(serde_json::from_slice(&fs::read(&file)?)?)
    }

    async fn channel(&self) -> anyhow::Result<(Channel, BearerToken)> {
        let address = format!("http://{}", self.peers.grpc);
        let channel = Channel::from_shared(address)?.tcp_nodelay(true).connect().await?;
        Ok((channel, BearerToken::fixed(&self.peers.token)?))
    }

    async fn set_budget(&self) -> anyhow::Result<()> {
        let (channel, token) = self.channel().await?;
        let granted = |meter: &str| v1::MeterAmount { meter: meter.to_owned(), amount: PLENTY };
        let request = v1::SetBudgetRequest {
            scope: TENANT.to_owned(),
            granted: ["cpu_ms", "invocations"].map(granted).to_vec(),
            idempotency_key: "budget".to_owned(),
            ..v1::SetBudgetRequest::default()
        };
        MeteringServiceClient::with_interceptor(channel, token).set_budget(request).await?;
        Ok(())
    }

    /// A client on a connection of its own.
    pub(super) async fn client(&self) -> anyhow::Result<Client> {
        let (channel, token) = self.channel().await?;
        Ok(Client(AgentServiceClient::with_interceptor(channel, token)))
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it keeps what it stores.
    pub(super) fn data(&self) -> &Path {
        self.directory.path()
    }

    /// Stops it in good order.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, Signal::TERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "`exchequer up` ended with {status}");
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A caller of the agent.
#[derive(Clone)]
pub(super) struct Client(AgentServiceClient<InterceptedService<Channel, BearerToken>>);

/// One answered execution.
pub(super) struct Executed {
    pub(super) time: Duration,
    pub(super) has_bundle: bool,
}

impl Client {
    /// One, from the call to the end of its answer.
    pub(super) async fn execute(&self) -> anyhow::Result<Executed> {
        let request = v1::ExecuteRequest {
            tenant: TENANT.to_owned(),
            program: PROGRAM.to_owned(),
            ..v1::ExecuteRequest::default()
        };
        let mut client = self.0.clone();
        let started = Instant::now();
        let mut parts = client.execute(request).await?.into_inner();
        let mut finished = None;
        while let Some(part) = parts.message().await? {
            if let Some(Part::Finished(part)) = part.part {
                finished = Some(part);
            }
        }
        let time = started.elapsed();
        let finished = finished.context("an answer without an outcome")?;
        let record = finished.record.context("an outcome without its record")?;
        let exited = record.cause() == v1::ExitCause::Exited && record.exit_code == 0;
        ensure!(exited, "{PROGRAM} ended with {:?} {}", record.cause(), record.exit_code);
        Ok(Executed { time, has_bundle: !finished.bundle.is_empty() })
    }
}

/// So many in all, so many at a time, over these connections.
pub(super) async fn many(clients: &[Client], concurrent: u16, runs: u64) -> anyhow::Result<Many> {
    let clients: Arc<[Client]> = clients.into();
    at_once(concurrent, runs, move |lane| {
        let client = clients[usize::from(lane) % clients.len()].clone();
        async move {
            let executed = client.execute().await?;
            ensure!(executed.has_bundle, "an execution was answered without its result bundle");
            Ok(executed.time)
        }
    })
    .await
}
