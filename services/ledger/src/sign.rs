//! Signing: while this ledger holds the stream's lease, it signs a checkpoint when the tree grew, has it cosigned, publishes it, and
//! then tells the agents.
//!
//! Left out: comparing with the checkpoint before, which the store does. Invariant: nothing is signed without the lease; nothing is
//! published without the quorum of witnesses; a receipt names no head that its checkpoint does not cover.

use std::{
    collections::BTreeMap,
    fs::File,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use exchequer_event::{control::sign_receipt, name::receipt_key, v1};
use exchequer_stream::{AppendError, EventStream, Lease, LeaseError, LeaseOutcome};
use exchequer_tlog::SignedCheckpoint;
use futures::{StreamExt as _, stream};
use prost::Message as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    control::pause,
    integrate::AgentOutcome,
    metrics::Metrics,
    standing::{Due, Part, Published, Standing},
    store::{CheckpointLog, LogReader, Position, SignError},
    witness::client::Witnesses,
};

const LEASE: &str = "ledger-signer";
const LEASE_TTL: Duration = Duration::from_secs(10);
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// With less than this left of the lease, nothing is signed any more.
const LEASE_MARGIN: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(1);
/// Receipts in flight at once.
const CONCURRENT_RECEIPTS: usize = 32;
/// Receipts that take longer are tried again with the next checkpoint; the lease has to be renewed in between.
const RECEIPTS_WITHIN: Duration = Duration::from_secs(3);

/// The signing part of a ledger.
#[derive(Debug)]
pub(crate) struct Signer {
    pub(crate) checkpoints: CheckpointLog,
    pub(crate) witnesses: Witnesses,
    pub(crate) reader: LogReader,
    pub(crate) standing: Arc<Standing>,
    pub(crate) stream: Arc<dyn EventStream>,
    pub(crate) key: SigningKey,
    pub(crate) holder: String,
    pub(crate) interval: Duration,
    pub(crate) metrics: Metrics,
    /// As the pipeline's: a signature may outlive the service that was dropped.
    pub(crate) _lock: Arc<File>,
}

/// How a turn at the lease ended.
enum Ended {
    Shutdown,
    Lost,
    Forked,
}

impl Signer {
    /// Runs until the shutdown, or until a fork is found.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let wait = match self.stream.acquire_lease(LEASE, &self.holder, LEASE_TTL).await {
                Ok(LeaseOutcome::Held(lease)) => {
                    self.standing.report(Part::Sign, None);
                    self.standing.lead(Some(lease.clone()));
                    let (returned, ended) = self.hold(lease, &shutdown).await;
                    self = returned;
                    self.standing.lead(None);
                    match ended {
                        Ended::Shutdown | Ended::Forked => return,
                        Ended::Lost => RETRY,
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
            if pause(wait, &shutdown).await {
                return;
            }
        }
    }

