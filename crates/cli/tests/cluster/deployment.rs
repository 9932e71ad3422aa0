//! A deployment of several instances: three metering daemons and a ledger as processes of their own over a cluster of three nats-servers.
//!
//! Left out: what they are asked. Invariant: a daemon has the same address, data and key before and after a kill, and ends with the test.

use std::{fmt::Write as _, fs, net::SocketAddr, path::Path, process::Command, time::Duration};

use exchequer_auth::{BearerToken, Grant, Issuer, Role, keys};
use exchequer_event::v1::{
    self, ledger_service_client::LedgerServiceClient, metering_service_client::MeteringServiceClient,
};
use exchequer_stream::{EventStream as _, JetStream, jetstream};
use exchequer_testkit::{Daemon, NatsCluster, eventually, free_ports};
use exchequer_tlog::{SignatureKind, VerifierKey};
use tempfile::TempDir;
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

use crate::load::{PATIENCE, answered};

/// Metering instances.
pub const INSTANCES: usize = 3;
/// Nodes of the nats cluster.
pub const NODES: usize = 3;
const ISSUER: &str = "https://issuer.test";
const AUDIENCE: &str = "exchequer";
const ORIGIN: &str = "exchequer.test/log";

type Authenticated = InterceptedService<Channel, BearerToken>;
pub type Metering = MeteringServiceClient<Authenticated>;
pub type Ledger = LedgerServiceClient<Authenticated>;

/// Where everything is, and tokens for it: what a caller has.
#[derive(Clone, Debug)]
pub struct Access {
    issuer: Issuer,
    ledger: SocketAddr,
    metering: [SocketAddr; INSTANCES],
}

impl Access {
    /// A client for each instance.
    pub fn metering(&self, subject: &str, role: Role) -> [Metering; INSTANCES] {
        let token = self.token(subject, role);
        self.metering.map(|address| MeteringServiceClient::with_interceptor(channel(address), token.clone()))
    }

    pub fn ledger(&self) -> Ledger {
        LedgerServiceClient::with_interceptor(channel(self.ledger), self.token("auditor", Role::Auditor))
    }

    fn token(&self, subject: &str, role: Role) -> BearerToken {
        let ttl = Duration::from_secs(3600);
        let grant = Grant { subject: subject.to_owned(), tenant: None, roles: vec![role], ttl };
        BearerToken::issued(self.issuer.clone(), grant).unwrap()
    }
}

fn channel(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.connect_timeout(Duration::from_secs(2)).connect_lazy()
}

/// The running deployment.
pub struct Deployment {
    pub access: Access,
    pub nats: NatsCluster,
    /// A connection that lives through everything.
    stream: JetStream,
    verifier_key: VerifierKey,
    pub metering: [Daemon; INSTANCES],
    _ledger: Daemon,
    directory: TempDir,
}

impl Deployment {
    /// Starts everything and waits until every partition is served.
    pub async fn start() -> Self {
        let directory = exchequer_testkit::temp_dir();
        let path = directory.path();
        let nats = NatsCluster::start().await;
        let issuer = Issuer::open(path, ISSUER, AUDIENCE).unwrap();
        let key = |name: &str| keys::create(path.join(name)).unwrap().verifying_key();
        let verifier_key = VerifierKey::new(ORIGIN, SignatureKind::Ed25519, key("ledger.key")).unwrap();
        let ports = free_ports::<{ 2 + 2 * INSTANCES }>();
        let at = |place: usize| SocketAddr::from(([127, 0, 0, 1], ports[place]));
        let metering = std::array::from_fn(|instance| at(2 + 2 * instance));
        let access = Access { issuer, ledger: at(0), metering };
        let jwks = access.issuer.jwks_path().to_owned();
        let mut config = configuration(path, &nats, &jwks, &ports);
        for instance in 0..INSTANCES {
            let public_key = hex::encode(key(&format!("{}.key", instance_name(instance))).as_bytes());
            let name = instance_name(instance);
            let table = format!(
                "[[ledger.enroll]]\nrole = \"metering\"\nholder = \"{name}\"\npublic_key = \"{public_key}\"\n"
            );
            config.write_str(&table).unwrap();
        }
        fs::write(path.join("exchequer.toml"), config).unwrap();

        let daemon = |name: &str, program: &str, settings: &[String]| {
            let program = Path::new(env!("CARGO_BIN_EXE_exchequer")).with_file_name(program);
            let mut arguments =
                vec!["--config".to_owned(), path.join("exchequer.toml").display().to_string()];
            arguments.extend(settings.iter().flat_map(|setting| ["--set".to_owned(), setting.clone()]));
            Daemon::new(name, program, path, arguments)
        };
        let mut ledger = daemon("ledger", "exchequer-ledger", &[]);
        let mut metering = std::array::from_fn(|instance| {
            let name = instance_name(instance);
            let settings = [
                format!("metering.grpc_listen={}", at(2 + 2 * instance)),
                format!("metering.http_listen={}", at(3 + 2 * instance)),
                format!("metering.data={}", path.join(&name).display()),
                format!("metering.key_file={}", path.join(format!("{name}.key")).display()),
            ];
            daemon(&name, "exchequer-metering", &settings)
        });
        ledger.start();
        let client = access.ledger();
        eventually(PATIENCE, || {
            let mut client = client.clone();
            async move {
                let known = client.list_keys(v1::ListKeysRequest::default()).await;
                known.is_ok_and(|known| known.into_inner().keys.len() == 1 + INSTANCES)
            }
        })
        .await;
        metering.iter_mut().for_each(Daemon::start);
        let options = jetstream::Options { replicas: NODES, ..jetstream::Options::new(nats.urls()) };
        let stream = JetStream::connect(options).await.unwrap();
        Self { access, nats, stream, verifier_key, metering, _ledger: ledger, directory }
    }

