//! Ledgers beside the one that puts back what the broker lost: behind it, at its place, and before what it settled.

use exchequer_event::v1;
use exchequer_ledger::{Options, Service};
use exchequer_stream::Message;
use exchequer_testkit::{NatsServer, SimAgent, eventually, temp_dir};

use super::{
    pipeline::connect,
    refill::{all_of, append, losses, publish, seqs_of},
    support::{Log, PATIENCE, World, checkpoint, covered, start},
};

/// A further ledger of the same log, begun with the files of one that is stopped.
fn from_files_of(dir: &std::path::Path, name: &str, of: &Options) -> Options {
    let data = dir.join(name);
    for part in ["log", "state", "checkpoints"] {
        copy_dir(&of.data.join(part), &data.join(part));
    }
    Options { data, ..of.clone() }
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    if from.is_file() {
        std::fs::copy(from, to).unwrap();
        return;
    }
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let name = item.unwrap().file_name();
        copy_dir(&from.join(&name), &to.join(&name));
    }
}

async fn says(service: &Service, text: &str) {
    eventually(PATIENCE, || std::future::ready(format!("{:?}", service.readiness()).contains(text))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_is_behind_what_is_published_leaves_the_lease_to_the_one_that_can_refill() {
    let mut server = NatsServer::start();
    let mut agent = SimAgent::new("a1");
    let world = World::over(temp_dir(), connect(&server, true).await, &[&agent]).await;
    let World { dir, stream, service, options, .. } = world;
    service.stop().await;
    let behind = from_files_of(dir.path(), "behind", &options);
    let copy = server.copy_store();
    let service = start(&options, &stream).await;
    append(&stream, Message::new(agent.subject(), agent.batch("acme", 1))).await;
    covered(&service, 5).await;
    service.stop().await;
    let (published, _) = stream.latest("checkpoint").await.unwrap().unwrap();
    // The broker loses events, and keeps the newest checkpoint.
    server.restart_from(copy.path());
    eventually(PATIENCE, || async { stream.put_latest("checkpoint", published.clone()).await.is_ok() }).await;

    let standby = start(&behind, &stream).await;
    says(&standby, "behind what is published: it holds 2 entries, the checkpoint covers 5").await;
    let ahead = start(&options, &stream).await;
    covered(&ahead, 6).await;
    covered(&standby, 6).await;
    standby.stop().await;
    let vkey = ahead.verifier_key();
    ahead.stop().await;
    let log = Log::read(&options.data, &vkey);
    assert_eq!(losses(&log), [v1::StreamLost { from: 3, to: 3, refilled: 1, reappended: 0 }]);
    drop(dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_ledger_settled_counts_for_those_at_the_same_place_and_those_before_it_say_that_they_need_files()
 {
    let mut server = NatsServer::start();
    let (mut agent, mut other) = (SimAgent::new("a1"), SimAgent::new("a2"));
    let world = World::over(temp_dir(), connect(&server, true).await, &[&agent, &other]).await;
    let copy = server.copy_store();
    let size = world.take(&mut agent, "acme", 1).await;
    let World { dir, stream, service, options, .. } = world;
    service.stop().await;
    let before = from_files_of(dir.path(), "before", &options);
    let service = start(&options, &stream).await;
    append(&stream, Message::new(agent.subject(), agent.batch("acme", 1))).await;
    covered(&service, size + 3).await;
    service.stop().await;
    // One that is killed after the record, before it kept that it read it, is at the same place.
    let same = from_files_of(dir.path(), "same", &options);
    let cursor = stream.tip().await.unwrap();
    server.restart_from(copy.path());
    for _ in 0..2 {
        append(&stream, Message::new(other.subject(), other.batch("acme", 1))).await;
    }
    let service = start(&options, &stream).await;
    publish(&stream, &service.public_key(), &other).await;
    let size = checkpoint(&service).checkpoint().size();
    let standby = start(&same, &stream).await;
    covered(&standby, size).await;
    let short = start(&before, &stream).await;
    says(&short, "begin again with the files").await;
    short.stop().await;
    let vkey = service.verifier_key();
    service.stop().await;
    // It leads now, and has nothing left to refill.
    append(&stream, Message::new(other.subject(), other.batch("acme", 1))).await;
    publish(&stream, &standby.public_key(), &other).await;
    standby.stop().await;
    let log = Log::read(&same.data, &vkey);
    assert_eq!(losses(&log), [v1::StreamLost { from: cursor - 1, to: cursor, refilled: 0, reappended: 2 }]);
    assert_eq!(seqs_of(&log, &other), all_of(&other));
    drop(dir);
}
