//! The task that keeps the usage directory up to date, and the reader that answers from it.
//!
//! Messages are folded and flushed on blocking threads, a handful at a time, so that neither holds up the writer's task. A directory that is
//! deleted, damaged or can't be written is begun anew while the service runs. Left out: what is counted ([`super::gather`]) and where it
//! lies ([`super::store`]). Invariant: nothing is answered from a directory that has not read what was in the stream when the task began to
//! read, unless it was asked as of an index that the directory has reached; and nothing from one that is of another stream.

use std::{
    fs::File,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use exchequer_stream::{EventStream, ReadError, Record, RecordStream};
use futures::StreamExt as _;
use opentelemetry::metrics::Gauge;
use tokio::{
    sync::Semaphore,
    task::JoinHandle,
    time::{Instant, interval, sleep_until, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    follow::Follower,
    query::{self, Page, Query, QueryError},
    store::StoreError,
};
use crate::metrics;

/// How long what was read waits at most to be flushed.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);
/// Messages folded at once.
const READ_AT_ONCE: usize = 16;
/// How often the stream's end is asked for and the directory is looked after.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Wait before a stream that can't be read, or lacks what was folded, is looked at again.
const RETRY: Duration = Duration::from_millis(500);
/// Queries that are reckoned at once: the blocking threads are there for others as well.
pub(super) const QUERIES: usize = 4;
/// How long a query waits for its turn.
const TURN_PATIENCE: Duration = Duration::from_secs(1);
/// How long the stream may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Where the ledger records what the broker lost.
const LOSS_SUBJECT: &str = "control.loss";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    /// The directory has not reached the index asked for.
    #[error("usage is known up to log index {known}, {} entries before as_of_index {asked}; {behind} messages are still to be read", asked - known)]
    Behind {
        known: u64,
        asked: u64,
        /// Messages in the stream that have not been read.
        behind: u64,
    },
    #[error("{0}")]
    NotReady(String),
    #[error("too many ask for usage")]
    Busy,
    #[error(transparent)]
    Query(#[from] QueryError),
}

/// What is answered from.
#[derive(Clone, Debug)]
struct Current {
    db: sled::Db,
    /// As flushed.
    log_index: u64,
    cursor: u64,
    /// Why it is not answered from, but for what is before `log_index`.
    standing: Result<(), String>,
    /// Whether it may be of another stream: nothing is answered from it.
    is_foreign: bool,
}

#[derive(Debug)]
struct Shared {
    current: RwLock<Current>,
    /// Messages in the stream that are not flushed.
    behind: AtomicU64,
    /// A reader met bytes that were not written: the directory is to be begun anew.
    is_damaged: AtomicBool,
}

impl Shared {
    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Current)) {
        change(&mut self.current.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A page, and what it is of.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) page: Page,
    pub(super) as_of: u64,
    pub(super) stream_seq: u64,
}

/// Answers queries.
#[derive(Clone, Debug)]
pub(crate) struct UsageReader {
    shared: Arc<Shared>,
    pub(super) turns: Arc<Semaphore>,
}

impl UsageReader {
    /// Answers as of an index, or as of all that is known.
    pub(super) async fn answer(&self, mut query: Query, as_of: Option<u64>) -> Result<Answered, Unanswered> {
        let current = self.shared.current();
        let known = current.log_index;
        if let Err(reason) = &current.standing
            && (current.is_foreign || as_of.is_none_or(|asked| asked > known))
        {
            return Err(Unanswered::NotReady(reason.clone()));
        }
        if let Some(asked) = as_of.filter(|asked| *asked > known) {
            let behind = self.shared.behind.load(Ordering::Relaxed);
            return Err(Unanswered::Behind { known, asked, behind });
        }
        query.as_of = as_of.unwrap_or(known);
        let as_of = query.as_of;
        let turn = timeout(TURN_PATIENCE, Arc::clone(&self.turns).acquire_owned()).await;
        let turn = turn.ok().and_then(Result::ok).ok_or(Unanswered::Busy)?;
        let answering = tokio::task::spawn_blocking(move || {
            let answer = query::answer(&current.db, &query);
            // Kept by what works, not by who waits: a call that goes away makes no room before its work is done.
            drop(turn);
            answer
        });
        let answer = answering.await.map_err(|error| Unanswered::NotReady(error.to_string()))?;
        if let Err(QueryError::Store(error)) = &answer {
            tracing::error!(%error, "the usage directory is damaged and will be rebuilt");
            self.shared.is_damaged.store(true, Ordering::Relaxed);
        }
        Ok(Answered { page: answer?, as_of, stream_seq: current.cursor })
    }
}

/// The projection, running.
#[derive(Debug)]
pub struct UsageProjection {
    reader: UsageReader,
    task: JoinHandle<()>,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl UsageProjection {
    /// Opens the directory and begins to follow the stream. The lock is the data directory's, and is held until the directory is closed.
    pub async fn start(dir: PathBuf, stream: Arc<dyn EventStream>, lock: Arc<File>) -> io::Result<Self> {
        let opened = dir.clone();
        let follower = tokio::task::spawn_blocking(move || Follower::open(&opened)).await??;
        let current = Current {
            db: follower.db(),
            log_index: follower.log_index(),
            cursor: follower.cursor(),
            standing: Err("usage is being read".to_owned()),
            is_foreign: true,
        };
        let shared = Arc::new(Shared {
            current: RwLock::new(current),
            behind: AtomicU64::new(0),
            is_damaged: AtomicBool::new(false),
        });
        let stop = CancellationToken::new();
        let task = Task {
            dir,
            stream,
            shared: Arc::clone(&shared),
            stop: stop.clone(),
            lag: metrics::projection_lag(),
        };
        Ok(Self {
            reader: UsageReader { shared, turns: Arc::new(Semaphore::new(QUERIES)) },
            task: tokio::spawn(async move {
                task.run(follower).await;
                drop(lock);
            }),
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        })
    }

    /// What answers queries.
    pub(crate) fn reader(&self) -> UsageReader {
        self.reader.clone()
    }

    /// Messages in the stream that are not counted yet.
    pub fn lag(&self) -> u64 {
        self.reader.shared.behind.load(Ordering::Relaxed)
    }

    /// Flushes what was read, and ends.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the projection of usage failed");
        }
    }
}

