//! One suite for every implementation of the stream, each test run against the embedded one and a real NATS server; what lasts or decides
//! also against a cluster whose leader is killed.
//!
//! Left out: what only one of them has (`journal.rs`, `nats.rs`). Invariant: a test sees nothing but the trait.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use exchequer_stream::jetstream::{ConnectError, Options};
use exchequer_stream::{
    AppendError, EventStream, JetStream, Lease, LeaseError, LeaseOutcome, LocalStream, MAX_HEADER_BYTES,
    MAX_HEADERS, MAX_LATEST, MAX_PAYLOAD, Message, ReadError, Record, RecordStream,
};
use exchequer_testkit::{NatsCluster, NatsServer, eventually, temp_dir};
use futures::StreamExt;
use futures::future::{join_all, try_join_all};
use tempfile::TempDir;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);
/// How long a cluster may take to have a leader again.
const ELECTION_PATIENCE: Duration = Duration::from_secs(60);

enum Backend {
    Local(TempDir),
    Nats(Box<NatsServer>),
    Cluster(Box<NatsCluster>),
}

impl Backend {
    fn local() -> Self {
        Self::Local(temp_dir())
    }

    fn jetstream() -> Self {
        Self::Nats(Box::new(NatsServer::start()))
    }

    async fn cluster() -> Self {
        Self::Cluster(Box::new(NatsCluster::start().await))
    }

    async fn open(&self) -> Arc<dyn EventStream> {
        match self {
            Self::Local(dir) => Arc::new(LocalStream::open(dir.path()).unwrap()),
            Self::Nats(server) => {
                let mut options = Options::new(server.url());
                options.prefix = Some("suite".into());
                Arc::new(JetStream::connect(options).await.unwrap())
            }
            Self::Cluster(cluster) => connect(cluster).await,
        }
    }

    /// Everything is closed, the server killed and started again. In a cluster, the stream's leader is killed and the others have to go on;
    /// it is back before the next one is killed.
    async fn restart(&mut self, stream: Arc<dyn EventStream>) -> Arc<dyn EventStream> {
        assert_eq!(Arc::strong_count(&stream), 1, "the embedded stream closes with its last owner");
        drop(stream);
        match self {
            Self::Local(_) => {}
            Self::Nats(server) => server.restart(),
            Self::Cluster(cluster) => {
                for node in 0..3 {
                    cluster.restart(node);
                    cluster.healthy(node).await;
                }
                cluster.kill9(leader(cluster).await);
            }
        }
        self.open().await
    }
}

fn replicated(urls: String) -> Options {
    Options {
        prefix: Some("suite".into()),
        replicas: 3,
        timeout: Duration::from_secs(2),
        ..Options::new(urls)
    }
}

/// Once the streams have leaders.
async fn connect(cluster: &NatsCluster) -> Arc<dyn EventStream> {
    let connected = tokio::sync::OnceCell::new();
    eventually(ELECTION_PATIENCE, || async {
        match JetStream::connect(replicated(cluster.urls())).await {
            Ok(stream) => connected.set(stream).is_ok(),
            Err(error) => {
                assert!(matches!(error, ConnectError::Unavailable(_)), "{error}");
                false
            }
        }
    })
    .await;
    Arc::new(connected.into_inner().unwrap())
}

/// The node that leads the stream.
async fn leader(cluster: &NatsCluster) -> usize {
    let client = async_nats::connect(cluster.url(0)).await.unwrap();
    let context = async_nats::jetstream::new(client);
    let found = tokio::sync::OnceCell::new();
    eventually(ELECTION_PATIENCE, || async {
        let Ok(stream) = context.get_stream("EXCHEQUER_suite").await else { return false };
        let leader = stream.cached_info().cluster.as_ref().and_then(|cluster| cluster.leader.as_deref());
        leader.and_then(|name| cluster.named(name)).is_some_and(|node| found.set(node).is_ok())
    })
    .await;
    found.into_inner().unwrap()
}

async fn take(records: &mut RecordStream, count: usize) -> Vec<Record> {
    let taken = timeout(PATIENCE, records.take(count).map(Result::unwrap).collect::<Vec<_>>()).await;
    taken.expect("records in time")
}

