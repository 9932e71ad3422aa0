//! What the tests start: a stream, a ledger over it, callers with tokens, and the naive reading of a log directory.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use exchequer_auth::{AuthLayer, Authenticated, Grant, Issuer, Role, Verifier};
use exchequer_event::{
    control::open_receipt,
    entry,
    name::receipt_key,
    v1::{self, KeyRole, ledger_service_client::LedgerServiceClient},
};
use exchequer_ledger::{Enrolment, Options, Service, StartError};
use exchequer_stream::{EventStream, LocalStream, Message};
use exchequer_testkit::{SimAgent, eventually, temp_dir};
use exchequer_tlog::{
    EMPTY_ROOT, Hash, Policy, SignedCheckpoint, VerifierKey, bundles_for_size, decode_bundle, leaf_hash,
    node_hash,
};
use futures::StreamExt as _;
use prost::bytes::Bytes;
use tempfile::TempDir;
use tonic::{Request, metadata::MetadataValue};
use tower::Layer as _;

pub const PATIENCE: Duration = Duration::from_secs(60);
pub const ORIGIN: &str = "test.example/log";

pub type Client = LedgerServiceClient<Authenticated<tonic::service::Routes>>;

/// A ledger over a stream, with an issuer of tokens.
pub struct World {
    pub dir: TempDir,
    pub stream: Arc<dyn EventStream>,
    pub service: Service,
    pub options: Options,
    issuer: Issuer,
    verifier: Verifier,
}

pub fn local_stream(dir: &Path) -> Arc<dyn EventStream> {
    Arc::new(LocalStream::open(&dir.join("stream")).unwrap())
}

pub fn options(data: PathBuf, agents: &[&SimAgent]) -> Options {
    let enrol = |agent: &&SimAgent| Enrolment {
        role: KeyRole::Agent,
        holder: agent.id().to_owned(),
        key: agent.public_key(),
    };
    Options {
        origin: ORIGIN.to_owned(),
        checkpoint_interval: Duration::from_millis(20),
        enroll: agents.iter().map(enrol).collect(),
        ..Options::new(data)
    }
}

/// Starts a ledger; one that was dropped a moment ago may still hold the directory.
pub async fn start(options: &Options, stream: &Arc<dyn EventStream>) -> Service {
    let started = Mutex::new(None);
    eventually(Duration::from_secs(10), || async {
        match Service::start(options.clone(), stream.clone()).await {
            Ok(service) => started.lock().unwrap().replace(service).is_none(),
            Err(StartError::Locked(_)) => false,
            Err(error) => panic!("{error}"),
        }
    })
    .await;
    started.into_inner().unwrap().unwrap()
}

impl World {
    pub async fn new(agents: &[&SimAgent]) -> Self {
        let dir = temp_dir();
        let stream = local_stream(dir.path());
        Self::over(dir, stream, agents).await
    }

    pub async fn over(dir: TempDir, stream: Arc<dyn EventStream>, agents: &[&SimAgent]) -> Self {
        let options = options(dir.path().join("ledger"), agents);
        let service = start(&options, &stream).await;
        let issuer = Issuer::open(dir.path(), "issuer", "exchequer").unwrap();
        let verifier = Verifier::open(issuer.verifier_options()).await.unwrap();
        let world = Self { dir, stream, service, options, issuer, verifier };
        // The genesis and one enrolment each.
        world.covered(1 + agents.len() as u64).await;
        world
    }

    /// Waits until the newest checkpoint covers so many entries.
    pub async fn covered(&self, size: u64) {
        covered(&self.service, size).await;
    }

    /// Appends a batch and waits until all its events and its seal are covered.
    pub async fn take(&self, agent: &mut SimAgent, tenant: &str, executions: usize) -> u64 {
        let size = checkpoint(&self.service).checkpoint().size() + 1 + 2 * executions as u64;
        let batch = agent.batch(tenant, executions);
        self.stream.append(Message::new(agent.subject(), batch)).await.unwrap();
        self.covered(size).await;
        size
    }

    pub fn auth_layer(&self) -> AuthLayer {
        AuthLayer::new(self.verifier.clone(), exchequer_ledger::public_paths(&self.options))
    }

    pub fn client(&self) -> Client {
        LedgerServiceClient::new(self.auth_layer().layer(self.service.grpc()))
    }

    pub fn token(&self, subject: &str, tenant: Option<&str>, roles: &[Role]) -> String {
        let (subject, tenant) = (subject.to_owned(), tenant.map(str::to_owned));
        let grant = Grant { subject, tenant, roles: roles.to_vec(), ttl: Duration::from_secs(600) };
        self.issuer.mint(&grant).unwrap()
    }

