//! `execute`: `/bin/true` behind every layer of the sandbox, against bubblewrap in the same run; then many at a time, and what is left
//! of them.
//!
//! First single executions, warm, from request to sealed result without the disk, in turns with bubblewrap over the same paths, each when
//! nothing is being built or taken down any more: what a request takes on a quiet host. Then back to back, so that what is built ahead
//! and taken down afterwards is in the way of the next. Then many at a time, after which processes, descriptors, mounts, cgroups, network
//! namespaces and directories have to be no more than before. Then back to back with nothing built ahead. Then through the RPC of an agent in
//! a process of its own beside ledger and metering: hold, two durable records, bundle. Left out: programs that do something. Invariant:
//! nothing counts that did not exit with 0, and a leak is a failed run.

use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use hdrhistogram::Histogram;
use sandbox_agent::sandbox::{Layer, StartOptions};
use serde::Serialize;

mod audited;
mod bwrap;
mod census;
mod engine;
mod seal;

use self::{audited::World, census::Census, engine::Engine};
use crate::{rate, say};

/// What all of them execute.
const PROGRAM: &str = "/bin/true";
/// Executions before anything is measured, and before anything is counted.
const WARM_UP: u64 = 20;

/// What to run.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Single executions measured, of the sandbox, of the baseline and of the audited path each.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    single: u64,
    /// Executions of the concurrent phase.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    /// Executions of the audited concurrent phase.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..))]
    audited_runs: u64,
    /// Executions at one time.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrent: u16,
    /// Measure where a layer is missing as well.
    #[arg(long)]
    allow_degraded: bool,
}

/// The result.
#[derive(Debug, Serialize)]
struct Report {
    scenario: &'static str,
    /// Single executions from the request to the signed bundle, each on a quiet host.
    p50_ms: f64,
    p99_ms: f64,
    /// Surroundings built ahead of them.
    prebuilt: usize,
    /// One after the other without a pause.
    back_to_back_p50_ms: f64,
    bwrap_back_to_back_p50_ms: f64,
    /// The same with nothing built ahead: everything is on the clock.
    cold_p50_ms: f64,
    /// Of the concurrent phase.
    per_s: f64,
    bwrap_p50_ms: f64,
    bwrap_p99_ms: f64,
    /// Of the baseline's median to ours.
    ratio: f64,
    baseline: &'static str,
    layers: Layers,
    /// Single executions through the agent's RPC.
    audited_p50_ms: f64,
    audited_p99_ms: f64,
    /// Whether their answers had a result bundle.
    audited_bundle: bool,
    concurrent: Phase,
    audited_concurrent: Phase,
}

/// What was read back from the kernel, over all executions of the engine.
#[derive(Debug, Serialize)]
struct Layers {
    /// How many held in every one.
    enforced: usize,
    /// Those that did not in at least one.
    missing: Vec<String>,
}

impl Layers {
    fn check(&self, arguments: &Arguments) -> anyhow::Result<()> {
        let all = Layer::ALL.len();
        ensure!(self.enforced + self.missing.len() == all, "{self:?} are not the {all} layers there are");
        ensure!(
            arguments.allow_degraded || self.missing.is_empty(),
            "not enforced in each execution: {}",
            self.missing.join(", ")
        );
        Ok(())
    }
}

/// Many at a time.
#[derive(Debug, Serialize)]
struct Phase {
    executions: u64,
    at_once: u16,
    per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    before: Census,
    after: Census,
}

impl Phase {
    fn new(arguments: &Arguments, many: Many, before: Census, after: Census) -> Self {
        Self {
            executions: many.latencies.len(),
            at_once: arguments.concurrent,
            per_s: rate(many.latencies.len(), many.time),
            p50_ms: ms(&many.latencies, 0.5),
            p99_ms: ms(&many.latencies, 0.99),
            before,
            after,
        }
    }
}

/// How many executions at a time went.
struct Many {
    latencies: Histogram<u64>,
    time: Duration,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let bwrap = bwrap::Baseline::new()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    crate::line(&runtime.block_on(measure(arguments, &bwrap))?)
}

