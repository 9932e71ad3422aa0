//! The agent as a whole: what it starts, in which order, and how it stops.
//!
//! Before anything is served: the spool is open, the sandbox has been probed, the start is recorded, and every execution that an
//! earlier life left without an outcome has one. Left out: listening, authentication and signals, which the process puts around it.

use std::{sync::Arc, time::Duration};

use ed25519_dalek::VerifyingKey;
use exchequer_auth::{BearerToken, keys};
use exchequer_event::v1::{self, agent_service_server::AgentServiceServer, event::Kind};
use exchequer_stream::{AppendError, EventStream, ReadError};
use exchequer_telemetry::Readiness;
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    audit_log,
    execute::Executor,
    grpc::Service,
    holds::Holds,
    keyrings,
    leases::Leases,
    metrics,
    options::{Options, Peers},
    publish::{self, Progress, Publisher},
    record,
    sandbox::{Sandbox, SandboxError, StartOptions, probe},
    spool::{NewEvent, RecordError, Spool, SpoolError},
    workspace::Workspace,
};

/// Name of the component that says whether the host enforces every control. It is probed at the start: waiting does not mend it.
pub const CONTROLS: &str = "sandbox_controls";
/// How long executions may go on after the agent was told to stop.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// How long the last events may take to be confirmed when the agent stops. What is not confirmed stays in the spool.
const FLUSH_PATIENCE: Duration = Duration::from_secs(3);
/// How long leases may take to be given back when the agent stops. What is not given back runs out.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// How long to wait for a receipt before a full spool is looked at again.
const ROOM_PATIENCE: Duration = Duration::from_secs(1);
/// Largest request: standard input, contents of input files, and the rest of it.
const MAX_REQUEST_BYTES: usize = 3 << 20;

/// What is recorded of an execution that an earlier life of the agent left without an outcome.
const LOST_WITH_AGENT: &str = "the agent was ended while it ran";

