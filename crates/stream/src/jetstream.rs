//! The stream on a NATS server with JetStream.
//!
//! Left out: message ids (the broker's duplicate window is not relied on) and durable consumers (each reader keeps its own place).
//! Invariant: an append whose answer did not arrive is reported as unknown; readers see every sequence or an error.
//!
//! Requests that decide something (the last record of a subject, a latest value, the tip, a lease) go to the stream's leader and never to a
//! replica that may lag behind.

mod leases;
mod monitor;
mod reader;
mod setup;

use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use async_nats::jetstream::{self, Context, stream};
use async_nats::{Client, HeaderMap};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use tokio::sync::{Semaphore, watch};

use self::reader::{Reader, Source};
pub use self::setup::{ConnectError, Options, check_credentials, check_name, check_url};
use self::setup::{Connection, connect_client, open_bucket, open_stream};
use crate::stream::{
    Ack, AppendError, Durability, EventStream, Lease, LeaseError, LeaseOutcome, MAX_IN_FLIGHT, MAX_PAYLOAD,
    Message, ReadError, Record, RecordStream, ValueStream,
};
use crate::subject::{check_filter, check_key, check_latest, check_message, check_subject, is_broker_header};

/// Messages handed over and not yet acknowledged: few enough that a server which syncs each one answers all of them in time,
/// and that the server's own queue (10,000) is never the one that refuses.
const MAX_UNACKED: usize = 1024;

/// A connection to the stream; it reconnects for ever.
pub struct JetStream {
    options: Options,
    prefix: String,
    client: Client,
    context: Context,
    stream: stream::Stream,
    latest: stream::Stream,
    leases: stream::Stream,
    room: Arc<Semaphore>,
    connection: watch::Receiver<Connection>,
}

impl std::fmt::Debug for JetStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JetStream").field("options", &self.options).finish_non_exhaustive()
    }
}

impl JetStream {
    /// Connects, and creates the stream and its buckets where they are absent; checks the stream's set-up otherwise.
    pub async fn connect(options: Options) -> Result<Self, ConnectError> {
        for name in std::iter::once(&options.stream).chain(&options.prefix) {
            check_name(name).map_err(ConnectError::Options)?;
        }
        let (client, connection) = connect_client(&options).await?;
        let context = jetstream::ContextBuilder::new()
            .timeout(options.timeout)
            .max_ack_inflight(MAX_UNACKED)
            .backpressure_on_inflight(true)
            .build(client.clone());
        let (name, prefix) = (options.stream_name(), options.subject_prefix());
        let stream = open_stream(&context, &options, &name, &prefix).await?;
        let latest = open_bucket(&context, &options, &format!("{name}_latest")).await?;
        let leases = open_bucket(&context, &options, &format!("{name}_leases")).await?;
        let room = Arc::new(Semaphore::new(MAX_IN_FLIGHT / 1024));
        Ok(Self { options, prefix, client, context, stream, latest, leases, room, connection })
    }

    /// Whether the connection stands at this moment.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    fn latest_subject(&self, key: &str) -> String {
        format!("$KV.{}_latest.{key}", self.options.stream_name())
    }

    /// Publishes to a stream of ours, in the order in which calls return.
    async fn publish(
        &self,
        stream: &stream::Stream,
        subject: String,
        message: PublishMessage,
        size: usize,
    ) -> Result<Ack, AppendError> {
        let mut connection = self.connection.clone();
        let lost = connection.borrow_and_update().lost;
        if !self.is_connected() {
            // Handed over now, it would be sent at some later time.
            return Err(AppendError::Unavailable("not connected".into()));
        }
        let units = u32::try_from(size / 1024 + 1).expect("checked against the limits");
        let room = Arc::clone(&self.room).acquire_many_owned(units).await;
        let room = room.map_err(|e| AppendError::Unavailable(e.to_string()))?;
        let message = message.expected_stream(&stream.cached_info().config.name);
        let sent = self.context.send_publish(subject, message).await.map_err(|e| match e.kind() {
            PublishErrorKind::MaxPayloadExceeded => {
                AppendError::TooLarge { what: "message", size, limit: self.client.max_payload() }
            }
            _ => AppendError::Unavailable(e.to_string()),
        })?;
        let ack = async move {
            let _room = room;
            tokio::select! {
                biased;
                answer = sent => answer.map(|ack| ack.sequence).map_err(|e| append_error(&e)),
                // The answer to what was sent over a lost connection doesn't come.
                _ = connection.wait_for(|c| c.lost != lost) => Err(AppendError::Unknown("the connection was lost before the answer came".into())),
            }
        };
        Ok(ack.boxed())
    }

    async fn last_raw(&self, stream: &stream::Stream, subject: &str) -> Result<Option<RawRecord>, ReadError> {
        match stream.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Ok(Some(message)),
            Err(e) if matches!(e.kind(), LastRawMessageErrorKind::NoMessageFound) => Ok(None),
            Err(e) => Err(ReadError::Unavailable(e.to_string())),
        }
    }

    fn source(&self, stream: &stream::Stream, filters: Vec<String>) -> Source {
        Source { stream: stream.clone(), filters, connection: self.connection.clone() }
    }
}

type RawRecord = async_nats::jetstream::message::StreamMessage;

