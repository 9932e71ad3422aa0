//! Several ledgers over one stream: the same trees and files, and a lease that moves.

use std::{path::Path, sync::Arc};

use exchequer_auth::keys;
use exchequer_event::audit::Auditor;
use exchequer_ledger::{Options, Service};
use exchequer_stream::{EventStream, JetStream, Message, jetstream};
use exchequer_testkit::{NatsServer, SimAgent, eventually, temp_dir};
use exchequer_tlog::SignedCheckpoint;

use super::support::{
    Log, PATIENCE, checkpoint, covered, leaf_hashes, local_stream, naive_root, options, start, tile_files,
};

/// A further ledger of the same log: another directory, the same key.
pub fn instance(dir: &Path, name: &str, first: &Options) -> Options {
    let data = dir.join(name);
    std::fs::create_dir_all(&data).unwrap();
    let options = Options { key_file: data.join("ledger.key"), data, ..first.clone() };
    std::fs::copy(&first.key_file, &options.key_file).unwrap();
    options
}

/// Every checkpoint that an instance signed or took up.
fn history(data: &Path) -> Vec<SignedCheckpoint> {
    let text = std::fs::read_to_string(data.join("checkpoints/00000000")).unwrap();
    let mut notes = Vec::new();
    let mut rest = &text[..];
    while let Some((header, tail)) = rest.split_once('\n') {
        let length: usize = header.split(' ').nth(1).unwrap().parse().unwrap();
        notes.push(SignedCheckpoint::parse(&tail.as_bytes()[..length]).unwrap());
        rest = &tail[length..];
    }
    notes
}

/// At rest, both serve the same bytes.
async fn check_same_files(one: &Options, other: &Options) {
    let served = |options: &Options| std::fs::read(options.data.join("log/checkpoint")).unwrap_or_default();
    eventually(PATIENCE, || {
        let same = served(one) == served(other) && tile_files(&one.data) == tile_files(&other.data);
        std::future::ready(same)
    })
    .await;
}

async fn two_ledgers_build_and_serve_the_same_and_one_goes_on_for_the_other(stream: Arc<dyn EventStream>) {
    let dir = temp_dir();
    let mut agents = ["a1", "a2"].map(SimAgent::new);
    let first = options(dir.path().join("first"), &[&agents[0], &agents[1]]);
    let holder = start(&first, &stream).await;
    covered(&holder, 3).await;
    let second = instance(dir.path(), "second", &first);
    let standby = start(&second, &stream).await;
    let feed = async |agents: &mut [SimAgent; 2]| {
        for executions in [1, 70, 3, 150] {
            for agent in agents.iter_mut() {
                stream.append(Message::new(agent.subject(), agent.batch("acme", executions))).await.unwrap();
            }
        }
    };
    let is_told = async |agent: &SimAgent, by: &Service| {
        super::support::receipt(&stream, &by.public_key(), agent.id(), |receipt| {
            receipt.head.as_ref().is_some_and(|head| head.seq == agent.seq())
        })
        .await
    };
    feed(&mut agents).await;
    is_told(&agents[1], &holder).await;
    check_same_files(&first, &second).await;
    // The file is in place a moment before the service answers with it.
    eventually(PATIENCE, || std::future::ready(standby.checkpoint() == holder.checkpoint())).await;

    // A crash: nothing is given back.
    let before = checkpoint(&holder);
    drop(holder);
    feed(&mut agents).await;
    is_told(&agents[0], &standby).await;
    is_told(&agents[1], &standby).await;
    let after = checkpoint(&standby);
    assert!(after.checkpoint().size() > before.checkpoint().size());
    let again = start(&first, &stream).await;
    covered(&again, after.checkpoint().size()).await;
    feed(&mut agents).await;
    is_told(&agents[1], &standby).await;
    check_same_files(&first, &second).await;
    assert!(standby.readiness().is_ready() && !again.readiness().is_ready(), "one of them signs");

    let vkey = standby.verifier_key();
    again.stop().await;
    standby.stop().await;
    let log = Log::read(&second.data, &vkey);
    let mut auditor = Auditor::new();
    for bytes in &log.entries {
        auditor.check(&exchequer_event::entry::decode(bytes).unwrap()).unwrap();
    }
    assert_eq!(auditor.counts().events, agents.iter().map(SimAgent::seq).sum::<u64>());
    let leaves = leaf_hashes(&log.entries);
    for data in [&first.data, &second.data] {
        let history = history(data);
        assert!(history.is_sorted_by_key(|signed| signed.checkpoint().size()));
        for signed in history {
            let size = usize::try_from(signed.checkpoint().size()).unwrap();
            assert_eq!(
                naive_root(&leaves[..size]),
                *signed.checkpoint().root(),
                "{}: {size}",
                data.display()
            );
        }
    }
    keys::load(&second.key_file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn over_the_embedded_stream_two_ledgers_are_one() {
    let dir = temp_dir();
    two_ledgers_build_and_serve_the_same_and_one_goes_on_for_the_other(local_stream(dir.path())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_nats_server_two_ledgers_are_one() {
    let server = NatsServer::start();
    let mut options = jetstream::Options::new(server.url());
    options.monitor_urls = vec![server.monitor_url()];
    let stream = Arc::new(JetStream::connect(options).await.unwrap());
    two_ledgers_build_and_serve_the_same_and_one_goes_on_for_the_other(stream).await;
}
