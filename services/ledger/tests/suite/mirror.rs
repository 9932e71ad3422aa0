//! A ledger that mirrors its log into a directory, through restarts and when the directory is away.

use exchequer_ledger::{FsckOptions, MirrorOptions, fsck};
use exchequer_testkit::{SimAgent, eventually, temp_dir};

use super::support::{Log, PATIENCE, covered, local_stream, options, start, tile_files};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_mirrored_and_a_mirror_that_is_away_degrades_and_is_caught_up() {
    let mut agent = SimAgent::new("a1");
    let dir = temp_dir();
    let stream = local_stream(dir.path());
    let mut options = options(dir.path().join("ledger"), &[&agent]);
    // The log's layout, as `Log` reads it, under the directory `copy`.
    let mirror = dir.path().join("copy/log");
    let url = format!("file://{}", mirror.display());
    options.mirror = Some(MirrorOptions { url, endpoint: None, region: None });
    let service = start(&options, &stream).await;
    covered(&service, 2).await;
    eventually(PATIENCE, || {
        std::future::ready(format!("{:?}", service.readiness()).contains("Degraded(\"file:///"))
    })
    .await;
    assert!(service.readiness().is_ready(), "a mirror that is away does not stop the ledger");
    std::fs::create_dir_all(&mirror).unwrap();

    let is_mirrored = |service: &exchequer_ledger::Service| {
        let (shown, published) = (std::fs::read(mirror.join("checkpoint")), service.checkpoint());
        std::future::ready(shown.is_ok_and(|shown| shown == published))
    };
    for executions in [1, 100, 200] {
        let size =
            exchequer_tlog::SignedCheckpoint::parse(&service.checkpoint()).unwrap().checkpoint().size();
        let batch = agent.batch("acme", executions);
        stream.append(exchequer_stream::Message::new(agent.subject(), batch)).await.unwrap();
        covered(&service, size + 1 + 2 * executions as u64).await;
        eventually(PATIENCE, || is_mirrored(&service)).await;
    }
    // The last checkpoint before the end is there too.
    let batch = agent.batch("acme", 10);
    stream.append(exchequer_stream::Message::new(agent.subject(), batch)).await.unwrap();
    covered(&service, 2 + 3 + 201 + 401 + 21).await;
    let key = service.verifier_key();
    service.stop().await;
    let log = Log::read(&dir.path().join("copy"), &key);
    assert_eq!(log.signed.checkpoint().size(), 628);
    assert_eq!(log.entries, Log::read(&options.data, &key).entries);
    let mirrored = tile_files(&dir.path().join("copy"));
    for (path, bytes) in tile_files(&options.data) {
        assert_eq!(mirrored.get(&path), Some(&bytes), "{}", path.display());
    }
    // It is enough to begin again from.
    std::fs::remove_dir_all(options.data.join("log")).unwrap();
    std::fs::remove_dir_all(options.data.join("checkpoints")).unwrap();
    std::fs::remove_file(options.data.join("state")).unwrap();
    let restore = FsckOptions {
        data: options.data.clone(),
        keys: Vec::new(),
        repair: true,
        mirror: Some(mirror.display().to_string()),
        token: None,
    };
    let report = fsck(restore).await.unwrap();
    assert!(report.is_sound() && report.size == 628, "{report}");
    let service = start(&options, &stream).await;
    let batch = agent.batch("acme", 1);
    stream.append(exchequer_stream::Message::new(agent.subject(), batch)).await.unwrap();
    covered(&service, 631).await;
    eventually(PATIENCE, || is_mirrored(&service)).await;
    service.stop().await;
}
