//! The spool: the agent's own durable record of what it did, kept until the ledger's receipt.
//!
//! One journal, one epoch: an event's seq is its journal sequence, its bytes are encoded once, here, and chained to the event before.
//! [`Spool::record`] returns when the event is on disk; concurrent records share a sync. An execution that was admitted and has no
//! outcome when the spool is opened was lost with the agent's last life, and is reported so; those whose admission was removed from the
//! journal are listed beside it (`unfinished.rs`).
//!
//! An event's time is what the clock said and decides nothing: the order is that of seq, and a clock that jumps, in either direction,
//! makes times that fall. Making them rise would keep the wrong time of a jump for the rest of the epoch.
//!
//! When the disk is full, new executions are refused; blocks for the outcomes of as many as may run are allocated ahead.
//!
//! Payloads of tenants that have a payload key are encrypted before anything is written: the disk, the stream and the log get the same bytes.
//!
//! Left out: signing and publishing ([`publish`](crate::publish)). Invariant: what was recorded is kept until a receipt covers it;
//! of what it covers, whatever the outcome of an open execution needs is kept until that is covered too.

mod epoch;
mod error;
mod inspect;
mod replay;
mod status;
mod unfinished;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use exchequer_event::{
    digest::Digest,
    name::{self, MAX_EVENT_BYTES},
    payload::{Once, PayloadKey},
    seal,
    v1::{self, event::Kind},
};
use exchequer_stream::{
    AppendError,
    journal::{self, Journal},
};
use prost::{Message, bytes::Bytes};
use tokio::sync::watch;

use self::{
    error::PruneError,
    replay::Replayed,
    unfinished::{Open, Snapshot, Unfinished},
};
pub use self::{
    error::{ConfirmError, RecordError, SpoolError},
    inspect::{Inspection, inspect},
};

/// Room beyond the configured limit for denials and the agent's own events. Denials may use half of it.
const HEADROOM_BYTES: u64 = 16 << 20;
/// Room beyond that for each execution that may run at one time: its admission and its outcome, so that what passed the limit can
/// record both.
const EXECUTION_BYTES: u64 = 2 * MAX_EVENT_BYTES as u64;
/// Allocated ahead on the disk for the outcome of each execution that may run at one time, its frame in the journal included.
const OUTCOME_BYTES: u64 = MAX_EVENT_BYTES as u64 + 64;
const SEGMENT_BYTES: u64 = 4 << 20;
/// Events whose trace is remembered until they are published; older ones go without.
const MAX_TRACES: usize = 1024;

/// An execution of an earlier life of the agent that has no outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostExecution {
    /// The execution.
    pub execution_id: String,
    /// Its tenant.
    pub tenant: String,
    /// The skill that it ran; empty for none.
    pub skill: String,
    /// The hold that paid for it.
    pub hold_id: String,
    /// What was reserved for it, if that is a lease.
    pub reserved: Vec<v1::MeterAmount>,
}

/// An event to record: what the spool adds is identity, place and time.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// The tenant; empty for the agent's own.
    pub tenant: String,
    /// The execution; empty for the agent's own.
    pub execution_id: String,
    /// The skill that the execution runs; empty for none.
    pub skill: String,
    /// What happened.
    pub kind: Kind,
}

impl NewEvent {
    /// An event of the agent itself.
    pub fn own(kind: Kind) -> Self {
        Self { tenant: String::new(), execution_id: String::new(), skill: String::new(), kind }
    }
}

/// An execution whose outcome is not known to be on disk.
#[derive(Debug)]
struct Running {
    /// Where it was admitted.
    admitted: u64,
    /// Where its outcome was written, if it was.
    finished: Option<u64>,
    /// What an outcome needs.
    execution: LostExecution,
}

#[derive(Debug)]
struct Confirmed {
    seq: u64,
    /// By execution.
    running: BTreeMap<String, Running>,
}

/// What a running spool is asked beside its events.
#[derive(Debug, Default)]
struct Troubles {
    /// Why publishing pauses.
    publishing: Option<String>,
    /// Why the local audit log can't be written.
    audit_log: Option<String>,
    /// Why what receipts cover was not removed.
    pruning: Option<String>,
}

/// Payload keys by tenant.
pub type PayloadKeys = BTreeMap<String, PayloadKey>;

/// Headers of a stream message: name and value.
pub type Headers = Vec<(String, String)>;

