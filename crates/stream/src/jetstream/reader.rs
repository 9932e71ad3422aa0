//! Reading a JetStream stream in order, across lost connections, lost consumers and restarts of the server.
//!
//! Each (re)start makes an ephemeral consumer at the next wanted sequence; nothing the broker remembers about readers is used.
//! Left out: acknowledgements to the broker. Invariant: consumer sequences without a hole, so nothing between two delivered
//! messages was dropped on the way; without filters also stream sequences without a hole, so nothing was lost in the store; each
//! later start begins with the last delivered message, which has to be the same, so nothing is read after a store that lost its end.

use std::time::Duration;

use async_nats::Subject;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, ReplayPolicy, pull};
use async_nats::jetstream::stream;
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::watch;

use super::{Connection, unix_ms};
use crate::stream::ReadError;

/// Messages asked for at once.
const PULL_MESSAGES: usize = 1000;
/// Bytes asked for at once.
const PULL_BYTES: usize = 8 * 1024 * 1024;
/// The server says at least this often that the consumer still stands; after two that are missing the reader makes another. In a cluster
/// that is how it notices that the one node which had its consumer is gone.
const HEARTBEAT: Duration = Duration::from_secs(1);
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// The server removes a consumer that nobody has asked for this long.
const CONSUMER_IDLE: Duration = Duration::from_secs(60);
const MAX_RETRY_DELAY: Duration = Duration::from_millis(500);
/// How long the first attempt to make a consumer may take; each further one twice as long. A cluster that has not yet noticed a node's death may
/// give the consumer to that node, and then nobody answers.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// What to read.
pub(super) struct Source {
    pub(super) stream: stream::Stream,
    pub(super) filters: Vec<String>,
    pub(super) connection: watch::Receiver<Connection>,
}

/// A message with its place.
pub(super) struct Delivered {
    pub(super) seq: u64,
    pub(super) time_unix_ms: u64,
    pub(super) message: async_nats::Message,
}

/// The message that was delivered last.
struct Last {
    seq: u64,
    /// When the server stored it, nanoseconds.
    stored_unix_ns: i128,
    subject: Subject,
    payload: Bytes,
}

#[derive(Clone, Copy)]
enum From {
    /// Every message from the next sequence on.
    Sequence,
    /// The last message of the subject, then changes.
    Last,
}

enum Fault {
    /// The reader can't go on.
    Final(ReadError),
    /// Try again.
    Passing(String),
}

pub(super) struct Reader {
    source: Source,
    from: From,
    next: u64,
    last: Option<Last>,
    /// Whether the next message is the last one again.
    compares: bool,
    consumer_seq: u64,
    messages: Option<pull::Stream>,
    failures: u32,
    ended: bool,
}

/// A consumer's name that no other user of the server can ask for messages.
fn unguessable() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(format!("reader-{:032x}", u128::from_be_bytes(bytes)))
}

impl Reader {
    /// Fails at once if the stream doesn't have `next`; an unreachable server is waited for.
    pub(super) async fn from_sequence(source: Source, next: u64) -> Result<Self, ReadError> {
        let mut reader = Self::new(source, From::Sequence, next);
        match reader.open_in_time().await {
            Err(Fault::Final(error)) => Err(error),
            Ok(()) | Err(Fault::Passing(_)) => Ok(reader),
        }
    }

    pub(super) fn from_last(source: Source) -> Self {
        Self::new(source, From::Last, 1)
    }

    fn new(source: Source, from: From, next: u64) -> Self {
        Self {
            source,
            from,
            next,
            last: None,
            compares: false,
            consumer_seq: 0,
            messages: None,
            failures: 0,
            ended: false,
        }
    }

    pub(super) fn messages(self) -> impl futures::Stream<Item = Result<Delivered, ReadError>> + Send {
        futures::stream::unfold(self, |mut reader| async move {
            if reader.ended {
                return None;
            }
            let item = reader.next().await;
            reader.ended = item.is_err();
            Some((item, reader))
        })
    }

    async fn next(&mut self) -> Result<Delivered, ReadError> {
        loop {
            let outcome = if self.messages.is_some() {
                self.receive().await.map(Some)
            } else {
                self.open_in_time().await.map(|()| None)
            };
            match outcome {
                Ok(Some(delivered)) => {
                    self.failures = 0;
                    return Ok(delivered);
                }
                Ok(None) => {}
                Err(Fault::Final(error)) => return Err(error),
                Err(Fault::Passing(reason)) => {
                    tracing::debug!(reason, next = self.next, "reading again");
                    self.messages = None;
                    self.failures += 1;
                    self.pause().await;
                }
            }
        }
    }

    /// Waits longer with each failure, but no longer than until the connection changes.
    async fn pause(&mut self) {
        let delay = (Duration::from_millis(20) * 2_u32.pow(self.failures.min(10))).min(MAX_RETRY_DELAY);
        // A closed channel means that the client is gone; then only the delay is left.
        if let Ok(Err(_)) = tokio::time::timeout(delay, self.source.connection.changed()).await {
            tokio::time::sleep(delay).await;
        }
    }

