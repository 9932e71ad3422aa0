//! The partition's writer: one task that reads the stream, decides in blocks, and answers.
//!
//! The task follows the whole stream into the [`Fold`] and, while it holds the lease, turns what waits into one block at a time.
//! A block's decisions count from the moment that the fold has read the block back and accepted it, ours like anybody's: the ack
//! alone is not enough, since a record before it may have revoked the key. Whatever goes wrong on the way, the fold says what is.
//!
//! Left out: validation, roles and statuses ([`crate::api`]). Invariant: a caller is answered only from a block that the fold
//! accepted; `speculative` equals the fold's budgets whenever no block is in flight.

use std::{
    collections::VecDeque,
    future::pending,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use exchequer_budget::State;
use exchequer_event::{
    seal::{BlockPlace, seal_block},
    v1::KeyRole,
};
use exchequer_stream::{EventStream, Lease, Message, ReadError, Record, RecordStream};
use futures::{StreamExt, future::BoxFuture};
use prost::Message as _;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

mod reading;
mod storing;

use crate::{
    block::{Asked, Attempt, InFlight, Unanswered, attempt, deliver},
    fold::{Fold, Folded, Read},
    lease::LeaseState,
    metrics::Metrics,
    options::Options,
    propose::propose,
    snapshots::Snapshots,
};

/// Commands that one block considers at most.
const BLOCK_COMMANDS: usize = 4096;
/// Wait before a failed read, tip or append is tried again.
const RETRY: Duration = Duration::from_millis(200);
/// Wait before the writer's own work (expiry, settlement) is tried again after a block failed.
const QUIET: Duration = Duration::from_secs(1);
/// Debug builds compare both states after every block up to this many open holds.
#[cfg(debug_assertions)]
const DEBUG_COMPARE_HOLDS: u64 = 256;

/// What the task shares with the RPCs.
#[derive(Debug)]
pub(crate) struct Shared {
    fold: RwLock<Fold>,
    /// The lease under which calls are answered, or why none are.
    pub(crate) status: watch::Sender<Result<Lease, String>>,
    pub(crate) metrics: Metrics,
}

impl Shared {
    pub(crate) fn new(fold: Fold) -> Self {
        let status = watch::Sender::new(Err("starting".to_owned()));
        Self { fold: RwLock::new(fold), status, metrics: Metrics::new() }
    }

    /// The durable state.
    pub(crate) fn fold(&self) -> RwLockReadGuard<'_, Fold> {
        self.fold.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn fold_mut(&self) -> RwLockWriteGuard<'_, Fold> {
        self.fold.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether calls are answered now. Looks at the lease's clock too, in case the process was stopped for a while.
    pub(crate) fn serving(&self) -> Result<(), String> {
        match &*self.status.borrow() {
            Ok(lease) if lease.remaining().is_zero() => Err("the lease has run out".to_owned()),
            Ok(_) => Ok(()),
            Err(reason) => Err(reason.clone()),
        }
    }
}

pub(crate) struct Writer {
    options: Options,
    stream: Arc<dyn EventStream>,
    key: SigningKey,
    shared: Arc<Shared>,
    snapshots: Snapshots,
    queue: mpsc::Receiver<Asked>,
    lease: watch::Receiver<LeaseState>,
    forfeit: mpsc::Sender<u64>,
    stop: CancellationToken,

    speculative: State,
    waiting: VecDeque<Asked>,
    in_flight: Option<InFlight>,
    attempt: Option<BoxFuture<'static, Attempt>>,
    quiet_until: Instant,

    records: Option<RecordStream>,
    opening: Option<BoxFuture<'static, Result<reading::Opened, ReadError>>>,
    /// The newest loss on record when reading began.
    loss: Option<Record>,
    /// Whether the next record is the one the fold ends with, read again to see that this is its stream.
    verify_cursor: bool,
    /// Why reading does not work at the moment.
    read_fault: Option<String>,
    /// Why nothing is read from it: the stream is not the one that was folded.
    foreign: Option<String>,
    probe: Option<BoxFuture<'static, reading::Probed>>,
    /// A lease epoch, and the stream's last sequence when we had just taken it: decide only once that has been read.
    target: Option<(u64, u64)>,

    snapshot_at: Instant,
    snapshot_cursor: u64,
    storing: Option<JoinHandle<()>>,
}

/// The outer ends of a writer's channels.
pub(crate) struct Channels {
    pub(crate) queue: mpsc::Receiver<Asked>,
    pub(crate) lease: watch::Receiver<LeaseState>,
    pub(crate) forfeit: mpsc::Sender<u64>,
    pub(crate) stop: CancellationToken,
}

enum Woken {
    Record(Option<Result<Record, ReadError>>),
    Opened(Result<reading::Opened, ReadError>),
    Probed(reading::Probed),
    Attempted(Attempt),
    Asked(Option<Asked>),
    Look,
}

impl Writer {
    pub(crate) fn new(
        options: Options,
        stream: Arc<dyn EventStream>,
        key: SigningKey,
        shared: Arc<Shared>,
        snapshots: Snapshots,
        channels: Channels,
    ) -> Self {
        let (speculative, cursor) = {
            let fold = shared.fold();
            (fold.budget.clone(), fold.cursor)
        };
        let now = Instant::now();
        Self {
            snapshot_at: now + options.snapshot_interval,
            snapshot_cursor: cursor,
            options,
            stream,
            key,
            shared,
            snapshots,
            queue: channels.queue,
            lease: channels.lease,
            forfeit: channels.forfeit,
            stop: channels.stop,
            speculative,
            waiting: VecDeque::new(),
            in_flight: None,
            attempt: None,
            quiet_until: now,
            records: None,
            opening: None,
            loss: None,
            verify_cursor: false,
            read_fault: Some("the stream is being opened".to_owned()),
            foreign: None,
            probe: None,
            target: None,
            storing: None,
        }
    }

    /// Runs until stopped, and finishes the block in flight then.
    pub(crate) async fn run(mut self) {
        let _ended = Ended(Arc::clone(&self.shared));
        self.open_reader(Duration::ZERO);
        loop {
            // Before the next block is begun: under load there is no other moment without one in flight.
            self.snapshot_if_due();
            let serving = self.serving();
            self.publish(&serving);
            match serving {
                Ok(lease) => {
                    self.drain();
                    if self.in_flight.is_none() && self.has_work() {
                        self.start_block(&lease);
                        continue;
                    }
                }
                Err(reason) => {
                    self.drain();
                    self.refuse_waiting(&reason);
                    if self.stop.is_cancelled() && self.in_flight.is_none() {
                        break;
                    }
                }
            }
            match self.wait().await {
                Woken::Record(record) => self.on_record(record),
                Woken::Opened(Ok(opened)) => {
                    (self.records, self.loss) = (Some(opened.records), opened.loss);
                    self.read_fault = None;
                }
                Woken::Opened(Err(error)) => self.on_read_error(&error),
                Woken::Probed(probed) => self.on_probe(probed),
                Woken::Attempted(outcome) => self.on_attempt(outcome),
                Woken::Asked(Some(asked)) => self.waiting.push_back(asked),
                Woken::Asked(None) => self.stop.cancel(),
                Woken::Look => {}
            }
            self.check_deadline();
        }
        self.store_snapshot();
        if let Some(storing) = self.storing.take() {
            let _ = storing.await;
        }
    }

    async fn wait(&mut self) -> Woken {
        let wake_at = self.wake_at();
        let is_idle = self.in_flight.is_none();
        let may_ask = is_idle && self.waiting.is_empty();
        let stop_pending = !self.stop.is_cancelled();
        tokio::select! {
            record = next(&mut self.records) => Woken::Record(record),
            opened = maybe(&mut self.opening) => {
                self.opening = None;
                Woken::Opened(opened)
            }
            probed = maybe(&mut self.probe) => {
                self.probe = None;
                Woken::Probed(probed)
            }
            outcome = maybe(&mut self.attempt) => {
                self.attempt = None;
                Woken::Attempted(outcome)
            }
            asked = self.queue.recv(), if may_ask && stop_pending => Woken::Asked(asked),
            changed = self.lease.changed() => {
                if changed.is_err() {
                    self.stop.cancel();
                    tokio::time::sleep(RETRY).await;
                }
                Woken::Look
            }
            () = self.stop.cancelled(), if stop_pending => Woken::Look,
            () = sleep_until(wake_at) => Woken::Look,
        }
    }

    /// When there is something to do without being told.
    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let mut at = self.snapshot_at.max(now + RETRY);
        if let Some(in_flight) = &self.in_flight {
            return at.min(in_flight.deadline);
        }
        // Without the lease, what is due waits for its owner.
        if self.shared.status.borrow().is_ok() {
            if let Some(due_ms) = self.speculative.next_expiry_ms() {
                let wait = Duration::from_millis(due_ms.saturating_sub(clock_ms()));
                at = at.min((now + wait).max(self.quiet_until));
            }
            if !self.shared.fold().charges.is_empty() {
                at = at.min(self.quiet_until);
            }
        }
        if let Ok(lease) = self.lease.borrow().held() {
            at = at.min(now + lease.remaining());
        }
        at
    }

    /// The lease under which blocks may be written now, or why none may.
    fn serving(&mut self) -> Result<Lease, String> {
        if self.stop.is_cancelled() {
            return Err("stopping".to_owned());
        }
        if let Some(why) = self.foreign.as_ref().or(self.read_fault.as_ref()) {
            return Err(why.clone());
        }
        let lease = self.lease.borrow().held()?.clone();
        let fold = self.shared.fold();
        let (head, cursor) = (fold.head(), fold.cursor);
        if lease.epoch < head.epoch {
            // A higher epoch has written: either we are the zombie, or the backend's epochs began anew and have to catch up.
            let _ = self.forfeit.try_send(lease.epoch);
            return Err(format!("lease epoch {} is below the partition's {}", lease.epoch, head.epoch));
        }
        let Some((epoch, tip)) = self.target.filter(|(epoch, _)| *epoch == lease.epoch) else {
            if self.probe.is_none() {
                let (stream, subject) = (Arc::clone(&self.stream), fold.subject.clone());
                self.probe = Some(reading::probe(stream, subject, lease.epoch, cursor));
            }
            return Err("the stream's last sequence is being asked for".to_owned());
        };
        if self.verify_cursor {
            return Err("the stream is being compared with what was folded".to_owned());
        }
        if cursor < tip {
            return Err(format!("catching up: {cursor} of {tip} (lease epoch {epoch})"));
        }
        let key = self.key.verifying_key();
        if !fold.acceptor.may_sign(KeyRole::Metering, "", &key) {
            let key = hex::encode(key.as_bytes());
            return Err(format!("the metering key {key} is not enrolled, or was revoked"));
        }
        Ok(lease)
    }

    fn publish(&self, serving: &Result<Lease, String>) {
        self.shared.status.send_if_modified(|status| {
            if *status == *serving {
                return false;
            }
            match (&*status, serving) {
                (Err(_), Ok(lease)) => tracing::info!(epoch = lease.epoch, "metering serves"),
                (Ok(_), Err(reason)) => {
                    self.shared.metrics.lease_lost.add(1, &[]);
                    tracing::warn!(reason, "metering stops serving");
                }
                (Err(was), Err(reason)) if was.split(':').next() != reason.split(':').next() => {
                    tracing::info!(reason, "metering does not serve");
                }
                _ => {}
            }
            status.clone_from(serving);
            true
        });
    }

    fn drain(&mut self) {
        while self.in_flight.is_none() && self.waiting.len() < BLOCK_COMMANDS {
            match self.queue.try_recv() {
                Ok(asked) => self.waiting.push_back(asked),
                Err(_) => break,
            }
        }
        // A caller that went away before its command was decided takes it along.
        self.waiting.retain(|asked| !asked.reply.is_closed());
    }

    fn refuse_waiting(&mut self, reason: &str) {
        for asked in self.waiting.drain(..) {
            let _ = asked.reply.send(Err(Unanswered::Unavailable(reason.to_owned())));
        }
    }

    fn has_work(&self) -> bool {
        if !self.waiting.is_empty() {
            return true;
        }
        let is_due = self.speculative.next_expiry_ms().is_some_and(|at| at <= clock_ms());
        Instant::now() >= self.quiet_until && (is_due || !self.shared.fold().charges.is_empty())
    }

    fn start_block(&mut self, lease: &Lease) {
        let shared = Arc::clone(&self.shared);
        let fold = shared.fold();
        let commands = self.waiting.iter().map(|asked| &asked.command);
        let proposal = propose(&fold, &mut self.speculative, commands, clock_ms());
        let asked: Vec<_> = self.waiting.drain(..proposal.answers.len()).collect();
        let repeats = proposal.answers.iter().flatten().filter(|answer| answer.recorded.is_some()).count();
        shared.metrics.repeated.add(repeats as u64, &[]);
        if proposal.items.is_empty() {
            for (asked, answer) in asked.into_iter().zip(proposal.answers) {
                deliver(asked, answer, None);
            }
            // What waited needs no settlement any more: the holds were closed by their holders.
            drop(fold);
            let mut fold = shared.fold_mut();
            while !fold.charges.is_empty() {
                fold.drop_first_charge();
            }
            return;
        }
        let head = fold.head();
        let place = BlockPlace {
            partition: fold.partition.clone(),
            epoch: lease.epoch,
            index: head.index + 1,
            prev_hash: head.hash,
            now_unix_ms: proposal.now_ms,
            usage_cursor: proposal.usage_cursor,
        };
        let payload: Bytes = seal_block(&self.key, place, proposal.items).encode_to_vec().into();
        shared.metrics.block_decisions.record(proposal.decisions as u64, &[]);
        shared.metrics.block_bytes.record(payload.len() as u64, &[]);
        let mut message = Message::new(&fold.subject, payload.clone()).expecting(fold.subject_last);
        if let Some(first) = asked.first() {
            first.span.in_scope(|| exchequer_telemetry::inject(&mut message.headers));
        }
        let started = Instant::now();
        self.attempt = Some(attempt(Arc::clone(&self.stream), message.clone(), Duration::ZERO));
        self.in_flight = Some(InFlight {
            payload,
            message,
            asked,
            answers: proposal.answers,
            started,
            deadline: started + self.options.append_timeout,
            landed: None,
            attempted: false,
            overtaken_at: None,
        });
    }

    fn on_attempt(&mut self, outcome: Attempt) {
        let Some(in_flight) = &mut self.in_flight else { return };
        in_flight.attempted = true;
        match outcome {
            Attempt::Acked => {}
            Attempt::Overtaken { last } => {
                in_flight.overtaken_at = Some(last);
                self.compare_subject(last);
            }
            Attempt::Unknown(why) => {
                tracing::warn!(why, "outcome of a block unknown; trying the same block again");
                self.attempt = Some(attempt(Arc::clone(&self.stream), in_flight.message.clone(), RETRY));
            }
            Attempt::Impossible(why) => {
                tracing::error!(why, "a block can't be appended");
                self.abandon(&why);
            }
        }
        self.conclude();
    }

    /// Answers or takes back the block in flight, if it is known what became of it.
    fn conclude(&mut self) {
        let Some(in_flight) = &self.in_flight else { return };
        let cursor = self.shared.fold().cursor;
        match (in_flight.landed, in_flight.overtaken_at) {
            (Some(stream_seq), _) if in_flight.attempted => self.resolve(stream_seq),
            (None, Some(at)) if cursor >= at => self.decide_again(),
            _ => {}
        }
    }

    fn resolve(&mut self, stream_seq: u64) {
        self.attempt = None;
        if let Some(in_flight) = self.in_flight.take() {
            self.shared.metrics.append_seconds.record(in_flight.started.elapsed().as_secs_f64(), &[]);
            in_flight.answer(stream_seq);
            #[cfg(debug_assertions)]
            {
                let fold = self.shared.fold();
                if fold.budget.open_holds() <= DEBUG_COMPARE_HOLDS {
                    assert!(self.speculative == fold.budget, "what was decided is what was recorded");
                }
            }
        }
    }

    /// Another writer was first: the undecided commands go back to the front of the line.
    fn decide_again(&mut self) {
        self.attempt = None;
        self.speculative = self.shared.fold().budget.clone();
        if let Some(in_flight) = self.in_flight.take() {
            self.shared.metrics.fenced.add(1, &[]);
            tracing::warn!(commands = in_flight.asked.len(), "another block was first; deciding again");
            for asked in in_flight.asked.into_iter().rev() {
                self.waiting.push_front(asked);
            }
        }
    }

    /// Gives up on the block in flight. It may yet get into the stream; then the fold will say so.
    fn abandon(&mut self, why: &str) {
        self.attempt = None;
        self.quiet_until = Instant::now() + QUIET;
        self.speculative = self.shared.fold().budget.clone();
        if let Some(in_flight) = self.in_flight.take() {
            self.shared.metrics.abandoned.add(in_flight.asked.len() as u64, &[]);
            in_flight.fail(why);
        }
    }

    fn check_deadline(&mut self) {
        let Some(in_flight) = &self.in_flight else { return };
        if Instant::now() >= in_flight.deadline {
            match in_flight.landed {
                Some(stream_seq) => self.resolve(stream_seq),
                None => {
                    self.abandon("the block's outcome is unknown; ask again with the same idempotency key");
                }
            }
        }
    }

    fn on_record(&mut self, record: Option<Result<Record, ReadError>>) {
        let record = match record {
            Some(Ok(record)) => record,
            Some(Err(error)) => return self.on_read_error(&error),
            None => return self.on_read_error(&ReadError::Unavailable("the reader ended".to_owned())),
        };
        let shared = Arc::clone(&self.shared);
        if std::mem::take(&mut self.verify_cursor) {
            return self.verify_cursor(&record);
        }
        let span = if record.headers.is_empty() {
            tracing::Span::none()
        } else {
            let span = tracing::info_span!("fold", subject = record.subject, stream_seq = record.seq);
            exchequer_telemetry::continue_from(&span, &record.headers);
            span
        };
        let _entered = span.enter();
        if let Some(landed) = self.in_flight.as_ref().and_then(|block| block.landed)
            && record.subject == shared.fold().subject
        {
            // Ours is part of what this record follows: it stands, whatever becomes of its ack.
            self.resolve(landed);
        }
        let read = Read { seq: record.seq, subject: &record.subject, payload: &record.payload };
        let mut fold = shared.fold_mut();
        let folded = fold.fold(read);
        let lag = fold.cursor - fold.usage_cursor();
        drop(fold);
        shared.metrics.usage_lag.record(lag, &[]);
        let is_ours = self.in_flight.as_ref().is_some_and(|block| block.payload == record.payload);
        match folded {
            Folded::Other => {}
            Folded::Block { runs, now_ms, undecodable } => {
                for event in runs.iter().flat_map(|run| &run.decisions).flat_map(|decision| &decision.events)
                {
                    shared.metrics.decided(event);
                }
                shared.metrics.open_holds.record(shared.fold().budget.open_holds(), &[]);
                if undecodable > 0 {
                    shared.metrics.undecodable_runs.add(undecodable as u64, &[]);
                    tracing::error!(
                        stream_seq = record.seq,
                        undecodable,
                        "an accepted block has undecodable runs"
                    );
                }
                match &mut self.in_flight {
                    Some(in_flight) if is_ours => in_flight.landed = Some(record.seq),
                    Some(_) => self.decide_again(),
                    None => runs.iter().for_each(|run| self.speculative.record_run(run, now_ms)),
                }
            }
            Folded::VoidBlock { reason } => {
                tracing::warn!(stream_seq = record.seq, reason, is_ours, "a block was not accepted");
                if is_ours {
                    shared.metrics.fenced.add(1, &[]);
                    self.abandon(&format!("the block was not accepted: {reason}"));
                }
            }
        }
        self.conclude();
    }
}

/// Says that nothing serves any more, however the task ended.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.status.send_replace(Err("the writer has ended".to_owned()));
    }
}

async fn maybe<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

async fn next(records: &mut Option<RecordStream>) -> Option<Result<Record, ReadError>> {
    match records {
        Some(records) => records.next().await,
        None => pending().await,
    }
}

fn clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