    /// Starts whatever is down and waits until no node of the nats cluster lags behind.
    pub async fn restore(&mut self) {
        for node in 0..NODES {
            self.nats.restart(node);
        }
        for daemon in self.metering.iter_mut().filter(|daemon| !daemon.runs()) {
            daemon.start();
        }
        for node in 0..NODES {
            self.nats.healthy(node).await;
        }
    }

    /// Waits until the log covers every block that is in the stream.
    pub async fn logged(&self) {
        let stream_failed =
            |error: exchequer_stream::ReadError| tonic::Status::unavailable(error.to_string());
        let last = answered(|| async {
            let mut last = 0;
            for partition in 0..crate::PARTITIONS {
                let record = self.stream.last(&format!("budget.{partition}")).await.map_err(stream_failed)?;
                last = last.max(record.map_or(0, |record| record.seq));
            }
            Ok(last)
        })
        .await;
        let client = self.access.ledger();
        eventually(PATIENCE, || {
            let mut client = client.clone();
            async move {
                let page = v1::ListEntriesRequest { page_size: 1, ..v1::ListEntriesRequest::default() };
                let Ok(page) = client.list_entries(page).await else { return false };
                let request = v1::GetEntryRequest { index: page.into_inner().tree_size - 1 };
                let Ok(entry) = client.get_entry(request).await else { return false };
                let entry = entry.into_inner().entry.unwrap();
                exchequer_event::entry::decode(&entry.entry).unwrap().stream_seq >= last
            }
        })
        .await;
    }

    /// `exchequer verify` over the log's files: its output, if it says that the log holds.
    pub fn verify(&self) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_exchequer"))
            .arg("verify")
            .arg(self.directory.path().join("ledger/log"))
            .args(["--key", &self.verifier_key.to_string()])
            .env_clear()
            .output()
            .unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (said(&output.stdout), said(&output.stderr));
        assert!(output.status.success(), "{}\n{stdout}{stderr}", output.status);
        stdout
    }
}

fn instance_name(instance: usize) -> String {
    format!("metering-{}", instance + 1)
}

fn configuration(path: &Path, nats: &NatsCluster, jwks: &Path, ports: &[u16]) -> String {
    let (dir, jwks) = (path.display(), jwks.display());
    let monitors: Vec<_> = nats.monitor_urls().iter().map(|url| format!("\"{url}\"")).collect();
    format!(
        r#"[stream]
url = "{urls}"
replicas = {NODES}
monitor_urls = [{monitors}]
[auth]
jwks_file = "{jwks}"
issuer = "{ISSUER}"
audience = "{AUDIENCE}"
[ledger]
grpc_listen = "127.0.0.1:{ledger}"
http_listen = "127.0.0.1:{ledger_http}"
data = "{dir}/ledger"
origin = "{ORIGIN}"
key_file = "{dir}/ledger.key"
checkpoint_interval = "200ms"
[metering]
partitions = {partitions}
snapshot_interval = "2s"
"#,
        urls = nats.urls(),
        partitions = crate::PARTITIONS,
        monitors = monitors.join(", "),
        ledger = ports[0],
        ledger_http = ports[1],
    )
}