    async fn open_in_time(&mut self) -> Result<(), Fault> {
        let patience = (OPEN_TIMEOUT * 2_u32.pow(self.failures.min(10))).min(MAX_OPEN_TIMEOUT);
        let opened = tokio::time::timeout(patience, self.open()).await;
        opened.unwrap_or_else(|_| Err(Fault::Passing("no answer to reading in time".into())))
    }

    async fn open(&mut self) -> Result<(), Fault> {
        // Before the first request, so that a connection lost meanwhile is noticed when receiving.
        self.source.connection.mark_unchanged();
        let passing = |e: &dyn std::fmt::Display| Fault::Passing(e.to_string());
        let info = self.source.stream.get_info().await.map_err(|e| passing(&e))?;
        let deliver_policy = match self.from {
            From::Sequence => {
                let (first, tip) = (info.state.first_sequence, info.state.last_sequence);
                if self.next > tip + 1 {
                    return Err(Fault::Final(ReadError::Lost { from: self.next, tip }));
                }
                if self.next < first {
                    return Err(Fault::Final(ReadError::Pruned { from: self.next, first }));
                }
                // A dropped message can't be compared; everything after it is there.
                let compared = self.last.as_ref().map(|last| last.seq).filter(|seq| *seq >= first);
                self.compares = compared.is_some();
                DeliverPolicy::ByStartSequence { start_sequence: compared.unwrap_or(self.next) }
            }
            From::Last => {
                self.compares = self.last.is_some();
                DeliverPolicy::LastPerSubject
            }
        };
        // With a name and a single filter the request's own subject says both: a server can then grant exactly that.
        let (filter_subject, filter_subjects) = match &self.source.filters[..] {
            [only] => (only.clone(), Vec::new()),
            filters => (String::new(), filters.to_vec()),
        };
        let config = pull::Config {
            name: Some(unguessable().map_err(|e| passing(&e))?),
            deliver_policy,
            ack_policy: AckPolicy::None,
            filter_subject,
            filter_subjects,
            replay_policy: ReplayPolicy::Instant,
            inactive_threshold: CONSUMER_IDLE,
            num_replicas: 1,
            memory_storage: true,
            ..pull::Config::default()
        };
        let consumer = self.source.stream.create_consumer(config).await.map_err(|e| passing(&e))?;
        let pull = consumer.stream().max_messages_per_batch(PULL_MESSAGES).max_bytes_per_batch(PULL_BYTES);
        let messages =
            pull.heartbeat(HEARTBEAT).expires(PULL_EXPIRES).messages().await.map_err(|e| passing(&e))?;
        self.messages = Some(messages);
        self.consumer_seq = 0;
        Ok(())
    }

    async fn receive(&mut self) -> Result<Delivered, Fault> {
        loop {
            let Some(messages) = self.messages.as_mut() else {
                return Err(Fault::Passing("no consumer".into()));
            };
            let item = tokio::select! {
                biased;
                item = messages.next() => item,
                Ok(()) = self.source.connection.changed() => return Err(Fault::Passing("the connection changed".into())),
            };
            let message = match item {
                Some(Ok(message)) => message,
                Some(Err(error)) => return Err(Fault::Passing(error.to_string())),
                None => return Err(Fault::Passing("the consumer ended".into())),
            };
            let info = message.info().map_err(|e| Fault::Passing(e.to_string()))?;
            let (seq, time_unix_ms) = (info.stream_sequence, unix_ms(info.published));
            if info.consumer_sequence != self.consumer_seq + 1 {
                return Err(Fault::Passing(format!(
                    "deliveries {} to {} were dropped",
                    self.consumer_seq + 1,
                    info.consumer_sequence
                )));
            }
            self.consumer_seq += 1;
            let stored_unix_ns = info.published.unix_timestamp_nanos();
            if std::mem::take(&mut self.compares)
                && let Some(last) = &self.last
            {
                let is_same = message.subject == last.subject && message.payload == last.payload;
                match self.from {
                    From::Sequence if seq == last.seq && is_same => continue,
                    From::Sequence => {
                        return Err(Fault::Final(ReadError::Replaced { seq: last.seq }));
                    }
                    // The last value again. Another one at its sequence, or before it, is what a server has that lost the last.
                    From::Last if (seq, stored_unix_ns) == (last.seq, last.stored_unix_ns) => continue,
                    From::Last => {}
                }
            }
            if matches!(self.from, From::Sequence) && self.source.filters.is_empty() && seq != self.next {
                let gone = format!("the broker no longer has sequences {} to {}", self.next, seq - 1);
                return Err(Fault::Final(ReadError::Corrupt(gone)));
            }
            self.next = seq + 1;
            let message = message.split().0;
            let (subject, payload) = (message.subject.clone(), message.payload.clone());
            self.last = Some(Last { seq, stored_unix_ns, subject, payload });
            return Ok(Delivered { seq, time_unix_ms, message });
        }
    }
}