async fn all(stream: &Arc<dyn EventStream>) -> Vec<Record> {
    let tip = usize::try_from(stream.tip().await.unwrap()).unwrap();
    take(&mut stream.read(1, &[]).await.unwrap(), tip).await
}

fn seqs(records: &[Record]) -> Vec<u64> {
    records.iter().map(|r| r.seq).collect()
}

fn held(outcome: LeaseOutcome) -> Lease {
    match outcome {
        LeaseOutcome::Held(lease) => lease,
        LeaseOutcome::HeldBy { holder, .. } => panic!("held by {holder}"),
    }
}

async fn keeps_order_and_content(backend: Backend) {
    let stream = backend.open().await;
    assert_eq!(stream.tip().await, Ok(0));
    assert_eq!(stream.last("events.a").await, Ok(None));
    let first = Message::new("events.a", "one")
        .header("traceparent", "00-ab-cd-01")
        .header("a", "2")
        .header("a", "1");
    assert_eq!(stream.append(first).await, Ok(1));
    assert_eq!(stream.append(Message::new("control.keys", "")).await, Ok(2));
    assert_eq!(stream.append(Message::new("events.a", Bytes::from_static(&[0, 255, 10]))).await, Ok(3));
    assert_eq!(stream.tip().await, Ok(3));

    let records = all(&stream).await;
    assert_eq!(seqs(&records), [1, 2, 3]);
    assert_eq!(
        records.iter().map(|r| r.subject.as_str()).collect::<Vec<_>>(),
        ["events.a", "control.keys", "events.a"]
    );
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(
        records[0].headers,
        [header("a", "1"), header("a", "2"), header("traceparent", "00-ab-cd-01")]
    );
    assert_eq!(records[0].payload, "one");
    assert_eq!((records[1].headers.len(), records[1].payload.len()), (0, 0));
    assert_eq!(records[2].payload.as_ref(), [0, 255, 10]);
    assert!(records.iter().all(|r| r.time_unix_ms > 1_600_000_000_000));
    assert!(records.is_sorted_by_key(|r| r.time_unix_ms));
    assert_eq!(stream.last("events.a").await.unwrap().as_ref(), Some(&records[2]));
    assert_eq!(stream.last("control.keys").await.unwrap().as_ref(), Some(&records[1]));
}

async fn expected_last_sequence_is_the_subjects_own(backend: Backend) {
    let stream = backend.open().await;
    let block = |expected| Message::new("budget.p0", "block").expecting(expected);
    assert_eq!(stream.append(block(7)).await, Err(AppendError::WrongLast { actual: Some(0) }));
    assert_eq!(stream.append(block(0)).await, Ok(1));
    assert_eq!(stream.append(Message::new("events.a", "between")).await, Ok(2));
    assert_eq!(stream.append(block(0)).await, Err(AppendError::WrongLast { actual: Some(1) }));
    assert_eq!(stream.append(block(2)).await, Err(AppendError::WrongLast { actual: Some(1) }));
    assert_eq!(stream.append(block(1)).await, Ok(3));
    assert_eq!(stream.append(Message::new("budget.p1", "other").expecting(0)).await, Ok(4));
    assert_eq!(stream.tip().await, Ok(4));
}

async fn an_expected_tip_gives_a_message_its_sequence_or_none(mut backend: Backend) {
    let mut stream = backend.open().await;
    let at = |tip: u64| Message::new("events.a", format!("{tip}")).expecting_tip(tip);
    assert_eq!(stream.append(at(1)).await, Err(AppendError::WrongLast { actual: Some(0) }));
    assert_eq!(stream.append(at(0)).await, Ok(1));
    assert_eq!(stream.append(Message::new("control.keys", "between")).await, Ok(2));
    assert_eq!(stream.append(at(0)).await, Err(AppendError::WrongLast { actual: Some(2) }));
    assert_eq!(stream.append(at(1)).await, Err(AppendError::WrongLast { actual: Some(2) }));
    assert_eq!(stream.append(at(3)).await, Err(AppendError::WrongLast { actual: Some(2) }));
    stream = backend.restart(stream).await;
    assert_eq!(stream.append(at(2)).await, Ok(3));

    // Handed over together: each takes its own place, and none takes another's.
    let mut acks = Vec::new();
    for tip in [3, 4, 6, 5] {
        acks.push(stream.enqueue(at(tip)).await);
    }
    let mut outcomes = Vec::new();
    for ack in acks {
        outcomes.push(match ack {
            Ok(ack) => ack.await.ok(),
            Err(_) => None,
        });
    }
    assert_eq!(outcomes, [Some(4), Some(5), None, Some(6)]);
    let payloads: Vec<_> = all(&stream).await.into_iter().skip(2).map(|record| record.payload).collect();
    assert_eq!(payloads, ["2", "3", "4", "5"].map(Bytes::from));
}

