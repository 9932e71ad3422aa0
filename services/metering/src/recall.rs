//! Reads back what was decided long ago: the past says in which block an answer or a hold is, and the block is in the stream.
//!
//! Left out: keeping more of it than the last few blocks' answers; it is asked for rarely. Invariant: what is given back is from accepted
//! blocks only, for each is named by the one after it, and the last one is known to be accepted. Of what lies between two blocks no more
//! is kept than what was asked for, only few read at once, and none for longer than a bounded time.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use exchequer_budget::{Decision, DecisionRun, Event, Hold, HoldId, IdempotencyKey, State, TenantId};
use exchequer_event::{
    digest::Digest,
    name::budget_subject,
    seal::{block_digest, decode_run, read_block_seal},
    v1,
};
use exchequer_stream::EventStream;
use futures::StreamExt;
use prost::Message as _;
use tokio::{
    sync::{Mutex, Semaphore},
    time::timeout,
};

use crate::partition;

/// How long the next block may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Blocks whose answers are kept for who asks next: a call that comes again asks for many answers of few blocks.
const KEPT_BLOCKS: usize = 4;

/// How long one reading may take in all.
const WHOLE_PATIENCE: Duration = Duration::from_secs(10);
/// How long one waits for its turn.
const TURN_PATIENCE: Duration = Duration::from_secs(2);
/// Holds that are read back at once: from one block, and from all between two. Apart, so that commands that name a hold that is over do
/// not wait behind those who look at long ones.
const LOOKS: usize = 4;
const WALKS: usize = 2;

/// Blocks back that the next accepted one may name: so many that were not accepted can lie between two that were.
const FORKS: usize = 256;

/// Why nothing was read back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unrecalled {
    #[error("too many read back what is over")]
    Busy,
    #[error("{0}")]
    Unread(String),
}

/// Reads blocks of a stream.
#[derive(Clone, Debug)]
pub(crate) struct Recall {
    stream: Arc<dyn EventStream>,
    looks: Arc<Semaphore>,
    walks: Arc<Semaphore>,
    turn_patience: Duration,
    whole_patience: Duration,
    /// The blocks read last. Locked while one is read, so that it is read once for all who wait.
    kept: Arc<Mutex<VecDeque<Kept>>>,
}

/// Partition and stream sequence of a block, and what it answered each key.
type Kept = (u16, u64, HashMap<(TenantId, IdempotencyKey), Event>);

impl Recall {
    pub(crate) fn new(stream: Arc<dyn EventStream>) -> Self {
        Self {
            stream,
            looks: Arc::new(Semaphore::new(LOOKS)),
            walks: Arc::new(Semaphore::new(WALKS)),
            turn_patience: TURN_PATIENCE,
            whole_patience: WHOLE_PATIENCE,
            kept: Arc::default(),
        }
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

    /// A closed hold as it stood when it was closed, from the stream sequences of the blocks that granted and closed it.
    pub(crate) async fn hold(
        &self,
        partition: u16,
        hold_id: &HoldId,
        (granted_seq, closed_seq): (u64, u64),
    ) -> Result<Hold, Unrecalled> {
        let turns = if granted_seq == closed_seq { &self.looks } else { &self.walks };
        let Ok(Ok(_turn)) = timeout(self.turn_patience, turns.acquire()).await else {
            return Err(Unrecalled::Busy);
        };
        let pick = |run: &DecisionRun, decision: &Decision| {
            let own = decision.events.iter().filter(|event| hold_of(event) == Some(hold_id));
            let events: Vec<_> = own.cloned().collect();
            let decision = Decision { idempotency: None, actor: decision.actor.clone(), events };
            (!decision.events.is_empty()).then(|| (run.tenant.clone(), decision))
        };
        let own = self.accepted(partition, (granted_seq, closed_seq), pick).await;
        let own = own.map_err(Unrecalled::Unread)?;
        // Its own events, applied by themselves, make the hold again.
        let mut state = State::default();
        for (tenant, decision) in &own {
            state.record(decision, tenant, 0);
        }
        let missing =
            || Unrecalled::Unread(format!("hold {hold_id} is not in the blocks that granted and closed it"));
        state.hold(hold_id).cloned().ok_or_else(missing)
    }

    /// What `pick` takes from the accepted blocks between two stream sequences, both included, in order. The last of
    /// them has to be one.
    async fn accepted<P>(
        &self,
        partition: u16,
        range: (u64, u64),
        pick: impl Fn(&DecisionRun, &Decision) -> Option<P>,
    ) -> Result<Vec<P>, String> {
        let reading = timeout(self.whole_patience, self.picked(partition, range, pick));
        reading.await.unwrap_or_else(|_| Err("reading back took too long".to_owned()))
    }

    async fn picked<P>(
        &self,
        partition: u16,
        (from, to): (u64, u64),
        pick: impl Fn(&DecisionRun, &Decision) -> Option<P>,
    ) -> Result<Vec<P>, String> {
        let subject = budget_subject(&partition::name(partition));
        let mut records = self.stream.read(from, &[&subject]).await.map_err(|error| error.to_string())?;
        let mut chains = Chains::default();
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
                chains.add(block_digest(&block.seal), place.prev_hash, picked);
            }
            if record.seq >= to {
                return Ok(chains.last());
            }
        }
    }
}

