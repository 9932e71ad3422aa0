//! The audit: the fold over log entries that a stranger runs. It trusts nothing but the bytes: every signature is verified with the
//! key that the log had enrolled at that point, every event and decision run has to stand under the seal before it, and every chain
//! has to be unbroken. Whether the entries are the leaves of a signed tree is for `exchequer-tlog`.
//!
//! It has two halves: [`examine_bytes`] is all that an entry shows by itself, and nearly all of the work; [`Auditor::judge`] is what follows
//! from the entries before it. [`Auditor::check`] is one after the other.

mod examine;

use crate::{
    accept::Acceptor,
    digest::{Digest, Purpose},
    seal::{self, EventPlace, Refusal, malformed, mismatch},
    v1::{self, KeyRole, RejectionReason, entry::Kind},
};
use examine::{CheckedBlock, Shown, sealed_digests};
use prost::Message;

pub use examine::{CheckedBatch, Examined, check_sealed_batch, check_sealed_block, examine, examine_bytes};

/// The state of the audit.
#[derive(Clone, Debug, Default)]
pub struct Auditor {
    acceptor: Acceptor,
    promise: Promise,
    /// Stream sequence of the last entry.
    stream_seq: u64,
    counts: Counts,
}

/// What the last seal promised and what of it has come.
#[derive(Clone, Debug, Default)]
struct Promise {
    /// What the digests are for; `None` before the first seal.
    purpose: Option<Purpose>,
    digests: Vec<Digest>,
    /// How many of the digests have come or were in the log before.
    kept: usize,
    /// The next event, for a batch.
    next: Option<EventPlace>,
}

impl Promise {
    fn missing(&self) -> usize {
        self.digests.len() - self.kept
    }

    fn keep(&mut self, purpose: Purpose, digest: Digest) -> Result<(), Refusal> {
        if self.purpose != Some(purpose) || self.digests.get(self.kept) != Some(&digest) {
            return Err(mismatch("the record is not the one that the seal before it promises"));
        }
        self.kept += 1;
        Ok(())
    }

    /// What an agent signed has to fit its own seal: the acceptor refuses anything else, so a log that holds it was not made by one.
    fn keep_place(&mut self, place: EventPlace, digest: Digest) -> Result<(), Refusal> {
        let Some(next) = self.next.as_mut().filter(|next| {
            next.agent_id == place.agent_id && next.epoch == place.epoch && next.seq == place.seq
        }) else {
            return Err(mismatch("agent_id, epoch or seq is not the seal's"));
        };
        if next.prev_hash != place.prev_hash {
            return Err(mismatch("prev_hash is not the digest of the event before"));
        }
        next.seq = next.seq.saturating_add(1);
        next.prev_hash = Some(digest);
        Ok(())
    }
}

/// What was audited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Entries of every kind.
    pub entries: u64,
    /// Events.
    pub events: u64,
    /// Decision runs.
    pub decision_runs: u64,
    /// Signatures verified.
    pub signatures: u64,
    /// Rejections found recorded.
    pub rejections: u64,
    /// Equivocations found recorded.
    pub equivocations: u64,
}

impl Auditor {
    /// Before the first entry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes on where an audit ended that held, [`finish`](Self::finish) included. Nothing is counted yet.
    pub fn resume(acceptor: Acceptor, stream_seq: u64) -> Self {
        Self { acceptor, stream_seq, ..Self::default() }
    }

    /// Stream sequence of the last entry; 0 before the first.
    pub fn stream_seq(&self) -> u64 {
        self.stream_seq
    }

    /// The state that the log's entries lead to.
    pub fn acceptor(&self) -> &Acceptor {
        &self.acceptor
    }

    /// What was audited so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The next entry, in log order.
    pub fn check(&mut self, entry: &v1::Entry) -> Result<(), Refusal> {
        self.judge(examine(entry.clone()))
    }

