//! Keeps the partition's lease: takes it, renews it, and says at once when it is gone.
//!
//! Left out: fencing. The lease only says who should write; that a late writer can't is for the stream's expected sequence and the
//! acceptance of blocks. Invariant: [`LeaseState::Held`] is published only for a lease that the backend gave and that has not
//! run out by our own clock.

use std::{sync::Arc, time::Duration};

use exchequer_stream::{EventStream, Lease, LeaseError, LeaseOutcome};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Shortest wait between two attempts at a lease.
const RETRY: Duration = Duration::from_millis(100);

/// How the lease stands.
#[derive(Clone, Debug)]
pub(crate) enum LeaseState {
    /// It is ours, as long as [`Lease::remaining`] is not zero.
    Held(Lease),
    /// It is not; why.
    Absent(String),
}

impl LeaseState {
    /// The lease, if it is held now.
    pub(crate) fn held(&self) -> Result<&Lease, String> {
        match self {
            Self::Held(lease) if !lease.remaining().is_zero() => Ok(lease),
            Self::Held(_) => Err("the lease has run out".to_owned()),
            Self::Absent(reason) => Err(reason.clone()),
        }
    }
}

pub(crate) struct Keeper {
    pub(crate) stream: Arc<dyn EventStream>,
    pub(crate) name: String,
    pub(crate) holder: String,
    pub(crate) ttl: Duration,
    pub(crate) state: watch::Sender<LeaseState>,
    /// Epochs that turned out to be overtaken: give them up and ask for a higher one.
    pub(crate) forfeits: mpsc::Receiver<u64>,
    pub(crate) stop: CancellationToken,
}

impl Keeper {
    /// Runs until stopped; gives the lease back then.
    pub(crate) async fn run(mut self) {
        let stop = self.stop.clone();
        tokio::select! {
            () = self.keep() => {}
            () = stop.cancelled() => {}
        }
        let state = self.state.send_replace(LeaseState::Absent("stopping".to_owned()));
        if let LeaseState::Held(lease) = state
            && let Ok(Err(error)) = timeout(self.ttl, self.stream.release_lease(lease)).await
        {
            tracing::info!(%error, "the lease could not be given back and will run out");
        }
    }

    async fn keep(&mut self) {
        loop {
            let acquired = self.stream.acquire_lease(&self.name, &self.holder, self.ttl);
            match timeout(self.ttl, acquired).await {
                Ok(Ok(LeaseOutcome::Held(lease))) => {
                    tracing::info!(name = lease.name, epoch = lease.epoch, "lease held");
                    let why = self.hold(lease).await;
                    tracing::warn!(why, "lease lost");
                    self.absent(why);
                    sleep(RETRY).await;
                }
                Ok(Ok(LeaseOutcome::HeldBy { holder, expires_in })) => {
                    self.absent(format!("the partition's lease is held by {holder}"));
                    sleep(expires_in.clamp(RETRY, self.ttl / 2)).await;
                }
                Ok(Err(error)) => {
                    self.absent(error.to_string());
                    sleep(RETRY.max(self.ttl / 10)).await;
                }
                Err(_) => self.absent("no answer to the request for the lease".to_owned()),
            }
        }
    }

    /// Renews until the lease is gone; why it is.
    async fn hold(&mut self, mut lease: Lease) -> String {
        let mut wait = self.ttl / 3;
        loop {
            self.state.send_replace(LeaseState::Held(lease.clone()));
            tokio::select! {
                () = sleep(wait.min(lease.remaining())) => {}
                Some(epoch) = self.forfeits.recv() => {
                    if epoch == lease.epoch {
                        return format!("epoch {epoch} has been overtaken");
                    }
                    continue;
                }
            }
            match timeout(lease.remaining(), self.stream.renew_lease(&lease)).await {
                Ok(Ok(renewed)) => {
                    lease = renewed;
                    wait = self.ttl / 3;
                }
                Ok(Err(LeaseError::Unavailable(_))) if !lease.remaining().is_zero() => wait = RETRY,
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return "the lease ran out: no answer to its renewal".to_owned(),
            }
        }
    }

    fn absent(&self, why: String) {
        self.state.send_replace(LeaseState::Absent(why));
    }
}
