//! A ledger process is killed with SIGKILL again and again while batches come over a real nats-server. The test runs itself again
//! with an argument as that process.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "suite/support.rs"]
#[allow(dead_code)]
mod support;

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use exchequer_auth::keys;
use exchequer_event::{audit::Auditor, control::open_receipt, entry, name::receipt_key};
use exchequer_stream::{EventStream, JetStream, Message, jetstream};
use exchequer_testkit::{NatsServer, SimAgent, eventually, temp_dir};
use exchequer_tlog::SignedCheckpoint;
use futures::StreamExt as _;
use support::{Log, ORIGIN, PATIENCE, options, receipt, start};

const KILLS: u64 = 8;
const EXECUTIONS: usize = 40;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
        (Some("ledger-process"), Some(url), Some(data)) => runtime.block_on(ledger(url, data.into())),
        // As the standard harness answers, for tools that ask.
        (Some("--list"), ..) => {}
        _ => runtime.block_on(killed_at_any_moment_the_ledger_loses_nothing_that_a_receipt_covered()),
    }
}

async fn connect(url: String) -> Arc<dyn EventStream> {
    Arc::new(JetStream::connect(jetstream::Options::new(url)).await.unwrap())
}

async fn ledger(url: String, data: PathBuf) {
    let agent = SimAgent::new("a1");
    let _service = start(&options(data, &[&agent]), &connect(url).await).await;
    std::future::pending::<()>().await;
}

fn spawn(url: &str, data: &Path) -> Child {
    let this = std::env::current_exe().unwrap();
    Command::new(this).arg("ledger-process").arg(url).arg(data).stdin(Stdio::null()).spawn().unwrap()
}

async fn killed_at_any_moment_the_ledger_loses_nothing_that_a_receipt_covered() {
    let server = NatsServer::start();
    let (url, dir) = (server.url(), temp_dir());
    let data = dir.path().join("ledger");
    let stream = connect(url.clone()).await;
    let mut agent = SimAgent::new("a1");
    let mut process = spawn(&url, &data);
    // Genesis, enrolment, and that nobody vouches for the server's syncing.
    eventually(PATIENCE, || {
        let note = std::fs::read(data.join("log/checkpoint")).unwrap_or_default();
        std::future::ready(SignedCheckpoint::parse(&note).is_ok_and(|signed| signed.checkpoint().size() >= 3))
    })
    .await;
    let mut covered = Vec::new();
    for kill in 0..KILLS {
        // Batches keep coming while the process comes up, works and dies at another moment each time.
        let until = tokio::time::Instant::now() + Duration::from_millis(150 + 137 * kill);
        while tokio::time::Instant::now() < until {
            let batch = agent.batch("acme", EXECUTIONS);
            stream.append(Message::new(agent.subject(), batch)).await.unwrap();
        }
        process.kill().unwrap();
        process.wait().unwrap();
        let key = keys::load(data.join("ledger.key")).unwrap().verifying_key();
        let mut values = stream.watch_latest(&receipt_key("a1")).await.unwrap();
        // None before the first receipt; whatever there is, is there at once.
        let newest = tokio::time::timeout(Duration::from_millis(300), values.next()).await;
        if let Ok(value) = newest {
            let told = open_receipt(&value.unwrap().unwrap(), &key, "a1").unwrap();
            let signed = SignedCheckpoint::parse(&told.checkpoint).unwrap().checkpoint().clone();
            covered.push((told.head.unwrap(), signed));
        }
        process = spawn(&url, &data);
    }
    let key = keys::load(data.join("ledger.key")).unwrap().verifying_key();
    receipt(&stream, &key, "a1", |receipt| receipt.head.as_ref().unwrap().seq == agent.seq()).await;
    process.kill().unwrap();
    process.wait().unwrap();

    let vkey = exchequer_tlog::NoteSigner::new(ORIGIN, keys::load(data.join("ledger.key")).unwrap()).unwrap();
    let log = Log::read(&data, &vkey.verifier().to_string());
    let mut auditor = Auditor::new();
    for bytes in &log.entries {
        auditor.check(&entry::decode(bytes).unwrap()).unwrap();
    }
    let seqs: Vec<_> = log.events().into_iter().map(|(.., seq)| seq).collect();
    assert_eq!(seqs, (1..=agent.seq()).collect::<Vec<_>>(), "every event is there, once, in order");
    assert!(!covered.is_empty(), "no receipt came before a kill: nothing was tested");
    for (head, signed) in covered {
        let size = usize::try_from(signed.size()).unwrap();
        let leaves: Vec<_> =
            log.entries[..size].iter().map(|entry| exchequer_tlog::leaf_hash(entry)).collect();
        assert_eq!(
            support::naive_root(&leaves),
            *signed.root(),
            "a receipt's checkpoint is a prefix of the log"
        );
        let covered = Log { signed: log.signed.clone(), entries: log.entries[..size].to_vec() };
        assert!(covered.events().iter().any(|(.., seq)| *seq == head.seq));
    }
}
