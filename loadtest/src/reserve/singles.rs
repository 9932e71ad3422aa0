//! One command per call at a steady rate, whatever the answers do: an open loop.
//!
//! A call's latency is measured from the moment at which it was to be sent, so that a stall counts for all that it delays (no coordinated
//! omission). Left out: batches. Invariant: a call that fails fails the scenario.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use super::{
    batches::{Client, reservation, settlement, take_reserved, take_settled},
    load::SCOPES,
    tally::Tally,
};

/// Number of the first hold that was there before.
const FIRST_AHEAD: u64 = 1 << 40;

/// What the calls share.
#[derive(Debug)]
struct Progress {
    /// Holds that wait to be settled.
    open: VecDeque<(u64, String)>,
    tally: Tally,
    latencies: Histogram<u64>,
}

/// What it came to.
#[derive(Debug)]
pub(super) struct Paced {
    pub(super) tally: Tally,
    pub(super) latencies: Histogram<u64>,
    pub(super) per_s: f64,
}

/// Calls at `per_s` for so long: reservations and settlements in turn. `open` are holds, so that the first settlements have some.
pub(super) async fn pace(
    clients: Vec<Client>,
    name: &'static str,
    open: Vec<(u64, String)>,
    per_s: u32,
    time: Duration,
) -> anyhow::Result<Paced> {
    let latencies = Histogram::new(3)?;
    // Keys are made of numbers: these holds are numbered apart from those to come.
    let open = (FIRST_AHEAD..).zip(open).map(|(number, (_, hold_id))| (number, hold_id)).collect();
    let progress = Progress { open, tally: Tally::default(), latencies };
    let progress = Arc::new(Mutex::new(progress));
    let (due, mut calls) = tokio::sync::mpsc::unbounded_channel();
    let count = u64::from(per_s) * time.as_secs();
    let started = Instant::now();
    // A thread's sleep ends closer to its time than a runtime's timer.
    let pacer = std::thread::spawn(move || {
        for number in 0..count {
            let at = started + Duration::from_secs(1) * u32::try_from(number).unwrap_or(u32::MAX) / per_s;
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            if due.send((number, at)).is_err() {
                break;
            }
        }
    });
    let mut tasks = JoinSet::new();
    while let Some((number, at)) = calls.recv().await {
        let place = usize::try_from(number / 2).unwrap_or_default() % clients.len();
        let (client, progress) = (clients[place].clone(), Arc::clone(&progress));
        tasks.spawn(async move { call(client, &progress, name, number, at).await });
        while let Some(ended) = tasks.try_join_next() {
            ended??;
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    let time = started.elapsed();
    pacer.join().map_err(|_| anyhow::anyhow!("the pacer panicked"))?;
    let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
    let tally = std::mem::take(&mut progress.tally);
    Ok(Paced { per_s: crate::rate(tally.decisions(), time), tally, latencies: progress.latencies.clone() })
}

async fn call(
    mut client: Client,
    progress: &Mutex<Progress>,
    name: &str,
    number: u64,
    at: Instant,
) -> anyhow::Result<()> {
    let lock = || progress.lock().unwrap_or_else(PoisonError::into_inner);
    // Only after a stall longer than the first holds last is there none to settle.
    let hold = if number % 2 == 1 { lock().open.pop_front() } else { None };
    let micros = || u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX);
    if let Some((hold, hold_id)) = hold {
        let request = settlement(name, hold, hold_id);
        let key = request.idempotency_key.clone();
        let answer = client.settle(request).await?.into_inner();
        let micros = micros();
        let mut progress = lock();
        progress.latencies.record(micros)?;
        return take_settled(&mut progress.tally, &key, &answer);
    }
    let request = reservation(name, number, SCOPES[SCOPES.len() - 1]);
    let key = request.idempotency_key.clone();
    let answer = client.reserve(request).await?.into_inner();
    let micros = micros();
    let mut progress = lock();
    progress.latencies.record(micros)?;
    if let Some(hold_id) = take_reserved(&mut progress.tally, &key, answer)? {
        progress.open.push_back((number, hold_id));
    }
    Ok(())
}