async fn compare_and_swap_has_one_winner(backend: Backend) {
    let stream = backend.open().await;
    let mut last = 0;
    for round in 0..20 {
        let tries = (0..16).map(|i| {
            let stream = Arc::clone(&stream);
            let message = Message::new("budget.p0", format!("{round}/{i}")).expecting(last);
            tokio::spawn(async move { stream.append(message).await })
        });
        let outcomes: Vec<_> = join_all(tries).await.into_iter().map(Result::unwrap).collect();
        let won: Vec<u64> = outcomes.iter().filter_map(|o| o.as_ref().ok().copied()).collect();
        assert_eq!(won.len(), 1, "{outcomes:?}");
        let refused = outcomes.iter().filter(|o| matches!(o, Err(AppendError::WrongLast { .. }))).count();
        assert_eq!(refused, 15, "{outcomes:?}");
        last = won[0];
    }
    assert_eq!(seqs(&all(&stream).await), (1..=20).collect::<Vec<_>>());
}

async fn reads_from_the_middle_and_then_live(backend: Backend) {
    let stream = backend.open().await;
    for i in 1..=10 {
        stream.append(Message::new("events.a", format!("{i}"))).await.unwrap();
    }
    let mut records = stream.read(6, &[]).await.unwrap();
    assert_eq!(seqs(&take(&mut records, 5).await), [6, 7, 8, 9, 10]);
    let mut at_the_end = stream.read(11, &[]).await.unwrap();
    assert!(
        timeout(Duration::from_millis(50), records.next()).await.is_err(),
        "nothing yet, and not the end"
    );
    for i in 11..=13 {
        stream.append(Message::new("events.a", format!("{i}"))).await.unwrap();
    }
    assert_eq!(seqs(&take(&mut records, 3).await), [11, 12, 13]);
    assert_eq!(seqs(&take(&mut at_the_end, 3).await), [11, 12, 13]);
    assert_eq!(seqs(&take(&mut stream.read(0, &[]).await.unwrap(), 2).await), [1, 2]);
}

async fn reading_beyond_the_end_is_an_error(backend: Backend) {
    let stream = backend.open().await;
    stream.append(Message::new("events.a", "1")).await.unwrap();
    assert_eq!(stream.read(3, &[]).await.err(), Some(ReadError::Lost { from: 3, tip: 1 }));
    assert!(stream.read(2, &[]).await.is_ok());
}

async fn filters_select_subjects(backend: Backend) {
    let stream = backend.open().await;
    for subject in ["events.a", "budget.p0", "events.b", "control.keys", "events.a"] {
        stream.append(Message::new(subject, subject)).await.unwrap();
    }
    for (filters, expected) in [
        (&["events.*"][..], &[1, 3, 5][..]),
        (&["events.a"], &[1, 5]),
        (&["budget.>", "control.*"], &[2, 4]),
        (&["*.a"], &[1, 5]),
        (&[">"], &[1, 2, 3, 4, 5]),
        (&[], &[1, 2, 3, 4, 5]),
    ] {
        let mut records = stream.read(1, filters).await.unwrap();
        assert_eq!(seqs(&take(&mut records, expected.len()).await), expected, "{filters:?}");
    }
    let mut live = stream.read(2, &["control.*"]).await.unwrap();
    assert_eq!(seqs(&take(&mut live, 1).await), [4]);
    stream.append(Message::new("events.a", "")).await.unwrap();
    stream.append(Message::new("control.keys", "")).await.unwrap();
    assert_eq!(seqs(&take(&mut live, 1).await), [7]);
    assert!(matches!(stream.read(1, &["a..b"]).await.err(), Some(ReadError::Invalid(_))));
}

