//! A real ledger with a log to read: `served_log DIR ENTRIES` takes signed batches until a checkpoint covers so many entries, serves
//! the log over HTTP, says where, and stops when its standard input ends. `cargo xtask interop` runs foreign readers against it.
//!
//! What a reader needs lies in `DIR/kit`: `vkey`, `url`, `log` (the directory), `checkpoint.<size>` of earlier moments, and
//! `<index>.tlog-proof`. Left out: authentication, since the log's files are public here. Invariant: the kit is written before `ready`
//! is printed.
#![allow(clippy::print_stdout)]

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use exchequer_event::v1::KeyRole;
use exchequer_ledger::{Enrolment, Options, Service};
use exchequer_stream::{EventStream, LocalStream, Message};
use exchequer_testkit::{SimAgent, eventually};
use exchequer_tlog::{Hash, SignedCheckpoint, TileId, TileReader, TlogProof, decode_tile, inclusion_proof};

const ORIGIN: &str = "interop.example/log";
const PATIENCE: Duration = Duration::from_secs(120);
/// Executions of a batch: two events each.
const EXECUTIONS: usize = 250;

/// The tiles of a log directory.
struct Tiles<'a>(&'a Path);

impl TileReader for Tiles<'_> {
    type Tile = Vec<Hash>;
    type Error = anyhow::Error;

    fn tile(&self, id: TileId) -> anyhow::Result<Vec<Hash>> {
        // A narrower version than the newest may be gone; a full one is there.
        let full = TileId::new(id.level(), id.index(), 256)?;
        let (bytes, width) = match fs::read(self.0.join(id.to_string())) {
            Ok(bytes) => (bytes, id.width()),
            Err(_) => (fs::read(self.0.join(full.to_string()))?, 256),
        };
        Ok(decode_tile(&bytes, width)?)
    }
}

fn newest(service: &Service) -> anyhow::Result<SignedCheckpoint> {
    Ok(SignedCheckpoint::parse(&service.checkpoint())?)
}

/// Waits for a checkpoint of at least this size.
async fn covered(service: &Service, size: u64) -> anyhow::Result<SignedCheckpoint> {
    eventually(PATIENCE, || {
        std::future::ready(newest(service).is_ok_and(|signed| signed.checkpoint().size() >= size))
    })
    .await;
    newest(service)
}

fn write_kit(kit: &Path, url: &str, log: &Path, service: &Service) -> anyhow::Result<()> {
    fs::write(kit.join("vkey"), service.verifier_key())?;
    fs::write(kit.join("url"), url)?;
    fs::write(kit.join("log"), log.display().to_string())?;
    let signed = newest(service)?;
    let size = signed.checkpoint().size();
    for index in [0, 1, 255, 256, 511, size / 2, 65_535, 65_536, size - 1] {
        if index < size {
            let hashes =
                inclusion_proof(index, size, &Tiles(log)).map_err(|error| anyhow::anyhow!("{error:?}"))?;
            let proof = TlogProof::new(index, hashes, signed.clone(), Vec::new())?;
            fs::write(kit.join(format!("{index}.tlog-proof")), proof.to_string())?;
        }
    }
    Ok(())
}

async fn run(dir: PathBuf, entries: u64) -> anyhow::Result<()> {
    let (data, kit) = (dir.join("ledger"), dir.join("kit"));
    fs::create_dir_all(&kit)?;
    let stream: Arc<dyn EventStream> = Arc::new(LocalStream::open(&dir.join("stream"))?);
    let mut agent = SimAgent::new("a1");
    let enrolment =
        Enrolment { role: KeyRole::Agent, holder: agent.id().to_owned(), key: agent.public_key() };
    let options = Options {
        origin: ORIGIN.to_owned(),
        checkpoint_interval: Duration::from_millis(50),
        public_entries: true,
        enroll: vec![enrolment],
        ..Options::new(data.clone())
    };
    let service = Service::start(options, stream.clone()).await?;
    let mut size = covered(&service, 2).await?.checkpoint().size();
    let mut batches = 0;
    while size < entries {
        // A partial batch at first, so that sizes are not multiples of anything.
        let executions = if batches == 0 { 3 } else { EXECUTIONS };
        let batch = agent.batch("acme", executions);
        stream.append(Message::new(agent.subject(), batch)).await?;
        size += 1 + 2 * executions as u64;
        if batches % 24 == 0 {
            let signed = covered(&service, size).await?;
            let name = format!("checkpoint.{}", signed.checkpoint().size());
            fs::write(kit.join(name), signed.to_string())?;
        }
        batches += 1;
    }
    covered(&service, size).await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    write_kit(&kit, &url, &data.join("log"), &service)?;
    let server = tokio::spawn(axum::serve(listener, service.http()).into_future());
    println!("ready {size} {url}");
    // Whoever started this holds the other end.
    tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new())).await??;
    server.abort();
    service.stop().await;
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().context("usage: served_log DIR ENTRIES")?;
    let entries = arguments.next().context("usage: served_log DIR ENTRIES")?.parse()?;
    run(dir.into(), entries).await
}
