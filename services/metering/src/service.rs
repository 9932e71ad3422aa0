//! Starts and stops metering: key, data directory, snapshot, lease and writer.
//!
//! Left out: listening, authentication, tracing layers and health (the server around it). Invariant: one process at a time uses a
//! data directory; dropping a [`Service`] without [`Service::stop`] is a crash, and safe.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ed25519_dalek::VerifyingKey;
use exchequer_auth::keys::{self, KeyError};
use exchequer_event::v1::metering_service_server::MeteringServiceServer;
use exchequer_stream::EventStream;
use exchequer_telemetry::Readiness;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;
use uuid::Uuid;

use crate::{
    api::Api,
    fold::Fold,
    lease::{Keeper, LeaseState},
    options::Options,
    snapshots::Snapshots,
    writer::{Channels, Shared, Writer},
};

/// Largest request, bytes: more than any valid one.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// Largest answer, bytes: a page of 1,000 budgets of eight meters with the longest scopes.
const MAX_RESPONSE_BYTES: usize = 4 * 1024 * 1024;
/// What a call waits beyond the time that a block may take, so that the writer's own answer comes first.
const ANSWER_SLACK: Duration = Duration::from_secs(1);

/// Why metering did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory can't be used.
    #[error("cannot use the data directory {path}: {source}")]
    Data {
        /// The directory.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Another process uses the data directory.
    #[error("the data directory {path} is in use by another process")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The key file can't be used.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Where the fold stands. Equal positions of one stream have equal digests, however they were reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Stream sequence of the last message folded.
    pub cursor: u64,
    /// Stream sequence up to which usage is settled.
    pub usage_cursor: u64,
    /// Blocks accepted.
    pub blocks: u64,
    /// BLAKE3 of the canonical budget state.
    pub digest: [u8; 32],
}

/// Metering, running.
#[derive(Debug)]
pub struct Service {
    api: Api,
    partition: String,
    key: VerifyingKey,
    writer: JoinHandle<()>,
    keeper: JoinHandle<()>,
    stop_writer: CancellationToken,
    stop_keeper: CancellationToken,
    _stop_on_drop: [DropGuard; 2],
}

impl Service {
    /// Recovers from the newest snapshot and starts; reading the rest of the stream, and the lease, come in the background. Ready
    /// when [`Service::readiness`] says so.
    pub async fn start(options: Options, stream: Arc<dyn EventStream>) -> Result<Self, StartError> {
        let path = options.data.clone();
        let partition = options.partition.clone();
        let key_file = options.key_file.clone();
        let recovered = tokio::task::spawn_blocking(move || recover(&path, &partition, &key_file)).await;
        let Recovered { lock, key, snapshots, fold } = recovered.map_err(|error| StartError::Data {
            path: options.data.clone(),
            source: io::Error::other(error),
        })??;
        let verifying_key = key.verifying_key();
        let (partition, patience) = (options.partition.clone(), options.append_timeout + ANSWER_SLACK);
        let shared = Arc::new(Shared::new(fold));
        let (queue, queued) = mpsc::channel(options.queue_limit);
        let state = watch::Sender::new(LeaseState::Absent("the lease is being asked for".to_owned()));
        let (forfeit, forfeits) = mpsc::channel(1);
        let (stop_writer, stop_keeper) = (CancellationToken::new(), CancellationToken::new());
        let channels =
            Channels { queue: queued, lease: state.subscribe(), forfeit, stop: stop_writer.clone() };
        let keeper = Keeper {
            stream: Arc::clone(&stream),
            name: format!("metering-{partition}"),
            holder: format!("metering-{}", Uuid::now_v7()),
            ttl: options.lease_ttl,
            state,
            forfeits,
            stop: stop_keeper.clone(),
        };
        let writer = Writer::new(options, stream, key, Arc::clone(&shared), snapshots, channels);
        let writer = async move {
            writer.run().await;
            // Held until the last snapshot is stored.
            drop(lock);
        };
        Ok(Self {
            api: Api { shared, queue, patience },
            partition,
            key: verifying_key,
            writer: tokio::spawn(writer),
            keeper: tokio::spawn(keeper.run()),
            _stop_on_drop: [stop_writer.clone().drop_guard(), stop_keeper.clone().drop_guard()],
            stop_writer,
            stop_keeper,
        })
    }

    /// The gRPC services. They expect an [`exchequer_auth::Caller`] in every request's extensions and refuse those without.
    pub fn grpc(&self) -> Routes {
        let server = MeteringServiceServer::new(self.api.clone())
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_RESPONSE_BYTES);
        Routes::new(server)
    }

    /// Metering's own HTTP routes: none.
    pub fn http(&self) -> axum::Router {
        axum::Router::new()
    }

    /// Whether calls are answered, and if not, why.
    pub fn readiness(&self) -> Readiness {
        Readiness::new().component(format!("metering-{}", self.partition), self.api.shared.serving())
    }

    /// Waits until calls are answered.
    pub async fn ready(&self) {
        let mut status = self.api.shared.status.subscribe();
        // The sender lives as long as `self`.
        let _ = status.wait_for(Result::is_ok).await;
    }

    /// The key that signs blocks: a ledger has to enrol it for the role metering.
    pub fn public_key(&self) -> VerifyingKey {
        self.key
    }

    /// Where the fold stands. Takes time in proportion to the state.
    pub fn position(&self) -> Position {
        let fold = self.api.shared.fold();
        Position {
            cursor: fold.cursor(),
            usage_cursor: fold.usage_cursor(),
            blocks: fold.head().index,
            digest: fold.budget().digest(),
        }
    }

    /// Finishes the block in flight, stores a snapshot and gives the lease back.
    pub async fn stop(self) {
        self.stop_writer.cancel();
        if let Err(error) = self.writer.await {
            tracing::error!(%error, "the writer failed");
        }
        self.stop_keeper.cancel();
        if let Err(error) = self.keeper.await {
            tracing::error!(%error, "the lease's keeper failed");
        }
    }
}

struct Recovered {
    lock: File,
    key: ed25519_dalek::SigningKey,
    snapshots: Snapshots,
    fold: Fold,
}

fn recover(
    data: &std::path::Path,
    partition: &str,
    key_file: &std::path::Path,
) -> Result<Recovered, StartError> {
    let failed = |source| StartError::Data { path: data.to_owned(), source };
    fs::create_dir_all(data).map_err(failed)?;
    let lock = File::create(data.join("metering.lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(StartError::InUse { path: data.to_owned() }),
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    let key = keys::load_or_create(key_file)?;
    let (snapshots, _) = Snapshots::open(&data.join("snapshots")).map_err(failed)?;
    let fold = snapshots.newest(partition).unwrap_or_else(|| Fold::new(partition));
    tracing::info!(cursor = fold.cursor(), blocks = fold.head().index, "metering recovered");
    Ok(Recovered { lock, key, snapshots, fold })
}
