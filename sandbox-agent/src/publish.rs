//! Publishes the spool: seals recorded events into signed batches, appends them to the stream in order, and follows the ledger's
//! receipts.
//!
//! Several batches are in flight at once. Whatever goes wrong (an append that fails or whose outcome is unknown, a gap that the ledger
//! reports, receipts that stay away) has one answer: go back to the first event that no receipt covers and publish from there.
//! Acceptance drops what the log already holds, so a repetition costs bandwidth and never meaning.
//!
//! Recording never waits for any of it: the backlog is on the disk, read in chunks, and so many batches are in flight at most.
//!
//! Left out: recording (the [`spool`](crate::spool)). Invariant: only a receipt that the ledger signed moves the spool's confirmed
//! position; an acknowledgement of the broker never does.

mod backlog;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use ed25519_dalek::{SigningKey, VerifyingKey};
use exchequer_event::{
    control, name,
    v1::{self, RejectionReason},
};
use exchequer_stream::{Ack, EventStream, Message as StreamMessage};
use futures::StreamExt;
use prost::bytes::Bytes;
use tokio::{sync::watch, time::Instant};

use self::backlog::{Backlog, Sealed};
use crate::{metrics, spool::Spool};

/// Batches in flight.
pub const MAX_IN_FLIGHT: usize = 8;
/// First pause after a failure; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Longest pause after the ledger refused a batch for a reason that waiting alone does not mend.
const MAX_REFUSED_BACKOFF: Duration = Duration::from_secs(30);
/// Longest time between two repetitions of what is not confirmed.
const MAX_RESEND: Duration = Duration::from_secs(300);

/// What publishing stands on.
#[derive(Debug)]
pub struct Publisher {
    /// The spool.
    pub spool: Arc<Spool>,
    /// The stream.
    pub stream: Arc<dyn EventStream>,
    /// Signs batches.
    pub key: SigningKey,
    /// Verifies receipts.
    pub ledger_key: VerifyingKey,
    /// How long receipts may stay away before everything unconfirmed is published again; doubles with each repetition.
    pub resend_after: Duration,
}

/// How publishing goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The highest seq that a receipt covers.
    pub confirmed: u64,
    /// Why the last attempt failed, if it did.
    pub trouble: Option<String>,
}

/// The newest receipt that the stream holds for an agent, if the ledger signed it.
pub async fn latest_receipt(
    stream: &dyn EventStream,
    agent_id: &str,
    ledger_key: &VerifyingKey,
) -> Result<Option<v1::Receipt>, exchequer_stream::ReadError> {
    let key = name::receipt_key(agent_id);
    let mut values = stream.watch_latest(&key).await?;
    // An absent value does not resolve, and absence is the normal state of a new agent.
    match tokio::time::timeout(Duration::from_millis(500), values.next()).await {
        Ok(Some(Ok(value))) => Ok(control::open_receipt(&value, ledger_key, agent_id).ok()),
        Ok(Some(Err(error))) => Err(error),
        Ok(None) | Err(_) => Ok(None),
    }
}

/// Why publishing pauses.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("the stream: {0}")]
    Stream(String),
    #[error("the spool: {0}")]
    Spool(String),
    #[error("the ledger refuses this agent's batches: {}", .0.as_str_name())]
    Refused(RejectionReason),
}

impl Trouble {
    fn stream(error: impl ToString) -> Self {
        Self::Stream(error.to_string())
    }

    fn spool(error: impl ToString) -> Self {
        Self::Spool(error.to_string())
    }
}

struct InFlight {
    last_seq: u64,
    ack: Ack,
}

impl Publisher {
    /// Publishes until cancelled. Each change of the progress is reported.
    pub async fn run(self, progress: watch::Sender<Progress>) {
        let mut backoff = MIN_BACKOFF;
        loop {
            let trouble = self.follow(&progress, &mut backoff).await;
            tracing::warn!(%trouble, "publishing paused");
            metrics::publish_retries().add(1, &[]);
            let max = if matches!(trouble, Trouble::Refused(_)) { MAX_REFUSED_BACKOFF } else { MAX_BACKOFF };
            progress.send_modify(|p| p.trouble = Some(trouble.to_string()));
            self.spool.note_publishing(Some(trouble.to_string()));
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(max);
        }
    }

