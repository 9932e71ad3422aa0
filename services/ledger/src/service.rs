//! The ledger as a whole: recovers, starts its parts, hands out its servers, stops.
//!
//! Left out: listening. Invariant: nothing runs before the log, its checkpoints and its genesis were found to fit each other.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ed25519_dalek::VerifyingKey;
use exchequer_auth::keys::{self, KeyError};
use exchequer_event::{
    accept::Acceptor,
    name, seal,
    v1::{RejectionReason, entry::Kind, ledger_service_server::LedgerServiceServer},
};
use exchequer_stream::EventStream;
use exchequer_telemetry::Readiness;
use exchequer_tlog::SignedCheckpoint;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

pub use crate::genesis::GenesisError;
use crate::{
    control::ControlWriter,
    genesis,
    grpc::{Grpc, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, Tails},
    http,
    index::{self, Index},
    ingest::{self, Pipeline},
    integrate::{AgentOutcome, head_of},
    key::{LedgerKey, rotate::Rotation},
    metrics::Metrics,
    mirror,
    options::Options,
    sign::{Signer, agree::Agreement, unix_s},
    snapshot::{Snapshots, for_each_entry},
    standing::{Published, Standing},
    store::{self, Disk, LogReader, OpenError, Opened, Quorum, StoreError},
    witness::client::{self, Witnesses},
};

/// Blocks that wait for the index; beyond it, the index reads them from the log.
const WAITING_BLOCKS: usize = 4;
/// Memory that sled keeps pages in.
const SLED_CACHE_BYTES: u64 = 64 * 1024 * 1024;
const DERIVED: &str = "derived";
/// How long an unusable sled is tried again before it is set aside.
const DERIVED_WAIT: Duration = Duration::from_secs(1);
const DERIVED_RETRY: Duration = Duration::from_millis(100);