/// The server's error codes are in its `errors.json`; the ones named here are those that say for certain what happened.
fn append_error(error: &jetstream::context::PublishError) -> AppendError {
    match error.kind() {
        PublishErrorKind::StreamNotFound => {
            return AppendError::Unavailable("no stream takes this subject".into());
        }
        PublishErrorKind::TimedOut => return AppendError::Unknown("no answer in time".into()),
        _ => {}
    }
    let source = std::error::Error::source(error).and_then(|s| s.downcast_ref::<jetstream::Error>());
    let Some(refusal) = source else {
        return AppendError::Unknown(error.to_string());
    };
    let text = refusal.to_string();
    match refusal.error_code().0 {
        // "wrong last sequence: 17"
        10071 => {
            let digits: String = text
                .rsplit(": ")
                .next()
                .unwrap_or_default()
                .chars()
                .take_while(char::is_ascii_digit)
                .collect();
            AppendError::WrongLast { actual: digits.parse().ok() }
        }
        10164 => AppendError::WrongLast { actual: None },
        10054 => AppendError::TooLarge { what: "message", size: MAX_PAYLOAD, limit: MAX_PAYLOAD },
        10023 | 10028 | 10047 => AppendError::Full(text),
        10077 if text.contains("maximum") => AppendError::Full(text),
        10008 | 10009 | 10039 | 10060 | 10076 | 10167 => AppendError::Unavailable(text),
        _ => AppendError::Unknown(text),
    }
}

fn unix_ms(time: async_nats::datetime::DateTime) -> u64 {
    u64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

fn record_of(
    prefix: &str,
    subject: &str,
    seq: u64,
    time_unix_ms: u64,
    headers: Option<&HeaderMap>,
    payload: Bytes,
) -> Record {
    let mut own: Vec<(String, String)> = Vec::new();
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        let name: &str = name.as_ref();
        if !is_broker_header(name) {
            own.extend(values.iter().map(|v| (name.to_owned(), v.as_str().to_owned())));
        }
    }
    own.sort();
    let subject = subject.strip_prefix(prefix).unwrap_or(subject).to_owned();
    Record { seq, subject, time_unix_ms, headers: own, payload }
}

#[async_trait]
impl EventStream for JetStream {
    async fn enqueue(&self, message: Message) -> Result<Ack, AppendError> {
        check_message(&message)?;
        let mut headers = HeaderMap::new();
        for (name, value) in &message.headers {
            headers.append(name.as_str(), value.as_str());
        }
        let subject = format!("{}{}", self.prefix, message.subject);
        let size = message.payload.len();
        let mut publish = PublishMessage::build().payload(message.payload).headers(headers);
        if let Some(last) = message.expect_last {
            publish = publish.expected_last_subject_sequence(last);
        }
        if let Some(tip) = message.expect_tip {
            publish = publish.expected_last_sequence(tip);
        }
        self.publish(&self.stream, subject, publish, size).await
    }

    async fn read(&self, from: u64, filters: &[&str]) -> Result<RecordStream, ReadError> {
        for filter in filters {
            check_filter(filter).map_err(ReadError::Invalid)?;
        }
        // `>` alone would also be valid without the prefix's subjects, but means every subject of this stream.
        let filters = filters.iter().map(|f| format!("{}{f}", self.prefix)).collect();
        let reader = Reader::from_sequence(self.source(&self.stream, filters), from.max(1)).await?;
        let prefix = self.prefix.clone();
        Ok(reader
            .messages()
            .map(move |item| {
                item.map(|m| {
                    let message = m.message;
                    record_of(
                        &prefix,
                        &message.subject,
                        m.seq,
                        m.time_unix_ms,
                        message.headers.as_ref(),
                        message.payload,
                    )
                })
            })
            .boxed())
    }

    async fn last(&self, subject: &str) -> Result<Option<Record>, ReadError> {
        check_subject(subject).map_err(ReadError::Invalid)?;
        let found = self.last_raw(&self.stream, &format!("{}{subject}", self.prefix)).await?;
        Ok(found.map(|m| {
            record_of(&self.prefix, &m.subject, m.sequence, unix_ms(m.time), Some(&m.headers), m.payload)
        }))
    }

    async fn tip(&self) -> Result<u64, ReadError> {
        let info = self.stream.get_info().await.map_err(|e| ReadError::Unavailable(e.to_string()))?;
        Ok(info.state.last_sequence)
    }

    async fn put_latest(&self, key: &str, value: Bytes) -> Result<(), AppendError> {
        check_latest(key, &value)?;
        let size = value.len();
        let message = PublishMessage::build().payload(value);
        self.publish(&self.latest, self.latest_subject(key), message, size).await?.await.map(|_| ())
    }

    async fn latest(&self, key: &str) -> Result<Option<(Bytes, u64)>, ReadError> {
        check_key(key).map_err(ReadError::Invalid)?;
        let found = self.last_raw(&self.latest, &self.latest_subject(key)).await?;
        Ok(found.map(|message| (message.payload, message.sequence)))
    }

    async fn put_latest_if(&self, key: &str, value: Bytes, expected: u64) -> Result<u64, AppendError> {
        check_latest(key, &value)?;
        let size = value.len();
        let message = PublishMessage::build().payload(value).expected_last_subject_sequence(expected);
        self.publish(&self.latest, self.latest_subject(key), message, size).await?.await
    }

    async fn watch_latest(&self, key: &str) -> Result<ValueStream, ReadError> {
        check_key(key).map_err(ReadError::Invalid)?;
        let reader = Reader::from_last(self.source(&self.latest, vec![self.latest_subject(key)]));
        Ok(reader.messages().map(|item| item.map(|m| m.message.payload)).boxed())
    }

    async fn acquire_lease(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<LeaseOutcome, LeaseError> {
        self.take_lease(name, holder, ttl).await
    }

    async fn renew_lease(&self, lease: &Lease) -> Result<Lease, LeaseError> {
        self.prolong_lease(lease).await
    }

    async fn release_lease(&self, lease: Lease) -> Result<(), LeaseError> {
        self.give_back_lease(&lease).await
    }

    async fn durability(&self) -> Durability {
        match self.check_sync().await {
            Ok(()) => Durability::Synced,
            Err(detail) => Durability::Degraded { detail },
        }
    }
}
