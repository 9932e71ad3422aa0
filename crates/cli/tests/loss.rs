//! The broker loses what it acknowledged under a ledger, a metering service and an agent's spool: nothing is lost, and all of them
//! agree again.
//!
//! Left out: the daemons around them, and executions; events are recorded into the spool as the agent does it. Invariant: the
//! nats-server, the stream's clients, the spool and its publisher are the real ones.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{path::Path, sync::Arc, time::Duration};

use exchequer_auth::{AuthLayer, BearerToken, Grant, Issuer, Role, Verifier, keys};
use exchequer_event::{
    audit::Auditor,
    entry,
    seal::decode_event,
    v1::{
        self, KeyRole, control_record, entry::Kind, event, metering_service_client::MeteringServiceClient,
        reserve_response::Outcome,
    },
};
use exchequer_ledger::Enrolment;
use exchequer_stream::{EventStream, JetStream, jetstream};
use exchequer_testkit::{NatsServer, SimAgent, eventually, temp_dir};
use exchequer_tlog::{SignedCheckpoint, bundles_for_size, decode_bundle};
use prost::{Message as _, bytes::Bytes};
use sandbox_agent::{
    publish::{Progress, Publisher},
    spool::{NewEvent, Spool},
};
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Channel, Server},
};

const PATIENCE: Duration = Duration::from_secs(90);
const AGENT: &str = "worker";

type Metering = MeteringServiceClient<InterceptedService<Channel, BearerToken>>;

async fn connect(server: &NatsServer) -> Arc<dyn EventStream> {
    let mut options = jetstream::Options::new(server.url());
    options.monitor_urls = vec![server.monitor_url()];
    Arc::new(JetStream::connect(options).await.unwrap())
}

/// The parts over one broker.
struct Parts {
    ledger: exchequer_ledger::Service,
    metering: exchequer_metering::Service,
    spool: Arc<Spool>,
    stream: Arc<dyn EventStream>,
    admin: Metering,
    agent: Metering,
    data: tempfile::TempDir,
}

