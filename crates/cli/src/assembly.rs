//! Ledger, metering and agent in one process, behind one gRPC and one HTTP address.
//!
//! Left out: signals, and what is printed. Invariant: nothing is different from three daemons but the process: keys are enrolled
//! through the log, the agent reaches metering over gRPC with a token, and every call is authenticated.

use std::{
    fs::DirBuilder,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use exchequer_auth::{BearerToken, Grant, Issuer, Role, Verifier, VerifierOptions, keys};
use exchequer_config::Reader;
use exchequer_event::{
    accept::{Acceptor, Incoming},
    v1::KeyRole,
};
use exchequer_ledger::Enrolment;
use exchequer_serve::{
    Living, Parts, Running, Shared, StreamOptions,
    config::{Listen, check_key_file},
};
use exchequer_stream::{EventStream, LocalStream};
use exchequer_telemetry::Readiness;
use exchequer_tlog::{SignatureKind, VerifierKey};
use futures::StreamExt as _;
use sandbox_agent::{Agent, Peers, agent::CONTROLS};
use tonic::service::Routes;

/// Issuer of the tokens that a data directory's own issuer mints.
const ISSUER: &str = "exchequer.local";
/// Their audience.
const AUDIENCE: &str = "exchequer";
/// Holder of the metering key.
const METERING: &str = "metering";
/// How long the ledger may take to enrol the keys of the other two.
const ENROLMENT_PATIENCE: Duration = Duration::from_secs(30);
/// How often readiness is asked while it is waited for.
const READINESS_PERIOD: Duration = Duration::from_millis(20);
/// Life of the agent's own tokens, which are renewed.
const AGENT_TOKEN_TTL: Duration = Duration::from_secs(3600);
/// Full names of the services.
const SERVICES: [&str; 3] =
    ["exchequer.v1.LedgerService", "exchequer.v1.MeteringService", "exchequer.v1.AgentService"];
/// What follows from the process being one, so that it can't be configured.
const DECIDED: [&str; 8] = [
    "ledger.grpc_listen",
    "ledger.http_listen",
    "metering.grpc_listen",
    "metering.http_listen",
    "agent.grpc_listen",
    "agent.http_listen",
    "agent.metering_url",
    "agent.ledger_verifier_key",
];

/// What an assembly is told.
#[derive(Clone, Debug)]
pub struct AssemblyOptions {
    /// Everything that is kept is below it.
    pub data: PathBuf,
    /// A NATS server; without, the stream is embedded, in `data/stream`.
    pub stream: Option<StreamOptions>,
    /// Who is believed; without, an issuer of its own, in `data/auth`.
    pub auth: Option<VerifierOptions>,
    /// The agent's token for metering; needed where `auth` is given.
    pub agent_token_file: Option<PathBuf>,
    /// Where it listens.
    pub listen: Listen,
    /// The ledger.
    pub ledger: exchequer_ledger::Options,
    /// Metering.
    pub metering: exchequer_metering::Options,
    /// The agent. Its peers are the other two.
    pub agent: sandbox_agent::Options,
}

impl AssemblyOptions {
    /// Reads the three services' sections, with defaults below `data`. `None` means that the reader holds a fault.
    pub fn read(reader: &mut Reader, data: &Path, listen: Listen, shared: &Shared) -> Option<Self> {
        for key in DECIDED {
            if reader.optional::<String>(key).is_some() {
                reader.fault(key, "is decided by `up` itself; --grpc and --http say where it listens");
            }
        }
        for section in ["ledger", "metering", "agent"] {
            reader.set_default(&format!("{section}.data"), data.join(section).to_string_lossy());
        }
        reader.set_default("agent.id", "local");
        let agent_token_file = reader.optional::<PathBuf>("agent.token_file");
        if shared.auth.is_some() && agent_token_file.is_none() {
            reader.fault("agent.token_file", "is required where [auth] is configured");
        }
        if let Some(Err(error)) = agent_token_file.as_ref().map(BearerToken::file) {
            reader.fault("agent.token_file", error.to_string());
        }
        let ledger = exchequer_ledger::Options::read(reader);
        let metering = exchequer_metering::Options::read(reader, data.join("metering"));
        let agent = sandbox_agent::Options::read(reader);
        for section in ["ledger", "metering", "agent"] {
            check_key_file(reader, section);
        }
        Some(Self {
            data: data.to_owned(),
            stream: shared.stream.clone(),
            auth: shared.auth.clone(),
            agent_token_file,
            listen,
            ledger: ledger?,
            metering,
            agent: agent?,
        })
    }

    /// The options of an unconfigured assembly: embedded stream, own issuer, loopback ports of the system's choice.
    pub fn local(data: &Path) -> anyhow::Result<Self> {
        let mut reader = Reader::new(None, std::iter::empty(), Vec::new());
        let shared = Shared::read(&mut reader, "exchequer", false);
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let options = Self::read(&mut reader, data, Listen { grpc: any, http: any }, &shared);
        reader.finish()?;
        options.context("the defaults are incomplete")
    }
}

/// The local issuer of a data directory.
pub fn issuer(data: &Path) -> anyhow::Result<Issuer> {
    Ok(Issuer::open(data.join("auth"), ISSUER, AUDIENCE)?)
}

/// A running assembly. Dropping it without [`Assembly::stop`] is a crash, from which the next start recovers.
pub struct Assembly {
    /// Where all three gRPC services are.
    pub grpc: SocketAddr,
    /// Where log files, metrics and health are.
    pub http: SocketAddr,
    /// The log's key.
    pub verifier_key: VerifierKey,
    /// The issuer of tokens, if it is the assembly's own.
    pub issuer: Option<Issuer>,
    /// Controls that this host does not enforce.
    pub missing_controls: Vec<String>,
    services: Living<Services>,
    running: Running,
}

struct Services {
    ledger: exchequer_ledger::Service,
    metering: exchequer_metering::Service,
    agent: Agent,
}

impl Services {
    fn readiness(&self) -> Readiness {
        self.ledger.readiness().merge(self.metering.readiness()).merge(self.agent.readiness())
    }

    fn grpc(&self) -> Routes {
        let [ledger, metering, agent] =
            [self.ledger.grpc(), self.metering.grpc(), self.agent.grpc()].map(Routes::into_axum_router);
        // Each answers unknown methods alike; a merged router can have only one that does.
        Routes::from(ledger.merge(metering.reset_fallback()).merge(agent.reset_fallback()))
    }

    /// The agent before the ledger, whose receipts its last events wait for.
    async fn stop(self) {
        self.agent.stop().await;
        self.metering.stop().await;
        self.ledger.stop().await;
    }
}

impl Assembly {
    /// Starts everything. It listens when this returns; whether all of it works is for [`Assembly::ready`].
    pub async fn start(options: AssemblyOptions) -> anyhow::Result<Self> {
        // Three services' starts together are too large a future to be moved about.
        Box::pin(Self::assemble(options)).await
    }

    async fn assemble(mut options: AssemblyOptions) -> anyhow::Result<Self> {
        let directories = [&options.data, &options.ledger.data, &options.metering.data, &options.agent.data];
        for directory in directories.into_iter().chain([&options.data.join("auth")]) {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.with_context(|| format!("data directory {}", directory.display()))?;
        }
        let (issuer, verifier) = identity(&options).await?;
        let token = match (&issuer, &options.agent_token_file) {
            (_, Some(file)) => BearerToken::file(file).context("agent.token_file")?,
            (Some(issuer), None) => BearerToken::issued(issuer.clone(), agent_grant(&options.agent.id))?,
            (None, None) => bail!("agent.token_file is required where [auth] is configured"),
        };
        let bound = exchequer_serve::bind(options.listen).await?;
        let stream = open_stream(&options).await?;

        let ledger_key = keys::load_or_create(&options.ledger.key_file)?.verifying_key();
        let verifier_key = VerifierKey::new(&*options.ledger.origin, SignatureKind::Ed25519, ledger_key)?;
        let enrolments = [
            (KeyRole::Metering, METERING.to_owned(), &options.metering.key_file),
            (KeyRole::Agent, options.agent.id.clone(), &options.agent.key_file),
        ];
        let enrolments = enrolments
            .into_iter()
            .map(|(role, holder, file)| {
                Ok(Enrolment { role, holder, key: keys::load_or_create(file)?.verifying_key() })
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        options.ledger.enroll.extend(enrolments.clone());
        options.metering.advertise.get_or_insert_with(|| reachable(bound.grpc).to_string());
        let peers = Peers { ledger_key, metering_url: format!("http://{}", reachable(bound.grpc)) };

        let public_http = exchequer_ledger::public_paths(&options.ledger);
        let ledger =
            exchequer_ledger::Service::start(options.ledger, Arc::clone(&stream)).await.context("ledger")?;
        // What the others would sign before their keys are known would be recorded as rejected.
        enrolled(&*stream, &enrolments).await?;
        let metering = exchequer_metering::Service::start(options.metering, Arc::clone(&stream))
            .await
            .context("metering")?;
        let agent = Agent::start(options.agent, peers, token, stream).await.context("agent")?;
        let missing_controls = agent.missing_controls().to_vec();

        let services = Services { ledger, metering, agent };
        let (grpc, http) = (services.grpc(), services.ledger.http().merge(services.metering.http()));
        let services = Living::new(services);
        let parts = Parts {
            grpc,
            services: SERVICES.to_vec(),
            http,
            public_http,
            readiness: services.readiness(Services::readiness),
        };
        let running = exchequer_serve::serve(bound, verifier, parts)?;
        Ok(Self {
            grpc: reachable(running.grpc),
            http: reachable(running.http),
            verifier_key,
            issuer,
            missing_controls,
            services,
            running,
        })
    }

    /// A token of the assembly's own issuer.
    pub fn mint(&self, grant: &Grant) -> anyhow::Result<String> {
        let issuer = self.issuer.as_ref().context("tokens come from the configured issuer ([auth])")?;
        Ok(issuer.mint(grant)?)
    }

    /// Waits until everything works; the components that don't within `patience`, each with its reason. Controls that the host lacks
    /// are not waited for.
    pub async fn ready(&self, patience: Duration) -> Result<(), Vec<(String, String)>> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let readiness = self.services.ask(Services::readiness).unwrap_or_default();
            if readiness.is_ready() {
                return Ok(());
            }
            let mut faults = readiness.faults().peekable();
            let is_final = faults.peek().is_some() && faults.all(|(name, _)| name == CONTROLS);
            if is_final || tokio::time::Instant::now() >= deadline {
                return Err(readiness
                    .faults()
                    .map(|(name, why)| (name.to_owned(), why.to_owned()))
                    .collect());
            }
            tokio::time::sleep(READINESS_PERIOD).await;
        }
    }

    /// Waits until a listener fails, which it does not in good order.
    pub async fn failed(&mut self) -> anyhow::Error {
        self.running.failed().await
    }

    /// Stops everything in order: no new calls, then agent, metering, ledger.
    pub async fn stop(self) {
        let services = self.services.clone();
        let stopped = async {
            if let Some(services) = services.take() {
                services.stop().await;
            }
        };
        tokio::join!(self.running.stop(), stopped);
    }
}

async fn identity(options: &AssemblyOptions) -> anyhow::Result<(Option<Issuer>, Verifier)> {
    let (issuer, auth) = if let Some(auth) = &options.auth {
        (None, auth.clone())
    } else {
        let issuer = issuer(&options.data)?;
        let auth = issuer.verifier_options();
        (Some(issuer), auth)
    };
    Ok((issuer, Verifier::open(auth).await.context("auth.jwks_file")?))
}

fn agent_grant(id: &str) -> Grant {
    Grant { subject: id.to_owned(), tenant: None, roles: vec![Role::Agent], ttl: AGENT_TOKEN_TTL }
}

async fn open_stream(options: &AssemblyOptions) -> anyhow::Result<Arc<dyn EventStream>> {
    if let Some(stream) = &options.stream {
        return stream.connect().await;
    }
    let directory = options.data.join("stream");
    let opened = tokio::task::spawn_blocking(move || LocalStream::open(&directory)).await?;
    let stream = opened.with_context(|| format!("embedded stream of {}", options.data.display()))?;
    Ok(Arc::new(stream))
}

/// Waits until the log's control records let every key sign.
async fn enrolled(stream: &dyn EventStream, keys: &[Enrolment]) -> anyhow::Result<()> {
    let mut acceptor = Acceptor::new();
    let mut controls = stream.read(1, &["control.>"]).await.context("the keys' enrolment")?;
    let followed = async {
        while let Some(record) = controls.next().await {
            let record = record?;
            let incoming = Incoming {
                stream_seq: record.seq,
                subject: &record.subject,
                payload: record.payload.clone(),
            };
            acceptor.decide(&incoming).entries.iter().for_each(|entry| acceptor.evolve(entry));
            if missing(&acceptor, keys).next().is_none() {
                return Ok(());
            }
        }
        bail!("the stream ended")
    };
    if let Ok(outcome) = tokio::time::timeout(ENROLMENT_PATIENCE, followed).await {
        return outcome.context("the keys' enrolment");
    }
    let holders: Vec<_> = missing(&acceptor, keys).map(|key| key.holder.as_str()).collect();
    bail!("the log does not let the key of {} sign: revoked, or not enrolled in time", holders.join(" and "))
}

fn missing<'a>(acceptor: &Acceptor, keys: &'a [Enrolment]) -> impl Iterator<Item = &'a Enrolment> {
    keys.iter().filter(|key| !acceptor.may_sign(key.role, &key.holder, &key.key))
}

