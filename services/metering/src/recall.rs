//! Reads back what was decided long ago: the past says in which block an answer or a hold is, and the block is in the stream.
//!
//! Where the broker lost messages and others took their places, the ledger put the lost ones back further behind: then the rest of the
//! subject is searched. Left out: keeping any of it; it is asked for rarely. Invariant: what is given back is from accepted blocks
//! only, for each is named by the one after it, up to one that is known to be accepted.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use exchequer_budget::{
    Decision, DecisionRun, Event, Hold, HoldId, IdempotencyKey, PastHold, State, TenantId,
};
use exchequer_event::{
    digest::Digest,
    name::budget_subject,
    seal::{block_digest, decode_run, read_block_seal},
    v1,
};
use exchequer_stream::EventStream;
use futures::StreamExt;
use prost::Message as _;
use tokio::time::timeout;

use crate::{fold::Fold, partition};

/// How long the next block may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reads blocks of a stream.
#[derive(Clone, Debug)]
pub(crate) struct Recall {
    pub(crate) stream: Arc<dyn EventStream>,
    pub(crate) fold: Arc<RwLock<Fold>>,
}

impl Recall {
    /// What a key was answered in the block of `stream_seq`.
    pub(crate) async fn answer(
        &self,
        partition: u16,
        stream_seq: u64,
        tenant: &TenantId,
        key: &IdempotencyKey,
    ) -> Result<Event, String> {
        let pick = |run: &DecisionRun, decision: &Decision| {
            let is_it = decision.idempotency.as_ref().is_some_and(|idempotency| idempotency.key == *key);
            (run.tenant == *tenant && is_it).then(|| decision.events.first().cloned()).flatten()
        };
        let mut answers = self.accepted(partition, (stream_seq, stream_seq), None, pick).await?;
        if answers.is_empty() {
            let (last, head) = self.end(partition);
            answers = self.accepted(partition, (stream_seq, last), Some(head), pick).await?;
        }
        answers.into_iter().next().ok_or_else(|| format!("block {stream_seq} does not answer the key"))
    }

    /// A closed hold as it stood when it was closed.
    pub(crate) async fn hold(
        &self,
        partition: u16,
        hold_id: &HoldId,
        past: PastHold,
    ) -> Result<Hold, String> {
        let pick = |run: &DecisionRun, decision: &Decision| {
            let own = decision.events.iter().filter(|event| hold_of(event) == Some(hold_id));
            let events: Vec<_> = own.cloned().collect();
            let decision = Decision { idempotency: None, actor: decision.actor.clone(), events };
            (!decision.events.is_empty()).then(|| (run.tenant.clone(), decision))
        };
        // Its own events, applied by themselves, make the hold again.
        let rebuilt = |own: Vec<(TenantId, Decision)>| {
            let mut state = State::default();
            own.iter().for_each(|(tenant, decision)| state.record(decision, tenant, 0));
            state.hold(hold_id).cloned()
        };
        let (granted, closed) = (past.granted_seq, past.closed_seq);
        if let Some(hold) = rebuilt(self.accepted(partition, (granted, closed), None, pick).await?) {
            return Ok(hold);
        }
        let (last, head) = self.end(partition);
        let hold = rebuilt(self.accepted(partition, (granted, last), Some(head), pick).await?);
        hold.ok_or_else(|| format!("hold {hold_id} is not in the blocks that granted and closed it"))
    }

    /// Where a partition's subject ends, and the digest of its last accepted block.
    fn end(&self, partition: u16) -> (u64, Digest) {
        let fold = self.fold.read().unwrap_or_else(PoisonError::into_inner);
        (fold.part(partition).subject_last, fold.head(partition).hash)
    }

    /// What `pick` takes from the accepted blocks between two stream sequences, both included, in order. `last` is the digest of an
    /// accepted block; none if the last of them is one.
    async fn accepted<P>(
        &self,
        partition: u16,
        (from, to): (u64, u64),
        last: Option<Digest>,
        pick: impl Fn(&DecisionRun, &Decision) -> Option<P>,
    ) -> Result<Vec<P>, String> {
        let subject = budget_subject(&partition::name(partition));
        let mut records = self.stream.read(from, &[&subject]).await.map_err(|error| error.to_string())?;
        let mut blocks = Vec::new();
        loop {
            let record = timeout(PATIENCE, records.next()).await.map_err(|_| "no answer to reading back")?;
            let record = record.ok_or("the reader ended")?.map_err(|error| error.to_string())?;
            if record.seq <= to
                && let Ok(block) = v1::SignedBlock::decode(record.payload)
                && let Ok((place, ..)) = read_block_seal(&block.seal)
            {
                // What can't be decoded changed nothing.
                let runs = block.items.iter().filter_map(|item| decode_run(item).ok());
                let runs = runs.filter_map(|run| DecisionRun::try_from(&run).ok());
                let mut picked = Vec::new();
                for run in runs {
                    picked.extend(run.decisions.iter().filter_map(|decision| pick(&run, decision)));
                }
                blocks.push((block_digest(&block.seal), place.prev_hash, picked));
            }
            if record.seq >= to {
                break;
            }
        }
        let mut next = last.or(blocks.last().map(|(digest, ..)| *digest));
        let mut accepted = Vec::new();
        for (digest, prev_hash, picked) in blocks.into_iter().rev() {
            if next == Some(digest) {
                next = Some(prev_hash);
                accepted.push(picked);
            }
        }
        Ok(accepted.into_iter().rev().flatten().collect())
    }
}

/// The hold that an event is about.
fn hold_of(event: &Event) -> Option<&HoldId> {
    match event {
        Event::HoldGranted { hold_id, .. }
        | Event::HoldExtended { hold_id, .. }
        | Event::HoldSettled { hold_id, .. }
        | Event::LeaseDrawn { hold_id, .. }
        | Event::HoldVoided { hold_id }
        | Event::HoldExpired { hold_id }
        | Event::HoldRevoked { hold_id, .. } => Some(hold_id),
        _ => None,
    }
}