type Held = Arc<Mutex<Follower>>;

struct Task {
    dir: PathBuf,
    stream: Arc<dyn EventStream>,
    shared: Arc<Shared>,
    stop: CancellationToken,
    lag: Gauge<u64>,
}

/// Why reading ended.
enum Ended {
    Stopped,
    /// To be tried again.
    Unread(String),
    /// The stream is not the one that was read.
    Foreign(String),
    /// The directory is of no use any more.
    Useless(String),
}

impl From<StoreError> for Ended {
    fn from(error: StoreError) -> Self {
        Self::Useless(format!("the usage directory can't be written: {error}"))
    }
}

/// The stream, opened at the cursor.
struct Opened {
    records: RecordStream,
    /// The newest record of a loss, as it was before.
    loss: Option<Record>,
    /// The stream's last sequence then.
    tip: u64,
}

impl Task {
    async fn run(self, follower: Follower) {
        let mut held = Some(Arc::new(Mutex::new(follower)));
        while !self.stop.is_cancelled() {
            let Some(follower) = held.clone() else {
                held = self.open_anew().await;
                continue;
            };
            match self.follow(&follower).await {
                Ended::Stopped => break,
                Ended::Unread(reason) => self.stand(reason, false),
                Ended::Foreign(reason) => self.stand(reason, true),
                Ended::Useless(reason) => {
                    self.stand(reason, false);
                    held = None;
                }
            }
            self.pause(RETRY).await;
        }
        if let Some(follower) = held {
            let end = |follower: &mut Follower| follower.flush().and_then(|()| follower.settle());
            if let Err(Ended::Useless(reason)) = blocking(&follower, end).await.and_then(|end| Ok(end?)) {
                tracing::warn!(reason, "usage was not flushed and will be read again");
            }
        }
    }

