//! The task around the [`Core`]: it tells it what happens and does what it says.
//!
//! Left out: everything that is decided ([`crate::core`]), and validation, roles and statuses ([`crate::api`]). Invariant: what the
//! core is told happened in this order; records of a reader that was dropped are not told.

mod io;

use std::{
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use exchequer_stream::{EventStream, ReadError, Record};
use futures::{
    StreamExt,
    future::{BoxFuture, pending},
    stream::FuturesUnordered,
};
use tokio::{sync::mpsc, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    core::{Answered, Core, Held, Input, Note, Now, Output, Reply, Unanswered},
    fold::Fold,
    lease::LeaseState,
    metrics::Metrics,
    notify::Board,
    queue::{self, Asked, Caller},
    recall::Recall,
    route::Router,
    snapshots::Snapshots,
};

/// Messages taken from the line at once.
const DRAIN: usize = 1024;
/// Longest wait without looking at the clock.
const LOOK: Duration = Duration::from_secs(1);
/// Shortest wait.
const SOON: Duration = Duration::from_millis(1);
/// A snapshot may take one part in this many of the writer's time.
const SNAPSHOT_SHARE: u32 = 20;

/// What the task shares with the RPCs.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) fold: Arc<RwLock<Fold>>,
    pub(crate) router: Router,
    pub(crate) metrics: Arc<Metrics>,
}

impl Shared {
    /// The durable state.
    pub(crate) fn fold(&self) -> RwLockReadGuard<'_, Fold> {
        self.fold.read().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) struct Writer {
    pub(crate) core: Core<Caller>,
    pub(crate) stream: Arc<dyn EventStream>,
    pub(crate) recall: Recall,
    pub(crate) shared: Shared,
    pub(crate) board: Arc<Board>,
    pub(crate) snapshots: Snapshots,
    pub(crate) snapshot_interval: Duration,
    pub(crate) queue: mpsc::UnboundedReceiver<Asked>,
    pub(crate) leases: mpsc::UnboundedReceiver<(u16, LeaseState)>,
    pub(crate) forfeits: mpsc::UnboundedSender<(u16, u64)>,
    pub(crate) stop: CancellationToken,
    /// Gives the leases back.
    pub(crate) give_back: CancellationToken,
}

/// What the task waits for.
struct Waits {
    began: Instant,
    records: Option<io::Records>,
    opening: Option<BoxFuture<'static, io::Opening>>,
    doing: FuturesUnordered<BoxFuture<'static, Input<Caller>>>,
    snapshot_at: Instant,
    snapshot_cursor: u64,
    storing: Option<JoinHandle<()>>,
}

impl Waits {
    fn now(&self) -> Now {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono: self.began.elapsed(), wall_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX) }
    }
}

enum Woken {
    Records(Option<Vec<Result<Record, ReadError>>>),
    Opened(io::Opening),
    Done(Input<Caller>),
    Asked(Option<Asked>),
    Lease(Option<(u16, LeaseState)>),
    Look,
}

impl Writer {
    /// Runs until stopped, and finishes the blocks in flight then.
    pub(crate) async fn run(mut self) {
        let _ended = Ended(self.shared.router.clone());
        let mut waits = Waits {
            began: Instant::now(),
            records: None,
            opening: None,
            doing: FuturesUnordered::new(),
            snapshot_at: Instant::now() + self.snapshot_interval,
            snapshot_cursor: self.shared.fold().cursor(),
            storing: None,
        };
        let mut is_stopping = false;
        self.act(&mut waits);
        while !is_stopping || !self.core.is_idle() {
            self.snapshot_if_due(&mut waits);
            match self.wait(&mut waits, is_stopping).await {
                Woken::Asked(Some(asked)) => self.drain(&mut waits, Some(asked)),
                Woken::Records(Some(records)) => {
                    for record in records {
                        self.tell(&mut waits, io::read(record));
                        if waits.records.is_none() {
                            break;
                        }
                    }
                }
                Woken::Records(None) => self.tell(&mut waits, io::ended()),
                Woken::Opened(Ok((records, loss))) => {
                    waits.records = Some(records);
                    self.tell(&mut waits, Input::Opened(loss));
                }
                Woken::Opened(Err(fault)) => self.tell(&mut waits, Input::ReadFailed(fault)),
                Woken::Done(input) => {
                    // What came meanwhile goes into the block that this may set free.
                    self.drain(&mut waits, None);
                    self.tell(&mut waits, input);
                }
                Woken::Lease(Some((partition, state))) => self.on_lease(&mut waits, partition, state),
                // Nobody can ask any more, or holds leases for it.
                Woken::Asked(None) | Woken::Lease(None) => self.stop.cancel(),
                Woken::Look => self.tell(&mut waits, Input::Tick),
            }
            if self.stop.is_cancelled() && !is_stopping {
                is_stopping = true;
                self.tell(&mut waits, Input::Stop);
            }
        }
        self.drain(&mut waits, None);
        // Nothing is decided here any more: others need not wait for the last snapshot.
        self.give_back.cancel();
        if let Some(storing) = waits.storing.take() {
            let _ = storing.await;
        }
        self.store_snapshot(&mut waits);
        if let Some(storing) = waits.storing.take() {
            let _ = storing.await;
        }
    }