/// Why the agent can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its key.
    #[error(transparent)]
    Key(#[from] keys::KeyError),
    /// Its spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The start could not be recorded.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The sandbox's helper process.
    #[error("sandbox helper: {0}")]
    Helper(#[from] std::io::Error),
    /// The sandbox's probe.
    #[error("sandbox: {0}")]
    Sandbox(#[from] SandboxError),
    /// The stream, which knows the ledger's last receipt.
    #[error("stream: {0}")]
    Stream(#[from] ReadError),
    /// The workspace's directory.
    #[error("agent.workspace: {0}")]
    Workspace(std::io::Error),
    /// Metering's address.
    #[error("agent.metering_url: {0}")]
    MeteringUrl(#[from] tonic::transport::Error),
    /// A task of the start ended early.
    #[error("start-up was interrupted: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// A running agent. Dropping it without [`stop`](Self::stop) is a crash, from which the next start recovers.
pub struct Agent {
    executor: Arc<Executor>,
    progress: watch::Receiver<Progress>,
    missing: Vec<String>,
    public_key: VerifyingKey,
    _publisher: Task,
    _audit_log: Option<Task>,
    _keeper: Option<Task>,
}

impl Agent {
    /// Recovers, records the start, and begins to publish. The token is the agent's own, for metering.
    pub async fn start(
        options: Options,
        peers: Peers,
        token: BearerToken,
        stream: Arc<dyn EventStream>,
    ) -> Result<Self, StartError> {
        let key = keys::load_or_create(&options.key_file)?;
        let public_key = key.verifying_key();
        let holds = Holds::new(&peers.metering_url, token)?;
        let workspace = options.workspace.as_deref().map(Workspace::open).transpose();
        let workspace = workspace.map_err(StartError::Workspace)?;
        let sandbox = Sandbox::start(StartOptions {
            helper: options.helper.clone(),
            ready: options.ready_sandboxes,
            ..StartOptions::default()
        })?;
        keyrings::warn_if_short(options.max_concurrent, options.ready_sandboxes);
        let controls = record::controls(&probe(&sandbox).await?);
        let receipt = publish::latest_receipt(&*stream, &options.id, &peers.ledger_key).await?;
        let min_epoch = receipt.and_then(|receipt| receipt.head).map_or(0, |head| head.epoch);
        let (dir, id) = (options.data.join("spool"), options.id.clone());
        let (limit, max_concurrent) = (options.spool_limit, options.max_concurrent);
        let opened =
            tokio::task::spawn_blocking(move || Spool::open(&dir, &id, limit, max_concurrent, min_epoch))
                .await?;
        let (spool, lost) = opened?;
        let spool = Arc::new(spool.with_payload_keys(options.payload_keys.clone()));
        // Before anything is published, and so may be removed.
        let audit_log = options.audit_log.clone();
        let audit_log = audit_log.map(|log| Task(tokio::spawn(audit_log::follow(Arc::clone(&spool), log))));
        // Before anything is recorded: a full spool has to drain first.
        let (report, mut progress) = watch::channel(Progress::default());
        let publisher = Publisher {
            spool: Arc::clone(&spool),
            stream,
            key: key.clone(),
            ledger_key: peers.ledger_key,
            resend_after: options.resend_after,
        };
        let publisher = Task(tokio::spawn(publisher.run(report)));
        let missing = record::missing(&controls).into_iter().map(|control| control.name).collect::<Vec<_>>();
        let started = Kind::AgentStarted(v1::AgentStarted {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            controls,
            allow_degraded: options.allow_degraded,
            not_required: options.not_required.clone(),
        });
        let lost = lost.into_iter().map(|lost| {
            tracing::warn!(
                execution_id = lost.execution_id,
                "an execution was lost with the agent's last life"
            );
            let kind = Kind::ExecutionFinished(record::lost(&lost.hold_id, lost.reserved, LOST_WITH_AGENT));
            NewEvent { tenant: lost.tenant, execution_id: lost.execution_id, skill: lost.skill, kind }
        });
        for event in std::iter::once(NewEvent::own(started)).chain(lost) {
            record_when_there_is_room(&spool, event, &mut progress).await?;
        }
        let lease = options.lease.clone();
        let leases = lease.map(|lease| Leases::new(holds.clone(), lease, options.hold_margin));
        let keeper = leases.as_ref().map(|leases| Task(leases.keep()));
        let executor = Executor::new(options, spool, holds, leases, sandbox, workspace, key);
        Ok(Self {
            executor,
            progress,
            missing,
            public_key,
            _publisher: publisher,
            _audit_log: audit_log,
            _keeper: keeper,
        })
    }

    /// The key under which the agent has to be enrolled.
    pub fn public_key(&self) -> &VerifyingKey {
        &self.public_key
    }

    /// The spool.
    pub fn spool(&self) -> &Arc<Spool> {
        &self.executor.spool
    }

    /// How many executions have a slot, and how many wait for one.
    pub fn occupancy(&self) -> (usize, usize) {
        self.executor.occupancy()
    }

    /// Controls that the probe at the start found missing.
    pub fn missing_controls(&self) -> &[String] {
        &self.missing
    }

    /// The RPCs.
    pub fn grpc(&self) -> tonic::service::Routes {
        let service = AgentServiceServer::new(Service::new(Arc::clone(&self.executor)));
        tonic::service::Routes::new(service.max_decoding_message_size(MAX_REQUEST_BYTES))
    }

    /// What works and what does not.
    pub fn readiness(&self) -> Readiness {
        let spool = &self.executor.spool;
        metrics::confirmed_seq().record(spool.confirmed_seq(), &[]);
        metrics::spool_bytes().record(spool.kept_bytes(), &[]);
        metrics::record_slices(&self.executor.slices());
        let options = &self.executor.options;
        let required: Vec<_> =
            self.missing.iter().map(String::as_str).filter(|name| options.requires(name)).collect();
        let controls =
            if required.is_empty() { Ok(()) } else { Err(format!("missing: {}", required.join(", "))) };
        let publishing = self.progress.borrow().trouble.clone().map_or(Ok(()), Err);
        let room = spool.check_room().map_err(|error| match spool.pruning_trouble() {
            Some(trouble) => format!("{error}; what receipts cover was not removed: {trouble}"),
            None => error.to_string(),
        });
        let readiness = match spool.audit_log_trouble() {
            _ if self.executor.options.audit_log.is_none() => Readiness::new(),
            trouble => Readiness::new().component("audit_log", trouble.map_or(Ok(()), Err)),
        };
        readiness.component("spool", room).component(CONTROLS, controls).component("publishing", publishing)
    }

    /// Refuses new executions, lets running ones end, records the stop, waits a little for the last receipt, and gives its
    /// leases back.
    pub async fn stop(mut self) {
        self.executor.drain(DRAIN_PATIENCE).await;
        let stopped = Kind::AgentStopped(v1::AgentStopped { reason: "told to stop".to_owned() });
        match self.executor.spool.record(NewEvent::own(stopped)).await {
            Ok(position) => {
                let confirmed = self.progress.wait_for(|progress| progress.confirmed >= position.seq);
                if tokio::time::timeout(FLUSH_PATIENCE, confirmed).await.is_err() {
                    tracing::info!("the last events are not confirmed yet; they stay in the spool");
                }
                let written = self.executor.spool.no_longer_wanted(position.seq);
                if tokio::time::timeout(FLUSH_PATIENCE, written).await.is_err() {
                    tracing::info!("the local audit log lacks the last events; the next start adds them");
                }
            }
            Err(error) => tracing::error!(%error, "the stop could not be recorded"),
        }
        // What was drawn has to be charged before a lease may go back, and it is charged once it is published.
        if let Some(leases) = &self.executor.leases {
            leases.close(CLOSE_PATIENCE).await;
        }
    }
}

/// A task that ends with its owner.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Records an event that must not be left out; while the spool is full, waits for the ledger to confirm some of it.
async fn record_when_there_is_room(
    spool: &Spool,
    event: NewEvent,
    progress: &mut watch::Receiver<Progress>,
) -> Result<(), RecordError> {
    loop {
        match spool.record(event.clone()).await {
            Err(RecordError::Journal(AppendError::Full(reason))) => {
                tracing::warn!(%reason, "waiting for the ledger to confirm what the spool holds");
                // A receipt makes room, or an operator does.
                let _ = tokio::time::timeout(ROOM_PATIENCE, progress.changed()).await;
            }
            outcome => return outcome.map(drop),
        }
    }
}
