//! `reserve`: budgets of one tenant at three enclosing scopes, reserved and settled over gRPC through a metering process and a nats-server
//! that syncs always, against Redis with a Lua script (see `reserve/redis.rs`) under the same load on the same machine.
//!
//! First clients that batch, at full load; then single calls at a steady rate, for the latencies; then a budget that runs out under
//! contention. Afterwards the stream is read back: what every caller was answered is what it records, no scope was ever overspent, and the
//! fold from nothing is the state that the process had. Left out: ledger, agents, several instances. Invariant: nothing counts that was not
//! answered and found in the log.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Args;
use ed25519_dalek::SigningKey;
use exchequer_auth::{BearerToken, Grant, Issuer, Role};
use exchequer_event::{
    control::{sign_control, topic},
    name::control_subject,
    v1::{self, KeyRole, control_record, metering_service_client::MeteringServiceClient},
};
use exchequer_stream::{EventStream, JetStream, Message, jetstream};
use exchequer_testkit::{NatsServer, Sync};
use hdrhistogram::Histogram;
use prost::Message as _;
use serde::Serialize;
use tonic::transport::Channel;

mod audit;
mod batches;
mod instance;
mod load;
mod redis;
mod singles;
mod tally;

use self::{
    batches::{Batcher, Client},
    instance::Instance,
    load::{HOLDER, PLENTY, SCARCE, SCOPES, Shape},
};
use crate::{cpu, rate, say};

const PATIENCE: Duration = Duration::from_secs(60);
const TOKEN_TTL: Duration = Duration::from_secs(3600);
/// Holds that are open when single calls begin.
const AHEAD: usize = 512;

/// What to run.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Seconds of full load.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Seconds of single calls.
    #[arg(long, default_value_t = 10)]
    paced_seconds: u64,
    /// Single calls per second.
    #[arg(long, default_value_t = 2_000)]
    paced_per_s: u32,
    /// Seconds of the baseline.
    #[arg(long, default_value_t = 10)]
    baseline_seconds: u64,
    /// Connections, on both sides.
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Commands per batch, on both sides.
    #[arg(long, default_value_t = 1024)]
    batch: usize,
    /// What the scarce scope is granted of each meter.
    #[arg(long, default_value_t = 1_000_003)]
    scarce: u64,
    /// Runs the metering process over this NATS server: what the scenario starts.
    #[arg(long, hide = true, value_name = "URL", requires = "directory")]
    instance: Option<String>,
    /// Data of the metering process.
    #[arg(long, hide = true)]
    directory: Option<PathBuf>,
}

impl Arguments {
    /// Whether this is the metering process.
    pub(crate) fn is_instance(&self) -> bool {
        self.instance.is_some()
    }
}

/// The result.
#[derive(Debug, Serialize)]
struct Report {
    scenario: &'static str,
    decisions: u64,
    decisions_per_s: f64,
    /// Of single calls at the paced rate, from the moment that each was due.
    p50_ms: f64,
    p99_ms: f64,
    paced_per_s: f64,
    /// Of batches at full load.
    batch_p50_ms: f64,
    batch_p99_ms: f64,
    overspend: u64,
    granted: u64,
    denied: u64,
    settled: u64,
    verified: bool,
    baseline: &'static str,
    baseline_per_s: f64,
    ratio: f64,
    clients_cpu_us: f64,
    metering_cpu_us: f64,
    nats_cpu_us: f64,
    baseline_clients_cpu_us: f64,
    baseline_cpu_us: f64,
    blocks: u64,
    /// At full load.
    decisions_per_block: f64,
    bytes_per_decision: f64,
    replay_per_s: f64,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    ensure!((2..=1024).contains(&arguments.batch), "--batch is 2 to 1024");
    ensure!(arguments.connections > 0 && arguments.paced_per_s > 0, "nothing to do");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let (Some(nats), Some(directory)) = (&arguments.instance, &arguments.directory) {
        return runtime.block_on(instance::serve(directory, nats));
    }
    redis::program()?;
    crate::line(&runtime.block_on(measure(arguments))?)
}