    async fn wait(&mut self, waits: &mut Waits, is_stopping: bool) -> Woken {
        let wake = self
            .core
            .wake_at(waits.now())
            .map_or(LOOK, |at| at.saturating_sub(waits.began.elapsed()).clamp(SOON, LOOK));
        let (records, opening) = (&mut waits.records, &mut waits.opening);
        tokio::select! {
            read = next(records) => Woken::Records(read),
            opened = maybe(opening) => {
                waits.opening = None;
                Woken::Opened(opened)
            }
            Some(input) = waits.doing.next() => Woken::Done(input),
            asked = self.queue.recv(), if !is_stopping => Woken::Asked(asked),
            changed = self.leases.recv(), if !is_stopping => Woken::Lease(changed),
            () = self.stop.cancelled(), if !is_stopping => Woken::Look,
            () = sleep(wake) => Woken::Look,
        }
    }

    /// Tells the core what waits in the line, by partition.
    fn drain(&mut self, waits: &mut Waits, first: Option<Asked>) {
        let more = std::iter::from_fn(|| self.queue.try_recv().ok());
        let mut all: Vec<Asked> = Vec::new();
        for asked in first.into_iter().chain(more).take(DRAIN) {
            match all.iter_mut().find(|other| other.partition == asked.partition) {
                Some(other) => other.commands.extend(asked.commands),
                None => all.push(asked),
            }
        }
        for Asked { partition, commands } in all {
            self.tell(waits, Input::Asked { partition, commands });
        }
    }

    fn on_lease(&mut self, waits: &mut Waits, partition: u16, state: LeaseState) {
        let lease = match &state {
            LeaseState::Held(lease) => {
                Ok(Held { epoch: lease.epoch, until: waits.began.elapsed() + lease.remaining() })
            }
            LeaseState::HeldBy(holder) => Err(format!("the partition's lease is held by {holder}")),
            LeaseState::Absent(reason) => Err(reason.clone()),
        };
        self.shared.router.set_owner(partition, state);
        self.tell(waits, Input::Lease { partition, lease });
    }

    fn tell(&mut self, waits: &mut Waits, input: Input<Caller>) {
        let began = Instant::now();
        self.core.handle(waits.now(), input);
        self.shared.metrics.step_seconds.record(began.elapsed().as_secs_f64(), &[]);
        self.act(waits);
    }

    /// Does what the core says.
    fn act(&mut self, waits: &mut Waits) {
        for output in self.core.outputs() {
            match output {
                Output::Open { from, after, with_loss } => {
                    waits.records = None;
                    waits.opening = Some(io::open(Arc::clone(&self.stream), from, after, with_loss));
                }
                Output::ReadTip { partition, subject, probe, after } => {
                    let stream = Arc::clone(&self.stream);
                    waits.doing.push(io::read_tip(stream, partition, subject, probe, after));
                }
                Output::Append { partition, block, message, after } => {
                    let stream = Arc::clone(&self.stream);
                    waits.doing.push(io::append(stream, partition, block, message, after));
                }
                Output::Answer { ticket, answer } => self.answer(ticket, answer),
                Output::Forfeit { partition, epoch } => {
                    let _ = self.forfeits.send((partition, epoch));
                }
                Output::Status { partition, status } => self.publish(partition, status),
                Output::Folded(block) => {
                    self.shared.metrics.folded(&block, &self.shared.fold());
                    self.board.folded(&block);
                }
                Output::Note { partition, note } => self.note(partition, note),
                Output::Foreign(Some(why)) => tracing::error!("{why}"),
                Output::BegunAgain => self.snapshots.begin_again(),
                Output::Foreign(None) => tracing::warn!("the stream holds again what was folded"),
            }
        }
        let fold = self.shared.fold();
        for partition in 0..fold.partitions() {
            let lag = fold.cursor() - fold.usage_cursor(partition);
            self.shared.metrics.usage_lag(partition, lag);
        }
    }

