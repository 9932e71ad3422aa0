//! A broker that loses what it acknowledged: a real nats-server over an earlier copy of its store.

use std::{sync::Arc, time::Duration};

use ed25519_dalek::SigningKey;
use exchequer_auth::keys;
use exchequer_event::{
    control::{open_receipt, sign_control, topic},
    digest::Digest,
    name::{control_subject, receipt_key},
    seal::{BlockPlace, block_digest, seal_block},
    v1::{self, RejectionReason, control_record::Kind as ControlKind, entry::Kind},
};
use exchequer_ledger::{GenesisError, Options, Service, StartError};
use exchequer_stream::{EventStream, Message};
use exchequer_testkit::{NatsServer, SimAgent, eventually, temp_dir};
use futures::StreamExt as _;
use prost::{Message as _, bytes::Bytes};

use super::{
    pipeline::{audited, connect},
    support::{Log, PATIENCE, World, start, tile_files},
};

/// Without a receipt for so long, an agent publishes again; the real one waits longer.
const RESEND: Duration = Duration::from_secs(1);

pub async fn append(stream: &Arc<dyn EventStream>, message: Message) {
    eventually(PATIENCE, || async { stream.append(message.clone()).await.is_ok() }).await;
}

/// Publishes as the agent's publisher does, from the first event that no receipt covers, until a receipt covers all: goes back
/// where the ledger says so, and repeats when it says nothing.
pub async fn publish(stream: &Arc<dyn EventStream>, ledger: &ed25519_dalek::VerifyingKey, agent: &SimAgent) {
    let published = async {
        let mut receipts = stream.watch_latest(&receipt_key(agent.id())).await.unwrap();
        let mut next = None;
        loop {
            match tokio::time::timeout(RESEND, receipts.next()).await {
                Ok(value) => {
                    let receipt = open_receipt(&value.unwrap().unwrap(), ledger, agent.id()).unwrap();
                    let head = receipt.head.as_ref().unwrap().seq;
                    if head == agent.seq() {
                        return;
                    }
                    if receipt.resend_from > 0 {
                        next = Some(receipt.resend_from);
                    } else {
                        next.get_or_insert(head + 1);
                        continue;
                    }
                }
                Err(_) => {
                    next.get_or_insert(1);
                }
            }
            if let Some(first) = next {
                let batch = agent.seal(first, agent.seq()).encode_to_vec();
                append(stream, Message::new(agent.subject(), batch)).await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, published).await.expect("a receipt for every event");
}

fn ledger_key(options: &Options) -> SigningKey {
    keys::load(&options.key_file).unwrap()
}

fn control(key: &SigningKey, kind: ControlKind) -> Message {
    let subject = control_subject(topic(&kind));
    let record = v1::ControlRecord { time_unix_ms: 1, actor: "test".into(), kind: Some(kind) };
    Message::new(subject, sign_control(key, &record).encode_to_vec())
}

fn enrolment(ledger: &SigningKey, role: v1::KeyRole, holder: &str, key: &SigningKey) -> Message {
    let public_key = key.verifying_key().to_bytes().to_vec().into();
    let enrolled = v1::KeyEnrolled { role: role.into(), holder: holder.into(), public_key };
    control(ledger, ControlKind::KeyEnrolled(enrolled))
}

/// A block that follows `prev_hash`, and its own hash.
fn block(key: &SigningKey, index: u64, prev_hash: Digest) -> (Message, Digest) {
    let run = v1::DecisionRun { tenant: "acme".into(), decisions: vec![v1::Decision::default()] };
    let place =
        BlockPlace { partition: "0".into(), epoch: 1, index, prev_hash, now_unix_ms: index, usage_cursor: 0 };
    let block = seal_block(key, place, vec![run.encode_to_vec().into()]);
    let hash = block_digest(&block.seal);
    (Message::new("budget.0", block.encode_to_vec()), hash)
}

/// The losses that the log has on record.
pub fn losses(log: &Log) -> Vec<v1::StreamLost> {
    let loss = |kind| match kind {
        Kind::Control(signed) => match v1::ControlRecord::decode(signed.record).unwrap().kind {
            Some(ControlKind::StreamLost(lost)) => Some(lost),
            _ => None,
        },
        _ => None,
    };
    log.kinds().into_iter().filter_map(loss).collect()
}

/// Waits until the log has a loss on record: the receipts may come before it.
async fn recorded(options: &Options, vkey: &str) {
    eventually(PATIENCE, || std::future::ready(!losses(&Log::read(&options.data, vkey)).is_empty())).await;
}

pub fn seqs_of(log: &Log, agent: &SimAgent) -> Vec<u64> {
    log.events().into_iter().filter(|(id, ..)| id == agent.id()).map(|(.., seq)| seq).collect()
}

pub fn all_of(agent: &SimAgent) -> Vec<u64> {
    (1..=agent.seq()).collect()
}

async fn entries_reach(world: &World, entries: usize) {
    world.covered(entries as u64).await;
}

/// Everything that a message can become, one of each: three batches, an overlap, a duplicate, rejections, an equivocation, control
/// records and blocks, one of them fenced.
async fn everything(world: &World, agent: &mut SimAgent) {
    let stream = &world.stream;
    let (ledger, metering) = (ledger_key(&world.options), SigningKey::from_bytes(&[9; 32]));
    let (before, first) = (world.log().entries.len(), agent.seq() + 1);
    let send = async |payload: Bytes| append(stream, Message::new(agent.subject(), payload)).await;
    let mut liar = agent.clone();
    let mut ahead = agent.clone();
    let batch = ahead.batch("acme", 2);
    send(batch.clone()).await; // 1 + 4
    ahead.batch("acme", 1);
    send(ahead.seal(first, ahead.seq()).encode_to_vec().into()).await; // 1 + 2
    send(batch).await; // nothing
    send(Bytes::from_static(b"\xff")).await; // 1
    send(liar.batch("evil", 1)).await; // 1
    append(stream, enrolment(&ledger, v1::KeyRole::Metering, "metering", &metering)).await; // 1
    let (one, hash) = block(&metering, 1, Digest::ZERO);
    append(stream, one.clone()).await; // 2
    append(stream, one).await; // 1
    append(stream, block(&metering, 2, hash).0).await; // 2
    append(stream, Message::new("events.NOBODY", "x")).await; // 1
    send(ahead.batch("acme", 3)).await; // 1 + 6
    *agent = ahead;
    entries_reach(world, before + 24).await;
    assert_eq!(world.log().entries.len(), before + 24);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_the_broker_lost_before_the_ledger_read_them_come_again() {
    let mut server = NatsServer::start();
    let mut agent = SimAgent::new("a1");
    let world = World::over(temp_dir(), connect(&server, true).await, &[&agent]).await;
    world.take(&mut agent, "acme", 2).await;
    let World { dir, stream, service, options, .. } = world;
    let (key, vkey) = (service.public_key(), service.verifier_key());
    service.stop().await;
    let copy = server.copy_store();
    for _ in 0..3 {
        let batch = agent.batch("acme", 2);
        stream.append(Message::new(agent.subject(), batch)).await.unwrap();
    }
    server.restart_from(copy.path());
    // Acknowledged and gone. What the agent records next does not follow what the log has.
    let batch = agent.batch("acme", 1);
    append(&stream, Message::new(agent.subject(), batch)).await;
    let service = start(&options, &stream).await;
    publish(&stream, &key, &agent).await;
    service.stop().await;
    let log = Log::read(&options.data, &vkey);
    assert_eq!(audited(&log).counts().events, agent.seq());
    assert_eq!(seqs_of(&log, &agent), all_of(&agent), "every event, once, in order");
    assert_eq!(log.rejections(), [RejectionReason::Gap]);
    assert_eq!(losses(&log), []);
    drop(dir);
}

/// The marks of messages that were put back.
async fn marked(stream: &Arc<dyn EventStream>, from: u64, to: u64) -> Vec<Message> {
    let records = stream.read(from, &[]).await.unwrap();
    let records = records.take(usize::try_from(to + 1 - from).unwrap()).map(Result::unwrap);
    let message = |record: exchequer_stream::Record| Message {
        headers: record.headers,
        ..Message::new(record.subject, record.payload)
    };
    records.map(message).collect().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_no_ledger_set_on_just_this_message_begins_no_refill() {
    const MARK: &str = "Exchequer-Refill";
    let mut server = NatsServer::start();
    let mut agent = SimAgent::new("a1");
    let world = World::over(temp_dir(), connect(&server, true).await, &[&agent]).await;
    let copy = server.copy_store();
    let size = world.take(&mut agent, "acme", 1).await;
    let lost = world.stream.tip().await.unwrap();
    server.restart_from(copy.path());
    world.covered(size + 1).await;
    let World { dir, stream, service, options, .. } = world;
    let vkey = service.verifier_key();
    service.stop().await;
    let [put_back] = &marked(&stream, lost, lost).await[..] else { panic!("one message") };
    let (_, genuine) = put_back.headers.iter().find(|(name, _)| name == MARK).expect("a mark");
    assert!(genuine.starts_with(&format!("{lost} ")), "{genuine}");
    // The mark of another message, and one that nobody signed, each on the last message that the log has taken in.
    let mut size = size + 1;
    for mark in ["1", genuine, &genuine.replacen(&lost.to_string(), "1", 1)] {
        let service = start(&options, &stream).await;
        append(&stream, Message::new(agent.subject(), agent.batch("acme", 1)).header(MARK, mark)).await;
        size += 3;
        super::support::covered(&service, size).await;
        service.stop().await;
        let service = start(&options, &stream).await;
        eventually(PATIENCE, || std::future::ready(service.readiness().is_ready())).await;
        service.stop().await;
    }
    assert_eq!(losses(&Log::read(&options.data, &vkey)).len(), 1, "what was lost, and nothing else");
    drop(dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_had_taken_in_is_put_back_and_the_tree_stays_the_same() {
    let mut server = NatsServer::start();
    let (mut agent, mut other) = (SimAgent::new("a1"), SimAgent::new("a2"));
    let world = World::over(temp_dir(), connect(&server, true).await, &[&agent, &other]).await;
    world.take(&mut agent, "acme", 3).await;
    let at = |name: &str| Options {
        data: world.dir.path().join(name),
        key_file: world.options.key_file.clone(),
        ..world.options.clone()
    };
    let standby = start(&at("standby"), &world.stream).await;
    let (copy, kept) = (server.copy_store(), world.stream.tip().await.unwrap());
    everything(&world, &mut agent).await;
    let (before, tip) = (world.log().entries, world.stream.tip().await.unwrap());
    let is_same = |name: &str| {
        std::future::ready(tile_files(&world.options.data) == tile_files(&world.dir.path().join(name)))
    };
    eventually(PATIENCE, || is_same("standby")).await;

    server.restart_from(copy.path());
    entries_reach(&world, before.len() + 1).await;
    let batch = other.batch("acme", 2);
    append(&world.stream, Message::new(other.subject(), batch)).await;
    entries_reach(&world, before.len() + 1 + 5).await;
    let log = world.log();
    assert_eq!(log.entries[..before.len()], before, "what the tree held, it holds");
    let lost = v1::StreamLost { from: kept + 1, to: tip, refilled: tip - kept, reappended: 0 };
    assert_eq!(losses(&log), [lost]);
    audited(&log);
    assert_eq!(seqs_of(&log, &agent), all_of(&agent));
    assert_eq!(seqs_of(&log, &other), all_of(&other));
    eventually(PATIENCE, || std::future::ready(world.service.readiness().is_ready())).await;

    // Who had read the lost messages goes on, and who reads the refilled stream from nothing builds the same tree.
    eventually(PATIENCE, || is_same("standby")).await;
    let fresh = start(&at("fresh"), &world.stream).await;
    eventually(PATIENCE, || is_same("fresh")).await;
    for service in [standby, fresh] {
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_lost_message_is_noticed_though_nothing_else_comes() {
    let mut server = NatsServer::start();
    let mut agent = SimAgent::new("a1");
    let world = World::over(temp_dir(), connect(&server, true).await, &[&agent]).await;
    world.take(&mut agent, "acme", 1).await;
    let copy = server.copy_store();
    let size = world.take(&mut agent, "acme", 1).await;
    server.restart_from(copy.path());
    world.covered(size + 1).await;
    assert_eq!(losses(&world.log()).len(), 1);
    // And again, the evidence of the first loss among what is lost.
    server.restart_from(copy.path());
    world.covered(size + 2).await;
    let losses = losses(&world.log());
    assert_eq!((losses[0].from, losses[1].from, losses[1].refilled), (4, 4, 2), "{losses:?}");
    audited(&world.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_is_killed_again_and_again_while_it_puts_messages_back_comes_to_the_end() {
    let mut server = NatsServer::start();
    let (mut agent, mut other) = (SimAgent::new("a1"), SimAgent::new("a2"));
    let world = World::over(temp_dir(), connect(&server, true).await, &[&agent, &other]).await;
    let (copy, kept) = (server.copy_store(), world.stream.tip().await.unwrap());
    everything(&world, &mut agent).await;
    let size = world.log().entries.len();
    for _ in 0..400 {
        let batch = agent.batch("acme", 1);
        world.stream.append(Message::new(agent.subject(), batch)).await.unwrap();
    }
    entries_reach(&world, size + 400 * 3).await;
    let before = world.log().entries;
    let World { dir, stream, service, options, .. } = world;
    let (key, vkey) = (service.public_key(), service.verifier_key());
    service.stop().await;
    let tip = stream.tip().await.unwrap();
    server.restart_from(copy.path());
    // Somebody is faster than the ledger.
    let batch = other.batch("acme", 1);
    append(&stream, Message::new(other.subject(), batch)).await;
    for reached in [1, 3, 40, 100, 200, 399] {
        let service = start(&options, &stream).await;
        eventually(PATIENCE, || async { stream.tip().await.is_ok_and(|tip| tip > kept + reached) }).await;
        drop(service);
    }
    let service = start(&options, &stream).await;
    publish(&stream, &key, &agent).await;
    publish(&stream, &key, &other).await;
    recorded(&options, &vkey).await;
    service.stop().await;
    let log = Log::read(&options.data, &vkey);
    assert_eq!(log.entries[..before.len()], before);
    audited(&log);
    assert_eq!(seqs_of(&log, &agent), all_of(&agent));
    assert_eq!(seqs_of(&log, &other), all_of(&other));
    let losses = losses(&log);
    let last = losses.last().unwrap();
    assert_eq!((last.from, last.to, last.refilled, last.reappended), (kept + 1, tip, tip - kept - 1, 1));
    drop(dir);
}

/// The broker loses what came after the enrolments; before the ledger is there, another agent fills `taken` of the lost places.
async fn others_in_lost_places(taken: usize) {
    let mut server = NatsServer::start();
    let (mut agent, mut other) = (SimAgent::new("a1"), SimAgent::new("a2"));
    let world = World::over(temp_dir(), connect(&server, true).await, &[&agent, &other]).await;
    let (copy, kept) = (server.copy_store(), world.stream.tip().await.unwrap());
    everything(&world, &mut agent).await;
    let before = world.log().entries;
    let World { dir, stream, service, options, .. } = world;
    let (key, vkey) = (service.public_key(), service.verifier_key());
    service.stop().await;
    let tip = stream.tip().await.unwrap();
    server.restart_from(copy.path());
    let newcomer = SimAgent::new("a3");
    append(&stream, enrolment(&ledger_key(&options), v1::KeyRole::Agent, "a3", newcomer.key())).await;
    for _ in 1..taken {
        let batch = other.batch("acme", 1);
        append(&stream, Message::new(other.subject(), batch)).await;
    }
    assert_eq!(stream.tip().await, Ok(kept + taken as u64));

    let service = start(&options, &stream).await;
    publish(&stream, &key, &other).await;
    publish(&stream, &key, &agent).await;
    recorded(&options, &vkey).await;
    service.stop().await;
    let log = Log::read(&options.data, &vkey);
    assert_eq!(log.entries[..before.len()], before);
    let auditor = audited(&log);
    let is_enrolled = |key: &exchequer_event::accept::KeyState| key.holder == "a3";
    assert!(auditor.acceptor().keys().iter().any(is_enrolled), "a record in a lost place is not lost");
    assert_eq!(seqs_of(&log, &agent), all_of(&agent));
    assert_eq!(seqs_of(&log, &other), all_of(&other), "every event, once, in order");
    let (lost, taken) = (tip - kept, taken as u64);
    let expected = v1::StreamLost {
        from: kept + 1,
        to: tip,
        refilled: lost.saturating_sub(taken),
        reappended: taken.min(lost),
    };
    assert_eq!(losses(&log), [expected]);
    drop(dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_put_into_a_few_lost_places_is_appended_again() {
    others_in_lost_places(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_put_into_all_lost_places_and_beyond_is_appended_again() {
    others_in_lost_places(20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_lost_as_a_whole_is_filled_again_from_the_log() {
    let mut server = NatsServer::start();
    let mut agent = SimAgent::new("a1");
    let world = World::over(temp_dir(), connect(&server, true).await, &[&agent]).await;
    world.take(&mut agent, "acme", 3).await;
    everything(&world, &mut agent).await;
    let (before, tip) = (world.log().entries, world.stream.tip().await.unwrap());
    let World { dir, stream, service, options, .. } = world;
    let vkey = service.verifier_key();
    service.stop().await;
    drop(stream);
    server.restart_from(temp_dir().path());
    let stream = connect(&server, true).await;
    assert_eq!(stream.tip().await, Ok(0));
    let service = start(&options, &stream).await;
    super::support::covered(&service, before.len() as u64 + 1).await;
    let fresh =
        Options { data: dir.path().join("fresh"), key_file: options.key_file.clone(), ..options.clone() };
    let second = start(&fresh, &stream).await;
    eventually(PATIENCE, || std::future::ready(tile_files(&options.data) == tile_files(&fresh.data))).await;
    service.stop().await;
    second.stop().await;
    let log = Log::read(&options.data, &vkey);
    assert_eq!(log.entries[..before.len()], before);
    assert_eq!(losses(&log), [v1::StreamLost { from: 1, to: tip, refilled: tip, reappended: 0 }]);
    audited(&log);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rotated_key_signs_for_places_from_before_it_leads_to_the_same_tree() {
    let mut server = NatsServer::start();
    let mut agent = SimAgent::new("a1");
    let world = World::over(temp_dir(), connect(&server, true).await, &[&agent]).await;
    let copy = server.copy_store();
    let size = world.take(&mut agent, "acme", 1).await;
    append(&world.stream, Message::new(agent.subject(), "refused")).await;
    world.covered(size + 1).await;
    let admin = ("ada", None, &[exchequer_auth::Role::Admin][..]);
    let rotation = v1::RotateLedgerKeyRequest { keep_old: false, reason: "a year old".into() };
    world.client().rotate_ledger_key(world.request(admin, rotation)).await.unwrap();
    world.covered(size + 3).await;
    server.restart_from(copy.path());
    world.covered(size + 4).await;
    let fresh = Options { data: world.dir.path().join("fresh"), ..world.options.clone() };
    let service = start(&fresh, &world.stream).await;
    let is_same = || std::future::ready(tile_files(&world.options.data) == tile_files(&fresh.data));
    eventually(PATIENCE, is_same).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repetition_that_the_broker_kept_is_no_message_of_others() {
    let mut server = NatsServer::start();
    let mut agent = SimAgent::new("a1");
    let world = World::over(temp_dir(), connect(&server, true).await, &[&agent]).await;
    let batch = agent.batch("acme", 1);
    for _ in 0..3 {
        append(&world.stream, Message::new(agent.subject(), batch.clone())).await;
    }
    let kept = world.stream.tip().await.unwrap();
    let copy = server.copy_store();
    let size = world.take(&mut agent, "acme", 1).await;
    // Among what is lost are repetitions too.
    let repeated = agent.seal(1, agent.seq()).encode_to_vec();
    append(&world.stream, Message::new(agent.subject(), repeated)).await;
    append(&world.stream, Message::new(agent.subject(), batch.clone())).await;
    world.take(&mut agent, "acme", 1).await;
    let World { dir, stream, service, options, .. } = world;
    let vkey = service.verifier_key();
    service.stop().await;
    let tip = stream.tip().await.unwrap();
    server.restart_from(copy.path());
    let service = start(&options, &stream).await;
    super::support::covered(&service, size + 4).await;
    let fresh = Options { data: dir.path().join("fresh"), ..options.clone() };
    let fresh_service = start(&fresh, &stream).await;
    eventually(PATIENCE, || std::future::ready(tile_files(&options.data) == tile_files(&fresh.data))).await;
    fresh_service.stop().await;
    service.stop().await;
    let [lost] = losses(&Log::read(&options.data, &vkey))[..] else { panic!("one loss") };
    assert_eq!((lost.to, lost.refilled, lost.reappended), (tip, tip - kept, 0), "{lost:?}");
    assert_eq!(stream.tip().await.unwrap(), tip + 1, "nothing is repeated");
    drop(dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_signing_lease_nothing_is_put_back_and_it_says_what_it_waits_for() {
    let mut server = NatsServer::start();
    let mut agent = SimAgent::new("a1");
    let world = World::over(temp_dir(), connect(&server, true).await, &[&agent]).await;
    let copy = server.copy_store();
    world.take(&mut agent, "acme", 3).await;
    let World { dir, stream, service, options, .. } = world;
    service.stop().await;
    server.restart_from(copy.path());
    let ttl = Duration::from_secs(60);
    eventually(PATIENCE, || async {
        let outcome = stream.acquire_lease("ledger-signer", "another-ledger", ttl).await;
        matches!(outcome, Ok(exchequer_stream::LeaseOutcome::Held(_)))
    })
    .await;
    let tip = stream.tip().await.unwrap();
    let service = start(&options, &stream).await;
    let is_told =
        || std::future::ready(format!("{:?}", service.readiness()).contains("Waiting for the ledger"));
    eventually(PATIENCE, is_told).await;
    assert_eq!(stream.tip().await, Ok(tip));
    assert!(!service.readiness().is_ready());
    service.stop().await;
    drop(dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_another_logs_stream_it_says_so_and_writes_nothing() {
    let mut agent = SimAgent::new("a1");
    let world = World::new(&[&agent]).await;
    world.take(&mut agent, "acme", 4).await;
    let World { dir, service, options, .. } = world;
    service.stop().await;
    let mine = options;
    let mut stranger = SimAgent::new("a2");
    let other = World::new(&[&stranger]).await;
    for executions in [1, 2, 3, 4] {
        other.take(&mut stranger, "acme", executions).await;
    }
    let World { dir: elsewhere, stream, service, options, .. } = other;
    service.stop().await;
    // The log is named alike, its key is another.
    assert_ne!(ledger_key(&mine).to_bytes(), ledger_key(&options).to_bytes());
    let tip = stream.tip().await.unwrap();
    let service: Service = start(&mine, &stream).await;
    let is_told = || std::future::ready(format!("{:?}", service.readiness()).contains("is another log's"));
    eventually(PATIENCE, is_told).await;
    assert_eq!(stream.tip().await, Ok(tip));
    service.stop().await;
    let empty = Options { data: dir.path().join("empty"), ..mine };
    let error = Service::start(empty, stream).await.map(drop).unwrap_err();
    assert!(matches!(error, StartError::Genesis(GenesisError::Key { .. })), "{error}");
    drop(elsewhere);
}
