//! `ingest`: simulated agents sign real batches of real events through a real nats-server that syncs always, into the ledger.
//!
//! An event counts once a receipt under a signed checkpoint covers it, whose head is the digest that the agent computed itself.
//! Afterwards the log on disk is read back entry by entry. Agents, ledger and this program share the machine with the server.
//! Left out: sandboxes and spools. Invariant: the latencies are those of a paced second phase, not of a full queue.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use ed25519_dalek::VerifyingKey;
use exchequer_event::{control::open_receipt, name::receipt_key, v1::KeyRole};
use exchequer_ledger::{Enrolment, Options, Service};
use exchequer_stream::{EventStream, JetStream, Message, jetstream};
use exchequer_testkit::{NatsServer, Sync};
use exchequer_tlog::{Policy, SignedCheckpoint, VerifierKey};
use futures::StreamExt as _;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::sync::Notify;

use crate::{
    agent::{Agent, Batch},
    baseline,
    built::covered,
    cpu, rate, say, scan,
};

/// Batches that an agent has handed over and not seen acknowledged.
const UNACKED: usize = 16;
const ORIGIN: &str = "loadtest.example/log";
const PATIENCE: Duration = Duration::from_secs(60);

/// What to run.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Seconds of full load.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Seconds at the paced load, for the latencies.
    #[arg(long, default_value_t = 10)]
    paced_seconds: u64,
    /// Share of the full rate in the paced phase, percent.
    #[arg(long, default_value_t = 20)]
    paced_percent: u32,
    /// Seconds of the baseline.
    #[arg(long, default_value_t = 5)]
    baseline_seconds: u64,
    /// Agents.
    #[arg(long, default_value_t = 4)]
    agents: usize,
    /// Events per batch at full load; a quarter of it in the paced phase.
    #[arg(long, default_value_t = 512)]
    batch: usize,
    /// Bytes per event.
    #[arg(long, default_value_t = 300)]
    event_bytes: usize,
    /// Events that an agent may have beyond its last receipt.
    #[arg(long, default_value_t = 65_536)]
    window: u64,
    /// Milliseconds between checkpoints.
    #[arg(long, default_value_t = 250)]
    checkpoint_ms: u64,
}

/// The result.
#[derive(Debug, Serialize)]
struct Report {
    scenario: &'static str,
    events: u64,
    events_per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    full_load_p50_ms: f64,
    full_load_p99_ms: f64,
    paced_events_per_s: f64,
    lost: u64,
    duplicated: u64,
    verified: bool,
    baseline: &'static str,
    baseline_publish_per_s: f64,
    ratio: f64,
    agents_and_ledger_cpu_us_per_event: f64,
    nats_cpu_us_per_event: f64,
    log_entries: u64,
    checkpoints_checked: u64,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    ensure!((1..=512).contains(&arguments.batch), "--batch is 1 to 512");
    ensure!(arguments.window >= 2 * arguments.batch as u64, "--window has to hold two batches");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    crate::line(&runtime.block_on(measure(arguments))?)
}