async fn pipelined_messages_keep_their_order(backend: Backend) {
    let stream = backend.open().await;
    let mut acks = Vec::new();
    for i in 0..1000 {
        acks.push(stream.enqueue(Message::new("events.a", format!("{i}"))).await.unwrap());
    }
    assert_eq!(try_join_all(acks).await.unwrap(), (1..=1000).collect::<Vec<_>>());
    for (i, record) in all(&stream).await.iter().enumerate() {
        assert_eq!(record.payload, format!("{i}"));
    }
}

async fn concurrent_appends_are_there_once(backend: Backend) {
    let stream = backend.open().await;
    let tasks = (0..20).map(|task| {
        let stream = Arc::clone(&stream);
        tokio::spawn(async move {
            for i in 0..100 {
                stream
                    .append(Message::new(format!("events.agent{task}"), format!("{task}/{i}")))
                    .await
                    .unwrap();
            }
        })
    });
    let mut live = stream.read(1, &[]).await.unwrap();
    join_all(tasks).await.into_iter().for_each(Result::unwrap);
    let records = take(&mut live, 2000).await;
    assert_eq!(seqs(&records), (1..=2000).collect::<Vec<_>>());
    assert_eq!(stream.tip().await, Ok(2000));
    assert_eq!(records.iter().map(|r| r.payload.clone()).collect::<BTreeSet<_>>().len(), 2000);
    assert_eq!(records, all(&stream).await);
    for task in 0..20 {
        let own = records.iter().rfind(|r| r.subject == format!("events.agent{task}")).unwrap();
        assert_eq!(own.payload, format!("{task}/99"), "a writer's messages in its order");
        assert_eq!(stream.last(&own.subject).await.unwrap().as_ref(), Some(own));
    }
}

async fn the_largest_messages_pass(backend: Backend) {
    let stream = backend.open().await;
    let payload = |i: u8| Bytes::from(vec![i; MAX_PAYLOAD]);
    for i in 0..24 {
        let message =
            Message::new("events.a", payload(i)).header("traceparent", "x".repeat(MAX_HEADER_BYTES - 11));
        stream.append(message).await.unwrap();
    }
    for (i, record) in (0..).zip(all(&stream).await) {
        assert_eq!(record.payload, payload(i));
    }
}

async fn what_is_above_a_limit_or_malformed_is_refused(backend: Backend) {
    let stream = backend.open().await;
    let too_large = |what, size, limit| Err(AppendError::TooLarge { what, size, limit });
    let payload = vec![0; MAX_PAYLOAD + 1];
    assert_eq!(
        stream.append(Message::new("events.a", payload)).await,
        too_large("payload", MAX_PAYLOAD + 1, MAX_PAYLOAD)
    );
    let long = Message::new("events.a", "").header("n", "x".repeat(MAX_HEADER_BYTES));
    assert_eq!(stream.append(long).await, too_large("headers", MAX_HEADER_BYTES + 1, MAX_HEADER_BYTES));
    let many = (0..=MAX_HEADERS).fold(Message::new("events.a", ""), |m, i| m.header(format!("n{i}"), "v"));
    assert_eq!(stream.append(many).await, too_large("header count", MAX_HEADERS + 1, MAX_HEADERS));
    let value = Bytes::from(vec![0; MAX_LATEST + 1]);
    assert_eq!(
        stream.put_latest("k", value).await.map(|()| 0),
        too_large("latest value", MAX_LATEST + 1, MAX_LATEST)
    );
    for subject in ["events", "events.a.b", "events.*", "other.a", "suite.events.a"] {
        let outcome = stream.append(Message::new(subject, "")).await;
        assert!(matches!(outcome, Err(AppendError::Invalid(_))), "{subject}: {outcome:?}");
    }
    let forged = Message::new("events.a", "").header("Nats-Msg-Id", "1");
    assert!(matches!(stream.append(forged).await, Err(AppendError::Invalid(_))));
    assert_eq!(stream.tip().await, Ok(0));
}

