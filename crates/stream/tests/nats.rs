//! What only the JetStream implementation has: server crashes, set-up checks, durability checks.
//!
//! Left out: what holds for every implementation (`conformance.rs`). Invariant: the server is a real one.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use bytes::Bytes;
use exchequer_stream::jetstream::{ConnectError, JetStream, Options};
use exchequer_stream::{AppendError, Durability, EventStream, Message, ReadError, RecordStream};
use exchequer_testkit::{NatsCluster, NatsServer, Sync, eventually};
use futures::StreamExt;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

/// What was acknowledged, by sequence, and what may or may not be there.
type Written = (BTreeMap<u64, String>, BTreeSet<String>);

/// Eight writers that append for as long as they are let.
struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<Written>>,
}

impl Writers {
    fn start(stream: &Arc<JetStream>) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let write = |writer| {
            let (stream, stop, acknowledged) =
                (Arc::clone(stream), Arc::clone(&stop), Arc::clone(&acknowledged));
            tokio::spawn(async move {
                let (mut acked, mut unknown, mut i) = (BTreeMap::new(), BTreeSet::new(), 0_u64);
                while !stop.load(Ordering::Relaxed) {
                    let payload = format!("{writer}/{i}");
                    match stream.append(Message::new(format!("events.w{writer}"), payload.clone())).await {
                        Ok(seq) => {
                            acked.insert(seq, payload);
                            acknowledged.fetch_add(1, Ordering::Relaxed);
                            i += 1;
                        }
                        // Never sent again, so it may be there once or not at all.
                        Err(AppendError::Unknown(_)) => {
                            unknown.insert(payload);
                            i += 1;
                        }
                        Err(AppendError::Unavailable(_)) => tokio::task::yield_now().await,
                        Err(other) => panic!("{other}"),
                    }
                }
                (acked, unknown)
            })
        };
        let tasks = (0..8).map(write).collect();
        Self { stop, acknowledged, tasks }
    }

    /// Waits until so many more were acknowledged.
    async fn write(&self, more: usize) {
        let enough = self.acknowledged.load(Ordering::Relaxed) + more;
        eventually(PATIENCE, || async { self.acknowledged.load(Ordering::Relaxed) >= enough }).await;
    }

    /// Stops, and compares what was acknowledged, at least so many, with what a reader has met all the while.
    async fn check(self, stream: &JetStream, live: RecordStream, at_least: usize) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut acked, mut unknown) = (BTreeMap::new(), BTreeSet::new());
        for writer in self.tasks {
            let (more_acked, more_unknown) = writer.await.unwrap();
            acked.extend(more_acked);
            unknown.extend(more_unknown);
        }
        let tip = usize::try_from(stream.tip().await.unwrap()).unwrap();
        let records = timeout(PATIENCE, live.take(tip).map(Result::unwrap).collect::<Vec<_>>())
            .await
            .expect("the reader goes on");
        assert_eq!(records.iter().map(|r| r.seq).collect::<Vec<_>>(), (1..=tip as u64).collect::<Vec<_>>());
        let found: BTreeMap<u64, String> =
            records.iter().map(|r| (r.seq, String::from_utf8(r.payload.to_vec()).unwrap())).collect();
        for (seq, payload) in &acked {
            assert_eq!(found.get(seq), Some(payload), "acknowledged at {seq}");
        }
        let distinct: BTreeSet<&String> = found.values().collect();
        assert_eq!(distinct.len(), found.len(), "nothing is there twice");
        assert!(
            found.iter().all(|(seq, p)| acked.contains_key(seq) || unknown.contains(p)),
            "nothing unexpected"
        );
        assert!(acked.len() >= at_least);
    }
}

