//! An agent that is served on loopback, over an embedded stream, beside a metering service that answers as it is told.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use ed25519_dalek::SigningKey;
use exchequer_auth::{AuthLayer, BearerToken, Grant, Issuer, Role, Verifier};
use exchequer_event::v1::{
    self,
    agent_service_client::AgentServiceClient,
    metering_service_server::{MeteringService, MeteringServiceServer},
};
use exchequer_stream::{EventStream, LocalStream};
use exchequer_telemetry::TraceLayer;
use prost::Message;
use sandbox_agent::{
    Agent, Options, Peers,
    spool::{PayloadKeys, Spool},
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, service::interceptor::InterceptedService, transport::Channel};

/// What the metering service answers.
#[derive(Clone, Copy, Debug)]
pub enum Metering {
    Grants,
    Denies,
    Unavailable,
}

/// What metering answers when a lease is to be extended.
#[derive(Clone, Copy, Debug, Default)]
pub enum Extension {
    #[default]
    Grants,
    Denies,
    Ended,
    Unavailable,
}

/// What metering was asked, and what it is told to answer about leases.
#[derive(Default)]
pub struct Asked {
    /// Reservations, those of leases included.
    pub holds: AtomicU64,
    pub leases: AtomicU64,
    pub voids: AtomicU64,
    pub extensions: AtomicU64,
    pub looks: AtomicU64,
    pub settlements: AtomicU64,
    /// Whether metering is away from now on.
    pub is_away: AtomicBool,
    pub extension: Mutex<Extension>,
    pub is_revoked: AtomicBool,
    /// What metering has charged the lease.
    pub charged: Mutex<Vec<v1::MeterAmount>>,
    /// The last `traceparent`.
    pub traceparent: Mutex<String>,
}

struct Answers {
    metering: Metering,
    asked: Arc<Asked>,
}

fn unasked<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("the agent has no reason to ask for this"))
}

#[tonic::async_trait]
impl MeteringService for Answers {
    async fn reserve(
        &self,
        request: Request<v1::ReserveRequest>,
    ) -> Result<Response<v1::ReserveResponse>, Status> {
        use v1::reserve_response::Outcome;
        if let Some(parent) = request.metadata().get("traceparent") {
            parent.to_str().unwrap().clone_into(&mut self.asked.traceparent.lock().unwrap());
        }
        let request = request.into_inner();
        if self.asked.is_away.load(Ordering::Relaxed) {
            return Err(Status::unavailable("away"));
        }
        let outcome = match self.metering {
            Metering::Unavailable => return Err(Status::unavailable("away")),
            Metering::Grants => Outcome::Granted(v1::HoldGranted {
                hold_id: {
                    let kind = if request.lease { "lease" } else { "hold" };
                    self.asked.leases.fetch_add(u64::from(request.lease), Ordering::Relaxed);
                    format!("{kind}-{}", self.asked.holds.fetch_add(1, Ordering::Relaxed) + 1)
                },
                lease: request.lease,
                scope: request.scope,
                amounts: request.amounts,
                ..v1::HoldGranted::default()
            }),
            Metering::Denies => Outcome::Denied(v1::HoldDenied {
                scope: request.scope.clone(),
                reason: v1::DenialReason::Exhausted.into(),
                binding_scope: request.scope,
                binding_meter: "cpu_ms".into(),
                requested: 10,
                available: 5,
                ..v1::HoldDenied::default()
            }),
        };
        Ok(Response::new(v1::ReserveResponse { outcome: Some(outcome), stream_seq: 1 }))
    }

    async fn void(&self, request: Request<v1::VoidRequest>) -> Result<Response<v1::VoidResponse>, Status> {
        self.asked.voids.fetch_add(1, Ordering::Relaxed);
        let voided = v1::HoldVoided { hold_id: request.into_inner().hold_id };
        Ok(Response::new(v1::VoidResponse { voided: Some(voided), stream_seq: 1 }))
    }

    type WatchBudgetsStream = futures::stream::Empty<Result<v1::WatchBudgetsResponse, Status>>;

    async fn watch_budgets(
        &self,
        _: Request<v1::WatchBudgetsRequest>,
    ) -> Result<Response<Self::WatchBudgetsStream>, Status> {
        unasked()
    }

    async fn remove_budget(
        &self,
        _: Request<v1::RemoveBudgetRequest>,
    ) -> Result<Response<v1::RemoveBudgetResponse>, Status> {
        unasked()
    }

    async fn add_grant(
        &self,
        _: Request<v1::AddGrantRequest>,
    ) -> Result<Response<v1::AddGrantResponse>, Status> {
        unasked()
    }

