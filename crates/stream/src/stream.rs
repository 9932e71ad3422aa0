//! The trait of the ordered stream, with its messages, limits and errors.
//!
//! Left out: any IO. Invariant: each error says what the caller may do next; "unknown" is never reported as "not appended".

use std::fmt::Debug;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

/// Payload and headers of one message together, in bytes: a NATS server's default `max_payload` counts both.
pub const MAX_MESSAGE: usize = 1024 * 1024;
/// Names and values of a message's headers together, in bytes.
pub const MAX_HEADER_BYTES: usize = 4 * 1024;
/// Headers of one message.
pub const MAX_HEADERS: usize = 16;
/// Payload of one message, in bytes: what [`MAX_MESSAGE`] leaves beside headers and their framing.
pub const MAX_PAYLOAD: usize = MAX_MESSAGE - 4 * MAX_HEADER_BYTES;
/// A latest value, in bytes.
pub const MAX_LATEST: usize = 64 * 1024;

/// Bytes handed over and not yet acknowledged; further appends wait.
pub const MAX_IN_FLIGHT: usize = 64 * 1024 * 1024;

/// A message as it stands in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place: 1 for the first message of the stream, without holes.
    pub seq: u64,
    /// The subject it was appended to.
    pub subject: String,
    /// When the stream stored it, by the stream's clock.
    pub time_unix_ms: u64,
    /// Headers in order of name, then of value.
    pub headers: Vec<(String, String)>,
    /// The bytes as appended.
    pub payload: Bytes,
}

/// A message to append.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// One of [`crate::subject::SUBJECTS`].
    pub subject: String,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Bytes,
    /// Printable ASCII names and values, e.g. `traceparent`. `Nats-…` names are the broker's own and refused.
    pub headers: Vec<(String, String)>,
    /// Append only if the subject's last sequence is this; 0 = the subject is empty so far.
    pub expect_last: Option<u64>,
    /// Append only if the whole stream's last sequence is this, so that the message gets the one after it; 0 = the stream is empty.
    pub expect_tip: Option<u64>,
}

impl Message {
    /// A message without headers and without an expectation.
    pub fn new(subject: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self { subject: subject.into(), payload: payload.into(), ..Self::default() }
    }

    /// Sets [`Message::expect_last`].
    pub fn expecting(mut self, last: u64) -> Self {
        self.expect_last = Some(last);
        self
    }

    /// Sets [`Message::expect_tip`].
    pub fn expecting_tip(mut self, tip: u64) -> Self {
        self.expect_tip = Some(tip);
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// Resolves to the message's sequence once the message is durable. Dropping it does not take the message back.
pub type Ack = BoxFuture<'static, Result<u64, AppendError>>;
/// Records in order. It waits for more at the end of the stream; an error is its last item.
pub type RecordStream = BoxStream<'static, Result<Record, ReadError>>;
/// Values of one key, oldest first. It waits for more; an error is its last item.
pub type ValueStream = BoxStream<'static, Result<Bytes, ReadError>>;

/// Why an append has no sequence to show, by what the caller may do next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Not appended: the last sequence of the subject (or of the stream, or the key's revision, where that was expected) is not the
    /// expected one.
    #[error("the last sequence is {}, not the expected one", .actual.map_or_else(|| "another".into(), |s| s.to_string()))]
    WrongLast {
        /// The real last sequence, where the stream told it. `None` may also mean that an append to this subject is in flight.
        actual: Option<u64>,
    },
    /// May or may not be in the stream, or get there late. Read back before deciding; a retry is safe only with `expect_last` or
    /// where readers drop duplicates.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// Not appended: the stream can't be reached or doesn't work. Retry later.
    #[error("stream unavailable: {0}")]
    Unavailable(String),
    /// Not appended: above a limit, never to be retried.
    #[error("{what} of {size} bytes or items is above the limit of {limit}")]
    TooLarge {
        /// What was measured.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The most that is accepted.
        limit: usize,
    },
    /// Not appended: no room. Retry once room was made.
    #[error("no room: {0}")]
    Full(String),
    /// Not appended: a malformed subject, key or header, never to be retried.
    #[error("invalid message: {0}")]
    Invalid(String),
}

/// Why records can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The stream can't be reached or was closed. Retry later.
    #[error("stream unavailable: {0}")]
    Unavailable(String),
    /// Records before `first` have been dropped: begin elsewhere.
    #[error("records from {from} were asked for, but the stream begins at {first}")]
    Pruned {
        /// Where reading was to begin.
        from: u64,
        /// The first sequence there is.
        first: u64,
    },
    /// The stream ends before records that the reader already counts on: it lost some, or is another stream.
    #[error("records from {from} were asked for, but the stream ends at {tip}")]
    Lost {
        /// Where reading was to begin.
        from: u64,
        /// The last sequence there is.
        tip: u64,
    },
    /// The stream holds another record where the reader had read one: it lost records and took others in their place, or the lost
    /// one was put back in another form. Read again from a place that is known to be right.
    #[error("record {seq} of the stream is not the one that was read")]
    Replaced {
        /// The sequence.
        seq: u64,
    },
    /// Stored records are damaged or missing, with the place.
    #[error("stream corrupt: {0}")]
    Corrupt(String),
    /// A malformed filter, subject or key.
    #[error("invalid request: {0}")]
    Invalid(String),
}