async fn a_restart_keeps_everything(mut backend: Backend) {
    let mut stream = backend.open().await;
    for round in 0..3_u64 {
        for i in 0..50 {
            let message = Message::new("events.a", format!("{round}/{i}")).header("round", round.to_string());
            stream.append(message).await.unwrap();
        }
        stream.append(Message::new("budget.p0", "").expecting(round * 51)).await.unwrap();
        let before = all(&stream).await;
        stream = backend.restart(stream).await;
        assert_eq!(stream.tip().await, Ok((round + 1) * 51));
        assert_eq!(all(&stream).await, before);
        let stale = stream.append(Message::new("budget.p0", "").expecting(round * 51)).await;
        assert_eq!(stale, Err(AppendError::WrongLast { actual: Some((round + 1) * 51) }));
    }
}

async fn latest_values_are_kept_and_watched(mut backend: Backend) {
    let stream = backend.open().await;
    let mut early = stream.watch_latest("receipt.a").await.unwrap();
    assert!(timeout(Duration::from_millis(50), early.next()).await.is_err(), "no value yet");
    stream.put_latest("receipt.a", Bytes::from_static(b"1")).await.unwrap();
    assert_eq!(timeout(PATIENCE, early.next()).await.unwrap(), Some(Ok(Bytes::from_static(b"1"))));
    stream.put_latest("receipt.b", Bytes::from_static(b"other")).await.unwrap();
    stream.put_latest("receipt.a", Bytes::from_static(b"2")).await.unwrap();
    assert_eq!(timeout(PATIENCE, early.next()).await.unwrap(), Some(Ok(Bytes::from_static(b"2"))));
    let mut late = stream.watch_latest("receipt.a").await.unwrap();
    assert_eq!(timeout(PATIENCE, late.next()).await.unwrap(), Some(Ok(Bytes::from_static(b"2"))));
    for i in 3..=50 {
        stream.put_latest("receipt.a", Bytes::from(format!("{i}"))).await.unwrap();
    }
    timeout(PATIENCE, late.any(async |v| v.unwrap() == "50")).await.expect("the last value arrives");
    assert!(matches!(stream.watch_latest("../etc").await.err(), Some(ReadError::Invalid(_))));
    drop(early);

    let stream = backend.restart(stream).await;
    let mut again = stream.watch_latest("receipt.a").await.unwrap();
    assert_eq!(timeout(PATIENCE, again.next()).await.unwrap(), Some(Ok(Bytes::from_static(b"50"))));
    assert_eq!(stream.tip().await, Ok(0), "latest values are no messages");
}

async fn a_latest_value_is_swapped_only_at_the_expected_revision(mut backend: Backend) {
    let stream = backend.open().await;
    assert_eq!(stream.latest("checkpoint").await, Ok(None));
    let swap = async |stream: &Arc<dyn EventStream>, value: &'static str, expected| {
        stream.put_latest_if("checkpoint", Bytes::from_static(value.as_bytes()), expected).await
    };
    let refused = swap(&stream, "early", 7).await;
    assert!(matches!(refused, Err(AppendError::WrongLast { .. })), "{refused:?}");
    let first = swap(&stream, "first", 0).await.unwrap();
    assert_eq!(stream.latest("checkpoint").await, Ok(Some((Bytes::from_static(b"first"), first))));
    for stale in [0, first + 1] {
        let refused = swap(&stream, "stale", stale).await;
        assert!(matches!(refused, Err(AppendError::WrongLast { .. })), "{refused:?}");
    }
    // Another key changes nothing here; a plain write does.
    stream.put_latest("other", Bytes::from_static(b"x")).await.unwrap();
    let second = swap(&stream, "second", first).await.unwrap();
    assert!(second > first && first > 0);
    stream.put_latest("checkpoint", Bytes::from_static(b"third")).await.unwrap();
    assert!(matches!(swap(&stream, "stale", second).await, Err(AppendError::WrongLast { .. })));
    let (value, third) = stream.latest("checkpoint").await.unwrap().unwrap();
    assert!(value == "third" && third > second);
    assert_eq!(
        stream.put_latest_if("checkpoint", Bytes::from(vec![0; MAX_LATEST + 1]), third).await,
        Err(AppendError::TooLarge { what: "latest value", size: MAX_LATEST + 1, limit: MAX_LATEST })
    );
    assert!(matches!(stream.latest("../etc").await, Err(ReadError::Invalid(_))));

    let stream = backend.restart(stream).await;
    assert_eq!(stream.latest("checkpoint").await, Ok(Some((value, third))));
    assert!(matches!(swap(&stream, "stale", second).await, Err(AppendError::WrongLast { .. })));
    let mut values = stream.watch_latest("checkpoint").await.unwrap();
    assert_eq!(timeout(PATIENCE, values.next()).await.unwrap(), Some(Ok(Bytes::from_static(b"third"))));
    assert!(swap(&stream, "fourth", third).await.unwrap() > third);
    assert_eq!(timeout(PATIENCE, values.next()).await.unwrap(), Some(Ok(Bytes::from_static(b"fourth"))));
}

