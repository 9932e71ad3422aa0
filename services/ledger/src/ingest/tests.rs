//! Ingest over a store whose operations fail.

use std::sync::Arc;

use ed25519_dalek::SigningKey;
use exchequer_event::accept::Acceptor;
use exchequer_stream::{EventStream, LocalStream, Message};
use exchequer_testkit::temp_dir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Pipeline, run};
use crate::{
    control::ControlWriter,
    key::LedgerKey,
    metrics::Metrics,
    snapshot::Snapshots,
    standing::{Published, Standing},
    store::faults::{Shared, reopen},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_commit_is_tried_again_on_a_quiet_stream() {
    let dir = temp_dir();
    let stream: Arc<dyn EventStream> = Arc::new(LocalStream::open(&dir.path().join("stream")).unwrap());
    let files = Shared::default();
    let opened = reopen(&files).unwrap();
    let db = sled::Config::new().temporary(true).open().unwrap();
    let acceptor = Acceptor::new();
    let position = opened.writer.position().clone();
    let standing = Arc::new(Standing::new(&acceptor, position, Published::default()));
    let (blocks, _received) = mpsc::channel(1);
    let pipeline = Pipeline {
        snapshot_size: 0,
        writer: opened.writer,
        acceptor,
        reader: opened.reader,
        snapshots: Snapshots::open(&db).unwrap(),
        blocks,
        standing: standing.clone(),
        control: ControlWriter::new(
            stream.clone(),
            LedgerKey::new("test.example/log", "ledger.key".into(), SigningKey::from_bytes(&[1; 32]))
                .unwrap(),
        ),
        metrics: Metrics::new(Arc::downgrade(&standing)),
        _lock: Arc::new(tempfile::tempfile().unwrap()),
    };
    let mut changed = standing.changed.subscribe();
    let shutdown = CancellationToken::new();
    files.fail_once();
    stream.append(Message::new("events.a1", "no batch")).await.unwrap();
    let ingest = tokio::spawn(run(pipeline, stream.clone(), shutdown.clone()));
    let committed = changed.wait_for(|position| position.cursor == 1);
    let size =
        tokio::time::timeout(std::time::Duration::from_secs(30), committed).await.unwrap().unwrap().size;
    assert!(files.has_failed() && size == 1, "{size}");
    shutdown.cancel();
    ingest.await.unwrap();
}