/// What was picked from blocks, each after the one that it names.
#[derive(Debug)]
struct Chains<P> {
    /// From the blocks where anything was, with the index of the picks before.
    picks: Vec<(Vec<P>, Option<usize>)>,
    /// The last blocks, with the index of the last picks up to each.
    ends: VecDeque<(Digest, Option<usize>)>,
}

impl<P> Default for Chains<P> {
    fn default() -> Self {
        Self { picks: Vec::new(), ends: VecDeque::with_capacity(FORKS) }
    }
}

impl<P> Chains<P> {
    /// A block that names one which is not known has nothing before it: what began there is missing as a whole, not in part.
    fn add(&mut self, digest: Digest, prev_hash: Digest, picked: Vec<P>) {
        let named = self.ends.iter().rev().find(|(end, _)| *end == prev_hash);
        let mut at = named.and_then(|(_, at)| *at);
        if !picked.is_empty() {
            self.picks.push((picked, at));
            at = Some(self.picks.len() - 1);
        }
        if self.ends.len() == FORKS {
            self.ends.pop_front();
        }
        self.ends.push_back((digest, at));
    }

    /// What was picked up to the last block, in order.
    fn last(mut self) -> Vec<P> {
        let mut next = self.ends.back().and_then(|(_, at)| *at);
        let mut found = Vec::new();
        while let Some(at) = next {
            let (picked, before) = std::mem::take(&mut self.picks[at]);
            found.push(picked);
            next = before;
        }
        found.into_iter().rev().flatten().collect()
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

#[cfg(test)]
mod tests {
    use exchequer_stream::LocalStream;
    use futures::future::join_all;

    use super::*;

    #[test]
    fn blocks_that_were_not_accepted_are_left_out_and_nothing_is_kept_for_empty_ones() {
        let digest = |n: u16| {
            let mut digest = [0; 32];
            digest[..2].copy_from_slice(&n.to_le_bytes());
            Digest(digest)
        };
        let mut chains = Chains::default();
        chains.add(digest(1), digest(0), vec!["granted"]);
        chains.add(digest(2), digest(1), vec!["lost"]);
        chains.add(digest(3), digest(1), vec!["drawn"]);
        // The same block twice.
        chains.add(digest(3), digest(1), vec!["drawn"]);
        for n in 3..3000 {
            chains.add(digest(n + 1), digest(n), Vec::new());
        }
        assert_eq!((chains.picks.len(), chains.ends.len()), (4, FORKS));
        chains.add(digest(9999), digest(3000), vec!["closed"]);
        assert_eq!(chains.last(), ["granted", "drawn", "closed"]);
    }

    #[tokio::test]
    async fn few_read_back_at_once_and_none_forever() {
        let dir = exchequer_testkit::temp_dir();
        let stream = Arc::new(LocalStream::open(&dir.path().join("stream")).unwrap());
        let mut recall = Recall::new(stream);
        recall.turn_patience = Duration::from_millis(1);
        recall.whole_patience = Duration::from_millis(300);
        let hold_id = HoldId::parse("0_a").unwrap();
        // The stream has nothing there, so each waits.
        let asked = (0..WALKS + 3).map(|_| recall.hold(0, &hold_id, (1, 1_000_000)));
        let answers: Vec<_> = join_all(asked).await.into_iter().map(Result::unwrap_err).collect();
        let busy = answers.iter().filter(|answer| matches!(answer, Unrecalled::Busy)).count();
        assert_eq!((busy, answers.len() - busy), (3, WALKS), "{answers:?}");
    }
}
