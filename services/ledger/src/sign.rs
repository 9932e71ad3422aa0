//! Signing: while this ledger holds the stream's lease, it signs a checkpoint when the tree grew, has it cosigned, publishes it, and
//! then tells the agents. While another holds it, this one follows what is published.
//!
//! Left out: agreeing on what is published ([`agree`]), which does not rely on the lease. Invariant: nothing is signed without the lease,
//! or by a key that the log does not let sign; a receipt names no head that its checkpoint does not cover.

pub(crate) mod agree;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use exchequer_event::{
    control::{key_chain, sign_receipt},
    name::receipt_key,
    v1,
};
use exchequer_stream::{AppendError, EventStream, Lease, LeaseError, LeaseOutcome};
use futures::{StreamExt, stream};
use prost::Message as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::agree::Agreement;
use crate::{
    integrate::AgentOutcome,
    key::{Current, LedgerKey},
    metrics::Metrics,
    standing::{Part, Standing},
    store::SignError,
};

const LEASE: &str = "ledger-signer";
const LEASE_TTL: Duration = Duration::from_secs(10);
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// With less than this left of the lease, nothing is signed any more.
const LEASE_MARGIN: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(1);
/// A ledger that does not sign looks at least so often at what is published.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);
/// Receipts in flight at once.
const CONCURRENT_RECEIPTS: usize = 32;
/// Receipts that take longer are tried again with the next checkpoint; the lease has to be renewed in between.
const RECEIPTS_WITHIN: Duration = Duration::from_secs(3);

/// The signing part of a ledger.
#[derive(Debug)]
pub(crate) struct Signer {
    pub(crate) agreement: Agreement,
    pub(crate) standing: Arc<Standing>,
    pub(crate) stream: Arc<dyn EventStream>,
    pub(crate) key: LedgerKey,
    pub(crate) holder: String,
    pub(crate) interval: Duration,
    pub(crate) metrics: Metrics,
}

/// How a turn, at the lease or beside it, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Shutdown,
    Again,
    Forked,
}