    /// A request of a caller.
    pub fn request<T>(
        &self,
        (subject, tenant, roles): (&str, Option<&str>, &[Role]),
        message: T,
    ) -> Request<T> {
        let mut request = Request::new(message);
        let bearer = format!("Bearer {}", self.token(subject, tenant, roles));
        request.metadata_mut().insert("authorization", MetadataValue::try_from(bearer).unwrap());
        request
    }

    pub async fn receipt(&self, agent: &str, wanted: impl Fn(&v1::Receipt) -> bool) -> v1::Receipt {
        receipt(&self.stream, &self.service.public_key(), agent, wanted).await
    }

    pub fn log(&self) -> Log {
        Log::read(&self.options.data, &self.service.verifier_key())
    }
}

pub fn checkpoint(service: &Service) -> SignedCheckpoint {
    SignedCheckpoint::parse(&service.checkpoint()).unwrap()
}

pub async fn covered(service: &Service, size: u64) {
    eventually(PATIENCE, || {
        let signed = SignedCheckpoint::parse(&service.checkpoint());
        std::future::ready(signed.is_ok_and(|signed| signed.checkpoint().size() >= size))
    })
    .await;
}

/// The agent's receipt, verified, once it is as wanted.
pub async fn receipt(
    stream: &Arc<dyn EventStream>,
    key: &ed25519_dalek::VerifyingKey,
    agent: &str,
    wanted: impl Fn(&v1::Receipt) -> bool,
) -> v1::Receipt {
    let mut values = stream.watch_latest(&receipt_key(agent)).await.unwrap();
    let found = async {
        loop {
            let value = values.next().await.unwrap().unwrap();
            let receipt = open_receipt(&value, key, agent).unwrap();
            if wanted(&receipt) {
                return receipt;
            }
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("a receipt in time")
}

/// A log as somebody reads it who has its directory and its verifier key.
pub struct Log {
    pub signed: SignedCheckpoint,
    pub entries: Vec<Bytes>,
}

impl Log {
    /// Reads the directory; the checkpoint has to verify, and to have the root of exactly these entries.
    pub fn read(data: &Path, verifier_key: &str) -> Self {
        let log = data.join("log");
        let signed = SignedCheckpoint::parse(&std::fs::read(log.join("checkpoint")).unwrap()).unwrap();
        let key: VerifierKey = verifier_key.parse().unwrap();
        let policy =
            Policy { origin: ORIGIN.to_owned(), log_keys: vec![key], witnesses: Vec::new(), quorum: 0 };
        let head = signed.verify(&policy).unwrap().checkpoint;
        let mut entries = Vec::new();
        for id in bundles_for_size(head.size()) {
            let bytes = std::fs::read(log.join(id.to_string())).unwrap();
            entries
                .extend(decode_bundle(&bytes, id.width()).unwrap().into_iter().map(Bytes::copy_from_slice));
        }
        let leaves: Vec<_> = entries.iter().map(|entry| leaf_hash(entry)).collect();
        assert_eq!(naive_root(&leaves), *head.root(), "the root of {} entries", head.size());
        Self { signed, entries }
    }

    pub fn kinds(&self) -> Vec<v1::entry::Kind> {
        self.entries.iter().map(|bytes| entry::decode(bytes).unwrap().kind.unwrap()).collect()
    }

    pub fn rejections(&self) -> Vec<v1::RejectionReason> {
        let rejection = |kind| match kind {
            v1::entry::Kind::Rejection(rejection) => Some(rejection.reason()),
            _ => None,
        };
        self.kinds().into_iter().filter_map(rejection).collect()
    }

    /// (agent, epoch, seq) of every event, in log order.
    pub fn events(&self) -> Vec<(String, u64, u64)> {
        let event = |kind| match kind {
            v1::entry::Kind::Event(bytes) => exchequer_event::seal::decode_event(&bytes).ok(),
            _ => None,
        };
        self.kinds()
            .into_iter()
            .filter_map(event)
            .map(|event| (event.agent_id, event.epoch, event.seq))
            .collect()
    }
}

pub fn leaf_hashes(entries: &[Bytes]) -> Vec<Hash> {
    entries.iter().map(|entry| leaf_hash(entry)).collect()
}

pub fn naive_root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => EMPTY_ROOT,
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
            node_hash(&naive_root(left), &naive_root(right))
        }
    }
}

/// Every tile and bundle of a log directory; what is removed meanwhile is left out.
pub fn tile_files(data: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(dir: &Path, root: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for item in std::fs::read_dir(dir).into_iter().flatten() {
            let path = item.unwrap().path();
            if path.is_dir() {
                walk(&path, root, files);
            } else if let Ok(bytes) = std::fs::read(&path) {
                files.insert(path.strip_prefix(root).unwrap().to_owned(), bytes);
            }
        }
    }
    let root = data.join("log/tile");
    let mut files = BTreeMap::new();
    walk(&root, &root, &mut files);
    files
}
