//! A log of any size, built by the real ledger from a generated stream, as fast as it goes without a broker.
//!
//! Left out: measuring. Invariant: the log's newest checkpoint covers exactly the entries that were asked for, rounded up to batches.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use exchequer_event::v1::KeyRole;
use exchequer_ledger::{Enrolment, Options, Service};
use exchequer_tlog::SignedCheckpoint;

use crate::{agent::Agent, generated::Generated, rate, say};

const BATCH: usize = 512;
/// Genesis and the agent's enrolment.
const PRELUDE: u64 = 2;
/// The ledger is given up if its log does not grow for so long.
const STALLED: Duration = Duration::from_secs(60);

/// A log that was built, or is to be.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    pub(crate) directory: PathBuf,
    batches: u64,
    event_bytes: usize,
}

impl Built {
    /// The log of at least so many entries in this directory.
    pub(crate) fn new(directory: &Path, entries: u64, event_bytes: usize) -> Self {
        let batches = entries.saturating_sub(PRELUDE).div_ceil(BATCH as u64 + 1);
        Self { directory: directory.to_owned(), batches, event_bytes }
    }

    /// Its entries.
    pub(crate) fn entries(&self) -> u64 {
        PRELUDE + self.batches * (BATCH as u64 + 1)
    }

    /// The log's own files.
    pub(crate) fn log(&self) -> PathBuf {
        self.ledger().join("log")
    }

    /// The ledger's data directory.
    pub(crate) fn ledger(&self) -> PathBuf {
        self.directory.join("ledger")
    }

    /// Starts the ledger over the log.
    pub(crate) async fn start(&self) -> anyhow::Result<(Service, Arc<Generated>)> {
        let agent = Agent::new(1, self.event_bytes);
        let enroll =
            vec![Enrolment { role: KeyRole::Agent, holder: agent.id().to_owned(), key: agent.public_key() }];
        let stream = Generated::open(&self.directory.join("stream"), agent, PRELUDE, self.batches, BATCH)?;
        let stream = Arc::new(stream);
        let options =
            Options { origin: "loadtest.example/log".to_owned(), enroll, ..Options::new(self.ledger()) };
        Ok((Service::start(options, stream.clone()).await?, stream))
    }

    /// Builds it; entries per second.
    pub(crate) async fn build(&self) -> anyhow::Result<f64> {
        let started = Instant::now();
        let (service, stream) = self.start().await?;
        let (mut size, mut grown) = (0, Instant::now());
        while size < self.entries() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = covered(&service);
            if now > size {
                (size, grown) = (now, Instant::now());
            }
            ensure!(grown.elapsed() < STALLED, "the log stays at {size}: {:?}", service.readiness());
        }
        let per_s = rate(size, started.elapsed());
        stream.keep_last()?;
        service.stop().await;
        say(format!("a log of {size} entries, {per_s:.0} entries/s"));
        Ok(per_s)
    }
}

/// Entries that the newest checkpoint covers.
pub(crate) fn covered(service: &Service) -> u64 {
    SignedCheckpoint::parse(&service.checkpoint()).map_or(0, |signed| signed.checkpoint().size())
}
