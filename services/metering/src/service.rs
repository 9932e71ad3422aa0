//! Starts and stops metering: key, data directory, snapshot, leases, writer and notifications.
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
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::service::Routes;

use crate::{
    agreement::{self, Disagreement},
    api::{self, Api, Watchers},
    core::Core,
    fold::Fold,
    lease::{Keeper, lease_name},
    metrics::Metrics,
    notify::{Board, Notifier},
    options::Options,
    queue::Queue,
    recall::Recall,
    route::{self, Route, Router},
    snapshots::Snapshots,
    usage::UsageProjection,
    writer::{Shared, Writer},
};

/// Largest request, bytes: 1,024 commands of a common size in one call.
pub(crate) const MAX_REQUEST_BYTES: usize = 1024 * 1024;
/// Largest answer, bytes: a page of 1,000 budgets of eight meters with the longest scopes.
pub(crate) const MAX_RESPONSE_BYTES: usize = 4 * 1024 * 1024;
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
    /// The instances of the stream agreed on another number of partitions, for good.
    #[error("metering.partitions is {configured}, but the stream's number is {agreed} for good")]
    Partitions {
        /// What this instance was told.
        configured: u16,
        /// What the stream says.
        agreed: String,
    },
    /// The stream could not be asked for the number of partitions.
    #[error("the stream could not be asked for the number of partitions: {0}")]
    Stream(String),
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
    key: VerifyingKey,
    writer: JoinHandle<()>,
    keeper: JoinHandle<()>,
    notifier: JoinHandle<()>,
    usage: UsageProjection,
    stop_writer: CancellationToken,
    stop_keeper: CancellationToken,
    stop_notifier: CancellationToken,
    _stop_on_drop: [DropGuard; 3],
}

impl Service {
    /// Recovers from the newest snapshot and starts; reading the rest of the stream, and the leases, come in the background. Ready
    /// when [`Service::readiness`] says so.
    pub async fn start(options: Options, stream: Arc<dyn EventStream>) -> Result<Self, StartError> {
        let partitions = options.partitions;
        agreement::agree(&*stream, partitions).await.map_err(|error| match error {
            Disagreement::Another(agreed) => StartError::Partitions { configured: partitions, agreed },
            Disagreement::Unreachable(why) => StartError::Stream(why),
        })?;
        let (path, key_file) = (options.data.clone(), options.key_file.clone());
        let recovered = tokio::task::spawn_blocking(move || recover(&path, partitions, &key_file)).await;
        let Recovered { lock, key, snapshots, fold } = recovered.map_err(|error| StartError::Data {
            path: options.data.clone(),
            source: io::Error::other(error),
        })??;
        let verifying_key = key.verifying_key();
        let patience = options.append_timeout + ANSWER_SLACK;
        let metrics = Arc::new(Metrics::new());
        let router =
            Router::new(partitions, options.advertise.clone(), patience + ANSWER_SLACK, Arc::clone(&metrics));
        let board = Arc::new(Board::new(&fold, options.webhook_retries));
        let core = Core::new(fold, key.clone(), options.append_timeout);
        let shared = Shared { fold: core.shared_fold(), router, metrics };
        let (queue, queued) = Queue::new(options.queue_limit);
        let (publish, leases) = mpsc::unbounded_channel();
        let (forfeit, forfeits) = mpsc::unbounded_channel();
        let lock = Arc::new(lock);
        let usage_dir = options.data.join("usage");
        let usage = UsageProjection::start(usage_dir, Arc::clone(&stream), Arc::clone(&lock)).await;
        let usage = usage.map_err(|source| StartError::Data { path: options.data.clone(), source })?;
        let (stop_writer, stop_keeper) = (CancellationToken::new(), CancellationToken::new());
        let stop_notifier = CancellationToken::new();
        let keeper = Keeper {
            stream: Arc::clone(&stream),
            partitions,
            holder: route::holder(options.advertise.as_deref()),
            ttl: options.lease_ttl,
            publish: Arc::new(move |partition, state| {
                let _ = publish.send((partition, state));
            }),
            forfeits,
            stop: stop_keeper.clone(),
        };
        let recall = Recall::new(Arc::clone(&stream));
        let stored = snapshots.clone();
        let writer = Writer {
            core,
            recall: recall.clone(),
            stream,
            shared: shared.clone(),
            board: Arc::clone(&board),
            snapshots,
            snapshot_interval: options.snapshot_interval,
            queue: queued,
            leases,
            forfeits: forfeit,
            stop: stop_writer.clone(),
            give_back: stop_keeper.clone(),
        };
        let notifier = Notifier::new(
            board,
            shared.clone(),
            queue.clone(),
            key,
            options.webhook_allow,
            stop_notifier.clone(),
        );
        // However it ends, also by a defect: others can have the leases then.
        let give_back = stop_keeper.clone().drop_guard();
        let writer = async move {
            let _give_back = give_back;
            writer.run().await;
            // Held until the last snapshot is stored.
            drop(lock);
        };
        Ok(Self {
            api: Api {
                shared,
                queue,
                recall,
                snapshots: stored,
                watchers: Watchers::default(),
                patience,
                usage: usage.reader(),
            },
            key: verifying_key,
            writer: tokio::spawn(writer),
            keeper: tokio::spawn(keeper.run()),
            usage,
            notifier: tokio::spawn(notifier.run()),
            _stop_on_drop: [&stop_writer, &stop_keeper, &stop_notifier].map(|stop| stop.clone().drop_guard()),
            stop_writer,
            stop_keeper,
            stop_notifier,
        })
    }

