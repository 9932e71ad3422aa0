//! Keeps the partitions' leases: takes free ones, renews its own, and says at once when one is gone.
//!
//! The more partitions an instance holds, the longer it waits before it takes another: of instances that start together, or outlive
//! a third, each gets its share. A living owner's partitions stay where they are.
//!
//! Left out: fencing. A lease only says who should write; that a late writer can't is for the stream's expected sequence and the
//! acceptance of blocks. Invariant: [`LeaseState::Held`] is published only for a lease that the backend gave and that has not run out
//! by our own clock.

use std::{sync::Arc, time::Duration};

use exchequer_stream::{EventStream, Lease, LeaseError, LeaseOutcome};
use futures::future::BoxFuture;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::partition;

/// Shortest wait between two attempts at a lease.
const RETRY: Duration = Duration::from_millis(100);

/// How a lease stands.
#[derive(Clone, Debug)]
pub(crate) enum LeaseState {
    /// It is ours, as long as [`Lease::remaining`] is not zero.
    Held(Lease),
    /// It is another's.
    HeldBy(String),
    /// Nobody is known to hold it; why.
    Absent(String),
}

/// The name of a partition's lease.
pub(crate) fn lease_name(partition: u16) -> String {
    format!("metering-{}", partition::name(partition))
}

pub(crate) struct Keeper {
    pub(crate) stream: Arc<dyn EventStream>,
    pub(crate) partitions: u16,
    pub(crate) holder: String,
    pub(crate) ttl: Duration,
    /// Is told whenever a lease stands differently, renewals included.
    pub(crate) publish: Arc<dyn Fn(u16, LeaseState) + Send + Sync>,
    /// Epochs that turned out to be overtaken: give them up and ask for a higher one.
    pub(crate) forfeits: mpsc::UnboundedReceiver<(u16, u64)>,
    pub(crate) stop: CancellationToken,
}

/// Why a lease is no longer held, and the lease if it can be given back.
type Lost = (u16, String, Option<Lease>);

impl Keeper {
    /// Runs until stopped; gives the leases back then.
    pub(crate) async fn run(mut self) {
        let step = self.step();
        // When each partition that is not held is to be tried.
        let mut due: Vec<Option<Instant>> = vec![Some(Instant::now()); usize::from(self.partitions)];
        let mut forfeit: Vec<Option<mpsc::UnboundedSender<u64>>> = due.iter().map(|_| None).collect();
        let mut holding: JoinSet<Lost> = JoinSet::new();
        let mut last_taken = Instant::now();
        loop {
            let held = u32::try_from(holding.len()).unwrap_or(u32::MAX);
            // Not before it is due, and not before others had a chance since the last one was taken.
            let next = due.iter().zip(0..).filter_map(|(at, partition)| Some(((*at)?, partition))).min();
            let at = next.map(|(at, _)| at.max(last_taken + step * held));
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = wait_until(at) => {
                    let Some((_, partition)) = next else { continue };
                    let index = usize::from(partition);
                    match self.attempt(partition).await {
                        Ok(lease) => {
                            tracing::info!(name = lease.name, epoch = lease.epoch, "lease held");
                            let (sender, forfeits) = mpsc::unbounded_channel();
                            (due[index], forfeit[index]) = (None, Some(sender));
                            last_taken = Instant::now();
                            holding.spawn(self.hold(partition, lease, forfeits));
                        }
                        Err(after) => due[index] = Some(Instant::now() + after),
                    }
                }
                Some(Ok(lost)) = holding.join_next() => {
                    let partition = lost.0;
                    self.let_go(lost).await;
                    due[usize::from(partition)] = Some(Instant::now() + RETRY);
                }
                Some((partition, epoch)) = self.forfeits.recv() => {
                    if let Some(Some(holder)) = forfeit.get(usize::from(partition)) {
                        let _ = holder.send(epoch);
                    }
                }
            }
        }
        self.give_back(holding).await;
    }

    /// How much longer to wait with every partition held, so that taking over the half of all of them takes two thirds of a lease's
    /// time at most.
    fn step(&self) -> Duration {
        let partitions = u32::from(self.partitions.max(1));
        self.ttl * 4 / 3 / (partitions * partitions)
    }

    async fn give_back(&self, mut holding: JoinSet<Lost>) {
        while let Some(ended) = holding.join_next().await {
            if let Ok(lost) = ended {
                self.let_go(lost).await;
            }
        }
    }

    /// A lease that is not renewed any more: gone, or to be given back because we stop.
    async fn let_go(&self, (partition, why, lease): Lost) {
        if lease.is_none() {
            tracing::warn!(partition, why, "lease lost");
        }
        (self.publish)(partition, LeaseState::Absent(why));
        if let Some(lease) = lease
            && let Ok(Err(error)) = timeout(self.ttl, self.stream.release_lease(lease)).await
        {
            tracing::info!(%error, "a lease could not be given back and will run out");
        }
    }

    /// Tries to take a lease; if that fails, how long to wait before it is tried again.
    async fn attempt(&self, partition: u16) -> Result<Lease, Duration> {
        let name = lease_name(partition);
        let acquired = self.stream.acquire_lease(&name, &self.holder, self.ttl);
        let (state, after) = match timeout(self.ttl, acquired).await {
            Ok(Ok(LeaseOutcome::Held(lease))) => {
                (self.publish)(partition, LeaseState::Held(lease.clone()));
                return Ok(lease);
            }
            Ok(Ok(LeaseOutcome::HeldBy { holder, expires_in })) => {
                (LeaseState::HeldBy(holder), expires_in.clamp(RETRY, self.ttl / 2))
            }
            Ok(Err(error)) => (LeaseState::Absent(error.to_string()), RETRY.max(self.ttl / 10)),
            Err(_) => (LeaseState::Absent("no answer to the request for the lease".to_owned()), RETRY),
        };
        (self.publish)(partition, state);
        Err(after)
    }

    /// Renews until the lease is gone or we stop.
    fn hold(
        &self,
        partition: u16,
        mut lease: Lease,
        mut forfeits: mpsc::UnboundedReceiver<u64>,
    ) -> BoxFuture<'static, Lost> {
        let (stream, ttl, stop) = (Arc::clone(&self.stream), self.ttl, self.stop.clone());
        let publish = Arc::clone(&self.publish);
        Box::pin(async move {
            let mut wait = ttl / 3;
            loop {
                tokio::select! {
                    () = stop.cancelled() => return (partition, "stopping".to_owned(), Some(lease)),
                    () = sleep(wait.min(lease.remaining())) => {}
                    Some(epoch) = forfeits.recv() => {
                        if epoch == lease.epoch {
                            return (partition, format!("epoch {epoch} has been overtaken"), None);
                        }
                        continue;
                    }
                }
                match timeout(lease.remaining(), stream.renew_lease(&lease)).await {
                    Ok(Ok(renewed)) => {
                        lease = renewed;
                        publish(partition, LeaseState::Held(lease.clone()));
                        wait = ttl / 3;
                    }
                    Ok(Err(LeaseError::Unavailable(_))) if !lease.remaining().is_zero() => wait = RETRY,
                    Ok(Err(error)) => return (partition, error.to_string(), None),
                    Err(_) => {
                        let why = "the lease ran out: no answer to its renewal";
                        return (partition, why.to_owned(), None);
                    }
                }
            }
        })
    }
}

async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