    async fn revoke_grant(
        &self,
        _: Request<v1::RevokeGrantRequest>,
    ) -> Result<Response<v1::RevokeGrantResponse>, Status> {
        unasked()
    }

    async fn set_rate_limit(
        &self,
        _: Request<v1::SetRateLimitRequest>,
    ) -> Result<Response<v1::SetRateLimitResponse>, Status> {
        unasked()
    }

    async fn set_concurrency_limit(
        &self,
        _: Request<v1::SetConcurrencyLimitRequest>,
    ) -> Result<Response<v1::SetConcurrencyLimitResponse>, Status> {
        unasked()
    }

    async fn set_price(
        &self,
        _: Request<v1::SetPriceRequest>,
    ) -> Result<Response<v1::SetPriceResponse>, Status> {
        unasked()
    }

    async fn define_meter(
        &self,
        _: Request<v1::DefineMeterRequest>,
    ) -> Result<Response<v1::DefineMeterResponse>, Status> {
        unasked()
    }

    async fn set_webhook(
        &self,
        _: Request<v1::SetWebhookRequest>,
    ) -> Result<Response<v1::SetWebhookResponse>, Status> {
        unasked()
    }

    async fn get_settings(
        &self,
        _: Request<v1::GetSettingsRequest>,
    ) -> Result<Response<v1::GetSettingsResponse>, Status> {
        unasked()
    }

    async fn draw_lease(
        &self,
        _: Request<v1::DrawLeaseRequest>,
    ) -> Result<Response<v1::DrawLeaseResponse>, Status> {
        unasked()
    }

    async fn revoke_hold(
        &self,
        _: Request<v1::RevokeHoldRequest>,
    ) -> Result<Response<v1::RevokeHoldResponse>, Status> {
        unasked()
    }

    async fn list_holds(
        &self,
        _: Request<v1::ListHoldsRequest>,
    ) -> Result<Response<v1::ListHoldsResponse>, Status> {
        unasked()
    }

    async fn decide(&self, _: Request<v1::DecideRequest>) -> Result<Response<v1::DecideResponse>, Status> {
        unasked()
    }

    async fn report_usage(
        &self,
        _: Request<v1::ReportUsageRequest>,
    ) -> Result<Response<v1::ReportUsageResponse>, Status> {
        unasked()
    }

    async fn correct_usage(
        &self,
        _: Request<v1::CorrectUsageRequest>,
    ) -> Result<Response<v1::CorrectUsageResponse>, Status> {
        unasked()
    }

    async fn query_usage(
        &self,
        _: Request<v1::QueryUsageRequest>,
    ) -> Result<Response<v1::QueryUsageResponse>, Status> {
        unasked()
    }

    async fn get_position(
        &self,
        _: Request<v1::GetPositionRequest>,
    ) -> Result<Response<v1::GetPositionResponse>, Status> {
        unasked()
    }

    async fn set_budget(
        &self,
        _: Request<v1::SetBudgetRequest>,
    ) -> Result<Response<v1::SetBudgetResponse>, Status> {
        unasked()
    }

    async fn get_budget(
        &self,
        _: Request<v1::GetBudgetRequest>,
    ) -> Result<Response<v1::GetBudgetResponse>, Status> {
        unasked()
    }

    async fn list_budgets(
        &self,
        _: Request<v1::ListBudgetsRequest>,
    ) -> Result<Response<v1::ListBudgetsResponse>, Status> {
        unasked()
    }

    async fn extend(
        &self,
        request: Request<v1::ExtendRequest>,
    ) -> Result<Response<v1::ExtendResponse>, Status> {
        use v1::extend_response::Outcome;
        self.asked.extensions.fetch_add(1, Ordering::Relaxed);
        let v1::ExtendRequest { hold_id, amounts, .. } = request.into_inner();
        let extension = *self.asked.extension.lock().unwrap();
        let outcome = match extension {
            _ if self.asked.is_away.load(Ordering::Relaxed) => return Err(Status::unavailable("away")),
            Extension::Unavailable => return Err(Status::unavailable("away")),
            Extension::Ended => return Err(Status::failed_precondition("the hold was revoked")),
            Extension::Denies => Outcome::Denied(v1::HoldDenied::default()),
            Extension::Grants => {
                Outcome::Extended(v1::HoldExtended { hold_id, added: amounts, ..v1::HoldExtended::default() })
            }
        };
        Ok(Response::new(v1::ExtendResponse { outcome: Some(outcome), stream_seq: 1 }))
    }