/// The ledger did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory can't be used.
    #[error("the data directory {path} can't be used: {reason}")]
    Data {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Another process has it.
    #[error("the data directory {0} is in use by another process")]
    Locked(PathBuf),
    /// The key can't be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The log can't be opened.
    #[error("the log can't be opened: {0}")]
    Open(#[from] OpenError),
    /// The log can't be read.
    #[error("the log can't be read: {0}")]
    Store(#[from] StoreError),
    /// The stream or the log is not this ledger's.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// The witnesses can't be asked.
    #[error("the witnesses can't be asked: {0}")]
    Witnesses(String),
}

/// A running ledger. Dropping it without [`Service::stop`] is what a crash is: safe, and the next start recovers.
#[derive(Debug)]
pub struct Service {
    grpc: Grpc,
    files: http::Files,
    standing: Arc<Standing>,
    key: LedgerKey,
    shutdown: CancellationToken,
    signer_shutdown: CancellationToken,
    mirror_shutdown: CancellationToken,
    ingest: tokio::task::JoinHandle<()>,
    signer: tokio::task::JoinHandle<()>,
    tasks: JoinSet<()>,
    lock: Arc<File>,
}

/// What recovery found, before anything runs.
struct Recovered {
    opened: Opened,
    acceptor: Acceptor,
    snapshot_size: u64,
    snapshots: Snapshots,
    index: Index,
    lock: Arc<File>,
    owed: BTreeMap<String, AgentOutcome>,
}

impl Service {
    /// Recovers the log of the data directory and runs the ledger over the stream.
    pub async fn start(options: Options, stream: Arc<dyn EventStream>) -> Result<Self, StartError> {
        let (data, origin) = (options.data.clone(), options.origin.clone());
        let key_file = options.key_file.clone();
        let quorum = client::quorum(&options.witnesses, options.witness_quorum);
        let (key, instance, recovered) = tokio::task::spawn_blocking(move || {
            let unusable =
                |error: std::io::Error| StartError::Data { path: data.clone(), reason: error.to_string() };
            std::fs::create_dir_all(&data).map_err(unusable)?;
            let lock = lock(&data)?;
            let key = keys::load_or_create(&key_file)?;
            let instance = instance_name(&data).map_err(unusable)?;
            recover(&data, &origin, quorum, lock).map(|recovered| (key, instance, recovered))
        })
        .await
        .map_err(|error| StartError::Data { path: options.data.clone(), reason: error.to_string() })??;
        let Recovered {
            opened: Opened { writer, reader, checkpoints },
            acceptor,
            snapshot_size,
            snapshots,
            index,
            lock,
            owed,
        } = recovered;

        if options.witnesses.iter().any(|witness| *witness.key.public_key() == key.verifying_key()) {
            return Err(StartError::Witnesses("one of them has the ledger's own key".to_owned()));
        }
        let witnesses = Witnesses::new(&options.witnesses, options.witness_quorum)
            .map_err(|error| StartError::Witnesses(error.to_string()))?;

        let key = LedgerKey::new(&options.origin, options.key_file.clone(), key).map_err(OpenError::from)?;
        let control = ControlWriter::new(stream.clone(), key.clone());
        let (cursor, public) = (writer.position().cursor, key.current().public());
        genesis::ensure(&*stream, &acceptor, cursor, &control, &options.origin, &public).await?;

        let published =
            checkpoints.published().map_or_else(Published::default, |last| Published::new(last, unix_s()));
        let standing = Arc::new(Standing::new(&acceptor, writer.position().clone(), published));
        standing.owe(owed);
        let metrics = Metrics::new(Arc::downgrade(&standing));
        let [shutdown, signer_shutdown, mirror_shutdown] = std::array::from_fn(|_| CancellationToken::new());
        let (blocks, received) = mpsc::channel(WAITING_BLOCKS);
        let pipeline = Pipeline {
            snapshot_size,
            writer,
            acceptor,
            reader: reader.clone(),
            snapshots,
            blocks,
            standing: standing.clone(),
            control: control.clone(),
            metrics: metrics.clone(),
            _lock: lock.clone(),
        };
        let agreement = Agreement {
            checkpoints: Arc::new(Mutex::new(checkpoints)),
            witnesses,
            reader: reader.clone(),
            standing: standing.clone(),
            stream: stream.clone(),
            key: key.clone(),
            origin: options.origin.clone(),
            metrics: metrics.clone(),
            _lock: lock.clone(),
        };
        let rotation =
            Rotation::new(key.clone(), &instance, control.clone(), standing.clone(), shutdown.clone());
        let signer = Signer {
            agreement,
            standing: standing.clone(),
            stream: stream.clone(),
            key: key.clone(),
            holder: instance,
            interval: options.checkpoint_interval,
            metrics: metrics.clone(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(index::run(index.clone(), reader.clone(), standing.clone(), received, shutdown.clone()));
        tasks.spawn(control.clone().enrol(options.enroll.clone(), standing.clone(), shutdown.clone()));
        tasks.spawn(rotation.clone().resume());
        tasks.spawn(control.clone().watch_durability(standing.clone(), shutdown.clone()));
        tasks.spawn(ingest::watch_lag(stream.clone(), standing.clone(), metrics.clone(), shutdown.clone()));
        if let Some(mirror) = options.mirror {
            let (standing, shutdown) = (standing.clone(), mirror_shutdown.clone());
            tasks.spawn(mirror::run(mirror, options.origin, reader.clone(), standing, metrics, shutdown));
        }
        Ok(Self {
            ingest: tokio::spawn(ingest::run(pipeline, stream.clone(), shutdown.clone())),
            signer: tokio::spawn(signer.run(signer_shutdown.clone())),
            grpc: Grpc {
                reader: reader.clone(),
                index,
                standing: standing.clone(),
                stream,
                control,
                key: key.clone(),
                rotation,
                tails: Tails::default(),
                shutdown: shutdown.clone(),
            },
            files: http::Files {
                reader,
                standing: standing.clone(),
                key: key.clone(),
                public_entries: options.public_entries,
            },
            standing,
            key,
            shutdown,
            signer_shutdown,
            mirror_shutdown,
            tasks,
            lock,
        })
    }

    /// The gRPC services.
    pub fn grpc(&self) -> tonic::service::Routes {
        let server = LedgerServiceServer::new(self.grpc.clone())
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_RESPONSE_BYTES);
        tonic::service::Routes::new(server)
    }

    /// The log's files over HTTP.
    pub fn http(&self) -> axum::Router {
        http::routes(self.files.clone())
    }

    /// Which parts work.
    pub fn readiness(&self) -> Readiness {
        self.standing.readiness()
    }

    /// What is missing if the stream does not sync each acknowledged message; also recorded in the log.
    pub fn durability_degraded(&self) -> Option<String> {
        self.standing.durability_fault()
    }

    /// The log's verifier key at this moment (a vkey of C2SP signed-note), with which new checkpoints are verified.
    pub fn verifier_key(&self) -> String {
        self.key.current().verifier_key.clone()
    }

    /// The Ed25519 public key behind it, with which receipts and control records are verified.
    pub fn public_key(&self) -> VerifyingKey {
        self.key.current().public()
    }

    /// The newest signed checkpoint; empty before the first.
    pub fn checkpoint(&self) -> bytes::Bytes {
        self.standing.published.borrow().note.clone()
    }

    /// Stops: integrates what it has read, signs it, tells the agents, and lets the data directory go.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        // The signer last, so that its last checkpoint covers all that was integrated.
        let ingest = (&mut self.ingest).await;
        self.signer_shutdown.cancel();
        let signer = (&mut self.signer).await;
        for ended in [ingest, signer] {
            if let Err(error) = ended {
                tracing::error!(%error, "a part of the ledger did not stop in good order");
            }
        }
        // After the signer, so that the mirror gets the last checkpoint.
        self.mirror_shutdown.cancel();
        while self.tasks.join_next().await.is_some() {}
        // Nothing writes any more, whoever still reads.
        if let Err(error) = self.lock.unlock() {
            tracing::error!(%error, "the data directory can't be let go");
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.ingest.abort();
        self.signer.abort();
    }
}

/// Holds the data directory for as long as the file is open.
pub(crate) fn lock(data: &Path) -> Result<Arc<File>, StartError> {
    let path = data.join("lock");
    let unusable = |error: std::io::Error| StartError::Data { path: path.clone(), reason: error.to_string() };
    let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => Ok(Arc::new(file)),
        Err(std::fs::TryLockError::WouldBlock) => Err(StartError::Locked(data.to_owned())),
        Err(std::fs::TryLockError::Error(error)) => Err(unusable(error)),
    }
}

fn recover(data: &Path, origin: &str, quorum: Quorum, lock: Arc<File>) -> Result<Recovered, StartError> {
    let tree = store::open(Arc::new(Disk), data, origin)?;
    let (mut snapshots, index) = open_derived(data, &tree.reader)?;
    let (acceptor, snapshot_size) = snapshots.acceptor(&tree.reader)?;
    let opened = tree.with_keys(acceptor.keys(), quorum)?;
    let covered = opened
        .checkpoints
        .published()
        .map_or(u64::MAX, |signed: &SignedCheckpoint| signed.checkpoint().size());
    let since = opened.checkpoints.previous_size().min(covered);
    let owed = owed_receipts(&opened.reader, &acceptor, since)?;
    Ok(Recovered { opened, acceptor, snapshot_size, snapshots, index, lock, owed })
}

/// Opens sled; what can't be opened is set aside and built again, since all of it follows from the log.
fn open_derived(data: &Path, reader: &LogReader) -> Result<(Snapshots, Index), StartError> {
    let path = data.join(DERIVED);
    let until = Instant::now() + DERIVED_WAIT;
    loop {
        match try_derived(&path, reader) {
            Ok(opened) => return Ok(opened),
            // Readers of a ledger that was stopped in this process may hold it a moment longer.
            Err(_) if path.exists() && Instant::now() < until => std::thread::sleep(DERIVED_RETRY),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "derived data can't be opened; it is rebuilt");
                break;
            }
        }
    }
    let unusable = |error: String| StartError::Data { path: path.clone(), reason: error };
    let aside = data.join(format!("{DERIVED}.unusable"));
    let is_gone = |outcome: std::io::Result<()>| match outcome {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(unusable(error.to_string())),
        _ => Ok(()),
    };
    is_gone(if aside.is_dir() { std::fs::remove_dir_all(&aside) } else { std::fs::remove_file(&aside) })?;
    is_gone(std::fs::rename(&path, &aside))?;
    try_derived(&path, reader).map_err(|error| unusable(error.to_string()))
}