impl Parts {
    async fn start(broker: &NatsServer) -> Self {
        let data = temp_dir();
        let at = |name: &str| data.path().join(name);
        let (agent_key, metering_options) = (
            keys::load_or_create(at("agent.key")).unwrap(),
            exchequer_metering::Options::new(at("metering")),
        );
        std::fs::create_dir_all(&metering_options.data).unwrap();
        let metering_key = keys::load_or_create(&metering_options.key_file).unwrap();
        let enrol = |role, holder: &str, key| Enrolment { role, holder: holder.to_owned(), key };
        let options = exchequer_ledger::Options {
            origin: "exchequer.test/log".to_owned(),
            checkpoint_interval: Duration::from_millis(50),
            enroll: vec![
                enrol(KeyRole::Agent, AGENT, agent_key.verifying_key()),
                enrol(KeyRole::Metering, "metering", metering_key.verifying_key()),
            ],
            ..exchequer_ledger::Options::new(at("ledger"))
        };
        let ledger = exchequer_ledger::Service::start(options, connect(broker).await).await.unwrap();
        let metering =
            exchequer_metering::Service::start(metering_options, connect(broker).await).await.unwrap();
        tokio::time::timeout(PATIENCE, metering.ready()).await.unwrap();

        let (spool, _) = Spool::open(&at("spool"), AGENT, 64 << 20, 8, 0).unwrap();
        let spool = Arc::new(spool);
        let publisher = Publisher {
            spool: Arc::clone(&spool),
            stream: connect(broker).await,
            key: agent_key,
            ledger_key: ledger.public_key(),
            resend_after: Duration::from_secs(1),
        };
        tokio::spawn(publisher.run(watch::Sender::new(Progress::default())));

        let issuer = Issuer::open(data.path(), "https://issuer.test", "exchequer").unwrap();
        let verifier = Verifier::open(issuer.verifier_options()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder()
            .layer(AuthLayer::new(verifier, Vec::<String>::new()))
            .add_routes(metering.grpc())
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(async { server.await.unwrap() });
        let client = |subject: &str, role| {
            let ttl = Duration::from_secs(3600);
            let grant = Grant { subject: subject.to_owned(), tenant: None, roles: vec![role], ttl };
            let token = BearerToken::issued(issuer.clone(), grant).unwrap();
            let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy();
            MeteringServiceClient::with_interceptor(channel, token)
        };
        let (admin, agent) = (client("root", Role::Admin), client(AGENT, Role::Agent));
        let stream = connect(broker).await;
        Self { ledger, metering, spool, stream, admin, agent, data }
    }

    async fn reserve(&mut self, cpu_ms: u64, key: &str) -> Outcome {
        let request = v1::ReserveRequest {
            scope: "acme".to_owned(),
            amounts: cpu(cpu_ms),
            ttl_ms: 600_000,
            idempotency_key: key.to_owned(),
            ..v1::ReserveRequest::default()
        };
        self.agent.reserve(request).await.unwrap().into_inner().outcome.unwrap()
    }

    /// Records that the hold's execution ended, as the agent does.
    async fn finish(&self, ids: &mut SimAgent, hold_id: &str, cpu_ms: u64) {
        let kind = event::Kind::ExecutionFinished(v1::ExecutionFinished {
            cause: v1::ExitCause::Exited.into(),
            usage: Some(v1::Usage { cpu_user_us: cpu_ms * 1000, ..v1::Usage::default() }),
            hold_id: hold_id.to_owned(),
            ..v1::ExecutionFinished::default()
        });
        let (tenant, execution_id) = ("acme".to_owned(), ids.execution_id());
        self.spool.record(NewEvent { tenant, execution_id, skill: String::new(), kind }).await.unwrap();
    }

    /// None while metering does not serve.
    async fn settled_holds(&self) -> Option<u64> {
        let request = v1::GetUsageRequest { scope: "acme".to_owned() };
        Some(self.admin.clone().get_usage(request).await.ok()?.into_inner().settled_holds)
    }

    /// All that was recorded is confirmed, and so many holds are settled.
    async fn settled(&self, events: u64, holds: u64) {
        eventually(PATIENCE, || async { self.spool.confirmed_seq() == events }).await;
        eventually(PATIENCE, || async {
            self.metering.readiness().is_ready() && self.settled_holds().await == Some(holds)
        })
        .await;
    }

    /// The log, once it holds the last decision.
    async fn log(&self) -> Vec<Bytes> {
        let last = self.stream.last("budget.0").await.unwrap().unwrap().seq;
        let log = self.data.path().join("ledger/log");
        let is_there =
            |entries: &[Bytes]| entries.iter().any(|bytes| entry::decode(bytes).unwrap().stream_seq >= last);
        eventually(PATIENCE, || async { is_there(&read_log(&log)) }).await;
        read_log(&log)
    }
}

fn cpu(amount: u64) -> Vec<v1::MeterAmount> {
    vec![v1::MeterAmount { meter: "cpu_ms".to_owned(), amount }]
}

fn read_log(log: &Path) -> Vec<Bytes> {
    let signed = SignedCheckpoint::parse(&std::fs::read(log.join("checkpoint")).unwrap()).unwrap();
    let bundles = bundles_for_size(signed.checkpoint().size());
    let bundle = |id: exchequer_tlog::BundleId| {
        let bytes = std::fs::read(log.join(id.to_string())).unwrap();
        let entries = decode_bundle(&bytes, id.width()).unwrap();
        entries.into_iter().map(Bytes::copy_from_slice).collect::<Vec<_>>()
    };
    bundles.into_iter().flat_map(bundle).collect()
}

fn granted(outcome: Outcome) -> v1::HoldGranted {
    match outcome {
        Outcome::Granted(granted) => granted,
        Outcome::Denied(denied) => panic!("not granted: {denied:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_loses_its_end_costs_neither_events_nor_decisions() {
    let mut server = NatsServer::start();
    let mut parts = Parts::start(&server).await;
    let mut ids = SimAgent::new(AGENT);
    let budget = v1::SetBudgetRequest {
        scope: "acme".to_owned(),
        granted: cpu(1000),
        ..v1::SetBudgetRequest::default()
    };
    parts.admin.set_budget(budget).await.unwrap();
    let copy = server.copy_store();

    // Acknowledged, answered, covered by a receipt; then the broker does not know of it any more.
    let mut holds = Vec::new();
    for n in 0..20 {
        let hold = granted(parts.reserve(10, &format!("k{n}")).await);
        parts.finish(&mut ids, &hold.hold_id, 4).await;
        holds.push(hold);
    }
    let open = granted(parts.reserve(500, "open").await);
    parts.settled(20, 20).await;
    let before = parts.log().await;
    server.restart_from(copy.path());

    // Meanwhile the agent goes on recording.
    for hold in &holds[..3] {
        parts.finish(&mut ids, &hold.hold_id, 1).await;
    }
    parts.settled(23, 20).await;
    eventually(PATIENCE, || async { parts.ledger.readiness().is_ready() }).await;
    assert_eq!(granted(parts.reserve(500, "open").await), open, "the answer that was given");
    assert!(
        matches!(parts.reserve(500, "more").await, Outcome::Denied(denied) if denied.available == 1000 - 500 - 20 * 4)
    );
    let last = granted(parts.reserve(100, "last").await);
    parts.finish(&mut ids, &last.hold_id, 100).await;
    parts.settled(24, 21).await;

    let log = parts.log().await;
    assert_eq!(log[..before.len()], before, "what the tree held, it holds");
    let (mut auditor, mut seqs, mut losses) = (Auditor::new(), Vec::new(), Vec::new());
    for bytes in &log {
        let entry = entry::decode(bytes).unwrap();
        auditor.check(&entry).unwrap();
        match entry.kind {
            Some(Kind::Event(bytes)) => seqs.push(decode_event(&bytes).unwrap().seq),
            Some(Kind::Control(signed)) => {
                let record = v1::ControlRecord::decode(signed.record).unwrap();
                if let Some(control_record::Kind::StreamLost(lost)) = record.kind {
                    losses.push(lost);
                }
            }
            _ => {}
        }
    }
    assert_eq!(seqs, (1..=24).collect::<Vec<_>>(), "every event, once, in order");
    assert_eq!(losses.len(), 1, "{losses:?}");
    assert!(losses[0].refilled + losses[0].reappended > 20, "{losses:?}");
    let Parts { ledger, metering, .. } = parts;
    metering.stop().await;
    ledger.stop().await;
}
