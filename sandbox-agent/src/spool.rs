//! The spool: the agent's own durable record of what it did, kept until the ledger's receipt.
//!
//! One journal, one epoch: an event's seq is its journal sequence, its bytes are encoded once, here, and chained to the event before.
//! [`Spool::record`] returns when the event is on disk; concurrent records share a sync. An execution that was admitted and has no
//! outcome when the spool is opened was lost with the agent's last life, and is reported so.
//!
//! Payloads of tenants that have a payload key are encrypted before anything is written: the disk, the stream and the log get the same bytes.
//!
//! Left out: signing and publishing ([`publish`](crate::publish)). Invariant: what was recorded is kept until a receipt covers it,
//! and an admission until its outcome is covered too.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    io::Write,
    path::Path,
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
    journal::{self, Journal, JournalError},
};
use prost::{Message, bytes::Bytes};

/// Room beyond the configured limit for denials and the agent's own events. Denials may use half of it.
const HEADROOM_BYTES: u64 = 16 << 20;
/// Room beyond that for each execution that may run at one time: its admission and its outcome, so that what passed the limit can
/// record both.
const EXECUTION_BYTES: u64 = 2 * MAX_EVENT_BYTES as u64;
const SEGMENT_BYTES: u64 = 4 << 20;
/// Events whose trace is remembered until they are published; older ones go without.
const MAX_TRACES: usize = 1024;
/// File beside the journal that holds the epoch, in decimal.
const EPOCH_FILE: &str = "epoch";

/// Why the spool can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The journal.
    #[error("spool: {0}")]
    Journal(#[from] JournalError),
    /// The epoch's file, or the directory.
    #[error("spool: cannot {action}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The ledger has events of this agent from a later spool: nothing of this one would be accepted any more.
    #[error(
        "spool: it is epoch {epoch}, and the ledger holds epoch {ledger} of this agent: it is an old copy, or another agent has \
         the same id. Move the directory away to begin a new epoch"
    )]
    Ended {
        /// This spool's.
        epoch: u64,
        /// The ledger's.
        ledger: u64,
    },
    /// The epoch's file does not hold an epoch.
    #[error("spool: the epoch file does not hold a number above 0")]
    Epoch,
}

/// Why an event can't be recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// New executions are refused until receipts make room.
    #[error("the spool holds {kept} of at most {limit} bytes that the ledger has not confirmed")]
    Full {
        /// Bytes kept.
        kept: u64,
        /// The limit.
        limit: u64,
    },
    /// The log holds another history of this epoch: what would be recorded here would never be accepted.
    #[error("the spool can't be published: {0}")]
    Condemned(String),
    /// An event is too large for a record.
    #[error("an event of {0} bytes is above the limit of {MAX_EVENT_BYTES}")]
    TooLarge(usize),
    /// The system gives no randomness to encrypt with.
    #[error("a payload can't be encrypted: {0}")]
    Randomness(getrandom::Error),
    /// The journal refused.
    #[error("the spool can't record: {0}")]
    Journal(#[from] AppendError),
}