async fn of_those_that_swap_a_latest_value_at_once_one_wins(backend: Backend) {
    let stream = backend.open().await;
    let mut last = 0;
    for round in 0..10 {
        let tries = (0..12).map(|i| {
            let stream = Arc::clone(&stream);
            let value = Bytes::from(format!("{round}/{i}"));
            tokio::spawn(
                async move { (value.clone(), stream.put_latest_if("checkpoint", value, last).await) },
            )
        });
        let outcomes: Vec<_> = join_all(tries).await.into_iter().map(Result::unwrap).collect();
        let won: Vec<_> =
            outcomes.iter().filter_map(|(value, o)| Some((value.clone(), *o.as_ref().ok()?))).collect();
        assert_eq!(won.len(), 1, "{outcomes:?}");
        let refused = |o: &Result<u64, AppendError>| matches!(o, Err(AppendError::WrongLast { .. }));
        assert_eq!(outcomes.iter().filter(|(_, o)| refused(o)).count(), 11, "{outcomes:?}");
        assert_eq!(stream.latest("checkpoint").await, Ok(Some(won[0].clone())));
        last = won[0].1;
    }
}

async fn a_lease_has_one_holder(backend: Backend) {
    let stream = backend.open().await;
    let ttl = Duration::from_secs(30);
    let tries = (0..8).map(|i| {
        let stream = Arc::clone(&stream);
        tokio::spawn(async move {
            stream.acquire_lease("partition.0", &format!("instance{i}"), ttl).await.unwrap()
        })
    });
    let outcomes: Vec<_> = join_all(tries).await.into_iter().map(Result::unwrap).collect();
    let mut winners =
        outcomes.iter().filter_map(|o| if let LeaseOutcome::Held(lease) = o { Some(lease) } else { None });
    let lease = winners.next().expect("somebody has it").clone();
    assert!(winners.next().is_none(), "{outcomes:?}");
    assert_eq!((lease.epoch, lease.name.as_str(), lease.ttl), (1, "partition.0", ttl));
    for outcome in &outcomes {
        if let LeaseOutcome::HeldBy { holder, expires_in } = outcome {
            assert_eq!(holder, &lease.holder);
            assert!(*expires_in > ttl / 2 && *expires_in <= ttl + Duration::from_secs(1), "{expires_in:?}");
        }
    }
    let other = held(stream.acquire_lease("partition.1", "another", ttl).await.unwrap());
    assert_eq!(other.epoch, 1, "another lease is another's");

    let renewed = stream.renew_lease(&lease).await.unwrap();
    assert_eq!(renewed.epoch, 1);
    assert!(renewed.remaining() > ttl / 2 && renewed.remaining() <= ttl);
    stream.release_lease(renewed.clone()).await.unwrap();
    let next = held(stream.acquire_lease("partition.0", "another", ttl).await.unwrap());
    assert_eq!(next.epoch, 2, "released, so free at once, under a new epoch");
    assert!(matches!(stream.renew_lease(&renewed).await, Err(LeaseError::Lost(_))));
    stream.release_lease(renewed).await.unwrap();
    assert!(stream.renew_lease(&next).await.is_ok(), "the late release of an old epoch takes nothing away");

    let again = held(stream.acquire_lease("partition.0", "another", ttl).await.unwrap());
    assert_eq!(again.epoch, 3, "a holder takes over from itself");
    assert!(matches!(stream.renew_lease(&next).await, Err(LeaseError::Lost(_))));
    assert!(matches!(stream.acquire_lease("p", "h", Duration::ZERO).await, Err(LeaseError::Invalid(_))));
}

