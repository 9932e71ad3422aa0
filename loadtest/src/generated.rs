//! A stream without a broker: control records as a real embedded stream has them, and after them batches that are made when they are
//! read. For what is to be measured without a broker, and for logs larger than anybody wants to publish first.
//!
//! Left out: other writers, and reading a batch twice; only the last one is kept. Invariant: the batches continue each other.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use exchequer_stream::{
    Ack, AppendError, Durability, EventStream, Lease, LeaseError, LeaseOutcome, LocalStream, Message,
    ReadError, Record, RecordStream, ValueStream,
};
use futures::{StreamExt as _, stream};
use prost::bytes::Bytes;

use crate::agent::Agent;

const LAST: &str = "last-batch";

/// A stream that begins with so many control records and goes on with batches up to a number of messages.
#[derive(Debug)]
pub(crate) struct Generated {
    control: LocalStream,
    dir: PathBuf,
    prelude: u64,
    tip: u64,
    events: usize,
    source: Arc<Mutex<Source>>,
}

/// Makes the batches, in order.
#[derive(Debug)]
struct Source {
    agent: Agent,
    /// Sequence and payload of the newest.
    last: Option<(u64, Bytes)>,
}

impl Generated {
    /// The stream in a directory: `prelude` control records, then `batches` of so many events each by this agent. If the directory
    /// is one of before, the batches have been made, and the last one is there again.
    pub(crate) fn open(
        dir: &Path,
        agent: Agent,
        prelude: u64,
        batches: u64,
        events: usize,
    ) -> anyhow::Result<Self> {
        let control = LocalStream::open(dir)?;
        let tip = prelude + batches;
        let last = std::fs::read(dir.join(LAST)).ok().map(|payload| (tip, payload.into()));
        let source = Arc::new(Mutex::new(Source { agent, last }));
        Ok(Self { control, dir: dir.to_owned(), prelude, tip, events, source })
    }

    /// Keeps the last batch for who opens the directory again.
    pub(crate) fn keep_last(&self) -> anyhow::Result<()> {
        if let Some((_, payload)) = &self.source().last {
            std::fs::write(self.dir.join(LAST), payload)?;
        }
        Ok(())
    }

    fn source(&self) -> MutexGuard<'_, Source> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source {
    fn batch(&mut self, seq: u64, prelude: u64, events: usize) -> Result<Record, ReadError> {
        let before = self.last.as_ref().map_or(prelude, |(seq, _)| *seq);
        if seq == before + 1 {
            self.last = Some((seq, self.agent.batch(events).payload));
        }
        match &self.last {
            Some((last, payload)) if *last == seq => {
                let (subject, payload) = (self.agent.subject(), payload.clone());
                Ok(Record { seq, subject, time_unix_ms: 0, headers: Vec::new(), payload })
            }
            _ => Err(ReadError::Invalid(format!("batch {seq} is not made after {before}"))),
        }
    }
}

#[async_trait::async_trait]
impl EventStream for Generated {
    async fn enqueue(&self, message: Message) -> Result<Ack, AppendError> {
        self.control.enqueue(message).await
    }

    async fn read(&self, from: u64, filters: &[&str]) -> Result<RecordStream, ReadError> {
        if !filters.is_empty() {
            return self.control.read(from, filters).await;
        }
        let (prelude, tip, events) = (self.prelude, self.tip, self.events);
        let before = prelude.saturating_sub(from.max(1) - 1);
        let control = if before > 0 { self.control.read(from, &[]).await? } else { stream::empty().boxed() };
        let source = self.source.clone();
        let batches = stream::iter(from.max(prelude + 1)..=tip).map(move |seq| {
            source.lock().unwrap_or_else(PoisonError::into_inner).batch(seq, prelude, events)
        });
        let records = control.take(usize::try_from(before).unwrap_or(usize::MAX)).chain(batches);
        Ok(records.chain(stream::pending()).boxed())
    }

    async fn last(&self, subject: &str) -> Result<Option<Record>, ReadError> {
        self.control.last(subject).await
    }

    async fn tip(&self) -> Result<u64, ReadError> {
        let control = self.control.tip().await?;
        Ok(if control < self.prelude { control } else { self.tip })
    }

    async fn put_latest(&self, key: &str, value: Bytes) -> Result<(), AppendError> {
        self.control.put_latest(key, value).await
    }

    async fn latest(&self, key: &str) -> Result<Option<(Bytes, u64)>, ReadError> {
        self.control.latest(key).await
    }

    async fn put_latest_if(&self, key: &str, value: Bytes, expected: u64) -> Result<u64, AppendError> {
        self.control.put_latest_if(key, value, expected).await
    }

    async fn watch_latest(&self, key: &str) -> Result<ValueStream, ReadError> {
        self.control.watch_latest(key).await
    }

    async fn acquire_lease(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<LeaseOutcome, LeaseError> {
        self.control.acquire_lease(name, holder, ttl).await
    }

    async fn renew_lease(&self, lease: &Lease) -> Result<Lease, LeaseError> {
        self.control.renew_lease(lease).await
    }

    async fn release_lease(&self, lease: Lease) -> Result<(), LeaseError> {
        self.control.release_lease(lease).await
    }

    async fn durability(&self) -> Durability {
        self.control.durability().await
    }
}
