//! A deployment as somebody would run it: the three daemons as processes of their own over a real nats-server, one configuration file.
//!
//! Left out: what they are asked. Invariant: a daemon has the same address, data and key before and after a kill, and ends with the
//! test, which then shows the end of its log if it failed.

use std::{fmt::Write as _, fs, net::SocketAddr, path::Path, process::Command, sync::Arc, time::Duration};

use exchequer_auth::{BearerToken, Grant, Issuer, Role, keys};
use exchequer_event::v1::{
    self, agent_service_client::AgentServiceClient, ledger_service_client::LedgerServiceClient,
    metering_service_client::MeteringServiceClient,
};
use exchequer_stream::{EventStream as _, JetStream, jetstream};
use exchequer_testkit::{Daemon, NatsServer, SimAgent, free_ports};
use exchequer_tlog::{SignatureKind, VerifierKey};
use sandbox_agent::audit_log;
use tempfile::TempDir;
use tonic::{
    Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

use crate::load::answered;

pub const WORKER: &str = "worker";
const ISSUER: &str = "https://issuer.test";
const AUDIENCE: &str = "exchequer";
const ORIGIN: &str = "exchequer.test/log";

type Authenticated = InterceptedService<Channel, BearerToken>;
pub type Agent = AgentServiceClient<Authenticated>;
pub type Metering = MeteringServiceClient<Authenticated>;
pub type Ledger = LedgerServiceClient<Authenticated>;

/// Whom a kill hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    Agent,
    Ledger,
    Metering,
    Nats,
}

impl Victim {
    pub const ALL: [Self; 4] = [Self::Agent, Self::Ledger, Self::Metering, Self::Nats];
}

/// Where everything is, and tokens for it: what a caller has.
#[derive(Clone, Debug)]
pub struct Access {
    issuer: Issuer,
    ledger: SocketAddr,
    metering: SocketAddr,
    agent: SocketAddr,
    nats_url: String,
}

impl Access {
    pub fn agent(&self, subject: &str, tenant: Option<&str>, role: Role) -> Agent {
        AgentServiceClient::with_interceptor(channel(self.agent), self.token(subject, tenant, role))
    }

    pub fn metering(&self, subject: &str, tenant: Option<&str>, role: Role) -> Metering {
        MeteringServiceClient::with_interceptor(channel(self.metering), self.token(subject, tenant, role))
    }

    pub fn ledger(&self) -> Ledger {
        LedgerServiceClient::with_interceptor(
            channel(self.ledger),
            self.token("auditor", None, Role::Auditor),
        )
    }

    pub async fn stream(&self) -> Arc<JetStream> {
        Arc::new(JetStream::connect(jetstream::Options::new(&self.nats_url)).await.unwrap())
    }

    fn token(&self, subject: &str, tenant: Option<&str>, role: Role) -> BearerToken {
        BearerToken::issued(self.issuer.clone(), grant(subject, tenant, role)).unwrap()
    }
}

fn channel(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    endpoint.connect_timeout(Duration::from_secs(2)).connect_lazy()
}

fn grant(subject: &str, tenant: Option<&str>, role: Role) -> Grant {
    let ttl = Duration::from_secs(3600);
    Grant { subject: subject.to_owned(), tenant: tenant.map(str::to_owned), roles: vec![role], ttl }
}

/// The running deployment.
pub struct Deployment {
    pub access: Access,
    pub verifier_key: VerifierKey,
    /// A connection that lives through everything.
    pub stream: Arc<JetStream>,
    agent: Daemon,
    metering: Daemon,
    ledger: Daemon,
    nats: NatsServer,
    directory: TempDir,
}

impl Deployment {
    /// Starts everything, with the keys of the agent, of metering and of these simulated agents enrolled.
    pub async fn start(simulated: &[SimAgent]) -> Self {
        let directory = exchequer_testkit::temp_dir();
        let path = directory.path();
        let nats = NatsServer::start();
        let issuer = Issuer::open(path, ISSUER, AUDIENCE).unwrap();
        let [ledger_key, metering_key, agent_key] = ["ledger.key", "metering.key", "agent.key"]
            .map(|file| keys::create(path.join(file)).unwrap().verifying_key());
        let verifier_key = VerifierKey::new(ORIGIN, SignatureKind::Ed25519, ledger_key).unwrap();
        let token = issuer.mint(&grant(WORKER, None, Role::Agent)).unwrap();
        fs::write(path.join("agent.token"), token).unwrap();
        let ports = free_ports::<6>();
        let at = |place: usize| SocketAddr::from(([127, 0, 0, 1], ports[place]));
        let access = Access { issuer, ledger: at(0), metering: at(2), agent: at(4), nats_url: nats.url() };

        let mut enrolled = vec![("metering", "metering", metering_key), ("agent", WORKER, agent_key)];
        enrolled.extend(simulated.iter().map(|agent| ("agent", agent.id(), agent.public_key())));
        let jwks = access.issuer.jwks_path().to_owned();
        let config = configuration(path, &nats, &jwks, &verifier_key, &ports, &enrolled);
        fs::write(path.join("exchequer.toml"), config).unwrap();

        let [ledger, metering, agent] =
            ["exchequer-ledger", "exchequer-metering", "sandbox-agent"].map(|name| daemon(name, path));
        let stream = access.stream().await;
        let mut deployment = Self { access, verifier_key, stream, agent, metering, ledger, nats, directory };
        deployment.ledger.start();
        let keys = enrolled.len() + 1;
        let client = deployment.access.ledger();
        exchequer_testkit::eventually(Duration::from_secs(30), || {
            let mut client = client.clone();
            async move {
                let known = client.list_keys(v1::ListKeysRequest::default()).await;
                known.is_ok_and(|known| known.into_inner().keys.len() == keys)
            }
        })
        .await;
        deployment.metering.start();
        deployment.agent.start();
        for victim in Victim::ALL {
            deployment.serving(victim).await;
        }
        deployment
    }