    fn answer(&self, caller: Caller, answer: Result<Answered, Unanswered>) {
        let outcome = match answer {
            Ok(Answered { reply: Reply::Event(reply), stream_seq, repeated }) => {
                Ok(queue::Answered { reply, stream_seq, repeated })
            }
            Ok(Answered { reply: Reply::Recorded(tenant, key), stream_seq, repeated }) => {
                let (recall, metrics) = (self.recall.clone(), Arc::clone(&self.shared.metrics));
                tokio::spawn(async move {
                    let reply = recall.answer(caller.partition, stream_seq, &tenant, &key).await;
                    let outcome = reply.map(|reply| queue::Answered { reply, stream_seq, repeated });
                    metrics.answered(caller.answer(outcome.map_err(Unanswered::Unavailable)));
                });
                return;
            }
            Err(unanswered) => Err(unanswered),
        };
        self.shared.metrics.answered(caller.answer(outcome));
    }

    fn publish(&self, partition: u16, status: Result<u64, String>) {
        let before = self.shared.router.serving(partition);
        match (&before, &status) {
            (Err(_), Ok(epoch)) => tracing::info!(partition, epoch, "metering serves"),
            (Ok(_), Err(reason)) => {
                self.shared.metrics.lease_lost.add(1, &[]);
                tracing::warn!(partition, reason, "metering stops serving");
            }
            (Err(was), Err(reason)) if was.split(':').next() != reason.split(':').next() => {
                tracing::info!(partition, reason, "metering does not serve");
            }
            _ => {}
        }
        self.shared.router.set_serving(partition, status);
        self.shared.metrics.partitions.record(self.shared.router.owned().len() as u64, &[]);
    }

    fn note(&self, partition: u16, note: Note) {
        let metrics = &self.shared.metrics;
        match note {
            Note::Begun { repeated, decisions, bytes, waited } => {
                metrics.repeated.add(repeated as u64, &[]);
                metrics.queue_seconds.record(waited.as_secs_f64(), &[]);
                if decisions > 0 {
                    metrics.block_decisions.record(decisions as u64, &[]);
                    metrics.block_bytes.record(bytes as u64, &[]);
                }
            }
            Note::Durable { took } => metrics.append_seconds.record(took.as_secs_f64(), &[]),
            Note::Overtaken { commands } => {
                metrics.fenced.add(1, &[]);
                tracing::warn!(partition, commands, "another block was first; deciding again");
            }
            Note::Retried(why) => {
                tracing::warn!(partition, why, "outcome of a block unknown; trying the same block again");
            }
            Note::Abandoned { commands, why } => {
                metrics.abandoned.add(commands as u64, &[]);
                tracing::warn!(partition, commands, why, "a block was given up");
            }
            Note::Void { stream_seq, is_ours, reason } => {
                metrics.fenced.add(u64::from(is_ours), &[]);
                tracing::warn!(partition, stream_seq, reason, is_ours, "a block was not accepted");
            }
        }
    }

    fn snapshot_if_due(&mut self, waits: &mut Waits) {
        if Instant::now() < waits.snapshot_at || waits.storing.as_ref().is_some_and(|it| !it.is_finished()) {
            return;
        }
        let began = Instant::now();
        self.store_snapshot(waits);
        let pause = self.snapshot_interval.max(began.elapsed() * SNAPSHOT_SHARE);
        waits.snapshot_at = Instant::now() + pause;
    }

    /// Takes what is to be stored; storing it is another thread's work. None of a stream that turned out to be another.
    fn store_snapshot(&self, waits: &mut Waits) {
        let fold = self.shared.fold();
        if fold.cursor() == waits.snapshot_cursor || self.core.is_foreign() {
            return;
        }
        self.shared.metrics.ages(&fold, waits.now().wall_ms);
        let taken = self.snapshots.take(&fold);
        drop(fold);
        waits.snapshot_cursor = taken.cursor;
        let (snapshots, metrics) = (self.snapshots.clone(), Arc::clone(&self.shared.metrics));
        waits.storing = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = snapshots.store(&taken) {
                metrics.snapshot_faults.add(1, &[]);
                tracing::warn!(%error, "a snapshot could not be stored");
            }
        }));
    }
}

/// Says that nothing serves any more, however the task ended.
struct Ended(Router);

impl Drop for Ended {
    fn drop(&mut self) {
        for partition in 0..self.0.partitions() {
            self.0.set_serving(partition, Err("the writer has ended".to_owned()));
        }
    }
}

async fn maybe<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

async fn next(records: &mut Option<io::Records>) -> Option<Vec<Result<Record, ReadError>>> {
    match records {
        Some(records) => records.next().await,
        None => pending().await,
    }
}
