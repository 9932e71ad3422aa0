//! A stream with a genesis, an issuer of tokens, agents that sign batches, and metering instances with a gRPC server each.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ed25519_dalek::SigningKey;
use exchequer_auth::{AuthLayer, BearerToken, Grant, Issuer, Role, Verifier};
use exchequer_event::{
    control::{sign_control, topic},
    name::control_subject,
    v1::{self, control_record, event, metering_service_client::MeteringServiceClient},
};
use exchequer_metering::{Options, Service};
use exchequer_stream::{EventStream, JetStream, LocalStream, Message, jetstream};
use exchequer_testkit::{NatsServer, SimAgent};
use prost::Message as _;
use tokio::{net::TcpListener, sync::oneshot, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Channel, Server},
};

pub type Client = MeteringServiceClient<InterceptedService<Channel, BearerToken>>;

pub const PATIENCE: Duration = Duration::from_secs(30);
const ISSUER: &str = "https://issuer.test";
const AUDIENCE: &str = "exchequer";

pub struct World {
    pub dir: tempfile::TempDir,
    pub stream: Arc<dyn EventStream>,
    pub ledger: SigningKey,
    issuer: Issuer,
}

pub struct Running {
    pub service: Service,
    pub address: SocketAddr,
    pub http: SocketAddr,
    stop: oneshot::Sender<()>,
    server: tokio::task::JoinHandle<()>,
    http_server: tokio::task::JoinHandle<()>,
}

impl World {
    pub async fn local() -> Self {
        let dir = exchequer_testkit::temp_dir();
        let stream = LocalStream::open(&dir.path().join("stream")).unwrap();
        Self::new(dir, Arc::new(stream)).await
    }

    pub async fn nats(server: &NatsServer) -> Self {
        Self::new(exchequer_testkit::temp_dir(), jetstream(&server.url()).await).await
    }

    async fn new(dir: tempfile::TempDir, stream: Arc<dyn EventStream>) -> Self {
        let ledger = SigningKey::from_bytes(&[7; 32]);
        let issuer = Issuer::open(dir.path(), ISSUER, AUDIENCE).unwrap();
        let world = Self { dir, stream, ledger, issuer };
        let ledger_key = world.ledger.verifying_key().to_bytes().to_vec().into();
        let genesis = v1::Genesis { origin: "exchequer.test/log".to_owned(), ledger_key };
        world.control(control_record::Kind::Genesis(genesis)).await;
        world
    }

    pub async fn control(&self, kind: control_record::Kind) {
        let subject = control_subject(topic(&kind));
        let record = v1::ControlRecord { time_unix_ms: 1, actor: "ledger".to_owned(), kind: Some(kind) };
        let signed = sign_control(&self.ledger, &record).encode_to_vec();
        self.stream.append(Message::new(subject, signed)).await.unwrap();
    }

    pub async fn enrol(&self, role: v1::KeyRole, holder: &str, key: [u8; 32]) {
        let public_key = key.to_vec().into();
        let enrolled = v1::KeyEnrolled { role: role.into(), holder: holder.to_owned(), public_key };
        self.control(control_record::Kind::KeyEnrolled(enrolled)).await;
    }

    pub async fn revoke(&self, role: v1::KeyRole, holder: &str, key: [u8; 32]) {
        let revoked = v1::KeyRevoked {
            role: role.into(),
            holder: holder.to_owned(),
            public_key: key.to_vec().into(),
            reason: "test".to_owned(),
        };
        self.control(control_record::Kind::KeyRevoked(revoked)).await;
    }

    pub fn options(&self, name: &str) -> Options {
        let mut options = Options::new(self.dir.path().join(name));
        options.lease_ttl = Duration::from_secs(8);
        options
    }

    /// An instance that is ready.
    pub async fn metering(&self, name: &str) -> Running {
        self.metering_with(self.options(name), Arc::clone(&self.stream)).await
    }

    pub async fn metering_with(&self, options: Options, stream: Arc<dyn EventStream>) -> Running {
        let running = self.enrolled(options, stream).await;
        within(running.service.ready_here()).await;
        running
    }

    /// An instance that is enrolled, and may not be ready yet.
    pub async fn enrolled(&self, options: Options, stream: Arc<dyn EventStream>) -> Running {
        let running = self.start(options, stream).await;
        self.enrol(v1::KeyRole::Metering, "metering", running.service.public_key().to_bytes()).await;
        running
    }

    /// An instance that may not be ready, ever.
    pub async fn start(&self, options: Options, stream: Arc<dyn EventStream>) -> Running {
        serve(options, stream, self.dir.path()).await
    }

    pub fn token(&self, subject: &str, tenant: Option<&str>, roles: &[Role]) -> BearerToken {
        let grant = Grant {
            subject: subject.to_owned(),
            tenant: tenant.map(str::to_owned),
            roles: roles.to_vec(),
            ttl: Duration::from_secs(3600),
        };
        BearerToken::issued(self.issuer.clone(), grant).unwrap()
    }

    pub fn client(&self, address: SocketAddr, subject: &str, tenant: Option<&str>, roles: &[Role]) -> Client {
        client_with(address, self.token(subject, tenant, roles))
    }

    pub fn agent(&self, running: &Running) -> Client {
        self.client(running.address, "agent-1", None, &[Role::Agent])
    }

    pub fn admin(&self, running: &Running) -> Client {
        self.client(running.address, "root", None, &[Role::Admin])
    }