async fn measure(arguments: &Arguments) -> anyhow::Result<Report> {
    let shape = Shape { connections: arguments.connections, batch: arguments.batch };
    say("baseline: Redis, Lua, appendfsync always …");
    let time = Duration::from_secs(arguments.baseline_seconds);
    let baseline = tokio::task::spawn_blocking(move || redis::measure(shape, time)).await??;
    say(format!("{:.0} decisions/s; now metering …", baseline.decisions_per_s));

    let directory = tempfile::Builder::new().prefix("exchequer-load-").tempdir()?;
    let server = NatsServer::start_with(Sync::Always);
    let stream = JetStream::connect(jetstream::Options::new(server.url())).await?;
    let issuer = instance::issuer(directory.path())?;
    let metering = Instance::start(directory.path(), &server.url())?;
    let metering_key = metering.listening.public_key.clone();
    begin(&stream, &metering_key).await?;
    let world = World { issuer, address: format!("http://{}", metering.listening.address) };
    let mut admin = world.client("root", Role::Admin).await?;
    for scope in SCOPES {
        set_budget(&mut admin, scope, PLENTY).await?;
    }

    let mut batchers = Vec::new();
    for number in 0..shape.connections {
        batchers.push(Batcher::new(world.client(HOLDER, Role::Agent).await?, format!("c{number}")));
    }
    let before = [cpu::own()?, cpu::of(metering.pid())?, cpu::of(server.pid())?];
    let started = Instant::now();
    let time = Duration::from_secs(arguments.seconds);
    let mut batchers =
        all(batchers, |mut batcher| async move { batcher.work(shape.batch, time).await.map(|()| batcher) })
            .await?;
    let time = started.elapsed();
    let after = [cpu::own()?, cpu::of(metering.pid())?, cpu::of(server.pid())?];
    let full: u64 = batchers.iter().map(|batcher| batcher.tally.decisions()).sum();
    let mut batched = Histogram::<u64>::new(3)?;
    for batcher in &batchers {
        batched.add(&batcher.latencies)?;
    }
    let cpu = |place: usize| {
        let time = after[place].saturating_sub(before[place]);
        time.as_secs_f64() * 1e6 / rate(full, Duration::from_secs(1))
    };
    let decisions_per_s = rate(full, time);
    // Nothing else writes to the stream meanwhile, so that every message from the first to the last is a block.
    let spans = || batchers.iter().filter_map(|batcher| batcher.blocks);
    let first = spans().map(|(first, _)| first).min().context("no block answered")?;
    let full_blocks = spans().map(|(_, last)| last).max().unwrap_or(first) - first + 1;

    say(format!("{decisions_per_s:.0} decisions/s; now single calls …"));
    let ahead = batchers[0].hold(AHEAD).await?;
    let mut clients = Vec::new();
    for _ in 0..shape.connections {
        clients.push(world.client(HOLDER, Role::Agent).await?);
    }
    let time = Duration::from_secs(arguments.paced_seconds);
    let paced = singles::pace(clients, "single", ahead, arguments.paced_per_s, time).await?;

    say("a budget that runs out …");
    set_budget(&mut admin, SCARCE, arguments.scarce).await?;
    let batch = shape.batch;
    batchers =
        all(batchers, |mut batcher| async move { batcher.exhaust(batch).await.map(|()| batcher) }).await?;

    say("reading the stream back …");
    let mut balances = Vec::new();
    for scope in SCOPES.into_iter().chain([SCARCE]) {
        balances.push((scope, balance(&mut admin, scope).await?));
    }
    let mut answered = paced.tally.clone();
    for batcher in &batchers {
        answered.merge(&batcher.tally);
    }
    drop((batchers, admin));
    let stood = metering.stop()?;
    let records = audit::read(&stream).await?;
    let reading = tokio::task::spawn_blocking(move || {
        let bytes: usize = records.iter().map(|record| record.payload.len()).sum();
        Ok::<_, anyhow::Error>((audit::audit(&records)?, audit::replay(&records)?, bytes as u64))
    });
    let (audited, replayed, bytes) = reading.await??;
    ensure!(audited.tally == answered, "the log has {:?}, callers were answered {answered:?}", audited.tally);
    ensure!(audited.overspend == 0, "overspent by {}", audited.overspend);
    for (scope, found) in balances {
        let account = audited.accounts.get(scope).copied();
        ensure!(account == Some(found), "{scope}: the log has {account:?}, metering says {found:?}");
    }
    let scarce = audited.accounts[SCARCE];
    let left = scarce.granted[0] - scarce.held[0] - scarce.spent[0];
    ensure!(answered.denied > 0 && left < load::asked(0)[0], "{left} are left of what ran out");
    ensure!(
        replayed.digest == stood.digest,
        "the fold from nothing is {}, not {}",
        replayed.digest,
        stood.digest
    );
    let decisions = answered.decisions();
    Ok(Report {
        scenario: "reserve",
        decisions,
        decisions_per_s,
        p50_ms: ms(&paced.latencies, 0.5),
        p99_ms: ms(&paced.latencies, 0.99),
        paced_per_s: paced.per_s,
        batch_p50_ms: ms(&batched, 0.5),
        batch_p99_ms: ms(&batched, 0.99),
        overspend: audited.overspend,
        granted: answered.granted,
        denied: answered.denied,
        settled: answered.settled,
        verified: true,
        baseline: "Redis, appendfsync always, a Lua script per command, pipelined in the same batches over as many connections",
        baseline_per_s: baseline.decisions_per_s,
        ratio: decisions_per_s / baseline.decisions_per_s,
        clients_cpu_us: cpu(0),
        metering_cpu_us: cpu(1),
        nats_cpu_us: cpu(2),
        baseline_clients_cpu_us: baseline.client_cpu_us,
        baseline_cpu_us: baseline.cpu_us,
        blocks: audited.blocks,
        decisions_per_block: each(full, full_blocks),
        bytes_per_decision: each(bytes, decisions),
        replay_per_s: rate(replayed.decisions, replayed.time),
    })
}