async fn put_progress(stream: &JetStream, round: u32) {
    eventually(PATIENCE, || async {
        stream.put_latest("progress", Bytes::from(format!("{round}"))).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_server_under_load_loses_and_doubles_nothing_acknowledged() {
    let mut server = NatsServer::start();
    let stream = Arc::new(JetStream::connect(Options::new(server.url())).await.unwrap());
    let live = stream.read(1, &[]).await.unwrap();
    let watched = stream.watch_latest("progress").await.unwrap();
    let writers = Writers::start(&stream);
    for round in 1..=4 {
        writers.write(300).await;
        put_progress(&stream, round).await;
        server.kill9();
        server.restart();
    }
    writers.write(300).await;
    writers.check(&stream, live, 1500).await;
    timeout(PATIENCE, watched.any(async |v| v.unwrap() == "4")).await.expect("the watch goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_each_node_of_a_cluster_under_load_loses_and_doubles_nothing_acknowledged() {
    let mut cluster = NatsCluster::start().await;
    let options = Options {
        replicas: 3,
        timeout: Duration::from_secs(2),
        monitor_urls: cluster.monitor_urls(),
        ..Options::new(cluster.urls())
    };
    let stream = Arc::new(JetStream::connect(options).await.unwrap());
    assert_eq!(stream.durability().await, Durability::Synced);
    let live = stream.read(1, &[]).await.unwrap();
    let watched = stream.watch_latest("progress").await.unwrap();
    let writers = Writers::start(&stream);
    for (round, node) in [0, 1, 2].into_iter().enumerate() {
        writers.write(300).await;
        put_progress(&stream, u32::try_from(round).unwrap()).await;
        cluster.kill9(node);
        // Two of three are enough, whether the third led or not.
        writers.write(300).await;
        cluster.restart(node);
        cluster.healthy(node).await;
    }
    writers.check(&stream, live, 1800).await;
    timeout(PATIENCE, watched.any(async |v| v.unwrap() == "2")).await.expect("the watch goes on");
    assert_eq!(stream.durability().await, Durability::Synced);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_appends_are_refused_and_readers_wait() {
    let mut server = NatsServer::start();
    let stream = JetStream::connect(Options::new(server.url())).await.unwrap();
    stream.append(Message::new("events.a", "1")).await.unwrap();
    stream.put_latest("k", Bytes::from_static(b"1")).await.unwrap();
    let mut watched = stream.watch_latest("k").await.unwrap();
    assert_eq!(timeout(PATIENCE, watched.next()).await.unwrap(), Some(Ok(Bytes::from_static(b"1"))));
    server.kill9();
    eventually(PATIENCE, || async { !stream.is_connected() }).await;
    let refused = stream.append(Message::new("events.a", "never")).await;
    assert!(matches!(refused, Err(AppendError::Unavailable(_))), "{refused:?}");
    assert!(matches!(stream.tip().await, Err(ReadError::Unavailable(_))));
    let mut records = stream.read(1, &[]).await.unwrap();
    server.restart();
    let record = timeout(PATIENCE, records.next()).await.unwrap().unwrap().unwrap();
    assert_eq!((record.seq, record.payload.as_ref()), (1, &b"1"[..]));
    eventually(PATIENCE, || async { stream.is_connected() }).await;
    assert_eq!(stream.append(Message::new("events.a", "2")).await, Ok(2));
    assert_eq!(timeout(PATIENCE, records.next()).await.unwrap().unwrap().unwrap().seq, 2);
    let repeated = timeout(Duration::from_secs(2), watched.next()).await;
    assert!(repeated.is_err(), "the old value again: {repeated:?}");
    stream.put_latest("k", Bytes::from_static(b"2")).await.unwrap();
    let next = timeout(PATIENCE, watched.next()).await.unwrap();
    assert_eq!(next, Some(Ok(Bytes::from_static(b"2"))));
}

/// A reader at the end of ten messages, over a server that then comes back with `kept` of them and takes `taken` others.
async fn reader_after_a_loss(kept: u64, taken: u64) -> (u64, Result<u64, ReadError>) {
    let mut server = NatsServer::start();
    let stream = JetStream::connect(Options::new(server.url())).await.unwrap();
    let append = async |text: String| {
        eventually(PATIENCE, || async {
            stream.append(Message::new("events.a", text.clone())).await.is_ok()
        })
        .await;
    };
    for i in 1..=kept {
        append(format!("{i}")).await;
    }
    let copy = server.copy_store();
    for i in kept + 1..=10 {
        append(format!("{i}")).await;
    }
    let mut records = stream.read(1, &[]).await.unwrap();
    for _ in 1..=10 {
        timeout(PATIENCE, records.next()).await.unwrap().unwrap().unwrap();
    }
    // Others are faster than the reader: it has not noticed anything yet.
    server.kill9();
    server.restart_from(copy.path());
    for i in 1..=taken {
        append(format!("other {i}")).await;
    }
    let next = timeout(PATIENCE, records.next()).await.unwrap().unwrap();
    (stream.tip().await.unwrap(), next.map(|record| record.seq))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_never_reads_on_after_a_store_that_lost_what_it_had_read() {
    assert_eq!(reader_after_a_loss(9, 0).await, (9, Err(ReadError::Lost { from: 11, tip: 9 })));
    // With as many or more others in their place, or just before the reader looked, it looks as if nothing were missing.
    let (tip, next) = reader_after_a_loss(7, 5).await;
    let is_lost = matches!(next, Err(ReadError::Lost { from: 11, tip: 7..10 }));
    assert!(tip == 12 && (is_lost || next == Err(ReadError::Replaced { seq: 10 })), "{next:?}");
    assert_eq!(reader_after_a_loss(10, 1).await, (11, Ok(11)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_over_a_server_that_lost_the_value_it_had_seen() {
    let mut server = NatsServer::start();
    let stream = JetStream::connect(Options::new(server.url())).await.unwrap();
    let put = async |value: &'static str| {
        eventually(PATIENCE, || async { stream.put_latest("k", Bytes::from(value)).await.is_ok() }).await;
    };
    put("1").await;
    let copy = server.copy_store();
    let mut watched = stream.watch_latest("k").await.unwrap();
    for value in ["2", "3", "4", "5"] {
        put(value).await;
    }
    timeout(PATIENCE, watched.by_ref().any(async |v| v.unwrap() == "5")).await.expect("the newest value");
    server.restart_from(copy.path());
    put("6").await;
    timeout(PATIENCE, watched.any(async |v| v.unwrap() == "6")).await.expect("a value at a lower sequence");
}

#[tokio::test]
async fn no_server_at_all_is_unavailable() {
    let mut server = NatsServer::start();
    let url = server.url();
    server.kill9();
    let outcome = JetStream::connect(Options::new(url)).await;
    assert!(matches!(outcome, Err(ConnectError::Unavailable(_))), "{outcome:?}");
}

#[tokio::test]
async fn durability_is_what_the_server_says() {
    let check = async |sync, monitored: bool, expected: &str| {
        let server = NatsServer::start_with(sync);
        let mut options = Options::new(server.url());
        options.monitor_urls.extend(monitored.then(|| server.monitor_url()));
        let detail = match JetStream::connect(options).await.unwrap().durability().await {
            Durability::Synced => "synced".to_owned(),
            Durability::Degraded { detail } => detail,
        };
        assert!(detail.contains(expected), "{detail:?}");
    };
    check(Sync::Always, true, "synced").await;
    check(Sync::Always, false, "unverified: no monitor url").await;
    check(Sync::Default, true, "only every 120s; set sync_interval: always").await;
}

#[tokio::test]
async fn another_servers_word_is_not_taken() {
    let (server, other) = (NatsServer::start(), NatsServer::start());
    let mut options = Options::new(server.url());
    options.monitor_urls = vec![other.monitor_url()];
    let Durability::Degraded { detail } = JetStream::connect(options).await.unwrap().durability().await
    else {
        panic!("synced by another server's word")
    };
    assert!(detail.starts_with("unverified: no monitor url of server "), "{detail:?}");
}

#[tokio::test]
async fn a_stream_that_would_lose_messages_is_refused_with_every_fault() {
    let server = NatsServer::start();
    let client = async_nats::connect(server.url()).await.unwrap();
    let config = Config {
        name: "EXCHEQUER".into(),
        subjects: vec!["events.*".into()],
        storage: StorageType::Memory,
        max_age: Duration::from_secs(60),
        discard: DiscardPolicy::Old,
        allow_rollup: true,
        ..Config::default()
    };
    async_nats::jetstream::new(client).create_stream(config).await.unwrap();
    let Err(ConnectError::Setup { stream, faults }) = JetStream::connect(Options::new(server.url())).await
    else {
        panic!("accepted")
    };
    assert_eq!(stream, "EXCHEQUER");
    let expected = [
        r#"subjects are ["events.*"], not ["budget.*", "control.*", "events.*"]"#,
        "storage is not file",
        "discards old messages",
        "drops messages after 60s",
        "allows deletion",
        "allows purging",
        "allows rollup",
    ];
    assert_eq!(faults, expected);
}

#[tokio::test]
async fn prefixes_keep_streams_apart() {
    let server = NatsServer::start();
    let connect = async |prefix: &str| {
        let mut options = Options::new(server.url());
        options.prefix = Some(prefix.into());
        JetStream::connect(options).await
    };
    let (a, b) = (connect("a").await.unwrap(), connect("b").await.unwrap());
    assert_eq!(a.append(Message::new("events.x", "1")).await, Ok(1));
    assert_eq!(a.append(Message::new("events.x", "2")).await, Ok(2));
    assert_eq!(b.append(Message::new("events.x", "1").expecting(0)).await, Ok(1));
    a.put_latest("k", Bytes::from_static(b"a")).await.unwrap();
    let mut watched = b.watch_latest("k").await.unwrap();
    assert!(timeout(Duration::from_millis(50), watched.next()).await.is_err());
    assert!(matches!(connect("a.b").await, Err(ConnectError::Options(_))));
}