/// Why a receipt confirms nothing.
#[derive(Debug, thiserror::Error)]
pub enum ConfirmError {
    /// It is about other events than those recorded here.
    #[error("{0}")]
    Condemned(String),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

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

#[derive(Debug)]
struct Confirmed {
    seq: u64,
    /// Admissions without a recorded outcome, by execution, with their seq.
    open: BTreeMap<String, u64>,
}

/// Payload keys by tenant.
pub type PayloadKeys = BTreeMap<String, PayloadKey>;

/// Headers of a stream message: name and value.
pub type Headers = Vec<(String, String)>;

/// The open spool.
#[derive(Debug)]
pub struct Spool {
    agent_id: String,
    epoch: u64,
    limit: u64,
    payload_keys: PayloadKeys,
    journal: Journal,
    /// The last event that was handed to the journal: the link of the next. Held while an event is encoded and queued.
    head: tokio::sync::Mutex<(u64, Digest)>,
    confirmed: Mutex<Confirmed>,
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
        let epoch = read_or_create_epoch(dir, min_epoch)?;
        if epoch < min_epoch {
            return Err(SpoolError::Ended { epoch, ledger: min_epoch });
        }
        let options = journal::Options {
            segment_bytes: SEGMENT_BYTES,
            max_bytes: limit.saturating_add(HEADROOM_BYTES + EXECUTION_BYTES * max_concurrent as u64),
            ..journal::Options::default()
        };
        let mut head = (0, Digest::ZERO);
        let mut open: BTreeMap<String, (u64, LostExecution)> = BTreeMap::new();
        let journal = Journal::open_with(&dir.join("journal"), options, |seq, bytes| {
            let event = v1::Event::decode(bytes).map_err(|e| e.to_string())?;
            if (event.agent_id.as_str(), event.epoch, event.seq) != (agent_id, epoch, seq) {
                return Err(format!("the event is {} {}/{}", event.agent_id, event.epoch, event.seq));
            }
            if head.0 > 0 && event.prev_hash != head.1.0.as_slice() {
                return Err("prev_hash is not the digest of the event before".into());
            }
            head = (seq, seal::event_digest(bytes));
            match event.kind {
                Some(Kind::ExecutionAdmitted(admitted)) => {
                    let lost = LostExecution {
                        execution_id: event.execution_id.clone(),
                        tenant: event.tenant,
                        skill: event.skill,
                        hold_id: admitted.hold_id,
                        reserved: admitted.reserved,
                    };
                    open.insert(event.execution_id, (seq, lost));
                }
                Some(Kind::ExecutionFinished(_)) => drop(open.remove(&event.execution_id)),
                _ => {}
            }
            Ok(())
        })?;
        let seq = journal.first() - 1;
        let confirmed =
            Confirmed { seq, open: open.iter().map(|(id, (seq, _))| (id.clone(), *seq)).collect() };
        let spool = Self {
            agent_id: agent_id.to_owned(),
            epoch,
            limit,
            payload_keys: PayloadKeys::new(),
            journal,
            head: tokio::sync::Mutex::new(head),
            confirmed: Mutex::new(confirmed),
            condemned: OnceLock::new(),
            traces: Mutex::default(),
        };
        Ok((spool, open.into_values().map(|(_, lost)| lost).collect()))
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
        Ok(())
    }

    /// Records an event; returns its position once it is on disk.
    pub async fn record(&self, event: NewEvent) -> Result<v1::AgentHead, RecordError> {
        self.record_timed(event).await.map(|(position, _)| position)
    }

