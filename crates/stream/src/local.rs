//! The embedded stream: a journal in a directory of one process, with small files for latest values and lease epochs.
//!
//! Left out: more than one process (the journal's lock forbids it) and retention. Invariant: the order of the journal is the order
//! of the stream; whether an append may happen is decided under the same lock that gives it its place.

mod latest;
pub(crate) mod leases;

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes};
use futures::StreamExt;

use self::latest::Latest;
use self::leases::Leases;
use crate::files;
use crate::journal::{Journal, JournalError, Options, Reader};
use crate::stream::{
    Ack, AppendError, Durability, EventStream, Lease, LeaseError, LeaseOutcome, Message, ReadError, Record,
    RecordStream, ValueStream,
};
use crate::subject::{check_filter, check_key, check_latest, check_message, check_subject, matches};

/// Bytes read from the journal at once for a reader.
const READ_BATCH: usize = 1024 * 1024;

/// The embedded stream. One process, and one value in it, holds the directory until it is dropped.
#[derive(Debug)]
pub struct LocalStream {
    journal: Journal,
    heads: Mutex<Heads>,
    latest: Latest,
    leases: Leases,
}

#[derive(Debug, Default)]
struct Heads {
    /// Last sequence of each subject, durable or queued.
    last: HashMap<String, u64>,
    /// Last sequence of all, durable or queued.
    tip: u64,
    /// Time of the last record: the stream's clock doesn't go back.
    time_unix_ms: u64,
}

impl LocalStream {
    /// Opens the stream in `dir`, creating it if there is none. Reads and checks all of it. Blocks.
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        Self::open_with(dir, Options::default())
    }

    /// As [`LocalStream::open`], with other bounds of its journal.
    pub fn open_with(dir: &Path, options: Options) -> Result<Self, JournalError> {
        let mut heads = Heads::default();
        let journal = Journal::open_with(&dir.join("journal"), options, |seq, body| {
            let record = decode(seq, Bytes::copy_from_slice(body))?;
            heads.time_unix_ms = heads.time_unix_ms.max(record.time_unix_ms);
            heads.last.insert(record.subject, seq);
            Ok(())
        })?;
        // Also where every record has been dropped.
        heads.tip = journal.tip();
        let (latest_dir, leases_dir) = (dir.join("latest"), dir.join("leases"));
        for dir in [&latest_dir, &leases_dir] {
            files::create_dir(dir).map_err(|e| JournalError::Io {
                action: "create",
                path: dir.clone(),
                detail: e.to_string(),
            })?;
        }
        let leases = Leases::new(leases_dir);
        Ok(Self { journal, heads: Mutex::new(heads), latest: Latest::new(latest_dir), leases })
    }

    fn heads(&self) -> MutexGuard<'_, Heads> {
        // Nothing panics while it is held.
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// time u64 | lengths of subject u8, header count u8 | subject | (name length u16, value length u16, name, value)* | payload; LE.
fn encode(message: &Message, time_unix_ms: u64) -> Bytes {
    let short = |len: usize| u16::try_from(len).expect("checked against the limits");
    let byte = |len: usize| u8::try_from(len).expect("checked against the limits");
    let headers: usize = message.headers.iter().map(|(n, v)| 4 + n.len() + v.len()).sum();
    let mut out = Vec::with_capacity(10 + message.subject.len() + headers + message.payload.len());
    out.put_u64_le(time_unix_ms);
    out.put_u8(byte(message.subject.len()));
    out.put_u8(byte(message.headers.len()));
    out.put_slice(message.subject.as_bytes());
    let mut sorted: Vec<_> = message.headers.iter().collect();
    sorted.sort();
    for (name, value) in sorted {
        out.put_u16_le(short(name.len()));
        out.put_u16_le(short(value.len()));
        out.put_slice(name.as_bytes());
        out.put_slice(value.as_bytes());
    }
    out.put_slice(&message.payload);
    out.into()
}

fn decode(seq: u64, mut body: Bytes) -> Result<Record, String> {
    let malformed = || format!("record {seq} is not a stream's record");
    let text = |body: &mut Bytes, len: usize| -> Option<String> {
        (body.len() >= len).then(|| String::from_utf8(body.split_to(len).into()).ok()).flatten()
    };
    if body.len() < 10 {
        return Err(malformed());
    }
    let time_unix_ms = body.get_u64_le();
    let (subject_len, count) = (usize::from(body.get_u8()), usize::from(body.get_u8()));
    let subject = text(&mut body, subject_len).ok_or_else(malformed)?;
    let mut headers = Vec::with_capacity(count);
    for _ in 0..count {
        if body.len() < 4 {
            return Err(malformed());
        }
        let (name_len, value_len) = (usize::from(body.get_u16_le()), usize::from(body.get_u16_le()));
        let name = text(&mut body, name_len).ok_or_else(malformed)?;
        headers.push((name, text(&mut body, value_len).ok_or_else(malformed)?));
    }
    Ok(Record { seq, subject, time_unix_ms, headers, payload: body })
}

fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl JournalError {
    fn reading_from(self, from: u64) -> ReadError {
        match self {
            Self::Pruned { first } => ReadError::Pruned { from, first },
            Self::Corrupt { .. } => ReadError::Corrupt(self.to_string()),
            Self::Locked(_) | Self::Closed | Self::Failed(_) | Self::Io { .. } => {
                ReadError::Unavailable(self.to_string())
            }
        }
    }
}