    /// Kills with SIGKILL, at whatever it is doing.
    pub fn kill9(&mut self, victim: Victim) {
        match victim {
            Victim::Agent => self.agent.kill9(),
            Victim::Ledger => self.ledger.kill9(),
            Victim::Metering => self.metering.kill9(),
            Victim::Nats => self.nats.kill9(),
        }
    }

    /// Starts what was killed.
    pub fn restart(&mut self, victim: Victim) {
        match victim {
            Victim::Agent => self.agent.start(),
            Victim::Ledger => self.ledger.start(),
            Victim::Metering => self.metering.start(),
            Victim::Nats => self.nats.restart(),
        }
    }

    /// Waits until what was killed does its work again.
    pub async fn serving(&self, victim: Victim) {
        match victim {
            Victim::Agent => drop(self.spool().await),
            Victim::Ledger => {
                let client = self.access.ledger();
                answered(|| {
                    let mut client = client.clone();
                    async move { client.get_checkpoint(v1::GetCheckpointRequest {}).await }
                })
                .await;
            }
            Victim::Metering => drop(self.usage("nobody").await),
            Victim::Nats => {
                answered(|| async {
                    self.stream.tip().await.map_err(|error| Status::unavailable(error.to_string()))
                })
                .await;
            }
        }
    }

    /// The agent's local audit log, if every line of it holds.
    pub fn audit_log(&self) -> Result<audit_log::Report, audit_log::VerifyError> {
        audit_log::verify(&self.directory.path().join("audit.ndjson"))
    }

    /// How far the agent's spool is written and confirmed.
    pub async fn spool(&self) -> v1::GetSpoolStatusResponse {
        let client = self.access.agent("auditor", None, Role::Auditor);
        answered(|| {
            let mut client = client.clone();
            async move { Ok(client.get_spool_status(v1::GetSpoolStatusRequest {}).await?.into_inner()) }
        })
        .await
    }

    /// What a scope has used.
    pub async fn usage(&self, scope: &str) -> v1::GetUsageResponse {
        let client = self.access.metering("auditor", None, Role::Auditor);
        answered(|| {
            let mut client = client.clone();
            let request = v1::GetUsageRequest { scope: scope.to_owned() };
            async move { Ok(client.get_usage(request).await?.into_inner()) }
        })
        .await
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
        assert!(
            output.status.success(),
            "{}\n{}{}",
            output.status,
            said(&output.stdout),
            said(&output.stderr)
        );
        said(&output.stdout)
    }

    /// Command lines of the sandbox's processes that run on behalf of this deployment, other than its programs.
    pub fn sandbox_processes(&self) -> Vec<String> {
        let ours = self.directory.path().display().to_string();
        running(|line| line.contains("__sandbox-helper") && line.contains(&ours))
    }
}

/// Command lines of running processes that fit.
pub fn running(fits: impl Fn(&str) -> bool) -> Vec<String> {
    let command_line = |entry: fs::DirEntry| {
        let bytes = fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&bytes).replace('\0', " "))
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(command_line).filter(|line| fits(line)).collect()
}

fn daemon(name: &str, directory: &Path) -> Daemon {
    let program = Path::new(env!("CARGO_BIN_EXE_exchequer")).with_file_name(name);
    let config = directory.join("exchequer.toml").display().to_string();
    Daemon::new(name, program, directory, vec!["--config".to_owned(), config])
}

fn configuration(
    path: &Path,
    nats: &NatsServer,
    jwks: &Path,
    verifier_key: &VerifierKey,
    ports: &[u16; 6],
    enrolled: &[(&str, &str, ed25519_dalek::VerifyingKey)],
) -> String {
    let (dir, jwks) = (path.display(), jwks.display());
    let [ledger, ledger_http, metering, metering_http, agent, agent_http] = ports;
    let mut text = format!(
        r#"[stream]
url = "{url}"
monitor_urls = ["{monitor}"]
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
grpc_listen = "127.0.0.1:{metering}"
http_listen = "127.0.0.1:{metering_http}"
data = "{dir}/metering"
key_file = "{dir}/metering.key"
lease_ttl = "1s"
append_timeout = "3s"
snapshot_interval = "2s"
[agent]
id = "{WORKER}"
grpc_listen = "127.0.0.1:{agent}"
http_listen = "127.0.0.1:{agent_http}"
data = "{dir}/agent"
key_file = "{dir}/agent.key"
metering_url = "http://127.0.0.1:{metering}"
token_file = "{dir}/agent.token"
ledger_verifier_key = "{verifier_key}"
# Hosts that forbid user namespaces run this test, too.
allow_degraded = true
resend_after = "2s"
# Nothing may expire by itself while the test adds up what is held.
hold_margin = "1h"
[agent.audit_log]
path = "{dir}/audit.ndjson"
max_bytes = "256KiB"
backup_count = 1000
"#,
        url = nats.url(),
        monitor = nats.monitor_url(),
    );
    for (role, holder, key) in enrolled {
        let key = hex::encode(key.as_bytes());
        let table =
            format!("[[ledger.enroll]]\nrole = \"{role}\"\nholder = \"{holder}\"\npublic_key = \"{key}\"\n");
        text.write_str(&table).unwrap();
    }
    text
}