    /// Records an event; returns its position and its time (milliseconds since the Unix epoch) once it is on disk.
    pub async fn record_timed(&self, event: NewEvent) -> Result<(v1::AgentHead, u64), RecordError> {
        let NewEvent { tenant, execution_id, skill, kind } = event;
        let mut head = self.head.lock().await;
        let is_admission = matches!(kind, Kind::ExecutionAdmitted(_));
        let is_outcome = matches!(kind, Kind::ExecutionFinished(_));
        let seq = head.0 + 1;
        let time_unix_ms = unix_ms();
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
        let (stored, ack) = self.journal.enqueue(bytes).await?;
        debug_assert_eq!(stored, seq, "the journal numbers as the spool does");
        *head = (seq, hash);
        self.remember_trace(seq);
        if is_admission {
            self.confirmed().open.insert(execution_id.clone(), seq);
        }
        drop(head);
        ack.await?;
        if is_outcome {
            self.confirmed().open.remove(&execution_id);
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
        let mut traces = self.traces.lock().unwrap_or_else(PoisonError::into_inner);
        if traces.len() == MAX_TRACES {
            traces.pop_front();
        }
        traces.push_back((seq, headers));
    }

    /// Headers that continue the trace of the first traced event up to `last`, which is then forgotten with those before it.
    pub fn take_trace(&self, last: u64) -> Headers {
        let mut traces = self.traces.lock().unwrap_or_else(PoisonError::into_inner);
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
    /// this spool's event, nothing is removed, and the spool takes no executions any more. Blocks.
    pub fn confirm(&self, seq: u64, hash: &[u8]) -> Result<(), ConfirmError> {
        if seq <= self.confirmed_seq() {
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
        let mut confirmed = self.confirmed();
        confirmed.seq = confirmed.seq.max(seq);
        let keep_from = confirmed.open.values().copied().min().unwrap_or(u64::MAX).min(confirmed.seq + 1);
        drop(confirmed);
        Ok(self.journal.prune_before(keep_from)?)
    }

    /// The ledger holds a later epoch of this agent, or another history of this one: no executions from here on.
    pub fn condemn(&self, reason: String) -> ConfirmError {
        tracing::error!(reason, "this spool's events can't be published; executions are refused");
        ConfirmError::Condemned(self.condemned.get_or_init(|| reason).clone())
    }

    /// Bytes that are kept.
    pub fn kept_bytes(&self) -> u64 {
        self.journal.size_bytes()
    }

    /// The state as it is reported.
    pub async fn status(&self) -> v1::GetSpoolStatusResponse {
        let (seq, hash) = *self.head.lock().await;
        let confirmed = self.confirmed_seq();
        v1::GetSpoolStatusResponse {
            written: Some(self.position(seq, hash)),
            confirmed: Some(v1::AgentHead {
                agent_id: self.agent_id.clone(),
                epoch: self.epoch,
                seq: confirmed,
                ..v1::AgentHead::default()
            }),
            kept_events: (self.tip() + 1).saturating_sub(self.first()),
            kept_bytes: self.kept_bytes(),
            limit_bytes: self.limit,
        }
    }

    // No code panics while it holds this lock, so poisoning carries no news.
    fn confirmed(&self) -> MutexGuard<'_, Confirmed> {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

/// The spool's epoch; for a new spool one that is above the ledger's last and, by the clock, above any that was lost unseen.
fn read_or_create_epoch(dir: &Path, min_epoch: u64) -> Result<u64, SpoolError> {
    let io = |action| move |source| SpoolError::Io { action, source };
    fs::create_dir_all(dir).map_err(io("create the directory"))?;
    let path = dir.join(EPOCH_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().ok().filter(|epoch| *epoch > 0).ok_or(SpoolError::Epoch),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let epoch = (unix_ms() / 1000).max(min_epoch.saturating_add(1));
            let staged = dir.join("epoch.new");
            let mut file = fs::File::create(&staged).map_err(io("create the epoch file"))?;
            writeln!(file, "{epoch}").and_then(|()| file.sync_all()).map_err(io("write the epoch file"))?;
            fs::rename(&staged, &path).map_err(io("place the epoch file"))?;
            fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("sync the directory"))?;
            Ok(epoch)
        }
        Err(error) => Err(io("read the epoch file")(error)),
    }
}

/// Whether a name can be an agent's.
pub(crate) fn is_agent_id(id: &str) -> bool {
    name::is_holder(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped() -> NewEvent {
        let kind = Kind::AgentStopped(v1::AgentStopped { reason: "test".into() });
        NewEvent::own(kind)
    }

    fn admitted(id: &str) -> NewEvent {
        let kind = Kind::ExecutionAdmitted(v1::ExecutionAdmitted {
            hold_id: format!("hold-{id}"),
            ..Default::default()
        });
        NewEvent { tenant: "acme".into(), execution_id: id.into(), skill: "sum-up".into(), kind }
    }

    fn finished(id: &str) -> NewEvent {
        NewEvent { kind: Kind::ExecutionFinished(v1::ExecutionFinished::default()), ..admitted(id) }
    }

    async fn confirm_all(spool: &Spool) {
        let (seq, hash) = *spool.head.lock().await;
        spool.confirm(seq, &hash.0).unwrap();
    }

    fn open(dir: &Path) -> (Spool, Vec<LostExecution>) {
        Spool::open(dir, "a", 1 << 20, 8, 0).unwrap()
    }

    #[tokio::test]
    async fn events_are_chained_across_reopening_and_an_unfinished_execution_is_reported_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, lost) = open(dir.path());
        assert_eq!(lost, []);
        for event in [admitted("x"), admitted("y"), finished("x")] {
            spool.record(event).await.unwrap();
        }
        let epoch = spool.epoch();
        drop(spool);
        let (spool, lost) = open(dir.path());
        assert_eq!(spool.epoch(), epoch);
        let lost: Vec<_> = lost.iter().map(|l| (l.hold_id.as_str(), l.skill.as_str())).collect();
        assert_eq!(lost, [("hold-y", "sum-up")]);
        assert_eq!(spool.record(stopped()).await.unwrap().seq, 4);
        let entries = spool.reader().read(1, usize::MAX).unwrap();
        let mut prev = Digest::ZERO;
        for entry in entries {
            assert_eq!(v1::Event::decode(entry.body.clone()).unwrap().prev_hash, prev.0.as_slice());
            prev = seal::event_digest(&entry.body);
        }
    }

    #[tokio::test]
    async fn a_full_spool_refuses_admissions_and_still_takes_outcomes_and_a_receipt_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, _) = Spool::open(dir.path(), "a", 5 << 20, 8, 0).unwrap();
        let large = || NewEvent {
            kind: Kind::AgentStopped(v1::AgentStopped { reason: "x".repeat(30 << 10) }),
            ..stopped()
        };
        while spool.check_room().is_ok() {
            spool.record(large()).await.unwrap();
        }
        assert!(matches!(spool.check_room(), Err(RecordError::Full { .. })));
        spool.record(finished("x")).await.unwrap();
        confirm_all(&spool).await;
        spool.check_room().unwrap();
        assert!(spool.first() > 1);
    }

    #[tokio::test]
    async fn an_admission_is_kept_while_its_outcome_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, _) = open(dir.path());
        spool.record(admitted("x")).await.unwrap();
        let large = "x".repeat(30 << 10);
        for _ in 0..200 {
            let kind = Kind::AgentStopped(v1::AgentStopped { reason: large.clone() });
            spool.record(NewEvent { kind, ..stopped() }).await.unwrap();
        }
        confirm_all(&spool).await;
        assert_eq!(spool.first(), 1);
        spool.record(finished("x")).await.unwrap();
        confirm_all(&spool).await;
        assert!(spool.first() > 1);
    }

    #[test]
    fn a_new_spool_begins_above_the_ledgers_epoch() {
        let dir = tempfile::tempdir().unwrap();
        let far = unix_ms();
        assert_eq!(Spool::open(dir.path(), "a", 1 << 20, 8, far).unwrap().0.epoch(), far + 1);
        assert!(
            matches!(Spool::open(&dir.path().join("other"), "a", 1 << 20, 8, 0), Ok((spool, _)) if spool.epoch() > 1_700_000_000)
        );
    }

    #[tokio::test]
    async fn a_receipt_about_other_events_confirms_nothing_and_ends_the_spool() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, _) = open(dir.path());
        for _ in 0..3 {
            spool.record(stopped()).await.unwrap();
        }
        assert!(matches!(spool.confirm(2, &[7; 32]), Err(ConfirmError::Condemned(_))));
        assert!(matches!(spool.confirm(9, &[7; 32]), Err(ConfirmError::Condemned(_))));
        assert_eq!((spool.confirmed_seq(), spool.first()), (0, 1));
        assert!(matches!(spool.check_room(), Err(RecordError::Condemned(_))));
    }

    #[tokio::test]
    async fn an_old_spool_is_refused_where_the_ledger_holds_a_later_epoch() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, _) = open(dir.path());
        let later = spool.epoch() + 1;
        drop(spool);
        let refused = Spool::open(dir.path(), "a", 1 << 20, 8, later);
        assert!(matches!(refused, Err(SpoolError::Ended { ledger, .. }) if ledger == later));
    }
}