    /// Publishes from the first unconfirmed event until something goes wrong.
    async fn follow(&self, progress: &watch::Sender<Progress>, backoff: &mut Duration) -> Trouble {
        let key = name::receipt_key(self.spool.agent_id());
        let mut receipts = match self.stream.watch_latest(&key).await {
            Ok(receipts) => receipts,
            Err(error) => return Trouble::stream(error),
        };
        let mut reader = self.spool.reader();
        let mut backlog = Backlog::new(reader.clone());
        let mut next = (self.spool.confirmed_seq() + 1).max(self.spool.first());
        let mut has_published = false;
        let mut in_flight: VecDeque<InFlight> = VecDeque::new();
        let mut resend_after = self.resend_after;
        let mut resend_at = Instant::now() + resend_after;
        loop {
            let waiting = next > self.spool.confirmed_seq() + 1;
            tokio::select! {
                biased;
                receipt = receipts.next() => match receipt {
                    None => return Trouble::Stream("the receipts ended".into()),
                    Some(Err(error)) => return Trouble::stream(error),
                    Some(Ok(value)) => {
                        let before = self.spool.confirmed_seq();
                        match self.take_receipt(&value).await {
                            // What was refused before this attempt may be accepted now.
                            Err(Trouble::Refused(_)) if !has_published => {}
                            Err(trouble) => return trouble,
                            Ok(Some(resend_from)) => {
                                in_flight.clear();
                                next = resend_from;
                            }
                            Ok(None) => {}
                        }
                        let confirmed = self.spool.confirmed_seq();
                        next = next.max(confirmed + 1);
                        if confirmed > before {
                            resend_after = self.resend_after;
                            *backoff = MIN_BACKOFF;
                            progress.send_modify(|p| *p = Progress { confirmed, trouble: None });
                            self.spool.note_publishing(None);
                        }
                        resend_at = Instant::now() + resend_after;
                    }
                },
                acked = async { (&mut in_flight[0].ack).await }, if !in_flight.is_empty() => {
                    let sent = in_flight.pop_front();
                    match acked {
                        Ok(_) => {
                            metrics::published_seq().record(sent.map_or(0, |sent| sent.last_seq), &[]);
                            progress.send_modify(|p| p.trouble = None);
                            self.spool.note_publishing(None);
                        }
                        Err(error) => return Trouble::stream(error),
                    }
                }
                () = tokio::time::sleep_until(resend_at), if waiting => {
                    next = self.spool.confirmed_seq() + 1;
                    resend_after = (resend_after * 2).min(MAX_RESEND);
                    resend_at = Instant::now() + resend_after;
                    tracing::warn!(from = next, "no receipt: publishing again what the ledger has not confirmed");
                    metrics::publish_retries().add(1, &[]);
                }
                durable = reader.wait_for(next), if in_flight.len() < MAX_IN_FLIGHT => {
                    if let Err(error) = durable {
                        return Trouble::spool(error);
                    }
                    match self.publish_batch(backlog, next).await {
                        Ok((read_on, last_seq, ack)) => {
                            backlog = read_on;
                            if !waiting {
                                resend_at = Instant::now() + resend_after;
                            }
                            next = last_seq + 1;
                            has_published = true;
                            in_flight.push_back(InFlight { last_seq, ack });
                        }
                        Err(trouble) => return trouble,
                    }
                }
            }
        }
    }

    /// Takes a receipt into the spool; the seq to go back to, if the ledger asks for one.
    async fn take_receipt(&self, value: &Bytes) -> Result<Option<u64>, Trouble> {
        let receipt = match control::open_receipt(value, &self.ledger_key, self.spool.agent_id()) {
            Ok(receipt) => receipt,
            Err(refusal) => {
                // Somebody who is not the ledger wrote there. Nothing may be pruned on his word.
                tracing::error!(%refusal, "a receipt that the ledger did not sign was ignored");
                return Ok(None);
            }
        };
        let head = receipt.head.clone().unwrap_or_default();
        let epoch = self.spool.epoch();
        if head.epoch > epoch {
            let reason =
                format!("the ledger holds epoch {} of this agent, this spool is {epoch}", head.epoch);
            return Err(Trouble::spool(self.spool.condemn(reason)));
        }
        if head.epoch == epoch {
            let spool = Arc::clone(&self.spool);
            let confirmed = tokio::task::spawn_blocking(move || spool.confirm(head.seq, &head.hash)).await;
            confirmed.map_err(Trouble::spool)?.map_err(Trouble::spool)?;
        }
        // A new epoch begins at 1, wherever the one before it ended.
        let resend_from = if head.epoch == epoch { receipt.resend_from } else { 1 };
        let is_kept = resend_from >= self.spool.first() && resend_from <= self.spool.tip() + 1;
        match receipt.refused() {
            RejectionReason::Unspecified => Ok(None),
            RejectionReason::Gap | RejectionReason::Stale if is_kept => Ok(Some(resend_from)),
            // The agent is not enrolled yet, or the log holds another history of it: going on would change nothing.
            reason => Err(Trouble::Refused(reason)),
        }
    }

    /// Seals what is durable from `next` on, as much as a batch takes, and hands it to the stream. The backlog comes back.
    async fn publish_batch(&self, mut backlog: Backlog, next: u64) -> Result<(Backlog, u64, Ack), Trouble> {
        // Not the spool itself: what outlives this call on another thread must not keep it open.
        let (agent_id, epoch, key) = (self.spool.agent_id().to_owned(), self.spool.epoch(), self.key.clone());
        let (backlog, sealed) = tokio::task::spawn_blocking(move || {
            let sealed = backlog.seal_next(&key, &agent_id, epoch, next);
            (backlog, sealed)
        })
        .await
        .map_err(Trouble::spool)?;
        let Sealed { last_seq, count, bytes } = sealed.map_err(Trouble::spool)?;
        let mut message = StreamMessage::new(name::events_subject(self.spool.agent_id()), bytes);
        // A batch has one trace: that of its first event.
        message.headers = self.spool.take_trace(last_seq);
        let ack = self.stream.enqueue(message).await.map_err(Trouble::stream)?;
        metrics::published_events().add(count, &[]);
        Ok((backlog, last_seq, ack))
    }
}
