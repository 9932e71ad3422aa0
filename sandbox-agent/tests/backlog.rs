//! Hours without a stream: a backlog is published while executions go on recording, 100,000 events to an embedded stream whose
//! acknowledgements are held back, 20,000 to a nats-server that was away.
//!
//! Left out: time. Invariant: what is asserted is counts and order, so a slow machine is only slower.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ed25519_dalek::SigningKey;
use exchequer_event::{
    control, name,
    seal::event_digest,
    v1::{self, event::Kind},
};
use exchequer_stream::{
    Ack, AppendError, Durability, EventStream, Lease, LeaseError, LeaseOutcome, LocalStream,
    Message as StreamMessage, ReadError, Record, RecordStream, ValueStream,
    jetstream::{JetStream, Options},
};
use exchequer_testkit::{NatsServer, eventually};
use futures::{FutureExt as _, StreamExt as _};
use prost::{Message as _, bytes::Bytes};
use sandbox_agent::{
    publish::{MAX_IN_FLIGHT, Progress, Publisher},
    spool::{NewEvent, Spool},
};
use tokio::sync::{Semaphore, watch};

const PATIENCE: Duration = Duration::from_secs(300);
const BACKLOG: u64 = 100_000;

fn event(text: &str) -> NewEvent {
    NewEvent::own(Kind::AgentStopped(v1::AgentStopped { reason: text.to_owned() }))
}

async fn spool(dir: &std::path::Path, events: u64) -> Arc<Spool> {
    let spool = Arc::new(Spool::open(dir, "a", 1 << 30, 64, 0).unwrap().0);
    let recorders = (0..64).map(|recorder| {
        let spool = Arc::clone(&spool);
        tokio::spawn(async move {
            for _ in (recorder..events).step_by(64) {
                spool.record(event("before")).await.unwrap();
            }
        })
    });
    for recorder in recorders.collect::<Vec<_>>() {
        recorder.await.unwrap();
    }
    assert_eq!(spool.tip(), events);
    spool
}

fn publisher(spool: &Arc<Spool>, stream: Arc<dyn EventStream>) -> Publisher {
    Publisher {
        spool: Arc::clone(spool),
        stream,
        key: SigningKey::from_bytes(&[2; 32]),
        ledger_key: SigningKey::from_bytes(&[1; 32]).verifying_key(),
        resend_after: PATIENCE,
    }
}

/// The embedded stream behind a door that can be shut; counts what is in flight.
#[derive(Debug)]
struct Watched {
    inner: LocalStream,
    door: Arc<Semaphore>,
    in_flight: Arc<AtomicUsize>,
    most_in_flight: AtomicUsize,
}

#[tonic::async_trait]
impl EventStream for Watched {
    async fn enqueue(&self, message: StreamMessage) -> Result<Ack, AppendError> {
        let now = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_in_flight.fetch_max(now, Ordering::SeqCst);
        let ack = self.inner.enqueue(message).await?;
        let (door, in_flight) = (Arc::clone(&self.door), Arc::clone(&self.in_flight));
        Ok(async move {
            let _open = door.acquire().await.unwrap();
            let outcome = ack.await;
            in_flight.fetch_sub(1, Ordering::SeqCst);
            outcome
        }
        .boxed())
    }

    async fn read(&self, from: u64, filters: &[&str]) -> Result<RecordStream, ReadError> {
        self.inner.read(from, filters).await
    }

    async fn last(&self, subject: &str) -> Result<Option<Record>, ReadError> {
        self.inner.last(subject).await
    }

    async fn tip(&self) -> Result<u64, ReadError> {
        self.inner.tip().await
    }

    async fn put_latest(&self, key: &str, value: Bytes) -> Result<(), AppendError> {
        self.inner.put_latest(key, value).await
    }

    async fn latest(&self, key: &str) -> Result<Option<(Bytes, u64)>, ReadError> {
        self.inner.latest(key).await
    }

    async fn put_latest_if(&self, key: &str, value: Bytes, expected: u64) -> Result<u64, AppendError> {
        self.inner.put_latest_if(key, value, expected).await
    }

    async fn watch_latest(&self, key: &str) -> Result<ValueStream, ReadError> {
        self.inner.watch_latest(key).await
    }