/// The open spool.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    agent_id: String,
    epoch: u64,
    limit: u64,
    payload_keys: PayloadKeys,
    journal: Journal,
    /// The last event that was handed to the journal: the link of the next. Held while an event is encoded and queued.
    head: tokio::sync::Mutex<(u64, Digest)>,
    confirmed: Mutex<Confirmed>,
    /// The list beside the journal; held while what a receipt covers is removed.
    unfinished: Mutex<Unfinished>,
    /// What a reader of this spool still has to read: it is not removed before, though receipts cover it.
    wanted_from: watch::Sender<u64>,
    troubles: Mutex<Troubles>,
    clock: fn() -> u64,
    /// Why nothing of this spool will be accepted any more, if so.
    condemned: OnceLock<String>,
    /// Headers that continue the trace in which an event was recorded, by seq, ascending.
    traces: Mutex<VecDeque<(u64, Headers)>>,
}

impl Spool {
    /// Opens the spool in `dir`, or begins a new one with an epoch above `min_epoch`, the last that the ledger holds. At `limit` bytes executions are refused;
    /// beyond it there is room for as many as may be running then. Blocks.
    pub fn open(
        dir: &Path,
        agent_id: &str,
        limit: u64,
        max_concurrent: usize,
        min_epoch: u64,
    ) -> Result<(Self, Vec<LostExecution>), SpoolError> {
        let epoch = epoch::read_or_create_epoch(dir, min_epoch)?;
        if epoch < min_epoch {
            return Err(SpoolError::Ended { epoch, ledger: min_epoch });
        }
        let options = journal::Options {
            segment_bytes: SEGMENT_BYTES,
            max_bytes: limit.saturating_add(HEADROOM_BYTES + EXECUTION_BYTES * max_concurrent as u64),
            reserve_bytes: OUTCOME_BYTES * max_concurrent as u64,
            ..journal::Options::default()
        };
        let listed = unfinished::newest(dir)?;
        let mut replayed = Replayed::new(listed.as_ref());
        let journal = Journal::open_with(&dir.join("journal"), options, |seq, bytes| {
            replayed.take(agent_id, epoch, seq, bytes).map(drop)
        })?;
        Snapshot::check(listed.as_ref(), agent_id, epoch, journal.first(), journal.tip())?;
        let unfinished = Unfinished::open(dir, max_concurrent, listed.as_ref())?;
        let running = replayed.open.iter().map(|(id, (seq, execution))| {
            let running = Running { admitted: *seq, finished: None, execution: execution.clone() };
            (id.clone(), running)
        });
        let confirmed = Confirmed { seq: journal.first() - 1, running: running.collect() };
        let spool = Self {
            dir: dir.to_owned(),
            agent_id: agent_id.to_owned(),
            epoch,
            limit,
            payload_keys: PayloadKeys::new(),
            journal,
            head: tokio::sync::Mutex::new(replayed.head),
            confirmed: Mutex::new(confirmed),
            unfinished: Mutex::new(unfinished),
            wanted_from: watch::Sender::new(u64::MAX),
            troubles: Mutex::default(),
            clock: unix_ms,
            condemned: OnceLock::new(),
            traces: Mutex::default(),
        };
        Ok((spool, replayed.open.into_values().map(|(_, lost)| lost).collect()))
    }

    /// The same, encrypting the payloads of these tenants from here on.
    pub fn with_payload_keys(self, payload_keys: PayloadKeys) -> Self {
        Self { payload_keys, ..self }
    }

    /// The agent.
    pub fn agent_id(&self) -> &str {
        &self.agent_id
    }

    /// The spool's epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Refuses if new executions have to wait for receipts.
    pub fn check_room(&self) -> Result<(), RecordError> {
        self.check_below(self.limit)
    }

    /// Refuses if not even denials can be recorded any more: a caller that is refused again and again must not use up the room
    /// that outcomes need.
    pub fn check_room_for_denial(&self) -> Result<(), RecordError> {
        self.check_below(self.limit.saturating_add(HEADROOM_BYTES / 2))
    }

    fn check_below(&self, limit: u64) -> Result<(), RecordError> {
        if let Some(reason) = self.condemned.get() {
            return Err(RecordError::Condemned(reason.clone()));
        }
        if let Some(failure) = self.journal.failure() {
            return Err(RecordError::Journal(AppendError::Unavailable(failure)));
        }
        let kept = self.journal.size_bytes();
        if kept >= limit {
            return Err(RecordError::Full { kept, limit });
        }
        // What comes after an admission has its room already.
        Ok(self.journal.check_room(MAX_EVENT_BYTES)?)
    }