async fn read_batch(reader: &Reader, from: u64, max_bytes: usize) -> Result<Vec<Record>, ReadError> {
    let reader = reader.clone();
    let read = tokio::task::spawn_blocking(move || reader.read(from, max_bytes)).await;
    let entries =
        read.map_err(|e| ReadError::Unavailable(e.to_string()))?.map_err(|e| e.reading_from(from))?;
    entries.into_iter().map(|e| decode(e.seq, e.body).map_err(ReadError::Corrupt)).collect()
}

/// A reader's place.
struct Place {
    reader: Reader,
    next: u64,
    filters: Vec<String>,
    batch: VecDeque<Record>,
    ended: bool,
}

impl Place {
    async fn next(&mut self) -> Result<Record, ReadError> {
        loop {
            while let Some(record) = self.batch.pop_front() {
                self.next = record.seq + 1;
                if self.filters.is_empty() || self.filters.iter().any(|f| matches(f, &record.subject)) {
                    return Ok(record);
                }
            }
            self.reader.wait_for(self.next).await.map_err(|e| e.reading_from(self.next))?;
            self.batch = read_batch(&self.reader, self.next, READ_BATCH).await?.into();
        }
    }
}

#[async_trait]
impl EventStream for LocalStream {
    async fn enqueue(&self, message: Message) -> Result<Ack, AppendError> {
        check_message(&message)?;
        let room = self.journal.reserve(message.payload.len()).await?;
        let mut heads = self.heads();
        if let Some(expected) = message.expect_last {
            let actual = heads.last.get(&message.subject).copied().unwrap_or(0);
            if actual != expected {
                return Err(AppendError::WrongLast { actual: Some(actual) });
            }
        }
        if let Some(expected) = message.expect_tip
            && heads.tip != expected
        {
            return Err(AppendError::WrongLast { actual: Some(heads.tip) });
        }
        let time_unix_ms = heads.time_unix_ms.max(now_unix_ms());
        let (seq, ack) = self.journal.push(room, encode(&message, time_unix_ms))?;
        heads.time_unix_ms = time_unix_ms;
        heads.tip = seq;
        heads.last.insert(message.subject, seq);
        Ok(ack)
    }

    async fn read(&self, from: u64, filters: &[&str]) -> Result<RecordStream, ReadError> {
        for filter in filters {
            check_filter(filter).map_err(ReadError::Invalid)?;
        }
        let (from, tip, first) = (from.max(1), self.journal.tip(), self.journal.first());
        if from > tip + 1 {
            return Err(ReadError::Lost { from, tip });
        }
        if from < first {
            return Err(ReadError::Pruned { from, first });
        }
        let filters = filters.iter().map(|f| (*f).to_owned()).collect();
        let place = Place {
            reader: self.journal.reader(),
            next: from,
            filters,
            batch: VecDeque::new(),
            ended: false,
        };
        let stream = futures::stream::unfold(place, |mut place| async move {
            if place.ended {
                return None;
            }
            let item = place.next().await;
            place.ended = item.is_err();
            Some((item, place))
        });
        Ok(stream.boxed())
    }

    async fn last(&self, subject: &str) -> Result<Option<Record>, ReadError> {
        check_subject(subject).map_err(ReadError::Invalid)?;
        let Some(seq) = self.heads().last.get(subject).copied() else {
            return Ok(None);
        };
        let mut reader = self.journal.reader();
        reader.wait_for(seq).await.map_err(|e| e.reading_from(seq))?;
        Ok(read_batch(&reader, seq, 0).await?.into_iter().next())
    }

    async fn tip(&self) -> Result<u64, ReadError> {
        Ok(self.journal.tip())
    }

    async fn put_latest(&self, key: &str, value: Bytes) -> Result<(), AppendError> {
        check_latest(key, &value)?;
        self.latest.put(key, value, None).await.map(drop)
    }

    async fn latest(&self, key: &str) -> Result<Option<(Bytes, u64)>, ReadError> {
        check_key(key).map_err(ReadError::Invalid)?;
        self.latest.get(key).await
    }

    async fn put_latest_if(&self, key: &str, value: Bytes, expected: u64) -> Result<u64, AppendError> {
        check_latest(key, &value)?;
        self.latest.put(key, value, Some(expected)).await
    }

    async fn watch_latest(&self, key: &str) -> Result<ValueStream, ReadError> {
        check_key(key).map_err(ReadError::Invalid)?;
        self.latest.watch(key).await
    }

    async fn acquire_lease(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<LeaseOutcome, LeaseError> {
        self.leases.acquire(name, holder, ttl).await
    }

    async fn renew_lease(&self, lease: &Lease) -> Result<Lease, LeaseError> {
        self.leases.renew(lease).await
    }

    async fn release_lease(&self, lease: Lease) -> Result<(), LeaseError> {
        self.leases.release(&lease).await;
        Ok(())
    }

    async fn durability(&self) -> Durability {
        match self.journal.failure() {
            None => Durability::Synced,
            Some(detail) => Durability::Degraded { detail },
        }
    }
}
