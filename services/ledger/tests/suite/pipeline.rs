//! From the stream to receipts: what goes in, what is refused, what survives.

use std::{sync::Arc, time::Duration};

use exchequer_event::{
    audit::Auditor,
    v1::{self, RejectionReason, entry::Kind},
};
use exchequer_ledger::{GenesisError, Options, Service, StartError};
use exchequer_stream::{EventStream, JetStream, Message, jetstream};
use exchequer_testkit::{NatsServer, SimAgent, eventually, temp_dir};
use exchequer_tlog::SignedCheckpoint;
use prost::{Message as _, bytes::Bytes};

use super::support::{Log, PATIENCE, World, covered, start, tile_files};

pub fn audited(log: &Log) -> Auditor {
    let mut auditor = Auditor::new();
    for bytes in &log.entries {
        auditor.check(&exchequer_event::entry::decode(bytes).unwrap()).unwrap();
    }
    auditor.finish().unwrap();
    auditor
}

async fn batches_become_a_verifiable_log_and_receipts(world: World, mut agents: Vec<SimAgent>) {
    for round in 0..6 {
        for agent in &mut agents {
            let batch = agent.batch("acme", 1 + 40 * (round % 3));
            world.stream.append(Message::new(agent.subject(), batch)).await.unwrap();
        }
    }
    for agent in &agents {
        let receipt =
            world.receipt(agent.id(), |receipt| receipt.head.as_ref().unwrap().seq == agent.seq()).await;
        assert_eq!((receipt.resend_from, receipt.refused()), (0, RejectionReason::Unspecified));
        // The receipt's checkpoint covers that event: it is there when exactly so much of the log is read.
        let size = SignedCheckpoint::parse(&receipt.checkpoint).unwrap().checkpoint().size();
        let log = world.log();
        let covered = Log {
            signed: log.signed.clone(),
            entries: log.entries[..usize::try_from(size).unwrap()].to_vec(),
        };
        assert!(covered.events().contains(&(agent.id().to_owned(), 1, agent.seq())));
    }
    let log = world.log();
    let auditor = audited(&log);
    assert_eq!(auditor.counts().events, agents.iter().map(SimAgent::seq).sum::<u64>());
    assert!(log.signed.note().signatures().len() == 2, "the log's signature and its timestamped cosignature");
    assert!(world.service.readiness().is_ready(), "{:?}", world.service.readiness());
    let is_synced = world.service.durability_degraded().is_none() && !records_degraded(&log);
    assert!(is_synced, "both streams sync before they acknowledge");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_the_embedded_stream_batches_become_a_verifiable_log_and_receipts() {
    let agents: Vec<_> = ["a1", "a2", "a3"].map(SimAgent::new).into();
    let world = World::new(&agents.iter().collect::<Vec<_>>()).await;
    batches_become_a_verifiable_log_and_receipts(world, agents).await;
}

pub async fn connect(server: &NatsServer, is_checked: bool) -> Arc<dyn EventStream> {
    let mut options = jetstream::Options::new(server.url());
    if is_checked {
        options.monitor_urls = vec![server.monitor_url()];
    }
    Arc::new(JetStream::connect(options).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_nats_server_batches_become_a_verifiable_log_and_receipts() {
    let server = NatsServer::start();
    let agents: Vec<_> = ["a1", "a2", "a3"].map(SimAgent::new).into();
    let stream = connect(&server, true).await;
    let world = World::over(temp_dir(), stream, &agents.iter().collect::<Vec<_>>()).await;
    batches_become_a_verifiable_log_and_receipts(world, agents).await;
}

fn records_degraded(log: &Log) -> bool {
    log.kinds().into_iter().any(|kind| match kind {
        Kind::Control(signed) => matches!(
            v1::ControlRecord::decode(signed.record).unwrap().kind,
            Some(v1::control_record::Kind::DurabilityDegraded(_))
        ),
        _ => false,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_sync_is_recorded_and_shown_and_one_that_goes_away_is_waited_for() {
    let mut server = NatsServer::start_with(exchequer_testkit::Sync::Default);
    let mut agent = SimAgent::new("a1");
    let world = World::over(temp_dir(), connect(&server, true).await, &[&agent]).await;
    world.covered(3).await;
    assert!(records_degraded(&world.log()) && world.service.durability_degraded().is_some());
    let readiness = format!("{:?}", world.service.readiness());
    assert!(
        readiness.contains("sync_interval: always") && world.service.readiness().is_ready(),
        "{readiness}"
    );
    server.kill9();
    server.restart();
    let batch = agent.batch("acme", 5);
    eventually(PATIENCE, || {
        let message = Message::new(agent.subject(), batch.clone());
        let stream = world.stream.clone();
        async move { stream.append(message).await.is_ok() }
    })
    .await;
    world.receipt("a1", |receipt| receipt.head.as_ref().unwrap().seq == 10).await;
    audited(&world.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn over_the_embedded_stream_whatever_is_not_accepted_is_recorded_with_its_reason_and_told() {
    let agent = SimAgent::new("a1");
    let world = World::new(&[&agent]).await;
    whatever_is_not_accepted_is_recorded_with_its_reason_and_told(world, agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_nats_server_whatever_is_not_accepted_is_recorded_with_its_reason_and_told() {
    let (server, agent) = (NatsServer::start(), SimAgent::new("a1"));
    let world = World::over(temp_dir(), connect(&server, true).await, &[&agent]).await;
    whatever_is_not_accepted_is_recorded_with_its_reason_and_told(world, agent).await;
}

async fn whatever_is_not_accepted_is_recorded_with_its_reason_and_told(world: World, mut agent: SimAgent) {
    let mut stranger = SimAgent::new("stranger");
    world.take(&mut agent, "acme", 2).await;
    let mut liar = agent.clone();
    let mut forger = agent.clone().with_key(stranger.key().clone());
    let send = async |subject: String, payload: Bytes, reason: RejectionReason| {
        let before = world.log().rejections().len();
        let size = world.log().signed.checkpoint().size();
        world.stream.append(Message::new(subject, payload)).await.unwrap();
        world.covered(size + 1).await;
        assert_eq!(world.log().rejections()[before..], [reason]);
    };
    send(agent.subject(), forger.batch("acme", 1), RejectionReason::BadSignature).await;
    send(agent.subject(), Bytes::from_static(b"\xff\xff"), RejectionReason::Malformed).await;
    send(agent.subject(), vec![0; 300 * 1024].into(), RejectionReason::TooLarge).await;
    send("events.NOBODY".into(), Bytes::new(), RejectionReason::UnknownSubject).await;
    send("budget.0".into(), Bytes::from_static(b"\x07"), RejectionReason::Malformed).await;
    send("control.keys".into(), Bytes::from_static(b"\x07"), RejectionReason::Malformed).await;
    send(stranger.subject(), stranger.batch("acme", 1), RejectionReason::UnknownKey).await;
    let refused = world.receipt("stranger", |_| true).await;
    assert_eq!((refused.refused(), refused.resend_from), (RejectionReason::UnknownKey, 1));

    // A gap: the ledger says from where to go on, and going back closes it.
    let lost = agent.batch("acme", 1);
    send(agent.subject(), agent.batch("acme", 1), RejectionReason::Gap).await;
    let refused = world.receipt("a1", |receipt| receipt.refused() == RejectionReason::Gap).await;
    assert_eq!((refused.resend_from, refused.head.unwrap().seq), (5, 4));
    drop(lost);
    let again = agent.seal(5, agent.seq()).encode_to_vec();
    world.stream.append(Message::new(agent.subject(), again.clone())).await.unwrap();
    let told = world.receipt("a1", |receipt| receipt.head.as_ref().unwrap().seq == 8).await;
    assert_eq!(told.refused(), RejectionReason::Unspecified);

    // The same again adds nothing; another event in a taken place is evidence.
    let size = world.log().signed.checkpoint().size();
    world.stream.append(Message::new(agent.subject(), again)).await.unwrap();
    world.stream.append(Message::new(agent.subject(), liar.batch("evil", 1))).await.unwrap();
    world.covered(size + 1).await;
    assert!(matches!(world.log().kinds()[usize::try_from(size).unwrap()..], [Kind::Equivocation(_)]));
    world.receipt("a1", |receipt| receipt.refused() == RejectionReason::WrongChain).await;

    // A new epoch ends the old one.
    let mut old = agent.clone();
    agent.new_epoch();
    world.take(&mut agent, "acme", 1).await;
    send(agent.subject(), old.batch("acme", 1), RejectionReason::Stale).await;
    let ended = world.log().kinds().into_iter().find_map(|kind| match kind {
        Kind::BatchSealed(sealed) => sealed.previous_epoch,
        _ => None,
    });
    assert_eq!(ended.map(|head| (head.epoch, head.seq)), Some((1, 8)), "where the old epoch ended");
    audited(&world.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_ledgers_over_one_stream_build_the_same_files_and_one_of_them_signs() {
    let mut agent = SimAgent::new("a1");
    let world = World::new(&[&agent]).await;
    let other = Options {
        data: world.dir.path().join("other"),
        key_file: world.options.key_file.clone(),
        ..world.options.clone()
    };
    let mut size = world.take(&mut agent, "acme", 3).await;
    let standby = start(&other, &world.stream).await;
    for executions in [1, 100, 27, 200, 2] {
        size = world.take(&mut agent, "acme", executions).await;
    }
    let same = || std::future::ready(tile_files(&world.options.data) == tile_files(&other.data));
    eventually(PATIENCE, same).await;
    let is_taken_up = || std::future::ready(standby.checkpoint() == world.service.checkpoint());
    eventually(PATIENCE, is_taken_up).await;
    assert!(!standby.readiness().is_ready());
    // The lease moves when the signer stops.
    let (stream, batch) = (world.stream.clone(), agent.batch("acme", 1));
    world.service.stop().await;
    stream.append(Message::new(agent.subject(), batch)).await.unwrap();
    covered(&standby, size + 3).await;
    assert!(standby.readiness().is_ready());
    standby.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_dropped_or_stopped_at_any_point_goes_on_where_it_was() {
    let mut agent = SimAgent::new("a1");
    let world = World::new(&[&agent]).await;
    let World { dir, stream, mut service, options, .. } = world;
    let key = service.public_key();
    let vkey = service.verifier_key();
    for round in 0..12u64 {
        for _ in 0..=round % 4 {
            stream.append(Message::new(agent.subject(), agent.batch("acme", 3))).await.unwrap();
        }
        match round % 4 {
            0 => service.stop().await,
            1 => drop(service),
            2 => {
                super::support::receipt(&stream, &key, "a1", |r| r.head.as_ref().unwrap().seq == agent.seq())
                    .await;
                drop(service);
            }
            _ => {
                // Derived data may go at any time.
                service.stop().await;
                std::fs::remove_dir_all(options.data.join("derived")).unwrap();
            }
        }
        if round == 8 {
            std::fs::write(options.data.join("derived/db"), b"not sled's").unwrap();
        }
        service = start(&options, &stream).await;
    }
    super::support::receipt(&stream, &key, "a1", |r| r.head.as_ref().unwrap().seq == agent.seq()).await;
    service.stop().await;
    let log = Log::read(&options.data, &vkey);
    assert_eq!(audited(&log).counts().events, agent.seq());
    let seqs: Vec<_> = log.events().into_iter().map(|(.., seq)| seq).collect();
    assert_eq!(seqs, (1..=agent.seq()).collect::<Vec<_>>());
    drop(dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_refuses_a_log_or_stream_that_is_not_its_own() {
    let mut agent = SimAgent::new("a1");
    let world = World::new(&[&agent]).await;
    world.take(&mut agent, "acme", 4).await;
    let start = async |options: Options, stream: &Arc<dyn EventStream>| {
        Service::start(options, stream.clone()).await.map(drop).unwrap_err()
    };
    let at = |name: &str| world.dir.path().join(name);
    let error = start(world.options.clone(), &world.stream).await;
    assert!(matches!(error, StartError::Locked(_)), "{error}");
    let other_key = Options { data: at("b"), key_file: at("b.key"), ..world.options.clone() };
    let error = start(other_key, &world.stream).await;
    assert!(matches!(error, StartError::Genesis(GenesisError::Key { .. })), "{error}");
    let other_origin = Options {
        data: at("c"),
        key_file: world.options.key_file.clone(),
        origin: "other/log".into(),
        ..world.options.clone()
    };
    let error = start(other_origin, &world.stream).await;
    assert!(matches!(error, StartError::Genesis(GenesisError::Origin { .. })), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_rest_nothing_is_signed_and_a_burst_is_covered_within_two_intervals() {
    let mut agent = SimAgent::new("a1");
    let world = World::new(&[&agent]).await;
    world.take(&mut agent, "acme", 1).await;
    let history = || std::fs::read(world.options.data.join("checkpoints/00000000")).unwrap().len();
    let before = history();
    let idle = tokio::time::timeout(
        Duration::from_millis(300),
        eventually(PATIENCE, || std::future::ready(history() != before)),
    );
    assert!(idle.await.is_err(), "a checkpoint was signed though the tree did not grow");
    world.take(&mut agent, "acme", 1).await;
    assert!(history() > before);
}