    /// The next entry, in log order, after its examination.
    pub fn judge(&mut self, examined: Examined) -> Result<(), Refusal> {
        let Examined { stream_seq, shown } = examined;
        if matches!(shown, Shown::Nothing) {
            return Err(malformed("entry.kind is missing"));
        }
        if stream_seq < self.stream_seq {
            return Err(mismatch(format!("stream_seq {stream_seq} after {}", self.stream_seq)));
        }
        let follows = matches!(shown, Shown::Event { .. } | Shown::DecisionRun { .. });
        if follows && stream_seq != self.stream_seq {
            return Err(mismatch("the record is not of the message of the seal before it"));
        }
        if !follows && self.promise.missing() > 0 {
            return Err(mismatch(format!(
                "{} records of the seal before it are missing",
                self.promise.missing()
            )));
        }
        let evolved = match shown {
            Shown::Nothing => None,
            Shown::Event { digest, place } => {
                self.promise.keep(Purpose::Event, digest)?;
                self.promise.keep_place(place?, digest)?;
                self.counts.events += 1;
                None
            }
            Shown::DecisionRun { digest, sound } => {
                self.promise.keep(Purpose::DecisionRun, digest)?;
                sound?;
                self.counts.decision_runs += 1;
                None
            }
            Shown::Batch(batch) => {
                let (sealed, checked) = *batch;
                self.promise = judge_batch(&self.acceptor, &sealed, checked?)?;
                self.counts.signatures += 1;
                Some(Kind::BatchSealed(sealed))
            }
            Shown::Block(block) => {
                let (sealed, checked) = *block;
                self.judge_block(stream_seq, checked?)?;
                Some(Kind::BlockSealed(sealed))
            }
            Shown::Control(control) => {
                let (signed, open) = *control;
                let open = open?;
                self.acceptor.check_control(&open)?;
                if matches!(open.kind, v1::control_record::Kind::StreamRefilled(_)) {
                    return Err(mismatch("what stands for a lost message is never an entry itself"));
                }
                self.counts.signatures += 1;
                Some(Kind::Control(signed))
            }
            Shown::Rejection(sound) => {
                sound?;
                self.counts.rejections += 1;
                None
            }
            Shown::Equivocation(equivocation) => {
                judge_equivocation(&self.acceptor, &equivocation)?;
                self.counts.signatures += 1;
                self.counts.equivocations += 1;
                None
            }
        };
        // Records that change nothing are left out; the entry counts all the same.
        self.acceptor.evolve(&v1::Entry { stream_seq, kind: evolved });
        self.stream_seq = stream_seq;
        self.counts.entries += 1;
        Ok(())
    }

    /// After the last entry: nothing that a seal promised may be missing.
    pub fn finish(&self) -> Result<(), Refusal> {
        match self.promise.missing() {
            0 => Ok(()),
            missing => Err(mismatch(format!("{missing} records of the last seal are missing"))),
        }
    }

    fn judge_block(&mut self, stream_seq: u64, block: CheckedBlock) -> Result<(), Refusal> {
        let CheckedBlock { place, digests, key } = block;
        let enrolled =
            self.acceptor.keys().iter().any(|k| k.role == KeyRole::Metering && !k.revoked && k.key == key);
        if !enrolled {
            return Err(Refusal::new(
                RejectionReason::UnknownKey,
                "the block's key was not enrolled here, or revoked",
            ));
        }
        let head = self.acceptor.partition(&place.partition);
        if place.index != head.index + 1
            || place.prev_hash != head.hash
            || place.epoch < head.epoch
            || place.now_unix_ms < head.now_unix_ms
            || place.usage_cursor < head.usage_cursor
            || place.usage_cursor >= stream_seq
        {
            return Err(Refusal::new(
                RejectionReason::WrongChain,
                "the block does not continue its partition's chain",
            ));
        }
        self.counts.signatures += 1;
        self.promise = Promise { purpose: Some(Purpose::DecisionRun), digests, kept: 0, next: None };
        Ok(())
    }
}