    /// Signs and renews for as long as the lease is held.
    async fn hold(mut self, mut lease: Lease, shutdown: &CancellationToken) -> (Self, Ended) {
        let mut changed = self.standing.changed.subscribe();
        let mut sign_at = Instant::now();
        let mut renew_at = Instant::now() + RENEW_EVERY;
        loop {
            if lease.remaining().is_zero() {
                self.standing.report(Part::Sign, Some("the signing lease ran out".to_owned()));
                return (self, Ended::Lost);
            }
            changed.borrow_and_update();
            let is_due = self.standing.is_due();
            tokio::select! {
                () = shutdown.cancelled() => {
                    let (returned, outcome) = self.sign(&lease).await;
                    self = returned;
                    if let Err(error) = outcome {
                        tracing::error!(%error, "the last checkpoint could not be signed");
                    }
                    if let Err(error) = self.stream.release_lease(lease).await {
                        tracing::debug!(%error, "the signing lease could not be given back");
                    }
                    return (self, Ended::Shutdown);
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
                            return (self, Ended::Lost);
                        }
                    }
                }
                woken = changed.changed(), if !is_due => if woken.is_err() { return (self, Ended::Shutdown) },
                () = tokio::time::sleep_until(sign_at), if is_due => {
                    sign_at = Instant::now() + self.interval;
                    let (returned, outcome) = self.sign(&lease).await;
                    self = returned;
                    let fault = outcome.as_ref().err().map(ToString::to_string);
                    self.standing.report(Part::Sign, fault);
                    if matches!(outcome, Err(SignError::Fork { .. })) {
                        return (self, Ended::Forked);
                    }
                }
            }
        }
    }

    /// Signs the committed tree if it grew, publishes the checkpoint, then the receipts.
    async fn sign(mut self, lease: &Lease) -> (Self, Result<(), SignError>) {
        if lease.remaining() < LEASE_MARGIN || !self.standing.is_due() {
            return (self, Ok(()));
        }
        let Due { position, receipts } = self.standing.take_due(&self.reader);
        if position.size > self.standing.published.borrow().size {
            let outcome;
            (self, outcome) = self.publish(position).await;
            if let Err(error) = outcome {
                self.standing.give_back(receipts);
                return (self, Err(error));
            }
        }
        self.send_receipts(receipts).await;
        (self, Ok(()))
    }

    /// Signs the tree at a position, has it cosigned and publishes it.
    async fn publish(mut self, position: Position) -> (Self, Result<(), SignError>) {
        let signed;
        (self, signed) =
            self.blocking(move |signer| signer.checkpoints.sign(&signer.reader, &position, unix_s())).await;
        let mut signed = match signed {
            Ok(signed) => signed,
            Err(error) => return (self, Err(error)),
        };
        if let Err(error) = self.cosign(&mut signed).await {
            return (self, Err(error));
        }
        self.blocking(move |signer| signer.publish_signed(&signed)).await
    }

    /// Adds the cosignatures of the witnesses; an error if they are too few to publish it.
    async fn cosign(&self, signed: &mut SignedCheckpoint) -> Result<(), SignError> {
        let Some(cosigning) = self.witnesses.cosign(signed, &self.reader).await else { return Ok(()) };
        self.metrics.cosigned(&cosigning);
        let (size, needed, got) = (signed.checkpoint().size(), cosigning.needed, cosigning.by.len());
        self.standing.report_witnesses(cosigning);
        if got < needed { Err(SignError::Quorum { size, needed, got }) } else { Ok(()) }
    }

    fn publish_signed(&mut self, signed: &SignedCheckpoint) -> Result<(), SignError> {
        self.checkpoints.publish(signed)?;
        self.reader.published(signed.checkpoint().size());
        self.standing.published.send_replace(Published::new(signed, unix_s()));
        self.metrics.signed();
        self.reader.remove_superseded()?;
        Ok(())
    }

    /// Does work that waits for the disk.
    async fn blocking<T: Send + 'static>(
        mut self,
        work: impl FnOnce(&mut Self) -> T + Send + 'static,
    ) -> (Self, T) {
        let working = tokio::task::spawn_blocking(move || {
            let outcome = work(&mut self);
            (self, outcome)
        });
        working.await.expect("signing does not panic")
    }

    async fn send_receipts(&self, receipts: BTreeMap<String, AgentOutcome>) {
        let checkpoint = self.standing.published.borrow().note.clone();
        if receipts.is_empty() || checkpoint.is_empty() {
            return self.standing.give_back(receipts);
        }
        let mut waiting = receipts.clone();
        let mut sent = 0;
        let sending = async {
            let mut outcomes = stream::iter(receipts)
                .map(|(agent_id, outcome)| {
                    let put = self.send_receipt(outcome, checkpoint.clone());
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

    async fn send_receipt(&self, outcome: AgentOutcome, checkpoint: Bytes) -> Result<(), AppendError> {
        let AgentOutcome { head, refused } = outcome;
        let key = receipt_key(&head.agent_id);
        let receipt = v1::Receipt {
            resend_from: refused.map_or(0, |_| head.seq + 1),
            refused: refused.map_or(0, Into::into),
            head: Some(head),
            checkpoint,
        };
        let signed = sign_receipt(&self.key, &receipt);
        self.stream.put_latest(&key, signed.encode_to_vec().into()).await
    }
}

/// Seconds since the Unix epoch.
pub(crate) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