fn try_derived(path: &Path, reader: &LogReader) -> Result<(Snapshots, Index), index::IndexError> {
    let db = sled::Config::new().path(path).cache_capacity(SLED_CACHE_BYTES).open()?;
    Ok((Snapshots::open(&db)?, Index::open(&db, reader)?))
}

/// Receipts that a crash may have kept from being published: every agent's head, and what the log says of refusals since the
/// checkpoint before the last one.
fn owed_receipts(
    reader: &LogReader,
    acceptor: &Acceptor,
    since: u64,
) -> Result<BTreeMap<String, AgentOutcome>, StoreError> {
    let mut refused: BTreeMap<String, Option<RejectionReason>> = BTreeMap::new();
    for_each_entry(reader, since, reader.committed(), |entry| match entry.kind {
        Some(Kind::Rejection(rejection)) => {
            if let Some(agent_id) = rejection.subject.strip_prefix("events.") {
                refused.insert(agent_id.to_owned(), Some(rejection.reason()));
            }
        }
        Some(Kind::Equivocation(equivocation)) => {
            refused.insert(equivocation.agent_id, Some(RejectionReason::WrongChain));
        }
        Some(Kind::Event(bytes)) => {
            if let Ok(event) = seal::decode_event(&bytes) {
                refused.insert(event.agent_id, None);
            }
        }
        _ => {}
    })?;
    let agents = acceptor.heads().map(|head| (head.agent_id, None));
    let all: BTreeMap<_, _> = agents.chain(refused).collect();
    let owed = all.into_iter().filter(|(agent_id, _)| name::is_holder(agent_id));
    Ok(owed
        .map(|(agent_id, refused)| {
            let outcome = AgentOutcome { head: head_of(acceptor, &agent_id), refused };
            (agent_id, outcome)
        })
        .collect())
}

/// The data directory's name among those that compete for the lease. It outlives the process, so that a ledger that was killed
/// takes the lease over from itself; that there is one process only is what the lock is for.
fn instance_name(data: &Path) -> std::io::Result<String> {
    let path = data.join("instance");
    match std::fs::read_to_string(&path) {
        Ok(name) if name::is_holder(&name) => return Ok(name),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        // Cut by a crash, or not there yet: a new name only waits for the old one's lease to run out.
        _ => {}
    }
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    let name = format!("ledger-{}", hex::encode(bytes));
    std::fs::write(&path, &name)?;
    Ok(name)
}