    /// Every decision on the partition's subject that the fold of a stranger accepts, as (stream sequence, decision).
    pub async fn journal(&self) -> Vec<(u64, v1::Decision)> {
        use exchequer_event::accept::{Acceptor, Incoming};
        use futures::StreamExt;
        let tip = self.stream.tip().await.unwrap();
        let mut records = self.stream.read(1, &[]).await.unwrap();
        let mut acceptor = Acceptor::new();
        let mut decisions = Vec::new();
        loop {
            let record = within(records.next()).await.unwrap().unwrap();
            let incoming = Incoming {
                stream_seq: record.seq,
                subject: &record.subject,
                payload: record.payload.clone(),
            };
            let decided = acceptor.decide(&incoming);
            decided.entries.iter().for_each(|entry| acceptor.evolve(entry));
            for run in decided.runs {
                decisions.extend(run.decisions.into_iter().map(|decision| (record.seq, decision)));
            }
            if record.seq >= tip {
                return decisions;
            }
        }
    }
}

impl Running {
    /// Stops the service in good order.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        self.server.await.unwrap();
        self.http_server.abort();
        self.service.stop().await;
    }

    /// Waits until everything in the stream now has been folded.
    pub async fn caught_up(&self, stream: &Arc<dyn EventStream>) {
        let tip = stream.tip().await.unwrap();
        exchequer_testkit::eventually(PATIENCE, || async { self.service.position().cursor >= tip }).await;
    }
}

pub fn client_with(address: SocketAddr, token: BearerToken) -> Client {
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    MeteringServiceClient::with_interceptor(channel, token)
}

pub async fn serve(mut options: Options, stream: Arc<dyn EventStream>, issuer_dir: &Path) -> Running {
    let issuer = Issuer::open(issuer_dir, ISSUER, AUDIENCE).unwrap();
    let verifier = Verifier::open(issuer.verifier_options()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    options.advertise = Some(address.to_string());
    let service = Service::start(options, stream).await.unwrap();
    let (stop, stopped) = oneshot::channel();
    let server = Server::builder()
        .layer(AuthLayer::new(verifier.clone(), Vec::<String>::new()))
        .add_routes(service.grpc())
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
            let _ = stopped.await;
        });
    let server = tokio::spawn(async { server.await.unwrap() });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = listener.local_addr().unwrap();
    let routes = service.http().layer(AuthLayer::new(verifier, Vec::<String>::new()));
    let http_server = tokio::spawn(async { axum::serve(listener, routes).await.unwrap() });
    Running { service, address, http, stop, server, http_server }
}

pub async fn jetstream(url: &str) -> Arc<dyn EventStream> {
    Arc::new(JetStream::connect(jetstream::Options::new(url)).await.unwrap())
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("in time")
}

pub fn amounts(amounts: &[(&str, u64)]) -> Vec<v1::MeterAmount> {
    amounts
        .iter()
        .map(|(meter, amount)| v1::MeterAmount { meter: (*meter).to_owned(), amount: *amount })
        .collect()
}

pub fn set(scope: &str, granted: &[(&str, u64)]) -> v1::SetBudgetRequest {
    v1::SetBudgetRequest {
        scope: scope.to_owned(),
        granted: amounts(granted),
        ..v1::SetBudgetRequest::default()
    }
}

pub fn reserve(scope: &str, asked: &[(&str, u64)], key: &str) -> v1::ReserveRequest {
    v1::ReserveRequest {
        scope: scope.to_owned(),
        amounts: amounts(asked),
        ttl_ms: 600_000,
        idempotency_key: key.to_owned(),
        ..v1::ReserveRequest::default()
    }
}

pub fn granted(response: v1::ReserveResponse) -> v1::HoldGranted {
    match response.outcome {
        Some(v1::reserve_response::Outcome::Granted(granted)) => granted,
        other => panic!("not granted: {other:?}"),
    }
}

pub fn denied(response: v1::ReserveResponse) -> v1::HoldDenied {
    match response.outcome {
        Some(v1::reserve_response::Outcome::Denied(denied)) => denied,
        other => panic!("not denied: {other:?}"),
    }
}

/// An enrolled agent, whose executions end in ways of the test's choice.
pub struct Agent(SimAgent);

impl Agent {
    pub async fn enrolled(world: &World, id: &str) -> Self {
        let agent = SimAgent::new(id);
        world.enrol(v1::KeyRole::Agent, id, agent.public_key().to_bytes()).await;
        Self(agent)
    }

    /// A batch with one finished execution for each hold; each used this much CPU, or is lost.
    pub fn batch(&mut self, finished: &[(&str, Option<u64>)]) -> Message {
        let first = self.0.seq() + 1;
        for (hold_id, cpu_ms) in finished {
            let usage = v1::Usage {
                cpu_user_us: cpu_ms.unwrap_or(0) * 1000,
                wall_us: 1500,
                peak_memory_bytes: 1 << 20,
                output_bytes: 10,
                ..v1::Usage::default()
            };
            let cause = if cpu_ms.is_some() { v1::ExitCause::Exited } else { v1::ExitCause::Lost };
            let kind = event::Kind::ExecutionFinished(v1::ExecutionFinished {
                cause: cause.into(),
                usage: Some(usage),
                hold_id: (*hold_id).to_owned(),
                ..v1::ExecutionFinished::default()
            });
            let execution_id = self.0.execution_id();
            self.0.record("acme", &execution_id, kind);
        }
        let batch = self.0.seal(first, self.0.seq());
        Message::new(self.0.subject(), batch.encode_to_vec())
    }
}

pub fn snapshots_dir(options: &Options) -> PathBuf {
    options.data.join("snapshots")
}