async fn a_lease_runs_out_unless_renewed(backend: Backend) {
    let stream = backend.open().await;
    let ttl = Duration::from_millis(400);
    let start = Instant::now();
    let mut lease = held(stream.acquire_lease("signer", "first", ttl).await.unwrap());
    while start.elapsed() < 3 * ttl {
        lease = stream.renew_lease(&lease).await.unwrap();
        let outcome = stream.acquire_lease("signer", "second", ttl).await.unwrap();
        assert!(matches!(outcome, LeaseOutcome::HeldBy { .. }), "{outcome:?} after {:?}", start.elapsed());
    }
    let taken = tokio::sync::Mutex::new(None);
    eventually(PATIENCE, || async {
        match stream.acquire_lease("signer", "second", ttl).await.unwrap() {
            LeaseOutcome::Held(lease) => *taken.lock().await = Some(lease),
            LeaseOutcome::HeldBy { .. } => return false,
        }
        true
    })
    .await;
    assert_eq!(lease.remaining(), Duration::ZERO, "the first knew that its time was over");
    assert_eq!(taken.into_inner().unwrap().epoch, lease.epoch + 1);
    assert!(matches!(stream.renew_lease(&lease).await, Err(LeaseError::Lost(_))));
}

async fn epochs_rise_across_restarts(mut backend: Backend) {
    let mut stream = backend.open().await;
    for epoch in 1..=4 {
        let lease =
            held(stream.acquire_lease("partition.0", "instance", Duration::from_secs(60)).await.unwrap());
        assert_eq!(lease.epoch, epoch);
        stream = backend.restart(stream).await;
    }
}

macro_rules! conformance {
    ($($test:ident),* $(,)?) => {
        mod local {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::Backend::local()).await;
            })*
        }
        mod jetstream {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::Backend::jetstream()).await;
            })*
        }
    };
}

macro_rules! conformance_of_a_cluster {
    ($($test:ident),* $(,)?) => {
        mod cluster {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::Backend::cluster().await).await;
            })*
        }
    };
}

conformance!(
    keeps_order_and_content,
    expected_last_sequence_is_the_subjects_own,
    an_expected_tip_gives_a_message_its_sequence_or_none,
    compare_and_swap_has_one_winner,
    reads_from_the_middle_and_then_live,
    reading_beyond_the_end_is_an_error,
    filters_select_subjects,
    pipelined_messages_keep_their_order,
    concurrent_appends_are_there_once,
    the_largest_messages_pass,
    what_is_above_a_limit_or_malformed_is_refused,
    a_restart_keeps_everything,
    latest_values_are_kept_and_watched,
    a_latest_value_is_swapped_only_at_the_expected_revision,
    of_those_that_swap_a_latest_value_at_once_one_wins,
    a_lease_has_one_holder,
    a_lease_runs_out_unless_renewed,
    epochs_rise_across_restarts,
);

conformance_of_a_cluster!(
    keeps_order_and_content,
    expected_last_sequence_is_the_subjects_own,
    an_expected_tip_gives_a_message_its_sequence_or_none,
    compare_and_swap_has_one_winner,
    reads_from_the_middle_and_then_live,
    pipelined_messages_keep_their_order,
    a_restart_keeps_everything,
    latest_values_are_kept_and_watched,
    a_latest_value_is_swapped_only_at_the_expected_revision,
    of_those_that_swap_a_latest_value_at_once_one_wins,
    a_lease_has_one_holder,
    a_lease_runs_out_unless_renewed,
    epochs_rise_across_restarts,
);