    async fn settle(
        &self,
        request: Request<v1::SettleRequest>,
    ) -> Result<Response<v1::SettleResponse>, Status> {
        assert!(request.get_ref().used.is_empty(), "executions are charged by their events");
        self.asked.settlements.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(v1::SettleResponse::default()))
    }

    async fn get_hold(
        &self,
        request: Request<v1::GetHoldRequest>,
    ) -> Result<Response<v1::GetHoldResponse>, Status> {
        if self.asked.is_away.load(Ordering::Relaxed) {
            return Err(Status::unavailable("away"));
        }
        let hold = v1::GetHoldResponse {
            hold_id: request.into_inner().hold_id,
            state: v1::HoldState::Open.into(),
            used: self.asked.charged.lock().unwrap().clone(),
            lease: true,
            revoked: self.asked.is_revoked.load(Ordering::Relaxed),
            ..v1::GetHoldResponse::default()
        };
        self.asked.looks.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(hold))
    }

    async fn get_usage(
        &self,
        _: Request<v1::GetUsageRequest>,
    ) -> Result<Response<v1::GetUsageResponse>, Status> {
        unasked()
    }
}

pub type Parts = tonic::Streaming<v1::ExecuteResponse>;
type Part = Option<v1::execute_response::Part>;
type Client = AgentServiceClient<InterceptedService<Channel, BearerToken>>;

pub struct Rig {
    issuer: Issuer,
    agent: Agent,
    address: SocketAddr,
    pub stream: Arc<dyn EventStream>,
    asked: Arc<Asked>,
    _dir: TempDir,
}

impl Rig {
    pub async fn start(metering: Metering) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), metering, |_| {}).await
    }

    /// Starts in a directory where an earlier life may have left its spool, with other options than the usual.
    pub async fn start_in(dir: TempDir, metering: Metering, change: impl FnOnce(&mut Options)) -> Self {
        let issuer = Issuer::open(dir.path(), "test", "exchequer").unwrap();
        let stream: Arc<dyn EventStream> = Arc::new(LocalStream::open(&dir.path().join("stream")).unwrap());
        let (listener, at) = listen().await;
        let asked = Arc::new(Asked::default());
        let answers = MeteringServiceServer::new(Answers { metering, asked: Arc::clone(&asked) });
        let metering = tonic::transport::Server::builder().add_service(answers).serve_with_incoming(listener);
        tokio::spawn(async move { metering.await.unwrap() });
        let grant = Grant {
            subject: "a".into(),
            tenant: None,
            roles: vec![Role::Agent],
            ttl: Duration::from_secs(60),
        };
        let token = BearerToken::issued(issuer.clone(), grant).unwrap();
        let mut options = options(dir.path());
        let peers = Peers {
            ledger_key: SigningKey::from_bytes(&[7; 32]).verifying_key(),
            metering_url: format!("http://{at}"),
        };
        change(&mut options);
        let agent = Agent::start(options, peers, token, Arc::clone(&stream)).await.unwrap();
        let verifier = Verifier::open(issuer.verifier_options()).await.unwrap();
        let (listener, address) = listen().await;
        let server = tonic::transport::Server::builder()
            .layer(TraceLayer::server())
            .layer(AuthLayer::new(verifier, Vec::<String>::new()))
            .add_routes(agent.grpc())
            .serve_with_incoming(listener);
        tokio::spawn(async move { server.await.unwrap() });
        Self { issuer, agent, address, stream, asked, _dir: dir }
    }

    pub fn token(&self, tenant: &str, role: Role) -> String {
        let grant = Grant {
            subject: "caller".into(),
            tenant: Some(tenant.into()),
            roles: vec![role],
            ttl: Duration::from_secs(60),
        };
        self.issuer.mint(&grant).unwrap()
    }

    fn client(&self, token: &str) -> Client {
        let channel = Channel::from_shared(format!("http://{}", self.address)).unwrap().connect_lazy();
        AgentServiceClient::with_interceptor(channel, BearerToken::fixed(token).unwrap())
    }

    pub async fn begin(&self, tenant: &str, request: v1::ExecuteRequest) -> Result<Parts, Status> {
        let parts = self.client(&self.token(tenant, Role::User)).execute(request).await?;
        Ok(parts.into_inner())
    }

    /// The same by itself: aborting it is a caller that goes away.
    pub fn ask(
        &self,
        tenant: &str,
        request: impl tonic::IntoRequest<v1::ExecuteRequest>,
    ) -> tokio::task::JoinHandle<Result<Parts, Status>> {
        let mut client = self.client(&self.token(tenant, Role::User));
        let request = request.into_request();
        tokio::spawn(async move { client.execute(request).await.map(Response::into_inner) })
    }

    pub async fn execute(
        &self,
        tenant: &str,
        request: impl tonic::IntoRequest<v1::ExecuteRequest>,
    ) -> Result<Vec<Part>, Status> {
        self.execute_as(Some(self.token(tenant, Role::User)), request).await
    }

    pub async fn execute_as(
        &self,
        token: Option<String>,
        request: impl tonic::IntoRequest<v1::ExecuteRequest>,
    ) -> Result<Vec<Part>, Status> {
        let parts = if let Some(token) = token {
            self.client(&token).execute(request).await?
        } else {
            let channel = Channel::from_shared(format!("http://{}", self.address)).unwrap().connect_lazy();
            AgentServiceClient::new(channel).execute(request).await?
        };
        let (mut parts, mut all) = (parts.into_inner(), Vec::new());
        while let Some(part) = parts.message().await? {
            all.push(part.part);
        }
        Ok(all)
    }

    pub async fn capabilities(&self) -> v1::GetCapabilitiesResponse {
        let mut client = self.client(&self.token("acme", Role::User));
        client.get_capabilities(v1::GetCapabilitiesRequest {}).await.unwrap().into_inner()
    }

    pub fn asked(&self) -> &Arc<Asked> {
        &self.asked
    }

    /// The agent's slices, as an auditor sees them.
    pub async fn slices(&self) -> Vec<v1::Slice> {
        let mut client = self.client(&self.token("acme", Role::Auditor));
        client.list_slices(v1::ListSlicesRequest {}).await.unwrap().into_inner().slices
    }

    /// How many executions have a slot, and how many wait for one.
    pub fn occupancy(&self) -> (usize, usize) {
        self.agent.occupancy()
    }

    /// Holds that were reserved and not given back.
    pub fn open_holds(&self) -> u64 {
        self.asked.holds.load(Ordering::Relaxed) - self.asked.voids.load(Ordering::Relaxed)
    }

    pub fn spool(&self) -> &Spool {
        self.agent.spool()
    }

    /// Every event on the agent's disk.
    /// The agent's key.
    pub fn agent_key(&self) -> ed25519_dalek::VerifyingKey {
        *self.agent.public_key()
    }

    pub fn recorded(&self) -> Vec<v1::Event> {
        self.agent
            .spool()
            .reader()
            .read(1, usize::MAX)
            .unwrap()
            .into_iter()
            .map(|entry| v1::Event::decode(entry.body).unwrap())
            .collect()
    }

    /// The last denial on the agent's disk, with its event.
    pub fn last_denial(&self) -> Option<(v1::Event, v1::ExecutionDenied)> {
        self.recorded().into_iter().rev().find_map(|event| match &event.kind {
            Some(v1::event::Kind::ExecutionDenied(denied)) => {
                let denied = denied.clone();
                Some((event, denied))
            }
            _ => None,
        })
    }

    /// Stops in good order; what is on the disk then.
    pub async fn stop(self) -> Vec<v1::Event> {
        let spool = Arc::clone(self.agent.spool());
        self.agent.stop().await;
        let entries = spool.reader().read(1, usize::MAX).unwrap();
        entries.into_iter().map(|entry| v1::Event::decode(entry.body).unwrap()).collect()
    }
}

