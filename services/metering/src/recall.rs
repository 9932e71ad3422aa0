//! Reads back what was decided long ago: the past says in which block an answer or a hold is, and the block is in the stream.
//!
//! Left out: keeping more of it than the last few blocks' answers; it is asked for rarely. Invariant: what is given back is from accepted
//! blocks only, for each is named by the one after it, and the last one is known to be accepted.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use exchequer_budget::{
    Decision, DecisionRun, Event, Hold, HoldId, IdempotencyKey, PastHold, State, TenantId,
};
use exchequer_event::{
    name::budget_subject,
    seal::{block_digest, decode_run, read_block_seal},
    v1,
};
use exchequer_stream::EventStream;
use futures::StreamExt;
use prost::Message as _;
use tokio::{sync::Mutex, time::timeout};

use crate::partition;

/// How long the next block may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Blocks whose answers are kept for who asks next: a call that comes again asks for many answers of few blocks.
const KEPT_BLOCKS: usize = 4;

/// Reads blocks of a stream.
#[derive(Clone, Debug)]
pub(crate) struct Recall {
    stream: Arc<dyn EventStream>,
    /// The blocks read last. Locked while one is read, so that it is read once for all who wait.
    kept: Arc<Mutex<VecDeque<Kept>>>,
}

/// Partition and stream sequence of a block, and what it answered each key.
type Kept = (u16, u64, HashMap<(TenantId, IdempotencyKey), Event>);

impl Recall {
    pub(crate) fn new(stream: Arc<dyn EventStream>) -> Self {
        Self { stream, kept: Arc::default() }
    }

    /// What a key was answered in the block of `stream_seq`.
    pub(crate) async fn answer(
        &self,
        partition: u16,
        stream_seq: u64,
        tenant: &TenantId,
        key: &IdempotencyKey,
    ) -> Result<Event, String> {
        let asked = (tenant.clone(), key.clone());
        let pick = |run: &DecisionRun, decision: &Decision| {
            let key = decision.idempotency.as_ref()?.key.clone();
            Some(((run.tenant.clone(), key), decision.events.first()?.clone()))
        };
        let mut kept = self.kept.lock().await;
        let block = kept.iter().find(|block| (block.0, block.1) == (partition, stream_seq));
        if let Some(reply) = block.and_then(|(_, _, answers)| answers.get(&asked)) {
            return Ok(reply.clone());
        }
        let answers: HashMap<_, _> =
            self.accepted(partition, (stream_seq, stream_seq), pick).await?.into_iter().collect();
        let reply = answers.get(&asked).cloned();
        kept.retain(|block| (block.0, block.1) != (partition, stream_seq));
        kept.truncate(KEPT_BLOCKS - 1);
        kept.push_front((partition, stream_seq, answers));
        drop(kept);
        reply.ok_or_else(|| format!("block {stream_seq} does not answer the key"))
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
        let own = self.accepted(partition, (past.granted_seq, past.closed_seq), pick).await?;
        // Its own events, applied by themselves, make the hold again.
        let mut state = State::default();
        for (tenant, decision) in &own {
            state.record(decision, tenant, 0);
        }
        let missing = || format!("hold {hold_id} is not in the blocks that granted and closed it");
        state.hold(hold_id).cloned().ok_or_else(missing)
    }

    /// What `pick` takes from the accepted blocks between two stream sequences, both included, in order. The last of
    /// them has to be one.
    async fn accepted<P>(
        &self,
        partition: u16,
        (from, to): (u64, u64),
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
        let mut next = blocks.last().map(|(digest, ..)| *digest);
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