    /// Why nothing is answered, until more is flushed.
    fn stand(&self, reason: String, is_foreign: bool) {
        self.shared.change(|current| {
            if current.standing.as_ref() != Err(&reason) {
                tracing::warn!(reason, "usage is not answered");
            }
            current.standing = Err(reason);
            current.is_foreign |= is_foreign;
        });
    }

    async fn pause(&self, pause: Duration) {
        // Whether it was stopped is looked at next.
        let _ = timeout(pause, self.stop.cancelled()).await;
    }

    async fn open_anew(&self) -> Option<Held> {
        let dir = self.dir.clone();
        let opened = tokio::task::spawn_blocking(move || Follower::open_anew(&dir)).await;
        match opened.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(follower) => {
                self.shared.is_damaged.store(false, Ordering::Relaxed);
                let db = follower.db();
                self.shared.change(|current| {
                    (current.db, current.log_index, current.cursor) = (db, 0, 0);
                });
                Some(Arc::new(Mutex::new(follower)))
            }
            Err(error) => {
                self.stand(format!("the usage directory can't be made: {error}"), false);
                self.pause(PATIENCE).await;
                None
            }
        }
    }

    async fn open(&self, cursor: u64) -> Result<Opened, ReadError> {
        let opening = async {
            let loss = if cursor > 0 { self.stream.last(LOSS_SUBJECT).await? } else { None };
            let tip = self.stream.tip().await?;
            Ok(Opened { records: self.stream.read(cursor.max(1), &[]).await?, loss, tip })
        };
        let opened = timeout(PATIENCE, opening).await;
        opened.unwrap_or_else(|_| Err(ReadError::Unavailable("no answer to reading".to_owned())))
    }

    /// Reads until something is wrong.
    async fn follow(&self, held: &Held) -> Ended {
        match self.try_follow(held).await {
            Ok(()) => Ended::Stopped,
            Err(ended) => ended,
        }
    }

    async fn try_follow(&self, held: &Held) -> Result<(), Ended> {
        let cursor = blocking(held, |follower| follower.cursor()).await?;
        let opened = tokio::select! {
            opened = self.open(cursor) => opened.map_err(|error| unread(&error))?,
            () = self.stop.cancelled() => return Ok(()),
        };
        if opened.tip < cursor {
            return Err(foreign(&format!("it ends at {}, {cursor} was read", opened.tip)));
        }
        let mut following = Following {
            task: self,
            held,
            loss: opened.loss,
            target: opened.tip,
            tip: opened.tip,
            compare: cursor > 0,
            flush_at: None,
        };
        if cursor == 0 {
            following.publish().await?;
        }
        let mut records = opened.records.ready_chunks(READ_AT_ONCE);
        let mut looks = interval(LOOK_INTERVAL);
        loop {
            let flush_at = following.flush_at;
            tokio::select! {
                () = self.stop.cancelled() => return Ok(()),
                () = sleep_until(flush_at.unwrap_or_else(Instant::now)), if flush_at.is_some() => following.flush().await?,
                _ = looks.tick() => tokio::select! {
                    looked = following.look() => looked?,
                    () = self.stop.cancelled() => return Ok(()),
                },
                read = records.next() => {
                    let ended = || Ended::Unread("the stream ended".to_owned());
                    following.take(read.ok_or_else(ended)?).await?;
                }
            }
        }
    }
}

/// Reading, since it was begun.
struct Following<'a> {
    task: &'a Task,
    held: &'a Held,
    loss: Option<Record>,
    /// What has to be read before anything is answered.
    target: u64,
    /// The stream's last sequence when it was last asked for.
    tip: u64,
    /// Whether the next record is the last one taken, read again to see that this is its stream.
    compare: bool,
    flush_at: Option<Instant>,
}