impl Signer {
    /// Runs until the shutdown, or until a fork is found.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        loop {
            let ended = self.turn(&shutdown).await;
            match ended {
                Ended::Again => {}
                Ended::Shutdown | Ended::Forked => return,
            }
        }
    }

    /// Signs if nobody else does and the key may, and follows for a while otherwise.
    async fn turn(&self, shutdown: &CancellationToken) -> Ended {
        let changed = self.standing.changed.subscribe();
        if let Err(fault) = self.key.check(&self.standing).await {
            self.standing.report(Part::Sign, Some(fault));
            return self.stand_by(RETRY, Some(changed), shutdown).await;
        }
        // The lease is for who can go on from what is published. Whoever is behind reads on without it, and would only keep the one from
        // signing, and from putting back what the broker lost, who can.
        if let Err(error @ SignError::Behind { .. }) = self.agreement.follow().await {
            self.standing.report(Part::Sign, Some(error.to_string()));
            return self.stand_by(RETRY, None, shutdown).await;
        }
        let wait = match self.stream.acquire_lease(LEASE, &self.holder, LEASE_TTL).await {
            Ok(LeaseOutcome::Held(lease)) => {
                self.standing.report(Part::Sign, None);
                self.standing.lead(Some(lease.clone()));
                let ended = self.hold(lease, shutdown).await;
                self.standing.lead(None);
                match ended {
                    Ended::Again => RETRY,
                    ended => return ended,
                }
            }
            Ok(LeaseOutcome::HeldBy { holder, expires_in }) => {
                self.standing
                    .report(Part::Sign, Some(format!("standing by: {holder} holds the signing lease")));
                expires_in.clamp(Duration::from_millis(100), LEASE_TTL)
            }
            Err(error) => {
                self.standing.report(Part::Sign, Some(error.to_string()));
                RETRY
            }
        };
        self.stand_by(wait, None, shutdown).await
    }

    /// Follows what is published, for so long or until the log `changed`.
    async fn stand_by(
        &self,
        wait: Duration,
        mut changed: Option<tokio::sync::watch::Receiver<crate::store::Position>>,
        shutdown: &CancellationToken,
    ) -> Ended {
        let until = Instant::now() + wait;
        while Instant::now() < until {
            match self.agreement.follow().await {
                // It is standing by as it is.
                Ok(_) | Err(SignError::Behind { .. }) => {}
                Err(error) => {
                    self.standing.report(Part::Sign, Some(error.to_string()));
                    if error.is_fork() {
                        return Ended::Forked;
                    }
                }
            }
            let next = until.min(Instant::now() + self.interval.min(FOLLOW_EVERY));
            let has_changed = async {
                match &mut changed {
                    Some(changed) => drop(changed.changed().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return Ended::Shutdown,
                () = tokio::time::sleep_until(next) => {}
                () = has_changed => return Ended::Again,
            }
        }
        Ended::Again
    }

    /// Signs and renews for as long as the lease is held.
    async fn hold(&self, mut lease: Lease, shutdown: &CancellationToken) -> Ended {
        let mut changed = self.standing.changed.subscribe();
        let mut sign_at = Instant::now();
        let mut renew_at = Instant::now() + RENEW_EVERY;
        // What others published last is looked at even if there is nothing to sign.
        let mut is_first = true;
        loop {
            if lease.remaining().is_zero() {
                self.standing.report(Part::Sign, Some("the signing lease ran out".to_owned()));
                return Ended::Again;
            }
            changed.borrow_and_update();
            let is_due = is_first || self.standing.is_due();
            tokio::select! {
                () = shutdown.cancelled() => {
                    if let Err(error) = self.sign(&lease).await {
                        tracing::error!(%error, "the last checkpoint could not be published");
                    }
                    self.give_back(lease).await;
                    return Ended::Shutdown;
                }
                () = tokio::time::sleep_until(renew_at) => {
                    renew_at = Instant::now() + RENEW_EVERY;
                    match self.stream.renew_lease(&lease).await {
                        Ok(renewed) => {
                            self.standing.lead(Some(renewed.clone()));
                            lease = renewed;
                        }
                        Err(LeaseError::Unavailable(_)) => renew_at = Instant::now() + RETRY,
                        Err(error) => {
                            self.standing.report(Part::Sign, Some(error.to_string()));
                            return Ended::Again;
                        }
                    }
                }
                woken = changed.changed(), if !is_due => if woken.is_err() { return Ended::Shutdown },
                () = tokio::time::sleep_until(sign_at), if is_due => {
                    sign_at = Instant::now() + self.interval;
                    let outcome = self.sign(&lease).await;
                    is_first = is_first && outcome.is_err();
                    self.standing.report(Part::Sign, outcome.as_ref().err().map(ToString::to_string));
                    match outcome {
                        Err(error) if error.is_fork() => {
                            self.give_back(lease).await;
                            return Ended::Forked;
                        }
                        // Whoever has the tree that is published gets the lease.
                        Err(SignError::Behind { .. }) => {
                            self.give_back(lease).await;
                            return Ended::Again;
                        }
                        // Whoever has the key that may sign gets the lease.
                        Err(SignError::Key { .. }) if self.key.check(&self.standing).await.is_err() => {
                            self.give_back(lease).await;
                            return Ended::Again;
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    async fn give_back(&self, lease: Lease) {
        if let Err(error) = self.stream.release_lease(lease).await {
            tracing::debug!(%error, "the signing lease could not be given back");
        }
    }

    /// Publishes the committed tree if it grew, then the receipts.
    async fn sign(&self, lease: &Lease) -> Result<(), SignError> {
        if lease.remaining() < LEASE_MARGIN {
            return Ok(());
        }
        let receipts = self.agreement.publish().await?;
        self.send_receipts(receipts).await;
        Ok(())
    }

    async fn send_receipts(&self, receipts: BTreeMap<String, AgentOutcome>) {
        let checkpoint = self.standing.published.borrow().note.clone();
        if receipts.is_empty() || checkpoint.is_empty() {
            return self.standing.give_back(receipts);
        }
        let key = self.key.current();
        let chain = key_chain(&self.standing.ledger_enrolments(), &key.public());
        let mut waiting = receipts.clone();
        let mut sent = 0;
        let sending = async {
            let mut outcomes = stream::iter(receipts)
                .map(|(agent_id, outcome)| {
                    let put = self.send_receipt(&key, outcome, checkpoint.clone(), chain.clone());
                    async move { (agent_id, put.await) }
                })
                .buffer_unordered(CONCURRENT_RECEIPTS);
            while let Some((agent_id, outcome)) = outcomes.next().await {
                match outcome {
                    Ok(()) => {
                        waiting.remove(&agent_id);
                        sent += 1;
                    }
                    Err(error) => tracing::warn!(%error, agent_id, "a receipt could not be published"),
                }
            }
        };
        if tokio::time::timeout(RECEIPTS_WITHIN, sending).await.is_err() {
            tracing::warn!(waiting = waiting.len(), "receipts take too long");
        }
        self.metrics.receipts(sent);
        self.standing.give_back(waiting);
    }

    async fn send_receipt(
        &self,
        key: &Current,
        outcome: AgentOutcome,
        checkpoint: Bytes,
        key_chain: Vec<v1::SignedControl>,
    ) -> Result<(), AppendError> {
        let AgentOutcome { head, refused } = outcome;
        let name = receipt_key(&head.agent_id);
        let receipt = v1::Receipt {
            resend_from: refused.map_or(0, |_| head.seq + 1),
            refused: refused.map_or(0, Into::into),
            head: Some(head),
            checkpoint,
            key_chain,
        };
        let signed = sign_receipt(&key.signing, &receipt);
        self.stream.put_latest(&name, signed.encode_to_vec().into()).await
    }
}

/// Seconds since the Unix epoch.
pub(crate) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