    /// The gRPC services. They expect an [`exchequer_auth::Caller`] in every request's extensions and refuse those without.
    pub fn grpc(&self) -> Routes {
        let server = MeteringServiceServer::new(self.api.clone())
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_RESPONSE_BYTES);
        Routes::new(server)
    }

    /// Metering's own HTTP routes: usage as CloudEvents. They answer 401 without an [`exchequer_auth::Caller`] in the extensions.
    pub fn http(&self) -> axum::Router {
        api::routes(self.api.clone())
    }

    /// For each partition, whether calls are answered, by this instance or by another that it hands them on to; and if not, why.
    pub fn readiness(&self) -> Readiness {
        let router = self.router();
        (0..router.partitions()).fold(Readiness::new(), |readiness, partition| {
            let state = match router.route(partition) {
                Route::Here | Route::There(_) => Ok(()),
                Route::Nobody(reason) => Err(reason),
            };
            readiness.component(lease_name(partition), state)
        })
    }

    /// Waits until every partition's calls are answered, by this instance or by another.
    pub async fn ready(&self) {
        self.until(|route| !matches!(route, Route::Nobody(_))).await;
    }

    /// Waits until this instance itself serves every partition.
    pub async fn ready_here(&self) {
        self.until(|route| matches!(route, Route::Here)).await;
    }

    async fn until(&self, holds: impl Fn(&Route) -> bool) {
        let router = self.router();
        let all = || (0..router.partitions()).all(|partition| holds(&router.route(partition)));
        // Not within the channel's own wait, which holds what `route` looks at.
        let mut changes = router.subscribe();
        while !all() && changes.changed().await.is_ok() {}
    }

    /// Who serves what.
    pub fn router(&self) -> &Router {
        &self.api.shared.router
    }

    /// The key that signs blocks: a ledger has to enrol it for the role metering.
    pub fn public_key(&self) -> VerifyingKey {
        self.key
    }

    /// Where the fold of the first partition stands. Takes time in proportion to the state.
    pub fn position(&self) -> Position {
        self.position_of(0)
    }

    /// Where a partition's fold stands. There has to be such a partition.
    pub fn position_of(&self, partition: u16) -> Position {
        let fold = self.api.shared.fold();
        Position {
            cursor: fold.cursor(),
            usage_cursor: fold.usage_cursor(partition),
            blocks: fold.head(partition).index,
            digest: fold.budget(partition).digest(fold.past(partition)),
        }
    }

    /// Finishes the blocks in flight, stores a snapshot and gives the leases back.
    pub async fn stop(self) {
        self.stop_notifier.cancel();
        if let Err(error) = self.notifier.await {
            tracing::error!(%error, "the delivery of notifications failed");
        }
        self.stop_writer.cancel();
        self.usage.stop().await;
        if let Err(error) = self.writer.await {
            tracing::error!(%error, "the writer failed");
        }
        self.stop_keeper.cancel();
        if let Err(error) = self.keeper.await {
            tracing::error!(%error, "the leases' keeper failed");
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
    partitions: u16,
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
    let fold = snapshots.newest(partitions).unwrap_or_else(|| Fold::new(partitions));
    tracing::info!(cursor = fold.cursor(), partitions, "metering recovered");
    Ok(Recovered { lock, key, snapshots, fold })
}
