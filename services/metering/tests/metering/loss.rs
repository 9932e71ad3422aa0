//! A broker that loses what it acknowledged, and a ledger (here the test itself) that puts it back.

use std::{fs, sync::Arc};

use exchequer_event::{
    accept::{Acceptor, Incoming, Outcome},
    control::{sign_control, topic},
    name::control_subject,
    v1::{self, control_record::Kind},
};
use exchequer_stream::{EventStream, Message, Record};
use exchequer_testkit::{NatsServer, eventually};
use futures::StreamExt as _;
use prost::Message as _;
use tonic::Code;

use crate::world::{PATIENCE, World, denied, granted, reserve, set, snapshots_dir, within};

async fn records(stream: &Arc<dyn EventStream>) -> Vec<Record> {
    let tip = usize::try_from(stream.tip().await.unwrap()).unwrap();
    let records = stream.read(1, &[]).await.unwrap().take(tip).map(Result::unwrap);
    within(records.collect()).await
}

fn stated(world: &World, kind: Kind) -> Message {
    let subject = control_subject(topic(&kind));
    let stated = v1::ControlRecord { time_unix_ms: 1, actor: "ledger".to_owned(), kind: Some(kind) };
    Message::new(subject, sign_control(&world.ledger, &stated).encode_to_vec())
}

/// Appends the records behind `kept` again, each at its sequence: what was refused is stood for by its rejection.
async fn put_back(world: &World, all: &[Record], kept: u64) {
    let mut acceptor = Acceptor::new();
    for record in all {
        let (subject, payload) = (record.subject.as_str(), record.payload.clone());
        let decided = acceptor.decide(&Incoming { stream_seq: record.seq, subject, payload });
        decided.entries.iter().for_each(|entry| acceptor.evolve(entry));
        if record.seq <= kept {
            continue;
        }
        let message = if matches!(decided.outcome, Outcome::Rejected { .. }) {
            let entries = decided.entries.iter().map(|entry| entry.encode_to_vec().into()).collect();
            stated(
                world,
                Kind::StreamRefilled(v1::StreamRefilled { seq: record.seq, entries, ..Default::default() }),
            )
        } else {
            Message::new(record.subject.clone(), record.payload.clone())
        };
        let seq = world.stream.append(message.expecting_tip(record.seq - 1)).await;
        assert_eq!(seq, Ok(record.seq));
    }
}

/// `garbage`: how many messages that are refused end what is lost.
async fn a_loss_that_ends_with(garbage: usize) {
    let mut server = NatsServer::start();
    let world = World::nats(&server).await;
    let running = world.metering("m").await;
    let (mut admin, mut client) = (world.admin(&running), world.agent(&running));
    admin.set_budget(set("acme", &[("cpu_ms", 100)])).await.unwrap();
    let (copy, kept) = (server.copy_store(), world.stream.tip().await.unwrap());
    let hold = granted(client.reserve(reserve("acme", &[("cpu_ms", 60)], "k")).await.unwrap().into_inner());
    for n in 0..garbage {
        let subject = if n == 0 { "budget.0" } else { "events.x" };
        world.stream.append(Message::new(subject, "garbage")).await.unwrap();
    }
    running.caught_up(&world.stream).await;
    let (all, before) = (records(&world.stream).await, running.service.position());

    server.restart_from(copy.path());
    let is_refused =
        || async { format!("{:?}", running.service.readiness()).contains("not the stream that was folded") };
    eventually(PATIENCE, is_refused).await;
    let refused = client.reserve(reserve("acme", &[("cpu_ms", 60)], "l")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(world.stream.tip().await, Ok(kept), "nothing is decided over a stream that lacks decisions");

    put_back(&world, &all, kept).await;
    within(running.service.ready_here()).await;
    assert_eq!(running.service.position(), before);
    let again = granted(client.reserve(reserve("acme", &[("cpu_ms", 60)], "k")).await.unwrap().into_inner());
    assert_eq!(again, hold);
    denied(client.reserve(reserve("acme", &[("cpu_ms", 60)], "l")).await.unwrap().into_inner());
    granted(client.reserve(reserve("acme", &[("cpu_ms", 40)], "m")).await.unwrap().into_inner());
    running.caught_up(&world.stream).await;
    let after = running.service.position();
    running.stop().await;

    // The refilled stream, read from nothing, leads to the same.
    fs::remove_dir_all(snapshots_dir(&world.options("m"))).unwrap();
    let running = world.start(world.options("m"), Arc::clone(&world.stream)).await;
    within(running.service.ready_here()).await;
    assert_eq!(running.service.position(), after);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_decides_nothing_until_a_lost_block_is_back_and_then_goes_on() {
    a_loss_that_ends_with(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_where_another_message_stands_for_the_last_one_it_had_folded() {
    a_loss_that_ends_with(1).await;
    a_loss_that_ends_with(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_where_others_took_the_lost_places_and_what_was_lost_comes_again_behind_them() {
    let mut server = NatsServer::start();
    let world = World::nats(&server).await;
    let running = world.metering("m").await;
    let (mut admin, mut client) = (world.admin(&running), world.agent(&running));
    admin.set_budget(set("acme", &[("cpu_ms", 100)])).await.unwrap();
    let (copy, kept) = (server.copy_store(), world.stream.tip().await.unwrap());
    let hold = granted(client.reserve(reserve("acme", &[("cpu_ms", 60)], "k")).await.unwrap().into_inner());
    running.caught_up(&world.stream).await;
    let (all, tip) = (records(&world.stream).await, world.stream.tip().await.unwrap());
    let before = running.service.position();

    server.restart_from(copy.path());
    let other = Message::new("events.x", "another's");
    for _ in 0..=tip - kept {
        eventually(PATIENCE, || async { world.stream.append(other.clone()).await.is_ok() }).await;
    }
    let is_refused =
        || async { format!("{:?}", running.service.readiness()).contains("not the stream that was folded") };
    eventually(PATIENCE, is_refused).await;
    for record in all.iter().filter(|record| record.seq > kept) {
        let again = Message::new(record.subject.clone(), record.payload.clone());
        world.stream.append(again).await.unwrap();
    }
    let lost = v1::StreamLost { from: kept + 1, to: tip, refilled: 0, reappended: tip - kept };
    world.stream.append(stated(&world, Kind::StreamLost(lost))).await.unwrap();
    within(running.service.ready_here()).await;
    running.caught_up(&world.stream).await;
    // The state says where each block is, so its digest is another one now.
    assert_eq!(running.service.position().blocks, before.blocks);
    let again = granted(client.reserve(reserve("acme", &[("cpu_ms", 60)], "k")).await.unwrap().into_inner());
    assert_eq!(again, hold);
    granted(client.reserve(reserve("acme", &[("cpu_ms", 40)], "m")).await.unwrap().into_inner());
    running.caught_up(&world.stream).await;
    let after = running.service.position();
    running.stop().await;

    fs::remove_dir_all(snapshots_dir(&world.options("m"))).unwrap();
    let running = world.start(world.options("m"), Arc::clone(&world.stream)).await;
    within(running.service.ready_here()).await;
    assert_eq!(running.service.position(), after, "from nothing, too");
    running.stop().await;
}