async fn listen() -> (TcpListenerStream, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    (TcpListenerStream::new(listener), at)
}

fn options(dir: &Path) -> Options {
    Options {
        id: "a".into(),
        data: dir.join("agent"),
        key_file: dir.join("agent.key"),
        // Tests run on hosts that forbid user namespaces, too.
        allow_degraded: true,
        not_required: Vec::new(),
        spool_limit: 8 << 20,
        profiles: sandbox_agent::profiles::Profiles::default(),
        max_concurrent: 8,
        max_concurrent_per_tenant: 8,
        max_waiting: 16,
        max_wait: Duration::from_secs(60),
        ready_sandboxes: 2,
        workspace: None,
        max_input_bytes: 16 << 20,
        max_artifact_bytes: 16 << 20,
        hold_margin: Duration::from_secs(60),
        lease: None,
        resend_after: Duration::from_secs(1),
        payload_keys: PayloadKeys::new(),
        audit_log: None,
        default_limits: v1::Limits {
            cpu_ms: 5_000,
            wall_ms: 10_000,
            memory_bytes: 1 << 30,
            output_bytes: 1 << 20,
            egress_bytes: 0,
        },
        max_limits: v1::Limits {
            cpu_ms: 60_000,
            wall_ms: 60_000,
            memory_bytes: 4 << 30,
            output_bytes: 64 << 20,
            egress_bytes: 0,
        },
        helper: env!("CARGO_BIN_EXE_sandbox-agent").into(),
    }
}
