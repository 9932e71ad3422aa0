//! The sandbox itself, as the agent uses it: prepared, its controls read back, released, followed to its end, its result sealed.
//!
//! Left out: holds and the disk (`audited`). Invariant: every execution's controls were looked at, and it counts if it exited with 0.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use sandbox_agent::{
    record::Outputs,
    sandbox::{ControlStatus, ExitCause, Layer, Sandbox, Spec, StartOptions},
};
use tokio::sync::mpsc;

use super::{Layers, Many, PROGRAM, at_once, seal::Sealer};

/// A sandbox and what was seen of its layers.
#[derive(Clone)]
pub(super) struct Engine {
    sandbox: Sandbox,
    spec: Arc<Spec>,
    sealer: Arc<Sealer>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    enforced: BTreeSet<String>,
    missing: BTreeSet<String>,
}

impl Engine {
    /// With so many surroundings built ahead.
    pub(super) fn start(ready: usize) -> anyhow::Result<Self> {
        let options = StartOptions { ready, ..StartOptions::default() };
        let sandbox = Sandbox::start(options).context("the sandbox's helper")?;
        let spec = Arc::new(Spec::new(PROGRAM, [""; 0]));
        Ok(Self { sandbox, spec, sealer: Arc::new(Sealer::new()), seen: Arc::default() })
    }

    /// How long one took, executed where an agent's requests are: by a task of the runtime's.
    pub(super) async fn single(&self) -> anyhow::Result<Duration> {
        let engine = self.clone();
        tokio::spawn(async move { engine.execute().await }).await?
    }

    /// How long one took, from the request to its sealed result.
    async fn execute(&self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let (output, mut chunks) = mpsc::channel(16);
        let prepared = self.sandbox.prepare(&self.spec, None, output).await?;
        let controls = prepared.controls().to_vec();
        let admission = Sealer::admit(&self.spec, &controls);
        let mut running = prepared.release().await?;
        let outcome = running.outcome().await?;
        let mut outputs = Outputs::default();
        while let Some(chunk) = chunks.recv().await {
            outputs.update(chunk.stream, &chunk.bytes);
        }
        let bundle = self.sealer.seal(&admission, &outcome, &outputs)?;
        let time = started.elapsed();
        ensure!(outcome.cause == ExitCause::Exited { code: 0 }, "{PROGRAM} ended with {:?}", outcome.cause);
        ensure!(controls.len() == Layer::ALL.len(), "{} controls were read back", controls.len());
        self.sealer.check(&bundle, controls.len())?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for control in controls {
            let holds = control.status == ControlStatus::Enforced;
            let names = if holds { &mut seen.enforced } else { &mut seen.missing };
            if !names.contains(control.layer.name()) {
                names.insert(control.layer.name().to_owned());
            }
        }
        Ok(time)
    }

    /// So many in all, so many at a time.
    pub(super) async fn many(&self, concurrent: u16, runs: u64) -> anyhow::Result<Many> {
        let engine = self.clone();
        at_once(concurrent, runs, move |_| {
            let engine = engine.clone();
            async move { engine.execute().await }
        })
        .await
    }

    /// What held in every execution so far, and what did not.
    pub(super) fn layers(&self) -> Layers {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let enforced = seen.enforced.difference(&seen.missing).count();
        Layers { enforced, missing: seen.missing.iter().cloned().collect() }
    }
}