impl Following<'_> {
    async fn take(&mut self, read: Vec<Result<Record, ReadError>>) -> Result<(), Ended> {
        let mut records = Vec::with_capacity(read.len());
        let mut fault = None;
        for record in read {
            match record {
                Ok(record) => records.push(record),
                Err(error) => fault = Some(unread(&error)),
            }
        }
        let mut records = records.into_iter();
        if self.compare
            && let Some(record) = records.next()
        {
            let (seq, loss) = (record.seq, self.loss.clone());
            let is_at = blocking(self.held, move |follower| follower.is_at(&record, loss.as_ref())).await?;
            if !is_at {
                return Err(foreign(&format!("message {seq} is not the one that was read")));
            }
            self.compare = false;
            self.publish().await?;
        }
        let took = move |follower: &mut Follower| {
            for record in records {
                follower.take(&record);
                if follower.is_full() {
                    follower.flush()?;
                }
            }
            Ok::<_, StoreError>(follower.is_flushed())
        };
        if blocking(self.held, took).await?? {
            self.flush_at = None;
            self.publish().await?;
        } else {
            self.flush_at = self.flush_at.or_else(|| Some(Instant::now() + FLUSH_INTERVAL));
        }
        fault.map_or(Ok(()), Err)
    }

    async fn flush(&mut self) -> Result<(), Ended> {
        self.flush_at = None;
        blocking(self.held, Follower::flush).await??;
        self.publish().await
    }

    /// Makes known what was flushed; answers are given once that is all that there was.
    async fn publish(&mut self) -> Result<(), Ended> {
        let is_flushed = |follower: &mut Follower| {
            follower.is_flushed().then(|| (follower.db(), follower.log_index(), follower.cursor()))
        };
        let Some((db, log_index, cursor)) = blocking(self.held, is_flushed).await? else { return Ok(()) };
        self.tip = self.tip.max(cursor);
        let standing = if cursor < self.target {
            Err(format!("usage is being read: {cursor} of {} messages", self.target))
        } else {
            Ok(())
        };
        self.task.shared.change(|current| {
            *current = Current { db, log_index, cursor, standing, is_foreign: false };
        });
        self.tell_lag(cursor);
        Ok(())
    }

    async fn look(&mut self) -> Result<(), Ended> {
        if self.task.shared.is_damaged.load(Ordering::Relaxed) {
            return Err(Ended::Useless("the usage directory is damaged".to_owned()));
        }
        if blocking(self.held, |follower| follower.is_gone()).await? {
            return Err(Ended::Useless("the usage directory was deleted".to_owned()));
        }
        if let Ok(Ok(tip)) = timeout(PATIENCE, self.task.stream.tip()).await {
            self.tip = self.tip.max(tip);
            self.tell_lag(self.task.shared.current().cursor);
        }
        Ok(())
    }

    fn tell_lag(&self, cursor: u64) {
        let behind = self.tip.saturating_sub(cursor);
        self.task.shared.behind.store(behind, Ordering::Relaxed);
        self.task.lag.record(behind, &[]);
    }
}

/// Works with the follower where that may take time.
async fn blocking<T: Send + 'static>(
    held: &Held,
    work: impl FnOnce(&mut Follower) -> T + Send + 'static,
) -> Result<T, Ended> {
    let held = Arc::clone(held);
    let working =
        tokio::task::spawn_blocking(move || work(&mut held.lock().unwrap_or_else(PoisonError::into_inner)));
    // What a panic left half done is in no flush.
    working.await.map_err(|error| Ended::Useless(format!("usage could not be read: {error}")))
}

fn unread(error: &ReadError) -> Ended {
    match error {
        ReadError::Lost { .. } => foreign(&error.to_string()),
        _ => Ended::Unread(format!("the stream can't be read: {error}")),
    }
}

/// Fails closed: what is missing in the stream would be missing in the answers. What the ledger puts back heals it.
fn foreign(why: &str) -> Ended {
    Ended::Foreign(format!(
        "this is not the stream that usage was read from, or it lost messages: {why}. It goes on by itself once the ledger has put them \
         back. If the stream was replaced on purpose, remove the usage directory"
    ))
}