/// So many of one for each of the other.
#[allow(clippy::cast_precision_loss)]
fn each(of: u64, count: u64) -> f64 {
    of as f64 / count as f64
}

fn ms(latencies: &Histogram<u64>, quantile: f64) -> f64 {
    rate(latencies.value_at_quantile(quantile), Duration::from_secs(1)) / 1000.0
}

/// All at once; the first failure is the scenario's.
async fn all<F>(batchers: Vec<Batcher>, work: impl Fn(Batcher) -> F) -> anyhow::Result<Vec<Batcher>>
where
    F: Future<Output = anyhow::Result<Batcher>> + Send + 'static,
{
    let tasks: Vec<_> = batchers.into_iter().map(|batcher| tokio::spawn(work(batcher))).collect();
    let mut done = Vec::with_capacity(tasks.len());
    for task in tasks {
        done.push(task.await??);
    }
    Ok(done)
}

/// Who is believed, and where metering listens.
struct World {
    issuer: Issuer,
    address: String,
}

impl World {
    /// A client on a connection of its own.
    async fn client(&self, subject: &str, role: Role) -> anyhow::Result<Client> {
        let grant = Grant { subject: subject.to_owned(), tenant: None, roles: vec![role], ttl: TOKEN_TTL };
        let token = BearerToken::issued(self.issuer.clone(), grant)?;
        let channel = Channel::from_shared(self.address.clone())?.tcp_nodelay(true).connect().await?;
        Ok(MeteringServiceClient::with_interceptor(channel, token))
    }
}

/// The log's beginning: its ledger key, and the metering key that it enrols.
async fn begin(stream: &JetStream, metering_key: &str) -> anyhow::Result<()> {
    let ledger = SigningKey::from_bytes(&[7; 32]);
    let ledger_key = ledger.verifying_key().to_bytes().to_vec().into();
    let enrolled = v1::KeyEnrolled {
        role: KeyRole::Metering.into(),
        holder: "metering".to_owned(),
        public_key: hex::decode(metering_key)?.into(),
    };
    let genesis = v1::Genesis { origin: "loadtest.example/log".to_owned(), ledger_key };
    for kind in [control_record::Kind::Genesis(genesis), control_record::Kind::KeyEnrolled(enrolled)] {
        let subject = control_subject(topic(&kind));
        let record = v1::ControlRecord { time_unix_ms: 1, actor: "ledger".to_owned(), kind: Some(kind) };
        stream.append(Message::new(subject, sign_control(&ledger, &record).encode_to_vec())).await?;
    }
    Ok(())
}

/// Sets a budget; as soon as metering serves.
async fn set_budget(admin: &mut Client, scope: &str, granted: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let request = v1::SetBudgetRequest {
            scope: scope.to_owned(),
            granted: load::amounts([granted; 2]),
            idempotency_key: format!("set-{scope}"),
            ..v1::SetBudgetRequest::default()
        };
        match admin.set_budget(request).await {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == tonic::Code::Unavailable && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(status) => return Err(status.into()),
        }
    }
}

/// A scope's account as metering has it.
async fn balance(admin: &mut Client, scope: &str) -> anyhow::Result<audit::Account> {
    let request = v1::GetBudgetRequest { scope: scope.to_owned() };
    let budget = admin.get_budget(request).await?.into_inner().budget.context("no budget")?;
    let mut account = audit::Account::default();
    for balance in budget.balances {
        let place = load::METERS.iter().position(|meter| *meter == balance.meter).context("another meter")?;
        account.granted[place] = balance.granted;
        account.held[place] = balance.held;
        account.spent[place] = balance.spent;
    }
    Ok(account)
}