async fn measure(arguments: &Arguments) -> anyhow::Result<Report> {
    say("baseline: one message per event, default sync …");
    let sample = Agent::new(0, arguments.event_bytes).events(100_000);
    let baseline = baseline::publish_per_s(&sample, Duration::from_secs(arguments.baseline_seconds)).await?;
    drop(sample);

    let directory = tempfile::Builder::new().prefix("exchequer-load-").tempdir()?;
    let server = NatsServer::start_with(Sync::Always);
    let mut options = jetstream::Options::new(server.url());
    options.monitor_urls = vec![server.monitor_url()];
    let stream: Arc<dyn EventStream> = Arc::new(JetStream::connect(options.clone()).await?);
    let agents: Vec<_> = (1..=arguments.agents).map(|n| Agent::new(n, arguments.event_bytes)).collect();
    let enrol = |agent: &Agent| Enrolment {
        role: KeyRole::Agent,
        holder: agent.id().to_owned(),
        key: agent.public_key(),
    };
    let ledger = Options {
        origin: ORIGIN.to_owned(),
        checkpoint_interval: Duration::from_millis(arguments.checkpoint_ms),
        enroll: agents.iter().map(enrol).collect(),
        ..Options::new(directory.path().join("ledger"))
    };
    let service = Service::start(ledger.clone(), stream).await?;
    let prelude = 1 + agents.len() as u64;
    let deadline = Instant::now() + PATIENCE;
    while covered(&service) < prelude {
        ensure!(Instant::now() < deadline, "the ledger enrols no keys");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut lanes = Vec::new();
    for agent in agents {
        // A connection of its own, as a worker host has.
        let stream = Arc::new(JetStream::connect(options.clone()).await?);
        lanes.push(Lane::new(agent, stream, &service, arguments)?);
    }

    say("full load …");
    let (own, nats) = (cpu::own()?, cpu::of(server.pid())?);
    let full = phase(&mut lanes, arguments.batch, Duration::from_secs(arguments.seconds), None).await?;
    let events_per_s = rate(full.events, full.time);
    let per_event = |time: Duration| time.as_secs_f64() * 1e6 / rate(full.events, Duration::from_secs(1));
    let own = per_event(cpu::own()?.saturating_sub(own));
    let nats = per_event(cpu::of(server.pid())?.saturating_sub(nats));

    say(format!("{events_per_s:.0} events/s; now {} % of that …", arguments.paced_percent));
    let paced_rate = events_per_s * f64::from(arguments.paced_percent) / 100.0;
    let paced_time = Duration::from_secs(arguments.paced_seconds);
    let paced = phase(&mut lanes, (arguments.batch / 4).max(1), paced_time, Some(paced_rate)).await?;

    say("reading the log back …");
    let verifier: VerifierKey = service.verifier_key().parse()?;
    service.stop().await;
    let sent: Vec<_> = lanes.iter().map(|lane| (lane.agent.id().to_owned(), lane.sent)).collect();
    let checkpoints_checked = lanes.iter().map(|lane| lane.shared.checkpoints.load(Ordering::Relaxed)).sum();
    drop(lanes);
    let found = tokio::task::spawn_blocking(move || scan::log(&ledger.data.join("log"), &verifier)).await??;
    let (lost, duplicated) = found.compare(&sent);
    ensure!(lost == 0 && duplicated == 0, "{lost} events lost, {duplicated} twice in the log");
    ensure!(found.root_holds, "the entries do not lead to the signed root");
    Ok(Report {
        scenario: "ingest",
        events: full.events + paced.events,
        events_per_s,
        p50_ms: paced.quantile_ms(0.5),
        p99_ms: paced.quantile_ms(0.99),
        full_load_p50_ms: full.quantile_ms(0.5),
        full_load_p99_ms: full.quantile_ms(0.99),
        paced_events_per_s: rate(paced.events, paced.time),
        lost,
        duplicated,
        verified: found.root_holds,
        baseline: "async-nats publish of the same bytes, one message per event, default sync",
        baseline_publish_per_s: baseline,
        ratio: events_per_s / baseline,
        agents_and_ledger_cpu_us_per_event: own,
        nats_cpu_us_per_event: nats,
        log_entries: found.entries,
        checkpoints_checked,
    })
}

/// A batch that waits for its receipt.
struct Waiting {
    last_seq: u64,
    batch: Batch,
    sent: Instant,
}

/// What an agent's publisher and its receipts share.
struct Shared {
    waiting: Mutex<VecDeque<Waiting>>,
    /// Seq up to which a receipt covers.
    covered: AtomicU64,
    latencies: Mutex<Histogram<u64>>,
    checkpoints: AtomicU64,
    changed: Notify,
    fault: Mutex<Option<String>>,
}

/// One agent at work.
struct Lane {
    agent: Agent,
    stream: Arc<JetStream>,
    shared: Arc<Shared>,
    sent: u64,
    window: u64,
    receipts: tokio::task::JoinHandle<()>,
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.receipts.abort();
    }
}