/// Whether the batch's key may sign now and the batch continues its agent's chain; what has to follow it.
fn judge_batch(
    acceptor: &Acceptor,
    sealed: &v1::BatchSealed,
    batch: CheckedBatch,
) -> Result<Promise, Refusal> {
    if !acceptor.may_sign(KeyRole::Agent, &batch.agent_id, &batch.key) {
        return Err(Refusal::new(
            RejectionReason::UnknownKey,
            "the batch's key was not enrolled here, or revoked",
        ));
    }
    let skipped = sealed.skipped as usize;
    let first = batch.first_seq.saturating_add(skipped as u64);
    let link = match skipped {
        0 => Some(batch.prev_hash),
        _ => batch.digests.get(skipped - 1).copied(),
    };
    let head = acceptor.head(&batch.agent_id);
    let follows = match &head {
        Some(head) if head.epoch == batch.epoch => {
            let link = link.ok_or_else(|| malformed("skipped is beyond the batch"))?;
            first == head.seq + 1 && head.hash == link.0.as_slice()
        }
        Some(head) if head.epoch > batch.epoch => false,
        _ => {
            batch.first_seq == 1
                && skipped == 0
                && batch.prev_hash == Digest::ZERO
                && sealed.previous_epoch == head
        }
    };
    if !follows || skipped >= batch.digests.len() {
        return Err(Refusal::new(
            RejectionReason::WrongChain,
            "the batch does not continue its agent's chain",
        ));
    }
    let (agent_id, epoch) = (batch.agent_id.into(), batch.epoch);
    Ok(Promise {
        purpose: Some(Purpose::Event),
        digests: batch.digests,
        kept: skipped,
        next: Some(EventPlace { agent_id, epoch, seq: first, prev_hash: link }),
    })
}

/// Whether these entries are what an accepted batch becomes now; the agent.
pub(crate) fn judge_batch_message(acceptor: &Acceptor, entries: &[v1::Entry]) -> Result<String, Refusal> {
    let mut shown = entries.iter().map(|entry| examine(entry.clone()).shown);
    let Some(Shown::Batch(batch)) = shown.next() else {
        return Err(malformed("the first entry is not a batch's seal"));
    };
    let (sealed, checked) = *batch;
    let checked = checked?;
    let agent_id = checked.agent_id.clone();
    let mut promise = judge_batch(acceptor, &sealed, checked)?;
    for shown in shown {
        let Shown::Event { digest, place } = shown else {
            return Err(mismatch("the record is not an event"));
        };
        promise.keep(Purpose::Event, digest)?;
        promise.keep_place(place?, digest)?;
    }
    match promise.missing() {
        0 => Ok(agent_id),
        missing => Err(mismatch(format!("{missing} records of the seal are missing"))),
    }
}

/// Whether an equivocation shows two events in one place: the one that the log holds, and the offered one under its agent's signature.
pub(crate) fn judge_equivocation(
    acceptor: &Acceptor,
    equivocation: &v1::Equivocation,
) -> Result<(), Refusal> {
    let seal = v1::BatchSeal::decode(equivocation.offered_seal.clone())
        .map_err(|e| malformed(format!("offered_seal: {e}")))?;
    let keys: Vec<_> = acceptor
        .keys()
        .iter()
        .filter(|key| key.role == KeyRole::Agent && key.holder == equivocation.agent_id && !key.revoked)
        .map(|key| key.key)
        .collect();
    let digest = Purpose::BatchSeal.digest(&equivocation.offered_seal);
    seal::verifying_key(&keys, digest, &equivocation.offered_signature)?;
    let root = seal::digest_field("offered_seal.root", &seal.root)?;
    let digests = sealed_digests(&equivocation.offered_event_digests, seal.count, root)?;
    let place = equivocation.seq.checked_sub(seal.first_seq).and_then(|place| usize::try_from(place).ok());
    let offered = place.and_then(|place| digests.get(place)).copied();
    let recorded = acceptor.recorded(&equivocation.agent_id, equivocation.epoch, equivocation.seq);
    if offered != Some(seal::event_digest(&equivocation.offered_event))
        || offered.is_none_or(|digest| digest.0 != *equivocation.offered_digest)
        || equivocation.offered_digest == equivocation.recorded_digest
        || recorded.is_none_or(|digest| digest.0 != *equivocation.recorded_digest)
        || seal.agent_id != equivocation.agent_id
        || seal.epoch != equivocation.epoch
    {
        return Err(mismatch("the evidence does not show two events in one place"));
    }
    Ok(())
}