/// Whether an acknowledged message survives a power cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Every acknowledged message was synced to disk first.
    Synced,
    /// It may not have been, or that could not be established.
    Degraded {
        /// What is missing.
        detail: String,
    },
}

/// A held lease. The holder's right ends at [`Lease::remaining`] zero by its own monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The lease's name.
    pub name: String,
    /// Who holds it.
    pub holder: String,
    /// Rises with every acquisition, across restarts.
    pub epoch: u64,
    /// How long it lasts after an acquisition or renewal.
    pub ttl: Duration,
    /// The value's version in the backend.
    pub(crate) revision: u64,
    /// Counted from before the request was sent, so never later than the backend's own view.
    pub(crate) deadline: Instant,
}

impl Lease {
    /// How much longer the lease is held without a renewal; zero once it ended.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// The answer to an attempt at a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseOutcome {
    /// It is ours.
    Held(Lease),
    /// It is another's.
    HeldBy {
        /// Who holds it.
        holder: String,
        /// When to try again, at the latest.
        expires_in: Duration,
    },
}

/// Why a lease operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// The lease was taken over or released. Stop acting under its epoch.
    #[error("lease lost: {0}")]
    Lost(String),
    /// The backend can't be reached; the lease still runs until its deadline.
    #[error("leases unavailable: {0}")]
    Unavailable(String),
    /// A malformed name, holder or time to live.
    #[error("invalid lease: {0}")]
    Invalid(String),
}

/// One ordered stream of messages with subjects, a few latest values, and leases.
#[async_trait]
pub trait EventStream: Send + Sync + Debug {
    /// Hands the message over, in the order of the calls' completion; the acknowledgement resolves when it is durable.
    /// Waits while too much is in flight. Cancelling the call before it returns may or may not have handed the message over.
    async fn enqueue(&self, message: Message) -> Result<Ack, AppendError>;

    /// Hands the message over and waits until it is durable; its sequence.
    async fn append(&self, message: Message) -> Result<u64, AppendError> {
        self.enqueue(message).await?.await
    }

    /// All records with `seq >= from` (0 = 1) whose subject matches one of `filters` (none = all; NATS wildcards `*` and `>`;
    /// filters must not overlap), in order, then live. Outlasts interruptions of the backend; never ends but by an error. After an
    /// interruption the last record is compared: a backend that came back without it is an error, never read on from.
    async fn read(&self, from: u64, filters: &[&str]) -> Result<RecordStream, ReadError>;

    /// The last durable record of a subject.
    async fn last(&self, subject: &str) -> Result<Option<Record>, ReadError>;

    /// The last durable sequence of the stream, 0 when it is empty.
    async fn tip(&self) -> Result<u64, ReadError>;

    /// Sets a key's latest value (at most [`MAX_LATEST`] bytes); durable on return. The last write wins.
    async fn put_latest(&self, key: &str, value: Bytes) -> Result<(), AppendError>;

    /// A key's present value and its revision, durable; `None` if it never had one. A revision is at least 1 and rises with every
    /// change of the value, by whomever and across restarts.
    async fn latest(&self, key: &str) -> Result<Option<(Bytes, u64)>, ReadError>;

    /// Sets a key's latest value only if its revision is still `expected` (0 = it has no value yet), and returns the new revision.
    /// [`AppendError::WrongLast`] if another value came first. Of several that expect the same revision one at most succeeds.
    async fn put_latest_if(&self, key: &str, value: Bytes, expected: u64) -> Result<u64, AppendError>;

    /// The present value if there is one, then each change; intermediate values may be skipped.
    async fn watch_latest(&self, key: &str) -> Result<ValueStream, ReadError>;

    /// Takes the lease if nobody holds it or its time has run out. A holder that asks again takes over from itself, with a new
    /// epoch. Every acquisition has a higher epoch than all before it.
    async fn acquire_lease(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<LeaseOutcome, LeaseError>;

    /// Prolongs a held lease by its time to live from now; same epoch.
    async fn renew_lease(&self, lease: &Lease) -> Result<Lease, LeaseError>;

    /// Gives a lease back, so that another can have it at once. A lease that is already lost is left alone.
    async fn release_lease(&self, lease: Lease) -> Result<(), LeaseError>;

    /// Whether acknowledged messages survive a power cut, established now.
    async fn durability(&self) -> Durability;
}
