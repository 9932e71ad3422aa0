//! What the users of `docker/nats.conf` may do with a stream: enough for their work, and no more.
//!
//! Left out: who holds which password. Invariant: the server is a real one with that very file; only its addresses and its
//! folder are replaced.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use exchequer_stream::jetstream::{ConnectError, JetStream, Options};
use exchequer_stream::{AppendError, EventStream, LeaseOutcome, Message, ReadError};
use exchequer_testkit::{eventually, temp_dir};
use futures::StreamExt;

const CONFIGURATION: &str = include_str!("../../../docker/nats.conf");
const PATIENCE: Duration = Duration::from_secs(20);

/// A server that ends with the test.
struct Server {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    async fn start() -> Self {
        let dir = temp_dir();
        let replaced = |text: &str, from: &str, to: &str| {
            assert_eq!(text.matches(from).count(), 1, "{from} is not in docker/nats.conf, once");
            text.replace(from, to)
        };
        let text = replaced(CONFIGURATION, "\"0.0.0.0:4222\"", "\"127.0.0.1:-1\"");
        let text = replaced(&text, "\"0.0.0.0:8222\"", "\"127.0.0.1:-1\"");
        let text = replaced(&text, "\"/data\"", &format!("\"{}\"", dir.path().join("store").display()));
        let file = dir.path().join("nats.conf");
        std::fs::write(&file, text).unwrap();
        let binary = std::env::var_os("NATS_SERVER").unwrap_or_else(|| "nats-server".into());
        let child = Command::new(binary)
            .arg("-c")
            .arg(&file)
            .arg("--ports_file_dir")
            .arg(dir.path())
            .env("NATS_LEDGER_PASSWORD", "l5ecret")
            .env("NATS_METERING_PASSWORD", "m5ecret")
            .env("NATS_AGENT_PASSWORD", "a5ecret")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let ports = dir.path().join(format!("nats-server_{}.ports", child.id()));
        let mut server = Self { child, port: 0, _dir: dir };
        eventually(PATIENCE, || {
            let port = port_of(&ports);
            async move { port.is_some() }
        })
        .await;
        server.port = port_of(&ports).unwrap();
        server
    }

    async fn connect(&self, user: &str, password: &str) -> Result<JetStream, ConnectError> {
        let mut options = Options::new(format!("nats://{user}:{password}@127.0.0.1:{}", self.port));
        options.timeout = Duration::from_secs(2);
        JetStream::connect(options).await
    }
}

fn port_of(file: &Path) -> Option<u16> {
    let text = std::fs::read_to_string(file).ok()?;
    let (_, clients) = text.split_once("\"nats\"")?;
    let (_, address) = clients.split_once("127.0.0.1:")?;
    address.split_once('"')?.0.parse().ok()
}

/// The server answers a forbidden request with nothing but a note to the connection: to the caller it stays unanswered.
fn is_refused(outcome: &Result<u64, AppendError>) -> bool {
    matches!(outcome, Err(AppendError::Unknown(_) | AppendError::Unavailable(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_service_can_do_its_work() {
    let server = Server::start().await;
    let ledger = server.connect("ledger", "l5ecret").await.unwrap();
    let metering = server.connect("metering", "m5ecret").await.unwrap();
    let agent = server.connect("agent-1", "a5ecret").await.unwrap();

    ledger.append(Message::new("control.genesis", "g")).await.unwrap();
    agent.append(Message::new("events.agent-1", "e")).await.unwrap();
    metering.append(Message::new("budget.0", "b").expecting(0)).await.unwrap();
    assert_eq!(metering.last("budget.0").await.unwrap().unwrap().payload, Bytes::from("b"));
    let lease = metering.acquire_lease("budget.0", "m1", PATIENCE).await.unwrap();
    assert!(matches!(lease, LeaseOutcome::Held(_)), "{lease:?}");
    ledger.put_latest("receipts.agent-1", Bytes::from("r")).await.unwrap();
    let revision = ledger.put_latest_if("checkpoint", Bytes::from("c"), 0).await.unwrap();
    assert_eq!(ledger.latest("checkpoint").await, Ok(Some((Bytes::from("c"), revision))));

    let all: Vec<_> = ledger.read(1, &[]).await.unwrap().take(3).map(|r| r.unwrap().subject).collect().await;
    assert_eq!(all, ["control.genesis", "events.agent-1", "budget.0"]);
    let put_back = Message::new("budget.0", "lost").expecting_tip(3);
    assert_eq!(ledger.append(put_back).await, Ok(4), "what the server lost comes back through the ledger");
    let usage = metering.read(1, &["events.*", "control.*"]).await.unwrap().take(2);
    assert_eq!(
        usage.map(|r| r.unwrap().subject).collect::<Vec<_>>().await,
        ["control.genesis", "events.agent-1"]
    );
    let receipt = agent.watch_latest("receipts.agent-1").await.unwrap().next().await.unwrap().unwrap();
    assert_eq!(receipt, Bytes::from("r"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_can_neither_speak_for_another_nor_listen() {
    let server = Server::start().await;
    let ledger = server.connect("ledger", "l5ecret").await.unwrap();
    ledger.put_latest("receipts.agent-2", Bytes::from("not for agent-1")).await.unwrap();
    ledger.append(Message::new("events.agent-2", "not for agent-1")).await.unwrap();
    let agent = server.connect("agent-1", "a5ecret").await.unwrap();

    for subject in ["events.agent-2", "control.genesis", "budget.0"] {
        let outcome = agent.append(Message::new(subject, "forged")).await;
        assert!(is_refused(&outcome), "{subject}: {outcome:?}");
    }
    assert!(agent.put_latest("receipts.agent-1", Bytes::from("forged")).await.is_err());
    assert!(agent.put_latest_if("checkpoint", Bytes::from("forged"), 0).await.is_err());
    assert!(matches!(agent.last("events.agent-2").await, Err(ReadError::Unavailable(_))));
    let mut heard = agent.read(1, &[]).await.unwrap();
    let mut receipts = agent.watch_latest("receipts.agent-2").await.unwrap();
    let silence = tokio::time::timeout(Duration::from_secs(3), async {
        tokio::select! { record = heard.next() => format!("{record:?}"), value = receipts.next() => format!("{value:?}") }
    })
    .await;
    assert!(silence.is_err(), "heard: {silence:?}");
    assert_eq!(ledger.tip().await.unwrap(), 1, "nothing forged got in");
}

#[tokio::test(flavor = "multi_thread")]
async fn metering_speaks_in_blocks_only() {
    let server = Server::start().await;
    let ledger = server.connect("ledger", "l5ecret").await.unwrap();
    let metering = server.connect("metering", "m5ecret").await.unwrap();
    for subject in ["events.agent-1", "control.genesis"] {
        let outcome = metering.append(Message::new(subject, "forged")).await;
        assert!(is_refused(&outcome), "{subject}: {outcome:?}");
    }
    assert_eq!(ledger.tip().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_as_such() {
    let server = Server::start().await;
    let outcome = server.connect("agent-1", "guess").await;
    assert!(matches!(outcome, Err(ConnectError::Options(_))), "{outcome:?}");
}