    /// Records an event; returns its position once it is on disk.
    pub async fn record(&self, event: NewEvent) -> Result<v1::AgentHead, RecordError> {
        self.record_timed(event).await.map(|(position, _)| position)
    }

    /// Records an event; returns its position and its time (milliseconds since the Unix epoch) once it is on disk.
    pub async fn record_timed(&self, event: NewEvent) -> Result<(v1::AgentHead, u64), RecordError> {
        let NewEvent { tenant, execution_id, skill, kind } = event;
        let mut head = self.head.lock().await;
        let admitted = match &kind {
            Kind::ExecutionAdmitted(admitted) => Some(LostExecution {
                execution_id: execution_id.clone(),
                tenant: tenant.clone(),
                skill: skill.clone(),
                hold_id: admitted.hold_id.clone(),
                reserved: admitted.reserved.clone(),
            }),
            _ => None,
        };
        let is_outcome = matches!(kind, Kind::ExecutionFinished(_));
        let seq = head.0 + 1;
        let time_unix_ms = (self.clock)();
        let event = v1::Event {
            agent_id: self.agent_id.clone(),
            epoch: self.epoch,
            seq,
            prev_hash: head.1.into(),
            time_unix_ms,
            tenant,
            execution_id: execution_id.clone(),
            skill,
            confidential: None,
            kind: Some(kind),
        };
        let event = match self.payload_keys.get(&event.tenant) {
            Some(key) => key.conceal(event, &once().map_err(RecordError::Randomness)?),
            None => event,
        };
        let bytes = Bytes::from(event.encode_to_vec());
        if bytes.len() > MAX_EVENT_BYTES {
            return Err(RecordError::TooLarge(bytes.len()));
        }
        let hash = seal::event_digest(&bytes);
        let queued = if is_outcome {
            self.journal.enqueue_reserved(bytes).await
        } else {
            self.journal.enqueue(bytes).await
        };
        let (stored, ack) = queued?;
        debug_assert_eq!(stored, seq, "the journal numbers as the spool does");
        *head = (seq, hash);
        self.remember_trace(seq);
        if let Some(execution) = admitted {
            let running = Running { admitted: seq, finished: None, execution };
            self.confirmed().running.insert(execution_id.clone(), running);
        } else if is_outcome && let Some(running) = self.confirmed().running.get_mut(&execution_id) {
            running.finished = Some(seq);
        }
        drop(head);
        // What is refused before this was not queued, not even in part.
        ack.await.map_err(RecordError::InDoubt)?;
        if is_outcome {
            self.confirmed().running.remove(&execution_id);
        }
        Ok((self.position(seq, hash), time_unix_ms))
    }

    fn position(&self, seq: u64, hash: Digest) -> v1::AgentHead {
        v1::AgentHead { agent_id: self.agent_id.clone(), epoch: self.epoch, seq, hash: hash.into() }
    }

    fn remember_trace(&self, seq: u64) {
        let mut headers = Vec::new();
        exchequer_telemetry::inject(&mut headers);
        if headers.is_empty() {
            return;
        }
        let mut traces = lock(&self.traces);
        if traces.len() == MAX_TRACES {
            traces.pop_front();
        }
        traces.push_back((seq, headers));
    }

    /// Headers that continue the trace of the first traced event up to `last`, which is then forgotten with those before it.
    pub fn take_trace(&self, last: u64) -> Headers {
        let mut traces = lock(&self.traces);
        let published = traces.partition_point(|(seq, _)| *seq <= last);
        traces.drain(..published).next().map(|(_, headers)| headers).unwrap_or_default()
    }

    /// A reader of the recorded events, which are the journal's records.
    pub fn reader(&self) -> journal::Reader {
        self.journal.reader()
    }

    /// The first seq that is kept.
    pub fn first(&self) -> u64 {
        self.journal.first()
    }

    /// The last seq that is on disk.
    pub fn tip(&self) -> u64 {
        self.journal.tip()
    }

    /// The highest seq that a receipt covers.
    pub fn confirmed_seq(&self) -> u64 {
        self.confirmed().seq
    }

    /// A receipt covers everything up to the event at `seq` with this digest: what nobody needs any more is removed. If that is not
    /// this spool's event, nothing is removed, and the spool takes no executions any more. A removal that fails is tried again with the
    /// next receipt. Blocks.
    pub fn confirm(&self, seq: u64, hash: &[u8]) -> Result<(), ConfirmError> {
        if seq <= self.confirmed_seq() {
            // What could not be removed the last time.
            self.remove_covered();
            return Ok(());
        }
        let recorded =
            if seq <= self.tip() { self.journal.reader().read(seq, 1)?.into_iter().next() } else { None };
        if recorded.is_none_or(|entry| seal::event_digest(&entry.body).0 != *hash) {
            return Err(self.condemn(format!(
                "the log's event {seq} of epoch {} is not the one recorded here",
                self.epoch
            )));
        }
        {
            let mut confirmed = self.confirmed();
            confirmed.seq = confirmed.seq.max(seq);
        }
        self.remove_covered();
        Ok(())
    }