impl Lane {
    fn new(
        agent: Agent,
        stream: Arc<JetStream>,
        service: &Service,
        arguments: &Arguments,
    ) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            covered: AtomicU64::new(0),
            latencies: Mutex::new(histogram()),
            checkpoints: AtomicU64::new(0),
            changed: Notify::new(),
            fault: Mutex::default(),
        });
        let verifier: VerifierKey = service.verifier_key().parse()?;
        let key = service.public_key();
        let policy =
            Policy { origin: ORIGIN.to_owned(), log_keys: vec![verifier], witnesses: Vec::new(), quorum: 0 };
        let (watched, of, id) = (stream.clone(), shared.clone(), agent.id().to_owned());
        let receipts = tokio::spawn(async move {
            let ended = watch(&watched, &of, &id, &key, &policy).await;
            if let Err(error) = ended {
                *of.fault.lock().expect("not poisoned") = Some(format!("{error:#}"));
            }
            of.changed.notify_one();
        });
        Ok(Self { agent, stream, shared, sent: 0, window: arguments.window, receipts })
    }

    /// Publishes for so long, at so many events per second if paced, and waits for the last receipt.
    async fn work(&mut self, count: usize, time: Duration, per_s: Option<f64>) -> anyhow::Result<()> {
        let started = Instant::now();
        let first = self.sent;
        let mut acks = VecDeque::new();
        while started.elapsed() < time {
            if let Some(per_s) = per_s {
                let due = Duration::from_secs_f64(rate(self.sent - first, Duration::from_secs(1)) / per_s);
                tokio::time::sleep_until((started + due).into()).await;
            }
            self.room(self.window - count as u64).await?;
            let batch = self.agent.batch(count);
            let message = Message::new(self.agent.subject(), batch.payload.clone());
            self.sent += batch.events;
            let waiting = Waiting { last_seq: batch.last_seq, batch, sent: Instant::now() };
            self.shared.waiting.lock().expect("not poisoned").push_back(waiting);
            acks.push_back(self.stream.enqueue(message).await?);
            if acks.len() >= UNACKED
                && let Some(oldest) = acks.pop_front()
            {
                oldest.await?;
            }
        }
        for ack in acks {
            ack.await?;
        }
        tokio::time::timeout(PATIENCE, self.room(0)).await.context("the last receipt did not come")?
    }

    /// Waits until at most so many events are beyond the last receipt.
    async fn room(&self, most: u64) -> anyhow::Result<()> {
        loop {
            let changed = self.shared.changed.notified();
            if let Some(fault) = self.shared.fault.lock().expect("not poisoned").clone() {
                bail!("{}: {fault}", self.agent.id());
            }
            if self.sent - self.shared.covered.load(Ordering::Acquire) <= most {
                return Ok(());
            }
            changed.await;
        }
    }
}

/// Takes up receipts, each checked: signed by the ledger, its head the agent's own event, its checkpoint signed.
async fn watch(
    stream: &JetStream,
    shared: &Shared,
    id: &str,
    key: &VerifyingKey,
    policy: &Policy,
) -> anyhow::Result<()> {
    let mut values = stream.watch_latest(&receipt_key(id)).await?;
    while let Some(value) = values.next().await {
        let receipt = open_receipt(&value?, key, id).map_err(anyhow::Error::msg)?;
        ensure!(receipt.resend_from == 0, "a batch was refused: {:?}", receipt.refused());
        let head = receipt.head.context("no head")?;
        SignedCheckpoint::parse(&receipt.checkpoint)?.verify(policy)?;
        shared.checkpoints.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let mut waiting = shared.waiting.lock().expect("not poisoned");
        let mut latencies = shared.latencies.lock().expect("not poisoned");
        while let Some(first) = waiting.front().filter(|first| first.last_seq <= head.seq) {
            ensure!(
                first.last_seq < head.seq || first.batch.head.0 == *head.hash,
                "the receipt names another event {} than the agent's",
                head.seq
            );
            let micros = u64::try_from((now - first.sent).as_micros()).unwrap_or(u64::MAX);
            latencies.record_n(micros, first.batch.events)?;
            waiting.pop_front();
        }
        drop((waiting, latencies));
        shared.covered.store(head.seq, Ordering::Release);
        shared.changed.notify_one();
    }
    bail!("receipts ended")
}

/// What a phase came to.
struct Phase {
    events: u64,
    time: Duration,
    latencies: Histogram<u64>,
}

impl Phase {
    fn quantile_ms(&self, quantile: f64) -> f64 {
        rate(self.latencies.value_at_quantile(quantile), Duration::from_secs(1)) / 1000.0
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are possible")
}

/// All lanes at once; from the first batch to the last receipt.
async fn phase(
    lanes: &mut Vec<Lane>,
    count: usize,
    time: Duration,
    per_s: Option<f64>,
) -> anyhow::Result<Phase> {
    let share = u32::try_from(lanes.len()).map_or(1.0, f64::from);
    let before: u64 = lanes.iter().map(|lane| lane.sent).sum();
    for lane in &*lanes {
        lane.shared.latencies.lock().expect("not poisoned").reset();
    }
    let started = Instant::now();
    let working = std::mem::take(lanes).into_iter().map(|mut lane| {
        tokio::spawn(async move {
            let outcome = lane.work(count, time, per_s.map(|per_s| per_s / share)).await;
            (lane, outcome)
        })
    });
    let working: Vec<_> = working.collect();
    for task in working {
        let (lane, outcome) = task.await?;
        outcome?;
        lanes.push(lane);
    }
    let time = started.elapsed();
    let mut latencies = histogram();
    for lane in &*lanes {
        latencies.add(&*lane.shared.latencies.lock().expect("not poisoned"))?;
    }
    let events = lanes.iter().map(|lane| lane.sent).sum::<u64>() - before;
    Ok(Phase { events, time, latencies })
}