/// An address under which this host reaches a listener.
fn reachable(listening: SocketAddr) -> SocketAddr {
    match listening.ip() {
        ip if !ip.is_unspecified() => listening,
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, listening.port())),
        IpAddr::V6(_) => SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, listening.port())),
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use exchequer_event::{
        control::{sign_control, topic},
        name::control_subject,
        v1::{self, control_record::Kind},
    };
    use exchequer_stream::Message;
    use prost::Message as _;

    use super::*;

    async fn append(stream: &LocalStream, signer: &SigningKey, kind: Kind) {
        let subject = control_subject(topic(&kind));
        let record = v1::ControlRecord { time_unix_ms: 1, actor: "test".into(), kind: Some(kind) };
        stream.append(Message::new(subject, sign_control(signer, &record).encode_to_vec())).await.unwrap();
    }

    #[tokio::test]
    async fn nothing_may_sign_before_the_ledgers_own_key_has_enrolled_it() {
        let dir = tempfile::tempdir().unwrap();
        let stream = LocalStream::open(dir.path()).unwrap();
        let [ledger, stranger, agent] = [1, 2, 3].map(|seed| SigningKey::from_bytes(&[seed; 32]));
        let bytes = |key: &SigningKey| key.verifying_key().as_bytes().to_vec().into();
        let genesis = v1::Genesis { origin: "test/log".into(), ledger_key: bytes(&ledger) };
        let role = KeyRole::Agent.into();
        let enrol = v1::KeyEnrolled { role, holder: "local".into(), public_key: bytes(&agent) };
        let keys = [Enrolment { role: KeyRole::Agent, holder: "local".into(), key: agent.verifying_key() }];
        append(&stream, &ledger, Kind::Genesis(genesis)).await;
        append(&stream, &stranger, Kind::KeyEnrolled(enrol.clone())).await;
        let waited = tokio::time::timeout(Duration::from_millis(100), enrolled(&stream, &keys)).await;
        assert!(waited.is_err());
        append(&stream, &ledger, Kind::KeyEnrolled(enrol)).await;
        enrolled(&stream, &keys).await.unwrap();
    }

    #[test]
    fn a_listener_on_every_address_is_reached_over_loopback() {
        assert_eq!(reachable("0.0.0.0:7".parse().unwrap()).to_string(), "127.0.0.1:7");
        assert_eq!(reachable("[::]:7".parse().unwrap()).to_string(), "[::1]:7");
        assert_eq!(reachable("10.0.0.1:7".parse().unwrap()).to_string(), "10.0.0.1:7");
    }
}