async fn measure(arguments: &Arguments, bwrap: &bwrap::Baseline) -> anyhow::Result<Report> {
    say("single executions, ours and bubblewrap's in turn …");
    let prebuilt = StartOptions::default().ready;
    let engine = Engine::start(prebuilt)?;
    for _ in 0..WARM_UP {
        engine.single().await?;
        bwrap.execute()?;
    }
    let (mut ours, mut theirs) = (histogram(), histogram());
    while ours.len() < arguments.single {
        Census::quiet(std::process::id()).await?;
        record(&mut ours, engine.single().await?)?;
        Census::quiet(std::process::id()).await?;
        record(&mut theirs, bwrap.execute()?)?;
    }
    let (p50_ms, bwrap_p50_ms) = (ms(&ours, 0.5), ms(&theirs, 0.5));
    let (mut busy, mut theirs_busy) = (histogram(), histogram());
    for _ in 0..arguments.single {
        record(&mut busy, engine.single().await?)?;
    }
    Census::quiet(std::process::id()).await?;
    for _ in 0..arguments.single {
        record(&mut theirs_busy, bwrap.execute()?)?;
    }

    say(format!("{p50_ms:.2} ms against {bwrap_p50_ms:.2} ms; now {} at once …", arguments.concurrent));
    let at_once = arguments.concurrent;
    engine.many(at_once, u64::from(at_once)).await?;
    Census::quiet(std::process::id()).await?;
    let before = Census::of(std::process::id(), None)?;
    let many = engine.many(at_once, arguments.runs).await?;
    Census::quiet(std::process::id()).await?;
    let after = Census::settled(&before, None).await?;
    let concurrent = Phase::new(arguments, many, before, after);
    let layers = engine.layers();
    layers.check(arguments)?;
    drop(engine);
    // A helper more, or one that is ending, would be counted above.
    let cold = cold(arguments).await?;

    say(format!("{:.0} /s; now through the agent's RPC …", concurrent.per_s));
    let world = World::start(at_once, !layers.missing.is_empty()).await?;
    let client = world.client().await?;
    for _ in 0..WARM_UP {
        client.execute().await?;
    }
    let mut audited = histogram();
    let mut audited_bundle = true;
    for _ in 0..arguments.single {
        let executed = client.execute().await?;
        record(&mut audited, executed.time)?;
        audited_bundle &= executed.has_bundle;
    }
    ensure!(audited_bundle, "an audited execution was answered without its result bundle");
    let mut clients = vec![client];
    while clients.len() < audited::CONNECTIONS {
        clients.push(world.client().await?);
    }
    audited::many(&clients, at_once, u64::from(at_once)).await?;
    let data = Some(world.data());
    Census::quiet(world.pid()).await?;
    let before = Census::of(world.pid(), data)?;
    let many = audited::many(&clients, at_once, arguments.audited_runs).await?;
    Census::quiet(world.pid()).await?;
    let after = Census::settled(&before, data).await?;
    let audited_concurrent = Phase::new(arguments, many, before, after);
    drop(clients);
    world.stop()?;
    Ok(Report {
        scenario: "execute",
        p50_ms,
        p99_ms: ms(&ours, 0.99),
        prebuilt,
        back_to_back_p50_ms: ms(&busy, 0.5),
        bwrap_back_to_back_p50_ms: ms(&theirs_busy, 0.5),
        cold_p50_ms: ms(&cold, 0.5),
        per_s: concurrent.per_s,
        bwrap_p50_ms,
        bwrap_p99_ms: ms(&theirs, 0.99),
        ratio: bwrap_p50_ms / p50_ms,
        baseline: "bubblewrap --unshare-all --die-with-parent --new-session, the same paths read-only, proc, dev, tmpfs on /tmp",
        layers,
        audited_p50_ms: ms(&audited, 0.5),
        audited_p99_ms: ms(&audited, 0.99),
        audited_bundle,
        concurrent,
        audited_concurrent,
    })
}

/// Single executions by a sandbox that builds nothing ahead.
async fn cold(arguments: &Arguments) -> anyhow::Result<Histogram<u64>> {
    let engine = Engine::start(0)?;
    for _ in 0..WARM_UP {
        engine.single().await?;
    }
    let mut latencies = histogram();
    for _ in 0..arguments.single {
        record(&mut latencies, engine.single().await?)?;
    }
    engine.layers().check(arguments)?;
    Ok(latencies)
}

/// So many executions in all, so many at a time, each counted if it succeeded; the first failure is the phase's.
async fn at_once<F>(
    concurrent: u16,
    runs: u64,
    execute: impl Fn(u16) -> F + Clone + Send + 'static,
) -> anyhow::Result<Many>
where
    F: Future<Output = anyhow::Result<Duration>> + Send,
{
    let left = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(runs));
    let started = std::time::Instant::now();
    let mut lanes = tokio::task::JoinSet::new();
    for lane in 0..concurrent {
        let (left, execute) = (left.clone(), execute.clone());
        lanes.spawn(async move {
            use std::sync::atomic::Ordering::Relaxed;
            let mut latencies = histogram();
            while left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
                record(&mut latencies, execute(lane).await?)?;
            }
            anyhow::Ok(latencies)
        });
    }
    let mut latencies = histogram();
    while let Some(lane) = lanes.join_next().await {
        latencies.add(lane??)?;
    }
    ensure!(latencies.len() == runs, "{} of {runs} executions were counted", latencies.len());
    Ok(Many { latencies, time: started.elapsed() })
}

fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are possible")
}

fn record(latencies: &mut Histogram<u64>, time: Duration) -> anyhow::Result<()> {
    Ok(latencies.record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))?)
}

fn ms(latencies: &Histogram<u64>, quantile: f64) -> f64 {
    rate(latencies.value_at_quantile(quantile), Duration::from_secs(1)) / 1000.0
}