    /// Removes what receipts cover. What can't be removed stays until the next receipt, and the status says why; nothing else waits for
    /// it. Blocks.
    fn remove_covered(&self) {
        let trouble = self.prune().err().map(|error| error.to_string());
        if let Some(error) = &trouble {
            tracing::warn!(error, "what receipts cover was not removed");
        }
        lock(&self.troubles).pruning = trouble;
    }

    /// Removes what receipts cover, once it is written down which of its executions are open. Blocks.
    fn prune(&self) -> Result<(), PruneError> {
        let mut unfinished = lock(&self.unfinished);
        let keep_from = (self.confirmed_seq() + 1).min(*self.wanted_from.borrow());
        let first = self.journal.first_after_pruning(keep_from);
        if first <= self.journal.first() {
            return Ok(());
        }
        let open = {
            let mut confirmed = self.confirmed();
            // Whoever recorded it may not have got so far, or be gone; one that is removed with the rest must not be missed at the
            // next start.
            let tip = self.tip();
            confirmed.running.retain(|_, of| of.finished.is_none_or(|seq| seq > tip));
            let open = confirmed.running.values().filter(|of| of.admitted < first);
            open.map(|of| Open::new(of.admitted, &of.execution)).collect()
        };
        let (agent_id, epoch) = (self.agent_id.clone(), self.epoch);
        unfinished
            .write(Snapshot { agent_id, epoch, first, open, ..Snapshot::default() })
            .map_err(PruneError::Unfinished)?;
        Ok(self.journal.prune_before(first)?)
    }

    /// Where it is.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Keeps everything from this seq on for a reader, whatever receipts say; `u64::MAX` wants nothing. Blocks where that makes room.
    pub(crate) fn want_from(&self, seq: u64) {
        self.wanted_from.send_replace(seq);
        self.remove_covered();
    }

    /// Waits until no reader needs the event at `seq` any more.
    pub(crate) async fn no_longer_wanted(&self, seq: u64) {
        // An error says that the spool is gone, which this reference to it rules out.
        let _ = self.wanted_from.subscribe().wait_for(|from| *from > seq).await;
    }

    /// Says why publishing pauses, or that it goes on.
    pub(crate) fn note_publishing(&self, trouble: Option<String>) {
        lock(&self.troubles).publishing = trouble;
    }

    /// Says why the local audit log can't be written, or that it can.
    pub(crate) fn note_audit_log(&self, trouble: Option<String>) {
        lock(&self.troubles).audit_log = trouble;
    }

    /// Why what receipts cover was not removed, if so.
    pub(crate) fn pruning_trouble(&self) -> Option<String> {
        lock(&self.troubles).pruning.clone()
    }

    /// Why the local audit log can't be written, if so.
    pub(crate) fn audit_log_trouble(&self) -> Option<String> {
        lock(&self.troubles).audit_log.clone()
    }

    /// The ledger holds a later epoch of this agent, or another history of this one: no executions from here on.
    pub fn condemn(&self, reason: String) -> ConfirmError {
        tracing::error!(reason, "this spool's events can't be published; executions are refused");
        ConfirmError::Condemned(self.condemned.get_or_init(|| reason).clone())
    }

    /// How often the disk was synced for events since it was opened.
    pub fn syncs(&self) -> u64 {
        self.journal.syncs()
    }

    /// Bytes that are kept.
    pub fn kept_bytes(&self) -> u64 {
        self.journal.size_bytes()
    }

    fn confirmed(&self) -> MutexGuard<'_, Confirmed> {
        lock(&self.confirmed)
    }
}

// No code panics while it holds one of these locks, so poisoning carries no news.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn once() -> Result<Once, getrandom::Error> {
    let mut once = Once { nonce: Default::default(), salt: Default::default() };
    getrandom::fill(&mut once.nonce)?;
    getrandom::fill(&mut once.salt)?;
    Ok(once)
}

/// The wall clock, in milliseconds since the Unix epoch.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Whether a name can be an agent's.
pub(crate) fn is_agent_id(id: &str) -> bool {
    name::is_holder(id)
}