    async fn acquire_lease(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<LeaseOutcome, LeaseError> {
        self.inner.acquire_lease(name, holder, ttl).await
    }

    async fn renew_lease(&self, lease: &Lease) -> Result<Lease, LeaseError> {
        self.inner.renew_lease(lease).await
    }

    async fn release_lease(&self, lease: Lease) -> Result<(), LeaseError> {
        self.inner.release_lease(lease).await
    }

    async fn durability(&self) -> Durability {
        self.inner.durability().await
    }
}

/// Reads events up to `last`, each once and linked to the one before; how many batches those up to `backlog` came in.
async fn whole_in_order(batches: &mut RecordStream, backlog: u64, last: u64) -> u64 {
    let (mut next, mut count, mut prev) = (1, 0, None);
    while next <= last {
        let record = tokio::time::timeout(PATIENCE, batches.next()).await.unwrap().unwrap().unwrap();
        let batch = v1::SignedBatch::decode(record.payload).unwrap();
        for bytes in &batch.events {
            let event = v1::Event::decode(bytes.clone()).unwrap();
            assert_eq!(event.seq, next, "each once, in order");
            assert!(
                prev.is_none_or(|prev: exchequer_event::digest::Digest| event.prev_hash == prev.0.as_slice())
            );
            prev = Some(event_digest(bytes));
            next += 1;
        }
        count += u64::from(next <= backlog);
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_reaches_a_nats_server_that_was_away_while_executions_record() {
    const BACKLOG: u64 = 20_000;
    let mut server = NatsServer::start();
    let stream = Arc::new(JetStream::connect(Options::new(server.url())).await.unwrap());
    server.kill9();
    let dir = exchequer_testkit::temp_dir();
    let spool = spool(&dir.path().join("spool"), BACKLOG).await;
    let (report, _) = watch::channel(Progress::default());
    let publishing = tokio::spawn(publisher(&spool, Arc::clone(&stream) as Arc<dyn EventStream>).run(report));
    for _ in 0..500 {
        spool.record(event("while nothing is published")).await.unwrap();
    }
    assert_eq!(spool.first(), 1, "nothing goes that nobody has confirmed");
    server.restart();
    let recording = Arc::clone(&spool);
    let recorder = tokio::spawn(async move {
        for _ in 0..500 {
            recording.record(event("while it is published")).await.unwrap();
        }
    });
    // What was in flight when the server came back may have been sent twice: the broker keeps one of each.
    let back = || async { stream.tip().await.is_ok() };
    eventually(PATIENCE, back).await;
    let mut batches = stream.read(1, &["events.a"]).await.unwrap();
    let count = whole_in_order(&mut batches, BACKLOG, BACKLOG + 1000).await;
    assert!(count < BACKLOG / 2, "{count} batches for {BACKLOG} events");
    recorder.await.unwrap();
    publishing.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_published_whole_in_order_and_in_full_batches_while_executions_record() {
    let dir = exchequer_testkit::temp_dir();
    let spool = spool(&dir.path().join("spool"), BACKLOG).await;
    let stream = Arc::new(Watched {
        inner: LocalStream::open(&dir.path().join("stream")).unwrap(),
        door: Arc::new(Semaphore::new(0)),
        in_flight: Arc::default(),
        most_in_flight: AtomicUsize::new(0),
    });
    let mut batches = stream.read(1, &["events.a"]).await.unwrap();
    let (report, _) = watch::channel(Progress::default());
    let publishing = tokio::spawn(publisher(&spool, Arc::clone(&stream) as Arc<dyn EventStream>).run(report));
    eventually(PATIENCE, || async { stream.in_flight.load(Ordering::SeqCst) == MAX_IN_FLIGHT }).await;
    // Nothing is acknowledged and the whole backlog waits: recording does not.
    for _ in 0..500 {
        spool.record(event("while nothing is published")).await.unwrap();
    }
    assert_eq!(stream.in_flight.load(Ordering::SeqCst), MAX_IN_FLIGHT, "nor is more read meanwhile");
    stream.door.add_permits(64);
    let recording = Arc::clone(&spool);
    let recorder = tokio::spawn(async move {
        for _ in 0..500 {
            recording.record(event("while it is published")).await.unwrap();
        }
    });
    let count = whole_in_order(&mut batches, BACKLOG, BACKLOG + 1000).await;
    recorder.await.unwrap();
    let least = BACKLOG.div_ceil(name::MAX_BATCH_EVENTS as u64);
    assert!(count <= least + 1, "{count} batches for the backlog, {least} would do");
    assert_eq!(stream.most_in_flight.load(Ordering::SeqCst), MAX_IN_FLIGHT);
    // One receipt for all of it.
    let tip = spool.tip();
    let last = spool.reader().read(tip, 1).unwrap().remove(0);
    let hash = event_digest(&last.body).into();
    let head = v1::AgentHead { agent_id: "a".into(), epoch: spool.epoch(), seq: tip, hash };
    let receipt = v1::Receipt { head: Some(head), ..v1::Receipt::default() };
    let signed = control::sign_receipt(&SigningKey::from_bytes(&[1; 32]), &receipt).encode_to_vec();
    stream.put_latest(&name::receipt_key("a"), signed.into()).await.unwrap();
    eventually(PATIENCE, || async { spool.confirmed_seq() == tip && spool.first() > 1 }).await;
    publishing.abort();
}
